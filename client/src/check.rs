//! Whether primaries can move now: everything a switchover rests on, looked at one by one.
//!
//! Strict: what can't be known is not ok. Gathered from every node, judged by [`judge`], which asks nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use futures::future::join_all;
use meridian_proto::convert::lag_from_proto;
use meridian_proto::v1;
use meridian_types::{
    Bucket, BucketLag, LaneState, LaneStatus, Membership, Node, NodeStatus, OnPartition, OperationId, Phase, Policy,
    RegionId, Selection, SwitchoverSpec, Topology,
};

use crate::admin::{Admin, ClusterStub};
use crate::error::Error;

/// A certificate that ends sooner could end in the middle of what the operator has in mind.
const CERTIFICATE_LEFT_MIN: Duration = Duration::from_secs(7 * 24 * 3600);

/// The least share of its disk that a node of the next primary must have free, in percent.
const DISK_FREE_PERCENT_MIN: u64 = 10;

/// That much is enough, whatever share of the disk it is: 64 GiB.
const DISK_FREE_ENOUGH_BYTES: u64 = 64 << 30;

/// How long ago the other end of a link may have been heard, in milliseconds: an idle connection is kept alive twice in that time.
const HEARD_MS_MAX: u64 = 2_000;

/// By how much clocks may differ, in milliseconds: what replication takes before it stops a lane.
const SKEW_MS_MAX: u64 = 500;

/// What was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// One by one.
    pub findings: Vec<Finding>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub what: &'static str,
    /// Of which bucket, node or region.
    pub of: String,
    /// What was found.
    pub verdict: Verdict,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Ok {
        /// How it is.
        found: String,
    },
    /// In the way.
    Fail {
        /// How it is.
        found: String,
        /// What to do.
        remedy: String,
    },
}

/// What is said of the copies that writes get once the old primary's region is off: the move itself does not need it.
const ACKS: &str = "acks";

impl Check {
    /// Whether nothing is in the way.
    pub fn is_ready(&self) -> bool {
        self.findings.iter().all(Finding::is_ok)
    }
}

impl Finding {
    /// Whether it is as it should be.
    pub fn is_ok(&self) -> bool {
        matches!(self.verdict, Verdict::Ok { .. })
    }

    /// Whether it is about the time after the move, when the old primary's region may be switched off, and not about the move.
    pub fn is_about_afterwards(&self) -> bool {
        self.what == ACKS
    }
}

/// What a node said.
struct Heard {
    node: Node,
    status: Result<NodeStatus, String>,
    lags: Result<(Vec<BucketLag>, Vec<LaneStatus>), String>,
    /// Between which milliseconds by this machine's clock the status was made.
    window_ms: (u64, u64),
}

/// What is found of a node that does not answer, and what to do about it.
const UNKNOWN: &str = "not known: it does not answer";
const START_IT: &str = "start it, or see why it can't be reached";

/// Everything that is judged.
struct Facts {
    topology: Arc<Topology>,
    nodes: Vec<Heard>,
    /// What the metadata plane says to the plan.
    dry_run: Result<usize, String>,
}

impl Admin {
    /// Whether primaries could move as asked, now. Changes nothing.
    ///
    /// # Errors
    /// When no endpoint answers. Everything else that is wrong is a finding.
    pub async fn check_switchover(&self, spec: &SwitchoverSpec) -> Result<Check, Error> {
        let topology = self.topology().await?;
        // A spare takes no part in anything.
        let takes_part = |node: &&Node| topology.membership(node.id) != Some(Membership::Spare);
        let asked = topology.nodes.values().filter(takes_part).map(|node| self.hear(node.clone()));
        let nodes = join_all(asked).await;
        // An id of its own: it would otherwise find the operation that was planned under the real one.
        let id = OperationId::of(&format!("check {} {}", topology.index, wall_ms()));
        let dry_run = self.switchover(spec, id, true).await;
        let dry_run = dry_run.map(|plan| plan.moves.len()).map_err(|error| error.message);
        Ok(Check { findings: judge(spec, &Facts { topology, nodes, dry_run }) })
    }

