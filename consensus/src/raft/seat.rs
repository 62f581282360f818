//! Where a group's state machine sits, and who works with it.
//!
//! What is quick (apply, a view for a snapshot) the group's engine does itself, between two steps of Raft: handing an
//! apply to another thread costs more than most applies. What writes a whole state or syncs a disk is done by a
//! thread of its own, the back thread, so that no sync delays an apply. A state machine is never entered twice.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError, mpsc};
use std::thread::JoinHandle;

use meridian_types::GroupId;

use crate::error::{OpenError, StateError};
use crate::log::spawn;
use crate::machine::StateMachine;
use crate::poison::{Poison, chain, panic_message};

/// One group's state machine.
pub(crate) struct Seat {
    group: GroupId,
    /// Gone for good once stopped.
    machine: Mutex<Option<Box<dyn StateMachine>>>,
    stopped: AtomicBool,
    poison: Poison,
}

/// Why work with a state machine came to nothing.
#[derive(Debug)]
pub(crate) enum Undone {
    /// The group was stopped.
    Stopped,
    /// The state machine failed, which is the end of this node.
    Failed(String),
}

impl Seat {
    pub(crate) fn new(group: GroupId, machine: Box<dyn StateMachine>, poison: &Poison) -> Seat {
        let (machine, stopped) = (Mutex::new(Some(machine)), AtomicBool::new(false));
        Seat { group, machine, stopped, poison: poison.clone() }
    }

    /// Works with the state machine unless another thread does; then gives the job back.
    pub(crate) fn try_with<T, J>(&self, job: J) -> Result<Result<T, Undone>, J>
    where
        J: FnOnce(&mut dyn StateMachine) -> Result<T, StateError>,
    {
        match self.machine.try_lock() {
            Ok(place) => Ok(self.work(place, job)),
            Err(TryLockError::Poisoned(place)) => Ok(self.work(place.into_inner(), job)),
            Err(TryLockError::WouldBlock) => Err(job),
        }
    }

    /// Works with the state machine as soon as no other thread does.
    pub(crate) fn with<T>(
        &self,
        job: impl FnOnce(&mut dyn StateMachine) -> Result<T, StateError>,
    ) -> Result<T, Undone> {
        self.work(self.machine.lock().unwrap_or_else(PoisonError::into_inner), job)
    }

    fn work<T>(
        &self,
        mut place: MutexGuard<'_, Option<Box<dyn StateMachine>>>,
        job: impl FnOnce(&mut dyn StateMachine) -> Result<T, StateError>,
    ) -> Result<T, Undone> {
        let Some(machine) = place.as_mut() else { return Err(Undone::Stopped) };
        let done = self.watched(|| job(machine.as_mut()));
        if done.is_err() || self.stopped.load(Ordering::Acquire) {
            *place = None;
        }
        done
    }

    /// Does something on behalf of the group; its failure or panic poisons the node.
    pub(crate) fn watched<T>(&self, job: impl FnOnce() -> Result<T, StateError>) -> Result<T, Undone> {
        let message = match std::panic::catch_unwind(AssertUnwindSafe(job)) {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(error)) => chain(&error),
            Err(panic) => format!("its state machine panicked: {}", panic_message(panic.as_ref())),
        };
        self.poison.report(Some(self.group), message.as_str());
        Err(Undone::Failed(message))
    }

    /// Drops the state machine, at the latest when the thread that works with it is done.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        if let Ok(mut machine) = self.machine.try_lock() {
            *machine = None;
        }
    }
}

/// The thread for what isn't quick.
pub(crate) struct Back {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

type Job = Box<dyn FnOnce() + Send>;

impl Back {
    pub(crate) fn start(poison: &Poison) -> Result<Back, OpenError> {
        // Bounded by the number of groups: each has at most one persist and one restore under way.
        let (sender, jobs) = mpsc::channel::<Job>();
        let thread = spawn("persist", poison, move || jobs.into_iter().for_each(|job| job()))?;
        Ok(Back { jobs: Mutex::new(Some(sender)), thread: Mutex::new(Some(thread)) })
    }

    /// Queues a job; dropped undone once closed.
    pub(crate) fn submit(&self, job: Job) {
        if let Some(jobs) = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            // An error means that the thread has ended; whoever waits sees the job dropped.
            drop(jobs.send(job));
        }
    }

    /// Ends the thread after what is queued.
    pub(crate) fn close(&self) {
        drop(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Back {
    fn drop(&mut self) {
        self.close();
    }
}
