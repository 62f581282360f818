//! The end of `meridian status`: what can die right now, and why not more.
//!
//! What is shown is computed by [`meridian_metadata_core::survival`] from what the nodes answered a moment ago; here it is
//! gathered and put into words.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meridian_client::{Lag, RegionAnswer};
use meridian_metadata_core::survival::{
    BucketSurvival, Case, Evidence, Exposure, Kind, Loss, Stop, Survival, Tally, Unit,
};
use meridian_types::{BucketLag, LaneState, NodeId, NodeStatus, RegionId, Topology};
use serde::Serialize;

use crate::output::{Table, bytes, count, millis};

/// What is asked of the nodes, as the survey needs it.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) statuses: Vec<NodeStatus>,
    pub(super) lags: Vec<(RegionId, Lag)>,
    /// Copies that their own region says are not equal to their source.
    pub(super) diverged: BTreeSet<(meridian_types::BucketId, RegionId)>,
}

impl Heard {
    pub(super) fn add_lags(&mut self, answers: Vec<RegionAnswer<Lag>>) {
        self.lags = answers.into_iter().filter_map(|it| it.answer.ok()).map(|lag| (lag.source, lag)).collect();
    }

    /// Whoever has a lease is up and heard: by its own word, or by the metadata leader's.
    fn evidence(&self, topology: &Arc<Topology>) -> Evidence {
        let voters = self.statuses.iter().max_by_key(|it| it.metadata_index).map(|it| it.metadata_voters.clone());
        let believing = self.statuses.iter().filter(|it| it.lease_ms > 0).map(|it| it.node);
        let granted = self.statuses.iter().flat_map(|it| it.leases.iter().copied());
        let mut live: BTreeSet<NodeId> = believing.chain(granted).collect();
        if live.is_empty() {
            // Without a metadata majority nobody has a lease; the data is where it is all the same.
            live = self.statuses.iter().map(|it| it.node).collect();
        }
        Evidence {
            topology: Arc::clone(topology),
            voters: voters.unwrap_or_default().into_iter().collect(),
            live,
            lags: self.exposures(),
            unsound: self.unsound(topology),
        }
    }

    fn exposures(&self) -> BTreeMap<(meridian_types::BucketId, RegionId, RegionId), Exposure> {
        let rows = self.lags.iter().flat_map(|(source, lag)| lag.buckets.iter().map(move |row| (*source, row)));
        rows.map(|(source, row)| ((row.bucket, source, row.target), exposure(row))).collect()
    }

    /// Targets of lanes that can't go on by themselves.
    fn unsound(&self, topology: &Topology) -> BTreeSet<(meridian_types::BucketId, RegionId)> {
        let mut unsound = self.diverged.clone();
        for (source, lag) in &self.lags {
            for lane in &lag.lanes {
                let stuck = match lane.state {
                    LaneState::BehindLog { .. } | LaneState::Diverged { .. } | LaneState::ClockSkew { .. } => true,
                    LaneState::Connecting { .. } | LaneState::Streaming | LaneState::Fenced => false,
                };
                let carried = topology.buckets.values().filter(|it| {
                    stuck && it.is_in(lane.target) && it.accepts_writes_in(*source) && it.travels_in(lane.lane)
                });
                unsound.extend(carried.map(|bucket| (bucket.id, lane.target)));
            }
        }
        unsound
    }
}

fn exposure(row: &BucketLag) -> Exposure {
    Exposure {
        operations: row.unshipped_operations.saturating_add(row.unapplied_operations),
        bytes: row.unshipped_bytes.saturating_add(row.unapplied_bytes),
        oldest_ms: row.lag_ms,
        age_ms: row.age_ms,
    }
}

/// What can die, for people and programs.
#[derive(Debug, Default, Serialize)]
pub(super) struct View {
    buckets: Vec<BucketView>,
    /// All buckets together.
    overall: Abilities,
    /// Without losing the majority of the metadata voters.
    metadata: Vec<TallyView>,
    /// The same in words: what stands against more.
    reasons: Vec<String>,
    verdict: String,
}

#[derive(Debug, Serialize)]
struct BucketView {
    bucket: String,
    /// Why acknowledged writes are lost already, should what is down not come back.
    lost_now: Option<String>,
    /// Why writes are stopped already.
    stopped_now: Option<String>,
    #[serde(flatten)]
    abilities: Abilities,
}

