//! Laws of the cluster's state: random histories of commands, and bytes that must still open.

use std::collections::{BTreeMap, BTreeSet};

use meridian_types::{
    Acks, AutoFailover, AutoMode, Breach, Bucket, BucketChange, BucketId, BucketName, BucketSpec, ClusterId, Copies,
    Cross, Epoch, Fact, Hlc, Labels, LagBound, Loss, Lsn, MaxLag, NodeName, OnPartition, PlanId, Policy, RefusalKind,
    RegionChange, RegionId, RegionName, Seal, Selection, SetHash, ShardId, StandingWord, SwitchoverSpec, Word,
};
use proptest::prelude::*;

use crate::command::{COMMAND_BYTES_MAX, Form, NodeSpec};
use crate::spec::{LABEL_VALUE_BYTES_MAX, LABELS_MAX};
use crate::state::{BUCKETS_MAX, REGIONS_MAX};
use crate::{
    AbortScope, Action, Answer, ClusterState, Command, CommandError, OperationId, Reply, SnapshotError, reply,
};

mod version_10;
mod version_11;
mod version_3;
mod version_4;
mod version_5;
mod version_6;
mod version_7;
mod version_8;
mod version_9;

fn region(name: &str) -> RegionName {
    RegionName::new(name).unwrap()
}

fn bucket_name(name: &str) -> BucketName {
    BucketName::new(name).unwrap()
}

fn node(name: &str, region_name: &str) -> NodeSpec {
    NodeSpec {
        name: NodeName::new(name).unwrap(),
        region: region(region_name),
        zone: "a".to_owned(),
        rpc_address: format!("{name}.example:7100"),
        replication_address: format!("{name}.example:7101"),
        version: String::new(),
    }
}

fn form() -> Form {
    let members = vec![node("us-east-1", "us-east"), node("eu-west-1", "eu-west"), node("ap-south-1", "ap-south")];
    Form { cluster: ClusterId(77), shards: 4, lease_ttl_ms: 5000, members }
}

fn spec(name: &str, policy: Policy) -> BucketSpec {
    BucketSpec {
        name: bucket_name(name),
        policy,
        regions: Vec::new(),
        primary: None,
        labels: Labels::new(),
        auto: AutoFailover::default(),
    }
}

fn command(operation: u128, action: Action) -> Command {
    Command { operation: OperationId(operation), who: "meridian://client/tester".to_owned(), at_ms: 1000, action }
}

/// A state with three regions, and the next index to apply at.
fn formed() -> ClusterState {
    let mut state = ClusterState::default();
    state.apply(1, &command(u128::MAX, Action::FormCluster(form()))).unwrap();
    state.validate().unwrap();
    state
}

fn create(state: &mut ClusterState, operation: u128, spec: BucketSpec) -> Result<Bucket, meridian_types::Refusal> {
    let answer = state.apply(state.index() + 1, &command(operation, Action::CreateBucket(spec)));
    state.validate().unwrap();
    answer.map(|reply| match reply {
        Reply::Bucket(bucket) => bucket,
        other => panic!("{other:?}"),
    })
}

// ------------------------------------------------------------------------------------------ examples

#[test]
fn regions_are_numbered_in_the_order_of_the_members() {
    let topology = formed().topology();
    let names: Vec<_> = topology.regions.values().map(|r| (r.id.0, r.name.as_str())).collect();
    assert_eq!(names, [(1, "us-east"), (2, "eu-west"), (3, "ap-south")]);
    assert_eq!(topology.groups.len(), 12);
    assert_eq!((topology.index, topology.shards, topology.cluster), (1, 4, Some(ClusterId(77))));
    let place = (RegionId(2), meridian_types::ShardId(3));
    assert_eq!(topology.groups[&place], [meridian_types::NodeId::of(&NodeName::new("eu-west-1").unwrap())]);
}

fn witness(name: &str, region_name: &str) -> NodeSpec {
    NodeSpec { replication_address: String::new(), ..node(name, region_name) }
}

/// Two regions and a witness: three places that decide, two that hold data.
#[test]
fn a_witness_votes_and_its_region_holds_nothing() {
    let members = vec![node("us-east-1", "us-east"), node("eu-west-1", "eu-west"), witness("w-1", "w")];
    let mut state = ClusterState::default();
    state.apply(1, &command(1, Action::FormCluster(Form { members, ..form() }))).unwrap();
    state.validate().unwrap();
    let topology = state.topology();
    assert_eq!((topology.regions.len(), topology.groups.len()), (3, 8));
    assert_eq!(topology.data_regions().collect::<Vec<_>>(), [RegionId(1), RegionId(2)]);
    let everywhere = create(&mut state, 2, spec("all", Policy::ASYNC)).unwrap();
    assert_eq!(everywhere.regions, [RegionId(1), RegionId(2)]);
    let there = BucketSpec { regions: vec![region("us-east"), region("w")], ..spec("no", Policy::ASYNC) };
    let refused = create(&mut state, 3, there).unwrap_err();
    assert!(refused.kind == RefusalKind::Invalid && refused.message.contains("`w`, which is a witness"), "{refused}");
    for (operation, wrong) in [(4, node("w-2", "w")), (5, witness("us-east-2", "us-east"))] {
        let refused = state.apply(state.index() + 1, &command(operation, Action::RegisterNode(wrong))).unwrap_err();
        assert!(refused.message.contains("a region either holds data or is a witness"), "{refused}");
    }
    state.apply(state.index() + 1, &command(6, Action::RegisterNode(witness("w-1", "w")))).unwrap();
    state.validate().unwrap();
    assert_eq!(ClusterState::decode(&state.encode()), Ok(state));
}

