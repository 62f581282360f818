//! The side that is right: sums up a bucket's rows, and gives those that are asked for, from a view that stands still.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use bytes::Bytes;
use meridian_types::{BucketId, RepairGoal, Row, SetHash, ShardId};

use super::message::{Digests, Hashes, Pinned, Told};
use super::{HASHES_MAX, LOOKED_AT_MAX, PARTITION_ROWS, PARTITIONS_MAX, ROWS_BYTES, rows};
use crate::error::ReadError;
use crate::keys;
use crate::meta::{BucketMeta, decode_bucket};
use crate::view::StateView;

/// The answer to a request for a session.
#[derive(Clone, Debug)]
pub enum Opening {
    /// It is open.
    Open(Source, Pinned),
    /// This replica is none to be made equal to now.
    Unfit(&'static str),
}

/// One bucket in one shard of a view.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    shard: ShardId,
    bucket: BucketId,
    partitions: u32,
    salt: u64,
}

impl Source {
    /// Sums the bucket up. `salt` is another one in every session. Reads every row.
    ///
    /// # Errors
    /// [`ReadError`] when the state can't be read or is damaged.
    pub fn open(view: &dyn StateView, shard: ShardId, bucket: BucketId, salt: u64) -> Result<Opening, ReadError> {
        let meta = meta_of(view, shard, bucket)?;
        if let Some(why) = meta.unfit_as_source() {
            return Ok(Opening::Unfit(why));
        }
        let partitions = u32::try_from(meta.digest.keys / PARTITION_ROWS + 1).unwrap_or(u32::MAX).min(PARTITIONS_MAX);
        let results = rows::hash_of_results(view, shard, bucket)?;
        let source = Source { shard, bucket, partitions, salt };
        let (digests, count) = digests(view, (shard, bucket), partitions)?;
        let goal = RepairGoal { epoch: meta.epoch(), digest: meta.digest, results, origin_hlc: meta.origin_hlc };
        let digests = Digests::from_iter(digests);
        Ok(Opening::Open(source, Pinned { goal, rows: count, salt, digests }))
    }

    /// Hashes of the rows behind `after` that are in one of the partitions `differing`.
    ///
    /// # Errors
    /// [`ReadError`] when the state can't be read.
    pub fn hashes(&self, view: &dyn StateView, after: &[u8], differing: &[u8]) -> Result<Told, ReadError> {
        let mut hashes = Vec::new();
        let mut looked_at = 0;
        let mut up_to = None;
        rows::scan(view, (self.shard, self.bucket), after, None, &mut |key, value| {
            if is_set(differing, rows::partition(key, self.partitions)) {
                hashes.push(rows::hash(key, value, self.salt));
            }
            looked_at += 1;
            if hashes.len() < HASHES_MAX && looked_at < LOOKED_AT_MAX {
                return ControlFlow::Continue(());
            }
            up_to = Some(Bytes::copy_from_slice(key));
            ControlFlow::Break(())
        })?;
        Ok(Told::Hashes { hashes: Hashes::from_iter(hashes), up_to })
    }

    /// The rows of these hashes behind `after` and up to `up_to`, about [`ROWS_BYTES`] of them.
    ///
    /// # Errors
    /// [`ReadError`] when the state can't be read.
    pub fn rows(
        &self,
        view: &dyn StateView,
        after: &[u8],
        up_to: Option<&[u8]>,
        hashes: &Hashes,
    ) -> Result<Told, ReadError> {
        let wanted: BTreeSet<u64> = hashes.iter().take(HASHES_MAX).collect();
        let (mut found, mut bytes, mut reached) = (Vec::new(), 0, None);
        rows::scan(view, (self.shard, self.bucket), after, up_to, &mut |key, value| {
            if !wanted.contains(&rows::hash(key, value, self.salt)) {
                return ControlFlow::Continue(());
            }
            bytes += key.len() + value.len();
            found.push(Row { key: Bytes::copy_from_slice(key), value: Bytes::copy_from_slice(value) });
            if bytes < ROWS_BYTES {
                return ControlFlow::Continue(());
            }
            reached = Some(Bytes::copy_from_slice(key));
            ControlFlow::Break(())
        })?;
        Ok(Told::Rows { rows: found, up_to: reached })
    }
}

/// The metadata that a view has of a bucket.
pub(crate) fn meta_of(view: &dyn StateView, shard: ShardId, bucket: BucketId) -> Result<BucketMeta, ReadError> {
    let stored = view.get(&keys::bucket_meta(shard, bucket))?;
    Ok(stored.map(|bytes| decode_bucket(&bytes)).transpose()?.unwrap_or_default())
}

/// The digest of every partition, and how many rows there are.
pub(super) fn digests(
    view: &dyn StateView,
    place: (ShardId, BucketId),
    partitions: u32,
) -> Result<(Vec<SetHash>, u64), ReadError> {
    let mut digests = vec![SetHash::default(); partitions as usize];
    let mut count = 0;
    rows::scan(view, place, &[], None, &mut |key, value| {
        if let Some(digest) = digests.get_mut(rows::partition(key, partitions)) {
            digest.add(key, value);
        }
        count += 1;
        ControlFlow::Continue(())
    })?;
    Ok((digests, count))
}

/// Whether the bit of a partition is set.
pub(super) fn is_set(bits: &[u8], at: usize) -> bool {
    bits.get(at / 8).is_some_and(|byte| byte & (1 << (at % 8)) != 0)
}
