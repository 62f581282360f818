//! Three regions of real processes, one each or several: start, kill -9, stop, restart.

use std::fmt::Write as _;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use meridian_client::{Acks, BucketName, BucketSpec, Builder, Client, ClientId, Policy};
use meridian_types::Bucket;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::place::{Launch, Place};

/// The regions of every planet, in the order of their replica numbers. The first is every bucket's primary.
pub const REGIONS: [&str; 3] = ["us-east", "eu-west", "ap-south"];

/// A node in each.
pub const ONE_EACH: [usize; REGIONS.len()] = [1; REGIONS.len()];

/// One bucket per policy: name and policy.
pub const BUCKETS: [(&str, Policy); 3] =
    [("async", Policy::ASYNC), ("sync", Policy::sync(Acks::Majority)), ("active-active", Policy::ActiveActive)];

/// How long a node may take to hear of a bucket: long, since machines may be busy.
const NEWS_TRAVELS: Duration = Duration::from_secs(60);

/// Three regions, each of one process or several. Dropping it kills them. Nodes are numbered region by region.
pub struct Planet {
    binary: PathBuf,
    dir: PathBuf,
    nodes: Vec<Node>,
    /// Those that the cluster is formed with, as configurations name them.
    members: String,
}

struct Node {
    region: &'static str,
    name: String,
    place: Place,
    child: Option<Child>,
}

impl Planet {
    /// Issues certificates and writes configurations below `dir`, for nodes on loopback; starts nothing yet.
    ///
    /// # Errors
    /// When the binary can't issue certificates, or no ports are free.
    pub fn create(binary: &Path, dir: &Path) -> anyhow::Result<Planet> {
        Planet::create_at(binary, dir, Place::on_loopback(REGIONS.len())?, ONE_EACH)
    }

    /// The same with so many nodes in each of the regions.
    ///
    /// # Errors
    /// As [`Planet::create`].
    pub fn of_nodes(binary: &Path, dir: &Path, nodes: [usize; REGIONS.len()]) -> anyhow::Result<Planet> {
        Planet::create_at(binary, dir, Place::on_loopback(nodes.iter().sum())?, nodes)
    }

    /// Two regions, and a node of the third that only votes in the metadata plane.
    ///
    /// # Errors
    /// As [`Planet::create`].
    pub fn with_a_witness(binary: &Path, dir: &Path) -> anyhow::Result<Planet> {
        let places = Place::on_loopback(REGIONS.len())?;
        Planet::of(binary, dir, places, ONE_EACH, Some(REGIONS[2]))
    }

    /// The same for nodes that live at `places`, region by region.
    ///
    /// # Errors
    /// When the binary can't issue certificates, or there are not as many places as nodes.
    pub fn create_at(
        binary: &Path,
        dir: &Path,
        places: Vec<Place>,
        nodes: [usize; REGIONS.len()],
    ) -> anyhow::Result<Planet> {
        Planet::of(binary, dir, places, nodes, None)
    }

    fn of(
        binary: &Path,
        dir: &Path,
        places: Vec<Place>,
        nodes: [usize; REGIONS.len()],
        witness: Option<&str>,
    ) -> anyhow::Result<Planet> {
        let names: Vec<_> = REGIONS.iter().zip(nodes).flat_map(|(region, nodes)| names(region, nodes)).collect();
        ensure!(places.len() == names.len(), "{} places for {} nodes", places.len(), names.len());
        let members = members(&names, &places, witness);
        let mut planet = Planet { binary: binary.to_owned(), dir: dir.to_owned(), nodes: Vec::new(), members };
        planet.issue(&["init"])?;
        planet.issue(&["client", "--name", "chaos"])?;
        for ((region, name), place) in names.into_iter().zip(places) {
            planet.issue(&["node", "--region", region, "--name", &name])?;
            std::fs::write(
                planet.config(&name),
                place.config(dir, (region, witness == Some(region)), &name, &planet.members),
            )?;
            planet.nodes.push(Node { region, name, place, child: None });
        }
        Ok(planet)
    }

