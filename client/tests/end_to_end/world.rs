//! Nodes over real TLS on loopback, each with a gateway in front of fakes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use meridian_client::{Builder, Client, RetryPolicy, TlsMaterial};
use meridian_gateway::{Caller, Control, Digests, Gateway, Lags, Options};
use meridian_proto::dial;
use meridian_types::{
    Bucket, BucketDigest, BucketId, BucketLag, BucketName, BucketSpec, ClusterId, Epoch, Hlc, Labels, Lane, LaneState,
    LaneStatus, Lsn, Node, NodeId, NodeName, NodeStatus, Phase, Policy, Refusal, RefusalKind, Region, RegionId,
    RegionName, SetHash, ShardDigest, ShardId, Topology,
};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;

use crate::certificates::Authority;
use crate::store::{FakeStore, Truth};

pub(crate) const REGIONS: [&str; 2] = ["us-east", "eu-west"];

/// The cluster's metadata, shared by all nodes.
pub(crate) struct FakeControl {
    pub(crate) node: NodeId,
    pub(crate) region: RegionId,
    pub(crate) topology: Arc<Mutex<Topology>>,
    pub(crate) done: Mutex<Vec<(String, Caller)>>,
}

pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) store: Arc<FakeStore>,
    pub(crate) control: Arc<FakeControl>,
    pub(crate) gateway: Gateway<FakeStore, FakeControl>,
    serving: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A CA, and the nodes of its cluster.
pub(crate) struct World {
    pub(crate) authority: Authority,
    pub(crate) truth: Arc<Mutex<Truth>>,
    pub(crate) topology: Arc<Mutex<Topology>>,
    pub(crate) servers: Vec<Server>,
}

impl World {
    /// One node per region: the first region is the primary's.
    pub(crate) async fn new(regions: usize) -> anyhow::Result<World> {
        World::with(regions, Options::default()).await
    }

    pub(crate) async fn with(regions: usize, options: Options) -> anyhow::Result<World> {
        let authority = Authority::new()?;
        let mut world = World {
            authority,
            truth: Arc::default(),
            topology: Arc::new(Mutex::new(first_topology()?)),
            servers: Vec::new(),
        };
        for _ in 0..regions {
            world.start(options.clone()).await?;
        }
        Ok(world)
    }

    async fn start(&mut self, options: Options) -> anyhow::Result<()> {
        let region = RegionId(self.servers.len() as u16 + 1);
        let region_name = REGIONS[self.servers.len()];
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let name = NodeName::new(&format!("{region_name}-1"))?;
        let id = NodeId::of(&name);
        let node = Node {
            id,
            name,
            region,
            zone: "a".to_owned(),
            rpc_address: address.clone(),
            replication_address: address.clone(),
            version: "test".to_owned(),
        };
        self.topology.lock().unwrap().nodes.insert(id, node);
        let store = Arc::new(FakeStore::new(Arc::clone(&self.truth), region));
        let control = FakeControl { node: id, region, topology: Arc::clone(&self.topology), done: Mutex::default() };
        let control = Arc::new(control);
        let tls = self.authority.material(&format!("meridian://node/{region_name}/{region_name}-1"))?;
        let gateway = Gateway::new(options, Arc::clone(&store), Arc::clone(&control));
        let serving = tokio::spawn(serve(listener, tls, gateway.clone()));
        self.servers.push(Server { address: format!("https://{address}"), store, control, gateway, serving });
        Ok(())
    }

    /// A builder for a client that knows the given nodes, with pauses short enough for a test.
    pub(crate) fn builder(&self, servers: &[usize]) -> anyhow::Result<Builder> {
        let retry = RetryPolicy { pause_max: Duration::from_millis(50), ..RetryPolicy::default() };
        Ok(Client::builder()
            .endpoints(servers.iter().map(|server| self.servers[*server].address.clone()))
            .tls(self.authority.client()?)
            .retry(retry))
    }

    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        Ok(self.builder(&[0])?.connect().await?)
    }
}

async fn serve(listener: TcpListener, tls: TlsMaterial, gateway: Gateway<FakeStore, FakeControl>) {
    let mut server = dial::server(&tls).unwrap();
    let router =
        server.add_service(gateway.key_value()).add_service(gateway.forward_peer()).add_service(gateway.cluster());
    router.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
}

fn first_topology() -> anyhow::Result<Topology> {
    let mut topology = Topology { index: 7, cluster: Some(ClusterId(42)), shards: 16, ..Topology::default() };
    for (number, name) in REGIONS.iter().enumerate() {
        let id = RegionId(number as u16 + 1);
        topology.regions.insert(id, Region { id, name: RegionName::new(name)? });
    }
    add_bucket(&mut topology, "orders", Policy::Async, Labels::new());
    Ok(topology)
}

