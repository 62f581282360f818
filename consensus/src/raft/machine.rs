//! openraft's view of one group's state machine.

use std::io;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::{Stream, StreamExt};
use meridian_failpoint::failpoint;
use meridian_types::Lsn;
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::{AsyncRuntime, EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot};
use tokio::sync::{oneshot, watch};

use super::mark::Position;
use super::seat::{Back, Seat, Undone};
use super::snapshot::SnapshotData;
use super::types::{Members, RaftLogId, SnapshotMeta, TypeConfig, entry_id};
use crate::error::StateError;
use crate::machine::{Committed, SnapshotSource, StateMachine};

/// How many entries, and payload bytes, one call of `StateMachine::apply` takes at most: a batch is one atomic
/// write of the store, and must not grow with a backlog (RES-1).
const BATCH_ENTRIES: usize = 1024;
const BATCH_BYTES: usize = 4 << 20;

/// How far a group has come on this node.
#[derive(Debug)]
pub(crate) struct Progress {
    pub(crate) applied: watch::Sender<Lsn>,
    /// The term of the last applied entry.
    pub(crate) applied_term: AtomicU64,
    /// What the state machine has made durable.
    pub(crate) persisted: AtomicU64,
    /// Payload bytes applied since.
    pub(crate) unpersisted_bytes: AtomicU64,
}

impl Progress {
    pub(crate) fn new(position: Option<&Position>) -> Progress {
        Progress {
            applied: watch::Sender::new(Lsn(position.map_or(0, |position| position.index))),
            applied_term: AtomicU64::new(position.map_or(0, |position| position.term)),
            persisted: AtomicU64::new(0),
            unpersisted_bytes: AtomicU64::new(0),
        }
    }

    fn advance(&self, position: &Position) {
        self.applied_term.store(position.term, Ordering::Release);
        self.applied.send_replace(Lsn(position.index));
    }
}

/// What every part of a group's machine needs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Desk {
    pub(crate) seat: Arc<Seat>,
    pub(crate) back: Arc<Back>,
    pub(crate) progress: Arc<Progress>,
}

impl Desk {
    /// Does something quick with the state machine: here and now, unless it is being restored.
    async fn quick<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut dyn StateMachine) -> Result<T, StateError> + Send + 'static,
    ) -> io::Result<T> {
        match self.seat.try_with(job) {
            Ok(done) => done.map_err(undone),
            Err(job) => self.slow(move |seat| seat.with(job)).await,
        }
    }

    /// Does something on the back thread. A failure is the end of this node.
    async fn slow<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Seat) -> Result<T, Undone> + Send + 'static,
    ) -> io::Result<T> {
        let (answer, done) = oneshot::channel();
        let seat = Arc::clone(&self.seat);
        // Nobody waits any more when the group was stopped meanwhile.
        self.back.submit(Box::new(move || drop(answer.send(job(&seat)))));
        done.await.unwrap_or(Err(Undone::Stopped)).map_err(undone)
    }
}

fn undone(why: Undone) -> io::Error {
    match why {
        Undone::Stopped => io::Error::new(io::ErrorKind::BrokenPipe, "the state machine was stopped"),
        Undone::Failed(message) => io::Error::other(message),
    }
}

/// One group's state machine for openraft.
pub(crate) struct Machine<RT> {
    desk: Desk,
    position: Option<Position>,
    runtime: PhantomData<fn() -> RT>,
}

impl<RT> Machine<RT> {
    pub(crate) fn new(desk: Desk, position: Option<Position>) -> Machine<RT> {
        Machine { desk, position, runtime: PhantomData }
    }
}

/// Entries that are applied together.
struct Batch<RT: AsyncRuntime> {
    entries: Vec<Committed>,
    bytes: usize,
    /// For each entry that somebody waits for: its place in `entries`, or none if it is Raft's own.
    waiting: Vec<(Option<usize>, ApplyResponder<TypeConfig<RT>>)>,
    position: Position,
}

impl<RT: AsyncRuntime> Batch<RT> {
    fn push(&mut self, (entry, responder): EntryResponder<TypeConfig<RT>>) {
        let id = entry_id(&entry.log_id);
        (self.position.term, self.position.index) = (id.term, id.index);
        let mut place = None;
        match entry.payload {
            EntryPayload::Normal(payload) => {
                place = Some(self.entries.len());
                self.bytes += payload.0.len();
                self.entries.push(Committed { lsn: Lsn(id.index), payload: payload.0 });
            }
            EntryPayload::Membership(members) => self.position.members = Members::new(Some(entry.log_id), members),
            EntryPayload::Blank => {}
        }
        self.waiting.extend(responder.map(|responder| (place, responder)));
    }

    fn is_full(&self) -> bool {
        self.entries.len() >= BATCH_ENTRIES || self.bytes >= BATCH_BYTES
    }

