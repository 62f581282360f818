//! The routing view of the cluster that every node keeps a full copy of (design 4).
//!
//! The metadata core produces it after each applied command; rooms that route, ship or serve read
//! it without asking anybody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::bucket::Bucket;
use crate::id::{BucketId, BucketName, ClusterId, NodeId, NodeName, RegionId, RegionName, ShardId};
use crate::members::{MemberChange, Membership};

/// A region as everybody knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Its replica number.
    pub id: RegionId,
    /// Its name.
    pub name: RegionName,
}

/// A node as everybody knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// The region it lives in.
    pub region: RegionId,
    /// Its failure domain within the region.
    pub zone: String,
    /// `host:port` of its gRPC endpoint (TCP): clients, other nodes, operators.
    pub rpc_address: String,
    /// `host:port` of its replication endpoint (QUIC over UDP); empty for a witness, which has no data to replicate.
    pub replication_address: String,
    /// The version of Meridian it last started with.
    pub version: String,
}

impl Node {
    /// Whether it only votes in the metadata group and holds no data.
    pub fn is_witness(&self) -> bool {
        self.replication_address.is_empty()
    }
}

/// The cluster at one metadata index.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Topology {
    /// The metadata index it was taken at; rising.
    pub index: u64,
    /// How often the metadata plane was recovered from one copy; its members of another generation are no members.
    pub generation: u32,
    /// Which cluster this is; `None` until it is formed.
    pub cluster: Option<ClusterId>,
    /// The newest format of the metadata that nodes put on record ([`crate::release`]); 0 where who was asked did not say.
    pub format: u8,
    /// How many shards each region has.
    pub shards: u16,
    /// The regions.
    pub regions: BTreeMap<RegionId, Region>,
    /// The nodes.
    pub nodes: BTreeMap<NodeId, Node>,
    /// Who serves a shard in a region: the voters of its group.
    pub groups: BTreeMap<(RegionId, ShardId), Vec<NodeId>>,
    /// Regions whose members change.
    pub changes: BTreeMap<RegionId, MemberChange>,
    /// Nodes that were removed, for good.
    pub retired: BTreeSet<NodeId>,
    /// The buckets. Deleted ones are gone.
    pub buckets: BTreeMap<BucketId, Arc<Bucket>>,
    /// The buckets' names.
    pub bucket_ids: BTreeMap<BucketName, BucketId>,
    /// The greatest bucket id ever given out: an absent id up to here is deleted, beyond it is not known yet.
    pub last_bucket: BucketId,
}

/// What a bucket id means to a node with this topology.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BucketStatus<'a> {
    /// It exists.
    Known(&'a Arc<Bucket>),
    /// It was deleted.
    Deleted,
    /// This copy of the metadata has not reached its creation yet.
    NotYetKnown,
}

impl Topology {
    /// The bucket of that name.
    pub fn bucket_named(&self, name: &str) -> Option<&Arc<Bucket>> {
        // A name that is no valid bucket name can't be in the map.
        let name = BucketName::new(name).ok()?;
        self.buckets.get(self.bucket_ids.get(&name)?)
    }

