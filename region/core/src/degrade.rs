//! When the primary's region says that copies are lacking, that they come again, and that none lacks any more (DEG-1;
//! docs/adr/2026-11-27-degrade.md).
//!
//! ```text
//! SYNC        an entry waits for enough regions for `degrade-after`?   say that copies are lacking
//! DEGRADED    enough regions are close behind?                        say that they answer
//! RECOVERING  no node may act on DEGRADED any more: where does the shard's log stand *now*, proven by its leader?
//!             enough regions have everything up to there?             say that nothing is lacking
//! ```
//!
//! Every node speaks for the shards it leads. It says it again until it sees it on record.
//!
//! Deliberately not here: what is on record (`metadata/core`), who is asked and what is acknowledged (`region/node`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use meridian_types::{Bucket, BucketId, Copies, Epoch, Hlc, Lsn, RegionId, ShardId, Standing, StandingWord};

#[cfg(test)]
mod tests;

/// What a node sees of a bucket's copies in a shard that it leads, and in which the bucket's epoch is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopiesSight {
    /// The shard.
    pub shard: ShardId,
    /// The last of the bucket's entries that were ordered here.
    pub lsn: Lsn,
    /// Up to where each other region of the bucket has its lane.
    pub acked: Vec<(RegionId, Lsn)>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopiesDuty {
    /// To tell the metadata plane.
    Tell(StandingWord),
    /// To find out where shards stand, each after proving that this node leads it; [`Degrading::proven`] takes the answer.
    Prove {
        /// The bucket.
        bucket: BucketId,
        /// The stretch of RECOVERING it is for.
        since: Hlc,
        /// The shards.
        shards: BTreeSet<ShardId>,
    },
}

/// Where shards stood when none of this region's nodes could act on DEGRADED any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The bucket.
    pub bucket: BucketId,
    /// The stretch of RECOVERING it is for.
    pub since: Hlc,
    /// The last of the bucket's entries that were ordered here, by shard.
    pub stood: BTreeMap<ShardId, Lsn>,
    /// The regions that have everything of earlier primaries in these shards.
    pub whole: BTreeSet<RegionId>,
}

/// How close behind a region must be to count as answering, in milliseconds; less where the policy waits less.
const CLOSE_MS: u64 = 1000;

/// How long after a word it is said again, unless it is on record.
const AGAIN_MS: u64 = 1000;

/// Into how many steps a wait is divided: what `degrade-after` is precise to.
const STEPS: u64 = 64;

/// Remembers, per bucket, for how long entries have waited.
#[derive(Clone, Debug, Default)]
pub struct Degrading {
    buckets: BTreeMap<BucketId, Watch>,
}

#[derive(Clone, Debug)]
struct Watch {
    epoch: Epoch,
    since: Hlc,
    /// When this stretch was first seen here.
    seen_ms: u64,
    trails: BTreeMap<ShardId, Trail>,
    proofs: BTreeMap<ShardId, (Lsn, BTreeSet<RegionId>)>,
    /// When proofs were last asked for.
    asked_ms: Option<u64>,
    said: Option<(Copies, u64)>,
}

/// Entries of a shard that wait for enough regions, and since when.
#[derive(Clone, Debug, Default)]
struct Trail {
    since_ms: u64,
    waiting: VecDeque<(Lsn, u64)>,
}

