//! Buckets that are in a later epoch than their first, or whose lane has turned: asking the other regions whether they have
//! followed, and telling once they have (docs/adr/2026-11-27-online-policy-change.md).
//!
//! [`Following`] decides; this half asks and tells. Until a region is known to have followed, its copies count for nothing
//! ([`Node::has_followed`], DUR-2).

use std::collections::BTreeSet;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use meridian_region_core::{Following, TurnDuty, awaited};
use meridian_types::{Bucket, BucketId, Epoch, Lsn, RegionId, SessionToken, ShardId, StandingWord};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::degrade::PROOF_PATIENCE;
use crate::node::{Node, ShardNode, Standing};

/// How often a bucket that somebody is yet to follow is looked at: writes may wait for it.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How often it is looked whether there is any, unless the topology says so.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// What a question or a word came to.
enum Done {
    Told,
    Asked { bucket: BucketId, turn: Epoch, region: RegionId, shards: BTreeSet<ShardId>, followed: bool },
}

/// Looks after the buckets whose primary is here and whose lane has turned.
pub(crate) async fn keep_turns(node: Arc<Node>) {
    let mut changes = node.authority.topology_changes();
    let mut tasks: JoinSet<Done> = JoinSet::new();
    let mut asking: BTreeSet<(BucketId, RegionId)> = BTreeSet::new();
    loop {
        let topology = Arc::clone(&changes.borrow_and_update());
        let turning = |it: &&Arc<Bucket>| awaited(it).is_some() && it.primary == Some(node.region());
        let turning: Vec<Arc<Bucket>> = topology.buckets.values().filter(turning).cloned().collect();
        node.following().keep(|id| turning.iter().any(|it| it.id == id));
        let mut pause = SWEEP_EVERY;
        for bucket in turning.iter().filter(|it| !it.is_between_primaries()) {
            let led = node.shards_in_force(bucket);
            if led.len() < node.shards.len() || node.following().is_awaited(node.region(), bucket, &led) {
                pause = LOOK_EVERY;
            }
            let duties = node.following().look(node.clock.monotonic_ms(), node.region(), bucket, &led);
            for duty in duties {
                match duty {
                    TurnDuty::Tell(word) => drop(tasks.spawn(tell(Arc::clone(&node), word))),
                    TurnDuty::Ask { bucket: id, turn, region, shards } => {
                        if asking.insert((id, region)) {
                            tasks.spawn(ask(Arc::clone(&node), Arc::clone(bucket), turn, region, shards));
                        }
                    }
                }
            }
        }
        tokio::select! {
            biased;
            Some(done) = tasks.join_next() => match done {
                Ok(Done::Told) => {}
                Ok(Done::Asked { bucket, turn, region, shards, followed }) => {
                    asking.remove(&(bucket, region));
                    if followed {
                        node.following().followed(bucket, turn, region, &shards);
                    }
                }
                Err(why) => std::panic::resume_unwind(why.into_panic()),
            },
            // The metadata plane is gone: the node is ending.
            changed = changes.changed() => if changed.is_err() { return std::future::pending().await },
            () = sleep(pause) => {}
        }
    }
}

async fn tell(node: Arc<Node>, word: StandingWord) -> Done {
    node.tell_standing(word).await;
    Done::Told
}

/// Asks a region for everything that these shards have applied: with the new epoch in force here, that is behind the seal.
async fn ask(node: Arc<Node>, bucket: Arc<Bucket>, turn: Epoch, region: RegionId, shards: BTreeSet<ShardId>) -> Done {
    let mut session = SessionToken::default();
    for shard in &shards {
        let digest = node.shard(*shard).and_then(|it| it.board.public().digests.get(&bucket.id).cloned());
        for (of, lsn) in digest.unwrap_or_default().positions.0.into_iter().filter(|(_, lsn)| *lsn > Lsn(0)) {
            session.observe(bucket.id, *shard, of, lsn);
        }
    }
    let followed = node.has_seen(&bucket, region, shards.first().copied().unwrap_or_default(), session).await;
    Done::Asked { bucket: bucket.id, turn, region, shards, followed }
}

impl Node {
    /// What is known of who has followed.
    pub(crate) fn following(&self) -> MutexGuard<'_, Following> {
        self.following.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shards_in_force(&self, bucket: &Bucket) -> BTreeSet<ShardId> {
        let in_force = |shard: &&ShardNode| shard.board.leads() && shard.board.epoch(bucket.id) == bucket.epoch;
        self.shards.iter().filter(in_force).map(|shard| shard.id).collect()
    }

    /// Whether a region's copies of a bucket count in a shard: its lane has not turned, or the region has followed.
    pub(crate) fn has_followed(&self, bucket: &Bucket, shard: ShardId, region: RegionId) -> bool {
        let Some(turn) = awaited(bucket) else { return true };
        if self.following().has(bucket.id, turn, region, shard) {
            return true;
        }
        // On record is that all have; of the turn alone, not of an epoch that began behind it.
        let topology = self.authority.topology();
        let of_record = |now: &Arc<Bucket>| now.turns.kept.iter().all(|kept| kept.epoch != turn);
        let turned = bucket.turns.kept.last().is_some_and(|kept| kept.epoch == turn);
        turned && topology.buckets.get(&bucket.id).is_some_and(of_record)
    }

    /// The regions whose copies count. Right after a turn it takes a moment until enough do, and as long as it takes them to
    /// get what was written before; unless fewer copies may do.
    pub(crate) async fn counted(
        &self,
        standing: &Standing,
        shard: &ShardNode,
        needed: usize,
        deadline: Instant,
    ) -> Vec<RegionId> {
        loop {
            let others = self.others(&standing.bucket, shard.id);
            let waits = others.len() < needed && awaited(&standing.bucket).is_some() && !self.may_take_fewer(standing);
            // In another epoch nothing is acknowledged any more that was ordered under this one.
            if !waits || !self.still_primary(standing) || Instant::now() >= deadline {
                return others;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Whether a region has applied everything that the session has seen.
    pub(crate) async fn has_seen(
        &self,
        bucket: &Bucket,
        region: RegionId,
        shard: ShardId,
        session: SessionToken,
    ) -> bool {
        let topology = self.authority.topology();
        let request = self.looks_for(bucket, session);
        let asked = self.peers.ask_region(&topology, region, shard, &request);
        // Who is being repaired has another region answer.
        matches!(timeout(PROOF_PATIENCE, asked).await, Ok(Ok(response)) if response.region == region)
    }
}
