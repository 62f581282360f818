//! Hand-made runs: three regions, a bucket of each policy, time in milliseconds, versions as numbers.

use std::collections::BTreeMap;

use meridian_types::entry::Kind;
use meridian_types::request::Found;
use meridian_types::{
    Acks, Breach, Bucket, BucketId, BucketName, ClientId, Durability, Effect, Epoch, Freshness, Hlc, Key, LagBound,
    Lane, Lsn, MaxLag, NodeId, OnPartition, Outcome, Phase, Policy, Read, ReadLevel, Refusal, RefusalKind, RegionId,
    Request, RequestId, Response, SessionToken, ShardId, StalePolicy, Value, Version, Write, WriteAck,
};

use crate::check::{Evidence, Final, Limits, Salvaged, Setup};
use crate::history::{Operation, Told};
use crate::trace::{Entry, Fact, Record, Replica, Standing, Verdict};

pub(super) const SYNC: BucketId = BucketId(1);
pub(super) const ASYNC: BucketId = BucketId(2);
pub(super) const ACTIVE: BucketId = BucketId(3);
/// Sync, and may degrade.
pub(super) const DEGRADING: BucketId = BucketId(4);
/// Async, and may risk two operations.
pub(super) const CAPPED: BucketId = BucketId(5);

/// A run to be.
#[derive(Clone, Default)]
pub(super) struct Story {
    pub(super) operations: Vec<Operation>,
    pub(super) records: Vec<Record>,
    pub(super) finals: Vec<Final>,
    pub(super) healed_ms: Option<u64>,
    pub(super) disks_lost: Vec<RegionId>,
    pub(super) salvage: Option<Vec<Salvaged>>,
    sequence: u64,
}

/// One client asking one region, from one time to another.
#[derive(Clone, Copy)]
pub(super) struct Asking {
    pub(super) client: u32,
    pub(super) region: u16,
    pub(super) from_ms: u64,
    pub(super) to_ms: u64,
    pub(super) bucket: BucketId,
}

pub(super) fn asks(client: u32, region: u16, from_ms: u64, to_ms: u64, bucket: BucketId) -> Asking {
    Asking { client, region, from_ms, to_ms, bucket }
}

pub(super) fn key(name: &str) -> Key {
    Key::new(name.to_owned()).unwrap()
}

pub(super) fn value(text: &str) -> Value {
    Value::new(text.to_owned()).unwrap()
}

/// Version `at` of region 1.
pub(super) fn v(at: u64) -> Version {
    version(at, 1)
}

pub(super) fn version(at: u64, region: u16) -> Version {
    Version { hlc: Hlc(at), region: RegionId(region) }
}

pub(super) fn found(text: &str, version: Version) -> Found {
    Found { value: value(text).into_bytes(), version, expires_at_ms: None }
}

pub(super) fn put(name: &str, text: &str) -> Write {
    Write::Put { key: key(name), value: value(text), ttl_ms: None }
}

pub(super) fn cas(name: &str, expected: Option<Version>, text: &str) -> Write {
    Write::CompareAndSet { key: key(name), expected, value: value(text), ttl_ms: None }
}

pub(super) fn lost_answer() -> Told {
    Told::Refused(Refusal::new(RefusalKind::Unavailable, "the answer was lost").with_effect(Effect::Unknown))
}

fn bucket(id: BucketId, name: &str, policy: Policy) -> Bucket {
    Bucket {
        id,
        name: BucketName::new(name).unwrap(),
        policy,
        epoch: Epoch(1),
        phase: Phase::Steady,
        primary: policy.has_primary().then_some(RegionId(1)),
        regions: (1..=3).map(RegionId).collect(),
        labels: BTreeMap::new(),
        created: Hlc(0),
        standing: Default::default(),
        auto: Default::default(),
        turns: Default::default(),
        joins: Default::default(),
        crossing: None,
    }
}

