//! DUR-1, ONE-1, ORD-1, CON-4 with regions of three nodes in real processes: one of three may die without anything acknowledged
//! missing, and all of them may be stopped one after the other without a request failing.
//!
//! `MERIDIAN_NODE_ROUNDS` (default 10) and `MERIDIAN_SEED` choose how long and which; a failure prints both.

use std::path::Path;
use std::time::Duration;

use chaos::real::{BUCKETS, Planet, REGIONS, trial};
use meridian_client::WriteAck;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(90);

/// Seven processes are enough for a small machine: one planet at a time.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Long enough for a shard without a leader to get one, and for its leader to go home.
const QUIET: Duration = Duration::from_secs(2);

async fn planet(dir: &Path, nodes: [usize; REGIONS.len()]) -> anyhow::Result<Planet> {
    let mut planet = Planet::of_nodes(Path::new(env!("CARGO_BIN_EXE_meridian")), dir, nodes)?;
    for node in 0..planet.nodes() {
        planet.start(node)?;
    }
    planet.ready(PATIENCE).await?;
    planet.create_buckets().await?;
    Ok(planet)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_or_doubled_when_one_of_three_nodes_is_killed() -> anyhow::Result<()> {
    let rounds: usize = from_env("MERIDIAN_NODE_ROUNDS", 10);
    let seed: u64 = from_env("MERIDIAN_SEED", 0x6d65_7269_6469_616e);
    eprintln!(
        "reproduce: MERIDIAN_SEED={seed} MERIDIAN_NODE_ROUNDS={rounds} cargo test -p meridian --test regions_of_three"
    );
    let _alone = ALONE.lock().await;
    let dir = tempfile::Builder::new().prefix("meridian-regions-of-three").tempdir()?;
    let mut planet = planet(dir.path(), [3, 3, 1]).await?;
    let stop = CancellationToken::new();
    let writers = trial::start_writers(&planet, &stop).await?;
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..rounds {
        sleep(Duration::from_millis(random.random_range(300..1500))).await;
        let node = random.random_range(0..planet.nodes());
        planet.kill(node)?;
        sleep(Duration::from_millis(random.random_range(0..2500))).await;
        planet.start(node)?;
    }
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_every_node_of_a_region_is_stopped_and_started_again() -> anyhow::Result<()> {
    let _alone = ALONE.lock().await;
    let dir = tempfile::Builder::new().prefix("meridian-rolling-restart").tempdir()?;
    let mut planet = planet(dir.path(), [3, 1, 1]).await?;
    let stop = CancellationToken::new();
    let writers = trial::start_writers(&planet, &stop).await?;
    sleep(QUIET).await;
    for node in planet.nodes_of(REGIONS[0]) {
        planet.signal(node, Signal::TERM)?;
        let until = Instant::now() + PATIENCE;
        let status = loop {
            match planet.ended(node)? {
                Some(status) => break status,
                None if Instant::now() < until => sleep(Duration::from_millis(20)).await,
                None => anyhow::bail!("the node does not stop; {}", planet.log_tail(node)),
            }
        };
        anyhow::ensure!(status.success(), "{status}; {}", planet.log_tail(node));
        planet.start(node)?;
        planet.ready(PATIENCE).await?;
        sleep(QUIET).await;
    }
    stop.cancel();
    let ledgers = writers.join_all().await;
    for ledger in &ledgers {
        let unknown = ledger.unknown();
        anyhow::ensure!(
            ledger.refused == 0 && unknown == 0 && ledger.surprises.is_empty(),
            "writer {} of {}: {} refused, {unknown} unknown, {:?}",
            ledger.writer,
            ledger.bucket,
            ledger.refused,
            ledger.surprises
        );
    }
    trial::judge(&planet, &ledgers, PATIENCE).await
}

/// No node leads all shards of its region then, and the first one of each list does not answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regions_receive_and_are_read_as_a_whole_while_a_node_of_each_is_away() -> anyhow::Result<()> {
    let _alone = ALONE.lock().await;
    let dir = tempfile::Builder::new().prefix("meridian-node-away").tempdir()?;
    let mut planet = planet(dir.path(), [3, 3, 1]).await?;
    planet.kill(planet.nodes_of(REGIONS[0])[1])?;
    planet.kill(planet.nodes_of(REGIONS[1])[0])?;
    let (here, there) = (planet.nodes_of(REGIONS[0])[0], planet.nodes_of(REGIONS[1])[1]);
    for (name, _) in BUCKETS {
        let bucket = planet.client(here).await?.bucket(name)?;
        let keys: Vec<String> = (0..64).map(|nth| format!("key/{nth:02}")).collect();
        for key in &keys {
            let written = bucket.put(key.as_str(), "value").ack(WriteAck::All).deadline(PATIENCE).await?;
            anyhow::ensure!(written.meta.durability.is_some_and(|it| it.regions == 3), "{written:?}");
        }
        let far = planet.client(there).await?.bucket(name)?;
        let far = far.scan("key/").bounded(Duration::from_secs(5)).deadline(PATIENCE);
        // Nobody orders the writes of an active-active bucket: it has no strong reads.
        let near = bucket.scan("key/").deadline(PATIENCE);
        let near = if name == "active-active" { near.eventual() } else { near.strong() };
        for mut scan in [near, far] {
            let page = scan.next_page().await?.map(|page| page.items).unwrap_or_default();
            let found: Vec<_> = page.iter().map(|item| String::from_utf8_lossy(&item.key).into_owned()).collect();
            anyhow::ensure!(found == keys, "{name}: {found:?}");
        }
        if name != "active-active" {
            let found = bucket.multi_get(keys.iter().map(String::as_str)).strong().deadline(PATIENCE).await?.found;
            anyhow::ensure!(found.iter().all(Option::is_some), "{name}: {found:?}");
        }
    }
    Ok(())
}

fn from_env<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
