//! Who serves a region, and changing that.

use meridian_types::{MemberChange, MembersChange, NodeId, NodeName, Refusal, RegionId, RegionName};

use super::cluster::named;
use super::{invalid, region, shard};
use crate::v1;
use crate::v1::change_members_request::Change;

/// A change of members under way, as it travels.
pub fn member_change_to_proto(at: RegionId, change: &MemberChange) -> v1::MemberChange {
    let ids = |nodes: &[NodeId]| nodes.iter().map(|node| node.0).collect();
    v1::MemberChange {
        region: u32::from(at.0),
        index: change.index,
        since_ms: change.since_ms,
        who: change.who.clone(),
        target: ids(&change.target),
        before: ids(&change.before),
        pending: change.pending.iter().map(|shard| u32::from(shard.0)).collect(),
    }
}

/// The region and the change that a node told of.
///
/// # Errors
/// Invalid when a number is out of range.
pub fn member_change_from_proto(message: v1::MemberChange) -> Result<(RegionId, MemberChange), Refusal> {
    let ids = |nodes: Vec<u64>| nodes.into_iter().map(NodeId).collect();
    let change = MemberChange {
        index: message.index,
        since_ms: message.since_ms,
        who: message.who,
        target: ids(message.target),
        before: ids(message.before),
        pending: message.pending.into_iter().map(shard).collect::<Result<_, _>>()?,
    };
    Ok((region(message.region)?, change))
}

/// What is asked of a region's members, as it travels.
pub fn members_change_to_proto(at: &RegionName, change: &MembersChange, dry_run: bool) -> v1::ChangeMembersRequest {
    let names = |nodes: &[NodeName]| v1::NodeNames { names: nodes.iter().map(ToString::to_string).collect() };
    let change = match change {
        MembersChange::Join(nodes) => Change::Join(names(nodes)),
        MembersChange::Drain(nodes) => Change::Drain(names(nodes)),
        MembersChange::Replace(old, new) => {
            Change::Replace(v1::ReplaceNode { old: old.to_string(), new: new.to_string() })
        }
        MembersChange::Abort => Change::Abort(v1::AbortMemberChange {}),
    };
    v1::ChangeMembersRequest { region: at.to_string(), dry_run, change: Some(change) }
}

/// What an operator asks of a region's members, and whether only to be told.
///
/// # Errors
/// Invalid when a name is not valid, or nothing is asked.
pub fn members_change_from_proto(
    message: v1::ChangeMembersRequest,
) -> Result<(RegionName, MembersChange, bool), Refusal> {
    let names = |nodes: v1::NodeNames| {
        nodes.names.iter().map(|name| named(NodeName::new(name))).collect::<Result<Vec<_>, Refusal>>()
    };
    let change = match message.change {
        Some(Change::Join(nodes)) => MembersChange::Join(names(nodes)?),
        Some(Change::Drain(nodes)) => MembersChange::Drain(names(nodes)?),
        Some(Change::Replace(it)) => {
            MembersChange::Replace(named(NodeName::new(&it.old))?, named(NodeName::new(&it.new))?)
        }
        Some(Change::Abort(v1::AbortMemberChange {})) => MembersChange::Abort,
        None => return Err(invalid("a change of members says which nodes join, leave or are replaced")),
    };
    Ok((named(RegionName::new(&message.region))?, change, message.dry_run))
}
