//! Replicas that are being made equal to their source: a line per bucket and region, over all shards.

use std::collections::BTreeMap;

use meridian_types::{RepairStatus, Topology};
use serde::Serialize;

use crate::cli::lag::bucket_label;
use crate::output::{bytes, count, millis};

/// One bucket in one region.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Line {
    bucket: String,
    region: String,
    source: String,
    /// Shards of it that are not equal yet.
    shards: u64,
    rows_total: u64,
    rows_compared: u64,
    bytes_moved: u64,
    /// Of the slowest shard; 0 when that is not known.
    eta_ms: u64,
    /// Why a shard of it does not get on; empty when all do.
    waits_for: String,
}

/// What is under way or waits, by bucket and region.
pub(super) fn lines<'a>(repairs: impl Iterator<Item = (String, &'a RepairStatus)>, topology: &Topology) -> Vec<Line> {
    let mut lines: BTreeMap<(String, String), Line> = BTreeMap::new();
    for (region, repair) in repairs.filter(|(_, repair)| !repair.done) {
        let bucket = bucket_label(topology, repair.bucket);
        let line = lines.entry((bucket.clone(), region.clone())).or_insert_with(|| Line {
            bucket,
            region,
            source: topology.region_label(repair.source),
            shards: 0,
            rows_total: 0,
            rows_compared: 0,
            bytes_moved: 0,
            eta_ms: 0,
            waits_for: String::new(),
        });
        line.shards += 1;
        line.rows_total += repair.rows_total;
        line.rows_compared += repair.rows_compared;
        line.bytes_moved += repair.bytes_moved;
        line.eta_ms = line.eta_ms.max(repair.eta_ms);
        if line.waits_for.is_empty() {
            line.waits_for.clone_from(&repair.waits_for);
        }
    }
    lines.into_values().collect()
}

impl Line {
    fn text(&self) -> String {
        let shards = if self.shards == 1 { "1 shard".to_owned() } else { format!("{} shards", count(self.shards)) };
        let percent = match self.rows_total {
            0 => "comparing".to_owned(),
            total => format!("{} %", (self.rows_compared.saturating_mul(100) / total).min(99)),
        };
        let eta = if self.eta_ms == 0 { String::new() } else { format!(", ETA {}", millis(self.eta_ms)) };
        let waits = if self.waits_for.is_empty() { String::new() } else { format!("; waits for {}", self.waits_for) };
        format!(
            " {} in {} from {}: {percent} of {shards}, {} moved{eta}{waits}",
            self.bucket,
            self.region,
            self.source,
            bytes(self.bytes_moved)
        )
    }
}

/// The lines as people read them; empty when there are none.
pub(super) fn text(lines: &[Line]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let lines: Vec<String> = lines.iter().map(Line::text).collect();
    format!("\nbeing repaired (`meridian resync list` shows every shard)\n{}\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use meridian_types::{BucketId, Region, RegionId, RegionName, ShardId};

    use super::*;

    #[test]
    fn shards_of_a_bucket_in_a_region_are_one_line_and_what_is_over_is_none() {
        let mut topology = Topology::default();
        let source = RegionId(1);
        topology.regions.insert(source, Region { id: source, name: RegionName::new("us-east").unwrap() });
        let repair = |shard: u16, rows_total, rows_compared, done| RepairStatus {
            bucket: BucketId(1),
            shard: ShardId(shard),
            source,
            rows_total,
            rows_compared,
            bytes_moved: 1024,
            eta_ms: rows_total * 10,
            done,
            ..RepairStatus::default()
        };
        let waiting = RepairStatus { waits_for: "its source".to_owned(), ..repair(3, 0, 0, false) };
        let all = [repair(0, 100, 50, false), repair(1, 300, 50, false), repair(2, 9, 9, true), waiting];
        let lines = lines(all.iter().map(|it| ("eu-west".to_owned(), it)), &topology);
        assert_eq!(lines.len(), 1);
        let text = text(&lines);
        assert!(
            text.contains("in eu-west from us-east: 25 % of 3 shards, 3.0 KiB moved, ETA 3.00 s; waits for its source"),
            "{text}"
        );
        assert_eq!(super::text(&[]), "");
    }
}
