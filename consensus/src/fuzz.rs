//! Doors for the fuzzer of `chaos`: one function per decoder of bytes that come from a disk or a peer and that nobody
//! outside this crate calls. Each says whether the bytes were accepted, and holds what was to the decoder's law:
//! encoded again, it reads back as the same. Not part of the crate's interface.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use meridian_types::{GroupId, NodeId};
use openraft::impls::Vote;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest, VoteResponse};
use openraft::{EmptyNode, EntryPayload, Membership, StoredMembership};
use openraft_rt_tokio::TokioRuntime;

use crate::log::EntryId;
use crate::log::record::{self, HEADER_BYTES, Header, Kind};
use crate::log::recovery::{Recovered, recover};
use crate::log::segment::{self, RECORDS_AT};
use crate::machine::Mark;
use crate::raft::mark::Position;
use crate::raft::snapshot::{self, Spool};
use crate::raft::types::{Payload, RaftEntry, RaftVote, log_id};
use crate::transport::envelope::{Answer, Envelope, Item, Question};

const SEGMENT: u64 = 1;
const NODE: NodeId = NodeId(7);

/// One record of the write-ahead log.
pub fn record(bytes: &[u8]) -> bool {
    let Ok(header) = Header::decode(bytes) else { return false };
    let Ok(payload) = record::verify(SEGMENT, &header, bytes) else { return false };
    let mut again = Vec::new();
    header.encode(SEGMENT, payload, &mut again);
    assert_eq!(Header::decode(&again), Ok(header), "a record's header must come back");
    assert_eq!(record::verify(SEGMENT, &header, &again), Ok(payload), "a record's payload must come back");
    true
}

/// Makes the checksum of a record right, if there is room for one.
pub fn seal_record(bytes: &mut [u8]) {
    let Ok(header) = Header::decode(bytes) else { return };
    let Some(payload) = bytes.get(HEADER_BYTES..HEADER_BYTES + header.length) else { return };
    let crc = record::checksum(SEGMENT, &bytes[..HEADER_BYTES], payload);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
}

/// The records of a whole segment, as a node finds them when it starts. Whatever is accepted, cut or refused, a
/// second start must see the same.
pub fn log(bytes: &[u8]) -> bool {
    with_dir(|dir| {
        let mut file = segment::header(SEGMENT, RECORDS_AT + bytes.len() as u64, NODE);
        file.extend_from_slice(bytes);
        std::fs::write(segment::path(dir, SEGMENT), file)?;
        let first = recover(dir, NODE);
        let second = recover(dir, NODE);
        match (&first, &second) {
            (Ok(first), Ok(second)) => assert_eq!(summary(first), summary(second), "a restart must change nothing"),
            (Err(_), Err(_)) => {}
            _ => panic!("a restart must judge the log alike: {first:?}, then {second:?}"),
        }
        Ok(first.is_ok_and(|recovered| recovered.batch > 1))
    })
}

/// Makes the checksums of all records right that follow each other from the beginning.
pub fn seal_log(bytes: &mut [u8]) {
    let mut at = 0;
    while let Ok(header) = Header::decode(&bytes[at..]) {
        seal_record(&mut bytes[at..]);
        at = (at + record::size(header.length)).min(bytes.len());
    }
}

/// A group's vote, as the log holds it.
pub fn vote(bytes: &[u8]) -> bool {
    postcard_law::<RaftVote>(bytes)
}

/// A group's members, as the log holds them.
pub fn members(bytes: &[u8]) -> bool {
    postcard_law::<Membership<u64, EmptyNode>>(bytes)
}

/// A mark: its position (u64, little-endian), then what is stored with the state.
pub fn mark(bytes: &[u8]) -> bool {
    let Some((lsn, rest)) = bytes.split_first_chunk() else { return false };
    let mark = Mark { lsn: meridian_types::Lsn(u64::from_le_bytes(*lsn)), bytes: Bytes::copy_from_slice(rest) };
    let Ok(position) = Position::decode(&mark) else { return false };
    let again = Position::decode(&position.encode());
    assert_eq!(again.ok().as_ref(), Some(&position), "a mark must come back");
    true
}

