//! The layout of the state: which state key holds what. Part of the disk format.
//!
//! ```text
//! shard u16 | 1 | 1                                          the shard's positions
//! shard u16 | 1 | 2 | source u16 | lane u8                   a watermark
//! shard u16 | 1 | 3 | bucket u32                             a bucket's metadata
//! shard u16 | 2 | bucket u32 | key                           a record
//! shard u16 | 3 | bucket u32 | expires at, ms u64 | key      the expiry index
//! shard u16 | 4 | bucket u32 | origin u16 | client u128 | slot u16   a kept result
//! shard u16 | 5 | bucket u32 | epoch u64 | seal u8 | origin u16 | lsn u64   an entry that waits for a seal
//! shard u16 | 6 | bucket u32 | key                           a key of a salvage bundle: where it was removed last
//! ```
//!
//! Numbers are big-endian, so that byte order is number order. A shard is one contiguous range, and so
//! is each kind of thing of one bucket: snapshots, wipes and `DropBucket` are range operations.

use meridian_types::{BucketId, ClientId, Epoch, Lane, Lsn, RegionId, ShardId};

const META: u8 = 1;
pub(crate) const DATA: u8 = 2;
const EXPIRY: u8 = 3;
pub(crate) const RESULT: u8 = 4;
const PARKED: u8 = 5;
const WATCHED: u8 = 6;

const META_SHARD: u8 = 1;
const META_WATERMARK: u8 = 2;
const META_BUCKET: u8 = 3;

/// Bytes before the user's key in the key of a record.
pub const DATA_PREFIX_BYTES: usize = 7;
/// Bytes before the user's key in the key of the expiry index.
pub(crate) const EXPIRY_PREFIX_BYTES: usize = 15;

/// Every state key of a shard: from (inclusive), to (exclusive).
pub fn shard_range(shard: ShardId) -> (Vec<u8>, Vec<u8>) {
    let from = shard.0.to_be_bytes().to_vec();
    let to = successor(&from);
    (from, to)
}

/// Every record of a bucket in a shard: from (inclusive), to (exclusive).
pub fn data_range(shard: ShardId, bucket: BucketId) -> (Vec<u8>, Vec<u8>) {
    range(shard, DATA, bucket)
}

/// Every record of a bucket in a shard whose user key begins with `prefix`: from (inclusive), to (exclusive).
pub fn data_under(shard: ShardId, bucket: BucketId, prefix: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let from = data(shard, bucket, prefix);
    let to = successor(&from);
    (from, to)
}

/// The state key of a record.
pub fn data(shard: ShardId, bucket: BucketId, key: &[u8]) -> Vec<u8> {
    let mut bytes = start(shard, DATA, 4 + key.len());
    bytes.extend_from_slice(&bucket.0.to_be_bytes());
    bytes.extend_from_slice(key);
    bytes
}

/// The smallest byte string greater than every string that starts with `prefix`. All `0xff`: something
/// greater than any state key.
pub(crate) fn successor(prefix: &[u8]) -> Vec<u8> {
    let mut bytes = prefix.to_vec();
    while let Some(last) = bytes.pop() {
        if last < u8::MAX {
            bytes.push(last + 1);
            return bytes;
        }
    }
    vec![u8::MAX; DATA_PREFIX_BYTES + meridian_types::key::KEY_BYTES_MAX + 1]
}

pub(crate) fn expiry(shard: ShardId, bucket: BucketId, expires_at_ms: u64, key: &[u8]) -> Vec<u8> {
    let mut bytes = start(shard, EXPIRY, 12 + key.len());
    bytes.extend_from_slice(&bucket.0.to_be_bytes());
    bytes.extend_from_slice(&expires_at_ms.to_be_bytes());
    bytes.extend_from_slice(key);
    bytes
}

pub(crate) fn expiry_range(shard: ShardId, bucket: BucketId) -> (Vec<u8>, Vec<u8>) {
    range(shard, EXPIRY, bucket)
}

pub(crate) fn result(shard: ShardId, bucket: BucketId, origin: RegionId, client: ClientId, slot: u16) -> Vec<u8> {
    let mut bytes = start(shard, RESULT, 24);
    bytes.extend_from_slice(&bucket.0.to_be_bytes());
    bytes.extend_from_slice(&origin.0.to_be_bytes());
    bytes.extend_from_slice(&client.0.to_be_bytes());
    bytes.extend_from_slice(&slot.to_be_bytes());
    bytes
}

pub(crate) fn results_of_bucket(shard: ShardId, bucket: BucketId) -> (Vec<u8>, Vec<u8>) {
    range(shard, RESULT, bucket)
}

pub(crate) fn results_of_shard(shard: ShardId) -> (Vec<u8>, Vec<u8>) {
    let from = start(shard, RESULT, 0);
    let to = successor(&from);
    (from, to)
}

