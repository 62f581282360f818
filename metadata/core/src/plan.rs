//! Operations that move primaries (design 7, docs/adr/2026-11-20-seals.md, docs/adr/2026-11-27-failover.md): when a bucket
//! takes its next step.
//!
//! Keeps the metadata half of FEN-1 and SWI-1: a bucket's epoch rises before anybody else may write, and the next primary
//! is put on record only once each of its shards has everything up to the old one's seal. A bucket's phase, epoch and
//! primary follow from its move ([`standing`]); every step is taken in the very apply that makes it possible, so
//! whoever leads the metadata group has nothing to remember. It only says what no command says: that something takes too
//! long, that a region is silent, that a lost region's leases have run out ([`crate::vigil`]).
//!
//! Deliberately not here: clocks and time-outs (`metadata/node`), what a shard does (`region/core`).

use std::collections::BTreeSet;
use std::sync::Arc;

use meridian_types::{
    Bucket, BucketId, Epoch, Fact, Goal, Hlc, Move, Muster, Phase, Plan, PlanId, Proof, Refusal, RefusalKind, RegionId,
    ShardId, Step, Verdict, Word,
};

use crate::apply::{Done, Occasion, StepTaken};
use crate::command::{AbortScope, Advance};
use crate::event::{WHO_BYTES_MAX, shorten};
use crate::reply::Reply;
use crate::state::{ClusterState, Fault, rule};

mod estimate;
mod failover;
mod select;
mod switchover;

pub use estimate::{Asked, Heard, estimate};
pub use failover::{Assessment, assess, regions_needed};
pub(crate) use select::check_reason;
pub use select::{LAG_MS_MAX, NAMES_MAX, PAUSE_MS_MAX};

#[cfg(test)]
pub(crate) mod laws;
#[cfg(test)]
mod plays;

/// How many operations are kept, those under way included: months of planned maintenance.
pub const PLANS_MAX: usize = 256;

/// How many shards of buckets all of them may be about: what is kept of each is about 90 bytes, so at most 24 MiB.
pub const SHARDS_MOVED_MAX: usize = 1 << 18;

/// The longest reason, in bytes.
pub const REASON_BYTES_MAX: usize = 256;

impl ClusterState {
    /// Takes note of what a node's shards have come to. Words that are stale, or of somebody who has no say, change nothing.
    pub(crate) fn hear(&mut self, occasion: Occasion<'_>, region: RegionId, words: &[Word]) -> Done {
        let steps = words.iter().filter_map(|word| self.hear_word(occasion, region, word)).collect();
        Done { reply: Reply::Reported, change: None, steps }
    }

    fn hear_word(&mut self, occasion: Occasion<'_>, region: RegionId, word: &Word) -> Option<StepTaken> {
        let plan = self.plans.get(&word.plan)?;
        let before = plan.move_of(word.bucket)?;
        let mut after = before.clone();
        for (shard, fact) in word.facts.iter().filter(|(shard, _)| shard.0 < plan.shards) {
            note(plan, &mut after, region, word.epoch, *shard, *fact);
        }
        if after == *before {
            return None;
        }
        let next = self.next(plan, &after, &BTreeSet::new());
        let taken = next.is_some();
        if let Some(next) = next {
            after.step = take(after.step, after.epoch_before, next, occasion.at_ms);
        }
        let differs = switchover::differs_now(before, &after);
        self.settle(occasion, word.plan, after, taken);
        if taken {
            self.told(word.plan, word.bucket)
        } else {
            differs.then(|| self.alarm(word.plan, word.bucket)).flatten()
        }
    }

    /// The step that a bucket can take, without waiting for the regions that are `absent`.
    fn next(&self, plan: &Plan, it: &Move, absent: &BTreeSet<RegionId>) -> Option<Next> {
        match plan.goal {
            Goal::Switchover { .. } => switchover::next(&it.step, plan.shards),
            Goal::Failover { .. } => {
                let label = |region| self.region_label(region);
                let reign = failover::Reign::of(self.plans.values().map(Arc::as_ref), it.bucket, it.from);
                failover::next(plan, it, self.buckets.get(&it.bucket)?, reign, absent, &label)
            }
        }
    }

