//! One simulated node: what outlives its crashes, and one of its lives.
//!
//! A life runs the real region/node `Service` and `Handle`, with everything around them simulated: consensus, disk,
//! clocks, metadata plane, replicator, neighbours.

use std::future::Future;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use meridian_metadata_core::command::Form;
use meridian_metadata_core::{Action, Reply};
use meridian_proto::exchange::Failure;
use meridian_region_node::{Blocking, Caller, Clock, Handle, Neighbours, Options, Parts, Service};
use meridian_replicator_core::shipper::LaneKey;
use meridian_types::{
    BucketId, Effect, GroupId, Lane, NodeId, NodeName, Refusal, RefusalKind, RegionId, RegionName, Request, RequestId,
    Response, ShardFacts, ShardId, Topology, Write,
};
use tokio::sync::watch;

use super::clock::NodeClock;
use super::dice::Dice;
use super::disk::NodeDisk;
use super::executor::Owner;
use super::group::{Ground, Housekeeping, Message, SimulatedConsensus};
use super::metadata::ask::Asker;
use super::metadata::copy::Spokesman;
use super::metadata::plane::{Made, Plane};
use super::network::Place;
use super::record::Record;
use super::replication::Windows;
use super::replication::intake::Intake;
use super::replication::ship::ShipLane;
use super::stream::End;
use super::wires::{CallError, Wires};
use crate::trace::{Fact, Replica};

/// What of a node outlives its crashes.
pub(crate) struct Body {
    pub(crate) number: usize,
    pub(crate) name: NodeName,
    pub(crate) zone: &'static str,
    pub(crate) region_name: RegionName,
    pub(crate) replica: Replica,
    pub(crate) disk: Arc<NodeDisk>,
    pub(crate) clock: Arc<NodeClock>,
}

/// What every node is made with.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) wires: Wires,
    pub(crate) record: Record,
    pub(crate) dice: Dice,
    pub(crate) form: Form,
    /// How many nodes vote in the metadata plane: the first one of each region. The others follow.
    pub(crate) voters: usize,
    /// Every node of the planet, by number.
    pub(crate) nodes: Arc<Vec<(NodeId, RegionId)>>,
    pub(crate) options: Options,
    pub(crate) housekeeping: Housekeeping,
    pub(crate) window_bytes: usize,
    /// Told when a node ends by itself: its number, its incarnation and why.
    pub(crate) ended: Arc<dyn Fn(usize, u64, String) + Send + Sync>,
}

/// One life of a node.
pub(crate) struct Life {
    pub(crate) number: usize,
    pub(crate) replica: Replica,
    pub(crate) incarnation: u64,
    pub(crate) plane: Arc<Plane>,
    asker: Arc<Asker>,
    region: OnceLock<Open>,
    around: Surroundings,
    gone: watch::Sender<bool>,
}

struct Open {
    handle: Handle,
    consensus: Arc<SimulatedConsensus>,
}

impl Life {
    /// Begins a life: what is on the disk is opened, and the region once the cluster is known.
    pub(crate) fn begin(body: &Body, incarnation: u64, around: &Surroundings) -> Arc<Life> {
        body.clock.restart();
        let made = Made {
            replica: body.replica,
            number: body.number,
            nodes: around.nodes.iter().map(|(node, _)| *node).collect(),
            voters: around.voters,
            clock: Arc::clone(&body.clock),
            disk: Arc::clone(&body.disk),
            dice: around.dice.clone(),
            record: around.record.clone(),
            wires: around.wires.clone(),
        };
        let plane = Arc::new(Plane::open(made));
        let asker = Arc::new(Asker {
            plane: Arc::clone(&plane),
            clock: Arc::clone(&body.clock),
            wires: around.wires.clone(),
            dice: around.dice.clone(),
            incarnation: around.dice.next(),
            members: around.voters,
            form: around.form.clone(),
            ears: OnceLock::new(),
        });
        let (number, replica) = (body.number, body.replica);
        let region = OnceLock::new();
        let gone = watch::Sender::new(false);
        let life = Life { number, replica, incarnation, plane, asker, region, around: around.clone(), gone };
        let life = Arc::new(life);
        around.wires.set_life(number, Some(Arc::clone(&life)));
        life.task("metadata group", Arc::clone(&life.plane).run());
        life.task("lease", Arc::clone(&life.asker).renew());
        life.task("forming", Arc::clone(&life.asker).form());
        life.task("operations", Arc::clone(&life.asker).attend());
        let (opening, disk, clock) = (Arc::clone(&life), Arc::clone(&body.disk), Arc::clone(&body.clock));
        life.around.wires.spawner.spawn(Owner::Node(number), async move {
            if let Err(why) = opening.open(disk, clock).await {
                opening.end(why);
            }
        });
        life
    }

