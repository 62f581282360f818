//! Nodes over real TLS on loopback, each with a gateway in front of fakes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use meridian_client::{Builder, Client, RetryPolicy, TlsMaterial};
use meridian_gateway::{Caller, Control, Digests, Gateway, Lags, Options};
use meridian_proto::dial;
use meridian_types::{
    Bucket, BucketChange, BucketDigest, BucketEstimate, BucketId, BucketLag, BucketName, BucketSpec, ClusterId,
    Consent, Epoch, Estimate, Event, EventPage, EventQuery, FailoverSpec, Goal, Hlc, KeyStart, Labels, Lane, LaneState,
    LaneStatus, Loss, Lsn, MemberChange, MembersChange, Move, Muster, Node, NodeId, NodeName, NodeStatus, Operation,
    OperationId, Phase, Plan, PlanId, Policy, Refusal, RefusalKind, Region, RegionId, RegionName, Selection, SetHash,
    ShardDigest, ShardFacts, ShardId, Step, SwitchoverSpec, Topology,
};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;

use crate::certificates::Authority;
use crate::store::{FakeStore, Truth};

pub(crate) const REGIONS: [&str; 2] = ["us-east", "eu-west"];

/// The cluster's metadata, shared by all nodes.
pub(crate) struct FakeControl {
    pub(crate) node: NodeId,
    pub(crate) region: RegionId,
    pub(crate) topology: Arc<Mutex<Topology>>,
    pub(crate) done: Mutex<Vec<(String, Caller)>>,
    pub(crate) plans: Mutex<Vec<Arc<Plan>>>,
}

pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) store: Arc<FakeStore>,
    pub(crate) control: Arc<FakeControl>,
    pub(crate) gateway: Gateway<FakeStore, FakeControl>,
    serving: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A CA, and the nodes of its cluster.
pub(crate) struct World {
    pub(crate) authority: Authority,
    pub(crate) truth: Arc<Mutex<Truth>>,
    pub(crate) topology: Arc<Mutex<Topology>>,
    pub(crate) servers: Vec<Server>,
}

impl World {
    /// One node per region: the first region is the primary's.
    pub(crate) async fn new(regions: usize) -> anyhow::Result<World> {
        World::with(regions, Options::default()).await
    }

    pub(crate) async fn with(regions: usize, options: Options) -> anyhow::Result<World> {
        let authority = Authority::new()?;
        let mut world = World {
            authority,
            truth: Arc::default(),
            topology: Arc::new(Mutex::new(first_topology()?)),
            servers: Vec::new(),
        };
        for _ in 0..regions {
            world.start(options.clone()).await?;
        }
        Ok(world)
    }

    async fn start(&mut self, options: Options) -> anyhow::Result<()> {
        let region = RegionId(self.servers.len() as u16 + 1);
        let region_name = REGIONS[self.servers.len()];
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let name = NodeName::new(&format!("{region_name}-1"))?;
        let id = NodeId::of(&name);
        let node = Node {
            id,
            name,
            region,
            zone: "a".to_owned(),
            rpc_address: address.clone(),
            replication_address: address.clone(),
            version: "test".to_owned(),
        };
        {
            let mut topology = self.topology.lock().unwrap();
            topology.nodes.insert(id, node);
            // A node that serves no shard would be a spare.
            topology.groups.insert((region, ShardId(0)), vec![id]);
        }
        let store = Arc::new(FakeStore::new(Arc::clone(&self.truth), region));
        let control = FakeControl {
            node: id,
            region,
            topology: Arc::clone(&self.topology),
            done: Mutex::default(),
            plans: Mutex::default(),
        };
        let control = Arc::new(control);
        let tls = self.authority.material(&format!("meridian://node/{region_name}/{region_name}-1"))?;
        let gateway = Gateway::new(options, Arc::clone(&store), Arc::clone(&control));
        let serving = tokio::spawn(serve(listener, tls, gateway.clone()));
        self.servers.push(Server { address: format!("https://{address}"), store, control, gateway, serving });
        Ok(())
    }

    /// A builder for a client that knows the given nodes, with pauses short enough for a test.
    pub(crate) fn builder(&self, servers: &[usize]) -> anyhow::Result<Builder> {
        let retry = RetryPolicy { pause_max: Duration::from_millis(50), ..RetryPolicy::default() };
        Ok(Client::builder()
            .endpoints(servers.iter().map(|server| self.servers[*server].address.clone()))
            .tls(self.authority.client()?)
            .retry(retry))
    }

    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        Ok(self.builder(&[0])?.connect().await?)
    }
}

async fn serve(listener: TcpListener, tls: TlsMaterial, gateway: Gateway<FakeStore, FakeControl>) {
    let mut server = dial::server(&tls).unwrap();
    let router =
        server.add_service(gateway.key_value()).add_service(gateway.forward_peer()).add_service(gateway.cluster());
    router.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
}

