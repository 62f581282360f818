//! The tasks of an incoming connection: one judges the peer and takes its streams, one per stream takes a lane.
//!
//! Memory of a connection (RES-1): what QUIC's windows hold, and the budget of frames being applied.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::{BoxFuture, OptionFuture};
use futures::stream::{FuturesUnordered, Stream, StreamExt, unfold};
use meridian_failpoint::failpoint;
use meridian_replicator_core::is_probed;
use meridian_replicator_core::message::{Stop, ToSource, ToTarget, short};
use meridian_replicator_core::receiver::{Input, Outbox, Receiver, Ticket};
use meridian_types::frame::FrameHeader;
use meridian_types::{Lane, Lsn, RegionId, ShardId, Topology};
use s2n_quic::connection::{Connection, Handle};
use s2n_quic::stream::BidirectionalStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant as TokioInstant, interval_at, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::hello::{Me, judge};
use crate::metrics::Received;
use crate::wire::{Inbox, Outlet, WireError};
use crate::{LogSink, SinkError};

/// How often a receiver asks how fresh it is.
const PROBE_EVERY: Duration = Duration::from_millis(100);

/// The unit of the budget, so that its count fits a semaphore.
const BUDGET_UNIT: usize = 1 << 10;

/// How long the last message of a stream may take to reach the peer.
const FAREWELL: Duration = Duration::from_secs(2);

/// What the tasks of incoming connections share.
#[derive(Clone)]
pub(crate) struct Intake {
    pub(crate) sink: Arc<dyn LogSink>,
    pub(crate) topology: watch::Receiver<Arc<Topology>>,
    pub(crate) me: Me,
    pub(crate) max_skew_ms: u64,
    pub(crate) window_bytes: usize,
    /// All probes leave on the same beat, so that those of many lanes share packets.
    pub(crate) beat: Instant,
    pub(crate) received: Received,
    pub(crate) stop: CancellationToken,
}

impl Intake {
    /// Serves one connection until it ends. Panics of its lanes come through.
    pub(crate) async fn serve(self, connection: Connection) {
        let (handle, mut acceptor) = connection.split();
        let address = handle.remote_addr().map(|address| address.to_string()).unwrap_or_default();
        let topology = Arc::clone(&self.topology.borrow());
        let hello = match judge(&handle, &mut acceptor, &topology, self.me).await {
            Ok(hello) => hello,
            Err(reason) => {
                tracing::warn!(%address, %reason, "refused a peer that came to replicate");
                return;
            }
        };
        let region = topology.region_label(hello.region);
        tracing::info!(%region, node = %hello.node, %address, "a peer replicates to this node");
        let units = u32::try_from(self.window_bytes / BUDGET_UNIT).unwrap_or(u32::MAX).max(1);
        let budget = Budget { semaphore: Arc::new(Semaphore::new(units as usize)), units };
        let mut lanes = JoinSet::new();
        loop {
            tokio::select! {
                () = self.stop.cancelled() => break,
                Some(ended) = lanes.join_next() => resume_panic(ended),
                stream = acceptor.accept_bidirectional_stream() => match stream {
                    Ok(Some(stream)) => {
                        let lane = self.clone().lane(handle.clone(), stream, hello.region, budget.clone());
                        lanes.spawn(lane);
                    }
                    Ok(None) | Err(_) => break,
                },
            }
        }
        // Frames that were handed to their groups are applied or not; the watermark will tell.
        lanes.abort_all();
        while let Some(ended) = lanes.join_next().await {
            resume_panic(ended);
        }
        tracing::info!(%region, node = %hello.node, "a peer's replication connection ended");
    }

