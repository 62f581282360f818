//! `chaos swarm` plays many worlds, `chaos run` one of them.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;

use super::many::Swarm;
use super::{Chosen, only, play};
use crate::scenario::Scenario;

/// Which worlds to play.
#[derive(clap::Args, Debug)]
pub struct SwarmArguments {
    /// How many seeds
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// How many worlds at a time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// How long clients work in each world, in simulated seconds
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Stop after so many failures
    #[arg(long, default_value_t = 5)]
    failures: usize,
    /// Play each world twice and compare everything that happened
    #[arg(long)]
    twice: bool,
    /// Print a failure as it was drawn, without looking for the fewest and shortest faults that still fail
    #[arg(long)]
    as_drawn: bool,
    /// Play only the worlds in which nothing breaks
    #[arg(long)]
    calm: bool,
    /// Play only the worlds whose regions have several nodes
    #[arg(long)]
    several: bool,
}

/// Which world to play.
#[derive(clap::Args, Debug)]
pub struct RunArguments {
    /// Its seed; a scenario file may name its own
    #[arg(long, required_unless_present = "scenario")]
    seed: Option<u64>,
    /// A scenario file, instead of the scenario drawn from the seed
    #[arg(long)]
    scenario: Option<PathBuf>,
    /// How long clients work, in simulated seconds; a file says so itself
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Only these of its faults, by their number from 0; `3/4` is a fourth of the time of number 3
    #[arg(long, value_delimiter = ',', num_args = 0..)]
    faults: Option<Vec<Chosen>>,
    /// Print the scenario
    #[arg(long)]
    show: bool,
    /// Print everything that an omniscient observer saw
    #[arg(long)]
    trace: bool,
}

/// Plays many worlds; whether every promise was kept.
///
/// # Errors
/// When `out` can't be written.
pub fn swarm(arguments: &SwarmArguments, out: &mut impl Write) -> anyhow::Result<bool> {
    let SwarmArguments { seeds, jobs, from, seconds, failures, twice, as_drawn, calm, several } = *arguments;
    let minimise = !as_drawn;
    let failures_max = failures;
    let swarm = Swarm { from, seeds, jobs, seconds, failures_max, twice, minimise, calm, several };
    let summary = swarm.run(out)?;
    for (what, times) in &summary.hits {
        writeln!(out, "{times:>8} × {what}")?;
    }
    writeln!(out, "\nSteps of what is done to buckets, and how often something met them:\n{}\n", summary.coverage())?;
    writeln!(out, "{}", summary.line())?;
    Ok(summary.failures.is_empty())
}

/// Plays one world; whether every promise was kept.
///
/// # Errors
/// When the scenario can't be read, or `out` can't be written.
pub fn run(arguments: &RunArguments, out: &mut impl Write) -> anyhow::Result<bool> {
    let asked = arguments.seed.unwrap_or_default();
    let mut scenario = match &arguments.scenario {
        Some(path) => Scenario::read(path)?,
        None => Scenario::drawn(asked, arguments.seconds),
    };
    let seed = arguments.seed.or(scenario.seed).unwrap_or_default();
    if let Some(faults) = &arguments.faults {
        scenario = only(&scenario, faults);
    }
    if arguments.show {
        writeln!(out, "{}", toml::to_string(&scenario).context("the scenario can't be written down")?)?;
    }
    let outcome = play(seed, &scenario);
    for record in outcome.trace.records().iter().filter(|_| arguments.trace) {
        writeln!(out, "{:>12.6} {:?}", record.at_us as f64 / 1e6, record.fact)?;
    }
    let (hash, simulated_s) = (outcome.hash, outcome.simulated_us as f64 / 1e6);
    let (operations, messages) = (outcome.operations, outcome.messages);
    writeln!(
        out,
        "seed {seed}: {hash:016x}, {operations} operations, {messages} messages, {simulated_s:.1} simulated seconds"
    )?;
    match &outcome.failure {
        None => writeln!(out, "every promise was kept")?,
        Some(failure) => writeln!(out, "{failure}")?,
    }
    Ok(outcome.failure.is_none())
}
