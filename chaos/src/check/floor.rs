//! For one key, what was certainly the case by some time: the newest version among those acknowledged or read strongly
//! before. A read that owes its client that much and returns less is a violation, whatever promise it owed it under.

use meridian_types::request::Found;
use meridian_types::{Bucket, Key, ReadLevel, Version, Write};

use super::Evidence;
use crate::history::Operation;

/// What was certain from some time on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark<'a> {
    /// From when on.
    pub(super) since_us: u64,
    /// The version: nothing older may be in force.
    pub(super) version: Version,
    /// Whether that version is a value, or a removal.
    pub(super) is_value: bool,
    /// Who was told.
    pub(super) by: &'a Operation,
}

/// All that was certain about one key.
#[derive(Debug)]
pub(super) struct Floor<'a> {
    /// By time; each at least as new as the one before.
    marks: Vec<Mark<'a>>,
    /// Removals that may have happened, with their version if it is known, and when they began.
    removals: Vec<(Option<Version>, u64)>,
}

impl<'a> Floor<'a> {
    /// Of everything that was done to a key.
    pub(super) fn of(evidence: &'a Evidence, bucket: &Bucket, key: &Key, operations: &[&'a Operation]) -> Floor<'a> {
        let mut marks: Vec<Mark<'a>> = Vec::new();
        let mut removals = Vec::new();
        for known in evidence.writes(bucket.id, key) {
            let is_value = !matches!(known.write, Write::Delete { .. });
            if !is_value {
                removals.push((known.version, known.operation.begun_us));
            }
            if let (Some(_), Some(version)) = (known.answer, known.version) {
                marks.push(Mark { since_us: known.operation.ended_us, version, is_value, by: known.operation });
            }
        }
        for operation in operations.iter().filter(|it| it.level() == Some(&ReadLevel::Strong)) {
            let found = operation.found().into_iter().find_map(|(it, found)| found.filter(|_| it == key));
            if let Some(found) = found {
                let since_us = operation.ended_us;
                marks.push(Mark { since_us, version: found.version, is_value: true, by: operation });
            }
        }
        marks.sort_by_key(|mark| (mark.since_us, mark.version));
        let mut newest: Option<Mark<'a>> = None;
        for mark in &mut marks {
            match newest {
                Some(newest) if newest.version > mark.version => {
                    *mark = Mark { since_us: mark.since_us, ..newest };
                }
                _ => newest = Some(*mark),
            }
        }
        Floor { marks, removals }
    }

    /// What was certain before that time.
    pub(super) fn before(&self, us: u64) -> Option<Mark<'a>> {
        let place = self.marks.partition_point(|mark| mark.since_us < us);
        place.checked_sub(1).map(|at| self.marks[at])
    }

    /// Whether a look that ended at `ended_us` may have found that, given what was certain.
    pub(super) fn allows(&self, mark: &Mark<'_>, found: Option<&Found>, ended_us: u64) -> bool {
        self.allows_version(mark.version, mark.is_value, found, ended_us)
    }

    /// The same for a version that came from elsewhere, such as a session's own reads.
    pub(super) fn allows_version(
        &self,
        version: Version,
        is_value: bool,
        found: Option<&Found>,
        ended_us: u64,
    ) -> bool {
        match found {
            Some(found) => found.version >= version,
            None if !is_value => true,
            None => self
                .removals
                .iter()
                .any(|(removed, begun_us)| *begun_us <= ended_us && removed.is_none_or(|removed| removed > version)),
        }
    }
}
