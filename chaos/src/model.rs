//! The protocol by itself, in every order in which it can happen: leases, acknowledgement, and a change of primary
//! (design 4, 6, 7), small enough to look at all of it.
//!
//! ```text
//! metadata:  epoch, primary ── grants ──► lease of a region          Tick, Elect: time passes, leaders change
//!     │ Depose: epoch + 1          │
//!     ▼                            ▼
//! fencing: Fence(r) … Promote(r)   primary: Order ─ Sync ─ Ship ─► replica: Receive ─ Sync ─ Confirm ─► Acknowledge
//!                                                                       └─ AnswerEarly (design 6)
//! ```
//!
//! One bucket, one shard, one key: a log of numbered writes. Three regions of one node each. The properties are the
//! promises; a [`Mistake`] is the protocol with one rule left out, and must break one of them: so each rule is
//! needed, and each property can fail. What is written here follows `metadata/core/src/lease.rs`,
//! `region/node/src/{writes,reads}.rs`, `replicator/core` and `region/core/src/shard/epoch.rs`.
//!
//! Deliberately not here: keys, frames of several entries, CRDTs. How copies degrade is in [`degrade`], the two lanes are in [`lanes`].

mod actions;
mod bounds;
pub mod cli;
pub mod degrade;
pub mod lanes;
mod promises;
mod state;

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model};

pub use actions::Action;
pub use bounds::{Bounds, Mistake, Start};
pub use state::State;

/// What looking at every state came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// States that differ.
    pub states: usize,
    /// Steps of the longest of the shortest ways to a state.
    pub depth: usize,
    /// How long it took.
    pub took: Duration,
    /// The promises that were broken, each with the actions that led there.
    pub broken: Vec<(&'static str, Vec<Action>)>,
    /// What never happened, though it should be possible: then the model says nothing.
    pub never: Vec<&'static str>,
}

/// Looks at every state within the bounds, breadth first; with a mistake, until a promise is broken.
pub fn explore(bounds: Bounds, threads: usize) -> Outcome {
    let began = Instant::now();
    let stop = if bounds.mistake == Mistake::None { HasDiscoveries::All } else { HasDiscoveries::AnyFailures };
    let checker = bounds.checker().threads(threads).finish_when(stop).spawn_bfs().join();
    let found = checker.discoveries();
    let mut broken: Vec<_> = found
        .iter()
        .filter(|(name, _)| promises::ALWAYS.iter().any(|(promise, _)| promise == *name))
        .map(|(name, path)| (*name, path.clone().into_actions()))
        .collect();
    broken.sort_by_key(|(name, _)| *name);
    let never = promises::SOMETIMES.iter().map(|(name, _)| *name).filter(|name| !found.contains_key(name)).collect();
    Outcome { states: checker.unique_state_count(), depth: checker.max_depth(), took: began.elapsed(), broken, never }
}
