//! `meridian status`: regions, nodes, buckets, what is wrong, and what can die right now.

use std::collections::BTreeMap;
use std::time::Instant;

use meridian_client::{Client, Lag, RegionAnswer};
use meridian_types::{LaneState, Node, NodeStatus, RepairStatus, ShardDigest, Topology};
use serde::Serialize;

use super::bucket::{self, View};
use super::connect::Connection;
use super::exit::Failure;
use super::lag::{bucket_label, lane_state};
use crate::output::{Format, Show, Table, bytes, count, millis, share, show};

mod repairs;
mod survival;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Fail (exit code 2) when anything is wrong.
    #[arg(long)]
    check: bool,
}

pub(super) async fn run(args: Args, connection: &Connection, format: Format) -> anyhow::Result<()> {
    let client = connection.connect().await?;
    let report = gather(&client).await?;
    show(format, &report)?;
    if args.check && !report.problems.is_empty() {
        return Err(Failure::not_ready(format!("{} problems", report.problems.len())).into());
    }
    Ok(())
}

async fn gather(client: &Client) -> anyhow::Result<Report> {
    let (admin, looked) = (client.admin(), Instant::now());
    // At once: who does not answer is waited for once, not four times.
    let asked = tokio::try_join!(admin.node_statuses(), admin.lag(None), admin.digests(None), admin.repairs());
    let (nodes, lags, digests, repairs) = asked?;
    let topology = client.known_topology();
    let mut report = Report {
        cluster: topology.cluster.map(|id| id.to_string()),
        metadata_index: topology.index,
        shards: topology.shards,
        nodes: Vec::new(),
        buckets: topology.buckets.values().map(|bucket| View::of(bucket, &topology)).collect(),
        keys: BTreeMap::new(),
        repairs: Vec::new(),
        problems: Vec::new(),
        survival: survival::View::default(),
    };
    let mut heard = survival::Heard::default();
    for (node, status) in nodes {
        report.add_node(&node, status.as_ref(), &topology);
        heard.statuses.extend(status.ok());
    }
    add_lanes(lags, &mut report, &mut heard, &topology);
    add_digests(digests, &mut report, &mut heard, &topology);
    report.add_repairs(&repairs, &topology);
    report.survival = survival::View::of(&heard, &topology);
    if report.buckets.iter().any(View::lacks_copies) {
        add_rates(client, &mut report, looked, &topology).await?;
    }
    report.problems.sort();
    report.problems.dedup();
    Ok(report)
}

fn add_lanes(regions: Vec<RegionAnswer<Lag>>, report: &mut Report, heard: &mut survival::Heard, topology: &Topology) {
    for region in &regions {
        // A region that doesn't answer is in the table of nodes already.
        let Ok(lag) = &region.answer else { continue };
        for (view, bucket) in report.buckets.iter_mut().zip(topology.buckets.values()) {
            if view.primary.as_deref() == Some(region.region.as_str()) {
                view.expose(bucket, &lag.buckets);
            }
        }
        for lane in lag.lanes.iter().filter(|lane| lane.state != LaneState::Streaming) {
            let target = topology.region_label(lane.target);
            report.problems.push(format!(
                "{} -> {target}, {} lane: {}",
                region.region,
                lane.lane,
                lane_state(&lane.state)
            ));
        }
    }
    heard.add_lags(regions);
}

/// Looks a second time at what is exposed, so that there is a rate at which it goes away.
async fn add_rates(client: &Client, report: &mut Report, looked: Instant, topology: &Topology) -> anyhow::Result<()> {
    tokio::time::sleep(bucket::RATE_OVER.saturating_sub(looked.elapsed())).await;
    let ms = u64::try_from(looked.elapsed().as_millis()).unwrap_or(u64::MAX);
    for region in client.admin().lag(None).await? {
        let Ok(lag) = &region.answer else { continue };
        for (view, bucket) in report.buckets.iter_mut().zip(topology.buckets.values()) {
            if view.lacks_copies() && view.primary.as_deref() == Some(region.region.as_str()) {
                let before = view.exposure.clone();
                view.expose(bucket, &lag.buckets);
                view.since(before.as_ref(), ms);
            }
        }
    }
    Ok(())
}

