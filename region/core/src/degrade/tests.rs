//! What is said of copies, and when.

use meridian_types::{Acks, BucketName, OnPartition, Phase, PlanId, Policy};

use super::*;

const A: RegionId = RegionId(1);
const B: RegionId = RegionId(2);
const C: RegionId = RegionId(3);
const SETTLE: u64 = 600;

fn bucket(standing: Standing) -> Bucket {
    Bucket {
        id: BucketId(1),
        name: BucketName::new("b").unwrap(),
        policy: Policy::Sync { acks: Acks::Majority, on_partition: OnPartition::Degrade { after_ms: 5000 } },
        epoch: Epoch(1),
        phase: Phase::Steady,
        primary: Some(A),
        regions: vec![A, B, C],
        labels: BTreeMap::new(),
        created: Hlc(0),
        standing,
        auto: Default::default(),
        turns: Default::default(),
        joins: Default::default(),
        crossing: None,
    }
}

fn sync() -> Bucket {
    bucket(Standing::Sync { since: Hlc(1) })
}

fn degraded(ready: &[u16]) -> Bucket {
    let ready = ready.iter().map(|shard| ShardId(*shard)).collect();
    bucket(Standing::Degraded { since: Hlc(2), exposed_since: Hlc(2), reason: String::new(), ready })
}

fn recovering() -> Bucket {
    bucket(Standing::Recovering { since: Hlc(3), exposed_since: Hlc(2), ready: BTreeSet::new() })
}

fn sight(shard: u16, lsn: u64, b: u64, c: u64) -> CopiesSight {
    CopiesSight { shard: ShardId(shard), lsn: Lsn(lsn), acked: vec![(B, Lsn(b)), (C, Lsn(c))] }
}

#[derive(Default)]
struct World(Degrading);

impl World {
    fn look(&mut self, now_ms: u64, bucket: &Bucket, sights: &[CopiesSight]) -> Vec<CopiesDuty> {
        self.0.look(now_ms, SETTLE, bucket, sights, &|region| format!("r{region}"))
    }

    fn said(&mut self, now_ms: u64, bucket: &Bucket, sights: &[CopiesSight]) -> Option<Copies> {
        self.look(now_ms, bucket, sights).into_iter().find_map(|duty| match duty {
            CopiesDuty::Tell(word) => Some(word.copies),
            CopiesDuty::Prove { .. } => None,
        })
    }
}

#[test]
fn copies_are_lacking_once_an_entry_has_waited_for_as_long_as_the_policy_says() {
    let mut world = World::default();
    assert_eq!(world.said(0, &sync(), &[sight(0, 5, 5, 0)]), None, "one of two others is enough");
    assert_eq!(world.said(100, &sync(), &[sight(0, 9, 5, 5)]), None);
    assert_eq!(world.said(5000, &sync(), &[sight(0, 12, 8, 5)]), None, "9 has waited for 4900 ms");
    let Some(Copies::Lacking { shards, reason }) = world.said(5100, &sync(), &[sight(0, 12, 8, 5)]) else { panic!() };
    assert_eq!(shards, [ShardId(0)].into());
    assert!(reason.starts_with("r2, r3 do not confirm"), "{reason}");
    assert_eq!(world.said(5101, &sync(), &[sight(0, 12, 8, 5)]), None, "said already");
    assert!(world.said(6200, &sync(), &[sight(0, 12, 8, 5)]).is_some(), "not on record yet: said again");
}

#[test]
fn what_moves_on_is_not_lacking_however_long_it_goes_on() {
    let mut world = World::default();
    for now in (0..20_000).step_by(100) {
        // Each entry waits for four seconds.
        assert_eq!(world.said(now, &sync(), &[sight(0, now + 1, now.saturating_sub(4000), 0)]), None, "{now}");
    }
}

#[test]
fn a_policy_that_blocks_says_nothing() {
    let mut world = World::default();
    let blocking = Bucket { policy: Policy::sync(Acks::Majority), ..sync() };
    assert_eq!(world.said(0, &blocking, &[sight(0, 5, 0, 0)]), None);
    assert_eq!(world.said(60_000, &blocking, &[sight(0, 5, 0, 0)]), None);
}

