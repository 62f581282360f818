//! What an operation is about: buckets found by name, label or region, each of them fit to move, or nothing is planned.

use std::collections::BTreeSet;
use std::sync::Arc;

use meridian_types::{
    Bucket, BucketName, Goal, Move, Phase, Plan, PlanId, Refusal, RefusalKind, RegionId, Selection, Step,
    SwitchoverSpec,
};

use super::failover::is_counted;
use super::{PLANS_MAX, REASON_BYTES_MAX, SHARDS_MOVED_MAX, standing, weight};
use crate::apply::{Done, Occasion};
use crate::event::{WHO_BYTES_MAX, shorten};
use crate::reply::Reply;
use crate::spec::invalid;
use crate::state::ClusterState;

/// The most buckets one command names; beyond it a label says it shorter.
pub const NAMES_MAX: usize = 1000;

/// The greatest bound on lag, in milliseconds: an hour of backlog is no switchover.
pub const LAG_MS_MAX: u64 = 3_600_000;

/// The longest pause, in milliseconds: ten minutes without writes are an outage.
pub const PAUSE_MS_MAX: u64 = 600_000;

impl ClusterState {
    /// Plans to move primaries; every bucket that was found begins to catch up.
    pub(crate) fn plan_switchover(&mut self, occasion: Occasion<'_>, spec: &SwitchoverSpec) -> Result<Done, Refusal> {
        self.require_formed()?;
        check(spec)?;
        let to = self.known_region("to", &spec.to)?;
        if let Some(known) = self.plans.values().find(|plan| plan.operation == occasion.operation) {
            return again(known, Some(to), &spec.buckets);
        }
        let shards = self.formed.as_ref().map_or(0, |formed| formed.shards);
        let mut buckets = self.selected(&spec.buckets)?;
        buckets.sort_unstable_by_key(|bucket| bucket.id);
        let moves = buckets.iter().map(|bucket| self.first_step(bucket, to)).collect::<Result<Vec<_>, _>>()?;
        let ended_ms = moves.iter().all(|it| it.step.is_final()).then_some(occasion.at_ms);
        let mut who = occasion.who.to_owned();
        shorten(&mut who, WHO_BYTES_MAX);
        let plan = Plan {
            id: PlanId(occasion.index),
            operation: occasion.operation,
            goal: Goal::Switchover { to, lag_ms_max: spec.lag_ms_max, pause_ms_max: spec.pause_ms_max },
            who,
            reason: spec.reason.clone(),
            created_ms: occasion.at_ms,
            shards,
            moves,
            ended_ms,
        };
        self.make_room(weight(&plan), occasion.at_ms)?;
        for it in plan.moves.iter().filter(|it| !it.step.is_final()) {
            if let Some(bucket) = self.buckets.get_mut(&it.bucket) {
                standing(&plan, it).put(Arc::make_mut(bucket), occasion.at);
            }
        }
        let change = format!(
            "{}: {}, lag at most {} ms, pause at most {} ms; {}",
            plan.id,
            super::buckets(plan.moves.len()),
            spec.lag_ms_max,
            spec.pause_ms_max,
            if spec.reason.is_empty() { "no reason given" } else { &spec.reason }
        );
        let reply = Reply::Operation { plan: plan.id };
        self.plans.insert(plan.id, Arc::new(plan));
        Ok(Done::new(reply, Some(change)))
    }

    /// The buckets that are selected.
    ///
    /// # Errors
    /// NotFound names what there is not.
    pub fn selected(&self, selection: &Selection) -> Result<Vec<Arc<Bucket>>, Refusal> {
        let found: Vec<_> = match selection {
            Selection::Named(names) => return names.iter().map(|name| self.existing(name).cloned()).collect(),
            Selection::Labelled { key, value } => {
                let labelled = |it: &&Arc<Bucket>| it.primary.is_some() && it.labels.get(key) == Some(value);
                self.buckets.values().filter(labelled).cloned().collect()
            }
            Selection::AllFrom(region) => {
                let from = Some(self.known_region("all_from", region)?);
                self.buckets.values().filter(|it| it.primary == from).cloned().collect()
            }
        };
        if found.is_empty() {
            return Err(Refusal::new(
                RefusalKind::NotFound,
                format!(
                    "no bucket with a primary was found by `{selection}`: `meridian bucket list` shows labels and primaries"
                ),
            ));
        }
        Ok(found)
    }

