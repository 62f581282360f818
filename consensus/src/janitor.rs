//! Makes state durable and purges the log, in the background: nothing here is on the way of a write.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::group::Inner;
use crate::options::Options;

/// How often it looks around. It does nothing for groups at rest.
const EVERY: Duration = Duration::from_secs(1);

/// The log is purged in steps of at least so many entries, so that a mark is not written for each.
const PURGE_ENTRIES: u64 = 256;

/// Runs until it is dropped.
pub(crate) async fn run(groups: impl Fn() -> Vec<Arc<Inner>>, options: Options) {
    let mut since = std::collections::BTreeMap::new();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for group in groups() {
            let last = since.entry(group.id).or_insert_with(Instant::now);
            if group.wants_persist(&options, last.elapsed()) {
                *last = Instant::now();
                // A "snapshot" makes the state durable and tells Raft up to where.
                drop(group.raft.trigger().snapshot().await);
            }
            group.purge().await;
        }
    }
}

impl Inner {
    fn wants_persist(&self, options: &Options, elapsed: Duration) -> bool {
        let applied = self.progress.applied.borrow().0;
        let persisted = self.progress.persisted.load(Ordering::Relaxed);
        let bytes = self.progress.unpersisted_bytes.load(Ordering::Relaxed);
        applied > persisted && (bytes >= options.persist_bytes || elapsed >= options.persist_every)
    }

    async fn purge(&self) {
        let persisted = self.progress.persisted.load(Ordering::Relaxed);
        let up_to = self.purge_allowed.load(Ordering::Relaxed).min(persisted);
        let purged = self.log.bounds().0.map_or(0, |purged| purged.index);
        if up_to >= purged + PURGE_ENTRIES {
            drop(self.raft.trigger().purge_log(up_to).await);
        }
    }
}