pub(super) fn setup() -> Setup {
    let bound = LagBound { operations: Some(2), ..LagBound::default() };
    Setup {
        violated: std::collections::BTreeSet::new(),
        regions: (1..=3).map(RegionId).collect(),
        buckets: vec![
            bucket(SYNC, "sync", Policy::sync(Acks::Majority)),
            bucket(ASYNC, "async", Policy::ASYNC),
            bucket(ACTIVE, "active", Policy::ActiveActive),
            bucket(DEGRADING, "degrading", Policy::Sync { acks: Acks::Majority, on_partition: OnPartition::DEGRADE }),
            bucket(CAPPED, "capped", Policy::Async { max_lag: Some(MaxLag { bound, on_breach: Breach::Block }) }),
        ],
        shards: 1,
        disks_lost: Vec::new(),
        limits: Limits::default(),
    }
}

impl Story {
    pub(super) fn evidence(&self) -> Evidence {
        let setup = Setup { disks_lost: self.disks_lost.clone(), ..setup() };
        let mut records = self.records.clone();
        records.sort_by_key(|record| record.at_us);
        let records = (!records.is_empty()).then_some(records);
        let healed_us = self.healed_ms.map(|ms| ms * 1000);
        let evidence = Evidence::new(setup, self.operations.clone(), records, self.finals.clone(), healed_us);
        match &self.salvage {
            Some(salvage) => evidence.with_salvage(salvage.clone()),
            None => evidence,
        }
    }

    pub(super) fn operation(mut self, who: Asking, request: Request, told: Told) -> Story {
        self.operations.push(Operation {
            client: who.client,
            region: RegionId(who.region),
            request,
            begun_us: who.from_ms * 1000,
            ended_us: who.to_ms * 1000,
            told,
        });
        self
    }

    /// A write that was answered as durably as its policy asks, its position being its version.
    pub(super) fn wrote(self, who: Asking, write: Write, outcome: Outcome, at: Version) -> Story {
        let regions = if who.bucket == SYNC { 2 } else { 1 };
        self.wrote_in(who, write, outcome, at, regions)
    }

    pub(super) fn wrote_in(self, who: Asking, write: Write, outcome: Outcome, at: Version, regions: u16) -> Story {
        let mut session = SessionToken::default();
        session.observe(who.bucket, ShardId(0), at.region, Lsn(at.hlc.0));
        let answer = Response {
            region: RegionId(who.region),
            epoch: Epoch(1),
            outcome,
            freshness: Freshness { hlc: at.hlc, staleness_ms: None },
            durability: Some(Durability { regions, nodes: regions }),
            session,
        };
        self.write(who, write, Told::Done(answer))
    }

    pub(super) fn write(mut self, who: Asking, write: Write, told: Told) -> Story {
        self.sequence += 1;
        let id = RequestId { client: ClientId(u128::from(who.client) + 1), sequence: self.sequence };
        let request = Request::Write {
            bucket: name(who.bucket),
            write,
            ack: WriteAck::Policy,
            id,
            lowest_outstanding: id.sequence,
            begun: Epoch(0),
            session: SessionToken::default(),
            deadline_ms: 1000,
        };
        self.operation(who, request, told)
    }

    /// A put that was acknowledged.
    pub(super) fn put(self, who: Asking, name: &str, text: &str, at: Version) -> Story {
        self.wrote(who, put(name, text), Outcome::Written { version: at }, at)
    }

    /// A delete that was acknowledged.
    pub(super) fn delete(self, who: Asking, name: &str, at: Version) -> Story {
        self.wrote(who, Write::Delete { key: key(name) }, Outcome::Deleted { version: at, existed: true }, at)
    }

    /// A read that was answered.
    pub(super) fn read(self, who: Asking, level: ReadLevel, name: &str, found: Option<Found>) -> Story {
        let staleness_ms = (level == ReadLevel::Strong).then_some(0);
        self.read_claiming(who, level, name, found, staleness_ms)
    }

