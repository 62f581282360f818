//! Snapshot data: read from the state on the sender, spooled to a file on the receiver; never whole in memory (RES-1).
//!
//! A spool is a sequence of `length u32 | crc32c u32 | bytes`, ended by a length of 0 with the checksum of all
//! checksums: a file that was cut or changed is refused before anything of it is served (DUR-3).

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use meridian_failpoint::failpoint;

use crate::error::StateError;
use crate::machine::{PIECE_BYTES_MAX, SnapshotSource};

/// A snapshot on its way.
pub(crate) enum SnapshotData {
    /// Of this node's own state.
    Own(Box<dyn SnapshotSource>),
    /// Received from the leader.
    Received(Spool),
    /// Only its position counts: it tells openraft how far the state is durable.
    Position,
}

/// A file that pieces are written to as they come in; removed when dropped.
#[derive(Debug)]
pub(crate) struct Spool {
    path: PathBuf,
    file: Option<BufWriter<File>>,
    checksum: u32,
}

impl Spool {
    pub(crate) fn create(path: PathBuf) -> io::Result<Spool> {
        let file = File::options().create(true).truncate(true).read(true).write(true).open(&path)?;
        failpoint("snapshot.create.after");
        Ok(Spool { path, file: Some(BufWriter::new(file)), checksum: 0 })
    }

    /// Adds a piece whose checksum the sender stated.
    pub(crate) fn add(&mut self, piece: &[u8], stated: u32) -> io::Result<()> {
        let crc = crc32c::crc32c(piece);
        if crc != stated || piece.is_empty() || piece.len() > PIECE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a piece of a snapshot is damaged"));
        }
        self.checksum = crc32c::crc32c_append(self.checksum, &crc.to_le_bytes());
        let length = u32::try_from(piece.len()).unwrap_or(u32::MAX);
        failpoint("snapshot.piece.before");
        self.write(&[&length.to_le_bytes(), &crc.to_le_bytes(), piece])
    }

    /// Ends the file; the sender stated the checksum of all checksums.
    pub(crate) fn finish(&mut self, stated: u32) -> io::Result<()> {
        if self.checksum != stated {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "pieces of a snapshot are missing"));
        }
        let checksum = self.checksum;
        self.write(&[&0u32.to_le_bytes(), &checksum.to_le_bytes()])?;
        failpoint("snapshot.finish.before");
        self.file.take().map_or(Ok(()), |mut file| file.flush())
    }

    /// The pieces, checked while they are read.
    pub(crate) fn pieces(&self) -> Result<Pieces, StateError> {
        pieces(&self.path)
    }

    fn write(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let file = self.file.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        parts.iter().try_for_each(|part| file.write_all(part))
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.file = None;
        // If it stays, the next start removes it.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Removes what former processes left of snapshots they were receiving.
pub(crate) fn clean(dir: &Path) -> io::Result<()> {
    for item in std::fs::read_dir(dir)? {
        let path = item?.path();
        if path.extension().is_some_and(|extension| extension == "snapshot") {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// The pieces of the spool at `path`, checked while they are read.
pub(crate) fn pieces(path: &Path) -> Result<Pieces, StateError> {
    let file =
        File::open(path).map_err(|error| StateError::with_source("the received snapshot can't be opened", error))?;
    Ok(Pieces { file: BufReader::new(file), checksum: 0, done: false })
}

/// Reads a spool back.
pub(crate) struct Pieces {
    file: BufReader<File>,
    checksum: u32,
    done: bool,
}

impl Pieces {
    fn read(&mut self) -> io::Result<Option<Bytes>> {
        let mut head = [0; 8];
        self.file.read_exact(&mut head)?;
        let [l0, l1, l2, l3, c0, c1, c2, c3] = head;
        let (length, crc) = (u32::from_le_bytes([l0, l1, l2, l3]) as usize, u32::from_le_bytes([c0, c1, c2, c3]));
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the received snapshot is damaged on disk");
        if length == 0 {
            return if crc == self.checksum { Ok(None) } else { Err(damaged()) };
        }
        if length > PIECE_BYTES_MAX {
            return Err(damaged());
        }
        let mut piece = vec![0; length];
        self.file.read_exact(&mut piece)?;
        if crc32c::crc32c(&piece) != crc {
            return Err(damaged());
        }
        self.checksum = crc32c::crc32c_append(self.checksum, &crc.to_le_bytes());
        Ok(Some(Bytes::from(piece)))
    }
}

impl Iterator for Pieces {
    type Item = Result<Bytes, StateError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let piece = self.read().transpose();
        self.done = !matches!(piece, Some(Ok(_)));
        piece.map(|piece| piece.map_err(|error| StateError::with_source("the received snapshot can't be read", error)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn a_spool_gives_back_its_pieces_and_notices_every_change(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..8), at: prop::sample::Index, flip in 1u8..
        ) {
            let dir = tempfile::tempdir()?;
            let path = dir.path().join("x.snapshot");
            let mut spool = Spool::create(path.clone())?;
            let mut all = 0;
            for piece in &pieces {
                let crc = crc32c::crc32c(piece);
                all = crc32c::crc32c_append(all, &crc.to_le_bytes());
                spool.add(piece, crc)?;
            }
            spool.finish(all)?;
            let read: Vec<_> = spool.pieces().unwrap().map(|piece| piece.unwrap().to_vec()).collect();
            prop_assert_eq!(&read, &pieces);
            let mut bytes = std::fs::read(&path)?;
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            std::fs::write(&path, &bytes)?;
            prop_assert!(spool.pieces().unwrap().any(|piece| piece.is_err()));
        }
    }
}
