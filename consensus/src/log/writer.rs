//! The one place that writes the log: everything that waits becomes one batch, one write, one sync (DUR-1).
//!
//! Whoever holds the writer writes: the log's own thread, or an engine's thread when that spares a hand-over.
//! Notices are called after the sync, never before. A failed sync is the end: what the kernel dropped
//! can't be written again, so trying again and succeeding would be a lie.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use meridian_failpoint::failpoint;
use meridian_types::GroupId;

use super::queue::{Notice, Op, Wait, What};
use super::record::{self, Header, Kind};
use super::segment::{RECORDS_AT, Segment};
use super::spare::is_disk_full;
use super::state::EntryId;
use super::{GroupLog, Shared};
use crate::poison::Poison;

/// After so much silence the last batch is followed by a mark that says it was synced.
pub(crate) const IDLE: Duration = Duration::from_millis(20);
/// A sync slower than this is worth a hand-over to the log's own thread, which costs some 30 µs each way.
const QUICK_SYNC: Duration = Duration::from_millis(2);
/// A dozen small entries. While the log's own thread syncs more than that, the engine has others' entries to work on.
const QUICK_BYTES: u64 = 4 << 10;
/// The records of one op besides its entries: a commit mark, or a vote.
const OVERHEAD_BYTES: u64 = 256;
/// How long to wait when a disk has no space for blocks that it had already given.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// The end of the log, and what is being written to it.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    poison: Poison,
    segment: Arc<Segment>,
    /// Where the next write goes.
    offset: u64,
    batch: u64,
    /// The batch has a first record.
    begun: bool,
    /// The last batch is followed by a mark.
    marked: bool,
    /// How long the last sync took.
    last_sync: Duration,
    /// Empty; kept for its room.
    ops: Vec<Op>,
    buffer: Vec<u8>,
    effects: Vec<Effect>,
    /// Queue bytes in the buffer.
    queued: u64,
    /// Per segment, the highest index of each group in it; what keeps a segment from being retired.
    held: BTreeMap<u64, BTreeMap<GroupId, u64>>,
    /// Durable purge marks.
    purged: BTreeMap<GroupId, u64>,
}

/// What becomes true once the buffer is on disk.
enum Effect {
    Placed { group: Arc<GroupLog>, number: u64, places: Vec<(u64, u64)>, segment: u64 },
    Truncated { group: Arc<GroupLog>, from: u64 },
    Purged { group: Arc<GroupLog>, up_to: u64 },
    Appended { group: GroupId, notice: Notice },
    Voted { notice: Notice },
}

/// The log's own thread: writes what nobody else does, and marks the end of the log when it is at rest.
pub(crate) fn run(shared: &Shared, writer: &Mutex<Writer>) {
    let mut idle = None;
    loop {
        let found = shared.queue.wait(idle);
        let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
        match found {
            Wait::Work => {
                writer.write();
                idle = Some(IDLE);
            }
            Wait::Idle => {
                writer.mark();
                idle = None;
            }
            Wait::Closed => return,
        }
    }
}

