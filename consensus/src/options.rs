//! What can be set, with the reason for every default.

use std::path::PathBuf;
use std::time::Duration;

use meridian_types::{GroupId, NodeId};
use serde::{Deserialize, Serialize};

use crate::error::OpenError;

/// How consensus runs on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// This node.
    pub node: NodeId,
    /// The data directory of the log; created if missing, locked while open.
    pub dir: PathBuf,
    /// The shared write-ahead log.
    #[serde(default)]
    pub log: LogOptions,
    /// Pace of the metadata group, which spans regions.
    #[serde(default = "first_candidate")]
    pub metadata: Pace,
    /// Pace of the shards' groups, which stay inside a region.
    #[serde(default = "Pace::within_region")]
    pub shard: Pace,
    /// The most payload bytes that wait for their apply, per group; beyond it proposals are refused as full.
    #[serde(default = "in_flight_bytes_max")]
    pub in_flight_bytes_max: u64,
    /// How long state may stay unsynced before the store is persisted in the background, so that the log can be purged.
    #[serde(default = "persist_every")]
    pub persist_every: Duration,
    /// How many applied payload bytes may stay unsynced before the same happens.
    #[serde(default = "persist_bytes")]
    pub persist_bytes: u64,
    /// A write and sync of the log that takes longer counts as a disk that hangs: the node says so and refuses writes until it ends.
    #[serde(default = "stalled_after")]
    pub stalled_after: Duration,
}

/// The shared write-ahead log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogOptions {
    /// Size of a preallocated segment, in bytes; at least 1 MiB. A record never spans two segments.
    pub segment_bytes: u64,
    /// Bytes of recent payloads kept in memory, all groups together: what followers and shippers read.
    pub cache_bytes: u64,
    /// The most bytes that may wait for the log's writer; appenders beyond it wait.
    pub queue_bytes_max: u64,
}

impl Default for LogOptions {
    fn default() -> LogOptions {
        LogOptions {
            // Large enough that rotation (one directory sync) is rare: once a second at 64 MB/s.
            segment_bytes: 64 << 20,
            // A second of a busy link; a shipper further behind reads from disk.
            cache_bytes: 64 << 20,
            // What one sync can carry without waiting long for the disk.
            queue_bytes_max: 32 << 20,
        }
    }
}

/// By how much later the voter of the next priority stands: longer than the longest round trip and its half, which an election takes.
const PRIORITY_STEP_MS: u64 = 300;

/// Priorities that differ; more than seven voters nobody has.
const PRIORITY_MAX: usize = 7;

/// How often a group's leader is heard, and how long its followers wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// Milliseconds between heartbeats; more than a round trip.
    pub heartbeat_ms: u64,
    /// The least election timeout in milliseconds.
    pub election_ms_min: u64,
    /// The greatest election timeout in milliseconds; also the leader's lease.
    pub election_ms_max: u64,
}

impl Pace {
    /// How long a leader may serve reads on the word of a quorum, from when it asked for it. Heartbeats renew it well
    /// before it ends. Followers keep their word for longer (`election_ms_max`); one that restarts has forgotten that
    /// it gave any, so for this long, and 5 % for clocks that drift apart, it neither votes nor campaigns (CON-1).
    pub(crate) fn read_lease(self) -> Duration {
        Duration::from_millis(self.heartbeat_ms * 3)
    }

    /// How long an answer to a heartbeat counts, in milliseconds: for as long as followers would still wait for the next one. A leader
    /// that nobody answered in time takes no writes.
    pub(crate) fn answer_ms(self) -> u64 {
        self.election_ms_min * 3 / 4
    }

    /// The silence of a node that has just restarted; see [`Pace::read_lease`].
    pub(crate) fn silence(self) -> Duration {
        self.read_lease().mul_f64(1.05)
    }

