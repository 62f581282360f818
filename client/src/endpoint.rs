//! The nodes a client can talk to, in order of preference, and which of them to leave alone for now.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use meridian_proto::dial;
use meridian_proto::exchange::Exchange;
use meridian_proto::tls::{TlsError, TlsMaterial};
use meridian_types::{ClientId, Membership, Node, NodeId, RegionId, Topology};
use tonic::transport::Channel;

/// How long a node is left alone after its first failure; doubles up to [`SHUNNED_MAX`].
const SHUNNED_MIN: Duration = Duration::from_millis(500);

/// A node that is back is used again within this time.
const SHUNNED_MAX: Duration = Duration::from_secs(8);

/// The most endpoints kept; a cluster with more nodes than this names enough others.
const ENDPOINTS_MAX: usize = 64;

/// Maps an address that the cluster names to one this client can reach.
pub(crate) type Translate = dyn Fn(&str) -> String + Send + Sync;

/// One node.
pub(crate) struct Endpoint {
    pub(crate) address: String,
    pub(crate) channel: Channel,
    pub(crate) exchange: Exchange,
    /// 0 while nobody knows.
    node: AtomicU64,
    /// Milliseconds after `born`.
    shunned_until: AtomicU64,
    failures: AtomicU32,
    born: Instant,
}

impl Endpoint {
    fn new(address: String, tls: &TlsMaterial, client: ClientId) -> Result<Endpoint, TlsError> {
        let channel = dial::channel(&address, tls)?;
        Ok(Endpoint {
            exchange: Exchange::to_store(channel.clone(), client),
            address,
            channel,
            node: AtomicU64::new(0),
            shunned_until: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            born: Instant::now(),
        })
    }

    pub(crate) fn node(&self) -> NodeId {
        NodeId(self.node.load(Ordering::Relaxed))
    }

    pub(crate) fn is_node(&self, node: NodeId) {
        self.node.store(node.0, Ordering::Relaxed);
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) fn is_shunned(&self) -> bool {
        // Without failures, no clock is read: this is on the path of every request.
        self.failures.load(Ordering::Relaxed) > 0 && self.shunned_until.load(Ordering::Relaxed) > self.now_ms()
    }

    pub(crate) fn worked(&self) {
        if self.failures.load(Ordering::Relaxed) > 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// Leaves the node alone for a while. Several callers fail together when it goes: they count once.
    pub(crate) fn failed(&self) {
        if self.is_shunned() {
            return;
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed);
        let pause = SHUNNED_MIN.saturating_mul(1 << failures.min(8)).min(SHUNNED_MAX);
        let until = self.now_ms() + u64::try_from(pause.as_millis()).unwrap_or_default();
        self.shunned_until.store(until, Ordering::Relaxed);
    }
}

/// All of them: those the builder was given, the nearest first, then those the topology names.
pub(crate) struct Endpoints {
    list: RwLock<Arc<[Arc<Endpoint>]>>,
    configured: usize,
    tls: TlsMaterial,
    client: ClientId,
    translate: Option<Arc<Translate>>,
    discover: bool,
}

impl Endpoints {
    pub(crate) fn new(
        addresses: &[String],
        tls: TlsMaterial,
        client: ClientId,
        translate: Option<Arc<Translate>>,
        discover: bool,
    ) -> Result<Endpoints, TlsError> {
        let list: Arc<[Arc<Endpoint>]> = addresses
            .iter()
            .map(|address| Endpoint::new(address.clone(), &tls, client).map(Arc::new))
            .collect::<Result<_, _>>()?;
        Ok(Endpoints { configured: list.len(), list: RwLock::new(list), tls, client, translate, discover })
    }

    pub(crate) fn all(&self) -> Arc<[Arc<Endpoint>]> {
        Arc::clone(&self.list.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The best node to ask; `rotation` counts how often another one is wanted. When all are shunned, the nearest.
    pub(crate) fn pick(&self, rotation: usize) -> Option<Arc<Endpoint>> {
        let list = self.all();
        let usable = || list.iter().filter(|endpoint| !endpoint.is_shunned());
        if rotation == 0
            && let Some(first) = usable().next()
        {
            return Some(Arc::clone(first));
        }
        match usable().count() {
            0 => list.get(rotation % list.len().max(1)).cloned(),
            count => usable().nth(rotation % count).cloned(),
        }
    }

    /// Whether a node is left that isn't shunned.
    pub(crate) fn has_usable(&self) -> bool {
        self.all().iter().any(|endpoint| !endpoint.is_shunned())
    }

    pub(crate) fn of_node(&self, node: NodeId) -> Option<Arc<Endpoint>> {
        self.all().iter().find(|endpoint| endpoint.node() == node && !endpoint.is_shunned()).cloned()
    }

    /// `https://host:port` of a node, as this client reaches it.
    pub(crate) fn address(&self, rpc_address: &str) -> String {
        let reachable =
            self.translate.as_ref().map_or_else(|| rpc_address.to_owned(), |translate| translate(rpc_address));
        if reachable.contains("://") { reachable } else { format!("https://{reachable}") }
    }

    /// An endpoint for a node of the topology: one that is known already, or a new connection.
    pub(crate) fn connect(&self, node: NodeId, rpc_address: &str) -> Result<Arc<Endpoint>, TlsError> {
        let known = self.all().iter().find(|endpoint| endpoint.node() == node).cloned();
        known.map_or_else(
            || {
                let endpoint = Endpoint::new(self.address(rpc_address), &self.tls, self.client)?;
                endpoint.is_node(node);
                Ok(Arc::new(endpoint))
            },
            Ok,
        )
    }

    /// Takes up the nodes that the topology names, those of `home` first, and lets go of those it no longer does.
    pub(crate) fn learn(&self, topology: &Topology, home: Option<RegionId>) {
        if !self.discover {
            return;
        }
        let current = self.all();
        let (configured, discovered) = current.split_at(self.configured.min(current.len()));
        // A spare answers no request for data.
        let is_spare =
            |node: &&Node| topology.holds_data(node.region) && topology.membership(node.id) == Some(Membership::Spare);
        let mut nodes: Vec<_> = topology.nodes.values().filter(|node| !is_spare(node)).collect();
        nodes.sort_by_key(|node| (Some(node.region) != home, node.region, node.id));
        let mut list = configured.to_vec();
        for node in nodes {
            let address = self.address(&node.rpc_address);
            let listed = list.iter().find(|known| known.node() == node.id || known.address == address);
            if let Some(listed) = listed {
                listed.is_node(node.id);
                continue;
            }
            if list.len() >= ENDPOINTS_MAX {
                continue;
            }
            let known = discovered.iter().find(|known| known.node() == node.id && known.address == address);
            match known.map_or_else(
                || Endpoint::new(address, &self.tls, self.client).map(Arc::new),
                |known| Ok(Arc::clone(known)),
            ) {
                Ok(endpoint) => {
                    endpoint.is_node(node.id);
                    list.push(endpoint);
                }
                Err(why) => tracing::debug!(node = %node.name, reason = %why, "the address of a node cannot be used"),
            }
        }
        *self.list.write().unwrap_or_else(PoisonError::into_inner) = list.into();
    }
}
