//! What the leader does for operations: hands the leadership over before writes stop, puts on record what only a leader sees
//! of failovers ([`Vigil`]), and gives up what takes too long, crossings among it.
//!
//! Runs on every node and acts only while it leads. It has no choices: steps are taken by the metadata core in the
//! command that makes them possible. A new leader measures time anew: it may give up later than its predecessor
//! would have, never earlier.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_consensus::{Group, Leadership};
use meridian_failpoint::failpoint;
use meridian_metadata_core::{AbortScope, Action, ClusterState, Command, Mender, Vigil};
use meridian_types::{BucketId, Epoch, Goal, OperationId, PlanId, Step};
use tokio::time::{sleep, timeout};

use crate::ask::Asker;
use crate::clock::wall_ms;
use crate::copy::LocalCopy;
use crate::leader::Leader;
use crate::options::Options;

/// How often times are looked at while there are operations: what a bound on a pause is precise to.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How often there is a look otherwise: at leases that run out, and for a change that was missed.
const IDLE_LOOK_EVERY: Duration = Duration::from_millis(250);

/// How often it is looked who has been silent for long.
const MEND_EVERY: Duration = Duration::from_secs(1);

/// How long a handover of the leadership may take: an election next door. Words wait for it, writes don't.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(3);

/// The leader's part in operations, on one node.
pub(crate) struct Executor {
    pub(crate) options: Arc<Options>,
    pub(crate) group: Group,
    pub(crate) leader: Arc<Leader>,
    pub(crate) asker: Arc<Asker>,
    pub(crate) copy: Arc<LocalCopy>,
}

/// A move at one of the steps that must not last.
type Stage = (PlanId, BucketId, Epoch);

/// A bucket that crosses, and which attempt it is.
type Attempt = (BucketId, u64);

/// Since when, in this term, moves have been seen at their stage.
#[derive(Debug, Default)]
struct Stopwatch {
    term: u64,
    since: BTreeMap<Stage, Instant>,
    crossings: BTreeMap<Attempt, Instant>,
}

/// A stage that lasts, and how long it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lasting {
    stage: Stage,
    draining: bool,
    may_last: Duration,
}

impl Executor {
    /// Attends to operations for ever.
    pub(crate) async fn run(self) {
        let mut leaderships = self.group.leadership();
        let mut topologies = self.copy.changes();
        let (mut stopwatch, mut vigil, mut mender) = (Stopwatch::default(), Vigil::default(), Mender::default());
        let mut mended = Instant::now();
        loop {
            let leadership = *leaderships.borrow_and_update();
            topologies.mark_unchanged();
            let lasting = if leadership.leads { self.attend(leadership, &mut stopwatch, &mut vigil).await } else { 0 };
            if leadership.leads && mended.elapsed() >= MEND_EVERY {
                mended = Instant::now();
                self.mend(&mut mender).await;
            }
            tokio::select! {
                changed = leaderships.changed() => if changed.is_err() { return },
                changed = topologies.changed() => if changed.is_err() { return },
                () = sleep(if lasting == 0 { IDLE_LOOK_EVERY } else { LOOK_EVERY }) => {}
            }
        }
    }

    /// How many moves are at a stage that must not last.
    async fn attend(&self, leadership: Leadership, stopwatch: &mut Stopwatch, vigil: &mut Vigil) -> usize {
        self.hand_over(leadership).await;
        for action in self.leader.watch_failovers(vigil) {
            self.put_on_record(action).await;
        }
        let catching_up_max = self.options.catching_up_max();
        let lasting = self.copy.read(|state| lasting(state, catching_up_max));
        for (plan, late) in stopwatch.late(Instant::now(), leadership.term, &lasting) {
            self.give_up(plan, &late).await;
        }
        let crossings: Vec<(Attempt, Duration)> = self.copy.read(|state| {
            let last = state.crossings();
            last.map(|(bucket, index, ms)| ((bucket, index), Duration::from_millis(ms))).collect()
        });
        for (bucket, index) in stopwatch.late_crossings(Instant::now(), &crossings) {
            let why = "not all regions arrived in time: see `meridian lag` and `meridian status`".to_owned();
            self.put_on_record(Action::GiveUpCrossing { bucket, index, why }).await;
        }
        lasting.len() + crossings.len() + vigil.watched()
    }

    /// Replaces a member of a region that has been silent for long.
    async fn mend(&self, mender: &mut Mender) {
        let due = self.options.repair_after().and_then(|after| self.leader.mend(mender, after));
        if let Some(action) = due {
            tracing::warn!(region = action.subject(), "a node has been silent for long: a spare takes its place");
            self.put_on_record(action).await;
        }
    }

    async fn hand_over(&self, leadership: Leadership) {
        let Some(handover) = self.leader.handover() else { return };
        if !self.group.could_take_over(handover.to) {
            return;
        }
        let outcome = timeout(HANDOVER_TIMEOUT, self.group.transfer_leadership(handover.to)).await;
        self.leader.handover_tried(leadership.term, &handover);
        match outcome {
            Ok(Ok(())) => {
                failpoint("leadership.handed-over");
                tracing::info!(to = handover.to.0, "metadata leadership handed over before writes stop");
            }
            // It only would have made the pause shorter.
            Ok(Err(error)) => tracing::info!(to = handover.to.0, %error, "metadata leadership stays here"),
            Err(_) => tracing::info!(to = handover.to.0, "metadata leadership stays here: the other took too long"),
        }
    }

