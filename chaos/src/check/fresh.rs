//! Honest freshness (CON-3): an answer that claims to be at most s milliseconds stale is, at every level.

use super::floor::Floor;
use super::stale::allowance_us;
use super::{Evidence, Stats, Violation, broken, show};

/// No answer is staler than it says.
pub(super) fn check(evidence: &Evidence) -> Result<Stats, Violation> {
    let mut stats = Stats::default();
    for (bucket, key, operations) in evidence.keys() {
        let floor = Floor::of(evidence, bucket, key, &operations);
        for operation in operations {
            let Some(claimed_ms) = operation.answer().and_then(|answer| answer.freshness.staleness_ms) else {
                continue;
            };
            for (_, found) in operation.found().into_iter().filter(|(it, _)| *it == key) {
                stats.checked += 1;
                let since_us = operation.begun_us.saturating_sub(allowance_us(&evidence.setup.limits, claimed_ms));
                if let Some(mark) = floor.before(since_us)
                    && !floor.allows(&mark, found, operation.ended_us)
                {
                    let sentence = format!(
                        "an answer for {} said it was at most {claimed_ms} ms stale, and missed an older write",
                        show::key(key)
                    );
                    return Err(broken("fresh", sentence).showing(mark.by).showing(operation));
                }
            }
        }
    }
    Ok(stats)
}
