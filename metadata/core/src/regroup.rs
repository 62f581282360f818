//! Adding a region to an active-active bucket and removing one, while it serves
//! (docs/adr/2026-11-28-active-active-region-sets.md).
//!
//! ```text
//!                  all stopped, and have what all stopped at                         it is filled; all stopped once more
//!   A, B, e ──► joining C ──────────────► A, B (+ C, joining), e+1 ──► counting C ───────────────► A, B, C, e+2
//!                                            └── given up: one commit ─► A, B, e+1
//!   A, B, C, e ──► leaving C ───────────► A, B, e+1
//! ```
//! Every region stands at the same place where a set changes, so whether an entry travels to a region follows from its epoch (ORD-1), and
//! whoever writes in an epoch has all of the earlier ones (ONE-1).
//!
//! Deliberately not here: how regions stop, meet and give up (`crossing.rs`), and how one is filled (`region`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meridian_types::{
    Bucket, BucketName, Crossing, Epoch, Hlc, Joining, Refusal, RegionChange, RegionId, RegionName, Regroup, ShardId,
    Way,
};

use crate::apply::{Done, Occasion, StepTaken};
use crate::crossing::check_pause;
use crate::reply::Reply;
use crate::spec::invalid;
use crate::state::ClusterState;

#[cfg(test)]
mod tests;

impl ClusterState {
    /// Sends an active-active bucket on its way to a region more or less; gives up a joining at once.
    pub(crate) fn regroup(
        &mut self,
        occasion: Occasion<'_>,
        name: &BucketName,
        change: &RegionChange,
        pause_ms_max: Option<u64>,
    ) -> Result<Done, Refusal> {
        let mut bucket = Bucket::clone(self.existing(name)?);
        if bucket.policy.has_primary() {
            return Err(invalid(format!(
                "`{name}` is {}: its regions change without holding writes for longer than a seal takes, so leave out `max-pause`",
                bucket.policy
            )));
        }
        self.check_crossing(&bucket)?;
        let begun = match change {
            RegionChange::Add(region) => self.regroup_with(&mut bucket, region)?,
            RegionChange::Remove(region) => self.regroup_without(&mut bucket, region)?,
        };
        let said = match begun {
            Begun::Nothing => None,
            Begun::Done(said) => Some(said),
            Begun::Crossing(region, change) => {
                let pause_ms_max = pause_ms_max.ok_or_else(|| unsaid(&bucket))?;
                check_pause(pause_ms_max)?;
                Some(self.begin_regrouping(&mut bucket, (region, change), pause_ms_max, occasion.at))
            }
        };
        self.buckets.insert(bucket.id, Arc::new(bucket.clone()));
        Ok(Done::new(Reply::of_bucket(bucket), said))
    }

    fn regroup_with(&self, bucket: &mut Bucket, name: &RegionName) -> Result<Begun, Refusal> {
        let region = self.holding_region(name)?;
        if bucket.joins.now.as_ref().is_some_and(|it| it.region == region && self.is_filled(it)) {
            return Ok(Begun::Crossing(region, Regroup::Count));
        }
        if bucket.reaches(region) {
            return Ok(Begun::Nothing);
        }
        self.check_fixed(bucket)?;
        self.check_one_lane(bucket)?;
        Ok(Begun::Crossing(region, Regroup::Join))
    }

    fn regroup_without(&self, bucket: &mut Bucket, name: &RegionName) -> Result<Begun, Refusal> {
        let region = self.known_region("remove-region", name)?;
        if bucket.joins.joining() == Some(region) {
            // Nobody waits for it and it orders nothing. What it has of this epoch is passed over whenever it comes back.
            bucket.joins.leave(region, bucket.epoch);
            return Ok(Begun::Done(format!("{name} joins no more and drops what it has")));
        }
        if !bucket.is_in(region) {
            return Ok(Begun::Nothing);
        }
        self.check_fixed(bucket)?;
        self.check_one_lane(bucket)?;
        let left = bucket.regions.len() - 1;
        bucket.policy.validate(left).map_err(|why| {
            invalid(format!(
                "without `{name}`, `{0}` has {left} region(s) left, and {why}: `meridian bucket set {0} --policy async --primary REGION` first",
                bucket.name
            ))
        })?;
        if bucket.auto.successors.contains(&region) {
            return Err(invalid(format!(
                "`{name}` is among the successors of `{0}`: name others first with `meridian bucket set {0} --successors`",
                bucket.name
            )));
        }
        Ok(Begun::Crossing(region, Regroup::Leave))
    }

