//! One group on this node: the handle its owner proposes, reads and watches through.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use meridian_types::{GroupId, Lsn, NodeId};
use tokio::sync::{oneshot, watch};

use crate::error::{ChangeError, ProposeError, ReadError, ReadLogError};
use crate::machine::Committed;

/// A proposal that was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Its position.
    pub lsn: Lsn,
    /// What the state machine answered.
    pub result: Bytes,
}

/// Who leads a group, as this node knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Leadership {
    /// The leader, if one is known.
    pub leader: Option<NodeId>,
    /// The term.
    pub term: u64,
    /// This node leads, and has applied the first entry of its own term: its state has everything ever committed.
    pub leads: bool,
}

/// A piece of the applied log.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct LogSlice {
    /// Application entries, ascending.
    pub entries: Vec<Committed>,
    /// Everything up to here was examined: it is in `entries` or is none of the application's.
    pub reached: Lsn,
}

/// The answer to a proposal, to be awaited. Dropping it does not withdraw the proposal.
#[derive(Debug)]
#[must_use = "a proposal's fate is unknown until it is awaited"]
pub struct Proposal {
    answer: oneshot::Receiver<Result<Applied, ProposeError>>,
}

impl Future for Proposal {
    type Output = Result<Applied, ProposeError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(context).map(|answer| answer.unwrap_or(Err(ProposeError::Unknown)))
    }
}

/// One group on this node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Group {
    id: GroupId,
    leadership: watch::Receiver<Leadership>,
    applied: watch::Receiver<Lsn>,
}

impl Group {
    /// The group's id.
    pub fn id(&self) -> GroupId {
        self.id
    }

    /// Enqueues a proposal; those enqueued one after another get rising positions. Never blocks.
    ///
    /// # Errors
    /// See [`ProposeError`]; an error returned here, not through the [`Proposal`], means it did not take effect.
    pub fn propose(&self, payload: Bytes) -> Result<Proposal, ProposeError> {
        drop(payload);
        Err(ProposeError::Stopped)
    }

    /// Waits until this node's state has everything that was committed when this was called (CON-1).
    ///
    /// # Errors
    /// [`ReadError`] when this node does not lead or can't prove that it does.
    pub async fn read_barrier(&self) -> Result<Lsn, ReadError> {
        Err(ReadError::Stopped)
    }

    /// Who leads. Changes are INFO events too.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// What this node has applied.
    pub fn applied(&self) -> watch::Receiver<Lsn> {
        self.applied.clone()
    }

    /// Applied application entries after `after`, about `bytes_max` of them but at least one if there is one.
    ///
    /// # Errors
    /// [`ReadLogError::Trimmed`] when the log begins later.
    pub async fn read_log(&self, after: Lsn, bytes_max: usize) -> Result<LogSlice, ReadLogError> {
        let _ = (after, bytes_max);
        Err(ReadLogError::Stopped)
    }

    /// Nobody outside needs entries up to here any more. They are purged once the state machine persisted them.
    pub fn allow_purge(&self, up_to: Lsn) {
        let _ = up_to;
    }

    /// Makes exactly these nodes the voters. New ones first catch up as learners.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn change_voters(&self, voters: &[NodeId]) -> Result<(), ChangeError> {
        let _ = voters;
        Err(ChangeError::Stopped)
    }

    /// Adds a node that follows without a vote, and returns once it has caught up.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn add_learner(&self, node: NodeId) -> Result<(), ChangeError> {
        let _ = node;
        Err(ChangeError::Stopped)
    }

    /// Asks `to` to take over the leadership, and returns once it has.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn transfer_leadership(&self, to: NodeId) -> Result<(), ChangeError> {
        let _ = to;
        Err(ChangeError::Stopped)
    }
}