#[test]
fn a_cluster_is_formed_once_and_later_attempts_learn_which() {
    let mut state = formed();
    let other = Form { cluster: ClusterId(78), ..form() };
    let answer = state.apply(2, &command(1, Action::FormCluster(other)));
    assert_eq!(answer, Ok(Reply::Formed { cluster: ClusterId(77) }));
    assert_eq!(state.events().count(), 1);
}

#[test]
fn nothing_but_forming_is_possible_before_the_cluster_is_formed() {
    let mut state = ClusterState::default();
    let refused = state.apply(1, &command(1, Action::CreateBucket(spec("orders", Policy::ASYNC)))).unwrap_err();
    assert_eq!(refused.kind, RefusalKind::Retry);
    let refused = state.apply(2, &command(2, Action::RegisterNode(node("a", "us-east")))).unwrap_err();
    assert_eq!(refused.kind, RefusalKind::Retry);
    state.validate().unwrap();
}

#[test]
fn a_cluster_that_cannot_work_is_not_formed() {
    let refused = |change: &dyn Fn(&mut Form)| {
        let mut form = form();
        change(&mut form);
        let mut state = ClusterState::default();
        let refusal = state.apply(1, &command(1, Action::FormCluster(form))).unwrap_err();
        state.validate().unwrap();
        assert_eq!((refusal.kind, state.cluster()), (RefusalKind::Invalid, None));
        refusal.message
    };
    assert!(refused(&|f| f.shards = 0).contains("shards"));
    assert!(refused(&|f| f.lease_ttl_ms = 1).contains("lease_ttl_ms"));
    assert!(refused(&|f| f.members.clear()).contains("members"));
    assert!(refused(&|f| f.members.push(node("us-east-1", "eu-west"))).contains("twice"));
    assert!(refused(&|f| f.members[0].rpc_address = "nowhere".to_owned()).contains("rpc_address"));
    assert!(refused(&|f| f.members.push(witness("w", "us-east"))).contains("a region of its own"));
    assert!(refused(&|f| f.members = vec![witness("w", "w")]).contains("witnesses only"));
    let many = |f: &mut Form| f.members = (0..=REGIONS_MAX).map(|n| node(&format!("n{n}"), &format!("r{n}"))).collect();
    assert!(refused(&many).contains("regions"));
}

#[test]
fn a_bucket_is_everywhere_and_writable_first_unless_told_otherwise() {
    let mut state = formed();
    let all = create(&mut state, 1, spec("all", Policy::ASYNC)).unwrap();
    assert_eq!((all.regions, all.primary), (vec![RegionId(1), RegionId(2), RegionId(3)], Some(RegionId(1))));
    let two = BucketSpec { regions: vec![region("ap-south"), region("us-east")], ..spec("two", Policy::ASYNC) };
    let two = create(&mut state, 2, two).unwrap();
    assert_eq!((two.regions, two.primary), (vec![RegionId(1), RegionId(3)], Some(RegionId(3))));
    let far = BucketSpec { primary: Some(region("eu-west")), ..spec("far", Policy::sync(Acks::Majority)) };
    assert_eq!(create(&mut state, 3, far).unwrap().primary, Some(RegionId(2)));
    assert_eq!(create(&mut state, 4, spec("aa", Policy::ActiveActive)).unwrap().primary, None);
}

