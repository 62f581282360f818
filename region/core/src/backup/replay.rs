//! A bucket in a shard of which the log is told again, from one backup on: by the very state machine that applied it, so every moment
//! on the way is what it was.
//!
//! What that machine needs besides the rows is kept in a backup as its *context*: where the shard stood, how far it had other
//! regions' lanes, the metadata of the bucket, and the results that its clients may ask for again (ONE-1).

use std::ops::ControlFlow;

use bytes::Bytes;
use meridian_types::{BackupRow, BucketId, Lsn, RegionId, ShardId};

use crate::error::{ApplyError, Damage, LoadError, ReadError};
use crate::keys;
use crate::scrub::Contents;
use crate::shard::Shard;
use crate::view::{MemoryState, Mutations, StateView};

/// What is kept besides the rows, behind the state key `after`, from about `bytes_max` bytes on no more; none at the end.
///
/// # Errors
/// [`ReadError`] when the state can't be read.
pub fn context(
    view: &dyn StateView,
    (shard, bucket): (ShardId, BucketId),
    after: &[u8],
    bytes_max: usize,
) -> Result<Vec<BackupRow>, ReadError> {
    let (mut rows, mut bytes) = (Vec::new(), 0);
    for (from, to) in ranges(shard, bucket) {
        // The first key behind a key is that key with a zero byte at its end.
        let from = if from.as_slice() <= after { [after, &[0]].concat() } else { from };
        if from >= to || bytes >= bytes_max {
            continue;
        }
        view.scan(&from, &to, &mut |key, value| {
            bytes += key.len() + value.len();
            rows.push(BackupRow { key: Bytes::copy_from_slice(key), record: Bytes::copy_from_slice(value) });
            if bytes < bytes_max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
    }
    Ok(rows)
}

/// Where it is in the state, in the order of the keys.
fn ranges(shard: ShardId, bucket: BucketId) -> [(Vec<u8>, Vec<u8>); 3] {
    let meta = keys::bucket_meta(shard, bucket);
    let behind = [meta.as_slice(), &[0]].concat();
    [keys::positions_range(shard), (meta, behind), keys::results_of_bucket(shard, bucket)]
}

/// The state on the way.
pub struct Replay {
    shard: Shard,
    bucket: BucketId,
    state: MemoryState,
}

impl Replay {
    /// Begins with what a backup has of a shard of a region, in a cluster of so many shards (as whoever applied it was told): its context, and the rows that what is
    /// applied touches.
    ///
    /// # Errors
    /// [`LoadError`] when that is not what a backup keeps.
    pub fn new(
        (region, shard, shards): (RegionId, ShardId, Option<u16>),
        bucket: BucketId,
        context: &[BackupRow],
        rows: &[BackupRow],
    ) -> Result<Replay, LoadError> {
        let (mut state, mut out) = (MemoryState::default(), Mutations::new());
        let ranges = ranges(shard, bucket);
        for row in context {
            let key = row.key.as_ref();
            if !ranges.iter().any(|(from, to)| from.as_slice() <= key && key < to.as_slice()) {
                return Err(Damage { what: "context of a backup" }.into());
            }
            out.put(key.to_vec(), row.record.clone());
        }
        for row in rows {
            out.put(keys::data(shard, bucket, &row.key), row.record.clone());
        }
        state.commit(out);
        let shard = Shard::load(&state, region, shard)?;
        let shard = match shards {
            Some(shards) => shard.with_shards(shards),
            None => shard,
        };
        Ok(Replay { shard, bucket, state })
    }

    /// The next entry, as the backup keeps it.
    ///
    /// # Errors
    /// [`ApplyError`] when it is damaged: what came before is right, and nothing more is to be had of it.
    pub fn apply(&mut self, lsn: Lsn, entry: &[u8]) -> Result<(), ApplyError> {
        let mut out = Mutations::new();
        self.shard.apply(&self.state, lsn, entry, &mut out)?;
        self.state.commit(out);
        Ok(())
    }

    /// What the bucket's rows add up to now.
    pub fn contents(&self) -> Contents {
        self.shard.digest(self.bucket).map(Contents::of).unwrap_or_default()
    }

    /// What it has of a key now.
    ///
    /// # Errors
    /// [`ReadError`] when the state can't be read.
    pub fn record(&self, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        Ok(self.state.get(&keys::data(self.shard.id(), self.bucket, key))?)
    }
}
