//! A planet: regions at their places, their nodes, and the hands that start, crash and stop them. One seed decides all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use meridian_metadata_core::command::{Form, NodeSpec};
use meridian_metadata_core::{Action, Reply};
use meridian_region_core::SESSION_TTL_MS;
use meridian_region_node::{Caller, Handle, Options, StoreOptions};
use meridian_types::{
    Bucket, BucketName, BucketSpec, ClusterId, Effect, Epoch, NameError, NodeId, NodeName, Refusal, RefusalKind,
    RegionId, RegionName, RepairReason, Request, Response, ShardId,
};
use tokio::time::{sleep, timeout};

use super::clock::NodeClock;
use super::dice::Dice;
use super::disk::{Keep, Manner, NodeDisk};
use super::executor::{Owner, Spawner};
use super::group::{Housekeeping, SYNC_FAILED};
use super::met::{Meetings, Met};
use super::network::{Location, Network, Place};
use super::node::{Body, Life, Surroundings, unknown, weight};
use super::record::Record;
use super::replication::WINDOW_BYTES;
use super::replication::intake::SKEW_MS_MAX;
use super::wires::{CallError, Wires};
use crate::check::{Assumption, Held, Remnant, Salvaged};
use crate::target::Target;
use crate::trace::{Fact, Replica, Trace};

/// What a planet is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Its regions. The first ones are numbered from 1.
    pub regions: Vec<(RegionName, Location)>,
    /// How many nodes each of them has. Those numbered from 0 are the first ones of the regions, then come all second ones, and so on.
    pub nodes: usize,
    /// Shards per region.
    pub shards: u16,
    /// The buckets it begins with.
    pub buckets: Vec<BucketSpec>,
    /// How far wall clocks are apart at most, in milliseconds: what NTP leaves.
    pub wall_skew_ms: u64,
    /// How often a node makes its state durable; between, a crash costs it the replay of its log.
    pub persist_every: Duration,
    /// How much log a node keeps for regions that are behind, in bytes.
    pub retention_bytes: u64,
    /// How many entries of a log are purged at a time.
    pub purge_entries: u64,
    /// Bytes of frames on their way to one node, of the lanes of one kind.
    pub window_bytes: usize,
    /// How the disks behave when nobody breaks them.
    pub disk: Manner,
    /// Whether facts are kept, or only hashed.
    pub blind: bool,
}

/// As much log as no world writes, and as many entries as consensus purges at a time by default.
pub(crate) const RETENTION_BYTES: u64 = 4 << 30;
pub(crate) const PURGE_ENTRIES: u64 = 256;

impl Setup {
    /// Three regions on three continents, without buckets.
    ///
    /// # Errors
    /// Never: the names are valid.
    pub fn three_regions() -> Result<Setup, NameError> {
        let region = |name, latitude, longitude| Ok((RegionName::new(name)?, Location { latitude, longitude }));
        Ok(Setup {
            regions: vec![
                region("us-east", 38.9, -77.4)?,
                region("eu-west", 53.3, -6.3)?,
                region("ap-northeast", 35.7, 139.7)?,
            ],
            nodes: 1,
            shards: 2,
            buckets: Vec::new(),
            wall_skew_ms: 20,
            persist_every: Duration::from_secs(10),
            retention_bytes: RETENTION_BYTES,
            purge_entries: PURGE_ENTRIES,
            window_bytes: WINDOW_BYTES,
            disk: Manner::default(),
            blind: false,
        })
    }
}

/// A planet. Cheap to clone.
#[derive(Clone)]
pub struct Planet(Arc<Inner>);

