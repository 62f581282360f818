//! What this crate asks of consensus, as seams: a group that orders entries, and something that starts groups.
//!
//! `meridian-consensus` stands behind them in a server. Another engine for a whole region, or a simulated one, takes the
//! same place. The way of a write stays free of allocation: [`Proposal`] is a concrete type.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use meridian_consensus::{
    Applied, ChangeError, Consensus, Group, Leadership, LogSlice, Members, ProposeError, ReadError, ReadLogError,
    StartError, StateMachine,
};
use meridian_types::{GroupId, Lsn, NodeId};
use tokio::sync::{oneshot, watch};

/// One shard's group on this node.
pub trait ShardGroup: Send + Sync + 'static {
    /// Enqueues a proposal; those enqueued one after another get rising positions. Never blocks.
    ///
    /// # Errors
    /// An error returned here, not through the [`Proposal`], means that it did not take effect.
    fn propose(&self, payload: Bytes) -> Result<Proposal, ProposeError>;

    /// Resolves once this node's state has everything that was committed when this was called (CON-1).
    fn read_barrier(&self) -> Barrier<'_>;

    /// Applied application entries after `after`, about `bytes_max` of them but at least one if there is one.
    fn read_log(&self, after: Lsn, bytes_max: usize) -> BoxFuture<'_, Result<LogSlice, ReadLogError>>;

    /// Who leads.
    fn leadership(&self) -> watch::Receiver<Leadership>;

    /// Nobody outside needs entries up to here any more.
    fn allow_purge(&self, up_to: Lsn);

    /// Whether this node leads, and `to` could take over at once.
    fn could_take_over(&self, to: NodeId) -> bool;

    /// Has `to` take over the leadership; resolves once it has.
    fn hand_over(&self, to: NodeId) -> BoxFuture<'_, Result<(), ChangeError>>;

    /// Who is in the group, and changing that. An engine that places its copies by itself has none.
    fn membership(&self) -> Option<&dyn Membership> {
        None
    }
}

/// Who is in a shard's group. Every change may be tried again.
pub trait Membership: Send + Sync {
    /// Who is in it; `None` unless this node leads it.
    fn members(&self) -> Option<Members>;

    /// Has a node follow without a vote; resolves at once, not when it has caught up.
    fn begin_to_follow(&self, node: NodeId) -> BoxFuture<'_, Result<(), ChangeError>>;

    /// Makes exactly these the voters; resolves once they are.
    fn change_voters<'a>(&'a self, voters: &'a [NodeId]) -> BoxFuture<'a, Result<(), ChangeError>>;

    /// A node that follows without a vote follows no more.
    fn forget(&self, learner: NodeId) -> BoxFuture<'_, Result<(), ChangeError>>;
}

/// Starts the groups of this node.
pub trait Groups: Send + Sync + 'static {
    /// Starts one. `voters` count only if the group has no log yet.
    fn start<'a>(
        &'a self,
        group: GroupId,
        voters: &'a [NodeId],
        machine: Box<dyn StateMachine>,
    ) -> BoxFuture<'a, Result<Arc<dyn ShardGroup>, StartError>>;

    /// For how long the write and sync of the log under way has been running; `None` while nothing is written.
    fn sync_running(&self) -> Option<Duration> {
        None
    }

    /// The same, once that is longer than a disk may take: the disk hangs, and what is proposed can't be answered.
    fn stalled(&self) -> Option<Duration> {
        None
    }
}

/// The answer to a proposal, to be awaited. Dropping it does not withdraw the proposal.
#[must_use = "a proposal's fate is unknown until it is awaited"]
#[derive(Debug)]
pub struct Proposal(Answer);

#[derive(Debug)]
enum Answer {
    Consensus(meridian_consensus::Proposal),
    Channel(oneshot::Receiver<Result<Applied, ProposeError>>),
}

impl Proposal {
    /// A proposal that is answered through a channel; if it is closed instead, nobody knows what became of it.
    pub fn answered_by(answer: oneshot::Receiver<Result<Applied, ProposeError>>) -> Proposal {
        Proposal(Answer::Channel(answer))
    }
}

impl Future for Proposal {
    type Output = Result<Applied, ProposeError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Answer::Consensus(proposal) => Pin::new(proposal).poll(context),
            Answer::Channel(answer) => {
                Pin::new(answer).poll(context).map(|answer| answer.unwrap_or(Err(ProposeError::Unknown)))
            }
        }
    }
}

/// A read barrier: passed already, or to be waited for.
pub enum Barrier<'a> {
    /// The state had everything at once.
    Passed(Lsn),
    /// Others are asked first.
    Waiting(BoxFuture<'a, Result<Lsn, ReadError>>),
}

impl Barrier<'_> {
    /// Waits for it.
    ///
    /// # Errors
    /// [`ReadError`] when this node does not lead or can't prove that it does.
    pub async fn pass(self) -> Result<Lsn, ReadError> {
        match self {
            Barrier::Passed(lsn) => Ok(lsn),
            Barrier::Waiting(barrier) => barrier.await,
        }
    }
}

impl ShardGroup for Group {
    fn propose(&self, payload: Bytes) -> Result<Proposal, ProposeError> {
        Group::propose(self, payload).map(|proposal| Proposal(Answer::Consensus(proposal)))
    }

    fn read_barrier(&self) -> Barrier<'_> {
        match self.barrier_alone() {
            Some(lsn) => Barrier::Passed(lsn),
            None => Barrier::Waiting(Group::read_barrier(self).boxed()),
        }
    }

    fn read_log(&self, after: Lsn, bytes_max: usize) -> BoxFuture<'_, Result<LogSlice, ReadLogError>> {
        Group::read_log(self, after, bytes_max).boxed()
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        Group::leadership(self)
    }

    fn allow_purge(&self, up_to: Lsn) {
        Group::allow_purge(self, up_to);
    }

    fn could_take_over(&self, to: NodeId) -> bool {
        Group::could_take_over(self, to)
    }

    fn hand_over(&self, to: NodeId) -> BoxFuture<'_, Result<(), ChangeError>> {
        Group::transfer_leadership(self, to).boxed()
    }

    fn membership(&self) -> Option<&dyn Membership> {
        Some(self)
    }
}

impl Membership for Group {
    fn members(&self) -> Option<Members> {
        Group::members(self)
    }

    fn begin_to_follow(&self, node: NodeId) -> BoxFuture<'_, Result<(), ChangeError>> {
        Group::begin_to_follow(self, node).boxed()
    }

    fn change_voters<'a>(&'a self, voters: &'a [NodeId]) -> BoxFuture<'a, Result<(), ChangeError>> {
        Group::change_voters(self, voters).boxed()
    }

    fn forget(&self, learner: NodeId) -> BoxFuture<'_, Result<(), ChangeError>> {
        Group::forget(self, learner).boxed()
    }
}

impl Groups for Consensus {
    fn start<'a>(
        &'a self,
        group: GroupId,
        voters: &'a [NodeId],
        machine: Box<dyn StateMachine>,
    ) -> BoxFuture<'a, Result<Arc<dyn ShardGroup>, StartError>> {
        async move { Ok(Arc::new(self.start_group(group, voters, machine).await?) as Arc<dyn ShardGroup>) }.boxed()
    }

    fn sync_running(&self) -> Option<Duration> {
        Consensus::sync_running(self)
    }

    fn stalled(&self) -> Option<Duration> {
        Consensus::stalled(self)
    }
}
