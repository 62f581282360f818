//! The task of one outgoing lane: as replicator/quic's `ship.rs`, over simulated streams.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, OptionFuture};
use meridian_region_node::Clock;
use meridian_replicator_core::message::{Stop, ToSource, ToTarget};
use meridian_replicator_core::shipper::{Input, LaneKey, Outbox, Plan, Shipper, Standing};
use meridian_replicator_core::{Tail, TailError};
use meridian_types::{Head, NodeId, RegionId, Topology, frame};
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use super::{Window, Windows, tail, tail_error, unprefixed};
use crate::trace::Replica;
use crate::world::clock::NodeClock;
use crate::world::dice::Dice;
use crate::world::network::Place;
use crate::world::record::Record;
use crate::world::stream::{self, End};
use crate::world::wires::Wires;

/// The pause before a lane whose stream ended opens another, halved to doubled by chance.
const REOPEN: Duration = Duration::from_millis(100);

/// How often a target is told what it lacks, as by replicator/quic.
const EXPOSE_EVERY: Duration = Duration::from_millis(200);

/// How long a handshake may take.
const CONNECT: Duration = Duration::from_secs(3);

/// What one lane's task needs.
pub(crate) struct ShipLane {
    pub(crate) key: LaneKey,
    pub(crate) from: usize,
    /// Every node of the planet, by number.
    pub(crate) nodes: Arc<Vec<(NodeId, RegionId)>>,
    pub(crate) region: meridian_region_node::Handle,
    pub(crate) topology: watch::Receiver<Arc<Topology>>,
    pub(crate) windows: Arc<Windows>,
    pub(crate) wires: Wires,
    pub(crate) clock: Arc<NodeClock>,
    pub(crate) dice: Dice,
    pub(crate) record: Record,
    pub(crate) replica: Replica,
    /// That of the leadership under way, or of the last one.
    pub(crate) tenure: u64,
}

/// Why a lane stopped waiting.
enum Over {
    /// The stream is over.
    Lost(String),
    /// Another node leads the shard there.
    Elsewhere(Option<NodeId>),
    /// This node no longer leads the shard.
    Leading,
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

impl ShipLane {
    /// Ships whenever this node leads the shard.
    pub(crate) async fn run(mut self) {
        let mut head = self.region.head(self.key.shard);
        let mut mended = self.region.mended(self.key.shard);
        loop {
            let Ok(first) = head.wait_for(Option::is_some).await.map(|head| *head) else { return };
            let Some(first) = first else { continue };
            let topology = Arc::clone(&self.topology.borrow_and_update());
            let mut shipper = Shipper::new(self.key, topology, first, 0);
            self.tenure = first.tenure;
            self.lead(&mut shipper, &mut head, &mut mended).await;
        }
    }

    async fn lead(
        &mut self,
        shipper: &mut Shipper,
        head: &mut watch::Receiver<Option<Head>>,
        mended: &mut watch::Receiver<u64>,
    ) {
        let mut preferred = None;
        loop {
            let pause_until = match shipper.standing(now()) {
                Standing::Over => None,
                Standing::Resting(until) => Some(until),
                Standing::Wanted => {
                    mended.mark_unchanged();
                    match self.ship(shipper, head, &mut preferred).await {
                        Ok(()) => return,
                        Err(until) => Some(until),
                    }
                }
            };
            if !self.pause(shipper, head, mended, pause_until).await {
                return;
            }
        }
    }

