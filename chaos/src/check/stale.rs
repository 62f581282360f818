//! CON-3: a read bounded to t never misses a write that was acknowledged more than t before it was asked.
//!
//! A replica measures staleness by its own clock, in whole milliseconds; the observer allows for the clock's drift
//! and for the rounding.

use meridian_types::ReadLevel;

use super::floor::Floor;
use super::{Evidence, Limits, Stats, Violation, broken, show};

/// Rounding of two readings of a millisecond clock, in microseconds.
const ROUNDING_US: u64 = 2_000;

/// Bounded reads keep their bound.
pub(super) fn check(evidence: &Evidence) -> Result<Stats, Violation> {
    let mut stats = Stats::default();
    for (bucket, key, operations) in evidence.keys() {
        let floor = Floor::of(evidence, bucket, key, &operations);
        for operation in operations {
            let Some(ReadLevel::Bounded { staleness_ms_max }) = operation.level() else { continue };
            for (_, found) in operation.found().into_iter().filter(|(it, _)| *it == key) {
                stats.checked += 1;
                let since_us =
                    operation.begun_us.saturating_sub(allowance_us(&evidence.setup.limits, *staleness_ms_max));
                if let Some(mark) = floor.before(since_us)
                    && !floor.allows(&mark, found, operation.ended_us)
                {
                    let sentence =
                        format!("a read of {} bounded to {staleness_ms_max} ms was staler than that", show::key(key));
                    return Err(broken("stale", sentence).showing(mark.by).showing(operation));
                }
            }
        }
    }
    Ok(stats)
}

/// The most true time that a claim of so many milliseconds may stand for, in microseconds.
pub(super) fn allowance_us(limits: &Limits, claimed_ms: u64) -> u64 {
    let claimed_us = u128::from(claimed_ms) * 1000;
    let drift_us = claimed_us * 2 * u128::from(limits.drift_ppm) / 1_000_000;
    u64::try_from(claimed_us + drift_us).unwrap_or(u64::MAX).saturating_add(ROUNDING_US)
}
