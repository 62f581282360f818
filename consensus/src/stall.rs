//! A disk that hangs: a write of the log that has begun and does not end. Nothing fails then, and nobody is told, unless
//! somebody looks how long it takes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::log::Log;
use crate::options::Options;

/// How often it is looked whether the disk hangs, for the log of events. Whoever asks is told at once.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The disk of the log, as it answers.
#[derive(Clone)]
pub(crate) struct LogDisk {
    log: Arc<Log>,
    dir: PathBuf,
    bound: Duration,
}

impl LogDisk {
    pub(crate) fn new(log: Arc<Log>, options: &Options) -> LogDisk {
        LogDisk { log, dir: options.dir.clone(), bound: options.stalled_after }
    }

    /// For how long the write under way has been running, if that is longer than a disk may take. Not while the disk is full: the
    /// writer waits for space then, which is told otherwise.
    pub(crate) fn stalled(&self) -> Option<Duration> {
        self.log.sync_running().filter(|age| *age > self.bound && !self.log.disk_full())
    }

    /// What is wrong, and the remedy.
    pub(crate) fn problem(&self) -> Option<String> {
        self.stalled().map(|age| {
            format!(
                "the disk of {} hangs: a write and sync of the log has been running for {:.1} s, and writes are refused: check the disk; they resume by themselves when it answers",
                self.dir.display(),
                age.as_secs_f64()
            )
        })
    }

    /// Says when the disk begins to hang, and when it answers again. Never ends.
    pub(crate) async fn watch(self) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut longest: Option<Duration> = None;
        loop {
            ticks.tick().await;
            let stalled = self.stalled();
            match (longest, stalled) {
                (None, Some(age)) => tracing::error!(
                    dir = %self.dir.display(), running_ms = millis(age),
                    "the disk hangs: a write and sync of the log does not end; this node is not ready and refuses writes"
                ),
                (Some(longest), None) => tracing::warn!(
                    dir = %self.dir.display(), longest_ms = millis(longest),
                    "the disk of the log answers again: writes are accepted"
                ),
                (None, None) | (Some(_), Some(_)) => {}
            }
            longest = stalled.map(|age| age.max(longest.unwrap_or_default()));
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
