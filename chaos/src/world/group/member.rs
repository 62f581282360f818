//! One node's member of a group: does what [`Raft`] decides, over the node's disk, clock and network, and answers who waits.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use meridian_consensus::{
    Applied, ChangeError, Committed, Leadership, LogSlice, Mark, ProposeError, ReadError, ReadLogError, StartError,
    StateMachine,
};
use meridian_region_node::{Barrier, Clock, Proposal, ShardGroup};
use meridian_types::{GroupId, Lsn, NodeId};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::journal::Place as LogPlace;
use super::message::Message;
use super::raft::{Outbox, Raft, Shipment};
use super::{Ground, SYNC_FAILED, Wal, end, lock};
use crate::trace::{Fact, Replica};
use crate::world::disk::ReadFailure;
use crate::world::network::Place;
use crate::world::node::chain;

/// As consensus' defaults: payload bytes under way per group, bytes of one entry, how long a proof of leadership and a change of the
/// leader may take.
pub(super) const IN_FLIGHT_BYTES_MAX: u64 = 32 << 20;
const PAYLOAD_BYTES_MAX: usize = 4 << 20;
const PROOF_PATIENCE: Duration = Duration::from_secs(2);
const CHANGE_PATIENCE: Duration = Duration::from_secs(10);

/// The most entries applied in one batch.
const BATCH_MAX: u64 = 64;

/// One group on this node.
pub(super) struct SimulatedGroup {
    id: GroupId,
    ground: Ground,
    wal: Arc<Wal>,
    fatal: Arc<watch::Sender<Option<String>>>,
    leadership: watch::Sender<Leadership>,
    state: Mutex<State>,
    committed: Notify,
    /// The timer is another one.
    moved: Notify,
    machine: Mutex<Box<dyn StateMachine>>,
}

struct State {
    raft: Raft,
    applied: u64,
    persisted: u64,
    purge_allowed: u64,
    /// Up to where the applier was told that there is something to apply.
    told: u64,
    in_flight_bytes: u64,
    /// Who waits for which entry, rising.
    waiting: VecDeque<Waiting>,
    /// Who waits to read, in the order they came.
    reading: Vec<(Sight, oneshot::Sender<Result<Lsn, ReadError>>)>,
}

/// Who waits for an entry.
struct Waiting {
    at: LogPlace,
    bytes: u64,
    answer: oneshot::Sender<Result<Applied, ProposeError>>,
}

/// What a read waits for.
#[derive(Clone, Copy)]
enum Sight {
    /// That everything up to there is applied.
    Applied(u64),
    /// That a majority has answered this round of this term; then everything up to there was all there is.
    Proof { round: u64, term: u64, applied: u64 },
}