#[test]
fn regions_answer_again_once_they_are_close_behind_and_not_at_first_sight() {
    let mut world = World::default();
    assert_eq!(world.said(0, &degraded(&[]), &[sight(0, 50, 10, 0)]), None, "one look says nothing");
    assert_eq!(world.said(2000, &degraded(&[]), &[sight(0, 60, 10, 0)]), None);
    assert_eq!(world.said(2500, &degraded(&[]), &[sight(0, 70, 60, 0)]), Some(Copies::Ready([ShardId(0)].into())));
    assert_eq!(world.said(2600, &degraded(&[0]), &[sight(0, 70, 60, 0)]), None, "on record");
    let gone = world.said(4000, &degraded(&[0]), &[sight(0, 90, 60, 0)]);
    assert!(matches!(gone, Some(Copies::Lacking { .. })), "they fell silent again: {gone:?}");
}

#[test]
fn a_shard_without_anything_to_confirm_is_ready() {
    let mut world = World::default();
    assert_eq!(world.said(0, &degraded(&[]), &[sight(0, 5, 5, 0)]), Some(Copies::Ready([ShardId(0)].into())));
}

#[test]
fn nothing_is_lacking_once_enough_have_what_was_there_after_everybody_knew_of_recovering() {
    let mut world = World::default();
    assert_eq!(world.look(0, &recovering(), &[sight(0, 50, 50, 50)]), [], "somebody may still act on DEGRADED");
    let shards: BTreeSet<_> = [ShardId(0)].into();
    let prove = CopiesDuty::Prove { bucket: BucketId(1), since: Hlc(3), shards };
    assert_eq!(world.look(SETTLE, &recovering(), &[sight(0, 55, 50, 50)]), [prove]);
    let proof =
        Proof { bucket: BucketId(1), since: Hlc(3), stood: [(ShardId(0), Lsn(57))].into(), whole: [B, C].into() };
    world.0.proven(Proof { since: Hlc(2), ..proof.clone() });
    assert_eq!(world.look(SETTLE + 1, &recovering(), &[sight(0, 60, 60, 60)]).len(), 1, "of another stretch");
    world.0.proven(proof);
    assert_eq!(world.look(700, &recovering(), &[sight(0, 60, 56, 56)]), []);
    assert_eq!(world.said(800, &recovering(), &[sight(0, 60, 57, 0)]), Some(Copies::Ready([ShardId(0)].into())));
}

#[test]
fn a_region_that_lacks_something_of_an_earlier_primary_does_not_count() {
    let mut world = World::default();
    world.look(0, &recovering(), &[sight(0, 9, 9, 0)]);
    let stood = [(ShardId(0), Lsn(9))].into();
    world.0.proven(Proof { bucket: BucketId(1), since: Hlc(3), stood, whole: [C].into() });
    assert_eq!(world.look(SETTLE, &recovering(), &[sight(0, 9, 9, 8)]), []);
    assert_eq!(world.said(SETTLE + 1, &recovering(), &[sight(0, 9, 0, 9)]), Some(Copies::Ready([ShardId(0)].into())));
}

#[test]
fn a_second_failure_while_recovering_is_said_and_what_was_proven_is_void_after_it() {
    let mut world = World::default();
    world.look(0, &recovering(), &[sight(0, 9, 0, 0)]);
    let proof =
        Proof { bucket: BucketId(1), since: Hlc(3), stood: [(ShardId(0), Lsn(9))].into(), whole: [B, C].into() };
    world.0.proven(proof);
    assert!(matches!(world.said(5000, &recovering(), &[sight(0, 9, 0, 0)]), Some(Copies::Lacking { .. })));
    let again = bucket(Standing::Recovering { since: Hlc(7), exposed_since: Hlc(2), ready: BTreeSet::new() });
    let duties = world.look(9000, &again, &[sight(0, 9, 9, 9)]);
    assert_eq!(duties, [], "proven anew, once nobody can act on the second DEGRADED");
}

#[test]
fn between_primaries_nothing_is_said() {
    let mut world = World::default();
    let phase = Phase::Draining { plan: PlanId(1), to: B };
    let draining = Bucket { phase, ..sync() };
    world.look(0, &sync(), &[sight(0, 9, 0, 0)]);
    assert_eq!(world.look(6000, &draining, &[sight(0, 9, 0, 0)]), []);
    assert_eq!(world.said(6001, &sync(), &[sight(0, 9, 0, 0)]), None, "it starts anew");
}