    /// What that bucket id means here.
    pub fn bucket(&self, id: BucketId) -> BucketStatus<'_> {
        match self.buckets.get(&id) {
            Some(bucket) => BucketStatus::Known(bucket),
            None if id <= self.last_bucket => BucketStatus::Deleted,
            None => BucketStatus::NotYetKnown,
        }
    }

    /// The region of that name.
    pub fn region_named(&self, name: &str) -> Option<&Region> {
        self.regions.values().find(|region| region.name.as_str() == name)
    }

    /// The name of a region, or its number where the copy doesn't know it.
    pub fn region_label(&self, id: RegionId) -> String {
        self.regions.get(&id).map_or_else(|| format!("region-{id}"), |region| region.name.to_string())
    }

    /// Whether a region holds data: a witness has no groups.
    pub fn holds_data(&self, region: RegionId) -> bool {
        self.groups.contains_key(&(region, ShardId(0)))
    }

    /// The regions that hold data, ascending.
    pub fn data_regions(&self) -> impl Iterator<Item = RegionId> + '_ {
        self.regions.keys().copied().filter(|region| self.holds_data(*region))
    }

    /// The nodes that serve `shard` in `region`.
    pub fn voters(&self, region: RegionId, shard: ShardId) -> &[NodeId] {
        self.groups.get(&(region, shard)).map_or(&[], Vec::as_slice)
    }

    /// Who may lead `shard` in `region`: its voters, and while it moves those that are to vote.
    pub fn holders(&self, region: RegionId, shard: ShardId) -> Vec<NodeId> {
        let mut holders = self.voters(region, shard).to_vec();
        let moving = self.changes.get(&region).filter(|change| change.pending.contains(&shard));
        let new = moving.into_iter().flat_map(|change| &change.target).filter(|node| !holders.contains(node));
        let new: Vec<NodeId> = new.copied().collect();
        holders.extend(new);
        holders
    }

    /// On how many nodes of `region` an entry of `shard` is once it is committed; at least, while it moves.
    pub fn quorum(&self, region: RegionId, shard: ShardId) -> usize {
        let moving = self.changes.get(&region).filter(|change| change.pending.contains(&shard));
        let voters = self.voters(region, shard).len();
        moving.map_or(voters, |change| voters.min(change.target.len())) / 2 + 1
    }

    /// What a node is to its region; `None` for one that is not registered.
    pub fn membership(&self, node: NodeId) -> Option<Membership> {
        let known = self.nodes.get(&node)?;
        if known.is_witness() {
            return Some(Membership::Witness);
        }
        let votes = (0..self.shards).any(|shard| self.voters(known.region, ShardId(shard)).contains(&node));
        let change = self.changes.get(&known.region);
        // Whoever was there stays until every shard has moved: until then its vote may be needed to let it go.
        let was = |change: &MemberChange| change.before.contains(&node) || change.strays.contains(&node);
        Some(match change.map(|change| (was(change), change.target.contains(&node))) {
            Some((true, true)) => Membership::Member,
            Some((false, true)) => Membership::Joining,
            Some((true, false)) => Membership::Leaving,
            None if votes => Membership::Member,
            Some((false, false)) | None => Membership::Spare,
        })
    }

    /// The nodes of a region that hold shards, those that hold all of them first.
    pub fn serving(&self, region: RegionId) -> Vec<&Node> {
        let here = self.nodes.values().filter(|node| node.region == region && self.serves(node.id));
        let (members, others): (Vec<_>, Vec<_>) =
            here.partition(|node| self.membership(node.id) == Some(Membership::Member));
        members.into_iter().chain(others).collect()
    }

    /// Whether a node holds shards of its region, or is about to.
    pub fn serves(&self, node: NodeId) -> bool {
        matches!(self.membership(node), Some(Membership::Member | Membership::Joining | Membership::Leaving))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: RegionId = RegionId(1);

    fn node(id: u64) -> (NodeId, Node) {
        let (id, name) = (NodeId(id), NodeName::new(&format!("n-{id}")).unwrap());
        let (rpc_address, replication_address) = ("h:1".to_owned(), "h:2".to_owned());
        let (zone, version) = (String::new(), String::new());
        (id, Node { id, name, region: HOME, zone, rpc_address, replication_address, version })
    }

    /// Three nodes serve two shards; the fourth takes the place of the third, and one shard has moved.
    fn moving() -> Topology {
        let nodes = |ids: [u64; 3]| ids.map(NodeId).to_vec();
        let (before, target) = (nodes([1, 2, 3]), nodes([1, 2, 4]));
        let groups = [((HOME, ShardId(0)), target.clone()), ((HOME, ShardId(1)), before.clone())].into();
        let pending = BTreeSet::from([ShardId(1)]);
        let (who, strays) = (String::new(), BTreeSet::new());
        let change = MemberChange { index: 9, since_ms: 0, who, target, before, strays, pending };
        let nodes = (1..=5).map(node).collect();
        Topology { shards: 2, nodes, groups, changes: [(HOME, change)].into(), ..Topology::default() }
    }

    #[test]
    fn while_a_shard_moves_either_may_lead_it_and_the_smaller_majority_counts() {
        let mut topology = moving();
        assert_eq!(topology.holders(HOME, ShardId(0)), [1, 2, 4].map(NodeId));
        assert_eq!(topology.holders(HOME, ShardId(1)), [1, 2, 3, 4].map(NodeId));
        assert_eq!(topology.quorum(HOME, ShardId(1)), 2);
        topology.changes.get_mut(&HOME).unwrap().target = vec![NodeId(1)];
        assert_eq!((topology.quorum(HOME, ShardId(0)), topology.quorum(HOME, ShardId(1))), (2, 1));
    }

    #[test]
    fn what_a_node_is_to_its_region_follows_from_placement_and_change() {
        let mut topology = moving();
        let is = |topology: &Topology| [1, 3, 4, 5].map(|id| topology.membership(NodeId(id)).unwrap());
        assert_eq!(is(&topology), [Membership::Member, Membership::Leaving, Membership::Joining, Membership::Spare]);
        topology.groups.insert((HOME, ShardId(1)), [1, 2, 4].map(NodeId).to_vec());
        topology.changes.clear();
        assert_eq!(is(&topology), [Membership::Member, Membership::Spare, Membership::Member, Membership::Spare]);
        assert!(topology.serves(NodeId(4)) && !topology.serves(NodeId(3)) && topology.membership(NodeId(6)).is_none());
    }
}
