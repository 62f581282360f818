//! Which regions have followed a bucket into another epoch, or another lane (docs/adr/2026-11-27-online-policy-change.md).
//!
//! A region confirms entries of the new epoch while they are parked behind the seal of the old one. Such a copy is durable, but of no
//! use if the primary is lost before the seal arrives, or if the region can't follow it and is yet to be repaired; so it counts for
//! nothing until the region has answered a read that is only answered by who has applied everything up to that seal (DUR-2).
//! What has been applied stays so, whoever leads the shard. Once all regions have followed a turn of the lane, in every shard, the
//! turn is forgotten: each node says so of the shards it leads until it is on record.
//!
//! Deliberately not here: how they are asked (`region/node`).

use std::collections::{BTreeMap, BTreeSet};

use meridian_types::{Bucket, BucketId, Copies, Epoch, RegionId, ShardId, StandingWord};

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TurnDuty {
    /// To ask a region whether it has applied what these shards of this region have applied; [`Following::followed`] takes
    /// the answer.
    Ask {
        /// The bucket.
        bucket: BucketId,
        /// The first epoch in its lane.
        turn: Epoch,
        /// The region.
        region: RegionId,
        /// The shards.
        shards: BTreeSet<ShardId>,
    },
    /// To tell the metadata plane.
    Tell(StandingWord),
}

/// How long after a region was asked it is asked again, and a word said again: short, for writes may wait for it.
const AGAIN_MS: u64 = 200;

/// Remembers, per bucket whose lane has turned, who has followed.
#[derive(Clone, Debug, Default)]
pub struct Following {
    buckets: BTreeMap<BucketId, Follow>,
}

#[derive(Clone, Debug)]
struct Follow {
    turn: Epoch,
    followed: BTreeMap<RegionId, BTreeSet<ShardId>>,
    asked: BTreeMap<RegionId, u64>,
    said_ms: Option<u64>,
}

impl Follow {
    /// What the metadata plane has not heard yet of the region that is joining.
    fn filled(&self, bucket: &Bucket, led: &BTreeSet<ShardId>) -> Option<Copies> {
        let joining = bucket.joins.now.as_ref()?;
        let shards: BTreeSet<ShardId> = self.followed.get(&joining.region)?.intersection(led).copied().collect();
        let known = joining.under == bucket.epoch && shards.is_subset(&joining.filled);
        (!known && !shards.is_empty()).then_some(Copies::Filled { region: joining.region, shards })
    }
}

/// The epoch behind whose beginning a region must be before its copies count: the one in force, unless it is the first. It may have begun
/// with a seal of another primary, which is yet to arrive, or one that a region can't follow, having less of a lost primary's tail
/// than the successor, or more; until it has it only parks what comes. A turn that is kept lies before it, and who has followed that says
/// nothing of what came behind it (found by `chaos/src/model/lanes.rs`). Where every region writes, the last turn.
pub fn awaited(bucket: &Bucket) -> Option<Epoch> {
    match bucket.primary {
        Some(_) => (bucket.epoch > Epoch(1)).then_some(bucket.epoch),
        None => bucket.turns.kept.last().map(|turn| turn.epoch),
    }
}

impl Following {
    /// Looks at a bucket through the shards that this node leads and in which its epoch is in force. `now_ms` is the node's
    /// monotonic clock.
    pub fn look(&mut self, now_ms: u64, region: RegionId, bucket: &Bucket, led: &BTreeSet<ShardId>) -> Vec<TurnDuty> {
        let Some(turn) = awaited(bucket) else {
            self.buckets.remove(&bucket.id);
            return Vec::new();
        };
        let fresh = || Follow { turn, followed: BTreeMap::new(), asked: BTreeMap::new(), said_ms: None };
        let follow = self.buckets.entry(bucket.id).or_insert_with(fresh);
        if follow.turn != turn {
            *follow = fresh();
        }
        let mut duties = Vec::new();
        let mut all = led.clone();
        let joining = bucket.joins.joining();
        for target in bucket.targets(region).chain(joining) {
            let followed = follow.followed.entry(target).or_default();
            let missing: BTreeSet<ShardId> = led.difference(followed).copied().collect();
            if joining != Some(target) {
                all.retain(|shard| followed.contains(shard));
            }
            let due = follow.asked.get(&target).is_none_or(|at| at + AGAIN_MS <= now_ms);
            if !missing.is_empty() && due {
                follow.asked.insert(target, now_ms);
                duties.push(TurnDuty::Ask { bucket: bucket.id, turn, region: target, shards: missing });
            }
        }
        if follow.said_ms.is_some_and(|at| now_ms < at + AGAIN_MS) {
            return duties;
        }
        let followed = (bucket.is_turning() && !all.is_subset(&bucket.turns.followed)).then_some(Copies::Followed(all));
        let filled = follow.filled(bucket, led);
        for copies in followed.into_iter().chain(filled) {
            follow.said_ms = Some(now_ms);
            let (epoch, since) = (bucket.epoch, bucket.standing.since());
            duties.push(TurnDuty::Tell(StandingWord { bucket: bucket.id, epoch, since, copies }));
        }
        duties
    }

