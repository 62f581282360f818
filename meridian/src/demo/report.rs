//! What the demo found, as a table.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use meridian_types::BucketLag;
use serde::{Serialize, Serializer};

use super::stage::Stage;
use crate::bench::Latency;
use crate::output::{Show, Table, bytes, count, duration, millis, share};
use crate::transfer::Listing;

/// Findings that are shown; the others are counted.
const FINDINGS_SHOWN_MAX: usize = 20;

/// What the demo found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Files imported into each bucket.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What was not imported, and why.
    pub skipped: Vec<String>,
    /// Files read back and compared, by level.
    pub(super) checked: BTreeMap<&'static str, Count>,
    /// From the last answer of the import and the checks after it, until every region had seen every write.
    #[serde(serialize_with = "as_ms")]
    pub(super) converged_after: Duration,
    /// The greatest lag that was seen while files were imported, by bucket.
    pub(super) lag: BTreeMap<String, LagPeak>,
    /// Concurrent writes to the active-active bucket.
    pub(super) concurrent: Option<Concurrent>,
    /// Latencies by bucket and client region.
    pub(super) latencies: Vec<LatencyRow>,
    /// What the lanes carried, by lane.
    pub(super) shipped: BTreeMap<String, Shipped>,
    /// Whether a bucket's digests are equal in every region.
    pub(super) equal: BTreeMap<String, bool>,
    /// Live keys by bucket.
    pub(super) keys: BTreeMap<String, u64>,
    /// How long everything took.
    #[serde(serialize_with = "as_ms")]
    pub(super) took: Duration,
    /// What is missing or different. Empty means proven equal.
    pub findings: Vec<String>,
    /// Where logs and data were kept, if they were.
    pub kept: Option<PathBuf>,
}

/// A number of files with their bytes.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Count {
    files: u64,
    bytes: u64,
}

/// What a round of reading back came to.
#[derive(Debug, Default)]
pub(super) struct Checked {
    by_level: BTreeMap<&'static str, Count>,
    findings: Vec<String>,
}

impl Checked {
    pub(super) fn count(&mut self, level: &'static str, size: u64, finding: Option<String>) {
        let count = self.by_level.entry(level).or_default();
        count.files += 1;
        count.bytes += size;
        self.findings.extend(finding);
    }
}

/// The greatest lag seen of a bucket.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct LagPeak {
    lag_ms: u64,
    operations: u64,
    bytes: u64,
}

impl LagPeak {
    pub(super) fn raise(&mut self, row: &BucketLag) {
        self.lag_ms = self.lag_ms.max(row.lag_ms);
        self.operations = self.operations.max(row.unshipped_operations + row.unapplied_operations);
        self.bytes = self.bytes.max(row.unshipped_bytes + row.unapplied_bytes);
    }
}

/// Concurrent writes to the active-active bucket, and what came of them.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Concurrent {
    pub(super) writes: u64,
    pub(super) registers_agree: bool,
    pub(super) counters_exact: bool,
}

/// What a lane carried.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Shipped {
    pub(super) raw_bytes: u64,
    pub(super) wire_bytes: u64,
    pub(super) frames: u64,
    pub(super) entries: u64,
}

/// Latencies of one bucket from one region.
#[derive(Debug, Serialize)]
pub(super) struct LatencyRow {
    pub(super) bucket: String,
    pub(super) policy: String,
    pub(super) region: String,
    /// To the region that orders the writes; `None` where they are ordered right there.
    #[serde(serialize_with = "as_maybe_ms", rename = "round_trip_ms")]
    pub(super) round_trip: Option<Duration>,
    /// To the nearest other region.
    #[serde(serialize_with = "as_ms", rename = "nearest_ms")]
    pub(super) nearest: Duration,
    #[serde(serialize_with = "as_quantiles")]
    pub(super) writes: Latency,
    #[serde(serialize_with = "as_maybe_quantiles")]
    pub(super) strong: Option<Latency>,
    #[serde(serialize_with = "as_quantiles")]
    pub(super) local: Latency,
}

