//! Changes of buckets that are on record, as they travel: operations without moves.

use std::sync::Arc;

use meridian_types::{
    BucketId, BucketName, Change, ChangeEnd, ChangeGoal, ChangeOutcome, Epoch, Operation, OperationId, PlanId, Policy,
    Refusal, RegionId, Stage, Staged, Terms,
};

use super::bucket::{auto_from_proto, auto_to_proto, policy_from_proto, policy_to_proto};
use super::cluster::{named, unreadable, wide};
use super::failover::{loss_from_proto, loss_to_proto, region_or_none};
use super::operation::{plan_from_proto, plan_to_proto};
use super::region;
use crate::v1;
use crate::v1::change_goal::What;
use crate::v1::operation::Goal as WireGoal;
use crate::v1::staged::Stage as WireStage;

/// An operation of either kind as it travels.
pub fn operation_to_proto(operation: &Operation) -> v1::Operation {
    match operation {
        Operation::Moves(plan) => plan_to_proto(plan),
        Operation::Change(change) => v1::Operation {
            plan: change.id.0,
            operation_id: change.operation.0.to_be_bytes().to_vec().into(),
            who: change.who.clone(),
            reason: change.reason.clone(),
            created_ms: change.created_ms,
            ended_ms: change.end.as_ref().map(|end| end.at_ms),
            shards: 0,
            moves: Vec::new(),
            goal: Some(WireGoal::Change(goal_to_proto(change))),
        },
    }
}

/// An operation of either kind that has travelled.
///
/// # Errors
/// Invalid when a part is not known to this version.
pub fn operation_from_proto(message: v1::Operation) -> Result<Operation, Refusal> {
    let Some(WireGoal::Change(goal)) = message.goal else {
        return plan_from_proto(message).map(|plan| Operation::Moves(Arc::new(plan)));
    };
    let what = goal.what.ok_or_else(|| unreadable("the goal of an operation"))?;
    let outcome = match (goal.aborted, goal.given_up) {
        (Some(it), _) => ChangeOutcome::Aborted { who: it.who, why: it.why },
        (None, None) => ChangeOutcome::Done,
        (None, Some(why)) => ChangeOutcome::GivenUp { why },
    };
    let epoch = Epoch(goal.epoch);
    Ok(Operation::Change(Arc::new(Change {
        id: PlanId(message.plan),
        operation: OperationId(wide(&message.operation_id, "an operation id")?),
        who: message.who,
        reason: message.reason,
        bucket: BucketId(goal.bucket),
        name: named(BucketName::new(&goal.name))?,
        before: terms_from_proto(goal.before.unwrap_or_default())?,
        goal: what_from_proto(what)?,
        created_ms: message.created_ms,
        stages: goal.stages.into_iter().map(staged_from_proto).collect::<Result<_, _>>()?,
        end: message.ended_ms.map(|at_ms| ChangeEnd { at_ms, epoch, outcome }),
    })))
}

fn goal_to_proto(change: &Change) -> v1::ChangeGoal {
    let (aborted, given_up) = match change.end.as_ref().map(|end| &end.outcome) {
        Some(ChangeOutcome::Aborted { who, why }) => (Some(v1::Aborted { who: who.clone(), why: why.clone() }), None),
        Some(ChangeOutcome::GivenUp { why }) => (None, Some(why.clone())),
        Some(ChangeOutcome::Done) | None => (None, None),
    };
    v1::ChangeGoal {
        bucket: change.bucket.0,
        name: change.name.to_string(),
        before: Some(terms_to_proto(&change.before)),
        what: Some(what_to_proto(change.goal)),
        stages: change.stages.iter().map(|it| staged_to_proto(*it)).collect(),
        epoch: change.end.as_ref().map_or(0, |end| end.epoch.0),
        aborted,
        given_up,
    }
}

fn terms_to_proto(terms: &Terms) -> v1::Terms {
    v1::Terms {
        policy: Some(policy_to_proto(terms.policy)),
        primary: number(terms.primary),
        regions: terms.regions.iter().map(|it| u32::from(it.0)).collect(),
        epoch: terms.epoch.0,
        auto: Some(v1::AutoFailover {
            successors: terms.auto.successors.iter().map(|it| u32::from(it.0)).collect(),
            ..auto_to_proto(&terms.auto)
        }),
    }
}

