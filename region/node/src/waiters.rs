//! Who waits for which request to be applied here: the replica's half of the one-round-trip write (design 6).
//!
//! Before a gateway forwards a write to its primary, it asks to be told when this region's own shard has applied
//! that request. Bounded (RES-1): beyond the bound nobody is registered, and the primary's answer is taken instead.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use meridian_region_core::Answered;
use meridian_types::{BucketId, ClientId, RequestId};
use tokio::sync::oneshot;

/// The most requests waited for, per shard.
pub(crate) const WAITERS_MAX: usize = 4096;

/// What is waited for: a client's ids are told apart within a bucket only.
type Asked = (BucketId, RequestId);

/// The waiters of one shard.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    /// How many there are: lets the apply thread skip the lock when nobody waits.
    count: AtomicUsize,
    by_request: Mutex<HashMap<Asked, Slot>>,
    /// Tells apart two waiters for one request: a client may retry while the first attempt is still under way.
    next: AtomicUsize,
}

#[derive(Debug)]
struct Slot {
    token: usize,
    answer: oneshot::Sender<Bytes>,
}

/// One who waits. Dropping it ends the wait.
#[derive(Debug)]
pub(crate) struct Waiter {
    waiters: Arc<Waiters>,
    asked: Asked,
    token: usize,
    answer: oneshot::Receiver<Bytes>,
}

impl Waiters {
    /// Waits for that request. `None` when it can't be matched (a client without identity), is waited for already, or the
    /// bound is reached.
    pub(crate) fn register(self: &Arc<Self>, asked: Asked) -> Option<Waiter> {
        if asked.1.client == ClientId(0) {
            return None;
        }
        let mut slots = self.by_request.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= WAITERS_MAX {
            return None;
        }
        let Entry::Vacant(free) = slots.entry(asked) else { return None };
        let (sender, answer) = oneshot::channel();
        let token = self.next.fetch_add(1, Ordering::Relaxed);
        free.insert(Slot { token, answer: sender });
        self.count.store(slots.len(), Ordering::Release);
        Some(Waiter { waiters: Arc::clone(self), asked, token, answer })
    }

    /// How many wait; at most [`WAITERS_MAX`].
    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Whether anybody waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// That request was applied, durably, with that result.
    pub(crate) fn applied(&self, answered: &Answered) {
        let mut slots = self.by_request.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.remove(&(answered.bucket, answered.id)) {
            // The waiter may have gone a moment ago.
            let _ = slot.answer.send(answered.result.clone());
        }
        self.count.store(slots.len(), Ordering::Release);
    }

    fn forget(&self, asked: Asked, token: usize) {
        let mut slots = self.by_request.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(slot) = slots.entry(asked)
            && slot.get().token == token
        {
            slot.remove();
        }
        self.count.store(slots.len(), Ordering::Release);
    }
}

impl Waiter {
    /// The result, once the request is applied here.
    pub(crate) async fn result(&mut self) -> Bytes {
        match (&mut self.answer).await {
            Ok(result) => result,
            // The slot is only dropped unanswered with the whole shard: then the primary answers, or nobody.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.waiters.forget(self.asked, self.token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(sequence: u64) -> Asked {
        (BucketId(1), RequestId { client: ClientId(7), sequence })
    }

    fn answered((bucket, id): Asked, result: &'static str) -> Answered {
        Answered { bucket, id, result: Bytes::from_static(result.as_bytes()) }
    }

    #[tokio::test]
    async fn a_waiter_is_told_the_result_of_its_own_request() {
        let waiters = Arc::new(Waiters::default());
        let mut waiter = waiters.register(asked(1)).unwrap();
        waiters.applied(&answered(asked(2), "other"));
        waiters.applied(&answered((BucketId(2), asked(1).1), "of another bucket"));
        waiters.applied(&answered(asked(1), "mine"));
        assert_eq!(waiter.result().await, "mine");
        assert!(waiters.is_empty());
    }

    #[test]
    fn a_waiter_that_left_leaves_nothing_behind() {
        let waiters = Arc::new(Waiters::default());
        drop(waiters.register(asked(1)));
        assert!(waiters.is_empty());
        assert!(waiters.register(asked(1)).is_some(), "the same request may be waited for again");
    }

    #[test]
    fn a_client_without_identity_and_one_beyond_the_bound_are_not_registered() {
        let waiters = Arc::new(Waiters::default());
        assert!(waiters.register((BucketId(1), RequestId::default())).is_none());
        let kept: Vec<_> = (0..WAITERS_MAX as u64).map(|sequence| waiters.register(asked(sequence)).unwrap()).collect();
        assert!(waiters.register(asked(u64::MAX)).is_none(), "RES-1");
        drop(kept);
        assert!(waiters.is_empty());
    }
}
