//! The ceiling of what an async bucket may risk, in the way of its writes (docs/adr/2026-11-27-rpo-ceiling.md).
//!
//! [`Exposure`] counts, per bucket and shard; this half feeds it what was ordered, applied and acknowledged, and waits.
//! Buckets without a ceiling cost one look at a flag per batch and none per write.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meridian_consensus::ReadLogError;
use meridian_region_core::awaited;
use meridian_region_core::exposure::{Exposed, Exposure, Fit, nearness, share, slowed_ms};
use meridian_types::entry::Header;
use meridian_types::{
    Breach, Bucket, BucketId, Hlc, LagBound, Lane, Lsn, MaxLag, Refusal, RefusalKind, RegionId, Topology,
};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::node::{Node, ShardNode};

/// How often exposures are summed up and time is told to them: what a bound in time is precise to.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How often it is looked whether there is any bucket with a ceiling, unless the topology says so.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// How long a look at the log's place may take before it is tried again.
const PROOF_PATIENCE: Duration = Duration::from_secs(2);

/// The buckets with a ceiling, in one shard.
#[derive(Default)]
pub(crate) struct Ceilings {
    /// Whether there are any: lets everybody else skip the lock.
    any: AtomicBool,
    buckets: Mutex<BTreeMap<BucketId, Capped>>,
    room: Notify,
}

#[derive(Default)]
struct Capped {
    exposure: Exposure,
    /// The regions whose copies count.
    targets: Vec<RegionId>,
    /// How near what the whole node has exposed is to the bound, in thousandths.
    nearness: u64,
    /// Raised whenever counting starts anew: what was reserved before is not given back to what is counted since.
    generation: u64,
}

/// Room under a ceiling that a write has been given. Dropped, it is given back.
#[must_use]
pub(crate) struct Room<'a>(Option<Taken<'a>>);

struct Taken<'a> {
    ceilings: &'a Ceilings,
    bucket: BucketId,
    bytes: u64,
    generation: u64,
}

impl Ceilings {
    fn buckets(&self) -> MutexGuard<'_, BTreeMap<BucketId, Capped>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Acquire)
    }

    /// The log brought these entries, and has been applied up to the timestamp.
    pub(crate) fn applied(&self, own: &[(BucketId, Lsn, u64)], up_to: Hlc) {
        if self.is_empty() {
            return;
        }
        for (id, capped) in self.buckets().iter_mut() {
            let entries = own.iter().filter(|(bucket, ..)| bucket == id).map(|(_, lsn, bytes)| (*lsn, *bytes));
            capped.exposure.applied(entries, up_to);
        }
    }

    /// `target` has everything of the lane up to `lsn`.
    pub(crate) fn elsewhere(&self, lane: Lane, target: RegionId, lsn: Lsn) {
        if self.is_empty() || lane != Lane::Async {
            return;
        }
        let mut room = false;
        for capped in self.buckets().values_mut().filter(|capped| capped.targets.contains(&target)) {
            room |= capped.exposure.elsewhere(lsn);
        }
        if room {
            self.room.notify_waiters();
        }
    }

    /// This node leads the shard no more: whoever does counts.
    pub(crate) fn stop(&self) {
        self.keep(|_| false);
        self.room.notify_waiters();
    }

    /// The shard's leader changed: what is counted here may not be all there is.
    pub(crate) fn start_anew(&self) {
        for capped in self.buckets().values_mut() {
            capped.exposure = Exposure::default();
            capped.generation += 1;
        }
    }

    /// Looks at a bucket; its exposure, and whether its place in the log has to be found out first.
    fn look(&self, bucket: &Bucket, targets: &[RegionId], elsewhere: Lsn, now_ms: u64) -> (Exposed, Option<u64>) {
        let mut buckets = self.buckets();
        let capped = buckets.entry(bucket.id).or_default();
        self.any.store(true, Ordering::Release);
        targets.clone_into(&mut capped.targets);
        capped.exposure.tick(now_ms);
        if capped.exposure.elsewhere(elsewhere) {
            self.room.notify_waiters();
        }
        (capped.exposure.exposed(), capped.exposure.needs_base().then_some(capped.generation))
    }

    fn base(&self, bucket: BucketId, generation: u64, lsn: Lsn) {
        let mut buckets = self.buckets();
        let capped = buckets.get_mut(&bucket).filter(|capped| capped.generation == generation);
        if capped.is_some_and(|capped| capped.exposure.base(lsn)) {
            self.room.notify_waiters();
        }
    }

    fn set_nearness(&self, bucket: BucketId, nearness: u64) {
        if let Some(capped) = self.buckets().get_mut(&bucket) {
            capped.nearness = nearness;
        }
    }

    fn nearness(&self, bucket: BucketId) -> u64 {
        self.buckets().get(&bucket).map_or(0, |capped| capped.nearness)
    }

    fn keep(&self, of: impl Fn(BucketId) -> bool) {
        if self.is_empty() {
            return;
        }
        let mut buckets = self.buckets();
        buckets.retain(|bucket, _| of(*bucket));
        self.any.store(!buckets.is_empty(), Ordering::Release);
    }

    /// Takes room for a write, if it fits under `share`; without one it always does.
    fn take(
        &self,
        bucket: BucketId,
        share: Option<&LagBound>,
        bytes: u64,
        now_ms: u64,
    ) -> Result<Room<'_>, (Fit, Exposed)> {
        let mut buckets = self.buckets();
        let capped = buckets.entry(bucket).or_default();
        self.any.store(true, Ordering::Release);
        capped.exposure.tick(now_ms);
        match share.map_or(Fit::Fits, |share| capped.exposure.fits(share, bytes)) {
            Fit::Fits => {
                capped.exposure.reserve(bytes);
                Ok(Room(Some(Taken { ceilings: self, bucket, bytes, generation: capped.generation })))
            }
            other => Err((other, capped.exposure.exposed())),
        }
    }
}

