//! The regions of an active-active bucket change while all of them write (docs/adr/2026-11-28-active-active-region-sets.md): over random
//! writes, removals, changes that end and that are given up, copies of the metadata that have not heard, late and repeated frames,
//! drops by those who are behind, fillings that are cut off, and restarts, equal inputs are equal states, whoever writes has all of the earlier
//! epochs, what was acknowledged is there and counts once, and what was removed stays so (ORD-1, ONE-1, CON-4, CON-5). Regions that are given up
//! for lost: `regroup/lose.rs`.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use meridian_region_core::repair::survey::Claim;
use meridian_region_core::{CrossDuty, CrossSight, Crossings, FrameResult, WriteResult, active_active_body};
use meridian_types::entry::{Body, Header, Kind};
use meridian_types::{
    Bucket, BucketName, Copies, Crossing, Epoch, Hlc, Joining, Lane, Lsn, Phase, Policy, Positions, RegionId, Regroup,
    RepairStep, StandingWord, Way, Write,
};
use proptest::prelude::*;

use crate::repair::repair;
use crate::world::{MERGED, Replica, SHARD, id, key, put};

mod lose;

const REGIONS: [RegionId; 3] = [RegionId(1), RegionId(2), RegionId(3)];

#[derive(Clone, Debug)]
enum Step {
    Put(usize),
    /// By a node of the region that has not heard what the others have.
    PutOfThePast(usize),
    /// Of a key that was put in that region.
    Delete(usize, usize),
    Count(usize),
    Remove(usize),
    Add(usize),
    /// Of a crossing; else of a joining.
    GiveUp,
    /// A region hears what is on record.
    Hear(usize),
    /// It does what there is to do, and is heard.
    Act(usize),
    /// The same, but what it puts into its log is on its way.
    Propose(usize),
    /// All that is on its way arrives.
    Land(usize),
    Ship {
        from: usize,
        to: usize,
        entries_max: usize,
        of_the_past: bool,
    },
    Again(usize, usize),
    /// Drops what it has, as it heard, or as one heard who is behind.
    Drop {
        at: usize,
        of_the_past: bool,
    },
    /// Closes what is to be filled.
    Close(usize),
    /// Fills it, from one of the others; cut off once.
    Fill {
        at: usize,
        by: usize,
        crash_at: usize,
    },
    Restart(usize),
    /// The others are to go on without it.
    Lose(usize),
    /// Brings what another one has more of a lost region; cut off once.
    Fetch {
        at: usize,
        crash_at: usize,
    },
    /// One that was given up for lost is there again.
    Return(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let at = 0usize..3;
    prop_oneof![
        8 => at.clone().prop_map(Step::Put),
        4 => at.clone().prop_map(Step::PutOfThePast),
        3 => (at.clone(), any::<prop::sample::Index>()).prop_map(|(at, of)| Step::Delete(at, of.index(1000))),
        5 => at.clone().prop_map(Step::Count),
        3 => at.clone().prop_map(Step::Remove),
        4 => at.clone().prop_map(Step::Add),
        1 => Just(Step::GiveUp),
        10 => at.clone().prop_map(Step::Hear),
        14 => at.clone().prop_map(Step::Act),
        4 => at.clone().prop_map(Step::Propose),
        3 => at.clone().prop_map(Step::Land),
        20 => (at.clone(), 1usize..3, 1usize..6, prop::bool::weighted(0.2))
            .prop_map(|(from, by, entries_max, of_the_past)| Step::Ship { from, to: (from + by) % 3, entries_max, of_the_past }),
        2 => (at.clone(), at.clone()).prop_map(|(from, to)| Step::Again(from, to)),
        4 => (at.clone(), prop::bool::weighted(0.3)).prop_map(|(at, of_the_past)| Step::Drop { at, of_the_past }),
        3 => at.clone().prop_map(Step::Close),
        6 => (at.clone(), 1usize..3, 0usize..12).prop_map(|(at, by, crash_at)| Step::Fill { at, by, crash_at }),
        1 => at.prop_map(Step::Restart),
    ]
}

/// What the metadata plane has on record: as much of it as a change of regions takes.
struct Record {
    bucket: Bucket,
    index: u64,
    /// What each epoch came to.
    ends: BTreeMap<Epoch, Positions>,
    changes: usize,
    /// Who was lost in which epoch, and how much of its log counts.
    losses: Vec<(RegionId, Epoch, Lsn)>,
}

impl Record {
    fn new() -> Record {
        let bucket = Bucket {
            id: MERGED,
            name: BucketName::new("b").unwrap(),
            policy: Policy::ActiveActive,
            epoch: Epoch(1),
            phase: Phase::Steady,
            primary: None,
            regions: REGIONS.to_vec(),
            labels: BTreeMap::new(),
            created: Hlc(0),
            standing: Default::default(),
            auto: Default::default(),
            turns: Default::default(),
            joins: Default::default(),
            crossing: None,
        };
        Record { bucket, index: 1, ends: BTreeMap::new(), changes: 0, losses: Vec::new() }
    }

