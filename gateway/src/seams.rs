//! What the gateway needs from behind it: who executes requests, and who answers operators. Implemented by
//! `region/node` and the composition root.

use std::future::Future;
use std::sync::Arc;

use meridian_proto::identity::Identity;
use meridian_types::{
    Bucket, BucketChange, BucketId, BucketLag, BucketName, BucketSpec, Estimate, EventPage, EventQuery, FailoverSpec,
    Labels, LaneStatus, MemberChange, MembersChange, NodeId, NodeName, NodeStatus, Operation, OperationId, Plan,
    PlanId, Refusal, RegionId, RegionName, Request, Response, Selection, ShardDigest, ShardFacts, SwitchoverSpec,
    Topology,
};

/// On whose behalf something is asked. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Whom the caller's certificate names: recorded as `who` of administrative operations.
    pub identity: Arc<Identity>,
    /// How the request came here.
    pub via: Via,
}

/// How a request came to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// From the client itself.
    Client,
    /// Forwarded by the node that `identity` names, for a client of its own.
    Peer,
}

/// Executes requests, wherever they belong.
pub trait Store: Send + Sync + 'static {
    /// Answers a request. The future may be dropped when the request's deadline passes or its caller goes away;
    /// a write that was proposed by then goes on.
    ///
    /// # Errors
    /// A refusal that says what happened to the data and what to do.
    fn execute(&self, request: Request, caller: Caller) -> impl Future<Output = Result<Response, Refusal>> + Send;
}

/// Digests of the answering node's region.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Digests {
    /// The region.
    pub region: RegionId,
    /// One row per bucket and shard.
    pub rows: Vec<ShardDigest>,
}

/// Lag of the other regions behind the answering node's.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Lags {
    /// The answering node's region: the source.
    pub region: RegionId,
    /// One row per bucket and target region.
    pub buckets: Vec<BucketLag>,
    /// One row per shard, target region and lane.
    pub lanes: Vec<LaneStatus>,
}

