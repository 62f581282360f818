//! A bucket goes from one writing region to all of them and back, twice, under load, through kills (kill -9) on the way and with a
//! region that is away: no acknowledged write is lost, none counts twice, and all regions end equal
//! (ONE-1, CON-4, CON-5, DUR-2; docs/adr/2026-11-28-active-active-changes.md). Real processes.

use std::path::Path;
use std::time::{Duration, Instant};

use chaos::real::{Planet, REGIONS, changes, load};
use meridian_client::Client;
use meridian_types::{Acks, Bucket, BucketChange, Cross, Policy, RegionName};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(120);
const NAME: &str = "crossing";
/// How long the load goes on between two changes.
const BETWEEN: Duration = Duration::from_millis(700);
/// Longer than a restart takes.
const LONG_MS: u64 = 60_000;
const OPEN: Policy = Policy::ActiveActive;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_is_written_everywhere_and_in_one_region_again_under_load_without_losing_a_write() -> anyhow::Result<()>
{
    let dir = tempfile::Builder::new().prefix("meridian-active-active-change").tempdir()?;
    let mut planet = Planet::create(Path::new(env!("CARGO_BIN_EXE_meridian")), dir.path())?;
    for node in 0..REGIONS.len() {
        planet.start(node)?;
    }
    planet.ready(PATIENCE).await?;
    planet.create_bucket(NAME, Policy::ASYNC).await?;
    let client = planet.client(0).await?;
    let stop = CancellationToken::new();
    let mut writers = load_from_everywhere(&planet, 0, &stop).await?;
    let bucket = client.bucket(NAME)?;
    bucket.put("value", "first").await?;
    bucket.increment("number", 5).await?;
    bucket.put("gone", "1").await?;
    bucket.delete("gone").await?;
    tokio::time::sleep(BETWEEN).await;

    set(&client, OPEN, None, LONG_MS).await?;
    let opened = until(&client, "every region writes", |it| it.primary.is_none()).await?;
    anyhow::ensure!(opened.epoch.0 == 2 && opened.crossing.is_none(), "{opened:?}");
    // Counters that are born where every region counts.
    writers.extend(load_from_everywhere(&planet, 100, &stop).await?);
    let everywhere = planet.client(1).await?.bucket(NAME)?;
    anyhow::ensure!(everywhere.increment("number", 1).await?.value == 6, "a number counts on in any region");
    everywhere.put("value", "second").await?;
    tokio::time::sleep(BETWEEN).await;

    planet.kill(2)?;
    set(&client, Policy::sync(Acks::Majority), Some(1), 1500).await?;
    let back = until(&client, "it is given up, a region being away", |it| it.crossing.is_none()).await?;
    anyhow::ensure!(back.primary.is_none() && back.epoch == opened.epoch, "{back:?}");
    bucket.put("meanwhile", "written").await?;
    planet.start(2)?;
    planet.ready(PATIENCE).await?;

    set(&client, Policy::sync(Acks::Majority), Some(1), LONG_MS).await?;
    planet.kill(2)?;
    planet.start(2)?;
    planet.ready(PATIENCE).await?;
    let closed = until(&client, "one region writes, through a crash", |it| it.crossing.is_none()).await?;
    anyhow::ensure!(closed.primary.is_some() && closed.epoch.0 == 3, "{closed:?}");
    until(&client, "its copies count", |it| it.standing.is_sync() && !it.is_turning()).await?;
    anyhow::ensure!(bucket.increment("number", 2).await?.value == 8, "a number goes on");
    tokio::time::sleep(BETWEEN).await;

    set(&client, OPEN, None, LONG_MS).await?;
    planet.kill(1)?;
    planet.start(1)?;
    planet.ready(PATIENCE).await?;
    until(&client, "every region writes again, through a crash of the primary", |it| it.primary.is_none()).await?;
    tokio::time::sleep(BETWEEN).await;
    set(&client, Policy::ASYNC, Some(0), LONG_MS).await?;
    until(&client, "one region writes again", |it| it.primary.is_some() && it.crossing.is_none()).await?;
    tokio::time::sleep(BETWEEN).await;
    changes::until_loaded((&client, NAME), 0..2 * REGIONS.len(), PATIENCE).await?;
    stop.cancel();

    let kept = changes::everything_is_kept((&client, NAME), writers, PATIENCE).await?;
    anyhow::ensure!(text(&bucket, "value").await?.as_deref() == Some("second"));
    anyhow::ensure!(text(&bucket, "number").await?.as_deref() == Some("8"));
    anyhow::ensure!(text(&bucket, "meanwhile").await?.as_deref() == Some("written"));
    anyhow::ensure!(text(&bucket, "gone").await?.is_none());
    anyhow::ensure!(kept.puts > 50 && kept.increments > 50, "only {kept:?} were acknowledged");
    eprintln!("4 crossings: {kept:?}");
    Ok(())
}

/// Two writers in each region.
async fn load_from_everywhere(
    planet: &Planet,
    first: usize,
    stop: &CancellationToken,
) -> anyhow::Result<Vec<JoinHandle<load::Ledger>>> {
    let mut writers = Vec::new();
    for node in 0..REGIONS.len() {
        let client = planet.client(node).await?;
        for writer in [first + 2 * node, first + 2 * node + 1] {
            writers.push(tokio::spawn(load::write(client.bucket(NAME)?, OPEN, writer, stop.clone())));
        }
    }
    Ok(writers)
}

async fn text(bucket: &meridian_client::Bucket, key: &str) -> anyhow::Result<Option<String>> {
    let got = bucket.get(key.to_owned()).await?;
    Ok(got.value().map(|value| String::from_utf8_lossy(value).into_owned()))
}

/// Rehearses a change, and begins it.
async fn set(client: &Client, policy: Policy, primary: Option<usize>, pause_ms_max: u64) -> anyhow::Result<()> {
    let primary = primary.map(|it| RegionName::new(REGIONS[it])).transpose()?;
    let cross = Some(Cross { primary, pause_ms_max });
    let change = BucketChange { policy: Some(policy), cross, ..BucketChange::default() };
    changes::set((client, NAME), &change, PATIENCE).await.map(drop)
}

async fn until(client: &Client, what: &str, holds: impl Fn(&Bucket) -> bool) -> anyhow::Result<Bucket> {
    changes::until((client, NAME), (Instant::now(), PATIENCE), what, holds).await
}
