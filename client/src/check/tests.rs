use meridian_types::{
    Acks, BucketId, BucketName, Epoch, Hlc, Labels, Lane, Lsn, NodeId, NodeName, PlanId, Policy, Region, RegionName,
    ShardId,
};

use super::*;

const US: RegionId = RegionId(1);
const EU: RegionId = RegionId(2);

fn spec(buckets: Selection) -> SwitchoverSpec {
    let to = RegionName::new("eu").unwrap();
    SwitchoverSpec { to, buckets, lag_ms_max: 100, pause_ms_max: 5000, reason: String::new() }
}

fn orders() -> Selection {
    Selection::Named(vec![BucketName::new("orders").unwrap()])
}

fn bucket() -> Bucket {
    Bucket {
        id: BucketId(1),
        name: BucketName::new("orders").unwrap(),
        policy: Policy::ASYNC,
        epoch: Epoch(1),
        phase: Phase::Steady,
        primary: Some(US),
        regions: vec![US, EU],
        labels: Labels::new(),
        created: Hlc(0),
        standing: Default::default(),
        auto: Default::default(),
        turns: Default::default(),
        joins: Default::default(),
        crossing: None,
    }
}

fn heard(name: &str, region: RegionId, target: RegionId) -> Heard {
    let node = Node {
        id: NodeId::of(&NodeName::new(name).unwrap()),
        name: NodeName::new(name).unwrap(),
        region,
        zone: "a".to_owned(),
        rpc_address: "h:1".to_owned(),
        replication_address: "h:2".to_owned(),
        version: "1".to_owned(),
    };
    let status = NodeStatus {
        node: node.id,
        region,
        version: "1".to_owned(),
        lease_ms: 4000,
        shards_led: 1,
        disk_free_bytes: 50,
        disk_total_bytes: 100,
        certificate_left_s: 100 * 24 * 3600,
        wall_ms: 1_000_000,
        votes: true,
        ..NodeStatus::default()
    };
    let lag = BucketLag { bucket: BucketId(1), target, lag_ms: 40, ..BucketLag::default() };
    let lane = LaneStatus {
        shard: ShardId(0),
        target,
        lane: Lane::Async,
        head: Lsn(9),
        sent: Lsn(9),
        acked: Lsn(9),
        state: LaneState::Streaming,
        raw_bytes: 0,
        wire_bytes: 0,
        frames: 0,
        entries: 0,
        heard_ms: Some(400),
    };
    Heard { node, status: Ok(status), lags: Ok((vec![lag], vec![lane])), window_ms: (999_980, 1_000_020) }
}

/// Two regions and a witness of the metadata plane, one shard, one bucket; all is well.
fn facts() -> Facts {
    let mut topology = Topology { index: 9, shards: 1, ..Topology::default() };
    for (id, name) in [(US, "us"), (EU, "eu"), (RegionId(3), "ap")] {
        topology.regions.insert(id, Region { id, name: RegionName::new(name).unwrap() });
    }
    topology.bucket_ids.insert(bucket().name, BucketId(1));
    topology.buckets.insert(BucketId(1), Arc::new(bucket()));
    let nodes = vec![heard("us-1", US, EU), heard("eu-1", EU, US), heard("ap-1", RegionId(3), US)];
    Facts { topology: Arc::new(topology), nodes, dry_run: Ok(1) }
}

fn failures(change: impl FnOnce(&mut Facts)) -> Vec<(String, String)> {
    let mut facts = facts();
    change(&mut facts);
    let failed = judge(&spec(orders()), &facts).into_iter().filter_map(|finding| match finding.verdict {
        Verdict::Ok { .. } => None,
        Verdict::Fail { found, remedy } => {
            assert!(!remedy.is_empty(), "{}: no remedy", finding.what);
            Some((finding.what.to_owned(), found))
        }
    });
    failed.collect()
}

fn status(heard: &mut Heard) -> &mut NodeStatus {
    heard.status.as_mut().unwrap()
}

fn change_bucket(facts: &mut Facts, change: impl FnOnce(&mut Bucket)) {
    let bucket = Arc::make_mut(&mut facts.topology).buckets.get_mut(&BucketId(1)).unwrap();
    change(Arc::make_mut(bucket));
}

