//! What a lost primary held and its successor never received, as operators see it (SWI-2).

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::id::{BucketId, RegionId, ShardId};
use crate::position::{Epoch, Lsn};

/// Names a bundle: whose tail of which epoch, and from where to where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct SalvageId {
    /// The bucket.
    pub bucket: BucketId,
    /// The shard.
    pub shard: ShardId,
    /// The epoch that ended without it.
    pub epoch: Epoch,
    /// Where the tail begins.
    pub cut: Lsn,
    /// Its last entry.
    pub end: Lsn,
}

impl fmt::Display for SalvageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}-{}-{}-{}-{}", self.bucket, self.shard, self.epoch, self.cut, self.end))
    }
}

/// The text names no bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` names no salvage bundle: `meridian salvage list` shows their names")]
pub struct SalvageIdError(String);

impl FromStr for SalvageId {
    type Err = SalvageIdError;

    fn from_str(text: &str) -> Result<SalvageId, SalvageIdError> {
        let wrong = || SalvageIdError(text.chars().take(64).collect());
        let numbers: Vec<&str> = text.split('-').collect();
        let [bucket, shard, epoch, cut, end] = numbers.as_slice() else { return Err(wrong()) };
        let id = SalvageId {
            bucket: BucketId(bucket.parse().map_err(|_| wrong())?),
            shard: ShardId(shard.parse().map_err(|_| wrong())?),
            epoch: Epoch(epoch.parse().map_err(|_| wrong())?),
            cut: Lsn(cut.parse().map_err(|_| wrong())?),
            end: Lsn(end.parse().map_err(|_| wrong())?),
        };
        // One name only: `01` is none.
        if id.to_string() == text { Ok(id) } else { Err(wrong()) }
    }
}

/// A bundle on a node.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SalvageBundle {
    /// Its name.
    pub id: SalvageId,
    /// The region that had been made equal when it was written.
    pub winner: RegionId,
    /// Log entries in it.
    pub entries: u64,
    /// Keys in it.
    pub keys: u64,
    /// Bytes of entries and values in it.
    pub bytes: u64,
    /// How many parts it has.
    pub parts: u32,
    /// Whether all of the tail was still in the log: else keys that its missing part removed are not known.
    pub whole: bool,
    /// When it was written, in milliseconds since 1970.
    pub created_ms: u64,
    /// When some of it was last written back, in milliseconds since 1970; 0 when never.
    pub replayed_ms: u64,
    /// How many keys were.
    pub restored: u64,
}

/// What became of a key at the winner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SalvageFate {
    /// It is there as it was when the primary was lost, or was never there.
    Untouched,
    /// It was written since.
    Changed,
    /// It was removed since.
    Deleted,
    /// It is not there, and whether it ever was can't be told any more.
    Unknown,
}

impl fmt::Display for SalvageFate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            SalvageFate::Untouched => "untouched",
            SalvageFate::Changed => "changed",
            SalvageFate::Deleted => "deleted",
            SalvageFate::Unknown => "unknown",
        })
    }
}

/// A key of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SalvageKey {
    /// The key.
    pub key: Bytes,
    /// What it had; `None` when it was removed.
    pub value: Option<Bytes>,
    /// When that expires, in milliseconds since 1970.
    pub expires_at_ms: Option<u64>,
    /// What became of it at the winner; `None` when that was not asked for.
    pub fate: Option<SalvageFate>,
}

/// Which keys are written back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplayPolicy {
    /// Those that are as they were when the primary was lost.
    IfUnchanged,
    /// All, over whatever is there now.
    Overwrite,
    /// None: only what would be done to them is counted.
    Skip,
}

impl fmt::Display for ReplayPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            ReplayPolicy::IfUnchanged => "if-unchanged",
            ReplayPolicy::Overwrite => "overwrite",
            ReplayPolicy::Skip => "skip",
        })
    }
}

/// What a replay came to, or would.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ReplayReport {
    /// Keys written back.
    pub restored: u64,
    /// Keys left as they are, because they were written since.
    pub changed: u64,
    /// Because they were removed since.
    pub deleted: u64,
    /// Because it can't be told.
    pub unknown: u64,
    /// Because what was lost has expired.
    pub expired: u64,
    /// Keys that could not be read or written: run it again.
    pub failed: u64,
}

impl ReplayReport {
    /// Both together.
    #[must_use]
    pub fn and(self, other: ReplayReport) -> ReplayReport {
        ReplayReport {
            restored: self.restored + other.restored,
            changed: self.changed + other.changed,
            deleted: self.deleted + other.deleted,
            unknown: self.unknown + other.unknown,
            expired: self.expired + other.expired,
            failed: self.failed + other.failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_has_one_name() {
        let id = SalvageId { bucket: BucketId(3), shard: ShardId(4), epoch: Epoch(2), cut: Lsn(7), end: Lsn(8) };
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in ["", "3-4-2-7", "3-4-2-7-8-9", "3-4-2-7-x", "03-4-2-7-8", "../../etc"] {
            assert!(wrong.parse::<SalvageId>().is_err(), "{wrong}");
        }
    }
}
