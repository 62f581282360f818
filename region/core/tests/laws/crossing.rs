//! A bucket goes from one writing region to all of them and back (docs/adr/2026-11-28-active-active-changes.md): over random writes,
//! crossings that end and that are given up, copies of the metadata that have not heard, late and repeated frames and restarts,
//! the writes of an epoch are of one kind, equal inputs are equal states, nothing that counts is lost and nothing that was removed
//! comes back (FEN-1, ORD-1, CON-4, CON-5).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use meridian_region_core::{CrossDuty, CrossSight, Crossings, FrameResult, WriteResult, active_active_body};
use meridian_types::entry::{Body, Header, Kind, WriteBody};
use meridian_types::{
    Bucket, BucketName, Copies, Crossing, Epoch, Hlc, Lane, Lsn, Phase, Policy, RegionId, StandingWord, Way, Write,
};
use proptest::prelude::*;

use crate::world::{PLAIN, Replica, SHARD, id, key, put};

const REGIONS: [RegionId; 3] = [RegionId(1), RegionId(2), RegionId(3)];

#[derive(Clone, Debug)]
enum Step {
    Put(usize),
    /// By a node of the region that has not heard what the others have.
    PutOfThePast(usize),
    /// Of a key that some region put.
    Delete(usize, usize),
    Count(usize),
    /// The one counter that is counted under every policy.
    CountOn(usize),
    /// Anything of the one key that everybody sets, removes and counts.
    Mix(usize, u8),
    Cross(usize),
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
    },
    Again(usize, usize),
    Restart(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let at = 0usize..3;
    prop_oneof![
        8 => at.clone().prop_map(Step::Put),
        4 => at.clone().prop_map(Step::PutOfThePast),
        3 => (at.clone(), any::<prop::sample::Index>()).prop_map(|(at, of)| Step::Delete(at, of.index(1000))),
        4 => at.clone().prop_map(Step::Count),
        4 => at.clone().prop_map(Step::CountOn),
        4 => (at.clone(), 0u8..6).prop_map(|(at, what)| Step::Mix(at, what)),
        2 => at.clone().prop_map(Step::Cross),
        1 => Just(Step::GiveUp),
        8 => at.clone().prop_map(Step::Hear),
        10 => at.clone().prop_map(Step::Act),
        4 => at.clone().prop_map(Step::Propose),
        3 => at.clone().prop_map(Step::Land),
        16 => (at.clone(), 1usize..3, 1usize..6)
            .prop_map(|(from, by, entries_max)| Step::Ship { from, to: (from + by) % 3, entries_max }),
        2 => (at.clone(), at.clone()).prop_map(|(from, to)| Step::Again(from, to)),
        1 => at.prop_map(Step::Restart),
    ]
}

/// What the metadata plane has on record: as much of it as a crossing takes.
struct Record {
    bucket: Bucket,
    index: u64,
}

impl Record {
    fn new() -> Record {
        let bucket = Bucket {
            id: PLAIN,
            name: BucketName::new("b").unwrap(),
            policy: Policy::ASYNC,
            epoch: Epoch(1),
            phase: Phase::Steady,
            primary: Some(REGIONS[0]),
            regions: REGIONS.to_vec(),
            labels: BTreeMap::new(),
            created: Hlc(0),
            standing: Default::default(),
            auto: Default::default(),
            turns: Default::default(),
            joins: Default::default(),
            crossing: None,
        };
        Record { bucket, index: 1 }
    }

    fn cross(&mut self, primary: RegionId) {
        self.index += 1;
        let bucket = &mut self.bucket;
        if bucket.crossing.is_some() {
            return;
        }
        let way = match bucket.primary {
            Some(_) => Way::Opening,
            None => Way::Closing { policy: Policy::ASYNC, primary, stopped: BTreeMap::new() },
        };
        bucket.epoch.0 += u64::from(bucket.primary.is_some());
        let (index, at, pause_ms_max) = (self.index, Hlc(0), 1000);
        bucket.crossing = Some(Crossing { index, at, pause_ms_max, way, arrived: BTreeMap::new() });
    }

    fn give_up(&mut self) {
        self.index += 1;
        if self.bucket.crossing.take().is_some() {
            self.bucket.epoch.0 += u64::from(self.bucket.primary.is_some());
        }
    }

