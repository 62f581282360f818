//! The server side of the transport: what other nodes' links connect to.

use std::pin::Pin;

use futures::Stream;
use meridian_proto::v1::ConsensusMessage;
use meridian_proto::v1::consensus_peer_server::ConsensusPeer;
use tonic::{Request, Response, Status, Streaming};

/// Serves the links of this node's peers.
#[derive(Clone)]
pub struct PeerService {}

#[tonic::async_trait]
impl ConsensusPeer for PeerService {
    type ExchangeStream = Pin<Box<dyn Stream<Item = Result<ConsensusMessage, Status>> + Send>>;

    async fn exchange(
        &self,
        _request: Request<Streaming<ConsensusMessage>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        Err(Status::unavailable("consensus has stopped on this node"))
    }
}
