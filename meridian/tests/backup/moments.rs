//! What a chain of backups tells between its links: with the log kept, any moment comes back as a sequential writer had it
//! acknowledged; with the log purged, or the bucket's tail undone by a failover, rows are compared, the reason is said, and what
//! comes back is right.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use meridian_types::{
    BucketName, BucketSpec, FailoverSpec, OperationId, PlanOutcome, Policy, RegionName, Selection, ShardDigest,
};

use super::chain::ids_of;
use super::*;

/// Operations of the sequential writer between two backups.
const OPERATIONS: u64 = 60;

/// A log is purged in steps of so many entries, unless a while passes (`consensus/src/janitor.rs`).
const PURGED_AT_ONCE: u32 = 256;

/// A bucket of two regions.
const UNDONE: &str = "undone";

/// The region that is lost with a tail that only it has, and comes back.
const PRIMARY: usize = 0;

/// The region that does not hold that bucket.
const BESIDE: usize = 1;

/// The region that takes over.
const SUCCESSOR: usize = 2;

/// Far longer than a millisecond, the grain of a moment.
const PAUSE: Duration = Duration::from_millis(5);

fn launch(kept_bytes: u64) -> Launch {
    let environment = [("MERIDIAN_LIMITS__LOG_KEPT_BYTES", kept_bytes), ("MERIDIAN_LIMITS__PERSIST_EVERY_MS", 200)];
    let environment = environment.into_iter().map(|(name, value)| (name.to_owned(), value.to_string())).collect();
    Launch { environment, ..Launch::default() }
}

fn now_ms() -> anyhow::Result<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?)
}

/// What one writer has done, one thing after the other: when each was acknowledged, and what there was then.
struct Sequence {
    done: u64,
    model: BTreeMap<String, String>,
    moments: Vec<(u64, BTreeMap<String, String>)>,
}

