//! What a node has to do, and to say, while a bucket goes from one writing region to all of them, or back
//! (docs/adr/2026-11-28-active-active-changes.md), or to other writing regions (docs/adr/2026-11-28-active-active-region-sets.md), or
//! loses one (docs/adr/2026-11-28-active-active-lost-regions.md).
//!
//! ```text
//!              in every region of the bucket
//! opening      its new epoch is in force? say what there is       (that its primary seals is `handover.rs`)
//! closing,     stop; say where; everything that the others stopped at? say what there is
//!  regrouping
//! losing       part from the lost one; say where, and how far its log is here; everything that the others stopped at, and the most that any
//!              has of the lost one? say what there is          (that the rest of it is fetched is `repair/need.rs`)
//! otherwise    stopped in an active-active bucket? go on: it was given up
//! any time     stopped in the epoch before the one on record? begin that
//! joining      filled? say so
//! ```
//! Every node speaks for the shards it leads, until what it says is on record.
//!
//! Deliberately not here: when the bucket is on the other side; that is for the metadata plane, which hears from every region.

use std::collections::{BTreeMap, BTreeSet};

use meridian_types::{
    Bucket, BucketId, Copies, Crossing, Epoch, Exposure, Lsn, Positions, RegionId, Remains, Seal, SetHash, ShardId,
    StandingWord, Way,
};

use crate::meta::Stop;

/// How long after it was said the same is said again, in milliseconds: it may not have arrived, and writes wait for it.
const AGAIN_MS: u64 = 200;

/// What a node sees of a bucket in a shard that it leads, at one moment of the state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrossSight {
    /// The shard.
    pub shard: ShardId,
    /// The epoch in force in it.
    pub epoch: Epoch,
    /// Whether it has stopped, or gone on since.
    pub stop: Option<Stop>,
    /// The region that is given up for lost in it.
    pub parted: Option<RegionId>,
    /// What the region that the bucket is losing had said it lacks.
    pub exposure: Option<Exposure>,
    /// What it has of every region.
    pub positions: Positions,
    /// The digest of that.
    pub hash: SetHash,
    /// Live keys in it.
    pub keys: u64,
    /// Whether it is on a history that counts: neither being repaired nor in need of it.
    pub whole: bool,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CrossDuty {
    /// To put into the log of a shard that this region stops, or goes on.
    Stop {
        /// The shard.
        shard: ShardId,
        /// The epoch in force.
        epoch: Epoch,
        /// The crossing; or the metadata index of the copy that shows none.
        index: u64,
        /// Whether it stops.
        stops: bool,
    },
    /// To put into the log of a shard that this region stops, and takes in nothing more of a lost one.
    Part {
        /// The shard.
        shard: ShardId,
        /// The epoch in force.
        epoch: Epoch,
        /// The crossing.
        index: u64,
        /// The lost region.
        from: RegionId,
    },
    /// To put into the log of a shard that the next epoch begins: this region had arrived, and all others had.
    Raise {
        /// The shard.
        shard: ShardId,
        /// The epoch that ends.
        epoch: Epoch,
        /// The crossing.
        index: u64,
        /// The epoch that begins.
        next: Epoch,
        /// What the shard has of the one that ends.
        after: Positions,
    },
    /// To tell the metadata plane.
    Tell(StandingWord),
}

/// Remembers what was said last.
#[derive(Clone, Debug, Default)]
pub struct Crossings {
    said: BTreeMap<BucketId, (u64, Vec<StandingWord>)>,
}

