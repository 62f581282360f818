//! What tests of changes under load have in common: looking at a bucket until it is as it should be, and the end, at which nothing may be
//! missing.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::ensure;
use meridian_client::{Client, Effect, RefusalKind};
use meridian_types::{Bucket, BucketChange, BucketName, RegionId};
use tokio::task::JoinHandle;

use super::load::{Ledger, counter_key};
use super::verdict;

/// How often a bucket is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// So many increments, of all writers together, are a load; each of them puts as often.
const LOAD: i64 = 100;

/// A bucket as it is on record.
///
/// # Errors
/// When nobody answers, or there is none of that name.
pub async fn bucket(client: &Client, name: &str) -> anyhow::Result<Bucket> {
    let topology = client.admin().topology().await?;
    topology.bucket_named(name).map(|bucket| bucket.as_ref().clone()).ok_or_else(|| anyhow::anyhow!("no bucket"))
}

/// Rehearses a change of a bucket, which changes nothing, and makes it: what it was to become, and what it has become. Waits for a
/// metadata leader: an election on a busy machine takes its time, and an answer is lost with the leader that was asked.
///
/// # Errors
/// When it is refused, or not made within `patience`.
pub async fn set(
    (client, name): (&Client, &str),
    change: &BucketChange,
    patience: Duration,
) -> anyhow::Result<(Bucket, Bucket)> {
    let (since, id) = (Instant::now(), BucketName::new(name)?);
    let before = bucket(client, name).await?;
    let rehearsed = client.admin().set_bucket(&id, change, true).await?;
    ensure!(is_same(&before, &bucket(client, name).await?), "the dry run changes nothing");
    let mut may_be_made = false;
    loop {
        let why = match client.admin().set_bucket(&id, change, false).await {
            Ok(changed) => return Ok((rehearsed, changed)),
            Err(why) => why,
        };
        may_be_made |= why.effect != Effect::None;
        let passes = matches!(why.kind, RefusalKind::Unavailable | RefusalKind::Retry);
        ensure!(may_be_made || passes, "{why}");
        let now = bucket(client, name).await?;
        if may_be_made && !is_same(&before, &now) {
            return Ok((rehearsed, now));
        }
        ensure!(since.elapsed() < patience, "{why}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Whether nothing that somebody asks for has changed: how copies stand changes by itself.
fn is_same(a: &Bucket, b: &Bucket) -> bool {
    (a.epoch, &a.policy, &a.regions, a.joins.joining(), a.crossing.is_some())
        == (b.epoch, &b.policy, &b.regions, b.joins.joining(), b.crossing.is_some())
}

/// Waits until the bucket is as it should be; says how long that took, from `since` on.
///
/// # Errors
/// When it is not within `patience`.
pub async fn until(
    (client, name): (&Client, &str),
    (since, patience): (Instant, Duration),
    what: &str,
    holds: impl Fn(&Bucket) -> bool,
) -> anyhow::Result<Bucket> {
    loop {
        let now = bucket(client, name).await?;
        if holds(&now) {
            eprintln!("{what}: after {:.1} s", since.elapsed().as_secs_f64());
            return Ok(now);
        }
        ensure!(since.elapsed() < patience, "not in time: {what}: {now:?}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Waits until a region has nothing of a bucket any more.
///
/// # Errors
/// When it still has something after `patience`.
pub async fn until_gone((client, name): (&Client, &str), region: RegionId, patience: Duration) -> anyhow::Result<()> {
    let since = Instant::now();
    let bucket = BucketName::new(name)?;
    let topology = client.admin().topology().await?;
    let label = topology.region_label(region);
    loop {
        let answers = client.admin().digests(Some(&bucket)).await?;
        let there = answers.iter().find(|it| it.region.as_str() == label).and_then(|it| it.answer.as_ref().ok());
        let keys = there.map(|shards| shards.iter().map(|shard| shard.digest.keys).sum::<u64>());
        if keys == Some(0) {
            eprintln!("it has dropped what it had: after {:.1} s", since.elapsed().as_secs_f64());
            return Ok(());
        }
        ensure!(since.elapsed() < patience, "it still has {keys:?} keys");
        tokio::time::sleep(2 * LOOK_EVERY).await;
    }
}

/// Waits until these writers have done enough to speak of a load: what they come to in a given time depends on the machine.
///
/// # Errors
/// When they have not within `patience`, or nobody answers.
pub async fn until_loaded(
    (client, name): (&Client, &str),
    writers: Range<usize>,
    patience: Duration,
) -> anyhow::Result<()> {
    let (since, bucket) = (Instant::now(), client.bucket(name)?);
    loop {
        let mut increments = 0;
        for writer in writers.clone() {
            let got = bucket.get(counter_key(writer)).eventual().await?;
            let text = got.value().map(|value| String::from_utf8_lossy(value).into_owned());
            increments += text.and_then(|text| text.parse::<i64>().ok()).unwrap_or_default();
        }
        if increments >= LOAD {
            return Ok(());
        }
        ensure!(since.elapsed() < patience, "only {increments} increments");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What all writers together have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Puts that were acknowledged.
    pub puts: usize,
    /// Puts whose answer was lost.
    pub unknown: usize,
    /// Increments that were acknowledged.
    pub increments: i64,
}

/// Waits for the writers, which were told to stop, and demands that everything acknowledged is there once, and that all regions
/// end equal (DUR-1, ONE-1, CON-4).
///
/// # Errors
/// One sentence per violation.
pub async fn everything_is_kept(
    (client, name): (&Client, &str),
    writers: Vec<JoinHandle<Ledger>>,
    patience: Duration,
) -> anyhow::Result<Kept> {
    let bucket = client.bucket(name)?;
    let (mut ledgers, mut all) = (Vec::new(), Kept::default());
    for writer in writers {
        ledgers.push(writer.await?);
    }
    verdict::regions_are_equal(client, &[name], patience).await.map_err(|why| anyhow::anyhow!("{}", why.join("\n")))?;
    for ledger in &ledgers {
        let kept = verdict::ledger_is_kept(&bucket, ledger).await;
        ensure!(kept.is_ok(), "{kept:?}");
        all.puts += ledger.puts.values().filter(|it| **it).count();
        all.unknown += ledger.puts.values().filter(|it| !**it).count();
        all.increments += ledger.increments.acknowledged;
    }
    Ok(all)
}
