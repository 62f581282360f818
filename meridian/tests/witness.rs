//! Two regions and a witness on real processes: a region is killed, its `sync` bucket gets another primary by itself and misses nothing
//! (DUR-2, FEN-1), for the witness and the other region are a majority; then it returns, the witness is killed, and writes go on.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use chaos::real::{Planet, REGIONS};
use meridian_client::{Bucket, Client};
use meridian_types::{
    Acks, AutoFailover, AutoMode, BucketName, BucketSpec, OnPartition, Policy, ReadLevel, RegionName, Standing, Step,
};
use tokio::time::sleep;

const PATIENCE: Duration = Duration::from_secs(120);

const LOST: usize = 0;
const OTHER: usize = 1;
const WITNESS: usize = 2;

const NAME: &str = "pay";

/// A bucket of the two regions that goes on with one copy once that is on record.
fn spec() -> anyhow::Result<BucketSpec> {
    Ok(BucketSpec {
        name: BucketName::new(NAME)?,
        policy: Policy::Sync { acks: Acks::Majority, on_partition: OnPartition::Degrade { after_ms: 1000 } },
        regions: Vec::new(),
        primary: Some(RegionName::new(REGIONS[LOST])?),
        labels: Default::default(),
        auto: AutoFailover { mode: AutoMode::ZeroLoss, ..AutoFailover::default() },
    })
}

async fn write(bucket: &Bucket, what: &str) -> anyhow::Result<()> {
    for nth in 0..50 {
        bucket.put(format!("{what}-{nth:03}"), "value").deadline(PATIENCE).await?;
    }
    Ok(())
}

async fn all_there(bucket: &Bucket, whats: &[&str]) -> anyhow::Result<()> {
    for what in whats {
        for nth in 0..50 {
            let key = format!("{what}-{nth:03}");
            let got = bucket.get(key.as_str()).level(ReadLevel::Strong).deadline(PATIENCE).await?;
            ensure!(got.value().is_some(), "DUR-2: {key} was acknowledged and is not there");
        }
    }
    Ok(())
}

/// Waits until the bucket is as asked; what it is then.
async fn until(
    client: &Client,
    what: &str,
    is: impl Fn(&meridian_types::Bucket) -> bool,
) -> anyhow::Result<meridian_types::Bucket> {
    let end = Instant::now() + PATIENCE;
    loop {
        let known = client.admin().topology().await;
        let bucket = known.as_ref().ok().and_then(|it| it.bucket_named(NAME)).cloned();
        match bucket {
            Some(bucket) if is(&bucket) => return Ok(bucket.as_ref().clone()),
            _ if Instant::now() < end => sleep(Duration::from_millis(100)).await,
            other => anyhow::bail!("{what}: in vain, {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_witness_either_region_may_be_lost_and_so_may_the_witness() -> anyhow::Result<()> {
    let dir = tempfile::Builder::new().prefix("meridian-witness").tempdir()?;
    let mut planet = Planet::with_a_witness(Path::new(env!("CARGO_BIN_EXE_meridian")), dir.path())?;
    (0..planet.nodes()).try_for_each(|node| planet.start(node))?;
    planet.ready(PATIENCE).await?;
    let client = planet.client(OTHER).await?;
    let created = client.admin().create_bucket(&spec()?, false).await?;
    ensure!(created.regions.len() == 2, "a witness holds nothing: {created:?}");
    let bucket = client.bucket(NAME)?;
    write(&bucket, "before").await?;
    until(&client, "both regions have everything", |it| it.standing.is_sync()).await?;

    planet.kill(LOST)?;
    let heir = client.admin().topology().await?.region_named(REGIONS[OTHER]).map(|it| it.id);
    until(&client, "the other region takes over by itself", |it| it.primary == heir && !it.is_between_primaries())
        .await?;
    let plan = client.admin().operations().await?.pop().unwrap_or_else(|| unreachable!("a primary has moved"));
    let Step::FailedOver { verdict, .. } = &plan.moves[0].step else { anyhow::bail!("{plan:?}") };
    ensure!(verdict.proven && verdict.lost.is_none(), "{verdict:?}");
    all_there(&bucket, &["before"]).await?;
    write(&bucket, "alone").await?;
    until(&client, "one copy is on record", |it| matches!(it.standing, Standing::Degraded { .. })).await?;

    planet.start(LOST)?;
    planet.ready(PATIENCE).await?;
    until(&client, "both regions have everything again", |it| it.standing.is_sync()).await?;
    planet.kill(WITNESS)?;
    // Longer than a lease lasts: what was granted with the witness has run out by then.
    let killed = Instant::now();
    let mut rounds = 0;
    while rounds < 3 || killed.elapsed() < Duration::from_secs(8) {
        write(&bucket, &format!("without-{rounds}")).await?;
        rounds += 1;
    }
    all_there(&bucket, &["before", "alone", "without-0"]).await?;
    let (policy, standing) = (spec()?.policy, until(&client, "it is SYNC", |it| it.standing.is_sync()).await?.standing);
    ensure!(standing.is_sync(), "{policy}: both regions have every write");

    // Heal, then demand progress: the three decide again.
    planet.start(WITNESS)?;
    planet.ready(PATIENCE).await?;
    client
        .admin()
        .set_labels(&BucketName::new(NAME)?, [("team".to_owned(), "pay".to_owned())].into(), Vec::new())
        .await?;
    write(&bucket, "after").await?;
    all_there(&bucket, &["after"]).await
}
