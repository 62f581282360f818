//! The only conversion between generated messages and the words of `types`, both ways.
//!
//! Every conversion is total: bytes that prost decodes become a word or a [`Refusal`] that says what to do,
//! never a panic. Bounds are checked here, so that nothing behind the gateway sees a key or batch beyond them (RES-1).

mod backup;
mod bucket;
mod change;
mod cluster;
mod drill;
mod event;
mod failover;
mod members;
mod operation;
mod recovery;
mod refusal;
mod request;
mod response;

#[cfg(test)]
mod tests;

pub use backup::{backup_ask_from_proto, backup_ask_to_proto, backup_piece_from_proto, backup_piece_to_proto};
pub use bucket::{
    bucket_from_proto, bucket_to_proto, change_from_proto, change_to_proto, policy_from_proto, policy_to_proto,
    spec_from_proto, spec_to_proto,
};
pub use change::{operation_from_proto, operation_to_proto};
pub use cluster::{
    digests_from_proto, digests_to_proto, lag_from_proto, lag_to_proto, node_status_from_proto, node_status_to_proto,
    topology_from_proto, topology_to_proto,
};
pub use drill::{drill_from_proto, drill_news_from_proto, drill_news_to_proto, drill_to_proto};
pub use event::{events_from_proto, events_request_from_proto, events_request_to_proto, events_to_proto};
pub use failover::{
    estimate_from_proto, estimate_request_from_proto, estimate_request_to_proto, estimate_to_proto, facts_from_proto,
    facts_to_proto, failover_from_proto, failover_to_proto, loss_request_to_proto,
};
pub use members::{
    member_change_from_proto, member_change_to_proto, members_change_from_proto, members_change_to_proto,
};
pub use operation::{plan_from_proto, plan_to_proto, switchover_from_proto, switchover_to_proto};
pub use recovery::{
    bundle_from_proto, bundle_to_proto, repair_from_proto, repair_to_proto, replay_from_proto,
    replay_policy_from_proto, replay_policy_to_proto, replay_to_proto, salvage_id, salvage_key_from_proto,
    salvage_key_to_proto,
};
pub use refusal::{refusal_from_proto, refusal_of_status, refusal_to_proto, status_of_refusal};
pub use request::{
    client_from_proto, client_to_proto, forwarded_from_proto, forwarded_to_proto, request_from_proto, request_to_proto,
};
pub use response::{response_from_proto, response_to_proto};

use meridian_types::{Refusal, RefusalKind, RegionId, ShardId, Version};

use crate::v1;

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(RefusalKind::Invalid, message)
}

fn region(number: u32) -> Result<RegionId, Refusal> {
    u16::try_from(number)
        .map(RegionId)
        .map_err(|_| invalid(format!("{number} is not a region's number: it must be below 65,536")))
}

fn shard(number: u32) -> Result<ShardId, Refusal> {
    u16::try_from(number)
        .map(ShardId)
        .map_err(|_| invalid(format!("{number} is not a shard's number: it must be below 65,536")))
}

fn version_to_proto(version: Version) -> v1::Version {
    v1::Version { hlc: version.hlc.0, region: u32::from(version.region.0) }
}

fn version_from_proto(version: v1::Version) -> Result<Version, Refusal> {
    Ok(Version { hlc: meridian_types::Hlc(version.hlc), region: region(version.region)? })
}
