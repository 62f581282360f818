//! `meridian operation`: what moves and what changes, what has, and giving up.

use clap::Subcommand;
use meridian_client::Client;
use meridian_types::{Operation, PlanId, Topology};
use serde::Serialize;

use super::connect::Connection;
use super::exit::Failure;
use super::moment::moment;
use crate::output::{Format, Show, Table, millis, note, show};

mod change;
mod follow;
mod on_record;
mod view;

pub(super) use follow::{follow, watch};
pub(super) use on_record::{OnRecord, again};
pub(super) use view::{LossView, View, loss_text};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List operations, the latest last.
    List,
    /// Show one: with its proof, or with its stages.
    Show {
        /// As `operation list` names it: op-NUMBER.
        operation: PlanId,
    },
    /// Watch one until it ends.
    Watch {
        /// As `operation list` names it: op-NUMBER.
        operation: PlanId,
    },
    /// Give up what is under way of one: old primaries go on, a bucket stays what it was, nothing is lost.
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
            let known = client.admin().on_record(None).await?;
            let topology = client.known_topology();
            show(format, &List { operations: known.iter().map(|it| Listed::of(it, &topology)).collect() })
        }
        Command::Show { operation } => {
            let known = known(&client, operation).await?;
            show(format, &Listed::of(&known, &client.known_topology()))
        }
        Command::Watch { operation } => match known(&client, operation).await? {
            Operation::Moves(_) => follow(&client, operation, format).await,
            Operation::Change(_) => follow::follow_change(&client, operation, format).await,
        },
        Command::Abort { operation, reason } => {
            let known = client.admin().abort_operation(operation, &reason).await?;
            note(match &known {
                Operation::Moves(_) => "given up; old primaries go on where the bucket had not arrived:",
                Operation::Change(_) => "given up; the bucket is what it was, and nothing is lost:",
            });
            show(format, &Listed::of(&known, &client.known_topology()))
        }
    }
}

async fn known(client: &Client, id: PlanId) -> anyhow::Result<Operation> {
    let known = client.admin().on_record(Some(id)).await?.pop();
    known.ok_or_else(|| Failure::invalid(format!("no operation {id} is known: see `meridian operation list`")).into())
}

/// An operation of either kind.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Listed {
    Moves(View),
    Change(change::View),
}

impl Listed {
    fn of(operation: &Operation, topology: &Topology) -> Listed {
        match operation {
            Operation::Moves(plan) => Listed::Moves(View::of(plan, topology)),
            Operation::Change(change) => Listed::Change(change::View::of(change, topology)),
        }
    }

    fn row(&self) -> [String; 10] {
        match self {
            Listed::Moves(it) => [
                it.operation.clone(),
                it.kind.to_owned(),
                it.from(),
                it.to.clone(),
                it.whose(),
                it.outcome.to_string(),
                moment(it.asked_at_ms),
                it.pause_ms_max().map_or("-".to_owned(), millis),
                it.who.clone(),
                it.reason.clone(),
            ],
            Listed::Change(it) => [
                it.operation.clone(),
                it.kind.to_owned(),
                it.from.clone(),
                it.to.clone(),
                it.bucket.clone(),
                it.standing(),
                moment(it.asked_at_ms),
                it.held_ms_max().map_or("-".to_owned(), millis),
                it.who.clone(),
                it.reason.clone(),
            ],
        }
    }
}

impl Show for Listed {
    fn text(&self) -> String {
        match self {
            Listed::Moves(it) => it.text(),
            Listed::Change(it) => it.text(),
        }
    }
}

#[derive(Debug, Serialize)]
struct List {
    operations: Vec<Listed>,
}

impl Show for List {
    fn text(&self) -> String {
        if self.operations.is_empty() {
            return "no operations yet: `meridian switchover run` and `meridian bucket set` start some".to_owned();
        }
        let mut table = Table::new(&[
            "operation",
            "what",
            "from",
            "to",
            "buckets",
            "outcome",
            "asked",
            ">longest pause",
            "by",
            "reason",
        ]);
        for it in &self.operations {
            table.row(it.row());
        }
        table.to_string()
    }
}

#[cfg(test)]
mod tests;
