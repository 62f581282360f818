//! Latencies with nothing else going on: one request at a time per bucket and region.

use std::time::{Duration, Instant};

use futures::future::try_join_all;
use meridian_client::Bucket;

use super::report::LatencyRow;
use super::stage::{Level, Stage};
use crate::bench::Latency;

/// At most so many requests of a kind, at most so long.
const REQUESTS_MAX: u32 = 60;
const TIME_MAX: Duration = Duration::from_secs(6);

/// Bytes of a value, as the project's targets have it.
const VALUE_BYTES: usize = 256;

/// One row per bucket and client region. One kind of request after the other, all rows at once.
pub(super) async fn measure(stage: &Stage) -> anyhow::Result<Vec<LatencyRow>> {
    let mut rows = Vec::new();
    for shelf in 0..stage.shelves.len() {
        let measured = (0..stage.actors.len()).map(|actor| row(stage, shelf, actor));
        rows.extend(try_join_all(measured).await?);
    }
    Ok(rows)
}

async fn row(stage: &Stage, shelf: usize, actor: usize) -> anyhow::Result<LatencyRow> {
    let (description, region) = (&stage.shelves[shelf], &stage.actors[actor].region);
    let bucket = stage.view(shelf, actor, actor, Level::Eventual)?.bucket;
    let key = |n: u32| format!("demo/latency/{region}/{n}");
    let writes = sample(|n| write(&bucket, key(n))).await?;
    let strong =
        if description.policy.has_primary() { Some(sample(|n| read(&bucket, key(n), true)).await?) } else { None };
    let local = sample(|n| read(&bucket, key(n), false)).await?;
    Ok(LatencyRow {
        bucket: description.name.to_string(),
        policy: description.policy.to_string(),
        region: region.to_string(),
        round_trip: stage.round_trip(description, region),
        nearest: nearest(stage, region.as_str()),
        writes,
        strong,
        local,
    })
}

async fn write(bucket: &Bucket, key: String) -> anyhow::Result<()> {
    bucket.put(key, vec![b'm'; VALUE_BYTES]).await?;
    Ok(())
}

async fn read(bucket: &Bucket, key: String, strong: bool) -> anyhow::Result<()> {
    let call = bucket.get(key);
    if strong { call.strong() } else { call.eventual() }.await?;
    Ok(())
}

async fn sample<F: Future<Output = anyhow::Result<()>>>(request: impl Fn(u32) -> F) -> anyhow::Result<Latency> {
    let (mut latency, started) = (Latency::default(), Instant::now());
    for n in 0..REQUESTS_MAX {
        let sent = Instant::now();
        request(n).await?;
        latency.record(sent.elapsed());
        if started.elapsed() > TIME_MAX {
            break;
        }
    }
    Ok(latency)
}

/// The round trip to the nearest other region: what a write that needs a second copy must pay.
fn nearest(stage: &Stage, region: &str) -> Duration {
    let here = stage.actors.iter().find(|actor| actor.region.as_str() == region);
    let others = stage.actors.iter().filter(|actor| actor.region.as_str() != region);
    here.and_then(|here| others.map(|other| stage.plan.distances().round_trip(&here.region, &other.region)).min())
        .unwrap_or_default()
}
