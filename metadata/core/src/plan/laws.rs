//! Laws of operations: whatever is asked, told late, told twice or given up, in any order.

use std::collections::BTreeMap;

use meridian_types::{
    BucketId, BucketName, BucketSpec, ClusterId, Consent, Epoch, Fact, FailoverSpec, Labels, Loss, Lsn, Phase, PlanId,
    Policy, Refusal, RefusalKind, RegionId, RegionName, Seal, Selection, SetHash, ShardId, Step, SwitchoverSpec, Word,
};
use proptest::prelude::*;

use super::PLANS_MAX;
use crate::command::Form;
use crate::testing::member;
use crate::{AbortScope, Action, Advance, ClusterState, Command, OperationId, Reply};

const REGIONS: [&str; 3] = ["us", "eu", "ap"];
pub(crate) const SHARDS: u16 = 3;
const BUCKETS: [&str; 3] = ["orders", "carts", "ledger"];

fn bucket(name: &str) -> BucketName {
    BucketName::new(name).unwrap()
}

fn region(at: usize) -> RegionName {
    RegionName::new(REGIONS[at % 3]).unwrap()
}

/// A cluster with three regions and three buckets, whose primary is the first region, and a clock.
pub(crate) struct World {
    pub(crate) state: ClusterState,
    pub(crate) now_ms: u64,
    operations: u128,
}

impl World {
    pub(crate) fn new() -> World {
        let members = REGIONS.iter().map(|name| member(name)).collect();
        let mut world = World { state: ClusterState::default(), now_ms: 1000, operations: 0 };
        world
            .run(Action::FormCluster(Form { cluster: ClusterId(1), shards: SHARDS, lease_ttl_ms: 5000, members }))
            .unwrap();
        for name in BUCKETS {
            world.create(name, Policy::ASYNC, &[]);
        }
        world
    }

    /// A bucket in these regions, the primary first.
    pub(crate) fn create_in(&mut self, name: &str, policy: Policy, regions: &[&str]) {
        let regions: Vec<_> = regions.iter().map(|name| RegionName::new(name).unwrap()).collect();
        let primary = regions.first().cloned();
        let (labels, auto) = (Labels::new(), Default::default());
        self.run(Action::CreateBucket(BucketSpec { name: bucket(name), policy, regions, primary, labels, auto }))
            .unwrap();
    }

    pub(crate) fn create(&mut self, name: &str, policy: Policy, regions: &[&str]) {
        let regions = regions.iter().map(|name| RegionName::new(name).unwrap()).collect();
        let labels = Labels::from([("team".to_owned(), name.chars().take(1).collect())]);
        self.run(Action::CreateBucket(BucketSpec {
            name: bucket(name),
            policy,
            regions,
            primary: None,
            labels,
            auto: Default::default(),
        }))
        .unwrap();
    }

    pub(crate) fn run(&mut self, action: Action) -> Result<Reply, Refusal> {
        self.operations += 1;
        self.run_as(self.operations, action)
    }

    pub(crate) fn run_as(&mut self, operation: u128, action: Action) -> Result<Reply, Refusal> {
        let command =
            Command { operation: OperationId(operation), who: "alice".to_owned(), at_ms: self.now_ms, action };
        let answer = self.state.apply(self.state.index() + 1, &command);
        assert_eq!(self.state.validate(), Ok(()), "after {command:?}");
        answer
    }

    pub(crate) fn switchover(&mut self, to: &str, buckets: Selection) -> Result<PlanId, Refusal> {
        let spec = SwitchoverSpec {
            to: RegionName::new(to).unwrap(),
            buckets,
            lag_ms_max: 100,
            pause_ms_max: 500,
            reason: "maintenance".to_owned(),
        };
        self.run(Action::Switchover(spec)).map(|reply| match reply {
            Reply::Operation { plan } => plan,
            other => panic!("{other:?}"),
        })
    }

