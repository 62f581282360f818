//! One error enum per operation of the seam; each variant is a decision its caller can take.

use std::io;
use std::path::PathBuf;

use meridian_types::{GroupId, Lsn, NodeId};

/// Why a data directory can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process works in this directory.
    #[error("another process already uses the data directory {}: stop it, or give this node a directory of its own", dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// The log is damaged where it can't be a torn write (DUR-3). Nothing was changed.
    #[error(
        "the write-ahead log is damaged in {} at offset {offset} ({detail}); it may hold entries of {}: rebuild this node from its peers, or restore the file",
        file.display(), join(groups)
    )]
    Corrupt {
        /// The segment.
        file: PathBuf,
        /// Where the first bad record begins, in bytes.
        offset: u64,
        /// The groups that have records in this log: any of them may be the one that was hit.
        groups: Vec<GroupId>,
        /// What is wrong there.
        detail: String,
    },
    /// Written by another version.
    #[error("{} has log format {found}; this version reads format {known}: use the version that wrote it, or a newer one", file.display())]
    UnknownFormat {
        /// The segment.
        file: PathBuf,
        /// The format found.
        found: u32,
        /// The newest format this version reads.
        known: u32,
    },
    /// The directory belongs to another node.
    #[error("the data directory {} belongs to node {found}, not to node {expected}: check the node's name and directory", dir.display())]
    WrongNode {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        found: NodeId,
        /// Who wants it.
        expected: NodeId,
    },
    /// An option has a value that can't work.
    #[error("the consensus option `{option}` is not valid: {reason}")]
    Options {
        /// The option.
        option: &'static str,
        /// Why.
        reason: String,
    },
    /// The operating system refused.
    #[error("cannot open the write-ahead log: {action} {} failed", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

fn join(groups: &[GroupId]) -> String {
    match groups {
        [] => "an unknown group".to_owned(),
        _ => groups.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

/// Why a group can't be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It runs already.
    #[error("group {0} is already running on this node")]
    Running(GroupId),
    /// The node is shutting down, or a storage error has stopped it.
    #[error("consensus has stopped on this node")]
    Stopped,
    /// The state is ahead of the log or behind what the log still has: one of the two directories was replaced.
    #[error(
        "the state of group {group} is at {state}, but its log holds {first} to {last}: state and log are not of the same node; rebuild this node from its peers"
    )]
    Mismatch {
        /// The group.
        group: GroupId,
        /// What the state has applied.
        state: Lsn,
        /// The first position the log holds.
        first: Lsn,
        /// The last one.
        last: Lsn,
    },
    /// The state machine failed.
    #[error("the state of the group can't be read")]
    State(#[source] StateError),
    /// Raft refused to start.
    #[error("group {group} can't be started: {detail}")]
    Raft {
        /// The group.
        group: GroupId,
        /// What it said.
        detail: String,
    },
}

/// What a state machine reports when it can't go on: the store failed or its data is damaged. Fatal for the node.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct StateError {
    message: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl StateError {
    /// An error that has no deeper cause.
    pub fn new(message: impl Into<String>) -> StateError {
        StateError { message: message.into(), source: None }
    }

    /// An error with its cause.
    pub fn with_source(
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> StateError {
        StateError { message: message.into(), source: Some(source.into()) }
    }
}

/// Why a proposal was not applied, or is not known to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Not here. It did not and will not take effect.
    #[error("this node does not lead the group{}", leader_hint(*leader))]
    NotLeader {
        /// Who leads, if known.
        leader: Option<NodeId>,
    },
    /// The bound on bytes in flight is reached (RES-1). It did not take effect; try again after a pause.
    #[error("too many proposals are in flight; try again after a pause")]
    Full,
    /// More bytes than any entry may have. It did not take effect, and never can.
    #[error("the proposal has {bytes} bytes; at most {bytes_max} are possible")]
    TooLarge {
        /// What was proposed.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
    /// No space for a new log segment. It did not take effect; reads go on, and writes too once space returns.
    #[error("the disk of the write-ahead log is full")]
    DiskFull,
    /// Leadership or the node was lost on the way: it may have taken effect, or may yet.
    #[error("the group changed its leader while the proposal was under way; whether it was applied is unknown")]
    Unknown,
    /// The node is shutting down or was stopped by a storage error, before the proposal was accepted.
    #[error("consensus has stopped on this node")]
    Stopped,
}

fn leader_hint(leader: Option<NodeId>) -> String {
    leader.map_or_else(|| "; no leader is known".to_owned(), |node| format!("; node {node} does"))
}

/// Why a linearizable read can't be served here now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Not here.
    #[error("this node does not lead the group{}", leader_hint(*leader))]
    NotLeader {
        /// Who leads, if known.
        leader: Option<NodeId>,
    },
    /// It could not be confirmed that this node still leads.
    #[error("no quorum confirmed that this node still leads the group")]
    NoQuorum,
    /// The node is shutting down or was stopped by a storage error.
    #[error("consensus has stopped on this node")]
    Stopped,
}

/// Why a piece of the log can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadLogError {
    /// The log no longer reaches back so far.
    #[error("the log begins at {oldest}")]
    Trimmed {
        /// The first position it still has.
        oldest: Lsn,
    },
    /// The disk failed or its data is damaged (DUR-3).
    #[error("the log can't be read")]
    Io(#[source] io::Error),
    /// The node is shutting down.
    #[error("consensus has stopped on this node")]
    Stopped,
}

/// Why a change of members or leader did not happen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Not here.
    #[error("this node does not lead the group{}", leader_hint(*leader))]
    NotLeader {
        /// Who leads, if known.
        leader: Option<NodeId>,
    },
    /// Another change is under way; try again when it is done.
    #[error("another change of the group's members is under way")]
    InProgress,
    /// It can never succeed as asked.
    #[error("the change of members was refused: {0}")]
    Invalid(String),
    /// No answer in time: it may have happened, or may yet.
    #[error("the change was not confirmed in time; whether it happened is unknown")]
    Unknown,
    /// The node is shutting down.
    #[error("consensus has stopped on this node")]
    Stopped,
}

/// What stopped consensus on this node for good: the process must exit non-zero and be started anew.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("consensus stopped{}: {message}", group.map(|group| format!(" in group {group}")).unwrap_or_default())]
pub struct FatalError {
    /// The group it happened in; `None` when the shared log failed.
    pub group: Option<GroupId>,
    /// What happened, with its causes.
    pub message: String,
}
