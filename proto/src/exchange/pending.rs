//! What callers and the stream share: the queue of requests that haven't left, and who waits for which answer.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use bytes::Bytes;
use meridian_types::{Effect, Refusal};
use tokio::sync::{Notify, Semaphore, SemaphorePermit, oneshot};

use super::{Service, effect_of};
use crate::limits::{BATCH_BYTES, BATCH_ITEMS, IN_FLIGHT_BYTES_MAX, IN_FLIGHT_MAX};
use crate::v1;

pub(super) type Answer = Result<v1::Response, Refusal>;

pub(super) struct Shared {
    pub(super) service: Service,
    client_id: Bytes,
    state: Mutex<State>,
    /// Wakes the driver when there is something to send and no stream.
    work: Notify,
    count: Semaphore,
    bytes: Semaphore,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Queued>,
    waiting: HashMap<u64, Waiting>,
    last_tag: u64,
    link: Link,
    /// Which stream may take from the queue; an older one that is still being torn down may not.
    stream: u64,
}

/// The stream, as callers see it.
#[derive(Default)]
enum Link {
    /// None, or being opened: requests are queued, the driver is told.
    #[default]
    Closed,
    /// Open and waiting for something to send.
    Idle(Waker),
    /// Open and sending: it will look again by itself.
    Busy,
    /// It broke moments ago: callers are refused at once, so that they can try another node.
    Broken(Refusal),
}

struct Queued {
    request: v1::Request,
    bytes: usize,
}

struct Waiting {
    answer: oneshot::Sender<Answer>,
    is_write: bool,
    sent: bool,
}

/// Room for one request in flight; given back when dropped.
pub(super) struct Room<'a> {
    _count: SemaphorePermit<'a>,
    _bytes: SemaphorePermit<'a>,
}

/// A caller's place: when it goes away without an answer, so does the place.
pub(super) struct Ticket<'a> {
    shared: &'a Shared,
    tag: u64,
    is_write: bool,
    open: bool,
}

impl Shared {
    pub(super) fn new(client_id: Bytes, service: Service) -> Shared {
        Shared {
            service,
            client_id,
            state: Mutex::default(),
            work: Notify::new(),
            count: Semaphore::new(IN_FLIGHT_MAX),
            bytes: Semaphore::new(IN_FLIGHT_BYTES_MAX),
        }
    }

