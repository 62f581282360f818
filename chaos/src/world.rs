//! A deterministic planet: the real region nodes, replicators and metadata of several regions, on one thread, in virtual
//! time, from one seed.
//!
//! ```text
//!  workloads ── Target ──► planet ── network ──► life: region/node Service + Handle (real)
//!                                                  ├─ group    consensus: a small Raft per shard, over disk and network
//!                                                  ├─ engine   state engine, simulated
//!                                                  ├─ metadata ClusterState, LeaseTable, LeaseHolder (real) over a small Raft
//!                                                  └─ replication Shipper, Receiver (real) over streams
//!  faults ──► crash, pause, weather, disks, clocks        record ──► facts and a hash of everything
//! ```
//!
//! Same seed, same trace: every choice comes from [`dice`], every task runs in an order that the dice decide
//! ([`executor`]), and no clock but the virtual one is read.

mod clock;
mod crossings;
pub mod dice;
mod disk;
mod engine;
pub(crate) mod executor;
pub mod fault;
mod group;
mod met;
mod metadata;
mod network;
mod node;
mod operator;
mod planet;
mod record;
mod replication;
mod stream;
mod wires;

pub use clock::EPOCH_MS;
pub use dice::Dice;
pub use disk::{Keep, Manner};
pub use fault::{Fault, Loss};
pub use met::{Met, STEPS};
pub use network::{Location, Place, Weather};
pub(crate) use planet::{PURGE_ENTRIES, RETENTION_BYTES};
pub use planet::{Planet, Setup};
pub(crate) use replication::WINDOW_BYTES;
