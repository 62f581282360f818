//! Buckets: their policy, how their copies stand, what they may do by themselves, and what is asked of them.

use std::collections::{BTreeMap, HashMap};

use meridian_types::{
    Acks, AutoFailover, AutoMode, Breach, Bucket, BucketChange, BucketId, BucketName, BucketSpec, Consent, Cross,
    Crossing, Epoch, Hlc, Joining, Joins, LagBound, Lsn, MaxLag, OnPartition, OperationId, Phase, PlanId, Policy,
    PolicyError, Refusal, RegionChange, RegionId, RegionName, Regroup, Remains, Seal, ShardId, Standing, Stay, Turn,
    Turns, Way,
};

use super::cluster::{lane_name_from_proto, lane_name_to_proto, named, unreadable, wide};
use super::failover::{loss_from_proto, loss_to_proto, remains_from_proto, remains_to_proto};
use super::operation::{seal_from_proto, seal_to_proto};
use super::{invalid, region, shard};
use crate::v1;
use crate::v1::auto_failover::Mode as WireMode;
use crate::v1::max_lag::Breach as WireBreach;
use crate::v1::policy::{Acks as WireAcks, Kind as WireKind};
use crate::v1::regroup::Change as WireRegroup;
use crate::v1::set_bucket_request::{Lag as WireLag, Partition as WirePartition, Regions as WireRegions};
use crate::v1::standing::State as WireState;

fn refused(why: PolicyError) -> Refusal {
    invalid(why.to_string())
}

fn bound_to_proto(bound: LagBound) -> v1::LagBound {
    v1::LagBound { ms: bound.ms, operations: bound.operations, bytes: bound.bytes }
}

fn bound_from_proto(bound: v1::LagBound) -> LagBound {
    LagBound { ms: bound.ms, operations: bound.operations, bytes: bound.bytes }
}

fn max_lag_to_proto(max_lag: MaxLag) -> v1::MaxLag {
    let on_breach = match max_lag.on_breach {
        Breach::Alarm => WireBreach::Alarm,
        Breach::Throttle => WireBreach::Throttle,
        Breach::Block => WireBreach::Block,
    };
    v1::MaxLag { bound: Some(bound_to_proto(max_lag.bound)), on_breach: on_breach.into() }
}

fn max_lag_from_proto(max_lag: v1::MaxLag) -> Result<MaxLag, Refusal> {
    let on_breach = match WireBreach::try_from(max_lag.on_breach) {
        Ok(WireBreach::Alarm) => Breach::Alarm,
        Ok(WireBreach::Throttle) => Breach::Throttle,
        Ok(WireBreach::Block) => Breach::Block,
        Err(_) => return Err(unreadable(&format!("the reaction {} to a breach", max_lag.on_breach))),
    };
    Ok(MaxLag { bound: bound_from_proto(max_lag.bound.unwrap_or_default()), on_breach })
}

/// A policy as it travels.
pub fn policy_to_proto(policy: Policy) -> v1::Policy {
    let (kind, acks, regions) = match policy {
        Policy::Async { .. } => (WireKind::Async, WireAcks::Unset, 0),
        Policy::ActiveActive => (WireKind::ActiveActive, WireAcks::Unset, 0),
        Policy::Sync { acks: Acks::One, .. } => (WireKind::Sync, WireAcks::One, 0),
        Policy::Sync { acks: Acks::Majority, .. } => (WireKind::Sync, WireAcks::Majority, 0),
        Policy::Sync { acks: Acks::All, .. } => (WireKind::Sync, WireAcks::All, 0),
        Policy::Sync { acks: Acks::Regions(count), .. } => (WireKind::Sync, WireAcks::Regions, u32::from(count)),
    };
    v1::Policy {
        kind: kind.into(),
        acks: acks.into(),
        regions,
        max_lag: policy.max_lag().map(max_lag_to_proto),
        degrade_after_ms: policy.degrade_after_ms(),
    }
}

