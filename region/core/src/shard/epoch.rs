//! The epoch of a bucket that is in force in this shard: it begins with a seal, and what came too early for it waits.
//!
//! A seal is the last entry of its epoch, in the primary's log and, shipped like a write, in every other region
//! (docs/adr/2026-11-20-seals.md). So a replica that has applied it has the whole epoch, in order (ORD-1), and an entry
//! of a later epoch that overtakes it, on the way from another region, is parked: durable, not readable, and
//! applied in the very step that applies the seal.
//!
//! ```text
//! entry's epoch  < current: fenced (FEN-2)   = current: applied   > current: parked, up to a bound
//! ```
//!
//! Where every region writes no seal can divide epochs; there each region begins the next one by itself, where all of them stand at
//! the same place (docs/adr/2026-11-28-active-active-region-sets.md).
//!
//! After a failover the new primary seals the dead one's epoch, and its seal says what the epoch came to. A replica that has
//! less, or more, has gone *astray*: it applies nothing further until it is repaired.

use std::ops::ControlFlow;

use bytes::Bytes;
use meridian_types::entry::{Header, Kind};
use meridian_types::{BucketId, Epoch, Lsn, Positions, RegionId};

use super::repair::{RELEASED_MAX, Step};
use super::{Answered, Shard, answered, control};
use crate::body::{self, BodyRef};
use crate::error::{Damage, ReadError};
use crate::keys;
use crate::meta::{Astray, BucketMeta};
use crate::result::{ControlResult, FrameResult};
use crate::view::{Mutations, StateView};

/// The most entries of one bucket that wait for a seal: what another region writes while the old primary's last frame
/// is on its way, many times over. Beyond it the lane waits (RES-1).
pub const PARKED_ENTRIES_MAX: usize = 4096;

/// The most bytes of them.
pub const PARKED_BYTES_MAX: usize = 16 << 20;

/// The most bytes that wait for the end of a repair, on disk: hours of an ordinary load. Beyond it the lane waits.
pub const CLOSED_BYTES_MAX: usize = 1 << 30;

/// The most entries that do.
pub const CLOSED_ENTRIES_MAX: usize = 8 << 20;

/// What waits for a seal, or for the end of a repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Parked {
    entries: usize,
    bytes: usize,
}

impl Parked {
    fn add(&mut self, bytes: usize) {
        self.entries += 1;
        self.bytes += bytes;
    }

    /// The most that may wait.
    fn most(closed: bool) -> Parked {
        if closed {
            Parked { entries: CLOSED_ENTRIES_MAX, bytes: CLOSED_BYTES_MAX }
        } else {
            Parked { entries: PARKED_ENTRIES_MAX, bytes: PARKED_BYTES_MAX }
        }
    }

    fn is_full(self, closed: bool) -> bool {
        let most = Parked::most(closed);
        self.entries > most.entries || self.bytes > most.bytes
    }
}

/// Follows, entry by entry, where a frame would leave the epochs of the buckets in it, before any of it is applied.
pub(super) struct Foresight<'a> {
    shard: &'a Shard,
    seen: std::collections::BTreeMap<BucketId, (Epoch, Parked)>,
}

impl<'a> Foresight<'a> {
    pub(super) fn new(shard: &'a Shard) -> Foresight<'a> {
        Foresight { shard, seen: std::collections::BTreeMap::new() }
    }

    /// Refuses the frame, for now, when it would park too much.
    pub(super) fn admit(&mut self, header: &Header, body: &BodyRef<'_>, bytes: usize) -> Result<(), FrameResult> {
        let (shard, bucket) = (self.shard, header.bucket);
        if shard.passes_over(header) {
            return Ok(());
        }
        // What comes for a bucket that is yet to be filled waits as what comes for one that is being filled.
        let closed = shard.is_closed(bucket) || shard.has_left(bucket);
        let (epoch, parked) = self.seen.entry(bucket).or_insert_with(|| (shard.epoch(bucket), shard.parked(bucket)));
        let waits = match body {
            _ if closed || shard.astray(bucket).is_some() => true,
            BodyRef::Seal { next, .. } if header.epoch == *epoch => {
                *epoch = *next;
                false
            }
            _ => header.epoch > *epoch,
        };
        if waits {
            parked.add(bytes);
        }
        // What doesn't wait may be the seal that the others wait for.
        if waits && parked.is_full(closed) { Err(FrameResult::Early { bucket, epoch: *epoch }) } else { Ok(()) }
    }
}

impl Shard {
    /// The epoch of the bucket that is in force here: 1 until a seal says otherwise.
    pub fn epoch(&self, bucket: BucketId) -> Epoch {
        self.buckets.get(&bucket).map_or(Epoch(1), BucketMeta::epoch)
    }