    pub(crate) fn failover(
        &mut self,
        to: Option<&str>,
        buckets: Selection,
        consent: Option<Consent>,
    ) -> Result<PlanId, Refusal> {
        let to = to.map(|to| RegionName::new(to).unwrap());
        let spec = FailoverSpec { buckets, to, consent, automatic: false, reason: "a fire".to_owned() };
        self.run(Action::Failover(spec)).map(|reply| match reply {
            Reply::Operation { plan } => plan,
            other => panic!("{other:?}"),
        })
    }

    /// What an estimate would ask to agree to, of one bucket.
    pub(crate) fn consent(&self, name: &str, operations: u64, bytes: u64) -> Consent {
        let loss = Loss { operations, bytes, unbounded: true };
        Consent { to: None, lost: None, buckets: [(bucket(name), (self.bucket(name).epoch, loss))].into() }
    }

    /// The metadata leader has looked.
    pub(crate) fn advance(&mut self, plan: PlanId, name: &str, absent: &[&str], quiet: bool) -> Result<Reply, Refusal> {
        let it = self.bucket(name);
        let topology = self.state.topology();
        let absent = absent.iter().map(|name| topology.region_named(name).unwrap().id).collect();
        let seen = Advance { buckets: vec![(it.id, it.epoch)], absent, quiet };
        self.run(Action::Advance { plan, seen })
    }

    pub(crate) fn tell(&mut self, region: RegionId, word: Word) {
        assert_eq!(self.run(Action::Report { region, words: vec![word] }), Ok(Reply::Reported));
    }

    pub(crate) fn abort(&mut self, plan: PlanId, scope: AbortScope, why: &str) -> Result<Reply, Refusal> {
        self.run(Action::Abort { plan, scope, why: why.to_owned() })
    }

    pub(crate) fn bucket(&self, name: &str) -> meridian_types::Bucket {
        meridian_types::Bucket::clone(self.state.bucket_named(&bucket(name)).unwrap())
    }

    pub(crate) fn step(&self, plan: PlanId, name: &str) -> Step {
        let id = self.bucket(name).id;
        self.state.plan(plan).unwrap().move_of(id).unwrap().step.clone()
    }
}

pub(crate) fn seal(shard: u16, version: u64) -> Seal {
    Seal { lsn: Lsn(10 + u64::from(shard)), hash: SetHash(u128::from(version)), keys: version }
}

pub(crate) fn all(fact: impl Fn(u16) -> Fact) -> Vec<(ShardId, Fact)> {
    (0..SHARDS).map(|shard| (ShardId(shard), fact(shard))).collect()
}

pub(crate) fn named(names: &[&str]) -> Selection {
    Selection::Named(names.iter().map(|name| bucket(name)).collect())
}

pub(crate) const US: RegionId = RegionId(1);
pub(crate) const EU: RegionId = RegionId(2);
const ORDERS: BucketId = BucketId(1);

fn word(plan: PlanId, epoch: u64, facts: Vec<(ShardId, Fact)>) -> Word {
    Word { plan, bucket: ORDERS, epoch: Epoch(epoch), facts }
}

// ------------------------------------------------------------------------------------------ examples

#[test]
fn a_bucket_arrives_when_every_shard_has_everything_and_the_pause_is_measured() {
    let mut world = World::new();
    let plan = world.switchover("eu", named(&["orders"])).unwrap();
    let mut facts = all(|_| Fact::CaughtUp);
    let last = facts.pop().unwrap();
    world.tell(US, word(plan, 1, facts));
    assert_eq!((world.bucket("orders").epoch, world.bucket("orders").is_between_primaries()), (Epoch(1), false));
    world.now_ms = 2000;
    world.tell(US, word(plan, 1, vec![last]));
    let draining = world.bucket("orders");
    assert_eq!((draining.epoch, draining.primary, draining.is_between_primaries()), (Epoch(2), Some(US), true));
    world.now_ms = 2180;
    world.tell(EU, word(plan, 2, all(|shard| Fact::Ready(seal(shard, 7)))));
    let arrived = world.bucket("orders");
    assert_eq!((arrived.epoch, arrived.primary, arrived.phase), (Epoch(2), Some(EU), Phase::Steady));
    world.tell(US, word(plan, 2, all(|shard| Fact::Sealed(seal(shard, 7)))));
    let Step::Promoted { proof, .. } = world.step(plan, "orders") else { panic!("not promoted") };
    assert_eq!(proof.equal(), usize::from(SHARDS), "what comes late completes the proof");
    assert_eq!(world.step(plan, "orders").pause_ms(), Some(180));
    assert_eq!(world.state.plan(plan).unwrap().ended_ms, Some(2180));
    let told: Vec<_> = world.state.events().map(|event| (event.verb.as_str(), event.detail.as_str())).collect();
    assert!(told.iter().any(|(verb, detail)| *verb == "promote" && detail.contains("paused 180 ms")), "{told:?}");
}

