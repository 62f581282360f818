//! What to ship, acknowledge, rewind and stop between regions: pure decisions (design 6).
//!
//! ```text
//! source region                                         target region
//! log ── Tail ──▶ Shipper ── Open, Frame{round} ──▶ Receiver ── frames ──▶ group
//!  ▲                 ▲  ◀── Position{round}, Ack, Probe, Stop ──┘  ◀── applied ──┘
//!  └─ acknowledged ──┘
//! ```
//!
//! One [`Shipper`] and one [`Receiver`] per (shard, lane) and ordered pair of regions. Both are stepped
//! with the time as an argument and put their effects into an outbox; `replicator/quic` waits and acts.
//!
//! - ORD-1: a receiver takes a frame only at exactly its position, in the current round; anything else
//!   makes it say where it stands and both start over from there.
//! - CON-3: a frame echoes a probe only when its lane was complete, by a read asked for after the probe came.
//! - RES-1: what is in flight is bounded by the window, what is held for sending by one read.
//!
//! Not here: opening frames (the shard state machine does), sockets, clocks, and resync.

mod budget;
pub mod message;
pub mod receiver;
mod routes;
mod seam;
pub mod shipper;

pub use budget::Budget;
pub use receiver::Receiver;
pub use routes::{Verdict, is_probed, verdict};
pub use seam::{Head, SinkError, Tail, TailEntry, TailError};
pub use shipper::Shipper;

/// A lane that has nothing to carry moves its watermark only this often, in LSNs: a skip is an entry in the
/// target's log, and two idle regions would wake each other for ever if each skip were answered by one.
pub const SKIP_LSNS: u64 = 1024;

/// … or whenever it has let so many bytes of others pass: what it has not moved beyond, the source must keep. A skip has
/// few bytes itself, so that skips alone call for none.
pub const SKIP_BYTES: usize = 4 << 20;

#[cfg(test)]
mod simulation;
