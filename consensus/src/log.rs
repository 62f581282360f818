//! The write-ahead log: one per data directory, shared by all groups of the node.
//!
//! ```text
//! append ──► state (readable at once) ──► queue ──► writer: one write, one fdatasync ──► notices
//!                                                     │ takes prepared segments from, gives retired ones to
//!                                                     ▼
//!                                                  spare thread
//! ```
//!
//! The writer runs on a thread of its own, or, where somebody says when ([`GroupHandle::with_prompter`]), on theirs.
//!
//! Keeps DUR-1 (a notice follows the sync of what it is about) and DUR-3 (checksums; damage is refused). It
//! knows nothing of Raft beyond entries with a term and an index, a vote, and marks.

mod index;
mod queue;
mod reader;
pub(crate) mod record;
pub(crate) mod recovery;
mod scan;
pub(crate) mod segment;
mod spare;
mod state;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use meridian_types::{GroupId, NodeId};

use self::queue::{Op, Queue, What};
use self::reader::Wanted;
use self::segment::Segment;
use self::spare::Spares;
use self::state::{Source, State};
use self::writer::Writer;
use crate::error::OpenError;
use crate::options::LogOptions;
use crate::poison::{Poison, panic_message};
use crate::stopwatch::Stopwatch;

pub(crate) use self::queue::Notice;
pub(crate) use self::record::{Kind, PAYLOAD_BYTES_MAX};
pub(crate) use self::state::{Entry, EntryId};
pub(crate) use self::writer::IDLE as REST;

const LOCK_FILE: &str = "lock";
const DIRECTORY: &str = "log";

/// Why entries can't be read.
#[derive(Debug)]
pub(crate) enum ReadFailure {
    /// They are no longer there; the log begins at `first`.
    Trimmed {
        first: u64,
    },
    Io(io::Error),
}

/// The log of one data directory.
pub(crate) struct Log {
    shared: Arc<Shared>,
    /// Set once there is a segment to write to.
    writer: Arc<OnceLock<Mutex<Writer>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Held as long as the log is open.
    lock: Mutex<Option<File>>,
}

/// What the log, its groups and its threads share.
pub(crate) struct Shared {
    queue: Queue,
    spares: Spares,
    groups: RwLock<BTreeMap<GroupId, Arc<GroupLog>>>,
    segments: RwLock<BTreeMap<u64, Arc<Segment>>>,
    cache_bytes_max: u64,
    queue_bytes_max: u64,
    /// Syncs of batches so far.
    syncs: AtomicU64,
    /// Runs while something is written and synced.
    syncing: Stopwatch,
}

/// One group's part of the log.
pub(crate) struct GroupLog {
    id: GroupId,
    state: Mutex<State>,
}

impl Log {
    /// Locks `dir`, recovers what is in it and starts the log's threads.
    pub(crate) fn open(dir: &Path, node: NodeId, options: &LogOptions, poison: &Poison) -> Result<Log, OpenError> {
        let dir_of_segments = dir.join(DIRECTORY);
        let prepare = spare::prepare_on_disk(dir_of_segments, options.segment_bytes, node);
        Log::open_with(dir, node, options, poison, prepare)
    }

