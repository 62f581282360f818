//! ONE-1: a request takes effect at most once. No two entries decide the same request, wherever they were ordered.

use std::collections::HashMap;

use meridian_types::entry::Kind;
use meridian_types::{BucketId, ClientId, Lsn, RegionId, RequestId, ShardId};

use super::{Evidence, Stats, Violation, broken};
use crate::trace::{Fact, Verdict};

/// Every request is decided by one entry.
pub(super) fn check(evidence: &Evidence) -> Result<Stats, Violation> {
    let mut stats = Stats::default();
    let mut decided: HashMap<(BucketId, RequestId), (ShardId, RegionId, Lsn)> = HashMap::new();
    for record in evidence.records.iter().flatten() {
        let Fact::Applied { replica, shard, entry } = &record.fact else { continue };
        if entry.kind != Kind::Write || entry.verdict != Verdict::Took || entry.request.client == ClientId(0) {
            continue;
        }
        // What a failover undid decided nothing: a retry takes effect at the successor.
        if evidence.forks.has_lost(*shard, entry) {
            continue;
        }
        stats.checked += 1;
        let place = (*shard, entry.origin, entry.source_lsn);
        let first = *decided.entry((entry.bucket, entry.request)).or_insert(place);
        if first != place {
            let sentence = format!(
                "request {} of client {} took effect twice in bucket {}: at {} of region {} and at {} of region {}",
                entry.request.sequence, entry.request.client, entry.bucket, first.2, first.1, place.2, place.1
            );
            let seen = format!("the second was applied by node {} of region {}", replica.node, replica.region);
            return Err(broken("once", sentence).showing(seen));
        }
    }
    Ok(stats)
}
