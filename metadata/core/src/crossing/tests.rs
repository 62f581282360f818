use meridian_types::{
    Acks, AutoMode, BucketChange, CROSSING_MS_DEFAULT, FailoverSpec, Lane, Lsn, Seal, Selection, SetHash, ShardId,
    SwitchoverSpec,
};
use proptest::prelude::*;

use super::*;
use crate::testing::{act, name, with};
use crate::{Action, Answer};

const SYNC: Policy = Policy::sync(Acks::Majority);
const REGIONS: [RegionId; 3] = [RegionId(1), RegionId(2), RegionId(3)];

fn cross(state: &mut ClusterState, policy: Policy, primary: Option<&str>) -> Answer {
    let primary = primary.map(|it| RegionName::new(it).unwrap());
    let cross = Cross { primary, pause_ms_max: CROSSING_MS_DEFAULT };
    act(state, Action::Cross { name: name(), policy, auto: None, cross })
}

fn set(state: &mut ClusterState, policy: Policy) -> Answer {
    act(state, Action::SetPolicy { name: name(), policy, auto: None })
}

fn bucket(state: &ClusterState) -> Bucket {
    state.bucket_named(&name()).unwrap().as_ref().clone()
}

fn say(state: &mut ClusterState, region: RegionId, epoch: Epoch, copies: Copies) {
    let Bucket { id, standing, .. } = bucket(state);
    let words = vec![StandingWord { bucket: id, epoch, since: standing.since(), copies }];
    act(state, Action::ReportStanding { region, words }).unwrap();
}

fn index(state: &ClusterState) -> u64 {
    bucket(state).crossing.map_or(0, |it| it.index)
}

fn arrive_in(state: &mut ClusterState, region: RegionId, shards: std::ops::Range<u16>, keys: u64) {
    let at = shards.map(|shard| (ShardId(shard), Seal { lsn: Lsn(9), hash: SetHash(5), keys })).collect();
    let (epoch, crossing) = (bucket(state).epoch, index(state));
    say(state, region, epoch, Copies::Arrived { crossing, at });
}

fn stop_in(state: &mut ClusterState, region: RegionId) {
    let at = (0..2).map(|shard| (ShardId(shard), Lsn(7))).collect();
    let (epoch, crossing) = (bucket(state).epoch, index(state));
    say(state, region, epoch, Copies::Stopped { crossing, at });
}

fn opened() -> ClusterState {
    let mut state = with(SYNC);
    cross(&mut state, Policy::ActiveActive, None).unwrap();
    REGIONS.iter().for_each(|region| arrive_in(&mut state, *region, 0..2, 3));
    state
}

#[test]
fn a_bucket_is_active_active_once_every_shard_of_every_region_has_arrived_under_the_epoch_that_nobody_wrote_in() {
    let mut state = with(SYNC);
    cross(&mut state, Policy::ActiveActive, None).unwrap();
    let opening = bucket(&state);
    assert_eq!((opening.policy, opening.primary, opening.epoch), (SYNC, Some(REGIONS[0]), Epoch(2)));
    assert!(opening.is_between_primaries() && opening.is_opening());
    arrive_in(&mut state, REGIONS[0], 0..2, 3);
    arrive_in(&mut state, REGIONS[1], 0..2, 3);
    arrive_in(&mut state, REGIONS[2], 1..2, 3);
    assert!(bucket(&state).is_opening(), "a shard of the third region has not");
    arrive_in(&mut state, REGIONS[2], 0..1, 3);
    let open = bucket(&state);
    assert_eq!((open.policy, open.primary, open.epoch), (Policy::ActiveActive, None, Epoch(2)));
    assert!(!open.is_between_primaries() && REGIONS.iter().all(|region| open.accepts_writes_in(*region)));
    assert_eq!(open.lane_of(Epoch(2)), Lane::Async);
}

