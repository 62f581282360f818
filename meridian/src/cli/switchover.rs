//! `meridian switchover`: moving primaries, planned, without loss (SWI-1).

use std::time::Duration;

use clap::{Args, Subcommand};
use meridian_client::Client;
use meridian_types::{BucketName, OperationId, Plan, RegionName, Selection, Step, SwitchoverSpec, Topology};
use serde::Serialize;

use self::check::Report;
use super::connect::Connection;
use super::exit::Failure;
use super::moment::{Moment, moment, now_ms, parse_moment};
use super::operation::{View, follow};
use super::stop;
use super::words::{parse_duration, parse_pair};
use crate::output::{Format, Show, Table, note, show};

mod check;

/// The furthest moment a start can wait for: whoever waits must stay up until then.
const WAIT_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// How often a check that goes on looks again: every node is asked, and a dry run decided.
const CHECK_EVERY: Duration = Duration::from_secs(2);

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Look at everything it rests on, one by one; exit code 2 when something is in the way.
    Check(CheckArgs),
    /// Say what would be moved; change nothing.
    Plan(Which),
    /// Move, watch, and prove that nothing is missing; exit code 7 when it was given up and restored.
    Run(RunArgs),
}

/// Which primaries go where, and within which bounds.
#[derive(Clone, Debug, Args)]
pub(super) struct Which {
    /// The next primary.
    #[arg(long, value_name = "REGION")]
    to: RegionName,
    #[command(flatten)]
    buckets: Buckets,
    /// How far behind it may be when writes stop; in milliseconds, or with a unit.
    #[arg(long, value_name = "TIME", value_parser = parse_millis, default_value = "1s")]
    max_lag: u64,
    /// For how long writes may stop before the old primary is restored; in milliseconds, or with a unit.
    #[arg(long, value_name = "TIME", value_parser = parse_millis, default_value = "5s")]
    max_pause: u64,
}

#[derive(Clone, Debug, Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    which: Which,
    /// Go on until nothing is in the way, or until interrupted.
    #[arg(short, long)]
    watch: bool,
}

/// Exactly one of these.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Buckets {
    /// A bucket (repeatable).
    #[arg(long = "bucket", value_name = "BUCKET", value_delimiter = ',')]
    buckets: Vec<BucketName>,
    /// Every bucket with this label, key=value.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair)]
    label: Option<(String, String)>,
    /// Every bucket whose primary is in this region.
    #[arg(long, value_name = "REGION")]
    all_from: Option<RegionName>,
}

#[derive(Clone, Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    which: Which,
    /// Say what would be moved; change nothing.
    #[arg(long)]
    dry_run: bool,
    /// A word of yours for this operation: run again with the same one, it watches the first instead of starting a second.
    #[arg(long, value_name = "WORD")]
    op_id: Option<String>,
    /// Why, for whoever reads the history.
    #[arg(long, default_value = "")]
    reason: String,
    /// Wait until then: 2026-11-20T02:00Z, or +10m from now.
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    at: Option<Moment>,
    /// Start although the check says that something is in the way.
    #[arg(long)]
    skip_check: bool,
}

pub(super) async fn run(command: Command, connection: &Connection, format: Format) -> anyhow::Result<()> {
    match command {
        Command::Check(args) => {
            let client = connection.connect().await?;
            let spec = args.which.spec("");
            if args.watch {
                return keep_checking(&client, &spec, format).await;
            }
            let report = look(&client, &spec).await?;
            show(format, &report)?;
            conclude(&report)
        }
        Command::Plan(which) => plan(&connection.connect().await?, &which.spec(""), format).await,
        Command::Run(args) => start(args, connection, format).await,
    }
}

async fn look(client: &Client, spec: &SwitchoverSpec) -> anyhow::Result<Report> {
    Ok(Report::of(&client.admin().check_switchover(spec).await?))
}

/// What a check comes to.
fn conclude(report: &Report) -> anyhow::Result<()> {
    match report.failures() {
        0 => Ok(()),
        failures => Err(Failure::not_ready(in_the_way(failures)).into()),
    }
}

/// Looks again and again until nothing is in the way, and shows what has changed. Whoever interrupts it gets what the last look came to.
async fn keep_checking(client: &Client, spec: &SwitchoverSpec, format: Format) -> anyhow::Result<()> {
    let mut last = look(client, spec).await?;
    let mut signal = std::pin::pin!(stop::signalled());
    loop {
        show(format, &last)?;
        if last.failures() == 0 {
            return Ok(());
        }
        // A look that is interrupted is none.
        let changed = async {
            loop {
                tokio::time::sleep(CHECK_EVERY).await;
                let next = look(client, spec).await?;
                if next.in_the_way() != last.in_the_way() {
                    return anyhow::Ok(next);
                }
            }
        };
        tokio::select! {
            next = changed => last = next?,
            interrupted = &mut signal => {
                interrupted?;
                return conclude(&last);
            }
        }
    }
}

