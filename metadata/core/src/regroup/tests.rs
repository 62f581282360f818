use meridian_types::{
    Acks, BucketId, CROSSING_MS_DEFAULT, CROSSING_MS_MAX, Copies, Cross, Lsn, Policy, RefusalKind, Seal, SetHash,
    StandingWord, SwitchoverSpec,
};
use proptest::prelude::*;

use super::*;
use crate::testing::{act, name, with};
use crate::{Action, Answer};

const A: RegionId = RegionId(1);
const B: RegionId = RegionId(2);
const C: RegionId = RegionId(3);
const REGIONS: [RegionId; 3] = [A, B, C];

fn region(name: &str) -> RegionName {
    RegionName::new(name).unwrap()
}

fn set(state: &mut ClusterState, change: RegionChange) -> Answer {
    act(state, Action::CrossRegions { name: name(), change, pause_ms_max: CROSSING_MS_DEFAULT })
}

fn add(state: &mut ClusterState) -> Answer {
    set(state, RegionChange::Add(region("ap-south")))
}

fn remove(state: &mut ClusterState) -> Answer {
    set(state, RegionChange::Remove(region("ap-south")))
}

fn give_up(state: &mut ClusterState) -> Answer {
    act(state, Action::SetPolicy { name: name(), policy: Policy::ActiveActive, auto: None })
}

fn bucket(state: &ClusterState) -> Bucket {
    state.bucket_named(&name()).unwrap().as_ref().clone()
}

fn say(state: &mut ClusterState, of: RegionId, copies: Copies) {
    let Bucket { id, standing, epoch, .. } = bucket(state);
    let words = vec![StandingWord { bucket: id, epoch, since: standing.since(), copies }];
    act(state, Action::ReportStanding { region: of, words }).unwrap();
}

fn index(state: &ClusterState) -> u64 {
    bucket(state).crossing.map_or(0, |it| it.index)
}

fn arrived(crossing: u64, shards: std::ops::Range<u16>) -> Copies {
    let seal = Seal { lsn: Lsn(9), hash: SetHash(5), keys: 3 };
    Copies::Arrived { crossing, at: shards.map(|shard| (ShardId(shard), seal)).collect() }
}

/// All of them stop and have everything.
fn meet(state: &mut ClusterState, regions: &[RegionId]) {
    let crossing = index(state);
    for of in regions {
        let at = (0..2).map(|shard| (ShardId(shard), Lsn(7))).collect();
        say(state, *of, Copies::Stopped { crossing, at });
    }
    regions.iter().for_each(|of| say(state, *of, arrived(crossing, 0..2)));
}

fn fill(state: &mut ClusterState, shards: std::ops::Range<u16>) {
    say(state, C, Copies::Filled { region: C, shards: shards.map(ShardId).collect() });
}

/// A and B only.
fn pair() -> ClusterState {
    let mut state = with(Policy::ActiveActive);
    remove(&mut state).unwrap();
    meet(&mut state, &REGIONS);
    state
}

/// C joins them.
fn joining() -> ClusterState {
    let mut state = pair();
    add(&mut state).unwrap();
    meet(&mut state, &[A, B]);
    state
}

#[test]
fn a_region_leaves_once_every_region_has_what_all_stopped_at_itself_among_them() {
    let mut state = with(Policy::ActiveActive);
    remove(&mut state).unwrap();
    let leaving = bucket(&state);
    assert_eq!((leaving.epoch, leaving.regions.len(), leaving.is_between_primaries()), (Epoch(1), 3, true));
    meet(&mut state, &[A, B]);
    assert!(bucket(&state).crossing.is_some(), "what it ordered may be nowhere else");
    meet(&mut state, &[C]);
    let left = bucket(&state);
    assert_eq!((left.policy, left.epoch, left.regions.clone()), (Policy::ActiveActive, Epoch(2), vec![A, B]));
    assert!(left.crossing.is_none() && left.carries(C, Epoch(1)) && !left.carries(C, Epoch(2)));
    assert!(left.accepts_writes_in(B) && !left.accepts_writes_in(C));
}