impl Crossings {
    /// Looks at a bucket, as it is on record at metadata index `index`, through the shards that this node leads. `now_ms` is its
    /// monotonic clock.
    pub fn look(
        &mut self,
        now_ms: u64,
        (region, index): (RegionId, u64),
        bucket: &Bucket,
        sights: &[CrossSight],
    ) -> Vec<CrossDuty> {
        let mut duties = raises(bucket, region, sights);
        let Some(crossing) = &bucket.crossing else {
            duties.extend(going_on(bucket, index, sights));
            duties.extend(self.say(now_ms, bucket, filled(bucket, region, sights)));
            return duties;
        };
        let mut words = Vec::new();
        if let Some(lost) = crossing.way.lost().filter(|lost| *lost != region) {
            let open = sights.iter().filter(|it| it.epoch == bucket.epoch && !has_parted(it, crossing));
            let index = crossing.index;
            duties.extend(open.map(|it| CrossDuty::Part { shard: it.shard, epoch: it.epoch, index, from: lost }));
            words.extend(parted(bucket, crossing, (region, lost), sights));
        } else if let Some(stopped) = crossing.way.stopped() {
            duties.extend(stops(bucket, crossing, sights));
            let known = stopped.get(&region);
            let new = sights.iter().filter(|it| has_stopped(it, crossing) && !has(known, it.shard));
            let at: BTreeMap<ShardId, Lsn> = new.map(|it| (it.shard, it.positions.of(region))).collect();
            // A lost region that is there after all stops, and is not heard.
            if !at.is_empty() && crossing.way.lost().is_none() {
                words.push(word(bucket, Copies::Stopped { crossing: crossing.index, at }));
            }
        }
        let known = crossing.arrived.get(&region);
        let new = sights.iter().filter(|it| has_arrived(bucket, crossing, it) && !has(known, it.shard));
        let at: BTreeMap<ShardId, Seal> = new.map(|it| (it.shard, seal(bucket, crossing, it))).collect();
        if !at.is_empty() {
            words.push(word(bucket, Copies::Arrived { crossing: crossing.index, at }));
        }
        duties.extend(self.say(now_ms, bucket, words));
        duties
    }

    /// What was said a moment ago is on its way.
    fn say(&mut self, now_ms: u64, bucket: &Bucket, words: Vec<StandingWord>) -> Vec<CrossDuty> {
        if words.is_empty() {
            self.said.remove(&bucket.id);
            return Vec::new();
        }
        if self.said.get(&bucket.id).is_some_and(|(at, last)| *last == words && now_ms < at + AGAIN_MS) {
            return Vec::new();
        }
        self.said.insert(bucket.id, (now_ms, words.clone()));
        words.into_iter().map(CrossDuty::Tell).collect()
    }

    /// Forgets buckets that are gone.
    pub fn keep(&mut self, of: impl Fn(BucketId) -> bool) {
        self.said.retain(|bucket, _| of(*bucket));
    }
}

/// A crossing that was given up leaves its stops behind. By the index of the copy that shows none: a later one stays.
fn going_on(bucket: &Bucket, index: u64, sights: &[CrossSight]) -> Vec<CrossDuty> {
    let stopped = |it: &&CrossSight| bucket.primary.is_none() && it.stop.is_some_and(|stop| stop.stopped);
    let here = sights.iter().filter(|it| it.epoch == bucket.epoch).filter(stopped);
    here.map(|it| CrossDuty::Stop { shard: it.shard, epoch: it.epoch, index, stops: false }).collect()
}

/// Where the epoch on record is the one after the shard's, all regions had arrived, and the shard is as it was then: nothing is ordered
/// behind its stop, and no copy of before could make it go on. One that joins may have stopped without having arrived, long ago.
fn raises(bucket: &Bucket, region: RegionId, sights: &[CrossSight]) -> Vec<CrossDuty> {
    let raise = |it: &CrossSight| {
        let stop = it.stop.filter(|stop| stop.stopped)?;
        let begins = Epoch(it.epoch.0 + 1) == bucket.epoch && it.whole;
        let (shard, epoch, index, next, after) = (it.shard, it.epoch, stop.index, bucket.epoch, it.positions.clone());
        begins.then_some(CrossDuty::Raise { shard, epoch, index, next, after })
    };
    let writes = bucket.primary.is_none() && bucket.is_in(region);
    if writes { sights.iter().filter_map(raise).collect() } else { Vec::new() }
}

/// What the metadata plane has not heard yet of this region, if it joins a bucket that every region writes.
fn filled(bucket: &Bucket, region: RegionId, sights: &[CrossSight]) -> Vec<StandingWord> {
    let joining = bucket.joins.now.as_ref().filter(|it| it.region == region && bucket.primary.is_none());
    let Some(joining) = joining else { return Vec::new() };
    let is_new = |it: &&CrossSight| it.whole && it.epoch == bucket.epoch && !joining.filled.contains(&it.shard);
    let shards: BTreeSet<ShardId> = sights.iter().filter(is_new).map(|it| it.shard).collect();
    if shards.is_empty() { Vec::new() } else { vec![word(bucket, Copies::Filled { region, shards })] }
}