/// Answers operators and SDKs about the cluster, and changes it for them.
pub trait Control: Send + Sync + 'static {
    /// The node that answers.
    fn node(&self) -> NodeId;

    /// The cluster as this node knows it.
    fn topology(&self) -> Arc<Topology>;

    /// Creates a bucket, or with `dry_run` only says what would be created.
    ///
    /// # Errors
    /// Invalid, naming the fields in conflict; Exists; or that the metadata plane can't be reached.
    fn create_bucket(
        &self,
        spec: BucketSpec,
        dry_run: bool,
        caller: Caller,
    ) -> impl Future<Output = Result<Bucket, Refusal>> + Send;

    /// Deletes a bucket with everything in it, or with `dry_run` only checks that it could.
    ///
    /// # Errors
    /// NotFound, or that the metadata plane can't be reached.
    fn delete_bucket(
        &self,
        name: BucketName,
        dry_run: bool,
        caller: Caller,
    ) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// Sets and removes labels of a bucket.
    ///
    /// # Errors
    /// NotFound, or that the metadata plane can't be reached.
    fn set_labels(
        &self,
        name: BucketName,
        set: Labels,
        remove: Vec<String>,
        caller: Caller,
    ) -> impl Future<Output = Result<Bucket, Refusal>> + Send;

    /// Changes what can be changed of a bucket at any time, or with `dry_run` only says what it would be.
    ///
    /// # Errors
    /// NotFound; Invalid, naming the fields in conflict; or that the metadata plane can't be reached.
    fn set_bucket(
        &self,
        name: BucketName,
        change: BucketChange,
        dry_run: bool,
        caller: Caller,
    ) -> impl Future<Output = Result<Bucket, Refusal>> + Send;

    /// Digests of this region: of one bucket, or of all.
    ///
    /// # Errors
    /// NotFound for an unknown bucket.
    fn digests(&self, bucket: Option<BucketName>) -> impl Future<Output = Result<Digests, Refusal>> + Send;

    /// Lag of the other regions behind this one: of one bucket, or of all.
    ///
    /// # Errors
    /// NotFound for an unknown bucket.
    fn lag(&self, bucket: Option<BucketName>) -> impl Future<Output = Result<Lags, Refusal>> + Send;

    /// What this node knows of itself.
    ///
    /// # Errors
    /// When a part of the node can't answer.
    fn node_status(&self) -> impl Future<Output = Result<NodeStatus, Refusal>> + Send;

    /// Plans to move primaries, or with `dry_run` only says what would be planned.
    ///
    /// # Errors
    /// Retry, naming the operation that has one of the buckets; Invalid or NotFound, naming what can't move; or that the
    /// metadata plane can't be reached.
    fn switchover(
        &self,
        spec: SwitchoverSpec,
        operation: OperationId,
        dry_run: bool,
        caller: Caller,
    ) -> impl Future<Output = Result<Arc<Plan>, Refusal>> + Send;

    /// What replacing primaries would cost, as far as this node and those it reaches know; of active-active buckets, what it would cost
    /// to go on without `lost`.
    ///
    /// # Errors
    /// NotFound, naming the bucket or region that there is not.
    fn failover_estimate(
        &self,
        buckets: Selection,
        to: Option<RegionName>,
        lost: Option<RegionName>,
    ) -> impl Future<Output = Result<Estimate, Refusal>> + Send;

    /// This node's region, and what the shards that this node leads have of buckets; of active-active ones, what they have of `lost`.
    ///
    /// # Errors
    /// Retry while the node is starting.
    fn failover_facts(
        &self,
        buckets: Vec<BucketId>,
        lost: Option<RegionId>,
    ) -> Result<(RegionId, Vec<ShardFacts>), Refusal>;

    /// Plans to replace primaries that are lost, or with `dry_run` only says what would be planned.
    ///
    /// # Errors
    /// Consent when something could be lost that nobody has agreed to; else as [`Control::switchover`].
    fn failover(
        &self,
        spec: FailoverSpec,
        operation: OperationId,
        dry_run: bool,
        caller: Caller,
    ) -> impl Future<Output = Result<Arc<Plan>, Refusal>> + Send;

    /// One operation, or all that are under way or remembered, oldest first, as this node knows them.
    ///
    /// # Errors
    /// NotFound for an operation this node doesn't know.
    fn operations(&self, plan: Option<PlanId>) -> Result<Vec<Operation>, Refusal>;

    /// The last changes of the metadata plane, as this node knows them.
    fn events(&self, query: &EventQuery) -> EventPage;

    /// Gives up what is under way of an operation.
    ///
    /// # Errors
    /// NotFound; Conflict when it has ended; or that the metadata plane can't be reached.
    fn abort(
        &self,
        plan: PlanId,
        why: String,
        caller: Caller,
    ) -> impl Future<Output = Result<Operation, Refusal>> + Send;

    /// Changes who serves a region's shards, or with `dry_run` only says what the change would be.
    ///
    /// # Errors
    /// Conflict while another change is under way in the region; Invalid, Exists or NotFound, naming what can't be; or that the
    /// metadata plane can't be reached.
    fn change_members(
        &self,
        region: RegionName,
        change: MembersChange,
        dry_run: bool,
        caller: Caller,
    ) -> impl Future<Output = Result<(RegionId, MemberChange), Refusal>> + Send;

    /// Removes a node that holds nothing, for good, or with `dry_run` only checks that it could.
    ///
    /// # Errors
    /// Conflict while it holds shards; Unavailable while others may rest on it; NotFound; or that the metadata plane can't be reached.
    fn remove_node(
        &self,
        name: NodeName,
        dry_run: bool,
        caller: Caller,
    ) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// Ends an upgrade, or with `dry_run` only checks that it could; the newest format of the metadata that is on record then.
    ///
    /// # Errors
    /// Conflict, naming a node that does not run this release; or that the metadata plane can't be reached.
    fn finalize_upgrade(&self, dry_run: bool, caller: Caller) -> impl Future<Output = Result<u8, Refusal>> + Send;
}
