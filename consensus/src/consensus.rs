//! The handle of consensus on one node: opens the shared log, starts groups, ends everything.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meridian_proto::dial::Dial;
use meridian_proto::v1::consensus_peer_server::ConsensusPeerServer;
use meridian_types::{GroupId, Lsn, NodeId};
use openraft::async_runtime::WatchReceiver;
use openraft::{Config, EmptyNode, Raft, SnapshotPolicy};
use openraft_rt_tokio::TokioRuntime;
use tokio::sync::watch;

use crate::confirm::LastRound;
use crate::contact::Contact;
use crate::engine::Engine;
use crate::error::{FatalError, OpenError, StartError};
use crate::group::{Group, Inner, Leadership};
use crate::janitor;
use crate::log::{GroupHandle, Log};
use crate::machine::StateMachine;
use crate::options::Options;
use crate::poison::{Poison, chain};
use crate::pulse;
use crate::raft::machine::{Desk, Machine, Progress};
use crate::raft::mark::Position;
use crate::raft::seat::{Back, Seat};
use crate::raft::snapshot;
use crate::raft::storage::Storage;
use crate::stall::LogDisk;
use crate::tasks::Tasks;
use crate::transport::envelope::MESSAGE_BYTES_MAX;
use crate::transport::link::Link;
use crate::transport::network::{Factory, Links};
use crate::transport::server::{Groups, PeerService, Served};
use crate::turn::{Place, Turn};
use crate::watcher;

/// Consensus on one node. Cheap to clone.
#[derive(Clone)]
pub struct Consensus {
    node: Arc<Node>,
}

struct Node {
    options: Options,
    log: Arc<Log>,
    disk: LogDisk,
    back: Arc<Back>,
    metadata_engine: Arc<Engine>,
    shard_engine: Arc<Engine>,
    poison: Poison,
    tasks: Tasks,
    links: Links<TokioRuntime>,
    /// By id, for the server side.
    rafts: Groups,
    groups: Arc<Mutex<BTreeMap<GroupId, Arc<Inner>>>>,
    stopping: watch::Sender<bool>,
    generation: watch::Sender<u32>,
}

impl Consensus {
    /// Locks the data directory and recovers the log.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing that was acknowledged was changed then.
    pub async fn open(options: Options, dial: Arc<dyn Dial>) -> Result<Consensus, OpenError> {
        options.validate()?;
        let poison = Poison::new();
        let (dir, node, log_options) = (options.dir.clone(), options.node, options.log.clone());
        let log_poison = poison.clone();
        let opening = tokio::task::spawn_blocking(move || {
            let log = Log::open(&dir, node, &log_options, &log_poison)?;
            let cleaned = snapshot::clean(&dir);
            cleaned.map_err(|source| OpenError::Io { action: "cleaning", path: dir, source })?;
            Ok(log)
        });
        let log = opening.await.unwrap_or_else(|error| {
            let source = std::io::Error::other(error);
            Err(OpenError::Io { action: "recovering", path: options.dir.clone(), source })
        })?;
        let tasks = Tasks::new();
        let groups: Arc<Mutex<BTreeMap<GroupId, Arc<Inner>>>> = Arc::default();
        let for_janitor = Arc::clone(&groups);
        let all = move || for_janitor.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        tasks.spawn(janitor::run(all, options.clone()));
        let log = Arc::new(log);
        let disk = LogDisk::new(Arc::clone(&log), &options);
        tasks.spawn(disk.clone().watch());
        let turn = |place| Turn::new(Arc::clone(&log), place);
        let node = Node {
            back: Arc::new(Back::start(&poison)?),
            metadata_engine: Arc::new(Engine::start("metadata", turn(Place::Apart), &poison)?),
            shard_engine: Arc::new(Engine::start("shards", turn(Place::Here), &poison)?),
            links: links(options.node, dial, tasks.clone()),
            options,
            log,
            disk,
            poison,
            tasks,
            rafts: Groups::default(),
            groups,
            stopping: watch::Sender::new(false),
            generation: watch::Sender::new(0),
        };
        Ok(Consensus { node: Arc::new(node) })
    }

