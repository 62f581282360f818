use std::collections::BTreeMap;

use meridian_types::entry::{Body, Header, Kind, WriteBody};
use meridian_types::{
    Acks, Bucket, BucketName, ClientId, Epoch, Hlc, Key, KeyStart, Phase, Policy, RequestId, Value, Version, Write,
};

use super::*;
use crate::TailEntry;

const ASYNC: BucketId = BucketId(1);
const SYNC: BucketId = BucketId(2);
const WINDOW: usize = 1 << 20;

#[expect(clippy::disallowed_methods, reason = "an origin for test time; its value never matters")]
fn origin() -> Instant {
    Instant::now()
}

fn topology() -> Arc<Topology> {
    let bucket = |id, name: &str, policy| Bucket {
        id,
        name: BucketName::new(name).unwrap(),
        policy,
        epoch: Epoch(1),
        phase: Phase::Steady,
        primary: Some(RegionId(1)),
        regions: vec![RegionId(1), RegionId(2)],
        labels: BTreeMap::new(),
        created: Hlc(0),
        standing: Default::default(),
        auto: Default::default(),
        turns: Default::default(),
        joins: Default::default(),
        crossing: None,
    };
    let buckets = [bucket(ASYNC, "a", Policy::ASYNC), bucket(SYNC, "s", Policy::sync(Acks::All))];
    Arc::new(Topology {
        index: 1,
        buckets: buckets.into_iter().map(|bucket| (bucket.id, Arc::new(bucket))).collect(),
        last_bucket: SYNC,
        ..Topology::default()
    })
}

fn entry(lsn: u64, bucket: BucketId, bytes: usize) -> TailEntry {
    let header = Header {
        kind: Kind::Write,
        origin: RegionId(1),
        bucket,
        epoch: Epoch(1),
        hlc: Version { hlc: Hlc::from_millis(lsn), region: RegionId(1) }.hlc,
        id: RequestId { client: ClientId(0), sequence: 0 },
        lowest_outstanding: 0,
    };
    let write = Write::Put { key: Key::new("k").unwrap(), value: Value::new(vec![1; bytes]).unwrap(), ttl_ms: None };
    TailEntry { lsn: Lsn(lsn), entry: header.encode(&Body::Write(WriteBody::Plain(write))), note: None }
}

/// A shipper with its own clock, in milliseconds.
struct Play {
    shipper: Shipper,
    base: Instant,
    ms: u64,
}

impl Play {
    /// Streaming in round 1 from `at`, with a first read asked for.
    fn streaming(lane: Lane, at: u64, head: u64) -> (Play, Read) {
        let key = LaneKey { source: RegionId(1), target: RegionId(2), shard: ShardId(0), lane };
        let head = Head { lsn: Lsn(head), closed: Hlc(0), ..Head::default() };
        let mut play = Play { shipper: Shipper::new(key, topology(), head, WINDOW), base: origin(), ms: 0 };
        play.step(Input::Opened);
        let out = play.step(Input::Message(ToSource::Position { round: 1, lsn: Lsn(at) }));
        assert_eq!(out.acknowledged, Some(Lsn(at)));
        (play, out.read.unwrap())
    }

    fn step(&mut self, input: Input) -> Outbox {
        let mut out = Outbox::default();
        self.shipper.step(self.base + Duration::from_millis(self.ms), input, &mut out);
        self.shipper.validate();
        out
    }

    fn standing(&self) -> Standing {
        self.shipper.standing(self.base + Duration::from_millis(self.ms))
    }

    fn tail(&mut self, entries: Vec<TailEntry>, reached: u64, at_head: bool) -> Outbox {
        let closed = Hlc::from_millis(reached);
        self.step(Input::Tail(Ok(Tail { entries, reached: Lsn(reached), at_head, closed, tenured: true })))
    }

