//! A primary that is lost for good with a tail that nobody else has, and the region that takes over and lacks some of what another one has:
//! one of the two crashes on the way (FEN-2, DUR-2, SWI-2). Each time it is a bucket of its own, which the other work leaves alone.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use chaos::real::{REGIONS, verdict};
use futures::future::join_all;
use meridian_client::{BucketName, BucketSpec, Client, Policy, RegionName, Selection};
use meridian_types::{FailoverSpec, OperationId};
use tokio::time::{Instant, sleep};

use crate::points::Reached;
use crate::{AWAY, Crew, PATIENCE, RECOVERY, launch};

/// Has all that the lost primary had shipped.
const AHEAD: usize = 0;

/// Takes over, and was away when the last of that was shipped.
const SUCCESSOR: usize = 1;

/// How often a primary is lost, until a node comes to a failpoint: what is written may not be in time for a lease.
const LOSSES: usize = 3;

/// Writes of each kind: some in each shard.
const WRITES: usize = 12;

/// What is left of a lease must do for the tail.
const SOON: Duration = Duration::from_secs(2);

impl Crew {
    /// Has the successor, or the primary that was lost, come to a failpoint and crash there.
    pub(crate) async fn crash_after_loss(&mut self, name: &'static str, who: Reached) -> anyhow::Result<()> {
        for _ in 0..LOSSES {
            let bucket = format!("given-up-{}", self.given_up);
            self.given_up += 1;
            self.start_all()?;
            self.planet.ready(RECOVERY).await?;
            let tail = self.lose_primary(&bucket).await?;
            let armed = |one| (who == one).then_some((name, 1));
            self.planet.start(AHEAD)?;
            self.planet.start_with(SUCCESSOR, &launch(armed(Reached::AsSuccessor)))?;
            let mut crashed = self.take_over(&bucket, name).await?;
            self.planet.start_with(AWAY, &launch(armed(Reached::AsLostPrimary)))?;
            match who {
                Reached::AsLostPrimary => crashed = self.crashes(AWAY, name, 1).await?,
                // It is not to crash later, in another story.
                _ if !crashed => self.planet.kill(SUCCESSOR)?,
                _ => {}
            }
            self.start_all()?;
            self.planet.ready(RECOVERY).await?;
            self.is_settled(&bucket, tail).await.with_context(|| format!("{bucket}, after a crash at {name}"))?;
            if crashed {
                return Ok(());
            }
        }
        bail!("{name} was not reached though {LOSSES} primaries were lost")
    }

    /// All nodes are down then. The successor lacks all that was written, the third region a part of that, the tail; tells how many writes of
    /// the tail were acknowledged.
    async fn lose_primary(&mut self, bucket: &str) -> anyhow::Result<usize> {
        let spec = BucketSpec {
            name: BucketName::new(bucket)?,
            policy: Policy::ASYNC,
            regions: Vec::new(),
            primary: Some(RegionName::new(REGIONS[AWAY])?),
            labels: Default::default(),
            auto: Default::default(),
        };
        until("it is created", async || {
            let client = self.planet.client(AWAY).await?;
            match client.admin().create_bucket(&spec, false).await {
                // It may have been, by an attempt whose answer was lost.
                Err(_) if client.bucket(bucket)?.put("first", "x").deadline(SOON).await.is_err() => bail!("not yet"),
                _ => Ok(()),
            }
        })
        .await?;
        self.planet.kill(SUCCESSOR)?;
        let primary = self.planet.dial_only(AWAY).connect().await?;
        let beside = self.planet.dial_only(AHEAD).connect().await?;
        for nth in 0..WRITES {
            primary.bucket(bucket)?.put(shipped(nth), "known").deadline(RECOVERY).await?;
        }
        until("it is shipped", async || has_what_was_shipped(&beside, bucket).await).await?;
        self.planet.kill(AHEAD)?;
        let tail = (0..WRITES).map(|nth| write_soon(&primary, bucket, format!("tail-{nth}")));
        let acknowledged = join_all(tail).await.into_iter().flatten().count();
        self.planet.kill(AWAY)?;
        Ok(acknowledged)
    }

