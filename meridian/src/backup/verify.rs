//! Whether a backup is what its manifest says: every part is there and unchanged, and the rows of every shard add up to the
//! digest that its replica had.

use std::fmt;

use futures::stream::{self, StreamExt};
use meridian_region_core::Contents;
use meridian_types::BackupRow;
use serde::Serialize;

use super::manifest::{Manifest, PartEntry, ShardEntry};
use super::part::unpack;
use super::place::{Place, part_name};

/// Parts read ahead of the one that is looked at.
const AHEAD: usize = 4;

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The shard.
    pub shard: u16,
    /// The part, as its file is called; `None` when it is the shard as a whole.
    pub part: Option<String>,
    /// What is wrong with it, in a sentence.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.part {
            Some(part) => write!(f, "shard {}, {part}: {}", self.shard, self.what),
            None => write!(f, "shard {}: {}", self.shard, self.what),
        }
    }
}

impl std::error::Error for Fault {}

/// The rows of a part, if it is what the manifest says.
///
/// # Errors
/// [`Fault`]: none of its rows can be relied on.
pub async fn rows_of(
    place: &Place,
    manifest: &Manifest,
    shard: &ShardEntry,
    part: &PartEntry,
) -> Result<Vec<BackupRow>, Fault> {
    let name = || Some(part_name(shard.id(), part.number));
    let fault = |what: String| Fault { shard: shard.shard, part: name(), what };
    let read = place.part(&manifest.id, shard.id(), part.number).await;
    let bytes = read.map_err(|why| fault(format!("it can't be read: {why:#}")))?;
    let bytes = bytes.ok_or_else(|| fault("it is missing".to_owned()))?;
    if bytes.len() as u64 != part.length {
        return Err(fault(format!("it has {} bytes, {} were written", bytes.len(), part.length)));
    }
    if crc32c::crc32c(&bytes) != part.crc32c {
        return Err(fault("its checksum does not match".to_owned()));
    }
    let rows = unpack(&bytes, (shard.id(), part.number)).map_err(|why| fault(why.to_string()))?;
    if rows.len() as u64 == u64::from(part.rows) {
        return Ok(rows);
    }
    Err(fault(format!("it has {} rows, {} were written", rows.len(), part.rows)))
}

/// Reads all of it; `done` is told the length of every part that was looked at.
pub async fn verify(place: &Place, manifest: &Manifest, done: impl Fn(u64)) -> Vec<Fault> {
    let mut faults = Vec::new();
    for shard in &manifest.shards {
        let reading = stream::iter(&shard.parts).map(|part| rows_of(place, manifest, shard, part));
        let mut parts = reading.buffered(AHEAD).zip(stream::iter(&shard.parts));
        let (mut sum, mut whole) = (Sum::default(), true);
        while let Some((rows, part)) = parts.next().await {
            let added = rows.and_then(|rows| sum.add(shard, part, &rows));
            whole &= added.is_ok();
            faults.extend(added.err());
            done(part.length);
        }
        // What a part lacks is said of the part.
        faults.extend(if whole { sum.difference(shard) } else { None });
    }
    faults
}

/// What the rows of a shard add up to.
#[derive(Default)]
struct Sum {
    contents: Contents,
    rows: u64,
    last: Option<bytes::Bytes>,
}

impl Sum {
    fn add(&mut self, shard: &ShardEntry, part: &PartEntry, rows: &[BackupRow]) -> Result<(), Fault> {
        let fault = |what: String| Fault { shard: shard.shard, part: Some(part_name(shard.id(), part.number)), what };
        for row in rows {
            if self.last.as_ref().is_some_and(|last| *last >= row.key) {
                return Err(fault("its rows are not in the order of their keys".to_owned()));
            }
            self.contents.add(&row.key, &row.record).map_err(|why| fault(why.to_string()))?;
            self.last = Some(row.key.clone());
            self.rows += 1;
        }
        Ok(())
    }

    fn difference(&self, shard: &ShardEntry) -> Option<Fault> {
        let what = match shard.contents() {
            Some(said) if said == self.contents && shard.rows == self.rows => return None,
            Some(said) => format!(
                "its rows add up to {} keys, {} bytes and the digest {}, at the cut there were {} keys, {} bytes and {}",
                self.contents.keys, self.contents.bytes, self.contents.hash, said.keys, said.bytes, said.hash
            ),
            None => format!("`{}` is no digest", shard.digest),
        };
        Some(Fault { shard: shard.shard, part: None, what })
    }
}
