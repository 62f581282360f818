//! Stands for the running replicator.

use std::net::SocketAddr;
use std::sync::Arc;

use meridian_types::{BucketLag, LaneStatus, Topology};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{Addresses, LogSink, LogSource, Options};

/// The node's certificate and key, and the authority that signs every node's. PEM.
#[derive(Clone)]
pub struct TlsPem {
    /// The certificate authority.
    pub ca: Vec<u8>,
    /// This node's certificate chain.
    pub cert: Vec<u8>,
    /// Its private key.
    pub key: Vec<u8>,
}

/// What the node hands to its replicator.
#[derive(Clone)]
pub struct Parts {
    /// The logs to ship.
    pub source: Arc<dyn LogSource>,
    /// The groups to fill.
    pub sink: Arc<dyn LogSink>,
    /// The cluster, as it changes.
    pub topology: watch::Receiver<Arc<Topology>>,
    /// Where the other nodes are.
    pub addresses: Arc<dyn Addresses>,
    /// Who this node is.
    pub tls: TlsPem,
}

/// Why the replicator could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The certificate, its key or the authority can't be used.
    #[error("the replication certificate can't be used: {0}")]
    Tls(String),
    /// The certificate names somebody else than the options.
    #[error("the certificate is for {certificate}, but this node is configured as {configured}")]
    Identity {
        /// Whom the certificate names.
        certificate: String,
        /// Whom the options name.
        configured: String,
    },
    /// The UDP port can't be had.
    #[error("can't listen for replication on {address}: {reason}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
}

/// Why the replicator ended. Fatal to the node.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A task panicked.
    #[error("the replicator's task `{task}` panicked")]
    Panicked {
        /// Which.
        task: String,
    },
    /// The endpoint stopped by itself.
    #[error("the replication endpoint closed by itself")]
    EndpointClosed,
}

/// The replicator before and while it runs.
pub struct Service {
    handle: Handle,
    _parts: Parts,
    _options: Options,
}

/// Asks and stops a running [`Service`].
#[derive(Clone)]
pub struct Handle {
    stop: CancellationToken,
    local: SocketAddr,
}

impl Service {
    /// Takes the port. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`StartError`] says what is wrong with the certificate or the port.
    pub fn bind(options: Options, parts: Parts) -> Result<Service, StartError> {
        let handle = Handle { stop: CancellationToken::new(), local: options.listen };
        Ok(Service { handle, _parts: parts, _options: options })
    }

    /// Asks and stops this service, before and while it runs.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Ships and receives until [`Handle::stop`].
    ///
    /// # Errors
    /// [`Error`] when a task panicked or the endpoint is lost: the node must end.
    pub async fn run(self) -> Result<(), Error> {
        self.handle.stop.cancelled().await;
        Ok(())
    }
}

impl Handle {
    /// The state of every lane shipped from here.
    pub fn lanes(&self) -> Vec<LaneStatus> {
        Vec::new()
    }

    /// How far every region is behind, for every bucket written here.
    pub fn lags(&self) -> Vec<BucketLag> {
        Vec::new()
    }

    /// The address it listens on.
    pub fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// Ends [`Service::run`]: connections are closed, what was not acknowledged is shipped again next time.
    pub fn stop(&self) {
        self.stop.cancel();
    }
}
