//! DUR-1, ONE-1, ORD-1, CON-4 at every place where a crash could hurt: real processes of three regions kill themselves at
//! one failpoint after the other, under load and while primaries move; afterwards nothing acknowledged is missing,
//! nothing took effect twice, and digests agree everywhere.
//!
//! The ordinary run crashes at some of every kind ([`points::SOME`]), once each. All of them are asked for:
//! `MERIDIAN_FAILPOINT_ROUNDS` (default 1) says how often each is crashed at, `MERIDIAN_FAILPOINTS` which (parts of names,
//! with commas). How often each was hit is printed at the end.

mod load;
mod lost;
mod points;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use chaos::real::{BUCKETS, Launch, Planet, REGIONS};
use tokio::time::{Instant, sleep};

use crate::load::Load;
use crate::points::{ALL, Reached, SOME};

/// How long a node that is to come to a failpoint is given, before another is sent: long, since machines may be busy.
const PATIENCE: Duration = Duration::from_secs(40);
/// How long the planet may take to be whole again.
const RECOVERY: Duration = Duration::from_secs(60);
const SIGKILL: i32 = 9;
/// How often one node crashes before it is another's turn.
const IN_A_ROW: u64 = 8;
/// The last region of a planet: it is sent away for a long time.
const AWAY: usize = REGIONS.len() - 1;
/// How often it is, until it comes to what only follows a long absence.
const ABSENCES: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_failpoints_of_every_kind_loses_nothing_and_doubles_nothing() -> anyhow::Result<()> {
    crash(1, &|name| SOME.contains(&name)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "ten minutes: cargo test -p meridian --test failpoints -- --ignored"]
async fn a_crash_at_any_failpoint_loses_nothing_and_doubles_nothing() -> anyhow::Result<()> {
    let rounds = std::env::var("MERIDIAN_FAILPOINT_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let only = std::env::var("MERIDIAN_FAILPOINTS").unwrap_or_default();
    crash(rounds, &|name| only.is_empty() || only.split(',').any(|part| name.contains(part))).await
}

/// Crashes at each of the chosen failpoints that often, and holds the planet to its promises.
async fn crash(rounds: u64, chosen: &impl Fn(&str) -> bool) -> anyhow::Result<()> {
    let dir = tempfile::Builder::new().prefix("meridian-failpoints").tempdir()?;
    let mut crew = Crew::start(dir.path()).await?;
    let done = crew.crash_everywhere(rounds, chosen).await;
    let verdict = match done {
        Ok(()) => crew.judge().await,
        Err(why) => Err(why),
    };
    crew.report();
    if verdict.is_err() {
        eprintln!("kept for a look: {}", dir.keep().display());
    }
    verdict
}

/// A planet, who works on it, and how often a node crashed where.
struct Crew {
    planet: Planet,
    load: Load,
    began: Instant,
    hits: BTreeMap<&'static str, u64>,
    /// How many buckets were given up for lost so far.
    given_up: usize,
}

impl Crew {
    async fn start(dir: &Path) -> anyhow::Result<Crew> {
        let mut planet = Planet::create(Path::new(env!("CARGO_BIN_EXE_meridian")), dir)?;
        for region in REGIONS {
            // Few shards, so that each of them fills segments.
            let config = dir.join(format!("{region}-1.toml"));
            let text = std::fs::read_to_string(&config)?;
            std::fs::write(&config, format!("shards = 2\n{text}"))?;
        }
        (0..REGIONS.len()).try_for_each(|node| planet.start_with(node, &launch(None)))?;
        planet.ready(RECOVERY).await?;
        planet.create_buckets().await?;
        let load = Load::start(&planet).await?;
        Ok(Crew { planet, load, began: Instant::now(), hits: BTreeMap::new(), given_up: 0 })
    }

    async fn crash_everywhere(&mut self, rounds: u64, chosen: &impl Fn(&str) -> bool) -> anyhow::Result<()> {
        for round in 0..rounds {
            for (name, _) in ALL.iter().filter(|(name, how)| *how == Reached::UnderLoad && chosen(name)) {
                self.crash_at(name, round).await?;
            }
            let lost = |how: &Reached| matches!(how, Reached::AsSuccessor | Reached::AsLostPrimary);
            for (name, how) in ALL.iter().filter(|(name, how)| lost(how) && chosen(name)) {
                self.crash_after_loss(name, *how).await?;
            }
            let rare = ALL.iter().filter(|(name, how)| *how == Reached::AfterLongAbsence && chosen(name));
            for (name, _) in rare {
                self.crash_after_absence(name).await?;
            }
        }
        Ok(())
    }

    /// Has the node that was away come to a failpoint and crash there. On a busy machine it may not be away for long enough.
    async fn crash_after_absence(&mut self, name: &'static str) -> anyhow::Result<()> {
        for _ in 0..ABSENCES {
            self.stay_away().await?;
            if self.sent(AWAY, name, 1).await? {
                return Ok(());
            }
        }
        bail!("{name} was not reached after {ABSENCES} long absences")
    }

    /// Has some node come to a failpoint and crash there.
    async fn crash_at(&mut self, name: &'static str, round: u64) -> anyhow::Result<()> {
        let before = self.hits.values().sum::<u64>();
        // Not always the first time, which is often while a node starts. The same node crashes some times in a row.
        let times = [1, 2, 5][usize::try_from(before % 3)?];
        for (times, step) in [(times, 0), (1, 1), (1, 2), (1, 3)] {
            let node = usize::try_from(before / IN_A_ROW + round + step)? % REGIONS.len();
            if self.sent(node, name, times).await? {
                return Ok(());
            }
        }
        bail!("no node came to {name}: what used to lead there does no more")
    }

    /// Whether a node that is started now, beside all others, crashes at a failpoint. It is left down.
    async fn sent(&mut self, node: usize, name: &'static str, times: u64) -> anyhow::Result<bool> {
        if self.planet.is_started(node) {
            self.planet.kill(node)?;
        }
        self.planet.start_with(node, &launch(Some((name, times))))?;
        self.start_all()?;
        self.crashes(node, name, times).await
    }

    /// Whether a node that was sent to a failpoint has crashed there; it may not die of anything else.
    fn has_crashed(&mut self, node: usize, name: &'static str, times: u64) -> anyhow::Result<bool> {
        let Some(status) = self.planet.ended(node)? else { return Ok(false) };
        ensure!(status.signal() == Some(SIGKILL), "at {name}: {status}; {}", self.planet.log_tail(node));
        *self.hits.entry(name).or_default() += 1;
        eprintln!("{:>6.1} s: a crash at {name}, visit {times}, of node {node}", self.began.elapsed().as_secs_f64());
        Ok(true)
    }

    /// Waits for that; a node that does not come there is killed.
    async fn crashes(&mut self, node: usize, name: &'static str, times: u64) -> anyhow::Result<bool> {
        let until = Instant::now() + PATIENCE;
        loop {
            if self.has_crashed(node, name, times)? {
                return Ok(true);
            }
            if Instant::now() >= until {
                self.planet.kill(node)?;
                return Ok(false);
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// One node is down until the metadata group's log no longer reaches back to it.
    async fn stay_away(&mut self) -> anyhow::Result<()> {
        self.start_all()?;
        self.planet.ready(RECOVERY).await?;
        self.planet.kill(AWAY)?;
        self.load.relabel(&self.planet, RECOVERY).await.context("the metadata plane has work to do")?;
        // Two looks of whoever purges, and what is persisted before.
        sleep(Duration::from_secs(4)).await;
        Ok(())
    }

    fn start_all(&mut self) -> anyhow::Result<()> {
        self.start_all_but(REGIONS.len())
    }

    fn start_all_but(&mut self, other: usize) -> anyhow::Result<()> {
        let is_down = |node: &usize| *node != other && !self.planet.is_started(*node);
        let down: Vec<usize> = (0..REGIONS.len()).filter(is_down).collect();
        down.into_iter().try_for_each(|node| self.planet.start_with(node, &launch(None)))
    }

    /// Heals first, then demands progress, equality, and every acknowledged write in every region.
    async fn judge(&mut self) -> anyhow::Result<()> {
        self.start_all()?;
        let ledgers = self.load.stop().await;
        self.planet.ready(RECOVERY).await?;
        let acknowledged = load::judge(&self.planet, &ledgers, RECOVERY).await?;
        eprintln!("{acknowledged} writes acknowledged in {} buckets; every one is there, once", BUCKETS.len());
        Ok(())
    }

    fn report(&self) {
        for (name, _) in ALL {
            eprintln!("{:>6} × {name}", self.hits.get(name).copied().unwrap_or_default());
        }
        eprintln!("{} crashes at {} failpoints", self.hits.values().sum::<u64>(), self.hits.len());
    }
}

/// How nodes are started: with small segments and little left unsynced, so that what is rare happens often.
fn launch(failpoint: Option<(&str, u64)>) -> Launch {
    let mut environment = vec![
        ("MERIDIAN_LIMITS__LOG_SEGMENT_BYTES".to_owned(), (1 << 20).to_string()),
        ("MERIDIAN_LIMITS__PERSIST_EVERY_MS".to_owned(), "300".to_owned()),
    ];
    environment.extend(failpoint.map(|(name, times)| ("FAILPOINT".to_owned(), format!("{name}@{times}"))));
    Launch { environment, ..Launch::default() }
}
