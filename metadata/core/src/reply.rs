//! What a command came to: the bytes that travel from the state machine back to whoever asked.

use meridian_types::{AutoFailover, Bucket, BucketId, ClusterId, Joins, NodeId, PlanId, Refusal, RegionId, Turns};
use serde::{Deserialize, Serialize};

use crate::legacy::ReplyV1;

/// The outcome of a command.
pub type Answer = Result<Reply, Refusal>;

/// The newest first byte of an encoded answer. 2: buckets with what version 3 of the state knows of them. An answer is
/// written in the oldest format that can say it, as commands are.
const ANSWER_FORMAT: u8 = 2;

/// What a command that took effect (or had done so before) came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// `FormCluster`, `FormClusterAt`: the cluster that exists now, maybe one formed earlier.
    Formed {
        /// Its identity.
        cluster: ClusterId,
    },
    /// `RegisterNode`.
    Registered {
        /// The node.
        node: NodeId,
        /// Its region's replica number.
        region: RegionId,
    },
    /// `CreateBucket`, `SetLabels`, `SetBucket`, `SetPolicy`, `SetRegions`, `Cross`, `CrossRegions`, `LoseRegion`, `Change`,
    /// `SetDetection`: the bucket as it was right after the command, but for its turns, joins, crossing and detection time, which answers have no place for.
    Bucket(Bucket),
    /// `DeleteBucket`.
    Deleted {
        /// The id that is now retired.
        bucket: BucketId,
    },
    /// `Switchover`, `Abort`: the operation, as it is on record.
    Operation {
        /// Its name.
        plan: PlanId,
    },
    /// `Report`, `ReportStanding`, `GiveUpCrossing`, `Note`, `ChangeMembers`, `ShardsMoved`, `RemoveNode`, `Finalize`: what was still news is on record.
    Reported,
}

impl Reply {
    /// The bucket, as answers have it.
    pub(crate) fn of_bucket(bucket: Bucket) -> Reply {
        let auto = AutoFailover { detect_ms: 0, ..bucket.auto };
        Reply::Bucket(Bucket { turns: Turns::default(), joins: Joins::default(), crossing: None, auto, ..bucket })
    }
}

/// Why bytes are no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// No bytes, or a format of another release.
    #[error("the answer to a metadata command has an unknown format: run one release on all nodes")]
    UnknownFormat,
    /// Not an answer.
    #[error("the answer to a metadata command can't be read: its bytes are damaged")]
    Damaged(#[source] postcard::Error),
}

/// The answer as bytes, with the metadata index it was given at: whoever asked can wait until its own copy
/// has reached it.
pub fn encode(index: u64, answer: &Answer) -> Vec<u8> {
    let older = match answer {
        Ok(reply) => ReplyV1::of(reply).map(Ok),
        Err(refusal) => Some(Err(refusal)),
    };
    // Serialising plain values into a growing vector has no way to fail; were it to, the reader would see a damaged answer.
    match older {
        Some(older) => postcard::to_extend(&(index, older), vec![1]),
        None => postcard::to_extend(&(index, answer), vec![ANSWER_FORMAT]),
    }
    .unwrap_or_default()
}

/// Reads an answer and its index back.
///
/// # Errors
/// [`ReplyError`] when the bytes are anything else.
pub fn decode(bytes: &[u8]) -> Result<(u64, Answer), ReplyError> {
    match bytes.split_first() {
        Some((1, body)) => {
            let (index, older) =
                postcard::from_bytes::<(u64, Result<ReplyV1, Refusal>)>(body).map_err(ReplyError::Damaged)?;
            Ok((index, older.map(Into::into)))
        }
        Some((&ANSWER_FORMAT, body)) => postcard::from_bytes(body).map_err(ReplyError::Damaged),
        _ => Err(ReplyError::UnknownFormat),
    }
}
