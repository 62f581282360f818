//! Changing a bucket between `async` and `sync` while it serves (docs/adr/2026-11-27-online-policy-change.md).
//!
//! ```text
//!   epoch e, async lane ──seal(e), async lane──►  epoch e+1, sync lane
//!   async → sync   RECOVERING: what was acknowledged before may lack copies. SYNC once every shard has said otherwise
//!   sync → async   from this commit on nothing is promised of other regions
//! ```
//! One commit changes the policy, raises the epoch and remembers which lane the epochs before it travel in. Every leader
//! that has not heard of it goes on under the old epoch, by the old rule and in the old lane, until its region seals that
//! epoch. So each entry has one lane and one rule: those of its epoch (DUR-2, ORD-1). A turn is forgotten once every
//! shard has said that all regions of the bucket have applied its seal.
//!
//! Deliberately not here: when a region has (`region/core`), and changes to and from `active-active` (`crossing.rs`).

use std::collections::BTreeSet;
use std::sync::Arc;

use meridian_types::{
    AutoFailover, Bucket, BucketName, Epoch, Hlc, Policy, Refusal, RefusalKind, RegionName, ShardId, Standing,
    TURNS_MAX, Turns,
};

use crate::apply::{Done, Occasion, StepTaken};
use crate::reply::Reply;
use crate::spec::invalid;
use crate::standing::stopped;
use crate::state::{ClusterState, Fault, rule};

#[cfg(test)]
mod tests;

impl ClusterState {
    /// Puts another policy on a bucket while it serves.
    pub(crate) fn set_policy(
        &mut self,
        occasion: Occasion<'_>,
        name: &BucketName,
        policy: Policy,
        auto: Option<&AutoFailover<RegionName>>,
    ) -> Result<Done, Refusal> {
        let before = Arc::clone(self.existing(name)?);
        let same_kind = std::mem::discriminant(&policy) == std::mem::discriminant(&before.policy);
        if before.crossing.is_some() && same_kind {
            return self.turn_back(occasion, name);
        }
        self.check_crossing(&before)?;
        let mut bucket = Bucket::clone(&before);
        policy.validate(bucket.regions.len()).map_err(|why| invalid(why.to_string()))?;
        self.check_ceiling(policy)?;
        match (before.policy, policy) {
            (Policy::Async { .. }, Policy::Async { .. }) => {
                if policy.max_lag().is_some() && policy != before.policy {
                    self.check_one_lane(&bucket)?;
                }
                bucket.policy = policy;
            }
            (Policy::Sync { acks: now, .. }, Policy::Sync { acks, on_partition }) => {
                bucket.policy = Policy::Sync { acks: now, on_partition };
                self.change_acks(&mut bucket, acks, occasion.at)?;
            }
            (Policy::ActiveActive, Policy::ActiveActive) => {}
            (Policy::Async { .. }, Policy::Sync { .. }) | (Policy::Sync { .. }, Policy::Async { .. }) => {
                self.turn(&mut bucket, policy, occasion.at)?;
            }
            (Policy::ActiveActive, _) | (_, Policy::ActiveActive) => return Err(unsaid(&before, policy)),
        }
        match auto {
            Some(auto) => bucket.auto = self.auto_instead(auto, &Bucket { policy, ..bucket.clone() })?,
            None => bucket.auto.validate(policy, &bucket.regions).map_err(|why| invalid(why.to_string()))?,
        }
        if policy.degrade_after_ms().is_none() {
            bucket.standing = stopped(bucket.standing, occasion.at);
        }
        let said = (bucket != *before).then(|| changed(&before, &bucket));
        self.buckets.insert(bucket.id, Arc::new(bucket.clone()));
        Ok(Done::new(Reply::of_bucket(bucket), said))
    }

