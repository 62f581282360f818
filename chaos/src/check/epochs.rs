//! FEN-1: epochs only rise. Strong answers and acknowledgements never carry a lower epoch than one before them, and the
//! metadata plane never changes a bucket's primary without raising its epoch, nor tells two nodes different things.

use std::collections::BTreeMap;

use meridian_types::{BucketId, Epoch, ReadLevel, RegionId};

use super::{Evidence, Stats, Violation, broken};
use crate::history::Operation;
use crate::trace::Fact;

/// Epochs only rise.
pub(super) fn check(evidence: &Evidence) -> Result<Stats, Violation> {
    let told = answers(evidence)?;
    let recorded = metadata(evidence)?;
    Ok(Stats { checked: told + recorded, undecided: 0 })
}

fn answers(evidence: &Evidence) -> Result<u64, Violation> {
    let mut checked = 0;
    let decisive =
        |it: &&Operation| it.level().is_none_or(|level| *level == ReadLevel::Strong) && it.answer().is_some();
    let mut by_end: Vec<&Operation> = evidence.operations.iter().filter(decisive).collect();
    by_end.sort_by_key(|it| it.ended_us);
    let mut ended = by_end.into_iter().peekable();
    let mut highest: BTreeMap<BucketId, (Epoch, &Operation)> = BTreeMap::new();
    for operation in evidence.operations.iter().filter(decisive) {
        while let Some(before) = ended.next_if(|before| before.precedes(operation)) {
            let (Some(answer), Some(bucket)) = (before.answer(), evidence.bucket_of(before)) else { continue };
            let known = highest.entry(bucket.id).or_insert((answer.epoch, before));
            if known.0 < answer.epoch {
                *known = (answer.epoch, before);
            }
        }
        let (Some(answer), Some(bucket)) = (operation.answer(), evidence.bucket_of(operation)) else { continue };
        checked += 1;
        if let Some((epoch, before)) = highest.get(&bucket.id).filter(|(epoch, _)| *epoch > answer.epoch) {
            let sentence =
                format!("bucket {} was answered for under epoch {} after epoch {epoch}", bucket.name, answer.epoch);
            return Err(broken("epochs", sentence).showing(before).showing(operation));
        }
    }
    Ok(checked)
}

fn metadata(evidence: &Evidence) -> Result<u64, Violation> {
    let mut checked = 0;
    let mut known: BTreeMap<(BucketId, u64), (Epoch, Option<RegionId>)> = BTreeMap::new();
    for record in evidence.records.iter().flatten() {
        let Fact::BucketKnown { replica, index, bucket, epoch, primary } = &record.fact else { continue };
        checked += 1;
        let first = *known.entry((*bucket, *index)).or_insert((*epoch, *primary));
        if first != (*epoch, *primary) {
            let sentence = format!(
                "two nodes know different things of bucket {bucket} at metadata index {index}: epoch {} and, on node {}, epoch {epoch}",
                first.0, replica.node
            );
            return Err(broken("epochs", sentence));
        }
    }
    let pairs = known.iter().zip(known.iter().skip(1));
    for (((bucket, index), (epoch, primary)), ((next_bucket, _), (next_epoch, next_primary))) in pairs {
        if bucket != next_bucket {
            continue;
        }
        // Between two primaries an epoch has none; it gets one, once.
        let changed = next_primary != primary && primary.is_some();
        if next_epoch < epoch || (next_epoch == epoch && changed) {
            let sentence = format!(
                "bucket {bucket} went from epoch {epoch} (primary {primary:?}) to epoch {next_epoch} (primary {next_primary:?}) after metadata index {index}"
            );
            return Err(broken("epochs", sentence));
        }
    }
    Ok(checked)
}
