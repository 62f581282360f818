//! The counter of an active-active key: a PN counter (crate `crdts`) whose actors are regions, with what
//! deletes have taken away kept beside it.
//!
//! A delete is an *observed reset*: it takes away the increments that its origin had seen, and nothing
//! else, so a concurrent increment survives it (CON-4) and a deleted count does not come back (CON-5).
//! For that every actor has two pairs of rising numbers: what it counted, and how much of that has been
//! removed. Both merge by maximum; the value is what was counted beyond what was removed.

use std::collections::BTreeMap;

use crdts::pncounter::{Dir, Op};
use crdts::{CmRDT, CvRDT, Dot, PNCounter};
use meridian_types::RegionId;

use crate::record::Stamp;

/// One actor's part of a counter: all four only rise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Tally {
    pub(crate) increments: u64,
    pub(crate) decrements: u64,
    pub(crate) removed_increments: u64,
    pub(crate) removed_decrements: u64,
}

/// A counter with its removals.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Counter {
    /// The newest increment applied.
    pub(crate) stamp: Stamp,
    /// Per region; never an entry of four zeros.
    pub(crate) tallies: BTreeMap<RegionId, Tally>,
}

/// The actor has counted to 2^64 in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exhausted;

impl Counter {
    /// Counts `by` for `actor`. Refused alike on every replica: an actor's tally at one of its own entries is
    /// the same everywhere.
    pub(crate) fn add(&mut self, actor: RegionId, by: i64, stamp: Stamp) -> Result<(), Exhausted> {
        let mut tally = self.tallies.get(&actor).copied().unwrap_or_default();
        let steps = by.unsigned_abs();
        let total = if by < 0 { tally.decrements } else { tally.increments };
        // The crate adds unchecked.
        if total.checked_add(steps).is_none() {
            return Err(Exhausted);
        }
        let counted = self.counted();
        let op = if by < 0 { counted.dec_many(actor, steps) } else { counted.inc_many(actor, steps) };
        match op.dir {
            Dir::Pos => tally.increments = op.dot.counter,
            Dir::Neg => tally.decrements = op.dot.counter,
        }
        if tally != Tally::default() {
            self.tallies.insert(actor, tally);
        }
        self.stamp = self.stamp.max(stamp);
        Ok(())
    }

    /// Takes away what `origin` had seen: of other actors as `observed` says, of itself all it has counted
    /// so far, which every replica knows from the order of its entries.
    pub(crate) fn remove(&mut self, origin: RegionId, observed: &[(RegionId, u64, u64)]) {
        if let Some(own) = self.tallies.get_mut(&origin) {
            own.removed_increments = own.removed_increments.max(own.increments);
            own.removed_decrements = own.removed_decrements.max(own.decrements);
        }
        for (actor, increments, decrements) in observed.iter().copied() {
            if actor == origin || (increments, decrements) == (0, 0) {
                continue;
            }
            let tally = self.tallies.entry(actor).or_default();
            tally.removed_increments = tally.removed_increments.max(increments);
            tally.removed_decrements = tally.removed_decrements.max(decrements);
        }
    }

    /// What a delete at `origin` has to write down: the other actors' tallies that are not removed yet.
    pub(crate) fn observed_by(&self, origin: RegionId) -> Vec<(RegionId, u64, u64)> {
        let others = self.tallies.iter().filter(|(actor, tally)| **actor != origin && tally.is_live());
        others.map(|(actor, tally)| (*actor, tally.increments, tally.decrements)).collect()
    }

    /// What two replicas have counted and removed: all of it only rises.
    pub(crate) fn join(mut self, other: &Counter) -> Counter {
        for (actor, theirs) in &other.tallies {
            let ours = self.tallies.entry(*actor).or_default();
            ours.increments = ours.increments.max(theirs.increments);
            ours.decrements = ours.decrements.max(theirs.decrements);
            ours.removed_increments = ours.removed_increments.max(theirs.removed_increments);
            ours.removed_decrements = ours.removed_decrements.max(theirs.removed_decrements);
        }
        self.stamp = self.stamp.max(other.stamp);
        self
    }

