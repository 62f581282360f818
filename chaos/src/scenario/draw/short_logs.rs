//! Logs that are kept for so short that a region which was away comes back behind them: what it lacks is moved as rows, and where every
//! region writes merged, for no lane can bring it any more.

use std::time::Duration;

use crate::scenario::{Planned, Scenario};
use crate::world::{Dice, Fault, Keep};

/// The share of worlds with short logs, of those that are about nothing else: an eighth of all.
const SHARE: f64 = 0.14;

/// Makes a world's logs short, and has regions be away from it for long, now one and then two.
pub(super) fn draw(dice: &Dice, world: &mut Scenario) {
    if !dice.chance(SHARE) {
        return;
    }
    // From a dozen entries, which a lane may lack on an ordinary day, to some hundred.
    world.retention_bytes = [2 << 10, 8 << 10, 32 << 10][dice.index(3)];
    world.purge_entries = [1, 8, 32][dice.index(3)];
    // What is not durable in the state is not purged.
    world.persist_every_ms = world.persist_every_ms.min(3_000);
    for plan in world.buckets.iter_mut().flat_map(|bucket| &mut bucket.workloads) {
        plan.think_ms = plan.think_ms.min(100);
    }
    let until_healed_ms = world.seconds * 1000 * 2 / 3;
    for _ in 0..dice.between(1, 2) {
        let node = dice.index(world.regions);
        let lasts = Duration::from_millis(dice.between(4_000, 15_000));
        let what = match dice.index(3) {
            0 => Fault::Isolate { node, lasts },
            _ => Fault::Crash { node, keep: [Keep::None, Keep::All, Keep::Torn][dice.index(3)], away: lasts },
        };
        world.faults.push(Planned { at_ms: dice.between(1_000, (until_healed_ms / 2).max(1_001)), what });
    }
}
