//! Callers that count: each increments a counter of its own, and knows what the next answer must be.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use meridian_client::{Bucket, Effect};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::stage::{BUCKET, Options};
use crate::real::{Planet, REGIONS};

/// Longer than any move of a primary may take: an error is a failure, not impatience.
const DEADLINE: Duration = Duration::from_secs(60);

/// Callers that share a client, as an application's threads do.
const CALLERS_PER_CLIENT: usize = 16;

/// Everybody who calls.
#[derive(Default)]
pub(super) struct Callers {
    books: Vec<Arc<Mutex<Book>>>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

/// What one caller saw.
#[derive(Clone, Debug, Default)]
pub(super) struct Book {
    /// When each acknowledgement came, ascending.
    pub(super) acknowledged: Vec<Instant>,
    /// Requests that ended with an error.
    pub(super) failed: Vec<String>,
    /// What the counter must be at least, and may be beyond it for answers that were lost.
    pub(super) least: i64,
    pub(super) unknown: i64,
    /// Answers that no store gives that keeps its promises.
    pub(super) wrong: Vec<String>,
}

impl Callers {
    /// Starts them, all beginning at the first region.
    pub(super) async fn start(planet: &Planet, options: &Options) -> anyhow::Result<Callers> {
        let (stop, mut tasks, mut books) = (CancellationToken::new(), JoinSet::new(), Vec::new());
        let mut client = planet.client(0).await?;
        for caller in 0..options.callers {
            if caller % CALLERS_PER_CLIENT == 0 {
                client = planet.client(0).await?;
            }
            let book = Arc::new(Mutex::new(Book::default()));
            books.push(Arc::clone(&book));
            tasks.spawn(call(client.bucket(BUCKET)?, caller, book, options.think, stop.clone()));
        }
        Ok(Callers { books, stop, tasks })
    }

    /// The longest time each caller went without an acknowledgement around a span of time.
    pub(super) fn pauses(&self, from: Instant, until: Instant) -> Vec<Duration> {
        self.read(|book| longest_gap(&book.acknowledged, from, until))
    }

    /// When the first acknowledgement came at or after a moment, of all callers.
    pub(super) fn first_after(&self, moment: Instant) -> Option<Instant> {
        let first =
            |book: &Book| book.acknowledged[book.acknowledged.partition_point(|at| *at < moment)..].first().copied();
        self.read(first).into_iter().flatten().min()
    }

    /// Acknowledgements so far.
    pub(super) fn acknowledged(&self) -> usize {
        self.read(|book| book.acknowledged.len()).into_iter().sum()
    }

    /// Errors that callers got.
    pub(super) fn failed(&self) -> Vec<String> {
        self.read(|book| book.failed.clone()).concat()
    }

    /// Lets everybody finish; what each knows, by number.
    pub(super) async fn stop(mut self) -> Vec<Book> {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.read(Book::clone)
    }

    fn read<T>(&self, look: impl Fn(&Book) -> T) -> Vec<T> {
        self.books.iter().map(|book| look(&book.lock().unwrap_or_else(PoisonError::into_inner))).collect()
    }
}

/// The counter of a caller.
pub(super) fn key(caller: usize) -> String {
    format!("caller/{caller}")
}

async fn call(bucket: Bucket, caller: usize, book: Arc<Mutex<Book>>, think: Duration, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let answer = bucket.increment(key(caller), 1).deadline(DEADLINE).await;
        book.lock().unwrap_or_else(PoisonError::into_inner).enter(answer.map(|count| count.value));
        tokio::time::sleep(think).await;
    }
}

impl Book {
    fn enter(&mut self, answer: Result<i64, meridian_client::Error>) {
        match answer {
            Ok(value) => {
                let (least, most) = (self.least + 1, self.least + 1 + self.unknown);
                if !(least..=most).contains(&value) {
                    self.wrong.push(format!("an increment was answered {value}, not {least} to {most}"));
                }
                (self.least, self.unknown) = (value, 0);
                self.acknowledged.push(Instant::now());
            }
            Err(error) => {
                if error.effect != Effect::None {
                    self.unknown += 1;
                }
                self.failed.push(error.to_string());
            }
        }
    }
}

/// Of ascending moments, the longest time between neighbours of which any part lies in the span; a caller that never
/// comes back has a gap up to its end.
fn longest_gap(moments: &[Instant], from: Instant, until: Instant) -> Duration {
    let before = moments.partition_point(|at| *at < from).saturating_sub(1);
    let behind = moments.partition_point(|at| *at <= until);
    let last = moments.get(behind).copied().unwrap_or(until);
    let mut longest = Duration::ZERO;
    let mut earlier = moments.get(before).copied().unwrap_or(from);
    for at in moments[before.min(behind)..behind].iter().copied().chain([last]) {
        longest = longest.max(at.saturating_duration_since(earlier));
        earlier = at;
    }
    longest
}

/// The regions that callers may be answered by, for whoever reads counters at the end.
pub(super) async fn counters_are_kept(planet: &Planet, books: &[Book]) -> anyhow::Result<Vec<String>> {
    let mut wrong: Vec<String> = books.iter().flat_map(|book| book.wrong.clone()).collect();
    for name in REGIONS {
        let nearest = *planet.nodes_of(name).first().context("a region without nodes")?;
        let bucket = planet.client(nearest).await?.bucket(BUCKET)?;
        for (caller, book) in books.iter().enumerate() {
            let got = bucket.get(key(caller)).eventual().await?;
            let text = got.value().map(|value| String::from_utf8_lossy(value).into_owned()).unwrap_or_default();
            let (least, most) = (book.least, book.least + book.unknown);
            if !text.parse().is_ok_and(|value: i64| (least..=most).contains(&value)) && most > 0 {
                wrong.push(format!("{} in {name} is `{text}`, not {least} to {most}", key(caller)));
            }
        }
    }
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_counts_when_any_part_of_it_lies_in_the_span() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let moments = [0, 10, 100, 110, 120, 500].map(at);
        let gap = |from, until| longest_gap(&moments, at(from), at(until)).as_millis();
        assert_eq!(gap(105, 115), 10);
        assert_eq!(gap(50, 115), 90, "it began before the span");
        assert_eq!(gap(115, 130), 380, "it ends behind the span");
        assert_eq!(gap(510, 700), 200, "nothing came any more");
    }
}
