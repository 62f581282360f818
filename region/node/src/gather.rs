//! Reads values from the store: one key, several keys of one moment, or a page of keys merged over all shards.
//!
//! Notes with every key the position it was read at, for session tokens and for the wait of strong reads.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;

use meridian_proto::limits::RESPONSE_BYTES_MAX;
use meridian_region_core::ReadError;
use meridian_region_core::read::{self, Located};
use meridian_types::key::SCAN_ITEMS_MAX;
use meridian_types::request::Found;
use meridian_types::{Bucket, Hlc, Key, Outcome, Positions, Refusal, RefusalKind, ShardId};

use crate::board::Board;
use crate::node::Node;
use crate::store::Frozen;

/// What was read.
pub(crate) struct Gathered {
    pub(crate) outcome: Outcome,
    /// Per shard, the positions of what was read.
    pub(crate) seen: BTreeMap<ShardId, Positions>,
    /// The greatest timestamp applied in the bucket's shards that were read.
    pub(crate) hlc: Hlc,
}

/// One moment of the state, to read several keys from.
pub(crate) struct Scene {
    pub(crate) view: Frozen,
    pub(crate) bucket: Arc<Bucket>,
    /// By shard number.
    pub(crate) boards: Vec<Arc<Board>>,
    pub(crate) now_ms: u64,
}

/// Bytes of keys and values on one page, unless one item alone is larger.
const PAGE_BYTES: usize = 2 << 20;

/// Keys fetched at a time from one shard, at most: bounds what a merge over many shards gathers (RES-1).
const CHUNK_KEYS_MAX: usize = 64;

/// Reads one key, straight from the store.
pub(crate) fn one(node: &Node, bucket: &Bucket, key: &Key, now_ms: u64) -> Result<Gathered, Refusal> {
    let shard = node.shard_of(bucket, key)?;
    let located = read::get(&node.store, shard.id, bucket.id, key, now_ms).map_err(|why| refusal(&why))?;
    let mut notes = Notes::default();
    notes.key(&shard.board, shard.id, bucket, located.as_ref());
    Ok(notes.with(Outcome::Value(located.map(|located| located.found))))
}

/// Reads several keys at one moment.
pub(crate) fn many(scene: &Scene, keys: &[Key]) -> Result<Gathered, Refusal> {
    let mut notes = Notes::default();
    let mut values = Vec::with_capacity(keys.len());
    let mut bytes = 0;
    for key in keys {
        let (shard, board) = scene.shard_of(key)?;
        let located = read::get(&scene.view, shard, scene.bucket.id, key, scene.now_ms).map_err(|why| refusal(&why))?;
        bytes += located.as_ref().map_or(0, |located| located.found.value.len());
        if bytes > RESPONSE_BYTES_MAX {
            return Err(Refusal::new(
                RefusalKind::Invalid,
                format!(
                    "the values of this multi-get have more than {RESPONSE_BYTES_MAX} bytes: ask for fewer keys at a time"
                ),
            ));
        }
        notes.key(board, shard, &scene.bucket, located.as_ref());
        values.push(located.map(|located| located.found));
    }
    Ok(notes.with(Outcome::Values(values)))
}

/// Reads a page of keys under `prefix` behind `after`, in byte order over all shards, at one moment.
pub(crate) fn page(scene: &Scene, prefix: &[u8], after: &[u8], limit: u32, values: bool) -> Result<Gathered, Refusal> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX).clamp(1, SCAN_ITEMS_MAX);
    let mut notes = Notes::default();
    for (number, board) in scene.boards.iter().enumerate() {
        let shard = ShardId(u16::try_from(number).unwrap_or(u16::MAX));
        // A page also says which keys are *not* there.
        notes.absent(board, shard, &scene.bucket);
    }
    let mut merge = Merge::begin(scene, prefix, after, limit)?;
    let mut items = Vec::new();
    let mut bytes = 0;
    while items.len() < limit {
        let Some((key, shard, mut located)) = merge.next()? else {
            return Ok(notes.with(Outcome::Page { items, more: false }));
        };
        if values {
            let value = read::get(&scene.view, shard, scene.bucket.id, &key, scene.now_ms);
            let Some(value) = value.map_err(|why| refusal(&why))? else { continue };
            located = value;
        }
        bytes += key.as_bytes().len() + located.found.value.len();
        if bytes > PAGE_BYTES && !items.is_empty() {
            return Ok(notes.with(Outcome::Page { items, more: true }));
        }
        notes.found(shard, &located);
        let Located { found: Found { value, version, expires_at_ms }, .. } = located;
        items.push((key, Found { value, version, expires_at_ms }));
    }
    let more = merge.next()?.is_some();
    Ok(notes.with(Outcome::Page { items, more }))
}