    /// Takes note of what the leader has seen of failovers: whose leases have run out, and whom nobody need wait for.
    pub(crate) fn advance(&mut self, occasion: Occasion<'_>, id: PlanId, seen: &Advance) -> Result<Done, Refusal> {
        if !self.plans.contains_key(&id) {
            return Err(unknown(id));
        }
        let mut steps = Vec::new();
        for (bucket, epoch) in &seen.buckets {
            let Some((mut it, next)) = self.advanced(id, *bucket, *epoch, seen) else { continue };
            let taken = next.is_some();
            if let Some(next) = next {
                it.step = take(it.step, it.epoch_before, next, occasion.at_ms);
            }
            self.settle(occasion, id, it, taken);
            if taken {
                steps.extend(self.told(id, *bucket));
            }
        }
        Ok(Done { reply: Reply::Operation { plan: id }, change: None, steps })
    }

    /// Whether what the leader has seen makes a difference for a bucket that is at that stage.
    pub fn would_advance(&self, plan: PlanId, bucket: BucketId, epoch: Epoch, seen: &Advance) -> bool {
        let known = self.plans.get(&plan).and_then(|plan| plan.move_of(bucket));
        self.advanced(plan, bucket, epoch, seen).is_some_and(|(it, next)| next.is_some() || known != Some(&it))
    }

    fn advanced(&self, plan: PlanId, bucket: BucketId, epoch: Epoch, seen: &Advance) -> Option<(Move, Option<Next>)> {
        let plan = self.plans.get(&plan)?;
        let mut it = plan.move_of(bucket)?.clone();
        match &mut it.step {
            Step::Fencing { epoch: at, muster, .. } | Step::Pulling { epoch: at, muster, .. } if *at == epoch => {
                muster.quiet |= seen.quiet;
            }
            // It has moved on.
            Step::Unneeded
            | Step::CatchingUp { .. }
            | Step::Draining { .. }
            | Step::Promoted { .. }
            | Step::Restored { .. }
            | Step::Fencing { .. }
            | Step::Pulling { .. }
            | Step::FailedOver { .. } => return None,
        }
        let next = self.next(plan, &it, &seen.absent);
        Some((it, next))
    }

    /// Gives up moves. Those that have ended stay as they are.
    pub(crate) fn abort(
        &mut self,
        occasion: Occasion<'_>,
        id: PlanId,
        scope: &AbortScope,
        why: &str,
    ) -> Result<Done, Refusal> {
        let Some(plan) = self.plans.get(&id) else { return self.abort_change(occasion, id, scope, why) };
        let reply = Reply::Operation { plan: id };
        let still = |(bucket, epoch): &(BucketId, Epoch)| {
            plan.move_of(*bucket).filter(|it| !it.step.is_final() && standing(plan, it).epoch == *epoch)
        };
        let mut chosen: Vec<Move> = match scope {
            AbortScope::All => plan.moves.iter().filter(|it| !it.step.is_final()).cloned().collect(),
            AbortScope::Late(late) => late.iter().filter_map(still).cloned().collect(),
        };
        chosen.dedup_by_key(|it| it.bucket);
        if chosen.is_empty() {
            return if *scope == AbortScope::All { Err(ended(plan)) } else { Ok(Done::new(reply, None)) };
        }
        let mut why = why.to_owned();
        shorten(&mut why, REASON_BYTES_MAX);
        let change = format!("{} of {}: {why}", chosen.len(), buckets(plan.moves.len()));
        let mut steps = Vec::new();
        for mut it in chosen {
            let bucket = it.bucket;
            it.step = take(it.step, it.epoch_before, Next::Restore { why: why.clone() }, occasion.at_ms);
            self.settle(occasion, id, it, true);
            steps.extend(self.told(id, bucket));
        }
        Ok(Done { reply, change: Some(change), steps })
    }

    /// Puts a move back; where it has taken a step, its bucket and its plan follow.
    fn settle(&mut self, occasion: Occasion<'_>, id: PlanId, it: Move, taken: bool) {
        let Some(plan) = self.plans.get_mut(&id).map(Arc::make_mut) else { return };
        if taken && let Some(bucket) = self.buckets.get_mut(&it.bucket) {
            standing(plan, &it).put(Arc::make_mut(bucket), occasion.at);
        }
        if let Some(place) = plan.moves.iter_mut().find(|place| place.bucket == it.bucket) {
            *place = it;
        }
        if plan.ended_ms.is_none() && plan.moves.iter().all(|it| it.step.is_final()) {
            plan.ended_ms = Some(occasion.at_ms);
        }
    }