/// A message of a peer.
pub fn envelope(bytes: &[u8]) -> bool {
    let Ok(message) = Envelope::<TokioRuntime>::decode(bytes) else { return false };
    let Ok(sent) = message.encode() else { panic!("what was read must be writable") };
    let again = Envelope::<TokioRuntime>::decode(&sent).and_then(|message| message.encode());
    assert_eq!(again, Ok(sent), "a message must come back");
    true
}

/// A received snapshot on disk.
pub fn spool(bytes: &[u8]) -> bool {
    with_dir(|dir| {
        let path = dir.join("a.snapshot");
        std::fs::write(&path, bytes)?;
        let Ok(pieces) = snapshot::pieces(&path) else { return Ok(false) };
        let Ok(pieces) = pieces.collect::<Result<Vec<_>, _>>() else { return Ok(false) };
        assert_eq!(spooled(dir, &pieces)?, spooled(dir, &pieces)?, "pieces must come back");
        Ok(true)
    })
}

/// Makes the checksums of a spool right.
pub fn seal_spool(bytes: &mut [u8]) {
    let (mut at, mut all) = (0, 0);
    while let Some(head) = bytes.get(at..at + 8) {
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let crc = match bytes.get(at + 8..at + 8 + length) {
            Some(piece) if length > 0 => crc32c::crc32c(piece),
            _ => all,
        };
        bytes[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
        all = crc32c::crc32c_append(all, &crc.to_le_bytes());
        at = if length == 0 { bytes.len() } else { (at + 8 + length).min(bytes.len()) };
    }
}

/// Encodings to begin from, by the name of the door.
pub fn samples(door: &str) -> Vec<Vec<u8>> {
    match door {
        "record" => Kind::ALL.iter().map(|kind| record_of(*kind, 3, 9, b"payload")).collect(),
        "log" => vec![log_sample(1), log_sample(4)],
        "vote" => vec![encoded::<RaftVote>(&Vote::new_committed(3, 9)), encoded::<RaftVote>(&Vote::new(1, 2))],
        "members" => vec![encoded(&membership())],
        "mark" => vec![mark_sample()],
        "envelope" => envelopes().iter().filter_map(|message| message.encode().ok()).map(Vec::from).collect(),
        "spool" => {
            with_dir(|dir| Ok(vec![spooled(dir, &[Bytes::from_static(b"one"), Bytes::from_static(b"another")])?]))
        }
        _ => Vec::new(),
    }
}

fn postcard_law<T>(bytes: &[u8]) -> bool
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let Ok(value) = postcard::from_bytes::<T>(bytes) else { return false };
    let again = postcard::from_bytes::<T>(&encoded(&value));
    assert_eq!(again.as_ref(), Ok(&value), "what was read must come back");
    true
}

fn encoded<T: serde::Serialize>(value: &T) -> Vec<u8> {
    postcard::to_allocvec(value).unwrap_or_default()
}

fn summary(recovered: &Recovered) -> String {
    let tail = recovered.tail.as_ref().map(|(segment, offset)| (segment.id, *offset));
    format!("{:?} {:?} {tail:?} {}", recovered.groups, recovered.held, recovered.batch)
}

fn record_of(kind: Kind, batch: u64, index: u64, payload: &[u8]) -> Vec<u8> {
    let header = Header { kind, group: GroupId(4), batch, first: true, index, term: 2, length: payload.len() };
    let mut bytes = Vec::new();
    header.encode(SEGMENT, payload, &mut bytes);
    bytes
}

