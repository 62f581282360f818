//! The side that is right: answers what a target asks, from a snapshot that stands still for each of its sessions.
//!
//! RES-1: so many sessions, each of bounded age; so many answers at a time. A snapshot costs what the store can't clean
//! up meanwhile, so an idle session ends soon. SEC-1: only a region that holds the bucket is told anything of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use meridian_region_core::repair::message::{Ask, Pinned, Told};
use meridian_region_core::repair::source::{Opening, Source};
use meridian_region_core::repair::survey::Survey;
use meridian_types::{BucketId, Lsn, Refusal, RefusalKind, RegionId, ShardId};
use tokio::sync::Semaphore;

use crate::gather;
use crate::group::ShardGroup;
use crate::node::{Node, ShardNode};
use crate::store::Frozen;
use meridian_consensus::ReadLogError;

/// The most sessions at a time.
pub(crate) const SESSIONS_MAX: usize = 32;

/// A session that is not asked for so long, in milliseconds, is over: its target is gone.
const IDLE_MS: u64 = 60_000;

/// The longest a session lasts, in milliseconds. What was moved by then is equal in the next one.
const LIFE_MS: u64 = 2 * 3_600_000;

/// The most answers worked out at a time: each reads rows of a whole bucket, in a thread of its own.
const ANSWERS_MAX: usize = 2;

/// Sessions that other regions hold here.
pub(crate) struct Sources {
    sessions: Mutex<BTreeMap<u64, Arc<Session>>>,
    count: AtomicUsize,
    opened: AtomicU64,
    answers: Semaphore,
}

struct Session {
    by: RegionId,
    place: super::Place,
    source: Source,
    view: Mutex<Frozen>,
    opened_ms: u64,
    used_ms: AtomicU64,
}

impl Default for Sources {
    fn default() -> Sources {
        Sources {
            sessions: Mutex::default(),
            count: AtomicUsize::new(0),
            opened: AtomicU64::new(0),
            answers: Semaphore::new(ANSWERS_MAX),
        }
    }
}

impl Sources {
    fn sessions(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the sessions of a shard whose leader has changed: its new one counts copies, and must know who is being repaired (DUR-2).
    pub(crate) fn end_of(&self, shard: ShardId) {
        let mut sessions = self.sessions();
        sessions.retain(|_, session| session.place.0 != shard);
        self.count.store(sessions.len(), Ordering::Release);
    }

    /// How many sessions there are.
    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Whether `region` is having the bucket repaired from here: until that is over it holds no copy that counts (DUR-2).
    pub(crate) fn serves(&self, shard: ShardId, bucket: BucketId, region: RegionId) -> bool {
        self.count.load(Ordering::Acquire) > 0
            && self.sessions().values().any(|session| session.by == region && session.place == (shard, bucket))
    }

    /// Ends sessions whose target is gone.
    pub(crate) fn expire(&self, now_ms: u64) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut sessions = self.sessions();
        sessions.retain(|_, session| {
            let idle_ms = now_ms.saturating_sub(session.used_ms.load(Ordering::Relaxed));
            idle_ms < IDLE_MS && now_ms.saturating_sub(session.opened_ms) < LIFE_MS
        });
        self.count.store(sessions.len(), Ordering::Release);
    }

    /// Makes room for a session of `by`, which ends the one it had for the same.
    fn make_room(&self, by: RegionId, place: super::Place) -> Result<(), Refusal> {
        let mut sessions = self.sessions();
        sessions.retain(|_, session| session.by != by || session.place != place);
        self.count.store(sessions.len(), Ordering::Release);
        if sessions.len() < SESSIONS_MAX {
            return Ok(());
        }
        let why = format!("{SESSIONS_MAX} repairs are served by this node already: try again after a pause");
        Err(Refusal::new(RefusalKind::Retry, why))
    }

    fn insert(&self, number: u64, session: Session) {
        let mut sessions = self.sessions();
        sessions.insert(number, Arc::new(session));
        self.count.store(sessions.len(), Ordering::Release);
    }

    fn of(&self, number: u64, by: RegionId, now_ms: u64) -> Result<Arc<Session>, Refusal> {
        let session = self.sessions().get(&number).filter(|session| session.by == by).cloned();
        let session = session.ok_or_else(|| {
            Refusal::new(RefusalKind::Conflict, "the session of the repair is over: it begins again with a new one")
        })?;
        session.used_ms.store(now_ms, Ordering::Relaxed);
        Ok(session)
    }

    /// Ends a session; tells what it was about.
    fn close(&self, number: u64, by: RegionId) -> Option<super::Place> {
        let mut sessions = self.sessions();
        let of_it = sessions.get(&number).is_some_and(|session| session.by == by);
        let ended = if of_it { sessions.remove(&number) } else { None };
        self.count.store(sessions.len(), Ordering::Release);
        ended.map(|session| session.place)
    }
}

