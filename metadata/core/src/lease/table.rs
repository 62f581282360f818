//! The grantor's side: what the metadata leader remembers of the leases it gave out.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use meridian_types::NodeId;

use super::{Grant, Superseded};
use crate::state::NODES_MAX;

/// What is remembered of a node that renewed in this term.
#[derive(Clone, Copy, Debug)]
struct Renewed {
    expires: Instant,
    /// The process that renewed last, and the one it took over from.
    incarnation: u64,
    superseded: Option<u64>,
}

/// Who votes for the leader, and since when the leader has known that nobody else does.
#[derive(Clone, Copy, Debug)]
pub struct Electorate<'a> {
    /// The voters.
    pub voters: &'a [NodeId],
    /// On the leader's clock.
    pub since: Instant,
}

/// For every node, the latest moment at which it may still believe in its lease. Lives for one term of
/// one leader. Times are of the leader's monotonic clock.
#[derive(Clone, Debug)]
pub struct LeaseTable {
    term: u64,
    ttl: Duration,
    elected: Instant,
    /// Whatever earlier leaders granted had been asked for by then.
    inherited: Instant,
    /// By when each voter had last heard an earlier leader.
    heard: BTreeMap<NodeId, Instant>,
    /// The last grant's time and index: both only rise.
    last: (Instant, u64),
    /// Nodes that renewed in this term; the others may have been granted a lease by an earlier leader.
    renewed: BTreeMap<NodeId, Renewed>,
}

impl LeaseTable {
    /// The table of a leader that became aware of its election at `now`. That may be later than the
    /// election, never earlier.
    pub fn elected(now: Instant, term: u64, ttl: Duration) -> LeaseTable {
        assert!(!ttl.is_zero(), "a lease lasts some time");
        let (last, renewed, heard) = ((now, 0), BTreeMap::new(), BTreeMap::new());
        LeaseTable { term, ttl, elected: now, inherited: now, heard, last, renewed }
    }

    /// The term this table is valid in.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Grants `node` a lease. `now` is any moment between the receipt of the request and the answer, and
    /// `index` what this leader has applied at `now`; a quorum must have confirmed since the receipt that
    /// it leads. `node` must be registered, which bounds the table. `incarnation` is the node's process.
    ///
    /// # Errors
    /// [`Superseded`] when another process of the same node has renewed since and its lease has not run out: the
    /// later one keeps the node's identity, the earlier one runs out of its lease instead of taking turns. (Not
    /// for ever: a request of a dead process, delayed until after its successor's, must not lock that one out.)
    pub fn grant(&mut self, now: Instant, node: NodeId, incarnation: u64, index: u64) -> Result<Grant, Superseded> {
        let (then, before) = self.last;
        assert!(now >= then, "a monotonic clock ran backwards");
        assert!(index >= before, "a leader lost applied state");
        self.last = (now, index);
        let expires = now + self.ttl;
        let renewed = self.renewed.entry(node).or_insert(Renewed { expires, incarnation, superseded: None });
        if renewed.superseded == Some(incarnation) && renewed.expires > now {
            return Err(Superseded);
        }
        if renewed.incarnation != incarnation {
            renewed.superseded = Some(renewed.incarnation);
            renewed.incarnation = incarnation;
        }
        assert!(renewed.expires <= expires, "a renewal made a lease shorter");
        renewed.expires = expires;
        assert!(self.renewed.len() <= NODES_MAX, "a lease was granted to a node that is not registered");
        Ok(Grant { ttl: self.ttl, index, term: self.term })
    }

    /// `voter`, which has entered this term, last heard a leader of an earlier one no later than `by`. Once a majority has said
    /// so, what is inherited ends a lease after the latest of their moments, instead of a lease after the election.
    pub fn heard_earlier(&mut self, voter: NodeId, by: Instant, electorate: Electorate<'_>) {
        if !electorate.voters.contains(&voter) {
            return;
        }
        // A voter that has restarted since knows less: both are true.
        self.heard.entry(voter).and_modify(|it| *it = by.min(*it)).or_insert(by);
        let mut told: Vec<_> = electorate.voters.iter().filter_map(|it| self.heard.get(it)).copied().collect();
        told.sort_unstable();
        // Any majority will do: take the one with the least to remember.
        if let Some(last) = told.get(electorate.voters.len() / 2) {
            self.inherited = self.inherited.min(electorate.since.max(*last));
        }
    }

    /// When this leader became aware of its election.
    pub fn elected_at(&self) -> Instant {
        self.elected
    }

    /// From this moment on `node` does not believe in any lease that was granted up to now, by this leader or
    /// an earlier one. Later grants move it.
    pub fn expires(&self, node: NodeId) -> Instant {
        let inherited = self.inherited + self.ttl;
        self.renewed.get(&node).map_or(inherited, |renewed| inherited.max(renewed.expires))
    }

    /// Whether `node` has renewed in this term and may still believe in it: it is up, and it is heard.
    pub fn is_live(&self, now: Instant, node: NodeId) -> bool {
        self.renewed.get(&node).is_some_and(|renewed| renewed.expires > now)
    }

    /// How many nodes may believe in a lease they renewed in this term.
    pub fn live(&self, now: Instant) -> usize {
        self.live_nodes(now).count()
    }

    /// Those nodes.
    pub fn live_nodes(&self, now: Instant) -> impl Iterator<Item = NodeId> + '_ {
        self.renewed.iter().filter(move |(_, renewed)| renewed.expires > now).map(|(node, _)| *node)
    }
}
