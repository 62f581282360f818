//! Failovers that the cluster began by itself, and how often: ten minutes apart and three a day, as buckets begin with.

use meridian_types::{Epoch, Loss, PlanId, RegionId};

use super::story::{ASYNC, Story, replica};
use super::{catches, found_by};
use crate::trace::{Fact, Fork, Replacing};

/// The operation of that number comes to a step.
fn step(story: Story, at_ms: u64, plan: u64, step: Replacing) -> Story {
    let (replica, from) = (replica(2), RegionId(1));
    story.fact(at_ms, Fact::ReplacementKnown { replica, plan: PlanId(plan), bucket: ASYNC, from, step })
}

fn begun(story: Story, at_ms: u64, plan: u64) -> Story {
    step(story, at_ms, plan, Replacing::Begun { agreed: None, automatic: true })
}

fn done(story: Story, at_ms: u64, plan: u64) -> Story {
    let fork = Fork { to: RegionId(2), epoch: Epoch(1 + plan), proven: true, lost: Loss::default(), cut: Vec::new() };
    step(story, at_ms, plan, Replacing::Done(fork))
}

#[test]
fn two_that_follow_too_soon_are_found() {
    let one = done(begun(Story::default(), 100, 1), 300, 1);
    assert_eq!(found_by("damped", &one.evidence()), None);
    catches("damped", &begun(one.clone(), 60_000, 2).evidence(), "are to lie between");
    assert_eq!(found_by("damped", &begun(one.clone(), 600_400, 2).evidence()), None);
    let asked = step(one, 60_000, 2, Replacing::Begun { agreed: None, automatic: false });
    assert_eq!(found_by("damped", &asked.evidence()), None, "somebody asked for it");
}

#[test]
fn one_that_was_given_up_is_not_tried_again_at_once() {
    let one = step(begun(Story::default(), 100, 1), 300, 1, Replacing::GivenUp);
    catches("damped", &begun(one.clone(), 15_000, 2).evidence(), "are to lie between");
    assert_eq!(found_by("damped", &begun(one, 30_400, 2).evidence()), None);
}

#[test]
fn more_than_a_day_may_have_are_found() {
    let at_ms = |plan: u64| 100 + plan * 700_000;
    let story = (1..=3).fold(Story::default(), |it, plan| done(begun(it, at_ms(plan), plan), at_ms(plan) + 200, plan));
    assert_eq!(found_by("damped", &story.evidence()), None);
    catches("damped", &begun(story, at_ms(4), 4).evidence(), "3 are allowed");
}

#[test]
fn where_a_clock_was_set_nobody_can_tell() {
    let set = Fact::Fault { what: "Step { node: 0, by_ms: 3600000, lasts: 1s }".to_owned(), disturbs: true };
    let one = done(begun(Story::default(), 100, 1), 300, 1).fact(400, set);
    assert_eq!(found_by("damped", &begun(one, 60_000, 2).evidence()), None);
}