#[test]
fn an_abort_restores_the_old_primary_under_a_new_epoch_and_the_bucket_can_move_again() {
    let mut world = World::new();
    let plan = world.switchover("eu", named(&["orders", "carts"])).unwrap();
    world.tell(US, word(plan, 1, all(|_| Fact::CaughtUp)));
    world.now_ms += 700;
    world.abort(plan, AbortScope::All, "an operator's wish").unwrap();
    assert_eq!((world.bucket("orders").epoch, world.bucket("orders").primary), (Epoch(3), Some(US)));
    assert_eq!((world.bucket("carts").epoch, world.bucket("carts").phase), (Epoch(1), Phase::Steady));
    assert_eq!(world.step(plan, "orders").pause_ms(), Some(700));
    world.tell(EU, word(plan, 2, all(|shard| Fact::Ready(seal(shard, 7)))));
    assert_eq!(world.bucket("orders").primary, Some(US), "what comes after an abort is too late");
    assert_eq!(world.abort(plan, AbortScope::All, "again").unwrap_err().kind, RefusalKind::Conflict);
    assert!(world.switchover("eu", named(&["orders", "carts"])).is_ok());
}

#[test]
fn a_time_out_that_was_decided_too_late_changes_nothing() {
    let mut world = World::new();
    let plan = world.switchover("eu", named(&["orders"])).unwrap();
    world.tell(US, word(plan, 1, all(|_| Fact::CaughtUp)));
    let late = |epoch| AbortScope::Late(vec![(ORDERS, Epoch(epoch))]);
    world.abort(plan, late(1), "catching up took too long").unwrap();
    assert!(world.bucket("orders").is_between_primaries());
    world.abort(plan, late(2), "draining took too long").unwrap();
    assert!(!world.bucket("orders").is_between_primaries());
    assert_eq!(world.bucket("orders").epoch, Epoch(3));
}

#[test]
fn regions_that_differ_at_the_seal_leave_the_old_primary_in_place() {
    let mut world = World::new();
    let plan = world.switchover("eu", named(&["orders"])).unwrap();
    world.tell(US, word(plan, 1, all(|_| Fact::CaughtUp)));
    world.tell(US, word(plan, 2, all(|shard| Fact::Sealed(seal(shard, 7)))));
    world.tell(EU, word(plan, 2, all(|shard| Fact::Ready(seal(shard, 7 + u64::from(shard / 2))))));
    let Step::Restored { why, .. } = world.step(plan, "orders") else { panic!("promoted in spite of a difference") };
    assert!(why.contains("differ at the seal of shard 2"), "{why}");
    assert_eq!(world.bucket("orders").primary, Some(US));
}

#[test]
fn a_difference_that_is_seen_only_after_the_promotion_is_an_event() {
    let mut world = World::new();
    let plan = world.switchover("eu", named(&["orders"])).unwrap();
    world.tell(US, word(plan, 1, all(|_| Fact::CaughtUp)));
    world.tell(EU, word(plan, 2, all(|shard| Fact::Ready(seal(shard, 7)))));
    world.tell(US, word(plan, 2, all(|shard| Fact::Sealed(seal(shard, 8)))));
    assert_eq!(world.state.events().next_back().unwrap().verb, "differ");
}

