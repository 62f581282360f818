//! Changes of a group's members and of its leader.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::atomic::Ordering;

use meridian_types::NodeId;
use openraft::async_runtime::WatchReceiver;
use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{ChangeMembers, EmptyNode, Instant};
use openraft_rt_tokio::TokioRuntime;

use crate::error::ChangeError;
use crate::group::{Group, Inner};
use crate::raft::types::TypeConfig;

/// What a voter may lack, in entries, to take over without a pause that is felt, and a learner to become one: it gets them before it
/// is needed.
const LACKING_MAX: u64 = 1024;

/// Who is in a group, as its leader knows.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Members {
    /// Who votes. While two configurations decide together, the voters of both.
    pub voters: BTreeSet<NodeId>,
    /// Whether one configuration alone decides, and a majority of it has that on record.
    pub settled: bool,
    /// Who follows without a vote, and whether it has nearly all there is, and has answered lately.
    pub learners: BTreeMap<NodeId, bool>,
}

type WriteError = RaftError<TypeConfig<TokioRuntime>, ClientWriteError<TypeConfig<TokioRuntime>>>;

impl Group {
    /// Makes exactly these nodes the voters. New ones first catch up as learners.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn change_voters(&self, voters: &[NodeId]) -> Result<(), ChangeError> {
        let wanted: BTreeSet<u64> = voters.iter().map(|node| node.0).collect();
        if wanted.is_empty() {
            return Err(ChangeError::Invalid("a group needs at least one voter".to_owned()));
        }
        let known: BTreeSet<u64> =
            self.inner.raft.server_metrics().borrow_watched().membership_config.nodes().map(|(id, _)| *id).collect();
        for new in wanted.difference(&known) {
            self.add_learner(NodeId(*new)).await?;
        }
        let raft = &self.inner.raft;
        self.inner
            .change(async { raft.change_membership(ChangeMembers::ReplaceAllVoters(wanted), false).await.map(drop) })
            .await
    }

    /// Who is in the group; `None` unless this node leads it.
    pub fn members(&self) -> Option<Members> {
        let inner = &self.inner;
        let learners = inner.learners()?;
        let metrics = inner.raft.server_metrics();
        let now = metrics.borrow_watched();
        let members = &now.membership_config;
        let settled = members.get_joint_config().len() == 1 && now.committed_membership_config == *members;
        // One that has nearly all and is dead by now would be waited for by who is to vote with it.
        let learners = learners.into_iter().map(|(node, it)| (node, it.answers && !it.lacks));
        Some(Members { voters: members.voter_ids().map(NodeId).collect(), settled, learners: learners.collect() })
    }

    /// Has a node follow without a vote, and returns at once: how far it has come is in [`Group::members`].
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn begin_to_follow(&self, node: NodeId) -> Result<(), ChangeError> {
        let raft = &self.inner.raft;
        self.inner.change(async { raft.add_learner(node.0, EmptyNode::new(), false).await.map(drop) }).await
    }

    /// A node that follows without a vote follows no more.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn forget(&self, learner: NodeId) -> Result<(), ChangeError> {
        let nodes = ChangeMembers::RemoveNodes(BTreeSet::from([learner.0]));
        self.inner.change(async { self.inner.raft.change_membership(nodes, false).await.map(drop) }).await
    }

    /// Adds a node that follows without a vote, and returns once it has caught up.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn add_learner(&self, node: NodeId) -> Result<(), ChangeError> {
        let raft = &self.inner.raft;
        self.inner.change(async { raft.add_learner(node.0, EmptyNode::new(), true).await.map(drop) }).await
    }

    /// Whether a voter could take over from this leader at once: it has answered lately, and has nearly all of the log. One that
    /// could not would leave the group without a leader until an election.
    pub fn could_take_over(&self, to: NodeId) -> bool {
        let metrics = self.inner.raft.metrics();
        let now = metrics.borrow_watched();
        let votes = now.membership_config.voter_ids().any(|voter| voter == to.0);
        let answered = now.heartbeat.as_ref().and_then(|all| all.get(&to.0).copied().flatten());
        let has = now.replication.as_ref().and_then(|all| all.get(&to.0).cloned().flatten()).map(|last| last.index());
        let lacks_little = has.is_some_and(|has| has + LACKING_MAX >= now.last_log_index.unwrap_or_default());
        votes && lacks_little && answered.is_some_and(|at| at.elapsed() < self.inner.read_lease)
    }

    /// Asks `to` to take over the leadership, and returns once it has. There is no way back: from then on this node takes no writes until
    /// somebody is elected. So ask one that could ([`Group::could_take_over`]).
    ///
    /// # Errors
    /// See [`ChangeError`]; [`ChangeError::NotLeader`], too, where another node was elected.
    pub async fn transfer_leadership(&self, to: NodeId) -> Result<(), ChangeError> {
        let mut leadership = self.leadership();
        let now = *leadership.borrow_and_update();
        if now.leader == Some(to) {
            return Ok(());
        }
        if now.leader != Some(self.inner.node) {
            return Err(ChangeError::NotLeader { leader: now.leader });
        }
        self.inner.handed_over_in.store(now.term, Ordering::Release);
        self.inner.raft.trigger().transfer_leader(to.0).await.map_err(|_| ChangeError::Stopped)?;
        let elected = leadership.wait_for(|next| next.term > now.term && next.leader.is_some());
        match tokio::time::timeout(self.inner.patience, elected).await {
            Ok(Ok(next)) if next.leader == Some(to) => Ok(()),
            Ok(Ok(next)) => Err(ChangeError::NotLeader { leader: next.leader }),
            Ok(Err(_)) => Err(ChangeError::Stopped),
            Err(_) => Err(ChangeError::Unknown),
        }
    }
}

