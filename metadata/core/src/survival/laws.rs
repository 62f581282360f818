//! Laws of survivability: what is said to survive is compared with every way in which an acknowledged write can lie on disks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meridian_types::{
    Acks, AutoFailover, AutoMode, Bucket, BucketId, BucketName, Epoch, Hlc, Labels, LagBound, Node, NodeId, NodeName,
    OnPartition, Phase, Policy, Region, RegionId, RegionName, ShardId, Standing, Topology,
};
use proptest::prelude::*;

use super::{CASES_MAX, Evidence, Exposure, Kind, Loss, Stop, Survival, Tally, Unit};

/// A planet on paper: per region the zones of its nodes; all of them vote for every shard.
fn topology(regions: &[Vec<u8>], shards: u16, buckets: Vec<Bucket>) -> Topology {
    let mut topology = Topology { shards, ..Topology::default() };
    for (id, zones) in (1..).map(RegionId).zip(regions) {
        topology.regions.insert(id, Region { id, name: RegionName::new(&format!("r{id}")).unwrap() });
        let mut voters = Vec::new();
        for (at, zone) in zones.iter().enumerate() {
            let name = NodeName::new(&format!("r{id}-{at}")).unwrap();
            let node = Node {
                id: NodeId::of(&name),
                name,
                region: id,
                zone: format!("z{zone}"),
                rpc_address: "h:1".to_owned(),
                replication_address: "h:2".to_owned(),
                version: String::new(),
            };
            voters.push(node.id);
            topology.nodes.insert(node.id, node);
        }
        topology.groups.extend((0..shards).map(|shard| ((id, ShardId(shard)), voters.clone())));
    }
    for bucket in buckets {
        topology.bucket_ids.insert(bucket.name.clone(), bucket.id);
        topology.buckets.insert(bucket.id, Arc::new(bucket));
    }
    topology
}

fn bucket(id: u32, policy: Policy, regions: u16, primary: u16) -> Bucket {
    Bucket {
        id: BucketId(id),
        name: BucketName::new(&format!("b{id}")).unwrap(),
        policy,
        epoch: Epoch(1),
        phase: Phase::Steady,
        primary: policy.has_primary().then_some(RegionId(primary)),
        regions: (1..=regions).map(RegionId).collect(),
        labels: Labels::new(),
        created: Hlc(1),
        standing: Standing::default(),
        auto: AutoFailover::default(),
        turns: Default::default(),
        joins: Default::default(),
        crossing: None,
    }
}

/// Everybody is up; the first node of each region votes.
fn evidence(topology: Topology) -> Evidence {
    let first = |region: &RegionId| topology.voters(*region, ShardId(0)).first().copied();
    Evidence {
        voters: topology.regions.keys().filter_map(first).collect(),
        live: topology.nodes.keys().copied().collect(),
        topology: Arc::new(topology),
        ..Evidence::default()
    }
}

fn tally<W>(tallies: &[Tally<W>], kind: Kind) -> (usize, usize) {
    tallies.iter().find(|it| it.kind == kind).map(|it| (it.fine, it.of)).unwrap()
}

fn why<'a, W>(tallies: &'a [Tally<W>], dead: &[Unit]) -> Option<&'a W> {
    tallies.iter().flat_map(|it| &it.cases).find(|case| case.dead == dead).map(|case| &case.why)
}

const SYNC: Policy = Policy::sync(Acks::Majority);

// ------------------------------------------------------------------------------------------ examples

#[test]
fn a_sync_bucket_in_three_regions_survives_any_one_of_them_and_stops_without_its_primary() {
    let survival = evidence(topology(&[vec![0], vec![0], vec![0]], 2, vec![bucket(1, SYNC, 3, 1)])).survey();
    let row = &survival.buckets[0];
    assert_eq!((row.loss_now.clone(), row.stop_now.clone()), (None, None));
    assert_eq!(tally(&row.keeping, Kind::Region), (3, 3));
    assert_eq!(tally(&row.keeping, Kind::TwoRegions), (1, 3), "only the two that are not the primary");
    assert_eq!(tally(&row.serving, Kind::Region), (2, 3));
    let lost = why(&row.serving, &[Unit::Region(RegionId(1))]);
    assert_eq!(lost, Some(&Stop::PrimaryLost { region: RegionId(1), proven: true }));
    assert_eq!(tally(&survival.deciding, Kind::Region), (3, 3));
    assert_eq!(tally(&survival.deciding, Kind::TwoRegions), (0, 3));
}

