//! Where a group's entries are on disk: a sparse index, one point for every few entries (RES-1).
//!
//! The entries from a point's index up to the next point's lie behind the point in the same segment, in
//! order, and the first record found for each of those indexes is the live one: a point is set wherever
//! that would not hold, at a segment's beginning and after a truncation.

use std::collections::VecDeque;

/// A point is set at least every so many entries…
const ENTRIES_MAX: u64 = 32;
/// …and every so many bytes of log, all groups' counted, so that a read never scans much further than it must.
const BYTES_MAX: u64 = 128 << 10;

/// Where an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) index: u64,
    pub(crate) segment: u64,
    pub(crate) offset: u64,
}

/// The points of one group, ascending.
#[derive(Debug, Default)]
pub(crate) struct Index {
    points: VecDeque<Point>,
    /// What the next entry must be to go on with the last run.
    next: Option<u64>,
}

impl Index {
    /// Notes where an entry was written; called in the order of the log.
    pub(crate) fn place(&mut self, index: u64, segment: u64, offset: u64) {
        let covered = self.next == Some(index)
            && self.points.back().is_some_and(|last| {
                last.segment == segment && index < last.index + ENTRIES_MAX && offset < last.offset + BYTES_MAX
            });
        if !covered {
            self.points.push_back(Point { index, segment, offset });
        }
        self.next = Some(index + 1);
    }

    /// Forgets the entries from `index` on.
    pub(crate) fn truncate_from(&mut self, index: u64) {
        while self.points.back().is_some_and(|last| last.index >= index) {
            self.points.pop_back();
        }
        self.next = None;
    }

    /// Forgets points that only lead to entries up to `index`.
    pub(crate) fn purge(&mut self, index: u64) {
        while self.points.get(1).is_some_and(|second| second.index <= index + 1) {
            self.points.pop_front();
        }
    }

    /// The points that lead to the entries `from..to`, and the index at which the last of them ends.
    pub(crate) fn route(&self, from: u64, to: u64) -> Vec<Point> {
        let end = self.points.partition_point(|point| point.index < to);
        let start = self.points.partition_point(|point| point.index <= from).saturating_sub(1);
        self.points.range(start.min(end)..end).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_begins_at_or_before_the_first_entry_asked_for() {
        let mut index = Index::default();
        for entry in 1..=100 {
            index.place(entry, 1, 4096 + entry * 48);
        }
        let indexes = |from, to| index.route(from, to).iter().map(|point| point.index).collect::<Vec<_>>();
        assert_eq!(indexes(1, 2), [1]);
        assert_eq!(indexes(40, 70), [33, 65]);
        assert_eq!(indexes(33, 65), [33]);
    }

    #[test]
    fn an_entry_after_a_hole_that_a_snapshot_left_gets_a_point_of_its_own() {
        let mut index = Index::default();
        (1..=10).for_each(|entry| index.place(entry, 1, 4096 + entry * 48));
        index.purge(20);
        index.place(21, 1, 9000);
        assert_eq!(index.route(21, 22), [Point { index: 21, segment: 1, offset: 9000 }]);
    }

    #[test]
    fn an_entry_after_a_truncation_gets_a_point_of_its_own() {
        let mut index = Index::default();
        (1..=10).for_each(|entry| index.place(entry, 1, 4096 + entry * 48));
        index.truncate_from(6);
        index.place(6, 1, 9000);
        assert_eq!(index.route(6, 7), [Point { index: 6, segment: 1, offset: 9000 }]);
        index.purge(5);
        assert_eq!(index.route(6, 7).len(), 1);
        assert_eq!(index.points.len(), 1);
    }
}
