//! A failover rehearsed on a copy: what is asked for, how far it is, and what it came to (`meridian drill failover`).
//!
//! Deliberately not here: how it is done (`region/node`), and what a real failover would cost besides ([`crate::Estimate`]).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::digest::SetHash;
use crate::id::{BucketId, NodeId, RegionId, ShardId};
use crate::position::{Epoch, Lsn};

/// The most keys of a bucket that are read, and written, in a drill: a minute of them, one after the other.
pub const DRILL_SAMPLE_MAX: u32 = 10_000;

/// What is rehearsed.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct DrillSpec {
    /// The buckets that get another primary, all at once.
    pub buckets: Vec<BucketId>,
    /// How many keys of each are read, and how many written; at most [`DRILL_SAMPLE_MAX`].
    pub sample: u32,
}

/// The steps of a drill, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DrillStep {
    /// To copy what the shards have, at one moment.
    Copy,
    /// To work every digest out again, from the rows of the copy.
    Verify,
    /// To start groups of the copy's own, in a log of its own.
    Start,
    /// To fence the lost primary's epoch.
    Fence,
    /// To seal it and begin the next one, up to the first acknowledged write in every shard.
    TakeOver,
    /// To read a sample of keys and a page of a scan.
    Read,
    /// To write keys and read them back.
    Write,
    /// To remove the copy.
    Remove,
}

impl DrillStep {
    /// All of them, in their order.
    pub const ALL: [DrillStep; 8] = [
        DrillStep::Copy,
        DrillStep::Verify,
        DrillStep::Start,
        DrillStep::Fence,
        DrillStep::TakeOver,
        DrillStep::Read,
        DrillStep::Write,
        DrillStep::Remove,
    ];
}

impl fmt::Display for DrillStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            DrillStep::Copy => "copy",
            DrillStep::Verify => "verify",
            DrillStep::Start => "start",
            DrillStep::Fence => "fence",
            DrillStep::TakeOver => "take-over",
            DrillStep::Read => "read",
            DrillStep::Write => "write",
            DrillStep::Remove => "remove",
        })
    }
}

/// What a drill under way tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DrillNews {
    /// How far it is.
    Progress(DrillProgress),
    /// It is over, and its copy is gone.
    Done(Box<DrillReport>),
}

/// How far a drill is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrillProgress {
    /// The step under way.
    pub step: DrillStep,
    /// What is done of it: bytes of a copy, shards that are verified, keys that are read or written.
    pub done: u64,
    /// Of about so many.
    pub total: u64,
}

/// What a drill came to.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DrillReport {
    /// The node that rehearsed.
    pub node: NodeId,
    /// Its region: the next primary.
    pub region: RegionId,
    /// Bytes that were copied.
    pub bytes: u64,
    /// How long each step took that was got to, in microseconds.
    pub steps: Vec<(DrillStep, u64)>,
    /// Bucket by bucket, shard by shard: whether the copy was readable, and equal to what its digest said.
    pub shards: Vec<DrillShard>,
    /// Bucket by bucket, what was measured once it was taken over.
    pub buckets: Vec<DrillBucket>,
    /// What went wrong besides what is said of shards and buckets, in a sentence each.
    pub faults: Vec<String>,
    /// How long a lease lasts, in milliseconds: so long a real failover waits at most until the lost primary is surely silent.
    pub lease_ms: u64,
}

/// One bucket in one shard.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DrillShard {
    /// The bucket.
    pub bucket: BucketId,
    /// The shard.
    pub shard: ShardId,
    /// Where the copy was cut: the last entry of the region's own log in it.
    pub lsn: Lsn,
    /// Live keys in it.
    pub keys: u64,
    /// The hash that the digest said.
    pub said: SetHash,
    /// The hash that the rows of the copy add up to.
    pub found: SetHash,
    /// What is wrong with it, in a sentence; empty when nothing is.
    pub fault: String,
}

/// One bucket.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DrillBucket {
    /// The bucket.
    pub bucket: BucketId,
    /// The epoch that was begun in the copy.
    pub epoch: Epoch,
    /// Strong reads of keys that it had.
    pub reads: DrillLatency,
    /// Writes of keys that it did not have.
    pub writes: DrillLatency,
    /// What went wrong, in a sentence each.
    pub faults: Vec<String>,
}

/// How long requests took, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DrillLatency {
    /// How many were made.
    pub count: u64,
    /// From the moment of promotion until the first one was answered; it waits for the epoch to begin.
    pub first_us: u64,
    /// The median.
    pub p50_us: u64,
    /// The 99th percentile.
    pub p99_us: u64,
}

impl DrillReport {
    /// Whether nothing went wrong.
    pub fn is_good(&self) -> bool {
        self.faults.is_empty()
            && self.shards.iter().all(|shard| shard.fault.is_empty())
            && self.buckets.iter().all(|bucket| bucket.faults.is_empty())
    }

    /// How long a step took, in microseconds, if it was got to.
    pub fn took_us(&self, step: DrillStep) -> Option<u64> {
        self.steps.iter().find(|(of, _)| *of == step).map(|(_, took)| *took)
    }

    /// From the order to fence to the first acknowledged write in every shard, in microseconds, if it was got to.
    pub fn taken_over_us(&self) -> Option<u64> {
        Some(self.took_us(DrillStep::Fence)?.saturating_add(self.took_us(DrillStep::TakeOver)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_fault_anywhere_makes_a_drill_bad() {
        let mut report = DrillReport { shards: vec![DrillShard::default()], ..DrillReport::default() };
        report.buckets.push(DrillBucket::default());
        assert!(report.is_good());
        let of_shard = DrillShard { fault: "differs".to_owned(), ..DrillShard::default() };
        assert!(!DrillReport { shards: vec![of_shard], ..report.clone() }.is_good());
        let of_bucket = DrillBucket { faults: vec!["lost a key".to_owned()], ..DrillBucket::default() };
        assert!(!DrillReport { buckets: vec![of_bucket], ..report.clone() }.is_good());
        assert!(!DrillReport { faults: vec!["cut off".to_owned()], ..report }.is_good());
    }

    #[test]
    fn a_take_over_is_measured_from_the_fence_to_the_first_writes() {
        let mut report = DrillReport { steps: vec![(DrillStep::Fence, 5)], ..DrillReport::default() };
        assert_eq!(report.taken_over_us(), None);
        report.steps.push((DrillStep::TakeOver, 7));
        assert_eq!(report.taken_over_us(), Some(12));
        assert!(DrillStep::ALL.is_sorted());
    }
}
