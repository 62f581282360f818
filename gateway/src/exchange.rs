//! One stream: requests in, answers out, all driven by one task.
//!
//! ```text
//! RequestBatch ──► admit ──► running (FuturesUnordered) ──► ready ──► ResponseBatch
//!                    └── refused: no room, senseless, shutting down ──┘
//! ```
//!
//! No task per request: the stream polls what it runs. Answers that are ready leave together, at once. When the peer
//! doesn't read its answers, the transport stops polling, and nothing more is read or finished (RES-1).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, Stream, StreamExt};
use meridian_proto::convert::{
    client_from_proto, forwarded_from_proto, refusal_of_status, request_from_proto, response_to_proto,
    status_of_refusal,
};
use meridian_proto::limits::{BATCH_BYTES, BATCH_ITEMS, RESPONSE_BYTES_MAX};
use meridian_proto::v1;
use meridian_types::{ClientId, Effect, Refusal, RefusalKind, Request, Response};
use prost::Message;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};
use tonic::{Status, Streaming};

use crate::metrics::Operation;
use crate::seams::{Caller, Store, Via};
use crate::service::Load;

/// The answers of one stream.
pub struct ExchangeStream<S> {
    load: Arc<Load>,
    store: Arc<S>,
    caller: Caller,
    inbound: Inbound,
    running: FuturesUnordered<BoxFuture<'static, Finished>>,
    /// Bytes of the requests in `running`.
    running_bytes: usize,
    ready: Vec<v1::Response>,
    ready_bytes: usize,
    drain: Drain,
    _slot: OwnedSemaphorePermit,
}

/// Where requests come from.
enum Inbound {
    Open(Streaming<v1::RequestBatch>),
    /// The peer will send no more; its answers are finished first.
    Ended,
    /// The peer sent something senseless: its answers are finished first, then it is told.
    Broken(Status),
}

/// Whether the node shuts down.
enum Drain {
    Serving(BoxFuture<'static, ()>),
    Draining,
}

/// A request that has its answer.
struct Finished {
    response: v1::Response,
    /// Of the request.
    bytes: usize,
}

impl<S: Store> ExchangeStream<S> {
    pub(crate) fn new(
        load: Arc<Load>,
        store: Arc<S>,
        caller: Caller,
        inbound: Streaming<v1::RequestBatch>,
        slot: OwnedSemaphorePermit,
    ) -> ExchangeStream<S> {
        let mut draining = load.draining();
        let drain = async move {
            // An error means that the gateway is gone, which comes to the same.
            let _ = draining.wait_for(|draining| *draining).await;
        };
        load.opened(caller.via);
        ExchangeStream {
            load,
            store,
            caller,
            inbound: Inbound::Open(inbound),
            running: FuturesUnordered::new(),
            running_bytes: 0,
            ready: Vec::new(),
            ready_bytes: 0,
            drain: Drain::Serving(drain.boxed()),
            _slot: slot,
        }
    }

    fn is_batch_full(&self) -> bool {
        self.ready.len() >= BATCH_ITEMS || self.ready_bytes >= BATCH_BYTES
    }

    /// Gathers answers that are ready, until the batch is full.
    fn gather(&mut self, context: &mut Context<'_>) {
        while !self.is_batch_full() {
            let Poll::Ready(Some(finished)) = self.running.poll_next_unpin(context) else { return };
            self.load.release(1, finished.bytes);
            self.running_bytes -= finished.bytes;
            self.answer(finished.response);
        }
    }

    fn answer(&mut self, response: v1::Response) {
        self.ready_bytes += response.encoded_len();
        self.ready.push(response);
    }

    /// Takes the next batch of requests. False when there is none now.
    fn receive(&mut self, context: &mut Context<'_>) -> bool {
        let Inbound::Open(inbound) = &mut self.inbound else { return false };
        match inbound.poll_next_unpin(context) {
            Poll::Pending => false,
            Poll::Ready(None) => {
                self.inbound = Inbound::Ended;
                false
            }
            Poll::Ready(Some(Err(status))) => {
                self.inbound = Inbound::Broken(senseless(&status));
                false
            }
            Poll::Ready(Some(Ok(batch))) => {
                self.admit_batch(batch);
                true
            }
        }
    }

    fn admit_batch(&mut self, batch: v1::RequestBatch) {
        let client = client_from_proto(&batch.client_id);
        for request in batch.requests {
            let tag = request.tag;
            let admitted = client.clone().and_then(|client| self.admit(request, client));
            if let Err(refusal) = admitted {
                self.load.metrics.refused_at_the_door(refusal.kind);
                self.answer(response_to_proto(tag, Err(refusal)));
            }
        }
    }

    fn admit(&mut self, message: v1::Request, client: ClientId) -> Result<(), Refusal> {
        if matches!(self.drain, Drain::Draining) {
            return Err(Refusal::new(
                RefusalKind::Retry,
                "this node is shutting down: nothing was done; use another one",
            ));
        }
        let (tag, bytes) = (message.tag, message.encoded_len());
        let options = &self.load.options;
        let crowded = || {
            Refusal::new(
                RefusalKind::Retry,
                "too many requests are in progress here: nothing was done; try again after a pause",
            )
        };
        if self.running.len() >= options.stream_requests_max || self.running_bytes + bytes > options.stream_bytes_max {
            return Err(crowded());
        }
        let mut request = match self.caller.via {
            Via::Client => request_from_proto(message, client)?,
            Via::Peer => forwarded_from_proto(message)?,
        };
        bound_deadline(&mut request, options.deadline_ms_default, options.deadline_ms_max);
        if !self.load.admit(bytes) {
            return Err(crowded());
        }
        self.running_bytes += bytes;
        let run = run(Arc::clone(&self.load), Arc::clone(&self.store), request, self.caller.clone(), tag);
        self.running.push(async move { Finished { response: run.await, bytes } }.boxed());
        Ok(())
    }

