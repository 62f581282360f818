//! Worlds about one thing: a primary is lost and nothing else breaks, so that what a failover waits for, how often the cluster tries
//! one, and what it takes for proven can't hide behind the weather.

use std::time::Duration;

use meridian_types::{Acks, AutoMode, LagBound, Policy};

use crate::scenario::{BucketPlan, Planned, Scenario};
use crate::world::{Dice, Fault, Keep, Loss};

/// The share of worlds that are about one thing.
const SHARE: f64 = 0.08;

/// The world that was drawn, or one about one thing on its planet.
pub(super) fn instead_of(drawn: Scenario, dice: &Dice) -> Scenario {
    if !dice.chance(SHARE) {
        return drawn;
    }
    match dice.index(3) {
        0 => lost(drawn, dice),
        1 => lost_again(drawn, dice),
        _ => lost_with_its_copy(drawn, dice),
    }
}

/// A primary is down until all is healed. Whoever replaces it has nobody to wait for (SWI-3).
fn lost(mut world: Scenario, dice: &Dice) -> Scenario {
    world.regions = world.regions.max(3);
    let bucket = with_primary(&mut world, dice);
    let at_ms = dice.between(1_000, 5_000);
    world.faults = vec![crash(at_ms, bucket, world.heals_after())];
    if world.buckets[bucket].auto == AutoMode::Manual || dice.chance(0.5) {
        let at_ms = at_ms + dice.between(50, 3_000);
        let forced = dice.chance(0.7);
        world.faults.push(Planned { at_ms, what: Fault::Failover { bucket, to: None, forced } });
    }
    world
}

/// A primary is lost, and soon after its successor is, in a bucket that replaces the first one by itself: not the second one as well,
/// as long as its owner wants it damped.
fn lost_again(mut world: Scenario, dice: &Dice) -> Scenario {
    world.regions = world.regions.max(3);
    let bucket = with_primary(&mut world, dice);
    let plan = &mut world.buckets[bucket];
    plan.auto = match plan.policy {
        Policy::Sync { .. } => AutoMode::ZeroLoss,
        // As much as nobody writes.
        _ => AutoMode::Bounded { max_lag: LagBound { operations: Some(100_000), ..LagBound::default() } },
    };
    if dice.chance(0.5) {
        plan.auto_interval_ms = 600_000;
    } else {
        plan.auto_per_day = 1;
    }
    let first_ms = dice.between(1_000, 2_500);
    let lasts = Duration::from_millis(dice.between(9_000, 10_000));
    let again_ms = first_ms + 10_000 + dice.between(500, 2_000);
    let until_healed = world.heals_after();
    let first = if dice.chance(0.5) {
        crash(first_ms, bucket, lasts)
    } else {
        Planned { at_ms: first_ms, what: Fault::LosePrimary { bucket, how: Loss::Cut, lasts } }
    };
    world.faults = vec![first, crash(again_ms, bucket, until_healed)];
    world
}

/// Of five regions the primary reaches only the one whose copy its writes need, and both are lost. Those that are left are a majority,
/// and prove nothing.
fn lost_with_its_copy(mut world: Scenario, dice: &Dice) -> Scenario {
    world.regions = 5;
    let bucket = 0;
    world.buckets[bucket].policy = Policy::sync([Acks::One, Acks::Regions(2)][dice.index(2)]);
    busy(&mut world.buckets[bucket], dice);
    let automatic = dice.chance(0.3);
    world.buckets[bucket].auto = if automatic { AutoMode::ZeroLoss } else { AutoMode::Manual };
    // A bucket begins in the first region.
    let (primary, copy) = (0, dice.between(1, 4) as usize);
    let at_ms = dice.between(2_000, 5_000);
    let cut = |to| Fault::Partition { from: primary, to, both_ways: true, lasts: Duration::from_secs(4) };
    let cuts = (1..5).filter(|node| *node != copy).map(|to| Planned { at_ms, what: cut(to) });
    let gone_ms = at_ms + dice.between(1_000, 3_000);
    let gone = |node| Fault::Crash { node, keep: Keep::All, away: Duration::from_secs(world.seconds) };
    let both = [primary, copy].map(|node| Planned { at_ms: gone_ms, what: gone(node) });
    let mut faults: Vec<Planned> = cuts.chain(both).collect();
    if !automatic {
        let at_ms = gone_ms + dice.between(50, 2_000);
        faults.push(Planned { at_ms, what: Fault::Failover { bucket, to: None, forced: false } });
    }
    world.faults = faults;
    world
}

fn crash(at_ms: u64, bucket: usize, lasts: Duration) -> Planned {
    Planned { at_ms, what: Fault::LosePrimary { bucket, how: Loss::Crash, lasts } }
}

/// A bucket with a primary: there is one, or the first one becomes one.
fn with_primary(world: &mut Scenario, dice: &Dice) -> usize {
    if let Some(bucket) = world.buckets.iter().position(|bucket| bucket.policy.has_primary()) {
        return bucket;
    }
    world.buckets[0].policy = Policy::sync(Acks::Majority);
    busy(&mut world.buckets[0], dice);
    0
}

/// Clients who may work on a bucket with a primary, and who write often.
fn busy(bucket: &mut BucketPlan, dice: &Dice) {
    use crate::workload::Kind;
    for plan in &mut bucket.workloads {
        if !Kind::WITH_PRIMARY.contains(&plan.kind) {
            plan.kind = [Kind::Register, Kind::Append][dice.index(2)];
        }
        plan.think_ms = plan.think_ms.min(100);
    }
    bucket.workloads.dedup_by_key(|plan| plan.kind);
}
