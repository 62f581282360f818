//! One node: the composition root that introduces the rooms to each other, and their common life.
//!
//! ```text
//!   consensus ──> metadata ──(the cluster is formed, this node has its place)──> region ──> replicator
//!       └──────── rpc server: up from the start, refuses data until the region is open ────────┘
//! ```
//!
//! Nothing here decides about data. Whatever ends unexpectedly ends the process, non-zero: a node never limps.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use meridian_consensus::{Consensus, LogOptions, Pace};
use meridian_gateway::{Gateway, RecoveryService};
use meridian_proto::dial::{self, Dial};
use meridian_proto::identity::Identity;
use meridian_proto::tls::{TlsFiles, TlsMaterial};
use meridian_proto::v1::recovery_server::RecoveryServer;
use meridian_types::{NodeId, RegionId, Topology};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tracing::{info, warn};

use crate::config::{Config, Member};
use crate::observability;
use crate::server::authority::MetadataAuthority;
use crate::server::connections::Connections;
use crate::server::dialer::Dialer;
use crate::server::front::{Data, Front};

mod authority;
mod connections;
mod dialer;
mod estimate;
mod front;
mod recovery;
mod replication;

/// Runs a node until `shutdown` resolves, then ends cleanly.
///
/// # Errors
/// What kept the node from starting, or ended it unexpectedly; one chain of causes for a person.
pub async fn run(config: Config, shutdown: impl Future<Output = ()> + Send) -> anyhow::Result<()> {
    let telemetry = observability::init(&config.telemetry, config.region.as_str(), config.node.as_str())?;
    let tls = load_tls(&config)?;
    let listeners = Listeners::bind(&config).await?;
    info!(
        cluster = config.cluster,
        region = %config.region,
        node = %config.node,
        version = env!("CARGO_PKG_VERSION"),
        data_dir = %config.data_dir.display(),
        "starting"
    );

    let dialer = Arc::new(Dialer::new(&config, tls.clone()));
    let mut node = Node::open(&config, &tls, Arc::clone(&dialer)).await?;
    node.listen(&config, &tls, listeners, &telemetry)?;

    tokio::pin!(shutdown);
    let ended = tokio::select! {
        () = &mut shutdown => Ok(()),
        ended = node.serve(&config, &tls, dialer) => ended,
    };
    let ended = ended.or_else(|why| why.downcast::<Drained>().map(|drained| info!("{drained}")));
    match &ended {
        Ok(()) => info!("stopping"),
        Err(error) => tracing::error!(error = format!("{error:#}"), "the node stops because a part of it failed"),
    }
    node.stop(Duration::from_millis(config.limits.shutdown_grace_ms)).await;
    ended
}

fn load_tls(config: &Config) -> anyhow::Result<TlsMaterial> {
    let tls = TlsFiles::new(&config.tls.ca, &config.tls.cert, &config.tls.key).load()?;
    let own = Identity::Node { region: config.region.clone(), name: config.node.clone() };
    anyhow::ensure!(
        *tls.identity() == own,
        "the certificate {} is for {}, but the configuration says {}: use this node's own certificate",
        config.tls.cert.display(),
        tls.identity(),
        own
    );
    Ok(tls)
}

/// The ports, taken before anything else so that a busy one is reported at once.
struct Listeners {
    rpc: TcpListener,
    admin: TcpListener,
}

impl Listeners {
    async fn bind(config: &Config) -> anyhow::Result<Listeners> {
        Ok(Listeners {
            rpc: bind("listen.rpc", config.listen.rpc).await?,
            admin: bind("listen.admin", config.listen.admin).await?,
        })
    }
}

async fn bind(field: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("can't listen on `{field} = {address}`: is another node running there? Stop it or choose another port")
    })
}

fn consensus_options(node: NodeId, config: &Config) -> meridian_consensus::Options {
    let defaults = meridian_consensus::Options::new(node, config.data_dir.join("log"));
    let log = LogOptions { segment_bytes: config.limits.log_segment_bytes, ..defaults.log };
    let persist_every = Duration::from_millis(config.limits.persist_every_ms);
    let metadata = Pace::between_regions(election_priority(config));
    let stalled_after = Duration::from_millis(config.limits.disk_stall_ms);
    meridian_consensus::Options { log, persist_every, metadata, stalled_after, ..defaults }
}

