use std::sync::Arc;

use meridian_types::{
    Acks, AutoFailover, Bucket, BucketName, DrillShard, Epoch, Hlc, Loss, NodeId, NodeName, Phase, Region, RegionName,
    ShardId, Standing,
};

use super::*;

const ID: BucketId = BucketId(1);

fn topology(policy: Policy) -> Topology {
    let mut topology = Topology::default();
    for (id, name) in [(1, "us-east"), (2, "eu-west"), (3, "ap-south")] {
        let id = RegionId(id);
        topology.regions.insert(id, Region { id, name: RegionName::new(name).unwrap() });
    }
    let bucket = Bucket {
        id: ID,
        name: BucketName::new("pay").unwrap(),
        policy,
        epoch: Epoch(3),
        phase: Phase::Steady,
        primary: Some(RegionId(1)),
        regions: vec![RegionId(1), RegionId(2), RegionId(3)],
        labels: Default::default(),
        created: Hlc(1),
        standing: Standing::default(),
        auto: AutoFailover::default(),
        turns: Default::default(),
        joins: Default::default(),
        crossing: None,
    };
    topology.buckets.insert(ID, Arc::new(bucket));
    topology
}

fn estimate(proven: bool, heard: &[u16]) -> Estimate {
    let bucket = BucketEstimate {
        bucket: ID,
        name: BucketName::new("pay").unwrap(),
        epoch: Epoch(3),
        from: RegionId(1),
        primary_answers: true,
        to: Some(RegionId(2)),
        pulls: false,
        proven,
        needed: Some(2),
        heard: heard.iter().copied().map(RegionId).collect(),
        lost: Loss { operations: 0, bytes: 0, unbounded: !proven },
        known: Loss::default(),
        oldest_ms: 0,
        oldest_key: None,
        said_ms: Some(100),
        obstacle: String::new(),
    };
    Estimate { region: RegionId(2), heard: bucket.heard.clone(), took_ms: 40, buckets: vec![bucket], consent: None }
}

fn report() -> DrillReport {
    let reads = DrillLatency { count: 200, first_us: 900, p50_us: 60, p99_us: 300 };
    let bucket = DrillBucket { bucket: ID, epoch: Epoch(4), reads, writes: reads, ..DrillBucket::default() };
    DrillReport {
        region: RegionId(2),
        bytes: 2048,
        steps: DrillStep::ALL.map(|step| (step, 1500)).to_vec(),
        shards: vec![DrillShard { bucket: ID, shard: ShardId(3), keys: 1234, ..DrillShard::default() }],
        buckets: vec![bucket],
        lease_ms: 5000,
        ..DrillReport::default()
    }
}

fn view(report: &DrillReport, estimate: &Estimate, topology: &Topology) -> View {
    let node = Node {
        id: NodeId(2),
        name: NodeName::new("eu-west-1").unwrap(),
        region: RegionId(2),
        zone: String::new(),
        rpc_address: String::new(),
        replication_address: String::new(),
        version: String::new(),
    };
    View::of(report, estimate, topology, (&node, "--bucket pay --to eu-west"))
}

#[test]
fn a_good_drill_says_how_long_a_real_failover_would_take_and_of_what() {
    let sync = topology(Policy::sync(Acks::Majority));
    let view = view(&report(), &estimate(true, &[2, 3]), &sync);
    assert_eq!(view.verdict(), Verdict::Good);
    // The lease, three rounds of 40 ms, and 3 ms for fence and take-over.
    assert_eq!((view.real.take_over_ms, view.real.first_write_ms), (Some(3), Some(5123)));
    let text = view.text();
    for part in [
        "pay",
        "1,234",
        "equal",
        "nothing (proven)",
        "about 5.12 s",
        "GOOD: eu-west can take over",
        "somebody has to start",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_shard_that_differs_fails_the_drill_loudly_and_says_what_to_do() {
    let mut report = report();
    report.shards[0].fault = "its rows add up to something else".to_owned();
    report.steps.truncate(2);
    report.buckets.clear();
    let view = view(&report, &estimate(true, &[2, 3]), &topology(Policy::sync(Acks::Majority)));
    assert_eq!(view.verdict(), Verdict::Failed);
    let text = view.text();
    for part in ["FAILED", "FAIL pay, shard 3", "DIFFERS", "meridian resync run pay --to eu-west", "not known"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn what_a_policy_promises_and_is_not_there_is_in_the_way_and_what_it_does_not_promise_is_not() {
    let unproven = estimate(false, &[2]);
    let all = view(&report(), &unproven, &topology(Policy::sync(Acks::All)));
    assert_eq!(all.verdict(), Verdict::NotReady);
    assert_eq!(all.findings.len(), 2, "{:?}", all.findings);
    assert!(all.findings[0].contains("word of 2 regions, 1 were heard"), "{:?}", all.findings);
    assert!(all.findings[1].contains("need 3 regions, and 1 would be left"), "{:?}", all.findings);
    let of_async = view(&report(), &unproven, &topology(Policy::ASYNC));
    assert_eq!(of_async.verdict(), Verdict::Good);
    assert!(of_async.text().contains("nothing known of"), "{}", of_async.text());
}

#[test]
fn programs_get_the_same_facts() {
    let view = view(&report(), &estimate(true, &[2, 3]), &topology(Policy::ASYNC));
    let json = serde_json::to_value(&view).unwrap();
    assert_eq!(json["verdict"], "good");
    assert_eq!(json["steps"][4]["step"], "take-over");
    assert_eq!(json["shards"][0]["shard"], 3);
    assert_eq!(json["real"]["first_write_ms"], 5123);
}
