//! What a drill came to, beside what the estimate says of a real failover now: for people and for programs.

use std::time::Duration;

use meridian_types::{
    AutoMode, BucketEstimate, BucketId, DrillBucket, DrillLatency, DrillReport, DrillStep, Estimate, Node, OnPartition,
    Policy, RegionId, Topology,
};
use serde::Serialize;

use crate::cli::operation::{LossView, loss_text};
use crate::output::{Show, Table, bytes, count, duration, millis};

/// Commits of the metadata plane that a failover takes: to fence, to hear what is left, to promote.
const COMMITS: u64 = 3;

/// What it comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Verdict {
    /// The copy was taken over, and nothing speaks against doing it for real.
    Good,
    /// The copy was taken over, but something speaks against doing it for real now.
    NotReady,
    /// The copy could not be taken over, or was not what it should be.
    Failed,
}

/// Everything there is to say.
#[derive(Debug, Serialize)]
pub(super) struct View {
    verdict: Verdict,
    to: String,
    node: String,
    copied_bytes: u64,
    steps: Vec<StepRow>,
    buckets: Vec<Row>,
    shards: Vec<ShardRow>,
    /// What is wrong or in the way, with the remedy.
    findings: Vec<String>,
    real: Real,
    next: String,
}

/// A real failover, as far as that can be said beforehand; in milliseconds.
#[derive(Debug, Serialize)]
struct Real {
    /// The most it takes until the lost region's leases have run out: it counts as lost then, and acknowledges nothing more.
    lease_ms: u64,
    /// About how long the metadata plane takes to put it on record.
    on_record_ms: u64,
    /// As measured on the copy, from the fence to the first acknowledged write in every shard.
    take_over_ms: Option<u64>,
    /// All together, until the first acknowledged write.
    first_write_ms: Option<u64>,
    /// Buckets for which a person has to start it.
    by_hand: Vec<String>,
}

#[derive(Debug, Serialize)]
struct StepRow {
    step: DrillStep,
    took_us: u64,
}

#[derive(Debug, Serialize)]
struct Row {
    bucket: String,
    from: String,
    keys: u64,
    equal: bool,
    proven: bool,
    lost: LossView,
    reads: DrillLatency,
    writes: DrillLatency,
}

#[derive(Debug, Serialize)]
struct ShardRow {
    bucket: String,
    shard: u16,
    lsn: u64,
    keys: u64,
    digest: String,
    fault: String,
}

impl View {
    /// `words` select the buckets and the region, as they were typed.
    pub(super) fn of(
        report: &DrillReport,
        estimate: &Estimate,
        topology: &Topology,
        (node, words): (&Node, &str),
    ) -> View {
        let to = topology.region_label(report.region);
        let mut findings = faults(report, topology, &to);
        let faulty = !findings.is_empty();
        for it in &estimate.buckets {
            findings.extend(in_the_way(it, report.region, topology));
        }
        let verdict = match (faulty, findings.is_empty()) {
            (true, _) => Verdict::Failed,
            (false, false) => Verdict::NotReady,
            (false, true) => Verdict::Good,
        };
        let rehearsed = estimate.buckets.iter().filter(|it| report.shards.iter().any(|row| row.bucket == it.bucket));
        View {
            verdict,
            node: node.name.to_string(),
            copied_bytes: report.bytes,
            steps: report.steps.iter().map(|(step, took_us)| StepRow { step: *step, took_us: *took_us }).collect(),
            buckets: rehearsed.map(|it| Row::of(it, report, topology)).collect(),
            shards: report.shards.iter().map(|row| ShardRow::of(row, topology)).collect(),
            findings,
            real: Real::of(report, estimate, topology),
            next: match verdict {
                Verdict::Failed => format!("remedy the findings, then rehearse again: meridian drill failover {words}"),
                Verdict::NotReady => format!("see what holds it back: meridian failover estimate {words}"),
                Verdict::Good => format!("on the day: meridian failover estimate {words}"),
            },
            to,
        }
    }

    pub(super) fn verdict(&self) -> Verdict {
        self.verdict
    }
}

/// What went wrong on the copy, with the remedy.
fn faults(report: &DrillReport, topology: &Topology, to: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for row in report.shards.iter().filter(|row| !row.fault.is_empty()) {
        let bucket = name(topology, row.bucket);
        faults.push(format!(
            "FAIL {bucket}, shard {}: {}; make it equal to its primary: meridian resync run {bucket} --to {to}",
            row.shard, row.fault
        ));
    }
    for row in &report.buckets {
        faults.extend(row.faults.iter().map(|fault| format!("FAIL {}: {fault}", name(topology, row.bucket))));
    }
    faults.extend(report.faults.iter().map(|fault| format!("FAIL {fault}")));
    faults
}

/// What speaks against doing it for real now. That an async bucket can lose its newest writes is its policy, and no finding.
fn in_the_way(it: &BucketEstimate, to: RegionId, topology: &Topology) -> Vec<String> {
    let Some(bucket) = topology.buckets.get(&it.bucket) else { return Vec::new() };
    let mut findings = Vec::new();
    let mut find = |what: String| findings.push(format!("not ready {}: {what}", it.name));
    if it.to.is_none() {
        find(it.obstacle.clone());
        return findings;
    }
    if it.pulls {
        find("it would first have to fetch from another region what it lacks".to_owned());
    }
    let Policy::Sync { on_partition, .. } = bucket.policy else { return findings };
    if !bucket.standing.is_sync() {
        find(format!(
            "it is {}: writes may have fewer copies than its policy asks, so a loss can't be excluded",
            bucket.standing
        ));
    } else if !it.proven {
        let needed = it.needed.map_or_else(|| "more".to_owned(), |needed| needed.to_string());
        find(format!("that nothing is lost takes the word of {needed} regions, {} were heard", it.heard.len()));
    }
    let required = bucket.policy.required_regions(bucket.regions.len());
    let left = bucket.regions.iter().filter(|region| **region == to || it.heard.contains(region)).count();
    if required > left && on_partition == OnPartition::Block {
        find(format!("afterwards its writes would wait: they need {required} regions, and {left} would be left"));
    }
    findings
}

