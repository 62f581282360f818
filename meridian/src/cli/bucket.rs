//! `meridian bucket`: create, list, show, delete, label.

use std::collections::BTreeMap;

use clap::Subcommand;
use meridian_client::Client;
use meridian_types::{Acks, Bucket, BucketName, BucketSpec, Phase, Policy, PolicyError, RegionName, Topology};
use serde::Serialize;

use super::connect::Connection;
use super::exit::Failure;
use super::words::parse_pair;
use crate::output::{Format, Show, Table, note, show};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create a bucket.
    Create {
        /// Its name.
        name: BucketName,
        /// How it replicates: async, sync, active-active, or a preset (max-performance, max-protection).
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
        /// Check everything, change nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// List the buckets.
    List,
    /// Show one bucket.
    Show {
        /// Its name.
        name: BucketName,
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
    if let Command::Create { policy, acks, .. } = &command {
        policy_of(policy, acks.as_deref())?;
    }
    let client = connection.connect().await?;
    match command {
        Command::Create { name, policy, acks, regions, primary, labels, dry_run } => {
            let policy = policy_of(&policy, acks.as_deref())?;
            let spec = BucketSpec { name, policy, regions, primary, labels: labels.into_iter().collect() };
            let bucket = client.admin().create_bucket(&spec, dry_run).await?;
            note(if dry_run { "this would be created; nothing was changed:" } else { "created:" });
            one(&client, &bucket, format).await
        }
        Command::List => {
            let topology = client.admin().topology().await?;
            let views = topology.buckets.values().map(|bucket| View::of(bucket, &topology)).collect();
            show(format, &List { buckets: views })
        }
        Command::Show { name } => {
            let topology = client.admin().topology().await?;
            show(format, &List { buckets: vec![View::of(existing(&topology, &name)?, &topology)] })
        }
        Command::Delete { name, dry_run, yes } => delete(&client, &name, dry_run, yes).await,
        Command::Label { name, labels } => {
            let (set, remove) = changes(&labels)?;
            let bucket = client.admin().set_labels(&name, set, remove).await?;
            one(&client, &bucket, format).await
        }
    }
}

/// The policy of the two flags.
pub(super) fn policy_of(policy: &str, acks: Option<&str>) -> Result<Policy, PolicyError> {
    let policy: Policy = policy.parse()?;
    match (policy, acks) {
        (policy, None) => Ok(policy),
        (Policy::Sync { .. }, Some(acks)) => Ok(Policy::Sync { acks: acks.parse::<Acks>()? }),
        (other, Some(acks)) => Err(PolicyError::AcksWithoutSync { acks: acks.to_owned(), policy: other.to_string() }),
    }
}

fn existing<'a>(topology: &'a Topology, name: &BucketName) -> Result<&'a Bucket, Failure> {
    topology.bucket_named(name.as_str()).map(AsRef::as_ref).ok_or_else(|| {
        Failure::invalid(format!("there is no bucket `{name}`: `meridian bucket list` shows what there is"))
    })
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

/// A bucket with names instead of numbers.
#[derive(Debug, Serialize)]
pub(super) struct View {
    pub(super) name: String,
    pub(super) policy: String,
    pub(super) phase: String,
    /// Unless it is steady: the operation that has it, and where its primary goes.
    pub(super) operation: Option<String>,
    pub(super) next_primary: Option<String>,
    pub(super) epoch: u64,
    pub(super) primary: Option<String>,
    pub(super) regions: Vec<String>,
    pub(super) labels: BTreeMap<String, String>,
}

impl View {
    pub(super) fn of(bucket: &Bucket, topology: &Topology) -> View {
        let (operation, to) = match bucket.phase {
            Phase::Steady => (None, None),
            Phase::CatchingUp { plan, to, .. } | Phase::Draining { plan, to } | Phase::Fencing { plan, to } => {
                (Some(plan.to_string()), Some(topology.region_label(to)))
            }
        };
        View {
            name: bucket.name.to_string(),
            policy: bucket.policy.to_string(),
            phase: bucket.phase.to_string(),
            operation,
            next_primary: to,
            epoch: bucket.epoch.0,
            primary: bucket.primary.map(|region| topology.region_label(region)),
            regions: bucket.regions.iter().map(|region| topology.region_label(*region)).collect(),
            labels: bucket.labels.clone(),
        }
    }

    /// Its phase, and unless it is steady which operation takes it where.
    fn standing(&self) -> String {
        match (&self.operation, &self.next_primary) {
            (Some(operation), Some(to)) => format!("{} to {to} ({operation})", self.phase),
            _ => self.phase.clone(),
        }
    }
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

/// Buckets as people read them.
pub(super) fn table(buckets: &[View]) -> String {
    if buckets.is_empty() {
        return "no buckets yet: `meridian bucket create NAME` makes one".to_owned();
    }
    let mut table = Table::new(&["bucket", "policy", "primary", "regions", ">epoch", "phase", "labels"]);
    for bucket in buckets {
        let labels: Vec<String> = bucket.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        table.row([
            bucket.name.clone(),
            bucket.policy.clone(),
            bucket.primary.clone().unwrap_or_else(|| "every region".to_owned()),
            bucket.regions.join(", "),
            bucket.epoch.to_string(),
            bucket.standing(),
            labels.join(" "),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acks_go_with_sync_only_and_the_error_names_both_fields() {
        assert_eq!(policy_of("sync", Some("all")), Ok(Policy::Sync { acks: Acks::All }));
        assert_eq!(policy_of("max-protection", None), Ok(Policy::Sync { acks: Acks::Majority }));
        let error = policy_of("async", Some("2")).unwrap_err().to_string();
        assert!(error.contains("acks = 2") && error.contains("policy = async"), "{error}");
    }

    #[test]
    fn labels_are_set_and_removed() {
        let (set, remove) = changes(&["team=shop".to_owned(), "old-".to_owned()]).unwrap();
        assert_eq!(set["team"], "shop");
        assert_eq!(remove, ["old"]);
        assert!(changes(&["nothing".to_owned()]).is_err());
    }

    #[test]
    fn a_bucket_that_moves_says_where_to() {
        let mut bucket = View {
            name: "orders".into(),
            policy: "async".into(),
            phase: "draining".into(),
            operation: Some("op-12".into()),
            next_primary: Some("eu-west".into()),
            epoch: 2,
            primary: Some("us-east".into()),
            regions: Vec::new(),
            labels: BTreeMap::new(),
        };
        assert_eq!(bucket.standing(), "draining to eu-west (op-12)");
        (bucket.operation, bucket.next_primary) = (None, None);
        assert_eq!(bucket.standing(), "draining");
    }

    #[test]
    fn a_list_of_buckets_is_a_table() {
        let bucket = View {
            name: "orders".into(),
            policy: "sync (majority)".into(),
            phase: "steady".into(),
            operation: None,
            next_primary: None,
            epoch: 1,
            primary: Some("us-east".into()),
            regions: vec!["us-east".into(), "eu-west".into()],
            labels: BTreeMap::from([("team".to_owned(), "shop".to_owned())]),
        };
        let expected = " bucket   policy            primary   regions            epoch   phase    labels
──────────────────────────────────────────────────────────────────────────────────
 orders   sync (majority)   us-east   us-east, eu-west       1   steady   team=shop";
        let text = List { buckets: vec![bucket] }.text();
        let trimmed: Vec<&str> = text.lines().map(str::trim_end).collect();
        let expected: Vec<&str> = expected.lines().map(str::trim_end).collect();
        assert_eq!(trimmed[0], expected[0]);
        assert_eq!(trimmed[2], expected[2]);
    }
}
