//! A region that leaves a bucket and joins it again while it is written to: whatever the order in which its log hears of it, whatever
//! is late, and whoever at the source has not heard of it yet, from the moment it is filled it is a prefix of its primary's history
//! and in the end all of it (ORD-1, CON-5; docs/adr/2026-11-28-region-sets.md).

use std::collections::BTreeMap;

use meridian_region_core::FrameResult;
use meridian_region_core::repair::survey::Claim;
use meridian_types::entry::{Body, Header, Kind};
use meridian_types::{Epoch, Joins, Lane, Lsn, RegionId, SetHash};
use proptest::prelude::*;

use crate::repair::repair;
use crate::world::{PLAIN, Replica, id, put};

#[derive(Clone, Debug)]
enum Step {
    Write(u8),
    Remove(u8),
    /// The metadata plane adds the region, or removes it.
    Join,
    Leave,
    /// The primary's leader hears of it, and seals.
    Seal,
    /// Its leader ships, or one that has not heard of the last changes.
    Ship {
        back: usize,
        entries_max: usize,
    },
    /// A frame arrives twice.
    Again,
    /// The region's leader drops what it has, as it heard, or as one heard who is behind.
    Drop {
        back: usize,
    },
    /// It is filled; meanwhile so many frames arrive and so much is written.
    Fill {
        meanwhile: usize,
    },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u8..9).prop_map(Step::Write),
        2 => (0u8..9).prop_map(Step::Remove),
        2 => Just(Step::Join),
        2 => Just(Step::Leave),
        3 => Just(Step::Seal),
        6 => (0usize..3, 1usize..4).prop_map(|(back, entries_max)| Step::Ship { back, entries_max }),
        1 => Just(Step::Again),
        3 => (0usize..3).prop_map(|back| Step::Drop { back }),
        3 => (0usize..3).prop_map(|meanwhile| Step::Fill { meanwhile }),
        1 => Just(Step::Restart),
    ]
}

/// What the metadata plane has on record: the bucket's epoch, since which one the region gets what is written, and in which
/// it did before.
#[derive(Clone, Debug)]
struct View {
    epoch: Epoch,
    since: Option<Epoch>,
    joins: Joins,
}

impl View {
    fn carries(&self, epoch: Epoch) -> bool {
        self.since.is_some_and(|since| epoch >= since) || self.joins.was_there(B, epoch)
    }
}

const B: RegionId = RegionId(2);

struct World {
    a: Replica,
    b: Replica,
    views: Vec<View>,
    /// What the bucket was after each of its entries.
    history: BTreeMap<Lsn, SetHash>,
    sequence: u64,
    sent: Option<bytes::Bytes>,
}

impl World {
    fn new() -> World {
        let history = BTreeMap::from([(Lsn(0), SetHash::default())]);
        let views = vec![View { epoch: Epoch(1), since: Some(Epoch(0)), joins: Joins::default() }];
        World { a: Replica::new(1), b: Replica::new(2), views, history, sequence: 0, sent: None }
    }

    fn now(&self) -> View {
        self.views.last().unwrap().clone()
    }

    fn heard(&self, back: usize) -> View {
        self.views[self.views.len().saturating_sub(1 + back)].clone()
    }

