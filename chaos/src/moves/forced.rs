//! Forced failovers of an `async` bucket, one after another: what was lost is no more than was estimated, and is in the old
//! primary's bundles key for key; what nobody touched since is written back, the rest is left (SWI-2).

use std::collections::BTreeSet;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, ensure};
use meridian_client::{Bucket, Client, OperationId, PlanOutcome, Selection};
use meridian_types::{FailoverSpec, Node, ReplayPolicy, SalvageBundle};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::figures::Durations;
use super::stage::{BUCKET, Stage, bucket_name};
use crate::real::{REGIONS, verdict};

/// How long writers write before their region is killed.
const LOAD: Duration = Duration::from_secs(2);

/// How long any step may take before the run breaks down.
const PATIENCE: Duration = Duration::from_secs(120);

/// Keys asked for at a time.
const KEYS_AT_ONCE: usize = 500;

/// What the rounds came to.
#[derive(Default)]
struct Sums {
    lost: usize,
    acknowledged: usize,
    /// What was lost, and what was estimated, where most was lost.
    worst: (u64, u64),
    restored: u64,
    left: u64,
    estimates: Durations,
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
        sums.acknowledged, sums.lost, sums.worst.0, sums.worst.1, sums.restored, sums.left
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
    wrong.extend(write_back(stage, &survivor, lost_region, (&missing, &lost, &touched), sums).await?);
    Ok(wrong)
}

/// What writers know.
#[derive(Default)]
struct Written {
    tried: BTreeSet<String>,
    acknowledged: BTreeSet<String>,
}

/// Writes keys of this round, each once, until the region is killed in the middle of it.
async fn load(stage: &mut Stage, region: usize, round: usize) -> anyhow::Result<Written> {
    let (stop, mut writers) = (CancellationToken::new(), JoinSet::new());
    let client = stage.planet.client(region).await?;
    for writer in 0..stage.writers {
        writers.spawn(write(client.bucket(BUCKET)?, format!("{round}/{writer}"), stop.clone()));
    }
    sleep(LOAD).await;
    stage.planet.kill(region)?;
    stop.cancel();
    let mut all = Written::default();
    while let Some(written) = writers.join_next().await {
        let written = written?;
        all.tried.extend(written.tried);
        all.acknowledged.extend(written.acknowledged);
    }
    Ok(all)
}

async fn write(bucket: Bucket, name: String, stop: CancellationToken) -> Written {
    let mut written = Written::default();
    for nth in 0_u64.. {
        let key = format!("{name}/{nth}");
        written.tried.insert(key.clone());
        let put = bucket.put(key.clone(), key.clone()).deadline(PATIENCE);
        let answer = tokio::select! {
            answer = put => answer,
            () = stop.cancelled() => break,
        };
        if answer.is_ok() {
            written.acknowledged.insert(key);
        }
    }
    written
}

/// Estimates and replaces the lost primary; how many operations may be missing at the most, and how long it took to say so.
pub(super) async fn replace(survivor: &Client) -> anyhow::Result<(u64, Duration)> {
    let buckets = Selection::Named(vec![bucket_name()?]);
    let began = Instant::now();
    let estimate = survivor.admin().failover_estimate(&buckets, None).await?;
    let took = began.elapsed();
    ensure!(!estimate.lost().unbounded, "the bucket has a ceiling, and its loss is said to have none");
    let estimated = estimate.lost().operations;
    let spec =
        FailoverSpec { buckets, to: None, consent: estimate.consent, automatic: false, reason: "lost".to_owned() };
    let mut plan = survivor.admin().failover(&spec, OperationId(rand::random()), false).await?;
    while plan.outcome() == PlanOutcome::UnderWay {
        ensure!(began.elapsed() < PATIENCE, "{} is not over: {:?}", plan.id, plan.moves);
        sleep(Duration::from_millis(50)).await;
        plan = survivor.admin().operation(plan.id).await?;
    }
    ensure!(plan.outcome() == PlanOutcome::Done, "{} came to nothing: {:?}", plan.id, plan.moves);
    Ok((estimated, took))
}

/// Which of these keys the bucket lacks.
async fn missing(bucket: &Bucket, keys: &BTreeSet<String>) -> anyhow::Result<BTreeSet<String>> {
    let keys: Vec<&String> = keys.iter().collect();
    let mut missing = BTreeSet::new();
    for keys in keys.chunks(KEYS_AT_ONCE) {
        let found = bucket.multi_get(keys.iter().map(|key| key.as_str())).deadline(PATIENCE).await?.found;
        missing.extend(keys.iter().zip(found).filter(|(_, found)| found.is_none()).map(|(key, _)| (*key).clone()));
    }
    Ok(missing)
}

/// Waits for the bundles of the lost region, compares them with what is missing, and replays them.
async fn write_back(
    stage: &Stage,
    survivor: &Client,
    region: usize,
    (missing, lost, touched): (&BTreeSet<String>, &BTreeSet<String>, &BTreeSet<String>),
    sums: &mut Sums,
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
            sums.restored += report.restored;
            sums.left += report.changed;
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
