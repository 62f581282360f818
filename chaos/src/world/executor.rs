//! Runs every task of a world on one thread, in an order that the seed decides.
//!
//! Tasks are tokio futures, but tokio's scheduler is not asked: it wakes those who wait for one `watch` in an order
//! that differs from run to run. Here all that were woken are sorted and then shuffled by the seed, which also tries orders
//! that a real scheduler seldom brings about. Each task belongs to a node or to the world: a crash drops the tasks of a
//! node wherever they stand; a pause (SIGSTOP) leaves them unpolled while time, and their timers, run on.
//!
//! Time is tokio's paused clock, with its resolution of a millisecond; [`Spawner::at`] keeps microseconds for its own
//! order of events within one.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::{Instant, Sleep, sleep_until};

use super::dice::Dice;

/// Whose task it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owner {
    /// Nobody's: it outlives every node.
    World,
    /// The node's of that number.
    Node(usize),
}

/// Starts tasks and plans events. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Spawner {
    shared: Arc<Shared>,
    began: Instant,
}

struct Shared {
    ready: Mutex<Ready>,
    orders: Mutex<Vec<Order>>,
    events: Mutex<Events>,
}

#[derive(Default)]
struct Ready {
    woken: Vec<u64>,
    root: Option<Waker>,
}

#[derive(Default)]
struct Events {
    heap: BinaryHeap<Reverse<Event>>,
    planned: u64,
}

struct Event {
    at_us: u64,
    number: u64,
    act: Box<dyn FnOnce() + Send>,
}

/// What is to be done between two polls, in the order it was asked for.
enum Order {
    Spawn(Owner, BoxFuture<'static, ()>),
    Kill(Owner),
    Pause(Owner),
    Resume(Owner),
}

impl PartialEq for Event {
    fn eq(&self, other: &Event) -> bool {
        (self.at_us, self.number) == (other.at_us, other.number)
    }
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Event) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    fn cmp(&self, other: &Event) -> std::cmp::Ordering {
        (self.at_us, self.number).cmp(&(other.at_us, other.number))
    }
}

/// Nothing under these locks can panic half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct TaskWaker {
    task: u64,
    queued: AtomicBool,
    shared: Arc<Shared>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.shared.wake(self.task);
        }
    }
}

impl Shared {
    fn wake(&self, task: u64) {
        let root = {
            let mut ready = lock(&self.ready);
            ready.woken.push(task);
            ready.root.take()
        };
        if let Some(root) = root {
            root.wake();
        }
    }

    fn wake_root(&self) {
        let root = lock(&self.ready).root.take();
        if let Some(root) = root {
            root.wake();
        }
    }

    fn order(&self, order: Order) {
        lock(&self.orders).push(order);
        self.wake_root();
    }
}

impl Spawner {
    /// Must be called within a tokio runtime whose clock is paused.
    pub(crate) fn new() -> Spawner {
        let shared = Shared { ready: Mutex::default(), orders: Mutex::default(), events: Mutex::default() };
        Spawner { shared: Arc::new(shared), began: Instant::now() }
    }

    /// Microseconds since the world began.
    pub(crate) fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// The moment that many microseconds after the world began.
    pub(crate) fn moment(&self, us: u64) -> Instant {
        self.began + Duration::from_micros(us)
    }

    /// Starts a task.
    pub(crate) fn spawn(&self, owner: Owner, task: impl Future<Output = ()> + Send + 'static) {
        self.shared.order(Order::Spawn(owner, Box::pin(task)));
    }

    /// Drops every task of `owner`.
    pub(crate) fn kill(&self, owner: Owner) {
        self.shared.order(Order::Kill(owner));
    }

    /// Stops polling the tasks of `owner`.
    pub(crate) fn pause(&self, owner: Owner) {
        self.shared.order(Order::Pause(owner));
    }

    /// Polls them again.
    pub(crate) fn resume(&self, owner: Owner) {
        self.shared.order(Order::Resume(owner));
    }

    /// Has something done in `after`. Events of one moment happen in the order they were planned.
    pub(crate) fn after(&self, after: Duration, act: impl FnOnce() + Send + 'static) {
        self.at(self.now_us().saturating_add(u64::try_from(after.as_micros()).unwrap_or(u64::MAX)), act);
    }

    /// Has something done at that time, in microseconds since the world began.
    pub(crate) fn at(&self, at_us: u64, act: impl FnOnce() + Send + 'static) {
        let mut events = lock(&self.shared.events);
        events.planned += 1;
        let number = events.planned;
        events.heap.push(Reverse(Event { at_us, number, act: Box::new(act) }));
        drop(events);
        self.shared.wake_root();
    }

