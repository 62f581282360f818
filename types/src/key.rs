//! Keys and values: their bounds, and which shard a key belongs to.

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
    fn the_shard_of_a_key_is_part_of_the_disk_format() -> Result<(), Refusal> {
        let shards: Vec<u16> = ["a", "b", "order/17", "café"]
            .iter()
            .map(|k| Ok(Key::new(*k)?.shard(BucketId(3), 16).0))
            .collect::<Result<_, Refusal>>()?;
        assert_eq!(shards, [12, 8, 14, 9]);
        Ok(())
    }
}