#[test]
fn a_bucket_has_a_primary_once_every_region_has_what_all_stopped_at_and_its_copies_are_yet_to_count() {
    let mut state = opened();
    cross(&mut state, SYNC, Some("eu-west")).unwrap();
    let closing = bucket(&state);
    assert_eq!((closing.epoch, closing.primary, closing.is_between_primaries()), (Epoch(2), None, true));
    REGIONS.iter().for_each(|region| stop_in(&mut state, *region));
    let stopped = bucket(&state).crossing.unwrap().stopped_at(ShardId(1), &REGIONS);
    assert_eq!(stopped.map(|it| it.len()), Some(3), "every region hears where all of them stopped");
    REGIONS.iter().for_each(|region| arrive_in(&mut state, *region, 0..2, 3));
    let closed = bucket(&state);
    assert_eq!((closed.policy, closed.primary, closed.epoch), (SYNC, Some(REGIONS[1]), Epoch(3)));
    assert_eq!((closed.lane_of(Epoch(2)), closed.lane_of(Epoch(3))), (Lane::Async, Lane::Sync));
    assert!(matches!(closed.standing, Standing::Recovering { .. }), "{:?}", closed.standing);
}

#[test]
fn what_is_given_up_is_what_it_was_and_what_was_said_of_it_counts_for_nothing_later() {
    let mut state = with(SYNC);
    cross(&mut state, Policy::ActiveActive, None).unwrap();
    REGIONS[..2].iter().for_each(|region| arrive_in(&mut state, *region, 0..2, 3));
    let first = index(&state);
    set(&mut state, Policy::sync(Acks::All)).unwrap();
    let back = bucket(&state);
    assert_eq!((back.policy, back.primary, back.epoch, back.crossing), (SYNC, Some(REGIONS[0]), Epoch(3), None));
    cross(&mut state, Policy::ActiveActive, None).unwrap();
    let at = (0..2).map(|shard| (ShardId(shard), Seal { lsn: Lsn(9), hash: SetHash(5), keys: 3 })).collect();
    say(&mut state, REGIONS[2], Epoch(4), Copies::Arrived { crossing: first, at });
    assert_eq!(bucket(&state).crossing.unwrap().arrived_in(REGIONS[2]), 0);

    let mut state = opened();
    cross(&mut state, Policy::ASYNC, Some("us-east")).unwrap();
    let (id, index) = (bucket(&state).id, index(&state));
    let late = |index| Action::GiveUpCrossing { bucket: id, index, why: "late".to_owned() };
    act(&mut state, late(index - 1)).unwrap();
    assert!(bucket(&state).crossing.is_some(), "that was another one");
    act(&mut state, late(index)).unwrap();
    let back = bucket(&state);
    assert_eq!((back.policy, back.epoch, back.crossing), (Policy::ActiveActive, Epoch(2), None));
}

#[test]
fn regions_that_differ_where_they_meet_stay_what_they_are() {
    let mut state = with(Policy::ASYNC);
    cross(&mut state, Policy::ActiveActive, None).unwrap();
    arrive_in(&mut state, REGIONS[0], 0..2, 3);
    arrive_in(&mut state, REGIONS[1], 0..1, 4);
    let back = bucket(&state);
    assert_eq!((back.policy, back.epoch, back.crossing), (Policy::ASYNC, Epoch(3), None));
    assert!(state.events().any(|event| event.verb == "restore" && event.detail.contains("differ in shard 0")));
}

#[test]
fn while_a_bucket_crosses_nothing_else_is_done_to_it_and_what_makes_no_sense_is_refused() {
    let kind = |answer: Answer| answer.unwrap_err().kind;
    let mut state = opened();
    assert_eq!(kind(cross(&mut state, SYNC, None)), RefusalKind::Invalid, "which region?");
    assert_eq!(kind(cross(&mut state, SYNC, Some("mars"))), RefusalKind::NotFound);
    assert_eq!(kind(cross(&mut state, Policy::ActiveActive, None)), RefusalKind::Invalid);
    assert_eq!(kind(set(&mut state, SYNC)), RefusalKind::Invalid, "from an older client");
    let mut state = with(SYNC);
    assert_eq!(kind(cross(&mut state, Policy::ActiveActive, Some("us-east"))), RefusalKind::Invalid);
    let auto = AutoFailover { mode: AutoMode::ZeroLoss, ..AutoFailover::default() };
    let change = BucketChange { auto: Some(auto), ..BucketChange::default() };
    act(&mut state, Action::SetBucket { name: name(), change: change.clone() }).unwrap();
    assert_eq!(kind(cross(&mut state, Policy::ActiveActive, None)), RefusalKind::Invalid, "nothing to fail over");
    let mut state = with(SYNC);
    cross(&mut state, Policy::ActiveActive, None).unwrap();
    assert_eq!(kind(cross(&mut state, Policy::ActiveActive, None)), RefusalKind::Retry);
    assert_eq!(kind(set(&mut state, Policy::ASYNC)), RefusalKind::Retry);
    assert_eq!(kind(act(&mut state, Action::SetBucket { name: name(), change })), RefusalKind::Retry);
    assert_eq!(kind(act(&mut state, Action::DeleteBucket { name: name() })), RefusalKind::Retry);
    let spec = SwitchoverSpec {
        to: RegionName::new("eu-west").unwrap(),
        buckets: Selection::Named(vec![name()]),
        lag_ms_max: 0,
        pause_ms_max: 1000,
        reason: String::new(),
    };
    assert_eq!(kind(act(&mut state, Action::Switchover(spec))), RefusalKind::Retry);
}