fn stops(bucket: &Bucket, crossing: &Crossing, sights: &[CrossSight]) -> impl Iterator<Item = CrossDuty> {
    let open = sights.iter().filter(|it| it.epoch == bucket.epoch && !has_stopped(it, crossing));
    let index = crossing.index;
    open.map(move |it| CrossDuty::Stop { shard: it.shard, epoch: it.epoch, index, stops: true })
}

/// For this crossing: one that stopped for an earlier one may go on again by a word that is on its way.
fn has_stopped(sight: &CrossSight, crossing: &Crossing) -> bool {
    sight.stop.is_some_and(|stop| stop.stopped && stop.index == crossing.index)
}

/// Whether it has stopped for this crossing, and takes in nothing more of the region that the crossing is about.
fn has_parted(sight: &CrossSight, crossing: &Crossing) -> bool {
    has_stopped(sight, crossing) && sight.parted == crossing.way.lost()
}

/// What the metadata plane has not heard yet of what this region has of a lost one. It stands still: a repair that was under way ends
/// before anything is said.
fn parted(
    bucket: &Bucket,
    crossing: &Crossing,
    (region, lost): (RegionId, RegionId),
    sights: &[CrossSight],
) -> Option<StandingWord> {
    let known = crossing.way.stopped().and_then(|stopped| stopped.get(&region));
    let new = sights
        .iter()
        .filter(|it| it.epoch == bucket.epoch && it.whole && has_parted(it, crossing) && !has(known, it.shard));
    let remains = |it: &CrossSight| {
        let seal = Seal { lsn: it.positions.of(lost), hash: it.hash, keys: it.keys };
        Remains { epoch: it.epoch, seal, exposure: it.exposure, whole: it.whole }
    };
    let at: BTreeMap<_, _> = new.map(|it| (it.shard, (it.positions.of(region), remains(it)))).collect();
    (!at.is_empty()).then(|| word(bucket, Copies::Parted { crossing: crossing.index, at }))
}

fn has_arrived(bucket: &Bucket, crossing: &Crossing, sight: &CrossSight) -> bool {
    let there = match &crossing.way {
        Way::Opening => true,
        Way::Closing { .. } | Way::Regrouping { .. } => crossing
            .stopped_at(sight.shard, &bucket.meeting())
            .is_some_and(|stopped| has_stopped(sight, crossing) && sight.positions.covers(&Positions(stopped))),
        Way::Losing { region: lost, .. } => {
            let meeting = bucket.meeting();
            let most = crossing.most_of_the_lost(sight.shard, &meeting).map(|(_, most)| most);
            let stopped = crossing.stopped_at(sight.shard, &meeting);
            let covers = stopped.is_some_and(|stopped| sight.positions.covers(&Positions(stopped)));
            covers && has_parted(sight, crossing) && Some(sight.positions.of(*lost)) == most
        }
    };
    there && sight.whole && sight.epoch == bucket.epoch
}

fn seal(bucket: &Bucket, crossing: &Crossing, sight: &CrossSight) -> Seal {
    let primary = match &crossing.way {
        Way::Opening => bucket.primary.unwrap_or_default(),
        Way::Closing { primary, .. } => *primary,
        Way::Losing { region, .. } => *region,
        // Any one will do: all have the same of it.
        Way::Regrouping { .. } => bucket.regions.first().copied().unwrap_or_default(),
    };
    Seal { lsn: sight.positions.of(primary), hash: sight.hash, keys: sight.keys }
}

fn has<T>(known: Option<&BTreeMap<ShardId, T>>, shard: ShardId) -> bool {
    known.is_some_and(|known| known.contains_key(&shard))
}

fn word(bucket: &Bucket, copies: Copies) -> StandingWord {
    StandingWord { bucket: bucket.id, epoch: bucket.epoch, since: bucket.standing.since(), copies }
}

#[cfg(test)]
mod tests {
    use meridian_types::{BucketName, Hlc, Joining, Phase, Policy, Regroup};