    async fn lane(self, _connection: Handle, stream: BidirectionalStream, source: RegionId, budget: Budget) {
        let (receive, send) = stream.split();
        let mut inbox = Inbox::new(receive, true);
        let mut outlet = Outlet::new(send);
        let end = match timeout(FAREWELL, inbox.next()).await {
            Err(_) => LaneEnd::Refused("the stream was not opened in time".to_owned()),
            Ok(Err(error)) => LaneEnd::of(error),
            Ok(Ok(first)) => match ToTarget::decode(first) {
                Ok(ToTarget::Open { source: claimed, shard, lane }) if claimed == source => {
                    let intake = LaneIntake { shared: &self, source, shard, lane };
                    intake.run(inbox, &mut outlet, budget).await
                }
                Ok(ToTarget::Open { source: claimed, .. }) => LaneEnd::Refused(format!(
                    "the stream claims region {claimed}, the connection is of region {source}"
                )),
                Ok(ToTarget::Frame { .. } | ToTarget::Exposed(_)) => {
                    LaneEnd::Refused("a message before the stream was opened".to_owned())
                }
                Err(error) => LaneEnd::Refused(error.to_string()),
            },
        };
        match end {
            LaneEnd::Closed => {}
            LaneEnd::Refused(reason) => {
                tracing::warn!(region = %source, %reason, "closed a stream whose peer broke the protocol");
                outlet.push(ToSource::Stop(Stop::Refused { reason: short(&reason) }).encode());
                let _ = timeout(FAREWELL, outlet.finish()).await;
            }
            LaneEnd::Stopped => {
                let _ = timeout(FAREWELL, outlet.finish()).await;
            }
        }
    }
}

/// How a lane's stream came to its end.
enum LaneEnd {
    /// The peer, the connection or this node ended it.
    Closed,
    /// The peer broke the protocol.
    Refused(String),
    /// The receiver stopped the lane and has said why.
    Stopped,
}

impl LaneEnd {
    fn of(error: WireError) -> LaneEnd {
        match error {
            WireError::Closed | WireError::Broken(_) => LaneEnd::Closed,
            WireError::Malformed(why) => LaneEnd::Refused(why.to_string()),
        }
    }
}

/// Bytes of frames that a connection's lanes may hold.
#[derive(Clone)]
struct Budget {
    semaphore: Arc<Semaphore>,
    units: u32,
}

impl Budget {
    /// Waits for room. A frame larger than the whole budget gets all of it.
    async fn admit(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes / BUDGET_UNIT + 1).unwrap_or(u32::MAX).min(self.units);
        Arc::clone(&self.semaphore).acquire_many_owned(units).await.ok()
    }
}

/// The messages of a stream, each read only once there is room for it.
fn admitted(
    inbox: Inbox,
    budget: Budget,
) -> impl Stream<Item = Result<(Bytes, Option<OwnedSemaphorePermit>), WireError>> {
    unfold(Some((inbox, budget)), |state| async move {
        let (mut inbox, budget) = state?;
        let length = match inbox.length().await {
            Ok(length) => length,
            Err(error) => return Some((Err(error), None)),
        };
        let permit = budget.admit(length).await;
        match inbox.next().await {
            Ok(message) => Some((Ok((message, permit)), Some((inbox, budget)))),
            Err(error) => Some((Err(error), None)),
        }
    })
}

/// One incoming lane.
struct LaneIntake<'a> {
    shared: &'a Intake,
    source: RegionId,
    shard: ShardId,
    lane: Lane,
}

type Applied = (Ticket, Result<Lsn, SinkError>);

/// What the sink was asked for and has not answered.
struct Work<'w> {
    watermark: Option<BoxFuture<'w, Result<Lsn, SinkError>>>,
    applying: FuturesUnordered<BoxFuture<'static, Applied>>,
}