impl Degrading {
    /// Looks at a bucket through the shards that this node leads. `now_ms` is its monotonic clock, `settle_ms` how long after
    /// a change is seen here nobody in this region can act on what was before, `label` a region's name.
    pub fn look(
        &mut self,
        now_ms: u64,
        settle_ms: u64,
        bucket: &Bucket,
        sights: &[CopiesSight],
        label: &dyn Fn(RegionId) -> String,
    ) -> Vec<CopiesDuty> {
        // Between primaries nobody acknowledges anything.
        if bucket.is_between_primaries() {
            self.buckets.remove(&bucket.id);
            return Vec::new();
        }
        let needed = bucket.policy.required_regions(bucket.regions.len()).saturating_sub(1);
        let watch = self.watch(now_ms, bucket);
        watch.follow(now_ms, bucket.policy.degrade_after_ms(), needed, sights);
        let mut duties = Vec::new();
        if let Some(copies) = watch.judge(now_ms, bucket, needed, sights, label)
            && watch.is_news(now_ms, &copies)
        {
            watch.said = Some((copies.clone(), now_ms));
            let word = StandingWord { bucket: bucket.id, epoch: bucket.epoch, since: watch.since, copies };
            duties.push(CopiesDuty::Tell(word));
        }
        if matches!(bucket.standing, Standing::Recovering { .. }) && now_ms >= watch.seen_ms.saturating_add(settle_ms) {
            // Once more where too few regions have all of earlier primaries, for they may by now.
            let again = watch.asked_ms.is_none_or(|at| at + AGAIN_MS <= now_ms);
            let lacks = |sight: &&CopiesSight| match watch.proofs.get(&sight.shard) {
                None => true,
                Some((_, whole)) => again && whole.len() < needed,
            };
            let shards: BTreeSet<_> = sights.iter().filter(lacks).map(|it| it.shard).collect();
            if !shards.is_empty() {
                watch.asked_ms = Some(now_ms);
                duties.push(CopiesDuty::Prove { bucket: bucket.id, since: watch.since, shards });
            }
        }
        duties
    }

    /// Where shards stood. Of another stretch it says nothing.
    pub fn proven(&mut self, proof: Proof) {
        let Some(watch) = self.buckets.get_mut(&proof.bucket).filter(|watch| watch.since == proof.since) else {
            return;
        };
        for (shard, lsn) in proof.stood {
            // Where it stood at first is what counts; who has all of earlier primaries since then has what came before, too.
            watch.proofs.entry(shard).or_insert_with(|| (lsn, BTreeSet::new())).1.extend(&proof.whole);
        }
    }

    /// Forgets buckets that are none of this node's business any more.
    pub fn keep(&mut self, of: impl Fn(BucketId) -> bool) {
        self.buckets.retain(|bucket, _| of(*bucket));
    }

    fn watch(&mut self, now_ms: u64, bucket: &Bucket) -> &mut Watch {
        let (epoch, since) = (bucket.epoch, bucket.standing.since());
        let fresh = || Watch {
            epoch,
            since,
            seen_ms: now_ms,
            trails: BTreeMap::new(),
            proofs: BTreeMap::new(),
            asked_ms: None,
            said: None,
        };
        let watch = self.buckets.entry(bucket.id).or_insert_with(fresh);
        if watch.epoch != epoch {
            *watch = fresh();
        } else if watch.since != since {
            // Entries wait on whatever the record says; only what was said and proven starts anew.
            *watch = Watch { trails: std::mem::take(&mut watch.trails), ..fresh() };
        }
        watch
    }
}

impl Watch {
    /// Notes what came to wait, and what no longer does.
    fn follow(&mut self, now_ms: u64, after_ms: Option<u64>, needed: usize, sights: &[CopiesSight]) {
        // Whoever leads a shard now sees what waits in it; this node starts anew when it leads it again.
        self.trails.retain(|shard, _| sights.iter().any(|sight| sight.shard == *shard));
        let step_ms = after_ms.unwrap_or(CLOSE_MS) / STEPS;
        for sight in sights {
            let trail =
                self.trails.entry(sight.shard).or_insert_with(|| Trail { since_ms: now_ms, waiting: VecDeque::new() });
            let enough = reached(needed, sight.acked.iter().map(|(_, lsn)| *lsn));
            while trail.waiting.front().is_some_and(|(lsn, _)| *lsn <= enough) {
                trail.waiting.pop_front();
            }
            let due = trail.waiting.back().is_none_or(|(lsn, at)| *lsn < sight.lsn && at + step_ms <= now_ms);
            if sight.lsn > enough && due {
                trail.waiting.push_back((sight.lsn, now_ms));
            }
        }
    }

