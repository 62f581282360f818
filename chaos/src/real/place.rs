//! Where a node of a planet lives: its addresses, its disk, and what its process is started through.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Ports that this process has given to nodes so far: one whose node is down, or not yet up, is free only to look at.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// Any port of loopback that is free.
const ANY: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

/// Where a node lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// gRPC.
    pub rpc: SocketAddr,
    /// QUIC.
    pub replication: SocketAddr,
    /// Metrics and health.
    pub admin: SocketAddr,
    /// Its data directory; `None` for one beside its configuration.
    pub data_dir: Option<PathBuf>,
    /// Below this much free disk, writes are refused; `None` for the product's default.
    pub disk_reserve_bytes: Option<u64>,
    /// A command that takes another as its arguments and runs it: `ip netns exec …`. Empty for none. It must become
    /// the other command, not its parent: signals are for the node.
    pub through: Vec<String>,
}

/// What differs from one start of a node to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Launch {
    /// One more command to run the node through, behind the place's own.
    pub through: Vec<String>,
    /// Environment variables.
    pub environment: Vec<(String, String)>,
}

impl Place {
    /// Places on loopback, at ports that were free a moment ago and that no other place of this process has.
    ///
    /// # Errors
    /// When there are none.
    pub fn on_loopback(count: usize) -> anyhow::Result<Vec<Place>> {
        let tcp = free(count * 2, || TcpListener::bind(ANY), TcpListener::local_addr)?;
        let udp = free(count, || UdpSocket::bind(ANY), UdpSocket::local_addr)?;
        let place = |(tcp, replication): (&[SocketAddr], SocketAddr)| Place {
            rpc: tcp[0],
            replication,
            admin: tcp[1],
            data_dir: None,
            disk_reserve_bytes: None,
            through: Vec::new(),
        };
        Ok(tcp.chunks(2).zip(udp).map(place).collect())
    }

    /// What a node that joins later says of itself; it is in a zone of its own.
    pub(super) fn joins(&self, node: &str) -> String {
        let (rpc, replication) = (self.rpc, self.replication);
        format!("[joins]\nzone = \"{node}\"\nrpc = \"{rpc}\"\nreplication = \"{replication}\"\n")
    }

    /// The node's configuration; everything of the planet's own is below `dir`.
    pub(super) fn config(&self, dir: &Path, (region, witness): (&str, bool), node: &str, members: &str) -> String {
        let pki = dir.join("pki").display().to_string();
        let data_dir = self.data_dir.clone().unwrap_or_else(|| dir.join(node));
        let limits = self.disk_reserve_bytes.map(|bytes| format!("[limits]\ndisk_reserve_bytes = {bytes}\n"));
        let replication = (!witness).then(|| format!("replication = \"{}\"\n", self.replication));
        format!(
            "cluster = \"chaos\"\nregion = \"{region}\"\nnode = \"{node}\"\ndata_dir = \"{}\"\n\
             [listen]\nrpc = \"{}\"\n{}admin = \"{}\"\n\
             [tls]\nca = \"{pki}/ca.pem\"\ncert = \"{pki}/{node}.pem\"\nkey = \"{pki}/{node}-key.pem\"\n{}{members}",
            data_dir.display(),
            self.rpc,
            replication.unwrap_or_default(),
            self.admin,
            limits.unwrap_or_default()
        )
    }
}

/// So many addresses that are free now and were given to nobody.
fn free<T>(
    count: usize,
    bind: impl Fn() -> io::Result<T>,
    address: impl Fn(&T) -> io::Result<SocketAddr>,
) -> anyhow::Result<Vec<SocketAddr>> {
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut held, mut free) = (Vec::new(), Vec::new());
    while free.len() < count {
        let socket = bind()?;
        let address = address(&socket)?;
        // Also one that is of no use is held, so that the next is another.
        held.push(socket);
        if given.insert(address.port()) {
            free.push(address);
        }
    }
    Ok(free)
}