impl Scene {
    fn shard_of(&self, key: &Key) -> Result<(ShardId, &Arc<Board>), Refusal> {
        let shards = u16::try_from(self.boards.len()).unwrap_or(u16::MAX);
        let shard = key.shard(self.bucket.id, shards.max(1));
        self.boards.get(usize::from(shard.0)).map(|board| (shard, board)).ok_or_else(crate::router::missing_shard)
    }
}

/// Keys of all shards in one order. Only keys wait here; values are read once a key is on the page.
struct Merge<'a> {
    scene: &'a Scene,
    prefix: &'a [u8],
    chunk: u32,
    shards: Vec<Cursor>,
    /// The first waiting key of each shard that has one.
    first: BinaryHeap<Reverse<(Key, usize)>>,
}

struct Cursor {
    waiting: VecDeque<(Key, Located)>,
    after: Vec<u8>,
    more: bool,
}

impl<'a> Merge<'a> {
    fn begin(scene: &'a Scene, prefix: &'a [u8], after: &[u8], limit: usize) -> Result<Merge<'a>, Refusal> {
        let share = limit / scene.boards.len().max(1) + 8;
        let chunk = u32::try_from(share.min(CHUNK_KEYS_MAX)).unwrap_or(1);
        let cursor = || Cursor { waiting: VecDeque::new(), after: after.to_vec(), more: true };
        let shards = scene.boards.iter().map(|_| cursor()).collect();
        let mut merge = Merge { scene, prefix, chunk, shards, first: BinaryHeap::new() };
        for number in 0..merge.shards.len() {
            merge.offer(number)?;
        }
        Ok(merge)
    }

    fn next(&mut self) -> Result<Option<(Key, ShardId, Located)>, Refusal> {
        let Some(Reverse((_, number))) = self.first.pop() else { return Ok(None) };
        let taken = self.shards.get_mut(number).and_then(|cursor| cursor.waiting.pop_front());
        self.offer(number)?;
        Ok(taken.map(|(key, located)| (key, ShardId(u16::try_from(number).unwrap_or(u16::MAX)), located)))
    }

    /// Puts a shard's next key into the order, fetching more of them when none wait.
    fn offer(&mut self, number: usize) -> Result<(), Refusal> {
        let Some(cursor) = self.shards.get_mut(number) else { return Ok(()) };
        if cursor.waiting.is_empty() && cursor.more {
            let shard = ShardId(u16::try_from(number).unwrap_or(u16::MAX));
            let (bucket, now_ms) = (self.scene.bucket.id, self.scene.now_ms);
            let page =
                read::scan(&self.scene.view, shard, bucket, self.prefix, &cursor.after, self.chunk, false, now_ms)
                    .map_err(|why| refusal(&why))?;
            if let Some((last, _)) = page.items.last() {
                cursor.after = last.as_bytes().to_vec();
            }
            cursor.more = page.more;
            cursor.waiting = page.items.into();
        }
        if let Some((key, _)) = cursor.waiting.front() {
            self.first.push(Reverse((key.clone(), number)));
        }
        Ok(())
    }
}

/// Positions of what was read.
#[derive(Default)]
struct Notes {
    seen: BTreeMap<ShardId, Positions>,
    hlc: Hlc,
}

impl Notes {
    fn key(&mut self, board: &Board, shard: ShardId, bucket: &Bucket, located: Option<&Located>) {
        self.hlc = self.hlc.max(crate::reads::bucket_hlc(board, bucket));
        match located {
            Some(located) => self.found(shard, located),
            None => self.absent(board, shard, bucket),
        }
    }

    fn found(&mut self, shard: ShardId, located: &Located) {
        self.seen.entry(shard).or_default().raise(located.origin, located.lsn);
        self.hlc = self.hlc.max(located.found.version.hlc);
    }

    fn absent(&mut self, board: &Board, shard: ShardId, bucket: &Bucket) {
        self.hlc = self.hlc.max(crate::reads::bucket_hlc(board, bucket));
        for (region, lsn) in board.removal_bound(bucket.id).0 {
            self.seen.entry(shard).or_default().raise(region, lsn);
        }
    }

    fn with(self, outcome: Outcome) -> Gathered {
        Gathered { outcome, seen: self.seen, hlc: self.hlc }
    }
}

/// What a read that failed means to the client.
pub(crate) fn refusal(why: &ReadError) -> Refusal {
    match why {
        ReadError::Damage(damage) => Refusal::new(
            RefusalKind::Corrupt,
            format!("{damage}: it is not served; read from another region, and rebuild this node from its peers"),
        ),
        ReadError::View(view) => Refusal::new(
            RefusalKind::Unavailable,
            format!("{view}: read from another region; the node's log says what its disk reported"),
        ),
    }
}