#[test]
fn a_primary_that_is_lost_while_the_bucket_opens_is_replaced_and_the_bucket_stays_what_it_was() {
    let mut state = with(SYNC);
    cross(&mut state, Policy::ActiveActive, None).unwrap();
    arrive_in(&mut state, REGIONS[1], 0..2, 3);
    let (buckets, to) = (Selection::Named(vec![name()]), Some(RegionName::new("eu-west").unwrap()));
    let spec = FailoverSpec { buckets, to, consent: None, automatic: false, reason: "a fire".to_owned() };
    act(&mut state, Action::Failover(spec)).unwrap();
    let fenced = bucket(&state);
    assert!(matches!(fenced.phase, Phase::Fencing { .. }), "{:?}", fenced.phase);
    assert_eq!((fenced.policy, fenced.epoch, fenced.crossing), (SYNC, Epoch(3), None));
}

#[derive(Clone, Copy, Debug)]
enum Deed {
    Cross,
    GiveUp,
    Stop(usize),
    Arrive(usize, u16),
    /// What a region said of some earlier crossing arrives late.
    Late(usize, u64),
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let deed = prop_oneof![
        2 => Just(Deed::Cross),
        1 => Just(Deed::GiveUp),
        6 => (0usize..3).prop_map(Deed::Stop),
        12 => (0usize..3, 0u16..2).prop_map(|(region, shard)| Deed::Arrive(region, shard)),
        2 => (0usize..3, 1u64..6).prop_map(|(region, back)| Deed::Late(region, back)),
    ];
    prop::collection::vec(deed, 0..120)
}

proptest! {
    /// Whatever is done and said: an epoch in which one region wrote is never one in which all of them do, and none that some copy of
    /// the metadata may take for the present one has another lane later (FEN-1, ORD-1).
    #[test]
    fn the_writes_of_an_epoch_are_of_one_kind(deeds in deeds()) {
        let mut state = with(Policy::ASYNC);
        let mut kinds: BTreeMap<Epoch, bool> = BTreeMap::new();
        let mut crossings = 0;
        for deed in deeds {
            let now = bucket(&state);
            match deed {
                Deed::Cross if now.primary.is_some() => drop(cross(&mut state, Policy::ActiveActive, None)),
                Deed::Cross => drop(cross(&mut state, Policy::ASYNC, Some("ap-south"))),
                Deed::GiveUp => drop(set(&mut state, now.policy)),
                Deed::Stop(region) => stop_in(&mut state, REGIONS[region]),
                Deed::Arrive(region, shard) => arrive_in(&mut state, REGIONS[region], shard..shard + 1, 3),
                Deed::Late(region, back) => {
                    let at = (0..2).map(|it| (ShardId(it), Seal { lsn: Lsn(9), hash: SetHash(6), keys: 1 })).collect();
                    let crossing = index(&state).saturating_sub(back);
                    say(&mut state, REGIONS[region], now.epoch, Copies::Arrived { crossing, at });
                }
            }
            let then = bucket(&state);
            crossings += u64::from(now.crossing.is_some() && then.policy != now.policy);
            prop_assert!(then.epoch >= now.epoch);
            // A copy that has not heard of the last commit still orders by the one before, if anybody does.
            for bucket in [now, then].iter().filter(|it| !it.is_between_primaries()) {
                let kind = kinds.entry(bucket.epoch).or_insert(bucket.primary.is_some());
                prop_assert_eq!(*kind, bucket.primary.is_some(), "epoch {}", bucket.epoch);
            }
        }
        prop_assert!(crossings < 60);
    }
}
