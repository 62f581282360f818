//! Regions of active-active buckets that are given up for lost: gone, cut off, or wrongly; with something else in the middle of it half of the
//! time. Most are there again some time, and half of these are to write again.

use std::time::Duration;

use crate::scenario::{BucketPlan, Planned};
use crate::world::{Dice, Fault, Keep};

/// The chance that regions are given up for lost in a world that has such a bucket.
const EXISTS: f64 = 0.4;

/// The chance that nothing is wrong with the region.
const WRONGLY: f64 = 0.15;

/// The chance that something else happens while the others go on without it.
const BESIDE: f64 = 0.5;

/// The chance that the region is to write again.
const AGAIN: f64 = 0.5;

/// Losses for a planet of so many nodes. Of two regions none may go.
pub(super) fn draw(dice: &Dice, buckets: &[BucketPlan], nodes: usize, seconds: u64) -> Vec<Planned> {
    let active: Vec<usize> = (0..buckets.len()).filter(|at| !buckets[*at].policy.has_primary()).collect();
    if nodes < 3 || active.is_empty() || !dice.chance(EXISTS) {
        return Vec::new();
    }
    let end_ms = (seconds * 1000 / 2).max(1_001);
    let mut planned = Vec::new();
    for _ in 0..dice.between(1, 2) {
        let (bucket, node) = (active[dice.index(active.len())], dice.index(nodes));
        let gone_ms = dice.between(1_000, end_ms);
        let lasts_ms = dice.between(500, [3_000, 9_000, seconds * 1000][dice.index(3)].max(501));
        let lasts = Duration::from_millis(lasts_ms);
        // One that is cut off goes on to acknowledge, for it orders without a lease.
        let gone = match dice.index(2) {
            0 => Fault::Crash { node, keep: [Keep::None, Keep::All, Keep::Torn][dice.index(3)], away: lasts },
            _ => Fault::Isolate { node, lasts },
        };
        if !dice.chance(WRONGLY) {
            planned.push(Planned { at_ms: gone_ms, what: gone });
        }
        let lost_ms = gone_ms + dice.between(50, [500, 3_000][dice.index(2)]);
        planned.push(Planned { at_ms: lost_ms, what: Fault::LoseRegion { bucket, node } });
        if dice.chance(BESIDE) {
            let at_ms = lost_ms + dice.between(0, [400, 3_000][dice.index(2)]);
            planned.push(Planned { at_ms, what: beside(dice, (bucket, node), nodes) });
        }
        if dice.chance(AGAIN) {
            let at_ms = lost_ms.max(gone_ms + lasts_ms.min(end_ms)) + dice.between(100, 5_000);
            planned.push(Planned { at_ms, what: Fault::ChangeRegions { bucket, node, add: true } });
        }
    }
    planned
}

/// What else happens: to one of the others, to their links, to the metadata leader, or by another operator.
fn beside(dice: &Dice, (bucket, lost): (usize, usize), nodes: usize) -> Fault {
    let lasts = Duration::from_millis(dice.between(50, [800, 4_000][dice.index(2)]));
    let other = (lost + 1 + dice.index(nodes - 1)) % nodes;
    match dice.index(8) {
        0 => Fault::Isolate { node: other, lasts },
        1 => Fault::Crash { node: other, keep: [Keep::None, Keep::All, Keep::Torn][dice.index(3)], away: lasts },
        2 => Fault::CrashMetadataLeader { away: lasts },
        3 => Fault::Partition { from: other, to: (other + 1) % nodes, both_ways: dice.chance(0.5), lasts },
        4 => Fault::Loss { from: other, to: (other + 1) % nodes, share: 0.3, lasts },
        5 => Fault::TurnBack { bucket },
        6 => Fault::LoseRegion { bucket, node: other },
        _ => Fault::ChangeRegions { bucket, node: other, add: false },
    }
}
