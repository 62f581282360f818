//! `meridian lag`: how far each region is behind, per bucket.

use meridian_types::{BucketId, BucketName, LaneState, Topology};
use serde::Serialize;

use super::connect::Connection;
use super::exit::Failure;
use super::words::key_start;
use crate::output::{Format, Show, Table, bytes, count, millis, note, share, show};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// One bucket [default: all].
    bucket: Option<BucketName>,
    /// Show each lane, too.
    #[arg(long)]
    lanes: bool,
}

pub(super) async fn run(args: Args, connection: &Connection, format: Format) -> anyhow::Result<()> {
    let client = connection.connect().await?;
    let topology = client.admin().topology().await?;
    if let Some(name) = &args.bucket
        && topology.bucket_named(name.as_str()).is_none()
    {
        return Err(Failure::invalid(format!(
            "there is no bucket `{name}`: `meridian bucket list` shows what there is"
        ))
        .into());
    }
    let mut report = Report { buckets: Vec::new(), lanes: Vec::new(), silent: Vec::new(), show_lanes: args.lanes };
    for region in client.admin().lag(args.bucket.as_ref()).await? {
        match region.answer {
            Ok(lag) => report.add(region.region.as_str(), &lag, &topology),
            Err(error) => report.silent.push(format!("{}: {error}", region.region)),
        }
    }
    show(format, &report)?;
    if report.silent.is_empty() {
        return Ok(());
    }
    report.silent.iter().for_each(|silent| note(silent));
    Err(Failure::not_ready("the lag of some regions is not known").into())
}

#[derive(Debug, Serialize)]
struct Report {
    buckets: Vec<Row>,
    lanes: Vec<LaneRow>,
    silent: Vec<String>,
    #[serde(skip)]
    show_lanes: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    bucket: String,
    source: String,
    target: String,
    unshipped_operations: u64,
    unshipped_bytes: u64,
    unapplied_operations: u64,
    unapplied_bytes: u64,
    lag_ms: u64,
    age_ms: u64,
    /// Of the write that is as old as the lag; null where it is not known.
    oldest_key: Option<String>,
}

#[derive(Debug, Serialize)]
struct LaneRow {
    source: String,
    target: String,
    shard: u16,
    lane: String,
    #[serde(flatten)]
    state: LaneState,
    head: u64,
    acked: u64,
    raw_bytes: u64,
    wire_bytes: u64,
    frames: u64,
    entries: u64,
}

impl Report {
    fn add(&mut self, source: &str, lag: &meridian_client::Lag, topology: &Topology) {
        for row in &lag.buckets {
            self.buckets.push(Row {
                bucket: bucket_label(topology, row.bucket),
                source: source.to_owned(),
                target: topology.region_label(row.target),
                unshipped_operations: row.unshipped_operations,
                unshipped_bytes: row.unshipped_bytes,
                unapplied_operations: row.unapplied_operations,
                unapplied_bytes: row.unapplied_bytes,
                lag_ms: row.lag_ms,
                age_ms: row.age_ms,
                oldest_key: row.oldest_key.as_ref().map(key_start),
            });
        }
        for lane in &lag.lanes {
            self.lanes.push(LaneRow {
                source: source.to_owned(),
                target: topology.region_label(lane.target),
                shard: lane.shard.0,
                lane: lane.lane.to_string(),
                state: lane.state.clone(),
                head: lane.head.0,
                acked: lane.acked.0,
                raw_bytes: lane.raw_bytes,
                wire_bytes: lane.wire_bytes,
                frames: lane.frames,
                entries: lane.entries,
            });
        }
    }
}

/// A bucket's name, or its number where the topology doesn't have it (any more).
pub(super) fn bucket_label(topology: &Topology, id: BucketId) -> String {
    topology.buckets.get(&id).map_or_else(|| format!("bucket-{id}"), |bucket| bucket.name.to_string())
}

/// A lane's state in a few words.
pub(super) fn lane_state(state: &LaneState) -> String {
    match state {
        LaneState::Connecting { reason } if reason.is_empty() => "connecting".to_owned(),
        LaneState::Connecting { reason } => format!("connecting: {reason}"),
        LaneState::Streaming => "streaming".to_owned(),
        LaneState::BehindLog { watermark, oldest } => {
            format!(
                "behind the log: it has {watermark}, the log begins at {oldest}; it repairs itself: `meridian resync list`"
            )
        }
        LaneState::Diverged { detail } => format!("DIVERGED: {detail}"),
        LaneState::Fenced => "fenced: it was sent an old epoch".to_owned(),
        LaneState::ClockSkew { ahead_ms } => format!("stopped: the source's clock is {ahead_ms} ms ahead"),
    }
}

impl Show for Report {
    fn text(&self) -> String {
        let columns = ["bucket", "from", "to", ">lag", "oldest key", ">unshipped", ">", ">on its way", ">", ">seen"];
        let mut table = Table::new(&columns);
        for row in &self.buckets {
            table.row([
                row.bucket.clone(),
                row.source.clone(),
                row.target.clone(),
                if row.lag_ms == 0 { "none".to_owned() } else { millis(row.lag_ms) },
                row.oldest_key.clone().unwrap_or_else(|| "-".to_owned()),
                format!("{} ops", count(row.unshipped_operations)),
                bytes(row.unshipped_bytes),
                format!("{} ops", count(row.unapplied_operations)),
                bytes(row.unapplied_bytes),
                if row.age_ms == 0 { "now".to_owned() } else { format!("{} ago", millis(row.age_ms)) },
            ]);
        }
        let buckets =
            if table.is_empty() { "nothing is replicated: there are no buckets".to_owned() } else { table.to_string() };
        if !self.show_lanes {
            return buckets;
        }
        let mut table = Table::new(&[
            "from", "to", ">shard", "lane", "state", ">behind", ">frames", ">entries", ">raw", ">sent", ">ratio",
        ]);
        for lane in &self.lanes {
            table.row([
                lane.source.clone(),
                lane.target.clone(),
                lane.shard.to_string(),
                lane.lane.clone(),
                lane_state(&lane.state),
                count(lane.head.saturating_sub(lane.acked)),
                count(lane.frames),
                count(lane.entries),
                bytes(lane.raw_bytes),
                bytes(lane.wire_bytes),
                share(lane.wire_bytes, lane.raw_bytes),
            ]);
        }
        format!("{buckets}\n\n{table}")
    }
}

#[cfg(test)]
mod tests {
    use meridian_types::{BucketLag, KeyStart, RegionId};

    use super::*;

    #[test]
    fn the_lag_names_the_oldest_key_that_is_lacking() {
        let lag = |target, lag_ms, key: &[u8]| BucketLag {
            bucket: BucketId(1),
            target: RegionId(target),
            unapplied_operations: 1,
            lag_ms,
            oldest_key: KeyStart::of(key),
            ..BucketLag::default()
        };
        let buckets = vec![lag(2, 250, b"order/17"), lag(3, 0, b"")];
        let lag = meridian_client::Lag { source: RegionId(1), buckets, lanes: Vec::new() };
        let mut report = Report { buckets: Vec::new(), lanes: Vec::new(), silent: Vec::new(), show_lanes: false };
        report.add("us-east", &lag, &Topology::default());
        let text = report.text();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[2][3..7], ["250", "ms", "order/17", "0"], "{text}");
        assert_eq!(lines[3][3..6], ["none", "-", "0"], "{text}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["buckets"][0]["oldest_key"], "order/17");
        assert_eq!(json["buckets"][1]["oldest_key"], serde_json::Value::Null);
    }
}
