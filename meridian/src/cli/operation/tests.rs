use meridian_types::{
    AutoFailover, BucketId, BucketName, Change, ChangeEnd, ChangeGoal, ChangeOutcome, Epoch, Goal, Lsn, Move,
    OperationId, Plan, Proof, Region, RegionId, RegionName, Seal, SetHash, ShardId, Stage, Staged, Step, Terms,
    Topology,
};

use super::*;

fn proof(sealed: u16) -> Proof {
    let seal = |shard: u16| (ShardId(shard), Seal { lsn: Lsn(u64::from(shard) + 70), hash: SetHash(9), keys: 100 });
    Proof { sealed: (0..sealed).map(seal).collect(), ready: (0..16).map(seal).collect() }
}

pub(super) fn promoted(sealed: u16) -> Step {
    Step::Promoted { draining_since_ms: 2000, at_ms: 2182, epoch: Epoch(4), proof: proof(sealed) }
}

pub(super) fn restored(why: &str) -> Step {
    Step::Restored { draining_since_ms: Some(2000), at_ms: 7000, epoch: Epoch(5), why: why.to_owned() }
}

pub(super) fn plan(steps: Vec<Step>) -> Plan {
    let names = ["orders", "carts", "ledger"];
    let ended = steps.iter().all(Step::is_final);
    let moves = steps.into_iter().zip(names).zip(1..).map(|((step, name), id)| Move {
        bucket: BucketId(id),
        name: BucketName::new(name).unwrap(),
        from: if step == Step::Unneeded { RegionId(2) } else { RegionId(1) },
        epoch_before: Epoch(3),
        step,
    });
    Plan {
        id: PlanId(12),
        operation: OperationId::of("x"),
        goal: Goal::Switchover { to: RegionId(2), lag_ms_max: 1000, pause_ms_max: 5000 },
        who: "meridian://client/alice".to_owned(),
        reason: "maintenance".to_owned(),
        created_ms: 1000,
        shards: 16,
        moves: moves.collect(),
        ended_ms: ended.then_some(2500),
    }
}

pub(super) fn topology() -> Topology {
    let mut topology = Topology::default();
    for (id, name) in [(1, "us-east"), (2, "eu-west")] {
        let id = RegionId(id);
        topology.regions.insert(id, Region { id, name: RegionName::new(name).unwrap() });
    }
    topology
}

fn trimmed(text: &str) -> Vec<&str> {
    text.lines().map(str::trim_end).collect()
}

#[test]
fn an_operation_ends_with_the_proof_the_pause_and_the_way_back() {
    let plan = plan(vec![promoted(16), promoted(15), Step::Unneeded]);
    let text = View::of(&plan, &topology()).text();
    let expected = "op-12: switchover to eu-west, done
 asked   1970-01-01 00:00:01Z by meridian://client/alice: maintenance
 ended   1970-01-01 00:00:02Z, after 1.50 s
 bounds  lag 1000 ms, pause 5000 ms

 bucket   from      to        step       epoch    pause   shards equal    keys   note
───────────────────────────────────────────────────────────────────────────────────────────────────────────────
 orders   us-east   eu-west   promoted       4   182 ms          16/16   1,600
 carts    us-east   eu-west   promoted       4   182 ms          15/16   1,600
 ledger   eu-west   eu-west   unneeded       3        -              -       -   the primary was there already

undo with: meridian switchover run --to us-east --bucket orders --bucket carts";
    assert_eq!(trimmed(&text), trimmed(expected), "{text}");
}

#[test]
fn what_was_restored_says_why_and_has_nothing_to_undo() {
    let text = View::of(&plan(vec![restored("it took too long")]), &topology()).text();
    assert!(text.contains("restored       5   5.00 s              -      -   it took too long"), "{text}");
    assert!(!text.contains("undo"), "{text}");
}

#[test]
fn programs_get_every_shard_of_the_proof() {
    let view = View::of(&plan(vec![promoted(1)]), &topology());
    let json = serde_json::to_value(&view).unwrap();
    assert_eq!(json["outcome"], "done");
    let proof = &json["buckets"][0]["proof"];
    assert_eq!((proof["equal"].as_u64(), proof["of"].as_u64()), (Some(1), Some(16)));
    assert_eq!(proof["shards"]["0"]["sealed"]["lsn"], 70);
    assert_eq!(proof["shards"]["0"]["ready"]["digest"], "00000000000000000000000000000009");
    assert_eq!(proof["shards"]["1"]["equal"], false);
    assert_eq!(json["undo"][0], "meridian switchover run --to us-east --bucket orders");
}