    fn regroup(&mut self, region: RegionId, change: Regroup) {
        let way = Way::Regrouping { region, change, stopped: BTreeMap::new() };
        let (index, at, pause_ms_max) = (self.index, Hlc(0), 1000);
        self.bucket.crossing = Some(Crossing { index, at, pause_ms_max, way, arrived: BTreeMap::new() });
    }

    fn is_filled(&self) -> bool {
        self.bucket.joins.now.as_ref().is_some_and(|it| !it.filled.is_empty())
    }

    fn add(&mut self, region: RegionId) {
        self.index += 1;
        let joining = self.bucket.joins.joining();
        match self.bucket.crossing {
            Some(_) => {}
            None if joining == Some(region) && self.is_filled() => self.regroup(region, Regroup::Count),
            None if joining.is_none() && !self.bucket.is_in(region) => self.regroup(region, Regroup::Join),
            None => {}
        }
    }

    fn remove(&mut self, region: RegionId) {
        self.index += 1;
        let free = self.bucket.crossing.is_none() && self.bucket.joins.now.is_none();
        if free && self.bucket.is_in(region) && self.bucket.regions.len() > 2 {
            self.regroup(region, Regroup::Leave);
        }
    }

    fn give_up(&mut self) {
        self.index += 1;
        let (crossing, joining) = (self.bucket.crossing.take(), self.bucket.joins.joining());
        if let (None, Some(region)) = (crossing, joining) {
            self.bucket.joins.leave(region, self.bucket.epoch);
        }
    }

    fn hear(&mut self, region: RegionId, word: &StandingWord) {
        self.index += 1;
        let bucket = &mut self.bucket;
        if word.epoch != bucket.epoch {
            return;
        }
        if let (Copies::Filled { shards, .. }, None) = (&word.copies, &bucket.crossing) {
            let joining = bucket.joins.now.as_mut().filter(|it| it.region == region && it.filled.is_empty());
            let Some(joining) = joining else { return };
            joining.filled.extend(shards);
            return self.regroup(region, Regroup::Count);
        }
        if !bucket.meeting().contains(&region) {
            return;
        }
        let Some(crossing) = bucket.crossing.as_mut() else { return };
        lose::hear(crossing, region, &word.copies);
        match (crossing.way.stopped_mut(), &word.copies) {
            (Some(stopped), Copies::Stopped { crossing: index, at }) if *index == crossing.index => {
                stopped.entry(region).or_insert_with(|| at.clone());
            }
            (_, Copies::Arrived { crossing: index, at }) if *index == crossing.index => {
                crossing.arrived.entry(region).or_insert_with(|| at.clone());
            }
            _ => {}
        }
        assert_eq!(crossing.differing(), None, "all regions stand at the same place");
        if bucket.meeting().iter().all(|it| bucket.crossing.as_ref().is_some_and(|at| at.arrived_in(*it) > 0)) {
            self.arrive();
        }
    }

