//! A bucket on its way from one writing region to all of them, or back (docs/adr/2026-11-28-active-active-changes.md), or, while
//! all of them write, to a region more or less (docs/adr/2026-11-28-active-active-region-sets.md).
//!
//! ```text
//!             every region has applied the primary's seal, in every shard
//!   opening ──────────────────────────────────────────────────────────────► active-active, same epoch
//!             every region has stopped, and has what all the others stopped at
//!   closing ──────────────────────────────────────────────────────────────► a primary, next epoch
//!   regrouping ───────────────────────────────────────────────────────────► active-active, next epoch, other regions
//!             every region but the lost one has stopped, and has what all of these stopped at, and as much of the lost one as any
//!   losing ───────────────────────────────────────────────────────────────► active-active, next epoch, without it
//! ```
//! Until then nobody orders anything that counts, and it can be given up.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{RegionId, ShardId};
use crate::loss::{Loss, Remains};
use crate::plan::Seal;
use crate::policy::Policy;
use crate::position::{Hlc, Lsn};

/// The longest pause that may be asked for, in milliseconds: ten minutes without writes are an outage.
pub const CROSSING_MS_MAX: u64 = 600_000;

/// What it may last unless another time is asked for: a region that restarts is back before.
pub const CROSSING_MS_DEFAULT: u64 = 30_000;

/// A crossing under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crossing {
    /// The metadata index at which it began: names this very attempt.
    pub index: u64,
    /// Since when nobody orders anything.
    pub at: Hlc,
    /// How long it may last before it is given up, in milliseconds.
    pub pause_ms_max: u64,
    /// Which way.
    pub way: Way,
    /// What each region has, by shard, at the place where all of them meet.
    pub arrived: BTreeMap<RegionId, BTreeMap<ShardId, Seal>>,
}

/// Which way a bucket crosses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Way {
    /// To active-active: its primary seals the epoch.
    Opening,
    /// From active-active: its regions stop.
    Closing {
        /// The policy it will have.
        policy: Policy,
        /// The region that will order its writes.
        primary: RegionId,
        /// Where in its own log each region stopped, by shard.
        stopped: BTreeMap<RegionId, BTreeMap<ShardId, Lsn>>,
    },
    /// From active-active to active-active, a region more or less: its regions stop.
    Regrouping {
        /// The region.
        region: RegionId,
        /// What becomes of it.
        change: Regroup,
        /// Where in its own log each region stopped, by shard.
        stopped: BTreeMap<RegionId, BTreeMap<ShardId, Lsn>>,
    },
    /// From active-active to active-active, without a region that does not come back: the others stop, and take in nothing more of it
    /// (docs/adr/2026-11-28-active-active-lost-regions.md).
    Losing {
        /// The lost region.
        region: RegionId,
        /// The most of it that somebody has agreed to lose.
        accepted: Loss,
        /// Where in its own log each of the others stopped, by shard.
        stopped: BTreeMap<RegionId, BTreeMap<ShardId, Lsn>>,
        /// What each of them has of the lost one's log, and what that had said it lacks, by shard.
        remains: BTreeMap<RegionId, BTreeMap<ShardId, Remains>>,
    },
}

/// What becomes of a region of an active-active bucket in the epoch that begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Regroup {
    /// It gets what is written from then on, and is filled with what was before.
    Join,
    /// It is filled: it writes, and counts.
    Count,
    /// It counts no more.
    Leave,
}

impl Way {
    /// Where in its own log each region stopped, by shard; `None` where it is a primary that seals.
    pub fn stopped(&self) -> Option<&BTreeMap<RegionId, BTreeMap<ShardId, Lsn>>> {
        match self {
            Way::Opening => None,
            Way::Closing { stopped, .. } | Way::Regrouping { stopped, .. } | Way::Losing { stopped, .. } => {
                Some(stopped)
            }
        }
    }

    /// The same, to be added to.
    pub fn stopped_mut(&mut self) -> Option<&mut BTreeMap<RegionId, BTreeMap<ShardId, Lsn>>> {
        match self {
            Way::Opening => None,
            Way::Closing { stopped, .. } | Way::Regrouping { stopped, .. } | Way::Losing { stopped, .. } => {
                Some(stopped)
            }
        }
    }

