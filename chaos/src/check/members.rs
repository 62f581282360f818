//! Which regions hold a bucket: that may change while it serves, and whose copies count, and to whom an entry travels, follows from the
//! epoch it was given under (docs/adr/2026-11-28-region-sets.md).
//!
//! On record is what some node's copy of the metadata says, from when the first one does. In a run that nobody saw inside of the regions
//! are those that the buckets began with.

use std::collections::BTreeMap;

use meridian_types::{Bucket, BucketId, Epoch, RegionId};

use crate::trace::{Fact, Record};

/// The regions that are on record, from some time on.
#[derive(Clone, Debug)]
struct Set {
    since_us: u64,
    epoch: Epoch,
    regions: Vec<RegionId>,
    joining: Option<RegionId>,
}

/// The regions of every bucket, in the order in which they were put on record.
#[derive(Clone, Debug, Default)]
pub(super) struct Members(BTreeMap<BucketId, Vec<Set>>);

impl Members {
    /// From what was seen, and what the buckets began with.
    pub(super) fn of(buckets: &[Bucket], records: &[Record]) -> Members {
        let mut heard: BTreeMap<(BucketId, u64), Set> = BTreeMap::new();
        for record in records {
            if let Fact::RegionsKnown { index, bucket, epoch, regions, joining, .. } = &record.fact {
                let (since_us, epoch, regions, joining) = (record.at_us, *epoch, regions.clone(), *joining);
                heard.entry((*bucket, *index)).or_insert(Set { since_us, epoch, regions, joining });
            }
        }
        let mut sets: BTreeMap<BucketId, Vec<Set>> = BTreeMap::new();
        for ((bucket, _), set) in heard {
            sets.entry(bucket).or_default().push(set);
        }
        for bucket in buckets {
            let (epoch, regions, joining) = (bucket.epoch, bucket.regions.clone(), bucket.joins.joining());
            sets.entry(bucket.id).or_insert_with(|| vec![Set { since_us: 0, epoch, regions, joining }]);
        }
        Members(sets)
    }

    fn sets(&self, bucket: BucketId) -> &[Set] {
        self.0.get(&bucket).map_or(&[], Vec::as_slice)
    }

    /// What was on record under an epoch; of one that nobody heard of, what was before it.
    fn under(&self, bucket: BucketId, epoch: Epoch) -> impl Iterator<Item = &Set> {
        let sets = self.sets(bucket);
        let last = sets.iter().rev().find(|set| set.epoch <= epoch).or(sets.first()).map(|set| set.epoch);
        sets.iter().filter(move |set| Some(set.epoch) == last)
    }

    /// How many regions hold a bucket in an epoch. A region that begins to count within it, for which nothing changes in what is
    /// promised, is left out: who has not heard of it goes on without.
    pub(super) fn holders(&self, bucket: BucketId, epoch: Epoch) -> usize {
        self.under(bucket, epoch).map(|set| set.regions.len()).min().unwrap_or_default()
    }

    /// Whether a region's copies of what is told under an epoch count.
    pub(super) fn counts(&self, bucket: BucketId, epoch: Epoch, region: RegionId) -> bool {
        self.under(bucket, epoch).any(|set| set.regions.contains(&region))
    }

    /// Whether all the entries of an epoch travel to a region that took in some of them at a time: those that come once it was removed,
    /// or was given up while it joined, are of no use to it, and may not be sent.
    pub(super) fn carries(&self, bucket: BucketId, (epoch, at_us): (Epoch, u64), region: RegionId) -> bool {
        let later = self.sets(bucket).iter().filter(|set| set.epoch > epoch && set.since_us <= at_us);
        let is_there = |set: &Set| set.regions.contains(&region) || set.joining == Some(region);
        self.under(bucket, epoch).chain(later).all(is_there)
    }

    /// The fewest regions that ever held a bucket.
    pub(super) fn fewest(&self, bucket: BucketId) -> usize {
        self.sets(bucket).iter().map(|set| set.regions.len()).min().unwrap_or_default()
    }

    /// The regions whose copies counted at a time.
    pub(super) fn at(&self, bucket: BucketId, at_us: u64) -> &[RegionId] {
        let sets = self.sets(bucket);
        let on_record = sets.iter().rev().find(|set| set.since_us <= at_us).or(sets.first());
        on_record.map_or(&[], |set| set.regions.as_slice())
    }

    /// The region that is joining in the end, and since when.
    pub(super) fn joining(&self, bucket: BucketId) -> Option<(RegionId, u64)> {
        let sets = self.sets(bucket);
        let region = sets.last()?.joining?;
        let since = sets.iter().rev().take_while(|set| set.joining == Some(region)).last()?;
        Some((region, since.since_us))
    }
}
