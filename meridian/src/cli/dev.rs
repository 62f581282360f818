//! `meridian dev`: three regions on this machine, until Ctrl-C.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;

use super::connect::DEV_DIR;
use super::exit::Failure;
use super::stop;
use crate::dev::{NODES_MAX, Planet, READY_WITHIN, SPARES_MAX, banner, default_distances, witnessed_distances};
use crate::output::{note, text};
use crate::wan::{Distances, Link, RoundTrip};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where certificates, configurations, logs and data are kept.
    #[arg(long, default_value = DEV_DIR)]
    dir: PathBuf,
    /// The first port; each region takes a block of 100.
    #[arg(long, default_value_t = 7100)]
    port_base: u16,
    /// Two regions and a witness instead of three regions: the third place only votes in the metadata plane.
    #[arg(long)]
    witness: bool,
    /// Nodes per region: 1, or 3 in a zone each, of which one can die without anybody waiting for it.
    #[arg(long, default_value_t = 1, conflicts_with = "witness")]
    nodes: u16,
    /// Spares in the first region, which hold nothing until `meridian node join` or `replace`: up to 2.
    #[arg(long, default_value_t = 0, conflicts_with = "witness", value_parser = clap::value_parser!(u16).range(0..=i64::from(SPARES_MAX)))]
    spares: u16,
    #[command(flatten)]
    links: Links,
}

/// How far apart the regions are.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Links {
    /// A round trip, us-east:eu-west=80ms (repeatable), or `none` for no distance at all
    /// [default: 80 ms us-east:eu-west, 200 ms us-east:ap-south, 130 ms eu-west:ap-south].
    #[arg(long, value_name = "A:B=TIME")]
    rtt: Vec<String>,
    /// Bandwidth and loss of a pair, us-east:eu-west=400mbit,1% (repeatable).
    #[arg(long, value_name = "A:B=RATE,LOSS")]
    link: Vec<Link>,
}

impl Links {
    /// The defaults with what was given on top.
    pub(super) fn distances(&self, usual: Distances) -> anyhow::Result<Distances> {
        let none = self.rtt.iter().any(|rtt| rtt == "none");
        let mut distances = if none { Distances::default() } else { usual };
        for rtt in self.rtt.iter().filter(|rtt| *rtt != "none") {
            let parsed: RoundTrip = rtt.parse().map_err(|error| Failure::invalid(format!("--rtt: {error}")))?;
            distances.set_round_trip(parsed.pair, parsed.round_trip);
        }
        for link in &self.link {
            distances.set_link(link.pair.clone(), link.bits_per_second, link.loss);
        }
        Ok(distances)
    }
}

/// How long a killed node stays away: long enough to watch what its absence does.
const OUTAGE: Duration = Duration::from_secs(5);

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let distances = args.links.distances(if args.witness { witnessed_distances() } else { default_distances() })?;
    if args.nodes != 1 && args.nodes != NODES_MAX {
        let why = format!("--nodes {}: use 1, or {NODES_MAX} for regions that outlive one of theirs", args.nodes);
        return Err(Failure::invalid(why).into());
    }
    let mut stop = std::pin::pin!(stop::signalled());
    let mut planet = if args.witness {
        Planet::witnessed(&args.dir, "dev", args.port_base, &distances)?
    } else {
        Planet::of_nodes((args.nodes, args.spares), &args.dir, "dev", args.port_base, &distances)?
    };
    note(&match (args.witness, args.nodes) {
        (true, _) => "starting two regions and a witness …".to_owned(),
        (false, 1) => "starting three regions …".to_owned(),
        (false, nodes) => format!("starting three regions of {nodes} nodes …"),
    });
    tokio::select! {
        ready = planet.wait_until_ready(READY_WITHIN) => {
            if let Err(error) = ready {
                planet.stop().await;
                return Err(error);
            }
        }
        signal = &mut stop => return end(planet, signal?).await,
    }
    text(&banner(planet.plan(), &program(), profile_flag(&args.dir).as_deref()))?;
    loop {
        let died = tokio::select! {
            died = planet.death() => died,
            signal = &mut stop => return end(planet, signal?).await,
        };
        let left = planet.left()?;
        if !left.is_empty() {
            left.iter().for_each(|node| note(&format!("{node} was drained and has ended; the others go on")));
            continue;
        }
        let killed = planet.killed()?;
        if killed.is_empty() {
            note(&format!("{died:#}\n\nstopping the other nodes …"));
            planet.stop().await;
            bail!("a node died, see above; what was acknowledged is on disk, and `meridian dev` continues with it");
        }
        for node in killed {
            note(&format!("{node} was killed; the others go on, and it starts again in {} s", OUTAGE.as_secs()));
            tokio::time::sleep(OUTAGE).await;
            planet.restart(&node)?;
            note(&format!("{node} is starting again"));
        }
    }
}

async fn end(planet: Planet, signal: &str) -> anyhow::Result<()> {
    note(&format!("{signal}: stopping the regions …"));
    let late = planet.stop().await;
    if !late.is_empty() {
        bail!("{} did not stop in time and had to be killed; nothing acknowledged is lost by that", late.join(", "));
    }
    note("stopped; the data stays, `meridian dev` continues with it");
    Ok(())
}

fn profile_flag(dir: &Path) -> Option<String> {
    (dir != Path::new(DEV_DIR)).then(|| dir.display().to_string())
}

/// How this binary was called, so that pasted commands find it.
fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "meridian".to_owned())
}