#[test]
fn only_the_region_that_knows_is_believed_and_only_about_the_epoch_it_saw() {
    let mut world = World::new();
    let plan = world.switchover("eu", named(&["orders"])).unwrap();
    world.tell(EU, word(plan, 1, all(|_| Fact::CaughtUp)));
    world.tell(US, word(plan, 2, all(|_| Fact::CaughtUp)));
    world.tell(US, word(PlanId(plan.0 + 1), 1, all(|_| Fact::CaughtUp)));
    world.tell(US, word(plan, 1, vec![(ShardId(SHARDS), Fact::CaughtUp)]));
    assert_eq!(world.step(plan, "orders"), Step::CatchingUp { caught_up: [].into() });
    world.tell(US, word(plan, 1, all(|_| Fact::CaughtUp)));
    world.tell(US, word(plan, 2, all(|shard| Fact::Ready(seal(shard, 7)))));
    world.tell(EU, word(plan, 1, all(|shard| Fact::Ready(seal(shard, 7)))));
    assert_eq!(world.bucket("orders").primary, Some(US));
}

#[test]
fn what_cannot_move_is_refused_whole_with_what_to_do() {
    let mut world = World::new();
    world.create("aa", Policy::ActiveActive, &[]);
    world.create("home", Policy::ASYNC, &["us", "ap"]);
    let mut refused = |to: &str, buckets| {
        let before = world.state.topology().buckets;
        let refusal = world.switchover(to, buckets).unwrap_err();
        assert_eq!(world.state.topology().buckets, before, "all or nothing");
        (refusal.kind, refusal.message)
    };
    let label = |key: &str| Selection::Labelled { key: key.to_owned(), value: "x".to_owned() };
    let cases = [
        ("eu", named(&["orders", "aa"]), RefusalKind::Invalid, "active-active"),
        ("eu", named(&["orders", "home"]), RefusalKind::Invalid, "move it to one of us, ap"),
        ("eu", Selection::AllFrom(region(0)), RefusalKind::Invalid, "`home` has no copy in `eu`"),
        ("eu", named(&["orders", "gone"]), RefusalKind::NotFound, "gone"),
        ("mars", named(&["orders"]), RefusalKind::NotFound, "mars"),
        ("eu", named(&[]), RefusalKind::Invalid, "0 buckets are named"),
        ("eu", named(&["orders", "orders"]), RefusalKind::Invalid, "twice"),
        ("eu", Selection::AllFrom(region(1)), RefusalKind::Invalid, "name two regions"),
        ("us", Selection::AllFrom(region(2)), RefusalKind::NotFound, "all from ap"),
        ("eu", label("team"), RefusalKind::NotFound, "label team=x"),
    ];
    for (to, buckets, kind, words) in cases {
        let (found, message) = refused(to, buckets);
        assert!(found == kind && message.contains(words), "{found}: {message}");
    }
}

#[test]
fn a_second_operation_on_a_bucket_is_refused_and_names_the_first() {
    let mut world = World::new();
    let first = world.switchover("eu", named(&["orders"])).unwrap();
    let refusal = world.switchover("ap", Selection::AllFrom(region(0))).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Retry);
    assert!(refusal.message.contains(&first.to_string()) && refusal.message.contains("alice"), "{refusal}");
    assert!(world.switchover("ap", named(&["carts"])).is_ok(), "another bucket is free to move");
    let deleted = world.run(Action::DeleteBucket { name: bucket("orders") }).unwrap_err();
    assert!(deleted.message.contains(&first.to_string()), "{deleted}");
    let set = Labels::from([("tier".to_owned(), "gold".to_owned())]);
    let labelled = Action::SetLabels { name: bucket("orders"), set, remove: [].into() };
    assert!(world.run(labelled).is_ok());
}

#[test]
fn a_bucket_that_is_there_already_is_recorded_as_such() {
    let mut world = World::new();
    let plan = world.switchover("us", named(&["orders", "carts"])).unwrap();
    assert_eq!(world.step(plan, "orders"), Step::Unneeded);
    assert!(world.state.plan(plan).unwrap().ended_ms.is_some());
    assert_eq!(world.bucket("orders").epoch, Epoch(1));
}

