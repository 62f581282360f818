//! The end of an engine's turn: what all its groups need done by others, done once for all of them.
//!
//! ```text
//! proposals ──► Raft of every group ──► entries wait ┐                        ┌► answers leave together
//!                   ▲                                ├─► the turn ends ──────┤
//!                   └─────── synced ◄────────────────┼────────────────────────┴► one write, one sync
//!            Raft of every group ──► apply ──► answers wait
//! ```
//!
//! While there is something to do, more gathers: a turn of one lone proposal is short, one of many clients carries them
//! all. So a thread is woken per turn, not per proposal, and none at all between Raft and the disk.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use meridian_failpoint::failpoint;
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::timeout;

use crate::log::{Log, Prompter, REST};

/// A turn that still grows is ended after so many rounds of all the engine's tasks: whoever waits must not wait for a
/// lull. A round is microseconds.
const ROUNDS_MAX: usize = 32;

/// Sends some answers.
pub(crate) type Answers = Box<dyn FnOnce() + Send>;

/// What an engine does at the end of a turn.
pub(crate) struct Turn {
    log: Arc<Log>,
    place: Place,
    answers: Mutex<Vec<Answers>>,
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
        let (answers, asked, wake) = (Mutex::default(), AtomicU64::new(0), Notify::new());
        Arc::new(Turn { log, place, answers, asked, wake })
    }

    /// Has these answers sent at the end of the turn.
    pub(crate) fn answer(&self, answers: Answers) {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).push(answers);
        self.ask();
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
            self.send_answers();
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

    fn send_answers(&self) {
        let answers = std::mem::take(&mut *self.answers.lock().unwrap_or_else(PoisonError::into_inner));
        failpoint("turn.answers.before");
        answers.into_iter().for_each(|send| send());
        failpoint("turn.answers.after");
    }
}
