//! Recomputing from the records what is otherwise kept up incrementally: how a scrub finds silent damage (DUR-3).

use std::ops::ControlFlow;

use meridian_types::{BucketDigest, BucketId, SetHash, ShardId};

use crate::error::{Damage, ReadError};
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

    /// Counts a record in; tells whether its key is live.
    ///
    /// # Errors
    /// [`Damage`] when it is no record.
    pub fn add(&mut self, key: &[u8], record: &[u8]) -> Result<bool, Damage> {
        let live = Record::decode(record)?.live_bytes();
        self.hash.add(key, record);
        if let Some(live) = live {
            self.keys += 1;
            self.bytes += key.len() as u64 + live;
        }
        Ok(live.is_some())
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
        let key = state_key.get(keys::DATA_PREFIX_BYTES..).unwrap_or_default();
        match contents.add(key, bytes) {
            Ok(true) => visit(key),
            Ok(false) => {}
            Err(damage) => {
                outcome = Err(damage);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })?;
    Ok(outcome.map(|()| contents)?)
}
