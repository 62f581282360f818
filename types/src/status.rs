//! What nodes report about themselves, in the words operators read.

use serde::{Deserialize, Serialize};

use crate::digest::BucketDigest;
use crate::id::{BucketId, NodeId, RegionId, ShardId};
use crate::key::KeyStart;
use crate::loss::older;
use crate::position::{Lane, Lsn};

/// The digest of one (bucket, shard) in the answering region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardDigest {
    /// The bucket.
    pub bucket: BucketId,
    /// The shard.
    pub shard: ShardId,
    /// Its digest and positions.
    pub digest: BucketDigest,
    /// Whether a lane stopped because digests at equal positions differed.
    pub diverged: bool,
}

/// How far a region is behind for one bucket, as the source sees it.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BucketLag {
    /// The bucket.
    pub bucket: BucketId,
    /// The region that is behind.
    pub target: RegionId,
    /// Writes not sent yet.
    pub unshipped_operations: u64,
    /// Their bytes.
    pub unshipped_bytes: u64,
    /// Writes sent whose durable application is not acknowledged yet.
    pub unapplied_operations: u64,
    /// Their bytes.
    pub unapplied_bytes: u64,
    /// Age of the oldest unacknowledged write in milliseconds; 0 when there is none.
    pub lag_ms: u64,
    /// How old this figure is, in milliseconds.
    pub age_ms: u64,
    /// The key of that oldest write; of several keys the first. `None` when there is none, or its entry has not been read since the
    /// target was there last, or it has no key.
    pub oldest_key: Option<KeyStart>,
}

impl BucketLag {
    /// Takes in what is told of the same bucket and target in other shards.
    pub fn add(&mut self, part: BucketLag) {
        self.unshipped_operations = self.unshipped_operations.saturating_add(part.unshipped_operations);
        self.unshipped_bytes = self.unshipped_bytes.saturating_add(part.unshipped_bytes);
        self.unapplied_operations = self.unapplied_operations.saturating_add(part.unapplied_operations);
        self.unapplied_bytes = self.unapplied_bytes.saturating_add(part.unapplied_bytes);
        (self.lag_ms, self.oldest_key) = older((self.lag_ms, self.oldest_key.take()), (part.lag_ms, part.oldest_key));
        self.age_ms = self.age_ms.max(part.age_ms);
    }
}

/// What one lane is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneStatus {
    /// The shard.
    pub shard: ShardId,
    /// The region it ships to.
    pub target: RegionId,
    /// Which lane.
    pub lane: Lane,
    /// The source's last committed position.
    pub head: Lsn,
    /// Shipped up to here.
    pub sent: Lsn,
    /// Durably applied there up to here.
    pub acked: Lsn,
    /// Its state.
    pub state: LaneState,
    /// Bytes of entries shipped, before compression.
    pub raw_bytes: u64,
    /// Bytes of frames shipped, after compression.
    pub wire_bytes: u64,
    /// Frames shipped.
    pub frames: u64,
    /// Entries shipped.
    pub entries: u64,
    /// How long ago anything came from the target over the lane's connection, in milliseconds; `None` without a connection. An idle
    /// connection is kept alive several times a second.
    pub heard_ms: Option<u64>,
}

/// The state of a lane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum LaneState {
    /// No connection to the target, or none yet.
    Connecting {
        /// Why the last attempt failed; empty at the start.
        reason: String,
    },
    /// Shipping, or idle with nothing to ship.
    Streaming,
    /// The target is behind the oldest entry the source still has: it needs a resync.
    BehindLog {
        /// The target's watermark.
        watermark: Lsn,
        /// The oldest entry the source still has.
        oldest: Lsn,
    },
    /// Digests at equal positions differed: stopped, so that the damage does not spread.
    Diverged {
        /// What differed.
        detail: String,
    },
    /// The target refused an old epoch.
    Fenced,
    /// The source's clock is further ahead than the target allows.
    ClockSkew {
        /// By how much, in milliseconds.
        ahead_ms: u64,
    },
}

/// What a node knows of itself.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Which node.
    pub node: NodeId,
    /// Its region.
    pub region: RegionId,
    /// Its version of Meridian.
    pub version: String,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// The metadata index it has applied.
    pub metadata_index: u64,
    /// The metadata leader it knows of.
    pub metadata_leader: Option<NodeId>,
    /// Milliseconds its lease is still valid; 0 when it is not.
    pub lease_ms: u64,
    /// Shards it leads.
    pub shards_led: u32,
    /// Shards it holds.
    pub shards_total: u32,
    /// Free bytes on its data disk.
    pub disk_free_bytes: u64,
    /// Size of its data disk.
    pub disk_total_bytes: u64,
    /// Bytes of its write-ahead log.
    pub log_bytes: u64,
    /// Bytes of its state store.
    pub state_bytes: u64,
    /// Its resident memory.
    pub resident_bytes: u64,
    /// Empty when healthy; else one sentence each, with the remedy.
    pub problems: Vec<String>,
    /// Seconds until its certificate ends.
    pub certificate_left_s: u64,
    /// Its wall clock when it answered, in milliseconds since 1970.
    pub wall_ms: u64,
    /// Whether it votes in the metadata group.
    pub votes: bool,
    /// The voters of the metadata group, as it knows them.
    pub metadata_voters: Vec<NodeId>,
    /// If it leads the metadata group: the nodes that hold a lease, and so are up and heard.
    pub leases: Vec<NodeId>,
    /// Streams that clients have open to it. One that knows several nodes has one to each that it uses.
    pub clients: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_key_of_all_shards_is_that_of_the_oldest_write() {
        let lag = |lag_ms, key: &str| BucketLag {
            unshipped_operations: 1,
            lag_ms,
            oldest_key: KeyStart::of(key.as_bytes()),
            ..BucketLag::default()
        };
        let sum = |parts: [BucketLag; 3]| {
            let mut sum = BucketLag::default();
            parts.into_iter().for_each(|part| sum.add(part));
            assert_eq!(sum.unshipped_operations, 3);
            (sum.lag_ms, sum.oldest_key)
        };
        assert_eq!(sum([lag(5, "b"), lag(9, "a"), lag(7, "c")]), (9, KeyStart::of(b"a")));
        assert_eq!(sum([lag(5, "b"), lag(9, ""), lag(7, "c")]), (9, None), "the oldest has a key that is not known");
        assert_eq!(sum([lag(0, ""), lag(0, "b"), lag(0, "")]), (0, KeyStart::of(b"b")));
    }
}
