use std::collections::BTreeMap;

use clap::Parser;
use meridian_types::{BucketEstimate, BucketId, BucketName, Epoch, Loss, Region, RegionId, Selection};

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
        oldest_ms: operations * 10,
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
    assert!(lines[5].contains("nothing") && lines[5].contains("proven by eu-west, ap-south"), "{text}");
    let run =
        "to do it: meridian failover run --all-from us-east --accept-loss 'accept-loss/1;to=any;orders@7=12/1200+;sum=";
    assert!(lines.last().unwrap().starts_with(run), "{text}");
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
