//! What a primary that was lost held and its successor never received, as it is kept when the primary comes back (SWI-2).
//!
//! ```text
//! own log      … fork │ entries that nobody else has … │ end
//! state               └── their keys: what each had here at the end ──► `Lost`
//! ```
//!
//! Bytes: a version, then postcard. Deliberately not here: files, checksums, and what became of the keys at the winner.

mod waiting;

use std::ops::ControlFlow;

use bytes::Bytes;
use meridian_types::entry::{Header, Kind};
use meridian_types::{BucketId, Epoch, Lsn, Positions, RegionId, SalvageFate, ShardId, Version};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::body::{self, BodyRef, WriteBodyRef, WriteRef};
use crate::error::{Damage, ReadError};
use crate::keys;
use crate::record::{Merged, Reading, Record, Stamp};
use crate::view::StateView;

pub use self::waiting::Stray;

/// The version of these bytes.
pub const SALVAGE_FORMAT: u8 = 1;

/// What a bundle is about, and how much it holds.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Head {
    /// The bucket.
    pub bucket: BucketId,
    /// The shard.
    pub shard: ShardId,
    /// The region whose tail it is.
    pub region: RegionId,
    /// The epoch that ended without it.
    pub epoch: Epoch,
    /// The region that has what counts.
    pub winner: RegionId,
    /// What both have: the own position is where the tail begins.
    pub fork: Positions,
    /// The last entry of the tail.
    pub end: Lsn,
    /// What the winner had when it was asked which keys it had removed since the fork; `None` when its log no longer told.
    pub known: Option<Positions>,
    /// Entries up to here were no longer in the log: of them only the keys that still had their value are here.
    pub log_from: Lsn,
    /// When it was written, in milliseconds since 1970.
    pub created_ms: u64,
    /// Entries in it.
    pub entries: u64,
    /// Keys in it.
    pub keys: u64,
    /// Bytes of entries and values.
    pub bytes: u64,
    /// How many parts it has.
    pub parts: u32,
}

/// Some of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Part {
    /// Log entries, as they stand in the log.
    pub entries: Vec<(Lsn, Bytes)>,
    /// The keys they changed.
    pub keys: Vec<Lost>,
}

/// A key that ended otherwise here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// The key.
    pub key: Bytes,
    /// What it had; `None` when it was removed.
    pub value: Option<LostValue>,
    /// Whether the winner removed it since the fork, as far as [`Head::known`] says.
    pub removed: bool,
}

/// A value that nobody else has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostValue {
    /// The value.
    pub value: Bytes,
    /// Its version.
    pub version: Version,
    /// Where in the tail it was written.
    pub lsn: Lsn,
    /// When it expires, in milliseconds since 1970.
    pub expires_at_ms: Option<u64>,
}

/// The bytes are no salvage of a version this node knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are no salvage in a version this node knows, or they are damaged")]
pub struct SalvageError;

impl Head {
    /// Where the tail begins.
    pub fn cut(&self) -> Lsn {
        self.fork.of(self.region)
    }

    /// As bytes.
    pub fn encode(&self) -> Bytes {
        encode(self)
    }

    /// Reads it back.
    ///
    /// # Errors
    /// [`SalvageError`].
    pub fn decode(bytes: &[u8]) -> Result<Head, SalvageError> {
        decode(bytes)
    }
}

impl Part {
    /// As bytes.
    pub fn encode(&self) -> Bytes {
        encode(self)
    }

    /// Reads it back.
    ///
    /// # Errors
    /// [`SalvageError`].
    pub fn decode(bytes: &[u8]) -> Result<Part, SalvageError> {
        decode(bytes)
    }
}

/// Whether an entry of the own log, effective there, is part of a bucket's tail.
pub fn is_of_tail(header: &Header, bucket: BucketId) -> bool {
    header.bucket == bucket && matches!(header.kind, Kind::Write | Kind::Expire)
}

/// What an entry does to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// Gives it a value.
    Wrote,
    /// Adds to a counter that all regions count.
    Counted,
    /// Removes it.
    Removed,
}

/// The keys an entry is about, and what it does to them.
///
/// # Errors
/// [`Damage`] when it can't be read.
pub fn keys_of(header: &Header, entry: &[u8]) -> Result<Vec<(Bytes, Touch)>, Damage> {
    let body = body::decode(header, entry).map_err(|_| Damage { what: "entry of the log" })?;
    let owned = |key: &[u8], touch: Touch| (Bytes::copy_from_slice(key), touch);
    Ok(match &body {
        BodyRef::Write(write) => {
            let touch = match write {
                WriteBodyRef::Plain(WriteRef::Delete { .. }) | WriteBodyRef::Remove { .. } => Touch::Removed,
                WriteBodyRef::Counter { .. } => Touch::Counted,
                WriteBodyRef::Plain(_) | WriteBodyRef::Register { .. } => Touch::Wrote,
            };
            write.keys().map(|key| owned(key.0, touch)).collect()
        }
        BodyRef::Expire { due } => due.iter().map(|(key, _)| owned(key.0, Touch::Removed)).collect(),
        BodyRef::Fence
        | BodyRef::DropBucket
        | BodyRef::ExpireClients { .. }
        | BodyRef::Seal { .. }
        | BodyRef::Repair(_)
        | BodyRef::Stop { .. }
        | BodyRef::Raise { .. }
        | BodyRef::Part { .. } => Vec::new(),
    })
}

