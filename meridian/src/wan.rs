//! Simulated distances: user-space links that delay, limit, drop and cut what real nodes send each other.
//!
//! Owns the TCP and UDP proxies between the regions of `meridian dev` and `meridian demo`, and of tests.
//! For every ordered pair of regions (A dials B) there is one [`Route`]: a TCP proxy in front of B's rpc
//! address and a UDP proxy in front of B's replication address. Each *direction* of a pair is one [`Wire`]
//! that all of them share: half of the round trip, and optionally a bandwidth, a loss and a cut.
//!
//! ```text
//!  node in A ──> 127.0.0.1:7111 ─ wire A→B: due = now + queue + RTT/2 ─> 127.0.0.1:7200, node in B
//!            <──────────────────── wire B→A ──────────────────────────<
//! ```
//!
//! Threads with blocking sockets that sleep until a packet is due, not tokio: its timer wheel ticks in
//! milliseconds, which at 30 ms of distance is an error of several percent; a sleeping thread wakes within
//! about 0.1 ms. A proxy accepts TCP connections at once: what a handshake would cost is not simulated.
//! Nothing here is needed by a real deployment.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use meridian_types::RegionName;

mod delay;
mod distances;
mod tcp;
mod udp;
mod wire;

#[cfg(test)]
mod tests;

pub use distances::{Conditions, Distances, DistancesError, Link, Pair, RoundTrip};
pub use wire::Wire;

/// Where nodes of `from` dial to reach the node of `to`, and what stands behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The region that dials.
    pub from: RegionName,
    /// The region that is dialled.
    pub to: RegionName,
    /// Where the TCP proxy listens.
    pub tcp: SocketAddr,
    /// The rpc address behind it.
    pub tcp_target: SocketAddr,
    /// Where the UDP proxy listens.
    pub udp: SocketAddr,
    /// The replication address behind it.
    pub udp_target: SocketAddr,
}

/// Running links. Dropping it closes every socket and ends every thread.
#[derive(Debug)]
pub struct Wan {
    wires: BTreeMap<(RegionName, RegionName), Arc<Wire>>,
    // Held for their Drop: they stop their threads.
    _tcp: Vec<tcp::Proxy>,
    _udp: Vec<udp::Proxy>,
}

impl Wan {
    /// Opens every route with the conditions that `distances` gives its pair.
    ///
    /// # Errors
    /// When an address can't be bound; the message names it.
    pub fn start(distances: &Distances, routes: &[Route]) -> std::io::Result<Wan> {
        let mut wires = BTreeMap::new();
        for route in routes {
            for (from, to) in [(&route.from, &route.to), (&route.to, &route.from)] {
                wires
                    .entry((from.clone(), to.clone()))
                    .or_insert_with(|| Arc::new(Wire::new(distances.conditions(from, to))));
            }
        }
        let mut wan = Wan { wires, _tcp: Vec::new(), _udp: Vec::new() };
        for route in routes {
            let (there, back) = (wan.wire(&route.from, &route.to), wan.wire(&route.to, &route.from));
            let (Some(there), Some(back)) = (there, back) else { continue };
            wan._tcp.push(tcp::Proxy::start(route.tcp, route.tcp_target, there.clone(), back.clone())?);
            wan._udp.push(udp::Proxy::start(route.udp, route.udp_target, there, back)?);
        }
        Ok(wan)
    }

    /// The wire that carries what `from` sends to `to`, in either role.
    pub fn wire(&self, from: &RegionName, to: &RegionName) -> Option<Arc<Wire>> {
        self.wires.get(&(from.clone(), to.clone())).cloned()
    }

    /// Cuts (or mends) both directions between two regions. Datagrams are lost, streams stand still.
    pub fn partition(&self, a: &RegionName, b: &RegionName, cut: bool) {
        for (from, to) in [(a, b), (b, a)] {
            if let Some(wire) = self.wire(from, to) {
                wire.set_cut(cut);
            }
        }
    }
}

impl Drop for Wan {
    fn drop(&mut self) {
        // A cut wire must not hold its threads back from ending.
        self.wires.values().for_each(|wire| wire.stop());
    }
}
