//! The target's end of one lane: takes frames in order, hands them to the group, acknowledges what is durable.
//!
//! ```text
//!              watermark                      a frame fails           all answered
//! Asking ───────────────────▶ Receiving ────────────────────▶ Draining ────────────▶ Asking
//!   │ ▲  unavailable                │ diverged, fenced, skew,
//!   ▼ │                             ▼ not leader, protocol
//! Resting                        Stopped
//! ```
//!
//! - ORD-1: a frame goes to the group only if it follows the one before, in the current round.
//! - CON-3: `complete` is said only once everything up to the echoing frame is durably applied, and an echo
//!   of a probe that was never sent is a broken protocol.
//! - Acknowledgements are cumulative and follow durable application, never reception.
//!
//! Not here: what a frame holds (opened where it is applied), and its checksum (checked before it comes here).

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use meridian_types::frame::{Echo, FrameHeader};
use meridian_types::{Hlc, Lack, Lane, Lsn, RegionId, ShardId};

use crate::SinkError;
use crate::message::{EXPOSED_MAX, Stop, ToSource, short};

/// How long to rest when the group can't take frames or say where it stands.
const REST: Duration = Duration::from_millis(100);

/// The most frames handed to the group and not answered. Their bytes are bounded by the link's budget.
pub const FRAMES_MAX: usize = 64;

/// Which frame handed to the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// The answer to [`Outbox::ask`].
    Watermark(Result<Lsn, SinkError>),
    /// A frame whose header and checksum are good.
    Frame {
        /// The round it was sent in.
        round: u32,
        /// Its header.
        header: FrameHeader,
        /// All of it.
        frame: Bytes,
        /// The local wall clock.
        wall: Hlc,
    },
    /// What the source says is lacking here.
    Exposed(Vec<Lack>),
    /// The group's answer to one of [`Outbox::apply`].
    Applied(Ticket, Result<Lsn, SinkError>),
    /// This node does not lead the shard any more, as nothing that was applied has told it.
    Deposed(SinkError),
    /// Every 100 ms: the local monotonic clock, which becomes a probe if anybody wants to know.
    Tick {
        /// Milliseconds, never 0.
        ms: u64,
        /// Whether a bucket read here travels in this lane.
        probed: bool,
    },
    /// [`Receiver::deadline`] has come.
    Timer,
}

/// What to do about it, in this order.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Say to the sink: complete up to here as of that probe.
    pub complete: Option<Complete>,
    /// Say to the sink: this is lacking here, as the source says.
    pub exposed: Vec<Lack>,
    /// Propose these frames, in order; [`Input::Applied`] answers each.
    pub apply: Vec<(Ticket, Bytes)>,
    /// Ask the sink for its watermark; [`Input::Watermark`] answers.
    pub ask: bool,
    /// Send to the shipper, in order. The stream ends after a [`ToSource::Stop`].
    pub send: Vec<ToSource>,
}

/// Everything up to `last` is applied, which was everything at the moment `echo` was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Complete {
    /// The probe, and what the source says of itself.
    pub echo: Echo,
    /// The position.
    pub last: Lsn,
}

#[derive(Debug)]
struct Applying {
    ticket: Ticket,
    last: Lsn,
    echo: Echo,
    done: bool,
}

#[derive(Debug)]
enum State {
    Asking,
    Resting { until: Instant },
    Receiving { received: Lsn, applied: Lsn, applying: VecDeque<Applying> },
    Draining { outstanding: usize, rest: bool },
    Stopped { outstanding: usize },
}

/// The target's end of one lane, for the life of one stream.
#[derive(Debug)]
pub struct Receiver {
    source: RegionId,
    shard: ShardId,
    lane: Lane,
    max_skew_ms: u64,
    round: u32,
    tickets: u64,
    /// The newest probe that was sent; an echo beyond it is a lie.
    probed: u64,
    state: State,
}

impl Receiver {
    /// A receiver that asks where its region stands. `source` is the region in the peer's certificate; timestamps
    /// more than `max_skew_ms` ahead of the local clock stop the lane.
    pub fn new(source: RegionId, shard: ShardId, lane: Lane, max_skew_ms: u64, out: &mut Outbox) -> Receiver {
        out.ask = true;
        Receiver { source, shard, lane, max_skew_ms, round: 0, tickets: 0, probed: 0, state: State::Asking }
    }

