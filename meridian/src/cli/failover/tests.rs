use std::collections::BTreeMap;

use clap::Parser;
use meridian_types::{
    BucketEstimate, BucketId, BucketName, Epoch, Goal, KeyStart, Loss, Move, Region, RegionId, Selection,
};

use super::*;
use crate::cli::exit::{Code, code};
use crate::output::Show;

#[derive(Debug, Parser)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

fn parse(line: &str) -> Result<RunArgs, String> {
    match Line::try_parse_from(line.split_whitespace()).map_err(|why| why.to_string())?.command {
        Command::Run(args) => Ok(args),
        other => Err(format!("{other:?}")),
    }
}

fn topology() -> Topology {
    let mut topology = Topology::default();
    for (id, name) in [(1, "us-east"), (2, "eu-west"), (3, "ap-south")] {
        let id = RegionId(id);
        topology.regions.insert(id, Region { id, name: RegionName::new(name).unwrap() });
    }
    topology
}

fn bucket(name: &str, proven: bool, operations: u64) -> BucketEstimate {
    BucketEstimate {
        bucket: BucketId(1),
        name: BucketName::new(name).unwrap(),
        epoch: Epoch(7),
        from: RegionId(1),
        primary_answers: false,
        to: Some(RegionId(2)),
        pulls: false,
        proven,
        needed: proven.then_some(2),
        heard: vec![RegionId(2), RegionId(3)],
        lost: Loss { operations, bytes: operations * 100, unbounded: !proven },
        known: Loss { operations, bytes: operations * 100, unbounded: false },
        oldest_ms: operations * 10,
        oldest_key: KeyStart::of(b"order/17"),
        said_ms: Some(180),
        obstacle: String::new(),
    }
}

fn estimate(buckets: Vec<BucketEstimate>) -> Estimate {
    let risky = buckets.iter().filter(|it| !it.proven && it.to.is_some());
    let agreed: BTreeMap<_, _> = risky.map(|it| (it.name.clone(), (it.epoch, it.lost))).collect();
    let consent = (!agreed.is_empty()).then_some(Consent { to: None, lost: None, buckets: agreed });
    let heard = vec![RegionId(2), RegionId(3)];
    Estimate { region: RegionId(2), heard, took_ms: 41, buckets, consent }
}

fn exit(args: &RunArgs, estimate: &Estimate) -> Code {
    check(args, estimate, &topology()).map_or_else(|why| code(&why.into()), |()| Code::Done)
}

#[test]
fn what_is_typed_is_what_is_asked() {
    let args = parse("failover run --all-from us-east --to eu-west --reason fire").unwrap();
    let spec = args.spec();
    assert_eq!(spec.buckets, Selection::AllFrom(RegionName::new("us-east").unwrap()));
    assert_eq!((spec.to, spec.consent, spec.automatic), (Some(RegionName::new("eu-west").unwrap()), None, false));
    assert_eq!(args.which.words(), "--all-from us-east --to eu-west");
    assert!(parse("failover run --bucket a --accept-loss yes").unwrap_err().contains("this is no consent"));
}

#[test]
fn what_could_cost_a_write_needs_consent_to_that_much_in_that_epoch() {
    let args = |consent: Option<&Consent>| {
        let agreed = consent.map_or(String::new(), |consent| format!(" --accept-loss {consent}"));
        parse(&format!("failover run --bucket a{agreed}")).unwrap()
    };
    let safe = estimate(vec![bucket("a", true, 0)]);
    assert_eq!(exit(&args(None), &safe), Code::Done);
    let risky = estimate(vec![bucket("a", false, 12)]);
    assert_eq!(exit(&args(None), &risky), Code::ConsentNeeded);
    let agreed = args(risky.consent.as_ref());
    assert_eq!(exit(&agreed, &risky), Code::Done);
    assert_eq!(exit(&agreed, &estimate(vec![bucket("a", false, 13)])), Code::ConsentNeeded);
    let later = BucketEstimate { epoch: Epoch(8), ..bucket("a", false, 12) };
    assert_eq!(exit(&agreed, &estimate(vec![later])), Code::ConsentNeeded);
}

#[test]
fn a_primary_that_answers_is_not_replaced_by_accident() {
    let alive = estimate(vec![BucketEstimate { primary_answers: true, ..bucket("a", true, 0) }]);
    assert_eq!(exit(&parse("failover run --bucket a").unwrap(), &alive), Code::NotReady);
    assert_eq!(exit(&parse("failover run --bucket a --even-if-alive").unwrap(), &alive), Code::Done);
    let stuck = BucketEstimate { to: None, obstacle: "none of eu-west answers".to_owned(), ..bucket("a", false, 0) };
    assert_eq!(exit(&parse("failover run --bucket a").unwrap(), &estimate(vec![stuck])), Code::NotReady);
}

#[test]
fn an_estimate_says_what_is_lost_what_is_not_known_and_what_to_type() {
    let estimate = estimate(vec![bucket("orders", false, 12), bucket("ledger", true, 0)]);
    let text = EstimateView::of(&estimate, &topology(), "--all-from us-east").text();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    assert_eq!(lines[0], "answered by eu-west in 41.0 ms; heard: eu-west, ap-south; silent: us-east");
    assert!(lines[4].contains("12 operations, 1.2 KiB") && lines[4].contains("no bound"), "{text}");
    assert!(lines[4].contains("120 ms   order/17"), "{text}");
    assert!(
        lines[5].contains("nothing")
            && !lines[5].contains("order/17")
            && lines[5].contains("proven by eu-west, ap-south"),
        "{text}"
    );
    let run =
        "to do it: meridian failover run --all-from us-east --accept-loss 'accept-loss/1;to=any;orders@7=12/1200+;sum=";
    assert!(lines.last().unwrap().starts_with(run), "{text}");
}