    fn arrive(&mut self) {
        let bucket = &mut self.bucket;
        let meeting = bucket.meeting();
        let Some(Crossing { way, .. }) = bucket.crossing.take() else { return };
        let crossing = Crossing { index: 0, at: Hlc(0), pause_ms_max: 0, way, arrived: BTreeMap::new() };
        let mut stopped = crossing.stopped_at(SHARD, &meeting).unwrap();
        if let (Some(lost), Some((_, most))) = (crossing.way.lost(), crossing.most_of_the_lost(SHARD, &meeting)) {
            stopped.insert(lost, most);
            self.losses.push((lost, bucket.epoch, most));
        }
        self.ends.insert(bucket.epoch, Positions(stopped));
        bucket.epoch.0 += 1;
        let (region, change) = match crossing.way {
            Way::Regrouping { region, change, .. } => (region, change),
            Way::Losing { region, .. } => (region, Regroup::Leave),
            Way::Opening | Way::Closing { .. } => return,
        };
        self.changes += 1;
        match change {
            Regroup::Join => {
                let (under, filled) = (bucket.epoch, BTreeSet::new());
                bucket.joins.since.insert(region, bucket.epoch);
                bucket.joins.now = Some(Joining { region, at: Hlc(0), under, filled, pause_ms_max: 1000 });
            }
            Regroup::Count => {
                bucket.joins.now = None;
                bucket.regions.push(region);
                bucket.regions.sort_unstable();
            }
            Regroup::Leave => {
                bucket.regions.retain(|it| *it != region);
                bucket.joins.leave(region, bucket.epoch);
            }
        }
    }
}

struct Region {
    replica: Replica,
    /// Its copy of what is on record, and the metadata index of that.
    known: (Bucket, u64),
    /// What it was before.
    past: Bucket,
    crossings: Crossings,
    now_ms: u64,
    under_way: Vec<(Kind, Epoch, Body)>,
}

struct World {
    record: Record,
    regions: Vec<Region>,
    sequence: u64,
    /// Each by one region.
    puts: Vec<Made>,
    counts: Vec<Ordered>,
    sent: BTreeMap<(usize, usize), Bytes>,
}

/// Where something was acknowledged.
#[derive(Clone, Copy, Debug)]
struct Ordered {
    region: RegionId,
    epoch: Epoch,
    lsn: Lsn,
}

/// A key that was put, and removed.
#[derive(Debug)]
struct Made {
    at: usize,
    name: String,
    put: Ordered,
    removed: Vec<Ordered>,
}

/// Orders a write as a leader does that knows no better; tells where, if it is acknowledged.
fn order(replica: &mut Replica, known: &Bucket, sequence: u64, write: &Write) -> Option<Ordered> {
    let free = !known.is_between_primaries() && known.accepts_writes_in(replica.region);
    if !free || replica.shard.epoch(MERGED) != known.epoch || replica.shard.is_closed(MERGED) {
        return None;
    }
    let Ok(body) = active_active_body(&replica.state, SHARD, MERGED, write, replica.wall_ms, replica.region) else {
        return None;
    };
    let id = id(7 + u128::from(replica.region.0), sequence);
    let header = Header { epoch: known.epoch, id, ..replica.header(Kind::Write, MERGED) };
    let applied = replica.commit(header.encode(&Body::Write(body)));
    let WriteResult { lsn, outcome, .. } = WriteResult::decode(&applied.result).unwrap();
    outcome.is_ok().then_some(Ordered { region: replica.region, epoch: known.epoch, lsn })
}

/// As `replicator/core/src/routes.rs` judges: what is of an epoch that was not heard of waits, and all behind it.
fn frame_to(source: &mut Replica, known: &Bucket, target: &Replica, entries_max: usize) -> Option<Bytes> {
    let previous = target.shard.watermark(source.region, Lane::Async);
    let to_come = |entry: &[u8]| {
        let header = Header::decode(entry).unwrap();
        header.kind.is_shipped() && header.bucket == MERGED && header.epoch > known.epoch
    };
    let cut = source.log.iter().position(|(lsn, entry, _)| *lsn > previous && to_come(entry));
    let rest = source.log.split_off(cut.unwrap_or(source.log.len()));
    let travels = |header: &Header| header.bucket == MERGED && known.carries(target.region, header.epoch);
    let frame = source.frame_of(previous, Lane::Async, entries_max, &travels);
    source.log.extend(rest);
    frame
}

/// Tells whether it was taken: of a region that was lost, or is being given up for lost, it may not be (FEN-2, DUR-2).
fn deliver(target: &mut Replica, frame: &Bytes) -> bool {
    let (result, applied) = target.receive(frame);
    if matches!(result, FrameResult::Fenced { .. } | FrameResult::Lost { .. }) {
        return false;
    }
    assert!(matches!(result, FrameResult::Applied { .. }), "{result:?}");
    assert!(applied.frame.unwrap().diverged.is_empty());
    true
}

impl World {
    fn new() -> World {
        let record = Record::new();
        let region = |number: u16| Region {
            replica: Replica::new(number),
            known: (record.bucket.clone(), record.index),
            past: record.bucket.clone(),
            crossings: Crossings::default(),
            now_ms: 0,
            under_way: Vec::new(),
        };
        let regions = (1..4).map(region).collect();
        World { record, regions, sequence: 0, puts: Vec::new(), counts: Vec::new(), sent: BTreeMap::new() }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Put(at) => {
                let name = format!("put/{}", self.puts.len());
                if let Some(put) = self.write(*at, &put(&name, "v")) {
                    self.puts.push(Made { at: *at, name, put, removed: Vec::new() });
                }
            }
            Step::PutOfThePast(at) => {
                let region = &mut self.regions[*at];
                let known = std::mem::replace(&mut region.known.0, region.past.clone());
                self.step(&Step::Put(*at));
                self.regions[*at].known.0 = known;
            }
            Step::Delete(at, of) => {
                let own: Vec<usize> = (0..self.puts.len()).filter(|it| self.puts[*it].at == *at).collect();
                let Some(which) = own.get(of % own.len().max(1)).copied() else { return };
                let name = self.puts[which].name.clone();
                let removed = self.write(*at, &Write::Delete { key: key(&name) });
                self.puts[which].removed.extend(removed);
            }
            Step::Count(at) => {
                let counted = self.write(*at, &Write::Increment { key: key("count"), by: 1 });
                self.counts.extend(counted);
            }
            Step::Remove(at) => self.record.remove(REGIONS[*at]),
            Step::Add(at) => self.record.add(REGIONS[*at]),
            Step::GiveUp => self.record.give_up(),
            Step::Hear(at) => {
                let known = (self.record.bucket.clone(), self.record.index);
                let region = &mut self.regions[*at];
                region.past = std::mem::replace(&mut region.known, known).0;
            }
            Step::Act(at) => {
                self.act(*at);
                self.land(*at);
            }
            Step::Propose(at) => self.act(*at),
            Step::Land(at) => self.land(*at),
            Step::Ship { from, to, entries_max, of_the_past } => {
                self.ship(*from, *to, *entries_max, *of_the_past);
            }
            Step::Again(from, to) => {
                if let Some(frame) = self.sent.get(&(*from, *to)).cloned() {
                    self.regions[*to].replica.receive(&frame);
                }
            }
            Step::Drop { at, of_the_past } => self.drop_rows(*at, *of_the_past),
            Step::Close(at) => self.close(*at),
            Step::Fill { at, by, crash_at } => self.fill(*at, (*at + *by) % 3, *crash_at),
            Step::Restart(at) => self.regions[*at].replica.restart(),
            Step::Lose(at) => self.record.lose(REGIONS[*at]),
            Step::Fetch { at, crash_at } => self.fetch(*at, *crash_at),
            Step::Return(at) => self.come_back(*at),
        }
        self.check();
    }

