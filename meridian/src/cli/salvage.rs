//! `meridian salvage`: what lost primaries kept, what became of it, and writing it back.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use meridian_client::Client;
use meridian_types::{BucketName, Node, ReplayPolicy, ReplayReport, SalvageBundle, SalvageId, SalvageKey};

use super::connect::Connection;
use super::exit::Failure;
use super::lag::bucket_label;
use super::moment::moment;
use crate::output::{Format, Progress, bytes, count, note, raw, show};

mod view;
use view::{Keys, List, Report};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the bundles that lost primaries wrote when they came back.
    List,
    /// Show the keys of one.
    Show {
        /// As `salvage list` names it.
        bundle: SalvageId,
        /// At most so many keys.
        #[arg(long, default_value_t = 1000)]
        limit: usize,
    },
    /// Show what became of its keys at the bucket's primary: untouched, changed or deleted since.
    Diff {
        /// As `salvage list` names it.
        bundle: SalvageId,
        /// At most so many keys.
        #[arg(long, default_value_t = 1000)]
        limit: usize,
    },
    /// Write its keys to a file: a JSON object a line, keys and values in base64.
    Export {
        /// As `salvage list` names it.
        bundle: SalvageId,
        /// The file; `-` for standard output.
        file: PathBuf,
    },
    /// Write their keys back.
    Replay {
        #[command(flatten)]
        which: Which,
        /// Which keys.
        #[arg(long, value_enum, default_value_t = Policy::IfUnchanged)]
        policy: Policy,
        /// Only say what would become of them.
        #[arg(long)]
        dry_run: bool,
    },
    /// Forget them for good.
    Drop {
        #[command(flatten)]
        which: Which,
        /// Only say what would be forgotten.
        #[arg(long)]
        dry_run: bool,
    },
}

/// Which bundles: a failover leaves one per shard.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Which {
    /// As `salvage list` names them.
    bundles: Vec<SalvageId>,
    /// All of this bucket.
    #[arg(long)]
    bucket: Option<BucketName>,
}

/// Which keys are written back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Policy {
    /// Those that are as they were when the primary was lost.
    IfUnchanged,
    /// All, over whatever is there now.
    Overwrite,
    /// None: only count.
    Skip,
}

impl From<Policy> for ReplayPolicy {
    fn from(policy: Policy) -> ReplayPolicy {
        match policy {
            Policy::IfUnchanged => ReplayPolicy::IfUnchanged,
            Policy::Overwrite => ReplayPolicy::Overwrite,
            Policy::Skip => ReplayPolicy::Skip,
        }
    }
}

pub(super) async fn run(command: Command, connection: &Connection, format: Format) -> anyhow::Result<()> {
    let client = connection.connect().await?;
    match command {
        Command::List => list(&client, format).await,
        Command::Show { bundle, limit } => keys(&client, bundle, limit, false, format).await,
        Command::Diff { bundle, limit } => keys(&client, bundle, limit, true, format).await,
        Command::Export { bundle, file } => export(&client, bundle, &file).await,
        Command::Replay { which, policy, dry_run } => {
            let once = once(chosen(&client, which).await?);
            replay(&client, &once, policy.into(), dry_run, format).await
        }
        Command::Drop { which, dry_run } => drop_bundles(&client, &chosen(&client, which).await?, dry_run).await,
    }
}

async fn list(client: &Client, format: Format) -> anyhow::Result<()> {
    let answers = client.admin().salvages().await?;
    let list = List::of(answers, &client.known_topology());
    show(format, &list)?;
    if list.silent.is_empty() {
        return Ok(());
    }
    list.silent.iter().for_each(|silent| note(silent));
    Err(Failure::not_ready("the bundles of some nodes are not known").into())
}

