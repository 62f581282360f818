//! A world to replicate in: certificates, a topology, logs and sinks in memory.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::future::BoxFuture;
use meridian_replicator_quic::{
    Head, LogSink, LogSource, Options, Parts, Service, SinkError, Tail, TailEntry, TailError, TlsPem,
};
use meridian_types::entry::{Body, Header, Kind, WriteBody};
use meridian_types::frame::{Echo, Frame};
use meridian_types::{
    Acks, Bucket, BucketId, BucketName, ClientId, ClusterId, Epoch, Hlc, Key, Lack, Lane, Lsn, Node, NodeId, NodeName,
    Phase, Policy, Region, RegionId, RegionName, RequestId, ShardId, Topology, Value, Write,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use tokio::sync::watch;

pub(crate) const ASYNC: BucketId = BucketId(1);
pub(crate) const SYNC: BucketId = BucketId(2);
const NAMES: [&str; 3] = ["us-east", "eu-west", "ap-south"];

/// Signs certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub(crate) fn new() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    pub(crate) fn node(&self, region: &str, node: &str) -> TlsPem {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["meridian".to_owned()]).unwrap();
        let uri = format!("meridian://node/{region}/{node}");
        params.subject_alt_names.push(SanType::URI(uri.as_str().try_into().unwrap()));
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        TlsPem {
            ca: self.pem.clone().into_bytes(),
            cert: cert.pem().into_bytes(),
            key: key.serialize_pem().into_bytes(),
        }
    }
}

pub(crate) fn region_name(region: u16) -> RegionName {
    RegionName::new(NAMES[usize::from(region) - 1]).unwrap()
}

pub(crate) fn node_name(region: u16) -> NodeName {
    NodeName::new(&format!("{}-1", NAMES[usize::from(region) - 1])).unwrap()
}

pub(crate) fn node_id(region: u16) -> NodeId {
    NodeId::of(&node_name(region))
}

/// `regions` regions of one node each, an async and a sync bucket everywhere, written in region 1.
pub(crate) fn topology(regions: u16, shards: u16) -> Topology {
    let mut topology = Topology { index: 1, cluster: Some(ClusterId(7)), shards, ..Topology::default() };
    let all: Vec<_> = (1..=regions).map(RegionId).collect();
    for region in 1..=regions {
        let id = RegionId(region);
        topology.regions.insert(id, Region { id, name: region_name(region) });
        let node = Node {
            id: node_id(region),
            name: node_name(region),
            region: id,
            zone: "a".to_owned(),
            rpc_address: String::new(),
            replication_address: String::new(),
            version: "0".to_owned(),
        };
        topology.nodes.insert(node.id, node);
        for shard in 0..shards {
            topology.groups.insert((id, ShardId(shard)), vec![node_id(region)]);
        }
    }
    for (id, name, policy) in [(ASYNC, "lazy", Policy::ASYNC), (SYNC, "eager", Policy::sync(Acks::Majority))] {
        let name = BucketName::new(name).unwrap();
        topology.bucket_ids.insert(name.clone(), id);
        let bucket = Bucket {
            id,
            name,
            policy,
            epoch: Epoch(1),
            phase: Phase::Steady,
            primary: Some(RegionId(1)),
            regions: all.clone(),
            labels: BTreeMap::new(),
            created: Hlc(0),
            standing: Default::default(),
            auto: Default::default(),
            turns: Default::default(),
            joins: Default::default(),
            crossing: None,
        };
        topology.buckets.insert(id, Arc::new(bucket));
    }
    topology.last_bucket = SYNC;
    topology
}

/// An entry of region 1's log whose value has `bytes` bytes that do not compress.
pub(crate) fn entry(lsn: u64, bucket: BucketId, bytes: usize) -> Bytes {
    let mut seed = lsn.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let value: Vec<u8> = std::iter::repeat_with(|| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed.to_le_bytes()
    })
    .flatten()
    .take(bytes)
    .collect();
    let header = Header {
        kind: Kind::Write,
        origin: RegionId(1),
        bucket,
        epoch: Epoch(1),
        hlc: Hlc(Hlc::from_millis(wall_ms()).0 + lsn % 60_000),
        id: RequestId { client: ClientId(1), sequence: lsn },
        lowest_outstanding: 0,
    };
    let write =
        Write::Put { key: Key::new(format!("key-{lsn}")).unwrap(), value: Value::new(value).unwrap(), ttl_ms: None };
    header.encode(&Body::Write(WriteBody::Plain(write)))
}

fn wall_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// A region's logs in memory. Survives restarts of the replicator, as a disk would.
pub(crate) struct MemoryLog {
    shards: Vec<Mutex<Vec<Bytes>>>,
    heads: Vec<watch::Sender<Option<Head>>>,
    pub(crate) acked: Mutex<BTreeMap<(ShardId, Lane, RegionId), Lsn>>,
    /// Repairs that ended.
    pub(crate) mended: watch::Sender<u64>,
}

