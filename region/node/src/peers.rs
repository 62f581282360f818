//! The other nodes, as this one forwards to them: which of a shard's nodes to ask, and how: over one multiplexed stream each.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use meridian_proto::convert::refusal_of_status;
use meridian_proto::dial::Dial;
use meridian_proto::exchange::{Exchange, Failure};
use meridian_proto::v1;
use meridian_proto::v1::region_peer_client::RegionPeerClient;
use meridian_region_core::repair::message::{Ask, Told};
use meridian_types::{Effect, NodeId, Refusal, RefusalKind, RegionId, Request, Response, ShardId, Topology};

/// The largest answer about a repair: digests of the most partitions, or some rows, with room around them.
pub(crate) const ANSWER_BYTES_MAX: usize = 8 << 20;

/// How long the side that is right may take for an answer where it may have to read every row of a bucket in a shard.
const ROWS_PATIENCE: Duration = Duration::from_secs(120);

/// How long it may take otherwise.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// How another node is asked, as a seam.
pub trait Neighbours: Send + Sync + 'static {
    /// Sends a request to a node for a client of this one; it answers as [`crate::Handle::execute`] does there.
    fn ask<'a>(&'a self, node: NodeId, request: &'a Request) -> BoxFuture<'a, Result<Response, Failure>>;

    /// Asks a node about a repair; it answers as [`crate::Handle::answer_repair`] does there. Asking again is safe.
    fn ask_repair(&self, node: NodeId, ask: Bytes) -> BoxFuture<'_, Result<Bytes, Failure>>;
}

/// Streams to other nodes, opened when first needed.
pub struct Exchanges {
    dial: Arc<dyn Dial>,
    open: Mutex<BTreeMap<NodeId, Exchange>>,
}

/// The other nodes.
pub(crate) struct Peers {
    own: NodeId,
    neighbours: Arc<dyn Neighbours>,
    /// Which of its nodes answered for a shard of a region last.
    preferred: Mutex<BTreeMap<(RegionId, ShardId), NodeId>>,
}

impl Exchanges {
    /// No stream yet.
    pub fn new(dial: Arc<dyn Dial>) -> Exchanges {
        Exchanges { dial, open: Mutex::default() }
    }

    fn exchange(&self, node: NodeId) -> Option<Exchange> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(exchange) = open.get(&node) {
            return Some(exchange.clone());
        }
        let exchange = Exchange::to_peer(self.dial.channel(node)?);
        open.insert(node, exchange.clone());
        Some(exchange)
    }
}

impl Neighbours for Exchanges {
    fn ask<'a>(&'a self, node: NodeId, request: &'a Request) -> BoxFuture<'a, Result<Response, Failure>> {
        async move {
            let exchange = self.exchange(node).ok_or_else(|| unreached(node))?;
            exchange.attempt(request).await
        }
        .boxed()
    }

    fn ask_repair(&self, node: NodeId, ask: Bytes) -> BoxFuture<'_, Result<Bytes, Failure>> {
        async move {
            let channel = self.dial.channel(node).ok_or_else(|| unreached(node))?;
            let mut peer = RegionPeerClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
            match peer.repair(v1::RepairAsk { ask }).await {
                Ok(answer) => Ok(answer.into_inner().told),
                Err(status) => Err(Failure::Refused(refusal_of_status(&status))),
            }
        }
        .boxed()
    }
}

/// Whether another node of the same region may answer what this refusal did not.
fn passes(refusal: &Refusal) -> bool {
    let elsewhere = matches!(refusal.kind, RefusalKind::Retry | RefusalKind::Unavailable);
    elsewhere && refusal.effect == Effect::None
}

fn unreached(node: NodeId) -> Failure {
    Failure::Broken(Refusal::new(
        RefusalKind::Retry,
        format!("node {node} has no known address yet: try again after a pause"),
    ))
}

fn nobody(topology: &Topology, region: RegionId, shard: ShardId) -> Refusal {
    let region = topology.region_label(region);
    Refusal::new(
        RefusalKind::Unavailable,
        format!("no node of region {region} is known that serves shard {shard}: is one running there?"),
    )
}

