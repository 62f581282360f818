//! What replacing a lost primary would cost, before anything is done: the answer to `meridian failover estimate`.
//!
//! Deliberately not here: how it is worked out (`metadata/core`'s `plan::assess`, the very code that decides in the end) and how
//! it is gathered (the composition root).

use crate::id::{BucketId, BucketName, RegionId, ShardId};
use crate::key::KeyStart;
use crate::loss::{Consent, Exposure, Loss, Remains};
use crate::position::Epoch;

/// What a node knows of a bucket in a shard that it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardFacts {
    /// The bucket.
    pub bucket: BucketId,
    /// The shard.
    pub shard: ShardId,
    /// What it has of the primary.
    pub remains: Remains,
    /// How long ago the primary said what is lacking here, or that nothing is, in milliseconds.
    pub said_ms: Option<u64>,
    /// The key of the oldest write that is lacking here, as the primary said.
    pub oldest_key: Option<KeyStart>,
}

impl ShardFacts {
    /// What the primary said.
    pub fn exposure(&self) -> Option<Exposure> {
        self.remains.exposure
    }
}

/// What replacing primaries would cost.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Estimate {
    /// The region that answered.
    pub region: RegionId,
    /// The regions whose nodes answered it.
    pub heard: Vec<RegionId>,
    /// How long that took, in milliseconds.
    pub took_ms: u64,
    /// Bucket by bucket.
    pub buckets: Vec<BucketEstimate>,
    /// What to agree to; `None` when nothing can be lost, or nothing can be done.
    pub consent: Option<Consent>,
}

/// What replacing the primary of a bucket would cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketEstimate {
    /// The bucket.
    pub bucket: BucketId,
    /// Its name.
    pub name: BucketName,
    /// Its epoch: a consent holds for it only.
    pub epoch: Epoch,
    /// Its primary.
    pub from: RegionId,
    /// Whether a node of the primary's region answered: then nothing need be lost, and a switchover will do.
    pub primary_answers: bool,
    /// The next primary; `None` when there is none, and [`BucketEstimate::obstacle`] says why.
    pub to: Option<RegionId>,
    /// Whether the next primary would have to fetch from other regions what it lacks.
    pub pulls: bool,
    /// Whether what is left proves that no acknowledged write is missing.
    pub proven: bool,
    /// How many regions it takes to prove that; `None` when no number will do.
    pub needed: Option<usize>,
    /// The regions that said what they have of every shard.
    pub heard: Vec<RegionId>,
    /// The most that would be lost: what to agree to.
    pub lost: Loss,
    /// What of that is known to be lost: the lost primary had said that it is missing. What `lost` has beyond is a bound on what can't be
    /// known. Never unbounded itself.
    pub known: Loss,
    /// How old the oldest write was that is known to be missing, when the primary last spoke; in milliseconds.
    pub oldest_ms: u64,
    /// Its key; `None` when the primary did not say.
    pub oldest_key: Option<KeyStart>,
    /// How old the last word of the primary is that this rests on, in milliseconds; `None` when there is none.
    pub said_ms: Option<u64>,
    /// Why nothing can be done; empty when something can.
    pub obstacle: String,
}

impl Estimate {
    /// All that would be lost.
    pub fn lost(&self) -> Loss {
        self.buckets.iter().filter(|it| it.to.is_some()).fold(Loss::default(), |sum, it| sum.and(it.lost))
    }
}
