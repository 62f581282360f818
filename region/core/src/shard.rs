//! One shard of one region: the state machine.
//!
//! Keeps ORD-1 (frames in `shard/frame.rs`), ONE-1 (`sessions.rs`), FEN-2 (here and in `shard/frame.rs`),
//! CON-4 and CON-5 (`shard/merge.rs`). An own entry goes this way; what leaves early changes nothing:
//!
//! ```text
//! applied before? -> kind -> bucket dropped? -> request decided before? -> fence -> timestamp -> meaning
//! ```
//!
//! Metadata lives in memory and is written by [`Shard::checkpoint`], once per batch and only where it changed.
//! After any error the shard in memory may be ahead of the state: load it again.

mod control;
mod editor;
mod epoch;
mod facts;
mod frame;
mod merge;
mod plain;
mod repair;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use bytes::Bytes;
use meridian_types::entry::{HEADER_BYTES, Header, Kind};
use meridian_types::frame::{DigestNote, FrameHeader};
use meridian_types::{
    BucketId, ClientId, Effect, Epoch, Key, Lane, Lsn, Refusal, RefusalKind, RegionId, RequestId, ShardId, Version,
};

use crate::body::{self, BodyRef, WriteBodyRef};
use crate::error::{ApplyError, Damage, LoadError, ReadError};
use crate::keys::{self, MetaKey};
use crate::meta::{self, BucketMeta, RepairPhase, ShardMeta};
use crate::record::{Content, Stamp};
use crate::result::{ControlResult, Divergence, FrameResult, WriteResult};
use crate::sessions::{self, Asked, Known, Scope, Sessions};
use crate::view::{MemoryState, Mutations, StateView};

pub use self::control::REMOVALS_MAX;
use self::editor::Editor;
use self::epoch::Parked;
pub use self::epoch::{CLOSED_BYTES_MAX, CLOSED_ENTRIES_MAX, PARKED_BYTES_MAX, PARKED_ENTRIES_MAX};
pub use self::facts::Due;
pub use self::repair::RELEASED_MAX;
use self::repair::Step;
pub use self::watch::removed_at;

/// One shard's metadata in memory: digests, watermarks, fences, the index of kept results. The data
/// itself stays behind the [`StateView`].
#[derive(Clone, Debug)]
pub struct Shard {
    region: RegionId,
    id: ShardId,
    shards: Option<u16>,
    meta: ShardMeta,
    buckets: BTreeMap<BucketId, BucketMeta>,
    watermarks: BTreeMap<(RegionId, Lane), Lsn>,
    sessions: Sessions,
    /// Counted here, kept in the state.
    parked: BTreeMap<BucketId, Parked>,
    /// Buckets of which the state remembers which keys of salvage bundles are removed.
    watched: BTreeSet<BucketId>,
    /// Regions whose frames the fence of a bucket kept out, and the epoch that was in force here then. Not kept in the state: as long
    /// as it is so, the frame comes again.
    kept_out: BTreeMap<(BucketId, RegionId), Epoch>,
    dirty: Dirty,
}

/// Metadata that the state does not have yet.
#[derive(Clone, Debug, Default)]
struct Dirty {
    shard: bool,
    buckets: BTreeSet<BucketId>,
    watermarks: BTreeSet<(RegionId, Lane)>,
}

/// What a client's request came to. Ids are told apart within a bucket only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// Of which bucket it was.
    pub bucket: BucketId,
    /// Which request.
    pub id: RequestId,
    /// Its result, encoded.
    pub result: Bytes,
}

/// What an entry did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The answer for its proposer: an encoded [`WriteResult`] for [`Kind::Write`], [`crate::FrameResult`] for
    /// [`Kind::Frame`], [`ControlResult`] for the others.
    pub result: Bytes,
    /// Every client request this entry decided, those inside a frame included: they may be answered now.
    pub answered: Vec<Answered>,
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

impl Applied {
    fn answering(result: Bytes) -> Applied {
        Applied { result, answered: Vec::new(), note: None, frame: None }
    }
}

