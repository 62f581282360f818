//! CON-1 and ONE-1 by arithmetic, without any search: a counter is the sum of its increments, each counted once.
//!
//! An unknown increment may or may not count, so a sum lies between bounds; without unknown ones the bounds meet.

use std::collections::BTreeMap;

use meridian_types::{Bucket, Epoch, Key, ReadLevel, Version, Write};

use super::{Evidence, Known, Stats, Violation, broken, show};
use crate::history::Operation;

/// An increment that took effect: its version, and by how much.
type Step<'a> = (Version, i64, &'a Known<'a>);

/// Counters are the sums of their increments.
pub(super) fn check(evidence: &Evidence) -> Result<Stats, Violation> {
    let mut stats = Stats::default();
    for (bucket, key, operations) in evidence.keys() {
        let Some(counter) = Counter::of(evidence, bucket, key) else { continue };
        let strong = |it: &&&Operation| it.level() == Some(&ReadLevel::Strong);
        for operation in operations.iter().filter(strong) {
            for (_, found) in operation.found().into_iter().filter(|(it, _)| *it == key) {
                stats.checked += 1;
                let read = value(found.map_or(b"0", |found| found.value.as_ref()));
                let bounds = counter.bounds(operation.begun_us, operation.ended_us);
                if read.is_none_or(|read| read < bounds.0 || read > bounds.1) {
                    let sentence = format!(
                        "a strong read of counter {} must lie between {} and {}",
                        show::key(key),
                        bounds.0,
                        bounds.1
                    );
                    return Err(broken("counters", sentence).showing(operation));
                }
            }
        }
        stats.checked += counter.steps(evidence, bucket, key)?;
        stats.checked += counter.finals(evidence, bucket, key)?;
    }
    Ok(stats)
}

struct Counter<'a> {
    increments: Vec<(i64, Known<'a>)>,
}

impl<'a> Counter<'a> {
    /// `None` when the key is anything but a counter.
    fn of(evidence: &'a Evidence, bucket: &Bucket, key: &Key) -> Option<Counter<'a>> {
        let mut increments = Vec::new();
        for known in evidence.writes(bucket.id, key) {
            let Write::Increment { by, .. } = known.write else { return None };
            increments.push((*by, known));
        }
        (!increments.is_empty()).then_some(Counter { increments })
    }

    /// The least and the most it can be for an observer who looked between these times.
    fn bounds(&self, begun_us: u64, ended_us: u64) -> (i64, i64) {
        let mut bounds = (0i64, 0i64);
        for (by, known) in &self.increments {
            let certain = known.answer.is_some() && known.operation.ended_us < begun_us;
            let possible = known.operation.begun_us <= ended_us;
            if certain {
                bounds = (bounds.0 + by, bounds.1 + by);
            } else if possible {
                bounds = (bounds.0 + by.min(&0), bounds.1 + by.max(&0));
            }
        }
        bounds
    }

    /// In the order of versions, each acknowledged value is the one before plus its own increment, and plus what unknown
    /// ones may have added; where one region goes on with what all had counted, from that.
    fn steps(&self, evidence: &Evidence, bucket: &Bucket, key: &Key) -> Result<u64, Violation> {
        let mut stretches: BTreeMap<Epoch, Vec<Step<'_>>> = BTreeMap::new();
        for (by, it) in &self.increments {
            let place = it.version.zip(evidence.stretch_of(bucket.id, it.operation));
            if let Some((version, stretch)) = place {
                stretches.entry(stretch).or_default().push((version, *by, it));
            }
        }
        let mut checked = 0;
        for (stretch, known) in stretches {
            let before = evidence.before_stretch(bucket.id, key, stretch).map(|it| match it.write {
                Write::Increment { by, .. } => *by,
                _ => 0,
            });
            checked += self.steps_from(before.sum(), known, key)?;
        }
        Ok(checked)
    }

    fn steps_from(&self, begin: i64, mut known: Vec<Step<'_>>, key: &Key) -> Result<u64, Violation> {
        known.sort_by_key(|(version, ..)| *version);
        let lost = self.increments.iter().filter(|(_, it)| it.version.is_none());
        let slack = lost.fold((0i64, 0i64), |slack, (by, _)| (slack.0 + by.min(&0), slack.1 + by.max(&0)));
        let mut last = (begin, begin);
        let mut before: Option<&Known<'_>> = None;
        for (_, by, it) in &known {
            let expected = (last.0 + by, last.1 + by);
            match it.operation.counted() {
                None => last = expected,
                Some(told) if told >= expected.0 + slack.0 && told <= expected.1 + slack.1 => last = (told, told),
                Some(told) => {
                    let sentence = format!(
                        "an increment of {} came to {told}; by the order of versions it is {}",
                        show::key(key),
                        expected.0
                    );
                    let mut violation = broken("counters", sentence);
                    if let Some(before) = before {
                        violation = violation.showing(before.operation);
                    }
                    return Err(violation.showing(it.operation));
                }
            }
            before = Some(it);
        }
        Ok(known.len() as u64)
    }

    fn finals(&self, evidence: &Evidence, bucket: &Bucket, key: &Key) -> Result<u64, Violation> {
        if !evidence.setup.disks_lost.is_empty() {
            return Ok(0);
        }
        let bounds = self.bounds(u64::MAX, u64::MAX);
        let mut checked = 0;
        for last in evidence.finals_of(bucket.id) {
            checked += 1;
            let read = value(last.contents.get(key).map_or(b"0", |found| found.value.as_ref()));
            if read.is_none_or(|read| read < bounds.0 || read > bounds.1) {
                let sentence = format!(
                    "in the end counter {} of bucket {} is {} in region {}; the acknowledged increments come to between {} and {}",
                    show::key(key),
                    bucket.name,
                    read.map_or_else(|| "no number".to_owned(), |read| read.to_string()),
                    last.region,
                    bounds.0,
                    bounds.1
                );
                return Err(broken("counters", sentence));
            }
        }
        Ok(checked)
    }
}

fn value(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}
