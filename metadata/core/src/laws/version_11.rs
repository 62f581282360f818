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

#[test]
fn commands_written_by_version_11_still_open() {
    let (commands, _) = fixture();
    commands_still_open(11, &commands);
}

#[test]
fn a_state_written_by_version_11_still_opens() {
    let (_, state) = fixture();
    assert_eq!(state.format(), FORMAT_NEWEST);
    state_still_opens(11, &state);
}