/// A policy that has travelled. `sync` without acks means a majority.
///
/// # Errors
/// Invalid for a policy this version doesn't know, or a setting that belongs to another policy.
pub fn policy_from_proto(policy: v1::Policy) -> Result<Policy, Refusal> {
    let kind = WireKind::try_from(policy.kind).map_err(|_| unreadable(&format!("the policy {}", policy.kind)))?;
    let acks = acks_from_proto(policy.acks, policy.regions)?;
    let max_lag = policy.max_lag.map(max_lag_from_proto).transpose()?;
    let on_partition = policy.degrade_after_ms.map(|after_ms| OnPartition::Degrade { after_ms });
    match kind {
        WireKind::Async => sync_only(Policy::Async { max_lag }, acks, on_partition),
        WireKind::ActiveActive => {
            async_only(Policy::ActiveActive, max_lag).and_then(|policy| sync_only(policy, acks, on_partition))
        }
        WireKind::Sync => {
            let acks = acks.unwrap_or(Acks::Majority);
            async_only(Policy::Sync { acks, on_partition: on_partition.unwrap_or_default() }, max_lag)
        }
    }
}

fn acks_from_proto(acks: i32, regions: u32) -> Result<Option<Acks>, Refusal> {
    Ok(match WireAcks::try_from(acks).map_err(|_| unreadable(&format!("the acks {acks}")))? {
        WireAcks::Unset => None,
        WireAcks::One => Some(Acks::One),
        WireAcks::Majority => Some(Acks::Majority),
        WireAcks::All => Some(Acks::All),
        WireAcks::Regions => Some(Acks::Regions(
            u8::try_from(regions).map_err(|_| refused(PolicyError::UnknownAcks(regions.to_string())))?,
        )),
    })
}

fn acks_to_proto(acks: Option<Acks>) -> (WireAcks, u32) {
    match acks {
        None => (WireAcks::Unset, 0),
        Some(Acks::One) => (WireAcks::One, 0),
        Some(Acks::Majority) => (WireAcks::Majority, 0),
        Some(Acks::All) => (WireAcks::All, 0),
        Some(Acks::Regions(count)) => (WireAcks::Regions, u32::from(count)),
    }
}

/// Refuses what only `sync` has.
fn sync_only(policy: Policy, acks: Option<Acks>, on_partition: Option<OnPartition>) -> Result<Policy, Refusal> {
    let name = policy.to_string();
    match (acks, on_partition) {
        (None, None) => Ok(policy),
        (Some(acks), _) => Err(refused(PolicyError::AcksWithoutSync { acks: acks.to_string(), policy: name })),
        (None, Some(on_partition)) => {
            let setting = format!("on-partition = {on_partition}");
            Err(refused(PolicyError::SettingOfAnother { setting, policy: name, needs: "sync" }))
        }
    }
}

/// Refuses what only `async` has.
fn async_only(policy: Policy, max_lag: Option<MaxLag>) -> Result<Policy, Refusal> {
    match max_lag {
        None => Ok(policy),
        Some(max_lag) => Err(refused(PolicyError::SettingOfAnother {
            setting: format!("max-lag = {}", max_lag.bound),
            policy: policy.to_string(),
            needs: "async",
        })),
    }
}

pub(super) fn auto_to_proto<R>(auto: &AutoFailover<R>) -> v1::AutoFailover {
    let (mode, max_lag) = match auto.mode {
        AutoMode::Manual => (WireMode::Manual, None),
        AutoMode::ObserveOnly => (WireMode::ObserveOnly, None),
        AutoMode::ZeroLoss => (WireMode::ZeroLoss, None),
        AutoMode::Bounded { max_lag } => (WireMode::Bounded, Some(bound_to_proto(max_lag))),
    };
    v1::AutoFailover {
        mode: mode.into(),
        max_lag,
        interval_ms_min: auto.interval_ms_min,
        per_day_max: auto.per_day_max,
        detect_ms: auto.detect_ms,
        ..v1::AutoFailover::default()
    }
}

