//! The `Cluster` service: what operators and SDKs ask of any node.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use meridian_proto::convert::{
    bucket_to_proto, change_from_proto, digests_to_proto, estimate_request_from_proto, estimate_to_proto,
    events_request_from_proto, events_to_proto, facts_to_proto, failover_from_proto, lag_to_proto,
    member_change_to_proto, members_change_from_proto, node_status_to_proto, operation_to_proto, plan_to_proto,
    spec_from_proto, status_of_refusal, switchover_from_proto, topology_to_proto,
};
use meridian_proto::identity::Identity;
use meridian_proto::v1;
use meridian_proto::v1::cluster_server::Cluster;
use meridian_types::{
    BucketId, BucketName, Effect, Labels, NodeName, NodeStatus, Operation, PlanId, Refusal, RefusalKind, RegionId,
};
use tonic::{Request, Response, Status};

use crate::seams::{Caller, Control, Via};
use crate::service::Load;

/// The largest request of an operator, in bytes: a bucket with its labels.
pub(crate) const CLUSTER_BYTES_MAX: usize = 1 << 20;

/// How long an operator's request may take; a change of the metadata plane takes a few round trips between regions.
const DEADLINE: Duration = Duration::from_secs(30);

/// The most labels a request may set or remove, and how long a label's name and value may be, in bytes.
const LABELS_MAX: usize = 64;
const LABEL_BYTES_MAX: usize = 256;

/// Serves operators and SDKs.
pub struct ClusterService<C> {
    load: Arc<Load>,
    control: Arc<C>,
}

impl<C: Control> ClusterService<C> {
    pub(crate) fn new(load: Arc<Load>, control: Arc<C>) -> ClusterService<C> {
        ClusterService { load, control }
    }

    /// Waits for an answer, within the deadline, with an eye on panics.
    async fn within<T>(&self, changes: Changes, answer: impl Future<Output = Result<T, Refusal>>) -> Result<T, Status> {
        let _watch = self.load.watch();
        let answer = tokio::time::timeout(DEADLINE, answer).await.unwrap_or_else(|_| Err(too_late(changes)));
        answer.map_err(status_of_refusal)
    }
}

#[tonic::async_trait]
impl<C: Control> Cluster for ClusterService<C> {
    async fn topology(&self, request: Request<v1::TopologyRequest>) -> Result<Response<v1::TopologyResponse>, Status> {
        caller(&request)?;
        Ok(Response::new(topology_to_proto(&self.control.topology(), self.control.node())))
    }

    async fn create_bucket(&self, request: Request<v1::CreateBucketRequest>) -> Result<Response<v1::Bucket>, Status> {
        let caller = caller(&request)?;
        let (spec, dry_run) = spec_from_proto(request.into_inner()).map_err(status_of_refusal)?;
        check_labels(&spec.labels, &[]).map_err(status_of_refusal)?;
        let bucket = self.within(Changes::Yes, self.control.create_bucket(spec, dry_run, caller)).await?;
        Ok(Response::new(bucket_to_proto(&bucket)))
    }

