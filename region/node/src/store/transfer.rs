//! A shard's state as a stream of pieces, for a peer that is too far behind the log.
//!
//! The records form one byte stream, cut into pieces of at most [`PIECE_BYTES_MAX`] wherever that
//! falls, since one record alone may be larger than a piece. Little-endian:
//!
//! ```text
//! piece:  | crc32c of the rest (u32) | part of the stream … |
//! stream: | "MSS1" | shard (u16) | records … | u32::MAX | number of records (u64) |
//! record: | key length (u32) | value length (u32) | key | value |
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};
use meridian_consensus::{Mark, PIECE_BYTES_MAX, SnapshotSource, StateError};
use meridian_region_core::keys;
use meridian_types::ShardId;

use super::engine::{Change, PairIterator, Snapshot};
use super::failed;

pub(crate) const MAGIC: [u8; 4] = *b"MSS1";

/// Bytes of stream in one piece.
const PART_BYTES: usize = PIECE_BYTES_MAX - 4;

/// The key length that marks the end of the records.
const END: u32 = u32::MAX;

/// No key or value of a shard's state is larger: a value with its key and framing. Checked before anything is gathered (RES-1).
const FIELD_BYTES_MAX: usize = 2 << 20;

/// Bytes loaded per batch.
const BATCH_BYTES: usize = 4 << 20;

/// A shard's state at one moment, read piece by piece.
pub(super) struct Source {
    mark: Mark,
    pairs: PairIterator,
    records: u64,
    /// Stream that is not part of a piece yet.
    waiting: BytesMut,
    ended: bool,
}

impl Source {
    pub(super) fn new(view: Box<dyn Snapshot>, shard: ShardId, mark: Mark) -> Source {
        let (from, to) = keys::shard_range(shard);
        let mut waiting = BytesMut::with_capacity(PART_BYTES);
        waiting.extend_from_slice(&MAGIC);
        waiting.put_u16_le(shard.0);
        Source { mark, pairs: view.range(&from, &to), records: 0, waiting, ended: false }
    }

    fn gather(&mut self) -> Result<(), StateError> {
        match self.pairs.next() {
            Some(pair) => {
                let (key, value) = pair.map_err(failed)?;
                self.waiting.put_u32_le(u32::try_from(key.len()).unwrap_or(END));
                self.waiting.put_u32_le(u32::try_from(value.len()).unwrap_or(END));
                self.waiting.extend_from_slice(&key);
                self.waiting.extend_from_slice(&value);
                self.records += 1;
            }
            None => {
                self.waiting.put_u32_le(END);
                self.waiting.put_u64_le(self.records);
                self.ended = true;
            }
        }
        Ok(())
    }
}

impl SnapshotSource for Source {
    fn mark(&self) -> Mark {
        self.mark.clone()
    }

    fn next_piece(&mut self) -> Result<Option<Bytes>, StateError> {
        while self.waiting.len() < PART_BYTES && !self.ended {
            self.gather()?;
        }
        if self.waiting.is_empty() {
            return Ok(None);
        }
        let part = self.waiting.split_to(self.waiting.len().min(PART_BYTES));
        let mut piece = BytesMut::with_capacity(4 + part.len());
        piece.put_u32_le(crc32c::crc32c(&part));
        piece.extend_from_slice(&part);
        Ok(Some(piece.freeze()))
    }
}

/// Loads a stream of pieces into a shard that was wiped.
pub(crate) fn fill(
    shard: ShardId,
    pieces: &mut dyn Iterator<Item = Result<Bytes, StateError>>,
    write: &mut dyn FnMut(Vec<Change>) -> Result<(), StateError>,
) -> Result<(), StateError> {
    let mut reader = Reader { shard, begun: false, ended: false, records: 0, waiting: BytesMut::new() };
    let mut batch = Vec::new();
    let mut batch_bytes = 0;
    for piece in pieces {
        reader.take(&piece?)?;
        while let Some((key, value)) = reader.next()? {
            batch_bytes += key.len() + value.len();
            batch.push(Change::Put(key, value));
            if batch_bytes >= BATCH_BYTES {
                write(std::mem::take(&mut batch))?;
                batch_bytes = 0;
            }
        }
    }
    write(batch)?;
    if reader.ended { Ok(()) } else { Err(damaged("it ends too early")) }
}

/// Takes the stream apart again.
struct Reader {
    shard: ShardId,
    begun: bool,
    ended: bool,
    records: u64,
    waiting: BytesMut,
}

impl Reader {
    fn take(&mut self, mut piece: &[u8]) -> Result<(), StateError> {
        if piece.len() < 4 || piece.len() > PIECE_BYTES_MAX {
            return Err(damaged("a piece has an impossible length"));
        }
        if piece.get_u32_le() != crc32c::crc32c(piece) {
            return Err(damaged("a piece's checksum does not match"));
        }
        self.waiting.extend_from_slice(piece);
        Ok(())
    }

    /// The next whole record; `None` when more of the stream is needed.
    fn next(&mut self) -> Result<Option<(Bytes, Bytes)>, StateError> {
        if !self.begun {
            let Some(head) = self.waiting.first_chunk::<6>() else { return Ok(None) };
            if head[..4] != MAGIC || head[4..] != self.shard.0.to_le_bytes() {
                return Err(damaged("it is of another shard, or of a newer version"));
            }
            self.waiting.advance(6);
            self.begun = true;
        }
        if self.ended {
            return self.end();
        }
        let Some(lengths) = self.waiting.first_chunk::<8>().copied() else { return Ok(None) };
        let mut lengths = lengths.as_slice();
        let key_length = lengths.get_u32_le();
        if key_length == END {
            return self.end();
        }
        let (key_length, value_length) = (key_length as usize, lengths.get_u32_le() as usize);
        if key_length.max(value_length) > FIELD_BYTES_MAX {
            return Err(damaged("a record claims an impossible length"));
        }
        if self.waiting.len() < 8 + key_length + value_length {
            return Ok(None);
        }
        self.waiting.advance(8);
        // Copied out, so that one record kept in a write buffer doesn't keep a whole piece.
        let key = Bytes::copy_from_slice(&self.waiting.split_to(key_length));
        let value = Bytes::copy_from_slice(&self.waiting.split_to(value_length));
        let (from, to) = keys::shard_range(self.shard);
        if key.as_ref() < from.as_slice() || key.as_ref() >= to.as_slice() {
            return Err(damaged("a record is of another shard"));
        }
        self.records += 1;
        Ok(Some((key, value)))
    }

    fn end(&mut self) -> Result<Option<(Bytes, Bytes)>, StateError> {
        if !self.ended && self.waiting.len() >= 12 {
            self.waiting.advance(4);
            if self.waiting.get_u64_le() != self.records {
                return Err(damaged("records are missing"));
            }
            self.ended = true;
        }
        if self.ended && !self.waiting.is_empty() {
            return Err(damaged("something follows its end"));
        }
        Ok(None)
    }
}

fn damaged(why: &str) -> StateError {
    StateError::new(format!("the snapshot of a shard is damaged: {why}"))
}
