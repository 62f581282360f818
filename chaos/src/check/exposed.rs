//! The ceiling of what an `async` bucket may risk (docs/adr/2026-11-27-rpo-ceiling.md): where it blocks, no more operations than
//! it says are ever in no other region that holds the bucket, from a lease after it was set. So that is the most that losing the primary's region can cost, whenever that happens.
//!
//! Not looked at: bounds in bytes and in time, and expired keys, which the ceiling does not hold back.

use std::collections::{HashMap, HashSet};

use meridian_types::entry::Kind;
use meridian_types::{Bucket, BucketId, Epoch, Lsn, RegionId, ShardId};

use super::{Evidence, Stats, Violation, broken, show};
use crate::trace::{Fact, Verdict};

/// An entry: whose, and where.
type Place = (RegionId, ShardId, Lsn);

/// What only the primary's region has of one bucket.
#[derive(Default)]
struct Alone {
    /// With the epoch each was ordered under.
    entries: HashMap<Place, Epoch>,
    /// Whatever was ever there: a restart applies it again.
    seen: HashSet<Place>,
}

/// No more than the ceiling is in one region only.
pub(super) fn check(evidence: &Evidence) -> Result<Stats, Violation> {
    let mut stats = Stats::default();
    let may_block =
        |bucket: &&Bucket| evidence.policies.words(bucket.id).iter().any(|it| it.policy.max_lag().is_some());
    let mut buckets: HashMap<BucketId, Alone> =
        evidence.setup.buckets.iter().filter(may_block).map(|bucket| (bucket.id, Alone::default())).collect();
    for record in evidence.records.iter().flatten() {
        match &record.fact {
            Fact::Applied { replica, shard, entry } if entry.kind == Kind::Write && is_there(entry.verdict) => {
                let Some(alone) = buckets.get_mut(&entry.bucket) else { continue };
                let place = (entry.origin, *shard, entry.source_lsn);
                if replica.region != entry.origin {
                    alone.seen.insert(place);
                    if evidence.members.counts(entry.bucket, entry.epoch, replica.region) {
                        alone.entries.remove(&place);
                    }
                    continue;
                }
                if !alone.seen.insert(place) {
                    continue;
                }
                alone.entries.insert(place, entry.epoch);
                let Some(most) = evidence.policies.ceiling(entry.bucket, record.at_us) else { continue };
                stats.checked += 1;
                // What was given up with an earlier epoch is no risk of this one.
                let count = alone.entries.values().filter(|epoch| **epoch == entry.epoch).count() as u64;
                if count > most {
                    let sentence = format!(
                        "region {} ordered a write of bucket {} at {} as the {count}th that no other region has; its ceiling is {most}",
                        replica.region,
                        entry.bucket,
                        show::seconds(record.at_us)
                    );
                    return Err(broken("exposed", sentence));
                }
            }
            Fact::Repaired { replica, shard, bucket, positions, .. } => {
                let Some(alone) = buckets.get_mut(bucket) else { continue };
                for (origin, position) in positions.iter().filter(|(origin, _)| *origin != replica.region) {
                    let counts = |epoch| evidence.members.counts(*bucket, epoch, replica.region);
                    let brought = |(of, at, lsn): &Place| (of, at) == (origin, shard) && lsn <= position;
                    alone.entries.retain(|place, epoch| !brought(place) || !counts(*epoch));
                }
            }
            _ => {}
        }
    }
    Ok(stats)
}

/// What waits for a seal is of no use without its source.
fn is_there(verdict: Verdict) -> bool {
    !matches!(verdict, Verdict::Void | Verdict::Parked)
}
