//! Looks for what has to be repaired in the shards this node leads, and has it done, some at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use meridian_region_core::repair::need::{lags_behind_its_epoch, need, want};
use meridian_region_core::repair::survey::Claim;
use meridian_region_core::repair::{Need, Want};
use meridian_types::{
    Bucket, BucketId, Phase, Refusal, RefusalKind, RegionId, RepairReason, RepairStep, ShardId, Topology,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::lanes::Lanes;
use super::pulls::Pulls;
use super::{Place, WAITS_FOR_CONSENT, attempt};
use crate::node::Node;

/// How often to look.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Between two attempts to tell a source that a session is over.
const CLOSE_AGAIN: Duration = Duration::from_secs(1);

/// How long an epoch may take to begin in a replica before what ended the last one is taken for lost.
const STUCK_AFTER: Duration = Duration::from_secs(15);

/// Repairs what has to be, as long as the node lives.
pub(crate) async fn watch(node: Arc<Node>) {
    let mut watch = Watch::default();
    loop {
        watch.look(&node).await;
        tokio::select! {
            biased;
            Some(ended) = watch.jobs.join_next() => if let Err(why) = ended && why.is_panic() {
                std::panic::resume_unwind(why.into_panic());
            },
            () = node.repairs.table.wake.notified() => {}
            () = sleep(LOOK_EVERY) => {}
        }
    }
}

#[derive(Default)]
struct Watch {
    lanes: Lanes,
    pulls: Pulls,
    /// Replicas whose epoch has not begun, and since when.
    late: BTreeMap<Place, Instant>,
    jobs: JoinSet<()>,
}

impl Watch {
    async fn look(&mut self, node: &Arc<Node>) {
        let (topology, now) = (node.authority.topology(), Instant::now());
        node.repairs.sources.expire(node.clock.monotonic_ms());
        node.repairs.table.keep_asked(&|(shard, _), need| {
            node.shard(*shard).is_some_and(|shard| shard.board.leads()) && is_wanted(node.region(), &topology, need)
        });
        self.lanes.look(node, &topology, now);
        self.pulls.look(node, &topology, now);
        let mut wants: Vec<(Place, Want)> =
            node.repairs.table.asked().into_iter().map(|(place, need)| (place, Want::Repair(need))).collect();
        wants.extend(self.wants(node, &topology, now));
        let behind = self.lanes.needs(node, &topology);
        self.lanes.go_on(node, &topology, &behind).await;
        wants.extend(behind.into_iter().map(|(place, need)| (place, Want::Repair(need))));
        let wanted: BTreeSet<Place> = wants.iter().map(|(place, _)| *place).collect();
        let leaves = |id: BucketId| topology.buckets.get(&id).is_some_and(|bucket| !bucket.reaches(node.region()));
        node.repairs.table.keep_resting(&|place| wanted.contains(place) || leaves(place.1));
        close_unfilled(node, &wants).await;
        let unclosed = std::mem::take(&mut *node.repairs.unclosed.lock().unwrap_or_else(PoisonError::into_inner));
        for unclosed in unclosed {
            let node = Arc::clone(node);
            self.jobs.spawn(async move {
                sleep(CLOSE_AGAIN).await;
                attempt::close(&node, unclosed).await;
            });
        }
        for (place, want) in wants {
            self.begin(node, place, want, now);
        }
    }

    /// What the state of the shards asks for.
    fn wants(&mut self, node: &Node, topology: &Topology, now: Instant) -> Vec<(Place, Want)> {
        let mut wants = Vec::new();
        let mut late = BTreeMap::new();
        for shard in node.shards.iter().filter(|shard| shard.board.leads()) {
            let core = shard.board.core();
            for bucket in topology.buckets.values() {
                let place = (shard.id, bucket.id);
                if let Some(want) = want(&core, bucket) {
                    let attempts = node.repairs.table.attempts(place);
                    wants.push((place, from_another(want, bucket, node.region(), attempts)));
                } else if lags_behind_its_epoch(&core, bucket) {
                    let since = self.late.get(&place).copied().unwrap_or(now);
                    late.insert(place, since);
                    let stuck =
                        (now - since >= STUCK_AFTER).then(|| need(&core, bucket, RepairReason::Stuck)).flatten();
                    wants.extend(stuck.map(|need| (place, Want::Repair(need))));
                }
            }
        }
        self.late = late;
        wants
    }

    fn begin(&mut self, node: &Arc<Node>, place: Place, want: Want, now: Instant) {
        let need = match want {
            Want::Repair(need) => need,
            Want::Release(bucket) => {
                let reason = RepairReason::Interrupted;
                Need { bucket, source: node.region(), claim: Claim::Primary, reason }
            }
        };
        if node.repairs.table.begin(place, &need, now) {
            let node = Arc::clone(node);
            self.jobs.spawn(async move { carry_out(&node, place, want, need).await });
        }
    }
}

/// Where every region writes, one that joins may be filled from any of them, and a repair that was cut short be ended: at each attempt from
/// another one, for one may be away, or wait for this region itself.
fn from_another(want: Want, bucket: &Bucket, region: RegionId, attempts: usize) -> Want {
    match want {
        Want::Repair(need @ Need { reason: RepairReason::Joining | RepairReason::Interrupted, .. })
            if bucket.primary.is_none() =>
        {
            let others: Vec<RegionId> = bucket.targets(region).filter(|it| Some(*it) != bucket.lost()).collect();
            let source = others.get(attempts % others.len().max(1)).copied().unwrap_or(need.source);
            Want::Repair(Need { source, ..need })
        }
        other => other,
    }
}

/// Closes what is yet to be filled, before its turn comes: what arrives for it meanwhile waits, and holds up nothing else in its
/// lane (ISO-1).
async fn close_unfilled(node: &Node, wants: &[(Place, Want)]) {
    for (place, want) in wants {
        let Want::Repair(Need { source, reason: RepairReason::Joining, bucket, .. }) = *want else { continue };
        let Some(shard) = node.shard(place.0) else { continue };
        let here = {
            let core = shard.board.core();
            // Of an earlier stay: its primary may count it until it has begun the epoch without this region (DUR-2). What is of a later
            // epoch waits anyway.
            core.is_closed(bucket) || (core.knows(bucket) && !core.has_left(bucket))
        };
        if here || node.repairs.table.is_running(*place) {
            continue;
        }
        if let Err(why) = attempt::propose(node, shard, bucket, RepairStep::Begin { source }).await {
            tracing::debug!(region = %node.region(), shard = %shard.id, %bucket, %why, "a bucket to be filled is not closed yet");
        }
    }
}

/// Whether what was asked for still makes sense: a pull for a failover that is over, or was given up, does not.
fn is_wanted(region: RegionId, topology: &Topology, need: &Need) -> bool {
    let Some(bucket) = topology.buckets.get(&need.bucket) else { return false };
    let settled = bucket.phase == Phase::Steady && bucket.primary != Some(need.source);
    bucket.primary != Some(region) && !(settled && need.claim == Claim::Replica)
}

async fn carry_out(node: &Node, place: Place, want: Want, need: Need) {
    let (id, bucket) = place;
    let Some(shard) = node.shard(id) else { return };
    let (region, source, reason) = (node.region(), need.source, need.reason);
    tracing::debug!(%region, %source, shard = %id, %bucket, %reason, "a repair begins");
    let outcome = match want {
        Want::Release(bucket) => attempt::release(node, shard, bucket).await,
        Want::Repair(need) => attempt::repair(node, shard, need).await,
    };
    match &outcome {
        Ok(()) => {
            shard.mended.send_modify(|count| *count += 1);
            tracing::info!(%region, %source, shard = %id, %bucket, %reason, "a replica was repaired");
        }
        Err(why) => {
            tracing::info!(%region, %source, shard = %id, %bucket, %reason, %why, "a repair does not get on yet")
        }
    }
    node.repairs.table.end(place, outcome, Instant::now());
}

impl Node {
    /// Asks for a repair from another replica, and waits for it.
    pub(crate) async fn pull(&self, shard: ShardId, bucket: BucketId, from: RegionId) -> Result<(), Refusal> {
        if !self.shard(shard).is_some_and(|shard| shard.board.leads()) {
            return Err(Refusal::new(RefusalKind::Redirect, format!("this node does not lead shard {shard}")));
        }
        let need = Need { bucket, source: from, claim: Claim::Replica, reason: RepairReason::Asked };
        let told = self.repairs.table.ask((shard, bucket), need)?;
        let stopping = |_| Refusal::new(RefusalKind::Unavailable, "the node is stopping: ask another one");
        told.await.map_err(stopping)?
    }

    /// Whether a lost primary's own tail may be given up, once it is written down.
    pub(crate) fn may_reinstate(&self, bucket: BucketId) -> bool {
        let consented = self.repairs.consented.lock().unwrap_or_else(PoisonError::into_inner);
        !self.options.manual_reinstate || consented.contains(&bucket)
    }

    /// Buckets whose lost primary waits for an operator.
    pub(crate) fn waits_for_consent(&self) -> BTreeSet<BucketId> {
        let statuses = self.repairs.table.statuses(Instant::now());
        statuses.iter().filter(|it| it.waits_for == WAITS_FOR_CONSENT).map(|it| it.bucket).collect()
    }

    /// Lets buckets be reinstated that wait for it.
    pub(crate) fn reinstate(&self, bucket: Option<BucketId>) -> usize {
        let mut waits = self.waits_for_consent();
        waits.retain(|waits| bucket.is_none_or(|bucket| bucket == *waits));
        let count = waits.len();
        self.repairs.consented.lock().unwrap_or_else(PoisonError::into_inner).extend(waits);
        self.repairs.table.wake.notify_one();
        count
    }

    /// Asks for a repair of a bucket in every shard this node leads.
    pub(crate) fn resync(&self, bucket: BucketId) -> Result<usize, Refusal> {
        let topology = self.authority.topology();
        let known = topology.buckets.get(&bucket).filter(|bucket| bucket.is_in(self.region()));
        let known = known.ok_or_else(|| Refusal::new(RefusalKind::NotFound, "this region does not hold the bucket"))?;
        let mut asked = 0;
        for shard in self.shards.iter().filter(|shard| shard.board.leads()) {
            let need = need(&shard.board.core(), known, RepairReason::Asked);
            let need = need.ok_or_else(|| {
                let why = format!(
                    "this region is the primary of bucket `{}`: nobody has more of it; run it in another region",
                    known.name
                );
                Refusal::new(RefusalKind::Invalid, why)
            })?;
            // Nobody waits for it: it is shown.
            drop(self.repairs.table.ask((shard.id, bucket), need)?);
            asked += 1;
        }
        Ok(asked)
    }
}
