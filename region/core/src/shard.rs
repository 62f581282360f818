//! One shard of one region.

use std::collections::BTreeMap;

use bytes::Bytes;
use meridian_types::entry::Header;
use meridian_types::frame::DigestNote;
use meridian_types::{BucketDigest, BucketId, Epoch, Hlc, Key, Lane, Lsn, RegionId, RequestId, ShardId};

use crate::error::{ApplyError, LoadError, ReadError};
use crate::result::Divergence;
use crate::view::{Mutations, StateView};

/// One shard's metadata in memory: digests, watermarks, fences, the index of kept results. The data
/// itself stays behind the [`StateView`].
#[derive(Clone, Debug)]
pub struct Shard {
    region: RegionId,
    id: ShardId,
    shards: Option<u16>,
    digests: BTreeMap<BucketId, BucketDigest>,
}

/// What an entry did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The answer for its proposer: an encoded [`crate::WriteResult`], [`crate::FrameResult`] or [`crate::ControlResult`].
    pub result: Bytes,
    /// Every client request this entry decided, those inside a frame included: they may be answered now.
    pub answered: Vec<(RequestId, Bytes)>,
    /// For an own write or expiry that took its place in the bucket's history: the digest after it.
    pub note: Option<DigestNote>,
    /// For a frame that was applied.
    pub frame: Option<FrameApplied>,
}

/// What a frame did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameApplied {
    /// The region it came from.
    pub source: RegionId,
    /// Its lane.
    pub lane: Lane,
    /// The watermark now.
    pub watermark: Lsn,
    /// Buckets found to differ from the source at equal positions. Sticky: see [`Shard::divergence`].
    pub diverged: Vec<Divergence>,
}

impl Shard {
    /// Reads a shard's metadata; an empty state is a new shard.
    ///
    /// # Errors
    /// [`LoadError`] when the state can't be read or is damaged.
    pub fn load(_view: &dyn StateView, region: RegionId, shard: ShardId) -> Result<Shard, LoadError> {
        Ok(Shard { region, id: shard, shards: None, digests: BTreeMap::new() })
    }

    /// Tells how many shards the cluster has, so that a write to a key of another shard is refused. To
    /// be given in every region of the cluster or in none.
    #[must_use]
    pub fn with_shards(self, shards: u16) -> Shard {
        Shard { shards: Some(shards), ..self }
    }

    /// Applies one committed entry of this group's log at `lsn`, reading `view` with `out` on top and adding to `out`.
    /// An entry at or below [`Shard::applied`] changes nothing.
    ///
    /// # Errors
    /// [`ApplyError`] for damage only; the shard must not be used afterwards.
    pub fn apply(
        &mut self,
        _view: &dyn StateView,
        _lsn: Lsn,
        _entry: &[u8],
        _out: &mut Mutations,
    ) -> Result<Applied, ApplyError> {
        Ok(Applied { result: Bytes::new(), answered: Vec::new(), note: None, frame: None })
    }

    /// Adds changed metadata to `out`: once per batch, before it is committed.
    pub fn checkpoint(&mut self, _out: &mut Mutations) {}

    /// Holds the shard to its own rules.
    ///
    /// # Panics
    /// When one is broken.
    pub fn validate(&self) {}

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
        Lsn(0)
    }

    /// The digest of a bucket, if anything was ever written to it here.
    pub fn digest(&self, bucket: BucketId) -> Option<&BucketDigest> {
        self.digests.get(&bucket)
    }

    /// The digests of all buckets.
    pub fn digests(&self) -> impl Iterator<Item = (BucketId, &BucketDigest)> {
        self.digests.iter().map(|(bucket, digest)| (*bucket, digest))
    }

    /// How far the entries of another region have been applied, per lane.
    pub fn watermark(&self, _source: RegionId, _lane: Lane) -> Lsn {
        Lsn(0)
    }

    /// The bucket's fence: entries of lower epochs are refused (FEN-2). 0 when there is none.
    pub fn fence(&self, _bucket: BucketId) -> Epoch {
        Epoch(0)
    }

    /// The greatest timestamp applied, of any region: the leader stamps its next entry above it.
    pub fn last_hlc(&self) -> Hlc {
        Hlc(0)
    }

    /// The divergence found in a bucket, if one ever was.
    pub fn divergence(&self, _bucket: BucketId) -> Option<&Divergence> {
        None
    }

    /// Whether the bucket was dropped here.
    pub fn is_dropped(&self, _bucket: BucketId) -> bool {
        false
    }

    /// Whether an own entry of a shipped kind took its place in its bucket's history. An entry that
    /// was refused by the fence, its timestamp or a dropped bucket did not: **the log reader must
    /// not hand it to the shipper**, since the other regions can't know why it was refused.
    pub fn is_effective(&self, _lsn: Lsn, _header: &Header) -> bool {
        true
    }

    /// The kept answer to a request, looked up before proposing: spares a retry the log (ONE-1).
    ///
    /// # Errors
    /// [`ReadError`] when the state can't be read or is damaged.
    pub fn answered(
        &self,
        _view: &dyn StateView,
        _bucket: BucketId,
        _id: RequestId,
    ) -> Result<Option<Bytes>, ReadError> {
        Ok(None)
    }

    /// Keys due at `now_ms` in the buckets that `expires_here` chooses (those whose primary this region is),
    /// at most `limit` together, grouped for one `Expire` entry per bucket. Cheap when nothing has a TTL.
    ///
    /// # Errors
    /// [`ReadError`] when the state can't be read or is damaged.
    pub fn due(
        &self,
        _view: &dyn StateView,
        _now_ms: u64,
        _limit: usize,
        _expires_here: &dyn Fn(BucketId) -> bool,
    ) -> Result<Vec<(BucketId, Vec<(Key, u64)>)>, ReadError> {
        Ok(Vec::new())
    }
}
