//! SYNC, DEGRADED, RECOVERING: when a bucket's standing changes (design 7, docs/adr/2026-11-27-degrade.md).
//!
//! Keeps the metadata half of DEG-1: nobody acknowledges with fewer copies before DEGRADED is on record, and SYNC is on
//! record only once every shard of the primary's region has said that its targets have everything. Words are guarded by
//! the epoch and by the stretch of time they are about, so that one that comes late counts for nothing.
//!
//! Deliberately not here: what a shard says and when (`region/core`).

use std::collections::BTreeSet;
use std::sync::Arc;

use meridian_types::standing::REASON_BYTES_MAX;
use meridian_types::{
    Bucket, BucketChange, BucketName, Copies, DETECT_MS_MAX, Hlc, OnPartition, Policy, PolicyError, Refusal, RegionId,
    ShardId, Standing, StandingWord,
};

use crate::apply::{Done, Occasion, StepTaken};
use crate::command::is_of_a_crossing;
use crate::event::shorten;
use crate::reply::Reply;
use crate::spec::invalid;
use crate::state::{ClusterState, Fault, label, rule};
use crate::{regions, turns};

#[cfg(test)]
mod tests;

impl ClusterState {
    /// Takes note of how the copies of a region's buckets come along.
    pub(crate) fn hear_standing(&mut self, at: Hlc, region: RegionId, words: &[StandingWord]) -> Done {
        let steps = words.iter().filter_map(|word| self.hear_copies(at, region, word)).collect();
        Done { reply: Reply::Reported, change: None, steps }
    }

    fn hear_copies(&mut self, at: Hlc, region: RegionId, word: &StandingWord) -> Option<StepTaken> {
        if is_of_a_crossing(word) {
            return self.hear_crossing(at, region, word);
        }
        let shards = self.formed.as_ref().map_or(0, |formed| formed.shards);
        let bucket = self.buckets.get_mut(&word.bucket)?;
        // Where every region writes, the one that joins says of itself that it is filled.
        let heard = bucket.primary.or(bucket.joins.joining()) == Some(region)
            && bucket.epoch == word.epoch
            && bucket.standing.since() == word.since
            // Between primaries nobody acknowledges anything: there is nothing to degrade, and nobody to return.
            && !bucket.is_between_primaries();
        if let (true, Copies::Followed(followed)) = (heard, &word.copies) {
            return turns::hear(Arc::make_mut(bucket), followed, shards);
        }
        if let (true, None, Copies::Filled { region, shards }) = (heard, bucket.primary, &word.copies) {
            return self.hear_filled(at, (word.bucket, *region), shards);
        }
        if let (true, Copies::Filled { region, shards: filled }) = (heard, &word.copies) {
            let name = label(&self.regions, *region);
            return regions::hear(Arc::make_mut(bucket), (*region, &name), filled, shards, at);
        }
        let next = next(&bucket.policy, &bucket.standing, &word.copies, shards, at).filter(|_| heard)?;
        let step = (next.since() != bucket.standing.since()).then(|| told(bucket, &next));
        Arc::make_mut(bucket).standing = next;
        step
    }

    /// Changes what can be changed of a bucket while it serves.
    pub(crate) fn set_bucket(
        &mut self,
        occasion: Occasion<'_>,
        name: &BucketName,
        change: &BucketChange,
    ) -> Result<Done, Refusal> {
        let before = Arc::clone(self.existing(name)?);
        self.check_crossing(&before)?;
        let mut bucket = Bucket::clone(&before);
        bucket.policy = changed(bucket.policy, change).map_err(|why| invalid(why.to_string()))?;
        if change.max_lag.flatten().is_some() {
            self.check_one_lane(&bucket)?;
        }
        if let Some(acks) = change.acks {
            self.change_acks(&mut bucket, acks, occasion.at)?;
        }
        if let Some(auto) = &change.auto {
            bucket.auto = self.auto_instead(auto, &bucket)?;
        }
        bucket.policy.validate(bucket.regions.len()).map_err(|why| invalid(why.to_string()))?;
        self.check_ceiling(bucket.policy)?;
        if bucket.policy.degrade_after_ms().is_none() {
            bucket.standing = stopped(bucket.standing, occasion.at);
        }
        let steps = (bucket.standing != before.standing).then(|| told(&before, &bucket.standing));
        let said = (bucket != *before).then(|| format!("{}, auto {}", bucket.policy, bucket.auto.mode));
        self.buckets.insert(bucket.id, Arc::new(bucket.clone()));
        Ok(Done { reply: Reply::of_bucket(bucket), change: said, steps: steps.into_iter().collect() })
    }

