use meridian_types::{
    BucketEstimate, CROSSING_MS_DEFAULT, Copies, Exposure, Policy, RegionChange, Seal, SetHash, ShardFacts,
    StandingWord,
};
use proptest::prelude::*;

use super::*;
use crate::plan::{Asked, Heard, estimate};
use crate::testing::{act, name, with};
use crate::{Action, Answer};

const A: RegionId = RegionId(1);
const B: RegionId = RegionId(2);
const C: RegionId = RegionId(3);

fn third() -> RegionName {
    RegionName::new("ap-south").unwrap()
}

fn at_most(operations: u64) -> Loss {
    Loss { operations, bytes: operations * 100, unbounded: true }
}

fn lose(state: &mut ClusterState, epoch: u64, accepted: Loss) -> Answer {
    let (region, epoch, pause_ms_max) = (third(), Epoch(epoch), CROSSING_MS_DEFAULT);
    act(state, Action::LoseRegion { name: name(), region, epoch, accepted, pause_ms_max })
}

fn bucket(state: &ClusterState) -> Bucket {
    state.bucket_named(&name()).unwrap().as_ref().clone()
}

fn say(state: &mut ClusterState, of: RegionId, copies: Copies) {
    let Bucket { id, standing, epoch, .. } = bucket(state);
    let words = vec![StandingWord { bucket: id, epoch, since: standing.since(), copies }];
    act(state, Action::ReportStanding { region: of, words }).unwrap();
}

/// What a region has of the lost one: its log up to `lsn`, and it had been told that it lacks something up to `head`.
fn remains(lsn: u64, head: Option<(u64, u64)>) -> Remains {
    let exposure =
        head.map(|(head, operations)| Exposure { head: Lsn(head), operations, bytes: operations * 100, oldest_ms: 1 });
    let seal = Seal { lsn: Lsn(lsn), hash: SetHash(1), keys: 1 };
    Remains { epoch: Epoch(1), seal, exposure, whole: true }
}

fn index(state: &ClusterState) -> u64 {
    bucket(state).crossing.map_or(0, |it| it.index)
}

fn part(state: &mut ClusterState, of: RegionId, has: Remains) {
    let at = (0..2).map(|shard| (ShardId(shard), (Lsn(7), has))).collect();
    let crossing = index(state);
    say(state, of, Copies::Parted { crossing, at });
}

fn arrive(state: &mut ClusterState, of: RegionId, lsn: u64) {
    let seal = Seal { lsn: Lsn(lsn), hash: SetHash(5), keys: 3 };
    let at = (0..2).map(|shard| (ShardId(shard), seal)).collect();
    let crossing = index(state);
    say(state, of, Copies::Arrived { crossing, at });
}

/// C is being lost.
fn losing(accepted: u64) -> ClusterState {
    let mut state = with(Policy::ActiveActive);
    lose(&mut state, 1, at_most(accepted)).unwrap();
    state
}

#[test]
fn a_lost_region_is_out_once_the_others_have_met_and_it_is_not_heard() {
    let mut state = losing(6);
    let now = bucket(&state);
    assert_eq!((now.epoch, now.lost(), now.meeting()), (Epoch(1), Some(C), vec![A, B]));
    assert!(now.is_between_primaries() && now.is_in(C));
    part(&mut state, C, remains(99, None));
    arrive(&mut state, C, 99);
    assert_eq!(bucket(&state), now, "nothing needs the lost one (SWI-3)");
    part(&mut state, A, remains(8, Some((9, 3))));
    arrive(&mut state, A, 8);
    part(&mut state, B, remains(5, Some((8, 9))));
    let crossing = bucket(&state).crossing.unwrap();
    assert_eq!(crossing.most_of_the_lost(ShardId(0), &[A, B]), Some((A, Lsn(8))));
    arrive(&mut state, B, 8);
    let left = bucket(&state);
    assert_eq!((left.epoch, left.regions.clone(), left.crossing.clone()), (Epoch(2), vec![A, B], None));
    assert!(left.carries(C, Epoch(1)) && !left.carries(C, Epoch(2)) && !left.accepts_writes_in(C));
    // And it can be added again, as any.
    let change = RegionChange::Add(third());
    act(&mut state, Action::CrossRegions { name: name(), change, pause_ms_max: CROSSING_MS_DEFAULT }).unwrap();
    assert!(bucket(&state).crossing.is_some());
}

