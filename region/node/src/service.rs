//! The region's data cluster on one node: `Service` runs it, `Handle` is how everybody speaks to it.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use meridian_consensus::{Consensus, StartError, StateError, Stopwatch};
use meridian_proto::dial::Dial;
use meridian_types::frame::Echo;
use meridian_types::{
    BackupAsk, Bucket, BucketId, DrillNews, DrillSpec, GroupId, Head, Hlc, Lack, Lane, Lsn, NodeId, Refusal,
    RefusalKind, RegionId, RepairStatus, ReplayPolicy, ReplayReport, Request, Response, SalvageBundle, SalvageId,
    SalvageKey, ShardDigest, ShardFacts, ShardId, Topology,
};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use crate::admission::Admission;
use crate::authority::Authority;
use crate::backup;
use crate::blocking::Blocking;
use crate::ceiling;
use crate::clock::{Clock, SystemClock};
use crate::crossing;
use crate::degrade;
use crate::disk::{Disk, Gauge, Space, SystemGauge};
use crate::drill::{self, Drills};
use crate::floors;
use crate::group::Groups;
use crate::handover;
use crate::holdings::Holding;
use crate::leaders;
use crate::machine::{Machine, Witness};
use crate::members;
use crate::metrics::{self, Metrics};
use crate::node::{Node, SCANS_MAX, ShardNode};
use crate::options::{Options, Place};
use crate::peers::{Exchanges, Neighbours, Peers};
use crate::repair::{self, Repairs};
use crate::replication::{FrameRefusal, Tail, TailError};
use crate::router::Caller;
use crate::salvage::{Files, Vault};
use crate::signs::Signs;
use crate::store::{Engine, EngineError, Store};
use crate::turns;
use crate::upkeep;

/// What the composition root gives.
pub struct Parts {
    /// Consensus of this node, open.
    pub groups: Arc<dyn Groups>,
    /// The engine of the state store, open; `None`: fjall, in the directory of the node's place.
    pub engine: Option<Arc<dyn Engine>>,
    /// What the metadata plane says.
    pub authority: Arc<dyn Authority>,
    /// How to ask other nodes.
    pub neighbours: Arc<dyn Neighbours>,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// How free disk space is found out.
    pub gauge: Arc<dyn Gauge>,
    /// Where what lost primaries kept goes; `None`: files in a directory `salvage` beside the node's state.
    pub vault: Option<Arc<dyn Vault>>,
    /// Where calls that block run.
    pub blocking: Blocking,
    /// Who sees everything that is applied.
    pub witness: Option<Arc<dyn Witness>>,
}

impl Parts {
    /// Parts with the machine's own clock, disk and threads.
    pub fn new(consensus: Consensus, authority: Arc<dyn Authority>, dial: Arc<dyn Dial>) -> Parts {
        Parts {
            groups: Arc::new(consensus),
            engine: None,
            authority,
            neighbours: Arc::new(Exchanges::new(dial)),
            clock: Arc::new(SystemClock::start()),
            gauge: Arc::new(SystemGauge),
            vault: None,
            blocking: Blocking::Threads,
            witness: None,
        }
    }
}

