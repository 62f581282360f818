//! Regions in one process, and the hands that carry frames between them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use meridian_consensus::{Consensus, StartError, StateMachine};
use meridian_proto::convert::{forwarded_from_proto, response_to_proto, status_of_refusal};
use meridian_proto::dial::Dial;
use meridian_proto::v1;
use meridian_proto::v1::forward_peer_server::{ForwardPeer, ForwardPeerServer};
use meridian_proto::v1::region_peer_server::{RegionPeer, RegionPeerServer};
use meridian_region_node::{
    Authority, Caller, Clock, FrameRefusal, Gauge, Groups, Handle, Options, Parts, Place, Service, ShardGroup, Space,
    StoreOptions, Tail, TailError,
};
use meridian_types::entry::Header;
use meridian_types::frame::{Echo, FrameHeader, encode};
use meridian_types::*;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Channel, Endpoint, Server};

pub const A: RegionId = RegionId(1);
pub const B: RegionId = RegionId(2);
pub const SHARDS: u16 = 2;

/// Far beyond what a busy machine needs.
const PATIENT_MS: u32 = 30_000;

/// For what comes by itself.
const PATIENCE: Duration = Duration::from_secs(60);

pub const ASYNC: &str = "async";
pub const SYNC: &str = "sync";
pub const ACTIVE: &str = "active";

/// The cluster as the metadata plane would tell it: regions 1 and 2, three buckets.
pub fn topology() -> Topology {
    let mut topology = Topology { index: 1, shards: SHARDS, ..Topology::default() };
    for (id, name) in [(A, "us-east"), (B, "eu-west")] {
        topology.regions.insert(id, Region { id, name: RegionName::new(name).unwrap() });
        for shard in 0..SHARDS {
            topology.groups.insert((id, ShardId(shard)), vec![node_of(id)]);
        }
    }
    add_bucket(&mut topology, ASYNC, Policy::ASYNC, Some(A));
    add_bucket(&mut topology, SYNC, Policy::sync(Acks::One), Some(A));
    add_bucket(&mut topology, ACTIVE, Policy::ActiveActive, None);
    topology
}

pub fn add_bucket(topology: &mut Topology, name: &str, policy: Policy, primary: Option<RegionId>) {
    let id = BucketId(topology.last_bucket.0 + 1);
    let name = BucketName::new(name).unwrap();
    topology.last_bucket = id;
    topology.index += 1;
    topology.bucket_ids.insert(name.clone(), id);
    let bucket = Bucket {
        id,
        name,
        policy,
        epoch: Epoch(1),
        phase: Phase::Steady,
        primary,
        regions: vec![A, B],
        labels: BTreeMap::new(),
        created: Hlc(1),
        standing: Default::default(),
        auto: Default::default(),
        turns: Default::default(),
        joins: Default::default(),
        crossing: None,
    };
    topology.buckets.insert(id, Arc::new(bucket));
}

pub fn node_of(region: RegionId) -> NodeId {
    NodeId(u64::from(region.0) * 100)
}

/// What the metadata plane says; told by the test.
pub struct Plane {
    topology: watch::Sender<Arc<Topology>>,
    lease: Mutex<Option<Instant>>,
    told: Mutex<Vec<Word>>,
    /// Each with the region that said it.
    standings: Mutex<Vec<(RegionId, StandingWord)>>,
}

/// How long leases last.
pub const LEASE_TTL_MS: u64 = 400;

impl Plane {
    pub fn new() -> Arc<Plane> {
        let far = Instant::now() + Duration::from_secs(3600);
        Arc::new(Plane {
            topology: watch::Sender::new(Arc::new(topology())),
            lease: Mutex::new(Some(far)),
            told: Mutex::default(),
            standings: Mutex::default(),
        })
    }

    pub fn topology(&self) -> Arc<Topology> {
        self.topology.borrow().clone()
    }

    pub fn leased(&self) -> bool {
        self.lease.lock().unwrap().is_some_and(|until| Instant::now() < until)
    }

    /// Returns the one before.
    pub fn set_lease(&self, lease: Option<Instant>) -> Option<Instant> {
        std::mem::replace(&mut *self.lease.lock().unwrap(), lease)
    }

