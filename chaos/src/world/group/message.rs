//! What the members of a group say to each other.

use bytes::Bytes;

use super::journal::Place;
use crate::world::disk::Record;

/// One message.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    /// Would you vote for me? Changes nothing.
    PreVote {
        term: u64,
        end: Place,
    },
    /// `term`: what was asked for, or, if that is not granted, the member's own.
    PreVoted {
        term: u64,
        granted: bool,
    },
    /// `asked`: by the leader, who wants this member to take over.
    Vote {
        term: u64,
        end: Place,
        asked: bool,
    },
    Voted {
        term: u64,
        granted: bool,
    },
    /// Entries behind `previous`, or none: a heartbeat.
    Append {
        term: u64,
        previous: Place,
        records: Vec<Record>,
        commit: u64,
        round: u64,
    },
    /// Up to where the log is the leader's and synced, if it continues at `previous`; the last position there, and the last round heard of.
    Appended {
        term: u64,
        matched: Option<u64>,
        last: u64,
        round: u64,
    },
    /// A state as of `at`, for one whose log ends before the leader's begins.
    Snapshot {
        term: u64,
        at: Place,
        pieces: Vec<Bytes>,
        life: u64,
    },
    /// Stand for election now, if you have everything up to `end`.
    TakeOver {
        term: u64,
        end: Place,
    },
}

impl Message {
    /// About how long it is.
    pub(crate) fn bytes(&self) -> usize {
        64 + match self {
            Message::Append { records, .. } => records.iter().map(Record::size).sum(),
            Message::Snapshot { pieces, .. } => pieces.iter().map(Bytes::len).sum(),
            Message::PreVote { .. }
            | Message::PreVoted { .. }
            | Message::Vote { .. }
            | Message::Voted { .. }
            | Message::Appended { .. }
            | Message::TakeOver { .. } => 0,
        }
    }
}
