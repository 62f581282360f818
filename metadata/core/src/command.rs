//! Commands: everything that can change the cluster's state, with who asked and when inside.
//!
//! The bytes of a command are what the metadata group's log stores and replicates, so their format is
//! a disk format: a format byte, then postcard. Enum variants and fields are only ever added at the end
//! of a new format; `testdata/commands-v*.hex` must always open. A command is written in the oldest format that knows
//! its action, and in no newer one than the cluster has ([`crate::upgrade`]), so that during an upgrade nodes of both releases follow.

use std::collections::BTreeSet;

use meridian_types::release::FORMAT_NEWEST;
use meridian_types::{
    AutoFailover, BucketChange, BucketId, BucketName, BucketSpec, ClusterId, Copies, Cross, Epoch, Fact, FailoverSpec,
    Labels, Loss, MembersChange, NodeName, OperationId, PlanId, Policy, RegionChange, RegionId, RegionName, Selection,
    ShardId, StandingWord, SwitchoverSpec, Word,
};
use serde::{Deserialize, Serialize};

use crate::legacy::{BucketSpecV1, CommandV2};

mod ask;

pub use ask::Ask;

/// The longest encoded command, in bytes. The largest honest one is a `FormCluster` naming every node;
/// anything beyond is refused before it is decoded (RES-1).
pub const COMMAND_BYTES_MAX: usize = 512 << 10;

/// The newest first byte of an encoded command. 1: up to [`Action::SetLabels`]. 2: operations. 3: ceilings, degrading and
/// automatic failover of buckets; failovers. 4: [`Action::SetPolicy`] and who has followed it.
/// 5: [`Action::SetRegions`] and who is filled. 6: [`Action::Cross`], [`Action::GiveUpCrossing`], and who has stopped or arrived.
/// 7: [`Action::CrossRegions`]. 8: [`Action::LoseRegion`], and who has parted from a lost region. 9: who serves a region.
/// 10: [`Action::Change`], [`Action::SetDetection`]. 11: [`Action::FormClusterAt`], [`Action::Finalize`].
const COMMAND_FORMAT: u8 = FORMAT_NEWEST;

/// The last format whose actions are laid out otherwise.
const OLDER_LAYOUT: u8 = 2;

/// One change to the cluster's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The same in every retry.
    pub operation: OperationId,
    /// Who asked: a client's or node's name. Shortened to [`crate::event::WHO_BYTES_MAX`] on record.
    pub who: String,
    /// When: the wall clock of the leader that proposes it, in milliseconds since 1970.
    pub at_ms: u64,
    /// What is to change.
    pub action: Action,
}

