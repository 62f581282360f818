//! How full everything on this node is that a client, a peer or a backlog can grow, each beside its bound (RES-1): for whoever
//! doubts that the bounds hold.

use meridian_region_core::{ORIGIN_RESULTS_MAX, SESSION_RESULTS_MAX};

use crate::backup::BACKUPS_MAX;
use crate::node::{Node, ShardNode};
use crate::repair::{ASKED_MAX, ENDED_MAX, REPAIRS_MAX, SESSIONS_MAX};
use crate::waiters::WAITERS_MAX;

/// Something that can grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding {
    /// What, in a few words.
    pub what: &'static str,
    /// How much it holds; of what there is once per shard or bucket, the fullest one.
    pub amount: u64,
    /// The most it may hold.
    pub most: u64,
}

impl Holding {
    fn of(what: &'static str, amount: usize, most: usize) -> Holding {
        Holding { what, amount: amount as u64, most: most as u64 }
    }
}

impl Node {
    pub(crate) fn holdings(&self) -> Vec<Holding> {
        let (requests, bytes) = self.admission.in_flight();
        // One request alone is always let in.
        let bytes_max = self.options.in_flight_bytes_max.max(if requests == 1 { bytes } else { 0 });
        let [running, asked, ended] = self.repairs.table.sizes();
        let mut all = vec![
            Holding::of("requests under way", requests, self.options.in_flight_max),
            Holding::of("bytes of writes under way", bytes, bytes_max),
            Holding::of("repairs under way", running, REPAIRS_MAX),
            Holding::of("repairs asked for", asked, ASKED_MAX),
            Holding::of("repairs that are over", ended, ENDED_MAX),
            Holding::of("repairs of other regions", self.repairs.sources.len(), SESSIONS_MAX),
            Holding::of("backups that are read", self.backups.len(), BACKUPS_MAX),
        ];
        for shard in &self.shards {
            for holding in shard.holdings() {
                match all.iter_mut().find(|known| known.what == holding.what) {
                    Some(known) if known.excess() >= holding.excess() => {}
                    Some(known) => *known = holding,
                    None => all.push(holding),
                }
            }
        }
        all
    }
}

impl Holding {
    /// By how much it is beyond its bound, or short of it.
    fn excess(&self) -> i128 {
        i128::from(self.amount) - i128::from(self.most)
    }
}

impl ShardNode {
    fn holdings(&self) -> Vec<Holding> {
        let (noted, noted_max) = self.board.noted();
        let core = self.board.core();
        let (of_client, of_origin) = core.most_kept_results();
        let mut all = vec![
            Holding::of("digests noted for the shipper", noted, noted_max),
            Holding::of("requests waited for", self.board.waiters.len(), WAITERS_MAX),
            Holding::of("results kept for a client", of_client, SESSION_RESULTS_MAX),
            Holding::of("results kept for an origin", of_origin, ORIGIN_RESULTS_MAX),
        ];
        for bucket in core.buckets().filter(|bucket| core.waits_for_seal(*bucket)) {
            let ((entries, bytes), (entries_max, bytes_max)) = (core.waiting(bucket), core.waiting_max(bucket));
            all.push(Holding { what: "entries that wait for a seal", amount: entries, most: entries_max });
            all.push(Holding { what: "bytes that wait for a seal", amount: bytes, most: bytes_max });
        }
        all
    }
}
