//! openraft's own suite for storages, against the shared log and a state machine in its seat.

use std::sync::Arc;

use bytes::Bytes;
use meridian_types::{GroupId, Lsn, NodeId};
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use openraft_rt_tokio::TokioRuntime;
use tempfile::TempDir;

use super::machine::{Desk, Machine, Progress};
use super::seat::{Back, Seat};
use super::storage::Storage;
use super::types::TypeConfig;
use crate::error::StateError;
use crate::log::Log;
use crate::machine::{Committed, Mark, Persist, SnapshotSource, StateMachine};
use crate::options::LogOptions;
use crate::poison::Poison;
use crate::turn::{Place, Turn};

const GROUP: GroupId = GroupId(1);

/// Remembers only its mark: what the suite asks is about positions and members.
#[derive(Default)]
struct Marks(Option<Mark>);

impl StateMachine for Marks {
    fn mark(&self) -> Result<Option<Mark>, StateError> {
        Ok(self.0.clone())
    }
    fn apply(&mut self, batch: &[Committed], mark: &Mark) -> Result<Vec<Bytes>, StateError> {
        self.0 = Some(mark.clone());
        Ok(vec![Bytes::new(); batch.len()])
    }
    fn persist(&mut self) -> Result<Persist, StateError> {
        let applied = self.0.as_ref().map_or(Lsn(0), |mark| mark.lsn);
        Ok(Box::new(move || Ok(applied)))
    }
    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, StateError> {
        self.0.clone().map(|mark| Box::new(Nothing(mark)) as _).ok_or_else(|| StateError::new("nothing applied"))
    }
    fn restore(
        &mut self,
        _: &mut dyn Iterator<Item = Result<Bytes, StateError>>,
        mark: &Mark,
    ) -> Result<(), StateError> {
        self.0 = Some(mark.clone());
        Ok(())
    }
}

struct Nothing(Mark);

impl SnapshotSource for Nothing {
    fn mark(&self) -> Mark {
        self.0.clone()
    }
    fn next_piece(&mut self) -> Result<Option<Bytes>, StateError> {
        Ok(None)
    }
}

struct Builder;

/// Dropped in this order: the directory last.
type Guard = (Arc<Log>, TempDir);

impl StoreBuilder<TypeConfig<TokioRuntime>, Storage<TokioRuntime>, Machine<TokioRuntime>, Guard> for Builder {
    async fn build(
        &self,
    ) -> Result<(Guard, Storage<TokioRuntime>, Machine<TokioRuntime>), StorageError<TypeConfig<TokioRuntime>>> {
        let dir = tempfile::tempdir().unwrap();
        let poison = Poison::new();
        let options = LogOptions { segment_bytes: 64 << 10, cache_bytes: 0, queue_bytes_max: 1 << 20 };
        let log = Arc::new(Log::open(dir.path(), NodeId(1), &options, &poison).unwrap());
        let turn = Turn::new(Arc::clone(&log), Place::Here);
        let storage = Storage::new(log.group(GROUP).with_prompter(turn.prompter()));
        let desk = Desk {
            seat: Arc::new(Seat::new(GROUP, Box::new(Marks::default()), &poison)),
            back: Arc::new(Back::start(&poison).unwrap()),
            progress: Arc::new(Progress::new(None)),
        };
        tokio::spawn(async move { turn.run().await });
        Ok(((log, dir), storage, Machine::new(desk, None)))
    }
}

#[test]
fn openrafts_suite_for_storages_passes() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(Suite::test_all(Builder)).unwrap();
}
