//! The source's end of one lane: reads the log after the target's watermark, packs frames, and keeps count.
//!
//! ```text
//!               Opened              Position                     Stop, Trimmed, ahead of the log
//! Disconnected ───────▶ Learning ─────────────▶ Streaming ──────────────────────▶ Stopped
//!      ▲                    │     Position (next round) ↺ │                            │
//!      └────────────────────┴─────────── Lost ────────────┘        (after a rest) ─────┘
//! ```
//!
//! - ORD-1: frames of a round follow one another without a gap from the position that began it.
//! - CON-3: `echo` is a probe that had arrived before the read was asked for which found the lane complete.
//! - RES-1: at most the window (or one frame) is in flight; at most one frame and one read are held.
//! - I12: without probes and entries it sends nothing; watermarks move every [`SKIP_LSNS`].
//!
//! Not here: compression and sockets (`quic` makes a frame of a [`Plan`] and reports its size).

mod ledger;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use meridian_types::frame::{DigestNote, FrameHeader};
use meridian_types::{
    Bucket, BucketId, BucketLag, Exposure, Lack, Lane, LaneState, LaneStatus, Lsn, RegionId, ShardId, Topology,
};

use crate::message::{EXPOSED_MAX, Stop, ToSource};
use crate::{Head, SKIP_BYTES, SKIP_LSNS, Tail, TailError};
use ledger::Ledger;
use stream::Streaming;

/// How long an async lane with frames in flight gathers entries before it reads again. Design 6.
const GATHER: Duration = Duration::from_millis(2);

/// How long a stopped lane rests before it asks the target again, unless it hears of a repair that ended ([`Input::Mended`]): long enough
/// to cost nothing, short enough that a clock set right is noticed while the operator watches.
const REST: Duration = Duration::from_secs(5);

/// How long to wait before a failed or fruitless read is tried again.
const READ_AGAIN: Duration = Duration::from_millis(50);

/// Which lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LaneKey {
    /// The region whose log it carries.
    pub source: RegionId,
    /// The region it carries it to.
    pub target: RegionId,
    /// The shard.
    pub shard: ShardId,
    /// The lane.
    pub lane: Lane,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A fresh stream to the target is open.
    Opened,
    /// The stream, or the attempt to open one, is over.
    Lost {
        /// Why, for a person.
        reason: String,
    },
    /// From the receiver.
    Message(ToSource),
    /// The source's log moved on.
    Head(Head),
    /// The metadata moved on.
    Topology(Arc<Topology>),
    /// The answer to [`Outbox::read`].
    Tail(Result<Tail, TailError>),
    /// The frame of [`Outbox::ship`] is made and queued for sending.
    Encoded {
        /// The plan's round.
        round: u32,
        /// Its size.
        wire_bytes: usize,
    },
    /// What this lane may have in flight ([`crate::Budget`]).
    Window(usize),
    /// A replica of something that this shard carries was made equal to its source, here or elsewhere: what stopped the lane may be over.
    Mended,
    /// [`Shipper::deadline`] has come.
    Timer,
}

/// What to do about it, in this order.
#[derive(Debug, Default)]
pub struct Outbox {
    /// The target has durably applied everything up to here.
    pub acknowledged: Option<Lsn>,
    /// End the stream: the lane stopped, or the peer broke the protocol. [`Input::Lost`] answers.
    pub close: Option<String>,
    /// Make a frame of this and send it; [`Input::Encoded`] answers.
    pub ship: Option<Plan>,
    /// Read the log; [`Input::Tail`] answers. A new request replaces one whose answer is still out.
    pub read: Option<Read>,
}

/// A read of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// From the entry after this one.
    pub after: Lsn,
    /// About this many bytes.
    pub bytes_max: usize,
}

/// A frame to be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The round it belongs to.
    pub round: u32,
    /// Its header; `raw_length` is filled in by the encoder.
    pub header: FrameHeader,
    /// Digests at the last entry of each bucket in it.
    pub notes: Vec<DigestNote>,
    /// Its entries.
    pub entries: Vec<(Lsn, Bytes)>,
    /// Their bytes.
    pub raw_bytes: usize,
}

