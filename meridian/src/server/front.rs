//! What stands behind the gateway: requests go to the region, questions about the cluster to whoever knows.
//! Up from the start; refuses data until the region is open.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use meridian_consensus::Consensus;
use meridian_gateway::{Caller, Control, Digests, Lags, Store};
use meridian_metadata_core::plan::{Asked, estimate};
use meridian_proto::dial::Dial;
use meridian_proto::identity::Identity;
use meridian_region_node as region;
use meridian_types::{
    Bucket, BucketChange, BucketId, BucketName, BucketSpec, Estimate, EventPage, EventQuery, FailoverSpec, Labels,
    MemberChange, MembersChange, Membership, NodeId, NodeName, NodeStatus, Operation, OperationId, Plan, PlanId,
    Refusal, RefusalKind, RegionId, RegionName, Request, Response, Selection, ShardFacts, SwitchoverSpec, Topology,
};

use super::estimate::gather;

/// A certificate that ends within this time is reported as a problem: a month is enough to replace it unhurried.
const CERTIFICATE_WARNING: Duration = Duration::from_secs(30 * 24 * 3600);

/// The parts that are there once this node has its place.
pub(crate) struct Data {
    /// The region's data cluster.
    pub(crate) region: region::Handle,
    /// The replicator.
    pub(crate) replicator: meridian_replicator_quic::Handle,
}

/// This node, as clients and operators see it.
pub(crate) struct Front {
    node: NodeId,
    started: Instant,
    certificate_ends_unix_s: i64,
    /// It votes in the metadata plane and never has data.
    witness: bool,
    consensus: Consensus,
    metadata: meridian_metadata_node::Handle,
    /// How other nodes are asked what they have.
    peers: Arc<dyn Dial>,
    data: OnceLock<Data>,
}

impl Front {
    /// A front without data yet.
    pub(crate) fn new(
        node: NodeId,
        certificate_ends_unix_s: i64,
        witness: bool,
        consensus: Consensus,
        metadata: meridian_metadata_node::Handle,
        peers: Arc<dyn Dial>,
    ) -> Front {
        let (started, data) = (Instant::now(), OnceLock::new());
        Front { node, started, certificate_ends_unix_s, witness, consensus, metadata, peers, data }
    }

    /// Starts to serve data. Called once.
    pub(crate) fn open(&self, data: Data) {
        assert!(self.data.set(data).is_ok(), "a node opens its region once");
    }

    /// Why this node can't serve yet; empty when it can.
    pub(crate) fn not_ready(&self) -> Vec<String> {
        // Neither has data to serve: both are ready once they take part in the metadata plane.
        if self.witness || self.is_spare() {
            let mut reasons = self.metadata.problems();
            reasons.extend((!self.metadata.is_registered()).then(|| "this node is not registered yet".to_owned()));
            reasons.extend(self.consensus.stall());
            return reasons;
        }
        let Some(data) = self.data.get() else {
            return vec!["the cluster is not formed yet: a majority of its metadata voters must be up".to_owned()];
        };
        let mut reasons = self.metadata.problems();
        if !self.metadata.is_registered() {
            reasons.push("this node is not registered yet".to_owned());
        }
        reasons.extend(self.consensus.stall());
        reasons.extend(data.region.problems());
        reasons
    }

    pub(super) fn data(&self) -> Result<&Data, Refusal> {
        if self.witness {
            return Err(Refusal::new(
                RefusalKind::Redirect,
                "this node is a witness: it votes in the metadata plane and holds no data; ask a node of another region",
            ));
        }
        self.data.get().ok_or_else(|| {
            if self.is_spare() {
                let message = "this node is a spare, which holds nothing: ask another node of its region";
                return Refusal::new(RefusalKind::Redirect, message);
            }
            Refusal::new(
                RefusalKind::Retry,
                "this node is still starting: it waits for a majority of the metadata voters; try again",
            )
        })
    }

    /// Whether others hold all shards of this node's region.
    fn is_spare(&self) -> bool {
        self.metadata.topology().membership(self.node) == Some(Membership::Spare)
    }

    /// This node's number.
    pub(super) fn node(&self) -> NodeId {
        self.node
    }

    /// The metadata plane, as this node knows it.
    pub(super) fn metadata(&self) -> &meridian_metadata_node::Handle {
        &self.metadata
    }

    fn region(&self) -> RegionId {
        let topology = self.metadata.topology();
        topology.nodes.get(&self.node).map(|node| node.region).unwrap_or_default()
    }