#[test]
fn it_is_given_up_where_more_is_known_to_be_lost_than_was_agreed_to_and_where_two_differ() {
    let mut state = losing(6);
    part(&mut state, A, remains(8, Some((9, 3))));
    part(&mut state, B, remains(5, Some((8, 99))));
    assert!(bucket(&state).crossing.is_some(), "what B was told it lacks A has; 3 in each of two shards are known");
    let mut state = losing(5);
    part(&mut state, B, remains(5, None));
    part(&mut state, A, remains(8, Some((9, 3))));
    let back = bucket(&state);
    assert_eq!((back.crossing, back.epoch, back.regions.len()), (None, Epoch(1), 3));
    let mut state = losing(9);
    part(&mut state, A, remains(8, None));
    part(&mut state, B, remains(8, None));
    arrive(&mut state, A, 8);
    arrive(&mut state, B, 7);
    assert_eq!((bucket(&state).crossing, bucket(&state).epoch), (None, Epoch(1)));
}

#[test]
fn what_was_said_of_another_attempt_counts_for_nothing_and_an_operator_may_give_it_up() {
    let mut state = losing(9);
    let late = index(&state);
    act(&mut state, Action::SetPolicy { name: name(), policy: Policy::ActiveActive, auto: None }).unwrap();
    assert_eq!((bucket(&state).crossing, bucket(&state).epoch), (None, Epoch(1)));
    lose(&mut state, 1, at_most(9)).unwrap();
    let at = (0..2).map(|shard| (ShardId(shard), (Lsn(7), remains(8, None)))).collect();
    say(&mut state, A, Copies::Parted { crossing: late, at });
    let Some(Way::Losing { stopped, .. }) = bucket(&state).crossing.map(|it| it.way) else { panic!("it is losing") };
    assert!(stopped.is_empty());
    let late = Action::GiveUpCrossing { bucket: bucket(&state).id, index: index(&state), why: "late".to_owned() };
    act(&mut state, late).unwrap();
    assert_eq!(bucket(&state).crossing, None);
}

#[test]
fn what_can_not_be_is_refused_with_what_to_do() {
    let refused = |answer: Answer, kind, says: &str| {
        let refused = answer.unwrap_err();
        assert!(refused.kind == kind && refused.message.contains(says), "{refused}");
    };
    let mut state = with(Policy::ActiveActive);
    refused(lose(&mut state, 2, at_most(9)), RefusalKind::Consent, "estimate again");
    lose(&mut state, 1, at_most(9)).unwrap();
    refused(lose(&mut state, 1, at_most(9)), RefusalKind::Retry, "losing a region");
    part(&mut state, A, remains(8, None));
    part(&mut state, B, remains(8, None));
    arrive(&mut state, A, 8);
    arrive(&mut state, B, 8);
    refused(lose(&mut state, 2, at_most(9)), RefusalKind::Invalid, "not written in");
    let (region, accepted, pause_ms_max) = (RegionName::new("eu-west").unwrap(), at_most(9), 1000);
    let second = Action::LoseRegion { name: name(), region, epoch: Epoch(2), accepted, pause_ms_max };
    refused(act(&mut state, second), RefusalKind::Invalid, "1 region(s) left");
    let mut state = with(Policy::ASYNC);
    refused(lose(&mut state, 1, at_most(9)), RefusalKind::Invalid, "without `--lost`");
    let consent = Consent { to: None, lost: Some(third()), buckets: [(name(), (Epoch(1), at_most(9)))].into() };
    assert_eq!(agreed(&consent, &name(), &third()), Ok((Epoch(1), at_most(9))));
    assert!(agreed(&consent, &name(), &RegionName::new("eu-west").unwrap()).is_err());
    assert!(agreed(&consent, &BucketName::new("other").unwrap(), &third()).is_err());
}