    pub fn change(&self, change: impl FnOnce(&mut Topology)) {
        self.topology.send_modify(|topology| {
            let topology = Arc::make_mut(topology);
            topology.index += 1;
            change(topology);
        });
    }

    /// Puts a bucket into another phase, as the metadata plane does.
    pub fn turn(&self, name: &str, turn: impl FnOnce(&mut Bucket)) {
        self.change(|topology| {
            let id = topology.bucket_named(name).unwrap().id;
            turn(Arc::make_mut(topology.buckets.get_mut(&id).unwrap()));
        });
    }

    /// What nodes told the metadata plane, by shard; the last word counts.
    pub fn told(&self, bucket: BucketId) -> Vec<(ShardId, Fact)> {
        let told = self.told.lock().unwrap();
        told.iter().filter(|word| word.bucket == bucket).flat_map(|word| word.facts.clone()).collect()
    }

    /// What nodes told the metadata plane of copies of a bucket in its present stretch, if anything: the last word counts.
    pub fn copies(&self, name: &str) -> Option<Copies> {
        let bucket = self.bucket(name);
        let told = self.standings.lock().unwrap();
        let of = |word: &StandingWord| word.bucket == bucket.id && word.since == bucket.standing.since();
        told.iter().rev().find(|(_, word)| of(word)).map(|(_, word)| word.copies.clone())
    }

    /// Everything that a region told the metadata plane of copies of a bucket in its present epoch.
    pub fn said_by(&self, region: RegionId, name: &str) -> Vec<Copies> {
        let bucket = self.bucket(name);
        let told = self.standings.lock().unwrap();
        let of = |word: &StandingWord| word.bucket == bucket.id && word.epoch == bucket.epoch;
        told.iter().filter(|(by, word)| *by == region && of(word)).map(|(_, word)| word.copies.clone()).collect()
    }

    pub fn bucket(&self, name: &str) -> Arc<Bucket> {
        self.topology.borrow().bucket_named(name).unwrap().clone()
    }
}

/// A node's way to it.
struct Voice {
    plane: Arc<Plane>,
    region: RegionId,
}

impl Authority for Voice {
    fn topology(&self) -> Arc<Topology> {
        self.plane.topology()
    }

    fn topology_changes(&self) -> watch::Receiver<Arc<Topology>> {
        self.plane.topology.subscribe()
    }

    fn lease_holds(&self) -> bool {
        self.plane.leased()
    }

    fn lease_tenure_ms(&self) -> u64 {
        if self.lease_holds() { u64::MAX } else { 0 }
    }

    fn tell(&self, word: Word) -> BoxFuture<'static, Result<(), Refusal>> {
        self.plane.told.lock().unwrap().push(word);
        Box::pin(async { Ok(()) })
    }

    fn tell_standing(&self, word: StandingWord) -> BoxFuture<'static, Result<(), Refusal>> {
        self.plane.standings.lock().unwrap().push((self.region, word));
        Box::pin(async { Ok(()) })
    }

    fn tell_moved(&self, _: BTreeSet<ShardId>, _: u64) -> BoxFuture<'static, Result<(), Refusal>> {
        Box::pin(async { Ok(()) })
    }

    fn lease_ttl_ms(&self) -> u64 {
        LEASE_TTL_MS
    }
}

/// A clock that moves when told.
pub struct Hands {
    wall_ms: AtomicU64,
    monotonic_ms: AtomicU64,
}

impl Hands {
    pub fn advance(&self, ms: u64) {
        self.wall_ms.fetch_add(ms, Ordering::SeqCst);
        self.monotonic_ms.fetch_add(ms, Ordering::SeqCst);
    }

    pub fn set_wall(&self, ms: u64) {
        self.wall_ms.store(ms, Ordering::SeqCst);
    }
}

impl Clock for Hands {
    fn wall_ms(&self) -> u64 {
        self.wall_ms.load(Ordering::SeqCst)
    }

    fn monotonic_ms(&self) -> u64 {
        self.monotonic_ms.load(Ordering::SeqCst)
    }

    fn wall_beside_ms(&self, _: u64) -> u64 {
        self.wall_ms()
    }
}

/// A disk with as much space as told.
pub struct Disk(pub AtomicU64);

