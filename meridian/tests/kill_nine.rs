//! DUR-1, ONE-1, ORD-1, CON-4 with real processes: nodes of three regions are killed with SIGKILL at random
//! moments under load and restarted; afterwards nothing acknowledged is missing, nothing took effect twice,
//! and digests agree everywhere.
//!
//! `MERIDIAN_KILL_ROUNDS` (default 50) and `MERIDIAN_SEED` choose how long and which; a failure prints both.

use std::path::Path;
use std::time::Duration;

use chaos::real::{BUCKETS, Planet, REGIONS, load, verdict};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_or_doubled_when_nodes_are_killed_under_load() -> anyhow::Result<()> {
    let rounds: usize = from_env("MERIDIAN_KILL_ROUNDS", 50);
    let seed: u64 = from_env("MERIDIAN_SEED", 0x6d65_7269_6469_616e);
    eprintln!("reproduce: MERIDIAN_SEED={seed} MERIDIAN_KILL_ROUNDS={rounds} cargo test -p meridian --test kill_nine");

    let dir = tempfile::Builder::new().prefix("meridian-kill-nine").tempdir()?;
    let mut planet = Planet::create(Path::new(env!("CARGO_BIN_EXE_meridian")), dir.path())?;
    for node in 0..REGIONS.len() {
        planet.start(node)?;
    }
    planet.ready(PATIENCE).await?;
    planet.create_buckets().await?;

    let stop = CancellationToken::new();
    let writers = start_writers(&planet, &stop).await?;
    kill_and_restart(&mut planet, rounds, seed).await?;
    stop.cancel();
    let ledgers = writers.join_all().await;
    planet.ready(PATIENCE).await?;

    let verdict = judge(&planet, &ledgers).await;
    if verdict.is_err() {
        // Logs and data say why; nobody can ask a folder that is gone.
        eprintln!("kept for a look: {}", dir.keep().display());
    }
    verdict
}

/// One writer per bucket and region, each beginning at its own region.
async fn start_writers(planet: &Planet, stop: &CancellationToken) -> anyhow::Result<JoinSet<load::Ledger>> {
    let mut writers = JoinSet::new();
    for region in 0..REGIONS.len() {
        let client = planet.client(region).await?;
        for (at, (name, policy)) in BUCKETS.into_iter().enumerate() {
            writers.spawn(load::write(client.bucket(name)?, policy, region * BUCKETS.len() + at, stop.clone()));
        }
    }
    Ok(writers)
}

async fn kill_and_restart(planet: &mut Planet, rounds: usize, seed: u64) -> anyhow::Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..rounds {
        tokio::time::sleep(Duration::from_millis(random.random_range(100..900))).await;
        let node = random.random_range(0..REGIONS.len());
        planet.kill(node)?;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..300))).await;
        planet.start(node)?;
    }
    Ok(())
}

/// Heals first, then demands progress, equality, and every acknowledged write in every region.
async fn judge(planet: &Planet, ledgers: &[load::Ledger]) -> anyhow::Result<()> {
    let buckets: Vec<&str> = BUCKETS.iter().map(|(name, _)| *name).collect();
    let mut violations = Vec::new();
    for region in 0..REGIONS.len() {
        let client = planet.client(region).await?;
        for bucket in &buckets {
            client.bucket(bucket)?.put("after", "healing").deadline(PATIENCE).await?;
        }
        violations.extend(verdict::regions_are_equal(&client, &buckets, PATIENCE).await.err().unwrap_or_default());
        for ledger in ledgers {
            let bucket = client.bucket(&ledger.bucket)?;
            violations.extend(verdict::ledger_is_kept(&bucket, ledger).await.err().unwrap_or_default());
        }
    }
    let acknowledged: i64 = ledgers
        .iter()
        .map(|ledger| {
            let puts = ledger.puts.values().filter(|acknowledged| **acknowledged).count();
            let appends = ledger.appends.iter().filter(|(_, acknowledged)| *acknowledged).count();
            ledger.increments.acknowledged + i64::try_from(puts + appends).unwrap_or(i64::MAX)
        })
        .sum();
    let refused: u64 = ledgers.iter().map(|ledger| ledger.refused).sum();
    eprintln!("{acknowledged} writes acknowledged, {refused} refused, {} violations", violations.len());
    anyhow::ensure!(violations.is_empty(), "{}", violations.join("\n"));
    anyhow::ensure!(acknowledged > 0, "nothing was acknowledged: the load did not run");
    Ok(())
}

fn from_env<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