    fn open_with(
        dir: &Path,
        node: NodeId,
        options: &LogOptions,
        poison: &Poison,
        prepare: spare::Prepare,
    ) -> Result<Log, OpenError> {
        let segments_dir = dir.join(DIRECTORY);
        let made = std::fs::create_dir_all(&segments_dir).and_then(|()| segment::sync_dir(dir));
        made.map_err(|source| OpenError::Io { action: "creating", path: segments_dir.clone(), source })?;
        let lock = lock(dir)?;
        let found = recovery::recover(&segments_dir, node)?;
        let bytes: u64 = found.segments.iter().map(|segment| segment.bytes).sum();
        let bytes = bytes + found.next.as_ref().map_or(0, |next| next.bytes);
        let last_id = found.segments.last().map_or(0, |segment| segment.id);
        let spares = Spares::new(segments_dir.clone(), found.next, last_id + 1, bytes, prepare);
        let groups =
            found.groups.into_iter().map(|(id, state)| (id, Arc::new(GroupLog { id, state: Mutex::new(state) })));
        let shared = Arc::new(Shared {
            queue: Queue::default(),
            spares,
            groups: RwLock::new(groups.collect()),
            segments: RwLock::new(found.segments.into_iter().map(|segment| (segment.id, segment)).collect()),
            cache_bytes_max: options.cache_bytes,
            queue_bytes_max: options.queue_bytes_max,
            syncs: AtomicU64::new(0),
            syncing: Stopwatch::default(),
        });
        let (spare_shared, spare_poison) = (Arc::clone(&shared), poison.clone());
        let spare = spawn("log-spare", poison, move || spare_shared.spares.run(&spare_poison))?;
        let writer = Arc::new(OnceLock::new());
        let (thread_shared, place, writer_poison) = (Arc::clone(&shared), Arc::clone(&writer), poison.clone());
        let (tail, held, batch) = (found.tail, found.held, found.batch);
        let thread = spawn("log-writer", poison, move || match tail.or_else(|| thread_shared.begin()) {
            Some(end) => {
                let writer = Writer::new(Arc::clone(&thread_shared), writer_poison, end, batch, held);
                writer::run(&thread_shared, place.get_or_init(|| Mutex::new(writer)));
            }
            None => thread_shared.queue.abandon(),
        })?;
        Ok(Log { shared, writer, threads: Mutex::new(vec![thread, spare]), lock: Mutex::new(Some(lock)) })
    }

    /// The log of a group; begun empty if there is none yet.
    pub(crate) fn group(&self, id: GroupId) -> GroupHandle {
        let mut groups = self.shared.groups.write().unwrap_or_else(PoisonError::into_inner);
        let log = groups.entry(id).or_insert_with(|| Arc::new(GroupLog { id, state: Mutex::default() }));
        GroupHandle { shared: Arc::clone(&self.shared), log: Arc::clone(log), prompter: None }
    }

    /// Whether no group has, or ever had, anything here.
    pub(crate) fn is_blank(&self) -> bool {
        self.shared.groups().iter().all(|(_, log)| log.state().is_blank())
    }

    /// Writes and syncs what waits: on the calling thread if that is quickly done, else on the log's own, which is
    /// then told. True in the first case: whoever wrote also calls [`Log::rest`].
    pub(crate) fn write(&self) -> bool {
        if self.shared.queue.waiting().0 == 0 {
            return false;
        }
        if let Some(writer) = self.writer.get()
            && let Ok(mut writer) = writer.try_lock()
            && writer.is_quick()
        {
            writer.write();
            return true;
        }
        self.write_apart();
        false
    }

    /// Has what waits written and synced by the log's own thread.
    pub(crate) fn write_apart(&self) {
        self.shared.queue.wake();
    }

    /// To be called when nothing was written for [`REST`].
    pub(crate) fn rest(&self) {
        if let Some(writer) = self.writer.get()
            && let Ok(mut writer) = writer.try_lock()
        {
            writer.mark();
        }
    }

    /// Bytes of segments on disk.
    pub(crate) fn bytes(&self) -> u64 {
        self.shared.spares.bytes.load(Ordering::Relaxed)
    }

    /// No space for another segment: proposals must be refused.
    pub(crate) fn disk_full(&self) -> bool {
        self.shared.spares.disk_full()
    }

    /// For how long the write and sync under way has been running; `None` while nothing is written.
    pub(crate) fn sync_running(&self) -> Option<Duration> {
        self.shared.syncing.elapsed()
    }

    #[cfg(test)]
    fn syncs(&self) -> u64 {
        self.shared.syncs.load(Ordering::Relaxed)
    }

