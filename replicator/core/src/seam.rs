//! What a source's log and a target's groups say, as values.

use bytes::Bytes;
pub use meridian_types::Head;
use meridian_types::frame::DigestNote;
use meridian_types::{Hlc, Lsn, NodeId};

/// An entry as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TailEntry {
    /// Its position.
    pub lsn: Lsn,
    /// Its bytes (`types::entry`), never re-encoded.
    pub entry: Bytes,
    /// The digest of its (bucket, shard) right after it, where the source still knows it.
    pub note: Option<DigestNote>,
}

/// A run of the log.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Tail {
    /// Entries in rising order.
    pub entries: Vec<TailEntry>,
    /// Everything up to here was examined; at least the last entry's position.
    pub reached: Lsn,
    /// Whether `reached` was the end of the log at some moment after the read was asked for.
    pub at_head: bool,
    /// Every entry of this region after `reached` has a greater timestamp; 0 when not known.
    pub closed: Hlc,
    /// Whether the region had held its lease for long enough when the read was asked for: see [`meridian_types::frame::Echo`].
    pub tenured: bool,
}

/// Why a log could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TailError {
    /// The next entry was purged.
    #[error("the log begins at {oldest}")]
    Trimmed {
        /// The oldest entry that is left.
        oldest: Lsn,
    },
    /// It may pass.
    #[error("the log can't be read now: {0}")]
    Unavailable(String),
}

/// Why a frame was not applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// It does not follow the watermark.
    #[error("the frame does not follow the watermark {watermark}")]
    Rewind {
        /// Where the lane stands.
        watermark: Lsn,
    },
    /// The digests at equal positions differ.
    #[error("the replica has diverged: {detail}")]
    Diverged {
        /// What differs.
        detail: String,
    },
    /// It holds entries of an older epoch.
    #[error("the frame is of an older epoch")]
    Fenced,
    /// Another node leads the shard here.
    #[error("this node does not lead the shard")]
    NotLeader {
        /// Who does, if known.
        leader: Option<NodeId>,
    },
    /// It may pass, and the frame may even have been applied.
    #[error("the frame can't be applied now: {0}")]
    Unavailable(String),
}
