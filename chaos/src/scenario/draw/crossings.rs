//! Buckets that one region writes come to be written by all of them, and the other way round, while they serve. Half of the time something
//! happens between the two commits of that: a region is gone, or cut off from one that waits for it, or somebody else wants something else
//! of the same bucket.

use std::time::Duration;

use meridian_types::Policy;

use super::policies;
use crate::scenario::{BucketPlan, Planned, Scenario};
use crate::workload::Kind;
use crate::world::{Dice, Fault, Keep, Loss};

/// The chance that a bucket crosses in a world.
const EXISTS: f64 = 0.22;

/// The chance that something happens at about the same time.
const BESIDE: f64 = 0.5;

/// The chance that the metadata leader is gone at about that time.
const LEADERLESS: f64 = 0.15;

/// The share of worlds that are about crossings and nothing else.
const ALONE: f64 = 0.025;

/// Work that buckets of both kinds take, all of it or most.
const OF_BOTH: [Kind; 4] = [Kind::ActiveActive, Kind::Counter, Kind::Session, Kind::Register];

/// Crossings of one bucket for a planet of so many nodes, and clients for it who go on through them.
pub(super) fn draw(dice: &Dice, buckets: &mut [BucketPlan], nodes: usize, seconds: u64) -> Vec<Planned> {
    if buckets.is_empty() || !dice.chance(EXISTS) {
        return Vec::new();
    }
    let bucket = dice.index(buckets.len());
    work(dice, &mut buckets[bucket]);
    let end_ms = (seconds * 1000 * 2 / 3).max(1_001);
    let mut times: Vec<u64> = (0..dice.between(1, 6)).map(|_| dice.between(1_000, end_ms)).collect();
    times.sort_unstable();
    let mut open = !buckets[bucket].policy.has_primary();
    let mut planned = Vec::new();
    for at_ms in times {
        open = !open;
        planned.push(Planned { at_ms, what: cross(dice, (bucket, open), nodes) });
        if dice.chance(BESIDE) {
            let at_ms = at_ms + dice.between(0, [10, 400, 3_000][dice.index(3)]);
            let both = beside(dice, (bucket, open), buckets[bucket].policy, nodes);
            planned.extend(both.into_iter().map(|what| Planned { at_ms, what }));
        }
        planned.extend(leaderless(dice, at_ms));
    }
    planned
}

/// The world that was drawn, or one in which a bucket crosses again and again, and one thing breaks each time at most.
pub(super) fn instead_of(drawn: Scenario, dice: &Dice) -> Scenario {
    if !dice.chance(ALONE) {
        return drawn;
    }
    let mut world = drawn;
    let (bucket, nodes) = (dice.index(world.buckets.len()), world.regions);
    work(dice, &mut world.buckets[bucket]);
    let mut open = !world.buckets[bucket].policy.has_primary();
    let mut at_ms = dice.between(1_000, 3_000);
    world.faults = Vec::new();
    while at_ms + 2_000 < world.seconds * 1000 * 2 / 3 {
        open = !open;
        world.faults.push(Planned { at_ms, what: cross(dice, (bucket, open), nodes) });
        let lasts = Duration::from_millis(dice.between(50, 3_000));
        let broken = match dice.index(6) {
            0 => Some(partition(dice, nodes, lasts)),
            1 => Some(crash(dice, nodes, lasts)),
            2 => Some(Fault::TurnBack { bucket }),
            3 => Some(Fault::CrashMetadataLeader { away: lasts }),
            _ => None,
        };
        let soon_ms = at_ms + dice.between(0, [10, 300, 1_000][dice.index(3)]);
        world.faults.extend(broken.map(|what| Planned { at_ms: soon_ms, what }));
        at_ms += dice.between(1_500, 6_000);
    }
    world.faults.sort_by_key(|planned| planned.at_ms);
    world
}

/// Clients who have something to do whoever writes.
fn work(dice: &Dice, bucket: &mut BucketPlan) {
    for (place, plan) in bucket.workloads.iter_mut().enumerate() {
        if place == 0 || dice.chance(0.5) {
            plan.kind = OF_BOTH[dice.index(OF_BOTH.len())];
        }
        plan.think_ms = plan.think_ms.min(200);
    }
    bucket.workloads.dedup_by_key(|plan| plan.kind);
}

fn cross(dice: &Dice, (bucket, open): (usize, bool), nodes: usize) -> Fault {
    // Not a ceiling: that is set afterwards, when something can lag.
    let (asynchronous, one) = (dice.chance(0.4), policies::sync(dice, nodes));
    let to = if open {
        Policy::ActiveActive
    } else if asynchronous {
        Policy::ASYNC
    } else {
        one
    };
    let primary = dice.index(nodes);
    let pause_ms_max = [300, 1_000, 3_000, 6_000][dice.index(4)];
    Fault::Cross { bucket, to, primary: (!open).then_some(primary), pause_ms_max }
}

/// What happens meanwhile.
fn beside(dice: &Dice, (bucket, open): (usize, bool), policy: Policy, nodes: usize) -> Vec<Fault> {
    let lasts = Duration::from_millis(dice.between(100, [1_000, 4_000, 9_000][dice.index(3)]));
    let (node, other) = (dice.index(nodes), dice.index(nodes));
    let failover = Fault::Failover { bucket, to: dice.chance(0.3).then_some(other), forced: dice.chance(0.6) };
    match dice.index(14) {
        0 | 1 => vec![Fault::TurnBack { bucket }],
        2 => vec![cross(dice, (bucket, open), nodes)],
        3 => vec![cross(dice, (bucket, !open), nodes)],
        4 => vec![Fault::Isolate { node, lasts }],
        5 | 6 => vec![crash(dice, nodes, lasts)],
        7 | 8 => vec![partition(dice, nodes, lasts)],
        9 => vec![Fault::Loss { from: node, to: (node + 1) % nodes, share: 0.05 + 0.3 * dice.unit(), lasts }],
        10 => {
            vec![Fault::ChangePolicy { bucket, to: policies::other(dice, policy, nodes), settings: dice.chance(0.5) }]
        }
        11 => vec![Fault::ChangeRegions { bucket, node, add: dice.chance(0.5) }],
        12 => {
            let how = if dice.chance(0.5) { Loss::Crash } else { Loss::Cut };
            vec![Fault::LosePrimary { bucket, how, lasts }, failover]
        }
        _ => vec![Fault::Switchover {
            bucket,
            to: other,
            lag_ms_max: [0, 200, 1_000][dice.index(3)],
            pause_ms_max: [300, 2_000, 10_000][dice.index(3)],
        }],
    }
}

fn leaderless(dice: &Dice, at_ms: u64) -> Option<Planned> {
    if !dice.chance(LEADERLESS) {
        return None;
    }
    let away = Duration::from_millis(dice.between(50, 4_000));
    Some(Planned { at_ms: at_ms + dice.between(0, 400), what: Fault::CrashMetadataLeader { away } })
}

fn crash(dice: &Dice, nodes: usize, away: Duration) -> Fault {
    Fault::Crash { node: dice.index(nodes), keep: [Keep::None, Keep::All, Keep::Torn][dice.index(3)], away }
}

fn partition(dice: &Dice, nodes: usize, lasts: Duration) -> Fault {
    let from = dice.index(nodes);
    let to = (from + 1 + dice.index(nodes - 1)) % nodes;
    Fault::Partition { from, to, both_ways: dice.chance(0.7), lasts }
}
