//! Three regions over the emulated WAN, one bucket, and callers that never stop.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use meridian_client::{Admin, BucketName, Client, Policy, RegionName};
use meridian_types::RegionId;

use super::callers::Callers;
use crate::real::{Planet, REGIONS, create_bucket};
use crate::wan::tools::Tools;
use crate::wan::weather::Distances;

/// The bucket whose primary moves.
pub(super) const BUCKET: &str = "moving";

/// How long a cluster may take to form.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is asked for.
pub(super) struct Options {
    /// The binary under test.
    pub(super) binary: PathBuf,
    /// Round trips between regions 0–1, 0–2, 1–2.
    pub(super) round_trips: [Duration; 3],
    /// How the bucket replicates.
    pub(super) policy: Policy,
    /// How many callers.
    pub(super) callers: usize,
    /// The pause of each between two requests.
    pub(super) think: Duration,
}

/// A planet under load.
pub(super) struct Stage {
    pub(super) callers: Callers,
    /// An operator's view, from beside the first region.
    pub(super) operator: Client,
    pub(super) round_trips: [Duration; 3],
    // Behind whoever speaks to them.
    pub(super) planet: Planet,
    _tools: Tools,
}

impl Stage {
    /// The ground it stands on; enter the observer's namespace before anything else is done with it.
    pub(super) fn tools(options: &Options, dir: &Path) -> anyhow::Result<Tools> {
        Tools::gather(dir, Distances::of_three(options.round_trips), None, 1)
    }

    /// Starts the regions, creates the bucket, lets the callers call.
    pub(super) async fn set_up(options: &Options, tools: Tools, dir: &Path) -> anyhow::Result<Stage> {
        let mut planet = Planet::create_at(&options.binary, dir, tools.places())?;
        for node in 0..REGIONS.len() {
            planet.start_with(node, &tools.launch(node, 0)?)?;
        }
        planet.ready(PATIENCE).await?;
        let operator = planet.client(0).await?;
        create_bucket(&operator, BUCKET, options.policy).await?;
        let callers = Callers::start(&planet, options).await?;
        Ok(Stage { callers, operator, round_trips: options.round_trips, planet, _tools: tools })
    }

    /// What operators ask.
    pub(super) fn admin(&self) -> Admin {
        self.operator.admin()
    }

    /// Where the bucket's primary is, by the region's place in [`REGIONS`].
    pub(super) async fn primary(&self) -> anyhow::Result<usize> {
        let topology = self.admin().topology().await?;
        let bucket = topology.bucket_named(BUCKET).context("the bucket is gone")?;
        let primary: RegionId = bucket.primary.context("the bucket has no primary")?;
        let name = &topology.regions.get(&primary).context("the primary's region is unknown")?.name;
        REGIONS.iter().position(|region| *region == name.as_str()).context("the primary is in no region of ours")
    }

    /// The round trip between two regions.
    pub(super) fn round_trip(&self, a: usize, b: usize) -> Duration {
        Distances::of_three(self.round_trips).round_trip(a, b)
    }
}

/// The bucket's name.
pub(super) fn bucket_name() -> anyhow::Result<BucketName> {
    Ok(BucketName::new(BUCKET)?)
}

/// A region's name.
pub(super) fn region_name(region: usize) -> anyhow::Result<RegionName> {
    Ok(RegionName::new(REGIONS[region])?)
}