fn asked_to_proto(auto: &AutoFailover<RegionName>) -> v1::AutoFailover {
    let successor_names = auto.successors.iter().map(ToString::to_string).collect();
    v1::AutoFailover { successor_names, ..auto_to_proto(auto) }
}

pub(super) fn auto_from_proto<R>(auto: &v1::AutoFailover, successors: Vec<R>) -> Result<AutoFailover<R>, Refusal> {
    let mode = match WireMode::try_from(auto.mode) {
        Ok(WireMode::Manual) => AutoMode::Manual,
        Ok(WireMode::ObserveOnly) => AutoMode::ObserveOnly,
        Ok(WireMode::ZeroLoss) => AutoMode::ZeroLoss,
        Ok(WireMode::Bounded) => AutoMode::Bounded { max_lag: bound_from_proto(auto.max_lag.unwrap_or_default()) },
        Err(_) => return Err(unreadable(&format!("the mode {} of automatic failover", auto.mode))),
    };
    let (interval_ms_min, per_day_max) = (auto.interval_ms_min, auto.per_day_max);
    Ok(AutoFailover { mode, interval_ms_min, per_day_max, successors, detect_ms: auto.detect_ms })
}

fn asked_from_proto(auto: v1::AutoFailover) -> Result<AutoFailover<RegionName>, Refusal> {
    let names = auto.successor_names.iter().map(|name| named(RegionName::new(name))).collect::<Result<_, _>>()?;
    // Asked for by itself.
    Ok(AutoFailover { detect_ms: 0, ..auto_from_proto(&auto, names)? })
}

fn standing_to_proto(standing: &Standing) -> v1::Standing {
    let (state, reason) = match standing {
        Standing::Sync { .. } => (WireState::Sync, String::new()),
        Standing::Degraded { reason, .. } => (WireState::Degraded, reason.clone()),
        Standing::Recovering { .. } => (WireState::Recovering, String::new()),
    };
    v1::Standing {
        state: state.into(),
        since_hlc: standing.since().0,
        exposed_since_hlc: standing.exposed_since().unwrap_or_default().0,
        ready: standing.ready().into_iter().flatten().map(|shard| u32::from(shard.0)).collect(),
        reason,
    }
}

fn standing_from_proto(standing: v1::Standing) -> Result<Standing, Refusal> {
    let state =
        WireState::try_from(standing.state).map_err(|_| unreadable(&format!("the standing {}", standing.state)))?;
    let (since, exposed_since) = (Hlc(standing.since_hlc), Hlc(standing.exposed_since_hlc));
    let ready = standing.ready.into_iter().map(shard).collect::<Result<_, _>>()?;
    Ok(match state {
        WireState::Sync => Standing::Sync { since },
        WireState::Degraded => Standing::Degraded { since, exposed_since, reason: standing.reason, ready },
        WireState::Recovering => Standing::Recovering { since, exposed_since, ready },
    })
}

/// The request to create a bucket.
pub fn spec_to_proto(spec: &BucketSpec, dry_run: bool) -> v1::CreateBucketRequest {
    v1::CreateBucketRequest {
        name: spec.name.to_string(),
        policy: Some(policy_to_proto(spec.policy)),
        regions: spec.regions.iter().map(ToString::to_string).collect(),
        primary: spec.primary.as_ref().map(ToString::to_string),
        labels: spec.labels.clone().into_iter().collect(),
        dry_run,
        auto: Some(asked_to_proto(&spec.auto)),
    }
}

/// What a request to create a bucket asks for, and whether it is only a dry run.
///
/// # Errors
/// Invalid for bad names, and without a policy.
pub fn spec_from_proto(request: v1::CreateBucketRequest) -> Result<(BucketSpec, bool), Refusal> {
    let policy =
        request.policy.ok_or_else(|| invalid("the request names no policy: use async, sync or active-active"))?;
    let spec = BucketSpec {
        name: named(BucketName::new(&request.name))?,
        policy: policy_from_proto(policy)?,
        regions: request.regions.iter().map(|name| named(RegionName::new(name))).collect::<Result<_, _>>()?,
        primary: request.primary.map(|name| named(RegionName::new(&name))).transpose()?,
        labels: request.labels.into_iter().collect(),
        auto: request.auto.map(asked_from_proto).transpose()?.unwrap_or_default(),
    };
    Ok((spec, request.dry_run))
}

