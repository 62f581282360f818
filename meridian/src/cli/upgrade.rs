//! `meridian upgrade`: how far a rolling upgrade is, and its end.

use clap::Subcommand;
use meridian_client::{Client, Error};
use meridian_types::release::{FORMAT_NEWEST, FORMAT_UNSAID, format_of};
use meridian_types::{Node, NodeStatus, Topology};
use serde::Serialize;

use super::connect::Connection;
use super::exit::Failure;
use crate::output::{Format, Show, Table, note, show};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Say which node runs which release, and what is left to do; exit code 2 while the upgrade can't be finalized.
    Check,
    /// Let the cluster use what only the new release knows. No node goes back to the one before after that.
    Finalize {
        /// Only check that it could be.
        #[arg(long)]
        dry_run: bool,
    },
}

pub(super) async fn run(command: Command, connection: &Connection, format: Format) -> anyhow::Result<()> {
    let client = connection.connect().await?;
    match command {
        Command::Check => {
            let report = look(&client).await?;
            show(format, &report)?;
            if report.ready { Ok(()) } else { Err(Failure::not_ready("the upgrade can't be finalized yet").into()) }
        }
        Command::Finalize { dry_run } => {
            let before = client.admin().topology().await?.format;
            let after = client.admin().finalize_upgrade(dry_run).await?;
            note(&match (dry_run, after <= before) {
                (_, true) => format!("nothing to do: the cluster has format {before} of the metadata already"),
                (true, false) => {
                    format!("it could be: the cluster would go from format {before} to {after} of the metadata")
                }
                (false, false) => format!(
                    "finalized: the cluster has format {after} of the metadata; a node of an older release does not start any more"
                ),
            });
            Ok(())
        }
    }
}

async fn look(client: &Client) -> anyhow::Result<Report> {
    let statuses = client.admin().node_statuses().await?;
    let topology = client.admin().topology().await?;
    Ok(Report::of(&statuses, &topology))
}

/// Every node, and what follows.
#[derive(Debug, Serialize)]
struct Report {
    nodes: Vec<Row>,
    /// The newest format of the metadata that may be on record; null where the node that was asked is of a release that does not say.
    format: Option<u8>,
    /// The newest one that every node knows; null while a node has never said what it runs.
    known_to_all: Option<u8>,
    /// Whether it can be finalized now, or has been.
    ready: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    node: String,
    region: String,
    /// What it last said that it runs.
    version: String,
    /// The newest format that release reads.
    knows: Option<u8>,
    answers: bool,
}

impl Row {
    fn of(node: &Node, answer: &Result<NodeStatus, Error>, topology: &Topology) -> Row {
        // A node that was just started may not have registered yet.
        let version = answer.as_ref().map_or_else(|_| node.version.clone(), |status| status.version.clone());
        Row {
            node: node.name.to_string(),
            region: topology.region_label(node.region),
            knows: format_of(&version),
            version,
            answers: answer.is_ok(),
        }
    }

    fn note(&self) -> &'static str {
        match (self.knows, self.answers) {
            (None, _) => "FAIL: never said what it runs: start it, or `meridian node remove` it",
            (Some(known), _) if known < FORMAT_NEWEST => "FAIL: start it with the new release",
            (Some(_), false) => "ok, but it does not answer: what it last said",
            (Some(_), true) => "ok",
        }
    }
}

impl Report {
    fn of(statuses: &[(Node, Result<NodeStatus, Error>)], topology: &Topology) -> Report {
        let mut nodes: Vec<Row> = statuses.iter().map(|(node, answer)| Row::of(node, answer, topology)).collect();
        nodes.sort_by(|one, other| (&one.region, &one.node).cmp(&(&other.region, &other.node)));
        let known_to_all = nodes.iter().map(|row| row.knows).min().flatten();
        let format = Some(topology.format).filter(|format| *format > 0);
        let ready = known_to_all.is_some_and(|known| known >= FORMAT_NEWEST);
        Report { nodes, format, known_to_all, ready }
    }
}

impl Show for Report {
    fn text(&self) -> String {
        let mut table = Table::new(&["node", "region", "runs", ">knows format", "upgraded"]);
        for row in &self.nodes {
            table.row([
                row.node.clone(),
                row.region.clone(),
                if row.version.is_empty() { "-".to_owned() } else { row.version.clone() },
                row.knows.map_or("-".to_owned(), |format| format.to_string()),
                row.note().to_owned(),
            ]);
        }
        let format = self.format.unwrap_or(FORMAT_UNSAID);
        let behind = self.nodes.iter().filter(|row| row.knows.is_none_or(|known| known < FORMAT_NEWEST)).count();
        let left = match behind {
            0 if format >= FORMAT_NEWEST => "nothing to do: the upgrade is finalized".to_owned(),
            0 => "to finish: meridian upgrade finalize (until then every node can go back to the release it came from)"
                .to_owned(),
            1 => "1 node is left to upgrade".to_owned(),
            more => format!("{more} nodes are left to upgrade, one at a time"),
        };
        format!(
            "{table}\n\nthe cluster has format {format} of the metadata; this release knows {FORMAT_NEWEST}\n{left}"
        )
    }
}

#[cfg(test)]
mod tests;