    /// Adds a node to a region, which joins the cluster as a spare once it is started; its number.
    ///
    /// # Errors
    /// When its certificate can't be issued, or no ports are free.
    pub fn add(&mut self, region: &'static str) -> anyhow::Result<usize> {
        let name = format!("{region}-{}", self.nodes_of(region).len() + 1);
        let place = Place::on_loopback(1)?.remove(0);
        self.issue(&["node", "--region", region, "--name", &name])?;
        let rest = format!("{}{}", place.joins(&name), self.members);
        std::fs::write(self.config(&name), place.config(&self.dir, (region, false), &name, &rest))?;
        self.nodes.push(Node { region, name, place, child: None });
        Ok(self.nodes.len() - 1)
    }

    /// A node's name.
    pub fn name(&self, node: usize) -> &str {
        &self.nodes[node].name
    }

    /// Loses everything that a node has on its disk.
    ///
    /// # Errors
    /// When it can't be removed, or the node is running.
    pub fn lose_disk(&self, node: usize) -> anyhow::Result<()> {
        let Node { name, child, .. } = &self.nodes[node];
        ensure!(child.is_none(), "{name} is running");
        let dir = self.disk(node);
        std::fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))
    }

    /// A node's configuration, for what is typed on its machine.
    pub fn config_of(&self, node: usize) -> PathBuf {
        self.config(&self.nodes[node].name)
    }

    /// Where a node keeps everything.
    pub fn disk(&self, node: usize) -> PathBuf {
        let Node { name, place, .. } = &self.nodes[node];
        place.data_dir.clone().unwrap_or_else(|| self.dir.join(name))
    }

    /// How many nodes there are.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// The nodes of a region.
    pub fn nodes_of(&self, region: &str) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].region == region).collect()
    }

    /// Takes another binary for nodes that are started from now on.
    pub fn install(&mut self, binary: &Path) {
        binary.clone_into(&mut self.binary);
    }

    /// Starts a node; its log goes to a file beside its configuration.
    ///
    /// # Errors
    /// When the process can't be started.
    pub fn start(&mut self, node: usize) -> anyhow::Result<()> {
        self.start_with(node, &Launch::default())
    }

    /// Starts a node in a special way.
    ///
    /// # Errors
    /// When the process can't be started.
    pub fn start_with(&mut self, node: usize, launch: &Launch) -> anyhow::Result<()> {
        let Node { name, place, .. } = &self.nodes[node];
        let log = File::options().create(true).append(true).open(self.dir.join(format!("{name}.log")))?;
        let through = place.through.iter().chain(&launch.through);
        let mut words = through.map(AsRef::as_ref).chain([self.binary.as_os_str()]);
        // There is always a word: the binary itself.
        let mut command = Command::new(words.next().unwrap_or_default());
        let child = command
            .args(words)
            .args(["server", "--config"])
            .arg(self.config(name))
            .envs(launch.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", self.binary.display()))?;
        self.nodes[node].child = Some(child);
        Ok(())
    }

    /// Kills a node with SIGKILL: nothing is flushed, nothing is said.
    ///
    /// # Errors
    /// When it was not running: then it had died by itself, which nobody asked for.
    pub fn kill(&mut self, node: usize) -> anyhow::Result<()> {
        let node = &mut self.nodes[node];
        let mut child = node.child.take().context("the node was not started")?;
        let ended = child.try_wait()?;
        ensure!(ended.is_none(), "{} had ended by itself: {ended:?}; see its log", node.name);
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Sends a node a signal.
    ///
    /// # Errors
    /// When it is not running.
    pub fn signal(&self, node: usize, signal: Signal) -> anyhow::Result<()> {
        let node = &self.nodes[node];
        let pid = node.child.as_ref().and_then(|child| Pid::from_raw(child.id().cast_signed()));
        let pid = pid.with_context(|| format!("{} is not running", node.name))?;
        kill_process(pid, signal).with_context(|| format!("signalling {}", node.name))
    }

    /// How a node ended that nobody killed; `None` while it runs, or was never started. Told once.
    ///
    /// # Errors
    /// When the operating system doesn't say.
    pub fn ended(&mut self, node: usize) -> anyhow::Result<Option<ExitStatus>> {
        let Some(child) = self.nodes[node].child.as_mut() else { return Ok(None) };
        let ended = child.try_wait()?;
        if ended.is_some() {
            self.nodes[node].child = None;
        }
        Ok(ended)
    }

    /// Whether a node was started and not killed since.
    pub fn is_started(&self, node: usize) -> bool {
        self.nodes[node].child.is_some()
    }

    /// The process id of a running node.
    pub fn process(&self, node: usize) -> Option<u32> {
        self.nodes[node].child.as_ref().map(Child::id)
    }

    /// Waits until every node that was started says it is ready.
    ///
    /// # Errors
    /// The last reasons of a node that isn't ready within `patience`.
    pub async fn ready(&mut self, patience: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + patience;
        for at in (0..self.nodes.len()).filter(|at| self.is_started(*at)).collect::<Vec<_>>() {
            loop {
                let ended = self.nodes[at].child.as_mut().map(Child::try_wait).transpose()?.flatten();
                ensure!(ended.is_none(), "{} ended by itself: {ended:?}; {}", self.nodes[at].name, self.log_tail(at));
                match self.admin(at, "/readyz").await {
                    Ok(answer) if answer.starts_with("HTTP/1.1 200") => break,
                    _ if Instant::now() < until => tokio::time::sleep(Duration::from_millis(50)).await,
                    last => anyhow::bail!("{} is not ready: {last:?}; {}", self.nodes[at].name, self.log_tail(at)),
                }
            }
        }
        Ok(())
    }

    /// What a node's admin port answers to a GET, from its status line on.
    ///
    /// # Errors
    /// When it does not answer within two seconds.
    pub async fn admin(&self, node: usize, path: &str) -> anyhow::Result<String> {
        ask_admin(self.nodes[node].place.admin, path).await
    }

    /// A client that knows every region and begins with `nearest`.
    ///
    /// # Errors
    /// When no node answers.
    pub async fn client(&self, nearest: usize) -> anyhow::Result<Client> {
        self.dial(nearest).connect().await
    }

    /// What it takes to become such a client, elsewhere and later.
    pub fn dial(&self, nearest: usize) -> Dial {
        let order = (0..self.nodes.len()).map(|step| &self.nodes[(nearest + step) % self.nodes.len()]);
        self.dial_to(order, true)
    }

    /// The same for a client that asks this node and no other.
    pub fn dial_only(&self, node: usize) -> Dial {
        self.dial_to([&self.nodes[node]], false)
    }

    fn dial_to<'a>(&self, nodes: impl IntoIterator<Item = &'a Node>, discover: bool) -> Dial {
        let endpoints = nodes.into_iter().map(|node| format!("https://{}", node.place.rpc)).collect();
        Dial { endpoints, pki: self.dir.join("pki"), discover }
    }

    /// Creates one bucket per policy; every node that was started has heard of them then.
    ///
    /// # Errors
    /// As [`Planet::create_bucket`].
    pub async fn create_buckets(&self) -> anyhow::Result<()> {
        for (name, policy) in BUCKETS {
            self.create_bucket(name, policy).await?;
        }
        Ok(())
    }

    /// Creates a bucket that every region holds; every node that was started has heard of it then.
    ///
    /// # Errors
    /// When the metadata plane refuses, or a node does not hear of it.
    pub async fn create_bucket(&self, name: &str, policy: Policy) -> anyhow::Result<()> {
        create_bucket(&self.client(0).await?, name, policy).await?;
        for node in (0..self.nodes.len()).filter(|node| self.is_started(*node)) {
            self.hears_of(node, name).await?;
        }
        Ok(())
    }

    /// A client that did not create a bucket takes a node at its word that there is none.
    async fn hears_of(&self, node: usize, bucket: &str) -> anyhow::Result<()> {
        let until = Instant::now() + NEWS_TRAVELS;
        loop {
            let heard = async {
                let topology = self.dial_only(node).connect().await?.admin().topology().await?;
                anyhow::Ok(topology.bucket_named(bucket).is_some())
            };
            match heard.await {
                Ok(true) => return Ok(()),
                _ if Instant::now() < until => tokio::time::sleep(Duration::from_millis(50)).await,
                last => anyhow::bail!("{} lacks `{bucket}`: {last:?}; {}", self.nodes[node].name, self.log_tail(node)),
            }
        }
    }

    fn issue(&self, what: &[&str]) -> anyhow::Result<()> {
        let output =
            Command::new(&self.binary).arg("cert").args(what).arg("--dir").arg(self.dir.join("pki")).output()?;
        ensure!(output.status.success(), "meridian cert {what:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn config(&self, node: &str) -> PathBuf {
        self.dir.join(format!("{node}.toml"))
    }

    /// A node's log.
    pub fn log(&self, node: usize) -> String {
        let name = &self.nodes[node].name;
        std::fs::read_to_string(self.dir.join(format!("{name}.log"))).unwrap_or_default()
    }

    /// The end of a node's log.
    pub fn log_tail(&self, node: usize) -> String {
        let text = self.log(node);
        let lines: Vec<&str> = text.lines().rev().take(20).collect();
        let tail: Vec<&str> = lines.into_iter().rev().collect();
        format!("the end of its log:\n{}", tail.join("\n"))
    }
}

impl Drop for Planet {
    fn drop(&mut self) {
        for child in self.nodes.iter_mut().filter_map(|node| node.child.as_mut()) {
            // One that ended already needs no killing.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Creates a bucket that every region holds.
///
/// # Errors
/// When the metadata plane refuses.
pub async fn create_bucket(client: &Client, name: &str, policy: Policy) -> anyhow::Result<Bucket> {
    let name = BucketName::new(name)?;
    let spec = BucketSpec {
        name,
        policy,
        regions: Vec::new(),
        primary: None,
        labels: Default::default(),
        auto: Default::default(),
    };
    Ok(client.admin().create_bucket(&spec, false).await?)
}

/// How clients reach a planet.
#[derive(Clone, Debug)]
pub struct Dial {
    endpoints: Vec<String>,
    pki: PathBuf,
    discover: bool,
}

impl Dial {
    /// The same, as options of the command line.
    pub fn options(&self) -> Vec<String> {
        let file = |name: &str| self.pki.join(name).display().to_string();
        let words = [
            ("--endpoint", self.endpoints.join(",")),
            ("--ca", file("ca.pem")),
            ("--cert", file("chaos.pem")),
            ("--key", file("chaos-key.pem")),
        ];
        words.into_iter().flat_map(|(option, value)| [option.to_owned(), value]).collect()
    }

    /// Connects, with a new identity.
    ///
    /// # Errors
    /// When no node answers.
    pub async fn connect(&self) -> anyhow::Result<Client> {
        Ok(self.builder().connect().await?)
    }

    /// Connects as a client of this id.
    ///
    /// # Errors
    /// When no node answers.
    pub async fn connect_as(&self, id: ClientId) -> anyhow::Result<Client> {
        Ok(self.builder().client_id(id).connect().await?)
    }

    fn builder(&self) -> Builder {
        let pki = &self.pki;
        let files = (pki.join("ca.pem"), pki.join("chaos.pem"), pki.join("chaos-key.pem"));
        Client::builder().endpoints(&self.endpoints).tls_files(files.0, files.1, files.2).discover(self.discover)
    }
}

/// A region's nodes by name.
fn names(region: &'static str, nodes: usize) -> impl Iterator<Item = (&'static str, String)> {
    (1..=nodes).map(move |node| (region, format!("{region}-{node}")))
}

/// What every node knows of all. Each is in a zone of its own.
fn members(names: &[(&str, String)], places: &[Place], witness: Option<&str>) -> String {
    let mut text = String::new();
    for ((region, name), place) in names.iter().zip(places) {
        let role = match witness == Some(*region) {
            true => "witness = true".to_owned(),
            false => format!("replication = \"{}\"", place.replication),
        };
        // Writing to a string can't fail.
        let _ = writeln!(
            text,
            "[[members]]\nname = \"{name}\"\nregion = \"{region}\"\nzone = \"{name}\"\nrpc = \"{}\"\n{role}",
            place.rpc
        );
    }
    text
}

async fn ask_admin(admin: SocketAddr, path: &str) -> anyhow::Result<String> {
    let asked = async {
        let mut stream = TcpStream::connect(admin).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    };
    tokio::time::timeout(Duration::from_secs(2), asked).await?
}
