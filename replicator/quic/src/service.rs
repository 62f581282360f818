//! The running replicator: starts a lane for every shard and region, takes connections, watches over all tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use meridian_replicator_core::shipper::LaneKey;
use meridian_types::{BucketId, BucketLag, Lane, LaneStatus, NodeId, RegionId, RegionName, ShardId, Topology};
use s2n_quic::connection::Connection;
use s2n_quic::{Client, Server};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::connector::Dialling;
use crate::hello::Me;
use crate::intake::Intake;
use crate::link::Links;
use crate::metrics::{self, Received};
use crate::ship::{ShipLane, Shown, lock, wall_ms};
use crate::tls::{Tls, TlsPem, heard_ms};
use crate::{Addresses, LogSink, LogSource, Options, endpoint};

/// The most connections of peers at a time; each may hold its windows (RES-1).
const CONNECTIONS_MAX: usize = 128;

/// How long tasks may take to end.
const GRACE: Duration = Duration::from_secs(5);

/// What the node hands to its replicator.
#[derive(Clone)]
pub struct Parts {
    /// The logs to ship.
    pub source: Arc<dyn LogSource>,
    /// The groups to fill.
    pub sink: Arc<dyn LogSink>,
    /// The cluster, as it changes.
    pub topology: watch::Receiver<Arc<Topology>>,
    /// Where the other nodes are.
    pub addresses: Arc<dyn Addresses>,
    /// Who this node is.
    pub tls: TlsPem,
}

/// Why the replicator could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The certificate, its key or the authority can't be used.
    #[error("the replication certificate can't be used: {0}")]
    Tls(String),
    /// The certificate names somebody else than the options.
    #[error("the certificate is for {certificate}, but this node is configured as {configured}")]
    Identity {
        /// Whom the certificate names.
        certificate: String,
        /// Whom the options name.
        configured: String,
    },
    /// An option is out of range.
    #[error("the replication options can't be used: {0}")]
    Options(String),
    /// The UDP port can't be had.
    #[error("can't listen for replication on {address}: {reason}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
}

/// Why the replicator ended. Fatal to the node.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A task panicked.
    #[error("a replication task panicked: {task}")]
    Panicked {
        /// What it said.
        task: String,
    },
    /// The endpoint stopped by itself.
    #[error("the replication endpoint closed by itself")]
    EndpointClosed,
}

/// The replicator before and while it runs.
pub struct Service {
    server: Server,
    client: Client,
    handle: Handle,
    parts: Parts,
    options: Options,
}

/// Asks and stops a running [`Service`].
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

/// What handles share; metrics hold it weakly, so that a node that ended in a living process is let go.
struct Shared {
    region: RegionName,
    stop: CancellationToken,
    local: SocketAddr,
    lanes: Mutex<BTreeMap<LaneKey, Sight>>,
    topology: watch::Receiver<Arc<Topology>>,
    source: Arc<dyn LogSource>,
}

/// A handle that keeps nothing alive.
#[derive(Clone)]
pub(crate) struct WeakHandle(Weak<Shared>);

impl WeakHandle {
    pub(crate) fn upgrade(&self) -> Option<Handle> {
        self.0.upgrade().map(Handle)
    }
}

/// Where a lane's task shows itself while it leads.
type Sight = Arc<Mutex<Option<Shown>>>;

impl Service {
    /// Takes the port. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`StartError`] says what is wrong with the certificate, the options or the port.
    pub fn bind(options: Options, parts: Parts) -> Result<Service, StartError> {
        let tls = Tls::new(&parts.tls)?;
        if (&tls.region, &tls.node) != (&options.region, &options.node) {
            return Err(StartError::Identity {
                certificate: format!("node `{}` in region `{}`", tls.node, tls.region),
                configured: format!("node `{}` in region `{}`", options.node, options.region),
            });
        }
        let server = endpoint::listen(options.listen, &tls, &options.transport)?;
        let client = endpoint::dialler(options.listen, &tls, &options.transport)?;
        let local =
            server.local_addr().map_err(|why| StartError::Bind { address: options.listen, reason: why.to_string() })?;
        let handle = Handle(Arc::new(Shared {
            region: options.region.clone(),
            stop: CancellationToken::new(),
            local,
            lanes: Mutex::default(),
            topology: parts.topology.clone(),
            source: Arc::clone(&parts.source),
        }));
        Ok(Service { server, client, handle, parts, options })
    }

    /// Asks and stops this service, before and while it runs.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Ships and receives until [`Handle::stop`].
    ///
    /// # Errors
    /// [`Error`] when a task panicked or the endpoint is lost: the node must end.
    pub async fn run(self) -> Result<(), Error> {
        let stop = self.handle.0.stop.clone();
        let Some(me) = self.joined().await else { return Ok(()) };
        tracing::info!(region = %self.options.region, address = %self.handle.0.local, "replication started");
        metrics::observe(&self.handle);
        let mut running = Running::new(self, me);
        let ended = running.supervise(&stop).await;
        stop.cancel();
        running.wind_up().await;
        ended
    }

