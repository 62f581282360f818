//! What only the leader of the metadata group can do: commit commands and grant leases.
//!
//! Works on any node at any time; one that does not lead says who does. A grant is given only after consensus
//! confirmed, after the request had been received, that this node still leads (design 4; the reasoning is in
//! [`meridian_metadata_core::lease`]).

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use meridian_consensus::{Electorate, Group, Leadership, ProposeError, ReadError};
use meridian_failpoint::failpoint;
use meridian_metadata_core::{Action, ClusterState, Command, Detector, Drift, Grant, LeaseTable, Mender, Vigil, lease};
use meridian_types::{
    AutoMode, Bucket, Fact, Goal, Membership, NodeId, NodeName, Plan, PlanId, Refusal, RefusalKind, RegionId,
    RegionName, ShardId, Step,
};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::attempt::Attempt;
use crate::clock::wall_ms;
use crate::copy::LocalCopy;
use crate::options::Options;

/// Commands that may wait for their commit at once (RES-1). Metadata changes are rare; a burst of operators' scripts fits.
const COMMANDS_IN_FLIGHT_MAX: usize = 64;

/// Renewals that may wait for a quorum at once: one per node and second, each for a round trip.
const RENEWALS_IN_FLIGHT_MAX: usize = 1024;

/// The leader's work on one node.
#[derive(Debug)]
pub(crate) struct Leader {
    group: Group,
    copy: Arc<LocalCopy>,
    /// Of the last term in which this node led.
    leases: Mutex<Option<LeaseTable>>,
    /// What the other nodes hear of each other's regions.
    detector: Mutex<Detector>,
    this: NodeId,
    drift: Drift,
    /// Operations for which this node, in that term, has tried to hand the leadership over.
    tried: Mutex<(u64, BTreeSet<PlanId>)>,
    commands: Semaphore,
    renewals: Semaphore,
    attempt_timeout: Duration,
    renew_timeout: Duration,
}

/// How long ago, at least, a node last heard a leader of a term before `term`, which it has entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Contact {
    pub(crate) term: u64,
    /// On its own clock.
    pub(crate) age: Duration,
}

/// To whom the leadership should go before writes stop, and for which operations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Handover {
    pub(crate) to: NodeId,
    pub(crate) plans: Vec<PlanId>,
}

impl Leader {
    pub(crate) fn new(options: &Options, group: Group, copy: Arc<LocalCopy>) -> Leader {
        Leader {
            group,
            copy,
            leases: Mutex::new(None),
            detector: Mutex::default(),
            this: options.this.id(),
            drift: options.drift(),
            tried: Mutex::default(),
            commands: Semaphore::new(COMMANDS_IN_FLIGHT_MAX),
            renewals: Semaphore::new(RENEWALS_IN_FLIGHT_MAX),
            attempt_timeout: options.attempt_timeout(),
            renew_timeout: options.renew_timeout(),
        }
    }

    /// Who leads, as this node knows it.
    pub(crate) fn leadership(&self) -> Leadership {
        *self.group.leadership().borrow()
    }

    /// The voters, as this node's log has them.
    pub(crate) fn voters(&self) -> Vec<NodeId> {
        self.group.voters()
    }

    /// When this node last heard an earlier leader than the one of the term it is in.
    pub(crate) fn contact(&self) -> Option<Contact> {
        let term = self.leadership().term;
        self.group.contact_before(term).map(|last| Contact { term, age: last.elapsed() })
    }

    /// Whether this node is a voter.
    pub(crate) fn votes(&self) -> bool {
        self.voters().contains(&self.this)
    }

