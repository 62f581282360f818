//! A shard's metadata records: positions of the shard, and what is known of each bucket.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use meridian_types::{BucketDigest, Epoch, Hlc, Lsn, RegionId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Damage;
use crate::result::Divergence;

const META_FORMAT: u8 = 1;

/// The format of a bucket's metadata.
const BUCKET_FORMAT: u8 = 2;

/// The same, of a bucket that this region has left: how far it has behind it. Written only then, so that an older release reads
/// all that it can know of.
const LEFT_FORMAT: u8 = 3;

/// The same, of a bucket in which this region has stopped once. Written only then, and until the epoch is over.
const STOPPED_FORMAT: u8 = 4;

/// The same, of a bucket that loses another region: which. Written only then.
const PARTED_FORMAT: u8 = 5;

/// Stretches of the own log remembered as void, one per repair: those that may still be read to be shipped.
const VOID_STRETCHES_MAX: usize = 64;

/// Fences remembered per bucket with their position: those whose neighbourhood in the log may still be shipped.
const FENCES_MAX: usize = 64;

/// Own entries remembered as void by their timestamp. They come from a fault, so a few are many.
const VOIDS_MAX: usize = 1024;

/// Where the shard is.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct ShardMeta {
    /// The last entry of the own log.
    pub(crate) applied: Lsn,
    /// The greatest timestamp of an own entry.
    pub(crate) own_hlc: Hlc,
    /// The greatest timestamp of any entry.
    pub(crate) greatest_hlc: Hlc,
    /// Own entries that were refused for their timestamp.
    pub(crate) voids: BTreeSet<Lsn>,
}

/// What is known of one bucket in this shard.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct BucketMeta {
    pub(crate) digest: BucketDigest,
    /// Own positions and epochs of the fences, rising.
    pub(crate) fences: Vec<(Lsn, Epoch)>,
    /// Keys in the expiry index.
    pub(crate) expiring: u64,
    /// The greatest timestamp applied per origin.
    pub(crate) origin_hlc: BTreeMap<RegionId, Hlc>,
    pub(crate) divergence: Option<Divergence>,
    /// Dropped for ever: ids are not reused, and late entries must not bring data back.
    pub(crate) dropped: bool,
    /// The epoch in force: what the last seal began; 0 while it is the first.
    pub(crate) begun: Epoch,
    /// This replica is on no history that counts, until it is repaired.
    pub(crate) astray: Option<Astray>,
    /// Stretches of the own log, each behind the first position and up to the second, whose entries of this bucket a
    /// repair has made void; rising.
    pub(crate) void: Vec<(Lsn, Lsn)>,
    /// While the bucket is made equal to another region's, or takes in what waited for it.
    pub(crate) repair: Option<Repair>,
    /// This region was removed from the bucket as of the epoch in force: nothing of that epoch or an earlier one has a place here.
    /// It may join again in a later one.
    #[serde(skip)]
    pub(crate) left: Option<Left>,
    /// In the epoch in force this region has stopped ordering, or has gone on since.
    #[serde(skip)]
    pub(crate) stop: Option<Stop>,
    /// While it is stopped because that region is lost: of its entries of the epoch in force none is taken in.
    #[serde(skip)]
    pub(crate) parted: Option<RegionId>,
}

/// Whether a region orders anything in an active-active bucket that crosses (docs/adr/2026-11-28-active-active-changes.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stop {
    /// The metadata index that the last stop, or its end, named: an earlier stop changes nothing any more.
    pub index: u64,
    /// Where in the own log it stopped, or went on.
    pub(crate) at: Lsn,
    /// Whether it is stopped.
    pub stopped: bool,
}

/// How far a region has left a bucket behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Left {
    /// Rows are still there.
    Dropping,
    /// Nothing is.
    Dropped,
}

/// A bucket that is closed in this shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Repair {
    /// Own entries behind this are void.
    pub(crate) void_after: Lsn,
    pub(crate) phase: RepairPhase,
}

