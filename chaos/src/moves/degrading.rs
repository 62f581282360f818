//! A second failure at each stage of degrading and returning (docs/adr/2026-11-27-degrade.md): one region of a bucket whose writes
//! are to be in all of them is cut off, and at each stage of what follows the primary's region is killed (DUR-2, DEG-1, SWI-2).
//!
//! ```text
//!  cut off ──► writes wait ──► DEGRADED ──► healed ──► RECOVERING ──► SYNC
//!                   X              X                        X           X    then it comes back: nothing is lost,
//!                                                                            or is replaced: nothing, proven, where it is SYNC;
//!                                                                            else with consent, and what is lost is in a bundle
//! ```

use std::collections::BTreeSet;
use std::fmt;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, ensure};
use meridian_client::{Acks, Client, Policy, Selection};
use meridian_types::{BucketEstimate, Consent, OnPartition, Standing, Step};
use tokio::time::{Instant, sleep};

use super::failovers::follows;
use super::figures::Durations;
use super::forced::{Back, fail_over, write_back};
use super::stage::{BUCKET, Stage, bucket_name};
use super::writers::{Writers, Written, missing};
use crate::real::{REGIONS, verdict};

/// Every region has to have a write: one that is silent is one too few.
pub(super) const POLICY: Policy =
    Policy::Sync { acks: Acks::All, on_partition: OnPartition::Degrade { after_ms: DEGRADE_AFTER_MS } };

/// Long enough to be killed in.
const DEGRADE_AFTER_MS: u64 = 5_000;

/// Nothing acknowledged for so long: writes wait. Many round trips, and far from the deadline.
const SILENCE: Duration = Duration::from_secs(1);

/// Writes acknowledged before anything is done, and again by a primary that has degraded.
const SOME: u64 = 200;

/// How often states are looked at: the shortest of them lasts a second.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How long any step may take before the run breaks down.
const PATIENCE: Duration = Duration::from_secs(120);

/// When the primary's region is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Waiting,
    Degraded,
    Recovering,
    Synced,
}

/// What becomes of it then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Returns,
    Replaced,
}

/// What a second failure came to, over all rounds.
#[derive(Default)]
struct Row {
    acknowledged: usize,
    lost: usize,
    /// Operations that estimates said are known to be lost.
    known: u64,
    back: Back,
    served: Durations,
}

impl When {
    const ALL: [When; 4] = [When::Waiting, When::Degraded, When::Recovering, When::Synced];

    /// Whether what is left proves that nothing is lost.
    fn is_proven(self) -> bool {
        matches!(self, When::Waiting | When::Synced)
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            When::Waiting => "writes wait, nothing on record",
            When::Degraded => "DEGRADED",
            When::Recovering => "RECOVERING",
            When::Synced => "just SYNC again",
        })
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Fate::Returns => "comes back",
            Fate::Replaced => "is replaced",
        })
    }
}

/// Fails twice in every way, so often; whether every promise was kept.
pub(super) async fn play(stage: &mut Stage, rounds: usize, out: &mut impl Write) -> anyhow::Result<bool> {
    let cases = When::ALL.into_iter().flat_map(|when| [(when, Fate::Returns), (when, Fate::Replaced)]);
    let mut rows: Vec<((When, Fate), Row)> = cases.map(|case| (case, Row::default())).collect();
    let mut wrong = Vec::new();
    for round in 1..=rounds {
        for (number, ((when, fate), row)) in rows.iter_mut().enumerate() {
            let name = format!("{round}/{number}");
            let case = || format!("round {round}, {when}, {fate}");
            let found = fail_twice(stage, (*when, *fate), &name, row).await.with_context(case)?;
            writeln!(out, "{}: {} things wrong", case(), found.len())?;
            out.flush()?;
            wrong.extend(found.into_iter().map(|sentence| format!("{}: {sentence}", case())));
        }
    }
    tell(&rows, out)?;
    for sentence in &wrong {
        writeln!(out, "WRONG: {sentence}")?;
    }
    Ok(wrong.is_empty())
}

