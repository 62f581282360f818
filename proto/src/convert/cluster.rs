//! What operators ask: topology, digests, lag, the state of a node.

use std::collections::BTreeMap;
use std::sync::Arc;

use meridian_types::{
    BucketDigest, BucketId, BucketLag, ClusterId, Hlc, KeyStart, Lane, LaneState, LaneStatus, Lsn, NameError, Node,
    NodeId, NodeName, NodeStatus, Positions, Refusal, Region, RegionId, RegionName, SetHash, ShardDigest, Topology,
};

use super::bucket::{bucket_from_proto, bucket_to_proto};
use super::members::{member_change_from_proto, member_change_to_proto};
use super::{invalid, region, shard};
use crate::v1;
use crate::v1::lane_status::{Lane as WireLane, State};

pub(super) fn named<T>(name: Result<T, NameError>) -> Result<T, Refusal> {
    name.map_err(|why| invalid(why.to_string()))
}

pub(super) fn unreadable(what: &str) -> Refusal {
    invalid(format!("{what} is not known to this version: update the older of the two sides"))
}

/// 16 big-endian bytes as a number.
pub(super) fn wide(bytes: &[u8], what: &str) -> Result<u128, Refusal> {
    let array: [u8; 16] =
        bytes.try_into().map_err(|_| invalid(format!("{what} has 16 bytes; this one has {}", bytes.len())))?;
    Ok(u128::from_be_bytes(array))
}

/// The topology as it travels, with the node that answers.
pub fn topology_to_proto(topology: &Topology, answered_by: NodeId) -> v1::TopologyResponse {
    let node = |node: &Node| v1::Node {
        id: node.id.0,
        name: node.name.to_string(),
        region: u32::from(node.region.0),
        zone: node.zone.clone(),
        rpc_address: node.rpc_address.clone(),
        replication_address: node.replication_address.clone(),
        version: node.version.clone(),
    };
    v1::TopologyResponse {
        index: topology.index,
        cluster_id: topology.cluster.map_or_else(Vec::new, |id| id.0.to_be_bytes().to_vec()).into(),
        shards: u32::from(topology.shards),
        regions: topology
            .regions
            .values()
            .map(|region| v1::Region { id: u32::from(region.id.0), name: region.name.to_string() })
            .collect(),
        nodes: topology.nodes.values().map(node).collect(),
        buckets: topology.buckets.values().map(|bucket| bucket_to_proto(bucket)).collect(),
        answered_by: answered_by.0,
        groups: topology
            .groups
            .iter()
            .map(|((region, shard), voters)| v1::ShardGroup {
                region: u32::from(region.0),
                shard: u32::from(shard.0),
                voters: voters.iter().map(|node| node.0).collect(),
            })
            .collect(),
        last_bucket: topology.last_bucket.0,
        metadata_generation: topology.generation,
        format: u32::from(topology.format),
        retired: topology.retired.iter().map(|node| node.0).collect(),
        changes: topology.changes.iter().map(|(region, change)| member_change_to_proto(*region, change)).collect(),
    }
}

/// The topology that a node answered with, and which node that was.
///
/// # Errors
/// Invalid when a part is not known to this version.
pub fn topology_from_proto(message: v1::TopologyResponse) -> Result<(Topology, NodeId), Refusal> {
    let mut topology = Topology {
        index: message.index,
        cluster: match message.cluster_id.len() {
            0 => None,
            _ => Some(ClusterId(wide(&message.cluster_id, "a cluster id")?)),
        },
        shards: u16::try_from(message.shards).map_err(|_| unreadable("so many shards"))?,
        last_bucket: BucketId(message.last_bucket),
        generation: message.metadata_generation,
        format: u8::try_from(message.format).map_err(|_| unreadable("such a format of the metadata"))?,
        retired: message.retired.into_iter().map(NodeId).collect(),
        ..Topology::default()
    };
    for one in message.regions {
        let id = region(one.id)?;
        topology.regions.insert(id, Region { id, name: named(RegionName::new(&one.name))? });
    }
    for one in message.nodes {
        let node = Node {
            id: NodeId(one.id),
            name: named(NodeName::new(&one.name))?,
            region: region(one.region)?,
            zone: one.zone,
            rpc_address: one.rpc_address,
            replication_address: one.replication_address,
            version: one.version,
        };
        topology.nodes.insert(node.id, node);
    }
    for one in message.groups {
        let voters = one.voters.into_iter().map(NodeId).collect();
        topology.groups.insert((region(one.region)?, shard(one.shard)?), voters);
    }
    for one in message.changes {
        let (region, change) = member_change_from_proto(one)?;
        topology.changes.insert(region, change);
    }
    for one in message.buckets {
        let bucket = bucket_from_proto(one)?;
        topology.bucket_ids.insert(bucket.name.clone(), bucket.id);
        topology.buckets.insert(bucket.id, Arc::new(bucket));
    }
    Ok((topology, NodeId(message.answered_by)))
}