    fn head(&mut self, lsn: u64) -> Outbox {
        self.step(Input::Head(Head { lsn: Lsn(lsn), closed: Hlc(0), ..Head::default() }))
    }

    fn encoded(&mut self, wire_bytes: usize) -> Outbox {
        self.step(Input::Encoded { round: 1, wire_bytes })
    }
}

#[test]
fn a_sync_entry_is_read_and_shipped_at_once_even_with_frames_in_flight() {
    let (mut play, read) = Play::streaming(Lane::Sync, 10, 10);
    assert_eq!(read.after, Lsn(10));
    assert!(play.tail(vec![], 10, true).ship.is_none());
    for lsn in 11..15 {
        assert!(play.head(lsn).read.is_some());
        let plan = play.tail(vec![entry(lsn, SYNC, 100)], lsn, true).ship.unwrap();
        assert_eq!((plan.header.previous, plan.header.last), (Lsn(lsn - 1), Lsn(lsn)));
        play.encoded(90);
    }
    assert_eq!(play.shipper.in_flight_bytes(), 4 * 90);
    let out = play.step(Input::Message(ToSource::Ack { lsn: Lsn(13) }));
    assert_eq!(out.acknowledged, Some(Lsn(13)));
    assert_eq!(play.shipper.in_flight_bytes(), 90);
}

#[test]
fn an_async_lane_ships_at_once_when_idle_and_gathers_for_two_milliseconds_when_busy() {
    let (mut play, _) = Play::streaming(Lane::Async, 10, 10);
    play.tail(vec![], 10, true);
    play.ms = 100;
    assert!(play.head(11).read.is_some(), "idle: at once");
    assert!(play.tail(vec![entry(11, ASYNC, 10)], 11, true).ship.is_some());
    play.encoded(50);
    assert!(play.head(12).read.is_none(), "busy: gathers");
    play.ms = 102;
    assert!(play.step(Input::Timer).read.is_some());
}

#[test]
fn a_lane_carries_only_its_own() {
    let (mut play, _) = Play::streaming(Lane::Async, 0, 3);
    let out = play.tail(vec![entry(1, SYNC, 10), entry(2, ASYNC, 10), entry(3, SYNC, 10)], 3, true);
    let plan = out.ship.unwrap();
    assert_eq!(plan.entries.iter().map(|(lsn, _)| lsn.0).collect::<Vec<_>>(), [2]);
    assert_eq!(plan.header.last, Lsn(3), "what is not its own is passed on the way");
}

#[test]
fn a_probe_is_echoed_only_by_a_read_that_was_asked_for_after_it_con_3() {
    let (mut play, _) = Play::streaming(Lane::Sync, 10, 10);
    // The first read is out when the probe comes: its answer proves nothing about the probe's moment.
    play.step(Input::Message(ToSource::Probe { ms: 500 }));
    let out = play.tail(vec![], 10, true);
    assert!(out.ship.is_none());
    assert!(out.read.is_some(), "so it reads again");
    let plan = play.tail(vec![], 10, true).ship.unwrap();
    assert_eq!((plan.header.previous, plan.header.last, plan.header.echo.probe), (Lsn(10), Lsn(10), 500));
    assert!(play.encoded(52).ship.is_none(), "one heartbeat per probe");
}

#[test]
fn a_frame_that_does_not_reach_the_end_echoes_nothing_con_3() {
    let (mut play, _) = Play::streaming(Lane::Sync, 0, 100);
    play.step(Input::Message(ToSource::Probe { ms: 500 }));
    let read = play.tail(vec![], 1, false).read.unwrap();
    assert_eq!(read.after, Lsn(1));
    let more = (2..8).map(|lsn| entry(lsn, SYNC, 100_000)).collect();
    let plan = play.tail(more, 7, true).ship.unwrap();
    assert!(plan.header.last < Lsn(7), "closed at a quarter of the window");
    assert_eq!(plan.header.echo.probe, 0);
    assert_eq!(plan.header.closed, Hlc::from_millis(plan.header.last.0), "and promises only what holds there");
}

