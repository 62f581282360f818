//! The main job, shown: three regions, three policies, real files, proven equal.
//!
//! In the order of the [`tour`]: import the files (a third from each region, into every bucket), read them back
//! from the *other* regions at once (`strong` and `session` must find everything, however far replication has
//! come), wait until every region has seen the same writes, read again (`bounded`, `eventual`), write to the
//! active-active bucket from all regions at the same time, measure latencies one request at a time, and compare
//! digests of every bucket and shard in every region.
//!
//! Whatever is missing or different is a finding; with one finding the demo has failed.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

mod concurrent;
mod converge;
mod latency;
mod read_back;
mod report;
mod stage;
mod tour;

pub use report::Report;

use crate::dev::{Plan, Planet, READY_WITHIN, REGIONS};
use crate::output::note;
use crate::transfer::Listing;
use crate::wan::Distances;

/// Ports are looked for from here up: below what kernels hand out by themselves, above what people use.
const PORT_BASE: u16 = 21_000;

/// How many blocks of ports are tried.
const PORT_TRIES: u16 = 30;

/// What to show.
#[derive(Clone, Debug)]
pub struct Options {
    /// The files.
    pub path: PathBuf,
    /// How far apart the regions are.
    pub distances: Distances,
    /// Where to keep everything; `None`: a temporary directory, removed when all went well.
    pub dir: Option<PathBuf>,
}

/// Runs the demo. The error says where its directory was kept.
///
/// # Errors
/// When anything could not be done. Findings are in the report.
pub async fn run(options: &Options) -> anyhow::Result<Report> {
    let listing = Listing::of(&options.path)?;
    if listing.files.is_empty() {
        bail!(crate::cli::Failure::invalid(format!("there are no files under {}", options.path.display())));
    }
    let home = Home::new(options.dir.as_deref())?;
    let report = in_home(home.path(), options, listing).await;
    match report {
        Ok(report) if report.findings.is_empty() => Ok(report),
        Ok(mut report) => {
            report.kept = Some(home.keep());
            Ok(report)
        }
        Err(error) => {
            Err(error.context(format!("the demo failed; logs and data are kept in {}", home.keep().display())))
        }
    }
}

async fn in_home(home: &Path, options: &Options, listing: Listing) -> anyhow::Result<Report> {
    let port_base = free_ports(home, &options.distances)?;
    note(&format!("starting {} regions in {}", REGIONS.len(), home.display()));
    let mut planet = Planet::start(home, "demo", port_base, &options.distances)?;
    let plan = planet.plan().clone();
    let toured = match planet.wait_until_ready(READY_WITHIN).await {
        Err(error) => Err(error),
        Ok(()) => tokio::select! {
            toured = tour::tour(&plan, &listing) => toured,
            died = planet.death() => Err(died),
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        },
    };
    let late = planet.stop().await;
    let mut report = toured?;
    if !late.is_empty() {
        report.findings.push(format!("{} did not stop in time and had to be killed", late.join(", ")));
    }
    Ok(report)
}

/// Where the demo lives.
enum Home {
    Temporary(tempfile::TempDir),
    Given(PathBuf),
}

impl Home {
    fn new(dir: Option<&Path>) -> anyhow::Result<Home> {
        match dir {
            Some(dir) => Ok(Home::Given(dir.to_owned())),
            None => {
                let temporary = tempfile::Builder::new().prefix("meridian-demo-").tempdir();
                Ok(Home::Temporary(temporary.context("cannot create a temporary directory")?))
            }
        }
    }

    fn path(&self) -> &Path {
        match self {
            Home::Temporary(dir) => dir.path(),
            Home::Given(dir) => dir,
        }
    }

    fn keep(self) -> PathBuf {
        match self {
            Home::Temporary(dir) => dir.keep(),
            Home::Given(dir) => dir,
        }
    }
}

/// The first block of ports that is free; started elsewhere by each process, so that two demos rarely meet.
fn free_ports(home: &Path, distances: &Distances) -> anyhow::Result<u16> {
    let block = 100 * u16::try_from(REGIONS.len())?;
    let offset = u16::try_from(std::process::id() % u32::from(PORT_TRIES))?;
    for attempt in 0..PORT_TRIES {
        let base = PORT_BASE + block * ((offset + attempt) % PORT_TRIES);
        if Plan::new(home, "demo", base, distances.clone())?.ports_are_free() {
            return Ok(base);
        }
    }
    bail!(crate::cli::Failure::not_ready(format!(
        "no free block of ports between {PORT_BASE} and {}: stop what listens there",
        PORT_BASE + block * PORT_TRIES
    )))
}
