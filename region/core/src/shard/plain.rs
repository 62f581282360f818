//! Writes in a bucket with a primary: one history, so conditions can be decided by the log.
//!
//! The words of Redis where it has them: `put` clears the time to live, `append` and `increment` keep it;
//! an increment needs decimal text of an i64 and never overflows. A value whose time has come counts as
//! absent, whether or not the log has removed it yet.

use meridian_types::key::VALUE_BYTES_MAX;
use meridian_types::{Outcome, Refusal, RefusalKind, Version};

use super::editor::{Editor, Slot};
use crate::body::{KeyRef, ValueRef, WriteRef};
use crate::error::ReadError;
use crate::record::{Reading, encode_plain, integer};

/// What a write came to; the outer error is damage.
pub(super) type Decision = Result<Result<Outcome, Refusal>, ReadError>;

/// Applies a client's write.
pub(super) fn apply(editor: &mut Editor<'_>, write: &WriteRef<'_>) -> Decision {
    match write {
        WriteRef::Put { key, value, ttl_ms } => put(editor, *key, *value, *ttl_ms),
        WriteRef::Delete { key } => delete(editor, *key),
        WriteRef::Append { key, suffix } => append(editor, *key, *suffix),
        WriteRef::Increment { key, by } => increment(editor, *key, *by),
        WriteRef::CompareAndSet { key, expected, value, ttl_ms } => {
            put_if(editor, *key, *value, *ttl_ms, |current| current == *expected)
        }
        WriteRef::PutIfAbsent { key, value, ttl_ms } => {
            put_if(editor, *key, *value, *ttl_ms, |current| current.is_none())
        }
        WriteRef::MultiPut { items } => {
            for (key, value) in items {
                let slot = editor.slot(key.0)?;
                set(editor, slot, None, &[value.0])?;
            }
            Ok(Ok(written(editor)))
        }
    }
}

/// Removes keys whose expiry is still the one that was due; tells how many.
pub(super) fn expire(editor: &mut Editor<'_>, due: &[(KeyRef<'_>, u64)]) -> Result<u64, ReadError> {
    let mut removed = 0;
    for (key, at) in due {
        let slot = editor.slot(key.0)?;
        let unchanged = slot.decode()?.is_some_and(|record| record.expiry() == Some(*at));
        if unchanged && *at <= editor.now_ms() {
            editor.remove(slot)?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn written(editor: &Editor<'_>) -> Outcome {
    Outcome::Written { version: editor.stamp.version }
}

fn set(editor: &mut Editor<'_>, slot: Slot, expires_at_ms: Option<u64>, value: &[&[u8]]) -> Result<(), ReadError> {
    let record = encode_plain(editor.stamp, expires_at_ms, value);
    Ok(editor.replace(slot, record)?)
}

fn read<'a>(editor: &Editor<'_>, slot: &'a Slot) -> Result<Option<Reading<'a>>, ReadError> {
    Ok(slot.decode()?.and_then(|record| record.read(editor.now_ms())))
}

fn put(editor: &mut Editor<'_>, key: KeyRef<'_>, value: ValueRef<'_>, ttl_ms: Option<u64>) -> Decision {
    let slot = editor.slot(key.0)?;
    set(editor, slot, editor.expires_at(ttl_ms), &[value.0])?;
    Ok(Ok(written(editor)))
}

fn delete(editor: &mut Editor<'_>, key: KeyRef<'_>) -> Decision {
    let slot = editor.slot(key.0)?;
    let existed = read(editor, &slot)?.is_some();
    editor.remove(slot)?;
    Ok(Ok(Outcome::Deleted { version: editor.stamp.version, existed }))
}

fn append(editor: &mut Editor<'_>, key: KeyRef<'_>, suffix: ValueRef<'_>) -> Decision {
    let slot = editor.slot(key.0)?;
    let reading = read(editor, &slot)?;
    let (expires_at_ms, start) = reading.as_ref().map_or((None, &[][..]), |found| (found.expires_at_ms, &found.value));
    let length = start.len() + suffix.0.len();
    if length > VALUE_BYTES_MAX {
        let message = format!(
            "the append would make the value {length} bytes long; at most {VALUE_BYTES_MAX} are allowed: start another key"
        );
        return Ok(Err(Refusal::new(RefusalKind::Invalid, message)));
    }
    let record = encode_plain(editor.stamp, expires_at_ms, &[start, suffix.0]);
    editor.replace(slot, record)?;
    Ok(Ok(Outcome::Length { version: editor.stamp.version, length: length as u64 }))
}

fn increment(editor: &mut Editor<'_>, key: KeyRef<'_>, by: i64) -> Decision {
    let slot = editor.slot(key.0)?;
    let reading = read(editor, &slot)?;
    let (expires_at_ms, start) = match reading.as_ref() {
        None => (None, Some(0)),
        Some(found) => (found.expires_at_ms, integer(&found.value)),
    };
    let Some(start) = start else {
        let message = "the value is not the decimal text of a 64-bit integer, so it can't be incremented: \
                       put a number first, or use another key";
        return Ok(Err(Refusal::new(RefusalKind::Conflict, message)));
    };
    let Some(value) = start.checked_add(by) else {
        let message = format!("adding {by} to {start} leaves the range of a 64-bit integer; nothing was changed");
        return Ok(Err(Refusal::new(RefusalKind::Conflict, message)));
    };
    set(editor, slot, expires_at_ms, &[value.to_string().as_bytes()])?;
    Ok(Ok(Outcome::Count { version: editor.stamp.version, value }))
}

fn put_if(
    editor: &mut Editor<'_>,
    key: KeyRef<'_>,
    value: ValueRef<'_>,
    ttl_ms: Option<u64>,
    holds: impl Fn(Option<Version>) -> bool,
) -> Decision {
    let slot = editor.slot(key.0)?;
    let current = read(editor, &slot)?.map(|found| found.stamp.version);
    if !holds(current) {
        return Ok(Ok(Outcome::ConditionFailed { current }));
    }
    set(editor, slot, editor.expires_at(ttl_ms), &[value.0])?;
    Ok(Ok(written(editor)))
}
