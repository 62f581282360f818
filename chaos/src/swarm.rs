//! Plays scenarios and holds what happened to every promise: one seed, or as many as there is time for.

pub mod cli;
pub mod many;
mod smaller;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::time::Duration;

use futures::future::{Either, join, join_all, select};
use tokio::time::sleep;

pub use self::smaller::{Chosen, minimise, only};
use crate::check::{self, Evidence, Limits, Remnant};
use crate::history::History;
use crate::scenario::{BucketPlan, Planned, Scenario};
use crate::target::Target;
use crate::trace::Trace;
use crate::workload::{Options, Plan, Workload, brief};
use crate::world::executor::join_in_order;
use crate::world::{Met, Planet};

/// How long the last look waits for all regions to agree.
const PATIENCE: Duration = Duration::from_secs(40);

/// What became of one world.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The hash of everything that happened.
    pub hash: u64,
    /// How long it lasted, in simulated microseconds.
    pub simulated_us: u64,
    /// What was asked.
    pub operations: usize,
    /// Messages between nodes and clients.
    pub messages: u64,
    /// What broke how often.
    pub hits: BTreeMap<&'static str, u64>,
    /// Which faults met which steps of what is done to buckets, how often.
    pub met: Met,
    /// How it failed, if it did.
    pub failure: Option<Failure>,
    /// Everything that was seen.
    pub trace: Trace,
}

/// How a world failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Promises were broken; per checker, a sentence with what shows it.
    Broken(Vec<(&'static str, String)>),
    /// The product stopped at an assertion.
    Panicked(String),
    /// The planet did not get going, or a node ended by itself.
    Ended(String),
}

impl Failure {
    /// Whether both are about the same thing: what a smaller scenario must still show.
    pub fn is_like(&self, other: &Failure) -> bool {
        match (self, other) {
            (Failure::Broken(all), Failure::Broken(others)) => {
                all.iter().any(|(name, _)| others.iter().any(|(other, _)| name == other))
            }
            (Failure::Panicked(_), Failure::Panicked(_)) | (Failure::Ended(_), Failure::Ended(_)) => true,
            _ => false,
        }
    }

    /// In a word or a few.
    pub fn label(&self) -> String {
        match self {
            Failure::Broken(all) => all.iter().map(|(name, _)| *name).collect::<Vec<_>>().join("+"),
            Failure::Panicked(_) => "panic".to_owned(),
            Failure::Ended(_) => "ended".to_owned(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Broken(all) => all.iter().try_for_each(|(_, sentence)| writeln!(f, "{sentence}")),
            Failure::Panicked(why) => writeln!(f, "panicked: {why}"),
            Failure::Ended(why) => writeln!(f, "{why}"),
        }
    }
}

thread_local! {
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
    static PLAYING: RefCell<bool> = const { RefCell::new(false) };
}

/// Panics inside a world are a result, not something to print.
fn hush() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if PLAYING.with_borrow(|playing| *playing) {
                PANIC.replace(panic.to_string());
            } else {
                usual(panic);
            }
        }));
    });
}

/// Plays a scenario on the planet of that seed.
pub fn play(seed: u64, scenario: &Scenario) -> Outcome {
    hush();
    PLAYING.replace(true);
    let played = catch_unwind(AssertUnwindSafe(|| {
        let setup = scenario.setup().map_err(|why| why.to_string())?;
        Ok(Planet::play(seed, setup, async |planet| run(seed, scenario, &planet).await))
    }));
    PLAYING.replace(false);
    let failed = |failure| Outcome {
        hash: 0,
        simulated_us: 0,
        operations: 0,
        messages: 0,
        hits: BTreeMap::new(),
        met: Met::new(),
        failure: Some(failure),
        trace: Trace::default(),
    };
    match played {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(why)) => failed(Failure::Ended(why)),
        Err(_) => failed(Failure::Panicked(PANIC.take())),
    }
}

