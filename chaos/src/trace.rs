//! Facts that an omniscient observer records: what happened inside, whatever anybody was told.
//!
//! Only a simulator can know them; [`crate::history`] is what clients saw. Checkers of what no client can see
//! (ORD-1, FEN-1, FEN-2, honest durability, RES-1) read facts. Recording costs a push and a running, order-sensitive
//! xxh3 over everything recorded: [`Trace::hash`] proves two runs equal.
//!
//! Times are microseconds of the observer's clock, which is also [`crate::target::Target::now_us`].

mod fact;
mod observe;

use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use meridian_types::{BucketId, Epoch, Lsn, Positions, RegionId, ShardId};
use xxhash_rust::xxh3::Xxh3;

pub use fact::{Copies, Entry, Fact, Fork, Replacing, Replica, Standing, Verdict};

/// A fact and when it happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// When, in microseconds since the run began.
    pub at_us: u64,
    /// What.
    pub fact: Fact,
}

/// Everything recorded in one run. Cheap to clone; clones record into one trace.
#[derive(Clone, Default)]
pub struct Trace {
    book: Arc<Mutex<Book>>,
}

/// A position of a replica's own log, and how far a bucket had come there.
type Reached = (Lsn, BucketId, Positions);

#[derive(Default)]
struct Book {
    records: Vec<Record>,
    hash: Xxh3,
    /// Entries that wait for a seal, in the order in which it will set them free: the shard tells of them by their
    /// requests alone, and retries of one request may wait side by side.
    parked: HashMap<(Replica, ShardId), BTreeMap<Waiting, Parked>>,
    /// How far the buckets of a replica's shard had come at which positions of its own log.
    reached: HashMap<(Replica, ShardId), Vec<Reached>>,
    /// Facts are hashed but not kept.
    blind: bool,
}

impl Book {
    /// A replica goes on from where its state was kept, and applies again what came behind it.
    fn rewind(&mut self, place: (Replica, ShardId), applied: Lsn) {
        if let Some(reached) = self.reached.get_mut(&place) {
            reached.retain(|(lsn, ..)| *lsn <= applied);
        }
        if let Some(parked) = self.parked.get_mut(&place) {
            parked.retain(|_, it| it.entry.lsn <= applied);
            parked.values_mut().for_each(|it| it.freed = it.freed.filter(|lsn| *lsn <= applied));
        }
    }

    /// A replica goes on from another's state of some time ago.
    fn take_over(&mut self, place: (Replica, ShardId), from: (Replica, ShardId), applied: Lsn) {
        let (reached, parked) = (self.reached.get(&from).cloned(), self.parked.get(&from).cloned());
        self.reached.insert(place, reached.unwrap_or_default());
        self.parked.insert(place, parked.unwrap_or_default());
        self.rewind(place, applied);
    }
}

/// An entry that waits for a seal, or did.
#[derive(Clone, Copy)]
struct Parked {
    entry: Entry,
    /// The epoch that begins with it, if it is a seal.
    begins: Option<Epoch>,
    /// Where in the replica's own log it was set free: a restart may go back behind that.
    freed: Option<Lsn>,
}

/// Bucket, epoch, whether it is the seal, origin and position of an entry that waits: the order of the shard's own keys.
type Waiting = (BucketId, Epoch, bool, RegionId, Lsn);

impl Trace {
    /// A trace that only keeps its hash: for runs whose equality is all that is asked.
    pub fn blind() -> Trace {
        let book = Book { blind: true, ..Book::default() };
        Trace { book: Arc::new(Mutex::new(book)) }
    }

    /// Records a fact.
    pub fn record(&self, at_us: u64, fact: Fact) {
        let record = Record { at_us, fact };
        let mut book = self.book();
        match &record.fact {
            Fact::Restarted { replica, shard, applied } => book.rewind((*replica, *shard), *applied),
            Fact::Installed { replica, shard, from, applied } => {
                book.take_over((*replica, *shard), (*from, *shard), *applied);
            }
            _ => {}
        }
        record.hash(&mut book.hash);
        if !book.blind {
            book.records.push(record);
        }
    }

    /// Takes something into the hash that is no fact: a message delivered, a choice of the scheduler, an answer.
    pub fn absorb(&self, what: &impl Hash) {
        what.hash(&mut self.book().hash);
    }

    /// The hash of everything recorded and absorbed so far, in order.
    pub fn hash(&self) -> u64 {
        self.book().hash.finish()
    }

    /// Everything recorded, in order.
    pub fn records(&self) -> Vec<Record> {
        self.book().records.clone()
    }

    /// Takes everything recorded out, in order; the hash stays.
    pub fn take(&self) -> Vec<Record> {
        std::mem::take(&mut self.book().records)
    }

    /// Nothing in here can panic half-way, so a poisoned lock still guards a whole book.
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let book = self.book();
        f.debug_struct("Trace").field("records", &book.records.len()).field("hash", &book.hash.digest()).finish()
    }
}

#[cfg(test)]
mod tests {
    use meridian_types::{NodeId, RegionId};

    use super::*;

    fn crash(node: u64) -> Fact {
        Fact::Crashed { replica: Replica { region: RegionId(1), node: NodeId(node) }, lost_bytes: 0, disk_lost: false }
    }

    #[test]
    fn the_same_facts_in_another_order_or_at_another_time_are_another_trace() {
        let traces = [[(1, 7), (2, 8)], [(1, 8), (2, 7)], [(1, 7), (3, 8)]].map(|facts| {
            let trace = Trace::default();
            facts.iter().for_each(|(at, node)| trace.record(*at, crash(*node)));
            trace
        });
        let again = Trace::blind();
        again.record(1, crash(7));
        again.record(2, crash(8));
        assert_eq!(traces[0].hash(), again.hash());
        assert_ne!(traces[0].hash(), traces[1].hash());
        assert_ne!(traces[0].hash(), traces[2].hash());
        assert_eq!((traces[0].records().len(), again.records().len()), (2, 0));
    }
}