fn tell(rows: &[((When, Fate), Row)], out: &mut impl Write) -> anyhow::Result<()> {
    let columns = ["acknowledged", "lost", "known", "back", "served again"];
    let [acknowledged, lost, known, back, served] = columns;
    writeln!(
        out,
        "{:31} {:12} {acknowledged:>12} {lost:>6} {known:>6} {back:>6}  {served}",
        "the primary is killed while", "and then"
    )?;
    for ((when, fate), row) in rows {
        let Row { acknowledged, lost, known, back, served } = row;
        writeln!(
            out,
            "{when:31} {fate:12} {acknowledged:12} {lost:6} {known:6} {:6}  {served}",
            back.restored + back.left
        )?;
    }
    Ok(())
}

/// One round of one case; what was wrong in it.
async fn fail_twice(
    stage: &mut Stage,
    (when, fate): (When, Fate),
    name: &str,
    row: &mut Row,
) -> anyhow::Result<Vec<String>> {
    let lost = stage.primary().await?;
    let (silent, witness) = ((lost + 1) % REGIONS.len(), (lost + 2) % REGIONS.len());
    // Of the region that hears both others all the time.
    let witness = stage.planet.client(witness).await?;
    let near = stage.planet.client(lost).await?;
    let writers = Writers::start(&near, stage.writers, name)?;
    until("writes are acknowledged", async || writers.acknowledged() > SOME).await?;
    stage.isolate(silent);
    arrive(stage, when, &witness, &writers).await?;
    stage.planet.kill(lost)?;
    let killed = Instant::now();
    let written = writers.stop().await?;
    ensure!(when != When::Waiting || standing(&witness).await?.is_sync(), "it was on record too soon");
    row.acknowledged += written.acknowledged.len();
    let wrong = match fate {
        Fate::Returns => come_back(stage, (lost, &near), &witness, &written, (row, killed)).await?,
        Fate::Replaced => replaced(stage, when, lost, &witness, &written, (row, killed)).await?,
    };
    settle(stage).await?;
    Ok(wrong)
}

/// Waits until it has come that far.
async fn arrive(stage: &Stage, when: When, witness: &Client, writers: &Writers) -> anyhow::Result<()> {
    if when == When::Waiting {
        return silence(writers).await;
    }
    on_record(witness, Standing::is_degraded).await?;
    let before = writers.acknowledged();
    until("writes are acknowledged with fewer", async || writers.acknowledged() > before + SOME).await?;
    if when == When::Degraded {
        return Ok(());
    }
    stage.heal();
    let is_recovering = |it: &Standing| matches!(it, Standing::Recovering { .. });
    on_record(witness, is_recovering).await?;
    if when == When::Synced { on_record(witness, Standing::is_sync).await } else { Ok(()) }
}

/// Waits until nothing is acknowledged any more.
async fn silence(writers: &Writers) -> anyhow::Result<()> {
    let began = Instant::now();
    let (mut count, mut since) = (writers.acknowledged(), began);
    while since.elapsed() < SILENCE {
        ensure!(began.elapsed() < PATIENCE, "writes go on though a region is silent");
        sleep(LOOK_EVERY).await;
        let now = writers.acknowledged();
        if now != count {
            (count, since) = (now, Instant::now());
        }
    }
    Ok(())
}

/// The region comes back as the primary that it was: nothing is missing, whatever stood on record.
async fn come_back(
    stage: &mut Stage,
    (lost, near): (usize, &Client),
    witness: &Client,
    written: &Written,
    (row, killed): (&mut Row, Instant),
) -> anyhow::Result<Vec<String>> {
    stage.start(lost)?;
    serve(near, killed, row).await?;
    stage.heal();
    stage.planet.ready(PATIENCE).await?;
    let missing = missing(&witness.bucket(BUCKET)?, &written.acknowledged).await?;
    row.lost += missing.len();
    let wrong = missing.first().map(|key| format!("{} acknowledged writes are lost, `{key}` is one", missing.len()));
    Ok(wrong.into_iter().collect())
}

