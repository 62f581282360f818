//! What clients were told.

use meridian_types::{Outcome, ReadLevel, Refusal, RefusalKind, Write};

use super::story::{ACTIVE, ASYNC, SYNC, Story, answered, asks, cas, found, key, lost_answer, put, v, value, version};
use super::{catches, found_by, is_clean};
use crate::history::Told;

#[test]
fn a_quiet_history_is_clean() {
    let story = Story::default()
        .put(asks(1, 1, 0, 10, SYNC), "k", "a", v(1))
        .read(asks(2, 1, 20, 30, SYNC), ReadLevel::Strong, "k", Some(found("a", v(1))))
        .read(asks(3, 2, 20, 30, SYNC), ReadLevel::Eventual, "k", None)
        .delete(asks(1, 1, 40, 50, SYNC), "k", v(2))
        .read(asks(2, 1, 60, 70, SYNC), ReadLevel::Strong, "k", None);
    is_clean(&story.evidence());
}

#[test]
fn a_value_that_nobody_wrote_is_damage() {
    let read = |text| {
        Story::default().put(asks(1, 1, 0, 10, SYNC), "k", "a", v(1)).read(
            asks(2, 2, 20, 30, SYNC),
            ReadLevel::Eventual,
            "k",
            Some(found(text, v(1))),
        )
    };
    assert_eq!(found_by("served", &read("a").evidence()), None);
    catches("served", &read("q").evidence(), "a value that nobody wrote");
}

#[test]
fn a_value_from_the_future_is_found() {
    let story = Story::default().read(asks(2, 1, 0, 10, SYNC), ReadLevel::Eventual, "k", Some(found("a", v(1)))).put(
        asks(1, 1, 20, 30, SYNC),
        "k",
        "a",
        v(1),
    );
    catches("served", &story.evidence(), "before it was written");
}

fn after_a_write(read: Option<meridian_types::request::Found>) -> Story {
    Story::default().put(asks(1, 1, 0, 10, SYNC), "k", "a", v(1)).put(asks(1, 1, 20, 30, SYNC), "k", "b", v(2)).read(
        asks(2, 2, 40, 50, SYNC),
        ReadLevel::Strong,
        "k",
        read,
    )
}

#[test]
fn a_stale_strong_read_after_a_failover_is_found_twice() {
    is_clean(&after_a_write(Some(found("b", v(2)))).evidence());
    for stale in [Some(found("a", v(1))), None] {
        catches("order", &after_a_write(stale.clone()).evidence(), "went back behind what was certain");
        catches("linear", &after_a_write(stale).evidence(), "no order of the strong operations");
    }
}

#[test]
fn concurrent_operations_may_fall_either_way() {
    for seen in [Some(found("a", v(1))), None] {
        let story = Story::default().put(asks(1, 1, 0, 100, SYNC), "k", "a", v(1)).read(
            asks(2, 1, 50, 60, SYNC),
            ReadLevel::Strong,
            "k",
            seen,
        );
        is_clean(&story.evidence());
    }
}

#[test]
fn a_write_whose_answer_was_lost_may_happen_later_or_never() {
    let unknown = || Story::default().write(asks(1, 1, 0, 10, SYNC), put("k", "a"), lost_answer());
    let read = |story: Story, from, seen| story.read(asks(2, 1, from, from + 5, SYNC), ReadLevel::Strong, "k", seen);
    is_clean(&read(unknown(), 20, None).evidence());
    is_clean(&read(read(unknown(), 20, None), 5000, Some(found("a", v(9)))).evidence());
    // But once it was seen, it has happened.
    let flips = read(read(unknown(), 20, Some(found("a", v(9)))), 40, None);
    catches("linear", &flips.evidence(), "no order");
    catches("order", &flips.evidence(), "went back");
}

