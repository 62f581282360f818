//! The calling side of an `Exchange` stream: many callers, one stream, answers in any order.
//!
//! ```text
//! callers ── push ──► queue ── drained by the transport when it can send ──► RequestBatch ──►  peer
//!    ▲                                                                                          │
//!    └──────────── oneshot per caller ◄── driver task ◄── ResponseBatch ◄───────────────────────┘
//! ```
//!
//! Nothing waits to fill a batch: when the transport is idle it takes one request at once; while it is busy,
//! requests gather and leave together. One task per stream reads answers and reconnects; none sends.
//!
//! Keeps RES-1: requests in flight are bounded by count and bytes, callers beyond wait for room. Serves ONE-1:
//! a caller whose stream broke learns whether its write can have left ([`Effect::Unknown`]) or not ([`Effect::None`]).

mod outbound;
mod pending;

use std::sync::Arc;
use std::time::Duration;

use meridian_types::{ClientId, Effect, Refusal, RefusalKind, Request, Response};
use prost::Message;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::convert::{client_to_proto, forwarded_to_proto, refusal_of_status, request_to_proto, response_from_proto};
use crate::limits::MESSAGE_BYTES_MAX;
use crate::v1;
use crate::v1::forward_peer_client::ForwardPeerClient;
use crate::v1::key_value_client::KeyValueClient;

use outbound::Outbound;
use pending::{Shared, Ticket};

/// How much longer than its deadline a caller waits for the peer to say itself that the deadline passed.
const DEADLINE_GRACE: Duration = Duration::from_millis(250);

/// The deadline of a request that names none, in milliseconds. The gateway takes the same.
pub const DEADLINE_MS_DEFAULT: u32 = 10_000;

/// Pause before the second attempt to connect; doubles up to [`BACKOFF_MAX`]. Callers meanwhile are refused at once.
const BACKOFF_MIN: Duration = Duration::from_millis(20);

/// A peer that comes back is used again within this time.
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// One stream to a node, shared by any number of callers. Cheap to clone; the stream ends with the last clone.
#[derive(Clone)]
pub struct Exchange {
    shared: Arc<Shared>,
    _driver: Arc<Driver>,
}

/// Why a call brought no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The node answered with a refusal.
    #[error(transparent)]
    Refused(Refusal),
    /// The node wasn't reached, or its stream broke before the answer: another node may do better.
    #[error(transparent)]
    Broken(Refusal),
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Refusal {
        match failure {
            Failure::Refused(refusal) | Failure::Broken(refusal) => refusal,
        }
    }
}

/// Which service the stream speaks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    Store,
    Peer,
}

/// Ends the stream and the task that drives it with the last handle.
struct Driver {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.task.abort();
        self.shared.close();
    }
}

impl Exchange {
    /// A stream to a node's `KeyValue` service, for the client of that id. Connects when first used.
    /// Must be called within a tokio runtime.
    pub fn to_store(channel: Channel, client: ClientId) -> Exchange {
        Exchange::start(channel, Service::Store, client)
    }

    /// A stream to a node's `ForwardPeer` service, for requests of any client. Connects when first used.
    /// Must be called within a tokio runtime.
    pub fn to_peer(channel: Channel) -> Exchange {
        Exchange::start(channel, Service::Peer, ClientId(0))
    }

    fn start(channel: Channel, service: Service, client: ClientId) -> Exchange {
        let shared = Arc::new(Shared::new(client_to_proto(client), service));
        let task = tokio::spawn(drive(Arc::clone(&shared), channel));
        let driver = Driver { shared: Arc::clone(&shared), task };
        Exchange { shared, _driver: Arc::new(driver) }
    }

    /// Sends a request and waits for its answer, at most for the request's deadline.
    ///
    /// # Errors
    /// The node's refusal, or [`RefusalKind::Retry`] when it wasn't reached or its stream broke: with
    /// [`Effect::Unknown`] for a write that may have left, else [`Effect::None`].
    pub async fn call(&self, request: &Request) -> Result<Response, Refusal> {
        self.attempt(request).await.map_err(Refusal::from)
    }

