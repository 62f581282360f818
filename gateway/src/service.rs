//! The gRPC services, and the one load account they share.
//!
//! Keeps SEC-1 at the door: clients and nodes may use `KeyValue` and `Cluster`, only nodes `ForwardPeer`.
//! Keeps RES-1: streams, requests and bytes are counted across all services and bounded by [`Options`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use meridian_proto::convert::status_of_refusal;
use meridian_proto::identity::Identity;
use meridian_proto::limits::MESSAGE_BYTES_MAX;
use meridian_proto::v1;
use meridian_proto::v1::cluster_server::ClusterServer;
use meridian_proto::v1::forward_peer_server::{ForwardPeer, ForwardPeerServer};
use meridian_proto::v1::key_value_server::{KeyValue, KeyValueServer};
use meridian_types::{Refusal, RefusalKind};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::{Request, Response, Status, Streaming};

use crate::cluster::{CLUSTER_BYTES_MAX, ClusterService};
use crate::exchange::ExchangeStream;
use crate::metrics::Metrics;
use crate::options::Options;
use crate::seams::{Caller, Control, Store, Via};

/// A node's gateway: hands out the gRPC services, and ends them gracefully. Cheap to clone.
pub struct Gateway<S, C> {
    load: Arc<Load>,
    store: Arc<S>,
    control: Arc<C>,
}

/// A request's code panicked: the node must stop (style: a node never limps).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a request panicked in the gateway: the node must be restarted, and the panic's message reported")]
pub struct Fatal;

/// Requests were still in progress when the grace period ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{requests} requests were still in progress when the grace period ended; their clients will retry elsewhere")]
pub struct Late {
    /// How many.
    pub requests: usize,
}

impl<S, C> Clone for Gateway<S, C> {
    fn clone(&self) -> Self {
        Gateway { load: Arc::clone(&self.load), store: Arc::clone(&self.store), control: Arc::clone(&self.control) }
    }
}

impl<S: Store, C: Control> Gateway<S, C> {
    /// A gateway in front of these two.
    pub fn new(options: Options, store: Arc<S>, control: Arc<C>) -> Gateway<S, C> {
        Gateway { load: Arc::new(Load::new(options)), store, control }
    }

