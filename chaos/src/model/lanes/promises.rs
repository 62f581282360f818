//! The promises as properties of a state, and what must be possible for them to mean anything.

use stateright::{Model, Property};

use super::Lanes;
use super::plan::{Entry, Lane, Plan, SOURCES};
use super::state::{Broken, Standing, State};
use super::steps::{Frame, Step, bit};

type Holds = fn(&World, &State) -> bool;

/// All plans within the bounds, and the rules.
pub(super) struct World {
    rules: Lanes,
    pub(super) plans: Vec<Plan>,
}

/// What is always true.
pub(super) const ALWAYS: [(&str, Holds); 7] = [
    ("ORD-1 what the target applies is the beginning of the history", |_, state| state.broken != Some(Broken::Gap)),
    ("ORD-1 what both lanes of a log have passed is at the target", is_passed_to_the_target),
    ("ONE-1 nothing is applied twice", |_, state| state.broken != Some(Broken::Twice)),
    ("DUR-2 what the target is counted for it has applied", is_counted_rightly),
    ("FEN-2 behind its fence the target takes nothing of earlier epochs", |_, state| {
        state.broken != Some(Broken::Unfenced)
    }),
    ("CON-3 who takes itself to be as fresh as its lane has all that was ordered there", is_fresh),
    ("LIVE as long as something is missing some lane can bring it", can_go_on),
];

/// What happens in some state.
pub(super) const SOMETIMES: [(&str, Holds); 5] = [
    ("everything arrives in its lanes, is counted, and all turns are forgotten", |world, state| {
        let plan = world.plan(state);
        let turns = (2..=plan.last_epoch()).filter(|epoch| plan.is_turn(*epoch)).count();
        is_complete(plan, state)
            && turns >= 2
            && !(2..=plan.last_epoch()).any(|it| plan.is_turn(it) && it > state.forgotten)
    }),
    ("what waits for the end of an epoch is confirmed and does not count", |world, state| {
        entries(world, state)
            .any(|(at, it)| waits(state, at) && Lane::ALL.iter().any(|lane| state.mark(it.source, *lane) > it.place))
    }),
    ("what is of both sources waits at once, if so much may", |world, state| {
        let of = |source| entries(world, state).any(|(at, it)| waits(state, at) && it.source == source);
        world.rules.parked < 2 || (0..SOURCES).all(of)
    }),
    ("an entry can come in the other lane, too, once its turn is forgotten", comes_again),
    ("a write of an earlier epoch is counted in a later one, of the same primary again", |world, state| {
        let plan = world.plan(state);
        entries(world, state).any(|(_, entry)| {
            let later = |heard: u8| heard > entry.epoch && plan.epoch(heard - 1).source != entry.source;
            state.copies(plan).any(|copy| later(copy.heard) && world.rules.counts(state, plan, copy, entry))
        })
    }),
];

fn entries<'a>(world: &'a World, state: &State) -> impl Iterator<Item = (u8, Entry)> + 'a {
    (0..).zip(world.plan(state).history.iter().copied())
}

fn waits(state: &State, at: u8) -> bool {
    state.parked & bit(at) != 0
}

fn is_complete(plan: &Plan, state: &State) -> bool {
    let all = |source: usize| state.marks[source].iter().all(|mark| usize::from(*mark) == plan.logs[source].len());
    state.applied == plan.length() && (0..SOURCES).all(all)
}

fn is_passed_to_the_target(world: &World, state: &State) -> bool {
    let passed = |entry: Entry| state.marks[entry.source].iter().all(|mark| *mark > entry.place);
    let is_there = |at: u8| at < state.applied || waits(state, at) || state.standing == Standing::Leads;
    entries(world, state).all(|(at, entry)| !passed(entry) || is_there(at))
}

fn is_counted_rightly(world: &World, state: &State) -> bool {
    let plan = world.plan(state);
    let missing = || entries(world, state).filter(|(at, entry)| *at >= state.applied && !entry.seal);
    state.copies(plan).all(|copy| missing().all(|(_, entry)| !world.rules.counts(state, plan, copy, entry)))
}

/// The lane was complete when its source had just so much in its log.
fn is_fresh(world: &World, state: &State) -> bool {
    let plan = world.plan(state);
    state.copies(plan).filter(|copy| world.rules.is_fresh(state, plan, *copy)).all(|copy| {
        let followed = plan.epoch(copy.heard);
        let complete = state.mark(followed.source, followed.lane);
        entries(world, state).all(|(at, it)| at < state.applied || it.source != followed.source || it.place >= complete)
    })
}

fn can_go_on(world: &World, state: &State) -> bool {
    let plan = world.plan(state);
    state.standing != Standing::Follows
        || state.broken.is_some()
        || is_complete(plan, state)
        || frames(world, state).next().is_some()
}

/// What the newest copy of the metadata sends and the target takes.
fn frames<'a>(world: &'a World, state: &'a State) -> impl Iterator<Item = Frame> + 'a {
    let plan = world.plan(state);
    let by = state.record(plan);
    let of = move |source, lane| Frame { source, lane, place: state.mark(source, lane), by };
    let all = (0..SOURCES).flat_map(move |source| Lane::ALL.map(|lane| of(source, lane)));
    let exists = |frame: &Frame| usize::from(frame.place) < plan.logs[frame.source].len();
    all.filter(exists).filter(move |frame| world.rules.after(plan, state, Step::Take(*frame)).is_some())
}

fn comes_again(world: &World, state: &State) -> bool {
    let plan = world.plan(state);
    let again = |frame: Frame| {
        let at = plan.logs[frame.source][usize::from(frame.place)];
        let entry = plan.history[usize::from(at)];
        let lane = plan.epoch(entry.epoch).lane;
        frame.lane != lane && world.rules.verdict(plan, frame.by, frame.lane, entry) == super::state::Verdict::Ship
    };
    frames(world, state).any(again)
}

impl World {
    pub(super) fn new(rules: Lanes) -> World {
        World { rules, plans: Plan::all(rules.epochs, rules.writes) }
    }

    fn plan(&self, state: &State) -> &Plan {
        &self.plans[state.plan]
    }
}

impl Model for World {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        (0..self.plans.len()).map(State::first).collect()
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        self.rules.tries(self.plan(state), state, steps);
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        self.rules.after(self.plan(last), last, step)
    }

    fn properties(&self) -> Vec<Property<World>> {
        let always = ALWAYS.map(|(name, holds)| Property::always(name, holds));
        let sometimes = SOMETIMES.map(|(name, holds)| Property::sometimes(name, holds));
        always.into_iter().chain(sometimes).collect()
    }
}
