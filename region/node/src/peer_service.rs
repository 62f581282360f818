//! The gRPC service for the regions of other nodes. Up before the region is, so that the server can be; until then it says
//! "try again". Only nodes of this cluster are answered, each as the region in its certificate (SEC-1).

use std::sync::{Arc, OnceLock};

use meridian_proto::convert::status_of_refusal;
use meridian_proto::identity::Identity;
use meridian_proto::v1;
use meridian_proto::v1::region_peer_server::{RegionPeer, RegionPeerServer};
use meridian_types::{Refusal, RefusalKind, RegionId};
use tonic::{Request, Response, Status};

use crate::peers::ANSWER_BYTES_MAX;
use crate::service::Handle;

/// Serves `RegionPeer`. Cheap to clone.
#[derive(Clone, Default)]
pub struct PeerService {
    handle: Arc<OnceLock<Handle>>,
}

impl PeerService {
    /// Begins to answer. Called once.
    pub fn open(&self, handle: Handle) {
        assert!(self.handle.set(handle).is_ok(), "a node opens its region once");
    }

    /// For the gRPC server.
    pub fn server(&self) -> RegionPeerServer<PeerService> {
        RegionPeerServer::new(self.clone()).max_encoding_message_size(ANSWER_BYTES_MAX)
    }

    /// The region of a caller that is a node of this cluster.
    fn caller<T>(&self, handle: &Handle, request: &Request<T>) -> Result<RegionId, Refusal> {
        let denied = |why: String| Refusal::new(RefusalKind::Denied, why);
        let Identity::Node { region, name } = Identity::of_request(request)? else {
            return Err(denied("only nodes of the cluster may ask a region directly".to_owned()));
        };
        let known = handle.topology().region_named(region.as_str()).map(|region| region.id);
        known.ok_or_else(|| denied(format!("node `{name}` is of region `{region}`, which the cluster does not know")))
    }
}

#[tonic::async_trait]
impl RegionPeer for PeerService {
    async fn repair(&self, request: Request<v1::RepairAsk>) -> Result<Response<v1::RepairTold>, Status> {
        let starting = || Refusal::new(RefusalKind::Retry, "this node is still starting: try again after a pause");
        let handle = self.handle.get().ok_or_else(starting).map_err(status_of_refusal)?;
        let caller = self.caller(handle, &request).map_err(status_of_refusal)?;
        let told = handle.answer_repair(caller, &request.into_inner().ask).await.map_err(status_of_refusal)?;
        Ok(Response::new(v1::RepairTold { told }))
    }
}
