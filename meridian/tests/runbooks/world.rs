//! What the world does while somebody reads a runbook, and what must be true when he has done what it says.

use anyhow::{Context, ensure};
use chaos::real::{REGIONS, create_bucket, verdict};
use futures::future::try_join_all;
use meridian_client::{Acks, Client, Policy};
use meridian_metadata_core::recover::EPOCHS_LEAP;

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
pub(crate) enum Happening {
    /// A datacenter dies, with kill -9.
    Dies(&'static str),
    /// The same, and what `feed` has acknowledged last is nowhere else.
    DiesWithATail(&'static str),
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
    pub(crate) async fn holds_data(&mut self) -> anyhow::Result<()> {
        for (name, policy) in BUCKETS {
            self.quietly(&format!("meridian bucket create {name} {policy}")).await?;
        }
        let client = self.planet.client(0).await?;
        for (name, _) in BUCKETS {
            write(&client, name, "before", KEYS).await?;
        }
        self.are_equal(&client, &BUCKETS.map(|(name, _)| name)).await
    }

    /// Something happens.
    pub(crate) async fn happens(&mut self, what: Happening) -> anyhow::Result<()> {
        match what {
            Happening::Dies(region) => self.planet.kill(self.only_node(region)?),
            Happening::DiesWithATail(region) => {
                let node = self.only_node(region)?;
                let client = self.planet.dial_only(node).connect().await?;
                self.cut(region, true)?;
                // At once, on the strength of what is left of its lease.
                write(&client, "feed", "tail", TAIL).await?;
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
                ensure!(why.contains("already uses the data directory"), "{why}");
                Ok(())
            }
        }
    }

    /// Every bucket can be written, and what was acknowledged before is there, in every region, equal, once.
    pub(crate) async fn nothing_is_missing(&self) -> anyhow::Result<()> {
        let names = BUCKETS.map(|(name, _)| name);
        let client = self.planet.client(0).await?;
        for name in names {
            write(&client, name, "after", 1).await?;
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
    pub(crate) async fn the_tail_is_back(&self) -> anyhow::Result<()> {
        for region in REGIONS {
            self.has(region, "feed", "tail", TAIL).await?;
        }
        Ok(())
    }

    /// A region's own copy has these keys.
    pub(crate) async fn has(&self, region: &str, bucket: &str, what: &str, keys: usize) -> anyhow::Result<()> {
        let client = self.planet.dial_only(self.only_node(region)?).connect().await?;
        let bucket = client.bucket(bucket)?;
        let found = bucket.multi_get((0..keys).map(|nth| key(what, nth))).eventual().deadline(PATIENCE).await?.found;
        let lacking: Vec<_> = (0..keys).filter(|nth| found[*nth].is_none()).map(|nth| key(what, nth)).collect();
        ensure!(lacking.is_empty(), "{region} lacks {lacking:?} of {}", bucket.name());
        Ok(())
    }

    /// The metadata plane is at its next generation, under epochs that nobody has written under, and decides; a voter that was taken for lost has
    /// set its copy aside and follows, and one without its disk did not start (FEN-2, DUR-1).
    pub(crate) async fn is_recovered(&mut self) -> anyhow::Result<()> {
        let (left, returned, burnt) = (1, 0, 2);
        let client = self.planet.client(left).await?;
        let topology = client.admin().topology().await?;
        ensure!(topology.generation == 1, "{topology:?}");
        for bucket in topology.buckets.values() {
            let is_raised = bucket.epoch.0 > EPOCHS_LEAP;
            ensure!(is_raised == bucket.primary.is_some(), "{} is in epoch {}", bucket.name, bucket.epoch);
        }
        create_bucket(&client, "later", Policy::sync(Acks::Majority)).await?;
        for name in ["pay", "feed", "orders", "carts", "later"] {
            write(&client, name, "after", KEYS).await?;
        }
        ensure!(
            self.planet.disk(returned).join("metadata").join("generation-1").is_dir(),
            "it did not set its copy aside"
        );
        for (name, _) in BUCKETS {
            self.has(REGIONS[left], name, "before", KEYS).await?;
            self.has(REGIONS[returned], name, "before", KEYS).await?;
        }
        let refused = self.ended(burnt).await?;
        ensure!(!refused.success(), "a node without its disk has ended well");
        Ok(())
    }

    /// The region of its primary.
    pub(crate) async fn primary(&self, bucket: &str) -> anyhow::Result<String> {
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

async fn write(client: &Client, bucket: &str, what: &str, keys: usize) -> anyhow::Result<()> {
    let bucket = client.bucket(bucket)?;
    let put = |nth: usize| bucket.put(key(what, nth), "value").deadline(PATIENCE).into_future();
    try_join_all((0..keys).map(put)).await?;
    Ok(())
}

fn key(what: &str, nth: usize) -> String {
    format!("{what}-{nth:03}")
}
