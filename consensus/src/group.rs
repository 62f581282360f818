//! One group on this node: the handle its owner proposes, reads and watches through.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use meridian_types::{GroupId, Lsn, NodeId};
use openraft::LinearizerOption;
use openraft::async_runtime::WatchReceiver;
use openraft::error::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::raft::ClientWriteResult;
use openraft_rt_tokio::TokioRuntime;
use tokio::sync::{oneshot, watch};

use crate::confirm::LastRound;
use crate::contact::Contact;
use crate::error::{ProposeError, ReadError, ReadLogError};
use crate::log::{Entry, GroupHandle, Kind, Log, PAYLOAD_BYTES_MAX, ReadFailure};
use crate::machine::Committed;
use crate::raft::machine::Progress;
use crate::raft::seat::Seat;
use crate::raft::types::{Answer, Payload, Share, TypeConfig};
use crate::transport::network::Links;
use crate::transport::server::GroupRaft;

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

/// Who votes in a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Electorate {
    /// The voters.
    pub voters: Vec<NodeId>,
    /// This node has known since that no others decide: neither before a change that had ended by then, nor after one.
    pub since: Instant,
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
#[must_use = "a proposal's fate is unknown until it is awaited"]
pub struct Proposal {
    answer: oneshot::Receiver<ClientWriteResult<TypeConfig<TokioRuntime>>>,
}

impl Future for Proposal {
    type Output = Result<Applied, ProposeError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(context).map(|answer| match answer {
            Ok(Ok(written)) => Ok(Applied { lsn: Lsn(written.log_id.index()), result: written.data }),
            Ok(Err(ClientWriteError::ForwardToLeader(to))) => {
                Err(ProposeError::NotLeader { leader: to.leader_id.map(NodeId) })
            }
            Ok(Err(
                ClientWriteError::LogEntryDiscarded(_)
                | ClientWriteError::ChangeMembershipError(_)
                | ClientWriteError::PreconditionFailed(_),
            ))
            | Err(_) => Err(ProposeError::Unknown),
        })
    }
}

impl std::fmt::Debug for Proposal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Proposal")
    }
}

/// One group on this node. Cheap to clone.
#[derive(Clone)]
pub struct Group {
    pub(crate) inner: Arc<Inner>,
}

/// What a group's handles, its watcher and the janitor share.
pub(crate) struct Inner {
    pub(crate) id: GroupId,
    pub(crate) node: NodeId,
    pub(crate) raft: GroupRaft,
    pub(crate) log: GroupHandle,
    pub(crate) shared_log: Arc<Log>,
    pub(crate) seat: Arc<Seat>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) leadership: watch::Sender<Leadership>,
    /// This node is the only member, and no change of that is under way: it needs nobody's consent to read.
    pub(crate) solo: AtomicBool,
    /// Changes of members under way on this node.
    pub(crate) changing: AtomicUsize,
    pub(crate) in_flight: Arc<AtomicU64>,
    pub(crate) in_flight_bytes_max: u64,
    pub(crate) purge_allowed: AtomicU64,
    pub(crate) stopped: AtomicBool,
    /// When this node last gave its word to a leader.
    pub(crate) contact: Arc<Mutex<Contact>>,
    /// The last term in which this node led and asked another one to take over.
    pub(crate) handed_over_in: AtomicU64,
    /// Who votes, and since when that is known to be settled.
    pub(crate) electorate: Mutex<Option<Electorate>>,
    pub(crate) read_lease: Duration,
    pub(crate) links: Links<TokioRuntime>,
    pub(crate) last_round: LastRound,
    /// How long a change of members or leader may take.
    pub(crate) patience: Duration,
}

impl Group {
    /// The group's id.
    pub fn id(&self) -> GroupId {
        self.inner.id
    }

