//! A bucket with a primary against a model written without looking at it: the same commands, the same answers, the same data.

use std::collections::BTreeMap;

use bytes::Bytes;
use meridian_region_core::{WriteResult, read};
use meridian_types::entry::{Header, WriteBody};
use meridian_types::{Hlc, Lane, Outcome, RefusalKind, RegionId, RequestId, Version, Write};
use proptest::prelude::*;

use crate::world::{PLAIN, Replica, SHARD, id, key, value};

const KEYS: [&str; 4] = ["a", "ab", "b", "c"];

/// What a client does.
#[derive(Clone, Debug)]
enum Step {
    Write(Write),
    /// Compare-and-set with the version the key really has.
    SetCurrent {
        key: usize,
        to: String,
    },
    /// The same request again, an earlier one, counted from the last.
    Retry(usize),
    /// The leader's expiry runs.
    Expire,
    /// Time goes on.
    Sleep(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    let k = || (0..KEYS.len()).prop_map(|at| key(KEYS[at]));
    let v = || prop_oneof![Just("7".to_owned()), Just("9223372036854775800".to_owned()), "[a-z]{0,5}"];
    let ttl = || prop::option::of(0u64..20);
    prop_oneof![
        3 => (k(), v(), ttl()).prop_map(|(key, v, ttl_ms)| Step::Write(Write::Put { key, value: value(&v), ttl_ms })),
        1 => k().prop_map(|key| Step::Write(Write::Delete { key })),
        1 => (k(), v()).prop_map(|(key, v)| Step::Write(Write::Append { key, suffix: value(&v) })),
        2 => (k(), -3i64..20).prop_map(|(key, by)| Step::Write(Write::Increment { key, by })),
        1 => (k(), v(), ttl(), any::<bool>()).prop_map(|(key, v, ttl_ms, absent)| {
            let expected = (!absent).then_some(Version { hlc: Hlc(5), region: RegionId(1) });
            Step::Write(Write::CompareAndSet { key, expected, value: value(&v), ttl_ms })
        }),
        1 => (0..KEYS.len(), v()).prop_map(|(key, to)| Step::SetCurrent { key, to }),
        1 => (k(), v(), ttl()).prop_map(|(key, v, ttl_ms)| Step::Write(Write::PutIfAbsent { key, value: value(&v), ttl_ms })),
        1 => prop::collection::vec((k(), v()), 0..4).prop_map(|items| {
            Step::Write(Write::MultiPut { items: items.into_iter().map(|(key, v)| (key, value(&v))).collect() })
        }),
        2 => (0usize..5).prop_map(Step::Retry),
        1 => Just(Step::Expire),
        2 => (1u64..15).prop_map(Step::Sleep),
    ]
}

/// What the model remembers of a key.
#[derive(Clone, Debug, PartialEq)]
struct Item {
    value: Vec<u8>,
    version: Version,
    expires: Option<u64>,
}

#[derive(Clone, Default)]
struct Model {
    items: BTreeMap<Vec<u8>, Item>,
}

impl Model {
    fn live(&self, key: &[u8], now: u64) -> Option<&Item> {
        self.items.get(key).filter(|item| item.expires.is_none_or(|at| at > now))
    }

    fn set(&mut self, key: &[u8], value: &[u8], version: Version, expires: Option<u64>) {
        self.items.insert(key.to_vec(), Item { value: value.to_vec(), version, expires });
    }

