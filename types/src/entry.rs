//! The log entry of a shard's group: encoded once by the leader that proposes it (design 3).
//!
//! These bytes are what the write-ahead log stores, what the group replicates, what the replicator
//! ships, and what the other region applies. Layout, little-endian:
//!
//! ```text
//! 0        1      2        4        8       16      24        40         48         56
//! | format | kind | origin | bucket | epoch | hlc   | client  | sequence | lowest   | body …
//! |   u8   |  u8  |  u16   |  u32   |  u64  | u64   |  u128   |   u64    |   u64    |
//! ```
//!
//! The fixed header lets the shipper decide with no decoding. The body is postcard ([`Body`]) except
//! for frames, whose body is the [`crate::frame`] as it came over the wire.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::id::{BucketId, ClientId, RegionId};
use crate::key::{Key, Value};
use crate::position::{Epoch, Hlc, Positions};
use crate::repair::RepairStep;
use crate::request::{RequestId, Write};

/// The first byte of every entry.
pub const ENTRY_FORMAT: u8 = 1;

/// Bytes before the body.
pub const HEADER_BYTES: usize = 56;

/// Offset of the timestamp within the header.
const HLC_AT: usize = 16;

/// The most bytes one entry may have: a multi-put at its bound with room for its framing.
pub const ENTRY_BYTES_MAX: usize = 4 << 20;

/// What an entry is, readable without decoding its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A client's write. Shipped to the bucket's other regions, as are `Expire` and `Seal`.
    Write,
    /// Keys whose time had come, as the leader saw it.
    Expire,
    /// A frame of another region's entries. Never shipped on (no echo).
    Frame,
    /// Refuse lower epochs of a bucket from here on (FEN-2).
    Fence,
    /// Remove what a deleted bucket left behind. Each region does it by itself.
    DropBucket,
    /// Forget clients that have been silent for long.
    ExpireClients,
    /// The end of an epoch of a bucket in this shard: its primary's last entry of it. Shipped.
    Seal,
    /// A step of making a bucket equal to another region's. Each region does it by itself.
    Repair,
    /// In an active-active bucket that crosses: this region orders nothing more, or goes on. Each region does it by itself.
    Stop,
    /// In an active-active bucket, the end of an epoch at whose end every region stands at the same place: the next one begins. Each
    /// region does it by itself.
    Raise,
    /// In an active-active bucket that loses a region: this region orders nothing more, and takes in nothing more of that one. Each
    /// region does it by itself.
    Part,
}

impl Kind {
    const ALL: [Kind; 11] = [
        Kind::Write,
        Kind::Expire,
        Kind::Frame,
        Kind::Fence,
        Kind::DropBucket,
        Kind::ExpireClients,
        Kind::Seal,
        Kind::Repair,
        Kind::Stop,
        Kind::Raise,
        Kind::Part,
    ];

    fn tag(self) -> u8 {
        match self {
            Kind::Write => 1,
            Kind::Expire => 2,
            Kind::Frame => 3,
            Kind::Fence => 4,
            Kind::DropBucket => 5,
            Kind::ExpireClients => 6,
            Kind::Seal => 7,
            Kind::Repair => 8,
            Kind::Stop => 9,
            Kind::Raise => 10,
            Kind::Part => 11,
        }
    }

    /// Whether entries of this kind belong to a bucket's history and are shipped to its other regions.
    pub fn is_shipped(self) -> bool {
        matches!(self, Kind::Write | Kind::Expire | Kind::Seal)
    }
}

/// The fixed part of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// The region whose leader proposed it.
    pub origin: RegionId,
    /// The bucket it is about; 0 for frames and client expiry.
    pub bucket: BucketId,
    /// The bucket's epoch it was proposed under.
    pub epoch: Epoch,
    /// Its timestamp: strictly rising along the origin's log.
    pub hlc: Hlc,
    /// The client's request, for at-most-once.
    pub id: RequestId,
    /// Results of this client below this sequence may be forgotten.
    pub lowest_outstanding: u64,
}