/// The parts of a running node.
struct Node {
    consensus: Consensus,
    metadata: meridian_metadata_node::Handle,
    metadata_service: Option<meridian_metadata_node::Service>,
    gateway: Arc<Gateway<Front, Front>>,
    front: Arc<Front>,
    peers: meridian_region_node::PeerService,
    tasks: JoinSet<anyhow::Result<()>>,
    stop: CancellationToken,
}

impl Node {
    async fn open(config: &Config, tls: &TlsMaterial, dialer: Arc<Dialer>) -> anyhow::Result<Node> {
        let id = NodeId::of(&config.node);
        let dial: Arc<dyn Dial> = dialer;
        let consensus = Consensus::open(consensus_options(id, config), Arc::clone(&dial)).await?;
        let members = config.members.iter().map(|member| metadata_member(config, member)).collect::<Vec<_>>();
        let own = config.own_member().ok_or_else(|| anyhow!("`node` is not among `members`"))?;
        let this = metadata_member(config, &own);
        let options = meridian_metadata_node::Options {
            shards: config.shards,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            repair_after_ms: config.limits.repair_after_ms,
            ..meridian_metadata_node::Options::new(this, members, config.data_dir.join("metadata"))
        };
        let peers = Arc::clone(&dial);
        let (service, metadata) = meridian_metadata_node::Service::open(options, &consensus, dial).await?;
        let (ends, witness) = (tls.not_after_unix_s(), config.is_witness());
        let front = Arc::new(Front::new(id, ends, witness, consensus.clone(), metadata.clone(), peers));
        let gateway =
            Arc::new(Gateway::new(meridian_gateway::Options::default(), Arc::clone(&front), Arc::clone(&front)));
        Ok(Node {
            consensus,
            metadata,
            metadata_service: Some(service),
            gateway,
            front,
            peers: meridian_region_node::PeerService::default(),
            tasks: JoinSet::new(),
            stop: CancellationToken::new(),
        })
    }

