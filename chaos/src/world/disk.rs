//! The disk of a simulated node: the log of its groups, its state engine, and what the metadata plane keeps there.
//!
//! Writes to the log are in a cache until a sync that began after them has ended; a crash keeps what [`Keep`] says of the
//! others. A sync that fails is the end of the node. What is found damaged by its checksum behind the last sound record is a torn tail and cut; damage before it is
//! reported and never served.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use meridian_region_node::{Gauge, Space};
use meridian_types::{GroupId, Lsn};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::sleep;

use super::dice::Dice;
use super::engine::MemoryEngine;
use super::group::journal::{Journal, Place};
use super::group::raft::Ballot;
use super::metadata::Kept;

/// What survives a crash of what was written and not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// Nothing.
    None,
    /// Everything: the process died, the machine did not.
    All,
    /// The oldest of it, up to anywhere.
    Prefix,
    /// The oldest of it, and a part of the next record.
    Torn,
    /// Any of it: the disk reorders.
    Subset,
}

/// How a disk behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manner {
    /// The shortest and longest sync.
    pub sync: (Duration, Duration),
    /// No sync ends.
    pub stalled: bool,
    /// There is no space.
    pub full: bool,
    /// Every sync fails, and this is what becomes of what it was to bring to the disk.
    pub failing: Option<Keep>,
}

impl Default for Manner {
    fn default() -> Manner {
        // numbers.md: fdatasync p50 93 µs, p99 163 µs; a millisecond is the shortest a timer knows.
        let sync = (Duration::from_micros(100), Duration::from_micros(1500));
        Manner { sync, stalled: false, full: false, failing: None }
    }
}

/// A record of the log.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) lsn: Lsn,
    pub(crate) term: u64,
    /// `None`: an entry of the group itself, which begins a term.
    pub(crate) payload: Option<Bytes>,
    checksum: u32,
}

impl Record {
    pub(crate) fn new(lsn: Lsn, term: u64, payload: Option<Bytes>) -> Record {
        let checksum = payload.as_ref().map_or(0, |payload| crc32c::crc32c(payload));
        Record { lsn, term, payload, checksum }
    }

    /// About how long it is on the wire.
    pub(crate) fn size(&self) -> usize {
        16 + self.payload.as_ref().map_or(0, Bytes::len)
    }

    fn is_sound(&self) -> bool {
        self.payload.as_ref().map_or(0, |payload| crc32c::crc32c(payload)) == self.checksum
    }

    fn bytes(&self) -> u64 {
        self.payload.as_ref().map_or(0, |payload| payload.len() as u64) + 32
    }
}

/// A group's part of the log.
#[derive(Default)]
struct GroupLog {
    /// Up to here it was purged.
    purged: u64,
    /// The term of the last entry that was.
    purged_term: u64,
    records: VecDeque<Record>,
    /// Up to here it is on the disk.
    synced: u64,
    ballot: Ballot,
}

impl GroupLog {
    fn last(&self) -> u64 {
        self.purged + self.records.len() as u64
    }

    fn cut(&mut self, after: u64) {
        self.records.truncate(usize::try_from(after.saturating_sub(self.purged)).unwrap_or(usize::MAX));
    }
}

/// The log can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Damaged(pub(crate) Lsn);

/// A sync failed: nobody knows what of it is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SyncFailed;

/// The disk of one node; it outlives the node.
pub(crate) struct NodeDisk {
    pub(crate) engine: Arc<MemoryEngine>,
    /// What lost primaries kept: files that are synced one by one.
    pub(crate) vault: Arc<meridian_region_node::Memory>,
    dice: Dice,
    inner: Mutex<Inner>,
    manner: watch::Sender<Manner>,
}

#[derive(Default)]
struct Inner {
    groups: BTreeMap<GroupId, GroupLog>,
    /// What was written since the last sync began, in order and numbered, all groups together.
    cached: VecDeque<(u64, GroupId, u64)>,
    /// How much was ever written.
    written: u64,
    kept: Kept,
    /// A sync failed in this life, and what the disk keeps of it.
    failed: Option<Keep>,
}

