//! Primaries that are lost and replaced, copies that are too few, and what no other region has.

use meridian_types::entry::Kind;
use meridian_types::{
    Acks, BucketId, ClientId, Lane, Loss, Lsn, OnPartition, PlanId, Policy, Positions, ReadLevel, RegionId, RequestId,
    SalvageBundle, SalvageId, SalvageKey, ShardId,
};

use super::story::{ASYNC, CAPPED, DEGRADING, Story, asks, entry, found, lost_answer, put, replica, v, value, version};
use super::{catches, found_by};
use crate::check::Salvaged;
use crate::trace::{Copies, Entry, Fact, Fork, Replacing};

const ANYTHING: Loss = Loss { operations: 0, bytes: 0, unbounded: true };

fn of(bucket: BucketId, entry: Entry) -> Entry {
    Entry { bucket, ..entry }
}

fn step(at_ms: u64, story: Story, step: Replacing) -> Story {
    let (replica, from) = (replica(2), RegionId(1));
    story.fact(at_ms, Fact::ReplacementKnown { replica, plan: PlanId(9), bucket: ASYNC, from, step })
}

fn begun(agreed: Option<Loss>) -> Replacing {
    Replacing::Begun { agreed, automatic: false }
}

fn done(proven: bool, lost: Loss) -> Replacing {
    let cut = vec![(ShardId(0), Lsn(1))];
    Replacing::Done(Fork { to: RegionId(2), epoch: meridian_types::Epoch(2), proven, lost, cut })
}

/// Region 1 orders two writes of `k`; region 2, which has the first only, replaces it.
fn lost(agreed: Option<Loss>, end: Replacing) -> Story {
    let first = of(ASYNC, entry(1));
    let story = Story::default()
        .put(asks(0, 1, 0, 10, ASYNC), "k", "a", v(1))
        .put(asks(0, 1, 20, 30, ASYNC), "k", "b", v(2))
        .read(asks(1, 1, 40, 50, ASYNC), ReadLevel::Strong, "k", Some(found("b", v(2))))
        .applied(5, 1, 1, first)
        .applied(25, 1, 2, of(ASYNC, entry(2)))
        .applied(26, 2, 1, first);
    step(300, step(100, story, begun(agreed)), end)
        .read(asks(1, 2, 400, 410, ASYNC), ReadLevel::Strong, "k", Some(found("a", v(1))))
        .put(asks(0, 2, 420, 430, ASYNC), "k", "c", version(9, 2))
}

fn ends(story: Story, value: &str, at: meridian_types::Version) -> Story {
    let held = [("k", found(value, at))];
    story.ends(ASYNC, [&held, &held, &held])
}

fn keeps(story: Story, keys: &[(&str, &str)]) -> Story {
    keeps_in(story, 1, (1, 2), keys)
}

/// A region has that of its log between two positions in a bundle.
fn keeps_in(mut story: Story, region: u16, (cut, end): (u64, u64), keys: &[(&str, &str)]) -> Story {
    let (epoch, cut, end) = (meridian_types::Epoch(region.into()), Lsn(cut), Lsn(end));
    let id = SalvageId { bucket: ASYNC, shard: ShardId(0), epoch, cut, end };
    let kept = |(key, text): &(&str, &str)| SalvageKey {
        key: (*key).to_owned().into(),
        value: Some(value(text).into_bytes()),
        expires_at_ms: None,
        fate: None,
    };
    let bundle = SalvageBundle { id, whole: true, ..SalvageBundle::default() };
    let kept = Salvaged { region: RegionId(region), bundle, keys: keys.iter().map(kept).collect() };
    story.salvage.get_or_insert_default().push(kept);
    story
}

#[test]
fn what_a_failover_undid_with_consent_is_no_history_and_is_in_the_salvage() {
    let story = keeps(ends(lost(Some(ANYTHING), done(false, ANYTHING)), "c", version(9, 2)), &[("k", "b")]);
    let evidence = story.evidence();
    assert_eq!((evidence.undone.len(), evidence.forks.undone.len()), (2, 1));
    for checker in ["salvaged", "lost", "order", "linear", "chains", "fresh", "served", "once"] {
        assert_eq!(found_by(checker, &evidence), None, "{checker}");
    }
}