    /// Takes what happened and puts out what to do.
    pub fn step(&mut self, now: Instant, input: Input, out: &mut Outbox) {
        match input {
            Input::Watermark(answer) => self.on_watermark(now, answer, out),
            Input::Frame { round, header, frame, wall } => self.on_frame(now, round, &header, frame, wall, out),
            Input::Exposed(lacks) => self.on_exposed(lacks, out),
            Input::Applied(ticket, answer) => self.on_applied(now, ticket, answer, out),
            Input::Deposed(error) => self.on_failed(now, error, out),
            Input::Tick { ms, probed } => self.on_tick(ms, probed, out),
            Input::Timer => {}
        }
        if let State::Resting { until } = self.state
            && until <= now
        {
            self.ask(out);
        }
    }

    fn ask(&mut self, out: &mut Outbox) {
        out.ask = true;
        self.state = State::Asking;
    }

    fn on_watermark(&mut self, now: Instant, answer: Result<Lsn, SinkError>, out: &mut Outbox) {
        let State::Asking = self.state else { return };
        match answer {
            Ok(lsn) | Err(SinkError::Rewind { watermark: lsn }) => self.begin_round(lsn, out),
            Err(SinkError::Unavailable(_)) => self.state = State::Resting { until: now + REST },
            Err(SinkError::Diverged { detail }) => self.stop(Stop::Diverged { detail: short(&detail) }, out),
            Err(SinkError::Fenced) => self.stop(Stop::Fenced, out),
            Err(SinkError::NotLeader { leader }) => self.stop(Stop::NotLeader { leader }, out),
        }
    }

    /// Says where this end stands; only frames built after that count.
    fn begin_round(&mut self, lsn: Lsn, out: &mut Outbox) {
        self.round += 1;
        out.send.push(ToSource::Position { round: self.round, lsn });
        self.state = State::Receiving { received: lsn, applied: lsn, applying: VecDeque::new() };
    }

    fn on_frame(&mut self, now: Instant, round: u32, header: &FrameHeader, frame: Bytes, wall: Hlc, out: &mut Outbox) {
        if round > self.round {
            return self.refuse("a frame of a round that has not begun", out);
        }
        if (header.source, header.shard, header.lane) != (self.source, self.shard, self.lane) {
            let claim = format!("a frame of region {} shard {} lane {}", header.source, header.shard, header.lane);
            return self.refuse(&claim, out);
        }
        if header.echo.probe > self.probed {
            return self.refuse("an echo of a probe that was not sent", out);
        }
        let State::Receiving { received, applied, applying } = &mut self.state else { return };
        if round < self.round {
            return;
        }
        let ahead_ms = header.closed.millis().saturating_sub(wall.millis());
        if ahead_ms > self.max_skew_ms {
            return self.stop(Stop::ClockSkew { ahead_ms }, out);
        }
        if header.previous != *received {
            let (applied, received) = (*applied, *received);
            return self.on_misfit(now, header, applied, received, out);
        }
        if header.last > header.previous {
            self.tickets += 1;
            let ticket = Ticket(self.tickets);
            *received = header.last;
            applying.push_back(Applying { ticket, last: header.last, echo: header.echo, done: false });
            out.apply.push((ticket, frame));
        } else if header.echo.probe != 0 {
            // A heartbeat: it counts once all before it is applied.
            match applying.back_mut() {
                Some(back) if back.echo.probe > header.echo.probe => {}
                Some(back) => back.echo = header.echo,
                None => out.complete = Some(Complete { echo: header.echo, last: header.last }),
            }
        }
    }

    /// Older frames are acknowledged again; a gap makes both ends start over from what has been received.
    fn on_misfit(&mut self, now: Instant, header: &FrameHeader, applied: Lsn, received: Lsn, out: &mut Outbox) {
        if header.last <= received {
            out.send.push(ToSource::Ack { lsn: applied });
        } else {
            self.drain(now, false, out);
        }
    }

    fn on_applied(&mut self, now: Instant, ticket: Ticket, answer: Result<Lsn, SinkError>, out: &mut Outbox) {
        match &mut self.state {
            State::Receiving { applied, applying, .. } => {
                let Some(entry) = applying.iter_mut().find(|entry| entry.ticket == ticket) else { return };
                entry.done = true;
                let last = entry.last;
                match answer {
                    Ok(lsn) if lsn >= last => Self::acknowledge(applied, applying, out),
                    Ok(lsn) => self.on_failed(now, SinkError::Rewind { watermark: lsn }, out),
                    Err(error) => self.on_failed(now, error, out),
                }
            }
            State::Draining { outstanding, rest } => {
                *outstanding -= 1;
                if *outstanding == 0 {
                    let rest = *rest;
                    self.drained(now, rest, out);
                }
            }
            State::Stopped { outstanding } => *outstanding = outstanding.saturating_sub(1),
            State::Asking | State::Resting { .. } => {}
        }
    }

