//! What changed in a bucket since an earlier backup, by this region's own log: the entries, and the keys that they touched.
//!
//! Only where the log still has them, and where it is that log: the entry at which the earlier backup ended is the one that it saw, the
//! epoch is the same, and nothing but entries has changed rows since. Else it is said why not, and every row is given, to be compared.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use meridian_consensus::{LogSlice, ReadLogError};
use meridian_region_core::backup::log::{Look, look};
use meridian_region_core::backup::records;
use meridian_region_core::{ReadError, Shard, StateView};
use meridian_types::{BackupCut, BackupRow, BackupSince, BucketId, Lsn, Refusal, RefusalKind, SetHash, ShardId};

use super::{Kept, PAGE_BYTES, Stream, ended, let_go};
use crate::node::{Node, ShardNode};

/// The longest stretch of a log that is looked through, in bytes: whoever tells it again holds what it touched in memory, too (RES-1).
const LOG_BYTES_MAX: usize = 256 << 20;

/// Bytes of the keys that it touched, and so of what is remembered for as long as it is given away.
const KEYS_BYTES_MAX: usize = 16 << 20;

/// A stretch of the log that tells what changed.
pub(super) struct Since {
    /// It begins behind this position.
    pub(super) after: Lsn,
    touched: BTreeSet<Bytes>,
}

impl Since {
    /// Rows of touched keys behind a key, from about `bytes_max` bytes on no more.
    pub(super) fn rows(
        &self,
        view: &dyn StateView,
        place: (ShardId, BucketId),
        after: &Bytes,
        bytes_max: usize,
    ) -> Result<Vec<BackupRow>, ReadError> {
        let behind = if after.is_empty() { Bound::Unbounded } else { Bound::Excluded(after) };
        let (mut rows, mut bytes) = (Vec::new(), 0);
        for key in self.touched.range::<Bytes, _>((behind, Bound::Unbounded)) {
            if bytes >= bytes_max {
                break;
            }
            rows.extend(records(view, place, [key.clone()])?);
            bytes += rows.last().map_or(0, |row| row.key.len() + row.record.len());
        }
        Ok(rows)
    }
}

impl Node {
    /// The hash of an entry of the log, by which that log is known again; `None` when it is no longer there.
    pub(super) async fn evidence(&self, shard: &ShardNode, at: Lsn) -> Option<SetHash> {
        if at == Lsn(0) {
            return Some(SetHash::default());
        }
        let slice = shard.group.read_log(Lsn(at.0 - 1), 1).await.ok()?;
        let entry = slice.entries.first().filter(|entry| entry.lsn == at)?;
        Some(SetHash::of(&at.0.to_be_bytes(), &entry.payload))
    }

    /// Looks through the log since an earlier backup; why it can't tell what changed, if it can't.
    pub(super) async fn since(
        self: &Arc<Node>,
        kept: &Arc<Kept>,
        cut: &BackupCut,
        since: &BackupSince,
    ) -> Result<Result<Since, String>, Refusal> {
        let why = if since.bucket != cut.bucket {
            "the bucket was deleted since, and another one created under its name"
        } else if since.region != cut.region {
            "it was read from another region then"
        } else if since.epoch != cut.epoch {
            "its epoch changed since"
        } else if is_same(cut, since) {
            return Ok(Ok(Since { after: cut.applied, touched: BTreeSet::new() }));
        } else {
            let shard = self.led(cut.shard)?;
            match (since.evidence, self.evidence(shard, since.applied).await) {
                (Some(then), Some(now)) if then == now && since.applied <= cut.applied => {
                    return self.look_through(kept, cut, since.applied).await;
                }
                (Some(then), Some(now)) if then != now => "the log of its shard is another one since",
                _ => "the log does not reach back to it (limits.log_kept_bytes)",
            }
        };
        Ok(Err(why.to_owned()))
    }

