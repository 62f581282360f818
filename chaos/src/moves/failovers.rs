//! Automatic failovers, one after another: the primary's whole region is killed under load, its successor serves, it returns
//! as a replica. How long nobody was answered, and that nothing is missing (DUR-2, FEN-1, SWI-3).

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, ensure};
use meridian_types::LaneState;
use tokio::time::{Instant, sleep};

use super::figures::Durations;
use super::stage::Stage;
use super::switchovers::judge;

/// Quiet before each: callers are back at their usual pace.
const QUIET: Duration = Duration::from_secs(1);

/// What was under way when the region died is acknowledged within this, by replica regions that have it.
const AFTERGLOW: Duration = Duration::from_millis(500);

/// How long a failover, or a return, may take before the run breaks down.
const PATIENCE: Duration = Duration::from_secs(120);

/// The lease, and what noticing and promoting may take besides.
const TARGET: Duration = Duration::from_secs(5 + 3);

/// Kills the primary's region so often; whether every promise was kept.
pub(super) async fn play(stage: &mut Stage, rounds: usize, out: &mut impl Write) -> anyhow::Result<bool> {
    let (mut outages, mut returns, mut wrong) = (Durations::default(), Durations::default(), Vec::new());
    for round in 1..=rounds {
        sleep(QUIET).await;
        let lost = stage.primary().await?;
        let (outage, returned) = lose(stage, lost).await.with_context(|| format!("round {round}"))?;
        if outage > TARGET {
            wrong.push(format!("round {round}: the first write came {:.1} s after the loss", outage.as_secs_f64()));
        }
        outages.add(outage);
        returns.add(returned);
        if round % 5 == 0 || round == rounds {
            let failed = stage.callers.failed().len();
            writeln!(out, "{round:4} lost and replaced; until the first write {outages}; {failed} requests failed")?;
            out.flush()?;
        }
    }
    writeln!(out, "from the loss to the first acknowledged write: {outages}; target {} s", TARGET.as_secs())?;
    writeln!(out, "from the start of the lost region to a replica that follows: {returns}")?;
    wrong.extend(judge(stage, out).await?);
    for sentence in &wrong {
        writeln!(out, "WRONG: {sentence}")?;
    }
    Ok(wrong.is_empty())
}

/// One loss and return: how long until the first write, and how long until the region follows.
async fn lose(stage: &mut Stage, lost: usize) -> anyhow::Result<(Duration, Duration)> {
    stage.planet.kill(lost)?;
    let killed = Instant::now();
    let outage = loop {
        if let Some(first) = stage.callers.first_after(killed + AFTERGLOW) {
            break first - killed;
        }
        ensure!(killed.elapsed() < PATIENCE, "nobody was answered for {} s", PATIENCE.as_secs());
        sleep(Duration::from_millis(10)).await;
    };
    sleep(QUIET).await;
    ensure!(stage.primary().await? != lost, "the lost region is still the primary");
    let started = Instant::now();
    stage.start(lost)?;
    stage.planet.ready(PATIENCE).await?;
    while !follows(stage).await {
        ensure!(started.elapsed() < PATIENCE, "the lost region does not follow: {}", stage.planet.log_tail(lost));
        sleep(Duration::from_millis(100)).await;
    }
    Ok((outage, started.elapsed()))
}

/// Whether every lane streams and no replica is being repaired.
pub(super) async fn follows(stage: &Stage) -> bool {
    let admin = stage.admin();
    let (Ok(lags), Ok(repairs)) = (admin.lag(None).await, admin.repairs().await) else { return false };
    let streams = lags.iter().all(|region| {
        region.answer.as_ref().is_ok_and(|lag| lag.lanes.iter().all(|lane| lane.state == LaneState::Streaming))
    });
    streams && repairs.iter().all(|(_, answer)| answer.as_ref().is_ok_and(|all| all.iter().all(|it| it.done)))
}
