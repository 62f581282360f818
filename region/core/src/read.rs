//! Reads of a shard's data: one key, a page of keys, and keys whose time has come.
//!
//! Time is an argument: a value whose time has come is absent for its readers at once, whenever the log removes it.

use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use meridian_types::key::SCAN_ITEMS_MAX;
use meridian_types::request::Found;
use meridian_types::{BucketId, Key, Lsn, RegionId, ShardId};

use crate::error::{Damage, ReadError};
use crate::keys;
use crate::record::Record;
use crate::view::StateView;

/// The most bytes of keys and values on one page (RES-1).
pub const PAGE_BYTES_MAX: usize = 2 << 20;

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
    view: &dyn StateView,
    shard: ShardId,
    bucket: BucketId,
    key: &Key,
    now_ms: u64,
) -> Result<Option<Located>, ReadError> {
    let Some(record) = view.get(&keys::data(shard, bucket, key.as_bytes()))? else { return Ok(None) };
    // The value stays where the store put it: no copy.
    let share = |value: &[u8]| record.slice_ref(value);
    Ok(located(Record::decode(&record)?, now_ms, share))
}

/// A page of the live keys under `prefix` behind `after`, in byte order: at most `limit` items (clamped to
/// 1..=[`SCAN_ITEMS_MAX`]), and no more bytes than [`PAGE_BYTES_MAX`] unless one item alone is larger.
///
/// # Errors
/// [`ReadError`] when the state can't be read or is damaged.
#[allow(clippy::too_many_arguments, reason = "a scan has that many independent parts")]
pub fn scan(
    view: &dyn StateView,
    shard: ShardId,
    bucket: BucketId,
    prefix: &[u8],
    after: &[u8],
    limit: u32,
    values: bool,
    now_ms: u64,
) -> Result<Page, ReadError> {
    let limit = usize::try_from(limit).unwrap_or(SCAN_ITEMS_MAX).clamp(1, SCAN_ITEMS_MAX);
    let mut page = Page::default();
    let mut page_bytes = 0;
    let mut outcome = Ok(());
    let (from, to) = scan_bounds(shard, bucket, prefix, after);
    view.scan(&from, &to, &mut |state_key, record| {
        let item = match item(state_key, record, values, now_ms) {
            Ok(Some(item)) => item,
            Ok(None) => return ControlFlow::Continue(()),
            Err(damage) => {
                outcome = Err(damage);
                return ControlFlow::Break(());
            }
        };
        page_bytes += item.0.as_bytes().len() + item.1.found.value.len();
        if page.items.len() == limit || (!page.items.is_empty() && page_bytes > PAGE_BYTES_MAX) {
            page.more = true;
            return ControlFlow::Break(());
        }
        page.items.push(item);
        ControlFlow::Continue(())
    })?;
    Ok(outcome.map(|()| page)?)
}

/// Keys of a bucket that are due at `now_ms` with their expiry, earliest first, at most `limit`:
/// what the leader of the bucket's primary region puts into an `Expire` entry. Cheap when nothing is due.
///
/// # Errors
/// [`ReadError`] when the state can't be read or is damaged.
pub fn due(
    view: &dyn StateView,
    shard: ShardId,
    bucket: BucketId,
    now_ms: u64,
    limit: usize,
) -> Result<Vec<(Key, u64)>, ReadError> {
    let mut due = Vec::new();
    let mut outcome = Ok(());
    let from = keys::expiry(shard, bucket, 0, &[]);
    let to = keys::expiry(shard, bucket, now_ms.saturating_add(1), &[]);
    view.scan(&from, &to, &mut |state_key, _| {
        let parsed = keys::parse_expiry(state_key);
        let parsed = parsed.and_then(|(at, key)| Some((Key::new(Bytes::copy_from_slice(key)).ok()?, at)));
        match parsed {
            _ if due.len() >= limit => ControlFlow::Break(()),
            Some(entry) => {
                due.push(entry);
                ControlFlow::Continue(())
            }
            None => {
                outcome = Err(Damage { what: "expiry index" });
                ControlFlow::Break(())
            }
        }
    })?;
    Ok(outcome.map(|()| due)?)
}

/// Where a scan begins and ends in the state.
fn scan_bounds(shard: ShardId, bucket: BucketId, prefix: &[u8], after: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let start = keys::data(shard, bucket, prefix);
    let to = keys::successor(&start);
    let behind = match after {
        [] => Bound::Unbounded,
        after => Bound::Excluded(keys::data(shard, bucket, after)),
    };
    let from = match behind {
        // The first key behind a key is that key with a zero byte at its end.
        Bound::Excluded(mut after) if after >= start => {
            after.push(0);
            after
        }
        _ => start,
    };
    (from, to)
}

fn item(state_key: &[u8], record: &[u8], values: bool, now_ms: u64) -> Result<Option<(Key, Located)>, Damage> {
    let share = |value: &[u8]| if values { Bytes::copy_from_slice(value) } else { Bytes::new() };
    let Some(located) = located(Record::decode(record)?, now_ms, share) else { return Ok(None) };
    let key = state_key.get(keys::DATA_PREFIX_BYTES..).unwrap_or_default();
    let key = Key::new(Bytes::copy_from_slice(key)).map_err(|_| Damage { what: "key of a record" })?;
    Ok(Some((key, located)))
}

fn located(record: Record<'_>, now_ms: u64, share: impl Fn(&[u8]) -> Bytes) -> Option<Located> {
    let reading = record.read(now_ms)?;
    let value = match &reading.value {
        std::borrow::Cow::Borrowed(value) => share(value),
        std::borrow::Cow::Owned(text) => Bytes::copy_from_slice(text),
    };
    let version = reading.stamp.version;
    let found = Found { value, version, expires_at_ms: reading.expires_at_ms };
    Some(Located { found, lsn: reading.stamp.lsn, origin: version.region })
}
