//! Keys and values: their bounds, which shard a key belongs to, and how a report names one.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::id::{BucketId, ShardId};
use crate::refusal::{Refusal, RefusalKind};

/// The longest key, in bytes. Keys live in memory, in index blocks and in listings; S3 allows 1,024.
pub const KEY_BYTES_MAX: usize = 4096;

/// The largest single value, in bytes; larger things are objects, cut into parts of this size.
pub const VALUE_BYTES_MAX: usize = 1 << 20;

/// The most bytes of keys and values that one multi-put may carry: one log entry must stay a small multiple of a frame.
pub const MULTI_BYTES_MAX: usize = 2 << 20;

/// The most items in one multi-get or multi-put.
pub const MULTI_ITEMS_MAX: usize = 1024;

/// The most items that one page of a scan returns.
pub const SCAN_ITEMS_MAX: usize = 1000;

/// A key: 1 to [`KEY_BYTES_MAX`] bytes of any kind, ordered bytewise.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Bytes", into = "Bytes")]
pub struct Key(Bytes);

impl TryFrom<Bytes> for Key {
    type Error = Refusal;
    fn try_from(bytes: Bytes) -> Result<Key, Refusal> {
        Key::new(bytes)
    }
}

impl From<Key> for Bytes {
    fn from(key: Key) -> Bytes {
        key.0
    }
}

impl Key {
    /// Takes a key.
    ///
    /// # Errors
    /// [`RefusalKind::Invalid`] when it is empty or longer than [`KEY_BYTES_MAX`].
    pub fn new(bytes: impl Into<Bytes>) -> Result<Key, Refusal> {
        let bytes = bytes.into();
        match bytes.len() {
            0 => Err(Refusal::new(RefusalKind::Invalid, "a key must not be empty")),
            length if length > KEY_BYTES_MAX => Err(Refusal::new(
                RefusalKind::Invalid,
                format!("a key may have at most {KEY_BYTES_MAX} bytes; this one has {length}: use a shorter key"),
            )),
            _ => Ok(Key(bytes)),
        }
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// The shard of this key: `hash(bucket, key) mod shards` (xxh3, seeded with the bucket).
    /// The function is part of the disk format: it may never change.
    pub fn shard(&self, bucket: BucketId, shards: u16) -> ShardId {
        assert!(shards > 0, "a cluster has at least one shard");
        let hash = xxh3_64_with_seed(&self.0, u64::from(bucket.0));
        ShardId(u16::try_from(hash % u64::from(shards)).unwrap_or_default())
    }
}

/// The most bytes of a key that a report names it by: a person knows it again, and reports on many buckets stay small.
pub const KEY_START_BYTES_MAX: usize = 64;

/// How a key begins, for people to know it by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "(Bytes, bool)", into = "(Bytes, bool)")]
pub struct KeyStart {
    bytes: Bytes,
    cut: bool,
}

impl TryFrom<(Bytes, bool)> for KeyStart {
    type Error = Refusal;
    fn try_from((bytes, cut): (Bytes, bool)) -> Result<KeyStart, Refusal> {
        KeyStart::new(bytes, cut)
    }
}

impl From<KeyStart> for (Bytes, bool) {
    fn from(start: KeyStart) -> (Bytes, bool) {
        (start.bytes, start.cut)
    }
}

impl KeyStart {
    /// The start of a key, copied: it holds on to nothing else. `None` of no bytes, which are no key.
    pub fn of(key: &[u8]) -> Option<KeyStart> {
        let start = &key[..key.len().min(KEY_START_BYTES_MAX)];
        KeyStart::new(Bytes::copy_from_slice(start), start.len() < key.len()).ok()
    }

    /// Takes the start of a key, and whether the key goes on.
    ///
    /// # Errors
    /// [`RefusalKind::Invalid`] when it is empty or longer than [`KEY_START_BYTES_MAX`].
    pub fn new(bytes: impl Into<Bytes>, cut: bool) -> Result<KeyStart, Refusal> {
        let bytes = bytes.into();
        if bytes.is_empty() || bytes.len() > KEY_START_BYTES_MAX {
            let why = format!("the start of a key has 1 to {KEY_START_BYTES_MAX} bytes; this one has {}", bytes.len());
            return Err(Refusal::new(RefusalKind::Invalid, why));
        }
        Ok(KeyStart { bytes, cut })
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Whether the key goes on behind them.
    pub fn is_cut(&self) -> bool {
        self.cut
    }
}

/// A value: 0 to [`VALUE_BYTES_MAX`] bytes of any kind.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Bytes", into = "Bytes")]
pub struct Value(Bytes);

impl TryFrom<Bytes> for Value {
    type Error = Refusal;
    fn try_from(bytes: Bytes) -> Result<Value, Refusal> {
        Value::new(bytes)
    }
}

impl From<Value> for Bytes {
    fn from(value: Value) -> Bytes {
        value.0
    }
}

impl Value {
    /// Takes a value.
    ///
    /// # Errors
    /// [`RefusalKind::Invalid`] when it is larger than [`VALUE_BYTES_MAX`].
    pub fn new(bytes: impl Into<Bytes>) -> Result<Value, Refusal> {
        let bytes = bytes.into();
        if bytes.len() > VALUE_BYTES_MAX {
            return Err(Refusal::new(
                RefusalKind::Invalid,
                format!(
                    "a value may have at most {VALUE_BYTES_MAX} bytes; this one has {}: split it into parts",
                    bytes.len()
                ),
            ));
        }
        Ok(Value(bytes))
    }

    /// The value's bytes.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// Gives the bytes away.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_are_bounded() {
        assert!(Key::new("").is_err());
        assert!(Key::new(vec![0; KEY_BYTES_MAX]).is_ok());
        assert!(Key::new(vec![0; KEY_BYTES_MAX + 1]).is_err());
        assert!(Value::new("").is_ok());
        assert!(Value::new(vec![0; VALUE_BYTES_MAX + 1]).is_err());
    }

    #[test]
    fn a_long_key_is_named_by_its_start() {
        let start = |length: usize| KeyStart::of(&vec![7; length]).map(|it| (it.as_bytes().len(), it.is_cut()));
        assert_eq!(start(0), None);
        assert_eq!(start(KEY_START_BYTES_MAX), Some((KEY_START_BYTES_MAX, false)));
        assert_eq!(start(KEY_BYTES_MAX), Some((KEY_START_BYTES_MAX, true)));
        assert!(KeyStart::new(vec![7; KEY_START_BYTES_MAX + 1], true).is_err() && KeyStart::new("", true).is_err());
    }

    #[test]
    fn the_shard_of_a_key_is_part_of_the_disk_format() -> Result<(), Refusal> {
        let shards: Vec<u16> = ["a", "b", "order/17", "café"]
            .iter()
            .map(|k| Ok(Key::new(*k)?.shard(BucketId(3), 16).0))
            .collect::<Result<_, Refusal>>()?;
        assert_eq!(shards, [12, 8, 14, 9]);
        Ok(())
    }
}
