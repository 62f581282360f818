//! Giving a bucket's rows of a shard away for a backup, as they were at one moment, while writing goes on.
//!
//! ```text
//! lease, barrier ──► frozen state ──► cut ──► log since, if asked for ──► rows ──► context, if asked for ──► end
//!                        └── let go with the stream, or when nobody asks for the next page
//! ```
//!
//! At the primary everything that was acknowledged before the call is in it (CON-1); elsewhere, what this region has, and how
//! stale that may be. RES-1: so many moments are kept at a time, none longer than somebody reads it; so many pages are read at
//! a time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use meridian_region_core::ReadError;
use meridian_region_core::backup::{self, Opening, replay};
use meridian_types::{
    BackupAsk, BackupCut, BackupPiece, BackupRow, BackupSpan, BucketId, Lsn, Refusal, RefusalKind, ShardId,
};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::gather;
use crate::node::{Node, ShardNode, Standing};
use crate::reads::Verdict;
use crate::store::Frozen;

mod since;

use since::Since;

/// The most moments kept at a time.
pub(crate) const BACKUPS_MAX: usize = 16;

/// The most pages read at a time, each in a thread of its own.
const PAGES_MAX: usize = 2;

/// Bytes of a page, unless its last row alone is larger.
const PAGE_BYTES: usize = 1 << 20;

/// A moment of which no page is asked for so long, in milliseconds, is let go: its reader is gone or stuck, and the store can
/// clean up nothing meanwhile.
const IDLE_MS: u64 = 60_000;

/// How long a leader may take to confirm that it is one.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a backup of a shard is told.
pub(crate) type Pieces = BoxStream<'static, Result<BackupPiece, Refusal>>;

/// The moments that are kept here.
pub(crate) struct Backups {
    kept: Mutex<Vec<Weak<Kept>>>,
    pages: Semaphore,
}

/// One of them.
struct Kept {
    place: (ShardId, BucketId),
    /// `None` before it is taken, and once it was let go.
    view: Mutex<Option<Frozen>>,
    used_ms: AtomicU64,
}

impl Default for Backups {
    fn default() -> Backups {
        Backups { kept: Mutex::default(), pages: Semaphore::new(PAGES_MAX) }
    }
}

impl Backups {
    /// How many moments are kept.
    pub(crate) fn len(&self) -> usize {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().filter(|it| it.strong_count() > 0).count()
    }

    /// Makes room for a moment of this.
    fn keep(&self, place: (ShardId, BucketId), now_ms: u64) -> Result<Arc<Kept>, Refusal> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|it| it.strong_count() > 0);
        if kept.len() >= BACKUPS_MAX {
            let why = format!("{BACKUPS_MAX} backups are read from this node already: try again after a pause");
            return Err(Refusal::new(RefusalKind::Retry, why));
        }
        let one = Arc::new(Kept { place, view: Mutex::default(), used_ms: now_ms.into() });
        kept.push(Arc::downgrade(&one));
        Ok(one)
    }

    /// Lets go what nobody reads any more.
    pub(crate) fn expire(&self, now_ms: u64) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|it| {
            let Some(it) = it.upgrade() else { return false };
            let is_idle = now_ms.saturating_sub(it.used_ms.load(Ordering::Relaxed)) >= IDLE_MS;
            if is_idle {
                it.view().take();
            }
            !is_idle
        });
    }
}

impl Kept {
    fn view(&self) -> std::sync::MutexGuard<'_, Option<Frozen>> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a stream is.
enum Left {
    /// Of the log, behind this position.
    Log(Lsn),
    /// Behind this key.
    Rows(Bytes),
    /// Behind this key of the state.
    Context(Bytes),
    End,
    Nothing,
}

/// What a stream gives.
struct Stream {
    kept: Arc<Kept>,
    cut: BackupCut,
    /// `None`: every row.
    since: Option<Since>,
    context: bool,
}

impl Stream {
    fn begin(&self) -> Left {
        self.since.as_ref().map_or(Left::Rows(Bytes::new()), |since| Left::Log(since.after))
    }