#[test]
fn where_all_is_well_every_finding_is_ok() {
    assert_eq!(failures(|_| {}), []);
    let what: BTreeSet<&str> = judge(&spec(orders()), &facts()).iter().map(|finding| finding.what).collect();
    let expected = [
        "acks",
        "bucket",
        "certificate",
        "clients",
        "clocks",
        "disk",
        "dry run",
        "lag",
        "link",
        "metadata quorum",
        "node",
        "operations",
        "reverse link",
        "shards",
        "versions",
    ];
    assert_eq!(what, expected.into());
}

#[test]
fn a_large_disk_need_not_have_a_tenth_of_it_free() {
    let failed = failures(|it: &mut Facts| {
        let status = status(&mut it.nodes[1]);
        (status.disk_free_bytes, status.disk_total_bytes) = (64 << 30, 10 << 40);
    });
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn each_thing_in_the_way_is_named() {
    let only = |change: &dyn Fn(&mut Facts)| {
        let failed = failures(change);
        assert_eq!(failed.len(), 1, "{failed:?}");
        failed[0].clone()
    };
    assert_eq!(only(&|it| status(&mut it.nodes[1]).disk_free_bytes = 9).0, "disk");
    assert_eq!(only(&|it| status(&mut it.nodes[1]).certificate_left_s = 6 * 24 * 3600).0, "certificate");
    assert_eq!(only(&|it| status(&mut it.nodes[1]).shards_led = 0), ("shards".into(), "0 of 1 have a leader".into()));
    assert_eq!(only(&|it| status(&mut it.nodes[2]).version = "2".to_owned()), ("versions".into(), "1, 2".into()));
    assert_eq!(only(&|it| status(&mut it.nodes[1]).problems.push("full".to_owned())), ("node".into(), "full".into()));
    let clocks = only(&|it| status(&mut it.nodes[1]).wall_ms += 700);
    assert_eq!(clocks, ("clocks".into(), "eu-1 is at least 660 ms ahead of us-1".into()));
    let lag = only(&|it| it.nodes[0].lags.as_mut().unwrap().0[0].lag_ms = 101);
    assert!(lag.0 == "lag" && lag.1.starts_with("101 ms"), "{lag:?}");
    assert_eq!(only(&|it| it.nodes[0].lags.as_mut().unwrap().0.clear()), ("lag".into(), "not known".into()));
    let broken = LaneState::Connecting { reason: "refused".to_owned() };
    let link = only(&|it| it.nodes[1].lags.as_mut().unwrap().1[0].state = broken.clone());
    assert_eq!(link, ("reverse link".into(), "0 of 1 shards stream; 1 lanes can't connect (refused)".into()));
    let quorum = only(&|it| it.nodes[2].status = Err("no route".to_owned()));
    assert_eq!(quorum, ("metadata quorum".into(), "1 of 3 voters".into()), "a node that is silent may be a voter");
    let phase = Phase::CatchingUp { plan: PlanId(7), to: EU, lag_ms_max: 1 };
    let busy = only(&|it| change_bucket(it, |bucket| bucket.phase = phase));
    assert_eq!(busy, ("operations".into(), "op-7 has it (catching-up)".into()));
    assert_eq!(only(&|it| it.dry_run = Err("no quorum".to_owned())).0, "dry run");
    assert_eq!(only(&|it| change_bucket(it, |bucket| bucket.regions = vec![US])).1, "eu does not hold it");
}

#[test]
fn a_silent_node_of_the_next_primary_is_in_the_way_of_many_things() {
    let failed = failures(|it| {
        it.nodes[1].status = Err("no route".to_owned());
        it.nodes[1].lags = Err("no route".to_owned());
    });
    let what: Vec<&str> = failed.iter().map(|(what, _)| what.as_str()).collect();
    let expected = ["node", "certificate", "disk", "shards", "metadata quorum", "reverse link", "versions", "clocks"];
    assert_eq!(what, expected, "what can't be known is not ok");
}

#[test]
fn a_link_that_says_it_streams_must_have_been_heard_just_now() {
    let heard = |ms: Option<u64>| {
        let failed = failures(|it| it.nodes[1].lags.as_mut().unwrap().1[0].heard_ms = ms);
        failed.into_iter().map(|(what, _)| what).collect::<Vec<_>>()
    };
    assert_eq!(heard(Some(HEARD_MS_MAX)), [""; 0]);
    assert_eq!(heard(Some(HEARD_MS_MAX + 1)), ["reverse link"]);
    assert_eq!(heard(None), ["reverse link"], "an older release can't tell");
}

/// Three regions hold it, and two of them are left once the old primary's is off.
#[test]
fn writes_must_get_their_copies_without_the_old_region() {
    let ap = RegionId(3);
    let with = |policy: Policy, change: &dyn Fn(&mut Facts)| {
        let failed = failures(|it| {
            change_bucket(it, |bucket| (bucket.policy, bucket.regions) = (policy, vec![US, EU, ap]));
            let lane = it.nodes[1].lags.as_ref().unwrap().1[0].clone();
            it.nodes[1].lags.as_mut().unwrap().1.push(LaneStatus { target: ap, ..lane });
            change(it);
        });
        failed.into_iter().filter(|(what, _)| what == ACKS).map(|(_, found)| found).collect::<Vec<_>>()
    };
    let sync = |acks, on_partition| Policy::Sync { acks, on_partition };
    let majority = sync(Acks::Majority, OnPartition::Block);
    assert_eq!(with(majority, &|_| {}), [""; 0]);
    assert_eq!(
        with(sync(Acks::All, OnPartition::Block), &|_| {}),
        ["2 of the 3 regions that it takes: its writes would wait"]
    );
    let degrades = with(sync(Acks::All, OnPartition::DEGRADE), &|_| {});
    assert_eq!(degrades, ["2 of the 3 regions that it takes: it would be DEGRADED"]);
    let found = "1 of the 2 regions that it takes: its writes would wait";
    assert_eq!(with(majority, &|it| it.nodes[2].status = Err("no route".to_owned())), [found]);
    assert_eq!(with(majority, &|it| it.nodes[1].lags.as_mut().unwrap().1[1].heard_ms = Some(9000)), [found]);
    assert_eq!(with(Policy::ASYNC, &|it| it.nodes[2].status = Err("no route".to_owned())), [""; 0]);
}

#[test]
fn who_is_connected_is_said_and_is_in_nobodys_way() {
    let mut facts = facts();
    status(&mut facts.nodes[0]).clients = 12;
    let findings = judge(&spec(orders()), &facts);
    let clients: Vec<_> = findings.iter().filter(|it| it.what == "clients").collect();
    assert_eq!(clients.iter().map(|it| it.of.as_str()).collect::<Vec<_>>(), ["us-1", "eu-1"]);
    let Verdict::Ok { found } = &clients[0].verdict else { panic!("{clients:?}") };
    assert!(found.starts_with("12 connected") && found.contains("at most 5000 ms"), "{found}");
}

#[test]
fn what_is_selected_is_looked_for_and_a_bucket_that_is_there_needs_no_lag() {
    let gone = Selection::Named(vec![BucketName::new("gone").unwrap()]);
    assert!(
        judge(&spec(gone), &facts()).iter().any(|it| it.of == "gone" && matches!(it.verdict, Verdict::Fail { .. }))
    );
    let label = Selection::Labelled { key: "team".to_owned(), value: "x".to_owned() };
    assert!(judge(&spec(label), &facts()).iter().any(|it| it.of == "label team=x"));
    let mut there = facts();
    change_bucket(&mut there, |bucket| bucket.primary = Some(EU));
    let findings = judge(&spec(orders()), &there);
    assert!(findings.iter().all(|it| matches!(it.verdict, Verdict::Ok { .. }) && it.what != "lag"), "{findings:?}");
    let mars = SwitchoverSpec { to: RegionName::new("mars").unwrap(), ..spec(orders()) };
    let findings = judge(&mars, &facts());
    assert!(matches!(&findings[..], [Finding { what: "target", .. }]), "{findings:?}");
}
