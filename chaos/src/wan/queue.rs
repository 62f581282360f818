//! Packets that wait until they are due, and come out within some tens of microseconds of it.
//!
//! One thread takes; it sleeps on a condition variable until the next packet is due. With the thread's timer slack
//! set to its least, Linux wakes it as precisely as the machine can.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The most bytes that may be on their way to one region: two seconds of a gigabit.
const BYTES_MAX: usize = 256 << 20;

#[derive(Debug, Default)]
pub(super) struct DueQueue {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: BinaryHeap<Reverse<Waiting>>,
    /// Numbers packets, so that those due at the same time leave in the order they came.
    next: u64,
    bytes: usize,
    closed: bool,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    due: Instant,
    number: u64,
    packet: Vec<u8>,
}

impl DueQueue {
    /// Puts a packet in; false when it was dropped because the queue is full or closed.
    pub(super) fn push(&self, due: Instant, packet: Vec<u8>) -> bool {
        let mut inner = self.lock();
        if inner.closed || inner.bytes + packet.len() > BYTES_MAX {
            return false;
        }
        inner.bytes += packet.len();
        let number = inner.next;
        inner.next += 1;
        let is_first = inner.waiting.peek().is_none_or(|Reverse(first)| due < first.due);
        inner.waiting.push(Reverse(Waiting { due, number, packet }));
        drop(inner);
        // The taker sleeps until the first is due: only a new first has anybody to wake.
        if is_first {
            self.changed.notify_one();
        }
        true
    }

    /// Waits for packets to be due and moves all that are into `out`; false once closed.
    pub(super) fn take_due(&self, out: &mut Vec<Vec<u8>>) -> bool {
        let mut inner = self.lock();
        loop {
            if inner.closed {
                return false;
            }
            let now = Instant::now();
            while inner.waiting.peek().is_some_and(|Reverse(first)| first.due <= now) {
                let Some(Reverse(first)) = inner.waiting.pop() else { break };
                inner.bytes -= first.packet.len();
                out.push(first.packet);
            }
            if !out.is_empty() {
                return true;
            }
            let due = inner.waiting.peek().map(|Reverse(first)| first.due);
            inner = match due {
                Some(due) => {
                    let left = due.saturating_duration_since(now);
                    self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Throws everything away and ends whoever takes.
    pub(super) fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.waiting.clear();
        inner.bytes = 0;
        drop(inner);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn packets_leave_by_when_they_are_due_and_never_early() {
        let queue = DueQueue::default();
        let now = Instant::now();
        for (after_ms, name) in [(20, 3), (5, 1), (20, 4), (10, 2)] {
            assert!(queue.push(now + Duration::from_millis(after_ms), vec![name]));
        }
        let mut out = Vec::new();
        while out.len() < 4 {
            assert!(queue.take_due(&mut out));
        }
        assert!(now.elapsed() >= Duration::from_millis(20));
        assert_eq!(out.concat(), [1, 2, 3, 4]);
    }

    #[test]
    fn an_earlier_packet_wakes_the_taker() {
        let queue = DueQueue::default();
        let now = Instant::now();
        assert!(queue.push(now + Duration::from_secs(60), vec![2]));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                queue.push(Instant::now(), vec![1]);
            });
            let mut out = Vec::new();
            assert!(queue.take_due(&mut out));
            assert_eq!(out, [vec![1]]);
        });
        assert!(now.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_closed_queue_takes_nothing_and_lets_everybody_go() {
        let queue = DueQueue::default();
        queue.close();
        assert!(!queue.push(Instant::now(), vec![1]));
        assert!(!queue.take_due(&mut Vec::new()));
    }
}
