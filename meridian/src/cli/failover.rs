//! `meridian failover`: replacing the primaries of a lost region (SWI-2, SWI-3).
//!
//! Nothing that could cost an acknowledged write happens without consent: `estimate` says what is known to be lost and
//! what can't be known, and prints the text to agree with; `run` refuses without it, and when the loss has grown.

use std::time::Duration;

use clap::{Args, Subcommand};
use meridian_client::Client;
use meridian_types::{
    BucketName, Consent, Estimate, FailoverSpec, OperationId, Plan, PlanId, PlanOutcome, RegionName, Selection, Step,
    Topology,
};

use self::estimate::View as EstimateView;
use super::connect::Connection;
use super::exit::{self, Code, Failure};
use super::operation::{View, watch};
use super::switchover::Buckets;
use super::words::parse_duration;
use crate::output::{Format, note, show};

mod auto;
mod estimate;
mod lost;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Say what it would cost, bucket by bucket; change nothing.
    Estimate(Which),
    /// Replace the primaries, watch, and say what it cost; exit code 3 when that needs consent.
    Run(RunArgs),
    /// Show, or set, which buckets fail over by themselves.
    Auto(auto::AutoArgs),
}

/// Which primaries are replaced, and by whom.
#[derive(Clone, Debug, Args)]
pub(super) struct Which {
    #[command(flatten)]
    buckets: Buckets,
    /// The next primary; without it, for each bucket the region that has most of it.
    #[arg(long, value_name = "REGION")]
    to: Option<RegionName>,
    /// Of active-active buckets, which have no primary: the region that does not come back, and is removed.
    #[arg(long, value_name = "REGION", requires = "buckets", conflicts_with_all = ["to", "label", "all_from"])]
    lost: Option<RegionName>,
}

#[derive(Clone, Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    which: Which,
    /// What `failover estimate` printed: agrees to lose that, and no more.
    #[arg(long, value_name = "CONSENT")]
    accept_loss: Option<Consent>,
    /// Say what would be replaced; change nothing.
    #[arg(long)]
    dry_run: bool,
    /// A word of yours for this operation: run again with the same one, it watches the first instead of starting a second.
    #[arg(long, value_name = "WORD")]
    op_id: Option<String>,
    /// Why, for whoever reads the history.
    #[arg(long, default_value = "")]
    reason: String,
    /// Replace a primary although its region answers.
    #[arg(long)]
    even_if_alive: bool,
    /// With --lost: how long writes may be held before it is given up [default: 30s].
    #[arg(long, value_name = "TIME", value_parser = parse_duration, requires = "lost")]
    max_pause: Option<Duration>,
}

pub(super) async fn run(command: Command, connection: &Connection, format: Format) -> anyhow::Result<()> {
    let client = connection.connect().await?;
    match command {
        Command::Estimate(which) => {
            let estimate = which.estimate(&client).await?;
            which.name_left_out(&estimate);
            show(format, &EstimateView::of(&estimate, &client.known_topology(), &which.words()))?;
            check_possible(&estimate)
        }
        Command::Run(args) if let Some(lost) = args.which.lost.clone() => {
            lost::run(&args, &lost, &client, format).await
        }
        Command::Run(args) => start(args, &client, format).await,
        Command::Auto(args) => auto::run(args, &client, format).await,
    }
}

async fn start(args: RunArgs, client: &Client, format: Format) -> anyhow::Result<()> {
    let operation = args.op_id.as_deref().map_or_else(|| OperationId(rand::random()), OperationId::of);
    if args.op_id.is_some()
        && let Some(known) = client.admin().operations().await?.into_iter().find(|plan| plan.operation == operation)
    {
        if args.dry_run {
            note(&format!("{} was started under this id before, and stands like this; nothing was changed:", known.id));
            return show(format, &View::of(&known, &client.known_topology()));
        }
        note(&format!("{} was started under this id before: watching it", known.id));
        return finish(known.id, &args, client, format).await;
    }
    let estimate = args.which.estimate(client).await?;
    let view = EstimateView::of(&estimate, &client.known_topology(), &args.which.words());
    if let Err(why) = check(&args, &estimate, &client.known_topology()) {
        show(format, &view)?;
        return Err(why.into());
    }
    if args.dry_run {
        client.admin().failover(&args.spec(), operation, true).await?;
        note("this would be replaced; nothing was changed:");
        return show(format, &view);
    }
    let plan = client.admin().failover(&args.spec(), operation, false).await?;
    note(&format!("{}: replacing the primary of {}", plan.id, buckets(plan.moves.len())));
    finish(plan.id, &args, client, format).await
}

/// Watches to the end. What was given up because it would have cost more is estimated again.
async fn finish(id: PlanId, args: &RunArgs, client: &Client, format: Format) -> anyhow::Result<()> {
    let ended = watch(client, id).await?;
    show(format, &View::of(&ended, &client.known_topology()))?;
    let Err(why) = judge(&ended) else { return Ok(()) };
    if why.code() == Code::ConsentNeeded {
        // What it would cost now is for the eye; how it ended is on record, whatever became of the cluster since.
        match args.which.estimate(client).await {
            Ok(now) => {
                note("it would have cost more than was agreed to; as of now:");
                show(format, &EstimateView::of(&now, &client.known_topology(), &args.which.words()))?;
            }
            Err(error) => note(&format!("what it would cost now can't be told: {}", exit::explain(&error))),
        }
    }
    Err(why.into())
}