/// How a node that follows without a vote comes along.
struct Learner {
    /// It has answered lately.
    answers: bool,
    /// It lacks more than a voter may.
    lacks: bool,
}

impl Inner {
    /// Those who follow without a vote; `None` unless this node leads the group.
    fn learners(&self) -> Option<BTreeMap<NodeId, Learner>> {
        let metrics = self.raft.metrics();
        let now = metrics.borrow_watched();
        let (replication, heartbeat) = (now.replication.as_ref()?, now.heartbeat.as_ref()?);
        let last = now.last_log_index.unwrap_or_default();
        let learner = |id: u64| {
            let at = heartbeat.get(&id).copied().flatten();
            let has = replication.get(&id).cloned().flatten().map(|has| has.index());
            let answers = at.is_some_and(|at| at.elapsed() < self.read_lease);
            Learner { answers, lacks: has.is_none_or(|has| has + LACKING_MAX < last) }
        };
        let members = &now.membership_config;
        let votes = |id: &u64| members.voter_ids().any(|voter| voter == *id);
        let learners = members.nodes().map(|(id, _)| *id).filter(|id| !votes(id));
        Some(learners.map(|id| (NodeId(id), learner(id))).collect())
    }

    /// Whether this leader is bringing in a node that is there and lacks much. It may be on its way through a snapshot, and then
    /// needs the log behind that: purged meanwhile, it would be sent another one, and so on.
    pub(crate) fn fills(&self) -> bool {
        self.learners().is_some_and(|all| all.values().any(|it| it.answers && it.lacks))
    }

    /// Runs a change. From its beginning this node may no longer be the only one to decide, so the shortcuts of a
    /// single voter end before it.
    async fn change(&self, change: impl Future<Output = Result<(), WriteError>>) -> Result<(), ChangeError> {
        self.changing.fetch_add(1, Ordering::AcqRel);
        self.solo.store(false, Ordering::Release);
        self.raft.runtime_config().tick(true);
        let result = tokio::time::timeout(self.patience, change).await;
        self.changing.fetch_sub(1, Ordering::AcqRel);
        // Lets the watcher look again.
        self.leadership.send_modify(|_| {});
        match result {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(change_error(error)),
            Err(_) => Err(ChangeError::Unknown),
        }
    }
}

fn change_error(error: WriteError) -> ChangeError {
    match error {
        RaftError::Fatal(_) => ChangeError::Stopped,
        RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => {
            ChangeError::NotLeader { leader: to.leader_id.map(NodeId) }
        }
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => ChangeError::Unknown,
        RaftError::APIError(ClientWriteError::PreconditionFailed(error)) => ChangeError::Invalid(error.to_string()),
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => match error {
            ChangeMembershipError::InProgress(_) => ChangeError::InProgress,
            other => ChangeError::Invalid(other.to_string()),
        },
    }
}