impl Shard {
    /// Reads a shard's metadata; an empty state is a new shard.
    ///
    /// # Errors
    /// [`LoadError`] when the state can't be read or is damaged.
    pub fn load(view: &dyn StateView, region: RegionId, shard: ShardId) -> Result<Shard, LoadError> {
        let mut loaded = Shard {
            region,
            id: shard,
            shards: None,
            meta: ShardMeta::default(),
            buckets: BTreeMap::new(),
            watermarks: BTreeMap::new(),
            sessions: Sessions::load(view, shard)?,
            parked: BTreeMap::new(),
            watched: watch::load(view, shard)?,
            kept_out: BTreeMap::new(),
            dirty: Dirty::default(),
        };
        let mut damage = None;
        let (from, to) = keys::meta_range(shard);
        view.scan(&from, &to, &mut |key, value| match loaded.take_meta(key, value) {
            Ok(()) => ControlFlow::Continue(()),
            Err(found) => {
                damage = Some(found);
                ControlFlow::Break(())
            }
        })?;
        if let Some(damage) = damage {
            return Err(damage.into());
        }
        loaded.load_parked(view)?;
        for (bucket, meta) in &loaded.buckets {
            // Its results are not those of one history while its rows are exchanged.
            if meta.repair.as_ref().is_some_and(|repair| matches!(repair.phase, RepairPhase::Moving { .. })) {
                loaded.sessions.drop_bucket(*bucket);
            }
        }
        Ok(loaded)
    }

    /// As [`Shard::load`], of one bucket, and without what is remembered of clients: enough to ask what it says of entries that it has
    /// applied.
    ///
    /// # Errors
    /// As [`Shard::load`].
    pub fn glance(
        view: &dyn StateView,
        region: RegionId,
        shard: ShardId,
        bucket: BucketId,
    ) -> Result<Shard, LoadError> {
        let mut glanced = Shard::load(&MemoryState::default(), region, shard)?;
        for key in [keys::shard_meta(shard), keys::bucket_meta(shard, bucket)] {
            if let Some(value) = view.get(&key)? {
                glanced.take_meta(&key, &value)?;
            }
        }
        Ok(glanced)
    }

    fn take_meta(&mut self, key: &[u8], value: &[u8]) -> Result<(), Damage> {
        match keys::parse_meta(key).ok_or(Damage { what: "metadata key" })? {
            MetaKey::Shard => self.meta = meta::decode(value, "position of the shard")?,
            MetaKey::Watermark(source, lane) => {
                self.watermarks.insert((source, lane), meta::decode(value, "watermark")?);
            }
            MetaKey::Bucket(bucket) => {
                self.buckets.insert(bucket, meta::decode_bucket(value)?);
            }
        }
        Ok(())
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
        view: &dyn StateView,
        lsn: Lsn,
        entry: &[u8],
        out: &mut Mutations,
    ) -> Result<Applied, ApplyError> {
        let header = Header::decode(entry).map_err(|source| ApplyError::Entry { lsn, source })?;
        if header.origin != self.region {
            return Err(ApplyError::ForeignLog { lsn, origin: header.origin, region: self.region });
        }
        let replayed = lsn <= self.meta.applied;
        if !replayed {
            self.meta.applied = lsn;
            self.dirty.shard = true;
        }
        let applied = match header.kind {
            _ if replayed => self.replay(view, lsn, &header, entry, out),
            Kind::Frame => self.apply_frame(view, entry, out),
            Kind::Write
            | Kind::Expire
            | Kind::Seal
            | Kind::Fence
            | Kind::DropBucket
            | Kind::ExpireClients
            | Kind::Repair
            | Kind::Stop
            | Kind::Raise
            | Kind::Part => {
                let body = body::decode(&header, entry).map_err(|source| ApplyError::Entry { lsn, source })?;
                self.apply_own(view, lsn, &header, entry, &body, out)
            }
        };
        if !replayed {
            self.meta.greatest_hlc = self.meta.greatest_hlc.max(header.hlc);
        }
        if !replayed && header.kind.is_shipped() {
            self.meta.own_hlc = self.meta.own_hlc.max(header.hlc);
        }
        applied.map_err(|error| match error {
            ReadError::View(source) => ApplyError::View { lsn, source },
            ReadError::Damage(source) => ApplyError::Damage { lsn, source },
        })
    }

    /// Adds changed metadata to `out`: once per batch, before it is committed.
    pub fn checkpoint(&mut self, out: &mut Mutations) {
        let dirty = std::mem::take(&mut self.dirty);
        if dirty.shard {
            out.put(keys::shard_meta(self.id), meta::encode(&self.meta));
        }
        for bucket in dirty.buckets {
            if let Some(meta) = self.buckets.get(&bucket) {
                out.put(keys::bucket_meta(self.id, bucket), meta::encode_bucket(meta));
            }
        }
        for (source, lane) in dirty.watermarks {
            let watermark = self.watermark(source, lane);
            out.put(keys::watermark(self.id, source, lane), meta::encode(&watermark));
        }
    }

