//! Makes state durable and purges the log, in the background: nothing here is on the way of a write.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::group::Inner;
use crate::options::Options;

/// How often it looks around. It does nothing for groups at rest.
const EVERY: Duration = Duration::from_secs(1);

/// The log is purged in steps of at least so many entries, so that a mark is not written for each …
const PURGE_ENTRIES: u64 = 256;

/// … or else so often, up to where it could have been the last time: a group that grows slowly must not keep the segments
/// in which its few entries lie, and with them everything that others wrote since. What is younger is kept for peers that
/// were away for a moment and would need a snapshot without it.
const PURGE_EVERY: Duration = Duration::from_secs(30);

/// When a group was last looked after.
struct Last {
    persisted: Instant,
    purged: Instant,
    /// What could have been purged then.
    purgeable: u64,
}

/// Runs until it is dropped.
pub(crate) async fn run(groups: impl Fn() -> Vec<Arc<Inner>>, options: Options) {
    let mut since = std::collections::BTreeMap::new();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for group in groups() {
            let now = Instant::now();
            let last = since.entry(group.id).or_insert(Last { persisted: now, purged: now, purgeable: 0 });
            if group.wants_persist(&options, last.persisted.elapsed()) {
                last.persisted = now;
                // A "snapshot" makes the state durable and tells Raft up to where.
                drop(group.raft.trigger().snapshot().await);
            }
            let due = last.purged.elapsed() >= PURGE_EVERY;
            let purgeable = group.purge(due.then_some(last.purgeable)).await;
            if due {
                (last.purged, last.purgeable) = (now, purgeable);
            }
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

    /// Gives up what nobody needs, if that is much, or what is `due`; returns up to where it could.
    async fn purge(&self, due: Option<u64>) -> u64 {
        let persisted = self.progress.persisted.load(Ordering::Relaxed);
        let up_to = self.purge_allowed.load(Ordering::Relaxed).min(persisted);
        let purged = self.log.bounds().0.map_or(0, |purged| purged.index);
        let chosen = if up_to >= purged + PURGE_ENTRIES { up_to } else { due.unwrap_or_default() };
        if chosen > purged && !self.fills() {
            drop(self.raft.trigger().purge_log(chosen).await);
        }
        up_to
    }
}
