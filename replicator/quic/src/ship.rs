//! The task of one outgoing lane: waits for the log, the stream and the timers, and does what the core says.
//!
//! The only place that waits is [`Shipment::next`], the only place that acts is [`Shipment::perform`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::future::{BoxFuture, OptionFuture};
use meridian_failpoint::failpoint;
use meridian_replicator_core::message::{Stop, ToSource, ToTarget};
use meridian_replicator_core::shipper::{Input, LaneKey, Outbox, Plan, Shipper, Standing};
use meridian_types::{NodeId, Topology, frame};
use rand::Rng;
use s2n_quic::connection::Handle;
use s2n_quic::stream::BidirectionalStream;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::link::{Link, Links, Window};
use crate::tls::Exposing;
use crate::wire::{Inbox, Outlet};
use crate::{Head, LogSource, Tail, TailError};

/// Frames larger than this are compressed off the runtime's threads: 64 KiB take 0.15 ms, 1 MiB takes 2 ms.
const INLINE_BYTES: usize = 64 << 10;

/// The pause before a lane whose stream ended opens another, halved to doubled by chance.
const REOPEN: Duration = Duration::from_millis(100);

/// How often a target is told what it lacks, if that has changed: what a failover's estimate is precise to.
const EXPOSE_EVERY: Duration = Duration::from_millis(200);

/// With more pieces waiting than this the peer takes nothing, and words must not pile up (RES-1).
const OUTLET_MAX: usize = 64;

/// A shipper that its task steps and the handle reads.
pub(crate) type SharedShipper = Arc<Mutex<Shipper>>;

/// What the handle sees of a lane while this node leads its shard.
#[derive(Clone)]
pub(crate) struct Shown {
    pub(crate) shipper: SharedShipper,
    /// Of the stream that is open.
    pub(crate) connection: Option<Handle>,
}

/// What one lane's task needs.
pub(crate) struct ShipLane {
    pub(crate) key: LaneKey,
    pub(crate) source: Arc<dyn LogSource>,
    pub(crate) topology: watch::Receiver<Arc<Topology>>,
    pub(crate) links: Arc<Links>,
    /// Where the handle finds the lane while this node leads the shard.
    pub(crate) shown: Arc<Mutex<Option<Shown>>>,
    /// That of the leadership under way, or of the last one.
    pub(crate) tenure: u64,
    pub(crate) stop: CancellationToken,
}

/// Why a lane stopped waiting.
enum End {
    /// The stream is over.
    Lost(String),
    /// Another node leads the shard there.
    Elsewhere(Option<NodeId>),
    /// This node no longer leads the shard here, or is stopping.
    Over,
}

impl ShipLane {
    /// Ships whenever this node leads the shard, until it is stopped or the shard leaves the node.
    pub(crate) async fn run(mut self) {
        let mut head = self.source.head(self.key.shard);
        let mut mended = self.source.mended(self.key.shard);
        while let Some(first) = self.leads(&mut head).await {
            let topology = Arc::clone(&self.topology.borrow_and_update());
            let shipper = Arc::new(Mutex::new(Shipper::new(self.key, topology, first, 0)));
            self.show(Some(Shown { shipper: Arc::clone(&shipper), connection: None }));
            self.tenure = first.tenure;
            self.lead(&shipper, &mut head, &mut mended).await;
            self.show(None);
        }
    }

    fn show(&self, shown: Option<Shown>) {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = shown;
    }

