//! What a shard's apply thread publishes and everybody else reads: how far it is, digests, timestamps, who leads.
//!
//! Published only after the batch is visible in the store, so whoever sees a position here also sees the data of it.
//! One exception, on purpose the other way round: the bound on removals is raised *before*, so that a reader
//! who found a key absent learns a position that is no lower than the removal it may have seen.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use meridian_region_core::{Answered, Divergence, FrameApplied, Shard};
use meridian_types::frame::DigestNote;
use meridian_types::{BucketDigest, BucketId, Epoch, Head, Hlc, Lane, Lsn, Positions, RegionId};
use tokio::sync::watch;

use crate::ceiling::Ceilings;
use crate::options::Options;
use crate::retention::Retained;
use crate::waiters::Waiters;

/// The published side of one shard.
pub(crate) struct Board {
    /// The state machine itself. Held by the apply thread for the length of a batch; others hold it briefly.
    core: Mutex<Shard>,
    public: RwLock<Public>,
    /// Per bucket, no removal that anybody can have seen is later than these positions.
    removals: RwLock<BTreeMap<BucketId, Removal>>,
    /// The greatest timestamp applied, of any region.
    hlc: AtomicU64,
    /// The timestamp of the last entry applied from the own log; 0 until one is.
    own_hlc: AtomicU64,
    leads: AtomicBool,
    /// How often it came to lead.
    tenures: AtomicU64,
    /// Raised when a snapshot begins to take the place of the state, and when it has: odd in between.
    replaced: AtomicU64,
    applied: watch::Sender<Lsn>,
    head: watch::Sender<Option<Head>>,
    notes: Mutex<Notes>,
    retained: Mutex<Retained>,
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) ceilings: Ceilings,
}

/// What can be read at any time.
#[derive(Debug, Default)]
pub(crate) struct Public {
    /// Digests and positions of every bucket.
    pub(crate) digests: BTreeMap<BucketId, BucketDigest>,
    /// The epoch in force and the fence, where it is not the first epoch.
    epochs: BTreeMap<BucketId, (Epoch, Epoch)>,
    /// Buckets found to differ from another region at equal positions.
    pub(crate) diverged: BTreeMap<BucketId, Divergence>,
    /// Buckets that are being repaired, or must be: nothing of them is read here.
    pub(crate) closed: BTreeSet<BucketId>,
    /// Watermarks that moved since the start; the core knows the others.
    watermarks: BTreeMap<(RegionId, Lane), Lsn>,
    /// Writes that the own log brought, with their bytes.
    own: BTreeMap<BucketId, (u64, u64)>,
}

/// The last removal in a bucket, and the bucket's positions by then.
struct Removal {
    last: Lsn,
    by: Positions,
}

/// Digests at recent positions of the own log, for the shipper.
struct Notes {
    recent: VecDeque<(Lsn, DigestNote)>,
    most: usize,
}

/// What a batch brought, gathered while it is applied.
#[derive(Default)]
pub(crate) struct News {
    pub(crate) applied: Lsn,
    pub(crate) bytes: u64,
    pub(crate) hlc: Hlc,
    pub(crate) own_hlc: Hlc,
    pub(crate) digests: Vec<(BucketId, Option<BucketDigest>)>,
    pub(crate) epochs: Vec<(BucketId, Epoch, Epoch)>,
    pub(crate) conditions: Option<Conditions>,
    pub(crate) own: Vec<(BucketId, Lsn, u64)>,
    pub(crate) notes: Vec<(Lsn, DigestNote)>,
    pub(crate) frames: Vec<FrameApplied>,
    pub(crate) answered: Vec<Answered>,
}

/// Buckets that are not as they should be, all of a shard.
pub(crate) struct Conditions {
    diverged: BTreeMap<BucketId, Divergence>,
    closed: BTreeSet<BucketId>,
}

impl Conditions {
    pub(crate) fn of(core: &Shard) -> Conditions {
        let found = |bucket| core.divergence(bucket).map(|divergence| (bucket, divergence.clone()));
        let astray = core.buckets().filter(|bucket| core.astray(*bucket).is_some());
        Conditions {
            diverged: core.buckets().filter_map(found).collect(),
            closed: core.closed().map(|(bucket, _)| bucket).chain(astray).collect(),
        }
    }
}

