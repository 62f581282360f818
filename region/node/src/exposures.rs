//! What the primaries of buckets last said is lacking in a shard of this region, and when (SWI-2).
//!
//! Kept in memory, at the node that leads the shard: a restart or another leader knows nothing until the primary speaks
//! again, and says so ([`Exposures::said`] is `None`), for a primary that is gone by then can't be asked.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use meridian_types::{BucketId, Exposure, Lane, RegionId};

/// What was said to one shard.
#[derive(Debug, Default)]
pub(crate) struct Exposures {
    said: RwLock<BTreeMap<(RegionId, Lane, BucketId), Said>>,
}

/// What was said, and when by this node's monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) exposure: Exposure,
    pub(crate) at_ms: u64,
}

impl Said {
    /// What two lanes of a bucket lack together, as of the earlier word.
    pub(crate) fn and(self, other: Said) -> Said {
        let (one, other, at_ms) = (self.exposure, other.exposure, self.at_ms.min(other.at_ms));
        let exposure = Exposure {
            head: one.head.max(other.head),
            operations: one.operations.saturating_add(other.operations),
            bytes: one.bytes.saturating_add(other.bytes),
            oldest_ms: one.oldest_ms.max(other.oldest_ms),
        };
        Said { exposure, at_ms }
    }
}

impl Exposures {
    /// `source` says what is lacking here of a lane.
    pub(crate) fn say(&self, source: RegionId, lane: Lane, at_ms: u64, exposures: &[(BucketId, Exposure)]) {
        let mut said = self.said.write().unwrap_or_else(PoisonError::into_inner);
        for (bucket, exposure) in exposures {
            let newest = Said { exposure: *exposure, at_ms };
            let known = said.entry((source, lane, *bucket)).or_insert(newest);
            // Words of a lane that was opened anew may overtake older ones.
            if newest.exposure.head >= known.exposure.head {
                *known = newest;
            }
        }
    }

    /// What `source` last said of a lane. One that was complete at `complete_ms` lacked nothing then, whatever was said before.
    pub(crate) fn said(
        &self,
        source: RegionId,
        lane: Lane,
        bucket: BucketId,
        complete_ms: Option<u64>,
    ) -> Option<Said> {
        let said = self.said.read().unwrap_or_else(PoisonError::into_inner);
        let known = *said.get(&(source, lane, bucket))?;
        match complete_ms.filter(|complete| *complete > known.at_ms) {
            Some(at_ms) => {
                let exposure = Exposure { operations: 0, bytes: 0, oldest_ms: 0, ..known.exposure };
                Some(Said { exposure, at_ms })
            }
            None => Some(known),
        }
    }

    /// Forgets everything: another node leads the shard, or this one does again, and what was said meanwhile was said elsewhere.
    pub(crate) fn clear(&self) {
        self.said.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Forgets buckets that are gone.
    pub(crate) fn retain(&self, exists: impl Fn(BucketId) -> bool) {
        self.said.write().unwrap_or_else(PoisonError::into_inner).retain(|(.., bucket), _| exists(*bucket));
    }
}

#[cfg(test)]
mod tests {
    use meridian_types::Lsn;

    use super::*;

    const A: RegionId = RegionId(1);
    const BUCKET: BucketId = BucketId(7);

    fn lacks(head: u64, operations: u64) -> Exposure {
        Exposure { head: Lsn(head), operations, bytes: operations * 10, oldest_ms: 50 }
    }

    #[test]
    fn the_last_word_counts_until_the_lane_is_known_to_be_complete_later() {
        let exposures = Exposures::default();
        assert_eq!(exposures.said(A, Lane::Async, BUCKET, Some(9)), None, "a primary that never spoke is not known");
        exposures.say(A, Lane::Async, 100, &[(BUCKET, lacks(40, 3))]);
        exposures.say(A, Lane::Async, 101, &[(BUCKET, lacks(39, 9))]);
        assert_eq!(exposures.said(A, Lane::Async, BUCKET, Some(90)), Some(Said { exposure: lacks(40, 3), at_ms: 100 }));
        let complete = exposures.said(A, Lane::Async, BUCKET, Some(120)).unwrap();
        assert_eq!((complete.exposure.operations, complete.exposure.head, complete.at_ms), (0, Lsn(40), 120));
        assert_eq!(exposures.said(A, Lane::Sync, BUCKET, None), None, "another lane was not spoken of");
        exposures.say(A, Lane::Sync, 80, &[(BUCKET, lacks(50, 2))]);
        let both = exposures.said(A, Lane::Sync, BUCKET, None).unwrap().and(complete);
        assert_eq!((both.exposure, both.at_ms), (lacks(50, 2), 80));
        exposures.retain(|_| false);
        assert_eq!(exposures.said(A, Lane::Async, BUCKET, None), None);
        exposures.say(A, Lane::Async, 100, &[(BUCKET, lacks(40, 3))]);
        exposures.clear();
        assert_eq!(exposures.said(A, Lane::Async, BUCKET, None), None, "what was said before this node led is old");
    }
}