    fn turn(&self, bucket: &mut Bucket, policy: Policy, at: Hlc) -> Result<(), Refusal> {
        self.check_fixed(bucket)?;
        if bucket.turns.kept.len() >= TURNS_MAX {
            return Err(Refusal::new(
                RefusalKind::Retry,
                format!(
                    "`{}` has changed its lane {TURNS_MAX} times since all of its regions were last known to have everything: bring back those that are away, and try again once `meridian bucket show {}` says that its lanes have turned",
                    bucket.name, bucket.name
                ),
            ));
        }
        if policy.max_lag().is_some() && (bucket.is_turning() || !bucket.standing.is_sync()) {
            return Err(Refusal::new(
                RefusalKind::Retry,
                format!(
                    "`{}` may have acknowledged writes that no other region has, and its ceiling would not count them: change it without max-lag now and set max-lag once its lanes have turned, or wait until it is SYNC",
                    bucket.name
                ),
            ));
        }
        let from = bucket.policy.lane();
        bucket.epoch = Epoch(bucket.epoch.0.saturating_add(1));
        bucket.turns.turn(bucket.epoch, from);
        bucket.policy = policy;
        bucket.standing = match policy {
            // Nothing that was acknowledged so far needed a copy elsewhere.
            Policy::Sync { .. } => Standing::Recovering { since: at, exposed_since: at, ready: BTreeSet::new() },
            Policy::Async { .. } | Policy::ActiveActive => Standing::Sync { since: at },
        };
        Ok(())
    }

    /// A ceiling counts what is in the async lane alone.
    pub(crate) fn check_one_lane(&self, bucket: &Bucket) -> Result<(), Refusal> {
        if !bucket.is_turning() {
            return Ok(());
        }
        let why = format!(
            "`{}` still has writes in the lane of its earlier policy, which a ceiling would not count: set max-lag once `meridian bucket show {}` says that its lanes have turned",
            bucket.name, bucket.name
        );
        Err(Refusal::new(RefusalKind::Retry, why))
    }

    /// Checks every rule about the lanes of a bucket.
    pub(crate) fn validate_turns(&self, bucket: &Bucket) -> Result<(), Fault> {
        let shards = self.formed.as_ref().map_or(0, |formed| formed.shards);
        let Turns { kept, followed } = &bucket.turns;
        rule(kept.len() <= TURNS_MAX, "a bucket's lane has turned too often")?;
        rule(kept.is_sorted_by(|a, b| a.epoch < b.epoch && a.from != b.from), "a bucket's turns are out of order")?;
        let last = kept.last();
        rule(
            last.is_none_or(|turn| turn.epoch <= bucket.epoch && turn.from != bucket.policy.lane()),
            "a bucket's lane turned to where it was, or in an epoch to come",
        )?;
        let counted = followed.len() < usize::from(shards) && followed.iter().all(|it| it.0 < shards);
        rule(followed.is_empty() || (counted && last.is_some()), "a bucket's shards have followed nowhere")
    }
}

/// Shards of the primary's region say that every region has followed into the bucket's lane.
pub(crate) fn hear(bucket: &mut Bucket, followed: &BTreeSet<ShardId>, shards: u16) -> Option<StepTaken> {
    if bucket.turns.is_empty() {
        return None;
    }
    bucket.turns.followed.extend(followed.iter().filter(|shard| shard.0 < shards));
    if bucket.turns.followed.len() < usize::from(shards) {
        return None;
    }
    bucket.turns = Turns::default();
    let detail = format!("every region has all of the earlier epochs; only the {} lane is used", bucket.policy.lane());
    Some(StepTaken { verb: "turned", subject: bucket.name.to_string(), detail })
}

fn changed(before: &Bucket, after: &Bucket) -> String {
    let mut said = format!("{}, auto {}", after.policy, after.auto.mode);
    if after.epoch != before.epoch {
        said = format!("{said}; epoch {} begins, in the {} lane", after.epoch, after.policy.lane());
    }
    said
}

/// Nobody writes meanwhile: whoever asks has to say for how long at most.
fn unsaid(bucket: &Bucket, policy: Policy) -> Refusal {
    invalid(format!(
        "`{}` is {} and is to be {policy}: nobody writes until all its regions are there, so say how long that may take; this comes from a client of an earlier release",
        bucket.name, bucket.policy
    ))
}