#[test]
fn a_refused_write_did_not_happen() {
    let refused = Told::Refused(Refusal::new(RefusalKind::Unavailable, "no"));
    let story = Story::default()
        .put(asks(2, 1, 0, 1, SYNC), "k", "b", v(1))
        .write(asks(1, 1, 2, 10, SYNC), put("k", "a"), refused)
        .read(asks(2, 1, 20, 30, SYNC), ReadLevel::Strong, "k", Some(found("a", v(2))));
    catches("linear", &story.evidence(), "no order");
    catches("served", &story.evidence(), "nobody wrote");
}

#[test]
fn two_updates_of_one_version_are_a_lost_update() {
    let written = |at| Outcome::Written { version: v(at) };
    let start = Story::default().put(asks(1, 1, 0, 10, SYNC), "k", "a", v(1));
    let first = start.wrote(asks(1, 1, 20, 30, SYNC), cas("k", Some(v(1)), "b"), written(2), v(2));
    let honest = first.clone().wrote(asks(2, 1, 20, 35, SYNC), cas("k", Some(v(2)), "c"), written(3), v(3));
    is_clean(&honest.evidence());
    let lost = first.clone().wrote(asks(2, 1, 20, 35, SYNC), cas("k", Some(v(1)), "c"), written(3), v(3));
    catches("chains", &lost.evidence(), "two updates of k replaced the same version");
    catches("linear", &lost.evidence(), "no order");
    let late = first.wrote(asks(2, 1, 40, 50, SYNC), cas("k", None, "c"), written(3), v(3));
    catches("chains", &late.evidence(), "held although it was certain not to");
}

/// Found by seed 400737.
#[test]
fn a_condition_that_nobody_answered_may_hold_after_its_client_gave_it_up() {
    let start = || Story::default().put(asks(1, 1, 0, 10, SYNC), "k", "a", v(1));
    let seen = |story: Story| story.read(asks(1, 1, 80, 90, SYNC), ReadLevel::Strong, "k", Some(found("c", v(3))));
    let given_up = start().write(asks(2, 1, 20, 30, SYNC), cas("k", None, "c"), lost_answer());
    is_clean(&seen(given_up.clone().delete(asks(1, 1, 40, 50, SYNC), "k", v(2))).evidence());
    catches("chains", &seen(given_up).evidence(), "held although it was certain not to");
}

fn increment(by: i64) -> Write {
    Write::Increment { key: key("n"), by }
}

#[test]
fn an_increment_counted_twice_by_a_retry_is_found() {
    let counts = |seen: &str, second: i64| {
        Story::default()
            .wrote(asks(1, 1, 0, 10, SYNC), increment(5), Outcome::Count { version: v(1), value: 5 }, v(1))
            .wrote(asks(1, 1, 20, 30, SYNC), increment(2), Outcome::Count { version: v(3), value: second }, v(3))
            .read(asks(2, 1, 40, 50, SYNC), ReadLevel::Strong, "n", Some(found(seen, v(3))))
    };
    is_clean(&counts("7", 7).evidence());
    catches("counters", &counts("12", 12).evidence(), "must lie between 7 and 7");
    catches("counters", &counts("7", 12).evidence(), "by the order of versions it is 7");
    catches("linear", &counts("12", 12).evidence(), "no order");
}

#[test]
fn an_unknown_increment_counts_once_or_not_at_all() {
    let counts = |seen: &str, at| {
        Story::default()
            .wrote(asks(1, 1, 0, 10, SYNC), increment(5), Outcome::Count { version: v(1), value: 5 }, v(1))
            .write(asks(1, 1, 20, 30, SYNC), increment(2), lost_answer())
            .read(asks(2, 1, 40, 50, SYNC), ReadLevel::Strong, "n", Some(found(seen, v(at))))
    };
    is_clean(&counts("5", 1).evidence());
    is_clean(&counts("7", 3).evidence());
    catches("counters", &counts("9", 3).evidence(), "must lie between 5 and 7");
    catches("linear", &counts("9", 3).evidence(), "no order");
}

