//! A region leaves a bucket and joins it again, twice, under load and through a kill -9 while it is filled: it counts only when it has
//! everything, drops what it has when it leaves, no acknowledged write is lost, and all regions end equal (DUR-2, ORD-1, CON-5;
//! docs/adr/2026-11-28-region-sets.md). Real processes.

use std::path::Path;
use std::time::{Duration, Instant};

use chaos::real::{Planet, REGIONS, changes, load};
use meridian_client::Client;
use meridian_types::{Acks, Bucket, BucketChange, BucketName, Policy, RegionChange, RegionId, RegionName};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(120);
const NAME: &str = "moving";
const WRITERS: usize = 6;
/// A region that is not the primary.
const THIRD: usize = 2;
/// How long the load goes on between two changes.
const BETWEEN: Duration = Duration::from_millis(700);
const POLICY: Policy = Policy::sync(Acks::Majority);
/// How often a region is killed until that is before it has joined.
const TRIES: usize = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_leaves_and_joins_again_under_load_and_through_a_crash_without_losing_a_write() -> anyhow::Result<()> {
    let dir = tempfile::Builder::new().prefix("meridian-region-sets").tempdir()?;
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
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        writers.push(tokio::spawn(load::write(client.bucket(NAME)?, POLICY, writer, stop.clone())));
    }

    tokio::time::sleep(BETWEEN).await;
    let refused =
        client.admin().set_bucket(&BucketName::new(NAME)?, &change(RegionChange::Remove(primary()?)), true).await;
    anyhow::ensure!(refused.is_err_and(|why| why.to_string().contains("switchover")), "the primary is moved first");
    let removed = set(&client, RegionChange::Remove(third.clone())).await?;
    until(&client, removed, "it is SYNC without the third region", |it| it.standing.is_sync() && !it.is_in(id)).await?;
    until_gone(&client, id).await?;
    tokio::time::sleep(BETWEEN).await;

    let added = killed_while_it_joins((&mut planet, &client), &third, id).await?;
    planet.start(THIRD)?;
    planet.ready(PATIENCE).await?;
    until(&client, added, "it has joined through a crash", |it| it.is_in(id)).await?;
    tokio::time::sleep(BETWEEN).await;

    set(&client, RegionChange::Remove(third.clone())).await?;
    let added = set(&client, RegionChange::Add(third)).await?;
    until(&client, added, "it has joined again", |it| it.is_in(id) && it.standing.is_sync()).await?;
    tokio::time::sleep(BETWEEN).await;
    changes::until_loaded((&client, NAME), 0..WRITERS, PATIENCE).await?;
    stop.cancel();

    let kept = changes::everything_is_kept((&client, NAME), writers, PATIENCE).await?;
    anyhow::ensure!(kept.puts > 50, "only {kept:?} were acknowledged");
    eprintln!("4 changes: {kept:?}");
    Ok(())
}

/// Adds the region and kills it on its way; when it was added. One that was filled before it was killed begins anew.
async fn killed_while_it_joins(
    (planet, client): (&mut Planet, &Client),
    region: &RegionName,
    id: RegionId,
) -> anyhow::Result<Instant> {
    for _ in 0..TRIES {
        let added = set(client, RegionChange::Add(region.clone())).await?;
        planet.kill(THIRD)?;
        tokio::time::sleep(BETWEEN).await;
        if !bucket(client).await?.is_in(id) {
            return Ok(added);
        }
        planet.start(THIRD)?;
        planet.ready(PATIENCE).await?;
        set(client, RegionChange::Remove(region.clone())).await?;
        until_gone(client, id).await?;
    }
    anyhow::bail!("who is away can't have been filled")
}

fn primary() -> anyhow::Result<RegionName> {
    Ok(RegionName::new(REGIONS[0])?)
}

fn change(regions: RegionChange) -> BucketChange {
    BucketChange { regions: Some(regions), ..BucketChange::default() }
}

/// Rehearses a change, and makes it.
async fn set(client: &Client, regions: RegionChange) -> anyhow::Result<Instant> {
    let before = bucket(client).await?;
    let (rehearsed, changed) = changes::set((client, NAME), &change(regions), PATIENCE).await?;
    anyhow::ensure!(before.epoch.0 + 1 == rehearsed.epoch.0, "the dry run says the epoch: {rehearsed:?}");
    anyhow::ensure!(changed.regions == rehearsed.regions && changed.epoch == rehearsed.epoch, "{changed:?}");
    Ok(Instant::now())
}

async fn bucket(client: &Client) -> anyhow::Result<Bucket> {
    changes::bucket(client, NAME).await
}

async fn until(client: &Client, since: Instant, what: &str, holds: impl Fn(&Bucket) -> bool) -> anyhow::Result<()> {
    changes::until((client, NAME), (since, PATIENCE), what, holds).await.map(drop)
}

async fn until_gone(client: &Client, region: RegionId) -> anyhow::Result<()> {
    changes::until_gone((client, NAME), region, PATIENCE).await
}