    async fn delete_bucket(
        &self,
        request: Request<v1::DeleteBucketRequest>,
    ) -> Result<Response<v1::DeleteBucketResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let name = bucket_name(&request.name)?;
        self.within(Changes::Yes, self.control.delete_bucket(name, request.dry_run, caller)).await?;
        Ok(Response::new(v1::DeleteBucketResponse {}))
    }

    async fn set_bucket_labels(
        &self,
        request: Request<v1::SetBucketLabelsRequest>,
    ) -> Result<Response<v1::Bucket>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let name = bucket_name(&request.name)?;
        let set: Labels = request.set.into_iter().collect();
        check_labels(&set, &request.remove).map_err(status_of_refusal)?;
        let bucket = self.within(Changes::Yes, self.control.set_labels(name, set, request.remove, caller)).await?;
        Ok(Response::new(bucket_to_proto(&bucket)))
    }

    async fn set_bucket(&self, request: Request<v1::SetBucketRequest>) -> Result<Response<v1::Bucket>, Status> {
        let caller = caller(&request)?;
        let (name, change, dry_run) = change_from_proto(request.into_inner()).map_err(status_of_refusal)?;
        let bucket = self.within(Changes::Yes, self.control.set_bucket(name, change, dry_run, caller)).await?;
        Ok(Response::new(bucket_to_proto(&bucket)))
    }

    async fn digests(&self, request: Request<v1::DigestsRequest>) -> Result<Response<v1::DigestsResponse>, Status> {
        caller(&request)?;
        let bucket = bucket_or_all(&request.into_inner().bucket)?;
        let digests = self.within(Changes::No, self.control.digests(bucket)).await?;
        Ok(Response::new(digests_to_proto(digests.region, digests.rows)))
    }

    async fn lag(&self, request: Request<v1::LagRequest>) -> Result<Response<v1::LagResponse>, Status> {
        caller(&request)?;
        let bucket = bucket_or_all(&request.into_inner().bucket)?;
        let lags = self.within(Changes::No, self.control.lag(bucket)).await?;
        Ok(Response::new(lag_to_proto(lags.region, lags.buckets, lags.lanes)))
    }

    async fn node_status(
        &self,
        request: Request<v1::NodeStatusRequest>,
    ) -> Result<Response<v1::NodeStatusResponse>, Status> {
        caller(&request)?;
        let status = self.within(Changes::No, self.control.node_status()).await?;
        Ok(Response::new(node_status_to_proto(NodeStatus { clients: self.load.clients(), ..status })))
    }

    async fn switchover(&self, request: Request<v1::SwitchoverRequest>) -> Result<Response<v1::Operation>, Status> {
        let caller = caller(&request)?;
        let (spec, operation, dry_run) = switchover_from_proto(request.into_inner()).map_err(status_of_refusal)?;
        let plan = self.within(Changes::Yes, self.control.switchover(spec, operation, dry_run, caller)).await?;
        Ok(Response::new(plan_to_proto(&plan)))
    }

    async fn failover_estimate(
        &self,
        request: Request<v1::FailoverEstimateRequest>,
    ) -> Result<Response<v1::FailoverEstimateResponse>, Status> {
        caller(&request)?;
        let (buckets, to, lost) = estimate_request_from_proto(request.into_inner()).map_err(status_of_refusal)?;
        let estimate = self.within(Changes::No, self.control.failover_estimate(buckets, to, lost)).await?;
        Ok(Response::new(estimate_to_proto(&estimate)))
    }

    async fn failover_facts(
        &self,
        request: Request<v1::FailoverFactsRequest>,
    ) -> Result<Response<v1::FailoverFactsResponse>, Status> {
        caller(&request)?;
        let v1::FailoverFactsRequest { buckets, lost } = request.into_inner();
        let lost = u16::try_from(lost).ok().filter(|lost| *lost != 0).map(RegionId);
        let buckets = buckets.into_iter().map(BucketId).collect();
        let (region, facts) = self.control.failover_facts(buckets, lost).map_err(status_of_refusal)?;
        Ok(Response::new(facts_to_proto(region, &facts)))
    }

    async fn failover(&self, request: Request<v1::FailoverRequest>) -> Result<Response<v1::Operation>, Status> {
        let caller = caller(&request)?;
        let (spec, operation, dry_run) = failover_from_proto(request.into_inner()).map_err(status_of_refusal)?;
        let plan = self.within(Changes::Yes, self.control.failover(spec, operation, dry_run, caller)).await?;
        Ok(Response::new(plan_to_proto(&plan)))
    }

    async fn operations(
        &self,
        request: Request<v1::OperationsRequest>,
    ) -> Result<Response<v1::OperationsResponse>, Status> {
        caller(&request)?;
        let plan = request.into_inner().plan;
        let asked = (plan != 0).then_some(PlanId(plan));
        let known = self.control.operations(asked).map_err(status_of_refusal)?;
        let (moves, changes): (Vec<_>, Vec<_>) = known.iter().partition(|it| matches!(it, Operation::Moves(_)));
        let operations = moves.into_iter().map(operation_to_proto).collect();
        let changes = changes.into_iter().map(operation_to_proto).collect();
        Ok(Response::new(v1::OperationsResponse { operations, changes }))
    }

    async fn events(&self, request: Request<v1::EventsRequest>) -> Result<Response<v1::EventsResponse>, Status> {
        caller(&request)?;
        let page = self.control.events(&events_request_from_proto(request.into_inner()));
        Ok(Response::new(events_to_proto(page)))
    }

    async fn abort_operation(
        &self,
        request: Request<v1::AbortOperationRequest>,
    ) -> Result<Response<v1::Operation>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let known = self.within(Changes::Yes, self.control.abort(PlanId(request.plan), request.why, caller)).await?;
        Ok(Response::new(operation_to_proto(&known)))
    }

    async fn change_members(
        &self,
        request: Request<v1::ChangeMembersRequest>,
    ) -> Result<Response<v1::MemberChange>, Status> {
        let caller = caller(&request)?;
        let (region, change, dry_run) = members_change_from_proto(request.into_inner()).map_err(status_of_refusal)?;
        let begun = self.control.change_members(region, change, dry_run, caller);
        let (region, change) = self.within(Changes::Yes, begun).await?;
        Ok(Response::new(member_change_to_proto(region, &change)))
    }

    async fn remove_node(
        &self,
        request: Request<v1::RemoveNodeRequest>,
    ) -> Result<Response<v1::RemoveNodeResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let name = NodeName::new(&request.name);
        let name = name.map_err(|why| status_of_refusal(Refusal::new(RefusalKind::Invalid, why.to_string())))?;
        self.within(Changes::Yes, self.control.remove_node(name, request.dry_run, caller)).await?;
        Ok(Response::new(v1::RemoveNodeResponse {}))
    }

    async fn finalize_upgrade(
        &self,
        request: Request<v1::FinalizeUpgradeRequest>,
    ) -> Result<Response<v1::FinalizeUpgradeResponse>, Status> {
        let caller = caller(&request)?;
        let format =
            self.within(Changes::Yes, self.control.finalize_upgrade(request.into_inner().dry_run, caller)).await?;
        Ok(Response::new(v1::FinalizeUpgradeResponse { format: u32::from(format) }))
    }
}

