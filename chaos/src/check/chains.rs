//! CON-1 for conditions: no update is lost. A version is replaced by at most one compare-and-set, and no condition
//! holds that nobody could have seen hold. Where every region writes there are none ([`super::crossed`]).

use std::collections::HashMap;

use meridian_types::request::Found;
use meridian_types::{Version, Write};

use super::floor::Floor;
use super::{Evidence, Known, Stats, Violation, broken, show};

/// Conditions that held, held once.
pub(super) fn check(evidence: &Evidence) -> Result<Stats, Violation> {
    let mut stats = Stats::default();
    for (bucket, key, operations) in evidence.keys() {
        let floor = Floor::of(evidence, bucket, key, &operations);
        let mut replaced: HashMap<Version, Known<'_>> = HashMap::new();
        for known in evidence.writes(bucket.id, key) {
            let expected = match known.write {
                Write::CompareAndSet { expected, .. } => *expected,
                Write::PutIfAbsent { .. } => None,
                _ => continue,
            };
            // An unknown one counts once it is known to have happened.
            if known.version.is_none() {
                continue;
            }
            stats.checked += 1;
            if let Some(expected) = expected
                && let Some(first) = replaced.insert(expected, known)
            {
                let sentence = format!("two updates of {} replaced the same version: one was lost", show::key(key));
                return Err(broken("chains", sentence).showing(first.operation).showing(known.operation));
            }
            let held = expected.map(|version| Found { value: bytes::Bytes::new(), version, expires_at_ms: None });
            // One that nobody answered may have happened long after its client had given it up (seed 400737).
            let until_us = known.answer.map_or(u64::MAX, |_| known.operation.ended_us);
            if let Some(mark) = floor.before(known.operation.begun_us)
                && !floor.allows(&mark, held.as_ref(), until_us)
            {
                let sentence = format!("a condition on {} held although it was certain not to", show::key(key));
                return Err(broken("chains", sentence).showing(mark.by).showing(known.operation));
            }
        }
    }
    Ok(stats)
}
