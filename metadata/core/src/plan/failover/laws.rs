//! Laws of failovers: whatever the regions that are left say, in any order, and whoever gives up in between.

use std::collections::BTreeMap;
use std::sync::Arc;

use meridian_types::{
    Acks, Breach, Epoch, Exposure, Fact, KeyStart, Loss, Lsn, MaxLag, Muster, Phase, PlanId, Policy, RegionId, Remains,
    ShardFacts, ShardId, Step, Word,
};
use proptest::prelude::*;

use super::{Field, Reign};
use crate::plan::laws::{EU, SHARDS, US, World, all, named, seal};
use crate::plan::{Asked, Heard, estimate};
use crate::{AbortScope, ClusterState};

const AP: RegionId = RegionId(3);

/// One thing that happens to the bucket `pay`, whose every write is in two of its three regions.
#[derive(Clone, Debug)]
enum Happens {
    Asked {
        to: Option<bool>,
        consent: bool,
    },
    /// A region speaks of some shards.
    Told {
        region: u16,
        shards: u8,
        epoch: u64,
        lsn: u64,
        whole: bool,
        lacks: u64,
    },
    Looked {
        absent: u8,
        quiet: bool,
    },
    GivenUp,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        2 => (prop::option::of(any::<bool>()), any::<bool>()).prop_map(|(to, consent)| Happens::Asked { to, consent }),
        12 => (1u16..4, 1u8..8, 0u64..2, 10u64..13, prop::bool::weighted(0.9), 0u64..3).prop_map(
            |(region, shards, epoch, lsn, whole, lacks)| Happens::Told { region, shards, epoch, lsn, whole, lacks }
        ),
        4 => (0u8..4, any::<bool>()).prop_map(|(absent, quiet)| Happens::Looked { absent, quiet }),
        1 => Just(Happens::GivenUp),
    ]
}

struct Told {
    world: World,
    plan: Option<PlanId>,
    /// The highest rank each region has told of each shard, under the present operation.
    ranks: BTreeMap<(RegionId, ShardId), (Epoch, Lsn)>,
    quiet: bool,
}

impl Told {
    fn new() -> Told {
        let mut world = World::new();
        world.create_in("pay", Policy::sync(Acks::Majority), &["us", "eu", "ap"]);
        Told { world, plan: None, ranks: BTreeMap::new(), quiet: false }
    }

    fn happen(&mut self, what: &Happens) {
        let bucket = self.world.bucket("pay");
        match what {
            Happens::Asked { to, consent } => {
                let to = to.map(|eu| if eu { "eu" } else { "ap" });
                let consent = consent.then(|| self.world.consent("pay", 2, 20));
                if let Ok(plan) = self.world.failover(to, named(&["pay"]), consent) {
                    (self.plan, self.quiet) = (Some(plan), false);
                    self.ranks.clear();
                }
            }
            Happens::Told { region, shards, epoch, lsn, whole, lacks } => {
                let Some(plan) = self.plan else { return };
                let region = RegionId(*region);
                let before = Epoch(bucket.epoch.0.saturating_sub(1 + epoch));
                let exposure = Exposure { head: Lsn(lsn + lacks), operations: *lacks, bytes: lacks * 10, oldest_ms: 1 };
                let shards: Vec<ShardId> = (0..SHARDS).filter(|it| shards & (1 << it) != 0).map(ShardId).collect();
                let facts = shards.iter().map(|shard| {
                    let seal = meridian_types::Seal { lsn: Lsn(*lsn), ..seal(shard.0, *lsn) };
                    (*shard, Fact::Fenced(Remains { epoch: before, seal, exposure: Some(exposure), whole: *whole }))
                });
                let word = Word { plan, bucket: bucket.id, epoch: bucket.epoch, facts: facts.collect() };
                let counts = region != US && bucket.is_between_primaries();
                self.world.tell(region, word);
                for shard in shards.into_iter().filter(|_| counts) {
                    let known = self.ranks.entry((region, shard)).or_default();
                    *known = (*known).max((before, Lsn(*lsn)));
                }
            }
            Happens::Looked { absent, quiet } => {
                let Some(plan) = self.plan else { return };
                let absent: Vec<&str> =
                    [(1, "eu"), (2, "ap")].iter().filter(|(bit, _)| absent & bit != 0).map(|(_, name)| *name).collect();
                self.quiet |= *quiet && bucket.is_between_primaries();
                self.world.advance(plan, "pay", &absent, *quiet).unwrap();
            }
            Happens::GivenUp => {
                if let Some(plan) = self.plan {
                    let _ = self.world.abort(plan, AbortScope::All, "a law");
                }
            }
        }
    }
}

