//! The routing view of the cluster that every node keeps a full copy of (design 4).
//!
//! The metadata core produces it after each applied command; rooms that route, ship or serve read
//! it without asking anybody.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::bucket::Bucket;
use crate::id::{BucketId, BucketName, ClusterId, NodeId, NodeName, RegionId, RegionName, ShardId};

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
    /// How many shards each region has.
    pub shards: u16,
    /// The regions.
    pub regions: BTreeMap<RegionId, Region>,
    /// The nodes.
    pub nodes: BTreeMap<NodeId, Node>,
    /// Who serves a shard in a region: the voters of its group.
    pub groups: BTreeMap<(RegionId, ShardId), Vec<NodeId>>,
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
}
