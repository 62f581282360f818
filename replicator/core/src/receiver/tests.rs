use super::*;

#[expect(clippy::disallowed_methods, reason = "an origin for test time; its value never matters")]
fn origin() -> Instant {
    Instant::now()
}

fn receiver() -> Receiver {
    let mut out = Outbox::default();
    let receiver = Receiver::new(RegionId(1), ShardId(0), Lane::Sync, 500, &mut out);
    assert!(out.ask);
    receiver
}

fn step(receiver: &mut Receiver, input: Input) -> Outbox {
    let mut out = Outbox::default();
    receiver.step(origin(), input, &mut out);
    receiver.validate();
    out
}

fn streaming(at: u64) -> Receiver {
    let mut receiver = receiver();
    let out = step(&mut receiver, Input::Watermark(Ok(Lsn(at))));
    assert_eq!(out.send, [ToSource::Position { round: 1, lsn: Lsn(at) }]);
    receiver
}

fn header(previous: u64, last: u64) -> FrameHeader {
    FrameHeader {
        source: RegionId(1),
        shard: ShardId(0),
        lane: Lane::Sync,
        previous: Lsn(previous),
        last: Lsn(last),
        closed: Hlc::from_millis(1_000),
        echo: Echo::default(),
        raw_length: 0,
    }
}

fn echo(probe: u64) -> Echo {
    Echo { probe, tenured: true, index: 0 }
}

fn frame(round: u32, header: FrameHeader) -> Input {
    Input::Frame { round, header, frame: Bytes::new(), wall: Hlc::from_millis(1_000) }
}

#[test]
fn an_acknowledgement_follows_durable_application_and_is_cumulative() {
    let mut receiver = streaming(10);
    let first = step(&mut receiver, frame(1, header(10, 20)));
    let second = step(&mut receiver, frame(1, header(20, 30)));
    assert!(first.send.is_empty() && second.send.is_empty(), "received is not applied");
    let later = step(&mut receiver, Input::Applied(second.apply[0].0, Ok(Lsn(30))));
    assert!(later.send.is_empty(), "the one before is still out");
    let all = step(&mut receiver, Input::Applied(first.apply[0].0, Ok(Lsn(20))));
    assert_eq!(all.send, [ToSource::Ack { lsn: Lsn(30) }]);
}

#[test]
fn an_older_frame_is_acknowledged_again_and_a_gap_starts_a_new_round_ord_1() {
    let mut receiver = streaming(10);
    let old = step(&mut receiver, frame(1, header(5, 10)));
    assert_eq!(old.send, [ToSource::Ack { lsn: Lsn(10) }]);
    let gap = step(&mut receiver, frame(1, header(12, 20)));
    assert!(gap.ask && gap.apply.is_empty());
    let again = step(&mut receiver, Input::Watermark(Ok(Lsn(10))));
    assert_eq!(again.send, [ToSource::Position { round: 2, lsn: Lsn(10) }]);
    let late = step(&mut receiver, frame(1, header(10, 20)));
    assert!(late.apply.is_empty(), "a frame of the old round is not mistaken for a new one");
    assert_eq!(step(&mut receiver, frame(2, header(10, 20))).apply.len(), 1);
}

#[test]
fn a_failed_frame_waits_for_the_others_before_asking_where_it_stands() {
    let mut receiver = streaming(0);
    let tickets: Vec<_> = (0..3).map(|at| step(&mut receiver, frame(1, header(at, at + 1))).apply[0].0).collect();
    let failed = Err(SinkError::Rewind { watermark: Lsn(0) });
    assert!(!step(&mut receiver, Input::Applied(tickets[0], failed.clone())).ask);
    assert!(!step(&mut receiver, Input::Applied(tickets[1], failed.clone())).ask);
    assert!(step(&mut receiver, Input::Applied(tickets[2], failed)).ask);
}

#[test]
fn a_group_that_is_unavailable_is_asked_again_after_a_rest() {
    let mut receiver = receiver();
    let now = origin();
    let mut out = Outbox::default();
    receiver.step(now, Input::Watermark(Err(SinkError::Unavailable("no quorum".to_owned()))), &mut out);
    assert!(out.send.is_empty() && !out.ask);
    let again = receiver.deadline().unwrap();
    assert!(again > now);
    receiver.step(again, Input::Timer, &mut out);
    assert!(out.ask);
}

