//! Who orders a bucket's writes: one region, or all of them. That may change while it serves, and whether there is one history,
//! whose strong operations are linearizable, follows from the epoch (docs/adr/2026-11-28-active-active-changes.md).
//!
//! ```text
//!   epoch           1   2   │      3       │   4   5   │      6
//!   written by      one     │ every region │    one    │ every region
//!   stretch         0       │      ·       │     3     │      ·
//! ```
//! Epochs with a primary that follow one on the other are a stretch: one history. It is named by the last epoch before it in which every region
//! wrote. What a write belongs to is where its entry is: a retry may be answered much later. Without a trace buckets stay what they were.

use std::collections::{BTreeMap, HashMap};

use meridian_types::entry::Kind;
use meridian_types::{Bucket, BucketId, ClientId, Epoch, Key, Policy, Request, RequestId};

use super::forks::Forks;
use super::policies::Policies;
use super::{Evidence, Known};
use crate::history::Operation;
use crate::trace::{Fact, Record, Verdict};

/// The stretch that a bucket with a primary begins with.
pub(super) const FIRST: Epoch = Epoch(0);

/// Of which kind the epochs of every bucket are.
#[derive(Clone, Debug, Default)]
pub(super) struct Kinds {
    /// The epochs in which every region writes.
    active: BTreeMap<BucketId, Vec<Epoch>>,
    /// Of buckets that crossed: under which epoch each request was decided.
    decided: BTreeMap<BucketId, HashMap<RequestId, (Weight, Epoch)>>,
}

/// How much the fate of an entry says about its request: what counts for good says most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    Refused,
    Undone,
    Took,
}

impl Kinds {
    /// From what is on record, and what was seen.
    pub(super) fn of(buckets: &[Bucket], policies: &Policies, forks: &Forks, records: &[Record]) -> Kinds {
        let mut kinds = Kinds::default();
        for bucket in buckets {
            let words = policies.words(bucket.id);
            let every = words.iter().filter(|word| word.policy == Policy::ActiveActive);
            let mut active: Vec<Epoch> = every.map(|word| word.epoch).collect();
            active.dedup();
            if !active.is_empty() && words.iter().any(|word| !active.contains(&word.epoch)) {
                kinds.decided.insert(bucket.id, HashMap::new());
            }
            kinds.active.insert(bucket.id, active);
        }
        for record in records {
            let Fact::Applied { shard, entry, .. } = &record.fact else { continue };
            let Some(decided) = kinds.decided.get_mut(&entry.bucket) else { continue };
            let weight = match entry.verdict {
                Verdict::Took if forks.has_lost(*shard, entry) => Weight::Undone,
                Verdict::Took => Weight::Took,
                Verdict::Refused => Weight::Refused,
                Verdict::Repeated | Verdict::Parked | Verdict::Void => continue,
            };
            if entry.kind != Kind::Write || entry.request.client == ClientId(0) {
                continue;
            }
            let known = decided.entry(entry.request).or_insert((weight, entry.epoch));
            if known.0 < weight {
                *known = (weight, entry.epoch);
            }
        }
        kinds
    }

    /// Whether every region writes in an epoch.
    pub(super) fn is_active(&self, bucket: BucketId, epoch: Epoch) -> bool {
        match self.active.get(&bucket) {
            Some(active) if self.crosses(bucket) => active.contains(&epoch),
            active => active.is_some_and(|active| !active.is_empty()),
        }
    }

    /// Whether every region ever wrote a bucket.
    pub(super) fn was_active(&self, bucket: BucketId) -> bool {
        self.active.get(&bucket).is_some_and(|active| !active.is_empty())
    }

    /// Whether a bucket was of both kinds.
    pub(super) fn crosses(&self, bucket: BucketId) -> bool {
        self.decided.contains_key(&bucket)
    }

    /// The stretch of an epoch; `None` for one in which every region writes.
    fn stretch(&self, bucket: BucketId, epoch: Epoch) -> Option<Epoch> {
        if self.is_active(bucket, epoch) {
            return None;
        }
        let before = self.active.get(&bucket).into_iter().flatten().filter(|active| **active < epoch);
        Some(before.max().copied().unwrap_or(FIRST))
    }
}

impl Evidence {
    /// Under which epoch a write was decided, or a read answered. Only of a bucket that crossed it is known where nobody told the client.
    pub(super) fn epoch_of(&self, bucket: BucketId, operation: &Operation) -> Option<Epoch> {
        let told = operation.answer().map(|answer| answer.epoch);
        match (&operation.request, self.kinds.decided.get(&bucket)) {
            (Request::Write { id, .. }, Some(decided)) => decided.get(id).map(|(_, epoch)| *epoch).or(told),
            _ => told,
        }
    }

    /// The stretch whose history an operation belongs to; `None` where every region wrote. In a bucket that crossed, what left no trace
    /// belongs nowhere: it never happened.
    pub(super) fn stretch_of(&self, bucket: BucketId, operation: &Operation) -> Option<Epoch> {
        if !self.kinds.crosses(bucket) {
            return (!self.kinds.was_active(bucket)).then_some(FIRST);
        }
        self.kinds.stretch(bucket, self.epoch_of(bucket, operation)?)
    }

    /// The writes to a key that took effect before a stretch.
    pub(super) fn before_stretch(
        &self,
        bucket: BucketId,
        key: &Key,
        stretch: Epoch,
    ) -> impl Iterator<Item = Known<'_>> {
        let earlier = move |known: &Known<'_>| {
            let epoch = known.version.and_then(|_| self.epoch_of(bucket, known.operation));
            epoch.is_some_and(|epoch| epoch <= stretch)
        };
        self.writes(bucket, key).filter(earlier)
    }

    /// Whether what a key comes to rests on something that one failover undid and a later one took up again: then nobody can tell.
    pub(super) fn is_taken_up_again(&self, bucket: BucketId, key: &Key) -> bool {
        let of = |known: Known<'_>| match &known.operation.request {
            Request::Write { id, .. } => self.forks.undone_by(bucket, *id).is_some_and(|undone| undone.again),
            Request::Read { .. } => false,
        };
        !self.forks.undone.is_empty() && self.writes(bucket, key).any(of)
    }
}