/// Why the region's data cluster can't start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state store can't be opened.
    #[error("the state store can't be opened")]
    Store(#[source] EngineError),
    /// A shard's state can't be used.
    #[error("shard {shard} can't be loaded")]
    Shard {
        /// The shard.
        shard: ShardId,
        /// Why.
        #[source]
        source: StateError,
    },
    /// A shard's group can't be started.
    #[error("the group of shard {shard} can't be started")]
    Group {
        /// The shard.
        shard: ShardId,
        /// Why.
        #[source]
        source: StartError,
    },
    /// A background task panicked: the node must exit, it never limps.
    #[error("a background task of the region's data cluster ended unexpectedly")]
    Task(#[source] tokio::task::JoinError),
    /// A background task ended although nobody asked it to.
    #[error("the background task `{0}` of the region's data cluster ended unexpectedly")]
    Ended(&'static str),
}

/// The background half.
pub struct Service {
    node: Arc<Node>,
    gauge: Arc<dyn Gauge>,
    drills: mpsc::Receiver<drill::Job>,
}

/// How everybody speaks to the region's data cluster of this node. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    node: Arc<Node>,
}

impl Service {
    /// Opens the state store, loads every shard and starts its group.
    ///
    /// # Errors
    /// [`Error`] says which of these failed.
    pub async fn open(place: Place, options: Options, parts: Parts) -> Result<(Service, Handle), Error> {
        if parts.engine.is_none() {
            let dir = place.dir.clone();
            parts.blocking.run(move || drill::sweep(&dir)).await.map_err(Error::Task)?;
        }
        let (service, handle) = Service::open_with(place, options, parts, Metrics::new()).await?;
        metrics::observe(&handle.node);
        Ok((service, handle))
    }

    /// As [`Service::open`], but no metric tells of it: for a drill's copy, which must not be taken for the node.
    ///
    /// # Errors
    /// As [`Service::open`].
    pub(crate) async fn open_unseen(place: Place, options: Options, parts: Parts) -> Result<(Service, Handle), Error> {
        Service::open_with(place, options, parts, Metrics::unseen()).await
    }

    async fn open_with(
        place: Place,
        options: Options,
        parts: Parts,
        metrics: Metrics,
    ) -> Result<(Service, Handle), Error> {
        let Parts { groups, engine, authority, neighbours, clock, gauge, vault, blocking, witness } = parts;
        let store = match engine {
            Some(engine) => Store::over(engine),
            None => {
                let (dir, store_options) = (place.dir.clone(), options.store.clone());
                // Recovery reads the store's journals: not on a runtime's worker.
                let opened = blocking.run(move || Store::open(&dir, &store_options)).await;
                opened.map_err(Error::Task)?.map_err(Error::Store)?
            }
        };
        let mut shards = Vec::with_capacity(usize::from(place.shards));
        for shard in (0..place.shards).map(ShardId) {
            shards.push(start_shard(&place, &options, groups.as_ref(), &store, &clock, &witness, shard).await?);
        }
        let disk = Disk::new(place.dir.clone(), options.disk_reserve_bytes);
        disk.check(gauge.as_ref());
        let (drills, waiting) = Drills::new(Arc::clone(&gauge));
        let vault = vault.unwrap_or_else(|| Arc::new(Files::new(place.dir.with_file_name("salvage"))));
        let node = Arc::new(Node {
            vault,
            peers: Peers::new(place.node, neighbours),
            admission: Arc::new(Admission::new(options.in_flight_max, options.in_flight_bytes_max)),
            disk,
            log: groups,
            writing_back: Stopwatch::default(),
            state_bytes: AtomicU64::new(0),
            shards,
            scans: Semaphore::new(SCANS_MAX),
            repairs: Repairs::new(options.repair_bytes_per_s),
            drills,
            backups: Default::default(),
            metrics,
            signs: Signs::default(),
            breaches: Default::default(),
            exposures: Default::default(),
            following: Default::default(),
            place,
            options,
            store,
            blocking,
            authority,
            clock,
        });
        Ok((Service { node: Arc::clone(&node), gauge, drills: waiting }, Handle { node }))
    }

    /// Runs the background tasks until `stop` resolves.
    ///
    /// # Errors
    /// [`Error::Task`] when one of them panicked: the process must exit non-zero.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), Error> {
        let mut tasks = JoinSet::new();
        for (name, task) in self.into_tasks() {
            tasks.spawn(async move {
                task.await;
                name
            });
        }
        tokio::pin!(stop);
        let ended = tokio::select! {
            biased;
            () = &mut stop => Ok(()),
            ended = tasks.join_next() => match ended {
                Some(Err(why)) => Err(Error::Task(why)),
                Some(Ok(name)) => Err(Error::Ended(name)),
                None => Ok(()),
            },
        };
        tasks.shutdown().await;
        ended
    }

    /// The background tasks with their names, for whoever has another way to run them than [`Service::run`]. None of
    /// them may end before the node does.
    pub fn into_tasks(self) -> Vec<(&'static str, BoxFuture<'static, ()>)> {
        let node = self.node;
        let leadership = |place| upkeep::follow_leadership(Arc::clone(&node), place).boxed();
        let mut tasks: Vec<_> = (0..node.shards.len()).map(|place| ("leadership", leadership(place))).collect();
        tasks.push(("housekeeping", upkeep::keep_house(Arc::clone(&node), self.gauge).boxed()));
        tasks.push(("purge floors", floors::follow_floors(Arc::clone(&node)).boxed()));
        tasks.push(("leaders", leaders::keep_balance(Arc::clone(&node)).boxed()));
        tasks.push(("members", members::follow_record(Arc::clone(&node)).boxed()));
        tasks.push(("write-back", upkeep::write_back(Arc::clone(&node)).boxed()));
        tasks.push(("key expiry", upkeep::expire_keys(Arc::clone(&node)).boxed()));
        tasks.push(("repair", repair::watch(Arc::clone(&node)).boxed()));
        tasks.push(("handover", handover::hand_over(Arc::clone(&node)).boxed()));
        tasks.push(("crossings", crossing::keep_crossings(Arc::clone(&node)).boxed()));
        tasks.push(("turns", turns::keep_turns(Arc::clone(&node)).boxed()));
        tasks.push(("copies", degrade::keep_copies(Arc::clone(&node)).boxed()));
        tasks.push(("ceilings", ceiling::keep_ceilings(Arc::clone(&node)).boxed()));
        tasks.push(("drills", drill::serve(Arc::clone(&node), self.drills).boxed()));
        tasks.push(("bucket removal", upkeep::drop_buckets(Arc::clone(&node)).boxed()));
        tasks.push(("client expiry", upkeep::expire_clients(node).boxed()));
        tasks
    }
}