    /// Waits until this node's region is part of a formed cluster; `None` when stopped before.
    async fn joined(&self) -> Option<Me> {
        let region = |topology: &Topology| {
            let formed = topology.cluster.is_some();
            topology.region_named(self.options.region.as_str()).filter(|_| formed).map(|region| region.id)
        };
        let mut topology = self.parts.topology.clone();
        let joined = tokio::select! {
            () = self.handle.0.stop.cancelled() => None,
            topology = topology.wait_for(|topology| region(topology).is_some()) => {
                topology.ok().and_then(|topology| region(&topology))
            }
        };
        joined.map(|region| Me { region, node: NodeId::of(&self.options.node) })
    }
}

/// The service at work.
struct Running {
    me: Me,
    server: Server,
    parts: Parts,
    handle: Handle,
    links: Arc<Links>,
    intake: Intake,
    lanes: JoinSet<()>,
    connections: JoinSet<()>,
    /// How long a peer waits for a sign of this node.
    patience: Duration,
}

impl Running {
    fn new(service: Service, me: Me) -> Running {
        let Service { server, client, handle, parts, options } = service;
        let patience = Duration::from_millis(options.transport.idle_timeout_ms.max(100));
        let dialling = Dialling {
            client,
            addresses: Arc::clone(&parts.addresses),
            topology: parts.topology.clone(),
            me,
            timeout: patience,
        };
        let intake = Intake {
            sink: Arc::clone(&parts.sink),
            topology: parts.topology.clone(),
            me,
            max_skew_ms: options.max_skew_ms,
            window_bytes: options.transport.window_bytes,
            beat: Instant::now(),
            received: Received::new(),
            stop: handle.0.stop.clone(),
        };
        let transport = &options.transport;
        let links = Links::new(Arc::new(dialling), transport.window_bytes, transport.async_connections);
        Running {
            me,
            server,
            parts,
            handle,
            links: Arc::new(links),
            intake,
            lanes: JoinSet::new(),
            connections: JoinSet::new(),
            patience,
        }
    }

    async fn supervise(&mut self, stop: &CancellationToken) -> Result<(), Error> {
        let mut topology = self.parts.topology.clone();
        // Keeps the baseline of lag figures fresh even when nobody asks for them.
        let mut figures = tokio::time::interval(Duration::from_secs(1));
        let mut awake = Instant::now();
        loop {
            let wanted = Arc::clone(&topology.borrow_and_update());
            self.start_lanes(&wanted);
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                changed = topology.changed() => if changed.is_err() { return Ok(()) },
                connection = self.server.accept() => match connection {
                    Some(connection) => self.take(connection),
                    None => return Err(Error::EndpointClosed),
                },
                Some(ended) = self.lanes.join_next() => check(ended)?,
                Some(ended) = self.connections.join_next() => check(ended)?,
                _ = figures.tick() => {
                    drop(self.handle.lags());
                    let stood_still = std::mem::replace(&mut awake, Instant::now()).elapsed();
                    if stood_still > self.patience {
                        self.hang_up(stood_still);
                    }
                }
            }
        }
    }

    /// A process that stood still for as long as its peers wait for a sign (SIGSTOP, a suspended machine) comes back to
    /// connections that nobody else believes in. QUIC would be long in noticing: it waits for some of the round trips it
    /// measures, and the last one it measured has the standstill in it.
    fn hang_up(&mut self, stood_still: Duration) {
        tracing::warn!(?stood_still, "this process stood still: replication connects anew");
        let links = Arc::clone(&self.links);
        self.connections.spawn(async move { links.hang_up().await });
    }

    fn take(&mut self, connection: Connection) {
        if self.connections.len() < CONNECTIONS_MAX {
            self.connections.spawn(self.intake.clone().serve(connection));
        } else {
            tracing::warn!(limit = CONNECTIONS_MAX, "refused a replication connection: too many are open");
        }
    }

    /// Every shard and every other region, both lanes: a lane that carries nothing today must not find the log
    /// purged on the day it does.
    fn start_lanes(&mut self, topology: &Topology) {
        let mut running = self.handle.shown();
        let targets = topology.data_regions().filter(|region| *region != self.me.region);
        for (target, shard) in targets.flat_map(|target| (0..topology.shards).map(move |it| (target, ShardId(it)))) {
            for lane in Lane::ALL {
                let key = LaneKey { source: self.me.region, target, shard, lane };
                let shown = Sight::default();
                if running.contains_key(&key) {
                    continue;
                }
                running.insert(key, Arc::clone(&shown));
                let task = ShipLane {
                    key,
                    source: Arc::clone(&self.parts.source),
                    topology: self.parts.topology.clone(),
                    links: Arc::clone(&self.links),
                    shown,
                    tenure: 0,
                    stop: self.handle.0.stop.clone(),
                };
                self.lanes.spawn(task.run());
            }
        }
    }

    /// Waits for the tasks to end; names the late.
    async fn wind_up(&mut self) {
        for (what, tasks) in [("lanes", &mut self.lanes), ("connections", &mut self.connections)] {
            let all = async { while tasks.join_next().await.is_some() {} };
            if timeout(GRACE, all).await.is_err() {
                tracing::warn!(what, late = tasks.len(), "replication tasks did not end in time");
                tasks.shutdown().await;
            }
        }
    }
}

