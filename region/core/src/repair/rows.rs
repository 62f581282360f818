//! The rows of a bucket in a shard, in the order of their row keys, and their hashes.

use std::ops::ControlFlow;

use meridian_types::{BucketId, SetHash, ShardId};

use crate::keys;
use crate::view::{StateView, ViewError};

/// Rows are read in this order: their kind is the first byte of a row key.
const KINDS: [u8; 2] = [keys::DATA, keys::RESULT];

/// Takes a row key and the row's bytes, and says whether to go on.
pub(super) type EachRow<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// The state key of a row; `None` when it is no row key.
pub(crate) fn state_key(shard: ShardId, bucket: BucketId, row: &[u8]) -> Option<Vec<u8>> {
    let (kind, rest) = row.split_first()?;
    let key = keys::row(shard, *kind, bucket, rest);
    let sensible = match *kind {
        keys::DATA => (1..=meridian_types::key::KEY_BYTES_MAX).contains(&rest.len()),
        keys::RESULT => keys::parse_result(&key).is_some(),
        _ => false,
    };
    sensible.then_some(key)
}

/// Calls `each` with every row behind `after` and up to `up_to`, in order, until it breaks.
pub(super) fn scan(
    view: &dyn StateView,
    (shard, bucket): (ShardId, BucketId),
    after: &[u8],
    up_to: Option<&[u8]>,
    each: EachRow<'_>,
) -> Result<(), ViewError> {
    let mut row_key = Vec::new();
    let mut stopped = false;
    // The first state key behind a row.
    let behind = |row: &[u8]| {
        let mut key =
            keys::row(shard, row.first().copied().unwrap_or_default(), bucket, row.get(1..).unwrap_or_default());
        key.push(0);
        key
    };
    for kind in KINDS {
        let all = keys::row(shard, kind, bucket, &[]);
        let from = match after.first() {
            Some(last) if *last > kind => continue,
            Some(last) if *last == kind => behind(after),
            _ => all.clone(),
        };
        let to = match up_to {
            Some(row) if row.first() < Some(&kind) => break,
            Some(row) if row.first() == Some(&kind) => behind(row),
            _ => keys::successor(&all),
        };
        view.scan(&from, &to, &mut |key, value| {
            row_key.clear();
            row_key.push(kind);
            row_key.extend_from_slice(key.get(keys::DATA_PREFIX_BYTES..).unwrap_or_default());
            let flow = each(&row_key, value);
            stopped = flow.is_break();
            flow
        })?;
        if stopped {
            break;
        }
    }
    Ok(())
}

/// Which of so many partitions a row is in: by the hash of its key, so that they are of equal size.
pub(super) fn partition(row_key: &[u8], partitions: u32) -> usize {
    let hash = SetHash::of(row_key, &[]).0 >> 64;
    usize::try_from((hash * u128::from(partitions)) >> 64).unwrap_or_default()
}

/// The hash by which a row is compared. The salt is another one in every attempt, so that two rows that look equal by
/// chance don't look so again.
pub(super) fn hash(row_key: &[u8], value: &[u8], salt: u64) -> u64 {
    let pair = SetHash::of(row_key, value).0.to_le_bytes();
    let [low, high] =
        [&pair[..8], &pair[8..]].map(|half| half.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)));
    high.wrapping_mul(salt | 1).wrapping_add(low)
}

/// The hash of every kept result of the bucket.
pub(crate) fn hash_of_results(view: &dyn StateView, shard: ShardId, bucket: BucketId) -> Result<SetHash, ViewError> {
    let mut hash = SetHash::default();
    let behind_records = [keys::DATA + 1];
    scan(view, (shard, bucket), &behind_records, None, &mut |key, value| {
        hash.add(key, value);
        ControlFlow::Continue(())
    })?;
    Ok(hash)
}

#[cfg(test)]
mod tests {
    use meridian_types::{ClientId, RegionId};
    use proptest::prelude::*;

    use super::*;
    use crate::view::{MemoryState, Mutations};

    const PLACE: (ShardId, BucketId) = (ShardId(3), BucketId(9));

    fn furnished() -> (MemoryState, Vec<Vec<u8>>) {
        let mut out = Mutations::new();
        let (shard, bucket) = PLACE;
        let mut rows = Vec::new();
        for key in [&b"a"[..], b"a\0", b"b", &[0xff; 40]] {
            out.put(keys::data(shard, bucket, key), vec![1]);
            rows.push([&[keys::DATA], key].concat());
        }
        for slot in 0..3 {
            let key = keys::result(shard, bucket, RegionId(1), ClientId(7), slot);
            rows.push([&[keys::RESULT], &key[keys::DATA_PREFIX_BYTES..]].concat());
            out.put(key, vec![2]);
        }
        for other in [keys::data(shard, BucketId(8), b"x"), keys::data(ShardId(4), bucket, b"x")] {
            out.put(other, vec![3]);
        }
        out.put(keys::expiry(shard, bucket, 5, b"a"), vec![]);
        let mut state = MemoryState::default();
        state.commit(out);
        (state, rows)
    }

    proptest! {
        #[test]
        fn a_scan_sees_exactly_the_rows_between_its_ends(after in 0usize..8, up_to in 0usize..8) {
            let (state, rows) = furnished();
            let start = if after == 0 { vec![] } else { rows[after - 1].clone() };
            let end = rows.get(up_to).map(Vec::as_slice);
            let mut seen = Vec::new();
            scan(&state, PLACE, &start, end, &mut |key, _| {
                seen.push(key.to_vec());
                ControlFlow::Continue(())
            }).unwrap();
            let expected: Vec<_> = rows.iter().enumerate().filter(|(at, _)| *at >= after && *at <= up_to).map(|(_, row)| row.clone()).collect();
            prop_assert_eq!(seen, expected);
        }

        #[test]
        fn every_partition_is_within_bounds_and_any_bytes_are_a_row_key_or_none(
            row in prop::collection::vec(any::<u8>(), 0..40), partitions in 1u32..1000
        ) {
            prop_assert!(partition(&row, partitions) < partitions as usize);
            let _ = state_key(ShardId(1), BucketId(1), &row);
        }
    }

    #[test]
    fn a_row_key_leads_back_to_its_state_key() {
        let (state, rows) = furnished();
        for row in rows {
            assert!(state.get(&state_key(PLACE.0, PLACE.1, &row).unwrap()).unwrap().is_some());
        }
        assert_eq!(state_key(PLACE.0, PLACE.1, &[keys::DATA]), None, "a key is never empty");
        assert_eq!(state_key(PLACE.0, PLACE.1, &[1, 1]), None, "metadata are no rows");
    }

    #[test]
    fn rows_that_look_equal_by_chance_do_not_with_another_salt() {
        let hashes = |salt| (hash(b"k", b"1", salt), hash(b"k", b"2", salt));
        let (one, other) = (hashes(1), hashes(77));
        assert_ne!(one, other);
        assert_eq!(hash(b"k", b"1", 77), other.0, "the same on both sides");
    }
}