impl MemoryLog {
    pub(crate) fn new(shards: u16) -> Arc<MemoryLog> {
        Arc::new(MemoryLog {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            heads: (0..shards).map(|_| watch::Sender::new(Some(Head::default()))).collect(),
            acked: Mutex::default(),
            mended: watch::Sender::default(),
        })
    }

    /// Appends entries to a shard and shows them.
    pub(crate) fn append(&self, shard: u16, entries: impl IntoIterator<Item = Bytes>) {
        let mut log = self.shards[usize::from(shard)].lock().unwrap();
        log.extend(entries);
        let lsn = Lsn(log.len() as u64);
        self.heads[usize::from(shard)].send_modify(|head| {
            let head = head.get_or_insert_default();
            *head = Head { lsn, closed: Hlc::from_millis(wall_ms()), ..*head };
        });
    }

    /// Nothing is led any more.
    pub(crate) fn step_down(&self) {
        for head in &self.heads {
            head.send_replace(None);
        }
    }

    /// Another leadership begins in every shard, right after the last one, of a leader that knows the log up to there.
    pub(crate) fn lead_anew(&self, lsn: Lsn) {
        for head in &self.heads {
            head.send_modify(|head| {
                let head = head.get_or_insert_default();
                *head = Head { lsn, closed: Hlc::from_millis(wall_ms()), tenure: head.tenure + 1 };
            });
        }
    }

    /// The entries of a bucket, with their positions.
    pub(crate) fn of_bucket(&self, shard: u16, bucket: BucketId) -> Vec<(Lsn, Bytes)> {
        let log = self.shards[usize::from(shard)].lock().unwrap();
        let all = log.iter().enumerate().map(|(at, entry)| (Lsn(at as u64 + 1), entry.clone()));
        all.filter(|(_, entry)| Header::decode(entry).unwrap().bucket == bucket).collect()
    }
}

impl LogSource for MemoryLog {
    fn head(&self, shard: ShardId) -> watch::Receiver<Option<Head>> {
        self.heads[usize::from(shard.0)].subscribe()
    }

    fn mended(&self, _: ShardId) -> watch::Receiver<u64> {
        self.mended.subscribe()
    }

    fn read(&self, shard: ShardId, after: Lsn, max_bytes: usize) -> BoxFuture<'_, Result<Tail, TailError>> {
        let log = self.shards[usize::from(shard.0)].lock().unwrap();
        let (mut entries, mut bytes, mut reached) = (Vec::new(), 0, after);
        for entry in log.iter().skip(usize::try_from(after.0).unwrap()) {
            if bytes > 0 && bytes + entry.len() > max_bytes {
                break;
            }
            bytes += entry.len();
            reached = Lsn(reached.0 + 1);
            entries.push(TailEntry { lsn: reached, entry: entry.clone(), note: None });
        }
        let at_head = reached.0 == log.len() as u64;
        let closed = if at_head { Hlc::from_millis(wall_ms()) } else { Hlc(0) };
        Box::pin(async move { Ok(Tail { entries, reached, at_head, closed, tenured: true }) })
    }

    fn acknowledged(&self, shard: ShardId, lane: Lane, target: RegionId, lsn: Lsn) {
        self.acked.lock().unwrap().insert((shard, lane, target), lsn);
    }

    fn counters(&self, shard: ShardId, bucket: BucketId) -> (u64, u64) {
        let of_bucket = self.of_bucket(shard.0, bucket);
        (of_bucket.len() as u64, of_bucket.iter().map(|(_, entry)| entry.len() as u64).sum())
    }
}

/// What a lane has brought.
#[derive(Default)]
pub(crate) struct Applied {
    pub(crate) watermark: Lsn,
    pub(crate) entries: Vec<(Lsn, Bytes)>,
    pub(crate) complete: Option<(u64, Lsn)>,
    pub(crate) frames: u64,
}

/// A region's groups in memory. Survives restarts of the replicator, as a disk would.
pub(crate) struct MemorySink {
    pub(crate) lanes: Mutex<BTreeMap<(RegionId, ShardId, Lane), Applied>>,
    /// Whether to keep what was applied.
    keeps: bool,
    /// Answers the next frames so, if set.
    pub(crate) failure: Mutex<Option<SinkError>>,
    /// Says so when it is asked whether it leads.
    pub(crate) deposed: Mutex<Option<SinkError>>,
    /// How far this region's clock is behind, in milliseconds.
    pub(crate) clock_behind_ms: Mutex<u64>,
    started: Instant,
    pub(crate) bytes: std::sync::atomic::AtomicU64,
    /// What sources last said is lacking here.
    pub(crate) exposed: Mutex<BTreeMap<(RegionId, ShardId, BucketId), Lack>>,
}

impl MemorySink {
    pub(crate) fn new(keeps: bool) -> Arc<MemorySink> {
        Arc::new(MemorySink {
            lanes: Mutex::default(),
            keeps,
            deposed: Mutex::default(),
            failure: Mutex::default(),
            clock_behind_ms: Mutex::default(),
            started: Instant::now(),
            bytes: Default::default(),
            exposed: Mutex::default(),
        })
    }

