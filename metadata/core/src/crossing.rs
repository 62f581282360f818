//! A bucket goes from one writing region to all of them, or back, while it serves
//! (docs/adr/2026-11-28-active-active-changes.md), or to other writing regions (`regroup.rs`).
//!
//! ```text
//!                           every region has all of epoch e
//!   primary, e ──► opening, e+1 ─────────────────────────────► active-active, e+1
//!                     └── given up ─► primary, e+2
//!                           every region stopped, and has what all stopped at
//!   active-active, e ──► closing, e ─────────────────────────► primary, e+1
//!                           └── given up ─► active-active, e
//!   active-active, e ──► regrouping, e ──────────────────────► active-active, e+1, with other regions
//!                           └── given up ─► active-active, e
//! ```
//! All writes of an epoch are of one kind, and between two kinds all regions stand at the same place: that is what is waited for, and
//! what their digests have to show (CON-4). Until then nobody orders anything, and it can be given up.
//!
//! Deliberately not here: how a region seals or stops (`region/core`), and clocks (`metadata/node`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meridian_types::{
    AutoFailover, Bucket, BucketId, BucketName, CROSSING_MS_MAX, Copies, Cross, Crossing, Epoch, Hlc, Phase, Policy,
    Refusal, RefusalKind, Region, RegionId, RegionName, Regroup, ShardId, Standing, StandingWord, Way,
};

use crate::apply::{Done, Occasion, StepTaken};
use crate::event::shorten;
use crate::plan::REASON_BYTES_MAX;
use crate::reply::Reply;
use crate::spec::invalid;
use crate::state::{ClusterState, Fault, label, rule};
use crate::{lose, regroup};

#[cfg(test)]
mod tests;

impl ClusterState {
    /// Sends a bucket on its way between one writing region and all of them.
    pub(crate) fn cross(
        &mut self,
        occasion: Occasion<'_>,
        (name, policy): (&BucketName, Policy),
        auto: Option<&AutoFailover<RegionName>>,
        cross: &Cross,
    ) -> Result<Done, Refusal> {
        let mut bucket = Bucket::clone(self.existing(name)?);
        self.check_fixed(&bucket)?;
        self.check_one_lane(&bucket)?;
        check_pause(cross.pause_ms_max)?;
        policy.validate(bucket.regions.len()).map_err(|why| invalid(why.to_string()))?;
        if let Some(auto) = auto {
            bucket.auto = self.auto_instead(auto, &bucket)?;
        }
        // It has none while it crosses, and with active-active on either side there is nothing to fail over.
        bucket.auto.validate(Policy::ActiveActive, &bucket.regions).map_err(|why| invalid(why.to_string()))?;
        let way = self.way(&bucket, policy, cross)?;
        if way == Way::Opening {
            raise(&mut bucket, occasion.at);
        }
        let said = format!("{} for {policy}: nobody writes under epoch {}", way, bucket.epoch);
        let (index, at, pause_ms_max) = (occasion.index, occasion.at, cross.pause_ms_max);
        bucket.crossing = Some(Crossing { index, at, pause_ms_max, way, arrived: BTreeMap::new() });
        self.buckets.insert(bucket.id, Arc::new(bucket.clone()));
        Ok(Done::new(Reply::of_bucket(bucket), Some(said)))
    }

    fn way(&self, bucket: &Bucket, policy: Policy, cross: &Cross) -> Result<Way, Refusal> {
        let name = &bucket.name;
        match (bucket.policy.has_primary(), policy.has_primary(), &cross.primary) {
            (true, false, None) => Ok(Way::Opening),
            (false, true, None) => Err(invalid(format!(
                "`{name}` is active-active and has no primary: say which region is to order its writes, with `--primary`"
            ))),
            (false, true, Some(_)) if policy.max_lag().is_some() => Err(invalid(format!(
                "`max-lag` bounds what the other regions lack, and every region writes `{name}` still: change it without, and set max-lag afterwards"
            ))),
            (false, true, Some(primary)) => {
                let region = self.known_region("primary", primary)?;
                if !bucket.is_in(region) {
                    return Err(invalid(format!("`{name}` has no copy in `{primary}`: choose a region that holds it")));
                }
                Ok(Way::Closing { policy, primary: region, stopped: BTreeMap::new() })
            }
            (_, _, Some(primary)) => Err(invalid(format!(
                "`primary = {primary}` belongs to a change from active-active: `{name}` is {} and is to be {policy}; a primary is moved by `meridian switchover`",
                bucket.policy
            ))),
            (_, _, None) => {
                Err(invalid(format!("`{name}` is {} and is to be {policy}: nothing crosses", bucket.policy)))
            }
        }
    }

