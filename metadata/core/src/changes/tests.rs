use meridian_types::{
    BucketChange, Copies, Cross, Epoch, FailoverSpec, Lsn, OperationId, RegionId, Seal, Selection, SetHash, ShardId,
    StandingWord,
};

use super::*;
use crate::testing::{act, name, with};
use crate::{Answer, Command};

const SYNC: Policy = Policy::sync(Acks::Majority);
const REGIONS: [RegionId; 3] = [RegionId(1), RegionId(2), RegionId(3)];

/// Asks for it on record, for a reason.
fn ask(state: &mut ClusterState, action: Action) -> Answer {
    act(state, action.on_record("a test".to_owned()))
}

fn policy(policy: Policy) -> Action {
    Action::SetPolicy { name: name(), policy, auto: None }
}

fn opening() -> Action {
    let cross = Cross { primary: None, pause_ms_max: 1000 };
    Action::Cross { name: name(), policy: Policy::ActiveActive, auto: None, cross }
}

fn third() -> RegionName {
    RegionName::new("ap-south").unwrap()
}

fn regroup(change: RegionChange) -> Action {
    Action::CrossRegions { name: name(), change, pause_ms_max: 1000 }
}

fn bucket(state: &ClusterState) -> Bucket {
    state.bucket_named(&name()).unwrap().as_ref().clone()
}

fn last(state: &ClusterState) -> Change {
    state.changes().next_back().unwrap().as_ref().clone()
}

fn stages(change: &Change) -> Vec<Stage> {
    change.stages.iter().map(|it| it.stage).collect()
}

fn outcome(state: &ClusterState, id: PlanId) -> ChangeOutcome {
    state.change_of(id).unwrap().end.clone().unwrap().outcome
}

fn say(state: &mut ClusterState, region: RegionId, copies: Copies) {
    let Bucket { id, standing, epoch, .. } = bucket(state);
    let words = vec![StandingWord { bucket: id, epoch, since: standing.since(), copies }];
    act(state, Action::ReportStanding { region, words }).unwrap();
}

fn shards() -> BTreeSet<ShardId> {
    (0..2).map(ShardId).collect()
}

/// All regions stop and have everything.
fn meet(state: &mut ClusterState, regions: &[RegionId]) {
    let crossing = bucket(state).crossing.unwrap().index;
    for region in regions {
        let at = (0..2).map(|shard| (ShardId(shard), Lsn(7))).collect();
        say(state, *region, Copies::Stopped { crossing, at });
    }
    let seal = Seal { lsn: Lsn(9), hash: SetHash(5), keys: 3 };
    for region in regions {
        let at = (0..2).map(|shard| (ShardId(shard), seal)).collect();
        say(state, *region, Copies::Arrived { crossing, at });
    }
}

fn late(state: &mut ClusterState) {
    let Bucket { id, crossing, .. } = bucket(state);
    let index = crossing.unwrap().index;
    act(state, Action::GiveUpCrossing { bucket: id, index, why: "too late".to_owned() }).unwrap();
}

fn abort(state: &mut ClusterState, plan: PlanId) -> Answer {
    act(state, Action::Abort { plan, scope: AbortScope::All, why: "enough".to_owned() })
}

fn details(state: &ClusterState, verb: &str) -> Vec<String> {
    state.events().filter(|it| it.verb == verb).map(|it| it.detail.clone()).collect()
}

/// Active-active in two regions.
fn pair() -> ClusterState {
    let mut state = with(Policy::ActiveActive);
    ask(&mut state, regroup(RegionChange::Remove(third()))).unwrap();
    meet(&mut state, &REGIONS);
    state
}

#[test]
fn a_change_of_policy_is_done_once_copies_and_lanes_are_and_the_record_says_who_why_and_when() {
    let mut state = with(Policy::ASYNC);
    ask(&mut state, policy(SYNC)).unwrap();
    let begun = last(&state);
    assert_eq!((begun.who.as_str(), begun.reason.as_str()), ("operator", "a test"));
    assert_eq!((begun.before.policy, begun.before.epoch), (Policy::ASYNC, Epoch(1)));
    assert_eq!((begun.goal, begun.stage()), (ChangeGoal::Policy { policy: SYNC }, Some(Stage::Settling)));
    say(&mut state, REGIONS[0], Copies::Ready(shards()));
    assert_eq!(last(&state).stage(), Some(Stage::Settling), "the lanes have not turned");
    say(&mut state, REGIONS[0], Copies::Followed(shards()));
    let done = last(&state);
    let end = done.end.clone().unwrap();
    assert_eq!((end.outcome, end.epoch), (ChangeOutcome::Done, Epoch(2)));
    assert_eq!((done.created_ms, end.at_ms), (begun.created_ms, 1000 + state.index()));
    let id = done.id;
    assert!(
        details(&state, "set-policy")[0].starts_with(&format!("{id}: sync")),
        "{:?}",
        details(&state, "set-policy")
    );
    assert!(details(&state, "sync")[0].ends_with(&format!("({id})")));
    assert_eq!(details(&state, "done"), [format!("policy change ({id}), after 2 ms")]);
}

