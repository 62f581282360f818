//! How fresh a shard is with respect to other regions (CON-3), by this node's monotonic clock alone.
//!
//! A lane that was complete with everything its source had when this node's clock read `t` is, at time `now`, at most
//! `now - t` behind.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use meridian_types::{Bucket, Lane, RegionId};
use tokio::sync::watch;

/// Up to when each lane of one shard is complete.
#[derive(Debug)]
pub(crate) struct Lanes {
    complete_ms: RwLock<BTreeMap<(RegionId, Lane), u64>>,
    changes: watch::Sender<()>,
}

impl Default for Lanes {
    fn default() -> Lanes {
        Lanes { complete_ms: RwLock::default(), changes: watch::Sender::new(()) }
    }
}

impl Lanes {
    /// The lane from `source` is complete with what it had at `at_ms`.
    pub(crate) fn complete(&self, source: RegionId, lane: Lane, at_ms: u64) {
        {
            let mut complete = self.complete_ms.write().unwrap_or_else(PoisonError::into_inner);
            let known = complete.entry((source, lane)).or_default();
            *known = (*known).max(at_ms);
        }
        self.changes.send_replace(());
    }

    /// Up to when the lane from `source` is known to be complete.
    pub(crate) fn complete_ms(&self, source: RegionId, lane: Lane) -> Option<u64> {
        self.complete_ms.read().unwrap_or_else(PoisonError::into_inner).get(&(source, lane)).copied()
    }

    /// An upper bound, in milliseconds, on how far `bucket` is behind in `region`, a replica that is not its primary:
    /// behind its primary, or behind the slowest of the others in active-active. `None` when it is not known.
    pub(crate) fn staleness_ms(&self, bucket: &Bucket, region: RegionId, now_ms: u64) -> Option<u64> {
        let complete = self.complete_ms.read().unwrap_or_else(PoisonError::into_inner);
        let lane = bucket.policy.lane();
        let of = |source: RegionId| complete.get(&(source, lane)).map(|at| now_ms.saturating_sub(*at));
        match bucket.primary {
            Some(primary) => of(primary),
            None => bucket.targets(region).try_fold(0, |most, source| of(source).map(|it| it.max(most))),
        }
    }

    /// How long ago, in milliseconds, the lane was complete with what its source had; `None` when it never was.
    pub(crate) fn age_ms(&self, source: RegionId, lane: Lane, now_ms: u64) -> Option<u64> {
        let complete = self.complete_ms.read().unwrap_or_else(PoisonError::into_inner);
        complete.get(&(source, lane)).map(|at| now_ms.saturating_sub(*at))
    }

    /// Tells when a lane became fresher.
    pub(crate) fn watch(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use meridian_types::{Acks, BucketId, BucketName, Epoch, Hlc, Phase, Policy};

    use super::*;

    fn bucket(policy: Policy, primary: Option<u16>) -> Bucket {
        Bucket {
            id: BucketId(1),
            name: BucketName::new("b").unwrap(),
            policy,
            epoch: Epoch(1),
            phase: Phase::Steady,
            primary: primary.map(RegionId),
            regions: vec![RegionId(1), RegionId(2), RegionId(3)],
            labels: BTreeMap::new(),
            created: Hlc(0),
            standing: Default::default(),
            auto: Default::default(),
            turns: Default::default(),
            joins: Default::default(),
            crossing: None,
        }
    }

    #[test]
    fn a_replica_is_as_stale_as_the_lane_from_its_primary() {
        let lanes = Lanes::default();
        let sync = bucket(Policy::sync(Acks::One), Some(1));
        assert_eq!(lanes.staleness_ms(&sync, RegionId(2), 100), None);
        lanes.complete(RegionId(1), Lane::Async, 90);
        assert_eq!(lanes.staleness_ms(&sync, RegionId(2), 100), None, "another lane says nothing");
        lanes.complete(RegionId(1), Lane::Sync, 90);
        lanes.complete(RegionId(1), Lane::Sync, 80);
        assert_eq!(lanes.staleness_ms(&sync, RegionId(2), 100), Some(10), "an older echo takes nothing back");
    }

    #[test]
    fn an_active_active_replica_is_as_stale_as_its_slowest_lane() {
        let lanes = Lanes::default();
        let everywhere = bucket(Policy::ActiveActive, None);
        lanes.complete(RegionId(1), Lane::Async, 90);
        assert_eq!(lanes.staleness_ms(&everywhere, RegionId(2), 100), None);
        lanes.complete(RegionId(3), Lane::Async, 60);
        assert_eq!(lanes.staleness_ms(&everywhere, RegionId(2), 100), Some(40));
    }
}