    /// Set when the bucket must be repaired here, because another region sealed an epoch that ended otherwise here.
    pub fn astray(&self, bucket: BucketId) -> Option<Astray> {
        self.buckets.get(&bucket).and_then(|meta| meta.astray)
    }

    /// Whether a seal ends the epoch in force, as it stands here.
    pub(super) fn follows(&self, header: &Header, next: Epoch, after: &Positions) -> bool {
        let positions = self.buckets.get(&header.bucket).map(|meta| &meta.digest.positions);
        let stands = |(region, lsn): (&RegionId, &Lsn)| positions.map(|it| it.of(*region)).unwrap_or_default() == *lsn;
        header.epoch == self.epoch(header.bucket) && next > header.epoch && after.0.iter().all(stands)
    }

    /// Whether an entry is of a region that was given up for lost here, and of the epoch in force: what was heard of that region stands
    /// still, and its lane waits until that is settled. It is not parked: a copy that may be passed over is none (DUR-2).
    pub(super) fn has_parted_from(&self, header: &Header) -> bool {
        let meta = self.buckets.get(&header.bucket);
        meta.is_some_and(|meta| meta.parted == Some(header.origin) && meta.epoch() == header.epoch)
    }

    /// Begins the next epoch of an active-active bucket, if this region stopped for that crossing and stands where it is said that all
    /// stood: then nothing can be missing in the epoch that ends, and nothing be added to it.
    pub(super) fn apply_raise(
        &mut self,
        at: Step<'_>,
        header: &Header,
        (index, next): (u64, Epoch),
        after: &Positions,
    ) -> Result<(ControlResult, Vec<Answered>), ReadError> {
        let (bucket, mut told) = (header.bucket, Vec::new());
        let stands = |meta: &&mut BucketMeta| {
            let stopped = meta.stop.is_some_and(|stop| stop.stopped && stop.index == index);
            let whole = meta.repair.is_none() && meta.astray.is_none() && meta.divergence.is_none();
            let there = meta.epoch() == header.epoch && next > header.epoch && meta.digest.positions == *after;
            stopped && whole && there && !meta.dropped && meta.left.is_none()
        };
        if let Some(meta) = self.buckets.get_mut(&bucket).filter(stands) {
            meta.begin(at.lsn, next);
            self.dirty.buckets.insert(bucket);
            if self.is_crowded(bucket) {
                self.close_to_release(bucket);
            } else {
                self.unpark(at.view, bucket, usize::MAX, at.out, &mut told)?;
            }
        }
        Ok((control::done(0, false), told))
    }

    /// Notes that another region sealed an epoch otherwise than it ended here.
    fn go_astray(&mut self, header: &Header, epoch: Epoch, after: &Positions) {
        let astray = Astray { from: header.origin, epoch, cut: after.of(self.region) };
        self.buckets.entry(header.bucket).or_default().astray = Some(astray);
        self.dirty.buckets.insert(header.bucket);
    }

    /// Epoch and fence of the buckets that have left the first epoch behind, or are about to.
    pub fn epochs(&self) -> impl Iterator<Item = (BucketId, Epoch, Epoch)> {
        let epochs = self.buckets.iter().map(|(bucket, meta)| (*bucket, meta.epoch(), meta.fence()));
        epochs.filter(|(_, epoch, fence)| *epoch.max(fence) > Epoch(1))
    }

