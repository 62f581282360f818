//! What checkers are given, and an index over it: which operations touched a key, and which version each write got.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use meridian_types::request::Found;
use meridian_types::{
    Bucket, BucketId, BucketName, Epoch, Key, Outcome, Read, ReadLevel, RegionId, Request, RequestId, Response,
    SalvageBundle, SalvageKey, ShardDigest, ShardId, Version, Write,
};

use super::dropped::Remnant;
use super::forks::Forks;
use super::kinds::Kinds;
use super::members::Members;
use super::nodes::Held;
use super::policies::Policies;
use crate::history::{Operation, Told};
use crate::trace::{Fact, Record, Verdict};

/// What was set up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The regions.
    pub regions: Vec<RegionId>,
    /// The buckets, as the metadata plane had them in the beginning.
    pub buckets: Vec<Bucket>,
    /// How many shards.
    pub shards: u16,
    /// Regions that lost a disk: what nobody else had is rightly gone.
    pub disks_lost: Vec<RegionId>,
    /// Bounds that the run is held to.
    pub limits: Limits,
    /// What the product may rely on, and could not in this run.
    pub violated: BTreeSet<Assumption>,
}

/// What the product relies on. A promise that rests on one of these may break while it is violated; all others must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Assumption {
    /// Any two monotonic clocks run equally fast, within 1 %.
    ClockRates,
    /// No node starts while its wall clock is ahead of the others by more than the skew that lanes accept, and none runs so fast
    /// that it gets there: what it stamps is not taken by others before they have come to that time, too.
    ClockAhead,
    /// No node starts while its wall clock is ahead by as long as answers are kept for retries: what its log stamps then takes
    /// every client for one that has been silent for so long.
    ClockFarAhead,
    /// A region of one node keeps what its disk has synced: there is no peer in the region to repair it from.
    Disks,
}

/// Bounds that a run is held to.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long after the heal everything must work again, in microseconds.
    pub recovery_us: u64,
    /// How long one operation may take once everything works, in microseconds.
    pub operation_us: u64,
    /// How far two clocks may differ in speed, in parts per million.
    pub drift_ppm: u64,
}

impl Default for Limits {
    /// Thirty seconds to recover (the bound of `docs/promises.md` for convergence), ten for an operation, 1 % of drift.
    fn default() -> Limits {
        Limits { recovery_us: 30_000_000, operation_us: 10_000_000, drift_ppm: 10_000 }
    }
}

/// What a region held of a bucket when the run was over.
#[derive(Clone, Debug, Default)]
pub struct Final {
    /// The region.
    pub region: RegionId,
    /// The bucket.
    pub bucket: BucketId,
    /// Live keys.
    pub contents: BTreeMap<Key, Found>,
    /// Digests of its shards, if they were asked for.
    pub digests: Vec<ShardDigest>,
}

/// A bundle of what a lost primary kept, with its keys.
#[derive(Clone, Debug)]
pub struct Salvaged {
    /// The region that kept it.
    pub region: RegionId,
    /// The bundle.
    pub bundle: SalvageBundle,
    /// Its keys.
    pub keys: Vec<SalvageKey>,
}

/// Everything known of a run.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// What was set up.
    pub setup: Setup,
    /// What clients did and were told, by the time they began; without what a failover undid.
    pub operations: Vec<Operation>,
    /// Of those, what clients were told of the histories that failovers undid.
    pub undone: Vec<Operation>,
    /// The failovers.
    pub forks: Forks,
    /// What each bucket promised when.
    pub policies: Policies,
    /// Which regions held each bucket when.
    pub(super) members: Members,
    /// Whether one region wrote each bucket when, or all of them.
    pub(super) kinds: Kinds,
    /// What lost primaries kept of what was undone; `None` when nobody looked.
    pub salvage: Option<Vec<Salvaged>>,
    /// What regions that hold a bucket no more had of it in the end.
    pub remnants: Vec<Remnant>,
    /// What each node had in the end; empty when nobody looked.
    pub held: Vec<Held>,
    /// What truly happened, if somebody could see it.
    pub records: Option<Vec<Record>>,
    /// What every region held in the end; empty when the run ended without looking.
    pub finals: Vec<Final>,
    /// When everything was whole again, in microseconds.
    pub healed_us: Option<u64>,
    index: Index,
}