impl Report {
    pub(super) fn new(stage: &Stage, listing: &Listing) -> Report {
        Report {
            files: listing.files.len() as u64,
            bytes: listing.bytes,
            skipped: listing.skipped.clone(),
            checked: BTreeMap::new(),
            converged_after: Duration::ZERO,
            lag: BTreeMap::new(),
            concurrent: None,
            latencies: Vec::new(),
            shipped: BTreeMap::new(),
            equal: stage.shelves.iter().map(|shelf| (shelf.name.to_string(), true)).collect(),
            keys: BTreeMap::new(),
            took: Duration::ZERO,
            findings: Vec::new(),
            kept: None,
        }
    }

    pub(super) fn add_checked(&mut self, checked: Checked) {
        for (level, count) in checked.by_level {
            let sum = self.checked.entry(level).or_default();
            sum.files += count.files;
            sum.bytes += count.bytes;
        }
        self.findings.extend(checked.findings);
    }

    pub(super) fn add_keys(&mut self, bucket: &str, keys: u64) {
        *self.keys.entry(bucket.to_owned()).or_default() += keys;
    }

    /// Whether every bucket is equal in every region and nothing was missing.
    pub fn is_equal(&self) -> bool {
        self.findings.is_empty() && self.equal.values().all(|equal| *equal)
    }

    fn latency_table(&self) -> Table {
        let mut table = Table::new(&[
            "bucket",
            "policy",
            "client in",
            ">round trip",
            ">write p50",
            ">p99",
            ">strong read p50",
            ">p99",
            ">local read p50",
            ">p99",
        ]);
        for row in &self.latencies {
            let pair = |latency: &Latency| [duration(latency.quantile(0.5)), duration(latency.quantile(0.99))];
            let strong = row.strong.as_ref().map_or_else(|| ["-".to_owned(), "-".to_owned()], pair);
            let mut cells = vec![row.bucket.clone(), row.policy.clone(), row.region.clone(), row.round_trip_text()];
            cells.extend(pair(&row.writes).into_iter().chain(strong).chain(pair(&row.local)));
            table.row(cells);
        }
        table
    }

    fn bucket_table(&self) -> Table {
        let mut table = Table::new(&["bucket", ">keys", ">peak lag", ">", ">", ">lag now", "equal in every region"]);
        for (bucket, equal) in &self.equal {
            let lag = self.lag.get(bucket).copied().unwrap_or_default();
            table.row([
                bucket.clone(),
                count(self.keys.get(bucket).copied().unwrap_or_default()),
                millis(lag.lag_ms),
                format!("{} ops", count(lag.operations)),
                bytes(lag.bytes),
                if *equal { "none" } else { "?" }.to_owned(),
                format!("equal: {}", if *equal { "yes" } else { "NO" }),
            ]);
        }
        table
    }

    fn shipped_table(&self) -> Table {
        let mut table =
            Table::new(&["lane", "carries", ">writes shipped", ">frames", ">before lz4", ">on the wire", ">"]);
        for (lane, shipped) in &self.shipped {
            table.row([
                lane.clone(),
                if lane == "sync" { "files-sync" } else { "files-async, files-active-active" }.to_owned(),
                count(shipped.entries),
                count(shipped.frames),
                bytes(shipped.raw_bytes),
                bytes(shipped.wire_bytes),
                share(shipped.wire_bytes, shipped.raw_bytes),
            ]);
        }
        table
    }

    fn summary(&self) -> String {
        let levels: Vec<String> =
            self.checked.iter().map(|(level, checked)| format!("{} {level}", count(checked.files))).collect();
        let mut lines = vec![format!(
            "{} files ({}) in each of {} buckets; read back from other regions and compared: {}",
            count(self.files),
            bytes(self.bytes),
            self.equal.len(),
            levels.join(", ")
        )];
        lines.push(format!(
            "replication had caught up {} after the strong and session reads",
            duration(self.converged_after)
        ));
        if let Some(concurrent) = &self.concurrent {
            let yes = |good| if good { "yes" } else { "NO" };
            lines.push(format!(
                "{} concurrent writes to files-active-active: registers agree: {}, counters exact: {}",
                count(concurrent.writes),
                yes(concurrent.registers_agree),
                yes(concurrent.counters_exact)
            ));
        }
        lines.join("\n")
    }

