//! What a node has to do, and to say, while a bucket's primary moves (design 7; docs/adr/2026-11-20-seals.md).
//!
//! ```text
//!                 in the primary's region          in the next primary's region
//! catching up     close behind? say so
//! draining        seal; say where                  everything up to the seal here? say so
//! fencing         (it is lost)                     fence; say what there is, in every region that is left
//! pulling         (it is lost)                     as while fencing; the next primary fetches what it lacks besides
//! steady          seal, if the epoch was raised (an operation was aborted)
//! ```
//!
//! Every node speaks for the shards it leads. What it says is repeated until it arrived, and says the same each time.
//!
//! Deliberately not here: when the primary moves; that is for the metadata plane, which hears from every shard.

use std::collections::{BTreeMap, VecDeque};

use meridian_types::{
    Bucket, BucketId, Epoch, Exposure, Fact, Lsn, Phase, PlanId, RegionId, Remains, Seal, ShardId, Word,
};

/// What a node sees of a bucket in a shard that it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight {
    /// The shard.
    pub shard: ShardId,
    /// The epoch in force in it.
    pub epoch: Epoch,
    /// Entries of lower epochs are refused in it.
    pub fence: Epoch,
    /// The position of the primary's log up to which it has the bucket, and the bucket's digest there.
    pub state: Seal,
    /// What the next primary's region has of the bucket's lane, as the primary's shipper knows.
    pub acked: Lsn,
    /// What the primary last said is lacking here.
    pub exposure: Option<Exposure>,
    /// Whether the shard holds all it has been given: nothing waits for the end of an epoch, and it is not being repaired.
    pub whole: bool,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Duty {
    /// To end the epoch in force in a shard.
    Seal {
        /// The shard.
        shard: ShardId,
        /// The epoch in force.
        epoch: Epoch,
        /// The next one.
        next: Epoch,
        /// Whether its primary is lost, so that the seal must say what the epoch came to.
        lost: bool,
    },
    /// To refuse lower epochs in a shard from now on.
    Fence {
        /// The shard.
        shard: ShardId,
        /// The least epoch that is not refused.
        epoch: Epoch,
    },
    /// To tell the metadata plane about every shard at once.
    Tell(Word),
}

/// Remembers what was told already, and how far the primary was a while ago.
#[derive(Clone, Debug, Default)]
pub struct Handover {
    told: BTreeMap<Topic, BTreeMap<ShardId, Fact>>,
    /// What had been said to be lacking when a bucket was first seen fenced: from then on nothing is taken any more, and what
    /// the lost primary may go on saying must not become new words without end.
    exposed: BTreeMap<(BucketId, Epoch, ShardId), Option<Exposure>>,
    trails: BTreeMap<BucketId, VecDeque<Footprint>>,
}

/// One thing there is to say.
type Topic = (BucketId, PlanId, Epoch);

/// Where the primary's shards stood at some time, in milliseconds.
#[derive(Clone, Debug)]
struct Footprint {
    at_ms: u64,
    positions: BTreeMap<ShardId, Lsn>,
}

/// How far apart footprints are at least, in milliseconds: what a bound on lag is precise to.
const FOOTPRINT_EVERY_MS: u64 = 5;

