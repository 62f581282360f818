//! What the replicator asks of this region: its logs as a source, its groups as a sink. The composition root turns
//! these into the replicator's own seams; neither room knows the other.

use std::future::Future;

use bytes::Bytes;
use meridian_consensus::{ProposeError, ReadLogError};
use meridian_failpoint::failpoint;
use meridian_region_core::FrameResult;
use meridian_types::entry::{Header, Kind};
use meridian_types::frame::{DigestNote, Echo, FrameHeader};
use meridian_types::{BucketId, Epoch, Head, Hlc, Lane, Lsn, NodeId, Refusal, RefusalKind, RegionId, ShardId};
use tokio::sync::watch;

use crate::group::Proposal;
use crate::node::Node;

/// A run of a shard's applied log.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Tail {
    /// Entries in rising order. Those of the kinds that are shipped are all effective: an own entry that the log refused
    /// (by fence, by timestamp, for a dropped bucket) is left out, since other regions can't know why it was refused.
    pub entries: Vec<TailEntry>,
    /// Everything up to here was examined.
    pub reached: Lsn,
    /// Whether `reached` was the end of the log at some moment after the read was asked for (CON-3 rests on it).
    pub at_head: bool,
    /// Every entry of this region after `reached` has a greater timestamp; 0 when not known.
    pub closed: Hlc,
    /// Whether the region had held its lease for long enough when the read was asked for: see [`Echo`].
    pub tenured: bool,
}

/// An entry as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TailEntry {
    /// Its position.
    pub lsn: Lsn,
    /// Its bytes, never re-encoded.
    pub entry: Bytes,
    /// The digest of its (bucket, shard) right after it, if it is recent enough.
    pub note: Option<DigestNote>,
}

/// Why a log can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TailError {
    /// The log begins later.
    #[error("the log begins at {oldest}")]
    Trimmed {
        /// The oldest entry it still has.
        oldest: Lsn,
    },
    /// It may pass: ask again.
    #[error("the log can't be read now: {0}")]
    Unavailable(String),
}

/// Why a frame was not applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameRefusal {
    /// It does not continue at the watermark (ORD-1).
    #[error("the frame does not continue at the watermark {watermark}")]
    Rewind {
        /// Where its lane stands.
        watermark: Lsn,
    },
    /// Digests at equal positions differ.
    #[error("the replica has diverged from its source: {detail}")]
    Diverged {
        /// What differs.
        detail: String,
    },
    /// It holds entries of an epoch below the bucket's fence (FEN-2).
    #[error("the frame holds entries of an epoch that the bucket has left behind")]
    Fenced,
    /// Another node leads the shard here.
    #[error("this node does not lead the shard")]
    NotLeader {
        /// Who does, if known.
        leader: Option<NodeId>,
    },
    /// It is no frame for this node.
    #[error("the frame can't be used: {0}")]
    Damaged(String),
    /// It may pass; the frame may even have been applied.
    #[error("the frame can't be applied now: {0}")]
    Unavailable(String),
}

impl Node {
    pub(crate) fn head(&self, shard: ShardId) -> watch::Receiver<Option<Head>> {
        match self.shard(shard) {
            Some(shard) => shard.board.watch_head(),
            // A sender that is gone says that the shard is not on this node.
            None => watch::Sender::new(None).subscribe(),
        }
    }

    pub(crate) fn mended(&self, shard: ShardId) -> watch::Receiver<u64> {
        self.shard(shard).map_or_else(|| watch::Sender::new(0).subscribe(), |shard| shard.mended.subscribe())
    }

    pub(crate) async fn read_log(&self, shard: ShardId, after: Lsn, bytes_max: usize) -> Result<Tail, TailError> {
        let unavailable = |why: &str| TailError::Unavailable(why.to_owned());
        let shard = self.shard(shard).ok_or_else(|| unavailable("the shard is not on this node"))?;
        if !shard.board.leads() {
            return Err(unavailable("this node does not lead the shard"));
        }
        let tenured = self.is_tenured();
        // What was committed at this moment, which only the leader can say: the tail is at the head if it reaches that far,
        // however much is written meanwhile.
        let committed = shard.group.read_barrier().pass().await.ok();
        // Before the read: everything up to this timestamp is at or below `applied`.
        let (closed, applied) = (shard.board.own_hlc(), shard.board.applied());
        let slice = shard.group.read_log(after, bytes_max).await.map_err(|why| match why {
            ReadLogError::Trimmed { oldest } => TailError::Trimmed { oldest },
            other => TailError::Unavailable(other.to_string()),
        })?;
        let reached = slice.reached.max(after);
        let mut last = Hlc(0);
        let mut entries = Vec::with_capacity(slice.entries.len());
        {
            let core = shard.board.core();
            for entry in slice.entries {
                let header = Header::decode(&entry.payload).map_err(|why| TailError::Unavailable(why.to_string()))?;
                last = last.max(header.hlc);
                if header.kind.is_shipped() && !core.is_effective(entry.lsn, &header) {
                    continue;
                }
                entries.push(TailEntry { lsn: entry.lsn, entry: entry.payload, note: None });
            }
        }
        for entry in &mut entries {
            entry.note = shard.board.note(entry.lsn);
        }
        let at_head = committed.is_some_and(|committed| reached >= committed);
        let closed = if reached >= applied { last.max(closed) } else { last };
        Ok(Tail { entries, reached, at_head, closed, tenured })
    }