    /// Nothing in here can panic half-way, so a poisoned lock still guards a whole state.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn try_room(&self, bytes: usize) -> Option<Room<'_>> {
        let count = self.count.try_acquire().ok()?;
        let bytes = self.bytes.try_acquire_many(permits(bytes)).ok()?;
        Some(Room { _count: count, _bytes: bytes })
    }

    /// Waits for room. Never fails: the semaphores are never closed.
    pub(super) async fn room(&self, bytes: usize) -> Room<'_> {
        loop {
            if let (Ok(count), Ok(bytes)) = (self.count.acquire().await, self.bytes.acquire_many(permits(bytes)).await)
            {
                return Room { _count: count, _bytes: bytes };
            }
        }
    }

    /// Queues a request; its answer comes through the receiver.
    pub(super) fn push(
        &self,
        mut request: v1::Request,
        bytes: usize,
        is_write: bool,
    ) -> Result<(Ticket<'_>, oneshot::Receiver<Answer>), Refusal> {
        let (answer, receiver) = oneshot::channel();
        let mut state = self.state();
        if let Link::Broken(why) = &state.link {
            return Err(why.clone().with_effect(Effect::None));
        }
        state.last_tag += 1;
        let tag = state.last_tag;
        request.tag = tag;
        state.waiting.insert(tag, Waiting { answer, is_write, sent: false });
        state.queue.push_back(Queued { request, bytes });
        match std::mem::replace(&mut state.link, Link::Busy) {
            Link::Idle(waker) => {
                drop(state);
                waker.wake();
            }
            Link::Closed => {
                state.link = Link::Closed;
                drop(state);
                self.work.notify_one();
            }
            other => state.link = other,
        }
        Ok((Ticket { shared: self, tag, is_write, open: true }, receiver))
    }

    /// The number of a new stream, which alone may take from the queue from now on.
    pub(super) fn begin_stream(&self) -> u64 {
        let mut state = self.state();
        state.stream += 1;
        state.stream
    }

    /// The next batch for that stream: `Some(None)` when it is no longer the one, `None` when there is nothing to send
    /// (then the waker is kept).
    pub(super) fn take(&self, stream: u64, waker: &Waker) -> Option<Option<v1::RequestBatch>> {
        let mut state = self.state();
        if state.stream != stream {
            return Some(None);
        }
        let State { queue, waiting, .. } = &mut *state;
        let mut requests = Vec::with_capacity(queue.len().min(BATCH_ITEMS));
        let mut bytes = 0;
        while let Some(next) = queue.front() {
            if !requests.is_empty() && (bytes + next.bytes > BATCH_BYTES || requests.len() >= BATCH_ITEMS) {
                break;
            }
            let Some(next) = queue.pop_front() else { break };
            // A caller that went away took its place, and its request, with it.
            if let Some(place) = waiting.get_mut(&next.request.tag) {
                place.sent = true;
                bytes += next.bytes;
                requests.push(next.request);
            }
        }
        if requests.is_empty() {
            state.link = Link::Idle(waker.clone());
            return None;
        }
        state.link = Link::Busy;
        Some(Some(v1::RequestBatch { client_id: self.client_id.clone(), requests }))
    }

    /// Hands answers to their callers; an answer nobody waits for any more is dropped.
    pub(super) fn complete(&self, batch: v1::ResponseBatch) {
        let mut state = self.state();
        let found: Vec<_> = batch
            .responses
            .into_iter()
            .filter_map(|response| Some((state.waiting.remove(&response.tag)?.answer, response)))
            .collect();
        drop(state);
        for (answer, response) in found {
            // The caller may have gone away this very moment.
            let _ = answer.send(Ok(response));
        }
    }

    /// Refuses everybody: the stream broke. Until [`Shared::mend`], newcomers are refused too.
    pub(super) fn break_off(&self, why: Refusal) {
        let mut state = self.state();
        state.stream += 1;
        state.queue.clear();
        let waiting = std::mem::take(&mut state.waiting);
        state.link = Link::Broken(why.clone());
        drop(state);
        for place in waiting.into_values() {
            let effect = effect_of(place.is_write, place.sent);
            let _ = place.answer.send(Err(why.clone().with_effect(effect)));
        }
    }

    /// Nobody will ask for anything any more: ends the sending half, for the transport keeps the stream until that has ended.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.stream += 1;
        let link = std::mem::take(&mut state.link);
        drop(state);
        if let Link::Idle(waker) = link {
            waker.wake();
        }
    }

    /// Takes requests again.
    pub(super) fn mend(&self) {
        self.state().link = Link::Closed;
    }

    pub(super) async fn something_to_send(&self) {
        while self.state().queue.is_empty() {
            self.work.notified().await;
        }
    }
}

impl Ticket<'_> {
    /// The answer has come.
    pub(super) fn done(mut self) {
        self.open = false;
    }

    /// What giving up now means for the data.
    pub(super) fn effect_of_giving_up(&self) -> Effect {
        let state = self.shared.state();
        // No place any more means that it was sent, and an answer is on its way.
        effect_of(self.is_write, state.waiting.get(&self.tag).is_none_or(|place| place.sent))
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        let mut state = self.shared.state();
        let unsent = state.waiting.remove(&self.tag).is_some_and(|place| !place.sent);
        if unsent {
            // Tags rise along the queue. Left there, abandoned requests would pile up behind a stream that stalls.
            let at = state.queue.partition_point(|queued| queued.request.tag < self.tag);
            if state.queue.get(at).is_some_and(|queued| queued.request.tag == self.tag) {
                state.queue.remove(at);
            }
        }
    }
}

