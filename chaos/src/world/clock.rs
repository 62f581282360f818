//! The clocks of one node: a monotonic one that may run too fast or too slow, and a wall clock that may also be set wrong.
//!
//! The node reads them as a server does: the wall clock through the product's own slewing
//! ([`meridian_region_node::Steering`]). Timers of tasks follow true time: a timer that is late or early by a few per cent
//! is within what any scheduler does.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use meridian_region_node::{Clock, Steering};

use super::executor::Spawner;

/// What true time was when a world began, in milliseconds since 1970: some day after this software was written.
pub const EPOCH_MS: u64 = 1_790_000_000_000;

/// The clocks of one node.
pub(crate) struct NodeClock {
    spawner: Spawner,
    state: Mutex<State>,
}

struct State {
    /// How fast it runs, in parts per million of true time.
    rate_ppm: u64,
    /// When the rate was set: true time and the monotonic clock then, in microseconds.
    since: (u64, u64),
    /// What the wall clock is ahead of the monotonic one, in microseconds.
    wall_offset_us: i64,
    steering: Steering,
}

impl NodeClock {
    /// A clock that is right, but for an offset of its wall clock.
    pub(crate) fn new(spawner: Spawner, wall_offset_us: i64) -> NodeClock {
        let now_us = spawner.now_us();
        let mut state =
            State { rate_ppm: 1_000_000, since: (now_us, now_us), wall_offset_us, steering: Steering::start(0, 0) };
        state.steering = Steering::start(state.mono(now_us), state.system_us(now_us));
        NodeClock { spawner, state: Mutex::new(state) }
    }

    /// The process starts anew: its slewing begins at what the system's clock says.
    pub(crate) fn restart(&self) {
        let now_us = self.spawner.now_us();
        let mut state = self.state();
        state.steering = Steering::start(state.mono(now_us), state.system_us(now_us));
    }

    /// From now on it runs at this rate, in parts per million of true time.
    pub(crate) fn set_rate(&self, rate_ppm: u64) {
        let now_us = self.spawner.now_us();
        let mut state = self.state();
        let mono = state.monotonic_us(now_us);
        state.since = (now_us, mono);
        state.rate_ppm = rate_ppm.max(1);
    }

    /// Sets the wall clock by that much.
    pub(crate) fn set_wall(&self, by_ms: i64) {
        self.state().wall_offset_us += by_ms * 1000;
    }

    /// Its wall clock is right again and both run as fast as time does.
    pub(crate) fn heal(&self) {
        self.set_rate(1_000_000);
        let now_us = self.spawner.now_us();
        let mut state = self.state();
        let mono = i64::try_from(state.monotonic_us(now_us)).unwrap_or(i64::MAX);
        state.wall_offset_us = i64::try_from(now_us).unwrap_or(i64::MAX) - mono;
    }

    /// How far its wall clock is ahead of true time, in milliseconds; 0 when it is behind.
    pub(crate) fn wall_ahead_ms(&self) -> u64 {
        let now_us = self.spawner.now_us();
        let state = self.state();
        let ahead_us = state.mono(now_us) + state.wall_offset_us - i64::try_from(now_us).unwrap_or(i64::MAX);
        u64::try_from(ahead_us / 1000).unwrap_or_default()
    }

    /// Its monotonic clock as an instant, for the cores that count with instants.
    pub(crate) fn instant(&self) -> Instant {
        let mono_us = self.state().monotonic_us(self.spawner.now_us());
        self.spawner.moment(0).into_std() + Duration::from_micros(mono_us)
    }

    /// When, in true microseconds, its monotonic clock reads that instant, if nobody changes its rate.
    pub(crate) fn true_us(&self, instant: Instant) -> u64 {
        let state = self.state();
        let mono_us = instant.saturating_duration_since(self.spawner.moment(0).into_std()).as_micros();
        let ahead = u64::try_from(mono_us).unwrap_or(u64::MAX).saturating_sub(state.since.1);
        let truth = u128::from(ahead) * 1_000_000 / u128::from(state.rate_ppm);
        state.since.0 + u64::try_from(truth).unwrap_or(u64::MAX)
    }

    /// As the product's clock reads: after a step and `then`, which is given what the machine's wall clock says.
    fn read(&self, then: impl FnOnce(Steering, i64) -> Steering) -> u64 {
        let now_us = self.spawner.now_us();
        let mut state = self.state();
        let (mono, system) = (state.mono(now_us), state.system_us(now_us));
        state.steering = then(state.steering.step(mono, system), system);
        state.steering.wall_ms()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn monotonic_us(&self, now_us: u64) -> u64 {
        let elapsed = u128::from(now_us.saturating_sub(self.since.0)) * u128::from(self.rate_ppm) / 1_000_000;
        self.since.1 + u64::try_from(elapsed).unwrap_or(u64::MAX)
    }

    fn mono(&self, now_us: u64) -> i64 {
        i64::try_from(self.monotonic_us(now_us)).unwrap_or(i64::MAX)
    }

    fn system_us(&self, now_us: u64) -> i64 {
        i64::try_from(EPOCH_MS * 1000).unwrap_or(i64::MAX) + self.mono(now_us) + self.wall_offset_us
    }
}

impl Clock for NodeClock {
    fn wall_ms(&self) -> u64 {
        self.read(|steering, _| steering)
    }

    fn monotonic_ms(&self) -> u64 {
        self.state().monotonic_us(self.spawner.now_us()) / 1000
    }

    fn wall_beside_ms(&self, peer_ms: u64) -> u64 {
        let peer_us = i64::try_from(peer_ms.saturating_mul(1000)).unwrap_or(i64::MAX);
        self.read(|steering, wall_us| steering.vouch(wall_us, peer_us))
    }
}
