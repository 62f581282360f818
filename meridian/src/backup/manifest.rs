//! What a backup says of itself, and whether one is there at all: the manifest is written last. Pure.
//!
//! A line `meridian-backup VERSION CRC32C LENGTH` with the checksum (hexadecimal) and length of what follows, then JSON, so
//! that it can be read without this program: `tail -n +2 manifest | jq`.

use std::collections::BTreeMap;

use bytes::Bytes;
use meridian_region_core::Contents;
use meridian_types::{
    BackupCut, BackupSince, BucketId, BucketName, Epoch, Hlc, Labels, Lsn, Policy, Positions, RegionId, RegionName,
    SetHash, ShardId,
};
use serde::{Deserialize, Serialize};

use super::BackupId;

/// The version of a backup that rests on another one: an earlier program would take it for all there was.
pub const VERSION: u32 = 2;

/// The version of one that stands by itself, and is read by every program.
const VERSION_WHOLE: u32 = 1;

const MAGIC: &str = "meridian-backup";

/// A backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Names it.
    pub id: BackupId,
    /// The cluster it is of.
    pub cluster: String,
    /// The version of the program that wrote it.
    pub tool: String,
    /// When it was begun, in milliseconds since 1970: what was acknowledged before is in it, if it is of the primary.
    pub begun_ms: u64,
    /// When its last row had come.
    pub ended_ms: u64,
    /// The region that was read.
    pub region: RegionName,
    /// The bucket.
    pub bucket: BucketEntry,
    /// What it rests on; `None`: on nothing, it is all there was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
    /// Every shard, by number.
    pub shards: Vec<ShardEntry>,
}

/// The backup that another one rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Its name.
    pub id: BackupId,
    /// What it says of itself, summed up: another one under its name is another one.
    pub seal: u32,
}

/// What is kept of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// All of its rows.
    #[default]
    Whole,
    /// Rows that differ from those of the base, found by comparing all of them.
    Difference,
    /// Rows that the log since the base touched, and that log: every moment on the way can be had.
    Log,
}

impl Way {
    fn is_whole(&self) -> bool {
        *self == Way::Whole
    }
}

/// The bucket of a backup, as it was on record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketEntry {
    /// Its name.
    pub name: BucketName,
    /// How it replicated.
    pub policy: Policy,
    /// The regions that held it.
    pub regions: Vec<RegionName>,
    /// The region that took writes; `None`: all of them.
    pub primary: Option<RegionName>,
    /// Its labels.
    pub labels: Labels,
}

/// Where a shard stood at its cut, in the log of the region that was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The bucket: one of the same name may be another one.
    pub bucket: u32,
    /// The region.
    pub region: u16,
    /// The last entry.
    pub applied: u64,
    /// What that entry is known again by, if it was still there: 32 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<String>,
    /// The greatest timestamp of the shard: those of later entries are greater.
    pub stamp: u64,
    /// The leader's wall clock when it was asked, in milliseconds since 1970: what was acknowledged by then is in it.
    pub at_ms: u64,
}

/// Of what a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Rows.
    Rows,
    /// The log since the base: an entry by its position.
    Log,
    /// What is needed to tell the log again from here on.
    Context,
}

/// A shard at its cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// Its number.
    pub shard: u16,
    /// The epoch in force.
    pub epoch: u64,
    /// What had been applied, per origin region.
    pub positions: BTreeMap<u16, u64>,
    /// The greatest timestamp applied.
    pub hlc: u64,
    /// How stale it may have been, in milliseconds: 0 at the primary, `null` where nobody knew.
    pub staleness_ms: Option<u64>,
    /// What the rows add up to: 32 hexadecimal digits.
    pub digest: String,
    /// Live keys.
    pub keys: u64,
    /// Bytes of live keys and values.
    pub bytes: u64,
    /// What is kept of it.
    #[serde(default, skip_serializing_if = "Way::is_whole")]
    pub way: Way,
    /// In a backup that rests on another one: why more is kept of it than what changed, or more was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Rows that are kept: live keys and tombstones; on top of a base also keys that are gone.
    pub rows: u64,
    /// Of these, rows that were counted: written twice they count twice.
    pub counters: u64,
    /// Where they are.
    pub parts: Vec<PartEntry>,
    /// Where it stood; `None` of a cluster of an earlier release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<Mark>,
    /// Where the log since the base is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<PartEntry>,
    /// Where that is which is needed to tell the log again from here on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub context: Vec<PartEntry>,
}

