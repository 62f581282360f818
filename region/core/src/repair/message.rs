//! What target and source of a repair say to each other, and nodes of one region that lead different shards of it; and its bytes: a
//! version, then postcard.
//!
//! Every message fits one answer between nodes: the largest are the digests of [`super::PARTITIONS_MAX`] partitions
//! and a chunk of rows (RES-1). Any bytes are a message or an error.

use bytes::Bytes;
use meridian_types::{BucketId, Lsn, RepairGoal, Row, SetHash, ShardId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::survey::Survey;

/// The version of these messages.
pub const REPAIR_MESSAGE_VERSION: u8 = 1;

/// From the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Where the source's shard stands; needs no session.
    Survey {
        /// The shard.
        shard: ShardId,
    },
    /// Whether the source's log still has what comes behind a position; needs no session.
    Reach {
        /// The shard.
        shard: ShardId,
        /// The position.
        after: Lsn,
    },
    /// Keys of the bucket that the source's own log removed behind a position; needs no session.
    Removals {
        /// The shard.
        shard: ShardId,
        /// The bucket.
        bucket: BucketId,
        /// The position.
        after: Lsn,
    },
    /// Begins a session: pins the shard's state.
    Open {
        /// The shard.
        shard: ShardId,
        /// The bucket.
        bucket: BucketId,
    },
    /// Hashes of the next rows.
    Hashes {
        /// The session.
        session: u64,
        /// Behind this row key.
        after: Bytes,
        /// The partitions whose rows are wanted, a bit each.
        differing: Bytes,
    },
    /// The rows themselves.
    Rows {
        /// The session.
        session: u64,
        /// Behind this row key.
        after: Bytes,
        /// Up to this one; to the end without.
        up_to: Option<Bytes>,
        /// By these hashes.
        hashes: Hashes,
    },
    /// Ends the session.
    Close {
        /// The session.
        session: u64,
    },
    /// How far the logs of the shards that a node leads are needed by nobody any more: asked by those of its own region that
    /// follow it; needs no session.
    Floors,
    /// Up to which position the states of shards that a node leads are everything: asked by a node of its own region that reads them.
    Sights {
        /// The bucket.
        bucket: BucketId,
        /// The shards.
        shards: Vec<ShardId>,
        /// Whether everything that was acknowledged is meant, or how stale it is will do.
        strong: bool,
    },
    /// What a node of the leader's own region has read is to have its copies.
    Settled {
        /// The bucket.
        bucket: BucketId,
        /// What was read of each shard.
        read: Vec<(ShardId, Lsn)>,
    },
}

/// From the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// Where the shard stands.
    Survey(Survey),
    /// The oldest entry the log still has, if that is behind what was asked for.
    Reach {
        /// The oldest entry.
        trimmed_to: Option<Lsn>,
    },
    /// Some removals.
    Removals {
        /// The keys.
        keys: Vec<Bytes>,
        /// Everything up to here was looked at.
        reached: Lsn,
        /// Whether there is more behind it.
        more: bool,
    },
    /// What was asked for is no longer in the log.
    Forgotten,
    /// The session is open.
    Opened {
        /// Its number.
        session: u64,
        /// What is pinned.
        pinned: Pinned,
    },
    /// Of rows in the partitions asked for, in key order.
    Hashes {
        /// One per row.
        hashes: Hashes,
        /// Every row up to here was looked at; the last one without.
        up_to: Option<Bytes>,
    },
    /// Rows that were asked for, in key order.
    Rows {
        /// The rows.
        rows: Vec<Row>,
        /// Every row up to here was looked at; all that were asked for without.
        up_to: Option<Bytes>,
    },
    /// The session is closed.
    Closed,
    /// Of each shard that the node leads, up to where nobody needs its log.
    Floors(Vec<(ShardId, Lsn)>),
    /// Of each shard: up to where its state is everything, and how many milliseconds stale it is at most, if that is known.
    Sights(Vec<(ShardId, Lsn, Option<u64>)>),
    /// It has.
    Settled,
}

/// A state that stands still, as its source sums it up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// What the rows must add up to.
    pub goal: RepairGoal,
    /// How many rows there are.
    pub rows: u64,
    /// What row hashes are salted with.
    pub salt: u64,
    /// One per partition.
    pub digests: Digests,
}

/// Hashes of rows, 8 bytes each.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hashes(Bytes);

/// Digests of partitions, 16 bytes each.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digests(Bytes);

/// The bytes are no message of a version this node knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are no message of a repair in a version this node knows")]
pub struct MessageError;

