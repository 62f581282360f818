//! Consensus of a simulated node: many groups over one log, behind the seam that region/node asks of it.
//!
//! An entry is acknowledged once it is synced, committed and applied, as by the real one; after a restart the log is
//! replayed from the state's mark behind an entry that begins the new term. Each group has one voter: what is synced is
//! committed. [`SimulatedGroup::synced`] is the place where the acknowledgements of other voters will count.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use meridian_consensus::{
    Applied, ChangeError, Committed, Leadership, LogSlice, Mark, ProposeError, ReadError, ReadLogError, StartError,
    StateMachine,
};
use meridian_region_node::{Barrier, Groups, Proposal, ShardGroup};
use meridian_types::{GroupId, Lsn, NodeId};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::dice::Dice;
use super::disk::{NodeDisk, ReadFailure, Record};
use super::node::chain;

/// As consensus' defaults: payload bytes under way per group, bytes of one entry, and how often there is a look at what is to be made
/// durable and purged.
const IN_FLIGHT_BYTES_MAX: u64 = 32 << 20;
const PAYLOAD_BYTES_MAX: usize = 4 << 20;
const JANITOR_EVERY: Duration = Duration::from_secs(1);

/// How a node keeps its log and its state.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Housekeeping {
    /// How often state is made durable; between, a crash costs the replay of the log.
    pub(crate) persist_every: Duration,
    /// How many entries are purged at a time.
    pub(crate) purge_entries: u64,
}

/// What consensus says when a sync failed: it is the end of the node, for trying again and succeeding would be a lie.
pub(crate) const SYNC_FAILED: &str = "the write-ahead log failed";

/// The most entries applied in one batch.
const BATCH_MAX: usize = 64;

/// Consensus of one life of a node.
pub(crate) struct SimulatedConsensus {
    node: NodeId,
    disk: Arc<NodeDisk>,
    dice: Dice,
    wal: Arc<Wal>,
    groups: Mutex<BTreeMap<GroupId, Arc<SimulatedGroup>>>,
    housekeeping: Housekeeping,
    /// What stopped this node for good.
    fatal: watch::Sender<Option<String>>,
}

/// What waits for the log's writer.
#[derive(Default)]
struct Wal {
    waiting: Mutex<Vec<(GroupId, Record)>>,
    written: Notify,
}

/// One group.
pub(crate) struct SimulatedGroup {
    id: GroupId,
    node: NodeId,
    disk: Arc<NodeDisk>,
    wal: Arc<Wal>,
    leadership: watch::Sender<Leadership>,
    state: Mutex<State>,
    committed: Notify,
    machine: Mutex<Box<dyn StateMachine>>,
}

struct State {
    appended: Lsn,
    committed: Lsn,
    applied: Lsn,
    persisted: Lsn,
    purge_allowed: Lsn,
    in_flight_bytes: u64,
    /// Who waits for which entry, rising.
    waiting: VecDeque<Waiting>,
    /// The entry that begins this term.
    first: Lsn,
}