    /// The step a bucket has just taken, for the event ring.
    fn told(&self, id: PlanId, bucket: BucketId) -> Option<StepTaken> {
        let plan = self.plans.get(&id)?;
        let it = plan.move_of(bucket)?;
        let from = self.region_label(it.from);
        let to = plan.successor(it).map_or_else(|| "nowhere".to_owned(), |to| self.region_label(to));
        let paused = it.step.pause_ms().map_or(String::new(), |pause| format!(", writes paused {pause} ms"));
        let (verb, detail) = match &it.step {
            Step::Unneeded | Step::CatchingUp { .. } => return None,
            Step::Draining { epoch, .. } => ("drain", format!("{from} -> {to}, preparing epoch {epoch} ({id})")),
            Step::Promoted { epoch, .. } => ("promote", format!("{from} -> {to} under epoch {epoch} ({id}){paused}")),
            Step::Restored { epoch, why, .. } => {
                ("restore", format!("stays in {from} under epoch {epoch} ({id}){paused}: {why}"))
            }
            Step::Fencing { epoch, .. } => ("fence", format!("{from} is lost, preparing epoch {epoch} ({id})")),
            Step::Pulling { .. } => ("pull", format!("{to} fetches what it lacks from the other regions left ({id})")),
            Step::FailedOver { epoch, verdict, .. } => {
                let cost = self.cost(verdict);
                ("fail-over", format!("{from} -> {to} under epoch {epoch} ({id}){paused}, {cost}"))
            }
        };
        Some(StepTaken { verb, subject: it.name.to_string(), detail })
    }

    fn cost(&self, verdict: &Verdict) -> String {
        let heard: Vec<_> = verdict.heard.iter().map(|region| self.region_label(*region)).collect();
        if verdict.proven {
            return format!("nothing is lost (proven by {})", heard.join(", "));
        }
        format!("lost: {} (by what was known in {})", verdict.lost, heard.join(", "))
    }

    /// What the proof of a bucket that has arrived says against it.
    fn alarm(&self, id: PlanId, bucket: BucketId) -> Option<StepTaken> {
        let it = self.plans.get(&id)?.move_of(bucket)?;
        let Step::Promoted { proof, .. } = &it.step else { return None };
        let detail = format!("{} ({id}): compare both regions with `meridian status`", switchover::difference(proof)?);
        Some(StepTaken { verb: "differ", subject: it.name.to_string(), detail })
    }

    fn region_label(&self, id: RegionId) -> String {
        crate::state::label(&self.regions, id)
    }

    /// Refuses what can't be done to a bucket while it moves.
    pub(crate) fn check_still(&self, bucket: &Bucket) -> Result<(), Refusal> {
        self.check_crossing(bucket)?;
        let Some(plan) = phase_plan(bucket.phase) else { return Ok(()) };
        let who = self.plans.get(&plan).map(|plan| plan.who.as_str()).unwrap_or_default();
        Err(Refusal::new(
            RefusalKind::Retry,
            format!(
                "`{}` is being moved by {plan}, which {who} asked for: wait for it with `meridian operation watch {plan}`, or give it up with `meridian operation abort {plan}`",
                bucket.name
            ),
        ))
    }

    /// Checks every rule about operations.
    pub(crate) fn validate_plans(&self) -> Result<(), Fault> {
        rule(self.plans.len() <= PLANS_MAX, "too many operations are kept")?;
        rule(self.shards_moved() <= SHARDS_MOVED_MAX, "operations are about too many shards")?;
        for (id, plan) in &self.plans {
            rule(plan.id == *id && id.0 <= self.index, "an operation is from the future")?;
            rule(self.formed.as_ref().is_some_and(|it| it.shards == plan.shards), "an operation counts other shards")?;
            rule(
                plan.reason.len() <= REASON_BYTES_MAX && plan.who.len() <= WHO_BYTES_MAX,
                "an operation says too much",
            )?;
            rule(plan.to().is_none_or(|to| self.regions.contains_key(&to)), "an operation goes to no region")?;
            rule(plan.moves.is_sorted_by(|a, b| a.bucket < b.bucket), "an operation's buckets are not ascending")?;
            let ended = plan.moves.iter().all(|it| it.step.is_final());
            rule(ended == plan.ended_ms.is_some(), "an operation's end contradicts its moves")?;
            plan.moves.iter().try_for_each(|it| self.validate_move(plan, it))?;
        }
        let moving = self.buckets.values().filter_map(|it| Some((it.id, phase_plan(it.phase)?)));
        let known = |(bucket, plan): (BucketId, PlanId)| {
            let it = self.plans.get(&plan).and_then(|plan| plan.move_of(bucket));
            it.is_some_and(|it| !it.step.is_final())
        };
        rule(moving.into_iter().all(known), "a bucket moves without an operation")
    }

