//! The shard state machine: what a log entry does to a shard's data, and how two values merge.
//!
//! Pure: no clock, no randomness, no channel, no IO. The same entries give the same state on every
//! replica, in the simulator as in production. [`Shard::apply`] is the one way in; reads are in
//! [`read`]; the state's layout in [`keys`]; what the node must provide in [`StateView`].
//!
//! ```text
//! entry (types::entry) --apply--> Mutations + result + answered requests + digest note
//! frame (types::frame) --apply--> the same for every entry inside, and the watermark, in one step
//! ```
//!
//! Promises kept here: ORD-1, ONE-1, FEN-2, CON-4, CON-5.

pub mod backup;
mod body;
mod counter;
pub mod crossing;
pub mod degrade;
pub mod drill;
pub mod error;
pub mod exposure;
pub mod following;
#[doc(hidden)]
pub mod fuzz;
pub mod handover;
pub mod keys;
mod meta;
pub mod propose;
pub mod read;
pub mod record;
pub mod repair;
pub mod result;
pub mod salvage;
pub mod scrub;
mod sessions;
pub mod shard;
#[cfg(test)]
mod testing;
pub mod view;

pub use crossing::{CrossDuty, CrossSight, Crossings};
pub use degrade::{CopiesDuty, CopiesSight, Degrading, Proof};
pub use error::{ApplyError, Damage, LoadError, ReadError};
pub use following::{Following, TurnDuty, awaited};
pub use handover::{Duty, Handover, Sight};
pub use keys::shard_range;
pub use meta::{Astray, Stop};
pub use propose::active_active_body;
pub use result::{ControlResult, Divergence, FrameResult, ResultError, WriteResult};
pub use scrub::{Contents, recompute_digest};
pub use sessions::{ORIGIN_RESULTS_MAX, SESSION_RESULTS_MAX, SESSION_TTL_MS};
pub use shard::{Answered, Applied, Due, FrameApplied, Shard, removed_at};
pub use view::{Each, MemoryState, Mutations, Overlay, StateView, ViewError};