    /// Enqueues a proposal; those enqueued one after another get rising positions. Never blocks.
    ///
    /// # Errors
    /// See [`ProposeError`]; an error returned here, not through the [`Proposal`], means it did not take effect.
    pub fn propose(&self, payload: Bytes) -> Result<Proposal, ProposeError> {
        let inner = &self.inner;
        if inner.stopped.load(Ordering::Relaxed) {
            return Err(ProposeError::Stopped);
        }
        let leadership = *inner.leadership.borrow();
        if leadership.leader != Some(inner.node) {
            return Err(ProposeError::NotLeader { leader: leadership.leader });
        }
        if inner.shared_log.disk_full() {
            return Err(ProposeError::DiskFull);
        }
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(ProposeError::TooLarge { bytes: payload.len(), bytes_max: PAYLOAD_BYTES_MAX });
        }
        let bytes = payload.len() as u64;
        let share = Share::take(&inner.in_flight, bytes, inner.in_flight_bytes_max).ok_or(ProposeError::Full)?;
        let (to, answer) = oneshot::channel();
        let write = inner.raft.client_write_ff(Payload(payload), Some(Answer { to, share }));
        // Sending is instant while Raft's queue has room. Outside the task's budget, which says nothing about that room.
        match tokio::task::unconstrained(write).now_or_never() {
            Some(Ok(())) => Ok(Proposal { answer }),
            Some(Err(_)) => Err(ProposeError::Stopped),
            None => Err(ProposeError::Full),
        }
    }

    /// Waits until this node's state has everything that was committed when this was called (CON-1).
    ///
    /// # Errors
    /// [`ReadError`] when this node does not lead or can't prove that it does.
    pub async fn read_barrier(&self) -> Result<Lsn, ReadError> {
        let inner = &self.inner;
        if inner.stopped.load(Ordering::Relaxed) {
            return Err(ReadError::Stopped);
        }
        if let Some(applied) = self.barrier_alone() {
            return Ok(applied);
        }
        let lease = LinearizerOption::new(Some(inner.read_lease), false).with_wait_timeout(Duration::ZERO);
        match inner.raft.get_read_log_id(lease).await {
            Ok((read, _)) => self.applied_up_to(read.index()).await,
            // The lease has run out: ask the others.
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => self.confirm_leadership().await,
            Err(error) => Err(read_error(error)),
        }
    }

    /// The barrier of a group that has this node alone: there is nothing to wait for. `None` when others must be asked.
    pub fn barrier_alone(&self) -> Option<Lsn> {
        let inner = &self.inner;
        let leads = inner.leadership.borrow().leads;
        // Nobody else can acknowledge a write, and here a write is acknowledged once it is applied.
        (inner.solo.load(Ordering::Acquire) && leads && !inner.stopped.load(Ordering::Relaxed))
            .then(|| *inner.progress.applied.borrow())
    }

    async fn applied_up_to(&self, index: u64) -> Result<Lsn, ReadError> {
        let mut applied = self.inner.progress.applied.subscribe();
        match applied.wait_for(|applied| applied.0 >= index).await {
            Ok(applied) => Ok(*applied),
            Err(_) => Err(ReadError::Stopped),
        }
    }

    /// Who leads. Changes are INFO events too.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.subscribe()
    }

    /// Who votes in this group, as far as this node's log goes.
    pub fn voters(&self) -> Vec<NodeId> {
        let metrics = self.inner.raft.server_metrics();
        let watched = metrics.borrow_watched();
        watched.membership_config.voter_ids().map(NodeId).collect()
    }

    /// Who votes, and since when; `None` while that changes.
    pub fn electorate(&self) -> Option<Electorate> {
        self.inner.electorate.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// No leader of a term before `term` has heard from this node in answer to anything it asked after this moment
    /// ([`Contact::before`]). `None` for a node that has not entered the term, or is in a later one.
    pub fn contact_before(&self, term: u64) -> Option<Instant> {
        // First the term: from then on this node answers no earlier leader.
        let entered = self.inner.leadership.borrow().term >= term;
        let contact = *self.inner.contact.lock().unwrap_or_else(PoisonError::into_inner);
        entered.then(|| contact.before(term)).flatten()
    }

    /// What this node has applied.
    pub fn applied(&self) -> watch::Receiver<Lsn> {
        self.inner.progress.applied.subscribe()
    }

    /// Applied application entries after `after`, about `bytes_max` of them but at least one if there is one.
    ///
    /// # Errors
    /// [`ReadLogError::Trimmed`] when the log begins later.
    pub async fn read_log(&self, after: Lsn, bytes_max: usize) -> Result<LogSlice, ReadLogError> {
        let inner = &self.inner;
        if inner.stopped.load(Ordering::Relaxed) {
            return Err(ReadLogError::Stopped);
        }
        let applied = *inner.progress.applied.borrow();
        let (from, to) = (after.0 + 1, applied.0 + 1);
        if from >= to {
            return Ok(LogSlice { entries: Vec::new(), reached: after });
        }
        let bytes_max = bytes_max as u64;
        let entries = match inner.log.read_memory(from, to, bytes_max) {
            Some(read) => read,
            None => {
                let log = inner.log.clone();
                let read = tokio::task::spawn_blocking(move || log.read(from, to, bytes_max));
                read.await.map_err(|_| ReadLogError::Stopped)?
            }
        };
        let entries = entries.map_err(|failure| match failure {
            ReadFailure::Trimmed { first } => ReadLogError::Trimmed { oldest: Lsn(first) },
            ReadFailure::Io(error) => ReadLogError::Io(error),
        })?;
        let reached = entries.last().map_or(after, |last| Lsn(last.id.index));
        Ok(LogSlice { entries: entries.into_iter().filter_map(committed).collect(), reached })
    }

    /// Nobody outside needs entries up to here any more. They are purged once the state machine persisted them.
    pub fn allow_purge(&self, up_to: Lsn) {
        self.inner.purge_allowed.fetch_max(up_to.0, Ordering::Relaxed);
    }
}

fn committed(entry: Entry) -> Option<Committed> {
    (entry.kind == Kind::Normal).then(|| Committed { lsn: Lsn(entry.id.index), payload: entry.payload })
}

fn read_error(
    error: RaftError<TypeConfig<TokioRuntime>, LinearizableReadError<TypeConfig<TokioRuntime>>>,
) -> ReadError {
    match error {
        RaftError::APIError(LinearizableReadError::ForwardToLeader(to)) => {
            ReadError::NotLeader { leader: to.leader_id.map(NodeId) }
        }
        RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => ReadError::NoQuorum,
        RaftError::Fatal(_) => ReadError::Stopped,
    }
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group").field("id", &self.inner.id).finish_non_exhaustive()
    }
}
