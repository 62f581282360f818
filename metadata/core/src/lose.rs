//! A region of an active-active bucket does not come back: the others go on without it, with a consent to what that costs
//! (docs/adr/2026-11-28-active-active-lost-regions.md).
//!
//! ```text
//!                 the others have stopped, and have what all of them stopped at, and the same of C
//!   A, B, C, e ──► losing C ─────────────────────────────────────────────────────────► A, B, e+1
//!                    └── given up, at more loss than was agreed to among others ─► A, B, C, e
//! ```
//! The most that any of them has of C counts. Nothing here asks C anything (SWI-3).
//!
//! Deliberately not here: how regions stop, meet and give up (`crossing.rs`), and how one brings another one to where it is (`region`).

use std::collections::BTreeMap;
use std::sync::Arc;

use meridian_types::{
    Bucket, BucketName, Consent, Crossing, Epoch, Loss, Lsn, Refusal, RefusalKind, RegionId, RegionName, Remains,
    ShardId, Way,
};

use crate::apply::{Done, Occasion};
use crate::crossing::check_pause;
use crate::reply::Reply;
use crate::spec::invalid;
use crate::state::ClusterState;

#[cfg(test)]
mod tests;

/// What regions have of a lost one, by shard.
pub(crate) type Left = BTreeMap<RegionId, BTreeMap<ShardId, Remains>>;

impl ClusterState {
    /// Sends an active-active bucket on its way without a region that is lost. `agreed` is the most that may be lost of it, in the epoch
    /// that it had when that was estimated.
    pub(crate) fn lose_region(
        &mut self,
        occasion: Occasion<'_>,
        (name, lost): (&BucketName, &RegionName),
        agreed: (Epoch, Loss),
        pause_ms_max: u64,
    ) -> Result<Done, Refusal> {
        let mut bucket = Bucket::clone(self.existing(name)?);
        if bucket.policy.has_primary() {
            return Err(invalid(format!(
                "`{name}` is {}: a lost primary is replaced by `meridian failover run --bucket {name}` without `--lost`, and another lost region is removed by `meridian bucket set {name} --remove-region {lost}`",
                bucket.policy
            )));
        }
        self.check_crossing(&bucket)?;
        self.check_fixed(&bucket)?;
        self.check_one_lane(&bucket)?;
        check_pause(pause_ms_max)?;
        let region = self.known_region("lost", lost)?;
        if !bucket.is_in(region) {
            return Err(invalid(format!("`{name}` is not written in `{lost}`: there is nothing to lose with it")));
        }
        let left = bucket.regions.len() - 1;
        bucket.policy.validate(left).map_err(|why| {
            invalid(format!("without `{lost}`, `{name}` has {left} region(s) left, and {why}: it stays as it is, and goes on to be written in the other one"))
        })?;
        if agreed.0 != bucket.epoch {
            return Err(Refusal::new(
                RefusalKind::Consent,
                format!(
                    "the consent is for epoch {} of `{name}`, which is at {} now: estimate again",
                    agreed.0, bucket.epoch
                ),
            ));
        }
        let accepted = agreed.1;
        let way = Way::Losing { region, accepted, stopped: BTreeMap::new(), remains: BTreeMap::new() };
        let (index, at) = (occasion.index, occasion.at);
        bucket.crossing = Some(Crossing { index, at, pause_ms_max, way, arrived: BTreeMap::new() });
        let said = format!(
            "{lost} is lost: agreed to lose at most {accepted}; nobody writes under epoch {} from here on",
            bucket.epoch
        );
        self.buckets.insert(bucket.id, Arc::new(bucket.clone()));
        Ok(Done::new(Reply::of_bucket(bucket), Some(said)))
    }
}

/// What a consent agrees to lose of an active-active bucket with that region: in which epoch, and the most.
///
/// # Errors
/// Consent when it is for another bucket, or for another region.
pub fn agreed(consent: &Consent, name: &BucketName, lost: &RegionName) -> Result<(Epoch, Loss), Refusal> {
    let refuse = |why: String| Refusal::new(RefusalKind::Consent, why);
    if consent.lost.as_ref() != Some(lost) {
        return Err(refuse(format!(
            "the consent is not for the loss of `{lost}`: agree with what `meridian failover estimate --lost {lost}` prints"
        )));
    }
    consent.buckets.get(name).copied().ok_or_else(|| {
        refuse(format!("the consent says nothing of `{name}`: estimate with `--lost {lost} --bucket {name}`"))
    })
}

/// What is known to be lost with a region if the others have this: per shard, the most that it had said is missing, of an end of its
/// log that none of them has reached. What it acknowledged since nobody knows, for it orders without a lease.
pub fn known_loss(left: &Left) -> Loss {
    let mut top: BTreeMap<ShardId, Lsn> = BTreeMap::new();
    for (shard, it) in left.values().flatten() {
        let known = top.entry(*shard).or_default();
        *known = (*known).max(it.seal.lsn);
    }
    let mut loss = Loss { unbounded: true, ..Loss::default() };
    for (shard, reached) in &top {
        let told = left.values().filter_map(|shards| shards.get(shard)?.exposure);
        let beyond = told.filter(|exposure| exposure.head > *reached);
        let most = beyond.map(|it| (it.operations, it.bytes)).max().unwrap_or_default();
        loss = loss.and(Loss { operations: most.0, bytes: most.1, unbounded: true });
    }
    loss
}

/// Whether every region has said of every shard what it has, and is whole there.
pub(crate) fn is_complete(left: &Left, regions: &[RegionId], shards: u16) -> bool {
    let complete = |it: &BTreeMap<ShardId, Remains>| it.len() == usize::from(shards) && it.values().all(|it| it.whole);
    regions.iter().all(|region| left.get(region).is_some_and(complete))
}

/// The region with most of a lost one's log in every shard, or else the first one; and whether any has less than another.
pub(crate) fn most(left: &Left, regions: &[RegionId]) -> Option<(RegionId, bool)> {
    let of = |region: RegionId, shard: &ShardId| left.get(&region).and_then(|it| it.get(shard)).map(|it| it.seal.lsn);
    let shards = || left.values().flat_map(BTreeMap::keys);
    let has_most =
        |region: &RegionId| shards().all(|shard| regions.iter().all(|other| of(*other, shard) <= of(*region, shard)));
    let first = regions.first()?;
    let equal = regions.iter().all(has_most);
    Some((regions.iter().copied().find(has_most).unwrap_or(*first), !equal))
}
