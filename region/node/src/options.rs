//! What can be set, with the reason for every default.

use std::collections::BTreeSet;
use std::path::PathBuf;

use meridian_types::{NodeId, RegionId, ShardId};
use serde::{Deserialize, Serialize};

/// Where this node stands: given by the cluster, not chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// This region.
    pub region: RegionId,
    /// This node.
    pub node: NodeId,
    /// Shards per region.
    pub shards: u16,
    /// The nodes that vote in this region's groups; only used for groups that have no log yet.
    pub voters: Vec<NodeId>,
    /// Shards whose members have changed since the cluster was formed. Who votes there is in their groups' logs, and on a node that
    /// has none yet it is found out from the others: were it to form the group anew, it would be another one.
    pub moved: BTreeSet<ShardId>,
    /// The directory of the state store; created if missing.
    pub dir: PathBuf,
}

/// Bounds and paces of the region's data cluster on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// The state store.
    pub store: StoreOptions,
    /// The most requests under way at a time on this node; beyond it they are refused as retryable (RES-1).
    pub in_flight_max: usize,
    /// The most bytes of writes under way at a time on this node (RES-1).
    pub in_flight_bytes_max: usize,
    /// Digests of this many recent writes are kept per shard for the shipper.
    pub digest_notes_max: usize,
    /// How much log is kept for regions that are behind, in bytes, all shards together; then they need a resync.
    pub log_retention_bytes: u64,
    /// How much log is kept even when every region has it, for backups that rest on earlier ones: of all shards together, and at most
    /// `log_retention_bytes`.
    pub log_kept_bytes: u64,
    /// Below this much free disk, in bytes, writes are refused while reads go on.
    pub disk_reserve_bytes: u64,
    /// Whether a primary that was lost waits for an operator before it gives up what only it has; that is written down first
    /// in any case.
    pub manual_reinstate: bool,
    /// The most bytes per second that repairs of this node's shards receive from other regions, all together.
    pub repair_bytes_per_s: u64,
    /// How often keys that are due are looked for, in milliseconds.
    pub expiry_every_ms: u64,
    /// The most keys one expiry entry removes.
    pub expiry_keys_max: usize,
    /// How long a request without a deadline of its own may wait, in milliseconds.
    pub deadline_ms_default: u32,
}

/// Bounds of the state store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreOptions {
    /// Bytes of blocks kept in memory.
    pub cache_bytes: u64,
    /// Bytes of one write buffer; up to five of them exist while flushes are behind, then writes wait.
    pub write_buffer_bytes: u64,
    /// Bytes of the store's own journals on disk before the oldest are flushed away.
    pub journal_bytes_max: u64,
    /// Threads for flushes and compactions.
    pub worker_threads: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            store: StoreOptions::default(),
            // Two full streams of a gateway; more only wait in line for the same disk.
            in_flight_max: 8192,
            // As much as the log's writer queues.
            in_flight_bytes_max: 64 << 20,
            // A shipper further behind than this ships several frames before it needs a digest again.
            digest_notes_max: 1024,
            // Hours of an ordinary load, and a disk people have.
            log_retention_bytes: 4 << 30,
            log_kept_bytes: 0,
            // A flush of every write buffer, a compaction of a level and two log segments still fit.
            disk_reserve_bytes: 256 << 20,
            // Nothing vanishes, so nobody need be there.
            manual_reinstate: false,
            // A quarter of a gigabit: what a link between regions can spare.
            repair_bytes_per_s: 32 << 20,
            // TTLs are given in seconds by most.
            expiry_every_ms: 1000,
            // About 50 KiB an entry: no write waits long behind it.
            expiry_keys_max: 512,
            deadline_ms_default: 10_000,
        }
    }
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        StoreOptions {
            cache_bytes: 64 << 20,
            // Everybody waits while the engine drops one that it has flushed, some milliseconds for this many rows; and a search
            // among fewer rows finds them in the processor's cache.
            write_buffer_bytes: 8 << 20,
            // The engine preallocates journals of 64 MiB; three may exist.
            journal_bytes_max: 192 << 20,
            // One flushes while the other compacts.
            worker_threads: 2,
        }
    }
}
