//! The gRPC service for other nodes: commands and leases for those who found (or look for) the leader here.
//!
//! Only nodes of this cluster are served, each for itself (SEC-1): a renewal is for the node in the certificate,
//! a registration too, a word about shards for its region; commands of others carry the name of whoever asked their gateway.

use std::sync::Arc;
use std::time::Duration;

use meridian_metadata_core::command::COMMAND_BYTES_MAX;
use meridian_metadata_core::{Action, Command, CommandError};
use meridian_proto::convert::{refusal_to_proto, status_of_refusal};
use meridian_proto::identity::Identity;
use meridian_proto::v1;
use meridian_proto::v1::metadata_peer_server::{MetadataPeer, MetadataPeerServer};
use meridian_types::{NodeId, NodeName, Refusal, RefusalKind, RegionId, RegionName};
use tonic::{Request, Response, Status};

use crate::attempt::{Attempt, leader_to_proto, lost_to_proto};
use crate::clock::wall_ms;
use crate::copy::LocalCopy;
use crate::leader::{Contact, Leader};

/// Serves `MetadataPeer`.
#[derive(Clone, Debug)]
pub struct PeerService {
    leader: Arc<Leader>,
    copy: Arc<LocalCopy>,
}

pub(crate) fn server(leader: Arc<Leader>, copy: Arc<LocalCopy>) -> MetadataPeerServer<PeerService> {
    // Room for the message around the command.
    MetadataPeerServer::new(PeerService { leader, copy }).max_decoding_message_size(COMMAND_BYTES_MAX + 1024)
}

/// The node that calls.
struct Caller {
    region: RegionName,
    name: NodeName,
}

fn denied(message: String) -> Status {
    status_of_refusal(Refusal::new(RefusalKind::Denied, message))
}

impl Caller {
    fn of<T>(request: &Request<T>) -> Result<Caller, Status> {
        match Identity::of_request(request).map_err(status_of_refusal)? {
            Identity::Node { region, name } => Ok(Caller { region, name }),
            Identity::Client { name } => {
                Err(denied(format!("`{name}` is a client: only nodes may call the metadata plane directly")))
            }
        }
    }

    fn id(&self) -> NodeId {
        NodeId::of(&self.name)
    }
}

impl PeerService {
    /// Whether the caller is a node of this cluster, in the region its certificate names.
    fn check_known(&self, caller: &Caller) -> Result<(), Status> {
        let known = self.copy.topology();
        let region = known.nodes.get(&caller.id()).and_then(|node| known.regions.get(&node.region));
        match region {
            Some(region) if region.name == caller.region => Ok(()),
            Some(region) => Err(denied(format!(
                "node `{}` is registered in region `{}`, but its certificate names region `{}`",
                caller.name, region.name, caller.region
            ))),
            // It may be registered already at a leader that this node follows too slowly.
            None => Err(status_of_refusal(Refusal::new(
                RefusalKind::Retry,
                format!("node `{}` is not registered here yet", caller.name),
            ))),
        }
    }

    fn check_command(&self, caller: &Caller, command: &Command) -> Result<(), Status> {
        match &command.action {
            Action::RegisterNode(node) if node.name == caller.name && node.region == caller.region => Ok(()),
            Action::RegisterNode(node) => Err(denied(format!(
                "node `{}` of region `{}` can't register node `{}` of region `{}`",
                caller.name, caller.region, node.name, node.region
            ))),
            Action::FormCluster(_) | Action::FormClusterAt { .. } => {
                Err(denied("a cluster is formed by its first leader only".to_owned()))
            }
            Action::CreateBucket(_)
            | Action::DeleteBucket { .. }
            | Action::SetLabels { .. }
            | Action::SetBucket { .. }
            | Action::SetDetection { .. }
            | Action::SetPolicy { .. }
            | Action::SetRegions { .. }
            | Action::Cross { .. }
            | Action::CrossRegions { .. }
            | Action::LoseRegion { .. }
            | Action::Change { .. }
            | Action::ChangeMembers { .. }
            | Action::RemoveNode { .. }
            | Action::Finalize { .. }
            | Action::Note { .. }
            | Action::Switchover(_)
            | Action::Failover(_)
            | Action::Abort { .. } => self.check_known(caller),
            // What leases have run out, no other node can know.
            Action::Advance { .. } | Action::Observe { .. } | Action::GiveUpCrossing { .. } => {
                Err(denied("what the metadata leader sees, only it puts on record".to_owned()))
            }
            Action::Report { region, .. }
            | Action::ReportStanding { region, .. }
            | Action::ShardsMoved { region, .. } => {
                self.check_known(caller)?;
                match self.copy.topology().nodes.get(&caller.id()) {
                    Some(node) if node.region == *region => Ok(()),
                    _ => Err(denied(format!(
                        "node `{}` of region `{}` can't speak for region {region}",
                        caller.name, caller.region
                    ))),
                }
            }
        }
    }
}

