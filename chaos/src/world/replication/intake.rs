//! The task of one incoming lane: as replicator/quic's `intake.rs`, over simulated streams.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, OptionFuture};
use futures::stream::{FuturesUnordered, StreamExt};
use meridian_region_node::{FrameRefusal, Handle};
use meridian_replicator_core::message::{Stop, ToSource, ToTarget, short};
use meridian_replicator_core::receiver::{FRAMES_MAX, Input, Outbox, Receiver, Ticket};
use meridian_replicator_core::{SinkError, is_probed};
use meridian_types::frame::FrameHeader;
use meridian_types::{Lane, Lsn, RefusalKind, RegionId, ShardId, Topology};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::unprefixed;
use crate::trace::Replica;
use crate::world::record::Record;
use crate::world::stream::End;

/// As replicator/quic's: how often a receiver asks how fresh it is, how long a stream may take to be opened, and how far a
/// peer's clock may be ahead.
const PROBE_EVERY: Duration = Duration::from_millis(100);
const FAREWELL: Duration = Duration::from_secs(2);
pub(crate) const SKEW_MS_MAX: u64 = 500;

/// What an incoming lane needs.
pub(crate) struct Intake {
    pub(crate) region: Handle,
    pub(crate) replica: Replica,
    pub(crate) topology: watch::Receiver<Arc<Topology>>,
    pub(crate) record: Record,
}

type Applied = (Ticket, Result<Lsn, SinkError>);

#[derive(Default)]
struct Work {
    watermark: Option<BoxFuture<'static, Result<Lsn, SinkError>>>,
    applying: FuturesUnordered<BoxFuture<'static, Applied>>,
}

impl Intake {
    /// Serves one stream that claims to come from `source` until it ends.
    pub(crate) async fn serve(self, source: RegionId, mut stream: End) {
        let first = match timeout(FAREWELL, stream.next()).await {
            Ok(Some(first)) => ToTarget::decode(unprefixed(first)),
            Ok(None) | Err(_) => return,
        };
        let refused = match first {
            Ok(ToTarget::Open { source: claimed, shard, lane }) if claimed == source => {
                self.lane(source, shard, lane, &mut stream).await
            }
            Ok(ToTarget::Open { .. } | ToTarget::Frame { .. } | ToTarget::Exposed(_)) => {
                Err("the stream was not opened".to_owned())
            }
            Err(why) => Err(why.to_string()),
        };
        if let Err(reason) = refused {
            stream.send(ToSource::Stop(Stop::Refused { reason: short(&reason) }).encode());
        }
    }

    async fn lane(&self, source: RegionId, shard: ShardId, lane: Lane, stream: &mut End) -> Result<(), String> {
        let mut out = Outbox::default();
        let mut receiver = Receiver::new(source, shard, lane, SKEW_MS_MAX, &mut out);
        let mut work = Work::default();
        let mut ticks = interval(PROBE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            self.perform(out, &mut work, stream, (source, shard, lane));
            let handed = receiver.outstanding() as u64;
            self.record.holds(self.replica, "frames of a lane being applied", handed, FRAMES_MAX as u64);
            if receiver.is_stopped() {
                return Ok(());
            }
            receiver.validate();
            let timer: OptionFuture<_> = receiver.deadline().map(|deadline| sleep_until(deadline.into())).into();
            let input = tokio::select! {
                biased;
                Some((ticket, answer)) = work.applying.next() => Input::Applied(ticket, answer),
                Some(answer) = OptionFuture::from(work.watermark.as_mut()) => {
                    work.watermark = None;
                    Input::Watermark(answer)
                }
                message = stream.next(), if receiver.has_room() => match message {
                    None => return Ok(()),
                    Some(message) => self.frame(message)?,
                },
                _ = ticks.tick() => self.tick(source, shard, lane),
                Some(()) = timer => Input::Timer,
            };
            out = Outbox::default();
            receiver.step(Instant::now().into_std(), input, &mut out);
        }
    }

    /// Every now and then it is looked whether this node still leads the shard: a lane in which nothing comes would not notice.
    fn tick(&self, source: RegionId, shard: ShardId, lane: Lane) -> Input {
        if !self.region.leads_surely(shard) {
            return Input::Deposed(SinkError::NotLeader { leader: self.region.leader_beside(shard) });
        }
        let probed = is_probed(&self.topology.borrow(), source, self.replica.region, lane);
        Input::Tick { ms: self.region.monotonic_ms(), probed }
    }

    fn frame(&self, message: Bytes) -> Result<Input, String> {
        match ToTarget::decode(unprefixed(message)).map_err(|why| why.to_string())? {
            ToTarget::Open { .. } => Err("the stream was opened twice".to_owned()),
            ToTarget::Exposed(lacks) => Ok(Input::Exposed(lacks)),
            ToTarget::Frame { round, frame } => {
                let header = FrameHeader::decode(&frame).map_err(|why| why.to_string())?;
                let wall = self.region.hlc_beside(header.closed);
                Ok(Input::Frame { round, header, frame, wall })
            }
        }
    }

    fn perform(&self, out: Outbox, work: &mut Work, stream: &End, (source, shard, lane): (RegionId, ShardId, Lane)) {
        if let Some(complete) = out.complete {
            self.region.complete_up_to(source, shard, lane, complete.echo, complete.last);
        }
        if !out.exposed.is_empty() {
            self.region.exposed(source, shard, lane, &out.exposed);
        }
        for (ticket, frame) in out.apply {
            let applying = self.region.apply_frame(&frame);
            work.applying.push(async move { (ticket, applying.await.map_err(sink_error)) }.boxed());
        }
        if out.ask {
            let region = self.region.clone();
            work.watermark = Some(watermark(region, source, shard, lane).boxed());
        }
        out.send.into_iter().for_each(|message| stream.send(message.encode()));
    }
}

async fn watermark(region: Handle, source: RegionId, shard: ShardId, lane: Lane) -> Result<Lsn, SinkError> {
    region.watermark(source, shard, lane).await.map_err(|refusal| match refusal.kind {
        RefusalKind::Redirect => SinkError::NotLeader { leader: region.leader_beside(shard) },
        _ => SinkError::Unavailable(refusal.message),
    })
}

fn sink_error(refusal: FrameRefusal) -> SinkError {
    match refusal {
        FrameRefusal::Rewind { watermark } => SinkError::Rewind { watermark },
        FrameRefusal::Diverged { detail } => SinkError::Diverged { detail },
        FrameRefusal::Fenced => SinkError::Fenced,
        FrameRefusal::NotLeader { leader } => SinkError::NotLeader { leader },
        FrameRefusal::Damaged(why) | FrameRefusal::Unavailable(why) => SinkError::Unavailable(why),
    }
}