    async fn hear(&self, node: Node) -> Heard {
        let began = wall_ms();
        let started = Instant::now();
        let status = self.node_status(node.id).await.map_err(|error| error.message);
        let took = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let ask = |mut stub: ClusterStub| {
            async move {
                let answer = stub.lag(v1::LagRequest { bucket: String::new() }).await?;
                Ok(lag_from_proto(answer.into_inner()).map(|(_, buckets, lanes)| (buckets, lanes)))
            }
            .boxed()
        };
        let lags = self.ask(&node, &ask).await.map_err(|error| error.message);
        Heard { node, status, lags, window_ms: (began, began.saturating_add(took)) }
    }
}

fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// What is in the way, and what is not.
fn judge(spec: &SwitchoverSpec, facts: &Facts) -> Vec<Finding> {
    let topology = &facts.topology;
    let mut sheet = Sheet::default();
    let Some(to) = topology.region_named(spec.to.as_str()).map(|region| region.id) else {
        let known: Vec<_> = topology.regions.values().map(|region| region.name.as_str()).collect();
        sheet.fail("target", &spec.to, "it is no region of this cluster", format!("use one of {}", known.join(", ")));
        return sheet.0;
    };
    let buckets = selected(&spec.buckets, topology, &mut sheet);
    buckets.iter().for_each(|bucket| judge_bucket(bucket, to, topology, &mut sheet));
    let from: BTreeSet<RegionId> = buckets.iter().filter_map(|it| it.primary).filter(|it| *it != to).collect();
    judge_nodes(facts, to, &from, &mut sheet);
    judge_leaders(facts, to, &mut sheet);
    judge_quorum(facts, &from, &mut sheet);
    for bucket in buckets.iter().filter(|it| it.primary.is_some_and(|primary| primary != to)) {
        judge_lag(spec, facts, bucket, to, &mut sheet);
    }
    for region in &from {
        judge_link(facts, "link", *region, to, &mut sheet);
        judge_link(facts, "reverse link", to, *region, &mut sheet);
    }
    for bucket in buckets.iter().filter(|it| it.is_in(to)) {
        judge_acks(facts, bucket, to, &from, &mut sheet);
    }
    let taking_part: BTreeSet<RegionId> = from.iter().copied().chain([to]).collect();
    judge_clients(spec, facts, &taking_part, &mut sheet);
    judge_versions(facts, &taking_part, &mut sheet);
    judge_clocks(facts, &taking_part, &mut sheet);
    match &facts.dry_run {
        Ok(count) => {
            sheet.ok("dry run", &spec.to, format!("the metadata plane would plan it for {count} of the buckets"))
        }
        Err(why) => sheet.fail("dry run", &spec.to, "the metadata plane refuses it", why),
    }
    sheet.0
}

/// Findings in the making.
#[derive(Default)]
struct Sheet(Vec<Finding>);

impl Sheet {
    fn ok(&mut self, what: &'static str, of: impl ToString, found: impl Into<String>) {
        self.0.push(Finding { what, of: of.to_string(), verdict: Verdict::Ok { found: found.into() } });
    }

    fn fail(&mut self, what: &'static str, of: impl ToString, found: impl Into<String>, remedy: impl Into<String>) {
        let verdict = Verdict::Fail { found: found.into(), remedy: remedy.into() };
        self.0.push(Finding { what, of: of.to_string(), verdict });
    }
}

fn selected(selection: &Selection, topology: &Topology, sheet: &mut Sheet) -> Vec<Arc<Bucket>> {
    let all = topology.buckets.values();
    let found: Vec<Arc<Bucket>> = match selection {
        Selection::Named(names) => {
            for name in names.iter().filter(|name| topology.bucket_named(name.as_str()).is_none()) {
                sheet.fail("bucket", name, "it does not exist", "`meridian bucket list` shows what there is");
            }
            names.iter().filter_map(|name| topology.bucket_named(name.as_str())).cloned().collect()
        }
        Selection::Labelled { key, value } => {
            all.filter(|it| it.primary.is_some() && it.labels.get(key) == Some(value)).cloned().collect()
        }
        Selection::AllFrom(region) => {
            let from = topology.region_named(region.as_str()).map(|region| region.id);
            all.filter(|it| it.primary.is_some() && it.primary == from).cloned().collect()
        }
    };
    if found.is_empty() {
        sheet.fail("buckets", selection, "none was found", "`meridian bucket list` shows labels and primaries");
    }
    found
}

