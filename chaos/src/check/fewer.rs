//! DEG-1: fewer copies than the policy asks are acknowledged only while DEGRADED is on record, or was and SYNC is not again yet.
//!
//! On record is what some node's copy of the metadata says: from when the first one knows of DEGRADED until the first one knows
//! of SYNC. The primary may learn of RECOVERING later than others; of SYNC it may not, for that rests on its own word. Nor need it have heard
//! that another epoch has begun: then it acts under the one before, for as long as its lease lasts ([`super::writer`]).

use std::collections::HashMap;

use meridian_types::{BucketId, Epoch, Request};

use super::{Evidence, Stats, Violation, broken, show};
use crate::trace::{Copies, Fact, Record};

/// Nobody acknowledges fewer copies by itself.
pub(super) fn check(evidence: &Evidence) -> Result<Stats, Violation> {
    let mut stats = Stats::default();
    let Some(records) = evidence.records.as_deref() else { return Ok(stats) };
    let stretches = stretches(evidence);
    for known in evidence.all_writes() {
        let (Some(answer), Some(bucket)) = (known.answer, evidence.bucket_of(known.operation)) else { continue };
        let Request::Write { ack, .. } = &known.operation.request else { continue };
        let required = evidence.required(bucket.id, answer.epoch);
        let claimed = answer.durability.map_or(0, |it| usize::from(it.regions));
        let holders = evidence.members.holders(bucket.id, answer.epoch);
        stats.checked += 1;
        let asked = ack.required_regions(1, holders);
        let (begun_us, ended_us) = (known.operation.begun_us, known.operation.ended_us);
        let covered = within(&stretches, (bucket.id, answer.epoch), begun_us, ended_us);
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

/// The same at the very moment a primary's node said so.
fn acknowledged(evidence: &Evidence, records: &[Record], stretches: &Stretches) -> Result<u64, Violation> {
    let mut checked = 0;
    for record in records {
        let Fact::Acknowledged { replica, origin, bucket, epoch, regions, .. } = &record.fact else { continue };
        let known = evidence.setup.buckets.iter().find(|it| it.id == *bucket && replica.region == *origin);
        let Some(needed) = known.map(|bucket| evidence.required(bucket.id, *epoch)) else { continue };
        checked += 1;
        if usize::from(*regions) < needed && !within(stretches, (*bucket, *epoch), record.at_us, record.at_us) {
            let sentence = format!(
                "node {} of region {origin} acknowledged a write of bucket {bucket} in {regions} regions at {}; {needed} are needed, and DEGRADED was not on record",
                replica.node,
                show::seconds(record.at_us)
            );
            let known = stretches.get(&(*bucket, *epoch)).map_or(&[][..], Vec::as_slice).iter();
            return Err(known.fold(broken("fewer", sentence), |it, (since, until)| {
                it.showing(format!("it was from {} to {}", show::seconds(*since), show::seconds(*until)))
            }));
        }
    }
    Ok(checked)
}

/// When each bucket could lack copies, by record, under each of its epochs.
type Stretches = HashMap<(BucketId, Epoch), Vec<(u64, u64)>>;

fn within(stretches: &Stretches, of: (BucketId, Epoch), from_us: u64, to_us: u64) -> bool {
    stretches.get(&of).is_some_and(|it| it.iter().any(|(since, until)| *since <= to_us && from_us <= *until))
}

fn stretches(evidence: &Evidence) -> Stretches {
    let mut stretches = Stretches::new();
    for bucket in &evidence.setup.buckets {
        for word in evidence.policies.words(bucket.id) {
            let known = stretches.entry((bucket.id, word.epoch)).or_default();
            match (word.copies, known.last_mut()) {
                (Copies::Sync, Some(last)) if last.1 == u64::MAX => last.1 = word.since_us,
                (Copies::Degraded, Some(last)) if last.1 == u64::MAX => {}
                (Copies::Degraded, _) => known.push((word.since_us, u64::MAX)),
                (Copies::Sync | Copies::Recovering, _) => {}
            }
        }
    }
    stretches
}
