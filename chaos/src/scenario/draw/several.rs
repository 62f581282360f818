//! Regions of several nodes: what breaks in other worlds breaks one of them here, or all, and leaders are gone, cut off from those who
//! followed them, told to stop, or lost for good.

use std::time::Duration;

use crate::scenario::{Planned, Scenario};
use crate::world::{Dice, Fault, Keep};

/// The share of worlds with such regions, of those with few regions: a seventh of all.
const SHARE: f64 = 0.2;

/// More regions than that would make worlds of more than nine nodes, or fifteen.
const REGIONS_MAX: usize = 3;

/// The chance that what breaks a node in other worlds breaks its whole region.
const WHOLE_REGION: f64 = 0.25;

/// The chance that a node is lost for good.
const LOST: f64 = 0.15;

/// The chance that two regions are struck at about the same time.
const TWICE: f64 = 0.4;

/// The world that was drawn, or the same with several nodes in each region, and with what only they meet.
pub(super) fn instead_of(drawn: Scenario, dice: &Dice) -> Scenario {
    if drawn.regions > REGIONS_MAX || !dice.chance(SHARE) {
        return drawn;
    }
    let mut world = Scenario { nodes: if dice.chance(0.15) { 5 } else { 3 }, ..drawn };
    let is_calm = world.faults.is_empty();
    for planned in &mut world.faults {
        planned.what = strikes(dice, &world_of(world.regions, world.nodes), planned.what.clone());
    }
    if !is_calm {
        let met = (0..dice.between(1, 8)).flat_map(|_| meet(dice, &world)).collect::<Vec<_>>();
        world.faults.extend(met);
        world.faults.extend(lost(dice, &world));
        world.faults.sort_by_key(|planned| planned.at_ms);
    }
    world
}

/// How many regions, and how many nodes each.
struct Size {
    regions: usize,
    nodes: usize,
}

fn world_of(regions: usize, nodes: usize) -> Size {
    Size { regions, nodes }
}

/// Another node of the region of one.
fn other(dice: &Dice, size: &Size, node: usize) -> usize {
    node % size.regions + size.regions * dice.index(size.nodes)
}

/// What was drawn for regions of one node strikes some node of the same regions, or all of them.
fn strikes(dice: &Dice, size: &Size, fault: Fault) -> Fault {
    let whole = dice.chance(WHOLE_REGION);
    match fault {
        Fault::Crash { node, keep, away } if whole => Fault::CrashRegion { node, keep, away },
        Fault::Isolate { node, lasts } if whole => Fault::CutRegion { node, lasts },
        mut fault => {
            fault.nodes_mut().into_iter().for_each(|node| *node = other(dice, size, *node));
            fault
        }
    }
}

/// Something that only such regions meet; sometimes in two of them at about the same time.
fn meet(dice: &Dice, world: &Scenario) -> Vec<Planned> {
    let size = world_of(world.regions, world.nodes);
    let end_ms = (world.seconds * 1000 * 2 / 3).max(1_001);
    let at_ms = dice.between(500, end_ms - 200);
    let lasts = Duration::from_millis(dice.between(20, [1_000, 4_000, 12_000][dice.index(3)]));
    let region = dice.index(size.regions);
    let mut planned = one(dice, &size, (region, world.shards), (at_ms, lasts));
    if dice.chance(TWICE) {
        let at_ms = at_ms + dice.between(0, [0, 100, 2_000][dice.index(3)]);
        let next = (region + 1 + dice.index(size.regions - 1)) % size.regions;
        planned.extend(one(dice, &size, (next, world.shards), (at_ms, lasts)));
    }
    planned
}

fn one(dice: &Dice, size: &Size, (region, shards): (usize, u16), (at_ms, lasts): (u64, Duration)) -> Vec<Planned> {
    let shard = u16::try_from(dice.index(usize::from(shards))).unwrap_or_default();
    let keep = [Keep::None, Keep::None, Keep::All, Keep::Prefix, Keep::Torn, Keep::Subset][dice.index(6)];
    let (node, beside) = (other(dice, size, region), other(dice, size, region));
    let faults = match dice.index(9) {
        0 | 1 => vec![Fault::CrashLeader { node: region, shard, keep, away: lasts }],
        2 => vec![Fault::CutLeader { node: region, shard, deaf: false, lasts }],
        3 => vec![Fault::CutLeader { node: region, shard, deaf: true, lasts }],
        4 => minority(dice, size, region).into_iter().map(|node| Fault::Crash { node, keep, away: lasts }).collect(),
        5 => vec![Fault::Stop { node, away: lasts }],
        6 => vec![Fault::CutRegion { node: region, lasts }],
        7 => vec![Fault::CrashRegion { node: region, keep, away: lasts }],
        _ if node != beside => vec![Fault::Partition { from: node, to: beside, both_ways: dice.chance(0.5), lasts }],
        _ => vec![Fault::Isolate { node, lasts }],
    };
    faults.into_iter().map(|what| Planned { at_ms, what }).collect()
}

/// As many nodes of a region as it can do without.
fn minority(dice: &Dice, size: &Size, region: usize) -> Vec<usize> {
    let mut nodes: Vec<usize> = (0..size.nodes).map(|turn| region + size.regions * turn).collect();
    dice.shuffle(&mut nodes);
    nodes.truncate(size.nodes / 2);
    nodes
}

/// A node of one region, or of two, with its disk. Never one that votes in the metadata plane: of two regions none may go.
fn lost(dice: &Dice, world: &Scenario) -> Vec<Planned> {
    if !dice.chance(LOST) {
        return Vec::new();
    }
    let size = world_of(world.regions, world.nodes);
    let end_ms = (world.seconds * 1000 * 2 / 3).max(1_001);
    let mut regions: Vec<usize> = (0..size.regions).collect();
    dice.shuffle(&mut regions);
    let count = usize::try_from(dice.between(1, 2)).unwrap_or(1);
    let lost = regions.into_iter().take(count).map(|region| Planned {
        at_ms: dice.between(1_000, end_ms),
        what: Fault::LoseNode { node: region + size.regions * (1 + dice.index(size.nodes - 1)) },
    });
    lost.collect()
}