#[test]
fn a_full_window_holds_frames_back_until_an_acknowledgement() {
    let (mut play, _) = Play::streaming(Lane::Async, 0, 100);
    let mut shipped = 0;
    let mut lsn = 0;
    for _ in 0..100 {
        lsn += 1;
        let out = play.tail(vec![entry(lsn, ASYNC, 200_000)], lsn, false);
        shipped += u64::from(out.ship.is_some());
        shipped += u64::from(play.encoded(150_000).ship.is_some());
        if out.read.is_none() {
            break;
        }
    }
    assert!(play.shipper.is_throttled());
    assert!(play.shipper.in_flight_bytes() <= WINDOW);
    assert!(shipped >= 3 && lsn < 20, "it stops reading too: {lsn} read");
    let out = play.step(Input::Message(ToSource::Ack { lsn: play.shipper.status().sent }));
    assert!(out.ship.is_some());
}

#[test]
fn a_lane_with_nothing_to_carry_moves_every_1024_positions() {
    let (mut play, _) = Play::streaming(Lane::Sync, 0, 0);
    play.tail(vec![], 0, true);
    for head in [1, 500, SKIP_LSNS - 1] {
        play.ms += 10;
        assert!(play.head(head).read.is_some());
        assert!(play.tail(vec![], head, true).ship.is_none());
    }
    play.ms += 10;
    play.head(SKIP_LSNS);
    let plan = play.tail(vec![], SKIP_LSNS, true).ship.unwrap();
    assert_eq!((plan.header.previous, plan.header.last), (Lsn(0), Lsn(SKIP_LSNS)));
    assert!(plan.entries.is_empty());
}

#[test]
fn a_lane_with_nothing_to_carry_moves_when_many_bytes_of_others_have_passed() {
    let (mut play, _) = Play::streaming(Lane::Sync, 0, 0);
    let large = SKIP_BYTES / 4;
    play.tail(vec![], 0, true);
    play.head(3);
    assert!(play.tail((1..=3).map(|lsn| entry(lsn, ASYNC, large)).collect(), 3, true).ship.is_none());
    play.ms += 10;
    play.head(4);
    let plan = play.tail(vec![entry(4, ASYNC, large)], 4, true).ship.unwrap();
    assert_eq!((plan.header.previous, plan.header.last), (Lsn(0), Lsn(4)));
    assert!(plan.entries.is_empty());
}

#[test]
fn a_new_round_begins_where_the_target_stands() {
    let (mut play, _) = Play::streaming(Lane::Sync, 10, 20);
    let plan = play.tail(vec![entry(11, SYNC, 10), entry(20, SYNC, 10)], 20, true).ship.unwrap();
    assert_eq!(plan.header.last, Lsn(20));
    let out = play.step(Input::Message(ToSource::Position { round: 2, lsn: Lsn(10) }));
    assert_eq!(out.read.unwrap().after, Lsn(10));
    play.encoded(99);
    assert_eq!(play.shipper.in_flight_bytes(), 0, "the old round's frame counts for nothing");
    let plan = play.tail(vec![entry(11, SYNC, 10), entry(20, SYNC, 10)], 20, true).ship.unwrap();
    assert_eq!((plan.round, plan.header.previous), (2, Lsn(10)));
}

#[test]
fn a_lane_that_stopped_asks_again_after_its_rest() {
    let (mut play, _) = Play::streaming(Lane::Sync, 10, 20);
    play.step(Input::Message(ToSource::Stop(Stop::ClockSkew { ahead_ms: 900 })));
    let Standing::Resting(again) = play.standing() else { panic!("{:?}", play.standing()) };
    assert_eq!(play.shipper.standing(again), Standing::Wanted);
    play.step(Input::Lost { reason: "not reached".to_owned() });
    assert_eq!(play.shipper.status().state, LaneState::ClockSkew { ahead_ms: 900 }, "still the reason");
    assert_eq!(play.shipper.standing(again), Standing::Wanted);
    play.step(Input::Opened);
    let out = play.step(Input::Message(ToSource::Position { round: 1, lsn: Lsn(10) }));
    assert_eq!(out.read.unwrap().after, Lsn(10), "it goes on where the target stands");
}

