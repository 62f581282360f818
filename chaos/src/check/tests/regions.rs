//! Regions that come to hold a bucket and hold it no more.

use meridian_types::{Acks, BucketId, Epoch, Lsn, Outcome, Policy, RegionId, RequestId, ShardId};

use super::story::{ASYNC, CAPPED, SYNC, Story, asks, entry, put, replica, v};
use super::{catches, found_by};
use crate::check::Remnant;
use crate::trace::{Copies, Entry, Fact};

/// A node hears of which regions hold a bucket from then on; the time is the metadata's index, too.
fn holds(story: Story, at_ms: u64, (bucket, epoch): (BucketId, u64), regions: &[u16], joining: Option<u16>) -> Story {
    let (replica, epoch, index) = (replica(1), Epoch(epoch), at_ms);
    let (regions, joining) = (regions.iter().copied().map(RegionId).collect(), joining.map(RegionId));
    story.fact(at_ms, Fact::RegionsKnown { replica, index, bucket, epoch, regions, joining })
}

fn acknowledged(bucket: BucketId, epoch: u64, regions: u16) -> Fact {
    let (replica, origin, shard, epoch) = (replica(1), RegionId(1), ShardId(0), Epoch(epoch));
    let (lsn, request) = (Lsn(1), entry(1).request);
    Fact::Acknowledged { replica, origin, bucket, shard, epoch, lsn, request, regions }
}

#[test]
fn dur_2_a_copy_counts_where_the_bucket_is_held_in_the_epoch_that_is_told() {
    let story = |epoch| {
        let story = holds(Story::default(), 1, (SYNC, 1), &[1, 3], Some(2));
        let story = story.applied(2, 1, 1, entry(1)).applied(3, 2, 1, entry(1));
        let story = holds(story, 10, (SYNC, 2), &[1, 2, 3], None);
        story.fact(20, acknowledged(SYNC, epoch, 2)).evidence()
    };
    assert_eq!(found_by("durable", &story(2)), None);
    catches("durable", &story(1), "as held by 2 regions; 1 had it");
}

#[test]
fn dur_2_a_bucket_stays_sync_without_a_region_only_if_the_others_have_all_that_was_acknowledged() {
    let story = |there_ms| {
        let sync = |story: Story, at_ms, epoch| {
            let (replica, bucket, epoch, copies) = (replica(1), SYNC, Epoch(epoch), Copies::Sync);
            let policy = Policy::sync(Acks::Majority);
            story.fact(at_ms, Fact::PolicyKnown { replica, index: at_ms, bucket, epoch, policy, copies })
        };
        let story = sync(holds(Story::default(), 1, (SYNC, 1), &[1, 2, 3], None), 1, 1);
        let of = Entry { request: RequestId { client: meridian_types::ClientId(1), sequence: 1 }, ..entry(2) };
        let story = story.applied(2, 1, 2, of).applied(3, 3, 1, of).applied(there_ms, 2, 1, of);
        let outcome = Outcome::Written { version: v(2) };
        let story = story.wrote_in(asks(0, 1, 2, 5, SYNC), put("k", "a"), outcome, v(2), 2);
        sync(holds(story, 50, (SYNC, 2), &[1, 2], None), 50, 2).evidence()
    };
    assert_eq!(found_by("durable", &story(40)), None);
    catches("durable", &story(60), "SYNC was on record by then");
}

#[test]
fn deg_1_as_many_regions_are_asked_for_as_hold_the_bucket_in_that_epoch() {
    let story = |epoch| {
        let story = holds(Story::default(), 1, (SYNC, 1), &[1, 2, 3], None);
        let story = holds(story, 10, (SYNC, 2), &[1, 2, 3, 4], None);
        story.fact(20, acknowledged(SYNC, epoch, 2)).evidence()
    };
    assert_eq!(found_by("fewer", &story(1)), None, "a majority of three is two");
    catches("fewer", &story(2), "3 are needed");
}

#[test]
fn ord_1_an_entry_travels_to_the_regions_that_are_there_in_its_epoch_and_stay() {
    let story = |epoch, removed_ms| {
        let story = holds(Story::default(), 1, (SYNC, 1), &[1, 3], None);
        let story = holds(story, 2, (SYNC, 2), &[1, 3], Some(2));
        let story = story.applied(4, 1, 1, Entry { epoch: Epoch(epoch), ..entry(1) }).frame(10, 2, (0, 1), 1);
        holds(story, removed_ms, (SYNC, 3), &[1, 3], None).evidence()
    };
    assert_eq!(found_by("prefix", &story(1, 20)), None, "it is none of its regions");
    assert_eq!(found_by("prefix", &story(2, 9)), None, "it is of no use there");
    catches("prefix", &story(2, 20), "lacks the entry at 1: a gap");
}

#[test]
fn what_only_a_region_has_that_joins_is_in_no_other_region() {
    let story = |joining: Option<u16>| {
        let regions: &[u16] = if joining.is_some() { &[1, 3] } else { &[1, 2, 3] };
        let of = |at| Entry { bucket: CAPPED, ..entry(at) };
        let story = holds(Story::default(), 1, (CAPPED, 1), regions, joining);
        let story = story.applied(2, 1, 1, of(1)).applied(3, 2, 1, of(1));
        story.applied(4, 1, 2, of(2)).applied(5, 1, 3, of(3)).evidence()
    };
    assert_eq!(found_by("exposed", &story(None)), None);
    catches("exposed", &story(Some(2)), "its ceiling is 2");
}

#[test]
fn a_region_that_joins_counts_in_time() {
    let story = |counts_ms: u64| {
        let mut story = holds(Story::default(), 1, (ASYNC, 1), &[1, 3], Some(2));
        story.healed_ms = Some(5_000);
        let story = holds(story, counts_ms, (ASYNC, 1), &[1, 2, 3], None);
        story.fact(36_000, Fact::Healed).evidence()
    };
    assert_eq!(found_by("live", &story(20_000)), None);
    let mut never = holds(Story::default(), 1, (ASYNC, 1), &[1, 3], Some(2));
    never.healed_ms = Some(5_000);
    catches("live", &never.fact(36_000, Fact::Healed).evidence(), "does not count yet");
}

#[test]
fn res_1_a_removed_region_has_nothing_left() {
    let story = |keys| {
        let remnant = Remnant { region: RegionId(3), bucket: SYNC, keys };
        Story::default().evidence().with_remnants(vec![remnant])
    };
    assert_eq!(found_by("dropped", &story(0)), None);
    catches("dropped", &story(2), "region 3 was removed from bucket 1 and has 2 keys of it still");
}
