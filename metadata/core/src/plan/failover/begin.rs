//! Planning a failover: every bucket is fit to be replaced, and somebody has agreed where that may lose something; or
//! nothing is planned.

use std::sync::Arc;

use meridian_types::{
    AutoMode, Bucket, Consent, Epoch, FailoverSpec, Goal, Loss, Move, Muster, Phase, Plan, PlanId, Refusal,
    RefusalKind, RegionId, Step,
};

use super::{preferred, regions_needed};
use crate::apply::{Done, Occasion};
use crate::event::{WHO_BYTES_MAX, shorten};
use crate::plan::select::{again, check_names, check_reason};
use crate::plan::{Next, buckets, phase_plan, standing, take, weight};
use crate::reply::Reply;
use crate::spec::invalid;
use crate::state::ClusterState;

impl ClusterState {
    /// Plans to replace primaries that are lost; each bucket that was found is fenced from here on.
    pub(crate) fn plan_failover(&mut self, occasion: Occasion<'_>, spec: &FailoverSpec) -> Result<Done, Refusal> {
        self.require_formed()?;
        check_reason(&spec.reason)?;
        check_names(&spec.buckets)?;
        let to = self.wished(spec)?;
        if let Some(known) = self.plans.values().find(|plan| plan.operation == occasion.operation) {
            return again(known, to, &spec.buckets);
        }
        let mut selected = self.selected(&spec.buckets)?;
        selected.sort_unstable_by_key(|bucket| bucket.id);
        let moves = selected.iter().map(|bucket| self.first_step_of_failover(occasion, bucket, to, spec));
        let moves = moves.collect::<Result<Vec<_>, _>>()?;
        let mut who = occasion.who.to_owned();
        shorten(&mut who, WHO_BYTES_MAX);
        let plan = Plan {
            id: PlanId(occasion.index),
            operation: occasion.operation,
            goal: Goal::Failover { to, automatic: spec.automatic },
            who,
            reason: spec.reason.clone(),
            created_ms: occasion.at_ms,
            shards: self.formed.as_ref().map_or(0, |formed| formed.shards),
            ended_ms: moves.iter().all(|it| it.step.is_final()).then_some(occasion.at_ms),
            moves,
        };
        self.make_room(weight(&plan), occasion.at_ms)?;
        let mut steps = Vec::new();
        for bucket in &selected {
            steps.extend(self.supersede(occasion, plan.id, bucket));
        }
        for it in plan.moves.iter().filter(|it| !it.step.is_final()) {
            if let Some(bucket) = self.buckets.get_mut(&it.bucket) {
                standing(&plan, it).put(Arc::make_mut(bucket), occasion.at);
            }
        }
        let change = format!(
            "{}: {}, {}; {}",
            plan.id,
            buckets(plan.moves.len()),
            spec.consent.as_ref().map_or_else(
                || "nothing may be lost".to_owned(),
                |consent| format!("agreed to lose at most {}", consent.total())
            ),
            if spec.reason.is_empty() { "no reason given" } else { &spec.reason }
        );
        let reply = Reply::Operation { plan: plan.id };
        self.plans.insert(plan.id, Arc::new(plan));
        Ok(Done { reply, change: Some(change), steps })
    }

    /// The next primary that was asked for, by the operator or by the estimate that was agreed to.
    fn wished(&self, spec: &FailoverSpec) -> Result<Option<RegionId>, Refusal> {
        let agreed = spec.consent.as_ref().and_then(|consent| consent.to.as_ref());
        match (&spec.to, agreed) {
            (Some(to), Some(agreed)) if to != agreed => Err(Refusal::new(
                RefusalKind::Consent,
                format!("`to` is `{to}`, but the consent is for `{agreed}`: estimate again for `{to}`"),
            )),
            (Some(to), _) | (None, Some(to)) => self.known_region("to", to).map(Some),
            (None, None) => Ok(None),
        }
    }

    fn first_step_of_failover(
        &self,
        occasion: Occasion<'_>,
        bucket: &Bucket,
        to: Option<RegionId>,
        spec: &FailoverSpec,
    ) -> Result<Move, Refusal> {
        let from = self.replaceable(bucket, to)?;
        let epoch_before = self.epoch_to_fence(bucket);
        let step = if to == Some(from) {
            Step::Unneeded
        } else {
            if spec.automatic {
                self.check_damping(bucket, occasion.at_ms)?;
            }
            let bounded = spec.automatic && matches!(bucket.auto.mode, AutoMode::Bounded { .. });
            let accepted = if bounded { None } else { accepted(bucket, epoch_before, spec.consent.as_ref())? };
            let first = to.or_else(|| preferred(bucket).find(|region| *region != from));
            Step::Fencing {
                since_ms: occasion.at_ms,
                epoch: crate::plan::raised(epoch_before),
                to: first.unwrap_or(from),
                muster: Muster { accepted, ..Muster::default() },
            }
        };
        Ok(Move { bucket: bucket.id, name: bucket.name.clone(), from, epoch_before, step })
    }