impl Node {
    /// Answers the region `by`.
    pub(crate) async fn answer_repair(&self, by: RegionId, ask: &[u8]) -> Result<Bytes, Refusal> {
        let ask = Ask::decode(ask).map_err(|why| Refusal::new(RefusalKind::Invalid, why.to_string()))?;
        let told = match ask {
            Ask::Survey { shard } => Told::Survey(Survey::of(&self.proven(shard).await?.board.core())),
            Ask::Reach { shard, after } => Told::Reach { trimmed_to: trimmed_to(self.led(shard)?, after).await? },
            Ask::Removals { shard, bucket, after } => {
                self.check_holds(by, bucket)?;
                self.removals_here(shard, bucket, after).await?
            }
            Ask::Open { shard, bucket } => self.open_session(by, shard, bucket).await?,
            Ask::Hashes { session, after, differing } => {
                self.look_into(by, session, move |source, view| source.hashes(view, &after, &differing)).await?
            }
            Ask::Rows { session, after, up_to, hashes } => {
                self.look_into(by, session, move |source, view| source.rows(view, &after, up_to.as_deref(), &hashes))
                    .await?
            }
            Ask::Close { session } => {
                let place = self.repairs.sources.close(session, by);
                if let Some(shard) = place.and_then(|(shard, _)| self.shard(shard)) {
                    // Over there it is open again, or begins anew: either is worth a look.
                    shard.mended.send_modify(|count| *count += 1);
                }
                Told::Closed
            }
            Ask::Floors => Told::Floors(self.floors()),
            Ask::Sights { bucket, shards, strong } => self.sights(by, bucket, &shards, strong).await?,
            Ask::Settled { bucket, read } => self.settle(by, bucket, &read).await?,
        };
        Ok(told.encode())
    }

    /// The shard, if this node leads it.
    pub(crate) fn led(&self, shard: ShardId) -> Result<&ShardNode, Refusal> {
        let led = self.shard(shard).filter(|shard| shard.board.leads());
        led.ok_or_else(|| Refusal::new(RefusalKind::Redirect, format!("this node does not lead shard {shard}")))
    }

    /// The shard, if this node has just proven that it leads it: its state is all that was acknowledged.
    pub(crate) async fn proven(&self, shard: ShardId) -> Result<&ShardNode, Refusal> {
        let led = self.led(shard)?;
        let barrier = led.group.read_barrier().pass().await;
        barrier.map_err(|why| Refusal::new(RefusalKind::Retry, format!("{why}: try again after a pause")))?;
        Ok(led)
    }

    fn check_holds(&self, by: RegionId, bucket: BucketId) -> Result<(), Refusal> {
        let topology = self.authority.topology();
        if topology.buckets.get(&bucket).is_some_and(|bucket| bucket.reaches(by)) {
            return Ok(());
        }
        let why = format!("region {} does not hold bucket {bucket}", topology.region_label(by));
        Err(Refusal::new(RefusalKind::Denied, why))
    }

    async fn open_session(&self, by: RegionId, shard: ShardId, bucket: BucketId) -> Result<Told, Refusal> {
        self.check_holds(by, bucket)?;
        self.repairs.sources.make_room(by, (shard, bucket))?;
        // A leader that was deposed without noticing has less than was acknowledged, and would take that from the target.
        self.proven(shard).await?;
        let number = self.session_number();
        let view = self.store.freeze();
        let opened = self.read_rows(move || Source::open(&view, shard, bucket, number).map(|opening| (opening, view)));
        let (opening, view) = opened.await?;
        match opening {
            Opening::Unfit(why) => Err(Refusal::new(RefusalKind::Retry, format!("the source {why}"))),
            Opening::Open(source, pinned) => {
                let now_ms = self.clock.monotonic_ms();
                let (view, used_ms) = (Mutex::new(view), AtomicU64::new(now_ms));
                let session = Session { by, place: (shard, bucket), source, view, opened_ms: now_ms, used_ms };
                self.repairs.sources.insert(number, session);
                log_opened(self, by, (shard, bucket), &pinned);
                Ok(Told::Opened { session: number, pinned })
            }
        }
    }

    /// Another one for every session, across restarts too; also what row hashes are salted with.
    fn session_number(&self) -> u64 {
        let opened = self.repairs.sources.opened.fetch_add(1, Ordering::Relaxed);
        (self.clock.wall_ms() << 20).wrapping_add(opened)
    }

    async fn look_into(
        &self,
        by: RegionId,
        session: u64,
        look: impl FnOnce(&Source, &Frozen) -> Result<Told, meridian_region_core::ReadError> + Send + 'static,
    ) -> Result<Told, Refusal> {
        let session = self.repairs.sources.of(session, by, self.clock.monotonic_ms())?;
        self.led(session.place.0)?;
        self.read_rows(move || look(&session.source, &session.view.lock().unwrap_or_else(PoisonError::into_inner)))
            .await
    }

    /// Reads rows in a thread of its own, a few at a time.
    async fn read_rows<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, meridian_region_core::ReadError> + Send + 'static,
    ) -> Result<T, Refusal> {
        let gone = |_| Refusal::new(RefusalKind::Unavailable, "the node is stopping: ask another one");
        let _place = self.repairs.sources.answers.acquire().await.map_err(gone)?;
        let failed = |_| Refusal::new(RefusalKind::Internal, "the read ended unexpectedly; the node's log says why");
        self.blocking.run(read).await.map_err(failed)?.map_err(|why| gather::refusal(&why))
    }
}

/// The oldest entry the shard's log still has, if what comes right behind `after` is gone.
async fn trimmed_to(shard: &ShardNode, after: Lsn) -> Result<Option<Lsn>, Refusal> {
    let group: &dyn ShardGroup = shard.group.as_ref();
    match group.read_log(after, 1).await {
        Ok(_) => Ok(None),
        Err(ReadLogError::Trimmed { oldest }) => Ok(Some(oldest)),
        Err(why) => Err(Refusal::new(RefusalKind::Retry, why.to_string())),
    }
}

fn log_opened(node: &Node, by: RegionId, (shard, bucket): super::Place, pinned: &Pinned) {
    tracing::info!(
        region = %node.region(), target = %by, %shard, %bucket, rows = pinned.rows,
        "a replica in another region is made equal to this one"
    );
}