impl NodeDisk {
    pub(crate) fn new(dice: Dice, manner: Manner) -> NodeDisk {
        NodeDisk {
            engine: Arc::default(),
            vault: Arc::default(),
            dice,
            inner: Mutex::default(),
            manner: watch::Sender::new(manner),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it behaves now.
    pub(crate) fn manner(&self) -> Manner {
        *self.manner.borrow()
    }

    /// Changes how it behaves.
    pub(crate) fn set_manner(&self, change: impl FnOnce(&mut Manner)) {
        self.manner.send_modify(change);
    }

    /// What the metadata plane keeps here; every change of it is synced before anything that rests on it leaves.
    pub(crate) fn kept<T>(&self, with: impl FnOnce(&mut Kept) -> T) -> T {
        with(&mut self.inner().kept)
    }

    /// What is here of a group: its ballot, and its log, of which everything found counts as synced.
    pub(crate) fn open_group(&self, group: GroupId) -> (Ballot, Journal) {
        let mut inner = self.inner();
        let log = inner.groups.entry(group).or_default();
        let mut journal = Journal::default();
        journal.replace(Place { term: log.purged_term, lsn: log.purged });
        for record in &log.records {
            journal.push(record.term);
        }
        (journal.written, journal.synced) = (journal.last, journal.last);
        (log.ballot, journal)
    }

    /// What a group's member has promised; it is synced before anything that rests on it leaves.
    pub(crate) fn set_ballot(&self, group: GroupId, ballot: Ballot) {
        self.inner().groups.entry(group).or_default().ballot = ballot;
    }

    /// Drops the records of a group behind a position: another leader has others.
    pub(crate) fn cut(&self, group: GroupId, after: u64) {
        let mut inner = self.inner();
        inner.cached.retain(|(_, of, lsn)| *of != group || *lsn <= after);
        let log = inner.groups.entry(group).or_default();
        log.cut(after);
        log.synced = log.synced.min(after);
    }

    /// A snapshot takes the place of a group's log up to a position; what is behind it stays or not.
    pub(crate) fn replace(&self, group: GroupId, at: Place, goes_on: bool) {
        let mut inner = self.inner();
        inner.cached.retain(|(_, of, lsn)| *of != group || (goes_on && *lsn > at.lsn));
        let log = inner.groups.entry(group).or_default();
        if !goes_on {
            log.records.clear();
        }
        while log.records.front().is_some_and(|record| record.lsn.0 <= at.lsn) {
            log.records.pop_front();
        }
        (log.purged, log.purged_term) = (at.lsn, at.term);
        log.synced = if goes_on { log.synced.max(at.lsn) } else { at.lsn };
    }

    /// Up to where a group's log is synced.
    pub(crate) fn synced(&self, group: GroupId) -> u64 {
        self.inner().groups.get(&group).map_or(0, |log| log.synced)
    }

    /// Writes records, into the cache.
    pub(crate) fn append(&self, group: GroupId, records: impl IntoIterator<Item = Record>) {
        let mut inner = self.inner();
        for record in records {
            let log = inner.groups.entry(group).or_default();
            assert_eq!(record.lsn.0, log.last() + 1, "a log has no gaps");
            let lsn = record.lsn.0;
            log.records.push_back(record);
            inner.written += 1;
            let number = inner.written;
            inner.cached.push_back((number, group, lsn));
        }
    }

    /// Brings everything that is in the cache now to the disk.
    pub(crate) async fn sync(&self) -> Result<(), SyncFailed> {
        let begun = self.inner().written;
        let manner = self.manner();
        sleep(self.dice.duration(manner.sync.0, manner.sync.1)).await;
        // Ends when the stall does.
        let mut manners = self.manner.subscribe();
        if manners.wait_for(|manner| !manner.stalled).await.is_err() {
            return std::future::pending().await;
        }
        self.works()?;
        let mut inner = self.inner();
        let synced = inner.cached.partition_point(|(number, ..)| *number <= begun);
        let synced: Vec<_> = inner.cached.drain(..synced).collect();
        for (_, group, lsn) in synced {
            if let Some(log) = inner.groups.get_mut(&group) {
                log.synced = log.synced.max(lsn);
            }
        }
        Ok(())
    }

    /// Whether a sync would succeed now. One that does not is remembered: what the system dropped can't be written again.
    pub(crate) fn works(&self) -> Result<(), SyncFailed> {
        let Some(keep) = self.manner().failing else { return Ok(()) };
        self.inner().failed = Some(keep);
        Err(SyncFailed)
    }

    /// Whether a sync failed since the node started, and what the disk keeps of it.
    pub(crate) fn failed(&self) -> Option<Keep> {
        self.inner().failed
    }

    /// The records of a group after `after` and up to `to`, about `bytes_max` of them but at least one.
    pub(crate) fn read(&self, group: GroupId, after: Lsn, to: Lsn, bytes_max: u64) -> Result<Vec<Record>, ReadFailure> {
        let inner = self.inner();
        let Some(log) = inner.groups.get(&group) else { return Ok(Vec::new()) };
        if after.0 < log.purged {
            return Err(ReadFailure::Purged { oldest: Lsn(log.purged + 1) });
        }
        let (mut bytes, mut records) = (0, Vec::new());
        let begin = usize::try_from(after.0 - log.purged).unwrap_or(usize::MAX);
        for record in log.records.iter().skip(begin).take_while(|record| record.lsn <= to) {
            if !record.is_sound() {
                return Err(ReadFailure::Damaged(Damaged(record.lsn)));
            }
            bytes += record.bytes();
            if !records.is_empty() && bytes > bytes_max {
                break;
            }
            records.push(record.clone());
        }
        Ok(records)
    }

    /// Drops records up to `up_to`.
    pub(crate) fn purge(&self, group: GroupId, up_to: Lsn) {
        let mut inner = self.inner();
        let Some(log) = inner.groups.get_mut(&group) else { return };
        while log.purged < up_to.0.min(log.synced) {
            let purged = log.records.pop_front();
            log.purged_term = purged.map_or(log.purged_term, |record| record.term);
            log.purged += 1;
        }
    }

    /// Up to where a group's log was purged.
    pub(crate) fn purged(&self, group: GroupId) -> Lsn {
        self.inner().groups.get(&group).map_or(Lsn(0), |log| Lsn(log.purged))
    }

    /// The node is gone. Returns the bytes that were written and are lost.
    pub(crate) fn crash(&self, keep: Keep) -> u64 {
        let mut lost = self.engine.crash(|unsynced| match keep {
            Keep::None => 0,
            Keep::All => unsynced,
            Keep::Prefix | Keep::Torn | Keep::Subset => self.dice.index(unsynced + 1),
        });
        let mut inner = self.inner();
        inner.failed = None;
        let cached = std::mem::take(&mut inner.cached);
        let kept = match keep {
            Keep::None => 0,
            Keep::All => cached.len(),
            Keep::Prefix | Keep::Torn => self.dice.index(cached.len() + 1),
            Keep::Subset => 0,
        };
        for (place, (_, group, lsn)) in cached.into_iter().enumerate() {
            let Some(log) = inner.groups.get_mut(&group) else { continue };
            let survives = place < kept || (keep == Keep::Subset && self.dice.chance(0.5));
            // Recovery reads up to the first gap: what survived behind one is cut.
            if survives && log.synced + 1 == lsn {
                log.synced = lsn;
            }
        }
        for log in inner.groups.values_mut() {
            let synced = log.synced.max(log.purged);
            lost += log.records.iter().filter(|record| record.lsn.0 > synced).map(Record::bytes).sum::<u64>();
            let torn = log.records.iter_mut().find(|record| record.lsn.0 == synced + 1);
            if keep == Keep::Torn
                && let Some(torn) = torn
            {
                torn.checksum ^= 1;
            }
            recover(log, synced);
        }
        lost
    }

    /// Damages a synced record of some group's log; the group and position, if there is any.
    pub(crate) fn rot(&self) -> Option<(GroupId, Lsn)> {
        let mut inner = self.inner();
        let place = self.dice.index(inner.groups.len().max(1));
        let (group, log) = inner.groups.iter_mut().nth(place)?;
        let synced = usize::try_from(log.synced.saturating_sub(log.purged)).unwrap_or_default();
        let record = log.records.get_mut(self.dice.index(synced.max(1)))?;
        record.checksum ^= 1 << 7;
        Some((*group, record.lsn))
    }
}

/// Why records can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadFailure {
    /// They were purged.
    Purged { oldest: Lsn },
    /// A checksum is wrong.
    Damaged(Damaged),
}

/// Cuts the tail that is not whole: the first bad record, if nothing sound follows it.
fn recover(log: &mut GroupLog, synced: u64) {
    if let Some(bad) = log.records.iter().position(|record| record.lsn.0 > synced && !record.is_sound()) {
        log.records.truncate(bad);
    }
    log.cut(synced);
    log.synced = synced;
}

impl Gauge for NodeDisk {
    fn space(&self, _: &Path) -> io::Result<Space> {
        let free_bytes = if self.manner().full { 0 } else { 1 << 39 };
        Ok(Space { free_bytes, total_bytes: 1 << 40 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId(1);

    fn written(synced: u64, cached: u64) -> NodeDisk {
        let disk = NodeDisk::new(Dice::new(5), Manner::default());
        let record = |lsn| Record::new(Lsn(lsn), 1, Some(Bytes::from_static(b"entry")));
        disk.append(GROUP, (1..=synced).map(record));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(disk.sync()).unwrap();
        disk.append(GROUP, (synced + 1..=synced + cached).map(record));
        disk
    }

    fn last(disk: &NodeDisk) -> u64 {
        disk.read(GROUP, Lsn(0), Lsn(u64::MAX), u64::MAX).unwrap().last().map_or(0, |record| record.lsn.0)
    }

    #[test]
    fn a_crash_never_takes_what_was_synced_and_keeps_no_gap() {
        for keep in [Keep::None, Keep::All, Keep::Prefix, Keep::Torn, Keep::Subset] {
            for _ in 0..50 {
                let disk = written(4, 6);
                disk.crash(keep);
                let last = last(&disk);
                match keep {
                    Keep::None => assert_eq!(last, 4),
                    Keep::All => assert_eq!(last, 10),
                    Keep::Prefix | Keep::Torn | Keep::Subset => assert!((4..=10).contains(&last)),
                }
            }
        }
    }

    #[test]
    fn what_a_failed_sync_was_to_bring_is_not_on_the_disk_whatever_comes_later() {
        let disk = written(4, 6);
        disk.set_manner(|manner| manner.failing = Some(Keep::None));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        assert_eq!(runtime.block_on(disk.sync()), Err(SyncFailed));
        disk.set_manner(|manner| manner.failing = None);
        disk.crash(disk.failed().unwrap());
        assert_eq!((last(&disk), disk.failed()), (4, None));
    }

    #[test]
    fn rot_is_found_when_it_is_read() {
        let disk = written(4, 0);
        let (_, lsn) = disk.rot().unwrap();
        let read = disk.read(GROUP, Lsn(0), Lsn(4), u64::MAX);
        assert_eq!(read.unwrap_err(), ReadFailure::Damaged(Damaged(lsn)));
    }

    #[test]
    fn what_was_purged_is_said_to_be() {
        let disk = written(4, 0);
        disk.purge(GROUP, Lsn(3));
        assert_eq!(disk.purged(GROUP), Lsn(3));
        let read = disk.read(GROUP, Lsn(1), Lsn(4), u64::MAX);
        assert_eq!(read.unwrap_err(), ReadFailure::Purged { oldest: Lsn(4) });
        assert_eq!(disk.read(GROUP, Lsn(3), Lsn(4), u64::MAX).unwrap().len(), 1);
    }
}