fn first_topology() -> anyhow::Result<Topology> {
    let mut topology = Topology { index: 7, cluster: Some(ClusterId(42)), shards: 16, ..Topology::default() };
    for (number, name) in REGIONS.iter().enumerate() {
        let id = RegionId(number as u16 + 1);
        topology.regions.insert(id, Region { id, name: RegionName::new(name)? });
        // A region without groups would be a witness.
        topology.groups.insert((id, ShardId(0)), vec![NodeId(u64::from(id.0))]);
    }
    add_bucket(&mut topology, "orders", Policy::ASYNC, Labels::new());
    Ok(topology)
}

fn add_bucket(topology: &mut Topology, name: &str, policy: Policy, labels: Labels) -> Arc<Bucket> {
    let name = BucketName::new(name).unwrap();
    let id = BucketId(topology.last_bucket.0 + 1);
    topology.last_bucket = id;
    topology.index += 1;
    topology.bucket_ids.insert(name.clone(), id);
    let bucket = Arc::new(Bucket {
        id,
        name,
        policy,
        epoch: Epoch(3),
        phase: Phase::Steady,
        primary: policy.has_primary().then_some(RegionId(1)),
        regions: topology.regions.keys().copied().collect(),
        labels,
        created: Hlc::from_millis(1),
        standing: Default::default(),
        auto: Default::default(),
        turns: Default::default(),
        joins: Default::default(),
        crossing: None,
    });
    topology.buckets.insert(id, Arc::clone(&bucket));
    bucket
}

fn unknown(name: &BucketName) -> Refusal {
    Refusal::new(RefusalKind::NotFound, format!("no bucket `{name}`: create it with `meridian bucket create`"))
}

impl FakeControl {
    fn note(&self, what: &str, caller: Caller) {
        self.done.lock().unwrap().push((what.to_owned(), caller));
    }
}

impl Control for FakeControl {
    fn node(&self) -> NodeId {
        self.node
    }

    fn topology(&self) -> Arc<Topology> {
        Arc::new(self.topology.lock().unwrap().clone())
    }

    async fn create_bucket(&self, spec: BucketSpec, dry_run: bool, caller: Caller) -> Result<Bucket, Refusal> {
        self.note("create", caller);
        let mut topology = self.topology.lock().unwrap();
        if topology.bucket_ids.contains_key(&spec.name) {
            return Err(Refusal::new(RefusalKind::Exists, format!("the bucket `{}` exists already", spec.name)));
        }
        let mut scratch = topology.clone();
        let bucket = add_bucket(&mut scratch, spec.name.as_str(), spec.policy, spec.labels);
        if !dry_run {
            *topology = scratch;
        }
        Ok(bucket.as_ref().clone())
    }

    async fn delete_bucket(&self, name: BucketName, dry_run: bool, caller: Caller) -> Result<(), Refusal> {
        self.note("delete", caller);
        let mut topology = self.topology.lock().unwrap();
        let id = *topology.bucket_ids.get(&name).ok_or_else(|| unknown(&name))?;
        if !dry_run {
            topology.bucket_ids.remove(&name);
            topology.buckets.remove(&id);
            topology.index += 1;
        }
        Ok(())
    }

    async fn set_labels(
        &self,
        name: BucketName,
        set: Labels,
        remove: Vec<String>,
        caller: Caller,
    ) -> Result<Bucket, Refusal> {
        self.note("set-labels", caller);
        let mut topology = self.topology.lock().unwrap();
        let id = *topology.bucket_ids.get(&name).ok_or_else(|| unknown(&name))?;
        let mut bucket = topology.buckets[&id].as_ref().clone();
        bucket.labels.extend(set);
        bucket.labels.retain(|label, _| !remove.contains(label));
        topology.buckets.insert(id, Arc::new(bucket.clone()));
        Ok(bucket)
    }

    async fn set_bucket(
        &self,
        name: BucketName,
        change: BucketChange,
        dry_run: bool,
        caller: Caller,
    ) -> Result<Bucket, Refusal> {
        self.note("set", caller);
        let mut topology = self.topology.lock().unwrap();
        let id = *topology.bucket_ids.get(&name).ok_or_else(|| unknown(&name))?;
        let mut bucket = topology.buckets[&id].as_ref().clone();
        if let Some(max_lag) = change.max_lag {
            bucket.policy = Policy::Async { max_lag };
        }
        if !dry_run {
            topology.buckets.insert(id, Arc::new(bucket.clone()));
        }
        Ok(bucket)
    }