fn check(ended: Result<(), tokio::task::JoinError>) -> Result<(), Error> {
    match ended {
        Err(failed) if failed.is_panic() => Err(Error::Panicked { task: failed.to_string() }),
        Ok(()) | Err(_) => Ok(()),
    }
}

impl Handle {
    fn shown(&self) -> std::sync::MutexGuard<'_, BTreeMap<LaneKey, Sight>> {
        self.0.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn led(&self) -> Vec<(LaneKey, Shown)> {
        let sights = self.shown();
        let shown = |sight: &Sight| sight.lock().unwrap_or_else(PoisonError::into_inner).clone();
        sights.iter().filter_map(|(key, sight)| Some((*key, shown(sight)?))).collect()
    }

    /// The state of every lane shipped from here, of the shards this node leads.
    pub fn lanes(&self) -> Vec<LaneStatus> {
        let status = |(_, shown): (LaneKey, Shown)| {
            let status = lock(&shown.shipper).status();
            LaneStatus { heard_ms: shown.connection.as_ref().and_then(heard_ms), ..status }
        };
        self.led().into_iter().map(status).collect()
    }

    /// How far every region is behind, for every bucket written here: the sum over the shards this node leads,
    /// and the oldest. Taken now, so its age is 0.
    pub fn lags(&self) -> Vec<BucketLag> {
        let mut lags: BTreeMap<(BucketId, RegionId), BucketLag> = BTreeMap::new();
        let wall_ms = wall_ms();
        for (key, Shown { shipper, .. }) in self.led() {
            let counters = |bucket| self.0.source.counters(key.shard, bucket);
            let of_lane = lock(&shipper).lags(Instant::now(), wall_ms, &counters);
            for lag in of_lane {
                let sum = lags.entry((lag.bucket, lag.target)).or_insert_with(|| BucketLag {
                    bucket: lag.bucket,
                    target: lag.target,
                    ..BucketLag::default()
                });
                sum.add(lag);
            }
        }
        lags.into_values().collect()
    }

    /// One sentence for every lane that is stopped and needs a person; empty when all is well.
    pub fn problems(&self) -> Vec<String> {
        use meridian_types::LaneState::{BehindLog, ClockSkew, Connecting, Diverged, Fenced, Streaming};
        let mut problems = BTreeSet::new();
        for lane in self.lanes() {
            let target = self.region_label(lane.target);
            let what = match lane.state {
                Streaming | Connecting { .. } => continue,
                BehindLog { .. } => "is behind the log that is left here: it needs a resync".to_owned(),
                Diverged { detail } => format!("has diverged and is stopped: {detail}"),
                Fenced => "refuses this region's entries as fenced".to_owned(),
                ClockSkew { ahead_ms } => format!("says this region's clock is {ahead_ms} ms ahead: set the clock"),
            };
            problems.insert(format!("the {} lane of shard {} to {target} {what}", lane.lane, lane.shard));
        }
        problems.into_iter().collect()
    }

    pub(crate) fn downgrade(&self) -> WeakHandle {
        WeakHandle(Arc::downgrade(&self.0))
    }

    /// The region this node ships from.
    pub(crate) fn region(&self) -> &RegionName {
        &self.0.region
    }

    pub(crate) fn region_label(&self, region: RegionId) -> String {
        self.0.topology.borrow().region_label(region)
    }

    pub(crate) fn bucket_label(&self, bucket: BucketId) -> String {
        let topology = self.0.topology.borrow();
        topology.buckets.get(&bucket).map_or_else(|| format!("bucket-{bucket}"), |bucket| bucket.name.to_string())
    }

    /// The address it listens on.
    pub fn local_address(&self) -> SocketAddr {
        self.0.local
    }

    /// Ends [`Service::run`]: connections are closed, what was not acknowledged is shipped again next time.
    pub fn stop(&self) {
        self.0.stop.cancel();
    }
}
