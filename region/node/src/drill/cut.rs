//! What the shards of this node have of some buckets at one moment: copied, and the copy held against it.

use std::collections::BTreeMap;

use bytes::Bytes;
use meridian_consensus::Mark;
use meridian_consensus::offline::Offline;
use meridian_region_core::drill::{Spread, difference, ranges};
use meridian_region_core::scrub::recompute_visiting;
use meridian_region_core::{Contents, Shard, read};
use meridian_types::{
    BucketDigest, BucketId, DrillShard, GroupId, Key, Refusal, RefusalKind, RegionId, ShardId, Version,
};

use crate::store::fork::CopyError;
use crate::store::{Frozen, Store};

/// A consistent cut through every shard.
pub(super) struct Cut {
    frozen: Frozen,
    shards: Vec<ShardCut>,
    buckets: Vec<BucketId>,
}

struct ShardCut {
    id: ShardId,
    /// `None` when nothing was ever applied to it.
    mark: Option<Mark>,
    digests: BTreeMap<BucketId, BucketDigest>,
}

/// A key of the sample, and what was there: enough to know it again, whatever its size (RES-1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sampled {
    pub(super) key: Key,
    pub(super) version: Version,
    pub(super) checksum: u32,
    pub(super) expires_at_ms: Option<u64>,
}

/// What was found in the copy.
#[derive(Debug, Default)]
pub(super) struct Verified {
    pub(super) shards: Vec<DrillShard>,
    pub(super) sample: BTreeMap<BucketId, Vec<Sampled>>,
}

impl Cut {
    /// Freezes every shard at the same moment. Blocks on the disk.
    ///
    /// # Errors
    /// When the state can't be read or is damaged.
    pub(super) fn take(store: &Store, region: RegionId, shards: u16, buckets: &[BucketId]) -> Result<Cut, Refusal> {
        let frozen = store.freeze();
        let mut cuts = Vec::with_capacity(usize::from(shards));
        for id in (0..shards).map(ShardId) {
            let core = Shard::load(&frozen, region, id).map_err(|why| unreadable(id, &why))?;
            let digests = buckets.iter().map(|bucket| (*bucket, core.digest(*bucket).cloned().unwrap_or_default()));
            let mark = frozen.mark(id).map_err(|why| unreadable(id, &why))?;
            cuts.push(ShardCut { id, mark, digests: digests.collect() });
        }
        Ok(Cut { frozen, shards: cuts, buckets: buckets.to_vec() })
    }

    /// Every digest in it.
    pub(super) fn digests(&self) -> impl Iterator<Item = &BucketDigest> {
        self.shards.iter().flat_map(|shard| shard.digests.values())
    }

    /// Copies everything into an empty store, and makes this node the only voter of each shard's group from there on.
    /// `pace` is told bytes before they are written. Blocks on the disk.
    ///
    /// # Errors
    /// What `pace` says; when something can't be read or written.
    pub(super) fn copy(
        &self,
        into: &Store,
        log: &Offline,
        pace: &mut dyn FnMut(u64) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        for shard in &self.shards {
            let Some(mark) = &shard.mark else { continue };
            into.copy_from(&self.frozen, &ranges(shard.id, &self.buckets), pace).map_err(|why| match why {
                CopyError::Source(why) => unreadable(shard.id, &why),
                CopyError::Target(why) => unwritable(&why),
                CopyError::Stopped(why) => why,
            })?;
            let group = GroupId::of_shard(shard.id);
            let begun = log.standing(group, Some(mark)).and_then(|standing| log.begin(group, &standing));
            let begun = begun.map_err(|why| unwritable(&why))?;
            into.set_mark(shard.id, &begun).map_err(|why| unwritable(&why))?;
        }
        Ok(())
    }

    /// Works every digest out again from the rows of the copy, and chooses about `sample` keys of each bucket. What is found
    /// to be wrong is said of its shard. `verified` is told how many are done. Blocks on the disk.
    pub(super) fn verify(
        &self,
        copy: &Store,
        (sample, now_ms): (u32, u64),
        verified: &mut dyn FnMut(u64) -> Result<(), Refusal>,
    ) -> Result<Verified, Refusal> {
        let mut all = Verified::default();
        for shard in &self.shards {
            for (bucket, digest) in &shard.digests {
                let wanted = u64::from(sample).div_ceil(self.shards.len().max(1) as u64);
                let (row, sampled) = self.verify_one(copy, (shard, *bucket, digest), wanted, now_ms);
                all.shards.push(row);
                all.sample.entry(*bucket).or_default().extend(sampled);
                verified(all.shards.len() as u64)?;
            }
        }
        Ok(all)
    }

    fn verify_one(
        &self,
        copy: &Store,
        (shard, bucket, digest): (&ShardCut, BucketId, &BucketDigest),
        wanted: u64,
        now_ms: u64,
    ) -> (DrillShard, Vec<Sampled>) {
        let said = Contents::of(digest);
        let lsn = shard.mark.as_ref().map(|mark| mark.lsn).unwrap_or_default();
        let mut row =
            DrillShard { bucket, shard: shard.id, lsn, keys: said.keys, said: said.hash, ..DrillShard::default() };
        let (mut spread, mut chosen) = (Spread::new(wanted, said.keys), Vec::new());
        let mut visit = |key: &[u8]| {
            if spread.takes_next() {
                chosen.extend(Key::new(Bytes::copy_from_slice(key)));
            }
        };
        match recompute_visiting(copy, shard.id, bucket, &mut visit) {
            Ok(found) => {
                row.found = found.hash;
                row.fault = difference(&said, &found).unwrap_or_default();
            }
            Err(why) => row.fault = chain(&why),
        }
        let sampled = chosen.into_iter().filter_map(|key| match self.sampled(shard.id, bucket, key, now_ms) {
            Ok(found) => found,
            Err(why) => {
                row.fault = chain(&why);
                None
            }
        });
        let sampled = sampled.collect();
        (row, sampled)
    }

    /// What there was of a key, if it was live.
    fn sampled(
        &self,
        shard: ShardId,
        bucket: BucketId,
        key: Key,
        now_ms: u64,
    ) -> Result<Option<Sampled>, meridian_region_core::ReadError> {
        let located = read::get(&self.frozen, shard, bucket, &key, now_ms)?;
        Ok(located.map(|it| Sampled {
            key,
            version: it.found.version,
            checksum: crc32c::crc32c(&it.found.value),
            expires_at_ms: it.found.expires_at_ms,
        }))
    }
}

/// The replica itself is damaged: the drill has found what a failover would have met (DUR-3).
fn unreadable(shard: ShardId, why: &dyn std::error::Error) -> Refusal {
    let message = format!(
        "shard {shard} of this region can't be read: {}: a failover to it would fail; rebuild it from its primary with `meridian resync run BUCKET --to REGION`",
        chain(why)
    );
    Refusal::new(RefusalKind::Corrupt, message)
}

fn unwritable(why: &dyn std::error::Error) -> Refusal {
    Refusal::new(RefusalKind::Unavailable, format!("the copy for the drill can't be written: {}", chain(why)))
}

/// An error and its causes, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