    /// How long a region must have looked lost before the bucket replaces its primary by itself.
    pub(crate) fn set_detection(&mut self, name: &BucketName, detect_ms: u64) -> Result<Done, Refusal> {
        let before = Arc::clone(self.existing(name)?);
        if detect_ms > DETECT_MS_MAX {
            return Err(invalid(format!(
                "`detect-after = {detect_ms}ms` is too long: use at most 1h, or `auto = manual`"
            )));
        }
        if before.primary.is_none() {
            let why = format!("`{name}` has no primary: every region accepts writes, so there is nothing to detect");
            return Err(invalid(why));
        }
        let mut bucket = Bucket::clone(&before);
        bucket.auto.detect_ms = detect_ms;
        self.buckets.insert(bucket.id, Arc::new(bucket.clone()));
        let said = (bucket != *before).then(|| format!("fails over once its region looked lost for {detect_ms} ms"));
        Ok(Done { reply: Reply::of_bucket(bucket), change: said, steps: Vec::new() })
    }

    /// Checks every rule about a bucket's standing.
    pub(crate) fn validate_standing(&self, bucket: &Bucket) -> Result<(), Fault> {
        let shards = self.formed.as_ref().map_or(0, |formed| formed.shards);
        let standing = &bucket.standing;
        rule(standing.since() <= self.clock, "a bucket's standing is from the future")?;
        rule(
            standing.exposed_since().is_none_or(|at| at <= standing.since()),
            "a bucket was exposed after it began to be",
        )?;
        let counted =
            |ready: &BTreeSet<ShardId>| ready.len() < usize::from(shards) && ready.iter().all(|it| it.0 < shards);
        rule(standing.ready().is_none_or(counted), "a bucket's shards are ready for nothing")?;
        match standing {
            Standing::Sync { .. } => Ok(()),
            Standing::Degraded { reason, .. } => rule(
                bucket.policy.degrade_after_ms().is_some() && reason.len() <= REASON_BYTES_MAX,
                "a bucket is DEGRADED that may not be",
            ),
            Standing::Recovering { .. } => {
                rule(matches!(bucket.policy, Policy::Sync { .. }), "a bucket is RECOVERING that promises no copies")
            }
        }
    }
}

