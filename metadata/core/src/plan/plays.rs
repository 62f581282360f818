//! Golden scripts: `testdata/switchover.txt` and `testdata/failover.txt` read like plays, and this performs them.
//!
//! A line is a command; the lines behind `> ` are what it must answer. A play is performed with `REWRITE=1` to write its
//! answers anew; read the difference before you believe it.
//!
//! ```text
//! at 1000                               the metadata leader's clock, in milliseconds
//! switchover eu orders carts            an operator asks; also `switchover eu label team=o`, `switchover eu from us`
//! us tells orders caught-up 0 1 2       shards 0, 1 and 2 speak, under the epoch the bucket has; `epoch=N` for another
//! us tells orders sealed 0 1 2 keys=7   also `ready`
//! abort 2 WHY / late 2 orders epoch=N   the second operation of this play
//! delete orders
//! create ledger2 sync ap us             a bucket with its regions, the primary first
//! failover orders carts to=eu accept=orders:5/50   an operator replaces primaries; `accept` agrees to a loss
//! eu fenced orders 0 1 2 at=40 in=1 lacks=3/30 head=43 broken     what is left of it there; `in` an epoch
//! leader 2 orders quiet absent=ap       what the metadata leader has seen
//! ```
//! After every command come the buckets that changed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use meridian_types::{
    BucketName, Epoch, Exposure, Fact, Lsn, PlanId, Policy, Refusal, RegionId, RegionName, Remains, Seal, Selection,
    ShardId, Topology, Word,
};

use super::laws::{World, seal};
use crate::{AbortScope, Action, Reply};

struct Stage {
    world: World,
    plans: Vec<PlanId>,
}

impl Stage {
    fn perform(&mut self, text: &str) -> String {
        let before = self.world.state.topology();
        let events = self.world.state.events().count();
        let named: BTreeMap<&str, &str> = text.split_whitespace().filter_map(|word| word.split_once('=')).collect();
        let words: Vec<&str> = text.split_whitespace().collect();
        let number = |name: &str| named.get(name).map(|text| text.parse::<u64>().unwrap());
        let mut answer = match words.as_slice() {
            ["at", ms] => {
                self.world.now_ms = ms.parse().unwrap();
                String::new()
            }
            ["switchover", to, rest @ ..] => self.switchover(to, rest),
            [region, "tells", bucket, fact, shards @ ..] => {
                let region = before.region_named(region).unwrap().id;
                let (keys, epoch) = (number("keys").unwrap_or(7), number("epoch").map(Epoch));
                let shards: Vec<u16> = shards.iter().filter_map(|shard| shard.parse().ok()).collect();
                self.tell(region, bucket, epoch, &shards, |shard| match *fact {
                    "caught-up" => Fact::CaughtUp,
                    "sealed" => Fact::Sealed(seal(shard, keys)),
                    "ready" => Fact::Ready(seal(shard, keys)),
                    other => panic!("no such fact: {other}"),
                });
                String::new()
            }
            ["abort", plan, why @ ..] => {
                let plan = self.plan(plan);
                said(self.world.abort(plan, AbortScope::All, &why.join(" ")))
            }
            ["late", plan, bucket, ..] => {
                let bucket = before.bucket_named(bucket).unwrap().id;
                let scope = AbortScope::Late(vec![(bucket, Epoch(number("epoch").unwrap()))]);
                let plan = self.plan(plan);
                said(self.world.abort(plan, scope, "it took too long"))
            }
            ["create", name, policy, primary, others @ ..] => {
                let policy: Policy = policy.parse().unwrap();
                let regions: Vec<&str> = [primary].into_iter().chain(others).copied().collect();
                self.world.create_in(name, policy, &regions);
                String::new()
            }
            ["failover", rest @ ..] => self.failover(rest, &named),
            [region, "fenced", bucket, shards @ ..] => {
                let region = before.region_named(region).unwrap().id;
                let seen = before.bucket_named(bucket).unwrap().epoch;
                let shards: Vec<u16> = shards.iter().filter_map(|shard| shard.parse().ok()).collect();
                let exposure = named.get("lacks").map(|lacks| {
                    let (operations, bytes) = lacks.split_once('/').unwrap();
                    let (operations, bytes) = (operations.parse().unwrap(), bytes.parse().unwrap());
                    Exposure { head: Lsn(number("head").unwrap()), operations, bytes, oldest_ms: 90 }
                });
                let remains = Remains {
                    epoch: Epoch(number("in").unwrap_or(seen.0 - 1)),
                    seal: Seal { lsn: Lsn(number("at").unwrap()), ..seal(0, number("keys").unwrap_or(7)) },
                    exposure,
                    whole: !words.contains(&"broken"),
                };
                self.tell(region, bucket, number("epoch").map(Epoch), &shards, |_| Fact::Fenced(remains));
                String::new()
            }
            ["leader", plan, bucket, rest @ ..] => {
                let absent: Vec<&str> = named.get("absent").into_iter().flat_map(|names| names.split(',')).collect();
                let plan = self.plan(plan);
                said(self.world.advance(plan, bucket, &absent, rest.contains(&"quiet")))
            }
            ["delete", bucket] => said(self.world.run(Action::DeleteBucket { name: BucketName::new(bucket).unwrap() })),
            other => panic!("no such command: {other:?}"),
        };
        self.say_changes(&before, events, &mut answer);
        answer
    }

