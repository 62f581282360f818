//! How long something has been running, told to whoever asks without a lock: a disk that hangs fails nothing and says nothing, so
//! that only what does not come back shows it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Measures one thing at a time, on the monotonic clock.
#[derive(Debug)]
pub struct Stopwatch {
    made: Instant,
    /// Nanoseconds from `made` to when it began, and one more; 0 while nothing runs.
    begun: AtomicU64,
}

impl Default for Stopwatch {
    fn default() -> Stopwatch {
        Stopwatch { made: Instant::now(), begun: AtomicU64::new(0) }
    }
}

impl Stopwatch {
    /// Something runs from now on, until what is returned is dropped.
    #[must_use = "what runs has ended when this is dropped"]
    pub fn start(&self) -> Running<'_> {
        self.begun.store(self.now() + 1, Ordering::Relaxed);
        Running(self)
    }

    /// For how long what runs has been running; `None` while nothing does.
    pub fn elapsed(&self) -> Option<Duration> {
        let begun = self.begun.load(Ordering::Relaxed).checked_sub(1)?;
        Some(Duration::from_nanos(self.now().saturating_sub(begun)))
    }

    fn now(&self) -> u64 {
        // Five hundred years fit.
        u64::try_from(self.made.elapsed().as_nanos()).unwrap_or(u64::MAX - 1)
    }
}

/// What runs, until it is dropped.
#[derive(Debug)]
pub struct Running<'a>(&'a Stopwatch);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.begun.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_runs_is_measured_and_each_from_its_own_beginning() {
        let watch = Stopwatch::default();
        assert_eq!(watch.elapsed(), None);
        let running = watch.start();
        std::thread::sleep(Duration::from_millis(5));
        assert!(watch.elapsed() >= Some(Duration::from_millis(5)));
        drop(running);
        assert_eq!(watch.elapsed(), None);
        let before = Instant::now();
        let _running = watch.start();
        assert!(watch.elapsed() <= Some(before.elapsed()));
    }
}
