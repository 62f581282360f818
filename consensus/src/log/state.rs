//! What is known of one group's log without reading a disk: its bounds, its vote, its index and its recent entries.
//!
//! ```text
//! purged < first … | on disk, found through the index | … cached … last
//! ```

use std::collections::VecDeque;

use bytes::Bytes;

use super::index::{Index, Point};
use super::record::{self, Kind};

/// Term and index of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryId {
    pub(crate) term: u64,
    pub(crate) index: u64,
}

/// One entry of a group's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: EntryId,
    pub(crate) kind: Kind,
    pub(crate) payload: Bytes,
}

impl Entry {
    /// What it takes in memory and on disk, near enough.
    pub(crate) fn bytes(&self) -> u64 {
        record::size(self.payload.len()) as u64
    }
}

#[derive(Debug)]
struct Cached {
    entry: Entry,
    /// The number of the append that brought it: it may leave the cache once that append is on disk.
    append: u64,
}

/// Where the rest of a read must come from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// These entries, from memory.
    Memory(Vec<Entry>),
    /// From disk, along these points, the entries `from..to`.
    Disk { route: Vec<Point>, to: u64 },
    /// The log begins later.
    Trimmed { first: u64 },
}

/// The state of one group's log. Lives behind a mutex; nothing here waits.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) purged: Option<EntryId>,
    /// The index of the very first entry, as long as nothing is purged. 0 in a real group.
    pub(crate) begin: u64,
    pub(crate) last: Option<EntryId>,
    pub(crate) vote: Option<Bytes>,
    pub(crate) committed: Option<EntryId>,
    /// Whether `committed` is newer than the newest record of it.
    pub(crate) committed_is_news: bool,
    pub(crate) index: Index,
    cache: VecDeque<Cached>,
    pub(crate) cache_bytes: u64,
    /// Appends up to this number are on disk.
    pub(crate) written: u64,
}

impl State {
    /// Whether nothing was ever put here.
    pub(crate) fn is_blank(&self) -> bool {
        self.purged.is_none() && self.last.is_none() && self.vote.is_none()
    }

    /// The first index the log holds, or will hold.
    pub(crate) fn first(&self) -> u64 {
        self.purged.map_or(self.begin, |purged| purged.index + 1)
    }

    /// One past the last index.
    pub(crate) fn end(&self) -> u64 {
        self.last.map_or(self.first(), |last| last.index + 1)
    }

    /// Takes new entries into the cache; they are readable from here on.
    pub(crate) fn push(&mut self, entries: &[Entry], append: u64) {
        if let (None, Some(first)) = (self.last, entries.first()) {
            self.begin = first.id.index;
        }
        for entry in entries {
            assert!(
                self.last.is_none_or(|last| last.index + 1 == entry.id.index),
                "entry {} does not follow {:?}: a log has no holes",
                entry.id.index,
                self.last
            );
            self.last = Some(entry.id);
            self.cache_bytes += entry.bytes();
            self.cache.push_back(Cached { entry: entry.clone(), append });
        }
    }

    /// Voids entries after `after`; `None` voids all.
    pub(crate) fn truncate(&mut self, after: Option<EntryId>) {
        let end = after.map_or(0, |after| after.index + 1);
        if end >= self.end() {
            return;
        }
        while self.cache.back().is_some_and(|cached| cached.entry.id.index >= end) {
            let cached = self.cache.pop_back();
            self.cache_bytes -= cached.map_or(0, |cached| cached.entry.bytes());
        }
        self.last = after.or(self.purged);
    }

    /// Forgets entries up to `up_to`.
    pub(crate) fn purge(&mut self, up_to: EntryId) {
        if self.purged.is_some_and(|purged| purged.index >= up_to.index) {
            return;
        }
        while self.cache.front().is_some_and(|cached| cached.entry.id.index <= up_to.index) {
            self.pop_front();
        }
        self.purged = Some(up_to);
        if self.last.is_none_or(|last| last.index <= up_to.index) {
            self.last = Some(up_to);
        }
    }

    /// Evicts entries that are on disk, oldest first, until at least `bytes` are free; returns how many were freed.
    pub(crate) fn evict(&mut self, bytes: u64) -> u64 {
        let before = self.cache_bytes;
        while before - self.cache_bytes < bytes
            && self.cache.front().is_some_and(|cached| cached.append <= self.written)
        {
            self.pop_front();
        }
        before - self.cache_bytes
    }

    fn pop_front(&mut self) {
        if let Some(cached) = self.cache.pop_front() {
            self.cache_bytes -= cached.entry.bytes();
        }
    }

    /// Finds the entries `from..to`, at least one and about `bytes_max` of them, cut at the log's end.
    pub(crate) fn find(&self, from: u64, to: u64, bytes_max: u64) -> Source {
        let to = to.min(self.end());
        if from >= to {
            return Source::Memory(Vec::new());
        }
        if from < self.first() {
            return Source::Trimmed { first: self.first() };
        }
        let cached_from = self.cache.front().map_or(u64::MAX, |cached| cached.entry.id.index);
        if from < cached_from {
            let to = to.min(cached_from);
            return Source::Disk { route: self.index.route(from, to), to };
        }
        let start = usize::try_from(from - cached_from).unwrap_or(usize::MAX);
        let count = usize::try_from(to - from).unwrap_or(usize::MAX);
        let mut room = bytes_max;
        let mut entries = Vec::with_capacity(count.min(256));
        for cached in self.cache.iter().skip(start).take(count) {
            let bytes = cached.entry.bytes();
            if bytes > room && !entries.is_empty() {
                break;
            }
            room = room.saturating_sub(bytes);
            entries.push(cached.entry.clone());
        }
        Source::Memory(entries)
    }
}
