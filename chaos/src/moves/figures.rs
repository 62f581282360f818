//! Durations, summed up.

use std::fmt;
use std::time::Duration;

/// Some durations, to be told as a row: how many, p50, p99, the longest.
#[derive(Clone, Debug, Default)]
pub(super) struct Durations(Vec<Duration>);

impl Durations {
    /// One more.
    pub(super) fn add(&mut self, duration: Duration) {
        self.0.push(duration);
    }

    /// The least duration that so many of a hundred do not exceed; zero of none.
    pub(super) fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or_default()
    }
}

impl Extend<Duration> for Durations {
    fn extend<I: IntoIterator<Item = Duration>>(&mut self, durations: I) {
        self.0.extend(durations);
    }
}

impl fmt::Display for Durations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |percent| self.percentile(percent).as_secs_f64() * 1000.0;
        write!(f, "{} measured: p50 {:.0} ms, p99 {:.0} ms, longest {:.0} ms", self.0.len(), ms(50), ms(99), ms(100))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_among_what_was_measured() {
        let mut durations = Durations::default();
        durations.extend((1..=200).map(Duration::from_millis));
        assert_eq!(durations.to_string(), "200 measured: p50 100 ms, p99 198 ms, longest 200 ms");
        assert_eq!(Durations::default().percentile(99), Duration::ZERO);
    }
}
