//! A node's full copy of the metadata and its lease, as region/node asks for them.
//!
//! Order matters: a state is published *before* the lease hears of its index, so whoever sees a lease that rests on
//! index `i` also sees a topology of at least `i` (FEN-1).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use futures::future::BoxFuture;
use meridian_metadata_core::lose::known_loss;
use meridian_metadata_core::{Action, ClusterState, Drift, Grant, LeaseHolder};
use meridian_region_node::Authority;
use meridian_types::{
    Bucket, BucketId, Crossing, Epoch, Goal, Lsn, PlanId, Refusal, RegionId, ShardId, Standing, StandingWord, Step,
    Topology, Way, Word,
};
use tokio::sync::{oneshot, watch};

use super::ask::Asker;
use crate::trace::{Copies, Fact, Fork, Replacing, Replica};
use crate::world::clock::NodeClock;
use crate::world::record::Record;

/// One node's copy.
pub(crate) struct Copy {
    replica: Replica,
    clock: Arc<NodeClock>,
    record: Record,
    inner: Mutex<Inner>,
    topology: watch::Sender<Arc<Topology>>,
}

struct Inner {
    state: ClusterState,
    holder: LeaseHolder,
    /// Until when this node may act, by its own clock.
    until: Option<Instant>,
    /// Who waits for an index to be published, in the order they came.
    waiting: Vec<(u64, oneshot::Sender<()>)>,
}

impl Copy {
    pub(crate) fn new(replica: Replica, clock: Arc<NodeClock>, record: Record, state: ClusterState) -> Copy {
        let topology = watch::Sender::new(Arc::new(state.topology()));
        let holder = LeaseHolder::new(Drift::ONE_PERCENT);
        let inner = Inner { state, holder, until: None, waiting: Vec::new() };
        Copy { replica, clock, record, inner: Mutex::new(inner), topology }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn read<T>(&self, read: impl FnOnce(&ClusterState) -> T) -> T {
        read(&self.inner().state)
    }

    /// The index of the published copy.
    pub(crate) fn index(&self) -> u64 {
        self.topology.borrow().index
    }

    /// Changes the state and publishes the result.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut ClusterState) -> T) -> T {
        let mut inner = self.inner();
        let replacing = replacements(&inner.state);
        let result = change(&mut inner.state);
        let before = Arc::clone(&self.topology.borrow());
        let topology = Arc::new(inner.state.topology());
        for (id, bucket) in &topology.buckets {
            let (replica, index) = (self.replica, topology.index);
            let known = |it: &Bucket| (it.epoch, it.primary.filter(|_| !it.is_between_primaries()));
            let (epoch, primary) = known(bucket);
            if before.buckets.get(id).is_none_or(|before| known(before) != (epoch, primary)) {
                self.record.fact(Fact::BucketKnown { replica, index, bucket: *id, epoch, primary });
            }
            let promised = |it: &Bucket| (it.epoch, it.policy, copies(it));
            if before.buckets.get(id).is_none_or(|before| promised(before) != promised(bucket)) {
                let (epoch, policy, copies) = promised(bucket);
                self.record.fact(Fact::PolicyKnown { replica, index, bucket: *id, epoch, policy, copies });
            }
            let held = |it: &Bucket| (it.epoch, it.regions.clone(), it.joins.joining());
            if before.buckets.get(id).is_none_or(|before| held(before) != held(bucket)) {
                let (epoch, regions, joining) = held(bucket);
                self.record.fact(Fact::RegionsKnown { replica, index, bucket: *id, epoch, regions, joining });
            }
        }
        for ((plan, bucket), (from, step)) in replacements(&inner.state) {
            if replacing.get(&(plan, bucket)).is_none_or(|(_, before)| *before != step) {
                self.record.fact(Fact::ReplacementKnown { replica: self.replica, plan, bucket, from, step });
            }
        }
        for (id, before) in &before.buckets {
            let after = topology.buckets.get(id);
            if let Some((index, from, step)) = after.and_then(|after| losing(before, after, topology.shards)) {
                self.record.fact(Fact::LosingKnown { replica: self.replica, index, bucket: *id, from, step });
            }
        }
        self.record.meetings.is_known(&topology);
        let index = topology.index;
        self.topology.send_replace(topology);
        for (_, tell) in inner.waiting.extract_if(.., |(wanted, tell)| *wanted <= index || tell.is_closed()) {
            let _ = tell.send(());
        }
        self.relet(&mut inner);
        result
    }

