//! What is being repaired on this node, how far it is, what rests before it is tried again, and what was asked for.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use meridian_region_core::repair::{Need, Progress};
use meridian_types::{Refusal, RefusalKind, RepairStatus};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::Place;

/// The most repaired at a time on one node, each a bucket in one shard that holds some megabytes (RES-1): all shards of a cluster
/// as it is formed by default. A bucket that has failed over may have its copies only once each of its shards is repaired; four at a time
/// took 3.6 s over 120 ms.
pub(crate) const REPAIRS_MAX: usize = 16;

/// The most that may be asked for and not begun (RES-1).
pub(crate) const ASKED_MAX: usize = 4096;

/// Repairs that are over, remembered to be shown.
pub(crate) const ENDED_MAX: usize = 256;

/// The pause after an attempt that did not get on, doubled with each, and its bound.
const REST: Duration = Duration::from_millis(250);
const REST_MAX: Duration = Duration::from_secs(10);

/// Everything there is to know.
#[derive(Default)]
pub(crate) struct Table {
    inner: Mutex<Inner>,
    /// Something was asked for.
    pub(crate) wake: Notify,
}

#[derive(Default)]
struct Inner {
    running: BTreeMap<Place, Running>,
    resting: BTreeMap<Place, Resting>,
    asked: BTreeMap<Place, Asked>,
    ended: VecDeque<RepairStatus>,
    /// Since the node started: repairs that are over, and bytes received for any.
    ended_total: u64,
    bytes_total: u64,
}

/// What there is to count; totals since the node started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Figures {
    /// Buckets, shard by shard, that are being made equal now.
    pub(crate) running: u64,
    /// Those that are to be, and wait.
    pub(crate) waiting: u64,
    /// Rows of the running ones that are not compared yet, as far as they are known.
    pub(crate) rows_left: u64,
    /// How long the slowest of the running ones still takes, about; 0 when that is not known.
    pub(crate) eta_ms: u64,
    pub(crate) ended_total: u64,
    pub(crate) bytes_total: u64,
}

struct Running {
    status: RepairStatus,
    since: Instant,
    /// When rows began to be compared, to tell how long it takes.
    moving: Option<Instant>,
}

struct Resting {
    status: RepairStatus,
    since: Instant,
    until: Instant,
}

struct Asked {
    need: Need,
    tell: Vec<oneshot::Sender<Result<(), Refusal>>>,
}

impl Table {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a repair; the receiver is told when it is over.
    pub(crate) fn ask(&self, place: Place, need: Need) -> Result<oneshot::Receiver<Result<(), Refusal>>, Refusal> {
        let mut inner = self.inner();
        if inner.asked.len() >= ASKED_MAX {
            let why = format!("{ASKED_MAX} repairs are waiting on this node already: try again after a pause");
            return Err(Refusal::new(RefusalKind::Retry, why));
        }
        let (tell, told) = oneshot::channel();
        let asked = inner.asked.entry(place).or_insert_with(|| Asked { need, tell: Vec::new() });
        asked.need = need;
        asked.tell.push(tell);
        inner.resting.remove(&place);
        drop(inner);
        self.wake.notify_one();
        Ok(told)
    }

    /// What was asked for.
    pub(crate) fn asked(&self) -> Vec<(Place, Need)> {
        self.inner().asked.iter().map(|(place, asked)| (*place, asked.need)).collect()
    }

    /// Takes a place among those that are repaired now, unless it has one, rests, or there are too many.
    pub(crate) fn begin(&self, place: Place, need: &Need, now: Instant) -> bool {
        let mut inner = self.inner();
        let rests = inner.resting.get(&place).is_some_and(|resting| now < resting.until);
        if rests || inner.running.contains_key(&place) || inner.running.len() >= REPAIRS_MAX {
            return false;
        }
        let before = inner.resting.remove(&place);
        let since = before.as_ref().map_or(now, |resting| resting.since);
        let attempts = before.map_or(0, |resting| resting.status.attempts) + 1;
        let (shard, bucket) = place;
        let status = RepairStatus {
            bucket,
            shard,
            source: need.source,
            reason: need.reason,
            attempts,
            ..RepairStatus::default()
        };
        inner.running.insert(place, Running { status, since, moving: None });
        true
    }