    /// Whether anything counted has not been removed: only then does the key exist.
    pub(crate) fn is_live(&self) -> bool {
        self.tallies.values().any(|tally| tally.is_live())
    }

    /// The value; beyond an i64 it stands at the i64's end, since concurrent increments can't be refused afterwards.
    pub(crate) fn value(&self) -> i64 {
        let removed = self.pn(|tally| (tally.removed_increments, tally.removed_decrements));
        // A removal may arrive before what it removes: merged, nothing ever counts below zero.
        let mut counted = self.counted();
        counted.merge(removed.clone());
        let value = counted.read() - removed.read();
        let end = if value < 0.into() { i64::MIN } else { i64::MAX };
        i64::try_from(value).unwrap_or(end)
    }

    fn counted(&self) -> PNCounter<RegionId> {
        self.pn(|tally| (tally.increments, tally.decrements))
    }

    fn pn(&self, pair: impl Fn(&Tally) -> (u64, u64)) -> PNCounter<RegionId> {
        let mut counter = PNCounter::new();
        for (actor, tally) in &self.tallies {
            let (increments, decrements) = pair(tally);
            counter.apply(Op { dot: Dot::new(*actor, increments), dir: Dir::Pos });
            counter.apply(Op { dot: Dot::new(*actor, decrements), dir: Dir::Neg });
        }
        counter
    }
}

impl Tally {
    fn is_live(&self) -> bool {
        self.increments > self.removed_increments || self.decrements > self.removed_decrements
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: RegionId = RegionId(1);
    const B: RegionId = RegionId(2);

    fn counted(parts: &[(RegionId, i64)]) -> Counter {
        let mut counter = Counter::default();
        parts.iter().for_each(|(actor, by)| counter.add(*actor, *by, Stamp::default()).unwrap());
        counter
    }

    #[test]
    fn a_counter_is_the_sum_of_what_every_region_counted() {
        assert_eq!(counted(&[(A, 5), (B, -7), (A, 1)]).value(), -1);
        assert!(counted(&[(A, 5), (A, -5)]).is_live());
        assert!(!counted(&[(A, 0)]).is_live());
    }

    #[test]
    fn a_delete_takes_only_what_it_had_seen() {
        let seen_by_a = counted(&[(A, 5), (B, 10)]);
        let observed = seen_by_a.observed_by(A);
        assert_eq!(observed, [(B, 10, 0)]);
        let mut counter = counted(&[(A, 5), (B, 10), (B, 3)]);
        counter.remove(A, &observed);
        assert_eq!(counter.value(), 3);
        assert!(counter.is_live());
    }

    #[test]
    fn a_delete_that_overtakes_what_it_removes_never_shows_a_negative_count() {
        let mut counter = Counter::default();
        counter.remove(A, &[(B, 10, 0)]);
        assert_eq!((counter.value(), counter.is_live()), (0, false));
        counter.add(B, 10, Stamp::default()).unwrap();
        assert_eq!((counter.value(), counter.is_live()), (0, false));
        counter.add(B, 2, Stamp::default()).unwrap();
        assert_eq!((counter.value(), counter.is_live()), (2, true));
    }

    #[test]
    fn a_value_beyond_an_i64_stands_at_its_end_and_an_exhausted_actor_is_refused() {
        let mut counter = counted(&[(A, i64::MAX), (B, i64::MAX)]);
        assert_eq!(counter.value(), i64::MAX);
        counter.add(A, i64::MAX, Stamp::default()).unwrap();
        assert_eq!(counter.add(A, i64::MAX, Stamp::default()), Err(Exhausted));
        assert_eq!(counted(&[(A, i64::MIN), (B, i64::MIN)]).value(), i64::MIN);
    }
}