    fn write(&mut self, at: usize, write: &Write) -> Option<Ordered> {
        self.sequence += 1;
        let Region { replica, known: (known, _), .. } = &mut self.regions[at];
        let acknowledged = order(replica, known, self.sequence, write);
        if acknowledged.is_some() {
            let has = replica.shard.positions(MERGED);
            let mut earlier = self.record.ends.range(..known.epoch);
            assert!(earlier.all(|(_, end)| has.covers(end)), "whoever writes has all of the earlier epochs");
        }
        acknowledged
    }

    fn act(&mut self, at: usize) {
        let Region { replica, known: (known, index), crossings, now_ms, under_way, .. } = &mut self.regions[at];
        *now_ms += 1000;
        if !known.reaches(replica.region) {
            return;
        }
        let (shard, digest) = (&replica.shard, replica.shard.digest(MERGED).cloned().unwrap_or_default());
        let sight = CrossSight {
            shard: SHARD,
            epoch: shard.epoch(MERGED),
            stop: shard.stop(MERGED),
            parted: shard.parted(MERGED),
            exposure: None,
            positions: digest.positions,
            hash: digest.hash,
            keys: digest.keys,
            whole: !shard.is_closed(MERGED) && !shard.has_left(MERGED),
        };
        for duty in crossings.look(*now_ms, (replica.region, *index), known, &[sight]) {
            match duty {
                CrossDuty::Stop { epoch, index, stops, .. } => {
                    under_way.push((Kind::Stop, epoch, Body::Stop { index, stops }));
                }
                CrossDuty::Part { epoch, index, from, .. } => {
                    under_way.push((Kind::Part, epoch, Body::Part { index, from }));
                }
                CrossDuty::Raise { epoch, index, next, after, .. } => {
                    under_way.push((Kind::Raise, epoch, Body::Raise { index, next, after }));
                }
                CrossDuty::Tell(word) => self.record.hear(replica.region, &word),
            }
        }
    }