#[derive(Debug, Default, Serialize)]
struct Abilities {
    without_losing_writes: Vec<TallyView>,
    without_stopping_writes: Vec<TallyView>,
}

#[derive(Debug, Serialize)]
struct TallyView {
    kind: &'static str,
    of: usize,
    can_die: usize,
    cannot: Vec<CaseView>,
}

#[derive(Debug, Serialize)]
struct CaseView {
    dead: String,
    why: String,
}

impl View {
    pub(super) fn of(heard: &Heard, topology: &Arc<Topology>) -> View {
        let survival = heard.evidence(topology).survey();
        let words = Words { topology };
        let name = |id| super::bucket_label(topology, id);
        let of_bucket = |(bucket, loss): &(_, Loss)| format!("{}: {}", name(*bucket), words.loss(loss));
        let stopped = |(bucket, stop): &(_, Stop)| format!("{}: {}", name(*bucket), words.stop(stop));
        View {
            buckets: survival.buckets.iter().map(|row| words.bucket(row)).collect(),
            overall: Abilities {
                without_losing_writes: words.tallies(&survival.keeping, of_bucket),
                without_stopping_writes: words.tallies(&survival.serving, stopped),
            },
            metadata: words.tallies(&survival.deciding, |stop| words.stop(stop)),
            reasons: words.reasons(&survival),
            verdict: verdict(&survival),
        }
    }

    /// As the end of `meridian status`.
    pub(super) fn text(&self) -> String {
        let mut table = Table::new(&["bucket", "without", "node", "zone", "region", "2 nodes", "2 zones", "2 regions"]);
        for row in &self.buckets {
            add_rows(&mut table, &row.bucket, &row.abilities);
        }
        if self.buckets.len() > 1 {
            add_rows(&mut table, "(all)", &self.overall);
        }
        table.row(cells("(metadata)", "losing majority", &self.metadata));
        let reasons: String = self.reasons.iter().map(|reason| format!("\n - {reason}")).collect();
        let reasons = if reasons.is_empty() { reasons } else { format!("\n\nwhy not more{reasons}") };
        format!("what can die right now\n{table}{reasons}\n\n{}", self.verdict)
    }
}

fn add_rows(table: &mut Table, name: &str, abilities: &Abilities) {
    table.row(cells(name, "losing writes", &abilities.without_losing_writes));
    table.row(cells("", "stopping writes", &abilities.without_stopping_writes));
}

fn cells(name: &str, without: &str, tallies: &[TallyView]) -> Vec<String> {
    let cell = |kind: Kind| {
        let found = tallies.iter().find(|it| it.kind == label(kind));
        found.map_or_else(|| "?".to_owned(), |it| share(it.can_die, it.of))
    };
    [name, without].map(str::to_owned).into_iter().chain(Kind::ALL.map(cell)).collect()
}

/// `any`, `2 of 3`, `none`; `-` where there is nothing to die.
fn share(fine: usize, of: usize) -> String {
    match (fine, of) {
        (_, 0) => "-".to_owned(),
        (0, _) => "NONE".to_owned(),
        (fine, of) if fine == of => "any".to_owned(),
        (fine, of) => format!("{fine} of {of}"),
    }
}

fn label(kind: Kind) -> &'static str {
    match kind {
        Kind::Node => "node",
        Kind::Zone => "zone",
        Kind::Region => "region",
        Kind::TwoNodes => "two nodes",
        Kind::TwoZones => "two zones",
        Kind::TwoRegions => "two regions",
    }
}

/// The last line of all.
fn verdict(survival: &Survival) -> String {
    let keeping = any_one(&survival.keeping, "losing an acknowledged write");
    let serving = any_one(&survival.serving, "stopping writes");
    format!("right now {keeping}, and {serving}")
}

/// What may die of all buckets together, in words.
fn any_one<W>(tallies: &[Tally<W>], without: &str) -> String {
    let safe = tallies.iter().filter(|it| is_single(it.kind) && it.of > 0 && it.of == it.fine).map(|it| label(it.kind));
    match safe.collect::<Vec<_>>().as_slice() {
        [] => format!("some single failure can't happen without {without} of some bucket"),
        [one] => format!("any one {one} can die without {without}"),
        [all @ .., last] => format!("any one {} or {last} can die without {without}", all.join(", ")),
    }
}

/// Puts decisions into words.
struct Words<'a> {
    topology: &'a Topology,
}

