//! Carrying a switchover out on this node: what [`Handover`] decides, done and told (SWI-1).

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use meridian_failpoint::failpoint;
use meridian_region_core::{ControlResult, Duty, Handover, Sight};
use meridian_types::entry::{Body, Header, Kind};
use meridian_types::{
    Bucket, Epoch, Exposure, Fact, Lack, Lane, Lsn, Phase, Positions, Refusal, RefusalKind, RegionId, Remains, Seal,
    ShardFacts, ShardId, Word,
};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::exposures::Said;
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
        if !word.facts.is_empty() && !self.under_way.contains(&word) {
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
        let mut entries = Vec::new();
        for bucket in moving {
            let led = self.shards.iter().filter(|shard| shard.board.leads());
            let sights: Vec<Sight> = led.map(|shard| self.sight(shard, bucket)).collect();
            for duty in handover.look(self.clock.monotonic_ms(), self.region(), bucket, &sights) {
                match duty {
                    Duty::Seal { shard, epoch, next, lost } => {
                        let after = if lost { self.what_it_came_to(shard, bucket) } else { Positions::default() };
                        let header = self.header(Kind::Seal, bucket.id, epoch);
                        entries.push(self.turn(shard, header, Body::Seal { next, after }));
                    }
                    Duty::Fence { shard, epoch } => {
                        entries.push(self.turn(shard, self.header(Kind::Fence, bucket.id, epoch), Body::Fence));
                    }
                    Duty::Tell(word) => words.tell(self, self.as_far_as_open(word)),
                }
            }
        }
        // All at once: one sync of the log for all shards.
        join_all(entries).await;
    }

    fn sight(&self, shard: &ShardNode, bucket: &Bucket) -> Sight {
        // Epoch and fence first: a digest that is read after they were seen has everything up to them.
        let (epoch, fence) = (shard.board.epoch(bucket.id), shard.board.fence(bucket.id));
        let digest = shard.board.public().digests.get(&bucket.id).cloned().unwrap_or_default();
        let lsn = bucket.primary.map(|primary| digest.positions.of(primary)).unwrap_or_default();
        let acked = match bucket.phase {
            // Who has not followed into the lane may lack what is in the other one, however much it confirms.
            Phase::CatchingUp { to, .. } if !self.has_followed(bucket, shard.id, to) => Lsn(0),
            Phase::CatchingUp { to, .. } => shard.acked(bucket.policy.lane(), to),
            Phase::Fencing { .. } | Phase::Pulling { .. } => return self.sight_of_remains(shard, bucket),
            Phase::Steady | Phase::Draining { .. } => lsn,
        };
        let state = Seal { lsn, hash: digest.hash, keys: digest.keys };
        Sight { shard: shard.id, epoch, fence, state, acked, exposure: None, whole: true }
    }

    /// What there is of a bucket whose primary is lost. At one moment of the state machine: were the position older than the
    /// fence, or than the last entry that waited, an acknowledged write could be overlooked (DUR-2).
    fn sight_of_remains(&self, shard: &ShardNode, bucket: &Bucket) -> Sight {
        let (fence, facts) = self.facts_of(shard, bucket, bucket.primary.unwrap_or_default());
        let Remains { epoch, seal, exposure, whole } = facts.remains;
        Sight { shard: shard.id, epoch, fence, state: seal, acked: seal.lsn, exposure, whole }
    }

    /// What a shard has of a region that is lost, or may be: of a bucket's primary, or of one that writes it as all others do.
    pub(crate) fn facts_of(&self, shard: &ShardNode, bucket: &Bucket, from: RegionId) -> (Epoch, ShardFacts) {
        let said = shard.said(from, bucket);
        let core = shard.board.core();
        let digest = core.digest(bucket.id).cloned().unwrap_or_default();
        let seal = Seal { lsn: digest.positions.of(from), hash: digest.hash, keys: digest.keys };
        let broken =
            core.is_closed(bucket.id) || core.astray(bucket.id).is_some() || core.divergence(bucket.id).is_some();
        let remains = Remains {
            epoch: core.epoch(bucket.id),
            seal,
            exposure: said.as_ref().map(|said| with_waiting(said.exposure, core.waiting(bucket.id))),
            // While a lane turns, what waits may never be of use without the lost primary; so it was counted as a copy by
            // nobody, and is as good as not there.
            whole: !broken && (bucket.is_turning() || !core.waits_for_seal(bucket.id)),
        };
        let said_ms = said.as_ref().map(|said| self.clock.monotonic_ms().saturating_sub(said.at_ms));
        let oldest_key = said.and_then(|said| said.oldest_key);
        (core.fence(bucket.id), ShardFacts { bucket: bucket.id, shard: shard.id, remains, said_ms, oldest_key })
    }

    /// What the shards that this node leads have of a bucket with a primary elsewhere, or, where every region writes, of `lost`.
    pub(crate) fn facts(&self, bucket: &Bucket, lost: Option<RegionId>) -> Vec<ShardFacts> {
        let from = bucket.primary.or(lost).unwrap_or_default();
        let led = self.shards.iter().filter(|shard| shard.board.leads());
        led.map(|shard| self.facts_of(shard, bucket, from).1).collect()
    }

    /// A primary says what is lacking in a shard here.
    pub(crate) fn exposed(&self, source: RegionId, shard: ShardId, lane: Lane, said: &[Lack]) {
        self.signs.of_life(source, self.clock.monotonic_ms());
        if let Some(shard) = self.shard(shard) {
            shard.exposures.say(source, lane, self.clock.monotonic_ms(), said);
        }
    }

    /// A replica that is being repaired is on no history yet: nothing is said of it, but that it is not whole.
    fn as_far_as_open(&self, mut word: Word) -> Word {
        let closed = |shard: &ShardId| self.shard(*shard).is_some_and(|shard| shard.board.is_closed(word.bucket));
        word.facts.retain(|(shard, fact)| matches!(fact, Fact::Fenced(_)) || !closed(shard));
        word
    }

    /// What a lost primary's epoch came to. A region that nothing ever came from is in it, too: what it has nobody else has.
    fn what_it_came_to(&self, shard: ShardId, bucket: &Bucket) -> Positions {
        let digest = self.shard(shard).and_then(|shard| shard.board.public().digests.get(&bucket.id).cloned());
        let mut positions = digest.unwrap_or_default().positions;
        for region in &bucket.regions {
            positions.0.entry(*region).or_default();
        }
        positions
    }

    /// Ends an epoch of a bucket in a shard, fences it, or stops it. What fails is tried again at the next look.
    pub(crate) async fn turn(&self, shard: ShardId, header: Header, body: Body) {
        let Some(shard) = self.shard(shard) else { return };
        let (region, bucket, epoch) = (self.region(), header.bucket, header.epoch);
        match self.propose_turn(shard, header, &body).await {
            Ok(()) => {
                tracing::info!(%region, shard = %shard.id, %bucket, %epoch, kind = ?header.kind, "the epoch turns")
            }
            Err(why) => {
                tracing::debug!(%region, shard = %shard.id, %bucket, %epoch, %why, "the epoch does not turn yet")
            }
        }
    }

    async fn propose_turn(&self, shard: &ShardNode, header: Header, body: &Body) -> Result<(), Refusal> {
        if !self.authority.lease_holds() {
            return Err(crate::writes::no_lease());
        }
        let is_fence = header.kind == Kind::Fence;
        if is_fence {
            failpoint("fence.propose.before")
        } else {
            failpoint("seal.propose.before")
        }
        let applied = shard.proposer.propose(header.encode(body))?.await.map_err(|why| proposer::refusal(&why))?;
        if is_fence {
            failpoint("fence.applied")
        } else {
            failpoint("seal.applied")
        }
        let result = ControlResult::decode(&applied.result)
            .map_err(|why| Refusal::new(RefusalKind::Internal, why.to_string()))?;
        result.refused.map_or(Ok(()), Err)
    }
}