impl Gauge for Disk {
    fn space(&self, _: &Path) -> io::Result<Space> {
        Ok(Space { free_bytes: self.0.load(Ordering::SeqCst), total_bytes: 1 << 40 })
    }
}

/// The groups of a node, on a disk that hangs when it is told to.
pub struct Log {
    consensus: Consensus,
    /// For how long, in milliseconds.
    pub stalled_ms: AtomicU64,
}

impl Groups for Log {
    fn start<'a>(
        &'a self,
        group: GroupId,
        voters: &'a [NodeId],
        machine: Box<dyn StateMachine>,
    ) -> BoxFuture<'a, Result<Arc<dyn ShardGroup>, StartError>> {
        Groups::start(&self.consensus, group, voters, machine)
    }

    fn stalled(&self) -> Option<Duration> {
        Some(Duration::from_millis(self.stalled_ms.load(Ordering::SeqCst))).filter(|age| !age.is_zero())
    }
}

/// Where other nodes listen, once they do.
#[derive(Default)]
pub struct Addresses(Mutex<BTreeMap<NodeId, SocketAddr>>);

impl Dial for Addresses {
    fn channel(&self, node: NodeId) -> Option<Channel> {
        let address = *self.0.lock().unwrap().get(&node)?;
        Some(Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy())
    }
}

/// One region with one node.
pub struct RegionUnderTest {
    pub id: RegionId,
    pub dir: PathBuf,
    pub handle: Handle,
    pub plane: Arc<Plane>,
    pub clock: Arc<Hands>,
    pub disk: Arc<Disk>,
    pub log: Arc<Log>,
    pub addresses: Arc<Addresses>,
    consensus: Consensus,
    stop: Option<oneshot::Sender<()>>,
    service: JoinHandle<Result<(), meridian_region_node::Error>>,
}

pub fn options() -> Options {
    Options {
        store: StoreOptions { cache_bytes: 4 << 20, write_buffer_bytes: 4 << 20, ..StoreOptions::default() },
        expiry_every_ms: 20,
        ..Options::default()
    }
}

impl RegionUnderTest {
    pub async fn start(dir: &Path, id: RegionId, plane: &Arc<Plane>) -> RegionUnderTest {
        RegionUnderTest::start_with(dir, id, plane, options()).await
    }

    pub async fn start_with(dir: &Path, id: RegionId, plane: &Arc<Plane>, options: Options) -> RegionUnderTest {
        let addresses = Arc::new(Addresses::default());
        let node = node_of(id);
        let mut log = meridian_consensus::Options::new(node, dir.join("log"));
        // Soon enough for tests in which the log is purged.
        log.persist_every = Duration::from_secs(1);
        let consensus = Consensus::open(log, addresses.clone()).await.unwrap();
        let log = Arc::new(Log { consensus: consensus.clone(), stalled_ms: AtomicU64::new(0) });
        let clock = Arc::new(Hands { wall_ms: AtomicU64::new(1_790_000_000_000), monotonic_ms: AtomicU64::new(1000) });
        let disk = Arc::new(Disk(AtomicU64::new(1 << 39)));
        let (voters, moved) = (vec![node], BTreeSet::new());
        let place = Place { region: id, node, shards: SHARDS, voters, moved, dir: dir.join("state") };
        let parts = Parts {
            groups: log.clone(),
            clock: clock.clone(),
            gauge: disk.clone(),
            ..Parts::new(consensus.clone(), Arc::new(Voice { plane: plane.clone(), region: id }), addresses.clone())
        };
        let (service, handle) = Service::open(place, options, parts).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let service = tokio::spawn(service.run(async move {
            let _ = stopped.await;
        }));
        let region = RegionUnderTest {
            id,
            dir: dir.to_owned(),
            handle,
            plane: plane.clone(),
            clock,
            disk,
            log,
            addresses,
            consensus,
            stop: Some(stop),
            service,
        };
        eventually("the shards have a leader", async || region.handle.shards().0 == u32::from(SHARDS)).await;
        region
    }

