//! Making this region's replicas equal to another region's over the network, by itself
//! (docs/adr/2026-11-20-resync.md). `region/core` decides what is asked and what becomes of it; this carries it.
//!
//! ```text
//!            watch: what is closed, astray, diverged, stuck, asked for?         lanes: does the source's log reach back?
//!                          │                                                                  │ no: survey it
//!                          ▼                                                                  ▼
//!            attempt: one bucket in one shard, some at a time, paced ◄──────────── what the lane would skip
//!                          │ asks                                                             │ nothing any more
//!                          ▼                                                                  ▼
//!            serve (the other region): a pinned snapshot per session                the lane goes on behind the survey
//! ```
//!
//! A shard's leader does it for its whole region: every step is an entry of the log. Whatever is cut short begins again
//! with a new snapshot, and what was moved already is equal by then.
//!
//! Promises kept here: ORD-1, DUR-3 (a replica that differs is made right), RES-1 (sessions, answers, attempts and bytes
//! per second are bounded).

mod attempt;
mod lanes;
mod pace;
mod pulls;
mod serve;
mod table;
mod tail;
mod watch;

use std::collections::BTreeSet;
use std::sync::Mutex;

use meridian_types::BucketId;

pub(crate) use attempt::{Unclosed, propose};
pub(crate) use pace::Pace;
pub(crate) use serve::{SESSIONS_MAX, Sources};
pub(crate) use table::{ASKED_MAX, ENDED_MAX, Figures, REPAIRS_MAX, Table};
pub(crate) use watch::watch;

/// Why a primary that was lost is not made equal to its successor yet.
pub(crate) const WAITS_FOR_CONSENT: &str =
    "an operator, with `meridian reinstate`: it holds writes that its successor lacks, which are written down first";

/// One bucket in one shard.
pub(crate) type Place = (meridian_types::ShardId, BucketId);

/// What repairs share on this node.
pub(crate) struct Repairs {
    pub(crate) table: Table,
    pub(crate) pace: Pace,
    pub(crate) sources: Sources,
    /// Buckets whose lost primaries an operator lets be reinstated.
    pub(crate) consented: Mutex<BTreeSet<BucketId>>,
    /// Sessions whose end could not be told; of attempts within a minute, so they are few (RES-1).
    pub(crate) unclosed: Mutex<Vec<Unclosed>>,
}

impl Repairs {
    pub(crate) fn new(bytes_per_s: u64) -> Repairs {
        Repairs {
            table: Table::default(),
            pace: Pace::new(bytes_per_s),
            sources: Sources::default(),
            consented: Mutex::default(),
            unclosed: Mutex::default(),
        }
    }
}
