//! One node's part of the metadata plane: its member of the Raft group, and what only the leader can do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use meridian_consensus::Contact;
use meridian_metadata_core::lease::{Drift, Electorate};
use meridian_metadata_core::{Action, ClusterState, Command, Detector, Grant, LeaseTable, Vigil, reply};
use meridian_region_node::Clock;
use meridian_types::{AutoMode, Bucket, Goal, NodeId, Plan, Refusal, RefusalKind, RegionId};
use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep, timeout};

use super::copy::Copy;
use super::raft::{Members, Message, Outbox, Raft};
use crate::trace::{Fact, Replica};
use crate::world::clock::NodeClock;
use crate::world::dice::Dice;
use crate::world::disk::NodeDisk;
use crate::world::network::Place;
use crate::world::record::Record;
use crate::world::wires::Wires;

/// As metadata/node's options.
pub(crate) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
pub(crate) const RENEW_TIMEOUT: Duration = Duration::from_millis(1500);

/// One attempt to be served by the metadata leader.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Attempt<T> {
    /// Served.
    Done(T),
    /// Not by this node; maybe by that one.
    Elsewhere(Option<usize>),
    /// A typed no.
    Refused(Refusal),
    /// No answer: it may have taken effect, or may yet.
    Lost(String),
}

/// One node's part, for one life of the node.
pub(crate) struct Plane {
    pub(crate) replica: Replica,
    pub(crate) number: usize,
    pub(crate) copy: Arc<Copy>,
    nodes: Vec<NodeId>,
    /// How many of them vote: the first ones.
    voters: usize,
    /// Since then it has known who votes.
    opened: Instant,
    clock: Arc<NodeClock>,
    disk: Arc<NodeDisk>,
    dice: Dice,
    record: Record,
    wires: Wires,
    inner: Mutex<Inner>,
    moved: Notify,
}

struct Inner {
    raft: Raft,
    /// Up to where the log is applied.
    applied: u64,
    leases: Option<LeaseTable>,
    /// With leaders, as consensus keeps it.
    contact: Contact,
    /// What the other nodes hear of each other's regions.
    detector: Detector,
    waiting: BTreeMap<u64, (u64, oneshot::Sender<Bytes>)>,
    confirming: Vec<(u64, u64, oneshot::Sender<()>)>,
}

/// What a node's part is made of.
pub(crate) struct Made {
    pub(crate) replica: Replica,
    pub(crate) number: usize,
    pub(crate) nodes: Vec<NodeId>,
    pub(crate) voters: usize,
    pub(crate) clock: Arc<NodeClock>,
    pub(crate) disk: Arc<NodeDisk>,
    pub(crate) dice: Dice,
    pub(crate) record: Record,
    pub(crate) wires: Wires,
}

