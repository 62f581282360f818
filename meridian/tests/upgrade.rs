//! UPG-1 with real processes: nodes of two releases serve one cluster while it is upgraded, and what only the new one could read waits until
//! the upgrade is finalized.
//!
//! `MERIDIAN_PREVIOUS` names a `meridian` of the release before: `git worktree add /tmp/previous <commit>`, and there
//! `cargo build -p meridian`. Without one an upgrade can't be played, which is said.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use chaos::real::{Planet, REGIONS, trial};
use meridian_client::RefusalKind;
use meridian_types::release::{FORMAT_NEWEST, FORMAT_UNSAID};
use rustix::process::Signal;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

const BINARY: &str = env!("CARGO_BIN_EXE_meridian");

const PATIENCE: Duration = Duration::from_secs(90);

/// Long enough for a shard without a leader to get one, and for its leader to go home.
const QUIET: Duration = Duration::from_secs(2);

/// Five processes are enough for a small machine: one planet at a time.
static ALONE: Mutex<()> = Mutex::const_new(());

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_was_formed_by_this_release_has_nothing_to_finalize() -> anyhow::Result<()> {
    let _alone = ALONE.lock().await;
    let dir = tempfile::Builder::new().prefix("meridian-upgrade").tempdir()?;
    let mut planet = Planet::create(Path::new(BINARY), dir.path())?;
    for node in 0..planet.nodes() {
        planet.start(node)?;
    }
    planet.ready(PATIENCE).await?;
    let check = upgrade(&planet, &["check"])?;
    says(&check, 0, &["us-east-1", "ap-south-1", "nothing to do: the upgrade is finalized"])?;
    says(&upgrade(&planet, &["finalize"])?, 0, &["nothing to do"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_two_releases_serve_until_the_upgrade_is_finalized_upg_1() -> anyhow::Result<()> {
    let Some(previous) = std::env::var_os("MERIDIAN_PREVIOUS").map(PathBuf::from) else {
        eprintln!("skipped: MERIDIAN_PREVIOUS names no `meridian` of the release before");
        return Ok(());
    };
    let _alone = ALONE.lock().await;
    let dir = tempfile::Builder::new().prefix("meridian-upgrade").tempdir()?;
    let mut planet = Planet::of_nodes(&previous, dir.path(), [3, 1, 1])?;
    for node in 0..planet.nodes() {
        planet.start(node)?;
    }
    planet.ready(PATIENCE).await?;
    planet.create_buckets().await?;
    let stop = CancellationToken::new();
    let writers = trial::start_writers(&planet, &stop).await?;
    planet.install(Path::new(BINARY));
    for node in 0..planet.nodes() {
        sleep(QUIET).await;
        let check = upgrade(&planet, &["check"])?;
        says(&check, 2, &["FAIL: start it with the new release", "left to upgrade"])?;
        restart(&mut planet, node).await?;
        if node == 0 {
            // Asked of the node that could, for those that could not read it.
            let refused = planet.dial_only(node).connect().await?.admin().finalize_upgrade(false).await;
            let error = refused.err().ok_or_else(|| anyhow::anyhow!("nodes of the old release were left behind"))?;
            anyhow::ensure!(error.kind == RefusalKind::Conflict, "{error}");
        }
    }
    sleep(QUIET).await;
    let topology = planet.client(0).await?.admin().topology().await?;
    anyhow::ensure!(topology.format == FORMAT_UNSAID, "nobody has finalized it: {}", topology.format);
    says(&upgrade(&planet, &["check"])?, 0, &["to finish: meridian upgrade finalize"])?;
    says(&upgrade(&planet, &["finalize", "--dry-run"])?, 0, &["from format 10 to 11"])?;
    says(&upgrade(&planet, &["finalize"])?, 0, &["finalized: the cluster has format 11"])?;
    stop.cancel();
    let ledgers = writers.join_all().await;
    let topology = planet.client(0).await?.admin().topology().await?;
    anyhow::ensure!(topology.format == FORMAT_NEWEST, "{}", topology.format);
    trial::judge(&planet, &ledgers, PATIENCE).await?;
    went_back(&mut planet, &previous).await
}

/// A node that goes back after the end stops and says why, whether it meets a command or a state that it can't read.
async fn went_back(planet: &mut Planet, previous: &Path) -> anyhow::Result<()> {
    let node = planet.nodes_of(REGIONS[2])[0];
    planet.kill(node)?;
    planet.install(previous);
    planet.start(node)?;
    ended(planet, node).await?;
    let log = planet.log_tail(node);
    anyhow::ensure!(log.contains("release that wrote it"), "{log}");
    Ok(())
}

/// Stops a node as an operator does, and starts what is installed now.
async fn restart(planet: &mut Planet, node: usize) -> anyhow::Result<()> {
    planet.signal(node, Signal::TERM)?;
    let status = ended(planet, node).await?;
    anyhow::ensure!(status.success(), "{status}; {}", planet.log_tail(node));
    planet.start(node)?;
    planet.ready(PATIENCE).await
}

async fn ended(planet: &mut Planet, node: usize) -> anyhow::Result<std::process::ExitStatus> {
    let until = Instant::now() + PATIENCE;
    loop {
        match planet.ended(node)? {
            Some(status) => return Ok(status),
            None if Instant::now() < until => sleep(Duration::from_millis(20)).await,
            None => anyhow::bail!("the node does not end; {}", planet.log_tail(node)),
        }
    }
}

/// `meridian upgrade …`, as an operator types it.
fn upgrade(planet: &Planet, words: &[&str]) -> anyhow::Result<Output> {
    Ok(Command::new(BINARY).arg("upgrade").args(words).args(planet.dial(0).options()).output()?)
}

fn says(output: &Output, code: i32, all: &[&str]) -> anyhow::Result<()> {
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    anyhow::ensure!(output.status.code() == Some(code), "{}: {said}", output.status);
    let missing: Vec<_> = all.iter().filter(|part| !said.contains(**part)).collect();
    anyhow::ensure!(missing.is_empty(), "{missing:?} is not in: {said}");
    Ok(())
}
