//! docs/runbooks/lost-metadata-majority.md on real processes, as it is written: two of three voters are lost, `meridian metadata recover` is
//! typed on the machine of the third, and epochs are raised (FEN-2). What was acknowledged in the region that is left is there. A lost
//! voter that returns with its disk after all sets its own copy aside, and one that returns without its disk does not start (DUR-1).

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use chaos::real::{Planet, create_bucket};
use meridian_client::{Bucket, Client};
use meridian_metadata_core::recover::EPOCHS_LEAP;
use meridian_types::{Acks, Policy, ReadLevel};
use rustix::process::Signal;
use tokio::process::Command;
use tokio::time::sleep;

const PATIENCE: Duration = Duration::from_secs(120);

/// The voter that is left; every primary is in its region.
const LEFT: usize = 0;

/// A voter that everybody takes for lost, and whose disk turns up.
const RETURNS: usize = 1;

/// A voter whose disk is gone.
const BURNT: usize = 2;

const KEYS: usize = 40;

// Exit codes: a contract with scripts.
const DONE: i32 = 0;
const FAILED: i32 = 1;
const CONSENT: i32 = 3;

/// Types `meridian metadata recover` on the machine of the voter that is left; what it said.
async fn recover(planet: &Planet, words: &[&str], code: i32) -> anyhow::Result<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meridian"));
    command.args(["metadata", "recover", "--config"]).arg(planet.config_of(LEFT)).args(words);
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await?;
    let said = format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.code() == Some(code), "recover {words:?} ended with {:?}, not {code}\n{said}", output.status);
    Ok(said)
}

async fn ended(planet: &mut Planet, node: usize) -> anyhow::Result<ExitStatus> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = planet.ended(node)? {
            return Ok(status);
        }
        ensure!(Instant::now() < until, "{} goes on; {}", planet.name(node), planet.log_tail(node));
        sleep(Duration::from_millis(50)).await;
    }
}

async fn write(bucket: &Bucket, what: &str) -> anyhow::Result<()> {
    for nth in 0..KEYS {
        bucket.put(format!("{what}-{nth:03}"), "value").deadline(PATIENCE).await?;
    }
    Ok(())
}

async fn all_there(bucket: &Bucket, what: &str) -> anyhow::Result<()> {
    for nth in 0..KEYS {
        let key = format!("{what}-{nth:03}");
        let got = bucket.get(key.as_str()).level(ReadLevel::Eventual).deadline(PATIENCE).await?;
        ensure!(got.value().is_some(), "{key} was acknowledged and is not there");
    }
    Ok(())
}

/// The epochs of the buckets, once the metadata plane is at this generation.
async fn epochs(client: &Client, generation: u32) -> anyhow::Result<Vec<(String, u64)>> {
    let until = Instant::now() + PATIENCE;
    loop {
        let topology = client.admin().topology().await;
        match topology {
            Ok(known) if known.generation == generation => {
                return Ok(known.buckets.values().map(|it| (it.name.to_string(), it.epoch.0)).collect());
            }
            _ if Instant::now() < until => sleep(Duration::from_millis(100)).await,
            other => anyhow::bail!("not of generation {generation}: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_metadata_majority_is_recovered_as_the_runbook_says() -> anyhow::Result<()> {
    let dir = tempfile::Builder::new().prefix("meridian-lost-metadata").tempdir()?;
    let mut planet = Planet::create(Path::new(env!("CARGO_BIN_EXE_meridian")), dir.path())?;
    (0..planet.nodes()).try_for_each(|node| planet.start(node))?;
    planet.ready(PATIENCE).await?;
    let client = planet.client(LEFT).await?;
    let buckets = [
        ("events", Policy::ASYNC),
        // All regions have what it acknowledges: so does the one that is left.
        ("orders", Policy::sync(Acks::All)),
        ("carts", Policy::ActiveActive),
    ];
    for (name, policy) in buckets {
        create_bucket(&client, name, policy).await?;
    }
    for (name, _) in buckets {
        write(&client.bucket(name)?, "before").await?;
    }
    let before = epochs(&client, 0).await?;

    planet.kill(RETURNS)?;
    planet.kill(BURNT)?;
    planet.lose_disk(BURNT)?;

    // Before you recover: with the server running its log is in use, and nothing is touched.
    recover(&planet, &["--dry-run"], FAILED).await?;
    planet.signal(LEFT, Signal::TERM)?;
    ended(&mut planet, LEFT).await?;

    // Recover.
    let told = recover(&planet, &["--dry-run"], DONE).await?;
    for words in ["generation 1 would begin here", "does not answer", "WHAT MAY BE LOST", "orders"] {
        ensure!(told.contains(words), "`{words}` is missing:\n{told}");
    }
    let confirm = told.lines().find_map(|line| line.trim().strip_prefix("confirm with: --confirm "));
    let confirm = confirm.with_context(|| format!("no words to confirm with:\n{told}"))?.trim();
    recover(&planet, &[], CONSENT).await?;
    recover(&planet, &["--confirm", "lose-changes-after-0"], CONSENT).await?;
    let done = recover(&planet, &["--confirm", confirm], DONE).await?;
    ensure!(done.contains("recovered: generation 1 begins"), "{done}");
    planet.start(LEFT)?;
    planet.ready(PATIENCE).await?;

    // One voter decides; what it has is there, under epochs that nobody has written under.
    let client = planet.client(LEFT).await?;
    let after = epochs(&client, 1).await?;
    for ((name, before), (_, after)) in before.iter().zip(&after) {
        let leap = if name == "carts" { 0 } else { EPOCHS_LEAP };
        ensure!(*after >= before + leap, "`{name}` was in epoch {before} and is in {after}");
    }
    for (name, _) in buckets {
        all_there(&client.bucket(name)?, "before").await?;
    }
    write(&client.bucket("events")?, "alone").await?;
    write(&client.bucket("carts")?, "alone").await?;

    // Afterwards: a voter that was taken for lost is back.
    let aside = planet.disk(RETURNS).join("metadata").join("generation-1");
    ensure!(!aside.exists(), "it has heard of nothing yet");
    planet.start(RETURNS)?;
    planet.ready(PATIENCE).await?;
    ensure!(aside.exists(), "{} did not set its copy aside; {}", planet.name(RETURNS), planet.log_tail(RETURNS));
    let returned = planet.dial_only(RETURNS).connect().await?;
    ensure!(epochs(&returned, 1).await? == epochs(&client, 1).await?, "it follows the recovered plane");
    all_there(&returned.bucket("events")?, "before").await?;

    // Afterwards: one without its disk would contradict what it has confirmed.
    planet.start(BURNT)?;
    let refused = ended(&mut planet, BURNT).await?;
    ensure!(!refused.success(), "a node without its disk started");
    let log = planet.log(BURNT);
    ensure!(log.contains("has an empty data directory"), "{}", planet.log_tail(BURNT));

    // Heal, then demand progress: changes are decided, and every bucket that two regions are enough for is written.
    create_bucket(&client, "later", Policy::sync(Acks::Majority)).await?;
    for name in ["events", "carts", "later"] {
        write(&client.bucket(name)?, "after").await?;
        all_there(&client.bucket(name)?, "after").await?;
    }
    Ok(())
}