struct Inner {
    spawner: Spawner,
    network: Network,
    wires: Wires,
    record: Record,
    trace: Trace,
    dice: Dice,
    around: Surroundings,
    bodies: Vec<Body>,
    buckets: Vec<BucketSpec>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By node: how many lives it had.
    lives: Vec<u64>,
    paused: Vec<bool>,
    /// Nodes whose disks are lost: they never start again.
    lost: BTreeSet<usize>,
    /// How often what was done or happened.
    hits: BTreeMap<&'static str, u64>,
    /// By node, its incarnation and what they were: repairs that it told of.
    repairs: BTreeMap<(usize, u64, &'static str), usize>,
    /// Nodes that ended by themselves, and why.
    ended: Vec<(usize, String)>,
    /// What the product may rely on, and can't in this world.
    violated: BTreeSet<Assumption>,
}

/// The end of a world. Lives know the wires and wires know the lives, and both know what is planned: untied, none would ever be freed.
struct End {
    wires: Wires,
    spawner: Spawner,
}

impl Drop for End {
    fn drop(&mut self) {
        self.wires.forget();
        self.spawner.forget();
    }
}

impl Planet {
    /// Plays a world from its beginning: makes the planet of that seed and runs `play` on it until that is done. Virtual
    /// time passes whenever nobody has anything to do.
    pub fn play<T>(seed: u64, setup: Setup, play: impl AsyncFnOnce(Planet) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        // A thread without a clock can't be had; nothing of a world exists yet.
        let runtime = runtime.unwrap_or_else(|why| panic!("a runtime can't be made: {why}"));
        runtime.block_on(async {
            let (spawner, dice) = (Spawner::new(), Dice::new(seed));
            let planet = Planet::new(spawner.clone(), &dice, setup);
            let _end = End { wires: planet.wires().clone(), spawner: spawner.clone() };
            spawner.run(dice.fork(), play(planet)).await
        })
    }