    /// How many attempts at a place came to nothing since one was last made.
    pub(crate) fn attempts(&self, place: Place) -> usize {
        self.inner().resting.get(&place).map_or(0, |resting| resting.status.attempts as usize)
    }

    /// Whether an attempt is under way.
    pub(crate) fn is_running(&self, place: Place) -> bool {
        self.inner().running.contains_key(&place)
    }

    /// It got on.
    pub(crate) fn note(&self, place: Place, progress: Progress, bytes: u64) {
        let mut inner = self.inner();
        inner.bytes_total += bytes;
        if let Some(running) = inner.running.get_mut(&place) {
            let status = &mut running.status;
            (status.rows_total, status.rows_compared) = (progress.rows_total, progress.rows_compared);
            status.rows_moved = progress.rows_moved;
            status.bytes_moved += bytes;
            if status.rows_total > 0 {
                running.moving.get_or_insert_with(Instant::now);
            }
        }
    }

    /// An attempt is over. Who asked for it is told when nothing is left to do, or when it can't be done.
    pub(crate) fn end(&self, place: Place, outcome: Result<(), String>, now: Instant) {
        let mut inner = self.inner();
        let Some(Running { mut status, since, .. }) = inner.running.remove(&place) else { return };
        match outcome {
            Ok(()) => {
                status.done = true;
                status.running_ms = millis(now - since);
                inner.ended_total += 1;
                inner.ended.push_back(status);
                let surplus = inner.ended.len().saturating_sub(ENDED_MAX);
                inner.ended.drain(..surplus);
                let tell = inner.asked.remove(&place).map(|asked| asked.tell).unwrap_or_default();
                for tell in tell {
                    // Who asked may have gone.
                    let _ = tell.send(Ok(()));
                }
            }
            Err(why) => {
                let rest = REST.saturating_mul(1 << status.attempts.min(10)).min(REST_MAX);
                status.waits_for = why;
                inner.resting.insert(place, Resting { status, since, until: now + rest });
            }
        }
    }

    /// What rests is no longer wanted: it was made right otherwise, or belongs elsewhere now.
    pub(crate) fn keep_resting(&self, wanted: &dyn Fn(&Place) -> bool) {
        let mut inner = self.inner();
        inner.resting.retain(|place, _| wanted(place));
    }

    /// What was asked for is given up where it can't be done on this node any more.
    pub(crate) fn keep_asked(&self, possible: &dyn Fn(&Place, &Need) -> bool) {
        let mut inner = self.inner();
        let gone: Vec<Place> = inner
            .asked
            .iter()
            .filter(|(place, asked)| !possible(place, &asked.need))
            .map(|(place, _)| *place)
            .collect();
        for place in gone {
            for tell in inner.asked.remove(&place).map(|asked| asked.tell).unwrap_or_default() {
                let why = "this node no longer leads the shard, or the repair is no longer wanted: look again";
                let _ = tell.send(Err(Refusal::new(RefusalKind::Retry, why)));
            }
        }
    }

    /// What operators see: what is under way, what waits, and what is over.
    pub(crate) fn statuses(&self, now: Instant) -> Vec<RepairStatus> {
        let inner = self.inner();
        let running = inner.running.values().map(|running| RepairStatus {
            running_ms: millis(now - running.since),
            eta_ms: running.eta_ms(now),
            ..running.status.clone()
        });
        let resting = inner
            .resting
            .values()
            .map(|resting| RepairStatus { running_ms: millis(now - resting.since), ..resting.status.clone() });
        running.chain(resting).chain(inner.ended.iter().cloned()).collect()
    }

    /// How many there are: running, asked for, and over.
    pub(crate) fn sizes(&self) -> [usize; 3] {
        let inner = self.inner();
        [inner.running.len(), inner.asked.len(), inner.ended.len()]
    }

