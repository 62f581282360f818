//! `meridian failover`: replacing the primaries of a lost region (SWI-2, SWI-3).
//!
//! Nothing that could cost an acknowledged write happens without consent: `estimate` says what is known to be lost and
//! what can't be known, and prints the text to agree with; `run` refuses without it, and when the loss has grown.

use std::time::Duration;

use clap::{Args, Subcommand};
use meridian_client::Client;
use meridian_types::{Consent, Estimate, FailoverSpec, OperationId, Plan, PlanOutcome, RegionName, Step, Topology};

use self::estimate::View as EstimateView;
use super::connect::Connection;
use super::exit::Failure;
use super::operation::{View, follow, watch};
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
        note(&format!("{} was started under this id before: watching it", known.id));
        return follow(client, known.id, format).await;
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
    let ended = watch(client, plan.id).await?;
    show(format, &View::of(&ended, &client.known_topology()))?;
    judge(&ended, &args, client, format).await
}

/// How it ended, as the program ends. What was given up because it would have cost more is estimated again.
async fn judge(plan: &Plan, args: &RunArgs, client: &Client, format: Format) -> anyhow::Result<()> {
    match plan.outcome() {
        PlanOutcome::UnderWay | PlanOutcome::Done => Ok(()),
        PlanOutcome::PartlyRestored | PlanOutcome::Restored => {
            let estimate = args.which.estimate(client).await?;
            if missing_consent(args.accept_loss.as_ref(), &estimate, plan) {
                note("it would cost more than was agreed to; as of now:");
                show(format, &EstimateView::of(&estimate, &client.known_topology(), &args.which.words()))?;
                return Err(Failure::consent(format!(
                    "{} was given up: it needs a consent to what the estimate says now",
                    plan.id
                ))
                .into());
            }
            Err(Failure::restored(format!(
                "{} was given up for {}: their primaries are as before; see the note, and run it again",
                plan.id,
                buckets(plan.moves.iter().filter(|it| matches!(it.step, Step::Restored { .. })).count()),
            ))
            .into())
        }
    }
}

/// Whether something that was given up can't be done without a new consent. Its epoch has risen, so an old one does not count.
fn missing_consent(agreed: Option<&Consent>, estimate: &Estimate, plan: &Plan) -> bool {
    let given_up = plan.moves.iter().filter(|it| matches!(it.step, Step::Restored { .. }));
    let mut given_up = given_up.filter_map(|it| estimate.buckets.iter().find(|bucket| bucket.bucket == it.bucket));
    given_up.any(|bucket| {
        let agreed = agreed.and_then(|agreed| agreed.buckets.get(&bucket.name));
        !bucket.proven && bucket.to.is_some() && agreed.is_none_or(|(_, loss)| !loss.covers(bucket.lost))
    })
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

    /// As it was typed, for the command that follows.
    fn words(&self) -> String {
        let to = self.to.as_ref().map_or(String::new(), |to| format!(" --to {to}"));
        let lost = self.lost.as_ref().map_or(String::new(), |lost| format!(" --lost {lost}"));
        format!("{}{to}{lost}", self.buckets.words())
    }
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
