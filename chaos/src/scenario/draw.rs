//! Draws scenarios from seeds. Every seed has its own few kinds of faults, as strong as it pleases (swarm testing: Groce
//! et al., 2012): what never happens together in one world does in another.

mod alone;
mod crossings;
mod failovers;
mod losses;
mod policies;
mod regions;
mod settings;
mod several;
mod short_logs;
mod switchovers;
mod weak_nodes;

use std::time::Duration;

use meridian_types::{Acks, AutoMode, BucketName, Policy};

use super::{
    BucketPlan, Planned, Scenario, WorkloadPlan, auto_interval_ms, auto_per_day, nodes, purge_entries, retention_bytes,
    window_bytes,
};
use crate::workload::Kind;
use crate::world::{Dice, Fault, Keep};

/// The share of worlds in which nothing breaks: the control.
const CALM: f64 = 0.05;

/// The chance that a kind of fault exists in a world.
const EXISTS: f64 = 0.35;

/// The chance that something breaks in a world that the product relies on. Not more: such a world proves less.
const BEYOND: f64 = 0.04;

/// The chance that keys with a time to live are written in a bucket.
const EXPIRES: f64 = 0.2;

/// The chance that operators move primaries in a world.
const MOVES: f64 = 0.5;

/// The chance that little may be on its way between two nodes: that lanes wait for their windows.
const TIGHT: f64 = 0.1;

/// Draws a fault for a planet of that many nodes; the duration is how long it lasts.
type Draw = fn(&Dice, usize, Duration) -> Fault;

const FAULTS: [Draw; 21] = [
    |dice, nodes, away| Fault::Crash { node: dice.index(nodes), keep: Keep::None, away },
    |dice, nodes, away| Fault::Crash { node: dice.index(nodes), keep: Keep::All, away },
    |dice, nodes, away| Fault::Crash { node: dice.index(nodes), keep: Keep::Prefix, away },
    |dice, nodes, away| Fault::Crash { node: dice.index(nodes), keep: Keep::Torn, away },
    |dice, nodes, away| Fault::Crash { node: dice.index(nodes), keep: Keep::Subset, away },
    // Gone and back at once: what was under way meets the next life.
    |dice, nodes, _| Fault::Crash { node: dice.index(nodes), keep: Keep::None, away: Duration::from_millis(50) },
    |_, _, away| Fault::Blackout { keep: Keep::None, away },
    |dice, nodes, lasts| {
        let (from, to) = pair(dice, nodes);
        Fault::Partition { from, to, both_ways: true, lasts }
    },
    |dice, nodes, lasts| {
        let (from, to) = pair(dice, nodes);
        Fault::Partition { from, to, both_ways: false, lasts }
    },
    |dice, nodes, lasts| Fault::Isolate { node: dice.index(nodes), lasts },
    |dice, nodes, lasts| Fault::Muteness { node: dice.index(nodes), lasts },
    |dice, nodes, lasts| {
        let (from, to) = pair(dice, nodes);
        Fault::Loss { from, to, share: 0.01 + 0.29 * dice.unit(), lasts }
    },
    |dice, nodes, lasts| {
        let (from, to) = pair(dice, nodes);
        Fault::Delay { from, to, slower: dice.duration(Duration::from_millis(20), Duration::from_millis(400)), lasts }
    },
    |dice, nodes, lasts| {
        let (from, to) = pair(dice, nodes);
        Fault::Narrow { from, to, bytes_per_second: dice.between(10_000, 200_000), lasts }
    },
    |dice, nodes, lasts| Fault::SlowDisk {
        node: dice.index(nodes),
        sync: dice.duration(Duration::from_millis(20), Duration::from_millis(800)),
        lasts,
    },
    |dice, nodes, lasts| Fault::StalledDisk { node: dice.index(nodes), lasts },
    |dice, nodes, lasts| Fault::FullDisk { node: dice.index(nodes), lasts },
    |dice, nodes, lasts| Fault::Pause { node: dice.index(nodes), lasts },
    // Any two clocks within the 1 % that is assumed.
    |dice, nodes, lasts| Fault::Drift { node: dice.index(nodes), rate_ppm: dice.between(995_100, 1_004_900), lasts },
    |dice, nodes, lasts| Fault::Step { node: dice.index(nodes), by_ms: step_ms(dice), lasts },
    |_, _, away| Fault::CrashMetadataLeader { away },
];

