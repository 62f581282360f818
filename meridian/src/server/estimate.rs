//! `failover estimate` on the node that is asked (SWI-2): gathers what every node that answers has.
//!
//! What that comes to is worked out by the metadata core ([`meridian_metadata_core::plan::estimate`]). Nobody is waited for
//! longer than [`PATIENCE`], least of all the region that may be lost (SWI-3).

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use meridian_metadata_core::plan::Heard;
use meridian_proto::convert::facts_from_proto;
use meridian_proto::dial::Dial;
use meridian_proto::v1;
use meridian_proto::v1::cluster_client::ClusterClient;
use meridian_types::{Bucket, NodeId, RegionId, ShardFacts, Topology};
use tokio::time::timeout;

/// How long other nodes may take to say what they have: two round trips around the planet. The answer is wanted in a second.
const PATIENCE: Duration = Duration::from_millis(700);

/// The largest answer taken from a node, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Asks every other node at once what it has of the buckets; of active-active ones, what it has of the region that is lost.
pub(crate) async fn gather(
    topology: &Topology,
    own: NodeId,
    peers: &dyn Dial,
    (buckets, lost): (&[Arc<Bucket>], Option<RegionId>),
    own_facts: (RegionId, Vec<ShardFacts>),
) -> Heard {
    let lost = lost.map_or(0, |lost| u32::from(lost.0));
    let request = v1::FailoverFactsRequest { buckets: buckets.iter().map(|bucket| bucket.id.0).collect(), lost };
    let others = topology.nodes.keys().filter(|node| **node != own);
    let answers = join_all(others.map(|node| ask(peers, *node, request.clone()))).await;
    let mut heard = Heard::default();
    if own_facts.0 != RegionId::default() {
        heard.add(own_facts);
    }
    answers.into_iter().flatten().for_each(|answer| heard.add(answer));
    heard
}

async fn ask(peers: &dyn Dial, node: NodeId, request: v1::FailoverFactsRequest) -> Option<(RegionId, Vec<ShardFacts>)> {
    let mut stub = ClusterClient::new(peers.channel(node)?).max_decoding_message_size(ANSWER_BYTES_MAX);
    match timeout(PATIENCE, stub.failover_facts(request)).await {
        Ok(Ok(answer)) => facts_from_proto(answer.into_inner()).ok(),
        Ok(Err(status)) => {
            tracing::debug!(%node, %status, "a node does not say what it has");
            None
        }
        Err(_) => None,
    }
}