impl Handover {
    /// Looks at a bucket through the shards that this node leads; `now_ms` is its monotonic clock.
    pub fn look(&mut self, now_ms: u64, region: RegionId, bucket: &Bucket, sights: &[Sight]) -> Vec<Duty> {
        let mut duties = Vec::new();
        let lost = matches!(bucket.phase, Phase::Fencing { .. } | Phase::Pulling { .. });
        let primary = bucket.primary == Some(region) && !lost;
        if primary {
            let behind = sights.iter().filter(|sight| sight.epoch < bucket.epoch);
            duties.extend(behind.map(|sight| Duty::Seal {
                shard: sight.shard,
                epoch: sight.epoch,
                next: bucket.epoch,
                lost: sight.fence > sight.epoch,
            }));
        }
        if lost && bucket.primary != Some(region) {
            let open = sights.iter().filter(|sight| sight.fence < bucket.epoch);
            duties.extend(open.map(|sight| Duty::Fence { shard: sight.shard, epoch: bucket.epoch }));
        }
        let begun = sights.iter().all(|sight| sight.epoch >= bucket.epoch);
        let fenced = sights.iter().all(|sight| sight.fence >= bucket.epoch);
        let word = match bucket.phase {
            Phase::Steady => {
                self.forget(bucket.id);
                None
            }
            Phase::CatchingUp { plan, lag_ms_max, .. } if primary => {
                let caught_up = self.is_close(now_ms, lag_ms_max, bucket.id, sights);
                caught_up.then(|| word(plan, bucket, sights, |_| Fact::CaughtUp))
            }
            Phase::Draining { plan, .. } if primary && begun => Some(word(plan, bucket, sights, Fact::Sealed)),
            Phase::Draining { plan, to } if to == region && begun => Some(word(plan, bucket, sights, Fact::Ready)),
            Phase::Fencing { plan, .. } | Phase::Pulling { plan, .. } if bucket.primary != Some(region) && fenced => {
                let remains = sights.iter().map(|sight| (sight.shard, Fact::Fenced(self.remains(bucket, sight))));
                Some(Word { plan, bucket: bucket.id, epoch: bucket.epoch, facts: remains.collect() })
            }
            Phase::CatchingUp { .. } | Phase::Draining { .. } | Phase::Fencing { .. } | Phase::Pulling { .. } => None,
        };
        duties.extend(word.filter(|word| self.is_news(word)).map(Duty::Tell));
        duties
    }

    /// What was told has arrived.
    pub fn told(&mut self, word: &Word) {
        self.told.entry(topic(word)).or_default().extend(word.facts.iter().copied());
    }

    fn is_news(&self, word: &Word) -> bool {
        let told = self.told.get(&topic(word));
        word.facts.iter().any(|(shard, fact)| told.is_none_or(|told| told.get(shard) != Some(fact)))
    }

    /// What there is of a lost primary in a shard that is fenced.
    fn remains(&mut self, bucket: &Bucket, sight: &Sight) -> Remains {
        let place = (bucket.id, bucket.epoch, sight.shard);
        let exposure = *self.exposed.entry(place).or_insert(sight.exposure);
        Remains { epoch: sight.epoch, seal: sight.state, exposure, whole: sight.whole }
    }

    fn forget(&mut self, bucket: BucketId) {
        self.trails.remove(&bucket);
        self.exposed.retain(|(of, ..), _| *of != bucket);
        self.told.retain(|(of, ..), _| *of != bucket);
    }

    /// Whether the next primary has, of every shard, what the primary had `lag_ms_max` ago or has now.
    fn is_close(&mut self, now_ms: u64, lag_ms_max: u64, bucket: BucketId, sights: &[Sight]) -> bool {
        let trail = self.trails.entry(bucket).or_default();
        while trail.get(1).is_some_and(|second| second.at_ms + lag_ms_max <= now_ms) {
            trail.pop_front();
        }
        let then = trail.front().filter(|oldest| oldest.at_ms + lag_ms_max <= now_ms);
        let had = |sight: &Sight| {
            let then = then.and_then(|then| then.positions.get(&sight.shard).copied());
            then.unwrap_or(sight.state.lsn).min(sight.state.lsn)
        };
        let close = sights.iter().all(|sight| sight.acked >= had(sight));
        if trail.back().is_none_or(|last| last.at_ms + FOOTPRINT_EVERY_MS <= now_ms) {
            let positions = sights.iter().map(|sight| (sight.shard, sight.state.lsn)).collect();
            trail.push_back(Footprint { at_ms: now_ms, positions });
        }
        close && !sights.is_empty()
    }
}

fn topic(word: &Word) -> Topic {
    (word.bucket, word.plan, word.epoch)
}

