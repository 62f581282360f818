//! One direction of a link: when what is sent now arrives, if it does.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::distances::Conditions;

/// The smallest queue in front of a limited wire: about what one burst of a QUIC sender needs.
const QUEUE_BYTES_MIN: u64 = 256 << 10;

/// What may be on its way in one flow of an unlimited wire: 64 MiB is 800 ms at 640 Mbit/s, or 80 ms at 6.4 Gbit/s.
const FLIGHT_BYTES_UNLIMITED: u64 = 64 << 20;

/// One direction of a link, shared by every flow through it.
#[derive(Debug)]
pub struct Wire {
    conditions: Conditions,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// When the last byte accepted so far will have left: the head of the queue's other end.
    free_at: Option<Instant>,
    cut: bool,
    stopped: bool,
}

impl Wire {
    /// A wire under these conditions.
    pub fn new(conditions: Conditions) -> Wire {
        let state = State { free_at: None, cut: false, stopped: false };
        Wire { conditions, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// What it does to what passes through it.
    pub fn conditions(&self) -> Conditions {
        self.conditions
    }

    /// When a datagram sent `now` arrives; `None` when it is lost: cut, queue full, or `draw` (uniform in 0..1) below the loss.
    pub fn admit_datagram(&self, now: Instant, bytes: usize, draw: f64) -> Option<Instant> {
        let mut state = self.lock();
        if state.cut || draw < self.conditions.loss {
            return None;
        }
        if self.queued(&state, now) > self.queue_time() {
            return None;
        }
        Some(self.take(&mut state, now, bytes))
    }

    /// When a piece of a stream sent `now` arrives.
    pub fn admit_piece(&self, now: Instant, bytes: usize) -> Instant {
        self.take(&mut self.lock(), now, bytes)
    }

    /// How long a stream must wait before the queue has room again: the back-pressure of a full wire.
    pub fn pressure(&self, now: Instant) -> Duration {
        self.queued(&self.lock(), now).saturating_sub(self.queue_time())
    }

    /// Cuts or mends it.
    pub fn set_cut(&self, cut: bool) {
        self.lock().cut = cut;
        self.changed.notify_all();
    }

    /// Whether it is cut.
    pub fn is_cut(&self) -> bool {
        self.lock().cut
    }

    /// Waits until it is whole; false when it will not be used any more.
    pub(super) fn wait_until_whole(&self) -> bool {
        let mut state = self.lock();
        while state.cut && !state.stopped {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.stopped
    }

    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    /// The most bytes one flow may have on its way: the bandwidth-delay product and a full queue.
    pub(super) fn flight_bytes_max(&self) -> usize {
        let bytes = match self.conditions.bits_per_second {
            None => FLIGHT_BYTES_UNLIMITED,
            Some(rate) => self.product_bytes(rate) + self.queue_bytes(rate),
        };
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    fn take(&self, state: &mut State, now: Instant, bytes: usize) -> Instant {
        let start = state.free_at.map_or(now, |free| free.max(now));
        let leaves = match self.conditions.bits_per_second {
            None => start,
            Some(rate) => start + Duration::from_secs_f64(bytes as f64 * 8.0 / rate as f64),
        };
        state.free_at = Some(leaves);
        leaves + self.conditions.delay
    }

    fn queued(&self, state: &State, now: Instant) -> Duration {
        state.free_at.map_or(Duration::ZERO, |free| free.saturating_duration_since(now))
    }

    fn queue_time(&self) -> Duration {
        match self.conditions.bits_per_second {
            None => Duration::MAX,
            Some(rate) => Duration::from_secs_f64(self.queue_bytes(rate) as f64 * 8.0 / rate as f64),
        }
    }

    /// A router's buffer of one bandwidth-delay product, as is customary.
    fn queue_bytes(&self, rate: u64) -> u64 {
        self.product_bytes(rate).max(QUEUE_BYTES_MIN)
    }

    fn product_bytes(&self, rate: u64) -> u64 {
        (rate as f64 / 8.0 * 2.0 * self.conditions.delay.as_secs_f64()) as u64
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is a handful of plain values: a panic elsewhere can't leave it half written.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(delay_ms: u64, rate: Option<u64>, loss: f64) -> Wire {
        Wire::new(Conditions { delay: Duration::from_millis(delay_ms), bits_per_second: rate, loss })
    }

    #[test]
    fn a_wire_delays_and_a_limited_one_queues() {
        let now = Instant::now();
        let unlimited = wire(40, None, 0.0);
        assert_eq!(unlimited.admit_piece(now, 1 << 20), now + Duration::from_millis(40));
        // 8 Mbit/s moves 1,000 bytes in 1 ms; the second waits for the first.
        let limited = wire(40, Some(8_000_000), 0.0);
        assert_eq!(limited.admit_piece(now, 1000), now + Duration::from_millis(41));
        assert_eq!(limited.admit_piece(now, 1000), now + Duration::from_millis(42));
    }

    #[test]
    fn a_full_queue_drops_datagrams_and_holds_streams_back() {
        let now = Instant::now();
        let wire = wire(1, Some(8_000_000), 0.0);
        let arrivals = (0..2000).filter(|_| wire.admit_datagram(now, 1000, 0.5).is_some()).count();
        // 256 KiB of queue: 262 datagrams, and the one that found it exactly full.
        assert!((262..=264).contains(&arrivals), "{arrivals}");
        wire.admit_piece(now, 100_000);
        assert!(wire.pressure(now) > Duration::from_millis(50));
    }

    #[test]
    fn loss_and_a_cut_swallow_datagrams_only() {
        let now = Instant::now();
        let wire = wire(1, None, 0.01);
        assert!(wire.admit_datagram(now, 100, 0.009).is_none());
        assert!(wire.admit_datagram(now, 100, 0.011).is_some());
        wire.set_cut(true);
        assert!(wire.admit_datagram(now, 100, 0.5).is_none());
        assert!(wire.is_cut());
    }
}