impl FromIterator<u64> for Hashes {
    fn from_iter<I: IntoIterator<Item = u64>>(hashes: I) -> Hashes {
        Hashes(hashes.into_iter().flat_map(u64::to_le_bytes).collect())
    }
}

impl Hashes {
    /// One by one.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        self.0.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes))
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.0.len() / 8
    }
}

impl FromIterator<SetHash> for Digests {
    fn from_iter<I: IntoIterator<Item = SetHash>>(digests: I) -> Digests {
        Digests(digests.into_iter().flat_map(|digest| digest.0.to_le_bytes()).collect())
    }
}

impl Digests {
    /// One by one.
    pub fn iter(&self) -> impl Iterator<Item = SetHash> {
        self.0.as_chunks().0.iter().map(|bytes| SetHash(u128::from_le_bytes(*bytes)))
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.0.len() / 16
    }
}

impl Ask {
    /// As bytes.
    pub fn encode(&self) -> Bytes {
        encode(self)
    }

    /// Reads it back.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn decode(bytes: &[u8]) -> Result<Ask, MessageError> {
        decode(bytes)
    }

    /// The session it belongs to.
    pub fn session(&self) -> Option<u64> {
        match self {
            Ask::Survey { .. }
            | Ask::Reach { .. }
            | Ask::Removals { .. }
            | Ask::Open { .. }
            | Ask::Floors
            | Ask::Sights { .. }
            | Ask::Settled { .. } => None,
            Ask::Hashes { session, .. } | Ask::Rows { session, .. } | Ask::Close { session } => Some(*session),
        }
    }
}

impl Told {
    /// As bytes.
    pub fn encode(&self) -> Bytes {
        encode(self)
    }

    /// Reads it back.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn decode(bytes: &[u8]) -> Result<Told, MessageError> {
        decode(bytes)
    }
}

fn encode(message: &impl Serialize) -> Bytes {
    // Serialising plain values into a growing vector has no way to fail.
    postcard::to_extend(message, vec![REPAIR_MESSAGE_VERSION]).map(Bytes::from).unwrap_or_default()
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, MessageError> {
    match bytes.split_first() {
        Some((&REPAIR_MESSAGE_VERSION, body)) => postcard::from_bytes(body).map_err(|_| MessageError),
        _ => Err(MessageError),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_message_comes_back_as_it_went() {
        let (after, hashes) = (Bytes::from_static(b"\x02k"), Hashes::from_iter([1, u64::MAX]));
        for ask in [
            Ask::Survey { shard: ShardId(3) },
            Ask::Reach { shard: ShardId(3), after: Lsn(9) },
            Ask::Removals { shard: ShardId(3), bucket: BucketId(9), after: Lsn(9) },
            Ask::Open { shard: ShardId(3), bucket: BucketId(9) },
            Ask::Hashes { session: 7, after: after.clone(), differing: Bytes::from_static(&[0xff]) },
            Ask::Rows { session: 7, after: after.clone(), up_to: None, hashes: hashes.clone() },
            Ask::Close { session: 7 },
            Ask::Floors,
            Ask::Sights { bucket: BucketId(9), shards: vec![ShardId(3)], strong: true },
            Ask::Settled { bucket: BucketId(9), read: vec![(ShardId(3), Lsn(9))] },
        ] {
            assert_eq!(Ask::decode(&ask.encode()), Ok(ask));
        }
        let digests = Digests::from_iter([SetHash(5), SetHash(u128::MAX)]);
        assert_eq!((hashes.count(), digests.count()), (2, 2));
        let row = Row { key: after.clone(), value: Bytes::from_static(b"v") };
        for told in [
            Told::Survey(Survey::default()),
            Told::Floors(vec![(ShardId(3), Lsn(9))]),
            Told::Sights(vec![(ShardId(3), Lsn(9), None)]),
            Told::Settled,
            Told::Reach { trimmed_to: Some(Lsn(9)) },
            Told::Removals { keys: vec![after.clone()], reached: Lsn(9), more: true },
            Told::Forgotten,
            Told::Opened { session: 7, pinned: Pinned { goal: RepairGoal::default(), rows: 9, salt: 4, digests } },
            Told::Hashes { hashes, up_to: Some(after.clone()) },
            Told::Rows { rows: vec![row], up_to: Some(after) },
            Told::Closed,
        ] {
            assert_eq!(Told::decode(&told.encode()), Ok(told));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let bytes = [&[REPAIR_MESSAGE_VERSION], &bytes[..]].concat();
            let _ = (Ask::decode(&bytes), Told::decode(&bytes));
        }
    }
}