#[derive(Clone, Debug, Default)]
struct Index {
    buckets: BTreeMap<BucketName, usize>,
    /// Operations that touched a key, in order.
    keys: BTreeMap<(BucketId, Key), Vec<usize>>,
    /// Per operation: the version of its write, as far as anybody learnt it.
    versions: Vec<Option<Version>>,
}

/// A write as the evidence knows it.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The operation.
    pub operation: &'a Operation,
    /// What it wrote.
    pub write: &'a Write,
    /// Its version, if it certainly took effect and anybody learnt it.
    pub version: Option<Version>,
    /// The answer, if its client got one.
    pub answer: Option<&'a Response>,
}

impl Evidence {
    /// Takes everything known of a run.
    pub fn new(
        setup: Setup,
        mut operations: Vec<Operation>,
        records: Option<Vec<Record>>,
        finals: Vec<Final>,
        healed_us: Option<u64>,
    ) -> Evidence {
        operations.sort_by_key(|operation| (operation.begun_us, operation.client));
        let forks = Forks::of(records.as_deref().unwrap_or_default());
        let policies = Policies::of(&setup.buckets, records.as_deref().unwrap_or_default());
        let members = Members::of(&setup.buckets, records.as_deref().unwrap_or_default());
        let kinds = Kinds::of(&setup.buckets, &policies, &forks, records.as_deref().unwrap_or_default());
        let undone = set_aside(&setup, &forks, &mut operations);
        let index = Index::of(&setup, &operations, records.as_deref(), &forks);
        Evidence {
            setup,
            operations,
            undone,
            forks,
            policies,
            members,
            kinds,
            salvage: None,
            remnants: Vec::new(),
            held: Vec::new(),
            records,
            finals,
            healed_us,
            index,
        }
    }

    /// With what lost primaries kept.
    #[must_use]
    pub fn with_salvage(self, salvage: Vec<Salvaged>) -> Evidence {
        Evidence { salvage: Some(salvage), ..self }
    }

    /// With what is left where buckets are not held.
    #[must_use]
    pub fn with_remnants(self, remnants: Vec<Remnant>) -> Evidence {
        Evidence { remnants, ..self }
    }

    /// With what each node had.
    #[must_use]
    pub fn with_held(self, held: Vec<Held>) -> Evidence {
        Evidence { held, ..self }
    }

    /// The bucket of that name.
    pub fn bucket_named(&self, name: &BucketName) -> Option<&Bucket> {
        self.index.buckets.get(name).map(|at| &self.setup.buckets[*at])
    }

    /// The bucket an operation was for.
    pub fn bucket_of(&self, operation: &Operation) -> Option<&Bucket> {
        self.bucket_named(operation.request.bucket())
    }

    /// How many regions must have a write of that epoch.
    pub(super) fn required(&self, bucket: BucketId, epoch: Epoch) -> usize {
        let holders = self.members.holders(bucket, epoch);
        self.policies.policy(bucket, epoch).map_or(1, |policy| policy.required_regions(holders))
    }

    /// The shard of a key.
    pub fn shard_of(&self, bucket: &Bucket, key: &Key) -> ShardId {
        key.shard(bucket.id, self.setup.shards)
    }

    /// Every key that was touched, with the operations that did, by the time they began.
    pub fn keys(&self) -> impl Iterator<Item = (&Bucket, &Key, Vec<&Operation>)> {
        self.index.keys.iter().filter_map(|((bucket, key), places)| {
            let bucket = self.setup.buckets.iter().find(|it| it.id == *bucket)?;
            Some((bucket, key, places.iter().map(|at| &self.operations[*at]).collect()))
        })
    }

