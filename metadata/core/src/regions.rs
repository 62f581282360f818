//! Adding a region to a bucket and removing one, while it serves (docs/adr/2026-11-28-region-sets.md).
//!
//! ```text
//!   add      epoch e+1: C gets what is of e+1 and later, and is filled        every shard: C has all from before, and follows
//!   A, B ─────────────────────────────────────────────► A, B (+ C, joining) ──────────────────────────────► A, B, C
//!     ▲                                                     │ give up: remove it; epoch e+2
//!     └─────────────────────────────────────────────────────┘
//!   remove   epoch e+1: C's copies count no more
//!   A, B, C ─────────────────────────────────────────► A, B
//! ```
//! A region that joins counts for nothing: no acknowledgement, no proof of zero loss, no successor, for each of these looks at
//! the bucket's regions, and it is none yet. Where a region more or less changes how many must have a write, a new epoch begins: what
//! was acknowledged by the old rule counts as exposed until each shard, under the new epoch, has said otherwise (DUR-2).
//!
//! Deliberately not here: how a region is filled and what it drops (`region`), and active-active buckets (`regroup.rs`).

use std::collections::BTreeSet;
use std::sync::Arc;

use meridian_types::{
    Bucket, BucketName, Epoch, Hlc, Joining, Phase, Policy, Refusal, RefusalKind, RegionChange, RegionId, RegionName,
    STAYS_MAX, ShardId, Standing,
};

use crate::apply::{Done, Occasion, StepTaken};
use crate::reply::Reply;
use crate::spec::invalid;
use crate::state::{ClusterState, Fault, rule};

#[cfg(test)]
mod tests;

impl ClusterState {
    /// Adds a region to a bucket, or removes one.
    pub(crate) fn set_regions(
        &mut self,
        occasion: Occasion<'_>,
        name: &BucketName,
        change: &RegionChange,
    ) -> Result<Done, Refusal> {
        let mut bucket = Bucket::clone(self.existing(name)?);
        if bucket.primary.is_none() {
            return self.regroup(occasion, name, change, None);
        }
        let said = match change {
            RegionChange::Add(region) => self.add_to(&mut bucket, region, occasion.at)?,
            RegionChange::Remove(region) => self.remove_from(&mut bucket, region, occasion.at)?,
        };
        self.buckets.insert(bucket.id, Arc::new(bucket.clone()));
        Ok(Done::new(Reply::of_bucket(bucket), said))
    }

    fn add_to(&self, bucket: &mut Bucket, name: &RegionName, at: Hlc) -> Result<Option<String>, Refusal> {
        let region = self.holding_region(name)?;
        if bucket.reaches(region) {
            return Ok(None);
        }
        self.check_fixed(bucket)?;
        check_one_lane(bucket)?;
        bucket.policy.validate(bucket.regions.len() + 1).map_err(|why| invalid(why.to_string()))?;
        begin_epoch(bucket);
        bucket.standing = bucket.standing.clone().restarted(at);
        bucket.joins.since.insert(region, bucket.epoch);
        bucket.joins.now = Some(Joining { region, at, under: bucket.epoch, filled: BTreeSet::new(), pause_ms_max: 0 });
        Ok(Some(format!(
            "{name} joins: epoch {} begins; it is filled, and counts for nothing until it is",
            bucket.epoch
        )))
    }

    fn remove_from(&self, bucket: &mut Bucket, name: &RegionName, at: Hlc) -> Result<Option<String>, Refusal> {
        let region = self.known_region("remove-region", name)?;
        if bucket.joins.joining() == Some(region) {
            self.check_still(bucket)?;
            begin_epoch(bucket);
            bucket.joins.leave(region, bucket.epoch);
            bucket.standing = bucket.standing.clone().restarted(at);
            return Ok(Some(format!("{name} joins no more and drops what it has: epoch {} begins", bucket.epoch)));
        }
        if !bucket.is_in(region) {
            return Ok(None);
        }
        if bucket.primary == Some(region) {
            let others: Vec<_> = bucket.targets(region).map(|it| self.region_name(it)).collect();
            let to = others.first().map_or("REGION", String::as_str);
            return Err(invalid(format!(
                "`{name}` is the primary of `{0}`: move it first with `meridian switchover --bucket {0} --to {to}`",
                bucket.name
            )));
        }
        self.check_fixed(bucket)?;
        check_one_lane(bucket)?;
        let (before, left) = (bucket.regions.len(), bucket.regions.len() - 1);
        bucket.policy.validate(left).map_err(|why| too_few(bucket, name, left, &why.to_string()))?;
        if bucket.auto.successors.contains(&region) {
            return Err(invalid(format!(
                "`{name}` is among the successors of `{0}`: name others first with `meridian bucket set {0} --successors`",
                bucket.name
            )));
        }
        let (least, asked) = (bucket.policy.required_regions(before), bucket.policy.required_regions(left));
        begin_epoch(bucket);
        bucket.regions.retain(|it| *it != region);
        bucket.joins.leave(region, bucket.epoch);
        // Of what has been acknowledged, one copy is where it counts no more.
        bucket.standing = recounted(bucket, least - 1 < asked, at);
        Ok(Some(format!("{name} counts no more and drops what it has: epoch {} begins", bucket.epoch)))
    }

