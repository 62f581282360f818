//! The lanes of a bucket to one region (design 6, docs/adr/2026-11-27-online-policy-change.md), in every order in which it can happen.
//!
//! ```text
//! epochs:    1: A, async ── turn ──► 2: A, sync ── switchover ──► 3: B, sync ── …       a `Plan` of them, with writes and seals
//! sources:   A's log ═ async lane ═╗              each lane a watermark at the target; what an entry's lane is follows from its
//!            A's log ═ sync lane ══╬═ Take ═► target   epoch, as far as a copy of the metadata has heard (`Known`)
//!            B's log ═ …       ════╝   │ applied: the beginning of the history; parked: of epochs to come
//!            Hear (has it followed?), Tell (so the turns are forgotten)
//! target:    Pull (a repair brings what comes next) ── Fence ── Succeed
//! ```
//! One bucket, one shard, two regions that are its primary in turn, and a third one that is looked at. Three things keep it small,
//! and take nothing away. The logs are there from the start, for a lane that brings an entry at once may bring it later. What is on its way is
//! no part of a state: any frame that some copy of the metadata could ever have made may arrive at any time, as often as it likes, so windows, losses,
//! repeats, late frames of earlier streams and restarts are all in it. And a frame carries one position, for a longer one is several at once.
//!
//! Deliberately not here: who is primary, and leases, which the larger model has; what a failover costs.

mod plan;
mod promises;
mod state;
mod steps;

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model};

pub use plan::{Lane, Plan};
pub use state::{Known, State};
pub use steps::Step;

/// A rule left out, each of which breaks a promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mistake {
    /// None: the protocol as it is.
    None,
    /// An entry travels in the lane of the policy of today, not of its epoch.
    LaneOfToday,
    /// A seal travels in the lane of the epoch that it begins.
    SealInTheNewLane,
    /// A lane passes over entries of an epoch that it has not heard of.
    PassesOverTheUnknown,
    /// Turns are forgotten before the target has followed.
    ForgetsTurnsEarly,
    /// The log is purged up to where one of its lanes has come.
    PurgesWhatOneLaneHas,
    /// A frame is taken whatever was taken before it.
    TakesOutOfOrder,
    /// The watermark moves before the entries are there, and a crash comes in between.
    WatermarkFirst,
    /// An entry that a repair brought already, or the other lane, is applied again.
    AppliesAgain,
    /// What is of a later epoch is applied as it comes.
    NothingIsParked,
    /// When enough is parked nothing is taken, not even the seal that it waits for.
    FullIsFull,
    /// A frame is confirmed when it comes, not when it is applied.
    ConfirmsEarly,
    /// Each of the lanes confirms what is in the other, too.
    EitherLaneConfirms,
    /// What waits at the target counts as a copy.
    ParkedCounts,
    /// Who has followed a turn has followed whatever came behind it.
    FollowsTurnsOnly,
    /// That a turn is forgotten says that a later epoch has begun.
    RecordOfAnotherEpoch,
    /// The target is fresh if the lane of today is complete, whichever epoch is in force there.
    FreshByItsLane,
    /// The target takes frames behind its fence.
    TakesBehindItsFence,
    /// What waits at the target is applied when it has become the primary.
    ParkedOutlivesTheFence,
}

impl Mistake {
    /// All mistakes.
    pub const ALL: [Mistake; 18] = [
        Mistake::LaneOfToday,
        Mistake::SealInTheNewLane,
        Mistake::PassesOverTheUnknown,
        Mistake::ForgetsTurnsEarly,
        Mistake::PurgesWhatOneLaneHas,
        Mistake::TakesOutOfOrder,
        Mistake::WatermarkFirst,
        Mistake::AppliesAgain,
        Mistake::NothingIsParked,
        Mistake::FullIsFull,
        Mistake::ConfirmsEarly,
        Mistake::EitherLaneConfirms,
        Mistake::ParkedCounts,
        Mistake::FollowsTurnsOnly,
        Mistake::RecordOfAnotherEpoch,
        Mistake::FreshByItsLane,
        Mistake::TakesBehindItsFence,
        Mistake::ParkedOutlivesTheFence,
    ];
}

/// How much is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Lanes {
    /// Epochs.
    pub epochs: u8,
    /// The most writes in one epoch.
    pub writes: u8,
    /// The most entries that may wait at the target.
    pub parked: u32,
    /// The rule left out.
    pub mistake: Mistake,
}

/// What looking at every state of every plan came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Plans.
    pub plans: usize,
    /// States that differ.
    pub states: usize,
    /// Steps of the longest of the shortest ways to a state.
    pub depth: usize,
    /// How long it took.
    pub took: Duration,
    /// The promises that were broken, each with the plan and the steps that led there.
    pub broken: Vec<(&'static str, String)>,
    /// What never happened, though it should be possible: then the model says nothing.
    pub never: Vec<&'static str>,
}

impl Lanes {
    /// Three epochs: each order of a turn, a switchover and an epoch of the same primary in the same lane.
    pub const THREE: Lanes = Lanes { epochs: 3, writes: 2, parked: 2, mistake: Mistake::None };

    /// Small enough for every run of the tests, and enough to show every mistake.
    pub const SMALL: Lanes = Lanes { writes: 1, ..Lanes::THREE };

    /// The worlds in which every order is looked at, by name.
    pub const WORLDS: [(&str, Lanes); 3] = [
        ("lanes, three epochs", Lanes::THREE),
        ("lanes, three epochs, one entry may wait", Lanes { parked: 1, ..Lanes::THREE }),
        ("lanes, four epochs of a write or none", Lanes { epochs: 4, ..Lanes::SMALL }),
    ];

    /// Looks at every state within the bounds, breadth first; with a mistake, until a promise is broken.
    pub fn explore(self, threads: usize) -> Outcome {
        let began = Instant::now();
        let stop = if self.mistake == Mistake::None { HasDiscoveries::All } else { HasDiscoveries::AnyFailures };
        let model = promises::World::new(self);
        let checker = model.checker().threads(threads).finish_when(stop).spawn_bfs().join();
        let found = checker.discoveries();
        let is_promise = |name: &&str| promises::ALWAYS.iter().any(|(promise, _)| promise == name);
        let told = |path: &stateright::Path<State, Step>| {
            let plan = &checker.model().plans[path.last_state().plan];
            format!("{plan:?} {:?}", path.clone().into_actions())
        };
        let mut broken: Vec<_> =
            found.iter().filter(|(name, _)| is_promise(name)).map(|(name, path)| (*name, told(path))).collect();
        broken.sort_unstable();
        let never =
            promises::SOMETIMES.iter().map(|(name, _)| *name).filter(|name| !found.contains_key(name)).collect();
        Outcome {
            plans: checker.model().plans.len(),
            states: checker.unique_state_count(),
            depth: checker.max_depth(),
            took: began.elapsed(),
            broken,
            never,
        }
    }

    fn makes(&self, mistake: Mistake) -> bool {
        self.mistake == mistake
    }
}
