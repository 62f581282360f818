//! DUR-1, ONE-1, ORD-1, CON-4 with real processes: nodes of three regions are killed with SIGKILL at random
//! moments under load and restarted; afterwards nothing acknowledged is missing, nothing took effect twice,
//! and digests agree everywhere.
//!
//! `MERIDIAN_KILL_ROUNDS` (default 50) and `MERIDIAN_SEED` choose how long and which; a failure prints both.

use std::path::Path;
use std::time::Duration;

use chaos::real::{Planet, REGIONS, trial};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
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
    let writers = trial::start_writers(&planet, &stop).await?;
    kill_and_restart(&mut planet, rounds, seed).await?;
    stop.cancel();
    let ledgers = writers.join_all().await;
    planet.ready(PATIENCE).await?;

    let verdict = trial::judge(&planet, &ledgers, PATIENCE).await;
    if verdict.is_err() {
        // Logs and data say why; nobody can ask a folder that is gone.
        eprintln!("kept for a look: {}", dir.keep().display());
    }
    verdict
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

fn from_env<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
