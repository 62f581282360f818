//! How far one replica of a shard is, and how to take it back to where its state was when it crashed.

use std::collections::{HashMap, HashSet};

use meridian_types::{BucketId, Lane, Lsn, RegionId};

use crate::trace::Entry;

/// How far a replica is.
#[derive(Clone, Default)]
pub(super) struct Progress {
    positions: HashMap<(BucketId, RegionId), Lsn>,
    has: HashSet<(BucketId, RegionId, Lsn)>,
    /// Up to where a repair brought everything.
    brought: HashMap<(BucketId, RegionId), Lsn>,
    watermarks: HashMap<(RegionId, Lane), Lsn>,
    /// What each entry of the replica's own log changed, to undo it.
    steps: Vec<(Lsn, Step)>,
}

#[derive(Clone, Copy)]
enum Step {
    Entry { bucket: BucketId, origin: RegionId, lsn: Lsn, before: Lsn },
    Watermark { source: RegionId, lane: Lane, before: Lsn },
    Brought { bucket: BucketId, origin: RegionId, position: Lsn, before: Lsn },
}

impl Progress {
    /// The last position of a region's history in a bucket.
    pub(super) fn position(&self, bucket: BucketId, origin: RegionId) -> Lsn {
        self.positions.get(&(bucket, origin)).copied().unwrap_or_default()
    }

    /// Whether that entry is applied.
    pub(super) fn has(&self, bucket: BucketId, origin: RegionId, lsn: Lsn) -> bool {
        self.has.contains(&(bucket, origin, lsn)) || self.was_brought(bucket, origin, lsn)
    }

    /// Whether a repair brought it.
    pub(super) fn was_brought(&self, bucket: BucketId, origin: RegionId, lsn: Lsn) -> bool {
        self.brought.get(&(bucket, origin)).is_some_and(|brought| lsn <= *brought)
    }

    /// A repair, at `at` of the own log, brought everything up to `to`.
    pub(super) fn bring(&mut self, bucket: BucketId, origin: RegionId, to: Lsn, at: Lsn) {
        let position = self.positions.insert((bucket, origin), to).unwrap_or_default();
        let before = self.brought.insert((bucket, origin), to).unwrap_or_default();
        self.steps.push((at, Step::Brought { bucket, origin, position, before }));
    }

    /// How far a lane is applied.
    pub(super) fn watermark(&self, source: RegionId, lane: Lane) -> Lsn {
        self.watermarks.get(&(source, lane)).copied().unwrap_or_default()
    }

    /// An entry was applied.
    pub(super) fn advance(&mut self, entry: &Entry) {
        let (bucket, origin, lsn) = (entry.bucket, entry.origin, entry.source_lsn);
        let before = self.positions.insert((bucket, origin), lsn).unwrap_or_default();
        self.has.insert((bucket, origin, lsn));
        self.steps.push((entry.lsn, Step::Entry { bucket, origin, lsn, before }));
    }

    /// An entry arrived that has to wait: it is there, but the replica's position is not behind it.
    pub(super) fn park(&mut self, entry: &Entry) {
        let (bucket, origin, lsn) = (entry.bucket, entry.origin, entry.source_lsn);
        self.has.insert((bucket, origin, lsn));
        let before = self.position(bucket, origin);
        self.steps.push((entry.lsn, Step::Entry { bucket, origin, lsn, before }));
    }

    /// A frame at `at` of the own log moved a watermark.
    pub(super) fn move_watermark(&mut self, source: RegionId, lane: Lane, to: Lsn, at: Lsn) {
        let before = self.watermarks.insert((source, lane), to).unwrap_or_default();
        self.steps.push((at, Step::Watermark { source, lane, before }));
    }

    /// Forgets what entries beyond `applied` of the own log changed.
    pub(super) fn rewind(&mut self, applied: Lsn) {
        while let Some((_, step)) = self.steps.pop_if(|(at, _)| *at > applied) {
            match step {
                Step::Entry { bucket, origin, lsn, before } => {
                    self.positions.insert((bucket, origin), before);
                    self.has.remove(&(bucket, origin, lsn));
                }
                Step::Brought { bucket, origin, position, before } => {
                    self.positions.insert((bucket, origin), position);
                    self.brought.insert((bucket, origin), before);
                }
                Step::Watermark { source, lane, before } => {
                    self.watermarks.insert((source, lane), before);
                }
            }
        }
    }
}
