//! DUR-1 with real processes: the disk of a primary's only node hangs, so that no write of it ever ends. The node says so and is
//! not ready, writes are refused with the reason, and strong reads go on; when the disk answers the node is ready again by itself,
//! and every acknowledged write is there (etcd #22214: the health check of a node with a blocked log said OK).
//!
//! Needs Linux, root and loop devices; elsewhere it prints what is missing and proves nothing.
#![cfg(target_os = "linux")]

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use chaos::real::load::{self, Ledger};
use chaos::real::{BUCKETS, Launch, ONE_EACH, Place, Planet, REGIONS, verdict};
use chaos::wan::disk::Disk;
use meridian_client::{Client, Effect, RefusalKind};
use meridian_types::{NodeId, NodeName};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);
const FROZEN: usize = 0;
const DISK_BYTES: u64 = 1 << 30;

/// Thaws however a test ends: a process that waits for a frozen disk can't even be killed.
struct Thaw<'a>(&'a Disk);

impl Drop for Thaw<'_> {
    fn drop(&mut self) {
        // A disk that is not frozen any more makes it fail.
        let _ = self.0.resume();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_disk_hangs_is_not_ready_refuses_writes_and_is_well_again_once_it_answers() -> anyhow::Result<()> {
    let dir = tempfile::Builder::new().prefix("meridian-frozen").tempdir()?;
    let disk = match Disk::create(dir.path(), "frozen", DISK_BYTES) {
        Ok(disk) => disk,
        Err(why) => {
            eprintln!("skipped: a disk of its own can't be made: {why:#}");
            return Ok(());
        }
    };
    let mut planet = planet(dir.path(), &disk).await?;
    let (stop, mut writers) = (CancellationToken::new(), JoinSet::new());
    for (writer, (bucket, policy)) in BUCKETS.into_iter().enumerate() {
        let (client, stop) = (planet.client(FROZEN).await?, stop.clone());
        writers.spawn(async move { anyhow::Ok(load::write(client.bucket(bucket)?, policy, writer, stop).await) });
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let only = planet.dial_only(FROZEN).connect().await?;
    only.bucket("async")?.put("before", "value").await?;

    let _thaw = Thaw(&disk);
    disk.stall()?;
    let frozen = Instant::now();
    let hangs = |answer: &str| answer.starts_with("HTTP/1.1 503") && answer.contains("hangs");
    let said = until_says(&planet, (FROZEN, "/readyz"), hangs).await?;
    let said = said.lines().last().unwrap_or_default();
    eprintln!("not ready {} ms after the disk froze: {said}", frozen.elapsed().as_millis());
    writes_are_refused_with_the_reason(&only).await?;
    status_and_metrics_tell(&planet).await?;
    let read = only.bucket("async")?.get("before").await?;
    ensure!(read.into_value().as_deref() == Some(b"value"), "a strong read needs no disk");
    let read = only.bucket("async")?.multi_get(["before"]).await?;
    ensure!(read.found.iter().flatten().count() == 1, "a read of more keys needs none either");
    for other in (0..REGIONS.len()).filter(|node| *node != FROZEN) {
        until_says(&planet, (other, "/readyz"), |answer| answer.starts_with("HTTP/1.1 200")).await?;
    }

    disk.resume()?;
    let thawed = Instant::now();
    planet.ready(PATIENCE).await?;
    eprintln!("ready {} ms after the disk answered", thawed.elapsed().as_millis());
    stop.cancel();
    let ledgers: Vec<Ledger> = writers.join_all().await.into_iter().collect::<Result<_, _>>()?;
    nothing_is_missing(&planet, &ledgers).await?;
    the_log_tells_of_it(&planet).await
}

async fn planet(dir: &Path, disk: &Disk) -> anyhow::Result<Planet> {
    let mut places = Place::on_loopback(REGIONS.len())?;
    places[FROZEN].data_dir = Some(disk.data_dir(0));
    let mut planet = Planet::create_at(Path::new(env!("CARGO_BIN_EXE_meridian")), dir, places, ONE_EACH)?;
    // The disk is small.
    let small = ("MERIDIAN_LIMITS__LOG_SEGMENT_BYTES".into(), (8 << 20).to_string());
    let launch = Launch { environment: vec![small], ..Launch::default() };
    for node in 0..REGIONS.len() {
        planet.start_with(node, &launch)?;
    }
    planet.ready(PATIENCE).await?;
    planet.create_buckets().await?;
    Ok(planet)
}

/// Waits until a node says that, asked for this.
async fn until_says(
    planet: &Planet,
    (node, path): (usize, &str),
    holds: impl Fn(&str) -> bool,
) -> anyhow::Result<String> {
    let until = Instant::now() + PATIENCE;
    loop {
        match planet.admin(node, path).await {
            Ok(answer) if holds(&answer) => return Ok(answer),
            last => ensure!(Instant::now() < until, "{} still says: {last:?}", REGIONS[node]),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn writes_are_refused_with_the_reason(client: &Client) -> anyhow::Result<()> {
    for (bucket, _) in BUCKETS {
        let asked = Instant::now();
        let refused = loop {
            let refused = client.bucket(bucket)?.put("while", "frozen").deadline(Duration::from_secs(2)).await;
            let refused = refused.err().with_context(|| format!("a write of `{bucket}` was acknowledged"))?;
            // A busy machine may have no answer to the last attempt in time.
            if refused.effect == Effect::None || asked.elapsed() > PATIENCE {
                break refused;
            }
        };
        let expected = (RefusalKind::Unavailable, Effect::None);
        ensure!((refused.kind, refused.effect) == expected && refused.to_string().contains("hangs"), "{refused:?}");
        eprintln!("refused after {} ms of retries: {refused}", asked.elapsed().as_millis());
    }
    Ok(())
}

async fn status_and_metrics_tell(planet: &Planet) -> anyhow::Result<()> {
    let client = planet.client(1).await?;
    let name = NodeName::new(&format!("{}-1", REGIONS[FROZEN]))?;
    let admin = client.admin();
    // More of them than the node has workers: none may wait for the disk.
    let asked = (0..16).map(|_| admin.node_status(NodeId::of(&name)));
    for status in futures::future::try_join_all(asked).await? {
        ensure!(status.problems.iter().any(|problem| problem.contains("hangs")), "{:?}", status.problems);
    }
    until_says(planet, (FROZEN, "/metrics"), |metrics| sync_running_s(metrics) > Some(2.0)).await.map(drop)
}

/// For how long the sync of the log that is under way has been.
fn sync_running_s(metrics: &str) -> Option<f64> {
    let running = metrics
        .lines()
        .find(|line| line.starts_with("meridian_region_sync_running_seconds") && line.contains("of=\"log\""));
    running?.split(' ').next_back()?.parse().ok()
}

async fn nothing_is_missing(planet: &Planet, ledgers: &[Ledger]) -> anyhow::Result<()> {
    let client = planet.client(1).await?;
    let names: Vec<&str> = BUCKETS.iter().map(|(name, _)| *name).collect();
    let equal = verdict::regions_are_equal(&client, &names, PATIENCE).await;
    equal.map_err(|why| anyhow::anyhow!("{}", why.join("\n")))?;
    for ledger in ledgers {
        let kept = verdict::ledger_is_kept(&client.bucket(&ledger.bucket)?, ledger).await;
        kept.map_err(|why| anyhow::anyhow!("{}", why.join("\n")))?;
        let acknowledged = ledger.puts.values().filter(|it| **it).count();
        eprintln!(
            "{}: {acknowledged} puts, {} increments acknowledged, all there",
            ledger.bucket, ledger.increments.acknowledged
        );
        ensure!(acknowledged > 0, "nothing was written");
    }
    Ok(())
}

/// The node looks at its disk twice a second for its log, so that the end of a hang is told a moment after it is over.
async fn the_log_tells_of_it(planet: &Planet) -> anyhow::Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        let log = planet.log(FROZEN);
        let [began, ended] = ["the disk hangs", "answers again"].map(|event| log.contains(event));
        if began && ended {
            return Ok(());
        }
        ensure!(Instant::now() < until, "its log tells of the beginning: {began}, of the end: {ended}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
