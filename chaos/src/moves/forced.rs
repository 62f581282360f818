//! Forced failovers of an `async` bucket, one after another: what was lost is no more than was estimated, and is in the old
//! primary's bundles key for key; what nobody touched since is written back, the rest is left (SWI-2).

use std::collections::BTreeSet;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, ensure};
use meridian_client::{Client, OperationId, PlanOutcome, Selection};
use meridian_types::{Consent, FailoverSpec, Node, Plan, ReplayPolicy, SalvageBundle};
use tokio::time::{Instant, sleep};

use super::figures::Durations;
use super::stage::{BUCKET, Stage, bucket_name};
use super::writers::{Writers, Written, missing};
use crate::real::{REGIONS, verdict};

/// How long writers write before their region is killed.
const LOAD: Duration = Duration::from_secs(2);

/// How long any step may take before the run breaks down.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the rounds came to.
#[derive(Default)]
struct Sums {
    lost: usize,
    acknowledged: usize,
    /// What was lost, and what was estimated, where most was lost.
    worst: (u64, u64),
    back: Back,
    estimates: Durations,
}

/// What came of kept keys.
#[derive(Default)]
pub(super) struct Back {
    /// Written back.
    pub(super) restored: u64,
    /// Left as they were written since.
    pub(super) left: u64,
}

/// Loses an unshipped tail so often; whether every promise was kept.
pub(super) async fn play(stage: &mut Stage, rounds: usize, out: &mut impl Write) -> anyhow::Result<bool> {
    let (mut sums, mut wrong) = (Sums::default(), Vec::new());
    for round in 1..=rounds {
        let found = lose(stage, round, &mut sums).await.with_context(|| format!("round {round}"))?;
        wrong.extend(found.into_iter().map(|sentence| format!("round {round}: {sentence}")));
        if round % 5 == 0 || round == rounds {
            writeln!(out, "{round:4} forced; {} keys lost, {} things wrong", sums.lost, wrong.len())?;
            out.flush()?;
        }
    }
    writeln!(
        out,
        "{rounds} forced failovers: {} writes acknowledged, {} keys lost, {} in the worst round, where at most {} were estimated; {} written back, {} left as they were written since",
        sums.acknowledged, sums.lost, sums.worst.0, sums.worst.1, sums.back.restored, sums.back.left
    )?;
    writeln!(out, "an estimate takes: {}", sums.estimates)?;
    let equal = verdict::regions_are_equal(&stage.operator, &[BUCKET], PATIENCE).await;
    wrong.extend(equal.err().unwrap_or_default());
    for sentence in &wrong {
        writeln!(out, "WRONG: {sentence}")?;
    }
    Ok(wrong.is_empty())
}

/// One round; what was wrong in it.
async fn lose(stage: &mut Stage, round: usize, sums: &mut Sums) -> anyhow::Result<Vec<String>> {
    let lost_region = stage.primary().await?;
    let survivor = stage.planet.client((lost_region + 1) % REGIONS.len()).await?;
    let written = load(stage, lost_region, round).await?;
    let mut wrong = Vec::new();
    let (estimated, took) = replace(&survivor).await?;
    sums.estimates.add(took);
    let bucket = survivor.bucket(BUCKET)?;
    let missing = missing(&bucket, &written.tried).await?;
    let lost: BTreeSet<String> = missing.intersection(&written.acknowledged).cloned().collect();
    (sums.lost, sums.acknowledged) = (sums.lost + lost.len(), sums.acknowledged + written.acknowledged.len());
    sums.worst = sums.worst.max((lost.len() as u64, estimated));
    if lost.len() as u64 > estimated {
        wrong.push(format!("{} acknowledged writes are lost, at most {estimated} were estimated", lost.len()));
    }
    // Some keys are written again before the lost ones come back.
    let touched: BTreeSet<String> = missing.iter().step_by(3).cloned().collect();
    for key in &touched {
        bucket.put(key.as_str(), "since").deadline(PATIENCE).await?;
    }
    stage.start(lost_region)?;
    stage.planet.ready(PATIENCE).await?;
    wrong.extend(write_back(stage, &survivor, lost_region, (&missing, &lost, &touched), &mut sums.back).await?);
    Ok(wrong)
}

/// Writes keys of this round, each once, until the region is killed in the middle of it.
async fn load(stage: &mut Stage, region: usize, round: usize) -> anyhow::Result<Written> {
    let writers = Writers::start(&stage.planet.client(region).await?, stage.writers, &round.to_string())?;
    sleep(LOAD).await;
    stage.planet.kill(region)?;
    writers.stop().await
}