    fn hear(&mut self, region: RegionId, word: &StandingWord) {
        self.index += 1;
        let bucket = &mut self.bucket;
        let Some(crossing) = bucket.crossing.as_mut().filter(|_| word.epoch == bucket.epoch) else { return };
        match (&mut crossing.way, &word.copies) {
            (Way::Closing { stopped, .. }, Copies::Stopped { crossing: index, at }) if *index == crossing.index => {
                stopped.entry(region).or_insert_with(|| at.clone());
            }
            (_, Copies::Arrived { crossing: index, at }) if *index == crossing.index => {
                crossing.arrived.entry(region).or_insert_with(|| at.clone());
            }
            _ => {}
        }
        assert_eq!(crossing.differing(), None, "all regions stand at the same place");
        if crossing.arrived.len() < REGIONS.len() {
            return;
        }
        let way = bucket.crossing.take().map(|it| it.way);
        match way {
            Some(Way::Closing { policy, primary, .. }) => {
                (bucket.policy, bucket.primary) = (policy, Some(primary));
                bucket.epoch.0 += 1;
            }
            Some(Way::Opening | Way::Regrouping { .. } | Way::Losing { .. }) | None => {
                (bucket.policy, bucket.primary) = (Policy::ActiveActive, None)
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
    under_way: Vec<(Epoch, Body)>,
}

struct World {
    record: Record,
    regions: Vec<Region>,
    sequence: u64,
    /// Keys that were put, with whether they were removed since; each by one region.
    puts: Vec<(usize, String, bool)>,
    counted: i64,
    counted_on: i64,
    /// Who wrote in an epoch: one region, or all of them.
    kinds: BTreeMap<Epoch, Option<RegionId>>,
    sent: BTreeMap<(usize, usize), Bytes>,
    crossed: BTreeSet<Epoch>,
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
        World {
            record,
            regions,
            sequence: 0,
            puts: Vec::new(),
            counted: 0,
            counted_on: 0,
            kinds: BTreeMap::new(),
            sent: BTreeMap::new(),
            crossed: BTreeSet::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Put(at) => {
                let name = format!("put/{}", self.puts.len());
                if self.write(*at, &put(&name, "v")) {
                    self.puts.push((*at, name, false));
                }
            }
            Step::PutOfThePast(at) => {
                let region = &mut self.regions[*at];
                let known = std::mem::replace(&mut region.known.0, region.past.clone());
                self.step(&Step::Put(*at));
                self.regions[*at].known.0 = known;
            }
            Step::Delete(at, of) => {
                let own: Vec<usize> = (0..self.puts.len()).filter(|it| self.puts[*it].0 == *at).collect();
                let Some(which) = own.get(of % own.len().max(1)).copied() else { return };
                let name = self.puts[which].1.clone();
                if self.write(*at, &Write::Delete { key: key(&name) }) {
                    self.puts[which].2 = true;
                }
            }
            Step::Count(at) => {
                // Of its own in each epoch.
                let key = key(&format!("count/{}", self.regions[*at].known.0.epoch));
                self.counted += i64::from(self.write(*at, &Write::Increment { key, by: 1 }));
            }
            Step::CountOn(at) => {
                let by = i64::try_from(*at).unwrap() + 1;
                let counted = self.write(*at, &Write::Increment { key: key("count on"), by });
                self.counted_on += if counted { by } else { 0 };
            }
            Step::Mix(at, what) => {
                let key = key("mix");
                let write = match what {
                    0 => put("mix", "41"),
                    1 => put("mix", "v"),
                    2 => Write::Delete { key },
                    _ => Write::Increment { key, by: i64::from(*what) - 4 },
                };
                self.write(*at, &write);
            }
            Step::Cross(primary) => self.record.cross(REGIONS[*primary]),
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
            Step::Ship { from, to, entries_max } => drop(self.ship(*from, *to, *entries_max)),
            Step::Again(from, to) => {
                if let Some(frame) = self.sent.get(&(*from, *to)).cloned() {
                    self.regions[*to].replica.receive(&frame);
                }
            }
            Step::Restart(at) => self.regions[*at].replica.restart(),
        }
        if self.record.bucket.primary.is_none() {
            self.crossed.insert(self.record.bucket.epoch);
        }
        self.check();
    }

    /// Orders a write as a leader does that knows no better; tells whether it is acknowledged.
    fn write(&mut self, at: usize, write: &Write) -> bool {
        self.sequence += 1;
        let Region { replica, known: (known, _), .. } = &mut self.regions[at];
        let here = known.primary.is_none_or(|primary| primary == replica.region);
        if known.is_between_primaries() || !here || replica.shard.epoch(PLAIN) != known.epoch {
            return false;
        }
        let body = match known.primary {
            Some(_) => WriteBody::Plain(write.clone()),
            None => match active_active_body(&replica.state, SHARD, PLAIN, write, replica.wall_ms, replica.region) {
                Ok(body) => body,
                Err(_) => return false,
            },
        };
        let header =
            Header { epoch: known.epoch, id: id(7 + at as u128, self.sequence), ..replica.header(Kind::Write, PLAIN) };
        let applied = replica.commit(header.encode(&Body::Write(body)));
        if applied.note.is_some() {
            let who = known.primary.map(|_| replica.region);
            assert_eq!(*self.kinds.entry(known.epoch).or_insert(who), who, "the writes of an epoch are of one kind");
        }
        WriteResult::decode(&applied.result).unwrap().outcome.is_ok()
    }

    fn act(&mut self, at: usize) {
        let Region { replica, known: (known, index), crossings, now_ms, under_way, .. } = &mut self.regions[at];
        *now_ms += 1000;
        let region = replica.region;
        if known.primary == Some(region) && replica.shard.epoch(PLAIN) < known.epoch {
            assert_eq!(replica.seal(PLAIN, known.epoch.0).refused, None);
        }
        let digest = replica.shard.digest(PLAIN).cloned().unwrap_or_default();
        let sight = CrossSight {
            shard: SHARD,
            epoch: replica.shard.epoch(PLAIN),
            stop: replica.shard.stop(PLAIN),
            parted: None,
            exposure: None,
            positions: digest.positions,
            hash: digest.hash,
            keys: digest.keys,
            whole: replica.shard.astray(PLAIN).is_none(),
        };
        for duty in crossings.look(*now_ms, (region, *index), known, &[sight]) {
            match duty {
                CrossDuty::Stop { epoch, index, stops, .. } => {
                    under_way.push((epoch, Body::Stop { index, stops }));
                }
                CrossDuty::Raise { .. } | CrossDuty::Part { .. } => unreachable!("the regions stay the same"),
                CrossDuty::Tell(word) => self.record.hear(region, &word),
            }
        }
    }

    fn land(&mut self, at: usize) {
        let Region { replica, under_way, .. } = &mut self.regions[at];
        for (epoch, body) in std::mem::take(under_way) {
            assert_eq!(replica.control(Kind::Stop, PLAIN, epoch, &body).refused, None);
        }
    }

    fn ship(&mut self, from: usize, to: usize, entries_max: usize) -> bool {
        let source = &self.regions[from].replica;
        let previous = self.regions[to].replica.shard.watermark(source.region, Lane::Async);
        let frame = source.frame_of(previous, Lane::Async, entries_max, &|header| header.bucket == PLAIN);
        let Some(frame) = frame else { return false };
        let (result, applied) = self.regions[to].replica.receive(&frame);
        assert!(matches!(result, FrameResult::Applied { .. }), "{result:?}");
        assert!(applied.frame.unwrap().diverged.is_empty());
        self.sent.insert((from, to), frame);
        true
    }

    /// Equal inputs are equal states, and nobody goes astray.
    fn check(&self) {
        let digests: Vec<_> = self.regions.iter().filter_map(|it| it.replica.shard.digest(PLAIN)).collect();
        for (one, other) in digests.iter().zip(digests.iter().skip(1)) {
            if one.positions == other.positions {
                assert_eq!((one.hash, one.keys), (other.hash, other.keys));
            }
        }
        assert!(self.regions.iter().all(|it| it.replica.shard.astray(PLAIN).is_none()));
    }

    /// Everybody hears and acts and everything arrives, until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..12 {
            for at in 0..REGIONS.len() {
                self.step(&Step::Hear(at));
                self.step(&Step::Act(at));
                for to in (0..REGIONS.len()).filter(|to| *to != at) {
                    while self.ship(at, to, 5) {
                        self.check();
                    }
                }
            }
        }
        assert!(self.record.bucket.crossing.is_none(), "{:?}", self.record.bucket);
        let positions = |it: &Region| it.replica.shard.positions(PLAIN);
        assert!(self.regions.iter().all(|it| positions(it) == positions(&self.regions[0])));
        assert!(self.regions.iter().all(|it| it.replica.shard.epoch(PLAIN) == self.record.bucket.epoch));
        self.regions.iter().for_each(|it| it.replica.check_digests());
    }

