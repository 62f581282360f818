//! What the primaries of buckets last said is lacking in a shard of this region, and when (SWI-2).
//!
//! Kept in memory, at the node that leads the shard: a restart or another leader knows nothing until the primary speaks
//! again, and says so ([`Exposures::said`] is `None`), for a primary that is gone by then can't be asked.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use meridian_types::loss::older;
use meridian_types::{BucketId, Exposure, KeyStart, Lack, Lane, RegionId};

/// What was said to one shard.
#[derive(Debug, Default)]
pub(crate) struct Exposures {
    said: RwLock<BTreeMap<(RegionId, Lane, BucketId), Said>>,
}

/// What was said, and when by this node's monotonic clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) exposure: Exposure,
    pub(crate) oldest_key: Option<KeyStart>,
    pub(crate) at_ms: u64,
}

impl Said {
    /// What two lanes of a bucket lack together, as of the earlier word.
    pub(crate) fn and(self, other: Said) -> Said {
        let at_ms = self.at_ms.min(other.at_ms);
        let (oldest_ms, oldest_key) =
            older((self.exposure.oldest_ms, self.oldest_key), (other.exposure.oldest_ms, other.oldest_key));
        let (one, other) = (self.exposure, other.exposure);
        let exposure = Exposure {
            head: one.head.max(other.head),
            operations: one.operations.saturating_add(other.operations),
            bytes: one.bytes.saturating_add(other.bytes),
            oldest_ms,
        };
        Said { exposure, oldest_key, at_ms }
    }
}

impl Exposures {
    /// `source` says what is lacking here of a lane.
    pub(crate) fn say(&self, source: RegionId, lane: Lane, at_ms: u64, lacks: &[Lack]) {
        let mut said = self.said.write().unwrap_or_else(PoisonError::into_inner);
        for lack in lacks {
            let place = (source, lane, lack.bucket);
            // Words of a lane that was opened anew may overtake older ones.
            if said.get(&place).is_none_or(|known| lack.exposure.head >= known.exposure.head) {
                said.insert(place, Said { exposure: lack.exposure, oldest_key: lack.oldest_key.clone(), at_ms });
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
        let known = said.get(&(source, lane, bucket))?;
        match complete_ms.filter(|complete| *complete > known.at_ms) {
            Some(at_ms) => {
                let exposure = Exposure { operations: 0, bytes: 0, oldest_ms: 0, ..known.exposure };
                Some(Said { exposure, oldest_key: None, at_ms })
            }
            None => Some(known.clone()),
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

    fn lack(head: u64, operations: u64) -> Lack {
        let oldest_key = KeyStart::of(format!("k{operations}").as_bytes());
        Lack { bucket: BUCKET, exposure: lacks(head, operations), oldest_key }
    }

    #[test]
    fn the_last_word_counts_until_the_lane_is_known_to_be_complete_later() {
        let exposures = Exposures::default();
        assert_eq!(exposures.said(A, Lane::Async, BUCKET, Some(9)), None, "a primary that never spoke is not known");
        exposures.say(A, Lane::Async, 100, &[lack(40, 3)]);
        exposures.say(A, Lane::Async, 101, &[lack(39, 9)]);
        let last = Said { exposure: lacks(40, 3), oldest_key: KeyStart::of(b"k3"), at_ms: 100 };
        assert_eq!(exposures.said(A, Lane::Async, BUCKET, Some(90)), Some(last));
        let complete = exposures.said(A, Lane::Async, BUCKET, Some(120)).unwrap();
        assert_eq!((complete.exposure.operations, complete.exposure.head, complete.at_ms), (0, Lsn(40), 120));
        assert_eq!(complete.oldest_key, None, "nothing is lacking any more");
        assert_eq!(exposures.said(A, Lane::Sync, BUCKET, None), None, "another lane was not spoken of");
        exposures.say(A, Lane::Sync, 80, &[lack(50, 2)]);
        let both = exposures.said(A, Lane::Sync, BUCKET, None).unwrap().and(complete);
        assert_eq!((both.exposure, both.oldest_key, both.at_ms), (lacks(50, 2), KeyStart::of(b"k2"), 80));
        let older = Lack { exposure: Exposure { oldest_ms: 70, ..lacks(41, 1) }, ..lack(41, 1) };
        exposures.say(A, Lane::Async, 130, &[older]);
        let said = |lane| exposures.said(A, lane, BUCKET, None).unwrap();
        let both = said(Lane::Sync).and(said(Lane::Async));
        assert_eq!((both.exposure.oldest_ms, both.oldest_key), (70, KeyStart::of(b"k1")), "the older of both lanes");
        exposures.retain(|_| false);
        assert_eq!(exposures.said(A, Lane::Async, BUCKET, None), None);
        exposures.say(A, Lane::Async, 100, &[lack(40, 3)]);
        exposures.clear();
        assert_eq!(exposures.said(A, Lane::Async, BUCKET, None), None, "what was said before this node led is old");
    }
}