    fn first_step(&self, bucket: &Bucket, to: RegionId) -> Result<Move, Refusal> {
        self.check_still(bucket)?;
        let Some(from) = bucket.primary else {
            return Err(invalid(format!(
                "`{}` is active-active and has no primary to move: every region accepts its writes; leave it out",
                bucket.name
            )));
        };
        if !bucket.is_in(to) {
            let regions: Vec<_> = bucket.regions.iter().map(|region| self.region_label(*region)).collect();
            return Err(invalid(format!(
                "`{}` has no copy in `{}`: move it to one of {}, or leave it out",
                bucket.name,
                self.region_label(to),
                regions.join(", ")
            )));
        }
        debug_assert!(bucket.phase == Phase::Steady, "checked to stand still");
        let step = if from == to { Step::Unneeded } else { Step::CatchingUp { caught_up: BTreeSet::new() } };
        Ok(Move { bucket: bucket.id, name: bucket.name.clone(), from, epoch_before: bucket.epoch, step })
    }

    /// Forgets the oldest operations that have ended until one of that weight fits. What damping counts goes last: else a busy day would
    /// make it forget that a bucket has failed over as often as it may.
    pub(super) fn make_room(&mut self, weight_added: usize, now_ms: u64) -> Result<(), Refusal> {
        let under_way = self.plans.values().filter(|plan| plan.ended_ms.is_none());
        let (count, busy) = under_way.fold((0, 0), |(count, sum), plan| (count + 1, sum + weight(plan)));
        if count >= PLANS_MAX || busy + weight_added > SHARDS_MOVED_MAX {
            return Err(Refusal::new(
                RefusalKind::Unavailable,
                format!(
                    "{count} operations on {busy} shards are under way and {weight_added} more shards don't fit (at most {PLANS_MAX} and {SHARDS_MOVED_MAX}): wait for some to end, or select fewer buckets"
                ),
            ));
        }
        let mut left = (self.plans.len() + 1, self.shards_moved() + weight_added);
        let ended = self.plans.values().filter(|plan| plan.ended_ms.is_some());
        let (counted, others): (Vec<&Arc<Plan>>, Vec<_>) = ended.partition(|plan| is_counted(plan, now_ms));
        let ended: Vec<PlanId> = others.into_iter().chain(counted).map(|plan| plan.id).collect();
        for id in ended {
            if left.0 <= PLANS_MAX && left.1 <= SHARDS_MOVED_MAX {
                break;
            }
            let weight = self.plans.remove(&id).map_or(0, |plan| weight(&plan));
            left = (left.0 - 1, left.1 - weight);
        }
        Ok(())
    }
}

/// Whoever asks again under the same id gets what was planned, however long ago, if it is what he asks for.
pub(super) fn again(known: &Plan, to: Option<RegionId>, selection: &Selection) -> Result<Done, Refusal> {
    let planned: BTreeSet<&BucketName> = known.moves.iter().map(|it| &it.name).collect();
    let same = match selection {
        Selection::Named(names) => names.iter().collect::<BTreeSet<_>>() == planned,
        Selection::Labelled { .. } | Selection::AllFrom(_) => true,
    };
    if known.to() == to && same {
        return Ok(Done::new(Reply::Operation { plan: known.id }, None));
    }
    Err(invalid(format!(
        "this operation id was used for {} before, which moves other buckets or elsewhere: use a new operation id",
        known.id
    )))
}

/// Checks what is asked, before the cluster is looked at.
fn check(spec: &SwitchoverSpec) -> Result<(), Refusal> {
    if spec.lag_ms_max > LAG_MS_MAX {
        return Err(invalid(format!("`max_lag = {} ms` is not valid: use at most {LAG_MS_MAX}", spec.lag_ms_max)));
    }
    if !(1..=PAUSE_MS_MAX).contains(&spec.pause_ms_max) {
        return Err(invalid(format!("`max_pause = {} ms` is not valid: use 1 to {PAUSE_MS_MAX}", spec.pause_ms_max)));
    }
    check_reason(&spec.reason)?;
    check_names(&spec.buckets)?;
    match &spec.buckets {
        Selection::AllFrom(from) if *from == spec.to => {
            Err(invalid(format!("`to` and `all_from` are both `{from}`: name two regions")))
        }
        Selection::Named(_) | Selection::Labelled { .. } | Selection::AllFrom(_) => Ok(()),
    }
}

pub(crate) fn check_reason(reason: &str) -> Result<(), Refusal> {
    if reason.len() > REASON_BYTES_MAX || reason.chars().any(char::is_control) {
        return Err(invalid(format!(
            "`reason` is not valid: use at most {REASON_BYTES_MAX} bytes without control characters"
        )));
    }
    Ok(())
}

pub(super) fn check_names(selection: &Selection) -> Result<(), Refusal> {
    match selection {
        Selection::Named(names) if !(1..=NAMES_MAX).contains(&names.len()) => {
            Err(invalid(format!("{} buckets are named: name 1 to {NAMES_MAX}, or select them by a label", names.len())))
        }
        Selection::Named(names) if names.iter().collect::<BTreeSet<_>>().len() < names.len() => {
            Err(invalid("a bucket is named twice: name each bucket once"))
        }
        Selection::Named(_) | Selection::Labelled { .. } | Selection::AllFrom(_) => Ok(()),
    }
}
