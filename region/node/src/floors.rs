//! How far this node's logs are needed by nobody any more, and purged.
//!
//! Only the node that leads a shard hears what other regions have of it. Those that follow it in the region ask it, so that they
//! keep what they may have to ship once they lead, and no more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use meridian_failpoint::failpoint;
use meridian_region_core::repair::message::{Ask, Told};
use meridian_types::{Lane, Lsn, NodeId, RegionId, ShardId};
use tokio::time::{MissedTickBehavior, interval};

use crate::node::{Node, ShardNode};
use crate::retention;

/// How often leaders are asked: a log is purged in steps of many entries.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// Asks the nodes that lead shards this one follows.
pub(crate) async fn follow_floors(node: Arc<Node>) {
    let mut ticks = interval(ASK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let mut led: BTreeMap<NodeId, Vec<ShardId>> = BTreeMap::new();
        for shard in node.shards.iter().filter(|shard| !shard.board.leads()) {
            let leader = shard.leader().filter(|leader| *leader != node.place.node);
            leader.into_iter().for_each(|leader| led.entry(leader).or_default().push(shard.id));
        }
        join_all(led.iter().map(|(leader, shards)| node.ask_for_floors(*leader, shards))).await;
    }
}

impl Node {
    /// Of each shard that this node leads, up to where nobody needs its log.
    pub(crate) fn floors(&self) -> Vec<(ShardId, Lsn)> {
        let led = self.shards.iter().filter(|shard| shard.board.leads());
        led.map(|shard| (shard.id, shard.board.retained().all_have(Lsn(0)))).collect()
    }

    async fn ask_for_floors(&self, leader: NodeId, shards: &[ShardId]) {
        match self.peers.ask_repair(leader, &Ask::Floors).await {
            Ok(Told::Floors(floors)) => {
                // Whoever told it has led the shard: each of the other regions has what it says.
                for (id, floor) in floors.into_iter().filter(|(id, _)| shards.contains(id)) {
                    if let Some(shard) = self.shard(id) {
                        shard.board.retained().all_have(floor.min(shard.board.applied()));
                    }
                }
            }
            Ok(_) => tracing::warn!(%leader, "a node gave an answer to another question"),
            Err(why) => tracing::debug!(%leader, %why, "a leader does not say how far its logs are needed"),
        }
    }

    /// Lets consensus purge what every other region has, and more when the budget is used up: a dead region must not
    /// fill the disk of a living one (ISO-1). It then needs a resync.
    pub(crate) fn raise_purge_floors(&self) {
        let topology = self.authority.topology();
        let others: Vec<RegionId> = topology.data_regions().filter(|region| *region != self.region()).collect();
        let mut retained: Vec<_> = self.shards.iter().map(|shard| shard.board.retained()).collect();
        for (shard, retained) in self.shards.iter().zip(&mut retained) {
            retained.all_have(all_have(shard, &others));
        }
        let over_budget =
            retention::fit(retained.iter_mut().map(|shard| &mut **shard), self.options.log_retention_bytes);
        let floors: Vec<Lsn> = retained.iter_mut().map(|retained| retained.all_have(Lsn(0))).collect();
        drop(retained);
        if over_budget {
            tracing::warn!(
                budget_bytes = self.options.log_retention_bytes,
                "the log kept for regions that are behind is over its budget: its oldest part may be purged, and they will need a resync"
            );
        }
        failpoint("retention.raise.before");
        for (shard, floor) in self.shards.iter().zip(floors) {
            shard.allow_purge(floor);
        }
    }
}

/// What every other region has of both lanes of a shard. Both count for each region, whatever buckets there are today:
/// an empty lane is moved along too, so that it is not behind the log on the day it gets a bucket.
fn all_have(shard: &ShardNode, others: &[RegionId]) -> Lsn {
    let acked = others.iter().flat_map(|region| Lane::ALL.map(|lane| shard.acked(lane, *region)));
    acked.min().unwrap_or_else(|| shard.board.applied())
}
