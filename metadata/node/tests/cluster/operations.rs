//! Operations over real consensus: planned at any node, carried on by whoever leads, given up when they take too long.

use std::time::{Duration, Instant};

use meridian_metadata_core::{Action, Command};
use meridian_proto::convert::refusal_of_status;
use meridian_proto::identity::Identity;
use meridian_proto::v1;
use meridian_proto::v1::metadata_peer_client::MetadataPeerClient;
use meridian_types::{
    Acks, Bucket, BucketChange, ChangeOutcome, Epoch, Fact, Lsn, Operation, OperationId, Phase, PlanId, PlanOutcome,
    Policy, RefusalKind, RegionId, RegionName, Seal, Selection, SetHash, ShardId, Step, SwitchoverSpec, Word,
};

use crate::world::{PATIENCE, World, eventually};
use crate::{name_of, spec};

const SHARDS: u16 = 4;

fn to_eu(pause_ms_max: u64) -> SwitchoverSpec {
    SwitchoverSpec {
        to: RegionName::new("eu-west").unwrap(),
        buckets: Selection::Named(vec![name_of("orders")]),
        lag_ms_max: 100,
        pause_ms_max,
        reason: "maintenance".to_owned(),
    }
}

fn facts(fact: Fact) -> Vec<(ShardId, Fact)> {
    (0..SHARDS).map(|shard| (ShardId(shard), fact)).collect()
}

fn seal() -> Seal {
    Seal { lsn: Lsn(9), hash: SetHash(9), keys: 9 }
}

/// A world with the bucket `orders`, written in the first region.
fn world() -> World {
    let world = World::started();
    world.settle();
    world.on(0, world.handle(0).create_bucket(spec("orders"), false, "alice")).unwrap();
    world
}

fn ask(world: &World, at: usize, pause_ms_max: u64) -> PlanId {
    let asked = world
        .handle(at)
        .switchover(to_eu(pause_ms_max), OperationId(u128::from(pause_ms_max)), false, "alice")
        .await_on(world, at);
    asked.unwrap().id
}

/// Asks for an operation, and for another until the leadership is where it goes: that is tried once for each, and fails where a node has
/// no time. The operation, and the id under which it was asked for.
fn ask_and_lead(world: &World, at: usize, pause_ms_max: u64) -> (PlanId, OperationId) {
    for id in (100..110).map(OperationId) {
        let plan = world.handle(at).switchover(to_eu(pause_ms_max), id, false, "alice").await_on(world, at).unwrap().id;
        assert!(matches!(orders(world, at).phase, Phase::CatchingUp { .. }), "who asked for it sees it at once");
        let patience = Instant::now() + Duration::from_secs(6);
        while world.leader() != 1 && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(20));
        }
        if world.leader() == 1 {
            return (plan, id);
        }
        world.handle(at).abort(plan, "the leadership stays".to_owned(), "alice").await_on(world, at).unwrap();
    }
    panic!("the leadership is never handed over");
}

trait AwaitOn: Future + Sized {
    fn await_on(self, world: &World, at: usize) -> Self::Output {
        world.on(at, self)
    }
}

impl<F: Future> AwaitOn for F {}

fn orders(world: &World, at: usize) -> Bucket {
    Bucket::clone(world.handle(at).topology().bucket_named("orders").unwrap())
}

fn tell(world: &World, at: usize, plan: PlanId, fact: Fact) {
    let bucket = orders(world, at);
    let word = Word { plan, bucket: bucket.id, epoch: bucket.epoch, facts: facts(fact) };
    world.handle(at).tell(word).await_on(world, at).unwrap();
}

fn wait_for(world: &World, at: usize, what: &str, holds: impl Fn(&Bucket) -> bool) {
    eventually(what, PATIENCE, || holds(&orders(world, at)));
}

