//! Whether every acknowledged write of a `sync` bucket has the copies its policy asks for (design 7, DEG-1).
//!
//! ```text
//!             too few regions answer for `degrade-after`
//!   SYNC ────────────────────────────────────────────► DEGRADED ◄──┐
//!    ▲                                                     │       │ too few again
//!    │ every shard: its targets have everything            ▼       │
//!    └──────────────────────────────────────────────── RECOVERING ─┘
//! ```
//! Each is put on record by the metadata plane before anybody acts on it (docs/adr/2026-11-27-degrade.md). Buckets that are
//! not `sync` promise no copies elsewhere and are always [`Standing::Sync`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{BucketId, RegionId, ShardId};
use crate::loss::Remains;
use crate::plan::Seal;
use crate::position::{Epoch, Hlc, Lsn};

/// The longest reason, in bytes.
pub const REASON_BYTES_MAX: usize = 256;

/// How the copies of a bucket stand. Each has its own `since`, given out once: it names this very stretch of time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// Every acknowledged write is in as many regions as the policy asks.
    Sync {
        /// Since when.
        since: Hlc,
    },
    /// Writes are acknowledged by whoever is left; what was acknowledged since may exist nowhere else.
    Degraded {
        /// Since when.
        since: Hlc,
        /// Since when writes may lack copies: earlier, when it was DEGRADED before and never SYNC in between.
        exposed_since: Hlc,
        /// Who did not answer, for people.
        reason: String,
        /// The shards whose targets answer again.
        ready: BTreeSet<ShardId>,
    },
    /// New writes have the copies again; those acknowledged before may not yet.
    Recovering {
        /// Since when.
        since: Hlc,
        /// Since when writes may lack copies.
        exposed_since: Hlc,
        /// The shards whose targets have everything.
        ready: BTreeSet<ShardId>,
    },
}

/// Since ever.
impl Default for Standing {
    fn default() -> Standing {
        Standing::Sync { since: Hlc::default() }
    }
}

impl Standing {
    /// Since when; names this stretch.
    pub fn since(&self) -> Hlc {
        match self {
            Standing::Sync { since } | Standing::Degraded { since, .. } | Standing::Recovering { since, .. } => *since,
        }
    }

    /// Whether every acknowledged write has the copies that the policy asks for: what a proof of zero loss rests on.
    pub fn is_sync(&self) -> bool {
        matches!(self, Standing::Sync { .. })
    }

    /// Whether new writes are acknowledged with fewer copies than the policy asks for (DEG-1).
    pub fn is_degraded(&self) -> bool {
        matches!(self, Standing::Degraded { .. })
    }

    /// Since when writes may lack copies; `None` while none does.
    pub fn exposed_since(&self) -> Option<Hlc> {
        match self {
            Standing::Sync { .. } => None,
            Standing::Degraded { exposed_since, .. } | Standing::Recovering { exposed_since, .. } => {
                Some(*exposed_since)
            }
        }
    }

    /// The same under another epoch: what the shards of the old one have said no longer counts.
    #[must_use]
    pub fn restarted(self, at: Hlc) -> Standing {
        match self {
            Standing::Sync { since } => Standing::Sync { since },
            Standing::Degraded { exposed_since, reason, .. } => {
                Standing::Degraded { since: at, exposed_since, reason, ready: BTreeSet::new() }
            }
            Standing::Recovering { exposed_since, .. } => {
                Standing::Recovering { since: at, exposed_since, ready: BTreeSet::new() }
            }
        }
    }

    /// The shards that have come as far as this stretch asks for.
    pub fn ready(&self) -> Option<&BTreeSet<ShardId>> {
        match self {
            Standing::Sync { .. } => None,
            Standing::Degraded { ready, .. } | Standing::Recovering { ready, .. } => Some(ready),
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Standing::Sync { .. } => "SYNC",
            Standing::Degraded { .. } => "DEGRADED",
            Standing::Recovering { .. } => "RECOVERING",
        })
    }
}

/// What the leaders of a bucket's shards have to say about its copies: those in its primary's region, and while it crosses those of
/// every region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandingWord {
    /// The bucket.
    pub bucket: BucketId,
    /// The bucket's epoch when this was seen: of another it means nothing.
    pub epoch: Epoch,
    /// The standing it is about, by its `since`: of another stretch it means nothing.
    pub since: Hlc,
    /// What was seen.
    pub copies: Copies,
}

/// How the copies of a shard's writes come along.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Copies {
    /// Too few regions have answered for as long as the policy waits.
    Lacking {
        /// The shards that saw it.
        shards: BTreeSet<ShardId>,
        /// Who did not, for people.
        reason: String,
    },
    /// While DEGRADED: enough answer again. While RECOVERING: enough have everything.
    Ready(BTreeSet<ShardId>),
    /// Of a bucket whose lane has turned: every region of it has applied the seal of the last turn in these shards.
    Followed(BTreeSet<ShardId>),
    /// Of a bucket that a region joins: the region has, in these shards, everything from before the epoch and follows.
    Filled {
        /// The region.
        region: RegionId,
        /// The shards.
        shards: BTreeSet<ShardId>,
    },
    /// Of a bucket that closes: these shards of a region order nothing more, and how much of its own log counts.
    Stopped {
        /// The crossing, by its index.
        crossing: u64,
        /// By shard.
        at: BTreeMap<ShardId, Lsn>,
    },
    /// Of a bucket that crosses: these shards of a region have everything, and what that is.
    Arrived {
        /// The crossing, by its index.
        crossing: u64,
        /// By shard.
        at: BTreeMap<ShardId, Seal>,
    },
    /// Of a bucket that loses a region: these shards of another one order nothing more and take in nothing more of the lost one.
    Parted {
        /// The crossing, by its index.
        crossing: u64,
        /// By shard: how much of its own log counts, and what it has of the lost region's.
        at: BTreeMap<ShardId, (Lsn, Remains)>,
    },
}
