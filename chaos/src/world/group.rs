//! Consensus of a simulated node: many groups over one log, behind the seam that region/node asks of it.
//!
//! An entry is acknowledged once it is synced on a majority, committed and applied, as by the real one; after a restart the log is
//! replayed from the state's mark. A group of one voter is its own majority, and leads at once; of several, each votes, and what they say to
//! each other travels through the planet's network ([`raft`] decides, [`member`] does).

pub(crate) mod journal;
mod member;
mod message;
pub(crate) mod raft;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use meridian_consensus::{StartError, StateMachine};
use meridian_region_node::{Groups, ShardGroup};
use meridian_types::{GroupId, Lsn, NodeId};
use tokio::sync::{Notify, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};

use self::member::SimulatedGroup;
pub(crate) use self::message::Message;
use super::clock::NodeClock;
use super::dice::Dice;
use super::disk::{NodeDisk, Record};
use super::record;
use super::wires::Wires;
use crate::trace::Replica;

/// As consensus' default: how often there is a look at what is to be made durable and purged.
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

/// What one life of a node gives its groups.
#[derive(Clone)]
pub(crate) struct Ground {
    pub(crate) number: usize,
    pub(crate) replica: Replica,
    pub(crate) incarnation: u64,
    /// Every node of the planet, by number.
    pub(crate) nodes: Arc<Vec<(NodeId, meridian_types::RegionId)>>,
    pub(crate) disk: Arc<NodeDisk>,
    pub(crate) clock: Arc<NodeClock>,
    pub(crate) wires: Wires,
    pub(crate) record: record::Record,
    pub(crate) dice: Dice,
}

impl Ground {
    fn number_of(&self, node: NodeId) -> Option<usize> {
        self.nodes.iter().position(|(known, _)| *known == node)
    }

    fn node(&self, number: usize) -> Option<NodeId> {
        self.nodes.get(number).map(|(node, _)| *node)
    }
}

/// Consensus of one life of a node.
pub(crate) struct SimulatedConsensus {
    ground: Ground,
    wal: Arc<Wal>,
    groups: Mutex<BTreeMap<GroupId, Arc<SimulatedGroup>>>,
    housekeeping: Housekeeping,
    /// What stopped this node for good.
    fatal: Arc<watch::Sender<Option<String>>>,
}

/// What waits for the log's writer.
#[derive(Default)]
struct Wal {
    waiting: Mutex<Vec<(GroupId, Record)>>,
    written: Notify,
}

impl Wal {
    fn push(&self, group: GroupId, record: Record) {
        lock(&self.waiting).push((group, record));
        self.written.notify_one();
    }