#[test]
fn a_repair_that_ends_wakes_a_lane_that_was_kept_out_and_no_other() {
    let stopped = |stop| {
        let (mut play, _) = Play::streaming(Lane::Sync, 10, 20);
        play.step(Input::Message(ToSource::Stop(stop)));
        play.step(Input::Mended);
        play.standing()
    };
    assert_eq!(stopped(Stop::Fenced), Standing::Wanted);
    assert_eq!(stopped(Stop::Diverged { detail: "x".to_owned() }), Standing::Wanted);
    assert!(matches!(stopped(Stop::ClockSkew { ahead_ms: 900 }), Standing::Resting(_)));

    // It is the same stop that it asks again after, and the next one rests as long as any.
    let (mut play, _) = Play::streaming(Lane::Sync, 10, 20);
    play.step(Input::Mended);
    assert_eq!(play.shipper.status().state, LaneState::Streaming, "a lane that streams goes on");
    play.step(Input::Message(ToSource::Stop(Stop::Fenced)));
    assert!(matches!(play.standing(), Standing::Resting(_)), "what ended before it stopped is no news");
    play.step(Input::Mended);
    assert_eq!(play.shipper.status().state, LaneState::Fenced);
    play.step(Input::Opened);
    let out = play.step(Input::Message(ToSource::Position { round: 1, lsn: Lsn(10) }));
    assert_eq!(out.read.unwrap().after, Lsn(10), "it goes on where the target stands");

    // Where it never comes back, it doesn't.
    let key = LaneKey { source: RegionId(1), target: RegionId(2), shard: ShardId(0), lane: Lane::Sync };
    let mut ahead = Play {
        shipper: Shipper::new(key, topology(), Head { lsn: Lsn(20), closed: Hlc(0), ..Head::default() }, WINDOW),
        base: origin(),
        ms: 0,
    };
    ahead.step(Input::Opened);
    ahead.step(Input::Message(ToSource::Position { round: 1, lsn: Lsn(21) }));
    ahead.step(Input::Mended);
    assert_eq!(ahead.standing(), Standing::Over);
}

#[test]
fn what_cannot_go_on_stops_with_its_reason() {
    let (mut behind, _) = Play::streaming(Lane::Sync, 10, 20);
    let out = behind.step(Input::Tail(Err(TailError::Trimmed { oldest: Lsn(15) })));
    assert!(out.close.is_some());
    let state = LaneState::BehindLog { watermark: Lsn(10), oldest: Lsn(15) };
    assert_eq!(behind.shipper.status().state, state);
    assert!(matches!(behind.standing(), Standing::Resting(_)));
    behind.step(Input::Lost { reason: "closed".to_owned() });
    assert_eq!(behind.shipper.status().state, state, "the end of the stream does not hide why");

    let key = LaneKey { source: RegionId(1), target: RegionId(2), shard: ShardId(0), lane: Lane::Sync };
    let head = Head { lsn: Lsn(20), closed: Hlc(0), ..Head::default() };
    let mut ahead = Play { shipper: Shipper::new(key, topology(), head, WINDOW), base: origin(), ms: 0 };
    ahead.step(Input::Opened);
    ahead.step(Input::Message(ToSource::Position { round: 1, lsn: Lsn(21) }));
    assert!(matches!(ahead.shipper.status().state, LaneState::Diverged { .. }), "another log than it followed");
    assert_eq!(ahead.standing(), Standing::Over);

    // What the target finds it can mend: a replica that differs is repaired, a clock is set.
    for stop in [Stop::Diverged { detail: "x".to_owned() }, Stop::Fenced, Stop::ClockSkew { ahead_ms: 900 }] {
        let (mut play, _) = Play::streaming(Lane::Sync, 10, 20);
        assert!(play.step(Input::Message(ToSource::Stop(stop))).close.is_some());
        assert!(matches!(play.standing(), Standing::Resting(_)));
    }
}