    pub(super) fn read_claiming(
        self,
        who: Asking,
        level: ReadLevel,
        name: &str,
        found: Option<Found>,
        staleness_ms: Option<u64>,
    ) -> Story {
        let told = answered(who, Outcome::Value(found), staleness_ms);
        self.asked(who, level, Read::Get { key: key(name) }, told)
    }

    pub(super) fn read_many(self, who: Asking, names: &[&str], found: Vec<Option<Found>>) -> Story {
        let keys = names.iter().map(|name| key(name)).collect();
        let told = answered(who, Outcome::Values(found), None);
        self.asked(who, ReadLevel::Eventual, Read::MultiGet { keys }, told)
    }

    pub(super) fn asked(self, who: Asking, level: ReadLevel, read: Read, told: Told) -> Story {
        let request = Request::Read {
            bucket: name(who.bucket),
            read,
            level,
            stale: StalePolicy::Wait,
            session: SessionToken::default(),
            deadline_ms: 1000,
        };
        self.operation(who, request, told)
    }

    /// What every region holds in the end, region by region.
    pub(super) fn ends(mut self, bucket: BucketId, held: [&[(&str, Found)]; 3]) -> Story {
        for (region, held) in (1..).zip(held) {
            let contents = held.iter().map(|(name, found)| (key(name), found.clone())).collect();
            self.finals.push(Final { region: RegionId(region), bucket, contents, digests: Vec::new() });
        }
        self
    }

    pub(super) fn fact(mut self, at_ms: u64, fact: Fact) -> Story {
        self.records.push(Record { at_us: at_ms * 1000, fact });
        self
    }

    /// A replica applied an entry; `lsn` of its own log, `source_lsn` of the origin's.
    pub(super) fn applied(self, at_ms: u64, region: u16, lsn: u64, entry: Entry) -> Story {
        let fact =
            Fact::Applied { replica: replica(region), shard: ShardId(0), entry: Entry { lsn: Lsn(lsn), ..entry } };
        self.fact(at_ms, fact)
    }

    /// A replica applied a frame of region 1 at `lsn` of its own log.
    pub(super) fn frame(self, at_ms: u64, region: u16, (previous, last): (u64, u64), lsn: u64) -> Story {
        let (previous, last, lsn) = (Lsn(previous), Lsn(last), Lsn(lsn));
        let (replica, source, lane) = (replica(region), RegionId(1), Lane::Sync);
        self.fact(at_ms, Fact::FrameApplied { replica, shard: ShardId(0), source, lane, previous, last, lsn })
    }

    pub(super) fn stands(self, at_ms: u64, region: u16, standing: Standing) -> Story {
        self.fact(at_ms, Fact::Stands { replica: replica(region), shard: ShardId(0), bucket: SYNC, standing })
    }
}

pub(super) fn answered(who: Asking, outcome: Outcome, staleness_ms: Option<u64>) -> Told {
    Told::Done(Response {
        region: RegionId(who.region),
        epoch: Epoch(1),
        outcome,
        freshness: Freshness { hlc: Hlc(0), staleness_ms },
        durability: None,
        session: SessionToken::default(),
    })
}

fn name(bucket: BucketId) -> BucketName {
    setup().buckets.into_iter().find(|it| it.id == bucket).unwrap().name
}

pub(super) fn replica(region: u16) -> Replica {
    Replica { region: RegionId(region), node: NodeId(u64::from(region)) }
}

/// A write of the sync bucket at that position of region 1's log, its timestamp being its position.
pub(super) fn entry(at: u64) -> Entry {
    Entry {
        lsn: Lsn(at),
        origin: RegionId(1),
        source_lsn: Lsn(at),
        bucket: SYNC,
        epoch: Epoch(1),
        hlc: Hlc(at),
        kind: Kind::Write,
        request: RequestId { client: ClientId(1), sequence: at },
        verdict: Verdict::Took,
    }
}