    use super::*;

    const A: RegionId = RegionId(1);
    const B: RegionId = RegionId(2);

    fn bucket(crossing: Option<Crossing>, primary: Option<RegionId>, epoch: u64) -> Bucket {
        Bucket {
            id: BucketId(1),
            name: BucketName::new("b").unwrap(),
            policy: if primary.is_some() { Policy::ASYNC } else { Policy::ActiveActive },
            epoch: Epoch(epoch),
            phase: Phase::Steady,
            primary,
            regions: vec![A, B],
            labels: BTreeMap::new(),
            created: Hlc(0),
            standing: Default::default(),
            auto: Default::default(),
            turns: Default::default(),
            joins: Default::default(),
            crossing,
        }
    }

    fn crossing(way: Way) -> Option<Crossing> {
        Some(Crossing { index: 7, at: Hlc(0), pause_ms_max: 1000, way, arrived: BTreeMap::new() })
    }

    fn closing(stopped: &[(RegionId, u64)]) -> Option<Crossing> {
        let stopped = stopped.iter().map(|(region, lsn)| (*region, [(ShardId(0), Lsn(*lsn))].into())).collect();
        crossing(Way::Closing { policy: Policy::ASYNC, primary: A, stopped })
    }

    fn sight(epoch: u64, stopped: Option<u64>, at: &[(RegionId, u64)]) -> CrossSight {
        CrossSight {
            shard: ShardId(0),
            epoch: Epoch(epoch),
            stop: stopped.map(|index| Stop { index, at: Lsn(1), stopped: true }),
            parted: None,
            exposure: None,
            positions: Positions(at.iter().map(|(region, lsn)| (*region, Lsn(*lsn))).collect()),
            hash: SetHash(5),
            keys: 3,
            whole: true,
        }
    }

    fn told(duties: &[CrossDuty]) -> Vec<Copies> {
        let told = |duty: &CrossDuty| match duty {
            CrossDuty::Tell(word) => Some(word.copies.clone()),
            CrossDuty::Stop { .. } | CrossDuty::Part { .. } | CrossDuty::Raise { .. } => None,
        };
        duties.iter().filter_map(told).collect()
    }

    #[test]
    fn a_region_says_what_it_has_once_the_epoch_that_opens_is_in_force() {
        let mut crossings = Crossings::default();
        let opening = bucket(crossing(Way::Opening), Some(A), 5);
        assert_eq!(crossings.look(0, (B, 9), &opening, &[sight(4, None, &[(A, 8)])]), []);
        let astray = CrossSight { whole: false, ..sight(5, None, &[(A, 9)]) };
        assert_eq!(crossings.look(1, (B, 9), &opening, &[astray]), []);
        let seal = Seal { lsn: Lsn(9), hash: SetHash(5), keys: 3 };
        let arrived = Copies::Arrived { crossing: 7, at: [(ShardId(0), seal)].into() };
        let sights = [sight(5, None, &[(A, 9)])];
        assert_eq!(told(&crossings.look(2, (B, 9), &opening, &sights)), std::slice::from_ref(&arrived));
        assert_eq!(crossings.look(3, (B, 9), &opening, &sights), [], "it is on its way");
        assert_eq!(told(&crossings.look(300, (B, 9), &opening, &sights)), [arrived], "it may not have arrived");
        let mut known = opening;
        if let Some(crossing) = &mut known.crossing {
            crossing.arrived.insert(B, [(ShardId(0), seal)].into());
        }
        assert_eq!(crossings.look(600, (B, 9), &known, &sights), []);
    }

    #[test]
    fn a_region_stops_and_has_arrived_only_with_what_all_the_others_stopped_at() {
        let mut crossings = Crossings::default();
        let duties = crossings.look(0, (B, 9), &bucket(closing(&[]), None, 4), &[sight(4, Some(2), &[(B, 3)])]);
        let stop = CrossDuty::Stop { shard: ShardId(0), epoch: Epoch(4), index: 7, stops: true };
        assert_eq!(duties, [stop], "a stop of an earlier crossing is none");
        let stopped = [sight(4, Some(7), &[(A, 4), (B, 3)])];
        let at = Copies::Stopped { crossing: 7, at: [(ShardId(0), Lsn(3))].into() };
        assert_eq!(told(&crossings.look(1, (B, 9), &bucket(closing(&[]), None, 4), &stopped)), [at]);
        let known = bucket(closing(&[(A, 5), (B, 3)]), None, 4);
        assert_eq!(told(&crossings.look(2, (B, 9), &known, &stopped)), [], "something of the other is on its way");
        let whole = [sight(4, Some(7), &[(A, 5), (B, 3)])];
        assert!(matches!(told(&crossings.look(3, (B, 9), &known, &whole))[..], [Copies::Arrived { .. }]));
    }

