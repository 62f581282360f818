//! `cargo run --release -p chaos -- model`: every world, then every mistake.

use std::io::Write;

use super::degrade::{Degrading, Flaw};
use super::lanes::{self, Lanes};
use super::{Bounds, Mistake, Outcome, explore};

/// What is looked at.
#[derive(Clone, Debug, clap::Args)]
pub struct ModelArguments {
    /// Threads that look
    #[arg(long, default_value_t = 2)]
    pub threads: usize,
    /// Only worlds and mistakes whose name contains this
    #[arg(long)]
    pub only: Option<String>,
}

/// Looks, and says whether the protocol kept its promises and every mistake broke one.
///
/// # Errors
/// When nothing can be printed.
pub fn model(arguments: &ModelArguments, out: &mut dyn Write) -> anyhow::Result<bool> {
    let chosen = |name: &str| arguments.only.as_deref().is_none_or(|only| name.contains(only));
    let mut good = true;
    for (name, bounds) in Bounds::WORLDS.into_iter().filter(|(name, _)| chosen(name)) {
        let outcome = explore(bounds, arguments.threads);
        good &= outcome.broken.is_empty() && outcome.never.is_empty();
        print(name, &outcome, out)?;
        for missing in &outcome.never {
            writeln!(out, "  never: {missing}")?;
        }
    }
    for mistake in Mistake::ALL {
        let name = format!("{mistake:?}");
        if chosen(&name) {
            let outcome = explore(mistake.bounds(), arguments.threads);
            good &= !outcome.broken.is_empty();
            print(&name, &outcome, out)?;
        }
    }
    for flaw in [Flaw::None].into_iter().chain(Flaw::ALL) {
        let name = format!("degrade, {flaw:?}");
        if chosen(&name) {
            let (broken, states, never) = Degrading::with(flaw).explore();
            good &= broken.is_some() == (flaw != Flaw::None) && (flaw != Flaw::None || never.is_empty());
            writeln!(out, "{name}: {states} states")?;
            if let Some(steps) = broken {
                writeln!(out, "  broken: {steps:?}")?;
            }
        }
    }
    good &= lanes(arguments.threads, &chosen, out)?;
    Ok(good)
}

fn lanes(threads: usize, chosen: &dyn Fn(&str) -> bool, out: &mut dyn Write) -> anyhow::Result<bool> {
    let flawed = |mistake| (format!("lanes, {mistake:?}"), Lanes { mistake, ..Lanes::SMALL });
    let worlds = Lanes::WORLDS.map(|(name, world)| (name.to_owned(), world)).into_iter();
    let mut good = true;
    for (name, world) in worlds.chain(lanes::Mistake::ALL.map(flawed)).filter(|(name, _)| chosen(name)) {
        let outcome = world.explore(threads);
        let whole = world.mistake == lanes::Mistake::None;
        good &= outcome.broken.is_empty() == whole && (!whole || outcome.never.is_empty());
        let (plans, states, depth, seconds) =
            (outcome.plans, outcome.states, outcome.depth, outcome.took.as_secs_f64());
        writeln!(out, "{name}: {plans} plans, {states} states, depth {depth}, {seconds:.1} s")?;
        for (promise, steps) in &outcome.broken {
            writeln!(out, "  broken: {promise}\n    {steps}")?;
        }
        for missing in outcome.never.iter().filter(|_| whole) {
            writeln!(out, "  never: {missing}")?;
        }
    }
    Ok(good)
}

fn print(name: &str, outcome: &Outcome, out: &mut dyn Write) -> anyhow::Result<()> {
    let seconds = outcome.took.as_secs_f64();
    writeln!(out, "{name}: {} states, depth {}, {seconds:.1} s", outcome.states, outcome.depth)?;
    for (promise, actions) in &outcome.broken {
        writeln!(out, "  broken: {promise}\n    {actions:?}")?;
    }
    Ok(())
}