impl Room<'_> {
    /// For buckets without a ceiling.
    const FREE: Room<'static> = Room(None);

    /// The write was ordered under this timestamp.
    pub(crate) fn ordered(mut self, stamp: Hlc) {
        let Some(taken) = self.0.take() else { return };
        if let Some(capped) = taken.ceilings.buckets().get_mut(&taken.bucket) {
            if capped.generation != taken.generation {
                capped.exposure.reserve(taken.bytes);
            }
            capped.exposure.ordered(stamp, taken.bytes);
        }
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        let Some(taken) = self.0.take() else { return };
        let mut buckets = taken.ceilings.buckets();
        if let Some(capped) = buckets.get_mut(&taken.bucket).filter(|it| it.generation == taken.generation) {
            capped.exposure.release(taken.bytes);
            drop(buckets);
            taken.ceilings.room.notify_waiters();
        }
    }
}

impl Node {
    /// Room for a write of an async bucket with a ceiling: at once, after a pause, or when another region has more.
    pub(crate) async fn room<'a>(
        &self,
        bucket: &Bucket,
        shard: &'a ShardNode,
        bytes: usize,
        deadline: Instant,
    ) -> Result<Room<'a>, Refusal> {
        let Some(max_lag) = bucket.policy.max_lag() else { return Ok(Room::FREE) };
        let (ceilings, bytes) = (&shard.board.ceilings, bytes as u64);
        if max_lag.on_breach == Breach::Block {
            return self.room_below(&max_lag, bucket, shard, bytes, deadline).await;
        }
        if max_lag.on_breach == Breach::Throttle {
            let pause_ms = slowed_ms(ceilings.nearness(bucket.id));
            if pause_ms > 0 {
                sleep_until(deadline.min(Instant::now() + Duration::from_millis(pause_ms))).await;
            }
        }
        ceilings
            .take(bucket.id, None, bytes, self.clock.monotonic_ms())
            .map_err(|full| self.full(&max_lag, bucket, shard, full))
    }

    async fn room_below<'a>(
        &self,
        max_lag: &MaxLag,
        bucket: &Bucket,
        shard: &'a ShardNode,
        bytes: u64,
        deadline: Instant,
    ) -> Result<Room<'a>, Refusal> {
        let ceilings = &shard.board.ceilings;
        let share = share(&max_lag.bound, shard.id, self.place.shards);
        loop {
            let room = ceilings.room.notified();
            tokio::pin!(room);
            // From here on no room is missed.
            room.as_mut().enable();
            let full = match ceilings.take(bucket.id, Some(&share), bytes, self.clock.monotonic_ms()) {
                Ok(room) => return Ok(room),
                Err(full) => full,
            };
            if timeout_at(deadline, room).await.is_err() {
                return Err(self.full(max_lag, bucket, shard, full));
            }
        }
    }

    fn full(&self, max_lag: &MaxLag, bucket: &Bucket, shard: &ShardNode, (fit, exposed): (Fit, Exposed)) -> Refusal {
        let topology = self.authority.topology();
        let others: Vec<String> = bucket.targets(self.region()).map(|region| topology.region_label(region)).collect();
        let others = others.join(", ");
        let why = match fit {
            Fit::Unknown => format!(
                "the leader of shard {} has changed, and none of {others} has confirmed yet what was there before it",
                shard.id
            ),
            Fit::Full | Fit::Fits => format!(
                "shard {} has {} operations with {} bytes, the oldest {} ms old, that none of {others} has",
                shard.id, exposed.operations, exposed.bytes, exposed.ms
            ),
        };
        Refusal::new(
            RefusalKind::Retry,
            format!(
                "bucket `{}` is at its ceiling (max-lag {}, one {}th of it per shard): {why}. Nothing was written; try again, bring back one of these regions, or raise max-lag with `meridian bucket set`",
                bucket.name, max_lag.bound, self.place.shards
            ),
        )
    }
}

