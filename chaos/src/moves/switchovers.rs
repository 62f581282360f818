//! Switchovers, one after another, there and back between the first two regions: SWI-1, and the pause that callers see.

use std::io::Write;
use std::time::Duration;

use anyhow::ensure;
use meridian_client::{OperationId, PlanOutcome, Selection, SwitchoverSpec};
use tokio::time::{Instant, sleep};

use super::callers::counters_are_kept;
use super::figures::Durations;
use super::stage::{BUCKET, Stage, bucket_name, region_name};
use crate::real::verdict::regions_are_equal;

/// Quiet before each: callers are back at their usual pace.
const QUIET: Duration = Duration::from_millis(1_000);

/// How often an operation is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Longer than one may take by its own bounds.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the end's comparison may take.
const EQUAL_PATIENCE: Duration = Duration::from_secs(60);

/// What is known of one.
struct Seen {
    asked: Instant,
    over: Instant,
    pause: Duration,
    shards: usize,
    equal: usize,
}

/// Moves the primary so often; whether every promise was kept.
pub(super) async fn play(stage: &mut Stage, rounds: usize, out: &mut impl Write) -> anyhow::Result<bool> {
    let (mut seen_by_callers, mut measured) = (Durations::default(), Durations::default());
    let (mut wrong, mut undecided) = (Vec::new(), None);
    for round in 1..=rounds {
        sleep(QUIET).await;
        // A pause is looked at a round later, when its callers have long been answered again.
        if let Some((asked, over)) = undecided.take() {
            seen_by_callers.extend(stage.callers.pauses(asked, over));
        }
        match switch(stage).await {
            Ok(seen) => {
                measured.add(seen.pause);
                undecided = Some((seen.asked, seen.over));
                if seen.equal < seen.shards {
                    wrong.push(format!("round {round}: {} of {} shards are proven equal", seen.equal, seen.shards));
                }
            }
            Err(error) => wrong.push(format!("round {round}: {error:#}")),
        }
        if round % 20 == 0 || round == rounds {
            let failed = stage.callers.failed().len();
            writeln!(out, "{round:4} moved; callers paused {seen_by_callers}; {failed} requests failed")?;
            out.flush()?;
        }
    }
    sleep(QUIET).await;
    if let Some((asked, over)) = undecided {
        seen_by_callers.extend(stage.callers.pauses(asked, over));
    }
    let target = stage.round_trip(0, 1) * 2 + Duration::from_millis(150);
    writeln!(out, "pause by the metadata leader's clock: {measured}")?;
    writeln!(out, "pause seen by callers: {seen_by_callers}; target p99 {} ms", target.as_millis())?;
    wrong.extend(judge(stage, out).await?);
    for sentence in &wrong {
        writeln!(out, "WRONG: {sentence}")?;
    }
    Ok(wrong.is_empty())
}

/// Moves the primary to the other of the first two regions.
async fn switch(stage: &Stage) -> anyhow::Result<Seen> {
    let to = usize::from(stage.primary().await? == 0);
    let spec = SwitchoverSpec {
        to: region_name(to)?,
        buckets: Selection::Named(vec![bucket_name()?]),
        lag_ms_max: 1_000,
        pause_ms_max: 5_000,
        reason: "measuring".to_owned(),
    };
    let asked = Instant::now();
    let mut plan = stage.admin().switchover(&spec, OperationId(rand::random()), false).await?;
    // The proof is complete once the old primary's shards have spoken, too; that may come after the promotion.
    while plan.outcome() == PlanOutcome::UnderWay || equal(&plan) < usize::from(plan.shards) {
        ensure!(asked.elapsed() < PATIENCE, "{} is not over: {:?}", plan.id, plan.moves);
        ensure!(plan.outcome() != PlanOutcome::Restored, "{} was restored: {:?}", plan.id, plan.moves);
        sleep(LOOK_EVERY).await;
        plan = stage.admin().operation(plan.id).await?;
    }
    let pause = plan.moves.iter().filter_map(|it| it.step.pause_ms()).max().unwrap_or_default();
    let (equal, shards) = (equal(&plan), usize::from(plan.shards));
    Ok(Seen { asked, over: Instant::now(), pause: Duration::from_millis(pause), shards, equal })
}

fn equal(plan: &meridian_client::Plan) -> usize {
    let proofs = plan.moves.iter().filter_map(|it| match &it.step {
        meridian_types::Step::Promoted { proof, .. } => Some(proof.equal()),
        _ => None,
    });
    proofs.sum()
}

/// Stops the load; every region equal, every counter as its caller knows it.
pub(super) async fn judge(stage: &mut Stage, out: &mut impl Write) -> anyhow::Result<Vec<String>> {
    let failed = stage.callers.failed();
    writeln!(out, "{} increments acknowledged, {} requests failed", stage.callers.acknowledged(), failed.len())?;
    let mut wrong: Vec<String> =
        failed.into_iter().take(10).map(|error| format!("a request failed: {error}")).collect();
    let books = std::mem::take(&mut stage.callers).stop().await;
    let operator = stage.operator.clone();
    wrong.extend(regions_are_equal(&operator, &[BUCKET], EQUAL_PATIENCE).await.err().unwrap_or_default());
    wrong.extend(counters_are_kept(&stage.planet, &books).await?);
    Ok(wrong)
}
