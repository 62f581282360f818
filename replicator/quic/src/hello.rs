//! The first words on a connection: who speaks for which region, held against both certificates (SEC-1).
//! TLS alone does not do: `connect` may succeed before the server has judged the client's certificate.

use std::sync::Arc;
use std::time::Duration;

use meridian_replicator_core::message::{Hello, Welcome, short};
use meridian_types::{NodeId, RegionId, Topology};
use s2n_quic::connection::{Handle, StreamAcceptor};
use tokio::time::timeout;

use crate::tls::peer_of;
use crate::wire::{Inbox, Outlet};

/// How long the other end may take to introduce itself.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the answer may take to be acknowledged.
const FAREWELL: Duration = Duration::from_secs(1);

/// Who this node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Me {
    pub(crate) region: RegionId,
    pub(crate) node: NodeId,
}

/// Introduces this node on a connection it dialled.
///
/// # Errors
/// A sentence: why this connection can't be used.
pub(crate) async fn introduce(
    mut connection: Handle,
    topology: &Topology,
    me: Me,
    expected: NodeId,
) -> Result<(), String> {
    let cluster = topology.cluster.ok_or("the cluster is not formed yet")?;
    let there = topology.nodes.get(&expected).ok_or("the node has not joined the cluster yet")?;
    let talk = async {
        let stream = connection.open_bidirectional_stream().await.map_err(|why| why.to_string())?;
        let (receive, send) = stream.split();
        let (mut inbox, mut outlet) = (Inbox::new(receive, false), Outlet::new(send));
        outlet.push(Hello { cluster, region: me.region, node: me.node, expected }.encode());
        outlet.drain().await.map_err(|why| why.to_string())?;
        let answer = inbox.next().await.map_err(|why| why.to_string())?;
        Welcome::decode(answer).map_err(|why| why.to_string())
    };
    let answer = timeout(HELLO_TIMEOUT, talk).await.map_err(|_| "it did not answer the greeting in time")??;
    let (region, node) = peer_of(&connection)?;
    let region_expected = topology.region_label(there.region);
    if region.as_str() != region_expected || node != there.name {
        return Err(format!(
            "its certificate is of node `{node}` in region `{region}`, but `{}` in `{region_expected}` was dialled",
            there.name
        ));
    }
    match answer {
        Welcome::Accepted { node, .. } if node == expected => Ok(()),
        Welcome::Accepted { node, .. } => Err(format!("node {node} answered instead of {expected}")),
        Welcome::Refused { reason } => Err(format!("it refused this node: {reason}")),
    }
}

/// Judges the introduction of a peer that dialled this node, and answers it.
///
/// # Errors
/// A sentence: why the peer was refused. The peer has been told.
pub(crate) async fn judge(
    connection: &Handle,
    acceptor: &mut StreamAcceptor,
    topology: &Arc<Topology>,
    me: Me,
) -> Result<Hello, String> {
    let talk = async {
        let stream = acceptor.accept_bidirectional_stream().await.map_err(|why| why.to_string())?;
        let (receive, send) = stream.ok_or("it closed the connection")?.split();
        let (mut inbox, mut outlet) = (Inbox::new(receive, false), Outlet::new(send));
        let hello = inbox.next().await.map_err(|why| why.to_string())?;
        let hello = Hello::decode(hello).map_err(|why| why.to_string());
        let verdict = hello.and_then(|hello| check(connection, &hello, topology, me).map(|()| hello));
        let answer = match &verdict {
            Ok(_) => Welcome::Accepted { region: me.region, node: me.node },
            Err(reason) => Welcome::Refused { reason: short(reason) },
        };
        outlet.push(answer.encode());
        // The peer may turn away once it has read enough; what counts is the verdict.
        let _ = timeout(FAREWELL, outlet.finish()).await;
        verdict
    };
    timeout(HELLO_TIMEOUT, talk).await.map_err(|_| "it did not introduce itself in time".to_owned())?
}

fn check(connection: &Handle, hello: &Hello, topology: &Topology, me: Me) -> Result<(), String> {
    let (region, node) = peer_of(connection)?;
    if topology.cluster != Some(hello.cluster) {
        let ours = topology.cluster.map_or_else(|| "not formed yet".to_owned(), |cluster| cluster.to_string());
        return Err(format!("it belongs to cluster {}, this one is {ours}", hello.cluster));
    }
    if hello.expected != me.node {
        return Err(format!("it looks for node {}, this is {}", hello.expected, me.node));
    }
    let claimed = topology.region_label(hello.region);
    if region.as_str() != claimed {
        return Err(format!("it claims to speak for region `{claimed}`, but its certificate is of region `{region}`"));
    }
    if NodeId::of(&node) != hello.node {
        return Err(format!("it claims to be node {}, but its certificate is of node `{node}`", hello.node));
    }
    if hello.region == me.region {
        return Err("regions do not replicate to themselves".to_owned());
    }
    Ok(())
}
