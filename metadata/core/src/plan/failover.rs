//! The steps of a failover (docs/adr/2026-11-27-failover.md): fencing, pulling, failed over; or restored.
//!
//! Keeps the metadata half of DUR-2, SWI-2 and SWI-3. Nothing here asks the lost region anything. Who is promoted, and whether
//! that loses something, follows from what the fenced regions have said:
//!
//! - *Whoever ranks highest has everything that any of them has* (ORD-1): an epoch further, or further in the lost primary's log. Where
//!   none of them has begun any epoch of the lost primary's, the log that matters is the one of the primary before it, of which nobody
//!   speaks: whoever holds what the lost one began with has everything, and the others can't be told apart ([`Reign`]).
//! - *Nothing is lost* if each acknowledged write is in one of them: of N regions K had it, so any N - K + 1 of them
//!   will do. Only while the bucket really asks for K.
//! - *What is known to be lost* is what the lost primary had told them they lack, up to a position that none of them reached.
//!
//! Nobody is promoted before the lost region's leases have run out: until then it may acknowledge what nobody here has (FEN-1).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meridian_types::key::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use meridian_types::loss::{MORE_THAN_AGREED, NOT_PROVEN};
use meridian_types::{
    AutoMode, Breach, Bucket, BucketId, Epoch, Fact, Goal, LagBound, Loss, Lsn, MaxLag, Move, Muster, Plan, Policy,
    RegionId, Remains, Seal, ShardId, Step, Verdict,
};

use super::Next;
pub(super) use damping::is_counted;

mod begin;
mod damping;
#[cfg(test)]
mod laws;

/// How far a shard is.
type Rank = (Epoch, Lsn);

/// Takes note of what a region that is left has in a shard; what was heard before stays unless it was less.
pub(super) fn note(it: &mut Move, region: RegionId, seen: Epoch, shard: ShardId, fact: Fact) {
    let (Step::Fencing { epoch, muster, .. } | Step::Pulling { epoch, muster, .. }) = &mut it.step else { return };
    let Fact::Fenced(remains) = fact else { return };
    if region == it.from || seen != *epoch {
        return;
    }
    let known = muster.remains.entry(region).or_default().entry(shard).or_insert(remains);
    if remains.rank() >= known.rank() {
        // Who came to lead the shard may not have heard what a leader before it had been told.
        let exposure = remains.exposure.or(known.exposure.filter(|_| remains.rank() == known.rank()));
        *known = Remains { exposure, ..remains };
    }
}

/// The step that a bucket can take, without waiting for the regions that are `absent`.
pub(super) fn next(
    plan: &Plan,
    it: &Move,
    bucket: &Bucket,
    reign: Option<Reign<'_>>,
    absent: &BTreeSet<RegionId>,
    label: &dyn Fn(RegionId) -> String,
) -> Option<Next> {
    let (muster, pulling) = match &it.step {
        Step::Fencing { muster, .. } => (muster, None),
        Step::Pulling { muster, to, .. } => (muster, Some(*to).filter(|to| !absent.contains(to))),
        Step::Unneeded
        | Step::CatchingUp { .. }
        | Step::Draining { .. }
        | Step::Promoted { .. }
        | Step::Restored { .. }
        | Step::FailedOver { .. } => return None,
    };
    let field = Field { reign, last: it.epoch_before, ..Field::new(bucket, it.from, plan.shards, muster, absent) };
    if pulling.is_none() && field.waits() {
        return None;
    }
    let wish = pulling.or(plan.to());
    if let Some(wish) = wish.filter(|wish| !field.left.contains(wish)) {
        // While it fetches, it is closed, and says so; that is no reason to give up.
        let why = format!("{} does not answer, or is incomplete itself: choose another region", label(wish));
        return pulling.is_none().then_some(Next::Restore { why });
    }
    let to = field.choose(wish, bucket)?;
    let verdict = field.verdict(bucket, to);
    let bound = match (plan.goal, bucket.auto.mode) {
        (Goal::Failover { automatic: true, .. }, AutoMode::Bounded { max_lag }) => Some(max_lag),
        _ => None,
    };
    // A bound is what the bucket's owner agreed to beforehand.
    let within = bound.is_some_and(|bound| field.is_within(bound, verdict.lost));
    if let Err(why) = if within { Ok(()) } else { agreed(&verdict, muster.accepted, &field, label) } {
        return Some(Next::Restore { why });
    }
    match (field.has_most(to), muster.quiet) {
        (false, _) => (pulling != Some(to)).then_some(Next::Pull { to }),
        (true, true) => Some(Next::FailOver { to, verdict }),
        (true, false) => None,
    }
}

