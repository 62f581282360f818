//! A region of a bucket that all regions write does not come back: the others go on without it, with an estimate and a consent, and end
//! equal; what it alone had is in its salvage bundles when it is there again, no more and no less, and is written back; and it joins again
//! (CON-4, FEN-2, SWI-2, SWI-3; docs/adr/2026-11-28-active-active-lost-regions.md). Real processes, SIGKILL, under load.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use chaos::real::{Planet, REGIONS, changes, load};
use meridian_client::Client;
use meridian_types::{
    Bucket, BucketChange, BucketName, Consent, Cross, Estimate, Policy, RefusalKind, RegionChange, RegionName,
    ReplayPolicy, ReplayReport, Selection,
};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(120);
const NAME: &str = "everywhere";
/// The region that is lost.
const LOST: usize = 2;
const BETWEEN: Duration = Duration::from_millis(700);
const LONG_MS: u64 = 60_000;
const POLICY: Policy = Policy::ActiveActive;
/// Puts that only the lost region has.
const TAIL: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_is_lost_where_all_write_is_removed_with_consent_and_its_tail_is_kept_and_written_back()
-> anyhow::Result<()> {
    let dir = tempfile::Builder::new().prefix("meridian-active-active-lost").tempdir()?;
    let mut planet = Planet::create(Path::new(env!("CARGO_BIN_EXE_meridian")), dir.path())?;
    for node in 0..REGIONS.len() {
        planet.start(node)?;
    }
    planet.ready(PATIENCE).await?;
    planet.create_bucket(NAME, POLICY).await?;
    let client = planet.client(0).await?;
    let lost = RegionName::new(REGIONS[LOST])?;
    let topology = client.admin().topology().await?;
    let id = topology.region_named(lost.as_str()).map(|region| region.id).unwrap_or_default();
    let stop = CancellationToken::new();
    let mut writers = Vec::new();
    for node in 0..LOST {
        // These stay where they are: what they get acknowledged is not to be lost.
        let client = planet.dial_only(node).connect().await?;
        for writer in [2 * node, 2 * node + 1] {
            writers.push(tokio::spawn(load::write(client.bucket(NAME)?, POLICY, writer, stop.clone())));
        }
    }
    let there = planet.dial_only(LOST).connect().await?.bucket(NAME)?;
    there.increment("count", 5).await?;
    there.put("shared", "1").await?;
    let here = client.bucket(NAME)?;
    until_text(&here, "count", "5").await?;
    until_text(&here, "shared", "1").await?;
    tokio::time::sleep(BETWEEN).await;

    // What it takes alone nobody else has: it goes on without the others, and without the metadata plane.
    for node in 0..LOST {
        planet.kill(node)?;
    }
    let mut tail = BTreeSet::from(["count".to_owned(), "shared".to_owned()]);
    for nth in 0..TAIL {
        let key = format!("tail/{nth:03}");
        there.put(key.as_str(), "v").deadline(PATIENCE).await?;
        tail.insert(key);
    }
    there.increment("count", 3).deadline(PATIENCE).await?;
    there.put("shared", "2").deadline(PATIENCE).await?;
    planet.kill(LOST)?;
    for node in 0..LOST {
        planet.start(node)?;
    }

    let estimate = until_estimated(&client, &lost).await?;
    let bucket = &estimate.buckets[0];
    anyhow::ensure!(bucket.lost.unbounded && !bucket.primary_answers && bucket.heard.len() == 2, "{estimate:?}");
    let consent = estimate.consent.clone().ok_or_else(|| anyhow::anyhow!("no consent: {estimate:?}"))?;
    let other = Consent { lost: Some(RegionName::new(REGIONS[1])?), ..consent.clone() };
    let refused = client.admin().set_bucket(&BucketName::new(NAME)?, &change(&lost, other), false).await;
    anyhow::ensure!(refused.is_err_and(|why| why.kind == RefusalKind::Consent), "the consent is for another region");
    let since = Instant::now();
    changes::set((&client, NAME), &change(&lost, consent), PATIENCE).await?;
    let left = until(&client, "they go on without it", |it| it.crossing.is_none()).await?;
    anyhow::ensure!(!left.is_in(id) && left.epoch.0 == 2, "{left:?}");
    here.put("after", "1").deadline(PATIENCE).await?;
    eprintln!("a write {:.1} s after the consent", since.elapsed().as_secs_f64());
    here.put("shared", "3").deadline(PATIENCE).await?;
    anyhow::ensure!(text(&here, "tail/000").await?.is_none() && text(&here, "count").await?.as_deref() == Some("5"));
    tokio::time::sleep(BETWEEN).await;

    planet.start(LOST)?;
    planet.ready(PATIENCE).await?;
    changes::until_gone((&client, NAME), id, PATIENCE).await?;
    let (kept, careful) = replay(&client, ReplayPolicy::IfUnchanged).await?;
    anyhow::ensure!(kept == tail, "kept is what was lost, no more and no less: {:?}", kept.symmetric_difference(&tail));
    // Of keys that are absent nobody can tell whether they were deleted since; what a counter lacks is added whatever it is.
    let told = (careful.restored, careful.changed, careful.unknown, careful.failed);
    anyhow::ensure!(told == (1, 1, TAIL as u64, 0), "{careful:?}");
    let (_, report) = replay(&client, ReplayPolicy::Overwrite).await?;
    let told = (report.restored, report.changed, report.failed);
    anyhow::ensure!(told == (TAIL as u64 + 1, 1, 0), "a counter is not added to twice: {report:?}");
    for node in 0..REGIONS.len() {
        let here = planet.client(node).await?.bucket(NAME)?;
        until_text(&here, "tail/000", "v").await?;
        until_text(&here, "count", "8").await?;
        until_text(&here, "shared", "2").await?;
    }

    let cross = Some(Cross { primary: None, pause_ms_max: LONG_MS });
    let again = BucketChange { regions: Some(RegionChange::Add(lost)), cross, ..BucketChange::default() };
    changes::set((&client, NAME), &again, PATIENCE).await?;
    until(&client, "it writes again", |it| it.is_in(id)).await?;
    // Of a new session: the old one has seen what was given up.
    let there = planet.dial_only(LOST).connect().await?.bucket(NAME)?;
    there.increment("count", 2).deadline(PATIENCE).await?;
    tokio::time::sleep(BETWEEN).await;
    changes::until_loaded((&client, NAME), 0..2 * LOST, PATIENCE).await?;
    stop.cancel();
    let kept = changes::everything_is_kept((&client, NAME), writers, PATIENCE).await?;
    for node in 0..REGIONS.len() {
        let here = planet.client(node).await?.bucket(NAME)?;
        anyhow::ensure!(text(&here, "count").await?.as_deref() == Some("10"));
    }
    anyhow::ensure!(kept.puts > 50 && kept.increments > 50, "only {kept:?} were acknowledged");
    eprintln!("lost, written back, and there again: {kept:?}; {report:?}");
    Ok(())
}

