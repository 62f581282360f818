//! Writing the same keys of the active-active bucket from every region at the same time (CON-4).

use anyhow::Context;
use futures::future::try_join_all;
use futures::stream::{self, StreamExt, TryStreamExt};
use meridian_client::Bucket;

use super::report::{Concurrent, Report};
use super::stage::{Level, Stage};
use crate::output::{count, note};

/// Keys that every region writes, and how often.
const KEYS: u32 = 8;
const ROUNDS: u32 = 40;

/// Requests of one region in flight.
const IN_FLIGHT_MAX: usize = 16;

/// Every region sets the same registers and counts on the same counters.
pub(super) async fn write_everywhere(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let Some(shelf) = active_active(stage) else { return Ok(()) };
    let writers = stage.actors.iter().enumerate().map(|(actor, who)| async move {
        let bucket = stage.view(shelf, actor, actor, Level::Eventual)?.bucket;
        write(&bucket, who.region.as_str()).await.with_context(|| format!("writing from {}", who.region))
    });
    try_join_all(writers).await?;
    let writes = u64::from(KEYS * ROUNDS * 2) * stage.actors.len() as u64;
    note(&format!("{} concurrent writes to {KEYS} registers and {KEYS} counters from every region", count(writes)));
    report.concurrent = Some(Concurrent { writes, registers_agree: false, counters_exact: false });
    Ok(())
}

async fn write(bucket: &Bucket, region: &str) -> anyhow::Result<()> {
    let rounds = (0..ROUNDS).flat_map(|round| (0..KEYS).map(move |key| (round, key)));
    let writes = stream::iter(rounds).map(|(round, key)| async move {
        bucket.put(register(key), format!("{region} in round {round}")).await?;
        bucket.increment(counter(key), 1).await?;
        anyhow::Ok(())
    });
    writes.buffer_unordered(IN_FLIGHT_MAX).try_collect().await
}

/// After everybody has seen everything: registers must agree, counters must be exact.
pub(super) async fn check(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let (Some(shelf), Some(mut concurrent)) = (active_active(stage), report.concurrent.take()) else { return Ok(()) };
    (concurrent.registers_agree, concurrent.counters_exact) = (true, true);
    let expected = (ROUNDS * u32::try_from(stage.actors.len())?).to_string();
    for key in 0..KEYS {
        let mut registers = Vec::new();
        for actor in 0..stage.actors.len() {
            let bucket = stage.view(shelf, actor, actor, Level::Eventual)?.bucket;
            registers.push(bucket.get(register(key)).eventual().await?.into_value());
            let counted = bucket.get(counter(key)).eventual().await?.into_value();
            if counted.as_deref() != Some(expected.as_bytes()) {
                concurrent.counters_exact = false;
                report.findings.push(format!(
                    "{} in {}: {counted:?} instead of {expected}",
                    counter(key),
                    stage.actors[actor].region
                ));
            }
        }
        if registers[0].is_none() || registers.iter().any(|value| *value != registers[0]) {
            concurrent.registers_agree = false;
            report.findings.push(format!("{}: the regions read {registers:?}", register(key)));
        }
    }
    report.concurrent = Some(concurrent);
    Ok(())
}

fn active_active(stage: &Stage) -> Option<usize> {
    stage.shelves.iter().position(|shelf| !shelf.policy.has_primary())
}

fn register(key: u32) -> String {
    format!("demo/register/{key}")
}

fn counter(key: u32) -> String {
    format!("demo/counter/{key}")
}