    /// Commits a command, given as it is and as bytes, and answers what it came to ([`meridian_metadata_core::reply`]); none that a node
    /// of the cluster could not read (UPG-1).
    pub(crate) async fn propose(&self, decoded: &Command, command: Bytes) -> Attempt<Bytes> {
        if self.must_wait(decoded) {
            let message = "the metadata leadership is moving next to the buckets' next primary: try again shortly";
            return Attempt::Refused(Refusal::new(RefusalKind::Retry, message));
        }
        if let Err(refusal) = self.copy.read(|state| state.admits(&decoded.action)) {
            return Attempt::Refused(refusal);
        }
        if let Some(why) = self.is_premature(decoded) {
            return Attempt::Refused(Refusal::new(RefusalKind::Unavailable, why));
        }
        let Ok(_permit) = self.commands.try_acquire() else {
            return busy("metadata commands");
        };
        let proposal = match self.group.propose(command) {
            Ok(proposal) => proposal,
            Err(error) => return not_proposed(error),
        };
        failpoint("metadata.propose.after");
        match timeout(self.attempt_timeout, proposal).await {
            Ok(Ok(applied)) => Attempt::Done(applied.result),
            Ok(Err(error)) => not_proposed(error),
            Err(_) => Attempt::Lost("no majority of the metadata voters confirmed it in time".to_owned()),
        }
    }

    /// Whether a command could stop a bucket's writes just when the leadership is on its way: an election would
    /// lengthen the pause.
    fn must_wait(&self, command: &Command) -> bool {
        let Action::Report { words, .. } = &command.action else { return false };
        let closes = words.iter().any(|word| word.facts.iter().any(|(_, fact)| *fact == Fact::CaughtUp));
        closes && self.handover().is_some_and(|due| words.iter().any(|word| due.plans.contains(&word.plan)))
    }

    /// Why a command about nodes can't be carried out now, by what only leases and votes tell.
    fn is_premature(&self, command: &Command) -> Option<String> {
        if let Action::RemoveNode { name } = &command.action {
            return self.is_needed(name);
        }
        let Action::ChangeMembers { region, .. } = &command.action else { return None };
        self.is_away(region, command)
    }

    /// Why those who would join can't: a group that waits for a node which is not there could not go on without it.
    fn is_away(&self, region: &RegionName, command: &Command) -> Option<String> {
        let mut next = self.copy.read(ClusterState::clone);
        let was = next.topology();
        next.apply(next.index() + 1, command).ok()?;
        let now = next.topology();
        let id = now.region_named(region.as_str())?.id;
        let joins = now.changes.get(&id)?.target.iter().filter(|node| !was.voters(id, ShardId(0)).contains(node));
        let live = self.live();
        let away = joins.filter(|node| !live.contains(node)).find_map(|node| now.nodes.get(node))?;
        Some(format!("`{}` is not up: start it, or name another spare", away.name))
    }

    /// Why a node can't be removed yet: others may still rest on its lease or its vote.
    fn is_needed(&self, name: &NodeName) -> Option<String> {
        let node = NodeId::of(name);
        if self.copy.topology().membership(node) != Some(Membership::Spare) {
            // The state says better why not.
            return None;
        }
        if self.voters().contains(&node) {
            return Some(format!(
                "`{name}` still votes in the metadata plane: another node of its region takes its place within seconds of its draining, if one is up"
            ));
        }
        let may_act = self.believing([node].into_iter()).contains(&node);
        may_act
            .then(|| format!("`{name}` is up, or was a moment ago: stop it, and try again once its lease has run out"))
    }

    /// Whom to replace by a spare now, if anybody.
    pub(crate) fn mend(&self, mender: &mut Mender, after: Duration) -> Option<Action> {
        let leadership = self.leadership();
        if !leadership.leads || !self.copy.read(ClusterState::has_spare) {
            return None;
        }
        let state = self.copy.read(ClusterState::clone);
        let mut leases = self.leases();
        let table = self.table(&mut leases, leadership.term)?;
        mender.look(Instant::now(), after, table, &state)
    }

    /// The handover of the leadership that is due: to a voter in the one region that all operations under way go to, if this
    /// node, which leads, is elsewhere. From there the commits that end the pause are a round trip shorter. It is tried
    /// once per operation, and not while some bucket's writes are stopped.
    pub(crate) fn handover(&self) -> Option<Handover> {
        let leadership = self.leadership();
        let tried = self.tried(leadership.term);
        let (plans, near) = self.copy.read(|state| {
            // Whom a failover goes to is not known before its writes stop.
            let moves = |plan: &&Arc<Plan>| plan.ended_ms.is_none() && matches!(plan.goal, Goal::Switchover { .. });
            let under_way: Vec<_> = state.plans().filter(moves).collect();
            let to = under_way.first()?.to()?;
            let stopped =
                under_way.iter().flat_map(|plan| &plan.moves).any(|it| matches!(it.step, Step::Draining { .. }));
            let new: Vec<_> = under_way.iter().map(|plan| plan.id).filter(|id| !tried.1.contains(id)).collect();
            let lives_there = |node: &NodeId| state.node(*node).is_some_and(|node| node.region == to);
            let agree = under_way.iter().all(|plan| plan.to() == Some(to));
            let due = agree && !stopped && !new.is_empty() && !lives_there(&self.this);
            due.then(|| (new, self.voters().into_iter().filter(lives_there).collect::<Vec<_>>()))
        })?;
        let now = Instant::now();
        let leases = self.leases();
        let table = leases.as_ref().filter(|table| table.term() == leadership.term)?;
        let to = near.into_iter().find(|node| table.is_live(now, *node))?;
        leadership.leads.then_some(Handover { to, plans })
    }

