//! Who can be reached: calls with an answer and messages without one, to nodes that may be gone by then.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::dice::Dice;
use super::executor::{Owner, Spawner};
use super::network::{Network, Place};
use super::node::Life;

/// Why a call brought no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallError {
    /// Nobody listens there: nothing has been done.
    Unreached,
    /// The connection broke: it may have been done.
    Lost,
}

/// Ways to every node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Wires {
    pub(crate) network: Network,
    pub(crate) spawner: Spawner,
    dice: Dice,
    lives: Arc<Mutex<Vec<Option<Arc<Life>>>>>,
}

/// About the size of an answer: they are not weighed one by one.
const ANSWER_BYTES: usize = 200;

/// The longest until a peer that lost its connection notices.
const NOTICED: Duration = Duration::from_secs(3);

impl Wires {
    pub(crate) fn new(network: Network, spawner: Spawner, dice: Dice, nodes: usize) -> Wires {
        Wires { network, spawner, dice, lives: Arc::new(Mutex::new(vec![None; nodes])) }
    }

    /// The node of that number, if it runs.
    pub(crate) fn life(&self, node: usize) -> Option<Arc<Life>> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner).get(node).cloned().flatten()
    }

    /// The node runs, or no longer does.
    pub(crate) fn set_life(&self, node: usize, life: Option<Arc<Life>>) {
        let mut lives = self.lives.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = lives.get_mut(node) {
            *place = life;
        }
    }

    /// The world is over: no node runs any more.
    pub(crate) fn forget(&self) {
        let lives = std::mem::take(&mut *self.lives.lock().unwrap_or_else(PoisonError::into_inner));
        drop(lives);
    }

    /// Hands something to a node, as a task of its own: a stopped process takes it in when it goes on.
    pub(crate) fn deliver(&self, to: usize, take: impl FnOnce(Arc<Life>) + Send + 'static) {
        if let Some(life) = self.life(to) {
            self.spawner.spawn(Owner::Node(to), async move { take(life) });
        }
    }

    /// Calls a node and waits for its answer, as long as the caller does.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        from: Place,
        to: usize,
        bytes: usize,
        serve: impl FnOnce(Arc<Life>) -> BoxFuture<'static, T> + Send + 'static,
    ) -> Result<T, CallError> {
        let (answer, answered) = oneshot::channel();
        let wires = self.clone();
        self.network.carry(from, Place::Node(to), bytes, move || wires.arrived(from, to, serve, answer));
        match answered.await {
            Ok(answer) => answer,
            Err(_) => {
                sleep(self.dice.duration(self.network.distance(from, Place::Node(to)), NOTICED)).await;
                Err(CallError::Lost)
            }
        }
    }

    fn arrived<T: Send + 'static>(
        &self,
        from: Place,
        to: usize,
        serve: impl FnOnce(Arc<Life>) -> BoxFuture<'static, T> + Send + 'static,
        answer: oneshot::Sender<Result<T, CallError>>,
    ) {
        let network = self.network.clone();
        let Some(life) = self.life(to) else {
            return network.carry(Place::Node(to), from, 0, move || drop(answer.send(Err(CallError::Unreached))));
        };
        self.spawner.spawn(Owner::Node(to), async move {
            let served = serve(life).await;
            // Who called may have given up.
            network.carry(Place::Node(to), from, ANSWER_BYTES, move || drop(answer.send(Ok(served))));
        });
    }
}
