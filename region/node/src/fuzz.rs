//! Doors for the fuzzer of `chaos`: one function per decoder of stored or sent bytes that nobody outside this crate
//! calls. Each says whether the bytes were accepted, and holds what was to the decoder's law. Not part of the crate's
//! interface.

use bytes::Bytes;
use meridian_consensus::Mark;
use meridian_region_core::salvage::{Head, Part};
use meridian_types::{Lsn, ShardId};

use crate::salvage::{seal, unseal};
use crate::store::engine::Change;
use crate::store::{decode_mark, encode_mark, transfer};

const SHARD: ShardId = ShardId(3);

/// The mark of a shard's state, as the store holds it.
pub fn mark(bytes: &[u8]) -> bool {
    let Ok(mark) = decode_mark(Bytes::copy_from_slice(bytes)) else { return false };
    assert_eq!(encode_mark(&mark), bytes, "a mark has one encoding");
    true
}

/// A shard's snapshot, as pieces of which each is preceded by its length (u32, little-endian).
pub fn snapshot(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    let mut pieces = std::iter::from_fn(|| {
        let (length, after) = rest.split_first_chunk()?;
        let (piece, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        rest = after;
        Some(Ok(Bytes::copy_from_slice(piece)))
    });
    let mut records = 0;
    let filled = transfer::fill(SHARD, &mut pieces, &mut |changes| {
        records += changes.iter().filter(|change| matches!(change, Change::Put(..))).count();
        Ok(())
    });
    // Each record takes at least its two lengths and a key of a shard.
    assert!(records * 10 <= bytes.len(), "{records} records from {} bytes", bytes.len());
    filled.is_ok()
}

/// Makes the checksums of the pieces right.
pub fn seal_snapshot(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(length) = bytes.get(at..at + 4) {
        let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
        let Some(piece) = bytes.get_mut(at + 4..at + 4 + length) else { return };
        if let Some((crc, part)) = piece.split_first_chunk_mut() {
            *crc = crc32c::crc32c(part).to_le_bytes();
        }
        at += 4 + length;
    }
}

/// What a lost primary kept: a head or a part of a bundle, in its seal.
pub fn salvage(bytes: &[u8]) -> bool {
    let Some(body) = unseal(bytes) else { return false };
    let (head, part) = (Head::decode(body), Part::decode(body));
    if let Ok(head) = &head {
        assert_eq!(Head::decode(&head.encode()).as_ref(), Ok(head), "a head must come back");
    }
    if let Ok(part) = &part {
        assert_eq!(Part::decode(&part.encode()).as_ref(), Ok(part), "a part must come back");
    }
    head.is_ok() || part.is_ok()
}

/// Makes the checksum right.
pub fn seal_salvage(bytes: &mut [u8]) {
    if let Some((head, body)) = bytes.split_first_chunk_mut::<8>() {
        head[..4].copy_from_slice(b"MSV1");
        head[4..].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
    }
}

/// Encodings to begin from, by the name of the door.
pub fn samples(door: &str) -> Vec<Vec<u8>> {
    match door {
        "salvage" => meridian_region_core::salvage::samples().iter().map(|body| seal(body)).collect(),
        "mark" => vec![encode_mark(&Mark { lsn: Lsn(9), bytes: Bytes::from_static(b"mark") }).to_vec()],
        "snapshot" => {
            let stream = stream(&[(b"\x00\x03key", b"value"), (b"\x00\x03other", b"")]);
            let halves = stream.split_at(stream.len() / 2);
            vec![pieces(&[&stream]), pieces(&[halves.0, halves.1]), pieces(&[&self::stream(&[])])]
        }
        _ => Vec::new(),
    }
}

fn stream(records: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut stream = transfer::MAGIC.to_vec();
    stream.extend_from_slice(&SHARD.0.to_le_bytes());
    for (key, value) in records {
        for field in [key, value] {
            stream.extend_from_slice(&u32::try_from(field.len()).unwrap_or_default().to_le_bytes());
        }
        stream.extend_from_slice(key);
        stream.extend_from_slice(value);
    }
    stream.extend_from_slice(&u32::MAX.to_le_bytes());
    stream.extend_from_slice(&(records.len() as u64).to_le_bytes());
    stream
}

fn pieces(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(&u32::try_from(part.len() + 4).unwrap_or_default().to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(part);
    }
    seal_snapshot(&mut bytes);
    bytes
}
