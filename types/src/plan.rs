//! The words of operations that move a bucket's primary (design 7; docs/adr/2026-11-20-seals.md).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::digest::SetHash;
use crate::id::{BucketId, ShardId};
use crate::loss::Remains;
use crate::position::{Epoch, Lsn};

/// Names an operation: the metadata index at which it was planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PlanId(pub u64);

impl fmt::Display for PlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "op-{}", self.0)
    }
}

impl std::str::FromStr for PlanId {
    type Err = String;

    fn from_str(text: &str) -> Result<PlanId, String> {
        let digits = text.strip_prefix("op-").unwrap_or(text);
        digits
            .parse()
            .map(PlanId)
            .map_err(|_| format!("`{text}` names no operation: use op-NUMBER as `meridian operation list` prints it"))
    }
}

/// What a shard holds of a bucket right after the seal that ended an epoch. Two regions with equal seals are equal: the
/// proof of a switchover (SWI-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// The seal's position in the old primary's log.
    pub lsn: Lsn,
    /// The digest of the (bucket, shard).
    pub hash: SetHash,
    /// Live keys in it.
    pub keys: u64,
}

/// What a shard's leader tells the metadata plane about a bucket that is being moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fact {
    /// In the primary's region: the next primary is within the operation's bound of lag.
    CaughtUp,
    /// In the primary's region: its epoch is over, and this is where.
    Sealed(Seal),
    /// In the next primary's region: everything up to the seal is applied.
    Ready(Seal),
    /// In a region that is left after the primary was lost: nothing more of the lost epoch is taken, and this is what there is
    /// of it here.
    Fenced(Remains),
}

/// What a node tells of one bucket of an operation, for the shards that it leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Word {
    /// The operation.
    pub plan: PlanId,
    /// The bucket.
    pub bucket: BucketId,
    /// The bucket's epoch when this was seen.
    pub epoch: Epoch,
    /// By shard.
    pub facts: Vec<(ShardId, Fact)>,
}
