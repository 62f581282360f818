//! `meridian salvage`: what lost primaries kept, what became of it, and writing it back.

use std::io::Write;
use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use meridian_client::Client;
use meridian_types::{Node, ReplayPolicy, ReplayReport, SalvageBundle, SalvageId, SalvageKey};

use super::connect::Connection;
use super::exit::Failure;
use super::lag::bucket_label;
use super::moment::moment;
use crate::output::{Format, Progress, bytes, count, note, show};

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
    /// Write its keys back.
    Replay {
        /// As `salvage list` names it.
        bundle: SalvageId,
        /// Which keys.
        #[arg(long, value_enum, default_value_t = Policy::IfUnchanged)]
        policy: Policy,
        /// Only say what would become of them.
        #[arg(long)]
        dry_run: bool,
    },
    /// Forget one for good.
    Drop {
        /// As `salvage list` names it.
        bundle: SalvageId,
        /// Only say what would be forgotten.
        #[arg(long)]
        dry_run: bool,
    },
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
        Command::Replay { bundle, policy, dry_run } => replay(&client, bundle, policy.into(), dry_run, format).await,
        Command::Drop { bundle, dry_run } => drop_bundle(&client, bundle, dry_run).await,
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

/// Where a bundle is.
async fn find(client: &Client, id: SalvageId) -> anyhow::Result<(Node, SalvageBundle)> {
    let mut silent = Vec::new();
    for (node, answer) in client.admin().salvages().await? {
        match answer {
            Ok(bundles) => {
                if let Some(bundle) = bundles.into_iter().find(|bundle| bundle.id == id) {
                    return Ok((node, bundle));
                }
            }
            Err(_) => silent.push(node.name.to_string()),
        }
    }
    if silent.is_empty() {
        return Err(Failure::invalid(format!("there is no bundle {id}: `meridian salvage list` shows all")).into());
    }
    Err(Failure::not_ready(format!("no node that answers has bundle {id}; {} do not answer", silent.join(", "))).into())
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
    let mut out: Box<dyn Write> = match file.to_str() {
        Some("-") => Box::new(std::io::stdout().lock()),
        _ => Box::new(std::io::BufWriter::new(std::fs::File::create_new(file)?)),
    };
    let progress = Progress::of_steps("exporting", bundle.keys, "keys");
    for part in 0..bundle.parts {
        let keys = client.admin().salvage_keys(&node, id, part, false).await?;
        progress.advance(keys.len() as u64);
        for key in keys {
            writeln!(out, "{}", serde_json::to_string(&view::Exported::of(&key))?)?;
        }
    }
    out.flush()?;
    progress.finish();
    Ok(())
}

async fn replay(
    client: &Client,
    id: SalvageId,
    policy: ReplayPolicy,
    dry_run: bool,
    format: Format,
) -> anyhow::Result<()> {
    let (node, bundle) = find(client, id).await?;
    let progress =
        Progress::of_steps(if dry_run { "comparing" } else { "writing back" }, u64::from(bundle.parts), "parts");
    let mut report = ReplayReport::default();
    for part in 0..bundle.parts {
        report = report.and(client.admin().replay(&node, id, part, policy, dry_run).await?);
        progress.advance(1);
    }
    progress.finish();
    show(format, &Report::of(id, policy, dry_run, report))?;
    if report.failed > 0 {
        return Err(Failure::failed(format!(
            "{} keys could not be read or written: run it again",
            count(report.failed)
        ))
        .into());
    }
    Ok(())
}

async fn drop_bundle(client: &Client, id: SalvageId, dry_run: bool) -> anyhow::Result<()> {
    let (node, bundle) = find(client, id).await?;
    let what = format!(
        "{} keys ({}), {} of them written back",
        count(bundle.keys),
        bytes(bundle.bytes),
        count(bundle.restored)
    );
    client.admin().drop_salvage(&node, id, dry_run).await?;
    note(&if dry_run {
        format!("would forget {id} on {}: {what}", node.name)
    } else {
        format!("forgotten: {id}, {what}")
    });
    Ok(())
}
