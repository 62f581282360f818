//! How fast repairs may receive, all of this node together: a link that replicates must not be filled by what can wait.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Bytes per second, and when the next may come.
#[derive(Debug)]
pub(crate) struct Pace {
    bytes_per_s: u64,
    next: Mutex<Option<Instant>>,
}

impl Pace {
    pub(crate) fn new(bytes_per_s: u64) -> Pace {
        Pace { bytes_per_s: bytes_per_s.max(1), next: Mutex::new(None) }
    }

    /// Waits until so many bytes, which have just come, are paid for.
    pub(crate) async fn pay(&self, bytes: usize) {
        let until = self.book(Instant::now(), bytes);
        sleep_until(until).await;
    }

    fn book(&self, now: Instant, bytes: usize) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64);
        let until = next.unwrap_or(now).max(now) + takes;
        *next = Some(until);
        until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_receive_together_keeps_to_the_pace_and_a_pause_is_not_saved_up() {
        let (pace, now) = (Pace::new(1000), Instant::now());
        let second = Duration::from_secs(1);
        assert_eq!(pace.book(now, 500), now + second / 2);
        assert_eq!(pace.book(now, 1000), now + second * 3 / 2);
        assert_eq!(pace.book(now + second * 10, 1000), now + second * 11);
    }
}
