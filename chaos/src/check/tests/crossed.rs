//! A bucket that one region writes, then all of them, then one again.

use meridian_types::entry::Kind;
use meridian_types::{
    ClientId, Effect, Epoch, Lsn, Outcome, Policy, Read, ReadLevel, Refusal, RefusalKind, RegionId, Request, RequestId,
    SessionToken, ShardId, StalePolicy, Version, Write,
};

use super::story::{ASYNC, Story, asks, cas, entry, found, key, put, replica, v, version};
use super::{catches, found_by};
use crate::check::Evidence;
use crate::history::Told;
use crate::trace::{Copies, Entry, Fact, Verdict};

/// Epoch 1 has a primary, epoch 2 comes to have none at 110 ms, epoch 3 has one from 200 ms on.
fn crosses() -> Story {
    let known = |at_ms, epoch, policy| {
        let (replica, epoch, copies) = (replica(1), Epoch(epoch), Copies::Sync);
        (at_ms, Fact::PolicyKnown { replica, index: at_ms, bucket: ASYNC, epoch, policy, copies })
    };
    let words = [
        known(1, 1, Policy::ASYNC),
        known(100, 2, Policy::ASYNC),
        known(110, 2, Policy::ActiveActive),
        known(200, 3, Policy::ASYNC),
    ];
    words.into_iter().fold(Story::default(), |story, (at_ms, fact)| story.fact(at_ms, fact))
}

/// The entry of the `place`-th write of a story, by its client: ordered by a region at a position, which is its timestamp, too.
fn of(client: u32, place: u64, epoch: u64, Version { hlc, region }: Version) -> Entry {
    let request = RequestId { client: ClientId(u128::from(client) + 1), sequence: place };
    let (bucket, epoch, source_lsn) = (ASYNC, Epoch(epoch), Lsn(hlc.0));
    Entry { bucket, epoch, origin: region, source_lsn, hlc, request, ..entry(1) }
}

/// A region orders it at that time, and the others have it 5 ms later.
fn everywhere(story: Story, at_ms: u64, entry: Entry) -> Story {
    let later = |region: u16| if RegionId(region) == entry.origin { 0 } else { 5 };
    (1..=3).fold(story, |story, region| story.applied(at_ms + later(region), region, at_ms, entry))
}

/// Each operation was told the epoch of its time, and the last one this.
fn told(story: Story, epoch: u64) -> Evidence {
    let mut evidence = story.evidence();
    for operation in &mut evidence.operations {
        if let Told::Done(answer) = &mut operation.told {
            answer.epoch = Epoch(if operation.begun_us < 100_000 { 1 } else { 2 });
        }
    }
    if let Some(Told::Done(answer)) = evidence.operations.last_mut().map(|it| &mut it.told) {
        answer.epoch = Epoch(epoch);
    }
    evidence
}

/// Written by one region, then by two of them.
fn written() -> Story {
    let story = crosses().put(asks(0, 1, 10, 20, ASYNC), "k", "a", v(1));
    let story = everywhere(story, 15, of(0, 1, 1, v(1)));
    let story = story.put(asks(0, 1, 120, 130, ASYNC), "k", "b", v(5)).put(
        asks(1, 2, 121, 131, ASYNC),
        "k",
        "c",
        version(6, 2),
    );
    let story = everywhere(story, 125, of(0, 2, 2, v(5)));
    everywhere(story, 126, of(1, 3, 2, version(6, 2)))
}