    /// The writes to one key that may have taken effect, by the time they began.
    pub fn writes(&self, bucket: BucketId, key: &Key) -> impl Iterator<Item = Known<'_>> {
        let places = self.index.keys.get(&(bucket, key.clone())).map_or(&[][..], Vec::as_slice);
        places.iter().filter_map(|at| self.known(*at))
    }

    /// Every write that may have taken effect.
    pub fn all_writes(&self) -> impl Iterator<Item = Known<'_>> {
        (0..self.operations.len()).filter_map(|at| self.known(at))
    }

    fn known(&self, at: usize) -> Option<Known<'_>> {
        let operation = &self.operations[at];
        let Request::Write { write, .. } = &operation.request else { return None };
        let answer = operation.answer();
        let failed = answer.is_some_and(|answer| matches!(answer.outcome, Outcome::ConditionFailed { .. }));
        if failed || operation.is_without_effect() {
            return None;
        }
        Some(Known { operation, write, version: self.index.versions[at], answer })
    }

    /// What the final look found in every region of a bucket.
    pub fn finals_of(&self, bucket: BucketId) -> impl Iterator<Item = &Final> {
        self.finals.iter().filter(move |it| it.bucket == bucket)
    }
}

impl Index {
    fn of(setup: &Setup, operations: &[Operation], records: Option<&[Record]>, forks: &Forks) -> Index {
        let mut index = Index::default();
        index.buckets.extend(setup.buckets.iter().enumerate().map(|(at, bucket)| (bucket.name.clone(), at)));
        for (at, operation) in operations.iter().enumerate() {
            let Some(bucket) = index.buckets.get(operation.request.bucket()) else { continue };
            let bucket = setup.buckets[*bucket].id;
            for key in operation.keys() {
                index.keys.entry((bucket, key.clone())).or_default().push(at);
            }
        }
        let seen = seen_versions(&index, setup, operations);
        let decided = decided_versions(records.unwrap_or_default(), forks);
        index.versions = operations
            .iter()
            .map(|operation| {
                let Request::Write { bucket, write, id, .. } = &operation.request else { return None };
                if let Some(answer) = operation.answer() {
                    return answer.outcome.version();
                }
                let bucket = setup.buckets[*index.buckets.get(bucket)?].id;
                let by_trace = decided.get(&(bucket, *id)).copied();
                let by_value =
                    || write.values().find_map(|(key, value)| seen.get(&(bucket, key, value.as_ref())).copied());
                by_trace.or_else(by_value)
            })
            .collect();
        index
    }
}

/// Takes out what clients were told of a history that a failover undid: reads of it are left out, writes become unknown.
fn set_aside(setup: &Setup, forks: &Forks, operations: &mut Vec<Operation>) -> Vec<Operation> {
    let mut undone = Vec::new();
    if forks.undone.is_empty() {
        return undone;
    }
    operations.retain_mut(|operation| {
        let bucket = setup.buckets.iter().find(|bucket| bucket.name == *operation.request.bucket());
        let Some((bucket, answer)) = bucket.zip(operation.answer()) else { return true };
        let at = operation.keys().into_iter().map(|key| key.shard(bucket.id, setup.shards)).find(|shard| {
            answer.session.seen(bucket.id, *shard).is_some_and(|seen| forks.has_undone(bucket.id, *shard, seen))
        });
        let saw =
            operation.found().iter().filter_map(|(_, found)| *found).any(|it| forks.is_undone(bucket.id, it.version));
        let is_undone = match (&operation.request, operation.written()) {
            (Request::Write { .. }, Some(version)) => forks.is_undone(bucket.id, version),
            (Request::Write { .. }, None) | (Request::Read { .. }, _) => saw || at.is_some(),
        };
        if !is_undone {
            return true;
        }
        undone.push(operation.clone());
        operation.told = Told::Nothing;
        matches!(operation.request, Request::Write { .. })
    });
    undone
}

/// Whoever read a value learnt the version of its write: values are written once.
fn seen_versions<'a>(
    index: &Index,
    setup: &Setup,
    operations: &'a [Operation],
) -> HashMap<(BucketId, &'a Key, &'a [u8]), Version> {
    let mut seen = HashMap::new();
    for operation in operations {
        let Some(bucket) = index.buckets.get(operation.request.bucket()) else { continue };
        let bucket = setup.buckets[*bucket].id;
        for (key, found) in operation.found() {
            if let Some(found) = found {
                seen.insert((bucket, key, found.value.as_ref()), found.version);
            }
        }
    }
    seen
}