/// The body of an entry that is not a frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// Of [`Kind::Write`].
    Write(WriteBody),
    /// Of [`Kind::Expire`]: keys with the expiry that was due; one that has changed since stays.
    Expire {
        /// Keys and their expiry in milliseconds since 1970.
        due: Vec<(Key, u64)>,
    },
    /// Of [`Kind::Fence`].
    Fence,
    /// Of [`Kind::DropBucket`].
    DropBucket,
    /// Of [`Kind::ExpireClients`]: forget those silent since before this time.
    ExpireClients {
        /// The time.
        before: Hlc,
    },
    /// Of [`Kind::Seal`]: the header's epoch is over.
    Seal {
        /// The epoch in force from here on; greater than the header's.
        next: Epoch,
        /// After a failover: what the sealed epoch came to. A replica that has less of it, or more, is not on this
        /// history and must be repaired. Empty when the primary itself seals: then the order of its lane says it.
        after: Positions,
    },
    /// Of [`Kind::Repair`].
    Repair(RepairStep),
    /// Of [`Kind::Stop`]: own entries of the header's epoch are void from here on, or count again.
    Stop {
        /// Of a stop, the metadata index of its crossing; of its end, that of a copy in which there was none any more.
        index: u64,
        /// Whether it stops.
        stops: bool,
    },
    /// Of [`Kind::Raise`]: the header's epoch is over here, if it stands as is said.
    Raise {
        /// The crossing for which this region stopped.
        index: u64,
        /// The epoch in force from here on: the one after the header's.
        next: Epoch,
        /// What the header's epoch came to.
        after: Positions,
    },
    /// Of [`Kind::Part`]: a stop, from which on another region's entries of the header's epoch wait.
    Part {
        /// The metadata index of its crossing. It ends as a stop does.
        index: u64,
        /// The region that is lost.
        from: RegionId,
    },
}

/// A client's write as the leader ordered it: relative times made absolute, so that every replica decides alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteBody {
    /// In a bucket with a primary. `Write`'s `ttl_ms` counts from the entry's own timestamp.
    Plain(Write),
    /// Active-active: set the register.
    Register {
        /// The key.
        key: Key,
        /// Its value.
        value: Value,
        /// When it expires, in milliseconds since 1970.
        expires_at_ms: Option<u64>,
    },
    /// Active-active: add to the counter, as actor = origin region.
    Counter {
        /// The key.
        key: Key,
        /// What to add; may be negative.
        by: i64,
    },
    /// Active-active: remove the register, and from the counter what was observed.
    Remove {
        /// The key.
        key: Key,
        /// Per other actor, the counter's (increments, decrements) that the origin had seen: what it had
        /// not seen survives. The origin's own are known to every replica from the order of its entries.
        counter: Vec<(RegionId, u64, u64)>,
    },
}

/// Why bytes are no entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Shorter than a header.
    #[error("the log entry has {0} bytes, fewer than its {HEADER_BYTES}-byte header")]
    Truncated(usize),
    /// Written by a newer version.
    #[error("the log entry has format {0}; this version reads format {ENTRY_FORMAT}")]
    UnknownFormat(u8),
    /// No such kind.
    #[error("the log entry has the unknown kind {0}")]
    UnknownKind(u8),
    /// The body does not decode as its kind.
    #[error("the body of a log entry of kind {0:?} is damaged")]
    DamagedBody(Kind),
}

impl Header {
    /// Encodes an entry with this header and that body. The only encoder; runs once per entry, at the proposing leader.
    pub fn encode(&self, body: &Body) -> Bytes {
        let mut bytes = self.begin(64);
        // Serialising into a growing vector has no way to fail for these types.
        let encoded = postcard::to_allocvec(body).unwrap_or_default();
        bytes.extend_from_slice(&encoded);
        bytes.freeze()
    }

    /// Encodes an entry of [`Kind::Frame`]: the frame goes in as it came.
    pub fn encode_frame(&self, frame: &[u8]) -> Bytes {
        assert!(self.kind == Kind::Frame, "only frames carry frames");
        let mut bytes = self.begin(frame.len());
        bytes.extend_from_slice(frame);
        bytes.freeze()
    }

    fn begin(&self, body_bytes: usize) -> BytesMut {
        let mut bytes = BytesMut::with_capacity(HEADER_BYTES + body_bytes);
        bytes.put_u8(ENTRY_FORMAT);
        bytes.put_u8(self.kind.tag());
        bytes.put_u16_le(self.origin.0);
        bytes.put_u32_le(self.bucket.0);
        bytes.put_u64_le(self.epoch.0);
        bytes.put_u64_le(self.hlc.0);
        bytes.put_u128_le(self.id.client.0);
        bytes.put_u64_le(self.id.sequence);
        bytes.put_u64_le(self.lowest_outstanding);
        bytes
    }