fn judge_bucket(bucket: &Bucket, to: RegionId, topology: &Topology, sheet: &mut Sheet) {
    let label = |region: RegionId| topology.region_label(region);
    match bucket.primary {
        None => sheet.fail("bucket", &bucket.name, "active-active: it has no primary to move", "leave it out"),
        Some(_) if !bucket.is_in(to) => {
            let regions: Vec<_> = bucket.regions.iter().map(|region| label(*region)).collect();
            let remedy = format!("move it to one of {}, or leave it out", regions.join(", "));
            sheet.fail("bucket", &bucket.name, format!("{} does not hold it", label(to)), remedy);
        }
        Some(primary) if primary == to => {
            sheet.ok("bucket", &bucket.name, format!("its primary is {} already", label(to)));
        }
        Some(primary) => {
            sheet.ok("bucket", &bucket.name, format!("{} -> {}, which holds it", label(primary), label(to)))
        }
    }
    match bucket.phase {
        Phase::Steady => sheet.ok("operations", &bucket.name, "none has it"),
        Phase::CatchingUp { plan, .. }
        | Phase::Draining { plan, .. }
        | Phase::Fencing { plan, .. }
        | Phase::Pulling { plan, .. } => sheet.fail(
            "operations",
            &bucket.name,
            format!("{plan} has it ({})", bucket.phase),
            format!("wait with `meridian operation watch {plan}`, or `meridian operation abort {plan}`"),
        ),
    }
}

/// Every node that takes part must answer, hold a lease and have no problem; those of the next primary must have room.
fn judge_nodes(facts: &Facts, to: RegionId, from: &BTreeSet<RegionId>, sheet: &mut Sheet) {
    for heard in facts.nodes.iter().filter(|it| it.node.region == to || from.contains(&it.node.region)) {
        let name = &heard.node.name;
        let status = match &heard.status {
            Ok(status) => status,
            Err(why) => {
                sheet.fail("node", name, format!("it does not answer: {why}"), START_IT);
                sheet.fail("certificate", name, UNKNOWN, START_IT);
                if heard.node.region == to {
                    sheet.fail("disk", name, UNKNOWN, START_IT);
                }
                continue;
            }
        };
        if status.lease_ms == 0 {
            let remedy = "a majority of the metadata voters must be up and reachable from there";
            sheet.fail("node", name, "it has no lease: it accepts no writes", remedy);
        }
        for problem in &status.problems {
            sheet.fail("node", name, problem, "see `meridian status`");
        }
        if status.lease_ms > 0 && status.problems.is_empty() {
            sheet.ok("node", name, "up, with a lease, nothing wrong");
        }
        judge_certificate(heard, status, sheet);
        if heard.node.region == to {
            judge_disk(heard, status, sheet);
        }
    }
}

fn judge_certificate(heard: &Heard, status: &NodeStatus, sheet: &mut Sheet) {
    let (name, days) = (&heard.node.name, status.certificate_left_s / (24 * 3600));
    if status.certificate_left_s >= CERTIFICATE_LEFT_MIN.as_secs() {
        sheet.ok("certificate", name, format!("valid for {days} days"));
    } else {
        let remedy = "issue a new one with `meridian cert node` and restart the node";
        sheet.fail("certificate", name, format!("it ends in {days} days"), remedy);
    }
}

fn judge_disk(heard: &Heard, status: &NodeStatus, sheet: &mut Sheet) {
    let percent = (status.disk_free_bytes.saturating_mul(100)).checked_div(status.disk_total_bytes).unwrap_or_default();
    if percent >= DISK_FREE_PERCENT_MIN || status.disk_free_bytes >= DISK_FREE_ENOUGH_BYTES {
        sheet.ok("disk", &heard.node.name, format!("{percent} % free"));
    } else {
        let remedy = format!("free space until {DISK_FREE_PERCENT_MIN} % are, or {} GiB", DISK_FREE_ENOUGH_BYTES >> 30);
        sheet.fail("disk", &heard.node.name, format!("{percent} % free"), remedy);
    }
}

