//! The world: time in milliseconds, one step of everything per millisecond.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use meridian_types::entry::{Body, Header, Kind, WriteBody};
use meridian_types::frame::{self, FRAME_RAW_BYTES, FrameHeader};
use meridian_types::{
    Acks, Bucket, BucketId, BucketName, ClientId, Epoch, Hlc, Key, Lane, Lsn, Phase, Policy, RegionId, RequestId,
    ShardId, Topology, Value, Write,
};

use super::group::Group;
use crate::message::{ToSource, ToTarget};
use crate::receiver::{self, Receiver};
use crate::routes::{Verdict, verdict};
use crate::shipper::{self, LaneKey, Plan, Read, Shipper};
use crate::{Head, Tail, TailEntry};

const SOURCE: RegionId = RegionId(1);
const TARGET: RegionId = RegionId(2);
const WINDOW: usize = 300_000;

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Faults {
    None,
    All,
}

struct Stream {
    to_target: VecDeque<(u64, ToTarget)>,
    to_source: VecDeque<(u64, ToSource)>,
    receiver: Receiver,
    number: u64,
    asked: Option<u64>,
}

pub(super) struct World {
    seed: u64,
    random: u64,
    base: Instant,
    now: u64,
    faults: Faults,
    quiet: bool,
    pub(super) probed: bool,
    lane: Lane,
    big: bool,
    topology: Arc<Topology>,
    log: Vec<(Lsn, u64, Bytes)>,
    next_lsn: u64,
    shipper: Shipper,
    /// Due then; what it found, where it looked when it was asked and not when it answers.
    reading: Option<(u64, Read, Option<Tail>)>,
    making: VecDeque<(u64, Plan)>,
    stream: Option<Stream>,
    streams: u64,
    reopen_at: u64,
    group: Group,
    checked: usize,
    expected: Vec<(Lsn, Bytes)>,
    pub(super) frames: u64,
    pub(super) heartbeats: u64,
    pub(super) crashes: u64,
}

fn bucket(id: u32, name: &str, policy: Policy, regions: Vec<RegionId>) -> Arc<Bucket> {
    Arc::new(Bucket {
        id: BucketId(id),
        name: BucketName::new(name).unwrap(),
        policy,
        epoch: Epoch(1),
        phase: Phase::Steady,
        primary: Some(SOURCE),
        regions,
        labels: BTreeMap::new(),
        created: Hlc(0),
        standing: Default::default(),
        auto: Default::default(),
        turns: Default::default(),
        joins: Default::default(),
        crossing: None,
    })
}

/// Buckets 1 async, 2 sync, 3 not in the target, 4 deleted, 5 (async) created only later.
fn topology(later: bool) -> Arc<Topology> {
    let mut topology = Topology { index: 1 + u64::from(later), shards: 1, ..Topology::default() };
    let both = vec![SOURCE, TARGET];
    let mut buckets = vec![
        bucket(1, "a", Policy::ASYNC, both.clone()),
        bucket(2, "b", Policy::sync(Acks::All), both.clone()),
        bucket(3, "c", Policy::ASYNC, vec![SOURCE]),
    ];
    topology.last_bucket = BucketId(4);
    if later {
        buckets.push(bucket(5, "e", Policy::ASYNC, both));
        topology.last_bucket = BucketId(5);
    }
    topology.buckets = buckets.into_iter().map(|bucket| (bucket.id, bucket)).collect();
    Arc::new(topology)
}

impl World {
    pub(super) fn new(seed: u64, faults: Faults) -> World {
        let lane = Lane::ALL[(seed % 2) as usize];
        let topology = topology(false);
        let key = LaneKey { source: SOURCE, target: TARGET, shard: ShardId(0), lane };
        #[expect(clippy::disallowed_methods, reason = "an origin for virtual time; its value never matters")]
        let base = Instant::now();
        World {
            seed,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            base,
            now: 1,
            faults,
            quiet: false,
            probed: true,
            lane,
            big: seed % 10 == 7,
            shipper: Shipper::new(key, Arc::clone(&topology), Head::default(), WINDOW),
            topology,
            log: Vec::new(),
            next_lsn: 1,
            reading: None,
            making: VecDeque::new(),
            stream: None,
            streams: 0,
            reopen_at: 0,
            group: Group::default(),
            checked: 0,
            expected: Vec::new(),
            frames: 0,
            heartbeats: 0,
            crashes: 0,
        }
    }