    /// Reads the header of an encoded entry.
    ///
    /// # Errors
    /// [`EntryError`] when the bytes are no entry of a format this version knows.
    pub fn decode(entry: &[u8]) -> Result<Header, EntryError> {
        let Some(header) = entry.first_chunk::<HEADER_BYTES>() else {
            return Err(EntryError::Truncated(entry.len()));
        };
        if header[0] != ENTRY_FORMAT {
            return Err(EntryError::UnknownFormat(header[0]));
        }
        let kind =
            Kind::ALL.into_iter().find(|kind| kind.tag() == header[1]).ok_or(EntryError::UnknownKind(header[1]))?;
        Ok(Header {
            kind,
            origin: RegionId(u16::from_le_bytes(array(header, 2))),
            bucket: BucketId(u32::from_le_bytes(array(header, 4))),
            epoch: Epoch(u64::from_le_bytes(array(header, 8))),
            hlc: Hlc(u64::from_le_bytes(array(header, HLC_AT))),
            id: RequestId {
                client: ClientId(u128::from_le_bytes(array(header, 24))),
                sequence: u64::from_le_bytes(array(header, 40)),
            },
            lowest_outstanding: u64::from_le_bytes(array(header, 48)),
        })
    }

    /// Reads the body of an encoded entry that is not a frame.
    ///
    /// # Errors
    /// [`EntryError::DamagedBody`] when it doesn't decode as the header's kind.
    pub fn decode_body(&self, entry: &[u8]) -> Result<Body, EntryError> {
        let damaged = || EntryError::DamagedBody(self.kind);
        let body: Body = postcard::from_bytes(entry.get(HEADER_BYTES..).unwrap_or_default()).map_err(|_| damaged())?;
        let fits = match &body {
            Body::Write(_) => self.kind == Kind::Write,
            Body::Expire { .. } => self.kind == Kind::Expire,
            Body::Fence => self.kind == Kind::Fence,
            Body::DropBucket => self.kind == Kind::DropBucket,
            Body::ExpireClients { .. } => self.kind == Kind::ExpireClients,
            Body::Seal { .. } => self.kind == Kind::Seal,
            Body::Repair(_) => self.kind == Kind::Repair,
            Body::Stop { .. } => self.kind == Kind::Stop,
            Body::Raise { .. } => self.kind == Kind::Raise,
            Body::Part { .. } => self.kind == Kind::Part,
        };
        if fits { Ok(body) } else { Err(damaged()) }
    }
}

/// The first key that an encoded write or expiry is about, read without copying the values behind it. `None` of every other entry,
/// and of bytes that are none.
pub fn first_key(entry: &[u8]) -> Option<&[u8]> {
    let header = Header::decode(entry).ok()?;
    let body = &entry[HEADER_BYTES..];
    // As postcard lays them out: the number of each enum's variant, then a list's length if there is one, then the key.
    let (variant, rest): (u32, _) = postcard::take_from_bytes(body).ok()?;
    let key = match (header.kind, variant) {
        (Kind::Write, 0) => match postcard::take_from_bytes::<u32>(rest).ok()? {
            (0, write) => match postcard::take_from_bytes::<u32>(write).ok()? {
                (MULTI_PUT, items) => first_of(items)?,
                (_, key) => key,
            },
            (_, key) => key,
        },
        (Kind::Expire, 1) => first_of(rest)?,
        _ => return None,
    };
    postcard::take_from_bytes(key).ok().map(|(key, _)| key)
}

/// The number of [`Write::MultiPut`] among the variants: part of the disk format, as all of them are.
const MULTI_PUT: u32 = 6;

/// What is behind the length of a list that is not empty.
fn first_of(list: &[u8]) -> Option<&[u8]> {
    let (length, items): (u32, _) = postcard::take_from_bytes(list).ok()?;
    (length > 0).then_some(items)
}

/// Puts the timestamp into an encoded entry. An entry is encoded before its place in the log is known and
/// stamped under the lock that orders it, so that the lock is not held while a large value is copied.
/// Bytes that are no entry come back as they are.
#[must_use]
pub fn stamp(entry: Bytes, hlc: Hlc) -> Bytes {
    if entry.len() < HEADER_BYTES {
        return entry;
    }
    // Whoever just encoded it owns the only handle: then this copies nothing.
    let mut bytes = entry.try_into_mut().unwrap_or_else(|shared| BytesMut::from(shared.as_ref()));
    bytes[HLC_AT..HLC_AT + 8].copy_from_slice(&hlc.0.to_le_bytes());
    bytes.freeze()
}

