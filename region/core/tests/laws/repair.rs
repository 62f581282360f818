//! A repair makes the target what its source is, whatever both went through before, whatever arrives meanwhile, and however
//! often it is cut short; and it moves what differs, nothing else.

use std::collections::BTreeMap;

use meridian_region_core::repair::message::{Ask, Told};
use meridian_region_core::repair::source::{Opening, Source};
use meridian_region_core::repair::survey::{Claim, Survey};
use meridian_region_core::repair::{Action, Input, Target, Terms};
use meridian_region_core::{ControlResult, FrameResult, MemoryState, Mutations, Shard, removed_at};
use meridian_types::entry::{Body, Header, Kind, WriteBody};
use meridian_types::frame::{self, Frame};
use meridian_types::{
    BucketId, Effect, Epoch, Lane, Lsn, RefusalKind, RegionId, RepairMode, RepairStep, RequestId, Row, Write,
};
use proptest::prelude::*;

use crate::world::{MERGED, PLAIN, Replica, SHARD, id, key, put, value};

/// The other end of a repair: a view that stands still.
#[derive(Default)]
struct Peer {
    sessions: BTreeMap<u64, (MemoryState, Source)>,
    next: u64,
}

impl Peer {
    /// What it says, as the wire brings it; `None` when it refuses.
    fn answer(&mut self, source: &Replica, ask: &Ask) -> Option<Told> {
        let told = match Ask::decode(&ask.encode()).unwrap() {
            Ask::Survey { .. } => Told::Survey(Survey::of(&source.shard)),
            Ask::Reach { .. } => Told::Reach { trimmed_to: None },
            Ask::Removals { .. } => Told::Forgotten,
            Ask::Open { shard, bucket } => {
                self.next += 1;
                let view = source.state.clone();
                let Opening::Open(opened, pinned) = Source::open(&view, shard, bucket, self.next).unwrap() else {
                    return None;
                };
                self.sessions.insert(self.next, (view, opened));
                Told::Opened { session: self.next, pinned }
            }
            Ask::Hashes { session, after, differing } => {
                let (view, opened) = &self.sessions[&session];
                opened.hashes(view, &after, &differing).unwrap()
            }
            Ask::Rows { session, after, up_to, hashes } => {
                let (view, opened) = &self.sessions[&session];
                opened.rows(view, &after, up_to.as_deref(), &hashes).unwrap()
            }
            Ask::Close { .. } => Told::Closed,
            Ask::Floors | Ask::Sights { .. } | Ask::Settled { .. } => panic!("no region asks another for that"),
        };
        Some(Told::decode(&told.encode()).unwrap())
    }
}

pub(crate) fn propose(target: &mut Replica, bucket: BucketId, step: RepairStep) -> (Lsn, ControlResult) {
    let epoch = target.shard.epoch(bucket);
    let result = target.control(Kind::Repair, bucket, epoch, &Body::Repair(step));
    target.check_digests();
    (target.log.last().unwrap().0, result)
}

/// Repairs until the bucket is open again. `meanwhile` happens before every action, and says whether the target crashes
/// then. Gives back what the last attempt moved.
pub(crate) fn repair(
    target: &mut Replica,
    source: &mut Replica,
    (bucket, claim): (BucketId, Claim),
    meanwhile: &mut dyn FnMut(&mut Replica, &mut Replica) -> bool,
) -> u64 {
    let mut peer = Peer::default();
    let terms = Terms { shard: SHARD, bucket, source: source.region, claim };
    let mut attempt = Target::new(terms);
    let mut input = Input::Start;
    loop {
        let crashes = meanwhile(target, source);
        let action = attempt.step(&target.state, input).unwrap();
        if crashes {
            target.restart();
            if !target.shard.is_closed(bucket) {
                // It was cut off before anything happened, or right after everything had.
                assert!(matches!(action, Action::Done | Action::Propose(RepairStep::Begin { .. })));
            }
            attempt = Target::new(terms);
            input = Input::Start;
            continue;
        }
        input = match action {
            Action::Ask(ask) => Input::Told(peer.answer(source, &ask).expect("the source is fit")),
            Action::Propose(step) => {
                let (lsn, result) = propose(target, bucket, step);
                Input::Applied(lsn, result)
            }
            Action::Done => return attempt.progress().rows_moved,
            Action::Again { reason } => panic!("nothing stood in the way, but: {reason}"),
        };
    }
}