fn name(topology: &Topology, bucket: BucketId) -> String {
    topology.buckets.get(&bucket).map_or_else(|| format!("bucket-{bucket}"), |it| it.name.to_string())
}

impl Real {
    fn of(report: &DrillReport, estimate: &Estimate, topology: &Topology) -> Real {
        let take_over_ms = report.taken_over_us().map(|us| us.div_ceil(1000));
        let on_record_ms = estimate.took_ms.saturating_mul(COMMITS);
        let manual = |it: &&BucketEstimate| {
            let bucket = topology.buckets.get(&it.bucket);
            bucket.is_some_and(|bucket| matches!(bucket.auto.mode, AutoMode::Manual | AutoMode::ObserveOnly))
        };
        Real {
            lease_ms: report.lease_ms,
            on_record_ms,
            take_over_ms,
            first_write_ms: take_over_ms.map(|took| report.lease_ms + on_record_ms + took),
            by_hand: estimate.buckets.iter().filter(manual).map(|it| it.name.to_string()).collect(),
        }
    }

    fn text(&self) -> String {
        let Some((took, all)) = self.take_over_ms.zip(self.first_write_ms) else {
            return "how long a real failover would take is not known: the copy was not taken over".to_owned();
        };
        let by_hand = match self.by_hand.as_slice() {
            [] => String::new(),
            names => format!("; for {} somebody has to start it first", names.join(", ")),
        };
        format!(
            "a real failover would acknowledge writes again after about {}: up to {} until the leases of the lost region have run out, about {} to put it on record, {} to take over (measured){by_hand}",
            millis(all),
            millis(self.lease_ms),
            millis(self.on_record_ms),
            millis(took),
        )
    }
}

impl Row {
    fn of(it: &BucketEstimate, report: &DrillReport, topology: &Topology) -> Row {
        let shards = || report.shards.iter().filter(|row| row.bucket == it.bucket);
        let measured = report.buckets.iter().find(|row| row.bucket == it.bucket);
        let latency = |of: fn(&DrillBucket) -> DrillLatency| measured.map(of).unwrap_or_default();
        Row {
            bucket: it.name.to_string(),
            from: topology.region_label(it.from),
            keys: shards().map(|row| row.keys).sum(),
            equal: shards().all(|row| row.fault.is_empty()),
            proven: it.proven,
            lost: LossView::of(it.lost),
            reads: latency(|row| row.reads),
            writes: latency(|row| row.writes),
        }
    }

    fn would_be_lost(&self) -> String {
        if self.proven { "nothing (proven)".to_owned() } else { loss_text(&self.lost, false) }
    }
}

impl ShardRow {
    fn of(row: &meridian_types::DrillShard, topology: &Topology) -> ShardRow {
        ShardRow {
            bucket: name(topology, row.bucket),
            shard: row.shard.0,
            lsn: row.lsn.0,
            keys: row.keys,
            digest: row.found.to_string(),
            fault: row.fault.clone(),
        }
    }
}

/// A time in microseconds; `-` of nothing that was done.
fn micros(of: DrillLatency, us: u64) -> String {
    if of.count == 0 { "-".to_owned() } else { duration(Duration::from_micros(us)) }
}

impl Show for View {
    fn text(&self) -> String {
        let columns = [
            "bucket",
            "from",
            ">keys",
            "copy",
            "would be lost",
            ">first read",
            ">p50",
            ">p99",
            ">first write",
            ">p50",
            ">p99",
        ];
        let mut table = Table::new(&columns);
        for row in &self.buckets {
            let (reads, writes) = (row.reads, row.writes);
            table.row([
                row.bucket.clone(),
                row.from.clone(),
                count(row.keys),
                if row.equal { "equal" } else { "DIFFERS" }.to_owned(),
                row.would_be_lost(),
                micros(reads, reads.first_us),
                micros(reads, reads.p50_us),
                micros(reads, reads.p99_us),
                micros(writes, writes.first_us),
                micros(writes, writes.p50_us),
                micros(writes, writes.p99_us),
            ]);
        }
        let took = |row: &StepRow| format!("{} {}", row.step, duration(Duration::from_micros(row.took_us)));
        let steps: Vec<String> = self.steps.iter().map(took).collect();
        let findings = self.findings.iter().map(|finding| format!("\n{finding}")).collect::<String>();
        let verdict = match self.verdict {
            Verdict::Good => format!("GOOD: {} can take over", self.to),
            Verdict::NotReady => "NOT READY".to_owned(),
            Verdict::Failed => "FAILED".to_owned(),
        };
        format!(
            "rehearsed on {} in {}, on a copy of {} that is removed again; no bucket was touched\n\n{table}\n\nsteps: {}\n{}\n\n{verdict}{findings}\n{}",
            self.node,
            self.to,
            bytes(self.copied_bytes),
            steps.join(", "),
            self.real.text(),
            self.next
        )
    }
}

#[cfg(test)]
mod tests;
