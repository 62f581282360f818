//! Changes of policies while buckets serve: from `async` to `sync` and back, of how many copies there are to be, of what may be risked.
//! Operators get in each other's way: two change a bucket at once, or one does while another moves its primary, or gives it up for lost;
//! the metadata leader is gone in the middle of it.

use std::time::Duration;

use meridian_types::{Acks, OnPartition, Policy};

use super::settings;
use crate::scenario::{BucketPlan, Planned};
use crate::world::{Dice, Fault, Loss};

/// The chance that policies change in a world.
const EXISTS: f64 = 0.4;

/// The chance that a change goes to the other lane.
const TURNS: f64 = 0.6;

/// The chance of a setting that a policy leaves room for.
const SETTING: f64 = 0.35;

/// The chance that somebody else does something about the same bucket at about the same time.
const BESIDE: f64 = 0.5;

/// The chance that the metadata leader is gone at about that time.
const LEADERLESS: f64 = 0.15;

/// Changes for a planet of so many nodes.
pub(super) fn draw(dice: &Dice, buckets: &[BucketPlan], nodes: usize, seconds: u64) -> Vec<Planned> {
    let with_primary: Vec<usize> = (0..buckets.len()).filter(|at| buckets[*at].policy.has_primary()).collect();
    if with_primary.is_empty() || !dice.chance(EXISTS) {
        return Vec::new();
    }
    let mut policies: Vec<Policy> = buckets.iter().map(|bucket| bucket.policy).collect();
    let end_ms = (seconds * 1000 * 2 / 3).max(1_001);
    let mut times: Vec<u64> = (0..dice.between(1, 5)).map(|_| dice.between(1_000, end_ms)).collect();
    times.sort_unstable();
    let mut planned = Vec::new();
    for at_ms in times {
        let bucket = with_primary[dice.index(with_primary.len())];
        policies[bucket] = other(dice, policies[bucket], nodes);
        planned.push(Planned { at_ms, what: change(dice, bucket, policies[bucket]) });
        if dice.chance(BESIDE) {
            let at_ms = at_ms + dice.between(0, [10, 400, 3_000][dice.index(3)]);
            let policy = other(dice, policies[bucket], nodes);
            planned.extend(beside(dice, bucket, policy, nodes).map(|what| Planned { at_ms, what }));
        }
        if dice.chance(LEADERLESS) {
            let away = Duration::from_millis(dice.between(50, 4_000));
            let what = Fault::CrashMetadataLeader { away };
            planned.push(Planned { at_ms: at_ms + dice.between(0, 400), what });
        }
    }
    planned
}

fn change(dice: &Dice, bucket: usize, to: Policy) -> Fault {
    Fault::ChangePolicy { bucket, to, settings: dice.chance(0.5) }
}

/// What somebody else does meanwhile.
fn beside(dice: &Dice, bucket: usize, policy: Policy, nodes: usize) -> impl Iterator<Item = Fault> {
    let lasts = Duration::from_millis(dice.between(500, [3_000, 9_000][dice.index(2)]));
    let to = dice.index(nodes);
    let lost = |how| Fault::LosePrimary { bucket, how, lasts };
    let failover = Fault::Failover { bucket, to: dice.chance(0.3).then_some(to), forced: dice.chance(0.6) };
    let switchover = Fault::Switchover {
        bucket,
        to,
        lag_ms_max: [0, 200, 1_000][dice.index(3)],
        pause_ms_max: [300, 2_000, 10_000][dice.index(3)],
    };
    let done = match dice.index(6) {
        0 => vec![change(dice, bucket, policy)],
        1 => vec![switchover],
        2 => vec![lost(Loss::Crash), failover],
        3 => vec![lost(Loss::Cut), failover],
        4 => vec![Fault::Isolate { node: to, lasts }],
        _ => vec![failover],
    };
    done.into_iter()
}

/// Another policy than that, or the same with other settings.
pub(super) fn other(dice: &Dice, policy: Policy, regions: usize) -> Policy {
    let turns = dice.chance(TURNS);
    match (policy, turns) {
        (Policy::Async { .. }, true) | (Policy::Sync { .. }, false) => sync(dice, regions),
        (Policy::Async { .. }, false) | (Policy::Sync { .. }, true) => {
            Policy::Async { max_lag: dice.chance(SETTING).then(|| settings::ceiling(dice)) }
        }
        (Policy::ActiveActive, _) => policy,
    }
}

pub(super) fn sync(dice: &Dice, regions: usize) -> Policy {
    let two = u8::try_from(dice.between(2, regions as u64)).unwrap_or(2);
    let acks = [Acks::One, Acks::Majority, Acks::All, Acks::Regions(two)][dice.index(4)];
    let degrade = OnPartition::Degrade { after_ms: [500, 1_500, 5_000][dice.index(3)] };
    Policy::Sync { acks, on_partition: if dice.chance(SETTING) { degrade } else { OnPartition::Block } }
}