    #[test]
    fn where_all_have_met_for_other_regions_each_begins_the_next_epoch_and_one_that_joins_does_not() {
        let mut crossings = Crossings::default();
        let sights = [sight(4, Some(7), &[(A, 4), (B, 3)])];
        let after = sights[0].positions.clone();
        let raise = CrossDuty::Raise { shard: ShardId(0), epoch: Epoch(4), index: 7, next: Epoch(5), after };
        let next = bucket(None, None, 5);
        assert_eq!(crossings.look(0, (B, 9), &next, &sights), std::slice::from_ref(&raise));
        let way = Way::Regrouping { region: A, change: Regroup::Leave, stopped: BTreeMap::new() };
        let later = crossing(way).map(|it| Crossing { index: 8, ..it });
        let again = Bucket { crossing: later, ..bucket(None, None, 5) };
        assert_eq!(crossings.look(0, (B, 9), &again, &sights), [raise], "before it stops in that one");
        let astray = [CrossSight { whole: false, ..sights[0].clone() }];
        assert_eq!(crossings.look(0, (B, 9), &next, &astray), []);
        assert_eq!(crossings.look(0, (B, 9), &bucket(None, None, 6), &sights), [], "it was not there when all met");
        let others = Bucket { regions: vec![A], ..bucket(None, None, 5) };
        assert_eq!(crossings.look(0, (B, 9), &others, &sights), []);
    }

    #[test]
    fn a_region_that_joins_says_in_which_shards_it_is_filled_and_meets_with_the_others() {
        let mut crossings = Crossings::default();
        let mut joins = Bucket { regions: vec![A], ..bucket(None, None, 5) };
        let (under, filled) = (Epoch(5), [ShardId(1)].into());
        joins.joins.now = Some(Joining { region: B, at: Hlc(0), under, filled, pause_ms_max: 1000 });
        assert_eq!(crossings.look(0, (B, 9), &joins, &[sight(4, None, &[])]), []);
        let filled = Copies::Filled { region: B, shards: [ShardId(0)].into() };
        assert_eq!(told(&crossings.look(1, (B, 9), &joins, &[sight(5, None, &[])])), [filled]);
        assert_eq!(crossings.look(2, (A, 9), &joins, &[sight(5, None, &[])]), [], "it speaks for itself");
        let stopped = [(A, [(ShardId(0), Lsn(5))].into())].into();
        joins.crossing = crossing(Way::Regrouping { region: B, change: Regroup::Count, stopped });
        let here = [sight(5, Some(7), &[(A, 5)])];
        assert!(matches!(told(&crossings.look(3, (B, 9), &joins, &here))[..], [Copies::Stopped { .. }]));
        if let Some(stopped) = joins.crossing.as_mut().and_then(|it| it.way.stopped_mut()) {
            stopped.insert(B, [(ShardId(0), Lsn(0))].into());
        }
        assert!(matches!(told(&crossings.look(4, (B, 9), &joins, &here))[..], [Copies::Arrived { .. }]));
    }

    #[test]
    fn what_was_given_up_goes_on_and_a_bucket_with_a_primary_does_not() {
        let mut crossings = Crossings::default();
        let sights = [sight(4, Some(7), &[])];
        let goes_on = CrossDuty::Stop { shard: ShardId(0), epoch: Epoch(4), index: 9, stops: false };
        assert_eq!(crossings.look(0, (B, 9), &bucket(None, None, 4), &sights), [goes_on]);
        assert_eq!(crossings.look(0, (B, 9), &bucket(None, Some(A), 5), &sights), [], "the seal is on its way");
    }
}