/// The request to change a bucket.
pub fn change_to_proto(name: &BucketName, change: &BucketChange, dry_run: bool) -> v1::SetBucketRequest {
    let (acks, acks_regions) = acks_to_proto(change.acks);
    v1::SetBucketRequest {
        name: name.to_string(),
        dry_run,
        acks: acks.into(),
        acks_regions,
        auto: change.auto.as_ref().map(asked_to_proto),
        lag: change.max_lag.map(|it| it.map_or(WireLag::NoMaxLag(true), |it| WireLag::MaxLag(max_lag_to_proto(it)))),
        partition: change.on_partition.map(|it| match it {
            OnPartition::Block => WirePartition::Block(true),
            OnPartition::Degrade { after_ms } => WirePartition::DegradeAfterMs(after_ms),
        }),
        policy: change.policy.map(policy_to_proto),
        cross: change.cross.as_ref().map(|it| v1::Cross {
            primary: it.primary.as_ref().map(ToString::to_string),
            pause_ms_max: it.pause_ms_max,
        }),
        regions: change.regions.as_ref().map(|it| match it {
            RegionChange::Add(region) => WireRegions::AddRegion(region.to_string()),
            RegionChange::Remove(region) => WireRegions::RemoveRegion(region.to_string()),
        }),
        accept_loss: change.accept_loss.as_ref().map(ToString::to_string).unwrap_or_default(),
        operation_id: change.operation.map(|it| it.0.to_be_bytes().to_vec()).unwrap_or_default().into(),
        reason: change.reason.clone(),
        detect_ms: change.detect_ms,
    }
}

/// The bucket to change, what of it, and whether it is only a dry run.
///
/// # Errors
/// Invalid for bad names, and for settings that this version doesn't know.
pub fn change_from_proto(request: v1::SetBucketRequest) -> Result<(BucketName, BucketChange, bool), Refusal> {
    let max_lag = match request.lag {
        None => None,
        Some(WireLag::NoMaxLag(_)) => Some(None),
        Some(WireLag::MaxLag(max_lag)) => Some(Some(max_lag_from_proto(max_lag)?)),
    };
    let on_partition = request.partition.map(|it| match it {
        WirePartition::Block(_) => OnPartition::Block,
        WirePartition::DegradeAfterMs(after_ms) => OnPartition::Degrade { after_ms },
    });
    let acks = acks_from_proto(request.acks, request.acks_regions)?;
    let policy = request.policy.map(policy_from_proto).transpose()?;
    if policy.is_some() && (max_lag.is_some() || on_partition.is_some() || acks.is_some()) {
        return Err(invalid("`policy` comes with all its settings: name each of them in it, and not beside it"));
    }
    let auto = request.auto.map(asked_from_proto).transpose()?;
    let regions = request.regions.map(|it| match it {
        WireRegions::AddRegion(name) => named(RegionName::new(&name)).map(RegionChange::Add),
        WireRegions::RemoveRegion(name) => named(RegionName::new(&name)).map(RegionChange::Remove),
    });
    let cross = request.cross.map(|it| {
        let primary = it.primary.map(|name| named(RegionName::new(&name))).transpose()?;
        Ok::<_, Refusal>(Cross { primary, pause_ms_max: it.pause_ms_max })
    });
    let cross = cross.transpose()?;
    let regions = regions.transpose()?;
    if cross.is_some() && policy.is_none() && regions.is_none() {
        return Err(invalid("`cross` says how to change to a policy or to other regions, and none is given"));
    }
    let accept_loss = match request.accept_loss.as_str() {
        "" => None,
        text => Some(text.parse::<Consent>().map_err(|why| invalid(why.to_string()))?),
    };
    if accept_loss.is_some() && (cross.is_none() || !matches!(regions, Some(RegionChange::Remove(_)))) {
        return Err(invalid(
            "`accept-loss` belongs to the removal of a region that is lost, and to how long that may take",
        ));
    }
    let operation = match request.operation_id.as_ref() {
        [] => None,
        bytes => Some(OperationId(wide(bytes, "an operation id")?)),
    };
    let rest = BucketChange { auto, max_lag, on_partition, acks, policy, ..BucketChange::default() };
    let reason = request.reason;
    let detect_ms = request.detect_ms;
    let change = BucketChange { cross, regions, accept_loss, operation, reason, detect_ms, ..rest.clone() };
    if change.regions.is_some() && rest != BucketChange::default() {
        return Err(invalid("a region is added or removed by itself: change the rest before it or after it"));
    }
    if change.detect_ms.is_some() && (rest != BucketChange::default() || change.regions.is_some()) {
        return Err(invalid("`detect-ms` is set by itself: change the rest before it or after it"));
    }
    Ok((named(BucketName::new(&request.name))?, change, request.dry_run))
}

