//! Which buckets of a shard must be made equal to another region's, to whom, and why.
//!
//! ```text
//! closed, taking in what waited ─► release it          closed in mid-repair ─► begin again
//! joined in an epoch that has not begun here ─► fill it, from the primary or, where every region writes, from any of them
//! its primary fenced off        ─► repair
//! less of a lost region than another one has, where every region writes ─► repair, from that one
//! astray, diverged              ─► repair              less than the survey of a lane ─► repair, then move the lane
//! ```
//!
//! Deliberately not here: when to look, and how long an epoch may take to begin before its replica counts as stuck.

use meridian_types::{Bucket, BucketId, Lane, Phase, RegionId, RepairReason, Topology};

use super::survey::{Claim, Sighting, Survey};
use crate::shard::Shard;

/// A bucket that must be made equal to another region's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// The bucket.
    pub bucket: BucketId,
    /// The region that is right.
    pub source: RegionId,
    /// What makes it right.
    pub claim: Claim,
    /// Why.
    pub reason: RepairReason,
}

/// What there is to do about a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Make it equal to another region's.
    Repair(Need),
    /// Take in what waited for it: its rows are what they should be.
    Release(BucketId),
}

/// What the state of a bucket in a shard asks for, if anything.
pub fn want(own: &Shard, bucket: &Bucket) -> Option<Want> {
    if !bucket.reaches(own.region()) || own.is_dropped(bucket.id) || own.is_leaving(bucket.id) {
        return None;
    }
    let joins = is_unfilled(own, bucket);
    let closed = own.closed().find(|(id, _)| *id == bucket.id).map(|(_, source)| source);
    let reason = match closed {
        Some(None) => return Some(Want::Release(bucket.id)),
        Some(Some(before)) => {
            let reason = if joins { RepairReason::Joining } else { RepairReason::Interrupted };
            return interrupted(own, bucket, before).map(|need| Want::Repair(Need { reason, ..need }));
        }
        None if joins => RepairReason::Joining,
        None if own.astray(bucket.id).is_some() => RepairReason::Astray,
        None if own.divergence(bucket.id).is_some() => RepairReason::Diverged,
        None if is_cut_off(own, bucket) => RepairReason::Stuck,
        None => return rest_of_the_lost(own, bucket).map(Want::Repair),
    };
    need(own, bucket, reason).map(Want::Repair)
}

/// Whether this region was added to the bucket in an epoch that has not begun here: it lacks what came before.
pub fn is_unfilled(own: &Shard, bucket: &Bucket) -> bool {
    own.epoch(bucket.id) < bucket.joins.since(own.region())
}

/// A repair from whoever is right for the bucket now; `None` where this region itself is.
pub fn need(own: &Shard, bucket: &Bucket, reason: RepairReason) -> Option<Need> {
    let region = own.region();
    // Nothing is taken of a region that is lost, and nobody waits for it (SWI-3).
    let other = || bucket.targets(region).find(|it| Some(*it) != bucket.lost());
    let (source, claim) = match bucket.primary {
        Some(primary) => (primary, Claim::Primary),
        // It is in a later epoch and has all of the earlier ones: what is here of an earlier stay, perhaps with gaps, is replaced.
        None if is_unfilled(own, bucket) => (other()?, Claim::Replica),
        None => (other()?, Claim::ActiveActive),
    };
    (source != region && bucket.reaches(region)).then_some(Need { bucket: bucket.id, source, claim, reason })
}

/// While its primary is lost, or if this region has become primary since, a repair goes on after whom it was begun.
fn interrupted(own: &Shard, bucket: &Bucket, before: RegionId) -> Option<Need> {
    let reason = RepairReason::Interrupted;
    let lost =
        matches!(bucket.phase, Phase::Fencing { .. } | Phase::Pulling { .. }) || bucket.primary == Some(own.region());
    if lost && bucket.primary != Some(before) {
        return Some(Need { bucket: bucket.id, source: before, claim: Claim::Replica, reason });
    }
    need(own, bucket, reason)
}

/// What the next primary fetches from the survivor that has most of a lost one's log, if any has more than it: whoever ranks
/// highest, by the epoch in force and then by position, has everything that any of them has.
pub fn pull<'a>(own: &Shard, bucket: &Bucket, others: impl Iterator<Item = (RegionId, &'a Sighting)>) -> Option<Need> {
    let lost = bucket.primary?;
    let whole = others.filter(|(region, seen)| *region != lost && seen.unfit.is_empty() && !seen.diverged);
    let (source, seen) = whole.max_by_key(|(_, seen)| (seen.epoch, seen.positions.of(lost)))?;
    let rank = (own.epoch(bucket.id), own.positions(bucket.id).of(lost));
    let more = (seen.epoch, seen.positions.of(lost)) > rank;
    more.then_some(Need { bucket: bucket.id, source, claim: Claim::Replica, reason: RepairReason::Asked })
}

