//! Replacing lost primaries, as operators ask for it: what it would cost, and doing it.

use std::time::Duration;

use meridian_proto::convert::{
    estimate_from_proto, estimate_request_to_proto, failover_to_proto, loss_request_to_proto, plan_from_proto,
    refusal_of_status,
};
use meridian_proto::v1::FailoverEstimateRequest;
use meridian_types::{Effect, Estimate, FailoverSpec, OperationId, Plan, Refusal, RefusalKind, RegionName, Selection};

use crate::admin::{Admin, change};
use crate::error::Error;

/// How long a node may take to hear what others have; it promises less than a second.
const ESTIMATE_TIMEOUT: Duration = Duration::from_secs(5);

impl Admin {
    /// What replacing the primaries of buckets would cost; answered by whatever region is reached.
    ///
    /// # Errors
    /// NotFound, naming the bucket or region that there is not; or when no endpoint answers.
    pub async fn failover_estimate(&self, buckets: &Selection, to: Option<&RegionName>) -> Result<Estimate, Error> {
        self.estimate(estimate_request_to_proto(buckets, to)).await
    }

    /// What it would cost active-active buckets to go on without a region that does not come back; answered by whatever region is reached.
    ///
    /// # Errors
    /// NotFound, naming the bucket or region that there is not; or when no endpoint answers.
    pub async fn loss_estimate(&self, buckets: &Selection, lost: &RegionName) -> Result<Estimate, Error> {
        self.estimate(loss_request_to_proto(buckets, lost)).await
    }

    async fn estimate(&self, request: FailoverEstimateRequest) -> Result<Estimate, Error> {
        let mut stub = self.reach().await?;
        let asked = tokio::time::timeout(ESTIMATE_TIMEOUT, stub.failover_estimate(request)).await;
        let answer = asked.map_err(|_| {
            Refusal::new(RefusalKind::Unavailable, format!("no answer within {} s", ESTIMATE_TIMEOUT.as_secs()))
        })?;
        let answer = answer.map_err(|status| refusal_of_status(&status).with_effect(Effect::None))?;
        Ok(estimate_from_proto(answer.into_inner())?)
    }

    /// Plans to replace primaries that are lost; with `dry_run` only says what would be planned. Asked again under the same id,
    /// the same operation answers, so that it is safe to repeat.
    ///
    /// # Errors
    /// Consent when something could be lost that nobody has agreed to; Retry, naming the failover that has one of the
    /// buckets; Invalid or NotFound, naming what can't be replaced; Unavailable without a majority of the metadata plane.
    pub async fn failover(&self, spec: &FailoverSpec, operation: OperationId, dry_run: bool) -> Result<Plan, Error> {
        let request = failover_to_proto(spec, operation, dry_run);
        let plan = change(self.reach().await?, async |mut stub| stub.failover(request).await).await?;
        if !dry_run {
            self.client.inner().cluster.is_outdated();
        }
        Ok(plan_from_proto(plan)?)
    }
}
