//! What truly happened.

use meridian_types::entry::Kind;
use meridian_types::{ClientId, Epoch, Hlc, Lane, Lsn, NodeId, RegionId, RequestId, ShardId};

use super::story::{SYNC, Story, asks, entry, replica, v};
use super::{catches, found_by, is_clean};
use crate::trace::{Entry, Fact, Standing, Verdict};

/// Region 1 orders three writes, region 2 gets them in two frames.
fn shipped() -> Story {
    Story::default()
        .applied(1, 1, 1, entry(1))
        .applied(2, 1, 2, entry(2))
        .applied(10, 2, 1, entry(1))
        .applied(10, 2, 1, entry(2))
        .frame(10, 2, (0, 2), 1)
        .applied(11, 1, 3, entry(3))
        .applied(20, 2, 2, entry(3))
        .frame(20, 2, (2, 3), 2)
}

#[test]
fn a_replica_that_follows_is_a_prefix() {
    is_clean(&shipped().evidence());
}

#[test]
fn a_gap_is_found_when_the_watermark_passes_it() {
    let story = Story::default()
        .applied(1, 1, 1, entry(1))
        .applied(2, 1, 2, entry(2))
        .applied(10, 2, 1, entry(2))
        .frame(10, 2, (0, 2), 1);
    catches("prefix", &story.evidence(), "lacks the entry at 1: a gap");
}

#[test]
fn a_frame_applied_twice_or_out_of_order_is_found() {
    let twice = shipped().applied(30, 2, 3, entry(3)).frame(30, 2, (2, 3), 3);
    catches("prefix", &twice.evidence(), "twice, or out of order");
    let empty = shipped().frame(30, 2, (2, 3), 3);
    catches("prefix", &empty.evidence(), "when its watermark was 3");
}

#[test]
fn an_entry_shipped_before_it_was_committed_is_found() {
    let story = Story::default().applied(10, 2, 1, entry(1)).frame(10, 2, (0, 1), 1);
    catches("prefix", &story.evidence(), "not in that region's history");
}

#[test]
fn an_echo_is_found() {
    let own = Fact::FrameApplied {
        replica: replica(1),
        shard: ShardId(0),
        source: RegionId(1),
        lane: Lane::Sync,
        previous: Lsn(0),
        last: Lsn(3),
        lsn: Lsn(4),
    };
    catches("prefix", &shipped().fact(30, own).evidence(), "an echo");
}

#[test]
fn a_restart_applies_the_same_again_and_nothing_else() {
    let restart = |story: Story, region, applied| {
        story.fact(30, Fact::Restarted { replica: replica(region), shard: ShardId(0), applied: Lsn(applied) })
    };
    let honest = restart(shipped(), 2, 1).applied(31, 2, 2, entry(3)).frame(31, 2, (2, 3), 2);
    is_clean(&honest.evidence());
    let forgetful = restart(shipped(), 2, 1).frame(31, 2, (0, 2), 2);
    catches("prefix", &forgetful.evidence(), "when its watermark was 2");
    let other = Entry { request: RequestId { client: ClientId(9), sequence: 9 }, hlc: Hlc(9), ..entry(3) };
    let unsynced = restart(shipped(), 1, 2).applied(31, 1, 3, other);
    catches("prefix", &unsynced.evidence(), "was rewritten: another entry is at position 3");
}

#[test]
fn what_waits_for_a_seal_has_arrived_but_does_not_count() {
    let early = Entry { epoch: Epoch(2), ..entry(2) };
    let story = |verdict| {
        Story::default()
            .applied(1, 1, 1, entry(1))
            .applied(1, 1, 2, early)
            .applied(10, 2, 1, entry(1))
            .applied(10, 2, 1, Entry { verdict, ..early })
            .frame(10, 2, (0, 2), 1)
            .applied(20, 2, 2, early)
    };
    is_clean(&story(Verdict::Parked).evidence());
    catches("prefix", &story(Verdict::Took).evidence(), "twice");
}

#[test]
fn a_request_decided_by_two_entries_took_effect_twice() {
    let again = |verdict| {
        let second = Entry { request: entry(1).request, verdict, ..entry(2) };
        Story::default().applied(1, 1, 1, entry(1)).applied(2, 1, 2, second)
    };
    is_clean(&again(Verdict::Repeated).evidence());
    catches("once", &again(Verdict::Took).evidence(), "took effect twice in bucket 1: at 1 of region 1 and at 2");
}

