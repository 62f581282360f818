//! A cluster in one process: real TLS sockets, real directories, each node in a runtime of its own so that it
//! can be killed as a whole. Every connection goes through a proxy that can delay or cut it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use meridian_consensus::{Consensus, Pace};
use meridian_metadata_node::{Error, Handle, Member, OpenError, Options, Service};
use meridian_proto::dial::{self, Dial};
use meridian_proto::identity::Identity;
use meridian_proto::tls::TlsMaterial;
use meridian_types::{NodeId, NodeName, RegionName};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Channel;

/// The CA of one test.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { pem, issuer: Issuer::new(params, key) }
    }

    fn issue(&self, identity: &Identity) -> TlsMaterial {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["meridian".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI(identity.uri().try_into().unwrap()));
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let chain = cert.pem();
        TlsMaterial::from_pem(self.pem.as_bytes(), chain.as_bytes(), key.serialize_pem().as_bytes()).unwrap()
    }
}

/// The way from one node to all others: one proxy per target, so that ways can differ and be cut.
struct Ways {
    tls: TlsMaterial,
    channels: Mutex<BTreeMap<NodeId, Channel>>,
    addresses: BTreeMap<NodeId, SocketAddr>,
}

impl Dial for Ways {
    fn channel(&self, node: NodeId) -> Option<Channel> {
        let address = self.addresses.get(&node)?;
        let mut channels = self.channels.lock().unwrap();
        let connect = || dial::channel(&format!("https://{address}"), &self.tls).unwrap();
        Some(channels.entry(node).or_insert_with(connect).clone())
    }
}

/// What all connections between two nodes suffer.
#[derive(Default)]
pub(crate) struct Weather {
    /// One way, in milliseconds.
    pub(crate) delay_ms: AtomicU64,
    /// Bytes are swallowed: the connection neither breaks nor carries anything.
    pub(crate) cut: AtomicBool,
}

/// One node that can be started, killed and started again.
pub(crate) struct Place {
    pub(crate) member: Member,
    tls: TlsMaterial,
    server: SocketAddr,
    pub(crate) dir: PathBuf,
    running: Option<Running>,
}

struct Running {
    runtime: Runtime,
    consensus: Consensus,
    handle: Handle,
    service: JoinHandle<Result<(), Error>>,
}

pub(crate) struct World {
    pub(crate) places: Vec<Place>,
    members: Vec<Member>,
    authority: Authority,
    proxies: Runtime,
    /// (from, to) -> its proxy.
    ways: BTreeMap<(NodeId, NodeId), SocketAddr>,
    weather: BTreeMap<(NodeId, NodeId), Arc<Weather>>,
    /// Of the node at each place.
    pub(crate) pace: fn(usize) -> Pace,
    pub(crate) tune: fn(&mut Options),
    _dir: tempfile::TempDir,
}

pub(crate) const FAST: Pace = Pace { heartbeat_ms: 60, election_ms_min: 300, election_ms_max: 600 };

/// Far beyond what a busy machine needs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How long the leases of [`quick`] last.
pub(crate) const QUICK_TTL_MS: u64 = 2500;

/// Quick leases, so that tests need not wait long for their end.
pub(crate) fn quick(options: &mut Options) {
    options.lease_ttl_ms = QUICK_TTL_MS;
    options.renew_every_ms = 250;
    options.renew_timeout_ms = 500;
    options.attempt_timeout_ms = 700;
    options.command_deadline_ms = 30_000;
}

/// The same, where changes wait in vain.
pub(crate) fn impatient(options: &mut Options) {
    quick(options);
    options.command_deadline_ms = 10_000;
}

impl World {
    /// Three voters in three regions; `extra` nodes that are no members, in the first region.
    pub(crate) fn new(extra: usize) -> World {
        // For whoever asks with RUST_LOG; the first test of a process sets it up for all.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        let regions = ["us-east", "eu-west", "ap-south"];
        let mut places = Vec::new();
        for at in 0..3 + extra {
            let region = RegionName::new(regions[if at < 3 { at } else { 0 }]).unwrap();
            let name = NodeName::new(&format!("{region}-{}", if at < 3 { 1 } else { at })).unwrap();
            let tls = authority.issue(&Identity::Node { region: region.clone(), name: name.clone() });
            let server = free_address();
            let member = Member {
                name: name.clone(),
                region,
                zone: "z".to_owned(),
                rpc_address: server.to_string(),
                replication_address: server.to_string(),
                voter: at < 3,
            };
            places.push(Place { member, tls, server, dir: dir.path().join(name.as_str()), running: None });
        }
        let members = places.iter().take(3).map(|place| place.member.clone()).collect();
        let proxies = runtime();
        let (mut ways, mut weather) = (BTreeMap::new(), BTreeMap::new());
        for from in &places {
            for to in places.iter().filter(|to| to.member.name != from.member.name) {
                let way = (from.member.id(), to.member.id());
                let conditions = Arc::new(Weather::default());
                ways.insert(way, proxies.block_on(proxy(to.server, Arc::clone(&conditions))));
                weather.insert(way, conditions);
            }
        }
        World { places, members, authority, proxies, ways, weather, pace: |_| FAST, tune: quick, _dir: dir }
    }