    /// Returns the answers, to be sent.
    fn apply(
        self,
        machine: &mut dyn StateMachine,
        progress: &Progress,
    ) -> Result<(Position, impl FnOnce() + Send + use<RT>), StateError> {
        failpoint("raft.apply.before");
        let results = machine.apply(&self.entries, &self.position.encode())?;
        failpoint("raft.apply.after");
        if results.len() != self.entries.len() {
            return Err(StateError::new(format!(
                "the state machine gave {} results for {} entries",
                results.len(),
                self.entries.len()
            )));
        }
        progress.unpersisted_bytes.fetch_add(self.bytes as u64, Ordering::Relaxed);
        progress.advance(&self.position);
        let waiting = self.waiting;
        let answers = move || {
            failpoint("raft.answers.before");
            for (place, responder) in waiting {
                responder.send(place.and_then(|place| results.get(place).cloned()).unwrap_or_default());
            }
            failpoint("raft.answers.after");
        };
        Ok((self.position, answers))
    }
}

impl<RT: AsyncRuntime> RaftStateMachine<TypeConfig<RT>> for Machine<RT> {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder<RT>;

    async fn applied_state(&mut self) -> Result<(Option<RaftLogId>, Members), io::Error> {
        Ok(self.position.as_ref().map_or_else(Default::default, |at| (Some(at.log_id()), at.members.clone())))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig<RT>>, io::Error>> + Unpin + OptionalSend,
    {
        let mut more = true;
        while more {
            let position = self.position.clone().unwrap_or_default();
            let mut batch: Batch<RT> = Batch { entries: Vec::new(), bytes: 0, waiting: Vec::new(), position };
            let before = batch.position.clone();
            while !batch.is_full() && more {
                match entries.next().await {
                    Some(item) => batch.push(item?),
                    None => more = false,
                }
            }
            if batch.position == before && self.position.is_some() {
                break;
            }
            let progress = Arc::clone(&self.desk.progress);
            let (position, answers) = self.desk.quick(move |machine| batch.apply(machine, &progress)).await?;
            answers();
            self.position = Some(position);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        Builder { desk: self.desk.clone(), runtime: PhantomData }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> Result<(), io::Error> {
        let Some(last) = meta.last_log_id.as_ref().map(entry_id) else { return Ok(()) };
        let position = Position { term: last.term, index: last.index, members: meta.last_membership.clone() };
        let mark = position.encode();
        let restore = move |machine: &mut dyn StateMachine| match snapshot {
            SnapshotData::Received(spool) => machine.restore(&mut spool.pieces()?, &mark),
            SnapshotData::Own(mut source) => {
                let mut pieces = std::iter::from_fn(|| source.next_piece().transpose());
                machine.restore(&mut pieces, &mark)
            }
            SnapshotData::Position => Err(StateError::new("a position is no snapshot")),
        };
        failpoint("snapshot.install.before");
        self.desk.slow(move |seat| seat.with(restore)).await?;
        failpoint("snapshot.install.after");
        self.desk.progress.persisted.store(position.index, Ordering::Relaxed);
        self.desk.progress.unpersisted_bytes.store(0, Ordering::Relaxed);
        self.desk.progress.advance(&position);
        self.position = Some(position);
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<openraft::type_config::alias::SnapshotOf<TypeConfig<RT>, SnapshotData>>, io::Error> {
        if self.position.is_none() {
            return Ok(None);
        }
        let (meta, source) = self
            .desk
            .quick(|machine| {
                let source: Box<dyn SnapshotSource> = machine.snapshot()?;
                Ok((meta_of(&Position::decode(&source.mark())?), source))
            })
            .await?;
        Ok(Some(Snapshot { meta, snapshot: SnapshotData::Own(source) }))
    }
}

fn meta_of(position: &Position) -> SnapshotMeta {
    SnapshotMeta { last_log_id: Some(position.log_id()), last_membership: position.members.clone() }
}

/// "Builds" a snapshot: makes the state durable and says up to where. The data itself is read when a follower needs it.
pub(crate) struct Builder<RT> {
    desk: Desk,
    runtime: PhantomData<fn() -> RT>,
}

impl<RT: AsyncRuntime> RaftSnapshotBuilder<TypeConfig<RT>> for Builder<RT> {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(
        &mut self,
    ) -> Result<openraft::type_config::alias::SnapshotOf<TypeConfig<RT>, SnapshotData>, io::Error> {
        let progress = Arc::clone(&self.desk.progress);
        let bytes = progress.unpersisted_bytes.load(Ordering::Relaxed);
        let begin = |machine: &mut dyn StateMachine| match machine.mark()? {
            Some(mark) => Ok(Some((mark, machine.persist()?))),
            None => Ok(None),
        };
        let Some((mark, persist)) = self.desk.quick(begin).await? else {
            return Ok(Snapshot { meta: SnapshotMeta::default(), snapshot: SnapshotData::Position });
        };
        let least = mark.lsn;
        let finish = move || match persist()? {
            durable if durable < least => {
                Err(StateError::new(format!("the state machine persisted {durable} of {least} applied")))
            }
            _ => Ok(()),
        };
        failpoint("snapshot.build.before");
        self.desk.slow(move |seat| seat.watched(finish)).await?;
        failpoint("snapshot.build.after");
        progress.unpersisted_bytes.fetch_sub(bytes, Ordering::Relaxed);
        progress.persisted.fetch_max(mark.lsn.0, Ordering::Relaxed);
        let position = Position::decode(&mark).map_err(io::Error::other)?;
        Ok(Snapshot { meta: meta_of(&position), snapshot: SnapshotData::Position })
    }
}
