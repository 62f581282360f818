//! openraft's types, generic over its runtime so that a simulated one can drive the same code.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use openraft::impls::{BoxedErrorSource, InlineBatch, Vote};
use openraft::raft::responder::Responder;
use openraft::vote::leader_id_std::{CommittedLeaderId, LeaderId};
use openraft::{AsyncRuntime, EmptyNode, EntryPayload, LogId, OptionalSend, RaftTypeConfig};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::log::EntryId;

/// The types of every group, over the runtime `RT`.
pub(crate) struct TypeConfig<RT>(PhantomData<fn() -> RT>);

/// The payload of a proposal, opaque.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Payload(pub(crate) Bytes);

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl<RT: AsyncRuntime> RaftTypeConfig for TypeConfig<RT> {
    type D = Payload;
    type R = Bytes;
    type NodeId = u64;
    type Node = EmptyNode;
    type Term = u64;
    // One leader per term: a log id is (term, index), which is what the log stores.
    type LeaderId = LeaderId<u64, u64>;
    type Vote = Vote<Self::LeaderId>;
    type Payload = EntryPayload<Payload, u64, EmptyNode>;
    type Entry = openraft::Entry<CommittedLeaderId<u64>, Self::Payload>;
    type AsyncRuntime = RT;
    type Responder<T>
        = Answer<T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = BoxedErrorSource;
}

pub(crate) type RaftLogId = LogId<CommittedLeaderId<u64>>;
pub(crate) type RaftVote = Vote<LeaderId<u64, u64>>;
pub(crate) type RaftEntry = openraft::Entry<CommittedLeaderId<u64>, EntryPayload<Payload, u64, EmptyNode>>;
pub(crate) type Members = openraft::StoredMembership<CommittedLeaderId<u64>, u64, EmptyNode>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<CommittedLeaderId<u64>, u64, EmptyNode>;

pub(crate) fn log_id(id: EntryId) -> RaftLogId {
    LogId::new(CommittedLeaderId::new(id.term), id.index)
}

pub(crate) fn entry_id(id: &RaftLogId) -> EntryId {
    EntryId { term: id.committed_leader_id().term, index: id.index() }
}

/// Where the answer to a proposal goes. Holds the proposal's share of the bytes in flight until it is answered.
pub(crate) struct Answer<T> {
    pub(crate) to: oneshot::Sender<T>,
    pub(crate) share: Share,
}

impl<RT: AsyncRuntime, T: OptionalSend + 'static> Responder<TypeConfig<RT>, T> for Answer<T> {
    fn on_complete(self, result: T) {
        drop(self.share);
        // Nobody may be waiting any more.
        let _ = self.to.send(result);
    }
}

/// A share of a group's bytes in flight; given back when dropped (RES-1).
#[derive(Debug)]
pub(crate) struct Share {
    bytes: u64,
    total: Arc<AtomicU64>,
}

impl Share {
    /// Takes a share unless that would exceed `bytes_max`. Something always fits when nothing is in flight.
    pub(crate) fn take(total: &Arc<AtomicU64>, bytes: u64, bytes_max: u64) -> Option<Share> {
        let taken = total.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |in_flight| {
            (in_flight == 0 || in_flight + bytes <= bytes_max).then_some(in_flight + bytes)
        });
        taken.ok().map(|_| Share { bytes, total: Arc::clone(total) })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

// Derives would ask the same of `RT`, which is only a name here.
impl<RT> Clone for TypeConfig<RT> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<RT> Copy for TypeConfig<RT> {}
impl<RT> Default for TypeConfig<RT> {
    fn default() -> Self {
        TypeConfig(PhantomData)
    }
}
impl<RT> fmt::Debug for TypeConfig<RT> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TypeConfig")
    }
}
impl<RT> PartialEq for TypeConfig<RT> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl<RT> Eq for TypeConfig<RT> {}
impl<RT> PartialOrd for TypeConfig<RT> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<RT> Ord for TypeConfig<RT> {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}