/// A few milliseconds to an hour, either way.
fn step_ms(dice: &Dice) -> i64 {
    let size = [50, 1_000, 10_000, 3_600_000][dice.index(4)];
    if dice.chance(0.5) { size } else { -size }
}

fn pair(dice: &Dice, nodes: usize) -> (usize, usize) {
    let from = dice.index(nodes);
    (from, (from + 1 + dice.index(nodes - 1)) % nodes)
}

pub(super) fn scenario(seed: u64, seconds: u64) -> Scenario {
    // Another stream than the planet's own.
    let dice = Dice::new(seed ^ 0x5eed_0f5c_e4a2_1055);
    let regions = [3, 3, 3, 3, 2, 4, 5][dice.index(7)];
    let mut buckets = buckets(&dice, regions);
    let calm = dice.chance(CALM);
    let mut faults = if calm { Vec::new() } else { faults(&dice, regions, seconds) };
    if !calm && dice.chance(MOVES) {
        faults.extend(switchovers::draw(&dice, buckets.len(), regions, seconds));
    }
    if !calm && dice.fork().chance(BEYOND) {
        faults.push(beyond(&dice.fork(), regions, seconds));
    }
    // Further kinds have streams of their own: one more leaves the others of a seed as they were.
    settings::draw(&Dice::new(seed ^ 0x5e77_1465), &mut buckets);
    let lives = Dice::new(seed ^ 0xb41e_f0e5);
    buckets.iter_mut().for_each(|bucket| bucket.brief = bucket.policy.has_primary() && lives.chance(EXPIRES));
    if !calm {
        faults.extend(failovers::draw(&Dice::new(seed ^ 0xfa11_07e2), &buckets, regions, seconds));
        faults.extend(policies::draw(&Dice::new(seed ^ 0x9011_c1e5), &buckets, regions, seconds));
        faults.extend(regions::draw(&Dice::new(seed ^ 0x5e75_0f17), &mut buckets, regions, seconds));
        faults.extend(regions::draw_active(&Dice::new(seed ^ 0xa11_0f05), &mut buckets, regions, seconds));
    }
    let powers = Dice::new(seed ^ 0xb1ac_0075);
    faults.iter_mut().for_each(|planned| vary_power_loss(&powers, &mut planned.what));
    faults.sort_by_key(|planned| planned.at_ms);
    let widths = Dice::new(seed ^ 0x71d7_0b1d);
    let tight = widths.chance(TIGHT).then(|| [1 << 10, 4 << 10, 16 << 10][widths.index(3)]);
    let drawn = Scenario {
        name: format!("seed {seed}"),
        seed: Some(seed),
        seconds,
        regions,
        nodes: nodes(),
        shards: u16::try_from(dice.between(1, 3)).unwrap_or(1),
        wall_skew_ms: [0, 5, 20, 100][dice.index(4)],
        persist_every_ms: [500, 3_000, 10_000, 60_000][dice.index(4)],
        window_bytes: tight.unwrap_or_else(window_bytes),
        retention_bytes: retention_bytes(),
        purge_entries: purge_entries(),
        buckets,
        faults,
    };
    let several = Dice::new(seed ^ SEVERAL);
    if calm {
        return several::instead_of(drawn, &several);
    }
    let mut world = alone::instead_of(drawn.clone(), &Dice::new(seed ^ ALONE));
    if world == drawn {
        let crossings = crossings::draw(&Dice::new(seed ^ 0xc405_51f9), &mut world.buckets, regions, seconds);
        world.faults.extend(crossings);
        world.faults.extend(losses::draw(&Dice::new(seed ^ 0x1057_0f05), &world.buckets, regions, seconds));
        world.faults.extend(weak_nodes::draw(&Dice::new(seed ^ 0x3ea4_0de5), regions, seconds));
        short_logs::draw(&Dice::new(seed ^ 0x5047_106f), &mut world);
        world.faults.sort_by_key(|planned| planned.at_ms);
    }
    several::instead_of(crossings::instead_of(world, &Dice::new(seed ^ ALONE_CROSSING)), &several)
}

/// Half of the blackouts take everything that was not synced; disks keep some of it in the others, or only the processes die.
fn vary_power_loss(dice: &Dice, fault: &mut Fault) {
    if let Fault::Blackout { keep, .. } = fault {
        *keep = [Keep::None, Keep::None, Keep::None, Keep::None, Keep::Prefix, Keep::Torn, Keep::Subset, Keep::All]
            [dice.index(8)];
    }
}

