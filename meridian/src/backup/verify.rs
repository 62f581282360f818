//! Whether backups are what their manifests say: every part is there and unchanged, and the rows of every shard, with those of
//! the backups it rests on, add up to the digest that its replica had.

use std::fmt;

use meridian_region_core::{Contents, Damage};
use meridian_types::BackupRow;
use serde::Serialize;

use super::BackupId;
use super::chain::{Chain, input};
use super::manifest::{Kind, Manifest, PartEntry, ShardEntry, Way};
use super::merge::Merge;
use super::moment::{self, Link};
use super::part::unpack;
use super::place::{Place, part_name};

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The backup.
    pub backup: BackupId,
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
            Some(part) => write!(f, "{}, shard {}, {part}: {}", self.backup, self.shard, self.what),
            None => write!(f, "{}, shard {}: {}", self.backup, self.shard, self.what),
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
    (kind, part): (Kind, &PartEntry),
) -> Result<Vec<BackupRow>, Fault> {
    let place_of_it = (kind, shard.id(), part.number);
    let name = || Some(part_name(place_of_it));
    let fault = |what: String| Fault { backup: manifest.id.clone(), shard: shard.shard, part: name(), what };
    let read = place.part(&manifest.id, place_of_it).await;
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

/// Reads all of a backup and of what it rests on; `done` is told the length of every part that was looked at. What is damaged is
/// said of the backup whose it is, and of those above it only that they rest on it.
pub async fn verify(place: &Place, chain: &Chain, done: &(dyn Fn(u64) + Sync)) -> Vec<Fault> {
    let mut faults = Vec::new();
    for shard in 0..chain.last().shards.len() {
        let links: Vec<Link<'_>> =
            chain.links().iter().filter_map(|link| Some((link, link.shards.get(shard)?))).collect();
        // Each of these can be had without the one before.
        for links in links.chunk_by(|_, (_, next)| next.way != Way::Whole) {
            let found = verify_links(place, links, done).await;
            let is_good = found.is_empty() && links.first().is_some_and(|(_, entry)| entry.way == Way::Whole);
            faults.extend(found);
            faults.extend(verify_logs(place, links, (is_good, done)).await);
        }
    }
    faults
}

/// The rest of what they have of the shard: that it is there, and that the log, told again, comes to the digest as well.
async fn verify_logs(place: &Place, links: &[Link<'_>], (is_good, done): (bool, &(dyn Fn(u64) + Sync))) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (manifest, entry) in links {
        for (kind, part) in entry.files().filter(|(kind, _)| *kind != Kind::Rows) {
            faults.extend(rows_of(place, manifest, entry, (kind, part)).await.err());
            done(part.length);
        }
    }
    if !is_good || !faults.is_empty() {
        return faults;
    }
    moment::retold(place, links).await
}

/// Of one shard, links of which each rests on the one before: what each of them comes to is added up in one pass.
async fn verify_links(place: &Place, links: &[Link<'_>], done: &(dyn Fn(u64) + Sync)) -> Vec<Fault> {
    let mut rows = Merge::new(links.iter().map(|link| input(place, *link, done)).collect());
    let (mut sums, mut faults) = (vec![Contents::default(); links.len()], Vec::new());
    loop {
        match rows.next_of_each().await {
            Ok(None) => break,
            Ok(Some((key, records))) => {
                let added = add(&mut sums, &key, &records);
                faults.extend(added.err().map(|(at, why)| fault(links[at], why.to_string())));
            }
            Err(why) => faults.push(why),
        }
    }
    // What a part lacks is said of the part; what rests on another backup that can't be had is said once for all shards.
    let rests = links.first().is_some_and(|(_, entry)| entry.way != Way::Whole);
    if rests {
        return faults;
    }
    let mut damaged: Option<&BackupId> = None;
    for (at, link) in links.iter().enumerate() {
        if let Some(below) = damaged {
            faults.push(fault(*link, format!("it rests on {below}, which is damaged")));
            continue;
        }
        if faults.iter().any(|fault| fault.backup == link.0.id) {
            damaged = Some(&link.0.id);
            continue;
        }
        if let Some(what) = difference(link.1, &sums[at], rows.rows()[at]) {
            faults.push(fault(*link, what));
            damaged = Some(&link.0.id);
        }
    }
    faults
}

fn fault((manifest, entry): Link<'_>, what: String) -> Fault {
    Fault { backup: manifest.id.clone(), shard: entry.shard, part: None, what }
}

/// Counts a key into what each link comes to: by the newest record that there was then.
fn add(sums: &mut [Contents], key: &[u8], records: &[Option<bytes::Bytes>]) -> Result<(), (usize, Damage)> {
    let mut newest: Option<&bytes::Bytes> = None;
    for (at, (sum, record)) in sums.iter_mut().zip(records).enumerate() {
        newest = record.as_ref().or(newest);
        if let Some(record) = newest.filter(|record| !record.is_empty()) {
            sum.add(key, record).map_err(|why| (at, why))?;
        }
    }
    Ok(())
}

fn difference(shard: &ShardEntry, found: &Contents, rows: u64) -> Option<String> {
    match shard.contents() {
        Some(said) if said == *found && shard.rows == rows => None,
        Some(said) => Some(format!(
            "its rows add up to {} keys, {} bytes and the digest {}, at the cut there were {} keys, {} bytes and {}",
            found.keys, found.bytes, found.hash, said.keys, said.bytes, said.hash
        )),
        None => Some(format!("`{}` is no digest", shard.digest)),
    }
}