/// Looks after the ceilings of buckets whose primary is here.
pub(crate) async fn keep_ceilings(node: Arc<Node>) {
    let mut changes = node.authority.topology_changes();
    let mut proofs = JoinSet::new();
    let mut under_way = BTreeMap::new();
    loop {
        let topology = Arc::clone(&changes.borrow_and_update());
        let capped: Vec<Arc<Bucket>> = topology.buckets.values().filter(|it| node.caps(it)).cloned().collect();
        for shard in &node.shards {
            shard.board.ceilings.keep(|bucket| capped.iter().any(|it| it.id == bucket));
        }
        node.breaches().retain(|id, _| capped.iter().any(|it| it.id == *id));
        node.exposures().retain(|id, _| capped.iter().any(|it| it.id == *id));
        for bucket in &capped {
            node.look_at_ceiling(&topology, bucket, &mut |place, generation| {
                if under_way.insert((bucket.id, place), ()).is_none() {
                    proofs.spawn(prove(Arc::clone(&node), bucket.id, place, generation));
                }
            });
        }
        let pause = if capped.is_empty() { SWEEP_EVERY } else { LOOK_EVERY };
        tokio::select! {
            biased;
            Some(done) = proofs.join_next() => match done {
                Ok(place) => drop(under_way.remove(&place)),
                Err(why) => std::panic::resume_unwind(why.into_panic()),
            },
            // The metadata plane is gone: the node is ending.
            changed = changes.changed() => if changed.is_err() { return std::future::pending().await },
            () = sleep(pause) => {}
        }
    }
}

/// Finds out where a bucket stands in a shard, once this node has proven that it leads it.
async fn prove(node: Arc<Node>, bucket: BucketId, place: usize, generation: u64) -> (BucketId, usize) {
    if let Some(shard) = node.shards.get(place)
        && let Ok(Ok(_)) = tokio::time::timeout(PROOF_PATIENCE, shard.group.read_barrier().pass()).await
    {
        match node.stands(shard, bucket).await {
            Some(stands) => shard.board.ceilings.base(bucket, generation, stands),
            // Asked again as soon as this has ended.
            None => sleep(LOOK_EVERY).await,
        }
    }
    (bucket, place)
}

impl Node {
    /// Where a bucket stands here that another region may not have; `None` while that can't be told. Of the epochs before the one
    /// that regions are to follow into, each that has followed has everything, and their lane may never bring word of it.
    async fn stands(&self, shard: &ShardNode, bucket: BucketId) -> Option<Lsn> {
        let stands = shard.board.public().digests.get(&bucket).map(|digest| digest.positions.of(self.region()));
        let stands = stands.filter(|lsn| *lsn > Lsn(0));
        let Some(stands) = stands else { return Some(Lsn(0)) };
        let topology = self.authority.topology();
        let known = topology.buckets.get(&bucket)?;
        let is_earlier = match shard.group.read_log(Lsn(stands.0 - 1), 1).await {
            Ok(slice) => slice.entries.first().is_some_and(|entry| {
                let header = Header::decode(&entry.payload);
                entry.lsn == stands && header.is_ok_and(|header| awaited(known).is_some_and(|turn| header.epoch < turn))
            }),
            Err(ReadLogError::Trimmed { .. }) => false,
            Err(_) => return None,
        };
        match is_earlier {
            true if self.others(known, shard.id).is_empty() => None,
            true => Some(Lsn(0)),
            false => Some(stands),
        }
    }

