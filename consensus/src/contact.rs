//! When a node last gave its word to a leader: what a new leader may conclude about its predecessors (FEN-1).
//!
//! A leader proves that it leads by the answers of a quorum ([`crate::Group::confirm_leadership`]), and is elected by one. The two share a
//! voter. If that voter says that it last heard a leader of an earlier term at some moment, no earlier leader has proven
//! anything that was begun after it. Pure; times are of one monotonic clock.

use std::time::Instant;

/// The contacts of one node with the leaders of one group, in one life of its process.
#[derive(Clone, Copy, Debug)]
pub struct Contact {
    term: u64,
    /// The last in `term`.
    last: Instant,
    /// The last in any term before it.
    before: Instant,
}

impl Contact {
    /// A node that has just started: what it heard in a former life, it heard by now.
    pub fn new(now: Instant) -> Contact {
        Contact { term: 0, last: now, before: now }
    }

    /// A leader of `term` was heard at `now`, or this node as that leader asks the others. To be called before anything is answered.
    pub fn heard(&mut self, term: u64, now: Instant) {
        if term < self.term {
            // It is refused, but that is decided elsewhere: whatever is late here is the safe side.
            self.before = self.before.max(now);
            return;
        }
        if term > self.term {
            self.before = self.before.max(self.last);
            self.term = term;
        }
        self.last = now;
    }

    /// No leader of a term before `term` has heard from this node in answer to anything it asked after this moment. Only a node
    /// that has entered `term`, and so answers no earlier leader any more, may say so; `None` if it is in a later one.
    pub fn before(&self, term: u64) -> Option<Instant> {
        match self.term.cmp(&term) {
            std::cmp::Ordering::Less => Some(self.before.max(self.last)),
            std::cmp::Ordering::Equal => Some(self.before),
            std::cmp::Ordering::Greater => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_what_was_heard_of_earlier_terms_counts() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut contact = Contact::new(start);
        assert_eq!(contact.before(1), Some(start), "whatever was heard before the start");
        contact.heard(3, at(1));
        contact.heard(3, at(2));
        assert_eq!(contact.before(4), Some(at(2)));
        assert_eq!(contact.before(3), Some(start));
        contact.heard(5, at(4));
        assert_eq!(contact.before(5), Some(at(2)));
        assert_eq!(contact.before(4), None, "it may have answered the leader of term 5");
        contact.heard(4, at(6));
        assert_eq!(contact.before(5), Some(at(6)), "a late word of an earlier leader is not taken for refused");
    }
}