#[test]
fn a_region_that_joins_gets_what_is_written_counts_for_nothing_and_writes_once_it_is_filled_and_all_have_met_again() {
    let mut state = joining();
    let joins = bucket(&state);
    assert_eq!((joins.epoch, joins.regions.clone(), joins.joins.joining()), (Epoch(3), vec![A, B], Some(C)));
    assert!(!joins.carries(C, Epoch(2)) && joins.carries(C, Epoch(3)) && !joins.accepts_writes_in(C));
    say(&mut state, A, Copies::Filled { region: C, shards: [ShardId(0), ShardId(1)].into() });
    assert!(bucket(&state).joins.now.unwrap().filled.is_empty(), "it speaks for itself");
    fill(&mut state, 0..1);
    assert!(bucket(&state).crossing.is_none());
    fill(&mut state, 0..2);
    let counting = bucket(&state);
    let pause_ms_max = counting.crossing.as_ref().map(|it| it.pause_ms_max);
    assert_eq!((pause_ms_max, counting.epoch), (Some(CROSSING_MS_DEFAULT), Epoch(3)), "by itself");
    meet(&mut state, &[A, B]);
    assert!(!bucket(&state).is_in(C), "it has to meet with the others");
    meet(&mut state, &[C]);
    let joined = bucket(&state);
    assert_eq!((joined.epoch, joined.regions.clone(), joined.joins.now.clone()), (Epoch(4), REGIONS.to_vec(), None));
    assert!(joined.joins.since(C) == Epoch(3) && joined.accepts_writes_in(C));
}

#[test]
fn what_is_given_up_is_what_it_was_and_counting_begins_again_only_when_somebody_asks() {
    let mut state = with(Policy::ActiveActive);
    remove(&mut state).unwrap();
    give_up(&mut state).unwrap();
    let back = bucket(&state);
    assert_eq!((back.epoch, back.regions.len(), back.crossing), (Epoch(1), 3, None));

    let mut state = joining();
    fill(&mut state, 0..2);
    let (id, index) = (bucket(&state).id, index(&state));
    act(&mut state, Action::GiveUpCrossing { bucket: id, index, why: "late".to_owned() }).unwrap();
    fill(&mut state, 0..2);
    let waits = bucket(&state);
    assert_eq!((waits.crossing.clone(), waits.joins.joining(), waits.epoch), (None, Some(C), Epoch(3)));
    add(&mut state).unwrap();
    meet(&mut state, &REGIONS);
    assert!(bucket(&state).is_in(C));
}

#[test]
fn giving_up_a_joining_takes_no_pause_and_another_one_begins_behind_what_it_may_have_got() {
    let mut state = joining();
    fill(&mut state, 0..1);
    // From an older client, too.
    act(&mut state, Action::SetRegions { name: name(), change: RegionChange::Remove(region("ap-south")) }).unwrap();
    let gone = bucket(&state);
    assert_eq!((gone.reaches(C), gone.epoch, gone.crossing.is_none()), (false, Epoch(3), true));
    assert!(!gone.carries(C, Epoch(3)));
    fill(&mut state, 0..2);
    assert!(bucket(&state).crossing.is_none(), "what is said of it now is late");
    add(&mut state).unwrap();
    meet(&mut state, &[A, B]);
    assert_eq!(bucket(&state).joins.since(C), Epoch(4));
}

#[test]
fn one_thing_at_a_time_and_what_can_not_be_is_refused_with_what_to_do() {
    let refused = |answer: Answer, kind, says: &str| {
        let refused = answer.unwrap_err();
        assert!(refused.kind == kind && refused.message.contains(says), "{refused}");
    };
    let mut state = with(Policy::ActiveActive);
    add(&mut state).unwrap();
    assert!(bucket(&state).crossing.is_none(), "it is there");
    let older = Action::SetRegions { name: name(), change: RegionChange::Remove(region("ap-south")) };
    refused(act(&mut state, older), RefusalKind::Invalid, "say how long");
    let endless = CROSSING_MS_MAX + 1;
    let change = RegionChange::Remove(region("ap-south"));
    let endless = Action::CrossRegions { name: name(), change, pause_ms_max: endless };
    refused(act(&mut state, endless), RefusalKind::Invalid, "max-pause");
    remove(&mut state).unwrap();
    refused(add(&mut state), RefusalKind::Retry, "--policy active-active");
    refused(set(&mut state, RegionChange::Remove(region("eu-west"))), RefusalKind::Retry, "changing its regions");
    refused(act(&mut state, Action::DeleteBucket { name: name() }), RefusalKind::Retry, "changing its regions");
    meet(&mut state, &REGIONS);
    refused(set(&mut state, RegionChange::Remove(region("eu-west"))), RefusalKind::Invalid, "--policy async --primary");
    refused(set(&mut state, RegionChange::Add(region("mars"))), RefusalKind::NotFound, "no region");

    let mut state = joining();
    let busy = set(&mut state, RegionChange::Remove(region("eu-west")));
    refused(busy, RefusalKind::Retry, "--remove-region ap-south");
    let cross = Cross { primary: Some(region("eu-west")), pause_ms_max: 1000 };
    let close = Action::Cross { name: name(), policy: Policy::ASYNC, auto: None, cross };
    refused(act(&mut state, close), RefusalKind::Retry, "is joining");
    let mut state = with(Policy::sync(Acks::Majority));
    refused(remove(&mut state), RefusalKind::Invalid, "max-pause");
    let spec = SwitchoverSpec {
        to: region("eu-west"),
        buckets: meridian_types::Selection::Named(vec![name()]),
        lag_ms_max: 0,
        pause_ms_max: 1000,
        reason: String::new(),
    };
    act(&mut state, Action::Switchover(spec)).unwrap();
    let busy = act(&mut state, Action::SetRegions { name: name(), change: RegionChange::Remove(region("ap-south")) });
    refused(busy, RefusalKind::Retry, "is being moved");
}

