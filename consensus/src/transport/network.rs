//! openraft's view of the way to a peer, for one group.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::FuturesOrdered;
use futures::{FutureExt, Stream, StreamExt};
use meridian_types::{GroupId, NodeId};
use openraft::base::{BoxFuture, BoxStream};
use openraft::error::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption, RPCTypes,
    RaftNetworkFactory,
};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use openraft::{AsyncRuntime, EmptyNode, OptionalSend};

use super::envelope::{Answer, Question};
use super::link::{Asked, Link, LinkError, Urgency};
use crate::machine::SnapshotSource;
use crate::raft::snapshot::SnapshotData;
use crate::raft::types::{RaftLogId, RaftVote, TypeConfig};

/// Appends under way to one follower of one group: a 1 MiB message each at most, so 64 fill a link of
/// 400 Mbit/s over a second.
const PIPELINE: usize = 64;
/// A follower answers an append once its disk has it. A disk may stall for longer than a heartbeat takes, and
/// sending everything again would only add to its work.
const APPEND_PATIENCE: u32 = 3;
/// Pieces of a snapshot under way.
const PIECES: usize = 4;
/// How long a follower may take for one piece.
const PIECE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a follower may take to restore a whole snapshot.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(600);

/// Finds the link to a node.
pub(crate) type Links<RT> = Arc<dyn Fn(NodeId) -> Arc<Link<RT>> + Send + Sync>;

/// Makes networks for one group.
pub(crate) struct Factory<RT: AsyncRuntime> {
    pub(crate) group: GroupId,
    pub(crate) node: NodeId,
    pub(crate) links: Links<RT>,
}

/// One group's way to one peer.
pub(crate) struct Network<RT: AsyncRuntime> {
    group: GroupId,
    node: NodeId,
    target: NodeId,
    urgency: Urgency,
    link: Arc<Link<RT>>,
}

type Rpc<RT, T> = Result<T, RPCError<TypeConfig<RT>>>;

impl<RT: AsyncRuntime> Factory<RT> {
    fn network(&self, target: u64, urgency: Urgency) -> Network<RT> {
        let target = NodeId(target);
        Network { group: self.group, node: self.node, target, urgency, link: (self.links)(target) }
    }
}

impl<RT: AsyncRuntime> RaftNetworkFactory<TypeConfig<RT>> for Factory<RT> {
    type Network = Network<RT>;

    async fn new_client(&mut self, target: u64, _node: &EmptyNode) -> Network<RT> {
        self.network(target, Urgency::Now)
    }

    async fn new_heartbeat_client(&mut self, target: u64, _node: &EmptyNode) -> Network<RT> {
        self.network(target, Urgency::Heartbeat)
    }
}

impl<RT: AsyncRuntime> Network<RT> {
    fn ask(&self, question: Question<RT>) -> Rpc<RT, Asked<RT>> {
        self.link.ask(self.group, question, self.urgency).map_err(failed)
    }

    async fn answer(&self, question: Question<RT>, kind: RPCTypes, at_most: Duration) -> Rpc<RT, Answer<RT>> {
        let asked = self.ask(question)?;
        self.wait(asked, kind, at_most).await
    }

    fn wait(
        &self,
        asked: Asked<RT>,
        kind: RPCTypes,
        at_most: Duration,
    ) -> impl Future<Output = Rpc<RT, Answer<RT>>> + Send + use<RT> {
        let (id, target) = (self.node.0, self.target.0);
        asked.wait(at_most).map(move |answer| match answer {
            Ok(Some(Answer::Failed(why))) => Err(NetworkError::from_string(why).into()),
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(Timeout { action: kind, id, target, timeout: at_most }.into()),
            Err(error) => Err(failed(error)),
        })
    }
}

fn failed<RT: AsyncRuntime>(error: LinkError) -> RPCError<TypeConfig<RT>> {
    match error {
        LinkError::Unreachable => Unreachable::new(&error).into(),
        LinkError::Broken => NetworkError::new(&error).into(),
    }
}