async fn start_shard(
    place: &Place,
    options: &Options,
    groups: &dyn Groups,
    store: &Store,
    clock: &Arc<dyn Clock>,
    witness: &Option<Arc<dyn Witness>>,
    shard: ShardId,
) -> Result<ShardNode, Error> {
    let (machine, board) = Machine::open(store, place.region, shard, place.shards, options, witness.clone())
        .map_err(|source| Error::Shard { shard, source })?;
    let voters: &[NodeId] = if place.moved.contains(&shard) { &[] } else { &place.voters };
    let group = groups
        .start(GroupId::of_shard(shard), voters, Box::new(machine))
        .await
        .map_err(|source| Error::Group { shard, source })?;
    Ok(ShardNode::new(shard, group, board, Arc::clone(clock)))
}

impl Handle {
    /// Carries out a request, here or wherever it belongs.
    ///
    /// # Errors
    /// The typed "no" for its client.
    pub async fn execute(&self, request: Request, caller: Caller) -> Result<Response, Refusal> {
        self.node.execute(request, caller).await
    }

    /// The end of a shard's applied log, while this node leads it; moves right after every apply.
    pub fn head(&self, shard: ShardId) -> watch::Receiver<Option<Head>> {
        self.node.head(shard)
    }

    /// Rises whenever a replica of one of the shard's buckets was made equal to its source: here, or in another region from here.
    pub fn mended(&self, shard: ShardId) -> watch::Receiver<u64> {
        self.node.mended(shard)
    }

    /// Applied entries of a shard after `after`, about `bytes_max` bytes.
    ///
    /// # Errors
    /// See [`TailError`].
    pub async fn read_log(&self, shard: ShardId, after: Lsn, bytes_max: usize) -> Result<Tail, TailError> {
        self.node.read_log(shard, after, bytes_max).await
    }

    /// `target` has durably applied everything of a lane up to `lsn`.
    pub fn acknowledged(&self, shard: ShardId, lane: Lane, target: RegionId, lsn: Lsn) {
        if let Some(shard) = self.node.shard(shard) {
            shard.acknowledged(lane, target, lsn);
        }
    }

