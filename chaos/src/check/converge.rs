//! CON-4, and ORD-1 at rest: when everything is whole and quiet, all regions of a bucket are equal.

use super::{Evidence, Final, Stats, Violation, broken, show};

/// All regions of a bucket are equal in the end.
pub(super) fn check(evidence: &Evidence) -> Result<Stats, Violation> {
    let mut stats = Stats::default();
    for bucket in &evidence.setup.buckets {
        let mut finals = evidence.finals_of(bucket.id);
        let Some(first) = finals.next() else { continue };
        for other in finals {
            stats.checked += 1;
            if let Some((key, ours, theirs)) = difference(first, other) {
                let sentence = format!(
                    "regions {} and {} of bucket {} did not become equal after the heal",
                    first.region, other.region, bucket.name
                );
                return Err(broken("converge", sentence)
                    .showing(format!("region {} has {key} = {ours}", first.region))
                    .showing(format!("region {} has {key} = {theirs}", other.region)));
            }
        }
        for last in evidence.finals_of(bucket.id) {
            if let Some(digest) = last.digests.iter().find(|digest| digest.bucket == bucket.id && digest.diverged) {
                let sentence = format!(
                    "region {} found that shard {} of bucket {} has diverged",
                    last.region, digest.shard, bucket.name
                );
                return Err(broken("converge", sentence));
            }
        }
    }
    Ok(stats)
}

fn difference(ours: &Final, theirs: &Final) -> Option<(String, String, String)> {
    let keys = ours.contents.keys().chain(theirs.contents.keys());
    let mut different = keys.filter(|key| ours.contents.get(key) != theirs.contents.get(key));
    let key = different.next()?;
    Some((show::key(key), show::found(ours.contents.get(key)), show::found(theirs.contents.get(key))))
}
