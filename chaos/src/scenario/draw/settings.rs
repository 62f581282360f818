//! What buckets are told besides their policy's word: to degrade, how much they may risk, what they do by themselves.

use meridian_types::{AutoMode, Breach, LagBound, MaxLag, OnPartition, Policy};

use crate::scenario::BucketPlan;
use crate::world::Dice;

/// The chance that a bucket has a setting that its policy leaves room for.
const EXISTS: f64 = 0.35;

/// Gives buckets their settings.
pub(super) fn draw(dice: &Dice, buckets: &mut [BucketPlan]) {
    for bucket in buckets {
        match &mut bucket.policy {
            Policy::Async { max_lag } => {
                if dice.chance(EXISTS) {
                    *max_lag = Some(ceiling(dice));
                }
            }
            Policy::Sync { on_partition, .. } => {
                if dice.chance(EXISTS) {
                    *on_partition = OnPartition::Degrade { after_ms: [500, 1_500, 5_000][dice.index(3)] };
                }
            }
            Policy::ActiveActive => continue,
        }
        if dice.chance(EXISTS) {
            bucket.auto = by_itself(dice, bucket.policy);
        }
    }
}

/// Small enough to be met by a few clients; room for one write in each shard.
pub(super) fn ceiling(dice: &Dice) -> MaxLag {
    let operations = Some(dice.between(6, 40));
    let bound = match dice.index(3) {
        0 => LagBound { operations, ..LagBound::default() },
        1 => LagBound { operations, ms: Some(dice.between(1, 5) * 1_000), ..LagBound::default() },
        _ => LagBound { ms: Some(dice.between(1, 5) * 1_000), ..LagBound::default() },
    };
    let on_breach = [Breach::Block, Breach::Block, Breach::Throttle, Breach::Alarm][dice.index(4)];
    MaxLag { bound, on_breach }
}

fn by_itself(dice: &Dice, policy: Policy) -> AutoMode {
    let bounded = AutoMode::Bounded {
        max_lag: LagBound { operations: Some(dice.between(5, 50)), ms: Some(10_000), ..LagBound::default() },
    };
    match (policy, dice.index(6)) {
        (_, 0) => AutoMode::ObserveOnly,
        (Policy::Sync { .. }, 1..=4) => AutoMode::ZeroLoss,
        (_, _) => bounded,
    }
}
