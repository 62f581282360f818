//! Finding the metadata leader and being served by it, and keeping this node's lease: as metadata/node does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use meridian_metadata_core::command::Form;
use meridian_metadata_core::{AbortScope, Action, ClusterState, Command, Grant, OperationId, Reply, Vigil, reply};
use meridian_region_node::{Clock, Handle};
use meridian_types::{BucketId, Effect, Epoch, Goal, PlanId, Refusal, RefusalKind, RegionId, Step};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::plane::{ATTEMPT_TIMEOUT, Attempt, Plane, RENEW_TIMEOUT};
use crate::world::clock::NodeClock;
use crate::world::dice::Dice;
use crate::world::network::Place;
use crate::world::node::Life;
use crate::world::wires::{CallError, Wires};

/// As metadata/node's options and constants.
const COMMAND_DEADLINE: Duration = Duration::from_secs(10);
const RENEW_EVERY: Duration = Duration::from_secs(1);
const ATTEND_EVERY: Duration = Duration::from_millis(50);
/// Shorter than the product's ten minutes: a world lasts one.
const CATCHING_UP_MAX: Duration = Duration::from_secs(8);
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// How a node gets served.
pub(crate) struct Asker {
    pub(crate) plane: Arc<Plane>,
    pub(crate) clock: Arc<NodeClock>,
    pub(crate) wires: Wires,
    pub(crate) dice: Dice,
    pub(crate) incarnation: u64,
    pub(crate) members: usize,
    pub(crate) form: Form,
    /// Who knows which regions are silent, once it is open: told with each renewal. Weak, for its region's node knows this asker.
    pub(crate) ears: OnceLock<Weak<Life>>,
}

#[derive(Default)]
struct Search {
    hint: Option<usize>,
    tried: usize,
}

impl Search {
    fn note<T>(&mut self, attempt: &Attempt<T>) {
        self.hint = match attempt {
            Attempt::Done(_) => return,
            Attempt::Elsewhere(leader) => *leader,
            Attempt::Refused(_) | Attempt::Lost(_) => None,
        };
        self.tried += 1;
    }
}

struct Backoff(Duration);

impl Backoff {
    fn next(&mut self, dice: &Dice, most: Duration) -> Duration {
        let pause = self.0.min(most);
        self.0 = (pause * 2).min(most);
        pause.mul_f64(0.5 + 0.5 * dice.unit())
    }
}

impl Asker {
    /// Forms the cluster when this node leads and there is none yet, for ever.
    pub(crate) async fn form(self: Arc<Self>) {
        while self.plane.copy.read(|state| state.cluster().is_none()) {
            sleep(Duration::from_millis(100)).await;
            if self.plane.must_form() {
                // Whoever leads next tries again.
                let _ = self.propose("a node", Action::FormCluster(self.form.clone())).await;
            }
        }
        std::future::pending().await
    }

    /// Gives up moves of primaries and crossings that take too long, and puts on record what only a leader sees of failovers, while this node
    /// leads, for ever: as metadata/node's executor does.
    pub(crate) async fn attend(self: Arc<Self>) {
        let mut since: BTreeMap<(PlanId, BucketId, Epoch), Instant> = BTreeMap::new();
        let mut crossing: BTreeMap<(BucketId, u64), Instant> = BTreeMap::new();
        let mut vigil = Vigil::default();
        loop {
            sleep(ATTEND_EVERY).await;
            if !self.plane.leadership().1 {
                since.clear();
                crossing.clear();
                continue;
            }
            for action in self.plane.watch_failovers(&mut vigil) {
                // What fails is seen again.
                let _ = self.propose("the leader", action).await;
            }
            let why = || "it took too long".to_owned();
            // Whoever leads next looks again.
            for (plan, bucket, epoch) in late(&mut since, &self.plane.copy.read(lasting)) {
                let scope = AbortScope::Late(vec![(bucket, epoch)]);
                let _ = self.propose("the leader", Action::Abort { plan, scope, why: why() }).await;
            }
            for (bucket, index) in late(&mut crossing, &self.plane.copy.read(crossings)) {
                let _ = self.propose("the leader", Action::GiveUpCrossing { bucket, index, why: why() }).await;
            }
        }
    }

    /// Has a command committed.
    pub(crate) async fn propose(&self, who: &str, action: Action) -> Result<Reply, Refusal> {
        let operation = OperationId(u128::from(self.dice.next()) << 64 | u128::from(self.dice.next()));
        let command = Command { operation, who: who.to_owned(), at_ms: self.clock.wall_ms(), action };
        let bytes = command.encode().map_err(|why| Refusal::new(RefusalKind::Invalid, why.to_string()))?;
        let bytes = Bytes::from(bytes);
        let deadline = Instant::now() + COMMAND_DEADLINE;
        let (mut search, mut backoff, mut effect) = (Search::default(), Backoff(PAUSE_MIN), Effect::None);
        loop {
            let attempt = self.propose_once(&search, bytes.clone()).await;
            search.note(&attempt);
            match attempt {
                Attempt::Done(answer) => return self.settle(&answer, deadline).await,
                Attempt::Refused(refusal) if refusal.kind != RefusalKind::Retry => return Err(refusal),
                Attempt::Refused(_) | Attempt::Elsewhere(_) => {}
                Attempt::Lost(_) => effect = Effect::Unknown,
            }
            let pause = backoff.next(&self.dice, PAUSE_MAX);
            if Instant::now() + pause >= deadline {
                let refusal = Refusal::new(RefusalKind::Unavailable, "no metadata quorum could be reached in time");
                return Err(refusal.with_effect(effect));
            }
            sleep(pause).await;
        }
    }

