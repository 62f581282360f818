//! What versions 1 and 2 wrote of buckets: read for ever, and written where nothing newer is said, so that during an upgrade
//! nodes of both releases follow.
//!
//! Field order is the format. Deliberately not here: what is the same in every version, operations among it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meridian_types::{
    Acks, AutoFailover, Bucket, BucketId, BucketName, BucketSpec, ClusterId, Epoch, Hlc, Joins, Labels, Node, NodeId,
    OnPartition, OperationId, Phase, Plan, PlanId, Policy, Refusal, Region, RegionId, RegionName, ShardId, Standing,
    SwitchoverSpec, Turns, Word,
};
use serde::{Deserialize, Serialize};

use crate::command::{AbortScope, Action, Command, Form, NodeSpec, is_of_failover};
use crate::event::Events;
use crate::reply::Reply;
use crate::state::{Formed, ShardGroup};

#[derive(Clone, Copy, Serialize, Deserialize)]
enum PolicyV1 {
    Async,
    Sync { acks: Acks },
    ActiveActive,
}

impl PolicyV1 {
    fn of(policy: Policy) -> Option<PolicyV1> {
        match policy {
            Policy::Async { max_lag: None } => Some(PolicyV1::Async),
            Policy::Sync { acks, on_partition: OnPartition::Block } => Some(PolicyV1::Sync { acks }),
            Policy::ActiveActive => Some(PolicyV1::ActiveActive),
            Policy::Async { max_lag: Some(_) } | Policy::Sync { on_partition: OnPartition::Degrade { .. }, .. } => None,
        }
    }
}

