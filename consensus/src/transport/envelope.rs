//! What travels between nodes: a version byte, then postcard. Everything in it comes from a peer and is checked.

use bytes::Bytes;
use meridian_types::{GroupId, NodeId};
use openraft::AsyncRuntime;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, TransferLeaderResponse, VoteRequest,
    VoteResponse,
};
use serde::{Deserialize, Serialize};

use crate::raft::types::{RaftVote, SnapshotMeta, TypeConfig};

/// The version this node speaks.
const VERSION: u8 = 1;

/// The largest message either side accepts: the largest entry, behind a batch that was just short of being full.
pub(crate) const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// One message.
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub(crate) struct Envelope<RT: AsyncRuntime> {
    /// Must be whom the certificate names.
    pub(crate) sender: NodeId,
    /// Must be whoever receives it.
    pub(crate) target: NodeId,
    pub(crate) items: Vec<Item<RT>>,
}

#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub(crate) enum Item<RT: AsyncRuntime> {
    Question { group: GroupId, number: u64, question: Question<RT> },
    Answer { number: u64, answer: Answer<RT> },
}

#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub(crate) enum Question<RT: AsyncRuntime> {
    Append(AppendEntriesRequest<TypeConfig<RT>>),
    Vote(VoteRequest<TypeConfig<RT>>),
    PreVote(VoteRequest<TypeConfig<RT>>),
    Transfer(TransferLeaderRequest<TypeConfig<RT>>),
    /// A snapshot begins; a former one of this sender for this group is given up.
    SnapshotBegin,
    /// A piece of it, with its crc32c.
    SnapshotPiece {
        piece: Bytes,
        checksum: u32,
    },
    /// All of it was sent: the checksum of the pieces' checksums.
    SnapshotEnd {
        vote: RaftVote,
        meta: SnapshotMeta,
        checksum: u32,
    },
}

impl<RT: AsyncRuntime> Question<RT> {
    /// The term of the leader that asks, where only a leader does.
    pub(crate) fn leads_in(&self) -> Option<u64> {
        match self {
            Question::Append(append) => Some(append.vote.leader_id.term),
            Question::SnapshotEnd { vote, .. } => Some(vote.leader_id.term),
            Question::Vote(_)
            | Question::PreVote(_)
            | Question::Transfer(_)
            | Question::SnapshotBegin
            | Question::SnapshotPiece { .. } => None,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub(crate) enum Answer<RT: AsyncRuntime> {
    Append(AppendEntriesResponse<TypeConfig<RT>>),
    Vote(VoteResponse<TypeConfig<RT>>),
    Transfer(TransferLeaderResponse<TypeConfig<RT>>),
    /// The piece was taken.
    SnapshotPiece,
    /// Installed, or refused by a higher vote.
    SnapshotEnd(RaftVote),
    /// The group does not run there, or can't answer; in words.
    Failed(String),
}

/// Why bytes are no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EnvelopeError {
    #[error("the message of a peer is empty")]
    Empty,
    #[error("a peer sent a message of version {0}; this version speaks {VERSION}")]
    Version(u8),
    #[error("the message of a peer is damaged")]
    Damaged,
}

impl<RT: AsyncRuntime> Envelope<RT> {
    pub(crate) fn encode(&self) -> Result<Bytes, EnvelopeError> {
        postcard::to_extend(self, vec![VERSION]).map(Bytes::from).map_err(|_| EnvelopeError::Damaged)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        match bytes.split_first() {
            None => Err(EnvelopeError::Empty),
            Some((&VERSION, rest)) => postcard::from_bytes(rest).map_err(|_| EnvelopeError::Damaged),
            Some((version, _)) => Err(EnvelopeError::Version(*version)),
        }
    }
}

impl<RT: AsyncRuntime> Question<RT> {
    /// About how large it is on the wire.
    pub(crate) fn bytes(&self) -> usize {
        const FRAME: usize = 64;
        match self {
            Question::Append(append) => {
                append.entries.iter().map(|entry| FRAME + payload_bytes(entry)).sum::<usize>() + FRAME
            }
            Question::SnapshotPiece { piece, .. } => FRAME + piece.len(),
            Question::SnapshotEnd { .. } => 4 * FRAME,
            Question::Vote(_) | Question::PreVote(_) | Question::Transfer(_) | Question::SnapshotBegin => FRAME,
        }
    }
}

fn payload_bytes(entry: &crate::raft::types::RaftEntry) -> usize {
    match &entry.payload {
        openraft::EntryPayload::Normal(payload) => payload.0.len(),
        openraft::EntryPayload::Membership(_) => 256,
        openraft::EntryPayload::Blank => 0,
    }
}

#[cfg(test)]
mod tests {
    use openraft::EntryPayload;
    use openraft::impls::Vote;
    use openraft_rt_tokio::TokioRuntime;
    use proptest::prelude::*;

    use super::*;
    use crate::log::EntryId;
    use crate::raft::types::{Payload, RaftEntry, log_id};

    fn envelope(payloads: &[Vec<u8>]) -> Envelope<TokioRuntime> {
        let entry = |(index, payload): (usize, &Vec<u8>)| RaftEntry {
            log_id: log_id(EntryId { term: 3, index: index as u64 }),
            payload: EntryPayload::Normal(Payload(Bytes::copy_from_slice(payload))),
        };
        let append = AppendEntriesRequest {
            vote: Vote::new_committed(3, 9),
            prev_log_id: None,
            entries: payloads.iter().enumerate().map(entry).collect(),
            leader_commit: Some(log_id(EntryId { term: 2, index: 1 })),
        };
        let item = Item::Question { group: GroupId(4), number: 17, question: Question::Append(append) };
        Envelope { sender: NodeId(1), target: NodeId(2), items: vec![item] }
    }

    proptest! {
        #[test]
        fn a_message_reads_back_as_it_was_sent(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..5)) {
            let sent = envelope(&payloads).encode().unwrap();
            let read = Envelope::<TokioRuntime>::decode(&sent).unwrap();
            prop_assert_eq!(read.encode().unwrap(), sent);
        }

        #[test]
        fn a_changed_or_cut_message_never_panics(
            at: prop::sample::Index, value: u8, cut: prop::sample::Index, junk in prop::collection::vec(any::<u8>(), 0..100)
        ) {
            let mut bytes = envelope(&[b"payload".to_vec()]).encode().unwrap().to_vec();
            let at = at.index(bytes.len());
            bytes[at] = value;
            let _ = Envelope::<TokioRuntime>::decode(&bytes);
            let _ = Envelope::<TokioRuntime>::decode(&bytes[..cut.index(bytes.len())]);
            let _ = Envelope::<TokioRuntime>::decode(&junk);
        }
    }
}