async fn plan(client: &Client, spec: &SwitchoverSpec, format: Format) -> anyhow::Result<()> {
    let plan = client.admin().switchover(spec, OperationId(rand::random()), true).await?;
    note("this would be moved; nothing was changed:");
    show(format, &Preview::of(&plan, &client.known_topology()))
}

async fn start(args: RunArgs, connection: &Connection, format: Format) -> anyhow::Result<()> {
    let start_ms = args.at.map(|at| at.resolve(now_ms()));
    start_ms.map_or(Ok(()), |at| check_start(at, now_ms()))?;
    let client = connection.connect().await?;
    let spec = args.which.spec(&args.reason);
    let operation = args.op_id.as_deref().map_or_else(|| OperationId(rand::random()), OperationId::of);
    if args.op_id.is_some()
        && let Some(known) = client.admin().operations().await?.into_iter().find(|plan| plan.operation == operation)
    {
        if args.dry_run {
            note(&format!("{} was started under this id before, and stands like this; nothing was changed:", known.id));
            return show(format, &View::of(&known, &client.known_topology()));
        }
        note(&format!("{} was started under this id before: watching it", known.id));
        return follow(&client, known.id, format).await;
    }
    if args.dry_run {
        return plan(&client, &spec, format).await;
    }
    check(&client, &spec, args.skip_check, format).await?;
    if let Some(at) = start_ms {
        note(&format!("waiting until {}", moment(at)));
        tokio::time::sleep(Duration::from_millis(at.saturating_sub(now_ms()))).await;
        check(&client, &spec, args.skip_check, format).await?;
    }
    let plan = client.admin().switchover(&spec, operation, false).await?;
    note(&format!("{}: moving {} to {}", plan.id, buckets(plan.moves.len()), spec.to));
    follow(&client, plan.id, format).await
}

/// A start in the past is a mistake, one in the far future would hardly happen.
fn check_start(at_ms: u64, now_ms: u64) -> Result<(), Failure> {
    match at_ms.checked_sub(now_ms) {
        None => Err(Failure::invalid(format!("--at {} has passed: it is {} now", moment(at_ms), moment(now_ms)))),
        Some(wait) if Duration::from_millis(wait) > WAIT_MAX => Err(Failure::invalid(format!(
            "--at {} is more than {} days away: start this command nearer to it",
            moment(at_ms),
            WAIT_MAX.as_secs() / (24 * 3600)
        ))),
        Some(_) => Ok(()),
    }
}

async fn check(client: &Client, spec: &SwitchoverSpec, skip: bool, format: Format) -> anyhow::Result<()> {
    if skip {
        return Ok(());
    }
    let report = look(client, spec).await?;
    match report.obstacles() {
        0 => {
            note(&format!("ready: {} findings, nothing is in the way", report.len()));
            report.afterwards().iter().for_each(|line| note(&format!("  once it is off, {line}")));
            Ok(())
        }
        failures => {
            show(format, &report)?;
            let message =
                format!("{}, nothing was started: remedy it, or start with --skip-check", in_the_way(failures));
            Err(Failure::not_ready(message).into())
        }
    }
}

impl Which {
    fn spec(&self, reason: &str) -> SwitchoverSpec {
        SwitchoverSpec {
            to: self.to.clone(),
            buckets: self.buckets.selection(),
            lag_ms_max: self.max_lag,
            pause_ms_max: self.max_pause,
            reason: reason.to_owned(),
        }
    }
}

impl Buckets {
    /// As it was typed.
    pub(super) fn words(&self) -> String {
        match (&self.label, &self.all_from) {
            (Some((key, value)), _) => format!("--label {key}={value}"),
            (None, Some(region)) => format!("--all-from {region}"),
            (None, None) => self.buckets.iter().map(|name| format!("--bucket {name}")).collect::<Vec<_>>().join(" "),
        }
    }

    pub(super) fn selection(&self) -> Selection {
        match (&self.label, &self.all_from) {
            (Some((key, value)), _) => Selection::Labelled { key: key.clone(), value: value.clone() },
            (None, Some(region)) => Selection::AllFrom(region.clone()),
            (None, None) => Selection::Named(self.buckets.clone()),
        }
    }
}