impl Writer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        poison: Poison,
        (segment, offset): (Arc<Segment>, u64),
        batch: u64,
        held: BTreeMap<u64, BTreeMap<GroupId, u64>>,
    ) -> Writer {
        let purged =
            shared.groups().iter().filter_map(|(id, group)| Some((*id, group.state().purged?.index))).collect();
        Writer {
            shared,
            poison,
            segment,
            offset,
            batch,
            begun: false,
            marked: true,
            last_sync: Duration::ZERO,
            ops: Vec::new(),
            buffer: Vec::with_capacity(1 << 20),
            effects: Vec::new(),
            queued: 0,
            held,
            purged,
        }
    }

    /// Writes and syncs everything that waits.
    pub(crate) fn write(&mut self) {
        let shared = Arc::clone(&self.shared);
        let _running = shared.syncing.start();
        let mut ops = std::mem::take(&mut self.ops);
        self.shared.queue.take(&mut ops);
        self.marked = false;
        let mut each = ops.drain(..);
        let done = each.try_for_each(|op| self.encode(op)).and_then(|()| self.flush());
        if let Err(error) = done {
            let rest = each.collect();
            return self.give_up(rest, &error);
        }
        drop(each);
        self.ops = ops;
    }

    /// Whether what waits is written within the time of one quick sync: no new segment is needed, and the disk was
    /// quick the last time.
    pub(crate) fn is_quick(&self) -> bool {
        let (ops, bytes) = self.shared.queue.waiting();
        let records = bytes + (ops as u64 + 1) * OVERHEAD_BYTES;
        bytes <= QUICK_BYTES && self.last_sync <= QUICK_SYNC && self.offset + records <= self.segment.bytes
    }

    /// Puts an op into the buffer; rotates on the way if the segment is full.
    fn encode(&mut self, op: Op) -> io::Result<()> {
        let group = op.group;
        match op.what {
            What::Append { number, entries, notice } => {
                self.committed(&group)?;
                let mut places = Vec::with_capacity(entries.len());
                let mut segment = self.segment.id;
                for entry in &entries {
                    let at = self.record(group.id, entry.kind, entry.id, &entry.payload)?;
                    if self.segment.id != segment {
                        self.placed(&group, number, std::mem::take(&mut places), segment);
                        segment = self.segment.id;
                    }
                    places.push((entry.id.index, at));
                    self.queued += entry.bytes();
                    self.held.entry(segment).or_default().insert(group.id, entry.id.index);
                }
                self.placed(&group, number, places, segment);
                self.effects.push(Effect::Appended { group: group.id, notice });
            }
            What::Vote { vote, notice } => {
                self.record(group.id, Kind::Vote, EntryId { term: 0, index: 0 }, &vote)?;
                self.effects.push(Effect::Voted { notice });
            }
            What::Truncate { after } => {
                let from = after.map_or(0, |after| after.index + 1);
                let mark = EntryId { term: after.map_or(0, |after| after.term), index: from };
                self.record(group.id, Kind::Truncate, mark, &[])?;
                self.effects.push(Effect::Truncated { group, from });
            }
            What::Purge { up_to } => {
                self.record(group.id, Kind::Purge, up_to, &[])?;
                self.effects.push(Effect::Purged { group, up_to: up_to.index });
            }
        }
        Ok(())
    }

    fn placed(&mut self, group: &Arc<GroupLog>, number: u64, places: Vec<(u64, u64)>, segment: u64) {
        self.effects.push(Effect::Placed { group: Arc::clone(group), number, places, segment });
    }

    /// The commit mark rides along with what is written anyway: it saves work at a restart, nothing rests on it.
    fn committed(&mut self, group: &GroupLog) -> io::Result<()> {
        let committed = {
            let mut state = group.state();
            let news = std::mem::take(&mut state.committed_is_news);
            state.committed.filter(|_| news)
        };
        match committed {
            Some(committed) => self.record(group.id, Kind::Committed, committed, &[]).map(drop),
            None => Ok(()),
        }
    }

    /// Encodes one record and returns the offset it will have.
    fn record(&mut self, group: GroupId, kind: Kind, id: EntryId, payload: &[u8]) -> io::Result<u64> {
        let needed = (record::size(payload.len()) + record::size(0)) as u64;
        if self.offset + self.buffer.len() as u64 + needed > self.segment.bytes {
            self.rotate()?;
        }
        Ok(self.record_unchecked(group, kind, id, payload))
    }

    fn record_unchecked(&mut self, group: GroupId, kind: Kind, id: EntryId, payload: &[u8]) -> u64 {
        let at = self.offset + self.buffer.len() as u64;
        let first = !std::mem::replace(&mut self.begun, true);
        let header =
            Header { kind, group, batch: self.batch, first, index: id.index, term: id.term, length: payload.len() };
        header.encode(self.segment.id, payload, &mut self.buffer);
        at
    }

    /// Writes and syncs the buffer, then lets its effects happen.
    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            // An append of nothing: everything before it is on disk.
            self.happen();
            return Ok(());
        }
        failpoint("log.write.before");
        self.put()?;
        failpoint("log.sync.before");
        let started = Instant::now();
        self.segment.file.sync_data()?;
        failpoint("log.sync.after");
        self.last_sync = started.elapsed();
        self.batch += 1;
        self.begun = false;
        self.shared.syncs.fetch_add(1, Ordering::Relaxed);
        self.happen();
        Ok(())
    }

    fn put(&mut self) -> io::Result<()> {
        loop {
            match self.segment.file.write_all_at(&self.buffer, self.offset) {
                Ok(()) => break,
                // Blocks of a copy-on-write or thin disk can run out under a preallocated file. Nothing was lost yet.
                Err(error) if is_disk_full(&error) => {
                    self.shared.spares.set_disk_full(true);
                    std::thread::sleep(RETRY_EVERY);
                }
                Err(error) => return Err(error),
            }
        }
        self.offset += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn happen(&mut self) {
        let mut purged = false;
        for effect in &self.effects {
            match effect {
                Effect::Placed { group, number, places, segment } => {
                    let mut state = group.state();
                    for (index, offset) in places {
                        state.index.place(*index, *segment, *offset);
                    }
                    state.written = *number;
                }
                Effect::Truncated { group, from } => group.state().index.truncate_from(*from),
                Effect::Purged { group, up_to } => {
                    group.state().index.purge(*up_to);
                    self.purged.insert(group.id, *up_to);
                    purged = true;
                }
                Effect::Appended { .. } | Effect::Voted { .. } => {}
            }
        }
        failpoint("log.notify.before");
        self.notify(|| Ok(()));
        failpoint("log.notify.after");
        self.shared.queue.release(std::mem::take(&mut self.queued));
        self.shared.evict();
        if purged {
            self.retire();
        }
    }

    /// Calls the notices: all of votes, of each group's appends the last, which covers the earlier ones.
    fn notify(&mut self, result: impl Fn() -> io::Result<()>) {
        let mut last: Vec<(GroupId, Notice)> = Vec::new();
        for effect in self.effects.drain(..) {
            match effect {
                Effect::Voted { notice } => notice(result()),
                Effect::Appended { group, notice } => match last.iter_mut().find(|(of, _)| *of == group) {
                    Some((_, last)) => *last = notice,
                    None => last.push((group, notice)),
                },
                Effect::Placed { .. } | Effect::Truncated { .. } | Effect::Purged { .. } => {}
            }
        }
        for (_, notice) in last {
            notice(result());
        }
    }

    /// Ends the segment and goes on in the next, which begins with every group's marks: so none is lost with an old segment.
    fn rotate(&mut self) -> io::Result<()> {
        failpoint("log.rotate.before");
        self.flush()?;
        let Some(next) = self.shared.spares.take() else {
            return Err(io::Error::other("the log was closed while its disk was full"));
        };
        self.record_unchecked(GroupId::METADATA, Kind::Seal, EntryId { term: 0, index: 0 }, &[]);
        // The seal must be on disk before anything in the next segment: recovery rests on that order.
        failpoint("log.seal.before");
        self.flush()?;
        failpoint("log.seal.after");
        self.segment = Arc::new(next);
        self.offset = RECORDS_AT;
        self.shared.add_segment(Arc::clone(&self.segment));
        self.held.entry(self.segment.id).or_default();
        for (id, group) in self.shared.groups() {
            let (vote, purged, committed) = {
                let mut state = group.state();
                state.committed_is_news = false;
                (state.vote.clone(), state.purged, state.committed)
            };
            if let Some(purged) = purged {
                self.record_unchecked(id, Kind::Purge, purged, &[]);
            }
            if let Some(vote) = vote {
                self.record_unchecked(id, Kind::Vote, EntryId { term: 0, index: 0 }, &vote);
            }
            if let Some(committed) = committed {
                self.record_unchecked(id, Kind::Committed, committed, &[]);
            }
        }
        // The marks must be on disk before an older segment that holds them may go.
        failpoint("log.marks.before");
        self.flush()?;
        failpoint("log.marks.after");
        self.retire();
        Ok(())
    }

    /// Gives back segments from the oldest on, as long as no group has an entry in them that it still needs.
    fn retire(&mut self) {
        while let Some(oldest) = self.held.first_entry() {
            let needed = |(group, index): (&GroupId, &u64)| self.purged.get(group).is_none_or(|purged| purged < index);
            if *oldest.key() == self.segment.id || oldest.get().iter().any(needed) {
                return;
            }
            let (id, _) = oldest.remove_entry();
            if let Some(segment) = self.shared.remove_segment(id) {
                failpoint("log.retire.before");
                self.shared.spares.retire(segment);
            }
        }
    }

    /// Not synced: it is only of use once the disk has it, and belongs to the next batch.
    pub(crate) fn mark(&mut self) {
        let needed = 2 * record::size(0) as u64;
        if self.marked || self.begun || self.offset + needed > self.segment.bytes {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let _running = shared.syncing.start();
        self.record_unchecked(GroupId::METADATA, Kind::Synced, EntryId { term: 0, index: 0 }, &[]);
        self.marked = true;
        if let Err(error) = self.put() {
            self.give_up(Vec::new(), &error);
        }
        failpoint("log.mark.after");
    }

    /// The log is closed, and nobody is told that something was written which was not.
    fn give_up(&mut self, mut ops: Vec<Op>, error: &io::Error) {
        self.poison.report(None, format!("the write-ahead log failed in {}: {error}", self.segment.path.display()));
        self.shared.queue.close();
        let again = || Err(io::Error::new(error.kind(), error.to_string()));
        self.notify(again);
        // What came before it was closed.
        let mut rest = Vec::new();
        self.shared.queue.take(&mut rest);
        ops.append(&mut rest);
        for op in ops {
            match op.what {
                What::Append { notice, .. } | What::Vote { notice, .. } => notice(again()),
                What::Truncate { .. } | What::Purge { .. } => {}
            }
        }
    }
}