#[test]
fn who_asks_again_under_the_same_id_gets_the_same_operation_however_late() {
    let mut world = World::new();
    let ask = |to: usize, names: &[&str]| {
        Action::Switchover(SwitchoverSpec {
            to: region(to),
            buckets: named(names),
            lag_ms_max: 1,
            pause_ms_max: 1,
            reason: String::new(),
        })
    };
    let first = world.run_as(u128::MAX, ask(1, &["orders"])).unwrap();
    for _ in 0..crate::operations::ANSWERS_MAX {
        let _ = world.run(Action::DeleteBucket { name: bucket("absent") });
    }
    assert_eq!(world.run_as(u128::MAX, ask(1, &["orders"])), Ok(first));
    assert_eq!(world.state.plans().count(), 1);
    for other in [ask(2, &["orders"]), ask(1, &["carts"])] {
        for _ in 0..crate::operations::ANSWERS_MAX {
            let _ = world.run(Action::DeleteBucket { name: bucket("absent") });
        }
        assert_eq!(world.run_as(u128::MAX, other).unwrap_err().kind, RefusalKind::Invalid);
    }
}

#[test]
fn the_history_is_bounded_and_what_is_under_way_is_never_forgotten() {
    let mut world = World::new();
    let first = world.switchover("eu", named(&["carts"])).unwrap();
    for _ in 0..PLANS_MAX + 3 {
        let plan = world.switchover("eu", named(&["orders"])).unwrap();
        world.abort(plan, AbortScope::All, "enough").unwrap();
    }
    assert_eq!(world.state.plans().count(), PLANS_MAX);
    assert!(world.state.plan(first).is_some());
}

// ---------------------------------------------------------------------------------------------- laws

/// One thing that happens.
#[derive(Clone, Debug)]
enum Happens {
    Asked {
        to: usize,
        buckets: Vec<usize>,
    },
    /// Some shards of a region speak of a bucket, in its present epoch or one that is over.
    Told {
        region: u16,
        bucket: usize,
        kind: u8,
        shards: u8,
        stale: bool,
        version: u64,
    },
    Aborted {
        back: usize,
    },
    Late {
        bucket: usize,
        stale: bool,
    },
    Labelled {
        bucket: usize,
    },
    Passed {
        ms: u64,
    },
}

fn happens() -> impl Strategy<Value = Happens> {
    let told =
        (1u16..4, 0usize..3, 0u8..3, 1u8..8, prop::bool::weighted(0.1), prop_oneof![9 => Just(7u64), 1 => Just(8u64)]);
    prop_oneof![
        3 => (0usize..3, prop::collection::vec(0usize..3, 1..4)).prop_map(|(to, buckets)| Happens::Asked { to, buckets }),
        20 => told.prop_map(|(region, bucket, kind, shards, stale, version)| {
            Happens::Told { region, bucket, kind, shards: if shards > 4 { 7 } else { shards }, stale, version }
        }),
        1 => (0usize..4).prop_map(|back| Happens::Aborted { back }),
        1 => (0usize..3, any::<bool>()).prop_map(|(bucket, stale)| Happens::Late { bucket, stale }),
        1 => (0usize..3).prop_map(|bucket| Happens::Labelled { bucket }),
        2 => (0u64..400).prop_map(|ms| Happens::Passed { ms }),
    ]
}

/// The operation that last was about a bucket: words come late, so it may have ended.
fn last_plan(world: &World, id: BucketId) -> Option<PlanId> {
    world.state.plans().rev().find(|plan| plan.move_of(id).is_some()).map(|plan| plan.id)
}

