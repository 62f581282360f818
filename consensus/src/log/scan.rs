//! Reads a segment record by record, in pieces: never the whole file at once (RES-1).

use std::io;
use std::os::unix::fs::FileExt;

use super::record::{self, Damage, HEADER_BYTES, Header};
use super::segment::Segment;

/// How much is read at a time; a larger record makes the buffer grow to its size.
const CHUNK_BYTES: usize = 256 << 10;

/// A record: its offset, its header and its payload.
pub(crate) type Found<'a> = (u64, Header, &'a [u8]);

/// Reads records of one segment from an offset on.
#[derive(Debug)]
pub(crate) struct Scanner<'a> {
    segment: &'a Segment,
    buffer: Vec<u8>,
    /// The offset in the file of the buffer's first byte.
    buffer_at: u64,
    /// The offset of the next record.
    offset: u64,
    chunk_bytes: usize,
}

impl<'a> Scanner<'a> {
    pub(crate) fn new(segment: &'a Segment, offset: u64) -> Scanner<'a> {
        Scanner { segment, buffer: Vec::new(), buffer_at: offset, offset, chunk_bytes: CHUNK_BYTES }
    }

    /// The offset of the next record.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Reads the record at the current offset and moves behind it. The inner error leaves the offset where it is.
    pub(crate) fn next(&mut self) -> io::Result<Result<Found<'_>, Damage>> {
        let offset = self.offset;
        let header = match self.header()? {
            Ok(header) => header,
            Err(damage) => return Ok(Err(damage)),
        };
        let bytes = record::size(header.length);
        if !self.load(bytes)? {
            return Ok(Err(Damage::Length(header.length)));
        }
        let start = self.position();
        let record = &self.buffer[start..start + bytes];
        Ok(record::verify(self.segment.id, &header, record).map(|payload| {
            self.offset += bytes as u64;
            (offset, header, payload)
        }))
    }

    /// Moves to the next place where a record might begin; false when there is none.
    pub(crate) fn seek(&mut self) -> io::Result<bool> {
        self.offset += 8;
        while self.load(HEADER_BYTES)? {
            let start = self.position();
            let skipped = self.buffer[start..].chunks_exact(8).take_while(|word| !record::may_begin(word)).count();
            self.offset += skipped as u64 * 8;
            if start + skipped * 8 + 8 <= self.buffer.len() {
                return Ok(self.offset + HEADER_BYTES as u64 <= self.segment.bytes);
            }
        }
        Ok(false)
    }

    fn header(&mut self) -> io::Result<Result<Header, Damage>> {
        if !self.load(HEADER_BYTES)? {
            return Ok(Err(Damage::NoRecord));
        }
        let start = self.position();
        Ok(Header::decode(&self.buffer[start..]))
    }

    fn position(&self) -> usize {
        usize::try_from(self.offset - self.buffer_at).unwrap_or(usize::MAX)
    }

    /// Makes the buffer hold `bytes` from the current offset; false when the segment ends before.
    fn load(&mut self, bytes: usize) -> io::Result<bool> {
        if self.offset + bytes as u64 > self.segment.bytes {
            return Ok(false);
        }
        let start = self.position();
        if start + bytes <= self.buffer.len() {
            return Ok(true);
        }
        self.buffer.drain(..start.min(self.buffer.len()));
        self.buffer_at = self.offset;
        let held = self.buffer.len();
        let rest = usize::try_from(self.segment.bytes - self.offset).unwrap_or(usize::MAX);
        self.buffer.resize(bytes.max(self.chunk_bytes).min(rest), 0);
        self.segment.file.read_exact_at(&mut self.buffer[held..], self.buffer_at + held as u64)?;
        Ok(true)
    }
}