#[test]
fn a_probe_is_answered_only_when_everything_before_the_echo_is_applied_con_3() {
    let mut receiver = streaming(10);
    let out = step(&mut receiver, Input::Tick { ms: 100, probed: true });
    assert_eq!(out.send, [ToSource::Probe { ms: 100 }]);
    let applying = step(&mut receiver, frame(1, header(10, 20)));
    let heartbeat = step(&mut receiver, frame(1, FrameHeader { echo: echo(100), ..header(20, 20) }));
    assert_eq!(heartbeat.complete, None, "20 is not applied yet");
    assert!(heartbeat.apply.is_empty(), "heartbeats are never proposed");
    let applied = step(&mut receiver, Input::Applied(applying.apply[0].0, Ok(Lsn(20))));
    assert_eq!(applied.complete, Some(Complete { echo: echo(100), last: Lsn(20) }));
}

#[test]
fn nobody_is_asked_for_freshness_that_no_bucket_needs() {
    let mut receiver = streaming(10);
    assert!(step(&mut receiver, Input::Tick { ms: 100, probed: false }).send.is_empty());
}

#[test]
fn lies_are_refused_with_a_reason() {
    let lies = [
        frame(1, FrameHeader { source: RegionId(3), ..header(10, 20) }),
        frame(1, FrameHeader { shard: ShardId(4), ..header(10, 20) }),
        frame(1, FrameHeader { lane: Lane::Async, ..header(10, 20) }),
        frame(1, FrameHeader { echo: echo(7), ..header(10, 20) }),
        frame(2, header(10, 20)),
    ];
    for lie in lies {
        let mut receiver = streaming(10);
        let out = step(&mut receiver, lie);
        assert!(matches!(out.send.as_slice(), [ToSource::Stop(Stop::Refused { .. })]), "{out:?}");
        assert!(out.apply.is_empty() && receiver.is_stopped());
    }
}

#[test]
fn a_clock_that_runs_ahead_stops_the_lane_before_it_wins_a_conflict() {
    let mut receiver = streaming(10);
    let out = step(&mut receiver, frame(1, FrameHeader { closed: Hlc::from_millis(1_500), ..header(10, 20) }));
    assert_eq!(out.apply.len(), 1, "half a second is tolerated");
    let out = step(&mut receiver, frame(1, FrameHeader { closed: Hlc::from_millis(1_501), ..header(20, 30) }));
    assert_eq!(out.send, [ToSource::Stop(Stop::ClockSkew { ahead_ms: 501 })]);
    assert!(out.apply.is_empty());
}

#[test]
fn the_sink_decides_when_a_lane_stops() {
    let stops = [
        (SinkError::Diverged { detail: "b".to_owned() }, Stop::Diverged { detail: "b".to_owned() }),
        (SinkError::Fenced, Stop::Fenced),
        (SinkError::NotLeader { leader: None }, Stop::NotLeader { leader: None }),
    ];
    for (error, stop) in stops {
        let mut asked = receiver();
        let out = step(&mut asked, Input::Watermark(Err(error.clone())));
        assert_eq!(out.send, [ToSource::Stop(stop.clone())]);
        let mut applying = streaming(0);
        let ticket = step(&mut applying, frame(1, header(0, 1))).apply[0].0;
        let out = step(&mut applying, Input::Applied(ticket, Err(error)));
        assert_eq!(out.send, [ToSource::Stop(stop)]);
        assert!(applying.is_stopped());
    }
}

/// A lane in which nothing comes: no frame would tell.
#[test]
fn a_node_that_leads_no_more_says_so_and_who_does() {
    let mut receiver = streaming(0);
    let leader = Some(meridian_types::NodeId(7));
    let out = step(&mut receiver, Input::Deposed(SinkError::NotLeader { leader }));
    assert_eq!(out.send, [ToSource::Stop(Stop::NotLeader { leader })]);
    assert!(receiver.is_stopped());
}
