//! A bucket goes from `async` to `sync` and back under load, with all regions and without one that was killed (kill -9): no acknowledged
//! write is lost, and all regions end equal (DUR-2, ORD-1; docs/adr/2026-11-27-online-policy-change.md). Real processes.

use std::path::Path;
use std::time::{Duration, Instant};

use chaos::real::{Planet, REGIONS, changes, load};
use meridian_client::Client;
use meridian_types::{Acks, Bucket, BucketChange, Policy};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(120);
const NAME: &str = "turning";
const WRITERS: usize = 6;
/// A region that is not the primary.
const KILLED: usize = 2;
/// How long the load goes on under each policy.
const BETWEEN: Duration = Duration::from_millis(700);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_changes_under_load_and_through_a_crash_without_losing_a_write() -> anyhow::Result<()> {
    let dir = tempfile::Builder::new().prefix("meridian-policy-change").tempdir()?;
    let mut planet = Planet::create(Path::new(env!("CARGO_BIN_EXE_meridian")), dir.path())?;
    for node in 0..REGIONS.len() {
        planet.start(node)?;
    }
    planet.ready(PATIENCE).await?;
    planet.create_bucket(NAME, Policy::ASYNC).await?;
    let client = planet.client(0).await?;
    let stop = CancellationToken::new();
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        writers.push(tokio::spawn(load::write(client.bucket(NAME)?, Policy::ASYNC, writer, stop.clone())));
    }
    let majority = Policy::sync(Acks::Majority);

    tokio::time::sleep(BETWEEN).await;
    let first = set(&client, majority).await?;
    until(&client, first, "it is SYNC, and every region has followed", |it| it.standing.is_sync() && !it.is_turning())
        .await?;
    planet.kill(KILLED)?;
    set(&client, Policy::ASYNC).await?;
    let second = set(&client, majority).await?;
    until(&client, second, "it is SYNC without the third region", |it| it.standing.is_sync()).await?;
    anyhow::ensure!(bucket(&client).await?.is_turning(), "the region that is away can't have followed");
    set(&client, Policy::ASYNC).await?;
    planet.start(KILLED)?;
    planet.ready(PATIENCE).await?;
    let third = set(&client, Policy::sync(Acks::All)).await?;
    until(&client, third, "every region has followed all turns", |it| it.standing.is_sync() && !it.is_turning())
        .await?;
    tokio::time::sleep(BETWEEN).await;
    changes::until_loaded((&client, NAME), 0..WRITERS, PATIENCE).await?;
    stop.cancel();

    let kept = changes::everything_is_kept((&client, NAME), writers, PATIENCE).await?;
    anyhow::ensure!(kept.puts > 50, "only {kept:?} were acknowledged");
    eprintln!("5 turns: {kept:?}");
    Ok(())
}

/// Rehearses a change, and makes it.
async fn set(client: &Client, policy: Policy) -> anyhow::Result<Instant> {
    let change = BucketChange { policy: Some(policy), ..BucketChange::default() };
    let before = bucket(client).await?;
    let (rehearsed, changed) = changes::set((client, NAME), &change, PATIENCE).await?;
    anyhow::ensure!(before.epoch.0 + 1 == rehearsed.epoch.0, "the dry run says the epoch: {rehearsed:?}");
    anyhow::ensure!(changed.policy == policy && changed.epoch == rehearsed.epoch, "{changed:?}");
    Ok(Instant::now())
}

async fn bucket(client: &Client) -> anyhow::Result<Bucket> {
    changes::bucket(client, NAME).await
}

async fn until(client: &Client, since: Instant, what: &str, holds: impl Fn(&Bucket) -> bool) -> anyhow::Result<()> {
    changes::until((client, NAME), (since, PATIENCE), what, holds).await.map(drop)
}
