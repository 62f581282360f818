//! The way to one peer: a bounded queue and one task that keeps a stream to it, connecting again when it breaks.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meridian_proto::dial::Dial;
use meridian_proto::v1::ConsensusMessage;
use meridian_proto::v1::consensus_peer_client::ConsensusPeerClient;
use meridian_types::{GroupId, NodeId};
use openraft::AsyncRuntime;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::envelope::{Answer, Envelope, Item, MESSAGE_BYTES_MAX, Question};

/// The most questions to one peer that wait for an answer.
const QUESTIONS_MAX: usize = 8192;
/// The most bytes of questions that wait to be sent to one peer.
const QUEUE_BYTES_MAX: usize = 32 << 20;
/// A message is closed once it has so many bytes.
const MESSAGE_BYTES: usize = 1 << 20;
/// How long heartbeats wait for those of other groups: a small part of every heartbeat interval.
const MERGE: Duration = Duration::from_millis(20);
/// How long a connection attempt may take: a few round trips around the earth.
const CONNECT: Duration = Duration::from_secs(5);
/// The pause after a failed connection, so that a dead peer costs next to nothing.
const PAUSE: Duration = Duration::from_millis(200);

/// Why a question has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LinkError {
    /// The peer can't be reached, or is too slow: pause.
    #[error("the peer can't be reached")]
    Unreachable,
    /// The stream broke, or the peer refused.
    #[error("the stream to the peer broke")]
    Broken,
}

/// Whether a question may wait for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    Now,
    Heartbeat,
}

/// The way to one peer.
pub(crate) struct Link<RT: AsyncRuntime> {
    sender: NodeId,
    target: NodeId,
    queue: Mutex<Queue<RT>>,
    queued: Notify,
}

struct Queue<RT: AsyncRuntime> {
    next_number: u64,
    waiting: VecDeque<(usize, Item<RT>)>,
    heartbeats: Vec<Item<RT>>,
    /// When the oldest waiting heartbeat must go.
    heartbeats_due: Option<Instant>,
    bytes: usize,
    asked: HashMap<u64, oneshot::Sender<Answer<RT>>>,
    /// The last attempt to connect failed.
    down: bool,
}

impl<RT: AsyncRuntime> Link<RT> {
    pub(crate) fn new(sender: NodeId, target: NodeId) -> Link<RT> {
        let queue = Queue {
            next_number: 0,
            waiting: VecDeque::new(),
            heartbeats: Vec::new(),
            heartbeats_due: None,
            bytes: 0,
            asked: HashMap::new(),
            down: false,
        };
        Link { sender, target, queue: Mutex::new(queue), queued: Notify::new() }
    }

    /// Enqueues a question; questions that are urgent leave in this order.
    pub(crate) fn ask(
        self: &Arc<Self>,
        group: GroupId,
        question: Question<RT>,
        urgency: Urgency,
    ) -> Result<Asked<RT>, LinkError> {
        let bytes = question.bytes();
        let mut queue = self.lock();
        if queue.asked.len() >= QUESTIONS_MAX || (queue.bytes > 0 && queue.bytes + bytes > QUEUE_BYTES_MAX) {
            return Err(LinkError::Unreachable);
        }
        queue.next_number += 1;
        let number = queue.next_number;
        let (sender, answer) = oneshot::channel();
        queue.asked.insert(number, sender);
        let item = Item::Question { group, number, question };
        match urgency {
            Urgency::Now => {
                queue.bytes += bytes;
                queue.waiting.push_back((bytes, item));
            }
            Urgency::Heartbeat => {
                queue.heartbeats.push(item);
                queue.heartbeats_due.get_or_insert_with(|| Instant::now() + MERGE);
            }
        }
        drop(queue);
        self.queued.notify_one();
        Ok(Asked { link: Arc::clone(self), number, answer })
    }