fn unexpected<RT: AsyncRuntime>() -> RPCError<TypeConfig<RT>> {
    NetworkError::from_string("the peer gave an answer to another question").into()
}

/// An append under way: what it covers, for telling how far the follower has come.
type Sent<RT> = BoxFuture<'static, (Rpc<RT, Answer<RT>>, Option<RaftLogId>, Option<RaftLogId>)>;

struct Pipeline<'s, RT: AsyncRuntime, S> {
    network: &'s Network<RT>,
    input: Option<S>,
    sent: FuturesOrdered<Sent<RT>>,
    patience: Duration,
    broken: bool,
}

impl<RT: AsyncRuntime, S> Pipeline<'_, RT, S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig<RT>>> + OptionalSend + Unpin + 'static,
{
    /// The next result: sends whatever there is to send while it waits for answers.
    async fn next(&mut self) -> Option<Rpc<RT, StreamAppendResult<TypeConfig<RT>>>> {
        while !self.broken {
            let may_send = self.sent.len() < PIPELINE;
            tokio::select! {
                biased;
                Some(done) = self.sent.next(), if !self.sent.is_empty() => return Some(self.done(done)),
                append = next_of(&mut self.input), if may_send && self.input.is_some() => match append {
                    Some(append) => {
                        if let Err(error) = self.send(append) {
                            self.broken = true;
                            return Some(Err(error));
                        }
                    }
                    None => self.input = None,
                },
                else => return None,
            }
        }
        None
    }

    fn send(&mut self, append: AppendEntriesRequest<TypeConfig<RT>>) -> Rpc<RT, ()> {
        let previous = append.prev_log_id;
        let last = append.entries.last().map(|entry| entry.log_id).or(previous);
        let asked = self.network.ask(Question::Append(append))?;
        let answer = self.network.wait(asked, RPCTypes::AppendEntries, self.patience);
        self.sent.push_back(Box::pin(answer.map(move |answer| (answer, previous, last))));
        Ok(())
    }

    fn done(
        &mut self,
        (answer, previous, last): (Rpc<RT, Answer<RT>>, Option<RaftLogId>, Option<RaftLogId>),
    ) -> Rpc<RT, StreamAppendResult<TypeConfig<RT>>> {
        match answer {
            Ok(Answer::Append(answer)) => {
                let partial = matches!(&answer, AppendEntriesResponse::PartialSuccess(partial) if *partial != last);
                let result = answer.into_stream_result(previous, last);
                self.broken = partial || result.is_err();
                Ok(result)
            }
            Ok(_) => {
                self.broken = true;
                Err(unexpected())
            }
            Err(error) => {
                self.broken = true;
                Err(error)
            }
        }
    }
}

async fn next_of<S: Stream + Unpin>(input: &mut Option<S>) -> Option<S::Item> {
    match input {
        Some(input) => input.next().await,
        None => None,
    }
}

impl<RT: AsyncRuntime> NetStreamAppend<TypeConfig<RT>> for Network<RT> {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Rpc<RT, BoxStream<'s, Rpc<RT, StreamAppendResult<TypeConfig<RT>>>>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig<RT>>> + OptionalSend + Unpin + 'static,
    {
        let patience = match self.urgency {
            Urgency::Now => option.soft_ttl() * APPEND_PATIENCE,
            // openraft gives up at the hard limit itself; across an ocean, less would lose good answers.
            Urgency::Heartbeat => option.hard_ttl(),
        };
        let pipeline =
            Pipeline { network: self, input: Some(input), sent: FuturesOrdered::new(), patience, broken: false };
        let results = futures::stream::unfold(pipeline, |mut pipeline| async move {
            let next = pipeline.next().await?;
            Some((next, pipeline))
        });
        let results: BoxStream<'s, _> = Box::pin(results);
        Box::pin(async move { Ok(results) })
    }
}