    fn verdict(&self) -> String {
        let took = duration(self.took);
        if self.is_equal() {
            return format!(
                "equal: yes - every bucket has the same digest in every region, nothing is missing ({took})"
            );
        }
        let mut lines = vec![format!("equal: NO - {} findings ({took})", count(self.findings.len() as u64))];
        lines.extend(self.findings.iter().take(FINDINGS_SHOWN_MAX).map(|finding| format!(" ! {finding}")));
        if self.findings.len() > FINDINGS_SHOWN_MAX {
            lines.push(format!(" … and {} more", self.findings.len() - FINDINGS_SHOWN_MAX));
        }
        if let Some(kept) = &self.kept {
            lines.push(format!("logs and data are kept in {}", kept.display()));
        }
        lines.join("\n")
    }
}

impl LatencyRow {
    /// What the network costs a write at least: to the primary, or, at the primary of a sync bucket, to the second copy.
    fn round_trip_text(&self) -> String {
        match self.round_trip {
            Some(round_trip) if round_trip.is_zero() => "none".to_owned(),
            Some(round_trip) => duration(round_trip),
            None if self.policy.starts_with("sync") && !self.nearest.is_zero() => {
                format!("{} (2nd copy)", duration(self.nearest))
            }
            None => "local".to_owned(),
        }
    }
}

impl Show for Report {
    fn text(&self) -> String {
        format!(
            "\n{}\n\n{}\n\n{}\n\n{}\n\n{}",
            self.summary(),
            self.latency_table(),
            self.shipped_table(),
            self.bucket_table(),
            self.verdict()
        )
    }
}

fn as_ms<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64() * 1e3)
}

fn as_maybe_ms<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.as_secs_f64() * 1e3).serialize(serializer)
}

fn as_quantiles<S: Serializer>(latency: &Latency, serializer: S) -> Result<S::Ok, S::Error> {
    quantiles(latency).serialize(serializer)
}

fn as_maybe_quantiles<S: Serializer>(latency: &Option<Latency>, serializer: S) -> Result<S::Ok, S::Error> {
    latency.as_ref().map(quantiles).serialize(serializer)
}

fn quantiles(latency: &Latency) -> BTreeMap<&'static str, f64> {
    let ms = |share| latency.quantile(share).as_secs_f64() * 1e3;
    BTreeMap::from([("p50_ms", ms(0.5)), ("p99_ms", ms(0.99))])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut latency = Latency::default();
        latency.record(Duration::from_millis(81));
        Report {
            files: 2,
            bytes: 4096,
            skipped: Vec::new(),
            checked: BTreeMap::from([("strong", Count { files: 4, bytes: 8192 })]),
            converged_after: Duration::from_millis(120),
            lag: BTreeMap::from([("files-sync".to_owned(), LagPeak { lag_ms: 90, operations: 3, bytes: 2048 })]),
            concurrent: Some(Concurrent { writes: 960, registers_agree: true, counters_exact: true }),
            latencies: vec![LatencyRow {
                bucket: "files-sync".into(),
                policy: "sync (majority)".into(),
                region: "eu-west".into(),
                round_trip: Some(Duration::from_millis(80)),
                nearest: Duration::from_millis(80),
                writes: latency.clone(),
                strong: None,
                local: latency,
            }],
            shipped: BTreeMap::from([(
                "sync".to_owned(),
                Shipped { raw_bytes: 100, wire_bytes: 40, frames: 1, entries: 2 },
            )]),
            equal: BTreeMap::from([("files-sync".to_owned(), true)]),
            keys: BTreeMap::from([("files-sync".to_owned(), 2)]),
            took: Duration::from_secs(40),
            findings: Vec::new(),
            kept: None,
        }
    }

    #[test]
    fn the_table_ends_with_equal_yes_when_nothing_was_found() {
        let text = report().text();
        for expected in ["80.0 ms", "81.0 ms", "40 %", "counters exact: yes", "4 strong"] {
            assert!(text.contains(expected), "{expected} is missing in\n{text}");
        }
        assert!(text.lines().last().unwrap().starts_with("equal: yes"), "{text}");
        assert!(serde_json::to_string(&report()).unwrap().contains("\"p99_ms\""));
    }

    #[test]
    fn one_finding_is_enough_to_say_no() {
        let mut report = report();
        report.findings = (0..30).map(|n| format!("file {n} is absent")).collect();
        report.kept = Some("/tmp/x".into());
        let text = report.text();
        assert!(!report.is_equal());
        assert!(
            text.contains("equal: NO - 30 findings") && text.contains("10 more") && text.contains("/tmp/x"),
            "{text}"
        );
    }
}