/// The bound of an estimate, or of what a failover costs in the end, while `absent` have gone.
fn bounded(remains: &[(RegionId, u64)], absent: &[RegionId]) -> Loss {
    let max_lag = Some(MaxLag { bound: "11ops".parse().unwrap(), on_breach: Breach::Block });
    let mut world = World::new();
    world.create_in("pay", Policy::Async { max_lag }, &["us", "eu", "ap"]);
    let of = |lsn: u64| {
        let remains = |shard: u16| Remains {
            epoch: Epoch(1),
            seal: meridian_types::Seal { lsn: Lsn(lsn), ..seal(shard, lsn) },
            exposure: None,
            whole: true,
        };
        (0..SHARDS).map(|shard| (ShardId(shard), remains(shard))).collect()
    };
    let remains = remains.iter().map(|(region, lsn)| (*region, of(*lsn))).collect();
    let muster = Muster { remains, ..Muster::default() };
    let (bucket, absent) = (world.bucket("pay"), absent.iter().copied().collect());
    Field::new(&bucket, US, SHARDS, &muster, &absent).verdict(&bucket, AP).lost
}

/// Found by seed 201730: eleven writes were in no other region, twenty-two were lost with the second region.
#[test]
fn swi_2_a_ceiling_bounds_a_loss_only_while_every_other_region_is_heard_and_none_that_had_more_has_gone() {
    let ceiling = |lost: Loss| (!lost.unbounded).then_some(lost.operations);
    assert_eq!(ceiling(bounded(&[(EU, 30), (AP, 8)], &[])), Some(11));
    assert_eq!(ceiling(bounded(&[(AP, 8)], &[])), None, "what the silent one has nobody knows");
    assert_eq!(ceiling(bounded(&[(EU, 30), (AP, 8)], &[EU])), None, "the one with more has gone");
    assert_eq!(ceiling(bounded(&[(EU, 30), (AP, 8)], &[AP])), Some(11), "the one with less has");
}

/// Found by seed 912258: a ceiling was set, and the primary was cut off before it had heard of it.
#[test]
fn swi_2_a_ceiling_bounds_a_loss_only_once_the_lost_primary_has_begun_the_epoch_it_came_with() {
    let mut world = World::new();
    let max_lag = Some(MaxLag { bound: "11ops".parse().unwrap(), on_breach: Breach::Block });
    world.create_in("pay", Policy::Async { max_lag }, &["us", "eu", "ap"]);
    let bucket = meridian_types::Bucket { epoch: Epoch(2), ..world.bucket("pay") };
    let unbounded = |epochs: [u64; 2]| {
        let remains = |region: RegionId, epoch: u64| {
            let remains = Remains { epoch: Epoch(epoch), seal: seal(0, 30), exposure: None, whole: true };
            (region, (0..SHARDS).map(|shard| (ShardId(shard), remains)).collect())
        };
        let remains = [remains(EU, epochs[0]), remains(AP, epochs[1])].into();
        let muster = Muster { remains, ..Muster::default() };
        Field::new(&bucket, US, SHARDS, &muster, &Default::default()).verdict(&bucket, EU).lost.unbounded
    };
    assert!(unbounded([1, 1]), "nobody has anything of the epoch in which it holds");
    assert!(!unbounded([2, 1]), "one is enough: it is the primary's own word");
}

