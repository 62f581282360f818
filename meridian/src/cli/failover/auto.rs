//! `meridian failover auto`: which buckets fail over by themselves, and what of it has happened.

use std::time::Duration;

use clap::Args;
use meridian_client::Client;
use meridian_types::{
    AutoFailover, AutoMode, Bucket, BucketChange, BucketName, Goal, LagBound, Plan, RegionName, Step, Topology,
};
use serde::Serialize;

use crate::cli::exit::Failure;
use crate::cli::moment::moment;
use crate::cli::words::parse_duration;
use crate::output::{Format, Show, Table, millis, note, show};

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct AutoArgs {
    /// Only this bucket; needed to set anything.
    bucket: Option<BucketName>,
    /// Set when: manual, observe-only, zero-loss, or bounded (with --max-lag).
    #[arg(long, value_name = "MODE", requires = "bucket")]
    set: Option<String>,
    /// For bounded: the most that may be lost, e.g. 5s, 1000ops, 10MiB.
    #[arg(long, value_name = "BOUND", requires = "set")]
    max_lag: Option<LagBound>,
    /// Set the least time between two.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, requires = "bucket")]
    min_interval: Option<Duration>,
    /// Set the most in any 24 hours.
    #[arg(long, value_name = "COUNT", requires = "bucket")]
    max_per_day: Option<u32>,
    /// Set how long its region must have looked lost without a break, once its leases have run out, e.g. 30s; 0s: not at all.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, requires = "bucket")]
    detect_after: Option<Duration>,
    /// Set who is preferred, the first one most.
    #[arg(long, value_name = "REGION", value_delimiter = ',', requires = "bucket")]
    successors: Option<Vec<RegionName>>,
    /// Say what would be set; change nothing.
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(args: AutoArgs, client: &Client, format: Format) -> anyhow::Result<()> {
    let topology = client.admin().topology().await?;
    let plans = client.admin().operations().await?;
    let Some(name) = &args.bucket else {
        let with_primary = topology.buckets.values().filter(|bucket| bucket.primary.is_some());
        let rows = with_primary.map(|bucket| Row::of(bucket, &plans, &topology)).collect();
        return show(format, &View { buckets: rows });
    };
    let bucket = topology.bucket_named(name.as_str()).ok_or_else(|| {
        Failure::invalid(format!("there is no bucket `{name}`: `meridian bucket list` shows what there is"))
    })?;
    let changes = args.changes(&bucket.auto, &topology)?;
    if changes.is_empty() {
        return show(format, &View { buckets: vec![Row::of(bucket, &plans, &topology)] });
    }
    let mut set = Bucket::clone(bucket);
    for change in &changes {
        let changed = client.admin().set_bucket(name, change, args.dry_run).await?;
        set.auto = match change.detect_ms {
            Some(detect_ms) => AutoFailover { detect_ms, ..set.auto },
            None => AutoFailover { detect_ms: set.auto.detect_ms, ..changed.auto },
        };
    }
    note(if args.dry_run { "this would be set; nothing was changed:" } else { "set:" });
    show(format, &View { buckets: vec![Row::of(&set, &plans, &topology)] })
}

impl AutoArgs {
    /// What is to be set, in this order: how long a loss is watched is set by itself.
    fn changes(&self, known: &AutoFailover, topology: &Topology) -> anyhow::Result<Vec<BucketChange>> {
        let wanted = self.wanted(known, topology)?;
        let auto = (wanted != names(known, topology)?).then_some(wanted);
        let auto = auto.map(|auto| BucketChange { auto: Some(auto), ..BucketChange::default() });
        let detect_ms = self.detect_after.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        let detect_ms = detect_ms.filter(|wanted| *wanted != known.detect_ms);
        let detect_ms = detect_ms.map(|it| BucketChange { detect_ms: Some(it), ..BucketChange::default() });
        Ok(auto.into_iter().chain(detect_ms).collect())
    }

    fn wanted(&self, known: &AutoFailover, topology: &Topology) -> anyhow::Result<AutoFailover<RegionName>> {
        let mut wanted = names(known, topology)?;
        if let Some(word) = &self.set {
            wanted.mode = AutoMode::of_words(word, self.max_lag).map_err(|why| Failure::invalid(why.to_string()))?;
        }
        if let Some(interval) = self.min_interval {
            wanted.interval_ms_min = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        }
        wanted.per_day_max = self.max_per_day.unwrap_or(wanted.per_day_max);
        if let Some(successors) = &self.successors {
            wanted.successors.clone_from(successors);
        }
        Ok(wanted)
    }
}

/// As it is on record, with names.
fn names(auto: &AutoFailover, topology: &Topology) -> anyhow::Result<AutoFailover<RegionName>> {
    let AutoFailover { mode, interval_ms_min, per_day_max, successors, detect_ms } = auto.clone();
    let name = |id| topology.regions.get(&id).map(|region| region.name.clone());
    let successors = successors.into_iter().map(name).collect::<Option<Vec<_>>>();
    let successors = successors.ok_or_else(|| Failure::failed("the topology lacks a region: try again"))?;
    Ok(AutoFailover { mode, interval_ms_min, per_day_max, successors, detect_ms })
}

#[derive(Debug, Serialize)]
struct View {
    buckets: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    bucket: String,
    policy: String,
    primary: String,
    auto: String,
    detect_ms: u64,
    interval_ms_min: u64,
    per_day_max: u32,
    successors: Vec<String>,
    /// When it last happened.
    last_at_ms: Option<u64>,
}

impl Row {
    fn of(bucket: &Bucket, plans: &[Plan], topology: &Topology) -> Row {
        let automatic = plans.iter().filter(|plan| matches!(plan.goal, Goal::Failover { automatic: true, .. }));
        let ended = automatic.filter_map(|plan| match plan.move_of(bucket.id)?.step {
            Step::FailedOver { at_ms, .. } => Some(at_ms),
            _ => None,
        });
        Row {
            bucket: bucket.name.to_string(),
            policy: bucket.policy.to_string(),
            primary: bucket.primary.map(|region| topology.region_label(region)).unwrap_or_default(),
            auto: bucket.auto.mode.to_string(),
            detect_ms: bucket.auto.detect_ms,
            interval_ms_min: bucket.auto.interval_ms_min,
            per_day_max: bucket.auto.per_day_max,
            successors: bucket.auto.successors.iter().map(|region| topology.region_label(*region)).collect(),
            last_at_ms: ended.max(),
        }
    }
}

impl Show for View {
    fn text(&self) -> String {
        if self.buckets.is_empty() {
            return "no bucket has a primary: there is nothing to fail over".to_owned();
        }
        let columns = [
            "bucket",
            "policy",
            "primary",
            "by itself",
            ">once lost for",
            ">at most every",
            ">a day",
            "successors",
            "last",
        ];
        let mut table = Table::new(&columns);
        for row in &self.buckets {
            table.row([
                row.bucket.clone(),
                row.policy.clone(),
                row.primary.clone(),
                row.auto.clone(),
                millis(row.detect_ms),
                millis(row.interval_ms_min),
                row.per_day_max.to_string(),
                if row.successors.is_empty() { "who has most".to_owned() } else { row.successors.join(", ") },
                row.last_at_ms.map_or("never".to_owned(), moment),
            ]);
        }
        format!("{table}\n\nset with: meridian failover auto BUCKET --set zero-loss")
    }
}
