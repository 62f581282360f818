//! The state engine of a simulated node: in memory, with a journal that a crash cuts anywhere.
//!
//! As with the real engine, a commit is atomic and not durable; what was committed since the last persist survives a crash
//! as some prefix of the commits. Rotten keys are found by their checksum, as a real engine's blocks are.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use meridian_region_node::{Change, Each, Engine, EngineError, PairIterator, Snapshot};

use super::dice::Dice;

type State = BTreeMap<Bytes, Bytes>;

/// The engine and its disk: it outlives its node.
#[derive(Default)]
pub(crate) struct MemoryEngine(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    now: Arc<State>,
    durable: State,
    /// Commits since the last persist.
    journal: Vec<Vec<Change>>,
    rotten: BTreeSet<Bytes>,
    /// Nothing may touch it any more: its node is gone, and another one has the disk.
    generation: u64,
}

/// The engine as one life of the node has it open.
pub(crate) struct Opened {
    engine: Arc<MemoryEngine>,
    generation: u64,
}

impl MemoryEngine {
    /// Opens it for a node that starts.
    pub(crate) fn open(self: &Arc<Self>) -> Opened {
        let mut inner = self.inner();
        inner.generation += 1;
        Opened { engine: Arc::clone(self), generation: inner.generation }
    }

    /// The node is gone: `keep` of the commits that were not persisted survive, the oldest first. Returns how many bytes don't.
    pub(crate) fn crash(&self, keep: impl FnOnce(usize) -> usize) -> u64 {
        let mut inner = self.inner();
        inner.generation += 1;
        let mut journal = std::mem::take(&mut inner.journal);
        let lost = journal.split_off(keep(journal.len()).min(journal.len()));
        journal.into_iter().for_each(|commit| apply(&mut inner.durable, commit));
        inner.now = Arc::new(inner.durable.clone());
        lost.iter().flatten().map(bytes).sum()
    }

    /// Damages one of the keys; `false` when there is none.
    pub(crate) fn rot(&self, dice: &Dice) -> bool {
        let mut inner = self.inner();
        let length = inner.now.len();
        let Some(key) = inner.now.keys().nth(dice.index(length.max(1))).cloned() else { return false };
        inner.rotten.insert(key)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bytes(change: &Change) -> u64 {
    match change {
        Change::Put(key, value) => (key.len() + value.len()) as u64,
        Change::Remove(key) => key.len() as u64,
    }
}

fn apply(state: &mut State, commit: Vec<Change>) {
    for change in commit {
        match change {
            Change::Put(key, value) => drop(state.insert(key, value)),
            Change::Remove(key) => drop(state.remove(&key)),
        }
    }
}

impl Opened {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        let inner = self.engine.inner();
        assert_eq!(inner.generation, self.generation, "a node that is gone touched its state");
        inner
    }
}

fn span<'a>(from: &'a [u8], to: &'a [u8]) -> (Bound<&'a [u8]>, Bound<&'a [u8]>) {
    (Bound::Included(from), Bound::Excluded(to))
}

fn sound(rotten: &BTreeSet<Bytes>, key: &[u8]) -> Result<(), EngineError> {
    if rotten.contains(key) { Err(EngineError::new("a block of the state store has a wrong checksum")) } else { Ok(()) }
}

impl Engine for Opened {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let inner = self.inner();
        sound(&inner.rotten, key)?;
        Ok(inner.now.get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], each: Each<'_>) -> Result<(), EngineError> {
        // As of the moment of the call: `each` may look at other keys.
        let (now, rotten) = {
            let inner = self.inner();
            (Arc::clone(&inner.now), inner.rotten.clone())
        };
        for (key, value) in now.range::<[u8], _>(span(from, to)) {
            sound(&rotten, key)?;
            if each(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn commit(&self, batch: Vec<Change>) -> Result<(), EngineError> {
        let mut inner = self.inner();
        for Change::Put(key, _) | Change::Remove(key) in &batch {
            inner.rotten.remove(key);
        }
        apply(Arc::make_mut(&mut inner.now), batch.clone());
        inner.journal.push(batch);
        Ok(())
    }

    fn persist(&self) -> Result<(), EngineError> {
        let mut inner = self.inner();
        let journal = std::mem::take(&mut inner.journal);
        journal.into_iter().for_each(|commit| apply(&mut inner.durable, commit));
        Ok(())
    }

    fn write_back(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn snapshot(&self) -> Box<dyn Snapshot> {
        let inner = self.inner();
        Box::new(View { state: Arc::clone(&inner.now), rotten: inner.rotten.clone() })
    }

    fn disk_bytes(&self) -> u64 {
        self.inner().durable.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum()
    }
}

struct View {
    state: Arc<State>,
    rotten: BTreeSet<Bytes>,
}

impl Snapshot for View {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        sound(&self.rotten, key)?;
        Ok(self.state.get(key).cloned())
    }

    fn range(&self, from: &[u8], to: &[u8]) -> PairIterator {
        let pairs = self.state.range::<[u8], _>(span(from, to));
        let pair = |(key, value): (&Bytes, &Bytes)| sound(&self.rotten, key).map(|()| (key.clone(), value.clone()));
        let pairs: Vec<_> = pairs.map(pair).collect();
        Box::new(pairs.into_iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &'static str) -> Vec<Change> {
        vec![Change::Put(Bytes::from_static(key.as_bytes()), Bytes::from_static(b"v"))]
    }

    #[test]
    fn a_crash_keeps_what_was_persisted_and_a_prefix_of_the_rest() {
        let engine = Arc::new(MemoryEngine::default());
        let open = engine.open();
        open.commit(put("a")).unwrap();
        open.persist().unwrap();
        for key in ["b", "c", "d"] {
            open.commit(put(key)).unwrap();
        }
        assert_eq!(engine.crash(|unsynced| unsynced - 2), 4, "two keys and their values");
        let open = engine.open();
        let found: Vec<_> = ["a", "b", "c", "d"].map(|key| open.get(key.as_bytes()).unwrap().is_some()).into();
        assert_eq!(found, [true, true, false, false]);
    }

    #[test]
    fn a_rotten_key_is_an_error_until_it_is_written_again_and_a_view_keeps_its_moment() {
        let engine = Arc::new(MemoryEngine::default());
        let open = engine.open();
        open.commit(put("a")).unwrap();
        let view = open.snapshot();
        open.commit(put("b")).unwrap();
        assert_eq!(view.range(b"", b"z").count(), 1);
        assert!(engine.rot(&Dice::new(1)));
        assert!(open.get(b"a").is_err() || open.get(b"b").is_err());
        open.commit(put("a")).unwrap();
        open.commit(put("b")).unwrap();
        assert!(open.get(b"a").is_ok() && open.get(b"b").is_ok());
    }
}