#[test]
fn con_1_one_region_goes_on_with_the_newest_of_what_all_had_written() {
    let reads = |text: &str, version| {
        told(written().read(asks(2, 1, 210, 220, ASYNC), ReadLevel::Strong, "k", Some(found(text, version))), 3)
    };
    for checker in ["linear", "order", "crossed", "writer", "once"] {
        assert_eq!(found_by(checker, &reads("c", version(6, 2))), None);
    }
    catches("linear", &reads("b", v(5)), "once every region had written it up to epoch 2 and left");
    catches("order", &reads("b", v(5)), "went back behind what was certain");
    let replaces = |expected| {
        let (write, outcome) = (cas("k", Some(expected), "d"), Outcome::Written { version: v(9) });
        let story = written().wrote(asks(2, 1, 210, 220, ASYNC), write, outcome, v(9));
        told(everywhere(story, 215, of(2, 4, 3, v(9))), 3)
    };
    assert_eq!(found_by("linear", &replaces(version(6, 2))), None, "conditions go on");
    catches("linear", &replaces(v(5)), "left");
}

#[test]
fn con_1_what_left_no_trace_in_a_bucket_that_crossed_never_happened() {
    let lost = Told::Refused(Refusal::new(RefusalKind::Unavailable, "no answer").with_effect(Effect::Unknown));
    let story = written().write(asks(4, 1, 12, 14, ASYNC), put("k", "z"), lost);
    let read = |text: &str, at| {
        let who = asks(2, 1, 210, 220, ASYNC);
        told(story.clone().read(who, ReadLevel::Strong, "k", Some(found(text, at))), 3)
    };
    assert_eq!(found_by("linear", &read("c", version(6, 2))), None);
    catches("linear", &read("z", v(7)), "no order of the strong operations");
}

#[test]
fn con_1_one_region_counts_on_from_what_all_had_counted() {
    let count = |story: Story, (client, region): (u32, u16), at_ms, value, at| {
        let write = Write::Increment { key: key("n"), by: 2 };
        let outcome = Outcome::Count { version: at, value };
        story.wrote(asks(client, region, at_ms, at_ms + 10, ASYNC), write, outcome, at)
    };
    let counted = |last| {
        let story = count(crosses(), (0, 1), 10, 2, v(1));
        let story = everywhere(story, 15, of(0, 1, 1, v(1)));
        // Each region answers with what it knows.
        let story = count(count(story, (0, 1), 120, 4, v(5)), (1, 2), 120, 4, version(6, 2));
        let story = everywhere(everywhere(story, 125, of(0, 2, 2, v(5))), 126, of(1, 3, 2, version(6, 2)));
        told(everywhere(count(story, (0, 1), 210, last, v(9)), 215, of(0, 4, 3, v(9))), 3)
    };
    assert_eq!((found_by("counters", &counted(8)), found_by("linear", &counted(8))), (None, None));
    catches("counters", &counted(6), "by the order of versions it is 8");
    catches("linear", &counted(6), "and left 6");
}

#[test]
fn con_4_all_regions_have_what_was_before_when_another_kind_of_writes_begins() {
    let late = |at_ms, epoch, region| {
        let entry = of(3, 4, epoch, v(7));
        let story = written().applied(at_ms, 1, 7, entry).applied(at_ms + 5, 2, 7, entry);
        if region == 3 { story.applied(at_ms + 5, 3, 7, entry).evidence() } else { story.evidence() }
    };
    assert_eq!(found_by("crossed", &late(190, 2, 3)), None);
    catches("crossed", &late(190, 2, 2), "region 3 lacked what was before");
    catches("crossed", &late(197, 2, 3), "lacked what was before");
    catches("crossed", &late(201, 2, 3), "somebody went on under the one before");
    catches("crossed", &late(90, 1, 2), "lacked what was before");
    catches("crossed", &late(105, 2, 3), "somebody wrote under it before");
    let seal = Entry { kind: Kind::Seal, ..of(3, 4, 2, v(7)) };
    let sealed = written().applied(201, 1, 7, seal).applied(205, 2, 7, seal);
    assert_eq!(found_by("crossed", &sealed.evidence()), None, "with the seal the next one begins");
}

