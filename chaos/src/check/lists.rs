//! CON-1, ONE-1 and ORD-1 by looking at lists that are only ever appended to: every list that anybody saw, anywhere, is
//! a beginning of the longest one; every item is in it once; an acknowledged item is in every later strong read.
//!
//! An item is text in square brackets, unique in its run ([`crate::workload`] writes them so).

use std::collections::{HashMap, HashSet};

use meridian_types::{Bucket, Key, Outcome, ReadLevel, Write};

use super::{Evidence, Known, Stats, Violation, broken, show};
use crate::history::Operation;

/// Lists only grow, each item once.
pub(super) fn check(evidence: &Evidence) -> Result<Stats, Violation> {
    let mut stats = Stats::default();
    for (bucket, key, operations) in evidence.keys() {
        let Some(list) = List::of(evidence, bucket, key, &operations)? else { continue };
        stats.checked += list.sightings.len() as u64;
        list.compare(key)?;
        list.complete(key)?;
        list.lengths(key)?;
    }
    Ok(stats)
}

/// A list as somebody saw it.
struct Sighting<'a> {
    text: &'a [u8],
    /// What saw it; `None` for the final look.
    by: Option<&'a Operation>,
    /// Everything acknowledged before this time must be in it.
    since_us: Option<u64>,
}

struct List<'a> {
    appends: Vec<(&'a [u8], Known<'a>)>,
    sightings: Vec<Sighting<'a>>,
}

impl<'a> List<'a> {
    fn of(
        evidence: &'a Evidence,
        bucket: &Bucket,
        key: &Key,
        operations: &[&'a Operation],
    ) -> Result<Option<List<'a>>, Violation> {
        let mut list = List { appends: Vec::new(), sightings: Vec::new() };
        for known in evidence.writes(bucket.id, key) {
            let Write::Append { suffix, .. } = known.write else { return Ok(None) };
            list.appends.push((suffix.as_bytes().as_ref(), known));
        }
        if list.appends.is_empty() {
            return Ok(None);
        }
        for operation in operations {
            let strong = operation.level() == Some(&ReadLevel::Strong);
            for (_, found) in operation.found().into_iter().filter(|(it, _)| *it == key) {
                let text = found.map_or(&[][..], |found| found.value.as_ref());
                let since_us = strong.then_some(operation.begun_us);
                list.sightings.push(Sighting { text, by: Some(operation), since_us });
            }
        }
        let whole = evidence.setup.disks_lost.is_empty();
        for last in evidence.finals_of(bucket.id) {
            let text = last.contents.get(key).map_or(&[][..], |found| found.value.as_ref());
            list.sightings.push(Sighting { text, by: None, since_us: whole.then_some(u64::MAX) });
        }
        list.sightings.sort_by_key(|sighting| sighting.text.len());
        Ok(Some(list))
    }

    /// Each is a beginning of the next longer one, and the longest holds only items that were appended, once.
    fn compare(&self, key: &Key) -> Result<(), Violation> {
        for pair in self.sightings.windows(2) {
            if let [shorter, longer] = pair
                && !longer.text.starts_with(shorter.text)
            {
                let sentence = format!("two lists seen at {} are not one the beginning of the other", show::key(key));
                return Err(shown(shown(broken("lists", sentence), shorter), longer));
            }
        }
        let Some(longest) = self.sightings.last() else { return Ok(()) };
        let appended: HashSet<&[u8]> = self.appends.iter().map(|(item, _)| *item).collect();
        let mut seen = HashSet::new();
        for item in items(longest.text) {
            let fault = if !appended.contains(item) {
                "holds an item that nobody appended"
            } else if !seen.insert(item) {
                "holds an item twice"
            } else {
                continue;
            };
            let sentence = format!("the list {} {fault}: {}", show::key(key), show::bytes(item));
            let mut violation = shown(broken("lists", sentence), longest);
            if let Some((_, known)) = self.appends.iter().find(|(appended, _)| *appended == item) {
                violation = violation.showing(known.operation);
            }
            return Err(violation);
        }
        Ok(())
    }

    /// What was acknowledged before a strong read, or before the end, is in it.
    fn complete(&self, key: &Key) -> Result<(), Violation> {
        let Some(longest) = self.sightings.last() else { return Ok(()) };
        // All are beginnings of the longest: an item's place in it says which sightings have it.
        let mut end = 0;
        let mut ends = HashMap::new();
        for item in items(longest.text) {
            end += item.len();
            ends.insert(item, end);
        }
        for sighting in &self.sightings {
            let Some(since_us) = sighting.since_us else { continue };
            for (item, known) in &self.appends {
                let certain = known.answer.is_some() && known.operation.ended_us < since_us;
                if certain && ends.get(item).is_none_or(|end| *end > sighting.text.len()) {
                    let sentence = format!("an acknowledged item is missing in the list {}", show::key(key));
                    return Err(shown(broken("lists", sentence).showing(known.operation), sighting));
                }
            }
        }
        Ok(())
    }

    /// The length that an append was told is where its item ends.
    fn lengths(&self, key: &Key) -> Result<(), Violation> {
        let Some(longest) = self.sightings.last() else { return Ok(()) };
        for (item, known) in &self.appends {
            let Some(Outcome::Length { length, .. }) = known.answer.map(|answer| &answer.outcome) else { continue };
            let Some(until) = usize::try_from(*length).ok().filter(|until| *until <= longest.text.len()) else {
                continue;
            };
            if !longest.text[..until].ends_with(item) {
                let sentence = format!("an append to {} was told another place than its item has", show::key(key));
                return Err(shown(broken("lists", sentence).showing(known.operation), longest));
            }
        }
        Ok(())
    }
}

fn shown(violation: Violation, sighting: &Sighting<'_>) -> Violation {
    match sighting.by {
        Some(operation) => violation.showing(operation),
        None => violation.showing(format!("in the end: {}", show::bytes(sighting.text))),
    }
}

fn items(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split_inclusive(|byte| *byte == b']')
}
