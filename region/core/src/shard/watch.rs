//! Which keys of salvage bundles were removed since: absence alone does not tell "never there" from "deleted" (SWI-2).
//!
//! A key that is watched has a row of its own, with the place in the own log of its last removal. It moves with the state in
//! one step, whatever is purged from logs; a repair, which passes over a part of the history, is told what it passes over.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use bytes::Bytes;
use meridian_types::{BucketId, Lsn, ShardId};

use super::repair::Step;
use super::{Shard, control};
use crate::error::{Damage, ReadError};
use crate::keys;
use crate::view::{Mutations, StateView};

/// Removed since never.
const NEVER: Lsn = Lsn(0);

impl Shard {
    /// Whether removals of some keys of the bucket are remembered here.
    pub fn is_watched(&self, bucket: BucketId) -> bool {
        self.watched.contains(&bucket)
    }

    /// A key that was watched before stays as it is: an earlier bundle may want to know.
    pub(super) fn watch(
        &mut self,
        at: &mut Step<'_>,
        bucket: BucketId,
        keys: &[&[u8]],
    ) -> Result<(u64, bool), ReadError> {
        for key in keys {
            let row = keys::watched(self.id, bucket, key);
            if at.out.over(at.view).get(&row)?.is_none() {
                at.out.put(row, encode(NEVER));
            }
        }
        self.watched.insert(bucket);
        Ok((0, false))
    }

    pub(super) fn pass_over(
        &mut self,
        at: &mut Step<'_>,
        bucket: BucketId,
        removed: &[&[u8]],
    ) -> Result<(u64, bool), ReadError> {
        for key in removed {
            note(at.view, at.out, (self.id, bucket), key, at.lsn)?;
        }
        Ok((0, false))
    }

    pub(super) fn unwatch(&mut self, at: &mut Step<'_>, bucket: BucketId) -> Result<(u64, bool), ReadError> {
        let (removed, more) = control::remove_some(at.view, &[keys::watched_of_bucket(self.id, bucket)], at.out)?;
        if !more {
            self.watched.remove(&bucket);
        }
        Ok((removed, more))
    }
}

/// Remembers a removal, if the key is watched.
pub(super) fn note(
    view: &dyn StateView,
    out: &mut Mutations,
    (shard, bucket): (ShardId, BucketId),
    key: &[u8],
    at: Lsn,
) -> Result<(), ReadError> {
    let row = keys::watched(shard, bucket, key);
    if out.over(view).get(&row)?.is_some() {
        out.put(row, encode(at));
    }
    Ok(())
}

/// Where in the own log a key was removed last since it has been watched, `Lsn(0)` for never; `None` when it is not watched.
///
/// # Errors
/// [`ReadError`] when the state can't be read or is damaged.
pub fn removed_at(
    view: &dyn StateView,
    shard: ShardId,
    bucket: BucketId,
    key: &[u8],
) -> Result<Option<Lsn>, ReadError> {
    let Some(row) = view.get(&keys::watched(shard, bucket, key))? else { return Ok(None) };
    let at: [u8; 8] = row.as_ref().try_into().map_err(|_| Damage { what: "watched key" })?;
    Ok(Some(Lsn(u64::from_be_bytes(at))))
}

fn encode(at: Lsn) -> Bytes {
    Bytes::copy_from_slice(&at.0.to_be_bytes())
}

/// The buckets with watched keys.
pub(super) fn load(view: &dyn StateView, shard: ShardId) -> Result<BTreeSet<BucketId>, ReadError> {
    let mut buckets = BTreeSet::new();
    loop {
        let (from, to) = keys::watched_behind(shard, buckets.last().copied());
        let mut found = None;
        view.scan(&from, &to, &mut |key, _| {
            found = keys::parse_watched(key);
            ControlFlow::Break(())
        })?;
        match found {
            Some(bucket) => buckets.insert(bucket),
            None => return Ok(buckets),
        };
    }
}
