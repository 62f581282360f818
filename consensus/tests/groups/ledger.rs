//! A state machine for tests: remembers every payload in order, and survives restarts only as far as it persisted.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

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
    gate: Arc<Gate>,
}

/// Where the restore of a snapshot stops, to be killed there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nothing of it is on disk.
    Before,
    /// Half of it is, and the state that was there is gone: it looks empty.
    Torn,
    /// All of it is, but nobody knows yet.
    After,
}

/// Stops one restore.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    at: Mutex<Option<Stage>>,
    opened: Condvar,
    reached: AtomicBool,
}

impl Gate {
    pub(crate) fn close_at(&self, stage: Stage) {
        self.reached.store(false, Ordering::SeqCst);
        *self.at.lock().unwrap() = Some(stage);
    }

    pub(crate) fn is_reached(&self) -> bool {
        self.reached.load(Ordering::SeqCst)
    }

    pub(crate) fn open(&self) {
        *self.at.lock().unwrap() = None;
        self.opened.notify_all();
    }

    fn pass(&self, stage: Stage) {
        let mut at = self.at.lock().unwrap();
        while *at == Some(stage) {
            self.reached.store(true, Ordering::SeqCst);
            at = self.opened.wait(at).unwrap();
        }
    }
}

impl Ledger {
    pub(crate) fn open(dir: &Path, name: &str) -> Ledger {
        Ledger::open_behind(dir, name, Arc::default())
    }

    /// A ledger whose restores are stopped by `gate`.
    pub(crate) fn open_behind(dir: &Path, name: &str, gate: Arc<Gate>) -> Ledger {
        std::fs::create_dir_all(dir).unwrap();
        let path = dir.join(format!("{name}.ledger"));
        let book = std::fs::read(&path).map(|bytes| Book::decode(&bytes)).unwrap_or_default();
        Ledger { path, book: Arc::new(Mutex::new(book)), gate }
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
        self.gate.pass(Stage::Before);
        // Never half a state under the old mark: cut short, there is none.
        drop(std::fs::remove_file(&self.path));
        self.gate.pass(Stage::Torn);
        *self.book.lock().unwrap() = restored;
        self.persist()?()?;
        self.gate.pass(Stage::After);
        Ok(())
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
