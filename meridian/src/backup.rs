//! Backups: a bucket as each of its shards had it at one moment, kept outside of the cluster
//! (docs/adr/2026-11-28-backups.md).
//!
//! ```text
//! PLACE/ID/s00000-p00000.part   rows of a shard in the order of their keys, a few MiB      (part.rs)
//! PLACE/ID/s00000-p00001.part
//! PLACE/ID/s00000-c00000.part   what is needed to tell its log again from here on
//! PLACE/ID/s00000-l00000.part   of a backup that rests on another one: the log since       (moment.rs)
//! PLACE/ID/manifest             what is in it; written last: without it there is no backup (manifest.rs)
//! ```
//!
//! A backup may rest on another one: then it has what changed since, and an empty record for each key that is gone (chain.rs,
//! merge.rs).
//!
//! Rows are records as the state holds them, tombstones too, so what is kept of a shard must add up to the digest that its
//! replica had at the cut: `verify` works that out again. Memory is bounded by the parts under way, whatever a bucket holds
//! (RES-1). A place is a directory or an object store (place.rs); either takes an object whole or not at all.
//!
//! Deliberately not here: how a replica is read (`region/node`), words of the command line (`cli/backup.rs`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub mod chain;
pub mod create;
pub mod delete;
pub mod manifest;
pub mod merge;
pub mod moment;
pub mod part;
pub mod place;
pub mod restore;
pub mod verify;
pub mod writes;

#[cfg(test)]
mod tests;

/// The longest id, in bytes: a bucket's name, a moment and a few digits.
const ID_BYTES_MAX: usize = 100;

/// Names a backup, and its directory: the bucket, the moment it was begun, and digits that tell two of one second apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackupId(String);

impl FromStr for BackupId {
    type Err = String;

    fn from_str(text: &str) -> Result<BackupId, String> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let is_name = (1..=ID_BYTES_MAX).contains(&text.len()) && text.chars().all(allowed) && !text.starts_with('.');
        if is_name {
            return Ok(BackupId(text.to_owned()));
        }
        Err("that is no backup's id: `meridian backup list` shows which there are".to_owned())
    }
}

impl TryFrom<String> for BackupId {
    type Error = String;

    fn try_from(text: String) -> Result<BackupId, String> {
        text.parse()
    }
}

impl From<BackupId> for String {
    fn from(id: BackupId) -> String {
        id.0
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
