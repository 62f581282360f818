//! Changes of a bucket's policy and regions on record as operations (docs/adr/2026-11-29-changes-on-record.md).
//!
//! ```text
//!   Ask ──► the plain action, which decides ──► what the bucket is ──► the stage that its change is at ──► on record, with the time
//!                                                     ▲
//!                     every other command ────────────┘
//! ```
//! A record decides nothing: the stage follows from the bucket after each command ([`seen`]), so no protocol has to tell it anything and
//! none can be told wrong. At most one change of a bucket is under way: who asks for another thing ends it.
//!
//! Deliberately not here: what the changes do (`turns`, `acks`, `regions`, `crossing`, `regroup`, `lose`).

use std::collections::BTreeSet;
use std::sync::Arc;

use meridian_types::{
    Acks, Bucket, BucketId, Change, ChangeEnd, ChangeGoal, ChangeOutcome, PlanId, Policy, Refusal, RefusalKind,
    RegionChange, RegionName, Stage, Staged, Terms,
};

use crate::apply::{Done, Occasion, StepTaken};
use crate::command::{AbortScope, Action, Ask};
use crate::crossing::give_up;
use crate::event::{WHO_BYTES_MAX, shorten};
use crate::plan::{PLANS_MAX, REASON_BYTES_MAX, check_reason, unknown};
use crate::reply::Reply;
use crate::spec::invalid;
use crate::state::{ClusterState, Fault, rule};

#[cfg(test)]
mod tests;

/// The most stages of a change that are kept: more than any can pass through by itself.
const STAGES_MAX: usize = 8;

/// Where a bucket has its change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    At(Stage),
    Done,
    /// Nothing of it is left.
    Off,
}

impl ClusterState {
    /// Changes a bucket, and puts that on record.
    pub(crate) fn change(&mut self, occasion: Occasion<'_>, ask: &Ask, reason: &str) -> Result<Done, Refusal> {
        check_reason(reason)?;
        let goal = ask.goal(self)?;
        if let Some(known) = self.changes.values().find(|it| it.operation == occasion.operation) {
            return self.asked_again(known, ask, goal);
        }
        if let Some(plan) = self.plans.values().find(|it| it.operation == occasion.operation) {
            return Err(used(plan.id, "moves primaries"));
        }
        let before = Arc::clone(self.existing(ask.name())?);
        let mut done = self.act(occasion, &ask.action())?;
        let Some(after) = self.buckets.get(&before.id).map(Arc::clone) else { return Ok(done) };
        let id = PlanId(occasion.index);
        let former = self.changes.values().find(|it| it.bucket == before.id && it.end.is_none()).cloned();
        if let Some(former) = former {
            if after == before && aims_alike(former.goal, goal) {
                // It is on its way to that already.
                return Ok(done);
            }
            if after != before {
                let step = self.end(occasion, former.id, displaced(&former, goal, id, occasion.who));
                done.steps.extend(step);
            }
        }
        done.change = done.change.map(|said| {
            let why = if reason.is_empty() { "no reason given" } else { reason };
            format!("{id}: {said}; {why}")
        });
        self.put(occasion, &before, goal, reason, after == before);
        Ok(done)
    }

    /// Whoever asks again under the same id gets the bucket as it is now, however long ago that was, if it is what he asks for.
    fn asked_again(&self, known: &Change, ask: &Ask, goal: ChangeGoal) -> Result<Done, Refusal> {
        if known.goal != goal || known.name != *ask.name() {
            return Err(used(known.id, "changes another bucket or otherwise"));
        }
        let bucket = self.existing(ask.name())?;
        Ok(Done::new(Reply::of_bucket(Bucket::clone(bucket)), None))
    }

    fn put(&mut self, occasion: Occasion<'_>, before: &Bucket, goal: ChangeGoal, reason: &str, nothing: bool) {
        let mut who = occasion.who.to_owned();
        shorten(&mut who, WHO_BYTES_MAX);
        let end = ChangeEnd { at_ms: occasion.at_ms, epoch: before.epoch, outcome: ChangeOutcome::Done };
        let change = Change {
            id: PlanId(occasion.index),
            operation: occasion.operation,
            who,
            reason: reason.to_owned(),
            bucket: before.id,
            name: before.name.clone(),
            before: Terms::of(before),
            goal,
            created_ms: occasion.at_ms,
            stages: Vec::new(),
            end: nothing.then_some(end),
        };
        self.changes.insert(change.id, Arc::new(change));
        self.forget_changes();
    }

    /// Forgets the oldest that have ended. Of those under way there are no more than buckets.
    fn forget_changes(&mut self) {
        let ended: Vec<PlanId> = self.changes.values().filter(|it| it.end.is_some()).map(|it| it.id).collect();
        for id in ended.iter().take(ended.len().saturating_sub(PLANS_MAX)) {
            self.changes.remove(id);
        }
    }