    fn land(&mut self, at: usize) {
        let Region { replica, under_way, .. } = &mut self.regions[at];
        for (kind, epoch, body) in std::mem::take(under_way) {
            assert_eq!(replica.control(kind, MERGED, epoch, &body).refused, None);
        }
    }

    fn ship(&mut self, from: usize, to: usize, entries_max: usize, of_the_past: bool) -> bool {
        let target = self.regions[to].replica.clone();
        let Region { replica, known, past, .. } = &mut self.regions[from];
        let known = if of_the_past { past } else { &known.0 };
        let Some(frame) = frame_to(replica, known, &target, entries_max) else { return false };
        let taken = deliver(&mut self.regions[to].replica, &frame);
        let parted = self.regions[to].replica.shard.parted(MERGED) == Some(REGIONS[from]);
        let lost = parted || self.record.losses.iter().any(|(region, ..)| *region == REGIONS[from]);
        assert!(taken || lost, "only what a lost region had is refused");
        self.sent.insert((from, to), frame);
        taken
    }

    /// As `region/node/src/upkeep.rs` does.
    fn drop_rows(&mut self, at: usize, of_the_past: bool) {
        let region = &self.regions[at];
        let known = if of_the_past { &region.past } else { &region.known.0 };
        let shard = &region.replica.shard;
        let own = shard.positions(MERGED).of(region.replica.region);
        let has = |it: &&Region| it.replica.shard.positions(MERGED).of(region.replica.region) >= own;
        let elsewhere = self.regions.iter().filter(|it| known.is_in(it.replica.region)).find(has).is_some();
        let epoch = match shard.is_leaving(MERGED) {
            true => shard.epoch(MERGED),
            false if known.reaches(region.replica.region) || !shard.knows(MERGED) || !elsewhere => return,
            false if shard.has_left(MERGED) => return,
            false => known.epoch,
        };
        let replica = &mut self.regions[at].replica;
        assert_eq!(replica.control(Kind::DropBucket, MERGED, epoch, &Body::DropBucket).refused, None);
    }

    fn is_unfilled(&self, at: usize) -> bool {
        let Region { replica, known: (known, _), .. } = &self.regions[at];
        let shard = &replica.shard;
        let since = known.joins.since(replica.region);
        known.reaches(replica.region) && shard.epoch(MERGED) < since && !shard.is_leaving(MERGED)
    }

    fn close(&mut self, at: usize) {
        if self.is_unfilled(at) && !self.regions[at].replica.shard.is_closed(MERGED) {
            let (replica, source) = (&mut self.regions[at].replica, REGIONS[(at + 1) % 3]);
            let step = Body::Repair(RepairStep::Begin { source });
            assert_eq!(replica.control(Kind::Repair, MERGED, Epoch(1), &step).refused, None);
        }
    }

