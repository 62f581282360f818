//! A bucket in a shard as a backup takes it: the moment it is of, its rows page by page, and what a record comes to for whoever
//! writes it anew elsewhere.
//!
//! A backup keeps records as the state holds them, tombstones too: so its rows add up to the very digest that the replica
//! had, and a backup is proven whole like any other copy.
//!
//! Deliberately not here: who may be asked, and how long the moment is kept (`region/node`).

use std::ops::ControlFlow;

use bytes::Bytes;
use meridian_types::{BackupCut, BackupRow, BucketId, RegionId, ShardId};

pub mod log;
pub mod replay;

use crate::error::{Damage, ReadError};
use crate::keys;
use crate::meta::{self, ShardMeta};
use crate::record::Record;
use crate::repair::source::meta_of;
use crate::view::StateView;

/// Whether a replica can be backed up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    /// It can: what it is now.
    Open(BackupCut),
    /// Its rows are of no moment, or it has none; why.
    Unfit(&'static str),
}

/// What a view has of a bucket, without reading its rows.
///
/// # Errors
/// [`ReadError`] when the state can't be read or is damaged.
pub fn open(view: &dyn StateView, shard: ShardId, bucket: BucketId, own: RegionId) -> Result<Opening, ReadError> {
    let meta = meta_of(view, shard, bucket)?;
    if let Some(why) = meta.unfit_as_source() {
        return Ok(Opening::Unfit(why));
    }
    let epoch = meta.epoch();
    let stored = view.get(&keys::shard_meta(shard))?;
    let stored = stored.map(|bytes| meta::decode::<ShardMeta>(&bytes, "position of the shard")).transpose()?;
    let ShardMeta { applied, greatest_hlc: stamp, .. } = stored.unwrap_or_default();
    let cut = BackupCut::new(shard, own, epoch, meta.digest);
    Ok(Opening::Open(BackupCut { bucket, applied, stamp, ..cut }))
}

/// The records that a view has of some keys, in their order; an empty one where it has none.
///
/// # Errors
/// [`ReadError`] when the state can't be read.
pub fn records(
    view: &dyn StateView,
    (shard, bucket): (ShardId, BucketId),
    names: impl IntoIterator<Item = Bytes>,
) -> Result<Vec<BackupRow>, ReadError> {
    let of = |key: Bytes| {
        let record = view.get(&keys::data(shard, bucket, &key))?.unwrap_or_default();
        Ok::<_, ReadError>(BackupRow { key, record })
    };
    names.into_iter().map(of).collect()
}

/// The rows behind `after` in the order of their keys, from about `bytes_max` bytes on no more; none at the end.
///
/// # Errors
/// [`ReadError`] when the state can't be read.
pub fn page(
    view: &dyn StateView,
    shard: ShardId,
    bucket: BucketId,
    after: &[u8],
    bytes_max: usize,
) -> Result<Vec<BackupRow>, ReadError> {
    let (mut from, to) = keys::data_range(shard, bucket);
    if !after.is_empty() {
        // The first key behind a key is that key with a zero byte at its end.
        from = keys::data(shard, bucket, after);
        from.push(0);
    }
    let (mut rows, mut bytes) = (Vec::new(), 0);
    view.scan(&from, &to, &mut |key, record| {
        let key = key.get(keys::DATA_PREFIX_BYTES..).unwrap_or_default();
        bytes += key.len() + record.len();
        rows.push(BackupRow { key: Bytes::copy_from_slice(key), record: Bytes::copy_from_slice(record) });
        if bytes < bytes_max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(rows)
}

/// What a record holds, whatever the policy of the bucket it is from. A tombstone holds neither.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Saved {
    /// What was counted, and counts on: also a plain number without an end, as when a bucket comes to be written everywhere.
    pub counter: Option<i64>,
    /// A value; where there is a counter too it hides that, until it ends.
    pub value: Option<SavedValue>,
}

/// A value and its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedValue {
    /// The value.
    pub value: Bytes,
    /// When it expires, in milliseconds since 1970.
    pub expires_at_ms: Option<u64>,
}

impl Saved {
    /// Reads a record.
    ///
    /// # Errors
    /// [`Damage`] when it is none.
    pub fn of(record: &Bytes) -> Result<Saved, Damage> {
        let merged = Record::decode(record)?.into_merged();
        if merged.counts_on {
            return Ok(Saved { counter: Some(merged.count()), value: None });
        }
        let counter = merged.counter.filter(|counter| counter.is_live()).map(|counter| counter.value());
        let value = merged
            .register
            .and_then(|register| register.val)
            .map(|content| SavedValue { value: record.slice_ref(content.value), expires_at_ms: content.expires_at_ms });
        Ok(Saved { counter, value })
    }

