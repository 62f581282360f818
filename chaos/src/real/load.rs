//! Writers that remember: what was acknowledged, and what is unknown.
//!
//! Each writer has keys of its own, so that what must be there at the end can be said exactly: a counter
//! (ONE-1: acknowledged increments count once), a list (order, nothing twice), and keys written once (DUR-1).

use std::collections::BTreeMap;
use std::time::Duration;

use meridian_client::{Bucket, Effect, Error, Policy, RefusalKind, WriteAck};
use tokio_util::sync::CancellationToken;

/// Longer than a restart takes on a busy machine, so that most writes survive one by being retried.
const DEADLINE: Duration = Duration::from_secs(60);

/// What one writer knows.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// The bucket written to.
    pub bucket: String,
    /// The writer's number: part of its keys.
    pub writer: usize,
    /// Increments that were acknowledged, and those whose answer was lost.
    pub increments: Fates,
    /// Keys that were put once, with whether that was acknowledged.
    pub puts: BTreeMap<String, bool>,
    /// Tokens appended in this order, with whether that was acknowledged.
    pub appends: Vec<(String, bool)>,
    /// Refusals that did nothing, by kind; of interest when there are many.
    pub refused: u64,
    /// Answers that no healthy system gives.
    pub surprises: Vec<String>,
}

/// How many writes met which fate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fates {
    /// Acknowledged.
    pub acknowledged: i64,
    /// Answer lost: may be there once.
    pub unknown: i64,
}

enum Fate {
    Acknowledged,
    Unknown,
    Refused,
}

/// The counter of a writer.
pub fn counter_key(writer: usize) -> String {
    format!("counter/{writer}")
}

/// The list of a writer.
pub fn list_key(writer: usize) -> String {
    format!("list/{writer}")
}

/// Writes until it is told to stop, one write at a time.
pub async fn write(bucket: Bucket, policy: Policy, writer: usize, stop: CancellationToken) -> Ledger {
    let mut ledger = Ledger { bucket: bucket.name().to_string(), writer, ..Ledger::default() };
    let mut turn = 0_u64;
    while !stop.is_cancelled() {
        turn += 1;
        match turn % 3 {
            0 => ledger.increment(&bucket).await,
            1 => ledger.put(&bucket, turn).await,
            // Appending needs one order, which active-active has not.
            _ if policy.has_primary() => ledger.append(&bucket, turn).await,
            _ => {}
        }
    }
    ledger
}

impl Ledger {
    /// How many writes were acknowledged.
    pub fn acknowledged(&self) -> i64 {
        let puts = self.puts.values().filter(|acknowledged| **acknowledged).count();
        let appends = self.appends.iter().filter(|(_, acknowledged)| *acknowledged).count();
        self.increments.acknowledged + i64::try_from(puts + appends).unwrap_or(i64::MAX)
    }

    /// Of how many it is not known whether they took effect.
    pub fn unknown(&self) -> i64 {
        let puts = self.puts.values().filter(|acknowledged| !**acknowledged).count();
        let appends = self.appends.iter().filter(|(_, acknowledged)| !*acknowledged).count();
        self.increments.unknown + i64::try_from(puts + appends).unwrap_or(i64::MAX)
    }

    async fn increment(&mut self, bucket: &Bucket) {
        let answer = bucket.increment(counter_key(self.writer), 1).deadline(DEADLINE).await;
        match self.fate(answer.map(|_| ())) {
            Fate::Acknowledged => self.increments.acknowledged += 1,
            Fate::Unknown => self.increments.unknown += 1,
            Fate::Refused => {}
        }
    }

    async fn put(&mut self, bucket: &Bucket, turn: u64) {
        let key = format!("put/{}/{turn}", self.writer);
        let answer = bucket.put(key.clone(), key.clone()).ack(WriteAck::Policy).deadline(DEADLINE).await;
        match self.fate(answer.map(|_| ())) {
            Fate::Acknowledged => drop(self.puts.insert(key, true)),
            Fate::Unknown => drop(self.puts.insert(key, false)),
            Fate::Refused => {}
        }
    }

    async fn append(&mut self, bucket: &Bucket, turn: u64) {
        let token = format!("{turn},");
        let answer = bucket.append(list_key(self.writer), token.clone()).deadline(DEADLINE).await;
        match self.fate(answer.map(|_| ())) {
            Fate::Acknowledged => self.appends.push((token, true)),
            Fate::Unknown => self.appends.push((token, false)),
            Fate::Refused => {}
        }
    }

    fn fate(&mut self, answer: Result<(), Error>) -> Fate {
        match answer {
            Ok(()) => Fate::Acknowledged,
            Err(error) => {
                if matches!(error.kind, RefusalKind::Internal | RefusalKind::Corrupt | RefusalKind::Invalid) {
                    self.surprises.push(format!("{}: {error}", self.bucket));
                }
                match error.effect {
                    Effect::None => {
                        self.refused += 1;
                        Fate::Refused
                    }
                    Effect::Unknown | Effect::Applied => Fate::Unknown,
                }
            }
        }
    }
}