    /// Whether there is nothing left to answer, and nothing more will come.
    fn conclusion(&mut self) -> Option<Result<(), Status>> {
        if !self.running.is_empty() {
            return None;
        }
        match std::mem::replace(&mut self.inbound, Inbound::Ended) {
            Inbound::Ended => Some(Ok(())),
            Inbound::Broken(status) => Some(Err(status)),
            Inbound::Open(_) if matches!(self.drain, Drain::Draining) => Some(Ok(())),
            open @ Inbound::Open(_) => {
                self.inbound = open;
                None
            }
        }
    }
}

impl<S: Store> Stream for ExchangeStream<S> {
    type Item = Result<v1::ResponseBatch, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Drain::Serving(drain) = &mut this.drain
            && drain.poll_unpin(context).is_ready()
        {
            this.drain = Drain::Draining;
        }
        loop {
            this.gather(context);
            if this.is_batch_full() || !this.receive(context) {
                break;
            }
        }
        if !this.ready.is_empty() {
            this.ready_bytes = 0;
            let responses = std::mem::take(&mut this.ready);
            return Poll::Ready(Some(Ok(v1::ResponseBatch { responses })));
        }
        match this.conclusion() {
            None => Poll::Pending,
            Some(Ok(())) => Poll::Ready(None),
            Some(Err(status)) => Poll::Ready(Some(Err(status))),
        }
    }
}

impl<S> Drop for ExchangeStream<S> {
    fn drop(&mut self) {
        // Whoever went away with requests in progress no longer weighs on the others.
        self.load.release(self.running.len(), self.running_bytes);
        self.load.closed(self.caller.via);
        if std::thread::panicking() {
            self.load.panicked();
        }
    }
}

/// No room is needed for its fields to move: the futures are boxed.
impl<S> Unpin for ExchangeStream<S> {}

/// Executes one request within its deadline.
fn run<S: Store>(
    load: Arc<Load>,
    store: Arc<S>,
    request: Request,
    caller: Caller,
    tag: u64,
) -> impl Future<Output = v1::Response> + Send + 'static {
    let operation = Operation::of(&request);
    let (began, deadline_ms) = (Instant::now(), request.deadline_ms());
    let expires = began + Duration::from_millis(u64::from(deadline_ms));
    async move {
        let answer = match timeout_at(expires, store.execute(request, caller)).await {
            Ok(answer) => answer,
            Err(_) => Err(too_late(operation, deadline_ms)),
        };
        load.metrics.answered(operation, &answer, began.elapsed());
        fit(tag, answer)
    }
}

fn too_late(operation: Operation, deadline_ms: u32) -> Refusal {
    let effect = if operation.is_write() { Effect::Unknown } else { Effect::None };
    Refusal::new(
        RefusalKind::Unavailable,
        format!("the request was not finished within its deadline of {deadline_ms} ms: allow more time, or see `meridian status`"),
    )
    .with_effect(effect)
}

fn bound_deadline(request: &mut Request, default: u32, most: u32) {
    let (Request::Read { deadline_ms, .. } | Request::Write { deadline_ms, .. }) = request;
    *deadline_ms = if *deadline_ms == 0 { default } else { *deadline_ms }.min(most);
}

/// An answer must fit into a message: a page is cut (its reader continues behind the last key), values of many keys
/// can't be.
fn fit(tag: u64, answer: Result<Response, Refusal>) -> v1::Response {
    let mut message = response_to_proto(tag, answer);
    let bytes = message.encoded_len();
    if bytes <= RESPONSE_BYTES_MAX {
        return message;
    }
    if let Some(v1::response::Outcome::Page(page)) = &mut message.outcome {
        let mut kept = 0;
        let fitting = page.items.iter().take_while(|item| {
            // Room for the item's own tag and length, and for the other fields of the answer.
            kept += item.encoded_len() + 8;
            kept < RESPONSE_BYTES_MAX - (256 << 10)
        });
        let count = fitting.count().max(1);
        page.items.truncate(count);
        page.more = true;
        return message;
    }
    let refusal = Refusal::new(
        RefusalKind::Invalid,
        format!(
            "the answer would have {bytes} bytes, at most {RESPONSE_BYTES_MAX} are sent: ask for fewer keys at a time"
        ),
    );
    response_to_proto(tag, Err(refusal))
}

/// What a peer is told whose message can't be read. A connection that broke is told nothing, as nobody listens.
fn senseless(status: &Status) -> Status {
    match status.code() {
        tonic::Code::Internal | tonic::Code::OutOfRange | tonic::Code::ResourceExhausted => {
            status_of_refusal(Refusal::new(
                RefusalKind::Invalid,
                format!(
                    "a message cannot be read ({}): the stream ends here; update the client, or send less at a time",
                    status.message()
                ),
            ))
        }
        _ => status_of_refusal(refusal_of_status(status)),
    }
}
