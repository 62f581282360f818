//! Consensus: many Raft groups on one node, over one shared write-ahead log and one transport.
//!
//! The only crate that names openraft. Payloads are opaque bytes, encoded once by their proposer.
//! It keeps DUR-1 (nothing is acknowledged before its `fdatasync`), DUR-3 (damage is found and refused),
//! the log's half of CON-1, RES-1 (every queue is bounded) and SEC-1 (peers show a node's certificate).

mod confirm;
mod consensus;
mod contact;
mod engine;
mod error;
#[doc(hidden)]
pub mod fuzz;
mod group;
mod janitor;
mod log;
mod machine;
mod members;
pub mod offline;
mod options;
mod poison;
mod pulse;
mod raft;
mod stall;
mod stopwatch;
mod tasks;
mod transport;
mod turn;
mod watcher;

pub use consensus::Consensus;
pub use contact::Contact;
pub use error::{ChangeError, FatalError, OpenError, ProposeError, ReadError, ReadLogError, StartError, StateError};
pub use group::{Applied, Electorate, Group, Leadership, LogSlice, Proposal};
pub use machine::{Committed, Mark, PIECE_BYTES_MAX, Persist, SnapshotSource, StateMachine};
pub use members::Members;
pub use options::{LogOptions, Options, Pace};
pub use stopwatch::{Running, Stopwatch};
pub use transport::server::PeerService;