impl Peers {
    pub(crate) fn new(own: NodeId, neighbours: Arc<dyn Neighbours>) -> Peers {
        Peers { own, neighbours, preferred: Mutex::default() }
    }

    /// Asks the nodes that serve `shard` in `region`, the one that answered last first, until one is reached.
    ///
    /// # Errors
    /// The refusal of the node that was reached, or [`RefusalKind::Retry`] when none was.
    pub(crate) async fn ask_region(
        &self,
        topology: &Topology,
        region: RegionId,
        shard: ShardId,
        request: &Request,
    ) -> Result<Response, Refusal> {
        let mut failure = None;
        for node in self.candidates(topology, region, shard) {
            match self.ask(node, request).await {
                Ok(response) => {
                    self.prefer(region, shard, node);
                    return Ok(response);
                }
                // It may be cut off from the leader beside it, and another one is not.
                Err(Failure::Refused(refusal)) if passes(&refusal) => failure = Some(refusal),
                Err(Failure::Refused(refusal)) => return Err(refusal),
                // Nothing left this node: the next one may be asked.
                Err(Failure::Broken(refusal)) if refusal.effect == Effect::None => failure = Some(refusal),
                Err(Failure::Broken(refusal)) => return Err(refusal),
            }
        }
        Err(failure.unwrap_or_else(|| nobody(topology, region, shard)))
    }

    /// Asks one node.
    pub(crate) async fn ask(&self, node: NodeId, request: &Request) -> Result<Response, Failure> {
        self.neighbours.ask(node, request).await
    }

    /// Asks the nodes that serve `shard` in `region` about a repair until one answers that leads it; tells which.
    ///
    /// # Errors
    /// The last refusal.
    pub(crate) async fn ask_about_repair(
        &self,
        topology: &Topology,
        (region, shard): (RegionId, ShardId),
        ask: &Ask,
    ) -> Result<(NodeId, Told), Refusal> {
        let mut failure = None;
        for node in self.candidates(topology, region, shard) {
            match self.ask_repair(node, ask).await {
                Ok(told) => {
                    self.prefer(region, shard, node);
                    return Ok((node, told));
                }
                Err(refusal) if refusal.kind == RefusalKind::Redirect => failure = failure.or(Some(refusal)),
                Err(refusal) => failure = Some(refusal),
            }
        }
        Err(failure.unwrap_or_else(|| nobody(topology, region, shard)))
    }

    /// Asks one node about a repair.
    ///
    /// # Errors
    /// Its refusal, or that it was not reached.
    pub(crate) async fn ask_repair(&self, node: NodeId, ask: &Ask) -> Result<Told, Refusal> {
        let patience = match ask {
            Ask::Open { .. } | Ask::Hashes { .. } | Ask::Rows { .. } => ROWS_PATIENCE,
            // The request that waits for it has a deadline of its own.
            Ask::Sights { .. } | Ask::Settled { .. } => ROWS_PATIENCE,
            Ask::Survey { .. } | Ask::Reach { .. } | Ask::Removals { .. } | Ask::Close { .. } | Ask::Floors => {
                ANSWER_PATIENCE
            }
        };
        let asked = tokio::time::timeout(patience, self.neighbours.ask_repair(node, ask.encode())).await;
        let late = || Refusal::new(RefusalKind::Retry, format!("node {node} does not answer in time"));
        let told = asked.map_err(|_| late())?.map_err(Refusal::from)?;
        Told::decode(&told).map_err(|why| Refusal::new(RefusalKind::Internal, why.to_string()))
    }

    fn candidates(&self, topology: &Topology, region: RegionId, shard: ShardId) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> =
            topology.holders(region, shard).into_iter().filter(|node| *node != self.own).collect();
        let preferred = self.preferred.lock().unwrap_or_else(PoisonError::into_inner).get(&(region, shard)).copied();
        if let Some(place) = preferred.and_then(|preferred| nodes.iter().position(|node| *node == preferred)) {
            nodes.swap(0, place);
        }
        nodes
    }

    fn prefer(&self, region: RegionId, shard: ShardId, node: NodeId) {
        self.preferred.lock().unwrap_or_else(PoisonError::into_inner).insert((region, shard), node);
    }
}
