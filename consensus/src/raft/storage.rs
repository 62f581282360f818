//! openraft's view of one group's part of the shared log.

use std::fmt::Debug;
use std::io;
use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use meridian_failpoint::failpoint;
use openraft::entry::RaftEntry as _;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::alias::OneshotSenderOf;
use openraft::type_config::{OneshotSender, TypeConfigExt};
use openraft::{AsyncRuntime, EntryPayload, LogState, Membership, OptionalSend, RaftLogReader};

use super::types::{Payload, RaftEntry, RaftLogId, RaftVote, TypeConfig, entry_id, log_id};
use crate::log::{Entry, GroupHandle, Kind, ReadFailure};

/// About how many bytes of entries go into one message to a follower: enough to fill a link, little enough to
/// pipeline and to keep a slow follower's queue small (RES-1).
const MESSAGE_BYTES: u64 = 1 << 20;

/// One group's log for openraft. Also its reader.
pub(crate) struct Storage<RT> {
    log: GroupHandle,
    runtime: PhantomData<fn() -> RT>,
}

impl<RT> Storage<RT> {
    pub(crate) fn new(log: GroupHandle) -> Storage<RT> {
        Storage { log, runtime: PhantomData }
    }
}

impl<RT> Clone for Storage<RT> {
    fn clone(&self) -> Self {
        Storage::new(self.log.clone())
    }
}

impl<RT: AsyncRuntime> RaftLogReader<TypeConfig<RT>> for Storage<RT> {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<RaftEntry>, io::Error> {
        let (from, to) = bounds(&range);
        let mut from = from.max(self.log.first());
        let mut entries = Vec::new();
        while from < to {
            let more = read(&self.log, from, to, MESSAGE_BYTES)?;
            let Some(last) = more.last() else { break };
            from = last.id.index + 1;
            for entry in more {
                entries.push(from_log(entry)?);
            }
        }
        Ok(entries)
    }

    /// In pieces: what a restarted node or a follower has to apply may be more than fits in memory.
    async fn entries_stream<R>(&mut self, range: R) -> impl Stream<Item = Result<RaftEntry, io::Error>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = bounds(&range);
        let pieces = futures::stream::unfold((self.log.clone(), from, to), |(log, from, to)| async move {
            let entries = if from < to { read(&log, from, to, MESSAGE_BYTES) } else { Ok(Vec::new()) };
            match entries {
                Ok(entries) => {
                    let next = entries.last()?.id.index + 1;
                    let piece: Vec<_> = entries.into_iter().map(from_log).collect();
                    Some((piece, (log, next, to)))
                }
                Err(error) => Some((vec![Err(error)], (log, to, to))),
            }
        });
        Box::pin(pieces.map(futures::stream::iter).flatten())
    }

    async fn read_vote(&mut self) -> Result<Option<RaftVote>, io::Error> {
        self.log.vote().map(|vote| postcard::from_bytes(&vote).map_err(invalid)).transpose()
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<RaftEntry>, io::Error> {
        read(&self.log, start, end, MESSAGE_BYTES)?.into_iter().map(from_log).collect()
    }
}

impl<RT: AsyncRuntime> RaftLogStorage<TypeConfig<RT>> for Storage<RT> {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig<RT>>, io::Error> {
        let (purged, last) = self.log.bounds();
        Ok(LogState { last_purged_log_id: purged.map(log_id), last_log_id: last.map(log_id) })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> Result<(), io::Error> {
        let bytes = postcard::to_allocvec(vote).map_err(invalid)?;
        let (sender, saved) = TypeConfig::<RT>::oneshot();
        let notice = move |result| answer::<RT>(sender, result);
        failpoint("raft.vote.before");
        self.log.save_vote(Bytes::from(bytes), Box::new(notice));
        let saved = saved.await.unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()));
        failpoint("raft.vote.after");
        saved
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> Result<(), io::Error> {
        self.log.set_committed(committed.as_ref().map(entry_id));
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<RaftLogId>, io::Error> {
        Ok(self.log.committed().map(log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig<RT>>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().map(to_log).collect::<Result<Vec<_>, _>>()?;
        self.log.wait_for_room().await;
        failpoint("raft.append.before");
        self.log.append(entries, Box::new(move |result| callback.io_completed(result)));
        failpoint("raft.append.after");
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<RaftLogId>) -> Result<(), io::Error> {
        self.log.truncate(last.as_ref().map(entry_id))
    }

    async fn purge(&mut self, up_to: RaftLogId) -> Result<(), io::Error> {
        failpoint("raft.purge.before");
        let purged = self.log.purge(entry_id(&up_to));
        failpoint("raft.purge.after");
        purged
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(from) => *from,
        Bound::Excluded(before) => before + 1,
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(last) => last + 1,
        Bound::Excluded(to) => *to,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}

fn answer<RT: AsyncRuntime>(to: OneshotSenderOf<TypeConfig<RT>, io::Result<()>>, result: io::Result<()>) {
    // Whoever waited is gone: the group was stopped.
    let _ = to.send(result);
}

/// Entries from memory, or else from disk. A disk read blocks the group's own task for one chunk, seldom:
/// what is applied or sent is almost always in memory.
fn read(log: &GroupHandle, from: u64, to: u64, bytes_max: u64) -> Result<Vec<Entry>, io::Error> {
    log.read(from, to, bytes_max).map_err(|failure| match failure {
        ReadFailure::Trimmed { first } => {
            io::Error::new(io::ErrorKind::NotFound, format!("entry {from} was purged; the log begins at {first}"))
        }
        ReadFailure::Io(error) => error,
    })
}

fn to_log(entry: RaftEntry) -> Result<Entry, io::Error> {
    let id = entry_id(&entry.log_id());
    let (kind, payload) = match entry.payload {
        EntryPayload::Normal(Payload(bytes)) => (Kind::Normal, bytes),
        EntryPayload::Blank => (Kind::Blank, Bytes::new()),
        EntryPayload::Membership(members) => {
            (Kind::Membership, Bytes::from(postcard::to_allocvec(&members).map_err(invalid)?))
        }
    };
    Ok(Entry { id, kind, payload })
}

fn from_log(entry: Entry) -> Result<RaftEntry, io::Error> {
    let payload = match entry.kind {
        Kind::Normal => EntryPayload::Normal(Payload(entry.payload)),
        Kind::Membership => {
            let members: Membership<u64, openraft::EmptyNode> =
                postcard::from_bytes(&entry.payload).map_err(invalid)?;
            EntryPayload::Membership(members)
        }
        Kind::Blank | Kind::Vote | Kind::Committed | Kind::Truncate | Kind::Purge | Kind::Seal | Kind::Synced => {
            EntryPayload::Blank
        }
    };
    Ok(RaftEntry { log_id: log_id(entry.id), payload })
}

fn invalid(error: postcard::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