/// What the entries of a part add to a counter that all regions count, if they do.
///
/// # Errors
/// [`Damage`] when one can't be read.
pub fn counted(part: &Part, key: &[u8]) -> Result<Option<i64>, Damage> {
    let mut sum = None;
    for (_, entry) in &part.entries {
        let damage = Damage { what: "entry of the log" };
        let header = Header::decode(entry).map_err(|_| damage)?;
        let body = body::decode(&header, entry).map_err(|_| Damage { what: "entry of the log" })?;
        match &body {
            BodyRef::Write(WriteBodyRef::Counter { key: of, by }) if of.0 == key => {
                sum = Some(sum.unwrap_or(0_i64).saturating_add(*by));
            }
            // What was added before is not missing.
            BodyRef::Write(WriteBodyRef::Remove { key: of, .. }) if of.0 == key => sum = None,
            _ => {}
        }
    }
    Ok(sum)
}

/// What a key that the tail is about came to here; `None` when the tail did not change it.
///
/// # Errors
/// [`ReadError`] when the state can't be read or is damaged.
pub fn outcome(
    view: &dyn StateView,
    head: &Head,
    key: &Bytes,
    touch: Touch,
) -> Result<Option<Option<LostValue>>, ReadError> {
    let Some(record) = view.get(&keys::data(head.shard, head.bucket, key))? else {
        return Ok((touch == Touch::Removed).then_some(None));
    };
    if let Some(value) = of_tail(&record, head, head.end)? {
        return Ok(Some(Some(value)));
    }
    Ok(match (touch, Record::decode(&record)?) {
        // What the tail added is lost, whoever added last.
        (Touch::Counted, record) => record.read(0).map(|reading| Some(LostValue::of(&reading))),
        (Touch::Removed, Record::Merged(Merged { register: Some(tombstone), .. })) => {
            let removed = tombstone.val.is_none() && is_behind(head, tombstone.marker, head.end);
            removed.then_some(None)
        }
        (Touch::Wrote | Touch::Removed, _) => None,
    })
}