fn judge_leaders(facts: &Facts, to: RegionId, sheet: &mut Sheet) {
    let (shards, region) = (u32::from(facts.topology.shards), facts.topology.region_label(to));
    let led: u32 = facts.of(to).filter_map(|it| it.status.as_ref().ok()).map(|it| it.shards_led).sum();
    if led >= shards {
        sheet.ok("shards", region, format!("all {shards} have a leader"));
    } else {
        let remedy = "start the region's nodes; an election takes about a second";
        sheet.fail("shards", region, format!("{led} of {shards} have a leader"), remedy);
    }
}

/// The old primary's region may be switched off next: the others must be able to decide without it.
fn judge_quorum(facts: &Facts, from: &BTreeSet<RegionId>, sheet: &mut Sheet) {
    // A node that does not answer may be a voter.
    let votes = |it: &&Heard| it.status.as_ref().map_or(true, |status| status.votes);
    let live = |it: &&Heard| it.status.as_ref().is_ok_and(|status| status.votes && status.lease_ms > 0);
    let voters = facts.nodes.iter().filter(votes).count();
    let left = facts.nodes.iter().filter(live).filter(|it| !from.contains(&it.node.region)).count();
    let without: Vec<_> = from.iter().map(|region| facts.topology.region_label(*region)).collect();
    let of = if without.is_empty() { "all regions".to_owned() } else { format!("without {}", without.join(", ")) };
    let found = format!("{left} of {voters} voters");
    if left > voters / 2 {
        sheet.ok("metadata quorum", of, found);
    } else {
        let remedy = format!("have {} voters up in other regions", voters / 2 + 1);
        sheet.fail("metadata quorum", of, found, remedy);
    }
}

fn judge_lag(spec: &SwitchoverSpec, facts: &Facts, bucket: &Bucket, to: RegionId, sheet: &mut Sheet) {
    let Some(from) = bucket.primary else { return };
    let mut rows = Vec::new();
    for heard in facts.of(from) {
        match &heard.lags {
            Ok((lags, _)) => rows.extend(lags.iter().filter(|it| it.bucket == bucket.id && it.target == to)),
            Err(why) => {
                let found = format!("{} does not tell: {why}", heard.node.name);
                return sheet.fail("lag", &bucket.name, found, "start the node, or see why it can't be reached");
            }
        }
    }
    let Some(lag_ms) = rows.iter().map(|row| row.lag_ms.saturating_add(row.age_ms)).max() else {
        return sheet.fail(
            "lag",
            &bucket.name,
            "not known",
            "nothing is shipped to that region: see `meridian lag --lanes`",
        );
    };
    let operations: u64 =
        rows.iter().map(|row| row.unshipped_operations.saturating_add(row.unapplied_operations)).sum();
    let found = format!("{lag_ms} ms, {operations} operations behind; at most {} ms allowed", spec.lag_ms_max);
    if lag_ms <= spec.lag_ms_max {
        sheet.ok("lag", &bucket.name, found);
    } else {
        let remedy = "wait until it is smaller (`meridian lag`), write less, or allow more with --max-lag";
        sheet.fail("lag", &bucket.name, found, remedy);
    }
}