    fn validate_move(&self, plan: &Plan, it: &Move) -> Result<(), Fault> {
        let shards = usize::from(plan.shards);
        let in_range = |proof: &Proof| proof.sealed.keys().chain(proof.ready.keys()).all(|shard| shard.0 < plan.shards);
        let next = Epoch(it.epoch_before.0.saturating_add(1));
        rule((Some(it.from) == plan.to()) == (it.step == Step::Unneeded), "a move goes nowhere")?;
        rule(
            match &it.step {
                Step::Unneeded => true,
                Step::CatchingUp { caught_up } => {
                    caught_up.len() < shards && caught_up.iter().all(|shard| shard.0 < plan.shards)
                }
                Step::Draining { epoch, proof, .. } => {
                    *epoch == next
                        && in_range(proof)
                        && proof.ready.len() < shards
                        && switchover::difference(proof).is_none()
                }
                Step::Promoted { epoch, proof, .. } => *epoch == next && in_range(proof) && proof.ready.len() == shards,
                Step::Restored { draining_since_ms: None, epoch, .. } => *epoch == it.epoch_before,
                Step::Restored { epoch, .. } => *epoch == raised(next),
                Step::Fencing { epoch, to, muster, .. } | Step::Pulling { epoch, to, muster, .. } => {
                    *epoch == next && *to != it.from && self.is_sound(plan, it, muster)
                }
                Step::FailedOver { epoch, to, verdict, .. } => {
                    *epoch == next && *to != it.from && verdict.cut.len() == shards
                }
            },
            "a move's step contradicts what was heard",
        )?;
        let fits = match (&plan.goal, &it.step) {
            (Goal::Switchover { .. }, Step::Fencing { .. } | Step::Pulling { .. } | Step::FailedOver { .. })
            | (Goal::Failover { .. }, Step::CatchingUp { .. } | Step::Draining { .. } | Step::Promoted { .. }) => false,
            (Goal::Switchover { .. } | Goal::Failover { .. }, _) => true,
        };
        rule(fits, "a move takes the steps of another kind of operation")?;
        let bucket = self.buckets.get(&it.bucket);
        let stands = bucket.is_some_and(|bucket| bucket.name == it.name && standing(plan, it).holds(bucket));
        rule(it.step.is_final() || stands, "a bucket does not stand where its operation has it")
    }

    fn is_sound(&self, plan: &Plan, it: &Move, muster: &Muster) -> bool {
        let heard = |(region, shards): (&RegionId, &std::collections::BTreeMap<ShardId, _>)| {
            *region != it.from && self.regions.contains_key(region) && shards.keys().all(|shard| shard.0 < plan.shards)
        };
        muster.remains.iter().all(heard)
    }

    /// What the operations on record weigh.
    fn shards_moved(&self) -> usize {
        self.plans.values().map(|plan| weight(plan)).sum()
    }
}

/// `1 bucket`, `2 buckets`.
fn buckets(count: usize) -> String {
    if count == 1 { "1 bucket".to_owned() } else { format!("{count} buckets") }
}

/// What an operation weighs: what it may keep of shards. In a failover every region that is left speaks of each.
fn weight(plan: &Plan) -> usize {
    let voices = match plan.goal {
        Goal::Switchover { .. } => 1,
        Goal::Failover { .. } => 2,
    };
    plan.moves.len() * usize::from(plan.shards) * voices
}

fn phase_plan(phase: Phase) -> Option<PlanId> {
    match phase {
        Phase::Steady => None,
        Phase::CatchingUp { plan, .. }
        | Phase::Draining { plan, .. }
        | Phase::Fencing { plan, .. }
        | Phase::Pulling { plan, .. } => Some(plan),
    }
}

/// Where a bucket stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Standing {
    phase: Phase,
    epoch: Epoch,
    primary: RegionId,
}

impl Standing {
    fn put(self, bucket: &mut Bucket, at: Hlc) {
        if bucket.epoch != self.epoch {
            // What the shards of the old epoch said of their copies is not said of the new one (DEG-1).
            bucket.standing = bucket.standing.clone().restarted(at);
        }
        (bucket.phase, bucket.epoch, bucket.primary) = (self.phase, self.epoch, Some(self.primary));
        // A primary that is lost on the way to active-active is replaced, and the bucket stays what it was.
        bucket.crossing = None;
    }