/// Where every region writes and one is lost: what another one has of its log, if that is more than is here. Whoever has most has
/// everything that any of them has (ORD-1), and what it is stands still: none of them takes in more.
fn rest_of_the_lost(own: &Shard, bucket: &Bucket) -> Option<Need> {
    let (crossing, lost, region) = (bucket.crossing.as_ref()?, bucket.lost()?, own.region());
    let (source, most) = crossing.most_of_the_lost(own.id(), &bucket.meeting())?;
    let lacks = own.epoch(bucket.id) == bucket.epoch && own.positions(bucket.id).of(lost) < most;
    let need = Need { bucket: bucket.id, source, claim: Claim::ActiveActive, reason: RepairReason::Asked };
    (lacks && bucket.meeting().contains(&region)).then_some(need)
}

/// Whether the bucket's epoch has not begun in a replica. It may be about to: only one that stays so is stuck.
pub fn lags_behind_its_epoch(own: &Shard, bucket: &Bucket) -> bool {
    let follows = bucket.primary.is_some_and(|primary| primary != own.region()) && bucket.reaches(own.region());
    follows && bucket.phase == Phase::Steady && own.epoch(bucket.id) < bucket.epoch && !own.is_dropped(bucket.id)
}

/// Whether the fence here keeps out what the bucket's primary begins its epoch with: it was lost with a tail that had reached nobody, and
/// was chosen again, or never replaced, before it gave that up. Then nothing is worth waiting for (LIVE).
fn is_cut_off(own: &Shard, bucket: &Bucket) -> bool {
    lags_behind_its_epoch(own, bucket) && bucket.primary.is_some_and(|primary| own.has_kept_out(bucket.id, primary))
}

/// What must be repaired before the lane from `source`, whose survey this is, may go on behind it.
pub fn missed<'a>(
    own: &'a Shard,
    source: RegionId,
    lane: Lane,
    survey: &'a Survey,
    bucket_of: impl Fn(BucketId) -> Option<&'a Bucket> + 'a,
) -> impl Iterator<Item = Need> + 'a {
    survey.missed_by(source, own).filter_map(move |id| {
        let bucket = bucket_of(id).filter(|bucket| bucket.travels_in(lane) && !own.is_dropped(id))?;
        match bucket.primary {
            // Here it lacks nothing: what the source has of it beyond this is its own, lost tail.
            Some(primary) if primary == own.region() => None,
            // Nor here, in an epoch that has begun without the source.
            Some(primary) if primary != source && has_what_counts(own, bucket, survey) => None,
            Some(_) => need(own, bucket, RepairReason::BehindLog),
            None if !bucket.reaches(own.region()) => None,
            None if is_unfilled(own, bucket) => {
                Some(Need { bucket: id, source, claim: Claim::Replica, reason: RepairReason::Joining })
            }
            None => Some(Need { bucket: id, source, claim: Claim::ActiveActive, reason: RepairReason::BehindLog }),
        }
    })
}

/// Whether a survey tells, of a bucket that every region writes, of more than will ever come from there: its source is in an epoch that has
/// ended here, or is given up for lost. What it has besides is a tail that it gives up once it hears of that, and nobody can be made equal to
/// it until then. So its lane waits and it is asked again, and no other lane waits for it (LIVE, SWI-3). Its lane does not simply go on:
/// the source, which may not know yet, would take that for a copy (DUR-2).
pub fn is_overtaken<'a>(
    own: &Shard,
    (source, lane): (RegionId, Lane),
    survey: &Survey,
    bucket_of: impl Fn(BucketId) -> Option<&'a Bucket>,
) -> bool {
    let has_ended = |id: BucketId| survey.buckets.get(&id).is_some_and(|seen| seen.epoch < own.epoch(id));
    survey.missed_by(source, own).any(|id| {
        let bucket = bucket_of(id).filter(|bucket| bucket.primary.is_none() && bucket.travels_in(lane));
        let held = bucket.filter(|bucket| bucket.reaches(own.region()) && !own.is_dropped(id));
        held.is_some_and(|bucket| bucket.lost() == Some(source) || has_ended(id))
    })
}

