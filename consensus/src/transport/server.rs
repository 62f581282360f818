//! The server side of the transport: what other nodes' links connect to.

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::stream::FuturesUnordered;
use futures::{FutureExt, Stream, StreamExt};
use meridian_proto::identity::Identity;
use meridian_proto::v1::ConsensusMessage;
use meridian_proto::v1::consensus_peer_server::ConsensusPeer;
use meridian_types::{GroupId, NodeId};
use openraft::error::Fatal;
use openraft::{Raft, Snapshot};
use openraft_rt_tokio::TokioRuntime;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::envelope::{Answer, Envelope, Item, Question};
use crate::contact::Contact;
use crate::raft::machine::Machine;
use crate::raft::snapshot::{SnapshotData, Spool};
use crate::raft::types::TypeConfig;
use crate::tasks::Tasks;

/// One group's Raft on this node.
pub(crate) type GroupRaft = Raft<TypeConfig<TokioRuntime>, Machine<TokioRuntime>>;

/// The groups that run on this node.
pub(crate) type Groups = Arc<Mutex<HashMap<GroupId, Served>>>;

/// A group as its peers see it.
#[derive(Clone)]
pub(crate) struct Served {
    pub(crate) raft: GroupRaft,
    pub(crate) contact: Arc<Mutex<Contact>>,
    /// Until then it gives no vote: it may have given its word to a leader before it restarted.
    pub(crate) silent_until: Option<Instant>,
}

/// The most questions of one peer that are being answered; further ones stay in its stream (RES-1).
const ANSWERING_MAX: usize = 4096;
/// The most answers in one message.
const ANSWERS_MAX: usize = 512;

/// Serves the links of this node's peers.
#[derive(Clone)]
pub struct PeerService {
    pub(crate) node: NodeId,
    pub(crate) groups: Groups,
    pub(crate) spools: PathBuf,
    pub(crate) tasks: Tasks,
    pub(crate) stopping: watch::Receiver<bool>,
    /// The latest generation of the metadata group that a peer spoke for.
    pub(crate) generation: watch::Sender<u32>,
}

#[tonic::async_trait]
impl ConsensusPeer for PeerService {
    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<ConsensusMessage, Status>> + Send>>;