/// The digests of a region as they travel.
pub fn digests_to_proto(region: RegionId, digests: Vec<ShardDigest>) -> v1::DigestsResponse {
    let row = |row: ShardDigest| v1::ShardDigest {
        bucket: row.bucket.0,
        shard: u32::from(row.shard.0),
        hash: row.digest.hash.0.to_be_bytes().to_vec().into(),
        keys: row.digest.keys,
        bytes: row.digest.bytes,
        operations: row.digest.operations,
        positions: row.digest.positions.0.iter().map(|(region, lsn)| (u32::from(region.0), lsn.0)).collect(),
        diverged: row.diverged,
        operation_bytes: row.digest.operation_bytes,
        hlc: row.digest.hlc.0,
        last_removal: row.digest.last_removal.0,
    };
    v1::DigestsResponse { region: u32::from(region.0), digests: digests.into_iter().map(row).collect() }
}

/// The digests that a region answered with.
///
/// # Errors
/// Invalid when a number or hash is out of range.
pub fn digests_from_proto(message: v1::DigestsResponse) -> Result<(RegionId, Vec<ShardDigest>), Refusal> {
    let row = |row: v1::ShardDigest| {
        let positions: BTreeMap<RegionId, Lsn> =
            row.positions.into_iter().map(|(id, lsn)| Ok((region(id)?, Lsn(lsn)))).collect::<Result<_, Refusal>>()?;
        Ok(ShardDigest {
            bucket: BucketId(row.bucket),
            shard: shard(row.shard)?,
            digest: BucketDigest {
                positions: Positions(positions),
                hash: SetHash(wide(&row.hash, "a digest")?),
                keys: row.keys,
                bytes: row.bytes,
                operations: row.operations,
                operation_bytes: row.operation_bytes,
                hlc: Hlc(row.hlc),
                last_removal: Lsn(row.last_removal),
            },
            diverged: row.diverged,
        })
    };
    let rows = message.digests.into_iter().map(row).collect::<Result<_, Refusal>>()?;
    Ok((region(message.region)?, rows))
}

/// What a region knows of the lag of others, as it travels.
pub fn lag_to_proto(region: RegionId, lags: Vec<BucketLag>, lanes: Vec<LaneStatus>) -> v1::LagResponse {
    let row = |lag: BucketLag| v1::BucketLag {
        bucket: lag.bucket.0,
        target: u32::from(lag.target.0),
        unshipped_operations: lag.unshipped_operations,
        unshipped_bytes: lag.unshipped_bytes,
        unapplied_operations: lag.unapplied_operations,
        unapplied_bytes: lag.unapplied_bytes,
        lag_ms: lag.lag_ms,
        age_ms: lag.age_ms,
        oldest_key: lag.oldest_key.map(key_start_to_proto),
    };
    v1::LagResponse {
        region: u32::from(region.0),
        lags: lags.into_iter().map(row).collect(),
        lanes: lanes.into_iter().map(lane_to_proto).collect(),
    }
}

/// What a region answered about the lag of others: the region, lag per bucket, the state of its lanes.
///
/// # Errors
/// Invalid when a part is not known to this version.
pub fn lag_from_proto(message: v1::LagResponse) -> Result<(RegionId, Vec<BucketLag>, Vec<LaneStatus>), Refusal> {
    let row = |lag: v1::BucketLag| {
        Ok(BucketLag {
            bucket: BucketId(lag.bucket),
            target: region(lag.target)?,
            unshipped_operations: lag.unshipped_operations,
            unshipped_bytes: lag.unshipped_bytes,
            unapplied_operations: lag.unapplied_operations,
            unapplied_bytes: lag.unapplied_bytes,
            lag_ms: lag.lag_ms,
            age_ms: lag.age_ms,
            oldest_key: lag.oldest_key.map(key_start_from_proto).transpose()?,
        })
    };
    let lags = message.lags.into_iter().map(row).collect::<Result<_, Refusal>>()?;
    let lanes = message.lanes.into_iter().map(lane_from_proto).collect::<Result<_, _>>()?;
    Ok((region(message.region)?, lags, lanes))
}

pub(super) fn key_start_to_proto(start: KeyStart) -> v1::KeyStart {
    v1::KeyStart { cut: start.is_cut(), bytes: start.as_bytes().clone() }
}

pub(super) fn key_start_from_proto(message: v1::KeyStart) -> Result<KeyStart, Refusal> {
    KeyStart::new(message.bytes, message.cut)
}

pub(super) fn lane_name_to_proto(lane: Lane) -> WireLane {
    match lane {
        Lane::Sync => WireLane::Sync,
        Lane::Async => WireLane::Async,
    }
}

pub(super) fn lane_name_from_proto(lane: i32) -> Result<Lane, Refusal> {
    match WireLane::try_from(lane) {
        Ok(WireLane::Sync) => Ok(Lane::Sync),
        Ok(WireLane::Async) => Ok(Lane::Async),
        Ok(WireLane::Unspecified) | Err(_) => Err(unreadable(&format!("the lane {lane}"))),
    }
}

