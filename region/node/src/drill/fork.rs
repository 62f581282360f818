//! A region's node of its own, on a copy: the same service over another store, another log and a metadata plane that is played.
//!
//! Isolated by construction: it can dial nobody, nobody can dial it, no replicator reads its log, no metric counts it, and what
//! it tells the metadata plane ends in [`Plane`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use meridian_consensus::{Consensus, LogOptions};
use meridian_proto::dial::Dial;
use meridian_proto::exchange::Failure;
use meridian_types::{
    Bucket, BucketId, Epoch, Fact, NodeId, Phase, PlanId, Policy, Refusal, RefusalKind, RegionId, Remains, Request,
    Response, ShardId, StandingWord, Topology, Word,
};
use tokio::sync::watch;
use tonic::transport::Channel;

use super::cut::chain;
use super::scratch::Scratch;
use crate::authority::Authority;
use crate::blocking::Blocking;
use crate::node::Node;
use crate::options::{Options, Place, StoreOptions};
use crate::peers::Neighbours;
use crate::salvage::Memory;
use crate::service::{Handle, Parts, Service};

/// Bytes of a log segment: a drill writes little, and preallocates two of them.
const SEGMENT_BYTES: u64 = 8 << 20;

/// Bytes of recent log kept in memory.
const LOG_CACHE_BYTES: u64 = 4 << 20;

/// How long the copy's groups may take to end what is under way.
const GRACE: Duration = Duration::from_secs(5);

/// The operation that the copy believes in.
const PLAN: PlanId = PlanId(u64::MAX);

/// A small store beside the node's own (RES-1).
pub(super) fn store_options() -> StoreOptions {
    StoreOptions { cache_bytes: 16 << 20, write_buffer_bytes: 8 << 20, journal_bytes_max: 64 << 20, worker_threads: 1 }
}

pub(super) fn log_options(node: NodeId, scratch: &Scratch) -> meridian_consensus::Options {
    let defaults = meridian_consensus::Options::new(node, scratch.log());
    let log = LogOptions { segment_bytes: SEGMENT_BYTES, cache_bytes: LOG_CACHE_BYTES, ..defaults.log };
    meridian_consensus::Options { log, ..defaults }
}

/// The metadata plane as the copy sees it.
pub(super) struct Plane {
    topology: watch::Sender<Arc<Topology>>,
    /// What was told of fenced shards.
    fenced: watch::Sender<BTreeMap<(BucketId, ShardId), Remains>>,
    lease_ms: u64,
}

impl Plane {
    /// The cluster with nothing but the buckets that are rehearsed, in which the copy serves its region alone.
    fn new(real: &Topology, place: &Place, buckets: &[BucketId], lease_ms: u64) -> Plane {
        let mut topology = real.clone();
        topology.changes.clear();
        let here = |(region, _): &(RegionId, ShardId)| *region == place.region;
        topology.groups.iter_mut().filter(|(group, _)| here(group)).for_each(|(_, voters)| *voters = vec![place.node]);
        topology.buckets.retain(|id, _| buckets.contains(id));
        topology.bucket_ids.retain(|_, id| buckets.contains(id));
        Plane { topology: watch::Sender::new(Arc::new(topology)), fenced: watch::Sender::default(), lease_ms }
    }

    fn change(&self, change: impl Fn(&mut Bucket)) {
        self.topology.send_modify(|topology| {
            let topology = Arc::make_mut(topology);
            topology.index += 1;
            topology.buckets.values_mut().for_each(|bucket| change(Arc::make_mut(bucket)));
        });
    }

    /// The primaries are lost: what a failover puts on record first.
    pub(super) fn fence(&self, to: RegionId) {
        self.change(|bucket| {
            bucket.epoch = Epoch(bucket.epoch.0 + 1);
            bucket.phase = Phase::Fencing { plan: PLAN, to };
        });
    }

    /// What a failover puts on record in the end. A copy waits for no other region: there is none.
    pub(super) fn promote(&self, to: RegionId) {
        self.change(|bucket| {
            bucket.primary = Some(to);
            bucket.phase = Phase::Steady;
            bucket.regions = vec![to];
            bucket.policy = Policy::ASYNC;
        });
    }

    pub(super) fn fenced(&self) -> watch::Receiver<BTreeMap<(BucketId, ShardId), Remains>> {
        self.fenced.subscribe()
    }