/// `N` bytes of the header from `start`; in bounds by construction of the layout above.
fn array<const N: usize>(header: &[u8; HEADER_BYTES], start: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&header[start..start + N]);
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(kind: Kind) -> Header {
        Header {
            kind,
            origin: RegionId(2),
            bucket: BucketId(7),
            epoch: Epoch(3),
            hlc: Hlc::from_millis(1_700_000_000_000),
            id: RequestId { client: ClientId(99), sequence: 5 },
            lowest_outstanding: 4,
        }
    }

    #[test]
    fn an_entry_comes_back_as_it_went() -> Result<(), Box<dyn std::error::Error>> {
        let body = Body::Write(WriteBody::Plain(Write::Increment { key: Key::new("k")?, by: -3 }));
        let bytes = header(Kind::Write).encode(&body);
        let decoded = Header::decode(&bytes)?;
        assert_eq!(decoded, header(Kind::Write));
        assert_eq!(decoded.decode_body(&bytes)?, body);
        Ok(())
    }

    #[test]
    fn a_stamp_changes_the_timestamp_and_nothing_else() -> Result<(), EntryError> {
        let bytes = header(Kind::Fence).encode(&Body::Fence);
        let stamped = stamp(bytes, Hlc(42));
        assert_eq!(stamped, Header { hlc: Hlc(42), ..header(Kind::Fence) }.encode(&Body::Fence));
        Ok(())
    }

    fn key(name: &str) -> Key {
        Key::new(name.to_owned()).unwrap()
    }

    fn keyed(name: &str) -> Vec<WriteBody> {
        let items = vec![(key(name), Value::default()), (key("second"), Value::default())];
        let (key, value, ttl_ms) = (|| key(name), Value::default, Some(7));
        vec![
            WriteBody::Plain(Write::Put { key: key(), value: value(), ttl_ms }),
            WriteBody::Plain(Write::Delete { key: key() }),
            WriteBody::Plain(Write::Append { key: key(), suffix: value() }),
            WriteBody::Plain(Write::Increment { key: key(), by: -1 }),
            WriteBody::Plain(Write::CompareAndSet { key: key(), expected: None, value: value(), ttl_ms }),
            WriteBody::Plain(Write::PutIfAbsent { key: key(), value: value(), ttl_ms }),
            WriteBody::Plain(Write::MultiPut { items }),
            WriteBody::Register { key: key(), value: value(), expires_at_ms: None },
            WriteBody::Counter { key: key(), by: 3 },
            WriteBody::Remove { key: key(), counter: vec![(RegionId(1), 2, 3)] },
        ]
    }

    #[test]
    fn the_first_key_of_every_entry_that_has_one_is_found_where_it_was_put() {
        for name in ["k", &"long".repeat(300)] {
            for write in keyed(name) {
                let bytes = header(Kind::Write).encode(&Body::Write(write.clone()));
                assert_eq!(first_key(&bytes), Some(name.as_bytes()), "{write:?}");
            }
            let bytes = header(Kind::Expire).encode(&Body::Expire { due: vec![(key(name), 9), (key("b"), 8)] });
            assert_eq!(first_key(&bytes), Some(name.as_bytes()));
        }
        let seal = Body::Seal { next: Epoch(2), after: Positions::default() };
        assert_eq!(first_key(&header(Kind::Seal).encode(&seal)), None);
        assert_eq!(first_key(&header(Kind::Expire).encode(&Body::Expire { due: vec![] })), None);
        assert_eq!(first_key(b"none"), None);
    }

    #[test]
    fn a_body_of_another_kind_is_refused() -> Result<(), EntryError> {
        let bytes = header(Kind::Fence).encode(&Body::DropBucket);
        assert_eq!(Header::decode(&bytes)?.decode_body(&bytes), Err(EntryError::DamagedBody(Kind::Fence)));
        Ok(())
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_entry_or_a_clear_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = first_key(&bytes);
            if let Ok(header) = Header::decode(&bytes) {
                let _ = header.decode_body(&bytes);
            }
        }

        #[test]
        fn a_mutated_entry_never_panics(at in 0usize..120, to in any::<u8>()) {
            let body = Body::Write(WriteBody::Plain(Write::MultiPut { items: vec![] }));
            let mut bytes = header(Kind::Write).encode(&body).to_vec();
            let at = at % bytes.len();
            bytes[at] = to;
            let _ = first_key(&bytes);
            if let Ok(header) = Header::decode(&bytes) {
                let _ = header.decode_body(&bytes);
            }
        }
    }
}
