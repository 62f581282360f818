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
            Err(result) => return Ok(refused(result)),
        };
        let mut answered = Vec::new();
        for (lsn, header, entry, body) in entries {
            if self.is_dropped(header.bucket) || lsn <= self.position(header.bucket, frame.header.source) {
                continue;
            }
            if header.epoch > self.epoch(header.bucket) {
                self.park(lsn, &header, entry, out);
                continue;
            }
            if self.astray(header.bucket).is_some() {
                self.park(lsn, &header, entry, out);
                continue;
            }
            answered.extend(self.continue_history(view, out, lsn, &header, entry.len(), &body)?);
            if matches!(body, BodyRef::Seal { .. }) {
                self.unpark(view, header.bucket, out, &mut answered)?;
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
        if let Some(meta) = self.buckets.get(&header.bucket).filter(|meta| !meta.dropped) {
            let fence = meta.fence();
            if seals < fence {
                return Err(FrameResult::Fenced { bucket: header.bucket, epoch: header.epoch, fence });
            }
            if let Some(divergence) = &meta.divergence {
                return Err(FrameResult::Diverged { divergence: divergence.clone() });
            }
        }
        Ok((lsn, header, entry, body))
    }

    /// Compares the source's digests with the own ones where both stand at the same positions.
    fn compare(&mut self, notes: &[DigestNote]) -> Vec<Divergence> {
        let mut found = Vec::new();
        for note in notes {
            let Some(meta) = self.buckets.get_mut(&note.bucket).filter(|meta| !meta.dropped) else { continue };
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

    fn position(&self, bucket: BucketId, origin: RegionId) -> Lsn {
        self.buckets.get(&bucket).map(|meta| meta.digest.positions.of(origin)).unwrap_or_default()
    }
}

fn agrees(digest: &BucketDigest, note: &DigestNote) -> Option<bool> {
    (digest.positions == note.positions).then_some(digest.hash == note.hash && digest.keys == note.keys)
}

fn refused(result: FrameResult) -> Applied {
    Applied::answering(result.encode())
}
