//! Opens what a former process left: replays the segments, cuts a torn tail, refuses damage (DUR-3).
//!
//! A bad record is the torn tail of the last sync, or it is damage. A record of batch n + 1 was written
//! only after batch n was on disk. So when, behind a bad record, a valid one is found that
//! - belongs to a batch later than the first one that can be torn, or begins it: what is bad had been synced: damage;
//! - belongs to that batch but does not begin it: the disk wrote the pages of one unfinished sync out of order: torn.
//!
//! Nothing found: torn. Only unacknowledged records are ever cut (DUR-1).

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use meridian_types::{GroupId, NodeId};

use super::record::{Damage, Header, Kind};
use super::scan::Scanner;
use super::segment::{self, Opened, RECORDS_AT, Segment};
use super::state::{EntryId, State};
use crate::error::OpenError;

/// What was found, and where to go on.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) groups: BTreeMap<GroupId, State>,
    /// All segments, ascending.
    pub(crate) segments: Vec<Arc<Segment>>,
    /// Per segment, the highest index of each group in it.
    pub(crate) held: BTreeMap<u64, BTreeMap<GroupId, u64>>,
    /// The segment that the log goes on in, with the offset; the first of a new log does not exist yet.
    pub(crate) tail: Option<(Arc<Segment>, u64)>,
    /// A segment that was prepared but never written to.
    pub(crate) next: Option<Segment>,
    /// The number of the next batch.
    pub(crate) batch: u64,
}

/// Replays the log in `dir`.
pub(crate) fn recover(dir: &Path, node: NodeId) -> Result<Recovered, OpenError> {
    let segments = open_segments(dir, node)?;
    let mut replay = Replay::default();
    let mut tail = None;
    let mut unused = Vec::new();
    for segment in &segments {
        match tail {
            None => {
                let end = replay.segment(segment)?;
                tail = (!end.sealed).then_some((Arc::clone(segment), end));
            }
            // Behind the tail there may only be a prepared segment: a seal is synced before the next is begun.
            Some((ref torn, end)) => {
                let mut scanner = Scanner::new(segment, RECORDS_AT);
                match scanner.next().map_err(|error| read_error(segment, error))? {
                    Ok(_) => {
                        return Err(replay.corrupt(torn, end.offset, "it ends before the segment that follows it"));
                    }
                    Err(_) => unused.push(Arc::clone(segment)),
                }
            }
        }
    }
    let tail = match tail {
        Some((segment, end)) => {
            replay.cut(&segment, end)?;
            Some((segment, end.offset))
        }
        None => None,
    };
    finish(replay, segments, tail, unused)
}

fn finish(
    mut replay: Replay,
    mut segments: Vec<Arc<Segment>>,
    tail: Option<(Arc<Segment>, u64)>,
    unused: Vec<Arc<Segment>>,
) -> Result<Recovered, OpenError> {
    for state in replay.groups.values_mut() {
        if let (Some(committed), last) = (state.committed, state.last)
            && last.is_none_or(|last| committed.index > last.index)
        {
            state.committed = last;
        }
    }
    replay.check_beginnings(&segments)?;
    segments.retain(|segment| unused.iter().all(|unused| unused.id != segment.id));
    let mut unused = unused.into_iter();
    let next = unused.next().and_then(|next| Arc::try_unwrap(next).ok());
    // One more may have been prepared while the log was about to move on to the first.
    for segment in unused {
        let removed = std::fs::remove_file(&segment.path);
        removed.map_err(|source| OpenError::Io { action: "removing", path: segment.path.clone(), source })?;
    }
    Ok(Recovered { groups: replay.groups, segments, held: replay.held, tail, next, batch: replay.batch + 1 })
}

fn open_segments(dir: &Path, node: NodeId) -> Result<Vec<Arc<Segment>>, OpenError> {
    let io = |action, path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Io { action, path, source }
    };
    let mut found: BTreeMap<u64, PathBuf> = BTreeMap::new();
    for item in std::fs::read_dir(dir).map_err(io("listing", dir))? {
        let item = item.map_err(io("listing", dir))?;
        let name = item.file_name().to_string_lossy().into_owned();
        if let Some(id) = segment::id_of(&name) {
            found.insert(id, item.path());
        } else if segment::is_spare(&name) {
            std::fs::remove_file(item.path()).map_err(io("removing", &item.path()))?;
        }
    }
    let mut segments: Vec<Arc<Segment>> = Vec::new();
    for (id, path) in found {
        match Segment::open(&path, id).map_err(io("reading", &path))? {
            Opened::Segment(_, found) if found != node => {
                return Err(OpenError::WrongNode { dir: dir.to_owned(), found, expected: node });
            }
            Opened::Segment(segment, _) => segments.push(Arc::new(segment)),
            Opened::Unknown(found) => {
                return Err(OpenError::UnknownFormat { file: path, found, known: segment::FORMAT });
            }
            // Retired, and about to be another segment when the process ended: nothing in it is needed.
            Opened::Unfinished if segments.is_empty() => std::fs::remove_file(&path).map_err(io("removing", &path))?,
            Opened::Unfinished => return Err(missing(&path, "its header is damaged")),
        }
    }
    for pair in segments.windows(2) {
        if pair[0].id + 1 != pair[1].id {
            return Err(missing(&segment::path(dir, pair[0].id + 1), "the file is missing"));
        }
    }
    Ok(segments)
}