/// Whether a stream is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Yes, now.
    Wanted,
    /// Not before then.
    Resting(Instant),
    /// Never again: only a restart after repair brings the lane back.
    Over,
}

#[derive(Debug)]
enum State {
    /// No stream.
    Disconnected { reason: String },
    /// A stream, and no word yet where the target stands.
    Learning,
    /// Shipping, or idle.
    Streaming(Streaming),
    /// Resting until `again`, or for good.
    Stopped { status: LaneState, again: Option<Instant> },
}

/// Rising totals of a lane, since the process started.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    raw_bytes: u64,
    wire_bytes: u64,
    frames: u64,
    entries: u64,
}

/// The source's end of one lane.
#[derive(Debug)]
pub struct Shipper {
    key: LaneKey,
    topology: Arc<Topology>,
    /// Its index, if the target must have heard of it before it may call itself fresh; else 0.
    index: u64,
    head: Head,
    window: usize,
    state: State,
    /// The highest position the target reported: for the operator, and to notice a target that lost data.
    acked: Lsn,
    sent: Lsn,
    totals: Totals,
    ledger: Ledger,
    /// What the target was told that it lacks, over this stream.
    said: BTreeMap<BucketId, Exposure>,
    /// The end of the log, and the topology's index, at which it was told that it lacks nothing.
    said_all: Option<(Lsn, u64)>,
    /// The bucket that was spoken of last: where more are lagging than one message tells, the next goes on behind it.
    said_last: Option<BucketId>,
}

/// The buckets that `target` was ever removed from, and how often: it may have been added again since, and have heard of neither.
fn left_by(topology: &Topology, target: RegionId) -> impl Iterator<Item = (BucketId, usize)> {
    let stays = move |bucket: &Bucket| bucket.joins.was.iter().filter(|stay| stay.region == target).count();
    topology.buckets.values().map(move |bucket| (bucket.id, stays(bucket))).filter(|(_, stays)| *stays > 0)
}

/// The topology's index, if `target` was removed from a bucket in it, or before: whoever has not heard of that lacks what was written since, and
/// is told of none of it.
fn index_to_know(topology: &Topology, target: RegionId) -> u64 {
    left_by(topology, target).next().map_or(0, |_| topology.index)
}

impl Shipper {
    /// A lane that has no stream yet.
    pub fn new(key: LaneKey, topology: Arc<Topology>, head: Head, window: usize) -> Shipper {
        Shipper {
            key,
            index: index_to_know(&topology, key.target),
            topology,
            head,
            window,
            state: State::Disconnected { reason: String::new() },
            acked: Lsn(0),
            sent: Lsn(0),
            totals: Totals::default(),
            ledger: Ledger::default(),
            said: BTreeMap::new(),
            said_all: None,
            said_last: None,
        }
    }

    /// Takes what happened and puts out what to do.
    pub fn step(&mut self, now: Instant, input: Input, out: &mut Outbox) {
        match input {
            Input::Opened => {
                self.state = State::Learning;
                self.said.clear();
                self.said_all = None;
            }
            Input::Lost { reason } => self.on_lost(reason),
            Input::Message(message) => self.on_message(now, message, out),
            Input::Head(head) => {
                self.head.lsn = self.head.lsn.max(head.lsn);
                self.head.closed = self.head.closed.max(head.closed);
            }
            Input::Topology(topology) => {
                if left_by(&topology, self.key.target).ne(left_by(&self.topology, self.key.target)) {
                    self.index = index_to_know(&topology, self.key.target);
                }
                self.topology = topology;
                if let State::Streaming(stream) = &mut self.state {
                    stream.topology_changed();
                }
            }
            Input::Tail(tail) => self.on_tail(now, tail, out),
            Input::Encoded { round, wire_bytes } => self.on_encoded(round, wire_bytes),
            Input::Window(bytes) => self.window = bytes,
            Input::Mended => self.on_mended(now),
            Input::Timer => {}
        }
        self.advance(now, out);
        self.ledger.note_progress(now, self.is_complete(), self.head.lsn);
    }

