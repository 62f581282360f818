//! Where runbooks are played: three regions of real processes with links between them that can be cut, and the
//! built binary as an operator has it, on the path, with a profile of the cluster.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use chaos::real::{ONE_EACH, Place, Planet, REGIONS};
use meridian::dev::{Profile, ProfileRegion};
use meridian::wan::{Distances, Route, Wan};
use meridian_types::RegionName;
use rustix::process::Signal;
use tokio::process::Command;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{sleep, timeout};

use crate::page::Typed;
use crate::told::{self, Names};

/// How long anything may take until it is as the page says.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// One planet at a time: on two cores two are too slow for the pauses that runbooks speak of.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Where a runbook has a node's configuration.
const CONFIG: &str = "/etc/meridian/node.toml";

/// What only looks, and is of one moment: who does not see yet what the page shows looks again. A probe is written again, too.
const LOOKS: [&str; 13] = [
    "status",
    "events",
    "lag",
    "kv get",
    "kv put",
    "bucket list",
    "operation list",
    "operation show",
    "salvage list",
    "salvage diff",
    "resync list",
    "failover estimate",
    "switchover check",
];

/// The regions, the links between them, and who types.
pub(crate) struct Stage {
    dir: tempfile::TempDir,
    pub(crate) planet: Planet,
    wan: Wan,
    /// What was exported.
    environment: BTreeMap<String, String>,
    names: Names,
    _alone: MutexGuard<'static, ()>,
}

/// What a line came to.
struct Said {
    code: Option<i32>,
    text: String,
}

impl Stage {
    /// Three regions that are ready; `settings` are added to the configuration of each node.
    pub(crate) async fn open(settings: &str) -> anyhow::Result<Stage> {
        let alone = ALONE.lock().await;
        let dir = tempfile::Builder::new().prefix("meridian-runbooks").tempdir()?;
        let places = Place::on_loopback(REGIONS.len())?;
        let mut planet =
            Planet::create_at(Path::new(env!("CARGO_BIN_EXE_meridian")), dir.path(), places.clone(), ONE_EACH)?;
        let routes = routes(&places)?;
        for (node, region) in REGIONS.iter().enumerate() {
            let mut config = File::options().append(true).open(planet.config_of(node))?;
            let translate = toml::to_string(&BTreeMap::from([("translate", translated(region, &routes))]))?;
            write!(config, "{settings}\n{translate}")?;
        }
        profile(dir.path(), &places, &routes)?.write(dir.path())?;
        std::fs::create_dir(dir.path().join("bin"))?;
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_meridian"), dir.path().join("bin").join("meridian"))?;
        let wan = Wan::start(&Distances::default(), &routes)?;
        (0..planet.nodes()).try_for_each(|node| planet.start(node))?;
        planet.ready(PATIENCE).await?;
        Ok(Stage { dir, planet, wan, environment: BTreeMap::new(), names: Names::default(), _alone: alone })
    }

    /// A new reader: nothing is exported, and nothing has a name yet.
    pub(crate) fn begins(&mut self) {
        self.environment.clear();
        self.names = Names::default();
    }

    /// Types a line, and holds what it comes to against the page.
    pub(crate) async fn types(&mut self, typed: &Typed) -> anyhow::Result<()> {
        let until = Instant::now() + PATIENCE;
        let mut before = String::new();
        loop {
            let said = self.once(typed).await?;
            let names = told::agrees(&typed.seen, &said.text, &self.names).filter(|_| said.code == Some(typed.code));
            if let Some(names) = names {
                self.names = names;
                return Ok(());
            }
            let Said { code, text } = &said;
            ensure!(
                (said.asks_for_it_again() || looks(&typed.line)) && Instant::now() < until,
                "`{}` is to end with {} and to say\n{}\nIt ended with {code:?} and said\n{text}{before}",
                self.names.here(&typed.line),
                typed.code,
                typed.seen.join("\n"),
            );
            before = format!("\nThe last time it had ended with {code:?} and said\n{text}");
            sleep(Duration::from_millis(300)).await;
        }
    }

    /// Types a line of which the page says nothing.
    pub(crate) async fn quietly(&mut self, line: &str) -> anyhow::Result<String> {
        let said = self.shell(line).await?;
        ensure!(said.code == Some(0), "`{line}` ended with {:?}:\n{}", said.code, said.text);
        Ok(said.text)
    }

    /// The node of that name.
    pub(crate) fn node(&self, name: &str) -> anyhow::Result<usize> {
        let found = (0..self.planet.nodes()).find(|node| self.planet.name(*node) == name);
        found.with_context(|| format!("there is no machine `{name}`"))
    }

    /// Cuts a region off from the others, or mends that.
    pub(crate) fn cut(&self, region: &str, cut: bool) -> anyhow::Result<()> {
        let name = RegionName::new(region)?;
        for other in REGIONS.iter().filter(|other| **other != region) {
            self.wan.partition(&name, &RegionName::new(other)?, cut);
        }
        Ok(())
    }

