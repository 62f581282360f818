//! Moving primaries, as operators ask for it: plan, watch, give up.

use std::sync::Arc;
use std::time::Duration;

use meridian_proto::convert::{
    events_from_proto, events_request_to_proto, operation_from_proto, plan_from_proto, refusal_of_status,
    switchover_to_proto,
};
use meridian_proto::v1;
use meridian_types::{
    Change, Effect, EventPage, EventQuery, Operation, OperationId, Plan, PlanId, Refusal, RefusalKind, SwitchoverSpec,
};

use crate::admin::{Admin, change};
use crate::error::Error;

/// How long a node may take to tell of operations: it answers from its own copy.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

impl Admin {
    /// Plans to move primaries; with `dry_run` only says what would be planned. Asked again under the same id, the same
    /// operation answers, so that it is safe to repeat.
    ///
    /// # Errors
    /// Retry, naming the operation that has one of the buckets; Invalid or NotFound, naming what can't move; Unavailable
    /// without a majority of the metadata plane.
    pub async fn switchover(
        &self,
        spec: &SwitchoverSpec,
        operation: OperationId,
        dry_run: bool,
    ) -> Result<Plan, Error> {
        let request = switchover_to_proto(spec, operation, dry_run);
        let plan = change(self.reach().await?, async |mut stub| stub.switchover(request).await).await?;
        if !dry_run {
            self.client.inner().cluster.is_outdated();
        }
        Ok(plan_from_proto(plan)?)
    }

    /// The operations that move primaries, under way and remembered, oldest first.
    ///
    /// # Errors
    /// When no endpoint answers.
    pub async fn operations(&self) -> Result<Vec<Plan>, Error> {
        Ok(self.on_record(None).await?.into_iter().filter_map(moves).collect())
    }

    /// The operations that change what buckets are, under way and remembered, oldest first.
    ///
    /// # Errors
    /// When no endpoint answers.
    pub async fn changes(&self) -> Result<Vec<Change>, Error> {
        let change = |it| match it {
            Operation::Change(change) => Some(Arc::unwrap_or_clone(change)),
            Operation::Moves(_) => None,
        };
        Ok(self.on_record(None).await?.into_iter().filter_map(change).collect())
    }

    /// One operation that moves primaries.
    ///
    /// # Errors
    /// NotFound; or when no endpoint answers.
    pub async fn operation(&self, id: PlanId) -> Result<Plan, Error> {
        let missing = || Refusal::new(RefusalKind::NotFound, format!("no operation {id} is known"));
        Ok(self.on_record(Some(id)).await?.into_iter().find_map(moves).ok_or_else(missing)?)
    }

    /// Gives up what is under way of an operation: old primaries are restored, and a bucket that changes stays what it was; nothing is
    /// lost.
    ///
    /// # Errors
    /// NotFound; Conflict when it has ended, or only copies are still to come; Unavailable without a majority of the metadata plane.
    pub async fn abort_operation(&self, id: PlanId, why: &str) -> Result<Operation, Error> {
        let request = v1::AbortOperationRequest { plan: id.0, why: why.to_owned() };
        let plan = change(self.reach().await?, async |mut stub| stub.abort_operation(request).await).await?;
        self.client.inner().cluster.is_outdated();
        Ok(operation_from_proto(plan)?)
    }

    /// The last changes of the cluster, oldest first: who did what, when, and what came of it. Ask again with the stamp of the
    /// last one as `after` to go on.
    ///
    /// # Errors
    /// When no endpoint answers.
    pub async fn events(&self, query: &EventQuery) -> Result<EventPage, Error> {
        let mut stub = self.reach().await?;
        let request = events_request_to_proto(query);
        let asked = tokio::time::timeout(LOOK_TIMEOUT, stub.events(request)).await;
        let answer = asked.map_err(|_| silent())?;
        let answer = answer.map_err(|status| refusal_of_status(&status).with_effect(Effect::None))?;
        Ok(events_from_proto(answer.into_inner()))
    }

    /// Every operation, or the one of that name: what moves primaries, and what changes buckets. Oldest first.
    ///
    /// # Errors
    /// NotFound; or when no endpoint answers.
    pub async fn on_record(&self, id: Option<PlanId>) -> Result<Vec<Operation>, Error> {
        let mut stub = self.reach().await?;
        let plan = id.map_or(0, |id| id.0);
        let asked = tokio::time::timeout(LOOK_TIMEOUT, stub.operations(v1::OperationsRequest { plan })).await;
        let answer = asked.map_err(|_| silent())?;
        let answer = answer.map_err(|status| refusal_of_status(&status).with_effect(Effect::None))?;
        let v1::OperationsResponse { operations, changes } = answer.into_inner();
        let known = operations.into_iter().chain(changes).map(operation_from_proto);
        let mut known = known.collect::<Result<Vec<_>, _>>()?;
        known.sort_by_key(Operation::id);
        Ok(known)
    }
}

fn moves(operation: Operation) -> Option<Plan> {
    match operation {
        Operation::Moves(plan) => Some(Arc::unwrap_or_clone(plan)),
        Operation::Change(_) => None,
    }
}

fn silent() -> Refusal {
    Refusal::new(RefusalKind::Unavailable, format!("no answer within {} s", LOOK_TIMEOUT.as_secs()))
}