    /// A region that can be added to a bucket.
    pub(crate) fn holding_region(&self, name: &RegionName) -> Result<RegionId, Refusal> {
        let region = self.known_region("add-region", name)?;
        if !self.holds_data(region) {
            return Err(invalid(format!("`{name}` is a witness: it votes in the metadata plane and holds no data")));
        }
        Ok(region)
    }

    /// Refuses while something else about the bucket's regions is under way.
    pub(crate) fn check_fixed(&self, bucket: &Bucket) -> Result<(), Refusal> {
        self.check_still(bucket)?;
        let Some(joining) = bucket.joins.joining() else { return Ok(()) };
        let (region, name) = (self.region_name(joining), &bucket.name);
        Err(Refusal::new(
            RefusalKind::Retry,
            format!(
                "`{region}` is joining `{name}`: wait until `meridian bucket show {name}` says that it counts, or give it up with `meridian bucket set {name} --remove-region {region}`"
            ),
        ))
    }

    /// Checks every rule about regions that were added later.
    pub(crate) fn validate_joins(&self, bucket: &Bucket) -> Result<(), Fault> {
        let shards = self.formed.as_ref().map_or(0, |formed| formed.shards);
        let joins = &bucket.joins;
        rule(
            joins.since.iter().all(|(region, epoch)| bucket.reaches(*region) && *epoch <= bucket.epoch),
            "a region was added that is not there, or in an epoch to come",
        )?;
        rule(
            joins.was.len() <= STAYS_MAX && joins.was.iter().all(|it| it.since < it.until && it.until <= bucket.epoch),
            "a region was there in no epoch, or in one to come",
        )?;
        let Some(joining) = &joins.now else { return Ok(()) };
        rule(!bucket.is_in(joining.region), "a region is joining that is there already")?;
        rule(self.holds_data(joining.region), "a region is joining that does not exist or holds no data")?;
        rule(joins.since.contains_key(&joining.region), "a region is joining since no epoch")?;
        rule(joining.under <= bucket.epoch && joining.at <= self.clock, "a region is joining from the future")?;
        rule(joining.filled.iter().all(|it| it.0 < shards), "a region is filled in a shard that does not exist")?;
        // In an active-active bucket it waits for the others to meet.
        rule(bucket.primary.is_none() || !self.is_filled(joining), "a region is filled and joining still")
    }
}

/// Shards of the primary's region say that the region that joins is filled; once all have, it counts.
pub(crate) fn hear(
    bucket: &mut Bucket,
    (region, name): (RegionId, &str),
    filled: &BTreeSet<ShardId>,
    shards: u16,
    at: Hlc,
) -> Option<StepTaken> {
    // While its primary is moved, its epoch is the operation's.
    if bucket.phase != Phase::Steady {
        return None;
    }
    let epoch = bucket.epoch;
    let joining = bucket.joins.now.as_mut().filter(|joining| joining.region == region)?;
    if joining.under != epoch {
        // What a lost primary's shards said is not what the next one has.
        (joining.under, joining.filled) = (epoch, BTreeSet::new());
    }
    joining.filled.extend(filled.iter().filter(|shard| shard.0 < shards));
    if joining.filled.len() < usize::from(shards) {
        return None;
    }
    let took_ms = at.millis().saturating_sub(joining.at.millis());
    let before = bucket.regions.len();
    bucket.joins.now = None;
    bucket.regions.push(region);
    bucket.regions.sort_unstable();
    let (least, asked) = (bucket.policy.required_regions(before), bucket.policy.required_regions(before + 1));
    let mut detail = format!("{name} has everything, after {took_ms} ms, and counts from now on");
    if asked != least {
        begin_epoch(bucket);
        bucket.standing = recounted(bucket, true, at);
        detail = format!("{detail}: epoch {} begins, in which {asked} regions acknowledge", bucket.epoch);
    }
    Some(StepTaken { verb: "joined", subject: bucket.name.to_string(), detail })
}

fn begin_epoch(bucket: &mut Bucket) {
    bucket.epoch = Epoch(bucket.epoch.0.saturating_add(1));
}

/// How the copies stand under the epoch that has just begun.
fn recounted(bucket: &Bucket, lacking: bool, at: Hlc) -> Standing {
    match (&bucket.standing, bucket.policy) {
        (Standing::Sync { .. }, Policy::Sync { .. }) if lacking => {
            Standing::Recovering { since: at, exposed_since: at, ready: BTreeSet::new() }
        }
        (other, _) => other.clone().restarted(at),
    }
}

/// A turn is forgotten once the regions that count have followed; one more or less would be forgotten too late or too soon.
fn check_one_lane(bucket: &Bucket) -> Result<(), Refusal> {
    if !bucket.is_turning() {
        return Ok(());
    }
    let why = format!(
        "`{0}` still has writes in the lane of its earlier policy: wait until `meridian bucket show {0}` says that its lanes have turned",
        bucket.name
    );
    Err(Refusal::new(RefusalKind::Retry, why))
}

fn too_few(bucket: &Bucket, region: &RegionName, left: usize, why: &str) -> Refusal {
    let set = match bucket.policy {
        Policy::Sync { .. } if left < 2 => format!("--policy async` first: {left} region can't be sync"),
        Policy::Sync { .. } => format!("--acks {left}` or less first"),
        Policy::Async { .. } | Policy::ActiveActive => "--max-lag none` first".to_owned(),
    };
    invalid(format!(
        "without `{region}`, `{0}` has {left} region(s) left, and {why}: `meridian bucket set {0} {set}",
        bucket.name
    ))
}
