//! `meridian bucket`: create, list, show, set, delete, label.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Subcommand;
use meridian_client::Client;
use meridian_types::{
    Acks, Bucket, BucketName, BucketSpec, Change, ChangeGoal, Policy, RegionChange, RegionName, Topology,
};
use serde::Serialize;

use super::connect::Connection;
use super::exit::Failure;
use super::operation::{OnRecord, again};
use super::words::{parse_duration, parse_pair};
use crate::output::{Format, Show, Table, note, show};

mod change;
pub(super) mod cross;
mod regions;
mod regroup;
pub(super) mod settings;
mod view;

use change::Asked;
pub(super) use change::way_back_of;
use settings::{Settings, policy_of};
pub(super) use view::View;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create a bucket.
    Create {
        /// Its name.
        name: BucketName,
        /// How it replicates: async, sync, active-active, or a preset (max-performance, max-availability,
        /// max-protection).
        #[arg(long, default_value = "async")]
        policy: String,
        /// For sync: how many regions must have a write, the primary counted: one, majority, all, or a number.
        #[arg(long)]
        acks: Option<String>,
        /// The regions that hold it [default: all].
        #[arg(long, value_delimiter = ',')]
        regions: Vec<RegionName>,
        /// The region that accepts writes [default: the first of its regions].
        #[arg(long)]
        primary: Option<RegionName>,
        /// A label, key=value (repeatable).
        #[arg(long = "label", value_parser = parse_pair)]
        labels: Vec<(String, String)>,
        #[command(flatten)]
        settings: Settings,
        /// Check everything, change nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// List the buckets.
    List,
    /// Show everything about one bucket.
    #[command(visible_alias = "describe")]
    Show {
        /// Its name.
        name: BucketName,
    },
    /// Change what can be changed while it serves: none of it moves the primary, and only --acks, --policy, --add-region and
    /// --remove-region let writes wait, for some milliseconds.
    #[command(group(clap::ArgGroup::new("what_else").multiple(true).args(
        ["max_lag", "on_breach", "on_partition", "degrade_after", "auto", "auto_max_lag", "auto_min_interval",
         "auto_max_per_day", "successors", "acks", "policy"])))]
    #[command(group(clap::ArgGroup::new("holds").multiple(true).args(["policy", "add_region", "remove_region"])))]
    #[command(group(clap::ArgGroup::new("begins").multiple(true).args(["policy", "acks", "add_region", "remove_region"])))]
    #[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(
        ["max_lag", "on_breach", "on_partition", "degrade_after", "auto", "auto_max_lag", "auto_min_interval",
         "auto_max_per_day", "successors", "acks", "policy", "add_region", "remove_region"])))]
    Set {
        /// Its name.
        name: BucketName,
        /// Another policy: async, sync, or a preset (max-performance, max-availability, max-protection), with the settings
        /// that are named here and the defaults of the others. Begins a new epoch; says which promise holds meanwhile.
        /// Setting the old one again gives it up. To and from active-active all writes are held until every region has everything;
        /// it is watched until it is done.
        #[arg(long)]
        policy: Option<String>,
        /// With --policy, from active-active: the region that is to order its writes.
        #[arg(long, value_name = "REGION", requires = "policy")]
        primary: Option<RegionName>,
        /// With --policy, to or from active-active, and with --add-region and --remove-region of an active-active bucket: how long writes
        /// may be held before it is given up [default: 30s].
        #[arg(long, value_name = "TIME", value_parser = parse_duration, requires = "holds")]
        max_pause: Option<Duration>,
        /// For sync: how many regions must have a write, the primary counted: one, majority, all, or a number. Begins a new
        /// epoch; says which promise holds meanwhile.
        #[arg(long)]
        acks: Option<Acks>,
        /// Add a region: it is filled, and counts once every shard has proven that it has everything. --remove-region gives it
        /// up. By itself. Of an active-active bucket writes are held twice, until all regions have everything; it is watched.
        #[arg(long, value_name = "REGION", conflicts_with_all = ["what_else", "remove_region"])]
        add_region: Option<RegionName>,
        /// Remove a region, not the primary's: from one moment on it counts no more, and it drops what it has. By itself. Of an
        /// active-active bucket writes are held until all regions have everything that it ordered.
        #[arg(long, value_name = "REGION", conflicts_with = "what_else")]
        remove_region: Option<RegionName>,
        #[command(flatten)]
        settings: Settings,
        /// Say what would change, change nothing.
        #[arg(long)]
        dry_run: bool,
        /// Change it even though writes will wait for regions that are far behind, or a region drops its copy.
        #[arg(long)]
        yes: bool,
        /// A word of yours for a change of policy, acks or regions: run again with the same one, it watches the first instead of
        /// starting a second.
        #[arg(long, value_name = "WORD", requires = "begins")]
        op_id: Option<String>,
        /// Why, for whoever reads the history of operations. Of a change of policy, acks or regions.
        #[arg(long, default_value = "", requires = "begins")]
        reason: String,
    },
    /// Delete a bucket and everything in it, in every region.
    Delete {
        /// Its name.
        name: BucketName,
        /// Say what would be deleted, delete nothing.
        #[arg(long)]
        dry_run: bool,
        /// Delete even though it holds keys.
        #[arg(long)]
        yes: bool,
    },
    /// Set and remove labels.
    Label {
        /// The bucket.
        name: BucketName,
        /// key=value to set, key- to remove.
        #[arg(required = true)]
        labels: Vec<String>,
    },
}