/// Three writes are known to be missing, and a thousand may be: two things to know before one agrees.
#[test]
fn swi_2_what_is_known_to_be_lost_is_told_apart_from_the_bound_on_what_is_not_known() {
    let estimated = |policy| {
        let mut world = World::new();
        world.create_in("pay", policy, &["us", "eu", "ap"]);
        let (topology, buckets) = (world.state.topology(), [Arc::new(world.bucket("pay"))]);
        let mut heard = Heard::default();
        for region in [EU, AP] {
            let fact = |shard| {
                let operations = u64::from(shard == 1) * 3;
                let exposure = Some(Exposure { head: Lsn(32), operations, bytes: operations * 9, oldest_ms: 1 });
                let seal = meridian_types::Seal { lsn: Lsn(30), ..seal(shard, 30) };
                let remains = Remains { epoch: Epoch(1), seal, exposure, whole: true };
                ShardFacts { bucket: buckets[0].id, shard: ShardId(shard), remains, said_ms: Some(1), oldest_key: None }
            };
            heard.add((region, (0..SHARDS).map(fact).collect()));
        }
        let asked = Asked { here: EU, to: None, lost: None, topology: &topology, buckets: &buckets, plans: &[] };
        let estimate = estimate(&asked, &heard);
        assert_eq!(estimate.consent.unwrap().total(), estimate.buckets[0].lost, "one agrees to the most");
        (estimate.buckets[0].known, estimate.buckets[0].lost)
    };
    let three = Loss { operations: 3, bytes: 27, unbounded: false };
    let max_lag = Some(MaxLag { bound: "1000ops".parse().unwrap(), on_breach: Breach::Block });
    let (known, most) = estimated(Policy::Async { max_lag });
    assert_eq!((known, most.operations, most.unbounded), (three, 1000, false));
    assert_eq!(estimated(Policy::ASYNC), (three, Loss { unbounded: true, ..three }));
}

/// Of each shard what the region lacks that has most of it, and of all shards the oldest of that.
#[test]
fn an_estimate_names_the_oldest_key_that_no_region_that_is_left_has() {
    let mut world = World::new();
    world.create_in("pay", Policy::ASYNC, &["us", "eu", "ap"]);
    let (topology, buckets) = (world.state.topology(), [Arc::new(world.bucket("pay"))]);
    let mut heard = Heard::default();
    for (region, oldest) in [(EU, [(50, "eu-0"), (20, "eu-1")]), (AP, [(10, "ap-0"), (90, "ap-1")])] {
        let fact = |shard: u16| {
            let (oldest_ms, key) = oldest[usize::from(shard.min(1))];
            let exposure = Some(Exposure { head: Lsn(32), operations: 1, bytes: 9, oldest_ms });
            let remains = Remains { epoch: Epoch(1), seal: seal(shard, 30), exposure, whole: true };
            let oldest_key = KeyStart::of(key.as_bytes());
            ShardFacts { bucket: buckets[0].id, shard: ShardId(shard), remains, said_ms: Some(1), oldest_key }
        };
        heard.add((region, (0..SHARDS).map(fact).collect()));
    }
    let asked = Asked { here: EU, to: None, lost: None, topology: &topology, buckets: &buckets, plans: &[] };
    let estimate = estimate(&asked, &heard).buckets.remove(0);
    assert_eq!((estimate.oldest_ms, estimate.oldest_key), (20, KeyStart::of(b"eu-1")));
}

/// Likewise for what the cluster may lose by itself: what was said to a region that has gone says nothing of those that are left.
#[test]
fn swi_2_a_failover_within_a_bound_rests_on_what_was_said_to_regions_that_are_left() {
    let mut world = World::new();
    world.create_in("pay", Policy::ASYNC, &["us", "eu", "ap"]);
    let bucket = world.bucket("pay");
    let lacks = |lsn: u64, operations| {
        let exposure = Some(Exposure { head: Lsn(32), operations, bytes: 1, oldest_ms: 1 });
        let seal = |shard| meridian_types::Seal { lsn: Lsn(lsn), ..seal(shard, lsn) };
        let remains = |shard| Remains { epoch: Epoch(1), seal: seal(shard), exposure, whole: true };
        (0..SHARDS).map(|shard| (ShardId(shard), remains(shard))).collect::<BTreeMap<_, _>>()
    };
    let muster = Muster { remains: [(EU, lacks(30, 2)), (AP, lacks(8, 1))].into(), ..Muster::default() };
    let is_within = |absent: &[RegionId]| {
        let field = Field::new(&bucket, US, SHARDS, &muster, &absent.iter().copied().collect());
        field.is_within("20ops".parse().unwrap(), field.lost(&bucket))
    };
    assert!(is_within(&[]) && is_within(&[AP]));
    assert!(!is_within(&[EU]), "whoever is left lacks more than the one that has gone did");
}

