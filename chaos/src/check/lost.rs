//! DUR-1 and DUR-2: no acknowledged write is lost. After the heal every region holds it, or something newer.
//!
//! A write that fewer regions held than lost their disks is rightly gone: it promised no more.

use meridian_types::{Version, Write};

use super::floor::Floor;
use super::{Evidence, Known, Stats, Violation, broken, show};

/// Every acknowledged value is there in the end, or replaced by a newer one.
pub(super) fn check(evidence: &Evidence) -> Result<Stats, Violation> {
    let mut stats = Stats::default();
    if evidence.finals.is_empty() {
        return Ok(stats);
    }
    for (bucket, key, operations) in evidence.keys() {
        let floor = Floor::of(evidence, bucket, key, &operations);
        let promised = evidence.writes(bucket.id, key).filter(|known| survives(evidence, known));
        let newest: Option<(Version, Known<'_>)> = promised
            .filter(|known| !matches!(known.write, Write::Delete { .. }))
            .filter_map(|known| Some((known.version?, known)))
            .max_by_key(|(version, _)| *version);
        let Some((version, known)) = newest else { continue };
        for last in evidence.finals_of(bucket.id) {
            stats.checked += 1;
            let found = last.contents.get(key);
            if !floor.allows_version(version, true, found, u64::MAX) {
                let sentence = format!(
                    "an acknowledged write of {} in bucket {} is lost: in the end region {} has {}",
                    show::key(key),
                    bucket.name,
                    last.region,
                    show::found(found)
                );
                return Err(broken("lost", sentence).showing(known.operation));
            }
        }
    }
    Ok(stats)
}

fn survives(evidence: &Evidence, known: &Known<'_>) -> bool {
    let regions = known.answer.and_then(|answer| answer.durability).map(|durability| durability.regions);
    regions.is_some_and(|regions| usize::from(regions) > evidence.setup.disks_lost.len())
}
