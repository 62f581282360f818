//! What operators ask about operations, and how far they are.

use std::collections::BTreeMap;

use meridian_types::{
    BucketId, BucketName, Epoch, Goal, Lsn, Move, OperationId, Plan, PlanId, Proof, Refusal, RegionName, Seal,
    Selection, SetHash, ShardId, Step, SwitchoverSpec, Verdict,
};

use super::cluster::{named, unreadable, wide};
use super::failover::{fencing_from_proto, fencing_to_proto, loss_from_proto, loss_to_proto, region_or_none};
use super::{invalid, region, shard};
use crate::v1;
use crate::v1::r#move::Step as WireStep;
use crate::v1::operation::Goal as WireGoal;
use crate::v1::switchover_request::Buckets;

/// The request to move primaries, under the id of the operation.
pub fn switchover_to_proto(spec: &SwitchoverSpec, operation: OperationId, dry_run: bool) -> v1::SwitchoverRequest {
    let buckets = match &spec.buckets {
        Selection::Named(names) => {
            Buckets::Named(v1::BucketNames { names: names.iter().map(ToString::to_string).collect() })
        }
        Selection::Labelled { key, value } => Buckets::Labelled(v1::Label { key: key.clone(), value: value.clone() }),
        Selection::AllFrom(region) => Buckets::AllFrom(region.to_string()),
    };
    v1::SwitchoverRequest {
        to: spec.to.to_string(),
        buckets: Some(buckets),
        lag_ms_max: spec.lag_ms_max,
        pause_ms_max: spec.pause_ms_max,
        reason: spec.reason.clone(),
        operation_id: operation.0.to_be_bytes().to_vec().into(),
        dry_run,
    }
}

/// What a request to move primaries asks for, under which id, and whether it is only a dry run.
///
/// # Errors
/// Invalid for bad names, without buckets, or for an operation id of another length.
pub fn switchover_from_proto(request: v1::SwitchoverRequest) -> Result<(SwitchoverSpec, OperationId, bool), Refusal> {
    let buckets = request.buckets.ok_or_else(|| {
        invalid("the request selects no buckets: use names, a label or a region, as this version knows them")
    })?;
    let buckets = match buckets {
        Buckets::Named(list) => {
            Selection::Named(list.names.iter().map(|name| named(BucketName::new(name))).collect::<Result<_, _>>()?)
        }
        Buckets::Labelled(label) => Selection::Labelled { key: label.key, value: label.value },
        Buckets::AllFrom(region) => Selection::AllFrom(named(RegionName::new(&region))?),
    };
    let spec = SwitchoverSpec {
        to: named(RegionName::new(&request.to))?,
        buckets,
        lag_ms_max: request.lag_ms_max,
        pause_ms_max: request.pause_ms_max,
        reason: request.reason,
    };
    Ok((spec, OperationId(wide(&request.operation_id, "an operation id")?), request.dry_run))
}

/// An operation as it travels.
pub fn plan_to_proto(plan: &Plan) -> v1::Operation {
    v1::Operation {
        plan: plan.id.0,
        operation_id: plan.operation.0.to_be_bytes().to_vec().into(),
        who: plan.who.clone(),
        reason: plan.reason.clone(),
        created_ms: plan.created_ms,
        ended_ms: plan.ended_ms,
        shards: u32::from(plan.shards),
        moves: plan.moves.iter().map(move_to_proto).collect(),
        goal: Some(goal_to_proto(plan.goal)),
    }
}

fn goal_to_proto(goal: Goal) -> WireGoal {
    match goal {
        Goal::Switchover { to, lag_ms_max, pause_ms_max } => {
            WireGoal::Switchover(v1::SwitchoverGoal { to: u32::from(to.0), lag_ms_max, pause_ms_max })
        }
        Goal::Failover { to, automatic } => {
            WireGoal::Failover(v1::FailoverGoal { to: to.map_or(0, |to| u32::from(to.0)), automatic })
        }
    }
}

/// An operation that has travelled.
///
/// # Errors
/// Invalid when a part is not known to this version.
pub fn plan_from_proto(message: v1::Operation) -> Result<Plan, Refusal> {
    let goal = match message.goal.ok_or_else(|| unreadable("the goal of an operation"))? {
        WireGoal::Switchover(goal) => {
            Goal::Switchover { to: region(goal.to)?, lag_ms_max: goal.lag_ms_max, pause_ms_max: goal.pause_ms_max }
        }
        WireGoal::Failover(goal) => Goal::Failover { to: region_or_none(goal.to)?, automatic: goal.automatic },
        WireGoal::Change(_) => {
            return Err(unreadable("an operation that changes a bucket as one that moves primaries"));
        }
    };
    let mut moves = message.moves.into_iter().map(move_from_proto).collect::<Result<Vec<_>, _>>()?;
    moves.sort_by_key(|it| it.bucket);
    Ok(Plan {
        id: PlanId(message.plan),
        operation: OperationId(wide(&message.operation_id, "an operation id")?),
        goal,
        who: message.who,
        reason: message.reason,
        created_ms: message.created_ms,
        shards: u16::try_from(message.shards).map_err(|_| unreadable("so many shards"))?,
        moves,
        ended_ms: message.ended_ms,
    })
}

