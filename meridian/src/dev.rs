//! Three regions on one machine, of one node each or of several: real processes, real sockets, real TLS, simulated distances.
//!
//! Owns the child processes and the links between them. `meridian dev` keeps a planet's data in a directory
//! that survives restarts; `meridian demo` builds one in a temporary directory. Children stop when their
//! stdin closes, so none outlives this process, however it ends.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use meridian_types::NodeName;

mod banner;
mod child;
mod plan;
mod ports;
mod profile;
mod ready;

pub use banner::banner;
pub use plan::{NODES_MAX, Place, Plan, REGIONS, SPARES_MAX, WITNESSED, default_distances, witnessed_distances};
pub use profile::{Profile, ProfileRegion};

use crate::cli::Failure;
use crate::wan::{Distances, Wan};
use child::Child;

/// How long the three regions may take to form a cluster.
pub const READY_WITHIN: Duration = Duration::from_secs(60);

/// How long a node may take to shut down before it is killed: its own grace of 5 s and some.
const STOP_GRACE: Duration = Duration::from_secs(8);

/// Running regions. Stop it with [`Planet::stop`]; dropping it kills what still runs.
#[derive(Debug)]
pub struct Planet {
    plan: Plan,
    wan: Wan,
    children: Vec<Child>,
    // Held until the end: one planet per directory.
    _lock: File,
}

impl Planet {
    /// Prepares certificates and configurations under `dir`, opens the links, starts the nodes.
    ///
    /// # Errors
    /// When the directory is in use, a port is busy (the message names the process), or something can't be written
    /// or started.
    pub fn start(dir: &Path, cluster: &str, port_base: u16, distances: &Distances) -> anyhow::Result<Planet> {
        Planet::of(Plan::new(dir, cluster, port_base, distances.clone())?, distances)
    }

    /// The same with several nodes per region, at most [`NODES_MAX`], and spares in the first one, at most [`SPARES_MAX`].
    ///
    /// # Errors
    /// As [`Planet::start`].
    pub fn of_nodes(
        (nodes, spares): (u16, u16),
        dir: &Path,
        cluster: &str,
        port_base: u16,
        distances: &Distances,
    ) -> anyhow::Result<Planet> {
        let plan = Plan::of_nodes(nodes, dir, cluster, port_base, distances.clone())?;
        Planet::of(plan.with_spares(spares)?, distances)
    }

    /// The same with two regions and a witness.
    ///
    /// # Errors
    /// As [`Planet::start`].
    pub fn witnessed(dir: &Path, cluster: &str, port_base: u16, distances: &Distances) -> anyhow::Result<Planet> {
        let plan = Plan::witnessed(dir, cluster, port_base, distances.clone())?;
        Planet::of(plan, distances)
    }

    fn of(plan: Plan, distances: &Distances) -> anyhow::Result<Planet> {
        let lock = lock(plan.dir())?;
        plan.check_ports()?;
        plan.write()?;
        let wan = Wan::start(distances, &plan.routes()).context("the simulated links can't be opened")?;
        let mut planet = Planet { plan, wan, children: Vec::new(), _lock: lock };
        for place in planet.plan.places() {
            planet.children.push(Child::start(place)?);
        }
        planet.write_profile()?;
        Ok(planet)
    }

    /// Where everything is.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The links, to cut and mend them.
    pub fn wan(&self) -> &Wan {
        &self.wan
    }

    /// Waits until every node says it can serve.
    ///
    /// # Errors
    /// When a node died (with the end of its log) or is not ready in time (with its reasons).
    pub async fn wait_until_ready(&mut self, within: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + within;
        for index in 0..self.children.len() {
            let (name, admin) = {
                let place = self.children[index].place();
                (place.node.clone(), place.admin)
            };
            let mut why = "it does not answer".to_owned();
            loop {
                self.check()?;
                match ready::ask(admin).await {
                    Ok(None) => break,
                    Ok(Some(reasons)) => why = reasons,
                    Err(_) if Instant::now() < deadline => {}
                    Err(error) => why = error.to_string(),
                }
                if Instant::now() >= deadline {
                    bail!("{name} is not ready after {} s: {}\n{}", within.as_secs(), why.trim(), self.tail(index));
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// Whether every node still runs.
    ///
    /// # Errors
    /// When one died: which, how, and the end of its log.
    pub fn check(&mut self) -> anyhow::Result<()> {
        for index in 0..self.children.len() {
            if let Some(how) = self.children[index].died()? {
                bail!("{} died ({how})\n{}", self.children[index].place().node, self.tail(index));
            }
        }
        Ok(())
    }

    /// Resolves when a node died; with which, how, and the end of its log.
    pub async fn death(&mut self) -> anyhow::Error {
        loop {
            if let Err(error) = self.check() {
                return error;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The nodes that were ended by SIGKILL: somebody tries what a power cut does.
    ///
    /// # Errors
    /// When a process can't be asked about.
    pub fn killed(&mut self) -> anyhow::Result<Vec<NodeName>> {
        let mut nodes = Vec::new();
        for child in &mut self.children {
            if child.was_killed()? {
                nodes.push(child.place().node.clone());
            }
        }
        Ok(nodes)
    }

    /// The nodes that ended by themselves, as they should: others hold what they held. They are watched no more.
    ///
    /// # Errors
    /// When a process can't be asked about.
    pub fn left(&mut self) -> anyhow::Result<Vec<NodeName>> {
        let mut nodes = Vec::new();
        for child in &mut self.children {
            if child.has_left()? {
                nodes.push(child.place().node.clone());
            }
        }
        Ok(nodes)
    }

    /// Starts a killed node again.
    ///
    /// # Errors
    /// When the process can't be started.
    pub fn restart(&mut self, node: &NodeName) -> anyhow::Result<()> {
        for child in self.children.iter_mut().filter(|child| child.place().node == *node) {
            *child = Child::start(child.place().clone())?;
        }
        self.write_profile()
    }

    /// Asks every node to stop, waits, and kills who is late. Says who was.
    pub async fn stop(mut self) -> Vec<String> {
        self.children.iter_mut().for_each(Child::ask_to_stop);
        let deadline = Instant::now() + STOP_GRACE;
        let mut late = Vec::new();
        for child in &mut self.children {
            if !child.stopped_by(deadline).await {
                late.push(child.place().node.to_string());
            }
        }
        late
    }

    fn write_profile(&self) -> anyhow::Result<()> {
        let pids = self.children.iter().map(Child::pid).collect::<Vec<_>>();
        self.plan.profile(&pids).write(self.plan.dir())
    }

    fn tail(&self, index: usize) -> String {
        let log: PathBuf = self.children[index].place().log.clone();
        format!("the end of {}:\n{}", log.display(), child::tail(&log))
    }
}

/// Two planets in one directory would rewrite each other's configurations and fight for the data.
fn lock(dir: &Path) -> anyhow::Result<File> {
    let path = dir.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(Failure::not_ready(format!(
            "another `meridian dev` or `demo` runs in {}: stop it, or choose another --dir",
            dir.display()
        ))),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}
