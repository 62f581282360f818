//! FEN-2: a group that committed a fence, or applied the seal of an epoch, never applies that bucket's writes of a lower one.

use std::collections::HashMap;

use meridian_types::entry::Kind;
use meridian_types::{BucketId, Epoch, Lsn, ShardId};

use super::{Evidence, Stats, Violation, broken, show};
use crate::trace::{Entry, Fact, Replica, Verdict};

/// Where each fence is, and what it says.
type Fences = Vec<(Lsn, BucketId, Epoch)>;

/// Nothing of a lower epoch counts behind a fence.
pub(super) fn check(evidence: &Evidence) -> Result<Stats, Violation> {
    let mut stats = Stats::default();
    // Fences by their position, so that those behind a restart's position are forgotten until they are applied again.
    let mut fences: HashMap<(Replica, ShardId), Fences> = HashMap::new();
    for record in evidence.records.iter().flatten() {
        match &record.fact {
            Fact::Restarted { replica, shard, applied } => {
                fences.entry((*replica, *shard)).or_default().retain(|(at, ..)| at <= applied);
            }
            Fact::Installed { replica, shard, from, applied } => {
                let theirs = fences.get(&(*from, *shard)).cloned().unwrap_or_default();
                let kept = theirs.into_iter().filter(|(at, ..)| at <= applied).collect();
                fences.insert((*replica, *shard), kept);
            }
            Fact::Applied { replica, shard, entry } if entry.kind == Kind::Fence => {
                let known = fences.entry((*replica, *shard)).or_default();
                known.push((entry.lsn, entry.bucket, entry.epoch));
            }
            Fact::Applied { replica, shard, entry } if counts(entry) => {
                stats.checked += 1;
                let known = fences.get(&(*replica, *shard)).map_or(&[][..], Vec::as_slice);
                // The seal of a fenced epoch is no write of it: a successor ends a lost epoch with one.
                let bound = |epoch: Epoch| epoch > entry.epoch && entry.kind != Kind::Seal;
                let above = known.iter().find(|(_, bucket, epoch)| *bucket == entry.bucket && bound(*epoch));
                if let Some((at, _, epoch)) = above {
                    let sentence = format!(
                        "region {} applied a write of bucket {} under epoch {} at position {}, behind the fence of epoch {epoch} at {at} ({})",
                        replica.region,
                        entry.bucket,
                        entry.epoch,
                        entry.lsn,
                        show::seconds(record.at_us)
                    );
                    return Err(broken("fences", sentence));
                }
                if entry.kind == Kind::Seal {
                    // What it begins is at least the next epoch.
                    let next = Epoch(entry.epoch.0 + 1);
                    fences.entry((*replica, *shard)).or_default().push((entry.lsn, entry.bucket, next));
                }
            }
            _ => {}
        }
    }
    Ok(stats)
}

fn counts(entry: &Entry) -> bool {
    entry.kind.is_shipped() && matches!(entry.verdict, Verdict::Took | Verdict::Refused | Verdict::Repeated)
}
