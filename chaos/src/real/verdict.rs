//! What must be true once everything has healed: every region has every acknowledged write, nothing twice,
//! and digests at equal positions are equal.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use meridian_client::{Bucket, BucketName, Client};
use meridian_types::{BucketDigest, BucketId, ShardId};
use tokio::time::Instant;

use super::load::{Ledger, counter_key, list_key};

/// Waits until every region stands at the same positions for every bucket, and compares.
///
/// # Errors
/// One sentence per shard whose digests differ, or that did not come to equal positions within `patience`.
pub async fn regions_are_equal(client: &Client, buckets: &[&str], patience: Duration) -> Result<(), Vec<String>> {
    let until = Instant::now() + patience;
    loop {
        let mut differences = Vec::new();
        for bucket in buckets {
            differences.extend(compare(client, bucket).await);
        }
        let settled = differences.is_empty() || differences.iter().any(|difference| difference.is_final);
        if settled || Instant::now() >= until {
            let sentences: Vec<String> = differences.into_iter().map(|difference| difference.sentence).collect();
            return if sentences.is_empty() { Ok(()) } else { Err(sentences) };
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

struct Difference {
    sentence: String,
    /// Waiting won't mend it: the inputs are equal and the digests are not.
    is_final: bool,
}

async fn compare(client: &Client, bucket: &str) -> Vec<Difference> {
    let waiting = |sentence: String| vec![Difference { sentence, is_final: false }];
    let Ok(name) = BucketName::new(bucket) else { return waiting(format!("{bucket} is no bucket name")) };
    let regions = match client.admin().digests(Some(&name)).await {
        Ok(regions) => regions,
        Err(error) => return waiting(format!("digests of {bucket}: {error}")),
    };
    let mut first: Option<(String, Rows)> = None;
    let mut differences = Vec::new();
    for region in regions {
        let rows = match region.answer {
            Ok(rows) => rows,
            Err(error) => return waiting(format!("digests of {bucket} in {}: {error}", region.region)),
        };
        for row in rows.iter().filter(|row| row.diverged) {
            let sentence = format!("{bucket} shard {} has diverged in {}", row.shard, region.region);
            differences.push(Difference { sentence, is_final: true });
        }
        let rows = rows.into_iter().map(|row| ((row.bucket, row.shard), row.digest)).collect();
        match &first {
            None => first = Some((region.region.to_string(), rows)),
            Some((name, expected)) => {
                let there = region.region.as_str();
                differences.extend(differing(bucket, (name, expected), (there, &rows)));
            }
        }
    }
    differences
}

type Rows = BTreeMap<(BucketId, ShardId), BucketDigest>;

fn differing(bucket: &str, (here, ours): (&str, &Rows), (there, theirs): (&str, &Rows)) -> Vec<Difference> {
    let keys: BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
    let none = BucketDigest::default();
    keys.into_iter()
        .filter_map(|key| {
            let (a, b) = (ours.get(key).unwrap_or(&none), theirs.get(key).unwrap_or(&none));
            let shard = key.1;
            match a.agrees_with(b) {
                Some(true) => None,
                Some(false) => Some(Difference {
                    sentence: format!(
                        "{bucket} shard {shard}: {here} has {} ({} keys), {there} has {} ({} keys) at {:?}",
                        a.hash, a.keys, b.hash, b.keys, a.positions
                    ),
                    is_final: true,
                }),
                None => Some(Difference {
                    sentence: format!(
                        "{bucket} shard {shard}: {here} is at {:?}, {there} at {:?}",
                        a.positions, b.positions
                    ),
                    is_final: false,
                }),
            }
        })
        .collect()
}

/// Compares what writers remember with what one region has. Call once regions are equal; reads are eventual,
/// so that it is this region's own copy that is doubted.
///
/// # Errors
/// One sentence per violation: an acknowledged write that is missing (DUR-1), or one that took effect twice (ONE-1).
pub async fn ledger_is_kept(bucket: &Bucket, ledger: &Ledger) -> Result<(), Vec<String>> {
    let mut violations = ledger.surprises.clone();
    check_counter(bucket, ledger, &mut violations).await;
    check_list(bucket, ledger, &mut violations).await;
    check_puts(bucket, ledger, &mut violations).await;
    if violations.is_empty() { Ok(()) } else { Err(violations) }
}

async fn check_counter(bucket: &Bucket, ledger: &Ledger, violations: &mut Vec<String>) {
    let key = counter_key(ledger.writer);
    let read = bucket.get(key.clone()).eventual().await;
    let value = match read.map(meridian_client::Got::into_value) {
        Ok(value) => value.unwrap_or_else(|| bytes::Bytes::from_static(b"0")),
        Err(error) => return violations.push(format!("{}: reading {key}: {error}", ledger.bucket)),
    };
    let value: i64 = std::str::from_utf8(&value).ok().and_then(|text| text.parse().ok()).unwrap_or(-1);
    let least = ledger.increments.acknowledged;
    let most = least + ledger.increments.unknown;
    if value < least {
        violations
            .push(format!("{}: {key} is {value}, but {least} increments were acknowledged (DUR-1)", ledger.bucket));
    }
    if value > most {
        violations.push(format!("{}: {key} is {value}, but only {most} increments were sent (ONE-1)", ledger.bucket));
    }
}

/// The list must be the acknowledged tokens in order; an unknown one may stand anywhere, once.
async fn check_list(bucket: &Bucket, ledger: &Ledger, violations: &mut Vec<String>) {
    if ledger.appends.is_empty() {
        return;
    }
    let key = list_key(ledger.writer);
    let value = match bucket.get(key.clone()).eventual().await.map(meridian_client::Got::into_value) {
        Ok(value) => value.unwrap_or_default(),
        Err(error) => return violations.push(format!("{}: reading {key}: {error}", ledger.bucket)),
    };
    let text = String::from_utf8_lossy(&value).into_owned();
    let mut acknowledged = ledger.appends.iter().filter(|(_, acknowledged)| *acknowledged).map(|(token, _)| token);
    let mut unknown: BTreeSet<&String> =
        ledger.appends.iter().filter(|(_, acknowledged)| !acknowledged).map(|(token, _)| token).collect();
    let mut next = acknowledged.next();
    for token in text.split_inclusive(',').map(str::to_owned) {
        if next == Some(&token) {
            next = acknowledged.next();
        } else if !unknown.remove(&token) {
            let expected = next.map_or("the end", String::as_str);
            violations.push(format!(
                "{}: {key} has `{token}` where `{expected}` must be: lost, doubled or out of order (DUR-1, ONE-1, ORD-1)",
                ledger.bucket
            ));
            return;
        }
    }
    if let Some(missing) = next {
        violations.push(format!("{}: {key} lacks the acknowledged `{missing}` (DUR-1)", ledger.bucket));
    }
}

async fn check_puts(bucket: &Bucket, ledger: &Ledger, violations: &mut Vec<String>) {
    let keys: Vec<&String> = ledger.puts.keys().collect();
    for keys in keys.chunks(500) {
        let values = match bucket.multi_get(keys.iter().map(|key| key.as_str())).eventual().await {
            Ok(values) => values.found,
            Err(error) => return violations.push(format!("{}: reading puts: {error}", ledger.bucket)),
        };
        for (key, found) in keys.iter().zip(values) {
            let right = found.as_ref().is_some_and(|found| found.value == key.as_bytes());
            if !right && (ledger.puts[*key] || found.is_some()) {
                violations.push(format!("{}: {key} is {found:?}, though it was acknowledged (DUR-1)", ledger.bucket));
            }
        }
    }
}