impl Board {
    /// The board of a shard as it was loaded, one of so many; `applied` is its mark.
    pub(crate) fn new(core: Shard, applied: Lsn, options: &Options, shards: u16) -> Board {
        let kept_bytes = options.log_kept_bytes.min(options.log_retention_bytes) / u64::from(shards.max(1));
        let board = Board {
            public: RwLock::new(Public::default()),
            removals: RwLock::default(),
            hlc: AtomicU64::new(0),
            own_hlc: AtomicU64::new(0),
            leads: AtomicBool::new(false),
            tenures: AtomicU64::new(0),
            replaced: AtomicU64::new(0),
            applied: watch::Sender::new(applied),
            head: watch::Sender::new(None),
            notes: Mutex::new(Notes { recent: VecDeque::new(), most: options.digest_notes_max.max(1) }),
            retained: Mutex::new(Retained::new(options.log_retention_bytes, kept_bytes)),
            waiters: Arc::new(Waiters::default()),
            ceilings: Ceilings::default(),
            core: Mutex::new(core),
        };
        let core = board.core();
        board.show(&core);
        drop(core);
        board
    }

    /// A snapshot is about to be taken in: from here on nothing that is read of the shard is a state of it.
    pub(crate) fn begin_replacing(&self) {
        self.replaced.fetch_or(1, Ordering::AcqRel);
    }

    /// Which of its states the shard is in; `None` while a snapshot is taken in. What is read between two equal answers is of one.
    pub(crate) fn generation(&self) -> Option<u64> {
        let replaced = self.replaced.load(Ordering::Acquire);
        replaced.is_multiple_of(2).then_some(replaced)
    }

    /// Puts another state in place of the whole shard: a snapshot was taken in.
    pub(crate) fn replace(&self, core: Shard, applied: Lsn) {
        let mut place = self.core();
        *place = core;
        self.show(&place);
        drop(place);
        // From odd to even, never back.
        self.replaced.fetch_add(1, Ordering::AcqRel);
        self.announce(applied);
    }

    fn show(&self, core: &Shard) {
        let mut public = self.public.write().unwrap_or_else(PoisonError::into_inner);
        *public = Public::default();
        let mut removals = self.removals.write().unwrap_or_else(PoisonError::into_inner);
        public.epochs = core.epochs().map(|(bucket, epoch, fence)| (bucket, (epoch, fence))).collect();
        for (bucket, digest) in core.digests() {
            removals.insert(bucket, Removal { last: digest.last_removal, by: digest.positions.clone() });
            public.digests.insert(bucket, digest.clone());
        }
        let Conditions { diverged, closed } = Conditions::of(core);
        (public.diverged, public.closed) = (diverged, closed);
        self.hlc.fetch_max(core.last_hlc().0, Ordering::AcqRel);
    }

    /// The state machine. A panic while it is applied poisons consensus, which ends the node: nobody reads on for long.
    pub(crate) fn core(&self) -> MutexGuard<'_, Shard> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What can be read at any time; hold it briefly.
    pub(crate) fn public(&self) -> RwLockReadGuard<'_, Public> {
        self.public.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called before a batch becomes visible.
    pub(crate) fn bound_removals(&self, news: &News) {
        let later = |bucket: &BucketId, digest: &BucketDigest| {
            let removals = self.removals.read().unwrap_or_else(PoisonError::into_inner);
            // With several origins the position of the last removal doesn't say whose log it is in: all count.
            digest.positions.0.len() > 1 || removals.get(bucket).is_none_or(|known| known.last < digest.last_removal)
        };
        for (bucket, digest) in &news.digests {
            if let Some(digest) = digest.as_ref().filter(|digest| later(bucket, digest)) {
                let removal = Removal { last: digest.last_removal, by: digest.positions.clone() };
                self.removals.write().unwrap_or_else(PoisonError::into_inner).insert(*bucket, removal);
            }
        }
    }

    /// To be called once a batch is visible.
    pub(crate) fn publish(&self, news: News) {
        if !news.notes.is_empty() {
            self.notes.lock().unwrap_or_else(PoisonError::into_inner).extend(news.notes);
        }
        self.retained.lock().unwrap_or_else(PoisonError::into_inner).grew(news.applied, news.bytes);
        self.hlc.fetch_max(news.hlc.0, Ordering::AcqRel);
        self.own_hlc.fetch_max(news.own_hlc.0, Ordering::AcqRel);
        self.ceilings.applied(&news.own, news.own_hlc);
        {
            let mut public = self.public.write().unwrap_or_else(PoisonError::into_inner);
            for (bucket, digest) in news.digests {
                match digest {
                    Some(digest) => drop(public.digests.insert(bucket, digest)),
                    None => drop(public.digests.remove(&bucket)),
                }
            }
            public.epochs.extend(news.epochs.into_iter().map(|(bucket, epoch, fence)| (bucket, (epoch, fence))));
            for (bucket, _, bytes) in news.own {
                let own = public.own.entry(bucket).or_default();
                *own = (own.0 + 1, own.1 + bytes);
            }
            for frame in news.frames {
                public.watermarks.insert((frame.source, frame.lane), frame.watermark);
            }
            if let Some(Conditions { diverged, closed }) = news.conditions {
                (public.diverged, public.closed) = (diverged, closed);
            }
        }
        self.announce(news.applied);
        // After the positions: whoever is answered here may ask this replica for what it just wrote.
        if !self.waiters.is_empty() {
            for answered in &news.answered {
                self.waiters.applied(answered);
            }
        }
    }

