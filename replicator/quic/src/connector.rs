//! One connection to one node, dialled when a lane first needs it and again after it broke.
//! Lanes that ask while the node can't be reached are told so at once, with the time of the next attempt.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_proto::identity::TLS_SERVER_NAME;
use meridian_types::{NodeId, Topology};
use rand::Rng;
use s2n_quic::Client;
use s2n_quic::client::Connect;
use s2n_quic::connection::{Handle, StreamAcceptor};
use s2n_quic::stream::BidirectionalStream;
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;

use crate::Addresses;
use crate::hello::{Me, introduce};

/// The pause after the first failure, and the longest.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// How long opening a stream on a live connection may take before the connection is given up.
const OPEN_TIMEOUT: Duration = Duration::from_secs(3);

/// What a connection is closed with that was kept by a process that stood still.
const STOOD_STILL: u32 = 1;

/// Why there is no stream, and when to ask again.
#[derive(Debug)]
pub(crate) struct Unreached {
    pub(crate) reason: String,
    pub(crate) again: Instant,
}

/// What every connector of this node needs.
pub(crate) struct Dialling {
    pub(crate) client: Client,
    pub(crate) addresses: Arc<dyn Addresses>,
    pub(crate) topology: watch::Receiver<Arc<Topology>>,
    pub(crate) me: Me,
    pub(crate) timeout: Duration,
}

/// A connection that is kept up.
pub(crate) struct Connector {
    dialling: Arc<Dialling>,
    node: NodeId,
    state: Mutex<State>,
}

struct State {
    live: Option<(Handle, StreamAcceptor)>,
    backoff: Duration,
    again: Instant,
    reason: String,
}

impl Connector {
    pub(crate) fn new(dialling: Arc<Dialling>, node: NodeId) -> Connector {
        let state = State { live: None, backoff: BACKOFF_MIN, again: Instant::now(), reason: String::new() };
        Connector { dialling, node, state: Mutex::new(state) }
    }

    /// A fresh stream to the node.
    pub(crate) async fn open(&self) -> Result<BidirectionalStream, Unreached> {
        let mut state = self.state.lock().await;
        if let Some((handle, _)) = &mut state.live {
            match timeout(OPEN_TIMEOUT, handle.open_bidirectional_stream()).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(_)) | Err(_) => state.live = None,
            }
        }
        if Instant::now() < state.again {
            return Err(Unreached { reason: state.reason.clone(), again: state.again });
        }
        match self.dial().await {
            Ok((mut handle, acceptor)) => {
                let stream = handle.open_bidirectional_stream().await;
                state.live = Some((handle, acceptor));
                state.backoff = BACKOFF_MIN;
                stream.map_err(|why| state.failed(why.to_string()))
            }
            Err(reason) => {
                if state.reason != reason {
                    tracing::warn!(node = %self.node, %reason, "can't connect for replication");
                }
                Err(state.failed(reason))
            }
        }
    }

    /// Closes the connection, whatever its streams are at.
    pub(crate) async fn hang_up(&self) {
        if let Some((handle, _)) = self.state.lock().await.live.take() {
            handle.close(STOOD_STILL.into());
        }
    }

    async fn dial(&self) -> Result<(Handle, StreamAcceptor), String> {
        let topology = Arc::clone(&self.dialling.topology.borrow());
        let address = self.dialling.addresses.replication_address(self.node);
        let address: SocketAddr = address.ok_or("its replication address is not known")?;
        let attempt = self.dialling.client.connect(Connect::new(address).with_server_name(TLS_SERVER_NAME));
        let connection = timeout(self.dialling.timeout, attempt)
            .await
            .map_err(|_| format!("{address} does not answer"))?
            .map_err(|why| format!("{address}: {why}"))?;
        let (mut handle, acceptor) = connection.split();
        handle.keep_alive(true).map_err(|why| format!("{address}: {why}"))?;
        introduce(handle.clone(), &topology, self.dialling.me, self.node)
            .await
            .map_err(|why| format!("{address}: {why}"))?;
        tracing::info!(node = %self.node, %address, "connected for replication");
        Ok((handle, acceptor))
    }
}

impl State {
    fn failed(&mut self, reason: String) -> Unreached {
        let pause = self.backoff.mul_f64(rand::rng().random_range(0.5..1.0));
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        self.again = Instant::now() + pause;
        self.reason.clone_from(&reason);
        Unreached { reason, again: self.again }
    }
}
