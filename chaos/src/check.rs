//! The checkers: what must be true of a run, one file per promise.
//!
//! A checker takes [`Evidence`] and finds nothing or a [`Violation`]: the promise, one sentence, and the operations or
//! facts that show it. It never asks how the product works, only what was said and what was the case. Those that need
//! to see inside (a [`crate::trace`]) find nothing to check in a run of real processes, and say so in their [`Stats`].
//!
//! A timed-out write is *unknown*: it may have happened at any later time, or never; no checker takes it for failed.

mod bounds;
mod chains;
mod converge;
mod counters;
mod crossed;
mod damped;
mod digests;
mod dropped;
mod durable;
mod epochs;
mod evidence;
mod exposed;
mod fences;
mod fewer;
mod floor;
mod forks;
mod fresh;
mod kinds;
mod linear;
mod lists;
mod live;
mod lost;
mod members;
mod nodes;
mod once;
mod order;
mod policies;
mod prefix;
mod revival;
mod salvaged;
mod served;
mod sessions;
mod show;
mod stale;
mod torn;
mod unasked;
mod writer;

#[cfg(test)]
mod tests;

use std::fmt;

pub use dropped::Remnant;
pub use evidence::{Assumption, Evidence, Final, Known, Limits, Salvaged, Setup};
pub use forks::{Failover, Forks, Undone};
pub use nodes::{Held, are_equal};
pub use policies::Policies;

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The promise, as in `docs/promises.md`.
    pub promise: &'static str,
    /// Who found it: the name in [`ALL`].
    pub checker: &'static str,
    /// What is wrong, in one sentence.
    pub sentence: String,
    /// The operations and facts that show it, in order.
    pub shown: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is broken ({}): {}", self.promise, self.checker, self.sentence)?;
        self.shown.iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

/// What a checker looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Stats {
    /// Operations, facts or keys that were held to the promise.
    pub checked: u64,
    /// Those that could not be decided: no trace, or a search that took too long.
    pub undecided: u64,
}

/// One promise and how it is checked.
#[derive(Clone, Copy, Debug)]
pub struct Checker {
    /// Its name, for reports and for `--only`.
    pub name: &'static str,
    /// The promise it holds the product to.
    pub promise: &'static str,
    /// What that promise rests on besides the product.
    pub rests_on: &'static [Assumption],
    /// Finds nothing, or a violation.
    pub check: fn(&Evidence) -> Result<Stats, Violation>,
}

macro_rules! checkers {
    ($($name:ident: $promise:literal $(, rests on $($assumption:ident)*)?;)*) => {
        /// Every checker; the cheap ones and the ones with the clearest sentence first.
        pub const ALL: &[Checker] = &[$(Checker {
            name: stringify!($name),
            promise: $promise,
            rests_on: &[$($(Assumption::$assumption),*)?],
            check: $name::check,
        }),*];
    };
}

checkers! {
    served: "DUR-3";
    torn: "ORD-1";
    counters: "CON-1", rests on ClockRates ClockAhead Disks;
    lists: "CON-1", rests on ClockRates ClockAhead Disks;
    chains: "CON-1", rests on ClockRates;
    order: "CON-1", rests on ClockRates;
    linear: "CON-1", rests on ClockRates ClockFarAhead;
    sessions: "CON-2", rests on ClockRates;
    stale: "CON-3", rests on ClockRates;
    fresh: "CON-3", rests on ClockRates;
    once: "ONE-1", rests on ClockFarAhead;
    crossed: "CON-4";
    prefix: "ORD-1";
    digests: "ORD-1";
    durable: "DUR-2";
    lost: "DUR-1", rests on ClockRates ClockAhead Disks;
    fewer: "DEG-1", rests on ClockRates;
    exposed: "RPO";
    salvaged: "SWI-2", rests on ClockRates ClockAhead Disks;
    unasked: "SWI-3", rests on ClockRates Disks;
    damped: "AUTO", rests on ClockRates;
    writer: "FEN-1", rests on ClockRates;
    fences: "FEN-2";
    epochs: "FEN-1";
    revival: "CON-5", rests on ClockAhead Disks;
    converge: "CON-4", rests on ClockAhead Disks;
    nodes: "DUR-1", rests on Disks;
    dropped: "RES-1", rests on ClockAhead Disks;
    bounds: "RES-1";
    live: "LIVE", rests on ClockAhead Disks;
}

/// What all checkers came to.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Per checker, what it looked at.
    pub stats: Vec<(&'static str, Stats)>,
    /// What it found; at most one per checker.
    pub violations: Vec<Violation>,
}

impl Verdict {
    /// Whether every promise was kept, as far as the evidence goes.
    pub fn is_clean(&self) -> bool {
        self.violations.is_empty()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for violation in &self.violations {
            writeln!(f, "{violation}")?;
        }
        for (name, stats) in &self.stats {
            write!(f, "{name} {}", stats.checked)?;
            if stats.undecided > 0 {
                write!(f, " ({} undecided)", stats.undecided)?;
            }
            f.write_str("  ")?;
        }
        Ok(())
    }
}

/// Holds a run to every promise.
pub fn all(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    for checker in ALL {
        if checker.rests_on.iter().any(|assumption| evidence.setup.violated.contains(assumption)) {
            verdict.stats.push((checker.name, Stats { checked: 0, undecided: 1 }));
            continue;
        }
        match (checker.check)(evidence) {
            Ok(stats) => verdict.stats.push((checker.name, stats)),
            Err(violation) => verdict.violations.push(violation),
        }
    }
    verdict
}

/// Begins a violation found by the checker of that name.
fn broken(checker: &'static str, sentence: impl Into<String>) -> Violation {
    let promise = ALL.iter().find(|it| it.name == checker).map_or("?", |it| it.promise);
    Violation { promise, checker, sentence: sentence.into(), shown: Vec::new() }
}

impl Violation {
    /// Adds what shows it.
    fn showing(mut self, what: impl fmt::Display) -> Violation {
        self.shown.push(what.to_string());
        self
    }
}
