//! When a region counts as lost, and which buckets the cluster replaces the primary of by itself (design 7).
//!
//! Two things must agree, so that no single observer can move a primary:
//!
//! ```text
//! leases   of the nodes that serve some shard there no majority holds one, or has asked this leader for one since it was elected
//! lanes    every other region that is there hears nothing from it over the lanes its primaries ship by
//! ```
//! A witness has no lanes: it counts among those who decide about leases, and is not asked what it hears.
//!
//! A leader that is cut off grants no leases and commits nothing. A region that only lost its way to the metadata plane still
//! ships, and is left alone: it stops acknowledging by itself, and a person may decide. What other regions hear travels with
//! their lease renewals: it is soft, and forgotten with the term.
//!
//! A bucket may ask for a while in which both have agreed without a break (`detect_ms`); it begins anew with the term.
//!
//! Nobody is promoted on this alone: what is done is a failover like an operator's, which proves or gives up ([`crate::plan`]).
//! How often it may be tried is decided where it is planned. All buckets of a lost region that may be replaced are one operation: one
//! commit fences them all, and each goes its own way from there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use meridian_types::{
    AutoMode, Bucket, BucketId, BucketName, Epoch, FailoverSpec, NodeId, Phase, RegionId, Selection, ShardId,
};

use crate::command::Action;
use crate::lease::LeaseTable;
use crate::plan::{NAMES_MAX, SHARDS_MOVED_MAX, regions_needed};
use crate::state::ClusterState;

/// How long what a node hears counts: two renewals, and the time they take.
pub const HEARD_FOR: Duration = Duration::from_secs(3);

/// How long after its election a leader thinks ill of nobody: two renewals. What nodes were granted before may have ended by then,
/// and they have not had time to ask for more.
pub const SETTLING: Duration = Duration::from_secs(2);

/// What one node hears of other regions.
#[derive(Clone, Debug)]
struct Watch {
    at: Instant,
    /// Regions whose lanes are silent there.
    silent: BTreeSet<RegionId>,
}

/// The leader's eyes, in one term.
#[derive(Debug, Default)]
pub struct Detector {
    term: u64,
    watches: BTreeMap<NodeId, Watch>,
    /// Since when a region has looked lost without a break.
    lost_since: BTreeMap<RegionId, Instant>,
    /// Buckets that only observe, for which it was said already.
    observed: BTreeSet<(BucketId, Epoch)>,
}

impl Detector {
    /// A node has renewed its lease and told which regions are silent to it.
    pub fn heard(&mut self, now: Instant, term: u64, node: NodeId, silent: BTreeSet<RegionId>) {
        self.enter(term);
        self.watches.insert(node, Watch { at: now, silent });
    }

    fn enter(&mut self, term: u64) {
        if self.term != term {
            *self = Detector { term, ..Detector::default() };
        }
    }

    /// What is to be put on record now; `now_ms` is the wall clock.
    pub fn look(&mut self, now: Instant, now_ms: u64, table: &LeaseTable, state: &ClusterState) -> Vec<Action> {
        self.enter(table.term());
        let mut lost: BTreeMap<RegionId, Option<Instant>> = BTreeMap::new();
        let mut replaced: BTreeMap<RegionId, Vec<BucketName>> = BTreeMap::new();
        let mut actions = Vec::new();
        for bucket in state.buckets() {
            let Some(from) = bucket.primary else { continue };
            if bucket.auto.mode == AutoMode::Manual || is_being_replaced(bucket) {
                continue;
            }
            let since = *lost.entry(from).or_insert_with(|| self.lost_since(now, from, table, state));
            let waits = Duration::from_millis(bucket.auto.detect_ms);
            if since.is_none_or(|since| now.saturating_duration_since(since) < waits) {
                continue;
            }
            match bucket.auto.mode {
                AutoMode::Manual => {}
                AutoMode::ObserveOnly => {
                    if self.observed.insert((bucket.id, bucket.epoch)) {
                        let what = reason(from, state);
                        actions.push(Action::Observe { bucket: bucket.id, epoch: bucket.epoch, what });
                    }
                }
                AutoMode::ZeroLoss | AutoMode::Bounded { .. } => {
                    let enough = self.has_enough(now, bucket, from, table, state);
                    if enough && state.fails_over_by_itself(bucket, now_ms) {
                        replaced.entry(from).or_default().push(bucket.name.clone());
                    }
                }
            }
        }
        self.lost_since = lost.into_iter().filter_map(|(region, since)| Some((region, since?))).collect();
        let plans = replaced.iter().flat_map(|(from, names)| {
            names.chunks(buckets_max(state.shards())).map(|names| failover(names.to_vec(), reason(*from, state)))
        });
        actions.extend(plans);
        actions
    }