fn happen(world: &mut World, what: &Happens) {
    match what {
        Happens::Asked { to, buckets } => {
            let mut names: Vec<&str> = buckets.iter().map(|at| BUCKETS[*at]).collect();
            names.sort_unstable();
            names.dedup();
            let _ = world.switchover(REGIONS[*to], named(&names));
        }
        Happens::Told { region, bucket, kind, shards, stale, version } => {
            let known = world.bucket(BUCKETS[*bucket]);
            let Some(plan) = last_plan(world, known.id) else { return };
            let fact = |shard: u16| {
                [Fact::CaughtUp, Fact::Sealed(seal(shard, *version)), Fact::Ready(seal(shard, *version))]
                    [usize::from(*kind)]
            };
            let facts = all(fact).into_iter().filter(|(shard, _)| shards & (1 << shard.0) != 0).collect();
            let epoch = Epoch(known.epoch.0 - u64::from(*stale));
            world.tell(RegionId(*region), Word { plan, bucket: known.id, epoch, facts });
        }
        Happens::Aborted { back } => {
            let plan = world.state.plans().rev().nth(*back).map(|plan| plan.id);
            let _ = world.abort(plan.unwrap_or(PlanId(0)), AbortScope::All, "a law");
        }
        Happens::Late { bucket, stale } => {
            let known = world.bucket(BUCKETS[*bucket]);
            let Some(plan) = last_plan(world, known.id) else { return };
            let epoch = Epoch(known.epoch.0 - u64::from(*stale));
            let _ = world.abort(plan, AbortScope::Late(vec![(known.id, epoch)]), "late");
        }
        Happens::Labelled { bucket: at } => {
            let set = Labels::from([("seen".to_owned(), world.now_ms.to_string())]);
            world.run(Action::SetLabels { name: bucket(BUCKETS[*at]), set, remove: [].into() }).unwrap();
        }
        Happens::Passed { ms } => world.now_ms += ms,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// FEN-1 as the metadata plane keeps it; every rule of the state is checked after every command.
    #[test]
    fn no_two_regions_are_ever_told_to_write_under_one_epoch(history in prop::collection::vec(happens(), 1..150)) {
        let mut world = World::new();
        let mut writers: BTreeMap<(BucketId, Epoch), RegionId> = BTreeMap::new();
        let mut epochs: BTreeMap<BucketId, (Epoch, RegionId)> = BTreeMap::new();
        for what in &history {
            happen(&mut world, what);
            for bucket in world.state.topology().buckets.values() {
                let primary = bucket.primary.unwrap();
                if !bucket.is_between_primaries() {
                    let writer = *writers.entry((bucket.id, bucket.epoch)).or_insert(primary);
                    prop_assert_eq!(writer, primary, "two writers of {} under epoch {}", bucket.name, bucket.epoch);
                }
                let (before, was) = epochs.insert(bucket.id, (bucket.epoch, primary)).unwrap_or((bucket.epoch, primary));
                prop_assert!(bucket.epoch >= before, "an epoch fell");
                prop_assert!(was == primary || bucket.phase == Phase::Steady, "a primary changed without a promotion");
            }
        }
        // Whatever happened: given up, everything stands still.
        let under_way: Vec<PlanId> = world.state.plans().filter(|it| it.ended_ms.is_none()).map(|it| it.id).collect();
        for plan in under_way {
            world.abort(plan, AbortScope::All, "the end").unwrap();
        }
        prop_assert!(world.state.topology().buckets.values().all(|bucket| bucket.phase == Phase::Steady));
        prop_assert!(world.state.plans().all(|plan| plan.ended_ms.is_some()));
    }

    #[test]
    fn telling_everything_twice_makes_no_difference(history in prop::collection::vec(happens(), 1..80)) {
        let (mut once, mut twice) = (World::new(), World::new());
        for what in &history {
            happen(&mut once, what);
            happen(&mut twice, what);
            if matches!(what, Happens::Told { version: 7, .. }) { happen(&mut twice, what); }
        }
        let steps = |world: &World| {
            world.state.plans().flat_map(|plan| plan.moves.iter().map(|it| (it.bucket, it.epoch_before, it.step.clone())).collect::<Vec<_>>()).collect::<Vec<_>>()
        };
        prop_assert_eq!(steps(&once), steps(&twice));
        for name in BUCKETS {
            let (one, two) = (once.bucket(name), twice.bucket(name));
            prop_assert_eq!((one.epoch, one.primary, one.is_between_primaries()), (two.epoch, two.primary, two.is_between_primaries()));
        }
    }

    #[test]
    fn a_restored_state_knows_its_operations(history in prop::collection::vec(happens(), 1..80)) {
        let mut world = World::new();
        history.iter().for_each(|what| happen(&mut world, what));
        let restored = ClusterState::decode(&world.state.encode()).unwrap();
        prop_assert_eq!(restored, world.state);
    }
}
