//! The end of an engine's turn: what all its groups have appended, written and synced once for all of them.
//!
//! ```text
//! proposals ──► Raft of every group ──► entries wait ──► the turn ends ──► one write, one sync
//!                   ▲                                                          │
//!                   └───────────────────────── synced ◄────────────────────────┘
//! ```
//!
//! While there is something to do, more gathers: a turn of one lone proposal is short, one of many clients carries them
//! all. Between Raft and the disk nobody is woken. Answers do not wait for the end of a turn: while the next group applies,
//! who asked for what this one has applied may ask for more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::timeout;

use crate::log::{Log, Prompter, REST};

/// A turn that still grows is ended after so many rounds of all the engine's tasks: whoever waits must not wait for a
/// lull. A round is microseconds.
const ROUNDS_MAX: usize = 32;

/// What an engine does at the end of a turn.
pub(crate) struct Turn {
    log: Arc<Log>,
    place: Place,
    /// How many times something was asked for, ever.
    asked: AtomicU64,
    wake: Notify,
}

/// Where an engine's log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// On the engine's own thread, as long as the disk is quick: nobody is woken.
    Here,
    /// On the log's thread: for groups whose heartbeats must not wait for a disk.
    Apart,
}

impl Turn {
    pub(crate) fn new(log: Arc<Log>, place: Place) -> Arc<Turn> {
        Arc::new(Turn { log, place, asked: AtomicU64::new(0), wake: Notify::new() })
    }

    /// Has what is appended written at the end of the turn.
    pub(crate) fn prompter(self: &Arc<Self>) -> Prompter {
        let turn = Arc::clone(self);
        match self.place {
            Place::Here => Arc::new(move || turn.ask()),
            Place::Apart => Arc::new(move || turn.log.write_apart()),
        }
    }

    fn ask(&self) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.wake.notify_one();
    }

    /// Ends turn after turn, for ever. Must run on the engine's thread.
    pub(crate) async fn run(&self) {
        let mut wrote = false;
        loop {
            if !wrote {
                self.wake.notified().await;
            } else if timeout(REST, self.wake.notified()).await.is_err() {
                self.log.rest();
                wrote = false;
                continue;
            }
            self.settle().await;
            wrote |= self.place == Place::Here && self.log.write();
        }
    }

    /// Lets every task have its turn as long as that brings more.
    async fn settle(&self) {
        let mut before = 0;
        for _ in 0..ROUNDS_MAX {
            let asked = self.asked.load(Ordering::Relaxed);
            if std::mem::replace(&mut before, asked) == asked {
                return;
            }
            yield_now().await;
        }
    }
}
