//! What operators ask about lost primaries, what it would cost, and what is left of them.

use std::collections::BTreeMap;

use meridian_types::{
    BucketEstimate, BucketId, BucketName, Consent, Epoch, Estimate, Exposure, FailoverSpec, Loss, Lsn, Muster,
    OperationId, Refusal, RegionId, RegionName, Remains, Selection, ShardFacts, ShardId,
};

use super::cluster::{key_start_from_proto, key_start_to_proto, named, unreadable, wide};
use super::operation::{seal_from_proto, seal_to_proto};
use super::{invalid, region};
use crate::v1;
use crate::v1::failover_estimate_request::Buckets as EstimateBuckets;
use crate::v1::failover_request::Buckets;

/// 0 stands for none.
pub(super) fn region_or_none(number: u32) -> Result<Option<RegionId>, Refusal> {
    if number == 0 { Ok(None) } else { region(number).map(Some) }
}

/// The request to replace primaries, under the id of the operation.
pub fn failover_to_proto(spec: &FailoverSpec, operation: OperationId, dry_run: bool) -> v1::FailoverRequest {
    let buckets = match &spec.buckets {
        Selection::Named(names) => {
            Buckets::Named(v1::BucketNames { names: names.iter().map(ToString::to_string).collect() })
        }
        Selection::Labelled { key, value } => Buckets::Labelled(v1::Label { key: key.clone(), value: value.clone() }),
        Selection::AllFrom(region) => Buckets::AllFrom(region.to_string()),
    };
    v1::FailoverRequest {
        to: spec.to.as_ref().map(ToString::to_string).unwrap_or_default(),
        buckets: Some(buckets),
        consent: spec.consent.as_ref().map(ToString::to_string).unwrap_or_default(),
        reason: spec.reason.clone(),
        operation_id: operation.0.to_be_bytes().to_vec().into(),
        dry_run,
    }
}

/// What a request to replace primaries asks for, under which id, and whether it is only a dry run.
///
/// # Errors
/// Invalid for bad names, a consent that is none, without buckets, or for an operation id of another length.
pub fn failover_from_proto(request: v1::FailoverRequest) -> Result<(FailoverSpec, OperationId, bool), Refusal> {
    let buckets = match request.buckets.ok_or_else(no_buckets)? {
        Buckets::Named(list) => selection_named(&list)?,
        Buckets::Labelled(label) => Selection::Labelled { key: label.key, value: label.value },
        Buckets::AllFrom(region) => Selection::AllFrom(named(RegionName::new(&region))?),
    };
    let consent = match request.consent.as_str() {
        "" => None,
        text => Some(text.parse::<Consent>().map_err(|why| invalid(why.to_string()))?),
    };
    // Whoever asks is somebody: only the cluster itself acts automatically.
    let spec = FailoverSpec { buckets, to: wished(&request.to)?, consent, automatic: false, reason: request.reason };
    Ok((spec, OperationId(wide(&request.operation_id, "an operation id")?), request.dry_run))
}

/// The question what replacing primaries would cost.
pub fn estimate_request_to_proto(buckets: &Selection, to: Option<&RegionName>) -> v1::FailoverEstimateRequest {
    let buckets = match buckets {
        Selection::Named(names) => {
            EstimateBuckets::Named(v1::BucketNames { names: names.iter().map(ToString::to_string).collect() })
        }
        Selection::Labelled { key, value } => {
            EstimateBuckets::Labelled(v1::Label { key: key.clone(), value: value.clone() })
        }
        Selection::AllFrom(region) => EstimateBuckets::AllFrom(region.to_string()),
    };
    let to = to.map(ToString::to_string).unwrap_or_default();
    v1::FailoverEstimateRequest { to, buckets: Some(buckets), lost: String::new() }
}

/// The question what it would cost to go on without a region that does not come back.
pub fn loss_request_to_proto(buckets: &Selection, lost: &RegionName) -> v1::FailoverEstimateRequest {
    v1::FailoverEstimateRequest { lost: lost.to_string(), ..estimate_request_to_proto(buckets, None) }
}