    fn on_lost(&mut self, why: String) {
        match &self.state {
            // Why it stopped says more than how the stream ended.
            State::Stopped { .. } => {}
            State::Disconnected { .. } | State::Learning | State::Streaming(_) => {
                self.state = State::Disconnected { reason: why };
                self.ledger.forget_unacknowledged();
            }
        }
    }

    fn on_message(&mut self, now: Instant, message: ToSource, out: &mut Outbox) {
        match message {
            ToSource::Position { round, lsn } => self.on_position(now, round, lsn, out),
            ToSource::Ack { lsn } => self.on_ack(lsn, out),
            ToSource::Probe { ms } => {
                if let State::Streaming(stream) = &mut self.state {
                    stream.probe = stream.probe.max(ms);
                }
            }
            ToSource::Stop(stop) => self.on_stop(now, stop, out),
        }
    }

    fn on_position(&mut self, now: Instant, round: u32, lsn: Lsn, out: &mut Outbox) {
        let probe = match &self.state {
            State::Learning => 0,
            State::Streaming(stream) if round > stream.round => stream.probe,
            State::Streaming(_) => return self.violated("a position of an old round", out),
            State::Disconnected { .. } | State::Stopped { .. } => return,
        };
        if lsn > self.head.lsn {
            let detail = format!(
                "the target has applied this region's log up to {lsn}, but the log ends at {}: it is not the log it followed",
                self.head.lsn
            );
            return self.stop(LaneState::Diverged { detail }, None, out);
        }
        self.ledger.forget_unacknowledged();
        self.acked = lsn;
        self.sent = lsn;
        out.acknowledged = Some(lsn);
        self.state = State::Streaming(Streaming::new(now, round, lsn, probe));
    }

    fn on_ack(&mut self, lsn: Lsn, out: &mut Outbox) {
        let State::Streaming(stream) = &mut self.state else { return };
        if lsn > stream.sent {
            return self.violated("an acknowledgement of what was not sent", out);
        }
        stream.acknowledge(lsn);
        self.ledger.acknowledge(lsn);
        if lsn > self.acked {
            self.acked = lsn;
            out.acknowledged = Some(lsn);
        }
    }

    fn on_stop(&mut self, now: Instant, stop: Stop, out: &mut Outbox) {
        let again = Some(now + REST);
        match stop {
            // The target repairs itself, and takes frames again.
            Stop::Diverged { detail } => self.stop(LaneState::Diverged { detail }, again, out),
            Stop::Fenced => self.stop(LaneState::Fenced, again, out),
            Stop::ClockSkew { ahead_ms } => self.stop(LaneState::ClockSkew { ahead_ms }, again, out),
            Stop::NotLeader { .. } => {
                self.on_lost("the node does not lead the shard there".to_owned());
                out.close = Some("not the leader".to_owned());
            }
            Stop::Refused { reason } => {
                let reason = format!("the target refused the lane: {reason}");
                self.stop(LaneState::Connecting { reason }, again, out);
            }
        }
    }

    /// What the target kept out it may have by now, or it is void here: worth asking before the rest is over (ISO-1: all other buckets
    /// of the lane wait for it). It is asked once for each repair that ends, so whoever stays as it was costs no more.
    fn on_mended(&mut self, now: Instant) {
        if let State::Stopped { status: LaneState::Fenced | LaneState::Diverged { .. }, again: Some(again) } =
            &mut self.state
        {
            *again = now.min(*again);
        }
    }

