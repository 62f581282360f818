//! Reads entries back from segments, along the points of an index.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use meridian_types::GroupId;

use super::index::Point;
use super::scan::Scanner;
use super::segment::Segment;
use super::state::{Entry, EntryId};

/// The entries of one group that a read is to return.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) group: GroupId,
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) bytes_max: u64,
}

/// Reads what is wanted, at least one entry. `segments` holds the segment of each point.
pub(crate) fn read(wanted: Wanted, route: &[(Point, Arc<Segment>)]) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut room = wanted.bytes_max;
    for (at, (point, segment)) in route.iter().enumerate() {
        let end = route.get(at + 1).map_or(wanted.to, |(next, _)| next.index.min(wanted.to));
        let mut scanner = Scanner::new(segment, point.offset);
        let mut next = point.index;
        while next < end {
            let found = scanner.next()?;
            let (_, header, payload) = found.map_err(|damage| damaged(segment, point, &damage))?;
            if header.group != wanted.group || !header.kind.is_entry() || header.index != next {
                continue;
            }
            next += 1;
            if header.index < wanted.from {
                continue;
            }
            let id = EntryId { term: header.term, index: header.index };
            let entry = Entry { id, kind: header.kind, payload: Bytes::copy_from_slice(payload) };
            if entry.bytes() > room && !entries.is_empty() {
                return Ok(entries);
            }
            room = room.saturating_sub(entry.bytes());
            entries.push(entry);
        }
    }
    Ok(entries)
}

fn damaged(segment: &Segment, point: &Point, damage: &super::record::Damage) -> io::Error {
    let place = format!("{} behind offset {}", segment.path.display(), point.offset);
    io::Error::new(io::ErrorKind::InvalidData, format!("the log is damaged in {place}: {damage}"))
}
