//! How this node reaches the others: addresses from the configuration and, once known, the topology,
//! translated where the configuration says so. One lazily connecting channel per node and address.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use meridian_proto::dial::{self, Dial};
use meridian_proto::tls::TlsMaterial;
use meridian_types::{NodeId, Topology};
use tonic::transport::Channel;
use tracing::warn;

use crate::config::Config;

/// The gRPC channels to other nodes.
pub(crate) struct Dialer {
    tls: TlsMaterial,
    translate: BTreeMap<String, String>,
    peers: Mutex<BTreeMap<NodeId, Peer>>,
}

struct Peer {
    /// As advertised, before translation.
    address: String,
    channel: Option<Channel>,
}

impl Dialer {
    /// Knows the members of the configuration.
    pub(crate) fn new(config: &Config, tls: TlsMaterial) -> Dialer {
        let peers = config
            .members
            .iter()
            .map(|member| (NodeId::of(&member.name), Peer { address: member.rpc.clone(), channel: None }))
            .collect();
        Dialer { tls, translate: config.translate.clone(), peers: Mutex::new(peers) }
    }

    /// Takes over the addresses of a newer topology.
    pub(crate) fn learn(&self, topology: &Topology) {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        topology.nodes.values().for_each(|node| place(&mut peers, node.id, &node.rpc_address));
    }

    fn connect(&self, address: &str) -> Option<Channel> {
        let address = self.translate.get(address).map_or(address, String::as_str);
        dial::channel(&format!("https://{address}"), &self.tls)
            .inspect_err(|error| warn!(address, %error, "a peer's address can't be dialled"))
            .ok()
    }
}

impl Dial for Dialer {
    fn channel(&self, node: NodeId) -> Option<Channel> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let peer = peers.get_mut(&node)?;
        if peer.channel.is_none() {
            peer.channel = self.connect(&peer.address);
        }
        peer.channel.clone()
    }

    fn learn(&self, node: NodeId, address: &str) {
        place(&mut self.peers.lock().unwrap_or_else(PoisonError::into_inner), node, address);
    }
}

/// A node that moved gets a new channel.
fn place(peers: &mut BTreeMap<NodeId, Peer>, node: NodeId, address: &str) {
    if peers.get(&node).is_none_or(|peer| peer.address != address) {
        peers.insert(node, Peer { address: address.to_owned(), channel: None });
    }
}