#[test]
fn equal_positions_with_different_digests_are_divergence() {
    let at = |hash, operations| Standing { positions: 7, hash, keys: 1, operations };
    let story = |second| Story::default().stands(1, 1, at(5, 9)).stands(2, 2, second);
    is_clean(&story(at(5, 9)).evidence());
    catches("digests", &story(at(6, 9)).evidence(), "are at the same positions, and differ");
    catches("digests", &story(at(5, 10)).evidence(), "are at the same positions, and differ");
}

#[test]
fn durability_that_was_claimed_too_early_is_dishonest() {
    let asked = Entry { request: RequestId { client: ClientId(2), sequence: 1 }, ..entry(1) };
    let story = |copied_ms| {
        let story = Story::default().put(asks(1, 1, 0, 50, SYNC), "k", "a", v(1));
        story.applied(10, 1, 1, asked).applied(copied_ms, 2, 1, asked)
    };
    assert_eq!(found_by("durable", &story(40).evidence()), None);
    catches("durable", &story(60).evidence(), "was acknowledged at 0.050000s as held by 2 regions; 1 had it");
}

/// Found by seed 712207: a late attempt was refused since its client was further; the answer to an earlier one told of everything that was there.
#[test]
fn an_attempt_that_came_too_late_to_decide_anything_needs_no_copies() {
    let request = RequestId { client: ClientId(2), sequence: 1 };
    let of = |lsn, verdict| Entry { request, verdict, ..entry(lsn) };
    let told = Fact::Acknowledged {
        replica: replica(1),
        origin: RegionId(1),
        bucket: SYNC,
        shard: ShardId(0),
        epoch: Epoch(1),
        lsn: Lsn(2),
        request,
        regions: 2,
    };
    let first =
        || Story::default().applied(10, 1, 1, of(1, Verdict::Refused)).applied(20, 2, 1, of(1, Verdict::Refused));
    let late = first().applied(30, 1, 2, of(2, Verdict::Refused)).fact(40, told.clone());
    assert_eq!(found_by("durable", &late.evidence()), None);
    let alone = Story::default().applied(30, 1, 2, of(2, Verdict::Refused)).fact(40, told.clone());
    catches("durable", &alone.evidence(), "as held by 2 regions; 1 had it");
    let took = first().applied(30, 1, 2, of(2, Verdict::Took)).fact(40, told);
    catches("durable", &took.evidence(), "as held by 2 regions; 1 had it");
}

#[test]
fn who_was_merged_may_have_counted_otherwise_and_is_equal_all_the_same() {
    let at = |hash, operations| Standing { positions: 7, hash, keys: 1, operations };
    let story = |merged, second| {
        let (replica, shard, bucket) = (replica(2), ShardId(0), SYNC);
        let repaired = Fact::Repaired { replica, shard, bucket, lsn: Lsn(1), positions: Vec::new(), merged };
        Story::default().stands(1, 1, at(5, 9)).fact(2, repaired).stands(3, 2, second).evidence()
    };
    assert_eq!(found_by("digests", &story(true, at(5, 10))), None);
    catches("digests", &story(true, at(6, 9)), "are at the same positions, and differ");
    catches("digests", &story(false, at(5, 10)), "are at the same positions, and differ");
}

fn acknowledged(at_ms: u64, epoch: u64) -> Fact {
    assert!(at_ms > 0);
    Fact::Acknowledged {
        replica: replica(1),
        origin: RegionId(1),
        bucket: SYNC,
        shard: ShardId(0),
        epoch: Epoch(epoch),
        lsn: Lsn(1),
        request: RequestId::default(),
        regions: 2,
    }
}

fn may_act(region: u16, epoch: u64, until_ms: u64) -> Fact {
    Fact::MayAct { replica: replica(region), bucket: SYNC, epoch: Epoch(epoch), until_us: until_ms * 1000 }
}

#[test]
fn a_right_that_is_over_when_it_is_spoken_of_is_none() {
    let story = Story::default().fact(10, may_act(2, 2, 50)).fact(20, may_act(1, 1, 5));
    assert_eq!(found_by("writer", &story.evidence()), None);
}

#[test]
fn two_regions_that_may_act_at_once_are_found_before_they_do() {
    let story = |from| Story::default().fact(0, may_act(1, 1, 100)).fact(from, may_act(2, 2, 200));
    is_clean(&story(100).evidence());
    catches("writer", &story(99).evidence(), "may act as the primary of bucket 1 at the same time");
}