fn decided_versions(records: &[Record], forks: &Forks) -> HashMap<(BucketId, RequestId), Version> {
    let mut decided = HashMap::new();
    for record in records {
        if let Fact::Applied { shard, entry, .. } = &record.fact
            && entry.verdict == Verdict::Took
            && !forks.has_lost(*shard, entry)
        {
            decided.insert((entry.bucket, entry.request), Version { hlc: entry.hlc, region: entry.origin });
        }
    }
    decided
}

impl Operation {
    /// The answer, if it was answered.
    pub fn answer(&self) -> Option<&Response> {
        match &self.told {
            Told::Done(response) => Some(response),
            Told::Refused(_) | Told::Nothing => None,
        }
    }

    /// Whether it certainly changed nothing.
    pub fn is_without_effect(&self) -> bool {
        matches!(&self.told, Told::Refused(refusal) if refusal.effect == meridian_types::Effect::None)
    }

    /// The keys it is about; none for a scan.
    pub fn keys(&self) -> Vec<&Key> {
        match &self.request {
            Request::Write { write, .. } => write.keys().collect(),
            Request::Read { read: Read::Get { key }, .. } => vec![key],
            Request::Read { read: Read::MultiGet { keys }, .. } => keys.iter().collect(),
            Request::Read { read: Read::Scan { .. }, .. } => Vec::new(),
        }
    }

    /// The level of a read.
    pub fn level(&self) -> Option<&ReadLevel> {
        match &self.request {
            Request::Read { level, .. } => Some(level),
            Request::Write { .. } => None,
        }
    }

    /// What an answered read found, per key it asked for; for a scan, per key it returned.
    pub fn found(&self) -> Vec<(&Key, Option<&Found>)> {
        let (Request::Read { read, .. }, Some(answer)) = (&self.request, self.answer()) else { return Vec::new() };
        match (read, &answer.outcome) {
            (Read::Get { key }, Outcome::Value(found)) => vec![(key, found.as_ref())],
            (Read::MultiGet { keys }, Outcome::Values(found)) => {
                keys.iter().zip(found.iter().map(Option::as_ref)).collect()
            }
            (Read::Scan { values: true, .. }, Outcome::Page { items, .. }) => {
                items.iter().map(|(key, found)| (key, Some(found))).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The version of an answered write that took effect.
    pub fn written(&self) -> Option<Version> {
        self.answer().and_then(|answer| answer.outcome.version())
    }

    /// What an answered increment came to.
    pub fn counted(&self) -> Option<i64> {
        match self.answer()?.outcome {
            Outcome::Count { value, .. } => Some(value),
            _ => None,
        }
    }

    /// Whether it ended before the other began: then it came first, whatever anybody says.
    pub fn precedes(&self, other: &Operation) -> bool {
        self.ended_us < other.begun_us
    }
}

/// The version of an outcome, if it is one of a write that took effect.
trait OutcomeVersion {
    fn version(&self) -> Option<Version>;
}

impl OutcomeVersion for Outcome {
    fn version(&self) -> Option<Version> {
        match self {
            Outcome::Written { version }
            | Outcome::Deleted { version, .. }
            | Outcome::Count { version, .. }
            | Outcome::Length { version, .. } => Some(*version),
            Outcome::Value(_) | Outcome::Values(_) | Outcome::Page { .. } | Outcome::ConditionFailed { .. } => None,
        }
    }
}

/// The values a write sets, where a reader can recognise them.
trait WriteValues {
    fn values(&self) -> Box<dyn Iterator<Item = (&Key, &Bytes)> + '_>;
}

impl WriteValues for Write {
    fn values(&self) -> Box<dyn Iterator<Item = (&Key, &Bytes)> + '_> {
        match self {
            Write::Put { key, value, .. }
            | Write::CompareAndSet { key, value, .. }
            | Write::PutIfAbsent { key, value, .. } => Box::new(std::iter::once((key, value.as_bytes()))),
            Write::MultiPut { items } => Box::new(items.iter().map(|(key, value)| (key, value.as_bytes()))),
            Write::Delete { .. } | Write::Append { .. } | Write::Increment { .. } => Box::new(std::iter::empty()),
        }
    }
}