    /// Runs a task that must not end before this life does.
    fn task(self: &Arc<Self>, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let life = Arc::clone(self);
        self.around.wires.spawner.spawn(Owner::Node(self.number), async move {
            task.await;
            life.end(format!("the task `{name}` ended"));
        });
    }

    /// This life is over: its tasks are dropped, and whoever waits outside of them must not act through it any more.
    pub(crate) fn leave(&self) {
        self.gone.send_replace(true);
    }

    /// Has a command committed for somebody who is connected to this node and outlives it.
    ///
    /// # Errors
    /// The refusal it came to; `retry`, with an unknown effect, when the node is gone. A request that went on would write what a
    /// past life remembers over what the disk holds by now (found by seed 300126).
    pub(crate) async fn operate(&self, who: &str, action: Action) -> Result<Reply, Refusal> {
        let mut gone = self.gone.subscribe();
        tokio::select! {
            biased;
            _ = gone.wait_for(|gone| *gone) => {
                let broke = Refusal::new(RefusalKind::Retry, "the connection to the node broke");
                Err(broke.with_effect(Effect::Unknown))
            }
            answer = self.asker.propose(who, action) => answer,
        }
    }

    fn end(&self, why: String) {
        (self.around.ended)(self.number, self.incarnation, why);
    }

    async fn open(self: &Arc<Self>, disk: Arc<NodeDisk>, clock: Arc<NodeClock>) -> Result<(), String> {
        let mut topologies = self.plane.copy.topology_changes();
        let joined = topologies.wait_for(|topology| topology.nodes.contains_key(&self.replica.node)).await;
        let topology = Arc::clone(&*joined.map_err(|_| "the metadata plane is gone".to_owned())?);
        let ground = Ground {
            number: self.number,
            replica: self.replica,
            incarnation: self.incarnation,
            nodes: Arc::clone(&self.around.nodes),
            disk: Arc::clone(&disk),
            clock: Arc::clone(&clock),
            wires: self.around.wires.clone(),
            record: self.around.record.clone(),
            dice: self.around.dice.clone(),
        };
        let consensus = Arc::new(SimulatedConsensus::open(ground, self.around.housekeeping));
        let engine = disk.engine.open();
        let parts = Parts {
            groups: Arc::clone(&consensus) as Arc<dyn meridian_region_node::Groups>,
            engine: Some(Arc::new(engine)),
            authority: Arc::new(Spokesman { copy: Arc::clone(&self.plane.copy), asker: Arc::clone(&self.asker) }),
            neighbours: Arc::new(Around {
                number: self.number,
                here: self.replica.region,
                around: self.around.clone(),
            }),
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            vault: Some(Arc::clone(&disk.vault) as Arc<dyn meridian_region_node::Vault>),
            gauge: disk,
            blocking: Blocking::Inline,
            witness: Some(self.around.record.witness(self.replica)),
        };
        let place = meridian_region_node::Place {
            region: self.replica.region,
            node: self.replica.node,
            shards: topology.shards,
            voters: topology.voters(self.replica.region, ShardId(0)).to_vec(),
            moved: std::collections::BTreeSet::new(),
            dir: std::path::PathBuf::new(),
        };
        let opened = Service::open(place, self.around.options.clone(), parts).await;
        let (service, handle) = opened.map_err(|why| chain(&why))?;
        for shard in (0..topology.shards).map(ShardId) {
            if let Some(applied) = consensus.applied(GroupId::of_shard(shard)).filter(|_| self.incarnation > 1) {
                self.around.record.fact(Fact::Restarted { replica: self.replica, shard, applied });
            }
        }
        self.run(&consensus, service);
        self.ship(&handle, &topology, &clock);
        // Set once per life.
        let _ = self.asker.ears.set(Arc::downgrade(self));
        let _ = self.region.set(Open { handle, consensus });
        Ok(())
    }

