//! Reads of a shard's data: one key, a page of keys, and keys whose time has come.

use meridian_types::request::Found;
use meridian_types::{BucketId, Key, Lsn, RegionId, ShardId};

use crate::error::ReadError;
use crate::view::StateView;

/// A value with where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The value, its version and expiry.
    pub found: Found,
    /// The position, in the origin's log, of the write that made it: for session tokens.
    pub lsn: Lsn,
    /// Whose log that is.
    pub origin: RegionId,
}

/// A page of a scan.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Page {
    /// Keys in rising order; values are empty when only keys were asked for.
    pub items: Vec<(Key, Located)>,
    /// Whether there is more behind the last key.
    pub more: bool,
}

/// The value of a key at a time, if it has one then.
///
/// # Errors
/// [`ReadError`] when the state can't be read or is damaged.
pub fn get(
    _view: &dyn StateView,
    _shard: ShardId,
    _bucket: BucketId,
    _key: &Key,
    _now_ms: u64,
) -> Result<Option<Located>, ReadError> {
    Ok(None)
}

/// A page of the live keys under `prefix` behind `after`, in byte order: at most `limit` items (clamped to
/// 1..=[`meridian_types::key::SCAN_ITEMS_MAX`]), and no more bytes than [`PAGE_BYTES_MAX`] unless one item alone is larger.
///
/// # Errors
/// [`ReadError`] when the state can't be read or is damaged.
#[allow(clippy::too_many_arguments, reason = "a scan has that many independent parts")]
pub fn scan(
    _view: &dyn StateView,
    _shard: ShardId,
    _bucket: BucketId,
    _prefix: &[u8],
    _after: &[u8],
    _limit: u32,
    _values: bool,
    _now_ms: u64,
) -> Result<Page, ReadError> {
    Ok(Page::default())
}

/// The most bytes of keys and values on one page.
pub const PAGE_BYTES_MAX: usize = 2 << 20;

/// Keys of a bucket that are due at `now_ms` with their expiry, earliest first, at most `limit`:
/// what the leader of the bucket's primary region puts into an `Expire` entry. Cheap when nothing is due.
///
/// # Errors
/// [`ReadError`] when the state can't be read or is damaged.
pub fn due(
    _view: &dyn StateView,
    _shard: ShardId,
    _bucket: BucketId,
    _now_ms: u64,
    _limit: usize,
) -> Result<Vec<(Key, u64)>, ReadError> {
    Ok(Vec::new())
}