/// A region that is down already has used up what `sync` can spare (DUR-2).
#[test]
fn after_the_loss_of_one_region_a_sync_bucket_can_not_lose_its_primary_too() {
    let mut evidence = evidence(topology(&[vec![0], vec![0], vec![0]], 1, vec![bucket(1, SYNC, 3, 1)]));
    let third = evidence.topology.voters(RegionId(3), ShardId(0))[0];
    evidence.live.remove(&third);
    let row = &evidence.survey().buckets[0];
    assert_eq!(tally(&row.keeping, Kind::Region), (1, 2));
    let lost = why(&row.keeping, &[Unit::Region(RegionId(1))]);
    assert_eq!(lost, Some(&Loss::Unproven { left: 1, needed: 2 }));
    // One region alone is no majority of two acknowledgements, nor of three metadata voters.
    assert_eq!(tally(&row.serving, Kind::Region), (0, 2));
}

#[test]
fn an_async_bucket_is_exposed_by_what_the_region_closest_behind_has_not_yet() {
    let mut evidence = evidence(topology(&[vec![0], vec![0], vec![0]], 1, vec![bucket(1, Policy::ASYNC, 3, 1)]));
    let behind = |operations| Exposure { operations, bytes: 100, oldest_ms: 80, age_ms: 5 };
    evidence.lags.insert((BucketId(1), RegionId(1), RegionId(2)), behind(12));
    evidence.lags.insert((BucketId(1), RegionId(1), RegionId(3)), behind(70));
    let row = &evidence.survey().buckets[0];
    let exposed = |operations| Loss::Exposed { origins: vec![RegionId(1)], known: Some(behind(operations)) };
    let (first, second) = (Unit::Region(RegionId(1)), Unit::Region(RegionId(2)));
    assert_eq!(why(&row.keeping, std::slice::from_ref(&first)), Some(&exposed(12)));
    assert_eq!(why(&row.keeping, &[first, second]), Some(&exposed(70)));
    assert_eq!(tally(&row.keeping, Kind::Region), (2, 3));
    let unknown = Evidence { lags: BTreeMap::new(), ..evidence }.survey();
    let lost = why(&unknown.buckets[0].keeping, &[Unit::Region(RegionId(1))]);
    assert_eq!(lost, Some(&Loss::Exposed { origins: vec![RegionId(1)], known: None }));
}

#[test]
fn an_active_active_bucket_goes_on_in_any_region_and_is_exposed_in_each() {
    let policy = Policy::ActiveActive;
    let survival = evidence(topology(&[vec![0], vec![0], vec![0]], 1, vec![bucket(1, policy, 3, 1)])).survey();
    let row = &survival.buckets[0];
    assert_eq!(tally(&row.serving, Kind::TwoRegions), (3, 3), "also without the metadata majority");
    assert_eq!(tally(&row.keeping, Kind::Region), (0, 3));
}

#[test]
fn a_copy_that_diverged_is_no_copy() {
    let mut evidence = evidence(topology(&[vec![0], vec![0], vec![0]], 1, vec![bucket(1, SYNC, 3, 1)]));
    evidence.unsound.insert((BucketId(1), RegionId(2)));
    let row = &evidence.survey().buckets[0];
    assert_eq!(why(&row.keeping, &[Unit::Region(RegionId(1))]), Some(&Loss::Unproven { left: 1, needed: 2 }));
    assert_eq!(why(&row.serving, &[Unit::Region(RegionId(3))]), Some(&Stop::TooFewRegions { left: 1, needed: 2 }));
}

/// A region that was lost is one too many for `block`, and one less copy on record for `degrade`.
#[test]
fn a_bucket_that_may_degrade_goes_on_and_promises_no_copies_while_it_does() {
    let degrading = Policy::Sync { acks: Acks::All, on_partition: OnPartition::Degrade { after_ms: 1000 } };
    let mut row = bucket(1, degrading, 3, 1);
    let survival = evidence(topology(&[vec![0], vec![0], vec![0]], 1, vec![row.clone()])).survey();
    assert_eq!(tally(&survival.buckets[0].serving, Kind::Region), (2, 3));
    assert_eq!(tally(&survival.buckets[0].keeping, Kind::Region), (3, 3));
    row.standing = Standing::Degraded {
        since: Hlc(1),
        exposed_since: Hlc(1),
        reason: "ap-south does not answer".to_owned(),
        ready: BTreeSet::new(),
    };
    let survival = evidence(topology(&[vec![0], vec![0], vec![0]], 1, vec![row])).survey();
    let lost = why(&survival.buckets[0].keeping, &[Unit::Region(RegionId(1))]);
    assert!(matches!(lost, Some(Loss::Exposed { .. })), "{lost:?}");
}

