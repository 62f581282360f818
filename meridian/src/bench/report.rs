//! What a load came to.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// One minute in microseconds: the longest latency that is told apart.
const MICROS_MAX: u64 = 60_000_000;

/// Latencies of one kind of request, in microseconds, to three significant digits.
#[derive(Clone, Debug)]
pub struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Latency {
        // 1 µs to 1 min at 3 digits are bounds the histogram accepts; without them it would still grow by itself.
        Latency(
            Histogram::new_with_bounds(1, MICROS_MAX, 3).unwrap_or_else(|_| unreachable!("the bounds are constants")),
        )
    }
}

impl Latency {
    /// Counts one request.
    pub fn record(&mut self, took: Duration) {
        self.0.saturating_record(u64::try_from(took.as_micros()).unwrap_or(MICROS_MAX).clamp(1, MICROS_MAX));
    }

    /// Adds what another client measured.
    pub fn merge(&mut self, other: &Latency) {
        // Equal bounds never refuse each other.
        let _ = self.0.add(&other.0);
    }

    /// How many requests there were.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency that this share (0 to 1) of requests did not exceed; zero of none.
    pub fn quantile(&self, share: f64) -> Duration {
        if self.0.is_empty() { Duration::ZERO } else { Duration::from_micros(self.0.value_at_quantile(share)) }
    }

    /// The numbers, for programs.
    pub fn figures(&self, seconds: f64) -> Figures {
        let ms = |share: f64| self.quantile(share).as_secs_f64() * 1e3;
        Figures {
            operations: self.count(),
            per_second: self.count() as f64 / seconds.max(1e-9),
            p50_ms: ms(0.5),
            p99_ms: ms(0.99),
            p999_ms: ms(0.999),
            max_ms: if self.0.is_empty() { 0.0 } else { self.0.max() as f64 / 1e3 },
        }
    }
}

/// Throughput and latency of one kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// How many were answered.
    pub operations: u64,
    /// Per second.
    pub per_second: f64,
    /// Median, milliseconds.
    pub p50_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// 99.9th percentile.
    pub p999_ms: f64,
    /// The slowest.
    pub max_ms: f64,
}

/// What a load came to.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// How long was measured.
    pub measured: Duration,
    /// Writes that were acknowledged.
    pub writes: Latency,
    /// Reads that were answered.
    pub reads: Latency,
    /// Requests that were refused or timed out.
    pub errors: u64,
    /// The first refusal, for people.
    pub first_error: Option<String>,
    /// Open loop: requests that were due and could not even be sent in time.
    pub unsent: u64,
}

impl Report {
    /// Adds what another client measured.
    pub fn merge(&mut self, other: Report) {
        self.measured = self.measured.max(other.measured);
        self.writes.merge(&other.writes);
        self.reads.merge(&other.reads);
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
        self.unsent += other.unsent;
    }

    /// Requests that were answered.
    pub fn operations(&self) -> u64 {
        self.writes.count() + self.reads.count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_of_several_clients_merge_into_one() {
        let (mut a, mut b) = (Latency::default(), Latency::default());
        (1..=50).for_each(|ms| a.record(Duration::from_millis(ms)));
        (51..=100).for_each(|ms| b.record(Duration::from_millis(ms)));
        b.record(Duration::from_secs(3600));
        a.merge(&b);
        assert_eq!(a.count(), 101);
        let figures = a.figures(10.0);
        assert!((figures.p50_ms - 51.0).abs() < 0.1, "{figures:?}");
        assert!(figures.max_ms >= 59_000.0 && figures.per_second > 10.0, "{figures:?}");
        assert_eq!(Latency::default().quantile(0.5), Duration::ZERO);
    }
}
