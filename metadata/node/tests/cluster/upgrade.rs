//! Nodes of two releases: what the older ones could not read is not put on record (UPG-1).

use meridian_metadata_core::{Action, Command};
use meridian_metadata_node::Options;
use meridian_proto::identity::Identity;
use meridian_proto::v1;
use meridian_proto::v1::metadata_peer_client::MetadataPeerClient;
use meridian_proto::v1::propose_response::Result as Answer;
use meridian_types::release::{FORMAT_NEWEST, FORMAT_UNSAID};
use meridian_types::{OperationId, RefusalKind};

use crate::world::{PATIENCE, World, eventually, quick};

fn before(options: &mut Options) {
    quick(options);
    options.version = "0.1.0".to_owned();
}

fn now(options: &mut Options) {
    quick(options);
    options.version = "0.2.0".to_owned();
}

#[test]
fn an_upgrade_that_is_asked_for_too_early_leaves_nothing_on_record_and_ends_once_every_node_was_upgraded_upg_1() {
    let mut world = World::started_with(before);
    world.settle();
    let index = |world: &World| world.handle(world.leader()).topology().index;
    let was = index(&world);
    assert_eq!(world.handle(0).topology().format, FORMAT_UNSAID);
    // Whoever is asked says no, and so does who leads, whoever passed it on.
    (0..3).for_each(|at| assert_eq!(finalize(&world, at), Err(RefusalKind::Conflict)));
    assert_eq!(propose(&world), None, "it was committed");
    assert_eq!(index(&world), was, "nodes that could not read it would have stopped");
    world.tune = now;
    for at in 0..3 {
        assert_eq!(finalize(&world, at), Err(RefusalKind::Conflict), "node {at} is left");
        world.kill(at);
        world.start(at);
        world.settle();
    }
    // A copy may lag behind the last one's registration.
    eventually("every copy knows that all are upgraded", PATIENCE, || finalize(&world, 1) == Ok(FORMAT_NEWEST));
    eventually("all know", PATIENCE, || (0..3).all(|at| world.handle(at).topology().format == FORMAT_NEWEST));
}

fn finalize(world: &World, at: usize) -> Result<u8, RefusalKind> {
    let handle = world.handle(at);
    world.on(at, handle.finalize(false, "alice")).map_err(|refusal| refusal.kind)
}

/// What it came to where a node proposes it to the leader; nothing when it was not put on record.
fn propose(world: &World) -> Option<Answer> {
    let action = Action::Finalize { format: FORMAT_NEWEST };
    let command = Command { operation: OperationId(77), who: "alice".to_owned(), at_ms: 1, action };
    let leader = world.leader();
    let node = world.places[(leader + 1) % 3].member.clone();
    let identity = Identity::Node { region: node.region, name: node.name };
    let mut client = MetadataPeerClient::new(world.connect_as(&identity, leader));
    let request = v1::ProposeRequest { command: command.encode().unwrap().into() };
    let answer = world.outside(client.propose(request)).ok()?.into_inner().result;
    answer.filter(|answer| matches!(answer, Answer::Applied(_)))
}