impl SimulatedGroup {
    /// Starts a member with what is on its disk.
    pub(super) fn open(
        id: GroupId,
        others: Vec<usize>,
        ground: &Ground,
        (wal, fatal): (&Arc<Wal>, &Arc<watch::Sender<Option<String>>>),
        machine: Box<dyn StateMachine>,
    ) -> Result<Arc<SimulatedGroup>, StartError> {
        let applied = machine.mark().map_err(StartError::State)?.map_or(Lsn(0), |mark| mark.lsn);
        let (ballot, journal) = ground.disk.open_group(id);
        let (last, purged) = (Lsn(journal.last), Lsn(journal.purged.lsn));
        if applied > last || applied < purged {
            return Err(StartError::Mismatch { group: id, state: applied, first: Lsn(purged.0 + 1), last });
        }
        let mut out = Outbox::default();
        // Alone a member draws nothing.
        let dice = if others.is_empty() { ground.dice.clone() } else { ground.dice.fork() };
        let now = (ground.clock.monotonic_ms(), dice);
        let raft = Raft::open((ground.number, others), ballot, (journal, applied.0), now, &mut out);
        let state = State {
            raft,
            applied: applied.0,
            persisted: applied.0,
            purge_allowed: 0,
            told: applied.0,
            in_flight_bytes: 0,
            waiting: VecDeque::new(),
            reading: Vec::new(),
        };
        let group = Arc::new(SimulatedGroup {
            id,
            ground: ground.clone(),
            wal: Arc::clone(wal),
            fatal: Arc::clone(fatal),
            leadership: watch::Sender::new(Leadership::default()),
            state: Mutex::new(state),
            committed: Notify::new(),
            moved: Notify::new(),
            machine: Mutex::new(machine),
        });
        let sending = group.settle(&mut group.state(), out);
        group.send(sending);
        Ok(group)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn now_ms(&self) -> u64 {
        self.ground.clock.monotonic_ms()
    }

    pub(super) fn is_alone(&self) -> bool {
        self.state().raft.is_alone()
    }

    pub(super) fn applied(&self) -> Lsn {
        Lsn(self.state().applied)
    }

    pub(super) fn in_flight_bytes(&self) -> u64 {
        self.state().in_flight_bytes
    }

    /// Keeps time for elections and heartbeats, for ever.
    pub(super) async fn keep_time(self: Arc<Self>) {
        loop {
            let left_ms = {
                let now_ms = self.now_ms();
                self.step(|raft, out| raft.tick(now_ms, out));
                self.state().raft.timer_ms().saturating_sub(now_ms).max(1)
            };
            tokio::select! {
                biased;
                () = self.moved.notified() => {}
                () = sleep(Duration::from_millis(left_ms)) => {}
            }
        }
    }

    /// Everything up to here was written to this node's disk.
    pub(super) fn written(&self, lsn: u64) {
        let now_ms = self.now_ms();
        self.step(|raft, out| raft.written(lsn, now_ms, out));
    }

    /// Everything up to here is on this node's disk.
    pub(super) fn synced(&self, lsn: u64) {
        self.step(|raft, out| raft.synced(lsn, out));
    }

    /// A message of another member.
    pub(super) fn take(&self, from: usize, mut message: Message) {
        let now_ms = self.now_ms();
        if let Message::Append { records, .. } = &mut message
            && self.ground.disk.manner().full
        {
            // A heartbeat is heard all the same.
            records.clear();
        }
        match message {
            Message::Snapshot { term, at, pieces, life } => self.fill(from, (term, at), pieces, life),
            message => self.step(|raft, out| raft.step(from, message, now_ms, out)),
        }
        self.moved.notify_one();
    }

    fn step<T>(&self, change: impl FnOnce(&mut Raft, &mut Outbox) -> T) -> T {
        let mut out = Outbox::default();
        let mut state = self.state();
        let result = change(&mut state.raft, &mut out);
        let sending = self.settle(&mut state, out);
        drop(state);
        self.send(sending);
        result
    }

    /// Does what a step asks of the disk, and tells who waits for what it changed; what is left to be sent.
    fn settle(&self, state: &mut State, out: Outbox) -> Outbox {
        let disk = &self.ground.disk;
        let mut dumb = false;
        if out.persist {
            disk.set_ballot(self.id, state.raft.ballot());
            if !state.raft.is_alone() && disk.works().is_err() {
                end(&self.fatal, SYNC_FAILED.to_owned());
            }
            // Nothing leaves before what it rests on is synced.
            dumb = disk.manner().stalled || disk.failed().is_some();
        }
        if let Some(after) = out.cut {
            self.wal.retain(self.id, |lsn| lsn <= after);
            disk.cut(self.id, after);
            self.give_up(state, |lsn| lsn > after);
        }
        out.write.into_iter().for_each(|record| self.wal.push(self.id, record));
        if state.raft.applicable() > state.told {
            state.told = state.raft.applicable();
            self.committed.notify_one();
        }
        self.tell_readers(state);
        self.tell_leadership(state);
        if dumb { Outbox::default() } else { Outbox { send: out.send, ship: out.ship, ..Outbox::default() } }
    }

    /// Nobody knows what became of proposals that were at such positions.
    fn give_up(&self, state: &mut State, at: impl Fn(u64) -> bool) {
        let (gone, stay): (VecDeque<Waiting>, _) =
            std::mem::take(&mut state.waiting).into_iter().partition(|it| at(it.at.lsn));
        state.waiting = stay;
        for waiting in gone {
            state.in_flight_bytes -= waiting.bytes;
            let _ = waiting.answer.send(Err(ProposeError::Unknown));
        }
    }

    fn tell_readers(&self, state: &mut State) {
        let (applied, confirmed) = (state.applied, state.raft.confirmed());
        let (leads, now_term) = (state.raft.leads(), state.raft.term());
        let leader = state.raft.leader().and_then(|leader| self.ground.node(leader));
        let verdict = |sight: &Sight| match *sight {
            Sight::Applied(lsn) => (applied >= lsn).then_some(Ok(Lsn(applied))),
            Sight::Proof { term, .. } if !leads || term != now_term => Some(Err(ReadError::NotLeader { leader })),
            Sight::Proof { round, applied, .. } => (confirmed >= round).then_some(Ok(Lsn(applied))),
        };
        for (sight, tell) in std::mem::take(&mut state.reading) {
            match verdict(&sight) {
                Some(verdict) => drop(tell.send(verdict)),
                None if tell.is_closed() => {}
                None => state.reading.push((sight, tell)),
            }
        }
    }

    fn tell_leadership(&self, state: &State) {
        let leader = state.raft.leader().and_then(|leader| self.ground.node(leader));
        let leads = state.raft.first().is_some_and(|first| state.applied >= first);
        let now = Leadership { leader, term: state.raft.term(), leads };
        self.leadership.send_if_modified(|before| std::mem::replace(before, now) != now);
    }

    fn send(&self, out: Outbox) {
        out.send.into_iter().for_each(|(to, message)| self.throw(to, message));
        for shipment in out.ship {
            let message = if shipment.fill { self.snapshot(&shipment) } else { None };
            let message = message.map_or_else(|| self.append(&shipment), Ok);
            match message {
                Ok(message) => self.throw(shipment.to, message),
                Err(why) => end(&self.fatal, why),
            }
        }
    }

    fn append(&self, it: &Shipment) -> Result<Message, String> {
        let (term, previous, commit, round) = (it.term, it.previous, it.commit, it.round);
        let read = self.ground.disk.read(self.id, Lsn(previous.lsn), Lsn(it.until), u64::MAX);
        let records = match read {
            // Purged meanwhile: a snapshot is next.
            Err(ReadFailure::Purged { .. }) => Vec::new(),
            read => read.map_err(|failure| self.unreadable(previous.lsn, failure))?,
        };
        Ok(Message::Append { term, previous, records, commit, round })
    }

    /// The state as it is now, in one piece after the other; `None` when there is none, or it can't be read now.
    fn snapshot(&self, it: &Shipment) -> Option<Message> {
        let mut source = lock(&self.machine).snapshot().ok()?;
        let mark = source.mark();
        let mut pieces = Vec::new();
        while let Some(piece) = source.next_piece().ok()? {
            pieces.push(piece);
        }
        let at = LogPlace { term: self.state().raft.term_at(mark.lsn.0), lsn: mark.lsn.0 };
        let life = self.ground.incarnation;
        (at.lsn >= it.previous.lsn).then_some(Message::Snapshot { term: it.term, at, pieces, life })
    }

    fn throw(&self, to: usize, message: Message) {
        let (from, id, wires) = (self.ground.number, self.id, self.ground.wires.clone());
        let bytes = message.bytes();
        self.ground.wires.network.throw(Place::Node(from), Place::Node(to), bytes, move || {
            let message = message.clone();
            wires.deliver(to, move |life| life.take_group(from, id, message));
        });
    }

    /// A leader's state takes the place of this member's, if that is behind it.
    fn fill(&self, from: usize, (term, at): (u64, LogPlace), pieces: Vec<Bytes>, life: u64) {
        let now_ms = self.now_ms();
        let wanted = self.step(|raft, out| raft.offered(from, term, at, now_ms, out));
        // The stream it came over ended with its sender.
        let sender = self.ground.wires.life(from).filter(|sender| sender.incarnation == life);
        let (true, Some(sender)) = (wanted, sender) else { return };
        if self.ground.disk.works().is_err() {
            return end(&self.fatal, SYNC_FAILED.to_owned());
        }
        if self.ground.disk.manner().stalled || self.ground.disk.manner().full {
            return;
        }
        let mark = mark(at.lsn, at.term);
        if let Err(why) = lock(&self.machine).restore(&mut pieces.into_iter().map(Ok), &mark) {
            return end(&self.fatal, chain(&why));
        }
        self.tell_of_installation(sender.replica, at.lsn);
        let mut out = Outbox::default();
        let mut state = self.state();
        (state.applied, state.persisted) = (at.lsn, at.lsn);
        let goes_on = state.raft.installed(at, &mut out);
        self.wal.retain(self.id, |lsn| goes_on && lsn > at.lsn);
        self.ground.disk.replace(self.id, at, goes_on);
        self.give_up(&mut state, |lsn| lsn <= at.lsn || !goes_on);
        let sending = self.settle(&mut state, out);
        drop(state);
        self.send(sending);
    }

    fn tell_of_installation(&self, from: Replica, applied: u64) {
        if let Some(shard) = self.id.shard() {
            let (replica, applied) = (self.ground.replica, Lsn(applied));
            self.ground.record.fact(Fact::Installed { replica, shard, from, applied });
        }
    }

    /// Resolves when there may be something to apply.
    pub(super) async fn committed(&self) {
        self.committed.notified().await;
    }

    /// Up to where there is something to apply now.
    pub(super) fn to_apply(&self) -> Option<u64> {
        let state = self.state();
        let to = state.raft.applicable();
        (state.applied < to).then_some(to)
    }

    /// Applies the next batch, answers it, and says who leads once the term's first entry is applied.
    pub(super) fn apply_up_to(&self, to: u64) -> Result<(), String> {
        let (from, term) = {
            let state = self.state();
            let to = to.min(state.applied + BATCH_MAX);
            (state.applied, state.raft.term_at(to))
        };
        let to = to.min(from + BATCH_MAX);
        // A snapshot may have come meanwhile.
        if from >= to {
            return Ok(());
        }
        let records = self.ground.disk.read(self.id, Lsn(from), Lsn(to), u64::MAX);
        let records = records.map_err(|failure| self.unreadable(from, failure))?;
        let terms: Vec<u64> = records.iter().filter(|it| it.payload.is_some()).map(|it| it.term).collect();
        let committed: Vec<_> =
            records.into_iter().filter_map(|it| Some(Committed { lsn: it.lsn, payload: it.payload? })).collect();
        let results = lock(&self.machine).apply(&committed, &mark(to, term)).map_err(|why| chain(&why))?;
        assert_eq!(results.len(), committed.len(), "one result for each entry");
        let answered = {
            let mut state = self.state();
            state.applied = to;
            let mut answered = Vec::new();
            for ((entry, term), result) in committed.into_iter().zip(terms).zip(results) {
                if state.waiting.front().is_some_and(|it| it.at.lsn == entry.lsn.0)
                    && let Some(Waiting { at, bytes, answer }) = state.waiting.pop_front()
                {
                    state.in_flight_bytes -= bytes;
                    let own = at.term == term;
                    answered.push((
                        answer,
                        if own { Ok(Applied { lsn: entry.lsn, result }) } else { Err(ProposeError::Unknown) },
                    ));
                }
            }
            self.tell_readers(&mut state);
            self.tell_leadership(&state);
            answered
        };
        for (answer, applied) in answered {
            // Who gave up waiting needs no answer.
            let _ = answer.send(applied);
        }
        Ok(())
    }

    fn unreadable(&self, from: u64, failure: ReadFailure) -> String {
        match failure {
            ReadFailure::Purged { oldest } => {
                format!("the log of {} begins at {oldest}, its state ends at {from}", self.id)
            }
            ReadFailure::Damaged(damaged) => format!("the log of {} is damaged at {}", self.id, damaged.0),
        }
    }

    pub(super) fn persist(&self) -> Result<(), String> {
        self.ground.disk.works().map_err(|_| SYNC_FAILED.to_owned())?;
        let persist = lock(&self.machine).persist().map_err(|why| why.to_string())?;
        let persisted = persist().map_err(|why| why.to_string())?;
        self.state().persisted = persisted.0;
        Ok(())
    }

    pub(super) fn purge(&self, entries: u64) {
        let mut state = self.state();
        let up_to = state.purge_allowed.min(state.persisted);
        let disk = &self.ground.disk;
        if up_to >= disk.purged(self.id).0 + entries {
            disk.purge(self.id, Lsn(up_to));
            state.raft.purged(disk.purged(self.id).0);
        }
    }

    fn barrier(&self) -> Result<Lsn, oneshot::Receiver<Result<Lsn, ReadError>>> {
        let now_ms = self.now_ms();
        let (tell, told) = oneshot::channel();
        let mut state = self.state();
        let (applied, commit, term) = (state.applied, state.raft.commit(), state.raft.term());
        if state.raft.has_lease(now_ms) {
            if applied >= commit {
                return Ok(Lsn(applied));
            }
            state.reading.push((Sight::Applied(commit), tell));
            return Err(told);
        }
        drop(state);
        match self.step(|raft, out| raft.confirm(now_ms, out)) {
            Some(round) => self.state().reading.push((Sight::Proof { round, term, applied }, tell)),
            None => drop(tell.send(Err(ReadError::NotLeader { leader: None }))),
        }
        Err(told)
    }
}

/// A mark holds the term of its entry; its position it has anyway.
fn mark(lsn: u64, term: u64) -> Mark {
    Mark { lsn: Lsn(lsn), bytes: Bytes::copy_from_slice(&term.to_le_bytes()) }
}

/// The group as its node's parts hold it.
impl ShardGroup for SimulatedGroup {
    fn propose(&self, payload: Bytes) -> Result<Proposal, ProposeError> {
        let leader = self.leadership.borrow().leader;
        if leader != Some(self.ground.replica.node) {
            return Err(ProposeError::NotLeader { leader });
        }
        if self.ground.disk.manner().full {
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
        let mut out = Outbox::default();
        let lsn = state.raft.propose(Some(payload), &mut out);
        let (answer, answered) = oneshot::channel();
        let at = LogPlace { term: state.raft.term(), lsn };
        state.waiting.push_back(Waiting { at, bytes, answer });
        let sending = self.settle(&mut state, out);
        drop(state);
        self.send(sending);
        Ok(Proposal::answered_by(answered))
    }

    fn read_barrier(&self) -> Barrier<'_> {
        let leadership = *self.leadership.borrow();
        if !leadership.leads {
            return Barrier::Waiting(
                std::future::ready(Err(ReadError::NotLeader { leader: leadership.leader })).boxed(),
            );
        }
        if self.is_alone() {
            return Barrier::Passed(self.applied());
        }
        match self.barrier() {
            Ok(applied) => Barrier::Passed(applied),
            Err(told) => Barrier::Waiting(
                async move {
                    match timeout(PROOF_PATIENCE, told).await {
                        Ok(Ok(verdict)) => verdict,
                        Ok(Err(_)) => Err(ReadError::Stopped),
                        Err(_) => Err(ReadError::NoQuorum),
                    }
                }
                .boxed(),
            ),
        }
    }

