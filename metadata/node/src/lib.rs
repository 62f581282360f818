//! The metadata plane on one node (design 4): its Raft group, this node's copy, its lease, and every node's way
//! to the leader. What is decided, is decided in `metadata/core`; here it is waited for.
//!
//! ```text
//!    Handle ─────► Asker ──── MetadataPeer (gRPC) ────► Leader ───► Group::propose, Group::confirm_leadership
//!      │  create_bucket…   here, if this node leads        │             │
//!      │                                               LeaseTable    Machine (apply thread)
//!      │                                                                 │ publishes
//!      └── topology(), changes(), lease_until() ◄──── LocalCopy ◄────────┘
//!                                                     Lease ◄── renew (every second, every node)
//! ```
//!
//! Every node runs the same tasks: `duties` (acts only on the leader: forms the cluster, takes new nodes as
//! learners, takes voters back after a recovery, counts what can die), the `executor` (acts only on the leader: gives up what takes too long), `register`, `renew` and its
//! `report`, and `tell`, which carries what this node's shards have to say. Voters apply the group's log; other nodes follow it as
//! learners, so that routing never asks anybody.
//!
//! Keeps the time half of FEN-1 (with [`meridian_metadata_core::lease`]), DUR-1 and DUR-3 for metadata, ONE-1 for
//! commands, RES-1 (bounded commands, renewals, state) and SEC-1 (callers are nodes, each for itself).

mod ask;
mod attempt;
mod clock;
mod copy;
mod directory;
mod duties;
mod ears;
mod error;
mod executor;
mod file;
#[doc(hidden)]
pub mod fuzz;
mod generation;
mod handle;
mod join;
mod leader;
mod machine;
mod metrics;
mod options;
mod peer;
pub mod recover;
mod register;
mod renew;
mod service;
mod survival;
mod tell;

pub use error::{Error, OpenError};
pub use handle::Handle;
pub use options::{Member, Options};
pub use peer::PeerService;
pub use service::Service;
