//! Regions that do not come back, and some that do (docs/adr/2026-11-28-active-active-lost-regions.md): over random writes, losses that end
//! and that are given up, lost regions that live and go on to order and to ship, late and repeated frames, copies that have not heard,
//! fetching that is cut off, and restarts, those that are left are equal (CON-4), nothing of a lost region counts beyond what any of
//! them had (FEN-2), nothing else is lost, and it joins again.

use meridian_region_core::repair::need::want;
use meridian_region_core::repair::{Need, Want};
use meridian_types::{Loss, RepairReason};

use super::*;
use crate::repair::propose;

impl Record {
    pub(super) fn lose(&mut self, region: RegionId) {
        self.index += 1;
        let free = self.bucket.crossing.is_none() && self.bucket.joins.now.is_none();
        if free && self.bucket.is_in(region) && self.bucket.regions.len() > 2 {
            let accepted = Loss { unbounded: true, ..Loss::default() };
            let way = Way::Losing { region, accepted, stopped: BTreeMap::new(), remains: BTreeMap::new() };
            let (index, at, pause_ms_max) = (self.index, Hlc(0), 1000);
            self.bucket.crossing = Some(Crossing { index, at, pause_ms_max, way, arrived: BTreeMap::new() });
        }
    }
}

/// What a region that is left has of a lost one.
pub(super) fn hear(crossing: &mut Crossing, region: RegionId, copies: &Copies) {
    let index = crossing.index;
    if let (Way::Losing { stopped, remains, .. }, Copies::Parted { crossing, at }) = (&mut crossing.way, copies)
        && *crossing == index
    {
        stopped.entry(region).or_insert_with(|| at.iter().map(|(shard, it)| (*shard, it.0)).collect());
        remains.entry(region).or_insert_with(|| at.iter().map(|(shard, it)| (*shard, it.1)).collect());
    }
}

impl World {
    /// Whether what was acknowledged was not lost with its region.
    pub(super) fn counts_still(&self, ordered: &Ordered) -> bool {
        let lost = |(region, epoch, cut): &(RegionId, Epoch, Lsn)| {
            *region == ordered.region && ordered.epoch <= *epoch && ordered.lsn > *cut
        };
        !self.record.losses.iter().any(lost)
    }

    /// From whoever has most, as the repairs of a node do; what it takes in of its lane meanwhile waits.
    pub(super) fn fetch(&mut self, at: usize, crash_at: usize) {
        let Region { replica, known: (known, _), .. } = &self.regions[at];
        let Some(Want::Repair(Need { source, claim, reason: RepairReason::Asked, .. })) = want(&replica.shard, known)
        else {
            return;
        };
        let from = REGIONS.iter().position(|it| *it == source).unwrap();
        let (epoch, source) = (replica.shard.epoch(MERGED), &self.regions[from]);
        let fit = source.replica.shard.unfit_as_source(MERGED).is_none();
        if !fit || source.replica.shard.epoch(MERGED) < epoch {
            return;
        }
        let known = source.known.0.clone();
        let take = |region: &mut Region| std::mem::replace(&mut region.replica, Replica::new(1));
        let (mut target, mut source) = (take(&mut self.regions[at]), take(&mut self.regions[from]));
        let mut looks = 0;
        repair(&mut target, &mut source, (MERGED, claim), &mut |target, source| {
            looks += 1;
            if let Some(frame) = frame_to(source, &known, target, 2).filter(|_| looks < 6) {
                deliver(target, &frame);
            }
            looks == crash_at
        });
        (self.regions[at].replica, self.regions[from].replica) = (target, source);
    }

    /// It has heard that the others went on without it: it gives up what it alone has, as `region/node/src/repair/tail.rs` does, and
    /// drops the rest when it looks again.
    pub(super) fn come_back(&mut self, at: usize) {
        let Region { replica, known: (known, _), .. } = &self.regions[at];
        let (shard, region, epoch) = (&replica.shard, replica.region, known.epoch);
        if known.reaches(region) || !shard.knows(MERGED) || shard.has_left(MERGED) {
            return;
        }
        if shard.given_up(MERGED).is_some() {
            let dropped = self.regions[at].replica.control(Kind::DropBucket, MERGED, epoch, &Body::DropBucket);
            return assert_eq!(dropped.refused, None);
        }
        let own = shard.positions(MERGED).of(region);
        let tail = |it: &&usize| {
            let other = &self.regions[**it].replica.shard;
            let there = known.is_in(REGIONS[**it]) && other.epoch(MERGED) > shard.epoch(MERGED);
            there && other.positions(MERGED).of(region) < own && other.unfit_as_source(MERGED).is_none()
        };
        let Some(from) = [0, 1, 2].iter().find(tail).copied() else { return };
        let other = &self.regions[from].replica.shard;
        let counts = other.positions(MERGED).of(region);
        let parted = shard.parted(MERGED);
        let source = known.regions.iter().copied().find(|it| Some(*it) != parted).unwrap();
        let replica = &mut self.regions[at].replica;
        let (begun, _) = propose(replica, MERGED, RepairStep::Begin { source });
        let (_, gave) = propose(replica, MERGED, RepairStep::GiveUp { begun, cut: counts });
        assert_eq!((gave.refused, replica.shard.given_up(MERGED)), (None, Some(counts)));
    }
}

