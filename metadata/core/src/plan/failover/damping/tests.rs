use meridian_types::{Acks, Fact, FailoverSpec, Lsn, OnPartition, PlanId, Policy, RegionId, Remains, Word};

use super::*;
use crate::command::Action;
use crate::plan::PLANS_MAX;
use crate::plan::laws::{EU, World, all, named, seal};
use crate::{AbortScope, Reply};

const AP: RegionId = RegionId(3);

/// A bucket that has failed over by itself, from `us` to another region.
fn failed_over() -> (World, PlanId) {
    let mut world = World::new();
    let sync = Policy::Sync { acks: Acks::Majority, on_partition: OnPartition::Block };
    world.create_in("pay", sync, &["us", "eu", "ap"]);
    let (buckets, reason) = (named(&["pay"]), "nobody hears from it".to_owned());
    let spec = FailoverSpec { buckets, to: None, consent: None, automatic: true, reason };
    let Ok(Reply::Operation { plan }) = world.run(Action::Failover(spec)) else { panic!("no plan") };
    let bucket = world.bucket("pay");
    for region in [EU, AP] {
        let seal = |shard| meridian_types::Seal { lsn: Lsn(30), ..seal(shard, 30) };
        let fenced =
            |shard| Fact::Fenced(Remains { epoch: bucket.epoch, seal: seal(shard), exposure: None, whole: true });
        world.tell(region, Word { plan, bucket: bucket.id, epoch: bucket.epoch, facts: all(fenced) });
    }
    world.advance(plan, "pay", &[], true).unwrap();
    assert!(matches!(world.step(plan, "pay"), Step::FailedOver { .. }), "{:?}", world.step(plan, "pay"));
    (world, plan)
}

/// So many other operations that the history is full of them.
fn much_else_happens(world: &mut World) {
    for _ in 0..PLANS_MAX + 3 {
        let plan = world.switchover("eu", named(&["orders"])).unwrap();
        world.abort(plan, AbortScope::All, "enough").unwrap();
    }
    assert_eq!(world.state.plans().count(), PLANS_MAX, "the bound holds");
}

#[test]
fn what_is_counted_is_not_forgotten_whatever_else_happens() {
    let (mut world, plan) = failed_over();
    let damped = |world: &World| {
        let bucket = meridian_types::Bucket {
            auto: meridian_types::AutoFailover { interval_ms_min: 0, per_day_max: 1, ..world.bucket("pay").auto },
            ..world.bucket("pay")
        };
        world.state.check_damping(&bucket, world.now_ms).map_err(|refusal| refusal.message)
    };
    assert!(damped(&world).unwrap_err().contains("1 times within a day"), "{:?}", damped(&world));
    world.now_ms += DAY_MS / 2;
    much_else_happens(&mut world);
    assert!(damped(&world).is_err(), "it may fail over once a day, and did half a day ago");

    world.now_ms += DAY_MS;
    assert_eq!(damped(&world), Ok(()));
    much_else_happens(&mut world);
    assert!(world.state.plan(plan).is_none(), "what no longer counts goes like any other");
}
