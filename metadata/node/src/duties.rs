//! What the leader does on its own: forms the cluster, remembers its election, takes new nodes as learners, lets removed ones go, and
//! has another node of a region vote for one that serves it no more.
//!
//! Runs on every node and acts only while it leads. Every step may be repeated.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use meridian_consensus::{ChangeError, Group, Leadership};
use meridian_metadata_core::command::Form;
use meridian_metadata_core::{Action, Command, OperationId};
use meridian_types::release::{FORMAT_UNSAID, format_of};
use meridian_types::{ClusterId, Membership, NodeId, ShardId, Topology};
use tokio::time::{sleep, timeout};

use crate::ask::Asker;
use crate::clock::wall_ms;
use crate::copy::LocalCopy;
use crate::leader::Leader;
use crate::metrics::Metrics;
use crate::options::{Member, Options};
use crate::survival::Surveyor;

/// How often gauges are refreshed and failed steps repeated.
const TICK: Duration = Duration::from_secs(1);

/// How long a new learner may take to catch up before others get their turn.
const LEARNER_TIMEOUT: Duration = Duration::from_secs(5);

/// The leader's duties on one node.
pub(crate) struct Duties {
    pub(crate) options: Arc<Options>,
    pub(crate) group: Group,
    pub(crate) leader: Arc<Leader>,
    pub(crate) asker: Arc<Asker>,
    pub(crate) copy: Arc<LocalCopy>,
    pub(crate) metrics: Metrics,
}

impl Duties {
    /// Attends to them for ever.
    pub(crate) async fn run(self) {
        let mut leaderships = self.group.leadership();
        let mut topologies = self.copy.changes();
        let mut seen = Leadership::default();
        // Nodes this leader has added in its term. A new leader asks again: adding twice changes nothing.
        let mut learners = BTreeSet::new();
        let mut surveyor = Surveyor::default();
        loop {
            let now = *leaderships.borrow_and_update();
            if now != seen {
                self.leadership_changed(seen, now);
                if now.term != seen.term {
                    learners.clear();
                }
                seen = now;
            }
            topologies.mark_unchanged();
            if now.leads {
                self.lead(&mut learners).await;
                surveyor.survey(&self.leader, &self.copy, &self.metrics);
            } else {
                surveyor.rest();
            }
            // Nobody but the group itself reads this log; consensus keeps what is not stored yet.
            self.group.allow_purge(*self.group.applied().borrow());
            self.metrics.index(self.copy.index());
            self.metrics.leases_live(if now.leads { self.leader.leases_live() } else { 0 });
            tokio::select! {
                changed = leaderships.changed() => if changed.is_err() { return },
                changed = topologies.changed() => if changed.is_err() { return },
                () = sleep(TICK) => {}
            }
        }
    }

    fn leadership_changed(&self, before: Leadership, now: Leadership) {
        if now.leads && (!before.leads || before.term != now.term) {
            self.leader.elected(now.term);
        }
        if before.leader != now.leader || before.leads != now.leads {
            self.metrics.leader_changed(now.leads);
            let topology = self.copy.topology();
            let leader = now.leader.and_then(|id| topology.nodes.get(&id)).map(|node| node.name.to_string());
            tracing::info!(
                term = now.term,
                leads = now.leads,
                leader = leader.or_else(|| now.leader.map(|id| id.to_string())).as_deref().unwrap_or("nobody"),
                "metadata leader changed"
            );
        }
    }

    async fn lead(&self, learners: &mut BTreeSet<NodeId>) {
        let is_formed = || self.copy.topology().cluster.is_some();
        // What is on record is applied first: those who follow a cluster that is there may be of a release that can't read how this one is formed.
        if !is_formed() && self.group.read_barrier().await.is_ok() && !is_formed() {
            self.form().await;
        }
        // A leader that was elected before the cluster was formed has no table yet.
        self.leader.elected(self.leader.leadership().term);
        let voters = self.leader.voters();
        let nodes: Vec<_> = self.copy.topology().nodes.keys().copied().collect();
        for node in nodes.into_iter().filter(|node| !voters.contains(node)) {
            if !learners.contains(&node) && self.leader.leadership().leads && self.add_learner(node).await {
                learners.insert(node);
            }
        }
        self.forget_removed().await;
        self.settle_voters(&voters, learners).await;
    }

    /// Nodes that were removed from the cluster need not be told anything.
    async fn forget_removed(&self) {
        let topology = self.copy.topology();
        let Some(members) = self.group.members().filter(|_| topology.cluster.is_some()) else { return };
        for gone in members.learners.keys().filter(|node| !topology.nodes.contains_key(node)) {
            match self.group.forget(*gone).await {
                Ok(()) => tracing::info!(node = gone.0, "a removed node follows the metadata group no more"),
                Err(error) => tracing::debug!(node = gone.0, %error, "a removed node still follows the metadata group"),
            }
        }
    }

