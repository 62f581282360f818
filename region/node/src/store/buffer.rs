//! What was committed and is not in the engine yet.
//!
//! ```text
//! commit ──► rows here: seen by every read at once ──► one batch of many commits ──► engine
//! ```
//!
//! A batch of entries changes few rows, and most of them are those of the batch before: the shard's position, the bucket's
//! digest, the mark, the slot of a client's answer. Only their last values reach the engine, and whoever applies does not wait
//! for it. A crash takes what is here as it takes what the engine has not synced: always with the marks that stand for it, so
//! the log brings it again (DUR-1). The rows of a commit lie in one stripe, and a flush takes whole commits.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use meridian_consensus::StateError;
use meridian_failpoint::failpoint;
use meridian_region_core::{Mutations, StateView, ViewError};

use super::engine::{Change, Engine, EngineError, Snapshot};
use super::{Each, RESERVED};

/// Shards share so many locks: those of different shards seldom meet.
const STRIPES: usize = 16;

/// How much is gathered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// From so many rows on they are written to the engine.
    pub(super) rows: usize,
    /// Or from so many bytes on.
    pub(super) bytes: usize,
}

/// So many layers in a stripe are too many to look through for each key.
const LAYERS_MAX: usize = 8;

/// How many times as much may gather while the engine writes; then commits wait for it (RES-1).
const HALT: usize = 4;

/// The rows on their way to one engine.
pub(super) struct Buffer {
    engine: Arc<dyn Engine>,
    bounds: Bounds,
    stripes: [Mutex<Stripe>; STRIPES],
    rows: AtomicUsize,
    bytes: AtomicUsize,
    /// Held by whoever writes to the engine, so that later rows come later.
    flushing: Mutex<()>,
    /// Why the engine takes nothing any more.
    failed: OnceLock<String>,
}

/// Those of some shards.
#[derive(Default)]
struct Stripe {
    open: Mutations,
    /// Shared with views, and with the flush under way; the oldest first.
    sealed: Layers,
}

/// Layers of changes that don't change any more, the oldest first.
type Layers = Vec<Arc<Mutations>>;

impl Stripe {
    fn change(&self, key: &[u8]) -> Option<Option<Bytes>> {
        let sealed = || change(&self.sealed, key);
        self.open.change(key).map(|change| change.cloned()).or_else(sealed)
    }

    /// What is here now, as it will stay.
    fn seal(&mut self) -> Layers {
        if !self.open.is_empty() {
            self.sealed.push(Arc::new(std::mem::take(&mut self.open)));
        }
        self.sealed.clone()
    }
}

fn change(layers: &[Arc<Mutations>], key: &[u8]) -> Option<Option<Bytes>> {
    layers.iter().rev().find_map(|layer| layer.change(key)).map(|change| change.cloned())
}

/// The stripe of a key: that of its shard, also for what is said of a shard behind the last one's range.
fn stripe_of(key: &[u8]) -> usize {
    let shard = if key.starts_with(&RESERVED.to_be_bytes()) { key.get(2..) } else { Some(key) };
    shard.and_then(|shard| shard.get(1)).map_or(0, |low| usize::from(*low) % STRIPES)
}

fn bytes_of(changes: &Mutations) -> usize {
    changes.iter().map(|(key, value)| key.len() + value.map_or(0, Bytes::len)).sum()
}

impl Buffer {
    pub(super) fn new(engine: Arc<dyn Engine>, bounds: Bounds) -> Buffer {
        Buffer {
            engine,
            bounds,
            stripes: Default::default(),
            rows: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            flushing: Mutex::default(),
            failed: OnceLock::new(),
        }
    }

    /// Makes changes of one shard visible in one step. True once so much has gathered that a flush is due.
    pub(super) fn commit(&self, changes: Mutations) -> Result<bool, StateError> {
        self.sound()?;
        let Some((key, _)) = changes.iter().next() else { return Ok(false) };
        let (stripe, rows, bytes) = (stripe_of(key), changes.len(), bytes_of(&changes));
        self.stripe(stripe).open.extend(changes);
        let rows = self.rows.fetch_add(rows, Ordering::Relaxed) + rows;
        let bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if rows >= self.bounds.rows * HALT || bytes >= self.bounds.bytes * HALT {
            self.flush()?;
            return Ok(false);
        }
        Ok(rows >= self.bounds.rows || bytes >= self.bounds.bytes)
    }