fn word(plan: PlanId, bucket: &Bucket, sights: &[Sight], fact: impl Fn(Seal) -> Fact) -> Word {
    let facts = sights.iter().map(|sight| (sight.shard, fact(sight.state))).collect();
    Word { plan, bucket: bucket.id, epoch: bucket.epoch, facts }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use meridian_types::{BucketName, Hlc, Policy, SetHash};

    use super::*;

    const A: RegionId = RegionId(1);
    const B: RegionId = RegionId(2);
    const PLAN: PlanId = PlanId(9);

    fn bucket(epoch: u64, phase: Phase) -> Bucket {
        Bucket {
            id: BucketId(1),
            name: BucketName::new("b").unwrap(),
            policy: Policy::ASYNC,
            epoch: Epoch(epoch),
            phase,
            primary: Some(A),
            regions: vec![A, B],
            labels: BTreeMap::new(),
            created: Hlc(0),
            standing: Default::default(),
            auto: Default::default(),
            turns: Default::default(),
            joins: Default::default(),
            crossing: None,
        }
    }

    fn sight(shard: u16, epoch: u64, lsn: u64, acked: u64) -> Sight {
        let state = Seal { lsn: Lsn(lsn), hash: SetHash(u128::from(lsn)), keys: lsn };
        Sight {
            shard: ShardId(shard),
            epoch: Epoch(epoch),
            fence: Epoch(epoch),
            state,
            acked: Lsn(acked),
            exposure: None,
            whole: true,
        }
    }

    fn facts(duties: &[Duty]) -> Vec<Fact> {
        let told = duties.iter().filter_map(|duty| match duty {
            Duty::Tell(word) => Some(word.facts.iter().map(|(_, fact)| *fact)),
            Duty::Seal { .. } | Duty::Fence { .. } => None,
        });
        told.flatten().collect()
    }

    #[test]
    fn the_next_primary_is_close_once_it_has_what_the_primary_had_a_while_ago() {
        let mut handover = Handover::default();
        let bucket = bucket(4, Phase::CatchingUp { plan: PLAN, to: B, lag_ms_max: 100 });
        let mut look = |now, lsn, acked| facts(&handover.look(now, A, &bucket, &[sight(0, 4, lsn, acked)]));
        assert_eq!(look(1000, 50, 10), [], "nothing is known of a while ago, and now it is behind");
        assert_eq!(look(1050, 90, 50), [], "too early to say");
        assert_eq!(look(1101, 95, 49), [], "a little short of what there was at 1000");
        assert_eq!(look(1102, 99, 50), [Fact::CaughtUp]);
    }

    #[test]
    fn an_idle_bucket_is_caught_up_at_once() {
        let mut handover = Handover::default();
        let bucket = bucket(4, Phase::CatchingUp { plan: PLAN, to: B, lag_ms_max: 0 });
        assert_eq!(facts(&handover.look(5, A, &bucket, &[sight(0, 4, 7, 7), sight(1, 4, 0, 0)])).len(), 2);
        assert_eq!(handover.look(5, A, &bucket, &[]), [], "who leads no shard has nothing to say");
        assert_eq!(handover.look(5, B, &bucket, &[sight(0, 4, 7, 0)]), [], "only the primary's shippers know");
    }

    #[test]
    fn a_draining_primary_seals_each_shard_and_says_where_until_it_is_heard() {
        let mut handover = Handover::default();
        let bucket = bucket(5, Phase::Draining { plan: PLAN, to: B });
        let sealed = |shard, lsn| sight(shard, 5, lsn, 0);
        let duties = handover.look(0, A, &bucket, &[sight(0, 4, 7, 0), sealed(1, 8)]);
        assert_eq!(duties, [Duty::Seal { shard: ShardId(0), epoch: Epoch(4), next: Epoch(5), lost: false }]);
        let duties = handover.look(1, A, &bucket, &[sealed(0, 8), sealed(1, 8)]);
        let [Duty::Tell(word)] = duties.as_slice() else { panic!("{duties:?}") };
        assert_eq!(word.facts.len(), 2);
        assert_eq!(handover.look(2, A, &bucket, &[sealed(0, 8), sealed(1, 8)]), duties, "not heard yet");
        handover.told(word);
        assert_eq!(handover.look(3, A, &bucket, &[sealed(0, 8), sealed(1, 8)]), []);
        assert_eq!(handover.look(4, A, &bucket, &[sealed(2, 8)]).len(), 1, "a shard it came to lead since");
    }

    #[test]
    fn the_next_primary_is_ready_when_every_shard_has_applied_the_seal() {
        let mut handover = Handover::default();
        let bucket = bucket(5, Phase::Draining { plan: PLAN, to: B });
        assert_eq!(handover.look(0, B, &bucket, &[sight(0, 5, 8, 0), sight(1, 4, 6, 0)]), []);
        let duties = handover.look(1, B, &bucket, &[sight(0, 5, 8, 0), sight(1, 5, 9, 0)]);
        assert!(matches!(facts(&duties)[..], [Fact::Ready(_), Fact::Ready(_)]), "{duties:?}");
    }

    #[test]
    fn the_regions_left_after_a_loss_fence_and_say_how_far_it_came_and_again_when_it_came_further() {
        let mut handover = Handover::default();
        let bucket = bucket(5, Phase::Fencing { plan: PLAN, to: B });
        let open = Sight { fence: Epoch(4), ..sight(0, 4, 8, 0) };
        let fenced = |lsn| Sight { fence: Epoch(5), ..sight(0, 4, lsn, 0) };
        assert_eq!(handover.look(0, A, &bucket, &[open]), [], "the lost primary seals nothing any more");
        let duties = handover.look(0, B, &bucket, &[open]);
        assert_eq!(duties, [Duty::Fence { shard: ShardId(0), epoch: Epoch(5) }]);
        let duties = handover.look(1, B, &bucket, &[fenced(8)]);
        let [Duty::Tell(word)] = duties.as_slice() else { panic!("{duties:?}") };
        handover.told(word);
        assert_eq!(handover.look(2, B, &bucket, &[fenced(8)]), []);
        let further = Remains { epoch: Epoch(4), seal: fenced(9).state, exposure: None, whole: true };
        assert_eq!(facts(&handover.look(3, B, &bucket, &[fenced(9)])), [Fact::Fenced(further)]);
        let pulling = Bucket { phase: Phase::Pulling { plan: PLAN, to: B }, ..bucket };
        assert_eq!(facts(&handover.look(4, B, &pulling, &[fenced(9)])), [Fact::Fenced(further)], "as while fencing");
    }

    #[test]
    fn what_the_lost_primary_goes_on_saying_makes_no_new_words() {
        let mut handover = Handover::default();
        let bucket = bucket(5, Phase::Fencing { plan: PLAN, to: B });
        let lacks = |operations| Some(Exposure { head: Lsn(20), operations, ..Exposure::default() });
        let fenced = |exposure| Sight { fence: Epoch(5), exposure, ..sight(0, 4, 8, 0) };
        let duties = handover.look(0, B, &bucket, &[fenced(lacks(3))]);
        let [Duty::Tell(word)] = duties.as_slice() else { panic!("{duties:?}") };
        handover.told(word);
        assert_eq!(handover.look(1, B, &bucket, &[fenced(lacks(4))]), []);
        let broken = Sight { whole: false, ..fenced(lacks(4)) };
        assert_eq!(handover.look(2, B, &bucket, &[broken]).len(), 1, "that it is no longer whole is news");
    }

    #[test]
    fn a_successor_seals_the_lost_epoch_with_what_it_came_to() {
        let mut handover = Handover::default();
        let successor = Bucket { primary: Some(B), ..bucket(5, Phase::Steady) };
        let fenced = Sight { fence: Epoch(5), ..sight(0, 4, 8, 0) };
        let duties = handover.look(0, B, &successor, &[fenced]);
        assert_eq!(duties, [Duty::Seal { shard: ShardId(0), epoch: Epoch(4), next: Epoch(5), lost: true }]);
    }

    #[test]
    fn after_an_abort_the_primary_begins_the_raised_epoch() {
        let mut handover = Handover::default();
        let duties = handover.look(0, A, &bucket(6, Phase::Steady), &[sight(0, 5, 8, 0)]);
        assert_eq!(duties, [Duty::Seal { shard: ShardId(0), epoch: Epoch(5), next: Epoch(6), lost: false }]);
        assert_eq!(handover.look(0, B, &bucket(6, Phase::Steady), &[sight(0, 5, 8, 0)]), []);
    }
}