#[test]
fn what_fails_over_by_itself_goes_on_where_its_loss_is_within_the_bound() {
    let auto = |mode| AutoFailover { mode, ..AutoFailover::default() };
    let sync = Bucket { auto: auto(AutoMode::ZeroLoss), ..bucket(1, SYNC, 3, 1) };
    let bound = LagBound { operations: Some(20), ..LagBound::default() };
    let bounded = Bucket { auto: auto(AutoMode::Bounded { max_lag: bound }), ..bucket(2, Policy::ASYNC, 3, 1) };
    let mut evidence = evidence(topology(&[vec![0], vec![0], vec![0]], 1, vec![sync, bounded]));
    let lag = (BucketId(2), RegionId(1), RegionId(2));
    evidence.lags.insert(lag, Exposure { operations: 20, ..Exposure::default() });
    let survival = evidence.survey();
    assert!(survival.buckets.iter().all(|row| tally(&row.serving, Kind::Region) == (3, 3)));
    evidence.lags.insert(lag, Exposure { operations: 21, ..Exposure::default() });
    assert_eq!(tally(&evidence.survey().buckets[1].serving, Kind::Region), (2, 3));
}

#[test]
fn nodes_and_zones_of_a_region_of_three_may_die_one_by_one() {
    let regions = [vec![0, 1, 2], vec![0, 0, 1], vec![0]];
    let survival = evidence(topology(&regions, 2, vec![bucket(1, Policy::ASYNC, 3, 1)])).survey();
    let row = &survival.buckets[0];
    assert_eq!(tally(&row.keeping, Kind::Node), (7, 7));
    assert_eq!(tally(&row.keeping, Kind::Zone), (6, 6));
    assert_eq!(tally(&row.keeping, Kind::TwoZones), (12, 15), "not two zones of the primary's region");
    assert_eq!(tally(&row.serving, Kind::Node), (7, 7));
}

#[test]
fn a_planet_beyond_the_bound_on_pairs_is_still_looked_at_one_by_one() {
    let regions: Vec<_> = (0..20).map(|_| vec![0, 1, 2, 3, 4]).collect();
    let survival = evidence(topology(&regions, 1, vec![bucket(1, Policy::ASYNC, 20, 1)])).survey();
    let kinds: Vec<_> = survival.keeping.iter().map(|it| it.kind).collect();
    assert_eq!(kinds, [Kind::Node, Kind::Zone, Kind::Region, Kind::TwoRegions]);
    assert!(survival.keeping.iter().all(|it| it.cases.len() <= CASES_MAX));
}

// ------------------------------------------------------------------------------------------ brute force

/// Every set of nodes that one acknowledged write may be on: in as many regions as acknowledge, in each on some majority.
fn placements(topology: &Topology, bucket: &Bucket, origin: RegionId) -> Vec<BTreeSet<NodeId>> {
    let acks = bucket.policy.required_regions(bucket.regions.len());
    let mut found = Vec::new();
    for mask in 0_u32..1 << bucket.regions.len() {
        let chosen: Vec<_> = bucket.regions.iter().enumerate().filter(|(at, _)| mask >> at & 1 == 1).collect();
        if chosen.len() != acks || !chosen.iter().any(|(_, region)| **region == origin) {
            continue;
        }
        let mut sets = vec![BTreeSet::new()];
        for (_, region) in chosen {
            let voters = topology.voters(*region, ShardId(0));
            let majorities: Vec<BTreeSet<NodeId>> = (0_u32..1 << voters.len())
                .map(|mask| voters.iter().enumerate().filter(|(at, _)| mask >> at & 1 == 1).map(|(_, n)| *n).collect())
                .filter(|set: &BTreeSet<NodeId>| set.len() > voters.len() / 2)
                .collect();
            sets = sets.iter().flat_map(|set| majorities.iter().map(move |more| set | more)).collect();
        }
        found.extend(sets);
    }
    found
}

