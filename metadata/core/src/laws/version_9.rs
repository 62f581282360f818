//! What version 9 of commands and of the state added: bytes that must still open.

use std::collections::BTreeSet;

use meridian_types::MembersChange;

use super::*;

/// Of a region of three one node is being replaced, by another one than was meant at first, and half of its shards have moved; a spare
/// that was there is gone for good.
fn fixture() -> (Vec<Command>, ClusterState) {
    let members = vec![
        node("us-east-1", "us-east"),
        node("us-east-2", "us-east"),
        node("us-east-3", "us-east"),
        node("eu-west-1", "eu-west"),
    ];
    let mut state = ClusterState::default();
    state.apply(1, &command(u128::MAX, Action::FormCluster(Form { members, ..form() }))).unwrap();
    let mut commands = Vec::new();
    let mut run = |action: Action| {
        let next = command(311 + commands.len() as u128, action);
        state.apply(state.index() + 2, &next).unwrap();
        commands.push(next);
        state.clone()
    };
    let name = |name: &str| NodeName::new(name).unwrap();
    run(Action::RegisterNode(node("us-east-4", "us-east")));
    run(Action::RegisterNode(node("us-east-5", "us-east")));
    run(Action::RemoveNode { name: name("us-east-5") });
    let change = MembersChange::Replace(name("us-east-2"), name("us-east-4"));
    run(Action::ChangeMembers { region: region("us-east"), change });
    run(Action::RegisterNode(node("us-east-6", "us-east")));
    let change = MembersChange::Replace(name("us-east-4"), name("us-east-6"));
    let changing = run(Action::ChangeMembers { region: region("us-east"), change });
    let index = changing.member_changes()[&RegionId(1)].index;
    let shards = BTreeSet::from([ShardId(0), ShardId(3)]);
    let state = run(Action::ShardsMoved { region: RegionId(1), shards, change: index });
    (commands, state)
}

#[test]
fn commands_written_by_version_9_still_open() {
    let (commands, _) = fixture();
    commands_still_open(9, &commands);
}

#[test]
fn a_state_written_by_version_9_still_opens() {
    let (_, state) = fixture();
    let change = &state.member_changes()[&RegionId(1)];
    assert_eq!((change.pending.len(), change.strays.len()), (2, 1));
    state_still_opens(9, &state);
}
