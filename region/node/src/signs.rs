//! When each other region was last heard of, by what it ships: half of what an automatic failover rests on (design 7).
//!
//! Anything counts that only its primaries' shippers send: frames, what they say is lacking, the echo of a probe.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{PoisonError, RwLock};

use meridian_types::RegionId;

/// How long without a sign a region counts as silent: fifteen probes, each of which would have been echoed.
pub(crate) const SILENT_AFTER_MS: u64 = 1500;

/// When each region was last heard of, by this node's monotonic clock.
#[derive(Debug, Default)]
pub(crate) struct Signs(RwLock<BTreeMap<RegionId, u64>>);

impl Signs {
    /// Something came from there.
    pub(crate) fn of_life(&self, region: RegionId, now_ms: u64) {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner).get(&region).copied();
        // Not for every frame: a tenth of what counts is precise enough.
        if known.is_none_or(|at| at + SILENT_AFTER_MS / 10 <= now_ms) {
            self.0.write().unwrap_or_else(PoisonError::into_inner).insert(region, now_ms);
        }
    }

    /// Those of `regions` that nothing came from lately.
    pub(crate) fn silent(&self, regions: impl Iterator<Item = RegionId>, now_ms: u64) -> BTreeSet<RegionId> {
        let heard = self.0.read().unwrap_or_else(PoisonError::into_inner);
        regions.filter(|it| heard.get(it).is_none_or(|at| at + SILENT_AFTER_MS < now_ms)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_silent_until_it_is_heard_of_and_again_after_a_while() {
        let (signs, a) = (Signs::default(), RegionId(1));
        let silent = |now| !signs.silent([a].into_iter(), now).is_empty();
        assert!(silent(10));
        signs.of_life(a, 10);
        assert!(!silent(10 + SILENT_AFTER_MS));
        assert!(silent(11 + SILENT_AFTER_MS));
    }
}