/// Whether some acknowledged write may be on no node that is left.
fn may_lose(evidence: &Evidence, bucket: &Bucket, dead: &BTreeSet<NodeId>) -> bool {
    let gone = |node: &NodeId| dead.contains(node) || !evidence.live.contains(node);
    let stood = |region: &RegionId| {
        let voters = evidence.topology.voters(*region, ShardId(0));
        voters.iter().filter(|node| evidence.live.contains(node)).count() > voters.len() / 2
    };
    let origins: Vec<_> = match bucket.primary {
        Some(primary) => vec![primary],
        None => bucket.regions.iter().copied().filter(stood).collect(),
    };
    origins.iter().any(|origin| placements(&evidence.topology, bucket, *origin).iter().any(|set| set.iter().all(gone)))
}

/// Whether an acknowledgement can still come about: by somebody who may give it, from as many regions as it takes.
fn may_write(evidence: &Evidence, bucket: &Bucket, dead: &BTreeSet<NodeId>) -> bool {
    let lives = |node: &&NodeId| !dead.contains(node) && evidence.live.contains(node);
    let granted = evidence.voters.iter().filter(lives).count() * 2 > evidence.voters.len();
    let mut takers = bucket.regions.iter().filter(|it| bucket.accepts_writes_in(**it));
    takers.any(|origin| {
        (bucket.primary.is_none() || granted)
            && placements(&evidence.topology, bucket, *origin).iter().any(|set| set.iter().all(|it| lives(&it)))
    })
}

fn policies() -> impl Strategy<Value = Policy> {
    prop_oneof![
        Just(Policy::ASYNC),
        Just(Policy::ActiveActive),
        Just(Policy::sync(Acks::One)),
        Just(SYNC),
        Just(Policy::sync(Acks::All)),
    ]
}

/// Regions of one or three nodes, in zones as they come.
fn planets() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let region = prop_oneof![prop::collection::vec(0_u8..3, 1), prop::collection::vec(0_u8..3, 3)];
    prop::collection::vec(region, 2..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// DUR-2, as it is shown to operators: exactly what no placement of an acknowledged write contradicts is called safe,
    /// and exactly what leaves somebody who may acknowledge is called going on.
    #[test]
    fn what_is_said_to_survive_survives_and_nothing_else_does(
        regions in planets(),
        policy in policies(),
        down in prop::collection::vec(0_usize..12, 0..3),
        primary in 0_usize..4,
    ) {
        let count = u16::try_from(regions.len()).unwrap();
        let primary = u16::try_from(primary % regions.len() + 1).unwrap();
        let mut evidence = evidence(topology(&regions, 2, vec![bucket(1, policy, count, primary)]));
        let nodes: Vec<_> = evidence.topology.nodes.keys().copied().collect();
        for at in down {
            evidence.live.remove(&nodes[at % nodes.len()]);
        }
        let survival: Survival = evidence.survey();
        let bucket = evidence.topology.buckets.values().next().cloned().unwrap();
        for (keeping, serving) in survival.buckets[0].keeping.iter().zip(&survival.buckets[0].serving) {
            let failures = evidence.failures(keeping.kind).unwrap();
            let kept = failures.iter().filter(|it| !may_lose(&evidence, &bucket, &it.nodes)).count();
            let served = failures.iter().filter(|it| may_write(&evidence, &bucket, &it.nodes)).count();
            prop_assert_eq!((keeping.fine, keeping.of), (kept, failures.len()), "{:?}", keeping);
            prop_assert_eq!((serving.fine, serving.of), (served, failures.len()), "{:?}", serving);
        }
    }

    /// One more death never makes anything safer.
    #[test]
    fn what_two_survive_each_of_them_survives(regions in planets(), policy in policies(), primary in 0_usize..4) {
        let count = u16::try_from(regions.len()).unwrap();
        let primary = u16::try_from(primary % regions.len() + 1).unwrap();
        let evidence = evidence(topology(&regions, 1, vec![bucket(1, policy, count, primary)]));
        let row = &evidence.survey().buckets[0];
        for (one, two) in [(Kind::Node, Kind::TwoNodes), (Kind::Zone, Kind::TwoZones), (Kind::Region, Kind::TwoRegions)] {
            for (tallies, name) in [
                (row.keeping.iter().map(|it| (it.kind, it.fine, it.of)).collect::<Vec<_>>(), "keeping"),
                (row.serving.iter().map(|it| (it.kind, it.fine, it.of)).collect(), "serving"),
            ] {
                let of = |kind| tallies.iter().find(|it| it.0 == kind).copied().unwrap();
                let (one, two) = (of(one), of(two));
                let pairs_of_fine = one.1 * one.1.saturating_sub(1) / 2;
                prop_assert!(two.1 <= pairs_of_fine, "{name}: {one:?} {two:?}");
            }
        }
    }
}
