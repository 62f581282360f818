//! ORD-1 and CON-4 while it happens: two replicas of a (bucket, shard) that stand at equal positions are equal, whenever
//! each of them came there.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use meridian_types::{BucketId, ShardId};

use super::{Evidence, Stats, Violation, broken, show};
use crate::trace::{Fact, Replica, Standing};

/// Equal positions mean equal digests and numbers of keys, and of operations unless some were merged: what both replicas had seen of them
/// can't be told from what each of them had alone, and one that is repaired from such a one takes its count.
pub(super) fn check(evidence: &Evidence) -> Result<Stats, Violation> {
    let mut stats = Stats::default();
    let mut known: HashMap<(BucketId, ShardId, u64), (Standing, Replica, u64)> = HashMap::new();
    let mut merged: HashSet<(BucketId, ShardId)> = HashSet::new();
    for record in evidence.records.iter().flatten() {
        if let Fact::Repaired { shard, bucket, merged: true, .. } = record.fact {
            merged.insert((bucket, shard));
        }
        let Fact::Stands { replica, shard, bucket, standing } = record.fact else { continue };
        stats.checked += 1;
        match known.entry((bucket, shard, standing.positions)) {
            Entry::Vacant(place) => drop(place.insert((standing, replica, record.at_us))),
            Entry::Occupied(place) => {
                let (first, who, when_us) = *place.get();
                let count = |it: Standing| (!merged.contains(&(bucket, shard))).then_some(it.operations);
                let what = |it: Standing| (it.hash, it.keys, count(it));
                if what(first) != what(standing) {
                    let sentence = format!(
                        "two replicas of shard {shard} of bucket {bucket} are at the same positions, and differ"
                    );
                    let line = |who: Replica, when_us: u64, it: Standing| {
                        format!(
                            "[{}] node {} of region {}: {:032x}, {} keys, {} operations",
                            show::seconds(when_us),
                            who.node,
                            who.region,
                            it.hash,
                            it.keys,
                            it.operations
                        )
                    };
                    return Err(broken("digests", sentence).showing(line(who, when_us, first)).showing(line(
                        replica,
                        record.at_us,
                        standing,
                    )));
                }
            }
        }
    }
    stats.checked += finals(evidence)?;
    Ok(stats)
}

/// The digests that regions report of themselves, where they were asked.
fn finals(evidence: &Evidence) -> Result<u64, Violation> {
    let mut checked = 0;
    for (at, ours) in evidence.finals.iter().enumerate() {
        for theirs in evidence.finals[at + 1..].iter().filter(|theirs| theirs.bucket == ours.bucket) {
            for our in &ours.digests {
                let same = |it: &&meridian_types::ShardDigest| (it.bucket, it.shard) == (our.bucket, our.shard);
                let Some(their) = theirs.digests.iter().find(same) else { continue };
                checked += 1;
                if our.digest.agrees_with(&their.digest) == Some(false) {
                    let sentence = format!(
                        "regions {} and {} report different digests of shard {} of bucket {} at equal positions",
                        ours.region, theirs.region, our.shard, our.bucket
                    );
                    return Err(broken("digests", sentence)
                        .showing(format!("{:?}", our.digest))
                        .showing(format!("{:?}", their.digest)));
                }
            }
        }
    }
    Ok(checked)
}