    /// Has something committed that this leader has seen. What fails is seen again at the next look.
    async fn put_on_record(&self, action: Action) {
        let verb = action.verb();
        let who = self.options.this.name.to_string();
        let command = Command { operation: OperationId(rand::random()), who, at_ms: wall_ms(), action };
        if let Err(refusal) = self.asker.propose(&command).await {
            tracing::warn!(verb, %refusal, "what the metadata leader has seen is not on record yet");
        }
    }

    async fn give_up(&self, plan: PlanId, late: &[Lasting]) {
        let Some(first) = late.first() else { return };
        let action = Action::Abort {
            plan,
            scope: AbortScope::Late(late.iter().map(|it| (it.stage.1, it.stage.2)).collect()),
            why: why(first),
        };
        let who = self.options.this.name.to_string();
        let command = Command { operation: OperationId(rand::random()), who, at_ms: wall_ms(), action };
        match self.asker.propose(&command).await {
            Ok(_) => tracing::warn!(%plan, buckets = late.len(), why = why(first), "operation gave up moves"),
            // The next look tries again.
            Err(refusal) => tracing::warn!(%plan, %refusal, "moves that take too long can't be given up yet"),
        }
    }
}

fn why(late: &Lasting) -> String {
    let limit = late.may_last.as_millis();
    if late.draining {
        format!(
            "writes were stopped for longer than {limit} ms, the longest pause allowed: see `meridian lag` and `meridian switchover check`"
        )
    } else {
        format!("the next primary did not come close within {} s: see `meridian lag`", limit / 1000)
    }
}

/// Every move under way, and how long it may stay where it is.
fn lasting(state: &ClusterState, catching_up_max: Duration) -> Vec<Lasting> {
    let mut lasting = Vec::new();
    for plan in state.plans().filter(|plan| plan.ended_ms.is_none()) {
        let Goal::Switchover { pause_ms_max, .. } = plan.goal else { continue };
        for it in &plan.moves {
            let (epoch, draining, may_last) = match &it.step {
                Step::CatchingUp { .. } => (it.epoch_before, false, catching_up_max),
                Step::Draining { epoch, .. } => (*epoch, true, Duration::from_millis(pause_ms_max)),
                Step::Unneeded
                | Step::Promoted { .. }
                | Step::Restored { .. }
                | Step::Fencing { .. }
                | Step::Pulling { .. }
                | Step::FailedOver { .. } => continue,
            };
            lasting.push(Lasting { stage: (plan.id, it.bucket, epoch), draining, may_last });
        }
    }
    lasting
}

impl Stopwatch {
    /// What has lasted too long, by operation. Whatever is seen for the first time in a term begins now.
    fn late(&mut self, now: Instant, term: u64, lasting: &[Lasting]) -> BTreeMap<PlanId, Vec<Lasting>> {
        if self.term != term {
            *self = Stopwatch { term, ..Stopwatch::default() };
        }
        let before = std::mem::take(&mut self.since);
        let mut late: BTreeMap<PlanId, Vec<Lasting>> = BTreeMap::new();
        for it in lasting {
            let since = before.get(&it.stage).copied().unwrap_or(now);
            self.since.insert(it.stage, since);
            if now.saturating_duration_since(since) > it.may_last {
                late.entry(it.stage.0).or_default().push(*it);
            }
        }
        late
    }

    /// The crossings that have lasted too long. Asked after [`Stopwatch::late`], which looks at the term.
    fn late_crossings(&mut self, now: Instant, crossings: &[(Attempt, Duration)]) -> Vec<Attempt> {
        let before = std::mem::take(&mut self.crossings);
        let since = |attempt: &Attempt| before.get(attempt).copied().unwrap_or(now);
        self.crossings = crossings.iter().map(|(attempt, _)| (*attempt, since(attempt))).collect();
        let is_late =
            |(attempt, may_last): &&(Attempt, Duration)| now.saturating_duration_since(since(attempt)) > *may_last;
        crossings.iter().filter(is_late).map(|(attempt, _)| *attempt).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(epoch: u64, may_last_ms: u64) -> Lasting {
        Lasting {
            stage: (PlanId(7), BucketId(1), Epoch(epoch)),
            draining: epoch > 1,
            may_last: Duration::from_millis(may_last_ms),
        }
    }

    #[test]
    fn a_stage_is_late_after_its_time_and_a_new_stage_or_leader_begins_anew() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut stopwatch = Stopwatch::default();
        assert!(stopwatch.late(start, 1, &[at(1, 100)]).is_empty());
        assert!(stopwatch.late(after(100), 1, &[at(1, 100)]).is_empty());
        assert_eq!(stopwatch.late(after(101), 1, &[at(1, 100)]), [(PlanId(7), vec![at(1, 100)])].into());
        assert!(stopwatch.late(after(102), 1, &[at(2, 50)]).is_empty(), "it has moved on");
        assert!(stopwatch.late(after(190), 2, &[at(2, 50)]).is_empty(), "another term");
        assert!(!stopwatch.late(after(241), 2, &[at(2, 50)]).is_empty());
    }

    #[test]
    fn a_crossing_is_late_after_its_time_and_another_attempt_begins_anew() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let of = |index| ((BucketId(1), index), Duration::from_millis(100));
        let mut stopwatch = Stopwatch::default();
        assert!(stopwatch.late_crossings(start, &[of(7)]).is_empty());
        assert!(stopwatch.late_crossings(after(100), &[of(7)]).is_empty());
        assert_eq!(stopwatch.late_crossings(after(101), &[of(7)]), [(BucketId(1), 7)]);
        assert!(stopwatch.late_crossings(after(150), &[of(9)]).is_empty());
    }

    #[test]
    fn the_reason_says_what_was_too_long() {
        assert!(why(&at(2, 5000)).contains("5000 ms"));
        assert!(why(&at(1, 600_000)).contains("600 s"));
    }
}
