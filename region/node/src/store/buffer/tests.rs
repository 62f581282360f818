use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use proptest::prelude::*;

use super::super::engine::{Each, PairIterator};
use super::*;

type Rows = BTreeMap<Bytes, Bytes>;

/// An engine in memory, which can be told to fail.
#[derive(Default)]
struct Memory {
    rows: Mutex<Rows>,
    commits: AtomicUsize,
    broken: AtomicBool,
    /// How long a commit is under way before anybody sees it, and a snapshot before anybody has it.
    slow: Duration,
}

struct Moment(Rows);

impl Memory {
    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap()
    }
}

impl Engine for Memory {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.rows().get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], each: Each<'_>) -> Result<(), EngineError> {
        let moment = self.rows().clone();
        let _ = moment.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to))).try_for_each(|(k, v)| each(k, v));
        Ok(())
    }

    fn commit(&self, batch: Vec<Change>) -> Result<(), EngineError> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(EngineError::new("the disk is gone"));
        }
        self.commits.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(self.slow);
        let mut rows = self.rows();
        for change in batch {
            match change {
                Change::Put(key, value) => drop(rows.insert(key, value)),
                Change::Remove(key) => drop(rows.remove(&key)),
            }
        }
        Ok(())
    }

    fn persist(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn write_back(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn snapshot(&self) -> Box<dyn Snapshot> {
        let moment = self.rows().clone();
        std::thread::sleep(self.slow);
        Box::new(Moment(moment))
    }

    fn disk_bytes(&self) -> u64 {
        0
    }
}

impl Snapshot for Moment {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.0.get(key).cloned())
    }

    fn range(&self, from: &[u8], to: &[u8]) -> PairIterator {
        let pairs = self.0.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)));
        let pairs: Vec<_> = pairs.map(|(key, value)| Ok((key.clone(), value.clone()))).collect();
        Box::new(pairs.into_iter())
    }
}

fn buffer(rows: usize) -> (Arc<Memory>, Buffer) {
    let memory = Arc::new(Memory::default());
    (Arc::clone(&memory), Buffer::new(memory, Bounds { rows, bytes: 1 << 20 }))
}

/// A key of a shard; the last of each shard stands for its mark, which lies behind all shards.
fn key(shard: u8, name: u8) -> Vec<u8> {
    if name == 7 { vec![0xff, 0xff, 0, shard, b'm'] } else { vec![0, shard, name] }
}

fn all(view: &dyn StateView, from: &[u8], to: &[u8]) -> Rows {
    let mut rows = Rows::new();
    view.scan(from, to, &mut |key, value| {
        rows.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
        ControlFlow::Continue(())
    })
    .unwrap();
    rows
}

fn within(rows: &Rows, from: &[u8], to: &[u8]) -> Rows {
    rows.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to))).map(|(k, v)| (k.clone(), v.clone())).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Commit { shard: u8, changes: Vec<(u8, Option<u8>)> },
    Flush,
    Freeze,
}

fn step() -> impl Strategy<Value = Step> {
    let changes = prop::collection::vec((0u8..8, any::<Option<u8>>()), 1..5);
    prop_oneof![
        6 => (0u8..20, changes).prop_map(|(shard, changes)| Step::Commit { shard, changes }),
        1 => Just(Step::Flush),
        2 => Just(Step::Freeze),
    ]
}

proptest! {
    #[test]
    fn what_is_read_is_what_was_committed_whether_it_is_here_or_in_the_engine(
        steps in prop::collection::vec(step(), 1..60), rows in 1usize..40,
    ) {
        let (memory, buffer) = buffer(rows);
        let mut model = Rows::new();
        let mut views = Vec::new();
        for step in steps {
            match step {
                Step::Commit { shard, changes } => {
                    let mut mutations = Mutations::new();
                    for (name, value) in changes {
                        let key = key(shard, name);
                        match value {
                            Some(value) => {
                                model.insert(key.clone().into(), vec![value].into());
                                mutations.put(key, vec![value]);
                            }
                            None => {
                                model.remove(key.as_slice());
                                mutations.delete(key);
                            }
                        }
                    }
                    if buffer.commit(mutations).unwrap() {
                        buffer.flush().unwrap();
                    }
                }
                Step::Flush => buffer.flush().unwrap(),
                Step::Freeze => views.push((buffer.freeze().0, model.clone())),
            }
            for (shard, name) in (0..20).flat_map(|shard| (0..8).map(move |name| (shard, name))) {
                let key = key(shard, name);
                prop_assert_eq!(buffer.get(&key).unwrap(), model.get(key.as_slice()).cloned());
            }
        }
        views.push((buffer.freeze().0, model.clone()));
        for (view, then) in &views {
            for (from, to) in [(vec![0], vec![0xff, 0xff, 0xff]), (vec![0, 3], vec![0, 9, 2]), (vec![0, 9], vec![0, 3])] {
                let expected = if from < to { within(then, &from, &to) } else { Rows::new() };
                prop_assert_eq!(all(view, &from, &to), expected);
            }
            for (shard, name) in (0..20).flat_map(|shard| (0..8).map(move |name| (shard, name))) {
                let key = key(shard, name);
                prop_assert_eq!(view.get(&key).unwrap(), then.get(key.as_slice()).cloned());
            }
        }
        buffer.flush().unwrap();
        prop_assert_eq!(&*memory.rows(), &model);
    }
}

