//! A part of a backup: rows of one shard in the order of their keys, or what is kept in the same way: entries of its log by their
//! position, values of its state by their key there. Pure. Little-endian:
//!
//! ```text
//! part: | "MBK1" | shard (u16) | number (u32) | rows (u32) | length of the rows (u32) | rows, lz4 … | crc32c of all before (u32) |
//! row:  | key length (u32) | record length (u32) | key | record |
//! ```
//!
//! The last byte of the magic is the version. A row is never split over two parts.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use meridian_types::{BackupRow, ShardId};

const MAGIC: [u8; 4] = *b"MBK1";

const HEAD_BYTES: usize = 18;

/// A part is closed once its rows have so many bytes: large enough for an object store, small enough to hold several.
pub const ROWS_BYTES: usize = 4 << 20;

/// The most that the rows of a part can have: one more than fits, at most a frame of the log. Checked before room for them is
/// made (RES-1).
const ROWS_BYTES_MAX: usize = ROWS_BYTES + (8 << 20);

/// The longest part: what lz4 makes of rows that it can't compress.
pub const PART_BYTES_MAX: u64 = (ROWS_BYTES_MAX + ROWS_BYTES_MAX / 128 + 1024) as u64;

/// Why bytes are no part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// Too short, or another magic.
    #[error("it is no part of a backup, or of a version this one does not know")]
    Unknown,
    /// A byte is not what it was.
    #[error("its checksum does not match")]
    Checksum,
    /// Another one than was asked for.
    #[error("it is another part than its name says")]
    Another,
    /// The checksum is right: it was never whole.
    #[error("its rows can't be read")]
    Rows,
}

/// Gathers rows of a shard into parts.
#[derive(Debug)]
pub struct Packer {
    shard: ShardId,
    number: u32,
    rows: u32,
    raw: Vec<u8>,
}

/// A part, ready to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Its place among the parts of its shard, from 0.
    pub number: u32,
    /// How many rows it has.
    pub rows: u32,
    /// All of it.
    pub bytes: Bytes,
}

impl Packer {
    /// Nothing yet.
    pub fn new(shard: ShardId) -> Packer {
        Packer { shard, number: 0, rows: 0, raw: Vec::new() }
    }

    /// Takes a row; gives a part once there is enough for one.
    pub fn push(&mut self, row: &BackupRow) -> Option<Packed> {
        for field in [&row.key, &row.record] {
            // A record is a value of 1 MiB and its framing.
            self.raw.put_u32_le(u32::try_from(field.len()).unwrap_or(u32::MAX));
        }
        self.raw.extend_from_slice(&row.key);
        self.raw.extend_from_slice(&row.record);
        self.rows += 1;
        if self.raw.len() < ROWS_BYTES { None } else { self.close() }
    }

    /// What is left over, if anything is.
    pub fn close(&mut self) -> Option<Packed> {
        if self.rows == 0 {
            return None;
        }
        let (number, rows) = (self.number, std::mem::take(&mut self.rows));
        let mut bytes = BytesMut::with_capacity(HEAD_BYTES + self.raw.len() / 2);
        bytes.extend_from_slice(&MAGIC);
        bytes.put_u16_le(self.shard.0);
        bytes.put_u32_le(number);
        bytes.put_u32_le(rows);
        bytes.put_u32_le(u32::try_from(self.raw.len()).unwrap_or(u32::MAX));
        bytes.extend_from_slice(&lz4_flex::block::compress(&self.raw));
        bytes.put_u32_le(crc32c::crc32c(&bytes));
        self.raw.clear();
        self.number += 1;
        Some(Packed { number, rows, bytes: bytes.freeze() })
    }
}