    /// The id of a bucket that was asked for by name; `None` when all are meant.
    pub(super) fn bucket_id(&self, name: Option<BucketName>) -> Result<Option<BucketId>, Refusal> {
        let Some(name) = name else { return Ok(None) };
        let topology = self.metadata.topology();
        topology.bucket_ids.get(&name).map(|id| Some(*id)).ok_or_else(|| {
            Refusal::new(
                RefusalKind::NotFound,
                format!("there is no bucket `{name}`: `meridian bucket list` shows all"),
            )
        })
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = self.metadata.problems();
        problems.extend(self.consensus.problems());
        if let Some(data) = self.data.get() {
            problems.extend(data.region.problems());
            problems.extend(data.replicator.problems());
        }
        let left_s = self.certificate_left_s();
        if left_s < i64::try_from(CERTIFICATE_WARNING.as_secs()).unwrap_or(i64::MAX) {
            problems.push(format!(
                "this node's certificate ends in {} days: issue a new one with `meridian cert node` and restart the node",
                left_s / (24 * 3600)
            ));
        }
        problems
    }

    /// Seconds until this node's certificate ends; negative once it has.
    fn certificate_left_s(&self) -> i64 {
        self.certificate_ends_unix_s.saturating_sub_unsigned(wall().as_secs())
    }
}

impl Store for Front {
    async fn execute(&self, request: Request, caller: Caller) -> Result<Response, Refusal> {
        let data = self.data()?;
        data.region.execute(request, self.region_caller(&caller)).await
    }
}

impl Front {
    fn region_caller(&self, caller: &Caller) -> region::Caller {
        match (caller.via, caller.identity.as_ref()) {
            (meridian_gateway::Via::Peer, Identity::Node { region, .. }) => {
                let topology = self.metadata.topology();
                let region = topology.region_named(region.as_str()).map(|region| region.id).unwrap_or_default();
                region::Caller::Peer { region }
            }
            _ => region::Caller::Client,
        }
    }
}

impl Control for Front {
    fn node(&self) -> NodeId {
        self.node
    }

    fn topology(&self) -> Arc<Topology> {
        self.metadata.topology()
    }

    async fn create_bucket(&self, spec: BucketSpec, dry_run: bool, caller: Caller) -> Result<Bucket, Refusal> {
        self.metadata.create_bucket(spec, dry_run, &caller.identity.uri()).await
    }

    async fn delete_bucket(&self, name: BucketName, dry_run: bool, caller: Caller) -> Result<(), Refusal> {
        self.metadata.delete_bucket(name, dry_run, &caller.identity.uri()).await.map(|_retired| ())
    }

    async fn set_labels(
        &self,
        name: BucketName,
        set: Labels,
        remove: Vec<String>,
        caller: Caller,
    ) -> Result<Bucket, Refusal> {
        self.metadata.set_labels(name, set, remove.into_iter().collect(), &caller.identity.uri()).await
    }

    async fn set_bucket(
        &self,
        name: BucketName,
        change: BucketChange,
        dry_run: bool,
        caller: Caller,
    ) -> Result<Bucket, Refusal> {
        self.metadata.set_bucket(name, change, dry_run, &caller.identity.uri()).await
    }

    async fn digests(&self, bucket: Option<BucketName>) -> Result<Digests, Refusal> {
        let bucket = self.bucket_id(bucket)?;
        Ok(Digests { region: self.region(), rows: self.data()?.region.digests(bucket) })
    }

    async fn lag(&self, bucket: Option<BucketName>) -> Result<Lags, Refusal> {
        let bucket = self.bucket_id(bucket)?;
        let data = self.data()?;
        let mut buckets = data.replicator.lags();
        buckets.retain(|lag| bucket.is_none_or(|bucket| bucket == lag.bucket));
        Ok(Lags { region: self.region(), buckets, lanes: data.replicator.lanes() })
    }

