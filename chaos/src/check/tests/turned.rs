//! Policies that change while a bucket serves.

use meridian_types::{
    Acks, Breach, Epoch, LagBound, MaxLag, OnPartition, Outcome, Policy, RegionId, RequestId, ShardId,
};

use super::story::{ASYNC, DEGRADING, SYNC, Story, asks, entry, put, replica, v};
use super::{catches, found_by};
use crate::trace::{Copies, Entry, Fact, Verdict};

/// A node hears of what a bucket promises from then on; the time is the metadata's index, too.
fn hears(story: Story, at_ms: u64, bucket: meridian_types::BucketId, epoch: u64, policy: Policy) -> Story {
    with_copies(story, at_ms, bucket, epoch, (policy, Copies::Sync))
}

fn with_copies(
    story: Story,
    at_ms: u64,
    bucket: meridian_types::BucketId,
    epoch: u64,
    (policy, copies): (Policy, Copies),
) -> Story {
    let (replica, epoch) = (replica(1), Epoch(epoch));
    story.fact(at_ms, Fact::PolicyKnown { replica, index: at_ms, bucket, epoch, policy, copies })
}

fn acknowledged(at_ms: u64, bucket: meridian_types::BucketId, epoch: u64, regions: u16) -> Fact {
    let (replica, origin, shard, epoch) = (replica(1), RegionId(1), ShardId(0), Epoch(epoch));
    let request = RequestId::default();
    Fact::Acknowledged { replica, origin, bucket, shard, epoch, lsn: meridian_types::Lsn(at_ms), request, regions }
}

#[test]
fn dur_2_an_acknowledgement_is_held_to_the_policy_of_the_epoch_it_tells() {
    let turned = || {
        let story = hears(Story::default(), 1, ASYNC, 1, Policy::ASYNC);
        let story = story.applied(2, 1, 1, Entry { bucket: ASYNC, ..entry(1) });
        hears(story, 100, ASYNC, 2, Policy::sync(Acks::Majority))
    };
    let outcome = || Outcome::Written { version: v(1) };
    let told = |story: Story| story.wrote_in(asks(0, 1, 200, 210, ASYNC), put("k", "a"), outcome(), v(1), 1);
    let of_epoch = |epoch| {
        let mut evidence = told(turned()).evidence();
        if let crate::history::Told::Done(answer) = &mut evidence.operations[0].told {
            answer.epoch = Epoch(epoch);
        }
        evidence
    };
    assert_eq!(found_by("durable", &of_epoch(1)), None, "who had not heard of it goes on under the epoch before");
    catches("durable", &of_epoch(2), "needs 2 regions was acknowledged with 1");
    catches("fewer", &turned().fact(300, acknowledged(300, ASYNC, 2, 1)).evidence(), "2 are needed");
    assert_eq!(found_by("fewer", &turned().fact(300, acknowledged(300, ASYNC, 1, 1)).evidence()), None);
}

#[test]
fn dur_2_a_copy_that_waits_for_a_seal_is_none() {
    let story = |verdict| {
        let there = Entry { verdict, ..entry(1) };
        let told = Fact::Acknowledged {
            replica: replica(1),
            origin: RegionId(1),
            bucket: SYNC,
            shard: ShardId(0),
            epoch: Epoch(1),
            lsn: meridian_types::Lsn(1),
            request: entry(1).request,
            regions: 2,
        };
        Story::default().applied(1, 1, 1, entry(1)).applied(5, 2, 1, there).fact(10, told)
    };
    assert_eq!(found_by("durable", &story(Verdict::Took).evidence()), None);
    catches("durable", &story(Verdict::Parked).evidence(), "as held by 2 regions; 1 had it");
}

#[test]
fn deg_1_another_epoch_begins_without_what_was_on_record_under_the_one_before() {
    let degrading = Policy::Sync { acks: Acks::Majority, on_partition: OnPartition::DEGRADE };
    let story = |epoch| {
        let story = with_copies(Story::default(), 1, DEGRADING, 1, (degrading, Copies::Degraded));
        let all = Policy::Sync { acks: Acks::All, on_partition: OnPartition::DEGRADE };
        let story = with_copies(story, 100, DEGRADING, 2, (all, Copies::Recovering));
        story.fact(200, acknowledged(200, DEGRADING, epoch, 1)).evidence()
    };
    assert_eq!(found_by("fewer", &story(1)), None, "its node has not heard of the second");
    catches("fewer", &story(2), "3 are needed, and DEGRADED was not on record");
}

#[test]
fn dur_2_a_bucket_is_sync_only_once_all_that_was_acknowledged_has_its_copies() {
    let story = |there_ms| {
        let story = hears(Story::default(), 1, ASYNC, 1, Policy::ASYNC);
        let outcome = Outcome::Written { version: v(2) };
        let of = Entry {
            bucket: ASYNC,
            request: RequestId { client: meridian_types::ClientId(1), sequence: 1 },
            ..entry(2)
        };
        let story = story.applied(2, 1, 2, of).wrote_in(asks(0, 1, 2, 3, ASYNC), put("k", "a"), outcome, v(2), 1);
        let sync = Policy::sync(Acks::One);
        let story = with_copies(story, 10, ASYNC, 2, (sync, Copies::Recovering));
        with_copies(story, 50, ASYNC, 2, (sync, Copies::Sync)).applied(there_ms, 2, 1, of).evidence()
    };
    assert_eq!(found_by("durable", &story(40)), None);
    catches("durable", &story(60), "SYNC was on record by then");
}

#[test]
fn ord_1_an_entry_is_missed_in_the_lane_of_its_epoch() {
    let story = |epoch| {
        let story = hears(Story::default(), 1, SYNC, 1, Policy::ASYNC);
        let story = hears(story, 2, SYNC, 2, Policy::sync(Acks::One));
        story.applied(3, 1, 1, Entry { epoch: Epoch(epoch), ..entry(1) }).frame(10, 2, (0, 1), 1).evidence()
    };
    assert_eq!(found_by("prefix", &story(1)), None, "it travels in the other lane");
    catches("prefix", &story(2), "lacks the entry at 1: a gap");
}

#[test]
fn a_ceiling_holds_from_a_lease_after_it_was_set() {
    let bound = LagBound { operations: Some(2), ..LagBound::default() };
    let capped = Policy::Async { max_lag: Some(MaxLag { bound, on_breach: Breach::Block }) };
    let third_at = |at_ms| {
        let story = hears(hears(Story::default(), 1, ASYNC, 1, Policy::ASYNC), 10, ASYNC, 1, capped);
        let of = |at| Entry { bucket: ASYNC, ..entry(at) };
        story.applied(2, 1, 1, of(1)).applied(3, 1, 2, of(2)).applied(at_ms, 1, 3, of(3)).evidence()
    };
    assert_eq!(found_by("exposed", &third_at(5_000)), None, "its node has not heard of it");
    catches("exposed", &third_at(6_000), "its ceiling is 2");
}