    pub async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.service.await.unwrap().unwrap();
        self.consensus.shutdown(Duration::from_secs(5)).await;
    }

    /// The files as a crash would leave them now: state first, so that the log is never behind it.
    pub fn image_of_crash(&self, to: &Path) {
        copy_live(&self.dir, to, &["state", "log"]);
    }

    pub async fn execute(&self, request: Request) -> Result<Response, Refusal> {
        self.handle.execute(request, Caller::Client).await
    }

    pub async fn write(&self, bucket: &str, write: Write) -> Result<Response, Refusal> {
        self.execute(write_request(bucket, write)).await
    }

    pub async fn put(&self, bucket: &str, name: &str, value: &str) -> Result<Response, Refusal> {
        self.write(bucket, put(name, value)).await
    }

    pub async fn read(&self, bucket: &str, name: &str, level: ReadLevel) -> Result<Response, Refusal> {
        self.execute(read_request(bucket, Read::Get { key: key(name) }, level)).await
    }

    pub async fn value(&self, bucket: &str, name: &str, level: ReadLevel) -> Option<String> {
        text(self.read(bucket, name, level).await.unwrap())
    }

    /// Serves what other nodes forward here.
    pub async fn listen(&self, peer: &RegionUnderTest) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let front = || Front { handle: self.handle.clone(), caller: peer.id };
        let server = Server::builder()
            .add_service(ForwardPeerServer::new(front()))
            .add_service(RegionPeerServer::new(front()).max_encoding_message_size(16 << 20));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        peer.addresses.0.lock().unwrap().insert(node_of(self.id), address);
    }
}

/// Copies these directories of a node that runs, one after the other. It may rename and remove files meanwhile: then all are copied
/// anew, for no crash leaves half of that behind.
pub fn copy_live(from: &Path, to: &Path, parts: &[&str]) {
    let until = Instant::now() + PATIENCE;
    let copy = || -> io::Result<bool> {
        let all = || parts.iter().map(|part| files(&from.join(part))).collect::<io::Result<Vec<_>>>();
        let before = all()?;
        parts.iter().try_for_each(|part| copy_dir(&from.join(part), &to.join(part)))?;
        Ok(all()? == before)
    };
    loop {
        let copied = copy();
        if matches!(copied, Ok(true)) {
            return;
        }
        assert!(Instant::now() < until, "files come and go all the time: {copied:?}");
        parts.iter().for_each(|part| drop(std::fs::remove_dir_all(to.join(part))));
    }
}

fn copy_dir(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_dir(&entry.path(), &target)?,
            false => drop(std::fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}

/// The paths of all files in a directory.
fn files(dir: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => found.append(&mut files(&entry.path())?),
            false => drop(found.insert(entry.path())),
        }
    }
    Ok(found)
}

/// The gateway's place: every request of a stream answered by the node.
struct Front {
    handle: Handle,
    caller: RegionId,
}

#[tonic::async_trait]
impl RegionPeer for Front {
    async fn repair(
        &self,
        request: tonic::Request<v1::RepairAsk>,
    ) -> Result<tonic::Response<v1::RepairTold>, tonic::Status> {
        let told = self.handle.answer_repair(self.caller, &request.into_inner().ask).await;
        let told = told.map_err(status_of_refusal)?;
        Ok(tonic::Response::new(v1::RepairTold { told }))
    }
}

#[tonic::async_trait]
impl ForwardPeer for Front {
    type ExchangeStream = ReceiverStream<Result<v1::ResponseBatch, tonic::Status>>;

    async fn exchange(
        &self,
        request: tonic::Request<tonic::Streaming<v1::RequestBatch>>,
    ) -> Result<tonic::Response<Self::ExchangeStream>, tonic::Status> {
        let (sender, answers) = mpsc::channel(64);
        let (handle, caller) = (self.handle.clone(), Caller::Peer { region: self.caller });
        let mut batches = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(batch)) = batches.message().await {
                for request in batch.requests {
                    let (handle, sender) = (handle.clone(), sender.clone());
                    tokio::spawn(async move {
                        let tag = request.tag;
                        let answer = match forwarded_from_proto(request) {
                            Ok(request) => handle.execute(request, caller).await,
                            Err(refusal) => Err(refusal),
                        };
                        let batch = v1::ResponseBatch { responses: vec![response_to_proto(tag, answer)] };
                        let _ = sender.send(Ok(batch)).await;
                    });
                }
            }
        });
        Ok(tonic::Response::new(ReceiverStream::new(answers)))
    }
}

