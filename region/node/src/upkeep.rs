//! What a node does unasked: expiry, cleaning up after deleted buckets and silent clients, purging the log, watching the disk.
//!
//! Everything that changes state goes through the log, so that every replica agrees; each step is bounded, so that
//! no request waits long behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::join_all;
use meridian_failpoint::failpoint;
use meridian_region_core::repair::message::{Ask, Told};
use meridian_region_core::repair::survey::Sighting;
use meridian_region_core::{ControlResult, Due, SESSION_TTL_MS, StateView, keys};
use meridian_types::entry::{Body, Header, Kind};
use meridian_types::{Bucket, BucketId, Epoch, Hlc, Lsn, Refusal, RefusalKind, RegionId, Topology};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::disk::Gauge;
use crate::node::{Node, ShardNode};
use crate::proposer;

/// How often the disk is looked at and the log's purge floor raised.
const HOUSEKEEPING_EVERY: Duration = Duration::from_secs(1);

/// How often deleted buckets are looked for even if no change of the topology was seen.
const DROP_EVERY: Duration = Duration::from_secs(30);

/// How soon there is another look where something of a bucket that this region was removed from is kept for a reason that passes: its
/// primary has yet to begin the epoch without this region, or what was ordered here is on its way into a bundle.
const DROP_AGAIN: Duration = Duration::from_secs(3);

/// How often silent clients are looked for.
const CLIENTS_EVERY: Duration = Duration::from_secs(3600);

/// The most expiry entries for one shard before the next one has its turn.
const EXPIRY_ROUNDS_MAX: usize = 16;

/// Follows who leads a shard.
pub(crate) async fn follow_leadership(node: Arc<Node>, place: usize) {
    let Some(shard) = node.shards.get(place) else { return };
    let mut leadership = shard.leadership.clone();
    let mut term = 0;
    loop {
        let now = *leadership.borrow_and_update();
        // One that was lost and won again between two looks is another one, too.
        let again = now.leads && shard.board.leads() && now.term != term;
        if again {
            shard.board.set_leads(false);
        }
        if now.leads {
            term = now.term;
        }
        if shard.board.leads() != now.leads {
            shard.exposures.clear();
            node.repairs.sources.end_of(shard.id);
            shard.board.set_leads(now.leads);
            tracing::info!(
                region = %node.region(), shard = %shard.id, term = now.term, leads = now.leads,
                "the leadership of a shard changed"
            );
        }
        if leadership.changed().await.is_err() {
            // Consensus has stopped: the node is ending, and nobody leads anything here any more.
            shard.board.set_leads(false);
            return std::future::pending().await;
        }
    }
}

/// How often the store's journal is brought to the disk: so little at a time that no sync of it is felt.
const WRITE_BACK_EVERY: Duration = Duration::from_millis(500);

/// Brings the store's journal to the disk in small portions. Ends when the disk fails: the node must exit.
pub(crate) async fn write_back(node: Arc<Node>) {
    let mut ticks = interval(WRITE_BACK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let writer = Arc::clone(&node);
        let write_back = move || {
            let _running = writer.writing_back.start();
            let done = writer.store.write_back();
            writer.state_bytes.store(writer.store.disk_bytes(), Ordering::Relaxed);
            done
        };
        let done = node.blocking.run(write_back).await;
        match done {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return tracing::error!(%why, "the state store can't be brought to the disk"),
            // The runtime is shutting down.
            Err(_) => return std::future::pending().await,
        }
    }
}

/// A write-back that takes longer counts as a disk that hangs: 64 MiB, which a busy node writes in that time, at the pace of the slowest disk.
const WRITE_BACK_MAX: Duration = Duration::from_secs(10);

/// That the store's disk hangs, and the remedy: writes are still taken then, and wait once too much has gathered.
pub(crate) fn write_back_stalled(node: &Node) -> Option<String> {
    let age = node.writing_back.elapsed().filter(|age| *age > WRITE_BACK_MAX)?;
    Some(format!(
        "the disk of {} hangs: bringing the state's journal to it has been running for {:.1} s: check the disk; the node goes on by itself when it answers",
        node.place.dir.display(),
        age.as_secs_f64()
    ))
}

