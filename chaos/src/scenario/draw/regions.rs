//! Regions that come to hold buckets and hold them no more, while they serve. Half of the time somebody else does something about the
//! same bucket at about the same time: changes his mind, changes another region or the policy, moves the primary, loses it, gives it
//! up; or the region that comes or goes is gone in the middle of it, or the metadata leader.

use std::time::Duration;

use super::policies;
use crate::scenario::{BucketPlan, Planned};
use crate::world::{Dice, Fault, Keep, Loss};

/// The chance that regions of buckets with a primary change in a world that has some.
const EXISTS: f64 = 0.25;

/// The chance that those of active-active buckets do: fewer worlds have some.
const EXISTS_ACTIVE: f64 = 0.5;

/// The chance that a bucket begins without one of the regions.
const WITHOUT: f64 = 0.4;

/// The chance that it is the first region, which is often the primary: then it must not go.
const FIRST: f64 = 0.1;

/// The chance that somebody else does something about the same bucket at about the same time.
const BESIDE: f64 = 0.5;

/// The chance that the metadata leader is gone at about that time.
const LEADERLESS: f64 = 0.15;

/// Changes of buckets with a primary for a planet of so many nodes, and what these begin without.
pub(super) fn draw(dice: &Dice, buckets: &mut [BucketPlan], nodes: usize, seconds: u64) -> Vec<Planned> {
    let with_primary = (0..buckets.len()).filter(|at| buckets[*at].policy.has_primary()).collect();
    changes(dice, (EXISTS, with_primary), buckets, nodes, seconds)
}

/// The same of buckets that every region writes. Of two regions none may go.
pub(super) fn draw_active(dice: &Dice, buckets: &mut [BucketPlan], nodes: usize, seconds: u64) -> Vec<Planned> {
    let active = (0..buckets.len()).filter(|at| nodes > 2 && !buckets[*at].policy.has_primary()).collect();
    changes(dice, (EXISTS_ACTIVE, active), buckets, nodes, seconds)
}

fn changes(
    dice: &Dice,
    (exists, chosen): (f64, Vec<usize>),
    buckets: &mut [BucketPlan],
    nodes: usize,
    seconds: u64,
) -> Vec<Planned> {
    if chosen.is_empty() || !dice.chance(exists) {
        return Vec::new();
    }
    for at in &chosen {
        let node = 1 + dice.index(nodes - 1);
        if dice.chance(WITHOUT) && buckets[*at].policy.validate(nodes - 1).is_ok() {
            buckets[*at].without.push(node);
        }
    }
    let mut holds: Vec<Vec<bool>> =
        buckets.iter().map(|bucket| (0..nodes).map(|node| !bucket.without.contains(&node)).collect()).collect();
    let end_ms = (seconds * 1000 * 2 / 3).max(1_001);
    let mut times: Vec<u64> = (0..dice.between(1, 5)).map(|_| dice.between(1_000, end_ms)).collect();
    times.sort_unstable();
    let mut planned = Vec::new();
    for at_ms in times {
        let bucket = chosen[dice.index(chosen.len())];
        let mut change = |node: usize| {
            let holds = &mut holds[bucket][node];
            *holds = !*holds;
            Fault::ChangeRegions { bucket, node, add: *holds }
        };
        let node = if dice.chance(FIRST) { 0 } else { 1 + dice.index(nodes - 1) };
        planned.push(Planned { at_ms, what: change(node) });
        if dice.chance(BESIDE) {
            let at_ms = at_ms + dice.between(0, [10, 400, 3_000][dice.index(3)]);
            let plan = &buckets[bucket];
            let what = match dice.index(8) {
                0 => vec![change(node)],
                1 => vec![change(dice.index(nodes))],
                2 | 3 if !plan.policy.has_primary() => vec![change(node)],
                2 => vec![policy(dice, bucket, plan, nodes)],
                kind if plan.policy.has_primary() => beside(dice, kind, (bucket, node), nodes),
                // Whoever does not come or go is waited for, too.
                kind => beside(dice, 5 + kind % 2, (bucket, dice.index(nodes)), nodes),
            };
            planned.extend(what.into_iter().map(|what| Planned { at_ms, what }));
        }
        if dice.chance(LEADERLESS) {
            let away = Duration::from_millis(dice.between(50, 4_000));
            planned.push(Planned { at_ms: at_ms + dice.between(0, 400), what: Fault::CrashMetadataLeader { away } });
        }
    }
    planned
}

fn policy(dice: &Dice, bucket: usize, plan: &BucketPlan, nodes: usize) -> Fault {
    Fault::ChangePolicy { bucket, to: policies::other(dice, plan.policy, nodes), settings: dice.chance(0.5) }
}

/// What becomes of the primary meanwhile, or of the region that comes or goes.
fn beside(dice: &Dice, kind: usize, (bucket, node): (usize, usize), nodes: usize) -> Vec<Fault> {
    let lasts = Duration::from_millis(dice.between(500, [3_000, 9_000][dice.index(2)]));
    let to = dice.index(nodes);
    let failover = Fault::Failover { bucket, to: dice.chance(0.3).then_some(to), forced: dice.chance(0.6) };
    match kind {
        3 => vec![Fault::Switchover {
            bucket,
            to,
            lag_ms_max: [0, 200, 1_000][dice.index(3)],
            pause_ms_max: [300, 2_000, 10_000][dice.index(3)],
        }],
        4 => {
            let how = if dice.chance(0.5) { Loss::Crash } else { Loss::Cut };
            vec![Fault::LosePrimary { bucket, how, lasts }, failover]
        }
        5 => vec![Fault::Isolate { node, lasts }],
        6 => vec![Fault::Crash { node, keep: [Keep::None, Keep::All, Keep::Torn][dice.index(3)], away: lasts }],
        _ => vec![failover],
    }
}
