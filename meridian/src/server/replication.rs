//! Introduces the region to the replicator: its logs as a [`LogSource`], its groups as a [`LogSink`].
//! Neither room knows the other; here their words are put side by side, and nothing is decided.

use std::net::SocketAddr;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use meridian_region_node as region;
use meridian_replicator_quic::{LogSink, LogSource, SinkError, Tail, TailEntry, TailError};
use meridian_types::frame::Echo;
use meridian_types::{BucketId, Head, Hlc, Lack, Lane, Lsn, NodeId, Refusal, RefusalKind, RegionId, ShardId};
use tokio::sync::watch;

use crate::config::Config;

/// The logs of the shards this node leads.
pub(crate) struct Source(pub(crate) region::Handle);

impl LogSource for Source {
    fn head(&self, shard: ShardId) -> watch::Receiver<Option<Head>> {
        self.0.head(shard)
    }

    fn mended(&self, shard: ShardId) -> watch::Receiver<u64> {
        self.0.mended(shard)
    }

    fn read(&self, shard: ShardId, after: Lsn, max_bytes: usize) -> BoxFuture<'_, Result<Tail, TailError>> {
        async move { self.0.read_log(shard, after, max_bytes).await.map(tail).map_err(tail_error) }.boxed()
    }

    fn acknowledged(&self, shard: ShardId, lane: Lane, target: RegionId, lsn: Lsn) {
        self.0.acknowledged(shard, lane, target, lsn);
    }

    fn counters(&self, shard: ShardId, bucket: BucketId) -> (u64, u64) {
        self.0.counters(shard, bucket)
    }
}

fn tail(tail: region::Tail) -> Tail {
    let entry = |entry: region::TailEntry| TailEntry { lsn: entry.lsn, entry: entry.entry, note: entry.note };
    Tail {
        entries: tail.entries.into_iter().map(entry).collect(),
        reached: tail.reached,
        at_head: tail.at_head,
        closed: tail.closed,
        tenured: tail.tenured,
    }
}

fn tail_error(error: region::TailError) -> TailError {
    match error {
        region::TailError::Trimmed { oldest } => TailError::Trimmed { oldest },
        region::TailError::Unavailable(why) => TailError::Unavailable(why),
    }
}

/// The groups this node leads.
pub(crate) struct Sink(pub(crate) region::Handle);

impl LogSink for Sink {
    fn watermark(&self, source: RegionId, shard: ShardId, lane: Lane) -> BoxFuture<'_, Result<Lsn, SinkError>> {
        async move {
            let leader = || self.0.leader_beside(shard);
            self.0.watermark(source, shard, lane).await.map_err(|refusal| watermark_error(refusal, leader()))
        }
        .boxed()
    }

    fn apply(&self, frame: Bytes) -> BoxFuture<'static, Result<Lsn, SinkError>> {
        let applied = self.0.apply_frame(&frame);
        async move { applied.await.map_err(sink_error) }.boxed()
    }

    fn complete(&self, source: RegionId, shard: ShardId, lane: Lane, echo: Echo, last: Lsn) {
        self.0.complete_up_to(source, shard, lane, echo, last);
    }

    fn exposed(&self, source: RegionId, shard: ShardId, lane: Lane, said: &[Lack]) {
        self.0.exposed(source, shard, lane, said);
    }

    fn deposed(&self, shard: ShardId) -> Option<SinkError> {
        (!self.0.leads_surely(shard)).then(|| SinkError::NotLeader { leader: self.0.leader_beside(shard) })
    }

    fn monotonic_ms(&self) -> u64 {
        self.0.monotonic_ms()
    }

    fn hlc_beside(&self, peer: Hlc) -> Hlc {
        self.0.hlc_beside(peer)
    }
}

fn watermark_error(refusal: Refusal, leader: Option<NodeId>) -> SinkError {
    match refusal.kind {
        RefusalKind::Redirect => SinkError::NotLeader { leader },
        _ => SinkError::Unavailable(refusal.message),
    }
}

fn sink_error(refusal: region::FrameRefusal) -> SinkError {
    use region::FrameRefusal::{Damaged, Diverged, Fenced, NotLeader, Rewind, Unavailable};
    match refusal {
        Rewind { watermark } => SinkError::Rewind { watermark },
        Diverged { detail } => SinkError::Diverged { detail },
        Fenced => SinkError::Fenced,
        NotLeader { leader } => SinkError::NotLeader { leader },
        Damaged(why) | Unavailable(why) => SinkError::Unavailable(why),
    }
}

/// Where the other nodes listen for replication, translated where the configuration says so.
pub(crate) fn addresses(
    config: &Config,
    metadata: meridian_metadata_node::Handle,
) -> impl Fn(NodeId) -> Option<SocketAddr> + Send + Sync + 'static {
    let translate = config.translate.clone();
    move |node| {
        let topology = metadata.topology();
        let address = &topology.nodes.get(&node)?.replication_address;
        let address = translate.get(address).unwrap_or(address);
        // A host name is resolved anew on each connection attempt: addresses behind names move.
        address.parse().ok().or_else(|| std::net::ToSocketAddrs::to_socket_addrs(address).ok()?.next())
    }
}
