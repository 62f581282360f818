//! One bucket in one shard at one moment, as it leaves the cluster for a backup (`meridian backup create`).
//!
//! Deliberately not here: how it is read (`region/node`), and what a backup looks like where it is kept (`meridian`).

use bytes::Bytes;

use crate::digest::{BucketDigest, SetHash};
use crate::id::{RegionId, ShardId};
use crate::position::{Epoch, Hlc, Positions};

/// Which moment it is, and what the rows that follow must add up to.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct BackupCut {
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
}

impl BackupCut {
    /// The cut of a replica that says this of itself.
    pub fn new(shard: ShardId, region: RegionId, epoch: Epoch, digest: BucketDigest) -> BackupCut {
        let BucketDigest { positions, hlc, hash, keys, bytes, .. } = digest;
        BackupCut { shard, region, epoch, positions, hlc, hash, keys, bytes, staleness_ms: None }
    }
}

/// A key and its record as the state holds it: a value, a counter, a tombstone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupRow {
    /// The key.
    pub key: Bytes,
    /// Its record; `region/core` reads it.
    pub record: Bytes,
}

/// What comes of a shard: the cut first, then its rows in the order of their keys, then the end. Without the end some are missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupPiece {
    /// The moment.
    Cut(BackupCut),
    /// Some rows.
    Rows(Vec<BackupRow>),
    /// That was all.
    End {
        /// How many rows there were.
        rows: u64,
    },
}
