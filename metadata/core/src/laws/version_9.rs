//! What version 9 of commands and of the state added: bytes that must still open.

use std::collections::BTreeSet;

use meridian_types::MembersChange;

use super::*;

/// Of a region of three one node is being replaced, and one of its shards has moved; a spare that was there is gone for good.
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
    let changing = run(Action::ChangeMembers { region: region("us-east"), change });
    let index = changing.member_changes()[&RegionId(1)].index;
    let shards = BTreeSet::from([ShardId(0), ShardId(3)]);
    let state = run(Action::ShardsMoved { region: RegionId(1), shards, change: index });
    (commands, state)
}

fn path(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

#[test]
fn commands_written_by_version_9_still_open() {
    let (commands, _) = fixture();
    let written: Vec<_> = commands.iter().map(|command| hex(&command.encode().unwrap())).collect();
    if std::env::var_os("REWRITE").is_some() {
        std::fs::write(path("commands-v9.hex"), written.join("\n") + "\n").unwrap();
    }
    let stored = std::fs::read_to_string(path("commands-v9.hex")).unwrap();
    let stored: Vec<_> = stored.lines().collect();
    assert_eq!(stored, written, "the format of commands has changed: give it a new format byte");
    let read: Vec<_> = stored.iter().map(|line| Command::decode(&unhex(line)).unwrap()).collect();
    assert_eq!(read, commands);
}

#[test]
fn a_state_written_by_version_9_still_opens() {
    let (_, state) = fixture();
    assert_eq!(state.member_changes()[&RegionId(1)].pending, [ShardId(1), ShardId(2)].into());
    let written = hex(&state.encode());
    if std::env::var_os("REWRITE").is_some() {
        std::fs::write(path("state-v9.hex"), written.clone() + "\n").unwrap();
    }
    let stored = std::fs::read_to_string(path("state-v9.hex")).unwrap();
    assert_eq!(stored.trim(), written, "the format of the state has changed: give it a new version");
    assert_eq!(ClusterState::decode(&unhex(&stored)).unwrap(), state);
}