/// Why it is closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RepairPhase {
    /// Its rows are made equal to those of `source`, since the entry at `begun`.
    Moving { source: RegionId, begun: Lsn, rows: Moved },
    /// It takes in what waited, some at a time.
    Releasing,
}

/// Whether its rows are still those of its positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Moved {
    None,
    Some,
}

/// Another region's seal ended an epoch otherwise than it ended here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Astray {
    /// The region that sealed: what it has counts.
    pub from: RegionId,
    /// The epoch it began.
    pub epoch: Epoch,
    /// How much of this region's own log counts. What this region wrote to the bucket behind it is salvage (SWI-2).
    pub cut: Lsn,
}

/// As it was before epochs were sealed.
#[derive(Deserialize)]
struct BucketMeta1 {
    digest: BucketDigest,
    fences: Vec<(Lsn, Epoch)>,
    expiring: u64,
    origin_hlc: BTreeMap<RegionId, Hlc>,
    divergence: Option<Divergence>,
    dropped: bool,
}

impl ShardMeta {
    /// Remembers that an own entry is void.
    pub(crate) fn void(&mut self, lsn: Lsn) {
        self.voids.insert(lsn);
        if self.voids.len() > VOIDS_MAX {
            self.voids.pop_first();
        }
    }
}

impl BucketMeta {
    /// The fence: 0 when there is none.
    pub(crate) fn fence(&self) -> Epoch {
        self.fences.last().map(|(_, epoch)| *epoch).unwrap_or_default()
    }

    /// The epoch in force.
    pub(crate) fn epoch(&self) -> Epoch {
        self.begun.max(Epoch(1))
    }

    /// Why no other region can be made equal to this replica, if none can.
    pub(crate) fn unfit_as_source(&self) -> Option<&'static str> {
        match &self.repair {
            _ if self.dropped => Some("has deleted the bucket"),
            _ if self.left.is_some() => Some("has no copy of the bucket"),
            _ if self.astray.is_some() => Some("has gone astray itself"),
            Some(Repair { phase: RepairPhase::Moving { rows: Moved::Some, .. }, .. }) => {
                Some("is being repaired itself")
            }
            _ => None,
        }
    }

    /// What stays of a bucket that this region leaves at `lsn` of its log, as of `epoch`: which of its own entries count (other
    /// regions may still have them to get), and from when on entries have a place here again.
    pub(crate) fn left_behind(mut self, lsn: Lsn, epoch: Epoch) -> BucketMeta {
        self.open(lsn);
        self.end_stop(lsn);
        self.raise_fence(lsn, epoch);
        let (fences, void) = (self.fences, self.void);
        BucketMeta { fences, void, begun: epoch, left: Some(Left::Dropping), ..BucketMeta::default() }
    }

    /// Raises the fence; a lower one changes nothing.
    pub(crate) fn raise_fence(&mut self, at: Lsn, epoch: Epoch) {
        if epoch > self.fence() {
            self.fences.push((at, epoch));
            if self.fences.len() > FENCES_MAX {
                self.fences.remove(0);
            }
        }
    }

    /// Whether an own entry at `lsn` under `epoch` came behind a fence above it.
    pub(crate) fn is_fenced_at(&self, lsn: Lsn, epoch: Epoch) -> bool {
        self.fences.iter().any(|(at, fence)| *at < lsn && *fence > epoch)
    }

    /// Whether a repair, or a stop, has made an own entry at `lsn` void.
    pub(crate) fn is_void_at(&self, lsn: Lsn) -> bool {
        let now = self.repair.as_ref().is_some_and(|repair| repair.void_after < lsn);
        let stopped = self.stop.is_some_and(|stop| stop.stopped && stop.at < lsn);
        now || stopped || self.void.iter().any(|(after, to)| *after < lsn && lsn <= *to)
    }

    /// Ends the repair at `lsn` of the own log; what was void stays so.
    pub(crate) fn open(&mut self, lsn: Lsn) {
        if let Some(Repair { void_after, .. }) = self.repair.take() {
            self.void_between(void_after, lsn);
        }
    }

    /// Own writes of the epoch in force are void from `lsn` on, or count again. What names an earlier crossing changes nothing.
    pub(crate) fn stop(&mut self, lsn: Lsn, index: u64, stops: bool) {
        let now = self.stop.unwrap_or_default();
        match (now.stopped, stops) {
            (stopped, true) if index > now.index => {
                let at = if stopped { now.at } else { lsn };
                self.stop = Some(Stop { index, at, stopped: true });
            }
            (true, false) if index >= now.index => {
                self.void_between(now.at, lsn);
                self.stop = Some(Stop { index, at: lsn, stopped: false });
                self.parted = None;
            }
            (_, true | false) => {}
        }
    }

    /// The same as a stop, and of `from` nothing more is taken in.
    pub(crate) fn part(&mut self, lsn: Lsn, index: u64, from: Option<RegionId>) {
        self.stop(lsn, index, true);
        if self.stop.is_some_and(|stop| stop.stopped && stop.index == index) {
            self.parted = from;
        }
    }

    /// Begins an epoch, by what this region applied at `lsn` of its own log: what comes behind it under a lower one is void.
    pub(crate) fn begin(&mut self, lsn: Lsn, epoch: Epoch) {
        self.end_stop(lsn);
        self.begun = epoch;
        self.raise_fence(lsn, epoch);
    }

    /// What was ordered behind a stop stays void, up to `lsn` of the own log, where its epoch ends.
    fn end_stop(&mut self, lsn: Lsn) {
        self.parted = None;
        if let Some(Stop { at, stopped: true, .. }) = self.stop.take() {
            self.void_between(at, Lsn(lsn.0.saturating_sub(1)));
        }
    }

    fn void_between(&mut self, after: Lsn, up_to: Lsn) {
        let mut stretch = (after, up_to);
        while let Some((after, _)) = self.void.pop_if(|(_, to)| *to >= stretch.0) {
            stretch.0 = stretch.0.min(after);
        }
        self.void.push(stretch);
        if self.void.len() > VOID_STRETCHES_MAX {
            self.void.remove(0);
        }
    }
}

