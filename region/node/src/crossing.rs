//! Carrying out on this node what a bucket asks for that goes from one writing region to all of them, or back
//! (docs/adr/2026-11-28-active-active-changes.md), or to other writing regions
//! (docs/adr/2026-11-28-active-active-region-sets.md), or goes on without one that is lost
//! (docs/adr/2026-11-28-active-active-lost-regions.md). [`Crossings`] decides; this half proposes and tells.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use meridian_region_core::{CrossDuty, CrossSight, Crossings};
use meridian_types::entry::{Body, Kind};
use meridian_types::{Bucket, Topology};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::node::{Node, ShardNode};

/// How often a bucket that crosses is looked at: clients wait meanwhile, and a look costs microseconds.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// How often it is looked whether a region that joins is filled: nobody waits for it.
const FILLED_EVERY: Duration = Duration::from_millis(100);

/// How often it is looked whether there is any: a shard that this node came to lead may have been stopped.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Does this node's part in every crossing.
pub(crate) async fn keep_crossings(node: Arc<Node>) {
    let mut changes = node.authority.topology_changes();
    let mut crossings = Crossings::default();
    let mut words = JoinSet::new();
    let mut crossing: Vec<Arc<Bucket>> = Vec::new();
    let mut swept: Option<(Arc<Topology>, Instant)> = None;
    loop {
        let topology = Arc::clone(&changes.borrow_and_update());
        // All buckets are looked at only now and then: those that cross are every few milliseconds.
        let known = |(seen, at): &(Arc<Topology>, Instant)| Arc::ptr_eq(seen, &topology) && at.elapsed() < SWEEP_EVERY;
        if !swept.as_ref().is_some_and(known) {
            crossing = topology.buckets.values().filter(|it| node.crosses(it)).cloned().collect();
            swept = Some((Arc::clone(&topology), Instant::now()));
        }
        crossings.keep(|id| crossing.iter().any(|it| it.id == id));
        node.cross(&topology, &crossing, &mut crossings, &mut words).await;
        let holds = |it: &Arc<Bucket>| it.crossing.is_some() || node.has_stopped(it);
        let pause = match crossing.is_empty() {
            true => SWEEP_EVERY,
            false if crossing.iter().any(holds) => LOOK_EVERY,
            false => FILLED_EVERY,
        };
        tokio::select! {
            biased;
            Some(told) = words.join_next() => if let Err(why) = told { std::panic::resume_unwind(why.into_panic()) },
            // The metadata plane is gone: the node is ending.
            changed = changes.changed() => if changed.is_err() { return std::future::pending().await },
            () = sleep(pause) => {}
        }
    }
}

impl Node {
    /// Whether a bucket crosses, or was stopped here for a crossing that is over, or this region joins it where all others write.
    fn crosses(&self, bucket: &Bucket) -> bool {
        let joins = bucket.primary.is_none() && bucket.joins.joining() == Some(self.region());
        bucket.reaches(self.region()) && (bucket.crossing.is_some() || joins || self.has_stopped(bucket))
    }

    fn has_stopped(&self, bucket: &Bucket) -> bool {
        let stopped = |shard: &ShardNode| {
            shard.board.leads() && shard.board.core().stop(bucket.id).is_some_and(|stop| stop.stopped)
        };
        bucket.primary.is_none() && self.shards.iter().any(stopped)
    }

    /// Looks at every such bucket once, and does what there is to do.
    async fn cross(
        self: &Arc<Self>,
        topology: &Topology,
        crossing: &[Arc<Bucket>],
        crossings: &mut Crossings,
        words: &mut JoinSet<()>,
    ) {
        let mut entries = Vec::new();
        for bucket in crossing {
            let led = self.shards.iter().filter(|shard| shard.board.leads());
            let sights: Vec<CrossSight> = led.map(|shard| self.cross_sight(shard, bucket)).collect();
            let place = (self.region(), topology.index);
            for duty in crossings.look(self.clock.monotonic_ms(), place, bucket, &sights) {
                match duty {
                    CrossDuty::Stop { shard, epoch, index, stops } => {
                        let header = self.header(Kind::Stop, bucket.id, epoch);
                        entries.push(self.turn(shard, header, Body::Stop { index, stops }));
                    }
                    CrossDuty::Part { shard, epoch, index, from } => {
                        let header = self.header(Kind::Part, bucket.id, epoch);
                        entries.push(self.turn(shard, header, Body::Part { index, from }));
                    }
                    CrossDuty::Raise { shard, epoch, index, next, after } => {
                        let header = self.header(Kind::Raise, bucket.id, epoch);
                        entries.push(self.turn(shard, header, Body::Raise { index, next, after }));
                    }
                    CrossDuty::Tell(word) => {
                        let node = Arc::clone(self);
                        words.spawn(async move { node.tell_standing(word).await });
                    }
                }
            }
        }
        // All at once: one sync of the log for all shards.
        join_all(entries).await;
    }

    fn cross_sight(&self, shard: &ShardNode, bucket: &Bucket) -> CrossSight {
        let exposure = bucket.lost().and_then(|lost| self.facts_of(shard, bucket, lost).1.remains.exposure);
        let core = shard.board.core();
        let digest = core.digest(bucket.id).cloned().unwrap_or_default();
        CrossSight {
            shard: shard.id,
            epoch: core.epoch(bucket.id),
            stop: core.stop(bucket.id),
            parted: core.parted(bucket.id),
            exposure,
            positions: digest.positions,
            hash: digest.hash,
            keys: digest.keys,
            whole: !core.is_closed(bucket.id)
                && core.astray(bucket.id).is_none()
                && core.divergence(bucket.id).is_none()
                && !core.is_dropped(bucket.id)
                && !core.has_left(bucket.id),
        }
    }
}