#[test]
fn without_a_failover_the_same_is_a_violation() {
    let story = ends(lost(None, Replacing::GivenUp), "c", version(9, 2));
    assert!(found_by("order", &story.evidence()).is_some());
}

#[test]
fn swi_2_an_undone_write_is_in_the_salvage_as_it_was() {
    let story = || ends(lost(Some(ANYTHING), done(false, ANYTHING)), "c", version(9, 2));
    catches("salvaged", &keeps(story(), &[("j", "b")]).evidence(), "is in no salvage");
    catches("salvaged", &keeps(story(), &[("k", "a")]).evidence(), "in no salvage as it was");
    assert_eq!(found_by("salvaged", &story().evidence()), None, "nobody looked");
}

#[test]
fn swi_2_no_more_is_lost_than_was_known_and_agreed_to() {
    let known = |operations| Loss { operations, bytes: 100, unbounded: false };
    let story = |agreed, end| keeps(ends(lost(agreed, end), "c", version(9, 2)), &[("k", "b")]).evidence();
    assert_eq!(found_by("salvaged", &story(Some(known(1)), done(false, known(1)))), None);
    catches("salvaged", &story(Some(known(1)), done(false, known(0))), "at most 0 operations");
    catches("salvaged", &story(None, done(false, ANYTHING)), "agreed to was nothing");
    catches("salvaged", &story(Some(known(1)), done(false, ANYTHING)), "agreed to was 1 operations");
    catches("salvaged", &story(None, done(true, Loss::default())), "was to lose nothing");
}

/// Nobody was told that the second write is done, but somebody has read it.
#[test]
fn con_1_a_failover_that_loses_nothing_undoes_nothing_that_a_strong_read_has_seen() {
    let story = |level, proven| {
        let first = of(ASYNC, entry(1));
        let story = Story::default()
            .put(asks(0, 1, 0, 10, ASYNC), "k", "a", v(1))
            .write(asks(0, 1, 20, 30, ASYNC), put("k", "b"), lost_answer())
            .read(asks(1, 1, 40, 50, ASYNC), level, "k", Some(found("b", v(2))))
            .applied(5, 1, 1, first)
            .applied(25, 1, 2, of(ASYNC, entry(2)))
            .applied(26, 2, 1, first);
        let lost = if proven { Loss::default() } else { ANYTHING };
        step(300, step(100, story, begun(Some(ANYTHING))), done(proven, lost)).evidence()
    };
    catches("salvaged", &story(ReadLevel::Strong, true), "what a strong read had seen");
    assert_eq!(found_by("salvaged", &story(ReadLevel::Eventual, true)), None);
    assert_eq!(found_by("salvaged", &story(ReadLevel::Strong, false)), None, "somebody agreed to that");
}

#[test]
fn ord_1_a_lane_passes_over_what_is_undone_and_nothing_before() {
    let story = |at_ms| {
        let frame = Fact::FrameApplied {
            replica: replica(2),
            shard: ShardId(0),
            source: RegionId(1),
            lane: Lane::Async,
            previous: Lsn(0),
            last: Lsn(2),
            lsn: Lsn(2),
        };
        keeps(ends(lost(Some(ANYTHING), done(false, ANYTHING)).fact(at_ms, frame), "c", version(9, 2)), &[("k", "b")])
    };
    assert_eq!(found_by("prefix", &story(350).evidence()), None);
    catches("prefix", &story(90).evidence(), "lacks the entry at 2: a gap");
}

#[test]
fn what_is_undone_stays_so() {
    let story = keeps(ends(lost(Some(ANYTHING), done(false, ANYTHING)), "b", v(2)), &[("k", "b")]);
    catches("salvaged", &story.evidence(), "that a failover undid");
}

