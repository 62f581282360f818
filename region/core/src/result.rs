//! What an entry came to, as the bytes that the apply hands back to whoever proposed it.
//!
//! Three kinds of answer for three kinds of proposer: [`WriteResult`] for a client's write, kept for
//! retries (ONE-1); [`FrameResult`] for the receiver of a lane; [`ControlResult`] for the leader's own
//! housekeeping. Each begins with a format byte and a byte saying which it is.

use bytes::Bytes;
use meridian_types::{BucketId, Epoch, Hlc, Lsn, Outcome, Refusal, SetHash};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The first byte of every result.
pub const RESULT_FORMAT: u8 = 1;

const WRITE: u8 = 1;
const FRAME: u8 = 2;
const CONTROL: u8 = 3;

/// What a client's write came to. The same bytes answer every retry of it, in every region (ONE-1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteResult {
    /// The entry's position in its *origin's* log; for the session token and for counting acknowledgements.
    pub lsn: Lsn,
    /// Its timestamp.
    pub hlc: Hlc,
    /// What came of it; a refusal here was decided by the log and changed nothing.
    pub outcome: Result<Outcome, Refusal>,
}

/// What became of a frame. Everything but `Applied` changed nothing at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FrameResult {
    /// Applied: the watermark stands at the frame's last position.
    Applied {
        /// The watermark of its source and lane.
        watermark: Lsn,
        /// Buckets whose digest differed from the source's at equal positions, found by this frame.
        diverged: Vec<Divergence>,
    },
    /// It was applied before: acknowledge it again.
    AlreadyApplied {
        /// The watermark of its source and lane.
        watermark: Lsn,
    },
    /// It does not continue at the watermark: the source must rewind to it (ORD-1).
    Gap {
        /// The watermark of its source and lane.
        watermark: Lsn,
    },
    /// It holds entries of an epoch below the bucket's fence (FEN-2).
    Fenced {
        /// The bucket.
        bucket: BucketId,
        /// The entry's epoch.
        epoch: Epoch,
        /// The bucket's fence.
        fence: Epoch,
    },
    /// It holds entries of a bucket that has diverged: applying more would spread the damage.
    Diverged {
        /// What differed, when it was found.
        divergence: Divergence,
    },
    /// It is not a frame for this shard, or its entries are damaged or not its source's own.
    Damaged {
        /// What is wrong with it, for a person.
        reason: String,
    },
    /// Too much of it belongs to an epoch that has not begun here: offer it again once the old primary's seal is here.
    Early {
        /// The bucket.
        bucket: BucketId,
        /// The epoch in force.
        epoch: Epoch,
    },
    /// The others are about to go on without its source, which was given up for lost: offer it again once that is settled.
    Lost {
        /// The bucket.
        bucket: BucketId,
    },
}

/// Two replicas that have seen the same writes and are not equal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Divergence {
    /// The bucket.
    pub bucket: BucketId,
    /// The digest here.
    pub ours: SetHash,
    /// Live keys here.
    pub our_keys: u64,
    /// The digest at the source.
    pub theirs: SetHash,
    /// Live keys at the source.
    pub their_keys: u64,
}

/// What became of an entry that no client waits for: expiry, fence, seal, bucket removal, client expiry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlResult {
    /// How many keys, results or clients it removed.
    pub removed: u64,
    /// Whether there is more to remove: propose the same again.
    pub more: bool,
    /// Why it changed nothing, if it was refused.
    pub refused: Option<Refusal>,
}

/// The bytes are no result of the expected kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are no result of a {0} in a format this version knows")]
pub struct ResultError(&'static str);

macro_rules! result_bytes {
    ($name:ident, $tag:ident, $what:literal) => {
        impl $name {
            /// The result as bytes.
            pub fn encode(&self) -> Bytes {
                encode($tag, self)
            }

            /// Reads the result back.
            ///
            /// # Errors
            /// [`ResultError`] when the bytes are not that.
            pub fn decode(bytes: &[u8]) -> Result<$name, ResultError> {
                decode($tag, bytes).ok_or(ResultError($what))
            }
        }
    };
}

result_bytes!(WriteResult, WRITE, "write");
result_bytes!(FrameResult, FRAME, "frame");
result_bytes!(ControlResult, CONTROL, "control entry");

fn encode(tag: u8, result: &impl Serialize) -> Bytes {
    let mut bytes = Vec::with_capacity(48);
    bytes.push(RESULT_FORMAT);
    bytes.push(tag);
    // Serialising plain values into a growing vector has no way to fail.
    postcard::to_extend(result, bytes).map(Bytes::from).unwrap_or_default()
}

fn decode<T: DeserializeOwned>(tag: u8, bytes: &[u8]) -> Option<T> {
    match bytes.split_first_chunk()? {
        ([RESULT_FORMAT, found], body) if *found == tag => postcard::from_bytes(body).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use meridian_types::{RefusalKind, RegionId, Version};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_result_comes_back_as_it_went_and_as_nothing_else() {
        let written = WriteResult {
            lsn: Lsn(9),
            hlc: Hlc(77),
            outcome: Ok(Outcome::Written { version: Version { hlc: Hlc(77), region: RegionId(2) } }),
        };
        assert_eq!(WriteResult::decode(&written.encode()), Ok(written.clone()));
        assert!(FrameResult::decode(&written.encode()).is_err());
        let refused = WriteResult { outcome: Err(Refusal::new(RefusalKind::Conflict, "no")), ..written };
        assert_eq!(WriteResult::decode(&refused.encode()), Ok(refused));
        let gap = FrameResult::Gap { watermark: Lsn(3) };
        assert_eq!(FrameResult::decode(&gap.encode()), Ok(gap));
        let control = ControlResult { removed: 3, more: true, refused: None };
        assert_eq!(ControlResult::decode(&control.encode()), Ok(control));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_result_or_a_clear_error(bytes in prop::collection::vec(any::<u8>(), 0..64), tag in 0u8..4) {
            let mut bytes = bytes;
            bytes.splice(0..0, [RESULT_FORMAT, tag]);
            let _ = (WriteResult::decode(&bytes), FrameResult::decode(&bytes), ControlResult::decode(&bytes));
        }
    }
}
