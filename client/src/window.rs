//! The sequence numbers of writes whose outcome is still open (ONE-1).
//!
//! Nodes keep the results of a client's writes from the lowest outstanding one on, so that a retry gets the first
//! answer. The window bounds how many that can be: a write that is stuck holds back new ones only when they are
//! [`SPREAD_MAX`] ahead of it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The most sequence numbers between the oldest open write and the newest.
const SPREAD_MAX: usize = 16_384;

pub(crate) struct Window {
    state: Mutex<State>,
    advanced: Notify,
}

struct State {
    /// The lowest open sequence number, or the next one to be given out.
    lowest: u64,
    /// Whether `lowest + i` is still open. Its front, if any, always is.
    open: VecDeque<bool>,
}

/// A write whose outcome is open; closed when dropped, after which it is never tried again.
pub(crate) struct Slot<'a> {
    window: &'a Window,
    sequence: u64,
}

impl Window {
    pub(crate) fn new() -> Window {
        Window { state: Mutex::new(State { lowest: 1, open: VecDeque::new() }), advanced: Notify::new() }
    }

    /// The next sequence number, as soon as the window has room for it.
    pub(crate) async fn begin(&self) -> Slot<'_> {
        loop {
            if let Some(slot) = self.try_begin() {
                return slot;
            }
            let advanced = self.advanced.notified();
            tokio::pin!(advanced);
            advanced.as_mut().enable();
            // It may have advanced between the attempt above and now.
            if let Some(slot) = self.try_begin() {
                return slot;
            }
            advanced.await;
        }
    }

    fn try_begin(&self) -> Option<Slot<'_>> {
        let mut state = self.state();
        if state.open.len() >= SPREAD_MAX {
            return None;
        }
        let sequence = state.lowest + state.open.len() as u64;
        state.open.push_back(true);
        Some(Slot { window: self, sequence })
    }

    /// No write below this will be tried again.
    pub(crate) fn lowest(&self) -> u64 {
        self.state().lowest
    }

    fn end(&self, sequence: u64) {
        let mut state = self.state();
        let was_full = state.open.len() >= SPREAD_MAX;
        let at = usize::try_from(sequence - state.lowest).unwrap_or(usize::MAX);
        if let Some(open) = state.open.get_mut(at) {
            *open = false;
        }
        while state.open.front() == Some(&false) {
            state.open.pop_front();
            state.lowest += 1;
        }
        let has_room = state.open.len() < SPREAD_MAX;
        drop(state);
        if was_full && has_room {
            self.advanced.notify_waiters();
        }
    }

    /// Nothing in here can panic half-way, so a poisoned lock still guards a whole state.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot<'_> {
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.window.end(self.sequence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_lowest_outstanding_never_passes_an_open_write() {
        let window = Window::new();
        let (first, second, third) = (window.begin().await, window.begin().await, window.begin().await);
        assert_eq!((first.sequence(), second.sequence(), third.sequence()), (1, 2, 3));
        drop(second);
        assert_eq!(window.lowest(), 1);
        drop(first);
        assert_eq!(window.lowest(), 3);
        drop(third);
        assert_eq!(window.lowest(), 4);
        assert_eq!(window.begin().await.sequence(), 4);
    }

    #[tokio::test]
    async fn a_stuck_write_holds_back_those_too_far_ahead_and_lets_them_go_when_it_ends() {
        let window = Window::new();
        let stuck = window.begin().await;
        for _ in 1..SPREAD_MAX {
            drop(window.begin().await);
        }
        let waits = window.begin();
        tokio::pin!(waits);
        assert!(futures::poll!(waits.as_mut()).is_pending());
        drop(stuck);
        assert_eq!(waits.await.sequence(), SPREAD_MAX as u64 + 1);
    }
}
