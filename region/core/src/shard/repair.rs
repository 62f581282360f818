//! A repair's steps: what they do to a bucket, which stays closed from the first to the last of them
//! (docs/adr/2026-11-20-resync.md).
//!
//! ```text
//!            Begin                   End, and nothing waits
//!   open ──────────────► moving ───────────────────────────► open        moving: Advance, then Rows
//!                         │  ▲ Begin (again)                  ▲
//!                         └──┴──── End ────► releasing ───────┘ Unpark, the last
//! ```
//!
//! Of a bucket that this region was removed from, `GiveUp` makes void what nobody else has of its log: it stays closed until it is dropped,
//! or filled.
//!
//! While it is closed, what arrives for it in lanes is parked, and its own entries are void: they come behind a state
//! that is being exchanged. Nothing of it is read: the node sees to that.

use meridian_types::entry::Header;
use meridian_types::{BucketDigest, BucketId, Lsn, Positions, Refusal, RefusalKind, RegionId, RepairGoal, RepairMode};

use super::editor::Editor;
use super::{Answered, Shard, control, merge};
use crate::body::{RepairStepRef, RowRef};
use crate::error::ReadError;
use crate::keys;
use crate::meta::{BucketMeta, Moved, Repair, RepairPhase};
use crate::record::{Record, Stamp};
use crate::repair::{hash_of_results, state_key};
use crate::result::ControlResult;
use crate::scrub::Contents;
use crate::view::{Mutations, StateView};

/// The most waiting entries that one `Unpark` applies.
pub const RELEASED_MAX: usize = 1024;

/// What a step may touch.
pub(super) struct Step<'a> {
    pub(super) view: &'a dyn StateView,
    pub(super) out: &'a mut Mutations,
    pub(super) lsn: Lsn,
}

impl Shard {
    /// The buckets that are closed here, with the region each is made equal to, as long as it is.
    pub fn closed(&self) -> impl Iterator<Item = (BucketId, Option<RegionId>)> {
        self.buckets.iter().filter_map(|(bucket, meta)| {
            let source = match meta.repair.as_ref()?.phase {
                RepairPhase::Moving { source, .. } => Some(source),
                RepairPhase::Releasing => None,
            };
            Some((*bucket, source))
        })
    }

    /// Whether the bucket is closed here: no reads, no writes, no copy that counts.
    pub fn is_closed(&self, bucket: BucketId) -> bool {
        self.buckets.get(&bucket).is_some_and(|meta| meta.repair.is_some())
    }

    /// Whether rows of another region have taken the place of some of the bucket's already.
    pub fn has_moved(&self, bucket: BucketId) -> bool {
        let phase = self.buckets.get(&bucket).and_then(|meta| meta.repair.as_ref()).map(|repair| &repair.phase);
        matches!(phase, Some(RepairPhase::Moving { rows: Moved::Some, .. }))
    }