    /// The successor takes over, with consent to what that may cost; says whether it crashed on the way.
    async fn take_over(&mut self, bucket: &str, name: &'static str) -> anyhow::Result<bool> {
        let (began, mut crashed) = (Instant::now(), false);
        let client = self.planet.dial_only(AHEAD);
        loop {
            if self.planet.is_started(SUCCESSOR) && self.has_crashed(SUCCESSOR, name, 1)? {
                crashed = true;
                self.start_all_but(AWAY)?;
            }
            if let Ok(client) = client.connect().await
                && give_up(&client, bucket).await.is_ok_and(|is_over| is_over)
            {
                // What it still has to do it does soon.
                sleep(SOON).await;
                return Ok(crashed || self.has_crashed(SUCCESSOR, name, 1)?);
            }
            ensure!(
                began.elapsed() < RECOVERY * 2,
                "{bucket} got no other primary; {}",
                self.planet.log_tail(SUCCESSOR)
            );
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// All that was shipped is in every region, and what only the lost primary had is written down there.
    async fn is_settled(&self, bucket: &str, tail: usize) -> anyhow::Result<()> {
        let client = self.planet.client(AHEAD).await?;
        until("it takes writes", async || {
            client.bucket(bucket)?.put("after", "x").deadline(PATIENCE).await?;
            Ok(())
        })
        .await?;
        let equal = verdict::regions_are_equal(&client, &[bucket], RECOVERY).await;
        ensure!(equal.is_ok(), "{}", equal.err().unwrap_or_default().join("\n"));
        has_what_was_shipped(&client, bucket).await?;
        until("the tail is written down", async || {
            let found = in_bundles(&client, bucket).await?.len();
            ensure!(found >= tail, "{found} keys of a tail of {tail} are in bundles");
            Ok(())
        })
        .await
    }
}

fn shipped(nth: usize) -> String {
    format!("known-{nth}")
}

async fn write_soon(client: &Client, bucket: &str, key: String) -> anyhow::Result<()> {
    client.bucket(bucket)?.put(key, "lost").deadline(SOON).await?;
    Ok(())
}

/// Tries again until it works, as long as nodes need to recover.
async fn until(what: &str, works: impl AsyncFn() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        match works().await {
            Ok(()) => return Ok(()),
            Err(why) if began.elapsed() > RECOVERY => return Err(why.context(format!("waited until {what}"))),
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Fails as long as a key that was shipped is not there.
async fn has_what_was_shipped(client: &Client, bucket: &str) -> anyhow::Result<()> {
    let bucket = client.bucket(bucket)?;
    for nth in 0..WRITES {
        let found = bucket.get(shipped(nth)).eventual().await?;
        ensure!(found.value().is_some(), "{} is missing", shipped(nth));
    }
    Ok(())
}

/// Starts a failover if none is under way; says whether the bucket has its next primary.
async fn give_up(client: &Client, name: &str) -> anyhow::Result<bool> {
    let (name, to) = (BucketName::new(name)?, RegionName::new(REGIONS[SUCCESSOR])?);
    let topology = client.admin().topology().await?;
    let id = topology.bucket_ids.get(&name).context("the bucket is not known")?;
    let bucket = topology.buckets.get(id).context("the bucket is not known")?;
    let primary = bucket.primary.map(|region| topology.region_label(region));
    if primary.as_deref() == Some(REGIONS[SUCCESSOR]) && !bucket.is_between_primaries() {
        return Ok(true);
    }
    let buckets = Selection::Named(vec![name]);
    let consent = client.admin().failover_estimate(&buckets, None).await?.consent;
    let spec = FailoverSpec { buckets, to: Some(to), consent, automatic: false, reason: String::new() };
    client.admin().failover(&spec, OperationId(rand::random()), false).await?;
    Ok(false)
}

/// The keys of the tail that bundles have.
async fn in_bundles(client: &Client, bucket: &str) -> anyhow::Result<BTreeSet<Vec<u8>>> {
    let id = client.admin().topology().await?.bucket_ids.get(&BucketName::new(bucket)?).copied();
    let mut found = BTreeSet::new();
    for (node, bundles) in client.admin().salvages().await? {
        for bundle in bundles?.into_iter().filter(|bundle| Some(bundle.id.bucket) == id) {
            for part in 0..bundle.parts {
                let keys = client.admin().salvage_keys(&node, bundle.id, part, false).await?;
                found.extend(keys.into_iter().map(|it| it.key.to_vec()).filter(|key| key.starts_with(b"tail-")));
            }
        }
    }
    Ok(found)
}
