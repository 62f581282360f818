//! Workloads against a planet in a box: one map that every region shares. Honest, it passes; with one of its lies
//! switched on, somebody finds it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use meridian_types::request::Found;
use meridian_types::{
    BucketId, Durability, Epoch, Freshness, Hlc, Key, Lsn, Outcome, Read, Refusal, RefusalKind, RegionId, Request,
    RequestId, Response, SessionToken, ShardId, Value, Version, Write,
};
use tokio::time::{Instant, sleep};

use super::super::{Evidence, all};
use super::story::{ACTIVE, SYNC, setup};
use crate::history::History;
use crate::target::Target;
use crate::workload::{Kind, Options, Plan, Workload};

/// What the box does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    None,
    /// Now and then an acknowledged write is not there.
    Forgets,
    /// A retried request counts again.
    Repeats,
    /// Now and then a read answers from the past.
    Lags,
    /// Now and then only the first key of a multi-put is set.
    Tears,
    /// Now and then a condition is not looked at.
    Assumes,
    /// Says three regions have it.
    Boasts,
}

#[derive(Clone)]
struct Planet {
    inner: Arc<Mutex<Inner>>,
    began: Instant,
    lie: Lie,
}

#[derive(Default)]
struct Inner {
    dice: u64,
    clock: u64,
    now: BTreeMap<(BucketId, Key), Found>,
    past: BTreeMap<(BucketId, Key), Found>,
    decided: HashMap<RequestId, Response>,
}

impl Planet {
    fn new(seed: u64, lie: Lie) -> Planet {
        let inner = Inner { dice: seed, ..Inner::default() };
        Planet { inner: Arc::new(Mutex::new(inner)), began: Instant::now(), lie }
    }
}

impl Inner {
    fn roll(&mut self, sides: u64) -> u64 {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.dice >> 33) % sides
    }

    fn read(&mut self, bucket: BucketId, read: &Read, lie: Lie) -> Outcome {
        let lags = lie == Lie::Lags && self.roll(20) == 0;
        let from = if lags { &self.past } else { &self.now };
        let get = |key: &Key| from.get(&(bucket, key.clone())).cloned();
        match read {
            Read::Get { key } => Outcome::Value(get(key)),
            Read::MultiGet { keys } => Outcome::Values(keys.iter().map(get).collect()),
            Read::Scan { .. } => Outcome::Page { items: Vec::new(), more: false },
        }
    }

    fn set(&mut self, bucket: BucketId, key: &Key, value: &Value, version: Version) {
        let found = Found { value: value.as_bytes().clone(), version, expires_at_ms: None };
        self.now.insert((bucket, key.clone()), found);
    }

    fn write(&mut self, bucket: BucketId, write: &Write, version: Version, lie: Lie) -> Outcome {
        if self.roll(10) == 0 {
            self.past = self.now.clone();
        }
        let key = write.keys().next().cloned().expect("a key");
        let held = self.now.get(&(bucket, key.clone())).cloned();
        let assumes = lie == Lie::Assumes && self.roll(4) == 0;
        let text = held.as_ref().map_or(String::new(), |it| String::from_utf8_lossy(&it.value).into_owned());
        let current = held.as_ref().map(|it| it.version);
        match write {
            Write::CompareAndSet { expected, .. } if *expected != current && !assumes => {
                return Outcome::ConditionFailed { current };
            }
            Write::PutIfAbsent { .. } if current.is_some() => return Outcome::ConditionFailed { current },
            _ => {}
        }
        match write {
            Write::Put { value, .. } | Write::CompareAndSet { value, .. } | Write::PutIfAbsent { value, .. } => {
                self.set(bucket, &key, value, version);
                Outcome::Written { version }
            }
            Write::Delete { .. } => {
                self.now.remove(&(bucket, key));
                Outcome::Deleted { version, existed: held.is_some() }
            }
            Write::Append { suffix, .. } => {
                let list = text + &String::from_utf8_lossy(suffix.as_bytes());
                let length = list.len() as u64;
                self.set(bucket, &key, &Value::new(list).unwrap(), version);
                Outcome::Length { version, length }
            }
            Write::Increment { by, .. } => {
                let value = text.parse().unwrap_or(0) + by;
                self.set(bucket, &key, &Value::new(value.to_string()).unwrap(), version);
                Outcome::Count { version, value }
            }
            Write::MultiPut { items } => {
                let tears = lie == Lie::Tears && self.roll(4) == 0;
                let count = if tears { 1 } else { items.len() };
                items.iter().take(count).for_each(|(key, value)| self.set(bucket, key, value, version));
                Outcome::Written { version }
            }
        }
    }
}