/// A part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartEntry {
    /// Its place among the parts of its shard, from 0.
    pub number: u32,
    /// Its length, in bytes.
    pub length: u64,
    /// The CRC-32C of all of it.
    pub crc32c: u32,
    /// How many rows it has.
    pub rows: u32,
}

/// Why bytes are no manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// They begin otherwise.
    #[error("it is no manifest of a backup")]
    Unknown,
    /// A later program wrote it.
    #[error("it is of version {0}, and this program reads up to version {VERSION}: use a newer one")]
    Newer(u32),
    /// It is not what was written.
    #[error("it is damaged: its checksum or its length does not match")]
    Checksum,
    /// The directory was renamed, or copied.
    #[error("it is that of {0}: give the directory its name back")]
    Another(BackupId),
    /// It is, but can't be read.
    #[error("it is damaged: {0}")]
    Json(String),
}

impl Manifest {
    /// As it is kept.
    pub fn encode(&self) -> Bytes {
        // Numbers, texts and lists of them have no way to fail.
        let body = serde_json::to_string_pretty(self).unwrap_or_default();
        let version = if self.base.is_some() { VERSION } else { VERSION_WHOLE };
        let head = format!("{MAGIC} {version} {:08x} {}\n", crc32c::crc32c(body.as_bytes()), body.len());
        Bytes::from(head + &body)
    }

    /// Reads it back.
    ///
    /// # Errors
    /// [`Damage`].
    pub fn decode(bytes: &[u8]) -> Result<Manifest, Damage> {
        let end = bytes.iter().position(|byte| *byte == b'\n').ok_or(Damage::Unknown)?;
        let (head, body) = (std::str::from_utf8(&bytes[..end]).map_err(|_| Damage::Unknown)?, &bytes[end + 1..]);
        let rest = head.strip_prefix(MAGIC).and_then(|rest| rest.strip_prefix(' ')).ok_or(Damage::Unknown)?;
        let (version, rest) = rest.split_once(' ').ok_or(Damage::Unknown)?;
        match version.parse::<u32>() {
            Ok(VERSION_WHOLE..=VERSION) => {}
            Ok(newer) => return Err(Damage::Newer(newer)),
            Err(_) => return Err(Damage::Unknown),
        }
        if rest != format!("{:08x} {}", crc32c::crc32c(body), body.len()) {
            return Err(Damage::Checksum);
        }
        let manifest: Manifest = serde_json::from_slice(body).map_err(|why| Damage::Json(why.to_string()))?;
        if !manifest.shards.iter().enumerate().all(|(at, shard)| usize::from(shard.shard) == at) {
            return Err(Damage::Json("a shard is missing".to_owned()));
        }
        if manifest.base.is_none() && manifest.shards.iter().any(|shard| !shard.way.is_whole()) {
            return Err(Damage::Json("a shard rests on another backup, which is not named".to_owned()));
        }
        Ok(manifest)
    }

    /// What it says of its contents, summed up: of every shard the digest and the checksum of each part.
    pub fn seal(&self) -> u32 {
        let of_shard = |seal, shard: &ShardEntry| {
            let seal = crc32c::crc32c_append(seal, shard.digest.as_bytes());
            shard.files().fold(seal, |seal, (_, part)| crc32c::crc32c_append(seal, &part.crc32c.to_le_bytes()))
        };
        self.shards.iter().fold(crc32c::crc32c(&self.begun_ms.to_le_bytes()), of_shard)
    }