#[test]
fn a_peer_that_acknowledges_what_was_not_sent_is_cut_off() {
    let (mut play, _) = Play::streaming(Lane::Sync, 10, 20);
    let out = play.step(Input::Message(ToSource::Ack { lsn: Lsn(11) }));
    assert!(out.close.unwrap().contains("broke the protocol"));
    assert_eq!(out.acknowledged, None);
}

#[test]
fn lag_is_counted_from_unshipped_to_unapplied_to_nothing() {
    let (mut play, _) = Play::streaming(Lane::Sync, 0, 0);
    play.tail(vec![], 0, true);
    let size = entry(1, SYNC, 100).entry.len() as u64;
    let lag = |play: &mut Play, total: u64| {
        let now = play.base + Duration::from_millis(play.ms);
        let lags = play.shipper.lags(now, 50, &|_| (total, total * size));
        assert_eq!(lags.len(), 1, "of this lane's buckets only");
        lags[0].clone()
    };
    assert_eq!(lag(&mut play, 7).unshipped_operations, 0, "seven of before are there");
    play.head(2);
    play.ms = 30;
    let unshipped = lag(&mut play, 9);
    assert_eq!((unshipped.unshipped_operations, unshipped.unshipped_bytes), (2, 2 * size));
    assert_eq!(unshipped.lag_ms, 30);
    play.tail(vec![entry(1, SYNC, 100), entry(2, SYNC, 100)], 2, true);
    let unapplied = lag(&mut play, 9);
    assert_eq!((unapplied.unshipped_operations, unapplied.unapplied_operations), (0, 2));
    assert_eq!((unapplied.unapplied_bytes, unapplied.lag_ms), (2 * size, 49), "written at 1, now it is 50");
    play.encoded(10);
    play.step(Input::Lost { reason: "cut".to_owned() });
    let lost = lag(&mut play, 9);
    assert_eq!((lost.unshipped_operations, lost.unapplied_operations, lost.lag_ms), (2, 0, 49));
    play.step(Input::Opened);
    play.step(Input::Message(ToSource::Position { round: 1, lsn: Lsn(2) }));
    play.tail(vec![], 2, true);
    let caught_up = lag(&mut play, 9);
    assert_eq!((caught_up.unshipped_operations, caught_up.unapplied_operations, caught_up.lag_ms), (0, 0, 0));
}

#[test]
fn lag_is_right_when_the_source_counts_only_since_its_restart() {
    let (mut play, _) = Play::streaming(Lane::Sync, 0, 3);
    let lag =
        |play: &mut Play, total: u64| play.shipper.lags(play.base, 50, &|_| (total, total))[0].unshipped_operations;
    assert_eq!(lag(&mut play, 0), 3, "at most one per position, while it is not known better");
    play.tail((1..4).map(|lsn| entry(lsn, SYNC, 10)).collect(), 3, true);
    assert_eq!(lag(&mut play, 0), 0, "three of before the restart are shipped");
    play.encoded(10);
    play.head(5);
    assert_eq!(lag(&mut play, 2), 2);
}