    fn announce(&self, applied: Lsn) {
        self.applied.send_replace(applied);
        let closed = self.own_hlc();
        self.head.send_if_modified(|head| {
            let Some(head) = head else { return false };
            *head = Head { lsn: applied, closed, ..*head };
            true
        });
    }

    /// Whether this node leads the shard.
    pub(crate) fn leads(&self) -> bool {
        self.leads.load(Ordering::Acquire)
    }

    /// This node came to lead the shard, or no longer does.
    pub(crate) fn set_leads(&self, leads: bool) {
        self.leads.store(leads, Ordering::Release);
        let tenure = self.tenures.fetch_add(u64::from(leads), Ordering::AcqRel) + u64::from(leads);
        if leads {
            self.ceilings.start_anew();
        } else {
            self.ceilings.stop();
        }
        self.head.send_if_modified(|head| {
            // Read under the head's own lock: an apply announces to `applied` first, so no later one is missed.
            let now = leads.then(|| Head { lsn: self.applied(), closed: self.own_hlc(), tenure });
            std::mem::replace(head, now) != now
        });
    }

    /// The greatest timestamp applied, of any region.
    pub(crate) fn hlc(&self) -> Hlc {
        Hlc(self.hlc.load(Ordering::Acquire))
    }

    /// The timestamp of the last entry applied from the own log: every later entry's is greater. Not so for
    /// [`Board::hlc`]: entries under way were stamped before another region's greater timestamp arrived.
    pub(crate) fn own_hlc(&self) -> Hlc {
        Hlc(self.own_hlc.load(Ordering::Acquire))
    }

    /// The last applied position.
    pub(crate) fn applied(&self) -> Lsn {
        *self.applied.borrow()
    }

    /// Tells when something was applied.
    pub(crate) fn watch_applied(&self) -> watch::Receiver<Lsn> {
        self.applied.subscribe()
    }

    /// The end of the log while this node leads.
    pub(crate) fn watch_head(&self) -> watch::Receiver<Option<Head>> {
        self.head.subscribe()
    }

    /// To be read *after* a key was found absent: no removal that was seen is later than these positions.
    pub(crate) fn removal_bound(&self, bucket: BucketId) -> Positions {
        let removals = self.removals.read().unwrap_or_else(PoisonError::into_inner);
        removals.get(&bucket).filter(|it| it.last > Lsn(0)).map(|it| it.by.clone()).unwrap_or_default()
    }

    /// The epoch of a bucket that is in force in this shard.
    pub(crate) fn epoch(&self, bucket: BucketId) -> Epoch {
        self.public().epochs.get(&bucket).map_or(Epoch(1), |(epoch, _)| *epoch)
    }

    /// The bucket's fence in this shard.
    pub(crate) fn fence(&self, bucket: BucketId) -> Epoch {
        self.public().epochs.get(&bucket).map_or(Epoch(0), |(_, fence)| *fence)
    }

    /// Whether nothing of the bucket is read here: it is being repaired, or must be.
    pub(crate) fn is_closed(&self, bucket: BucketId) -> bool {
        self.public().closed.contains(&bucket)
    }

    /// How far another region's entries have been applied.
    pub(crate) fn watermark(&self, source: RegionId, lane: Lane) -> Lsn {
        let moved = self.public().watermarks.get(&(source, lane)).copied();
        moved.unwrap_or_else(|| self.core().watermark(source, lane))
    }

    /// Writes that the own log brought to a bucket, with their bytes; rising.
    pub(crate) fn own_writes(&self, bucket: BucketId) -> (u64, u64) {
        self.public().own.get(&bucket).copied().unwrap_or_default()
    }

    /// The digest right after that entry, if it is recent enough.
    pub(crate) fn note(&self, lsn: Lsn) -> Option<DigestNote> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).at(lsn)
    }

    /// How many digests are noted, and the most that are.
    pub(crate) fn noted(&self) -> (usize, usize) {
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        (notes.recent.len(), notes.most)
    }

    /// What the log retains.
    pub(crate) fn retained(&self) -> MutexGuard<'_, Retained> {
        self.retained.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Notes {
    fn extend(&mut self, notes: Vec<(Lsn, DigestNote)>) {
        self.recent.extend(notes);
        let surplus = self.recent.len().saturating_sub(self.most);
        self.recent.drain(..surplus);
    }

    fn at(&self, lsn: Lsn) -> Option<DigestNote> {
        let place = self.recent.binary_search_by_key(&lsn, |(at, _)| *at).ok()?;
        self.recent.get(place).map(|(_, note)| note.clone())
    }
}