    async fn exchange(
        &self,
        request: Request<Streaming<ConsensusMessage>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let identity = Identity::of_request(&request).map_err(|why| Status::permission_denied(why.message))?;
        let Some(peer) = identity.node_id() else {
            return Err(Status::permission_denied(format!("{} names no node: only nodes replicate", identity.uri())));
        };
        let (answers, stream) = mpsc::channel(2);
        let conversation = Conversation {
            node: self.node,
            peer,
            groups: Arc::clone(&self.groups),
            spools: Arc::new(Spools { dir: self.spools.clone(), open: Mutex::default() }),
            generation: self.generation.clone(),
        };
        let mut stopping = self.stopping.clone();
        let inbound = request.into_inner();
        self.tasks.spawn(async move {
            tokio::select! {
                () = conversation.run(inbound, answers) => {}
                _ = stopping.wait_for(|stopping| *stopping) => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// How many spools this process has begun.
static SPOOLS: AtomicU64 = AtomicU64::new(0);

/// Snapshots that a peer is sending, one per group at most.
struct Spools {
    dir: PathBuf,
    open: Mutex<HashMap<GroupId, Spool>>,
}

/// One stream of one peer.
struct Conversation {
    node: NodeId,
    peer: NodeId,
    groups: Groups,
    spools: Arc<Spools>,
    generation: watch::Sender<u32>,
}

type Answering = Pin<Box<dyn Future<Output = (u64, Answer<TokioRuntime>)> + Send>>;

impl Conversation {
    async fn run(
        &self,
        mut inbound: Streaming<ConsensusMessage>,
        outbound: mpsc::Sender<Result<ConsensusMessage, Status>>,
    ) {
        let mut answering: FuturesUnordered<Answering> = FuturesUnordered::new();
        let mut ready: Vec<Item<TokioRuntime>> = Vec::new();
        loop {
            let may_read = answering.len() < ANSWERING_MAX;
            tokio::select! {
                message = inbound.message(), if may_read => {
                    let Ok(Some(message)) = message else { return };
                    match self.open(&message) {
                        Ok(items) => items.into_iter().for_each(|item| self.take(item, &mut answering, &mut ready)),
                        Err(status) => {
                            tracing::warn!(peer = %self.peer, message = status.message(), "a peer's message was refused");
                            drop(outbound.send(Err(status)).await);
                            return;
                        }
                    }
                }
                Some((number, answer)) = answering.next() => ready.push(Item::Answer { number, answer }),
            }
            while ready.len() < ANSWERS_MAX
                && let Some(Some((number, answer))) = answering.next().now_or_never()
            {
                ready.push(Item::Answer { number, answer });
            }
            if !ready.is_empty() {
                let envelope = Envelope { sender: self.node, target: self.peer, items: std::mem::take(&mut ready) };
                let Ok(envelope) = envelope.encode() else { return };
                if outbound.send(Ok(ConsensusMessage { envelope })).await.is_err() {
                    return;
                }
            }
        }
    }

    fn open(&self, message: &ConsensusMessage) -> Result<Vec<Item<TokioRuntime>>, Status> {
        let envelope =
            Envelope::decode(&message.envelope).map_err(|error| Status::invalid_argument(error.to_string()))?;
        if envelope.sender != self.peer {
            return Err(Status::permission_denied(format!("node {} spoke for node {}", self.peer, envelope.sender)));
        }
        if envelope.target != self.node {
            return Err(Status::failed_precondition(format!("this is node {}, not {}", self.node, envelope.target)));
        }
        Ok(envelope.items)
    }

    /// Begins to answer. The first poll hands the question to the group's Raft, so questions keep their order.
    fn take(
        &self,
        item: Item<TokioRuntime>,
        answering: &mut FuturesUnordered<Answering>,
        ready: &mut Vec<Item<TokioRuntime>>,
    ) {
        let Item::Question { group, number, question } = item else { return };
        let served = self.groups.lock().unwrap_or_else(PoisonError::into_inner).get(&group).cloned();
        if let Some(generation) = group.generation() {
            self.generation.send_if_modified(|seen| std::mem::replace(seen, generation.max(*seen)) < generation);
        }
        let Some(Served { raft, contact, silent_until }) = served else {
            let answer = Answer::Failed(format!("group {group} does not run on node {}", self.node));
            return ready.push(Item::Answer { number, answer });
        };
        let asks_for_vote = matches!(question, Question::Vote(_) | Question::PreVote(_));
        if asks_for_vote && silent_until.is_some_and(|until| Instant::now() < until) {
            let answer = Answer::Failed(format!("node {} has just restarted and does not vote yet", self.node));
            return ready.push(Item::Answer { number, answer });
        }
        if let Some(term) = question.leads_in() {
            contact.lock().unwrap_or_else(PoisonError::into_inner).heard(term, std::time::Instant::now());
        }
        let spools = Arc::clone(&self.spools);
        let peer = self.peer;
        let mut answer: Answering =
            Box::pin(async move { (number, answer(&raft, &spools, peer, group, question).await) });
        match tokio::task::unconstrained(&mut answer).now_or_never() {
            Some((number, answer)) => ready.push(Item::Answer { number, answer }),
            None => answering.push(answer),
        }
    }
}

async fn answer(
    raft: &GroupRaft,
    spools: &Spools,
    peer: NodeId,
    group: GroupId,
    question: Question<TokioRuntime>,
) -> Answer<TokioRuntime> {
    let answered = match question {
        Question::Append(append) => {
            raft.append_entries(append).await.map(Answer::Append).map_err(|error| error.to_string())
        }
        Question::Vote(vote) => raft.vote(vote).await.map(Answer::Vote).map_err(|error| error.to_string()),
        Question::PreVote(vote) => raft.pre_vote(vote).await.map(Answer::Vote).map_err(|error| error.to_string()),
        Question::Transfer(transfer) => {
            raft.handle_transfer_leader(transfer).await.map(Answer::Transfer).map_err(fatal)
        }
        Question::SnapshotBegin => {
            let path = spools.path(group, peer);
            let spool = Spool::create(path).map_err(|error| error.to_string());
            spool.map(|spool| {
                spools.open.lock().unwrap_or_else(PoisonError::into_inner).insert(group, spool);
                Answer::SnapshotPiece
            })
        }
        Question::SnapshotPiece { piece, checksum } => {
            spools.add(group, &piece, checksum).map(|()| Answer::SnapshotPiece)
        }
        Question::SnapshotEnd { vote, meta, checksum } => match spools.finish(group, checksum) {
            Ok(spool) => {
                let snapshot = Snapshot { meta, snapshot: SnapshotData::Received(spool) };
                let installed = raft.install_full_snapshot(vote, snapshot).await;
                installed.map(|response| Answer::SnapshotEnd(response.vote)).map_err(fatal)
            }
            Err(error) => Err(error),
        },
    };
    answered.unwrap_or_else(Answer::Failed)
}

fn fatal(error: Fatal<TypeConfig<TokioRuntime>>) -> String {
    error.to_string()
}

impl Spools {
    /// Never given out before: a sender that begins anew must not touch the file that its first attempt may still be
    /// installed from.
    fn path(&self, group: GroupId, peer: NodeId) -> PathBuf {
        let number = SPOOLS.fetch_add(1, Ordering::Relaxed);
        self.dir.join(format!("{group}-from-{peer}-{number}.snapshot"))
    }

    fn add(&self, group: GroupId, piece: &[u8], checksum: u32) -> Result<(), String> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let spool = open.get_mut(&group).ok_or("no snapshot was begun")?;
        spool.add(piece, checksum).map_err(|error| error.to_string())
    }

    fn finish(&self, group: GroupId, checksum: u32) -> Result<Spool, String> {
        let spool = self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&group);
        let mut spool = spool.ok_or("no snapshot was begun")?;
        spool.finish(checksum).map_err(|error| error.to_string())?;
        Ok(spool)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_that_is_begun_anew_leaves_the_file_of_the_first_attempt_alone() {
        let dir = tempfile::tempdir().unwrap();
        let spools = Spools { dir: dir.path().to_owned(), open: Mutex::default() };
        let begin = || Spool::create(spools.path(GroupId::METADATA, NodeId(1))).unwrap();
        let (mut first, second) = (begin(), begin());
        first.finish(0).unwrap();
        drop(second);
        assert!(first.pieces().is_ok());
    }
}