/// Whose worlds are about one thing.
const ALONE: u64 = 0xa10e_00f0;

/// Whose worlds are about crossings.
const ALONE_CROSSING: u64 = 0xa10e_c405;

/// Whose regions have several nodes.
const SEVERAL: u64 = 0x5eef_e4a1;

fn buckets(dice: &Dice, regions: usize) -> Vec<BucketPlan> {
    let policies = [
        Policy::ASYNC,
        Policy::sync(Acks::One),
        Policy::sync(Acks::Majority),
        Policy::sync(Acks::All),
        Policy::ActiveActive,
    ];
    let count = dice.between(1, 2);
    let bucket = |number| {
        let policy = policies[dice.index(policies.len())];
        let kinds: &[Kind] = if policy == Policy::ActiveActive { &Kind::ACTIVE_ACTIVE } else { &Kind::WITH_PRIMARY };
        let workload = |_| WorkloadPlan {
            kind: kinds[dice.index(kinds.len())],
            clients: u32::try_from(dice.between(1, 3)).unwrap_or(1),
            keys: u32::try_from(dice.between(1, 5)).unwrap_or(1),
            think_ms: [20, 100, 200, 500][dice.index(4)],
            deadline_ms: [500, 2_000, 5_000][dice.index(3)],
        };
        let mut workloads: Vec<WorkloadPlan> = (0..dice.between(1, 2)).map(workload).collect();
        // Two workloads of one kind would be one.
        workloads.dedup_by_key(|plan| plan.kind);
        let name = BucketName::new(&format!("bucket-{number}"));
        name.ok().map(|name| BucketPlan {
            name,
            policy,
            auto: AutoMode::Manual,
            auto_interval_ms: auto_interval_ms(),
            auto_per_day: auto_per_day(),
            brief: false,
            without: Vec::new(),
            workloads,
        })
    };
    debug_assert!(regions >= 2);
    (1..=count).filter_map(bucket).collect()
}

fn faults(dice: &Dice, nodes: usize, seconds: u64) -> Vec<Planned> {
    let mut kinds: Vec<Draw> = FAULTS.into_iter().filter(|_| dice.chance(EXISTS)).collect();
    if kinds.is_empty() {
        kinds.push(FAULTS[dice.index(FAULTS.len())]);
    }
    // Everything is whole after two thirds.
    let end_ms = seconds * 1000 * 2 / 3;
    let longest = [1_000, 4_000, 12_000][dice.index(3)].min(end_ms.max(100));
    let count = dice.between(1, 12);
    let mut faults: Vec<Planned> = (0..count)
        .map(|_| {
            let lasts = dice.duration(Duration::from_millis(20), Duration::from_millis(longest));
            let at_ms = dice.between(500, end_ms.saturating_sub(200).max(500));
            // To the millisecond, as a file would have it.
            let lasts = Duration::from_millis(u64::try_from(lasts.as_millis()).unwrap_or(longest));
            Planned { at_ms, what: whole(kinds[dice.index(kinds.len())](dice, nodes, lasts)) }
        })
        .collect();
    faults.sort_by_key(|planned| planned.at_ms);
    faults
}

/// Damage in a region that has nothing to repair itself from, or a clock that runs faster than clocks do.
fn beyond(dice: &Dice, nodes: usize, seconds: u64) -> Planned {
    let node = dice.index(nodes);
    let what = match dice.index(3) {
        0 => Fault::RotLog { node },
        1 => Fault::RotState { node },
        _ => Fault::Drift {
            node,
            rate_ppm: [900_000, 1_100_000, 1_500_000][dice.index(3)],
            lasts: Duration::from_millis(dice.between(1_000, 15_000)),
        },
    };
    Planned { at_ms: dice.between(500, (seconds * 1000 * 2 / 3).max(501)), what }
}

/// Durations of a fault to the millisecond.
fn whole(fault: Fault) -> Fault {
    let ms = |it: Duration| Duration::from_millis(u64::try_from(it.as_millis()).unwrap_or(u64::MAX));
    match fault {
        Fault::SlowDisk { node, sync, lasts } => Fault::SlowDisk { node, sync: ms(sync), lasts },
        Fault::Delay { from, to, slower, lasts } => Fault::Delay { from, to, slower: ms(slower), lasts },
        other => other,
    }
}