#[test]
fn a_bucket_that_cannot_be_is_refused_with_the_fields_in_conflict() {
    let mut state = formed();
    create(&mut state, 1, spec("taken", Policy::ASYNC)).unwrap();
    let mut operation = 1;
    let mut refused = |spec: BucketSpec| {
        operation += 1;
        let before = state.topology().buckets;
        let refusal = create(&mut state, operation, spec).unwrap_err();
        assert_eq!(state.topology().buckets, before);
        (refusal.kind, refusal.message)
    };
    let sync = Policy::sync;
    let one = vec![region("us-east")];
    let cases = [
        (
            BucketSpec { regions: one.clone(), ..spec("b", sync(Acks::All)) },
            RefusalKind::Invalid,
            vec!["policy = sync", "regions"],
        ),
        (
            BucketSpec { regions: one.clone(), ..spec("b", Policy::ActiveActive) },
            RefusalKind::Invalid,
            vec!["active-active", "regions"],
        ),
        (spec("b", sync(Acks::Regions(4))), RefusalKind::Invalid, vec!["acks = 4", "regions"]),
        (spec("b", sync(Acks::Regions(1))), RefusalKind::Invalid, vec!["acks = 1", "policy = sync"]),
        (
            BucketSpec { primary: Some(region("us-east")), ..spec("b", Policy::ActiveActive) },
            RefusalKind::Invalid,
            vec!["primary = us-east", "active-active"],
        ),
        (
            BucketSpec { primary: Some(region("eu-west")), regions: one, ..spec("b", Policy::ASYNC) },
            RefusalKind::Invalid,
            vec!["primary = eu-west", "regions = us-east"],
        ),
        (
            BucketSpec { regions: vec![region("us-east"), region("us-east")], ..spec("b", Policy::ASYNC) },
            RefusalKind::Invalid,
            vec!["regions", "us-east", "twice"],
        ),
        (
            BucketSpec { regions: vec![region("mars")], ..spec("b", Policy::ASYNC) },
            RefusalKind::NotFound,
            vec!["regions", "mars", "us-east, eu-west, ap-south"],
        ),
        (
            BucketSpec { primary: Some(region("mars")), ..spec("b", Policy::ASYNC) },
            RefusalKind::NotFound,
            vec!["primary", "mars"],
        ),
        (spec("taken", Policy::ASYNC), RefusalKind::Exists, vec!["taken"]),
    ];
    for (spec, kind, words) in cases {
        let (found, message) = refused(spec);
        assert_eq!(found, kind, "{message}");
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    }
}

#[test]
fn labels_are_bounded_and_change_one_by_one() {
    let mut state = formed();
    create(&mut state, 1, spec("b", Policy::ASYNC)).unwrap();
    let labels =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Labels>();
    let mut set = |operation: u128, set: Labels, remove: &[&str]| {
        let remove = remove.iter().map(|key| (*key).to_owned()).collect();
        let action = Action::SetLabels { name: bucket_name("b"), set, remove };
        let answer = state.apply(state.index() + 1, &command(operation, action));
        state.validate().unwrap();
        answer.map(|_| state.topology().bucket_named("b").unwrap().labels.clone())
    };
    assert_eq!(set(2, labels(&[("team", "a"), ("tier", "1")]), &[]), Ok(labels(&[("team", "a"), ("tier", "1")])));
    assert_eq!(set(3, labels(&[("team", "b")]), &["tier", "absent"]), Ok(labels(&[("team", "b")])));
    assert!(set(4, labels(&[("x", "1")]), &["x"]).unwrap_err().message.contains("`set` and in `remove`"));
    assert!(set(5, labels(&[("", "1")]), &[]).unwrap_err().message.contains("label key"));
    assert!(set(6, labels(&[("x", "a\nb")]), &[]).unwrap_err().message.contains("value of label `x`"));
    let long = "v".repeat(LABEL_VALUE_BYTES_MAX + 1);
    assert_eq!(set(7, labels(&[("x", &long)]), &[]).unwrap_err().kind, RefusalKind::Invalid);
    let many = (0..LABELS_MAX).map(|n| (format!("k{n}"), String::new())).collect();
    assert!(set(8, many, &[]).unwrap_err().message.contains("labels"));
}

#[test]
fn a_node_registers_moves_its_addresses_and_nothing_else() {
    let mut state = formed();
    let mut register = |operation: u128, spec: NodeSpec| {
        let answer = state.apply(state.index() + 1, &command(operation, Action::RegisterNode(spec)));
        state.validate().unwrap();
        (answer, state.events().count())
    };
    let started = NodeSpec { version: "0.1.0".to_owned(), ..node("us-east-1", "us-east") };
    assert_eq!(register(1, started.clone()).1, 2);
    assert_eq!(register(2, started).1, 2, "the same again is no event");
    let newcomer = register(3, node("eu-west-2", "eu-west")).0.unwrap();
    assert!(matches!(newcomer, Reply::Registered { region: RegionId(2), .. }));
    assert_eq!(register(4, node("eu-west-2", "us-east")).0.unwrap_err().kind, RefusalKind::Conflict);
    assert_eq!(register(5, node("x", "mars")).0.unwrap_err().kind, RefusalKind::NotFound);
    let lost = NodeSpec { replication_address: "host".to_owned(), ..node("eu-west-2", "eu-west") };
    assert!(register(6, lost).0.unwrap_err().message.contains("replication_address = host"));
}

/// ONE-1.
#[test]
fn a_retried_command_gets_its_first_answer_even_after_the_world_has_moved_on() {
    let mut state = formed();
    let first = create(&mut state, 9, spec("b", Policy::ASYNC)).unwrap();
    assert_eq!(create(&mut state, 9, spec("b", Policy::ASYNC)), Ok(first.clone()));
    let delete = command(10, Action::DeleteBucket { name: bucket_name("b") });
    let deleted = state.apply(state.index() + 1, &delete);
    assert_eq!(deleted, Ok(Reply::Deleted { bucket: first.id }));
    // A late duplicate neither creates it again nor forgets what it came to.
    assert_eq!(create(&mut state, 9, spec("b", Policy::ASYNC)), Ok(first));
    assert!(state.topology().bucket_named("b").is_none());
    assert_eq!(state.apply(state.index() + 1, &delete), deleted);
    let misused = create(&mut state, 10, spec("c", Policy::ASYNC)).unwrap_err();
    assert!(misused.message.contains("was used for `delete-bucket b`"), "{misused}");
}

