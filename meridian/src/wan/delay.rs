//! A bounded queue whose items come out when they are due, with the precision of a sleeping thread.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Items wait here until they are due. One thread takes them out; items of one queue fall due in the order they came,
/// because everything in it travels the same wire.
#[derive(Debug)]
pub(super) struct DelayQueue<T> {
    bytes_max: usize,
    inner: Mutex<Inner<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct Inner<T> {
    items: VecDeque<Item<T>>,
    bytes: usize,
    closed: bool,
}

#[derive(Debug)]
struct Item<T> {
    due: Instant,
    bytes: usize,
    value: T,
}

impl<T> DelayQueue<T> {
    /// A queue of at most this many bytes; one item always fits (RES-1).
    pub(super) fn new(bytes_max: usize) -> DelayQueue<T> {
        let inner = Inner { items: VecDeque::new(), bytes: 0, closed: false };
        DelayQueue { bytes_max, inner: Mutex::new(inner), changed: Condvar::new() }
    }

    /// Puts an item in; false when it was dropped because the queue is full or closed.
    pub(super) fn push_or_drop(&self, due: Instant, bytes: usize, value: T) -> bool {
        let inner = self.lock();
        if inner.closed || !self.fits(&inner, bytes) {
            return false;
        }
        self.append(inner, Item { due, bytes, value });
        true
    }

    /// Puts an item in, waiting for room; false when the queue was closed.
    pub(super) fn push_or_wait(&self, due: Instant, bytes: usize, value: T) -> bool {
        let mut inner = self.lock();
        while !inner.closed && !self.fits(&inner, bytes) {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        if inner.closed {
            return false;
        }
        self.append(inner, Item { due, bytes, value });
        true
    }

    /// Waits for the next due items and moves all of them into `out`; false once the queue is closed.
    pub(super) fn take_due(&self, out: &mut Vec<T>) -> bool {
        let Some(due) = self.wait_for_next() else { return false };
        sleep_until(due);
        let mut inner = self.lock();
        let now = Instant::now();
        while inner.items.front().is_some_and(|item| item.due <= now) {
            let Some(item) = inner.items.pop_front() else { break };
            inner.bytes -= item.bytes;
            out.push(item.value);
        }
        let open = !inner.closed;
        drop(inner);
        self.changed.notify_all();
        open
    }

    /// Throws everything away and ends whoever waits.
    pub(super) fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.items.clear();
        inner.bytes = 0;
        drop(inner);
        self.changed.notify_all();
    }

    fn wait_for_next(&self) -> Option<Instant> {
        let mut inner = self.lock();
        loop {
            if inner.closed {
                return None;
            }
            if let Some(item) = inner.items.front() {
                return Some(item.due);
            }
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn append(&self, mut inner: MutexGuard<'_, Inner<T>>, item: Item<T>) {
        // The taker sleeps until the head is due, so only the first item has anybody to wake.
        let was_empty = inner.items.is_empty();
        inner.bytes += item.bytes;
        inner.items.push_back(item);
        drop(inner);
        if was_empty {
            self.changed.notify_all();
        }
    }

    fn fits(&self, inner: &Inner<T>, bytes: usize) -> bool {
        inner.items.is_empty() || inner.bytes + bytes <= self.bytes_max
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What Linux adds to every sleep of an ordinary thread, so that timers can be fired together (prctl(2), PR_SET_TIMERSLACK).
const TIMER_SLACK: Duration = Duration::from_micros(50);

/// Never returns early: what arrives early would be a distance that isn't there.
pub(super) fn sleep_until(due: Instant) {
    loop {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        match left.checked_sub(TIMER_SLACK) {
            Some(most) if !most.is_zero() => std::thread::sleep(most),
            // Too short to sleep: let others run meanwhile.
            _ => std::thread::yield_now(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_come_out_in_order_and_never_early() {
        let queue = DelayQueue::new(100);
        let due = Instant::now() + Duration::from_millis(20);
        assert!(queue.push_or_drop(due, 60, 'a'));
        assert!(queue.push_or_drop(due, 40, 'b'));
        assert!(!queue.push_or_drop(due, 1, 'c'), "the queue is full");
        let mut out = Vec::new();
        assert!(queue.take_due(&mut out));
        assert!(Instant::now() >= due);
        assert_eq!(out, ['a', 'b']);
    }

    #[test]
    fn a_closed_queue_lets_everybody_go() {
        let queue = DelayQueue::new(10);
        queue.close();
        assert!(!queue.push_or_wait(Instant::now(), 1, ()));
        assert!(!queue.take_due(&mut Vec::new()));
    }
}