/// The standing that follows from what was heard; `None`: nothing is news.
fn next(policy: &Policy, now: &Standing, heard: &Copies, shards: u16, at: Hlc) -> Option<Standing> {
    let may_degrade = policy.degrade_after_ms().is_some();
    let known = |heard: &BTreeSet<ShardId>| heard.iter().copied().filter(|it| it.0 < shards).collect::<BTreeSet<_>>();
    match (now, heard) {
        (Standing::Sync { .. } | Standing::Recovering { .. }, Copies::Lacking { reason, .. }) if may_degrade => {
            let mut reason = reason.clone();
            shorten(&mut reason, REASON_BYTES_MAX);
            let exposed_since = now.exposed_since().unwrap_or(at);
            Some(Standing::Degraded { since: at, exposed_since, reason, ready: BTreeSet::new() })
        }
        (Standing::Degraded { since, exposed_since, reason, ready }, Copies::Lacking { shards, .. }) => {
            let left: BTreeSet<_> = ready.difference(shards).copied().collect();
            (left != *ready).then(|| Standing::Degraded {
                since: *since,
                exposed_since: *exposed_since,
                reason: reason.clone(),
                ready: left,
            })
        }
        (Standing::Degraded { since, exposed_since, reason, ready }, Copies::Ready(heard)) => {
            let all: BTreeSet<_> = ready.union(&known(heard)).copied().collect();
            if all.len() == usize::from(shards) {
                return Some(Standing::Recovering { since: at, exposed_since: *exposed_since, ready: BTreeSet::new() });
            }
            let (since, exposed_since, reason) = (*since, *exposed_since, reason.clone());
            (all != *ready).then_some(Standing::Degraded { since, exposed_since, reason, ready: all })
        }
        (Standing::Recovering { since, exposed_since, ready }, Copies::Ready(heard)) => {
            let all: BTreeSet<_> = ready.union(&known(heard)).copied().collect();
            if all.len() == usize::from(shards) {
                return Some(Standing::Sync { since: at });
            }
            let (since, exposed_since) = (*since, *exposed_since);
            (all != *ready).then_some(Standing::Recovering { since, exposed_since, ready: all })
        }
        (Standing::Sync { .. } | Standing::Recovering { .. }, Copies::Lacking { .. })
        | (Standing::Sync { .. }, Copies::Ready(_))
        | (
            _,
            Copies::Followed(_)
            | Copies::Filled { .. }
            | Copies::Stopped { .. }
            | Copies::Arrived { .. }
            | Copies::Parted { .. },
        ) => None,
    }
}

/// The standing of a bucket that may not degrade any more: what it lacks already has still to come.
pub(crate) fn stopped(now: Standing, at: Hlc) -> Standing {
    match now {
        Standing::Degraded { exposed_since, .. } => {
            Standing::Recovering { since: at, exposed_since, ready: BTreeSet::new() }
        }
        Standing::Sync { .. } | Standing::Recovering { .. } => now,
    }
}

/// The policy after a change of what needs no new epoch.
fn changed(policy: Policy, change: &BucketChange) -> Result<Policy, PolicyError> {
    let belongs = |setting: String, needs| PolicyError::SettingOfAnother { setting, policy: policy.to_string(), needs };
    match (policy, change.max_lag, change.on_partition) {
        (policy, None, None) => Ok(policy),
        (Policy::Async { .. }, Some(max_lag), None) => Ok(Policy::Async { max_lag }),
        (Policy::Sync { acks, .. }, None, Some(on_partition)) => Ok(Policy::Sync { acks, on_partition }),
        (Policy::Sync { .. } | Policy::ActiveActive, Some(max_lag), _) => {
            let shown = max_lag.map_or_else(|| "none".to_owned(), |it| it.bound.to_string());
            Err(belongs(format!("max-lag = {shown}"), "async"))
        }
        (Policy::Async { .. } | Policy::ActiveActive, _, Some(on_partition)) => {
            Err(belongs(format!("on-partition = {}", word(on_partition)), "sync"))
        }
    }
}

fn word(on_partition: OnPartition) -> &'static str {
    match on_partition {
        OnPartition::Block => "block",
        OnPartition::Degrade { .. } => "degrade",
    }
}

/// The step a bucket's standing has just taken, for the event ring.
fn told(bucket: &Bucket, next: &Standing) -> StepTaken {
    let exposed = |at: &Hlc| next.since().millis().saturating_sub(at.millis());
    let (verb, detail) = match next {
        Standing::Degraded { reason, .. } => (
            "degrade",
            format!("DEGRADED: writes are acknowledged with fewer copies than {} asks: {reason}", bucket.policy),
        ),
        Standing::Recovering { exposed_since, .. } => (
            "recover",
            format!("RECOVERING: new writes have their copies again, after {} ms without", exposed(exposed_since)),
        ),
        Standing::Sync { .. } => {
            let since = bucket.standing.exposed_since().unwrap_or_default();
            ("sync", format!("SYNC: every acknowledged write has its copies again, after {} ms", exposed(&since)))
        }
    };
    StepTaken { verb, subject: bucket.name.to_string(), detail }
}