    /// Whether the region has a copy: be it that of an earlier stay, it is a prefix of the history.
    fn has_copy(&self) -> bool {
        !self.b.shard.is_closed(PLAIN) && !self.b.shard.has_left(PLAIN)
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Write(key) => self.write(*key),
            Step::Remove(key) => {
                self.sequence += 1;
                let (id, key) = (id(7, self.sequence), crate::world::key(&format!("k{key}")));
                self.a.write(id, meridian_types::Write::Delete { key });
                self.note();
            }
            Step::Join if self.now().since.is_none() => {
                let View { epoch, mut joins, .. } = self.now();
                let epoch = Epoch(epoch.0 + 1);
                joins.since.insert(B, epoch);
                self.views.push(View { epoch, since: Some(epoch), joins });
            }
            Step::Leave if self.now().since.is_some() => {
                let View { epoch, mut joins, .. } = self.now();
                let epoch = Epoch(epoch.0 + 1);
                joins.leave(B, epoch);
                self.views.push(View { epoch, since: None, joins });
            }
            Step::Join | Step::Leave => {}
            Step::Seal => self.seal(),
            Step::Ship { back, entries_max } => drop(self.ship(&self.heard(*back), *entries_max)),
            Step::Again => {
                if let Some(frame) = self.sent.clone() {
                    self.b.receive(&frame);
                }
            }
            Step::Drop { back } => self.drop_rows(&self.heard(*back)),
            Step::Fill { meanwhile } => self.fill(*meanwhile),
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

    fn seal(&mut self) {
        let epoch = self.now().epoch;
        if self.a.shard.epoch(PLAIN) < epoch {
            assert_eq!(self.a.seal(PLAIN, epoch.0).refused, None);
            self.a.epoch = epoch;
            self.note();
        }
    }

    /// As `replicator/core/src/routes.rs` judges: what is of an epoch that was not heard of waits, and all behind it.
    fn ship(&mut self, heard: &View, entries_max: usize) -> bool {
        let previous = self.b.shard.watermark(self.a.region, Lane::Sync);
        let to_come = |entry: &[u8]| {
            let header = Header::decode(entry).unwrap();
            header.kind.is_shipped() && header.bucket == PLAIN && header.epoch > heard.epoch
        };
        let known = self.a.log.iter().position(|(lsn, entry, _)| *lsn > previous && to_come(entry));
        let rest = self.a.log.split_off(known.unwrap_or(self.a.log.len()));
        let travels = |header: &Header| header.bucket == PLAIN && heard.carries(header.epoch);
        let frame = self.a.frame_of(previous, Lane::Sync, entries_max, &travels);
        self.a.log.extend(rest);
        let Some(frame) = frame else { return false };
        let (result, applied) = self.b.receive(&frame);
        assert!(matches!(result, FrameResult::Applied { .. }), "{result:?}");
        assert!(applied.frame.unwrap().diverged.is_empty());
        self.sent = Some(frame);
        true
    }

    fn drop_rows(&mut self, heard: &View) {
        if heard.since.is_none() {
            self.b.control(Kind::DropBucket, PLAIN, heard.epoch, &Body::DropBucket);
        }
    }

    fn fill(&mut self, meanwhile: usize) {
        let Some(since) = self.now().since else { return };
        let unfilled = self.b.shard.epoch(PLAIN) < since && !self.b.shard.is_leaving(PLAIN);
        if !unfilled || self.a.shard.epoch(PLAIN) < since {
            return;
        }
        let (mut left, now) = (meanwhile, self.now());
        let mut other = World { a: Replica::new(1), b: Replica::new(2), sent: None, ..World::new() };
        (other.views, other.sequence) = (vec![now.clone()], self.sequence + 1000 * since.0);
        let (mut a, mut b) =
            (std::mem::replace(&mut self.a, Replica::new(1)), std::mem::replace(&mut self.b, Replica::new(2)));
        repair(&mut b, &mut a, (PLAIN, Claim::Primary), &mut |b, a| {
            if left > 0 {
                left -= 1;
                std::mem::swap(&mut other.a, a);
                std::mem::swap(&mut other.b, b);
                other.write(3);
                other.ship(&now, 2);
                std::mem::swap(&mut other.a, a);
                std::mem::swap(&mut other.b, b);
            }
            false
        });
        (self.a, self.b, self.sequence) = (a, b, other.sequence);
        self.history.append(&mut other.history);
        self.note();
        assert!(self.has_copy(), "it is filled");
    }

    /// It is exactly what the primary was at its position; what it has left is gone.
    fn check(&self) {
        if self.b.shard.has_left(PLAIN) {
            assert_eq!(self.b.shard.digest(PLAIN), None);
        }
        let Some(digest) = self.b.shard.digest(PLAIN).filter(|_| self.has_copy()) else { return };
        let at = digest.positions.of(self.a.region);
        assert_eq!(self.history.get(&at), Some(&digest.hash), "{at}: not a prefix");
        assert_eq!(self.b.shard.astray(PLAIN), None);
    }

    /// It joins, and all arrives.
    fn settle(&mut self) {
        if self.now().since.is_none() {
            while self.b.shard.is_leaving(PLAIN) {
                self.drop_rows(&self.now());
            }
            self.step(&Step::Join);
        }
        self.seal();
        self.write(1);
        while self.b.shard.is_leaving(PLAIN) {
            let epoch = self.b.shard.epoch(PLAIN);
            self.b.control(Kind::DropBucket, PLAIN, epoch, &Body::DropBucket);
        }
        self.fill(0);
        while self.ship(&self.now(), 3) {}
        self.check();
        let (ours, theirs) = (self.b.shard.digest(PLAIN).unwrap(), self.a.shard.digest(PLAIN).unwrap());
        assert_eq!((&ours.positions, ours.hash, ours.keys), (&theirs.positions, theirs.hash, theirs.keys));
        assert_eq!(self.b.shard.epoch(PLAIN), self.a.shard.epoch(PLAIN));
        self.b.check_digests();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_region_that_comes_back_lacks_nothing_and_brings_nothing_back(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        world.settle();
    }
}

#[test]
fn con_5_what_was_removed_while_the_region_was_away_stays_removed_and_late_frames_change_nothing() {
    let mut world = World::new();
    world.write(1);
    world.write(2);
    while world.ship(&world.now(), 9) {}
    let late = world.sent.clone();
    world.step(&Step::Leave);
    world.seal();
    world.drop_rows(&world.now());
    assert_eq!((world.b.text(PLAIN, "k1"), world.b.shard.has_left(PLAIN)), (None, true));
    world.step(&Step::Remove(1));
    world.b.restart();
    world.step(&Step::Join);
    world.seal();
    world.write(4);
    // Before it is filled: what is of its epoch waits, what is of an earlier one has no place here.
    while world.ship(&world.now(), 9) {}
    world.b.receive(&late.unwrap());
    assert_eq!(world.b.text(PLAIN, "k4"), None);
    world.drop_rows(&world.heard(1));
    world.fill(2);
    world.drop_rows(&world.heard(1));
    assert_eq!(world.b.text(PLAIN, "k1"), None);
    assert_eq!(world.b.text(PLAIN, "k2"), world.a.text(PLAIN, "k2"));
    world.settle();
}