/// What is to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Makes the cluster. Proposed by the first leader; on a cluster that exists it changes nothing.
    FormCluster(Form),
    /// Adds a node or records where it now lives. Proposed by the node itself.
    RegisterNode(NodeSpec),
    /// Creates a bucket.
    CreateBucket(BucketSpec),
    /// Deletes a bucket with all its data. Its id is never used again; its name is free.
    DeleteBucket {
        /// Which.
        name: BucketName,
    },
    /// Changes labels of a bucket.
    SetLabels {
        /// Which bucket.
        name: BucketName,
        /// Labels to add or overwrite.
        set: Labels,
        /// Labels to drop; dropping an absent one is no error.
        remove: BTreeSet<String>,
    },
    /// Plans to move primaries.
    Switchover(SwitchoverSpec),
    /// What a node's shards have come to in operations. Repeating it changes nothing; stale words are ignored.
    Report {
        /// The region the node speaks for.
        region: RegionId,
        /// What it has to say.
        words: Vec<Word>,
    },
    /// Gives up moves of an operation: old primaries are restored.
    Abort {
        /// The operation.
        plan: PlanId,
        /// Which of its moves.
        scope: AbortScope,
        /// Why.
        why: String,
    },
    /// Changes what can be changed of a bucket at any time.
    SetBucket {
        /// Which bucket.
        name: BucketName,
        /// What changes.
        change: BucketChange,
    },
    /// What a node's shards have to say about the copies of buckets. Repeating it changes nothing; stale words are ignored.
    ReportStanding {
        /// The region the node speaks for.
        region: RegionId,
        /// What it has to say.
        words: Vec<StandingWord>,
    },
    /// Plans to replace primaries that are lost.
    Failover(FailoverSpec),
    /// What the metadata leader has seen of a failover. Repeating it changes nothing; what is stale is ignored.
    Advance {
        /// The operation.
        plan: PlanId,
        /// What it has seen.
        seen: Advance,
    },
    /// A bucket's primary is lost and would have been replaced, did it not only observe.
    Observe {
        /// The bucket.
        bucket: BucketId,
        /// Its epoch when that was seen.
        epoch: Epoch,
        /// What was seen.
        what: String,
    },
    /// Puts on record what an operator did to what is not the metadata plane's.
    Note {
        /// What was done.
        deed: String,
        /// To what.
        subject: String,
        /// What it came to, for a person.
        detail: String,
    },
    /// Puts another policy on a bucket while it serves.
    SetPolicy {
        /// Which bucket.
        name: BucketName,
        /// The policy, with all its settings.
        policy: Policy,
        /// What it may do by itself from then on; `None`: as before.
        auto: Option<AutoFailover<RegionName>>,
    },
    /// Adds a region to a bucket, or removes one, while it serves.
    SetRegions {
        /// Which bucket.
        name: BucketName,
        /// Which region.
        change: RegionChange,
    },
    /// Sends a bucket on its way between one writing region and all of them.
    Cross {
        /// Which bucket.
        name: BucketName,
        /// The policy it is to have, with all its settings.
        policy: Policy,
        /// What it may do by itself; `None`: as before.
        auto: Option<AutoFailover<RegionName>>,
        /// How.
        cross: Cross,
    },
    /// Gives up a crossing that took too long, as the metadata leader has seen. Of another one it changes nothing.
    GiveUpCrossing {
        /// Which bucket.
        bucket: BucketId,
        /// The crossing.
        index: u64,
        /// Why.
        why: String,
    },
    /// Sends an active-active bucket on its way to a region more or less.
    CrossRegions {
        /// Which bucket.
        name: BucketName,
        /// Which region.
        change: RegionChange,
        /// How long nobody may order anything before it is given up, in milliseconds.
        pause_ms_max: u64,
    },
    /// Sends an active-active bucket on its way without a region that does not come back.
    LoseRegion {
        /// Which bucket.
        name: BucketName,
        /// Which region.
        region: RegionName,
        /// In which epoch of the bucket somebody agreed to lose something.
        epoch: Epoch,
        /// The most.
        accepted: Loss,
        /// How long nobody may order anything before it is given up, in milliseconds.
        pause_ms_max: u64,
    },
    /// Changes who serves a region's shards.
    ChangeMembers {
        /// Which region.
        region: RegionName,
        /// How.
        change: MembersChange,
    },
    /// Shards have moved as a change of members asks. Repeating it changes nothing; of another change it means nothing.
    ShardsMoved {
        /// Which region.
        region: RegionId,
        /// Which shards.
        shards: BTreeSet<ShardId>,
        /// The change.
        change: u64,
    },
    /// Removes a node that holds nothing, for good.
    RemoveNode {
        /// Which.
        name: NodeName,
    },
    /// Changes a bucket's policy or regions, on record as an operation.
    Change {
        /// What is to change.
        ask: Ask,
        /// Why, for whoever reads the history.
        reason: String,
    },
    /// How long a region must have looked lost before a bucket replaces its primary by itself.
    SetDetection {
        /// Which bucket.
        name: BucketName,
        /// For how long, in milliseconds; at most [`meridian_types::DETECT_MS_MAX`].
        detect_ms: u64,
    },
    /// Makes the cluster as [`Action::FormCluster`] does, with the format that its log may hold from the start.
    FormClusterAt {
        /// The cluster.
        form: Form,
        /// The newest format of commands.
        format: u8,
    },
    /// Ends an upgrade: from then on commands of that format may be on record, and no node goes back to a release that does not know it.
    Finalize {
        /// The newest format of commands.
        format: u8,
    },
}

