//! A lost primary that goes on, or is chosen again, with a tail that the fences of the others keep out: they are repaired from it at once,
//! and its lane goes on (LIVE, FEN-2; docs/adr/2026-11-27-failover.md).

use std::collections::BTreeMap;

use meridian_region_core::FrameResult;
use meridian_region_core::repair::need::want;
use meridian_region_core::repair::survey::{Claim, Survey};
use meridian_region_core::repair::{Need, Want};
use meridian_types::{Bucket, BucketName, Epoch, Hlc, Lane, Lsn, Phase, PlanId, Policy, RegionId, RepairReason};

use crate::repair::undisturbed;
use crate::world::{PLAIN, Replica, id, put};

const US: RegionId = RegionId(1);
const EU: RegionId = RegionId(2);

/// What the metadata plane has on record.
fn bucket(epoch: u64, primary: RegionId, phase: Phase) -> Bucket {
    Bucket {
        id: PLAIN,
        name: BucketName::new("b").unwrap(),
        policy: Policy::ASYNC,
        epoch: Epoch(epoch),
        phase,
        primary: Some(primary),
        regions: vec![US, EU],
        labels: BTreeMap::new(),
        created: Hlc(0),
        standing: Default::default(),
        auto: Default::default(),
        turns: Default::default(),
        joins: Default::default(),
        crossing: None,
    }
}

/// A primary with a tail that its replica's fence keeps out.
fn lost_with_a_tail() -> (Replica, Replica) {
    let (mut us, mut eu) = (Replica::new(1), Replica::new(2));
    us.write(id(7, 1), put("k", "shared"));
    eu.follow(&us, Lane::Sync, 7);
    eu.fence(PLAIN, 2);
    us.write(id(7, 2), put("k", "tail"));
    assert!(matches!(receive_rest(&mut eu, &us), FrameResult::Fenced { .. }));
    (us, eu)
}

fn receive_rest(eu: &mut Replica, us: &Replica) -> FrameResult {
    let frame = us.frame_after(eu.shard.watermark(US, Lane::Sync), Lane::Sync, 7).unwrap();
    eu.receive(&frame).0
}

fn stuck() -> Need {
    Need { bucket: PLAIN, source: US, claim: Claim::Primary, reason: RepairReason::Stuck }
}

#[test]
fn live_a_replica_whose_fence_keeps_its_primary_out_is_repaired_from_it_and_its_lane_goes_on() {
    let (mut us, mut eu) = lost_with_a_tail();
    let again = bucket(3, US, Phase::Steady);
    assert_eq!(
        want(&eu.shard, &again),
        Some(Want::Repair(stuck())),
        "it has not begun this epoch, and never will by its lane"
    );
    let seen = |us: &Replica| Survey::of(&us.shard).buckets.remove(&PLAIN).unwrap();
    assert!(stuck().objection(&eu.shard, &again, &seen(&us)).is_some(), "nor has its primary yet");
    us.fence(PLAIN, 3);
    us.take_over(PLAIN, 3);
    us.epoch = Epoch(3);
    assert_eq!(stuck().objection(&eu.shard, &again, &seen(&us)), None);
    assert!(matches!(receive_rest(&mut eu, &us), FrameResult::Fenced { .. }), "FEN-2");

    undisturbed(&mut eu, &mut us, (PLAIN, Claim::Primary));
    assert_eq!((eu.shard.epoch(PLAIN), eu.text(PLAIN, "k").as_deref()), (Epoch(3), Some("tail")));
    assert_eq!(want(&eu.shard, &again), None);
    us.write(id(7, 3), put("k", "later"));
    eu.follow(&us, Lane::Sync, 7);
    assert_eq!(eu.text(PLAIN, "k").as_deref(), Some("later"));
    assert_eq!(eu.shard.digest(PLAIN), us.shard.digest(PLAIN));
}

#[test]
fn a_fence_that_keeps_a_lost_primary_out_asks_for_nothing_while_another_is_to_be_or_is_primary() {
    let (_, eu) = lost_with_a_tail();
    let fencing = Phase::Fencing { plan: PlanId(1), to: EU };
    assert_eq!(want(&eu.shard, &bucket(2, US, fencing)), None, "who is to be primary is not decided");
    assert_eq!(want(&eu.shard, &bucket(2, EU, Phase::Steady)), None, "what it kept out is no part of the history");
}

#[test]
fn what_was_kept_out_before_the_epoch_in_force_asks_for_nothing() {
    let (_, mut eu) = lost_with_a_tail();
    eu.take_over(PLAIN, 2);
    assert!(!eu.shard.has_kept_out(PLAIN, US));
    assert_eq!(want(&eu.shard, &bucket(3, US, Phase::Steady)), None, "its next epoch may begin by a seal");
}

#[test]
fn a_replica_that_starts_again_hears_it_again() {
    let (us, mut eu) = lost_with_a_tail();
    eu.restart();
    let again = bucket(3, US, Phase::Steady);
    assert_eq!(want(&eu.shard, &again), None);
    assert!(matches!(receive_rest(&mut eu, &us), FrameResult::Fenced { .. }));
    assert_eq!(want(&eu.shard, &again), Some(Want::Repair(stuck())));
    assert_eq!(eu.shard.watermark(US, Lane::Sync), Lsn(1));
}