/// A bucket as it travels.
pub fn bucket_to_proto(bucket: &Bucket) -> v1::Bucket {
    let (plan, to, lag_ms_max) = match bucket.phase {
        Phase::Steady => (0, 0, 0),
        Phase::CatchingUp { plan, to, lag_ms_max } => (plan.0, u32::from(to.0), lag_ms_max),
        Phase::Draining { plan, to } | Phase::Fencing { plan, to } | Phase::Pulling { plan, to } => {
            (plan.0, u32::from(to.0), 0)
        }
    };
    v1::Bucket {
        id: bucket.id.0,
        name: bucket.name.to_string(),
        policy: Some(policy_to_proto(bucket.policy)),
        epoch: bucket.epoch.0,
        phase: bucket.phase.to_string(),
        primary: bucket.primary.map_or(0, |region| u32::from(region.0)),
        regions: bucket.regions.iter().map(|region| u32::from(region.0)).collect(),
        labels: bucket.labels.clone().into_iter().collect(),
        created_hlc: bucket.created.0,
        plan,
        to,
        lag_ms_max,
        standing: Some(standing_to_proto(&bucket.standing)),
        auto: Some(v1::AutoFailover {
            successors: bucket.auto.successors.iter().map(|region| u32::from(region.0)).collect(),
            ..auto_to_proto(&bucket.auto)
        }),
        turns: bucket.turns.kept.iter().map(turn_to_proto).collect(),
        followed: bucket.turns.followed.iter().map(|shard| u32::from(shard.0)).collect(),
        joining: bucket.joins.now.as_ref().map(joining_to_proto),
        was: bucket.joins.was.iter().map(stay_to_proto).collect(),
        since: bucket.joins.since.iter().map(|(region, epoch)| (u32::from(region.0), epoch.0)).collect(),
        crossing: bucket.crossing.as_ref().map(crossing_to_proto),
    }
}

fn crossing_to_proto(crossing: &Crossing) -> v1::Crossing {
    let (policy, primary, regroup) = match &crossing.way {
        Way::Opening => (None, 0, None),
        Way::Closing { policy, primary, .. } => (Some(policy_to_proto(*policy)), u32::from(primary.0), None),
        Way::Regrouping { region, change, .. } => {
            let change = match change {
                Regroup::Join => WireRegroup::Join,
                Regroup::Count => WireRegroup::Count,
                Regroup::Leave => WireRegroup::Leave,
            };
            (None, 0, Some(v1::Regroup { region: u32::from(region.0), change: change.into() }))
        }
        Way::Losing { .. } => (None, 0, None),
    };
    let stopped = |(region, at): (&RegionId, &BTreeMap<ShardId, Lsn>)| v1::Stopped {
        region: u32::from(region.0),
        lsn: at.iter().map(|(shard, lsn)| (u32::from(shard.0), lsn.0)).collect(),
    };
    let arrived = |(region, at): (&RegionId, &BTreeMap<ShardId, Seal>)| v1::Arrived {
        region: u32::from(region.0),
        shards: at.iter().map(|(shard, seal)| seal_to_proto(*shard, *seal)).collect(),
    };
    v1::Crossing {
        index: crossing.index,
        at_hlc: crossing.at.0,
        pause_ms_max: crossing.pause_ms_max,
        policy,
        primary,
        stopped: crossing.way.stopped().into_iter().flatten().map(stopped).collect(),
        arrived: crossing.arrived.iter().map(arrived).collect(),
        regroup,
        losing: losing_to_proto(&crossing.way),
    }
}

