//! What version 7 of commands and of the state added: bytes that must still open.

use super::*;

/// Active-active buckets: one on its way to a region less, one with a region that is being filled, and one with a region that has
/// everything and is to write.
fn fixture() -> (Vec<Command>, ClusterState) {
    let mut state = formed();
    let mut commands = Vec::new();
    let mut run = |action: &dyn Fn(&ClusterState) -> Action| {
        let next = command(191 + commands.len() as u128, action(&state));
        state.apply(state.index() + 2, &next).unwrap();
        commands.push(next);
    };
    let change = |name: &str, change: RegionChange| Action::CrossRegions {
        name: bucket_name(name),
        change,
        pause_ms_max: 20_000,
    };
    let say = |state: &ClusterState, name: &str, of: u16, copies: &dyn Fn(u64) -> Copies| {
        let bucket = state.bucket_named(&bucket_name(name)).unwrap();
        let copies = copies(bucket.crossing.as_ref().map_or(0, |it| it.index));
        let word = StandingWord { bucket: bucket.id, epoch: bucket.epoch, since: bucket.standing.since(), copies };
        Action::ReportStanding { region: RegionId(of), words: vec![word] }
    };
    let arrived = |crossing| {
        let seal = Seal { lsn: Lsn(70), hash: SetHash(5), keys: 3 };
        Copies::Arrived { crossing, at: (0..4).map(|shard| (ShardId(shard), seal)).collect() }
    };
    let stopped = |crossing| Copies::Stopped { crossing, at: [(ShardId(1), Lsn(44))].into() };
    let filled =
        |shards: u16| move |_| Copies::Filled { region: RegionId(3), shards: (0..shards).map(ShardId).collect() };
    let third = || region("ap-south");
    for name in ["leaving", "joining", "filled"] {
        run(&|_| Action::CreateBucket(spec(name, Policy::ActiveActive)));
    }
    for name in ["joining", "filled"] {
        run(&|_| change(name, RegionChange::Remove(third())));
        (1..4).for_each(|of| run(&|state| say(state, name, of, &arrived)));
        run(&|_| change(name, RegionChange::Add(third())));
        (1..3).for_each(|of| run(&|state| say(state, name, of, &arrived)));
    }
    run(&|state| say(state, "joining", 3, &filled(2)));
    run(&|state| say(state, "filled", 3, &filled(4)));
    run(&|_| change("leaving", RegionChange::Remove(third())));
    run(&|state| say(state, "leaving", 2, &stopped));
    (commands, state)
}

#[test]
fn commands_written_by_version_7_still_open() {
    let (commands, _) = fixture();
    commands_still_open(7, &commands);
}

#[test]
fn a_state_written_by_version_7_still_opens() {
    let (_, state) = fixture();
    let bucket = |name: &str| state.bucket_named(&bucket_name(name)).unwrap();
    assert_eq!((bucket("leaving").epoch, bucket("joining").epoch), (Epoch(1), Epoch(3)));
    assert!(bucket("leaving").crossing.is_some() && bucket("filled").crossing.is_some());
    let joining = bucket("joining").joins.now.clone().unwrap();
    assert_eq!((joining.filled.len(), joining.pause_ms_max), (2, 20_000));
    state_still_opens(7, &state);
}
