//! The majority is lost: one survivor becomes the metadata plane, and the old voters, when they return, follow it. With a
//! witness it takes more to lose it.

use meridian_metadata_core::recover::EPOCHS_LEAP;
use meridian_metadata_node::recover::{RecoverError, Survivor};
use meridian_types::{AutoFailover, BucketName, BucketSpec, Epoch, EventQuery, Labels, Policy};

use crate::world::{PATIENCE, World, eventually};

fn spec(name: &str) -> BucketSpec {
    BucketSpec {
        name: BucketName::new(name).unwrap(),
        policy: Policy::ASYNC,
        regions: Vec::new(),
        primary: None,
        labels: Labels::new(),
        auto: AutoFailover::default(),
    }
}

fn create(world: &World, at: usize, name: &str) {
    world.on(at, world.handle(at).create_bucket(spec(name), false, "tester")).unwrap();
}

fn epoch(world: &World, at: usize, name: &str) -> Option<Epoch> {
    world.handle(at).topology().bucket_named(name).map(|bucket| bucket.epoch)
}

fn survivor(world: &World, at: usize) -> Result<Survivor, RecoverError> {
    let dir = &world.places[at].dir;
    Survivor::open(&dir.join("metadata"), &meridian_consensus::Options::new(world.id(at), dir.join("log")))
}

/// Started, with a bucket that everybody knows; then two of three die, and the third is recovered from its disk.
fn recovered() -> World {
    let mut world = World::started();
    world.settle();
    create(&world, world.leader(), "orders");
    eventually("all know the bucket", PATIENCE, || (0..3).all(|at| epoch(&world, at, "orders").is_some()));
    (0..3).for_each(|at| world.kill(at));
    let survivor = survivor(&world, 2).unwrap();
    assert_eq!(survivor.standing().voters.len(), 3);
    let preview = survivor.preview(1000, "ap-south-1");
    assert_eq!(survivor.recover(1000, "ap-south-1").unwrap(), preview);
    world.start(2);
    eventually("the survivor decides alone", PATIENCE, || {
        world.handle(2).leader() == Some(world.id(2)) && world.holds_lease(2)
    });
    world
}

#[test]
fn a_survivor_decides_alone_under_raised_epochs_with_all_it_had() {
    let world = recovered();
    assert_eq!(epoch(&world, 2, "orders"), Some(Epoch(1 + EPOCHS_LEAP)));
    assert_eq!(world.handle(2).voters(), [world.id(2)]);
    create(&world, 2, "after");
    assert!(world.handle(2).events(&EventQuery::default()).events.iter().any(|event| event.verb == "recover-metadata"));
}

/// FEN-1: the old majority knows an older truth, and gives it up as soon as it hears of the new one.
/// Here each is told by the first message that reaches it; a whole server asks before it takes part.
#[test]
fn old_voters_that_return_follow_the_survivor_and_vote_again_once_all_are_back() {
    let mut world = recovered();
    create(&world, 2, "after");
    world.start_again(0);
    eventually("the first old voter follows", PATIENCE, || {
        epoch(&world, 0, "orders") == Some(Epoch(1 + EPOCHS_LEAP)) && epoch(&world, 0, "after").is_some()
    });
    assert_eq!(world.handle(2).voters(), [world.id(2)], "two voters would survive less than one");
    world.start_again(1);
    eventually("three vote again", PATIENCE, || {
        (0..3).all(|at| world.handle(at).voters().len() == 3 && epoch(&world, at, "after").is_some())
    });
    world.settle();
    // And a majority of them is enough again.
    world.kill(2);
    create(&world, world.leader(), "later");
}

/// Two old voters that meet only each other form the old majority once more. As soon as the survivor reaches them they
/// stop, set their copy aside, and nothing that they decided comes back.
#[test]
fn a_second_majority_of_old_voters_ends_with_the_first_message_of_the_survivor() {
    let mut world = recovered();
    world.cut(2, true);
    world.start(0);
    world.start(1);
    eventually("the old voters elect among themselves", PATIENCE, || {
        world.handle(0).leader().is_some() && world.handle(0).leader() == world.handle(1).leader()
    });
    world.settle_some(&[0, 1]);
    create(&world, 0, "astray");
    world.cut(2, false);
    eventually("they have stopped", PATIENCE, || [0, 1].iter().all(|at| world.has_stopped(*at)));
    for at in [0, 1] {
        world.kill(at);
        world.start(at);
    }
    eventually("they follow the survivor", PATIENCE, || {
        [0, 1].iter().all(|at| {
            epoch(&world, *at, "orders") == Some(Epoch(1 + EPOCHS_LEAP)) && epoch(&world, *at, "astray").is_none()
        })
    });
    eventually("three vote again", PATIENCE, || (0..3).all(|at| world.handle(at).voters().len() == 3));
}

#[test]
fn what_was_acknowledged_but_never_stored_by_the_survivor_is_read_from_its_log() {
    let mut world = World::started();
    world.settle();
    let names: Vec<_> = (0..20).map(|at| format!("bucket-{at}")).collect();
    let leader = world.leader();
    names.iter().for_each(|name| create(&world, leader, name));
    eventually("all know them", PATIENCE, || epoch(&world, 1, "bucket-19").is_some());
    (0..3).for_each(|at| world.kill(at));
    let survivor = survivor(&world, 1).unwrap();
    let known = survivor.state().topology();
    assert!(names.iter().all(|name| known.bucket_named(name).is_some()));
}

#[test]
fn a_node_whose_server_runs_or_that_has_nothing_is_refused() {
    let world = World::started();
    world.settle();
    assert!(matches!(survivor(&world, 0), Err(RecoverError::Log(_))));
    let nothing = tempfile::tempdir().unwrap();
    let log = meridian_consensus::Options::new(world.id(0), nothing.path().join("log"));
    assert!(matches!(Survivor::open(&nothing.path().join("metadata"), &log), Err(RecoverError::Empty)));
}

/// Two datacenters and a witness: the loss of either leaves a majority, in which the witness decides with the other.
#[test]
fn a_witness_keeps_the_majority_when_the_primary_region_is_lost() {
    let mut world = World::witnessed();
    world.settle();
    create(&world, 0, "orders");
    let topology = world.handle(0).topology();
    let bucket = topology.bucket_named("orders").unwrap();
    assert_eq!(bucket.regions, topology.data_regions().collect::<Vec<_>>(), "nothing is kept at the witness");
    assert_eq!(bucket.regions.len(), 2);
    world.kill(0);
    world.leader();
    create(&world, 1, "after");
    eventually("the witness has decided with it", PATIENCE, || epoch(&world, 2, "after").is_some());
    world.settle_some(&[1]);
}
