//! Keeps the next segment ready, so that rotation costs the writer nothing, and takes retired ones back.
//!
//! The prepared segment is also the reserve of the disk-full rule: when no further one can be made,
//! proposals are refused while Raft's own records still have a whole segment to go to.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meridian_failpoint::failpoint;
use meridian_types::NodeId;

use super::segment::{self, Segment};
use crate::poison::Poison;

/// How often allocation is tried again on a full disk.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// Makes segments. A seam, so that tests can run out of space.
pub(crate) type Prepare = Box<dyn Fn(&std::path::Path, u64) -> io::Result<Segment> + Send + Sync>;

/// What the writer and the preparing thread share.
pub(crate) struct Spares {
    dir: PathBuf,
    slots: Mutex<Slots>,
    changed: Condvar,
    disk_full: AtomicBool,
    /// Bytes of all files of the log.
    pub(crate) bytes: AtomicU64,
    prepare: Prepare,
}

#[derive(Debug, Default)]
struct Slots {
    next: Option<Segment>,
    /// The id the next segment is to have.
    next_id: u64,
    retired: VecDeque<Arc<Segment>>,
    closed: bool,
}

/// The real way to make a segment.
pub(crate) fn prepare_on_disk(dir: PathBuf, bytes: u64, node: NodeId) -> Prepare {
    Box::new(move |spare, id| Segment::prepare(&dir, spare, id, bytes, node))
}

impl Spares {
    pub(crate) fn new(dir: PathBuf, next: Option<Segment>, next_id: u64, bytes: u64, prepare: Prepare) -> Spares {
        let slots = Slots { next, next_id, ..Slots::default() };
        let disk_full = AtomicBool::new(false);
        Spares {
            dir,
            slots: Mutex::new(slots),
            changed: Condvar::new(),
            disk_full,
            bytes: AtomicU64::new(bytes),
            prepare,
        }
    }

    /// No segment beyond the prepared one can be made.
    pub(crate) fn disk_full(&self) -> bool {
        self.disk_full.load(Ordering::Relaxed)
    }

    pub(crate) fn set_disk_full(&self, full: bool) {
        if self.disk_full.swap(full, Ordering::Relaxed) != full {
            if full {
                tracing::warn!(dir = %self.dir.display(), "no space for the log's next segment: proposals are refused until there is");
            } else {
                tracing::info!(dir = %self.dir.display(), "the log has space again");
            }
        }
    }

    /// The next segment; waits for it as long as the disk is full. `None` once closed.
    pub(crate) fn take(&self) -> Option<Segment> {
        let mut slots = self.lock();
        loop {
            if let Some(segment) = slots.next.take() {
                slots.next_id = segment.id + 1;
                self.changed.notify_all();
                return Some(segment);
            }
            if slots.closed {
                return None;
            }
            slots = self.changed.wait(slots).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Gives back a segment that nothing needs any more.
    pub(crate) fn retire(&self, segment: Arc<Segment>) {
        self.lock().retired.push_back(segment);
        self.changed.notify_all();
    }

    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// The preparing thread.
    pub(crate) fn run(&self, poison: &Poison) {
        while let Some(task) = self.task() {
            let done = match task {
                Task::Prepare(id, reuse) => self.prepare(id, reuse),
                Task::Remove(segment) => self.remove(&segment),
            };
            match done {
                Ok(()) => self.set_disk_full(false),
                Err(error) if is_disk_full(&error) => {
                    self.set_disk_full(true);
                    self.pause();
                }
                Err(error) => {
                    poison.report(None, format!("preparing a log segment failed: {error}"));
                    // The writer must not wait for what won't come.
                    return self.close();
                }
            }
        }
    }

    fn task(&self) -> Option<Task> {
        let mut slots = self.lock();
        loop {
            if slots.closed {
                return None;
            }
            if slots.next.is_none() {
                return Some(Task::Prepare(slots.next_id, slots.retired.pop_front()));
            }
            // One retired segment stays in place until it can be recycled; more of them only take space.
            if slots.retired.len() > 1
                && let Some(segment) = slots.retired.pop_front()
            {
                return Some(Task::Remove(segment));
            }
            slots = self.changed.wait(slots).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn prepare(&self, id: u64, reuse: Option<Arc<Segment>>) -> io::Result<()> {
        let spare = segment::spare_path(&self.dir, id);
        let recycled = reuse.is_some();
        if let Some(segment) = reuse {
            // The old name must be gone for good before the content changes under it.
            failpoint("spare.recycle.before");
            std::fs::rename(&segment.path, &spare)?;
            failpoint("spare.recycle.renamed");
            segment::sync_dir(&self.dir)?;
            failpoint("spare.recycle.after");
        }
        let made = (self.prepare)(&spare, id);
        match made {
            Ok(segment) => {
                if !recycled {
                    self.bytes.fetch_add(segment.bytes, Ordering::Relaxed);
                }
                let mut slots = self.lock();
                slots.next = Some(segment);
                self.changed.notify_all();
                Ok(())
            }
            Err(error) => {
                // A half-made file would keep the space that others need to recover.
                let _ = std::fs::remove_file(&spare);
                Err(error)
            }
        }
    }

    fn remove(&self, segment: &Segment) -> io::Result<()> {
        failpoint("spare.remove.before");
        std::fs::remove_file(&segment.path)?;
        failpoint("spare.remove.after");
        segment::sync_dir(&self.dir)?;
        self.bytes.fetch_sub(segment.bytes, Ordering::Relaxed);
        Ok(())
    }

    fn pause(&self) {
        let slots = self.lock();
        if !slots.closed {
            drop(self.changed.wait_timeout(slots, RETRY_EVERY));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Task {
    Prepare(u64, Option<Arc<Segment>>),
    Remove(Arc<Segment>),
}

/// Whether an error means that space may be had later.
pub(crate) fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
