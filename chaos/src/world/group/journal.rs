//! What a member of a group keeps in mind of its log: where terms begin in it, and how far it is written and synced.

/// A place in a log: a term, and a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Place {
    pub(crate) term: u64,
    pub(crate) lsn: u64,
}

/// A log, without its entries.
///
/// ```text
/// purged ≤ synced ≤ last          purged ≤ written ≤ last
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Journal {
    pub(crate) purged: Place,
    /// Positions from which on entries are of a term, rising.
    pub(crate) starts: Vec<Place>,
    pub(crate) last: u64,
    /// Up to here it has left for the disk: others may be sent it.
    pub(crate) written: u64,
    /// Up to here it is on the disk.
    pub(crate) synced: u64,
}

impl Journal {
    /// The term of an entry; 0 of one that is not there.
    pub(crate) fn term_at(&self, lsn: u64) -> u64 {
        if lsn == self.purged.lsn {
            return self.purged.term;
        }
        if lsn < self.purged.lsn || lsn > self.last {
            return 0;
        }
        self.starts.iter().rev().find(|start| start.lsn <= lsn).map_or(self.purged.term, |start| start.term)
    }

    pub(crate) fn end(&self) -> Place {
        Place { term: self.term_at(self.last), lsn: self.last }
    }

    /// The next entry is of that term; its position.
    pub(crate) fn push(&mut self, term: u64) -> u64 {
        let is_new = self.end().term != term;
        self.last += 1;
        if is_new {
            self.starts.push(Place { term, lsn: self.last });
        }
        self.last
    }

    /// Nothing is behind `after` any more.
    pub(crate) fn cut(&mut self, after: u64) {
        self.last = self.last.min(after);
        self.written = self.written.min(after);
        self.synced = self.synced.min(after);
        self.starts.retain(|start| start.lsn <= after);
    }

    /// Nothing is up to `to` any more, which is there.
    pub(crate) fn purge(&mut self, to: u64) {
        let to = to.clamp(self.purged.lsn, self.last);
        self.purged = Place { term: self.term_at(to), lsn: to };
        while self.starts.get(1).is_some_and(|next| next.lsn <= to + 1) {
            self.starts.remove(0);
        }
    }

    /// A snapshot took the place of everything up to there; what is behind it stays if it continues it. Whether it does.
    pub(crate) fn replace(&mut self, at: Place) -> bool {
        if self.last >= at.lsn && self.term_at(at.lsn) == at.term {
            self.purge(at.lsn);
            self.synced = self.synced.max(at.lsn);
            self.written = self.written.max(at.lsn);
            return true;
        }
        *self = Journal { purged: at, starts: Vec::new(), last: at.lsn, written: at.lsn, synced: at.lsn };
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_known_behind_what_was_purged_cut_and_replaced() {
        let mut journal = Journal::default();
        let pushed: Vec<u64> = [1, 1, 3, 3, 4].map(|term| journal.push(term)).into();
        assert_eq!(pushed, [1, 2, 3, 4, 5]);
        let terms = |journal: &Journal| (0..=6).map(|lsn| journal.term_at(lsn)).collect::<Vec<_>>();
        assert_eq!(terms(&journal), [0, 1, 1, 3, 3, 4, 0]);
        journal.purge(3);
        assert_eq!(terms(&journal), [0, 0, 0, 3, 3, 4, 0]);
        journal.cut(4);
        assert_eq!((journal.end(), journal.push(5)), (Place { term: 3, lsn: 4 }, 5));
        assert_eq!(terms(&journal), [0, 0, 0, 3, 3, 5, 0]);
        assert!(journal.replace(Place { term: 3, lsn: 4 }), "it continues what is there");
        assert_eq!(journal.end(), Place { term: 5, lsn: 5 });
        assert!(!journal.replace(Place { term: 6, lsn: 5 }));
        assert_eq!((journal.end(), journal.synced), (Place { term: 6, lsn: 5 }, 5));
    }
}