    /// Writes what waits and ends the threads. Appends are refused from here on.
    pub(crate) fn close(&self) {
        self.shared.queue.close();
        if self.disk_full() {
            // The writer may be waiting for a segment that won't come.
            self.shared.spares.close();
        }
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            // The writer ends first; only it waits for the other.
            let _ = thread.join();
            self.shared.spares.close();
        }
        // Only now: another process must not find a thread of this one still at work.
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.close();
    }
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join(LOCK_FILE);
    let io = |action| {
        let path = path.clone();
        move |source| OpenError::Io { action, path, source }
    };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(io("opening"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(OpenError::Locked { dir: dir.to_owned() }),
        Err(std::fs::TryLockError::Error(source)) => Err(io("locking")(source)),
    }
}

/// Starts a thread whose panic is the end of the node.
pub(crate) fn spawn(
    name: &'static str,
    poison: &Poison,
    run: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, OpenError> {
    let poison = poison.clone();
    let guarded = move || {
        if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
            poison.report(None, format!("the thread `{name}` panicked: {}", panic_message(panic.as_ref())));
        }
    };
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(guarded);
    started.map_err(|source| OpenError::Io { action: "starting a thread for", path: PathBuf::from(name), source })
}

impl Shared {
    fn begin(&self) -> Option<(Arc<Segment>, u64)> {
        let segment = Arc::new(self.spares.take()?);
        self.add_segment(Arc::clone(&segment));
        Some((segment, segment::RECORDS_AT))
    }

    fn groups(&self) -> Vec<(GroupId, Arc<GroupLog>)> {
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        groups.iter().map(|(id, group)| (*id, Arc::clone(group))).collect()
    }

    fn add_segment(&self, segment: Arc<Segment>) {
        self.segments.write().unwrap_or_else(PoisonError::into_inner).insert(segment.id, segment);
    }

    fn remove_segment(&self, id: u64) -> Option<Arc<Segment>> {
        self.segments.write().unwrap_or_else(PoisonError::into_inner).remove(&id)
    }

    /// Brings the caches below their bound, at the expense of the group that has most.
    fn evict(&self) {
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        let mut sizes: Vec<_> = groups.values().map(|group| (group.state().cache_bytes, group)).collect();
        let mut over = sizes.iter().map(|(bytes, _)| bytes).sum::<u64>().saturating_sub(self.cache_bytes_max);
        if over == 0 {
            return;
        }
        sizes.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        for (_, group) in sizes {
            over = over.saturating_sub(group.state().evict(over));
        }
    }
}

impl GroupLog {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One group's log, for its owner. Cheap to clone.
#[derive(Clone)]
pub(crate) struct GroupHandle {
    shared: Arc<Shared>,
    log: Arc<GroupLog>,
    prompter: Option<Prompter>,
}

/// Told of everything that waits to be written, it calls [`Log::write`] or [`Log::write_apart`] soon.
pub(crate) type Prompter = Arc<dyn Fn() + Send + Sync>;

impl GroupHandle {
    /// Leaves it to another to say when what waits is written; otherwise it is at once.
    pub(crate) fn with_prompter(self, prompter: Prompter) -> GroupHandle {
        GroupHandle { prompter: Some(prompter), ..self }
    }

    /// The last purged and the last entry.
    pub(crate) fn bounds(&self) -> (Option<EntryId>, Option<EntryId>) {
        let state = self.log.state();
        (state.purged, state.last)
    }

    /// The first index the log holds, or will hold.
    pub(crate) fn first(&self) -> u64 {
        self.log.state().first()
    }

    pub(crate) fn vote(&self) -> Option<Bytes> {
        self.log.state().vote.clone()
    }

    pub(crate) fn committed(&self) -> Option<EntryId> {
        self.log.state().committed
    }

    /// Notes what is committed; reaches the disk with the next append.
    pub(crate) fn set_committed(&self, committed: Option<EntryId>) {
        let mut state = self.log.state();
        state.committed = committed;
        state.committed_is_news = committed.is_some();
    }

    /// Waits until the disk has caught up enough for another append.
    pub(crate) async fn wait_for_room(&self) {
        self.shared.queue.wait_for_room(self.shared.queue_bytes_max).await;
    }