    fn behind_rows(&self) -> Left {
        if self.context { Left::Context(Bytes::new()) } else { Left::End }
    }
}

impl Node {
    /// Gives a bucket's rows of a shard away, as they are now.
    pub(crate) async fn back_up(
        self: &Arc<Node>,
        bucket: BucketId,
        id: ShardId,
        ask: BackupAsk,
    ) -> Result<Pieces, Refusal> {
        let standing = self.standing_for_backup(bucket)?;
        let shard = self.led(id)?;
        let kept = self.backups.keep((id, bucket), self.clock.monotonic_ms())?;
        let at_ms = self.clock.wall_ms();
        let (cut, view) = self.cut(&standing, shard).await?;
        *kept.view() = Some(view);
        let mut cut = BackupCut { at_ms, evidence: self.evidence(shard, cut.applied).await, ..cut };
        let since = match &ask.since {
            Some(since) => match self.since(&kept, &cut, since).await? {
                Ok(since) => Some(since),
                Err(why) => {
                    cut.span = BackupSpan::Whole(why);
                    None
                }
            },
            None => None,
        };
        if since.is_some() {
            cut.span = BackupSpan::Since;
        }
        let stream = Arc::new(Stream { kept, cut: cut.clone(), since, context: ask.context });
        let (node, begin) = (Arc::clone(self), stream.begin());
        let pages = stream::try_unfold((begin, 0), move |(left, count)| {
            let (node, stream) = (Arc::clone(&node), Arc::clone(&stream));
            async move { node.next_piece(&stream, left, count).await }
        });
        Ok(stream::iter([Ok(BackupPiece::Cut(cut))]).chain(pages).boxed())
    }

    /// The next piece of a stream, where it is then, and how many rows it has given.
    async fn next_piece(
        self: Arc<Node>,
        stream: &Arc<Stream>,
        mut left: Left,
        count: u64,
    ) -> Result<Option<(BackupPiece, (Left, u64))>, Refusal> {
        loop {
            let (rows, piece, next) = match left {
                Left::Log(after) => {
                    let (log, reached) = self.log_page(stream, after).await?;
                    let next = if reached < stream.cut.applied { Left::Log(reached) } else { Left::Rows(Bytes::new()) };
                    (log.len(), BackupPiece::Log(log), next)
                }
                Left::Rows(after) => {
                    let rows = self.rows_page(stream, after).await?;
                    let next = rows.last().map_or_else(|| stream.behind_rows(), |row| Left::Rows(row.key.clone()));
                    (rows.len(), BackupPiece::Rows(rows), next)
                }
                Left::Context(after) => {
                    let rows = self.context_page(stream, after).await?;
                    let next = rows.last().map_or(Left::End, |row| Left::Context(row.key.clone()));
                    (rows.len(), BackupPiece::Context(rows), next)
                }
                Left::End => return Ok(Some((BackupPiece::End { rows: count }, (Left::Nothing, count)))),
                Left::Nothing => return Ok(None),
            };
            if rows > 0 {
                return Ok(Some((piece, (next, count + rows as u64))));
            }
            left = next;
        }
    }

    /// The bucket under the right to act on it: lease first, topology second (FEN-1).
    fn standing_for_backup(&self, bucket: BucketId) -> Result<Standing, Refusal> {
        let lease = self.authority.lease_holds();
        let topology = self.authority.topology();
        let known = topology.buckets.get(&bucket).cloned();
        let bucket = known.ok_or_else(|| {
            Refusal::new(
                RefusalKind::NotFound,
                format!("there is no bucket {bucket}: `meridian bucket list` shows all"),
            )
        })?;
        if !bucket.is_in(self.region()) {
            let here = topology.region_label(self.region());
            let why = format!("region {here} holds no copy of bucket `{}`: back it up from one that does", bucket.name);
            return Err(Refusal::new(RefusalKind::Invalid, why));
        }
        Ok(Standing { topology, bucket, lease })
    }