    fn new(spawner: Spawner, dice: &Dice, setup: Setup) -> Planet {
        let trace = if setup.blind { Trace::blind() } else { Trace::default() };
        let record = Record::new(spawner.clone(), trace.clone());
        let numbered = || setup.regions.iter().zip(1u16..).map(|((name, at), number)| (name, *at, RegionId(number)));
        let by_region = numbered().map(|(_, at, region)| (region, at)).collect();
        let placed: Vec<_> = (0..setup.nodes).flat_map(|turn| numbered().map(move |region| (turn, region))).collect();
        let locations: Vec<Location> = placed.iter().map(|(_, (_, at, _))| *at).collect();
        let network = Network::new(spawner.clone(), dice.fork(), record.clone(), locations, by_region);
        let wires = Wires::new(network.clone(), spawner.clone(), dice.fork(), placed.len());
        let body = |(number, (turn, (name, _, region)))| body((number, turn), name, region, &spawner, dice, &setup);
        let bodies: Vec<Body> = placed.into_iter().enumerate().map(body).collect();
        let members = bodies.iter().map(member).collect();
        let form = Form { cluster: ClusterId(7), shards: setup.shards, lease_ttl_ms: 5000, members };
        let nodes = Arc::new(bodies.iter().map(|body| (body.replica.node, body.replica.region)).collect());
        let lives = bodies.len();
        let inner = Arc::new_cyclic(|weak: &std::sync::Weak<Inner>| {
            let weak = weak.clone();
            let around = Surroundings {
                wires: wires.clone(),
                record: record.clone(),
                dice: dice.fork(),
                form,
                voters: setup.regions.len(),
                nodes,
                options: options(&setup),
                housekeeping: Housekeeping { persist_every: setup.persist_every, purge_entries: setup.purge_entries },
                window_bytes: setup.window_bytes,
                ended: Arc::new(move |number, incarnation, why| {
                    if let Some(inner) = weak.upgrade() {
                        Planet(inner).ended(number, incarnation, &why);
                    }
                }),
            };
            let state = Mutex::new(State { lives: vec![0; lives], paused: vec![false; lives], ..State::default() });
            let buckets = setup.buckets.clone();
            Inner { spawner, network, wires, record, trace, dice: dice.fork(), around, bodies, buckets, state }
        });
        Planet(inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts every node and waits until the cluster is formed, every region is open and has every bucket.
    ///
    /// # Errors
    /// A refusal of a bucket, or a node that does not get going within a minute.
    pub async fn start(&self) -> Result<(), Refusal> {
        (0..self.0.bodies.len()).for_each(|node| self.restart(node));
        let planet = Arc::downgrade(&self.0);
        self.0.spawner.spawn(Owner::World, async move {
            while let Some(inner) = planet.upgrade() {
                Planet(inner).measure();
                sleep(Duration::from_secs(1)).await;
            }
        });
        let late = || Refusal::new(RefusalKind::Unavailable, "the planet did not get going within a minute");
        timeout(Duration::from_secs(60), self.get_going()).await.map_err(|_| late())?
    }

    async fn get_going(&self) -> Result<(), Refusal> {
        while !(0..self.nodes()).all(|node| self.is_open(node)) || !self.is_led() {
            sleep(Duration::from_millis(50)).await;
        }
        for spec in self.0.buckets.clone() {
            self.create_bucket(spec).await?;
        }
        let index = self.lives().map(|life| life.plane.copy.index()).max().unwrap_or_default();
        for life in self.lives() {
            life.plane.copy.reach(index).await;
        }
        Ok(())
    }

    /// Creates a bucket, through the first node that runs.
    ///
    /// # Errors
    /// The refusal it came to.
    pub async fn create_bucket(&self, spec: BucketSpec) -> Result<Bucket, Refusal> {
        let down = || Refusal::new(RefusalKind::Unavailable, "no node runs");
        let life = self.lives().next().ok_or_else(down)?;
        match life.operate("the planet", Action::CreateBucket(spec)).await? {
            Reply::Bucket(bucket) => Ok(bucket),
            _ => Err(Refusal::new(RefusalKind::Internal, "a bucket was asked for and something else came")),
        }
    }

    /// The nodes that run.
    pub(crate) fn lives(&self) -> impl Iterator<Item = Arc<Life>> + '_ {
        (0..self.nodes()).filter_map(|node| self.0.wires.life(node))
    }

    /// How many nodes there are.
    pub fn nodes(&self) -> usize {
        self.0.bodies.len()
    }

    /// The region of a node.
    pub fn region_of(&self, node: usize) -> Option<RegionId> {
        self.0.bodies.get(node).map(|body| body.replica.region)
    }

    /// The regions, by number. The first node of each has its place in this list for a number.
    pub fn regions(&self) -> Vec<RegionId> {
        self.0.bodies.iter().take(self.0.around.voters).map(|body| body.replica.region).collect()
    }

    /// Every node and its region.
    fn placed(&self) -> impl Iterator<Item = (usize, RegionId)> + '_ {
        self.0.bodies.iter().map(|body| (body.number, body.replica.region))
    }

    /// The nodes of a region.
    pub fn nodes_of(&self, region: RegionId) -> Vec<usize> {
        self.placed().filter(|(_, of)| *of == region).map(|(node, _)| node).collect()
    }

    /// The nodes of the region that a node is in, itself among them.
    pub(crate) fn beside(&self, node: usize) -> Vec<usize> {
        self.region_of(node).map(|region| self.nodes_of(region)).unwrap_or_default()
    }

    /// The node that leads a shard in the region of a node, as far as some node takes itself for it; the one that others follow, if two do.
    pub fn leader_of(&self, node: usize, shard: ShardId) -> Option<usize> {
        let beside = self.beside(node);
        let leads = |node: &&usize| self.handle(**node).is_some_and(|handle| handle.leads(shard));
        let leaders: Vec<usize> = beside.iter().filter(leads).copied().collect();
        let followers = |leader: &&usize| {
            let name = self.0.bodies.get(**leader).map(|body| body.replica.node);
            let follows = |node: &&usize| self.handle(**node).and_then(|handle| handle.leader(shard)) == name;
            beside.iter().filter(follows).count()
        };
        leaders.iter().max_by_key(followers).copied()
    }