async fn run(seed: u64, scenario: &Scenario, planet: &Planet) -> Outcome {
    let outcome = |operations, failure| Outcome {
        hash: planet.trace().hash(),
        simulated_us: planet.now_us(),
        operations,
        messages: planet.messages(),
        hits: planet.hits(),
        met: planet.met(),
        failure,
        trace: planet.trace().clone(),
    };
    if let Err(refusal) = planet.start().await {
        return outcome(0, Some(Failure::Ended(refusal.to_string())));
    }
    let history = History::default();
    let plan = plan(seed, scenario, planet);
    // As they begin: their policies may change.
    let buckets = planet.buckets().iter().map(|bucket| bucket.as_ref().clone()).collect();
    let broken = async {
        let faults = join_in_order(scenario.faults.iter().map(|planned| strike(planet, planned)));
        let end = Box::pin(sleep(scenario.heals_after()));
        // What is not over by then is cut short.
        if let Either::Left((_, end)) = select(Box::pin(faults), end).await {
            end.await;
        }
        planet.heal();
        planet.now_us()
    };
    let (healed_us, _) = join(broken, join(plan.drive(planet, &history), expire(seed, scenario, planet))).await;
    fill(planet, scenario.buckets.len(), healed_us).await;
    if scenario.nodes > 1 {
        // Who follows a leader hears of what is committed with its next heartbeat.
        sleep(Duration::from_secs(1)).await;
    }
    let finals = plan.of(&planet.buckets()).last_look(planet, &history, PATIENCE).await;
    let remnants = left_behind(planet, healed_us).await;
    let held = held(planet, healed_us).await;
    // A node that finds damage refuses to go on, and says so (DUR-3).
    let says_so = |why: &str| ["damaged", "wrong checksum"].iter().any(|word| why.contains(word));
    let refuses = |why: &str| planet.violated().contains(&check::Assumption::Disks) && says_so(why);
    if let Some((node, why)) = planet.ended_nodes().iter().find(|(_, why)| !refuses(why)) {
        return outcome(0, Some(Failure::Ended(format!("node {node} ended by itself: {why}"))));
    }
    let operations = history.operations();
    let count = operations.len();
    let setup = check::Setup {
        regions: planet.regions(),
        buckets,
        shards: scenario.shards,
        disks_lost: Vec::new(),
        limits: Limits::default(),
        violated: planet.violated(),
    };
    let evidence = Evidence::new(setup, operations, Some(planet.trace().records()), finals, Some(healed_us));
    let evidence = evidence.with_salvage(planet.salvages().await).with_remnants(remnants).with_held(held);
    let verdict = check::all(&evidence);
    let broken = verdict.violations.iter().map(|violation| (violation.checker, violation.to_string()));
    let failure = (!verdict.is_clean()).then(|| Failure::Broken(broken.collect()));
    outcome(count, failure)
}

/// Waits until no region is joining or leaving, for as long as that may take.
async fn fill(planet: &Planet, buckets: usize, healed_us: u64) {
    let until_us = healed_us + Limits::default().recovery_us;
    let waits = |planet: &Planet| planet.buckets().iter().any(|it| it.joins.now.is_some() || it.crossing.is_some());
    while planet.now_us() <= until_us && waits(planet) {
        join_all((0..buckets).map(|bucket| planet.go_on_joining(bucket))).await;
        sleep(Duration::from_millis(250)).await;
    }
}

/// What regions have of buckets that they hold no more, once they have had the time to drop it. Nobody does while copies are lacking
/// elsewhere; that, too, has to pass.
async fn left_behind(planet: &Planet, healed_us: u64) -> Vec<Remnant> {
    let recovery_us = Limits::default().recovery_us;
    let mut until_us = healed_us + recovery_us;
    loop {
        let remnants = planet.remnants();
        let lacks = || planet.buckets().iter().any(|bucket| !bucket.standing.is_sync());
        if planet.now_us() > until_us && lacks() {
            until_us = healed_us + 2 * recovery_us;
        }
        if planet.now_us() > until_us || remnants.iter().all(|it| it.keys == 0) {
            return remnants;
        }
        sleep(Duration::from_millis(250)).await;
    }
}

/// What every node has, once those of a region have had the time to become equal.
async fn held(planet: &Planet, healed_us: u64) -> Vec<check::Held> {
    loop {
        let held = planet.held();
        if planet.now_us() > healed_us + 2 * Limits::default().recovery_us || check::are_equal(&held) {
            return held;
        }
        sleep(Duration::from_millis(250)).await;
    }
}

/// Writes keys with a time to live, where there are any.
async fn expire(seed: u64, scenario: &Scenario, planet: &Planet) {
    let (regions, lasts) = (planet.regions(), Duration::from_secs(scenario.seconds));
    let buckets = scenario.buckets.iter().filter(|bucket| bucket.brief);
    join_all(buckets.map(|bucket| brief(planet, &bucket.name, &regions, seed, lasts))).await;
}

async fn strike(planet: &Planet, planned: &Planned) {
    sleep(Duration::from_millis(planned.at_ms)).await;
    planned.what.clone().strike(planet).await;
}

fn plan(seed: u64, scenario: &Scenario, planet: &Planet) -> Plan {
    let buckets = planet.buckets();
    let workloads = |bucket: &BucketPlan| -> Vec<Workload> {
        let Some(known) = buckets.iter().find(|known| known.name == bucket.name) else { return Vec::new() };
        let workload = |plan: &crate::scenario::WorkloadPlan| Workload {
            kind: plan.kind,
            bucket: std::sync::Arc::clone(known),
            options: Options {
                clients: plan.clients,
                keys: plan.keys,
                think: Duration::from_millis(plan.think_ms),
                deadline_ms: plan.deadline_ms,
                duration: Duration::from_secs(scenario.seconds),
                ..Options::default()
            },
        };
        bucket.workloads.iter().map(workload).collect()
    };
    Plan {
        workloads: scenario.buckets.iter().flat_map(workloads).collect(),
        regions: planet.regions(),
        shards: scenario.shards,
        seed,
    }
}