    /// What metrics count.
    pub(crate) fn figures(&self, now: Instant) -> Figures {
        let inner = self.inner();
        let asked = inner.asked.keys().filter(|place| {
            // What rests was asked for, maybe, and is one thing.
            !inner.running.contains_key(place) && !inner.resting.contains_key(place)
        });
        Figures {
            running: inner.running.len() as u64,
            waiting: (inner.resting.len() + asked.count()) as u64,
            rows_left: inner.running.values().map(Running::rows_left).sum(),
            eta_ms: inner.running.values().map(|running| running.eta_ms(now)).max().unwrap_or_default(),
            ended_total: inner.ended_total,
            bytes_total: inner.bytes_total,
        }
    }
}

impl Running {
    fn rows_left(&self) -> u64 {
        self.status.rows_total.saturating_sub(self.status.rows_compared)
    }

    /// As long as what was compared took, in proportion; 0 while nothing was.
    fn eta_ms(&self, now: Instant) -> u64 {
        let moving = self.moving.filter(|_| self.status.rows_compared > 0);
        moving.map_or(0, |moving| {
            millis(now - moving).saturating_mul(self.rows_left()) / self.status.rows_compared.max(1)
        })
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use meridian_region_core::repair::survey::Claim;
    use meridian_types::{BucketId, RegionId, RepairReason, ShardId};

    use super::*;

    fn place(shard: u16) -> Place {
        (ShardId(shard), BucketId(1))
    }

    fn need() -> Need {
        Need { bucket: BucketId(1), source: RegionId(2), claim: Claim::Primary, reason: RepairReason::Asked }
    }

    #[test]
    fn who_asked_is_told_once_an_attempt_succeeds() {
        let (table, now) = (Table::default(), Instant::now());
        let mut told = table.ask(place(0), need()).unwrap();
        assert!(table.begin(place(0), &need(), now));
        table.end(place(0), Err("not yet".to_owned()), now);
        assert!(told.try_recv().is_err());
        assert!(!table.begin(place(0), &need(), now), "it rests");
        assert_eq!(table.statuses(now)[0].waits_for, "not yet");
        assert!(table.begin(place(0), &need(), now + REST_MAX));
        table.end(place(0), Ok(()), now + REST_MAX);
        assert_eq!(told.try_recv(), Ok(Ok(())));
        let over = &table.statuses(now + REST_MAX)[0];
        assert_eq!((over.done, over.attempts, over.running_ms), (true, 2, 10_000));
        assert!(table.asked().is_empty());
    }

    #[test]
    fn what_is_counted_is_what_is_shown() {
        let (table, now) = (Table::default(), Instant::now());
        drop(table.ask(place(0), need()).unwrap());
        drop(table.ask(place(1), need()).unwrap());
        assert_eq!(table.figures(now), Figures { waiting: 2, ..Figures::default() });
        assert!(table.begin(place(0), &need(), now) && table.begin(place(2), &need(), now));
        table.note(place(0), Progress { rows_total: 10, rows_compared: 4, rows_moved: 1 }, 700);
        table.end(place(2), Err("not yet".to_owned()), now);
        let figures = table.figures(now + REST_MAX);
        assert_eq!((figures.running, figures.waiting, figures.rows_left, figures.bytes_total), (1, 2, 6, 700));
        assert_eq!(figures.eta_ms, table.statuses(now + REST_MAX)[0].eta_ms);
        table.end(place(0), Ok(()), now);
        let figures = table.figures(now);
        assert_eq!((figures.running, figures.waiting, figures.ended_total, figures.bytes_total), (0, 2, 1, 700));
    }

    #[test]
    fn only_so_many_are_under_way_at_a_time() {
        let (table, now) = (Table::default(), Instant::now());
        let begun = (0..40).filter(|shard| table.begin(place(*shard), &need(), now)).count();
        assert_eq!(begun, REPAIRS_MAX, "RES-1");
        table.end(place(0), Ok(()), now);
        assert!(table.begin(place(39), &need(), now));
    }

    #[test]
    fn what_can_t_be_done_here_any_more_is_given_back() {
        let table = Table::default();
        let mut told = table.ask(place(0), need()).unwrap();
        table.keep_asked(&|_, _| false);
        assert!(matches!(told.try_recv(), Ok(Err(_))));
    }
}