    /// Another leader has other entries, or a snapshot took their place: those of a group that are to stay stay.
    fn retain(&self, group: GroupId, stays: impl Fn(u64) -> bool) {
        lock(&self.waiting).retain(|(of, record)| *of != group || stays(record.lsn.0));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has a node end.
fn end(fatal: &watch::Sender<Option<String>>, why: String) {
    fatal.send_if_modified(|fatal| {
        let first = fatal.is_none();
        fatal.get_or_insert(why);
        first
    });
}

impl SimulatedConsensus {
    /// Consensus over a disk. Its tasks are [`SimulatedConsensus::write`], [`SimulatedConsensus::keep_house`] and those of the groups.
    pub(crate) fn open(ground: Ground, housekeeping: Housekeeping) -> SimulatedConsensus {
        let fatal = Arc::new(watch::Sender::new(None));
        SimulatedConsensus { ground, wal: Arc::default(), groups: Mutex::default(), housekeeping, fatal }
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
        end(&self.fatal, why);
        std::future::pending().await
    }

    fn all(&self) -> Vec<Arc<SimulatedGroup>> {
        lock(&self.groups).values().cloned().collect()
    }

    fn group(&self, id: GroupId) -> Option<Arc<SimulatedGroup>> {
        lock(&self.groups).get(&id).cloned()
    }

    /// Writes and syncs, for ever: while one sync is under way, the next batch gathers.
    pub(crate) async fn write(self: Arc<Self>) {
        let disk = &self.ground.disk;
        loop {
            let batch = std::mem::take(&mut *lock(&self.wal.waiting));
            if batch.is_empty() {
                self.wal.written.notified().await;
                continue;
            }
            let mut ends = BTreeMap::new();
            for (group, record) in batch {
                ends.insert(group, record.lsn.0);
                disk.append(group, [record]);
            }
            for (id, lsn) in &ends {
                self.group(*id).into_iter().for_each(|group| group.written(*lsn));
            }
            if disk.sync().await.is_err() {
                return self.fail(SYNC_FAILED.to_owned()).await;
            }
            for (id, lsn) in ends {
                // What was cut meanwhile is on no disk.
                let synced = lsn.min(disk.synced(id));
                self.group(id).into_iter().for_each(|group| group.synced(synced));
            }
        }
    }

    /// Applies what a group committed, for ever.
    async fn apply(self: Arc<Self>, group: Arc<SimulatedGroup>) {
        let dice = &self.ground.dice;
        loop {
            let Some(to) = group.to_apply() else {
                group.committed().await;
                continue;
            };
            // Apply threads are shared and get their turn late at times.
            if dice.chance(0.1) {
                sleep(dice.duration(Duration::from_millis(1), Duration::from_millis(5))).await;
            }
            if let Err(why) = group.apply_up_to(to) {
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
            let persist = last.elapsed() >= self.housekeeping.persist_every;
            if persist {
                last = tokio::time::Instant::now();
            }
            for group in self.all() {
                if persist && let Err(why) = group.persist() {
                    return self.fail(why).await;
                }
                group.purge(self.housekeeping.purge_entries);
            }
        }
    }

    /// The tasks of the groups that were started: what they commit is applied, and those of several voters keep time.
    pub(crate) fn tasks(self: &Arc<Self>) -> Vec<(&'static str, BoxFuture<'static, ()>)> {
        let groups = self.all();
        let apply = |group: &Arc<SimulatedGroup>| ("apply", Arc::clone(self).apply(Arc::clone(group)).boxed());
        let keep_time = |group: &Arc<SimulatedGroup>| ("election", Arc::clone(group).keep_time().boxed());
        let several = groups.iter().filter(|group| !group.is_alone());
        groups.iter().map(apply).chain(several.map(keep_time)).collect()
    }

    /// A message of another member of a group.
    pub(crate) fn take(&self, from: usize, group: GroupId, message: Message) {
        if let Some(group) = self.group(group) {
            group.take(from, message);
        }
    }

    /// Up to where a group's state is applied.
    pub(crate) fn applied(&self, group: GroupId) -> Option<Lsn> {
        self.group(group).map(|group| group.applied())
    }

    /// Payload bytes under way in the fullest group, and the most they may be.
    pub(crate) fn in_flight_bytes(&self) -> (u64, u64) {
        let most = self.all().iter().map(|group| group.in_flight_bytes()).max();
        (most.unwrap_or_default(), member::IN_FLIGHT_BYTES_MAX)
    }

    fn begin(
        &self,
        id: GroupId,
        voters: &[NodeId],
        machine: Box<dyn StateMachine>,
    ) -> Result<Arc<dyn ShardGroup>, StartError> {
        let others = voters.iter().filter_map(|voter| self.ground.number_of(*voter));
        let others = others.filter(|number| *number != self.ground.number).collect();
        let group = SimulatedGroup::open(id, others, &self.ground, (&self.wal, &self.fatal), machine)?;
        lock(&self.groups).insert(id, Arc::clone(&group));
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
        assert!(voters.contains(&self.ground.replica.node), "a simulated node votes in the groups it is in");
        std::future::ready(self.begin(group, voters, machine)).boxed()
    }
}