#[test]
fn an_acknowledgement_after_the_lease_ran_out_is_found() {
    let story = |at, epoch| {
        Story::default()
            .fact(0, may_act(1, 1, 50))
            .applied(1, 1, 1, entry(1))
            .fact(40, may_act(1, 1, 100))
            .fact(at, acknowledged(at, epoch))
    };
    is_clean(&story(90, 1).evidence());
    catches("writer", &story(110, 1).evidence(), "without the right to");
    catches("writer", &story(90, 2).evidence(), "without the right to");
}

#[test]
fn a_holder_that_believes_longer_than_the_leader_remembers_is_found() {
    let remembered = |term, until_ms: u64| Fact::LeaseRemembered {
        leader: NodeId(10 + term),
        term,
        node: replica(1).node,
        until_us: until_ms * 1000,
    };
    let believed = |until_ms: u64| Fact::LeaseBelieved { replica: replica(1), until_us: until_ms * 1000 };
    let honest = Story::default().fact(1, remembered(1, 100)).fact(2, believed(90));
    is_clean(&honest.evidence());
    let long = Story::default().fact(1, remembered(1, 100)).fact(2, believed(110));
    catches("writer", &long.evidence(), "takes it for expired");
    let forgotten = honest.fact(3, remembered(2, 80));
    catches("writer", &forgotten.evidence(), "the metadata leader of term 2");
}

#[test]
fn writes_of_two_regions_under_one_epoch_are_found_in_the_logs() {
    let other = Entry { origin: RegionId(2), ..entry(7) };
    let story = |epoch| {
        let other = Entry { epoch: Epoch(epoch), ..other };
        Story::default().applied(1, 1, 1, entry(1)).applied(2, 2, 7, other)
    };
    is_clean(&story(2).evidence());
    catches("writer", &story(1).evidence(), "both ordered writes of bucket 1 under epoch 1");
}

#[test]
fn a_write_behind_a_fence_or_a_seal_counts_for_nothing() {
    let fence = Entry { kind: Kind::Fence, epoch: Epoch(2), ..entry(1) };
    let seal = Entry { kind: Kind::Seal, epoch: Epoch(1), ..entry(1) };
    for end in [fence, seal] {
        let story = |verdict| Story::default().applied(1, 1, 1, end).applied(2, 1, 2, Entry { verdict, ..entry(2) });
        is_clean(&story(Verdict::Void).evidence());
        catches("fences", &story(Verdict::Took).evidence(), "behind the fence of epoch 2");
    }
}

#[test]
fn a_fence_that_a_restart_forgot_is_not_there_until_it_is_applied_again() {
    let fence = Entry { kind: Kind::Fence, epoch: Epoch(2), ..entry(2) };
    let restarted = Fact::Restarted { replica: replica(1), shard: ShardId(0), applied: Lsn(0) };
    let story = Story::default().applied(1, 1, 1, entry(1)).applied(2, 1, 2, fence).fact(3, restarted).applied(
        4,
        1,
        1,
        entry(1),
    );
    is_clean(&story.clone().evidence());
    let behind = story.applied(5, 1, 2, fence).applied(6, 1, 3, entry(3));
    catches("fences", &behind.evidence(), "behind the fence");
}

#[test]
fn metadata_changes_no_primary_without_an_epoch() {
    let known = |index, epoch, primary| Fact::BucketKnown {
        replica: replica(1),
        index,
        bucket: SYNC,
        epoch: Epoch(epoch),
        primary: Some(RegionId(primary)),
    };
    let story = |second| Story::default().fact(1, known(1, 1, 1)).fact(2, second);
    is_clean(&story(known(2, 2, 2)).evidence());
    catches("epochs", &story(known(2, 1, 2)).evidence(), "went from epoch 1");
    catches("epochs", &story(known(2, 0, 1)).evidence(), "to epoch 0");
    catches("epochs", &story(known(1, 2, 1)).evidence(), "two nodes know different things");
}

#[test]
fn what_holds_more_than_it_may_is_found() {
    let holds = |amount| Fact::Holds { replica: replica(1), what: "frames in flight", amount, most: 10 };
    is_clean(&Story::default().fact(1, holds(10)).evidence());
    catches("bounds", &Story::default().fact(1, holds(11)).evidence(), "held 11 in frames in flight");
}
