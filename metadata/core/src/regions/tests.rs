//! A region more or less.

use meridian_types::{
    Acks, AutoFailover, BucketChange, BucketId, Copies, Lane, Selection, StandingWord, SwitchoverSpec,
};

use super::*;
use crate::testing::{act, name, with};
use crate::{Action, Answer};

const AP: RegionId = RegionId(3);

fn region(name: &str) -> RegionName {
    RegionName::new(name).unwrap()
}

fn add(state: &mut ClusterState, name: &str) -> Answer {
    set(state, RegionChange::Add(region(name)))
}

fn remove(state: &mut ClusterState, name: &str) -> Answer {
    set(state, RegionChange::Remove(region(name)))
}

fn set(state: &mut ClusterState, change: RegionChange) -> Answer {
    act(state, Action::SetRegions { name: name(), change })
}

fn bucket(state: &ClusterState) -> Bucket {
    state.bucket_named(&name()).unwrap().as_ref().clone()
}

/// The bucket in us-east and eu-west only.
fn pair(policy: Policy) -> ClusterState {
    let mut state = with(policy);
    remove(&mut state, "ap-south").unwrap();
    if !bucket(&state).standing.is_sync() {
        let epoch = bucket(&state).epoch;
        said(&mut state, epoch, Copies::Ready(all()));
    }
    state
}

fn all() -> BTreeSet<ShardId> {
    (0..2).map(ShardId).collect()
}

fn said(state: &mut ClusterState, epoch: Epoch, copies: Copies) {
    let Bucket { id, standing, .. } = bucket(state);
    let words = vec![StandingWord { bucket: id, epoch, since: standing.since(), copies }];
    act(state, Action::ReportStanding { region: RegionId(1), words }).unwrap();
}

fn filled(state: &mut ClusterState, shards: BTreeSet<ShardId>) {
    let epoch = bucket(state).epoch;
    said(state, epoch, Copies::Filled { region: AP, shards });
}

#[test]
fn a_region_that_joins_counts_for_nothing_until_every_shard_has_said_that_it_is_filled() {
    let mut state = pair(Policy::sync(Acks::All));
    let before = bucket(&state);
    add(&mut state, "ap-south").unwrap();
    let joining = bucket(&state);
    assert_eq!((joining.regions.clone(), joining.epoch.0), (before.regions, before.epoch.0 + 1));
    assert!(!joining.is_in(AP) && joining.reaches(AP) && joining.standing.is_sync(), "as many acknowledge as before");
    assert!(!joining.carries(AP, before.epoch) && joining.carries(AP, joining.epoch));
    filled(&mut state, [ShardId(0)].into());
    assert!(!bucket(&state).is_in(AP));
    filled(&mut state, [ShardId(1)].into());
    let joined = bucket(&state);
    assert!(joined.is_in(AP) && joined.joins.now.is_none());
    assert_eq!((joined.epoch.0, joined.joins.since(AP)), (joining.epoch.0 + 1, joining.epoch), "all is three now");
    assert!(matches!(joined.standing, Standing::Recovering { .. }), "DUR-2");
}

#[test]
fn where_as_many_acknowledge_as_before_the_region_counts_without_another_epoch() {
    for policy in [Policy::ASYNC, Policy::sync(Acks::Majority)] {
        let mut state = pair(policy);
        add(&mut state, "ap-south").unwrap();
        let epoch = bucket(&state).epoch;
        filled(&mut state, all());
        let joined = bucket(&state);
        assert!((joined.is_in(AP), joined.epoch, joined.standing.is_sync()) == (true, epoch, true), "{policy}");
    }
}

#[test]
fn what_was_said_under_an_earlier_epoch_or_while_the_primary_moves_fills_nothing() {
    let mut state = pair(Policy::ASYNC);
    add(&mut state, "ap-south").unwrap();
    let Bucket { epoch, .. } = bucket(&state);
    filled(&mut state, [ShardId(0)].into());
    let spec = SwitchoverSpec {
        to: region("eu-west"),
        buckets: Selection::Named(vec![name()]),
        lag_ms_max: 0,
        pause_ms_max: 1000,
        reason: String::new(),
    };
    act(&mut state, Action::Switchover(spec)).unwrap();
    filled(&mut state, all());
    assert!(!bucket(&state).is_in(AP), "its epoch is the operation's");
    let plan = state.plans().next_back().unwrap().id;
    let scope = crate::command::AbortScope::All;
    act(&mut state, Action::Abort { plan, scope, why: String::new() }).unwrap();
    said(&mut state, Epoch(epoch.0 - 1), Copies::Filled { region: AP, shards: all() });
    assert!(!bucket(&state).is_in(AP));
    filled(&mut state, all());
    assert!(bucket(&state).is_in(AP));
}