#[test]
fn counters_of_all_regions_lose_nothing_in_the_end() {
    let story = |ends: [&str; 3]| {
        let [one, two, three] = ends.map(|text| [("n", found(text, version(2, 2)))]);
        Story::default()
            .wrote(asks(1, 1, 0, 10, ACTIVE), increment(5), Outcome::Count { version: v(1), value: 5 }, v(1))
            .wrote(
                asks(2, 2, 0, 10, ACTIVE),
                increment(3),
                Outcome::Count { version: version(2, 2), value: 3 },
                version(2, 2),
            )
            .ends(ACTIVE, [&one, &two, &three])
    };
    is_clean(&story(["8", "8", "8"]).evidence());
    catches("counters", &story(["8", "3", "8"]).evidence(), "is 3 in region 2");
}

fn append(text: &str) -> Write {
    Write::Append { key: key("l"), suffix: value(text) }
}

#[test]
fn lists_show_what_was_lost_doubled_or_reordered() {
    let length = |at, length| Outcome::Length { version: v(at), length };
    let list = |text: &str, level| {
        Story::default()
            .wrote(asks(1, 1, 0, 10, SYNC), append("[a]"), length(1, 3), v(1))
            .wrote(asks(1, 1, 20, 30, SYNC), append("[b]"), length(2, 6), v(2))
            .read(asks(2, 1, 40, 50, SYNC), level, "l", Some(found(text, v(2))))
    };
    is_clean(&list("[a][b]", ReadLevel::Strong).evidence());
    is_clean(&list("[a]", ReadLevel::Eventual).evidence());
    catches("lists", &list("[a]", ReadLevel::Strong).evidence(), "an acknowledged item is missing");
    catches("lists", &list("[a][b][b]", ReadLevel::Eventual).evidence(), "holds an item twice");
    catches("lists", &list("[a][q]", ReadLevel::Eventual).evidence(), "nobody appended");
    let long = list("[a][b]", ReadLevel::Strong);
    let forked = long.read(asks(3, 2, 40, 50, SYNC), ReadLevel::Eventual, "l", Some(found("[b]", v(2))));
    catches("lists", &forked.evidence(), "not one the beginning of the other");
}

#[test]
fn a_torn_multi_put_is_seen_by_its_reader() {
    let both = || Write::MultiPut { items: vec![(key("x"), value("1")), (key("y"), value("2"))] };
    let read =
        |y| {
            Story::default()
                .wrote(asks(1, 1, 0, 10, ASYNC), both(), Outcome::Written { version: v(5) }, v(5))
                .read_many(asks(2, 3, 20, 30, ASYNC), &["x", "y"], vec![Some(found("1", v(5))), y])
        };
    is_clean(&read(Some(found("2", v(5)))).evidence());
    catches("torn", &read(None).evidence(), "saw a multi-put in x but not yet in y");
}

#[test]
fn money_neither_appears_nor_vanishes() {
    let accounts = ["bank/0/0", "bank/0/1", "bank/0/2", "bank/0/3"];
    let read = |last: &str| {
        let texts = ["100 by a", "200 by a", "300 by a", last];
        let items = || accounts.iter().zip(texts).map(|(name, text)| (key(name), value(text))).collect();
        let held = texts.iter().map(|text| Some(found(text, v(5)))).collect();
        Story::default()
            .wrote(
                asks(1, 1, 0, 10, ASYNC),
                Write::MultiPut { items: items() },
                Outcome::Written { version: v(5) },
                v(5),
            )
            .read_many(asks(2, 3, 20, 30, ASYNC), &accounts, held)
    };
    is_clean(&read("400 by a").evidence());
    catches("torn", &read("401 by a").evidence(), "hold 1001 together");
}

#[test]
fn a_session_finds_its_own_write_in_another_region_or_is_refused() {
    let story = |told: Told| {
        Story::default().put(asks(1, 1, 0, 10, ASYNC), "k", "a", v(1)).asked(
            asks(1, 2, 20, 30, ASYNC),
            ReadLevel::Session,
            meridian_types::Read::Get { key: key("k") },
            told,
        )
    };
    let answer = |found| answered(asks(1, 2, 20, 30, ASYNC), Outcome::Value(found), None);
    is_clean(&story(answer(Some(found("a", v(1))))).evidence());
    is_clean(&story(Told::Refused(Refusal::new(RefusalKind::Stale, "behind"))).evidence());
    catches("sessions", &story(answer(None)).evidence(), "went back behind what it had seen");
}

