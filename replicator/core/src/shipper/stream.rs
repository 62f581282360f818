//! A round of shipping: from a position the target gave until it gives another or the stream ends.
//!
//! `acked <= sent <= examined`: what lies between `sent` and `examined` is either pending or none of this lane's.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use bytes::Bytes;
use meridian_types::entry::{Header, Kind};
use meridian_types::frame::{DigestNote, Echo, FRAME_RAW_BYTES, FrameHeader};
use meridian_types::{BucketId, Hlc, Lane, Lsn};

use super::ledger::Ledger;
use super::{GATHER, LaneKey, Plan, READ_AGAIN, Read, SKIP_BYTES, SKIP_LSNS};
use crate::routes::{Verdict, verdict};
use crate::{Tail, TailEntry};

/// The most digest notes in one frame: far more than its entries have buckets, far less than the frame's slack.
const NOTES_MAX: usize = 1024;

/// No window makes frames smaller than this: each is an entry in the target's log.
const FRAME_BYTES_MIN: usize = 64 << 10;

/// What the last read said about the place `examined`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// More may follow.
    More,
    /// An entry follows whose bucket this copy of the topology does not know.
    Unknown,
    /// It was the end of the log; `probe` had arrived before that read was asked for.
    Head { echo: Echo },
}

#[derive(Debug)]
enum Reading {
    /// Not; the last answer came at `since`, and none is to be asked for before `until`.
    Not { since: Instant, until: Option<Instant> },
    /// Asked, when `probe` was the newest.
    Asked { probe: u64 },
}

/// An entry that waits for a frame.
#[derive(Debug)]
struct Pending {
    lsn: Lsn,
    entry: Bytes,
    bucket: BucketId,
    hlc: Hlc,
    note: Option<DigestNote>,
}

#[derive(Debug)]
struct InFlight {
    last: Lsn,
    bytes: usize,
}

#[derive(Debug)]
pub(super) struct Streaming {
    pub(super) round: u32,
    pub(super) sent: Lsn,
    /// The newest probe that arrived.
    pub(super) probe: u64,
    /// Bytes of `in_flight`.
    pub(super) in_flight_bytes: usize,
    acked: Lsn,
    examined: Lsn,
    /// Every later entry of the source has a greater timestamp than this, at `examined`.
    closed: Hlc,
    end: End,
    echoed: u64,
    pending: VecDeque<Pending>,
    pending_bytes: usize,
    /// Bytes of entries beyond `sent` that are none of this lane's.
    passed_bytes: usize,
    in_flight: VecDeque<InFlight>,
    /// A seal of this region passed by since `sent`. The lane it did not travel in goes on behind it at once: whoever asks that lane
    /// alone how far the target is would else hear that it lacks the epoch's end for as long as nobody writes.
    passed_seal: bool,
    /// A plan is out whose frame is not made yet: `Some(carries entries or skips)`.
    encoding: Option<bool>,
    reading: Reading,
    /// The last read brought nothing for this lane.
    barren: bool,
}

impl Streaming {
    pub(super) fn new(now: Instant, round: u32, from: Lsn, probe: u64) -> Streaming {
        Streaming {
            round,
            sent: from,
            probe,
            in_flight_bytes: 0,
            acked: from,
            examined: from,
            closed: Hlc(0),
            end: End::More,
            echoed: 0,
            pending: VecDeque::new(),
            pending_bytes: 0,
            passed_bytes: 0,
            passed_seal: false,
            in_flight: VecDeque::new(),
            encoding: None,
            reading: Reading::Not { since: now, until: None },
            barren: false,
        }
    }

    pub(super) fn acknowledge(&mut self, lsn: Lsn) {
        self.acked = self.acked.max(lsn);
        while let Some(front) = self.in_flight.front().filter(|front| front.last <= lsn) {
            self.in_flight_bytes -= front.bytes;
            self.in_flight.pop_front();
        }
    }

    pub(super) fn encoded(&mut self, wire_bytes: usize) {
        if self.encoding.take() == Some(true)
            && let Some(back) = self.in_flight.back_mut()
        {
            self.in_flight_bytes = self.in_flight_bytes - back.bytes + wire_bytes;
            back.bytes = wire_bytes;
        }
    }

    /// An entry that waited for its bucket to become known need not wait any longer.
    pub(super) fn topology_changed(&mut self) {
        if let (End::Unknown, Reading::Not { until, .. }) = (self.end, &mut self.reading) {
            *until = None;
        }
    }

    pub(super) fn read_failed(&mut self, now: Instant) {
        self.end = End::More;
        self.reading = Reading::Not { since: now, until: Some(now + READ_AGAIN) };
    }

