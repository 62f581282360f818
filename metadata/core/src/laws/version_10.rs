//! What version 10 of commands and of the state added: bytes that must still open.

use meridian_types::{ChangeGoal, ChangeOutcome, Stage};

use super::*;

/// Each kind of a change once: some are under way, one is done, one was aborted, one was given up.
fn fixture() -> (Vec<Command>, ClusterState) {
    let mut state = formed();
    let mut commands = Vec::new();
    let mut run = |action: Action| {
        let next = command(411 + commands.len() as u128, action.on_record("a fixture".to_owned()));
        let answer = state.apply(state.index() + 2, &next).unwrap();
        commands.push(next);
        (state.clone(), answer)
    };
    for (name, policy) in [
        ("turned", Policy::ASYNC),
        ("acked", Policy::sync(Acks::Majority)),
        ("crossing", Policy::ASYNC),
        ("late", Policy::ActiveActive),
        ("shrunk", Policy::ASYNC),
        ("losing", Policy::ActiveActive),
    ] {
        run(Action::CreateBucket(spec(name, policy)));
    }
    run(Action::SetPolicy { name: bucket_name("turned"), policy: Policy::sync(Acks::All), auto: None });
    let change = BucketChange { acks: Some(Acks::All), ..BucketChange::default() };
    run(Action::SetBucket { name: bucket_name("acked"), change });
    let cross = Cross { primary: None, pause_ms_max: 30_000 };
    run(Action::Cross { name: bucket_name("crossing"), policy: Policy::ActiveActive, auto: None, cross });
    let change = RegionChange::Remove(region("ap-south"));
    let (late, _) =
        run(Action::CrossRegions { name: bucket_name("late"), change: change.clone(), pause_ms_max: 10_000 });
    let late = late.bucket_named(&bucket_name("late")).unwrap();
    let (bucket, index) = (late.id, late.crossing.as_ref().unwrap().index);
    run(Action::GiveUpCrossing { bucket, index, why: "late".to_owned() });
    run(Action::SetRegions { name: bucket_name("shrunk"), change });
    let change = RegionChange::Add(region("ap-south"));
    let (growing, _) = run(Action::SetRegions { name: bucket_name("shrunk"), change });
    let plan = growing.changes().next_back().unwrap().id;
    run(Action::Abort { plan, scope: AbortScope::All, why: "enough".to_owned() });
    run(Action::SetDetection { name: bucket_name("turned"), detect_ms: 15_000 });
    let accepted = Loss { operations: 7, bytes: 800, unbounded: true };
    let (name, region, epoch) = (bucket_name("losing"), region("ap-south"), Epoch(1));
    let (state, _) = run(Action::LoseRegion { name, region, epoch, accepted, pause_ms_max: 20_000 });
    (commands, state)
}

#[test]
fn commands_written_by_version_10_still_open() {
    let (commands, _) = fixture();
    commands_still_open(10, &commands);
}

#[test]
fn a_state_written_by_version_10_still_opens() {
    let (_, state) = fixture();
    let stages: Vec<_> = state.changes().filter_map(|it| it.stage()).collect();
    assert_eq!(stages, [Stage::Settling, Stage::Settling, Stage::Meeting, Stage::Meeting]);
    let outcomes: Vec<_> = state.changes().filter_map(|it| it.end.as_ref()).map(|it| it.outcome.to_string()).collect();
    assert_eq!(outcomes, ["given up", ChangeOutcome::Done.to_string().as_str(), "aborted"]);
    assert!(state.changes().any(|it| matches!(it.goal, ChangeGoal::Lose { .. })));
    state_still_opens(10, &state);
}