#[test]
fn a_session_does_not_see_time_go_back() {
    let seen = Story::default()
        .put(asks(9, 1, 0, 1, ASYNC), "k", "a", v(1))
        .put(asks(9, 1, 2, 3, ASYNC), "k", "b", v(2))
        .read(asks(1, 1, 20, 30, ASYNC), ReadLevel::Session, "k", Some(found("b", v(2))));
    let back = seen.clone().read(asks(1, 3, 40, 50, ASYNC), ReadLevel::Session, "k", Some(found("a", v(1))));
    catches("sessions", &back.evidence(), "went back");
    let other = seen.read(asks(2, 3, 40, 50, ASYNC), ReadLevel::Session, "k", Some(found("a", v(1))));
    is_clean(&other.evidence());
}

#[test]
fn a_session_whose_next_region_has_a_slow_clock_still_writes_behind_itself() {
    let story = |second| {
        Story::default()
            .read(asks(1, 1, 0, 1, ACTIVE), ReadLevel::Session, "k", None)
            .put(asks(1, 1, 10, 20, ACTIVE), "k", "a", version(100, 1))
            .put(asks(1, 2, 30, 40, ACTIVE), "k", "b", version(second, 2))
    };
    is_clean(&story(101).evidence());
    catches("sessions", &story(50).evidence(), "was ordered before what it had seen");
}

#[test]
fn a_bounded_read_keeps_its_bound_and_an_answer_its_claim() {
    let level = || ReadLevel::Bounded { staleness_ms_max: 100 };
    let read = |from, claim| {
        let who = asks(2, 2, from, from + 5, ASYNC);
        Story::default().put(asks(1, 1, 0, 10, ASYNC), "k", "a", v(1)).read_claiming(who, level(), "k", None, claim)
    };
    is_clean(&read(100, Some(95)).evidence());
    catches("stale", &read(200, None).evidence(), "bounded to 100 ms was staler");
    catches("fresh", &read(100, Some(20)).evidence(), "said it was at most 20 ms stale");
}

#[test]
fn an_acknowledgement_below_the_policy_is_a_silent_downgrade() {
    let who = asks(1, 1, 0, 10, SYNC);
    let outcome = Outcome::Written { version: v(1) };
    let story = |regions| Story::default().wrote_in(who, put("k", "a"), outcome.clone(), v(1), regions);
    is_clean(&story(2).evidence());
    catches("durable", &story(1).evidence(), "needs 2 regions was acknowledged with 1");
}

#[test]
fn two_regions_that_order_under_one_epoch_are_two_writers() {
    let story = |region| {
        Story::default()
            .put(asks(1, 1, 0, 10, SYNC), "k", "a", version(1, 1))
            .put(asks(1, 1, 20, 30, SYNC), "k", "b", version(2, 1))
            .put(asks(2, 2, 20, 30, SYNC), "j", "c", version(3, region))
    };
    is_clean(&story(1).evidence());
    catches("writer", &story(2).evidence(), "both ordered writes of bucket sync under epoch 1");
}

#[test]
fn an_epoch_never_falls() {
    let mut story =
        Story::default().put(asks(1, 1, 0, 10, SYNC), "k", "a", v(1)).put(asks(1, 1, 20, 30, SYNC), "k", "b", v(2));
    for (operation, epoch) in story.operations.iter_mut().zip([2, 2]) {
        let Told::Done(answer) = &mut operation.told else { unreachable!("both were answered") };
        answer.epoch = meridian_types::Epoch(epoch);
    }
    assert_eq!(found_by("epochs", &story.evidence()), None);
    if let Told::Done(answer) = &mut story.operations[1].told {
        answer.epoch = meridian_types::Epoch(1);
    }
    catches("epochs", &story.evidence(), "under epoch 1 after epoch 2");
}