    /// Takes note of where shards of a region stopped, or what they have.
    pub(crate) fn hear_crossing(&mut self, at: Hlc, region: RegionId, word: &StandingWord) -> Option<StepTaken> {
        let shards = self.formed.as_ref().map_or(0, |formed| formed.shards);
        let bucket = self.buckets.get_mut(&word.bucket)?;
        if !bucket.meeting().contains(&region) || bucket.epoch != word.epoch {
            return None;
        }
        let bucket = Arc::make_mut(bucket);
        let meeting = bucket.meeting();
        let crossing = bucket.crossing.as_mut()?;
        if let (Way::Losing { stopped, remains, accepted, .. }, Copies::Parted { crossing: index, at: said }) =
            (&mut crossing.way, &word.copies)
            && *index == crossing.index
        {
            // What was heard first stays: it stands still.
            note(stopped.entry(region).or_default(), &said.iter().map(|(shard, it)| (*shard, it.0)).collect(), shards);
            note(remains.entry(region).or_default(), &said.iter().map(|(shard, it)| (*shard, it.1)).collect(), shards);
            let lost = lose::known_loss(remains);
            let more = lose::is_complete(remains, &meeting, shards) && !accepted.covers(lost);
            let why =
                format!("more would be lost than was agreed to: {lost}, agreed to were {accepted}: estimate again");
            return more.then(|| give_up(bucket, at, &why));
        }
        let lost = crossing.way.lost().is_some();
        match (crossing.way.stopped_mut(), &word.copies) {
            // What was heard first stays: neither changes.
            (Some(stopped), Copies::Stopped { crossing: index, at }) if *index == crossing.index && !lost => {
                let known = stopped.entry(region).or_default();
                note(known, at, shards);
                return None;
            }
            (_, Copies::Arrived { crossing: index, at }) if *index == crossing.index => {
                let known = crossing.arrived.entry(region).or_default();
                note(known, at, shards);
            }
            _ => return None,
        }
        if let Some((shard, one, other)) = crossing.differing() {
            let (one, other) = (label(&self.regions, one), label(&self.regions, other));
            let why = format!("{one} and {other} differ in shard {shard}: compare them with `meridian status`");
            return Some(give_up(bucket, at, &why));
        }
        let there = |region: &RegionId| crossing.arrived_in(*region) == usize::from(shards);
        let all = meeting.iter().all(there);
        all.then(|| arrive(bucket, &self.regions, at)).flatten()
    }

    /// Gives up a crossing that an operator wants no more.
    pub(crate) fn turn_back(&mut self, occasion: Occasion<'_>, name: &BucketName) -> Result<Done, Refusal> {
        let mut bucket = Bucket::clone(self.existing(name)?);
        let step = give_up(&mut bucket, occasion.at, "an operator set the policy it has");
        self.buckets.insert(bucket.id, Arc::new(bucket.clone()));
        Ok(Done { reply: Reply::of_bucket(bucket), change: None, steps: vec![step] })
    }

    /// Gives up a crossing that took too long, if it is still that one.
    pub(crate) fn give_up_crossing(&mut self, at: Hlc, bucket: BucketId, index: u64, why: &str) -> Done {
        let bucket = self.buckets.get_mut(&bucket);
        let still = |it: &&mut Arc<Bucket>| it.crossing.as_ref().is_some_and(|crossing| crossing.index == index);
        let step = bucket.filter(still).map(|bucket| {
            let mut why = why.to_owned();
            shorten(&mut why, REASON_BYTES_MAX);
            give_up(Arc::make_mut(bucket), at, &why)
        });
        Done { reply: Reply::Reported, change: None, steps: step.into_iter().collect() }
    }

