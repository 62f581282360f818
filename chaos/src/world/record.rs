//! What an omniscient observer writes down: facts with their time, and what else makes two runs the same.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use meridian_region_core::{Applied, Shard};
use meridian_region_node::Witness;
use meridian_types::Lsn;

use super::executor::Spawner;
use super::met::Meetings;
use crate::trace::{Fact, Replica, Trace};

/// Writes into a world's trace. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Record {
    spawner: Spawner,
    trace: Trace,
    /// The most that anything ever held.
    peaks: Arc<Mutex<HashMap<(Replica, &'static str), u64>>>,
    pub(crate) meetings: Meetings,
}

impl Record {
    pub(crate) fn new(spawner: Spawner, trace: Trace) -> Record {
        Record { spawner, trace, peaks: Arc::default(), meetings: Meetings::default() }
    }

    /// A fact, now.
    pub(crate) fn fact(&self, fact: Fact) {
        self.trace.record(self.spawner.now_us(), fact);
    }

    /// How much something on a node holds, and the most it may: a fact where it is more than ever before, or too much.
    pub(crate) fn holds(&self, replica: Replica, what: &'static str, amount: u64, most: u64) {
        let mut peaks = self.peaks.lock().unwrap_or_else(PoisonError::into_inner);
        let peak = peaks.entry((replica, what)).or_default();
        if amount > *peak || amount > most {
            *peak = amount.max(*peak);
            self.fact(Fact::Holds { replica, what, amount, most });
        }
    }

    /// Something that is no fact, now.
    pub(crate) fn absorb(&self, what: &impl Hash) {
        self.trace.absorb(&(self.spawner.now_us(), what));
    }

    /// What a node's shards show of themselves.
    pub(crate) fn witness(&self, replica: Replica) -> Arc<dyn Witness> {
        Arc::new(Seen { record: self.clone(), replica })
    }
}

struct Seen {
    record: Record,
    replica: Replica,
}

impl Witness for Seen {
    fn applied(&self, shard: &Shard, lsn: Lsn, entry: &[u8], applied: &Applied) {
        self.record.trace.applied(self.record.spawner.now_us(), self.replica, shard, lsn, entry, applied);
    }
}
