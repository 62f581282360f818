//! Writers, each with one put under way and every key once: what they tried, and what was acknowledged to them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use meridian_client::{Bucket, Client};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::stage::BUCKET;

/// Longer than any stage of a move: what is not acknowledged until its writer is stopped never was.
const DEADLINE: Duration = Duration::from_secs(120);

/// Keys asked for at a time.
const KEYS_AT_ONCE: usize = 500;

/// Some writers at work.
pub(super) struct Writers {
    stop: CancellationToken,
    tasks: JoinSet<Written>,
    acknowledged: Arc<AtomicU64>,
}

/// What writers know.
#[derive(Default)]
pub(super) struct Written {
    pub(super) tried: BTreeSet<String>,
    pub(super) acknowledged: BTreeSet<String>,
}

impl Writers {
    /// So many begin, with keys below a name that nobody has used.
    pub(super) fn start(client: &Client, writers: usize, name: &str) -> anyhow::Result<Writers> {
        let (stop, acknowledged, mut tasks) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)), JoinSet::new());
        for writer in 0..writers {
            let name = format!("{name}/{writer}");
            tasks.spawn(write(client.bucket(BUCKET)?, name, stop.clone(), Arc::clone(&acknowledged)));
        }
        Ok(Writers { stop, tasks, acknowledged })
    }

    /// Acknowledgements so far.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Stops them at once.
    pub(super) async fn stop(mut self) -> anyhow::Result<Written> {
        self.stop.cancel();
        let mut all = Written::default();
        while let Some(written) = self.tasks.join_next().await {
            let written = written?;
            all.tried.extend(written.tried);
            all.acknowledged.extend(written.acknowledged);
        }
        Ok(all)
    }
}

async fn write(bucket: Bucket, name: String, stop: CancellationToken, acknowledged: Arc<AtomicU64>) -> Written {
    let mut written = Written::default();
    for nth in 0_u64.. {
        let key = format!("{name}/{nth}");
        written.tried.insert(key.clone());
        let put = bucket.put(key.clone(), key.clone()).deadline(DEADLINE);
        let answer = tokio::select! {
            answer = put => answer,
            () = stop.cancelled() => break,
        };
        if answer.is_ok() {
            written.acknowledged.insert(key);
            acknowledged.fetch_add(1, Ordering::Relaxed);
        }
    }
    written
}

/// Which of these keys the bucket lacks.
pub(super) async fn missing(bucket: &Bucket, keys: &BTreeSet<String>) -> anyhow::Result<BTreeSet<String>> {
    let keys: Vec<&String> = keys.iter().collect();
    let mut missing = BTreeSet::new();
    for keys in keys.chunks(KEYS_AT_ONCE) {
        let found = bucket.multi_get(keys.iter().map(|key| key.as_str())).strong().deadline(DEADLINE).await?.found;
        missing.extend(keys.iter().zip(found).filter(|(_, found)| found.is_none()).map(|(key, _)| (*key).clone()));
    }
    Ok(missing)
}