    /// Sorts what was read; `index` is what the target must have heard of before that says how fresh it is. Fails on an entry that this version can't read: nothing behind it may be shipped.
    pub(super) fn take(
        &mut self,
        now: Instant,
        key: &LaneKey,
        (topology, index): (&meridian_types::Topology, u64),
        tail: Tail,
        ledger: &mut Ledger,
    ) -> Result<(), String> {
        let Reading::Asked { probe } = self.reading else { return Ok(()) };
        if tail.reached < self.examined {
            return Err(format!("the log was read back to {}, before {}", tail.reached, self.examined));
        }
        let fruitless = tail.reached == self.examined && !tail.at_head;
        self.reading = Reading::Not { since: now, until: fruitless.then(|| now + GATHER) };
        self.barren = true;
        for TailEntry { lsn, entry, note } in tail.entries {
            if lsn <= self.examined {
                return Err(format!("entry {lsn} of the log came after {}", self.examined));
            }
            let header = Header::decode(&entry).map_err(|error| format!("entry {lsn} can't be read: {error}"))?;
            match verdict(topology, key.source, key.target, key.lane, &header) {
                Verdict::Skip => {
                    self.passed_bytes += entry.len();
                    self.passed_seal |= header.kind == Kind::Seal && header.origin == key.source;
                }
                Verdict::Ship => {
                    ledger.pend(lsn, header.bucket, entry.clone(), header.hlc);
                    self.pending_bytes += entry.len();
                    self.barren = false;
                    let (bucket, hlc) = (header.bucket, header.hlc);
                    self.pending.push_back(Pending { lsn, entry, bucket, hlc, note });
                }
                Verdict::Wait => {
                    self.end = End::Unknown;
                    self.reading = Reading::Not { since: now, until: Some(now + READ_AGAIN) };
                    return Ok(());
                }
            }
            self.examined = lsn;
            self.closed = header_closed(key, &header, self.closed);
        }
        self.examined = tail.reached;
        self.closed = self.closed.max(tail.closed);
        let echo = Echo { probe, tenured: tail.tenured, index };
        self.end = if tail.at_head { End::Head { echo } } else { End::More };
        Ok(())
    }

    /// The next frame, if it is time for one.
    pub(super) fn plan(&mut self, key: &LaneKey, window: usize, ledger: &mut Ledger) -> Option<Plan> {
        if self.encoding.is_some() {
            return None;
        }
        if self.pending.is_empty() {
            return self.plan_empty(key);
        }
        if !self.is_worth_a_frame(window) || self.is_throttled(window) {
            return None;
        }
        let (entries, notes, raw_bytes, closed) = self.take_pending(frame_bytes(window));
        let whole = self.pending.is_empty();
        let last = match entries.last() {
            Some((lsn, _)) if !whole => *lsn,
            _ => self.examined,
        };
        let echo = if whole { self.take_echo() } else { Echo::default() };
        let header = self.header(key, last, if whole { self.closed } else { closed }, echo);
        self.in_flight.push_back(InFlight { last, bytes: raw_bytes });
        self.in_flight_bytes += raw_bytes;
        ledger.ship(last);
        self.sent = last;
        self.passed_bytes = 0;
        self.passed_seal &= !whole;
        self.encoding = Some(true);
        Some(Plan { round: self.round, header, notes, entries, raw_bytes })
    }

    /// A heartbeat when there is a probe to answer, a skip when the log has gone far without this lane.
    fn plan_empty(&mut self, key: &LaneKey) -> Option<Plan> {
        let far = self.examined.0 - self.sent.0 >= SKIP_LSNS || self.passed_bytes >= SKIP_BYTES;
        let skip = far || (self.passed_seal && self.examined > self.sent);
        let echo = self.take_echo();
        if !skip && echo.probe == 0 {
            return None;
        }
        let last = if skip { self.examined } else { self.sent };
        let header = self.header(key, last, self.closed, echo);
        if skip {
            self.in_flight.push_back(InFlight { last, bytes: 0 });
        }
        self.sent = last;
        self.passed_bytes = 0;
        self.passed_seal &= !skip;
        self.encoding = Some(skip);
        Some(Plan { round: self.round, header, notes: Vec::new(), entries: Vec::new(), raw_bytes: 0 })
    }

    /// The probe that is answered by whatever is sent next, which must be everything this lane has (CON-3).
    fn take_echo(&mut self) -> Echo {
        match self.end {
            End::Head { echo } if echo.probe > self.echoed => {
                self.echoed = echo.probe;
                echo
            }
            End::Head { .. } | End::More | End::Unknown => Echo::default(),
        }
    }