#[test]
fn giving_up_is_removing_it_and_adding_it_again_begins_behind_what_it_may_have_got() {
    let mut state = pair(Policy::ASYNC);
    add(&mut state, "ap-south").unwrap();
    let first = bucket(&state).joins.since(AP);
    remove(&mut state, "ap-south").unwrap();
    let gone = bucket(&state);
    assert!(!gone.reaches(AP) && gone.carries(AP, first) && !gone.carries(AP, gone.epoch), "an epoch goes to it whole");
    filled(&mut state, all());
    assert!(!bucket(&state).is_in(AP), "what is said of it now is late");
    add(&mut state, "ap-south").unwrap();
    assert!(bucket(&state).joins.since(AP) > first);
}

#[test]
fn a_removed_region_counts_no_more_and_what_it_had_counts_as_exposed_unless_enough_others_have_it() {
    for (acks, sync) in [(Acks::All, true), (Acks::Majority, false), (Acks::Regions(2), false)] {
        let mut state = with(Policy::sync(acks));
        remove(&mut state, "ap-south").unwrap();
        let removed = bucket(&state);
        assert_eq!((removed.regions, removed.epoch), (vec![RegionId(1), RegionId(2)], Epoch(2)));
        assert_eq!(removed.standing.is_sync(), sync, "{acks}");
        said(&mut state, Epoch(1), Copies::Ready(all()));
        assert_eq!(bucket(&state).standing.is_sync(), sync, "what a leader of the old rule says counts for nothing");
        said(&mut state, Epoch(2), Copies::Ready(all()));
        assert!(bucket(&state).standing.is_sync());
    }
}

#[test]
fn what_can_not_be_is_refused_with_what_to_do_first() {
    let refused = |answer: Answer, says: &str| {
        let refused = answer.unwrap_err();
        assert!(refused.message.contains(says), "{refused}");
    };
    let mut state = with(Policy::sync(Acks::All));
    refused(remove(&mut state, "us-east"), "meridian switchover --bucket orders --to eu-west");
    refused(remove(&mut state, "mars"), "no region");
    let mut three = with(Policy::sync(Acks::Regions(3)));
    refused(remove(&mut three, "ap-south"), "--acks 2");
    let mut two = pair(Policy::sync(Acks::All));
    refused(remove(&mut two, "eu-west"), "--policy async");
    for change in [RegionChange::Add(region("ap-south")), RegionChange::Remove(region("ap-south"))] {
        let mut every = with(Policy::ActiveActive);
        let unchanged = matches!(change, RegionChange::Add(_));
        let answer = set(&mut every, change);
        if unchanged { drop(answer.unwrap()) } else { refused(answer, "active-active") }
    }
    let auto = AutoFailover { successors: vec![region("ap-south")], ..AutoFailover::default() };
    let change = BucketChange { auto: Some(auto), ..BucketChange::default() };
    act(&mut state, Action::SetBucket { name: name(), change }).unwrap();
    refused(remove(&mut state, "ap-south"), "--successors");
}

#[test]
fn one_thing_at_a_time_and_a_region_that_is_there_is_not_added_twice() {
    let mut state = with(Policy::ASYNC);
    add(&mut state, "ap-south").unwrap();
    assert_eq!(bucket(&state).epoch, Epoch(1), "nothing changed");
    remove(&mut state, "ap-south").unwrap();
    add(&mut state, "ap-south").unwrap();
    let epoch = bucket(&state).epoch;
    let busy = remove(&mut state, "eu-west").unwrap_err();
    assert!(busy.kind == RefusalKind::Retry && busy.message.contains("--remove-region ap-south"), "{busy}");
    let policy = Policy::sync(Acks::Majority);
    let busy = act(&mut state, Action::SetPolicy { name: name(), policy, auto: None }).unwrap_err();
    assert_eq!((busy.kind, bucket(&state).epoch), (RefusalKind::Retry, epoch));
    filled(&mut state, all());
    act(&mut state, Action::SetPolicy { name: name(), policy, auto: None }).unwrap();
    assert_eq!(bucket(&state).lane_of(epoch), Lane::Async);
    let busy = remove(&mut state, "ap-south").unwrap_err();
    assert!(busy.message.contains("turned"), "{busy}");
    assert_eq!(bucket(&state).id, BucketId(1));
}