impl<RT: AsyncRuntime> NetVote<TypeConfig<RT>> for Network<RT> {
    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig<RT>>,
        option: RPCOption,
    ) -> Rpc<RT, VoteResponse<TypeConfig<RT>>> {
        match self.answer(Question::Vote(request), RPCTypes::Vote, option.soft_ttl()).await? {
            Answer::Vote(answer) => Ok(answer),
            _ => Err(unexpected()),
        }
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig<RT>>,
        option: RPCOption,
    ) -> Rpc<RT, VoteResponse<TypeConfig<RT>>> {
        match self.answer(Question::PreVote(request), RPCTypes::Vote, option.soft_ttl()).await? {
            Answer::Vote(answer) => Ok(answer),
            _ => Err(unexpected()),
        }
    }
}

impl<RT: AsyncRuntime> NetTransferLeader<TypeConfig<RT>> for Network<RT> {
    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig<RT>>,
        option: RPCOption,
    ) -> Rpc<RT, TransferLeaderResponse<TypeConfig<RT>>> {
        match self.answer(Question::Transfer(request), RPCTypes::TransferLeader, option.soft_ttl()).await? {
            Answer::Transfer(answer) => Ok(answer),
            _ => Err(unexpected()),
        }
    }
}

impl<RT: AsyncRuntime> NetBackoff<TypeConfig<RT>> for Network<RT> {
    fn backoff(&self) -> Option<Backoff> {
        None
    }
}

impl<RT: AsyncRuntime> NetSnapshot<TypeConfig<RT>> for Network<RT> {
    type SnapshotData = SnapshotData;

    async fn full_snapshot(
        &mut self,
        vote: RaftVote,
        snapshot: SnapshotOf<TypeConfig<RT>, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig<RT>>, StreamingError<TypeConfig<RT>>> {
        let SnapshotData::Own(source) = snapshot.snapshot else {
            return Err(NetworkError::from_string("only this node's own state is sent").into());
        };
        tokio::select! {
            closed = cancel => Err(closed.into()),
            checksum = self.send_pieces(source) => {
                let end = Question::SnapshotEnd { vote, meta: snapshot.meta, checksum: checksum? };
                match self.answer(end, RPCTypes::InstallSnapshot, RESTORE_TIMEOUT).await? {
                    Answer::SnapshotEnd(vote) => Ok(SnapshotResponse::new(vote)),
                    _ => Err(unexpected().into()),
                }
            }
        }
    }
}

impl<RT: AsyncRuntime> Network<RT> {
    /// Sends all pieces, a few at a time, and returns the checksum of their checksums.
    async fn send_pieces(&self, mut source: Box<dyn SnapshotSource>) -> Rpc<RT, u32> {
        self.answer(Question::SnapshotBegin, RPCTypes::InstallSnapshot, PIECE_TIMEOUT).await?;
        let mut sent = FuturesOrdered::new();
        let mut all = 0;
        loop {
            // Reading a piece reads the store: not on a runtime's worker.
            let read = tokio::task::spawn_blocking(move || {
                let piece = source.next_piece();
                (source, piece)
            });
            let (returned, piece) = read.await.map_err(|error| NetworkError::new(&error))?;
            source = returned;
            let Some(piece) = piece.map_err(|error| NetworkError::new(&error))? else { break };
            let checksum = crc32c::crc32c(&piece);
            all = crc32c::crc32c_append(all, &checksum.to_le_bytes());
            let asked = self.ask(Question::SnapshotPiece { piece, checksum })?;
            sent.push_back(self.wait(asked, RPCTypes::InstallSnapshot, PIECE_TIMEOUT));
            if sent.len() >= PIECES
                && let Some(taken) = sent.next().await
            {
                taken?;
            }
        }
        while let Some(taken) = sent.next().await {
            taken?;
        }
        Ok(all)
    }
}