    /// Opens the rpc and admin ports to others.
    fn listen(
        &mut self,
        config: &Config,
        tls: &TlsMaterial,
        listeners: Listeners,
        telemetry: &observability::Guard,
    ) -> anyhow::Result<()> {
        let rpc = dial::server(tls)?
            .add_service(self.consensus.peer_service())
            .add_service(self.metadata.peer_service())
            .add_service(self.gateway.forward_peer())
            .add_service(self.peers.server())
            .add_service(self.gateway.key_value())
            .add_service(self.gateway.cluster())
            .add_service(RecoveryServer::new(RecoveryService::new(Arc::clone(&self.front))));
        let stop = self.stop.clone();
        let incoming = TcpIncoming::from(listeners.rpc).with_nodelay(Some(true));
        let connections = Connections::new(incoming, config.limits.connections_max);
        self.tasks.spawn(async move {
            rpc.serve_with_incoming_shutdown(connections, stop.cancelled_owned()).await.context("the rpc server failed")
        });
        let front = Arc::clone(&self.front);
        let admin = telemetry.admin_router(move || front.not_ready());
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            axum::serve(listeners.admin, admin)
                .with_graceful_shutdown(stop.cancelled_owned())
                .await
                .context("the admin server failed")
        });
        Ok(())
    }

    /// Brings up region and replicator once the cluster is formed, then waits for the first thing that ends.
    async fn serve(&mut self, config: &Config, tls: &TlsMaterial, dialer: Arc<Dialer>) -> anyhow::Result<()> {
        if let Some(service) = self.metadata_service.take() {
            let stop = self.stop.clone();
            self.tasks.spawn(async move { Ok(service.run(stop.cancelled_owned()).await?) });
        }
        let consensus_failed = self.consensus.fatal();
        let gateway = Arc::clone(&self.gateway);
        let region = async {
            let place = self.place(config).await?;
            self.tasks.spawn(follow_addresses(self.metadata.changes(), Arc::clone(&dialer), self.stop.clone()));
            if config.is_witness() {
                info!("this node is a witness: it votes in the metadata plane and holds no data");
            } else {
                let place = self.wait_for_shards(place).await?;
                self.open_region(config, tls, &dialer, place).await?;
                self.tasks.spawn(leave_when_drained(self.metadata.clone(), self.front.node(), self.stop.clone()));
            }
            while let Some(ended) = self.tasks.join_next().await {
                ended.context("a task panicked")??;
                anyhow::ensure!(self.stop.is_cancelled(), "a task ended unexpectedly");
            }
            Ok(())
        };
        tokio::select! {
            ended = region => ended,
            error = consensus_failed => Err(error.into()),
            _ = gateway.fatal() => Err(anyhow!("a request's code panicked")),
        }
    }

    /// Waits until the metadata plane has given this node its place.
    async fn place(&self, config: &Config) -> anyhow::Result<meridian_region_node::Place> {
        let node = NodeId::of(&config.node);
        let mut changes = self.metadata.changes();
        let waited = changes.wait_for(|topology| topology.nodes.contains_key(&node));
        let topology: Arc<Topology> = Arc::clone(&*waited.await.context("the metadata plane stopped")?);
        let region: RegionId =
            topology.nodes.get(&node).map(|node| node.region).context("the cluster does not know this node")?;
        if topology.shards != config.shards {
            warn!(
                configured = config.shards,
                cluster = topology.shards,
                "`shards` was fixed when the cluster was formed"
            );
        }
        info!(region = %config.region, replica = %region, shards = topology.shards, "the cluster is formed");
        let dir = config.data_dir.join("state");
        let (voters, moved) = (Vec::new(), BTreeSet::new());
        Ok(meridian_region_node::Place { region, node, shards: topology.shards, voters, moved, dir })
    }

    /// Waits until this node has shards to hold, and fills in who votes in them: a spare has none until it joins.
    async fn wait_for_shards(&self, place: meridian_region_node::Place) -> anyhow::Result<meridian_region_node::Place> {
        let mut changes = self.metadata.changes();
        if !changes.borrow().serves(place.node) {
            info!("this node is a spare: it holds nothing until `meridian node join` or `replace` gives it shards");
        }
        changes.wait_for(|topology| topology.serves(place.node)).await.context("the metadata plane stopped")?;
        let (voters, moved) = self.metadata.founders(place.region);
        Ok(meridian_region_node::Place { voters, moved, ..place })
    }

    async fn open_region(
        &mut self,
        config: &Config,
        tls: &TlsMaterial,
        dialer: &Arc<Dialer>,
        place: meridian_region_node::Place,
    ) -> anyhow::Result<()> {
        let options = meridian_region_node::Options {
            disk_reserve_bytes: config.limits.disk_reserve_bytes,
            log_retention_bytes: config.limits.log_retention_bytes,
            log_kept_bytes: config.limits.log_kept_bytes,
            repair_bytes_per_s: config.limits.repair_bytes_per_s,
            manual_reinstate: config.limits.manual_reinstate,
            ..meridian_region_node::Options::default()
        };
        let authority = Arc::new(MetadataAuthority(self.metadata.clone()));
        let dial: Arc<dyn Dial> = Arc::clone(dialer) as Arc<dyn Dial>;
        let parts = meridian_region_node::Parts::new(self.consensus.clone(), authority, dial);
        let (service, region) = meridian_region_node::Service::open(place, options, parts).await?;
        let replicator = self.bind_replicator(config, tls, &region)?;
        let handle = replicator.handle();
        let stop = self.stop.clone();
        self.tasks.spawn(async move { Ok(service.run(stop.cancelled_owned()).await?) });
        let (stop, stopped) = (self.stop.clone(), handle.clone());
        self.tasks.spawn(async move {
            let run = replicator.run();
            tokio::pin!(run);
            tokio::select! {
                ended = &mut run => return Ok(ended?),
                () = stop.cancelled() => stopped.stop(),
            }
            Ok(run.await?)
        });
        let ears = region.clone();
        self.metadata.listen(move || ears.silent_regions());
        self.peers.open(region.clone());
        self.front.open(Data { region, replicator: handle });
        Ok(())
    }

    fn bind_replicator(
        &self,
        config: &Config,
        tls: &TlsMaterial,
        region: &meridian_region_node::Handle,
    ) -> anyhow::Result<meridian_replicator_quic::Service> {
        let options = meridian_replicator_quic::Options::new(
            config.node.clone(),
            config.region.clone(),
            config.listen.replication.context("`listen.replication` is missing")?,
        );
        let parts = meridian_replicator_quic::Parts {
            source: Arc::new(replication::Source(region.clone())),
            sink: Arc::new(replication::Sink(region.clone())),
            topology: self.metadata.changes(),
            addresses: Arc::new(replication::addresses(config, self.metadata.clone())),
            tls: meridian_replicator_quic::TlsPem {
                ca: tls.ca_pem().to_vec(),
                cert: tls.cert_pem().to_vec(),
                key: tls.key_pem().to_vec(),
            },
        };
        Ok(meridian_replicator_quic::Service::bind(options, parts)?)
    }

    /// Lets other nodes of the region lead, stops accepting, lets what is under way finish, then ends every part and names whoever is
    /// late.
    async fn stop(mut self, grace: Duration) {
        if let Ok(data) = self.front.data() {
            let handed = data.region.hand_over_leadership(grace / 2).await;
            if handed > 0 {
                info!(shards = handed, "other nodes of the region lead from now on");
            }
        }
        if let Err(late) = self.gateway.drain(grace).await {
            warn!(requests = late.requests, "requests were still in progress when the grace period ended");
        }
        self.stop.cancel();
        let drained = async { while self.tasks.join_next().await.is_some() {} };
        // Together: the rpc server ends once the peers' streams do, and those end with consensus.
        let (drained, ()) = tokio::join!(tokio::time::timeout(grace, drained), self.consensus.shutdown(grace));
        if drained.is_err() {
            warn!(tasks = self.tasks.len(), "tasks were still running when the grace period ended");
            self.tasks.shutdown().await;
        }
        info!("stopped");
    }
}