    fn holds(self, bucket: &Bucket) -> bool {
        (bucket.phase, bucket.epoch, bucket.primary) == (self.phase, self.epoch, Some(self.primary))
    }
}

/// Where a move has its bucket stand: what every node acts on (FEN-1).
fn standing(plan: &Plan, it: &Move) -> Standing {
    let id = plan.id;
    // Only a failover may go wherever there is most, and none of its steps before the choice looks at this.
    let to = plan.to().unwrap_or(it.from);
    let lag_ms_max = match plan.goal {
        Goal::Switchover { lag_ms_max, .. } => lag_ms_max,
        Goal::Failover { .. } => 0,
    };
    let (phase, epoch, primary) = match &it.step {
        Step::Unneeded => (Phase::Steady, it.epoch_before, it.from),
        Step::CatchingUp { .. } => (Phase::CatchingUp { plan: id, to, lag_ms_max }, it.epoch_before, it.from),
        Step::Draining { epoch, .. } => (Phase::Draining { plan: id, to }, *epoch, it.from),
        Step::Promoted { epoch, .. } => (Phase::Steady, *epoch, to),
        Step::Restored { epoch, .. } => (Phase::Steady, *epoch, it.from),
        Step::Fencing { epoch, to, .. } => (Phase::Fencing { plan: id, to: *to }, *epoch, it.from),
        Step::Pulling { epoch, to, .. } => (Phase::Pulling { plan: id, to: *to }, *epoch, it.from),
        Step::FailedOver { epoch, to, .. } => (Phase::Steady, *epoch, *to),
    };
    Standing { phase, epoch, primary }
}

/// The step that a bucket can take.
enum Next {
    Drain,
    Promote,
    Restore { why: String },
    Pull { to: RegionId },
    FailOver { to: RegionId, verdict: Verdict },
}

/// Takes note of one fact.
fn note(plan: &Plan, it: &mut Move, region: RegionId, seen: Epoch, shard: ShardId, fact: Fact) {
    match plan.goal {
        Goal::Switchover { to, .. } => switchover::note(it, to, region, seen, shard, fact),
        Goal::Failover { .. } => failover::note(it, region, seen, shard, fact),
    }
}

/// Takes it. What is no step of the figure leaves the bucket where it is.
fn take(step: Step, before: Epoch, next: Next, at_ms: u64) -> Step {
    match (step, next) {
        (Step::CatchingUp { .. }, Next::Drain) => {
            Step::Draining { since_ms: at_ms, epoch: raised(before), proof: Proof::default() }
        }
        (Step::Draining { since_ms, epoch, proof }, Next::Promote) => {
            Step::Promoted { draining_since_ms: since_ms, at_ms, epoch, proof }
        }
        (Step::CatchingUp { .. }, Next::Restore { why }) => {
            Step::Restored { draining_since_ms: None, at_ms, epoch: before, why }
        }
        (
            Step::Draining { since_ms, epoch, .. }
            | Step::Fencing { since_ms, epoch, .. }
            | Step::Pulling { since_ms, epoch, .. },
            Next::Restore { why },
        ) => Step::Restored { draining_since_ms: Some(since_ms), at_ms, epoch: raised(epoch), why },
        (
            Step::Fencing { since_ms, epoch, muster, .. } | Step::Pulling { since_ms, epoch, muster, .. },
            Next::Pull { to },
        ) => Step::Pulling { since_ms, epoch, to, muster },
        (
            Step::Fencing { since_ms, epoch, .. } | Step::Pulling { since_ms, epoch, .. },
            Next::FailOver { to, verdict },
        ) => Step::FailedOver { fencing_since_ms: since_ms, at_ms, epoch, to, verdict },
        (step, Next::Drain | Next::Promote | Next::Restore { .. } | Next::Pull { .. } | Next::FailOver { .. }) => step,
    }
}

fn raised(epoch: Epoch) -> Epoch {
    Epoch(epoch.0.saturating_add(1))
}

pub(crate) fn unknown(id: PlanId) -> Refusal {
    Refusal::new(
        RefusalKind::NotFound,
        format!("there is no operation {id}: `meridian operation list` shows those that are remembered"),
    )
}

fn ended(plan: &Plan) -> Refusal {
    Refusal::new(
        RefusalKind::Conflict,
        format!("{} has ended ({}): there is nothing to give up", plan.id, plan.outcome()),
    )
}