// --------------------------------------------------------------------------------- requests

pub fn key(name: &str) -> Key {
    Key::new(name.to_owned()).unwrap()
}

pub fn value(text: &str) -> Value {
    Value::new(text.to_owned()).unwrap()
}

pub fn put(name: &str, text: &str) -> Write {
    Write::Put { key: key(name), value: value(text), ttl_ms: None }
}

pub fn write_request(bucket: &str, write: Write) -> Request {
    identified(bucket, write, RequestId::default())
}

pub fn identified(bucket: &str, write: Write, id: RequestId) -> Request {
    Request::Write {
        bucket: BucketName::new(bucket).unwrap(),
        write,
        ack: WriteAck::Policy,
        id,
        lowest_outstanding: 1,
        begun: Epoch(0),
        session: SessionToken::default(),
        deadline_ms: PATIENT_MS,
    }
}

pub fn read_request(bucket: &str, read: Read, level: ReadLevel) -> Request {
    Request::Read {
        bucket: BucketName::new(bucket).unwrap(),
        read,
        level,
        stale: StalePolicy::Wait,
        session: SessionToken::default(),
        deadline_ms: PATIENT_MS,
    }
}

/// The same request with little patience: for what is expected to wait in vain. See [`in_vain`] for what is to be ordered before that.
pub fn soon(mut request: Request) -> Request {
    match &mut request {
        Request::Read { deadline_ms, .. } | Request::Write { deadline_ms, .. } => *deadline_ms = 400,
    }
    request
}

/// The refusal of a write that is ordered and then waits in vain: on a busy machine the order alone may take longer than that, and
/// it is asked for again.
pub async fn in_vain(region: &RegionUnderTest, request: Request) -> Refusal {
    let until = Instant::now() + PATIENCE;
    loop {
        let refusal = region.execute(soon(request.clone())).await.unwrap_err();
        if refusal.effect != Effect::Unknown || Instant::now() > until {
            return refusal;
        }
    }
}

pub fn get(bucket: &str, name: &str, level: ReadLevel) -> Request {
    read_request(bucket, Read::Get { key: key(name) }, level)
}

pub fn with_session(mut request: Request, token: &SessionToken) -> Request {
    match &mut request {
        Request::Read { session, .. } | Request::Write { session, .. } => *session = token.clone(),
    }
    request
}

pub fn when_stale(mut request: Request, policy: StalePolicy) -> Request {
    if let Request::Read { stale, .. } = &mut request {
        *stale = policy;
    }
    request
}

pub fn text(response: Response) -> Option<String> {
    match response.outcome {
        Outcome::Value(found) => found.map(|found| String::from_utf8(found.value.to_vec()).unwrap()),
        other => panic!("not the answer to a get: {other:?}"),
    }
}

