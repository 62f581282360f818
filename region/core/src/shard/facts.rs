//! What others may know of a shard: positions, digests, fences, kept answers, what is due.

use bytes::Bytes;
use meridian_types::entry::{Header, Kind};
use meridian_types::{BucketDigest, BucketId, Epoch, Hlc, Key, Lane, Lsn, Positions, RegionId, RequestId, ShardId};

use super::Shard;
use crate::error::ReadError;
use crate::meta::{BucketMeta, Left, Stop};
use crate::read;
use crate::result::Divergence;
use crate::sessions;
use crate::view::StateView;

/// Keys of one bucket whose time has come: the content of one `Expire` entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// The bucket.
    pub bucket: BucketId,
    /// Keys and their expiry in milliseconds since 1970, earliest first.
    pub keys: Vec<(Key, u64)>,
}

impl Shard {
    /// The region this shard is in.
    pub fn region(&self) -> RegionId {
        self.region
    }

    /// Which shard it is.
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// The last entry of the own log that was applied.
    pub fn applied(&self) -> Lsn {
        self.meta.applied
    }

    /// The digest of a bucket, if anything was ever written to it here.
    pub fn digest(&self, bucket: BucketId) -> Option<&BucketDigest> {
        self.buckets.get(&bucket).map(|meta| &meta.digest).filter(|digest| digest.operations > 0)
    }

    /// The digests of all buckets that anything was ever written to here.
    pub fn digests(&self) -> impl Iterator<Item = (BucketId, &BucketDigest)> {
        let written = self.buckets.iter().filter(|(_, meta)| meta.digest.operations > 0);
        written.map(|(bucket, meta)| (*bucket, &meta.digest))
    }

    /// Every bucket that anything is known of here.
    pub fn buckets(&self) -> impl Iterator<Item = BucketId> {
        self.buckets.keys().copied()
    }

    /// Whether anything is known of a bucket here.
    pub fn knows(&self, bucket: BucketId) -> bool {
        self.buckets.contains_key(&bucket)
    }

    /// What a bucket has of every origin.
    pub fn positions(&self, bucket: BucketId) -> Positions {
        self.buckets.get(&bucket).map(|meta| meta.digest.positions.clone()).unwrap_or_default()
    }

    /// How far the entries of another region have been applied, per lane.
    pub fn watermark(&self, source: RegionId, lane: Lane) -> Lsn {
        self.watermarks.get(&(source, lane)).copied().unwrap_or_default()
    }

    /// The bucket's fence: entries of lower epochs are refused (FEN-2). 0 when there is none.
    pub fn fence(&self, bucket: BucketId) -> Epoch {
        self.buckets.get(&bucket).map(BucketMeta::fence).unwrap_or_default()
    }

    /// Whether this region has stopped ordering in the bucket, or has gone on since; `None` when it never did in this epoch.
    pub fn stop(&self, bucket: BucketId) -> Option<Stop> {
        self.buckets.get(&bucket).and_then(|meta| meta.stop)
    }

    /// The region of which nothing more is taken in, because it was given up for lost and that is not settled yet.
    pub fn parted(&self, bucket: BucketId) -> Option<RegionId> {
        self.buckets.get(&bucket).and_then(|meta| meta.parted)
    }

    /// The greatest timestamp applied, of any region: the leader stamps its next entry above it.
    pub fn last_hlc(&self) -> Hlc {
        self.meta.greatest_hlc
    }

    /// The divergence found in a bucket, if one ever was.
    pub fn divergence(&self, bucket: BucketId) -> Option<&Divergence> {
        self.buckets.get(&bucket).and_then(|meta| meta.divergence.as_ref())
    }

    /// Whether the bucket was dropped here.
    pub fn is_dropped(&self, bucket: BucketId) -> bool {
        self.buckets.get(&bucket).is_some_and(|meta| meta.dropped)
    }

    /// The most results of requests that are kept here for one client, and for one (bucket, origin region): at most
    /// [`crate::SESSION_RESULTS_MAX`] and [`crate::ORIGIN_RESULTS_MAX`] (RES-1).
    pub fn most_kept_results(&self) -> (usize, usize) {
        self.sessions.most_kept()
    }

