//! What a bucket promises: its policy may change while it serves, and what an acknowledgement means, and which lane an entry
//! travels in, follows from the epoch it was given under (docs/adr/2026-11-27-online-policy-change.md).
//!
//! ```text
//!   on record     async │ sync, RECOVERING │ sync, SYNC │ sync, DEGRADED │ async
//!   epoch           1   │              2                                 │   3
//! ```
//! On record is what some node's copy of the metadata says, from when the first one does. A run that nobody saw inside of has the
//! policies that its buckets began with.

use std::collections::BTreeMap;

use meridian_types::{Breach, Bucket, BucketId, Epoch, Lane, MaxLag, Policy};

use super::members::Members;
use crate::trace::{Copies, Fact, Record};

/// For how long a node may act on what it knew before, in microseconds: a lease of 5 s, by clocks that differ by 1 %.
const LEASE_US: u64 = 5_100_000;

/// What is on record of a bucket, from some time on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Word {
    /// From when on.
    pub(super) since_us: u64,
    /// Under which epoch.
    pub(super) epoch: Epoch,
    /// Its policy.
    pub(super) policy: Policy,
    /// How its copies stand.
    pub(super) copies: Copies,
}

/// What is on record of every bucket, in the order in which it was put there.
#[derive(Clone, Debug, Default)]
pub struct Policies(BTreeMap<BucketId, Vec<Word>>);

impl Policies {
    /// From what was seen, and what the buckets began with.
    pub(super) fn of(buckets: &[Bucket], records: &[Record]) -> Policies {
        let mut heard: BTreeMap<(BucketId, u64), Word> = BTreeMap::new();
        for record in records {
            if let Fact::PolicyKnown { index, bucket, epoch, policy, copies, .. } = &record.fact {
                let word = Word { since_us: record.at_us, epoch: *epoch, policy: *policy, copies: *copies };
                heard.entry((*bucket, *index)).or_insert(word);
            }
        }
        let mut words: BTreeMap<BucketId, Vec<Word>> = BTreeMap::new();
        for ((bucket, _), word) in heard {
            words.entry(bucket).or_default().push(word);
        }
        for bucket in buckets {
            let first = Word { since_us: 0, epoch: bucket.epoch, policy: bucket.policy, copies: Copies::Sync };
            words.entry(bucket.id).or_insert_with(|| vec![first]);
        }
        Policies(words)
    }

    /// All that was on record of a bucket.
    pub(super) fn words(&self, bucket: BucketId) -> &[Word] {
        self.0.get(&bucket).map_or(&[], Vec::as_slice)
    }

    /// What was on record under an epoch; of one that nobody heard of, what was before it.
    pub(super) fn under(&self, bucket: BucketId, epoch: Epoch) -> impl Iterator<Item = &Word> {
        let words = self.words(bucket);
        let last = words.iter().rev().find(|word| word.epoch <= epoch).or(words.first()).map(|word| word.epoch);
        words.iter().filter(move |word| Some(word.epoch) == last)
    }

    /// Whether an epoch was ever one in which fewer copies might do.
    pub(super) fn may_degrade(&self, bucket: BucketId, epoch: Epoch) -> bool {
        self.under(bucket, epoch).any(|word| word.policy.degrade_after_ms().is_some())
    }

    /// The policy that writes of an epoch are held to. An epoch in which every region comes to write is on record before: with the policy
    /// of then, and nobody writes.
    pub(super) fn policy(&self, bucket: BucketId, epoch: Epoch) -> Option<Policy> {
        let mut policies = self.under(bucket, epoch).map(|word| word.policy);
        let first = policies.next()?;
        Some(policies.find(|policy| *policy == Policy::ActiveActive).unwrap_or(first))
    }

    /// The lane of the entries of an epoch.
    pub(super) fn lane(&self, bucket: &Bucket, epoch: Epoch) -> Lane {
        self.policy(bucket.id, epoch).unwrap_or(bucket.policy).lane()
    }

    /// What is on record when a `sync` bucket comes to be SYNC after it was not, or stays so without one of its regions.
    pub(super) fn becomes_sync(&self, bucket: BucketId, members: &Members) -> impl Iterator<Item = &Word> {
        let less = move |before: &Word, now: &Word| {
            let (were, are) = (members.at(bucket, before.since_us), members.at(bucket, now.since_us));
            were.iter().any(|region| !are.contains(region))
        };
        let pairs = self.words(bucket).windows(2).map(|pair| (&pair[0], &pair[1]));
        let news = pairs.filter(move |(before, now)| before.copies != Copies::Sync || less(before, now));
        news.map(|(_, now)| now).filter(|now| now.copies == Copies::Sync && now.policy.lane() == Lane::Sync)
    }

    /// The most operations that nobody may go beyond then: no less than every node may have gone by that has not heard of a change.
    pub(super) fn ceiling(&self, bucket: BucketId, at_us: u64) -> Option<u64> {
        let words = self.words(bucket);
        let until_us = |place: usize| words.get(place + 1).map_or(u64::MAX, |next| next.since_us);
        let in_force = words
            .iter()
            .enumerate()
            .filter(|(place, word)| word.since_us <= at_us && at_us.saturating_sub(LEASE_US) < until_us(*place));
        let most = |(_, word): (usize, &Word)| match word.policy.max_lag() {
            Some(MaxLag { bound, on_breach: Breach::Block }) => bound.operations,
            _ => None,
        };
        in_force.map(most).reduce(|a, b| a.zip(b).map(|(a, b)| a.max(b))).flatten()
    }
}
