//! `failover estimate` (SWI-2): what every node that answered has, put together.
//!
//! What is decided from it is decided by the code that decides the failover itself ([`super::assess`]). Deliberately not
//! here: who is asked, and for how long an answer is waited for (the composition root, and the simulated planet).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meridian_types::loss::older;
use meridian_types::{
    Bucket, BucketEstimate, BucketId, Consent, Estimate, KeyStart, Loss, Muster, Plan, RegionId, Remains, ShardFacts,
    ShardId, Topology,
};

use crate::lose;

/// What is asked.
pub struct Asked<'a> {
    /// The region of the node that is asked.
    pub here: RegionId,
    /// The next primary that was named.
    pub to: Option<RegionId>,
    /// The region that active-active buckets are to go on without.
    pub lost: Option<RegionId>,
    /// What that node knows of the cluster.
    pub topology: &'a Topology,
    /// The buckets that are asked for.
    pub buckets: &'a [Arc<Bucket>],
    /// The operations that it knows of, oldest first.
    pub plans: &'a [Arc<Plan>],
}

/// What was heard.
#[derive(Debug, Default)]
pub struct Heard {
    /// The regions of which a node answered.
    regions: BTreeSet<RegionId>,
    facts: BTreeMap<(BucketId, RegionId, ShardId), ShardFacts>,
}

impl Heard {
    /// Takes note of what a node said: its region, and what the shards that it leads have.
    pub fn add(&mut self, (region, facts): (RegionId, Vec<ShardFacts>)) {
        self.regions.insert(region);
        for fact in facts {
            let place = (fact.bucket, region, fact.shard);
            // Two nodes that both believe to lead a shard: the one that has more is right.
            if self.facts.get(&place).is_none_or(|known| fact.remains.rank() > known.remains.rank()) {
                self.facts.insert(place, fact);
            }
        }
    }

    fn of(&self, bucket: BucketId) -> impl Iterator<Item = (RegionId, &ShardFacts)> {
        let range = (bucket, RegionId(0), ShardId(0))..=(bucket, RegionId(u16::MAX), ShardId(u16::MAX));
        self.facts.range(range).map(|((_, region, _), fact)| (*region, fact))
    }
}

/// Puts together what was heard.
pub fn estimate(asked: &Asked<'_>, heard: &Heard) -> Estimate {
    let buckets: Vec<BucketEstimate> =
        asked.buckets.iter().filter_map(|bucket| estimate_bucket(asked, bucket, heard)).collect();
    let to = asked.to.and_then(|to| asked.topology.regions.get(&to)).map(|region| region.name.clone());
    let risky = buckets.iter().filter(|it| it.to.is_some() && !it.proven);
    let agreed: BTreeMap<_, _> = risky.map(|it| (it.name.clone(), (it.epoch, it.lost))).collect();
    let lost = asked.lost.and_then(|lost| asked.topology.regions.get(&lost)).map(|region| region.name.clone());
    let consent = (!agreed.is_empty()).then_some(Consent { to, lost, buckets: agreed });
    Estimate { region: asked.here, heard: heard.regions.iter().copied().collect(), took_ms: 0, buckets, consent }
}

fn estimate_bucket(asked: &Asked<'_>, bucket: &Bucket, heard: &Heard) -> Option<BucketEstimate> {
    let from = bucket.primary.or(asked.lost).filter(|from| bucket.is_in(*from))?;
    let mut muster = Muster::default();
    for (region, fact) in heard.of(bucket.id).filter(|(region, _)| *region != from && bucket.is_in(*region)) {
        muster.remains.entry(region).or_default().insert(fact.shard, fact.remains);
    }
    let assessment = super::assess(bucket, asked.topology.shards, asked.plans, &muster, asked.to);
    let ((oldest_ms, oldest_key), said_ms) = words(bucket, from, heard);
    let estimate = BucketEstimate {
        bucket: bucket.id,
        name: bucket.name.clone(),
        epoch: bucket.epoch,
        from,
        primary_answers: heard.regions.contains(&from),
        to: None,
        pulls: false,
        proven: false,
        needed: super::regions_needed(bucket),
        heard: Vec::new(),
        lost: Loss::default(),
        known: Loss::default(),
        oldest_ms,
        oldest_key,
        said_ms,
        obstacle: String::new(),
    };
    if bucket.primary.is_some() && asked.lost.is_some() {
        // No consent can be given to what would be refused.
        let obstacle = format!("it has a primary, {}: ask without --lost", asked.topology.region_label(from));
        return Some(BucketEstimate { obstacle, ..estimate });
    }
    if bucket.primary.is_none() {
        return Some(without(asked, bucket, &muster.remains, estimate));
    }
    Some(match assessment {
        Some(it) => BucketEstimate {
            to: Some(it.to),
            pulls: it.pulls,
            proven: it.verdict.proven,
            heard: it.verdict.heard,
            lost: it.verdict.lost,
            known: it.known,
            ..estimate
        },
        None => BucketEstimate { obstacle: obstacle(asked, bucket, from, &muster.remains), ..estimate },
    })
}