/// Region 2 is lost before region 1 was made its replica, and region 3 takes what region 1 has.
#[test]
fn what_a_later_failover_took_up_again_is_in_no_salvage() {
    let taken = |positions: &[(RegionId, Lsn)]| {
        let repaired = Fact::Repaired {
            merged: false,
            replica: replica(3),
            shard: ShardId(0),
            bucket: ASYNC,
            lsn: Lsn(1),
            positions: positions.to_vec(),
        };
        let (plan, from) = (PlanId(10), RegionId(2));
        let next = |step| Fact::ReplacementKnown { replica: replica(3), plan, bucket: ASYNC, from, step };
        let fork = Fork {
            to: RegionId(3),
            epoch: meridian_types::Epoch(3),
            proven: false,
            lost: ANYTHING,
            cut: vec![(ShardId(0), Lsn(0))],
        };
        let story = lost(Some(ANYTHING), done(false, ANYTHING)).fact(500, next(begun(Some(ANYTHING))));
        let story = story.fact(510, repaired).fact(520, next(Replacing::Done(fork)));
        keeps(ends(story, "b", v(2)), &[]).evidence()
    };
    assert_eq!(found_by("salvaged", &taken(&[(RegionId(1), Lsn(2))])), None);
    catches("salvaged", &taken(&[(RegionId(1), Lsn(1))]), "is in no salvage");
}

/// Found by seeds 400104 and 400153: region 3 replaces region 1 with all that it had, and is lost before anybody has begun its epoch; region 2,
/// which has the first write only, replaces it.
#[test]
fn what_a_failover_left_behind_of_an_earlier_primarys_log_is_undone_as_well() {
    let next = |from, step| Fact::ReplacementKnown {
        replica: replica(2),
        plan: PlanId(8 + u64::from(from)),
        bucket: ASYNC,
        from: RegionId(from),
        step,
    };
    let fork = |to, epoch, lsn| Fork {
        to: RegionId(to),
        epoch: meridian_types::Epoch(epoch),
        proven: false,
        lost: ANYTHING,
        cut: vec![(ShardId(0), Lsn(lsn))],
    };
    let left_behind = |agreed, keys: &[(&str, &str)]| {
        let story = Story::default()
            .put(asks(0, 1, 0, 10, ASYNC), "k", "a", v(1))
            .put(asks(0, 1, 20, 30, ASYNC), "k", "b", v(2))
            .read(asks(1, 1, 40, 50, ASYNC), ReadLevel::Strong, "k", Some(found("b", v(2))))
            .applied(5, 1, 1, of(ASYNC, entry(1)))
            .applied(6, 2, 1, of(ASYNC, entry(1)))
            .applied(6, 3, 1, of(ASYNC, entry(1)))
            .applied(25, 1, 2, of(ASYNC, entry(2)))
            .applied(26, 3, 2, of(ASYNC, entry(2)))
            .fact(100, next(1, begun(Some(ANYTHING))))
            .fact(150, next(1, Replacing::Done(fork(3, 2, 2))))
            .fact(200, next(3, begun(agreed)))
            .fact(300, next(3, Replacing::Done(fork(2, 3, 0))))
            .read(asks(1, 2, 400, 410, ASYNC), ReadLevel::Strong, "k", Some(found("a", v(1))))
            .put(asks(0, 2, 420, 430, ASYNC), "k", "c", version(9, 2));
        keeps(ends(story, "c", version(9, 2)), keys).evidence()
    };
    let evidence = left_behind(Some(ANYTHING), &[("k", "b")]);
    assert_eq!((evidence.undone.len(), evidence.forks.undone.len()), (2, 1));
    for checker in ["salvaged", "lost", "order", "linear", "chains", "fresh", "served", "once"] {
        assert_eq!(found_by(checker, &evidence), None, "{checker}");
    }
    catches("salvaged", &left_behind(None, &[("k", "b")]), "agreed to was nothing");
    catches("salvaged", &left_behind(Some(ANYTHING), &[]), "is in no salvage");
}

