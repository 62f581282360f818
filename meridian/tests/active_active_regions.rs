//! A region leaves a bucket that all regions write, and joins it again, twice, under load from everywhere, through kills (kill -9) while it
//! is filled and while the others meet, and with a region that is away: no acknowledged write is lost, none counts twice, and all regions
//! end equal (ONE-1, CON-4, CON-5; docs/adr/2026-11-28-active-active-region-sets.md). Real processes.

use std::path::Path;
use std::time::{Duration, Instant};

use chaos::real::{Planet, REGIONS, changes, load};
use meridian_client::Client;
use meridian_types::{Bucket, BucketChange, Cross, Policy, RegionChange, RegionId, RegionName};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(120);
const NAME: &str = "everywhere";
/// The region that leaves and joins.
const THIRD: usize = 2;
/// How long the load goes on between two changes.
const BETWEEN: Duration = Duration::from_millis(700);
/// Longer than a restart takes.
const LONG_MS: u64 = 60_000;
const POLICY: Policy = Policy::ActiveActive;
/// How often a region is killed until that is before it has joined.
const TRIES: usize = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_leaves_where_all_write_and_joins_again_under_load_and_through_crashes_without_losing_a_write()
-> anyhow::Result<()> {
    let dir = tempfile::Builder::new().prefix("meridian-active-active-regions").tempdir()?;
    let mut planet = Planet::create(Path::new(env!("CARGO_BIN_EXE_meridian")), dir.path())?;
    for node in 0..REGIONS.len() {
        planet.start(node)?;
    }
    planet.ready(PATIENCE).await?;
    planet.create_bucket(NAME, POLICY).await?;
    let client = planet.client(0).await?;
    let third = RegionName::new(REGIONS[THIRD])?;
    let topology = client.admin().topology().await?;
    let id = topology.region_named(third.as_str()).map(|region| region.id).unwrap_or_default();
    let stop = CancellationToken::new();
    let writers = load_from_everywhere(&planet, &stop).await?;
    let bucket = client.bucket(NAME)?;
    bucket.put("gone", "1").await?;
    // From the region that leaves: it stays an actor of the counter.
    let there = planet.client(THIRD).await?.bucket(NAME)?;
    there.increment("count", 5).await?;
    tokio::time::sleep(BETWEEN).await;

    planet.kill(THIRD)?;
    set(&client, RegionChange::Remove(third.clone()), 1500).await?;
    let back = until(&client, "it is given up, the region being away", |it| it.crossing.is_none()).await?;
    anyhow::ensure!(back.is_in(id) && back.epoch.0 == 1, "{back:?}");
    planet.start(THIRD)?;
    planet.ready(PATIENCE).await?;
    let left = leaves(&client, &third, id).await?;
    anyhow::ensure!(left.epoch.0 == 2, "{left:?}");
    bucket.delete("gone").await?;
    tokio::time::sleep(BETWEEN).await;

    let left = killed_while_it_joins((&mut planet, &client), &third, id).await?;
    planet.start(THIRD)?;
    planet.ready(PATIENCE).await?;
    let joined = until(&client, "it writes again, through a crash", |it| it.is_in(id)).await?;
    let epoch = left.epoch.0 + 2;
    anyhow::ensure!(joined.epoch.0 == epoch && joined.crossing.is_none() && joined.joins.now.is_none(), "{joined:?}");
    there.increment("count", 2).await?;
    tokio::time::sleep(BETWEEN).await;

    // Once more, at once, while another region crashes.
    set(&client, RegionChange::Remove(third.clone()), LONG_MS).await?;
    planet.kill(1)?;
    planet.start(1)?;
    planet.ready(PATIENCE).await?;
    until(&client, "it has left through a crash of another one", |it| it.crossing.is_none() && !it.is_in(id)).await?;
    set(&client, RegionChange::Add(third), LONG_MS).await?;
    until(&client, "it writes again", |it| it.is_in(id)).await?;
    tokio::time::sleep(BETWEEN).await;
    changes::until_loaded((&client, NAME), 0..2 * REGIONS.len(), PATIENCE).await?;
    stop.cancel();

    let kept = changes::everything_is_kept((&client, NAME), writers, PATIENCE).await?;
    for (node, region) in REGIONS.iter().enumerate() {
        let here = planet.client(node).await?.bucket(NAME)?;
        anyhow::ensure!(text(&here, "gone").await?.is_none(), "CON-5 in {region}");
        anyhow::ensure!(text(&here, "count").await?.as_deref() == Some("7"), "in {region}");
    }
    anyhow::ensure!(kept.puts > 50 && kept.increments > 50, "only {kept:?} were acknowledged");
    eprintln!("4 changes and one given up: {kept:?}");
    Ok(())
}