fn missing(file: &Path, detail: &str) -> OpenError {
    OpenError::Corrupt { file: file.to_owned(), offset: 0, groups: Vec::new(), detail: detail.to_owned() }
}

fn read_error(segment: &Segment, source: io::Error) -> OpenError {
    OpenError::Io { action: "reading", path: segment.path.clone(), source }
}

/// Where a segment's records end.
#[derive(Clone, Copy, Debug)]
struct End {
    offset: u64,
    sealed: bool,
    /// The end of what the disk wrote of an unfinished sync; nothing of it may ever be read again.
    leftover_end: u64,
}

#[derive(Debug, Default)]
struct Replay {
    groups: BTreeMap<GroupId, State>,
    held: BTreeMap<u64, BTreeMap<GroupId, u64>>,
    batch: u64,
}

impl Replay {
    /// Takes in every record of a segment.
    fn segment(&mut self, segment: &Segment) -> Result<End, OpenError> {
        self.held.entry(segment.id).or_default();
        let mut scanner = Scanner::new(segment, RECORDS_AT);
        loop {
            let next = scanner.next().map_err(|error| read_error(segment, error))?;
            match next {
                Ok((_, header, _)) if header.kind == Kind::Seal => {
                    self.batch = header.batch;
                    return Ok(End { offset: scanner.offset(), sealed: true, leftover_end: 0 });
                }
                Ok((offset, header, payload)) if header.batch >= self.batch => {
                    self.batch = header.batch;
                    self.record(segment.id, offset, &header, payload);
                }
                Ok((offset, _, _)) => return Err(self.corrupt(segment, offset, "a record of an earlier sync")),
                Err(damage) => return self.end(segment, scanner.offset(), damage),
            }
        }
    }

    /// Decides whether the bad record at `offset` is a torn tail or damage.
    fn end(&self, segment: &Segment, offset: u64, damage: Damage) -> Result<End, OpenError> {
        let mut scanner = Scanner::new(segment, offset);
        let mut leftover_end = offset;
        let mut more = scanner.seek().map_err(|error| read_error(segment, error))?;
        while more {
            let found = scanner.next().map_err(|error| read_error(segment, error))?;
            if let Ok((_, header, _)) = found {
                if header.batch > self.batch + 1 || (header.batch == self.batch + 1 && header.first) {
                    return Err(self.corrupt(segment, offset, &damage.to_string()));
                }
                leftover_end = scanner.offset();
            } else {
                more = scanner.seek().map_err(|error| read_error(segment, error))?;
            }
        }
        Ok(End { offset, sealed: false, leftover_end })
    }

    /// Wipes what an unfinished sync left behind the tail, so that new records can't run into it.
    fn cut(&self, segment: &Segment, end: End) -> Result<(), OpenError> {
        if end.leftover_end > end.offset {
            let wipe = usize::try_from(end.leftover_end - end.offset).unwrap_or_default();
            tracing::warn!(file = %segment.path.display(), offset = end.offset, bytes = wipe, "cut the torn tail of the log");
            let written = segment.file.write_all_at(&vec![0; wipe], end.offset).and_then(|()| segment.file.sync_data());
            written.map_err(|source| OpenError::Io { action: "writing", path: segment.path.clone(), source })?;
        }
        Ok(())
    }

    fn record(&mut self, segment: u64, offset: u64, header: &Header, payload: &[u8]) {
        let state = self.groups.entry(header.group).or_default();
        let id = EntryId { term: header.term, index: header.index };
        match header.kind {
            Kind::Normal | Kind::Blank | Kind::Membership => {
                let held = self.held.entry(segment).or_default().entry(header.group).or_default();
                *held = (*held).max(header.index);
                if state.last.is_none() {
                    state.begin = header.index;
                }
                if header.index >= state.first() {
                    state.index.place(header.index, segment, offset);
                    state.last = Some(id);
                }
            }
            Kind::Vote => state.vote = Some(Bytes::copy_from_slice(payload)),
            Kind::Committed => state.committed = Some(id),
            Kind::Truncate => {
                // Encoded as the index before which entries stay, so that "all" can be said too.
                let keep = header.index.checked_sub(1).map(|index| EntryId { term: header.term, index });
                state.index.truncate_from(header.index);
                state.truncate(keep);
            }
            Kind::Purge => {
                state.purge(id);
                state.index.purge(id.index);
            }
            Kind::Seal | Kind::Synced => {}
        }
    }

    /// The first entry of every group must be the one after its purge mark: otherwise a segment is missing.
    fn check_beginnings(&self, segments: &[Arc<Segment>]) -> Result<(), OpenError> {
        for (group, state) in &self.groups {
            let first = state.first();
            let end = state.end();
            let route = state.index.route(first, first + 1);
            let found = route.first().is_some_and(|point| point.index <= first);
            if first < end && !(found && (first == 0 || state.purged.is_some())) {
                let file = segments.first().map(|segment| segment.path.clone()).unwrap_or_default();
                let detail = format!("entries from {first} on are missing");
                return Err(OpenError::Corrupt { file, offset: 0, groups: vec![*group], detail });
            }
        }
        Ok(())
    }

    fn corrupt(&self, segment: &Segment, offset: u64, detail: &str) -> OpenError {
        OpenError::Corrupt {
            file: segment.path.clone(),
            offset,
            groups: self.groups.keys().copied().collect(),
            detail: detail.to_owned(),
        }
    }
}