#[test]
fn rows_that_change_again_reach_the_engine_once() {
    let (memory, buffer) = buffer(100);
    for value in 0..50 {
        let mut mutations = Mutations::new();
        mutations.put(key(1, 0), vec![value]);
        mutations.put(key(1, 7), vec![value]);
        let due = buffer.commit(mutations).unwrap();
        assert_eq!(due, value == 49, "a hundred rows were committed with the fiftieth");
    }
    assert!(memory.rows().is_empty());
    buffer.flush().unwrap();
    assert_eq!((memory.rows().len(), memory.commits.load(Ordering::Relaxed)), (2, 1));
    buffer.flush().unwrap();
    assert_eq!(memory.commits.load(Ordering::Relaxed), 1, "there is nothing left to write");
}

/// Two rows of one commit are seen together, by views and in the engine, and from then on, however long the engine takes (DUR-1).
#[test]
fn a_commit_is_never_seen_in_part() {
    let memory = Arc::new(Memory { slow: Duration::from_millis(1), ..Memory::default() });
    let buffer = Arc::new(Buffer::new(Arc::clone(&memory) as Arc<dyn Engine>, Bounds { rows: 16, bytes: 1 << 20 }));
    let flusher = Flusher::start(Arc::clone(&buffer)).unwrap();
    let writing = AtomicUsize::new(3);
    std::thread::scope(|scope| {
        for shard in 0..3 {
            let (buffer, flusher, writing) = (&buffer, &flusher, &writing);
            scope.spawn(move || {
                for round in 0..2000u32 {
                    let mut mutations = Mutations::new();
                    mutations.put(key(shard, 0), round.to_be_bytes().to_vec());
                    mutations.put(key(shard, 7), round.to_be_bytes().to_vec());
                    if buffer.commit(mutations).unwrap() {
                        flusher.due();
                    }
                }
                writing.fetch_sub(1, Ordering::Relaxed);
            });
        }
        let mut last = [None, None, None];
        while writing.load(Ordering::Relaxed) > 0 {
            let view = buffer.freeze().0;
            let engine = memory.rows().clone();
            for shard in 0..3 {
                let (row, mark) = (view.get(&key(shard, 0)).unwrap(), view.get(&key(shard, 7)).unwrap());
                assert_eq!(row, mark);
                assert!(row >= last[usize::from(shard)], "a view is no older than one before it");
                last[usize::from(shard)] = row;
                assert_eq!(engine.get(key(shard, 0).as_slice()), engine.get(key(shard, 7).as_slice()));
            }
        }
    });
    drop(flusher);
    buffer.flush().unwrap();
    assert_eq!(memory.rows().get(key(2, 0).as_slice()).unwrap().as_ref(), 1999u32.to_be_bytes());
}

#[test]
fn an_engine_that_fails_takes_no_more_commits_and_says_why() {
    let (memory, buffer) = buffer(1000);
    let commit = || {
        let mut mutations = Mutations::new();
        mutations.put(key(1, 0), vec![1]);
        buffer.commit(mutations)
    };
    assert!(!commit().unwrap());
    memory.broken.store(true, Ordering::Relaxed);
    assert!(buffer.flush().unwrap_err().to_string().contains("the disk is gone"));
    memory.broken.store(false, Ordering::Relaxed);
    assert!(commit().unwrap_err().to_string().contains("the disk is gone"));
    assert!(buffer.flush().is_err(), "what it lost can't be made good by trying again");
}

/// RES-1: an engine that is slower than its commits holds them up.
#[test]
fn what_gathers_is_bounded() {
    let (memory, buffer) = buffer(10);
    for number in 0..200u8 {
        let mut mutations = Mutations::new();
        mutations.put(vec![0, 1, b'k', number], vec![number]);
        buffer.commit(mutations).unwrap();
        assert!(usize::from(number) + 1 - memory.rows().len() < 10 * HALT);
    }
}