    /// Whether every shard has a leader in every region of several nodes; alone a node leads as soon as it can.
    fn is_led(&self) -> bool {
        let shards = self.0.around.form.shards;
        let several = self.0.bodies.len() > self.0.around.voters;
        !several
            || (0..self.0.around.voters).all(|node| (0..shards).all(|it| self.leader_of(node, ShardId(it)).is_some()))
    }

    /// Whether a node runs and has opened its region.
    pub fn is_open(&self, node: usize) -> bool {
        self.handle(node).is_some()
    }

    /// Whether a node runs.
    pub fn is_up(&self, node: usize) -> bool {
        self.0.wires.life(node).is_some()
    }

    /// The region's handle of a node, while it is open: for whoever looks inside.
    pub fn handle(&self, node: usize) -> Option<Handle> {
        self.0.wires.life(node).and_then(|life| life.region().cloned())
    }

    /// What lost primaries kept, on every node that is open.
    pub async fn salvages(&self) -> Vec<Salvaged> {
        let mut all = Vec::new();
        for (node, region) in self.placed() {
            let Some(handle) = self.handle(node) else { continue };
            for bundle in handle.salvages().await.unwrap_or_default() {
                let mut keys = Vec::new();
                for part in 0..bundle.parts {
                    keys.extend(handle.salvage_keys(bundle.id, part, false).await.unwrap_or_default());
                }
                all.push(Salvaged { region, bundle, keys });
            }
        }
        all
    }

    /// What regions that run have of buckets that they do not hold.
    pub fn remnants(&self) -> Vec<Remnant> {
        let mut remnants = Vec::new();
        for bucket in self.buckets() {
            for (node, region) in self.placed().filter(|(_, region)| !bucket.reaches(*region)) {
                let Some(handle) = self.handle(node) else { continue };
                let keys = handle.digests(Some(bucket.id)).iter().map(|it| it.digest.keys).sum();
                remnants.push(Remnant { region, bucket: bucket.id, keys });
            }
        }
        remnants
    }

    /// What every node that is open has.
    pub fn held(&self) -> Vec<Held> {
        let open = self.0.bodies.iter().filter_map(|body| Some((body.replica, self.handle(body.number)?)));
        open.map(|(replica, handle)| Held { replica, digests: handle.digests(None) }).collect()
    }

    /// The buckets, as the copy of the metadata that is furthest has them.
    pub fn buckets(&self) -> Vec<Arc<Bucket>> {
        let copies = self.lives().map(|life| life.plane.copy.topology());
        let newest = copies.max_by_key(|topology| topology.index);
        newest.map(|topology| topology.buckets.values().cloned().collect()).unwrap_or_default()
    }

    /// A bucket as the node of a region has it, while that runs.
    fn heard(&self, region: RegionId, bucket: &BucketName) -> Option<Arc<Bucket>> {
        let life = self.lives().find(|life| life.replica.region == region)?;
        life.plane.copy.topology().bucket_named(bucket.as_str()).cloned()
    }

    /// Which node leads the metadata plane, as far as some node knows it leads.
    pub fn metadata_leader(&self) -> Option<usize> {
        self.lives().find(|life| life.plane.leadership().1).map(|life| life.number)
    }

    /// What was recorded.
    pub fn trace(&self) -> &Trace {
        &self.0.trace
    }

    /// The dice of this world, for whoever plays on it.
    pub fn dice(&self) -> &Dice {
        &self.0.dice
    }

    /// Messages carried so far.
    pub fn messages(&self) -> u64 {
        self.0.network.carried()
    }

    /// Counts something that happened.
    pub fn hit(&self, what: &'static str) {
        *self.state().hits.entry(what).or_default() += 1;
    }

    /// What happened how often.
    pub fn hits(&self) -> BTreeMap<&'static str, u64> {
        self.state().hits.clone()
    }

