//! What can happen, and what it does. An action that changes nothing is none.

use std::cmp::max;

use super::bounds::{Bounds, Mistake};
use super::state::{Entry, Metadata, Phase, REGIONS, Read, Renewal, State, bit, bits};

/// One step of one participant, or of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Time passes.
    Tick,
    /// Another metadata leader.
    Elect,
    /// A region asks for a lease.
    AskLease(usize),
    /// The metadata leader, confirmed by a quorum, grants it.
    GrantLease(usize),
    /// The answer arrives.
    TakeLease(usize),
    /// A region applies what the metadata plane committed.
    Learn(usize),
    /// A region orders a write, as primary.
    Order(usize),
    /// What a region appended is on disk.
    Sync(usize),
    /// A region takes the next entry of another one, which ships as primary for all it knows.
    Receive(usize, usize),
    /// A primary acknowledges the write at that place.
    Acknowledge(usize, u8),
    /// A replica's gateway answers for the write at that place: its own copy is the second.
    AnswerEarly(usize, u8),
    /// A strong read looks at a region's state.
    BeginRead(usize),
    /// It is answered.
    EndRead,
    /// It is given up.
    DropRead,
    /// A region's node dies and comes back: what was not on disk is lost.
    Crash(usize),
    /// The metadata plane raises the epoch.
    Depose,
    /// A region commits the fence and reports how far it is.
    Fence(usize),
    /// The metadata plane makes a region the primary.
    Promote(usize),
    /// A region gives up what the primary does not have, and follows.
    Repair(usize),
}

impl Bounds {
    /// Everything that may be tried in a state.
    pub(super) fn tries(&self, state: &State, actions: &mut Vec<Action>) {
        actions.extend([Action::Tick, Action::Elect, Action::EndRead, Action::DropRead, Action::Depose]);
        for region in 0..REGIONS {
            actions.extend(
                [
                    Action::AskLease,
                    Action::GrantLease,
                    Action::TakeLease,
                    Action::Learn,
                    Action::Order,
                    Action::Sync,
                    Action::BeginRead,
                    Action::Crash,
                    Action::Fence,
                    Action::Promote,
                    Action::Repair,
                ]
                .map(|action| action(region)),
            );
            actions.extend((0..REGIONS).map(|from| Action::Receive(region, from)));
            let length = u8::try_from(state.regions[region].log.len()).unwrap_or(u8::MAX);
            for at in 0..length {
                actions.extend([Action::Acknowledge(region, at), Action::AnswerEarly(region, at)]);
            }
        }
    }

    /// The state after an action; `None` when it is not possible.
    pub(super) fn after(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let possible = match action {
            Action::Tick => tick(&mut state),
            Action::Elect => self.elect(&mut state),
            Action::AskLease(region) => self.ask_lease(&mut state, region),
            Action::GrantLease(region) => self.grant_lease(&mut state, region),
            Action::TakeLease(region) => self.take_lease(&mut state, region),
            Action::Learn(region) => learn(&mut state, region),
            Action::Order(region) => self.order(&mut state, region),
            Action::Sync(region) => sync(&mut state, region),
            Action::Receive(region, from) => self.receive(&mut state, region, from),
            Action::Acknowledge(region, at) => self.acknowledge(&mut state, region, at),
            Action::AnswerEarly(region, at) => self.answer_early(&mut state, region, at),
            Action::BeginRead(region) => self.begin_read(&mut state, region),
            Action::EndRead => self.end_read(&mut state),
            Action::DropRead => state.read.take().is_some(),
            Action::Crash(region) => self.crash(&mut state, region),
            Action::Depose => self.depose(&mut state),
            Action::Fence(region) => self.fence(&mut state, region),
            Action::Promote(region) => self.promote(&mut state, region),
            Action::Repair(region) => repair(&mut state, region),
        };
        (possible && state != *last).then_some(state)
    }

