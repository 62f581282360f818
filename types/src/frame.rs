//! The frame: a run of one group's entries on its way to another region (design 6).
//!
//! Built by the shipper, carried by QUIC, proposed as it came by the receiving group's leader, and
//! opened by the shard state machine. Layout, little-endian:
//!
//! ```text
//! 0       4        6        8       10     11      12         20         28           36     44           48        52
//! | magic | format | source | shard | lane | flags | previous | last     | closed HLC | echo | raw length  | crc32c  | lz4 payload …
//! |  u32  |  u16   |  u16   |  u16  |  u8  |  u8   |   u64    |  u64     |    u64     | u64  |    u32      |  u32    |
//! ```
//!
//! The checksum covers everything but itself. Of the flags, the lowest says that the echo is tenured; the next one, that the u64 of [`Echo::index`] stands
//! before the payload. The payload, once decompressed, is the digest notes (u32 length, postcard) followed by entries (u64 LSN, u32 length,
//! bytes) in rising LSN order.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::digest::SetHash;
use crate::entry::ENTRY_BYTES_MAX;
use crate::id::{BucketId, RegionId, ShardId};
use crate::position::{Hlc, Lane, Lsn, Positions};

/// "MFR1", little-endian.
const MAGIC: u32 = u32::from_le_bytes(*b"MFR1");

/// The version of the layout above.
pub const FRAME_FORMAT: u16 = 1;

/// Bytes before the payload, and before the echo's index where there is one.
pub const FRAME_HEADER_BYTES: usize = 52;

/// Bytes of the echo's index.
const INDEX_BYTES: usize = 8;

/// Where the shipper closes a frame, in raw bytes of entries.
pub const FRAME_RAW_BYTES: usize = 1 << 20;

/// The most raw bytes a frame may claim: its bound plus one entry of the largest size plus notes.
/// Checked before anything is allocated (RES-1).
pub const FRAME_RAW_BYTES_MAX: usize = FRAME_RAW_BYTES + ENTRY_BYTES_MAX + (1 << 20);

/// The flag of a tenured echo.
const TENURED: u8 = 1;

/// The flag of an echo that names a metadata index. Set only then: an older release does not know it.
const INDEXED: u8 = 2;

/// Offset of the checksum within the header.
const CRC_AT: usize = 48;

/// What a frame says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The region whose log this is.
    pub source: RegionId,
    /// The shard whose log this is.
    pub shard: ShardId,
    /// The lane it travels in.
    pub lane: Lane,
    /// The position the receiver must be at: the `last` of the frame before.
    pub previous: Lsn,
    /// The position the receiver is at afterwards. Equal to `previous` for a heartbeat.
    pub last: Lsn,
    /// Every later entry of this lane has a greater timestamp; 0 when the frame makes no such promise.
    pub closed: Hlc,
    /// The newest probe of the receiver that had arrived when the source's log was read up to `last`
    /// *and `last` was everything this lane had*.
    pub echo: Echo,
    /// Bytes of the payload before compression.
    pub raw_length: u32,
}

/// A probe that comes back: the receiver is complete with what the source had when it sent that probe, measured by its own
/// clock alone (CON-3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Echo {
    /// The receiver's clock when it sent the probe, in milliseconds; 0 when there is nothing to say.
    pub probe: u64,
    /// By then the source had held its lease without a break for longer than any lease lasts: whoever holds one himself knows of
    /// every primary that was replaced before that. Else the source may be one of those, and complete with what no longer counts.
    pub tenured: bool,
    /// 0, or the metadata index as of which the lane had everything: the target was removed from a bucket then, and more of that does not
    /// come. Whoever has not heard as much may be taking part in something that goes on without it.
    pub index: u64,
}

/// The source's digest of one (bucket, shard) at a position, for the receiver to compare with its own
/// when it stands at the very same position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestNote {
    /// The bucket.
    pub bucket: BucketId,
    /// The inputs it covers.
    pub positions: Positions,
    /// The digest of these inputs.
    pub hash: SetHash,
    /// Live keys.
    pub keys: u64,
}

