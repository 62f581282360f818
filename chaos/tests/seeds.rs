//! Every promise, on planets by the hundred: scenarios drawn from seeds, told in files, and those that failed once.
//!
//! `MERIDIAN_SEEDS` (default 500) says how many are drawn; `chaos swarm` plays more of them. A failure prints the line that
//! reproduces it.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use chaos::scenario::Scenario;
use chaos::swarm::many::Swarm;
use chaos::swarm::play;
use chaos::world::Fault;

/// Simulated seconds of clients' work in each world that is drawn.
const SECONDS: u64 = 40;

/// How many worlds are played twice.
const TWICE: u64 = 20;

/// Worlds in which each scenario file is played.
const SEEDS_PER_FILE: u64 = 3;

/// Worlds in which everything that is drawn happens.
const EVERYTHING: u64 = 500;

/// What comes of faults, besides themselves.
const COMES_OF_IT: [&str; 15] = [
    "node ended at a failed sync",
    "rows replaced behind a log",
    "rows merged behind a log",
    "policy turned",
    "policy changed",
    "region joined",
    "region removed",
    "lost region removed",
    "joining given up",
    "bucket opened",
    "bucket closed",
    "crossing turned back",
    "switchover done",
    "failover done",
    "forced failover done",
];

/// A successor pulls for a round trip, in a few worlds of a hundred: what so many seeds don't bring together.
const RARE: [(&str, &str); 3] = [("pulling", "slow, stopped"), ("pulling", "clock"), ("pulling", "metadata")];

fn jobs() -> usize {
    available_parallelism().map_or(1, usize::from)
}

#[test]
fn mixed_scenarios_from_seeds_keep_every_promise() {
    let seeds = std::env::var("MERIDIAN_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(500);
    let swarm = Swarm {
        from: 0,
        seeds,
        jobs: jobs(),
        seconds: SECONDS,
        failures_max: 5,
        twice: false,
        minimise: true,
        calm: false,
        several: false,
    };
    let mut said = Vec::new();
    let summary = swarm.run(&mut said).unwrap();
    eprintln!("{}", summary.line());
    assert!(summary.failures.is_empty(), "{}", String::from_utf8_lossy(&said));
    assert_eq!(summary.seeds, seeds);
    // What never happens proves nothing: neither a fault nor what it is drawn for.
    let expected = Fault::KINDS.iter().chain(&COMES_OF_IT);
    let missed: Vec<_> = expected.filter(|it| !summary.hits.contains_key(*it)).collect();
    assert!(seeds < EVERYTHING || missed.is_empty(), "never: {missed:?}; {:?}", summary.hits);
    // Nor does a step at which nothing ever breaks.
    let mut never = summary.never_met();
    never.retain(|meeting| !RARE.contains(meeting));
    assert!(seeds < EVERYTHING || never.is_empty(), "never met: {never:?}\n{}", summary.coverage());
}

#[test]
fn one_seed_is_one_trace() {
    let swarm = Swarm {
        from: 10_000,
        seeds: TWICE,
        jobs: jobs(),
        seconds: SECONDS,
        failures_max: 1,
        twice: true,
        minimise: true,
        calm: false,
        several: false,
    };
    let mut said = Vec::new();
    let summary = swarm.run(&mut said).unwrap();
    assert!(summary.failures.is_empty(), "{}", String::from_utf8_lossy(&said));
}

/// More faults than `join_all` polls in their order, and two tasks of tokio's that wait for the same.
#[test]
fn worlds_whose_order_tokio_once_decided_are_one_trace() {
    let once = ["a-removed-region-that-waits-for-copies-elsewhere", "two-who-wait-for-one-index"];
    let worlds: Vec<_> =
        worlds("pinned", 1).into_iter().filter(|it| once.iter().any(|name| it.1.contains(name))).collect();
    assert_eq!(worlds.len(), once.len());
    for (seed, file, scenario) in worlds {
        let hashes: BTreeSet<u64> = (0..6).map(|_| play(seed, &scenario).hash).collect();
        assert_eq!(hashes.len(), 1, "{file}");
    }
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Plays these worlds; the sentences of those that failed.
fn failed(worlds: &[(u64, String, Scenario)]) -> Vec<String> {
    let each = worlds.iter().filter_map(|(seed, file, scenario)| {
        let failure = play(*seed, scenario).failure?;
        Some(format!(
            "\"{}\" failed: {failure}\nreproduce: cargo run --release -p chaos -- run --scenario {file} --seed {seed}",
            scenario.name
        ))
    });
    each.collect()
}

fn worlds(dir: &str, seeds: u64) -> Vec<(u64, String, Scenario)> {
    let scenarios = Scenario::all(&folder(dir)).unwrap();
    let world = |(name, scenario): (String, Scenario)| {
        let file = format!("chaos/{dir}/{name}.toml");
        let from = scenario.seed.unwrap_or_default();
        let seeds = if scenario.seed.is_some() { 1 } else { seeds };
        (from..from + seeds).map(move |seed| (seed, file.clone(), scenario.clone())).collect::<Vec<_>>()
    };
    scenarios.into_iter().flat_map(world).collect()
}

#[test]
fn what_others_met_is_survived() {
    let worlds = worlds("scenarios", SEEDS_PER_FILE);
    assert!(worlds.len() as u64 >= 12 * SEEDS_PER_FILE);
    let failures = failed(&worlds);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn what_failed_once_does_not_fail_again() {
    let worlds = worlds("pinned", 1);
    assert!(worlds.iter().all(|(_, file, scenario)| scenario.seed.is_some() || panic!("{file} names no seed")));
    let failures = failed(&worlds);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