    /// Freezes everything that the leader of the shard has behind a barrier.
    async fn cut(&self, standing: &Standing, shard: &ShardNode) -> Result<(BackupCut, Frozen), Refusal> {
        let bucket = &standing.bucket;
        let again =
            |why: &str| Refusal::new(RefusalKind::Retry, format!("shard {} {why}: try again after a pause", shard.id));
        let before = shard.board.generation().ok_or_else(|| again("is being filled by a snapshot"))?;
        if shard.board.is_closed(bucket.id) {
            return Err(again("is being repaired here"));
        }
        let staleness_ms = if bucket.primary == Some(self.region()) {
            match self.judge_primary(standing, shard, Instant::now() + PATIENCE).await? {
                Verdict::Fresh(staleness_ms) => staleness_ms,
                Verdict::Leader(_) | Verdict::Stale(_) | Verdict::Closed(_) => return Err(again("has another leader")),
            }
        } else {
            self.proven(shard.id).await?;
            self.staleness_behind_a_barrier(standing, shard)
        };
        let (store, place, own) = (self.store.clone(), (shard.id, bucket.id), self.region());
        let frozen = self.blocking.run(move || {
            let view = store.freeze();
            backup::open(&view, place.0, place.1, own).map(|opening| (opening, view))
        });
        let (opening, view) = frozen.await.map_err(|_| ended())?.map_err(|why| gather::refusal(&why))?;
        if shard.board.generation() != Some(before) {
            return Err(again("was filled by a snapshot meanwhile"));
        }
        match opening {
            Opening::Open(cut) => Ok((BackupCut { staleness_ms, ..cut }, view)),
            Opening::Unfit(why) => Err(again(why)),
        }
    }

    async fn rows_page(&self, stream: &Arc<Stream>, after: Bytes) -> Result<Vec<BackupRow>, Refusal> {
        let of = Arc::clone(stream);
        self.page(stream, move |view, (shard, bucket)| match &of.since {
            None => backup::page(view, shard, bucket, &after, PAGE_BYTES),
            Some(since) => since.rows(view, (shard, bucket), &after, PAGE_BYTES),
        })
        .await
    }

    async fn context_page(&self, stream: &Arc<Stream>, after: Bytes) -> Result<Vec<BackupRow>, Refusal> {
        self.page(stream, move |view, place| replay::context(view, place, &after, PAGE_BYTES)).await
    }

    /// Reads a page of the view, in its turn.
    async fn page(
        &self,
        stream: &Stream,
        read: impl FnOnce(&Frozen, (ShardId, BucketId)) -> Result<Vec<BackupRow>, ReadError> + Send + 'static,
    ) -> Result<Vec<BackupRow>, Refusal> {
        let kept = Arc::clone(&stream.kept);
        kept.used_ms.store(self.clock.monotonic_ms(), Ordering::Relaxed);
        let _turn = self.backups.pages.acquire().await.map_err(|_| ended())?;
        let read = self.blocking.run(move || {
            let view = kept.view();
            let Some(view) = view.as_ref() else { return Err(let_go()) };
            read(view, kept.place).map_err(|why| gather::refusal(&why))
        });
        read.await.map_err(|_| ended())?
    }
}

fn ended() -> Refusal {
    Refusal::new(RefusalKind::Unavailable, "the node is stopping: ask another one")
}

fn let_go() -> Refusal {
    let why = format!("no page was asked for in {} s, and the node let the backup go: begin it again", IDLE_MS / 1000);
    Refusal::new(RefusalKind::Conflict, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::StoreOptions;
    use crate::store::Store;

    const PLACE: (ShardId, BucketId) = (ShardId(0), BucketId(1));

    #[test]
    fn moments_are_bounded_and_let_go_when_nobody_reads_them() {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions { cache_bytes: 1 << 20, worker_threads: 1, ..StoreOptions::default() };
        let store = Store::open(dir.path(), &options).unwrap();
        let backups = Backups::default();
        let keep = |now_ms| {
            let kept = backups.keep(PLACE, now_ms)?;
            *kept.view() = Some(store.freeze());
            Ok::<_, Refusal>(kept)
        };
        let mut held: Vec<_> = (0..BACKUPS_MAX).map(|_| keep(0).unwrap()).collect();
        assert_eq!(keep(0).err().map(|why| why.kind), Some(RefusalKind::Retry));
        held.pop();
        let read = keep(1).unwrap();
        assert_eq!(backups.len(), BACKUPS_MAX);
        backups.expire(IDLE_MS);
        assert_eq!(backups.len(), 1);
        assert!(held.iter().all(|it| it.view().is_none()) && read.view().is_some());
    }
}
