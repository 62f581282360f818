//! The metadata plane of a simulated planet: the real cluster state and the real leases, replicated by a small Raft.
//!
//! Mirrors metadata/node as thinly as it can: commands carry operation ids and are retried under them, a lease is granted
//! only after leadership was confirmed since the request came, a state is published before the lease hears of its index.

pub(crate) mod ask;
pub(crate) mod copy;
pub(crate) mod plane;
pub(crate) mod raft;

use meridian_metadata_core::ClusterState;

/// What the plane keeps on a node's disk.
#[derive(Clone, Default)]
pub(crate) struct Kept {
    pub(crate) raft: raft::Durable,
    /// The state as it was stored last; what follows is replayed from the log.
    pub(crate) state: ClusterState,
}
