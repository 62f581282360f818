//! What can be set, with defaults for 400 Mbit/s over 150 ms.

use std::net::{Ipv4Addr, SocketAddr};

use meridian_types::{NodeName, RegionName};
use serde::{Deserialize, Serialize};

/// What the replicator of one node needs to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// This node's name, as in its certificate.
    pub node: NodeName,
    /// This node's region, as in its certificate.
    pub region: RegionName,
    /// Where to listen (UDP).
    #[serde(default = "listen_default")]
    pub listen: SocketAddr,
    /// How far a peer's timestamps may be ahead of this node's clock before its lane stops, in milliseconds
    /// (design 8, clock poison). Half a second: ten times what NTP keeps over the Internet, a tenth of a lease.
    #[serde(default = "max_skew_ms_default")]
    pub max_skew_ms: u64,
    /// Tuning of the transport.
    #[serde(default)]
    pub transport: Transport,
}

/// Tuning of the transport.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Transport {
    /// Congestion control. BBR by measurement (`examples/wan.rs`, 80 ms, 400 Mbit/s): with 0.1 % and 1 % loss it
    /// keeps most of the link, where CUBIC falls to a few per cent of it.
    pub congestion: Congestion,
    /// Bytes of frames that may be on their way to one node, per lane kind, before acknowledgements return; the
    /// lanes share it. 16 MiB is twice 400 Mbit/s x 150 ms. What bounds the memory of a link (RES-1).
    pub window_bytes: usize,
    /// Connections that carry the async lanes to one node; the sync lanes have one of their own, so that no
    /// backlog fills its windows. Four of them drained a backlog over 80 ms and 400 Mbit/s at 90 % of the link, 81 % at
    /// 1 % loss; a single one at 80 %, and under loss it took 20 s to get there.
    pub async_connections: usize,
    /// How long a silent peer is waited for before the connection is given up, in milliseconds.
    pub idle_timeout_ms: u64,
}

/// Congestion control.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Congestion {
    /// Model of bandwidth and round trip: holds its rate through random loss.
    Bbr,
    /// Loss means congestion: fair to others, slow over long lossy links.
    Cubic,
}

impl Default for Transport {
    fn default() -> Transport {
        Transport { congestion: Congestion::Bbr, window_bytes: 16 << 20, async_connections: 4, idle_timeout_ms: 3_000 }
    }
}

impl Options {
    /// Options with every default.
    pub fn new(node: NodeName, region: RegionName, listen: SocketAddr) -> Options {
        Options { node, region, listen, max_skew_ms: max_skew_ms_default(), transport: Transport::default() }
    }
}

fn listen_default() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, 7300))
}

fn max_skew_ms_default() -> u64 {
    500
}