/// Another region takes its place: what was lost was said, is in the lost one's bundles, and comes back.
async fn replaced(
    stage: &mut Stage,
    when: When,
    lost: usize,
    witness: &Client,
    written: &Written,
    (row, killed): (&mut Row, Instant),
) -> anyhow::Result<Vec<String>> {
    stage.heal();
    let (estimate, consent) = estimated(witness).await?;
    let mut wrong = Vec::new();
    if estimate.proven != when.is_proven() {
        wrong.push(format!("that nothing is lost was {} proven", if estimate.proven { "" } else { "not" }));
    }
    let plan = fail_over(witness, consent).await?;
    if let Some(Step::FailedOver { verdict, .. }) = plan.moves.first().map(|it| &it.step)
        && !estimate.lost.covers(verdict.lost)
    {
        wrong.push(format!("{} were estimated, {} in the end", estimate.lost, verdict.lost));
    }
    let missing = missing(&witness.bucket(BUCKET)?, &written.tried).await?;
    let lost_keys: BTreeSet<String> = missing.intersection(&written.acknowledged).cloned().collect();
    (row.lost, row.known) = (row.lost + lost_keys.len(), row.known + estimate.lost.operations);
    let bound = if estimate.lost.unbounded { u64::MAX } else { estimate.lost.operations };
    if lost_keys.len() as u64 > bound {
        wrong.push(format!("{} acknowledged writes are lost, at most {bound} were estimated", lost_keys.len()));
    }
    serve(witness, killed, row).await?;
    stage.start(lost)?;
    stage.planet.ready(PATIENCE).await?;
    let keys = (&missing, &lost_keys, &BTreeSet::new());
    wrong.extend(write_back(stage, witness, lost, keys, &mut row.back).await?);
    Ok(wrong)
}

/// What all who are left say, and the consent to it where one is needed.
async fn estimated(witness: &Client) -> anyhow::Result<(BucketEstimate, Option<Consent>)> {
    let buckets = Selection::Named(vec![bucket_name()?]);
    let began = Instant::now();
    loop {
        let estimate = witness.admin().failover_estimate(&buckets, None).await?;
        let bucket = estimate.buckets.into_iter().next().context("the bucket is gone")?;
        if bucket.heard.len() == REGIONS.len() - 1 {
            return Ok((bucket, estimate.consent));
        }
        ensure!(began.elapsed() < PATIENCE, "not every region that is left answers: {bucket:?}");
        sleep(LOOK_EVERY).await;
    }
}

/// Whoever is the primary acknowledges writes again.
async fn serve(client: &Client, killed: Instant, row: &mut Row) -> anyhow::Result<()> {
    client.bucket(BUCKET)?.put("served", "again").deadline(PATIENCE).await?;
    row.served.extend([killed.elapsed()]);
    Ok(())
}

/// Waits until everything is as it was before: SYNC, every lane streams, every region is equal.
async fn settle(stage: &Stage) -> anyhow::Result<()> {
    on_record(&stage.operator, Standing::is_sync).await?;
    until("every replica follows", async || follows(stage).await).await?;
    let equal = verdict::regions_are_equal(&stage.operator, &[BUCKET], PATIENCE).await;
    equal.map_err(|why| anyhow::anyhow!(why.join("; ")))
}

async fn standing(client: &Client) -> anyhow::Result<Standing> {
    let topology = client.admin().topology().await?;
    Ok(topology.bucket_named(BUCKET).context("the bucket is gone")?.standing.clone())
}

async fn on_record(client: &Client, is: impl Fn(&Standing) -> bool) -> anyhow::Result<()> {
    until("the bucket stands as it should", async || standing(client).await.is_ok_and(|it| is(&it))).await
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) -> anyhow::Result<()> {
    let began = Instant::now();
    while !holds().await {
        ensure!(began.elapsed() < PATIENCE, "not in time: {what}");
        sleep(LOOK_EVERY).await;
    }
    Ok(())
}