/// Estimates and replaces the lost primary; how many operations may be missing at the most, and how long it took to say so.
pub(super) async fn replace(survivor: &Client) -> anyhow::Result<(u64, Duration)> {
    let buckets = Selection::Named(vec![bucket_name()?]);
    let began = Instant::now();
    let estimate = survivor.admin().failover_estimate(&buckets, None).await?;
    let took = began.elapsed();
    ensure!(!estimate.lost().unbounded, "the bucket has a ceiling, and its loss is said to have none");
    let estimated = estimate.lost().operations;
    fail_over(survivor, estimate.consent).await?;
    Ok((estimated, took))
}

/// Replaces the lost primary by whoever has most; what it came to.
pub(super) async fn fail_over(survivor: &Client, consent: Option<Consent>) -> anyhow::Result<Plan> {
    let buckets = Selection::Named(vec![bucket_name()?]);
    let began = Instant::now();
    let spec = FailoverSpec { buckets, to: None, consent, automatic: false, reason: "lost".to_owned() };
    let operation = OperationId(rand::random());
    let mut plan = loop {
        match survivor.admin().failover(&spec, operation, false).await {
            Ok(plan) => break plan,
            // A metadata plane that has just lost a member, and elects.
            Err(why) if why.is_retryable() && began.elapsed() < PATIENCE => sleep(Duration::from_millis(50)).await,
            Err(why) => return Err(why.into()),
        }
    };
    while plan.outcome() == PlanOutcome::UnderWay {
        ensure!(began.elapsed() < PATIENCE, "{} is not over: {:?}", plan.id, plan.moves);
        sleep(Duration::from_millis(50)).await;
        plan = survivor.admin().operation(plan.id).await?;
    }
    ensure!(plan.outcome() == PlanOutcome::Done, "{} came to nothing: {:?}", plan.id, plan.moves);
    Ok(plan)
}

/// Waits for the bundles of the lost region, compares them with what is missing, and replays them.
pub(super) async fn write_back(
    stage: &Stage,
    survivor: &Client,
    region: usize,
    (missing, lost, touched): (&BTreeSet<String>, &BTreeSet<String>, &BTreeSet<String>),
    back: &mut Back,
) -> anyhow::Result<Vec<String>> {
    let mut wrong = Vec::new();
    let (node, bundles) = bundles(stage, survivor, region).await?;
    let mut kept = BTreeSet::new();
    for bundle in &bundles {
        for part in 0..bundle.parts {
            let keys = survivor.admin().salvage_keys(&node, bundle.id, part, false).await?;
            kept.extend(keys.into_iter().map(|it| String::from_utf8_lossy(&it.key).into_owned()));
        }
    }
    // What was tried and never ordered is missing, too, and nobody has it.
    if let Some(key) = kept.difference(missing).next() {
        wrong.push(format!("`{key}` was kept although the winner had it"));
    }
    if let Some(key) = lost.difference(&kept).next() {
        wrong.push(format!("`{key}` was acknowledged, is lost, and was not kept"));
    }
    for bundle in &bundles {
        for part in 0..bundle.parts {
            let report = survivor.admin().replay(&node, bundle.id, part, ReplayPolicy::IfUnchanged, false).await?;
            back.restored += report.restored;
            back.left += report.changed;
            if report.unknown + report.failed > 0 {
                wrong.push(format!("of bundle {} it can't be told, or failed: {report:?}", bundle.id));
            }
        }
        survivor.admin().drop_salvage(&node, bundle.id, false).await?;
    }
    let bucket = survivor.bucket(BUCKET)?;
    for key in &kept {
        let value = bucket.get(key.as_str()).deadline(PATIENCE).await?.into_value().unwrap_or_default();
        let right = if touched.contains(key) { "since" } else { key.as_str() };
        if value != right.as_bytes() {
            wrong.push(format!("`{key}` is `{}`, not `{right}`", String::from_utf8_lossy(&value)));
        }
    }
    Ok(wrong)
}

/// The bundles on the node of a region, once it has repaired itself.
pub(super) async fn bundles(
    stage: &Stage,
    survivor: &Client,
    region: usize,
) -> anyhow::Result<(Node, Vec<SalvageBundle>)> {
    let began = Instant::now();
    loop {
        ensure!(began.elapsed() < PATIENCE, "no replica that follows: {}", stage.planet.log_tail(region));
        sleep(Duration::from_millis(250)).await;
        if verdict::regions_are_equal(survivor, &[BUCKET], Duration::ZERO).await.is_err() {
            continue;
        }
        for (node, answer) in survivor.admin().salvages().await? {
            if node.name.as_str() == format!("{}-1", REGIONS[region]) {
                return Ok((node, answer?));
            }
        }
    }
}