    fn on_tail(&mut self, now: Instant, tail: Result<Tail, TailError>, out: &mut Outbox) {
        let State::Streaming(stream) = &mut self.state else { return };
        match tail {
            Ok(tail) => {
                self.head.lsn = self.head.lsn.max(tail.reached);
                if let Err(reason) = stream.take(now, &self.key, (&self.topology, self.index), tail, &mut self.ledger) {
                    self.stop(LaneState::Connecting { reason }, Some(now + REST), out);
                }
            }
            Err(TailError::Trimmed { oldest }) => {
                let watermark = self.acked;
                self.stop(LaneState::BehindLog { watermark, oldest }, Some(now + REST), out);
            }
            Err(TailError::Unavailable(_)) => stream.read_failed(now),
        }
    }

    fn on_encoded(&mut self, round: u32, wire_bytes: usize) {
        let State::Streaming(stream) = &mut self.state else { return };
        if stream.round == round {
            stream.encoded(wire_bytes);
        }
        self.totals.wire_bytes += wire_bytes as u64;
        self.totals.frames += 1;
    }

    fn violated(&mut self, what: &str, out: &mut Outbox) {
        let reason = format!("the target broke the protocol: {what}");
        out.close = Some(reason.clone());
        self.on_lost(reason);
    }

    fn stop(&mut self, status: LaneState, again: Option<Instant>, out: &mut Outbox) {
        out.close = Some("the lane stopped".to_owned());
        self.ledger.forget_unacknowledged();
        self.state = State::Stopped { status, again };
    }

    /// Ships what can be shipped and reads what should be read.
    fn advance(&mut self, now: Instant, out: &mut Outbox) {
        let State::Streaming(stream) = &mut self.state else { return };
        if let Some(plan) = stream.plan(&self.key, self.window, &mut self.ledger) {
            self.totals.raw_bytes += plan.raw_bytes as u64;
            self.totals.entries += plan.entries.len() as u64;
            self.sent = stream.sent;
            out.ship = Some(plan);
        }
        if let Some(read) = stream.read(now, self.key.lane, self.head.lsn) {
            out.read = Some(read);
        }
    }

    /// Whether everything this lane has is sent, as far as is known here.
    fn is_complete(&self) -> bool {
        match &self.state {
            State::Streaming(stream) => stream.has_sent_all(self.head.lsn),
            State::Disconnected { .. } | State::Learning | State::Stopped { .. } => false,
        }
    }