pub(super) async fn run(command: Command, connection: &Connection, format: Format) -> anyhow::Result<()> {
    // A policy that contradicts itself is refused before anybody is asked.
    if let Command::Create { policy, acks, settings, .. } = &command {
        settings.policy(policy_of(policy, acks.as_deref())?)?;
    }
    let client = connection.connect().await?;
    let record = command.record();
    if let Command::Set { dry_run, .. } = &command
        && let Some(known) = record.known(&client).await?
    {
        let topology = client.admin().topology().await?;
        let same = is_same(&command, &known, &topology)?;
        return again(&client, &known, (same, *dry_run), format).await;
    }
    match command {
        Command::Create { name, policy, acks, regions, primary, labels, settings, dry_run } => {
            let policy = settings.policy(policy_of(&policy, acks.as_deref())?)?;
            let auto = settings.auto(Default::default())?.unwrap_or_default();
            let spec = BucketSpec { name, policy, regions, primary, labels: labels.into_iter().collect(), auto };
            let bucket = client.admin().create_bucket(&spec, dry_run).await?;
            note(if dry_run { "this would be created; nothing was changed:" } else { "created:" });
            one(&client, &bucket, format).await
        }
        Command::List => {
            let topology = client.admin().topology().await?;
            let views = topology.buckets.values().map(|bucket| View::of(bucket, &topology)).collect();
            show(format, &List { buckets: views })
        }
        Command::Show { name } => describe(&client, &name, format).await,
        Command::Set { name, add_region: Some(region), max_pause, dry_run, yes, .. } => {
            let asked = (RegionChange::Add(region), max_pause);
            regions::set(&client, &name, asked, (dry_run, yes), (&record, format)).await
        }
        Command::Set { name, remove_region: Some(region), max_pause, dry_run, yes, .. } => {
            let asked = (RegionChange::Remove(region), max_pause);
            regions::set(&client, &name, asked, (dry_run, yes), (&record, format)).await
        }
        Command::Set { name, policy, primary, max_pause, acks, settings, dry_run, yes, .. } => {
            let asked = Asked { policy, primary, max_pause, acks, settings, dry_run, yes };
            change::set(&client, &name, asked, &record, format).await
        }
        Command::Delete { name, dry_run, yes } => delete(&client, &name, dry_run, yes).await,
        Command::Label { name, labels } => {
            let (set, remove) = changes(&labels)?;
            let bucket = client.admin().set_labels(&name, set, remove).await?;
            one(&client, &bucket, format).await
        }
    }
}

impl Command {
    /// What a change is asked under.
    fn record(&self) -> OnRecord {
        match self {
            Command::Set { op_id, reason, .. } => OnRecord::of(op_id.as_deref(), reason),
            Command::Create { .. }
            | Command::List
            | Command::Show { .. }
            | Command::Delete { .. }
            | Command::Label { .. } => OnRecord::of(None, ""),
        }
    }
}

/// Whether a command asks for what is on record under its id.
fn is_same(command: &Command, known: &Change, topology: &Topology) -> anyhow::Result<bool> {
    let Command::Set { name, policy, acks, add_region, remove_region, settings, .. } = command else {
        return Ok(false);
    };
    let is =
        |region: &Option<RegionName>, id| region.as_ref().is_some_and(|it| topology.region_label(id) == it.as_str());
    let wanted: Option<Policy> = match policy {
        Some(word) => Some(settings.policy(policy_of(word, acks.map(|it| it.to_string()).as_deref())?)?),
        None => None,
    };
    Ok(known.name == *name
        && match known.goal {
            ChangeGoal::Policy { policy } | ChangeGoal::Cross { policy, .. } => wanted == Some(policy),
            ChangeGoal::Acks { acks: known } => wanted.is_none() && *acks == Some(known),
            ChangeGoal::Add { region, .. } => is(add_region, region),
            ChangeGoal::Remove { region, .. } => is(remove_region, region),
            ChangeGoal::Lose { .. } => false,
        })
}

fn existing<'a>(topology: &'a Topology, name: &BucketName) -> Result<&'a Bucket, Failure> {
    topology.bucket_named(name.as_str()).map(AsRef::as_ref).ok_or_else(|| {
        Failure::invalid(format!("there is no bucket `{name}`: `meridian bucket list` shows what there is"))
    })
}