fn lane_to_proto(status: LaneStatus) -> v1::LaneStatus {
    let mut message = v1::LaneStatus {
        shard: u32::from(status.shard.0),
        target: u32::from(status.target.0),
        lane: lane_name_to_proto(status.lane).into(),
        head: status.head.0,
        sent: status.sent.0,
        acked: status.acked.0,
        raw_bytes: status.raw_bytes,
        wire_bytes: status.wire_bytes,
        frames: status.frames,
        entries: status.entries,
        heard_ms: status.heard_ms,
        ..v1::LaneStatus::default()
    };
    let state = match status.state {
        LaneState::Connecting { reason } => {
            message.detail = reason;
            State::Connecting
        }
        LaneState::Streaming => State::Streaming,
        LaneState::BehindLog { watermark, oldest } => {
            (message.watermark, message.oldest) = (watermark.0, oldest.0);
            State::BehindLog
        }
        LaneState::Diverged { detail } => {
            message.detail = detail;
            State::Diverged
        }
        LaneState::Fenced => State::Fenced,
        LaneState::ClockSkew { ahead_ms } => {
            message.ahead_ms = ahead_ms;
            State::ClockSkew
        }
    };
    message.state = state.into();
    message
}

fn lane_from_proto(message: v1::LaneStatus) -> Result<LaneStatus, Refusal> {
    let lane = lane_name_from_proto(message.lane)?;
    let state = match State::try_from(message.state) {
        Ok(State::Connecting) => LaneState::Connecting { reason: message.detail },
        Ok(State::Streaming) => LaneState::Streaming,
        Ok(State::BehindLog) => LaneState::BehindLog { watermark: Lsn(message.watermark), oldest: Lsn(message.oldest) },
        Ok(State::Diverged) => LaneState::Diverged { detail: message.detail },
        Ok(State::Fenced) => LaneState::Fenced,
        Ok(State::ClockSkew) => LaneState::ClockSkew { ahead_ms: message.ahead_ms },
        Err(_) => return Err(unreadable(&format!("the lane state {}", message.state))),
    };
    Ok(LaneStatus {
        shard: shard(message.shard)?,
        target: region(message.target)?,
        lane,
        head: Lsn(message.head),
        sent: Lsn(message.sent),
        acked: Lsn(message.acked),
        state,
        raw_bytes: message.raw_bytes,
        wire_bytes: message.wire_bytes,
        frames: message.frames,
        entries: message.entries,
        heard_ms: message.heard_ms,
    })
}

/// What a node knows of itself, as it travels.
pub fn node_status_to_proto(status: NodeStatus) -> v1::NodeStatusResponse {
    v1::NodeStatusResponse {
        node: status.node.0,
        region: u32::from(status.region.0),
        version: status.version,
        uptime_ms: status.uptime_ms,
        metadata_index: status.metadata_index,
        metadata_leader: status.metadata_leader.map_or(0, |node| node.0),
        lease_ms: status.lease_ms,
        shards_led: status.shards_led,
        shards_total: status.shards_total,
        disk_free_bytes: status.disk_free_bytes,
        disk_total_bytes: status.disk_total_bytes,
        log_bytes: status.log_bytes,
        state_bytes: status.state_bytes,
        resident_bytes: status.resident_bytes,
        problems: status.problems,
        certificate_left_s: status.certificate_left_s,
        wall_ms: status.wall_ms,
        votes: status.votes,
        metadata_voters: status.metadata_voters.into_iter().map(|node| node.0).collect(),
        leases: status.leases.into_iter().map(|node| node.0).collect(),
        clients: status.clients,
    }
}

/// What a node answered about itself.
///
/// # Errors
/// Invalid when the region's number is out of range.
pub fn node_status_from_proto(message: v1::NodeStatusResponse) -> Result<NodeStatus, Refusal> {
    Ok(NodeStatus {
        node: NodeId(message.node),
        region: region(message.region)?,
        version: message.version,
        uptime_ms: message.uptime_ms,
        metadata_index: message.metadata_index,
        metadata_leader: (message.metadata_leader != 0).then_some(NodeId(message.metadata_leader)),
        lease_ms: message.lease_ms,
        shards_led: message.shards_led,
        shards_total: message.shards_total,
        disk_free_bytes: message.disk_free_bytes,
        disk_total_bytes: message.disk_total_bytes,
        log_bytes: message.log_bytes,
        state_bytes: message.state_bytes,
        resident_bytes: message.resident_bytes,
        problems: message.problems,
        certificate_left_s: message.certificate_left_s,
        wall_ms: message.wall_ms,
        votes: message.votes,
        metadata_voters: message.metadata_voters.into_iter().map(NodeId).collect(),
        leases: message.leases.into_iter().map(NodeId).collect(),
        clients: message.clients,
    })
}
