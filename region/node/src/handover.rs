//! Carrying a switchover out on this node: what [`Handover`] decides, done and told (SWI-1).

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use meridian_region_core::{Duty, Handover, Sight};
use meridian_types::entry::{Body, Kind};
use meridian_types::{Bucket, BucketId, Epoch, Phase, Positions, Refusal, Seal, ShardId, Word};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::node::{Node, ShardNode};
use crate::proposer;

/// How often a bucket is looked at while its primary moves: clients wait meanwhile, and a look costs microseconds.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// How often all buckets are looked at otherwise: a shard that this node came to lead may have an epoch to begin.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// How long after a word that did not arrive it is told again.
const TELL_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// How long the metadata plane may take to put a word on record: several commits around the planet.
const TELL_PATIENCE: Duration = Duration::from_secs(3);

/// How often a word is told before it is left to the next look, whose facts may have changed.
const TELLS_MAX: usize = 20;

/// Does this node's part in every operation that moves a primary.
pub(crate) async fn hand_over(node: Arc<Node>) {
    let mut changes = node.authority.topology_changes();
    let mut handover = Handover::default();
    let mut words = Words::default();
    loop {
        let topology = Arc::clone(&changes.borrow_and_update());
        let moving: Vec<Arc<Bucket>> = topology.buckets.values().filter(|it| node.is_moving(it)).cloned().collect();
        node.look(&moving, &mut handover, &mut words).await;
        let pause = if moving.is_empty() { SWEEP_EVERY } else { LOOK_EVERY };
        tokio::select! {
            biased;
            Some(told) = words.tasks.join_next() => match told {
                Ok(told) => words.settle(told, &mut handover),
                Err(why) => std::panic::resume_unwind(why.into_panic()),
            },
            // The metadata plane is gone: the node is ending.
            changed = changes.changed() => if changed.is_err() { return std::future::pending().await },
            () = sleep(pause) => {}
        }
    }
}

/// What is being told.
#[derive(Default)]
struct Words {
    under_way: Vec<Word>,
    /// Each ends with its word: whether it was heard.
    tasks: JoinSet<(Word, bool)>,
}

impl Words {
    fn tell(&mut self, node: &Arc<Node>, word: Word) {
        if !self.under_way.contains(&word) {
            self.under_way.push(word.clone());
            self.tasks.spawn(tell(Arc::clone(node), word));
        }
    }

    fn settle(&mut self, (word, heard): (Word, bool), handover: &mut Handover) {
        self.under_way.retain(|other| *other != word);
        if heard {
            handover.told(&word);
        }
    }
}

impl Node {
    /// Whether a bucket is on the move, or an epoch of it is to begin here.
    fn is_moving(&self, bucket: &Bucket) -> bool {
        let behind = |shard: &ShardNode| shard.board.leads() && shard.board.epoch(bucket.id) < bucket.epoch;
        bucket.phase != Phase::Steady
            || (bucket.epoch > Epoch(1) && bucket.primary == Some(self.region()) && self.shards.iter().any(behind))
    }

    /// Looks at every bucket on the move once, and does what there is to do.
    async fn look(self: &Arc<Self>, moving: &[Arc<Bucket>], handover: &mut Handover, words: &mut Words) {
        let mut seals = Vec::new();
        for bucket in moving {
            let led = self.shards.iter().filter(|shard| shard.board.leads());
            let sights: Vec<Sight> = led.map(|shard| self.sight(shard, bucket)).collect();
            for duty in handover.look(self.clock.monotonic_ms(), self.region(), bucket, &sights) {
                match duty {
                    Duty::Seal { shard, epoch, next } => seals.push(self.seal(bucket, shard, epoch, next)),
                    Duty::Tell(word) => words.tell(self, word),
                }
            }
        }
        // All at once: one sync of the log for all shards.
        join_all(seals).await;
    }

    fn sight(&self, shard: &ShardNode, bucket: &Bucket) -> Sight {
        // The epoch first: a digest that is read after the seal was seen has everything up to it.
        let epoch = shard.board.epoch(bucket.id);
        let digest = shard.board.public().digests.get(&bucket.id).cloned().unwrap_or_default();
        let lsn = bucket.primary.map(|primary| digest.positions.of(primary)).unwrap_or_default();
        let acked = match bucket.phase {
            Phase::CatchingUp { to, .. } | Phase::Draining { to, .. } => shard.acked(bucket.policy.lane(), to),
            Phase::Steady => lsn,
        };
        Sight { shard: shard.id, epoch, state: Seal { lsn, hash: digest.hash, keys: digest.keys }, acked }
    }

    /// Ends the epoch in force of a bucket in a shard. What fails is tried again at the next look.
    async fn seal(&self, bucket: &Bucket, shard: ShardId, epoch: Epoch, next: Epoch) {
        let Some(shard) = self.shard(shard) else { return };
        if let Err(why) = self.propose_seal(shard, bucket.id, epoch, next).await {
            tracing::debug!(region = %self.region(), shard = %shard.id, bucket = %bucket.id, %epoch, %why, "not sealed yet");
        }
    }

    async fn propose_seal(
        &self,
        shard: &ShardNode,
        bucket: BucketId,
        epoch: Epoch,
        next: Epoch,
    ) -> Result<(), Refusal> {
        if !self.authority.lease_holds() {
            return Err(crate::writes::no_lease());
        }
        let entry = self.header(Kind::Seal, bucket, epoch).encode(&Body::Seal { next, after: Positions::default() });
        shard.proposer.propose(entry)?.await.map_err(|why| proposer::refusal(&why))?;
        tracing::info!(region = %self.region(), shard = %shard.id, %bucket, %epoch, %next, "epoch sealed");
        Ok(())
    }
}

/// Tells a word until it is on record; gives up after a while, for a later look knows better.
async fn tell(node: Arc<Node>, word: Word) -> (Word, bool) {
    for _ in 0..TELLS_MAX {
        match timeout(TELL_PATIENCE, node.authority.tell(word.clone())).await {
            Ok(Ok(())) => return (word, true),
            Ok(Err(why)) => {
                tracing::debug!(region = %node.region(), bucket = %word.bucket, plan = %word.plan, %why, "not heard yet");
            }
            Err(_) => {}
        }
        sleep(TELL_AGAIN_AFTER).await;
    }
    (word, false)
}