    /// Why no other region can be made equal to this replica of the bucket now, if none can.
    pub fn unfit_as_source(&self, bucket: BucketId) -> Option<&'static str> {
        self.buckets.get(&bucket).and_then(BucketMeta::unfit_as_source)
    }

    /// Carries out a step of a repair; also what it answered, of requests that waited.
    pub(super) fn apply_repair(
        &mut self,
        mut at: Step<'_>,
        header: &Header,
        step: &RepairStepRef<'_>,
    ) -> Result<(ControlResult, Vec<Answered>), ReadError> {
        let bucket = header.bucket;
        let mut told = Vec::new();
        let outcome = match step {
            _ if self.is_dropped(bucket) => Err(Refusal::new(RefusalKind::NotFound, "the bucket was deleted")),
            RepairStepRef::Begin { source } => self.begin_repair(bucket, *source, at.lsn),
            RepairStepRef::Rows { begun, mode, puts, deletes } => match self.check_moving(bucket, *begun) {
                Ok(()) => self.move_rows(&mut at, bucket, *mode, puts, deletes)?,
                Err(refusal) => Err(refusal),
            },
            RepairStepRef::End { begun, mode, goal } => match self.check_moving(bucket, *begun) {
                Ok(()) => self.end_repair(&mut at, bucket, *mode, goal)?,
                Err(refusal) => Err(refusal),
            },
            RepairStepRef::Unpark => Ok(self.release(&mut at, bucket, &mut told)?),
            RepairStepRef::Watch { keys } => Ok(self.watch(&mut at, bucket, keys)?),
            RepairStepRef::PassedOver { removed } => Ok(self.pass_over(&mut at, bucket, removed)?),
            RepairStepRef::Unwatch => Ok(self.unwatch(&mut at, bucket)?),
            RepairStepRef::Advance { begun, up_to } => match self.check_moving(bucket, *begun) {
                Ok(()) => Ok(self.advance(&mut at, bucket, up_to)?),
                Err(refusal) => Err(refusal),
            },
            RepairStepRef::GiveUp { begun, cut } => {
                self.check_moving(bucket, *begun).map(|()| self.give_up(bucket, *cut))
            }
        };
        self.dirty.buckets.insert(bucket);
        let result = match outcome {
            Ok((removed, more)) => control::done(removed, more),
            Err(refusal) => ControlResult { removed: 0, more: false, refused: Some(refusal) },
        };
        Ok((result, told))
    }

    fn begin_repair(&mut self, bucket: BucketId, source: RegionId, lsn: Lsn) -> Result<(u64, bool), Refusal> {
        if self.is_leaving(bucket) {
            let message = "what this region had of the bucket before it was removed from it is not gone yet";
            return Err(Refusal::new(RefusalKind::Retry, message));
        }
        if source == self.region {
            return Err(Refusal::new(RefusalKind::Invalid, "a region is not made equal to itself"));
        }
        let meta = self.buckets.entry(bucket).or_default();
        if meta.parted == Some(source) {
            let message =
                "that region was given up for lost, and nothing more of it is taken in: repair it from another one";
            return Err(Refusal::new(RefusalKind::Retry, message));
        }
        let before = meta.repair.take();
        let rows = match before.as_ref().map(|repair| &repair.phase) {
            Some(RepairPhase::Moving { rows, .. }) => *rows,
            Some(RepairPhase::Releasing) | None => Moved::None,
        };
        let void_after = before.map_or(lsn, |repair| repair.void_after);
        meta.repair = Some(Repair { void_after, phase: RepairPhase::Moving { source, begun: lsn, rows } });
        self.sessions.drop_bucket(bucket);
        Ok((0, false))
    }

    /// Steps of an attempt that another one took the place of change nothing.
    fn check_moving(&self, bucket: BucketId, begun: Lsn) -> Result<(), Refusal> {
        let repair = self.buckets.get(&bucket).and_then(|meta| meta.repair.as_ref());
        match repair.map(|repair| &repair.phase) {
            Some(RepairPhase::Moving { begun: now, .. }) if *now == begun => Ok(()),
            _ => Err(Refusal::new(RefusalKind::Conflict, "the repair was begun again, or is over")),
        }
    }

    /// Its rows are no longer those of the positions that count: nobody is made equal to them.
    fn give_up(&mut self, bucket: BucketId, cut: Lsn) -> (u64, bool) {
        self.note_moved(bucket);
        if let Some(repair) = self.buckets.get_mut(&bucket).and_then(|meta| meta.repair.as_mut()) {
            repair.void_after = repair.void_after.min(cut);
        }
        (0, false)
    }

    /// How much of the own log counts in a bucket that is closed for good, because this region was removed from it with more.
    pub fn given_up(&self, bucket: BucketId) -> Option<Lsn> {
        let meta = self.buckets.get(&bucket)?;
        let cut = meta.repair.as_ref()?.void_after;
        (cut < meta.digest.positions.of(self.region)).then_some(cut)
    }

    /// Applies some of what waited up to there. What it comes to is right only where what it is applied to was, so nobody is
    /// told of it, and the bucket has no more history than it had; `End` holds all rows to what the source said.
    fn advance(&mut self, at: &mut Step<'_>, bucket: BucketId, up_to: &Positions) -> Result<(u64, bool), ReadError> {
        self.note_moved(bucket);
        let waiting = self.waiting_before(at.view, bucket, up_to, at.out)?;
        let more = waiting.len() == RELEASED_MAX;
        let stood = self.buckets.get(&bucket).map(|meta| (meta.digest.clone(), meta.origin_hlc.clone()));
        for (key, entry) in waiting {
            self.advance_one(at, bucket, key, &entry)?;
        }
        // Their rows are exchanged next: nobody may look for one that is no longer there.
        self.sessions.drop_bucket(bucket);
        if let (Some(meta), Some((digest, origin_hlc))) = (self.buckets.get_mut(&bucket), stood) {
            let BucketDigest { hash, keys, bytes, .. } = meta.digest;
            meta.digest = BucketDigest { hash, keys, bytes, ..digest };
            meta.origin_hlc = origin_hlc;
        }
        Ok((0, more))
    }

    fn note_moved(&mut self, bucket: BucketId) {
        let meta = self.buckets.entry(bucket).or_default();
        if let Some(Repair { phase: RepairPhase::Moving { rows, .. }, .. }) = &mut meta.repair {
            *rows = Moved::Some;
        }
    }

    fn move_rows(
        &mut self,
        at: &mut Step<'_>,
        bucket: BucketId,
        mode: RepairMode,
        puts: &[RowRef<'_>],
        deletes: &[&[u8]],
    ) -> Result<Result<(u64, bool), Refusal>, ReadError> {
        // All of them are checked before any is moved: they come from another region.
        let sensible = |key: &[u8]| state_key(self.id, bucket, key).is_some();
        let readable = |row: &RowRef<'_>| row.key.first() != Some(&keys::DATA) || Record::decode(row.value).is_ok();
        if !puts.iter().all(|row| sensible(row.key) && readable(row)) || !deletes.iter().all(|key| sensible(key)) {
            return Ok(Err(Refusal::new(RefusalKind::Corrupt, "the source gave a row that is none")));
        }
        self.note_moved(bucket);
        let meta = self.buckets.entry(bucket).or_default();
        let stamp = Stamp::default();
        let mut editor = Editor { shard: self.id, bucket, meta, view: at.view, out: at.out, stamp, watch: None };
        for row in puts {
            match row.key.split_first() {
                Some((&keys::DATA, key)) => {
                    let slot = editor.slot(key)?;
                    let record = match mode {
                        RepairMode::Replace => bytes::Bytes::copy_from_slice(row.value),
                        RepairMode::Join => merge::join(slot.record(), row.value)?,
                    };
                    editor.replace(slot, record)?;
                }
                _ => editor.out.put(state_key_of(self.id, bucket, row.key), row.value.to_vec()),
            }
        }
        for key in deletes {
            match key.split_first() {
                Some((&keys::DATA, key)) => {
                    let slot = editor.slot(key)?;
                    editor.remove(slot)?;
                }
                _ => editor.out.delete(state_key_of(self.id, bucket, key)),
            }
        }
        Ok(Ok((deletes.len() as u64, false)))
    }

    /// The rows take the source's positions, if they are what the source said.
    fn end_repair(
        &mut self,
        at: &mut Step<'_>,
        bucket: BucketId,
        mode: RepairMode,
        goal: &RepairGoal,
    ) -> Result<Result<(u64, bool), Refusal>, ReadError> {
        let refuse = |kind, why: &str| Ok(Err(Refusal::new(kind, why)));
        if goal.epoch < self.epoch(bucket) {
            return refuse(RefusalKind::Fenced, "the source is in an epoch that has ended here");
        }
        if goal.digest.positions.of(self.region) > self.meta.applied {
            return refuse(
                RefusalKind::Corrupt,
                "the source knows more of this region's own log than this region: was an old copy of its data directory brought back?",
            );
        }
        if self.has_left(bucket) && goal.epoch <= self.epoch(bucket) {
            return refuse(RefusalKind::Fenced, "this region was removed from the bucket as of the source's epoch");
        }
        let meta = self.buckets.entry(bucket).or_default();
        match mode {
            RepairMode::Replace => {
                let equal = Contents::of(&meta.digest) == Contents::of(&goal.digest)
                    && hash_of_results(&at.out.over(at.view), self.id, bucket)? == goal.results;
                if !equal {
                    return refuse(RefusalKind::Conflict, "the rows do not add up to what the source said");
                }
                meta.digest = goal.digest.clone();
                meta.origin_hlc.clone_from(&goal.origin_hlc);
            }
            RepairMode::Join => join_meta(meta, goal),
        }
        let void_after = match mode {
            RepairMode::Replace => goal.digest.positions.of(self.region),
            RepairMode::Join => Lsn(u64::MAX),
        };
        if let Some(repair) = &mut meta.repair {
            repair.void_after = repair.void_after.min(void_after);
            repair.phase = RepairPhase::Releasing;
        }
        (meta.divergence, meta.astray, meta.left) = (None, None, None);
        if goal.epoch > meta.epoch() {
            meta.begin(at.lsn, goal.epoch);
        }
        self.meta.greatest_hlc = self.meta.greatest_hlc.max(goal.digest.hlc);
        self.sessions.reload(&at.out.over(at.view), self.id, bucket)?;
        self.release_some(at, bucket, 0, &mut Vec::new()).map(Ok)
    }

    /// Applies some of what waited.
    fn release(
        &mut self,
        at: &mut Step<'_>,
        bucket: BucketId,
        told: &mut Vec<Answered>,
    ) -> Result<(u64, bool), ReadError> {
        let phase = self.buckets.get(&bucket).and_then(|meta| meta.repair.as_ref()).map(|repair| &repair.phase);
        match phase {
            Some(RepairPhase::Releasing) => self.release_some(at, bucket, RELEASED_MAX, told),
            Some(RepairPhase::Moving { .. }) | None => Ok((0, false)),
        }
    }

    /// Opens the bucket once nothing waits that could be applied.
    fn release_some(
        &mut self,
        at: &mut Step<'_>,
        bucket: BucketId,
        most: usize,
        told: &mut Vec<Answered>,
    ) -> Result<(u64, bool), ReadError> {
        let more = self.unpark(at.view, bucket, most, at.out, told)?;
        if !more && let Some(meta) = self.buckets.get_mut(&bucket) {
            meta.open(at.lsn);
        }
        Ok((0, more))
    }

    /// Closes the bucket because more waits for the epoch that has just begun than one step may apply.
    pub(super) fn close_to_release(&mut self, bucket: BucketId) {
        let void_after = self.meta.applied;
        let meta = self.buckets.entry(bucket).or_default();
        meta.repair = Some(Repair { void_after, phase: RepairPhase::Releasing });
        self.dirty.buckets.insert(bucket);
    }
}

/// The state key of a row key that was checked.
fn state_key_of(shard: meridian_types::ShardId, bucket: BucketId, row: &[u8]) -> Vec<u8> {
    state_key(shard, bucket, row).unwrap_or_default()
}

/// What both have seen together. Counts of operations can't be told apart by origin: the greater is a lower bound.
fn join_meta(meta: &mut BucketMeta, goal: &RepairGoal) {
    let (digest, theirs) = (&mut meta.digest, &goal.digest);
    let Positions(positions) = &theirs.positions;
    positions.iter().for_each(|(origin, lsn)| digest.positions.raise(*origin, *lsn));
    digest.operations = digest.operations.max(theirs.operations);
    digest.operation_bytes = digest.operation_bytes.max(theirs.operation_bytes);
    digest.hlc = digest.hlc.max(theirs.hlc);
    digest.last_removal = digest.last_removal.max(theirs.last_removal);
    for (origin, hlc) in &goal.origin_hlc {
        let known = meta.origin_hlc.entry(*origin).or_default();
        *known = (*known).max(*hlc);
    }
}