fn terms_from_proto(message: v1::Terms) -> Result<Terms, Refusal> {
    let auto = message.auto.unwrap_or_default();
    let successors = auto.successors.iter().map(|it| region(*it)).collect::<Result<_, _>>()?;
    Ok(Terms {
        policy: policy(message.policy)?,
        primary: region_or_none(message.primary)?,
        regions: message.regions.into_iter().map(region).collect::<Result<_, _>>()?,
        epoch: Epoch(message.epoch),
        auto: auto_from_proto(&auto, successors)?,
    })
}

fn what_to_proto(goal: ChangeGoal) -> What {
    let of = |it: RegionId, pause_ms_max| v1::RegionGoal { region: u32::from(it.0), pause_ms_max };
    match goal {
        ChangeGoal::Policy { policy } => What::Policy(policy_to_proto(policy)),
        ChangeGoal::Acks { acks } => What::Acks(policy_to_proto(Policy::sync(acks))),
        ChangeGoal::Cross { policy, primary, pause_ms_max } => {
            let (policy, primary) = (Some(policy_to_proto(policy)), number(primary));
            What::Cross(v1::CrossGoal { policy, primary, pause_ms_max })
        }
        ChangeGoal::Add { region, pause_ms_max } => What::Add(of(region, pause_ms_max)),
        ChangeGoal::Remove { region, pause_ms_max } => What::Remove(of(region, pause_ms_max)),
        ChangeGoal::Lose { region, accepted, pause_ms_max } => {
            let (region, accepted) = (u32::from(region.0), Some(loss_to_proto(accepted)));
            What::Lose(v1::LoseGoal { region, accepted, pause_ms_max })
        }
    }
}

fn what_from_proto(what: What) -> Result<ChangeGoal, Refusal> {
    Ok(match what {
        What::Policy(it) => ChangeGoal::Policy { policy: policy_from_proto(it)? },
        What::Acks(it) => match policy_from_proto(it)? {
            Policy::Sync { acks, .. } => ChangeGoal::Acks { acks },
            other @ (Policy::Async { .. } | Policy::ActiveActive) => {
                return Err(unreadable(&format!("the acks of a policy that is {other}")));
            }
        },
        What::Cross(it) => ChangeGoal::Cross {
            policy: policy(it.policy)?,
            primary: region_or_none(it.primary)?,
            pause_ms_max: it.pause_ms_max,
        },
        What::Add(it) => ChangeGoal::Add { region: region(it.region)?, pause_ms_max: it.pause_ms_max },
        What::Remove(it) => ChangeGoal::Remove { region: region(it.region)?, pause_ms_max: it.pause_ms_max },
        What::Lose(it) => ChangeGoal::Lose {
            region: region(it.region)?,
            accepted: loss_from_proto(it.accepted.unwrap_or_default()),
            pause_ms_max: it.pause_ms_max,
        },
    })
}

fn staged_to_proto(staged: Staged) -> v1::Staged {
    let stage = match staged.stage {
        Stage::Meeting => WireStage::Meeting,
        Stage::Filling => WireStage::Filling,
        Stage::Filled => WireStage::Filled,
        Stage::Settling => WireStage::Settling,
    };
    v1::Staged { at_ms: staged.at_ms, epoch: staged.epoch.0, stage: stage.into() }
}

fn staged_from_proto(message: v1::Staged) -> Result<Staged, Refusal> {
    let stage = match WireStage::try_from(message.stage) {
        Ok(WireStage::Meeting) => Stage::Meeting,
        Ok(WireStage::Filling) => Stage::Filling,
        Ok(WireStage::Filled) => Stage::Filled,
        Ok(WireStage::Settling) => Stage::Settling,
        Ok(WireStage::Unset) | Err(_) => return Err(unreadable(&format!("the stage {} of a change", message.stage))),
    };
    Ok(Staged { at_ms: message.at_ms, epoch: Epoch(message.epoch), stage })
}

fn policy(message: Option<v1::Policy>) -> Result<Policy, Refusal> {
    policy_from_proto(message.ok_or_else(|| unreadable("a change without a policy"))?)
}

fn number(region: Option<RegionId>) -> u32 {
    region.map_or(0, |it| u32::from(it.0))
}