/// What only the metadata leader sees, by its clock and its leases.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Advance {
    /// Of these buckets, if they still have the epoch they had when it looked.
    pub buckets: Vec<(BucketId, Epoch)>,
    /// Regions that nobody need wait for: silent, or too slow.
    pub absent: BTreeSet<RegionId>,
    /// No node of the lost region can still believe in a lease that it was granted before the bucket was fenced (FEN-1).
    pub quiet: bool,
}

/// Which moves of an operation are given up. Those that have ended stay as they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AbortScope {
    /// All that are under way: an operator's wish.
    All,
    /// Those that took too long: these buckets, if they still have the epoch they had when they were found late.
    Late(Vec<(BucketId, Epoch)>),
}

/// What a cluster starts with. None of it but the members' addresses can change later by configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Form {
    /// The cluster's identity, random.
    pub cluster: ClusterId,
    /// Shards per region; fixed for the cluster's life.
    pub shards: u16,
    /// How long a lease lasts, in milliseconds. Cluster-wide, because a new leader must wait out what
    /// its predecessor granted.
    pub lease_ttl_ms: u64,
    /// The first nodes. Regions are numbered in the order in which they appear here.
    pub members: Vec<NodeSpec>,
}

/// A node as it describes itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// Its name, unique in the cluster; its id follows from it.
    pub name: NodeName,
    /// The region it lives in, for good.
    pub region: RegionName,
    /// Its failure domain within the region.
    pub zone: String,
    /// `host:port` of its gRPC endpoint.
    pub rpc_address: String,
    /// `host:port` of its replication endpoint.
    pub replication_address: String,
    /// Its version of Meridian; empty for a member that has never started.
    pub version: String,
}

/// Why bytes are no command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// No bytes at all.
    #[error("a metadata command is empty")]
    Empty,
    /// Written by a newer release.
    #[error(
        "a metadata command has format {0}, this release knows {COMMAND_FORMAT}: run the newer release that wrote it"
    )]
    UnknownFormat(u8),
    /// Larger than any honest command.
    #[error("a metadata command has {0} bytes; at most {COMMAND_BYTES_MAX} are allowed")]
    TooLarge(usize),
    /// Not a command.
    #[error("a metadata command can't be read: its bytes are damaged")]
    Damaged(#[source] postcard::Error),
    /// A command with something behind it.
    #[error("a metadata command can't be read: {0} bytes follow its end")]
    Trailing(usize),
}

impl Command {
    /// The command as the log stores it.
    ///
    /// # Errors
    /// [`CommandError::TooLarge`] when it exceeds [`COMMAND_BYTES_MAX`].
    pub fn encode(&self) -> Result<Vec<u8>, CommandError> {
        let first = vec![self.action.format()];
        let bytes = match CommandV2::of(self) {
            Some(older) => postcard::to_extend(&older, first),
            None => postcard::to_extend(self, first),
        };
        let bytes = bytes.map_err(CommandError::Damaged)?;
        if bytes.len() > COMMAND_BYTES_MAX {
            return Err(CommandError::TooLarge(bytes.len()));
        }
        Ok(bytes)
    }

