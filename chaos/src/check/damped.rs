//! What a bucket's owner allowed the cluster to do by itself, and how often: a link that flaps must not move a primary to and fro.
//! Between two automatic failovers of a bucket lies its least interval, after one that was given up a while, and in a day there are
//! no more than it may have.
//!
//! The product counts by wall clocks, and this by true time, from when some node first heard: in a world where a clock was set
//! nobody is asked.

use super::{Evidence, Failover, Stats, Violation, broken, show};
use crate::trace::Fact;

/// How long after one that was given up another may not begin, in microseconds.
const AGAIN_AFTER_US: u64 = 30_000_000;

/// How much later than it was put on record something may be heard of: as long as a command may take.
const HEARD_WITHIN_US: u64 = 10_000_000;

/// A day, in microseconds: longer than any run.
const DAY_US: u64 = 24 * 3_600_000_000;

/// No bucket fails over by itself more often than it may.
pub(super) fn check(evidence: &Evidence) -> Result<Stats, Violation> {
    let mut stats = Stats::default();
    let records = evidence.records.as_deref().unwrap_or_default();
    let is_set = |fact: &Fact| matches!(fact, Fact::Fault { what, .. } if what.starts_with("Step"));
    if records.iter().any(|record| is_set(&record.fact)) {
        return Ok(Stats { checked: 0, undecided: 1 });
    }
    for bucket in &evidence.setup.buckets {
        let interval_us = bucket.auto.interval_ms_min.saturating_mul(1000);
        let automatic = |it: &&Failover| it.automatic && it.bucket == bucket.id;
        let mut before: Vec<&Failover> = Vec::new();
        for failover in evidence.forks.failovers.iter().filter(automatic) {
            stats.checked += 1;
            let mut done = 0;
            for earlier in &before {
                let Some((ended_us, _)) = earlier.end else { continue };
                let took = earlier.fork().is_some();
                let rest_us = if took { interval_us } else { AGAIN_AFTER_US };
                done += u32::from(took && failover.begun_us < ended_us.saturating_add(DAY_US));
                if failover.begun_us.saturating_add(HEARD_WITHIN_US) < ended_us.saturating_add(rest_us) {
                    let sentence = format!(
                        "bucket {} began to fail over by itself at {}, though one had ended at {} and {} are to lie between",
                        bucket.id,
                        show::seconds(failover.begun_us),
                        show::seconds(ended_us),
                        show::seconds(rest_us)
                    );
                    return Err(broken("damped", sentence));
                }
            }
            if done >= bucket.auto.per_day_max {
                let sentence = format!(
                    "bucket {} began to fail over by itself at {}, after {done} times within a day; {} are allowed",
                    bucket.id,
                    show::seconds(failover.begun_us),
                    bucket.auto.per_day_max
                );
                return Err(broken("damped", sentence));
            }
            before.push(failover);
        }
    }
    Ok(stats)
}