/// `last`: the seal of the epoch, which comes after everything else in it, whoever wrote it.
pub(crate) fn parked(
    shard: ShardId,
    bucket: BucketId,
    epoch: Epoch,
    last: bool,
    origin: RegionId,
    lsn: Lsn,
) -> Vec<u8> {
    let mut bytes = start(shard, PARKED, 23);
    bytes.extend_from_slice(&bucket.0.to_be_bytes());
    bytes.extend_from_slice(&epoch.0.to_be_bytes());
    bytes.push(u8::from(last));
    bytes.extend_from_slice(&origin.0.to_be_bytes());
    bytes.extend_from_slice(&lsn.0.to_be_bytes());
    bytes
}

pub(crate) fn parked_of_shard(shard: ShardId) -> (Vec<u8>, Vec<u8>) {
    let from = start(shard, PARKED, 0);
    let to = successor(&from);
    (from, to)
}

pub(crate) fn parked_of_bucket(shard: ShardId, bucket: BucketId) -> (Vec<u8>, Vec<u8>) {
    range(shard, PARKED, bucket)
}

/// What waits for `epoch` of a bucket, or waited for an earlier one.
pub(crate) fn parked_up_to(shard: ShardId, bucket: BucketId, epoch: Epoch) -> (Vec<u8>, Vec<u8>) {
    let (from, _) = parked_of_bucket(shard, bucket);
    let mut last = from.clone();
    last.extend_from_slice(&epoch.0.to_be_bytes());
    (from, successor(&last))
}

pub(crate) fn watched(shard: ShardId, bucket: BucketId, key: &[u8]) -> Vec<u8> {
    let mut bytes = start(shard, WATCHED, 4 + key.len());
    bytes.extend_from_slice(&bucket.0.to_be_bytes());
    bytes.extend_from_slice(key);
    bytes
}

pub(crate) fn watched_of_bucket(shard: ShardId, bucket: BucketId) -> (Vec<u8>, Vec<u8>) {
    range(shard, WATCHED, bucket)
}

/// Where the watched keys of a shard are, behind those of bucket `after`.
pub(crate) fn watched_behind(shard: ShardId, after: Option<BucketId>) -> (Vec<u8>, Vec<u8>) {
    let all = start(shard, WATCHED, 0);
    let from = after.map_or_else(|| all.clone(), |bucket| watched_of_bucket(shard, bucket).1);
    (from, successor(&all))
}

/// The bucket of a watched key; `None` when it is none.
pub(crate) fn parse_watched(key: &[u8]) -> Option<BucketId> {
    let (bucket, _) = key.get(3..)?.split_first_chunk()?;
    Some(BucketId(u32::from_be_bytes(*bucket)))
}

pub(crate) fn shard_meta(shard: ShardId) -> Vec<u8> {
    let mut bytes = start(shard, META, 1);
    bytes.push(META_SHARD);
    bytes
}

pub(crate) fn watermark(shard: ShardId, source: RegionId, lane: Lane) -> Vec<u8> {
    let mut bytes = start(shard, META, 4);
    bytes.push(META_WATERMARK);
    bytes.extend_from_slice(&source.0.to_be_bytes());
    bytes.push(lane.tag());
    bytes
}

pub(crate) fn bucket_meta(shard: ShardId, bucket: BucketId) -> Vec<u8> {
    let mut bytes = start(shard, META, 5);
    bytes.push(META_BUCKET);
    bytes.extend_from_slice(&bucket.0.to_be_bytes());
    bytes
}

pub(crate) fn meta_range(shard: ShardId) -> (Vec<u8>, Vec<u8>) {
    let from = start(shard, META, 0);
    let to = successor(&from);
    (from, to)
}

/// The positions of a shard and what it has of other regions: its metadata without that of buckets.
pub(crate) fn positions_range(shard: ShardId) -> (Vec<u8>, Vec<u8>) {
    let mut to = start(shard, META, 1);
    to.push(META_BUCKET);
    (start(shard, META, 0), to)
}

/// A metadata key taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MetaKey {
    Shard,
    Watermark(RegionId, Lane),
    Bucket(BucketId),
}

/// Reads a metadata key; `None` when it is none.
pub(crate) fn parse_meta(key: &[u8]) -> Option<MetaKey> {
    match *key.get(3..)? {
        [META_SHARD] => Some(MetaKey::Shard),
        [META_WATERMARK, a, b, lane] => {
            Some(MetaKey::Watermark(RegionId(u16::from_be_bytes([a, b])), Lane::from_tag(lane)?))
        }
        [META_BUCKET, a, b, c, d] => Some(MetaKey::Bucket(BucketId(u32::from_be_bytes([a, b, c, d])))),
        _ => None,
    }
}