/// Keys whose value was written in a part of the tail that the log no longer has, behind `after`, at most `most`.
///
/// # Errors
/// [`ReadError`] when the state can't be read or is damaged.
pub fn lost_rows(view: &dyn StateView, head: &Head, after: &[u8], most: usize) -> Result<Vec<Lost>, ReadError> {
    let (from, to) = keys::data_range(head.shard, head.bucket);
    let mut behind = keys::data(head.shard, head.bucket, after);
    behind.push(0);
    let from = if after.is_empty() { from } else { behind };
    let (mut found, mut damage) = (Vec::new(), None);
    view.scan(&from, &to, &mut |state_key, record| {
        match of_tail(&Bytes::copy_from_slice(record), head, head.log_from) {
            Ok(Some(value)) => {
                let key = Bytes::copy_from_slice(state_key.get(keys::DATA_PREFIX_BYTES..).unwrap_or_default());
                found.push(Lost { key, value: Some(value), removed: false });
            }
            Ok(None) => {}
            Err(why) => damage = Some(why),
        }
        if damage.is_some() || found.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    damage.map_or(Ok(found), |damage| Err(damage.into()))
}

/// The value of a record, if the tail wrote it, up to `up_to`.
fn of_tail(record: &Bytes, head: &Head, up_to: Lsn) -> Result<Option<LostValue>, Damage> {
    // A value whose time has come is lost all the same: whoever looks at it decides.
    let decoded = Record::decode(record)?;
    let wrote = decoded.read(0).filter(|reading| is_behind(head, reading.stamp, up_to));
    Ok(wrote.map(|reading| LostValue::of(&reading)))
}

/// Whether a write is of the tail, up to `up_to`.
fn is_behind(head: &Head, stamp: Stamp, up_to: Lsn) -> bool {
    stamp.version.region == head.region && stamp.lsn > head.cut() && stamp.lsn <= up_to
}

impl LostValue {
    fn of(reading: &Reading<'_>) -> LostValue {
        let Stamp { version, lsn } = reading.stamp;
        LostValue { value: Bytes::copy_from_slice(&reading.value), version, lsn, expires_at_ms: reading.expires_at_ms }
    }
}

/// Judges a key by what the winner has of it now: where that was written, if it is there. `removed_at`: where in the log of
/// the bundle's region it was removed last, as [`crate::removed_at`] tells.
pub fn fate(head: &Head, lost: &Lost, now: Option<(RegionId, Lsn)>, removed_at: Option<Lsn>) -> SalvageFate {
    match (now, removed_at) {
        (Some((origin, lsn)), _) if lsn <= head.fork.of(origin) => SalvageFate::Untouched,
        (Some(_), _) => SalvageFate::Changed,
        (None, _) if lost.removed => SalvageFate::Deleted,
        // Behind the tail: what the tail itself removed, or somebody before it, is no change since.
        (None, Some(at)) if at > head.end => SalvageFate::Deleted,
        (None, Some(_)) if head.known.is_some() => SalvageFate::Untouched,
        (None, _) => SalvageFate::Unknown,
    }
}

fn encode(value: &impl Serialize) -> Bytes {
    // Serialising plain values into a growing vector has no way to fail.
    postcard::to_extend(value, vec![SALVAGE_FORMAT]).map(Bytes::from).unwrap_or_default()
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, SalvageError> {
    match bytes.split_first() {
        Some((&SALVAGE_FORMAT, body)) => postcard::from_bytes(body).map_err(|_| SalvageError),
        _ => Err(SalvageError),
    }
}

/// Bytes to begin a fuzzer from.
#[doc(hidden)]
pub fn samples() -> Vec<Vec<u8>> {
    let version = Version { hlc: meridian_types::Hlc(9), region: RegionId(1) };
    let value = LostValue { value: Bytes::from_static(b"v"), version, lsn: Lsn(8), expires_at_ms: Some(77) };
    let lost = |key, value| Lost { key: Bytes::from_static(key), value, removed: true };
    let part = Part {
        entries: vec![(Lsn(8), Bytes::from_static(b"entry"))],
        keys: vec![lost(b"k", Some(value)), lost(b"gone", None)],
    };
    let fork = Positions([(RegionId(1), Lsn(7)), (RegionId(2), Lsn(3))].into());
    let head = Head {
        bucket: BucketId(3),
        shard: ShardId(4),
        region: RegionId(1),
        epoch: Epoch(2),
        winner: RegionId(2),
        known: Some(fork.clone()),
        fork,
        end: Lsn(8),
        log_from: Lsn(7),
        created_ms: 1_790_000_000_000,
        entries: 1,
        keys: 2,
        bytes: 6,
        parts: 1,
    };
    vec![head.encode().to_vec(), part.encode().to_vec()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head() -> Head {
        Head::decode(&samples()[0]).unwrap()
    }

    fn lost(removed: bool) -> Lost {
        Lost { key: Bytes::from_static(b"k"), value: None, removed }
    }

    /// Written by the first version: must open for ever.
    #[test]
    fn a_bundle_of_the_first_version_opens() {
        let hex = |text: &str| -> Vec<u8> {
            let digits = text.trim().as_bytes().as_chunks::<2>().0;
            digits.iter().map(|it| u8::from_str_radix(std::str::from_utf8(it).unwrap(), 16).unwrap()).collect()
        };
        let fixture = include_str!("../tests/fixtures/salvage-v1.hex");
        let written: Vec<Vec<u8>> = fixture.lines().map(hex).collect();
        assert_eq!(written, samples());
        assert_eq!(Head::decode(&written[0]).unwrap().cut(), Lsn(7));
        assert_eq!(Part::decode(&written[1]).unwrap().keys.len(), 2);
    }

    #[test]
    fn a_key_is_untouched_only_where_that_is_certain() {
        let (head, never) = (head(), Some(Lsn(0)));
        let at = |region, lsn| Some((RegionId(region), Lsn(lsn)));
        assert_eq!(fate(&head, &lost(false), at(1, 7), never), SalvageFate::Untouched, "as at the fork");
        assert_eq!(fate(&head, &lost(false), at(2, 3), None), SalvageFate::Untouched);
        assert_eq!(fate(&head, &lost(false), at(2, 4), never), SalvageFate::Changed);
        assert_eq!(fate(&head, &lost(true), None, never), SalvageFate::Deleted);
        assert_eq!(fate(&head, &lost(false), None, never), SalvageFate::Untouched, "it was never there");
        assert_eq!(fate(&head, &lost(false), None, Some(Lsn(8))), SalvageFate::Untouched, "the tail removed it");
        assert_eq!(fate(&head, &lost(false), None, Some(Lsn(9))), SalvageFate::Deleted);
        assert_eq!(fate(&head, &lost(false), None, None), SalvageFate::Unknown);
        assert_eq!(fate(&Head { known: None, ..head }, &lost(false), None, never), SalvageFate::Unknown);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_salvage_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let bytes = [&[SALVAGE_FORMAT], &bytes[..]].concat();
            let _ = (Head::decode(&bytes), Part::decode(&bytes));
        }
    }
}
