//! The right to act: what the metadata plane and this node tell each other, as a seam that the composition root fills.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::future::BoxFuture;
use meridian_types::{Refusal, ShardId, StandingWord, Topology, Word};
use tokio::sync::watch;

/// The metadata plane, as this node sees it. What it asks for is cheap: it is asked for every request.
pub trait Authority: Send + Sync + 'static {
    /// The newest topology applied here.
    fn topology(&self) -> Arc<Topology>;

    /// Tells when it changes.
    fn topology_changes(&self) -> watch::Receiver<Arc<Topology>>;

    /// Whether this node may act as primary now, on the epochs of [`Authority::topology`]. Only once the topology has
    /// reached the index the lease was granted for, so whoever asks for the lease first and for the topology second
    /// never acts on an epoch older than the lease allows (FEN-1).
    fn lease_holds(&self) -> bool;

    /// For how long this node has held its lease without a break, in milliseconds; 0 when it holds none.
    fn lease_tenure_ms(&self) -> u64;

    /// Tells the metadata plane what this node knows of a bucket whose primary is moving; resolves once that is on record.
    ///
    /// # Errors
    /// When it could not be told, or not for certain: it is told again.
    fn tell(&self, word: Word) -> BoxFuture<'static, Result<(), Refusal>>;

    /// Tells the metadata plane how copies of a bucket come along (DEG-1); resolves once that is on record.
    ///
    /// # Errors
    /// When it could not be told, or not for certain: it is told again.
    fn tell_standing(&self, word: StandingWord) -> BoxFuture<'static, Result<(), Refusal>>;

    /// Tells the metadata plane that shards have moved as a change of this region's members asks; resolves once that is on record.
    ///
    /// # Errors
    /// When it could not be told, or not for certain: it is told again.
    fn tell_moved(&self, shards: BTreeSet<ShardId>, change: u64) -> BoxFuture<'static, Result<(), Refusal>>;

    /// How long a lease lasts, in milliseconds: so long after a change is seen here, no node acts on what was before.
    fn lease_ttl_ms(&self) -> u64;
}