    /// Reads a command back.
    ///
    /// # Errors
    /// [`CommandError`] when the bytes are anything else.
    pub fn decode(bytes: &[u8]) -> Result<Command, CommandError> {
        if bytes.len() > COMMAND_BYTES_MAX {
            return Err(CommandError::TooLarge(bytes.len()));
        }
        let (format, body) = bytes.split_first().ok_or(CommandError::Empty)?;
        if !(1..=COMMAND_FORMAT).contains(format) {
            return Err(CommandError::UnknownFormat(*format));
        }
        let (command, rest) = if *format <= OLDER_LAYOUT {
            let (older, rest): (CommandV2, _) = postcard::take_from_bytes(body).map_err(CommandError::Damaged)?;
            (older.into(), rest)
        } else {
            postcard::take_from_bytes::<Command>(body).map_err(CommandError::Damaged)?
        };
        if command.action.format() != *format {
            return Err(CommandError::Damaged(postcard::Error::DeserializeBadEnum));
        }
        if !rest.is_empty() {
            return Err(CommandError::Trailing(rest.len()));
        }
        Ok(command)
    }
}

impl Action {
    /// The oldest format that knows it.
    pub(crate) fn format(&self) -> u8 {
        match self {
            Action::CreateBucket(spec) if BucketSpecV1::of(spec).is_none() => 3,
            Action::FormCluster(_)
            | Action::RegisterNode(_)
            | Action::CreateBucket(_)
            | Action::DeleteBucket { .. }
            | Action::SetLabels { .. } => 1,
            Action::Report { words, .. } if words.iter().any(is_of_failover) => 3,
            Action::Switchover(_) | Action::Report { .. } | Action::Abort { .. } => 2,
            Action::FormClusterAt { .. } | Action::Finalize { .. } => 11,
            Action::Change { .. } | Action::SetDetection { .. } => 10,
            Action::ChangeMembers { .. } | Action::ShardsMoved { .. } | Action::RemoveNode { .. } => 9,
            Action::LoseRegion { .. } => 8,
            Action::ReportStanding { words, .. } if words.iter().any(is_of_a_lost_region) => 8,
            Action::CrossRegions { .. } => 7,
            Action::Cross { .. } | Action::GiveUpCrossing { .. } => 6,
            Action::ReportStanding { words, .. } if words.iter().any(is_of_a_crossing) => 6,
            Action::SetRegions { .. } => 5,
            Action::ReportStanding { words, .. } if words.iter().any(is_of_a_region_that_joins) => 5,
            Action::SetPolicy { .. } => 4,
            Action::ReportStanding { words, .. } if words.iter().any(is_of_a_turn) => 4,
            Action::SetBucket { .. }
            | Action::ReportStanding { .. }
            | Action::Failover(_)
            | Action::Advance { .. }
            | Action::Observe { .. }
            | Action::Note { .. } => 3,
        }
    }

    /// Whether repeating it changes nothing and gets the same answer: then none needs to be remembered.
    pub(crate) fn is_idempotent(&self) -> bool {
        matches!(
            self,
            Action::Report { .. }
                | Action::ReportStanding { .. }
                | Action::Advance { .. }
                | Action::GiveUpCrossing { .. }
                | Action::ShardsMoved { .. }
        )
    }

