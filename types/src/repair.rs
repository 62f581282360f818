//! Making one bucket in one shard equal to another region's, as entries of the own log
//! (`docs/adr/2026-11-20-resync.md`).

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::digest::{BucketDigest, SetHash};
use crate::id::{BucketId, RegionId, ShardId};
use crate::position::{Epoch, Hlc, Lsn, Positions};

/// A row of a bucket's state: a record (a tombstone too), or the kept result of a request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Row {
    /// Its key within the bucket and the shard: which kind of row, and the rest of its state key.
    pub key: Bytes,
    /// Its bytes, as the state holds them.
    pub value: Bytes,
}

/// What becomes of what only the target has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RepairMode {
    /// It goes: the source has everything that counts.
    Replace,
    /// It stays, and what both have is merged: active-active replicas that each saw something the other did not.
    Join,
}

/// What the source says of the rows it gave, at the moment they were of.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RepairGoal {
    /// The epoch in force.
    pub epoch: Epoch,
    /// What they must add up to, and the inputs they cover.
    pub digest: BucketDigest,
    /// The hash of every row that is a kept result.
    pub results: SetHash,
    /// The greatest timestamp applied per origin: what the expiry of sessions is decided by.
    pub origin_hlc: BTreeMap<RegionId, Hlc>,
}

/// One step of a repair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RepairStep {
    /// From here on the bucket is closed in this shard: its own writes are void, what arrives for it waits.
    Begin {
        /// Whom it is made equal to.
        source: RegionId,
    },
    /// Some rows.
    Rows {
        /// Where in the own log the repair began.
        begun: Lsn,
        /// What becomes of what was there.
        mode: RepairMode,
        /// Rows to set.
        puts: Vec<Row>,
        /// Keys of rows to remove.
        deletes: Vec<Bytes>,
    },
    /// All rows are there: nothing changes unless they add up to what the source said.
    End {
        /// Where in the own log the repair began.
        begun: Lsn,
        /// What became of what was there.
        mode: RepairMode,
        /// What the source said.
        goal: RepairGoal,
    },
    /// Applies some of what waited; the last one opens the bucket.
    Unpark,
    /// From here on the state remembers which of these keys are removed, and where in the own log: keys of a salvage bundle.
    Watch {
        /// Keys of the bucket in this shard.
        keys: Vec<Bytes>,
    },
    /// These keys were removed in a part of the history that a repair passes over.
    PassedOver {
        /// Keys of the bucket in this shard; those that nobody watches are ignored.
        removed: Vec<Bytes>,
    },
    /// Forgets what it remembers, some at a time.
    Unwatch,
    /// Some of what waited is part of what the source has, and is applied to whatever is here: then there is less to move.
    Advance {
        /// Where in the own log the repair began.
        begun: Lsn,
        /// What the source has.
        up_to: Positions,
    },
    /// Of a bucket that this region was removed from, own entries behind `cut` are void: they were written down. It stays closed until it
    /// is dropped, or filled.
    GiveUp {
        /// Where in the own log the bucket was closed.
        begun: Lsn,
        /// How much of the own log counts.
        cut: Lsn,
    },
}

/// Why a bucket in a shard is made equal to another region's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RepairReason {
    /// An earlier repair was cut short.
    #[default]
    Interrupted,
    /// A new primary sealed an epoch that ended otherwise here.
    Astray,
    /// Its digest differed at equal positions.
    Diverged,
    /// The source's log no longer has what is missing here.
    BehindLog,
    /// The epoch in force elsewhere does not begin here: what ended the one before never arrived.
    Stuck,
    /// An operator, or a failover, asked for it.
    Asked,
    /// The region joins the bucket.
    Joining,
    /// The region was removed from the bucket while it alone had some of its own log: that is written down and given up.
    Leaving,
}

impl fmt::Display for RepairReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            RepairReason::Interrupted => "interrupted",
            RepairReason::Astray => "astray",
            RepairReason::Diverged => "diverged",
            RepairReason::BehindLog => "behind-log",
            RepairReason::Stuck => "stuck",
            RepairReason::Asked => "asked",
            RepairReason::Joining => "joining",
            RepairReason::Leaving => "leaving",
        })
    }
}

/// How far the repair of one bucket in one shard is.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RepairStatus {
    /// The bucket.
    pub bucket: BucketId,
    /// The shard.
    pub shard: ShardId,
    /// The region it is made equal to.
    pub source: RegionId,
    /// Why.
    pub reason: RepairReason,
    /// Rows in the partitions that differ, about; 0 until the partitions have been compared.
    pub rows_total: u64,
    /// Of these, compared so far.
    pub rows_compared: u64,
    /// Rows that differed, and were moved.
    pub rows_moved: u64,
    /// Bytes received from the source: digests, hashes and rows.
    pub bytes_moved: u64,
    /// How often it was begun.
    pub attempts: u32,
    /// For how long it has been going on, or went on, in milliseconds.
    pub running_ms: u64,
    /// About how long it still takes, in milliseconds; 0 when that is not known.
    pub eta_ms: u64,
    /// Why it does not get on; empty when it does.
    pub waits_for: String,
    /// Whether it is over: the bucket is open again, equal to the source's.
    pub done: bool,
}