    fn caps(&self, bucket: &Bucket) -> bool {
        bucket.policy.max_lag().is_some() && bucket.primary == Some(self.region())
    }

    /// Sums up what this node has of a bucket, and says so when a bound is reached.
    fn look_at_ceiling(&self, topology: &Topology, bucket: &Bucket, prove: &mut dyn FnMut(usize, u64)) {
        let Some(max_lag) = bucket.policy.max_lag() else { return };
        let now_ms = self.clock.monotonic_ms();
        let mut whole = Exposed::default();
        let mut led = 0;
        for (place, shard) in self.shards.iter().enumerate().filter(|(_, shard)| shard.board.leads()) {
            // What a region can only park is nowhere else yet (DUR-2).
            let targets = self.others(bucket, shard.id);
            let elsewhere = targets.iter().map(|target| shard.acked(Lane::Async, *target)).max().unwrap_or_default();
            let (exposed, needs_base) = shard.board.ceilings.look(bucket, &targets, elsewhere, now_ms);
            whole.operations += exposed.operations;
            whole.bytes += exposed.bytes;
            whole.ms = whole.ms.max(exposed.ms);
            led += 1;
            if let Some(generation) = needs_base {
                prove(place, generation);
            }
        }
        let near = nearness(&whole, &part(&max_lag.bound, led, self.place.shards));
        for shard in &self.shards {
            shard.board.ceilings.set_nearness(bucket.id, near);
        }
        self.note_breach(topology, bucket, &max_lag, whole, near);
    }

    fn note_breach(&self, topology: &Topology, bucket: &Bucket, max_lag: &MaxLag, exposed: Exposed, near: u64) {
        let is_blocked = max_lag.on_breach == Breach::Block
            && self.shards.iter().any(|shard| {
                shard.board.leads()
                    && shard.board.ceilings.is_full(bucket.id, &share(&max_lag.bound, shard.id, self.place.shards))
            });
        let now = (near >= 1000 || is_blocked).then(|| {
            let others: Vec<String> = bucket.targets(self.region()).map(|it| topology.region_label(it)).collect();
            let what = match max_lag.on_breach {
                Breach::Alarm => "writes go on",
                Breach::Throttle => "writes are slowed down",
                Breach::Block => "writes wait, then fail as retryable",
            };
            format!(
                "bucket {} is at its max-lag ({}): {} operations with {} bytes, the oldest {} ms old, are in none of {}; {what}: check the links to them",
                bucket.name, max_lag.bound, exposed.operations, exposed.bytes, exposed.ms, others.join(", ")
            )
        });
        let mut breaches = self.breaches();
        match (&now, breaches.contains_key(&bucket.id)) {
            (Some(sentence), false) => {
                tracing::warn!(region = %self.region(), bucket = %bucket.name, epoch = %bucket.epoch, "{sentence}");
            }
            (None, true) => {
                tracing::info!(region = %self.region(), bucket = %bucket.name, epoch = %bucket.epoch, "below its max-lag again");
            }
            (Some(_), true) | (None, false) => {}
        }
        match now {
            Some(sentence) => drop(breaches.insert(bucket.id, sentence)),
            None => drop(breaches.remove(&bucket.id)),
        }
        drop(breaches);
        self.exposures().insert(bucket.id, exposed);
    }

    /// Buckets at their ceiling, in a sentence each.
    pub(crate) fn breaches(&self) -> MutexGuard<'_, BTreeMap<BucketId, String>> {
        self.breaches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What buckets with a ceiling have exposed in this node's shards, at the last look.
    pub(crate) fn exposures(&self) -> MutexGuard<'_, BTreeMap<BucketId, Exposed>> {
        self.exposures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ceilings {
    fn is_full(&self, bucket: BucketId, share: &LagBound) -> bool {
        self.buckets().get(&bucket).is_some_and(|capped| capped.exposure.fits(share, 1) == Fit::Full)
    }
}

/// What this node's shards may have of a bound: all of it where it leads them all.
fn part(bound: &LagBound, led: u64, shards: u16) -> LagBound {
    let part = |whole: u64| (whole.saturating_mul(led) / u64::from(shards.max(1))).max(1);
    LagBound { ms: bound.ms, operations: bound.operations.map(part), bytes: bound.bytes.map(part) }
}
