//! The holder's side: how long a node may act on what it knows.

use std::time::Instant;

use super::{Drift, Grant};

/// How many grants are kept while their index is not applied yet. One renewal a second and five seconds of
/// lease make at most five that matter.
pub const GRANTS_HELD_MAX: usize = 16;

/// A grant as its holder counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    until: Instant,
    index: u64,
}

/// The leases a node was granted and may yet use. Times are of the node's own monotonic clock.
#[derive(Clone, Debug)]
pub struct LeaseHolder {
    drift: Drift,
    /// Ascending in both index and time: a grant that ends no later and asks no less than another is dropped.
    held: Vec<Held>,
    /// Since when there was no moment without a grant.
    since: Option<Instant>,
}

impl LeaseHolder {
    /// A node that was granted nothing yet.
    pub fn new(drift: Drift) -> LeaseHolder {
        LeaseHolder { drift, held: Vec::with_capacity(GRANTS_HELD_MAX), since: None }
    }

    /// Takes the answer, received now, to a request that was sent at `sent`. Answers may arrive late and in any order.
    pub fn granted(&mut self, sent: Instant, now: Instant, grant: Grant) {
        if self.held.iter().all(|held| held.until <= now) {
            // Between the last one and this the leader may have counted this node as gone.
            self.since = Some(now);
        }
        let new = Held { until: sent + self.drift.shrink(grant.ttl), index: grant.index };
        // What ended before the request was even sent is over.
        self.held.retain(|held| held.until > sent && !covers(new, *held));
        let useless = self.held.iter().any(|held| covers(*held, new));
        // When full, this node has not applied anything for many renewals; believing less is always safe.
        if useless || self.held.len() == GRANTS_HELD_MAX {
            return;
        }
        let at = self.held.partition_point(|held| held.index < new.index);
        self.held.insert(at, new);
        self.validate();
    }

    /// Until when this node may act, having applied `applied`; `None` when it was granted nothing that it may
    /// use. The moment may have passed.
    pub fn until(&self, applied: u64) -> Option<Instant> {
        self.held.iter().rev().find(|held| held.index <= applied).map(|held| held.until)
    }

    /// Since when it may act without a break, having applied `applied`; `None` when it may not act now. Whoever counted this node as
    /// gone did so before that.
    pub fn since(&self, applied: u64, now: Instant) -> Option<Instant> {
        self.until(applied).filter(|until| now < *until).and(self.since)
    }

    /// Whether the grants are in order and bounded.
    fn validate(&self) {
        assert!(self.held.len() <= GRANTS_HELD_MAX, "too many grants are held");
        let rising = |a: &Held, b: &Held| a.index < b.index && a.until < b.until;
        assert!(self.held.iter().zip(self.held.iter().skip(1)).all(|(a, b)| rising(a, b)), "grants are out of order");
    }
}

/// Whether `a` is worth no less than `b`.
fn covers(a: Held, b: Held) -> bool {
    a.until >= b.until && a.index <= b.index
}
