//! The right to act: what the metadata plane tells this node, as a seam that the composition root fills.

use std::sync::Arc;
use std::time::Instant;

use meridian_types::Topology;
use tokio::sync::watch;

/// What this node knows from the metadata plane. Every call is cheap: it is made for every request.
pub trait Authority: Send + Sync + 'static {
    /// The newest topology applied here.
    fn topology(&self) -> Arc<Topology>;

    /// Tells when it changes.
    fn topology_changes(&self) -> watch::Receiver<Arc<Topology>>;

    /// Until when this node may act as primary on the epochs of [`Authority::topology`]; `None` or a past time: it may
    /// not. Only given once the topology has reached the index the lease was granted for, so whoever asks for the lease
    /// first and for the topology second never acts on an epoch older than the lease allows (FEN-1).
    fn lease_until(&self) -> Option<Instant>;
}

/// Whether the lease of `authority` holds now.
pub(crate) fn lease_holds(authority: &dyn Authority) -> bool {
    authority.lease_until().is_some_and(|until| Instant::now() < until)
}