    /// Starts a group. `initial_voters` count only if the group has no log yet and this node is among them: every one
    /// of them must be given the same list. Otherwise the log says who the members are.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start_group(
        &self,
        group: GroupId,
        initial_voters: &[NodeId],
        machine: Box<dyn StateMachine>,
    ) -> Result<Group, StartError> {
        let node = &self.node;
        if *node.stopping.borrow() || node.poison.error().is_some() {
            return Err(StartError::Stopped);
        }
        if node.groups().contains_key(&group) {
            return Err(StartError::Running(group));
        }
        let log = node.log.group(group);
        let position = machine.mark().and_then(|mark| mark.as_ref().map(Position::decode).transpose());
        let position = position.map_err(StartError::State)?;
        check(group, &log, position.as_ref())?;
        let inner = node.begin(group, log, machine, position).await?;
        node.form(&inner, initial_voters).await?;
        node.tasks.spawn(watcher::watch(Arc::clone(&inner), node.poison.clone()));
        tracing::info!(%group, node = %node.options.node, "group started");
        Ok(Group { inner })
    }

    /// The gRPC service for this node's peers. Callers' certificates must name a node, and each message's sender must
    /// be it (SEC-1).
    pub fn peer_service(&self) -> ConsensusPeerServer<PeerService> {
        let service = PeerService {
            node: self.node.options.node,
            groups: Arc::clone(&self.node.rafts),
            spools: self.node.options.dir.clone(),
            tasks: self.node.tasks.clone(),
            stopping: self.node.stopping.subscribe(),
            generation: self.node.generation.clone(),
        };
        ConsensusPeerServer::new(service)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The latest generation of the metadata group that a peer spoke for. One that is later than this node's own says
    /// that the metadata plane was recovered without this node.
    pub fn generation_seen(&self) -> watch::Receiver<u32> {
        self.node.generation.subscribe()
    }

    /// Whether nothing was ever written to this log: its directory is new, or was emptied.
    pub fn is_blank(&self) -> bool {
        self.node.log.is_blank()
    }

    /// Gives up the log of a group that is never started again, so that its space can be used anew.
    ///
    /// # Errors
    /// When the log is closed.
    pub fn abandon(&self, group: GroupId) -> Result<(), StartError> {
        let log = self.node.log.group(group);
        log.bounds().1.map_or(Ok(()), |last| log.purge(last)).map_err(|_| StartError::Stopped)
    }

    /// Resolves when a storage error or a panic has stopped consensus: the process must exit non-zero.
    pub fn fatal(&self) -> impl Future<Output = FatalError> + Send + 'static {
        let poison = self.node.poison.clone();
        async move { poison.reported().await }
    }

    /// Bytes of log segments on disk.
    pub fn log_bytes(&self) -> u64 {
        self.node.log.bytes()
    }

    /// For how long the write and sync of the log under way has been running; `None` while nothing is written.
    pub fn sync_running(&self) -> Option<Duration> {
        self.node.log.sync_running()
    }

    /// The same, once that is longer than [`Options::stalled_after`]: the disk hangs, and what is proposed can't be answered.
    pub fn stalled(&self) -> Option<Duration> {
        self.node.disk.stalled()
    }

    /// That the disk hangs, in a sentence with the remedy; also among [`Consensus::problems`].
    pub fn stall(&self) -> Option<String> {
        self.node.disk.problem()
    }

    /// Empty when healthy; else one sentence each, with the remedy.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(error) = self.node.poison.error() {
            problems.push(format!("{error}: restart the node; if it comes back, check the disk"));
        }
        if self.node.log.disk_full() {
            let dir = self.node.options.dir.display();
            problems.push(format!(
                "the disk of {dir} is full and writes are refused: free space, they resume by themselves"
            ));
        }
        problems.extend(self.stall());
        for group in self.node.groups().values() {
            if group.leadership.borrow().leader.is_none() {
                problems.push(format!(
                    "group {} has no leader: check that a majority of its nodes runs and is reachable",
                    group.id
                ));
            }
        }
        problems
    }

    /// Stops accepting, lets what is under way finish for at most `grace`, and releases the data directory.
    pub async fn shutdown(&self, grace: Duration) {
        let node = &self.node;
        let groups: Vec<_> = node.groups().values().cloned().collect();
        for group in &groups {
            group.stopped.store(true, Ordering::Release);
        }
        let drained = async {
            while groups.iter().any(|group| group.in_flight.load(Ordering::Relaxed) > 0) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        if tokio::time::timeout(grace, drained).await.is_err() {
            tracing::warn!("proposals were still under way when consensus was shut down");
        }
        node.stopping.send_replace(true);
        for group in &groups {
            drop(group.raft.shutdown().await);
            group.seat.stop();
        }
        node.tasks.end().await;
        node.groups().clear();
        node.rafts.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let engines = [Arc::clone(&node.shard_engine), Arc::clone(&node.metadata_engine)];
        let (log, back) = (Arc::clone(&node.log), Arc::clone(&node.back));
        let closed = tokio::task::spawn_blocking(move || {
            engines.iter().for_each(|engine| engine.close());
            back.close();
            log.close();
        });
        drop(closed.await);
    }
}

