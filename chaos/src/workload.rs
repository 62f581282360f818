//! Workloads: clients that do something on purpose, so that what they are told can be checked ([`crate::check`]).
//!
//! Each is seeded, speaks to any [`Target`] (in virtual or real time), and records every operation exactly. Every value
//! is unique, so that whoever reads one knows its writer. A write whose answer is lost is retried under the same
//! request id through other regions, as the SDK does, part of the time; the other part it is given up and stays unknown.
//! In active-active buckets a retry stays in its region: only that one would recognise it (ONE-1).

mod active;
mod append;
mod bank;
mod brief;
mod chain;
mod client;
mod counter;
mod keys;
mod last;
mod register;
mod session;

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use meridian_types::{Bucket, Key, RegionId};

use crate::check::Final;
use crate::history::History;
use crate::target::Target;

pub(crate) use self::bank::TOTAL;
pub(crate) use self::brief::brief;
use self::client::Client;
pub(crate) use self::keys::ACCOUNTS;

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Puts, gets, deletes, put-if-absent and compare-and-set, mixed on the same keys.
    Register,
    /// Increments and reads.
    Counter,
    /// Lists that are only appended to.
    Append,
    /// Read, then compare-and-set what was read: each success replaces one version.
    Chain,
    /// Transfers between accounts of one shard by one multi-put, and readers who count the money.
    Bank,
    /// Clients that go from region to region with their token.
    Session,
    /// Writers in every region of an active-active bucket: registers, deletes, counters.
    ActiveActive,
}

impl Kind {
    /// Those that need a bucket with a primary.
    pub const WITH_PRIMARY: [Kind; 6] =
        [Kind::Register, Kind::Counter, Kind::Append, Kind::Chain, Kind::Bank, Kind::Session];

    /// Those that an active-active bucket can serve.
    pub const ACTIVE_ACTIVE: [Kind; 2] = [Kind::ActiveActive, Kind::Session];
}

/// How often each level is read at, relative to the others. `strong` is not asked for in active-active buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Levels {
    /// Strong.
    pub strong: u32,
    /// Session.
    pub session: u32,
    /// Bounded.
    pub bounded: u32,
    /// Eventual.
    pub eventual: u32,
}

/// How a workload behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How many clients. A key should not be shared by more than 16, or histories get slow to search.
    pub clients: u32,
    /// How many keys (for lists, chains, banks: that many of them).
    pub keys: u32,
    /// Mean pause between two operations of a client.
    pub think: Duration,
    /// How many operations of a hundred are reads.
    pub reads_percent: u32,
    /// The mix of read levels.
    pub levels: Levels,
    /// How long it lasts.
    pub duration: Duration,
    /// What each request is given, in milliseconds.
    pub deadline_ms: u32,
    /// How many of a hundred unanswered writes are given up at once instead of being retried.
    pub gives_up_percent: u32,
    /// Values have up to that many bytes.
    pub value_bytes_max: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            clients: 4,
            keys: 4,
            think: Duration::from_millis(200),
            reads_percent: 50,
            levels: Levels { strong: 5, session: 2, bounded: 2, eventual: 1 },
            duration: Duration::from_secs(30),
            deadline_ms: 2_000,
            gives_up_percent: 30,
            value_bytes_max: 256,
        }
    }
}

/// Clients of one kind on one bucket.
#[derive(Clone, Debug)]
pub struct Workload {
    /// What they do.
    pub kind: Kind,
    /// Where.
    pub bucket: Arc<Bucket>,
    /// How.
    pub options: Options,
}

/// All that clients do in one run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The workloads; all at the same time.
    pub workloads: Vec<Workload>,
    /// The regions that clients are in.
    pub regions: Vec<RegionId>,
    /// How many shards the cluster has.
    pub shards: u16,
    /// Decides every choice.
    pub seed: u64,
}

impl Plan {
    /// Runs every client until its time is over.
    pub async fn drive<T: Target>(&self, target: &T, history: &History) {
        let mut clients = Vec::new();
        let mut number = 0;
        for workload in &self.workloads {
            for place in 0..workload.options.clients {
                let client = Client::new(self, workload, target.clone(), history.clone(), number);
                clients.push(run(workload.kind, client, place));
                number += 1;
            }
        }
        join_all(clients).await;
    }

    /// The same, of buckets as they are by now: their regions may have changed.
    #[must_use]
    pub fn of(&self, buckets: &[Arc<Bucket>]) -> Plan {
        let now = |known: &Workload| {
            let bucket = buckets.iter().find(|bucket| bucket.id == known.bucket.id).unwrap_or(&known.bucket);
            Workload { bucket: Arc::clone(bucket), ..known.clone() }
        };
        Plan { workloads: self.workloads.iter().map(now).collect(), ..self.clone() }
    }

    /// To be called once everything is whole again: waits until every region that holds a bucket takes writes and holds the
    /// same, at most for `patience`, then reads every key in every region at every level.
    pub async fn last_look<T: Target>(&self, target: &T, history: &History, patience: Duration) -> Vec<Final> {
        last::look(self, target, history, patience).await
    }

    /// Every key that clients of `bucket` touch.
    pub fn keys(&self, bucket: &Bucket) -> Vec<Key> {
        let mut keys: Vec<Key> = Vec::new();
        for workload in self.workloads.iter().filter(|workload| workload.bucket.id == bucket.id) {
            keys.extend(keys::of(workload.kind, bucket, self.shards, &workload.options));
        }
        keys.sort();
        keys.dedup();
        keys
    }

    /// How many clients there are before the last look.
    fn clients(&self) -> u32 {
        self.workloads.iter().map(|workload| workload.options.clients).sum()
    }
}

async fn run<T: Target>(kind: Kind, mut client: Client<T>, place: u32) {
    client.begin().await;
    while client.has_time() {
        match kind {
            Kind::Register => register::step(&mut client).await,
            Kind::Counter => counter::step(&mut client).await,
            Kind::Append => append::step(&mut client).await,
            Kind::Chain => chain::step(&mut client).await,
            Kind::Bank => bank::step(&mut client, place).await,
            Kind::Session => session::step(&mut client).await,
            Kind::ActiveActive => active::step(&mut client).await,
        }
        client.think().await;
    }
}
