//! What becomes of one bucket after one failure.

use std::collections::{BTreeMap, BTreeSet};

use meridian_types::{AutoMode, Bucket, BucketId, LagBound, NodeId, Phase, Policy, RegionId};

use super::{Evidence, Exposure, Loss, Stop};

/// What is left of the cluster.
pub(super) struct Ground {
    /// Regions in which every group has its majority.
    standing: BTreeSet<RegionId>,
    voters_left: usize,
    voters_needed: usize,
}

impl Ground {
    /// After these nodes have died, too.
    pub(super) fn after(evidence: &Evidence, dead: &BTreeSet<NodeId>) -> Ground {
        let lives = |node: &NodeId| evidence.live.contains(node) && !dead.contains(node);
        let mut standing: BTreeMap<RegionId, bool> = BTreeMap::new();
        for ((region, _), voters) in &evidence.topology.groups {
            let left = voters.iter().filter(|node| lives(node)).count();
            *standing.entry(*region).or_insert(true) &= left > voters.len() / 2;
        }
        Ground {
            standing: standing.into_iter().filter(|(_, stands)| *stands).map(|(region, _)| region).collect(),
            voters_left: evidence.voters.iter().filter(|node| lives(node)).count(),
            voters_needed: evidence.voters.len() / 2 + 1,
        }
    }

    /// Why the metadata plane can't decide anything.
    pub(super) fn undecided(&self) -> Option<Stop> {
        let (left, needed) = (self.voters_left, self.voters_needed);
        (left < needed).then_some(Stop::NoMetadataMajority { left, needed })
    }
}

impl Evidence {
    /// Why acknowledged writes of a bucket would be lost. In an active-active bucket only what `before` still stood
    /// counts: what a region that was down already may have lost, no other failure loses.
    pub(super) fn loss(&self, before: Option<&Ground>, ground: &Ground, bucket: &Bucket) -> Option<Loss> {
        let left = self.left(ground, bucket);
        let Some(primary) = bucket.primary else {
            let stood = |region: &RegionId| before.is_none_or(|before| before.standing.contains(region));
            let gone: Vec<_> =
                bucket.regions.iter().copied().filter(|it| stood(it) && !ground.standing.contains(it)).collect();
            return self.exposed(bucket.id, gone, &left);
        };
        if ground.standing.contains(&primary) {
            return None;
        }
        let (holders, acks) = (bucket.regions.len(), acks_promised(bucket));
        if acks <= 1 || left.is_empty() {
            return self.exposed(bucket.id, vec![primary], &left);
        }
        // Each acknowledged write is in `acks` regions: it takes so many survivors to be sure that one of them has it.
        let needed = (holders + 1).saturating_sub(acks);
        (left.len() < needed).then_some(Loss::Unproven { left: left.len(), needed })
    }

    /// Why nobody would take writes of a bucket.
    pub(super) fn stop(&self, ground: &Ground, bucket: &Bucket) -> Option<Stop> {
        let left = self.left(ground, bucket);
        let Some(primary) = bucket.primary else {
            return left.is_empty().then_some(Stop::NoRegion);
        };
        if let Phase::Draining { plan, .. } | Phase::Fencing { plan, .. } = bucket.phase {
            return Some(Stop::Moving(plan));
        }
        if let Some(undecided) = ground.undecided() {
            return Some(undecided);
        }
        let needed = bucket.policy.required_regions(bucket.regions.len());
        // Where it may degrade, whoever is left acknowledges, once that is on record (DEG-1).
        let short = |have: usize| {
            let waits = have < needed && bucket.policy.degrade_after_ms().is_none();
            waits.then_some(Stop::TooFewRegions { left: have, needed })
        };
        if ground.standing.contains(&primary) {
            // The primary counts also where it can't be rested on: it is what the others are measured by.
            return short(left.iter().filter(|region| **region != primary).count() + 1);
        }
        if left.is_empty() {
            return Some(Stop::NoRegion);
        }
        let loss = self.loss(None, ground, bucket);
        if fails_over(bucket.auto.mode, loss.as_ref()) {
            return short(left.len());
        }
        Some(Stop::PrimaryLost { region: primary, proven: loss.is_none() })
    }

    /// The regions that stand, and whose copy of the bucket can be rested on.
    fn left(&self, ground: &Ground, bucket: &Bucket) -> BTreeSet<RegionId> {
        let sound = |region: &RegionId| !self.unsound.contains(&(bucket.id, *region));
        bucket.regions.iter().copied().filter(|it| ground.standing.contains(it) && sound(it)).collect()
    }

    fn exposed(&self, bucket: BucketId, origins: Vec<RegionId>, left: &BTreeSet<RegionId>) -> Option<Loss> {
        if origins.is_empty() {
            return None;
        }
        if left.is_empty() {
            return Some(Loss::NoCopy);
        }
        let least = |origin: &RegionId| {
            let lags = left.iter().filter_map(|target| self.lags.get(&(bucket, *origin, *target)));
            lags.copied().min_by_key(|lag| (lag.operations, lag.bytes))
        };
        let known = origins.iter().map(least).try_fold(Exposure::default(), |sum, one| one.map(|one| sum.and(one)));
        Some(Loss::Exposed { origins, known })
    }
}

impl Exposure {
    /// Both.
    fn and(self, other: Exposure) -> Exposure {
        Exposure {
            operations: self.operations.saturating_add(other.operations),
            bytes: self.bytes.saturating_add(other.bytes),
            oldest_ms: self.oldest_ms.max(other.oldest_ms),
            age_ms: self.age_ms.max(other.age_ms),
        }
    }
}

/// In how many regions each acknowledged write of a bucket with a primary is for certain: while it is DEGRADED or
/// RECOVERING, no more than one.
fn acks_promised(bucket: &Bucket) -> usize {
    match bucket.policy {
        Policy::Async { .. } | Policy::ActiveActive => 1,
        Policy::Sync { acks, .. } if bucket.standing.is_sync() => acks.required(bucket.regions.len()),
        Policy::Sync { .. } => 1,
    }
}

/// Whether the cluster replaces a lost primary by itself.
fn fails_over(mode: AutoMode, loss: Option<&Loss>) -> bool {
    match (mode, loss) {
        (AutoMode::Manual | AutoMode::ObserveOnly, _) => false,
        (AutoMode::ZeroLoss | AutoMode::Bounded { .. }, None) => true,
        (AutoMode::Bounded { max_lag }, Some(Loss::Exposed { known: Some(known), .. })) => is_within(*known, max_lag),
        (AutoMode::ZeroLoss | AutoMode::Bounded { .. }, Some(_)) => false,
    }
}

fn is_within(known: Exposure, bound: LagBound) -> bool {
    let fits = |figure: u64, most: Option<u64>| most.is_none_or(|most| figure <= most);
    // The figure is as old as it is: what came since counts against the bound on time.
    fits(known.oldest_ms.saturating_add(known.age_ms), bound.ms)
        && fits(known.operations, bound.operations)
        && fits(known.bytes, bound.bytes)
}