impl Target for Planet {
    async fn ask(&self, region: RegionId, request: Request) -> Result<Response, Refusal> {
        let (before, after, fate) = {
            let mut inner = self.inner.lock().unwrap();
            (inner.roll(20), inner.roll(20), inner.roll(10))
        };
        sleep(Duration::from_millis(before)).await;
        let lost = || Refusal::new(RefusalKind::Unavailable, "the network lost it");
        if fate == 0 {
            return Err(lost());
        }
        let answer = self.inner.lock().unwrap().serve(region, &request, self.lie);
        sleep(Duration::from_millis(after)).await;
        if fate == 1 { Err(lost().with_effect(meridian_types::Effect::Unknown)) } else { Ok(answer) }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap()
    }
}

impl Inner {
    fn serve(&mut self, region: RegionId, request: &Request, lie: Lie) -> Response {
        let bucket = setup().buckets.into_iter().find(|it| it.name == *request.bucket()).unwrap();
        let mut session = SessionToken::default();
        let (outcome, durability) = match request {
            Request::Read { read, .. } => (self.read(bucket.id, read, lie), None),
            Request::Write { write, id, ack, .. } => {
                if let Some(first) = self.decided.get(id).filter(|_| lie != Lie::Repeats) {
                    return first.clone();
                }
                self.clock += 1;
                let version = Version { hlc: Hlc(self.clock), region: bucket.primary.unwrap_or(region) };
                let kept = (lie == Lie::Forgets && self.roll(30) == 0).then(|| self.now.clone());
                let outcome = self.write(bucket.id, write, version, lie);
                self.now = kept.unwrap_or_else(|| std::mem::take(&mut self.now));
                session.observe(bucket.id, ShardId(0), version.region, Lsn(self.clock));
                let needed = ack.required_regions(bucket.policy.required_regions(3), 3);
                let regions = if lie == Lie::Boasts { 1 } else { u16::try_from(needed).unwrap() };
                (outcome, Some(Durability { regions, nodes: regions }))
            }
        };
        let freshness = Freshness { hlc: Hlc(self.clock), staleness_ms: Some(0) };
        let answer = Response { region, epoch: Epoch(1), outcome, freshness, durability, session };
        if let Request::Write { id, .. } = request {
            self.decided.insert(*id, answer.clone());
        }
        answer
    }
}

async fn run(seed: u64, lie: Lie) -> Evidence {
    let setup = setup();
    let bucket = |id| Arc::new(setup.buckets.iter().find(|it| it.id == id).unwrap().clone());
    let options = Options { clients: 3, keys: 2, duration: Duration::from_secs(20), ..Options::default() };
    let on = |kinds: &[Kind], id| {
        kinds.iter().map(|kind| Workload { kind: *kind, bucket: bucket(id), options }).collect::<Vec<_>>()
    };
    let mut workloads = on(&Kind::WITH_PRIMARY, SYNC);
    workloads.extend(on(&[Kind::ActiveActive], ACTIVE));
    let plan = Plan { workloads, regions: setup.regions.clone(), shards: setup.shards, seed };
    let (planet, history) = (Planet::new(seed, lie), History::default());
    plan.drive(&planet, &history).await;
    let healed_us = planet.now_us();
    let finals = plan.last_look(&planet, &history, Duration::from_secs(10)).await;
    Evidence::new(setup, history.operations(), None, finals, Some(healed_us))
}

#[tokio::test(start_paused = true)]
async fn an_honest_planet_is_clean_and_one_seed_is_one_history() {
    for seed in 0..5 {
        let evidence = run(seed, Lie::None).await;
        let verdict = all(&evidence);
        assert!(verdict.is_clean(), "seed {seed}: {verdict}");
        assert!(evidence.operations.len() > 1_000);
        assert!(verdict.stats.iter().all(|(_, stats)| stats.undecided == 0), "{verdict}");
        assert_eq!(evidence.operations, run(seed, Lie::None).await.operations, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_lie_is_found_by_those_who_should() {
    let expected: [(Lie, &[&str]); 6] = [
        (Lie::Forgets, &["linear", "lists", "counters", "order"]),
        (Lie::Repeats, &["linear", "lists", "counters"]),
        (Lie::Lags, &["linear", "order", "sessions"]),
        (Lie::Tears, &["torn"]),
        (Lie::Assumes, &["linear", "chains"]),
        (Lie::Boasts, &["durable"]),
    ];
    for (lie, finders) in expected {
        let mut names: Vec<&str> = Vec::new();
        for seed in 0..4 {
            names.extend(all(&run(seed, lie).await).violations.iter().map(|violation| violation.checker));
        }
        for finder in finders {
            assert!(names.contains(finder), "{lie:?} was found by {names:?} but not by {finder}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn checking_a_minute_of_a_few_thousand_operations_takes_milliseconds() {
    let evidence = run(3, Lie::None).await;
    let began = std::time::Instant::now();
    let verdict = all(&evidence);
    assert!(verdict.is_clean());
    // Unoptimised, on a shared machine: a hundred times what a release build takes.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?} for {}", began.elapsed(), evidence.operations.len());
}