#[tonic::async_trait]
impl MetadataPeer for PeerService {
    async fn propose(&self, request: Request<v1::ProposeRequest>) -> Result<Response<v1::ProposeResponse>, Status> {
        use v1::propose_response::Result as Answer;
        let caller = Caller::of(&request)?;
        let invalid = |why: CommandError| status_of_refusal(Refusal::new(RefusalKind::Invalid, why.to_string()));
        let mut command = Command::decode(&request.into_inner().command).map_err(invalid)?;
        let leadership = self.leader.leadership();
        let answer = if leadership.leads {
            self.check_command(&caller, &command)?;
            // One clock for all, so that the time between two commands can be told.
            command.at_ms = wall_ms();
            let bytes = command.encode().map_err(invalid)?;
            match self.leader.propose(&command, bytes.into()).await {
                Attempt::Done(result) => Answer::Applied(result),
                Attempt::Elsewhere(leader) => Answer::Leader(leader_to_proto(leader)),
                Attempt::Refused(refusal) => Answer::Refusal(refusal_to_proto(refusal)),
                Attempt::Lost(why) => Answer::Refusal(lost_to_proto(why)),
            }
        } else {
            Answer::Leader(leader_to_proto(leadership.leader))
        };
        Ok(Response::new(v1::ProposeResponse { result: Some(answer) }))
    }

    async fn renew_lease(
        &self,
        request: Request<v1::RenewLeaseRequest>,
    ) -> Result<Response<v1::RenewLeaseResponse>, Status> {
        use v1::renew_lease_response::Result as Answer;
        let caller = Caller::of(&request)?;
        let v1::RenewLeaseRequest { node, incarnation, silent, listens, term, contact_age_us } = request.into_inner();
        let contact = contact_age_us.map(|age_us| Contact { term, age: Duration::from_micros(age_us) });
        // A number beyond is no region's, so nothing rests on it.
        let silent = silent.into_iter().filter_map(|it| u16::try_from(it).ok()).map(RegionId).collect();
        let node = NodeId(node);
        if node != caller.id() {
            return Err(denied(format!("node `{}` can't renew the lease of node {node}", caller.name)));
        }
        let leadership = self.leader.leadership();
        let answer = if leadership.leads {
            self.check_known(&caller)?;
            match self.leader.renew(node, incarnation, listens.then_some(silent), contact).await {
                Attempt::Done(grant) => Answer::Grant(v1::LeaseGrant {
                    // Milliseconds in the cluster's state, so nothing is rounded.
                    ttl_ms: u64::try_from(grant.ttl.as_millis()).unwrap_or_default(),
                    index: grant.index,
                    term: grant.term,
                }),
                Attempt::Elsewhere(leader) => Answer::Leader(leader_to_proto(leader)),
                Attempt::Refused(refusal) => Answer::Refusal(refusal_to_proto(refusal)),
                Attempt::Lost(why) => Answer::Refusal(lost_to_proto(why)),
            }
        } else {
            Answer::Leader(leader_to_proto(leadership.leader))
        };
        Ok(Response::new(v1::RenewLeaseResponse { result: Some(answer) }))
    }
}
