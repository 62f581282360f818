//! Three regions of one real process each, on loopback: start, kill -9, restart.

use std::fmt::Write as _;
use std::fs::File;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use meridian_client::{Acks, BucketName, BucketSpec, Client, Policy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// The regions of every planet, in the order of their replica numbers. The first is every bucket's primary.
pub const REGIONS: [&str; 3] = ["us-east", "eu-west", "ap-south"];

/// One bucket per policy: name and policy.
pub const BUCKETS: [(&str, Policy); 3] = [
    ("async", Policy::Async),
    ("sync", Policy::Sync { acks: Acks::Majority }),
    ("active-active", Policy::ActiveActive),
];

/// Three regions of one process each. Dropping it kills them.
pub struct Planet {
    binary: PathBuf,
    dir: PathBuf,
    nodes: Vec<Node>,
}

struct Node {
    name: String,
    rpc: SocketAddr,
    admin: SocketAddr,
    child: Option<Child>,
}

impl Planet {
    /// Issues certificates and writes configurations below `dir`; starts nothing yet.
    ///
    /// # Errors
    /// When the binary can't issue certificates, or no ports are free.
    pub fn create(binary: &Path, dir: &Path) -> anyhow::Result<Planet> {
        let mut planet = Planet { binary: binary.to_owned(), dir: dir.to_owned(), nodes: Vec::new() };
        planet.issue(&["init"])?;
        planet.issue(&["client", "--name", "chaos"])?;
        let ports = free_ports(REGIONS.len())?;
        for (region, ports) in REGIONS.iter().zip(&ports) {
            let name = format!("{region}-1");
            planet.issue(&["node", "--region", region, "--name", &name])?;
            planet.nodes.push(Node { name, rpc: ports.rpc, admin: ports.admin, child: None });
        }
        let members = members(&ports);
        for ((region, ports), node) in REGIONS.iter().zip(&ports).zip(&planet.nodes) {
            std::fs::write(planet.config(&node.name), planet.config_text(region, &node.name, ports, &members))?;
        }
        Ok(planet)
    }

    /// Starts a node; its log goes to a file beside its configuration.
    ///
    /// # Errors
    /// When the process can't be started.
    pub fn start(&mut self, node: usize) -> anyhow::Result<()> {
        let name = &self.nodes[node].name;
        let log = File::options().create(true).append(true).open(self.dir.join(format!("{name}.log")))?;
        let child = Command::new(&self.binary)
            .args(["server", "--config"])
            .arg(self.config(name))
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

    /// Waits until every node says it is ready.
    ///
    /// # Errors
    /// The last reasons of a node that isn't ready within `patience`.
    pub async fn ready(&mut self, patience: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + patience;
        for at in 0..self.nodes.len() {
            loop {
                let ended = self.nodes[at].child.as_mut().map(Child::try_wait).transpose()?.flatten();
                ensure!(ended.is_none(), "{} ended by itself: {ended:?}; {}", self.nodes[at].name, self.log_tail(at));
                match readyz(self.nodes[at].admin).await {
                    Ok(answer) if answer.starts_with("HTTP/1.1 200") => break,
                    _ if Instant::now() < until => tokio::time::sleep(Duration::from_millis(50)).await,
                    last => anyhow::bail!("{} is not ready: {last:?}; {}", self.nodes[at].name, self.log_tail(at)),
                }
            }
        }
        Ok(())
    }

    /// A client that knows every region and begins with `nearest`.
    ///
    /// # Errors
    /// When no node answers.
    pub async fn client(&self, nearest: usize) -> anyhow::Result<Client> {
        let order = (0..self.nodes.len()).map(|step| &self.nodes[(nearest + step) % self.nodes.len()]);
        let pki = self.dir.join("pki");
        Ok(Client::builder()
            .endpoints(order.map(|node| format!("https://{}", node.rpc)))
            .tls_files(pki.join("ca.pem"), pki.join("chaos.pem"), pki.join("chaos-key.pem"))
            .connect()
            .await?)
    }

    /// Creates one bucket per policy.
    ///
    /// # Errors
    /// When the metadata plane refuses.
    pub async fn create_buckets(&self) -> anyhow::Result<()> {
        let client = self.client(0).await?;
        for (name, policy) in BUCKETS {
            let spec = BucketSpec {
                name: BucketName::new(name)?,
                policy,
                regions: Vec::new(),
                primary: None,
                labels: std::collections::BTreeMap::new(),
            };
            client.admin().create_bucket(&spec, false).await?;
        }
        Ok(())
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

    fn config_text(&self, region: &str, node: &str, ports: &Ports, members: &str) -> String {
        let dir = self.dir.display();
        format!(
            "cluster = \"chaos\"\nregion = \"{region}\"\nnode = \"{node}\"\ndata_dir = \"{dir}/{node}\"\n\
             [listen]\nrpc = \"{}\"\nreplication = \"{}\"\nadmin = \"{}\"\n\
             [tls]\nca = \"{dir}/pki/ca.pem\"\ncert = \"{dir}/pki/{node}.pem\"\nkey = \"{dir}/pki/{node}-key.pem\"\n{members}",
            ports.rpc, ports.replication, ports.admin
        )
    }

    fn log_tail(&self, node: usize) -> String {
        let name = &self.nodes[node].name;
        let text = std::fs::read_to_string(self.dir.join(format!("{name}.log"))).unwrap_or_default();
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

struct Ports {
    rpc: SocketAddr,
    replication: SocketAddr,
    admin: SocketAddr,
}

/// Ports that were free a moment ago: held all at once, so that they differ.
fn free_ports(count: usize) -> anyhow::Result<Vec<Ports>> {
    let tcp: Vec<TcpListener> = (0..count * 2).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let udp: Vec<UdpSocket> = (0..count).map(|_| UdpSocket::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    tcp.chunks(2)
        .zip(&udp)
        .map(|(tcp, udp)| {
            let (rpc, admin) = (tcp[0].local_addr()?, tcp[1].local_addr()?);
            Ok(Ports { rpc, replication: udp.local_addr()?, admin })
        })
        .collect()
}

fn members(ports: &[Ports]) -> String {
    let mut text = String::new();
    for (region, ports) in REGIONS.iter().zip(ports) {
        // Writing to a string can't fail.
        let _ = writeln!(
            text,
            "[[members]]\nname = \"{region}-1\"\nregion = \"{region}\"\nrpc = \"{}\"\nreplication = \"{}\"",
            ports.rpc, ports.replication
        );
    }
    text
}

async fn readyz(admin: SocketAddr) -> anyhow::Result<String> {
    let asked = async {
        let mut stream = TcpStream::connect(admin).await?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    };
    tokio::time::timeout(Duration::from_secs(2), asked).await?
}