    fn run(self: &Arc<Self>, consensus: &Arc<SimulatedConsensus>, service: Service) {
        self.task("log", Arc::clone(consensus).write());
        self.task("janitor", Arc::clone(consensus).keep_house());
        consensus.tasks().into_iter().for_each(|(name, task)| self.task(name, task));
        service.into_tasks().into_iter().for_each(|(name, task)| self.task(name, task));
        let (life, consensus) = (Arc::clone(self), Arc::clone(consensus));
        self.around.wires.spawner.spawn(Owner::Node(self.number), async move {
            let why = consensus.fatal().await;
            life.end(why);
        });
    }

    fn ship(self: &Arc<Self>, handle: &Handle, topology: &Topology, clock: &Arc<NodeClock>) {
        let windows = Arc::new(Windows::new(self.around.window_bytes));
        let others = topology.data_regions().filter(|region| *region != self.replica.region);
        for target in others {
            for (shard, lane) in (0..topology.shards).flat_map(|shard| Lane::ALL.map(|lane| (ShardId(shard), lane))) {
                let lane = ShipLane {
                    key: LaneKey { source: self.replica.region, target, shard, lane },
                    from: self.number,
                    nodes: Arc::clone(&self.around.nodes),
                    region: handle.clone(),
                    topology: self.plane.copy.topology_changes(),
                    windows: Arc::clone(&windows),
                    wires: self.around.wires.clone(),
                    clock: Arc::clone(clock),
                    dice: self.around.dice.clone(),
                    record: self.around.record.clone(),
                    replica: self.replica,
                    tenure: 0,
                };
                self.task("lane", lane.run());
            }
        }
    }

    /// A message of another member of a shard's group; lost while this node is still starting.
    pub(crate) fn take_group(&self, from: usize, group: GroupId, message: Message) {
        if let Some(open) = self.region.get() {
            open.consensus.take(from, group, message);
        }
    }

    /// The region's handle, once it is open.
    pub(crate) fn region(&self) -> Option<&Handle> {
        self.region.get().map(|open| &open.handle)
    }

    /// Payload bytes under way in the fullest group, and the bound.
    pub(crate) fn in_flight_bytes(&self) -> Option<(u64, u64)> {
        self.region.get().map(|open| open.consensus.in_flight_bytes())
    }

    /// Takes a stream of another region; `false` while there is nobody to serve it.
    pub(crate) fn accept(&self, source: RegionId, stream: End) -> bool {
        let Some(open) = self.region.get() else { return false };
        let intake = Intake {
            region: open.handle.clone(),
            replica: self.replica,
            topology: self.plane.copy.topology_changes(),
            record: self.around.record.clone(),
        };
        self.around.wires.spawner.spawn(Owner::Node(self.number), intake.serve(source, stream));
        true
    }

    /// Answers a request as the node's gateway does.
    pub(crate) async fn execute(&self, request: Request, caller: Caller) -> Result<Response, Refusal> {
        let Some(open) = self.region.get() else {
            return Err(Refusal::new(RefusalKind::Retry, "this node is still starting: try again"));
        };
        let written = self.written(&request);
        let answer = open.handle.execute(request, caller).await;
        if let (Some(written), Ok(response)) = (written, &answer) {
            self.acknowledged(written, response);
        }
        answer
    }

    /// What this node's shards have of a bucket: what an estimate of its failover rests on.
    pub(crate) fn facts(&self, bucket: BucketId, lost: Option<RegionId>) -> Option<(RegionId, Vec<ShardFacts>)> {
        let bucket = self.plane.copy.topology().buckets.get(&bucket).cloned()?;
        Some((self.replica.region, self.region()?.facts(&bucket, lost)))
    }

    /// Answers what another region asks of a repair.
    async fn answer_repair(&self, by: RegionId, ask: &[u8]) -> Result<Bytes, Refusal> {
        let starting = || Refusal::new(RefusalKind::Retry, "this node is still starting: try again");
        self.region.get().ok_or_else(starting)?.handle.answer_repair(by, ask).await
    }

