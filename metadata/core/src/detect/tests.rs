use meridian_types::{
    Acks, AutoFailover, BucketChange, BucketSpec, ClusterId, Labels, NodeName, OnPartition, OperationId, Policy,
    RegionName,
};

use super::*;
use crate::command::{Form, NodeSpec};
use crate::lease::Electorate;
use crate::testing::member;
use crate::{Command, Reply};

const TTL: Duration = Duration::from_secs(5);
const LOST: RegionId = RegionId(1);

struct World {
    state: ClusterState,
    table: LeaseTable,
    detector: Detector,
    start: Instant,
    operations: u128,
}

#[expect(clippy::disallowed_methods, reason = "tests need some instant to count from; which one does not matter")]
fn origin() -> Instant {
    Instant::now()
}

fn name(name: &str) -> BucketName {
    BucketName::new(name).unwrap()
}

fn node(region: &str) -> NodeId {
    NodeId::of(&NodeName::new(&format!("{region}-1")).unwrap())
}

impl World {
    fn new(mode: AutoMode) -> World {
        World::of(mode, ["us", "eu", "ap"].map(member).into())
    }

    fn of(mode: AutoMode, members: Vec<NodeSpec>) -> World {
        let start = origin();
        let mut world = World {
            state: ClusterState::default(),
            table: LeaseTable::elected(start, 1, TTL),
            detector: Detector::default(),
            start,
            operations: 0,
        };
        world.run(Action::FormCluster(Form { cluster: ClusterId(1), shards: 2, lease_ttl_ms: 5000, members }));
        world.run(Action::CreateBucket(BucketSpec {
            name: name("pay"),
            policy: Policy::Sync { acks: Acks::Majority, on_partition: OnPartition::Block },
            regions: Vec::new(),
            primary: None,
            labels: Labels::new(),
            auto: AutoFailover { mode, ..AutoFailover::default() },
        }));
        world
    }

    fn sync(&self) -> Policy {
        Policy::Sync { acks: Acks::Majority, on_partition: OnPartition::Block }
    }

    fn create(&mut self, bucket: &str, policy: Policy, primary: &str, auto: AutoFailover<RegionName>) {
        self.run(Action::CreateBucket(BucketSpec {
            name: name(bucket),
            policy,
            regions: Vec::new(),
            primary: Some(RegionName::new(primary).unwrap()),
            labels: Labels::new(),
            auto,
        }));
    }