/// Every lane of every shard must be streaming: connected, answered, with nothing that stops it, and the other end heard of just now.
fn judge_link(facts: &Facts, what: &'static str, source: RegionId, target: RegionId, sheet: &mut Sheet) {
    let label = |region: RegionId| facts.topology.region_label(region);
    let of = format!("{} -> {}", label(source), label(target));
    let lanes: Vec<&LaneStatus> = facts
        .of(source)
        .filter_map(|it| it.lags.as_ref().ok())
        .flat_map(|(_, lanes)| lanes.iter().filter(|lane| lane.target == target))
        .collect();
    let stuck: BTreeMap<String, usize> =
        lanes.iter().filter(|it| it.state != LaneState::Streaming).fold(BTreeMap::new(), |mut counts, lane| {
            *counts.entry(state(&lane.state)).or_default() += 1;
            counts
        });
    let streaming: BTreeSet<_> =
        lanes.iter().filter(|it| it.state == LaneState::Streaming).map(|it| it.shard).collect();
    let shards = usize::from(facts.topology.shards);
    if stuck.is_empty() && streaming.len() == shards {
        let (lanes, silence) = (lanes.len(), silence_ms(&lanes));
        return match silence {
            Some(ms) if ms <= HEARD_MS_MAX => {
                sheet.ok(
                    what,
                    of,
                    format!("{lanes} lanes of {shards} shards stream, the other end was heard {ms} ms ago"),
                );
            }
            Some(ms) => {
                sheet.fail(what, of, format!("{lanes} lanes, but the other end was heard {ms} ms ago"), SEE_LANES)
            }
            None => {
                sheet.fail(what, of, format!("{lanes} lanes, but when the other end was heard is not known"), SEE_LANES)
            }
        };
    }
    let why: Vec<String> = stuck.iter().map(|(state, count)| format!("{count} lanes {state}")).collect();
    let why = if why.is_empty() { "the rest is not shipped by anybody".to_owned() } else { why.join(", ") };
    let found = format!("{} of {shards} shards stream; {why}", streaming.len());
    sheet.fail(what, of, found, SEE_LANES);
}

const SEE_LANES: &str = "see `meridian lag --lanes`: both regions must reach each other's replication ports";

/// How long ago the target of the lane that hears least was heard; `None` when one does not tell.
fn silence_ms(lanes: &[&LaneStatus]) -> Option<u64> {
    lanes.iter().map(|lane| lane.heard_ms).try_fold(0, |most, heard| heard.map(|ms| most.max(ms)))
}

/// The old primary's region may be switched off next: writes must still get the copies that the policy asks for.
fn judge_acks(facts: &Facts, bucket: &Bucket, to: RegionId, from: &BTreeSet<RegionId>, sheet: &mut Sheet) {
    let label = |region: &RegionId| facts.topology.region_label(*region);
    let Some(old) = bucket.primary.filter(|primary| *primary != to) else { return };
    let of = format!("{} without {}", bucket.name, label(&old));
    let Policy::Sync { on_partition, .. } = bucket.policy else {
        return sheet.ok(ACKS, of, "writes are acknowledged by the primary's region alone");
    };
    let needed = bucket.policy.required_regions(bucket.regions.len());
    let others: Vec<RegionId> = bucket.regions.iter().copied().filter(|it| !from.contains(it) && *it != to).collect();
    let (there, missing): (Vec<RegionId>, Vec<RegionId>) = others.iter().partition(|it| facts.ships(to, **it));
    let found = format!("{} of the {needed} regions that it takes", there.len() + 1);
    if there.len() + 1 >= needed {
        return sheet.ok(ACKS, of, found);
    }
    let then = match on_partition {
        OnPartition::Block => "its writes would wait".to_owned(),
        OnPartition::Degrade { .. } => "it would be DEGRADED".to_owned(),
    };
    let remedy = if missing.is_empty() {
        format!(
            "before that region is switched off, ask for fewer copies: `meridian bucket set {} --acks …`",
            bucket.name
        )
    } else {
        let missing: Vec<String> = missing.iter().map(label).collect();
        format!("before that region is switched off, bring back {}, or ask for fewer copies", missing.join(", "))
    };
    sheet.fail(ACKS, of, format!("{found}: {then}"), remedy);
}

/// Who will notice, and what of it.
fn judge_clients(spec: &SwitchoverSpec, facts: &Facts, taking_part: &BTreeSet<RegionId>, sheet: &mut Sheet) {
    for heard in facts.nodes.iter().filter(|it| taking_part.contains(&it.node.region)) {
        // One that does not answer is in the way already.
        let Ok(status) = &heard.status else { continue };
        let found = match status.clients {
            0 => "none is connected".to_owned(),
            some => format!(
                "{some} connected: their writes of these buckets wait for the pause, at most {} ms, and go on by themselves",
                spec.pause_ms_max
            ),
        };
        sheet.ok("clients", &heard.node.name, found);
    }
}

