//! Changes of a group's members and of its leader.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::atomic::Ordering;

use meridian_types::NodeId;
use openraft::async_runtime::WatchReceiver;
use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{ChangeMembers, EmptyNode};
use openraft_rt_tokio::TokioRuntime;

use crate::error::ChangeError;
use crate::group::{Group, Inner};
use crate::raft::types::TypeConfig;

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

    /// Adds a node that follows without a vote, and returns once it has caught up.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn add_learner(&self, node: NodeId) -> Result<(), ChangeError> {
        let raft = &self.inner.raft;
        self.inner.change(async { raft.add_learner(node.0, EmptyNode::new(), true).await.map(drop) }).await
    }

    /// Asks `to` to take over the leadership, and returns once it has.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn transfer_leadership(&self, to: NodeId) -> Result<(), ChangeError> {
        let mut leadership = self.leadership();
        let leader = leadership.borrow_and_update().leader;
        if leader == Some(to) {
            return Ok(());
        }
        if leader != Some(self.inner.node) {
            return Err(ChangeError::NotLeader { leader });
        }
        self.inner.raft.trigger().transfer_leader(to.0).await.map_err(|_| ChangeError::Stopped)?;
        let taken = leadership.wait_for(|now| now.leader == Some(to));
        match tokio::time::timeout(self.inner.patience, taken).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ChangeError::Stopped),
            Err(_) => Err(ChangeError::Unknown),
        }
    }
}

impl Inner {
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