    /// The longest applied run is durable: say so once.
    fn acknowledge(applied: &mut Lsn, applying: &mut VecDeque<Applying>, out: &mut Outbox) {
        let before = *applied;
        while let Some(front) = applying.pop_front_if(|front| front.done) {
            *applied = front.last;
            if front.echo.probe != 0 {
                out.complete = Some(Complete { echo: front.echo, last: front.last });
            }
        }
        if *applied > before {
            out.send.push(ToSource::Ack { lsn: *applied });
        }
    }

    fn on_failed(&mut self, now: Instant, error: SinkError, out: &mut Outbox) {
        match error {
            SinkError::Rewind { .. } => self.drain(now, false, out),
            SinkError::Unavailable(_) => self.drain(now, true, out),
            SinkError::Diverged { detail } => self.stop(Stop::Diverged { detail: short(&detail) }, out),
            SinkError::Fenced => self.stop(Stop::Fenced, out),
            SinkError::NotLeader { leader } => self.stop(Stop::NotLeader { leader }, out),
        }
    }

    /// Waits for the answers that are still out: only then does the watermark stand still to be asked for.
    fn drain(&mut self, now: Instant, rest: bool, out: &mut Outbox) {
        match self.outstanding() {
            0 => self.drained(now, rest, out),
            outstanding => self.state = State::Draining { outstanding, rest },
        }
    }

    fn drained(&mut self, now: Instant, rest: bool, out: &mut Outbox) {
        if rest {
            self.state = State::Resting { until: now + REST };
        } else {
            self.ask(out);
        }
    }

    /// Counts only while frames are taken: what the source says then is about what it has been told of this end.
    fn on_exposed(&mut self, lacks: Vec<Lack>, out: &mut Outbox) {
        if lacks.len() > EXPOSED_MAX {
            return self.refuse("more exposures than one message may have", out);
        }
        match self.state {
            State::Receiving { .. } => out.exposed = lacks,
            State::Asking | State::Resting { .. } | State::Draining { .. } | State::Stopped { .. } => {}
        }
    }

    fn on_tick(&mut self, ms: u64, probed: bool, out: &mut Outbox) {
        if let State::Receiving { .. } = self.state
            && probed
            && ms > self.probed
        {
            self.probed = ms;
            out.send.push(ToSource::Probe { ms });
        }
    }

    fn refuse(&mut self, what: &str, out: &mut Outbox) {
        self.stop(Stop::Refused { reason: short(what) }, out);
    }

    fn stop(&mut self, stop: Stop, out: &mut Outbox) {
        if let State::Stopped { .. } = self.state {
            return;
        }
        self.state = State::Stopped { outstanding: self.outstanding() };
        out.send.push(ToSource::Stop(stop));
    }

    /// Frames handed to the group and not answered.
    pub fn outstanding(&self) -> usize {
        match &self.state {
            State::Receiving { applying, .. } => applying.iter().filter(|entry| !entry.done).count(),
            State::Draining { outstanding, .. } | State::Stopped { outstanding } => *outstanding,
            State::Asking | State::Resting { .. } => 0,
        }
    }

    /// Whether another frame may be read from the stream.
    pub fn has_room(&self) -> bool {
        self.outstanding() < FRAMES_MAX
    }

    /// Whether the lane is stopped; the stream is to be closed once everything is sent.
    pub fn is_stopped(&self) -> bool {
        matches!(self.state, State::Stopped { .. })
    }

    /// When to step with [`Input::Timer`], if nothing happens before.
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Resting { until } => Some(until),
            State::Asking | State::Receiving { .. } | State::Draining { .. } | State::Stopped { .. } => None,
        }
    }

    /// Asserts what must always hold.
    pub fn validate(&self) {
        if let State::Receiving { received, applied, applying } = &self.state {
            assert!(applied <= received, "applied {applied} beyond received {received}");
            assert!(applying.iter().map(|entry| entry.last).is_sorted());
            assert_eq!(applying.back().map_or(*applied, |back| back.last), *received);
        }
        assert!(self.outstanding() <= FRAMES_MAX + 1);
    }
}
