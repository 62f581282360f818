//! Whether a drill left the node's own shards alone: what is known of them before it is compared with afterwards.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use meridian_region_core::drill::PREFIX;
use meridian_region_core::{StateView, ViewError, keys};
use meridian_types::{BucketId, Epoch, Phase, ShardId};

use crate::node::{Node, ShardNode};
use crate::store::Store;

/// What was known before; replication goes on meanwhile and is none of it.
pub(super) struct Before {
    /// Writes that the region's own log brought, and their bytes: it brings none while another region is the primary.
    own: BTreeMap<(BucketId, ShardId), (u64, u64)>,
    /// On record.
    epochs: BTreeMap<BucketId, Epoch>,
}

impl Before {
    pub(super) fn of(node: &Node, buckets: &[BucketId]) -> Before {
        let topology = node.authority.topology();
        let epoch = |bucket: &BucketId| topology.buckets.get(bucket).map(|it| (*bucket, it.epoch));
        let places = node.shards.iter().flat_map(|shard| buckets.iter().map(move |bucket| (shard, *bucket)));
        let own = places.map(|(shard, bucket)| ((bucket, shard.id), shard.board.own_writes(bucket)));
        Before { own: own.collect(), epochs: buckets.iter().filter_map(epoch).collect() }
    }

    /// What is not as it should be, in a sentence each: an epoch or fence that is not on record, or a write of the region's own.
    pub(super) fn compare(&self, node: &Node) -> Vec<String> {
        let topology = node.authority.topology();
        let mut faults = Vec::new();
        for (bucket, epoch) in &self.epochs {
            let Some(now) = topology.buckets.get(bucket) else {
                faults.push(format!("bucket {bucket} was deleted while it was rehearsed: rehearse what there is now"));
                continue;
            };
            // An operation that is on record may have brought all of that meanwhile.
            if now.epoch != *epoch || now.phase != Phase::Steady {
                continue;
            }
            let touched = node.shards.iter().filter(|shard| self.is_touched(shard, *bucket, *epoch));
            faults.extend(touched.map(|shard| {
                format!(
                    "bucket {bucket} changed in shard {} of this node, and no operation says why: compare it with `meridian resync run`",
                    shard.id
                )
            }));
        }
        faults
    }

    fn is_touched(&self, shard: &ShardNode, bucket: BucketId, on_record: Epoch) -> bool {
        let before = self.own.get(&(bucket, shard.id)).copied().unwrap_or_default();
        let epoch = shard.board.epoch(bucket).max(shard.board.fence(bucket));
        epoch > on_record || shard.board.own_writes(bucket) != before
    }
}

/// How many keys of the drill `id` are in the node's own store: none, ever. Blocks on the disk.
pub(super) fn strays(store: &Store, shards: u16, buckets: &[BucketId], id: &str) -> Result<u64, ViewError> {
    let prefix = format!("{PREFIX}{id}/");
    let mut found = 0;
    for shard in (0..shards).map(ShardId) {
        for bucket in buckets {
            let (from, to) = keys::data_under(shard, *bucket, prefix.as_bytes());
            store.scan(&from, &to, &mut |_, _| {
                found += 1;
                ControlFlow::Continue(())
            })?;
        }
    }
    Ok(found)
}
