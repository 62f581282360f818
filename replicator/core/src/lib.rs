//! What to ship, acknowledge, rewind and stop between regions: pure decisions.

mod seam;

pub use seam::{Head, SinkError, Tail, TailEntry, TailError};

/// A lane that has nothing to carry moves its watermark only this often, in LSNs: a skip is an entry in the
/// target's log, and two idle regions would wake each other for ever if each skip were answered by one.
pub const SKIP_LSNS: u64 = 1024;
