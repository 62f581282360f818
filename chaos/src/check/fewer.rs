//! DEG-1: fewer copies than the policy asks are acknowledged only while DEGRADED is on record, or was and SYNC is not again yet.
//!
//! On record is what some node's copy of the metadata says: from when the first one knows of DEGRADED until the first one knows
//! of SYNC. The primary may learn of RECOVERING later than others; of SYNC it may not, for that rests on its own word.

use std::collections::{BTreeMap, HashMap};

use meridian_types::{Bucket, BucketId, Policy, Request};

use super::{Evidence, Stats, Violation, broken, show};
use crate::trace::{Copies, Fact, Record};

/// Nobody acknowledges fewer copies by itself.
pub(super) fn check(evidence: &Evidence) -> Result<Stats, Violation> {
    let mut stats = Stats::default();
    let Some(records) = evidence.records.as_deref() else { return Ok(stats) };
    let stretches = stretches(records);
    for known in evidence.all_writes() {
        let (Some(answer), Some(bucket)) = (known.answer, evidence.bucket_of(known.operation)) else { continue };
        let Request::Write { ack, .. } = &known.operation.request else { continue };
        let Some(required) = required(bucket) else { continue };
        let (claimed, holders) = (answer.durability.map_or(0, |it| usize::from(it.regions)), bucket.regions.len());
        stats.checked += 1;
        let asked = ack.required_regions(1, holders);
        let covered = within(&stretches, bucket.id, known.operation.begun_us, known.operation.ended_us);
        if claimed < asked || (claimed < ack.required_regions(required, holders) && !covered) {
            let sentence = format!(
                "a write that needs {} regions was acknowledged with {claimed}, and DEGRADED was not on record",
                ack.required_regions(required, holders)
            );
            return Err(broken("fewer", sentence).showing(known.operation));
        }
    }
    stats.checked += acknowledged(evidence, records, &stretches)?;
    Ok(stats)
}

/// What the policy asks, of those that may have fewer.
fn required(bucket: &Bucket) -> Option<usize> {
    let Policy::Sync { .. } = bucket.policy else { return None };
    bucket.policy.degrade_after_ms().map(|_| bucket.policy.required_regions(bucket.regions.len()))
}

/// The same at the very moment a primary's node said so.
fn acknowledged(evidence: &Evidence, records: &[Record], stretches: &Stretches) -> Result<u64, Violation> {
    let mut checked = 0;
    let needs: HashMap<BucketId, usize> =
        evidence.setup.buckets.iter().filter_map(|it| Some((it.id, required(it)?))).collect();
    for record in records {
        let Fact::Acknowledged { replica, origin, bucket, regions, .. } = &record.fact else { continue };
        let Some(needed) = needs.get(bucket).filter(|_| replica.region == *origin) else { continue };
        checked += 1;
        if usize::from(*regions) < *needed && !within(stretches, *bucket, record.at_us, record.at_us) {
            let sentence = format!(
                "node {} of region {origin} acknowledged a write of bucket {bucket} in {regions} regions at {}; {needed} are needed, and DEGRADED was not on record",
                replica.node,
                show::seconds(record.at_us)
            );
            let known = stretches.get(bucket).map_or(&[][..], Vec::as_slice).iter();
            return Err(known.fold(broken("fewer", sentence), |it, (since, until)| {
                it.showing(format!("it was from {} to {}", show::seconds(*since), show::seconds(*until)))
            }));
        }
    }
    Ok(checked)
}

/// When each bucket could lack copies, by record.
type Stretches = HashMap<BucketId, Vec<(u64, u64)>>;

fn within(stretches: &Stretches, bucket: BucketId, from_us: u64, to_us: u64) -> bool {
    stretches.get(&bucket).is_some_and(|it| it.iter().any(|(since, until)| *since <= to_us && from_us <= *until))
}

fn stretches(records: &[Record]) -> Stretches {
    let mut first: BTreeMap<(BucketId, u64), (u64, Copies)> = BTreeMap::new();
    for record in records {
        if let Fact::CopiesKnown { index, bucket, copies, .. } = &record.fact {
            first.entry((*bucket, *index)).or_insert((record.at_us, *copies));
        }
    }
    let mut stretches = Stretches::new();
    for ((bucket, _), (at_us, copies)) in first {
        let known = stretches.entry(bucket).or_default();
        match (copies, known.last_mut()) {
            (Copies::Sync, Some(last)) if last.1 == u64::MAX => last.1 = at_us,
            (Copies::Degraded, Some(last)) if last.1 == u64::MAX => {}
            (Copies::Degraded, _) => known.push((at_us, u64::MAX)),
            (Copies::Sync | Copies::Recovering, _) => {}
        }
    }
    stretches
}
