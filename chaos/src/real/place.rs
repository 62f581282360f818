//! Where a node of a planet lives: its addresses, its disk, and what its process is started through.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

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
    /// Places on loopback, at ports that were free a moment ago: held all at once, so that they differ.
    ///
    /// # Errors
    /// When there are none.
    pub fn on_loopback(count: usize) -> anyhow::Result<Vec<Place>> {
        let tcp: Vec<TcpListener> =
            (0..count * 2).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
        let udp: Vec<UdpSocket> = (0..count).map(|_| UdpSocket::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
        tcp.chunks(2)
            .zip(&udp)
            .map(|(tcp, udp)| {
                let (rpc, admin) = (tcp[0].local_addr()?, tcp[1].local_addr()?);
                Ok(Place {
                    rpc,
                    replication: udp.local_addr()?,
                    admin,
                    data_dir: None,
                    disk_reserve_bytes: None,
                    through: Vec::new(),
                })
            })
            .collect()
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