/// State and log must be of one node's life.
fn check(group: GroupId, log: &GroupHandle, position: Option<&Position>) -> Result<(), StartError> {
    let (purged, last) = log.bounds();
    let state = position.map_or(0, |position| position.index);
    let (first, last_index) = (purged.map_or(0, |purged| purged.index + 1), last.map_or(0, |last| last.index));
    let log_is_lost = position.is_some() && last.is_none() && log.vote().is_none();
    let state_is_lost = purged.is_some_and(|purged| purged.index > state);
    if log_is_lost || state_is_lost {
        return Err(StartError::Mismatch { group, state: Lsn(state), first: Lsn(first), last: Lsn(last_index) });
    }
    Ok(())
}

fn links(node: NodeId, dial: Arc<dyn Dial>, tasks: Tasks) -> Links<TokioRuntime> {
    let links: Mutex<HashMap<NodeId, Arc<Link<TokioRuntime>>>> = Mutex::default();
    Arc::new(move |target| {
        let mut links = links.lock().unwrap_or_else(PoisonError::into_inner);
        let link = links.entry(target).or_insert_with(|| {
            let link = Arc::new(Link::new(node, target));
            tasks.spawn(Arc::clone(&link).run(Arc::clone(&dial)));
            link
        });
        Arc::clone(link)
    })
}