/// Three writes are known to be missing, and a thousand may be.
#[test]
fn a_ceiling_is_no_loss_that_is_known() {
    let mut topology = topology();
    let policy = meridian_types::Policy::Async { max_lag: Some("1000ops".parse().map(blocking).unwrap()) };
    topology.buckets.insert(BucketId(1), std::sync::Arc::new(with(policy)));
    let known = bucket("orders", false, 3).known;
    let lost = Loss { operations: 1000, bytes: 1 << 30, unbounded: false };
    let row = BucketEstimate { lost, known, ..bucket("orders", false, 3) };
    let view = EstimateView::of(&estimate(vec![row.clone()]), &topology, "--bucket orders");
    let text = view.text();
    assert!(text.contains(" 3 operations, 300 B "), "{text}");
    assert!(text.contains("at most 1,000 operations, 1.0 GiB in all"), "{text}");
    assert!(text.contains("accepts no more than that beyond the others: async"), "{text}");
    let json = serde_json::to_value(&view).unwrap();
    let row_of = |json: &serde_json::Value| json["buckets"][0].clone();
    assert_eq!(
        (&row_of(&json)["known"]["operations"], &row_of(&json)["lost"]["operations"]),
        (&3.into(), &1000.into())
    );
    assert_eq!(row_of(&json)["oldest_key"], "order/17");
    let all_known = BucketEstimate { known: lost, ..row };
    let text = EstimateView::of(&estimate(vec![all_known]), &topology, "--bucket orders").text();
    assert!(text.contains("nothing more") && !text.contains("at most"), "{text}");
}

fn blocking(bound: meridian_types::LagBound) -> meridian_types::MaxLag {
    meridian_types::MaxLag { bound, on_breach: meridian_types::Breach::Block }
}

fn with(policy: meridian_types::Policy) -> meridian_types::Bucket {
    meridian_types::Bucket {
        id: BucketId(1),
        name: BucketName::new("orders").unwrap(),
        policy,
        epoch: Epoch(7),
        phase: meridian_types::Phase::Steady,
        primary: Some(RegionId(1)),
        regions: vec![RegionId(1), RegionId(2)],
        labels: BTreeMap::new(),
        created: meridian_types::Hlc(0),
        standing: Default::default(),
        auto: Default::default(),
        turns: Default::default(),
        joins: Default::default(),
        crossing: None,
    }
}

#[test]
fn a_lost_region_of_buckets_that_all_write_is_named_and_one_that_answers_is_not_lost() {
    let args = parse("failover run --bucket carts --lost us-east --max-pause 9s").unwrap();
    assert_eq!(args.which.words(), "--bucket carts --lost us-east");
    assert!(parse("failover run --all-from us-east --lost us-east").is_err(), "no bucket that all write has a primary");
    assert!(parse("failover run --bucket carts --lost us-east --to eu-west").is_err());
    assert!(parse("failover run --bucket carts --max-pause 9s").is_err());
    let alive = estimate(vec![BucketEstimate { primary_answers: true, ..bucket("carts", false, 3) }]);
    let told = check(&args, &alive, &topology()).unwrap_err().to_string();
    assert!(told.contains("bucket set carts --remove-region us-east"), "{told}");
}

#[test]
fn buckets_that_are_not_written_in_the_lost_region_are_named_as_left_out() {
    let args = parse("failover run --bucket carts,seen --lost us-east --op-id m-7 --reason fire").unwrap();
    let left_out = left_out(&args.which.buckets.selection(), &estimate(vec![bucket("carts", false, 3)]));
    assert_eq!(left_out, [BucketName::new("seen").unwrap()]);
}

fn ended(whys: &[Option<&str>]) -> Plan {
    let step = |why: &Option<&str>| match why {
        None => Step::Unneeded,
        Some(why) => Step::Restored { draining_since_ms: None, at_ms: 9, epoch: Epoch(9), why: (*why).to_owned() },
    };
    let moves = whys.iter().zip(1..).map(|(why, id)| Move {
        bucket: BucketId(id),
        name: BucketName::new("orders").unwrap(),
        from: RegionId(1),
        epoch_before: Epoch(7),
        step: step(why),
    });
    Plan {
        id: PlanId(12),
        operation: OperationId::of("x"),
        goal: Goal::Failover { to: None, automatic: false },
        who: String::new(),
        reason: String::new(),
        created_ms: 1,
        shards: 16,
        moves: moves.collect(),
        ended_ms: Some(9),
    }
}

/// Whoever runs it again under its `--op-id` is told by nothing else either.
#[test]
fn how_a_failover_ended_is_told_by_what_is_on_record() {
    let code = |whys: &[Option<&str>]| judge(&ended(whys)).map_or_else(|why| why.code(), |()| Code::Done);
    let unproven = format!("{}: it takes 2 regions", meridian_types::loss::NOT_PROVEN);
    let more = format!("{}: 6 operations", meridian_types::loss::MORE_THAN_AGREED);
    assert_eq!(code(&[None]), Code::Done);
    assert_eq!(code(&[Some(&unproven)]), Code::ConsentNeeded);
    assert_eq!(code(&[None, Some(&more)]), Code::ConsentNeeded);
    assert_eq!(code(&[Some("an operator gave it up"), None]), Code::AbortedAndRestored);
}