    /// An entry that the state already has: the kept result where there is one, and no change.
    fn replay(
        &self,
        view: &dyn StateView,
        lsn: Lsn,
        header: &Header,
        entry: &[u8],
        out: &Mutations,
    ) -> Result<Applied, ReadError> {
        let result = match header.kind {
            Kind::Write => match self.answered(&out.over(view), header.bucket, header.id)? {
                Some(kept) => kept,
                None => {
                    let refusal = Refusal::new(RefusalKind::Retry, "the log entry was applied before");
                    let outcome = Err(refusal.with_effect(Effect::Unknown));
                    WriteResult { lsn, hlc: header.hlc, outcome }.encode()
                }
            },
            Kind::Frame => match FrameHeader::decode(entry.get(HEADER_BYTES..).unwrap_or_default()) {
                Ok(frame) => {
                    FrameResult::AlreadyApplied { watermark: self.watermark(frame.source, frame.lane) }.encode()
                }
                Err(error) => FrameResult::Damaged { reason: error.to_string() }.encode(),
            },
            Kind::Expire
            | Kind::Seal
            | Kind::Fence
            | Kind::DropBucket
            | Kind::ExpireClients
            | Kind::Repair
            | Kind::Stop
            | Kind::Raise
            | Kind::Part => control::done(0, false).encode(),
        };
        Ok(Applied::answering(result))
    }

    fn apply_own(
        &mut self,
        view: &dyn StateView,
        lsn: Lsn,
        header: &Header,
        entry: &[u8],
        body: &BodyRef<'_>,
        out: &mut Mutations,
    ) -> Result<Applied, ReadError> {
        let control = |result: ControlResult| Ok(Applied::answering(result.encode()));
        match body {
            BodyRef::Fence => control(self.apply_fence(lsn, header)),
            BodyRef::DropBucket => control(self.apply_drop(view, lsn, header, out)?),
            BodyRef::ExpireClients { before } => control(self.apply_expire_clients(*before, out)),
            BodyRef::Stop { index, stops } => control(self.apply_stop(lsn, header, *index, *stops)),
            BodyRef::Part { index, from } => control(self.apply_part(lsn, header, *index, *from)),
            BodyRef::Raise { index, next, after } => {
                let (result, answered) = self.apply_raise(Step { view, out, lsn }, header, (*index, *next), after)?;
                Ok(Applied { answered, ..Applied::answering(result.encode()) })
            }
            BodyRef::Repair(step) => {
                let (result, answered) = self.apply_repair(Step { view, out, lsn }, header, step)?;
                Ok(Applied { answered, ..Applied::answering(result.encode()) })
            }
            BodyRef::Write(_) | BodyRef::Expire { .. } | BodyRef::Seal { .. } => {
                if let Some(refusal) = self.void(lsn, header, body) {
                    return self.refuse(view, lsn, header, body, refusal, out);
                }
                let result = self.apply_history(view, out, lsn, header, entry.len(), body)?;
                let note = self.note(header.bucket);
                let mut answered = answered(header, &result);
                if let BodyRef::Seal { .. } = body {
                    // What waited here for epochs that are passed over has no place in the history any more.
                    self.unpark(view, header.bucket, usize::MAX, out, &mut answered)?;
                }
                Ok(Applied { answered, result, note, frame: None })
            }
        }
    }