    /// The value of a key.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let change = self.stripe(stripe_of(key)).change(key);
        match change {
            Some(change) => Ok(change),
            // What left this buffer in between is in the engine.
            None => self.engine.get(key),
        }
    }

    /// Everything as it is now; and whether views have cut what gathers into so many layers that a flush is due.
    pub(super) fn freeze(&self) -> (Frozen, bool) {
        let mut stripes: Vec<MutexGuard<'_, Stripe>> = (0..STRIPES).map(|stripe| self.stripe(stripe)).collect();
        // With all locks held: nothing leaves this buffer, which would be in neither of the two, or comes to it.
        let view = View(self.engine.snapshot());
        let layers: Vec<Layers> = stripes.iter_mut().map(|stripe| stripe.seal()).collect();
        let due = layers.iter().any(|layers| layers.len() >= LAYERS_MAX);
        (Frozen { view, layers }, due)
    }

    /// Writes everything that is here by now to the engine, as one batch.
    pub(super) fn flush(&self) -> Result<(), StateError> {
        let _alone = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        self.sound()?;
        self.rows.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
        let taken: Vec<Layers> = (0..STRIPES).map(|stripe| self.stripe(stripe).seal()).collect();
        let batch = batch(&taken);
        if batch.is_empty() {
            return Ok(());
        }
        failpoint("state.flush.before");
        if let Err(why) = self.engine.commit(batch) {
            let why = self.failed.get_or_init(|| why.to_string());
            return Err(failed(why));
        }
        failpoint("state.flush.after");
        for (stripe, taken) in taken.iter().enumerate() {
            self.stripe(stripe).sealed.drain(..taken.len());
        }
        Ok(())
    }

    fn sound(&self) -> Result<(), StateError> {
        self.failed.get().map_or(Ok(()), |why| Err(failed(why)))
    }

    fn stripe(&self, stripe: usize) -> MutexGuard<'_, Stripe> {
        self.stripes[stripe].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn failed(why: &str) -> StateError {
    StateError::new(format!("the state store failed: {why}"))
}

/// The last change of every key.
fn batch(taken: &[Layers]) -> Vec<Change> {
    let layers = || taken.iter().flatten();
    let mut last: BTreeMap<&Bytes, Option<&Bytes>> = BTreeMap::new();
    for layer in layers() {
        last.extend(layer.iter());
    }
    let changes = last.into_iter().map(|(key, value)| match value {
        Some(value) => Change::Put(key.clone(), value.clone()),
        None => Change::Remove(key.clone()),
    });
    changes.collect()
}

/// The engine at one moment, without what was not in it.
struct View(Box<dyn Snapshot>);

impl StateView for View {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
        self.0.get(key).map_err(|why| ViewError(Box::new(why)))
    }

    fn scan(&self, from: &[u8], to: &[u8], each: Each<'_>) -> Result<(), ViewError> {
        for pair in self.0.range(from, to) {
            let (key, value) = pair.map_err(|why| ViewError(Box::new(why)))?;
            if each(&key, &value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// The state of every shard at one moment, for reads of more than one key.
pub struct Frozen {
    view: View,
    /// By stripe.
    layers: Vec<Layers>,
}

impl StateView for Frozen {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ViewError> {
        match self.layers.get(stripe_of(key)).and_then(|layers| change(layers, key)) {
            Some(change) => Ok(change),
            None => self.view.get(key),
        }
    }

    fn scan(&self, from: &[u8], to: &[u8], each: Each<'_>) -> Result<(), ViewError> {
        let mut changes = Mutations::new();
        for layer in self.layers.iter().flatten() {
            changes.extend(layer.within(from, to));
        }
        changes.over(&self.view).scan(from, to, each)
    }
}

/// The thread that writes what has gathered to the engine. Dropped, it does so for the last time: then a start has less to replay.
pub(super) struct Flusher {
    due: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Flusher {
    pub(super) fn start(buffer: Arc<Buffer>) -> std::io::Result<Flusher> {
        let (due, asked) = sync_channel(1);
        let thread = std::thread::Builder::new().name("state-writer".to_owned());
        let thread = thread.spawn(move || run(&buffer, &asked))?;
        Ok(Flusher { due: Some(due), thread: Some(thread) })
    }

    /// A flush is due; one that is waiting to be begun will do.
    pub(super) fn due(&self) {
        if let Some(due) = &self.due {
            let _ = due.try_send(());
        }
    }
}

fn run(buffer: &Buffer, asked: &Receiver<()>) {
    let mut more = true;
    while more {
        more = asked.recv().is_ok();
        // The next commit is told.
        if let Err(why) = buffer.flush() {
            return tracing::error!(%why, "the state store takes no more");
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        drop(self.due.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
