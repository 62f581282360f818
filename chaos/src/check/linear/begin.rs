//! What a key holds where one region begins to order a bucket's writes that all regions wrote: what they had merged by then, which is
//! the same in each of them (CON-4). Told by the writes alone, not by how the product merges: the newest version is in force, and
//! a counter is the sum of all that was ever counted.

use bytes::Bytes;
use meridian_types::{BucketId, Epoch, Key, Version, Write};

use super::model::Held;
use crate::check::kinds::FIRST;
use crate::check::{Evidence, Known};

/// What a key holds when a stretch begins; `None` where that can't be told.
pub(super) fn held(evidence: &Evidence, bucket: BucketId, key: &Key, stretch: Epoch) -> Option<Held> {
    if stretch == FIRST {
        return Some(Held::Absent);
    }
    if evidence.is_taken_up_again(bucket, key) {
        return None;
    }
    let writes = evidence.before_stretch(bucket, key, stretch);
    let mut writes: Vec<(Version, Known<'_>)> = writes.filter_map(|known| Some((known.version?, known))).collect();
    writes.sort_by_key(|(version, _)| *version);
    let Some((version, last)) = writes.last() else { return Some(Held::Absent) };
    let value = match last.write {
        Write::Increment { .. } => Some(Bytes::from(sum(&writes)?.to_string())),
        Write::Append { .. } => Some(list(&writes)?),
        Write::Delete { .. } => None,
        Write::Put { value, .. } | Write::CompareAndSet { value, .. } | Write::PutIfAbsent { value, .. } => {
            Some(value.as_bytes().clone())
        }
        Write::MultiPut { items } => items.iter().rfind(|(it, _)| it == key).map(|(_, value)| value.as_bytes().clone()),
    };
    Some(value.map_or(Held::Absent, |value| Held::Value(value, Some(*version))))
}

/// `None` for a key that is no counter, or not only.
fn sum(writes: &[(Version, Known<'_>)]) -> Option<i64> {
    let by = |(_, known): &(Version, Known<'_>)| match known.write {
        Write::Increment { by, .. } => Some(*by),
        _ => None,
    };
    writes.iter().map(by).sum()
}

/// `None` for a key that is no list, or not only.
fn list(writes: &[(Version, Known<'_>)]) -> Option<Bytes> {
    let item = |(_, known): &(Version, Known<'_>)| match known.write {
        Write::Append { suffix, .. } => Some(suffix.as_bytes().to_vec()),
        _ => None,
    };
    let items: Option<Vec<Vec<u8>>> = writes.iter().map(item).collect();
    Some(Bytes::from(items?.concat()))
}