impl Words<'_> {
    fn bucket(&self, row: &BucketSurvival) -> BucketView {
        BucketView {
            bucket: super::bucket_label(self.topology, row.bucket),
            lost_now: row.loss_now.as_ref().map(|loss| self.loss(loss)),
            stopped_now: row.stop_now.as_ref().map(|stop| self.stop(stop)),
            abilities: Abilities {
                without_losing_writes: self.tallies(&row.keeping, |loss| self.loss(loss)),
                without_stopping_writes: self.tallies(&row.serving, |stop| self.stop(stop)),
            },
        }
    }

    fn tallies<W>(&self, tallies: &[Tally<W>], why: impl Fn(&W) -> String) -> Vec<TallyView> {
        let case = |it: &Case<W>| CaseView { dead: self.dead(&it.dead), why: why(&it.why) };
        let view = |it: &Tally<W>| TallyView {
            kind: label(it.kind),
            of: it.of,
            can_die: it.fine,
            cannot: it.cases.iter().map(case).collect(),
        };
        tallies.iter().map(view).collect()
    }

    /// What stands against any one node, zone or region; each reason once, by the smallest thing whose death it takes.
    fn reasons(&self, survival: &Survival) -> Vec<String> {
        let mut told = BTreeSet::new();
        let mut reasons = Vec::new();
        let mut tell = |subject: &str, dead: Option<&[Unit]>, why: String| {
            if told.insert((subject.to_owned(), why.clone())) {
                let dead = dead.map_or_else(|| "already now".to_owned(), |dead| format!("without {}", self.dead(dead)));
                reasons.push(format!("{subject}, {dead}: {why}"));
            }
        };
        if let Some(stop) = &survival.undecided_now {
            tell("metadata", None, self.stop(stop));
        }
        for row in &survival.buckets {
            let name = super::bucket_label(self.topology, row.bucket);
            row.loss_now.iter().for_each(|loss| tell(&name, None, self.loss(loss)));
            row.stop_now.iter().for_each(|stop| tell(&name, None, self.stop(stop)));
            // What is so already needs no other death to be so.
            let (keeps, serves) = (row.loss_now.is_none(), row.stop_now.is_none());
            let losses = row.keeping.iter().filter(|it| keeps && is_single(it.kind)).flat_map(|it| &it.cases);
            losses.for_each(|case| tell(&name, Some(&case.dead), self.loss(&case.why)));
            let stops = row.serving.iter().filter(|it| serves && is_single(it.kind)).flat_map(|it| &it.cases);
            stops.for_each(|case| tell(&name, Some(&case.dead), self.stop(&case.why)));
        }
        reasons
    }

    fn dead(&self, units: &[Unit]) -> String {
        let one = |unit: &Unit| match unit {
            Unit::Node(id) => {
                let node = self.topology.nodes.get(id);
                node.map_or_else(|| format!("node {id}"), |node| node.name.to_string())
            }
            Unit::Zone(region, zone) => format!("zone {zone} of {}", self.topology.region_label(*region)),
            Unit::Region(region) => self.topology.region_label(*region),
        };
        units.iter().map(one).collect::<Vec<_>>().join(" and ")
    }

    fn regions(&self, regions: &[RegionId]) -> String {
        regions.iter().map(|region| self.topology.region_label(*region)).collect::<Vec<_>>().join(", ")
    }

    fn loss(&self, loss: &Loss) -> String {
        match loss {
            Loss::Exposed { origins, known: Some(it) } => format!(
                "loses what only {} has: {} writes ({}{}) as of {}, and what comes meanwhile",
                self.regions(origins),
                count(it.operations),
                bytes(it.bytes),
                if it.operations == 0 { String::new() } else { format!(", the oldest {} old", millis(it.oldest_ms)) },
                if it.age_ms == 0 { "now".to_owned() } else { format!("{} ago", millis(it.age_ms)) },
            ),
            Loss::Exposed { origins, known: None } => format!(
                "loses what only {} has; how much that is nobody tells: see `meridian lag`",
                self.regions(origins)
            ),
            Loss::Unproven { left, needed } => format!(
                "may lose acknowledged writes: {needed} regions must be left to be sure that one of them has each, and {left} would be"
            ),
            Loss::NoCopy => "loses everything: no region with a copy is left".to_owned(),
        }
    }

    fn stop(&self, stop: &Stop) -> String {
        match stop {
            Stop::Moving(plan) => format!("writes wait for {plan}: see `meridian operation watch {plan}`"),
            Stop::NoMetadataMajority { left, needed } => {
                format!("stops buckets with a primary: {left} metadata voters left, {needed} needed")
            }
            Stop::PrimaryLost { region, proven } => format!(
                "writes stop until {} is back or an operator moves the primary{}",
                self.topology.region_label(*region),
                if *proven { ", which would lose nothing" } else { ", at the cost of what is lost" }
            ),
            Stop::TooFewRegions { left, needed } => {
                format!("writes wait: {left} regions left to acknowledge, {needed} needed")
            }
            Stop::NoRegion => "stops: no region that holds it is left".to_owned(),
        }
    }
}