    async fn node_status(&self) -> Result<NodeStatus, Refusal> {
        let lease = self.metadata.lease_until().map(|until| until.saturating_duration_since(Instant::now()));
        let mut status = NodeStatus {
            node: self.node,
            region: self.region(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: millis(self.started.elapsed()),
            metadata_index: self.metadata.index(),
            metadata_leader: self.metadata.leader(),
            lease_ms: lease.map(millis).unwrap_or_default(),
            log_bytes: self.consensus.log_bytes(),
            resident_bytes: resident_bytes(),
            problems: self.problems(),
            certificate_left_s: u64::try_from(self.certificate_left_s()).unwrap_or_default(),
            wall_ms: millis(wall()),
            votes: self.metadata.votes(),
            metadata_voters: self.metadata.voters(),
            leases: self.metadata.leases(),
            ..NodeStatus::default()
        };
        if let Some(data) = self.data.get() {
            (status.shards_led, status.shards_total) = data.region.shards();
            let disk = data.region.disk();
            (status.disk_free_bytes, status.disk_total_bytes) = (disk.free_bytes, disk.total_bytes);
            status.state_bytes = data.region.state_bytes();
        }
        Ok(status)
    }

    async fn switchover(
        &self,
        spec: SwitchoverSpec,
        operation: OperationId,
        dry_run: bool,
        caller: Caller,
    ) -> Result<Arc<Plan>, Refusal> {
        self.metadata.switchover(spec, operation, dry_run, &caller.identity.uri()).await
    }

    async fn failover_estimate(
        &self,
        buckets: Selection,
        to: Option<RegionName>,
        lost: Option<RegionName>,
    ) -> Result<Estimate, Refusal> {
        let begun = Instant::now();
        let (topology, here) = (self.metadata.topology(), self.region());
        let to = to.map(|to| known_region(&topology, &to)).transpose()?;
        let lost = lost.map(|lost| known_region(&topology, &lost)).transpose()?;
        let buckets = self.metadata.selected(&buckets)?;
        let own = self.failover_facts(buckets.iter().map(|bucket| bucket.id).collect(), lost).unwrap_or_default();
        let heard = gather(&topology, self.node, self.peers.as_ref(), (&buckets, lost), own).await;
        let plans = self.metadata.plans();
        let asked = Asked { here, to, lost, topology: &topology, buckets: &buckets, plans: &plans };
        Ok(Estimate { took_ms: millis(begun.elapsed()), ..estimate(&asked, &heard) })
    }

    fn failover_facts(
        &self,
        buckets: Vec<BucketId>,
        lost: Option<RegionId>,
    ) -> Result<(RegionId, Vec<ShardFacts>), Refusal> {
        let region = &self.data()?.region;
        let topology = self.metadata.topology();
        let known = buckets.iter().filter_map(|bucket| topology.buckets.get(bucket));
        Ok((self.region(), known.flat_map(|bucket| region.facts(bucket, lost)).collect()))
    }

    async fn failover(
        &self,
        spec: FailoverSpec,
        operation: OperationId,
        dry_run: bool,
        caller: Caller,
    ) -> Result<Arc<Plan>, Refusal> {
        self.metadata.failover(spec, operation, dry_run, &caller.identity.uri()).await
    }

    fn operations(&self, plan: Option<PlanId>) -> Result<Vec<Operation>, Refusal> {
        let Some(plan) = plan else { return Ok(self.metadata.operations()) };
        self.metadata.operation(plan).map(|known| vec![known]).ok_or_else(|| {
            Refusal::new(
                RefusalKind::NotFound,
                format!("no operation {plan} is known here: `meridian operation list` shows those that are remembered"),
            )
        })
    }

    fn events(&self, query: &EventQuery) -> EventPage {
        self.metadata.events(query)
    }

    async fn abort(&self, plan: PlanId, why: String, caller: Caller) -> Result<Operation, Refusal> {
        self.metadata.abort(plan, why, &caller.identity.uri()).await
    }

    async fn change_members(
        &self,
        region: RegionName,
        change: MembersChange,
        dry_run: bool,
        caller: Caller,
    ) -> Result<(RegionId, MemberChange), Refusal> {
        self.metadata.change_members(region, change, dry_run, &caller.identity.uri()).await
    }

    async fn remove_node(&self, name: NodeName, dry_run: bool, caller: Caller) -> Result<(), Refusal> {
        self.metadata.remove_node(name, dry_run, &caller.identity.uri()).await
    }

    async fn finalize_upgrade(&self, dry_run: bool, caller: Caller) -> Result<u8, Refusal> {
        self.metadata.finalize(dry_run, &caller.identity.uri()).await
    }
}

fn known_region(topology: &Topology, name: &RegionName) -> Result<RegionId, Refusal> {
    topology.region_named(name.as_str()).map(|region| region.id).ok_or_else(|| {
        Refusal::new(RefusalKind::NotFound, format!("there is no region `{name}`: `meridian status` shows all"))
    })
}

fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// This process' resident memory, from /proc; 0 where there is none.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().unwrap_or_default();
    kib * 1024
}
