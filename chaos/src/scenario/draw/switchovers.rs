//! Switchovers: operators at work, whatever breaks meanwhile.

use crate::scenario::Planned;
use crate::world::{Dice, Fault};

/// Moves of primaries for a planet of so many nodes.
pub(super) fn draw(dice: &Dice, buckets: usize, nodes: usize, seconds: u64) -> Vec<Planned> {
    let end_ms = seconds * 1000 * 2 / 3;
    let switchover = |_| Planned {
        at_ms: dice.between(500, end_ms.max(501)),
        what: Fault::Switchover {
            bucket: dice.index(buckets.max(1)),
            to: dice.index(nodes),
            lag_ms_max: [0, 200, 1_000][dice.index(3)],
            pause_ms_max: [300, 2_000, 10_000][dice.index(3)],
        },
    };
    (0..dice.between(1, 6)).map(switchover).collect()
}