/// SWI-1, the metadata half.
#[test]
fn a_primary_moves_once_every_shard_has_spoken_and_the_leadership_is_next_door_by_then() {
    let world = world();
    // A dry run decides by the copy of the node that is asked.
    let known = || world.handle(2).topology().bucket_named("orders").is_some();
    eventually("the bucket is known everywhere", PATIENCE, known);
    let dry = world.handle(2).switchover(to_eu(5000), OperationId(1), true, "alice").await_on(&world, 2).unwrap();
    assert_eq!((dry.moves.len(), orders(&world, 2).phase), (1, Phase::Steady), "a dry run changes nothing");

    // The commits that end the pause come from where its end is noticed.
    let (plan, id) = ask_and_lead(&world, 2, 30_000);
    let asked = world.handle(2).plans().len();
    let again = world.handle(1).switchover(to_eu(30_000), id, false, "alice").await_on(&world, 1).unwrap();
    assert_eq!(again.id, plan, "the same id, the same operation");
    let other = world.handle(0).switchover(to_eu(5000), OperationId(2), false, "bob").await_on(&world, 0).unwrap_err();
    assert!(other.kind == RefusalKind::Retry && other.message.contains(&plan.to_string()), "{other}");
    let deleted = world.handle(0).delete_bucket(name_of("orders"), false, "bob").await_on(&world, 0).unwrap_err();
    assert!(deleted.message.contains(&plan.to_string()), "{deleted}");

    wait_for(&world, 0, "the node of the primary's region knows", |it| it.phase != Phase::Steady);
    tell(&world, 0, plan, Fact::CaughtUp);
    wait_for(&world, 1, "writes stop", Bucket::is_between_primaries);
    assert_eq!((orders(&world, 1).epoch, orders(&world, 1).primary), (Epoch(2), Some(RegionId(1))));
    tell(&world, 0, plan, Fact::Sealed(seal()));
    tell(&world, 1, plan, Fact::Ready(seal()));
    for at in 0..3 {
        wait_for(&world, at, "the primary has moved", |it| it.phase == Phase::Steady);
        assert_eq!((orders(&world, at).epoch, orders(&world, at).primary), (Epoch(2), Some(RegionId(2))));
    }
    let done = world.handle(1).plan(plan).unwrap();
    let Step::Promoted { proof, .. } = &done.moves[0].step else { panic!("{done:?}") };
    assert_eq!((proof.equal(), done.outcome()), (usize::from(SHARDS), PlanOutcome::Done));
    assert!(done.moves[0].step.pause_ms().is_some_and(|pause| pause < 30_000));
    assert_eq!(world.handle(1).plans().len(), asked);
}

#[test]
fn a_pause_that_lasts_too_long_ends_with_the_old_primary() {
    let world = world();
    let plan = ask(&world, 1, 400);
    wait_for(&world, 0, "the node of the primary's region knows", |it| it.phase != Phase::Steady);
    tell(&world, 0, plan, Fact::CaughtUp);
    wait_for(&world, 0, "the old primary is restored", |it| it.phase == Phase::Steady);
    assert_eq!((orders(&world, 0).epoch, orders(&world, 0).primary), (Epoch(3), Some(RegionId(1))));
    let ended = world.handle(0).plan(plan).unwrap();
    assert_eq!(ended.outcome(), PlanOutcome::Restored);
    assert!(ended.moves[0].step.pause_ms().is_some_and(|pause| pause >= 400), "{ended:?}");
    let Step::Restored { why, .. } = &ended.moves[0].step else { panic!("{ended:?}") };
    assert!(why.contains("400 ms"), "{why}");
}

#[test]
fn a_next_primary_that_does_not_come_close_is_given_up_without_a_pause() {
    let mut world = World::new(0);
    world.tune = |options| {
        crate::world::quick(options);
        options.catching_up_ms_max = 600;
    };
    (0..3).for_each(|at| world.start(at));
    world.settle();
    world.on(0, world.handle(0).create_bucket(spec("orders"), false, "alice")).unwrap();
    let plan = ask(&world, 0, 5000);
    wait_for(&world, 0, "it is given up", |it| it.phase == Phase::Steady);
    assert_eq!(orders(&world, 0).epoch, Epoch(1));
    assert_eq!(world.handle(0).plan(plan).unwrap().moves[0].step.pause_ms(), None);
    assert!(world.handle(0).switchover(to_eu(5000), OperationId(9), false, "alice").await_on(&world, 0).is_ok());
}

