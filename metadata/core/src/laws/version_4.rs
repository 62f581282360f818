//! What version 4 of commands and of the state added: bytes that must still open.

use meridian_types::Lane;

use super::*;

/// Changes of a policy: one that every region has followed, one that not all have, and the way back.
fn fixture() -> (Vec<Command>, ClusterState) {
    let mut state = formed();
    let mut commands = Vec::new();
    let mut run = |action: &dyn Fn(&ClusterState) -> Action| {
        let next = command(91 + commands.len() as u128, action(&state));
        state.apply(state.index() + 2, &next).unwrap();
        commands.push(next);
    };
    let set = |name: &str, policy, auto| Action::SetPolicy { name: bucket_name(name), policy, auto };
    let followed = |state: &ClusterState, bucket: &str, shards: std::ops::Range<u16>| {
        let bucket = state.bucket_named(&bucket_name(bucket)).unwrap();
        let copies = Copies::Followed(shards.map(ShardId).collect());
        let word = StandingWord { bucket: bucket.id, epoch: bucket.epoch, since: bucket.standing.since(), copies };
        Action::ReportStanding { region: bucket.primary.unwrap(), words: vec![word] }
    };
    let zero = AutoFailover { mode: AutoMode::ZeroLoss, ..AutoFailover::default() };
    run(&|_| Action::CreateBucket(spec("settled", Policy::ASYNC)));
    run(&|_| Action::CreateBucket(spec("turning", Policy::sync(Acks::All))));
    run(&|_| set("settled", Policy::sync(Acks::Majority), Some(zero.clone())));
    run(&|state| followed(state, "settled", 0..4));
    run(&|_| set("turning", Policy::ASYNC, None));
    run(&|_| set("turning", Policy::sync(Acks::One), None));
    run(&|state| followed(state, "turning", 1..3));
    (commands, state)
}

fn path(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

#[test]
fn commands_written_by_version_4_still_open() {
    let (commands, _) = fixture();
    let written: Vec<_> = commands.iter().map(|command| hex(&command.encode().unwrap())).collect();
    if std::env::var_os("REWRITE").is_some() {
        std::fs::write(path("commands-v4.hex"), written.join("\n") + "\n").unwrap();
    }
    let stored = std::fs::read_to_string(path("commands-v4.hex")).unwrap();
    let stored: Vec<_> = stored.lines().collect();
    assert_eq!(stored, written, "the format of commands has changed: give it a new format byte");
    let read: Vec<_> = stored.iter().map(|line| Command::decode(&unhex(line)).unwrap()).collect();
    assert_eq!(read, commands);
}

#[test]
fn a_state_written_by_version_4_still_opens() {
    let (_, state) = fixture();
    let bucket = |name: &str| state.bucket_named(&bucket_name(name)).unwrap();
    assert!(!bucket("settled").is_turning());
    let lanes = [1, 2, 3].map(|epoch| bucket("turning").lane_of(Epoch(epoch)));
    assert_eq!(lanes, [Lane::Sync, Lane::Async, Lane::Sync]);
    let written = hex(&state.encode());
    if std::env::var_os("REWRITE").is_some() {
        std::fs::write(path("state-v4.hex"), written.clone() + "\n").unwrap();
    }
    let stored = std::fs::read_to_string(path("state-v4.hex")).unwrap();
    assert_eq!(stored.trim(), written, "the format of the state has changed: give it a new version");
    assert_eq!(ClusterState::decode(&unhex(&stored)).unwrap(), state);
}

#[test]
fn a_state_without_turns_is_written_as_version_3_wrote_it() {
    let version = |state: &ClusterState| state.encode()[8];
    let mut state = formed();
    create(&mut state, 1, spec("orders", Policy::ASYNC)).unwrap();
    assert_eq!(version(&state), 3);
    assert_eq!(version(&fixture().1), 4);
}