    /// Two regions with data and a witness, all running.
    pub(crate) fn witnessed() -> World {
        let mut world = World::new(0);
        let witness = world.id(2);
        let voters = world.members.iter_mut().chain(world.places.iter_mut().map(|place| &mut place.member));
        voters.filter(|member| member.id() == witness).for_each(|member| member.replication_address.clear());
        (0..3).for_each(|at| world.start(at));
        world
    }

    /// A world whose members all run.
    pub(crate) fn started() -> World {
        World::started_with(quick)
    }

    pub(crate) fn started_with(tune: fn(&mut Options)) -> World {
        let mut world = World::new(0);
        world.tune = tune;
        (0..3).for_each(|at| world.start(at));
        world
    }

    pub(crate) fn options(&self, at: usize) -> Options {
        let place = &self.places[at];
        let mut options = Options::new(place.member.clone(), self.members.clone(), place.dir.join("metadata"));
        options.version = "test".to_owned();
        options.shards = 4;
        (self.tune)(&mut options);
        options
    }

    pub(crate) fn start(&mut self, at: usize) {
        self.try_start(at).unwrap();
    }

    pub(crate) fn try_start(&mut self, at: usize) -> Result<(), OpenError> {
        let options = self.options(at);
        let place = &self.places[at];
        assert!(place.running.is_none(), "node {at} runs already");
        let id = place.member.id();
        let addresses =
            self.ways.iter().filter(|(way, _)| way.0 == id).map(|(way, address)| (way.1, *address)).collect();
        let ways = Arc::new(Ways { tls: place.tls.clone(), channels: Mutex::default(), addresses });
        let mut consensus = meridian_consensus::Options::new(id, place.dir.join("log"));
        consensus.metadata = (self.pace)(at);
        consensus.log.segment_bytes = 1 << 20;
        let runtime = runtime();
        let (server, tls) = (place.server, place.tls.clone());
        let opened = runtime.block_on(async move {
            let consensus = Consensus::open(consensus, Arc::clone(&ways) as Arc<dyn Dial>).await.unwrap();
            match Service::open(options, &consensus, ways).await {
                Ok((service, handle)) => Ok((consensus, service, handle)),
                Err(error) => {
                    consensus.shutdown(Duration::ZERO).await;
                    Err(error)
                }
            }
        });
        let (consensus, service, handle) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                runtime.shutdown_timeout(Duration::from_secs(2));
                return Err(error);
            }
        };
        let listener = runtime.block_on(listen(server));
        let router =
            dial::server(&tls).unwrap().add_service(consensus.peer_service()).add_service(handle.peer_service());
        runtime.spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
        let service = runtime.spawn(service.run(std::future::pending()));
        self.places[at].running = Some(Running { runtime, consensus, handle, service });
        Ok(())
    }

    /// Ends a node without telling anybody.
    pub(crate) fn kill(&mut self, at: usize) {
        let Running { runtime, consensus, handle, service: _ } = self.places[at].running.take().unwrap();
        drop(handle);
        runtime.block_on(consensus.shutdown(Duration::ZERO));
        drop(consensus);
        runtime.shutdown_timeout(Duration::from_secs(5));
    }

    /// Starts a node of an earlier generation: it is told so, stops, and is started once more.
    pub(crate) fn start_again(&mut self, at: usize) {
        self.start(at);
        eventually("it is told and stops", PATIENCE, || self.has_stopped(at));
        self.kill(at);
        self.start(at);
    }

    /// Whether a node's service has ended by itself.
    pub(crate) fn has_stopped(&self, at: usize) -> bool {
        self.places[at].running.as_ref().unwrap().service.is_finished()
    }

    pub(crate) fn is_running(&self, at: usize) -> bool {
        self.places[at].running.is_some()
    }

    pub(crate) fn handle(&self, at: usize) -> Handle {
        self.places[at].running.as_ref().unwrap().handle.clone()
    }

    pub(crate) fn id(&self, at: usize) -> NodeId {
        self.places[at].member.id()
    }

    /// Runs something of a node in that node's runtime.
    pub(crate) fn on<T>(&self, at: usize, task: impl Future<Output = T>) -> T {
        self.places[at].running.as_ref().unwrap().runtime.block_on(task)
    }

    /// The running node that leads, once all running nodes agree who does.
    pub(crate) fn leader(&self) -> usize {
        let mut found = None;
        eventually("a leader that all know", PATIENCE, || {
            let running: Vec<_> = (0..self.places.len()).filter(|at| self.is_running(*at)).collect();
            let named: Vec<_> = running.iter().map(|at| self.handle(*at).leader()).collect();
            found = running.iter().copied().find(|at| named.iter().all(|leader| *leader == Some(self.id(*at))));
            found.is_some()
        });
        found.unwrap()
    }

    pub(crate) fn holds_lease(&self, at: usize) -> bool {
        self.handle(at).lease_until().is_some_and(|until| until > Instant::now())
    }

    /// Waits until every running node is registered and holds a lease.
    pub(crate) fn settle(&self) {
        eventually("every node registered and leased", PATIENCE, || {
            (0..self.places.len())
                .filter(|at| self.is_running(*at))
                .all(|at| self.handle(at).is_registered() && self.holds_lease(at))
        });
    }

    /// Waits until these nodes hold a lease.
    pub(crate) fn settle_some(&self, nodes: &[usize]) {
        eventually("these nodes leased", PATIENCE, || nodes.iter().all(|at| self.holds_lease(*at)));
    }

    pub(crate) fn delay_all(&self, one_way_ms: u64) {
        self.weather.values().for_each(|weather| weather.delay_ms.store(one_way_ms, Ordering::Relaxed));
    }

    /// Cuts a node off from all others, or joins it again.
    pub(crate) fn cut(&self, at: usize, cut: bool) {
        let id = self.id(at);
        for ((from, to), weather) in &self.weather {
            if *from == id || *to == id {
                weather.cut.store(cut, Ordering::Relaxed);
            }
        }
    }

    /// A channel to a node for somebody with a certificate of his own.
    pub(crate) fn connect_as(&self, identity: &Identity, at: usize) -> Channel {
        let tls = self.authority.issue(identity);
        let _inside = self.proxies.enter();
        dial::channel(&format!("https://{}", self.places[at].server), &tls).unwrap()
    }

    pub(crate) fn outside<T>(&self, task: impl Future<Output = T>) -> T {
        self.proxies.block_on(task)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for at in 0..self.places.len() {
            if self.is_running(at) {
                self.kill(at);
            }
        }
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// A loopback address of this process alone. A port that a stopped node has left at 127.0.0.1 may be taken by another test's
/// connection until the node starts again.
fn own_loopback() -> Ipv4Addr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 1 + high % 200, middle, low)
}

