//! What version 3 of commands and of the state added: bytes that must still open.

use meridian_types::{Consent, Exposure, FailoverSpec, Loss, Remains, Standing};

use super::*;
use crate::Advance;

/// The state of version 2 goes on: ceilings, degrading, automatic failover. The words about standings are said as the state
/// then has them, so commands and state come together.
fn fixture() -> (Vec<Command>, ClusterState) {
    let bound = LagBound { ms: Some(5000), operations: Some(10_000), bytes: Some(64 << 20) };
    let max_lag = MaxLag { bound, on_breach: Breach::Block };
    let mode = AutoMode::Bounded { max_lag: bound };
    let auto = AutoFailover { mode, successors: vec![region("eu-west")], ..AutoFailover::default() };
    let capped = BucketSpec { auto, ..spec("capped", Policy::Async { max_lag: Some(max_lag) }) };
    let available = |name| Action::CreateBucket(spec(name, "max-availability".parse().unwrap()));
    let zero = AutoFailover { mode: AutoMode::ZeroLoss, per_day_max: 2, ..AutoFailover::default() };
    let calmer = MaxLag { on_breach: Breach::Throttle, ..max_lag };
    let set = |name, change| Action::SetBucket { name: bucket_name(name), change };
    let lacking = || Copies::Lacking { shards: [ShardId(0)].into(), reason: "eu-west does not answer".to_owned() };
    let ready = |shards: std::ops::Range<u16>| Copies::Ready(shards.map(ShardId).collect());

    let mut state = fixture_state();
    let mut commands = Vec::new();
    let mut run = |action: &dyn Fn(&ClusterState) -> Action| {
        let next = command(31 + commands.len() as u128, action(&state));
        state.apply(state.index() + 2, &next).unwrap();
        commands.push(next);
    };
    run(&|_| Action::CreateBucket(capped.clone()));
    run(&|_| available("shop"));
    run(&|_| available("till"));
    run(&|_| set("shop", BucketChange { auto: Some(zero.clone()), ..BucketChange::default() }));
    run(&|_| set("capped", BucketChange { max_lag: Some(Some(calmer)), ..BucketChange::default() }));
    run(&|state| said(state, "shop", lacking()));
    run(&|state| said(state, "shop", ready(0..3)));
    run(&|state| said(state, "till", lacking()));
    run(&|state| said(state, "till", ready(0..4)));
    run(&|state| said(state, "till", ready(2..4)));
    let subject = "shop/3-7-2-1041-1100".to_owned();
    // Of the state it changes nothing but the ring.
    let note = Action::Note { deed: "replay-salvage".to_owned(), subject, detail: "7 keys".to_owned() };
    commands.push(command(31 + commands.len() as u128, note));
    (commands, state)
}

fn said(state: &ClusterState, bucket: &str, copies: Copies) -> Action {
    let bucket = state.bucket_named(&bucket_name(bucket)).unwrap();
    let word = StandingWord { bucket: bucket.id, epoch: bucket.epoch, since: bucket.standing.since(), copies };
    Action::ReportStanding { region: RegionId(1), words: vec![word] }
}

#[test]
fn commands_written_by_version_3_still_open() {
    let (commands, _) = fixture();
    let stored: Vec<_> = include_str!("../../testdata/commands-v3.hex").lines().collect();
    let written: Vec<_> = commands.iter().map(|command| hex(&command.encode().unwrap())).collect();
    assert_eq!(stored, written, "the format of commands has changed: give it a new format byte");
    let read: Vec<_> = stored.iter().map(|line| Command::decode(&unhex(line)).unwrap()).collect();
    assert_eq!(read, commands);
}

