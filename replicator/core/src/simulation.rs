//! A seeded world of one lane: a log that grows, a Shipper, a stream that breaks, a Receiver, a group that
//! applies late and fails, crashes of either end, and receivers of old streams whose frames still arrive.
//! After each step the promises are checked; then everything heals and progress is demanded.

mod group;
mod world;

use world::{Faults, World};

#[test]
fn a_replica_sees_every_entry_in_order_once_through_any_faults_ord_1() {
    let mut restarts = 0;
    for seed in 0..100 {
        let mut world = World::new(seed, Faults::All);
        world.run(1_500);
        world.heal();
        world.run(1_500);
        world.assert_caught_up();
        restarts += world.crashes;
    }
    assert!(restarts > 100, "the faults really happened: {restarts}");
}

#[test]
fn a_replica_follows_within_a_second_when_nothing_fails() {
    // Seeds that end in 7 write a hundred times what the window lets through in that time.
    for seed in (0..60).filter(|seed| seed % 10 != 7) {
        let mut world = World::new(seed, Faults::None);
        world.run(1_000);
        world.heal();
        world.run(1_000);
        world.assert_caught_up();
    }
}

#[test]
fn an_idle_lane_sends_heartbeats_only_and_none_when_nobody_asks() {
    for seed in 0..40 {
        let mut world = World::new(seed, Faults::All);
        world.run(800);
        world.heal();
        world.run(1_500);
        let (frames, heartbeats) = (world.frames, world.heartbeats);
        world.run(2_000);
        assert_eq!(world.frames, frames, "seed {seed}: frames on an idle lane");
        let beats = world.heartbeats - heartbeats;
        assert!((15..=21).contains(&beats), "seed {seed}: {beats} heartbeats in 2 s of probes every 100 ms");
        world.probed = false;
        world.run(200);
        let heartbeats = world.heartbeats;
        world.run(2_000);
        assert_eq!((world.frames, world.heartbeats), (frames, heartbeats), "seed {seed}: silence");
    }
}

#[test]
fn a_seed_is_a_world() {
    for seed in [1, 77] {
        let run = || {
            let mut world = World::new(seed, Faults::All);
            world.run(1_500);
            (world.frames, world.heartbeats, world.crashes, world.applied().to_vec())
        };
        assert_eq!(run(), run());
    }
}