    /// What is to be said of the shards this node leads.
    fn judge(
        &self,
        now_ms: u64,
        bucket: &Bucket,
        needed: usize,
        sights: &[CopiesSight],
        label: &dyn Fn(RegionId) -> String,
    ) -> Option<Copies> {
        let after_ms = bucket.policy.degrade_after_ms();
        let of = |holds: &dyn Fn(&CopiesSight) -> bool| -> BTreeSet<ShardId> {
            sights.iter().filter(|sight| holds(sight)).map(|sight| sight.shard).collect()
        };
        let lacking = |shards: BTreeSet<ShardId>| {
            let reason = self.reason(needed, sights.iter().filter(|sight| shards.contains(&sight.shard)), label);
            (!shards.is_empty()).then_some(Copies::Lacking { shards, reason })
        };
        let overdue = || after_ms.and_then(|after| lacking(of(&|it| self.waited_ms(now_ms, it.shard) >= after)));
        let ready = |shards: BTreeSet<ShardId>, known: &BTreeSet<ShardId>| {
            (!shards.is_subset(known)).then_some(Copies::Ready(shards))
        };
        match &bucket.standing {
            Standing::Sync { .. } => overdue(),
            Standing::Degraded { ready: known, .. } => {
                let close = of(&|it| self.is_close(now_ms, after_ms, it.shard));
                let gone: BTreeSet<_> =
                    of(&|_| true).intersection(known).filter(|it| !close.contains(it)).copied().collect();
                lacking(gone).or_else(|| ready(close, known))
            }
            Standing::Recovering { ready: known, .. } => {
                overdue().or_else(|| ready(of(&|it| self.has_all(needed, it)), known))
            }
        }
    }

    /// For how long the oldest entry of a shard has waited.
    fn waited_ms(&self, now_ms: u64, shard: ShardId) -> u64 {
        let oldest = self.trails.get(&shard).and_then(|trail| trail.waiting.front());
        oldest.map_or(0, |(_, at)| now_ms.saturating_sub(*at))
    }

    /// Whether enough regions have what there was a moment ago. One look is no proof that they answer, unless nothing waits.
    fn is_close(&self, now_ms: u64, after_ms: Option<u64>, shard: ShardId) -> bool {
        let close_ms = after_ms.map_or(CLOSE_MS, |after| CLOSE_MS.min(after / 2));
        let Some(trail) = self.trails.get(&shard) else { return false };
        let looked_ms = now_ms.saturating_sub(trail.since_ms);
        trail.waiting.is_empty() || (looked_ms >= close_ms && self.waited_ms(now_ms, shard) < close_ms)
    }

    /// Whether enough regions have everything that was acknowledged before new writes needed them again.
    fn has_all(&self, needed: usize, sight: &CopiesSight) -> bool {
        let Some((stood, whole)) = self.proofs.get(&sight.shard) else { return false };
        sight.acked.iter().filter(|(region, lsn)| whole.contains(region) && lsn >= stood).count() >= needed
    }

    /// Who has not confirmed what has waited longest.
    fn reason<'a>(
        &self,
        needed: usize,
        sights: impl Iterator<Item = &'a CopiesSight>,
        label: &dyn Fn(RegionId) -> String,
    ) -> String {
        let oldest = |sight: &CopiesSight| {
            let waiting = self.trails.get(&sight.shard).and_then(|trail| trail.waiting.front());
            waiting.map_or(sight.lsn, |(lsn, _)| *lsn)
        };
        let behind: BTreeSet<RegionId> = sights
            .flat_map(|sight| sight.acked.iter().filter(|(_, lsn)| *lsn < oldest(sight)).map(|(region, _)| *region))
            .collect();
        let names: Vec<String> = behind.into_iter().map(label).collect();
        let verb = if names.len() == 1 { "does" } else { "do" };
        let others = if needed == 1 { "one other region".to_owned() } else { format!("{needed} other regions") };
        format!("{} {verb} not confirm writes in time, which {others} must", names.join(", "))
    }

    fn is_news(&self, now_ms: u64, copies: &Copies) -> bool {
        self.said.as_ref().is_none_or(|(said, at)| said != copies || at + AGAIN_MS <= now_ms)
    }
}

/// The position that `needed` of them have reached.
fn reached(needed: usize, acked: impl Iterator<Item = Lsn>) -> Lsn {
    let mut all: Vec<Lsn> = acked.collect();
    all.sort_unstable_by(|a, b| b.cmp(a));
    match needed.checked_sub(1) {
        None => Lsn(u64::MAX),
        Some(last) => all.get(last).copied().unwrap_or_default(),
    }
}