impl ShardNode {
    /// What a primary last said is lacking here: of all lanes in which the bucket may travel, or it is not known.
    fn said(&self, primary: RegionId, bucket: &Bucket) -> Option<Said> {
        let lanes = Lane::ALL.into_iter().filter(|lane| bucket.travels_in(*lane));
        let said =
            lanes.map(|lane| self.exposures.said(primary, lane, bucket.id, self.lanes.complete_ms(primary, lane)));
        said.reduce(|one, other| Some(one?.and(other?))).flatten()
    }
}

/// What is lacking, and what is here but waits for something that is lacking.
fn with_waiting(exposure: Exposure, (operations, bytes): (u64, u64)) -> Exposure {
    let (operations, bytes) = (exposure.operations.saturating_add(operations), exposure.bytes.saturating_add(bytes));
    Exposure { operations, bytes, ..exposure }
}

/// Tells a word until it is on record; gives up after a while, for a later look knows better.
async fn tell(node: Arc<Node>, word: Word) -> (Word, bool) {
    failpoint("word.tell.before");
    for _ in 0..TELLS_MAX {
        match timeout(TELL_PATIENCE, node.authority.tell(word.clone())).await {
            Ok(Ok(())) => {
                failpoint("word.told");
                return (word, true);
            }
            Ok(Err(why)) => {
                tracing::debug!(region = %node.region(), bucket = %word.bucket, plan = %word.plan, %why, "not heard yet");
            }
            Err(_) => {}
        }
        sleep(TELL_AGAIN_AFTER).await;
    }
    (word, false)
}
