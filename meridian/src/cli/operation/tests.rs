use meridian_types::{
    BucketId, BucketName, Epoch, Goal, Lsn, Move, OperationId, Plan, Proof, Region, RegionId, RegionName, Seal,
    SetHash, ShardId, Step, Topology,
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
    let list = List { operations: vec![View::of(&plan(vec![promoted(16), restored("x")]), &topology())] };
    let expected = " operation   what         from      to        buckets   outcome           asked                  longest pause   by                        reason
───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
 op-12       switchover   us-east   eu-west         2   partly restored   1970-01-01 00:00:01Z          5.00 s   meridian://client/alice   maintenance";
    let text = list.text();
    assert_eq!(trimmed(&text)[0], trimmed(expected)[0], "{text}");
    assert_eq!(trimmed(&text)[2], trimmed(expected)[2], "{text}");
    assert!(List { operations: Vec::new() }.text().contains("meridian switchover run"));
}
