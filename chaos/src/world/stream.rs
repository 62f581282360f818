//! An ordered stream between two nodes: nothing is missing and nothing is twice, until the whole stream breaks.
//!
//! A cut link holds everything up behind it; after the idle timeout, or when a node is gone, both ends learn that it is over.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::executor::Spawner;
use super::network::{Network, Place};

/// How long a silent peer is waited for: the default of replicator/quic's transport.
const IDLE: Duration = Duration::from_secs(3);

/// How often a link that is cut is looked at again.
const LOOK: Duration = Duration::from_millis(100);

/// One end of a stream. Dropping it ends the stream for the other one.
pub(crate) struct End {
    sender: Arc<Direction>,
    receiver: mpsc::UnboundedReceiver<Bytes>,
    own: Arc<Direction>,
}

/// Messages on their way in one direction.
struct Direction {
    network: Network,
    spawner: Spawner,
    from: Place,
    to: Place,
    state: Mutex<State>,
}

struct State {
    waiting: VecDeque<Bytes>,
    /// Nothing of it arrives before what was sent earlier did.
    last_us: u64,
    /// `None` once it is over.
    inbox: Option<mpsc::UnboundedSender<Bytes>>,
    /// Since when the link was found cut.
    stalled_us: Option<u64>,
}

/// Opens a stream: both of its ends, the opener's first.
pub(crate) fn pair(network: &Network, spawner: &Spawner, opener: Place, acceptor: Place) -> (End, End) {
    let direction = |from, to| {
        let (inbox, receiver) = mpsc::unbounded_channel();
        let state = State { waiting: VecDeque::new(), last_us: 0, inbox: Some(inbox), stalled_us: None };
        let (network, spawner) = (network.clone(), spawner.clone());
        (Arc::new(Direction { network, spawner, from, to, state: Mutex::new(state) }), receiver)
    };
    let (there, there_receiver) = direction(opener, acceptor);
    let (back, back_receiver) = direction(acceptor, opener);
    let end = |sender: &Arc<Direction>, own: &Arc<Direction>, receiver| End {
        sender: Arc::clone(sender),
        own: Arc::clone(own),
        receiver,
    };
    (end(&there, &back, back_receiver), end(&back, &there, there_receiver))
}

impl End {
    /// Sends a message; it is lost only with the stream.
    pub(crate) fn send(&self, message: Bytes) {
        self.sender.send(message);
    }

    /// The next message; `None` once the stream is over. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        self.receiver.recv().await
    }
}

impl Drop for End {
    /// The other end learns of it once the news could have reached it: behind what was sent, or after the idle timeout.
    fn drop(&mut self) {
        self.own.close();
        self.sender.end();
    }
}

impl Direction {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(self: &Arc<Self>, message: Bytes) {
        let delay = self.network.delay(self.from, self.to, message.len());
        let mut state = self.state();
        if state.inbox.is_none() {
            return;
        }
        let due = self.spawner.now_us() + u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        state.last_us = state.last_us.max(due);
        state.waiting.push_back(message);
        let due = state.last_us;
        drop(state);
        let direction = Arc::clone(self);
        self.spawner.at(due, move || direction.deliver());
    }

    /// Delivers the next message, or waits for the link.
    fn deliver(self: &Arc<Self>) {
        let now_us = self.spawner.now_us();
        let mut state = self.state();
        if state.waiting.is_empty() {
            return;
        }
        if !self.network.is_cut(self.from, self.to) {
            state.stalled_us = None;
            let message = state.waiting.pop_front();
            if let (Some(inbox), Some(message)) = (&state.inbox, message) {
                // An end that is gone has closed this direction.
                let _ = inbox.send(message);
            }
            return;
        }
        let since = *state.stalled_us.get_or_insert(now_us);
        drop(state);
        if now_us - since >= u64::try_from(IDLE.as_micros()).unwrap_or(u64::MAX) {
            return self.close();
        }
        let direction = Arc::clone(self);
        self.spawner.after(LOOK, move || direction.deliver());
    }

    /// Over, at once, for its receiver.
    fn close(&self) {
        let mut state = self.state();
        state.inbox = None;
        state.waiting.clear();
    }

    /// Over for its receiver once it can know.
    fn end(self: &Arc<Self>) {
        let delay = self.network.delay(self.from, self.to, 0);
        let due = self.spawner.now_us() + u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        let cut = self.network.is_cut(self.from, self.to);
        let due = if cut { due + u64::try_from(IDLE.as_micros()).unwrap_or(u64::MAX) } else { due };
        let due = self.state().last_us.max(due);
        let direction = Arc::clone(self);
        self.spawner.at(due, move || direction.close());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio::time::{Instant, sleep, timeout};

    use super::super::dice::Dice;
    use super::super::network::Location;
    use super::super::record::Record;
    use super::*;
    use crate::trace::Trace;

    const A: Place = Place::Node(0);
    const B: Place = Place::Node(1);

    fn play(test: impl AsyncFnOnce(Network, Spawner)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let spawner = Spawner::new();
            let places = vec![Location { latitude: 0.0, longitude: 0.0 }, Location { latitude: 40.0, longitude: 40.0 }];
            let record = Record::new(spawner.clone(), Trace::default());
            let network = Network::new(spawner.clone(), Dice::new(3), record, places, BTreeMap::new());
            spawner.run(Dice::new(4), test(network, spawner.clone())).await;
        });
    }

    #[test]
    fn messages_come_in_order_however_the_network_behaves() {
        play(async |network: Network, spawner: Spawner| {
            network.set_weather(A, B, |weather| weather.loss = 0.3);
            let (opener, mut acceptor) = pair(&network, &spawner, A, B);
            for number in 0..100u8 {
                opener.send(Bytes::copy_from_slice(&[number]));
                sleep(Duration::from_millis(3)).await;
            }
            for number in 0..100u8 {
                assert_eq!(acceptor.next().await.unwrap(), [number].as_slice());
            }
        });
    }

    #[test]
    fn a_short_cut_delays_and_a_long_one_breaks_the_stream() {
        play(async |network: Network, spawner: Spawner| {
            let (opener, mut acceptor) = pair(&network, &spawner, A, B);
            network.set_weather(A, B, |weather| weather.cut = true);
            opener.send(Bytes::from_static(b"late"));
            sleep(Duration::from_secs(1)).await;
            network.heal();
            assert_eq!(acceptor.next().await.unwrap(), "late");
            network.set_weather(A, B, |weather| weather.cut = true);
            opener.send(Bytes::from_static(b"never"));
            let began = Instant::now();
            assert_eq!(timeout(Duration::from_secs(10), acceptor.next()).await.unwrap(), None);
            assert!(began.elapsed() >= IDLE);
        });
    }

    #[test]
    fn an_end_that_is_dropped_ends_the_stream_behind_what_was_sent() {
        play(async |network: Network, spawner: Spawner| {
            let (opener, mut acceptor) = pair(&network, &spawner, A, B);
            opener.send(Bytes::from_static(b"last"));
            drop(opener);
            assert_eq!(acceptor.next().await.unwrap(), "last");
            assert_eq!(acceptor.next().await, None);
        });
    }
}
