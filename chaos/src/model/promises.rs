//! The promises as properties of a state, and what must be possible for them to mean anything.

use stateright::{Model, Property};

use super::actions::Action;
use super::bounds::Bounds;
use super::state::{REGIONS, State, bits};

type Holds = fn(&Bounds, &State) -> bool;

/// What is always true.
pub(super) const ALWAYS: [(&str, Holds); 7] = [
    ("FEN-1 at most one region may acknowledge, and does", one_writer),
    ("FEN-2 behind its fence no region takes an older epoch's frames", |_, state| !state.told.unfenced),
    ("DUR-2 an acknowledged write is on disk in as many regions as were asked for", is_copied),
    ("DUR-2 whoever is primary has every acknowledged write", is_kept),
    ("ORD-1 logs of one history are prefixes of each other", is_prefix),
    ("CON-1 a strong read has what was acknowledged or read before, and is never undone", is_linearizable),
    ("epochs only rise", epochs_rise),
];

/// What happens in some state.
pub(super) const SOMETIMES: [(&str, Holds); 4] = [
    ("a replica answers early, where two copies are asked for", answered_early),
    ("a write is acknowledged under a later epoch", |_, state| told_later(state, state.told.acknowledged)),
    ("a strong read is answered under a later epoch", |_, state| told_later(state, state.told.seen)),
    ("a deposed primary gives up its tail", gave_up),
];

/// Acknowledged, though the primary has no lease to do it under, and nothing happened that could have ended one.
fn answered_early(bounds: &Bounds, state: &State) -> bool {
    let never = state.regions.iter().all(|region| region.lease == 0 && region.renewal.is_none());
    bounds.copies != 2 || (state.told.acknowledged != 0 && never && state.crashes == 0)
}

fn told_later(state: &State, told: u8) -> bool {
    state.regions.iter().flat_map(|region| &region.log).any(|entry| entry.epoch > 1 && told & (1 << entry.write) != 0)
}

/// A write that was ordered is nowhere, and no crash took it.
fn gave_up(_: &Bounds, state: &State) -> bool {
    let all = state.regions.iter().map(|region| bits(&region.log)).fold(0, |all, one| all | one);
    state.crashes == 0 && ((1 << state.ordered) - 1) & !all != 0
}

fn one_writer(_: &Bounds, state: &State) -> bool {
    (0..REGIONS).filter(|region| state.is_primary(*region)).count() <= 1 && !state.told.usurped
}

fn is_copied(bounds: &Bounds, state: &State) -> bool {
    (0..bounds.writes).filter(|write| state.told.acknowledged & (1 << write) != 0).all(|write| {
        let holders = state.regions.iter().filter(|region| bits(region.disk()) & (1 << write) != 0);
        holders.count() >= usize::from(bounds.copies)
    })
}

fn is_kept(_: &Bounds, state: &State) -> bool {
    let Some(primary) = state.metadata.primary() else { return true };
    state.told.acknowledged & !bits(state.regions[primary].disk()) == 0
}

fn is_prefix(_: &Bounds, state: &State) -> bool {
    let pairs = state
        .regions
        .iter()
        .enumerate()
        .flat_map(|(at, one)| state.regions[at + 1..].iter().map(move |other| (one, other)));
    pairs
        .filter(|(one, other)| one.aligned == other.aligned)
        .all(|(one, other)| one.disk().iter().zip(other.disk()).all(|(ours, theirs)| ours == theirs))
}

fn is_linearizable(_: &Bounds, state: &State) -> bool {
    let undone = state.metadata.primary().is_some_and(|p| state.told.seen & !bits(state.regions[p].disk()) != 0);
    !state.told.stale && !undone
}

fn epochs_rise(_: &Bounds, state: &State) -> bool {
    state.regions.iter().all(|region| {
        let known = region.known.epoch.max(region.fence).max(region.aligned);
        known <= state.metadata.epoch && region.log.is_sorted_by_key(|entry| entry.epoch)
    })
}

impl Model for Bounds {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let begin = |state: State, action: &Action| match self.after(&state, *action) {
            Some(state) => state,
            None => panic!("{action:?} is not possible in the prelude of {:?}", self.start),
        };
        vec![self.start.prelude().iter().fold(State::first(), begin)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.tries(state, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        self.after(last, action)
    }

    fn properties(&self) -> Vec<Property<Bounds>> {
        let always = ALWAYS.map(|(name, holds)| Property::always(name, holds));
        let sometimes = SOMETIMES.map(|(name, holds)| Property::sometimes(name, holds));
        always.into_iter().chain(sometimes).collect()
    }
}