/// Every bundle with the node that keeps it, and the nodes that do not say.
async fn kept(client: &Client) -> anyhow::Result<(Vec<Kept>, Vec<String>)> {
    let (mut kept, mut silent) = (Vec::new(), Vec::new());
    for (node, answer) in client.admin().salvages().await? {
        match answer {
            Ok(bundles) => kept.extend(bundles.into_iter().map(|bundle| (node.clone(), bundle))),
            Err(_) => silent.push(node.name.to_string()),
        }
    }
    Ok((kept, silent))
}

/// A bundle and where it is.
type Kept = (Node, SalvageBundle);

async fn find(client: &Client, id: SalvageId) -> anyhow::Result<Kept> {
    let (kept, silent) = kept(client).await?;
    kept.into_iter().find(|(_, bundle)| bundle.id == id).ok_or_else(|| missing(id, &silent).into())
}

fn missing(id: SalvageId, silent: &[String]) -> Failure {
    if silent.is_empty() {
        return Failure::invalid(format!("there is no bundle {id}: `meridian salvage list` shows all"));
    }
    Failure::not_ready(format!("no node that answers has bundle {id}; {} do not answer", silent.join(", ")))
}

/// All that were asked for, or an error before anything is done with one of them.
async fn chosen(client: &Client, which: Which) -> anyhow::Result<Vec<Kept>> {
    let (kept, silent) = kept(client).await?;
    let Some(name) = which.bucket else {
        let mut found = Vec::new();
        for id in which.bundles.into_iter().collect::<BTreeSet<_>>() {
            let copies = kept.iter().filter(|(_, bundle)| bundle.id == id);
            let before = found.len();
            found.extend(copies.cloned());
            if found.len() == before {
                return Err(missing(id, &silent).into());
            }
        }
        return Ok(found);
    };
    if !silent.is_empty() {
        let why = format!("{} do not answer, so it is not known which bundles of {name} there are", silent.join(", "));
        return Err(Failure::not_ready(why).into());
    }
    let topology = client.known_topology();
    let id = topology.buckets.values().find(|bucket| bucket.name == name).map(|bucket| bucket.id);
    let of_bucket: Vec<Kept> = kept.into_iter().filter(|(_, bundle)| Some(bundle.id.bucket) == id).collect();
    if of_bucket.is_empty() {
        let why = format!("there are no bundles of bucket {name}: `meridian salvage list` shows all");
        return Err(Failure::invalid(why).into());
    }
    Ok(of_bucket)
}

/// Each bundle once: two nodes of a region that came to lead the shard one after the other may both have written it down, and what is
/// added to a counter must not be added twice. The one from which more was written back remembers what was.
fn once(kept: Vec<Kept>) -> Vec<Kept> {
    let mut once: BTreeMap<_, Kept> = BTreeMap::new();
    for copy in kept {
        let more = |known: &Kept| (copy.1.restored, known.0.id) > (known.1.restored, copy.0.id);
        let which = (copy.0.region, copy.1.id);
        if once.get(&which).is_none_or(more) {
            once.insert(which, copy);
        }
    }
    once.into_values().collect()
}

async fn keys(client: &Client, id: SalvageId, limit: usize, judged: bool, format: Format) -> anyhow::Result<()> {
    let (node, bundle) = find(client, id).await?;
    let mut keys: Vec<SalvageKey> = Vec::new();
    for part in 0..bundle.parts {
        if keys.len() >= limit {
            break;
        }
        keys.extend(client.admin().salvage_keys(&node, id, part, judged).await?);
    }
    let left = bundle.keys.saturating_sub(keys.len().min(limit) as u64);
    keys.truncate(limit);
    show(format, &Keys::of(keys, left))
}

