//! Which regions have what of a shard's log, and who waits for more of them (DUR-2).
//!
//! Pure: a table of the highest acknowledged position per (lane, region), and waiters that are satisfied by it.
//! `watch` is the half that waits.

use std::collections::BTreeMap;

use meridian_types::{Lane, Lsn, RegionId};

/// The table and its waiters; `T` is what a waiter is told through.
#[derive(Debug)]
pub(crate) struct Copies<T> {
    acked: BTreeMap<(Lane, RegionId), Lsn>,
    waiting: BTreeMap<(Lane, Lsn, u64), Waiting<T>>,
    next: u64,
}

#[derive(Debug)]
struct Waiting<T> {
    /// The regions that count.
    among: Vec<RegionId>,
    /// How many of them must have it.
    needed: usize,
    tell: T,
}

/// Names a waiter, to end its wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    lane: Lane,
    lsn: Lsn,
    number: u64,
}

impl<T> Default for Copies<T> {
    fn default() -> Copies<T> {
        Copies { acked: BTreeMap::new(), waiting: BTreeMap::new(), next: 0 }
    }
}

impl<T> Copies<T> {
    /// What `region` has of `lane`.
    pub(crate) fn acked(&self, lane: Lane, region: RegionId) -> Lsn {
        self.acked.get(&(lane, region)).copied().unwrap_or_default()
    }

    /// Those `among` regions that have `lsn`.
    pub(crate) fn holders<'a>(
        &'a self,
        lane: Lane,
        lsn: Lsn,
        among: &'a [RegionId],
    ) -> impl Iterator<Item = RegionId> + 'a {
        among.iter().copied().filter(move |region| self.acked(lane, *region) >= lsn)
    }

    /// Asks to be told once `needed` of the regions `among` have `lsn`; gives `tell` back when they have it already.
    pub(crate) fn wait(
        &mut self,
        lane: Lane,
        lsn: Lsn,
        among: &[RegionId],
        needed: usize,
        tell: T,
    ) -> Result<Ticket, T> {
        if self.holders(lane, lsn, among).count() >= needed {
            return Err(tell);
        }
        let ticket = Ticket { lane, lsn, number: self.next };
        self.next += 1;
        self.waiting.insert((lane, lsn, ticket.number), Waiting { among: among.to_vec(), needed, tell });
        Ok(ticket)
    }

    /// Ends a wait that is no longer wanted.
    pub(crate) fn leave(&mut self, ticket: Ticket) {
        self.waiting.remove(&(ticket.lane, ticket.lsn, ticket.number));
    }

    /// `region` has everything of `lane` up to `lsn`. Gives back who is satisfied by that. Each waiter is looked at
    /// once per region that comes to have its position, however many acknowledgements there are.
    pub(crate) fn acknowledged(&mut self, lane: Lane, region: RegionId, lsn: Lsn) -> Vec<T> {
        let known = self.acked(lane, region);
        if lsn <= known {
            return Vec::new();
        }
        self.acked.insert((lane, region), lsn);
        let first = (lane, Lsn(known.0 + 1), 0);
        let satisfied: Vec<_> = self
            .waiting
            .range(first..=(lane, lsn, u64::MAX))
            .filter(|((_, at, _), waiting)| self.holders(lane, *at, &waiting.among).count() >= waiting.needed)
            .map(|(key, _)| *key)
            .collect();
        satisfied.into_iter().filter_map(|key| self.waiting.remove(&key)).map(|waiting| waiting.tell).collect()
    }

    /// How many wait.
    #[cfg(test)]
    fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const B: RegionId = RegionId(2);
    const C: RegionId = RegionId(3);

    #[test]
    fn a_waiter_is_told_when_enough_regions_have_its_position_and_not_before() {
        let mut copies = Copies::default();
        copies.wait(Lane::Sync, Lsn(5), &[B, C], 2, "both").unwrap();
        copies.wait(Lane::Sync, Lsn(5), &[B, C], 1, "one").unwrap();
        assert!(copies.acknowledged(Lane::Sync, B, Lsn(4)).is_empty());
        assert!(copies.acknowledged(Lane::Async, B, Lsn(9)).is_empty(), "another lane says nothing");
        assert_eq!(copies.acknowledged(Lane::Sync, B, Lsn(7)), ["one"]);
        assert_eq!(copies.acknowledged(Lane::Sync, C, Lsn(5)), ["both"]);
        assert_eq!(copies.wait(Lane::Sync, Lsn(5), &[B, C], 2, "late"), Err("late"), "they have it already");
    }

    #[test]
    fn who_left_is_not_told() {
        let mut copies = Copies::default();
        let ticket = copies.wait(Lane::Sync, Lsn(5), &[B], 1, ()).unwrap();
        copies.leave(ticket);
        assert_eq!(copies.waiting(), 0);
        assert!(copies.acknowledged(Lane::Sync, B, Lsn(5)).is_empty());
    }

    proptest! {
        /// DUR-2: told exactly when enough regions have it, whatever the order of acknowledgements.
        #[test]
        fn nobody_is_told_early_and_nobody_is_forgotten(
            waits in prop::collection::vec((1u64..20, 1usize..3), 1..20),
            acks in prop::collection::vec((2u16..5, 0u64..25), 0..40),
        ) {
            let among = [RegionId(2), RegionId(3), RegionId(4)];
            let mut copies = Copies::default();
            for (lsn, needed) in waits {
                prop_assert!(copies.wait(Lane::Sync, Lsn(lsn), &among, needed, (lsn, needed)).is_ok());
            }
            for (region, lsn) in acks {
                for (at, needed) in copies.acknowledged(Lane::Sync, RegionId(region), Lsn(lsn)) {
                    prop_assert!(copies.holders(Lane::Sync, Lsn(at), &among).count() >= needed);
                }
                for ((lane, at, _), waiting) in &copies.waiting {
                    prop_assert!(copies.holders(*lane, *at, &waiting.among).count() < waiting.needed);
                }
            }
        }
    }
}
