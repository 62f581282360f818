//! CON-1, looked at a second time and in another way than [`super::linear`]: every write has a version, and versions rise
//! along the one history a bucket with a primary has. So nothing needs to be searched: in real time, versions never fall.
//!
//! Finds most of what the search finds, and some of what it can't: a write that got an older version than one
//! acknowledged before it would lose to it in a region that merges by version. Where every region came to write, what they wrote is
//! behind all of before, and before all that one region orders then: each stamps above what it has applied.

use meridian_types::ReadLevel;

use super::floor::Floor;
use super::{Evidence, Stats, Violation, broken, show};

/// Strong reads and writes of a key move forward in real time.
pub(super) fn check(evidence: &Evidence) -> Result<Stats, Violation> {
    let mut stats = Stats::default();
    for (bucket, key, operations) in evidence.keys() {
        let ordered = |operation| evidence.stretch_of(bucket.id, operation).is_some();
        if !operations.iter().any(|it| ordered(it)) {
            continue;
        }
        let floor = Floor::of(evidence, bucket, key, &operations);
        for known in evidence.writes(bucket.id, key).filter(|known| ordered(known.operation)) {
            let Some(version) = known.version else { continue };
            stats.checked += 1;
            if let Some(mark) = floor.before(known.operation.begun_us)
                && mark.version >= version
            {
                let sentence = format!(
                    "a write of {} was ordered before one that had been acknowledged or read when it began",
                    show::key(key)
                );
                return Err(broken("order", sentence).showing(mark.by).showing(known.operation));
            }
        }
        for operation in operations.iter().filter(|it| it.level() == Some(&ReadLevel::Strong) && ordered(it)) {
            for (_, found) in operation.found().into_iter().filter(|(it, _)| *it == key) {
                stats.checked += 1;
                if let Some(mark) = floor.before(operation.begun_us)
                    && !floor.allows(&mark, found, operation.ended_us)
                {
                    let sentence = format!("a strong read of {} went back behind what was certain", show::key(key));
                    return Err(broken("order", sentence).showing(mark.by).showing(operation));
                }
            }
        }
    }
    Ok(stats)
}
