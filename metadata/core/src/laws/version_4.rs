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

#[test]
fn commands_written_by_version_4_still_open() {
    let (commands, _) = fixture();
    commands_still_open(4, &commands);
}

#[test]
fn a_state_written_by_version_4_still_opens() {
    let (_, state) = fixture();
    let bucket = |name: &str| state.bucket_named(&bucket_name(name)).unwrap();
    assert!(!bucket("settled").is_turning());
    let lanes = [1, 2, 3].map(|epoch| bucket("turning").lane_of(Epoch(epoch)));
    assert_eq!(lanes, [Lane::Sync, Lane::Async, Lane::Sync]);
    state_still_opens(4, &state);
}

#[test]
fn a_state_without_turns_is_written_as_version_3_wrote_it() {
    let version = |state: &ClusterState| state.encode()[8];
    let mut state = formed();
    create(&mut state, 1, spec("orders", Policy::ASYNC)).unwrap();
    assert_eq!(version(&state), 3);
    assert_eq!(version(&fixture().1), 4);
}