    /// What was acknowledged, and nothing else.
    fn judge(&self) {
        for region in &self.regions {
            for (_, name, removed) in &self.puts {
                let there = region.replica.text(PLAIN, name).is_some();
                assert_eq!(there, !removed, "{name} in region {}", region.replica.region);
            }
            let epochs = 1..=self.record.bucket.epoch.0;
            let counts = epochs.filter_map(|epoch| region.replica.text(PLAIN, &format!("count/{epoch}")));
            assert_eq!(counts.map(|it| it.parse::<i64>().unwrap()).sum::<i64>(), self.counted);
            let counted_on = region.replica.text(PLAIN, "count on").map(|it| it.parse::<i64>().unwrap());
            assert_eq!(counted_on.unwrap_or_default(), self.counted_on, "in region {}", region.replica.region);
        }
    }
}

proptest! {
    #[test]
    fn all_regions_stand_at_the_same_place_whenever_other_regions_begin_to_write(
        steps in prop::collection::vec(step(), 1..300), primary in 0usize..3
    ) {
        let mut world = World::new();
        steps.iter().for_each(|step| world.step(step));
        world.settle();
        // There and back again, with writes on both sides.
        for _ in 0..2 {
            world.step(&Step::Cross(primary));
            world.settle();
            (0..3).for_each(|at| world.step(&Step::Put(at)));
            (0..3).for_each(|at| world.step(&Step::Count(at)));
            (0..3).for_each(|at| world.step(&Step::CountOn(at)));
        }
        world.settle();
        world.judge();
        prop_assert!(!world.crossed.is_empty());
    }
}

