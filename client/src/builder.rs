//! How a client is described before it connects.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use meridian_proto::tls::{TlsFiles, TlsMaterial};
use meridian_types::ClientId;
use rand::Rng;

use crate::client::{Client, Settings};
use crate::cluster::Cluster;
use crate::endpoint::{Endpoints, Translate};
use crate::error::{ConnectError, Error};
use crate::retry::RetryPolicy;

/// A client to be. At least [`endpoints`](Builder::endpoints) and one of [`tls`](Builder::tls) and
/// [`tls_files`](Builder::tls_files) are needed.
#[must_use = "a builder does nothing until `connect` is awaited"]
pub struct Builder {
    endpoints: Vec<String>,
    tls: Tls,
    settings: Settings,
    translate: Option<Arc<Translate>>,
    discover: bool,
}

enum Tls {
    Missing,
    Files(TlsFiles),
    Material(TlsMaterial),
}

/// As long as most callers would wait; long enough for a failover with a retry after it.
const DEADLINE: Duration = Duration::from_secs(10);

impl Default for Builder {
    fn default() -> Builder {
        let settings = Settings {
            // Never 0, which means "no identity".
            client: ClientId(rand::rng().random::<u128>().max(1)),
            deadline: DEADLINE,
            retry: RetryPolicy::default(),
            direct_to_primary: false,
        };
        Builder { endpoints: Vec::new(), tls: Tls::Missing, settings, translate: None, discover: true }
    }
}

impl Builder {
    /// Nodes to talk to, `https://host:port`, the nearest first. One is enough: the others of the cluster are found
    /// through it.
    pub fn endpoints<A: Into<String>>(mut self, addresses: impl IntoIterator<Item = A>) -> Builder {
        self.endpoints.extend(addresses.into_iter().map(Into::into));
        self
    }

    /// The CA, this client's certificate and its key.
    pub fn tls(mut self, material: TlsMaterial) -> Builder {
        self.tls = Tls::Material(material);
        self
    }

    /// The same three, as PEM files that are read when connecting.
    pub fn tls_files(mut self, ca: impl Into<PathBuf>, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Builder {
        self.tls = Tls::Files(TlsFiles::new(ca, cert, key));
        self
    }

    /// How long a request may take, retries included, when it doesn't say itself. 10 s by default.
    pub fn deadline(mut self, deadline: Duration) -> Builder {
        self.settings.deadline = deadline;
        self
    }

    /// How requests are tried again.
    pub fn retry(mut self, policy: RetryPolicy) -> Builder {
        self.settings.retry = policy;
        self
    }

    /// This client's id, random by default. Two clients at work at the same time must never share one: their writes
    /// would be taken for retries of each other's.
    pub fn client_id(mut self, id: ClientId) -> Builder {
        self.settings.client = id;
        self
    }

    /// Sends writes and strong reads straight to a node of the bucket's primary region when it can be reached, instead
    /// of through the nearest region. Saves that region's work; costs its short cut for `sync` writes, which answers
    /// from its own copy after one round trip.
    pub fn direct_to_primary(mut self, yes: bool) -> Builder {
        self.settings.direct_to_primary = yes;
        self
    }

    /// Whether nodes that the cluster names are used when the given endpoints fail. Yes by default.
    pub fn discover(mut self, yes: bool) -> Builder {
        self.discover = yes;
        self
    }

    /// Maps the `host:port` that the cluster names for a node to one that this client can reach: behind a proxy, say.
    pub fn translate(mut self, translate: impl Fn(&str) -> String + Send + Sync + 'static) -> Builder {
        self.translate = Some(Arc::new(translate));
        self
    }

    /// Connects to the first endpoint that answers, and learns the topology from it.
    ///
    /// # Errors
    /// [`ConnectError`] names the file or endpoint that is wrong, and why.
    pub async fn connect(self) -> Result<Client, ConnectError> {
        let tls = match self.tls {
            Tls::Missing => return Err(ConnectError::NoTls),
            Tls::Files(files) => files.load()?,
            Tls::Material(material) => material,
        };
        if self.endpoints.is_empty() {
            return Err(ConnectError::NoEndpoint);
        }
        let endpoints = Endpoints::new(&self.endpoints, tls, self.settings.client, self.translate, self.discover)?;
        let cluster = Arc::new(Cluster::new(endpoints));
        match cluster.refresh().await {
            Ok(_) => Ok(Client::new(cluster, self.settings)),
            Err(tried) => Err(ConnectError::Unreachable {
                tried: tried.into_iter().map(|(address, refusal)| (address, Error::from(refusal))).collect(),
            }),
        }
    }
}