    /// Puts on record how far changes have come after a command; its steps are told with the operation that they belong to.
    pub(crate) fn follow_changes(&mut self, occasion: Occasion<'_>, action: &Action, steps: &mut Vec<StepTaken>) {
        let under_way: Vec<Arc<Change>> = self.changes.values().filter(|it| it.end.is_none()).cloned().collect();
        for change in under_way {
            let of_it = |step: &&mut StepTaken| step.subject == change.name.as_str();
            let restored = steps.iter().find(|it| it.verb == "restore" && it.subject == change.name.as_str());
            let restored = restored.map(|it| it.detail.clone());
            steps.iter_mut().filter(of_it).filter(|it| !it.detail.contains("(op-")).for_each(|it| {
                it.detail = format!("{} ({})", it.detail, change.id);
            });
            let step = self.follow(occasion, &change, || gone(occasion.who, action, restored));
            steps.extend(step);
        }
    }

    /// The change is where its bucket has it. `why` is asked for when nothing of it is left.
    fn follow(
        &mut self,
        occasion: Occasion<'_>,
        change: &Change,
        why: impl FnOnce() -> ChangeOutcome,
    ) -> Option<StepTaken> {
        match self.seen(change) {
            Seen::At(stage) if change.stage() == Some(stage) => None,
            Seen::At(stage) => {
                let epoch = self.buckets.get(&change.bucket)?.epoch;
                let change = Arc::make_mut(self.changes.get_mut(&change.id)?);
                change.stages.truncate(STAGES_MAX - 1);
                change.stages.push(Staged { at_ms: occasion.at_ms, epoch, stage });
                None
            }
            Seen::Done => self.end(occasion, change.id, ChangeOutcome::Done),
            Seen::Off => self.end(occasion, change.id, why()),
        }
    }

    /// Gives up changes of which nothing is left after the metadata plane was recovered.
    pub(crate) fn recover_changes(&mut self, occasion: Occasion<'_>, why: &str) -> Vec<PlanId> {
        let under_way: Vec<Arc<Change>> = self.changes.values().filter(|it| it.end.is_none()).cloned().collect();
        for change in &under_way {
            self.follow(occasion, change, || ChangeOutcome::GivenUp { why: why.to_owned() });
        }
        let given_up = |id: &PlanId| matches!(self.changes.get(id).and_then(|it| it.end.as_ref()), Some(end) if end.outcome != ChangeOutcome::Done);
        under_way.iter().map(|it| it.id).filter(given_up).collect()
    }

    fn end(&mut self, occasion: Occasion<'_>, id: PlanId, mut outcome: ChangeOutcome) -> Option<StepTaken> {
        let bucket = self.changes.get(&id)?.bucket;
        let epoch = self.buckets.get(&bucket).map(|it| it.epoch);
        let change = Arc::make_mut(self.changes.get_mut(&id)?);
        let (verb, why) = match &mut outcome {
            ChangeOutcome::Done => ("done", String::new()),
            ChangeOutcome::Aborted { who, why } => {
                shorten(who, WHO_BYTES_MAX);
                shorten(why, REASON_BYTES_MAX);
                ("aborted", format!(": {why}"))
            }
            ChangeOutcome::GivenUp { why } => {
                shorten(why, REASON_BYTES_MAX);
                ("given-up", format!(": {why}"))
            }
        };
        let epoch = epoch.unwrap_or(change.before.epoch);
        change.end = Some(ChangeEnd { at_ms: occasion.at_ms, epoch, outcome });
        let took_ms = occasion.at_ms.saturating_sub(change.created_ms);
        // What began and ended in one commit has been told by what was asked.
        let told = !change.stages.is_empty() || verb != "done";
        let detail = format!("{} ({id}), after {took_ms} ms{why}", change.goal.kind());
        let step = told.then(|| StepTaken { verb, subject: change.name.to_string(), detail });
        self.forget_changes();
        step
    }

