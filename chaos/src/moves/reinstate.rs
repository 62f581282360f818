//! A region that was away for a minute under load, while another took its place: how much its return moves, beside what it
//! lacks and beside a whole copy. It is cut off before it is killed, while writers go on, and so returns with a tail that nobody else has.
//!
//! What it lacks is keys and values written since, and keys of that tail, which are given up. What moves is frames, as they are
//! compressed, and all that repairs receive. Values are random: nothing is gained by compression. Writers go on to the end.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, ensure};
use meridian_client::{Bucket, Client};
use rand::RngCore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::failovers::follows;
use super::forced::{bundles, replace};
use super::stage::{BUCKET, Stage};
use crate::real::{REGIONS, verdict};

/// How long writers write before the region is killed: what need not be moved again.
const BEFORE: Duration = Duration::from_secs(30);

/// How long the region writes what nobody else has: less than its lease lasts.
const CUT_OFF: Duration = Duration::from_secs(2);

/// How long the region is away.
const AWAY: Duration = Duration::from_secs(60);

/// How long any step may take before the run breaks down.
const PATIENCE: Duration = Duration::from_secs(120);

/// The length of every value, in bytes.
const VALUE_BYTES: usize = 256;

/// The most that may be moved, as a multiple of what is lacking.
const RATIO_MAX: f64 = 1.5;

/// What one return moved, in bytes.
struct Return {
    lacking: u64,
    tail: u64,
    frames: u64,
    repairs: u64,
    all: u64,
    took: Duration,
}

impl Return {
    fn ratio(&self) -> f64 {
        (self.frames + self.repairs) as f64 / self.lacking.max(1) as f64
    }
}

/// Loses a region and lets it return, so often; whether no return moved too much.
pub(super) async fn play(stage: &mut Stage, rounds: usize, out: &mut impl Write) -> anyhow::Result<bool> {
    let mut kept = true;
    let mut all = 0;
    for round in 1..=rounds {
        let back = come_back(stage, round, &mut all).await.with_context(|| format!("round {round}"))?;
        let Return { lacking, tail, frames, repairs, all, took } = back;
        writeln!(
            out,
            "round {round}: {lacking} bytes lacking of {all}, and {tail} keys of its own given up; moved {frames} in frames and {repairs} by repairs: {:.2} x what was lacking, {:.2} of a copy, in {:.1} s",
            back.ratio(),
            (frames + repairs) as f64 / all.max(1) as f64,
            took.as_secs_f64()
        )?;
        out.flush()?;
        kept &= back.ratio() <= RATIO_MAX;
    }
    if !kept {
        writeln!(out, "WRONG: more than {RATIO_MAX} x what was lacking was moved")?;
    }
    let equal = verdict::regions_are_equal(&stage.operator, &[BUCKET], PATIENCE).await;
    for sentence in equal.err().unwrap_or_default() {
        writeln!(out, "WRONG: {sentence}")?;
        kept = false;
    }
    Ok(kept)
}

async fn come_back(stage: &mut Stage, round: usize, all: &mut u64) -> anyhow::Result<Return> {
    let lost = stage.primary().await?;
    let survivor = stage.planet.client((lost + 1) % REGIONS.len()).await?;
    let load = Load::start(&stage.planet.client(lost).await?, stage.writers, format!("{round}/before"))?;
    sleep(BEFORE).await;
    stage.isolate(lost);
    sleep(CUT_OFF).await;
    stage.planet.kill(lost)?;
    stage.heal();
    *all += load.stop().await?;
    replace(&survivor).await?;
    let load = Load::start(&survivor, stage.writers, format!("{round}/since"))?;
    sleep(AWAY).await;
    let shipped = frames_to(stage, lost).await?;
    stage.start(lost)?;
    stage.planet.ready(PATIENCE).await?;
    let started = Instant::now();
    while !follows(stage).await {
        ensure!(started.elapsed() < PATIENCE, "the lost region does not follow: {}", stage.planet.log_tail(lost));
        sleep(Duration::from_millis(100)).await;
    }
    let took = started.elapsed();
    let since = load.stop().await?;
    *all += since;
    let (node, kept) = bundles(stage, &survivor, lost).await?;
    let frames = frames_to(stage, lost).await?.saturating_sub(shipped);
    let (mut tail, mut tail_bytes) = (0, 0);
    for bundle in &kept {
        for part in 0..bundle.parts {
            let keys = survivor.admin().salvage_keys(&node, bundle.id, part, false).await?;
            tail += keys.len() as u64;
            tail_bytes += keys.iter().map(|it| it.key.len() as u64).sum::<u64>();
        }
        survivor.admin().drop_salvage(&node, bundle.id, false).await?;
    }
    ensure!(tail > 0, "the lost region had nothing that nobody else had");
    let repairs = stage.admin().repairs().await?;
    let of_lost =
        repairs.into_iter().find(|(of, _)| of.id == node.id).context("the lost region tells of no repairs")?;
    let repairs = of_lost.1?.iter().map(|repair| repair.bytes_moved).sum();
    Ok(Return { lacking: since + tail_bytes, tail, frames, repairs, all: *all, took })
}

/// Bytes of frames shipped to a region so far, by all that run.
async fn frames_to(stage: &Stage, region: usize) -> anyhow::Result<u64> {
    let topology = stage.admin().topology().await?;
    let target = topology.regions.values().find(|it| it.name.as_str() == REGIONS[region]).context("no such region")?.id;
    let lags = stage.admin().lag(None).await?;
    let lanes = lags.iter().filter_map(|region| region.answer.as_ref().ok()).flat_map(|lag| &lag.lanes);
    Ok(lanes.filter(|lane| lane.target == target).map(|lane| lane.wire_bytes).sum())
}

/// Writers, each with one put under way, every key once.
struct Load {
    stop: CancellationToken,
    writers: JoinSet<u64>,
}

impl Load {
    fn start(client: &Client, writers: usize, name: String) -> anyhow::Result<Load> {
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        for writer in 0..writers {
            tasks.spawn(write(client.bucket(BUCKET)?, format!("{name}/{writer}"), stop.clone()));
        }
        Ok(Load { stop, writers: tasks })
    }

    /// Bytes of keys and values that were acknowledged.
    async fn stop(mut self) -> anyhow::Result<u64> {
        self.stop.cancel();
        let mut bytes = 0;
        while let Some(written) = self.writers.join_next().await {
            bytes += written?;
        }
        Ok(bytes)
    }
}

async fn write(bucket: Bucket, name: String, stop: CancellationToken) -> u64 {
    let mut bytes = 0;
    for nth in 0_u64.. {
        let key = format!("{name}/{nth}");
        let mut value = vec![0; VALUE_BYTES];
        rand::rng().fill_bytes(&mut value);
        let put = bucket.put(key.clone(), value).deadline(PATIENCE);
        let answer = tokio::select! {
            answer = put => answer,
            () = stop.cancelled() => break,
        };
        if answer.is_ok() {
            bytes += (key.len() + VALUE_BYTES) as u64;
        }
    }
    bytes
}