    /// Whether entries of the bucket wait here for the end of an epoch: then it is behind, whatever its lanes say.
    pub fn waits_for_seal(&self, bucket: BucketId) -> bool {
        self.parked.contains_key(&bucket)
    }

    /// Operations and bytes of what waits here for the end of an epoch: durable, but of no use without that end.
    pub fn waiting(&self, bucket: BucketId) -> (u64, u64) {
        let parked = self.parked(bucket);
        (parked.entries as u64, parked.bytes as u64)
    }

    /// The most that may wait here for the bucket, as [`Shard::waiting`] counts it (RES-1).
    pub fn waiting_max(&self, bucket: BucketId) -> (u64, u64) {
        let most = Parked::most(self.is_closed(bucket) || self.has_left(bucket));
        (most.entries as u64, most.bytes as u64)
    }

    fn parked(&self, bucket: BucketId) -> Parked {
        self.parked.get(&bucket).copied().unwrap_or_default()
    }

    /// Counts what the state has parked.
    pub(super) fn load_parked(&mut self, view: &dyn StateView) -> Result<(), ReadError> {
        let (from, to) = keys::parked_of_shard(self.id);
        let mut damage = None;
        view.scan(&from, &to, &mut |key, entry| match keys::parse_parked(key) {
            Some((bucket, ..)) => {
                self.parked.entry(bucket).or_default().add(entry.len());
                ControlFlow::Continue(())
            }
            None => {
                damage = Some(Damage { what: "entry that waits for a seal" });
                ControlFlow::Break(())
            }
        })?;
        damage.map_or(Ok(()), |damage| Err(damage.into()))
    }

    /// Keeps an entry for the epoch it belongs to.
    pub(super) fn park(&mut self, lsn: Lsn, header: &Header, entry: &Bytes, out: &mut Mutations) {
        self.parked.entry(header.bucket).or_default().add(entry.len());
        let last = header.kind == Kind::Seal;
        out.put(keys::parked(self.id, header.bucket, header.epoch, last, header.origin, lsn), entry.clone());
    }

    /// Whether more waits for the bucket than one step may apply.
    pub(super) fn is_crowded(&self, bucket: BucketId) -> bool {
        self.parked(bucket).is_full(false)
    }

    /// Applies what waited for the epoch that is now in force, and for those that it ends in turn, at most `most` entries;
    /// tells whether there is more. What waited for an epoch that was passed over has no place in the history, and what
    /// a repair has brought already is not applied again.
    pub(super) fn unpark(
        &mut self,
        view: &dyn StateView,
        bucket: BucketId,
        most: usize,
        out: &mut Mutations,
        told: &mut Vec<Answered>,
    ) -> Result<bool, ReadError> {
        let mut left = most;
        while self.parked.contains_key(&bucket) {
            let waiting = self.waiting_up_to(view, bucket, left, out)?;
            if waiting.is_empty() || left == 0 {
                return Ok(!waiting.is_empty());
            }
            left -= waiting.len();
            for (key, entry) in waiting {
                self.unpark_one(view, bucket, (key, entry), out, told)?;
            }
        }
        Ok(false)
    }

    fn unpark_one(
        &mut self,
        view: &dyn StateView,
        bucket: BucketId,
        (key, entry): (Vec<u8>, Bytes),
        out: &mut Mutations,
        told: &mut Vec<Answered>,
    ) -> Result<(), ReadError> {
        self.make_room(bucket, entry.len());
        let (_, epoch, origin, lsn) = keys::parse_parked(&key).ok_or(DAMAGED)?;
        out.delete(key);
        let continues = epoch == self.epoch(bucket) && lsn > self.position(bucket, origin);
        if continues && self.astray(bucket).is_none() {
            let header = Header::decode(&entry).map_err(|_| DAMAGED)?;
            let body = body::decode(&header, &entry).map_err(|_| DAMAGED)?;
            told.extend(self.continue_history(view, out, lsn, &header, entry.len(), &body)?);
        }
        Ok(())
    }