    fn seen(&self, change: &Change) -> Seen {
        let Some(bucket) = self.buckets.get(&change.bucket) else { return Seen::Off };
        let settled =
            if bucket.standing.is_sync() && !bucket.is_turning() { Seen::Done } else { Seen::At(Stage::Settling) };
        match change.goal {
            ChangeGoal::Policy { policy } if is_alike(bucket.policy, policy) => settled,
            ChangeGoal::Acks { acks } if acks_of(bucket.policy) == Some(acks) => settled,
            ChangeGoal::Policy { .. } | ChangeGoal::Acks { .. } => Seen::Off,
            _ if bucket.crossing.is_some() => Seen::At(Stage::Meeting),
            ChangeGoal::Cross { policy, .. } if bucket.policy.has_primary() == policy.has_primary() => settled,
            ChangeGoal::Add { region, .. } if bucket.is_in(region) => settled,
            ChangeGoal::Add { region, .. } => match &bucket.joins.now {
                Some(joining) if joining.region == region && self.is_filled(joining) => Seen::At(Stage::Filled),
                Some(joining) if joining.region == region => Seen::At(Stage::Filling),
                Some(_) | None => Seen::Off,
            },
            ChangeGoal::Remove { region, .. } | ChangeGoal::Lose { region, .. } if !bucket.reaches(region) => settled,
            ChangeGoal::Cross { .. } | ChangeGoal::Remove { .. } | ChangeGoal::Lose { .. } => Seen::Off,
        }
    }

    /// Gives up a change as an operator could by hand.
    pub(crate) fn abort_change(
        &mut self,
        occasion: Occasion<'_>,
        id: PlanId,
        scope: &AbortScope,
        why: &str,
    ) -> Result<Done, Refusal> {
        let change = self.changes.get(&id).cloned().ok_or_else(|| unknown(id))?;
        let reply = Reply::Operation { plan: id };
        if *scope != AbortScope::All {
            return Ok(Done::new(reply, None));
        }
        let Some(stage) = change.stage() else {
            let how = change.end.as_ref().map(|end| end.outcome.to_string()).unwrap_or_default();
            let why = format!("{id} has ended ({how}): there is nothing to give up");
            return Err(Refusal::new(RefusalKind::Conflict, why));
        };
        let mut steps = match stage {
            Stage::Meeting => self.part(occasion, &change, why)?,
            Stage::Filling | Stage::Filled => self.stop_filling(occasion, &change)?,
            Stage::Settling => self.put_back(occasion, &change)?,
        };
        let outcome = ChangeOutcome::Aborted { who: occasion.who.to_owned(), why: why.to_owned() };
        steps.extend(self.end(occasion, id, outcome));
        let mut why = why.to_owned();
        shorten(&mut why, REASON_BYTES_MAX);
        Ok(Done { reply, change: Some(format!("{} of `{}`: {why}", change.goal.kind(), change.name)), steps })
    }

    /// Its regions meet no more, and one that was to count joins no more.
    fn part(&mut self, occasion: Occasion<'_>, change: &Change, why: &str) -> Result<Vec<StepTaken>, Refusal> {
        let mut bucket = Bucket::clone(self.existing(&change.name)?);
        let mut why = why.to_owned();
        shorten(&mut why, REASON_BYTES_MAX);
        let step = give_up(&mut bucket, occasion.at, &why);
        let joining = bucket.joins.joining();
        self.buckets.insert(bucket.id, Arc::new(bucket));
        let mut steps = vec![step];
        if joining.is_some() {
            steps.extend(self.stop_filling(occasion, change)?);
        }
        Ok(steps)
    }

    fn stop_filling(&mut self, occasion: Occasion<'_>, change: &Change) -> Result<Vec<StepTaken>, Refusal> {
        let joining = self.existing(&change.name)?.joins.joining();
        let name = joining.and_then(|id| self.regions.get(&id)).map(|region| region.name.clone());
        let Some(name) = name else { return Ok(Vec::new()) };
        let done = self.set_regions(occasion, &change.name, &RegionChange::Remove(name))?;
        Ok(told(change, done))
    }

    /// The policy is what it was: that takes as long as any change of it.
    fn put_back(&mut self, occasion: Occasion<'_>, change: &Change) -> Result<Vec<StepTaken>, Refusal> {
        let Terms { policy, auto, .. } = &change.before;
        if !matches!(change.goal, ChangeGoal::Policy { .. } | ChangeGoal::Acks { .. }) {
            return Err(Refusal::new(
                RefusalKind::Conflict,
                format!(
                    "what {} asked for is in force, and only copies are still to come: `meridian operation show {}` tells the way back",
                    change.id, change.id
                ),
            ));
        }
        let successors: Vec<RegionName> =
            auto.successors.iter().filter_map(|id| self.regions.get(id)).map(|it| it.name.clone()).collect();
        let auto = meridian_types::AutoFailover {
            mode: auto.mode,
            interval_ms_min: auto.interval_ms_min,
            per_day_max: auto.per_day_max,
            successors,
            detect_ms: 0,
        };
        let done = self.set_policy(occasion, &change.name, *policy, Some(&auto))?;
        Ok(told(change, done))
    }

