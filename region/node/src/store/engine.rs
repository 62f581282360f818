//! What the store needs of an embedded engine, and fjall as that engine.

use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable};
use meridian_failpoint::failpoint;

use crate::options::StoreOptions;

/// One change of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Sets a key.
    Put(Bytes, Bytes),
    /// Removes a key.
    Remove(Bytes),
}

/// Called for each pair of a scan, in byte order.
pub type Each<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// An ordered, embedded key-value engine.
pub trait Engine: Send + Sync + 'static {
    /// The value of a key. Cheap enough for a runtime's worker: memory, or one block from disk.
    ///
    /// # Errors
    /// When the disk fails or a block is damaged (DUR-3).
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// Every pair in `from..to`, as of the moment of the call.
    ///
    /// # Errors
    /// As [`Engine::get`].
    fn scan(&self, from: &[u8], to: &[u8], each: Each<'_>) -> Result<(), EngineError>;

    /// Applies a batch as one atomic step that is not synced. May block on back-pressure: never call it on a runtime's worker.
    ///
    /// # Errors
    /// Fatal: the engine must be reopened.
    fn commit(&self, batch: Vec<Change>) -> Result<(), EngineError>;

    /// Makes everything committed durable.
    ///
    /// # Errors
    /// Fatal, as [`Engine::commit`].
    fn persist(&self) -> Result<(), EngineError>;

    /// Brings what was committed to the disk without holding commits up, so that little is left for the next
    /// [`Engine::persist`]. Promises nothing. Blocks on the disk.
    ///
    /// # Errors
    /// Fatal, as [`Engine::commit`].
    fn write_back(&self) -> Result<(), EngineError>;

    /// A consistent view of now.
    fn snapshot(&self) -> Box<dyn Snapshot>;

    /// Bytes on disk. May block as long as the disk hangs: never call it on a runtime's worker.
    fn disk_bytes(&self) -> u64;
}

/// A consistent view of an engine at one moment.
pub trait Snapshot: Send {
    /// The value a key had.
    ///
    /// # Errors
    /// As [`Engine::get`].
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// The pairs of `from..to`, in byte order.
    fn range(&self, from: &[u8], to: &[u8]) -> PairIterator;
}

/// Pairs of a snapshot.
pub type PairIterator = Box<dyn Iterator<Item = Result<(Bytes, Bytes), EngineError>> + Send>;

/// The engine failed.
#[derive(Debug)]
pub struct EngineError(Cause);

#[derive(Debug)]
enum Cause {
    Fjall(Box<fjall::Error>),
    Other(Box<dyn std::error::Error + Send + Sync>),
}

impl EngineError {
    /// What another engine than fjall reports.
    pub fn new(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> EngineError {
        EngineError(Cause::Other(why.into()))
    }
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match &self.0 {
            Cause::Fjall(why) => why.as_ref(),
            Cause::Other(why) => return write!(f, "{why}"),
        };
        match why {
            fjall::Error::Io(why) => write!(f, "the disk of the state store failed: {why}"),
            fjall::Error::Locked => f.write_str("another process already uses the state store: stop it, or give this node a directory of its own"),
            fjall::Error::Poisoned => f.write_str("the state store stopped after a failed write: see the log before it, free or replace the disk, and restart the node"),
            fjall::Error::InvalidVersion(_) => f.write_str("the state store was written by another version of the engine: use the version that wrote it"),
            other => write!(f, "the state store is damaged or failed ({other:?}): rebuild this node from its peers"),
        }
    }
}

impl std::error::Error for EngineError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.0 {
            Cause::Fjall(why) => Some(why.as_ref()),
            Cause::Other(why) => why.source(),
        }
    }
}

impl From<fjall::Error> for EngineError {
    fn from(why: fjall::Error) -> EngineError {
        EngineError(Cause::Fjall(Box::new(why)))
    }
}

