//! Who serves a region: nodes that hold all of its shards, those that are about to, and those that no longer do.
//!
//! ```text
//!   registered ──► spare ──join──► joining ──every shard has moved──► member ──drain──► leaving ──► spare ──remove──► retired
//! ```
//! A change concerns a whole region, and each of its shards moves by itself: its leader brings in who is new as a learner, waits until it
//! has caught up, changes who votes, and says so.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{NodeId, NodeName, ShardId};

/// What is asked of a region's members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MembersChange {
    /// These spares become members, besides those there are.
    Join(Vec<NodeName>),
    /// These members leave; spares take their places, as far as there are any.
    Drain(Vec<NodeName>),
    /// The second one, a spare, takes the place of the first one.
    Replace(NodeName, NodeName),
    /// The change under way is taken back.
    Abort,
}

impl fmt::Display for MembersChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |names: &[NodeName]| names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        match self {
            MembersChange::Join(nodes) => write!(f, "join {}", list(nodes)),
            MembersChange::Drain(nodes) => write!(f, "drain {}", list(nodes)),
            MembersChange::Replace(old, new) => write!(f, "replace {old} by {new}"),
            MembersChange::Abort => write!(f, "abort"),
        }
    }
}

/// A change of a region's members under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberChange {
    /// The metadata index that began it: its name.
    pub index: u64,
    /// When, by the clock of the leader that proposed it, in milliseconds since 1970.
    pub since_ms: u64,
    /// Who asked.
    pub who: String,
    /// Who is to vote in every shard's group at its end, in the order of their turns as leaders.
    pub target: Vec<NodeId>,
    /// Who did before.
    pub before: Vec<NodeId>,
    /// The shards that have not moved yet.
    pub pending: BTreeSet<ShardId>,
}

/// What a node is to its region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    /// It holds every shard.
    Member,
    /// It is about to.
    Joining,
    /// It is about not to.
    Leaving,
    /// It holds nothing, and waits.
    Spare,
    /// It votes in the metadata plane, and never holds anything.
    Witness,
}

impl fmt::Display for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Membership::Member => "member",
            Membership::Joining => "joining",
            Membership::Leaving => "leaving",
            Membership::Spare => "spare",
            Membership::Witness => "witness",
        })
    }
}