    async fn digests(&self, bucket: Option<BucketName>) -> Result<Digests, Refusal> {
        if let Some(name) = bucket
            && !self.topology.lock().unwrap().bucket_ids.contains_key(&name)
        {
            return Err(unknown(&name));
        }
        let mut digest = BucketDigest { hash: SetHash(7), keys: 3, ..BucketDigest::default() };
        digest.positions.raise(RegionId(1), Lsn(12));
        let row = ShardDigest { bucket: BucketId(1), shard: ShardId(4), digest, diverged: false };
        Ok(Digests { region: self.region, rows: vec![row] })
    }

    async fn lag(&self, _: Option<BucketName>) -> Result<Lags, Refusal> {
        let lag = BucketLag { bucket: BucketId(1), target: RegionId(2), lag_ms: 40, ..BucketLag::default() };
        let lane = LaneStatus {
            shard: ShardId(1),
            target: RegionId(2),
            lane: Lane::Async,
            head: Lsn(9),
            sent: Lsn(8),
            acked: Lsn(7),
            state: LaneState::BehindLog { watermark: Lsn(1), oldest: Lsn(3) },
            raw_bytes: 10,
            wire_bytes: 5,
            frames: 2,
            entries: 4,
            heard_ms: Some(40),
        };
        Ok(Lags { region: self.region, buckets: vec![lag], lanes: vec![lane] })
    }

    async fn node_status(&self) -> Result<NodeStatus, Refusal> {
        Ok(NodeStatus { node: self.node, region: self.region, uptime_ms: 5, ..NodeStatus::default() })
    }

    /// Buckets catch up and stay there.
    async fn switchover(
        &self,
        spec: SwitchoverSpec,
        operation: OperationId,
        dry_run: bool,
        caller: Caller,
    ) -> Result<Arc<Plan>, Refusal> {
        let who = caller.identity.uri();
        self.note("switchover", caller);
        let topology = self.topology();
        let to = topology.region_named(spec.to.as_str()).map(|region| region.id).unwrap_or_default();
        let Selection::Named(names) = &spec.buckets else { return Ok(Arc::new(plan(&spec, operation, to, who))) };
        let mut plan = plan(&spec, operation, to, who);
        for name in names {
            let bucket = topology.bucket_named(name.as_str()).ok_or_else(|| unknown(name))?;
            let step = Step::CatchingUp { caught_up: [ShardId(3)].into() };
            let from = bucket.primary.unwrap_or_default();
            plan.moves.push(Move { bucket: bucket.id, name: name.clone(), from, epoch_before: bucket.epoch, step });
        }
        let plan = Arc::new(plan);
        if !dry_run {
            self.plans.lock().unwrap().push(Arc::clone(&plan));
        }
        Ok(plan)
    }

    /// Whatever is asked about could lose one write.
    async fn failover_estimate(
        &self,
        buckets: Selection,
        to: Option<RegionName>,
        lost_region: Option<RegionName>,
    ) -> Result<Estimate, Refusal> {
        let Selection::Named(names) = &buckets else { return Ok(Estimate::default()) };
        let topology = self.topology();
        let lost = Loss { operations: 1, bytes: 10, unbounded: true };
        let estimate = |name: &BucketName| {
            let bucket = topology.bucket_named(name.as_str()).ok_or_else(|| unknown(name))?;
            Ok(BucketEstimate {
                bucket: bucket.id,
                name: name.clone(),
                epoch: bucket.epoch,
                from: bucket.primary.unwrap_or_default(),
                primary_answers: true,
                to: to.as_ref().and_then(|to| topology.region_named(to.as_str())).map(|region| region.id),
                pulls: false,
                proven: false,
                needed: None,
                heard: vec![self.region],
                lost,
                known: Loss { unbounded: false, ..lost },
                oldest_ms: 3,
                oldest_key: KeyStart::of(b"k"),
                said_ms: Some(4),
                obstacle: String::new(),
            })
        };
        let buckets = names.iter().map(estimate).collect::<Result<Vec<_>, Refusal>>()?;
        let agreed = buckets.iter().map(|it| (it.name.clone(), (it.epoch, it.lost))).collect();
        Ok(Estimate {
            region: self.region,
            heard: vec![self.region],
            took_ms: 2,
            buckets,
            consent: Some(Consent { to, lost: lost_region, buckets: agreed }),
        })
    }

    fn failover_facts(&self, _: Vec<BucketId>, _: Option<RegionId>) -> Result<(RegionId, Vec<ShardFacts>), Refusal> {
        Ok((self.region, Vec::new()))
    }