/// How it ended, as the program ends: by what is on record alone, so that whoever asks again is told the same.
fn judge(plan: &Plan) -> Result<(), Failure> {
    match plan.outcome() {
        PlanOutcome::UnderWay | PlanOutcome::Done => Ok(()),
        PlanOutcome::PartlyRestored | PlanOutcome::Restored if plan.moves.iter().any(|it| it.step.wants_consent()) => {
            Err(Failure::consent(format!(
                "{} was given up: it needs a consent to what the estimate says now; its epoch has risen, so that an old one does not count",
                plan.id
            )))
        }
        PlanOutcome::PartlyRestored | PlanOutcome::Restored => Err(Failure::restored(format!(
            "{} was given up for {}: their primaries are as before; see the note, and run it again",
            plan.id,
            buckets(plan.moves.iter().filter(|it| matches!(it.step, Step::Restored { .. })).count()),
        ))),
    }
}

/// What is looked at before writes are stopped.
fn check(args: &RunArgs, estimate: &Estimate, topology: &Topology) -> Result<(), Failure> {
    if estimate.buckets.iter().any(|it| it.to.is_none()) {
        return Err(Failure::not_ready(
            "nothing was started: not every bucket has a successor, see the note".to_owned(),
        ));
    }
    let alive = estimate.buckets.iter().find(|it| it.primary_answers);
    if let Some(alive) = alive.filter(|_| !args.even_if_alive) {
        let region = topology.region_label(alive.from);
        if args.which.lost.is_some() {
            return Err(Failure::not_ready(format!(
                "nothing was started: {region} answers, so it leaves without any loss: `meridian bucket set {} --remove-region {region}`. If it only seems alive, run this with --even-if-alive",
                alive.name
            )));
        }
        return Err(Failure::not_ready(format!(
            "nothing was started: {region} answers, so a switchover moves its primaries without any loss: `meridian switchover run --to REGION --all-from {region}`. If it only seems alive, run this with --even-if-alive"
        )));
    }
    let agreed = args.accept_loss.as_ref();
    let covered = |it: &&meridian_types::BucketEstimate| {
        let agreed = agreed.and_then(|agreed| agreed.buckets.get(&it.name));
        it.proven || agreed.is_some_and(|(epoch, loss)| *epoch == it.epoch && loss.covers(it.lost))
    };
    let uncovered: Vec<_> = estimate.buckets.iter().filter(|it| !covered(it)).map(|it| it.name.as_str()).collect();
    if uncovered.is_empty() {
        return Ok(());
    }
    let what = if agreed.is_some() { "more than was agreed to, or in another epoch" } else { "acknowledged writes" };
    Err(Failure::consent(format!(
        "nothing was started: it could cost {what} of {}: run it with the consent above if that is the lesser evil",
        uncovered.join(", ")
    )))
}

/// An estimate of what can't be done is no success.
fn check_possible(estimate: &Estimate) -> anyhow::Result<()> {
    match estimate.buckets.iter().filter(|it| it.to.is_none()).count() {
        0 => Ok(()),
        some => Err(Failure::not_ready(format!("{} can't be given another primary now", buckets(some))).into()),
    }
}

impl Which {
    async fn estimate(&self, client: &Client) -> anyhow::Result<Estimate> {
        let buckets = self.buckets.selection();
        Ok(match &self.lost {
            Some(lost) => client.admin().loss_estimate(&buckets, lost).await?,
            None => client.admin().failover_estimate(&buckets, self.to.as_ref()).await?,
        })
    }

    /// Says which of the buckets that were named the estimate leaves out: those that are not written in the lost region.
    fn name_left_out(&self, estimate: &Estimate) {
        let Some(lost) = &self.lost else { return };
        for name in left_out(&self.buckets.selection(), estimate) {
            note(&format!("`{name}` is not written in {lost}: there is nothing to lose with it, and it is left out"));
        }
    }

    /// As it was typed, for the command that follows.
    fn words(&self) -> String {
        let to = self.to.as_ref().map_or(String::new(), |to| format!(" --to {to}"));
        let lost = self.lost.as_ref().map_or(String::new(), |lost| format!(" --lost {lost}"));
        format!("{}{to}{lost}", self.buckets.words())
    }
}

/// The buckets that were named, and of which an estimate says nothing.
fn left_out(selection: &Selection, estimate: &Estimate) -> Vec<BucketName> {
    let Selection::Named(names) = selection else { return Vec::new() };
    names.iter().filter(|name| estimate.buckets.iter().all(|it| it.name != **name)).cloned().collect()
}

impl RunArgs {
    fn spec(&self) -> FailoverSpec {
        FailoverSpec {
            buckets: self.which.buckets.selection(),
            to: self.which.to.clone(),
            consent: self.accept_loss.clone(),
            automatic: false,
            reason: self.reason.clone(),
        }
    }
}

/// `1 bucket`, `2 buckets`.
fn buckets(count: usize) -> String {
    if count == 1 { "1 bucket".to_owned() } else { format!("{count} buckets") }
}

#[cfg(test)]
mod tests;