    /// What is done, as events and logs name it.
    pub fn verb(&self) -> &'static str {
        match self {
            Action::FormCluster(_) | Action::FormClusterAt { .. } => "form-cluster",
            Action::Finalize { .. } => "finalize-upgrade",
            Action::RegisterNode(_) => "register-node",
            Action::CreateBucket(_) => "create-bucket",
            Action::DeleteBucket { .. } => "delete-bucket",
            Action::SetLabels { .. } => "set-labels",
            Action::Switchover(_) => "switchover",
            Action::Report { .. } => "report",
            Action::Abort { .. } => "abort",
            Action::SetBucket { .. } => "set-bucket",
            Action::SetPolicy { .. } => "set-policy",
            Action::SetRegions { .. } | Action::CrossRegions { .. } => "set-regions",
            Action::Cross { .. } => "cross",
            Action::LoseRegion { .. } => "lose-region",
            Action::GiveUpCrossing { .. } => "give-up",
            Action::ReportStanding { .. } => "report-standing",
            Action::Failover(_) => "failover",
            Action::Advance { .. } => "advance",
            Action::Observe { .. } => "observe",
            Action::Note { .. } => "note",
            Action::ChangeMembers { .. } => "change-members",
            Action::ShardsMoved { .. } => "shards-moved",
            Action::RemoveNode { .. } => "remove-node",
            Action::SetDetection { .. } => "set-bucket",
            Action::Change { ask, .. } => ask.verb(),
        }
    }

    /// To what it is done: the name of a bucket, node or operation, or the cluster's id.
    pub fn subject(&self) -> String {
        match self {
            Action::FormCluster(form) | Action::FormClusterAt { form, .. } => form.cluster.to_string(),
            Action::Finalize { format } => format!("format {format}"),
            Action::RegisterNode(node) => node.name.to_string(),
            Action::CreateBucket(spec) => spec.name.to_string(),
            Action::DeleteBucket { name }
            | Action::SetLabels { name, .. }
            | Action::SetBucket { name, .. }
            | Action::SetPolicy { name, .. }
            | Action::SetRegions { name, .. }
            | Action::CrossRegions { name, .. }
            | Action::LoseRegion { name, .. }
            | Action::SetDetection { name, .. }
            | Action::Cross { name, .. } => name.to_string(),
            Action::Switchover(spec) => format!("{} to {}", selected(&spec.buckets), spec.to),
            Action::Report { words, .. } => words.first().map(|word| word.plan.to_string()).unwrap_or_default(),
            Action::Failover(spec) => {
                let to = spec.to.as_ref().map_or_else(|| "the region with most".to_owned(), ToString::to_string);
                format!("{} to {to}", selected(&spec.buckets))
            }
            Action::Abort { plan, .. } | Action::Advance { plan, .. } => plan.to_string(),
            Action::Observe { bucket, .. } | Action::GiveUpCrossing { bucket, .. } => bucket.to_string(),
            Action::Note { subject, .. } => subject.clone(),
            Action::ChangeMembers { region, .. } => region.to_string(),
            Action::ShardsMoved { region, .. } => region.to_string(),
            Action::RemoveNode { name } => name.to_string(),
            Action::Change { ask, .. } => ask.name().to_string(),
            Action::ReportStanding { words, .. } => words.first().map(|it| it.bucket.to_string()).unwrap_or_default(),
        }
    }
}

/// What is left of a lost primary was first told in format 3.
pub(crate) fn is_of_failover(word: &Word) -> bool {
    word.facts.iter().any(|(_, fact)| matches!(fact, Fact::Fenced(_)))
}

/// Who has followed into another lane was first told in format 4.
fn is_of_a_turn(word: &StandingWord) -> bool {
    matches!(word.copies, Copies::Followed(_))
}

/// Who has stopped or arrived was first told in format 6.
pub(crate) fn is_of_a_crossing(word: &StandingWord) -> bool {
    matches!(word.copies, Copies::Stopped { .. } | Copies::Arrived { .. }) || is_of_a_lost_region(word)
}

/// Who has parted from a lost region was first told in format 8.
fn is_of_a_lost_region(word: &StandingWord) -> bool {
    matches!(word.copies, Copies::Parted { .. })
}

/// Who is filled was first told in format 5.
fn is_of_a_region_that_joins(word: &StandingWord) -> bool {
    matches!(word.copies, Copies::Filled { .. })
}

/// A selection as events name it: a long list by its beginning and a checksum, so that two differ when their lists do.
fn selected(buckets: &Selection) -> String {
    match buckets {
        Selection::Named(names) if names.len() > NAMES_SHOWN_MAX => {
            let (first, rest) = names.split_at(NAMES_SHOWN_MAX);
            let checksum = rest.iter().fold(0, |sum, name| crc32c::crc32c_append(sum, name.as_str().as_bytes()));
            format!("{} and {} more ({checksum:08x})", Selection::Named(first.to_vec()), rest.len())
        }
        short => short.to_string(),
    }
}

/// How many buckets an event names.
const NAMES_SHOWN_MAX: usize = 4;