    pub(super) fn buckets(&self) -> Vec<Arc<Bucket>> {
        self.topology.borrow().buckets.values().cloned().collect()
    }
}

impl Authority for Plane {
    fn topology(&self) -> Arc<Topology> {
        self.topology.borrow().clone()
    }

    fn topology_changes(&self) -> watch::Receiver<Arc<Topology>> {
        self.topology.subscribe()
    }

    fn lease_holds(&self) -> bool {
        true
    }

    fn lease_tenure_ms(&self) -> u64 {
        u64::MAX
    }

    fn tell(&self, word: Word) -> BoxFuture<'static, Result<(), Refusal>> {
        self.fenced.send_modify(|fenced| {
            for (shard, fact) in &word.facts {
                if let Fact::Fenced(remains) = fact {
                    fenced.insert((word.bucket, *shard), *remains);
                }
            }
        });
        std::future::ready(Ok(())).boxed()
    }

    fn tell_standing(&self, _: StandingWord) -> BoxFuture<'static, Result<(), Refusal>> {
        std::future::ready(Ok(())).boxed()
    }

    fn tell_moved(&self, _: BTreeSet<ShardId>, _: u64) -> BoxFuture<'static, Result<(), Refusal>> {
        std::future::ready(Ok(())).boxed()
    }

    fn lease_ttl_ms(&self) -> u64 {
        self.lease_ms
    }
}

/// There is no other node.
struct Nobody;

impl Nobody {
    fn silence() -> Failure {
        Failure::Broken(Refusal::new(RefusalKind::Unavailable, "a drill asks no other node"))
    }
}

impl Dial for Nobody {
    fn channel(&self, _: NodeId) -> Option<Channel> {
        None
    }
}

impl Neighbours for Nobody {
    fn ask<'a>(&'a self, _: NodeId, _: &'a Request) -> BoxFuture<'a, Result<Response, Failure>> {
        std::future::ready(Err(Nobody::silence())).boxed()
    }

    fn ask_repair(&self, _: NodeId, _: Bytes) -> BoxFuture<'_, Result<Bytes, Failure>> {
        std::future::ready(Err(Nobody::silence())).boxed()
    }
}

/// The node on the copy.
pub(super) struct Fork {
    pub(super) handle: Handle,
    pub(super) plane: Arc<Plane>,
    pub(super) consensus: Consensus,
}

impl Fork {
    /// Opens what was copied to `scratch`, with the service that is to be run meanwhile.
    ///
    /// # Errors
    /// When its log, its store or one of its groups can't be opened; nothing is left running then.
    pub(super) async fn open(node: &Node, scratch: &Scratch, buckets: &[BucketId]) -> Result<(Fork, Service), Refusal> {
        let dial = Arc::new(Nobody);
        let consensus =
            Consensus::open(log_options(node.place.node, scratch), dial).await.map_err(|why| failed(&why))?;
        let (voters, moved) = (vec![node.place.node], BTreeSet::new());
        let place = Place { voters, moved, dir: scratch.state(), ..node.place.clone() };
        let plane = Plane::new(&node.authority.topology(), &place, buckets, node.authority.lease_ttl_ms());
        let plane = Arc::new(plane);
        let options = Options { store: store_options(), ..node.options.clone() };
        let parts = Parts {
            groups: Arc::new(consensus.clone()),
            engine: None,
            authority: Arc::clone(&plane) as Arc<dyn Authority>,
            neighbours: Arc::new(Nobody),
            clock: Arc::clone(&node.clock),
            gauge: Arc::clone(&node.drills.gauge),
            vault: Some(Arc::new(Memory::default())),
            blocking: Blocking::Threads,
            witness: None,
        };
        match Service::open_unseen(place, options, parts).await {
            Ok((service, handle)) => Ok((Fork { handle, plane, consensus }, service)),
            Err(why) => {
                consensus.shutdown(GRACE).await;
                Err(failed(&why))
            }
        }
    }

    /// Ends its groups and releases its files.
    pub(super) async fn close(self) {
        self.consensus.shutdown(GRACE).await;
    }
}

fn failed(why: &dyn std::error::Error) -> Refusal {
    Refusal::new(RefusalKind::Internal, format!("the copy for the drill can't be opened: {}", chain(why)))
}