    async fn settle(&self, answer: &[u8], deadline: Instant) -> Result<Reply, Refusal> {
        let (index, answer) =
            reply::decode(answer).map_err(|why| Refusal::new(RefusalKind::Internal, why.to_string()))?;
        // A copy that is slow does not undo the command.
        let _ = timeout_at(deadline, self.plane.copy.reach(index)).await;
        answer
    }

    async fn propose_once(&self, search: &Search, command: Bytes) -> Attempt<Bytes> {
        let Some(target) = self.target(search) else { return Attempt::Elsewhere(None) };
        if target == self.plane.number {
            return self.plane.propose(command).await;
        }
        let bytes = command.len();
        let serve = self.wires.call(Place::Node(self.plane.number), target, bytes, move |life| {
            async move { life.plane.propose(command).await }.boxed()
        });
        answered(timeout(ATTEMPT_TIMEOUT.mul_f32(1.5), serve).await)
    }

    async fn renew_once(&self, search: &Search) -> Attempt<Grant> {
        let Some(target) = self.target(search) else { return Attempt::Elsewhere(None) };
        let (node, incarnation) = (self.plane.replica.node, self.incarnation);
        let life = self.ears.get().and_then(Weak::upgrade);
        let silent: Option<BTreeSet<RegionId>> = life.and_then(|life| life.region().map(Handle::silent_regions));
        let contact = self.plane.contact();
        if target == self.plane.number {
            return self.plane.renew(node, incarnation, silent, contact).await;
        }
        let serve = self.wires.call(Place::Node(self.plane.number), target, 64, move |life| {
            async move { life.plane.renew(node, incarnation, silent, contact).await }.boxed()
        });
        answered(timeout(RENEW_TIMEOUT, serve).await)
    }

    /// Whom to ask: this node if it leads, else whom the last attempt or the group named, else one after the other.
    fn target(&self, search: &Search) -> Option<usize> {
        let (leader, leads) = self.plane.leadership();
        let this = self.plane.number;
        if leads {
            return Some(this);
        }
        let others: Vec<usize> = (0..self.members).filter(|member| *member != this).collect();
        let turn = || others.get(search.tried % others.len().max(1)).copied();
        let known = leader.filter(|node| *node != this && search.tried % 3 != 2);
        search.hint.filter(|node| *node != this).or(known).or_else(turn)
    }

    /// Keeps this node's lease, for ever. The time that counts is the one *before* a request is sent.
    pub(crate) async fn renew(self: Arc<Self>) {
        let (mut search, mut backoff) = (Search::default(), Backoff(PAUSE_MIN));
        loop {
            let (sent, began) = (self.clock.instant(), Instant::now());
            let attempt = match timeout(RENEW_TIMEOUT, self.renew_once(&search)).await {
                Ok(attempt) => attempt,
                Err(_) => Attempt::Lost("the metadata leader did not answer in time".to_owned()),
            };
            search.note(&attempt);
            match attempt {
                Attempt::Done(grant) => {
                    self.plane.copy.granted(sent, grant);
                    backoff = Backoff(PAUSE_MIN);
                    tokio::time::sleep_until(began + RENEW_EVERY).await;
                }
                Attempt::Refused(refusal) if refusal.kind != RefusalKind::Retry => sleep(RENEW_EVERY).await,
                Attempt::Elsewhere(_) | Attempt::Refused(_) | Attempt::Lost(_) => {
                    sleep(backoff.next(&self.dice, RENEW_EVERY / 4)).await;
                }
            }
        }
    }
}

/// What has lasted for longer than it may; `since` remembers since when this leader has seen each.
fn late<K: Ord + Copy>(since: &mut BTreeMap<K, Instant>, lasting: &[(K, Duration)]) -> Vec<K> {
    since.retain(|stage, _| lasting.iter().any(|(known, _)| known == stage));
    let is_late = |(stage, most): &&(K, Duration)| since.entry(*stage).or_insert_with(Instant::now).elapsed() > *most;
    lasting.iter().filter(is_late).map(|(stage, _)| *stage).collect()
}

/// Buckets that cross, which attempt it is, and for how long it may last.
fn crossings(state: &ClusterState) -> Vec<((BucketId, u64), Duration)> {
    state.crossings().map(|(bucket, index, most_ms)| ((bucket, index), Duration::from_millis(most_ms))).collect()
}

/// The moves that must not stay where they are, and for how long they may.
fn lasting(state: &ClusterState) -> Vec<((PlanId, BucketId, Epoch), Duration)> {
    let mut lasting = Vec::new();
    for plan in state.plans().filter(|plan| plan.ended_ms.is_none()) {
        let Goal::Switchover { pause_ms_max, .. } = plan.goal else { continue };
        for it in &plan.moves {
            match &it.step {
                Step::CatchingUp { .. } => lasting.push(((plan.id, it.bucket, it.epoch_before), CATCHING_UP_MAX)),
                Step::Draining { epoch, .. } => {
                    lasting.push(((plan.id, it.bucket, *epoch), Duration::from_millis(pause_ms_max)));
                }
                Step::Unneeded
                | Step::Promoted { .. }
                | Step::Restored { .. }
                | Step::Fencing { .. }
                | Step::Pulling { .. }
                | Step::FailedOver { .. } => {}
            }
        }
    }
    lasting
}

fn answered<T>(call: Result<Result<Attempt<T>, CallError>, tokio::time::error::Elapsed>) -> Attempt<T> {
    match call {
        Ok(Ok(attempt)) => attempt,
        Ok(Err(CallError::Unreached)) => Attempt::Refused(Refusal::new(RefusalKind::Retry, "the node was not reached")),
        Ok(Err(CallError::Lost)) | Err(_) => Attempt::Lost("the metadata leader did not answer in time".to_owned()),
    }
}
