//! Running a load.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use meridian_client::{Bucket, Client, Error, Session};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::Load;
use super::report::Report;

/// An open loop that falls behind by more than this gives up requests instead of queueing them for ever.
const BEHIND_MAX: Duration = Duration::from_secs(5);

/// Runs the load over these connections. `tick` is told every answered request, for progress.
///
/// # Errors
/// When the bucket's name is none.
pub async fn run(
    load: &Load,
    connections: &[Client],
    tick: impl Fn() + Clone + Send + 'static,
) -> anyhow::Result<Report> {
    let schedule = Arc::new(Schedule::new(load));
    let mut workers = JoinSet::new();
    for index in 0..load.clients {
        let client = &connections[index % connections.len()];
        let worker = Worker {
            bucket: client.bucket(load.bucket.as_str())?,
            load: load.clone(),
            random: SmallRng::seed_from_u64(load.seed.wrapping_add(index as u64)),
            session: Session::new(),
            schedule: schedule.clone(),
        };
        workers.spawn(worker.run(tick.clone()));
    }
    let mut report = Report::default();
    while let Some(done) = workers.join_next().await {
        report.merge(done?);
    }
    report.measured = load.duration;
    Ok(report)
}

/// When requests are due.
struct Schedule {
    /// When measuring begins and ends.
    begin: Instant,
    end: Instant,
    /// Open loop: time between requests, and the number of the next.
    every: Option<Duration>,
    start: Instant,
    next: AtomicU64,
}

impl Schedule {
    fn new(load: &Load) -> Schedule {
        let start = Instant::now();
        let begin = start + load.warm_up;
        let every = load.rate.map(|rate| Duration::from_secs_f64(1.0 / rate));
        Schedule { begin, end: begin + load.duration, every, start, next: AtomicU64::new(0) }
    }

    /// When the next request is due; `None` at the end.
    async fn wait(&self) -> Option<Instant> {
        let due = match self.every {
            None => Instant::now(),
            Some(every) => self.start + every.mul_f64(self.next.fetch_add(1, Ordering::Relaxed) as f64),
        };
        if due >= self.end {
            return None;
        }
        // The runtime's timer rounds up to its next millisecond, even for a moment that has come.
        if due > Instant::now() {
            sleep_until(due).await;
        }
        Some(due)
    }
}

/// One client: one request at a time.
struct Worker {
    bucket: Bucket,
    load: Load,
    random: SmallRng,
    session: Session,
    schedule: Arc<Schedule>,
}

impl Worker {
    async fn run(mut self, tick: impl Fn()) -> Report {
        let mut report = Report::default();
        while let Some(due) = self.schedule.wait().await {
            let measured = due >= self.schedule.begin;
            if self.schedule.every.is_some() && due.elapsed() > BEHIND_MAX {
                report.unsent += u64::from(measured);
                continue;
            }
            let reads = self.random.random_bool(self.load.read_share);
            let answered = if reads { self.read().await } else { self.write().await };
            tick();
            // What was answered after the end belongs to no second that was measured.
            if !measured || Instant::now() > self.schedule.end {
                continue;
            }
            match answered {
                Ok(()) if reads => report.reads.record(due.elapsed()),
                Ok(()) => report.writes.record(due.elapsed()),
                Err(error) => {
                    report.errors += 1;
                    report.first_error.get_or_insert_with(|| error.to_string());
                }
            }
        }
        report
    }

    async fn read(&mut self) -> Result<(), Error> {
        let key = self.key();
        let call = self.bucket.get(key).level(self.load.level.clone()).deadline(self.load.deadline);
        let call =
            if self.load.level == meridian_client::ReadLevel::Session { call.session(&self.session) } else { call };
        call.await.map(drop)
    }

    async fn write(&mut self) -> Result<(), Error> {
        let key = self.key();
        let mut value = vec![0; self.load.value_bytes];
        // Random bytes do not compress: the worst case for the wire, and the same for every peer it is compared with.
        self.random.fill_bytes(&mut value);
        let call = self.bucket.put(key, value).ack(self.load.ack).deadline(self.load.deadline);
        let call =
            if self.load.level == meridian_client::ReadLevel::Session { call.session(&self.session) } else { call };
        call.await.map(drop)
    }

    fn key(&mut self) -> Bytes {
        let number = self.load.distribution.draw(self.load.keys, &mut self.random);
        format!("bench/{number:012}").into()
    }
}