    /// Refuses without consent; else buckets are fenced and stay there.
    async fn failover(
        &self,
        spec: FailoverSpec,
        operation: OperationId,
        dry_run: bool,
        caller: Caller,
    ) -> Result<Arc<Plan>, Refusal> {
        let who = caller.identity.uri();
        self.note("failover", caller);
        let Some(consent) = &spec.consent else {
            return Err(Refusal::new(RefusalKind::Consent, "nobody has agreed"));
        };
        let topology = self.topology();
        let to = topology.region_named(spec.to.as_ref().map_or("", RegionName::as_str)).map(|region| region.id);
        let moves = consent.buckets.iter().map(|(name, (epoch, loss))| {
            let bucket = topology.bucket_named(name.as_str()).ok_or_else(|| unknown(name))?;
            let muster = Muster { accepted: Some(*loss), ..Muster::default() };
            let step = Step::Fencing { since_ms: 1, epoch: *epoch, to: to.unwrap_or_default(), muster };
            let from = bucket.primary.unwrap_or_default();
            Ok(Move { bucket: bucket.id, name: name.clone(), from, epoch_before: bucket.epoch, step })
        });
        let plan = Arc::new(Plan {
            id: PlanId(42),
            operation,
            goal: Goal::Failover { to, automatic: spec.automatic },
            who,
            reason: spec.reason.clone(),
            created_ms: 1,
            shards: 16,
            moves: moves.collect::<Result<_, Refusal>>()?,
            ended_ms: None,
        });
        if !dry_run {
            self.plans.lock().unwrap().push(Arc::clone(&plan));
        }
        Ok(plan)
    }

    fn operations(&self, plan: Option<PlanId>) -> Result<Vec<Operation>, Refusal> {
        let plans = self.plans.lock().unwrap();
        let found = plans.iter().filter(|known| plan.is_none_or(|id| known.id == id)).cloned();
        let found: Vec<_> = found.map(Operation::Moves).collect();
        match plan {
            Some(id) if found.is_empty() => Err(Refusal::new(RefusalKind::NotFound, format!("no operation {id}"))),
            _ => Ok(found),
        }
    }

    /// As many events as were asked for, the last at index 9.
    fn events(&self, query: &EventQuery) -> EventPage {
        let event = |index: u64| Event {
            index,
            at: Hlc::from_millis(index),
            who: "meridian://client/alice".to_owned(),
            verb: "create-bucket".to_owned(),
            subject: "orders".to_owned(),
            detail: "async in us-east".to_owned(),
        };
        let asked = (1..=9).filter(|index| *index >= query.index_min && Hlc::from_millis(*index) > query.after);
        let mut events: Vec<_> = asked.rev().take(query.limit).map(event).collect();
        events.reverse();
        EventPage { events, remembered_from: Hlc(0), index: 9 }
    }

    async fn change_members(
        &self,
        region: RegionName,
        _: MembersChange,
        _: bool,
        caller: Caller,
    ) -> Result<(RegionId, MemberChange), Refusal> {
        self.note("change members", caller);
        Err(Refusal::new(RefusalKind::NotFound, format!("there is no region `{region}` that holds data")))
    }

    async fn remove_node(&self, name: NodeName, _: bool, caller: Caller) -> Result<(), Refusal> {
        self.note("remove node", caller);
        Err(Refusal::new(RefusalKind::NotFound, format!("there is no node `{name}`")))
    }

    async fn finalize_upgrade(&self, dry_run: bool, caller: Caller) -> Result<u8, Refusal> {
        self.note("finalize upgrade", caller);
        let behind = || Refusal::new(RefusalKind::Conflict, "`us-1` runs 0.1.0: start it with the new release");
        if dry_run { Err(behind()) } else { Ok(11) }
    }

    async fn abort(&self, plan: PlanId, why: String, caller: Caller) -> Result<Operation, Refusal> {
        self.note("abort", caller);
        let mut plans = self.plans.lock().unwrap();
        let known = plans.iter_mut().find(|known| known.id == plan);
        let known = known.ok_or_else(|| Refusal::new(RefusalKind::NotFound, format!("no operation {plan}")))?;
        let mut given_up = Plan::clone(known);
        for it in &mut given_up.moves {
            let epoch = it.epoch_before;
            it.step = Step::Restored { draining_since_ms: None, at_ms: 2, epoch, why: why.clone() };
        }
        given_up.ended_ms = Some(2);
        *known = Arc::new(given_up);
        Ok(Operation::Moves(Arc::clone(known)))
    }
}

fn plan(spec: &SwitchoverSpec, operation: OperationId, to: RegionId, who: String) -> Plan {
    Plan {
        id: PlanId(41),
        operation,
        goal: Goal::Switchover { to, lag_ms_max: spec.lag_ms_max, pause_ms_max: spec.pause_ms_max },
        who,
        reason: spec.reason.clone(),
        created_ms: 1,
        shards: 16,
        moves: Vec::new(),
        ended_ms: None,
    }
}

pub(crate) fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>()
}