#[test]
fn more_acks_are_a_change_of_policy_and_other_settings_are_none() {
    let mut state = with(SYNC);
    let set = |change| Action::SetBucket { name: name(), change };
    ask(&mut state, set(BucketChange { acks: Some(Acks::All), ..BucketChange::default() })).unwrap();
    assert_eq!(
        (last(&state).goal, last(&state).stage()),
        (ChangeGoal::Acks { acks: Acks::All }, Some(Stage::Settling))
    );
    let on_partition = Some(meridian_types::OnPartition::DEGRADE);
    ask(&mut state, set(BucketChange { on_partition, ..BucketChange::default() })).unwrap();
    assert_eq!((state.changes().count(), last(&state).stage()), (1, Some(Stage::Settling)));
    say(&mut state, REGIONS[0], Copies::Ready(shards()));
    assert_eq!(outcome(&state, last(&state).id), ChangeOutcome::Done);
}

#[test]
fn the_same_id_again_does_nothing_twice_however_much_happened_since_and_nothing_else() {
    let mut state = with(Policy::ASYNC);
    let under = OperationId::of("nightly");
    let again = |state: &mut ClusterState, action: Action| {
        let index = state.index() + 1;
        let action = action.on_record(String::new());
        state.apply(index, &Command { operation: under, who: "operator".to_owned(), at_ms: 1000, action })
    };
    again(&mut state, policy(SYNC)).unwrap();
    ask(&mut state, policy(Policy::ASYNC)).unwrap();
    // As when the answers of that many other commands were remembered since.
    state.operations = Default::default();
    let before = bucket(&state);
    again(&mut state, policy(SYNC)).unwrap();
    assert_eq!((bucket(&state), state.changes().count()), (before, 2));
    state.operations = Default::default();
    let refused = again(&mut state, policy(Policy::sync(Acks::All))).unwrap_err();
    assert!(refused.kind == RefusalKind::Invalid && refused.message.contains("use a new operation id"), "{refused}");
}

#[test]
fn a_crossing_is_on_record_with_the_time_that_writes_were_held_and_says_why_it_was_given_up() {
    let mut state = with(SYNC);
    ask(&mut state, opening()).unwrap();
    assert_eq!(last(&state).stage(), Some(Stage::Meeting));
    late(&mut state);
    let given_up = last(&state);
    assert!(matches!(outcome(&state, given_up.id), ChangeOutcome::GivenUp { why } if why.contains("too late")));
    assert_eq!(given_up.pauses_ms().collect::<Vec<_>>(), [1]);
    ask(&mut state, opening()).unwrap();
    meet(&mut state, &REGIONS);
    assert_eq!((outcome(&state, last(&state).id), last(&state).took_ms()), (ChangeOutcome::Done, Some(6)));
    assert_eq!(state.changes().count(), 2);
}

#[test]
fn who_sets_the_policy_that_a_crossing_bucket_has_aborts_the_crossing() {
    let mut state = with(SYNC);
    ask(&mut state, opening()).unwrap();
    let crossing = last(&state).id;
    ask(&mut state, policy(SYNC)).unwrap();
    let by = last(&state).id;
    let ChangeOutcome::Aborted { who, why } = outcome(&state, crossing) else { panic!("{:?}", last(&state)) };
    assert!(who == "operator" && why.starts_with(&format!("{by} was asked for instead")), "{why}");
}

#[test]
fn a_primary_that_is_lost_ends_the_crossing_of_its_bucket() {
    let mut state = with(SYNC);
    ask(&mut state, opening()).unwrap();
    let spec = FailoverSpec {
        buckets: Selection::Named(vec![name()]),
        to: None,
        consent: None,
        automatic: true,
        reason: String::new(),
    };
    act(&mut state, Action::Failover(spec)).unwrap();
    assert!(matches!(outcome(&state, last(&state).id), ChangeOutcome::GivenUp { why } if why.contains("was lost")));
}

#[test]
fn an_active_active_bucket_meets_twice_for_a_region_and_whoever_asks_again_goes_on_where_it_stopped() {
    let mut state = pair();
    ask(&mut state, regroup(RegionChange::Add(third()))).unwrap();
    let first = last(&state).id;
    meet(&mut state, &REGIONS[..2]);
    say(&mut state, REGIONS[2], Copies::Filled { region: REGIONS[2], shards: shards() });
    late(&mut state);
    let filled = last(&state);
    assert_eq!(stages(&filled), [Stage::Meeting, Stage::Filling, Stage::Meeting, Stage::Filled]);
    assert!(filled.end.is_none(), "it joins still");
    ask(&mut state, regroup(RegionChange::Add(third()))).unwrap();
    let second = last(&state);
    assert_eq!(outcome(&state, first), ChangeOutcome::GivenUp { why: format!("{} goes on with it", second.id) });
    ask(&mut state, regroup(RegionChange::Add(third()))).unwrap_err();
    meet(&mut state, &REGIONS);
    assert_eq!((outcome(&state, second.id), bucket(&state).regions.len()), (ChangeOutcome::Done, 3));
}