/// Who waits for an entry.
struct Waiting {
    lsn: Lsn,
    bytes: u64,
    answer: oneshot::Sender<Result<Applied, ProposeError>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SimulatedConsensus {
    /// Consensus over a disk. Its tasks are [`SimulatedConsensus::write`] and [`SimulatedConsensus::keep_house`].
    pub(crate) fn open(
        node: NodeId,
        disk: Arc<NodeDisk>,
        dice: Dice,
        housekeeping: Housekeeping,
    ) -> SimulatedConsensus {
        SimulatedConsensus {
            node,
            disk,
            dice,
            wal: Arc::default(),
            groups: Mutex::default(),
            housekeeping,
            fatal: watch::Sender::new(None),
        }
    }

    /// Resolves with the reason when this node must end.
    pub(crate) async fn fatal(&self) -> String {
        let mut fatal = self.fatal.subscribe();
        loop {
            if let Some(why) = fatal.borrow_and_update().clone() {
                return why;
            }
            if fatal.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Has this node end, and never returns: nothing else may be taken for the reason.
    async fn fail(&self, why: String) {
        self.fatal.send_if_modified(|fatal| {
            let first = fatal.is_none();
            fatal.get_or_insert(why);
            first
        });
        std::future::pending().await
    }

    /// Writes and syncs, for ever: while one sync is under way, the next batch gathers.
    pub(crate) async fn write(self: Arc<Self>) {
        loop {
            let batch = std::mem::take(&mut *lock(&self.wal.waiting));
            if batch.is_empty() {
                self.wal.written.notified().await;
                continue;
            }
            let mut ends = BTreeMap::new();
            for (group, record) in batch {
                ends.insert(group, record.lsn);
                self.disk.append(group, [record]);
            }
            if self.disk.sync().await.is_err() {
                return self.fail(SYNC_FAILED.to_owned()).await;
            }
            let groups = lock(&self.groups);
            ends.into_iter().for_each(|(group, lsn)| groups[&group].synced(lsn));
        }
    }

    /// Applies what a group committed, for ever.
    async fn apply(self: Arc<Self>, group: Arc<SimulatedGroup>) {
        loop {
            let (from, to) = {
                let state = group.state();
                (state.applied, state.committed)
            };
            if from >= to {
                group.committed.notified().await;
                continue;
            }
            // Apply threads are shared and get their turn late at times.
            if self.dice.chance(0.1) {
                sleep(self.dice.duration(Duration::from_millis(1), Duration::from_millis(5))).await;
            }
            if let Err(why) = group.apply_batch(from, to) {
                return self.fail(why).await;
            }
        }
    }

    /// Makes state durable and purges the log, for ever.
    pub(crate) async fn keep_house(self: Arc<Self>) {
        let mut ticks = interval(JANITOR_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = tokio::time::Instant::now();
        loop {
            ticks.tick().await;
            let groups: Vec<_> = lock(&self.groups).values().cloned().collect();
            let persist = last.elapsed() >= self.housekeeping.persist_every;
            if persist {
                last = tokio::time::Instant::now();
            }
            for group in groups {
                if persist && let Err(why) = group.persist() {
                    return self.fail(why).await;
                }
                group.purge(self.housekeeping.purge_entries);
            }
        }
    }

    /// The tasks of the groups that were started.
    pub(crate) fn appliers(self: &Arc<Self>) -> Vec<BoxFuture<'static, ()>> {
        let groups: Vec<_> = lock(&self.groups).values().cloned().collect();
        groups.into_iter().map(|group| Arc::clone(self).apply(group).boxed()).collect()
    }

    /// Up to where a group's state is applied.
    pub(crate) fn applied(&self, group: GroupId) -> Option<Lsn> {
        lock(&self.groups).get(&group).map(|group| group.state().applied)
    }

    /// Payload bytes under way in the fullest group, and the most they may be.
    pub(crate) fn in_flight_bytes(&self) -> (u64, u64) {
        let most = lock(&self.groups).values().map(|group| group.state().in_flight_bytes).max();
        (most.unwrap_or_default(), IN_FLIGHT_BYTES_MAX)
    }

    fn begin(&self, id: GroupId, machine: Box<dyn StateMachine>) -> Result<Arc<dyn ShardGroup>, StartError> {
        let applied = machine.mark().map_err(StartError::State)?.map_or(Lsn(0), |mark| mark.lsn);
        let (term, last, purged) = self.disk.begin_term(id);
        if applied > last || applied < purged {
            return Err(StartError::Mismatch { group: id, state: applied, first: Lsn(purged.0 + 1), last });
        }
        let first = Lsn(last.0 + 1);
        let group = Arc::new(SimulatedGroup {
            id,
            node: self.node,
            disk: Arc::clone(&self.disk),
            wal: Arc::clone(&self.wal),
            leadership: watch::Sender::new(Leadership { leader: None, term, leads: false }),
            state: Mutex::new(State {
                appended: last,
                committed: applied,
                applied,
                persisted: applied,
                purge_allowed: Lsn(0),
                in_flight_bytes: 0,
                waiting: VecDeque::new(),
                first,
            }),
            committed: Notify::new(),
            machine: Mutex::new(machine),
        });
        lock(&self.groups).insert(id, Arc::clone(&group));
        group.append(&mut group.state(), None);
        group.leadership.send_replace(Leadership { leader: Some(self.node), term, leads: false });
        Ok(group)
    }
}

impl Groups for SimulatedConsensus {
    fn start<'a>(
        &'a self,
        group: GroupId,
        voters: &'a [NodeId],
        machine: Box<dyn StateMachine>,
    ) -> BoxFuture<'a, Result<Arc<dyn ShardGroup>, StartError>> {
        assert_eq!(voters, [self.node], "a simulated group has one voter");
        std::future::ready(self.begin(group, machine)).boxed()
    }
}

impl SimulatedGroup {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn append(&self, state: &mut State, payload: Option<Bytes>) -> Lsn {
        let lsn = Lsn(state.appended.0 + 1);
        state.appended = lsn;
        lock(&self.wal.waiting).push((self.id, Record::new(lsn, payload)));
        self.wal.written.notify_one();
        lsn
    }

    /// Everything up to here is on this node's disk: alone, that commits it.
    fn synced(&self, lsn: Lsn) {
        let mut state = self.state();
        if lsn >= state.first {
            state.committed = state.committed.max(lsn);
            self.committed.notify_one();
        }
    }