    fn header(&self, key: &LaneKey, last: Lsn, closed: Hlc, echo: Echo) -> FrameHeader {
        FrameHeader {
            source: key.source,
            shard: key.shard,
            lane: key.lane,
            previous: self.sent,
            last,
            closed,
            echo,
            raw_length: 0,
        }
    }

    /// Up to a frame's worth of entries, the last digest of each of their buckets, their bytes, and the timestamp
    /// that all later ones exceed.
    fn take_pending(&mut self, bytes_max: usize) -> (Vec<(Lsn, Bytes)>, Vec<DigestNote>, usize, Hlc) {
        let (mut entries, mut notes, mut bytes, mut closed) = (Vec::new(), BTreeMap::new(), 0, Hlc(0));
        while bytes < bytes_max
            && let Some(pending) = self.pending.pop_front()
        {
            bytes += pending.entry.len();
            closed = pending.hlc;
            // A later entry without a digest makes the earlier digest of its bucket useless.
            match pending.note {
                Some(note) if notes.len() < NOTES_MAX => notes.insert(pending.bucket, note),
                Some(_) | None => notes.remove(&pending.bucket),
            };
            entries.push((pending.lsn, pending.entry));
        }
        self.pending_bytes -= bytes;
        (entries, notes.into_values().collect(), bytes, closed)
    }

    fn is_worth_a_frame(&self, window: usize) -> bool {
        self.pending_bytes >= frame_bytes(window) || self.end != End::More
    }

    /// Whether the next frame does not fit the window. One frame may always be in flight, however small the window.
    pub(super) fn is_throttled(&self, window: usize) -> bool {
        let next = self.pending_bytes.min(frame_bytes(window));
        !self.pending.is_empty() && !self.in_flight.is_empty() && self.in_flight_bytes + next > window
    }

    /// The next read, if it is time for one.
    pub(super) fn read(&mut self, now: Instant, lane: Lane, head: Lsn) -> Option<Read> {
        if self.read_at(lane, head)? > now {
            return None;
        }
        self.reading = Reading::Asked { probe: self.probe };
        Some(Read { after: self.examined, bytes_max: FRAME_RAW_BYTES - self.pending_bytes })
    }

    /// When to read next; `None` while there is no reason to.
    fn read_at(&self, lane: Lane, head: Lsn) -> Option<Instant> {
        let Reading::Not { since, until } = self.reading else { return None };
        if self.pending_bytes >= FRAME_RAW_BYTES {
            return None;
        }
        let wanted = match self.end {
            End::More | End::Unknown => true,
            End::Head { echo } => head > self.examined || self.probe > echo.probe,
        };
        if !wanted {
            return None;
        }
        let caught_up = matches!(self.end, End::Head { .. });
        let gathers = lane == Lane::Async && caught_up && (!self.in_flight.is_empty() || self.barren);
        Some(until.unwrap_or(if gathers { since + GATHER } else { since }))
    }

    pub(super) fn deadline(&self, lane: Lane, head: Lsn) -> Option<Instant> {
        self.read_at(lane, head)
    }

    pub(super) fn has_sent_all(&self, head: Lsn) -> bool {
        self.pending.is_empty() && matches!(self.end, End::Head { .. }) && self.examined >= head
    }

    pub(super) fn validate(&self) {
        assert!(self.acked <= self.sent && self.sent <= self.examined, "acked <= sent <= examined");
        assert_eq!(self.in_flight_bytes, self.in_flight.iter().map(|frame| frame.bytes).sum::<usize>());
        assert_eq!(self.pending_bytes, self.pending.iter().map(|pending| pending.entry.len()).sum::<usize>());
        assert!(self.pending.iter().all(|pending| pending.lsn > self.sent && pending.lsn <= self.examined));
        assert!(self.echoed <= self.probe, "a probe is echoed only after it came");
    }
}

/// Where a frame is closed: at its bound, or where a quarter of the lane's window is full. A lane whose share of a
/// busy link is one large frame would send nothing while that frame's acknowledgement crosses the ocean.
fn frame_bytes(window: usize) -> usize {
    (window / 4).clamp(FRAME_BYTES_MIN, FRAME_RAW_BYTES)
}

/// The source's own entries rise in timestamp along its log; those of others say nothing about it.
fn header_closed(key: &LaneKey, header: &Header, closed: Hlc) -> Hlc {
    if header.origin == key.source { closed.max(header.hlc) } else { closed }
}