fn change(lost: &RegionName, consent: Consent) -> BucketChange {
    let cross = Some(Cross { primary: None, pause_ms_max: LONG_MS });
    let regions = Some(RegionChange::Remove(lost.clone()));
    BucketChange { regions, cross, accept_loss: Some(consent), ..BucketChange::default() }
}

/// Until the regions that are left can say what they have: they elect.
async fn until_estimated(client: &Client, lost: &RegionName) -> anyhow::Result<Estimate> {
    let (began, buckets) = (Instant::now(), Selection::Named(vec![BucketName::new(NAME)?]));
    loop {
        let estimate = client.admin().loss_estimate(&buckets, lost).await;
        match estimate {
            Ok(estimate) if estimate.buckets.iter().all(|it| it.to.is_some()) => return Ok(estimate),
            told => anyhow::ensure!(began.elapsed() < PATIENCE, "no estimate: {told:?}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The keys of all bundles of the region that was lost; and what became of them.
async fn replay(client: &Client, policy: ReplayPolicy) -> anyhow::Result<(BTreeSet<String>, ReplayReport)> {
    let (mut kept, mut sum) = (BTreeSet::new(), ReplayReport::default());
    for (node, bundles) in client.admin().salvages().await? {
        for bundle in bundles? {
            anyhow::ensure!(bundle.whole, "{bundle:?}");
            for part in 0..bundle.parts {
                let keys = client.admin().salvage_keys(&node, bundle.id, part, false).await?;
                kept.extend(keys.into_iter().map(|it| String::from_utf8_lossy(&it.key).into_owned()));
                let report = client.admin().replay(&node, bundle.id, part, policy, false).await?;
                sum.restored += report.restored;
                sum.changed += report.changed;
                sum.unknown += report.unknown;
                sum.failed += report.failed;
            }
        }
    }
    Ok((kept, sum))
}

async fn text(bucket: &meridian_client::Bucket, key: &str) -> anyhow::Result<Option<String>> {
    let got = bucket.get(key.to_owned()).eventual().await?;
    Ok(got.value().map(|value| String::from_utf8_lossy(value).into_owned()))
}

async fn until_text(bucket: &meridian_client::Bucket, key: &str, wanted: &str) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let now = text(bucket, key).await;
        if matches!(&now, Ok(Some(now)) if now == wanted) {
            return Ok(());
        }
        anyhow::ensure!(began.elapsed() < PATIENCE, "`{key}` is {now:?}, not `{wanted}`");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn until(client: &Client, what: &str, holds: impl Fn(&Bucket) -> bool) -> anyhow::Result<Bucket> {
    changes::until((client, NAME), (Instant::now(), PATIENCE), what, holds).await
}