impl From<PolicyV1> for Policy {
    fn from(policy: PolicyV1) -> Policy {
        match policy {
            PolicyV1::Async => Policy::ASYNC,
            PolicyV1::Sync { acks } => Policy::sync(acks),
            PolicyV1::ActiveActive => Policy::ActiveActive,
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(crate) struct BucketSpecV1 {
    name: BucketName,
    policy: PolicyV1,
    regions: Vec<RegionName>,
    primary: Option<RegionName>,
    labels: Labels,
}

impl BucketSpecV1 {
    /// `None` when it says something that version 1 had no words for.
    pub(crate) fn of(spec: &BucketSpec) -> Option<BucketSpecV1> {
        if spec.auto != AutoFailover::default() {
            return None;
        }
        let BucketSpec { name, policy, regions, primary, labels, auto: _ } = spec.clone();
        Some(BucketSpecV1 { name, policy: PolicyV1::of(policy)?, regions, primary, labels })
    }
}

impl From<BucketSpecV1> for BucketSpec {
    fn from(spec: BucketSpecV1) -> BucketSpec {
        let BucketSpecV1 { name, policy, regions, primary, labels } = spec;
        BucketSpec { name, policy: policy.into(), regions, primary, labels, auto: AutoFailover::default() }
    }
}

#[derive(Serialize, Deserialize)]
pub(crate) struct BucketV1 {
    id: BucketId,
    name: BucketName,
    policy: PolicyV1,
    epoch: Epoch,
    phase: Phase,
    primary: Option<RegionId>,
    regions: Vec<RegionId>,
    labels: Labels,
    created: Hlc,
}

impl BucketV1 {
    fn of(bucket: &Bucket) -> Option<BucketV1> {
        let plain =
            bucket.auto == AutoFailover::default() && bucket.standing == (Standing::Sync { since: bucket.created });
        let older = !matches!(bucket.phase, Phase::Pulling { .. });
        let policy = PolicyV1::of(bucket.policy).filter(|_| plain && older)?;
        let Bucket {
            id,
            name,
            policy: _,
            epoch,
            phase,
            primary,
            regions,
            labels,
            created,
            standing: _,
            auto: _,
            turns: _,
            joins: _,
            crossing: _,
        } = bucket.clone();
        Some(BucketV1 { id, name, policy, epoch, phase, primary, regions, labels, created })
    }
}

impl From<BucketV1> for Bucket {
    fn from(bucket: BucketV1) -> Bucket {
        let BucketV1 { id, name, policy, epoch, phase, primary, regions, labels, created } = bucket;
        let (standing, auto) = (Standing::Sync { since: created }, AutoFailover::default());
        let (turns, joins, crossing) = (Turns::default(), Joins::default(), None);
        let policy = policy.into();
        Bucket {
            id,
            name,
            policy,
            epoch,
            phase,
            primary,
            regions,
            labels,
            created,
            standing,
            auto,
            turns,
            joins,
            crossing,
        }
    }
}

#[derive(Serialize, Deserialize)]
enum ActionV2 {
    FormCluster(Form),
    RegisterNode(NodeSpec),
    CreateBucket(BucketSpecV1),
    DeleteBucket { name: BucketName },
    SetLabels { name: BucketName, set: Labels, remove: BTreeSet<String> },
    Switchover(SwitchoverSpec),
    Report { region: RegionId, words: Vec<Word> },
    Abort { plan: PlanId, scope: AbortScope, why: String },
}

/// A command as versions 1 and 2 wrote it; their formats differ in which actions they know.
#[derive(Serialize, Deserialize)]
pub(crate) struct CommandV2 {
    operation: OperationId,
    who: String,
    at_ms: u64,
    action: ActionV2,
}

impl CommandV2 {
    /// `None` when it takes a newer version to say it.
    pub(crate) fn of(command: &Command) -> Option<CommandV2> {
        let action = match command.action.clone() {
            Action::FormCluster(form) => ActionV2::FormCluster(form),
            Action::RegisterNode(node) => ActionV2::RegisterNode(node),
            Action::CreateBucket(spec) => ActionV2::CreateBucket(BucketSpecV1::of(&spec)?),
            Action::DeleteBucket { name } => ActionV2::DeleteBucket { name },
            Action::SetLabels { name, set, remove } => ActionV2::SetLabels { name, set, remove },
            Action::Switchover(spec) => ActionV2::Switchover(spec),
            // Nobody had anything left to tell of a lost primary.
            Action::Report { words, .. } if words.iter().any(is_of_failover) => return None,
            Action::Report { region, words } => ActionV2::Report { region, words },
            Action::Abort { plan, scope, why } => ActionV2::Abort { plan, scope, why },
            Action::SetBucket { .. }
            | Action::SetDetection { .. }
            | Action::SetPolicy { .. }
            | Action::SetRegions { .. }
            | Action::Cross { .. }
            | Action::GiveUpCrossing { .. }
            | Action::ReportStanding { .. }
            | Action::Failover(_)
            | Action::Advance { .. }
            | Action::Observe { .. }
            | Action::CrossRegions { .. }
            | Action::LoseRegion { .. }
            | Action::ChangeMembers { .. }
            | Action::ShardsMoved { .. }
            | Action::RemoveNode { .. }
            | Action::Change { .. }
            | Action::FormClusterAt { .. }
            | Action::Finalize { .. }
            | Action::Note { .. } => return None,
        };
        Some(CommandV2 { operation: command.operation, who: command.who.clone(), at_ms: command.at_ms, action })
    }
}

impl From<CommandV2> for Command {
    fn from(command: CommandV2) -> Command {
        let action = match command.action {
            ActionV2::FormCluster(form) => Action::FormCluster(form),
            ActionV2::RegisterNode(node) => Action::RegisterNode(node),
            ActionV2::CreateBucket(spec) => Action::CreateBucket(spec.into()),
            ActionV2::DeleteBucket { name } => Action::DeleteBucket { name },
            ActionV2::SetLabels { name, set, remove } => Action::SetLabels { name, set, remove },
            ActionV2::Switchover(spec) => Action::Switchover(spec),
            ActionV2::Report { region, words } => Action::Report { region, words },
            ActionV2::Abort { plan, scope, why } => Action::Abort { plan, scope, why },
        };
        Command { operation: command.operation, who: command.who, at_ms: command.at_ms, action }
    }
}

/// An answer's reply, as answers of format 1 have it.
#[derive(Serialize, Deserialize)]
pub(crate) enum ReplyV1 {
    Formed { cluster: ClusterId },
    Registered { node: NodeId, region: RegionId },
    Bucket(Box<BucketV1>),
    Deleted { bucket: BucketId },
    Operation { plan: PlanId },
    Reported,
}

impl ReplyV1 {
    /// `None` when it takes a newer version to say it.
    pub(crate) fn of(reply: &Reply) -> Option<ReplyV1> {
        Some(match reply {
            Reply::Formed { cluster } => ReplyV1::Formed { cluster: *cluster },
            Reply::Registered { node, region } => ReplyV1::Registered { node: *node, region: *region },
            Reply::Bucket(bucket) => ReplyV1::Bucket(Box::new(BucketV1::of(bucket)?)),
            Reply::Deleted { bucket } => ReplyV1::Deleted { bucket: *bucket },
            Reply::Operation { plan } => ReplyV1::Operation { plan: *plan },
            Reply::Reported => ReplyV1::Reported,
        })
    }
}

impl From<ReplyV1> for Reply {
    fn from(reply: ReplyV1) -> Reply {
        match reply {
            ReplyV1::Formed { cluster } => Reply::Formed { cluster },
            ReplyV1::Registered { node, region } => Reply::Registered { node, region },
            ReplyV1::Bucket(bucket) => Reply::Bucket((*bucket).into()),
            ReplyV1::Deleted { bucket } => Reply::Deleted { bucket },
            ReplyV1::Operation { plan } => Reply::Operation { plan },
            ReplyV1::Reported => Reply::Reported,
        }
    }
}

/// A remembered answer.
#[derive(Deserialize)]
pub(crate) struct AnsweredV1 {
    pub(crate) operation: OperationId,
    pub(crate) verb: String,
    pub(crate) subject: String,
    pub(crate) answer: Result<ReplyV1, Refusal>,
}

/// The state as version 1 wrote it.
#[derive(Deserialize)]
pub(crate) struct StateV1 {
    index: u64,
    clock: Hlc,
    formed: Option<Formed>,
    regions: BTreeMap<RegionId, Region>,
    last_region: RegionId,
    nodes: BTreeMap<NodeId, Node>,
    groups: BTreeMap<(RegionId, ShardId), ShardGroup>,
    buckets: BTreeMap<BucketId, BucketV1>,
    last_bucket: BucketId,
    operations: Vec<AnsweredV1>,
    events: Events,
}

/// The state as version 2 wrote it: operations besides, by name.
#[derive(Deserialize)]
pub(crate) struct StateV2 {
    pub(crate) base: StateV1,
    pub(crate) plans: Vec<Arc<Plan>>,
}

impl From<StateV2> for crate::snapshot::StateV3 {
    fn from(StateV2 { base, plans }: StateV2) -> crate::snapshot::StateV3 {
        crate::snapshot::StateV3 {
            index: base.index,
            clock: base.clock,
            formed: base.formed,
            regions: base.regions,
            last_region: base.last_region,
            nodes: base.nodes,
            groups: base.groups,
            buckets: base.buckets.into_iter().map(|(id, bucket)| (id, Arc::new(bucket.into()))).collect(),
            last_bucket: base.last_bucket,
            operations: base.operations.into_iter().collect(),
            events: base.events,
            plans,
        }
    }
}