/// Found by seed 4852: region 2 replaces region 1 with all that it had, writes the same key and is lost with both; region 3, which has the
/// first write only, replaces it.
#[test]
fn swi_2_the_bundle_of_each_region_has_what_that_region_wrote_last() {
    let next = |from, step| Fact::ReplacementKnown {
        replica: replica(3),
        plan: PlanId(8 + u64::from(from)),
        bucket: ASYNC,
        from: RegionId(from),
        step,
    };
    let done = |from: u16, lsn| {
        let (to, epoch) = (RegionId(from + 1), meridian_types::Epoch(u64::from(from) + 1));
        let cut = vec![(ShardId(0), Lsn(lsn))];
        next(from, Replacing::Done(Fork { to, epoch, proven: false, lost: ANYTHING, cut }))
    };
    let third = Entry {
        origin: RegionId(2),
        source_lsn: Lsn(5),
        epoch: meridian_types::Epoch(2),
        hlc: meridian_types::Hlc(9),
        ..of(ASYNC, entry(3))
    };
    let kept = |by_the_first, by_the_second| {
        let story = Story::default()
            .put(asks(0, 1, 0, 10, ASYNC), "k", "a", v(1))
            .put(asks(0, 1, 20, 30, ASYNC), "k", "b", v(2))
            .put(asks(0, 2, 160, 170, ASYNC), "k", "c", version(9, 2))
            .applied(5, 1, 1, of(ASYNC, entry(1)))
            .applied(6, 2, 1, of(ASYNC, entry(1)))
            .applied(6, 3, 1, of(ASYNC, entry(1)))
            .applied(25, 1, 2, of(ASYNC, entry(2)))
            .applied(26, 2, 2, of(ASYNC, entry(2)))
            .fact(100, next(1, begun(Some(ANYTHING))))
            .fact(150, done(1, 2))
            .applied(165, 2, 5, third)
            .fact(200, next(2, begun(Some(ANYTHING))))
            .fact(300, done(2, 0));
        let story = keeps_in(ends(story, "a", v(1)), 1, (1, 2), &[("k", by_the_first)]);
        keeps_in(story, 2, (0, 5), &[("k", by_the_second)]).evidence()
    };
    assert_eq!(kept("b", "c").forks.undone.len(), 2);
    assert_eq!(found_by("salvaged", &kept("b", "c")), None);
    catches("salvaged", &kept("b", "b"), "in no salvage as it was");
    catches("salvaged", &kept("c", "c"), "in no salvage as it was");
}

/// Found by seed 714838: nobody lost a write, but a session had seen the position of a seal that reached nobody else.
#[test]
fn a_seal_that_was_given_up_is_a_position_that_nobody_will_have_and_no_loss() {
    let seal = Entry { kind: Kind::Seal, ..of(ASYNC, entry(2)) };
    let story = Story::default()
        .applied(5, 1, 1, of(ASYNC, entry(1)))
        .applied(6, 2, 1, of(ASYNC, entry(1)))
        .applied(25, 1, 2, seal);
    let evidence = step(300, step(100, story, begun(None)), done(true, Loss::default())).evidence();
    let saw = |lsn| [(RegionId(1), Lsn(lsn))].into_iter().collect();
    let has_undone = |lsn| evidence.forks.has_undone(ASYNC, ShardId(0), &Positions(saw(lsn)));
    assert_eq!((has_undone(1), has_undone(2), has_undone(3)), (false, true, false));
    assert!(evidence.forks.undone.is_empty());
    assert_eq!(found_by("salvaged", &evidence), None);
}

#[test]
fn what_nobody_was_told_may_be_undone_without_consent() {
    let id = RequestId { client: ClientId(1), sequence: 1 };
    let story = Story::default().write(asks(0, 1, 0, 10, ASYNC), put("k", "a"), lost_answer()).applied(
        5,
        1,
        2,
        Entry { request: id, ..of(ASYNC, entry(2)) },
    );
    let story = step(300, step(100, story, begun(None)), done(true, Loss::default()));
    assert_eq!(found_by("salvaged", &story.ends(ASYNC, [&[], &[], &[]]).evidence()), None);
}