    fn run(&mut self, action: Action) -> Reply {
        self.operations += 1;
        let operation = OperationId(self.operations);
        let command = Command { operation, who: "leader".to_owned(), at_ms: 1000, action };
        self.state.apply(self.state.index() + 1, &command).unwrap()
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    /// A node renews, and says whom it does not hear.
    fn renews(&mut self, ms: u64, region: &str, silent: &[RegionId]) {
        let now = self.at(ms);
        self.table.grant(now, node(region), 1, self.state.index()).unwrap();
        self.detector.heard(now, 1, node(region), silent.iter().copied().collect());
    }

    fn look(&mut self, ms: u64) -> Vec<Action> {
        self.detector.look(self.at(ms), 1000 + ms, &self.table, &self.state)
    }
}

#[test]
fn a_region_is_lost_when_its_leases_are_out_and_nobody_hears_from_it() {
    let mut world = World::new(AutoMode::ZeroLoss);
    world.renews(0, "us", &[]);
    for ms in [4000, 5200] {
        world.renews(ms, "eu", &[LOST]);
        world.renews(ms, "ap", &[LOST]);
    }
    assert!(world.look(4900).is_empty(), "its lease has not run out");
    let actions = world.look(5300);
    let [Action::Failover(spec)] = actions.as_slice() else { panic!("{actions:?}") };
    assert!(spec.automatic && spec.consent.is_none() && spec.reason.contains("us"), "{spec:?}");
    world.run(actions[0].clone());
    assert!(world.look(5400).is_empty(), "it is being replaced already");
}

#[test]
fn one_observer_is_not_enough() {
    let mut world = World::new(AutoMode::ZeroLoss);
    world.renews(5200, "eu", &[LOST]);
    world.renews(5200, "ap", &[]);
    assert!(world.look(5300).is_empty(), "ap still hears from it: only its way to the metadata plane is cut");
    world.renews(5400, "ap", &[LOST]);
    assert_eq!(world.look(5500).len(), 1);
    assert!(world.look(5500 + 3000).is_empty(), "what was heard too long ago counts for nothing");
}

#[test]
fn a_new_leader_waits_a_whole_lease_of_its_own() {
    let mut world = World::new(AutoMode::ZeroLoss);
    world.table = LeaseTable::elected(world.at(3000), 2, TTL);
    for region in ["eu", "ap"] {
        let now = world.at(7900);
        world.table.grant(now, node(region), 1, world.state.index()).unwrap();
        world.detector.heard(now, 2, node(region), [LOST].into());
    }
    assert!(world.look(7990).is_empty());
    assert_eq!(world.look(8010).len(), 1);
}

#[test]
fn a_new_leader_whose_voters_heard_nobody_for_a_lease_only_lets_the_others_ask_first() {
    let mut world = World::new(AutoMode::ZeroLoss);
    world.table = LeaseTable::elected(world.at(6000), 2, TTL);
    let voters = ["us", "eu", "ap"].map(node);
    let electorate = Electorate { voters: &voters, since: world.start };
    for region in ["eu", "ap"] {
        let now = world.at(6500);
        world.table.heard_earlier(node(region), world.at(500), electorate);
        world.table.grant(now, node(region), 1, world.state.index()).unwrap();
        world.detector.heard(now, 2, node(region), [LOST].into());
    }
    assert!(world.look(7990).is_empty(), "whoever is there asks for a lease before that");
    assert_eq!(world.look(8010).len(), 1);
}

#[test]
fn too_few_that_are_there_prove_nothing_so_writes_are_not_stopped() {
    let mut world = World::new(AutoMode::ZeroLoss);
    world.renews(5200, "eu", &[LOST, RegionId(3)]);
    assert!(world.look(5300).is_empty(), "with two copies of three it takes both others");
}

#[test]
fn who_only_observes_says_so_once() {
    let mut world = World::new(AutoMode::ObserveOnly);
    world.renews(5200, "eu", &[LOST]);
    world.renews(5200, "ap", &[LOST]);
    let actions = world.look(5300);
    let [observed @ Action::Observe { .. }] = actions.as_slice() else { panic!("{actions:?}") };
    assert!(world.look(5400).is_empty());
    world.run(observed.clone());
    let event = world.state.events().next_back().unwrap();
    assert!(event.verb == "observe" && event.subject == "pay" && event.detail.contains("would"), "{event:?}");
    let mut manual = World::new(AutoMode::Manual);
    manual.renews(5200, "eu", &[LOST]);
    manual.renews(5200, "ap", &[LOST]);
    assert!(manual.look(5300).is_empty());
}

#[test]
fn it_is_not_tried_again_and_again() {
    let mut world = World::new(AutoMode::ZeroLoss);
    world.renews(5200, "eu", &[LOST]);
    world.renews(5200, "ap", &[LOST]);
    let actions = world.look(5300);
    let Reply::Operation { plan } = world.run(actions[0].clone()) else { panic!("no plan") };
    let why = "a test".to_owned();
    world.run(Action::Abort { plan, scope: crate::AbortScope::All, why });
    assert!(world.look(5400).is_empty(), "it was given up a moment ago");
    world.renews(40_000, "eu", &[LOST]);
    world.renews(40_000, "ap", &[LOST]);
    assert_eq!(world.look(40_100).len(), 1, "after a while it is tried again");
}

#[test]
fn a_bucket_may_wait_until_its_region_looked_lost_for_a_while() {
    let mut world = World::new(AutoMode::ZeroLoss);
    world.create("patient", world.sync(), "us", AutoFailover { mode: AutoMode::ZeroLoss, ..AutoFailover::default() });
    world.run(Action::SetDetection { name: name("patient"), detect_ms: 4000 });
    let mut replaced = |ms: u64, silent: &[RegionId]| {
        world.renews(ms, "eu", silent);
        world.renews(ms, "ap", silent);
        match world.look(ms + 100).as_slice() {
            [] => 0,
            [Action::Failover(FailoverSpec { buckets: Selection::Named(names), .. })] => names.len(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(replaced(5200, &[LOST]), 1, "who does not wait goes at once");
    assert_eq!(replaced(8000, &[LOST]), 1);
    assert_eq!(replaced(8500, &[]), 0, "somebody heard from it");
    assert_eq!(replaced(9000, &[LOST]), 1);
    assert_eq!(replaced(12_900, &[LOST]), 1, "it was lost for 3.9 s without a break");
    assert_eq!(replaced(13_000, &[LOST]), 2);
}

#[test]
fn a_detection_time_stays_when_the_rest_changes_and_has_a_bound() {
    let mut world = World::new(AutoMode::ZeroLoss);
    world.run(Action::SetDetection { name: name("pay"), detect_ms: 4000 });
    let change = BucketChange {
        auto: Some(AutoFailover { per_day_max: 7, ..AutoFailover::default() }),
        ..BucketChange::default()
    };
    world.run(Action::SetBucket { name: name("pay"), change });
    let auto = &world.state.bucket_named(&name("pay")).unwrap().auto;
    assert_eq!((auto.detect_ms, auto.per_day_max), (4000, 7));
    assert_eq!(ClusterState::decode(&world.state.encode()).unwrap(), world.state);
    let refused = |world: &mut World, action| {
        let command = Command { operation: OperationId(999), who: "me".to_owned(), at_ms: 1000, action };
        world.state.apply(world.state.index() + 1, &command).unwrap_err().to_string()
    };
    let long = Action::SetDetection { name: name("pay"), detect_ms: meridian_types::DETECT_MS_MAX + 1 };
    assert!(refused(&mut world, long).contains("at most 1h"));
}

/// One commit fences them all; one that may not now keeps nobody from it.
#[test]
fn all_buckets_of_a_lost_region_are_one_operation_but_for_those_that_may_not_now() {
    let mut world = World::new(AutoMode::ZeroLoss);
    let auto = |mode, per_day_max| AutoFailover { mode, per_day_max, ..AutoFailover::default() };
    let bounded = AutoMode::Bounded { max_lag: "5s".parse().unwrap() };
    world.create("feed", Policy::ASYNC, "us", auto(bounded, 3));
    world.create("elsewhere", world.sync(), "eu", auto(AutoMode::ZeroLoss, 3));
    world.create("by-hand", world.sync(), "us", auto(AutoMode::Manual, 3));
    world.create("spent", world.sync(), "us", auto(AutoMode::ZeroLoss, 3));
    let Reply::Operation { plan } = world.run(failover(vec![name("spent")], String::new())) else { panic!("no plan") };
    world.run(Action::Abort { plan, scope: crate::AbortScope::All, why: "a moment ago".to_owned() });
    world.renews(5200, "eu", &[LOST]);
    world.renews(5200, "ap", &[LOST]);
    let actions = world.look(5300);
    let [Action::Failover(spec)] = actions.as_slice() else { panic!("{actions:?}") };
    assert_eq!(spec.buckets, Selection::Named(vec![name("pay"), name("feed")]));
    world.run(actions[0].clone());
    assert!(world.look(5400).is_empty(), "both are being replaced");
}

/// With two regions and a witness, which has no lanes and hears nobody, the other region alone listens.
#[test]
fn a_witness_is_not_asked_what_it_hears() {
    let witness = NodeSpec { replication_address: String::new(), ..member("w") };
    let mut world = World::of(AutoMode::ZeroLoss, vec![member("us"), member("eu"), witness]);
    world.table.grant(world.at(5200), node("w"), 1, world.state.index()).unwrap();
    world.renews(5200, "eu", &[]);
    assert!(world.look(5300).is_empty(), "eu hears from it");
    world.renews(5400, "eu", &[LOST]);
    assert_eq!(world.look(5500).len(), 1);
}

/// One of three decides nothing, however well it is; two of three serve every shard.
#[test]
fn a_region_of_three_nodes_is_lost_with_the_second_of_them() {
    let three = (1..=3).map(|at| NodeSpec { name: NodeName::new(&format!("us-{at}")).unwrap(), ..member("us") });
    let mut world = World::of(AutoMode::ZeroLoss, three.chain([member("eu"), member("ap")]).collect());
    let names = |at: u64| NodeId::of(&NodeName::new(&format!("us-{at}")).unwrap());
    for (node, ms) in [(names(1), 100), (names(2), 5200), (names(3), 5200)] {
        world.table.grant(world.at(ms), node, 1, world.state.index()).unwrap();
    }
    for region in ["eu", "ap"] {
        world.renews(5200, region, &[LOST]);
    }
    assert!(world.look(5300).is_empty(), "two of three are there");
    for region in ["eu", "ap"] {
        world.renews(10_250, region, &[LOST]);
    }
    world.table.grant(world.at(10_250), names(3), 1, world.state.index()).unwrap();
    assert_eq!(world.look(10_300).len(), 1, "one is left");
}