fn agreed(
    verdict: &Verdict,
    accepted: Option<Loss>,
    field: &Field<'_>,
    label: &dyn Fn(RegionId) -> String,
) -> Result<(), String> {
    match accepted {
        _ if verdict.proven => Ok(()),
        Some(accepted) if accepted.covers(verdict.lost) => Ok(()),
        Some(accepted) => {
            Err(format!("{MORE_THAN_AGREED}: {}, agreed to were {accepted}: estimate again", verdict.lost))
        }
        None => {
            let heard: Vec<_> = verdict.heard.iter().map(|region| label(*region)).collect();
            let heard = heard.join(", ");
            let doubt = match field.needed {
                Some(needed) if verdict.heard.len() >= needed => {
                    format!("{heard} disagree on what they have, or one that had more is gone")
                }
                Some(needed) => format!("it takes {needed} regions, and only {heard} could be heard"),
                None => format!("its writes are acknowledged before {heard} have them"),
            };
            Err(format!("{NOT_PROVEN}: {doubt}; and nobody has agreed to a loss: see `meridian failover estimate`"))
        }
    }
}

/// How many fenced regions prove that no acknowledged write is missing; `None` when none can, because writes are acknowledged
/// before another region has them.
pub fn regions_needed(bucket: &Bucket) -> Option<usize> {
    match bucket.policy {
        Policy::Sync { .. } if bucket.standing.is_sync() => {
            let all = bucket.regions.len();
            Some((all + 1).saturating_sub(bucket.policy.required_regions(all)))
        }
        Policy::Sync { .. } | Policy::Async { .. } | Policy::ActiveActive => None,
    }
}

/// What a failover would come to if the regions that are left have this: the next primary, whether it would have to fetch
/// something first, and what is lost. `None` when nobody is left who could be the next primary. `plans` are the operations on record,
/// oldest first: who has what the lost primary began with follows from them.
pub fn assess(
    bucket: &Bucket,
    shards: u16,
    plans: &[Arc<Plan>],
    muster: &Muster,
    wish: Option<RegionId>,
) -> Option<Assessment> {
    let from = bucket.primary?;
    let reign = Reign::of(plans.iter().map(Arc::as_ref), bucket.id, from);
    let field = Field { reign, ..Field::new(bucket, from, shards, muster, &BTreeSet::new()) };
    let to = field.choose(wish, bucket).filter(|to| field.left.contains(to))?;
    let verdict = field.verdict(bucket, to);
    let known = if verdict.proven { Loss::default() } else { field.known() };
    Some(Assessment { to, pulls: !field.has_most(to), verdict, known, needed: field.needed })
}

/// What a failover would come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assessment {
    /// The next primary.
    pub to: RegionId,
    /// Whether it would have to fetch from others what it lacks.
    pub pulls: bool,
    /// What it would rest on, and the most that it would cost.
    pub verdict: Verdict,
    /// What of that the lost primary had said is missing; never unbounded.
    pub known: Loss,
    /// How many regions must be heard to prove that nothing is lost; `None` when no number will do.
    pub needed: Option<usize>,
}

/// Since when the lost region was the primary, as far as an operation says so.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reign<'a> {
    /// Its first epoch.
    since: Epoch,
    /// What it had of each shard when that began.
    began_with: &'a BTreeMap<ShardId, Seal>,
}

impl<'a> Reign<'a> {
    /// Of a region that a bucket's last operation made its primary.
    pub(super) fn of(
        plans: impl DoubleEndedIterator<Item = &'a Plan>,
        bucket: BucketId,
        from: RegionId,
    ) -> Option<Self> {
        let reign = |plan: &'a Plan| match &plan.move_of(bucket)?.step {
            Step::FailedOver { epoch, to, verdict, .. } => {
                Some((*to, Reign { since: *epoch, began_with: &verdict.cut }))
            }
            Step::Promoted { epoch, proof, .. } => {
                Some((plan.to()?, Reign { since: *epoch, began_with: &proof.sealed }))
            }
            _ => None,
        };
        plans.rev().find_map(reign).filter(|(to, _)| *to == from).map(|(_, reign)| reign)
    }
}

