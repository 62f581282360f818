//! Liveness: once the world is whole again, everything works within a bound: every kind of operation on every bucket
//! succeeds soon, later ones neither fail nor last, and no client waits for ever.

use std::collections::BTreeMap;

use meridian_types::{BucketId, ReadLevel, RefusalKind, Request};

use super::{Evidence, Stats, Violation, broken, show};
use crate::history::{Operation, Told};

/// The kind of operation that not every bucket serves.
const STRONG: &str = "strong read";

/// After the heal and a while, everything works.
pub(super) fn check(evidence: &Evidence) -> Result<Stats, Violation> {
    let mut stats = Stats::default();
    let Some(healed_us) = evidence.healed_us else { return Ok(stats) };
    let limits = evidence.setup.limits;
    let settled_us = healed_us.saturating_add(limits.recovery_us);
    joined(evidence, healed_us)?;
    let mut first_success: BTreeMap<(BucketId, &'static str), Option<u64>> = BTreeMap::new();
    for operation in evidence.operations.iter().filter(|it| it.begun_us >= healed_us) {
        let Some(bucket) = evidence.bucket_of(operation) else { continue };
        stats.checked += 1;
        let soonest = first_success.entry((bucket.id, kind(operation))).or_default();
        if worked(operation) {
            *soonest = Some(soonest.map_or(operation.ended_us, |at| at.min(operation.ended_us)));
        }
        let late = operation.begun_us >= settled_us;
        let lasted_us = operation.ended_us.saturating_sub(operation.begun_us);
        if late && !worked(operation) {
            let sentence = format!(
                "an operation failed {} after everything was whole again",
                show::seconds(operation.begun_us - healed_us)
            );
            return Err(broken("live", sentence).showing(operation));
        }
        if late && lasted_us > limits.operation_us {
            let sentence = format!("an operation took {} in a world that is whole", show::seconds(lasted_us));
            return Err(broken("live", sentence).showing(operation));
        }
    }
    for ((bucket, kind), soonest) in first_success {
        // Asked for until every region came to write, and not any more (seed 931346).
        if kind == STRONG && evidence.policies.words(bucket).last().is_some_and(|it| !it.policy.has_primary()) {
            continue;
        }
        if soonest.is_none_or(|at| at > settled_us) {
            let sentence = format!(
                "no {kind} in bucket {bucket} succeeded within {} of the heal",
                show::seconds(limits.recovery_us)
            );
            let tries = evidence.operations.iter().filter(|it| it.begun_us >= healed_us);
            let last =
                tries.filter(|it| self::kind(it) == kind && evidence.bucket_of(it).is_some_and(|it| it.id == bucket));
            let violation = broken("live", sentence);
            return Err(match last.last() {
                Some(operation) => violation.showing(operation),
                None => violation,
            });
        }
    }
    if stats.checked == 0 {
        stats.undecided = 1;
    }
    Ok(stats)
}

/// Whoever joins is filled, and counts.
fn joined(evidence: &Evidence, healed_us: u64) -> Result<(), Violation> {
    let over_us = evidence.records.iter().flatten().last().map_or(0, |record| record.at_us);
    for bucket in &evidence.setup.buckets {
        let Some((region, since_us)) = evidence.members.joining(bucket.id) else { continue };
        if over_us > since_us.max(healed_us).saturating_add(evidence.setup.limits.recovery_us) {
            let sentence = format!(
                "region {region} has been joining bucket {} since {}, and does not count yet at {}",
                bucket.name,
                show::seconds(since_us),
                show::seconds(over_us)
            );
            return Err(broken("live", sentence));
        }
    }
    Ok(())
}

fn kind(operation: &Operation) -> &'static str {
    match &operation.request {
        Request::Write { .. } => "write",
        Request::Read { level, .. } => match level {
            ReadLevel::Strong => STRONG,
            ReadLevel::Session => "session read",
            ReadLevel::Bounded { .. } => "bounded read",
            ReadLevel::Eventual => "eventual read",
        },
    }
}

/// Answered, or refused for a reason that is the request's own.
fn worked(operation: &Operation) -> bool {
    match &operation.told {
        Told::Done(_) => true,
        Told::Refused(refusal) => match refusal.kind {
            RefusalKind::Conflict | RefusalKind::Invalid | RefusalKind::Exists => true,
            RefusalKind::Stale => !waits(operation),
            RefusalKind::Retry
            | RefusalKind::Redirect
            | RefusalKind::Fenced
            | RefusalKind::NotFound
            | RefusalKind::Unavailable
            | RefusalKind::Corrupt
            | RefusalKind::Denied
            | RefusalKind::Internal
            | RefusalKind::Consent => false,
        },
        Told::Nothing => false,
    }
}

/// Whether a replica that is too stale was to be waited for.
fn waits(operation: &Operation) -> bool {
    matches!(&operation.request, Request::Read { stale: meridian_types::StalePolicy::Wait, .. })
}
