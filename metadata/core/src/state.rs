//! The cluster's state: what every node keeps a full copy of.
//!
//! Numbers are handed out in order and never again: regions (they are CRDT actors), buckets (an id up to
//! `last_bucket` that is absent was deleted, design 4). Everything in it is bounded (RES-1).
//!
//! Deliberately not here: how it changes (`apply`), leases (soft state of a leader, [`crate::lease`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meridian_types::{
    Bucket, BucketId, BucketName, Change, ClusterId, Hlc, Node, NodeId, Plan, PlanId, Region, RegionId, RegionName,
    ShardId, Topology,
};
use serde::{Deserialize, Serialize};

use crate::event::{Event, Events};
use crate::members::Members;
use crate::operations::Operations;
use crate::spec::{check_address, check_labels, check_text};

/// The most regions. Every frame, session and digest names positions per region; more is another design.
pub const REGIONS_MAX: usize = 32;

/// The most nodes: what full copies of the state and a lease renewal per second and node allow.
pub const NODES_MAX: usize = 1024;

/// The most nodes a cluster can be formed with; the others register later.
pub const MEMBERS_MAX: usize = 256;

/// The most shards per region: each is a Raft group on some node.
pub const SHARDS_MAX: u16 = 1024;

/// The most buckets: S3's default per account.
pub const BUCKETS_MAX: usize = 10_000;

/// The shortest lease, in milliseconds: several round trips around the planet.
pub const LEASE_TTL_MS_MIN: u64 = 500;

/// The longest lease, in milliseconds: a failover has to wait it out.
pub const LEASE_TTL_MS_MAX: u64 = 60_000;

/// What was decided when the cluster was formed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Formed {
    pub(crate) cluster: ClusterId,
    pub(crate) shards: u16,
    pub(crate) lease_ttl_ms: u64,
}

/// Who serves one shard in one region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShardGroup {
    pub(crate) voters: Vec<NodeId>,
    /// Raised by every change of the voters.
    pub(crate) config_epoch: u64,
}

/// The cluster's state at one metadata index.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ClusterState {
    pub(crate) index: u64,
    /// The greatest timestamp of any change; strictly rising, whatever proposers' clocks do.
    pub(crate) clock: Hlc,
    pub(crate) formed: Option<Formed>,
    /// The newest format of commands that may be on record, where that was ever said.
    pub(crate) finalized: Option<u8>,
    pub(crate) regions: BTreeMap<RegionId, Region>,
    pub(crate) last_region: RegionId,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) groups: BTreeMap<(RegionId, ShardId), ShardGroup>,
    pub(crate) members: Members,
    pub(crate) buckets: BTreeMap<BucketId, Arc<Bucket>>,
    pub(crate) last_bucket: BucketId,
    pub(crate) operations: Operations,
    pub(crate) events: Events,
    /// Operations: those under way, and a history.
    pub(crate) plans: BTreeMap<PlanId, Arc<Plan>>,
    /// Operations that change what buckets are, likewise. No name of one is the name of a plan.
    pub(crate) changes: BTreeMap<PlanId, Arc<Change>>,
    /// Derived from `buckets`.
    pub(crate) bucket_ids: BTreeMap<BucketName, BucketId>,
}

/// A rule that a state breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the metadata state contradicts itself: {0}")]
pub struct Fault(pub(crate) String);