fn losing_to_proto(way: &Way) -> Option<v1::Losing> {
    let Way::Losing { region, accepted, remains, .. } = way else { return None };
    let left = |(region, shards): (&RegionId, &BTreeMap<ShardId, Remains>)| v1::LeftOfLost {
        region: u32::from(region.0),
        shards: shards.iter().map(|(shard, it)| remains_to_proto(*shard, it)).collect(),
    };
    let (region, accepted) = (u32::from(region.0), Some(loss_to_proto(*accepted)));
    Some(v1::Losing { region, accepted, remains: remains.iter().map(left).collect() })
}

fn losing_from_proto(losing: v1::Losing, stopped: BTreeMap<RegionId, BTreeMap<ShardId, Lsn>>) -> Result<Way, Refusal> {
    let left = |it: v1::LeftOfLost| {
        let shards = it.shards.into_iter().map(remains_from_proto).collect::<Result<_, _>>()?;
        Ok::<_, Refusal>((region(it.region)?, shards))
    };
    let accepted = loss_from_proto(losing.accepted.unwrap_or_default());
    let remains = losing.remains.into_iter().map(left).collect::<Result<_, _>>()?;
    Ok(Way::Losing { region: region(losing.region)?, accepted, stopped, remains })
}

fn crossing_from_proto(message: v1::Crossing) -> Result<Crossing, Refusal> {
    let stopped = |it: v1::Stopped| {
        let at = it.lsn.into_iter().map(|(id, lsn)| Ok((shard(id)?, Lsn(lsn)))).collect::<Result<_, Refusal>>()?;
        Ok::<_, Refusal>((region(it.region)?, at))
    };
    let stopped = message.stopped.into_iter().map(stopped).collect::<Result<_, _>>()?;
    let way = match (message.policy, message.regroup) {
        (None, None) => match message.losing {
            Some(losing) => losing_from_proto(losing, stopped)?,
            None => Way::Opening,
        },
        (Some(policy), _) => {
            Way::Closing { policy: policy_from_proto(policy)?, primary: region(message.primary)?, stopped }
        }
        (None, Some(regroup)) => {
            let change = match WireRegroup::try_from(regroup.change) {
                Ok(WireRegroup::Join) => Regroup::Join,
                Ok(WireRegroup::Count) => Regroup::Count,
                Ok(WireRegroup::Leave) => Regroup::Leave,
                Ok(WireRegroup::Unset) | Err(_) => return Err(unreadable("what becomes of a region")),
            };
            Way::Regrouping { region: region(regroup.region)?, change, stopped }
        }
    };
    let arrived = |it: v1::Arrived| {
        let at = it.shards.into_iter().map(seal_from_proto).collect::<Result<_, _>>()?;
        Ok::<_, Refusal>((region(it.region)?, at))
    };
    Ok(Crossing {
        index: message.index,
        at: Hlc(message.at_hlc),
        pause_ms_max: message.pause_ms_max,
        way,
        arrived: message.arrived.into_iter().map(arrived).collect::<Result<_, _>>()?,
    })
}

fn joining_to_proto(joining: &Joining) -> v1::Joining {
    v1::Joining {
        region: u32::from(joining.region.0),
        at_hlc: joining.at.0,
        under: joining.under.0,
        filled: joining.filled.iter().map(|shard| u32::from(shard.0)).collect(),
        pause_ms_max: joining.pause_ms_max,
    }
}