#[test]
fn asking_for_what_is_on_its_way_already_leaves_the_record_of_who_asked_first() {
    let mut state = with(Policy::ASYNC);
    let set = |change| Action::SetRegions { name: name(), change };
    ask(&mut state, set(RegionChange::Remove(third()))).unwrap();
    ask(&mut state, set(RegionChange::Add(third()))).unwrap();
    let (first, known) = (last(&state), state.changes().count());
    ask(&mut state, set(RegionChange::Add(third()))).unwrap();
    assert_eq!((last(&state), state.changes().count()), (first, known));
}

#[test]
fn an_abort_does_at_every_stage_what_an_operator_can_do_by_hand() {
    let mut crossing = with(SYNC);
    ask(&mut crossing, opening()).unwrap();
    let mut counting = pair();
    ask(&mut counting, regroup(RegionChange::Add(third()))).unwrap();
    meet(&mut counting, &REGIONS[..2]);
    let mut filling = counting.clone();
    say(&mut counting, REGIONS[2], Copies::Filled { region: REGIONS[2], shards: shards() });
    assert_eq!((last(&filling).stage(), last(&counting).stage()), (Some(Stage::Filling), Some(Stage::Meeting)));
    let mut turning = with(Policy::ASYNC);
    ask(&mut turning, policy(SYNC)).unwrap();
    for (state, stays) in [
        (&mut crossing, SYNC),
        (&mut counting, Policy::ActiveActive),
        (&mut filling, Policy::ActiveActive),
        (&mut turning, Policy::ASYNC),
    ] {
        let id = last(state).id;
        abort(state, id).unwrap();
        let after = bucket(state);
        assert_eq!((after.policy, after.crossing.is_some(), after.joins.joining()), (stays, false, None));
        let aborted = ChangeOutcome::Aborted { who: "operator".to_owned(), why: "enough".to_owned() };
        assert_eq!(outcome(state, id), aborted);
        assert!(details(state, "abort")[0].contains("enough"));
        let again = abort(state, id).unwrap_err();
        assert!(again.kind == RefusalKind::Conflict && again.message.contains("aborted"), "{again}");
    }
    assert_eq!(abort(&mut turning, PlanId(999)).unwrap_err().kind, RefusalKind::NotFound);
}

#[test]
fn what_is_in_force_and_only_waits_for_copies_is_not_aborted() {
    let mut state = with(Policy::sync(Acks::All));
    let change = RegionChange::Remove(third());
    ask(
        &mut state,
        Action::SetBucket {
            name: name(),
            change: BucketChange { acks: Some(Acks::Majority), ..BucketChange::default() },
        },
    )
    .unwrap();
    ask(&mut state, Action::SetRegions { name: name(), change }).unwrap();
    let removed = last(&state);
    assert_eq!(removed.stage(), Some(Stage::Settling));
    let before = bucket(&state);
    let refused = abort(&mut state, removed.id).unwrap_err();
    assert!(refused.kind == RefusalKind::Conflict && refused.message.contains("is in force"), "{refused}");
    assert_eq!((bucket(&state), last(&state)), (before, removed));
}

#[test]
fn a_deleted_bucket_and_a_recovery_end_what_was_under_way() {
    let mut state = with(Policy::ASYNC);
    ask(&mut state, policy(SYNC)).unwrap();
    let mut recovered = with(SYNC);
    ask(&mut recovered, opening()).unwrap();
    act(&mut state, Action::DeleteBucket { name: name() }).unwrap();
    assert!(matches!(outcome(&state, last(&state).id), ChangeOutcome::Aborted { why, .. } if why.contains("deleted")));
    let id = last(&recovered).id;
    let recovery = recovered.recover(100, 5000, "eu-west-1");
    recovered.validate().unwrap();
    assert_eq!(recovery.given_up, [id]);
    assert!(matches!(outcome(&recovered, id), ChangeOutcome::GivenUp { why } if why.contains("recovered")));
}

#[test]
fn what_earlier_releases_ask_for_leaves_no_record_so_that_their_logs_come_to_the_same_state() {
    let mut state = with(SYNC);
    act(&mut state, opening()).unwrap();
    late(&mut state);
    act(&mut state, policy(Policy::ASYNC)).unwrap();
    assert_eq!(state.changes().count(), 0);
}

#[test]
fn the_oldest_that_have_ended_are_forgotten_and_none_that_is_under_way() {
    let mut state = with(SYNC);
    for round in 0..PLANS_MAX + 9 {
        let to = if round % 2 == 0 {
            Policy::sync(Acks::Majority)
        } else {
            Policy::Sync { acks: Acks::Majority, on_partition: meridian_types::OnPartition::DEGRADE }
        };
        ask(&mut state, policy(to)).unwrap();
    }
    assert_eq!(state.changes().count(), PLANS_MAX);
    ask(&mut state, opening()).unwrap();
    assert_eq!((state.changes().count(), last(&state).stage()), (PLANS_MAX + 1, Some(Stage::Meeting)));
    assert_eq!(ClusterState::decode(&state.encode()).unwrap(), state);
}
