use meridian_types::{Acks, Fact, Lsn, NodeName, Policy, Remains, Seal, ShardId, Word};

use super::*;
use crate::plan::laws::{EU, SHARDS, World, named, seal};

const TTL: Duration = Duration::from_secs(5);

#[expect(clippy::disallowed_methods, reason = "tests need some instant to count from; which one does not matter")]
fn origin() -> Instant {
    Instant::now()
}

fn node(region: &str) -> NodeId {
    NodeId::of(&NodeName::new(&format!("{region}-1")).unwrap())
}

/// `pay` is fenced; every region renewed at 0.
fn fenced() -> (World, LeaseTable, Instant) {
    let mut world = World::new();
    world.create_in("pay", Policy::sync(Acks::Majority), &["us", "eu", "ap"]);
    let start = origin();
    let mut table = LeaseTable::elected(start - TTL, 1, TTL);
    for region in ["us", "eu", "ap"] {
        table.grant(start, node(region), 1, 1).unwrap();
    }
    world.failover(None, named(&["pay"]), None).unwrap();
    (world, table, start)
}

fn tells(world: &mut World, region: RegionId) {
    let bucket = world.bucket("pay");
    let plan = world.state.plans().next_back().unwrap().id;
    let remains = |shard| Remains {
        epoch: Epoch(bucket.epoch.0 - 1),
        seal: Seal { lsn: Lsn(9), ..seal(shard, 7) },
        exposure: None,
        whole: true,
    };
    let facts = (0..SHARDS).map(|shard| (ShardId(shard), Fact::Fenced(remains(shard)))).collect();
    world.tell(region, Word { plan, bucket: bucket.id, epoch: bucket.epoch, facts });
}

fn seen(actions: &[Action]) -> Option<(Vec<RegionId>, bool)> {
    match actions {
        [] => None,
        [Action::Advance { seen, .. }] => Some((seen.absent.iter().copied().collect(), seen.quiet)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn it_waits_for_the_leases_granted_before_and_not_for_later_ones() {
    let (world, mut table, start) = fenced();
    let mut vigil = Vigil::default();
    let at = |ms| start + Duration::from_millis(ms);
    assert_eq!(seen(&vigil.look(at(10), &table, &world.state)), None);
    // It is alive, but from now on it must know that it is fenced.
    for region in ["us", "eu", "ap"] {
        table.grant(at(4000), node(region), 1, world.state.index()).unwrap();
    }
    assert_eq!(seen(&vigil.look(at(4999), &table, &world.state)), None);
    assert_eq!(seen(&vigil.look(at(5000), &table, &world.state)), Some((vec![], true)));
}

#[test]
fn a_new_leader_waits_a_whole_lease() {
    let (world, _, start) = fenced();
    let at = |ms| start + Duration::from_millis(ms);
    let table = LeaseTable::elected(at(4000), 2, TTL);
    let mut vigil = Vigil::default();
    assert_eq!(seen(&vigil.look(at(4000), &table, &world.state)), None);
    assert_eq!(seen(&vigil.look(at(6000), &table, &world.state)), None);
    let quiet = seen(&vigil.look(at(9000), &table, &world.state));
    assert!(quiet.is_some_and(|(_, quiet)| quiet));
}

#[test]
fn a_region_that_is_gone_is_not_waited_for_once_somebody_has_spoken() {
    let (mut world, mut table, start) = fenced();
    let at = |ms| start + Duration::from_millis(ms);
    let mut vigil = Vigil::default();
    vigil.look(at(10), &table, &world.state);
    tells(&mut world, EU);
    table.grant(at(4500), node("eu"), 1, world.state.index()).unwrap();
    // ap's lease has run out, and us' too.
    let (absent, quiet) = seen(&vigil.look(at(5100), &table, &world.state)).unwrap();
    assert_eq!((absent, quiet), (vec![RegionId(3)], true));
}

#[test]
fn what_lasts_too_long_is_given_up() {
    let (world, table, start) = fenced();
    let mut vigil = Vigil::default();
    vigil.look(start, &table, &world.state);
    let late = vigil.look(start + FENCING_MAX + Duration::from_secs(1), &table, &world.state);
    let [Action::Abort { scope: AbortScope::Late(late), .. }] = late.as_slice() else { panic!("{late:?}") };
    assert_eq!(late.len(), 1);
}