/// `1 bucket`, `2 buckets`.
fn buckets(count: usize) -> String {
    if count == 1 { "1 bucket".to_owned() } else { format!("{count} buckets") }
}

fn in_the_way(findings: usize) -> String {
    if findings == 1 { "1 finding is in the way".to_owned() } else { format!("{findings} findings are in the way") }
}

/// Milliseconds: a number, or a time with a unit.
fn parse_millis(text: &str) -> Result<u64, String> {
    if let Ok(ms) = text.parse() {
        return Ok(ms);
    }
    parse_duration(text).map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// What would be moved.
#[derive(Debug, Serialize)]
struct Preview {
    to: String,
    buckets: Vec<PreviewRow>,
}

#[derive(Debug, Serialize)]
struct PreviewRow {
    bucket: String,
    from: String,
    to: String,
    needed: bool,
    epoch: u64,
    epoch_next: u64,
}

impl Preview {
    fn of(plan: &Plan, topology: &Topology) -> Preview {
        let to = plan.to().map_or_else(|| "-".to_owned(), |to| topology.region_label(to));
        let row = |it: &meridian_types::Move| {
            let needed = it.step != Step::Unneeded;
            PreviewRow {
                bucket: it.name.to_string(),
                from: topology.region_label(it.from),
                to: to.clone(),
                needed,
                epoch: it.epoch_before.0,
                epoch_next: it.epoch_before.0 + u64::from(needed),
            }
        };
        Preview { buckets: plan.moves.iter().map(row).collect(), to }
    }
}

impl Show for Preview {
    fn text(&self) -> String {
        let mut table = Table::new(&["bucket", "from", "to", ">epoch", ">then", "note"]);
        for row in &self.buckets {
            table.row([
                row.bucket.clone(),
                row.from.clone(),
                row.to.clone(),
                row.epoch.to_string(),
                row.epoch_next.to_string(),
                if row.needed { "" } else { "the primary is there already" }.to_owned(),
            ]);
        }
        table.to_string()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }

    fn spec(line: &str) -> SwitchoverSpec {
        match Line::try_parse_from(line.split_whitespace()).unwrap().command {
            Command::Check(args) => args.which.spec(""),
            Command::Plan(which) => which.spec(""),
            Command::Run(args) => args.which.spec(&args.reason),
        }
    }

    #[test]
    fn what_is_typed_is_what_is_asked() {
        let named =
            spec("switchover run --to eu-west --bucket a --bucket b,c --max-lag 250 --max-pause 2s --reason why");
        let names = ["a", "b", "c"].map(|name| BucketName::new(name).unwrap()).to_vec();
        assert_eq!(named.buckets, Selection::Named(names));
        assert_eq!((named.lag_ms_max, named.pause_ms_max, named.reason.as_str()), (250, 2000, "why"));
        let label = spec("switchover plan --to eu-west --label team=shop");
        assert_eq!(label.buckets, Selection::Labelled { key: "team".to_owned(), value: "shop".to_owned() });
        let all = spec("switchover check --to eu-west --all-from us-east");
        assert_eq!(all.buckets, Selection::AllFrom(RegionName::new("us-east").unwrap()));
        assert_eq!((all.lag_ms_max, all.pause_ms_max), (1000, 5000));
    }

    #[test]
    fn a_start_is_neither_past_nor_far_away() {
        assert!(check_start(2000, 1000).is_ok());
        assert!(check_start(999, 1000).unwrap_err().to_string().contains("has passed"));
        assert!(check_start(8 * 24 * 3600 * 1000, 0).unwrap_err().to_string().contains("7 days"));
    }

    #[test]
    fn a_preview_says_what_changes_and_what_is_there_already() {
        let row = |bucket: &str, from: &str, needed| PreviewRow {
            bucket: bucket.to_owned(),
            from: from.to_owned(),
            to: "eu-west".to_owned(),
            needed,
            epoch: 3,
            epoch_next: 3 + u64::from(needed),
        };
        let buckets = vec![row("orders", "us-east", true), row("carts", "eu-west", false)];
        let text = Preview { to: "eu-west".to_owned(), buckets }.text();
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        assert_eq!(lines[0], " bucket   from      to        epoch   then   note");
        assert_eq!(lines[2], " orders   us-east   eu-west       3      4");
        assert_eq!(lines[3], " carts    eu-west   eu-west       3      3   the primary is there already");
    }
}