    /// Buckets that cross, for whoever measures how long: which attempt, and how long it may last, in milliseconds.
    pub fn crossings(&self) -> impl Iterator<Item = (BucketId, u64, u64)> + '_ {
        let of = |bucket: &Arc<Bucket>| bucket.crossing.as_ref().map(|it| (bucket.id, it.index, it.pause_ms_max));
        self.buckets.values().filter_map(of)
    }

    /// Refuses what can't be done to a bucket while it crosses.
    pub(crate) fn check_crossing(&self, bucket: &Bucket) -> Result<(), Refusal> {
        let Some(crossing) = &bucket.crossing else { return Ok(()) };
        Err(Refusal::new(
            RefusalKind::Retry,
            format!(
                "`{0}` is {1}: wait until `meridian bucket show {0}` says that it is done, or give it up with `meridian bucket set {0} --policy {2}`",
                bucket.name,
                crossing.way,
                word_of(bucket.policy)
            ),
        ))
    }

    /// Checks every rule about a bucket that crosses.
    pub(crate) fn validate_crossing(&self, bucket: &Bucket) -> Result<(), Fault> {
        let Some(crossing) = &bucket.crossing else { return Ok(()) };
        let shards = self.formed.as_ref().map_or(0, |formed| formed.shards);
        rule(crossing.index <= self.index && crossing.at <= self.clock, "a bucket crosses from the future")?;
        rule(crossing.pause_ms_max <= CROSSING_MS_MAX, "a bucket may cross for too long")?;
        let counts = match crossing.way {
            Way::Regrouping { region, change: Regroup::Count, .. } => Some(region),
            _ => None,
        };
        let alone = bucket.phase == Phase::Steady && bucket.joins.joining() == counts;
        rule(alone, "a bucket crosses and does something else")?;
        rule(bucket.turns.is_empty(), "a bucket crosses while its lane turns")?;
        let auto = bucket.auto.validate(Policy::ActiveActive, &bucket.regions);
        rule(auto.is_ok(), "a bucket that crosses may do something by itself")?;
        let in_range = |shard: &ShardId| shard.0 < shards;
        match &crossing.way {
            Way::Opening => rule(bucket.primary.is_some(), "a bucket opens that is open")?,
            Way::Closing { policy, primary, .. } => {
                rule(bucket.primary.is_none() && policy.has_primary(), "a bucket closes that is closed")?;
                rule(
                    policy.validate(bucket.regions.len()).is_ok(),
                    "a bucket's regions can't keep the policy to come",
                )?;
                rule(bucket.is_in(*primary), "the primary to be does not hold the bucket")?;
            }
            Way::Regrouping { region, change, .. } => {
                rule(bucket.primary.is_none(), "a bucket regroups that has a primary")?;
                let fits = match change {
                    Regroup::Join => !bucket.reaches(*region) && self.holds_data(*region),
                    Regroup::Count => bucket.joins.now.as_ref().is_some_and(|it| self.is_filled(it)),
                    Regroup::Leave => bucket.is_in(*region) && bucket.policy.validate(bucket.regions.len() - 1).is_ok(),
                };
                rule(fits, "a bucket regroups to what can't be")?;
            }
            Way::Losing { region, remains, .. } => {
                rule(
                    bucket.primary.is_none() && bucket.is_in(*region),
                    "a bucket loses a region that does not write it",
                )?;
                rule(bucket.policy.validate(bucket.regions.len() - 1).is_ok(), "a bucket loses too many regions")?;
                let known = remains.iter().all(|(it, at)| bucket.meeting().contains(it) && at.keys().all(in_range));
                rule(known, "a bucket has something of a lost region where it is not")?;
            }
        }
        let meeting = bucket.meeting();
        let meets = |(it, in_range): (&RegionId, bool)| in_range && meeting.contains(it);
        let mut stopped = crossing.way.stopped().into_iter().flatten();
        let known = stopped.all(|(it, at)| meets((it, at.keys().all(in_range))));
        rule(known, "a bucket stopped where it is not")?;
        let known = crossing.arrived.iter().all(|(it, at)| meets((it, at.keys().all(in_range))));
        rule(known, "a bucket arrived where it is not")?;
        let all = meeting.iter().all(|it| crossing.arrived_in(*it) == usize::from(shards));
        rule(!all && crossing.differing().is_none(), "a bucket has arrived, or can't, and crosses still")
    }
}

