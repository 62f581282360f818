//! A bucket whose lane turns while it is written to: whatever the order in which the two lanes arrive, a replica's state is a prefix of
//! its primary's history, and in the end all of it (ORD-1; docs/adr/2026-11-27-online-policy-change.md).

use std::collections::BTreeMap;

use meridian_region_core::FrameResult;
use meridian_types::entry::Header;
use meridian_types::{Epoch, Lane, Lsn, SetHash, Turns};
use proptest::prelude::*;

use crate::world::{PLAIN, Replica, id, put};

#[derive(Clone, Debug)]
enum Step {
    Write(u8),
    /// The metadata plane turns the lane.
    Turn,
    /// The primary's leader hears of it, and seals.
    Seal,
    Ship {
        lane: Lane,
        entries_max: usize,
    },
    /// A frame that was lost is sent again, or one arrives twice.
    Again(Lane),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let lane = || prop::sample::select(Lane::ALL.to_vec());
    prop_oneof![
        6 => (0u8..9).prop_map(Step::Write),
        2 => Just(Step::Turn),
        3 => Just(Step::Seal),
        6 => (lane(), 1usize..4).prop_map(|(lane, entries_max)| Step::Ship { lane, entries_max }),
        1 => lane().prop_map(Step::Again),
        1 => Just(Step::Restart),
    ]
}

struct World {
    a: Replica,
    b: Replica,
    /// What the metadata plane has on record.
    epoch: Epoch,
    now: Lane,
    turns: Turns,
    /// What the bucket was after each of its entries.
    history: BTreeMap<Lsn, SetHash>,
    sequence: u64,
    sent: BTreeMap<Lane, bytes::Bytes>,
}

impl World {
    fn new() -> World {
        let (a, b) = (Replica::new(1), Replica::new(2));
        let history = BTreeMap::from([(Lsn(0), SetHash::default())]);
        let (now, turns, sent) = (Lane::Async, Turns::default(), BTreeMap::new());
        World { a, b, epoch: Epoch(1), now, turns, history, sequence: 0, sent }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Write(key) => self.write(*key),
            Step::Turn => {
                let from = self.now;
                self.now = if from == Lane::Sync { Lane::Async } else { Lane::Sync };
                self.epoch = Epoch(self.epoch.0 + 1);
                self.turns.turn(self.epoch, from);
            }
            Step::Seal if self.a.shard.epoch(PLAIN) < self.epoch => {
                assert_eq!(self.a.seal(PLAIN, self.epoch.0).refused, None);
                self.a.epoch = self.epoch;
                self.note();
            }
            Step::Seal => {}
            Step::Ship { lane, entries_max } => drop(self.ship(*lane, *entries_max)),
            Step::Again(lane) => {
                if let Some(frame) = self.sent.get(lane).cloned() {
                    self.b.receive(&frame);
                }
            }
            Step::Restart => self.b.restart(),
        }
        self.check();
    }

    fn write(&mut self, key: u8) {
        self.sequence += 1;
        self.a.write(id(7, self.sequence), put(&format!("k{key}"), &self.sequence.to_string()));
        self.note();
    }

    fn note(&mut self) {
        let digest = self.a.shard.digest(PLAIN).unwrap();
        self.history.insert(digest.positions.of(self.a.region), digest.hash);
    }

    fn ship(&mut self, lane: Lane, entries_max: usize) -> bool {
        let previous = self.b.shard.watermark(self.a.region, lane);
        let (turns, now) = (self.turns.clone(), self.now);
        let travels = move |header: &Header| header.bucket == PLAIN && turns.lane(header.epoch, now) == lane;
        let Some(frame) = self.a.frame_of(previous, lane, entries_max, &travels) else { return false };
        let (result, applied) = self.b.receive(&frame);
        assert!(matches!(result, FrameResult::Applied { .. }), "{result:?}");
        assert!(applied.frame.unwrap().diverged.is_empty());
        self.sent.insert(lane, frame);
        true
    }

    /// The replica is exactly what the primary was at its position, epoch and all.
    fn check(&self) {
        let Some(digest) = self.b.shard.digest(PLAIN) else { return };
        let at = digest.positions.of(self.a.region);
        assert_eq!(self.history.get(&at), Some(&digest.hash), "{at}: not a prefix");
        assert_eq!(self.b.shard.astray(PLAIN), None);
    }

    /// All arrives, one lane after the other.
    fn settle(&mut self, first: Lane) {
        let lanes = if first == Lane::Sync { [Lane::Sync, Lane::Async] } else { [Lane::Async, Lane::Sync] };
        for lane in lanes {
            while self.ship(lane, 3) {
                self.check();
            }
        }
        let (ours, theirs) = (self.a.shard.digest(PLAIN), self.b.shard.digest(PLAIN));
        assert_eq!(
            ours.map(|it| (it.hash, it.keys, &it.positions)),
            theirs.map(|it| (it.hash, it.keys, &it.positions))
        );
        assert_eq!(self.a.shard.epoch(PLAIN), self.b.shard.epoch(PLAIN));
        assert!(!self.b.shard.waits_for_seal(PLAIN));
        assert_eq!(self.b.shard.waiting(PLAIN), (0, 0));
        assert_eq!(self.a.shard.watermark(self.b.region, Lane::Sync), Lsn(0), "nothing comes back");
    }
}

proptest! {
    #[test]
    fn no_entry_is_skipped_in_either_lane_and_none_is_applied_before_its_time(
        steps in prop::collection::vec(step(), 1..80), first in prop::sample::select(Lane::ALL.to_vec())
    ) {
        let mut world = World::new();
        steps.iter().for_each(|step| world.step(step));
        world.step(&Step::Seal);
        world.write(0);
        world.settle(first);
    }
}

#[test]
fn what_overtakes_the_seal_waits_for_it_and_can_be_counted() {
    let mut world = World::new();
    let ship = |lane| Step::Ship { lane, entries_max: 9 };
    for step in [Step::Write(1), Step::Turn, Step::Seal, Step::Write(2), Step::Write(3), ship(Lane::Sync)] {
        world.step(&step);
    }
    assert_eq!(world.b.text(PLAIN, "k2"), None, "its time has not come");
    assert!(world.b.shard.waits_for_seal(PLAIN));
    assert_eq!(world.b.shard.waiting(PLAIN).0, 2);
    world.step(&ship(Lane::Async));
    assert_eq!(world.b.text(PLAIN, "k3").as_deref(), Some("3"));
    assert_eq!(world.b.shard.epoch(PLAIN), Epoch(2));
}

#[test]
fn what_waited_for_a_lost_primary_is_gone_once_the_next_one_has_sealed() {
    let mut world = World::new();
    let ship = |lane| Step::Ship { lane, entries_max: 9 };
    for step in [Step::Write(1), Step::Turn, Step::Seal, Step::Write(2), ship(Lane::Sync)] {
        world.step(&step);
    }
    let World { mut b, .. } = world;
    assert_eq!(b.shard.waiting(PLAIN).0, 1);
    b.fence(PLAIN, 3);
    assert_eq!(b.take_over(PLAIN, 3).refused, None);
    assert_eq!((b.shard.waiting(PLAIN), b.shard.waits_for_seal(PLAIN)), ((0, 0), false));
    b.restart();
    assert_eq!(b.shard.waiting(PLAIN), (0, 0), "on disk, too");
    assert_eq!(b.text(PLAIN, "k2"), None);
}
