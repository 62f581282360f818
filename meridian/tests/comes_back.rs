//! A region that was away for longer than the log is kept comes back by itself, under load, and moves what differs, not
//! everything it has (ORD-1, ISO-1): real processes, kill -9.
//!
//! `MERIDIAN_AWAY_S` (default 8) chooses for how long it is away.

use std::path::Path;
use std::time::{Duration, Instant};

use chaos::real::{BUCKETS, Planet, REGIONS, verdict};
use chaos::real::{Launch, load};
use meridian_client::Client;
use meridian_types::{RepairReason, RepairStatus};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(120);
const AWAY: usize = 1;

/// Keys that are written before, and those that are written meanwhile: what is away too long is a small part of it.
const KEYS: usize = 3000;
const HOT_KEYS: usize = 400;
const VALUE_BYTES: usize = 16 << 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_away_for_longer_than_the_log_is_kept_comes_back_by_moving_what_differs() -> anyhow::Result<()> {
    let away = Duration::from_secs(std::env::var("MERIDIAN_AWAY_S").ok().and_then(|it| it.parse().ok()).unwrap_or(8));
    let dir = tempfile::Builder::new().prefix("meridian-comes-back").tempdir()?;
    let mut planet = Planet::create(Path::new(env!("CARGO_BIN_EXE_meridian")), dir.path())?;
    let small_log =
        Launch { environment: vec![("MERIDIAN_LIMITS__LOG_RETENTION_BYTES".into(), "1".into())], ..Launch::default() };
    for node in 0..REGIONS.len() {
        planet.start_with(node, &small_log)?;
    }
    planet.ready(PATIENCE).await?;
    planet.create_buckets().await?;
    let client = planet.client(0).await?;
    write(&client, 0..KEYS, "before").await?;
    equal(&client).await?;

    planet.kill(AWAY)?;
    let stop = CancellationToken::new();
    let quiet = tokio::spawn(load::write(client.bucket("async")?, BUCKETS[0].1, 1, stop.clone()));
    let (began, mut rounds) = (Instant::now(), 0);
    while began.elapsed() < away || rounds < 24 {
        rounds += 1;
        write(&client, 0..HOT_KEYS, &format!("meanwhile-{rounds}")).await?;
    }
    planet.start_with(AWAY, &small_log)?;
    planet.ready(PATIENCE).await?;
    let repairs = repaired(&client).await?;
    stop.cancel();
    let ledger = quiet.await?;
    equal(&client).await?;
    let kept = verdict::ledger_is_kept(&client.bucket("async")?, &ledger).await;
    anyhow::ensure!(kept.is_ok(), "{kept:?}");

    let moved: u64 = repairs.iter().map(|it| it.bytes_moved).sum();
    let rows: u64 = repairs.iter().map(|it| it.rows_moved).sum();
    let difference = (HOT_KEYS * VALUE_BYTES) as u64;
    let all = (KEYS * VALUE_BYTES) as u64;
    eprintln!(
        "away for {:.0} s: {} shards repaired, {rows} rows, {moved} bytes moved for {difference} bytes that differ ({:.2} x); all it has: {all} bytes",
        began.elapsed().as_secs_f64(),
        repairs.len(),
        moved as f64 / difference as f64
    );
    anyhow::ensure!(moved > 0 && moved as f64 <= 1.5 * difference as f64, "too much was moved");
    Ok(())
}

async fn write(client: &Client, keys: std::ops::Range<usize>, value: &str) -> anyhow::Result<()> {
    let bucket = client.bucket("async")?;
    let value = format!("{value}{}", "x".repeat(VALUE_BYTES - value.len()));
    for chunk in keys.collect::<Vec<_>>().chunks(64) {
        let puts = chunk.iter().map(|n| bucket.put(format!("key-{n}"), value.clone()).deadline(PATIENCE).into_future());
        for put in futures::future::join_all(puts).await {
            put?;
        }
    }
    Ok(())
}

async fn equal(client: &Client) -> anyhow::Result<()> {
    let buckets: Vec<&str> = BUCKETS.iter().map(|(name, _)| *name).collect();
    verdict::regions_are_equal(client, &buckets, PATIENCE).await.map_err(|why| anyhow::anyhow!("{}", why.join("\n")))
}

/// Waits until the region has repaired what it missed.
async fn repaired(client: &Client) -> anyhow::Result<Vec<RepairStatus>> {
    let until = Instant::now() + PATIENCE;
    let mut quiet = 0;
    loop {
        let mut repairs = Vec::new();
        for (_, answer) in client.admin().repairs().await? {
            repairs.extend(answer.unwrap_or_default());
        }
        let behind: Vec<RepairStatus> =
            repairs.iter().filter(|it| it.reason == RepairReason::BehindLog && it.done).cloned().collect();
        let over = !behind.is_empty() && repairs.iter().all(|it| it.done);
        quiet = if over { quiet + 1 } else { 0 };
        // A lane is asked about every few seconds: later ones may still be found.
        if quiet > 20 {
            return Ok(behind);
        }
        anyhow::ensure!(Instant::now() < until, "not in time: {repairs:?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