    /// Whether so much of a log is in enough regions. A primary that hears of it later can only do less.
    fn is_copied(&self, state: &State, region: usize, length: usize) -> bool {
        let on_disk = !self.makes(Mistake::ConfirmBeforeSync);
        let others = (0..REGIONS).filter(|other| *other != region);
        let holders = others.filter(|other| state.held_by(region, *other, on_disk) >= length).count();
        length == 0 || holders + 1 >= usize::from(self.copies)
    }

    /// Where nothing crashes, what is appended is as good as on disk.
    fn append(&self, state: &mut State, region: usize, entry: Entry) {
        let it = &mut state.regions[region];
        it.log.push(entry);
        if self.crashes == 0 {
            it.synced = u8::try_from(it.log.len()).unwrap_or(u8::MAX);
        }
    }

    fn elect(&self, state: &mut State) -> bool {
        // Every node counts as renewed at the moment of the election (design 4): what voters may tell besides is not in this model.
        let remembered = if self.makes(Mistake::ElectionForgetsLeases) { 0 } else { self.ttl };
        state.remembers = [remembered; REGIONS];
        if matches!(state.metadata.phase, Phase::Fencing(_)) {
            state.wait = remembered;
        }
        state.elections += 1;
        state.elections <= self.elections
    }

    fn ask_lease(&self, state: &mut State, region: usize) -> bool {
        let left = self.ttl + u8::from(self.makes(Mistake::DriftBeyondTheBound));
        let it = &mut state.regions[region];
        // The leases of others give no right; they would ask anew.
        let wants = it.renewal.is_none() && it.known.primary() == Some(region) && it.lease < left;
        it.renewal = Some(Renewal { left, granted: None });
        wants
    }

    fn grant_lease(&self, state: &mut State, region: usize) -> bool {
        let index = state.metadata.index;
        state.remembers[region] = self.ttl;
        match &mut state.regions[region].renewal {
            Some(renewal) if renewal.granted.is_none() => {
                renewal.granted = Some(index);
                true
            }
            _ => false,
        }
    }

    /// Late answers wait on their way until the region knows what they ask it to know.
    fn take_lease(&self, state: &mut State, region: usize) -> bool {
        let it = &mut state.regions[region];
        let Some(Renewal { left, granted: Some(index) }) = it.renewal.take() else { return false };
        it.lease = max(it.lease, left);
        it.known.index >= index || self.makes(Mistake::LeaseWithoutItsIndex)
    }

    fn order(&self, state: &mut State, region: usize) -> bool {
        let may = state.is_primary(region) && state.ordered < self.writes;
        let write = state.ordered;
        let (epoch, aligned) = (state.regions[region].known.epoch, state.regions[region].aligned);
        self.append(state, region, Entry { epoch, origin: u8::try_from(region).unwrap_or(u8::MAX), write });
        state.ordered += 1;
        may && aligned == epoch
    }

    /// Frames on their way are those of a primary that has not heard of its successor: it may stay so for ever.
    fn receive(&self, state: &mut State, region: usize, from: usize) -> bool {
        let unsynced = self.makes(Mistake::ShipBeforeSync) || self.makes(Mistake::AcknowledgeBeforeSync);
        let source = &state.regions[from];
        let ships = source.known.primary() == Some(from) && source.aligned == source.known.epoch;
        let (by, at) = (source.known.epoch, state.regions[region].log.len());
        let shipped = if unsynced { &source.log } else { source.disk() };
        let Some(entry) = shipped.get(at).copied() else { return false };
        let it = &state.regions[region];
        // One history: the place is the same and so is all before it.
        let on_history = it.aligned == by || (self.makes(Mistake::FollowWithoutRepair) && it.aligned < by);
        let fits = by >= it.fence && on_history && region != from;
        state.told.unfenced |= state.reports[region].is_some() && by < state.metadata.epoch;
        self.append(state, region, entry);
        let it = &mut state.regions[region];
        it.aligned = by;
        it.fence = max(it.fence, by);
        ships && fits
    }