/// Whether a request changes something.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Changes {
    Yes,
    No,
}

fn too_late(changes: Changes) -> Refusal {
    let effect = if changes == Changes::Yes { Effect::Unknown } else { Effect::None };
    Refusal::new(
        RefusalKind::Unavailable,
        format!(
            "no answer within {} s: check with `meridian status` whether the metadata plane has a majority",
            DEADLINE.as_secs()
        ),
    )
    .with_effect(effect)
}

fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let identity = Identity::of_request(request).map_err(status_of_refusal)?;
    Ok(Caller { identity: Arc::new(identity), via: Via::Client })
}

fn bucket_name(name: &str) -> Result<BucketName, Status> {
    BucketName::new(name).map_err(|why| status_of_refusal(Refusal::new(RefusalKind::Invalid, why.to_string())))
}

/// Empty means all.
fn bucket_or_all(name: &str) -> Result<Option<BucketName>, Status> {
    if name.is_empty() { Ok(None) } else { bucket_name(name).map(Some) }
}

/// Labels are kept on every node, so they are bounded.
fn check_labels(set: &Labels, remove: &[String]) -> Result<(), Refusal> {
    let invalid = |why: String| Err(Refusal::new(RefusalKind::Invalid, why));
    if set.len() > LABELS_MAX || remove.len() > LABELS_MAX {
        return invalid(format!("a request may name at most {LABELS_MAX} labels: use fewer"));
    }
    if let Some(long) = set.iter().flat_map(|(name, value)| [name, value]).find(|text| text.len() > LABEL_BYTES_MAX) {
        let start: String = long.chars().take(32).collect();
        return invalid(format!(
            "a label's name and value may have at most {LABEL_BYTES_MAX} bytes each; shorten `{start}…`"
        ));
    }
    if set.contains_key("") {
        return invalid("a label's name must not be empty".to_owned());
    }
    Ok(())
}