impl Plane {
    /// Opens what is on the disk.
    pub(crate) fn open(made: Made) -> Plane {
        let Made { replica, number, nodes, voters, clock, disk, dice, record, wires } = made;
        let (durable, state) = disk.kept(|kept| (kept.raft.clone(), kept.state.clone()));
        let applied = state.index();
        let copy = Arc::new(Copy::new(replica, Arc::clone(&clock), record.clone(), state));
        let members = Members { voters: (0..voters).collect(), learners: (voters..nodes.len()).collect() };
        let raft = Raft::new(number, members, durable, clock.monotonic_ms(), dice.fork());
        let (waiting, confirming) = (BTreeMap::new(), Vec::new());
        let detector = Detector::default();
        let (opened, moved) = (clock.instant(), Notify::new());
        let contact = Contact::new(opened);
        let inner = Mutex::new(Inner { raft, applied, leases: None, contact, detector, waiting, confirming });
        Plane { replica, number, copy, nodes, voters, opened, clock, disk, dice, record, wires, inner, moved }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who leads, as this node knows it, and whether this node does and may serve.
    pub(crate) fn leadership(&self) -> (Option<usize>, bool) {
        let inner = self.inner();
        (inner.raft.leader(), inner.raft.is_ready())
    }

    /// Keeps time for the Raft group, for ever.
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            let left_ms = {
                let now_ms = self.clock.monotonic_ms();
                self.step(|raft, out| raft.tick(now_ms, out));
                self.inner().raft.timer_ms().saturating_sub(now_ms).max(1)
            };
            tokio::select! {
                biased;
                () = self.moved.notified() => {}
                () = sleep(Duration::from_millis(left_ms)) => {}
            }
        }
    }

    /// A message of another member.
    pub(crate) fn take(self: &Arc<Self>, from: usize, message: Message) {
        let now_ms = self.clock.monotonic_ms();
        if let Message::Append { term, .. } = &message {
            self.inner().contact.heard(*term, self.clock.instant());
        }
        self.step(|raft, out| raft.step(from, message, now_ms, out));
        self.moved.notify_one();
    }

    fn step<T>(self: &Arc<Self>, change: impl FnOnce(&mut Raft, &mut Outbox) -> T) -> T {
        let mut out = Outbox::default();
        let mut inner = self.inner();
        let result = change(&mut inner.raft, &mut out);
        if out.persist {
            self.disk.kept(|kept| kept.raft = inner.raft.durable().clone());
        }
        self.settle(&mut inner);
        drop(inner);
        // Nothing leaves before what it rests on is synced.
        if !(out.persist && self.disk.manner().stalled) {
            out.send.into_iter().for_each(|(to, message)| self.send(to, message));
        }
        result
    }

    fn send(&self, to: usize, message: Message) {
        let (from, wires) = (self.number, self.wires.clone());
        let bytes = message.bytes();
        self.wires.network.throw(Place::Node(from), Place::Node(to), bytes, move || {
            let message = message.clone();
            wires.deliver(to, move |life| life.plane.take(from, message));
        });
    }

    /// Applies what is committed, and answers who waits for it.
    fn settle(&self, inner: &mut Inner) {
        while inner.applied < inner.raft.commit() {
            inner.applied += 1;
            let Some((term, Some(payload))) = inner.raft.entry(inner.applied).cloned() else { continue };
            let Ok(command) = Command::decode(&payload) else { continue };
            let index = inner.applied;
            let answer = self.copy.change(|state| state.apply(index, &command));
            self.record.absorb(&(self.number, "metadata", index, &payload));
            if self.dice.chance(0.3) {
                let state = self.copy.read(ClusterState::clone);
                self.disk.kept(|kept| kept.state = state);
            }
            if let Some((proposed, waiting)) = inner.waiting.remove(&index)
                && proposed == term
            {
                let _ = waiting.send(reply::encode(index, &answer).into());
            }
        }
        if !inner.raft.leads() {
            inner.waiting.clear();
            inner.confirming.clear();
            return;
        }
        let (confirmed, term) = (inner.raft.confirmed(), inner.raft.term());
        for (_, _, tell) in inner.confirming.extract_if(.., |(round, of, _)| *round <= confirmed && *of == term) {
            let _ = tell.send(());
        }
        if inner.raft.is_ready() {
            // Every node counts as renewed at its election, until the voters have told it more.
            let _ = self.table(inner);
        }
    }

    /// Commits a command and answers what it came to.
    pub(crate) async fn propose(self: &Arc<Self>, command: Bytes) -> Attempt<Bytes> {
        if self.disk.manner().full {
            return Attempt::Refused(Refusal::new(RefusalKind::Unavailable, "the disk of the metadata leader is full"));
        }
        let now_ms = self.clock.monotonic_ms();
        let (tell, told) = oneshot::channel();
        let proposed = self.step(|raft, out| {
            let index = raft.propose(command, now_ms, out)?;
            Some((index, raft.term()))
        });
        let Some((index, term)) = proposed else { return Attempt::Elsewhere(self.leadership().0) };
        self.inner().waiting.insert(index, (term, tell));
        // Alone it may be committed already.
        self.step(|_, _| ());
        match timeout(ATTEMPT_TIMEOUT, told).await {
            Ok(Ok(answer)) => Attempt::Done(answer),
            Ok(Err(_)) => Attempt::Lost("the leader changed while the command was under way".to_owned()),
            Err(_) => Attempt::Lost("no majority of the metadata voters confirmed it in time".to_owned()),
        }
    }

    /// Grants `node` a lease. Its request has been received when this is called.
    /// When this node last heard an earlier leader than the one of the term it is in: the term, and how long ago that was.
    pub(crate) fn contact(&self) -> Option<(u64, Duration)> {
        let inner = self.inner();
        let term = inner.raft.term();
        let before = inner.contact.before(term)?;
        Some((term, self.clock.instant().saturating_duration_since(before)))
    }

    /// `silent` are the regions it hears nothing from, if it listens; `contact` is what it says of earlier leaders.
    pub(crate) async fn renew(
        self: &Arc<Self>,
        node: NodeId,
        incarnation: u64,
        silent: Option<BTreeSet<RegionId>>,
        contact: Option<(u64, Duration)>,
    ) -> Attempt<Grant> {
        let received = self.clock.instant();
        let now_ms = self.clock.monotonic_ms();
        let (tell, told) = oneshot::channel();
        let before = {
            let mut inner = self.inner();
            if !inner.raft.is_ready() {
                return Attempt::Elsewhere(inner.raft.leader());
            }
            let term = inner.raft.term();
            inner.contact.heard(term, received);
            term
        };
        let Some(round) = self.step(|raft, out| raft.confirm(now_ms, out)) else { return Attempt::Elsewhere(None) };
        self.inner().confirming.push((round, before, tell));
        match timeout(RENEW_TIMEOUT, told).await {
            Ok(Ok(())) => {
                if let Some((term, age)) = contact {
                    self.heard_earlier(node, received, term, age);
                }
                let granted = self.grant(node, incarnation, before);
                if let (Attempt::Done(_), Some(silent)) = (&granted, silent) {
                    self.inner().detector.heard(self.clock.instant(), before, node, silent);
                }
                granted
            }
            Ok(Err(_)) => Attempt::Elsewhere(self.leadership().0),
            Err(_) => Attempt::Lost("no majority of the metadata voters confirmed the leader in time".to_owned()),
        }
    }

    /// What a node says of earlier leaders bounds what those have granted.
    fn heard_earlier(&self, node: NodeId, received: Instant, term: u64, age: Duration) {
        let mut inner = self.inner();
        let Some(table) = inner.leases.as_mut().filter(|table| table.term() == term) else { return };
        let Some(by) = received.checked_sub(Drift::ONE_PERCENT.shrink(age)) else { return };
        let voters = self.nodes.get(..self.voters).unwrap_or_default();
        table.heard_earlier(node, by, Electorate { voters, since: self.opened });
        self.nodes.iter().for_each(|node| self.remember(table, *node));
    }

    /// After the confirmation: the table must be of the term that was confirmed.
    fn grant(&self, node: NodeId, incarnation: u64, before: u64) -> Attempt<Grant> {
        let mut inner = self.inner();
        if !inner.raft.is_ready() || inner.raft.term() != before {
            return Attempt::Elsewhere(inner.raft.leader());
        }
        if !self.copy.read(|state| state.node(node).is_some()) {
            return Attempt::Refused(Refusal::new(RefusalKind::Retry, format!("node {node} is not registered yet")));
        }
        let Some(table) = self.table(&mut inner) else {
            return Attempt::Refused(Refusal::new(RefusalKind::Retry, "the cluster is not formed yet"));
        };
        match table.grant(self.clock.instant(), node, incarnation, self.copy.index()) {
            Ok(grant) => {
                self.remember(table, node);
                Attempt::Done(grant)
            }
            Err(why) => Attempt::Refused(Refusal::new(RefusalKind::Denied, why.to_string())),
        }
    }

    /// The table of this term, made anew if it is of an earlier one. `None` before the cluster is formed.
    fn table<'a>(&self, inner: &'a mut Inner) -> Option<&'a mut LeaseTable> {
        let (ttl, term) = (self.copy.read(ClusterState::lease_ttl)?, inner.raft.term());
        if inner.leases.as_ref().is_none_or(|table| table.term() != term) {
            let table = LeaseTable::elected(self.clock.instant(), term, ttl);
            self.nodes.iter().for_each(|node| self.remember(&table, *node));
            inner.leases = Some(table);
        }
        inner.leases.as_mut()
    }

    fn remember(&self, table: &LeaseTable, node: NodeId) {
        let until_us = self.clock.true_us(table.expires(node));
        let (leader, term) = (self.replica.node, table.term());
        self.record.fact(Fact::LeaseRemembered { leader, term, node, until_us });
    }

    /// What is to be put on record about failovers under way, or to be begun; nothing while this node does not lead.
    pub(crate) fn watch_failovers(&self, vigil: &mut Vigil) -> Vec<Action> {
        let replaces = |plan: &Arc<Plan>| plan.ended_ms.is_none() && matches!(plan.goal, Goal::Failover { .. });
        let is_watched = |bucket: &Arc<Bucket>| bucket.auto.mode != AutoMode::Manual;
        if self.copy.read(|state| !state.plans().any(replaces) && !state.buckets().any(is_watched)) {
            return Vec::new();
        }
        // Before the table: whoever is granted a lease in between must know what this state says.
        let state = self.copy.read(ClusterState::clone);
        let mut inner = self.inner();
        if !inner.raft.is_ready() || self.table(&mut inner).is_none() {
            return Vec::new();
        }
        let Inner { leases: Some(table), detector, .. } = &mut *inner else { return Vec::new() };
        let now = self.clock.instant();
        let mut actions = vigil.look(now, table, &state);
        actions.extend(detector.look(now, self.clock.wall_ms(), table, &state));
        actions
    }

    /// What a leader of no cluster proposes; `None` while there is no need.
    pub(crate) fn must_form(&self) -> bool {
        self.inner().raft.is_ready() && self.copy.read(|state| state.cluster().is_none())
    }
}
