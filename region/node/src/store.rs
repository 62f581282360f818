//! The state store of a node: one ordered keyspace that holds every shard, and the mark of every group beside it.
//!
//! Keys begin with their shard (`region/core`'s `keys`), so a shard is one contiguous range. What a
//! batch of entries did and the group's mark change in one atomic step that is not synced: after a
//! crash the log is replayed from the mark (DUR-1). It is seen at once and reaches the engine with others (`store/buffer.rs`).
//! Marks live behind the last shard's range:
//!
//! ```text
//! | shard (u16 BE) | kind …            |  -> region/core
//! | 0xffff | shard (u16 BE) | 'm'      |  -> format, LSN (u64 LE), opaque bytes of consensus
//! | 0xffff | shard (u16 BE) | 'r'      |  -> present while a snapshot replaces the shard
//! ```
//!
//! The engine below is a small trait, so that another one can take fjall's place.

mod buffer;
pub(crate) mod engine;
pub(crate) mod fork;
pub(crate) mod transfer;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use meridian_consensus::{Mark, SnapshotSource, StateError};
use meridian_region_core::{Mutations, StateView, ViewError, keys};
use meridian_types::{Lsn, ShardId};

pub use buffer::Frozen;
pub use engine::{Change, Each, Engine, EngineError, PairIterator, Snapshot};

use crate::options::StoreOptions;
use buffer::{Bounds, Buffer, Flusher};
use engine::FjallEngine;

/// The first byte of a stored mark.
const MARK_FORMAT: u8 = 1;

/// The shard number whose range holds the marks. No cluster has that many shards.
const RESERVED: u16 = u16::MAX;

/// Keys removed per batch when a shard is wiped: bounds the batch, not the wipe.
const WIPE_KEYS: usize = 4096;

/// What gathers before a thread of its own writes it to the engine: a few turns of many clients, and little to replay.
const GATHERED: Bounds = Bounds { rows: 4096, bytes: 2 << 20 };

/// What gathers where there is no such thread, and a commit writes it.
const GATHERED_INLINE: Bounds = Bounds { rows: 64, bytes: 64 << 10 };

/// The state store. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    engine: Arc<dyn Engine>,
    buffer: Arc<Buffer>,
    flusher: Option<Arc<Flusher>>,
    syncs: Arc<Syncs>,
}

/// Whether there is anything to sync: the groups share one store, and each asks for itself.
#[derive(Debug, Default)]
struct Syncs {
    commits: AtomicU64,
    /// How many of the commits were there at the last write-back.
    written: AtomicU64,
    /// How many of the commits are durable.
    durable: AtomicU64,
}

impl Store {
    /// Opens the store in `dir`, creating it if it is missing.
    ///
    /// # Errors
    /// [`EngineError`] when the engine can't open or recover it.
    pub fn open(dir: &Path, options: &StoreOptions) -> Result<Store, EngineError> {
        let engine: Arc<dyn Engine> = Arc::new(FjallEngine::open(dir, options)?);
        let buffer = Arc::new(Buffer::new(Arc::clone(&engine), GATHERED));
        let flusher = Flusher::start(Arc::clone(&buffer)).map_err(EngineError::new)?;
        Ok(Store { engine, buffer, flusher: Some(Arc::new(flusher)), syncs: Arc::default() })
    }

    /// A store over another engine, without a thread of its own.
    pub fn over(engine: Arc<dyn Engine>) -> Store {
        let buffer = Arc::new(Buffer::new(Arc::clone(&engine), GATHERED_INLINE));
        Store { engine, buffer, flusher: None, syncs: Arc::default() }
    }

    /// The mark stored with a shard's state. A shard whose replacement by a snapshot was cut short is wiped first: it
    /// then has no state and no mark, and is filled anew by its log or by a snapshot.
    ///
    /// # Errors
    /// When the store fails, or the mark has a format this version doesn't know.
    pub fn mark(&self, shard: ShardId) -> Result<Option<Mark>, StateError> {
        if self.buffer.get(&restoring_key(shard)).map_err(failed)?.is_some() {
            tracing::warn!(%shard, "a snapshot had not been taken in completely when the node stopped; starting over");
            self.wipe(shard)?;
            self.write(vec![Change::Remove(restoring_key(shard))])?;
            self.persist()?;
        }
        self.buffer.get(&mark_key(shard)).map_err(failed)?.map(decode_mark).transpose()
    }

    /// Makes a batch's mutations and the mark visible in one atomic step, without syncing it.
    ///
    /// # Errors
    /// When the store fails; fatal for the node.
    pub fn commit(&self, shard: ShardId, mut mutations: Mutations, mark: &Mark) -> Result<(), StateError> {
        mutations.put(mark_key(shard).into(), encode_mark(mark));
        let due = self.buffer.commit(mutations)?;
        self.syncs.commits.fetch_add(1, Ordering::AcqRel);
        match &self.flusher {
            Some(flusher) if due => flusher.due(),
            None if due => self.buffer.flush()?,
            Some(_) | None => {}
        }
        Ok(())
    }