    fn apply(&mut self, write: &Write, version: Version) -> Result<Outcome, RefusalKind> {
        let now = version.hlc.millis();
        let end = |ttl: &Option<u64>| ttl.map(|ttl| now + ttl);
        match write {
            Write::Put { key, value, ttl_ms } => {
                self.set(key.as_bytes(), value.as_bytes(), version, end(ttl_ms));
                Ok(Outcome::Written { version })
            }
            Write::Delete { key } => {
                let existed = self.live(key.as_bytes(), now).is_some();
                self.items.remove(&key.as_bytes()[..]);
                Ok(Outcome::Deleted { version, existed })
            }
            Write::Append { key, suffix } => {
                let old = self.live(key.as_bytes(), now).cloned();
                let expires = old.as_ref().and_then(|old| old.expires);
                let joined = [old.map(|old| old.value).unwrap_or_default(), suffix.as_bytes().to_vec()].concat();
                self.set(key.as_bytes(), &joined, version, expires);
                Ok(Outcome::Length { version, length: joined.len() as u64 })
            }
            Write::Increment { key, by } => {
                let old = self.live(key.as_bytes(), now).cloned();
                let text = old.as_ref().map_or("0".to_owned(), |old| String::from_utf8(old.value.clone()).unwrap());
                let start: i64 = text.parse().map_err(|_| RefusalKind::Conflict)?;
                if text.starts_with("0") && text != "0" {
                    return Err(RefusalKind::Conflict);
                }
                let sum = i128::from(start) + i128::from(*by);
                let value = i64::try_from(sum).map_err(|_| RefusalKind::Conflict)?;
                self.set(key.as_bytes(), value.to_string().as_bytes(), version, old.and_then(|old| old.expires));
                Ok(Outcome::Count { version, value })
            }
            Write::CompareAndSet { key, expected, value, ttl_ms } => {
                let current = self.live(key.as_bytes(), now).map(|item| item.version);
                if current != *expected {
                    return Ok(Outcome::ConditionFailed { current });
                }
                self.set(key.as_bytes(), value.as_bytes(), version, end(ttl_ms));
                Ok(Outcome::Written { version })
            }
            Write::PutIfAbsent { key, value, ttl_ms } => {
                let current = self.live(key.as_bytes(), now).map(|item| item.version);
                if current.is_some() {
                    return Ok(Outcome::ConditionFailed { current });
                }
                self.set(key.as_bytes(), value.as_bytes(), version, end(ttl_ms));
                Ok(Outcome::Written { version })
            }
            Write::MultiPut { items } if items.is_empty() => Err(RefusalKind::Invalid),
            Write::MultiPut { items } => {
                items.iter().for_each(|(key, value)| self.set(key.as_bytes(), value.as_bytes(), version, None));
                Ok(Outcome::Written { version })
            }
        }
    }
}

struct Run {
    primary: Replica,
    model: Model,
    asked: Vec<(RequestId, Write, WriteResult)>,
}

impl Run {
    fn new() -> Run {
        Run { primary: Replica::new(1), model: Model::default(), asked: Vec::new() }
    }

    fn ask(&mut self, write: Write) {
        let request = id(7, self.asked.len() as u64 + 1);
        let result = self.primary.write(request, write.clone());
        let version = Version { hlc: result.hlc, region: RegionId(1) };
        let expected = self.model.apply(&write, version);
        assert_eq!(result.outcome.clone().map_err(|refusal| refusal.kind), expected, "{write:?}");
        self.asked.push((request, write, result));
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write(write) => self.ask(write),
            Step::SetCurrent { key: at, to } => {
                let key = key(KEYS[at]);
                let expected = self.primary.get(PLAIN, &key).map(|located| located.found.version);
                self.ask(Write::CompareAndSet { key, expected, value: value(&to), ttl_ms: None });
            }
            Step::Retry(back) if back < self.asked.len() => {
                let (request, write, first) = self.asked[self.asked.len() - 1 - back].clone();
                assert_eq!(self.primary.write(request, write), first, "a retry gets the first answer");
            }
            Step::Retry(_) => {}
            Step::Expire => {
                let now = self.primary.wall_ms;
                let before = self.model.items.len();
                self.model.items.retain(|_, item| item.expires.is_none_or(|at| at > now));
                assert_eq!(self.primary.expire(), (before - self.model.items.len()) as u64);
            }
            Step::Sleep(ms) => self.primary.wall_ms += ms,
        }
    }

    fn check(&self) {
        let now = self.primary.wall_ms;
        for k in KEYS {
            let found = self.primary.get(PLAIN, &key(k)).map(|located| located.found);
            let found = found.map(|f| Item { value: f.value.to_vec(), version: f.version, expires: f.expires_at_ms });
            assert_eq!(found.as_ref(), self.model.live(k.as_bytes(), now), "{k}");
        }
        let digest = self.primary.shard.digest(PLAIN).cloned().unwrap_or_default();
        let bytes: usize = self.model.items.iter().map(|(key, item)| key.len() + item.value.len()).sum();
        assert_eq!((digest.keys, digest.bytes), (self.model.items.len() as u64, bytes as u64));
        self.primary.check_digests();
        self.check_pages(now);
        self.check_due(now);
    }

    /// The expiry index holds exactly the keys that will expire, and gives out those that are due.
    fn check_due(&self, now: u64) {
        for until in [now, u64::MAX] {
            let due = self.primary.shard.due(&self.primary.state, until, usize::MAX, &|_| true).unwrap();
            let due: Vec<_> = due.into_iter().flat_map(|due| due.keys).collect();
            assert!(due.is_sorted_by_key(|(_, at)| *at), "earliest first");
            let due: BTreeMap<_, _> = due.into_iter().map(|(key, at)| (key.as_bytes().to_vec(), at)).collect();
            let ends = self.model.items.iter().filter_map(|(key, item)| Some((key.clone(), item.expires?)));
            assert_eq!(due, ends.filter(|(_, at)| *at <= until).collect());
        }
    }