    pub(super) fn applied(&self) -> &[(Lsn, Bytes)] {
        &self.group.applied
    }

    /// No faults and no writes from here on.
    pub(super) fn heal(&mut self) {
        self.faults = Faults::None;
        self.quiet = true;
        self.learn_topology();
    }

    pub(super) fn run(&mut self, milliseconds: u64) {
        for _ in 0..milliseconds {
            self.now += 1;
            self.write();
            self.break_things();
            self.source_side();
            self.target_side();
            self.check();
        }
    }

    pub(super) fn assert_caught_up(&self) {
        let seed = self.seed;
        assert_eq!(self.group.applied.len(), self.expected.len(), "seed {seed}: all is applied, and nothing twice");
        let status = self.shipper.status();
        assert_eq!(status.acked, status.sent, "seed {seed}: all is acknowledged");
        assert_eq!(self.shipper.in_flight_bytes(), 0, "seed {seed}");
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 16) % below
    }

    fn happens(&mut self, in_thousand: u64) -> bool {
        self.faults == Faults::All && self.draw(1000) < in_thousand
    }

    fn time(&self) -> Instant {
        self.base + Duration::from_millis(self.now)
    }

    fn head(&self) -> Head {
        Head { lsn: self.log.last().map_or(Lsn(0), |(lsn, ..)| *lsn), closed: Hlc::from_millis(self.now), tenure: 1 }
    }

    fn learn_topology(&mut self) {
        self.topology = topology(true);
        let topology = Arc::clone(&self.topology);
        self.step_shipper(shipper::Input::Topology(topology));
    }

    fn write(&mut self) {
        if self.quiet || self.draw(4) > 0 {
            return;
        }
        let burst = if self.draw(40) == 0 { 60 } else { 1 };
        for _ in 0..burst {
            let entry = self.entry();
            // Positions have gaps: the group's own entries.
            self.next_lsn += 1 + u64::from(self.draw(10) == 0) * (1 + self.draw(400));
            let lsn = Lsn(self.next_lsn);
            let header = Header::decode(&entry).unwrap();
            if verdict(&topology(true), SOURCE, TARGET, self.lane, &header) == Verdict::Ship {
                self.expected.push((lsn, entry.clone()));
            }
            self.log.push((lsn, self.now, entry));
        }
        if self.draw(300) == 0 {
            self.learn_topology();
        }
        let head = self.head();
        self.step_shipper(shipper::Input::Head(head));
    }

    fn entry(&mut self) -> Bytes {
        let bucket = BucketId(1 + u32::try_from(self.draw(20)).unwrap() % 5);
        let kind = if self.draw(8) == 0 { Kind::Frame } else { Kind::Write };
        let origin = if kind == Kind::Frame { TARGET } else { SOURCE };
        let header = Header {
            kind,
            origin,
            bucket,
            epoch: Epoch(1),
            hlc: Hlc(Hlc::from_millis(self.now).0 + self.next_lsn % 60_000),
            id: RequestId { client: ClientId(0), sequence: 0 },
            lowest_outstanding: 0,
        };
        let bytes = if self.big { 1 + self.draw(250_000) } else { 1 + self.draw(2_000) };
        let value = Value::new(vec![7; usize::try_from(bytes).unwrap()]).unwrap();
        header.encode(&Body::Write(WriteBody::Plain(Write::Put { key: Key::new("k").unwrap(), value, ttl_ms: None })))
    }

    fn break_things(&mut self) {
        if self.happens(4) {
            self.lose_stream("the link broke");
        }
        if self.happens(2) {
            // The source's node starts anew and knows nothing.
            self.crashes += 1;
            self.lose_stream("the source died");
            let key = LaneKey { source: SOURCE, target: TARGET, shard: ShardId(0), lane: self.lane };
            self.shipper = Shipper::new(key, Arc::clone(&self.topology), self.head(), WINDOW);
        }
        if self.happens(2) {
            self.crashes += 1;
            self.lose_stream("the target died");
            let survivors = self.draw(10);
            self.group.crash(usize::try_from(survivors).unwrap());
        }
    }

    fn lose_stream(&mut self, why: &str) {
        self.stream = None;
        self.reading = None;
        self.making.clear();
        self.reopen_at = self.now + 1 + self.draw(30);
        self.step_shipper(shipper::Input::Lost { reason: why.to_owned() });
    }

    fn source_side(&mut self) {
        if self.stream.is_none() && self.now >= self.reopen_at {
            self.open();
        }
        while let Some((_, message)) =
            self.stream.as_mut().and_then(|stream| stream.to_source.pop_front_if(|(due, _)| *due <= self.now))
        {
            self.step_shipper(shipper::Input::Message(message));
        }
        if let Some((_, read, found)) = self.reading.take_if(|(due, ..)| *due <= self.now) {
            let tail = found.unwrap_or_else(|| self.tail(read));
            self.step_shipper(shipper::Input::Tail(Ok(tail)));
        }
        while let Some((_, plan)) = self.making.pop_front_if(|(due, _)| *due <= self.now) {
            self.send(plan);
        }
        if self.shipper.deadline().is_some_and(|deadline| deadline <= self.time()) {
            self.step_shipper(shipper::Input::Timer);
        }
    }

    fn open(&mut self) {
        self.streams += 1;
        let mut out = receiver::Outbox::default();
        let receiver = Receiver::new(SOURCE, ShardId(0), self.lane, 500, &mut out);
        let (number, asked) = (self.streams, Some(self.now + 1 + self.draw(5)));
        self.stream = Some(Stream { to_target: VecDeque::new(), to_source: VecDeque::new(), receiver, number, asked });
        self.step_shipper(shipper::Input::Opened);
    }

    /// Reads what is there now, up to a limit that is drawn.
    fn tail(&mut self, read: Read) -> Tail {
        let limit = 1 + self.draw(if self.big { FRAME_RAW_BYTES as u64 } else { 8_000 });
        let limit = usize::try_from(limit).unwrap().min(read.bytes_max);
        let (mut bytes, mut entries) = (0, Vec::new());
        for (lsn, _, entry) in self.log.iter().filter(|(lsn, ..)| *lsn > read.after) {
            if bytes > 0 && bytes + entry.len() > limit {
                break;
            }
            bytes += entry.len();
            entries.push(TailEntry { lsn: *lsn, entry: entry.clone(), note: None });
        }
        let reached = entries.last().map_or(read.after, |entry| entry.lsn);
        let at_head = reached >= self.head().lsn;
        let closed = if at_head { self.head().closed } else { Hlc(0) };
        Tail { entries, reached, at_head, closed, tenured: true }
    }

    fn send(&mut self, plan: Plan) {
        let frame = frame::encode(plan.header, &plan.notes, &plan.entries);
        let (round, wire_bytes) = (plan.round, frame.len());
        match plan.header.last > plan.header.previous {
            true => self.frames += 1,
            false => self.heartbeats += 1,
        }
        let delay = 3 + self.draw(6);
        if let Some(stream) = &mut self.stream {
            let due = (self.now + delay).max(stream.to_target.back().map_or(0, |(due, _)| *due));
            stream.to_target.push_back((due, ToTarget::Frame { round, frame }));
        }
        self.step_shipper(shipper::Input::Encoded { round, wire_bytes });
    }

    fn step_shipper(&mut self, input: shipper::Input) {
        let mut out = shipper::Outbox::default();
        self.shipper.step(self.base + Duration::from_millis(self.now), input, &mut out);
        self.shipper.validate();
        if let Some(lsn) = out.acknowledged {
            assert!(lsn <= self.group.watermark, "seed {}: {lsn} acknowledged before it is durable", self.seed);
        }
        if let Some(why) = out.close {
            panic!("seed {}: the lane closed: {why}, {:?}", self.seed, self.shipper.status());
        }
        if let Some(plan) = out.ship {
            assert!(plan.raw_bytes < FRAME_RAW_BYTES + 300_000, "a frame is closed at its bound");
            let due = self.now + self.draw(3);
            self.making.push_back((due, plan));
        }
        if let Some(read) = out.read {
            let slow = if !self.quiet && self.draw(6) == 0 { 40 } else { 4 };
            let due = self.now + self.draw(slow);
            let found = (self.draw(2) == 0).then(|| self.tail(read));
            self.reading = Some((due, read, found));
        }
        let one_frame = FRAME_RAW_BYTES + 300_000;
        assert!(self.shipper.in_flight_bytes() <= WINDOW.max(one_frame), "seed {}: window", self.seed);
    }

    fn target_side(&mut self) {
        let failing = self.faults == Faults::All;
        let mut random = self.draw(u64::MAX);
        let answers = self.group.run(self.now, || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (failing && (random >> 33).is_multiple_of(60)).then_some((random >> 20).is_multiple_of(2))
        });
        for (number, ticket, answer) in answers {
            if self.stream.as_ref().is_some_and(|stream| stream.number == number) {
                self.step_receiver(receiver::Input::Applied(ticket, answer));
            }
        }
        let (now, time) = (self.now, self.time());
        let Some(stream) = &mut self.stream else { return };
        let mut inputs = Vec::new();
        if stream.asked.take_if(|due| *due <= now).is_some() {
            inputs.push(receiver::Input::Watermark(Ok(self.group.watermark)));
        }
        if now % 100 == 0 {
            inputs.push(receiver::Input::Tick { ms: now, probed: self.probed });
        }
        if stream.receiver.deadline().is_some_and(|deadline| deadline <= time) {
            inputs.push(receiver::Input::Timer);
        }
        if stream.receiver.has_room()
            && let Some((_, message)) = stream.to_target.pop_front_if(|(due, _)| *due <= now)
        {
            let ToTarget::Frame { round, frame } = message else { panic!("only frames here") };
            let header = FrameHeader::decode(&frame).unwrap();
            inputs.push(receiver::Input::Frame { round, header, frame, wall: Hlc::from_millis(now) });
        }
        for input in inputs {
            self.step_receiver(input);
        }
    }

    fn step_receiver(&mut self, input: receiver::Input) {
        let time = self.time();
        let Some(stream) = &mut self.stream else { return };
        let mut out = receiver::Outbox::default();
        stream.receiver.step(time, input, &mut out);
        stream.receiver.validate();
        let number = stream.number;
        if let Some(complete) = out.complete {
            self.check_complete(complete);
        }
        for (ticket, frame) in out.apply {
            let due = self.now + 1 + self.draw(8);
            self.group.propose(due, number, ticket, frame);
        }
        let delays: Vec<_> = out.send.iter().map(|_| 3 + self.draw(6)).collect();
        let now = self.now;
        let asked = now + 1 + self.draw(5);
        let Some(stream) = &mut self.stream else { return };
        if out.ask {
            stream.asked = Some(asked);
        }
        for (message, delay) in out.send.into_iter().zip(delays) {
            let due = (now + delay).max(stream.to_source.back().map_or(0, |(due, _)| *due));
            stream.to_source.push_back((due, message));
        }
    }

    /// CON-3: whoever claims to be complete as of a moment has every entry that was there before it.
    fn check_complete(&self, complete: receiver::Complete) {
        let seed = self.seed;
        assert!(complete.last <= self.group.watermark, "seed {seed}: complete beyond what is durable");
        let missing = self.expected.get(self.group.applied.len());
        if let Some((lsn, _)) = missing {
            let (_, written, _) = self.log.iter().find(|(at, ..)| at == lsn).unwrap();
            assert!(
                *written >= complete.echo.probe,
                "seed {seed}: complete as of {}, but {lsn} was written at {written} and is missing",
                complete.echo.probe
            );
        }
    }

    /// ORD-1: what was applied is a prefix of what should be.
    fn check(&mut self) {
        let applied = &self.group.applied;
        assert!(applied.len() <= self.expected.len(), "seed {}: applied more than was written", self.seed);
        assert_eq!(applied[self.checked..], self.expected[self.checked..applied.len()], "seed {}: order", self.seed);
        self.checked = applied.len();
    }
}
