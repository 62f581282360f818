//! `meridian drill`: rehearsing a failover on a copy of the next primary's data, and saying what a real one would come to now.
//!
//! Changes nothing: the node that is asked copies what it has, takes over the copy, reads, writes and removes it again.

use clap::{Args, Subcommand};
use meridian_client::Client;
use meridian_types::{
    BucketEstimate, BucketName, DRILL_SAMPLE_MAX, DrillProgress, DrillReport, DrillStep, Estimate, Node, RefusalKind,
    RegionName, Topology,
};

use self::view::{Verdict, View};
use super::connect::Connection;
use super::exit::Failure;
use super::resync::nodes_of;
use super::stop;
use super::switchover::Buckets;
use crate::output::{Format, Live, bytes, count, note, show};

mod view;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Rehearse that a region takes over from lost primaries; exit code 1 when the copy fails, 2 when a real failover is not
    /// ready now, 7 when it is given up.
    Failover(FailoverArgs),
}

#[derive(Clone, Debug, Args)]
pub(super) struct FailoverArgs {
    /// The next primary: a node of it makes the copy, on its own disk.
    #[arg(long, value_name = "REGION")]
    to: RegionName,
    #[command(flatten)]
    buckets: Buckets,
    /// How many keys of each bucket are read, and how many written.
    #[arg(long, value_name = "KEYS", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=i64::from(DRILL_SAMPLE_MAX)))]
    sample: u32,
    /// Rehearse the other buckets, where one can't fail over to there.
    #[arg(long)]
    keep_going: bool,
}

pub(super) async fn run(command: Command, connection: &Connection, format: Format) -> anyhow::Result<()> {
    let Command::Failover(args) = command;
    let client = connection.connect().await?;
    tokio::select! {
        done = failover(&args, &client, format) => done,
        signal = stop::signalled() => {
            signal?;
            Err(Failure::restored("the drill was given up: the node removes its copy by itself, nothing else was changed").into())
        }
    }
}

async fn failover(args: &FailoverArgs, client: &Client, format: Format) -> anyhow::Result<()> {
    let estimate = client.admin().failover_estimate(&args.buckets.selection(), Some(&args.to)).await?;
    let names = rehearsed(args, &estimate, &client.known_topology())?;
    let (node, report) = rehearse(args, client, &names).await?;
    let topology = client.admin().topology().await?;
    let words = format!("{} --to {}", args.buckets.words(), args.to);
    let view = View::of(&report, &estimate, &topology, (&node, &words));
    show(format, &view)?;
    match view.verdict() {
        Verdict::Good => Ok(()),
        Verdict::NotReady => Err(Failure::not_ready(format!(
            "the copy was taken over, but a failover to {} is not ready now: see the findings",
            args.to
        ))
        .into()),
        Verdict::Failed => Err(Failure::failed(format!(
            "the drill FAILED: a failover to {} would meet the same: see the findings",
            args.to
        ))
        .into()),
    }
}

/// The buckets that could fail over to there, if that is all of them or enough.
fn rehearsed(args: &FailoverArgs, estimate: &Estimate, topology: &Topology) -> Result<Vec<BucketName>, Failure> {
    let (possible, others): (Vec<_>, Vec<_>) = estimate.buckets.iter().partition(|it| it.to.is_some());
    let obstacles = others.iter().map(|it| format!("\n  {}: {}", it.name, it.obstacle)).collect::<String>();
    if possible.is_empty() && others.is_empty() {
        return Err(Failure::invalid(format!(
            "{} selects no bucket with a primary: nothing can be lost",
            args.buckets.words()
        )));
    }
    if possible.is_empty() || !(others.is_empty() || args.keep_going) {
        let rest = if possible.is_empty() { "" } else { "\nwith --keep-going the others are rehearsed" };
        let message = format!("nothing was rehearsed: these can't fail over to {} now:{obstacles}{rest}", args.to);
        // Who is the primary, or has no copy, will not become ready by waiting.
        let to = topology.region_named(args.to.as_str()).map(|region| region.id);
        let is_target = |it: &BucketEstimate| {
            let bucket = topology.buckets.get(&it.bucket);
            to != Some(it.from) && to.is_some_and(|to| bucket.is_some_and(|bucket| bucket.is_in(to)))
        };
        let never = !others.iter().any(|it| is_target(it));
        return Err(if never { Failure::invalid(message) } else { Failure::not_ready(message) });
    }
    if !others.is_empty() {
        note(&format!("left out, for they can't fail over to {} now:{obstacles}", args.to));
    }
    Ok(possible.iter().map(|it| it.name.clone()).collect())
}

/// Asks the nodes of the region, one after the other, until one of them begins.
async fn rehearse(args: &FailoverArgs, client: &Client, names: &[BucketName]) -> anyhow::Result<(Node, DrillReport)> {
    let (admin, topology) = (client.admin(), client.known_topology());
    let mut last = None;
    for node in nodes_of(&topology, &args.to)? {
        let (live, mut begun) = (Live::new(), false);
        let tell = |it| {
            begun = true;
            live.show(progress(&node, it));
        };
        match admin.drill_failover(&node, names, args.sample, tell).await {
            Ok(report) => return Ok((node, report)),
            // Not reached, busy or without room: another one may do better.
            Err(why) if !begun && matches!(why.kind, RefusalKind::Unavailable | RefusalKind::Retry) => last = Some(why),
            Err(why) => return Err(why.into()),
        }
    }
    Err(last.map_or_else(|| Failure::not_ready(format!("{} has no node", args.to)).into(), Into::into))
}

/// One line: how far it is.
fn progress(node: &Node, it: DrillProgress) -> String {
    let (done, total) = match it.step {
        DrillStep::Copy => (bytes(it.done), bytes(it.total)),
        _ => (count(it.done), count(it.total)),
    };
    let nth = DrillStep::ALL.iter().position(|step| *step == it.step).map_or(0, |at| at + 1);
    format!("drill on {}: {} (step {nth} of {}), {done} of {total}", node.name, it.step, DrillStep::ALL.len())
}
