//! One record of the write-ahead log. Layout, little-endian; records begin at multiples of 8:
//!
//! ```text
//! 0       2        3      4        8       12      16      24      32     40
//! | magic | format | kind | length | crc32c | group | batch | index | term | payload … | zeros to 8
//! |  u16  |   u8   |  u8  |  u32   |  u32   |  u32  |  u64  |  u64  | u64  |
//! ```
//!
//! The checksum covers the id of the segment first, then everything but itself: a record that a recycled
//! file still holds from its former life never passes for a new one. `batch` counts syncs: a record of
//! batch n + 1 was written only after batch n was on disk. That is what tells damage from a torn tail
//! (DUR-3, see `recovery`). The highest bit marks the first record of its batch.

use meridian_types::GroupId;

/// Bytes before the payload.
pub(crate) const HEADER_BYTES: usize = 40;

/// The most payload bytes of one record: the largest entry of `types` with ample room for a frame around it.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 6 << 20;

const MAGIC: u16 = 0x574d;
const FORMAT: u8 = 1;
const FIRST_OF_BATCH: u64 = 1 << 63;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An entry with the application's payload.
    Normal,
    /// An entry without payload: a new leader's first.
    Blank,
    /// An entry with the group's members.
    Membership,
    /// The group's vote.
    Vote,
    /// Entries up to here are committed. Written when something else is, not on its own.
    Committed,
    /// Entries after `index` are void.
    Truncate,
    /// Entries up to `index` are no longer needed.
    Purge,
    /// Nothing follows in this segment; the log goes on in the next.
    Seal,
    /// Everything before is on disk: lets recovery tell a damaged last batch from a torn one.
    Synced,
}

impl Kind {
    pub(crate) const ALL: [Kind; 9] = [
        Kind::Normal,
        Kind::Blank,
        Kind::Membership,
        Kind::Vote,
        Kind::Committed,
        Kind::Truncate,
        Kind::Purge,
        Kind::Seal,
        Kind::Synced,
    ];

    fn tag(self) -> u8 {
        match self {
            Kind::Normal => 1,
            Kind::Blank => 2,
            Kind::Membership => 3,
            Kind::Vote => 4,
            Kind::Committed => 5,
            Kind::Truncate => 6,
            Kind::Purge => 7,
            Kind::Seal => 8,
            Kind::Synced => 9,
        }
    }

    /// Whether it takes a position in its group's log.
    pub(crate) fn is_entry(self) -> bool {
        matches!(self, Kind::Normal | Kind::Blank | Kind::Membership)
    }
}

/// The fixed part of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) group: GroupId,
    /// Number of the sync that made it durable.
    pub(crate) batch: u64,
    /// Whether it is the first record of that batch.
    pub(crate) first: bool,
    pub(crate) index: u64,
    pub(crate) term: u64,
    /// Bytes of payload.
    pub(crate) length: usize,
}

/// Why bytes are no record. Recovery treats all alike; the words are for the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Damage {
    #[error("no record begins here")]
    NoRecord,
    #[error("unknown record format {0}")]
    Format(u8),
    #[error("unknown record kind {0}")]
    Kind(u8),
    #[error("a record claims {0} bytes of payload")]
    Length(usize),
    #[error("a record claims a position or batch that no log reaches")]
    Position,
    #[error("checksum mismatch")]
    Checksum,
}

/// Whether a record might begin with these bytes: the cheap test of a search.
pub(crate) fn may_begin(bytes: &[u8]) -> bool {
    bytes.len() >= 2 && bytes[..2] == MAGIC.to_le_bytes()
}

/// Bytes a record with so much payload takes on disk.
pub(crate) fn size(payload: usize) -> usize {
    (HEADER_BYTES + payload).next_multiple_of(8)
}