    /// The service for clients' reads and writes.
    pub fn key_value(&self) -> KeyValueServer<KeyValueService<S>> {
        let service = KeyValueService { load: Arc::clone(&self.load), store: Arc::clone(&self.store) };
        KeyValueServer::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The service for requests that other nodes forward.
    pub fn forward_peer(&self) -> ForwardPeerServer<PeerService<S>> {
        let service = PeerService { load: Arc::clone(&self.load), store: Arc::clone(&self.store) };
        ForwardPeerServer::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The service for operators and SDKs.
    pub fn cluster(&self) -> ClusterServer<ClusterService<C>> {
        let service = ClusterService::new(Arc::clone(&self.load), Arc::clone(&self.control));
        ClusterServer::new(service).max_decoding_message_size(CLUSTER_BYTES_MAX)
    }

    /// Requests in progress now.
    pub fn in_progress(&self) -> usize {
        self.load.requests.load(Ordering::Relaxed)
    }

    /// Resolves when a request's code panicked.
    pub async fn fatal(&self) -> Fatal {
        let mut fatal = self.load.fatal.subscribe();
        // The sender lives in `self.load`, so this can't fail before it resolves.
        let _ = fatal.wait_for(|panicked| *panicked).await;
        Fatal
    }

    /// Refuses new requests from now on (clients try another node), and waits for those in progress.
    /// Afterwards every stream ends by itself, so that the server can shut down.
    ///
    /// # Errors
    /// [`Late`] when some didn't finish within `grace`.
    pub async fn drain(&self, grace: Duration) -> Result<(), Late> {
        self.load.draining.send_replace(true);
        let mut idle = self.load.idle.subscribe();
        let finished = async {
            while self.in_progress() > 0 {
                if idle.changed().await.is_err() {
                    break;
                }
            }
        };
        match tokio::time::timeout(grace, finished).await {
            Ok(()) => Ok(()),
            Err(_) => Err(Late { requests: self.in_progress() }),
        }
    }
}

/// What all streams of a node share.
pub(crate) struct Load {
    pub(crate) options: Options,
    pub(crate) metrics: Metrics,
    streams: Arc<Semaphore>,
    /// Streams that clients have open.
    clients: AtomicUsize,
    requests: AtomicUsize,
    bytes: AtomicUsize,
    /// Turns true once, at shutdown.
    draining: watch::Sender<bool>,
    /// Touched whenever the last request in progress ends while draining.
    idle: watch::Sender<()>,
    fatal: watch::Sender<bool>,
}

impl Load {
    fn new(options: Options) -> Load {
        Load {
            streams: Arc::new(Semaphore::new(options.streams_max)),
            options,
            metrics: Metrics::new(),
            clients: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            draining: watch::Sender::new(false),
            idle: watch::Sender::new(()),
            fatal: watch::Sender::new(false),
        }
    }

    /// Takes a request into account, if there is room for it.
    pub(crate) fn admit(&self, bytes: usize) -> bool {
        let requests = self.requests.fetch_add(1, Ordering::Relaxed);
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = requests < self.options.requests_max && before.saturating_add(bytes) <= self.options.bytes_max;
        if !fits {
            self.release(1, bytes);
        }
        fits
    }

    /// Takes requests out of the account.
    pub(crate) fn release(&self, requests: usize, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        if self.requests.fetch_sub(requests, Ordering::Relaxed) == requests && *self.draining.borrow() {
            self.idle.send_replace(());
        }
    }

    /// A stream was opened.
    pub(crate) fn opened(&self, via: Via) {
        self.metrics.stream_opened();
        if via == Via::Client {
            self.clients.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A stream is over.
    pub(crate) fn closed(&self, via: Via) {
        self.metrics.stream_closed();
        if via == Via::Client {
            self.clients.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// How many streams clients have open.
    pub(crate) fn clients(&self) -> u32 {
        u32::try_from(self.clients.load(Ordering::Relaxed)).unwrap_or(u32::MAX)
    }

    pub(crate) fn draining(&self) -> watch::Receiver<bool> {
        self.draining.subscribe()
    }

    pub(crate) fn panicked(&self) {
        self.fatal.send_replace(true);
    }

    /// Reports a panic that unwinds through the scope it lives in.
    pub(crate) fn watch(&self) -> Watch<'_> {
        Watch { load: self }
    }

    fn open_stream(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        if *self.draining.borrow() {
            return Err(Refusal::new(RefusalKind::Retry, "this node is shutting down: use another one"));
        }
        Arc::clone(&self.streams).try_acquire_owned().map_err(|_| {
            Refusal::new(
                RefusalKind::Retry,
                format!("this node has all its {} streams in use: use another node", self.options.streams_max),
            )
        })
    }
}

/// Lives in a scope whose panics are fatal.
pub(crate) struct Watch<'a> {
    load: &'a Load,
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.load.panicked();
        }
    }
}

/// Serves clients.
pub struct KeyValueService<S> {
    load: Arc<Load>,
    store: Arc<S>,
}

/// Serves other nodes that forward requests of their clients.
pub struct PeerService<S> {
    load: Arc<Load>,
    store: Arc<S>,
}

#[tonic::async_trait]
impl<S: Store> KeyValue for KeyValueService<S> {
    type ExchangeStream = ExchangeStream<S>;

    async fn exchange(
        &self,
        request: Request<Streaming<v1::RequestBatch>>,
    ) -> Result<Response<ExchangeStream<S>>, Status> {
        let identity = Identity::of_request(&request).map_err(status_of_refusal)?;
        let caller = Caller { identity: Arc::new(identity), via: Via::Client };
        open(&self.load, &self.store, caller, request).map_err(status_of_refusal)
    }
}

#[tonic::async_trait]
impl<S: Store> ForwardPeer for PeerService<S> {
    type ExchangeStream = ExchangeStream<S>;

    async fn exchange(
        &self,
        request: Request<Streaming<v1::RequestBatch>>,
    ) -> Result<Response<ExchangeStream<S>>, Status> {
        let identity = Identity::of_request(&request).map_err(status_of_refusal)?;
        if identity.node_id().is_none() {
            return Err(status_of_refusal(Refusal::new(
                RefusalKind::Denied,
                format!(
                    "`{identity}` is not a node: only nodes may forward requests, clients use the KeyValue service"
                ),
            )));
        }
        let caller = Caller { identity: Arc::new(identity), via: Via::Peer };
        open(&self.load, &self.store, caller, request).map_err(status_of_refusal)
    }
}

fn open<S: Store>(
    load: &Arc<Load>,
    store: &Arc<S>,
    caller: Caller,
    request: Request<Streaming<v1::RequestBatch>>,
) -> Result<Response<ExchangeStream<S>>, Refusal> {
    let slot = load.open_stream()?;
    Ok(Response::new(ExchangeStream::new(Arc::clone(load), Arc::clone(store), caller, request.into_inner(), slot)))
}
