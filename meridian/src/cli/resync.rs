//! `meridian resync`: replicas that are made equal to another region's, and having one compared now.

use std::time::Duration;

use clap::Subcommand;
use meridian_client::Client;
use meridian_types::{BucketName, Node, RegionName, RepairStatus, Topology};
use serde::Serialize;

use super::connect::Connection;
use super::exit::Failure;
use super::lag::bucket_label;
use crate::output::{Format, Live, Show, Table, bytes, count, millis, note, show};

/// How often a watch looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show what is being repaired, how far it is, and what was repaired lately.
    List {
        /// Go on until nothing is under way.
        #[arg(long)]
        watch: bool,
    },
    /// Compare a bucket in a region with its primary, and make it equal where it differs.
    Run {
        /// The bucket.
        bucket: BucketName,
        /// The region that is compared.
        #[arg(long)]
        to: RegionName,
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
        /// Don't wait for the end.
        #[arg(long)]
        no_wait: bool,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct ReinstateArgs {
    /// One bucket [default: all].
    bucket: Option<BucketName>,
    /// The region whose replicas were primaries [default: every region].
    #[arg(long = "in", value_name = "REGION")]
    lost: Option<RegionName>,
}

pub(super) async fn run(command: Command, connection: &Connection, format: Format) -> anyhow::Result<()> {
    let client = connection.connect().await?;
    match command {
        Command::List { watch: true } => watch(&client, format).await,
        Command::List { watch: false } => finish(look(&client).await?, format),
        Command::Run { bucket, to, dry_run, no_wait } => {
            let topology = client.admin().topology().await?;
            let nodes = nodes_of(&topology, &to)?;
            check(&topology, &bucket, &to)?;
            if dry_run {
                note(&format!(
                    "would compare bucket `{bucket}` in {to}, shard by shard, with its primary, and move only what differs; meanwhile its reads there are answered by the primary"
                ));
                return Ok(());
            }
            let mut shards = 0;
            for node in &nodes {
                shards += client.admin().resync(node, &bucket).await?;
            }
            note(&format!("{shards} shards of bucket `{bucket}` in {to} are compared with its primary"));
            if no_wait { Ok(()) } else { watch(&client, format).await }
        }
    }
}

/// `meridian reinstate`.
pub(super) async fn reinstate(args: ReinstateArgs, connection: &Connection) -> anyhow::Result<()> {
    let client = connection.connect().await?;
    let topology = client.admin().topology().await?;
    let nodes = match &args.lost {
        Some(region) => nodes_of(&topology, region)?,
        None => topology.data_regions().flat_map(|region| topology.serving(region)).cloned().collect(),
    };
    let mut buckets = 0;
    for node in &nodes {
        match client.admin().reinstate(node, args.bucket.as_ref()).await {
            Ok(more) => buckets += more,
            Err(why) => note(&format!("node {}: {why}", node.name)),
        }
    }
    if buckets == 0 {
        return Err(
            Failure::not_ready("no replica waits to be reinstated: `meridian resync list` shows what goes on").into()
        );
    }
    let buckets = if buckets == 1 { "1 bucket is".to_owned() } else { format!("{buckets} buckets are") };
    note(&format!(
        "{buckets} reinstated: what only they have is written down first; `meridian resync list --watch` shows how far it is, `meridian salvage list` what was kept"
    ));
    Ok(())
}

pub(super) fn nodes_of(topology: &Topology, region: &RegionName) -> anyhow::Result<Vec<Node>> {
    let known = topology.region_named(region.as_str()).ok_or_else(|| {
        Failure::invalid(format!("there is no region `{region}`: `meridian status` shows which there are"))
    })?;
    Ok(topology.serving(known.id).into_iter().cloned().collect())
}

fn check(topology: &Topology, bucket: &BucketName, region: &RegionName) -> anyhow::Result<()> {
    let known = topology.bucket_named(bucket.as_str());
    let known = known
        .ok_or_else(|| Failure::invalid(format!("there is no bucket `{bucket}`: `meridian bucket list` shows all")))?;
    let id = topology.region_named(region.as_str()).map(|region| region.id);
    if known.primary == id {
        return Err(Failure::invalid(format!(
            "{region} is the primary of `{bucket}`: the other regions are compared with it"
        ))
        .into());
    }
    if !id.is_some_and(|id| known.is_in(id)) {
        return Err(Failure::invalid(format!("bucket `{bucket}` is not in {region}")).into());
    }
    Ok(())
}

async fn look(client: &Client) -> anyhow::Result<Report> {
    let answers = client.admin().repairs().await?;
    let topology = client.known_topology();
    let mut report = Report { repairs: Vec::new(), silent: Vec::new() };
    for (node, answer) in answers {
        match answer {
            Ok(repairs) => {
                let region = topology.region_label(node.region);
                report.repairs.extend(repairs.into_iter().map(|repair| Row::of(repair, &region, &topology)));
            }
            Err(why) => report.silent.push(format!("node {}: {why}", node.name)),
        }
    }
    Ok(report)
}

async fn watch(client: &Client, format: Format) -> anyhow::Result<()> {
    let live = Live::new();
    loop {
        let report = look(client).await?;
        if report.repairs.iter().all(|row| row.done) {
            drop(live);
            return finish(report, format);
        }
        live.show(report.text());
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn finish(report: Report, format: Format) -> anyhow::Result<()> {
    show(format, &report)?;
    if report.silent.is_empty() {
        return Ok(());
    }
    report.silent.iter().for_each(|silent| note(silent));
    Err(Failure::not_ready("the repairs of some nodes are not known").into())
}

#[derive(Debug, Serialize)]
struct Report {
    repairs: Vec<Row>,
    silent: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    bucket: String,
    shard: u16,
    region: String,
    source: String,
    reason: String,
    rows_total: u64,
    rows_compared: u64,
    rows_moved: u64,
    bytes_moved: u64,
    attempts: u32,
    running_ms: u64,
    eta_ms: u64,
    waits_for: String,
    done: bool,
}

impl Row {
    fn of(repair: RepairStatus, region: &str, topology: &Topology) -> Row {
        Row {
            bucket: bucket_label(topology, repair.bucket),
            shard: repair.shard.0,
            region: region.to_owned(),
            source: topology.region_label(repair.source),
            reason: repair.reason.to_string(),
            rows_total: repair.rows_total,
            rows_compared: repair.rows_compared,
            rows_moved: repair.rows_moved,
            bytes_moved: repair.bytes_moved,
            attempts: repair.attempts,
            running_ms: repair.running_ms,
            eta_ms: repair.eta_ms,
            waits_for: repair.waits_for,
            done: repair.done,
        }
    }

    fn progress(&self) -> String {
        match self {
            Row { done: true, running_ms, .. } => format!("equal after {}", millis(*running_ms)),
            Row { waits_for, .. } if !waits_for.is_empty() => format!("waits: {waits_for}"),
            Row { rows_total: 0, .. } => "comparing".to_owned(),
            Row { rows_total, rows_compared, eta_ms, .. } => {
                let percent = rows_compared.saturating_mul(100) / rows_total;
                let left = if *eta_ms == 0 { String::new() } else { format!(", ETA {}", millis(*eta_ms)) };
                format!("{} %{left}", percent.min(99))
            }
        }
    }
}

impl Show for Report {
    fn text(&self) -> String {
        if self.repairs.is_empty() {
            return "nothing is being repaired, and nothing was since the nodes started".to_owned();
        }
        let mut table = Table::new(&["bucket", ">shard", "in", "from", "because", ">rows", ">moved", "progress"]);
        for row in &self.repairs {
            table.row([
                row.bucket.clone(),
                row.shard.to_string(),
                row.region.clone(),
                row.source.clone(),
                row.reason.clone(),
                count(row.rows_moved),
                bytes(row.bytes_moved),
                row.progress(),
            ]);
        }
        table.to_string()
    }
}
