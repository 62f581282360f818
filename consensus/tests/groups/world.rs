//! Several nodes in one process: real TLS sockets and directories, each node in a runtime of its own, so that it
//! can be killed as a whole. A gate in front of each node can cut it off.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use meridian_consensus::{Applied, Consensus, Group, Options, Pace, ProposeError};
use meridian_proto::dial::Dial;
use meridian_proto::identity::Identity;
use meridian_proto::tls::TlsMaterial;
use meridian_types::{GroupId, Lsn, NodeId, NodeName, RegionName};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint, Server};

use super::ledger::{Book, Gate, Ledger};

pub(crate) const GROUP: GroupId = GroupId(3);

/// Far beyond what a busy machine needs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

const PACE: Pace = Pace { heartbeat_ms: 100, election_ms_min: 500, election_ms_max: 1000 };

/// The CA of one test.
pub(crate) struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { pem, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn issue(&self, identity: &Identity) -> TlsMaterial {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["meridian".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI(identity.uri().try_into().unwrap()));
        let cert = params.signed_by(&key, &self.issuer).unwrap().pem();
        TlsMaterial::from_pem(self.pem.as_bytes(), cert.as_bytes(), key.serialize_pem().as_bytes()).unwrap()
    }
}

/// Who can't be reached by whom.
type Cuts = Arc<Mutex<Vec<NodeId>>>;

/// The way from one node to all others.
struct Ways {
    node: NodeId,
    tls: TlsMaterial,
    addresses: BTreeMap<NodeId, SocketAddr>,
    cuts: Cuts,
}

impl Dial for Ways {
    fn channel(&self, node: NodeId) -> Option<Channel> {
        let cut = self.cuts.lock().unwrap().iter().any(|cut| *cut == node || *cut == self.node);
        let address = self.addresses.get(&node).filter(|_| !cut)?;
        let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap();
        let endpoint = endpoint.connect_timeout(Duration::from_secs(1)).tls_config(self.tls.client_config()).unwrap();
        Some(endpoint.connect_lazy())
    }
}

/// A node that runs.
pub(crate) struct Node {
    runtime: Option<Runtime>,
    pub(crate) consensus: Consensus,
    pub(crate) group: Group,
    pub(crate) book: Arc<Mutex<Book>>,
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The place of a node: what stays when it stops.
struct Place {
    dir: PathBuf,
    address: SocketAddr,
    tls: TlsMaterial,
    gate: Arc<Gate>,
}

/// The world of one test.
pub(crate) struct World {
    _dir: tempfile::TempDir,
    pub(crate) authority: Authority,
    places: BTreeMap<NodeId, Place>,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    voters: Vec<NodeId>,
    cuts: Cuts,
    /// How long everything takes that one node sends to another.
    distance: Duration,
}

impl World {
    /// The same, of nodes that are far from each other.
    pub(crate) fn apart(distance: Duration, size: usize, voters: usize) -> World {
        World { distance, ..World::new(size, voters) }
    }

    /// `size` places; the group is formed by the first `voters` of them. Nobody runs yet.
    pub(crate) fn new(size: usize, voters: usize) -> World {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        let mut places = BTreeMap::new();
        let mut ids = Vec::new();
        for place in 0..size {
            let name = NodeName::new(&format!("node-{place}")).unwrap();
            let id = NodeId::of(&name);
            let identity = Identity::Node { region: RegionName::new("here").unwrap(), name };
            let address = free_address();
            let tls = authority.issue(&identity);
            let dir = dir.path().join(place.to_string());
            places.insert(id, Place { dir, address, tls, gate: Arc::default() });
            ids.push(id);
        }
        let voters = ids[..voters].to_vec();
        World {
            _dir: dir,
            authority,
            places,
            nodes: BTreeMap::new(),
            voters,
            cuts: Cuts::default(),
            distance: Duration::ZERO,
        }
    }

    pub(crate) fn ids(&self) -> Vec<NodeId> {
        self.places.keys().copied().collect()
    }

    pub(crate) fn voters(&self) -> Vec<NodeId> {
        self.voters.clone()
    }

    pub(crate) fn address(&self, node: NodeId) -> SocketAddr {
        self.places[&node].address
    }