    /// When to step with [`Input::Timer`], if nothing happens before.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Streaming(stream) => stream.deadline(self.key.lane, self.head.lsn),
            State::Disconnected { .. } | State::Learning | State::Stopped { .. } => None,
        }
    }

    /// Whether a stream is wanted. One that stopped wants one again once its rest is over, and says until then why it stopped.
    pub fn standing(&self, now: Instant) -> Standing {
        match &self.state {
            State::Disconnected { .. } | State::Learning | State::Streaming(_) => Standing::Wanted,
            State::Stopped { again: Some(again), .. } if *again <= now => Standing::Wanted,
            State::Stopped { again: Some(again), .. } => Standing::Resting(*again),
            State::Stopped { again: None, .. } => Standing::Over,
        }
    }

    /// Bytes that are sent and not acknowledged: what counts against the link's window.
    pub fn in_flight_bytes(&self) -> usize {
        match &self.state {
            State::Streaming(stream) => stream.in_flight_bytes,
            State::Disconnected { .. } | State::Learning | State::Stopped { .. } => 0,
        }
    }

    /// Whether something waits for a larger window.
    pub fn is_throttled(&self) -> bool {
        match &self.state {
            State::Streaming(stream) => stream.is_throttled(self.window),
            State::Disconnected { .. } | State::Learning | State::Stopped { .. } => false,
        }
    }

    /// What operators see.
    pub fn status(&self) -> LaneStatus {
        let state = match &self.state {
            State::Disconnected { reason } => LaneState::Connecting { reason: reason.clone() },
            State::Learning => LaneState::Connecting { reason: "waiting for the target's watermark".to_owned() },
            State::Streaming(_) => LaneState::Streaming,
            State::Stopped { status, .. } => status.clone(),
        };
        LaneStatus {
            shard: self.key.shard,
            target: self.key.target,
            lane: self.key.lane,
            head: self.head.lsn,
            sent: self.sent,
            acked: self.acked,
            state,
            raw_bytes: self.totals.raw_bytes,
            wire_bytes: self.totals.wire_bytes,
            frames: self.totals.frames,
            entries: self.totals.entries,
            // Known only to who has the connection.
            heard_ms: None,
        }
    }

    /// How far the target is behind, per bucket of this lane.
    ///
    /// `wall_ms` is the wall clock, `counters` the source's rising totals of operations and bytes per bucket.
    /// Unshipped figures are exact once the lane has been complete since the process started; before, they are
    /// upper bounds by log positions.
    pub fn lags(&mut self, now: Instant, wall_ms: u64, counters: &dyn Fn(BucketId) -> (u64, u64)) -> Vec<BucketLag> {
        let (key, topology) = (self.key, Arc::clone(&self.topology));
        let buckets = topology.buckets.values().filter(|bucket| {
            bucket.is_in(key.target) && bucket.accepts_writes_in(key.source) && bucket.travels_in(key.lane)
        });
        let complete = self.is_complete();
        let behind_lsns = self.head.lsn.0.saturating_sub(self.sent.0);
        buckets
            .map(|bucket| {
                let total = counters(bucket.id);
                let lag = self.ledger.lag(bucket.id, total, complete, behind_lsns, now, wall_ms);
                BucketLag { bucket: bucket.id, target: key.target, ..lag }
            })
            .collect()
    }

    /// Whether [`Shipper::exposures`] may have something to say: an idle lane has not, and needs no timer for it.
    pub fn has_exposures(&self) -> bool {
        matches!(self.state, State::Streaming(_)) && self.said_all != Some((self.head.lsn, self.topology.index))
    }

    /// What the target lacks of each bucket of this lane, where that is news to it (SWI-2); at most [`EXPOSED_MAX`] at a time,
    /// the others come next. Empty until the target has said where it stands.
    pub fn exposures(&mut self, now: Instant, wall_ms: u64, counters: &dyn Fn(BucketId) -> (u64, u64)) -> Vec<Lack> {
        if !self.has_exposures() {
            return Vec::new();
        }
        let head = self.head.lsn;
        let mut lags = self.lags(now, wall_ms, counters);
        self.said.retain(|bucket, _| lags.iter().any(|lag| lag.bucket == *bucket));
        let told = lags.partition_point(|lag| Some(lag.bucket) <= self.said_last);
        lags.rotate_left(told);
        let mut news = Vec::new();
        for lag in lags {
            let exposure = Exposure {
                head,
                operations: lag.unshipped_operations.saturating_add(lag.unapplied_operations),
                bytes: lag.unshipped_bytes.saturating_add(lag.unapplied_bytes),
                oldest_ms: lag.lag_ms,
            };
            let known = self.said.get(&lag.bucket);
            // Of a bucket that nobody writes to, the end of the log says nothing new.
            let same = known.is_some_and(|known| {
                (known.operations, known.bytes) == (exposure.operations, exposure.bytes) && exposure.operations == 0
            });
            if !same && news.len() < EXPOSED_MAX {
                self.said.insert(lag.bucket, exposure);
                self.said_last = Some(lag.bucket);
                news.push(Lack { bucket: lag.bucket, exposure, oldest_key: lag.oldest_key });
            }
        }
        // Nothing is missing there, and it has been told: there is no more to say until the log goes on.
        let done = news.len() < EXPOSED_MAX && self.said.values().all(|it| it.operations == 0);
        self.said_all = done.then_some((head, self.topology.index));
        news
    }

    /// Asserts what must always hold.
    pub fn validate(&self) {
        if let State::Streaming(stream) = &self.state {
            stream.validate();
            assert!(stream.sent <= self.head.lsn, "sent {} beyond the head {}", stream.sent, self.head.lsn);
            assert!(self.acked <= self.sent, "acked {} beyond sent {}", self.acked, self.sent);
        }
    }
}