#[derive(Clone, Copy, Debug)]
enum Deed {
    Add,
    Remove,
    GiveUp,
    Meet(usize),
    Arrive(usize, u16),
    Fill(u16),
    /// What a region said of some earlier crossing arrives late.
    Late(usize, u64),
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let deed = prop_oneof![
        3 => Just(Deed::Add),
        2 => Just(Deed::Remove),
        1 => Just(Deed::GiveUp),
        6 => (0usize..3).prop_map(Deed::Meet),
        6 => (0usize..3, 0u16..2).prop_map(|(region, shard)| Deed::Arrive(region, shard)),
        4 => (1u16..3).prop_map(Deed::Fill),
        2 => (0usize..3, 1u64..6).prop_map(|(region, back)| Deed::Late(region, back)),
    ];
    prop::collection::vec(deed, 0..120)
}

proptest! {
    /// Whatever is done, given up and said late: who writes in an epoch is the same for whoever has heard of it and orders, each of
    /// them gets its entries, and whether a region that stays gets them never changes (ORD-1).
    #[test]
    fn an_epoch_s_entries_go_to_the_same_regions_whatever_is_done_given_up_and_said_late(deeds in deeds()) {
        let mut state = with(Policy::ActiveActive);
        let mut writers: BTreeMap<Epoch, Vec<RegionId>> = BTreeMap::new();
        let mut gets: BTreeMap<(Epoch, RegionId), bool> = BTreeMap::new();
        for deed in deeds {
            let before = bucket(&state);
            match deed {
                Deed::Add => drop(add(&mut state)),
                Deed::Remove => drop(remove(&mut state)),
                Deed::GiveUp => drop(give_up(&mut state)),
                Deed::Meet(at) => meet(&mut state, &[REGIONS[at]]),
                Deed::Arrive(at, shard) => {
                    let word = arrived(index(&state), shard..shard + 1);
                    say(&mut state, REGIONS[at], word);
                }
                Deed::Fill(shards) => fill(&mut state, 0..shards),
                Deed::Late(at, back) => {
                    let word = arrived(index(&state).saturating_sub(back), 0..2);
                    say(&mut state, REGIONS[at], word);
                }
            }
            let after = bucket(&state);
            prop_assert!(after.epoch >= before.epoch && after.id == BucketId(1));
            prop_assert_eq!(crate::ClusterState::decode(&state.encode()).unwrap(), state.clone());
            for bucket in [&before, &after].into_iter().filter(|it| !it.is_between_primaries()) {
                let known = writers.entry(bucket.epoch).or_insert_with(|| bucket.regions.clone());
                prop_assert_eq!(&*known, &bucket.regions, "epoch {}", bucket.epoch);
                prop_assert!(bucket.regions.iter().all(|it| bucket.carries(*it, bucket.epoch)));
            }
            // Of the present epoch a joining that is given up ends at once: what came of it is passed over for good.
            for (epoch, of) in (1..after.epoch.0).flat_map(|epoch| REGIONS.map(|of| (Epoch(epoch), of))) {
                let now = after.carries(of, epoch);
                prop_assert_eq!(*gets.entry((epoch, of)).or_insert(now), now, "epoch {} to {}", epoch, of);
            }
        }
    }
}