    /// Whether enough regions are there to prove that nothing is lost, where that is what is asked: stopping writes for nothing
    /// would help nobody.
    fn has_enough(
        &self,
        now: Instant,
        bucket: &Bucket,
        from: RegionId,
        table: &LeaseTable,
        state: &ClusterState,
    ) -> bool {
        let there = bucket.targets(from).filter(|region| is_there(now, *region, table, state)).count();
        match bucket.auto.mode {
            AutoMode::ZeroLoss => regions_needed(bucket).is_some_and(|needed| there >= needed),
            AutoMode::Bounded { .. } => there > 0,
            AutoMode::Manual | AutoMode::ObserveOnly => false,
        }
    }

    /// Since when it has looked lost, at every look; `None` if it doesn't now.
    fn lost_since(&self, now: Instant, region: RegionId, table: &LeaseTable, state: &ClusterState) -> Option<Instant> {
        let since = self.lost_since.get(&region).copied().unwrap_or(now);
        self.is_lost(now, region, table, state).then_some(since)
    }

    fn is_lost(&self, now: Instant, region: RegionId, table: &LeaseTable, state: &ClusterState) -> bool {
        if now < table.elected_at() + SETTLING {
            return false;
        }
        let has_run_out = |node: &NodeId| table.expires(*node) <= now;
        // Those that are left decide nothing.
        let too_few = |voters: &[NodeId]| {
            !voters.is_empty() && voters.iter().filter(|node| !has_run_out(node)).count() <= voters.len() / 2
        };
        // While a shard moves, either may be who decides.
        let shard_is_dead = |shard| {
            let next = state.member_changes().get(&region).filter(|change| change.pending.contains(&shard));
            too_few(state.voters(region, shard)) && next.is_none_or(|change| too_few(&change.target))
        };
        if !(0..state.shards()).map(ShardId).any(shard_is_dead) {
            return false;
        }
        let listens = |it: &RegionId| *it != region && state.holds_data(*it);
        let others: BTreeSet<RegionId> = state.nodes().map(|node| node.region).filter(listens).collect();
        let there: Vec<_> = others.into_iter().filter(|it| is_there(now, *it, table, state)).collect();
        !there.is_empty() && there.into_iter().all(|observer| self.hears_nothing(now, observer, region, state))
    }

    /// Whether every node of a region that has told something lately hears nothing of `region`, and one has.
    fn hears_nothing(&self, now: Instant, observer: RegionId, region: RegionId, state: &ClusterState) -> bool {
        let nodes = state.nodes().filter(|node| node.region == observer);
        let fresh: Vec<_> = nodes
            .filter_map(|node| self.watches.get(&node.id))
            .filter(|watch| now.saturating_duration_since(watch.at) <= HEARD_FOR)
            .collect();
        !fresh.is_empty() && fresh.iter().all(|watch| watch.silent.contains(&region))
    }
}

fn failover(names: Vec<BucketName>, reason: String) -> Action {
    let buckets = Selection::Named(names);
    Action::Failover(FailoverSpec { buckets, to: None, consent: None, automatic: true, reason })
}

fn reason(from: RegionId, state: &ClusterState) -> String {
    let from = state.region_name(from);
    format!("too few nodes of {from} hold a lease to serve every shard, and no region hears from it")
}

/// How many buckets one operation may name, and be about.
fn buckets_max(shards: u16) -> usize {
    NAMES_MAX.min(SHARDS_MOVED_MAX / usize::from(shards.max(1)))
}

fn is_being_replaced(bucket: &Bucket) -> bool {
    match bucket.phase {
        Phase::Steady | Phase::CatchingUp { .. } | Phase::Draining { .. } => false,
        Phase::Fencing { .. } | Phase::Pulling { .. } => true,
    }
}

fn is_there(now: Instant, region: RegionId, table: &LeaseTable, state: &ClusterState) -> bool {
    state.nodes().any(|node| node.region == region && table.is_live(now, node.id) && state.serves(node.id))
}

#[cfg(test)]
mod tests;
