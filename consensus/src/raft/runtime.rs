//! The runtime that openraft runs on: tokio's, with timers that suit a node of many groups.
//!
//! Each group ticks by itself, fifty times a second and out of step with the others, which wakes the engine's thread as often
//! as there are groups: most of what an idle node costs. So deadlines are put off to the next line of a grid that all
//! groups share, and one wake serves them all; heartbeats to one peer leave together besides.
//!
//! tokio's timers count in milliseconds. openraft waits for a microsecond between completions of the log (to take several
//! at once), which would be a whole one: such deadlines have passed.

use std::future::Future;
use std::sync::OnceLock;
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft_rt_tokio::{TokioInstant, TokioMpsc, TokioMutex, TokioOneshot, TokioRuntime, TokioWatch};
use tokio::time::Instant;

/// The distance between two lines of the grid: a fifth of the shortest interval between heartbeats, as often as openraft ticks
/// anyway, so a heartbeat leaves at most that much late.
const GRID: Duration = Duration::from_millis(20);

/// What tokio's timers can't tell from now.
const MOMENT: Duration = Duration::from_millis(1);

/// tokio, with a grid for deadlines. What it is not asked for by the instant (`sleep`, `timeout`) is as exact as tokio.
#[derive(Debug)]
pub(crate) struct Runtime(TokioRuntime);

/// When to wake for a deadline that is `wait` away from `now`, a time since the grid's origin.
fn put_off(now: Duration, wait: Duration) -> Duration {
    if wait < MOMENT {
        return Duration::ZERO;
    }
    let grid = GRID.as_nanos();
    let line = (now + wait).as_nanos().div_ceil(grid) * grid;
    Duration::from_nanos(u64::try_from(line).unwrap_or(u64::MAX)).saturating_sub(now)
}

fn origin() -> Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    *ORIGIN.get_or_init(Instant::now)
}

impl AsyncRuntime for Runtime {
    type JoinError = tokio::task::JoinError;
    type JoinHandle<T: Send + 'static> = tokio::task::JoinHandle<T>;
    type Sleep = tokio::time::Sleep;
    type Instant = TokioInstant;
    type TimeoutError = tokio::time::error::Elapsed;
    type Timeout<R, T: Future<Output = R> + Send> = tokio::time::Timeout<T>;
    type ThreadLocalRng = <TokioRuntime as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = TokioMpsc;
    type Watch = TokioWatch;
    type Oneshot = TokioOneshot;
    type Mutex<T: Send + 'static> = TokioMutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + Send + 'static,
        T::Output: Send + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: TokioInstant) -> Self::Sleep {
        let (origin, now) = (origin(), Instant::now());
        let wait = deadline - <TokioInstant as openraft::Instant>::now();
        match put_off(now.saturating_duration_since(origin), wait) {
            // A deadline that is a tick of tokio's in the past is over when it is first looked at.
            Duration::ZERO => tokio::time::sleep_until(now.checked_sub(MOMENT).unwrap_or(now)),
            wait => tokio::time::sleep_until(now + wait),
        }
    }

    fn timeout<R, F: Future<Output = R> + Send>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + Send>(deadline: TokioInstant, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        TokioRuntime::thread_rng()
    }

    fn new(threads: usize) -> Runtime {
        Runtime(TokioRuntime::new(threads))
    }

    fn block_on<F: Future<Output = T>, T>(&mut self, future: F) -> T {
        self.0.block_on(future)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(of: u64) -> Duration {
        Duration::from_millis(of)
    }

    #[test]
    fn deadlines_of_one_stretch_of_the_grid_wake_once_and_none_early() {
        let wakes: Vec<_> = [0, 3, 7, 12, 19].iter().map(|now| ms(*now) + put_off(ms(*now), ms(21))).collect();
        assert_eq!(wakes, [40; 5].map(ms));
        assert_eq!(put_off(ms(19), ms(1)), ms(1));
        assert_eq!(put_off(ms(20), ms(20)), ms(20));
        assert_eq!(put_off(ms(20), ms(21)), ms(40));
    }

    #[test]
    fn what_is_nearer_than_a_tick_has_passed() {
        assert_eq!(put_off(ms(5), Duration::ZERO), Duration::ZERO);
        assert_eq!(put_off(ms(5), Duration::from_micros(1)), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_microsecond_is_not_a_tick_of_tokio() {
        let over_at_once = async |wait: Duration| {
            let sleep = Runtime::sleep_until(<TokioInstant as openraft::Instant>::now() + wait);
            tokio::select! { biased; () = sleep => true, () = std::future::ready(()) => false }
        };
        assert!(over_at_once(Duration::from_micros(1)).await);
        assert!(!over_at_once(ms(1_000)).await);
    }
}