/// An address that no world of this process was given before: found free now, and taken again at every start.
fn free_address() -> SocketAddr {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let address = std::net::TcpListener::bind((own_loopback(), 0)).unwrap().local_addr().unwrap();
        if GIVEN.lock().unwrap().insert(address.port()) {
            return address;
        }
    }
}

async fn listen(address: SocketAddr) -> TcpListener {
    for _ in 0..200 {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            // The node that was killed is letting go of it.
            Err(_) => tokio::time::sleep(Duration::from_millis(25)).await,
        }
    }
    panic!("{address} stays in use");
}

async fn proxy(target: SocketAddr, weather: Arc<Weather>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let Ok(far) = TcpStream::connect(target).await else { continue };
            near.set_nodelay(true).unwrap();
            far.set_nodelay(true).unwrap();
            let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
            tokio::spawn(pump(near_read, far_write, Arc::clone(&weather)));
            tokio::spawn(pump(far_read, near_write, Arc::clone(&weather)));
        }
    });
    address
}

/// Carries bytes one way, each read as late as the weather says.
async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    weather: Arc<Weather>,
) {
    let (send, mut receive) = mpsc::channel::<(Instant, Vec<u8>)>(1024);
    let read = async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length) = from.read(&mut buffer).await {
            if length == 0 {
                return;
            }
            let delay = Duration::from_millis(weather.delay_ms.load(Ordering::Relaxed));
            let swallowed = weather.cut.load(Ordering::Relaxed);
            if !swallowed && send.send((Instant::now() + delay, buffer[..length].to_vec())).await.is_err() {
                return;
            }
            // A connection that lost bytes can't go on after the cut is healed.
            if swallowed {
                std::future::pending::<()>().await;
            }
        }
    };
    let write = async move {
        while let Some((due, bytes)) = receive.recv().await {
            tokio::time::sleep_until(due.into()).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(read, write);
}

pub(crate) fn eventually(what: &str, within: Duration, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