    fn acknowledge(&self, state: &mut State, region: usize, at: u8) -> bool {
        let it = &state.regions[region];
        let entry = it.log[usize::from(at)];
        let durable = at < it.synced || self.makes(Mistake::AcknowledgeBeforeSync);
        let copied =
            self.is_copied(state, region, usize::from(at) + 1) || self.makes(Mistake::AcknowledgeWithoutCopies);
        let lease = it.lease > 0 || self.makes(Mistake::LeaseOnlyWhenOrdered);
        let right = lease && it.known.primary() == Some(region) && it.fence <= it.known.epoch;
        let is_news = state.told.acknowledged & bit(entry.write) == 0;
        let usurped = (0..REGIONS).any(|other| other != region && state.is_primary(other));
        state.told.usurped |= usurped;
        state.told.acknowledged |= bit(entry.write);
        durable && copied && right && is_news && entry.epoch == state.regions[region].known.epoch
    }

    fn answer_early(&self, state: &mut State, region: usize, at: u8) -> bool {
        let it = &state.regions[region];
        let entry = it.log[usize::from(at)];
        let applied = at < it.synced || self.makes(Mistake::ConfirmBeforeSync);
        // A gateway that forwards a retry must not take what its own region ordered before for the second copy.
        let is_replica = usize::from(entry.origin) != region || self.makes(Mistake::AnswerEarlyForOwn);
        let is_news = state.told.acknowledged & bit(entry.write) == 0 && it.known.primary() != Some(region);
        state.told.acknowledged |= bit(entry.write);
        self.copies == 2 && applied && is_replica && is_news
    }

    fn begin_read(&self, state: &mut State, region: usize) -> bool {
        let it = &state.regions[region];
        let may = state.is_primary(region) || self.ignores_lease(state, region);
        let free = state.read.is_none();
        let owed = state.told.acknowledged | state.told.seen;
        let aligned = it.aligned == it.known.epoch;
        state.read = Some(Read { region, length: it.synced, epoch: it.known.epoch, owed });
        may && free && aligned
    }

    fn end_read(&self, state: &mut State) -> bool {
        let Some(read) = state.read.take() else { return false };
        let it = &state.regions[read.region];
        let may = state.is_primary(read.region) || self.ignores_lease(state, read.region);
        // Gone by now: the region has been deposed and has given up its tail.
        let Some(seen) = it.log.get(..usize::from(read.length)) else { return false };
        let own = seen.iter().rposition(|entry| entry.epoch == read.epoch).map_or(0, |at| at + 1);
        let settled = match self.mistake {
            Mistake::ReadBeforeCopies => true,
            Mistake::ReadInheritedBeforeCopies => self.is_copied(state, read.region, own),
            _ => self.is_copied(state, read.region, seen.len()),
        };
        let same_epoch = it.known.epoch == read.epoch;
        let seen = bits(seen);
        state.told.seen |= seen;
        state.told.stale |= read.owed & !seen != 0;
        may && settled && same_epoch
    }

    fn ignores_lease(&self, state: &State, region: usize) -> bool {
        self.makes(Mistake::ReadWithoutLease) && state.regions[region].known.primary() == Some(region)
    }

    fn crash(&self, state: &mut State, region: usize) -> bool {
        let it = &mut state.regions[region];
        it.log.truncate(usize::from(it.synced));
        it.lease = 0;
        it.renewal = None;
        // What it knew of the metadata may be as old as its last stored copy.
        it.known = Metadata { index: 1, epoch: 1, phase: Phase::Steady(0) };
        if state.read.is_some_and(|read| read.region == region) {
            state.read = None;
        }
        state.crashes += 1;
        state.crashes <= self.crashes
    }

    fn depose(&self, state: &mut State) -> bool {
        let Phase::Steady(primary) = state.metadata.phase else { return false };
        state.metadata = Metadata {
            index: state.metadata.index + 1,
            epoch: state.metadata.epoch + 1,
            phase: Phase::Fencing(primary),
        };
        // As remembered at this moment: every later grant requires the region to know (design 4).
        state.wait = state.remembers[primary];
        state.metadata.epoch <= self.epochs
    }

