//! A whole log played into the shard state machine: entries that are well-formed and mean anything at all.
//!
//! ```text
//! | length u16 | entry | length u16 | entry | …        little-endian; entry n stands at LSN n
//! ```
//!
//! Whatever a log says, the shard must not panic, keep its own rules, load again as it was, and its digests must be
//! those of its records (DUR-3, ORD-1).

use meridian_region_core::{Contents, MemoryState, Mutations, Shard, recompute_digest};
use meridian_types::entry::{HEADER_BYTES, Kind};
use meridian_types::{Lsn, RegionId, ShardId};

use super::words::{all_bodies, header, sample_frame, seal_frame};

const REGION: RegionId = RegionId(1);
const SHARD: ShardId = ShardId(3);

/// Plays the log; accepted when at least one entry was applied.
pub(super) fn play(bytes: &[u8]) -> bool {
    let mut state = MemoryState::default();
    let Ok(mut shard) = Shard::load(&state, REGION, SHARD) else { panic!("an empty state is a shard") };
    let mut applied = false;
    for (entry, lsn) in cut(bytes).into_iter().zip(1..) {
        let mut out = Mutations::new();
        if shard.apply(&state, Lsn(lsn), &bytes[entry], &mut out).is_err() {
            break;
        }
        shard.checkpoint(&mut out);
        state.commit(out);
        shard.validate();
        applied = true;
    }
    judge(&state);
    applied
}

/// What is stored must load, keep its rules, and be what its digests say.
fn judge(state: &MemoryState) {
    let shard = match Shard::load(state, REGION, SHARD) {
        Ok(shard) => shard,
        Err(error) => panic!("a shard must load what it stored: {error}"),
    };
    shard.validate();
    for (bucket, digest) in shard.digests() {
        match recompute_digest(state, SHARD, bucket) {
            Ok(contents) => assert_eq!(contents, Contents::of(digest), "a digest is what its records say"),
            Err(error) => panic!("a shard must read what it stored: {error}"),
        }
    }
}

/// Where the entries are.
fn cut(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut entries = Vec::new();
    let mut at = 0;
    while let Some(length) = bytes.get(at..at + 2) {
        let (start, length) = (at + 2, usize::from(u16::from_le_bytes([length[0], length[1]])));
        at = start + length;
        if at > bytes.len() {
            break;
        }
        entries.push(start..at);
    }
    entries
}

/// Makes the checksums of the frames inside right.
pub(super) fn seal(bytes: &mut [u8]) {
    for entry in cut(bytes) {
        let is_frame = bytes.get(entry.start + 1) == Some(&3);
        if is_frame && entry.len() > HEADER_BYTES {
            let mut frame = bytes[entry.start + HEADER_BYTES..entry.end].to_vec();
            seal_frame(&mut frame);
            bytes[entry.start + HEADER_BYTES..entry.end].copy_from_slice(&frame);
        }
    }
}

/// Every kind of entry once, own ones and those of a frame.
pub(super) fn logs() -> Vec<Vec<u8>> {
    let own = all_bodies().into_iter().filter(|(kind, _)| *kind != Kind::DropBucket).zip(1000..);
    let own: Vec<_> = own.map(|((kind, body), at)| header(kind, at).encode(&body).to_vec()).collect();
    let frame = header(Kind::Frame, 3000).encode_frame(&sample_frame(RegionId(2), 0)).to_vec();
    let again = header(Kind::Frame, 3001).encode_frame(&sample_frame(RegionId(2), 5)).to_vec();
    let (first, second) = own.split_at(own.len() / 2);
    vec![
        log(&own),
        log(&[vec![frame.clone()], first.to_vec()].concat()),
        log(&[second.to_vec(), vec![frame, again]].concat()),
    ]
}

fn log(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries {
        bytes.extend_from_slice(&u16::try_from(entry.len()).unwrap_or(u16::MAX).to_le_bytes());
        bytes.extend_from_slice(entry);
    }
    bytes
}