#[test]
fn a_refusal_is_remembered_too() {
    let mut state = formed();
    create(&mut state, 1, spec("b", Policy::ASYNC)).unwrap();
    let refused = create(&mut state, 2, spec("b", Policy::ASYNC));
    state.apply(state.index() + 1, &command(3, Action::DeleteBucket { name: bucket_name("b") })).unwrap();
    assert_eq!(create(&mut state, 2, spec("b", Policy::ASYNC)), refused);
}

#[test]
fn a_dry_run_decides_the_same_and_changes_nothing() {
    let state = formed();
    let tried = state.clone().try_apply(&command(1, Action::CreateBucket(spec("b", Policy::ASYNC))));
    let mut real = state.clone();
    assert_eq!(tried, create(&mut real, 1, spec("b", Policy::ASYNC)).map(Reply::Bucket));
    assert!(state.topology().buckets.is_empty());
}

#[test]
fn the_number_of_buckets_is_bounded() {
    let mut state = formed();
    for n in 0..BUCKETS_MAX as u128 {
        let action = Action::CreateBucket(spec(&format!("b{n}"), Policy::ASYNC));
        state.apply(state.index() + 1, &command(n, action)).unwrap();
    }
    let refused = create(&mut state, u128::MAX - 1, spec("more", Policy::ASYNC)).unwrap_err();
    assert_eq!(refused.kind, RefusalKind::Unavailable);
}

#[test]
#[should_panic(expected = "was applied after")]
fn applying_a_log_twice_is_a_programmers_error() {
    let mut state = formed();
    let _ = state.apply(1, &command(1, Action::DeleteBucket { name: bucket_name("b") }));
}

// ---------------------------------------------------------------------------------------------- laws

