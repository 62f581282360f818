//! This node's full copy of the metadata: the state, what is published of it, and this node's lease.
//!
//! Order matters: a state is published *before* the lease hears of its index, so whoever sees a lease that
//! rests on index `i` also sees a topology of at least `i` (FEN-1).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use meridian_metadata_core::{ClusterState, Drift, Grant, LeaseHolder};
use meridian_types::Topology;
use tokio::sync::watch;

/// Shared by the state machine (writes) and everything else (reads).
#[derive(Debug)]
pub(crate) struct LocalCopy {
    state: Mutex<ClusterState>,
    generation: u32,
    topology: watch::Sender<Arc<Topology>>,
    pub(crate) lease: Lease,
}

/// A panic while a lock was held has already condemned this node; what is behind it is whole,
/// because every change is made on values that are put back at once.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LocalCopy {
    pub(crate) fn new(state: ClusterState, drift: Drift, generation: u32) -> LocalCopy {
        let topology = watch::Sender::new(Arc::new(Topology { generation, ..state.topology() }));
        let lease = Lease::new(drift, state.index());
        LocalCopy { state: Mutex::new(state), generation, topology, lease }
    }

    /// Reads the state. Short: applies wait meanwhile.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&ClusterState) -> T) -> T {
        read(&lock(&self.state))
    }

    /// Changes the state and publishes the result.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut ClusterState) -> T) -> T {
        let (result, topology) = {
            let mut state = lock(&self.state);
            let result = change(&mut state);
            (result, Arc::new(Topology { generation: self.generation, ..state.topology() }))
        };
        let index = topology.index;
        self.topology.send_replace(topology);
        self.lease.applied(index);
        result
    }

    pub(crate) fn topology(&self) -> Arc<Topology> {
        Arc::clone(&self.topology.borrow())
    }

    pub(crate) fn changes(&self) -> watch::Receiver<Arc<Topology>> {
        self.topology.subscribe()
    }

    /// The index of the published copy.
    pub(crate) fn index(&self) -> u64 {
        self.topology.borrow().index
    }

    /// Waits until the published copy has reached `index`.
    pub(crate) async fn reach(&self, index: u64) {
        let mut changes = self.changes();
        // Ends early only when the copy itself is gone, and then nobody is left to look.
        let _ = changes.wait_for(|topology| topology.index >= index).await;
    }
}

/// This node's lease. Reading it is one atomic load: it is read on every write.
#[derive(Debug)]
pub(crate) struct Lease {
    /// What `until_ns` counts from.
    base: Instant,
    /// Nanoseconds after `base`; 0 for none.
    until_ns: AtomicU64,
    /// Since when there was no break, in nanoseconds after `base`. Written before `until_ns` and read after it: with an older
    /// `until_ns` it makes the time too short, never too long.
    since_ns: AtomicU64,
    granted: Mutex<Granted>,
    changes: watch::Sender<Option<Instant>>,
}

#[derive(Debug)]
struct Granted {
    holder: LeaseHolder,
    applied: u64,
}

impl Lease {
    fn new(drift: Drift, applied: u64) -> Lease {
        Lease {
            base: Instant::now(),
            until_ns: AtomicU64::new(0),
            since_ns: AtomicU64::new(0),
            granted: Mutex::new(Granted { holder: LeaseHolder::new(drift), applied }),
            changes: watch::Sender::new(None),
        }
    }

    /// Until when this node may act on the metadata it has applied. May have passed.
    pub(crate) fn until(&self) -> Option<Instant> {
        match self.until_ns.load(Ordering::Acquire) {
            0 => None,
            nanos => Some(self.base + Duration::from_nanos(nanos)),
        }
    }

    /// For how long this node may have acted without a break; zero when it may not act now.
    pub(crate) fn tenure(&self, now: Instant) -> Duration {
        let Some(_) = self.until().filter(|until| now < *until) else { return Duration::ZERO };
        now.saturating_duration_since(self.base + Duration::from_nanos(self.since_ns.load(Ordering::Acquire)))
    }

    /// Takes the answer to a renewal that was sent at `sent`.
    pub(crate) fn granted(&self, sent: Instant, grant: Grant) {
        self.update(|granted| granted.holder.granted(sent, Instant::now(), grant));
    }

    fn applied(&self, index: u64) {
        self.update(|granted| granted.applied = granted.applied.max(index));
    }

    fn update(&self, change: impl FnOnce(&mut Granted)) {
        let mut granted = lock(&self.granted);
        change(&mut granted);
        let until = granted.holder.until(granted.applied);
        // `base` is before every grant; 584 years fit.
        let nanos = |at: Instant| u64::try_from(at.saturating_duration_since(self.base).as_nanos()).unwrap_or_default();
        if let Some(since) = granted.holder.since(granted.applied, Instant::now()) {
            self.since_ns.store(nanos(since), Ordering::Release);
        }
        self.until_ns.store(until.map_or(0, nanos), Ordering::Release);
        self.changes.send_if_modified(|seen| {
            let changed = *seen != until;
            *seen = until;
            changed
        });
    }

    pub(crate) fn changes(&self) -> watch::Receiver<Option<Instant>> {
        self.changes.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_appears_only_once_the_index_it_rests_on_is_published() {
        let copy = LocalCopy::new(ClusterState::default(), Drift::ONE_PERCENT, 0);
        let sent = Instant::now();
        assert_eq!(copy.lease.until(), None);
        copy.lease.granted(sent, Grant { ttl: Duration::from_secs(5), index: 1, term: 1 });
        assert_eq!(copy.lease.until(), None);
        copy.lease.applied(1);
        assert_eq!(copy.lease.until(), Some(sent + Duration::from_millis(4950)));
    }

    #[test]
    fn con_3_a_tenure_begins_anew_after_every_break() {
        let copy = LocalCopy::new(ClusterState::default(), Drift::ONE_PERCENT, 0);
        let (began, ttl) = (Instant::now(), Duration::from_millis(80));
        assert_eq!(copy.lease.tenure(Instant::now()), Duration::ZERO);
        copy.lease.granted(Instant::now(), Grant { ttl, index: 0, term: 1 });
        copy.lease.granted(Instant::now(), Grant { ttl: ttl * 100, index: 0, term: 1 });
        let later = Instant::now() + ttl * 10;
        assert!(copy.lease.tenure(later) > ttl * 9, "renewed in time");
        let copy = LocalCopy::new(ClusterState::default(), Drift::ONE_PERCENT, 0);
        copy.lease.granted(Instant::now(), Grant { ttl, index: 0, term: 1 });
        std::thread::sleep(ttl);
        assert_eq!(copy.lease.tenure(Instant::now()), Duration::ZERO, "it has run out");
        copy.lease.granted(Instant::now(), Grant { ttl: ttl * 100, index: 0, term: 1 });
        assert!(copy.lease.tenure(Instant::now()) <= began.elapsed() - ttl, "the first one does not count any more");
    }
}