#[test]
fn a_state_written_by_version_3_still_opens() {
    let (_, state) = fixture();
    let standing = |bucket: &str| state.bucket_named(&bucket_name(bucket)).unwrap().standing.clone();
    assert!(standing("shop").is_degraded() && matches!(standing("till"), Standing::Recovering { .. }));
    let stored = include_str!("../../testdata/state-v3.hex").trim();
    assert_eq!(stored, hex(&state.encode()), "the format of the state has changed: give it a new version");
    assert_eq!(ClusterState::decode(&unhex(stored)).unwrap(), state);
}

#[test]
fn what_an_older_release_knows_is_written_as_it_wrote_it() {
    let plain = command(1, Action::CreateBucket(spec("orders", Policy::sync(Acks::All)))).encode().unwrap();
    let newer = command(1, Action::CreateBucket(spec("orders", "max-availability".parse().unwrap()))).encode().unwrap();
    assert_eq!((plain[0], newer[0]), (1, 3));
    let mut state = formed();
    let bucket = |bucket| reply::encode(7, &Ok(Reply::Bucket(bucket)))[0];
    assert_eq!(bucket(create(&mut state, 1, spec("orders", Policy::ASYNC)).unwrap()), 1);
    assert_eq!(bucket(create(&mut state, 2, spec("shop", "max-availability".parse().unwrap())).unwrap()), 2);
}

/// Failovers: one that has ended, one that was given up, one under way. The first lines are commands, the last is the state.
#[test]
fn failovers_written_by_version_3_still_open() {
    let mut state = fixture().1;
    let mut commands = Vec::new();
    let mut run = |action: Action| {
        let next = command(61 + commands.len() as u128, action);
        state.apply(state.index() + 2, &next).unwrap();
        commands.push(next);
        state.index()
    };
    let consent = |epoch| {
        let loss = Loss { operations: 12, bytes: 3400, unbounded: true };
        Consent {
            to: Some(region("eu-west")),
            lost: None,
            buckets: [(bucket_name("capped"), (Epoch(epoch), loss))].into(),
        }
    };
    let failover = |epoch| {
        Action::Failover(FailoverSpec {
            buckets: Selection::Named(vec![bucket_name("capped")]),
            to: Some(region("eu-west")),
            consent: Some(consent(epoch)),
            automatic: false,
            reason: "a fire".to_owned(),
        })
    };
    let exposure = Exposure { head: Lsn(99), operations: 2, bytes: 340, oldest_ms: 80 };
    let seal = Seal { lsn: Lsn(97), hash: SetHash(5), keys: 3 };
    let remains = Remains { epoch: Epoch(1), seal, exposure: Some(exposure), whole: true };
    let capped = BucketId(4);
    let plan = PlanId(run(failover(1)));
    let facts = (0..4).map(|shard| (ShardId(shard), Fact::Fenced(remains))).collect();
    let word = Word { plan, bucket: capped, epoch: Epoch(2), facts };
    run(Action::Report { region: RegionId(2), words: vec![word] });
    let seen = Advance { buckets: vec![(capped, Epoch(2))], absent: [RegionId(3)].into(), quiet: true };
    run(Action::Advance { plan, seen });
    run(Action::Observe { bucket: capped, epoch: Epoch(2), what: "a silence".to_owned() });
    let stored: Vec<_> = include_str!("../../testdata/failovers-v3.hex").lines().collect();
    let written: Vec<_> = commands.iter().map(|command| hex(&command.encode().unwrap())).collect();
    let written: Vec<_> = written.into_iter().chain([hex(&state.encode())]).collect();
    if std::env::var_os("REWRITE").is_some() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/failovers-v3.hex");
        return std::fs::write(path, written.join("\n") + "\n").unwrap();
    }
    assert_eq!(stored, written, "the format has changed: give it a new version");
    let (last, lines) = stored.split_last().unwrap();
    let read: Vec<_> = lines.iter().map(|line| Command::decode(&unhex(line)).unwrap()).collect();
    assert_eq!(read, commands);
    assert_eq!(ClusterState::decode(&unhex(last)).unwrap(), state);
}