    pub(crate) fn entries(&self, source: u16, shard: u16, lane: Lane) -> Vec<(Lsn, Bytes)> {
        let lanes = self.lanes.lock().unwrap();
        lanes.get(&(RegionId(source), ShardId(shard), lane)).map(|lane| lane.entries.clone()).unwrap_or_default()
    }

    pub(crate) fn complete(&self, source: u16, shard: u16, lane: Lane) -> Option<(u64, Lsn)> {
        self.lanes.lock().unwrap().get(&(RegionId(source), ShardId(shard), lane)).and_then(|lane| lane.complete)
    }

    fn take(&self, bytes: &Bytes) -> Result<Lsn, SinkError> {
        if let Some(failure) = self.failure.lock().unwrap().clone() {
            return Err(failure);
        }
        let frame = Frame::decode(bytes).map_err(|why| SinkError::Unavailable(why.to_string()))?;
        let header = frame.header;
        let mut lanes = self.lanes.lock().unwrap();
        let lane = lanes.entry((header.source, header.shard, header.lane)).or_default();
        if header.last <= lane.watermark {
            return Ok(lane.watermark);
        }
        if header.previous != lane.watermark {
            return Err(SinkError::Rewind { watermark: lane.watermark });
        }
        let raw: usize = frame.entries.iter().map(|(_, entry)| entry.len()).sum();
        self.bytes.fetch_add(raw as u64, std::sync::atomic::Ordering::Relaxed);
        lane.watermark = header.last;
        lane.frames += 1;
        if self.keeps {
            lane.entries.extend(frame.entries);
        }
        Ok(lane.watermark)
    }
}

impl LogSink for MemorySink {
    fn watermark(&self, source: RegionId, shard: ShardId, lane: Lane) -> BoxFuture<'_, Result<Lsn, SinkError>> {
        let lanes = self.lanes.lock().unwrap();
        let watermark = lanes.get(&(source, shard, lane)).map(|lane| lane.watermark).unwrap_or_default();
        Box::pin(async move { Ok(watermark) })
    }

    fn apply(&self, frame: Bytes) -> BoxFuture<'static, Result<Lsn, SinkError>> {
        let answer = self.take(&frame);
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            answer
        })
    }

    fn complete(&self, source: RegionId, shard: ShardId, lane: Lane, echo: Echo, last: Lsn) {
        self.lanes.lock().unwrap().entry((source, shard, lane)).or_default().complete = Some((echo.probe, last));
    }

    fn exposed(&self, source: RegionId, shard: ShardId, _: Lane, said: &[Lack]) {
        let mut exposed = self.exposed.lock().unwrap();
        exposed.extend(said.iter().map(|lack| ((source, shard, lack.bucket), lack.clone())));
    }

    fn deposed(&self, _: ShardId) -> Option<SinkError> {
        self.deposed.lock().unwrap().clone()
    }

    fn monotonic_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap() + 1
    }

    fn hlc_beside(&self, _: Hlc) -> Hlc {
        Hlc::from_millis(wall_ms() - *self.clock_behind_ms.lock().unwrap())
    }
}

/// What is needed to start a node's replicator, again and again.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) region: u16,
    pub(crate) tls: TlsPem,
    pub(crate) log: Arc<MemoryLog>,
    pub(crate) sink: Arc<MemorySink>,
    pub(crate) topology: watch::Receiver<Arc<Topology>>,
    pub(crate) addresses: Arc<Mutex<BTreeMap<NodeId, SocketAddr>>>,
}

/// A running replicator.
pub(crate) struct Running {
    pub(crate) handle: meridian_replicator_quic::Handle,
    task: tokio::task::JoinHandle<Result<(), meridian_replicator_quic::Error>>,
}

impl Place {
    /// Starts it on a port of its own; the others find it there unless told otherwise.
    pub(crate) fn start(&self, change: impl FnOnce(&mut Options)) -> Running {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut options = Options::new(node_name(self.region), region_name(self.region), listen);
        options.transport.idle_timeout_ms = 1_000;
        change(&mut options);
        let addresses = Arc::clone(&self.addresses);
        let parts = Parts {
            source: Arc::clone(&self.log) as Arc<dyn LogSource>,
            sink: Arc::clone(&self.sink) as Arc<dyn LogSink>,
            topology: self.topology.clone(),
            addresses: Arc::new(move |node: NodeId| addresses.lock().unwrap().get(&node).copied()),
            tls: self.tls.clone(),
        };
        let service = Service::bind(options, parts).unwrap();
        let handle = service.handle();
        self.addresses.lock().unwrap().insert(node_id(self.region), handle.local_address());
        Running { handle, task: tokio::spawn(service.run()) }
    }
}

impl Running {
    pub(crate) async fn stop(self) {
        self.handle.stop();
        self.task.await.unwrap().unwrap();
    }
}

/// Far beyond what a busy machine needs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds; fails the test with `what` if it takes longer than [`PATIENCE`].
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