    /// The world is over: nothing that was planned will happen.
    pub(crate) fn forget(&self) {
        // Not under the locks: what ends may still plan.
        let events = std::mem::take(&mut lock(&self.shared.events).heap);
        let orders = std::mem::take(&mut *lock(&self.shared.orders));
        drop((events, orders));
    }

    /// Runs `main` and every task until `main` is done; then drops them all.
    pub(crate) async fn run<F: Future>(&self, dice: Dice, main: F) -> F::Output {
        let mut run = Run {
            spawner: self.clone(),
            dice,
            tasks: BTreeMap::new(),
            next: 1,
            paused: BTreeSet::new(),
            held: Vec::new(),
            timer: Box::pin(sleep_until(self.began)),
            standstill: (0, 0),
        };
        let mut main = std::pin::pin!(main);
        let waker = run.waker(0);
        waker.wake_by_ref();
        let root = std::future::poll_fn(|context| run.poll(context, main.as_mut(), &waker));
        // Outside of tokio's budget, which would make whoever is polled last in a long round wait in vain.
        tokio::task::unconstrained(root).await
    }
}

/// Waits for all of them. Whoever is waiting is polled in this order, however many there are: `join_all` polls more than thirty in the
/// order in which they were woken.
pub(crate) async fn join_in_order<F: Future<Output = ()>>(futures: impl IntoIterator<Item = F>) {
    let mut waiting: Vec<Pin<Box<F>>> = futures.into_iter().map(Box::pin).collect();
    std::future::poll_fn(|context| {
        waiting.retain_mut(|future| future.as_mut().poll(context).is_pending());
        if waiting.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

struct Task {
    owner: Owner,
    future: BoxFuture<'static, ()>,
    waker: Arc<TaskWaker>,
}

struct Run {
    spawner: Spawner,
    dice: Dice,
    tasks: BTreeMap<u64, Task>,
    next: u64,
    paused: BTreeSet<Owner>,
    /// Tasks that were woken while their owner is paused.
    held: Vec<u64>,
    timer: Pin<Box<Sleep>>,
    /// Steps since time last moved, and when that was.
    standstill: (u64, u64),
}

/// The most steps of tasks within one moment. A busy millisecond has some hundred; a task that asks again and again without
/// waiting for anything would otherwise stop the world for ever (and burn a processor in a real one).
const STEPS_MAX: u64 = 1_000_000;

impl Run {
    fn waker(&self, task: u64) -> Arc<TaskWaker> {
        Arc::new(TaskWaker { task, queued: AtomicBool::new(false), shared: Arc::clone(&self.spawner.shared) })
    }

    fn poll<F: Future>(
        &mut self,
        context: &mut Context<'_>,
        mut main: Pin<&mut F>,
        own: &Arc<TaskWaker>,
    ) -> Poll<F::Output> {
        loop {
            self.act();
            self.obey();
            let mut round = std::mem::take(&mut lock(&self.spawner.shared.ready).woken);
            if round.is_empty() {
                lock(&self.spawner.shared.ready).root = Some(context.waker().clone());
                if self.sleep(context) {
                    continue;
                }
                return Poll::Pending;
            }
            round.sort_unstable();
            self.dice.shuffle(&mut round);
            for task in round {
                if task == 0 {
                    own.queued.store(false, Ordering::Relaxed);
                    let waker = Waker::from(Arc::clone(own));
                    if let Poll::Ready(done) = main.as_mut().poll(&mut Context::from_waker(&waker)) {
                        return Poll::Ready(done);
                    }
                } else {
                    self.step(task);
                }
                // A node that was killed a moment ago must not take another step.
                self.obey();
            }
        }
    }

    fn step(&mut self, id: u64) {
        let now_us = self.spawner.now_us();
        self.standstill = if self.standstill.1 == now_us { (self.standstill.0 + 1, now_us) } else { (0, now_us) };
        assert!(self.standstill.0 < STEPS_MAX, "time stands still: some task never waits");
        let Some(task) = self.tasks.get_mut(&id) else { return };
        if self.paused.contains(&task.owner) {
            self.held.push(id);
            return;
        }
        task.waker.queued.store(false, Ordering::Relaxed);
        let waker = Waker::from(Arc::clone(&task.waker));
        if task.future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            self.tasks.remove(&id);
        }
    }

    /// Does what was planned for now.
    fn act(&mut self) {
        let now_us = self.spawner.now_us();
        loop {
            let mut events = lock(&self.spawner.shared.events);
            if events.heap.peek().is_none_or(|Reverse(event)| event.at_us > now_us) {
                return;
            }
            let Some(Reverse(event)) = events.heap.pop() else { return };
            drop(events);
            (event.act)();
            self.obey();
        }
    }

    fn obey(&mut self) {
        loop {
            let orders = std::mem::take(&mut *lock(&self.spawner.shared.orders));
            if orders.is_empty() {
                return;
            }
            orders.into_iter().for_each(|order| self.carry_out(order));
        }
    }

    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Spawn(owner, future) => {
                let id = self.next;
                self.next += 1;
                let waker = self.waker(id);
                waker.wake_by_ref();
                self.tasks.insert(id, Task { owner, future, waker });
            }
            Order::Kill(owner) => {
                // In the order of their birth, whatever their ends set in motion.
                let doomed: Vec<u64> =
                    self.tasks.iter().filter(|(_, task)| task.owner == owner).map(|(id, _)| *id).collect();
                doomed.into_iter().for_each(|id| drop(self.tasks.remove(&id)));
                self.paused.remove(&owner);
            }
            Order::Pause(owner) => {
                self.paused.insert(owner);
            }
            Order::Resume(owner) => {
                self.paused.remove(&owner);
                lock(&self.spawner.shared.ready).woken.append(&mut self.held);
            }
        }
    }

    /// Sleeps until the next event; whether it is due already.
    fn sleep(&mut self, context: &mut Context<'_>) -> bool {
        let next = lock(&self.spawner.shared.events).heap.peek().map(|Reverse(event)| event.at_us);
        let Some(next) = next else { return false };
        let moment = self.spawner.moment(next);
        if self.timer.deadline() != moment {
            self.timer.as_mut().reset(moment);
        }
        self.timer.as_mut().poll(context).is_ready()
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;
    use tokio::time::sleep;

    use super::*;

    fn play<T>(seed: u64, main: impl AsyncFnOnce(Spawner) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let spawner = Spawner::new();
            spawner.run(Dice::new(seed), main(spawner.clone())).await
        })
    }

    /// The order in which ten tasks that wait for one watch and one timer get their turn.
    fn order(seed: u64) -> Vec<usize> {
        play(seed, async |spawner: Spawner| {
            let (change, order) = (watch::Sender::new(0), Arc::new(Mutex::new(Vec::new())));
            for number in 0..10 {
                let (mut changes, order) = (change.subscribe(), Arc::clone(&order));
                spawner.spawn(Owner::World, async move {
                    changes.changed().await.unwrap();
                    lock(&order).push(number);
                    sleep(Duration::from_millis(3)).await;
                    lock(&order).push(number + 10);
                });
            }
            sleep(Duration::from_millis(1)).await;
            change.send_replace(1);
            sleep(Duration::from_secs(1)).await;
            lock(&order).clone()
        })
    }

    #[test]
    fn one_seed_is_one_order_and_another_seed_another() {
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
        assert_eq!(order(1).len(), 20);
    }

    #[test]
    fn a_paused_node_does_nothing_until_it_goes_on_and_a_killed_one_never() {
        let (paused, resumed, killed) = play(1, async |spawner: Spawner| {
            let ticks = Arc::new(Mutex::new(0));
            let counted = Arc::clone(&ticks);
            spawner.spawn(Owner::Node(3), async move {
                loop {
                    sleep(Duration::from_millis(10)).await;
                    *lock(&counted) += 1;
                }
            });
            spawner.pause(Owner::Node(3));
            sleep(Duration::from_millis(105)).await;
            let paused = *lock(&ticks);
            spawner.resume(Owner::Node(3));
            sleep(Duration::from_millis(105)).await;
            let resumed = *lock(&ticks);
            spawner.kill(Owner::Node(3));
            sleep(Duration::from_millis(105)).await;
            let killed = *lock(&ticks);
            (paused, resumed, killed)
        });
        assert_eq!(paused, 0);
        assert!((9..=11).contains(&resumed), "{resumed}");
        assert_eq!(killed, resumed);
    }

    #[test]
    fn events_happen_in_the_order_of_their_time_then_of_their_planning() {
        let happened = play(1, async |spawner: Spawner| {
            let happened = Arc::new(Mutex::new(Vec::new()));
            for (number, us) in [(1, 900), (2, 100), (3, 900), (4, 5000)] {
                let happened = Arc::clone(&happened);
                spawner.at(us, move || lock(&happened).push(number));
            }
            sleep(Duration::from_millis(10)).await;
            lock(&happened).clone()
        });
        assert_eq!(happened, [2, 1, 3, 4]);
    }
}
