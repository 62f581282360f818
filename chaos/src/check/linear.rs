//! CON-1: strong reads and writes of a bucket with a primary are linearizable, key by key, by exhaustive search
//! (Porcupine, after Wing & Gong and Lowe).
//!
//! A write without an answer may take effect at any time after it began: its end is open. Most of those were never seen
//! by anybody. They are left out at first, for each doubles the search; only if the history makes no sense
//! without them are they put back.
//!
//! A bucket that all regions wrote for a while has several such histories, one for each stretch of epochs with a primary ([`super::kinds`]). Each
//! begins with what all regions had by then ([`begin`]).

mod begin;
mod model;

use std::collections::BTreeMap;
use std::time::Duration;

use meridian_types::{Epoch, Key, ReadLevel, Request};
use porcupine_rs::{CheckResult, Operation as Event, check_operations_timeout};

use self::model::{Act, Cell, Held};
use super::kinds::FIRST;
use super::{Evidence, Stats, Violation, broken, show};
use crate::history::{Operation, Told};

/// How long one key may be searched. Thousands of times what a key of a few hundred operations takes.
const SEARCH_MAX: Duration = Duration::from_secs(10);

/// The most operations that a violation shows.
const SHOWN_MAX: usize = 24;

/// Every key of a bucket with a primary behaves like one copy, for as long as it has one.
pub(super) fn check(evidence: &Evidence) -> Result<Stats, Violation> {
    let mut stats = Stats::default();
    for (bucket, key, operations) in evidence.keys() {
        let mut stretches: BTreeMap<Epoch, Vec<&Operation>> = BTreeMap::new();
        for operation in operations.into_iter().filter(|it| counts(it)) {
            if let Some(stretch) = evidence.stretch_of(bucket.id, operation) {
                stretches.entry(stretch).or_default().push(operation);
            }
        }
        for (stretch, strong) in stretches {
            let Some(begin) = begin::held(evidence, bucket.id, key, stretch) else {
                stats.undecided += 1;
                continue;
            };
            if strong.len() < 2 && begin == Held::Absent {
                continue;
            }
            match search(&strong, (key, &begin)) {
                CheckResult::Ok => stats.checked += strong.len() as u64,
                CheckResult::Unknown => stats.undecided += 1,
                CheckResult::Illegal => {
                    let smallest = shorten(strong, (key, &begin));
                    let mut sentence = format!(
                        "no order of the strong operations on {} of bucket {} explains what their clients were told",
                        show::key(key),
                        bucket.name
                    );
                    if stretch != FIRST {
                        sentence +=
                            &format!(" once every region had written it up to epoch {stretch} and left {begin}");
                    }
                    let violation = broken("linear", sentence);
                    return Err(smallest.iter().fold(violation, |it, operation| it.showing(operation)));
                }
            }
        }
    }
    Ok(stats)
}

/// Writes that may have happened, and answered strong reads.
fn counts(operation: &Operation) -> bool {
    match &operation.request {
        Request::Write { .. } => !operation.is_without_effect(),
        Request::Read { level, .. } => *level == ReadLevel::Strong && operation.answer().is_some(),
    }
}

/// A key, and what it holds in the beginning.
type Of<'a> = (&'a Key, &'a Held);

fn search(operations: &[&Operation], (key, begin): Of<'_>) -> CheckResult {
    let events = |of: &dyn Fn(&Operation) -> bool| -> Vec<Event<Cell>> {
        let each = operations.iter().filter(|it| of(it)).map(|it| event(it, key));
        (*begin != Held::Absent).then(|| first(begin)).into_iter().chain(each).collect()
    };
    let without = check_operations_timeout(&events(&|it| it.answer().is_some()), SEARCH_MAX);
    if without == CheckResult::Ok || operations.iter().all(|it| it.answer().is_some()) {
        return without;
    }
    check_operations_timeout(&events(&|_| true), SEARCH_MAX)
}

/// What comes before everything else.
fn first(begin: &Held) -> Event<Cell> {
    Event { client_id: None, call_time: -2, return_time: -1, op: Act::Begins(begin.clone()), metadata: None }
}

fn event(operation: &Operation, key: &Key) -> Event<Cell> {
    let open = !matches!(operation.told, Told::Done(_));
    Event {
        client_id: Some(operation.client),
        call_time: i64::try_from(operation.begun_us).unwrap_or(i64::MAX),
        return_time: if open { i64::MAX } else { i64::try_from(operation.ended_us).unwrap_or(i64::MAX) },
        op: Act::of(operation, key),
        metadata: None,
    }
}

/// The shortest beginning that can't be explained, and of that its end: what went wrong is there.
fn shorten<'a>(operations: Vec<&'a Operation>, of: Of<'_>) -> Vec<&'a Operation> {
    let mut by_end = operations;
    by_end.sort_by_key(|it| (it.ended_us, it.begun_us));
    let (mut good, mut bad) = (0, by_end.len());
    while good + 1 < bad {
        let middle = good.midpoint(bad);
        match search(&by_begin(&by_end, middle), of) {
            CheckResult::Illegal => bad = middle,
            CheckResult::Ok | CheckResult::Unknown => good = middle,
        }
    }
    let mut shortest = by_begin(&by_end, bad);
    shortest.drain(..shortest.len().saturating_sub(SHOWN_MAX));
    shortest
}

/// What had begun by the time the last of the first `count` to end ended; those still under way are unknown then.
fn by_begin<'a>(by_end: &[&'a Operation], count: usize) -> Vec<&'a Operation> {
    let mut taken: Vec<&Operation> = by_end[..count].to_vec();
    let until_us = taken.last().map_or(0, |it| it.ended_us);
    let under_way = by_end[count..].iter().filter(|it| it.begun_us <= until_us);
    taken.extend(under_way.filter(|it| matches!(it.request, Request::Write { .. })));
    taken.sort_by_key(|it| (it.begun_us, it.client));
    taken
}