impl Sequence {
    async fn go_on(&mut self, rig: &Rig) -> anyhow::Result<()> {
        let bucket = rig.client.bucket("async")?;
        for _ in 0..OPERATIONS {
            self.done += 1;
            let key = format!("k-{}", self.done % 9);
            if self.done.is_multiple_of(7) {
                bucket.delete(key.as_str()).deadline(PATIENCE).await?;
                self.model.remove(&key);
            } else {
                bucket.put(key.as_str(), self.done.to_string()).deadline(PATIENCE).await?;
                self.model.insert(key, self.done.to_string());
            }
            self.moments.push((now_ms()?, self.model.clone()));
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_moment_between_two_backups_comes_back_as_it_was_acknowledged() -> anyhow::Result<()> {
    let rig = Rig::start_with(&launch(256 << 20)).await?;
    let place = rig.place("moments").display().to_string();
    let mut writer = Sequence { done: 0, model: BTreeMap::new(), moments: Vec::new() };
    writer.go_on(&rig).await?;
    let before_ms = writer.moments[0].0;
    rig.run(0, &format!("backup create async --to {place}")).await?;
    let begun = writer.moments.len();
    for _ in 0..2 {
        writer.go_on(&rig).await?;
        let told = rig.run(0, &format!("backup create async --to {place} --incremental")).await?;
        ensure!(told.contains("all since") && !told.contains("all rows were read"), "{told}");
    }
    rig.run(0, &format!("backup verify --from {place}")).await?;
    let chain = ids_of(&rig, &place, "async").await?;
    let last = chain.last().context("three links")?;
    for (nth, at) in [begun + 3, begun + OPERATIONS as usize, writer.moments.len() - 2].into_iter().enumerate() {
        let (at_ms, model) = &writer.moments[at];
        let line = format!("backup restore --from {place} --id {last} --at {at_ms} --to-bucket then-{nth} --create");
        rig.run(0, &line).await?;
        let found = rig.contents(&format!("then-{nth}")).await?;
        ensure!(found == *model, "at {at_ms}: {found:?}, not {model:?}");
    }
    let never = format!("--from {place} --to-bucket never --create");
    let told = rig.run(5, &format!("backup restore {never} --id {last} --at {before_ms}")).await?;
    ensure!(told.contains("before the oldest backup"), "{told}");
    let later_ms = now_ms()? + 3_600_000;
    let told = rig.run(5, &format!("backup restore {never} --id {last} --at {later_ms}")).await?;
    ensure!(told.contains("after the last backup"), "{told}");
    ensure!(rig.client.admin().topology().await?.bucket_named("never").is_none(), "nothing was created");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_purged_is_said_and_rows_are_compared() -> anyhow::Result<()> {
    let rig = Rig::start_with(&launch(0)).await?;
    let place = rig.place("purged").display().to_string();
    let bucket = rig.client.bucket("async")?;
    bucket.put("gone", "7").deadline(PATIENCE).await?;
    rig.run(0, &format!("backup create async --to {place}")).await?;
    let [base] =
        <[String; 1]>::try_from(ids_of(&rig, &place, "async").await?).map_err(|all| anyhow::anyhow!("{all:?}"))?;
    bucket.delete("gone").deadline(PATIENCE).await?;
    let mut told = String::new();
    until("the log is purged", async || {
        // All in one shard: so many entries at once are purged without waiting for more.
        let again =
            (0..2 * PURGED_AT_ONCE).map(|nth| bucket.put("moving", nth.to_string()).deadline(PATIENCE).into_future());
        try_join_all(again).await?;
        told = rig.run(0, &format!("backup create async --to {place} --since {base}")).await?;
        Ok(told.contains("does not reach back"))
    })
    .await?;
    rig.run(0, &format!("backup verify --from {place}")).await?;
    let list = rig.json(&format!("backup list --from {place}")).await?;
    let rows = list["backups"].as_array().context("a list")?;
    let last = rows.iter().max_by_key(|row| row["begun_ms"].as_u64()).context("some")?["id"].as_str();
    let line = format!("backup restore --from {place} --id {} --to-bucket again --create", last.context("an id")?);
    rig.run(0, &line).await?;
    let found = rig.contents("again").await?;
    ensure!(found.keys().eq(["moving"]) && found == rig.contents("async").await?, "as the one it is of: {found:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_that_a_failover_undid_is_not_taken_for_what_is_there() -> anyhow::Result<()> {
    let mut rig = Rig::start_with(&launch(256 << 20)).await?;
    let place = rig.place("undone").display().to_string();
    // The third region only votes: so the primary keeps its lease while its successor is down.
    let spec = BucketSpec {
        name: BucketName::new(UNDONE)?,
        policy: Policy::ASYNC,
        regions: vec![RegionName::new(REGIONS[PRIMARY])?, RegionName::new(REGIONS[SUCCESSOR])?],
        primary: Some(RegionName::new(REGIONS[PRIMARY])?),
        labels: Default::default(),
        auto: Default::default(),
    };
    rig.client.admin().create_bucket(&spec, false).await?;
    let bucket = rig.client.bucket(UNDONE)?;
    for nth in 0..STILL {
        bucket.put(format!("still-{nth}"), "7").deadline(PATIENCE).await?;
    }
    have_the_same(&rig.client, STILL as u64).await?;
    rig.planet.kill(SUCCESSOR)?;
    bucket.put("tail", "7").deadline(PATIENCE).await?;
    rig.run(0, &format!("backup create {UNDONE} --to {place}")).await?;
    rig.planet.kill(PRIMARY)?;
    rig.planet.start_with(SUCCESSOR, &launch(256 << 20))?;
    let left = rig.planet.client(BESIDE).await?;
    fail_over(&left).await?;
    rig.planet.start_with(PRIMARY, &launch(256 << 20))?;
    rig.planet.ready(PATIENCE).await?;
    left.bucket(UNDONE)?.put("after", "7").deadline(PATIENCE).await?;
    // The region that was primary has given up what only it had, and has what came since.
    have_the_same(&left, STILL as u64 + 1).await?;
    let next = format!("backup create {UNDONE} --to {place} --incremental");
    for (line, why) in [(format!("{next} --in {}", REGIONS[PRIMARY]), "epoch"), (next, "another region")] {
        let told = rig.run(0, &line).await?;
        ensure!(told.contains(why), "{told}");
    }
    rig.run(0, &format!("backup verify --from {place}")).await?;
    let chain = ids_of(&rig, &place, UNDONE).await?;
    ensure!(chain.len() == 3, "{chain:?}");
    for (nth, id) in chain.iter().enumerate() {
        rig.run(0, &format!("backup restore --from {place} --id {id} --to-bucket link-{nth} --create")).await?;
        let found = rig.contents(&format!("link-{nth}")).await?;
        ensure!(
            found.contains_key("tail") == (nth == 0) && found.contains_key("after") == (nth > 0),
            "link {nth}: {found:?}"
        );
        ensure!(found.len() == STILL + 1, "link {nth} has {} keys", found.len());
    }
    Ok(())
}

/// Waits until both regions have so many keys.
async fn have_the_same(client: &Client, keys: u64) -> anyhow::Result<()> {
    let mut seen = Vec::new();
    until("both regions have the same", async || {
        let regions = client.admin().digests(Some(&BucketName::new(UNDONE)?)).await?;
        let keys_of = |shards: Vec<ShardDigest>| shards.iter().map(|shard| shard.digest.keys).sum::<u64>();
        seen = regions.into_iter().map(|it| (it.region, it.answer.map(keys_of).ok())).collect();
        let held = seen.iter().filter(|(region, _)| region.as_str() != REGIONS[BESIDE]);
        Ok(held.map(|(_, found)| *found).eq([Some(keys); 2]))
    })
    .await
    .with_context(|| format!("{keys} keys: {seen:?}"))
}

async fn fail_over(client: &Client) -> anyhow::Result<()> {
    let buckets = Selection::Named([BucketName::new(UNDONE)?].into());
    let mut done = None;
    until("the bucket has another primary", async || {
        let Ok(estimate) = client.admin().failover_estimate(&buckets, None).await else { return Ok(false) };
        let (buckets, reason) = (buckets.clone(), String::new());
        let spec = FailoverSpec { buckets, to: None, consent: estimate.consent.clone(), automatic: false, reason };
        let id = OperationId(rand::random());
        let Ok(begun) = client.admin().failover(&spec, id, false).await else { return Ok(false) };
        until("it ends", async || {
            let plans = client.admin().operations().await.unwrap_or_default();
            done = plans.into_iter().find(|plan| plan.id == begun.id && plan.ended_ms.is_some());
            Ok(done.is_some())
        })
        .await?;
        Ok(done.as_ref().is_some_and(|plan| plan.outcome() == PlanOutcome::Done))
    })
    .await
}