    /// Applies the next batch, answers it, and says who leads once the term's first entry is applied.
    fn apply_batch(&self, from: Lsn, to: Lsn) -> Result<(), String> {
        let to = to.min(Lsn(from.0 + BATCH_MAX as u64));
        let records = self.disk.read(self.id, from, to, u64::MAX).map_err(|failure| match failure {
            ReadFailure::Purged { oldest } => {
                format!("the log of {} begins at {oldest}, its state ends at {from}", self.id)
            }
            ReadFailure::Damaged(damaged) => format!("the log of {} is damaged at {}", self.id, damaged.0),
        })?;
        let committed: Vec<_> =
            records.into_iter().filter_map(|it| Some(Committed { lsn: it.lsn, payload: it.payload? })).collect();
        let mark = Mark { lsn: to, bytes: Bytes::copy_from_slice(&to.0.to_le_bytes()) };
        let results = lock(&self.machine).apply(&committed, &mark).map_err(|why| chain(&why))?;
        assert_eq!(results.len(), committed.len(), "one result for each entry");
        let (leads, answered) = {
            let mut state = self.state();
            state.applied = to;
            let mut answered = Vec::new();
            for (entry, result) in committed.into_iter().zip(results) {
                if state.waiting.front().is_some_and(|it| it.lsn == entry.lsn)
                    && let Some(Waiting { lsn, bytes, answer }) = state.waiting.pop_front()
                {
                    state.in_flight_bytes -= bytes;
                    answered.push((answer, Applied { lsn, result }));
                }
            }
            (to >= state.first, answered)
        };
        if leads {
            self.leadership.send_if_modified(|now| !std::mem::replace(&mut now.leads, true));
        }
        for (answer, applied) in answered {
            // Who gave up waiting needs no answer.
            let _ = answer.send(Ok(applied));
        }
        Ok(())
    }

    fn persist(&self) -> Result<(), String> {
        self.disk.works().map_err(|_| SYNC_FAILED.to_owned())?;
        let persist = lock(&self.machine).persist().map_err(|why| why.to_string())?;
        let persisted = persist().map_err(|why| why.to_string())?;
        self.state().persisted = persisted;
        Ok(())
    }

    fn purge(&self, entries: u64) {
        let state = self.state();
        let up_to = state.purge_allowed.min(state.persisted);
        if up_to.0 >= self.disk.purged(self.id).0 + entries {
            self.disk.purge(self.id, up_to);
        }
    }
}

/// The group as its node's parts hold it.
impl ShardGroup for SimulatedGroup {
    fn propose(&self, payload: Bytes) -> Result<Proposal, ProposeError> {
        let leader = self.leadership.borrow().leader;
        if leader != Some(self.node) {
            return Err(ProposeError::NotLeader { leader });
        }
        if self.disk.manner().full {
            return Err(ProposeError::DiskFull);
        }
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(ProposeError::TooLarge { bytes: payload.len(), bytes_max: PAYLOAD_BYTES_MAX });
        }
        let mut state = self.state();
        let bytes = payload.len() as u64;
        if state.in_flight_bytes > 0 && state.in_flight_bytes + bytes > IN_FLIGHT_BYTES_MAX {
            return Err(ProposeError::Full);
        }
        state.in_flight_bytes += bytes;
        let lsn = self.append(&mut state, Some(payload));
        let (answer, answered) = oneshot::channel();
        state.waiting.push_back(Waiting { lsn, bytes, answer });
        Ok(Proposal::answered_by(answered))
    }

    fn read_barrier(&self) -> Barrier<'_> {
        let leadership = *self.leadership.borrow();
        if leadership.leads {
            return Barrier::Passed(self.state().applied);
        }
        Barrier::Waiting(std::future::ready(Err(ReadError::NotLeader { leader: leadership.leader })).boxed())
    }

    fn read_log(&self, after: Lsn, bytes_max: usize) -> BoxFuture<'_, Result<LogSlice, ReadLogError>> {
        let applied = self.state().applied;
        let read = if after >= applied {
            Ok(LogSlice { entries: Vec::new(), reached: after })
        } else {
            match self.disk.read(self.id, after, applied, bytes_max as u64) {
                Ok(records) => {
                    let reached = records.last().map_or(after, |last| last.lsn);
                    let entry = |it: Record| Some(Committed { lsn: it.lsn, payload: it.payload? });
                    Ok(LogSlice { entries: records.into_iter().filter_map(entry).collect(), reached })
                }
                Err(ReadFailure::Purged { oldest }) => Err(ReadLogError::Trimmed { oldest }),
                Err(ReadFailure::Damaged(damaged)) => {
                    Err(ReadLogError::Io(std::io::Error::other(format!("the log is damaged at {}", damaged.0))))
                }
            }
        };
        std::future::ready(read).boxed()
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    fn allow_purge(&self, up_to: Lsn) {
        let mut state = self.state();
        state.purge_allowed = state.purge_allowed.max(up_to);
    }

    fn could_take_over(&self, _to: NodeId) -> bool {
        false
    }

    fn hand_over(&self, _to: NodeId) -> BoxFuture<'_, Result<(), ChangeError>> {
        std::future::ready(Err(ChangeError::Invalid("a simulated group has one voter".to_owned()))).boxed()
    }
}
