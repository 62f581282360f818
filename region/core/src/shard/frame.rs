//! A frame of another region's entries: all of it is checked before any of it is applied, then entries
//! and watermark move in one step (ORD-1).

use bytes::Bytes;
use meridian_types::entry::{HEADER_BYTES, Header};
use meridian_types::frame::{DigestNote, Frame};
use meridian_types::{BucketDigest, BucketId, Lsn, RegionId};

use super::epoch::Foresight;
use super::{Applied, FrameApplied, Shard};
use crate::body::{self, BodyRef};
use crate::error::ReadError;
use crate::meta::BucketMeta;
use crate::result::{Divergence, FrameResult};
use crate::view::{Mutations, StateView};

/// An entry of a frame, checked.
type Checked<'a> = (Lsn, Header, &'a Bytes, BodyRef<'a>);

impl Shard {
    /// Applies the frame inside an own entry.
    pub(super) fn apply_frame(
        &mut self,
        view: &dyn StateView,
        entry: &[u8],
        out: &mut Mutations,
    ) -> Result<Applied, ReadError> {
        let frame = match Frame::decode(entry.get(HEADER_BYTES..).unwrap_or_default()) {
            Ok(frame) => frame,
            Err(error) => return Ok(refused(FrameResult::Damaged { reason: error.to_string() })),
        };
        let entries = match self.check(&frame) {
            Ok(entries) => entries,
            Err(result) => {
                if let FrameResult::Fenced { bucket, .. } = result {
                    self.kept_out.insert((bucket, frame.header.source), self.epoch(bucket));
                }
                return Ok(refused(result));
            }
        };
        let mut answered = Vec::new();
        for (lsn, header, entry, body) in entries {
            if self.passes_over(&header) || lsn <= self.position(header.bucket, frame.header.source) {
                continue;
            }
            let bucket = header.bucket;
            if self.is_closed(bucket) || self.astray(bucket).is_some() || header.epoch > self.epoch(bucket) {
                self.park(lsn, &header, entry, out);
                continue;
            }
            answered.extend(self.continue_history(view, out, lsn, &header, entry.len(), &body)?);
            match body {
                BodyRef::Seal { .. } if self.is_crowded(bucket) => self.close_to_release(bucket),
                BodyRef::Seal { .. } => {
                    self.unpark(view, bucket, usize::MAX, out, &mut answered)?;
                }
                _ => {}
            }
        }
        let (source, lane, watermark) = (frame.header.source, frame.header.lane, frame.header.last);
        self.watermarks.insert((source, lane), watermark);
        self.dirty.watermarks.insert((source, lane));
        let diverged = self.compare(&frame.notes);
        let result = FrameResult::Applied { watermark, diverged: diverged.clone() }.encode();
        Ok(Applied { result, answered, note: None, frame: Some(FrameApplied { source, lane, watermark, diverged }) })
    }

    /// Checks a frame against the shard, changing nothing; hands its entries on, decoded.
    fn check<'a>(&self, frame: &'a Frame) -> Result<Vec<Checked<'a>>, FrameResult> {
        let header = &frame.header;
        let damaged = |reason: &str| Err(FrameResult::Damaged { reason: reason.to_owned() });
        if header.shard != self.id {
            return damaged("it is for another shard");
        }
        if header.source == self.region {
            return damaged("it comes from this very region");
        }
        let watermark = self.watermark(header.source, header.lane);
        if header.last <= watermark {
            return Err(FrameResult::AlreadyApplied { watermark });
        }
        if header.previous != watermark {
            return Err(FrameResult::Gap { watermark });
        }
        let mut foresight = Foresight::new(self);
        let checked = frame.entries.iter().map(|(lsn, entry)| {
            let checked = self.check_entry(frame, *lsn, entry)?;
            foresight.admit(&checked.1, &checked.3, entry.len())?;
            Ok(checked)
        });
        checked.collect()
    }

    fn check_entry<'a>(&self, frame: &Frame, lsn: Lsn, entry: &'a Bytes) -> Result<Checked<'a>, FrameResult> {
        let damaged = |reason: String| FrameResult::Damaged { reason };
        let header = Header::decode(entry).map_err(|error| damaged(error.to_string()))?;
        if !header.kind.is_shipped() {
            return Err(damaged(format!("entry {lsn} is of kind {:?}, which is never shipped", header.kind)));
        }
        if header.origin != frame.header.source {
            return Err(damaged(format!("entry {lsn} originated in region {}, not in its source", header.origin)));
        }
        // The receiver has held the frame's word to its clock; an entry beyond it would poison this one (CON-4).
        if header.hlc > frame.header.closed {
            return Err(damaged(format!("entry {lsn} is newer than its frame says")));
        }
        let body = body::decode(&header, entry).map_err(|error| damaged(error.to_string()))?;
        let seals = match body {
            BodyRef::Seal { next, .. } if next <= header.epoch => {
                return Err(damaged(format!("entry {lsn} seals an epoch without a later one")));
            }
            BodyRef::Seal { next, .. } => next,
            _ => header.epoch,
        };
        if let Some(meta) = self.buckets.get(&header.bucket).filter(|meta| !meta.dropped && meta.left.is_none()) {
            let fence = meta.fence();
            // What a repair brought may come again in its lane, from an epoch that has ended since.
            let is_known = lsn <= meta.digest.positions.of(header.origin);
            // Nothing of it may be taken for a copy, by whoever sent it (DUR-2).
            if !is_known && self.has_parted_from(&header) {
                return Err(FrameResult::Lost { bucket: header.bucket });
            }
            if seals < fence && !is_known {
                return Err(FrameResult::Fenced { bucket: header.bucket, epoch: header.epoch, fence });
            }
            if let (Some(divergence), None) = (&meta.divergence, &meta.repair) {
                return Err(FrameResult::Diverged { divergence: divergence.clone() });
            }
        }
        Ok((lsn, header, entry, body))
    }

    /// Whether the bucket's fence kept out a frame of that region since the epoch in force began here: no lane brings what was in it.
    pub fn has_kept_out(&self, bucket: BucketId, source: RegionId) -> bool {
        self.kept_out.get(&(bucket, source)).is_some_and(|epoch| *epoch == self.epoch(bucket))
    }

    /// Compares the source's digests with the own ones where both stand at the same positions.
    fn compare(&mut self, notes: &[DigestNote]) -> Vec<Divergence> {
        let mut found = Vec::new();
        for note in notes {
            let compared = |meta: &&mut BucketMeta| !meta.dropped && meta.left.is_none() && meta.repair.is_none();
            let Some(meta) = self.buckets.get_mut(&note.bucket).filter(compared) else { continue };
            if meta.divergence.is_some() || agrees(&meta.digest, note) != Some(false) {
                continue;
            }
            let divergence = Divergence {
                bucket: note.bucket,
                ours: meta.digest.hash,
                our_keys: meta.digest.keys,
                theirs: note.hash,
                their_keys: note.keys,
            };
            meta.divergence = Some(divergence.clone());
            self.dirty.buckets.insert(note.bucket);
            found.push(divergence);
        }
        found
    }

    pub(super) fn position(&self, bucket: BucketId, origin: RegionId) -> Lsn {
        self.buckets.get(&bucket).map(|meta| meta.digest.positions.of(origin)).unwrap_or_default()
    }
}

fn agrees(digest: &BucketDigest, note: &DigestNote) -> Option<bool> {
    (digest.positions == note.positions).then_some(digest.hash == note.hash && digest.keys == note.keys)
}

fn refused(result: FrameResult) -> Applied {
    Applied::answering(result.encode())
}