fn region_1_is_down(until_ms: u64) -> Story {
    let crashed = Fact::Crashed { replica: replica(1), lost_bytes: 0, disk_lost: false };
    let restarted = Fact::Restarted { replica: replica(1), shard: ShardId(0), applied: Lsn(0) };
    Story::default().fact(1_000, crashed).fact(until_ms, restarted)
}

#[test]
fn swi_3_a_failover_that_waits_for_its_lost_region_is_found() {
    let waits = |story| step(30_500, step(2_000, story, begun(None)), done(true, Loss::default()));
    catches("unasked", &waits(region_1_is_down(30_000)).evidence(), "waits for region 1");
    let ends = step(9_000, step(2_000, region_1_is_down(30_000), begun(None)), done(true, Loss::default()));
    assert_eq!(found_by("unasked", &ends.evidence()), None);
    let what = "a link".to_owned();
    let disturbed = region_1_is_down(30_000).fact(1_500, Fact::Fault { what: what.clone(), disturbs: true });
    assert_eq!(found_by("unasked", &waits(disturbed.clone()).evidence()), None);
    let mended = disturbed.fact(3_000, Fact::Mended { what });
    catches("unasked", &waits(mended).evidence(), "waits for region 1");
}

fn copies(story: Story, at_ms: u64, index: u64, copies: Copies) -> Story {
    let policy = Policy::Sync { acks: Acks::Majority, on_partition: OnPartition::DEGRADE };
    let (replica, epoch) = (replica(1), meridian_types::Epoch(1));
    story.fact(at_ms, Fact::PolicyKnown { replica, index, bucket: DEGRADING, epoch, policy, copies })
}

#[test]
fn deg_1_fewer_copies_are_acknowledged_only_while_that_is_on_record() {
    let acknowledged = |story: Story, from_ms| {
        let outcome = meridian_types::Outcome::Written { version: v(1) };
        story.wrote_in(asks(0, 1, from_ms, from_ms + 10, DEGRADING), put("k", "a"), outcome, v(1), 1)
    };
    let degraded = || copies(copies(Story::default(), 0, 1, Copies::Sync), 1_000, 2, Copies::Degraded);
    catches("fewer", &acknowledged(degraded(), 500).evidence(), "DEGRADED was not on record");
    assert_eq!(found_by("fewer", &acknowledged(degraded(), 1_500).evidence()), None);
    let recovering = copies(degraded(), 2_000, 3, Copies::Recovering);
    assert_eq!(found_by("fewer", &acknowledged(recovering.clone(), 2_100).evidence()), None);
    let again = copies(recovering, 3_000, 4, Copies::Sync);
    catches("fewer", &acknowledged(again.clone(), 3_100).evidence(), "DEGRADED was not on record");
    let told = |at_ms| {
        let (replica, origin, shard) = (replica(1), RegionId(1), ShardId(0));
        let (request, epoch) = (entry(1).request, meridian_types::Epoch(1));
        let fact =
            Fact::Acknowledged { replica, origin, bucket: DEGRADING, shard, epoch, lsn: Lsn(1), request, regions: 1 };
        again.clone().fact(at_ms, fact)
    };
    assert_eq!(found_by("fewer", &told(1_500).evidence()), None);
    catches("fewer", &told(3_001).evidence(), "it was from 1.000000s to 3.000000s");
}

#[test]
fn no_more_than_the_ceiling_is_in_one_region_only() {
    let two = || Story::default().applied(1, 1, 1, of(CAPPED, entry(1))).applied(2, 1, 2, of(CAPPED, entry(2)));
    let third = |story: Story| story.applied(9, 1, 3, of(CAPPED, entry(3)));
    assert_eq!(found_by("exposed", &two().evidence()), None);
    catches("exposed", &third(two()).evidence(), "its ceiling is 2");
    assert_eq!(found_by("exposed", &third(two().applied(5, 2, 1, of(CAPPED, entry(1)))).evidence()), None);
    let again = third(two().applied(5, 2, 1, of(CAPPED, entry(1)))).applied(10, 1, 1, of(CAPPED, entry(1)));
    assert_eq!(found_by("exposed", &again.evidence()), None, "a restart applies it again");
}