fn state(state: &LaneState) -> String {
    match state {
        LaneState::Connecting { reason } if reason.is_empty() => "are connecting".to_owned(),
        LaneState::Connecting { reason } => format!("can't connect ({reason})"),
        LaneState::Streaming => "stream".to_owned(),
        LaneState::BehindLog { .. } => "are behind the log and need a resync".to_owned(),
        LaneState::Diverged { .. } => "have diverged".to_owned(),
        LaneState::Fenced => "are fenced".to_owned(),
        LaneState::ClockSkew { ahead_ms } => format!("stopped because a clock is {ahead_ms} ms ahead"),
    }
}

fn judge_versions(facts: &Facts, taking_part: &BTreeSet<RegionId>, sheet: &mut Sheet) {
    if let Some(silent) = facts.silent(taking_part) {
        return sheet.fail("versions", silent, UNKNOWN, START_IT);
    }
    let statuses = facts.nodes.iter().filter_map(|it| it.status.as_ref().ok());
    let versions: BTreeSet<&str> = statuses.map(|status| status.version.as_str()).collect();
    let versions: Vec<&str> = versions.into_iter().collect();
    match versions.as_slice() {
        [one] => sheet.ok("versions", "all nodes", *one),
        many => {
            sheet.fail("versions", "all nodes", many.join(", "), "finish the upgrade first, or go on with --skip-check")
        }
    }
}

/// A node's clock is known up to the time its answer took: only what is certain is held against it.
fn judge_clocks(facts: &Facts, taking_part: &BTreeSet<RegionId>, sheet: &mut Sheet) {
    if let Some(silent) = facts.silent(taking_part) {
        return sheet.fail("clocks", silent, UNKNOWN, START_IT);
    }
    let offsets: Vec<(&Heard, i128, i128)> = facts
        .nodes
        .iter()
        .filter_map(|it| {
            let wall = i128::from(it.status.as_ref().ok()?.wall_ms);
            Some((it, wall - i128::from(it.window_ms.1), wall - i128::from(it.window_ms.0)))
        })
        .collect();
    let most = offsets.iter().max_by_key(|(_, least, _)| *least);
    let fewest = offsets.iter().min_by_key(|(_, _, most)| *most);
    let (Some((ahead, least, _)), Some((behind, _, bound))) = (most, fewest) else { return };
    let apart = (least - bound).max(0);
    if apart <= i128::from(SKEW_MS_MAX) {
        sheet.ok(
            "clocks",
            "all nodes",
            format!("apart by no more than {SKEW_MS_MAX} ms, as far as can be seen from here"),
        );
    } else {
        let found = format!("{} is at least {apart} ms ahead of {}", ahead.node.name, behind.node.name);
        sheet.fail("clocks", "all nodes", found, "set the clocks: run NTP on every node");
    }
}

impl Facts {
    fn of(&self, region: RegionId) -> impl Iterator<Item = &Heard> {
        self.nodes.iter().filter(move |it| it.node.region == region)
    }

    /// The nodes of regions that take part which do not answer.
    fn silent(&self, taking_part: &BTreeSet<RegionId>) -> Option<String> {
        let part = self.nodes.iter().filter(|it| taking_part.contains(&it.node.region));
        let silent: Vec<_> = part.filter(|it| it.status.is_err()).map(|it| it.node.name.as_str()).collect();
        (!silent.is_empty()).then(|| silent.join(", "))
    }

    /// Whether every shard of a region ships to another one, as far as both can be heard.
    fn ships(&self, source: RegionId, target: RegionId) -> bool {
        let lanes = self.of(source).filter_map(|it| it.lags.as_ref().ok()).flat_map(|(_, lanes)| lanes);
        let lanes: Vec<&LaneStatus> = lanes.filter(|it| it.target == target).collect();
        let streaming: BTreeSet<_> =
            lanes.iter().filter(|it| it.state == LaneState::Streaming).map(|it| it.shard).collect();
        let answers = self.of(target).any(|it| it.status.is_ok());
        answers
            && streaming.len() == usize::from(self.topology.shards)
            && silence_ms(&lanes).is_some_and(|ms| ms <= HEARD_MS_MAX)
    }
}

#[cfg(test)]
mod tests;