    /// Applies an entry of another region that belongs to the epoch in force; a seal that does not fit leads astray.
    pub(super) fn continue_history(
        &mut self,
        view: &dyn StateView,
        out: &mut Mutations,
        lsn: Lsn,
        header: &Header,
        entry_bytes: usize,
        body: &BodyRef<'_>,
    ) -> Result<Vec<Answered>, ReadError> {
        if let BodyRef::Seal { next, after } = body
            && !self.follows(header, *next, after)
        {
            self.go_astray(header, *next, after);
            return Ok(Vec::new());
        }
        let result = self.apply_history(view, out, lsn, header, entry_bytes, body)?;
        Ok(answered(header, &result))
    }

    /// Removes what waits for the epoch in force or an earlier one, at most [`RELEASED_MAX`] entries; tells how many.
    pub(super) fn pass_over_parked(
        &mut self,
        view: &dyn StateView,
        bucket: BucketId,
        out: &mut Mutations,
    ) -> Result<usize, ReadError> {
        let waiting = self.waiting_up_to(view, bucket, RELEASED_MAX, out)?;
        for (key, entry) in &waiting {
            self.make_room(bucket, entry.len());
            out.delete(key.clone());
        }
        Ok(waiting.len())
    }

    /// The first of what waits and is part of a history up to there, whatever the epoch in force: at most
    /// [`RELEASED_MAX`] entries.
    pub(super) fn waiting_before(
        &self,
        view: &dyn StateView,
        bucket: BucketId,
        up_to: &Positions,
        out: &Mutations,
    ) -> Result<Vec<(Vec<u8>, Bytes)>, ReadError> {
        let (from, to) = keys::parked_of_bucket(self.id, bucket);
        let mut waiting = Vec::new();
        out.over(view).scan(&from, &to, &mut |key, entry| {
            if keys::parse_parked(key).is_some_and(|(_, _, origin, lsn)| lsn <= up_to.of(origin)) {
                waiting.push((key.to_vec(), Bytes::copy_from_slice(entry)));
            }
            if waiting.len() < RELEASED_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(waiting)
    }

    /// Applies an entry that waited to a bucket whose rows are being exchanged. A seal changes no row.
    pub(super) fn advance_one(
        &mut self,
        at: &mut Step<'_>,
        bucket: BucketId,
        key: Vec<u8>,
        entry: &Bytes,
    ) -> Result<(), ReadError> {
        self.make_room(bucket, entry.len());
        let (_, _, origin, lsn) = keys::parse_parked(&key).ok_or(DAMAGED)?;
        at.out.delete(key);
        let header = Header::decode(entry).map_err(|_| DAMAGED)?;
        if lsn > self.position(bucket, origin) && header.kind != Kind::Seal {
            let body = body::decode(&header, entry).map_err(|_| DAMAGED)?;
            self.apply_history(at.view, at.out, lsn, &header, entry.len(), &body)?;
        }
        Ok(())
    }

    /// The first of what waits for the epoch in force or an earlier one: at most `most` entries, but one at least.
    fn waiting_up_to(
        &self,
        view: &dyn StateView,
        bucket: BucketId,
        most: usize,
        out: &Mutations,
    ) -> Result<Vec<(Vec<u8>, Bytes)>, ReadError> {
        let (from, to) = keys::parked_up_to(self.id, bucket, self.epoch(bucket));
        let mut waiting = Vec::new();
        out.over(view).scan(&from, &to, &mut |key, entry| {
            waiting.push((key.to_vec(), Bytes::copy_from_slice(entry)));
            if waiting.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(waiting)
    }

    fn make_room(&mut self, bucket: BucketId, bytes: usize) {
        if let Some(parked) = self.parked.get_mut(&bucket) {
            parked.entries = parked.entries.saturating_sub(1);
            parked.bytes = parked.bytes.saturating_sub(bytes);
            if parked.entries == 0 {
                self.parked.remove(&bucket);
            }
        }
    }
}

const DAMAGED: Damage = Damage { what: "entry that waits for a seal" };
