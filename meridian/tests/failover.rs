//! DUR-2, FEN-1, SWI-2, SWI-3 with real processes: the only node of a primary's region is killed with SIGKILL under load.
//!
//! A `sync` bucket is given another primary by the cluster itself, and no acknowledged write is missing; an `async` one only
//! with consent to what an estimate said, and no more is missing than that, but for what it named as not known.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chaos::real::{Planet, REGIONS};
use meridian_client::Client;
use meridian_types::{
    Acks, AutoFailover, AutoMode, BucketName, BucketSpec, Estimate, FailoverSpec, OnPartition, OperationId, Plan,
    PlanOutcome, Policy, RefusalKind, RegionName, Selection, Step,
};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);

/// The lease, and what noticing and promoting may take besides: the target of issue 4.
const FIRST_WRITE_WITHIN: Duration = Duration::from_secs(5 + 3);

/// What an operator waits for an estimate at most, a region being silent.
const ESTIMATE_WITHIN: Duration = Duration::from_secs(1);

/// What a timer may be late on an idle machine.
const GRAIN: Duration = Duration::from_millis(5);

const WRITERS: usize = 8;

/// An outage is timed: one planet at a time.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Writes keys in order until it is stopped, and remembers which were acknowledged.
async fn write(
    client: Client,
    bucket: &'static str,
    writer: usize,
    stop: CancellationToken,
    last: Arc<AtomicU64>,
) -> anyhow::Result<u64> {
    let bucket = client.bucket(bucket)?;
    let mut acknowledged = 0;
    while !stop.is_cancelled() {
        let key = format!("{writer}-{acknowledged:08}");
        let put = bucket.put(key.as_str(), "value").deadline(Duration::from_secs(30));
        let written = tokio::select! {
            written = put => written,
            () = stop.cancelled() => break,
        };
        // What is not acknowledged is written again under the same key.
        if written.is_ok() {
            acknowledged += 1;
            last.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(acknowledged)
}

/// How many of the acknowledged keys of each writer are not there.
async fn missing(client: &Client, bucket: &str, acknowledged: &[u64]) -> anyhow::Result<u64> {
    let bucket = client.bucket(bucket)?;
    let mut missing = 0;
    for (writer, count) in acknowledged.iter().enumerate() {
        for first in (0..*count).step_by(256) {
            let keys: Vec<String> =
                (first..(first + 256).min(*count)).map(|nth| format!("{writer}-{nth:08}")).collect();
            let found = bucket.multi_get(keys.iter().map(String::as_str)).await?.found;
            missing += found.iter().filter(|found| found.is_none()).count() as u64;
        }
    }
    Ok(missing)
}

async fn planet(dir: &Path) -> anyhow::Result<Planet> {
    planet_of(dir, [1; REGIONS.len()]).await
}

async fn planet_of(dir: &Path, nodes: [usize; REGIONS.len()]) -> anyhow::Result<Planet> {
    let mut planet = Planet::of_nodes(Path::new(env!("CARGO_BIN_EXE_meridian")), dir, nodes)?;
    for node in 0..planet.nodes() {
        planet.start(node)?;
    }
    planet.ready(PATIENCE).await?;
    Ok(planet)
}

async fn create(client: &Client, name: &str, policy: Policy, mode: AutoMode) -> anyhow::Result<()> {
    let auto = AutoFailover { mode, ..AutoFailover::default() };
    let primary = Some(RegionName::new(REGIONS[0])?);
    let spec = BucketSpec {
        name: BucketName::new(name)?,
        policy,
        regions: Vec::new(),
        primary,
        labels: Default::default(),
        auto,
    };
    client.admin().create_bucket(&spec, false).await?;
    Ok(())
}

async fn start(
    planet: &Planet,
    bucket: &'static str,
    stop: &CancellationToken,
    last: &Arc<AtomicU64>,
) -> anyhow::Result<JoinSet<anyhow::Result<(usize, u64)>>> {
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        // Beside the region that is left: what is asked there is not lost with the connection.
        let client = planet.client(planet.nodes_of(REGIONS[1 + writer % 2])[0]).await?;
        let (stop, last) = (stop.clone(), Arc::clone(last));
        writers.spawn(async move { Ok((writer, write(client, bucket, writer, stop, last).await?)) });
    }
    Ok(writers)
}

async fn ended(client: &Client, find: impl Fn(&Plan) -> bool) -> anyhow::Result<Plan> {
    let until = Instant::now() + PATIENCE;
    loop {
        let plans = client.admin().operations().await.unwrap_or_default();
        if let Some(plan) = plans.into_iter().find(|plan| find(plan) && plan.ended_ms.is_some()) {
            return Ok(plan);
        }
        anyhow::ensure!(Instant::now() < until, "no such operation ended in time");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Sleeps; by how much the machine, which has other things to do, overslept.
async fn nap(length: Duration) -> Duration {
    let since = Instant::now();
    tokio::time::sleep(length).await;
    Some(since.elapsed().saturating_sub(length)).filter(|late| *late > GRAIN).unwrap_or_default()
}

/// Asks until an estimate comes in time, for a busy machine may run any one late.
async fn estimate(client: &Client, buckets: &Selection) -> anyhow::Result<Estimate> {
    let until = Instant::now() + PATIENCE;
    loop {
        let begun = Instant::now();
        match (client.admin().failover_estimate(buckets, None).await, begun.elapsed()) {
            (Ok(estimate), took) if took < ESTIMATE_WITHIN => return Ok(estimate),
            (told, took) => anyhow::ensure!(Instant::now() < until, "an estimate took {took:?}: {told:?}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn in_writers_order(counts: Vec<anyhow::Result<(usize, u64)>>) -> anyhow::Result<Vec<u64>> {
    let mut counts = counts.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    counts.sort_unstable();
    Ok(counts.into_iter().map(|(_, count)| count).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_bucket_whose_region_is_killed_gets_another_primary_and_misses_nothing() -> anyhow::Result<()> {
    a_region_is_killed([1, 1, 1]).await
}

/// Every node of it, in the same moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_bucket_whose_region_of_three_is_killed_gets_another_primary_and_misses_nothing() -> anyhow::Result<()> {
    a_region_is_killed([3, 1, 1]).await
}

async fn a_region_is_killed(nodes: [usize; REGIONS.len()]) -> anyhow::Result<()> {
    let _alone = ALONE.lock().await;
    let dir = tempfile::Builder::new().prefix("meridian-failover").tempdir()?;
    let mut planet = planet_of(dir.path(), nodes).await?;
    let lost = planet.nodes_of(REGIONS[0]);
    let left = planet.nodes_of(REGIONS[1])[0];
    let client = planet.client(left).await?;
    let sync = Policy::Sync { acks: Acks::Majority, on_partition: OnPartition::Block };
    create(&client, "pay", sync, AutoMode::ZeroLoss).await?;
    let (stop, last) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
    let writers = start(&planet, "pay", &stop, &last).await?;
    while last.load(Ordering::Relaxed) < 500 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    lost.iter().try_for_each(|node| planet.kill(*node))?;
    let killed = Instant::now();
    // What was under way when it died is acknowledged or not within a moment.
    let mut late = nap(Duration::from_millis(500)).await;
    let before = last.load(Ordering::Relaxed);
    while last.load(Ordering::Relaxed) == before {
        anyhow::ensure!(killed.elapsed() < PATIENCE, "nothing was acknowledged any more; {}", planet.log_tail(left));
        late += nap(Duration::from_millis(5)).await;
    }
    let outage = killed.elapsed();
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.cancel();
    let acknowledged = in_writers_order(writers.join_all().await)?;
    // A first one may have been given up.
    let failed_over = |plan: &Plan| plan.moves.iter().any(|it| matches!(it.step, Step::FailedOver { .. }));
    let plan = ended(&client, failed_over).await?;
    let sum: u64 = acknowledged.iter().sum();
    eprintln!("first write {outage:?} after the kill, the machine {late:?} late; {sum} acknowledged; {plan:?}");
    let Step::FailedOver { epoch, to, ref verdict, .. } = plan.moves[0].step else { anyhow::bail!("{plan:?}") };
    assert!(verdict.proven && verdict.lost.is_none(), "{verdict:?}");
    assert_eq!(missing(&client, "pay", &acknowledged).await?, 0, "DUR-2");
    assert!(outage < FIRST_WRITE_WITHIN + late, "the first write was acknowledged {outage:?} after the kill");

    // FEN-1: the old primary comes back and is none. It may well be the one that answers, for it holds a copy; another orders.
    lost.iter().try_for_each(|node| planet.start(*node))?;
    planet.ready(PATIENCE).await?;
    let old = planet.client(0).await?;
    let written = old.bucket("pay")?.put("after", "return").deadline(PATIENCE).await?;
    assert_eq!((written.version.region, written.meta.epoch), (to, epoch), "{written:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_async_bucket_is_only_given_up_to_what_was_agreed() -> anyhow::Result<()> {
    let _alone = ALONE.lock().await;
    let dir = tempfile::Builder::new().prefix("meridian-failover").tempdir()?;
    let mut planet = planet(dir.path()).await?;
    let client = planet.client(1).await?;
    create(&client, "feed", Policy::ASYNC, AutoMode::Manual).await?;
    let (stop, last) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
    let began = Instant::now();
    let writers = start(&planet, "feed", &stop, &last).await?;
    let buckets = Selection::AllFrom(RegionName::new(REGIONS[0])?);
    // What is lacking is told five times a second: the first five hundred writes may take less than that.
    let has_said = |it: &Estimate| it.buckets.iter().any(|bucket| bucket.said_ms.is_some());
    while last.load(Ordering::Relaxed) < 500 || !has_said(&estimate(&client, &buckets).await?) {
        anyhow::ensure!(began.elapsed() < PATIENCE, "the primary does not say what the others lack");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    planet.kill(0)?;
    stop.cancel();
    let acknowledged = in_writers_order(writers.join_all().await)?;

    let estimate = estimate(&client, &buckets).await?;
    let [bucket] = estimate.buckets.as_slice() else { anyhow::bail!("{estimate:?}") };
    assert!(
        !bucket.primary_answers && !bucket.proven && bucket.lost.unbounded && bucket.said_ms.is_some(),
        "{bucket:?}"
    );

    let spec =
        |consent| FailoverSpec { buckets: buckets.clone(), to: None, consent, automatic: false, reason: String::new() };
    let refused = client.admin().failover(&spec(None), OperationId(1), false).await.unwrap_err();
    assert_eq!(refused.kind, RefusalKind::Consent);
    let plan = client.admin().failover(&spec(estimate.consent.clone()), OperationId(2), false).await?;
    let plan = ended(&client, |it| it.id == plan.id).await?;
    assert_eq!(plan.outcome(), PlanOutcome::Done, "{plan:?}");
    let Step::FailedOver { verdict, .. } = &plan.moves[0].step else { anyhow::bail!("{plan:?}") };
    let lost = missing(&client, "feed", &acknowledged).await?;
    eprintln!("{} acknowledged, {lost} lost, estimated {}", acknowledged.iter().sum::<u64>(), bucket.lost);
    assert!(bucket.lost.covers(verdict.lost), "SWI-2: {} estimated, {} in the end", bucket.lost, verdict.lost);
    client.bucket("feed")?.put("after", "failover").deadline(PATIENCE).await?;
    Ok(())
}