/// Found by seeds 400104 and 400153: a primary was lost before anybody had begun its first epoch. The one before it was there and had
/// everything, and another region was chosen, by the cluster itself within a bound on what had been said in an earlier reign.
#[test]
fn swi_2_who_has_what_the_lost_primary_began_with_goes_before_others_and_no_bound_holds_in_a_reign_that_nobody_has_begun()
 {
    let mut world = World::new();
    world.create_in("pay", Policy::ASYNC, &["us", "eu", "ap"]);
    let bucket = world.bucket("pay");
    let exposure = Some(Exposure { head: Lsn(4), operations: 0, bytes: 0, oldest_ms: 1 });
    let has = |epoch, version| {
        let seal = |shard| meridian_types::Seal { lsn: Lsn(4), ..seal(shard, version) };
        let remains = |shard| Remains { epoch: Epoch(epoch), seal: seal(shard), exposure, whole: true };
        (0..SHARDS).map(|shard| (ShardId(shard), remains(shard))).collect::<BTreeMap<_, _>>()
    };
    let began_with = (0..SHARDS).map(|shard| (ShardId(shard), seal(shard, 40))).collect();
    let look = |eu, ap, absent: &[RegionId]| {
        let muster = Muster { remains: [(EU, eu), (AP, ap)].into(), ..Muster::default() };
        let reign = Some(Reign { since: Epoch(3), began_with: &began_with });
        let field = Field::new(&bucket, US, SHARDS, &muster, &absent.iter().copied().collect());
        let field = Field { reign, ..field };
        let within = field.is_within("20ops".parse().unwrap(), field.lost(&bucket));
        (field.choose(None, &bucket).unwrap(), within)
    };
    assert_eq!(look(has(2, 38), has(2, 40), &[]), (AP, false), "it has all that the lost one began with");
    assert_eq!(look(has(2, 38), has(2, 39), &[]), (EU, false), "nobody can tell who has more");
    assert_eq!(look(has(2, 38), has(2, 40), &[AP]), (EU, false), "who has more is gone");
    assert_eq!(look(has(2, 40), has(3, 41), &[]), (AP, true), "further in the reign is further");
    assert_eq!(look(has(3, 41), has(3, 41), &[]), (EU, true));
}