    /// Writes to the engine what is part of no shard's ordinary life, behind everything that was committed.
    fn write(&self, batch: Vec<Change>) -> Result<(), StateError> {
        self.buffer.flush()?;
        self.engine.commit(batch).map_err(failed)?;
        self.syncs.commits.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Makes everything committed durable.
    ///
    /// # Errors
    /// When the store can't sync; fatal for the node.
    pub fn persist(&self) -> Result<(), StateError> {
        let commits = self.syncs.commits.load(Ordering::Acquire);
        if self.syncs.durable.load(Ordering::Acquire) < commits {
            self.buffer.flush()?;
            self.engine.persist().map_err(failed)?;
            self.syncs.durable.fetch_max(commits, Ordering::AcqRel);
        }
        Ok(())
    }

    /// Brings what was committed since the last time to the disk, without holding commits up. Blocks on the disk.
    ///
    /// # Errors
    /// When the disk fails; fatal for the node.
    pub fn write_back(&self) -> Result<(), StateError> {
        let commits = self.syncs.commits.load(Ordering::Acquire);
        if self.syncs.written.swap(commits, Ordering::AcqRel) != commits {
            self.buffer.flush()?;
            self.engine.write_back().map_err(failed)?;
        }
        Ok(())
    }

    /// A consistent view of a shard, to be read piece by piece while it changes.
    ///
    /// # Errors
    /// When the shard has no state yet.
    pub fn snapshot(&self, shard: ShardId) -> Result<Box<dyn SnapshotSource>, StateError> {
        self.buffer.flush()?;
        let view = self.engine.snapshot();
        let mark = view
            .get(&mark_key(shard))
            .map_err(failed)?
            .map(decode_mark)
            .transpose()?
            .ok_or_else(|| StateError::new(format!("shard {shard} has no state to take a snapshot of")))?;
        Ok(Box::new(transfer::Source::new(view, shard, mark)))
    }

    /// Replaces a shard's state by a snapshot, durably. Cut short at any point, the shard looks empty, never half-filled.
    ///
    /// # Errors
    /// When the store fails or a piece is damaged.
    pub fn restore(
        &self,
        shard: ShardId,
        pieces: &mut dyn Iterator<Item = Result<Bytes, StateError>>,
        mark: &Mark,
    ) -> Result<(), StateError> {
        let begin = vec![Change::Put(restoring_key(shard), Bytes::from_static(&[1])), Change::Remove(mark_key(shard))];
        self.write(begin)?;
        self.persist()?;
        self.wipe(shard)?;
        transfer::fill(shard, pieces, &mut |batch| self.write(batch))?;
        self.persist()?;
        let end = vec![Change::Remove(restoring_key(shard)), Change::Put(mark_key(shard), encode_mark(mark))];
        self.write(end)?;
        self.persist()
    }

    /// The state of every shard now.
    pub fn freeze(&self) -> Frozen {
        let (frozen, due) = self.buffer.freeze();
        if let Some(flusher) = self.flusher.as_ref().filter(|_| due) {
            flusher.due();
        }
        frozen
    }

    /// Bytes on disk. Blocks as long as the disk hangs.
    pub fn disk_bytes(&self) -> u64 {
        self.engine.disk_bytes()
    }

    fn wipe(&self, shard: ShardId) -> Result<(), StateError> {
        let (from, to) = keys::shard_range(shard);
        self.buffer.flush()?;
        loop {
            let mut batch = Vec::new();
            let mut each = |key: &[u8], _: &[u8]| {
                batch.push(Change::Remove(Bytes::copy_from_slice(key)));
                if batch.len() < WIPE_KEYS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            };
            self.engine.scan(&from, &to, &mut each).map_err(failed)?;
            let last = batch.len() < WIPE_KEYS;
            if last {
                batch.push(Change::Remove(mark_key(shard)));
            }
            self.write(batch)?;
            if last {
                return Ok(());
            }
        }
    }
}

impl StateView for Store {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
        self.buffer.get(key).map_err(|why| ViewError(Box::new(why)))
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        each: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), ViewError> {
        self.freeze().scan(from, to, each)
    }
}

/// A storage failure, in consensus' words: it stops the node.
fn failed(why: EngineError) -> StateError {
    StateError::with_source("the state store failed", why)
}

fn mark_key(shard: ShardId) -> Bytes {
    reserved_key(shard, b'm')
}

fn restoring_key(shard: ShardId) -> Bytes {
    reserved_key(shard, b'r')
}

fn reserved_key(shard: ShardId, tag: u8) -> Bytes {
    let mut key = BytesMut::with_capacity(5);
    key.put_u16(RESERVED);
    key.put_u16(shard.0);
    key.put_u8(tag);
    key.freeze()
}

pub(crate) fn encode_mark(mark: &Mark) -> Bytes {
    let mut bytes = BytesMut::with_capacity(9 + mark.bytes.len());
    bytes.put_u8(MARK_FORMAT);
    bytes.put_u64_le(mark.lsn.0);
    bytes.extend_from_slice(&mark.bytes);
    bytes.freeze()
}

pub(crate) fn decode_mark(mut bytes: Bytes) -> Result<Mark, StateError> {
    if bytes.len() < 9 || bytes.get_u8() != MARK_FORMAT {
        return Err(StateError::new("the mark of a shard's state is damaged or was written by a newer version"));
    }
    Ok(Mark { lsn: Lsn(bytes.get_u64_le()), bytes })
}

#[cfg(test)]
mod tests;
