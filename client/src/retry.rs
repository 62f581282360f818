//! When to try again: full jitter, so that clients which failed together don't come back together.
//!
//! After Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).

use std::time::Duration;

use rand::Rng;

/// How a request is tried again, always under the same request id (ONE-1) and within its deadline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The longest pause after the first attempt; doubles with each further one.
    pub pause_min: Duration,
    /// No pause is longer.
    pub pause_max: Duration,
    /// How long one attempt may take before another node is tried. Writes that wait for other regions need their time:
    /// several round trips.
    pub attempt_max: Duration,
    /// The most attempts; the deadline ends them anyway.
    pub attempts_max: u32,
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy {
            pause_min: Duration::from_millis(10),
            pause_max: Duration::from_secs(1),
            attempt_max: Duration::from_secs(5),
            attempts_max: u32::MAX,
        }
    }
}

impl RetryPolicy {
    /// Every request is tried once.
    pub fn never() -> RetryPolicy {
        RetryPolicy { attempts_max: 1, ..RetryPolicy::default() }
    }

    /// The pause after that many attempts: anywhere between none and the doubled bound.
    pub(crate) fn pause(&self, attempts: u32) -> Duration {
        let doubled = self.pause_min.saturating_mul(1 << attempts.saturating_sub(1).min(16));
        let bound = doubled.min(self.pause_max);
        bound.mul_f64(rand::rng().random::<f64>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bound_and_never_beyond() {
        let policy = RetryPolicy::default();
        for attempts in 1..100 {
            let pause = policy.pause(attempts);
            assert!(pause <= policy.pause_max);
            assert!(attempts > 1 || pause <= policy.pause_min);
        }
    }
}