    /// Which faults met which steps.
    pub fn met(&self) -> Met {
        self.meetings().met()
    }

    pub(crate) fn meetings(&self) -> &Meetings {
        &self.0.record.meetings
    }

    /// Nodes that ended by themselves, and why.
    pub fn ended_nodes(&self) -> Vec<(usize, String)> {
        self.state().ended.clone()
    }

    /// What the product may rely on, and could not in this world.
    pub fn violated(&self) -> BTreeSet<Assumption> {
        self.state().violated.clone()
    }

    pub(crate) fn violate(&self, assumption: Assumption) {
        self.state().violated.insert(assumption);
    }

    pub(crate) fn network(&self) -> &Network {
        &self.0.network
    }

    pub(crate) fn wires(&self) -> &Wires {
        &self.0.wires
    }

    /// A bucket that the planet began with, as it was asked for.
    pub(crate) fn spec(&self, bucket: usize) -> Option<&BucketSpec> {
        self.0.buckets.get(bucket)
    }

    pub(crate) fn body(&self, node: usize) -> Option<&Body> {
        self.0.bodies.get(node)
    }

    pub(crate) fn fact(&self, fact: Fact) {
        self.0.record.fact(fact);
    }

    pub(crate) fn life(&self, node: usize) -> Option<Arc<Life>> {
        self.0.wires.life(node)
    }

    /// Records how full the queues are.
    fn measure(&self) {
        for life in self.lives() {
            if let Some((amount, most)) = life.in_flight_bytes() {
                self.0.record.holds(life.replica, "bytes of proposals under way", amount, most);
            }
            for holding in life.region().map(Handle::holdings).unwrap_or_default() {
                self.0.record.holds(life.replica, holding.what, holding.amount, holding.most);
            }
            self.count_repairs(&life);
        }
    }

    /// Counts what was moved as rows because no log has it any more.
    fn count_repairs(&self, life: &Life) {
        let topology = life.plane.copy.topology();
        let all_write = |bucket| topology.buckets.get(&bucket).is_some_and(|bucket| bucket.primary.is_none());
        let mut repairs = life.region().map(Handle::repairs).unwrap_or_default();
        repairs.retain(|it| it.done && it.reason == RepairReason::BehindLog && it.rows_moved > 0);
        let (merged, replaced): (Vec<_>, Vec<_>) = repairs.iter().partition(|it| all_write(it.bucket));
        for (what, all) in [("rows merged behind a log", merged.len()), ("rows replaced behind a log", replaced.len())]
        {
            let before = self.state().repairs.insert((life.number, life.incarnation, what), all).unwrap_or_default();
            (before..all).for_each(|_| self.hit(what));
        }
    }

    /// Starts a node that does not run.
    pub fn restart(&self, node: usize) {
        let is_lost = self.state().lost.contains(&node);
        let Some(body) = self.0.bodies.get(node).filter(|_| !self.is_up(node) && !is_lost) else { return };
        if body.clock.wall_ahead_ms() > SKEW_MS_MAX {
            self.violate(Assumption::ClockAhead);
        }
        // Clients were last seen a moment ago.
        if body.clock.wall_ahead_ms() + KEPT_FOR_MARGIN_MS > SESSION_TTL_MS {
            self.violate(Assumption::ClockFarAhead);
        }
        let incarnation = {
            let mut state = self.state();
            let Some(lives) = state.lives.get_mut(node) else { return };
            *lives += 1;
            *lives
        };
        Life::begin(body, incarnation, &self.0.around);
    }

    /// A node is gone at once; `keep` says what its disk keeps of what was not synced.
    pub fn crash(&self, node: usize, keep: Keep) {
        let Some(body) = self.0.bodies.get(node).filter(|_| self.is_up(node)) else { return };
        self.drop_life(node);
        let lost_bytes = body.disk.crash(keep);
        self.fact(Fact::Crashed { replica: body.replica, lost_bytes, disk_lost: false });
    }