    /// Waits, keeping the shipper's view of the log fresh; `false` once this node no longer leads.
    async fn pause(
        &self,
        shipper: &mut Shipper,
        head: &mut watch::Receiver<Option<Head>>,
        mended: &mut watch::Receiver<u64>,
        until: Option<std::time::Instant>,
    ) -> bool {
        let timer: OptionFuture<_> = until.map(|until| sleep_until(until.into())).into();
        tokio::pin!(timer);
        loop {
            tokio::select! {
                biased;
                Some(()) = &mut timer => return true,
                Ok(()) = mended.changed() => {
                    shipper.step(now(), Input::Mended, &mut Outbox::default());
                    return true;
                }
                changed = head.changed() => {
                    let (Ok(()), Some(seen)) = (changed, self.still_leads(head)) else { return false };
                    shipper.step(now(), Input::Head(seen), &mut Outbox::default());
                    sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }

    /// The end of the log, as long as this node leads the shard: not anew, after it was deposed in between.
    fn still_leads(&self, head: &mut watch::Receiver<Option<Head>>) -> Option<Head> {
        head.borrow_and_update().filter(|head| head.tenure == self.tenure)
    }

    /// One stream, from opening to its end. Says when to try again, unless this node no longer leads.
    async fn ship(
        &mut self,
        shipper: &mut Shipper,
        head: &mut watch::Receiver<Option<Head>>,
        preferred: &mut Option<NodeId>,
    ) -> Result<(), std::time::Instant> {
        let soon = now() + REOPEN.mul_f64(0.5 + 1.5 * self.dice.unit());
        let lose = |shipper: &mut Shipper, reason| shipper.step(now(), Input::Lost { reason }, &mut Outbox::default());
        let Some((node, to)) = self.node(*preferred) else {
            lose(shipper, "no node of that region serves the shard".to_owned());
            return Err(soon);
        };
        let Some(stream) = self.open(to).await else {
            lose(shipper, "the target was not reached".to_owned());
            *preferred = self.node_after(node);
            return Err(now() + REOPEN);
        };
        let window = self.windows.to(to, self.key.lane);
        let end = self.stream(shipper, head, stream, &window).await;
        window.note(self.key.shard, 0);
        match end {
            Over::Leading => return Ok(()),
            Over::Lost(reason) => {
                lose(shipper, reason);
                *preferred = self.node_after(node);
            }
            Over::Elsewhere(leader) => *preferred = leader.or_else(|| self.node_after(node)),
        }
        Err(soon)
    }

    /// The node to ship to, and its number: the one said to lead, else the first that serves the shard.
    fn node(&self, preferred: Option<NodeId>) -> Option<(NodeId, usize)> {
        let holders = self.topology.borrow().holders(self.key.target, self.key.shard);
        let node = preferred.filter(|node| holders.contains(node)).or_else(|| holders.first().copied())?;
        self.nodes.iter().position(|(known, _)| *known == node).map(|number| (node, number))
    }

    /// The next one, when `node` is not there, or does not lead and knows not who does.
    fn node_after(&self, node: NodeId) -> Option<NodeId> {
        let holders = self.topology.borrow().holders(self.key.target, self.key.shard);
        let at = holders.iter().position(|holder| *holder == node).map_or(0, |at| at + 1);
        holders.get(at % holders.len().max(1)).copied()
    }

    /// A handshake, which also finds out whether there is anybody.
    async fn open(&self, to: usize) -> Option<End> {
        let from = Place::Node(self.from);
        let (opener, acceptor) = stream::pair(&self.wires.network, &self.wires.spawner, from, Place::Node(to));
        let source = self.key.source;
        let opening = self.wires.call(from, to, 1200, move |life| async move { life.accept(source, acceptor) }.boxed());
        match timeout(CONNECT, opening).await {
            Ok(Ok(true)) => Some(opener),
            Ok(Ok(false) | Err(_)) | Err(_) => None,
        }
    }

    async fn stream(
        &mut self,
        shipper: &mut Shipper,
        head: &mut watch::Receiver<Option<Head>>,
        mut stream: End,
        window: &Window,
    ) -> Over {
        let LaneKey { source, shard, lane, .. } = self.key;
        stream.send(ToTarget::Open { source, shard, lane }.encode().0);
        let region = self.region.clone();
        let Some(seen) = self.still_leads(head) else { return Over::Leading };
        let (mut reading, mut window_seen) = (None, None);
        let mut expose = interval(EXPOSE_EVERY);
        expose.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut inputs = vec![Input::Opened, Input::Head(seen)];
        loop {
            for input in std::mem::take(&mut inputs) {
                let mut out = Outbox::default();
                let width = window.of(shard);
                if window_seen.replace(width) != Some(width) {
                    shipper.step(now(), Input::Window(width), &mut out);
                }
                let elsewhere = match &input {
                    Input::Message(ToSource::Stop(Stop::NotLeader { leader })) => Some(*leader),
                    _ => None,
                };
                shipper.step(now(), input, &mut out);
                shipper.validate();
                window.note(shard, shipper.in_flight_bytes());
                if let Some(lsn) = out.acknowledged {
                    region.acknowledged(shard, lane, self.key.target, lsn);
                }
                if let Some(leader) = elsewhere {
                    return Over::Elsewhere(leader);
                }
                if let Some(reason) = out.close {
                    return Over::Lost(reason);
                }
                if let Some(plan) = out.ship {
                    self.note(&plan, shipper.in_flight_bytes(), width);
                    inputs.push(send(&stream, plan));
                }
                if let Some(read) = out.read {
                    let region = &region;
                    let log = async move { region.read_log(shard, read.after, read.bytes_max).await };
                    reading = Some(log.map(|read| read.map(tail).map_err(tail_error)).boxed());
                }
            }
            if !inputs.is_empty() {
                continue;
            }
            match self.next(shipper, head, &mut stream, &mut reading, &mut expose, window).await {
                Ok(Some(input)) => inputs.push(input),
                Ok(None) => {
                    self.expose(shipper, &stream);
                    inputs.push(Input::Timer);
                }
                Err(over) => return over,
            }
        }
    }

    /// Records what is on its way with a frame that leaves. It may be alone, however large it is; beside others all of them fit the
    /// lane's share of the window, but for the entry that fills the frame.
    fn note(&self, plan: &Plan, on_their_way: usize, share: usize) {
        let Some((_, last)) = plan.entries.last() else { return };
        let most = if on_their_way == plan.raw_bytes { on_their_way } else { share + last.len() };
        self.record.holds(self.replica, "bytes of a lane on their way", on_their_way as u64, most as u64);
    }

    /// Tells the target what it lacks, if that is news.
    fn expose(&self, shipper: &mut Shipper, stream: &End) {
        let counters = |bucket| self.region.counters(self.key.shard, bucket);
        let said = shipper.exposures(now(), self.clock.wall_ms(), &counters);
        if !said.is_empty() {
            stream.send(prefixed(ToTarget::Exposed(said).encode()));
        }
    }

    /// Waits for the next thing that happens; nothing has when it is time to say what is lacking.
    async fn next(
        &mut self,
        shipper: &Shipper,
        head: &mut watch::Receiver<Option<Head>>,
        stream: &mut End,
        reading: &mut Option<BoxFuture<'_, Result<Tail, TailError>>>,
        expose: &mut Interval,
        window: &Window,
    ) -> Result<Option<Input>, Over> {
        let (deadline, throttled) = (shipper.deadline(), shipper.is_throttled());
        let timer: OptionFuture<_> = deadline.map(|deadline| sleep_until(deadline.into())).into();
        tokio::select! {
            biased;
            message = stream.next() => match message.map(|message| ToSource::decode(unprefixed(message))) {
                Some(Ok(message)) => Ok(Some(Input::Message(message))),
                Some(Err(why)) => Err(Over::Lost(why.to_string())),
                None => Err(Over::Lost("the peer closed the stream".to_owned())),
            },
            _ = expose.tick() => Ok(None),
            tail = wait(reading) => Ok(Some(Input::Tail(tail))),
            changed = head.changed() => match (changed, self.still_leads(head)) {
                (Ok(()), Some(head)) => Ok(Some(Input::Head(head))),
                _ => Err(Over::Leading),
            },
            changed = self.topology.changed() => match changed {
                Ok(()) => Ok(Some(Input::Topology(Arc::clone(&self.topology.borrow_and_update())))),
                Err(_) => Err(Over::Leading),
            },
            () = window.freed.notified(), if throttled => Ok(Some(Input::Timer)),
            Some(()) = timer => Ok(Some(Input::Timer)),
        }
    }
}

fn prefixed((prefix, rest): (Bytes, Bytes)) -> Bytes {
    Bytes::from([prefix, rest].concat())
}

fn send(stream: &End, plan: Plan) -> Input {
    let round = plan.round;
    let frame = frame::encode(plan.header, &plan.notes, &plan.entries);
    let wire_bytes = frame.len();
    stream.send(prefixed(ToTarget::Frame { round, frame }.encode()));
    Input::Encoded { round, wire_bytes }
}

/// Waits for what was asked for, if anything was.
async fn wait<T>(work: &mut Option<BoxFuture<'_, T>>) -> T {
    match work {
        Some(future) => {
            let done = future.await;
            *work = None;
            done
        }
        None => std::future::pending().await,
    }
}