    /// From here on until all regions have arrived nobody orders anything that counts.
    fn begin_regrouping(
        &self,
        bucket: &mut Bucket,
        (region, change): (RegionId, Regroup),
        pause_ms_max: u64,
        at: Hlc,
    ) -> String {
        let way = Way::Regrouping { region, change, stopped: BTreeMap::new() };
        bucket.crossing = Some(Crossing { index: self.index, at, pause_ms_max, way, arrived: BTreeMap::new() });
        let becomes = match change {
            Regroup::Join => "is to join",
            Regroup::Count => "has everything, and is to write",
            Regroup::Leave => "is to leave",
        };
        format!("{} {becomes}: nobody writes under epoch {} from here on", self.region_name(region), bucket.epoch)
    }

    /// The region that joins says in which shards it is filled. Once it is in all of them, writes are held once more, for it to count.
    pub(crate) fn hear_filled(
        &mut self,
        at: Hlc,
        (id, region): (meridian_types::BucketId, RegionId),
        filled: &BTreeSet<ShardId>,
    ) -> Option<StepTaken> {
        let shards = self.shards();
        let mut bucket = Bucket::clone(self.buckets.get(&id)?);
        let joining = bucket.joins.now.as_mut().filter(|it| it.region == region && !self.is_filled(it))?;
        joining.filled.extend(filled.iter().filter(|shard| shard.0 < shards));
        let pause_ms_max = joining.pause_ms_max;
        let complete = self.is_filled(joining);
        // By itself once: if that is given up, whoever adds it says when to try again.
        let detail = complete.then(|| self.begin_regrouping(&mut bucket, (region, Regroup::Count), pause_ms_max, at));
        let subject = bucket.name.to_string();
        self.buckets.insert(id, Arc::new(bucket));
        detail.map(|detail| StepTaken { verb: "filled", subject, detail })
    }

    /// Whether a region that joins has everything from before, in every shard.
    pub(crate) fn is_filled(&self, joining: &Joining) -> bool {
        joining.filled.len() >= usize::from(self.shards())
    }
}

/// What a wish for another set of regions comes to.
enum Begun {
    /// It is like that already, or comes to be.
    Nothing,
    /// It is done at once.
    Done(String),
    /// All regions have to meet first.
    Crossing(RegionId, Regroup),
}

/// All regions stand at the same place: the epoch begins in which the set is another one.
pub(crate) fn arrive(bucket: &mut Bucket, (region, change): (RegionId, Regroup), pause_ms_max: u64, at: Hlc) -> String {
    bucket.epoch = Epoch(bucket.epoch.0.saturating_add(1));
    bucket.standing = bucket.standing.clone().restarted(at);
    match change {
        Regroup::Join => {
            let (under, filled) = (bucket.epoch, BTreeSet::new());
            bucket.joins.since.insert(region, bucket.epoch);
            bucket.joins.now = Some(Joining { region, at, under, filled, pause_ms_max });
            "is filled from now on".to_owned()
        }
        Regroup::Count => {
            let since = bucket.joins.now.take().map_or(at, |joining| joining.at);
            bucket.regions.push(region);
            bucket.regions.sort_unstable();
            format!("writes, after {} ms", at.millis().saturating_sub(since.millis()))
        }
        Regroup::Leave => {
            bucket.regions.retain(|it| *it != region);
            bucket.joins.leave(region, bucket.epoch);
            "counts no more and drops what it has".to_owned()
        }
    }
}

/// Whoever asks has to say for how long writes may be held.
fn unsaid(bucket: &Bucket) -> Refusal {
    invalid(format!(
        "`{}` is active-active: nobody writes until all its regions stand at the same place, so say how long that may take; this comes from a client of an earlier release",
        bucket.name
    ))
}