fn action() -> impl Strategy<Value = Action> {
    let name = prop::sample::select(vec!["a", "b", "c", "d"]).prop_map(bucket_name);
    let regions = prop::collection::vec(prop::sample::select(vec!["us-east", "eu-west", "ap-south", "mars"]), 0..4)
        .prop_map(|names| names.into_iter().map(region).collect::<Vec<_>>());
    let policy = prop_oneof![
        Just(Policy::ASYNC),
        Just(Policy::ActiveActive),
        Just(Policy::sync(Acks::Majority)),
        (0u8..5).prop_map(|count| Policy::sync(Acks::Regions(count))),
        (0u64..2000)
            .prop_map(|after_ms| Policy::Sync { acks: Acks::One, on_partition: OnPartition::Degrade { after_ms } }),
        max_lag().prop_map(|max_lag| Policy::Async { max_lag: Some(max_lag) }),
    ];
    let primary = prop::option::weighted(0.3, prop::sample::select(vec!["us-east", "eu-west"]).prop_map(region));
    let labels = prop::collection::btree_map("[a-z/ ]{0,3}", "[a-z\n]{0,3}", 0..4);
    let keys = prop::collection::btree_set("[a-z]{1,2}", 0..3);
    let a_node = (0usize..6, prop::sample::select(vec!["us-east", "eu-west", "mars"]), "[a-z]{0,4}:[0-9]{0,5}");
    prop_oneof![
        1 => Just(Action::FormCluster(form())),
        1 => (9_u8..13).prop_map(|format| Action::FormClusterAt { form: form(), format }),
        1 => (9_u8..13).prop_map(|format| Action::Finalize { format }),
        4 => (name.clone(), policy, regions, primary, labels.clone()).prop_map(|(name, policy, regions, primary, labels)| {
            Action::CreateBucket(BucketSpec { name, policy, regions, primary, labels, auto: AutoFailover::default() })
        }),
        2 => name.clone().prop_map(|name| Action::DeleteBucket { name }),
        2 => (name, labels, keys).prop_map(|(name, set, remove): (_, _, BTreeSet<String>)| Action::SetLabels { name, set, remove }),
        2 => a_node.prop_map(|(n, place, rpc_address)| {
            Action::RegisterNode(NodeSpec { rpc_address, ..node(&format!("node-{n}"), place) })
        }),
        3 => (selection(), prop::sample::select(vec!["us-east", "eu-west", "mars"]), 0u64..3).prop_map(|(buckets, to, pause_ms_max)| {
            Action::Switchover(SwitchoverSpec { to: region(to), buckets, lag_ms_max: 5, pause_ms_max, reason: "law".to_owned() })
        }),
        3 => (1u64..160, 1u16..4, 1u32..6, 1u64..4, 0u8..3).prop_map(|(plan, region, bucket, epoch, kind)| {
            let word = Word { plan: PlanId(plan), bucket: BucketId(bucket), epoch: Epoch(epoch), facts: facts(kind) };
            Action::Report { region: RegionId(region), words: vec![word] }
        }),
        3 => name_and_change().prop_map(|(name, change)| Action::SetBucket { name, change }),
        1 => (name_and_change(), 0u64..9).prop_map(|((name, _), detect_ms)| Action::SetDetection { name, detect_ms }),
        2 => (prop::sample::select(vec!["a", "b", "c", "d"]), 0usize..4).prop_map(|(name, which)| {
            let policies = [Policy::ASYNC, Policy::sync(Acks::Majority), Policy::sync(Acks::All), Policy::ActiveActive];
            Action::SetPolicy { name: bucket_name(name), policy: policies[which], auto: None }
        }),
        3 => (prop::sample::select(vec!["a", "b", "c", "d"]), any::<bool>(), prop::option::of(Just("eu-west"))).prop_map(|(name, opens, primary)| {
            let policy = if opens { Policy::ActiveActive } else { Policy::sync(Acks::Majority) };
            let cross = Cross { primary: primary.map(region), pause_ms_max: 1000 };
            Action::Cross { name: bucket_name(name), policy, auto: None, cross }
        }),
        3 => (prop::sample::select(vec!["a", "b", "c", "d"]), any::<bool>()).prop_map(|(name, adds)| {
            let third = region("eu-west");
            let change = if adds { RegionChange::Add(third) } else { RegionChange::Remove(third) };
            Action::CrossRegions { name: bucket_name(name), change, pause_ms_max: 1000 }
        }),
        2 => (prop::sample::select(vec!["a", "b", "c", "d"]), 1u64..4).prop_map(|(name, epoch)| {
            let accepted = Loss { operations: 9, bytes: 900, unbounded: true };
            let (name, region, epoch) = (bucket_name(name), region("eu-west"), Epoch(epoch));
            Action::LoseRegion { name, region, epoch, accepted, pause_ms_max: 1000 }
        }),
        1 => (1u32..6, 1u64..160).prop_map(|(bucket, index)| {
            Action::GiveUpCrossing { bucket: BucketId(bucket), index, why: "late".to_owned() }
        }),
        3 => (prop::sample::select(vec!["a", "b", "c", "d"]), prop::sample::select(vec!["us-east", "eu-west", "ap-south", "mars"]), any::<bool>()).prop_map(|(name, other, add)| {
            let change = if add { RegionChange::Add(region(other)) } else { RegionChange::Remove(region(other)) };
            Action::SetRegions { name: bucket_name(name), change }
        }),
        4 => (1u16..4, 1u32..6, 1u64..4, 0u8..6, 0u16..6).prop_map(|(region, bucket, epoch, what, shards)| {
            let shards = (0..shards).map(ShardId).collect();
            let copies = match what {
                0 => Copies::Ready(shards),
                1 => Copies::Followed(shards),
                2 => Copies::Filled { region: RegionId(4 - region), shards },
                3 => Copies::Stopped { crossing: u64::from(bucket) * 7, at: shards.into_iter().map(|it: ShardId| (it, Lsn(5))).collect() },
                4 => {
                    let seal = Seal { lsn: Lsn(70), hash: SetHash(5), keys: 3 };
                    Copies::Arrived { crossing: u64::from(bucket) * 7, at: shards.into_iter().map(|it: ShardId| (it, seal)).collect() }
                }
                _ => Copies::Lacking { shards, reason: "a law".to_owned() },
            };
            let since = Hlc(u64::from(bucket));
            let word = StandingWord { bucket: BucketId(bucket), epoch: Epoch(epoch), since, copies };
            Action::ReportStanding { region: RegionId(region), words: vec![word] }
        }),
        1 => (1u64..160, "[a-z]{0,9}").prop_map(|(plan, why)| Action::Abort { plan: PlanId(plan), scope: AbortScope::All, why }),
    ]
}

fn bound() -> impl Strategy<Value = LagBound> {
    let part = || prop::option::of(0u64..10_000_000);
    (part(), part(), part()).prop_map(|(ms, operations, bytes)| LagBound { ms, operations, bytes })
}

fn max_lag() -> impl Strategy<Value = MaxLag> {
    (bound(), prop::sample::select(vec![Breach::Alarm, Breach::Throttle, Breach::Block]))
        .prop_map(|(bound, on_breach)| MaxLag { bound, on_breach })
}

fn name_and_change() -> impl Strategy<Value = (BucketName, BucketChange)> {
    let name = prop::sample::select(vec!["a", "b", "c", "d"]).prop_map(bucket_name);
    let mode = prop_oneof![
        Just(AutoMode::Manual),
        Just(AutoMode::ObserveOnly),
        Just(AutoMode::ZeroLoss),
        bound().prop_map(|max_lag| AutoMode::Bounded { max_lag }),
    ];
    let successors =
        prop::collection::vec(prop::sample::select(vec!["us-east", "eu-west", "mars"]).prop_map(region), 0..3);
    let auto = (mode, successors, 0u32..5).prop_map(|(mode, successors, per_day_max)| AutoFailover {
        mode,
        successors,
        per_day_max,
        ..AutoFailover::default()
    });
    let on_partition = prop_oneof![Just(OnPartition::Block), Just(OnPartition::DEGRADE)];
    let change = (
        prop::option::of(auto),
        prop::option::weighted(0.3, prop::option::of(max_lag())),
        prop::option::weighted(0.3, on_partition),
        prop::option::weighted(0.3, prop_oneof![Just(Acks::One), Just(Acks::All), Just(Acks::Regions(3))]),
    )
        .prop_map(|(auto, max_lag, on_partition, acks)| BucketChange {
            auto,
            max_lag,
            on_partition,
            acks,
            policy: None,
            cross: None,
            regions: None,
            detect_ms: None,
            accept_loss: None,
            operation: None,
            reason: String::new(),
        });
    (name, change)
}

