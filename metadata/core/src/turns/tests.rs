use meridian_types::{
    Acks, AutoMode, BucketChange, Copies, Lane, RegionId, Selection, StandingWord, SwitchoverSpec, Turn,
};
use proptest::prelude::*;

use super::*;
use crate::testing::{act, name, with};
use crate::{Action, Answer};

const PRIMARY: RegionId = RegionId(1);

fn set(state: &mut ClusterState, policy: Policy) -> Answer {
    act(state, Action::SetPolicy { name: name(), policy, auto: None })
}

fn bucket(state: &ClusterState) -> Bucket {
    state.bucket_named(&name()).unwrap().as_ref().clone()
}

fn say(state: &mut ClusterState, epoch: Epoch, copies: Copies) {
    let Bucket { id, standing, .. } = bucket(state);
    let words = vec![StandingWord { bucket: id, epoch, since: standing.since(), copies }];
    act(state, Action::ReportStanding { region: PRIMARY, words }).unwrap();
}

fn shards(of: std::ops::Range<u16>) -> BTreeSet<ShardId> {
    of.map(ShardId).collect()
}

const SYNC: Policy = Policy::sync(Acks::Majority);

#[test]
fn async_to_sync_is_exposed_until_every_shard_has_said_otherwise_under_the_new_epoch() {
    let mut state = with(Policy::ASYNC);
    set(&mut state, SYNC).unwrap();
    let changed = bucket(&state);
    assert_eq!((changed.policy, changed.epoch), (SYNC, Epoch(2)));
    assert!(matches!(changed.standing, Standing::Recovering { .. }));
    assert_eq!((changed.lane_of(Epoch(1)), changed.lane_of(Epoch(2))), (Lane::Async, Lane::Sync));
    say(&mut state, Epoch(1), Copies::Ready(shards(0..2)));
    assert!(!bucket(&state).standing.is_sync(), "what was said of the old epoch counts for nothing");
    say(&mut state, Epoch(2), Copies::Ready(shards(0..2)));
    assert!(bucket(&state).standing.is_sync() && bucket(&state).is_turning(), "a third region may still be behind");
}

#[test]
fn sync_to_async_promises_no_copies_from_the_commit_on() {
    let mut state = with(SYNC);
    set(&mut state, Policy::ASYNC).unwrap();
    let changed = bucket(&state);
    assert_eq!(
        (changed.epoch, changed.turns.kept.as_slice()),
        (Epoch(2), &[Turn { epoch: Epoch(2), from: Lane::Sync }][..])
    );
}

#[test]
fn a_turn_is_forgotten_once_every_shard_has_said_that_all_regions_followed() {
    let mut state = with(Policy::ASYNC);
    set(&mut state, SYNC).unwrap();
    say(&mut state, Epoch(1), Copies::Followed(shards(0..2)));
    say(&mut state, Epoch(2), Copies::Followed(shards(0..1)));
    say(&mut state, Epoch(2), Copies::Followed(shards(0..1)));
    assert_eq!(bucket(&state).turns.followed, shards(0..1));
    assert_eq!(ClusterState::decode(&state.encode()).unwrap(), state, "it survives a restart");
    say(&mut state, Epoch(2), Copies::Followed(shards(1..9)));
    assert!(!bucket(&state).is_turning());
    assert_eq!(bucket(&state).lane_of(Epoch(1)), Lane::Sync);
}

#[test]
fn setting_the_old_policy_gives_up_and_both_turns_are_kept() {
    let mut state = with(Policy::ASYNC);
    set(&mut state, SYNC).unwrap();
    say(&mut state, Epoch(2), Copies::Followed(shards(0..1)));
    set(&mut state, Policy::ASYNC).unwrap();
    let back = bucket(&state);
    assert_eq!([1, 2, 3].map(|epoch| back.lane_of(Epoch(epoch))), [Lane::Async, Lane::Sync, Lane::Async]);
    assert!(back.turns.followed.is_empty(), "who followed into the one lane may lack the seal of the other");
    for _ in back.turns.kept.len()..TURNS_MAX {
        let next = if bucket(&state).policy == SYNC { Policy::ASYNC } else { SYNC };
        set(&mut state, next).unwrap();
    }
    let refused = set(&mut state, SYNC).unwrap_err();
    assert!(refused.kind == RefusalKind::Retry && refused.message.contains("bring back"), "{refused}");
}

