//! What keeps a planet busy while its nodes crash: writers that remember, large values, keys that expire, operators who
//! move primaries.

use std::time::Duration;

use chaos::real::load::{Ledger, write};
use chaos::real::{BUCKETS, Planet, REGIONS, verdict};
use meridian_client::{BucketName, Client, RefusalKind, RegionName, Selection, SwitchoverSpec};
use meridian_types::{Labels, OperationId};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// One large value: some thirty fill a segment.
const LARGE: usize = 32 << 10;

/// Between two of them, of each who writes them: about a segment a second, which nodes that crash all the time can
/// still follow.
const LARGE_EVERY: Duration = Duration::from_millis(250);

/// Metadata commands that outnumber what its log keeps.
const COMMANDS: usize = 300;

pub(crate) struct Load {
    stop: CancellationToken,
    writers: JoinSet<Ledger>,
    others: JoinSet<()>,
}

impl Load {
    /// One writer per bucket and region, each beginning at its own region, and the others.
    pub(crate) async fn start(planet: &Planet) -> anyhow::Result<Load> {
        let stop = CancellationToken::new();
        let (mut writers, mut others) = (JoinSet::new(), JoinSet::new());
        for region in 0..REGIONS.len() {
            let client = planet.client(region).await?;
            for (at, (name, policy)) in BUCKETS.into_iter().enumerate() {
                writers.spawn(write(client.bucket(name)?, policy, region * BUCKETS.len() + at, stop.clone()));
                others.spawn(fill(client.clone(), name, region, stop.clone()));
            }
        }
        others.spawn(move_primaries(planet.client(0).await?, stop.clone()));
        Ok(Load { stop, writers, others })
    }

    /// Ends it; what the writers remember.
    pub(crate) async fn stop(&mut self) -> Vec<Ledger> {
        self.stop.cancel();
        while self.others.join_next().await.is_some() {}
        std::mem::take(&mut self.writers).join_all().await
    }

    /// Gives the metadata plane more to do than its log keeps; waits that long for a leader, since that may just have been killed.
    pub(crate) async fn relabel(&self, planet: &Planet, patience: Duration) -> anyhow::Result<()> {
        let client = planet.client(0).await?;
        let bucket = BucketName::new(BUCKETS[0].0)?;
        for number in 0..COMMANDS {
            let labels = Labels::from([("number".to_owned(), number.to_string())]);
            let until = Instant::now() + patience;
            while let Err(why) = client.admin().set_labels(&bucket, labels.clone(), Vec::new()).await {
                let passes = matches!(why.kind, RefusalKind::Unavailable | RefusalKind::Retry);
                anyhow::ensure!(passes && Instant::now() < until, "{why}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(())
    }
}

/// Large values under one key, and small ones that expire.
async fn fill(client: Client, bucket: &str, region: usize, stop: CancellationToken) {
    let Ok(bucket) = client.bucket(bucket) else { return };
    let mut turn = 0_u64;
    while !stop.is_cancelled() {
        turn += 1;
        // Whatever comes of it: the writers that remember are others.
        let _ = bucket.put(format!("large/{region}/{}", turn % 4), vec![b'x'; LARGE]).deadline(WAIT).await;
        let brief = bucket.put(format!("brief/{region}/{turn}"), "x").ttl(Duration::from_millis(500));
        let _ = brief.deadline(WAIT).await;
        tokio::time::sleep(LARGE_EVERY).await;
    }
}

/// How long what nobody remembers may take.
const WAIT: Duration = Duration::from_secs(3);

/// Moves primaries from region to region for as long as it is let.
async fn move_primaries(client: Client, stop: CancellationToken) {
    for turn in 1_usize.. {
        if stop.is_cancelled() {
            return;
        }
        let Ok(to) = RegionName::new(REGIONS[turn % REGIONS.len()]) else { return };
        let buckets = BUCKETS.iter().filter(|(_, policy)| policy.has_primary());
        let spec = SwitchoverSpec {
            to,
            buckets: Selection::Named(buckets.filter_map(|(name, _)| BucketName::new(name).ok()).collect()),
            // Where there is something to catch up with first, the metadata leadership goes ahead of the primaries.
            lag_ms_max: if turn.is_multiple_of(2) { 500 } else { 5 },
            pause_ms_max: 3_000,
            reason: String::new(),
        };
        let _ = client.admin().switchover(&spec, OperationId(rand::random()), false).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
}

/// Demands progress, equality, and every acknowledged write in every region; how many there were.
pub(crate) async fn judge(planet: &Planet, ledgers: &[Ledger], patience: Duration) -> anyhow::Result<i64> {
    let buckets: Vec<&str> = BUCKETS.iter().map(|(name, _)| *name).collect();
    let mut violations = Vec::new();
    for region in 0..REGIONS.len() {
        let client = planet.client(region).await?;
        for bucket in &buckets {
            client.bucket(bucket)?.put("after", "healing").deadline(patience).await?;
        }
        violations.extend(verdict::regions_are_equal(&client, &buckets, patience).await.err().unwrap_or_default());
        for ledger in ledgers {
            let bucket = client.bucket(&ledger.bucket)?;
            violations.extend(verdict::ledger_is_kept(&bucket, ledger).await.err().unwrap_or_default());
        }
    }
    anyhow::ensure!(violations.is_empty(), "{}", violations.join("\n"));
    let acknowledged = ledgers.iter().map(|ledger| {
        let puts = ledger.puts.values().filter(|acknowledged| **acknowledged).count();
        let appends = ledger.appends.iter().filter(|(_, acknowledged)| *acknowledged).count();
        ledger.increments.acknowledged + i64::try_from(puts + appends).unwrap_or(i64::MAX)
    });
    let acknowledged = acknowledged.sum();
    anyhow::ensure!(acknowledged > 0, "nothing was acknowledged: the load did not run");
    Ok(acknowledged)
}