fn selection() -> impl Strategy<Value = Selection> {
    let name = prop::sample::select(vec!["a", "b", "c"]).prop_map(bucket_name);
    prop_oneof![
        prop::collection::vec(name, 0..3).prop_map(Selection::Named),
        prop::sample::select(vec!["us-east", "eu-west"]).prop_map(|from| Selection::AllFrom(region(from))),
        ("[a-z]{0,2}", "[a-z]{0,2}").prop_map(|(key, value)| Selection::Labelled { key, value }),
    ]
}

/// The same from every shard, one of the kinds.
fn facts(kind: u8) -> Vec<(ShardId, Fact)> {
    let seal = Seal { lsn: Lsn(70), hash: SetHash(5), keys: 3 };
    let fact = [Fact::CaughtUp, Fact::Sealed(seal), Fact::Ready(seal)][usize::from(kind)];
    (0..4).map(|shard| (ShardId(shard), fact)).collect()
}

/// A history: new commands, and retries of earlier ones (by distance back).
fn history() -> impl Strategy<Value = Vec<Command>> {
    let recorded = (action(), any::<bool>(), "[a-z]{0,5}");
    let action = recorded.prop_map(|(action, on, reason)| if on { action.on_record(reason) } else { action });
    let step = (action, any::<u64>(), 0usize..40, 1u64..3);
    prop::collection::vec(step, 1..80).prop_map(|steps| {
        let mut commands = vec![command(u128::MAX, Action::FormCluster(form()))];
        for (n, (action, at_ms, back, _)) in steps.into_iter().enumerate() {
            let retried =
                commands.len().checked_sub(back).filter(|_| back > 25).and_then(|at| commands.get(at)).cloned();
            commands.push(retried.unwrap_or(Command { at_ms, ..command(n as u128, action) }));
        }
        commands
    })
}

