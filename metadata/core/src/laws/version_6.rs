//! What version 6 of commands and of the state added: bytes that must still open.

use super::*;

/// Buckets that cross: one that opens, one that closes, and one that is active-active since.
fn fixture() -> (Vec<Command>, ClusterState) {
    let mut state = formed();
    let mut commands = Vec::new();
    let mut run = |action: &dyn Fn(&ClusterState) -> Action| {
        let next = command(161 + commands.len() as u128, action(&state));
        state.apply(state.index() + 2, &next).unwrap();
        commands.push(next);
    };
    let cross = |name: &str, policy, primary: Option<&str>| Action::Cross {
        name: bucket_name(name),
        policy,
        auto: None,
        cross: Cross { primary: primary.map(region), pause_ms_max: 20_000 },
    };
    let say = |state: &ClusterState, name: &str, of: u16, copies: &dyn Fn(u64) -> Copies| {
        let bucket = state.bucket_named(&bucket_name(name)).unwrap();
        let copies = copies(bucket.crossing.as_ref().unwrap().index);
        let word = StandingWord { bucket: bucket.id, epoch: bucket.epoch, since: bucket.standing.since(), copies };
        Action::ReportStanding { region: RegionId(of), words: vec![word] }
    };
    let arrived = |shards: std::ops::Range<u16>| {
        move |crossing| {
            let seal = Seal { lsn: Lsn(70), hash: SetHash(5), keys: 3 };
            Copies::Arrived { crossing, at: shards.clone().map(|shard| (ShardId(shard), seal)).collect() }
        }
    };
    let stopped = |crossing| Copies::Stopped { crossing, at: [(ShardId(1), Lsn(44))].into() };
    for (name, policy) in
        [("opening", Policy::sync(Acks::All)), ("closing", Policy::ActiveActive), ("open", Policy::ASYNC)]
    {
        run(&|_| Action::CreateBucket(spec(name, policy)));
    }
    run(&|_| cross("opening", Policy::ActiveActive, None));
    run(&|state| say(state, "opening", 2, &arrived(1..3)));
    run(&|_| cross("closing", Policy::sync(Acks::Majority), Some("eu-west")));
    run(&|state| say(state, "closing", 1, &stopped));
    run(&|_| cross("open", Policy::ActiveActive, None));
    for of in 1..4 {
        run(&|state| say(state, "open", of, &arrived(0..4)));
    }
    let late = Action::GiveUpCrossing { bucket: BucketId(3), index: 1, why: "late".to_owned() };
    run(&|_| late.clone());
    (commands, state)
}

#[test]
fn commands_written_by_version_6_still_open() {
    let (commands, _) = fixture();
    commands_still_open(6, &commands);
}

#[test]
fn a_state_written_by_version_6_still_opens() {
    let (_, state) = fixture();
    let bucket = |name: &str| state.bucket_named(&bucket_name(name)).unwrap();
    assert!(bucket("opening").is_opening() && bucket("closing").crossing.is_some());
    assert_eq!((bucket("open").policy, bucket("open").crossing.is_none()), (Policy::ActiveActive, true));
    state_still_opens(6, &state);
}