impl ClusterState {
    /// The index of the last command applied; 0 before the first.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Which cluster this is; `None` until it is formed.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.formed.as_ref().map(|formed| formed.cluster)
    }

    /// How long leases last; `None` until the cluster is formed.
    pub fn lease_ttl(&self) -> Option<Duration> {
        self.formed.as_ref().map(|formed| Duration::from_millis(formed.lease_ttl_ms))
    }

    /// A node by its id.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    /// Every node.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// How many shards each region has; 0 until the cluster is formed.
    pub fn shards(&self) -> u16 {
        self.formed.as_ref().map_or(0, |formed| formed.shards)
    }

    /// Every bucket.
    pub fn buckets(&self) -> impl Iterator<Item = &Arc<Bucket>> {
        self.buckets.values()
    }

    /// Who serves a shard in a region.
    pub fn voters(&self, region: RegionId, shard: ShardId) -> &[NodeId] {
        self.groups.get(&(region, shard)).map_or(&[], |group| group.voters.as_slice())
    }

    /// The name of a region, or its number.
    pub fn region_name(&self, id: RegionId) -> String {
        label(&self.regions, id)
    }

    /// A bucket by its number.
    pub fn bucket(&self, id: BucketId) -> Option<&Arc<Bucket>> {
        self.buckets.get(&id)
    }

    /// A bucket by its name.
    pub fn bucket_named(&self, name: &BucketName) -> Option<&Arc<Bucket>> {
        self.buckets.get(self.bucket_ids.get(name)?)
    }

    /// The last changes, oldest first; at most [`crate::event::EVENTS_MAX`].
    pub fn events(&self) -> impl DoubleEndedIterator<Item = &Event> {
        self.events.iter()
    }

    /// The operations under way and a history of those that ended, oldest first; at most [`crate::plan::PLANS_MAX`].
    pub fn plans(&self) -> impl DoubleEndedIterator<Item = &Arc<Plan>> {
        self.plans.values()
    }

    /// An operation by its name.
    pub fn plan(&self, id: PlanId) -> Option<&Arc<Plan>> {
        self.plans.get(&id)
    }

    /// The changes of buckets under way and a history of those that ended, oldest first; of the latter at most
    /// [`crate::plan::PLANS_MAX`].
    pub fn changes(&self) -> impl DoubleEndedIterator<Item = &Arc<Change>> {
        self.changes.values()
    }

    /// A change of a bucket by its name.
    pub fn change_of(&self, id: PlanId) -> Option<&Arc<Change>> {
        self.changes.get(&id)
    }

    /// Whether a region holds data: a witness has no groups.
    pub(crate) fn holds_data(&self, region: RegionId) -> bool {
        self.groups.contains_key(&(region, ShardId(0)))
    }

    pub(crate) fn region_id(&self, name: &RegionName) -> Option<RegionId> {
        self.regions.values().find(|region| region.name == *name).map(|region| region.id)
    }

    /// What nodes route by, but for the generation, which is no part of the state. Costs a copy of the maps, not of the
    /// buckets.
    pub fn topology(&self) -> Topology {
        Topology {
            index: self.index,
            generation: 0,
            cluster: self.cluster(),
            format: self.format(),
            shards: self.formed.as_ref().map_or(0, |formed| formed.shards),
            regions: self.regions.clone(),
            nodes: self.nodes.clone(),
            groups: self.groups.iter().map(|(place, group)| (*place, group.voters.clone())).collect(),
            changes: self.members.changes.clone(),
            retired: self.members.retired.clone(),
            buckets: self.buckets.clone(),
            bucket_ids: self.bucket_ids.clone(),
            last_bucket: self.last_bucket,
        }
    }

    /// Checks every rule that [`ClusterState::apply`](Self::apply) keeps: after restoring a state, and in tests after each step.
    ///
    /// # Errors
    /// [`Fault`] names the first rule that is broken.
    pub fn validate(&self) -> Result<(), Fault> {
        self.validate_bounds()?;
        self.validate_format()?;
        self.validate_regions()?;
        self.validate_nodes()?;
        self.validate_groups()?;
        self.validate_members()?;
        self.buckets.iter().try_for_each(|(id, bucket)| self.validate_bucket(*id, bucket))?;
        self.validate_plans()?;
        self.validate_changes()?;
        let names: BTreeMap<_, _> = self.buckets.values().map(|b| (b.name.clone(), b.id)).collect();
        rule(names == self.bucket_ids, "bucket names and bucket ids differ")
    }

    fn validate_bounds(&self) -> Result<(), Fault> {
        // What comes next is counted from here.
        rule(self.index < u64::MAX && self.clock.0 < u64::MAX, "its index or clock has no successor")?;
        rule(self.last_region.0 < u16::MAX, "the numbers of regions are used up")?;
        rule(self.regions.len() <= REGIONS_MAX, "too many regions")?;
        rule(self.nodes.len() <= NODES_MAX, "too many nodes")?;
        rule(self.buckets.len() <= BUCKETS_MAX, "too many buckets")?;
        rule(self.operations.is_sound(), "the answers kept for retries are out of order")?;
        rule(self.events.is_sound(), "the event ring is out of order")?;
        let last = self.events.iter().next_back();
        rule(last.is_none_or(|e| e.index <= self.index && e.at <= self.clock), "an event is newer than the state")
    }

    fn validate_regions(&self) -> Result<(), Fault> {
        let Some(formed) = &self.formed else {
            let empty = self.regions.is_empty() && self.nodes.is_empty() && self.buckets.is_empty();
            return rule(empty && self.groups.is_empty(), "there is content but no cluster");
        };
        rule((1..=SHARDS_MAX).contains(&formed.shards), "the number of shards is out of range")?;
        let ttl_range = LEASE_TTL_MS_MIN..=LEASE_TTL_MS_MAX;
        rule(ttl_range.contains(&formed.lease_ttl_ms), "the length of leases is out of range")?;
        for (id, region) in &self.regions {
            rule(region.id == *id && id.0 > 0 && *id <= self.last_region, "a region's number was not handed out")?;
            rule(self.region_id(&region.name) == Some(*id), "two regions share a name")?;
        }
        rule(!self.regions.is_empty(), "a cluster has no region")
    }

    fn validate_nodes(&self) -> Result<(), Fault> {
        for (id, node) in &self.nodes {
            rule(node.id == *id && NodeId::of(&node.name) == *id, "a node's id does not follow from its name")?;
            rule(self.regions.contains_key(&node.region), "a node is in no region")?;
            let texts = check_text("zone", &node.zone).and_then(|()| check_text("version", &node.version));
            rule(texts.is_ok(), "a node's description is too long")?;
            let addresses = [&node.rpc_address, &node.replication_address];
            let mut given = addresses.into_iter().filter(|address| !address.is_empty() || !node.is_witness());
            rule(given.all(|a| check_address("address", a).is_ok()), "a node's address is not valid")?;
            rule(
                node.is_witness() != self.holds_data(node.region),
                "a witness is in a region with data, or a node with data in a witness",
            )?;
        }
        Ok(())
    }

    fn validate_groups(&self) -> Result<(), Fault> {
        let shards = self.formed.as_ref().map_or(0, |formed| formed.shards);
        let holding = self.regions.keys().filter(|region| self.holds_data(**region)).count();
        rule(self.groups.len() == holding * usize::from(shards), "a shard has no group in some region")?;
        rule(holding > 0 || self.formed.is_none(), "no region holds data")?;
        for ((region, shard), group) in &self.groups {
            rule(self.regions.contains_key(region) && shard.0 < shards, "a group serves a shard that does not exist")?;
            rule(!group.voters.is_empty(), "a group has no voters")?;
            let at_home = |node: &NodeId| self.nodes.get(node).is_some_and(|node| node.region == *region);
            rule(group.voters.iter().all(at_home), "a group's voter is not a node of its region")?;
        }
        Ok(())
    }

    fn validate_bucket(&self, id: BucketId, bucket: &Bucket) -> Result<(), Fault> {
        rule(bucket.id == id && id.0 > 0 && id <= self.last_bucket, "a bucket's id was not handed out")?;
        rule(bucket.regions.is_sorted_by(|a, b| a < b), "a bucket's regions are not ascending")?;
        rule(
            bucket.regions.iter().all(|r| self.holds_data(*r)),
            "a bucket is in a region that does not exist or holds no data",
        )?;
        rule(bucket.policy.validate(bucket.regions.len()).is_ok(), "a bucket's regions can't keep its policy")?;
        rule(bucket.policy.has_primary() == bucket.primary.is_some(), "a bucket's primary contradicts its policy")?;
        rule(bucket.primary.is_none_or(|p| bucket.is_in(p)), "a bucket's primary does not hold it")?;
        rule(bucket.epoch.0 > 0 && bucket.created <= self.clock, "a bucket is from the future or has no epoch")?;
        rule(check_labels(&bucket.labels).is_ok(), "a bucket's labels are out of bounds")?;
        let auto = bucket.auto.validate(bucket.policy, &bucket.regions);
        rule(auto.is_ok(), "a bucket may do by itself what its policy leaves no room for")?;
        self.validate_standing(bucket)?;
        self.validate_turns(bucket)?;
        self.validate_joins(bucket)?;
        self.validate_crossing(bucket)
    }
}

/// The name of a region, or its number.
pub(crate) fn label(regions: &BTreeMap<RegionId, Region>, id: RegionId) -> String {
    regions.get(&id).map_or_else(|| format!("region-{id}"), |region| region.name.to_string())
}

pub(crate) fn rule(holds: bool, broken: &str) -> Result<(), Fault> {
    if holds { Ok(()) } else { Err(Fault(broken.to_owned())) }
}
