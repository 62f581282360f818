//! A region's data cluster on one node: shard groups, state store, routing, reads and writes.
//!
//! ```text
//!            gateway ── execute ──► router ──┬── writes ──► proposer ──► consensus (log, sync)
//!                                            │                               │ apply thread
//!                     other regions ◄── peers┤                               ▼
//!                                            └── reads ◄── store ◄─────── machine ──► board
//!   replicator ── read_log, acknowledged, apply_frame, complete_up_to ──► replication, copies, lanes
//! ```
//!
//! `region/core` decides what an entry does; this crate waits, stores and answers. Promises kept here: DUR-1 and DUR-2 (what
//! is waited for before an acknowledgement), FEN-1 (no acknowledgement without a lease), CON-1 to CON-3 (who may answer a
//! read), ISO-1 (what a dead region may cost), RES-1 (everything under way is bounded).

mod admission;
mod authority;
mod backup;
mod blocking;
mod board;
mod ceiling;
mod clock;
mod copies;
mod crossing;
mod degrade;
mod disk;
mod drill;
mod exposures;
mod floors;
#[doc(hidden)]
pub mod fuzz;
mod gather;
mod group;
mod handover;
mod holdings;
mod lanes;
mod leaders;
mod machine;
mod members;
mod metrics;
mod node;
mod options;
mod peer_service;
mod peers;
mod proposer;
mod reads;
mod repair;
mod replication;
mod retention;
mod router;
mod salvage;
mod service;
mod sights;
mod signs;
mod store;
mod turns;
mod upkeep;
mod waiters;
mod writes;

pub use authority::Authority;
pub use blocking::Blocking;
pub use clock::{Clock, Steering, SystemClock};
pub use disk::{Gauge, Space, SystemGauge};
pub use group::{Barrier, Groups, Membership, Proposal, ShardGroup};
pub use holdings::Holding;
pub use machine::Witness;
pub use options::{Options, Place, StoreOptions};
pub use peer_service::PeerService;
pub use peers::{Exchanges, Neighbours};
pub use replication::{FrameRefusal, Tail, TailEntry, TailError};
pub use router::Caller;
pub use salvage::{Files, Memory, Vault};
pub use service::{Error, Handle, Parts, Service};
pub use store::{Change, Each, Engine, EngineError, Frozen, PairIterator, Snapshot, Store};