/// The buckets that are asked about, the next primary if one was named, and the region that is lost if active-active buckets are asked
/// about.
///
/// # Errors
/// Invalid for bad names, or without buckets.
pub fn estimate_request_from_proto(
    request: v1::FailoverEstimateRequest,
) -> Result<(Selection, Option<RegionName>, Option<RegionName>), Refusal> {
    let buckets = match request.buckets.ok_or_else(no_buckets)? {
        EstimateBuckets::Named(list) => selection_named(&list)?,
        EstimateBuckets::Labelled(label) => Selection::Labelled { key: label.key, value: label.value },
        EstimateBuckets::AllFrom(region) => Selection::AllFrom(named(RegionName::new(&region))?),
    };
    Ok((buckets, wished(&request.to)?, wished(&request.lost)?))
}

fn no_buckets() -> Refusal {
    invalid("the request selects no buckets: use names, a label or a region, as this version knows them")
}

fn wished(to: &str) -> Result<Option<RegionName>, Refusal> {
    if to.is_empty() { Ok(None) } else { named(RegionName::new(to)).map(Some) }
}

fn selection_named(list: &v1::BucketNames) -> Result<Selection, Refusal> {
    Ok(Selection::Named(list.names.iter().map(|name| named(BucketName::new(name))).collect::<Result<_, _>>()?))
}

/// An estimate as it travels.
pub fn estimate_to_proto(estimate: &Estimate) -> v1::FailoverEstimateResponse {
    v1::FailoverEstimateResponse {
        region: u32::from(estimate.region.0),
        took_ms: estimate.took_ms,
        heard: estimate.heard.iter().map(|region| u32::from(region.0)).collect(),
        buckets: estimate.buckets.iter().map(bucket_estimate_to_proto).collect(),
        consent: estimate.consent.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}

/// An estimate that has travelled.
///
/// # Errors
/// Invalid when a part is not known to this version.
pub fn estimate_from_proto(message: v1::FailoverEstimateResponse) -> Result<Estimate, Refusal> {
    let consent = match message.consent.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| unreadable("the consent of an estimate"))?),
    };
    Ok(Estimate {
        region: region(message.region)?,
        took_ms: message.took_ms,
        heard: message.heard.into_iter().map(region).collect::<Result<_, _>>()?,
        buckets: message.buckets.into_iter().map(bucket_estimate_from_proto).collect::<Result<_, _>>()?,
        consent,
    })
}

fn bucket_estimate_to_proto(it: &BucketEstimate) -> v1::BucketEstimate {
    v1::BucketEstimate {
        bucket: it.bucket.0,
        name: it.name.to_string(),
        epoch: it.epoch.0,
        from: u32::from(it.from.0),
        primary_answers: it.primary_answers,
        to: it.to.map_or(0, |to| u32::from(to.0)),
        pulls: it.pulls,
        proven: it.proven,
        needed: it.needed.and_then(|needed| u32::try_from(needed).ok()).unwrap_or_default(),
        heard: it.heard.iter().map(|region| u32::from(region.0)).collect(),
        lost: Some(loss_to_proto(it.lost)),
        known: Some(loss_to_proto(it.known)),
        oldest_ms: it.oldest_ms,
        oldest_key: it.oldest_key.clone().map(key_start_to_proto),
        said_ms: it.said_ms,
        obstacle: it.obstacle.clone(),
    }
}

fn bucket_estimate_from_proto(it: v1::BucketEstimate) -> Result<BucketEstimate, Refusal> {
    Ok(BucketEstimate {
        bucket: BucketId(it.bucket),
        name: named(BucketName::new(&it.name))?,
        epoch: Epoch(it.epoch),
        from: region(it.from)?,
        primary_answers: it.primary_answers,
        to: region_or_none(it.to)?,
        pulls: it.pulls,
        proven: it.proven,
        needed: (it.needed > 0).then_some(usize::try_from(it.needed).unwrap_or(usize::MAX)),
        heard: it.heard.into_iter().map(region).collect::<Result<_, _>>()?,
        lost: loss_from_proto(it.lost.unwrap_or_default()),
        // An older release does not tell them apart.
        known: Loss { unbounded: false, ..loss_from_proto(it.known.or(it.lost).unwrap_or_default()) },
        oldest_ms: it.oldest_ms,
        oldest_key: it.oldest_key.map(key_start_from_proto).transpose()?,
        said_ms: it.said_ms,
        obstacle: it.obstacle,
    })
}

