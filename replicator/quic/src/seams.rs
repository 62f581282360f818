//! What the replicator asks of the node it runs in. The composition root implements these with
//! `region/node`; neither room knows the other.

use std::net::SocketAddr;

use bytes::Bytes;
use futures::future::BoxFuture;
use meridian_types::frame::Echo;
use meridian_types::{BucketId, Hlc, Lack, Lane, Lsn, NodeId, RegionId, ShardId};
use tokio::sync::watch;

pub use meridian_replicator_core::{Head, SinkError, Tail, TailEntry, TailError};

/// The logs of the shards that this node leads, as the shippers read them.
pub trait LogSource: Send + Sync + 'static {
    /// The end of `shard`'s applied log; `None` while this node does not lead it. Changes wake the shippers,
    /// so it must move right after an entry is applied, before or while its client is answered.
    /// A sender that is dropped means the shard is gone from this node.
    fn head(&self, shard: ShardId) -> watch::Receiver<Option<Head>>;

    /// Rises whenever a replica of a bucket of `shard` was made equal to its source, here or, from here, in another region: what a lane was
    /// stopped for may be over.
    fn mended(&self, shard: ShardId) -> watch::Receiver<u64>;

    /// Entries of `shard` after `after`, rising: of every kind and bucket; the shipper chooses. About
    /// `max_bytes`, but at least one entry when there is one. `at_head` only if `reached` was the end of the
    /// log at some moment *after* this call began (CON-3 rests on it), and only while this node leads.
    ///
    /// # Errors
    /// [`TailError::Trimmed`] when the log no longer holds the entry after `after`;
    /// [`TailError::Unavailable`] for anything that may pass: it is asked again.
    fn read(&self, shard: ShardId, after: Lsn, max_bytes: usize) -> BoxFuture<'_, Result<Tail, TailError>>;

    /// `target` has durably applied everything of this lane up to `lsn`. The log may be purged up to the least of
    /// these over *both* lanes of *every* other region in the topology; one that has not spoken yet counts as 0
    /// (a lane that carries no bucket today is still moved along every [`meridian_replicator_core::SKIP_LSNS`],
    /// so that it is not behind the log on the day it gets one).
    fn acknowledged(&self, shard: ShardId, lane: Lane, target: RegionId, lsn: Lsn);

    /// Writes that *this region's own* log brought to the bucket so far, and their bytes: rising totals, whose
    /// growth since a lane was last complete is its unshipped lag.
    fn counters(&self, shard: ShardId, bucket: BucketId) -> (u64, u64);
}

/// The groups that this node leads, as the receivers fill them.
pub trait LogSink: Send + Sync + 'static {
    /// The highest source position durably applied here.
    ///
    /// # Errors
    /// As [`LogSink::apply`].
    fn watermark(&self, source: RegionId, shard: ShardId, lane: Lane) -> BoxFuture<'_, Result<Lsn, SinkError>>;

    /// Proposes a frame, whose checksum and header are checked, to its shard's group. It is enqueued when this is
    /// called, in call order; the future resolves to the lane's new watermark once that is durable.
    ///
    /// # Errors
    /// [`SinkError`] says what the receiver must do. After one, the frames enqueued behind it may fail too.
    fn apply(&self, frame: Bytes) -> BoxFuture<'static, Result<Lsn, SinkError>>;

    /// The lane is complete, up to `last`, with everything its source had at this node's monotonic time `echo.probe`:
    /// its staleness at time `t` is at most `t - echo.probe` (CON-3). Called only once `last` is durably applied.
    fn complete(&self, source: RegionId, shard: ShardId, lane: Lane, echo: Echo, last: Lsn);

    /// The primaries in `source` say what of a lane is lacking in a shard here (SWI-2).
    fn exposed(&self, source: RegionId, shard: ShardId, lane: Lane, said: &[Lack]);

    /// What a source is to be told if this node does not lead the shard now.
    fn deposed(&self, shard: ShardId) -> Option<SinkError>;

    /// This node's monotonic clock in milliseconds, never 0: what probes carry and `complete` gets back.
    fn monotonic_ms(&self) -> u64;

    /// This node's wall clock as a timestamp, to judge the one of a frame (`peer`) by. Timestamps of other regions must not
    /// move it any further than this machine's own clock agrees, else a clock that runs ahead would drag along the one it
    /// is measured against.
    fn hlc_beside(&self, peer: Hlc) -> Hlc;
}

/// Where the other nodes are.
pub trait Addresses: Send + Sync + 'static {
    /// The replication (UDP) address of `node`, if it is known; translated where distances are emulated.
    fn replication_address(&self, node: NodeId) -> Option<SocketAddr>;
}

impl<F: Fn(NodeId) -> Option<SocketAddr> + Send + Sync + 'static> Addresses for F {
    fn replication_address(&self, node: NodeId) -> Option<SocketAddr> {
        self(node)
    }
}
