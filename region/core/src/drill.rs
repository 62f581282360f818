//! What a drill rests on: which part of the state a copy needs and how much room that takes, whether a copy is what its
//! digest said, which keys are read and written in it, and what their times come to.
//!
//! Deliberately not here: copying, waiting, measuring (`region/node`).

use std::collections::BTreeSet;

use meridian_types::{BucketDigest, BucketId, DrillLatency, Key, Refusal, ShardId};

use crate::keys;
use crate::scrub::Contents;

/// What keys that a drill writes begin with.
pub const PREFIX: &str = "meridian-drill/";

/// Bytes a record takes beside its key and value: framing, version, position, and its place in the index of the store.
const RECORD_BYTES: u64 = 128;

/// Bytes a copy takes whatever is in it: the journals of its store and the segments of its log, which are preallocated.
const FIXED_BYTES: u64 = 256 << 20;

/// What a copy of some buckets of a shard takes, in ascending order without overlap: from (inclusive), to (exclusive). Of the
/// shard itself its positions; of other buckets nothing, so that the copy knows of none.
pub fn ranges(shard: ShardId, buckets: &[BucketId]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut ranges = vec![keys::positions_range(shard)];
    for bucket in buckets {
        let meta = keys::bucket_meta(shard, *bucket);
        ranges.push((meta.clone(), keys::successor(&meta)));
        let kinds = [keys::data_range, keys::expiry_range, keys::results_of_bucket, keys::parked_of_bucket];
        ranges.extend(kinds.map(|range| range(shard, *bucket)));
    }
    ranges.sort();
    ranges
}

/// Bytes of disk that a drill needs for a copy of what these digests describe: twice the data, for the store that is filled
/// rewrites it once, and what there is of it whatever it holds.
pub fn room_bytes<'a>(digests: impl Iterator<Item = &'a BucketDigest>) -> u64 {
    let data = |digest: &BucketDigest| digest.bytes.saturating_add(digest.keys.saturating_mul(RECORD_BYTES));
    let data = digests.map(data).fold(0, u64::saturating_add);
    data.saturating_mul(2).saturating_add(FIXED_BYTES)
}

/// Why a copy is not what its digest said; `None` when it is.
pub fn difference(said: &Contents, found: &Contents) -> Option<String> {
    if said == found {
        return None;
    }
    let (hash, keys, bytes) = (found.hash, found.keys, found.bytes);
    Some(format!(
        "its rows add up to {keys} keys, {bytes} bytes and the digest {hash}, but the replica says {} keys, {} bytes and {}",
        said.keys, said.bytes, said.hash
    ))
}

/// Chooses about `wanted` of `total` things that come one after the other, spread evenly over all of them.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    stride: u64,
    seen: u64,
}

impl Spread {
    /// None when nothing is wanted.
    pub fn new(wanted: u64, total: u64) -> Spread {
        Spread { stride: total.checked_div(wanted).map_or(0, |stride| stride.max(1)), seen: 0 }
    }

    /// Whether the next one is chosen.
    pub fn takes_next(&mut self) -> bool {
        self.seen += 1;
        self.stride > 0 && (self.seen - 1).is_multiple_of(self.stride)
    }
}

/// Keys that only this drill writes: at least `count`, and at least one in every shard.
///
/// # Errors
/// When `drill` makes them longer than a key may be.
pub fn written_keys(drill: &str, bucket: BucketId, shards: u16, count: u32) -> Result<Vec<Key>, Refusal> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let mut lacking: BTreeSet<ShardId> = (0..shards).map(ShardId).collect();
    let mut written = Vec::new();
    for number in 0u64.. {
        if lacking.is_empty() && written.len() >= count {
            break;
        }
        let key = Key::new(format!("{PREFIX}{drill}/{number}"))?;
        // Room is kept for one key of each shard that has none yet.
        if lacking.remove(&key.shard(bucket, shards)) || written.len() + lacking.len() < count {
            written.push(key);
        }
    }
    Ok(written)
}

/// What times come to, given in microseconds: the nearest-rank percentiles.
pub fn latency(first_us: u64, mut took_us: Vec<u64>) -> DrillLatency {
    took_us.sort_unstable();
    let rank = |percent: usize| {
        let place = (took_us.len() * percent).div_ceil(100).max(1) - 1;
        took_us.get(place).copied().unwrap_or_default()
    };
    DrillLatency { count: took_us.len() as u64, first_us, p50_us: rank(50), p99_us: rank(99) }
}

