//! One bucket in one shard at one moment, as it leaves the cluster for a backup (`meridian backup create`).
//!
//! Deliberately not here: how it is read (`region/node`), and what a backup looks like where it is kept (`meridian`).

use bytes::Bytes;

use crate::digest::{BucketDigest, SetHash};
use crate::id::{BucketId, RegionId, ShardId};
use crate::position::{Epoch, Hlc, Lsn, Positions};

/// What is asked of a shard besides its rows.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct BackupAsk {
    /// Also what is needed to tell the log again from here on.
    pub context: bool,
    /// Only what changed since an earlier backup, if the log says it.
    pub since: Option<BackupSince>,
}

/// Where an earlier backup found a shard.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct BackupSince {
    /// The bucket: one of the same name may be another one.
    pub bucket: BucketId,
    /// The region that was read, whose log is meant.
    pub region: RegionId,
    /// The epoch in force.
    pub epoch: Epoch,
    /// The last entry of the region's own log.
    pub applied: Lsn,
    /// The hash of that entry: another one there tells another log. `None`: it was no longer there.
    pub evidence: Option<SetHash>,
    /// What had been applied, per origin region.
    pub positions: Positions,
    /// The hash of every record and tombstone.
    pub hash: SetHash,
    /// Live keys.
    pub keys: u64,
    /// Bytes of live keys and values.
    pub bytes: u64,
}

/// What follows a cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupSpan {
    /// Every row. If less was asked for, why it can't be told; else nothing.
    Whole(String),
    /// The log since, and the rows that it touched.
    Since,
}

impl Default for BackupSpan {
    fn default() -> BackupSpan {
        BackupSpan::Whole(String::new())
    }
}

/// Which moment it is, and what the rows that follow must add up to.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct BackupCut {
    /// The bucket.
    pub bucket: BucketId,
    /// The shard.
    pub shard: ShardId,
    /// The region whose leader was asked.
    pub region: RegionId,
    /// The epoch in force.
    pub epoch: Epoch,
    /// What had been applied by then, per origin region.
    pub positions: Positions,
    /// The greatest timestamp applied.
    pub hlc: Hlc,
    /// The hash of every record and tombstone.
    pub hash: SetHash,
    /// Live keys.
    pub keys: u64,
    /// Bytes of live keys and values.
    pub bytes: u64,
    /// How far the cut may be behind what was acknowledged by then: 0 at the primary under its lease, `None` when nobody knows.
    pub staleness_ms: Option<u64>,
    /// The last entry of the region's own log.
    pub applied: Lsn,
    /// The greatest timestamp in the shard: those of later entries of that log are greater.
    pub stamp: Hlc,
    /// The hash of that entry, if the log still has it.
    pub evidence: Option<SetHash>,
    /// The leader's wall clock, in milliseconds since 1970, when it was asked: what was acknowledged by then is in it. 0 from a node
    /// of an earlier release.
    pub at_ms: u64,
    /// What follows.
    pub span: BackupSpan,
}

impl BackupCut {
    /// The cut of a replica that says this of itself.
    pub fn new(shard: ShardId, region: RegionId, epoch: Epoch, digest: BucketDigest) -> BackupCut {
        let BucketDigest { positions, hlc, hash, keys, bytes, .. } = digest;
        BackupCut { shard, region, epoch, positions, hlc, hash, keys, bytes, ..BackupCut::default() }
    }
}

/// A key and its record as the state holds it: a value, a counter, a tombstone; of what changed since, an empty record is a key that is
/// gone. Of the log, a position (big-endian) and its entry; of the context, a key of the state and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupRow {
    /// The key.
    pub key: Bytes,
    /// Its record; `region/core` reads it.
    pub record: Bytes,
}

/// What comes of a shard: the cut first, then the log if it was asked for, rows in the order of their keys, the context if it was asked
/// for, and the end. Without the end some are missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupPiece {
    /// The moment.
    Cut(BackupCut),
    /// Some of the log.
    Log(Vec<BackupRow>),
    /// Some rows.
    Rows(Vec<BackupRow>),
    /// Some of what is needed to tell the log again from here on.
    Context(Vec<BackupRow>),
    /// That was all.
    End {
        /// How many rows there were, of every kind.
        rows: u64,
    },
}