pub(crate) fn undisturbed(target: &mut Replica, source: &mut Replica, of: (BucketId, Claim)) -> u64 {
    repair(target, source, of, &mut |_, _| false)
}

/// The rows of a bucket, records and kept results, as they are stored.
fn rows(replica: &Replica, bucket: BucketId) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let of_bucket = |key: &[u8]| matches!(key[2], 2 | 4) && key[3..7] == bucket.0.to_be_bytes();
    replica.state.iter().filter(|(key, _)| of_bucket(key)).map(|(key, row)| (key.to_vec(), row.to_vec())).collect()
}

/// How many rows differ: in one and not in the other, or otherwise.
fn differing(a: &Replica, b: &Replica, bucket: BucketId) -> u64 {
    let (a, b) = (rows(a, bucket), rows(b, bucket));
    let one = a.iter().filter(|(key, row)| b.get(*key) != Some(row)).count();
    (one + b.keys().filter(|key| !a.contains_key(*key)).count()) as u64
}

fn demand_equal(target: &Replica, source: &Replica, bucket: BucketId) {
    target.check_digests();
    source.check_digests();
    assert_eq!(rows(target, bucket), rows(source, bucket));
    assert_eq!(target.shard.digest(bucket), source.shard.digest(bucket));
    assert_eq!(target.shard.epoch(bucket), source.shard.epoch(bucket));
    assert_eq!(target.shard.divergence(bucket), None);
    assert!(!target.shard.is_closed(bucket));
    for client in 1..4 {
        for sequence in 1..40 {
            let of = |replica: &Replica| replica.shard.answered(&replica.state, bucket, id(client, sequence)).unwrap();
            assert_eq!(of(target), of(source), "ONE-1: the same kept answer to {client}/{sequence}");
        }
    }
}

/// A lane that has missed what was purged goes on behind the survey, as the node lets it.
fn go_on_behind(target: &mut Replica, source: &Replica, survey: &Survey, lane: Lane) {
    assert_eq!(survey.missed_by(source.region, &target.shard).count(), 0, "everything skipped is here");
    let watermark = target.shard.watermark(source.region, lane);
    if watermark == survey.applied {
        return;
    }
    let skip = frame::encode(source.frame_header(lane, watermark, survey.applied), &[], &[]);
    assert!(matches!(target.receive(&skip).0, FrameResult::Applied { .. }));
}

/// What a client of the primary does.
#[derive(Clone, Debug)]
enum Step {
    Write(Write),
    Identified(u128, u64, Write),
    Expire,
    Sleep(u64),
}

const KEYS: [&str; 5] = ["a", "b", "ab", "n", "m"];

fn any_step() -> impl Strategy<Value = Step> {
    let k = || (0..KEYS.len()).prop_map(|at| key(KEYS[at]));
    let ttl = prop::option::of(1u64..20);
    let write = || {
        prop_oneof![
            (k(), "[a-z]{0,4}", ttl.clone()).prop_map(|(key, v, ttl_ms)| Write::Put { key, value: value(&v), ttl_ms }),
            k().prop_map(|key| Write::Delete { key }),
            (k(), -3i64..20).prop_map(|(key, by)| Write::Increment { key, by }),
        ]
    };
    prop_oneof![
        3 => write().prop_map(Step::Write),
        4 => (1u128..4, 1u64..12, write()).prop_map(|(client, sequence, write)| Step::Identified(client, sequence, write)),
        1 => Just(Step::Expire),
        1 => (1u64..15).prop_map(Step::Sleep),
    ]
}

fn any_steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(any_step(), 0..25)
}

