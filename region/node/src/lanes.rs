//! How fresh a shard is with respect to other regions (CON-3), by this node's monotonic clock alone.
//!
//! A lane that was complete with everything its source had when this node's clock read `t` is, at time `now`, at most
//! `now - t` behind. Of a bucket with a primary that says something only if the source still was the primary: a region that was replaced
//! while it was away comes back and is complete with what no longer counts, and this node may not have heard of it. Hence
//! two rules: the echo is tenured ([`Echo`]), and whoever uses it holds a lease. Of a bucket that every region writes it says nothing to one
//! that the others go on without: hence a third: whoever uses it has heard of the metadata as much as the source says.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use meridian_types::frame::Echo;
use meridian_types::{Bucket, Lane, RegionId};
use tokio::sync::watch;

/// Up to when each lane of one shard is complete.
#[derive(Debug)]
pub(crate) struct Lanes {
    complete: RwLock<BTreeMap<(RegionId, Lane), Complete>>,
    changes: watch::Sender<()>,
}

/// Up to when a lane is complete, in milliseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Complete {
    at_ms: u64,
    /// As far as a tenured source said so.
    tenured_ms: Option<u64>,
}

impl Default for Lanes {
    fn default() -> Lanes {
        Lanes { complete: RwLock::default(), changes: watch::Sender::new(()) }
    }
}

impl Lanes {
    /// The lane from `source` is complete with what it had when the echo's probe was sent.
    pub(crate) fn complete(&self, source: RegionId, lane: Lane, echo: Echo) {
        {
            let mut complete = self.complete.write().unwrap_or_else(PoisonError::into_inner);
            let known = complete.entry((source, lane)).or_default();
            known.at_ms = known.at_ms.max(echo.probe);
            if echo.tenured {
                known.tenured_ms = known.tenured_ms.max(Some(echo.probe));
            }
        }
        self.changes.send_replace(());
    }

    /// Up to when the lane from `source` is known to be complete.
    pub(crate) fn complete_ms(&self, source: RegionId, lane: Lane) -> Option<u64> {
        self.complete.read().unwrap_or_else(PoisonError::into_inner).get(&(source, lane)).map(|it| it.at_ms)
    }

    /// An upper bound, in milliseconds, on how far `bucket` is behind in `region`, a replica that is not its primary:
    /// behind its primary, or behind the slowest of the others in active-active. `None` when it is not known. To be asked under a lease if
    /// the bucket has a primary.
    pub(crate) fn staleness_ms(&self, bucket: &Bucket, region: RegionId, now_ms: u64) -> Option<u64> {
        let complete = self.complete.read().unwrap_or_else(PoisonError::into_inner);
        let lane = bucket.policy.lane();
        let of = |source: RegionId| complete.get(&(source, lane)).map(|it| now_ms.saturating_sub(it.at_ms));
        match bucket.primary {
            Some(primary) => complete.get(&(primary, lane))?.tenured_ms.map(|at| now_ms.saturating_sub(at)),
            None => bucket.targets(region).try_fold(0, |most, source| of(source).map(|it| it.max(most))),
        }
    }

    /// How long ago, in milliseconds, the lane was complete with what its source had; `None` when it never was.
    pub(crate) fn age_ms(&self, source: RegionId, lane: Lane, now_ms: u64) -> Option<u64> {
        let complete = self.complete.read().unwrap_or_else(PoisonError::into_inner);
        complete.get(&(source, lane)).map(|it| now_ms.saturating_sub(it.at_ms))
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

    fn tenured(probe: u64) -> Echo {
        Echo { probe, tenured: true, index: 0 }
    }

    fn untenured(probe: u64) -> Echo {
        Echo { probe, tenured: false, index: 0 }
    }

    #[test]
    fn a_replica_is_as_stale_as_the_lane_from_its_primary() {
        let lanes = Lanes::default();
        let sync = bucket(Policy::sync(Acks::One), Some(1));
        assert_eq!(lanes.staleness_ms(&sync, RegionId(2), 100), None);
        lanes.complete(RegionId(1), Lane::Async, tenured(90));
        assert_eq!(lanes.staleness_ms(&sync, RegionId(2), 100), None, "another lane says nothing");
        lanes.complete(RegionId(1), Lane::Sync, tenured(90));
        lanes.complete(RegionId(1), Lane::Sync, tenured(80));
        assert_eq!(lanes.staleness_ms(&sync, RegionId(2), 100), Some(10), "an older echo takes nothing back");
    }

    /// Found by seed 501251: a primary that was replaced came back, and a replica that had not heard of it called itself fresh.
    #[test]
    fn con_3_who_has_not_held_its_lease_for_long_enough_makes_no_replica_fresh() {
        let lanes = Lanes::default();
        let sync = bucket(Policy::sync(Acks::One), Some(1));
        lanes.complete(RegionId(1), Lane::Sync, tenured(50));
        lanes.complete(RegionId(1), Lane::Sync, untenured(90));
        assert_eq!(lanes.staleness_ms(&sync, RegionId(2), 100), Some(50));
        assert_eq!(lanes.age_ms(RegionId(1), Lane::Sync, 100), Some(10), "the lane itself is complete");
        lanes.complete(RegionId(1), Lane::Sync, tenured(95));
        assert_eq!(lanes.staleness_ms(&sync, RegionId(2), 100), Some(5));
    }

    #[test]
    fn an_active_active_replica_is_as_stale_as_its_slowest_lane() {
        let lanes = Lanes::default();
        let everywhere = bucket(Policy::ActiveActive, None);
        lanes.complete(RegionId(1), Lane::Async, untenured(90));
        assert_eq!(lanes.staleness_ms(&everywhere, RegionId(2), 100), None);
        lanes.complete(RegionId(3), Lane::Async, untenured(60));
        assert_eq!(lanes.staleness_ms(&everywhere, RegionId(2), 100), Some(40));
    }
}