/// A frame taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it says about itself.
    pub header: FrameHeader,
    /// Digests to compare.
    pub notes: Vec<DigestNote>,
    /// Entries with their LSN in the source's log, rising, within `previous < lsn <= last`.
    pub entries: Vec<(Lsn, Bytes)>,
}

/// Why bytes are no frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Shorter than a header.
    #[error("the frame has {0} bytes, fewer than its {FRAME_HEADER_BYTES}-byte header")]
    Truncated(usize),
    /// No frame at all.
    #[error("the bytes do not start with a frame's magic number")]
    NotAFrame,
    /// Written by a newer version.
    #[error("the frame has format {0}; this version reads format {FRAME_FORMAT}")]
    UnknownFormat(u16),
    /// The checksum does not match.
    #[error("the frame's checksum does not match its bytes")]
    Checksum,
    /// It claims more than any frame may hold.
    #[error("the frame claims {0} raw bytes; at most {FRAME_RAW_BYTES_MAX} are allowed")]
    TooLarge(usize),
    /// The payload does not decompress to what the header says, or is not made of entries.
    #[error("the frame's payload is malformed: {0}")]
    Malformed(&'static str),
}

impl FrameHeader {
    /// Reads a frame's header and checks magic, format, bounds and, over the whole frame, the checksum.
    ///
    /// # Errors
    /// [`FrameError`] says what is wrong; nothing was decompressed.
    pub fn decode(frame: &[u8]) -> Result<FrameHeader, FrameError> {
        if frame.len() < FRAME_HEADER_BYTES {
            return Err(FrameError::Truncated(frame.len()));
        }
        let mut header = &frame[..FRAME_HEADER_BYTES];
        if header.get_u32_le() != MAGIC {
            return Err(FrameError::NotAFrame);
        }
        let format = header.get_u16_le();
        if format != FRAME_FORMAT {
            return Err(FrameError::UnknownFormat(format));
        }
        let source = RegionId(header.get_u16_le());
        let shard = ShardId(header.get_u16_le());
        let lane = header.get_u8();
        let flags = header.get_u8();
        let decoded = FrameHeader {
            source,
            shard,
            lane: Lane::from_tag(lane).ok_or(FrameError::Malformed("unknown lane"))?,
            previous: Lsn(header.get_u64_le()),
            last: Lsn(header.get_u64_le()),
            closed: Hlc(header.get_u64_le()),
            echo: Echo { probe: header.get_u64_le(), tenured: flags & TENURED != 0, index: index_of(frame, flags)? },
            raw_length: header.get_u32_le(),
        };
        if header.get_u32_le() != checksum(frame) {
            return Err(FrameError::Checksum);
        }
        if flags & !(TENURED | INDEXED) != 0 {
            return Err(FrameError::Malformed("unknown flags"));
        }
        if decoded.last < decoded.previous {
            return Err(FrameError::Malformed("it ends before it begins"));
        }
        if decoded.raw_length as usize > FRAME_RAW_BYTES_MAX {
            return Err(FrameError::TooLarge(decoded.raw_length as usize));
        }
        Ok(decoded)
    }
}

/// What an echo says of the metadata; 0 where it says nothing.
fn index_of(frame: &[u8], flags: u8) -> Result<u64, FrameError> {
    if flags & INDEXED == 0 {
        return Ok(0);
    }
    let index = frame.get(FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + INDEX_BYTES);
    index.map(|mut index| index.get_u64_le()).ok_or(FrameError::Truncated(frame.len()))
}

fn checksum(frame: &[u8]) -> u32 {
    let head = crc32c::crc32c(&frame[..CRC_AT]);
    crc32c::crc32c_append(head, &frame[CRC_AT + 4..])
}