    fn plan(&self, number: &str) -> PlanId {
        self.plans[number.parse::<usize>().unwrap() - 1]
    }

    fn switchover(&mut self, to: &str, rest: &[&str]) -> String {
        let selection = match rest {
            ["label", pair] => {
                let (key, value) = pair.split_once('=').unwrap();
                Selection::Labelled { key: key.to_owned(), value: value.to_owned() }
            }
            ["from", region] => Selection::AllFrom(RegionName::new(region).unwrap()),
            names => Selection::Named(names.iter().map(|name| BucketName::new(name).unwrap()).collect()),
        };
        match self.world.switchover(to, selection) {
            Ok(plan) => {
                self.plans.push(plan);
                format!("operation {} is {plan}\n", self.plans.len())
            }
            Err(refusal) => no(&refusal),
        }
    }

    fn failover(&mut self, rest: &[&str], named: &BTreeMap<&str, &str>) -> String {
        let names: Vec<_> =
            rest.iter().filter(|word| !word.contains('=')).map(|name| BucketName::new(name).unwrap()).collect();
        let consent = named.get("accept").map(|agreed| {
            let (name, figures) = agreed.split_once(':').unwrap();
            let (operations, bytes) = figures.split_once('/').unwrap();
            let mut consent = self.world.consent(name, operations.parse().unwrap(), bytes.parse().unwrap());
            consent.to = named.get("agreed-to").map(|to| RegionName::new(to).unwrap());
            consent
        });
        match self.world.failover(named.get("to").copied(), Selection::Named(names), consent) {
            Ok(plan) => {
                self.plans.push(plan);
                format!("operation {} is {plan}\n", self.plans.len())
            }
            Err(refusal) => no(&refusal),
        }
    }

    fn tell(&mut self, from: RegionId, name: &str, epoch: Option<Epoch>, shards: &[u16], fact: impl Fn(u16) -> Fact) {
        let bucket = self.world.state.topology().bucket_named(name).unwrap().clone();
        let mut about = self.world.state.plans().rev().filter(|plan| plan.move_of(bucket.id).is_some());
        let plan = about.next().unwrap().id;
        drop(about);
        let facts = shards.iter().map(|shard| (ShardId(*shard), fact(*shard))).collect();
        self.world.tell(from, Word { plan, bucket: bucket.id, epoch: epoch.unwrap_or(bucket.epoch), facts });
    }

    fn say_changes(&self, before: &Topology, events: usize, answer: &mut String) {
        let after = self.world.state.topology();
        for bucket in after.buckets.values().filter(|bucket| before.buckets.get(&bucket.id) != Some(*bucket)) {
            let primary = bucket.primary.map(|region| after.region_label(region)).unwrap_or_default();
            writeln!(answer, "{}: primary {primary}, epoch {}, {}", bucket.name, bucket.epoch, bucket.phase).unwrap();
        }
        for event in self.world.state.events().skip(events) {
            writeln!(answer, "event: {} {}: {}", event.verb, event.subject, event.detail).unwrap();
        }
    }
}

fn no(refusal: &Refusal) -> String {
    format!("{}: {refusal}\n", refusal.kind)
}

fn said(answer: Result<Reply, Refusal>) -> String {
    answer.map_or_else(|refusal| no(&refusal), |_| String::new())
}

#[test]
fn a_switchover_goes_as_written() {
    perform("testdata/switchover.txt");
}

#[test]
fn a_failover_goes_as_written() {
    perform("testdata/failover.txt");
}

fn perform(script: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(script);
    let written = std::fs::read_to_string(&path).unwrap();
    let mut stage = Stage { world: World::new(), plans: Vec::new() };
    let mut performed = String::new();
    for line in written.lines().filter(|line| !line.starts_with("> ")) {
        writeln!(performed, "{line}").unwrap();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        for answer in stage.perform(line).lines() {
            writeln!(performed, "> {answer}").unwrap();
        }
    }
    if std::env::var_os("REWRITE").is_some() {
        return std::fs::write(&path, &performed).unwrap();
    }
    assert_eq!(performed, written, "the play went differently: perform it with REWRITE=1 and read the difference");
}