    /// Why an own entry has no place in its bucket's history, if it hasn't (FEN-2). The other regions never see it.
    fn void(&mut self, lsn: Lsn, header: &Header, body: &BodyRef<'_>) -> Option<Refusal> {
        let meta = self.buckets.get(&header.bucket);
        if meta.is_some_and(|meta| meta.dropped) {
            return Some(Refusal::new(RefusalKind::NotFound, "the bucket was deleted"));
        }
        if meta.is_some_and(|meta| meta.left.is_some()) {
            self.meta.void(lsn);
            let message = "this region was removed from the bucket and orders nothing: refresh the topology and retry";
            return Some(Refusal::new(RefusalKind::Retry, message));
        }
        if meta.is_some_and(|meta| meta.repair.is_some()) {
            let message = "the bucket is being repaired in this shard of the region, which orders nothing meanwhile";
            return Some(Refusal::new(RefusalKind::Retry, message));
        }
        let stopped = meta.and_then(|meta| meta.stop).is_some_and(|stop| stop.stopped);
        let fence = meta.map(BucketMeta::fence).unwrap_or_default();
        let sealed = match body {
            BodyRef::Seal { next, after } => Some(self.follows(header, *next, after)),
            _ => None,
        };
        if sealed == Some(false) {
            self.meta.void(lsn);
            let message = "the epoch was not as the seal says; nothing was changed: look again";
            return Some(Refusal::new(RefusalKind::Retry, message));
        }
        if sealed.is_none() && header.epoch < fence {
            let message = format!(
                "the write was ordered under epoch {} of the bucket, but epoch {fence} is in force: refresh the topology and retry",
                header.epoch
            );
            return Some(Refusal::new(RefusalKind::Fenced, message));
        }
        if sealed.is_none() && stopped {
            let message = "the bucket is on its way to another policy, and no region orders anything meanwhile: retry";
            return Some(Refusal::new(RefusalKind::Retry, message));
        }
        let current = self.epoch(header.bucket);
        if header.epoch > current {
            self.meta.void(lsn);
            let message = format!(
                "the write was ordered under epoch {} of the bucket, which has not begun in this shard: epoch {current} is in force: retry",
                header.epoch
            );
            return Some(Refusal::new(RefusalKind::Retry, message));
        }
        if header.hlc <= self.meta.own_hlc {
            self.meta.void(lsn);
            let message = "the write's timestamp was not above its predecessor's; nothing was changed: retry";
            return Some(Refusal::new(RefusalKind::Retry, message));
        }
        None
    }

    /// Answers a void entry: a retry still gets its first answer.
    fn refuse(
        &self,
        view: &dyn StateView,
        lsn: Lsn,
        header: &Header,
        body: &BodyRef<'_>,
        refusal: Refusal,
        out: &Mutations,
    ) -> Result<Applied, ReadError> {
        let BodyRef::Write(write) = body else {
            let result = ControlResult { removed: 0, more: false, refused: Some(refusal) };
            return Ok(Applied::answering(result.encode()));
        };
        let asked = asked(header);
        let kept = match self.sessions.look_up(&asked, scope(write)) {
            Known::Decided { origin, slot } => Some((origin, slot)),
            Known::New | Known::Forgotten => None,
        };
        let result = match kept {
            Some(at) => sessions::read(|key| out.over(view).get(key), self.id, asked.bucket, asked.id, at)?,
            None => WriteResult { lsn, hlc: header.hlc, outcome: Err(refusal) }.encode(),
        };
        Ok(Applied { answered: answered(header, &result), ..Applied::answering(result) })
    }

    /// Applies an entry that is part of its bucket's history: alike in every region that holds the bucket.
    /// `lsn` is its origin's.
    fn apply_history(
        &mut self,
        view: &dyn StateView,
        out: &mut Mutations,
        lsn: Lsn,
        header: &Header,
        entry_bytes: usize,
        body: &BodyRef<'_>,
    ) -> Result<Bytes, ReadError> {
        let version = Version { hlc: header.hlc, region: header.origin };
        let meta = self.buckets.entry(header.bucket).or_default();
        let (bucket, stamp) = (header.bucket, Stamp { version, lsn });
        // Where in the *own* log, wherever the entry comes from.
        let watch = self.watched.contains(&bucket).then_some(self.meta.applied);
        let mut editor = Editor { shard: self.id, bucket, meta, view, out, stamp, watch };
        let result = match body {
            BodyRef::Write(write) => decide(&mut editor, &mut self.sessions, self.shards, header, write)?,
            BodyRef::Expire { due } => control::done(plain::expire(&mut editor, due)?, false).encode(),
            BodyRef::Seal { next, .. } => {
                // Where in the *own* log, whoever sealed.
                editor.meta.begin(self.meta.applied, *next);
                control::done(0, false).encode()
            }
            // Never part of a history; both callers have seen to it.
            BodyRef::Fence
            | BodyRef::DropBucket
            | BodyRef::ExpireClients { .. }
            | BodyRef::Repair(_)
            | BodyRef::Stop { .. }
            | BodyRef::Raise { .. }
            | BodyRef::Part { .. } => Bytes::new(),
        };
        let digest = &mut meta.digest;
        digest.positions.raise(header.origin, lsn);
        digest.operations = digest.operations.saturating_add(1);
        digest.operation_bytes = digest.operation_bytes.saturating_add(entry_bytes as u64);
        digest.hlc = digest.hlc.max(header.hlc);
        let origin_hlc = meta.origin_hlc.entry(header.origin).or_default();
        *origin_hlc = header.hlc.max(*origin_hlc);
        self.meta.greatest_hlc = self.meta.greatest_hlc.max(header.hlc);
        self.dirty.buckets.insert(header.bucket);
        Ok(result)
    }

