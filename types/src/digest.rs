//! Set-hash digests: what proves two replicas equal, kept up incrementally with every write.

use std::fmt;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::position::{Hlc, Lsn, Positions};

/// A hash of a set of (key, record) pairs: the wrapping sum of each pair's 128-bit xxh3.
///
/// Order-independent, so replicas that apply in different interleavings agree; removable, so an
/// overwrite costs one subtraction. It finds accidents, not adversaries: it is no signature.
#[derive(Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SetHash(pub u128);

impl SetHash {
    /// Puts a pair into the set.
    pub fn add(&mut self, key: &[u8], record: &[u8]) {
        self.0 = self.0.wrapping_add(Self::of_pair(key, record));
    }

    /// Takes a pair out that was put in before.
    pub fn remove(&mut self, key: &[u8], record: &[u8]) {
        self.0 = self.0.wrapping_sub(Self::of_pair(key, record));
    }

    /// The set of just this pair.
    pub fn of(key: &[u8], record: &[u8]) -> SetHash {
        SetHash(Self::of_pair(key, record))
    }

    /// Joins a disjoint set, such as another shard's.
    pub fn merge(&mut self, other: SetHash) {
        self.0 = self.0.wrapping_add(other.0);
    }

    /// The length of the key is hashed too, so that no pair looks like another split differently. The
    /// record is hashed by itself first: values are large, and this needs no copy of them.
    fn of_pair(key: &[u8], record: &[u8]) -> u128 {
        let mut pair = Vec::with_capacity(8 + 16 + key.len());
        pair.extend_from_slice(&(key.len() as u64).to_le_bytes());
        pair.extend_from_slice(&xxh3_128(record).to_le_bytes());
        pair.extend_from_slice(key);
        xxh3_128(&pair)
    }
}

impl fmt::Display for SetHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for SetHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SetHash({self})")
    }
}

/// Everything that must be equal in two replicas of one (bucket, shard) that have seen the same writes.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BucketDigest {
    /// What has been applied, per origin region.
    pub positions: Positions,
    /// The hash of every live record and tombstone.
    pub hash: SetHash,
    /// Live keys.
    pub keys: u64,
    /// Bytes of live keys and values.
    pub bytes: u64,
    /// Writes ever applied: the difference between two replicas is the lag. Behind a merge of two, which can't tell what both had seen
    /// from what each of them had alone, a lower bound.
    pub operations: u64,
    /// Bytes of entries ever applied, likewise.
    pub operation_bytes: u64,
    /// The greatest timestamp applied.
    pub hlc: Hlc,
    /// The last delete or expiry: an absent key may have been removed as late as this.
    pub last_removal: Lsn,
}

impl BucketDigest {
    /// `Some(true)` when both have seen the same writes and are equal, `Some(false)` when they have
    /// and are not: divergence. `None` when their inputs differ, which proves nothing.
    pub fn agrees_with(&self, other: &BucketDigest) -> Option<bool> {
        (self.positions == other.positions).then_some(self.hash == other.hash && self.keys == other.keys)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_order_of_writes_does_not_matter_and_a_removed_pair_leaves_no_trace(
            pairs in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..8), prop::collection::vec(any::<u8>(), 0..8)), 1..20)
        ) {
            let mut forward = SetHash::default();
            let mut backward = SetHash::default();
            pairs.iter().for_each(|(key, record)| forward.add(key, record));
            pairs.iter().rev().for_each(|(key, record)| backward.add(key, record));
            prop_assert_eq!(forward, backward);
            pairs.iter().for_each(|(key, record)| forward.remove(key, record));
            prop_assert_eq!(forward, SetHash::default());
        }
    }

    #[test]
    fn key_and_record_do_not_run_into_each_other() {
        let (mut ab_c, mut a_bc) = (SetHash::default(), SetHash::default());
        ab_c.add(b"ab", b"c");
        a_bc.add(b"a", b"bc");
        assert_ne!(ab_c, a_bc);
    }
}
