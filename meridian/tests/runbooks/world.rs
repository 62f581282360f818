//! What the world does while somebody reads a runbook, and what must be true when he has done what it says.

use std::time::Duration;

use anyhow::{Context, ensure};
use chaos::real::{REGIONS, verdict};
use futures::future::try_join_all;
use meridian_client::Client;
use meridian_types::Bucket;

use crate::stage::{PATIENCE, Stage};

/// A bucket of each kind that runbooks speak of, all with their primary in us-east.
const BUCKETS: [(&str, &str); 4] = [
    ("pay", "--policy sync --acks majority --primary us-east"),
    ("feed", "--policy async --primary us-east"),
    ("orders", "--policy sync --acks majority --auto zero-loss --primary us-east"),
    ("carts", "--policy active-active"),
];

/// Keys in each of them.
const KEYS: usize = 20;

/// Keys that a lost region has acknowledged and nobody else has.
const TAIL: usize = 12;

/// What happens.
#[derive(Clone, Copy, Debug)]
pub enum Happening {
    /// A datacenter dies, with kill -9. What `feed` has acknowledged last is nowhere else.
    Dies(&'static str),
    /// A datacenter dies, and its disks are gone.
    Burns(&'static str),
    /// A region and the others can't reach each other.
    IsCutOff(&'static str),
    /// They can again.
    IsMended(&'static str),
    /// Somebody types at a machine, before its server is stopped, what must not be done yet.
    RecoversTooEarly(&'static str),
}

impl Stage {
    /// Buckets with something in them that every region has.
    pub async fn holds_data(&mut self) -> anyhow::Result<()> {
        for (name, policy) in BUCKETS {
            self.quietly(&format!("meridian bucket create {name} {policy}")).await?;
        }
        let client = self.planet.client(0).await?;
        for (name, _) in BUCKETS {
            write(&client, name, "before", KEYS, PATIENCE).await?;
        }
        self.are_equal(&client, &BUCKETS.map(|(name, _)| name)).await
    }

    /// Something happens.
    pub async fn happens(&mut self, what: Happening) -> anyhow::Result<()> {
        match what {
            Happening::Dies(region) => {
                let node = self.only_node(region)?;
                let client = self.planet.dial_only(node).connect().await?;
                self.cut(region, true)?;
                // At once, on the strength of what is left of its lease.
                write(&client, "feed", "tail", TAIL, PATIENCE).await?;
                self.planet.kill(node)?;
                self.cut(region, false)
            }
            Happening::Burns(region) => {
                let node = self.only_node(region)?;
                self.planet.kill(node)?;
                self.planet.lose_disk(node)
            }
            Happening::IsCutOff(region) => self.cut(region, true),
            Happening::IsMended(region) => self.cut(region, false),
            Happening::RecoversTooEarly(machine) => {
                let config = self.planet.config_of(self.node(machine)?);
                let line = format!("meridian metadata recover --config {} --dry-run", config.display());
                let why =
                    self.quietly(&line).await.err().context("a node whose server runs was looked at")?.to_string();
                ensure!(why.contains("in use"), "{why}");
                Ok(())
            }
        }
    }

    /// Every bucket can be written, and what was acknowledged before is there, in every region, equal, once.
    pub async fn nothing_is_missing(&self) -> anyhow::Result<()> {
        let names = BUCKETS.map(|(name, _)| name);
        let client = self.planet.client(0).await?;
        for name in names {
            write(&client, name, "after", 1, PATIENCE).await?;
        }
        self.are_equal(&client, &names).await?;
        for region in REGIONS {
            for name in names {
                self.has(region, name, "before", KEYS).await?;
            }
        }
        Ok(())
    }

    /// What only the lost region had is everywhere.
    pub async fn the_tail_is_back(&self) -> anyhow::Result<()> {
        for region in REGIONS {
            self.has(region, "feed", "tail", TAIL).await?;
        }
        Ok(())
    }

    /// A region's own copy has these keys.
    pub async fn has(&self, region: &str, bucket: &str, what: &str, keys: usize) -> anyhow::Result<()> {
        let client = self.planet.dial_only(self.only_node(region)?).connect().await?;
        let bucket = client.bucket(bucket)?;
        for nth in 0..keys {
            let got = bucket.get(key(what, nth)).eventual().deadline(PATIENCE).await?;
            ensure!(got.value().is_some(), "{region} lacks `{}` of {}", key(what, nth), bucket.name());
        }
        Ok(())
    }

    /// A bucket as it is on record.
    pub async fn on_record(&self, nearest: usize, bucket: &str) -> anyhow::Result<Bucket> {
        let topology = self.planet.client(nearest).await?.admin().topology().await?;
        let known = topology.bucket_named(bucket).map(|it| it.as_ref().clone());
        known.with_context(|| format!("there is no bucket `{bucket}`"))
    }

    /// The region of its primary.
    pub async fn primary(&self, bucket: &str) -> anyhow::Result<String> {
        let topology = self.planet.client(1).await?.admin().topology().await?;
        let primary = topology.bucket_named(bucket).and_then(|it| it.primary);
        Ok(primary.map(|it| topology.region_label(it)).unwrap_or_default())
    }

    async fn are_equal(&self, client: &Client, buckets: &[&str]) -> anyhow::Result<()> {
        let equal = verdict::regions_are_equal(client, buckets, PATIENCE).await;
        equal.map_err(|why| anyhow::anyhow!("{}", why.join("\n")))
    }

    fn only_node(&self, region: &str) -> anyhow::Result<usize> {
        self.planet.nodes_of(region).first().copied().with_context(|| format!("{region} has no node"))
    }
}

async fn write(client: &Client, bucket: &str, what: &str, keys: usize, patience: Duration) -> anyhow::Result<()> {
    let bucket = client.bucket(bucket)?;
    let put = |nth: usize| bucket.put(key(what, nth), "value").deadline(patience).into_future();
    try_join_all((0..keys).map(put)).await?;
    Ok(())
}

fn key(what: &str, nth: usize) -> String {
    format!("{what}-{nth:03}")
}