fn crossed(world: &mut World, primary: usize) {
    world.step(&Step::Cross(primary));
    world.settle();
}

fn text(world: &World, at: usize, key: &str) -> Option<String> {
    world.regions[at].replica.text(PLAIN, key)
}

#[test]
fn what_a_record_is_in_the_other_kind_of_bucket() {
    let mut world = World::new();
    let count = |name: &str, by| Write::Increment { key: key(name), by };
    assert!(world.write(0, &put("value", "1")) && world.write(0, &count("number", 5)));
    crossed(&mut world, 0);
    assert!(world.write(1, &put("value", "2")) && world.write(2, &count("new", 3)) && world.write(0, &count("new", 4)));
    assert!(world.write(1, &Write::Delete { key: key("number") }));
    world.settle();
    crossed(&mut world, 1);
    for at in 0..3 {
        let texts = ["value", "number", "new"].map(|key| text(&world, at, key));
        assert_eq!(texts, [Some("2".to_owned()), None, Some("7".to_owned())]);
    }
    assert!(world.write(1, &count("new", 10)) && world.write(1, &count("number", 1)));
    let version = world.regions[1].replica.get(PLAIN, &key("value")).map(|it| it.found.version);
    let swap =
        Write::CompareAndSet { key: key("value"), expected: version, value: crate::world::value("3"), ttl_ms: None };
    assert!(world.write(1, &swap));
    world.settle();
    let texts = ["value", "number", "new"].map(|key| text(&world, 2, key));
    assert_eq!(texts, ["3", "1", "17"].map(|it| Some(it.to_owned())));
}