impl From<BucketMeta1> for BucketMeta {
    fn from(old: BucketMeta1) -> BucketMeta {
        let begun = old.fences.last().map(|(_, epoch)| *epoch).unwrap_or_default();
        let BucketMeta1 { digest, fences, expiring, origin_hlc, divergence, dropped } = old;
        BucketMeta { digest, fences, expiring, origin_hlc, divergence, dropped, begun, ..BucketMeta::default() }
    }
}

/// A bucket's metadata as bytes.
pub(crate) fn encode_bucket(meta: &BucketMeta) -> Bytes {
    // As below.
    let encoded = match (meta.left, meta.stop) {
        (None, Some(stop)) if meta.parted.is_some() => {
            postcard::to_extend(&(meta, stop, meta.parted), vec![PARTED_FORMAT])
        }
        (None, None) => postcard::to_extend(meta, vec![BUCKET_FORMAT]),
        (Some(left), _) => postcard::to_extend(&(meta, left), vec![LEFT_FORMAT]),
        (None, Some(stop)) => postcard::to_extend(&(meta, stop), vec![STOPPED_FORMAT]),
    };
    encoded.map(Bytes::from).unwrap_or_default()
}

/// Reads a bucket's metadata, of any format.
pub(crate) fn decode_bucket(bytes: &[u8]) -> Result<BucketMeta, Damage> {
    let damage = Damage { what: "metadata of a bucket" };
    match bytes.split_first() {
        Some((&META_FORMAT, body)) => {
            postcard::from_bytes::<BucketMeta1>(body).map(BucketMeta::from).map_err(|_| damage)
        }
        Some((&BUCKET_FORMAT, body)) => postcard::from_bytes(body).map_err(|_| damage),
        Some((&LEFT_FORMAT, body)) => {
            let (meta, left): (BucketMeta, Left) = postcard::from_bytes(body).map_err(|_| damage)?;
            Ok(BucketMeta { left: Some(left), ..meta })
        }
        Some((&STOPPED_FORMAT, body)) => {
            let (meta, stop): (BucketMeta, Stop) = postcard::from_bytes(body).map_err(|_| damage)?;
            Ok(BucketMeta { stop: Some(stop), ..meta })
        }
        Some((&PARTED_FORMAT, body)) => {
            let (meta, stop, parted): (BucketMeta, Stop, Option<RegionId>) =
                postcard::from_bytes(body).map_err(|_| damage)?;
            Ok(BucketMeta { stop: Some(stop), parted, ..meta })
        }
        _ => Err(damage),
    }
}