    /// From a region that has begun the epoch, which goes on to write and to ship meanwhile.
    fn fill(&mut self, at: usize, from: usize, crash_at: usize) {
        let since = self.regions[at].known.0.joins.since(REGIONS[at]);
        let source = &self.regions[from];
        let fit = source.replica.shard.epoch(MERGED) >= since && source.replica.shard.unfit_as_source(MERGED).is_none();
        if !self.is_unfilled(at) || !fit || !source.known.0.is_in(REGIONS[from]) {
            return;
        }
        let known = source.known.0.clone();
        let take = |region: &mut Region| std::mem::replace(&mut region.replica, Replica::new(1));
        let (mut target, mut source) = (take(&mut self.regions[at]), take(&mut self.regions[from]));
        let (mut looks, mut sequence, mut puts) = (0, self.sequence, Vec::new());
        repair(&mut target, &mut source, (MERGED, Claim::Replica), &mut |target, source| {
            looks += 1;
            sequence += 1;
            let name = format!("meanwhile/{sequence}");
            let put = if looks < 4 { order(source, &known, sequence, &put(&name, "v")) } else { None };
            puts.extend(put.map(|put| Made { at: from, name, put, removed: Vec::new() }));
            if let Some(frame) = frame_to(source, &known, target, 2).filter(|_| looks < 6) {
                deliver(target, &frame);
            }
            looks == crash_at
        });
        (self.regions[at].replica, self.regions[from].replica) = (target, source);
        self.sequence = sequence;
        self.puts.extend(puts);
        assert!(!self.is_unfilled(at), "it is filled");
    }

    /// Equal inputs are equal states, and what was left is gone.
    fn check(&self) {
        let copies = || self.regions.iter().map(|it| &it.replica.shard).filter(|it| !it.is_closed(MERGED));
        let digests: Vec<_> = copies().filter_map(|it| it.digest(MERGED)).collect();
        for (at, one) in digests.iter().enumerate() {
            for other in digests.iter().skip(at + 1).filter(|it| it.positions == one.positions) {
                assert_eq!((one.hash, one.keys), (other.hash, other.keys));
            }
        }
        assert!(copies().all(|it| it.astray(MERGED).is_none() && it.divergence(MERGED).is_none()));
    }

    /// Everybody hears and acts and everything arrives, until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..24 {
            for at in 0..REGIONS.len() {
                self.step(&Step::Hear(at));
                self.step(&Step::Act(at));
                self.step(&Step::Drop { at, of_the_past: false });
                self.step(&Step::Fill { at, by: 1, crash_at: 99 });
                self.step(&Step::Fill { at, by: 2, crash_at: 99 });
                self.step(&Step::Fetch { at, crash_at: 99 });
                self.step(&Step::Return(at));
                for to in (0..REGIONS.len()).filter(|to| *to != at) {
                    while self.ship(at, to, 5, false) {
                        self.check();
                    }
                }
            }
        }
        let bucket = &self.record.bucket;
        assert!(bucket.crossing.is_none(), "{bucket:?}");
        let (there, gone): (Vec<_>, Vec<_>) = self.regions.iter().partition(|it| bucket.reaches(it.replica.region));
        let positions = |it: &Region| it.replica.shard.positions(MERGED);
        assert!(there.iter().all(|it| positions(it) == positions(there[0])), "{bucket:?}");
        assert!(there.iter().all(|it| it.replica.shard.epoch(MERGED) == bucket.epoch));
        there.iter().for_each(|it| it.replica.check_digests());
        assert!(gone.iter().all(|it| it.replica.shard.has_left(MERGED) && it.replica.shard.digest(MERGED).is_none()));
    }

    /// What was acknowledged, and nothing else.
    fn judge(&self) {
        for region in self.regions.iter().filter(|it| self.record.bucket.is_in(it.replica.region)) {
            for Made { name, put, removed, .. } in &self.puts {
                let there = region.replica.text(MERGED, name).is_some();
                let stands = self.counts_still(put) && !removed.iter().any(|it| self.counts_still(it));
                assert_eq!(there, stands, "{name} in region {}", region.replica.region);
            }
            let count = region.replica.text(MERGED, "count").map_or(0, |it| it.parse::<i64>().unwrap());
            let counted = self.counts.iter().filter(|it| self.counts_still(it)).count();
            assert_eq!(count, i64::try_from(counted).unwrap());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(384))]

    #[test]
    fn regions_leave_and_join_where_all_write_and_nothing_is_lost_doubled_or_brought_back(
        steps in prop::collection::vec(step(), 1..300)
    ) {
        let mut world = World::new();
        steps.iter().for_each(|step| world.step(step));
        world.settle();
        // All of them are there, and write.
        (0..3).for_each(|at| world.step(&Step::Add(at)));
        world.settle();
        (0..3).for_each(|at| world.step(&Step::Add(at)));
        world.settle();
        prop_assert_eq!(&world.record.bucket.regions[..], &REGIONS[..]);
        let before = world.counts.len();
        (0..3).for_each(|at| world.step(&Step::Put(at)));
        (0..3).for_each(|at| world.step(&Step::Count(at)));
        prop_assert_eq!(world.counts.len(), before + 3);
        world.settle();
        world.judge();
    }
}