    /// What is left of it at a time.
    #[must_use]
    pub fn at(mut self, now_ms: u64) -> Saved {
        self.value = self.value.filter(|it| it.expires_at_ms.is_none_or(|at| at > now_ms));
        self
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.counter.is_none() && self.value.is_none()
    }
}

#[cfg(test)]
mod tests {
    use meridian_types::{Hlc, Lsn, SetHash, Version};
    use proptest::prelude::*;

    use super::*;
    use crate::counter::Counter;
    use crate::record::{Content, Merged, Register, Stamp, encode_merged, encode_plain};
    use crate::view::{MemoryState, Mutations};

    const PLACE: (ShardId, BucketId) = (ShardId(3), BucketId(9));

    fn stamp(lsn: u64) -> Stamp {
        Stamp { version: Version { hlc: Hlc(lsn), region: RegionId(1) }, lsn: Lsn(lsn) }
    }

    fn counted(by: i64) -> Counter {
        let mut counter = Counter::default();
        counter.add(RegionId(1), by, stamp(1)).unwrap();
        counter
    }

    fn register(value: &[u8], expires_at_ms: Option<u64>) -> Option<Register<'_>> {
        Some(Register { val: Some(Content { expires_at_ms, value }), marker: stamp(2) })
    }

    fn of(record: Bytes) -> Saved {
        Saved::of(&record).unwrap()
    }

    fn value(value: &'static [u8], expires_at_ms: Option<u64>) -> Option<SavedValue> {
        Some(SavedValue { value: Bytes::from_static(value), expires_at_ms })
    }

    proptest! {
        #[test]
        fn pages_of_any_size_bring_every_row_once_in_order(
            names in prop::collection::btree_set(prop::collection::vec(any::<u8>(), 1..6), 0..30), bytes_max in 1usize..400,
        ) {
            let (mut state, mut out, (shard, bucket)) = (MemoryState::default(), Mutations::new(), PLACE);
            for name in &names {
                out.put(keys::data(shard, bucket, name), encode_plain(stamp(1), None, &[name]));
            }
            // Neighbours of all kinds.
            for other in [keys::data(shard, BucketId(8), b"x"), keys::data(shard, BucketId(10), b"x"), keys::data(ShardId(4), bucket, b"x")] {
                out.put(other, encode_plain(stamp(1), None, &[]));
            }
            state.commit(out);
            let (mut seen, mut after) = (Vec::new(), Bytes::new());
            loop {
                let rows = page(&state, shard, bucket, &after, bytes_max).unwrap();
                let Some(last) = rows.last() else { break };
                after = last.key.clone();
                seen.extend(rows);
            }
            prop_assert_eq!(seen.iter().map(|row| row.key.to_vec()).collect::<Vec<_>>(), names.into_iter().collect::<Vec<_>>());
            let mut contents = crate::Contents::default();
            seen.iter().for_each(|row| { contents.add(&row.key, &row.record).unwrap(); });
            prop_assert_eq!(contents, crate::recompute_digest(&state, shard, bucket).unwrap());
        }
    }

    #[test]
    fn a_record_comes_to_what_its_readers_saw_and_will_see() {
        assert_eq!(of(encode_plain(stamp(1), Some(9), &[b"7"])), Saved { counter: None, value: value(b"7", Some(9)) });
        assert_eq!(of(encode_plain(stamp(1), None, &[b"07"])), Saved { counter: None, value: value(b"07", None) });
        assert_eq!(of(encode_plain(stamp(1), None, &[b"7"])), Saved { counter: Some(7), value: None });
        let merged = |register, counter, counts_on| of(encode_merged(&Merged { register, counter, counts_on }));
        assert_eq!(merged(None, Some(counted(-5)), false), Saved { counter: Some(-5), value: None });
        assert_eq!(merged(register(b"7", None), Some(counted(5)), true), Saved { counter: Some(12), value: None });
        let hidden = merged(register(b"v", Some(9)), Some(counted(5)), false);
        assert_eq!(hidden, Saved { counter: Some(5), value: value(b"v", Some(9)) });
        assert_eq!(hidden.clone().at(8), hidden);
        assert_eq!(hidden.at(9), Saved { counter: Some(5), value: None });
        let mut removed = counted(5);
        removed.remove(RegionId(1), &[]);
        let tombstone = Some(Register { val: None, marker: stamp(2) });
        assert!(merged(tombstone, Some(removed), false).is_empty());
        assert!(Saved::of(&Bytes::from_static(b"\x01\x09")).is_err());
    }

    #[test]
    fn a_bucket_nothing_was_written_to_is_empty_and_not_unfit() {
        let Opening::Open(cut) = open(&MemoryState::default(), PLACE.0, PLACE.1, RegionId(2)).unwrap() else {
            panic!("it has no reason to be unfit");
        };
        assert_eq!((cut.hash, cut.keys, cut.region), (SetHash::default(), 0, RegionId(2)));
    }
}