/// Of the shards that there are.
fn note<T: Copy>(known: &mut BTreeMap<ShardId, T>, said: &BTreeMap<ShardId, T>, shards: u16) {
    for (shard, fact) in said.iter().filter(|(shard, _)| shard.0 < shards) {
        known.entry(*shard).or_insert(*fact);
    }
}

pub(crate) fn check_pause(pause_ms_max: u64) -> Result<(), Refusal> {
    if (1..=CROSSING_MS_MAX).contains(&pause_ms_max) {
        return Ok(());
    }
    Err(invalid(format!("`max-pause = {pause_ms_max} ms` is out of range: use 1 to {CROSSING_MS_MAX} ms")))
}

/// All regions stand at the same place: the other kind of writes begins, or other regions write.
fn arrive(bucket: &mut Bucket, regions: &BTreeMap<RegionId, Region>, at: Hlc) -> Option<StepTaken> {
    let crossing = bucket.crossing.take()?;
    let took_ms = at.millis().saturating_sub(crossing.at.millis());
    let (verb, who) = match crossing.way {
        Way::Opening => {
            (bucket.policy, bucket.primary) = (Policy::ActiveActive, None);
            bucket.standing = Standing::Sync { since: at };
            ("open", "every region writes".to_owned())
        }
        Way::Closing { policy, primary, .. } => {
            let from = bucket.policy.lane();
            bucket.epoch = raised(bucket.epoch);
            (bucket.policy, bucket.primary) = (policy, Some(primary));
            if policy.lane() != from {
                bucket.turns.turn(bucket.epoch, from);
            }
            bucket.standing = match policy {
                // A copy that has not followed the seal counts for nothing yet.
                Policy::Sync { .. } => Standing::Recovering { since: at, exposed_since: at, ready: BTreeSet::new() },
                Policy::Async { .. } | Policy::ActiveActive => Standing::Sync { since: at },
            };
            ("close", "one region writes".to_owned())
        }
        Way::Regrouping { region, change, .. } => {
            let became = regroup::arrive(bucket, (region, change), crossing.pause_ms_max, at);
            ("regroup", format!("{} {became}", label(regions, region)))
        }
        Way::Losing { region, remains, .. } => {
            let lost = lose::known_loss(&remains);
            regroup::arrive(bucket, (region, Regroup::Leave), crossing.pause_ms_max, at);
            ("lose", format!("{} is out, and with it as far as is known {lost}", label(regions, region)))
        }
    };
    let detail = format!("{}: {who}, under epoch {}; writes paused {took_ms} ms", bucket.policy, bucket.epoch);
    Some(StepTaken { verb, subject: bucket.name.to_string(), detail })
}

/// The bucket is what it was: its primary seals again, or its regions go on.
pub(crate) fn give_up(bucket: &mut Bucket, at: Hlc, why: &str) -> StepTaken {
    let crossing = bucket.crossing.take();
    let took_ms = crossing.as_ref().map_or(0, |it| at.millis().saturating_sub(it.at.millis()));
    if bucket.primary.is_some() {
        raise(bucket, at);
    }
    let detail = format!("stays {} under epoch {}; writes paused {took_ms} ms: {why}", bucket.policy, bucket.epoch);
    StepTaken { verb: "restore", subject: bucket.name.to_string(), detail }
}

fn raise(bucket: &mut Bucket, at: Hlc) {
    bucket.epoch = raised(bucket.epoch);
    bucket.standing = bucket.standing.clone().restarted(at);
}

fn raised(epoch: Epoch) -> Epoch {
    Epoch(epoch.0.saturating_add(1))
}

fn word_of(policy: Policy) -> &'static str {
    match policy {
        Policy::Async { .. } => "async",
        Policy::Sync { .. } => "sync",
        Policy::ActiveActive => "active-active",
    }
}