/// Whether the survey of `source` tells of a bucket, of an epoch, or of who orders in one, that this node has not heard of: what a lane skips
/// of that can't be known yet.
pub fn is_ahead(own: &Shard, source: RegionId, survey: &Survey, topology: &Topology) -> bool {
    survey.buckets.iter().any(|(id, seen)| match topology.buckets.get(id) {
        Some(bucket) => seen.epoch > bucket.epoch || is_the_next(own, source, bucket, seen),
        None => *id > topology.last_bucket,
    })
}

/// Whether the source orders in an epoch of which it is only known here that it has no primary yet: what it has of its own is no tail of a
/// lost primary then, as [`missed`] takes it for, but the beginning of that epoch.
fn is_the_next(own: &Shard, source: RegionId, bucket: &Bucket, seen: &Sighting) -> bool {
    let has_begun = bucket.is_between_primaries() && seen.epoch == bucket.epoch;
    has_begun && bucket.reaches(own.region()) && seen.positions.of(source) > own.positions(bucket.id).of(source)
}

/// Whether the bucket's epoch has begun here and none after it at the source: what that has of its own besides is of epochs before, and its
/// lost tail. A repair brings nothing of it, and waiting for it would never end (LIVE).
fn has_what_counts(own: &Shard, bucket: &Bucket, survey: &Survey) -> bool {
    let here = own.epoch(bucket.id);
    here == bucket.epoch && survey.buckets.get(&bucket.id).is_some_and(|seen| seen.epoch <= here)
}