pub async fn eventually(what: &str, holds: impl AsyncFn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < until, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

// -------------------------------------------------------------------------------- the carrier

/// Carries everything there is of one lane, as the replicator would: one frame, applied, acknowledged, complete.
pub async fn carry(source: &RegionUnderTest, target: &RegionUnderTest, shard: ShardId, lane: Lane) {
    while let Some(frame) = next_frame(source, target, shard, lane).await {
        let echo = Echo { probe: target.handle.monotonic_ms(), tenured: source.plane.leased(), index: 0 };
        let last = match target.handle.apply_frame(&frame).await {
            Ok(last) => last,
            // What a carrier that was stopped had under way came in between: there is less to carry now.
            Err(FrameRefusal::Rewind { .. }) => continue,
            Err(why) => panic!("{why:?}"),
        };
        source.handle.acknowledged(shard, lane, target.id, last);
        target.handle.complete_up_to(source.id, shard, lane, echo, last);
        return;
    }
}

/// Tells the target that it has everything of the lane that there was at its own time.
pub async fn refresh(source: &RegionUnderTest, target: &RegionUnderTest, shard: ShardId, lane: Lane) {
    let probe = target.handle.monotonic_ms();
    let watermark = target.handle.watermark(source.id, shard, lane).await.unwrap();
    let Some(tail) = rest_of(source, shard, watermark).await else { return };
    assert!(tail.at_head && !tail.entries.iter().any(|it| travels(source, target, lane, &it.entry)));
    target.handle.complete_up_to(source.id, shard, lane, Echo { probe, tenured: tail.tenured, index: 0 }, watermark);
}

/// What the log has behind a position; nothing when that is purged: such a lane brings nothing any more.
async fn rest_of(source: &RegionUnderTest, shard: ShardId, after: Lsn) -> Option<Tail> {
    match source.handle.read_log(shard, after, 1 << 20).await {
        Err(TailError::Trimmed { .. }) => None,
        read => Some(read.unwrap()),
    }
}

pub async fn next_frame(
    source: &RegionUnderTest,
    target: &RegionUnderTest,
    shard: ShardId,
    lane: Lane,
) -> Option<Bytes> {
    let previous = target.handle.watermark(source.id, shard, lane).await.unwrap();
    let tail = rest_of(source, shard, previous).await?;
    let chosen: Vec<_> = tail.entries.iter().filter(|it| travels(source, target, lane, &it.entry)).collect();
    if chosen.is_empty() {
        return None;
    }
    let mut notes = BTreeMap::new();
    for note in chosen.iter().filter_map(|it| it.note.clone()) {
        notes.insert(note.bucket, note);
    }
    let notes: Vec<_> = notes.into_values().collect();
    let entries: Vec<_> = chosen.iter().map(|it| (it.lsn, it.entry.clone())).collect();
    let header = FrameHeader {
        source: source.id,
        shard,
        lane,
        previous,
        last: tail.reached,
        closed: tail.closed,
        echo: Echo::default(),
        raw_length: 0,
    };
    Some(encode(header, &notes, &entries))
}

fn travels(source: &RegionUnderTest, target: &RegionUnderTest, lane: Lane, entry: &[u8]) -> bool {
    let header = Header::decode(entry).unwrap();
    let topology = source.plane.topology();
    let bucket = topology.buckets.get(&header.bucket);
    header.kind.is_shipped()
        && header.origin == source.id
        && bucket.is_some_and(|it| it.carries(target.id, header.epoch) && it.lane_of(header.epoch) == lane)
}

pub async fn carry_all(source: &RegionUnderTest, target: &RegionUnderTest) {
    for shard in (0..SHARDS).map(ShardId) {
        for lane in Lane::ALL {
            carry(source, target, shard, lane).await;
        }
    }
}

/// Waits until a key is applied here, whoever waits for more.
pub async fn applied(region: &RegionUnderTest, bucket: &str, name: &str) {
    eventually("the write is applied", async || region.value(bucket, name, ReadLevel::Eventual).await.is_some()).await;
}

/// Carries both ways, all the time, until dropped.
pub struct Carrier(JoinHandle<()>);

impl Carrier {
    pub fn start(source: &Arc<RegionUnderTest>, target: &Arc<RegionUnderTest>) -> Carrier {
        let (source, target) = (source.clone(), target.clone());
        Carrier(tokio::spawn(async move {
            loop {
                carry_all(&source, &target).await;
                carry_all(&target, &source).await;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }))
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The digests of every bucket and shard, by (bucket, shard).
pub fn digests(region: &RegionUnderTest) -> BTreeMap<(BucketId, ShardId), BucketDigest> {
    region.handle.digests(None).into_iter().map(|it| ((it.bucket, it.shard), it.digest)).collect()
}

pub fn shard_of(plane: &Plane, bucket: &str, name: &str) -> ShardId {
    key(name).shard(plane.bucket(bucket).id, SHARDS)
}

/// Names of keys of one shard.
pub fn names_in_one_shard(plane: &Plane, bucket: &str, count: usize) -> Vec<String> {
    let shard = shard_of(plane, bucket, "k0");
    (0..).map(|n| format!("k{n}")).filter(|name| shard_of(plane, bucket, name) == shard).take(count).collect()
}

pub async fn apply(target: &RegionUnderTest, frame: &Bytes) -> Result<Lsn, FrameRefusal> {
    target.handle.apply_frame(frame).await
}