proptest! {
    /// Whatever is said, by whom, and in which order: the epoch rises only where both that are left stand at the same place, and
    /// nothing that the lost one says changes anything (SWI-3, CON-4).
    #[test]
    fn the_epoch_rises_only_where_all_that_are_left_stand_at_the_same_place(
        words in prop::collection::vec((1u16..4, any::<bool>(), 0u64..4, 0u16..3), 0..40)
    ) {
        let mut state = losing(99);
        let mut there: BTreeMap<(u16, u16), u64> = BTreeMap::new();
        for (of, arrives, lsn, shard) in words {
            if bucket(&state).crossing.is_none() {
                break;
            }
            let crossing = index(&state);
            let seal = Seal { lsn: Lsn(lsn), hash: SetHash(u128::from(lsn)), keys: 3 };
            if arrives {
                say(&mut state, RegionId(of), Copies::Arrived { crossing, at: [(ShardId(shard), seal)].into() });
                if of < 3 && shard < 2 {
                    there.entry((of, shard)).or_insert(lsn);
                }
            } else {
                let at = [(ShardId(shard), (Lsn(7), remains(lsn, None)))].into();
                say(&mut state, RegionId(of), Copies::Parted { crossing, at });
            }
            prop_assert_eq!(ClusterState::decode(&state.encode()).unwrap(), state.clone());
            let now = bucket(&state);
            let met = there.len() == 4 && (0..2).all(|shard| there[&(1, shard)] == there[&(2, shard)]);
            prop_assert_eq!(now.epoch == Epoch(2), met);
            prop_assert_eq!(now.is_in(C), !met);
        }
    }
}

#[test]
fn known_to_be_lost_is_what_nobody_who_is_left_has_reached() {
    let of = |it: Remains| BTreeMap::from([(ShardId(0), it)]);
    let both = |a, b| BTreeMap::from([(A, of(a)), (B, of(b))]);
    let lost = |a, b| known_loss(&both(a, b)).operations;
    assert_eq!(lost(remains(8, Some((8, 4))), remains(5, Some((8, 9)))), 0);
    assert_eq!(lost(remains(8, Some((9, 1))), remains(5, Some((9, 4)))), 4, "at least as much as really is");
    assert_eq!(lost(remains(8, None), remains(8, None)), 0);
    assert!(known_loss(&both(remains(8, None), remains(8, None))).unbounded, "it orders without a lease");
    assert_eq!(most(&both(remains(3, None), remains(5, None)), &[A, B]), Some((B, true)));
    assert_eq!(most(&both(remains(5, None), remains(5, None)), &[A, B]), Some((A, false)));
}

/// What is said of the loss of C by whoever answers.
fn estimated(state: &ClusterState, said: &[(RegionId, Remains)]) -> (BucketEstimate, Option<Consent>) {
    let (topology, buckets, mut heard) = (state.topology(), [Arc::new(bucket(state))], Heard::default());
    for (region, remains) in said {
        let fact = |shard| ShardFacts {
            bucket: buckets[0].id,
            shard: ShardId(shard),
            remains: *remains,
            said_ms: Some(90),
            oldest_key: None,
        };
        heard.add((*region, (0..2).map(fact).collect()));
    }
    let asked = Asked { here: A, to: None, lost: Some(C), topology: &topology, buckets: &buckets, plans: &[] };
    let estimate = estimate(&asked, &heard);
    (estimate.buckets[0].clone(), estimate.consent)
}

#[test]
fn an_estimate_names_what_is_known_to_be_lost_and_takes_every_other_region() {
    let mut state = with(Policy::ActiveActive);
    let (told, consent) = estimated(&state, &[(A, remains(8, Some((9, 3))))]);
    assert!(told.to.is_none() && told.obstacle.contains("eu-west does not answer"), "{told:?}");
    assert_eq!(consent, None);
    let (told, consent) = estimated(&state, &[(A, remains(8, Some((9, 3)))), (B, remains(5, Some((8, 9))))]);
    assert_eq!((told.from, told.to, told.pulls, told.proven), (C, Some(A), true, false));
    assert_eq!((told.lost, told.primary_answers), (at_most(6), false));
    let agreed = agreed(&consent.unwrap(), &name(), &third()).unwrap();
    lose(&mut state, agreed.0.0, agreed.1).unwrap();
    let (told, _) = estimated(&state, &[(A, remains(8, None)), (B, remains(5, None))]);
    assert!(told.obstacle.contains("losing a region"), "{told:?}");
}

#[test]
fn no_consent_is_given_to_lose_a_region_of_a_bucket_that_has_a_primary() {
    let state = with(Policy::ASYNC);
    let (told, consent) = estimated(&state, &[(A, remains(8, Some((9, 3)))), (B, remains(5, Some((8, 9))))]);
    assert!(told.to.is_none() && told.obstacle.contains("ask without --lost"), "{told:?}");
    assert_eq!(consent, None, "it would be refused");
}