/// What is left, once looked over.
struct Field<'a> {
    muster: &'a Muster,
    /// Regions that hold the bucket, but for the lost one.
    others: Vec<RegionId>,
    /// Those of them that are expected to speak.
    awaited: Vec<RegionId>,
    /// Regions that have spoken of every shard, and lack nothing they were given.
    heard: Vec<RegionId>,
    /// Those of them that are there.
    left: Vec<RegionId>,
    /// The highest rank of each shard in those that are there.
    top: BTreeMap<ShardId, Rank>,
    needed: Option<usize>,
    reign: Option<Reign<'a>>,
    /// The last epoch in which the lost region was to order anything.
    last: Epoch,
}

impl<'a> Field<'a> {
    fn new(bucket: &Bucket, from: RegionId, shards: u16, muster: &'a Muster, absent: &BTreeSet<RegionId>) -> Field<'a> {
        let is_complete = |region: &RegionId| {
            let remains = muster.remains.get(region);
            remains.is_some_and(|it| it.len() == usize::from(shards) && it.values().all(|shard| shard.whole))
        };
        let others: Vec<RegionId> = bucket.targets(from).collect();
        let heard: Vec<RegionId> = others.iter().copied().filter(is_complete).collect();
        let left: Vec<RegionId> = heard.iter().copied().filter(|region| !absent.contains(region)).collect();
        let awaited = others.iter().copied().filter(|region| !absent.contains(region)).collect();
        let top = top(muster, &left);
        let (needed, last) = (regions_needed(bucket), bucket.epoch);
        Field { muster, others, awaited, heard, left, top, needed, reign: None, last }
    }

    /// Whether somebody has yet to speak, or nobody is there.
    fn waits(&self) -> bool {
        self.left.is_empty() || self.awaited.iter().any(|region| !self.heard.contains(region))
    }

    fn remains(&self, region: RegionId) -> impl Iterator<Item = (ShardId, &Remains)> {
        self.muster.remains.get(&region).into_iter().flatten().map(|(shard, remains)| (*shard, remains))
    }

    /// Whether a region has, of every shard, what any of those that are there has.
    fn has_most(&self, region: RegionId) -> bool {
        self.remains(region).all(|(shard, it)| self.top.get(&shard).is_none_or(|top| it.rank() >= *top))
    }

    /// Whether the lost primary's reign has begun in a shard that is in that epoch.
    fn has_begun(&self, epoch: Epoch) -> bool {
        self.reign.is_none_or(|reign| epoch >= reign.since)
    }

    /// Whether a region certainly has what any of those that are there has: where the lost primary's reign has not begun, it holds what
    /// that began with.
    fn has_all(&self, region: RegionId) -> bool {
        let same = |reign: Reign<'_>, shard: &ShardId, it: &Remains| {
            reign.began_with.get(shard).is_some_and(|seal| (seal.hash, seal.keys) == (it.seal.hash, it.seal.keys))
        };
        let all = |shard: &ShardId, it: &Remains| {
            self.has_begun(it.epoch) || self.reign.is_some_and(|reign| same(reign, shard, it))
        };
        self.has_most(region) && self.remains(region).all(|(shard, it)| all(&shard, it))
    }

    /// The region that was asked for; else one that has most, so that nobody waits for a pull.
    fn choose(&self, wish: Option<RegionId>, bucket: &Bucket) -> Option<RegionId> {
        if wish.is_some() {
            return wish;
        }
        let first = |fits: &dyn Fn(RegionId) -> bool| preferred(bucket).find(|it| self.left.contains(it) && fits(*it));
        let all = first(&|region| self.has_all(region));
        all.or_else(|| first(&|region| self.has_most(region))).or_else(|| first(&|_| true))
    }

    fn verdict(&self, bucket: &Bucket, to: RegionId) -> Verdict {
        let proven = self.needed.is_some_and(|needed| self.heard.len() >= needed) && self.is_consistent();
        Verdict {
            heard: self.heard.clone(),
            proven,
            lost: if proven { Loss::default() } else { self.lost(bucket) },
            cut: self.remains(to).map(|(shard, it)| (shard, it.seal)).collect(),
        }
    }

    /// Whether nobody who has gone since had more, and those who have the same agree on what it is.
    fn is_consistent(&self) -> bool {
        let same = |shard: &ShardId, rank: &Rank| {
            let seals = self.heard.iter().filter_map(|region| self.muster.remains.get(region)?.get(shard));
            let mut at_top = seals.filter(|it| it.rank() == *rank).map(|it: &Remains| -> Seal { it.seal });
            let first = at_top.next();
            at_top.all(|seal| Some(seal) == first)
        };
        self.has_lost_nobody() && self.top.iter().all(|(shard, rank)| same(shard, rank))
    }