    /// How far the entries of another region have been durably applied here.
    ///
    /// # Errors
    /// [`RefusalKind::Redirect`] when another node leads the shard.
    pub async fn watermark(&self, source: RegionId, shard: ShardId, lane: Lane) -> Result<Lsn, Refusal> {
        match self.node.shard(shard) {
            Some(shard) if shard.leads_surely() => Ok(shard.board.watermark(source, lane)),
            _ => Err(Refusal::new(RefusalKind::Redirect, format!("this node does not lead shard {shard}"))),
        }
    }

    /// Whether this node leads a shard.
    pub fn leads(&self, shard: ShardId) -> bool {
        self.node.shard(shard).is_some_and(|shard| shard.board.leads())
    }

    /// Whether this node leads a shard and can prove it, or could a moment ago: whoever sends it something need not go elsewhere.
    pub fn leads_surely(&self, shard: ShardId) -> bool {
        self.node.shard(shard).is_some_and(ShardNode::leads_surely)
    }

    /// The other node that leads a shard in this region, if one is known.
    pub fn leader_beside(&self, shard: ShardId) -> Option<NodeId> {
        self.leader(shard).filter(|leader| *leader != self.node.place.node)
    }

    /// The node that leads a shard in this region, if one is known.
    pub fn leader(&self, shard: ShardId) -> Option<meridian_types::NodeId> {
        self.node.shard(shard).and_then(|shard| shard.leader())
    }

    /// Hands the shards that this node leads to others of its region, before it stops; tells how many were taken over.
    pub async fn hand_over_leadership(&self, patience: Duration) -> usize {
        self.node.hand_over_leadership(patience).await
    }

