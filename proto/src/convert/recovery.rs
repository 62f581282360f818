//! Repairs and salvage.

use meridian_types::{
    BucketId, Refusal, RepairReason, RepairStatus, ReplayPolicy, ReplayReport, SalvageBundle, SalvageFate, SalvageId,
    SalvageKey,
};

use super::{invalid, region, shard};
use crate::v1;

/// A repair on the wire.
pub fn repair_to_proto(status: RepairStatus) -> v1::RepairStatus {
    use v1::repair_status::Reason;
    let reason = match status.reason {
        RepairReason::Interrupted => Reason::Interrupted,
        RepairReason::Astray => Reason::Astray,
        RepairReason::Diverged => Reason::Diverged,
        RepairReason::BehindLog => Reason::BehindLog,
        RepairReason::Stuck => Reason::Stuck,
        RepairReason::Asked => Reason::Asked,
        RepairReason::Joining => Reason::Joining,
        RepairReason::Leaving => Reason::Leaving,
    };
    v1::RepairStatus {
        bucket: status.bucket.0,
        shard: u32::from(status.shard.0),
        source: u32::from(status.source.0),
        reason: reason.into(),
        rows_total: status.rows_total,
        rows_compared: status.rows_compared,
        rows_moved: status.rows_moved,
        bytes_moved: status.bytes_moved,
        attempts: status.attempts,
        running_ms: status.running_ms,
        eta_ms: status.eta_ms,
        waits_for: status.waits_for,
        done: status.done,
    }
}

/// Reads it back.
///
/// # Errors
/// When it is none.
pub fn repair_from_proto(status: v1::RepairStatus) -> Result<RepairStatus, Refusal> {
    use v1::repair_status::Reason;
    let reason = match Reason::try_from(status.reason)
        .map_err(|_| invalid("the repair has a reason this version does not know"))?
    {
        Reason::Interrupted => RepairReason::Interrupted,
        Reason::Astray => RepairReason::Astray,
        Reason::Diverged => RepairReason::Diverged,
        Reason::BehindLog => RepairReason::BehindLog,
        Reason::Stuck => RepairReason::Stuck,
        Reason::Asked => RepairReason::Asked,
        Reason::Joining => RepairReason::Joining,
        Reason::Leaving => RepairReason::Leaving,
    };
    Ok(RepairStatus {
        bucket: BucketId(status.bucket),
        shard: shard(status.shard)?,
        source: region(status.source)?,
        reason,
        rows_total: status.rows_total,
        rows_compared: status.rows_compared,
        rows_moved: status.rows_moved,
        bytes_moved: status.bytes_moved,
        attempts: status.attempts,
        running_ms: status.running_ms,
        eta_ms: status.eta_ms,
        waits_for: status.waits_for,
        done: status.done,
    })
}

/// A bundle on the wire.
pub fn bundle_to_proto(bundle: SalvageBundle) -> v1::SalvageBundle {
    v1::SalvageBundle {
        id: bundle.id.to_string(),
        winner: u32::from(bundle.winner.0),
        entries: bundle.entries,
        keys: bundle.keys,
        bytes: bundle.bytes,
        parts: bundle.parts,
        whole: bundle.whole,
        created_ms: bundle.created_ms,
        replayed_ms: bundle.replayed_ms,
        restored: bundle.restored,
    }
}

/// Reads it back.
///
/// # Errors
/// When it is none.
pub fn bundle_from_proto(bundle: v1::SalvageBundle) -> Result<SalvageBundle, Refusal> {
    Ok(SalvageBundle {
        id: salvage_id(&bundle.id)?,
        winner: region(bundle.winner)?,
        entries: bundle.entries,
        keys: bundle.keys,
        bytes: bundle.bytes,
        parts: bundle.parts,
        whole: bundle.whole,
        created_ms: bundle.created_ms,
        replayed_ms: bundle.replayed_ms,
        restored: bundle.restored,
    })
}

/// Reads the name of a bundle.
///
/// # Errors
/// Invalid when it is none.
pub fn salvage_id(text: &str) -> Result<SalvageId, Refusal> {
    text.parse().map_err(|why: meridian_types::SalvageIdError| invalid(why.to_string()))
}

