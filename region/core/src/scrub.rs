//! Recomputing from the records what is otherwise kept up incrementally: how a scrub finds silent damage (DUR-3).

use std::ops::ControlFlow;

use meridian_types::{BucketDigest, BucketId, SetHash, ShardId};

use crate::error::ReadError;
use crate::keys;
use crate::record::Record;
use crate::view::StateView;

/// The part of a [`BucketDigest`] that follows from the records alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Contents {
    /// The hash of every record and tombstone.
    pub hash: SetHash,
    /// Live keys.
    pub keys: u64,
    /// Bytes of live keys and values.
    pub bytes: u64,
}

impl Contents {
    /// What a digest says of its records.
    pub fn of(digest: &BucketDigest) -> Contents {
        Contents { hash: digest.hash, keys: digest.keys, bytes: digest.bytes }
    }
}

/// Reads every record of a bucket in a shard. Must equal [`Contents::of`] the digest at the same position.
///
/// # Errors
/// [`ReadError`] when the state can't be read or a record is damaged.
pub fn recompute_digest(view: &dyn StateView, shard: ShardId, bucket: BucketId) -> Result<Contents, ReadError> {
    recompute_visiting(view, shard, bucket, &mut |_| {})
}

/// As [`recompute_digest`], and calls `visit` with every live key on the way, in byte order.
///
/// # Errors
/// As [`recompute_digest`].
pub fn recompute_visiting(
    view: &dyn StateView,
    shard: ShardId,
    bucket: BucketId,
    visit: &mut dyn FnMut(&[u8]),
) -> Result<Contents, ReadError> {
    let mut contents = Contents::default();
    let mut outcome = Ok(());
    let (from, to) = keys::data_range(shard, bucket);
    view.scan(&from, &to, &mut |state_key, bytes| {
        let record = match Record::decode(bytes) {
            Ok(record) => record,
            Err(damage) => {
                outcome = Err(damage);
                return ControlFlow::Break(());
            }
        };
        let key = state_key.get(keys::DATA_PREFIX_BYTES..).unwrap_or_default();
        contents.hash.add(key, bytes);
        if let Some(live) = record.live_bytes() {
            contents.keys += 1;
            contents.bytes += key.len() as u64 + live;
            visit(key);
        }
        ControlFlow::Continue(())
    })?;
    Ok(outcome.map(|()| contents)?)
}