    /// A node is gone with its disk, for good.
    pub fn lose(&self, node: usize) {
        if let Some(body) = self.0.bodies.get(node) {
            self.drop_life(node);
            self.state().lost.insert(node);
            self.fact(Fact::Crashed { replica: body.replica, lost_bytes: 0, disk_lost: true });
        }
    }

    /// A node stops as a server does that is told to: it lets others of its region lead first.
    pub async fn stop(&self, node: usize) {
        if let Some(handle) = self.handle(node) {
            handle.hand_over_leadership(GRACE).await;
        }
        self.crash(node, Keep::All);
    }

    fn drop_life(&self, node: usize) {
        if let Some(life) = self.0.wires.life(node) {
            life.leave();
        }
        self.0.wires.set_life(node, None);
        self.0.network.set_deaf(Place::Node(node), false);
        if let Some(paused) = self.state().paused.get_mut(node) {
            *paused = false;
        }
        self.0.spawner.kill(Owner::Node(node));
    }

    /// A node ended by itself: its process is gone, its machine is not.
    fn ended(&self, node: usize, incarnation: u64, why: &str) {
        let Some(body) = self.0.bodies.get(node) else { return };
        if self.0.wires.life(node).is_none_or(|life| life.incarnation != incarnation) {
            return;
        }
        if let Some(keep) = body.disk.failed().filter(|_| why == SYNC_FAILED) {
            self.hit("node ended at a failed sync");
            return self.crash(node, keep);
        }
        self.fact(Fact::RefusesDamaged { replica: body.replica, why: why.to_owned() });
        self.state().ended.push((node, why.to_owned()));
        self.crash(node, Keep::All);
    }

    /// A node's process stops (SIGSTOP): it does nothing and hears nothing, while time runs on.
    pub fn pause(&self, node: usize) {
        if !self.is_up(node) {
            return;
        }
        if let Some(paused) = self.state().paused.get_mut(node) {
            *paused = true;
        }
        self.0.network.set_deaf(Place::Node(node), true);
        self.0.spawner.pause(Owner::Node(node));
    }

    /// It goes on (SIGCONT), with every timer that has run out meanwhile.
    pub fn resume(&self, node: usize) {
        let was_paused = self.state().paused.get_mut(node).is_some_and(|paused| std::mem::replace(paused, false));
        if was_paused {
            self.0.network.set_deaf(Place::Node(node), false);
            self.0.spawner.resume(Owner::Node(node));
        }
    }

    /// A node does everything up to so much later than it could; or at once again.
    pub fn slow_down(&self, node: usize, latest: Option<Duration>) {
        self.0.spawner.slow(Owner::Node(node), latest);
    }

    /// Nothing is broken any more: links, disks and clocks are as they should be, and every node runs.
    pub fn heal(&self) {
        self.0.network.heal();
        for body in &self.0.bodies {
            body.disk.set_manner(|manner| {
                manner.stalled = false;
                manner.full = false;
                manner.failing = None;
                manner.sync = Manner::default().sync;
            });
            body.clock.heal();
        }
        for node in 0..self.nodes() {
            self.slow_down(node, None);
            self.resume(node);
            self.restart(node);
        }
        self.fact(Fact::Healed);
    }
}

/// Within a world a client may have been silent for so long, in milliseconds.
const KEPT_FOR_MARGIN_MS: u64 = 120_000;

fn options(setup: &Setup) -> Options {
    let store = StoreOptions::default();
    // A world orders some hundred writes: bounds that are thousands would never be met.
    let (digest_notes_max, in_flight_max) = (64, 256);
    let log_retention_bytes = setup.retention_bytes;
    Options { store, log_retention_bytes, digest_notes_max, in_flight_max, ..Options::default() }
}