    /// Whether nobody who was heard and has gone since had more.
    fn has_lost_nobody(&self) -> bool {
        top(self.muster, &self.heard) == self.top
    }

    /// Whether what the lost primary had said is missing is within a bound that was agreed to beforehand. What was never said, to
    /// a region that is left, is within none; what it said in an earlier reign says nothing of this one.
    fn is_within(&self, bound: LagBound, lost: Loss) -> bool {
        let said = |shard: &ShardId| {
            let left = self.left.iter().filter_map(|region| self.muster.remains.get(region));
            let mut told = left.filter_map(|shards| shards.get(shard)?.exposure).peekable();
            told.peek().is_some() && told.all(|it| bound.ms.is_none_or(|ms| it.oldest_ms <= ms))
        };
        self.has_lost_nobody()
            && self.top.values().all(|(epoch, _)| self.has_begun(*epoch))
            && self.top.keys().all(said)
            && bound.operations.is_none_or(|most| lost.operations <= most)
            && bound.bytes.is_none_or(|most| lost.bytes <= most)
    }

    /// What the lost primary had said is missing, of what nobody has who is there.
    fn known(&self) -> Loss {
        let mut known = Loss::default();
        for (shard, (_, reached)) in &self.top {
            let told = self.muster.remains.values().filter_map(|shards| shards.get(shard)?.exposure);
            let beyond = told.filter(|exposure| exposure.head > *reached);
            let most = beyond.map(|it| (it.operations, it.bytes)).max().unwrap_or_default();
            known = known.and(Loss { operations: most.0, bytes: most.1, unbounded: false });
        }
        known
    }

    /// The most that is lost: what is known of, or the ceiling where one holds.
    fn lost(&self, bucket: &Bucket) -> Loss {
        // It is about what no other region has: one that is silent or has gone may have had what all who are left lack. And who is
        // promoted must have what they have.
        let whole = self.others.iter().all(|region| self.heard.contains(region)) && self.is_consistent();
        // And it is a ceiling for who knows of it: a primary that has not begun the bucket's last epoch may order under an earlier policy for as
        // long as its lease lasts.
        let known = self.top.values().all(|(epoch, _)| *epoch >= self.last);
        let ceiling = ceiling(bucket).filter(|_| whole && known);
        let known = self.known();
        ceiling.map_or(Loss { unbounded: true, ..known }, |most| Loss {
            operations: known.operations.max(most.operations),
            bytes: known.bytes.max(most.bytes),
            unbounded: false,
        })
    }
}

fn top(muster: &Muster, regions: &[RegionId]) -> BTreeMap<ShardId, Rank> {
    let mut top: BTreeMap<ShardId, Rank> = BTreeMap::new();
    for (shard, it) in regions.iter().filter_map(|region| muster.remains.get(region)).flatten() {
        let known = top.entry(*shard).or_default();
        *known = (*known).max(it.rank());
    }
    top
}

/// The bucket's regions in the order in which they are to succeed.
fn preferred(bucket: &Bucket) -> impl Iterator<Item = RegionId> + '_ {
    let named = &bucket.auto.successors;
    let others = bucket.regions.iter().filter(|region| !named.contains(region));
    named.iter().chain(others).copied()
}

/// The most that the primary may have had which no other region has, if it accepts no more writes beyond that.
fn ceiling(bucket: &Bucket) -> Option<Loss> {
    let bound = match bucket.policy {
        Policy::Async { max_lag: Some(MaxLag { bound, on_breach: Breach::Block }) } => bound,
        Policy::Async { .. } | Policy::Sync { .. } | Policy::ActiveActive => return None,
    };
    let most = |count: u64| count.saturating_mul(VALUE_BYTES_MAX as u64 + KEY_BYTES_MAX as u64);
    let (operations, bytes) = match (bound.operations, bound.bytes) {
        (Some(operations), Some(bytes)) => (operations, bytes),
        (Some(operations), None) => (operations, most(operations)),
        // A write has one byte at least.
        (None, Some(bytes)) => (bytes, bytes),
        // Seconds say nothing of how many writes are acknowledged in them.
        (None, None) => return None,
    };
    Some(Loss { operations, bytes, unbounded: false })
}