    /// Waits until a node that was told to stop, or stops by itself, has ended.
    pub(crate) async fn ended(&mut self, node: usize) -> anyhow::Result<ExitStatus> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.planet.ended(node)? {
                return Ok(status);
            }
            ensure!(Instant::now() < until, "{} goes on; {}", self.planet.name(node), self.planet.log_tail(node));
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn once(&mut self, typed: &Typed) -> anyhow::Result<Said> {
        let line = self.names.here(&typed.line);
        if let Some(machine) = &typed.machine {
            return self.at_machine(machine, &line).await;
        }
        if let Some((name, value)) = line.strip_prefix("export ").and_then(|rest| rest.split_once('=')) {
            self.environment.insert(name.to_owned(), value.to_owned());
            return Ok(Said::done(String::new()));
        }
        ensure!(line.starts_with("meridian "), "nobody knows how to type `{line}` here");
        self.shell(&line).await
    }

    /// What is typed on a node's machine: its service, the journal of that, and what needs its disk.
    async fn at_machine(&mut self, machine: &str, line: &str) -> anyhow::Result<Said> {
        let node = self.node(machine)?;
        match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["systemctl", "start", "meridian"] => self.planet.start(node)?,
            ["systemctl", "stop", "meridian"] => {
                self.planet.signal(node, Signal::TERM)?;
                self.ended(node).await?;
            }
            ["journalctl", "-u", "meridian", "-n", lines] => {
                let (log, lines) = (self.planet.log(node), lines.parse()?);
                let last: Vec<&str> = log.lines().rev().take(lines).collect();
                return Ok(Said::done(last.into_iter().rev().collect::<Vec<_>>().join("\n")));
            }
            ["meridian", "metadata", "recover", "--config", CONFIG, ..] => {
                return self.shell(&line.replace(CONFIG, &self.planet.config_of(node).display().to_string())).await;
            }
            _ => bail!("nobody knows how to type `{line}` on {machine}"),
        }
        Ok(Said::done(String::new()))
    }

    async fn shell(&self, line: &str) -> anyhow::Result<Said> {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &format!("exec 2>&1\n{line}")])
            .current_dir(self.dir.path())
            .env_clear()
            .env("PATH", format!("{}:{path}", self.dir.path().join("bin").display()))
            .env("MERIDIAN_PROFILE", self.dir.path())
            .envs(&self.environment)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = timeout(PATIENCE, shell.output()).await.with_context(|| format!("`{line}` does not end"))??;
        Ok(Said { code: output.status.code(), text: String::from_utf8_lossy(&output.stdout).into_owned() })
    }
}

impl Said {
    fn done(text: String) -> Said {
        Said { code: Some(0), text }
    }

    /// It says so itself: nothing came of it, or it was undone.
    fn asks_for_it_again(&self) -> bool {
        const RESTORED: Option<i32> = Some(7);
        self.code == RESTORED || ["nothing was started", "then try again"].iter().any(|it| self.text.contains(it))
    }
}

fn looks(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().skip(1).collect();
    let words = if let ["--region", _, words @ ..] = words.as_slice() { words } else { &words };
    let line = words.join(" ");
    line.contains("--dry-run") || line.starts_with("-u meridian") || LOOKS.iter().any(|look| line.starts_with(look))
}

/// One route from each region to each other.
fn routes(places: &[Place]) -> anyhow::Result<Vec<Route>> {
    let pairs = |from: usize| (0..places.len()).filter(move |to| *to != from).map(move |to| (from, to));
    let pairs: Vec<(usize, usize)> = (0..places.len()).flat_map(pairs).collect();
    let links = Place::on_loopback(pairs.len())?;
    let route = |((from, to), link): (&(usize, usize), Place)| {
        Ok(Route {
            from: RegionName::new(REGIONS[*from])?,
            to: RegionName::new(REGIONS[*to])?,
            tcp: link.rpc,
            tcp_target: places[*to].rpc,
            udp: link.replication,
            udp_target: places[*to].replication,
        })
    };
    pairs.iter().zip(links).map(route).collect()
}

/// The others' addresses as they are reached from a region.
fn translated(from: &str, routes: &[Route]) -> BTreeMap<String, String> {
    let routes = routes.iter().filter(|route| route.from.as_str() == from);
    let both = |route: &Route| [(route.tcp_target, route.tcp), (route.udp_target, route.udp)];
    routes.flat_map(both).map(|(target, link)| (target.to_string(), link.to_string())).collect()
}

fn profile(dir: &Path, places: &[Place], routes: &[Route]) -> anyhow::Result<Profile> {
    let region = |(name, place): (&&str, &Place)| {
        Ok(ProfileRegion {
            name: RegionName::new(name)?,
            endpoints: vec![format!("https://{}", place.rpc)],
            admin: format!("http://{}", place.admin),
            pid: None,
            translate: translated(name, routes),
            round_trip_ms: BTreeMap::new(),
        })
    };
    let pki = |file: &str| -> PathBuf { dir.join("pki").join(file) };
    Ok(Profile {
        cluster: "chaos".to_owned(),
        ca: pki("ca.pem"),
        cert: pki("chaos.pem"),
        key: pki("chaos-key.pem"),
        regions: REGIONS.iter().zip(places).map(region).collect::<anyhow::Result<_>>()?,
    })
}