#[test]
fn con_1_nothing_that_needs_an_order_is_done_where_there_is_none() {
    let read = |epoch| {
        let who = asks(2, 1, 140, 150, ASYNC);
        told(written().read(who, ReadLevel::Strong, "k", Some(found("c", version(6, 2)))), epoch)
    };
    catches("crossed", &read(2), "under epoch 2, in which every region writes");
    let outcome = Outcome::Written { version: v(8) };
    let story = written().wrote(asks(3, 1, 140, 150, ASYNC), cas("k", Some(v(5)), "d"), outcome, v(8));
    catches("crossed", &everywhere(story, 145, of(3, 4, 2, v(8))).evidence(), "needs one order among all regions");
}

#[test]
fn fen_1_two_regions_order_only_where_all_of_them_do() {
    let story = |epoch, verdict| {
        let other = Entry { verdict, ..of(5, 5, epoch, version(11, 2)) };
        told(everywhere(everywhere(written(), 210, of(4, 4, 3, v(10))), 220, other), 2)
    };
    catches("writer", &story(3, Verdict::Took), "both ordered writes of bucket 2 under epoch 3");
    assert_eq!(found_by("writer", &story(3, Verdict::Void)), None);
    assert_eq!(found_by("writer", &told(written(), 2)), None);
}

#[test]
fn con_2_who_asks_for_an_order_where_there_is_none_is_rightly_sent_away() {
    let mut session = SessionToken::default();
    session.observe(ASYNC, ShardId(0), RegionId(1), Lsn(1));
    let read = |level| Request::Read {
        bucket: meridian_types::BucketName::new("async").unwrap(),
        read: Read::Get { key: key("k") },
        level,
        stale: StalePolicy::Wait,
        session: session.clone(),
        deadline_ms: 1000,
    };
    let refused = || Told::Refused(Refusal::new(RefusalKind::Invalid, "there are no strong reads"));
    let asked = |level| written().operation(asks(6, 1, 140, 141, ASYNC), read(level), refused()).evidence();
    assert_eq!(found_by("sessions", &asked(ReadLevel::Strong)), None);
    catches("sessions", &asked(ReadLevel::Session), "was sent away");
}

/// Found by seed 931346.
#[test]
fn a_strong_read_is_missed_only_in_a_bucket_that_serves_some() {
    let failed = |story: Story| {
        let unavailable = Told::Refused(Refusal::new(RefusalKind::Unavailable, "there is no lease"));
        let mut asked =
            story.asked(asks(2, 1, 180, 190, ASYNC), ReadLevel::Strong, Read::Get { key: key("k") }, unavailable);
        asked.healed_ms = Some(150);
        asked
    };
    catches("live", &failed(written()).evidence(), "no strong read in bucket 2 succeeded");
    let open = Fact::PolicyKnown {
        replica: replica(1),
        index: 300,
        bucket: ASYNC,
        epoch: Epoch(4),
        policy: Policy::ActiveActive,
        copies: Copies::Sync,
    };
    assert_eq!(found_by("live", &failed(written().fact(300, open)).evidence()), None);
}

#[test]
fn dur_2_what_waits_for_a_repair_is_a_copy_where_all_write_and_what_waits_for_their_epoch_is_none() {
    let story = |begun| {
        let begin = Entry { kind: Kind::Repair, ..of(9, 9, begun, version(119, 2)) };
        let write = of(0, 2, 2, v(5));
        let told = Fact::Acknowledged {
            replica: replica(1),
            origin: RegionId(1),
            bucket: ASYNC,
            shard: ShardId(0),
            epoch: Epoch(2),
            lsn: Lsn(5),
            request: write.request,
            regions: 2,
        };
        let story = crosses().applied(120, 2, 119, begin).applied(125, 1, 5, write);
        story.applied(130, 2, 120, Entry { verdict: Verdict::Parked, ..write }).fact(140, told).evidence()
    };
    assert_eq!(found_by("durable", &story(2)), None);
    catches("durable", &story(1), "as held by 2 regions; 1 had it");
}