    fn read_log(&self, after: Lsn, bytes_max: usize) -> BoxFuture<'_, Result<LogSlice, ReadLogError>> {
        let applied = self.applied();
        let read = if after >= applied {
            Ok(LogSlice { entries: Vec::new(), reached: after })
        } else {
            match self.ground.disk.read(self.id, after, applied, bytes_max as u64) {
                Ok(records) => {
                    let reached = records.last().map_or(after, |last| last.lsn);
                    let entry = |it: crate::world::disk::Record| Some(Committed { lsn: it.lsn, payload: it.payload? });
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
        state.purge_allowed = state.purge_allowed.max(up_to.0);
    }

    fn could_take_over(&self, to: NodeId) -> bool {
        let to = self.ground.number_of(to);
        to.is_some_and(|to| self.state().raft.could_take_over(to, self.now_ms()))
    }

    fn hand_over(&self, to: NodeId) -> BoxFuture<'_, Result<(), ChangeError>> {
        async move {
            let Some(number) = self.ground.number_of(to) else {
                return Err(ChangeError::Invalid(format!("node {to} is not in the group")));
            };
            let mut leadership = self.leadership.subscribe();
            let leader = leadership.borrow_and_update().leader;
            if leader != Some(self.ground.replica.node) {
                return if leader == Some(to) { Ok(()) } else { Err(ChangeError::NotLeader { leader }) };
            }
            self.step(|raft, out| raft.hand_over(number, out));
            let taken = leadership.wait_for(|now| now.leader == Some(to));
            match timeout(CHANGE_PATIENCE, taken).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(_)) => Err(ChangeError::Stopped),
                Err(_) => Err(ChangeError::Unknown),
            }
        }
        .boxed()
    }
}
