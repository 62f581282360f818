//! The successor of a lost primary fetches what it lacks from the other regions that are left (DUR-2; design 7,
//! docs/adr/2026-11-27-failover.md).
//!
//! Every region that is left has fenced the bucket by now, so whoever has most of a shard goes on having most. What is fetched
//! is told like what was there from the beginning ([`crate::handover`]): nobody waits here for anything but the repair itself.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use meridian_region_core::repair::message::{Ask, Told};
use meridian_types::{Bucket, Epoch, Lsn, Phase, RegionId, Topology};
use tokio::time::sleep;

use crate::node::{Node, ShardNode};

/// The pause before a pull that did not get on is tried again.
const AGAIN_AFTER: Duration = Duration::from_millis(250);

/// How often there is a look otherwise, should a change have been missed.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Pulls for as long as the node lives.
pub(crate) async fn pull(node: Arc<Node>) {
    let mut changes = node.authority.topology_changes();
    loop {
        let topology = Arc::clone(&changes.borrow_and_update());
        let due: Vec<&Arc<Bucket>> = topology.buckets.values().filter(|it| pulls(it, node.region())).collect();
        let (here, known) = (node.as_ref(), topology.as_ref());
        let led = here.shards.iter().filter(|shard| shard.board.leads());
        let places = led.flat_map(|shard| due.iter().map(move |bucket| (shard, bucket)));
        join_all(places.map(|(shard, bucket)| here.pull_shard(known, bucket, shard))).await;
        tokio::select! {
            biased;
            // The metadata plane is gone: the node is ending.
            changed = changes.changed() => if changed.is_err() { return std::future::pending().await },
            () = sleep(if due.is_empty() { LOOK_EVERY } else { AGAIN_AFTER }) => {}
        }
    }
}

fn pulls(bucket: &Bucket, region: RegionId) -> bool {
    matches!(bucket.phase, Phase::Pulling { to, .. } if to == region)
}

impl Node {
    /// Makes a shard equal to the one that has most of the bucket, unless this one does.
    async fn pull_shard(&self, topology: &Topology, bucket: &Bucket, shard: &ShardNode) {
        let Some(primary) = bucket.primary else { return };
        let facts = self.facts_of(shard, bucket).1;
        let mut most = (facts.remains.rank(), None);
        for region in bucket.targets(primary).filter(|region| *region != self.region()) {
            let rank = self.rank_of(topology, bucket, primary, (region, shard)).await;
            if let Some(rank) = rank.filter(|rank| *rank > most.0) {
                most = (rank, Some(region));
            }
        }
        let Some(from) = most.1 else { return };
        let (region, shard) = (self.region(), shard.id);
        match self.pull(shard, bucket.id, from).await {
            Ok(()) => tracing::info!(%region, %from, %shard, bucket = %bucket.id, "what was lacking was fetched"),
            Err(why) => tracing::info!(%region, %from, %shard, bucket = %bucket.id, %why, "not fetched yet"),
        }
    }

    /// How far another region is in a shard, if it can be a source.
    async fn rank_of(
        &self,
        topology: &Topology,
        bucket: &Bucket,
        primary: RegionId,
        (region, shard): (RegionId, &ShardNode),
    ) -> Option<(Epoch, Lsn)> {
        let ask = Ask::Survey { shard: shard.id };
        let (_, told) = self.peers.ask_about_repair(topology, (region, shard.id), &ask).await.ok()?;
        let Told::Survey(mut survey) = told else { return None };
        let seen = survey.buckets.remove(&bucket.id).filter(|seen| seen.unfit.is_empty() && !seen.diverged)?;
        Some((seen.epoch, seen.positions.of(primary)))
    }
}