fn body(
    (number, turn): (usize, usize),
    region: &RegionName,
    id: RegionId,
    spawner: &Spawner,
    dice: &Dice,
    setup: &Setup,
) -> Body {
    // A region's name with a number behind it is a node's name.
    let name =
        NodeName::new(&format!("{region}-{}", turn + 1)).unwrap_or_else(|why| panic!("a node can't be named: {why}"));
    let replica = Replica { region: id, node: NodeId::of(&name) };
    let skew_us = i64::try_from(dice.between(0, 2 * setup.wall_skew_ms * 1000)).unwrap_or_default();
    let skew_us = skew_us - i64::try_from(setup.wall_skew_ms * 1000).unwrap_or_default();
    Body {
        number,
        zone: ["a", "b", "c", "d", "e"][turn % 5],
        name,
        region_name: region.clone(),
        replica,
        disk: Arc::new(NodeDisk::new(dice.fork(), setup.disk)),
        clock: Arc::new(NodeClock::new(spawner.clone(), skew_us)),
    }
}

fn member(body: &Body) -> NodeSpec {
    NodeSpec {
        name: body.name.clone(),
        region: body.region_name.clone(),
        zone: body.zone.to_owned(),
        rpc_address: format!("{}:7100", body.name),
        replication_address: format!("{}:7300", body.name),
        version: String::new(),
    }
}

/// How long a node that stops may take to let others lead: half of a server's grace.
const GRACE: Duration = Duration::from_millis(2_500);

/// Clients wait a little longer than their requests do.
const PATIENCE: Duration = Duration::from_secs(2);

impl Target for Planet {
    async fn ask(&self, region: RegionId, request: Request) -> Result<Response, Refusal> {
        let gone = |effect, why: &str| Refusal::new(RefusalKind::Retry, why).with_effect(effect);
        let lost = unknown(&request);
        let mut nodes = self.nodes_of(region);
        if nodes.is_empty() {
            return Err(Refusal::new(RefusalKind::NotFound, format!("there is no region {region}")));
        }
        // An SDK asks one node after the other until it reaches one.
        self.0.dice.shuffle(&mut nodes);
        let patience = Duration::from_millis(u64::from(request.deadline_ms().max(1))) + PATIENCE;
        let call = async {
            let mut answer = Err(CallError::Unreached);
            for node in nodes {
                let request = request.clone();
                let call = self.0.wires.call(Place::Clients(region), node, weight(&request), move |life| {
                    async move { life.execute(request, Caller::Client).await }.boxed()
                });
                answer = call.await;
                if !matches!(answer, Err(CallError::Unreached)) {
                    break;
                }
            }
            answer
        };
        let answer = match timeout(patience, call).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(CallError::Unreached)) => Err(gone(Effect::None, "no node of that region runs")),
            Ok(Err(CallError::Lost)) => Err(gone(lost, "the connection to the node broke")),
            Err(_) => Err(gone(lost, "the node did not answer in time")),
        };
        self.0.record.absorb(&format!("{answer:?}"));
        answer
    }

    fn epoch(&self, region: RegionId, bucket: &BucketName) -> Epoch {
        self.heard(region, bucket).map(|it| it.epoch).unwrap_or_default()
    }

    fn has_primary(&self, region: RegionId, bucket: &BucketName) -> Option<bool> {
        self.heard(region, bucket).map(|it| it.primary.is_some() && !it.is_opening())
    }

    fn now_us(&self) -> u64 {
        self.0.spawner.now_us()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lives_of_a_world_that_is_over_are_freed() {
        let lives = Planet::play(1, Setup::three_regions().unwrap(), async |planet: Planet| {
            planet.start().await.unwrap();
            planet.crash(1, Keep::All);
            planet.restart(1);
            planet.lives().map(|life| Arc::downgrade(&life)).collect::<Vec<_>>()
        });
        assert!(lives.len() == 3 && lives.iter().all(|life| life.upgrade().is_none()));
    }
}
