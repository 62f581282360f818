//! A successor that lacks some of a lost primary's log fetches it from the survivor that has most of it, shard by shard
//! (design 7; docs/adr/2026-11-27-failover.md).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use meridian_failpoint::failpoint;
use meridian_region_core::repair::Need;
use meridian_region_core::repair::message::{Ask, Told};
use meridian_region_core::repair::need::pull;
use meridian_region_core::repair::survey::Sighting;
use meridian_types::{Bucket, Phase, RegionId, Topology};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Place;
use crate::node::Node;

/// How soon the survivors are asked again: clients wait meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// What is being found out for the buckets that this region is to take over.
#[derive(Default)]
pub(crate) struct Pulls {
    /// When a shard's survivors may be asked again.
    next: BTreeMap<Place, Instant>,
    asked: BTreeSet<Place>,
    asking: JoinSet<(Place, Option<Need>)>,
}

impl Pulls {
    /// Asks the survivors where this region is to take over, and takes their answers in.
    pub(crate) fn look(&mut self, node: &Arc<Node>, topology: &Arc<Topology>, now: Instant) {
        while let Some(answered) = self.asking.try_join_next() {
            match answered {
                Ok((place, need)) => self.take(node, place, need, now),
                Err(why) if why.is_panic() => std::panic::resume_unwind(why.into_panic()),
                Err(_) => {}
            }
        }
        let region = node.region();
        let pulling = |bucket: &&Arc<Bucket>| matches!(bucket.phase, Phase::Pulling { to, .. } if to == region);
        let buckets: Vec<&Arc<Bucket>> = topology.buckets.values().filter(pulling).collect();
        let wanted = |(_, id): &Place| buckets.iter().any(|bucket| bucket.id == *id);
        self.next.retain(|place, _| wanted(place));
        for bucket in buckets {
            for shard in node.shards.iter().filter(|shard| shard.board.leads()) {
                let place = (shard.id, bucket.id);
                if self.next.get(&place).is_none_or(|next| *next <= now) && self.asked.insert(place) {
                    let (node, topology, bucket) = (Arc::clone(node), Arc::clone(topology), Arc::clone(bucket));
                    self.asking.spawn(async move { (place, find(&node, &topology, &bucket, place).await) });
                }
            }
        }
    }

    fn take(&mut self, node: &Node, place: Place, need: Option<Need>, now: Instant) {
        self.asked.remove(&place);
        self.next.insert(place, now + ASK_EVERY);
        if let Some(need) = need {
            failpoint("pull.ask.before");
            // Nobody waits for it here: what it changes is told to the metadata plane.
            drop(node.repairs.table.ask(place, need));
        }
    }
}

/// Whom to fetch from, if anybody has more.
async fn find(node: &Node, topology: &Topology, bucket: &Bucket, (id, of): Place) -> Option<Need> {
    failpoint("pull.find.before");
    let survivors = bucket.targets(node.region()).filter(|region| Some(*region) != bucket.primary);
    let asked = survivors.map(|region| async move {
        let answer = node.peers.ask_about_repair(topology, (region, id), &Ask::Survey { shard: id }).await;
        let Ok((_, Told::Survey(mut survey))) = answer else { return None };
        Some((region, survey.buckets.remove(&of)?))
    });
    let seen: Vec<(RegionId, Sighting)> = join_all(asked).await.into_iter().flatten().collect();
    let core = node.shard(id)?.board.core();
    pull(&core, bucket, seen.iter().map(|(region, seen)| (*region, seen)))
}