/// A key of a bundle on the wire.
pub fn salvage_key_to_proto(key: SalvageKey) -> v1::SalvageKey {
    use v1::salvage_key::Fate;
    let fate = match key.fate {
        None => Fate::NotAsked,
        Some(SalvageFate::Untouched) => Fate::Untouched,
        Some(SalvageFate::Changed) => Fate::Changed,
        Some(SalvageFate::Deleted) => Fate::Deleted,
        Some(SalvageFate::Unknown) => Fate::Unknown,
    };
    v1::SalvageKey { key: key.key, value: key.value, expires_at_ms: key.expires_at_ms, fate: fate.into() }
}

/// Reads it back.
///
/// # Errors
/// When it is none.
pub fn salvage_key_from_proto(key: v1::SalvageKey) -> Result<SalvageKey, Refusal> {
    use v1::salvage_key::Fate;
    let fate =
        match Fate::try_from(key.fate).map_err(|_| invalid("what became of a key is nothing this version knows"))? {
            Fate::NotAsked => None,
            Fate::Untouched => Some(SalvageFate::Untouched),
            Fate::Changed => Some(SalvageFate::Changed),
            Fate::Deleted => Some(SalvageFate::Deleted),
            Fate::Unknown => Some(SalvageFate::Unknown),
        };
    Ok(SalvageKey { key: key.key, value: key.value, expires_at_ms: key.expires_at_ms, fate })
}

/// A policy on the wire.
pub fn replay_policy_to_proto(policy: ReplayPolicy) -> v1::replay_request::Policy {
    use v1::replay_request::Policy;
    match policy {
        ReplayPolicy::IfUnchanged => Policy::IfUnchanged,
        ReplayPolicy::Overwrite => Policy::Overwrite,
        ReplayPolicy::Skip => Policy::Skip,
    }
}

/// Reads it back.
///
/// # Errors
/// Invalid when it is none.
pub fn replay_policy_from_proto(policy: i32) -> Result<ReplayPolicy, Refusal> {
    use v1::replay_request::Policy;
    Ok(match Policy::try_from(policy).map_err(|_| invalid("the replay has a policy this version does not know"))? {
        Policy::IfUnchanged => ReplayPolicy::IfUnchanged,
        Policy::Overwrite => ReplayPolicy::Overwrite,
        Policy::Skip => ReplayPolicy::Skip,
    })
}

/// A report on the wire.
pub fn replay_to_proto(report: ReplayReport) -> v1::ReplayResponse {
    let ReplayReport { restored, changed, deleted, unknown, expired, failed } = report;
    v1::ReplayResponse { restored, changed, deleted, unknown, expired, failed }
}

/// Reads it back.
pub fn replay_from_proto(report: v1::ReplayResponse) -> ReplayReport {
    let v1::ReplayResponse { restored, changed, deleted, unknown, expired, failed } = report;
    ReplayReport { restored, changed, deleted, unknown, expired, failed }
}

#[cfg(test)]
mod tests {
    use meridian_types::{RegionId, ShardId};

    use super::*;

    #[test]
    fn repairs_and_salvage_come_back_as_they_went() {
        for reason in [
            RepairReason::Interrupted,
            RepairReason::Astray,
            RepairReason::Diverged,
            RepairReason::BehindLog,
            RepairReason::Stuck,
            RepairReason::Asked,
            RepairReason::Joining,
            RepairReason::Leaving,
        ] {
            let status =
                RepairStatus { bucket: BucketId(1), shard: ShardId(2), reason, eta_ms: 9, ..Default::default() };
            assert_eq!(repair_from_proto(repair_to_proto(status.clone())), Ok(status));
        }
        let bundle = SalvageBundle { winner: RegionId(2), keys: 7, whole: true, ..SalvageBundle::default() };
        assert_eq!(bundle_from_proto(bundle_to_proto(bundle.clone())), Ok(bundle));
        for fate in [
            None,
            Some(SalvageFate::Untouched),
            Some(SalvageFate::Changed),
            Some(SalvageFate::Deleted),
            Some(SalvageFate::Unknown),
        ] {
            let key = SalvageKey { key: vec![1].into(), value: Some(vec![2].into()), expires_at_ms: None, fate };
            assert_eq!(salvage_key_from_proto(salvage_key_to_proto(key.clone())), Ok(key));
        }
        for policy in [ReplayPolicy::IfUnchanged, ReplayPolicy::Overwrite, ReplayPolicy::Skip] {
            assert_eq!(replay_policy_from_proto(replay_policy_to_proto(policy).into()), Ok(policy));
        }
        assert!(salvage_id("../etc").is_err());
    }
}