    /// Whether a failover that nobody asked for could begin with the bucket now. One that can't must not keep the others of its region from it.
    pub(crate) fn fails_over_by_itself(&self, bucket: &Bucket, now_ms: u64) -> bool {
        let bounded = matches!(bucket.auto.mode, AutoMode::Bounded { .. });
        self.replaceable(bucket, None).is_ok()
            && self.check_damping(bucket, now_ms).is_ok()
            && (bounded || accepted(bucket, self.epoch_to_fence(bucket), None).is_ok())
    }

    /// Checks that the bucket can have another primary; gives the present one.
    fn replaceable(&self, bucket: &Bucket, to: Option<RegionId>) -> Result<RegionId, Refusal> {
        match bucket.phase {
            Phase::Steady | Phase::CatchingUp { .. } | Phase::Draining { .. } => {}
            Phase::Fencing { .. } | Phase::Pulling { .. } => self.check_still(bucket)?,
        }
        let Some(from) = bucket.primary else {
            return Err(invalid(format!(
                "`{0}` is active-active: every region goes on accepting its writes, and there is nothing to fail over; leave it out, or, if a region of it does not come back, remove that one with `meridian failover run --lost REGION --bucket {0}`",
                bucket.name
            )));
        };
        if let Some(to) = to.filter(|to| !bucket.is_in(*to)) {
            let regions: Vec<_> = bucket.targets(from).map(|region| self.region_label(region)).collect();
            return Err(invalid(format!(
                "`{}` has no copy in `{}`: choose {}, or leave it out",
                bucket.name,
                self.region_label(to),
                if regions.is_empty() { "nothing, for it has no other copy".to_owned() } else { regions.join(", ") }
            )));
        }
        if bucket.targets(from).next().is_none() {
            return Err(invalid(format!(
                "`{}` has no copy outside `{}`: it comes back with that region; leave it out",
                bucket.name,
                self.region_label(from)
            )));
        }
        Ok(from)
    }

    /// The epoch to be fenced: a switchover under way is given up first.
    fn epoch_to_fence(&self, bucket: &Bucket) -> Epoch {
        self.given_up(bucket, 0, "").map_or(bucket.epoch, |(plan, it)| standing(&plan, &it).epoch)
    }

    /// The switchover that has the bucket, and its move once given up.
    fn given_up(&self, bucket: &Bucket, at_ms: u64, why: &str) -> Option<(Arc<Plan>, Move)> {
        let plan = self.plans.get(&phase_plan(bucket.phase)?)?;
        let mut it = plan.move_of(bucket.id)?.clone();
        it.step = take(it.step, it.epoch_before, Next::Restore { why: why.to_owned() }, at_ms);
        Some((Arc::clone(plan), it))
    }

    /// Gives up the switchover that has the bucket: its primary is lost.
    fn supersede(&mut self, occasion: Occasion<'_>, by: PlanId, bucket: &Bucket) -> Option<crate::apply::StepTaken> {
        let why = format!("its primary is lost, {by} replaces it");
        let (plan, it) = self.given_up(bucket, occasion.at_ms, &why)?;
        self.settle(occasion, plan.id, it, true);
        self.told(plan.id, bucket.id)
    }
}

/// What was agreed to lose of a bucket. Where something is lost for sure, somebody has to agree before writes stop.
fn accepted(bucket: &Bucket, epoch: Epoch, consent: Option<&Consent>) -> Result<Option<Loss>, Refusal> {
    let refuse = |why: String| Err(Refusal::new(RefusalKind::Consent, why));
    let agreed = consent.and_then(|consent| consent.buckets.get(&bucket.name));
    match agreed {
        None if regions_needed(bucket).is_some() => Ok(None),
        None => refuse(format!(
            "`{}` is {}: writes that its primary had not shipped are lost; agree to that with what `meridian failover estimate` prints",
            bucket.name, bucket.policy
        )),
        Some((at, _)) if *at != bucket.epoch && *at != epoch => refuse(format!(
            "the consent is for epoch {at} of `{}`, which is at {} now: estimate again",
            bucket.name, bucket.epoch
        )),
        Some((_, loss)) => Ok(Some(*loss)),
    }
}