    /// As [`Exchange::call`], telling apart a node that refused from one that wasn't reached.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn attempt(&self, request: &Request) -> Result<Response, Failure> {
        let deadline_ms = if request.deadline_ms() == 0 { DEADLINE_MS_DEFAULT } else { request.deadline_ms() };
        let expires = Instant::now() + Duration::from_millis(u64::from(deadline_ms)) + DEADLINE_GRACE;
        // The tag is given when the request is queued.
        let message = match self.shared.service {
            Service::Store => request_to_proto(0, request),
            Service::Peer => forwarded_to_proto(0, request),
        };
        let bytes = message.encoded_len();
        let room = match self.shared.try_room(bytes) {
            Some(room) => room,
            None => timeout_at(expires, self.shared.room(bytes)).await.map_err(|_| Failure::Broken(crowded()))?,
        };
        let is_write = matches!(request, Request::Write { .. });
        let (ticket, answer) = self.shared.push(message, bytes, is_write).map_err(Failure::Broken)?;
        let answered = timeout_at(expires, answer).await;
        drop(room);
        conclude(ticket, answered, deadline_ms)
    }
}

/// Turns what came, or didn't, into the caller's answer.
fn conclude(
    ticket: Ticket<'_>,
    answered: Result<Result<Result<v1::Response, Refusal>, oneshot::error::RecvError>, tokio::time::error::Elapsed>,
    deadline_ms: u32,
) -> Result<Response, Failure> {
    match answered {
        Ok(Ok(Ok(message))) => {
            ticket.done();
            response_from_proto(message).map_err(Failure::Refused)
        }
        Ok(Ok(Err(refusal))) => {
            ticket.done();
            Err(Failure::Broken(refusal))
        }
        // The driver ended: the last handle is being dropped, or the runtime is.
        Ok(Err(_)) => Err(Failure::Broken(
            Refusal::new(RefusalKind::Retry, "the connection was closed").with_effect(ticket.effect_of_giving_up()),
        )),
        Err(_) => {
            let effect = ticket.effect_of_giving_up();
            let why = format!("no answer came within the deadline of {deadline_ms} ms: try again, or allow more time");
            Err(Failure::Broken(Refusal::new(RefusalKind::Unavailable, why).with_effect(effect)))
        }
    }
}

fn crowded() -> Refusal {
    Refusal::new(
        RefusalKind::Retry,
        "too many requests wait for this node: nothing was sent; try again when some have been answered",
    )
}

/// Opens the stream when there is something to send, hands answers to their callers, and opens it again when it broke.
async fn drive(shared: Arc<Shared>, channel: Channel) {
    let mut backoff = BACKOFF_MIN;
    loop {
        shared.something_to_send().await;
        let why = match open(&shared, &channel).await {
            Ok(mut answers) => loop {
                match answers.message().await {
                    Ok(Some(batch)) => {
                        backoff = BACKOFF_MIN;
                        shared.complete(batch);
                    }
                    Ok(None) => break Refusal::new(RefusalKind::Retry, "the node ended the stream: it is restarting"),
                    Err(status) => break refusal_of_status(&status),
                }
            },
            Err(status) => refusal_of_status(&status),
        };
        tracing::debug!(kind = %why.kind, reason = %why.message, "stream to the node ended");
        shared.break_off(why);
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
        shared.mend();
    }
}

async fn open(shared: &Arc<Shared>, channel: &Channel) -> Result<Streaming<v1::ResponseBatch>, Status> {
    let outbound = Outbound::new(Arc::clone(shared));
    let answers = match shared.service {
        Service::Store => {
            let mut client = KeyValueClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
            client.exchange(outbound).await?
        }
        Service::Peer => {
            let mut client = ForwardPeerClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
            client.exchange(outbound).await?
        }
    };
    Ok(answers.into_inner())
}

/// What a broken stream means for a request: reads do nothing, and neither does a write that never left.
fn effect_of(is_write: bool, sent: bool) -> Effect {
    if is_write && sent { Effect::Unknown } else { Effect::None }
}
