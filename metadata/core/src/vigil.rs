//! What the metadata leader watches during failovers: leases that have to run out, regions nobody need wait for, and what
//! takes too long.
//!
//! Keeps the time half of FEN-1 in a failover, and SWI-3: it waits for the lost region's *leases*, never for the region.
//!
//! ```text
//! fenced on record            leases granted without that index, as remembered now, have run out
//! ───────●───────────────────────────────────────●──────────────────────────────►
//!        └── whoever is granted one later must know that it is fenced, and acknowledges nothing
//! ```
//!
//! Lives for a term of a leader. A new one begins anew, with a lease table that covers whatever its predecessors granted
//! ([`crate::lease`]): it may wait longer than they would have, never too short.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use meridian_types::{BucketId, Epoch, Move, NodeId, Plan, PlanId, RegionId, Step};

use crate::command::{AbortScope, Action, Advance};
use crate::lease::LeaseTable;
use crate::state::ClusterState;

/// How long after a region fell silent it is no longer waited for. In a new term nobody has renewed at first: one renewal
/// a second, and a lost one.
pub const SILENT_AFTER: Duration = Duration::from_millis(2500);

/// How long a region that is there may take to speak of every shard: a few elections next door, one after the other.
pub const SPEAK_WITHIN: Duration = Duration::from_secs(10);

/// How long fencing may last: long enough for a region that restarts meanwhile, as every survivor counts.
pub const FENCING_MAX: Duration = Duration::from_secs(60);

/// How long a pull may last. What it moves is what two regions differ by.
pub const PULLING_MAX: Duration = Duration::from_secs(600);

/// Which regions are absent, and whether the lost one is quiet.
type Sighting = (BTreeSet<RegionId>, bool);

/// A bucket whose primary is being replaced.
type Stage = (PlanId, BucketId, Epoch, bool);

/// Since when a stage is watched, and when the lost region's leases have run out.
#[derive(Clone, Copy, Debug)]
struct Watched {
    since: Instant,
    quiet_at: Instant,
}

/// The leader's watch over failovers, in one term.
#[derive(Debug, Default)]
pub struct Vigil {
    term: u64,
    watched: BTreeMap<Stage, Watched>,
}

impl Vigil {
    /// What is to be put on record now. `state` was read before `table`, so that every lease that `table` does not know of
    /// was granted to somebody who must know `state`.
    pub fn look(&mut self, now: Instant, table: &LeaseTable, state: &ClusterState) -> Vec<Action> {
        if self.term != table.term() {
            *self = Vigil { term: table.term(), watched: BTreeMap::new() };
        }
        let before = std::mem::take(&mut self.watched);
        let mut actions = Vec::new();
        for plan in state.plans().filter(|plan| plan.ended_ms.is_none()) {
            let mut seen: BTreeMap<Sighting, Vec<(BucketId, Epoch)>> = BTreeMap::new();
            let mut late = Vec::new();
            for it in &plan.moves {
                let Some(stage) = stage(plan, it) else { continue };
                let (_, bucket, epoch, pulling) = stage;
                let begin = || Watched { since: now, quiet_at: quiet_at(now, it.from, table, state) };
                let fenced = before.get(&(plan.id, bucket, epoch, false)).map(|it| Watched { since: now, ..*it });
                let watched = before.get(&stage).copied().or(fenced).unwrap_or_else(begin);
                self.watched.insert(stage, watched);
                let lasted = now.saturating_duration_since(watched.since);
                if lasted > if pulling { PULLING_MAX } else { FENCING_MAX } {
                    late.push((bucket, epoch));
                    continue;
                }
                let absent = absent(now, lasted, it, table, state);
                let quiet = now >= watched.quiet_at;
                let advance = Advance { buckets: vec![(bucket, epoch)], absent, quiet };
                if state.would_advance(plan.id, bucket, epoch, &advance) {
                    seen.entry((advance.absent, quiet)).or_default().push((bucket, epoch));
                }
            }
            for ((absent, quiet), buckets) in seen {
                actions.push(Action::Advance { plan: plan.id, seen: Advance { buckets, absent, quiet } });
            }
            if !late.is_empty() {
                let why = "too few regions that are left could say in time what they have: see `meridian status`";
                actions.push(Action::Abort { plan: plan.id, scope: AbortScope::Late(late), why: why.to_owned() });
            }
        }
        actions
    }

    /// How many buckets are watched.
    pub fn watched(&self) -> usize {
        self.watched.len()
    }
}

fn stage(plan: &Plan, it: &Move) -> Option<Stage> {
    match &it.step {
        Step::Fencing { epoch, .. } => Some((plan.id, it.bucket, *epoch, false)),
        Step::Pulling { epoch, .. } => Some((plan.id, it.bucket, *epoch, true)),
        Step::Unneeded
        | Step::CatchingUp { .. }
        | Step::Draining { .. }
        | Step::Promoted { .. }
        | Step::Restored { .. }
        | Step::FailedOver { .. } => None,
    }
}

/// From when on no node of the region believes in a lease that was granted up to now.
fn quiet_at(now: Instant, region: RegionId, table: &LeaseTable, state: &ClusterState) -> Instant {
    nodes(region, state).map(|node| table.expires(node)).max().unwrap_or(now)
}

/// The regions with a copy of the bucket that nobody need wait for.
fn absent(now: Instant, lasted: Duration, it: &Move, table: &LeaseTable, state: &ClusterState) -> BTreeSet<RegionId> {
    let (muster, speaks) = match &it.step {
        Step::Fencing { muster, .. } => (muster, true),
        // Whoever fetches is incomplete until it has everything.
        Step::Pulling { muster, .. } => (muster, false),
        Step::Unneeded
        | Step::CatchingUp { .. }
        | Step::Draining { .. }
        | Step::Promoted { .. }
        | Step::Restored { .. }
        | Step::FailedOver { .. } => return BTreeSet::new(),
    };
    let Some(bucket) = state.bucket(it.bucket) else { return BTreeSet::new() };
    // A spare that is up says nothing of its region.
    let is_up = |node| state.serves(node) && table.is_live(now, node);
    let is_silent = |region| lasted >= SILENT_AFTER && !nodes(region, state).any(is_up);
    let has_spoken = |region: &RegionId| {
        muster
            .remains
            .get(region)
            .is_some_and(|it| it.len() == usize::from(state.shards()) && it.values().all(|it| it.whole))
    };
    let is_absent = |region: &RegionId| is_silent(*region) || (speaks && lasted >= SPEAK_WITHIN && !has_spoken(region));
    bucket.targets(it.from).filter(is_absent).collect()
}

fn nodes(region: RegionId, state: &ClusterState) -> impl Iterator<Item = NodeId> + '_ {
    state.nodes().filter(move |node| node.region == region).map(|node| node.id)
}

#[cfg(test)]
mod tests;