    /// Checks every rule about changes on record.
    pub(crate) fn validate_changes(&self) -> Result<(), Fault> {
        let ended = self.changes.values().filter(|it| it.end.is_some()).count();
        rule(ended <= PLANS_MAX, "too many changes of buckets are kept")?;
        let mut changing: BTreeSet<BucketId> = BTreeSet::new();
        for (id, it) in &self.changes {
            rule(it.id == *id && id.0 <= self.index, "a change is from the future")?;
            rule(!self.plans.contains_key(id), "a change has the name of another operation")?;
            let (who, why) = match it.end.as_ref().map(|end| &end.outcome) {
                Some(ChangeOutcome::Aborted { who, why }) => (who.len(), why.len()),
                Some(ChangeOutcome::GivenUp { why }) => (0, why.len()),
                Some(ChangeOutcome::Done) | None => (0, 0),
            };
            let fits = it.reason.len().max(why) <= REASON_BYTES_MAX && it.who.len().max(who) <= WHO_BYTES_MAX;
            rule(fits && it.stages.len() <= STAGES_MAX, "a change says too much")?;
            if it.end.is_none() {
                rule(changing.insert(it.bucket), "two changes of a bucket are under way")?;
                rule(
                    it.stage().map(Seen::At) == Some(self.seen(it)),
                    "a bucket does not stand where its change has it",
                )?;
            }
        }
        Ok(())
    }
}

/// Whether two policies ask the same of copies: their other settings may change while it settles.
fn is_alike(one: Policy, other: Policy) -> bool {
    std::mem::discriminant(&one) == std::mem::discriminant(&other) && acks_of(one) == acks_of(other)
}

fn acks_of(policy: Policy) -> Option<Acks> {
    match policy {
        Policy::Sync { acks, .. } => Some(acks),
        Policy::Async { .. } | Policy::ActiveActive => None,
    }
}

/// Whether two changes are to bring about the same, however long each may hold writes for it.
fn aims_alike(one: ChangeGoal, other: ChangeGoal) -> bool {
    match (one, other) {
        (ChangeGoal::Add { region: one, .. }, ChangeGoal::Add { region: other, .. })
        | (ChangeGoal::Remove { region: one, .. }, ChangeGoal::Remove { region: other, .. }) => one == other,
        (one, other) => one == other,
    }
}

/// What becomes of a change when another one of its bucket is asked for.
fn displaced(former: &Change, goal: ChangeGoal, id: PlanId, who: &str) -> ChangeOutcome {
    if aims_alike(former.goal, goal) {
        return ChangeOutcome::GivenUp { why: format!("{id} goes on with it") };
    }
    ChangeOutcome::Aborted { who: who.to_owned(), why: format!("{id} was asked for instead: {}", goal.kind()) }
}

/// What became of a change of which a command has left nothing.
fn gone(who: &str, action: &Action, restored: Option<String>) -> ChangeOutcome {
    let aborted = |why: &str| ChangeOutcome::Aborted { who: who.to_owned(), why: why.to_owned() };
    match action {
        Action::DeleteBucket { .. } => aborted("the bucket was deleted"),
        Action::SetBucket { .. }
        | Action::SetDetection { .. }
        | Action::SetPolicy { .. }
        | Action::SetRegions { .. }
        | Action::Cross { .. }
        | Action::CrossRegions { .. }
        | Action::LoseRegion { .. } => aborted("something else was asked of the bucket"),
        Action::Failover(_) => ChangeOutcome::GivenUp { why: "its primary was lost, and is being replaced".to_owned() },
        Action::FormCluster(_)
        | Action::FormClusterAt { .. }
        | Action::Finalize { .. }
        | Action::RegisterNode(_)
        | Action::CreateBucket(_)
        | Action::SetLabels { .. }
        | Action::Switchover(_)
        | Action::Report { .. }
        | Action::Abort { .. }
        | Action::ReportStanding { .. }
        | Action::Advance { .. }
        | Action::Observe { .. }
        | Action::Note { .. }
        | Action::GiveUpCrossing { .. }
        | Action::ChangeMembers { .. }
        | Action::ShardsMoved { .. }
        | Action::RemoveNode { .. }
        | Action::Change { .. } => {
            ChangeOutcome::GivenUp { why: restored.unwrap_or_else(|| "the bucket is on its way no more".to_owned()) }
        }
    }
}

/// What a plain action changed on behalf of an abort, as a step.
fn told(change: &Change, done: Done) -> Vec<StepTaken> {
    let own = done.change.map(|detail| StepTaken {
        verb: "restore",
        subject: change.name.to_string(),
        detail: format!("{detail} ({})", change.id),
    });
    own.into_iter().chain(done.steps).collect()
}

fn used(id: PlanId, how: &str) -> Refusal {
    invalid(format!("this operation id was used for {id} before, which {how}: use a new operation id"))
}
