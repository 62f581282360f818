//! What the proposing leader of an active-active bucket puts into the log for a client's write.

use meridian_types::entry::WriteBody;
use meridian_types::{BucketId, Effect, Key, Refusal, RefusalKind, RegionId, ShardId, Write};

use crate::error::ReadError;
use crate::keys;
use crate::record::Record;
use crate::view::StateView;

/// Turns a client's write into the body of an active-active entry: relative times made absolute, what a
/// delete has seen of a counter written down. `view` is the applied state of the shard, and `now_ms` not
/// above the timestamp the entry will get.
///
/// # Errors
/// [`RefusalKind::Invalid`] for operations that need one order among regions (append, compare-and-set,
/// put-if-absent, multi-put), naming what to use instead; [`RefusalKind::Conflict`] for an increment of a
/// key that holds a value which is no number of before all regions wrote, or beyond an i64; [`RefusalKind::Corrupt`] or [`RefusalKind::Internal`] when the
/// key's record can't be used or read.
pub fn active_active_body(
    view: &dyn StateView,
    shard: ShardId,
    bucket: BucketId,
    write: &Write,
    now_ms: u64,
    own: RegionId,
) -> Result<WriteBody, Refusal> {
    match write {
        Write::Put { key, value, ttl_ms } => Ok(WriteBody::Register {
            key: key.clone(),
            value: value.clone(),
            expires_at_ms: ttl_ms.map(|ttl| now_ms.saturating_add(ttl)),
        }),
        Write::Increment { key, by } => {
            with_record(view, shard, bucket, key, |record| check_increment(record, *by, now_ms))??;
            Ok(WriteBody::Counter { key: key.clone(), by: *by })
        }
        Write::Delete { key } => {
            let counter = with_record(view, shard, bucket, key, |record| {
                let counter = record.and_then(|record| record.into_merged().counter);
                counter.map(|counter| counter.observed_by(own)).unwrap_or_default()
            })?;
            Ok(WriteBody::Remove { key: key.clone(), counter })
        }
        Write::Append { .. } => {
            Err(needs_order("append", "put the whole value, or append to keys of each writer's own"))
        }
        Write::CompareAndSet { .. } => Err(needs_order("compare-and-set", "put (the last writer wins) or increment")),
        Write::PutIfAbsent { .. } => Err(needs_order("put-if-absent", "put, under a key that only one writer uses")),
        Write::MultiPut { .. } => Err(needs_order("an atomic multi-put", "put the keys one by one")),
    }
}

fn needs_order(operation: &str, instead: &str) -> Refusal {
    let message = format!(
        "{operation} needs one order among all regions, which an active-active bucket does not have: \
         {instead}, or use a bucket with a primary"
    );
    Refusal::new(RefusalKind::Invalid, message)
}

fn check_increment(record: Option<Record<'_>>, by: i64, now_ms: u64) -> Result<(), Refusal> {
    let Some(record) = record else { return Ok(()) };
    let merged = record.into_merged();
    let content = merged.register.as_ref().and_then(|register| register.val);
    if content.is_some_and(|content| !content.is_expired(now_ms)) && !merged.counts_on {
        let message = "the key holds a value, not a counter: delete it first, or use another key";
        return Err(Refusal::new(RefusalKind::Conflict, message));
    }
    let value = merged.count();
    if value.checked_add(by).is_none() {
        let message = format!("adding {by} to {value} leaves the range of a 64-bit integer; nothing was changed");
        return Err(Refusal::new(RefusalKind::Conflict, message));
    }
    Ok(())
}

fn with_record<T>(
    view: &dyn StateView,
    shard: ShardId,
    bucket: BucketId,
    key: &Key,
    read: impl FnOnce(Option<Record<'_>>) -> T,
) -> Result<T, Refusal> {
    let record = view.get(&keys::data(shard, bucket, key.as_bytes())).map_err(|error| refusal(&error.into()))?;
    let record = record.as_deref().map(Record::decode).transpose().map_err(|damage| refusal(&damage.into()))?;
    Ok(read(record))
}

/// The refusal that a failed read becomes for a client.
pub fn refusal(error: &ReadError) -> Refusal {
    let kind = match error {
        ReadError::View(_) => RefusalKind::Internal,
        ReadError::Damage(_) => RefusalKind::Corrupt,
    };
    Refusal { kind, effect: Effect::None, message: format!("{error}; ask the operator to look at this node") }
}