    fn note(&self, bucket: BucketId) -> Option<DigestNote> {
        let digest = self.digest(bucket)?;
        Some(DigestNote { bucket, positions: digest.positions.clone(), hash: digest.hash, keys: digest.keys })
    }
}

/// Decides a client's write, or finds what was decided (ONE-1).
fn decide(
    editor: &mut Editor<'_>,
    sessions: &mut Sessions,
    shards: Option<u16>,
    header: &Header,
    write: &WriteBodyRef<'_>,
) -> Result<Bytes, ReadError> {
    let asked = asked(header);
    let (lsn, hlc) = (editor.stamp.lsn, header.hlc);
    match sessions.look_up(&asked, scope(write)) {
        Known::Decided { origin, slot } => {
            let get = |key: &[u8]| editor.out.over(editor.view).get(key);
            return sessions::read(get, editor.shard, asked.bucket, asked.id, (origin, slot));
        }
        Known::Forgotten => {
            let message = "the request is older than the results remembered for its client, so whether it took effect can't be told: \
                           read before writing again, under a new request id";
            let outcome = Err(Refusal::new(RefusalKind::Invalid, message).with_effect(Effect::Unknown));
            return Ok(WriteResult { lsn, hlc, outcome }.encode());
        }
        Known::New => {}
    }
    let outcome = match write.validate().and_then(|()| check_shard(editor, shards, write)) {
        Ok(()) => apply_write(editor, write)?,
        Err(refusal) => Err(refusal),
    };
    let result = WriteResult { lsn, hlc, outcome }.encode();
    sessions.keep(editor.shard, &asked, &result, editor.out);
    Ok(result)
}

fn apply_write(editor: &mut Editor<'_>, write: &WriteBodyRef<'_>) -> plain::Decision {
    match write {
        WriteBodyRef::Plain(write) => plain::apply(editor, write),
        WriteBodyRef::Register { key, value, expires_at_ms } => {
            merge::register(editor, *key, Content { expires_at_ms: *expires_at_ms, value: value.0 })
        }
        WriteBodyRef::Counter { key, by } => merge::count(editor, *key, *by),
        WriteBodyRef::Remove { key, counter } => merge::remove(editor, *key, counter),
    }
}

/// A write is atomic within one shard; a key of another one has no place here.
fn check_shard(editor: &Editor<'_>, shards: Option<u16>, write: &WriteBodyRef<'_>) -> Result<(), Refusal> {
    let Some(shards) = shards else { return Ok(()) };
    for key in write.keys() {
        let key = Key::new(Bytes::copy_from_slice(key.0))?;
        let shard = key.shard(editor.bucket, shards);
        if shard != editor.shard {
            let message = format!(
                "a key belongs to shard {shard}, but the write was ordered in shard {}: keys written together must share a shard",
                editor.shard
            );
            return Err(Refusal::new(RefusalKind::Invalid, message));
        }
    }
    Ok(())
}

fn asked(header: &Header) -> Asked {
    Asked {
        bucket: header.bucket,
        origin: header.origin,
        id: header.id,
        lowest_outstanding: header.lowest_outstanding,
        hlc: header.hlc,
    }
}

fn scope(write: &WriteBodyRef<'_>) -> Scope {
    match write {
        WriteBodyRef::Plain(_) => Scope::Bucket,
        WriteBodyRef::Register { .. } | WriteBodyRef::Counter { .. } | WriteBodyRef::Remove { .. } => Scope::Origin,
    }
}

fn answered(header: &Header, result: &Bytes) -> Vec<Answered> {
    let answer = || Answered { bucket: header.bucket, id: header.id, result: result.clone() };
    if header.id.client == ClientId(0) { Vec::new() } else { vec![answer()] }
}