#[test]
fn what_is_parked_for_the_next_stay_is_not_dropped_with_the_last_one() {
    let mut world = World::new();
    world.step(&Step::Put(0));
    world.settle();
    world.step(&Step::Remove(2));
    world.settle();
    // A drop as of the first stay is on its way while the region joins again and is written to from a region that did not fill it.
    world.step(&Step::Add(2));
    meet(&mut world);
    world.step(&Step::Put(0));
    while world.ship(0, 2, 9, false) {}
    let late = world.record.ends.keys().last().copied().unwrap();
    let replica = &mut world.regions[2].replica;
    replica.control(Kind::DropBucket, MERGED, late, &Body::DropBucket);
    world.step(&Step::Hear(2));
    world.step(&Step::Fill { at: 2, by: 2, crash_at: 99 });
    assert_eq!(world.regions[2].replica.text(MERGED, "put/1").as_deref(), Some("v"));
    world.settle();
    world.judge();
    assert!(world.record.bucket.is_in(REGIONS[2]) && world.record.changes == 3);
}

#[test]
fn what_was_ordered_behind_a_stop_stays_void_when_the_region_has_dropped_its_copy() {
    let mut world = World::new();
    world.settle();
    world.step(&Step::Remove(2));
    world.step(&Step::Hear(2));
    world.step(&Step::Act(2));
    world.step(&Step::PutOfThePast(2));
    assert!(world.puts.is_empty(), "its shard has stopped");
    let (late, header) = {
        let (lsn, entry, _) = world.regions[2].replica.log.last().unwrap();
        (Lsn(lsn.0), Header::decode(entry).unwrap())
    };
    assert_eq!(header.kind, Kind::Write);
    // Its lanes are behind while all the rest is done.
    for _ in 0..4 {
        (0..3).for_each(|at| world.step(&Step::Hear(at)));
        (0..3).for_each(|at| world.step(&Step::Act(at)));
    }
    world.step(&Step::Drop { at: 2, of_the_past: false });
    assert!(world.regions[2].replica.shard.has_left(MERGED));
    assert!(!world.regions[2].replica.shard.is_effective(late, &header));
    world.settle();
    world.judge();
}

/// Two regions meet, and whatever comes of it is on record.
fn meet(world: &mut World) {
    for _ in 0..4 {
        (0..2).for_each(|at| world.step(&Step::Hear(at)));
        (0..2).for_each(|at| world.step(&Step::Act(at)));
        [(0, 1), (1, 0)].iter().for_each(|(from, to)| while world.ship(*from, *to, 9, false) {});
    }
}

#[test]
fn a_region_that_stopped_in_an_earlier_joining_is_filled_anew_and_does_not_begin_the_epoch_by_itself() {
    let mut world = World::new();
    world.step(&Step::Remove(2));
    world.settle();
    world.step(&Step::Add(2));
    meet(&mut world);
    for step in [Step::Hear(2), Step::Fill { at: 2, by: 1, crash_at: 99 }, Step::Act(2), Step::Hear(2), Step::Act(2)] {
        world.step(&step);
    }
    assert!(world.regions[2].replica.shard.stop(MERGED).is_some_and(|stop| stop.stopped));
    // It is away when its counting is given up, then its joining; what is written then is none of its business.
    (0..2).for_each(|_| world.step(&Step::GiveUp));
    meet(&mut world);
    world.step(&Step::Put(0));
    while world.ship(0, 2, 9, false) {}
    let written = world.puts.last().unwrap().name.clone();
    world.step(&Step::Add(2));
    meet(&mut world);
    world.step(&Step::Hear(2));
    world.step(&Step::Act(2));
    assert_eq!(world.record.bucket.epoch.0, world.regions[2].replica.shard.epoch(MERGED).0 + 1);
    world.step(&Step::Fill { at: 2, by: 1, crash_at: 99 });
    assert!(world.regions[2].replica.text(MERGED, &written).is_some());
    world.settle();
    world.judge();
    assert!(world.record.bucket.is_in(REGIONS[2]));
}