/// How long a return is watched before its rate is told.
pub(super) const RATE_OVER: Duration = Duration::from_secs(1);

async fn describe(client: &Client, name: &BucketName, format: Format) -> anyhow::Result<()> {
    let (bucket, mut view) = seen(client, name).await?;
    if !bucket.standing.is_sync() {
        let before = view;
        tokio::time::sleep(RATE_OVER).await;
        (_, view) = seen(client, name).await?;
        view.since(before.exposure.as_ref(), 1000);
    }
    if let Some(region) = bucket.joins.joining() {
        let repairs = client.admin().repairs().await?;
        let of_region = repairs.into_iter().filter(|(node, _)| node.region == region);
        view.fill(of_region.filter_map(|(_, answer)| answer.ok()).flatten().filter(|it| it.bucket == bucket.id));
    }
    show(format, &Described { buckets: vec![view] })
}

/// A bucket, with what its primary's region says of the others.
async fn seen(client: &Client, name: &BucketName) -> anyhow::Result<(Bucket, View)> {
    let topology = client.admin().topology().await?;
    let bucket = existing(&topology, name)?;
    let mut view = View::of(bucket, &topology);
    for region in client.admin().lag(Some(name)).await? {
        if let Ok(lag) = region.answer
            && view.primary.as_deref() == Some(region.region.as_str())
        {
            view.expose(bucket, &lag.buckets);
        }
    }
    Ok((bucket.clone(), view))
}

/// Deleting data takes a second word, unless there is none to delete.
async fn delete(client: &Client, name: &BucketName, dry_run: bool, yes: bool) -> anyhow::Result<()> {
    let topology = client.admin().topology().await?;
    let bucket = existing(&topology, name)?;
    let digests = client.admin().digests(Some(name)).await?;
    let keys = digests
        .iter()
        .filter_map(|region| region.answer.as_ref().ok())
        .map(|shards| {
            shards.iter().filter(|shard| shard.bucket == bucket.id).map(|shard| shard.digest.keys).sum::<u64>()
        })
        .max()
        .unwrap_or_default();
    let what = format!("`{name}` with {} keys in {} regions", crate::output::count(keys), bucket.regions.len());
    if dry_run {
        client.admin().delete_bucket(name, true).await?;
        note(&format!("this would delete {what}; nothing was changed"));
        return Ok(());
    }
    if keys > 0 && !yes {
        return Err(Failure::consent(format!("this deletes {what}, for good: repeat it with --yes to consent")).into());
    }
    client.admin().delete_bucket(name, false).await?;
    note(&format!("deleted {what}"));
    Ok(())
}

fn changes(labels: &[String]) -> anyhow::Result<(BTreeMap<String, String>, Vec<String>)> {
    let (mut set, mut remove) = (BTreeMap::new(), Vec::new());
    for label in labels {
        match (parse_pair(label), label.strip_suffix('-')) {
            (Ok((key, value)), _) => drop(set.insert(key, value)),
            (Err(_), Some(key)) => remove.push(key.to_owned()),
            (Err(_), None) => {
                return Err(Failure::invalid(format!("`{label}`: write key=value to set, key- to remove")).into());
            }
        }
    }
    Ok((set, remove))
}

async fn one(client: &Client, bucket: &Bucket, format: Format) -> anyhow::Result<()> {
    let topology = client.admin().topology().await?;
    show(format, &List { buckets: vec![View::of(bucket, &topology)] })
}

#[derive(Debug, Serialize)]
struct List {
    buckets: Vec<View>,
}

impl Show for List {
    fn text(&self) -> String {
        table(&self.buckets)
    }
}

/// Everything about them.
#[derive(Debug, Serialize)]
struct Described {
    buckets: Vec<View>,
}

impl Show for Described {
    fn text(&self) -> String {
        self.buckets.iter().map(View::described).collect::<Vec<_>>().join("\n\n")
    }
}

/// Buckets as people read them.
pub(super) fn table(buckets: &[View]) -> String {
    if buckets.is_empty() {
        return "no buckets yet: `meridian bucket create NAME` makes one".to_owned();
    }
    let mut table = Table::new(&["bucket", "policy", "primary", "regions", ">epoch", "phase", "copies", "labels"]);
    for bucket in buckets {
        let labels: Vec<String> = bucket.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        table.row([
            bucket.name.clone(),
            bucket.policy.clone(),
            bucket.primary.clone().unwrap_or_else(|| "every region".to_owned()),
            bucket.regions.join(", "),
            bucket.epoch.to_string(),
            bucket.moving(),
            bucket.copies(),
            labels.join(" "),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_set_and_removed() {
        let (set, remove) = changes(&["team=shop".to_owned(), "old-".to_owned()]).unwrap();
        assert_eq!(set["team"], "shop");
        assert_eq!(remove, ["old"]);
        assert!(changes(&["nothing".to_owned()]).is_err());
    }
}
