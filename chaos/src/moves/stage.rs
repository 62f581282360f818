//! Three regions over the emulated WAN, one bucket, and callers that never stop.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use meridian_client::{Admin, BucketName, BucketSpec, Client, Policy, RegionName};
use meridian_types::failover::PER_DAY_MAX;
use meridian_types::{AutoFailover, AutoMode, RegionId};

use super::callers::Callers;
use crate::real::{Planet, REGIONS};
use crate::wan::fault::Fault;
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
    /// What it does by itself when its primary is lost.
    pub(super) auto: AutoMode,
    /// How many nodes each region has.
    pub(super) nodes: [usize; REGIONS.len()],
    /// How many callers.
    pub(super) callers: usize,
    /// Whether they call all the time.
    pub(super) calls: bool,
    /// The pause of each between two requests.
    pub(super) think: Duration,
}

/// A planet under load.
pub(super) struct Stage {
    pub(super) callers: Callers,
    /// An operator's view, from beside the first region.
    pub(super) operator: Client,
    pub(super) round_trips: [Duration; 3],
    /// How many write where callers don't call.
    pub(super) writers: usize,
    // Behind whoever speaks to them.
    pub(super) planet: Planet,
    tools: Tools,
}

impl Stage {
    /// The ground it stands on; enter the observer's namespace before anything else is done with it.
    pub(super) fn tools(options: &Options, dir: &Path) -> anyhow::Result<Tools> {
        Tools::gather(dir, Distances::of_three(options.round_trips), None, 1)
    }

    /// Starts the regions, creates the bucket, lets the callers call.
    pub(super) async fn set_up(options: &Options, tools: Tools, dir: &Path) -> anyhow::Result<Stage> {
        let mut planet = Planet::create_at(&options.binary, dir, tools.places(options.nodes), options.nodes)?;
        for (region, name) in REGIONS.iter().enumerate() {
            for node in planet.nodes_of(name) {
                planet.start_with(node, &tools.launch(region, 0)?)?;
            }
        }
        planet.ready(PATIENCE).await?;
        let operator = planet.client(0).await?;
        create(&operator, options).await?;
        let callers = if options.calls { Callers::start(&planet, options).await? } else { Callers::default() };
        let (round_trips, writers) = (options.round_trips, options.callers);
        Ok(Stage { callers, operator, round_trips, writers, planet, tools })
    }

    /// Starts a node that was killed.
    pub(super) fn start(&mut self, node: usize) -> anyhow::Result<()> {
        let region = REGIONS.iter().position(|region| self.planet.nodes_of(region).contains(&node));
        let launch = self.tools.launch(region.context("there is no such node")?, 0)?;
        self.planet.start_with(node, &launch)
    }

    /// Lets nothing pass between a region and the others.
    pub(super) fn isolate(&self, region: usize) {
        self.tools.weather([&Fault::Isolate { region }]);
    }

    /// Lets everything pass everywhere.
    pub(super) fn heal(&self) {
        self.tools.weather([]);
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

/// Creates the bucket, with as little damping as there can be.
async fn create(operator: &Client, options: &Options) -> anyhow::Result<()> {
    let auto =
        AutoFailover { mode: options.auto, interval_ms_min: 0, per_day_max: PER_DAY_MAX, ..AutoFailover::default() };
    let (regions, primary, labels) = (Vec::new(), None, BTreeMap::new());
    let spec = BucketSpec { name: bucket_name()?, policy: options.policy, regions, primary, labels, auto };
    operator.admin().create_bucket(&spec, false).await?;
    Ok(())
}

/// The bucket's name.
pub(super) fn bucket_name() -> anyhow::Result<BucketName> {
    Ok(BucketName::new(BUCKET)?)
}

/// A region's name.
pub(super) fn region_name(region: usize) -> anyhow::Result<RegionName> {
    Ok(RegionName::new(REGIONS[region])?)
}