    /// One node per region votes. After a recovery one votes alone; the others are taken back all at once, as soon as every one of
    /// them is up and follows: two voters would survive less than one. And where a voter no longer serves its region, another one
    /// that does takes its place.
    async fn settle_voters(&self, voters: &[NodeId], learners: &BTreeSet<NodeId>) {
        let topology = self.copy.topology();
        let configured = self.options.members.iter().filter(|member| member.voter);
        let live = self.leader.live();
        let mut next: Vec<NodeId> = configured.map(|member| voter_of(&topology, member, voters, &live)).collect();
        // A vote is taken only from who no longer serves: a configuration that names fewer nodes than there are takes none.
        let stays =
            |node: &&NodeId| matches!(topology.membership(**node), Some(Membership::Member | Membership::Witness));
        let others: Vec<NodeId> = voters.iter().filter(|node| !next.contains(node)).filter(stays).copied().collect();
        next.extend(others);
        let missing = |node: &&NodeId| !voters.contains(node);
        let ready = next.iter().filter(missing).all(|node| learners.contains(node) && live.contains(node));
        let changes = next.iter().any(|node| !voters.contains(node)) || voters.iter().any(|node| !next.contains(node));
        if !changes || !ready || !self.leader.leadership().leads {
            return;
        }
        if !next.contains(&self.options.this.id()) {
            // Whoever is to go does not decide who comes; where nobody can take over yet, those who come vote beside it first.
            if let Some(heir) = next.iter().find(|node| self.group.could_take_over(**node)) {
                if let Err(error) = self.group.transfer_leadership(*heir).await {
                    tracing::info!(%error, "the metadata leadership stays for now with a node that is to vote no more");
                }
                return;
            }
            next.push(self.options.this.id());
        }
        match self.group.change_voters(&next).await {
            Ok(()) => tracing::info!(voters = next.len(), "the metadata plane has its voters"),
            Err(error) => tracing::warn!(%error, "not everybody votes yet who is to"),
        }
    }

    async fn form(&self) {
        let command = Command {
            operation: OperationId(rand::random()),
            who: self.options.this.name.to_string(),
            at_ms: wall_ms(),
            action: Action::FormClusterAt {
                form: Form {
                    cluster: ClusterId(rand::random()),
                    shards: self.options.shards,
                    lease_ttl_ms: self.options.lease_ttl_ms,
                    // Versions are told by the nodes themselves, when they register.
                    members: self.options.members.iter().map(|member| member.spec("")).collect(),
                },
                // What this node says that it runs, so that one that says an older release is believed from the start (UPG-1).
                format: format_of(&self.options.version).unwrap_or(FORMAT_UNSAID),
            },
        };
        if let Err(refusal) = self.asker.propose(&command).await {
            tracing::warn!(%refusal, "the cluster could not be formed yet");
        }
    }

    async fn add_learner(&self, node: NodeId) -> bool {
        let mut leaderships = self.group.leadership();
        leaderships.mark_unchanged();
        let added = tokio::select! {
            added = timeout(LEARNER_TIMEOUT, self.group.add_learner(node)) => added,
            // No longer this node's duty, or anew in another term.
            _ = leaderships.changed() => return false,
        };
        match added {
            Ok(Ok(())) => {
                tracing::info!(node = node.0, "node follows the metadata group");
                true
            }
            Ok(Err(ChangeError::Invalid(why))) => {
                tracing::warn!(node = node.0, why, "node can't follow the metadata group");
                true
            }
            Ok(Err(error)) => {
                tracing::debug!(node = node.0, %error, "node does not follow the metadata group yet");
                false
            }
            Err(_) => false,
        }
    }
}

/// Who votes for a region in the metadata plane: the member of the configuration, or the one that does already where that one does not
/// serve its region any more, or one that serves, if possible one that is up.
fn voter_of(topology: &Topology, member: &Member, voters: &[NodeId], live: &[NodeId]) -> NodeId {
    let Some(region) = topology.region_named(member.region.as_str()).filter(|it| topology.holds_data(it.id)) else {
        return member.id();
    };
    let serving = topology.voters(region.id, ShardId(0));
    let is_settled = |node: &NodeId| topology.membership(*node) == Some(Membership::Member);
    let votes = serving.iter().find(|node| voters.contains(node) && is_settled(node));
    let listed = Some(member.id()).filter(|node| topology.serves(*node));
    let (listed_live, any_live) =
        (listed.filter(|node| live.contains(node)), serving.iter().find(|it| live.contains(it)));
    votes.copied().or(listed_live).or(any_live.copied()).or(listed).or(serving.first().copied()).unwrap_or(member.id())
}