/// How often a drained node looks whether it votes still.
const VOTE_LOOK: Duration = Duration::from_millis(200);

/// Which of the metadata voters this node is in an election, by names that all of them know.
fn election_priority(config: &Config) -> usize {
    config.members.iter().filter(|member| votes(config, member) && member.name < config.node).count()
}

/// One voter per region: the first of its members, so that the metadata plane survives the loss of a region.
fn votes(config: &Config, member: &Member) -> bool {
    let first = config.members.iter().find(|other| other.region == member.region);
    first.is_some_and(|first| first.name == member.name)
}

fn metadata_member(config: &Config, member: &Member) -> meridian_metadata_node::Member {
    meridian_metadata_node::Member {
        name: member.name.clone(),
        region: member.region.clone(),
        zone: member.zone.clone(),
        rpc_address: member.rpc.clone(),
        replication_address: member.replication.clone(),
        voter: votes(config, member),
    }
}

/// Ends a node whose shards are all held by others: what it still has grows old, and must not be read. Not before another one votes for
/// its region in the metadata plane, which may need its vote for that.
async fn leave_when_drained(
    metadata: meridian_metadata_node::Handle,
    node: NodeId,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut changes = metadata.changes();
    let drained = async {
        loop {
            let serves = changes.wait_for(|topology| !topology.serves(node)).await.map(drop);
            serves.context("the metadata plane stopped")?;
            if !metadata.votes() {
                return anyhow::Ok(());
            }
            tokio::time::sleep(VOTE_LOOK).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        drained = drained => drained.and_then(|()| Err(Drained.into())),
    }
}

/// Other nodes hold the shards of this one: it has nothing left to do.
#[derive(Debug, thiserror::Error)]
#[error(
    "this node was drained: other nodes of its region hold its shards; started again it is a spare, and `meridian node remove` takes it out of the cluster"
)]
struct Drained;

/// Tells the dialer where nodes that joined or moved are.
async fn follow_addresses(
    mut changes: watch::Receiver<Arc<Topology>>,
    dialer: Arc<Dialer>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        dialer.learn(&changes.borrow_and_update().clone());
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = changes.changed() => changed.context("the metadata plane stopped")?,
        }
    }
}