/// What a node's shards have, as it travels.
pub fn facts_to_proto(here: RegionId, facts: &[ShardFacts]) -> v1::FailoverFactsResponse {
    let fact = |it: &ShardFacts| v1::ShardFacts {
        bucket: it.bucket.0,
        remains: Some(remains_to_proto(it.shard, &it.remains)),
        said_ms: it.said_ms,
        oldest_key: it.oldest_key.clone().map(key_start_to_proto),
    };
    v1::FailoverFactsResponse { region: u32::from(here.0), facts: facts.iter().map(fact).collect() }
}

/// What the shards of a node of that region have.
///
/// # Errors
/// Invalid when a part is missing or not known to this version.
pub fn facts_from_proto(message: v1::FailoverFactsResponse) -> Result<(RegionId, Vec<ShardFacts>), Refusal> {
    let fact = |it: v1::ShardFacts| {
        let (shard, remains) = remains_from_proto(it.remains.ok_or_else(|| unreadable("what a shard has"))?)?;
        let oldest_key = it.oldest_key.map(key_start_from_proto).transpose()?;
        Ok(ShardFacts { bucket: BucketId(it.bucket), shard, remains, said_ms: it.said_ms, oldest_key })
    };
    Ok((region(message.region)?, message.facts.into_iter().map(fact).collect::<Result<_, Refusal>>()?))
}

pub(super) fn loss_to_proto(loss: Loss) -> v1::Loss {
    v1::Loss { operations: loss.operations, bytes: loss.bytes, unbounded: loss.unbounded }
}

pub(super) fn loss_from_proto(loss: v1::Loss) -> Loss {
    Loss { operations: loss.operations, bytes: loss.bytes, unbounded: loss.unbounded }
}

pub(super) fn fencing_to_proto(since_ms: u64, epoch: Epoch, to: RegionId, muster: &Muster) -> v1::Fencing {
    let remains = |(region, shards): (&RegionId, &BTreeMap<ShardId, Remains>)| v1::RegionRemains {
        region: u32::from(region.0),
        shards: shards.iter().map(|(shard, remains)| remains_to_proto(*shard, remains)).collect(),
    };
    v1::Fencing {
        since_ms,
        epoch: epoch.0,
        to: u32::from(to.0),
        quiet: muster.quiet,
        accepted: muster.accepted.map(loss_to_proto),
        remains: muster.remains.iter().map(remains).collect(),
    }
}

pub(super) fn fencing_from_proto(it: v1::Fencing) -> Result<(u64, Epoch, RegionId, Muster), Refusal> {
    let remains = |it: v1::RegionRemains| {
        let shards = it.shards.into_iter().map(remains_from_proto).collect::<Result<_, _>>()?;
        Ok((region(it.region)?, shards))
    };
    let muster = Muster {
        remains: it.remains.into_iter().map(remains).collect::<Result<_, Refusal>>()?,
        quiet: it.quiet,
        accepted: it.accepted.map(loss_from_proto),
    };
    Ok((it.since_ms, Epoch(it.epoch), region(it.to)?, muster))
}

pub(super) fn remains_to_proto(shard: ShardId, remains: &Remains) -> v1::ShardRemains {
    let exposure = |it: Exposure| v1::Exposure {
        head: it.head.0,
        operations: it.operations,
        bytes: it.bytes,
        oldest_ms: it.oldest_ms,
    };
    v1::ShardRemains {
        epoch: remains.epoch.0,
        seal: Some(seal_to_proto(shard, remains.seal)),
        whole: remains.whole,
        exposure: remains.exposure.map(exposure),
    }
}

pub(super) fn remains_from_proto(message: v1::ShardRemains) -> Result<(ShardId, Remains), Refusal> {
    let (shard, seal) = seal_from_proto(message.seal.ok_or_else(|| unreadable("where a shard stands"))?)?;
    let exposure = |it: v1::Exposure| Exposure {
        head: Lsn(it.head),
        operations: it.operations,
        bytes: it.bytes,
        oldest_ms: it.oldest_ms,
    };
    let exposure = message.exposure.map(exposure);
    Ok((shard, Remains { epoch: Epoch(message.epoch), seal, exposure, whole: message.whole }))
}