/// Of an active-active bucket: what it costs to go on without the region that `estimate` is about. All the others have to meet.
fn without(asked: &Asked<'_>, bucket: &Bucket, left: &lose::Left, estimate: BucketEstimate) -> BucketEstimate {
    let label = |region: &RegionId| asked.topology.region_label(*region);
    let others: Vec<RegionId> = bucket.targets(estimate.from).collect();
    let one = |region: &RegionId| lose::is_complete(left, std::slice::from_ref(region), asked.topology.shards);
    let (heard, missing): (Vec<RegionId>, Vec<RegionId>) = others.iter().partition(|region| one(region));
    let obstacle = if let Err(why) = bucket.policy.validate(others.len()) {
        format!("{} region(s) would be left, and {why}", others.len())
    } else if let Some(crossing) = &bucket.crossing {
        format!("it is {}", crossing.way)
    } else if !missing.is_empty() {
        let missing: Vec<String> = missing.iter().map(label).collect();
        format!(
            "all the others have to meet, and {} does not answer, has no leader for some shard, or is being repaired",
            missing.join(", ")
        )
    } else {
        String::new()
    };
    let most = lose::most(left, &others).filter(|_| obstacle.is_empty());
    let (to, pulls) = most.map_or((None, false), |(to, pulls)| (Some(to), pulls));
    let lost = lose::known_loss(left);
    BucketEstimate { to, pulls, heard, lost, known: Loss { unbounded: false, ..lost }, obstacle, ..estimate }
}

/// The age of the oldest write that was known to be missing and its key, and the age of the oldest of the last words about any shard.
fn words(bucket: &Bucket, from: RegionId, heard: &Heard) -> ((u64, Option<KeyStart>), Option<u64>) {
    let mut newest: BTreeMap<ShardId, (u64, (u64, Option<KeyStart>))> = BTreeMap::new();
    for (_, fact) in heard.of(bucket.id).filter(|(region, _)| *region != from) {
        let (Some(said_ms), Some(exposure)) = (fact.said_ms, fact.exposure()) else { continue };
        let oldest = (exposure.oldest_ms, fact.oldest_key.clone());
        let known = newest.entry(fact.shard).or_insert_with(|| (said_ms, oldest.clone()));
        known.0 = known.0.min(said_ms);
        // What one region has nobody needs to miss.
        if oldest.0 < known.1.0 {
            known.1 = oldest;
        }
    }
    let said_ms = newest.values().map(|(said, _)| *said).max();
    let oldest = newest.into_values().map(|(_, oldest)| oldest).reduce(older).unwrap_or_default();
    (oldest, said_ms)
}

fn obstacle(
    asked: &Asked<'_>,
    bucket: &Bucket,
    from: RegionId,
    remains: &BTreeMap<RegionId, BTreeMap<ShardId, Remains>>,
) -> String {
    let label = |region: RegionId| asked.topology.region_label(region);
    let others: Vec<String> = bucket.targets(from).map(label).collect();
    match asked.to {
        _ if others.is_empty() => format!("it has no copy outside {}", label(from)),
        Some(to) if to == from => format!("{} is its primary already", label(to)),
        Some(to) if !bucket.is_in(to) => format!("{} has no copy of it: it is in {}", label(to), others.join(", ")),
        Some(to) if !remains.contains_key(&to) => format!("{} does not answer", label(to)),
        Some(to) => format!("{} has no leader for some shard, or is being repaired: try again", label(to)),
        None if remains.is_empty() => format!("none of {} answers", others.join(", ")),
        None => format!("no region of {} has a whole copy now: see `meridian status`", others.join(", ")),
    }
}