fn move_to_proto(it: &Move) -> v1::Move {
    let step = match &it.step {
        Step::Unneeded => WireStep::Unneeded(v1::Unneeded {}),
        Step::CatchingUp { caught_up } => {
            WireStep::CatchingUp(v1::CatchingUp { caught_up: caught_up.iter().map(|it| u32::from(it.0)).collect() })
        }
        Step::Draining { since_ms, epoch, proof } => {
            WireStep::Draining(v1::Draining { since_ms: *since_ms, epoch: epoch.0, proof: Some(proof_to_proto(proof)) })
        }
        Step::Promoted { draining_since_ms, at_ms, epoch, proof } => WireStep::Promoted(v1::Promoted {
            draining_since_ms: *draining_since_ms,
            at_ms: *at_ms,
            epoch: epoch.0,
            proof: Some(proof_to_proto(proof)),
        }),
        Step::Restored { draining_since_ms, at_ms, epoch, why } => WireStep::Restored(v1::Restored {
            draining_since_ms: *draining_since_ms,
            at_ms: *at_ms,
            epoch: epoch.0,
            why: why.clone(),
        }),
        Step::Fencing { since_ms, epoch, to, muster } => {
            WireStep::Fencing(fencing_to_proto(*since_ms, *epoch, *to, muster))
        }
        Step::Pulling { since_ms, epoch, to, muster } => {
            WireStep::Pulling(fencing_to_proto(*since_ms, *epoch, *to, muster))
        }
        Step::FailedOver { fencing_since_ms, at_ms, epoch, to, verdict } => WireStep::FailedOver(v1::FailedOver {
            fencing_since_ms: *fencing_since_ms,
            at_ms: *at_ms,
            epoch: epoch.0,
            to: u32::from(to.0),
            heard: verdict.heard.iter().map(|region| u32::from(region.0)).collect(),
            proven: verdict.proven,
            lost: Some(loss_to_proto(verdict.lost)),
            cut: verdict.cut.iter().map(|(shard, seal)| seal_to_proto(*shard, *seal)).collect(),
        }),
    };
    v1::Move {
        bucket: it.bucket.0,
        name: it.name.to_string(),
        from: u32::from(it.from.0),
        epoch_before: it.epoch_before.0,
        step: Some(step),
    }
}

fn move_from_proto(message: v1::Move) -> Result<Move, Refusal> {
    let step = match message.step.ok_or_else(|| unreadable("the step of an operation"))? {
        WireStep::Unneeded(v1::Unneeded {}) => Step::Unneeded,
        WireStep::CatchingUp(it) => {
            Step::CatchingUp { caught_up: it.caught_up.into_iter().map(shard).collect::<Result<_, _>>()? }
        }
        WireStep::Draining(it) => Step::Draining {
            since_ms: it.since_ms,
            epoch: Epoch(it.epoch),
            proof: proof_from_proto(it.proof.unwrap_or_default())?,
        },
        WireStep::Promoted(it) => Step::Promoted {
            draining_since_ms: it.draining_since_ms,
            at_ms: it.at_ms,
            epoch: Epoch(it.epoch),
            proof: proof_from_proto(it.proof.unwrap_or_default())?,
        },
        WireStep::Restored(it) => Step::Restored {
            draining_since_ms: it.draining_since_ms,
            at_ms: it.at_ms,
            epoch: Epoch(it.epoch),
            why: it.why,
        },
        WireStep::Fencing(it) => {
            let (since_ms, epoch, to, muster) = fencing_from_proto(it)?;
            Step::Fencing { since_ms, epoch, to, muster }
        }
        WireStep::Pulling(it) => {
            let (since_ms, epoch, to, muster) = fencing_from_proto(it)?;
            Step::Pulling { since_ms, epoch, to, muster }
        }
        WireStep::FailedOver(it) => Step::FailedOver {
            fencing_since_ms: it.fencing_since_ms,
            at_ms: it.at_ms,
            epoch: Epoch(it.epoch),
            to: region(it.to)?,
            verdict: Verdict {
                heard: it.heard.into_iter().map(region).collect::<Result<_, _>>()?,
                proven: it.proven,
                lost: loss_from_proto(it.lost.unwrap_or_default()),
                cut: it.cut.into_iter().map(seal_from_proto).collect::<Result<_, _>>()?,
            },
        },
    };
    Ok(Move {
        bucket: BucketId(message.bucket),
        name: named(BucketName::new(&message.name))?,
        from: region(message.from)?,
        epoch_before: Epoch(message.epoch_before),
        step,
    })
}

fn proof_to_proto(proof: &Proof) -> v1::Proof {
    let seals =
        |seals: &BTreeMap<ShardId, Seal>| seals.iter().map(|(shard, seal)| seal_to_proto(*shard, *seal)).collect();
    v1::Proof { sealed: seals(&proof.sealed), ready: seals(&proof.ready) }
}

fn proof_from_proto(message: v1::Proof) -> Result<Proof, Refusal> {
    let seals = |seals: Vec<v1::ShardSeal>| seals.into_iter().map(seal_from_proto).collect::<Result<_, _>>();
    Ok(Proof { sealed: seals(message.sealed)?, ready: seals(message.ready)? })
}

pub(super) fn seal_to_proto(shard: ShardId, seal: Seal) -> v1::ShardSeal {
    v1::ShardSeal {
        shard: u32::from(shard.0),
        lsn: seal.lsn.0,
        hash: seal.hash.0.to_be_bytes().to_vec().into(),
        keys: seal.keys,
    }
}

pub(super) fn seal_from_proto(message: v1::ShardSeal) -> Result<(ShardId, Seal), Refusal> {
    let hash = SetHash(wide(&message.hash, "a digest")?);
    Ok((shard(message.shard)?, Seal { lsn: Lsn(message.lsn), hash, keys: message.keys }))
}
