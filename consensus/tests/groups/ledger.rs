//! A state machine for tests: remembers every payload in order, and survives restarts only as far as it persisted.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use meridian_consensus::{Committed, Mark, Persist, SnapshotSource, StateError, StateMachine};
use meridian_types::Lsn;

/// What a ledger holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Book {
    pub(crate) mark: Option<Mark>,
    pub(crate) lines: Vec<(u64, Bytes)>,
}

/// A ledger, and the test's view into it.
pub(crate) struct Ledger {
    path: PathBuf,
    pub(crate) book: Arc<Mutex<Book>>,
}

impl Ledger {
    pub(crate) fn open(dir: &Path, name: &str) -> Ledger {
        std::fs::create_dir_all(dir).unwrap();
        let path = dir.join(format!("{name}.ledger"));
        let book = std::fs::read(&path).map(|bytes| Book::decode(&bytes)).unwrap_or_default();
        Ledger { path, book: Arc::new(Mutex::new(book)) }
    }
}

impl Book {
    fn encode(&self) -> Vec<u8> {
        let mark = self.mark.as_ref().map(|mark| (mark.lsn.0, mark.bytes.to_vec()));
        let lines: Vec<(u64, Vec<u8>)> = self.lines.iter().map(|(lsn, line)| (*lsn, line.to_vec())).collect();
        postcard::to_allocvec(&(mark, lines)).unwrap()
    }

    fn decode(bytes: &[u8]) -> Book {
        type Stored = (Option<(u64, Vec<u8>)>, Vec<(u64, Vec<u8>)>);
        let (mark, lines): Stored = postcard::from_bytes(bytes).unwrap();
        let mark = mark.map(|(lsn, bytes)| Mark { lsn: Lsn(lsn), bytes: bytes.into() });
        Book { mark, lines: lines.into_iter().map(|(lsn, line)| (lsn, line.into())).collect() }
    }
}

impl StateMachine for Ledger {
    fn mark(&self) -> Result<Option<Mark>, StateError> {
        Ok(self.book.lock().unwrap().mark.clone())
    }

    fn apply(&mut self, batch: &[Committed], mark: &Mark) -> Result<Vec<Bytes>, StateError> {
        let mut book = self.book.lock().unwrap();
        if batch.iter().any(|entry| &entry.payload[..] == b"fail") {
            return Err(StateError::new("asked to fail"));
        }
        assert!(book.mark.as_ref().is_none_or(|old| old.lsn < mark.lsn), "marks rise");
        let before = book.lines.len();
        book.lines.extend(batch.iter().map(|entry| (entry.lsn.0, entry.payload.clone())));
        book.mark = Some(mark.clone());
        Ok((before..book.lines.len()).map(|line| Bytes::from(line.to_string())).collect())
    }

    fn persist(&mut self) -> Result<Persist, StateError> {
        let (path, book) = (self.path.clone(), self.book.lock().unwrap().clone());
        Ok(Box::new(move || {
            std::fs::write(&path, book.encode()).map_err(|error| StateError::with_source("cannot write", error))?;
            Ok(book.mark.as_ref().map_or(Lsn(0), |mark| mark.lsn))
        }))
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, StateError> {
        let book = self.book.lock().unwrap().clone();
        let pieces = book.encode().chunks(1000).map(Bytes::copy_from_slice).collect::<Vec<_>>();
        Ok(Box::new(Source { mark: book.mark.unwrap(), pieces: pieces.into_iter() }))
    }

    fn restore(
        &mut self,
        pieces: &mut dyn Iterator<Item = Result<Bytes, StateError>>,
        mark: &Mark,
    ) -> Result<(), StateError> {
        let bytes = pieces.collect::<Result<Vec<_>, _>>()?.concat();
        let mut restored = Book::decode(&bytes);
        restored.mark = Some(mark.clone());
        *self.book.lock().unwrap() = restored;
        self.persist()?().map(drop)
    }
}

struct Source {
    mark: Mark,
    pieces: std::vec::IntoIter<Bytes>,
}

impl SnapshotSource for Source {
    fn mark(&self) -> Mark {
        self.mark.clone()
    }

    fn next_piece(&mut self) -> Result<Option<Bytes>, StateError> {
        Ok(self.pieces.next())
    }
}
