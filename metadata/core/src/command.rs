//! Commands: everything that can change the cluster's state, with who asked and when inside.
//!
//! The bytes of a command are what the metadata group's log stores and replicates, so their format is
//! a disk format: a format byte, then postcard. Enum variants and fields are only ever added at the end
//! of a new format; `testdata/commands-v1.hex` must always open.

use std::collections::BTreeSet;
use std::fmt;

use meridian_types::{BucketName, BucketSpec, ClusterId, Labels, NodeName, RegionName};
use serde::{Deserialize, Serialize};

/// The longest encoded command, in bytes. The largest honest one is a `FormCluster` naming every node;
/// anything beyond is refused before it is decoded (RES-1).
pub const COMMAND_BYTES_MAX: usize = 512 << 10;

/// The first byte of an encoded command.
const COMMAND_FORMAT: u8 = 1;

/// Names one attempt to change something, chosen at random by whoever asks first: a command retried
/// under the same id takes effect once and gets the first answer (ONE-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OperationId(pub u128);

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// One change to the cluster's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The same in every retry.
    pub operation: OperationId,
    /// Who asked: a client's or node's name. Shortened to [`crate::event::WHO_BYTES_MAX`] on record.
    pub who: String,
    /// When: the proposer's wall clock, in milliseconds since 1970.
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
        let bytes = postcard::to_extend(self, vec![COMMAND_FORMAT]).map_err(CommandError::Damaged)?;
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
        if *format != COMMAND_FORMAT {
            return Err(CommandError::UnknownFormat(*format));
        }
        let (command, rest) = postcard::take_from_bytes(body).map_err(CommandError::Damaged)?;
        if !rest.is_empty() {
            return Err(CommandError::Trailing(rest.len()));
        }
        Ok(command)
    }
}

impl Action {
    /// What is done, as events and logs name it.
    pub fn verb(&self) -> &'static str {
        match self {
            Action::FormCluster(_) => "form-cluster",
            Action::RegisterNode(_) => "register-node",
            Action::CreateBucket(_) => "create-bucket",
            Action::DeleteBucket { .. } => "delete-bucket",
            Action::SetLabels { .. } => "set-labels",
        }
    }

    /// To what it is done: the name of a bucket or node, or the cluster's id.
    pub fn subject(&self) -> String {
        match self {
            Action::FormCluster(form) => form.cluster.to_string(),
            Action::RegisterNode(node) => node.name.to_string(),
            Action::CreateBucket(spec) => spec.name.to_string(),
            Action::DeleteBucket { name } | Action::SetLabels { name, .. } => name.to_string(),
        }
    }
}
