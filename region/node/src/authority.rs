//! The right to act: what the metadata plane tells this node, as a seam that the composition root fills.

use std::sync::Arc;

use meridian_types::Topology;
use tokio::sync::watch;

/// What this node knows from the metadata plane. Every call is cheap: it is made for every request.
pub trait Authority: Send + Sync + 'static {
    /// The newest topology applied here.
    fn topology(&self) -> Arc<Topology>;

    /// Tells when it changes.
    fn topology_changes(&self) -> watch::Receiver<Arc<Topology>>;

    /// Whether this node may act as primary now, on the epochs of [`Authority::topology`]. Only once the topology has
    /// reached the index the lease was granted for, so whoever asks for the lease first and for the topology second
    /// never acts on an epoch older than the lease allows (FEN-1).
    fn lease_holds(&self) -> bool;
}
