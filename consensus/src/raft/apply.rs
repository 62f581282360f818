//! The apply threads: where state machines run, off the runtime's workers.
//!
//! Every group has a queue of jobs; one thread at a time works on a group, so a state machine is never
//! entered twice. Quick jobs (apply, snapshot) are done by the apply threads, slow ones (persist, restore) by a
//! thread of their own, so that one group's sync never delays another group's applies.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use meridian_types::GroupId;

use crate::error::OpenError;
use crate::log::spawn;
use crate::machine::StateMachine;
use crate::poison::{Poison, panic_message};

/// What is done with a state machine.
pub(crate) type Job = Box<dyn FnOnce(&mut dyn StateMachine) + Send>;

/// Which thread does a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Somebody waits: microseconds.
    Quick,
    /// It may sync a disk or write a whole state.
    Slow,
}

/// One group's state machine and what waits for it.
pub(crate) struct Seat {
    group: GroupId,
    inner: Mutex<SeatInner>,
}

struct SeatInner {
    /// Away while a thread works with it; gone for good once stopped.
    machine: Option<Box<dyn StateMachine>>,
    jobs: VecDeque<(Pace, Job)>,
    /// Some thread has the seat, or it is in a run queue.
    scheduled: bool,
    stopped: bool,
}

/// The threads.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    runnable: Mutex<Runnable>,
    quick: Condvar,
    slow: Condvar,
    poison: Poison,
}

#[derive(Default)]
struct Runnable {
    quick: VecDeque<Arc<Seat>>,
    slow: VecDeque<Arc<Seat>>,
    closed: bool,
}

impl Pool {
    pub(crate) fn start(threads: usize, poison: &Poison) -> Result<Pool, OpenError> {
        let shared = Arc::new(Shared {
            runnable: Mutex::default(),
            quick: Condvar::new(),
            slow: Condvar::new(),
            poison: poison.clone(),
        });
        let mut handles = Vec::new();
        for _ in 0..threads {
            let shared = Arc::clone(&shared);
            handles.push(spawn("apply", poison, move || shared.run(Pace::Quick))?);
        }
        let slow = Arc::clone(&shared);
        handles.push(spawn("persist", poison, move || slow.run(Pace::Slow))?);
        Ok(Pool { shared, threads: Mutex::new(handles) })
    }

    pub(crate) fn seat(&self, group: GroupId, machine: Box<dyn StateMachine>) -> Arc<Seat> {
        let inner = SeatInner { machine: Some(machine), jobs: VecDeque::new(), scheduled: false, stopped: false };
        Arc::new(Seat { group, inner: Mutex::new(inner) })
    }

    /// Queues a job. It is dropped, with whatever it would have answered through, once the seat is stopped.
    pub(crate) fn submit(&self, seat: &Arc<Seat>, pace: Pace, job: Job) {
        let mut inner = seat.lock();
        if inner.stopped {
            return;
        }
        inner.jobs.push_back((pace, job));
        if !std::mem::replace(&mut inner.scheduled, true) {
            let pace = inner.jobs.front().map_or(pace, |(pace, _)| *pace);
            drop(inner);
            self.shared.schedule(Arc::clone(seat), pace);
        }
    }

    /// Drops a group's state machine once no thread works with it.
    pub(crate) fn stop(seat: &Seat) {
        let mut inner = seat.lock();
        inner.stopped = true;
        inner.machine = None;
        let jobs = std::mem::take(&mut inner.jobs);
        drop(inner);
        drop(jobs);
    }

    /// Ends the threads after what they are doing now.
    pub(crate) fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.quick.notify_all();
        self.shared.slow.notify_all();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            let _ = thread.join();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn schedule(&self, seat: Arc<Seat>, pace: Pace) {
        let mut runnable = self.lock();
        match pace {
            Pace::Quick => {
                runnable.quick.push_back(seat);
                self.quick.notify_one();
            }
            Pace::Slow => {
                runnable.slow.push_back(seat);
                self.slow.notify_one();
            }
        }
    }

    fn run(&self, pace: Pace) {
        while let Some(seat) = self.next(pace) {
            let work = std::panic::AssertUnwindSafe(|| self.work(&seat, pace));
            if let Err(panic) = std::panic::catch_unwind(work) {
                // The state machine is gone with the panic; the node must exit.
                let message = format!("its state machine panicked: {}", panic_message(panic.as_ref()));
                self.poison.report(Some(seat.group), message);
                Pool::stop(&seat);
            }
        }
    }

    fn next(&self, pace: Pace) -> Option<Arc<Seat>> {
        let mut runnable = self.lock();
        loop {
            let queue = if pace == Pace::Quick { &mut runnable.quick } else { &mut runnable.slow };
            if let Some(seat) = queue.pop_front() {
                return Some(seat);
            }
            if runnable.closed {
                return None;
            }
            let changed = if pace == Pace::Quick { &self.quick } else { &self.slow };
            runnable = changed.wait(runnable).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Does the jobs of one group that are of this thread's pace, then hands the seat on.
    fn work(&self, seat: &Arc<Seat>, pace: Pace) {
        let Some(mut machine) = seat.lock().machine.take() else { return };
        loop {
            let job = {
                let mut inner = seat.lock();
                match inner.jobs.front() {
                    Some((next, _)) if *next == pace => inner.jobs.pop_front().map(|(_, job)| job),
                    Some((other, _)) => {
                        let other = *other;
                        inner.machine = Some(machine);
                        drop(inner);
                        return self.schedule(Arc::clone(seat), other);
                    }
                    None => {
                        inner.scheduled = false;
                        if !inner.stopped {
                            inner.machine = Some(machine);
                        }
                        return;
                    }
                }
            };
            if let Some(job) = job {
                job(machine.as_mut());
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Runnable> {
        self.runnable.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    fn lock(&self) -> MutexGuard<'_, SeatInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