/// Builds a frame. `header.raw_length` is filled in here.
/// Entries must be in rising LSN order within `previous < lsn <= last`, and may hold no more than
/// [`FRAME_RAW_BYTES_MAX`] together with the notes.
pub fn encode(mut header: FrameHeader, notes: &[DigestNote], entries: &[(Lsn, Bytes)]) -> Bytes {
    // Serialising plain values into a growing vector has no way to fail.
    let notes = if notes.is_empty() { Vec::new() } else { postcard::to_allocvec(notes).unwrap_or_default() };
    let raw_length = 4 + notes.len() + entries.iter().map(|(_, entry)| 12 + entry.len()).sum::<usize>();
    let mut raw = BytesMut::with_capacity(raw_length);
    raw.put_u32_le(u32::try_from(notes.len()).unwrap_or(u32::MAX));
    raw.extend_from_slice(&notes);
    for (lsn, entry) in entries {
        raw.put_u64_le(lsn.0);
        raw.put_u32_le(u32::try_from(entry.len()).unwrap_or(u32::MAX));
        raw.extend_from_slice(entry);
    }
    assert!(raw.len() <= FRAME_RAW_BYTES_MAX, "a frame of {} raw bytes is beyond its bound", raw.len());
    header.raw_length = u32::try_from(raw.len()).unwrap_or(u32::MAX);

    let payload = lz4_flex::block::compress(&raw);
    let mut frame = BytesMut::with_capacity(FRAME_HEADER_BYTES + payload.len());
    frame.put_u32_le(MAGIC);
    frame.put_u16_le(FRAME_FORMAT);
    frame.put_u16_le(header.source.0);
    frame.put_u16_le(header.shard.0);
    frame.put_u8(header.lane.tag());
    let tenured = if header.echo.tenured { TENURED } else { 0 };
    frame.put_u8(if header.echo.index > 0 { tenured | INDEXED } else { tenured });
    frame.put_u64_le(header.previous.0);
    frame.put_u64_le(header.last.0);
    frame.put_u64_le(header.closed.0);
    frame.put_u64_le(header.echo.probe);
    frame.put_u32_le(header.raw_length);
    frame.put_u32_le(0);
    if header.echo.index > 0 {
        frame.put_u64_le(header.echo.index);
    }
    frame.extend_from_slice(&payload);
    let crc = checksum(&frame).to_le_bytes();
    frame[CRC_AT..CRC_AT + 4].copy_from_slice(&crc);
    frame.freeze()
}

impl Frame {
    /// Opens a frame: checks everything, decompresses once, and slices the entries out without copying them.
    ///
    /// # Errors
    /// [`FrameError`] says what is wrong.
    pub fn decode(frame: &[u8]) -> Result<Frame, FrameError> {
        let header = FrameHeader::decode(frame)?;
        let payload = FRAME_HEADER_BYTES + if header.echo.index > 0 { INDEX_BYTES } else { 0 };
        let raw = lz4_flex::block::decompress(&frame[payload..], header.raw_length as usize)
            .map_err(|_| FrameError::Malformed("it does not decompress"))?;
        if raw.len() != header.raw_length as usize {
            return Err(FrameError::Malformed("it decompresses to another length than it claims"));
        }
        let mut raw = Bytes::from(raw);
        let notes = take_chunk(&mut raw)?;
        let notes = match notes.len() {
            0 => Vec::new(),
            _ => postcard::from_bytes(&notes).map_err(|_| FrameError::Malformed("its digest notes are damaged"))?,
        };
        let mut entries = Vec::new();
        let mut at = header.previous;
        while raw.has_remaining() {
            if raw.remaining() < 8 {
                return Err(FrameError::Malformed("an entry is cut off"));
            }
            let lsn = Lsn(raw.get_u64_le());
            if lsn <= at || lsn > header.last {
                return Err(FrameError::Malformed("its entries are out of order"));
            }
            at = lsn;
            entries.push((lsn, take_chunk(&mut raw)?));
        }
        Ok(Frame { header, notes, entries })
    }
}