    /// Whether this region was removed from the bucket, and has not been filled again since.
    pub fn has_left(&self, bucket: BucketId) -> bool {
        self.buckets.get(&bucket).is_some_and(|meta| meta.left.is_some())
    }

    /// Whether it was, and rows of then are still there.
    pub fn is_leaving(&self, bucket: BucketId) -> bool {
        self.buckets.get(&bucket).is_some_and(|meta| meta.left == Some(Left::Dropping))
    }

    /// Whether another region's entry has no place here: the bucket was deleted, or this region was removed from it in the entry's
    /// epoch or later.
    pub(super) fn passes_over(&self, header: &Header) -> bool {
        let left = |meta: &BucketMeta| meta.left.is_some() && header.epoch <= meta.epoch();
        self.buckets.get(&header.bucket).is_some_and(|meta| meta.dropped || left(meta))
    }

    /// Whether an own entry of a shipped kind took its place in its bucket's history. An entry that
    /// was refused by the fence, its timestamp, a repair or a dropped bucket did not: **the log reader must
    /// not hand it to the shipper**, since the other regions can't know why it was refused.
    pub fn is_effective(&self, lsn: Lsn, header: &Header) -> bool {
        // A seal ends an epoch that may be fenced off already; one that did not is remembered as void.
        let is_fenced = |meta: &BucketMeta| header.kind != Kind::Seal && meta.is_fenced_at(lsn, header.epoch);
        let fenced = |meta: &BucketMeta| meta.dropped || is_fenced(meta) || meta.is_void_at(lsn);
        !self.meta.voids.contains(&lsn) && !self.buckets.get(&header.bucket).is_some_and(fenced)
    }

    /// The kept answer to a request, looked up before proposing: spares a retry the log (ONE-1).
    ///
    /// # Errors
    /// [`ReadError`] when the state can't be read or is damaged.
    pub fn answered(&self, view: &dyn StateView, bucket: BucketId, id: RequestId) -> Result<Option<Bytes>, ReadError> {
        let Some(at) = self.sessions.find(bucket, id) else { return Ok(None) };
        sessions::read(|key| view.get(key), self.id, bucket, id, at).map(Some)
    }

    /// Keys due at `now_ms` in the buckets that `expires_here` chooses (those whose primary this region is),
    /// at most `limit` together, grouped for one `Expire` entry per bucket. Cheap when nothing has a TTL.
    ///
    /// # Errors
    /// [`ReadError`] when the state can't be read or is damaged.
    pub fn due(
        &self,
        view: &dyn StateView,
        now_ms: u64,
        limit: usize,
        expires_here: &dyn Fn(BucketId) -> bool,
    ) -> Result<Vec<Due>, ReadError> {
        let mut grouped = Vec::new();
        let mut left = limit;
        for (bucket, meta) in &self.buckets {
            if left == 0 || meta.expiring == 0 || meta.repair.is_some() || !expires_here(*bucket) {
                continue;
            }
            let due = read::due(view, self.id, *bucket, now_ms, left)?;
            left -= due.len();
            if !due.is_empty() {
                grouped.push(Due { bucket: *bucket, keys: due });
            }
        }
        Ok(grouped)
    }

    /// Holds the shard to its own rules.
    ///
    /// # Panics
    /// When one is broken.
    pub fn validate(&self) {
        self.sessions.validate();
        assert!(self.meta.own_hlc <= self.meta.greatest_hlc, "no own timestamp is above the greatest");
        assert!(self.watermarks.keys().all(|(source, _)| *source != self.region), "no watermark of the own region");
        for meta in self.buckets.values() {
            let digest = &meta.digest;
            assert!(digest.positions.of(self.region) <= self.meta.applied, "no own position beyond the applied");
            assert!(digest.hlc <= self.meta.greatest_hlc, "no bucket's timestamp is above the greatest");
            assert!(meta.expiring <= digest.keys, "only live keys expire");
            assert!(meta.left.is_none() || meta.digest.operations == 0, "a bucket that was left has no history");
            assert!(!meta.dropped || *digest == BucketDigest::default(), "a dropped bucket holds nothing");
            let rising = meta.fences.is_sorted_by(|(_, lower), (_, higher)| lower < higher);
            assert!(rising, "a fence only ever rises");
        }
    }
}