fn run(commands: &[Command]) -> (ClusterState, Vec<Answer>) {
    let mut state = ClusterState::default();
    let answers = commands.iter().zip(1..).map(|(command, index)| state.apply(index * 2, command)).collect();
    (state, answers)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_replica_comes_to_the_same_state_and_answers(commands in history()) {
        let (one, first) = run(&commands);
        let (two, second) = run(&commands);
        prop_assert_eq!(first, second);
        prop_assert_eq!(one.encode(), two.encode());
    }

    #[test]
    fn no_command_breaks_a_rule_of_the_state(commands in history()) {
        let mut state = ClusterState::default();
        for (command, index) in commands.iter().zip(1..) {
            let _ = state.apply(index, command);
            prop_assert_eq!(state.validate(), Ok(()));
            prop_assert_eq!(state.topology().index, index);
        }
    }

    /// ONE-1: a retry changes nothing but the index, wherever in the history it comes.
    #[test]
    fn a_retry_gets_the_first_answer_and_has_no_effect(commands in history()) {
        let mut state = ClusterState::default();
        let mut first: BTreeMap<OperationId, Answer> = BTreeMap::new();
        for (command, index) in commands.iter().zip(1..) {
            let before = state.topology();
            let answer = state.apply(index, command);
            match first.get(&command.operation) {
                None => { first.insert(command.operation, answer); }
                Some(known) => {
                    prop_assert_eq!(known, &answer);
                    // What came too early to be believed may be true by now.
                    if matches!(command.action, Action::Report { .. }) { continue; }
                    prop_assert_eq!(meridian_types::Topology { index, ..before }, state.topology());
                }
            }
        }
    }

    #[test]
    fn ids_rise_and_are_never_reused(commands in history()) {
        let mut state = ClusterState::default();
        let mut seen: BTreeMap<BucketId, BucketName> = BTreeMap::new();
        for (command, index) in commands.iter().zip(1..) {
            let last = state.topology().last_bucket;
            let _ = state.apply(index, command);
            let topology = state.topology();
            prop_assert!(topology.last_bucket >= last);
            for (id, bucket) in &topology.buckets {
                let name = seen.entry(*id).or_insert_with(|| bucket.name.clone());
                prop_assert_eq!(&*name, &bucket.name);
                prop_assert!(*id <= topology.last_bucket);
            }
        }
    }

    #[test]
    fn a_restored_state_is_equal_and_goes_on_equally(commands in history(), cut in 0usize..80) {
        let cut = cut.min(commands.len());
        let (before, after) = commands.split_at(cut);
        let (mut state, _) = run(before);
        let mut restored = ClusterState::decode(&state.encode()).unwrap();
        prop_assert_eq!(&restored, &state);
        for (command, index) in after.iter().zip(1000..) {
            prop_assert_eq!(restored.apply(index, command), state.apply(index, command));
        }
        prop_assert_eq!(restored.encode(), state.encode());
    }

    #[test]
    fn timestamps_rise_whatever_the_proposers_clocks_say(commands in history()) {
        let (state, _) = run(&commands);
        let stamps: Vec<_> = state.events().map(|event| (event.index, event.at)).collect();
        prop_assert!(stamps.is_sorted_by(|a, b| a.0 <= b.0 && a.1 < b.1));
    }

    #[test]
    fn commands_and_answers_survive_the_journey(commands in history()) {
        let (_, answers) = run(&commands);
        for (command, answer) in commands.iter().zip(answers) {
            prop_assert_eq!(&Command::decode(&command.encode().unwrap()).unwrap(), command);
            prop_assert_eq!(reply::decode(&reply::encode(7, &answer)).unwrap(), (7, answer));
        }
    }

    #[test]
    fn any_bytes_are_a_command_an_answer_a_state_or_a_clear_error(mut bytes in prop::collection::vec(any::<u8>(), 0..300), format in 0u8..4) {
        if let Some(first) = bytes.first_mut() { *first = format; }
        if let Ok(command) = Command::decode(&bytes) {
            let mut state = formed();
            let _ = state.apply(2, &command);
            prop_assert_eq!(state.validate(), Ok(()));
        }
        let _ = reply::decode(&bytes);
        prop_assert!(ClusterState::decode(&bytes).is_err());
    }

    /// DUR-3: damage that a checksum would find, and damage behind a right checksum.
    #[test]
    fn a_damaged_state_is_never_accepted_as_it_was(commands in history(), at in any::<prop::sample::Index>(), flip in 1u8..=255, reseal in any::<bool>()) {
        let (state, _) = run(&commands);
        let mut bytes = state.encode();
        let content = bytes.len() - 4;
        let at = at.index(content);
        bytes[at] ^= flip;
        if reseal {
            let checksum = crc32c::crc32c(&bytes[..content]);
            bytes[content..].copy_from_slice(&checksum.to_le_bytes());
            // What decodes keeps every rule; it can't be told from another honest state.
            if let Ok(other) = ClusterState::decode(&bytes) { prop_assert_eq!(other.validate(), Ok(())); }
        } else {
            let refused = ClusterState::decode(&bytes);
            prop_assert!(matches!(refused, Err(SnapshotError::Checksum | SnapshotError::NotAState)), "{:?}", refused);
        }
    }
}

// ------------------------------------------------------------------------------------------- formats

fn fixture_commands() -> Vec<Command> {
    let labels: Labels = [("team".to_owned(), "payments".to_owned())].into();
    let regions = vec![region("eu-west"), region("us-east")];
    let policy = Policy::sync(Acks::Regions(2));
    let sync = BucketSpec { regions, primary: Some(region("us-east")), labels, ..spec("ledger", policy) };
    let remove = ["team".to_owned()].into();
    let set = [("tier".to_owned(), "gold".to_owned())].into();
    vec![
        command(1, Action::FormCluster(form())),
        command(2, Action::RegisterNode(NodeSpec { version: "0.1.0".to_owned(), ..node("eu-west-1", "eu-west") })),
        command(3, Action::CreateBucket(spec("orders", Policy::ASYNC))),
        command(4, Action::CreateBucket(sync)),
        command(5, Action::CreateBucket(spec("carts", Policy::ActiveActive))),
        command(6, Action::SetLabels { name: bucket_name("ledger"), set, remove }),
        command(7, Action::DeleteBucket { name: bucket_name("orders") }),
        command(8, Action::CreateBucket(spec("carts", Policy::ASYNC))),
    ]
}

/// What version 2 added, on top of the first seven commands of version 1.
fn fixture_operations() -> Vec<Command> {
    let switchover = |to: &str, buckets| SwitchoverSpec {
        to: region(to),
        buckets,
        lag_ms_max: 1000,
        pause_ms_max: 5000,
        reason: "maintenance".to_owned(),
    };
    let report = |region, plan, epoch, kind| {
        let word = Word { plan: PlanId(plan), bucket: BucketId(2), epoch: Epoch(epoch), facts: facts(kind) };
        Action::Report { region: RegionId(region), words: vec![word] }
    };
    let gold = Selection::Labelled { key: "tier".to_owned(), value: "gold".to_owned() };
    let late = AbortScope::Late(vec![(BucketId(2), Epoch(2))]);
    let abort = |plan, scope| Action::Abort { plan: PlanId(plan), scope, why: "an operator's wish".to_owned() };
    let back = Action::Switchover(switchover("us-east", Selection::AllFrom(region("eu-west"))));
    vec![
        command(11, Action::Switchover(switchover("eu-west", Selection::Named(vec![bucket_name("ledger")])))),
        command(12, report(1, 16, 1, 0)),
        command(13, report(1, 16, 2, 1)),
        command(14, report(2, 16, 2, 2)),
        command(15, Action::Switchover(switchover("us-east", gold))),
        command(16, abort(24, late)),
        command(17, back.clone()),
        command(18, report(2, 28, 2, 0)),
        command(19, abort(28, AbortScope::All)),
        command(20, back),
        command(21, report(2, 34, 4, 0)),
        command(22, report(2, 34, 5, 1)),
    ]
}