    pub(crate) fn start(&mut self, node: NodeId) {
        let place = &self.places[&node];
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let ways = Ways {
            node,
            tls: place.tls.clone(),
            addresses: self.places.iter().map(|(id, place)| (*id, place.address)).collect(),
            cuts: Arc::clone(&self.cuts),
        };
        let mut options = Options::new(node, place.dir.join("consensus"));
        options.log.segment_bytes = 8 << 20;
        options.shard = PACE;
        options.persist_every = Duration::from_millis(200);
        let (address, tls, dir) = (place.address, place.tls.clone(), place.dir.clone());
        let gate = Arc::clone(&place.gate);
        let (voters, distance) = (self.voters.clone(), self.distance);
        let (consensus, group, book) = runtime.block_on(async move {
            let consensus = Consensus::open(options, Arc::new(ways)).await.unwrap();
            let ledger = Ledger::open_behind(&dir, "group", gate);
            let book = Arc::clone(&ledger.book);
            let near = if distance.is_zero() { address } else { SocketAddr::from(([127, 0, 0, 1], 0)) };
            let listener = TcpListener::bind(near).await.unwrap();
            if !distance.is_zero() {
                let far = TcpListener::bind(address).await.unwrap();
                tokio::spawn(carry(far, listener.local_addr().unwrap(), distance));
            }
            let server =
                Server::builder().tls_config(tls.server_config()).unwrap().add_service(consensus.peer_service());
            tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
            let group = consensus.start_group(GROUP, &voters, Box::new(ledger)).await.unwrap();
            (consensus, group, book)
        });
        self.nodes.insert(node, Node { runtime: Some(runtime), consensus, group, book });
    }

    pub(crate) fn start_all(&mut self) {
        self.voters().into_iter().for_each(|node| self.start(node));
    }

    /// Ends a node in an orderly way.
    pub(crate) fn stop(&mut self, node: NodeId) {
        let mut stopped = self.nodes.remove(&node).unwrap();
        let runtime = stopped.runtime.take().unwrap();
        runtime.block_on(stopped.consensus.shutdown(Duration::ZERO));
        runtime.shutdown_timeout(Duration::from_secs(5));
    }

    /// What stops the restore of a snapshot on a node.
    pub(crate) fn gate(&self, node: NodeId) -> Arc<Gate> {
        Arc::clone(&self.places[&node].gate)
    }

    /// Kills a node that is stopped at its gate: its directory is as it was there, and from then on it told nobody anything.
    pub(crate) fn kill_at(&mut self, node: NodeId, gate: &Gate) {
        let mut killed = self.nodes.remove(&node).unwrap();
        // First its network: what it would still acknowledge is not on the disk that it wakes up with.
        killed.runtime.take().unwrap().shutdown_timeout(Duration::from_secs(1));
        let dir = &self.places[&node].dir;
        let image = dir.with_extension("image");
        copy_live(dir, &image);
        gate.open();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(killed.consensus.shutdown(Duration::ZERO));
        std::fs::remove_dir_all(dir).unwrap();
        std::fs::rename(image, dir).unwrap();
    }

    /// Cuts a node off from everybody: nobody can connect any more, and its streams break.
    pub(crate) fn cut(&self, node: NodeId) {
        self.cuts.lock().unwrap().push(node);
    }

    pub(crate) fn heal(&self) {
        self.cuts.lock().unwrap().clear();
    }

    /// Who leads, once some node among those that run does.
    pub(crate) fn leader(&self) -> NodeId {
        self.leader_among(&self.ids())
    }

    fn leader_among(&self, among: &[NodeId]) -> NodeId {
        let leads = |id: &&NodeId| self.nodes.get(*id).is_some_and(|node| node.group.leadership().borrow().leads);
        eventually("a leader", || among.iter().find(leads).copied())
    }

    /// Proposes until some leader applies it: once, as long as no two lines of a test are the same.
    pub(crate) fn put(&self, line: &str) -> Applied {
        self.put_among(&self.ids(), line)
    }