    fn show_connection(&self, connection: Option<Handle>) {
        if let Some(shown) = self.shown.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            shown.connection = connection;
        }
    }

    /// Waits until this node leads the shard; `None` when that can't happen any more.
    async fn leads(&self, head: &mut watch::Receiver<Option<Head>>) -> Option<Head> {
        tokio::select! {
            led = head.wait_for(Option::is_some) => led.ok().and_then(|head| *head),
            () = self.stop.cancelled() => None,
        }
    }

    /// Opens streams and ships over them for as long as this node leads the shard.
    async fn lead(
        &mut self,
        shipper: &SharedShipper,
        head: &mut watch::Receiver<Option<Head>>,
        mended: &mut watch::Receiver<u64>,
    ) {
        let mut preferred = None;
        loop {
            let standing = lock(shipper).standing(Instant::now());
            let pause_until = match standing {
                Standing::Over => None,
                Standing::Resting(until) => Some(until),
                Standing::Wanted => {
                    // What ends from here on may be what the stream is stopped for, even before it is.
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

    /// Waits, keeping the shipper's view of the log fresh for whoever asks how far the target is behind.
    async fn pause(
        &self,
        shipper: &SharedShipper,
        head: &mut watch::Receiver<Option<Head>>,
        mended: &mut watch::Receiver<u64>,
        until: Option<Instant>,
    ) -> bool {
        let timer: OptionFuture<_> = until.map(|until| sleep_until(until.into())).into();
        tokio::pin!(timer);
        loop {
            tokio::select! {
                Some(()) = &mut timer => return true,
                () = self.stop.cancelled() => return false,
                Ok(()) = mended.changed() => {
                    lock(shipper).step(Instant::now(), Input::Mended, &mut Outbox::default());
                    return true;
                }
                changed = head.changed() => {
                    let (Ok(()), Some(seen)) = (changed, self.still_leads(head)) else { return false };
                    lock(shipper).step(Instant::now(), Input::Head(seen), &mut Outbox::default());
                    // The log moves thousands of times a second, and nobody looks that often.
                    sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }

    /// The end of the log, as long as this node leads the shard: not anew, after it was deposed in between.
    fn still_leads(&self, head: &mut watch::Receiver<Option<Head>>) -> Option<Head> {
        head.borrow_and_update().filter(|head| head.tenure == self.tenure)
    }

    /// One stream, from opening to its end. Says when to try again, unless the lane is over.
    async fn ship(
        &mut self,
        shipper: &SharedShipper,
        head: &mut watch::Receiver<Option<Head>>,
        preferred: &mut Option<NodeId>,
    ) -> Result<(), Instant> {
        let lose = |reason: String| lock(shipper).step(Instant::now(), Input::Lost { reason }, &mut Outbox::default());
        let soon = || Instant::now() + REOPEN.mul_f64(rand::rng().random_range(0.5..2.0));
        let Some(node) = self.node(*preferred) else {
            lose("no node of that region serves the shard".to_owned());
            return Err(soon());
        };
        let link = self.links.to(node);
        let opening = tokio::select! {
            opening = link.connector(self.key.shard, self.key.lane).open() => opening,
            () = self.stop.cancelled() => return Ok(()),
        };
        let stream = match opening {
            Ok(stream) => stream,
            Err(unreached) => {
                lose(unreached.reason);
                // Of several that serve the shard there, another one may be there.
                *preferred = self.node_after(node);
                return Err(unreached.again);
            }
        };
        self.show_connection(Some(stream.connection()));
        let end = Shipment::new(self, shipper, &link, stream).run(head).await;
        self.show_connection(None);
        link.window(self.key.lane).note(self.key.shard, 0);
        match end {
            End::Over => return Ok(()),
            End::Lost(reason) => {
                tracing::info!(
                    shard = %self.key.shard, lane = %self.key.lane, region = %self.key.target, %reason,
                    "a lane lost its stream"
                );
                lose(reason);
                *preferred = self.node_after(node);
            }
            End::Elsewhere(leader) => *preferred = leader.or_else(|| self.node_after(node)),
        }
        Err(soon())
    }

    /// The node to ship to: the one said to lead, else the first that serves the shard.
    fn node(&self, preferred: Option<NodeId>) -> Option<NodeId> {
        let topology = self.topology.borrow();
        let holders = topology.holders(self.key.target, self.key.shard);
        preferred.filter(|node| holders.contains(node)).or_else(|| holders.first().copied())
    }

    /// The next one, when `node` is not there, or does not lead and knows not who does.
    fn node_after(&self, node: NodeId) -> Option<NodeId> {
        let topology = self.topology.borrow();
        let holders = topology.holders(self.key.target, self.key.shard);
        // One that serves the shard no more may be asked still: begin anew.
        let at = holders.iter().position(|holder| *holder == node).map_or(0, |at| at + 1);
        holders.get(at % holders.len().max(1)).copied()
    }
}

/// Plain state, and every step leaves it whole: a panic elsewhere does not make it unusable.
pub(crate) fn lock(shipper: &SharedShipper) -> MutexGuard<'_, Shipper> {
    shipper.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One stream's worth of shipping.
struct Shipment<'a> {
    lane: &'a mut ShipLane,
    shipper: &'a SharedShipper,
    window: &'a Window,
    /// What the shipper was last told; nothing yet on this stream, whatever it remembers of an earlier one (RES-1).
    window_seen: Option<usize>,
    inbox: Inbox,
    outlet: Outlet,
    source: Arc<dyn LogSource>,
    /// When to say what is lacking, and in which words; never to a target of an older release.
    expose: Option<(Exposing, Interval)>,
}

impl<'a> Shipment<'a> {
    fn new(
        lane: &'a mut ShipLane,
        shipper: &'a SharedShipper,
        link: &'a Link,
        stream: BidirectionalStream,
    ) -> Shipment<'a> {
        let expose = Exposing::over(&stream.connection()).map(|exposing| {
            let mut ticks = interval(EXPOSE_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            (exposing, ticks)
        });
        let (receive, send) = stream.split();
        let source = Arc::clone(&lane.source);
        let window = link.window(lane.key.lane);
        Shipment {
            lane,
            shipper,
            window,
            window_seen: None,
            inbox: Inbox::new(receive, false),
            outlet: Outlet::new(send),
            source,
            expose,
        }
    }

    async fn run(mut self, head: &mut watch::Receiver<Option<Head>>) -> End {
        let LaneKey { source, shard, lane, .. } = self.lane.key;
        self.outlet.push(ToTarget::Open { source, shard, lane }.encode().0);
        // Held outside `self` so that waiting may borrow both.
        let log = Arc::clone(&self.source);
        let mut work = Work::default();
        // It may have been deposed while the stream was opened.
        let Some(seen) = self.lane.still_leads(head) else { return End::Over };
        let mut inputs = vec![Input::Opened, Input::Head(seen)];
        loop {
            for input in inputs.drain(..) {
                if let Some(end) = self.perform(input, log.as_ref(), &mut work) {
                    return end;
                }
            }
            match self.next(head, &mut work).await {
                Ok(input) => inputs.push(input),
                Err(end) => return end,
            }
        }
    }

    /// Steps the core and does what it says.
    fn perform<'w>(&mut self, input: Input, log: &'w dyn LogSource, work: &mut Work<'w>) -> Option<End> {
        let key = self.lane.key;
        let elsewhere = match &input {
            Input::Message(ToSource::Stop(Stop::NotLeader { leader })) => Some(*leader),
            _ => None,
        };
        let mut out = Outbox::default();
        let in_flight = {
            let mut shipper = lock(self.shipper);
            let window = self.window.of(key.shard);
            if self.window_seen.replace(window) != Some(window) {
                // Into the same outbox: a wider window may be a reason to read or to ship, and what is asked for
                // once and not done is never asked for again.
                shipper.step(Instant::now(), Input::Window(window), &mut out);
            }
            shipper.step(Instant::now(), input, &mut out);
            shipper.in_flight_bytes()
        };
        self.window.note(key.shard, in_flight);
        if let Some(lsn) = out.acknowledged {
            failpoint("ship.acknowledged.before");
            self.source.acknowledged(key.shard, key.lane, key.target, lsn);
        }
        if let Some(leader) = elsewhere {
            return Some(End::Elsewhere(leader));
        }
        if let Some(reason) = out.close {
            let status = lock(self.shipper).status();
            tracing::warn!(
                shard = %key.shard, lane = %key.lane, region = %key.target, state = ?status.state, %reason,
                "a lane closed its stream"
            );
            return Some(End::Lost(reason));
        }
        if let Some(plan) = out.ship {
            work.frame = Some(make_frame(plan));
        }
        if let Some(read) = out.read {
            work.tail = Some(log.read(key.shard, read.after, read.bytes_max));
        }
        None
    }

    /// Tells the target what it lacks, if that is news. Behind frames that wait it is late, but not wrong: it lacks no more than that.
    fn expose(&mut self, exposing: Exposing) {
        if self.outlet.waiting() > OUTLET_MAX {
            return;
        }
        let shard = self.lane.key.shard;
        let counters = |bucket| self.source.counters(shard, bucket);
        let said = lock(self.shipper).exposures(Instant::now(), wall_ms(), &counters);
        if !said.is_empty() {
            self.outlet.push(exposing.message(said).encode().0);
        }
    }

    /// Waits for the next thing that happens.
    async fn next(&mut self, head: &mut watch::Receiver<Option<Head>>, work: &mut Work<'_>) -> Result<Input, End> {
        let (deadline, throttled, exposes) = {
            let shipper = lock(self.shipper);
            (shipper.deadline(), shipper.is_throttled(), shipper.has_exposures())
        };
        let timer: OptionFuture<_> = deadline.map(|deadline| sleep_until(deadline.into())).into();
        tokio::select! {
            biased;
            () = self.lane.stop.cancelled() => Err(End::Over),
            message = self.inbox.next() => match message.map_err(|why| why.to_string()) {
                Ok(message) => match ToSource::decode(message) {
                    Ok(message) => Ok(Input::Message(message)),
                    Err(why) => Err(End::Lost(format!("the target sent a malformed message: {why}"))),
                },
                Err(why) => Err(End::Lost(why)),
            },
            (frame, round) = wait(&mut work.frame) => {
                let wire_bytes = frame.len();
                let (prefix, frame) = ToTarget::Frame { round, frame }.encode();
                failpoint("ship.frame.before");
                self.outlet.push(prefix);
                self.outlet.push(frame);
                failpoint("ship.frame.after");
                Ok(Input::Encoded { round, wire_bytes })
            }
            error = self.outlet.drive() => Err(End::Lost(error.to_string())),
            exposing = tick(&mut self.expose), if exposes => {
                self.expose(exposing);
                Ok(Input::Timer)
            }
            tail = wait(&mut work.tail) => {
                failpoint("ship.read.after");
                Ok(Input::Tail(tail))
            }
            changed = head.changed() => match (changed, self.lane.still_leads(head)) {
                (Ok(()), Some(head)) => Ok(Input::Head(head)),
                _ => Err(End::Over),
            },
            changed = self.lane.topology.changed() => match changed {
                Ok(()) => Ok(Input::Topology(Arc::clone(&self.lane.topology.borrow_and_update()))),
                Err(_) => Err(End::Over),
            },
            () = self.window.freed(), if throttled => Ok(Input::Timer),
            Some(()) = timer => Ok(Input::Timer),
        }
    }
}

/// What was asked for and is not answered. A newer request takes the place of an older one.
#[derive(Default)]
struct Work<'w> {
    tail: Option<BoxFuture<'w, Result<Tail, TailError>>>,
    frame: Option<BoxFuture<'w, (Bytes, u32)>>,
}

/// Waits for what was asked for, if anything was. Cancel safe: the work stays where it is until it is done.
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

/// The next time to say what is lacking, if there is one.
async fn tick(expose: &mut Option<(Exposing, Interval)>) -> Exposing {
    match expose {
        Some((exposing, clock)) => {
            clock.tick().await;
            *exposing
        }
        None => std::future::pending().await,
    }
}

/// The wall clock in milliseconds since 1970.
pub(crate) fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Compresses a frame, with its round.
fn make_frame(plan: Plan) -> BoxFuture<'static, (Bytes, u32)> {
    let round = plan.round;
    let encode = move || frame::encode(plan.header, &plan.notes, &plan.entries);
    if plan.raw_bytes <= INLINE_BYTES {
        let frame = encode();
        return Box::pin(std::future::ready((frame, round)));
    }
    Box::pin(async move {
        match tokio::task::spawn_blocking(encode).await {
            Ok(frame) => (frame, round),
            // A panic belongs to this task's supervisor; a cancelled one means the runtime is going away.
            Err(failed) => match failed.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => std::future::pending().await,
            },
        }
    })
}