fn perform(replica: &mut Replica, bucket: BucketId, step: Step) {
    replica.wall_ms += 1;
    let request = match &step {
        Step::Identified(client, sequence, _) => id(*client, *sequence),
        _ => RequestId::default(),
    };
    match step {
        Step::Write(write) | Step::Identified(_, _, write) if bucket == PLAIN => drop(replica.write(request, write)),
        // An increment of a value is refused before the log.
        Step::Write(write) | Step::Identified(_, _, write) => drop(replica.merge(request, &write)),
        Step::Expire => drop(replica.expire()),
        Step::Sleep(ms) => replica.wall_ms += ms,
    }
}

fn perform_all(replica: &mut Replica, bucket: BucketId, steps: Vec<Step>) {
    steps.into_iter().for_each(|step| perform(replica, bucket, step));
}

/// What happens between two actions of a repair.
#[derive(Clone, Debug)]
enum Event {
    Nothing,
    /// The source goes on.
    Source(Step),
    /// A frame arrives in the lane from the source.
    Ship(usize),
    /// The target's own leader still takes a write for a moment.
    Own(Step),
    Crash,
}

fn any_events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => Just(Event::Nothing),
        3 => any_step().prop_map(Event::Source),
        2 => (1usize..5).prop_map(Event::Ship),
        1 => any_step().prop_map(Event::Own),
        2 => Just(Event::Crash),
    ];
    prop::collection::vec(event, 0..40)
}