    /// The region that is lost, if it is about one.
    pub fn lost(&self) -> Option<RegionId> {
        match self {
            Way::Losing { region, .. } => Some(*region),
            Way::Opening | Way::Closing { .. } | Way::Regrouping { .. } => None,
        }
    }
}

impl Crossing {
    /// In how many shards a region has arrived.
    pub fn arrived_in(&self, region: RegionId) -> usize {
        self.arrived.get(&region).map_or(0, BTreeMap::len)
    }

    /// A shard at which two regions that have arrived differ, and which two.
    pub fn differing(&self) -> Option<(ShardId, RegionId, RegionId)> {
        let (first, seals) = self.arrived.iter().next()?;
        self.arrived.iter().skip(1).find_map(|(region, theirs)| {
            let differs = |(shard, seal): &(&ShardId, &Seal)| seals.get(shard).is_some_and(|first| first != *seal);
            theirs.iter().find(differs).map(|(shard, _)| (*shard, *first, *region))
        })
    }

    /// Where all the regions stopped in a shard, once all of `regions` have said so; nothing to wait for when opening.
    pub fn stopped_at(&self, shard: ShardId, regions: &[RegionId]) -> Option<BTreeMap<RegionId, Lsn>> {
        let Some(stopped) = self.way.stopped() else { return Some(BTreeMap::new()) };
        let of = |region: &RegionId| Some((*region, *stopped.get(region)?.get(&shard)?));
        regions.iter().map(of).collect()
    }

    /// Who has most of the lost region's log in a shard, the first of those if there are several, and how much; once all of `regions`
    /// have said so.
    pub fn most_of_the_lost(&self, shard: ShardId, regions: &[RegionId]) -> Option<(RegionId, Lsn)> {
        let Way::Losing { remains, .. } = &self.way else { return None };
        let of = |region: &RegionId| Some((*region, remains.get(region)?.get(&shard)?.seal.lsn));
        let all: Vec<(RegionId, Lsn)> = regions.iter().map(of).collect::<Option<_>>()?;
        all.into_iter().rev().max_by_key(|(_, lsn)| *lsn)
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Way::Opening => "opening",
            Way::Closing { .. } => "closing",
            Way::Regrouping { .. } => "changing its regions",
            Way::Losing { .. } => "losing a region",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::SetHash;

    const A: RegionId = RegionId(1);
    const B: RegionId = RegionId(2);

    fn crossing(way: Way) -> Crossing {
        Crossing { index: 7, at: Hlc(1), pause_ms_max: 1000, way, arrived: BTreeMap::new() }
    }

    #[test]
    fn two_regions_that_arrived_otherwise_are_named_with_the_shard() {
        let mut crossing = crossing(Way::Opening);
        let seal = |keys| Seal { lsn: Lsn(4), hash: SetHash(1), keys };
        crossing.arrived.insert(A, [(ShardId(0), seal(1)), (ShardId(1), seal(2))].into());
        crossing.arrived.insert(B, [(ShardId(0), seal(1))].into());
        assert_eq!((crossing.differing(), crossing.arrived_in(B)), (None, 1));
        crossing.arrived.insert(B, [(ShardId(1), seal(3))].into());
        assert_eq!(crossing.differing(), Some((ShardId(1), A, B)));
    }

    #[test]
    fn where_all_stopped_is_known_once_all_have_said_so() {
        let stopped = [(A, [(ShardId(0), Lsn(5))].into())].into();
        let mut closing = crossing(Way::Closing { policy: Policy::ASYNC, primary: A, stopped });
        assert_eq!(closing.stopped_at(ShardId(0), &[A, B]), None);
        if let Way::Closing { stopped, .. } = &mut closing.way {
            stopped.insert(B, [(ShardId(0), Lsn(0))].into());
        }
        assert_eq!(closing.stopped_at(ShardId(0), &[A, B]), Some([(A, Lsn(5)), (B, Lsn(0))].into()));
        assert_eq!(crossing(Way::Opening).stopped_at(ShardId(0), &[A, B]), Some(BTreeMap::new()));
    }
}