fn add_digests(
    regions: Vec<RegionAnswer<Vec<ShardDigest>>>,
    report: &mut Report,
    heard: &mut survival::Heard,
    topology: &Topology,
) {
    for region in regions {
        let Ok(shards) = region.answer else { continue };
        for shard in shards {
            let bucket = bucket_label(topology, shard.bucket);
            if shard.diverged {
                let id = topology.region_named(region.region.as_str()).map(|known| known.id);
                heard.diverged.extend(id.map(|id| (shard.bucket, id)));
                report.problems.push(format!(
                    "{}: bucket {bucket}, shard {} DIVERGED from its source",
                    region.region, shard.shard
                ));
            }
            *report.keys.entry(bucket).or_default().entry(region.region.to_string()).or_default() += shard.digest.keys;
        }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    cluster: Option<String>,
    metadata_index: u64,
    shards: u16,
    nodes: Vec<NodeRow>,
    buckets: Vec<View>,
    /// Bucket -> region -> live keys.
    keys: BTreeMap<String, BTreeMap<String, u64>>,
    /// What is being made equal to its source.
    repairs: Vec<repairs::Line>,
    problems: Vec<String>,
    /// What can die right now.
    survival: survival::View,
}

#[derive(Debug, Serialize)]
struct NodeRow {
    name: String,
    region: String,
    zone: String,
    rpc: String,
    leads_metadata: bool,
    /// It votes in the metadata plane and holds no data.
    witness: bool,
    status: Option<NodeStatus>,
}

impl Report {
    fn add_node(&mut self, node: &Node, status: Result<&NodeStatus, &meridian_client::Error>, topology: &Topology) {
        match status {
            Err(error) => self.problems.push(format!("{} does not answer: {}", node.name, error.message)),
            Ok(status) => {
                self.problems.extend(status.problems.iter().map(|problem| format!("{}: {problem}", node.name)));
                if status.lease_ms == 0 {
                    self.problems.push(format!(
                        "{} has no lease: it acknowledges no writes of buckets with a primary",
                        node.name
                    ));
                }
            }
        }
        self.nodes.push(NodeRow {
            name: node.name.to_string(),
            region: topology.region_label(node.region),
            zone: node.zone.clone(),
            rpc: node.rpc_address.clone(),
            leads_metadata: status.is_ok_and(|status| status.metadata_leader == Some(node.id)),
            witness: node.is_witness(),
            status: status.ok().cloned(),
        });
    }

    /// A node that doesn't answer is in the table of nodes already.
    fn add_repairs(
        &mut self,
        answers: &[(Node, Result<Vec<RepairStatus>, meridian_client::Error>)],
        topology: &Topology,
    ) {
        let told = answers.iter().filter_map(|(node, answer)| Some((node, answer.as_ref().ok()?)));
        let repairs = told.flat_map(|(node, repairs)| {
            let region = topology.region_label(node.region);
            repairs.iter().map(move |repair| (region.clone(), repair))
        });
        self.repairs = repairs::lines(repairs, topology);
    }

    fn nodes_table(&self) -> Table {
        let columns = [
            "node",
            "region",
            "zone",
            "rpc",
            "state",
            ">lease",
            ">leads",
            ">log",
            ">state size",
            ">disk free",
            ">memory",
            ">up",
        ];
        let mut table = Table::new(&columns);
        for row in &self.nodes {
            let name = if row.leads_metadata { format!("{} *", row.name) } else { row.name.clone() };
            let mut cells = vec![name, row.region.clone(), row.zone.clone(), row.rpc.clone()];
            match &row.status {
                None => cells.extend(std::iter::once("DOWN").chain(std::iter::repeat_n("-", 7)).map(str::to_owned)),
                Some(status) => cells.extend([
                    if status.problems.is_empty() { "ok" } else { "PROBLEMS" }.to_owned(),
                    if status.lease_ms == 0 { "NONE".to_owned() } else { millis(status.lease_ms) },
                    if row.witness {
                        "witness".to_owned()
                    } else {
                        format!("{}/{}", status.shards_led, status.shards_total)
                    },
                    bytes(status.log_bytes),
                    if row.witness { "-".to_owned() } else { bytes(status.state_bytes) },
                    if row.witness {
                        "-".to_owned()
                    } else {
                        let (free, total) = (status.disk_free_bytes, status.disk_total_bytes);
                        format!("{} ({})", bytes(free), share(free, total))
                    },
                    bytes(status.resident_bytes),
                    millis(status.uptime_ms),
                ]),
            }
            table.row(cells);
        }
        table
    }

    /// Who may lack copies: empty when nobody does.
    fn lacking(&self) -> String {
        let lines: Vec<String> = self.buckets.iter().filter_map(View::lacking).map(|line| format!(" {line}")).collect();
        if lines.is_empty() {
            String::new()
        } else {
            format!("\nacknowledged writes may lack copies\n{}\n", lines.join("\n"))
        }
    }

    fn keys_line(&self) -> String {
        let lines: Vec<String> = self
            .keys
            .iter()
            .map(|(bucket, regions)| {
                let regions: Vec<String> =
                    regions.iter().map(|(region, keys)| format!("{region} {}", count(*keys))).collect();
                format!(" {bucket}: {}", regions.join(", "))
            })
            .collect();
        if lines.is_empty() { String::new() } else { format!("\nlive keys\n{}\n", lines.join("\n")) }
    }
}

impl Show for Report {
    fn text(&self) -> String {
        let cluster = self.cluster.as_deref().unwrap_or("(not formed yet)");
        let problems = match self.problems.as_slice() {
            [] => "nothing is wrong".to_owned(),
            problems => format!(
                "problems\n{}",
                problems.iter().map(|problem| format!(" ! {problem}")).collect::<Vec<_>>().join("\n")
            ),
        };
        format!(
            "cluster {cluster}, {} shards per region, metadata at {} (* leads it)\n\n{}\n\n{}\n{}{}{}\n{problems}\n\n{}",
            self.shards,
            self.metadata_index,
            self.nodes_table(),
            bucket::table(&self.buckets),
            self.lacking(),
            self.keys_line(),
            repairs::text(&self.repairs),
            self.survival.text(),
        )
    }
}

#[cfg(test)]
mod tests {
    use meridian_types::{NodeId, NodeName, RegionId};

    use super::*;

    #[test]
    fn a_report_tells_who_is_down_and_who_has_no_lease() {
        let node = |name: &str| Node {
            id: NodeId::of(&NodeName::new(name).unwrap()),
            name: NodeName::new(name).unwrap(),
            region: RegionId(1),
            zone: "a".into(),
            rpc_address: "127.0.0.1:1".into(),
            replication_address: "127.0.0.1:2".into(),
            version: "0".into(),
        };
        let topology = Topology { shards: 16, ..Topology::default() };
        let mut report = Report {
            cluster: None,
            metadata_index: 3,
            shards: 16,
            nodes: Vec::new(),
            buckets: Vec::new(),
            keys: BTreeMap::from([("orders".to_owned(), BTreeMap::from([("us-east".to_owned(), 1234)]))]),
            repairs: Vec::new(),
            problems: Vec::new(),
            survival: survival::View::default(),
        };
        report.add_node(&node("up"), Ok(&NodeStatus { lease_ms: 0, ..NodeStatus::default() }), &topology);
        let refusal = meridian_types::Refusal::new(meridian_types::RefusalKind::Unavailable, "connection refused");
        report.add_node(&node("down"), Err(&refusal.into()), &topology);
        let text = report.text();
        for expected in ["DOWN", "NONE", "up has no lease", "down does not answer: connection refused", "us-east 1,234"]
        {
            assert!(text.contains(expected), "{expected} is missing in\n{text}");
        }
    }
}
