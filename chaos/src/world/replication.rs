//! Hosts the real Shipper and Receiver over simulated streams, mirroring replicator/quic as thinly as it can.

pub(crate) mod intake;
pub(crate) mod ship;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, Bytes};
use meridian_region_node as region;
use meridian_replicator_core::{Budget, Tail, TailEntry, TailError};
use meridian_types::{Lane, ShardId};
use tokio::sync::Notify;

/// Bytes of frames on their way to one node per lane kind: replicator/quic's default.
pub(crate) const WINDOW_BYTES: usize = 16 << 20;

/// The windows of one node's links, per target node and lane kind.
pub(crate) struct Windows {
    bytes_max: usize,
    links: Mutex<BTreeMap<(usize, Lane), Arc<Window>>>,
}

/// The window of the lanes of one kind on one link.
pub(crate) struct Window {
    budget: Mutex<Budget>,
    freed: Notify,
}

impl Windows {
    pub(crate) fn new(bytes_max: usize) -> Windows {
        Windows { bytes_max, links: Mutex::default() }
    }

    fn to(&self, node: usize, lane: Lane) -> Arc<Window> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Window { budget: Mutex::new(Budget::new(self.bytes_max)), freed: Notify::new() });
        Arc::clone(links.entry((node, lane)).or_insert_with(new))
    }
}

impl Window {
    fn budget(&self) -> MutexGuard<'_, Budget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, shard: ShardId) -> usize {
        self.budget().window(shard.0.into())
    }

    fn note(&self, shard: ShardId, bytes: usize) {
        if self.budget().set(shard.0.into(), bytes) {
            self.freed.notify_waiters();
        }
    }
}

/// A message without its length, as the reader of a real stream hands it on.
fn unprefixed(mut message: Bytes) -> Bytes {
    message.advance(4.min(message.len()));
    message
}

/// As `meridian/src/server/replication.rs` puts the words of the two rooms side by side.
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