/// Lets the events happen, one between any two actions; `lane` is where the target can follow without a gap.
fn happen(events: Vec<Event>, bucket: BucketId, lane: Option<Lane>) -> impl FnMut(&mut Replica, &mut Replica) -> bool {
    let mut events = events.into_iter();
    move |target, source| {
        match events.next().unwrap_or(Event::Nothing) {
            Event::Nothing => {}
            Event::Source(step) => perform(source, bucket, step),
            Event::Ship(most) => {
                let Some(lane) = lane else { return false };
                let watermark = target.shard.watermark(source.region, lane);
                if let Some(frame) = source.frame_after(watermark, lane, most) {
                    let (result, _) = target.receive(&frame);
                    let taken = matches!(&result, FrameResult::Applied { diverged, .. } if diverged.is_empty());
                    assert!(taken || matches!(result, FrameResult::Diverged { .. }), "{result:?}");
                }
            }
            // Before the repair begins it would be a write like any other.
            Event::Own(step) if target.shard.is_closed(bucket) => perform(target, bucket, step),
            Event::Own(_) => {}
            Event::Crash => return true,
        }
        false
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// The log no longer reaches back: what the lane would have brought is moved, and the lane goes on.
    #[test]
    fn a_replica_that_was_away_for_too_long_becomes_its_primary_and_follows_again(
        before in any_steps(), missed in any_steps(), events in any_events(), after in any_steps()
    ) {
        let (mut us, mut eu) = (Replica::new(1), Replica::new(2));
        perform_all(&mut us, PLAIN, before);
        eu.follow(&us, Lane::Sync, 7);
        perform_all(&mut us, PLAIN, missed);
        let survey = Survey::of(&us.shard);
        repair(&mut eu, &mut us, (PLAIN, Claim::Primary), &mut happen(events, PLAIN, None));
        go_on_behind(&mut eu, &us, &survey, Lane::Sync);
        eu.follow(&us, Lane::Sync, 7);
        demand_equal(&eu, &us, PLAIN);
        perform_all(&mut us, PLAIN, after);
        eu.follow(&us, Lane::Sync, 7);
        demand_equal(&eu, &us, PLAIN);
    }

    /// A wrong value got in; the lane that brought it goes on while it is repaired.
    #[test]
    fn a_diverged_replica_becomes_its_primary_while_its_lane_goes_on(
        before in any_steps(), wrong in 0usize..KEYS.len(), events in any_events(), after in any_steps()
    ) {
        let (mut us, mut eu) = (Replica::new(1), Replica::new(2));
        perform_all(&mut us, PLAIN, before);
        eu.follow(&us, Lane::Sync, 7);
        us.write(id(1, 30), put(KEYS[wrong], "right"));
        let mut frame = Frame::decode(&us.frame_after(eu.shard.watermark(us.region, Lane::Sync), Lane::Sync, 1).unwrap()).unwrap();
        let header = Header::decode(&frame.entries[0].1).unwrap();
        frame.entries[0].1 = header.encode(&Body::Write(WriteBody::Plain(put(KEYS[wrong], "wrong"))));
        eu.receive(&frame::encode(frame.header, &frame.notes, &frame.entries));
        prop_assert!(eu.shard.divergence(PLAIN).is_some());
        repair(&mut eu, &mut us, (PLAIN, Claim::Primary), &mut happen(events, PLAIN, Some(Lane::Sync)));
        eu.follow(&us, Lane::Sync, 7);
        perform_all(&mut us, PLAIN, after);
        eu.follow(&us, Lane::Sync, 7);
        demand_equal(&eu, &us, PLAIN);
    }

    /// A primary died with a tail nobody has; it comes back as a replica, and is primary again later.
    #[test]
    fn a_primary_that_comes_back_gives_up_its_tail_and_nobody_ever_sees_it(
        before in any_steps(), tail in any_steps(), successor in any_steps(), events in any_events(), later in any_steps()
    ) {
        let (mut us, mut eu, mut ap) = (Replica::new(1), Replica::new(2), Replica::new(3));
        perform_all(&mut us, PLAIN, before);
        eu.follow(&us, Lane::Sync, 7);
        ap.follow(&us, Lane::Sync, 7);
        perform_all(&mut us, PLAIN, tail);
        for replica in [&mut us, &mut eu, &mut ap] {
            replica.fence(PLAIN, 2);
        }
        eu.wall_ms = us.wall_ms;
        eu.take_over(PLAIN, 2);
        eu.epoch = Epoch(2);
        perform_all(&mut eu, PLAIN, successor);
        repair(&mut us, &mut eu, (PLAIN, Claim::Primary), &mut happen(events, PLAIN, Some(Lane::Sync)));
        us.follow(&eu, Lane::Sync, 7);
        demand_equal(&us, &eu, PLAIN);
        // Its turn again: what it writes now is history, and the tail is not.
        eu.seal(PLAIN, 3);
        us.follow(&eu, Lane::Sync, 7);
        us.epoch = Epoch(3);
        us.restart();
        perform_all(&mut us, PLAIN, later);
        ap.follow(&eu, Lane::Sync, 7);
        eu.follow(&us, Lane::Sync, 7);
        ap.follow(&us, Lane::Sync, 7);
        demand_equal(&eu, &us, PLAIN);
        demand_equal(&ap, &us, PLAIN);
    }

    /// Both saw what the other did not: nothing of either is lost, and nothing counts twice.
    #[test]
    fn active_active_replicas_that_missed_each_other_are_joined(
        shared in any_steps(), ours in any_steps(), theirs in any_steps(), events in any_events(), after in any_steps()
    ) {
        let (mut us, mut eu) = (Replica::new(1), Replica::new(2));
        perform_all(&mut us, MERGED, shared);
        eu.follow(&us, Lane::Async, 7);
        perform_all(&mut us, MERGED, ours);
        perform_all(&mut eu, MERGED, theirs);
        let (mut own, mut other) = (us.clone(), eu.clone());
        let survey = Survey::of(&us.shard);
        repair(&mut eu, &mut us, (MERGED, Claim::ActiveActive), &mut happen(events, MERGED, None));
        go_on_behind(&mut eu, &us, &survey, Lane::Async);
        eu.follow(&us, Lane::Async, 7);
        perform_all(&mut eu, MERGED, after);
        us.follow(&eu, Lane::Async, 7);
        demand_same_content(&eu, &us);
        // As if they had never been apart.
        own.follow(&other, Lane::Async, 7);
        other.follow(&own, Lane::Async, 7);
        prop_assert_eq!(own.shard.digest(MERGED).map(|it| it.hash), other.shard.digest(MERGED).map(|it| it.hash));
    }

    /// Bytes moved are proportional to what differs.
    #[test]
    fn no_more_rows_are_moved_than_differ(before in any_steps(), missed in any_steps(), gone in any_steps()) {
        let (mut us, mut eu) = (Replica::new(1), Replica::new(2));
        for n in 0..300 {
            us.write(RequestId::default(), put(&format!("many{n}"), "v"));
        }
        perform_all(&mut us, PLAIN, before);
        eu.follow(&us, Lane::Sync, 50);
        perform_all(&mut us, PLAIN, missed);
        let mut tail = eu.clone();
        tail.wall_ms = us.wall_ms;
        perform_all(&mut tail, PLAIN, gone);
        let differ = differing(&tail, &us, PLAIN);
        let moved = undisturbed(&mut tail, &mut us, (PLAIN, Claim::Primary));
        prop_assert!(moved <= differ, "{moved} rows moved, {differ} differ");
        prop_assert_eq!(rows(&tail, PLAIN), rows(&us, PLAIN));
    }
}

/// Equal in what counts: how many operations there were is not exact after a join, and a kept answer to an increment holds
/// the count as each replica saw it.
fn demand_same_content(a: &Replica, b: &Replica) {
    a.check_digests();
    b.check_digests();
    let (ours, theirs) = (a.shard.digest(MERGED), b.shard.digest(MERGED));
    let pair = ours.zip(theirs);
    assert!(pair.is_none_or(|(ours, theirs)| ours.agrees_with(theirs) == Some(true)), "CON-4: {pair:?}");
    assert_eq!((a.shard.divergence(MERGED), b.shard.divergence(MERGED)), (None, None));
    let (ours, theirs) = (rows(a, MERGED), rows(b, MERGED));
    let records = |rows: &BTreeMap<Vec<u8>, Vec<u8>>| rows.clone().into_iter().filter(|(key, _)| key[2] == 2).collect();
    let (ours_only, theirs_only): (Vec<_>, Vec<_>) = (records(&ours), records(&theirs));
    assert_eq!(ours_only, theirs_only);
    assert!(ours.keys().eq(theirs.keys()), "answers to the same requests are kept");
}

#[test]
fn what_the_lane_brought_meanwhile_is_not_moved_as_rows() {
    let (mut us, mut eu) = (Replica::new(1), Replica::new(2));
    for n in 0..40 {
        us.write(id(1, n + 1), Write::Increment { key: key(&format!("n{n}")), by: 1 });
    }
    eu.follow(&us, Lane::Sync, 99);
    // The tail of a primary that is then lost; what its successor makes of the same keys depends on what was there.
    for n in 0..3 {
        us.write(id(2, n + 1), Write::Increment { key: key(&format!("n{n}")), by: 100 });
    }
    eu.take_over(PLAIN, 2);
    eu.epoch = Epoch(2);
    let more = meridian_region_core::shard::RELEASED_MAX as u64 + 200;
    for n in 0..more {
        let name = format!("n{}", n % 400);
        eu.write(RequestId::default(), Write::Increment { key: key(&name), by: 7 });
    }
    us.follow(&eu, Lane::Sync, 99);
    assert!(us.shard.astray(PLAIN).is_some());
    let (mut steps, mut caught_up) = (0, false);
    let moved = repair(&mut us, &mut eu, (PLAIN, Claim::Primary), &mut |target, source| {
        if target.shard.is_closed(PLAIN) && !std::mem::replace(&mut caught_up, true) {
            target.follow(source, Lane::Sync, 4096);
        }
        steps += 1;
        // Cut short in the middle of it, once.
        steps == 5
    });
    demand_equal(&us, &eu, PLAIN);
    // Three values, and the kept answers of three requests that count no more.
    assert!((3..=6).contains(&moved), "{moved} rows were moved, of {}", rows(&us, PLAIN).len());
}

#[test]
fn a_bucket_that_is_repaired_takes_no_writes_and_gives_no_kept_answers() {
    let (mut us, mut eu) = (Replica::new(1), Replica::new(2));
    us.write(id(1, 1), put("k", "v"));
    eu.follow(&us, Lane::Sync, 9);
    propose(&mut eu, PLAIN, RepairStep::Begin { source: us.region });
    let refusal = eu.write(id(1, 2), put("k", "w")).outcome.unwrap_err();
    assert_eq!((refusal.kind, refusal.effect), (RefusalKind::Retry, Effect::None));
    assert_eq!(eu.shard.answered(&eu.state, PLAIN, id(1, 1)).unwrap(), None);
    let (own, header) = (eu.log.last().unwrap().0, Header::decode(&eu.log.last().unwrap().1).unwrap());
    assert!(!eu.shard.is_effective(own, &header), "and what it refused is never shipped");
    undisturbed(&mut eu, &mut us, (PLAIN, Claim::Primary));
    assert!(!eu.shard.is_effective(own, &header));
    assert!(eu.shard.answered(&eu.state, PLAIN, id(1, 1)).unwrap().is_some());
}

#[test]
fn rows_that_do_not_add_up_leave_the_bucket_closed_and_the_next_attempt_makes_it_right() {
    let (mut us, mut eu) = (Replica::new(1), Replica::new(2));
    us.write(id(1, 1), put("k", "v"));
    let (begun, _) = propose(&mut eu, PLAIN, RepairStep::Begin { source: us.region });
    let Opening::Open(source, pinned) = Source::open(&us.state, SHARD, PLAIN, 1).unwrap() else { panic!() };
    let Told::Hashes { hashes, .. } = source.hashes(&us.state, &[], &[0xff]).unwrap() else { panic!() };
    let Told::Rows { mut rows, .. } = source.rows(&us.state, &[], None, &hashes).unwrap() else { panic!() };
    let last = rows[0].value.len() - 1;
    let mut wrong = rows[0].value.to_vec();
    wrong[last] ^= 1;
    rows[0].value = wrong.into();
    let mode = RepairMode::Replace;
    propose(&mut eu, PLAIN, RepairStep::Rows { begun, mode, puts: rows, deletes: vec![] });
    let (_, ended) = propose(&mut eu, PLAIN, RepairStep::End { begun, mode, goal: pinned.goal.clone() });
    assert_eq!(ended.refused.unwrap().kind, RefusalKind::Conflict);
    assert!(eu.shard.is_closed(PLAIN));
    assert!(eu.shard.unfit_as_source(PLAIN).is_some(), "nobody is made equal to half a repair");
    undisturbed(&mut eu, &mut us, (PLAIN, Claim::Primary));
    demand_equal(&eu, &us, PLAIN);
    let (_, late) = propose(&mut eu, PLAIN, RepairStep::End { begun, mode, goal: pinned.goal });
    assert_eq!(late.refused.unwrap().kind, RefusalKind::Conflict, "a step of an attempt that is over");
}

#[test]
fn a_row_that_is_none_is_refused_with_all_that_came_with_it() {
    let mut eu = Replica::new(2);
    let (begun, _) = propose(&mut eu, PLAIN, RepairStep::Begin { source: RegionId(1) });
    let good = Row { key: bytes::Bytes::from_static(b"\x04toolong"), value: bytes::Bytes::new() };
    let bad = Row { key: bytes::Bytes::from_static(b"\x02k"), value: bytes::Bytes::from_static(b"no record") };
    for puts in [vec![bad.clone()], vec![good, bad]] {
        let step = RepairStep::Rows { begun, mode: RepairMode::Replace, puts, deletes: vec![] };
        assert_eq!(propose(&mut eu, PLAIN, step).1.refused.unwrap().kind, RefusalKind::Corrupt);
    }
    assert_eq!(rows(&eu, PLAIN).len(), 0);
}

#[test]
fn a_region_that_lost_part_of_its_log_is_not_told_that_it_has_it() {
    let (mut us, mut eu) = (Replica::new(1), Replica::new(2));
    us.write(id(1, 1), put("k", "v"));
    eu.follow(&us, Lane::Sync, 9);
    let mut reborn = Replica::new(1);
    let (begun, _) = propose(&mut reborn, PLAIN, RepairStep::Begin { source: eu.region });
    let Opening::Open(_, mut pinned) = Source::open(&eu.state, SHARD, PLAIN, 1).unwrap() else { panic!() };
    pinned.goal.digest.positions.raise(us.region, Lsn(100));
    let step = RepairStep::End { begun, mode: RepairMode::Replace, goal: pinned.goal };
    assert_eq!(propose(&mut reborn, PLAIN, step).1.refused.unwrap().kind, RefusalKind::Corrupt);
}

#[test]
fn what_waited_is_applied_some_at_a_time_and_the_bucket_opens_with_the_last_of_it() {
    let (mut us, mut eu) = (Replica::new(1), Replica::new(2));
    let mut unparked = 0;
    let mut filled = false;
    let terms = Terms { shard: SHARD, bucket: PLAIN, source: us.region, claim: Claim::Primary };
    let (mut peer, mut attempt, mut input) = (Peer::default(), Target::new(terms), Input::Start);
    loop {
        input = match attempt.step(&eu.state, input).unwrap() {
            Action::Ask(ask) => Input::Told(peer.answer(&us, &ask).unwrap()),
            Action::Propose(step) => {
                if matches!(step, RepairStep::End { .. }) && !std::mem::replace(&mut filled, true) {
                    for n in 0..2 * meridian_region_core::shard::RELEASED_MAX + 5 {
                        us.write(RequestId::default(), Write::Increment { key: key("n"), by: n as i64 });
                    }
                    eu.follow(&us, Lane::Sync, 500);
                    assert_eq!(eu.text(PLAIN, "n"), None, "closed");
                }
                unparked += usize::from(step == RepairStep::Unpark);
                let (lsn, result) = propose(&mut eu, PLAIN, step);
                Input::Applied(lsn, result)
            }
            Action::Done => break,
            Action::Again { reason } => panic!("{reason}"),
        };
    }
    assert_eq!(unparked, 3);
    demand_equal(&eu, &us, PLAIN);
}

#[test]
fn a_seal_with_more_behind_it_than_one_step_applies_closes_the_bucket_until_all_of_it_is() {
    let (mut us, mut eu, mut ap) = (Replica::new(1), Replica::new(2), Replica::new(3));
    us.write(id(1, 1), put("k", "old"));
    ap.follow(&us, Lane::Sync, 9);
    us.seal(PLAIN, 2);
    eu.follow(&us, Lane::Sync, 9);
    eu.epoch = Epoch(2);
    for n in 0..meridian_region_core::shard::PARKED_ENTRIES_MAX {
        eu.write(RequestId::default(), put("n", &n.to_string()));
    }
    // While it is repaired more may wait than otherwise.
    propose(&mut ap, PLAIN, RepairStep::Begin { source: us.region });
    ap.follow(&eu, Lane::Sync, 1000);
    let extra = eu.write(RequestId::default(), put("n", "last"));
    assert!(extra.outcome.is_ok());
    ap.follow(&eu, Lane::Sync, 1000);
    // The old primary's seal is not in this view.
    let mut past = Replica::new(1);
    past.write(id(1, 1), put("k", "old"));
    undisturbed(&mut ap, &mut past, (PLAIN, Claim::Primary));
    assert!(!ap.shard.is_closed(PLAIN), "nothing of the epoch in force waits");
    ap.follow(&us, Lane::Sync, 9);
    assert!(ap.shard.is_closed(PLAIN), "the seal is there, and too much waited for it");
    while propose(&mut ap, PLAIN, RepairStep::Unpark).1.more {}
    demand_equal(&ap, &eu, PLAIN);
}

#[test]
fn a_source_in_an_earlier_epoch_and_a_replica_that_lacks_something_are_refused_before_anything_is_closed() {
    let (mut us, mut eu, mut ap) = (Replica::new(1), Replica::new(2), Replica::new(3));
    us.write(id(1, 1), put("k", "1"));
    ap.follow(&us, Lane::Sync, 9);
    us.write(id(1, 2), put("k", "2"));
    eu.follow(&us, Lane::Sync, 9);
    let sighting = |replica: &Replica| Survey::of(&replica.shard).buckets[&PLAIN].clone();
    assert!(sighting(&ap).objection(&eu.shard, PLAIN, Claim::Replica).unwrap().contains("lacks"));
    assert_eq!(sighting(&eu).objection(&ap.shard, PLAIN, Claim::Replica), None);
    ap.seal(PLAIN, 2);
    assert!(sighting(&eu).objection(&ap.shard, PLAIN, Claim::Primary).unwrap().contains("epoch 1"));
}

/// It was lost as the primary, came back with what nobody else has, and is to be the primary again because its successor is lost.
#[test]
fn a_lost_primary_that_returns_with_a_tail_takes_from_a_replica_of_its_successor_what_that_has() {
    let (mut us, mut eu, mut ap) = (Replica::new(1), Replica::new(2), Replica::new(3));
    us.write(id(1, 1), put("k", "both"));
    eu.follow(&us, Lane::Sync, 9);
    ap.follow(&us, Lane::Sync, 9);
    us.write(id(1, 2), put("k", "tail"));
    eu.seal(PLAIN, 2);
    eu.epoch = Epoch(2);
    eu.write(id(2, 1), put("k", "since"));
    ap.follow(&eu, Lane::Sync, 9);
    let sighting = Survey::of(&ap.shard).buckets[&PLAIN].clone();
    assert_eq!(sighting.objection(&us.shard, PLAIN, Claim::Replica), None);
    undisturbed(&mut us, &mut ap, (PLAIN, Claim::Replica));
    demand_equal(&us, &ap, PLAIN);
}

#[test]
fn a_shard_cut_off_between_any_two_steps_loads_what_it_was() {
    let (mut us, mut eu) = (Replica::new(1), Replica::new(2));
    us.write(id(1, 1), put("k", "v"));
    undisturbed_but(&mut eu, &mut us, |shard, loaded| {
        assert_eq!(loaded.closed().collect::<Vec<_>>(), shard.closed().collect::<Vec<_>>());
        assert_eq!(loaded.digest(PLAIN), shard.digest(PLAIN));
    });
}

fn undisturbed_but(target: &mut Replica, source: &mut Replica, look: impl Fn(&Shard, &Shard)) {
    repair(target, source, (PLAIN, Claim::Primary), &mut |target, _| {
        let mut out = Mutations::new();
        target.shard.checkpoint(&mut out);
        assert!(out.is_empty(), "everything is in the state");
        look(&target.shard, &Shard::load(&target.state, target.region, SHARD).unwrap());
        false
    });
}

/// SWI-2: "never there" and "deleted" look alike unless somebody watched.
#[test]
fn swi_2_a_watched_key_remembers_where_it_was_removed_last_whoever_removed_it() {
    let (mut source, mut target) = (Replica::new(1), Replica::new(2));
    let removed = |of: &Replica, k: &str| removed_at(&of.state, SHARD, PLAIN, key(k).as_bytes()).unwrap();
    let keys = ["theirs", "skipped", "never"];
    let watch = RepairStep::Watch { keys: keys.iter().map(|k| key(k).as_bytes().clone()).collect() };
    for k in keys {
        source.write(id(7, 1), put(k, "v"));
    }
    target.follow(&source, Lane::Sync, 9);
    assert_eq!(removed(&target, "never"), None, "nobody watches");
    propose(&mut target, PLAIN, watch.clone());
    let begun = target.next_lsn();
    source.write(id(8, 1), Write::Delete { key: key("theirs") });
    source.write(id(8, 2), Write::Delete { key: key("other") });
    target.follow(&source, Lane::Sync, 9);
    target.restart();
    assert!(target.shard.is_watched(PLAIN));
    let at = removed(&target, "theirs").unwrap();
    assert!(at >= begun, "{at:?}");
    propose(&mut target, PLAIN, watch);
    let passed_over =
        RepairStep::PassedOver { removed: ["skipped", "other"].iter().map(|k| key(k).as_bytes().clone()).collect() };
    let (skipped, _) = propose(&mut target, PLAIN, passed_over);
    let told: Vec<_> = ["theirs", "skipped", "never", "other"].iter().map(|k| removed(&target, k)).collect();
    assert_eq!(told, [Some(at), Some(skipped), Some(Lsn(0)), None], "watching again forgets nothing");
    assert!(!propose(&mut target, PLAIN, RepairStep::Unwatch).1.more);
    target.restart();
    assert!(!target.shard.is_watched(PLAIN));
    assert_eq!(removed(&target, "theirs"), None);
}
