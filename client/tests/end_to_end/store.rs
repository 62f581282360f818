//! An in-memory store with the semantics that the gateway and the SDK rely on: exactly once by request id, one log,
//! several replicas that may lag.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use meridian_gateway::{Caller, Store, Via};
use meridian_types::{
    BucketId, Durability, Epoch, Freshness, Hlc, Lsn, Outcome, Read, ReadLevel, Refusal, RefusalKind, RegionId,
    Request, RequestId, Response, SessionToken, ShardId, StalePolicy, Version, Write, request::Found,
};

/// The log and the keys, shared by the replicas of all regions.
#[derive(Default)]
pub(crate) struct Truth {
    pub(crate) keys: BTreeMap<Bytes, Found>,
    pub(crate) results: BTreeMap<RequestId, Outcome>,
    /// Writes that took effect, in order.
    pub(crate) applied: Vec<RequestId>,
    /// Requests that arrived, retries included.
    pub(crate) arrived: Vec<Request>,
    /// Who asked.
    pub(crate) callers: Vec<Caller>,
}

/// One region's view: it may lag behind the truth, be slow, or refuse.
pub(crate) struct FakeStore {
    pub(crate) truth: Arc<Mutex<Truth>>,
    pub(crate) region: RegionId,
    pub(crate) mood: Mutex<Mood>,
}

#[derive(Clone, Default)]
pub(crate) struct Mood {
    /// How long every request takes.
    pub(crate) delay: Duration,
    /// Refuse the next ones with these.
    pub(crate) refusals: Vec<Refusal>,
    /// How far this replica has applied; `None` means everything.
    pub(crate) applied: Option<Lsn>,
    /// Panic instead of answering.
    pub(crate) panics: bool,
}

const BUCKET: BucketId = BucketId(1);
const SHARD: ShardId = ShardId(0);
const PRIMARY: RegionId = RegionId(1);

impl FakeStore {
    pub(crate) fn new(truth: Arc<Mutex<Truth>>, region: RegionId) -> FakeStore {
        FakeStore { truth, region, mood: Mutex::default() }
    }

    pub(crate) fn truth(&self) -> MutexGuard<'_, Truth> {
        self.truth.lock().unwrap()
    }

    fn next_refusal(&self) -> Option<Refusal> {
        self.mood.lock().unwrap().refusals.pop()
    }
}

impl Store for FakeStore {
    async fn execute(&self, request: Request, caller: Caller) -> Result<Response, Refusal> {
        let mood = self.mood.lock().unwrap().clone();
        {
            let mut truth = self.truth();
            truth.arrived.push(request.clone());
            truth.callers.push(caller.clone());
        }
        assert!(!mood.panics, "the store was told to panic");
        if !mood.delay.is_zero() {
            tokio::time::sleep(mood.delay).await;
        }
        if let Some(refusal) = self.next_refusal() {
            return Err(refusal);
        }
        if request.bucket().as_str() != "orders" {
            return Err(Refusal::new(RefusalKind::NotFound, format!("no bucket `{}`", request.bucket())));
        }
        let mut truth = self.truth();
        let head = Lsn(truth.applied.len() as u64);
        let outcome = match request {
            Request::Write { write, id, .. } => (truth.write(write, id), None),
            Request::Read { read, level, session, stale, .. } => {
                let replica = mood.applied.unwrap_or(head);
                let seen = session.seen(BUCKET, SHARD).map_or(Lsn(0), |seen| seen.of(PRIMARY));
                if level == ReadLevel::Session && seen > replica && stale == StalePolicy::Fail {
                    return Err(Refusal::new(RefusalKind::Stale, "this replica is behind the session"));
                }
                (truth.read(read), Some(0))
            }
        };
        let mut session = SessionToken::default();
        session.observe(BUCKET, SHARD, PRIMARY, Lsn(truth.applied.len() as u64));
        let durability = outcome.1.is_none().then_some(Durability { regions: 2, nodes: 2 });
        Ok(Response {
            region: self.region,
            epoch: Epoch(if caller.via == Via::Peer { 9 } else { 3 }),
            outcome: outcome.0,
            freshness: Freshness { hlc: Hlc::from_millis(truth.applied.len() as u64), staleness_ms: outcome.1 },
            durability,
            session,
        })
    }
}

impl Truth {
    fn read(&self, read: Read) -> Outcome {
        match read {
            Read::Get { key } => Outcome::Value(self.keys.get(key.as_bytes()).cloned()),
            Read::MultiGet { keys } => {
                Outcome::Values(keys.iter().map(|key| self.keys.get(key.as_bytes()).cloned()).collect())
            }
            Read::Scan { prefix, after, limit, values } => {
                let mut behind = self.keys.iter().filter(|(key, _)| key.starts_with(&prefix) && **key > after).map(
                    |(key, found)| {
                        let value = if values { found.value.clone() } else { Bytes::new() };
                        (meridian_types::Key::new(key.clone()).unwrap(), Found { value, ..found.clone() })
                    },
                );
                let items: Vec<_> = behind.by_ref().take(limit as usize).collect();
                Outcome::Page { more: behind.next().is_some(), items }
            }
        }
    }

    fn write(&mut self, write: Write, id: RequestId) -> Outcome {
        if let Some(first) = self.results.get(&id) {
            return first.clone();
        }
        self.applied.push(id);
        let version = Version { hlc: Hlc::from_millis(self.applied.len() as u64), region: PRIMARY };
        let outcome = self.apply(write, version);
        self.results.insert(id, outcome.clone());
        outcome
    }

    fn apply(&mut self, write: Write, version: Version) -> Outcome {
        let found = |value: Bytes, expires_at_ms| Found { value, version, expires_at_ms };
        match write {
            Write::Put { key, value, ttl_ms } => {
                self.keys.insert(key.into(), found(value.into_bytes(), ttl_ms));
                Outcome::Written { version }
            }
            Write::Delete { key } => Outcome::Deleted { version, existed: self.keys.remove(key.as_bytes()).is_some() },
            Write::Append { key, suffix } => {
                let mut value = self.keys.get(key.as_bytes()).map_or_else(Vec::new, |found| found.value.to_vec());
                value.extend_from_slice(suffix.as_bytes());
                let length = value.len() as u64;
                self.keys.insert(key.into(), found(value.into(), None));
                Outcome::Length { version, length }
            }
            Write::Increment { key, by } => {
                let before = self.keys.get(key.as_bytes());
                let before: i64 = before.map_or(0, |found| String::from_utf8_lossy(&found.value).parse().unwrap());
                self.keys.insert(key.into(), found((before + by).to_string().into(), None));
                Outcome::Count { version, value: before + by }
            }
            Write::CompareAndSet { key, expected, value, .. } => {
                let current = self.keys.get(key.as_bytes()).map(|found| found.version);
                if current != expected {
                    return Outcome::ConditionFailed { current };
                }
                self.keys.insert(key.into(), found(value.into_bytes(), None));
                Outcome::Written { version }
            }
            Write::PutIfAbsent { key, value, .. } => {
                if let Some(current) = self.keys.get(key.as_bytes()) {
                    return Outcome::ConditionFailed { current: Some(current.version) };
                }
                self.keys.insert(key.into(), found(value.into_bytes(), None));
                Outcome::Written { version }
            }
            Write::MultiPut { items } => {
                for (key, value) in items {
                    self.keys.insert(key.into(), found(value.into_bytes(), None));
                }
                Outcome::Written { version }
            }
        }
    }
}