    fn fence(&self, state: &mut State, region: usize) -> bool {
        let metadata = state.metadata;
        let Phase::Fencing(deposed) = metadata.phase else { return false };
        let it = &mut state.regions[region];
        let on_history = it.aligned + 1 == metadata.epoch;
        // The fence stands in the log behind all else, so that all else is on disk with it.
        it.synced = u8::try_from(it.log.len()).unwrap_or(u8::MAX);
        if !self.makes(Mistake::ReportWithoutFence) {
            it.fence = metadata.epoch;
        }
        let is_news = state.reports[region].is_none();
        state.reports[region] = Some(it.synced);
        region != deposed && on_history && is_news
    }

    fn promote(&self, state: &mut State, region: usize) -> bool {
        let metadata = state.metadata;
        let fenced = (0..REGIONS).filter(|other| state.reports[*other].is_some()).count();
        let waited = state.wait == 0 || self.makes(Mistake::PromoteBeforeLeasesEnd);
        let may = matches!(metadata.phase, Phase::Fencing(_)) && fenced >= self.survivors() && waited;
        if !may || state.reports[region].is_none() {
            return false;
        }
        self.pull(state, region);
        for other in (0..REGIONS).filter(|other| state.reports[*other].is_some()) {
            state.regions[other].aligned = metadata.epoch;
        }
        state.metadata = Metadata { index: metadata.index + 1, epoch: metadata.epoch, phase: Phase::Steady(region) };
        (state.reports, state.wait) = ([None; REGIONS], 0);
        if self.copies == 1 {
            // What an async bucket's primary had not shipped is lost, with consent.
            let kept = bits(state.regions[region].disk());
            state.told.acknowledged &= kept;
            state.told.seen &= kept;
            if let Some(read) = &mut state.read {
                read.owed &= kept;
            }
        }
        true
    }

    /// The successor takes what the region that is furthest has beyond it.
    fn pull(&self, state: &mut State, region: usize) {
        let furthest = (0..REGIONS).max_by_key(|other| state.reports[*other]).unwrap_or(region);
        let length = usize::from(state.reports[furthest].unwrap_or_default());
        let more = state.regions[furthest].log[..length].to_vec();
        let it = &mut state.regions[region];
        if more.len() > it.log.len() && !self.makes(Mistake::PromoteWithoutPulling) {
            it.synced = u8::try_from(more.len()).unwrap_or(u8::MAX);
            it.log = more;
        }
    }
}

fn tick(state: &mut State) -> bool {
    let all = state.remembers.iter_mut().chain([&mut state.wait]);
    all.for_each(|ticks| *ticks = ticks.saturating_sub(1));
    for region in &mut state.regions {
        region.lease = region.lease.saturating_sub(1);
        if let Some(renewal) = &mut region.renewal {
            renewal.left -= 1;
        }
        region.renewal = region.renewal.filter(|renewal| renewal.left > 0);
    }
    true
}

fn learn(state: &mut State, region: usize) -> bool {
    state.regions[region].known = state.metadata;
    true
}

fn sync(state: &mut State, region: usize) -> bool {
    let it = &mut state.regions[region];
    it.synced = u8::try_from(it.log.len()).unwrap_or(u8::MAX);
    true
}

fn repair(state: &mut State, region: usize) -> bool {
    let metadata = state.metadata;
    let Some(primary) = metadata.primary() else { return false };
    let theirs = state.regions[primary].disk().to_vec();
    let it = &mut state.regions[region];
    let due = primary != region && it.known == metadata && it.aligned < metadata.epoch;
    let common = it.log.iter().zip(&theirs).take_while(|(ours, theirs)| ours == theirs).count();
    it.log.truncate(common);
    it.synced = u8::try_from(common).unwrap_or(u8::MAX);
    it.aligned = metadata.epoch;
    it.fence = max(it.fence, metadata.epoch);
    due
}
