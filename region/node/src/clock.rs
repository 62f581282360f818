//! Time, as a seam: the wall clock that timestamps follow, and the monotonic clock that staleness is measured with.
//!
//! The wall clock here is not the machine's. A step of that one may be a mistake or the end of one, and alone a node can't
//! tell which: steps are slewed. With a witness it can: once the machine's clock *and* a peer's timestamps are ahead of the
//! time given out here, the step was a correction, and is followed as far as both agree ([`Steering::vouch`]).

use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Where this node reads the time.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since 1970. May stand still, never steps backwards.
    fn wall_ms(&self) -> u64;

    /// Milliseconds since some fixed moment of this process. The clock whose readings are sent as probes and come back as echoes.
    fn monotonic_ms(&self) -> u64;

    /// [`Clock::wall_ms`], when a peer's timestamp reads `peer_ms`: what to judge that peer by. Follows the peer only as far as
    /// the machine's own clock says the same.
    fn wall_beside_ms(&self, peer_ms: u64) -> u64;
}

/// The machine's clocks. Steps of the wall clock are not followed but slewed: a clock set an hour ahead by mistake
/// and then corrected must not leave timestamps that win every conflict for an hour.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
    steering: Mutex<Steering>,
}

/// How much faster or slower than real time the clock may run to meet the wall clock: one part in this many.
const SLEW: i64 = 10;

/// Differences up to this are the wall clock's own correction (NTP slews by less), and are followed at once, in microseconds.
const FOLLOW_US: i64 = 100_000;

/// A clock that follows the wall clock by slewing. Pure: both clocks are arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steering {
    /// The time given out last, in microseconds since 1970.
    wall_us: i64,
    /// When, in microseconds since the start.
    at_us: i64,
}

impl Steering {
    /// Starts `at_us` after the start, at what the wall clock says.
    pub fn start(at_us: i64, wall_us: i64) -> Steering {
        Steering { wall_us, at_us }
    }

    /// The reading in milliseconds since 1970.
    pub fn wall_ms(self) -> u64 {
        u64::try_from(self.wall_us / 1000).unwrap_or_default()
    }

    /// The next reading, `at_us` after the start, when the wall clock says `wall_us`.
    #[must_use]
    pub fn step(self, at_us: i64, wall_us: i64) -> Steering {
        let elapsed = (at_us - self.at_us).max(0);
        let expected = self.wall_us + elapsed;
        let difference = wall_us - expected;
        let followed =
            if difference.abs() <= FOLLOW_US { difference } else { difference.clamp(-elapsed / SLEW, elapsed / SLEW) };
        Steering { wall_us: (expected + followed).max(self.wall_us), at_us }
    }

    /// A peer's timestamp says `peer_us`, and the wall clock says `wall_us`: what both are ahead of the reading was missing
    /// from it. A node that started while its clock was an hour behind would else be slewed for ten hours after the clock
    /// was set, and take all others for poisoned meanwhile.
    #[must_use]
    pub fn vouch(self, wall_us: i64, peer_us: i64) -> Steering {
        Steering { wall_us: self.wall_us.max(wall_us.min(peer_us)), ..self }
    }
}

impl SystemClock {
    /// Starts at what the wall clock says now.
    pub fn start() -> SystemClock {
        SystemClock { start: Instant::now(), steering: Mutex::new(Steering::start(0, system_us())) }
    }

    /// The reading after a step and `then`, which is given what the machine's wall clock says.
    fn read(&self, then: impl FnOnce(Steering, i64) -> Steering) -> u64 {
        let at_us = i64::try_from(self.start.elapsed().as_micros()).unwrap_or(i64::MAX);
        let wall_us = system_us();
        // A panic elsewhere can't have left two integers half-written.
        let mut steering = self.steering.lock().unwrap_or_else(PoisonError::into_inner);
        *steering = then(steering.step(at_us.max(steering.at_us), wall_us), wall_us);
        steering.wall_ms()
    }
}

impl Default for SystemClock {
    fn default() -> SystemClock {
        SystemClock::start()
    }
}

impl Clock for SystemClock {
    fn wall_ms(&self) -> u64 {
        self.read(|steering, _| steering)
    }

    fn monotonic_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn wall_beside_ms(&self, peer_ms: u64) -> u64 {
        let peer_us = i64::try_from(peer_ms.saturating_mul(1000)).unwrap_or(i64::MAX);
        self.read(|steering, wall_us| steering.vouch(wall_us, peer_us))
    }
}

/// The wall clock in microseconds since 1970; 0 when it stands before that.
fn system_us() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_micros()).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;
    const HOUR: i64 = 3600 * SECOND;

    #[test]
    fn a_step_ahead_is_slewed_and_its_correction_leaves_no_trace() {
        let mut clock = Steering { wall_us: HOUR, at_us: 0 };
        for second in 1..=10 {
            clock = clock.step(second * SECOND, 2 * HOUR + second * SECOND);
        }
        assert_eq!(clock.wall_us, HOUR + 11 * SECOND, "ten seconds at a tenth faster");
        for second in 11..=120 {
            clock = clock.step(second * SECOND, HOUR + second * SECOND);
        }
        assert_eq!(clock.wall_us, HOUR + 120 * SECOND);
    }

    #[test]
    fn a_step_back_slows_the_clock_down_but_never_turns_it() {
        let mut clock = Steering { wall_us: 2 * HOUR, at_us: 0 };
        let mut last = clock.wall_us;
        for second in 1..=10 {
            clock = clock.step(second * SECOND, HOUR + second * SECOND);
            assert!(clock.wall_us > last);
            last = clock.wall_us;
        }
        assert_eq!(clock.wall_us, 2 * HOUR + 9 * SECOND);
    }

    #[test]
    fn a_correction_that_a_peer_confirms_is_followed_at_once_and_no_further_than_both_say() {
        let behind = Steering { wall_us: HOUR, at_us: 0 };
        let set = behind.step(SECOND, 2 * HOUR + SECOND);
        assert!(set.wall_us < HOUR + 2 * SECOND, "alone, it is slewed");
        assert_eq!(set.vouch(2 * HOUR + SECOND, 2 * HOUR).wall_us, 2 * HOUR, "the peer was there");
        assert_eq!(set.vouch(2 * HOUR + SECOND, 9 * HOUR).wall_us, 2 * HOUR + SECOND, "a peer alone proves nothing");
        assert_eq!(set.vouch(HOUR + SECOND, 2 * HOUR), set.vouch(0, 2 * HOUR), "nor does one that is ahead of a clock");
        assert_eq!(set.vouch(2 * HOUR, 0), set, "nor one that is behind");
    }

    #[test]
    fn small_corrections_are_followed_at_once() {
        let clock = Steering { wall_us: HOUR, at_us: 0 }.step(SECOND, HOUR + SECOND + 50_000);
        assert_eq!(clock.wall_us, HOUR + SECOND + 50_000);
    }
}
