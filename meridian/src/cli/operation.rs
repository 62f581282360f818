//! `meridian operation`: what moves, what has moved, and giving up.

use clap::Subcommand;
use meridian_types::PlanId;
use serde::Serialize;

use super::connect::Connection;
use super::moment::moment;
use crate::output::{Format, Show, Table, millis, note, show};

mod follow;
mod view;

pub(super) use follow::{follow, watch};
pub(super) use view::{LossView, View, loss_text};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List operations, the latest last.
    List,
    /// Show one, with its proof.
    Show {
        /// As `operation list` names it: op-NUMBER.
        operation: PlanId,
    },
    /// Watch one until it ends.
    Watch {
        /// As `operation list` names it: op-NUMBER.
        operation: PlanId,
    },
    /// Give up what is under way of one: old primaries go on, nothing is lost.
    Abort {
        /// As `operation list` names it: op-NUMBER.
        operation: PlanId,
        /// Why, for whoever reads the history.
        #[arg(long, default_value = "an operator gave it up")]
        reason: String,
    },
}

pub(super) async fn run(command: Command, connection: &Connection, format: Format) -> anyhow::Result<()> {
    let client = connection.connect().await?;
    match command {
        Command::List => {
            let plans = client.admin().operations().await?;
            let topology = client.known_topology();
            show(format, &List { operations: plans.iter().map(|plan| View::of(plan, &topology)).collect() })
        }
        Command::Show { operation } => {
            let plan = client.admin().operation(operation).await?;
            show(format, &View::of(&plan, &client.known_topology()))
        }
        Command::Watch { operation } => follow(&client, operation, format).await,
        Command::Abort { operation, reason } => {
            let plan = client.admin().abort_operation(operation, &reason).await?;
            note("given up; old primaries go on where the bucket had not arrived:");
            show(format, &View::of(&plan, &client.known_topology()))
        }
    }
}

#[derive(Debug, Serialize)]
struct List {
    operations: Vec<View>,
}

impl Show for List {
    fn text(&self) -> String {
        if self.operations.is_empty() {
            return "no operations yet: `meridian switchover run` starts one".to_owned();
        }
        let mut table = Table::new(&[
            "operation",
            "what",
            "from",
            "to",
            ">buckets",
            "outcome",
            "asked",
            ">longest pause",
            "by",
            "reason",
        ]);
        for it in &self.operations {
            table.row([
                it.operation.clone(),
                it.kind.to_owned(),
                it.from(),
                it.to.clone(),
                it.buckets.len().to_string(),
                it.outcome.to_string(),
                moment(it.asked_at_ms),
                it.pause_ms_max().map_or("-".to_owned(), millis),
                it.who.clone(),
                it.reason.clone(),
            ]);
        }
        table.to_string()
    }
}

#[cfg(test)]
mod tests;