impl Node {
    fn groups(&self) -> MutexGuard<'_, BTreeMap<GroupId, Arc<Inner>>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn begin(
        &self,
        group: GroupId,
        log: GroupHandle,
        machine: Box<dyn StateMachine>,
        position: Option<Position>,
    ) -> Result<Arc<Inner>, StartError> {
        let node = self.options.node;
        let pace = self.options.pace(group);
        // A vote on disk means a former life, in which this node may have promised a leader its lease.
        let silent_until = log.vote().is_some().then(|| tokio::time::Instant::now() + pace.silence());
        let config = self.config(group, silent_until.is_none());
        let config = config.map_err(|detail| StartError::Raft { group, detail })?;
        let progress = Arc::new(Progress::new(position.as_ref()));
        let seat = Arc::new(Seat::new(group, machine, &self.poison));
        let engine = if group.generation().is_some() { &self.metadata_engine } else { &self.shard_engine };
        let desk = Desk { seat: Arc::clone(&seat), back: Arc::clone(&self.back), progress: Arc::clone(&progress) };
        let log = log.with_prompter(engine.turn().prompter());
        let factory = Factory { group, node, links: Arc::clone(&self.links) };
        let patience = Duration::from_millis(config.election_timeout_max * 10).max(Duration::from_secs(30));
        let (storage, machine) = (Storage::new(log.clone()), Machine::new(desk, position));
        let starting = engine.run(async move { Raft::new(node.0, Arc::new(config), factory, storage, machine).await });
        let raft = starting.await.ok_or(StartError::Stopped)?;
        let raft = raft.map_err(|error| StartError::Raft { group, detail: chain(&error) })?;
        let inner = Arc::new(Inner {
            id: group,
            node,
            raft,
            log,
            shared_log: Arc::clone(&self.log),
            seat,
            progress,
            leadership: watch::Sender::new(Leadership::default()),
            solo: AtomicBool::new(false),
            changing: AtomicUsize::new(0),
            in_flight: Arc::new(AtomicU64::new(0)),
            in_flight_bytes_max: self.options.in_flight_bytes_max,
            purge_allowed: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            contact: Arc::new(Mutex::new(Contact::new(std::time::Instant::now()))),
            electorate: Mutex::new(None),
            read_lease: pace.read_lease(),
            links: Arc::clone(&self.links),
            handed_over_in: AtomicU64::new(0),
            last_round: LastRound::default(),
            patience,
        });
        let served = Served { raft: inner.raft.clone(), contact: Arc::clone(&inner.contact), silent_until };
        self.rafts.lock().unwrap_or_else(PoisonError::into_inner).insert(group, served);
        if let Some(until) = silent_until {
            let silent = Arc::clone(&inner);
            self.tasks.spawn(async move {
                tokio::time::sleep_until(until).await;
                silent.raft.runtime_config().elect(true);
            });
        }
        inner.raft.runtime_config().heartbeat(false);
        engine.leave(pulse::beat(Arc::downgrade(&inner), Duration::from_millis(pace.heartbeat_ms)));
        self.groups().insert(group, Arc::clone(&inner));
        Ok(inner)
    }

    fn config(&self, group: GroupId, may_campaign: bool) -> Result<Config, String> {
        let pace = self.options.pace(group);
        let config = Config {
            cluster_name: group.to_string(),
            // How long an answer to a heartbeat counts. When heartbeats are sent is the pulse's.
            heartbeat_interval: pace.answer_ms(),
            election_timeout_min: pace.election_ms_min,
            election_timeout_max: pace.election_ms_max,
            snapshot_policy: SnapshotPolicy::Never,
            // Purging is the janitor's alone.
            max_in_snapshot_log_to_keep: u64::MAX,
            replication_lag_threshold: u64::MAX,
            max_payload_entries: 1024,
            enable_elect: may_campaign,
            enable_pre_vote: Some(true),
            // A restarted leader must be elected again: its commit mark may be older than what it acknowledged.
            enable_leader_restore: Some(false),
            // The network has timeouts of its own for every piece and for the restore.
            install_snapshot_timeout: 900_000,
            ..Config::default()
        };
        config.validate().map_err(|error| error.to_string())
    }

    /// Forms a new group, or gets the only voter of an old one elected without waiting for a timeout.
    async fn form(&self, inner: &Inner, initial_voters: &[NodeId]) -> Result<(), StartError> {
        let raft_error = |detail: String| StartError::Raft { group: inner.id, detail };
        let initialized = inner.raft.is_initialized().await.map_err(|error| raft_error(chain(&error)))?;
        if !initialized && initial_voters.contains(&inner.node) {
            let members: BTreeMap<u64, EmptyNode> = initial_voters.iter().map(|id| (id.0, EmptyNode::new())).collect();
            match inner.raft.initialize(members).await {
                Ok(()) => {}
                // A peer was faster and has already sent its log.
                Err(openraft::error::RaftError::APIError(openraft::error::InitializeError::NotAllowed(_))) => {}
                Err(error) => return Err(raft_error(chain(&error))),
            }
        }
        let alone = inner.raft.server_metrics().borrow_watched().membership_config.voter_ids().eq([inner.node.0]);
        if alone {
            inner.raft.trigger().elect(false).await.map_err(|error| raft_error(chain(&error)))?;
        }
        Ok(())
    }
}