impl Need {
    /// Why it must wait, by what was seen of its source, if it must: known before anything is closed for it.
    pub fn objection(&self, own: &Shard, bucket: &Bucket, seen: &Sighting) -> Option<String> {
        // Of active-active replicas that differ the first one is right, whoever it is: else two would take each other's rows.
        let first = bucket.regions.first() == Some(&own.region());
        if self.claim == Claim::ActiveActive && self.reason == RepairReason::Diverged && first && seen.diverged {
            return Some("the other region is made equal to this one first".to_owned());
        }
        if self.reason == RepairReason::Stuck && seen.epoch <= own.epoch(self.bucket) {
            return Some("the epoch has not begun at the source either".to_owned());
        }
        if seen.epoch < bucket.joins.since(own.region()) {
            return Some("the epoch in which this region joins has not begun at the source".to_owned());
        }
        seen.objection(own, self.bucket, self.claim)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use meridian_types::entry::{Body, Header, Kind};
    use meridian_types::{
        BucketName, Crossing, Epoch, Hlc, Loss, Lsn, PlanId, Policy, Positions, RepairStep, RequestId, ShardId, Way,
    };

    use super::*;
    use crate::view::{MemoryState, Mutations};

    const US: RegionId = RegionId(1);
    const EU: RegionId = RegionId(2);
    const AP: RegionId = RegionId(3);
    const ID: BucketId = BucketId(1);

    fn bucket(primary: Option<RegionId>) -> Bucket {
        Bucket {
            id: ID,
            name: BucketName::new("b").unwrap(),
            policy: if primary.is_some() { Policy::ASYNC } else { Policy::ActiveActive },
            epoch: Epoch(1),
            phase: Phase::Steady,
            primary,
            regions: vec![US, EU, AP],
            labels: BTreeMap::new(),
            created: Hlc(0),
            standing: Default::default(),
            auto: Default::default(),
            turns: Default::default(),
            joins: Default::default(),
            crossing: None,
        }
    }

    fn shard() -> Shard {
        Shard::load(&MemoryState::default(), EU, ShardId(0)).unwrap()
    }

    fn apply(shard: &mut Shard, kind: Kind, body: &Body) {
        let header = Header {
            kind,
            origin: EU,
            bucket: ID,
            epoch: Epoch(1),
            hlc: Hlc(1),
            id: RequestId::default(),
            lowest_outstanding: 0,
        };
        shard.apply(&MemoryState::default(), Lsn(1), &header.encode(body), &mut Mutations::new()).unwrap();
    }

    fn begin(shard: &mut Shard, source: RegionId) {
        apply(shard, Kind::Repair, &Body::Repair(RepairStep::Begin { source }));
    }

    fn seen(lsn: u64) -> Sighting {
        let positions = Positions([(US, Lsn(lsn))].into());
        Sighting { positions, epoch: Epoch(1), ..Sighting::default() }
    }

    #[test]
    fn a_replica_that_is_as_it_should_be_wants_nothing() {
        assert_eq!(want(&shard(), &bucket(Some(US))), None);
    }

    #[test]
    fn an_interrupted_repair_goes_on_from_the_primary_and_from_the_other_replica_while_that_is_lost() {
        let mut own = shard();
        begin(&mut own, AP);
        let reason = RepairReason::Interrupted;
        let from = |source, claim| Some(Want::Repair(Need { bucket: ID, source, claim, reason }));
        assert_eq!(want(&own, &bucket(Some(US))), from(US, Claim::Primary));
        let lost = Bucket { phase: Phase::Fencing { plan: PlanId(1), to: EU }, ..bucket(Some(US)) };
        assert_eq!(want(&own, &lost), from(AP, Claim::Replica));
        assert_eq!(want(&own, &bucket(Some(EU))), from(AP, Claim::Replica), "nobody else is right");
        assert_eq!(want(&own, &Bucket { regions: vec![US, AP], ..bucket(Some(US)) }), None, "it is not here any more");
    }

    #[test]
    fn what_a_lane_skipped_is_repaired_from_the_primary_and_never_in_the_primary_s_own_region() {
        let own = shard();
        let survey = Survey { applied: Lsn(9), buckets: [(ID, seen(5))].into() };
        let missed = |bucket: &Bucket| missed(&own, US, Lane::Async, &survey, |_| Some(bucket)).collect::<Vec<_>>();
        let need = |source, claim| Need { bucket: ID, source, claim, reason: RepairReason::BehindLog };
        assert_eq!(missed(&bucket(Some(US))), [need(US, Claim::Primary)]);
        let next = Bucket { epoch: Epoch(2), ..bucket(Some(AP)) };
        assert_eq!(missed(&next), [need(AP, Claim::Primary)], "from its primary, whoever's lane it is");
        assert_eq!(missed(&bucket(Some(AP))), [], "once its epoch has begun, the rest is a lost primary's tail");
        assert_eq!(missed(&bucket(Some(EU))), [], "the tail of a primary that was lost is no part of the history");
        assert_eq!(missed(&bucket(None)), [need(US, Claim::ActiveActive)]);
        assert_eq!(missed(&Bucket { regions: vec![US, AP], ..bucket(None) }), []);
    }

    fn survey(epoch: u64, lsn: u64) -> Survey {
        Survey { applied: Lsn(9), buckets: [(ID, Sighting { epoch: Epoch(epoch), ..seen(lsn) })].into() }
    }

    fn knowing(bucket: Bucket) -> Topology {
        Topology { buckets: [(ID, bucket.into())].into(), last_bucket: ID, ..Topology::default() }
    }

    #[test]
    fn a_survey_is_ahead_of_who_has_not_heard_of_all_its_buckets_and_epochs() {
        let is_ahead = |epoch, topology: &Topology| is_ahead(&shard(), US, &survey(epoch, 5), topology);
        let knows = knowing(bucket(None));
        assert!(!is_ahead(1, &knows));
        assert!(is_ahead(2, &knows), "the epoch");
        assert!(is_ahead(1, &Topology::default()), "the bucket");
        assert!(!is_ahead(1, &Topology { last_bucket: ID, ..Topology::default() }), "it was deleted");
    }

    /// Found by seed 4006: the lost primary was back, and its successor had begun before that had heard of it.
    #[test]
    fn a_survey_is_ahead_of_who_has_not_heard_whose_epoch_has_begun_there() {
        let own = shard();
        let is_ahead = |survey: &Survey, bucket: &Bucket| is_ahead(&own, US, survey, &knowing(bucket.clone()));
        let missed = |survey: &Survey, bucket: &Bucket| missed(&own, US, Lane::Async, survey, |_| Some(bucket)).count();
        let next = |primary, phase| Bucket { epoch: Epoch(2), phase, ..bucket(Some(primary)) };
        let lost = next(EU, Phase::Fencing { plan: PlanId(1), to: US });
        assert_eq!(missed(&survey(2, 5), &lost), 0);
        assert!(is_ahead(&survey(2, 5), &lost), "the epoch is that of the source");
        assert!(is_ahead(&survey(2, 5), &next(AP, Phase::Draining { plan: PlanId(1), to: US })));
        assert!(!is_ahead(&survey(1, 5), &lost), "it has begun nowhere there: a tail");
        assert!(!is_ahead(&survey(2, 0), &lost), "there is no more than here");
        assert!(!is_ahead(&survey(2, 5), &Bucket { regions: vec![US, AP], ..lost }), "nothing of it belongs here");
        let heard = next(US, Phase::Steady);
        assert!(!is_ahead(&survey(2, 5), &heard) && missed(&survey(2, 5), &heard) == 1);
    }

    /// Found by seed 4332: the survey was of before the lost region had given up its tail, and every lane of the shard waited for that.
    #[test]
    fn where_every_region_writes_nobody_waits_for_the_tail_of_one_that_they_went_on_without() {
        let mut own = shard();
        let survey = Survey { applied: Lsn(9), buckets: [(ID, seen(5))].into() };
        let overtaken = |own: &Shard, bucket: &Bucket| is_overtaken(own, (US, Lane::Async), &survey, |_| Some(bucket));
        let writes = bucket(None);
        let losing = |region| {
            let (stopped, remains) = (BTreeMap::new(), BTreeMap::new());
            let way = Way::Losing { region, accepted: Loss::default(), stopped, remains };
            let crossing = Crossing { index: 7, at: Hlc(0), pause_ms_max: 1000, way, arrived: BTreeMap::new() };
            Bucket { crossing: Some(crossing), ..writes.clone() }
        };
        assert!(!overtaken(&own, &writes), "it is fetched from there");
        assert!(!overtaken(&own, &losing(AP)));
        assert!(overtaken(&own, &losing(US)), "it may have gone for ever");
        apply(&mut own, Kind::Seal, &Body::Seal { next: Epoch(2), after: Positions::default() });
        assert!(overtaken(&own, &Bucket { epoch: Epoch(2), regions: vec![EU, AP], ..writes.clone() }));
        assert!(overtaken(&own, &Bucket { epoch: Epoch(2), ..writes.clone() }), "it is in again, and has not said so");
        assert!(!overtaken(&own, &Bucket { epoch: Epoch(2), ..bucket(Some(AP)) }), "a primary tells what counts");
        let known = Survey { buckets: [(ID, seen(0))].into(), ..survey.clone() };
        assert!(!is_overtaken(&own, (US, Lane::Async), &known, |_| Some(&writes)), "it has given up its tail");
        assert!(!is_overtaken(&own, (US, Lane::Sync), &survey, |_| Some(&writes)), "it is none of this lane's");
    }

    #[test]
    fn a_successor_fetches_from_whoever_ranks_highest_and_nothing_when_that_is_itself() {
        let own = shard();
        let lost = Bucket { phase: Phase::Pulling { plan: PlanId(1), to: EU }, ..bucket(Some(US)) };
        let source = |others: &[(RegionId, Sighting)]| {
            pull(&own, &lost, others.iter().map(|(region, seen)| (*region, seen))).map(|need| (need.source, need.claim))
        };
        let later = Sighting { epoch: Epoch(2), ..seen(3) };
        assert_eq!(source(&[(AP, seen(0))]), None);
        assert_eq!(source(&[(US, seen(9))]), None, "the lost one is not asked");
        assert_eq!(source(&[(AP, seen(5)), (RegionId(4), later)]), Some((RegionId(4), Claim::Replica)));
        assert_eq!(
            source(&[(AP, seen(5)), (RegionId(4), Sighting { diverged: true, ..seen(9) })]),
            Some((AP, Claim::Replica))
        );
    }

    #[test]
    fn of_two_active_active_replicas_that_differ_the_first_waits_for_the_other() {
        let own = Shard::load(&MemoryState::default(), US, ShardId(0)).unwrap();
        let bucket = bucket(None);
        let need = need(&own, &bucket, RepairReason::Diverged).unwrap();
        assert_eq!((need.source, need.claim), (EU, Claim::ActiveActive));
        let other = Sighting { diverged: true, ..seen(0) };
        assert!(need.objection(&own, &bucket, &other).is_some());
        assert_eq!(need.objection(&own, &bucket, &seen(0)), None);
    }

    #[test]
    fn a_replica_is_stuck_only_while_its_primary_has_what_it_lacks() {
        let own = shard();
        let later = Bucket { epoch: Epoch(3), ..bucket(Some(US)) };
        assert!(lags_behind_its_epoch(&own, &later) && !lags_behind_its_epoch(&own, &bucket(Some(US))));
        let need = need(&own, &later, RepairReason::Stuck).unwrap();
        assert!(need.objection(&own, &later, &seen(9)).is_some());
        assert_eq!(need.objection(&own, &later, &Sighting { epoch: Epoch(3), ..seen(9) }), None);
    }
}