    /// Whether somebody is yet to follow in these shards.
    pub fn is_awaited(&self, region: RegionId, bucket: &Bucket, led: &BTreeSet<ShardId>) -> bool {
        awaited(bucket).is_some_and(|turn| {
            let has = |target| led.iter().all(|shard| self.has(bucket.id, turn, target, *shard));
            bucket.is_turning() || !bucket.targets(region).all(has) || bucket.joins.now.is_some()
        })
    }

    /// A region has applied everything up to the seal before `turn` in these shards.
    pub fn followed(&mut self, bucket: BucketId, turn: Epoch, region: RegionId, shards: &BTreeSet<ShardId>) {
        if let Some(follow) = self.buckets.get_mut(&bucket).filter(|follow| follow.turn == turn) {
            follow.followed.entry(region).or_default().extend(shards);
        }
    }

    /// Whether it is known that a region has, in a shard, everything up to the seal before `turn`.
    pub fn has(&self, bucket: BucketId, turn: Epoch, region: RegionId, shard: ShardId) -> bool {
        // Who has followed the later turn has followed the earlier one.
        let follow = self.buckets.get(&bucket).filter(|follow| follow.turn >= turn);
        follow.and_then(|follow| follow.followed.get(&region)).is_some_and(|shards| shards.contains(&shard))
    }

    /// Forgets buckets that are none of this node's business any more.
    pub fn keep(&mut self, of: impl Fn(BucketId) -> bool) {
        self.buckets.retain(|bucket, _| of(*bucket));
    }
}

#[cfg(test)]
mod tests {
    use meridian_types::{BucketName, Hlc, Lane, Phase, Policy};

    use super::*;

    const A: RegionId = RegionId(1);
    const B: RegionId = RegionId(2);
    const C: RegionId = RegionId(3);
    const ID: BucketId = BucketId(1);

    fn bucket(turns: &[(u64, Lane)]) -> Bucket {
        let mut bucket = Bucket {
            id: ID,
            name: BucketName::new("b").unwrap(),
            policy: Policy::ASYNC,
            epoch: Epoch(1),
            phase: Phase::Steady,
            primary: Some(A),
            regions: vec![A, B, C],
            labels: BTreeMap::new(),
            created: Hlc(0),
            standing: Default::default(),
            auto: Default::default(),
            turns: Default::default(),
            joins: Default::default(),
            crossing: None,
        };
        for (epoch, from) in turns {
            bucket.epoch = Epoch(*epoch);
            bucket.turns.turn(Epoch(*epoch), *from);
        }
        bucket
    }

    fn shards(of: &[u16]) -> BTreeSet<ShardId> {
        of.iter().copied().map(ShardId).collect()
    }

    fn asked(duties: &[TurnDuty]) -> Vec<(RegionId, BTreeSet<ShardId>)> {
        let ask = |duty: &TurnDuty| match duty {
            TurnDuty::Ask { region, shards, .. } => Some((*region, shards.clone())),
            TurnDuty::Tell(_) => None,
        };
        duties.iter().filter_map(ask).collect()
    }