fn loses() -> impl Strategy<Value = Step> {
    let at = 0usize..3;
    prop_oneof![
        12 => step(),
        2 => at.clone().prop_map(Step::Lose),
        3 => (at.clone(), 0usize..9).prop_map(|(at, crash_at)| Step::Fetch { at, crash_at }),
        1 => at.prop_map(Step::Return),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(384))]

    #[test]
    fn those_that_are_left_are_equal_and_nothing_of_a_lost_region_counts_that_none_of_them_had(
        steps in prop::collection::vec(loses(), 1..300)
    ) {
        let mut world = World::new();
        steps.iter().for_each(|step| world.step(step));
        world.settle();
        (0..3).for_each(|at| world.step(&Step::Add(at)));
        world.settle();
        (0..3).for_each(|at| world.step(&Step::Add(at)));
        world.settle();
        prop_assert_eq!(&world.record.bucket.regions[..], &REGIONS[..]);
        (0..3).for_each(|at| world.step(&Step::Put(at)));
        (0..3).for_each(|at| world.step(&Step::Count(at)));
        world.settle();
        world.judge();
    }
}

/// C has ordered two writes: A has the first, B none. It goes on to order while it is given up.
fn lost() -> World {
    let mut world = World::new();
    (0..2).for_each(|_| world.step(&Step::Put(2)));
    world.step(&Step::Ship { from: 2, to: 0, entries_max: 1, of_the_past: false });
    world.step(&Step::Lose(2));
    world
}

fn the_rest_hears_and_acts(world: &mut World) {
    for at in 0..2 {
        world.step(&Step::Hear(at));
        world.step(&Step::Act(at));
    }
}

#[test]
fn the_most_that_any_has_of_the_lost_one_counts_and_nothing_that_it_sends_meanwhile() {
    let mut world = lost();
    the_rest_hears_and_acts(&mut world);
    world.step(&Step::Put(2));
    for to in 0..2 {
        while world.ship(2, to, 9, false) {}
    }
    let has = |world: &World, at: usize| world.regions[at].replica.shard.positions(MERGED).of(REGIONS[2]);
    assert!(has(&world, 0) > has(&world, 1), "each stands where it parted");
    for _ in 0..3 {
        the_rest_hears_and_acts(&mut world);
        world.step(&Step::Fetch { at: 1, crash_at: 2 });
        [(0, 1), (1, 0)].iter().for_each(|(from, to)| while world.ship(*from, *to, 9, false) {});
    }
    assert_eq!(world.record.losses, [(REGIONS[2], Epoch(1), has(&world, 1))]);
    for name in ["put/0", "put/1", "put/2"] {
        let there = [0, 1].map(|at| world.regions[at].replica.text(MERGED, name).is_some());
        assert_eq!(there, [name == "put/0"; 2], "{name}");
    }
    assert_eq!(world.regions[2].replica.text(MERGED, "put/2").as_deref(), Some("v"), "it has not heard");
    world.settle();
    world.judge();
    assert!(world.regions[2].replica.shard.has_left(MERGED));
}

#[test]
fn what_the_lost_one_sends_is_no_copy_until_its_loss_is_given_up() {
    let mut world = lost();
    the_rest_hears_and_acts(&mut world);
    while world.ship(2, 1, 9, false) {}
    assert!(world.regions[1].replica.text(MERGED, "put/1").is_none());
    world.regions[1].replica.restart();
    world.step(&Step::GiveUp);
    the_rest_hears_and_acts(&mut world);
    while world.ship(2, 1, 9, false) {}
    assert_eq!(world.regions[1].replica.text(MERGED, "put/1").as_deref(), Some("v"));
    assert!(world.record.losses.is_empty() && world.regions[1].replica.shard.parted(MERGED).is_none());
    world.settle();
    world.judge();
}