async fn export(client: &Client, id: SalvageId, file: &std::path::Path) -> anyhow::Result<()> {
    let (node, bundle) = find(client, id).await?;
    let mut out = match file.to_str() {
        Some("-") => None,
        _ => Some(std::fs::File::create_new(file)?),
    };
    let progress = Progress::of_steps("exporting", bundle.keys, "keys");
    for part in 0..bundle.parts {
        let keys = client.admin().salvage_keys(&node, id, part, false).await?;
        progress.advance(keys.len() as u64);
        let mut lines = Vec::new();
        for key in keys {
            lines.extend(serde_json::to_vec(&view::Exported::of(&key))?);
            lines.push(b'\n');
        }
        match &mut out {
            Some(file) => file.write_all(&lines)?,
            None => raw(&lines)?,
        }
    }
    progress.finish();
    Ok(())
}

async fn replay(
    client: &Client,
    bundles: &[Kept],
    policy: ReplayPolicy,
    dry_run: bool,
    format: Format,
) -> anyhow::Result<()> {
    let parts = bundles.iter().map(|(_, bundle)| u64::from(bundle.parts)).sum();
    let progress = Progress::of_steps(if dry_run { "comparing" } else { "writing back" }, parts, "parts");
    let mut report = ReplayReport::default();
    for (node, bundle) in bundles {
        for part in 0..bundle.parts {
            report = report.and(client.admin().replay(node, bundle.id, part, policy, dry_run).await?);
            progress.advance(1);
        }
    }
    progress.finish();
    show(format, &Report::of(bundles.iter().map(|(_, bundle)| bundle.id), policy, dry_run, report))?;
    if report.failed > 0 {
        return Err(Failure::failed(format!(
            "{} keys could not be read or written: run it again",
            count(report.failed)
        ))
        .into());
    }
    Ok(())
}

async fn drop_bundles(client: &Client, bundles: &[Kept], dry_run: bool) -> anyhow::Result<()> {
    for (node, bundle) in bundles {
        let what = format!(
            "{} keys ({}), {} of them written back",
            count(bundle.keys),
            bytes(bundle.bytes),
            count(bundle.restored)
        );
        client.admin().drop_salvage(node, bundle.id, dry_run).await?;
        note(&if dry_run {
            format!("would forget {} on {}: {what}", bundle.id, node.name)
        } else {
            format!("forgotten: {}, {what}", bundle.id)
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use meridian_types::{NodeId, NodeName, RegionId};

    use super::*;

    fn kept(node: &str, region: u16, id: &str, restored: u64) -> Kept {
        let name = NodeName::new(node).unwrap();
        let node = Node {
            id: NodeId::of(&name),
            name,
            region: RegionId(region),
            zone: "a".to_owned(),
            rpc_address: "h:1".to_owned(),
            replication_address: "h:2".to_owned(),
            version: String::new(),
        };
        (node, SalvageBundle { id: id.parse().unwrap(), restored, ..SalvageBundle::default() })
    }

    /// What is added to a counter would be added twice.
    #[test]
    fn a_bundle_that_two_nodes_of_a_region_wrote_is_written_back_once_by_the_one_that_knows_what_was() {
        let (one, other) = ("3-7-2-1041-1100", "3-8-2-900-1000");
        let all =
            vec![kept("a-1", 1, one, 0), kept("a-2", 1, one, 5), kept("a-1", 1, other, 2), kept("a-3", 1, other, 0)];
        let names = |all: Vec<Kept>| {
            once(all).iter().map(|(node, bundle)| format!("{} {}", bundle.id, node.name)).collect::<Vec<_>>()
        };
        let expected = [format!("{one} a-2"), format!("{other} a-1")];
        assert_eq!(names(all.clone()), expected);
        assert_eq!(names(all.into_iter().rev().collect()), expected, "in whatever order they answer");
        let tied = vec![kept("a-1", 1, one, 0), kept("a-2", 1, one, 0)];
        assert_eq!(names(tied.clone()), names(tied.into_iter().rev().collect()));
        let elsewhere = vec![kept("a-1", 1, one, 0), kept("b-1", 2, one, 0)];
        assert_eq!(names(elsewhere).len(), 2, "another region's log is another one");
    }
}
