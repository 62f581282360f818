//! What version 11 of commands and of the state added: bytes that must still open.

use meridian_types::release::FORMAT_NEWEST;

use super::*;

/// Formed by a release that knows formats, and upgraded since.
fn fixture() -> (Vec<Command>, ClusterState) {
    let mut state = ClusterState::default();
    let mut commands = Vec::new();
    let mut run = |action: Action| {
        let next = command(511 + commands.len() as u128, action);
        state.apply(state.index() + 2, &next).unwrap();
        commands.push(next);
        state.clone()
    };
    run(Action::FormClusterAt { form: form(), format: 10 });
    for name in ["us-east", "eu-west", "ap-south"] {
        let version = "0.2.0".to_owned();
        run(Action::RegisterNode(NodeSpec { version, ..node(&format!("{name}-1"), name) }));
    }
    run(Action::CreateBucket(spec("orders", Policy::ASYNC)));
    let state = run(Action::Finalize { format: 11 });
    (commands, state)
}

fn path(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

#[test]
fn commands_written_by_version_11_still_open() {
    let (commands, _) = fixture();
    let written: Vec<_> = commands.iter().map(|command| hex(&command.encode().unwrap())).collect();
    if std::env::var_os("REWRITE").is_some() {
        std::fs::write(path("commands-v11.hex"), written.join("\n") + "\n").unwrap();
    }
    let stored = std::fs::read_to_string(path("commands-v11.hex")).unwrap();
    let stored: Vec<_> = stored.lines().collect();
    assert_eq!(stored, written, "the format of commands has changed: give it a new format byte");
    let read: Vec<_> = stored.iter().map(|line| Command::decode(&unhex(line)).unwrap()).collect();
    assert_eq!(read, commands);
}

#[test]
fn a_state_written_by_version_11_still_opens() {
    let (_, state) = fixture();
    assert_eq!(state.format(), FORMAT_NEWEST);
    let written = hex(&state.encode());
    if std::env::var_os("REWRITE").is_some() {
        std::fs::write(path("state-v11.hex"), written.clone() + "\n").unwrap();
    }
    let stored = std::fs::read_to_string(path("state-v11.hex")).unwrap();
    assert_eq!(stored.trim(), written, "the format of the state has changed: give it a new version");
    assert_eq!(ClusterState::decode(&unhex(stored.trim())).unwrap(), state);
}