/// Everything there is in a state of version 2: operations that ended either way, and one under way.
fn fixture_state() -> ClusterState {
    let commands: Vec<_> = fixture_commands().into_iter().take(7).chain(fixture_operations()).collect();
    let (state, answers) = run(&commands);
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    let steps: Vec<_> = state.plans().flat_map(|plan| plan.moves.iter().map(|it| it.step.to_string())).collect();
    assert_eq!(steps, ["promoted", "restored", "restored", "draining"]);
    state
}

/// What a version wrote, as it is kept; `REWRITE` in the environment keeps what it writes now.
fn kept(file: &str, written: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(file);
    if std::env::var_os("REWRITE").is_some() {
        std::fs::write(&path, format!("{written}\n")).unwrap();
    }
    std::fs::read_to_string(path).unwrap()
}

fn commands_still_open(version: u8, commands: &[Command]) {
    let written: Vec<_> = commands.iter().map(|command| hex(&command.encode().unwrap())).collect();
    let kept = kept(&format!("commands-v{version}.hex"), &written.join("\n"));
    let kept: Vec<_> = kept.lines().collect();
    assert_eq!(kept, written, "the format of commands has changed: give it a new format byte");
    let read: Vec<_> = kept.iter().map(|line| Command::decode(&unhex(line)).unwrap()).collect();
    assert_eq!(read, commands);
}

fn state_still_opens(version: u8, state: &ClusterState) {
    let written = hex(&state.encode());
    let kept = kept(&format!("state-v{version}.hex"), &written);
    assert_eq!(kept.trim(), written, "the format of the state has changed: give it a new version");
    assert_eq!(ClusterState::decode(&unhex(kept.trim())).unwrap(), *state);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.trim().as_bytes();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

#[test]
fn commands_written_by_version_1_still_open() {
    let stored: Vec<_> = include_str!("../testdata/commands-v1.hex").lines().collect();
    let written: Vec<_> = fixture_commands().iter().map(|command| hex(&command.encode().unwrap())).collect();
    assert_eq!(stored, written, "the format of commands has changed: give it a new format byte");
    let read: Vec<_> = stored.iter().map(|line| Command::decode(&unhex(line)).unwrap()).collect();
    assert_eq!(read, fixture_commands());
}

#[test]
fn commands_written_by_version_2_still_open() {
    let stored: Vec<_> = include_str!("../testdata/commands-v2.hex").lines().collect();
    let written: Vec<_> = fixture_operations().iter().map(|command| hex(&command.encode().unwrap())).collect();
    assert_eq!(stored, written, "the format of commands has changed: give it a new format byte");
    let read: Vec<_> = stored.iter().map(|line| Command::decode(&unhex(line)).unwrap()).collect();
    assert_eq!(read, fixture_operations());
}

#[test]
fn a_state_written_by_version_1_still_opens() {
    let (state, _) = run(&fixture_commands());
    let stored = include_str!("../testdata/state-v1.hex").trim();
    assert_eq!(ClusterState::decode(&unhex(stored)).unwrap(), state);
}

#[test]
fn a_state_written_by_version_2_still_opens() {
    let state = fixture_state();
    let stored = include_str!("../testdata/state-v2.hex").trim();
    assert_eq!(ClusterState::decode(&unhex(stored)).unwrap(), state);
}

#[test]
fn formats_of_another_release_and_oversized_bytes_are_named() {
    assert_eq!(Command::decode(&[]), Err(CommandError::Empty));
    assert_eq!(Command::decode(&[12, 0]), Err(CommandError::UnknownFormat(12)));
    let mut older = fixture_operations()[0].encode().unwrap();
    older[0] = 1;
    assert!(matches!(Command::decode(&older), Err(CommandError::Damaged(_))), "version 1 knew no operations");
    assert_eq!(Command::decode(&vec![1; COMMAND_BYTES_MAX + 1]), Err(CommandError::TooLarge(COMMAND_BYTES_MAX + 1)));
    let mut trailing = fixture_commands()[0].encode().unwrap();
    trailing.push(0);
    assert_eq!(Command::decode(&trailing), Err(CommandError::Trailing(1)));

    let mut newer = ClusterState::default().encode();
    newer[8] = 12;
    let content = newer.len() - 4;
    let checksum = crc32c::crc32c(&newer[..content]);
    newer[content..].copy_from_slice(&checksum.to_le_bytes());
    assert_eq!(ClusterState::decode(&newer), Err(SnapshotError::UnknownVersion(12)));
}