    /// The same, where one of these leads.
    pub(crate) fn put_among(&self, among: &[NodeId], line: &str) -> Applied {
        eventually(line, || {
            let node = &self.nodes[&self.leader_among(among)];
            match run(node, propose(node.group.clone(), line.to_owned())) {
                Ok(applied) => Some(applied),
                Err(ProposeError::Unknown) => self.look_for(among, line),
                // It did not take effect.
                Err(_) => None,
            }
        })
    }

    /// Looks for a line whose proposal was not answered, behind a barrier: what is not there then never comes.
    fn look_for(&self, among: &[NodeId], line: &str) -> Option<Applied> {
        eventually("a barrier", || {
            let node = &self.nodes[&self.leader_among(among)];
            run(node, node.group.read_barrier()).ok()?;
            let book = node.book.lock().unwrap();
            let found = book.lines.iter().enumerate().find(|(_, (_, it))| &it[..] == line.as_bytes());
            Some(found.map(|(at, (lsn, _))| Applied { lsn: Lsn(*lsn), result: Bytes::from(at.to_string()) }))
        })
    }

    /// Waits until a node has these lines.
    pub(crate) fn expect(&self, node: NodeId, lines: &[String]) {
        eventually("equal books", || {
            let book = self.nodes[&node].book.lock().unwrap();
            let has: Vec<_> = book.lines.iter().map(|(_, line)| line.clone()).collect();
            (has.iter().map(|line| &line[..]).eq(lines.iter().map(String::as_bytes))).then_some(())
        });
    }
}

/// Forwards what comes to `far`, in both directions, after a while.
async fn carry(far: TcpListener, near: SocketAddr, distance: Duration) {
    while let Ok((caller, _)) = far.accept().await {
        let Ok(called) = TcpStream::connect(near).await else { continue };
        let (ways, back) = (caller.into_split(), called.into_split());
        tokio::spawn(delay(ways.0, back.1, distance));
        tokio::spawn(delay(back.0, ways.1, distance));
    }
}

async fn delay(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, distance: Duration) {
    let (send, mut waiting) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some((due, bytes)) = waiting.recv().await {
            tokio::time::sleep_until(due).await;
            let bytes: Vec<u8> = bytes;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    let mut bytes = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        let due = tokio::time::Instant::now() + distance;
        if send.send((due, bytes[..read].to_vec())).is_err() {
            return;
        }
    }
}

/// An address that no node of this process had before: found free now, and taken again at every start of the node. It is at
/// a loopback address of this process alone: a port that a stopped node has left at 127.0.0.1 may be taken by another test's connection
/// until the node starts again.
fn free_address() -> SocketAddr {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let own = Ipv4Addr::new(127, 1 + high % 200, middle, low);
    loop {
        let address = std::net::TcpListener::bind((own, 0)).unwrap().local_addr().unwrap();
        if GIVEN.lock().unwrap().insert(address.port()) {
            return address;
        }
    }
}

/// Copies a directory of a node that runs. It may rename and remove files meanwhile: then all is copied anew, for no crash leaves
/// half of that behind.
pub(crate) fn copy_live(from: &Path, to: &Path) {
    eventually("a moment in which no file comes or goes", || {
        drop(std::fs::remove_dir_all(to));
        let before = files(from).ok()?;
        copy(from, to).ok()?;
        (files(from).ok()? == before).then_some(())
    });
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    for item in std::fs::read_dir(from)? {
        let item = item?;
        let to = to.join(item.file_name());
        match item.file_type()?.is_dir() {
            true => copy(&item.path(), &to)?,
            false => drop(std::fs::copy(item.path(), to)?),
        }
    }
    Ok(())
}

/// The paths of all files in a directory.
fn files(dir: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for item in std::fs::read_dir(dir)? {
        let item = item?;
        match item.file_type()?.is_dir() {
            true => found.append(&mut files(&item.path())?),
            false => drop(found.insert(item.path())),
        }
    }
    Ok(found)
}

async fn propose(group: Group, line: String) -> Result<Applied, ProposeError> {
    group.propose(Bytes::from(line))?.await
}

/// Runs something in a node's runtime.
pub(crate) fn run<T>(node: &Node, future: impl Future<Output = T>) -> T {
    node.runtime.as_ref().unwrap().block_on(future)
}

pub(crate) fn eventually<T>(what: &str, found: impl Fn() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what} did not come in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