    /// For round trips up to 200 ms, of the voter that is the first (0), the second (1) and so on to stand for election.
    ///
    /// A follower waits out the old leader's lease (`election_ms_max`) and then its own timeout: 1.8 s after it last heard a
    /// leader at priority 0, 0.6 s more at each next one. Of three voters two are left, so the first or the second stands within
    /// 2.4 s: less than what is left of every node's 5 s lease, so that primaries outlive the loss of the metadata leader.
    ///
    /// Priorities, not chance: between two regions 80 ms apart a pre-vote and a vote take 120 ms, and of two voters that draw from half a
    /// second two fifths get into each other's way, and again at the next attempt. Elections of 5.6 s were seen, with four collisions.
    ///
    /// A heartbeat that is not answered within three quarters of the least election timeout counts as lost: strong reads then ask a quorum
    /// each, writes are refused, and leadership is not handed over. Leases don't rest on it ([`crate::Group::confirm_leadership`]).
    pub fn between_regions(priority: usize) -> Pace {
        let election_ms_min = 850 + PRIORITY_STEP_MS * priority.min(PRIORITY_MAX) as u64;
        Pace { heartbeat_ms: 230, election_ms_min, election_ms_max: election_ms_min + 50 }
    }

    /// For round trips of a few milliseconds. A follower stands for election 0.8 to 1.0 s after it last heard a leader: its lease
    /// (`election_ms_max`), then its own timeout. A vote takes milliseconds there, so 160 ms of chance keep two from standing at once.
    pub fn within_region() -> Pace {
        Pace { heartbeat_ms: 100, election_ms_min: 320, election_ms_max: 480 }
    }
}

fn first_candidate() -> Pace {
    Pace::between_regions(0)
}

fn in_flight_bytes_max() -> u64 {
    // Eight of the largest entries; of ordinary ones, more than 64 clients can have under way.
    32 << 20
}

fn persist_every() -> Duration {
    Duration::from_secs(10)
}

fn persist_bytes() -> u64 {
    64 << 20
}

fn stalled_after() -> Duration {
    // Five hundred syncs of a slow disk, and well before a request's deadline of 10 s.
    Duration::from_secs(2)
}

impl Options {
    /// The defaults for a node and its directory.
    pub fn new(node: NodeId, dir: impl Into<PathBuf>) -> Options {
        Options {
            node,
            dir: dir.into(),
            log: LogOptions::default(),
            metadata: first_candidate(),
            shard: Pace::within_region(),
            in_flight_bytes_max: in_flight_bytes_max(),
            persist_every: persist_every(),
            persist_bytes: persist_bytes(),
            stalled_after: stalled_after(),
        }
    }

    /// The pace of a group.
    pub fn pace(&self, group: GroupId) -> Pace {
        if group.generation().is_some() { self.metadata } else { self.shard }
    }

    pub(crate) fn validate(&self) -> Result<(), OpenError> {
        let bad = |option, reason: &str| Err(OpenError::Options { option, reason: reason.to_owned() });
        if self.log.segment_bytes < 1 << 20 {
            return bad("log.segment_bytes", "a segment has at least 1 MiB");
        }
        if self.stalled_after.is_zero() {
            return bad("stalled_after", "no disk takes no time");
        }
        for (option, pace) in [("metadata", self.metadata), ("shard", self.shard)] {
            if pace.heartbeat_ms == 0 || pace.heartbeat_ms * 3 >= pace.election_ms_min {
                return bad(option, "the least election timeout must be more than three heartbeats");
            }
            if pace.election_ms_min >= pace.election_ms_max {
                return bad(option, "election_ms_min must be less than election_ms_max");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After a lost leader, and after an attempt in vain: there the last word is of no leader, so that no lease is waited out.
    #[test]
    fn two_voters_never_stand_for_election_within_an_election_s_time() {
        let election_ms = 200 + 200 / 2;
        for priority in 0..PRIORITY_MAX {
            let (before, after) = (Pace::between_regions(priority), Pace::between_regions(priority + 1));
            assert!(before.election_ms_min + election_ms <= after.election_ms_min, "{before:?} {after:?}");
            let stands = |pace: Pace| pace.election_ms_max + pace.election_ms_min;
            assert!(stands(before) + election_ms <= stands(after), "{before:?} {after:?}");
        }
    }
}