fn stay_to_proto(stay: &Stay) -> v1::Stay {
    v1::Stay { region: u32::from(stay.region.0), since: stay.since.0, until: stay.until.0 }
}

fn joins_from_proto(
    joining: Option<v1::Joining>,
    since: HashMap<u32, u64>,
    was: &[v1::Stay],
) -> Result<Joins, Refusal> {
    let stay = |it: &v1::Stay| Ok(Stay { region: region(it.region)?, since: Epoch(it.since), until: Epoch(it.until) });
    let was = was.iter().map(stay).collect::<Result<_, Refusal>>()?;
    let now = joining.map(|it| {
        let filled = it.filled.into_iter().map(shard).collect::<Result<_, _>>()?;
        let (at, under, pause_ms_max) = (Hlc(it.at_hlc), Epoch(it.under), it.pause_ms_max);
        Ok::<_, Refusal>(Joining { region: region(it.region)?, at, under, filled, pause_ms_max })
    });
    let since = since.into_iter().map(|(id, epoch)| Ok((region(id)?, Epoch(epoch)))).collect::<Result<_, Refusal>>()?;
    Ok(Joins { now: now.transpose()?, since, was })
}

fn turn_to_proto(turn: &Turn) -> v1::Turn {
    v1::Turn { epoch: turn.epoch.0, from: lane_name_to_proto(turn.from).into() }
}

fn turns_from_proto(turns: &[v1::Turn], followed: Vec<u32>) -> Result<Turns, Refusal> {
    let turn = |it: &v1::Turn| Ok(Turn { epoch: Epoch(it.epoch), from: lane_name_from_proto(it.from)? });
    let kept = turns.iter().map(turn).collect::<Result<_, Refusal>>()?;
    Ok(Turns { kept, followed: followed.into_iter().map(shard).collect::<Result<_, _>>()? })
}

/// A bucket that has travelled.
///
/// # Errors
/// Invalid when a part is missing or not known to this version.
pub fn bucket_from_proto(bucket: v1::Bucket) -> Result<Bucket, Refusal> {
    let phase = match bucket.phase.as_str() {
        "steady" => Phase::Steady,
        "catching-up" => {
            Phase::CatchingUp { plan: PlanId(bucket.plan), to: region(bucket.to)?, lag_ms_max: bucket.lag_ms_max }
        }
        "draining" => Phase::Draining { plan: PlanId(bucket.plan), to: region(bucket.to)? },
        "fencing" => Phase::Fencing { plan: PlanId(bucket.plan), to: region(bucket.to)? },
        "pulling" => Phase::Pulling { plan: PlanId(bucket.plan), to: region(bucket.to)? },
        other => return Err(unreadable(&format!("the phase `{}`", other.chars().take(64).collect::<String>()))),
    };
    let created = Hlc(bucket.created_hlc);
    let auto = match bucket.auto {
        None => AutoFailover::default(),
        Some(auto) => {
            let successors = auto.successors.iter().map(|id| region(*id)).collect::<Result<_, _>>()?;
            auto_from_proto(&auto, successors)?
        }
    };
    Ok(Bucket {
        id: BucketId(bucket.id),
        name: named(BucketName::new(&bucket.name))?,
        policy: policy_from_proto(bucket.policy.ok_or_else(|| unreadable("a bucket without a policy"))?)?,
        epoch: Epoch(bucket.epoch),
        phase,
        primary: if bucket.primary == 0 { None } else { Some(region(bucket.primary)?) },
        regions: bucket.regions.into_iter().map(region).collect::<Result<_, _>>()?,
        labels: bucket.labels.into_iter().collect(),
        created,
        standing: bucket.standing.map_or(Ok(Standing::Sync { since: created }), standing_from_proto)?,
        auto,
        turns: turns_from_proto(&bucket.turns, bucket.followed)?,
        joins: joins_from_proto(bucket.joining, bucket.since, &bucket.was)?,
        crossing: bucket.crossing.map(crossing_from_proto).transpose()?,
    })
}