/// A metadata record as bytes.
pub(crate) fn encode(meta: &impl Serialize) -> Bytes {
    // Serialising plain values into a growing vector has no way to fail.
    postcard::to_extend(meta, vec![META_FORMAT]).map(Bytes::from).unwrap_or_default()
}

/// Reads a metadata record.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8], what: &'static str) -> Result<T, Damage> {
    match bytes.split_first() {
        Some((&META_FORMAT, body)) => postcard::from_bytes(body).map_err(|_| Damage { what }),
        _ => Err(Damage { what }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_fence_only_ever_rises_and_its_history_is_bounded() {
        let mut meta = BucketMeta::default();
        meta.raise_fence(Lsn(10), Epoch(5));
        meta.raise_fence(Lsn(11), Epoch(4));
        assert_eq!(meta.fence(), Epoch(5));
        assert!(!meta.is_fenced_at(Lsn(9), Epoch(4)));
        assert!(meta.is_fenced_at(Lsn(12), Epoch(4)));
        (6..1000).for_each(|epoch| meta.raise_fence(Lsn(10 + epoch), Epoch(epoch)));
        assert_eq!((meta.fence(), meta.fences.len()), (Epoch(999), FENCES_MAX));
    }

    /// Written by the first release: {4 operations, fence 3 at 7}.
    #[test]
    fn metadata_of_the_first_format_stays_readable() {
        let mut digest = BucketDigest { operations: 4, ..BucketDigest::default() };
        digest.positions.raise(RegionId(1), Lsn(9));
        let fields =
            (&digest, vec![(Lsn(7), Epoch(3))], 0_u64, BTreeMap::from([(RegionId(1), Hlc(5))]), None::<()>, false);
        let meta = decode_bucket(&postcard::to_extend(&fields, vec![META_FORMAT]).unwrap()).unwrap();
        assert_eq!((meta.digest.clone(), meta.epoch(), meta.astray), (digest, Epoch(3), None));
        assert_eq!(decode_bucket(&encode_bucket(&meta)).unwrap(), meta);
    }

    #[test]
    fn what_a_repair_made_void_stays_void_and_stretches_that_touch_become_one() {
        let mut meta = BucketMeta::default();
        for (after, to) in [(10, 20), (15, 30), (40, 50)] {
            let phase = RepairPhase::Releasing;
            meta.repair = Some(Repair { void_after: Lsn(after), phase });
            assert!(meta.is_void_at(Lsn(u64::MAX)), "as long as it lasts");
            meta.open(Lsn(to));
        }
        assert_eq!(meta.void, [(Lsn(10), Lsn(30)), (Lsn(40), Lsn(50))]);
        let void: Vec<_> = [10, 11, 30, 31, 50, 51].into_iter().filter(|lsn| meta.is_void_at(Lsn(*lsn))).collect();
        assert_eq!(void, [11, 30, 50]);
        assert_eq!(decode_bucket(&encode_bucket(&meta)), Ok(meta));
    }

    /// Written by the first release that knew of it: epoch 3, left at 9, nothing there any more.
    #[test]
    fn what_a_region_has_left_keeps_its_fences_and_what_is_void_and_nothing_else() {
        let mut meta = BucketMeta { expiring: 3, begun: Epoch(2), ..BucketMeta::default() };
        meta.digest.positions.raise(RegionId(1), Lsn(5));
        meta.raise_fence(Lsn(4), Epoch(2));
        meta.repair = Some(Repair { void_after: Lsn(6), phase: RepairPhase::Releasing });
        let left = BucketMeta { left: Some(Left::Dropped), ..meta.left_behind(Lsn(9), Epoch(3)) };
        assert_eq!((left.epoch(), left.fence(), left.expiring), (Epoch(3), Epoch(3), 0));
        assert_eq!((left.digest.clone(), left.repair.clone()), (BucketDigest::default(), None));
        assert!(
            left.is_void_at(Lsn(7)) && left.is_fenced_at(Lsn(10), Epoch(2)) && !left.is_fenced_at(Lsn(3), Epoch(1))
        );
        let stored = [3, 0, 0, 0, 0, 0, 0, 0, 0, 2, 4, 2, 9, 3, 0, 0, 0, 0, 3, 0, 1, 6, 9, 0, 1];
        assert_eq!(encode_bucket(&left)[..], stored);
        assert_eq!(decode_bucket(&stored), Ok(left));
    }

    /// Written by the first release that knew of it: stopped at 9 by the crossing at 5, after another one that was given up.
    #[test]
    fn what_is_ordered_behind_a_stop_is_void_until_it_is_over_and_an_earlier_one_changes_nothing() {
        let mut meta = BucketMeta::default();
        meta.stop(Lsn(3), 2, true);
        meta.stop(Lsn(5), 1, false);
        assert!(meta.is_void_at(Lsn(6)), "a copy from before the crossing has nothing to say");
        meta.stop(Lsn(7), 4, false);
        meta.stop(Lsn(8), 3, true);
        meta.stop(Lsn(9), 5, true);
        let void: Vec<u64> = (1..12).filter(|lsn| meta.is_void_at(Lsn(*lsn))).collect();
        assert_eq!(void, [4, 5, 6, 7, 10, 11]);
        let stored = [4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 3, 7, 0, 5, 9, 1];
        assert_eq!(encode_bucket(&meta)[..], stored);
        assert_eq!(decode_bucket(&stored), Ok(meta.clone()));
        meta.begin(Lsn(12), Epoch(2));
        assert_eq!((meta.stop, meta.is_void_at(Lsn(11)), meta.is_void_at(Lsn(12))), (None, true, false));
        assert!(meta.is_fenced_at(Lsn(13), Epoch(1)));
    }

    /// Written by the first release that knew of it: stopped at 9 by the crossing at 5, in which region 3 is lost.
    #[test]
    fn a_region_is_parted_from_until_the_crossing_is_over_and_an_earlier_one_changes_nothing() {
        let mut meta = BucketMeta::default();
        meta.part(Lsn(9), 5, Some(RegionId(3)));
        meta.part(Lsn(10), 4, Some(RegionId(2)));
        meta.stop(Lsn(11), 4, false);
        let stored = [5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 9, 1, 1, 3];
        assert_eq!((meta.parted, &encode_bucket(&meta)[..]), (Some(RegionId(3)), &stored[..]));
        assert_eq!(decode_bucket(&stored), Ok(meta.clone()));
        let mut later = meta.clone();
        later.part(Lsn(12), 7, None);
        assert_eq!((later.parted, later.is_void_at(Lsn(10))), (None, true), "it stands where it stopped first");
        let mut over = meta.clone();
        over.stop(Lsn(12), 6, false);
        assert_eq!((over.parted, over.is_void_at(Lsn(12)), over.is_void_at(Lsn(13))), (None, true, false));
        meta.begin(Lsn(12), Epoch(2));
        assert_eq!((meta.parted, meta.is_void_at(Lsn(11))), (None, true));
    }

    proptest! {
        #[test]
        fn any_bytes_are_metadata_or_damage(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut bytes = bytes;
            bytes.insert(0, META_FORMAT);
            let _ = decode::<ShardMeta>(&bytes, "shard");
            let _ = decode_bucket(&bytes);
            for format in [BUCKET_FORMAT, LEFT_FORMAT, STOPPED_FORMAT, PARTED_FORMAT] {
                bytes[0] = format;
                let _ = decode_bucket(&bytes);
            }
        }
    }
}