    /// Checks and enqueues a frame; the future resolves once it is durably applied here.
    pub(crate) fn apply_frame(
        &self,
        frame: &Bytes,
    ) -> impl Future<Output = Result<Lsn, FrameRefusal>> + Send + 'static + use<> {
        let proposal = self.propose_frame(frame);
        async move {
            let applied = proposal?.await.map_err(|why| frame_refusal(&why))?;
            failpoint("frame.applied");
            let result = FrameResult::decode(&applied.result).map_err(|why| FrameRefusal::Damaged(why.to_string()))?;
            match result {
                FrameResult::Applied { watermark, diverged } => match diverged.first() {
                    None => Ok(watermark),
                    Some(divergence) => Err(diverged_refusal(divergence)),
                },
                FrameResult::AlreadyApplied { watermark } => Ok(watermark),
                FrameResult::Gap { watermark } => Err(FrameRefusal::Rewind { watermark }),
                FrameResult::Fenced { .. } => Err(FrameRefusal::Fenced),
                FrameResult::Diverged { divergence } => Err(diverged_refusal(&divergence)),
                FrameResult::Damaged { reason } => Err(FrameRefusal::Damaged(reason)),
                FrameResult::Lost { bucket } => Err(FrameRefusal::Unavailable(format!(
                    "this region was given up for lost in bucket {bucket}, and the others are about to go on without it"
                ))),
                FrameResult::Early { bucket, epoch } => Err(FrameRefusal::Unavailable(format!(
                    "much of bucket {bucket} waits for the end of epoch {epoch}, which its old primary has not shipped yet"
                ))),
            }
        }
    }

    fn propose_frame(&self, frame: &Bytes) -> Result<Proposal, FrameRefusal> {
        let header = FrameHeader::decode(frame).map_err(|why| FrameRefusal::Damaged(why.to_string()))?;
        let shard = self
            .shard(header.shard)
            .ok_or_else(|| FrameRefusal::Damaged(format!("shard {} is not on this node", header.shard)))?;
        if !shard.board.leads() {
            return Err(FrameRefusal::NotLeader { leader: shard.leader().filter(|node| *node != self.place.node) });
        }
        self.signs.of_life(header.source, self.clock.monotonic_ms());
        if self.disk.is_full() {
            return Err(FrameRefusal::Unavailable(self.disk.sentence()));
        }
        let entry = self.header(Kind::Frame, BucketId(0), Epoch(0)).encode_frame(frame);
        failpoint("frame.propose.before");
        shard.proposer.propose(entry).map_err(|refusal: Refusal| match refusal.kind {
            RefusalKind::Retry if !shard.board.leads() => FrameRefusal::NotLeader { leader: shard.leader() },
            _ => FrameRefusal::Unavailable(refusal.message),
        })
    }

    /// Whether this node has held its lease without a break for longer than any lease lasts, on whatever clock: every lease that was
    /// granted before the last break is over.
    fn is_tenured(&self) -> bool {
        let ttl_ms = self.authority.lease_ttl_ms();
        self.authority.lease_tenure_ms() > ttl_ms + ttl_ms / 16
    }

    /// A lane was complete with what its source had at `echo.probe` of this node's monotonic clock, up to `last`.
    pub(crate) fn complete_up_to(&self, source: RegionId, shard: ShardId, lane: Lane, echo: Echo, last: Lsn) {
        self.signs.of_life(source, self.clock.monotonic_ms());
        let Some(shard) = self.shard(shard) else { return };
        // Not yet applied here: then it says nothing about what can be read here. Nor if there is more to hear of the metadata first (CON-3).
        let heard = self.authority.topology().index >= echo.index;
        if heard && echo.probe > 0 && shard.board.watermark(source, lane) >= last {
            shard.lanes.complete(source, lane, echo);
        }
    }
}

fn diverged_refusal(divergence: &meridian_region_core::Divergence) -> FrameRefusal {
    FrameRefusal::Diverged {
        detail: format!(
            "bucket {}: digest {} with {} keys here, {} with {} keys at the source",
            divergence.bucket, divergence.ours, divergence.our_keys, divergence.theirs, divergence.their_keys
        ),
    }
}

fn frame_refusal(why: &ProposeError) -> FrameRefusal {
    match why {
        ProposeError::NotLeader { leader } => FrameRefusal::NotLeader { leader: *leader },
        other => FrameRefusal::Unavailable(other.to_string()),
    }
}
