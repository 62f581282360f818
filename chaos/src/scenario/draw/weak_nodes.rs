//! Nodes that are not gone and not well: everything they do is late, or their disk fails when it is to sync.

use std::time::Duration;

use crate::scenario::Planned;
use crate::world::{Dice, Fault, Keep};

/// The chance that there are slow nodes in a world, and that there are failing disks.
const EXISTS: f64 = 0.12;

/// Slow nodes and failing disks for a planet of so many nodes.
pub(super) fn draw(dice: &Dice, nodes: usize, seconds: u64) -> Vec<Planned> {
    let end_ms = (seconds * 1000 * 2 / 3).max(501);
    let lasting = |longest_ms: u64| Duration::from_millis(dice.between(50, longest_ms));
    let mut planned = Vec::new();
    if dice.chance(EXISTS) {
        planned.extend((0..dice.between(1, 3)).map(|_| {
            // From 5 ms to 200 ms, each time that it has its turn.
            let latest = Duration::from_millis([50, 100, 200][dice.index(3)]);
            let what = Fault::SlowNode { node: dice.index(nodes), latest, lasts: lasting(12_000) };
            Planned { at_ms: dice.between(500, end_ms), what }
        }));
    }
    if dice.chance(EXISTS) {
        planned.extend((0..dice.between(1, 2)).map(|_| {
            let keep = [Keep::None, Keep::Prefix, Keep::Subset, Keep::All][dice.index(4)];
            let what = Fault::FailingDisk { node: dice.index(nodes), keep, lasts: lasting(6_000) };
            Planned { at_ms: dice.between(500, end_ms), what }
        }));
    }
    planned
}
