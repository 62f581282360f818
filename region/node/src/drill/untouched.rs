//! Whether a drill left the node's own shards alone: what is known of them before it is compared with afterwards.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use meridian_region_core::drill::PREFIX;
use meridian_region_core::{StateView, ViewError, keys};
use meridian_types::{BucketId, Epoch, Phase, ShardId, Topology};

use crate::node::Node;
use crate::store::Store;

/// A bucket in a shard as far as a drill could have changed it; replication goes on meanwhile and is none of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Trace {
    epoch: Epoch,
    fence: Epoch,
    /// Writes that the region's own log brought, and their bytes: none, while another region is the primary.
    own: (u64, u64),
}

/// What was known before.
pub(super) struct Before {
    traces: BTreeMap<(BucketId, ShardId), Trace>,
    /// On record.
    epochs: BTreeMap<BucketId, Epoch>,
}

impl Before {
    pub(super) fn of(node: &Node, buckets: &[BucketId]) -> Before {
        let topology = node.authority.topology();
        let epoch = |bucket: &BucketId| topology.buckets.get(bucket).map(|it| (*bucket, it.epoch));
        Before { traces: traces(node, buckets), epochs: buckets.iter().filter_map(epoch).collect() }
    }

    /// What is not as it was without an operation on record that says why, in a sentence each.
    pub(super) fn compare(&self, node: &Node) -> Vec<String> {
        let topology = node.authority.topology();
        let mut faults = Vec::new();
        for (bucket, epoch) in &self.epochs {
            if !topology.buckets.contains_key(bucket) {
                faults.push(format!("bucket {bucket} was deleted while it was rehearsed: rehearse what there is now"));
            } else if is_as_on_record(&topology, *bucket, *epoch) {
                let now = traces(node, &[*bucket]);
                let changed = now.into_iter().filter(|(at, trace)| self.traces.get(at) != Some(trace));
                faults.extend(changed.map(|((bucket, shard), _)| {
                    format!(
                        "bucket {bucket} changed in shard {shard} of this node, and no operation says why: compare it with `meridian resync run`"
                    )
                }));
            }
        }
        faults
    }
}

fn is_as_on_record(topology: &Topology, bucket: BucketId, epoch: Epoch) -> bool {
    topology.buckets.get(&bucket).is_some_and(|it| it.epoch == epoch && it.phase == Phase::Steady)
}

fn traces(node: &Node, buckets: &[BucketId]) -> BTreeMap<(BucketId, ShardId), Trace> {
    let of = |shard: &crate::node::ShardNode, bucket: BucketId| Trace {
        epoch: shard.board.epoch(bucket),
        fence: shard.board.fence(bucket),
        own: shard.board.own_writes(bucket),
    };
    let all = node.shards.iter().flat_map(|shard| buckets.iter().map(move |bucket| (shard, *bucket)));
    all.map(|(shard, bucket)| ((bucket, shard.id), of(shard, bucket))).collect()
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