/// Semaphores count in u32; a request beyond the bound takes all of it.
fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes.min(IN_FLIGHT_BYTES_MAX)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use meridian_types::RefusalKind;

    use super::*;

    fn shared() -> Shared {
        Shared::new(Bytes::new(), Service::Store)
    }

    fn tags(batch: Option<Option<v1::RequestBatch>>) -> Vec<u64> {
        batch.flatten().map_or_else(Vec::new, |batch| batch.requests.iter().map(|request| request.tag).collect())
    }

    fn broken() -> Refusal {
        Refusal::new(RefusalKind::Retry, "made for the test")
    }

    #[test]
    fn what_waits_leaves_together_in_order_and_a_full_batch_is_closed() -> Result<(), Refusal> {
        let shared = shared();
        let small = shared.push(v1::Request::default(), 10, false)?;
        let large = shared.push(v1::Request::default(), BATCH_BYTES, false)?;
        let stream = shared.begin_stream();
        assert_eq!(tags(shared.take(stream, Waker::noop())), [1]);
        assert_eq!(tags(shared.take(stream, Waker::noop())), [2], "one request may be larger than a batch");
        assert!(shared.take(stream, Waker::noop()).is_none());
        drop((small, large));
        Ok(())
    }

    #[test]
    fn a_caller_that_goes_away_takes_its_request_along_so_that_nothing_piles_up_res_1() -> Result<(), Refusal> {
        let shared = shared();
        for _ in 0..1000 {
            drop(shared.push(v1::Request::default(), 10, true)?);
        }
        let state = shared.state();
        assert_eq!((state.queue.len(), state.waiting.len()), (0, 0));
        Ok(())
    }

    #[test]
    fn a_break_refuses_reads_and_unsent_writes_with_no_effect_and_sent_writes_as_unknown_one_1() -> Result<(), Refusal>
    {
        let shared = shared();
        let (_read, mut read) = shared.push(v1::Request::default(), 10, false)?;
        let (sent_ticket, mut sent) = shared.push(v1::Request::default(), 10, true)?;
        assert_eq!(sent_ticket.effect_of_giving_up(), Effect::None);
        let stream = shared.begin_stream();
        assert_eq!(tags(shared.take(stream, Waker::noop())), [1, 2]);
        assert_eq!(sent_ticket.effect_of_giving_up(), Effect::Unknown);
        let (_unsent, mut unsent) = shared.push(v1::Request::default(), 10, true)?;
        shared.break_off(broken());
        let effect = |answer: &mut oneshot::Receiver<Answer>| answer.try_recv().unwrap().unwrap_err().effect;
        assert_eq!(effect(&mut read), Effect::None);
        assert_eq!(effect(&mut sent), Effect::Unknown);
        assert_eq!(effect(&mut unsent), Effect::None);
        Ok(())
    }

    #[test]
    fn between_a_break_and_its_mending_callers_are_refused_at_once() -> Result<(), Refusal> {
        let shared = shared();
        let old = shared.begin_stream();
        shared.break_off(broken());
        let refused = shared.push(v1::Request::default(), 10, true).map(|_| ()).unwrap_err();
        assert_eq!((refused.kind, refused.effect), (RefusalKind::Retry, Effect::None));
        shared.mend();
        let (_ticket, _answer) = shared.push(v1::Request::default(), 10, true)?;
        assert_eq!(shared.take(old, Waker::noop()), Some(None), "a stream that broke takes nothing more");
        Ok(())
    }

    #[test]
    fn room_is_bounded_by_count_and_bytes_and_comes_back_res_1() {
        let shared = shared();
        let large = shared.try_room(IN_FLIGHT_BYTES_MAX).unwrap();
        assert!(shared.try_room(1).is_none());
        drop(large);
        let many: Vec<_> = (0..IN_FLIGHT_MAX).map(|_| shared.try_room(1).unwrap()).collect();
        assert!(shared.try_room(1).is_none());
        drop(many);
        assert!(shared.try_room(1).is_some());
    }
}