async fn leaves(client: &Client, region: &RegionName, id: RegionId) -> anyhow::Result<Bucket> {
    set(client, RegionChange::Remove(region.clone()), LONG_MS).await?;
    let left = until(client, "the third region has left", |it| it.crossing.is_none()).await?;
    anyhow::ensure!(!left.is_in(id), "{left:?}");
    until_gone(client, id).await?;
    Ok(left)
}

/// Has the region join and kills it on its way; the bucket as it was before. A region that had everything before it was killed begins anew.
async fn killed_while_it_joins(
    (planet, client): (&mut Planet, &Client),
    region: &RegionName,
    id: RegionId,
) -> anyhow::Result<Bucket> {
    for _ in 0..TRIES {
        let before = changes::bucket(client, NAME).await?;
        set(client, RegionChange::Add(region.clone()), LONG_MS).await?;
        until(client, "it joins", |it| it.joins.joining() == Some(id) || it.is_in(id)).await?;
        planet.kill(THIRD)?;
        tokio::time::sleep(BETWEEN).await;
        if !changes::bucket(client, NAME).await?.is_in(id) {
            return Ok(before);
        }
        planet.start(THIRD)?;
        planet.ready(PATIENCE).await?;
        until(client, "it writes, not being killed in time", |it| it.crossing.is_none()).await?;
        leaves(client, region, id).await?;
    }
    anyhow::bail!("who is away does not count")
}

/// Two writers in each region.
async fn load_from_everywhere(
    planet: &Planet,
    stop: &CancellationToken,
) -> anyhow::Result<Vec<JoinHandle<load::Ledger>>> {
    let mut writers = Vec::new();
    for node in 0..REGIONS.len() {
        let client = planet.client(node).await?;
        for writer in [2 * node, 2 * node + 1] {
            writers.push(tokio::spawn(load::write(client.bucket(NAME)?, POLICY, writer, stop.clone())));
        }
    }
    Ok(writers)
}

async fn text(bucket: &meridian_client::Bucket, key: &str) -> anyhow::Result<Option<String>> {
    let got = bucket.get(key.to_owned()).eventual().await?;
    Ok(got.value().map(|value| String::from_utf8_lossy(value).into_owned()))
}

/// Rehearses a change, and begins it.
async fn set(client: &Client, regions: RegionChange, pause_ms_max: u64) -> anyhow::Result<()> {
    let cross = Some(Cross { primary: None, pause_ms_max });
    let change = BucketChange { regions: Some(regions), cross, ..BucketChange::default() };
    changes::set((client, NAME), &change, PATIENCE).await.map(drop)
}

async fn until(client: &Client, what: &str, holds: impl Fn(&Bucket) -> bool) -> anyhow::Result<Bucket> {
    changes::until((client, NAME), (Instant::now(), PATIENCE), what, holds).await
}

/// Waits until the region has nothing of the bucket any more.
async fn until_gone(client: &Client, region: RegionId) -> anyhow::Result<()> {
    changes::until_gone((client, NAME), region, PATIENCE).await
}