    /// What a write is about.
    fn written(&self, request: &Request) -> Option<(RequestId, BucketId, ShardId)> {
        let Request::Write { bucket, write, id, .. } = request else { return None };
        let topology = self.plane.copy.topology();
        let bucket = *topology.bucket_ids.get(bucket)?;
        let shard = write.keys().next()?.shard(bucket, topology.shards);
        Some((*id, bucket, shard))
    }

    fn acknowledged(&self, (request, bucket, shard): (RequestId, BucketId, ShardId), response: &Response) {
        let (Some(durability), Some(seen)) = (response.durability, response.session.seen(bucket, shard)) else {
            return;
        };
        // Who only passed it on to the leader beside it acknowledges nothing itself.
        let leads = self.region().is_some_and(|region| region.leads(shard));
        for (origin, lsn) in seen.0.iter().filter(|(origin, _)| leads || **origin != self.replica.region) {
            self.around.record.fact(Fact::Acknowledged {
                replica: self.replica,
                origin: *origin,
                bucket,
                shard,
                epoch: response.epoch,
                lsn: *lsn,
                request,
                regions: durability.regions,
            });
        }
    }
}

/// The other nodes, as one of them asks them.
struct Around {
    number: usize,
    here: RegionId,
    around: Surroundings,
}

impl Neighbours for Around {
    fn ask<'a>(&'a self, node: NodeId, request: &'a Request) -> BoxFuture<'a, Result<Response, Failure>> {
        async move {
            let broken = |effect| {
                let refusal = Refusal::new(RefusalKind::Retry, format!("the connection to node {node} broke"));
                Failure::Broken(refusal.with_effect(effect))
            };
            let number = self.around.nodes.iter().position(|(known, _)| *known == node);
            let number = number.ok_or_else(|| broken(Effect::None))?;
            let (region, asked) = (self.here, request.clone());
            let wires = &self.around.wires;
            let call = wires.call(Place::Node(self.number), number, weight(request), move |life| {
                async move { life.execute(asked, Caller::Peer { region }).await }.boxed()
            });
            match call.await {
                Ok(answer) => answer.map_err(Failure::Refused),
                Err(CallError::Unreached) => Err(broken(Effect::None)),
                Err(CallError::Lost) => Err(broken(unknown(request))),
            }
        }
        .boxed()
    }

    fn ask_repair(&self, node: NodeId, ask: Bytes) -> BoxFuture<'_, Result<Bytes, Failure>> {
        async move {
            let broken = || {
                let why = format!("the connection to node {node} broke");
                Failure::Broken(Refusal::new(RefusalKind::Retry, why))
            };
            let number = self.around.nodes.iter().position(|(known, _)| *known == node).ok_or_else(broken)?;
            let (region, weight) = (self.here, 100 + ask.len());
            let call = self.around.wires.call(Place::Node(self.number), number, weight, move |life| {
                async move { life.answer_repair(region, &ask).await }.boxed()
            });
            call.await.map_err(|_| broken())?.map_err(Failure::Refused)
        }
        .boxed()
    }
}

/// What a lost answer means.
pub(crate) fn unknown(request: &Request) -> Effect {
    match request {
        Request::Read { .. } => Effect::None,
        Request::Write { .. } => Effect::Unknown,
    }
}

/// About how long a request is on the wire.
pub(crate) fn weight(request: &Request) -> usize {
    let Request::Write { write, .. } = request else { return 100 };
    100 + match write {
        Write::Put { value, .. } | Write::CompareAndSet { value, .. } | Write::PutIfAbsent { value, .. } => {
            value.as_bytes().len()
        }
        Write::Append { suffix, .. } => suffix.as_bytes().len(),
        Write::Delete { .. } | Write::Increment { .. } => 0,
        Write::MultiPut { items } => items.iter().map(|(_, value)| value.as_bytes().len()).sum(),
    }
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut sentence = error.to_string();
    let mut cause = error.source();
    while let Some(why) = cause {
        sentence.push_str(": ");
        sentence.push_str(&why.to_string());
        cause = why.source();
    }
    sentence
}