impl LaneIntake<'_> {
    async fn run(&self, inbox: Inbox, outlet: &mut Outlet, budget: Budget) -> LaneEnd {
        let mut out = Outbox::default();
        let mut receiver = Receiver::new(self.source, self.shard, self.lane, self.shared.max_skew_ms, &mut out);
        let mut work = Work { watermark: None, applying: FuturesUnordered::new() };
        let mut permit = None;
        let mut frames = pin!(admitted(inbox, budget));
        let beat = next_beat(self.shared.beat);
        let mut ticks = interval_at(beat, PROBE_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            self.perform(out, &mut work, &mut permit, outlet);
            if let Err(error) = outlet.drain().await {
                return LaneEnd::of(error);
            }
            if receiver.is_stopped() {
                return LaneEnd::Stopped;
            }
            let timer: OptionFuture<_> = receiver.deadline().map(|deadline| sleep_until(deadline.into())).into();
            let input = tokio::select! {
                () = self.shared.stop.cancelled() => return LaneEnd::Closed,
                Some((ticket, answer)) = work.applying.next() => Input::Applied(ticket, answer),
                Some(answer) = OptionFuture::from(work.watermark.as_mut()) => {
                    work.watermark = None;
                    Input::Watermark(answer)
                }
                message = frames.next(), if receiver.has_room() => match message {
                    None => return LaneEnd::Closed,
                    Some(Err(error)) => return LaneEnd::of(error),
                    Some(Ok((message, admitted))) => match self.frame(message) {
                        Ok(input) => {
                            permit = admitted;
                            input
                        }
                        Err(reason) => return LaneEnd::Refused(reason),
                    },
                },
                _ = ticks.tick() => self.tick(),
                Some(()) = timer => Input::Timer,
            };
            out = Outbox::default();
            receiver.step(Instant::now(), input, &mut out);
        }
    }

    /// Every now and then it is looked whether this node still leads the shard: a lane in which nothing comes would not notice.
    fn tick(&self) -> Input {
        if let Some(error) = self.shared.sink.deposed(self.shard) {
            return Input::Deposed(error);
        }
        let probed = is_probed(&self.shared.topology.borrow(), self.source, self.shared.me.region, self.lane);
        Input::Tick { ms: self.shared.sink.monotonic_ms(), probed }
    }

    /// Checks what can be checked without opening it.
    fn frame(&self, message: Bytes) -> Result<Input, String> {
        match ToTarget::decode(message).map_err(|why| why.to_string())? {
            ToTarget::Open { .. } => Err("the stream was opened twice".to_owned()),
            ToTarget::Exposed(lacks) => Ok(Input::Exposed(lacks)),
            ToTarget::Frame { round, frame } => {
                let header = FrameHeader::decode(&frame).map_err(|why| why.to_string())?;
                self.shared.received.note(frame.len());
                let wall = self.shared.sink.hlc_beside(header.closed);
                Ok(Input::Frame { round, header, frame, wall })
            }
        }
    }

    fn perform<'w>(
        &'w self,
        out: Outbox,
        work: &mut Work<'w>,
        permit: &mut Option<OwnedSemaphorePermit>,
        outlet: &mut Outlet,
    ) {
        if let Some(complete) = out.complete {
            failpoint("intake.complete.before");
            self.shared.sink.complete(self.source, self.shard, self.lane, complete.echo, complete.last);
        }
        if !out.exposed.is_empty() {
            self.shared.sink.exposed(self.source, self.shard, self.lane, &out.exposed);
        }
        for (ticket, frame) in out.apply {
            // Enqueued by the call; the room it takes is given back when it is answered.
            failpoint("intake.frame.before");
            let applying = self.shared.sink.apply(frame);
            let held = permit.take();
            work.applying.push(Box::pin(async move {
                let answer = applying.await;
                failpoint("intake.applied");
                drop(held);
                (ticket, answer)
            }));
        }
        *permit = None;
        if out.ask {
            work.watermark = Some(self.shared.sink.watermark(self.source, self.shard, self.lane));
        }
        for message in out.send {
            if let ToSource::Stop(stop) = &message
                && !matches!(stop, Stop::NotLeader { .. })
            {
                tracing::error!(
                    region = %self.source, shard = %self.shard, lane = %self.lane, ?stop, "an incoming lane stopped"
                );
            }
            failpoint("intake.answer.before");
            outlet.push(message.encode());
            failpoint("intake.answer.after");
        }
    }
}

/// The next multiple of the probe interval after now.
fn next_beat(beat: Instant) -> TokioInstant {
    let since = beat.elapsed();
    let beats = u32::try_from(since.as_millis() / PROBE_EVERY.as_millis() + 1).unwrap_or(u32::MAX);
    (beat + PROBE_EVERY * beats).into()
}

/// A lane's panic is the supervisor's business, not something to live on with.
fn resume_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(failed) = ended
        && let Ok(panic) = failed.try_into_panic()
    {
        std::panic::resume_unwind(panic);
    }
}