#[test]
fn a_list_of_operations_is_a_table() {
    let moves = Operation::Moves(plan(vec![promoted(16), restored("x")]).into());
    let list = List { operations: vec![Listed::of(&moves, &topology())] };
    let expected = " operation   what         from      to        buckets     outcome           asked                  longest pause   by                        reason
─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
 op-12       switchover   us-east   eu-west   2 buckets   partly restored   1970-01-01 00:00:01Z          5.00 s   meridian://client/alice   maintenance";
    let text = list.text();
    assert_eq!(trimmed(&text)[0], trimmed(expected)[0], "{text}");
    assert_eq!(trimmed(&text)[2], trimmed(expected)[2], "{text}");
    assert!(List { operations: Vec::new() }.text().contains("meridian switchover run"));
}

/// A region is added to an active-active bucket.
fn added(end: Option<ChangeOutcome>) -> Change {
    let staged = |(at_ms, epoch, stage)| Staged { at_ms, epoch: Epoch(epoch), stage };
    let stages = [(1000, 3, Stage::Meeting), (1060, 4, Stage::Filling), (61_000, 4, Stage::Meeting)];
    Change {
        id: PlanId(40),
        operation: OperationId::of("nearer"),
        who: "meridian://client/alice".to_owned(),
        reason: "nearer".to_owned(),
        bucket: BucketId(1),
        name: BucketName::new("carts").unwrap(),
        before: Terms {
            policy: meridian_types::Policy::ActiveActive,
            primary: None,
            regions: vec![RegionId(1)],
            epoch: Epoch(3),
            auto: AutoFailover::default(),
        },
        goal: ChangeGoal::Add { region: RegionId(2), pause_ms_max: Some(30_000) },
        created_ms: 1000,
        stages: stages.map(staged).to_vec(),
        end: end.map(|outcome| ChangeEnd { at_ms: 61_200, epoch: Epoch(5), outcome }),
    }
}

#[test]
fn a_change_of_a_bucket_says_from_what_to_what_how_long_each_stage_took_and_the_way_back() {
    let text = change::View::of(&added(Some(ChangeOutcome::Done)), &topology()).text();
    let expected = "op-40: region added of carts, done
 asked   1970-01-01 00:00:01Z by meridian://client/alice: nearer
 ended   1970-01-01 00:01:01Z, after 60.2 s
 bounds  writes held at most 30.0 s
 from    us-east (epoch 3)
 to      us-east, eu-west (epoch 5)

 stage     since                  epoch      took
──────────────────────────────────────────────────
 meeting   1970-01-01 00:00:01Z       3   60.0 ms
 filling   1970-01-01 00:00:01Z       4    59.9 s
 meeting   1970-01-01 00:01:01Z       4    200 ms

the way back: meridian bucket set carts --remove-region eu-west";
    assert_eq!(trimmed(&text), trimmed(expected), "{text}");
    let aborted = ChangeOutcome::Aborted { who: "bob".to_owned(), why: "enough".to_owned() };
    let text = change::View::of(&added(Some(aborted)), &topology()).text();
    assert!(text.contains("aborted by bob\n because enough") && !text.contains("way back"), "{text}");
}

#[test]
fn a_list_has_changes_beside_what_moves_and_programs_get_both() {
    let operations = [Operation::Moves(plan(vec![promoted(16)]).into()), Operation::Change(added(None).into())];
    let list = List { operations: operations.iter().map(|it| Listed::of(it, &topology())).collect() };
    let text = list.text();
    let row = text.lines().find(|line| line.contains("op-40")).unwrap_or_default();
    for words in ["region added", "us-east, eu-west", "carts", "under way: meeting", "60.0 ms", "nearer"] {
        assert!(row.contains(words), "`{words}` is missing: {text}");
    }
    let json = serde_json::to_value(&list).unwrap();
    assert_eq!(
        (&json["operations"][0]["kind"], &json["operations"][1]["kind"]),
        (&"switchover".into(), &"region added".into())
    );
    assert_eq!(json["operations"][1]["stages"][0]["took_ms"], 60);
    assert_eq!(json["operations"][1]["stages"][2]["took_ms"], serde_json::Value::Null);
}
