//! What version 8 of commands and of the state added: bytes that must still open.

use meridian_types::{Exposure, Remains};

use super::*;

/// An active-active bucket that loses its third region, of which one of the others has said in half of its shards what it has.
fn fixture() -> (Vec<Command>, ClusterState) {
    let mut state = formed();
    let mut commands = Vec::new();
    let mut run = |action: Action| {
        let next = command(211 + commands.len() as u128, action);
        state.apply(state.index() + 2, &next).unwrap();
        commands.push(next);
        state.clone()
    };
    run(Action::CreateBucket(spec("losing", Policy::ActiveActive)));
    let accepted = Loss { operations: 7, bytes: 800, unbounded: true };
    let losing = run(Action::LoseRegion {
        name: bucket_name("losing"),
        region: region("ap-south"),
        epoch: Epoch(1),
        accepted,
        pause_ms_max: 20_000,
    });
    let bucket = losing.bucket_named(&bucket_name("losing")).unwrap();
    let seal = Seal { lsn: Lsn(70), hash: SetHash(5), keys: 3 };
    let exposure = Some(Exposure { head: Lsn(75), operations: 4, bytes: 300, oldest_ms: 90 });
    let remains = Remains { epoch: Epoch(1), seal, exposure, whole: true };
    let at = (0..2).map(|shard| (ShardId(shard), (Lsn(44), remains))).collect();
    let copies = Copies::Parted { crossing: bucket.crossing.as_ref().unwrap().index, at };
    let word = StandingWord { bucket: bucket.id, epoch: bucket.epoch, since: bucket.standing.since(), copies };
    let state = run(Action::ReportStanding { region: RegionId(2), words: vec![word] });
    (commands, state)
}

#[test]
fn commands_written_by_version_8_still_open() {
    let (commands, _) = fixture();
    commands_still_open(8, &commands);
}

#[test]
fn a_state_written_by_version_8_still_opens() {
    let (_, state) = fixture();
    let bucket = state.bucket_named(&bucket_name("losing")).unwrap();
    assert_eq!((bucket.epoch, bucket.lost()), (Epoch(1), Some(RegionId(3))));
    state_still_opens(8, &state);
}
