//! A group's log while no process runs it: for the day when the majority of the metadata group is lost for good.
//!
//! [`Offline::begin`] makes this node the only voter of the group's next generation. That is another group, with a number of its
//! own ([`GroupId::metadata`]): members of the old one are no members of it, however many of them return, and can't
//! outvote it. Position and term leap by [`LEAP`] nevertheless, beyond anything that the lost majority can have reached,
//! for whoever compares positions of the metadata.
//!
//! Deliberately not here: what becomes of the state (its owner stores it, with the mark that is returned), and of old members
//! (`metadata/node`).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::mpsc;

use bytes::Bytes;
use meridian_types::{GroupId, Lsn, NodeId};
use openraft::{EmptyNode, Membership};

use crate::error::OpenError;
use crate::log::{EntryId, GroupHandle, Kind, Log, ReadFailure};
use crate::machine::{Committed, Mark};
use crate::options::Options;
use crate::poison::Poison;
use crate::raft::mark::Position;
use crate::raft::types::{Members, RaftVote, log_id};

/// How far term and position leap: more entries and elections than a lost majority can have had that this node doesn't
/// know of, at a thousand a second for a quarter of an hour, and at one a second for twelve days.
pub const LEAP: u64 = 1 << 20;

/// About how many bytes of the log are read at once.
const PIECE_BYTES: u64 = 1 << 20;

/// The log of a node whose server is stopped. Nobody else can open it meanwhile.
pub struct Offline {
    log: Log,
    node: NodeId,
}

/// Where a group's log stands on this node.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Standing {
    /// The last entry, committed or not.
    pub last: Lsn,
    /// Its term: of two nodes the one with the higher term, then the higher position, has more.
    pub term: u64,
    /// The voters, as the newest membership on this node has them.
    pub voters: Vec<NodeId>,
}

/// Why a group's log can't be used.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The state and the log do not meet.
    #[error("the state is at {state}, but the log begins at {first}: they are not of the same node")]
    Gap {
        /// What the state has.
        state: Lsn,
        /// What the log begins with.
        first: Lsn,
    },
    /// The mark, a vote or a membership is damaged.
    #[error("the log or the mark beside the state is damaged: {0}")]
    Damaged(String),
    /// The operating system refused.
    #[error("the log can't be read or written")]
    Io(#[from] io::Error),
}

impl Offline {
    /// Locks the directory and recovers the log.
    ///
    /// # Errors
    /// See [`OpenError`]; [`OpenError::Locked`] while the server runs.
    pub fn open(options: &Options) -> Result<Offline, OpenError> {
        options.validate()?;
        let log = Log::open(&options.dir, options.node, &options.log, &Poison::new())?;
        Ok(Offline { log, node: options.node })
    }

    /// Where the group stands, given the mark of its state.
    ///
    /// # Errors
    /// [`OfflineError`].
    pub fn standing(&self, group: GroupId, mark: Option<&Mark>) -> Result<Standing, OfflineError> {
        let position = position(mark)?;
        let log = self.log.group(group);
        let mut voters: BTreeSet<u64> = position.members.membership().voter_ids().collect();
        read_from(&log, position.index, |kind, _, payload| {
            if kind == Kind::Membership {
                let members: Membership<u64, EmptyNode> = postcard::from_bytes(payload).map_err(damaged)?;
                voters = members.voter_ids().collect();
            }
            Ok(())
        })?;
        let marked = EntryId { term: position.term, index: position.index };
        let last = log.bounds().1.filter(|last| last.index > marked.index).unwrap_or(marked);
        Ok(Standing { last: Lsn(last.index), term: last.term, voters: voters.into_iter().map(NodeId).collect() })
    }

    /// The application's entries behind the state, whether or not they are known to be committed: whoever restarts from one
    /// log keeps all that it may have acknowledged.
    ///
    /// # Errors
    /// [`OfflineError`].
    pub fn entries(&self, group: GroupId, mark: Option<&Mark>) -> Result<Vec<Committed>, OfflineError> {
        let mut entries = Vec::new();
        read_from(&self.log.group(group), position(mark)?.index, |kind, lsn, payload| {
            if kind == Kind::Normal {
                entries.push(Committed { lsn, payload: payload.clone() });
            }
            Ok(())
        })?;
        Ok(entries)
    }

    /// The position at which a group begins anew.
    pub fn next_position(standing: &Standing) -> Lsn {
        Lsn(standing.last.0 + LEAP)
    }

    /// Makes this node the only voter of a group that has never run here, from [`Offline::next_position`] on. Store the
    /// state with the mark that this returns: until that is done, nothing has changed.
    ///
    /// # Errors
    /// [`OfflineError`].
    pub fn begin(&self, group: GroupId, standing: &Standing) -> Result<Mark, OfflineError> {
        let log = self.log.group(group);
        let term = standing.term + LEAP;
        let vote = postcard::to_allocvec(&RaftVote::new(term, self.node.0)).map_err(damaged)?;
        let (told, saved) = mpsc::sync_channel(1);
        let notice = move |result| {
            // Whoever asked is waiting right below.
            let _ = told.send(result);
        };
        log.save_vote(Bytes::from(vote), Box::new(notice));
        saved.recv().map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))??;
        let index = Offline::next_position(standing).0;
        let nodes = BTreeMap::from([(self.node.0, EmptyNode::new())]);
        let alone = Membership::new(vec![BTreeSet::from([self.node.0])], nodes);
        let alone = alone.map_err(|error| OfflineError::Damaged(error.to_string()))?;
        let members = Members::new(Some(log_id(EntryId { term, index })), alone);
        Ok(Position { term, index, members }.encode())
    }
}

fn position(mark: Option<&Mark>) -> Result<Position, OfflineError> {
    let position = mark.map(Position::decode).transpose();
    Ok(position.map_err(|error| OfflineError::Damaged(error.to_string()))?.unwrap_or_default())
}

/// Every entry behind `after`, in order.
fn read_from(
    log: &GroupHandle,
    after: u64,
    mut each: impl FnMut(Kind, Lsn, &Bytes) -> Result<(), OfflineError>,
) -> Result<(), OfflineError> {
    let Some(last) = log.bounds().1.filter(|last| last.index > after) else { return Ok(()) };
    // Position 0 is Raft's own; a state that has nothing yet is at 0, too.
    let mut from = if after == 0 { log.first() } else { after + 1 };
    if from < log.first() || (after == 0 && from > 1) {
        return Err(OfflineError::Gap { state: Lsn(after), first: Lsn(log.first()) });
    }
    while from <= last.index {
        let entries = log.read(from, last.index + 1, PIECE_BYTES).map_err(|failure| match failure {
            ReadFailure::Trimmed { first } => OfflineError::Gap { state: Lsn(after), first: Lsn(first) },
            ReadFailure::Io(error) => error.into(),
        })?;
        let Some(end) = entries.last().map(|entry| entry.id.index) else { break };
        for entry in &entries {
            each(entry.kind, Lsn(entry.id.index), &entry.payload)?;
        }
        from = end + 1;
    }
    Ok(())
}

fn damaged(error: postcard::Error) -> OfflineError {
    OfflineError::Damaged(error.to_string())
}
