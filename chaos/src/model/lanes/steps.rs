//! What can happen, and what it does. A step that changes nothing is none.

use super::plan::{Lane, Plan, SOURCES};
use super::state::{Broken, Known, Standing, State, Verdict};
use super::{Lanes, Mistake};

/// A frame that may be on its way: one position of a source's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    /// Whose log.
    pub source: usize,
    /// In which lane.
    pub lane: Lane,
    /// The position; the one before it is where the lane must be.
    pub place: u8,
    /// By which copy of the metadata it was decided what is in it.
    pub by: Known,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// A frame arrives at the target, which takes it or refuses it.
    Take(Frame),
    /// A repair brings the target what comes next, whatever its lanes have.
    Pull,
    /// The leader in a source's region, which knows that copy of the metadata, hears that the target has followed.
    Hear(Known),
    /// It says so to the metadata plane: turns are forgotten.
    Tell(Known),
    /// The primary is given up for lost: the target keeps out what it may still send.
    Fence,
    /// The target takes over.
    Succeed,
}

impl Lanes {
    /// Everything that may be tried in a state.
    pub(super) fn tries(&self, plan: &Plan, state: &State, steps: &mut Vec<Step>) {
        if state.broken.is_some() || state.standing == Standing::Leads {
            return;
        }
        steps.extend([Step::Pull, Step::Fence, Step::Succeed]);
        for by in state.copies(plan) {
            steps.extend([Step::Hear(by), Step::Tell(by)]);
            for source in 0..SOURCES {
                for lane in Lane::ALL {
                    let places = (0..).zip(&plan.logs[source]).map(|(place, _)| place);
                    let frames = places.map(|place| Frame { source, lane, place, by });
                    steps.extend(frames.filter(|frame| self.fits(state, *frame)).map(Step::Take));
                }
            }
        }
    }

    /// The state after a step; `None` when it is not possible, or nothing comes of it.
    pub(super) fn after(&self, plan: &Plan, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        let possible = match step {
            Step::Take(frame) => self.fits(last, frame) && self.take(plan, &mut state, frame),
            Step::Pull => {
                let lacks = state.applied < plan.length();
                self.append(plan, &mut state, last.applied);
                lacks
            }
            Step::Hear(by) => self.hear(plan, &mut state, by),
            Step::Tell(by) => self.tell(plan, &mut state, by),
            Step::Fence => {
                state.standing = Standing::Fenced;
                last.standing == Standing::Follows
            }
            Step::Succeed => {
                let outlives = self.makes(Mistake::ParkedOutlivesTheFence) && state.parked != 0;
                state.broken = outlives.then_some(Broken::Unfenced);
                (state.standing, state.parked) = (Standing::Leads, 0);
                last.standing == Standing::Fenced
            }
        };
        (possible && state != *last).then_some(state)
    }

    /// From which place on a source still has its log.
    fn purged(&self, state: &State, source: usize) -> u8 {
        let marks = state.marks[source].into_iter();
        if self.makes(Mistake::PurgesWhatOneLaneHas) { marks.max() } else { marks.min() }.unwrap_or_default()
    }

    /// Whether a frame can be on its way, and follows what was taken in its lane; any other is refused.
    fn fits(&self, state: &State, frame: Frame) -> bool {
        let Frame { source, lane, place, .. } = frame;
        let follows = place == state.mark(source, lane) || self.makes(Mistake::TakesOutOfOrder);
        follows && place >= self.purged(state, source)
    }

    fn take(&self, plan: &Plan, state: &mut State, frame: Frame) -> bool {
        let Frame { source, lane, place, by } = frame;
        state.marks[source][lane as usize] = place + 1;
        let at = plan.logs[source][usize::from(place)];
        match self.verdict(plan, by, lane, plan.history[usize::from(at)]) {
            Verdict::Ship => self.makes(Mistake::WatermarkFirst) || self.arrive(plan, state, at),
            Verdict::Skip => true,
            Verdict::Wait => false,
        }
    }

    /// What comes in a lane is applied, or waits, or is refused with the frame it came in.
    fn arrive(&self, plan: &Plan, state: &mut State, at: u8) -> bool {
        let (epoch, now) = (plan.history[usize::from(at)].epoch, state.epoch(plan));
        let is_full = state.parked.count_ones() >= self.parked && state.parked & bit(at) == 0;
        if at < state.applied && !self.makes(Mistake::AppliesAgain) {
            return true;
        }
        if state.standing != Standing::Follows {
            state.broken = Some(Broken::Unfenced);
            return self.makes(Mistake::TakesBehindItsFence);
        }
        if is_full && self.makes(Mistake::FullIsFull) {
            return false;
        }
        if epoch > now && !self.makes(Mistake::NothingIsParked) {
            state.parked |= bit(at);
            return !is_full;
        }
        self.append(plan, state, at);
        epoch >= now
    }

    /// An entry becomes part of what the target has, and so does what waited for it.
    fn append(&self, plan: &Plan, state: &mut State, at: u8) {
        if at != state.applied {
            state.broken = Some(if at < state.applied { Broken::Twice } else { Broken::Gap });
            return;
        }
        state.applied += 1;
        // A repair may have brought what waited.
        state.parked &= !(bit(state.applied) - 1);
        let waits = state.parked.trailing_zeros();
        if let Some(next) = plan.history.get(waits as usize)
            && next.epoch <= state.epoch(plan)
        {
            state.parked &= state.parked - 1;
            self.append(plan, state, u8::try_from(waits).unwrap_or(u8::MAX));
        }
    }

    /// It was asked for all that the primary's region had: with the epoch in force there that is all of the epochs before.
    fn hear(&self, plan: &Plan, state: &mut State, by: Known) -> bool {
        let Some(awaited) = self.awaited(plan, by) else { return false };
        let known = &mut state.followed[plan.epoch(by.heard).source];
        *known = awaited.max(*known);
        state.epoch(plan) >= by.heard
    }

    fn tell(&self, plan: &Plan, state: &mut State, by: Known) -> bool {
        let Some(turn) = by.last_turn(plan) else { return false };
        state.forgotten = turn.max(state.forgotten);
        let is_heard = Some(state.followed[plan.epoch(by.heard).source]) >= self.awaited(plan, by);
        is_heard || self.makes(Mistake::ForgetsTurnsEarly)
    }
}

pub(super) fn bit(at: u8) -> u32 {
    1 << at
}