/// A log with a vote, entries, a truncation and a purge, each in a sync of its own.
fn log_sample(entries: u64) -> Vec<u8> {
    let mut bytes = record_of(Kind::Vote, 1, 0, &encoded::<RaftVote>(&Vote::new_committed(3, 9)));
    for index in 0..entries {
        bytes.extend(record_of(Kind::Normal, 2 + index, index, format!("entry {index}").as_bytes()));
    }
    bytes.extend(record_of(Kind::Committed, 2 + entries, entries - 1, b""));
    bytes.extend(record_of(Kind::Truncate, 3 + entries, entries, b""));
    bytes.extend(record_of(Kind::Purge, 4 + entries, 0, b""));
    bytes.extend(record_of(Kind::Synced, 5 + entries, 0, b""));
    bytes.resize(bytes.len() + 256, 0);
    bytes
}

fn membership() -> Membership<u64, EmptyNode> {
    Membership::new_with_defaults(vec![BTreeSet::from([1, 2, 3])], [4])
}

fn mark_sample() -> Vec<u8> {
    let members = StoredMembership::new(Some(log_id(EntryId { term: 1, index: 1 })), membership());
    let mark = Position { term: 3, index: 77, members }.encode();
    let mut bytes = mark.lsn.0.to_le_bytes().to_vec();
    bytes.extend_from_slice(&mark.bytes);
    bytes
}

fn envelopes() -> Vec<Envelope<TokioRuntime>> {
    let vote = Vote::new_committed(3, 9);
    let last = Some(log_id(EntryId { term: 2, index: 8 }));
    let entry = |index, payload| RaftEntry { log_id: log_id(EntryId { term: 3, index }), payload };
    let append = AppendEntriesRequest {
        vote,
        prev_log_id: last,
        entries: vec![
            entry(9, EntryPayload::Normal(Payload(Bytes::from_static(b"payload")))),
            entry(10, EntryPayload::Blank),
            entry(11, EntryPayload::Membership(membership())),
        ],
        leader_commit: last,
    };
    let meta = openraft::SnapshotMeta { last_log_id: last, last_membership: StoredMembership::new(last, membership()) };
    let questions = vec![
        Question::Append(append),
        Question::Vote(VoteRequest::new(vote, last)),
        Question::PreVote(VoteRequest::new(vote, None)),
        Question::Transfer(TransferLeaderRequest::new(vote, 2, last)),
        Question::SnapshotBegin,
        Question::SnapshotPiece { piece: Bytes::from_static(b"piece"), checksum: 5 },
        Question::SnapshotEnd { vote, meta, checksum: 6 },
    ];
    let answers = vec![
        Answer::Vote(VoteResponse::new(vote, last, true)),
        Answer::SnapshotPiece,
        Answer::SnapshotEnd(vote),
        Answer::Failed("no such group".to_owned()),
    ];
    let envelope = |items| Envelope { sender: NodeId(1), target: NodeId(2), items };
    let question = |question| envelope(vec![Item::Question { group: GroupId(4), number: 17, question }]);
    let answered = answers.into_iter().map(|answer| Item::Answer { number: 17, answer }).collect();
    questions.into_iter().map(question).chain([envelope(answered)]).collect()
}

/// The bytes of a spool with these pieces.
fn spooled(dir: &Path, pieces: &[Bytes]) -> io::Result<Vec<u8>> {
    let path = dir.join("b.snapshot");
    let mut spool = Spool::create(path.clone())?;
    let mut all = 0;
    for piece in pieces {
        let crc = crc32c::crc32c(piece);
        all = crc32c::crc32c_append(all, &crc.to_le_bytes());
        spool.add(piece, crc)?;
    }
    spool.finish(all)?;
    std::fs::read(path)
}

/// Runs in a directory of its own, which is gone afterwards.
fn with_dir<T>(run: impl FnOnce(&Path) -> io::Result<T>) -> T {
    struct Dir(PathBuf);
    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = Dir(std::env::temp_dir().join(format!("meridian-fuzz-{}-{number}", std::process::id())));
    let done = std::fs::create_dir(&dir.0).and_then(|()| run(&dir.0));
    match done {
        Ok(done) => done,
        Err(error) => panic!("the fuzzer's own files in {} fail: {error}", dir.0.display()),
    }
}