/// Reads the key of a kept result; `None` when it is none.
pub(crate) fn parse_result(key: &[u8]) -> Option<(BucketId, RegionId, ClientId, u16)> {
    let (bucket, rest) = key.get(3..)?.split_first_chunk()?;
    let (origin, rest) = rest.split_first_chunk()?;
    let (client, rest) = rest.split_first_chunk()?;
    let slot: &[u8; 2] = rest.try_into().ok()?;
    Some((
        BucketId(u32::from_be_bytes(*bucket)),
        RegionId(u16::from_be_bytes(*origin)),
        ClientId(u128::from_be_bytes(*client)),
        u16::from_be_bytes(*slot),
    ))
}

/// Reads the key of an entry that waits for a seal: its bucket, epoch, origin and position there.
pub(crate) fn parse_parked(key: &[u8]) -> Option<(BucketId, Epoch, RegionId, Lsn)> {
    let (bucket, rest) = key.get(3..)?.split_first_chunk()?;
    let (epoch, rest) = rest.split_first_chunk()?;
    let (_, rest) = rest.split_first()?;
    let (origin, rest) = rest.split_first_chunk()?;
    let lsn: &[u8; 8] = rest.try_into().ok()?;
    Some((
        BucketId(u32::from_be_bytes(*bucket)),
        Epoch(u64::from_be_bytes(*epoch)),
        RegionId(u16::from_be_bytes(*origin)),
        Lsn(u64::from_be_bytes(*lsn)),
    ))
}

/// Reads a key of the expiry index: when, and which user key.
pub(crate) fn parse_expiry(key: &[u8]) -> Option<(u64, &[u8])> {
    let (at, user) = key.get(DATA_PREFIX_BYTES..)?.split_first_chunk()?;
    debug_assert_eq!(key.len() - user.len(), EXPIRY_PREFIX_BYTES);
    Some((u64::from_be_bytes(*at), user))
}

/// The state key of one kind of thing of a bucket.
pub(crate) fn row(shard: ShardId, kind: u8, bucket: BucketId, rest: &[u8]) -> Vec<u8> {
    let mut bytes = start(shard, kind, 4 + rest.len());
    bytes.extend_from_slice(&bucket.0.to_be_bytes());
    bytes.extend_from_slice(rest);
    bytes
}

fn start(shard: ShardId, kind: u8, room: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(3 + room);
    bytes.extend_from_slice(&shard.0.to_be_bytes());
    bytes.push(kind);
    bytes
}

fn range(shard: ShardId, kind: u8, bucket: BucketId) -> (Vec<u8>, Vec<u8>) {
    let mut from = start(shard, kind, 4);
    from.extend_from_slice(&bucket.0.to_be_bytes());
    let to = successor(&from);
    (from, to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_one_range_and_holds_everything_of_it() {
        let shard = ShardId(0x01ff);
        let (from, to) = shard_range(shard);
        let (bucket, region) = (BucketId(u32::MAX), RegionId(u16::MAX));
        for key in [
            shard_meta(shard),
            watermark(shard, region, Lane::Async),
            bucket_meta(shard, bucket),
            data(shard, bucket, &[0xff; 64]),
            expiry(shard, bucket, u64::MAX, &[0xff; 64]),
            result(shard, bucket, region, ClientId(u128::MAX), u16::MAX),
            parked(shard, bucket, Epoch(u64::MAX), true, region, Lsn(u64::MAX)),
            watched(shard, bucket, &[0xff; 64]),
        ] {
            assert!(from <= key && key < to, "{key:?}");
        }
        assert_eq!(shard_range(ShardId(u16::MAX)).0, [0xff, 0xff]);
        assert!(shard_range(ShardId(u16::MAX)).1 > data(ShardId(u16::MAX), bucket, &[0xff; 4096]));
    }

    #[test]
    fn keys_come_apart_as_they_were_put_together() {
        let (shard, bucket, region) = (ShardId(3), BucketId(9), RegionId(2));
        assert_eq!(parse_meta(&shard_meta(shard)), Some(MetaKey::Shard));
        assert_eq!(parse_meta(&bucket_meta(shard, bucket)), Some(MetaKey::Bucket(bucket)));
        assert_eq!(parse_meta(&watermark(shard, region, Lane::Sync)), Some(MetaKey::Watermark(region, Lane::Sync)));
        let kept = (bucket, region, ClientId(7), 5);
        assert_eq!(parse_result(&result(shard, bucket, region, ClientId(7), 5)), Some(kept));
        assert_eq!(parse_expiry(&expiry(shard, bucket, 77, b"key")), Some((77, b"key".as_slice())));
        let waiting = (bucket, Epoch(4), region, Lsn(77));
        assert_eq!(parse_parked(&parked(shard, bucket, Epoch(4), false, region, Lsn(77))), Some(waiting));
        assert_eq!(parse_watched(&watched(shard, bucket, b"key")), Some(bucket));
        assert_eq!(parse_meta(b"x"), None);
        assert_eq!(parse_result(b"xxxxxxx"), None);
        assert_eq!(parse_expiry(b"xxxxxxxxx"), None);
    }
}
