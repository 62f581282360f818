//! What the metadata plane lets this node do, as the region asks for it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use futures::FutureExt;
use futures::future::BoxFuture;
use meridian_metadata_node::Handle;
use meridian_region_node::Authority;
use meridian_types::{Refusal, ShardId, StandingWord, Topology, Word};
use tokio::sync::watch;

/// The metadata plane's handle, seen as the region's source of authority (FEN-1).
pub(crate) struct MetadataAuthority(pub(crate) Handle);

impl Authority for MetadataAuthority {
    fn topology(&self) -> Arc<Topology> {
        self.0.topology()
    }

    fn topology_changes(&self) -> watch::Receiver<Arc<Topology>> {
        self.0.changes()
    }

    fn lease_holds(&self) -> bool {
        self.0.lease_until().is_some_and(|until| Instant::now() < until)
    }

    fn lease_tenure_ms(&self) -> u64 {
        u64::try_from(self.0.lease_tenure().as_millis()).unwrap_or(u64::MAX)
    }

    fn tell(&self, word: Word) -> BoxFuture<'static, Result<(), Refusal>> {
        let metadata = self.0.clone();
        async move { metadata.tell(word).await }.boxed()
    }

    fn tell_standing(&self, word: StandingWord) -> BoxFuture<'static, Result<(), Refusal>> {
        let metadata = self.0.clone();
        async move { metadata.tell_standing(word).await }.boxed()
    }

    fn tell_moved(&self, shards: BTreeSet<ShardId>, change: u64) -> BoxFuture<'static, Result<(), Refusal>> {
        let metadata = self.0.clone();
        async move { metadata.tell_moved(shards, change).await }.boxed()
    }

    fn lease_ttl_ms(&self) -> u64 {
        self.0.lease_ttl_ms()
    }
}
