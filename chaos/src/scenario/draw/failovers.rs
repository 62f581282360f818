//! Failovers: primaries that are lost, by a crash or because nobody reaches them, and operators who replace them: soon or late, with
//! or without agreeing to a loss, rightly or not. Where the bucket does so by itself, often nobody else does.

use std::time::Duration;

use meridian_types::{AutoMode, Policy};

use crate::scenario::{BucketPlan, Planned};
use crate::world::{Dice, Fault, Loss};

/// The chance that primaries are lost and replaced in a world.
const EXISTS: f64 = 0.4;

/// The chance that no operator is there when a bucket may replace its primary by itself.
const ALONE: f64 = 0.7;

/// The chance that a primary is given up although nothing is wrong with it.
const WRONGLY: f64 = 0.15;

/// Losses and replacements for a planet of so many nodes.
pub(super) fn draw(dice: &Dice, buckets: &[BucketPlan], nodes: usize, seconds: u64) -> Vec<Planned> {
    let with_primary: Vec<usize> = (0..buckets.len()).filter(|at| buckets[*at].policy.has_primary()).collect();
    if with_primary.is_empty() || !dice.chance(EXISTS) {
        return Vec::new();
    }
    let mut planned = Vec::new();
    for _ in 0..dice.between(1, 3) {
        let bucket = with_primary[dice.index(with_primary.len())];
        let at_ms = dice.between(1_000, (seconds * 1000 / 2).max(1_001));
        let wrongly = dice.chance(WRONGLY);
        if !wrongly {
            // Shorter than a lease, about as long, or until it is all over.
            let lasts_ms = dice.between(500, [3_000, 9_000, seconds * 1000][dice.index(3)].max(501));
            let how = if dice.chance(0.5) { Loss::Crash } else { Loss::Cut };
            let what = Fault::LosePrimary { bucket, how, lasts: Duration::from_millis(lasts_ms) };
            planned.push(Planned { at_ms, what });
        }
        if !wrongly && buckets[bucket].auto != AutoMode::Manual && dice.chance(ALONE) {
            continue;
        }
        // A primary that is cut off goes on for as long as its lease lasts: what it acknowledges then is lost.
        let at_ms = at_ms + dice.between(50, [500, 4_000, 9_000][dice.index(3)]);
        let to = dice.chance(0.3).then(|| dice.index(nodes));
        let forced = match buckets[bucket].policy {
            Policy::Async { .. } => dice.chance(0.9),
            Policy::Sync { .. } | Policy::ActiveActive => dice.chance(0.4),
        };
        planned.push(Planned { at_ms, what: Fault::Failover { bucket, to, forced } });
    }
    planned
}