#[test]
fn con_4_a_number_of_before_counts_on_in_every_region_until_it_is_set_or_removed() {
    let mut world = World::new();
    let count = |name: &str, by| Write::Increment { key: key(name), by };
    let for_a_while = |name: &str| Write::Put { key: key(name), value: crate::world::value("1"), ttl_ms: Some(100) };
    for name in ["kept", "set", "removed", "back"] {
        assert!(world.write(0, &put(name, "40")));
    }
    assert!(world.write(0, &put("text", "v")) && world.write(0, &for_a_while("ends")));
    crossed(&mut world, 0);
    for name in ["text", "ends"] {
        assert!(!world.write(1, &count(name, 1)), "{name} is no number that counts on");
    }
    // At once, and each region sees the number and what it has counted itself.
    for (at, by) in [(0, 1), (1, 10), (2, 100)] {
        assert!(["kept", "set", "removed", "back"].iter().all(|name| world.write(at, &count(name, by))));
        assert_eq!(text(&world, at, "kept"), Some((40 + by).to_string()));
    }
    assert!(world.write(1, &put("set", "7")) && world.write(1, &Write::Delete { key: key("removed") }));
    world.settle();
    for at in 0..3 {
        let texts = ["kept", "set", "removed", "back"].map(|name| text(&world, at, name));
        let expected = [Some("151"), Some("7"), Some("101"), Some("151")];
        assert_eq!(texts, expected.map(|it| it.map(str::to_owned)), "what the removing region had not seen is left");
        assert!(!world.write(at, &count("set", 1)), "a value that was set since is a value");
    }
    assert!(world.write(2, &count("kept", i64::MAX - 151)) && !world.write(2, &count("kept", 1)), "64 bits");
    assert!(world.write(2, &count("kept", 151 - i64::MAX)));
    world.settle();

    // There and back: the sum is a number again.
    crossed(&mut world, 1);
    assert!(world.write(1, &count("back", 1)));
    crossed(&mut world, 1);
    assert!(
        world.write(0, &count("kept", 1)) && world.write(0, &count("back", 1)) && world.write(2, &count("back", 1))
    );
    world.settle();
    let texts = ["kept", "back"].map(|name| text(&world, 1, name));
    assert_eq!(texts, ["152", "154"].map(|it| Some(it.to_owned())));
}

#[test]
fn what_expires_goes_on_to_expire_on_the_other_side() {
    let mut world = World::new();
    let for_a_while = |name: &str| Write::Put { key: key(name), value: crate::world::value("v"), ttl_ms: Some(100) };
    assert!(world.write(0, &for_a_while("plain")));
    crossed(&mut world, 0);
    assert!(world.write(2, &for_a_while("merged")));
    world.settle();
    let names = ["plain", "merged"];
    assert_eq!(names.map(|it| text(&world, 1, it).is_some()), [true; 2]);
    crossed(&mut world, 1);
    world.regions.iter_mut().for_each(|it| it.replica.wall_ms += 200);
    assert_eq!(names.map(|it| text(&world, 1, it).is_some()), [false; 2]);
    world.regions[1].replica.epoch = world.record.bucket.epoch;
    assert_eq!(world.regions[1].replica.expire(), 1, "what was merged stays until it is written");
    assert!(world.write(1, &put("merged", "again")));
    world.settle();
}

#[test]
fn an_answer_is_kept_across_and_what_comes_behind_a_stop_is_answered_as_nothing_done() {
    let mut world = World::new();
    crossed(&mut world, 0);
    assert!(world.write(2, &put("k", "v")));
    let (sequence, at) = (world.sequence, Lsn(world.regions[2].replica.log.last().unwrap().0.0));
    world.settle();
    world.step(&Step::Cross(0));
    world.step(&Step::Hear(1));
    world.step(&Step::Act(1));
    assert!(!world.write(1, &put("late", "v")), "its own copy says that the bucket crosses");
    world.regions[1].known = (world.regions[0].known.0.clone(), world.regions[1].known.1);
    assert!(!world.write(1, &put("late", "v")), "whoever has not heard orders what is void");
    world.settle();
    assert_eq!(text(&world, 0, "late"), None);
    let replica = &mut world.regions[0].replica;
    let header = Header { epoch: world.record.bucket.epoch, id: id(9, sequence), ..replica.header(Kind::Write, PLAIN) };
    let applied = replica.commit(header.encode(&Body::Write(WriteBody::Plain(put("k", "v")))));
    assert_eq!(WriteResult::decode(&applied.result).unwrap().lsn, at, "the first answer, of another region's log");
}

#[test]
fn a_region_that_goes_on_late_does_not_go_on_in_the_next_crossing() {
    let mut world = World::new();
    crossed(&mut world, 0);
    for step in [Step::Cross(0), Step::Hear(1), Step::Act(1), Step::GiveUp, Step::Hear(1), Step::Propose(1)] {
        world.step(&step);
    }
    // The end of the first stop is on its way when the second one begins.
    world.step(&Step::Cross(0));
    for at in [0, 1, 2] {
        world.step(&Step::Hear(at));
        let Region { under_way, .. } = &mut world.regions[at];
        let late = std::mem::take(under_way);
        world.step(&Step::Act(at));
        world.regions[at].under_way = late;
    }
    world.step(&Step::Land(1));
    world.step(&Step::PutOfThePast(1));
    assert!(world.puts.is_empty(), "what it says it has is all there will be");
    world.settle();
    world.judge();
}
