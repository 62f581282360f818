//! What the client knows of the cluster: its copy of the topology, refreshed when an answer shows that it is old.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use meridian_proto::convert::{refusal_of_status, topology_from_proto};
use meridian_proto::v1;
use meridian_proto::v1::cluster_client::ClusterClient;
use meridian_types::{BucketName, Epoch, NodeId, Refusal, RefusalKind, Topology};
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::transport::Channel;

use crate::endpoint::{Endpoint, Endpoints};

/// The largest topology taken, in bytes: some 100,000 buckets.
const TOPOLOGY_BYTES_MAX: usize = 64 << 20;

/// How long a node may take to tell the topology.
const TOPOLOGY_TIMEOUT: Duration = Duration::from_secs(4);

/// However many answers ask for it, the topology is fetched no more often than this.
const REFRESH_PAUSE: Duration = Duration::from_millis(200);

/// For this long after this client created a bucket, nodes that don't know it yet are asked again.
const NEWS_TRAVELS: Duration = Duration::from_secs(5);

/// The nodes and what they said about the cluster.
pub(crate) struct Cluster {
    pub(crate) endpoints: Endpoints,
    topology: RwLock<Arc<Topology>>,
    outdated: Notify,
    created: Mutex<BTreeMap<BucketName, Instant>>,
}

impl Cluster {
    pub(crate) fn new(endpoints: Endpoints) -> Cluster {
        Cluster { endpoints, topology: RwLock::default(), outdated: Notify::new(), created: Mutex::default() }
    }

    pub(crate) fn topology(&self) -> Arc<Topology> {
        Arc::clone(&self.topology.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the bucket is known to have one region that orders its writes, and goes on having one in its epoch.
    pub(crate) fn has_primary(&self, bucket: &BucketName) -> bool {
        let topology = self.topology();
        let known = topology.bucket_ids.get(bucket).and_then(|id| topology.buckets.get(id));
        known.is_some_and(|known| known.primary.is_some() && !known.is_opening())
    }

    /// The bucket's epoch as last heard; 0 while nothing was.
    pub(crate) fn epoch(&self, bucket: &BucketName) -> Epoch {
        let topology = self.topology();
        let known = topology.bucket_ids.get(bucket).and_then(|id| topology.buckets.get(id));
        known.map_or(Epoch(0), |known| known.epoch)
    }

    /// This node, or while it is left alone another one of its region.
    pub(crate) fn beside(&self, endpoint: &Arc<Endpoint>) -> Arc<Endpoint> {
        if !endpoint.is_shunned() {
            return Arc::clone(endpoint);
        }
        let topology = self.topology();
        let region = |endpoint: &Endpoint| topology.nodes.get(&endpoint.node()).map(|node| node.region);
        let home = region(endpoint);
        let all = self.endpoints.all();
        let other = all.iter().find(|other| home.is_some() && region(other) == home && !other.is_shunned());
        Arc::clone(other.unwrap_or(endpoint))
    }

    /// An answer showed that the copy is old: have it fetched.
    pub(crate) fn is_outdated(&self) {
        self.outdated.notify_one();
    }

    /// Fetches the topology whenever it was found to be old. Runs as long as the client lives.
    pub(crate) async fn keep_fresh(self: Arc<Self>) {
        loop {
            self.outdated.notified().await;
            if let Err(tried) = self.refresh().await {
                tracing::debug!(endpoints = tried.len(), "no endpoint told the topology");
            }
            tokio::time::sleep(REFRESH_PAUSE).await;
        }
    }

    /// Fetches the topology from the first endpoint that answers, shunned ones last.
    pub(crate) async fn refresh(&self) -> Result<Arc<Endpoint>, Vec<(String, Refusal)>> {
        let all = self.endpoints.all();
        let (shunned, usable): (Vec<_>, Vec<_>) = all.iter().cloned().partition(|endpoint| endpoint.is_shunned());
        let mut tried = Vec::new();
        for endpoint in usable.into_iter().chain(shunned) {
            match self.refresh_from(&endpoint).await {
                Ok(()) => return Ok(endpoint),
                Err(refusal) => {
                    endpoint.failed();
                    tried.push((endpoint.address.clone(), refusal));
                }
            }
        }
        Err(tried)
    }

    async fn refresh_from(&self, endpoint: &Endpoint) -> Result<(), Refusal> {
        let (topology, node) = fetch(endpoint.channel.clone()).await?;
        endpoint.worked();
        endpoint.is_node(node);
        let home = topology.nodes.get(&node).map(|node| node.region);
        let mut current = self.topology.write().unwrap_or_else(PoisonError::into_inner);
        // Nodes learn of changes at different times: what is known is never exchanged for something older.
        if topology.index < current.index {
            return Ok(());
        }
        *current = Arc::new(topology);
        let topology = Arc::clone(&current);
        drop(current);
        self.endpoints.learn(&topology, home);
        Ok(())
    }

    /// This client created the bucket: nodes that don't know it yet soon will.
    pub(crate) fn bucket_created(&self, name: &BucketName) {
        let mut created = self.created.lock().unwrap_or_else(PoisonError::into_inner);
        created.retain(|_, when| when.elapsed() < NEWS_TRAVELS);
        created.insert(name.clone(), Instant::now());
    }

    pub(crate) fn bucket_deleted(&self, name: &BucketName) {
        self.created.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Whether a node that doesn't know the bucket may only not have heard of it yet.
    pub(crate) fn is_news(&self, name: &BucketName) -> bool {
        let created = self.created.lock().unwrap_or_else(PoisonError::into_inner);
        created.get(name).is_some_and(|when| when.elapsed() < NEWS_TRAVELS)
    }
}

async fn fetch(channel: Channel) -> Result<(Topology, NodeId), Refusal> {
    let mut client = ClusterClient::new(channel).max_decoding_message_size(TOPOLOGY_BYTES_MAX);
    let answer = tokio::time::timeout(TOPOLOGY_TIMEOUT, client.topology(v1::TopologyRequest {})).await;
    match answer {
        Err(_) => Err(Refusal::new(RefusalKind::Retry, format!("no answer within {} s", TOPOLOGY_TIMEOUT.as_secs()))),
        Ok(Err(status)) => Err(refusal_of_status(&status).with_effect(meridian_types::Effect::None)),
        Ok(Ok(answer)) => topology_from_proto(answer.into_inner()),
    }
}