/// Watches the disk, raises the purge floors, and lets go what no backup reads any more.
pub(crate) async fn keep_house(node: Arc<Node>, gauge: Arc<dyn Gauge>) {
    let mut ticks = interval(HOUSEKEEPING_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        node.disk.check(gauge.as_ref());
        node.raise_purge_floors();
        join_all(node.shards.iter().map(ShardNode::look_for_proof)).await;
        node.backups.expire(node.clock.monotonic_ms());
        let topology = node.authority.topology();
        for shard in &node.shards {
            shard.exposures.retain(|bucket| topology.buckets.contains_key(&bucket));
        }
    }
}

/// Removes keys whose time has come.
pub(crate) async fn expire_keys(node: Arc<Node>) {
    let mut ticks = interval(Duration::from_millis(node.options.expiry_every_ms.max(10)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if node.disk.is_full() {
            continue;
        }
        for shard in &node.shards {
            log_failure(node.expire(shard).await, shard, "keys that are due could not be removed");
        }
    }
}

/// Removes what deleted buckets left behind, and those that this region was removed from.
pub(crate) async fn drop_buckets(node: Arc<Node>) {
    let mut changes: watch::Receiver<Arc<Topology>> = node.authority.topology_changes();
    let mut ticks = interval(DROP_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut swept: Vec<Swept> = node.shards.iter().map(|_| Swept::default()).collect();
    loop {
        tokio::select! {
            biased;
            _ = ticks.tick() => {}
            changed = changes.changed() => if changed.is_err() { return },
        }
        for (shard, swept) in node.shards.iter().zip(&mut swept) {
            let dropped = node.drop_deleted(shard, swept).await;
            if matches!(dropped, Ok(Gone::Soon)) {
                ticks.reset_after(DROP_AGAIN);
            }
            log_failure(dropped.map(drop), shard, "a deleted bucket could not be removed");
        }
    }
}

/// Forgets clients that have been silent for long.
pub(crate) async fn expire_clients(node: Arc<Node>) {
    let mut ticks = interval(CLIENTS_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick is at once, when there is nothing to do yet.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        for shard in node.shards.iter().filter(|shard| shard.board.leads()) {
            let before = Hlc::from_millis(node.clock.wall_ms().saturating_sub(SESSION_TTL_MS));
            let header = node.header(Kind::ExpireClients, BucketId(0), Epoch(0));
            let done = node.control(shard, header, &Body::ExpireClients { before }).await;
            log_failure(done, shard, "silent clients could not be forgotten");
        }
    }
}

/// Waits for what a shard's housekeeping came to; the next round tries again.
fn log_failure(done: Result<(), Refusal>, shard: &ShardNode, what: &'static str) {
    match done {
        Err(refusal) if refusal.kind == RefusalKind::Retry => {
            tracing::debug!(shard = %shard.id, why = %refusal, what);
        }
        Err(refusal) => tracing::warn!(shard = %shard.id, why = %refusal, what),
        Ok(()) => {}
    }
}

/// What this node knows of a shard's buckets that are to go.
#[derive(Default)]
struct Swept {
    /// Those of which nothing is left.
    clean: BTreeSet<BucketId>,
    /// Since when this region is known to be out of those that may go.
    out_since: BTreeMap<BucketId, Instant>,
}

/// Whether what is to go is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gone {
    AsFarAsCanBe,
    /// Something waits for what takes seconds.
    Soon,
}

/// Why what is here of a bucket that this region was removed from is not dropped yet.
enum Kept {
    /// Its primary counts it, or may; or copies are lacking.
    Counted,
    /// None of the others has said yet that it has all that was ordered here, or that it has begun the epoch without this region.
    Unheard,
    /// Of what was ordered here one of them has begun the epoch without some.
    Tail {
        /// That one.
        source: RegionId,
        /// What it has.
        seen: Sighting,
    },
}

impl Node {
    /// Proposes the removal of due keys, in the buckets whose expiry this region decides.
    async fn expire(&self, shard: &ShardNode) -> Result<(), Refusal> {
        for _ in 0..EXPIRY_ROUNDS_MAX {
            if !shard.board.leads() {
                return Ok(());
            }
            let lease = self.authority.lease_holds();
            let topology = self.authority.topology();
            let region = self.region();
            // In active-active nobody decides alone: an expired value reads as absent everywhere, by its own timestamp. Between
            // primaries nobody decides at all: the epoch that has begun is the next primary's (FEN-1).
            let decides = |bucket: BucketId| {
                let mine = |it: &Arc<Bucket>| it.primary == Some(region) && !it.is_between_primaries();
                lease && topology.buckets.get(&bucket).is_some_and(mine)
            };
            let due = {
                let core = shard.board.core();
                core.due(&self.store, self.clock.wall_ms(), self.options.expiry_keys_max, &decides)
            };
            let due = due.map_err(|why| Refusal::new(RefusalKind::Corrupt, why.to_string()))?;
            let found: usize = due.iter().map(|due| due.keys.len()).sum();
            for due in due {
                self.expire_in(shard, &topology, due).await?;
            }
            if found < self.options.expiry_keys_max {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn expire_in(&self, shard: &ShardNode, topology: &Topology, due: Due) -> Result<(), Refusal> {
        let Some(bucket) = topology.buckets.get(&due.bucket) else { return Ok(()) };
        let header = self.header(Kind::Expire, bucket.id, bucket.epoch);
        self.control(shard, header, &Body::Expire { due: due.keys }).await
    }

    /// Proposes the removal of what deleted buckets left in the shard, and those that this region was removed from. `swept.clean` are
    /// those found clean since this node started: a removal that a restart cut short is found by its data, once.
    async fn drop_deleted(&self, shard: &ShardNode, swept: &mut Swept) -> Result<Gone, Refusal> {
        let mut gone = Gone::AsFarAsCanBe;
        if !shard.board.leads() {
            // It may in a moment: nobody tells this loop.
            return Ok(Gone::Soon);
        }
        for (bucket, epoch) in self.left(shard, swept)? {
            match self.why_kept(shard, bucket, epoch).await {
                Some(Kept::Tail { source, seen }) => {
                    self.give_up_tail(shard, (bucket, epoch), (source, &seen)).await;
                    gone = Gone::Soon;
                    continue;
                }
                Some(Kept::Unheard) => {
                    tracing::debug!(region = %self.region(), shard = %shard.id, %bucket, "what was ordered here of a bucket that this region was removed from is kept until the others say that they have it, or write without it");
                    gone = Gone::Soon;
                    continue;
                }
                Some(Kept::Counted) => {
                    tracing::debug!(region = %self.region(), shard = %shard.id, %bucket, "what is here of a bucket that this region was removed from is kept until its primary writes without this region, and lacks no copies");
                    gone = Gone::Soon;
                    continue;
                }
                None => {}
            }
            let out_since = *swept.out_since.entry(bucket).or_insert_with(Instant::now);
            if out_since.elapsed() < self.longest_lease() && !self.is_ordered_by_one(bucket) {
                gone = Gone::Soon;
                continue;
            }
            let header = self.header(Kind::DropBucket, bucket, epoch);
            self.control(shard, header, &Body::DropBucket).await?;
            tracing::info!(region = %self.region(), shard = %shard.id, %bucket, %epoch, "what a bucket had here that this region was removed from is gone");
        }
        for bucket in self.leftovers(shard, swept)? {
            let header = self.header(Kind::DropBucket, bucket, Epoch(0));
            self.control(shard, header, &Body::DropBucket).await?;
            swept.clean.insert(bucket);
            tracing::info!(region = %self.region(), shard = %shard.id, %bucket, "what a deleted bucket left behind was removed");
        }
        Ok(gone)
    }

    /// Where every region writes, one that was given up for lost, and has not heard of it, may take this region for one that holds the
    /// bucket, as long as it holds a lease: so long what it sends is taken in, for it counts it as a copy (DUR-2).
    fn longest_lease(&self) -> Duration {
        Duration::from_millis(self.authority.lease_ttl_ms().saturating_mul(9) / 8)
    }

    fn is_ordered_by_one(&self, bucket: BucketId) -> bool {
        self.authority.topology().buckets.get(&bucket).is_some_and(|bucket| bucket.primary.is_some())
    }

    /// The buckets that this region was removed from and that something is left of, each with the epoch as of which it was.
    fn left(&self, shard: &ShardNode, swept: &mut Swept) -> Result<Vec<(BucketId, Epoch)>, Refusal> {
        let topology = self.authority.topology();
        let mut left = Vec::new();
        for bucket in topology.buckets.values() {
            let (known, leaving, gone, epoch) = {
                let core = shard.board.core();
                let (id, leaving) = (bucket.id, core.is_leaving(bucket.id));
                (core.knows(id), leaving, core.has_left(id) && !leaving, core.epoch(id))
            };
            if leaving {
                left.push((bucket.id, epoch));
            } else if !known || bucket.reaches(self.region()) {
                swept.clean.remove(&bucket.id);
                swept.out_since.remove(&bucket.id);
            } else if gone {
                if swept.clean.insert(bucket.id) && self.holds_data(shard, bucket.id)? {
                    left.push((bucket.id, epoch));
                }
            } else {
                left.push((bucket.id, bucket.epoch));
            }
        }
        Ok(left)
    }

    /// Why what is here of a bucket that this region was removed from stays for now, if it does: the primary lacks something that was
    /// ordered in this region while it was primary, or, where every region writes, all of them do. Then it is to be written down
    /// before it goes (SWI-2), as soon as whoever lacks it has begun the epoch without this region: before, more of it may come to count.
    /// Or the primary has not begun the epoch as of which this goes: until then it counts what this region confirms as a copy, and
    /// must be right (DUR-2). While copies are lacking elsewhere the last one is not dropped, though it counts for nothing.
    async fn why_kept(&self, shard: &ShardNode, bucket: BucketId, epoch: Epoch) -> Option<Kept> {
        let (own, leaving) = {
            let core = shard.board.core();
            let own = core.positions(bucket).of(self.region());
            (core.given_up(bucket).unwrap_or(own), core.is_leaving(bucket))
        };
        let topology = self.authority.topology();
        let Some(bucket) = topology.buckets.get(&bucket) else { return Some(Kept::Counted) };
        if leaving || (own == Lsn(0) && bucket.primary.is_none()) {
            return None;
        }
        // They all had it when they met for this region to leave.
        let others = bucket.primary.map_or_else(|| bucket.regions.clone(), |primary| vec![primary]);
        let mut kept = if own == Lsn(0) { Kept::Counted } else { Kept::Unheard };
        for other in others {
            let ask = Ask::Survey { shard: shard.id };
            let Ok((_, Told::Survey(survey))) = self.peers.ask_about_repair(&topology, (other, shard.id), &ask).await
            else {
                continue;
            };
            match survey.buckets.get(&bucket.id) {
                Some(seen) if seen.positions.of(self.region()) < own => {
                    let decided = seen.epoch >= epoch && seen.unfit.is_empty();
                    kept = if decided { Kept::Tail { source: other, seen: seen.clone() } } else { kept };
                }
                Some(seen) if bucket.primary.is_none() || seen.epoch >= epoch => {
                    return (!bucket.standing.is_sync()).then_some(Kept::Counted);
                }
                Some(_) => kept = Kept::Counted,
                None => {}
            }
        }
        Some(kept)
    }

    fn leftovers(&self, shard: &ShardNode, swept: &mut Swept) -> Result<Vec<BucketId>, Refusal> {
        let topology = self.authority.topology();
        let mut leftovers = Vec::new();
        let deleted = (1..=topology.last_bucket.0).map(BucketId).filter(|id| !topology.buckets.contains_key(id));
        for bucket in deleted {
            if swept.clean.contains(&bucket) {
                continue;
            }
            let (written, dropped) = {
                let core = shard.board.core();
                (core.digest(bucket).is_some(), core.is_dropped(bucket))
            };
            if written || (dropped && self.holds_data(shard, bucket)?) {
                leftovers.push(bucket);
            } else if dropped {
                swept.clean.insert(bucket);
            }
        }
        Ok(leftovers)
    }

    fn holds_data(&self, shard: &ShardNode, bucket: BucketId) -> Result<bool, Refusal> {
        let (from, to) = keys::data_range(shard.id, bucket);
        let mut found = false;
        let mut each = |_: &[u8], _: &[u8]| {
            found = true;
            ControlFlow::Break(())
        };
        let scanned = self.store.scan(&from, &to, &mut each);
        scanned.map_err(|why| Refusal::new(RefusalKind::Unavailable, why.to_string()))?;
        Ok(found)
    }

    /// Proposes an entry that no client waits for, again as long as there is more to do.
    async fn control(&self, shard: &ShardNode, header: Header, body: &Body) -> Result<(), Refusal> {
        loop {
            failpoint("upkeep.propose.before");
            let proposal = shard.proposer.propose(header.encode(body))?;
            let applied = proposal.await.map_err(|why| proposer::refusal(&why))?;
            failpoint("upkeep.applied");
            let result = ControlResult::decode(&applied.result)
                .map_err(|why| Refusal::new(RefusalKind::Internal, why.to_string()))?;
            if let Some(refusal) = result.refused {
                return Err(refusal);
            }
            if !result.more {
                return Ok(());
            }
        }
    }
}
