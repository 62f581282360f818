//! What is left in the end.

use meridian_types::request::Found;
use meridian_types::{Outcome, ReadLevel, Refusal, RefusalKind, RegionId};

use super::story::{ACTIVE, ASYNC, SYNC, Story, asks, found, key, lost_answer, put, v, version};
use super::{catches, found_by, is_clean};
use crate::history::Told;

fn ends(story: Story, bucket: meridian_types::BucketId, held: [Option<Found>; 3]) -> Story {
    let [one, two, three] = held.map(|it| it.into_iter().map(|it| ("k", it)).collect::<Vec<_>>());
    story.ends(bucket, [&one, &two, &three])
}

#[test]
fn an_acknowledged_write_that_is_gone_is_lost() {
    for bucket in [SYNC, ASYNC, ACTIVE] {
        let story = Story::default().put(asks(1, 1, 0, 10, bucket), "k", "a", v(1));
        let has = || Some(found("a", v(1)));
        is_clean(&ends(story.clone(), bucket, [has(), has(), has()]).evidence());
        catches("lost", &ends(story, bucket, [has(), None, has()]).evidence(), "region 2 has absent");
    }
}

#[test]
fn what_only_a_lost_disk_held_is_rightly_gone() {
    let story = |regions| {
        let outcome = Outcome::Written { version: v(1) };
        let written = Story::default().wrote_in(asks(1, 1, 0, 10, SYNC), put("k", "a"), outcome, v(1), regions);
        let mut ended = ends(written, SYNC, [None, None, None]);
        ended.disks_lost = vec![RegionId(1)];
        ended
    };
    assert_eq!(found_by("lost", &story(1).evidence()), None);
    catches("lost", &story(2).evidence(), "is lost");
}

#[test]
fn an_unknown_delete_may_have_removed_it_and_a_newer_write_may_have_replaced_it() {
    let story = || Story::default().put(asks(1, 1, 0, 10, SYNC), "k", "a", v(1));
    let delete = meridian_types::Write::Delete { key: key("k") };
    let deleted = story().write(asks(2, 1, 5, 10, SYNC), delete, lost_answer());
    is_clean(&ends(deleted, SYNC, [None, None, None]).evidence());
    let replaced = story().write(asks(2, 1, 5, 10, SYNC), put("k", "b"), lost_answer());
    let newer = || Some(found("b", v(2)));
    is_clean(&ends(replaced, SYNC, [newer(), newer(), newer()]).evidence());
}

#[test]
fn a_deleted_key_that_comes_back_is_a_resurrection() {
    let story = Story::default().put(asks(1, 1, 0, 10, ACTIVE), "k", "a", v(1)).delete(
        asks(2, 2, 20, 30, ACTIVE),
        "k",
        version(2, 2),
    );
    is_clean(&ends(story.clone(), ACTIVE, [None, None, None]).evidence());
    let old = || Some(found("a", v(1)));
    catches("revival", &ends(story.clone(), ACTIVE, [old(), old(), old()]).evidence(), "came back");
    let anew = story.put(asks(1, 1, 40, 50, ACTIVE), "k", "b", v(3));
    let new = || Some(found("b", v(3)));
    is_clean(&ends(anew, ACTIVE, [new(), new(), new()]).evidence());
}

#[test]
fn a_tie_that_each_side_decides_for_itself_diverges() {
    let story = Story::default().put(asks(1, 1, 0, 10, ACTIVE), "k", "a", version(5, 1)).put(
        asks(2, 2, 0, 10, ACTIVE),
        "k",
        "b",
        version(5, 2),
    );
    let (a, b) = (|| Some(found("a", version(5, 1))), || Some(found("b", version(5, 2))));
    is_clean(&ends(story.clone(), ACTIVE, [b(), b(), b()]).evidence());
    catches("converge", &ends(story, ACTIVE, [a(), b(), b()]).evidence(), "did not become equal");
}

fn healed(told: Told, from_ms: u64, to_ms: u64) -> Story {
    let mut story = Story::default().put(asks(1, 1, 1_100, 1_200, SYNC), "k", "a", v(1)).write(
        asks(2, 1, from_ms, to_ms, SYNC),
        put("j", "b"),
        told,
    );
    story.healed_ms = Some(1_000);
    story
}

#[test]
fn after_the_heal_nothing_fails_for_long_and_nobody_waits_for_ever() {
    let unavailable = || Told::Refused(Refusal::new(RefusalKind::Unavailable, "no quorum"));
    is_clean(&healed(unavailable(), 5_000, 6_000).evidence());
    catches("live", &healed(unavailable(), 40_000, 41_000).evidence(), "an operation failed 39");
    catches("live", &healed(Told::Nothing, 40_000, 44_000).evidence(), "an operation failed");
    let mut slow = Story::default().put(asks(1, 1, 1_100, 1_200, SYNC), "k", "a", v(1));
    slow = slow.put(asks(1, 1, 40_000, 55_000, SYNC), "k", "b", v(2));
    slow.healed_ms = Some(1_000);
    catches("live", &slow.evidence(), "took 15.000000s");
}

#[test]
fn a_kind_of_operation_that_never_works_again_is_found() {
    let stale = Told::Refused(Refusal::new(RefusalKind::Unavailable, "no lease"));
    let mut story = Story::default().put(asks(1, 1, 1_100, 1_200, SYNC), "k", "a", v(1)).asked(
        asks(2, 1, 2_000, 3_000, SYNC),
        ReadLevel::Strong,
        meridian_types::Read::Get { key: key("k") },
        stale,
    );
    story.healed_ms = Some(1_000);
    catches("live", &story.evidence(), "no strong read in bucket 1 succeeded");
}
