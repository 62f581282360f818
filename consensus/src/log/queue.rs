//! What waits for the log's writer. While one batch is synced, the next one gathers here.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use super::GroupLog;
use super::state::{Entry, EntryId};

/// Called once what it belongs to is on disk, or can never be.
pub(crate) type Notice = Box<dyn FnOnce(io::Result<()>) + Send>;

/// What the writer is to write, in this order.
pub(crate) struct Op {
    pub(crate) group: Arc<GroupLog>,
    pub(crate) what: What,
}

pub(crate) enum What {
    /// The notice of a later append of the same group covers this one's: only the last of a batch is called.
    Append {
        number: u64,
        entries: Vec<Entry>,
        notice: Notice,
    },
    Vote {
        vote: Bytes,
        notice: Notice,
    },
    Truncate {
        after: Option<EntryId>,
    },
    Purge {
        up_to: EntryId,
    },
}

/// The queue between everybody and the writer.
#[derive(Default)]
pub(crate) struct Queue {
    ops: Mutex<Ops>,
    thread: OnceLock<Thread>,
    parked: AtomicBool,
    /// Payload bytes accepted and not yet on disk.
    bytes: AtomicU64,
    room: Notify,
}

#[derive(Default)]
struct Ops {
    waiting: Vec<Op>,
    appends: u64,
    closed: bool,
}

impl Queue {
    /// Enqueues, without waking anybody; `None` when the log is closed. `make` runs under the queue's lock, so that what
    /// it changes and what is enqueued happen in one order for all, and gets the number of the next append.
    pub(crate) fn push(&self, bytes: u64, make: impl FnOnce(u64) -> Op) -> Option<()> {
        let mut ops = self.lock();
        if ops.closed {
            return None;
        }
        ops.appends += 1;
        let op = make(ops.appends);
        ops.waiting.push(op);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Some(())
    }

    /// How many ops wait, and their payload bytes.
    pub(crate) fn waiting(&self) -> (usize, u64) {
        let ops = self.lock();
        (ops.waiting.len(), self.bytes.load(Ordering::Relaxed))
    }

    /// Waits until fewer than `bytes_max` are waiting for the disk (RES-1).
    pub(crate) async fn wait_for_room(&self, bytes_max: u64) {
        while self.bytes.load(Ordering::Relaxed) > bytes_max {
            let room = self.room.notified();
            if self.bytes.load(Ordering::Relaxed) <= bytes_max {
                return;
            }
            room.await;
        }
    }

    /// Called by the writer when bytes have reached the disk.
    pub(crate) fn release(&self, bytes: u64) {
        if bytes > 0 {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.room.notify_waiters();
        }
    }

    /// Takes everything that waits into `into`. To be called by whoever holds the writer, so that batches keep their order.
    pub(crate) fn take(&self, into: &mut Vec<Op>) {
        std::mem::swap(into, &mut self.lock().waiting);
    }

    /// Called by the writing thread: waits for something to write, for at most `idle`; [`Wait::Idle`] after it.
    pub(crate) fn wait(&self, idle: Option<Duration>) -> Wait {
        self.thread.get_or_init(std::thread::current);
        loop {
            {
                let ops = self.lock();
                if !ops.waiting.is_empty() {
                    return Wait::Work;
                }
                if ops.closed {
                    return Wait::Closed;
                }
                self.parked.store(true, Ordering::SeqCst);
            }
            match idle {
                None => std::thread::park(),
                Some(idle) => std::thread::park_timeout(idle),
            }
            if self.parked.swap(false, Ordering::SeqCst) && idle.is_some() && self.lock().waiting.is_empty() {
                return Wait::Idle;
            }
        }
    }

    /// Called by a writer that can't even begin: nothing that waits will ever be written.
    pub(crate) fn abandon(&self) {
        self.close();
        let waiting = std::mem::take(&mut self.lock().waiting);
        drop(waiting);
    }

    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.wake();
    }

    /// Wakes the writing thread if it sleeps.
    pub(crate) fn wake(&self) {
        if self.parked.swap(false, Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ops> {
        self.ops.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What [`Queue::wait`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    Work,
    Idle,
    Closed,
}