    /// It was tried, whatever came of it.
    pub(crate) fn handover_tried(&self, term: u64, handover: &Handover) {
        self.tried(term).1.extend(&handover.plans);
    }

    fn tried(&self, term: u64) -> MutexGuard<'_, (u64, BTreeSet<PlanId>)> {
        // A panic under this lock has condemned the node; the set itself is never half changed.
        let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        if tried.0 != term {
            *tried = (term, BTreeSet::new());
        }
        tried
    }

    /// What is to be put on record about failovers under way; nothing while this node does not lead.
    pub(crate) fn watch_failovers(&self, vigil: &mut Vigil) -> Vec<Action> {
        let leadership = self.leadership();
        let replaces = |plan: &Arc<Plan>| plan.ended_ms.is_none() && matches!(plan.goal, Goal::Failover { .. });
        let is_watched = |bucket: &Arc<Bucket>| bucket.auto.mode != AutoMode::Manual;
        let idle = self.copy.read(|state| !state.plans().any(replaces) && !state.buckets().any(is_watched));
        if !leadership.leads || idle {
            return Vec::new();
        }
        // Before the table: whoever is granted a lease in between must know what this state says.
        let state = self.copy.read(ClusterState::clone);
        let mut leases = self.leases();
        let Some(table) = self.table(&mut leases, leadership.term) else { return Vec::new() };
        let now = Instant::now();
        let mut actions = vigil.look(now, table, &state);
        actions.extend(self.detector().look(now, wall_ms(), table, &state));
        actions
    }

    fn detector(&self) -> MutexGuard<'_, Detector> {
        // A panic under this lock has condemned the node; what nodes hear is never half noted.
        self.detector.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Grants `node` a lease. Its request has been received when this is called.
    /// `silent` are the regions it hears nothing from, if it listens; `contact` is when it last heard an earlier leader.
    pub(crate) async fn renew(
        &self,
        node: NodeId,
        incarnation: u64,
        silent: Option<BTreeSet<RegionId>>,
        contact: Option<Contact>,
    ) -> Attempt<Grant> {
        let received = Instant::now();
        let Ok(_permit) = self.renewals.try_acquire() else {
            return busy("lease renewals");
        };
        let before = self.leadership();
        if !before.leads {
            return Attempt::Elsewhere(before.leader);
        }
        match timeout(self.renew_timeout, self.group.confirm_leadership()).await {
            Ok(Ok(_)) => {
                if let Some(contact) = contact {
                    self.heard_earlier(node, received, contact);
                }
                let granted = self.grant(node, incarnation, before);
                if let (Attempt::Done(_), Some(silent)) = (&granted, silent) {
                    self.detector().heard(Instant::now(), before.term, node, silent);
                }
                granted
            }
            Ok(Err(ReadError::NotLeader { leader })) => Attempt::Elsewhere(leader),
            Ok(Err(error @ (ReadError::NoQuorum | ReadError::Stopped))) => Attempt::Lost(error.to_string()),
            Err(_) => Attempt::Lost("no majority of the metadata voters confirmed the leader in time".to_owned()),
        }
    }

    /// What a node says of earlier leaders bounds what those have granted.
    fn heard_earlier(&self, node: NodeId, received: Instant, contact: Contact) {
        let Some(electorate) = self.group.electorate() else { return };
        let mut leases = self.leases();
        let Some(table) = leases.as_mut().filter(|table| table.term() == contact.term) else { return };
        // An age is measured when it is sent, before it was received, on a clock that may be fast.
        let Some(by) = received.checked_sub(self.drift.shrink(contact.age)) else { return };
        let Electorate { voters, since } = electorate;
        table.heard_earlier(node, by, lease::Electorate { voters: &voters, since });
    }

    /// After the barrier: the table must be of the term that was confirmed.
    fn grant(&self, node: NodeId, incarnation: u64, before: Leadership) -> Attempt<Grant> {
        let after = self.leadership();
        if !after.leads || after.term != before.term {
            return Attempt::Elsewhere(after.leader);
        }
        if !self.copy.read(|state| state.node(node).is_some()) {
            let message = format!("node {node} is not registered yet: it gets a lease once it is");
            return Attempt::Refused(Refusal::new(RefusalKind::Retry, message));
        }
        let mut leases = self.leases();
        let Some(table) = self.table(&mut leases, after.term) else {
            return Attempt::Refused(Refusal::new(RefusalKind::Retry, "the cluster is not formed yet"));
        };
        // Index and time are read under the lock: whoever commits a change and then reads the table finds
        // every grant that does not require the change.
        failpoint("lease.grant.before");
        match table.grant(Instant::now(), node, incarnation, self.copy.index()) {
            Ok(grant) => Attempt::Done(grant),
            Err(why) => Attempt::Refused(Refusal::new(RefusalKind::Denied, why.to_string())),
        }
    }

    /// To be called when this node was elected: every node counts as renewed at that moment, until the voters have told it more.
    pub(crate) fn elected(&self, term: u64) {
        failpoint("lease.elected.before");
        let _ = self.table(&mut self.leases(), term);
    }

    /// How many nodes renewed in this term and may still believe in it.
    pub(crate) fn leases_live(&self) -> usize {
        self.leases().as_ref().map_or(0, |table| table.live(Instant::now()))
    }

    /// Those of `nodes` that may believe in a lease, also one of an earlier leader.
    pub(crate) fn believing(&self, nodes: impl Iterator<Item = NodeId>) -> BTreeSet<NodeId> {
        let now = Instant::now();
        let leases = self.leases();
        let Some(table) = leases.as_ref() else { return BTreeSet::new() };
        nodes.filter(|node| table.expires(*node) > now).collect()
    }

    /// Which nodes those are; none while this node does not lead.
    pub(crate) fn live(&self) -> Vec<NodeId> {
        let now = Instant::now();
        let leadership = self.leadership();
        let leases = self.leases();
        let table = leases.as_ref().filter(|table| leadership.leads && table.term() == leadership.term);
        table.map_or_else(Vec::new, |table| table.live_nodes(now).collect())
    }

    fn leases(&self) -> MutexGuard<'_, Option<LeaseTable>> {
        // A panic under this lock has condemned the node; the table itself is never half changed.
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The table of `term`, made anew if it is of an earlier one. `None` before the cluster is formed.
    fn table<'a>(&self, leases: &'a mut Option<LeaseTable>, term: u64) -> Option<&'a mut LeaseTable> {
        let ttl = self.copy.read(ClusterState::lease_ttl)?;
        if leases.as_ref().is_none_or(|table| table.term() != term) {
            *leases = Some(LeaseTable::elected(Instant::now(), term, ttl));
        }
        leases.as_mut()
    }
}

fn not_proposed<T>(error: ProposeError) -> Attempt<T> {
    match error {
        ProposeError::NotLeader { leader } => Attempt::Elsewhere(leader),
        ProposeError::Full => busy("metadata commands"),
        ProposeError::DiskFull => Attempt::Refused(Refusal::new(
            RefusalKind::Unavailable,
            "the disk of the metadata leader is full: free space there, or move the leadership",
        )),
        ProposeError::TooLarge { .. } => Attempt::Refused(Refusal::new(RefusalKind::Invalid, error.to_string())),
        ProposeError::Unknown => Attempt::Lost(error.to_string()),
        ProposeError::Stopped => Attempt::Elsewhere(None),
    }
}

fn busy<T>(what: &str) -> Attempt<T> {
    Attempt::Refused(Refusal::new(RefusalKind::Retry, format!("too many {what} are under way: try again shortly")))
}