    /// Takes the answer to a renewal that was sent at `sent`, by this node's clock.
    pub(crate) fn granted(&self, sent: Instant, grant: Grant) {
        let mut inner = self.inner();
        inner.holder.granted(sent, self.clock.instant(), grant);
        self.relet(&mut inner);
    }

    fn relet(&self, inner: &mut Inner) {
        inner.until = inner.holder.until(inner.state.index());
        self.say(inner);
    }

    /// Says for the record what this node believes; to be repeated when its clock changes its speed.
    pub(crate) fn believe(&self) {
        self.say(&self.inner());
    }

    fn say(&self, inner: &Inner) {
        let Some(until) = inner.until else { return };
        let until_us = self.clock.true_us(until);
        self.record.fact(Fact::LeaseBelieved { replica: self.replica, until_us });
        for (bucket, epoch) in self.mine() {
            self.record.fact(Fact::MayAct { replica: self.replica, bucket, epoch, until_us });
        }
    }

    /// The buckets whose primary is this region, as far as is known here.
    fn mine(&self) -> Vec<(BucketId, Epoch)> {
        let topology = self.topology.borrow();
        let mine = |it: &Bucket| it.primary == Some(self.replica.region) && !it.is_between_primaries();
        topology.buckets.values().filter(|it| mine(it)).map(|it| (it.id, it.epoch)).collect()
    }

    /// Waits until the published copy has reached `index`. Not on `topology`: a `watch` wakes those who wait in an order that differs
    /// from run to run, and some who wait here are tasks of tokio's, which nobody sorts.
    pub(crate) async fn reach(&self, index: u64) {
        let reached = {
            let mut inner = self.inner();
            if self.index() >= index {
                return;
            }
            let (tell, told) = oneshot::channel();
            inner.waiting.push((index, tell));
            told
        };
        // Ends early only when the copy itself is gone, and then nobody is left to look.
        let _ = reached.await;
    }

    /// The newest topology here.
    pub(crate) fn topology(&self) -> Arc<Topology> {
        Arc::clone(&self.topology.borrow())
    }

    /// Every change of it.
    pub(crate) fn topology_changes(&self) -> watch::Receiver<Arc<Topology>> {
        self.topology.subscribe()
    }

    fn lease_ttl_ms(&self) -> u64 {
        let ttl = self.read(ClusterState::lease_ttl).unwrap_or_default();
        u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)
    }

    fn lease_holds(&self) -> bool {
        let until = self.inner().until;
        until.is_some_and(|until| self.clock.instant() < until)
    }

    fn lease_tenure_ms(&self) -> u64 {
        let (inner, now) = (self.inner(), self.clock.instant());
        let since = inner.holder.since(inner.state.index(), now);
        since.map_or(0, |since| u64::try_from((now - since).as_millis()).unwrap_or(u64::MAX))
    }
}

fn copies(bucket: &Bucket) -> Copies {
    match bucket.standing {
        Standing::Sync { .. } => Copies::Sync,
        Standing::Degraded { .. } => Copies::Degraded,
        Standing::Recovering { .. } => Copies::Recovering,
    }
}