fn add_bucket(topology: &mut Topology, name: &str, policy: Policy, labels: Labels) -> Arc<Bucket> {
    let name = BucketName::new(name).unwrap();
    let id = BucketId(topology.last_bucket.0 + 1);
    topology.last_bucket = id;
    topology.index += 1;
    topology.bucket_ids.insert(name.clone(), id);
    let bucket = Arc::new(Bucket {
        id,
        name,
        policy,
        epoch: Epoch(3),
        phase: Phase::Steady,
        primary: policy.has_primary().then_some(RegionId(1)),
        regions: topology.regions.keys().copied().collect(),
        labels,
        created: Hlc::from_millis(1),
    });
    topology.buckets.insert(id, Arc::clone(&bucket));
    bucket
}

fn unknown(name: &BucketName) -> Refusal {
    Refusal::new(RefusalKind::NotFound, format!("no bucket `{name}`: create it with `meridian bucket create`"))
}

impl FakeControl {
    fn note(&self, what: &str, caller: Caller) {
        self.done.lock().unwrap().push((what.to_owned(), caller));
    }
}

impl Control for FakeControl {
    fn node(&self) -> NodeId {
        self.node
    }

    fn topology(&self) -> Arc<Topology> {
        Arc::new(self.topology.lock().unwrap().clone())
    }

    async fn create_bucket(&self, spec: BucketSpec, dry_run: bool, caller: Caller) -> Result<Bucket, Refusal> {
        self.note("create", caller);
        let mut topology = self.topology.lock().unwrap();
        if topology.bucket_ids.contains_key(&spec.name) {
            return Err(Refusal::new(RefusalKind::Exists, format!("the bucket `{}` exists already", spec.name)));
        }
        let mut scratch = topology.clone();
        let bucket = add_bucket(&mut scratch, spec.name.as_str(), spec.policy, spec.labels);
        if !dry_run {
            *topology = scratch;
        }
        Ok(bucket.as_ref().clone())
    }

    async fn delete_bucket(&self, name: BucketName, dry_run: bool, caller: Caller) -> Result<(), Refusal> {
        self.note("delete", caller);
        let mut topology = self.topology.lock().unwrap();
        let id = *topology.bucket_ids.get(&name).ok_or_else(|| unknown(&name))?;
        if !dry_run {
            topology.bucket_ids.remove(&name);
            topology.buckets.remove(&id);
            topology.index += 1;
        }
        Ok(())
    }

    async fn set_labels(
        &self,
        name: BucketName,
        set: Labels,
        remove: Vec<String>,
        caller: Caller,
    ) -> Result<Bucket, Refusal> {
        self.note("set-labels", caller);
        let mut topology = self.topology.lock().unwrap();
        let id = *topology.bucket_ids.get(&name).ok_or_else(|| unknown(&name))?;
        let mut bucket = topology.buckets[&id].as_ref().clone();
        bucket.labels.extend(set);
        bucket.labels.retain(|label, _| !remove.contains(label));
        topology.buckets.insert(id, Arc::new(bucket.clone()));
        Ok(bucket)
    }

    async fn digests(&self, bucket: Option<BucketName>) -> Result<Digests, Refusal> {
        if let Some(name) = bucket
            && !self.topology.lock().unwrap().bucket_ids.contains_key(&name)
        {
            return Err(unknown(&name));
        }
        let mut digest = BucketDigest { hash: SetHash(7), keys: 3, ..BucketDigest::default() };
        digest.positions.raise(RegionId(1), Lsn(12));
        let row = ShardDigest { bucket: BucketId(1), shard: ShardId(4), digest, diverged: false };
        Ok(Digests { region: self.region, rows: vec![row] })
    }

    async fn lag(&self, _: Option<BucketName>) -> Result<Lags, Refusal> {
        let lag = BucketLag { bucket: BucketId(1), target: RegionId(2), lag_ms: 40, ..BucketLag::default() };
        let lane = LaneStatus {
            shard: ShardId(1),
            target: RegionId(2),
            lane: Lane::Async,
            head: Lsn(9),
            sent: Lsn(8),
            acked: Lsn(7),
            state: LaneState::BehindLog { watermark: Lsn(1), oldest: Lsn(3) },
            raw_bytes: 10,
            wire_bytes: 5,
            frames: 2,
            entries: 4,
        };
        Ok(Lags { region: self.region, buckets: vec![lag], lanes: vec![lane] })
    }

    async fn node_status(&self) -> Result<NodeStatus, Refusal> {
        Ok(NodeStatus { node: self.node, region: self.region, uptime_ms: 5, ..NodeStatus::default() })
    }
}

pub(crate) fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>()
}