/// A u32 length and that many bytes.
fn take_chunk(raw: &mut Bytes) -> Result<Bytes, FrameError> {
    if raw.remaining() < 4 {
        return Err(FrameError::Malformed("a length is cut off"));
    }
    let length = raw.get_u32_le() as usize;
    if length > raw.remaining() {
        return Err(FrameError::Malformed("an entry is cut off"));
    }
    Ok(raw.split_to(length))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(previous: u64, last: u64) -> FrameHeader {
        FrameHeader {
            source: RegionId(1),
            shard: ShardId(3),
            lane: Lane::Sync,
            previous: Lsn(previous),
            last: Lsn(last),
            closed: Hlc(77),
            echo: Echo { probe: 5, tenured: true, index: 0 },
            raw_length: 0,
        }
    }

    fn sample() -> Bytes {
        let note = DigestNote { bucket: BucketId(1), positions: Positions::default(), hash: SetHash(9), keys: 2 };
        encode(header(10, 20), &[note], &[(Lsn(12), Bytes::from_static(b"one")), (Lsn(20), Bytes::from_static(b"two"))])
    }

    #[test]
    fn a_heartbeat_has_no_entries() -> Result<(), FrameError> {
        let frame = Frame::decode(&encode(header(10, 10), &[], &[]))?;
        assert_eq!(frame.header.last, frame.header.previous);
        assert!(frame.entries.is_empty() && frame.notes.is_empty());
        Ok(())
    }

    #[test]
    fn an_echo_names_a_metadata_index_where_there_is_one_to_know() -> Result<(), FrameError> {
        let named = FrameHeader { echo: Echo { probe: 5, tenured: false, index: 41 }, ..header(10, 20) };
        let bytes = encode(named, &[], &[(Lsn(12), Bytes::from_static(b"one"))]);
        let frame = Frame::decode(&bytes)?;
        assert_eq!((frame.header.echo, frame.entries.len()), (named.echo, 1));
        assert_eq!(bytes.len(), encode(header(10, 20), &[], &frame.entries).len() + INDEX_BYTES);
        assert!((0..bytes.len()).all(|length| Frame::decode(&bytes[..length]).is_err()));
        Ok(())
    }

    #[test]
    fn entries_out_of_order_are_refused() {
        let entry = Bytes::from_static(b"e");
        for (a, b) in [(12, 12), (13, 12), (10, 11), (12, 21)] {
            let bytes = encode(header(10, 20), &[], &[(Lsn(a), entry.clone()), (Lsn(b), entry.clone())]);
            assert!(matches!(Frame::decode(&bytes), Err(FrameError::Malformed(_))), "{a} {b}");
        }
    }

    proptest! {
        #[test]
        fn a_frame_comes_back_as_it_went(entries in prop::collection::vec((1u64..5, prop::collection::vec(any::<u8>(), 0..300)), 0..20)) {
            let mut lsn = 10;
            let entries: Vec<_> = entries.into_iter().map(|(step, bytes)| { lsn += step; (Lsn(lsn), Bytes::from(bytes)) }).collect();
            let frame = Frame::decode(&encode(header(10, lsn), &[], &entries))?;
            prop_assert_eq!(frame.entries, entries);
            prop_assert_eq!(frame.header.closed, Hlc(77));
        }

        #[test]
        fn a_flipped_bit_anywhere_is_found(at in 0usize..1 << 16, bit in 0u8..8) {
            let mut bytes = sample().to_vec();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert!(Frame::decode(&bytes).is_err());
        }

        #[test]
        fn a_cut_frame_is_refused(length in 0usize..1 << 16) {
            let bytes = sample();
            prop_assert!(Frame::decode(&bytes[..length % bytes.len()]).is_err());
        }

        #[test]
        fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Frame::decode(&bytes).is_err());
        }
    }
}