/// The rows of a part.
///
/// # Errors
/// [`Damage`]: none of them can be relied on.
pub fn unpack(bytes: &[u8], (shard, number): (ShardId, u32)) -> Result<Vec<BackupRow>, Damage> {
    let (body, checksum) = bytes.split_last_chunk().ok_or(Damage::Unknown)?;
    if body.len() < HEAD_BYTES || body[..4] != MAGIC {
        return Err(Damage::Unknown);
    }
    if u32::from_le_bytes(*checksum) != crc32c::crc32c(body) {
        return Err(Damage::Checksum);
    }
    let mut head = &body[4..];
    if (head.get_u16_le(), head.get_u32_le()) != (shard.0, number) {
        return Err(Damage::Another);
    }
    let (count, length) = (head.get_u32_le(), head.get_u32_le() as usize);
    if length > ROWS_BYTES_MAX {
        return Err(Damage::Rows);
    }
    let raw = lz4_flex::block::decompress(head, length).map_err(|_| Damage::Rows)?;
    if raw.len() != length {
        return Err(Damage::Rows);
    }
    let mut rest = Bytes::from(raw);
    // The count is checked against what is there, never trusted with memory.
    let mut rows = Vec::new();
    while !rest.is_empty() {
        rows.push(take_row(&mut rest).ok_or(Damage::Rows)?);
    }
    if rows.len() == count as usize { Ok(rows) } else { Err(Damage::Rows) }
}

fn take_row(rest: &mut Bytes) -> Option<BackupRow> {
    let (key, record) = (rest.try_get_u32_le().ok()? as usize, rest.try_get_u32_le().ok()? as usize);
    if rest.len() < key.checked_add(record)? {
        return None;
    }
    Some(BackupRow { key: rest.split_to(key), record: rest.split_to(record) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SHARD: ShardId = ShardId(3);

    fn rows(of: &[(Vec<u8>, usize)]) -> Vec<BackupRow> {
        let row =
            |(key, length): &(Vec<u8>, usize)| BackupRow { key: key.clone().into(), record: vec![7; *length].into() };
        of.iter().map(row).collect()
    }

    fn packed(rows: &[BackupRow]) -> Vec<Packed> {
        let mut packer = Packer::new(SHARD);
        let mut parts: Vec<Packed> = rows.iter().filter_map(|row| packer.push(row)).collect();
        parts.extend(packer.close());
        parts
    }

    fn unpacked(parts: &[Packed]) -> Vec<BackupRow> {
        parts.iter().flat_map(|part| unpack(&part.bytes, (SHARD, part.number)).unwrap()).collect()
    }

    proptest! {
        #[test]
        fn rows_come_back_as_they_went(of in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..20), 0usize..2000), 0..40)) {
            let rows = rows(&of);
            prop_assert_eq!(unpacked(&packed(&rows)), rows);
        }

        #[test]
        fn a_flipped_byte_and_a_missing_end_are_found(
            of in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..20), 0usize..200), 1..20),
            at in any::<usize>(), flip in 1u8.., cut in any::<usize>(),
        ) {
            let part = packed(&rows(&of)).remove(0);
            let mut flipped = part.bytes.to_vec();
            let at = at % flipped.len();
            flipped[at] ^= flip;
            prop_assert!(unpack(&flipped, (SHARD, 0)).is_err());
            prop_assert!(unpack(&part.bytes[..cut % part.bytes.len()], (SHARD, 0)).is_err());
        }

        #[test]
        fn any_bytes_are_a_part_or_damage(mut bytes in prop::collection::vec(any::<u8>(), 0..200), length in any::<u32>()) {
            let _ = unpack(&bytes, (SHARD, 0));
            // With a head and a checksum that are right.
            let mut head = [&MAGIC[..], &SHARD.0.to_le_bytes(), &[0; 8], &length.to_le_bytes()].concat();
            head.append(&mut bytes);
            head.put_u32_le(crc32c::crc32c(&head));
            let _ = unpack(&head, (SHARD, 0));
        }
    }

    #[test]
    fn what_does_not_fit_into_one_part_goes_into_several_and_the_largest_row_is_whole() {
        let largest = (vec![1; 4096], (1 << 20) + 64);
        let of: Vec<_> = (0..9u8).map(|n| (vec![n], ROWS_BYTES / 4)).chain([largest]).collect();
        let (rows, parts) = (rows(&of), packed(&rows(&of)));
        assert_eq!(parts.iter().map(|part| (part.number, part.rows)).collect::<Vec<_>>(), [(0, 4), (1, 4), (2, 2)]);
        assert_eq!(unpacked(&parts), rows);
        assert_eq!(unpack(&parts[0].bytes, (SHARD, 1)), Err(Damage::Another));
        assert_eq!(unpack(&parts[0].bytes, (ShardId(4), 0)), Err(Damage::Another));
    }
}
