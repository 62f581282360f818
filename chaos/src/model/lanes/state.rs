//! What there is at one moment, and what a copy of the metadata says.

use super::plan::{Entry, Lane, Plan, SOURCES};
use super::{Lanes, Mistake};

/// A copy of the metadata: some node's, of now or of earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Known {
    /// The epoch that it has heard of.
    pub heard: u8,
    /// The turns into epochs up to this one are forgotten: every region was said to have followed.
    pub forgotten: u8,
}

/// What becomes of an entry in a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Ship,
    Skip,
    Wait,
}

/// What the target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Standing {
    /// It takes what comes.
    Follows,
    /// It has told how far it is, and takes nothing of those epochs any more.
    Fenced,
    /// It is the primary of a later epoch.
    Leads,
}

/// What must not happen, and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Broken {
    /// An entry was applied before one that comes before it.
    Gap,
    /// An entry was applied again.
    Twice,
    /// An entry was applied behind the fence that is to keep it out.
    Unfenced,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// Which of the plans; it never changes.
    pub plan: usize,
    /// How far the target has taken each lane, by source and lane: places in the source's log.
    pub(super) marks: [[u8; 2]; SOURCES],
    /// How much of the history the target has applied.
    pub(super) applied: u8,
    /// What waits there, as bits of places in the history.
    pub(super) parked: u32,
    pub(super) standing: Standing,
    /// The metadata plane has forgotten the turns into epochs up to this one.
    pub(super) forgotten: u8,
    /// The last epoch behind whose beginning the target is, for all that the leader in each source's region has heard.
    pub(super) followed: [u8; SOURCES],
    pub(super) broken: Option<Broken>,
}

impl State {
    pub(super) fn first(plan: usize) -> State {
        State {
            plan,
            marks: [[0; 2]; SOURCES],
            applied: 0,
            parked: 0,
            standing: Standing::Follows,
            forgotten: 0,
            followed: [0; SOURCES],
            broken: None,
        }
    }

    /// The epoch in force at the target.
    pub(super) fn epoch(&self, plan: &Plan) -> u8 {
        plan.history.get(usize::from(self.applied)).map_or(plan.last_epoch(), |next| next.epoch)
    }

    pub(super) fn mark(&self, source: usize, lane: Lane) -> u8 {
        self.marks[source][lane as usize]
    }

    /// Every copy of the metadata that somebody may have, or have had. A turn may be forgotten at any time after this shard has
    /// said that it may: others have to say so, too.
    pub(super) fn copies(&self, plan: &Plan) -> impl Iterator<Item = Known> {
        let forgotten = self.forgotten;
        (1..=plan.last_epoch()).flat_map(move |heard| {
            let turns = (2..=forgotten.min(heard)).filter(|epoch| plan.is_turn(*epoch));
            [0].into_iter().chain(turns).map(move |forgotten| Known { heard, forgotten })
        })
    }

    /// The newest one.
    pub(super) fn record(&self, plan: &Plan) -> Known {
        Known { heard: plan.last_epoch(), forgotten: self.forgotten }
    }
}

impl Known {
    /// The turns that it keeps.
    fn kept(self, plan: &Plan) -> impl DoubleEndedIterator<Item = u8> {
        (self.forgotten + 1..=self.heard).filter(|epoch| plan.is_turn(*epoch))
    }

    pub(super) fn last_turn(self, plan: &Plan) -> Option<u8> {
        self.kept(plan).next_back()
    }

    fn lane_of(self, plan: &Plan, epoch: u8) -> Lane {
        let before = self.kept(plan).find(|turn| epoch < *turn).map_or(self.heard, |turn| turn - 1);
        plan.epoch(before).lane
    }
}

impl Lanes {
    /// What becomes of an entry in a lane of its source.
    pub(super) fn verdict(&self, plan: &Plan, copy: Known, lane: Lane, entry: Entry) -> Verdict {
        let Entry { epoch, seal, .. } = entry;
        let of = match self.mistake {
            Mistake::LaneOfToday => copy.heard,
            Mistake::SealInTheNewLane if seal => epoch + 1,
            _ => epoch,
        };
        if epoch > copy.heard {
            return if self.makes(Mistake::PassesOverTheUnknown) { Verdict::Skip } else { Verdict::Wait };
        }
        if copy.lane_of(plan, of) == lane { Verdict::Ship } else { Verdict::Skip }
    }

    /// The epoch behind whose beginning the target must be before its copies count.
    pub(super) fn awaited(&self, plan: &Plan, copy: Known) -> Option<u8> {
        let turn = copy.last_turn(plan).filter(|_| self.makes(Mistake::FollowsTurnsOnly));
        turn.or_else(|| (copy.heard > 1).then_some(copy.heard))
    }

    /// Whether the target's copies count for who is primary by that copy of the metadata.
    fn has_followed(&self, state: &State, plan: &Plan, copy: Known) -> bool {
        let Some(awaited) = self.awaited(plan, copy) else { return true };
        let is_heard = state.followed[plan.epoch(copy.heard).source] >= awaited;
        if is_heard || self.makes(Mistake::ParkedCounts) {
            return true;
        }
        let of_this = |turn: &u8| *turn == awaited || self.makes(Mistake::RecordOfAnotherEpoch);
        copy.last_turn(plan).filter(of_this).is_some_and(|turn| turn <= state.forgotten)
    }

    /// Whether a primary may take the target for a region that has an entry of its own, by that copy of the metadata. Who
    /// asked for it may have come in a later epoch, with the same request again.
    pub(super) fn counts(&self, state: &State, plan: &Plan, copy: Known, entry: Entry) -> bool {
        let Known { heard, .. } = copy;
        let (source, lane) = (plan.epoch(heard).source, plan.epoch(heard).lane);
        let lanes = Lane::ALL.into_iter().filter(|it| *it == lane || self.makes(Mistake::EitherLaneConfirms));
        let mark = lanes.map(|lane| state.mark(source, lane)).max().unwrap_or_default();
        let confirmed = mark + u8::from(self.makes(Mistake::ConfirmsEarly));
        source == entry.source
            && entry.epoch <= heard
            && entry.place < confirmed
            && self.has_followed(state, plan, copy)
    }

    /// Whether the target, by that copy of the metadata and under a lease, takes itself to be as fresh as the lane is.
    pub(super) fn is_fresh(&self, state: &State, plan: &Plan, copy: Known) -> bool {
        let in_force = state.epoch(plan) == copy.heard || self.makes(Mistake::FreshByItsLane);
        state.standing == Standing::Follows && in_force
    }
}