#[cfg(test)]
mod tests {
    use meridian_types::{Epoch, Lane, Lsn, RegionId, SetHash};
    use proptest::prelude::*;

    use super::*;

    fn is_copied(ranges: &[(Vec<u8>, Vec<u8>)], key: &[u8]) -> bool {
        ranges.iter().any(|(from, to)| from.as_slice() <= key && key < to.as_slice())
    }

    proptest! {
        #[test]
        fn a_copy_has_everything_of_its_buckets_and_nothing_of_others(
            chosen in prop::collection::btree_set(1u32..20, 1..6), other in 1u32..20, user in prop::collection::vec(any::<u8>(), 1..40),
        ) {
            let (shard, region) = (ShardId(3), RegionId(2));
            let buckets: Vec<BucketId> = chosen.iter().copied().map(BucketId).collect();
            let ranges = ranges(shard, &buckets);
            prop_assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{ranges:?}");
            prop_assert!(is_copied(&ranges, &keys::shard_meta(shard)));
            prop_assert!(is_copied(&ranges, &keys::watermark(shard, region, Lane::Sync)));
            let bucket = BucketId(other);
            for key in [
                keys::bucket_meta(shard, bucket),
                keys::data(shard, bucket, &user),
                keys::expiry(shard, bucket, 7, &user),
                keys::result(shard, bucket, region, meridian_types::ClientId(9), 1),
                keys::parked(shard, bucket, Epoch(2), true, region, Lsn(4)),
            ] {
                prop_assert_eq!(is_copied(&ranges, &key), chosen.contains(&other), "{:?}", key);
            }
            prop_assert!(!is_copied(&ranges, &keys::shard_meta(ShardId(4))));
        }

        #[test]
        fn a_sample_is_spread_and_about_as_large_as_was_wanted(wanted in 0u64..50, total in 0u64..2000) {
            let mut spread = Spread::new(wanted, total);
            let taken: Vec<u64> = (0..total).filter(|_| spread.takes_next()).collect();
            let count = taken.len() as u64;
            prop_assert!(count >= wanted.min(total) && count <= (2 * wanted).min(total), "{} of {}", count, total);
        }

        #[test]
        fn every_shard_is_written_to(shards in 1u16..12, count in 0u32..64) {
            let keys = written_keys("1", BucketId(7), shards, count).unwrap();
            prop_assert!(keys.len() >= count as usize && keys.len() <= (count as usize).max(usize::from(shards)));
            let reached: BTreeSet<ShardId> = keys.iter().map(|key| key.shard(BucketId(7), shards)).collect();
            prop_assert_eq!(reached.len(), usize::from(shards));
            prop_assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), keys.len());
        }
    }

    #[test]
    fn percentiles_are_by_nearest_rank() {
        assert_eq!(latency(4, Vec::new()), DrillLatency { first_us: 4, ..DrillLatency::default() });
        let hundred = latency(4, (1..=100).rev().collect());
        assert_eq!(hundred, DrillLatency { count: 100, first_us: 4, p50_us: 50, p99_us: 99 });
        assert_eq!(latency(0, vec![9]).p99_us, 9);
    }

    #[test]
    fn a_copy_takes_room_for_its_data_twice() {
        let digest = |keys, bytes| BucketDigest { keys, bytes, ..BucketDigest::default() };
        assert_eq!(room_bytes([].iter()), FIXED_BYTES);
        assert_eq!(room_bytes([digest(1, 100), digest(2, 50)].iter()), FIXED_BYTES + 2 * (150 + 3 * RECORD_BYTES));
        assert_eq!(room_bytes([digest(u64::MAX, u64::MAX)].iter()), u64::MAX);
    }

    #[test]
    fn what_differs_is_said() {
        let said = Contents { hash: SetHash(1), keys: 2, bytes: 3 };
        assert_eq!(difference(&said, &said), None);
        let why = difference(&said, &Contents { keys: 1, ..said }).unwrap();
        assert!(why.contains("1 keys") && why.contains("2 keys"), "{why}");
    }
}