/// Every primary that is, or was, being replaced: which one, and how far that is.
fn replacements(state: &ClusterState) -> BTreeMap<(PlanId, BucketId), (RegionId, Replacing)> {
    let mut found = BTreeMap::new();
    for plan in state.plans() {
        let Goal::Failover { automatic, .. } = plan.goal else { continue };
        for it in &plan.moves {
            let step = match &it.step {
                Step::Fencing { muster, .. } | Step::Pulling { muster, .. } => {
                    Replacing::Begun { agreed: muster.accepted, automatic }
                }
                Step::FailedOver { epoch, to, verdict, .. } => Replacing::Done(Fork {
                    to: *to,
                    epoch: *epoch,
                    proven: verdict.proven,
                    lost: verdict.lost,
                    cut: verdict.cut.iter().map(|(shard, seal)| (*shard, seal.lsn)).collect(),
                }),
                Step::Restored { .. } => Replacing::GivenUp,
                Step::Unneeded | Step::CatchingUp { .. } | Step::Draining { .. } | Step::Promoted { .. } => continue,
            };
            found.insert((plan.id, it.bucket), (it.from, step));
        }
    }
    found
}

/// What a step of the metadata has become of the loss of a region where every region writes, if anything.
fn losing(before: &Bucket, after: &Bucket, shards: u16) -> Option<(u64, RegionId, Replacing)> {
    let of = |bucket: &Bucket| bucket.crossing.clone().filter(|it| it.way.lost().is_some());
    match (of(before), of(after)) {
        (None, Some(Crossing { index, way: Way::Losing { region, accepted, .. }, .. })) => {
            Some((index, region, Replacing::Begun { agreed: Some(accepted), automatic: false }))
        }
        (Some(crossing), None) => {
            let from = crossing.way.lost()?;
            if after.epoch == before.epoch {
                return Some((crossing.index, from, Replacing::GivenUp));
            }
            let left = before.meeting();
            // A copy that skipped steps has not heard who has what.
            let cut: Vec<(ShardId, Lsn)> = (0..shards)
                .map(|shard| Some((ShardId(shard), crossing.most_of_the_lost(ShardId(shard), &left)?.1)))
                .collect::<Option<_>>()?;
            let Way::Losing { remains, .. } = &crossing.way else { return None };
            let (to, lost) = (*left.first()?, known_loss(remains));
            let fork = Fork { to, epoch: after.epoch, proven: false, lost, cut };
            Some((crossing.index, from, Replacing::Done(fork)))
        }
        (None | Some(_), _) => None,
    }
}

/// The copy, and a voice.
pub(crate) struct Spokesman {
    pub(crate) copy: Arc<Copy>,
    pub(crate) asker: Arc<Asker>,
}

impl Authority for Spokesman {
    fn topology(&self) -> Arc<Topology> {
        self.copy.topology()
    }

    fn topology_changes(&self) -> watch::Receiver<Arc<Topology>> {
        self.copy.topology_changes()
    }

    fn lease_holds(&self) -> bool {
        self.copy.lease_holds()
    }

    fn lease_tenure_ms(&self) -> u64 {
        self.copy.lease_tenure_ms()
    }

    fn tell(&self, word: Word) -> BoxFuture<'static, Result<(), Refusal>> {
        let (asker, region) = (Arc::clone(&self.asker), self.copy.replica.region);
        Box::pin(async move { asker.propose("a node", Action::Report { region, words: vec![word] }).await.map(drop) })
    }

    fn tell_standing(&self, word: StandingWord) -> BoxFuture<'static, Result<(), Refusal>> {
        let (asker, region) = (Arc::clone(&self.asker), self.copy.replica.region);
        let action = Action::ReportStanding { region, words: vec![word] };
        Box::pin(async move { asker.propose("a node", action).await.map(drop) })
    }

    fn tell_moved(&self, shards: BTreeSet<ShardId>, change: u64) -> BoxFuture<'static, Result<(), Refusal>> {
        let (asker, region) = (Arc::clone(&self.asker), self.copy.replica.region);
        Box::pin(async move { asker.propose("a node", Action::ShardsMoved { region, shards, change }).await.map(drop) })
    }

    fn lease_ttl_ms(&self) -> u64 {
        self.copy.lease_ttl_ms()
    }
}
