//! Operations that move primaries (design 7, docs/adr/2026-11-20-seals.md): when a bucket takes its next step.
//!
//! Keeps the metadata half of FEN-1 and SWI-1: a bucket's epoch rises before anybody else may write, and the next primary
//! is put on record only once each of its shards has everything up to the old one's seal. A bucket's phase, epoch and
//! primary follow from its move ([`standing`]); every step is taken in the very apply that makes it possible, so
//! whoever leads the metadata group has nothing to remember, and only gives up what takes too long.
//!
//! Deliberately not here: clocks and time-outs (`metadata/node`), what a shard does (`region/core`).

use std::sync::Arc;

use meridian_types::{
    Bucket, BucketId, Epoch, Fact, Goal, Hlc, Move, Phase, Plan, PlanId, Proof, Refusal, RefusalKind, RegionId,
    ShardId, Step, Word,
};

use crate::apply::{Done, Occasion, StepTaken};
use crate::command::AbortScope;
use crate::event::{WHO_BYTES_MAX, shorten};
use crate::reply::Reply;
use crate::state::{ClusterState, Fault, rule};

mod select;

pub use select::{LAG_MS_MAX, NAMES_MAX, PAUSE_MS_MAX};

#[cfg(test)]
mod laws;
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
            note(&mut after, plan.to(), region, word.epoch, *shard, *fact);
        }
        if after == *before {
            return None;
        }
        let next = next(&after.step, plan.shards);
        let taken = next.is_some();
        if let Some(next) = next {
            after.step = take(after.step, after.epoch_before, next, occasion.at_ms);
        }
        let differs = differs_now(before, &after);
        self.settle(occasion, word.plan, after, taken);
        if taken {
            self.told(word.plan, word.bucket)
        } else {
            differs.then(|| self.alarm(word.plan, word.bucket)).flatten()
        }
    }

    /// Gives up moves. Those that have ended stay as they are.
    pub(crate) fn abort(
        &mut self,
        occasion: Occasion<'_>,
        id: PlanId,
        scope: &AbortScope,
        why: &str,
    ) -> Result<Done, Refusal> {
        let plan = self.plans.get(&id).ok_or_else(|| unknown(id))?;
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
        let (from, to) = (self.region_label(it.from), self.region_label(plan.to()));
        let paused = it.step.pause_ms().map_or(String::new(), |pause| format!(", writes paused {pause} ms"));
        let (verb, detail) = match &it.step {
            Step::Unneeded | Step::CatchingUp { .. } => return None,
            Step::Draining { epoch, .. } => ("drain", format!("{from} -> {to}, preparing epoch {epoch} ({id})")),
            Step::Promoted { epoch, .. } => ("promote", format!("{from} -> {to} under epoch {epoch} ({id}){paused}")),
            Step::Restored { epoch, why, .. } => {
                ("restore", format!("stays in {from} under epoch {epoch} ({id}){paused}: {why}"))
            }
        };
        Some(StepTaken { verb, subject: it.name.to_string(), detail })
    }

    /// What the proof of a bucket that has arrived says against it.
    fn alarm(&self, id: PlanId, bucket: BucketId) -> Option<StepTaken> {
        let it = self.plans.get(&id)?.move_of(bucket)?;
        let Step::Promoted { proof, .. } = &it.step else { return None };
        let detail = format!("{} ({id}): compare both regions with `meridian status`", difference(proof)?);
        Some(StepTaken { verb: "differ", subject: it.name.to_string(), detail })
    }

    fn region_label(&self, id: RegionId) -> String {
        self.regions.get(&id).map_or_else(|| format!("region-{id}"), |region| region.name.to_string())
    }

    /// Refuses what can't be done to a bucket while it moves.
    pub(crate) fn check_still(&self, bucket: &Bucket) -> Result<(), Refusal> {
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
            rule(self.regions.contains_key(&plan.to()), "an operation goes to no region")?;
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
        rule((it.from == plan.to()) == (it.step == Step::Unneeded), "a move goes nowhere")?;
        rule(
            match &it.step {
                Step::Unneeded => true,
                Step::CatchingUp { caught_up } => {
                    caught_up.len() < shards && caught_up.iter().all(|shard| shard.0 < plan.shards)
                }
                Step::Draining { epoch, proof, .. } => {
                    *epoch == next && in_range(proof) && proof.ready.len() < shards && difference(proof).is_none()
                }
                Step::Promoted { epoch, proof, .. } => *epoch == next && in_range(proof) && proof.ready.len() == shards,
                Step::Restored { draining_since_ms: None, epoch, .. } => *epoch == it.epoch_before,
                Step::Restored { epoch, .. } => *epoch == Epoch(next.0.saturating_add(1)),
            },
            "a move's step contradicts what was heard",
        )?;
        let bucket = self.buckets.get(&it.bucket);
        let stands = bucket.is_some_and(|bucket| bucket.name == it.name && standing(plan, it).holds(bucket));
        rule(it.step.is_final() || stands, "a bucket does not stand where its operation has it")
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

/// What an operation weighs: what it may keep of shards.
fn weight(plan: &Plan) -> usize {
    plan.moves.len() * usize::from(plan.shards)
}

fn phase_plan(phase: Phase) -> Option<PlanId> {
    match phase {
        Phase::Steady => None,
        Phase::CatchingUp { plan, .. } | Phase::Draining { plan, .. } | Phase::Fencing { plan, .. } => Some(plan),
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
    }

    fn holds(self, bucket: &Bucket) -> bool {
        (bucket.phase, bucket.epoch, bucket.primary) == (self.phase, self.epoch, Some(self.primary))
    }
}

/// Where a move has its bucket stand: what every node acts on (FEN-1).
fn standing(plan: &Plan, it: &Move) -> Standing {
    let Goal::Switchover { to, lag_ms_max, .. } = plan.goal;
    let (phase, epoch, primary) = match &it.step {
        Step::Unneeded => (Phase::Steady, it.epoch_before, it.from),
        Step::CatchingUp { .. } => (Phase::CatchingUp { plan: plan.id, to, lag_ms_max }, it.epoch_before, it.from),
        Step::Draining { epoch, .. } => (Phase::Draining { plan: plan.id, to }, *epoch, it.from),
        Step::Promoted { epoch, .. } => (Phase::Steady, *epoch, to),
        Step::Restored { epoch, .. } => (Phase::Steady, *epoch, it.from),
    };
    Standing { phase, epoch, primary }
}

/// Takes note of one fact, if it is about the step the bucket is at and comes from the region that knows. What was heard
/// first stays: a fact does not change.
fn note(it: &mut Move, to: RegionId, region: RegionId, seen: Epoch, shard: ShardId, fact: Fact) {
    let (from, before) = (it.from, it.epoch_before);
    match (&mut it.step, fact) {
        (Step::CatchingUp { caught_up }, Fact::CaughtUp) if region == from && seen == before => {
            caught_up.insert(shard);
        }
        // Also after the promotion: the proof is completed by whoever comes late.
        (Step::Draining { epoch, proof, .. } | Step::Promoted { epoch, proof, .. }, Fact::Sealed(seal))
            if region == from && seen == *epoch =>
        {
            proof.sealed.entry(shard).or_insert(seal);
        }
        (Step::Draining { epoch, proof, .. }, Fact::Ready(seal)) if region == to && seen == *epoch => {
            proof.ready.entry(shard).or_insert(seal);
        }
        // Too early, too late, or none of that region's business.
        (_, Fact::CaughtUp | Fact::Sealed(_) | Fact::Ready(_) | Fact::Fenced(_)) => {}
    }
}

/// The step that a bucket can take.
enum Next {
    Drain,
    Promote,
    Restore { why: String },
}

fn next(step: &Step, shards: u16) -> Option<Next> {
    let shards = usize::from(shards);
    match step {
        Step::CatchingUp { caught_up } => (caught_up.len() == shards).then_some(Next::Drain),
        // Before anybody writes where something is missing, the old primary goes on (SWI-1).
        Step::Draining { proof, .. } => match difference(proof) {
            Some(why) => Some(Next::Restore { why }),
            None => (proof.ready.len() == shards).then_some(Next::Promote),
        },
        Step::Unneeded | Step::Promoted { .. } | Step::Restored { .. } => None,
    }
}

/// Takes it. What is no step of the figure leaves the bucket where it is.
fn take(step: Step, before: Epoch, next: Next, at_ms: u64) -> Step {
    let raised = |epoch: Epoch| Epoch(epoch.0.saturating_add(1));
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
        (Step::Draining { since_ms, epoch, .. }, Next::Restore { why }) => {
            Step::Restored { draining_since_ms: Some(since_ms), at_ms, epoch: raised(epoch), why }
        }
        (step, Next::Drain | Next::Promote | Next::Restore { .. }) => step,
    }
}

/// What the two regions disagree on.
fn difference(proof: &Proof) -> Option<String> {
    let shards: Vec<String> = proof.differing().map(|shard| shard.to_string()).collect();
    let first = proof.differing().next()?;
    let (sealed, ready) = (proof.sealed.get(&first)?, proof.ready.get(&first)?);
    Some(format!(
        "the regions differ at the seal of shard {}: {} keys at {} with digest {}, against {} keys at {} with digest {}",
        shards.join(", "),
        sealed.keys,
        sealed.lsn,
        sealed.hash,
        ready.keys,
        ready.lsn,
        ready.hash
    ))
}

/// Whether a bucket that had arrived turns out to lack something.
fn differs_now(before: &Move, after: &Move) -> bool {
    match (&before.step, &after.step) {
        (Step::Promoted { proof: known, .. }, Step::Promoted { proof, .. }) => {
            proof.differing().count() > known.differing().count()
        }
        _ => false,
    }
}

fn unknown(id: PlanId) -> Refusal {
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