impl Header {
    /// Appends the record to `out`.
    pub(crate) fn encode(&self, segment: u64, payload: &[u8], out: &mut Vec<u8>) {
        debug_assert_eq!(self.length, payload.len());
        let start = out.len();
        let batch = self.batch | if self.first { FIRST_OF_BATCH } else { 0 };
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.push(FORMAT);
        out.push(self.kind.tag());
        out.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.group.0.to_le_bytes());
        out.extend_from_slice(&batch.to_le_bytes());
        out.extend_from_slice(&self.index.to_le_bytes());
        out.extend_from_slice(&self.term.to_le_bytes());
        let crc = checksum(segment, &out[start..start + HEADER_BYTES], payload);
        out[start + 8..start + 12].copy_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(payload);
        out.resize(start + size(payload.len()), 0);
    }

    /// Reads the header at the beginning of `bytes`; the checksum can only be verified with the payload.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Header, Damage> {
        let header = bytes.first_chunk::<HEADER_BYTES>().ok_or(Damage::NoRecord)?;
        if u16::from_le_bytes(array(header, 0)) != MAGIC {
            return Err(Damage::NoRecord);
        }
        if header[2] != FORMAT {
            return Err(Damage::Format(header[2]));
        }
        let kind = Kind::ALL.into_iter().find(|kind| kind.tag() == header[3]).ok_or(Damage::Kind(header[3]))?;
        let length = u32::from_le_bytes(array(header, 4)) as usize;
        if length > PAYLOAD_BYTES_MAX {
            return Err(Damage::Length(length));
        }
        let batch = u64::from_le_bytes(array(header, 16));
        let index = u64::from_le_bytes(array(header, 24));
        // What follows is counted from here.
        if index == u64::MAX || batch & !FIRST_OF_BATCH == !FIRST_OF_BATCH {
            return Err(Damage::Position);
        }
        Ok(Header {
            kind,
            group: GroupId(u32::from_le_bytes(array(header, 12))),
            batch: batch & !FIRST_OF_BATCH,
            first: batch & FIRST_OF_BATCH != 0,
            index,
            term: u64::from_le_bytes(array(header, 32)),
            length,
        })
    }
}

/// Checks the record at the beginning of `bytes`, which must hold all of it, and returns its payload.
pub(crate) fn verify<'a>(segment: u64, header: &Header, bytes: &'a [u8]) -> Result<&'a [u8], Damage> {
    let record = bytes.get(..HEADER_BYTES + header.length).ok_or(Damage::Length(header.length))?;
    let (head, payload) = record.split_at(HEADER_BYTES);
    let stored = u32::from_le_bytes(array(head, 8));
    if checksum(segment, head, payload) == stored { Ok(payload) } else { Err(Damage::Checksum) }
}

pub(crate) fn checksum(segment: u64, header: &[u8], payload: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&segment.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &header[..8]);
    let crc = crc32c::crc32c_append(crc, &header[12..]);
    crc32c::crc32c_append(crc, payload)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(kind: Kind, payload: &[u8]) -> Header {
        Header { kind, group: GroupId(7), batch: 3, first: true, index: 9, term: 2, length: payload.len() }
    }

    proptest! {
        #[test]
        fn a_record_reads_back_as_it_was_written(
            kind in prop::sample::select(&Kind::ALL[..]), payload in prop::collection::vec(any::<u8>(), 0..300), segment: u64
        ) {
            let mut bytes = Vec::new();
            header(kind, &payload).encode(segment, &payload, &mut bytes);
            prop_assert_eq!(bytes.len(), size(payload.len()));
            let read = Header::decode(&bytes)?;
            prop_assert_eq!(read, header(kind, &payload));
            prop_assert_eq!(verify(segment, &read, &bytes)?, &payload[..]);
            prop_assert!(verify(segment.wrapping_add(1), &read, &bytes).is_err(), "another segment's record");
        }

        #[test]
        fn a_changed_byte_is_always_noticed_and_never_panics(
            payload in prop::collection::vec(any::<u8>(), 0..100), at: prop::sample::Index, flip in 1u8..
        ) {
            let mut bytes = Vec::new();
            header(Kind::Normal, &payload).encode(1, &payload, &mut bytes);
            let at = at.index(HEADER_BYTES + payload.len());
            bytes[at] ^= flip;
            let accepted = Header::decode(&bytes).and_then(|read| verify(1, &read, &bytes).map(<[u8]>::to_vec));
            prop_assert!(accepted.is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(read) = Header::decode(&bytes) {
                let _ = verify(1, &read, &bytes);
            }
        }
    }
}
