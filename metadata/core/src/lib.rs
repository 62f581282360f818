//! The metadata plane's decisions (design 4): what the cluster is, who may change it, and who holds a lease.
//!
//! ```text
//!   Command (who, when, operation id) ──► ClusterState::apply(index, ..) ──► Reply | Refusal
//!                                               │
//!                                               ├──► topology()   what every node routes by
//!                                               └──► snapshot     what a node stores and sends
//!
//!   LeaseTable  (at the leader)  remembers the latest moment any node may still believe in its lease
//!   LeaseHolder (at every node)  believes no longer than that, and only what it has applied
//! ```
//!
//! Everything here is pure: no clock, no randomness, no hash order. The same commands at the same
//! indices make equal states on every node, byte for byte. Time reaches [`ClusterState`] only inside
//! commands, and [`lease`] only as an argument.
//!
//! Deliberately not here: waiting, sockets, files and the Raft group (`metadata/node`); what an epoch
//! means to a shard's data (`region/core`).

mod acks;
mod apply;
mod changes;
pub mod command;
mod crossing;
pub mod detect;
pub mod event;
pub mod lease;
mod legacy;
pub mod lose;
pub mod members;
pub mod mender;
mod operations;
pub mod plan;
pub mod recover;
mod regions;
mod regroup;
pub mod reply;
pub mod snapshot;
pub mod spec;
mod standing;
pub mod state;
pub mod survival;
#[cfg(test)]
mod testing;
mod turns;
pub mod upgrade;
pub mod vigil;

pub use command::{AbortScope, Action, Advance, Ask, Command, CommandError};
pub use detect::Detector;
pub use event::Event;
pub use lease::{Drift, Electorate, Grant, LeaseHolder, LeaseTable, Superseded};
pub use mender::Mender;
pub use meridian_types::OperationId;
pub use reply::{Answer, Reply, ReplyError};
pub use snapshot::SnapshotError;
pub use state::{ClusterState, Fault};
pub use vigil::Vigil;

#[cfg(test)]
mod laws;