    /// Proposes a frame of another region's entries. It is checked and enqueued by this call, so that frames keep the
    /// order of the calls; the future resolves to the lane's watermark once the frame is durably applied.
    pub fn apply_frame(
        &self,
        frame: &Bytes,
    ) -> impl Future<Output = Result<Lsn, FrameRefusal>> + Send + 'static + use<> {
        self.node.apply_frame(frame)
    }

    /// A lane has everything its source had when [`Handle::monotonic_ms`] read `echo.probe`, up to `last` (CON-3).
    pub fn complete_up_to(&self, source: RegionId, shard: ShardId, lane: Lane, echo: Echo, last: Lsn) {
        self.node.complete_up_to(source, shard, lane, echo, last);
    }

    /// The primaries in `source` say what is lacking in a shard of this region.
    pub fn exposed(&self, source: RegionId, shard: ShardId, lane: Lane, said: &[Lack]) {
        self.node.exposed(source, shard, lane, said);
    }

    /// The other regions of which nothing came lately over any lane.
    pub fn silent_regions(&self) -> BTreeSet<RegionId> {
        let topology = self.node.authority.topology();
        let others = topology.regions.keys().copied().filter(|region| *region != self.node.region());
        self.node.signs.silent(others, self.node.clock.monotonic_ms())
    }

    /// What the shards that this node leads have of a bucket whose primary is elsewhere: what an estimate rests on.
    pub fn facts(&self, bucket: &Bucket, lost: Option<RegionId>) -> Vec<ShardFacts> {
        self.node.facts(bucket, lost)
    }

    /// This node's monotonic clock: what probes carry. Never 0.
    pub fn monotonic_ms(&self) -> u64 {
        self.node.clock.monotonic_ms().max(1)
    }

    /// This node's wall clock as a timestamp, to judge a peer's by. The peer's moves it only as far as the machine's own
    /// clock agrees.
    pub fn hlc_beside(&self, peer: Hlc) -> Hlc {
        Hlc::from_millis(self.node.clock.wall_beside_ms(peer.millis()))
    }

    /// Writes that this region's own log brought to a bucket since this node started, with their bytes; rising.
    pub fn counters(&self, shard: ShardId, bucket: BucketId) -> (u64, u64) {
        self.node.shard(shard).map(|shard| shard.board.own_writes(bucket)).unwrap_or_default()
    }

    /// The digests of one bucket, or of all.
    pub fn digests(&self, bucket: Option<BucketId>) -> Vec<ShardDigest> {
        let mut digests = Vec::new();
        for shard in &self.node.shards {
            let public = shard.board.public();
            for (id, digest) in public.digests.iter().filter(|(id, _)| bucket.is_none_or(|bucket| bucket == **id)) {
                digests.push(ShardDigest {
                    bucket: *id,
                    shard: shard.id,
                    digest: digest.clone(),
                    diverged: public.diverged.contains_key(id),
                });
            }
        }
        digests
    }

    /// The newest topology applied here.
    pub fn topology(&self) -> Arc<Topology> {
        self.node.authority.topology()
    }

    /// Answers what another region asks of a repair: bytes of `region/core`'s `repair::message`.
    ///
    /// # Errors
    /// [`RefusalKind::Redirect`] when another node leads the shard, [`RefusalKind::Conflict`] when the session is over,
    /// [`RefusalKind::Retry`] for what may pass.
    pub async fn answer_repair(&self, by: RegionId, ask: &[u8]) -> Result<Bytes, Refusal> {
        self.node.answer_repair(by, ask).await
    }

    /// Makes a bucket in a shard equal to another replica's, which must lack nothing that this one has: how a successor
    /// gets the tail of a lost primary from the survivor that has more of it. Resolves once it is.
    ///
    /// # Errors
    /// [`RefusalKind::Redirect`] when another node leads the shard; [`RefusalKind::Retry`] when too much is asked for, or
    /// this node lost the shard meanwhile.
    pub async fn pull(&self, shard: ShardId, bucket: BucketId, from: RegionId) -> Result<(), Refusal> {
        self.node.pull(shard, bucket, from).await
    }

    /// Has a bucket compared with its primary's in every shard that this node leads, and made equal where it differs.
    /// Tells how many shards that are; [`Handle::repairs`] shows how far they are.
    ///
    /// # Errors
    /// [`RefusalKind::NotFound`] for a bucket that is not here, [`RefusalKind::Invalid`] where this region is the primary.
    pub fn resync(&self, bucket: BucketId) -> Result<usize, Refusal> {
        self.node.resync(bucket)
    }

    /// Repairs of this node's shards: under way, waiting, and over since it started (the last few hundred).
    pub fn repairs(&self) -> Vec<RepairStatus> {
        self.node.repairs.table.statuses(tokio::time::Instant::now())
    }

    /// Lets replicas of a bucket, or of all, that were primaries give up what only they have, once that is written down:
    /// what they wait for where [`Options::manual_reinstate`] says so. Tells how many buckets wait for it.
    pub fn reinstate(&self, bucket: Option<BucketId>) -> usize {
        self.node.reinstate(bucket)
    }

    /// What lost primaries kept on this node (SWI-2).
    ///
    /// # Errors
    /// When the disk fails or a bundle is damaged.
    pub async fn salvages(&self) -> Result<Vec<SalvageBundle>, Refusal> {
        self.node.salvages().await
    }

    /// One bundle.
    ///
    /// # Errors
    /// [`RefusalKind::NotFound`], or as [`Handle::salvages`].
    pub async fn salvage(&self, id: SalvageId) -> Result<SalvageBundle, Refusal> {
        self.node.salvage_of(id).await
    }

    /// The keys of one part of a bundle; `judged`: with what became of each at the bucket's primary.
    ///
    /// # Errors
    /// As [`Handle::salvage`]; when the primary can't be asked.
    pub async fn salvage_keys(&self, id: SalvageId, part: u32, judged: bool) -> Result<Vec<SalvageKey>, Refusal> {
        self.node.salvage_keys(id, part, judged).await
    }

    /// Writes one part of a bundle back, or with `dry_run` only says what would become of it.
    ///
    /// # Errors
    /// As [`Handle::salvage`].
    pub async fn replay(
        &self,
        id: SalvageId,
        part: u32,
        policy: ReplayPolicy,
        dry_run: bool,
    ) -> Result<ReplayReport, Refusal> {
        self.node.replay(id, part, policy, dry_run).await
    }

    /// Forgets a bundle for good.
    ///
    /// # Errors
    /// As [`Handle::salvage`].
    pub async fn drop_salvage(&self, id: SalvageId) -> Result<(), Refusal> {
        self.node.drop_salvage(id).await
    }

    /// Rehearses a failover of buckets to this region on a copy of what this node has, which is removed afterwards. Whoever
    /// stops listening gives it up.
    ///
    /// # Errors
    /// [`RefusalKind::NotFound`] and [`RefusalKind::Invalid`] for buckets that can't fail over to here;
    /// [`RefusalKind::Retry`] while another drill is under way, or a primary is being moved. Later, as the last that is heard:
    /// [`RefusalKind::Unavailable`] when there is no room, [`RefusalKind::Corrupt`] when a shard can't be read.
    pub fn drill(&self, spec: DrillSpec) -> Result<mpsc::Receiver<Result<DrillNews, Refusal>>, Refusal> {
        self.node.drill(spec)
    }

    /// Gives a bucket's rows of a shard away as they are now: the cut, the rows in the order of their keys, the end. Whoever stops
    /// listening gives it up.
    ///
    /// # Errors
    /// [`RefusalKind::NotFound`] and [`RefusalKind::Invalid`] for buckets that are not here; [`RefusalKind::Redirect`] when another
    /// node leads the shard; [`RefusalKind::Retry`] for what may pass. Later, as the last that is heard: [`RefusalKind::Corrupt`]
    /// when it can't be read, [`RefusalKind::Conflict`] when nobody asked for the next page for a minute.
    pub async fn back_up(&self, bucket: BucketId, shard: ShardId, ask: BackupAsk) -> Result<backup::Pieces, Refusal> {
        self.node.back_up(bucket, shard, ask).await
    }

    /// Shards this node leads, and holds.
    pub fn shards(&self) -> (u32, u32) {
        let led = self.node.shards.iter().filter(|shard| shard.board.leads()).count();
        (u32::try_from(led).unwrap_or(u32::MAX), u32::from(self.node.place.shards))
    }

    /// The data disk at the last look.
    pub fn disk(&self) -> Space {
        self.node.disk.space()
    }

    /// Bytes of the state store on disk, as of half a second ago: asking the store takes a lock that it holds while its disk hangs.
    pub fn state_bytes(&self) -> u64 {
        self.node.state_bytes.load(Ordering::Relaxed)
    }

    /// How full everything is that can grow, beside its bound (RES-1).
    pub fn holdings(&self) -> Vec<Holding> {
        self.node.holdings()
    }

    /// Empty when healthy; else one sentence each, with the remedy.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.node.disk.is_full() {
            problems.push(self.node.disk.sentence());
        }
        problems.extend(upkeep::write_back_stalled(&self.node));
        problems.extend(self.node.breaches().values().cloned());
        problems.extend(self.node.standings());
        for shard in self.node.shards.iter().filter(|shard| shard.leader().is_none()) {
            problems.push(format!(
                "shard {} has no leader in this region: check that a majority of its nodes is up and reachable",
                shard.id
            ));
        }
        for shard in &self.node.shards {
            for divergence in shard.board.public().diverged.values() {
                problems.push(format!(
                    "bucket {} differs from its source in shard {}: it serves no reads here and is repaired; `meridian resync list` shows how far that is",
                    divergence.bucket, shard.id
                ));
            }
        }
        for bucket in self.node.waits_for_consent() {
            problems.push(format!(
                "bucket {bucket} holds writes here that its new primary lacks, and serves no reads: `meridian reinstate` writes them down and makes it a replica"
            ));
        }
        problems
    }
}