#[test]
fn a_change_of_policy_is_on_record_on_every_node_under_the_id_it_was_asked_under_and_given_up_by_any() {
    let world = world();
    let asked = OperationId::of("nightly");
    let change = BucketChange {
        policy: Some(Policy::sync(Acks::All)),
        operation: Some(asked),
        reason: "audit".to_owned(),
        ..BucketChange::default()
    };
    let set =
        |at: usize| world.handle(at).set_bucket(name_of("orders"), change.clone(), false, "alice").await_on(&world, at);
    set(1).unwrap();
    let epoch = orders(&world, 1).epoch;
    set(2).unwrap();
    assert_eq!(orders(&world, 2).epoch, epoch, "asked again, nothing happens twice");
    let known = world.handle(2).operations();
    let [Operation::Change(on_record)] = known.as_slice() else { panic!("{known:?}") };
    assert_eq!((on_record.operation, on_record.who.as_str(), on_record.reason.as_str()), (asked, "alice", "audit"));
    let given_up = world.handle(0).abort(on_record.id, "enough".to_owned(), "bob").await_on(&world, 0).unwrap();
    let Operation::Change(given_up) = given_up else { panic!("{given_up:?}") };
    let aborted = ChangeOutcome::Aborted { who: "bob".to_owned(), why: "enough".to_owned() };
    assert_eq!(given_up.end.as_ref().map(|end| &end.outcome), Some(&aborted));
    assert_eq!(orders(&world, 0).policy, on_record.before.policy);
}

#[test]
fn an_operator_gives_up_once() {
    let world = world();
    let plan = ask(&world, 1, 5000);
    let given_up = world.handle(2).abort(plan, "the window is closing".to_owned(), "bob").await_on(&world, 2).unwrap();
    let Operation::Moves(given_up) = given_up else { panic!("{given_up:?}") };
    assert_eq!(given_up.outcome(), PlanOutcome::Restored);
    let again = world.handle(2).abort(plan, "again".to_owned(), "bob").await_on(&world, 2).unwrap_err();
    assert_eq!(again.kind, RefusalKind::Conflict);
    let unknown = world.handle(2).abort(PlanId(1), String::new(), "bob").await_on(&world, 2).unwrap_err();
    assert_eq!(unknown.kind, RefusalKind::NotFound);
}

#[test]
fn an_operation_goes_on_when_the_leader_is_lost_while_writes_are_stopped() {
    let mut world = world();
    let plan = ask(&world, 1, 60_000);
    wait_for(&world, 0, "the node of the primary's region knows", |it| it.phase != Phase::Steady);
    tell(&world, 0, plan, Fact::CaughtUp);
    for at in 0..3 {
        wait_for(&world, at, "writes stop", Bucket::is_between_primaries);
    }
    // Mostly the next primary's node; it comes back and finds its place.
    let leader = world.leader();
    world.kill(leader);
    let successor = world.leader();
    assert_ne!(successor, leader);
    world.start(leader);
    world.settle();
    tell(&world, 1, plan, Fact::Ready(seal()));
    for at in 0..3 {
        wait_for(&world, at, "the primary has moved", |it| it.phase == Phase::Steady);
        assert_eq!(orders(&world, at).primary, Some(RegionId(2)));
    }
    assert_eq!(world.handle(1).plan(plan).unwrap().outcome(), PlanOutcome::Done);
}

/// SEC-1.
#[test]
fn a_node_speaks_for_its_own_region_only() {
    // No operation is under way: the leadership stays where it is.
    let world = world();
    let leader = world.leader();
    let bucket = orders(&world, leader);
    let word = Word { plan: PlanId(1), bucket: bucket.id, epoch: bucket.epoch, facts: facts(Fact::CaughtUp) };
    let command = Command {
        operation: OperationId(77),
        who: "eu-west-1".to_owned(),
        at_ms: 1,
        action: Action::Report { region: RegionId(1), words: vec![word] },
    };
    let node = world.places[1].member.clone();
    let identity = Identity::Node { region: node.region, name: node.name };
    let mut client = MetadataPeerClient::new(world.connect_as(&identity, leader));
    let request = v1::ProposeRequest { command: command.encode().unwrap().into() };
    let refused = world.outside(client.propose(request)).unwrap_err();
    assert_eq!(refusal_of_status(&refused).kind, RefusalKind::Denied);
}
