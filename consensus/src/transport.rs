//! How groups on different nodes talk: one stream per ordered pair of nodes, all groups on it.
//!
//! ```text
//! raft ─► network ─► link (queue, one task) ══ ConsensusPeer.Exchange ══► server ─► the group's raft
//!                     ▲                                                     │
//!                     └──────────────── answers, by number ◄────────────────┘
//! ```
//!
//! Queues are bounded; a slow peer fills its own and nobody else's (RES-1). Heartbeats of all groups to one peer
//! wait for each other a little and travel in one message; a single-voter group sends none.

pub(crate) mod envelope;
pub(crate) mod link;
pub(crate) mod network;
pub(crate) mod server;