    fn told(duties: &[TurnDuty]) -> Option<BTreeSet<ShardId>> {
        duties.iter().find_map(|duty| match duty {
            TurnDuty::Tell(StandingWord { copies: Copies::Followed(shards), .. }) => Some(shards.clone()),
            TurnDuty::Tell(_) | TurnDuty::Ask { .. } => None,
        })
    }

    #[test]
    fn a_bucket_in_its_lane_is_none_of_this() {
        let mut following = Following::default();
        assert!(following.look(0, A, &bucket(&[]), &shards(&[0, 1])).is_empty());
    }

    #[test]
    fn each_region_is_asked_until_it_has_followed_and_then_counts() {
        let mut following = Following::default();
        let turned = bucket(&[(2, Lane::Sync)]);
        let led = shards(&[0, 1]);
        assert_eq!(asked(&following.look(0, A, &turned, &led)), [(B, led.clone()), (C, led.clone())]);
        assert!(asked(&following.look(1, A, &turned, &led)).is_empty(), "the answer is on its way");
        assert!(!following.has(ID, Epoch(2), B, ShardId(0)), "nobody counts before");
        following.followed(ID, Epoch(2), B, &shards(&[0]));
        assert!(following.has(ID, Epoch(2), B, ShardId(0)) && !following.has(ID, Epoch(2), B, ShardId(1)));
        assert_eq!(asked(&following.look(300, A, &turned, &led)), [(B, shards(&[1])), (C, led)]);
    }

    #[test]
    fn it_is_said_of_the_shards_in_which_all_have_followed_until_it_is_on_record() {
        let mut following = Following::default();
        let mut turned = bucket(&[(2, Lane::Sync)]);
        let led = shards(&[0, 1]);
        following.look(0, A, &turned, &led);
        following.followed(ID, Epoch(2), B, &led);
        assert_eq!(told(&following.look(1, A, &turned, &led)), None, "C has not");
        following.followed(ID, Epoch(2), C, &shards(&[1]));
        assert_eq!(told(&following.look(2, A, &turned, &led)), Some(shards(&[1])));
        assert_eq!(told(&following.look(3, A, &turned, &led)), None);
        assert_eq!(told(&following.look(300, A, &turned, &led)), Some(shards(&[1])), "it may not have arrived");
        turned.turns.followed = shards(&[1]);
        assert_eq!(told(&following.look(600, A, &turned, &led)), None);
    }

    /// Found by the model of the lanes: B led in epoch 3, which this node never heard of, and its seal has not come to C.
    #[test]
    fn dur_2_who_has_followed_a_turn_is_asked_again_in_every_epoch_behind_it() {
        let mut following = Following::default();
        let mut turned = bucket(&[(2, Lane::Async)]);
        let led = shards(&[0]);
        following.look(0, A, &turned, &led);
        following.followed(ID, Epoch(2), C, &led);
        turned.epoch = Epoch(4);
        assert_eq!(awaited(&turned), Some(Epoch(4)));
        assert_eq!(asked(&following.look(1, A, &turned, &led)), [(B, led.clone()), (C, led.clone())]);
        assert!(!following.has(ID, Epoch(4), C, ShardId(0)));
        following.followed(ID, Epoch(2), C, &led);
        assert!(!following.has(ID, Epoch(4), C, ShardId(0)), "the answer to the first question came late");
        following.followed(ID, Epoch(4), C, &led);
        assert!(following.has(ID, Epoch(4), C, ShardId(0)));
        assert!(following.has(ID, Epoch(2), C, ShardId(0)));
    }

    #[test]
    fn another_turn_starts_anew_and_what_is_heard_of_the_first_counts_for_nothing() {
        let mut following = Following::default();
        let led = shards(&[0]);
        following.look(0, A, &bucket(&[(2, Lane::Sync)]), &led);
        following.followed(ID, Epoch(2), B, &led);
        let again = bucket(&[(2, Lane::Sync), (3, Lane::Async)]);
        following.look(1, A, &again, &led);
        following.followed(ID, Epoch(2), B, &led);
        assert!(!following.has(ID, Epoch(3), B, ShardId(0)));
        following.followed(ID, Epoch(3), B, &led);
        assert!(following.has(ID, Epoch(2), B, ShardId(0)), "the later turn lies behind the earlier one");
    }
}