/// fjall: an LSM tree.
pub(super) struct FjallEngine {
    dir: PathBuf,
    database: Database,
    state: Keyspace,
}

impl FjallEngine {
    pub(super) fn open(dir: &Path, options: &StoreOptions) -> Result<FjallEngine, EngineError> {
        let database = Database::builder(dir)
            .cache_size(options.cache_bytes)
            .max_journaling_size(options.journal_bytes_max.max(64 << 20))
            // The write-ahead log is what makes writes durable: the journal needs no system call for each batch.
            .manual_journal_persist(true)
            .worker_threads(options.worker_threads.max(1))
            .open()?;
        let write_buffer_bytes = options.write_buffer_bytes.max(1 << 20);
        let state = database.keyspace("state", || {
            KeyspaceCreateOptions::default()
                .manual_journal_persist(true)
                .max_memtable_size(write_buffer_bytes)
                // Reads of absent keys are common (put-if-absent, first writes): filters on every level, the last too.
                .expect_point_read_hits(false)
        })?;
        Ok(FjallEngine { dir: dir.to_owned(), database, state })
    }
}

impl Engine for FjallEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.state.get(key)?.map(Bytes::from))
    }

    fn scan(&self, from: &[u8], to: &[u8], each: Each<'_>) -> Result<(), EngineError> {
        for guard in self.state.range(from.to_vec()..to.to_vec()) {
            let (key, value) = guard.into_inner()?;
            if each(&key, &value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn commit(&self, batch: Vec<Change>) -> Result<(), EngineError> {
        let mut writes = fjall::OwnedWriteBatch::with_capacity(self.database.clone(), batch.len());
        for change in batch {
            match change {
                Change::Put(key, value) => writes.insert(&self.state, key, value),
                Change::Remove(key) => writes.remove(&self.state, key),
            }
        }
        Ok(writes.commit()?)
    }

    fn persist(&self) -> Result<(), EngineError> {
        failpoint("state.persist.before");
        self.write_back()?;
        failpoint("state.persist.written");
        self.database.persist(PersistMode::SyncAll)?;
        failpoint("state.persist.after");
        Ok(())
    }

    /// fjall syncs its journal under the lock that every commit takes: 64 MiB of it would hold all groups up for as
    /// long. The same file synced through a descriptor of our own takes no lock.
    fn write_back(&self) -> Result<(), EngineError> {
        self.database.persist(PersistMode::Buffer)?;
        failpoint("state.write-back.flushed");
        for entry in std::fs::read_dir(&self.dir).map_err(fjall::Error::Io)? {
            let path = entry.map_err(fjall::Error::Io)?.path();
            if path.extension().is_some_and(|extension| extension == "jnl") {
                match std::fs::File::open(&path).and_then(|journal| journal.sync_data()) {
                    // It was flushed and removed meanwhile.
                    Err(why) if why.kind() == std::io::ErrorKind::NotFound => {}
                    done => done.map_err(fjall::Error::Io)?,
                }
            }
        }
        Ok(())
    }

    fn snapshot(&self) -> Box<dyn Snapshot> {
        Box::new(FjallSnapshot { view: self.database.snapshot(), state: self.state.clone() })
    }

    fn disk_bytes(&self) -> u64 {
        // The figure is for operators; one that can't be had now is had a moment later.
        self.database.disk_space().unwrap_or_default()
    }
}

struct FjallSnapshot {
    view: fjall::Snapshot,
    state: Keyspace,
}

impl Snapshot for FjallSnapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.view.get(&self.state, key)?.map(Bytes::from))
    }

    fn range(&self, from: &[u8], to: &[u8]) -> PairIterator {
        let pairs = self.view.range(&self.state, from.to_vec()..to.to_vec());
        Box::new(pairs.map(|guard| {
            let (key, value) = guard.into_inner()?;
            Ok((Bytes::from(key), Bytes::from(value)))
        }))
    }
}