#[test]
fn the_target_is_told_what_it_lacks_whenever_that_is_news() {
    let (mut play, _) = Play::streaming(Lane::Sync, 0, 0);
    play.tail(vec![], 0, true);
    let size = entry(1, SYNC, 100).entry.len() as u64;
    let said = |play: &mut Play, total: u64| {
        let now = play.base + Duration::from_millis(play.ms);
        play.shipper.exposures(now, 50, &|_| (total, total * size))
    };
    let key = || KeyStart::of(b"k");
    let lack = |exposure, oldest_key| vec![Lack { bucket: SYNC, exposure, oldest_key }];
    let nothing = Exposure { head: Lsn(0), ..Exposure::default() };
    assert_eq!(said(&mut play, 7), lack(nothing, None), "seven of before are there");
    assert_eq!(said(&mut play, 7), [], "it knows");
    play.head(2);
    play.ms = 30;
    let lacks = Exposure { head: Lsn(2), operations: 2, bytes: 2 * size, oldest_ms: 30 };
    assert_eq!(said(&mut play, 9), lack(lacks, None), "nothing of it was read yet");
    play.tail(vec![entry(1, SYNC, 100), entry(2, SYNC, 100)], 2, true);
    play.encoded(10);
    assert_eq!(said(&mut play, 9), lack(Exposure { oldest_ms: 49, ..lacks }, key()), "sent is not yet there");
    play.step(Input::Message(ToSource::Ack { lsn: Lsn(2) }));
    assert_eq!(said(&mut play, 9), lack(Exposure { head: Lsn(2), ..Exposure::default() }, None));
    assert_eq!(said(&mut play, 9), []);
    play.step(Input::Lost { reason: "cut".to_owned() });
    assert_eq!(said(&mut play, 11), [], "nobody listens");
    play.step(Input::Opened);
    play.step(Input::Message(ToSource::Position { round: 1, lsn: Lsn(2) }));
    assert_eq!(said(&mut play, 9).len(), 1, "a new stream begins anew");
}

/// More than one message tells, and all of them lagging: none is passed over for those before it.
#[test]
fn every_lagging_bucket_is_spoken_of_in_its_turn() {
    let (mut play, _) = Play::streaming(Lane::Async, 0, 0);
    let mut topology = (*topology()).clone();
    let bucket = Arc::clone(&topology.buckets[&ASYNC]);
    let lagging = 100..100 + 2 * u32::try_from(EXPOSED_MAX).unwrap();
    topology.buckets =
        lagging.clone().map(|id| (BucketId(id), Arc::new(Bucket { id: BucketId(id), ..(*bucket).clone() }))).collect();
    play.step(Input::Topology(Arc::new(topology)));
    play.tail(vec![], 0, true);
    play.head(1);
    let mut writes = 0;
    let mut tick = || {
        writes += 1;
        let said = play.shipper.exposures(play.base, 50, &|_| (writes, writes));
        assert!(said.len() <= EXPOSED_MAX);
        said.into_iter().map(|lack| lack.bucket.0).collect::<Vec<_>>()
    };
    let (first, second, third) = (tick(), tick(), tick());
    assert_eq!([&first[..], &second[..]].concat(), lagging.collect::<Vec<_>>());
    assert_eq!(third, first, "and again from the first");
}

#[test]
fn a_seal_that_passes_by_moves_a_lane_at_once_and_only_once() {
    let (mut play, _) = Play::streaming(Lane::Sync, 10, 12);
    let TailEntry { lsn, entry, note } = entry(11, ASYNC, 10);
    let header = Header { kind: Kind::Seal, ..Header::decode(&entry).unwrap() };
    let seal = header.encode(&Body::Seal { next: Epoch(2), after: Default::default() });
    let out = play.tail(vec![TailEntry { lsn, entry: seal, note }], 12, true);
    let plan = out.ship.unwrap();
    assert!(plan.entries.is_empty() && plan.header.last == Lsn(12), "{plan:?}");
    let out = play.encoded(60);
    assert!(out.ship.is_none(), "that was it");
    play.head(13);
    let out = play.tail(vec![self::entry(13, ASYNC, 10)], 13, true);
    assert!(out.ship.is_none(), "of what else passes by nothing is said");
}