    /// Appends; the entries can be read when this returns. `notice` follows the sync, unless a later append's does.
    pub(crate) fn append(&self, entries: Vec<Entry>, notice: Notice) {
        let bytes = entries.iter().map(Entry::bytes).sum();
        let mut parts = Some((entries, notice));
        let pushed = self.push(bytes, |number| {
            let (entries, notice) = parts.take().unwrap_or_else(|| (Vec::new(), Box::new(|_| {})));
            self.log.state().push(&entries, number);
            self.op(What::Append { number, entries, notice })
        });
        if let (None, Some((_, notice))) = (pushed, parts) {
            notice(Err(closed()));
        }
    }

    /// Saves the vote; `notice` follows the sync.
    pub(crate) fn save_vote(&self, vote: Bytes, notice: Notice) {
        let mut notice = Some(notice);
        self.push(0, |_| {
            self.log.state().vote = Some(vote.clone());
            self.op(What::Vote { vote, notice: notice.take().unwrap_or_else(|| Box::new(|_| {})) })
        });
        if let Some(notice) = notice {
            notice(Err(closed()));
        }
    }

    /// Voids the entries after `after`; all with `None`. On disk before any later append.
    pub(crate) fn truncate(&self, after: Option<EntryId>) -> io::Result<()> {
        let pushed = self.push(0, |_| {
            self.log.state().truncate(after);
            self.op(What::Truncate { after })
        });
        pushed.ok_or_else(closed)
    }

    /// Gives up the entries up to `up_to`; their space is freed when no group needs their segment.
    pub(crate) fn purge(&self, up_to: EntryId) -> io::Result<()> {
        let pushed = self.push(0, |_| {
            self.log.state().purge(up_to);
            self.op(What::Purge { up_to })
        });
        pushed.ok_or_else(closed)
    }

    /// Entries `from..to` that are in memory; `None` when the disk must be read.
    pub(crate) fn read_memory(&self, from: u64, to: u64, bytes_max: u64) -> Option<Result<Vec<Entry>, ReadFailure>> {
        match self.log.state().find(from, to, bytes_max) {
            Source::Memory(entries) => Some(Ok(entries)),
            Source::Trimmed { first } => Some(Err(ReadFailure::Trimmed { first })),
            Source::Disk { .. } => None,
        }
    }

    /// Entries `from..to`, at least one if there is one, about `bytes_max`; may stop early. Blocks on the disk if it must.
    pub(crate) fn read(&self, from: u64, to: u64, bytes_max: u64) -> Result<Vec<Entry>, ReadFailure> {
        let found = self.log.state().find(from, to, bytes_max);
        let (route, to) = match found {
            Source::Memory(entries) => return Ok(entries),
            Source::Trimmed { first } => return Err(ReadFailure::Trimmed { first }),
            Source::Disk { route, to } => (route, to),
        };
        let open = {
            let segments = self.shared.segments.read().unwrap_or_else(PoisonError::into_inner);
            route
                .iter()
                .map_while(|point| Some((*point, Arc::clone(segments.get(&point.segment)?))))
                .collect::<Vec<_>>()
        };
        let complete = open.len() == route.len() && !open.is_empty();
        let read = if complete {
            reader::read(Wanted { group: self.log.id, from, to, bytes_max }, &open)
        } else {
            Err(io::Error::new(io::ErrorKind::NotFound, "a segment of the log is not there"))
        };
        read.map_err(|error| {
            // It may have been purged, and its file reused, while it was being read.
            let first = self.log.state().first();
            if from < first { ReadFailure::Trimmed { first } } else { ReadFailure::Io(error) }
        })
    }

    fn push(&self, bytes: u64, make: impl FnOnce(u64) -> Op) -> Option<()> {
        self.shared.queue.push(bytes, make)?;
        match &self.prompter {
            Some(prompter) => prompter(),
            None => self.shared.queue.wake(),
        }
        Some(())
    }

    fn op(&self, what: What) -> Op {
        Op { group: Arc::clone(&self.log), what }
    }
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the write-ahead log is closed")
}
