//! Leases: a node's time-bounded right to act on the epochs it knows (design 4; keeps the time half of FEN-1).
//!
//! A primary may acknowledge only what nobody else can have taken over meanwhile. Instead of asking
//! before each write, it asks once a second and is told how long the answer stands. Two structs keep
//! the two ends of that promise; neither reads a clock:
//!
//! ```text
//!  holder's clock   sent                                          believes until
//!                    │◄──────────────── ttl · (1 − drift) ───────────────►│
//!  ──────────────────●────────────────────────────────────────────────────●───►
//!                     ╲ RenewLease                     ▲ Grant{ttl, index}
//!                      ▼                              ╱
//!  ────────────────────●────●────────────●───────────●─────────────────────────●──►
//!  grantor's clock   received  ▲       quorum        granted                   │
//!                      │       └ read  confirmed     (index = applied now)     │
//!                      │         barrier                                       │
//!                      │◄──────────────────────── ttl ────────────────────────►│ remembers until
//! ```
//!
//! **A holder never believes beyond what the grantor remembers.** It sent before the grantor received,
//! so the interval the holder measures begins earlier. It measures `ttl · (1 − drift)`. If its clock is
//! slow, by at most `drift`, that takes at most `ttl` on the grantor's clock, so it ends no later. No
//! clock is ever compared with another one; the only assumption is that two monotonic clocks differ in
//! speed by at most `drift` (default 1 %, fifty times what NTP slews by). A machine whose monotonic clock
//! stands still while others run (a suspended laptop, a virtual machine restored from a snapshot) breaks the
//! assumption; a stopped process (`SIGSTOP`) does not, for its clock runs on.
//!
//! **A new leader knows no less than its predecessor.** Grants are not replicated: every renewal would
//! cost a log entry. Instead the new leader treats every node as renewed at its own election, at first. That covers
//! each grant of its predecessor, because the predecessor answers a request only after a quorum confirmed
//! *after it received the request* that it still led. That quorum and the one that elected the successor
//! share a voter, which confirmed first and voted later: so the request was sent before the election.
//!
//! ```text
//!  predecessor   request ─► confirmed by a quorum ── dies
//!                            │ heard
//!  a voter of both ──────────●──────────── votes ────────────► "before this term I last heard a leader at ●"
//!                                                                  │
//!  successor      ─────────────────────────── elected ─────────────▼ inherited ends at ● + ttl, not at elected + ttl
//! ```
//!
//! **It may know more.** The shared voter heard that confirmation, and no earlier one was begun after the last it heard. Voters
//! say with their renewals how long ago that was; once a majority has, whatever is inherited was asked for by the latest of
//! those moments ([`LeaseTable::heard_earlier`]). An election that took seconds then delays no failover: the lost
//! primary's lease ran all the while. A voter's age is measured on its own clock, so its drift is taken off; one that has restarted counts
//! from its start; other voters than the leader has long known are not counted on ([`Electorate::since`]).
//!
//! **A lease is worth nothing without the state it was granted for.** The grant names the index that the
//! leader had applied. A node that has not applied that index yet may not know that it was deposed, so
//! the grant doesn't count for it until it has. Whoever deposes a primary therefore commits the change
//! first, then waits until [`LeaseTable::expires`] as remembered *at that moment*: every later grant
//! requires the node to know.
//!
//! Deliberately not here: when to renew, and confirming leadership (`metadata/node`).

mod holder;
mod table;

use std::time::Duration;

pub use holder::{GRANTS_HELD_MAX, LeaseHolder};
pub use table::{Electorate, LeaseTable};

/// What a grantor answers: the right lasts `ttl` from the moment the holder *sent* its request, for a
/// holder that has applied `index`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// How long, on the grantor's clock.
    pub ttl: Duration,
    /// What the holder must have applied.
    pub index: u64,
    /// The grantor's term, for logs.
    pub term: u64,
}

/// Another process of the same node has renewed since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("another process has taken over this node's name and lease: stop one of them")]
pub struct Superseded;

/// By how much two monotonic clocks may differ in speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drift {
    ppm: u32,
}

impl Drift {
    /// The most that can be asked for: beyond half, a lease would be mostly margin.
    pub const PPM_MAX: u32 = 500_000;

    /// The default, 1 %: a hundred times what quartz drifts, fifty times what NTP slews.
    pub const ONE_PERCENT: Drift = Drift { ppm: 10_000 };

    /// That many parts per million.
    ///
    /// # Panics
    /// Beyond [`Drift::PPM_MAX`].
    pub fn from_ppm(ppm: u32) -> Drift {
        assert!(ppm <= Drift::PPM_MAX, "clocks that differ by more than half are no clocks");
        Drift { ppm }
    }

    /// What is left of a duration for a holder whose clock may be slow by this much; rounded down.
    pub fn shrink(self, ttl: Duration) -> Duration {
        let nanos = ttl.as_nanos() * u128::from(1_000_000 - self.ppm) / 1_000_000;
        // Never longer than `ttl`, which fits; beyond 584 years of nanoseconds a shorter lease is the safe side.
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests;
