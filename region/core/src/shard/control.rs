//! Entries that no client waits for and no other region sees: fences, stops, removal of dropped buckets and of those
//! this region was removed from,
//! forgetting of silent clients. Each does a bounded amount of work; the leader proposes again while
//! there is more.

use std::ops::ControlFlow;

use meridian_types::entry::Header;
use meridian_types::{BucketId, Epoch, Hlc, Lsn, RegionId};

use super::Shard;
use super::repair::RELEASED_MAX;
use crate::error::ReadError;
use crate::keys;
use crate::meta::{BucketMeta, Left};
use crate::result::ControlResult;
use crate::view::{Mutations, StateView};

/// The most state keys one entry removes: a few milliseconds of work, a batch of a few hundred KiB.
pub const REMOVALS_MAX: usize = 4096;

impl Shard {
    /// Refuses lower epochs of the bucket from here on (FEN-2).
    pub(super) fn apply_fence(&mut self, lsn: Lsn, header: &Header) -> ControlResult {
        let meta = self.buckets.entry(header.bucket).or_default();
        if !meta.dropped {
            meta.raise_fence(lsn, header.epoch);
            self.dirty.buckets.insert(header.bucket);
        }
        done(0, false)
    }

    /// Stops ordering in the epoch in force, or goes on. Of another epoch it means nothing.
    pub(super) fn apply_stop(&mut self, lsn: Lsn, header: &Header, index: u64, stops: bool) -> ControlResult {
        self.halt(header, |meta| if stops { meta.part(lsn, index, None) } else { meta.stop(lsn, index, false) })
    }

    /// Stops, and takes in nothing more of a region that is lost.
    pub(super) fn apply_part(&mut self, lsn: Lsn, header: &Header, index: u64, from: RegionId) -> ControlResult {
        self.halt(header, |meta| meta.part(lsn, index, Some(from)))
    }

    fn halt(&mut self, header: &Header, change: impl FnOnce(&mut BucketMeta)) -> ControlResult {
        let meta = self.buckets.entry(header.bucket).or_default();
        if !meta.dropped && meta.left.is_none() && header.epoch == meta.epoch() {
            change(meta);
            self.dirty.buckets.insert(header.bucket);
        }
        done(0, false)
    }

    /// Removes what a bucket left behind that was deleted, or that this region was removed from as of the entry's epoch (0: it was
    /// deleted), some of it at a time, and remembers that it is gone.
    pub(super) fn apply_drop(
        &mut self,
        view: &dyn StateView,
        lsn: Lsn,
        header: &Header,
        out: &mut Mutations,
    ) -> Result<ControlResult, ReadError> {
        let bucket = header.bucket;
        if header.epoch == Epoch(0) {
            self.forget(bucket, BucketMeta { dropped: true, ..BucketMeta::default() });
            self.parked.remove(&bucket);
            let (removed, more) = remove_some(view, &[keys::parked_of_bucket(self.id, bucket)], out)?;
            let rows = self.remove_rows(view, bucket, out)?;
            return Ok(done(removed + rows.removed, more || rows.more));
        }
        let meta = self.buckets.get(&bucket).cloned().unwrap_or_default();
        // Whoever proposed it did not know that the region has joined again since, or that the bucket was deleted.
        if meta.dropped || meta.epoch() > header.epoch {
            return Ok(done(0, false));
        }
        let started = meta.left == Some(Left::Dropping) && meta.epoch() == header.epoch;
        if !started {
            self.forget(bucket, meta.left_behind(lsn, header.epoch));
        }
        let mut result = self.remove_rows(view, bucket, out)?;
        if !result.more {
            // What waits for a later epoch may be nowhere else: the region may join again in it, and its lane has passed it.
            let passed = self.pass_over_parked(view, bucket, out)?;
            result = done(result.removed + passed as u64, passed == RELEASED_MAX);
        }
        if !result.more
            && let Some(meta) = self.buckets.get_mut(&bucket)
        {
            meta.left = Some(Left::Dropped);
            self.dirty.buckets.insert(bucket);
        }
        Ok(result)
    }

    fn forget(&mut self, bucket: BucketId, meta: BucketMeta) {
        self.buckets.insert(bucket, meta);
        self.dirty.buckets.insert(bucket);
        self.sessions.drop_bucket(bucket);
        self.watched.remove(&bucket);
        self.kept_out.retain(|(of, _), _| *of != bucket);
    }

    fn remove_rows(
        &self,
        view: &dyn StateView,
        bucket: BucketId,
        out: &mut Mutations,
    ) -> Result<ControlResult, ReadError> {
        let ranges = [keys::data_range, keys::expiry_range, keys::results_of_bucket, keys::watched_of_bucket];
        let (removed, more) = remove_some(view, &ranges.map(|range| range(self.id, bucket)), out)?;
        Ok(done(removed, more))
    }

    /// Forgets clients that no entry to come will recognise any more.
    pub(super) fn apply_expire_clients(&mut self, before: Hlc, out: &mut Mutations) -> ControlResult {
        let buckets = &self.buckets;
        let last = |bucket, origin| {
            buckets.get(&bucket).and_then(|meta: &BucketMeta| meta.origin_hlc.get(&origin)).copied().unwrap_or_default()
        };
        let (removed, more) = self.sessions.expire(self.id, before, &last, REMOVALS_MAX, out);
        done(removed, more)
    }
}

/// Removes what is in the ranges, at most [`REMOVALS_MAX`]: how many, and whether there are more.
pub(super) fn remove_some(
    view: &dyn StateView,
    ranges: &[(Vec<u8>, Vec<u8>)],
    out: &mut Mutations,
) -> Result<(u64, bool), ReadError> {
    let mut left = Vec::new();
    for (from, to) in ranges {
        out.over(view).scan(from, to, &mut |key, _| {
            left.push(key.to_vec());
            if left.len() > REMOVALS_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if left.len() > REMOVALS_MAX {
            break;
        }
    }
    let more = left.len() > REMOVALS_MAX;
    left.truncate(REMOVALS_MAX);
    let removed = left.len() as u64;
    left.into_iter().for_each(|key| out.delete(key));
    Ok((removed, more))
}

pub(super) fn done(removed: u64, more: bool) -> ControlResult {
    ControlResult { removed, more, refused: None }
}
