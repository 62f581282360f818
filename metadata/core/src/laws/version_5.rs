//! What version 5 of commands and of the state added: bytes that must still open.

use super::*;

/// Changes of the regions of buckets: one that joined, one that is joining, and one that was removed.
fn fixture() -> (Vec<Command>, ClusterState) {
    let mut state = formed();
    let mut commands = Vec::new();
    let mut run = |action: &dyn Fn(&ClusterState) -> Action| {
        let next = command(121 + commands.len() as u128, action(&state));
        state.apply(state.index() + 2, &next).unwrap();
        commands.push(next);
    };
    let pair = |name| {
        let regions = vec![region("us-east"), region("eu-west")];
        Action::CreateBucket(BucketSpec { regions, ..spec(name, Policy::sync(Acks::All)) })
    };
    let set = |name: &str, change| Action::SetRegions { name: bucket_name(name), change };
    let filled = |state: &ClusterState, bucket: &str, shards: std::ops::Range<u16>| {
        let bucket = state.bucket_named(&bucket_name(bucket)).unwrap();
        let region = bucket.joins.joining().unwrap();
        let copies = Copies::Filled { region, shards: shards.map(ShardId).collect() };
        let word = StandingWord { bucket: bucket.id, epoch: bucket.epoch, since: bucket.standing.since(), copies };
        Action::ReportStanding { region: bucket.primary.unwrap(), words: vec![word] }
    };
    let ap = || region("ap-south");
    for name in ["joined", "joining", "alone"] {
        run(&|_| pair(name));
    }
    run(&|_| set("joined", RegionChange::Add(ap())));
    run(&|state| filled(state, "joined", 0..4));
    run(&|_| set("joining", RegionChange::Add(ap())));
    run(&|state| filled(state, "joining", 1..3));
    run(&|_| Action::SetPolicy { name: bucket_name("alone"), policy: Policy::ASYNC, auto: None });
    run(&|_| Action::CreateBucket(spec("less", Policy::sync(Acks::All))));
    run(&|_| set("less", RegionChange::Remove(ap())));
    (commands, state)
}

#[test]
fn commands_written_by_version_5_still_open() {
    let (commands, _) = fixture();
    commands_still_open(5, &commands);
}

#[test]
fn a_state_written_by_version_5_still_opens() {
    let (_, state) = fixture();
    let bucket = |name: &str| state.bucket_named(&bucket_name(name)).unwrap();
    assert_eq!((bucket("joined").regions.len(), bucket("joined").joins.joining()), (3, None));
    assert_eq!(bucket("joining").joins.now.as_ref().unwrap().filled.len(), 2);
    assert!(bucket("alone").is_turning() && bucket("alone").joins.is_empty());
    assert_eq!((bucket("less").regions.len(), bucket("less").joins.was.len()), (2, 1));
    state_still_opens(5, &state);
}