    /// Keeps the stream. Ends when dropped.
    pub(crate) async fn run(self: Arc<Self>, dial: Arc<dyn Dial>) {
        loop {
            self.wait_for_work().await;
            match self.connect(dial.as_ref()).await {
                Some((outbound, inbound)) => {
                    self.lock().down = false;
                    tracing::debug!(peer = %self.target, "connected");
                    self.exchange(outbound, inbound).await;
                    self.fail(false);
                }
                None => {
                    self.fail(true);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn wait_for_work(&self) {
        loop {
            let queued = self.queued.notified();
            {
                let queue = self.lock();
                if !queue.waiting.is_empty() || !queue.heartbeats.is_empty() {
                    return;
                }
            }
            queued.await;
        }
    }

    async fn connect(&self, dial: &dyn Dial) -> Option<(mpsc::Sender<ConsensusMessage>, Streaming<ConsensusMessage>)> {
        let channel = dial.channel(self.target)?;
        let mut client = ConsensusPeerClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        // Two: one being sent, one ready. More would only hide that the peer is slow.
        let (outbound, messages) = mpsc::channel(2);
        let exchange = client.exchange(ReceiverStream::new(messages));
        match tokio::time::timeout(CONNECT, exchange).await {
            Ok(Ok(response)) => Some((outbound, response.into_inner())),
            Ok(Err(status)) => {
                tracing::debug!(peer = %self.target, %status, "connecting to a peer failed");
                None
            }
            Err(_) => None,
        }
    }

    async fn exchange(&self, outbound: mpsc::Sender<ConsensusMessage>, mut inbound: Streaming<ConsensusMessage>) {
        loop {
            tokio::select! {
                message = inbound.message() => match message {
                    Ok(Some(message)) => {
                        if !self.answered(&message) {
                            return;
                        }
                    }
                    Ok(None) => return,
                    Err(status) => {
                        tracing::debug!(peer = %self.target, %status, "the stream to a peer broke");
                        return;
                    }
                },
                permit = self.ready(&outbound) => {
                    let Some(permit) = permit else { return };
                    if let Some(message) = self.take() {
                        permit.send(message);
                    }
                }
            }
        }
    }

    /// Waits until something is due and there is room for a message; `None` when the stream is gone.
    async fn ready<'a>(
        &self,
        outbound: &'a mpsc::Sender<ConsensusMessage>,
    ) -> Option<mpsc::Permit<'a, ConsensusMessage>> {
        loop {
            let queued = self.queued.notified();
            let due = {
                let queue = self.lock();
                if queue.waiting.is_empty() { queue.heartbeats_due } else { Some(Instant::now()) }
            };
            match due {
                Some(due) if due <= Instant::now() => return outbound.reserve().await.ok(),
                Some(due) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(due) => {}
                        () = queued => {}
                    }
                }
                None => queued.await,
            }
        }
    }

    /// Everything that waits, up to the size of a message; heartbeats ride along.
    fn take(&self) -> Option<ConsensusMessage> {
        let items = {
            let mut queue = self.lock();
            queue.heartbeats_due = None;
            let mut items = std::mem::take(&mut queue.heartbeats);
            let mut total = 0;
            while let Some((bytes, _)) = queue.waiting.front() {
                if total > 0 && total + bytes > MESSAGE_BYTES {
                    break;
                }
                if let Some((bytes, item)) = queue.waiting.pop_front() {
                    total += bytes;
                    queue.bytes -= bytes;
                    items.push(item);
                }
            }
            items
        };
        if items.is_empty() {
            return None;
        }
        let envelope = Envelope { sender: self.sender, target: self.target, items };
        envelope.encode().ok().map(|envelope| ConsensusMessage { envelope })
    }

    fn answered(&self, message: &ConsensusMessage) -> bool {
        let envelope = match Envelope::<RT>::decode(&message.envelope) {
            Ok(envelope) if envelope.sender == self.target => envelope,
            Ok(_) => return false,
            Err(error) => {
                tracing::warn!(peer = %self.target, "{error}");
                return false;
            }
        };
        let mut queue = self.lock();
        for item in envelope.items {
            if let Item::Answer { number, answer } = item
                && let Some(asked) = queue.asked.remove(&number)
            {
                // Whoever asked may have given up.
                let _ = asked.send(answer);
            }
        }
        true
    }

    /// Whoever waits for an answer gets none.
    fn fail(&self, down: bool) {
        let mut queue = self.lock();
        queue.down = down;
        queue.waiting.clear();
        queue.heartbeats.clear();
        queue.heartbeats_due = None;
        queue.bytes = 0;
        queue.asked.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Queue<RT>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question that was asked. Forgotten when dropped.
pub(crate) struct Asked<RT: AsyncRuntime> {
    link: Arc<Link<RT>>,
    number: u64,
    answer: oneshot::Receiver<Answer<RT>>,
}

impl<RT: AsyncRuntime> Asked<RT> {
    /// The answer, if it comes in time.
    pub(crate) async fn wait(mut self, at_most: Duration) -> Result<Option<Answer<RT>>, LinkError> {
        match tokio::time::timeout(at_most, &mut self.answer).await {
            Ok(Ok(answer)) => Ok(Some(answer)),
            Ok(Err(_)) => Err(if self.link.lock().down { LinkError::Unreachable } else { LinkError::Broken }),
            Err(_) => Ok(None),
        }
    }
}

impl<RT: AsyncRuntime> Drop for Asked<RT> {
    fn drop(&mut self) {
        self.link.lock().asked.remove(&self.number);
    }
}