fn is_single(kind: Kind) -> bool {
    match kind {
        Kind::Node | Kind::Zone | Kind::Region => true,
        Kind::TwoNodes | Kind::TwoZones | Kind::TwoRegions => false,
    }
}

#[cfg(test)]
mod tests {
    use meridian_types::{
        AutoFailover, Bucket, BucketId, BucketName, Epoch, Hlc, Labels, Node, NodeName, Phase, Policy, Region,
        RegionName, ShardId, Standing,
    };

    use super::*;

    fn planet() -> (Heard, Arc<Topology>) {
        let mut topology = Topology { shards: 1, ..Topology::default() };
        for (id, name) in (1..).map(RegionId).zip(["us-east", "eu-west", "ap-south"]) {
            let node = NodeName::new(&format!("{name}-1")).unwrap();
            topology.regions.insert(id, Region { id, name: RegionName::new(name).unwrap() });
            topology.groups.insert((id, ShardId(0)), vec![NodeId::of(&node)]);
            let known = Node {
                id: NodeId::of(&node),
                name: node.clone(),
                region: id,
                zone: "a".to_owned(),
                rpc_address: "h:1".to_owned(),
                replication_address: "h:2".to_owned(),
                version: String::new(),
            };
            topology.nodes.insert(known.id, known);
        }
        let bucket = Bucket {
            id: BucketId(1),
            name: BucketName::new("events").unwrap(),
            policy: Policy::ASYNC,
            epoch: Epoch(1),
            phase: Phase::Steady,
            primary: Some(RegionId(1)),
            regions: topology.regions.keys().copied().collect(),
            labels: Labels::new(),
            created: Hlc(1),
            standing: Standing::default(),
            auto: AutoFailover::default(),
            turns: Default::default(),
            joins: Default::default(),
            crossing: None,
        };
        topology.buckets.insert(bucket.id, Arc::new(bucket));
        let nodes: Vec<_> = topology.nodes.keys().copied().collect();
        let status = |node: &NodeId| NodeStatus {
            node: *node,
            lease_ms: 4000,
            metadata_voters: nodes.clone(),
            ..NodeStatus::default()
        };
        let behind = BucketLag {
            bucket: BucketId(1),
            target: RegionId(2),
            unapplied_operations: 12,
            unapplied_bytes: 2048,
            lag_ms: 80,
            ..BucketLag::default()
        };
        let lag = Lag { source: RegionId(1), buckets: vec![behind], lanes: Vec::new() };
        let heard =
            Heard { statuses: nodes.iter().map(status).collect(), lags: vec![(RegionId(1), lag)], ..Heard::default() };
        (heard, Arc::new(topology))
    }

    #[test]
    fn what_would_be_lost_is_told_with_its_size_and_age() {
        let (heard, topology) = planet();
        let text = View::of(&heard, &topology).text();
        for expected in [
            "what can die right now",
            "2 of 3",
            "events, without us-east-1: loses what only us-east has: 12 writes (2.0 KiB, the oldest 80.0 ms old)",
            "writes stop until us-east is back or an operator moves the primary",
        ] {
            assert!(text.contains(expected), "{expected} is missing in\n{text}");
        }
        assert_eq!(text.matches("loses what only us-east has").count(), 1, "each reason once\n{text}");
        assert!(text.contains("as of now") && text.contains("some single failure can't happen"), "{text}");
    }

    #[test]
    fn a_node_that_only_the_metadata_leader_hears_counts_as_up() {
        let (mut heard, topology) = planet();
        let silent = heard.statuses.pop().map(|status| status.node).unwrap();
        assert!(!heard.evidence(&topology).live.contains(&silent));
        heard.statuses[0].leases = vec![silent];
        assert!(heard.evidence(&topology).live.contains(&silent));
    }
}