    async fn look_through(
        self: &Arc<Node>,
        kept: &Arc<Kept>,
        cut: &BackupCut,
        after: Lsn,
    ) -> Result<Result<Since, String>, Refusal> {
        let (mut from, mut bytes, mut keys) = (after, 0, 0);
        let mut touched = BTreeSet::new();
        while from < cut.applied {
            let slice = match self.slice(cut, from).await? {
                Ok(slice) => slice,
                Err(Trimmed) => return Ok(Err("the log does not reach back to it (limits.log_kept_bytes)".to_owned())),
            };
            if slice.reached <= from {
                return Ok(Err("the log ends before what was applied of it".to_owned()));
            }
            bytes += slice.entries.iter().map(|entry| entry.payload.len()).sum::<usize>();
            from = slice.reached;
            for (_, look) in self.looks(kept, cut, slice).await? {
                match look {
                    Look::Other => {}
                    Look::Kept(_, of_it) => {
                        keys += of_it.iter().map(Bytes::len).sum::<usize>();
                        touched.extend(of_it);
                    }
                    Look::Unfit(why) => return Ok(Err(why.to_owned())),
                }
            }
            if bytes > LOG_BYTES_MAX || keys > KEYS_BYTES_MAX {
                return Ok(Err("more was written since than is told from the log".to_owned()));
            }
        }
        Ok(Ok(Since { after, touched }))
    }

    /// Entries of the log behind a position, and up to where they were looked at.
    pub(super) async fn log_page(
        self: &Arc<Node>,
        stream: &Stream,
        after: Lsn,
    ) -> Result<(Vec<BackupRow>, Lsn), Refusal> {
        if after >= stream.cut.applied {
            return Ok((Vec::new(), after));
        }
        let again = || Refusal::new(RefusalKind::Retry, "the log was purged while it was read: begin it again");
        let slice = self.slice(&stream.cut, after).await?.map_err(|Trimmed| again())?;
        let reached = slice.reached;
        if reached <= after {
            return Err(again());
        }
        let mut rows = Vec::new();
        for (lsn, look) in self.looks(&stream.kept, &stream.cut, slice).await? {
            match look {
                Look::Other => {}
                Look::Kept(entry, _) => {
                    rows.push(BackupRow { key: Bytes::copy_from_slice(&lsn.0.to_be_bytes()), record: entry });
                }
                Look::Unfit(_) => return Err(again()),
            }
        }
        Ok((rows, reached))
    }

    async fn slice(&self, cut: &BackupCut, after: Lsn) -> Result<Result<LogSlice, Trimmed>, Refusal> {
        let shard = self.led(cut.shard)?;
        match shard.group.read_log(after, PAGE_BYTES).await {
            Ok(mut slice) => {
                slice.entries.retain(|entry| entry.lsn <= cut.applied);
                Ok(Ok(slice))
            }
            Err(ReadLogError::Trimmed { .. }) => Ok(Err(Trimmed)),
            Err(why) => Err(Refusal::new(RefusalKind::Retry, why.to_string())),
        }
    }

    /// What entries are to the backup, by what the cut's state says of them.
    async fn looks(&self, kept: &Arc<Kept>, cut: &BackupCut, slice: LogSlice) -> Result<Vec<(Lsn, Look)>, Refusal> {
        kept.used_ms.store(self.clock.monotonic_ms(), Ordering::Relaxed);
        let (kept, region) = (Arc::clone(kept), cut.region);
        let _turn = self.backups.pages.acquire().await.map_err(|_| ended())?;
        let looked = self.blocking.run(move || {
            let view = kept.view();
            let Some(view) = view.as_ref() else { return Err(let_go()) };
            let (shard, bucket) = kept.place;
            let corrupt = |why: &dyn std::fmt::Display| Refusal::new(RefusalKind::Corrupt, why.to_string());
            let core = Shard::glance(view, region, shard, bucket).map_err(|why| corrupt(&why))?;
            let effective = |lsn, header: &_| core.is_effective(lsn, header);
            let of = |entry: &meridian_consensus::Committed| {
                let look = look((entry.lsn, &entry.payload), bucket, &effective).map_err(|why| corrupt(&why))?;
                Ok::<_, Refusal>((entry.lsn, look))
            };
            slice.entries.iter().map(of).collect()
        });
        looked.await.map_err(|_| ended())?
    }
}

/// What was asked for is no longer in the log.
struct Trimmed;

/// Whether nothing was written since.
fn is_same(cut: &BackupCut, since: &BackupSince) -> bool {
    (cut.hash, cut.keys, cut.bytes) == (since.hash, since.keys, since.bytes) && cut.positions == since.positions
}