/// A primary is lost before anybody has begun its first epoch: who is estimated to succeed it is who then does.
#[test]
fn swi_2_an_estimate_names_the_successor_that_the_failover_chooses() {
    let mut world = World::new();
    world.create_in("pay", Policy::ASYNC, &["ap", "us", "eu"]);
    let id = world.bucket("pay").id;
    let plan = world.switchover("eu", named(&["pay"])).unwrap();
    let say = |plan, epoch, facts| Word { plan, bucket: id, epoch: Epoch(epoch), facts };
    world.tell(AP, say(plan, 1, all(|_| Fact::CaughtUp)));
    world.tell(AP, say(plan, 2, all(|shard| Fact::Sealed(seal(shard, 40)))));
    world.tell(EU, say(plan, 2, all(|shard| Fact::Ready(seal(shard, 40)))));
    assert_eq!(world.bucket("pay").primary, Some(EU));

    // Nobody has anything of its, and the one before it has what it began with.
    let remains = |shard, version| {
        let seal = meridian_types::Seal { lsn: Lsn(0), ..seal(shard, version) };
        Remains { epoch: Epoch(1), seal, exposure: None, whole: true }
    };
    let mut heard = Heard::default();
    for (region, version) in [(US, 38), (AP, 40)] {
        let fact = |shard| ShardFacts {
            bucket: id,
            shard: ShardId(shard),
            remains: remains(shard, version),
            said_ms: None,
            oldest_key: None,
        };
        heard.add((region, (0..SHARDS).map(fact).collect()));
    }
    let (topology, buckets) = (world.state.topology(), [Arc::new(world.bucket("pay"))]);
    let plans: Vec<_> = world.state.plans().cloned().collect();
    let asked = Asked { here: US, to: None, lost: None, topology: &topology, buckets: &buckets, plans: &plans };
    let estimated = estimate(&asked, &heard);
    let without = estimate(&Asked { plans: &[], ..asked }, &heard);
    assert_eq!(without.buckets[0].to, Some(US), "what makes the difference is what is on record");

    let plan = world.failover(None, named(&["pay"]), estimated.consent).unwrap();
    for (region, version) in [(US, 38), (AP, 40)] {
        world.tell(region, say(plan, 3, all(|shard| Fact::Fenced(remains(shard, version)))));
    }
    world.advance(plan, "pay", &[], true).unwrap();
    let Step::FailedOver { to, .. } = world.step(plan, "pay") else { panic!("{:?}", world.step(plan, "pay")) };
    assert_eq!((Some(to), to), (estimated.buckets[0].to, AP));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// DUR-2, FEN-1: who is promoted without consent has all that any of enough regions had, and the lost one's leases are out.
    #[test]
    fn who_succeeds_has_everything_or_somebody_agreed(history in prop::collection::vec(happens(), 1..120)) {
        let mut told = Told::new();
        for what in &history {
            let (before, was) = (told.world.bucket("pay"), told.plan);
            let agreed = was.and_then(|plan| match told.world.step(plan, "pay") {
                Step::Fencing { muster, .. } | Step::Pulling { muster, .. } => muster.accepted,
                _ => None,
            });
            told.happen(what);
            let after = told.world.bucket("pay");
            prop_assert!(after.epoch >= before.epoch);
            if after.primary == before.primary {
                continue;
            }
            let Step::FailedOver { to, verdict, .. } = told.world.step(told.plan.unwrap(), "pay") else {
                panic!("a primary changed without a failover")
            };
            prop_assert!(told.quiet, "promoted before the leases ran out");
            prop_assert_eq!((after.primary, after.phase), (Some(to), Phase::Steady));
            prop_assert!(verdict.proven || agreed.is_some_and(|agreed| agreed.covers(verdict.lost)));
            if verdict.proven {
                for shard in (0..SHARDS).map(ShardId) {
                    let most = [EU, AP].iter().filter_map(|region| told.ranks.get(&(*region, shard))).max();
                    prop_assert!(told.ranks.get(&(to, shard)) >= most, "{to} lacks something of shard {shard}");
                    prop_assert!([EU, AP].iter().all(|region| told.ranks.contains_key(&(*region, shard))));
                }
            }
            // From here on the world would need another bucket whose primary is `us`.
            break;
        }
        prop_assert_eq!(ClusterState::decode(&told.world.state.encode()).unwrap(), told.world.state);
    }
}

/// A leader told what was lacking; the next one of its region has not heard it, and tells what it has.
#[test]
fn swi_2_what_was_said_to_be_lacking_stays_known_when_another_node_leads_and_has_not_heard_it() {
    let mut world = World::new();
    world.create_in("pay", Policy::ASYNC, &["us", "eu", "ap"]);
    let consent = world.consent("pay", 9, 90);
    let plan = world.failover(Some("eu"), named(&["pay"]), Some(consent)).unwrap();
    let bucket = world.bucket("pay");
    let lacks = Exposure { head: Lsn(33), operations: 3, bytes: 30, oldest_ms: 1 };
    let told = |world: &mut World, lsn: u64, exposure| {
        let remains = |shard| Remains {
            epoch: Epoch(1),
            seal: meridian_types::Seal { lsn: Lsn(lsn), ..seal(shard, lsn) },
            exposure,
            whole: true,
        };
        let facts = all(|shard| Fact::Fenced(remains(shard)));
        world.tell(EU, Word { plan, bucket: bucket.id, epoch: bucket.epoch, facts });
        let (Step::Fencing { muster, .. } | Step::Pulling { muster, .. }) = world.step(plan, "pay") else { panic!() };
        muster.remains[&EU][&ShardId(0)].exposure
    };
    assert_eq!(told(&mut world, 30, Some(lacks)), Some(lacks));
    assert_eq!(told(&mut world, 30, None), Some(lacks), "the same position: the word still holds");
    assert_eq!(told(&mut world, 31, None), None, "of more than that it says nothing");
}
