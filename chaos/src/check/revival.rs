//! CON-5: a deleted key does not come back. In the end no region holds a value older than an acknowledged delete.

use meridian_types::{Version, Write};

use super::{Evidence, Known, Stats, Violation, broken, show};

/// What was deleted stays deleted, unless it was written anew.
pub(super) fn check(evidence: &Evidence) -> Result<Stats, Violation> {
    let mut stats = Stats::default();
    for (bucket, key, _) in evidence.keys() {
        let deletes = evidence.writes(bucket.id, key).filter(|known| matches!(known.write, Write::Delete { .. }));
        let acknowledged = deletes.filter(|known| {
            let regions = known.answer.and_then(|answer| answer.durability).map_or(0, |it| usize::from(it.regions));
            regions > evidence.setup.disks_lost.len()
        });
        let newest: Option<(Version, Known<'_>)> =
            acknowledged.filter_map(|known| Some((known.version?, known))).max_by_key(|(version, _)| *version);
        let Some((version, known)) = newest else { continue };
        for last in evidence.finals_of(bucket.id) {
            stats.checked += 1;
            if let Some(found) = last.contents.get(key).filter(|found| found.version < version) {
                let sentence = format!(
                    "{} of bucket {} came back: region {} has {} in the end",
                    show::key(key),
                    bucket.name,
                    last.region,
                    show::found(Some(found))
                );
                return Err(broken("revival", sentence).showing(known.operation));
            }
        }
    }
    Ok(stats)
}