    /// Every key comes exactly once, whatever the size of the pages.
    fn check_pages(&self, now: u64) {
        for (prefix, limit) in [("", 1), ("", 3), ("a", 1), ("b", 9), ("x", 2)] {
            let live = self.model.items.keys().filter(|key| self.model.live(key, now).is_some());
            let expected: Vec<_> = live.filter(|key| key.starts_with(prefix.as_bytes())).cloned().collect();
            let mut seen: Vec<Vec<u8>> = Vec::new();
            loop {
                let after = seen.last().cloned().unwrap_or_default();
                let page =
                    read::scan(&self.primary.state, SHARD, PLAIN, prefix.as_bytes(), &after, limit, true, now).unwrap();
                seen.extend(page.items.iter().map(|(key, _)| key.as_bytes().to_vec()));
                if !page.more {
                    break;
                }
                assert_eq!(page.items.len(), limit as usize);
            }
            assert_eq!(seen, expected);
        }
    }
}

/// The same entries, applied in batches of the given sizes.
fn in_batches(log: &[Bytes], sizes: &[usize]) -> Replica {
    let mut replica = Replica::new(1);
    let mut rest = log;
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            return replica;
        }
        let (batch, left) = rest.split_at((*size).min(rest.len()));
        replica.commit_batch(batch.to_vec());
        rest = left;
    }
    replica
}

proptest! {
    #[test]
    fn every_answer_and_every_value_is_the_models(steps in prop::collection::vec(any_step(), 1..60)) {
        let mut run = Run::new();
        for step in steps {
            run.step(step);
        }
        run.check();
    }

    #[test]
    fn batches_restarts_and_single_entries_give_the_same_state(
        steps in prop::collection::vec(any_step(), 1..40), sizes in prop::collection::vec(1usize..9, 1..5), again in 0usize..40
    ) {
        let mut run = Run::new();
        for step in steps {
            run.step(step);
        }
        let log: Vec<Bytes> = run.primary.log.iter().map(|(_, entry, _)| entry.clone()).collect();
        let batched = in_batches(&log, &sizes);
        prop_assert_eq!(&batched.state, &run.primary.state);

        // A crash: memory is lost, the log is replayed from an older position than the state's.
        let mut crashed = batched;
        crashed.restart();
        let from = again % log.len().max(1);
        let mut out = meridian_region_core::Mutations::new();
        for (lsn, entry, _) in run.primary.log.iter().skip(from) {
            crashed.shard.apply(&crashed.state, *lsn, entry, &mut out).unwrap();
        }
        crashed.shard.checkpoint(&mut out);
        prop_assert!(out.is_empty());
        crashed.shard.validate();

        // And it goes on as if nothing had been.
        let next = Write::Increment { key: key("a"), by: 1 };
        let entry = run.primary.encode_write(PLAIN, id(7, 1000), 0, WriteBody::Plain(next));
        prop_assert_eq!(crashed.commit(entry.clone()), run.primary.commit(entry));
        prop_assert_eq!(&crashed.state, &run.primary.state);
    }

    #[test]
    fn a_replica_is_its_primary_at_every_frame_and_knows_every_answer(
        steps in prop::collection::vec(any_step(), 1..40), size in 1usize..6
    ) {
        let mut run = Run::new();
        let mut replica = Replica::new(2);
        for step in steps {
            run.step(step);
            replica.wall_ms = run.primary.wall_ms;
            if run.primary.log.len().is_multiple_of(3) {
                replica.follow(&run.primary, Lane::Sync, size);
            }
        }
        replica.follow(&run.primary, Lane::Sync, size);
        prop_assert_eq!(replica.shard.digest(PLAIN), run.primary.shard.digest(PLAIN));
        replica.check_digests();
        for k in KEYS {
            prop_assert_eq!(replica.get(PLAIN, &key(k)), run.primary.get(PLAIN, &key(k)));
        }
        // ONE-1: a retry at the replica, now primary itself, gets the first answer, before and through the log.
        replica.restart();
        for (request, write, first) in run.asked {
            let kept = replica.shard.answered(&replica.state, PLAIN, request).unwrap().unwrap();
            prop_assert_eq!(&WriteResult::decode(&kept).unwrap(), &first);
            prop_assert_eq!(replica.write(request, write), first);
        }
    }
}

#[test]
fn every_entry_of_the_log_decodes_as_it_was_written() {
    let mut run = Run::new();
    run.ask(Write::Put { key: key("a"), value: value("1"), ttl_ms: Some(5) });
    let (_, entry, note) = &run.primary.log[0];
    assert_eq!(Header::decode(entry).unwrap().bucket, PLAIN);
    assert_eq!(note.as_ref().map(|note| note.keys), Some(1));
}