#[test]
fn what_can_not_be_is_refused_in_words() {
    let everywhere = set(&mut with(Policy::ActiveActive), SYNC).unwrap_err();
    assert!(everywhere.message.contains("say how long"), "{everywhere}");
    let everywhere = set(&mut with(SYNC), Policy::ActiveActive).unwrap_err();
    assert!(everywhere.message.contains("is to be active-active"), "{everywhere}");

    let mut state = with(SYNC);
    let zero = AutoFailover { mode: AutoMode::ZeroLoss, ..AutoFailover::default() };
    let auto = BucketChange { auto: Some(zero), ..BucketChange::default() };
    act(&mut state, Action::SetBucket { name: name(), change: auto }).unwrap();
    let refused = set(&mut state, Policy::ASYNC).unwrap_err();
    assert!(refused.message.contains("auto = zero-loss"), "{refused}");
    let auto = Some(AutoFailover::default());
    act(&mut state, Action::SetPolicy { name: name(), policy: Policy::ASYNC, auto }).unwrap();

    let mut state = with(Policy::ASYNC);
    let spec = SwitchoverSpec {
        to: RegionName::new("eu-west").unwrap(),
        buckets: Selection::Named(vec![name()]),
        lag_ms_max: 0,
        pause_ms_max: 1000,
        reason: String::new(),
    };
    act(&mut state, Action::Switchover(spec)).unwrap();
    assert_eq!(set(&mut state, SYNC).unwrap_err().kind, RefusalKind::Retry);
    assert_eq!(bucket(&state).epoch, Epoch(1));
}

#[test]
fn a_ceiling_waits_until_it_would_count_everything() {
    let capped: Policy = Policy::Async {
        max_lag: Some(meridian_types::MaxLag { bound: "5s".parse().unwrap(), on_breach: Default::default() }),
    };
    let mut state = with(capped);
    set(&mut state, SYNC).unwrap();
    let refused = set(&mut state, capped).unwrap_err();
    assert!(refused.kind == RefusalKind::Retry && refused.message.contains("without max-lag"), "{refused}");
    set(&mut state, Policy::ASYNC).unwrap();
    let later = BucketChange { max_lag: Some(capped.max_lag()), ..BucketChange::default() };
    let refused = act(&mut state, Action::SetBucket { name: name(), change: later.clone() }).unwrap_err();
    assert!(refused.message.contains("lanes have turned"), "{refused}");
    say(&mut state, Epoch(3), Copies::Followed(shards(0..2)));
    act(&mut state, Action::SetBucket { name: name(), change: later }).unwrap();
    assert_eq!(bucket(&state).policy, capped);
    let mut state = with(SYNC);
    set(&mut state, capped).unwrap();
}

proptest! {
    /// However policies, words, and restarts follow one another: the lane of an epoch that has begun never changes while
    /// somebody may still have to read it, and every state is sound.
    #[test]
    fn an_epochs_lane_stays_until_all_have_followed(steps in prop::collection::vec((0u8..4, 0u16..3, 0u64..12), 1..40)) {
        let mut state = with(Policy::ASYNC);
        let mut lanes = vec![(Epoch(1), Lane::Async)];
        for (what, shard, epoch) in steps {
            let before = bucket(&state);
            match what {
                0 => drop(set(&mut state, SYNC)),
                1 => drop(set(&mut state, Policy::ASYNC)),
                2 => say(&mut state, before.epoch, Copies::Followed(shards(0..shard))),
                _ => say(&mut state, Epoch(epoch), Copies::Followed(shards(0..shard))),
            }
            state = ClusterState::decode(&state.encode()).unwrap();
            let now = bucket(&state);
            if now.epoch > before.epoch {
                lanes.push((now.epoch, now.policy.lane()));
            }
            if !now.is_turning() {
                lanes = vec![(now.epoch, now.policy.lane())];
            }
            for (epoch, lane) in &lanes {
                prop_assert_eq!(now.lane_of(*epoch), *lane);
            }
        }
    }
}