    /// Live keys of all shards.
    pub fn keys(&self) -> u64 {
        self.shards.iter().map(|shard| shard.keys).sum()
    }

    /// Bytes of live keys and values.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes).sum()
    }

    /// Rows that were counted.
    pub fn counters(&self) -> u64 {
        self.shards.iter().map(|shard| shard.counters).sum()
    }

    /// Bytes of all parts.
    pub fn length(&self) -> u64 {
        self.parts().map(|(_, _, part)| part.length).sum()
    }

    /// Every part, with its shard and what it is of.
    pub fn parts(&self) -> impl Iterator<Item = (&ShardEntry, Kind, &PartEntry)> {
        self.shards.iter().flat_map(|shard| shard.files().map(move |(kind, part)| (shard, kind, part)))
    }

    /// The most that any shard may have been behind; `None` where nobody knew.
    pub fn staleness_ms(&self) -> Option<u64> {
        self.shards.iter().map(|shard| shard.staleness_ms).try_fold(0, |most, this| Some(this?.max(most)))
    }
}

impl Mark {
    /// Whether everything in it was ordered by then.
    pub fn is_before(&self, limit: Hlc) -> bool {
        Hlc(self.stamp) < limit
    }
}

impl ShardEntry {
    /// A shard of which so many rows were kept, counters among them, in these parts.
    pub fn new(cut: &BackupCut, way: Way, (rows, counters): (u64, u64), parts: Vec<PartEntry>) -> ShardEntry {
        ShardEntry {
            shard: cut.shard.0,
            epoch: cut.epoch.0,
            positions: cut.positions.0.iter().map(|(region, lsn)| (region.0, lsn.0)).collect(),
            hlc: cut.hlc.0,
            staleness_ms: cut.staleness_ms,
            digest: cut.hash.to_string(),
            keys: cut.keys,
            bytes: cut.bytes,
            way,
            why: None,
            rows,
            counters,
            parts,
            mark: (cut.at_ms > 0).then(|| Mark {
                bucket: cut.bucket.0,
                region: cut.region.0,
                applied: cut.applied.0,
                evidence: cut.evidence.map(|hash| hash.to_string()),
                stamp: cut.stamp.0,
                at_ms: cut.at_ms,
            }),
            log: Vec::new(),
            context: Vec::new(),
        }
    }

    /// Its parts, with what they are of.
    pub fn files(&self) -> impl Iterator<Item = (Kind, &PartEntry)> {
        let of = [(Kind::Rows, &self.parts), (Kind::Log, &self.log), (Kind::Context, &self.context)];
        of.into_iter().flat_map(|(kind, parts)| parts.iter().map(move |part| (kind, part)))
    }

    /// What a later backup asks the region for; `None` where nothing is known of its log.
    pub fn since(&self) -> Option<BackupSince> {
        let (mark, contents) = (self.mark.as_ref()?, self.contents()?);
        let positions = self.positions.iter().map(|(region, lsn)| (RegionId(*region), Lsn(*lsn)));
        Some(BackupSince {
            bucket: BucketId(mark.bucket),
            region: RegionId(mark.region),
            epoch: Epoch(self.epoch),
            applied: Lsn(mark.applied),
            evidence: mark.evidence.as_ref().and_then(|hash| u128::from_str_radix(hash, 16).ok()).map(SetHash),
            positions: Positions(positions.collect()),
            hash: contents.hash,
            keys: contents.keys,
            bytes: contents.bytes,
        })
    }

    /// The shard.
    pub fn id(&self) -> ShardId {
        ShardId(self.shard)
    }

    /// What the rows that it had must add up to; `None` when the digest is none.
    pub fn contents(&self) -> Option<Contents> {
        let hash = SetHash(u128::from_str_radix(&self.digest, 16).ok()?);
        Some(Contents { hash, keys: self.keys, bytes: self.bytes })
    }
}
