//! Doors for the fuzzer of `chaos`: one function per decoder of stored bytes that nobody outside this crate calls.
//! Each says whether the bytes were accepted, and holds what was to the decoder's law. Not part of the crate's interface.

use bytes::Bytes;
use meridian_types::entry::Header;
use meridian_types::{BucketId, ClientId, Epoch, Hlc, Lane, Lsn, RegionId, ShardId, Version};

use crate::body;
use crate::counter::Counter;
use crate::keys::{self, MetaKey};
use crate::meta::{self, BucketMeta, ShardMeta};
use crate::record::{self, Content, Merged, Record, Register, Stamp};
use crate::sessions::ResultRecord;

/// A key's record: there is exactly one encoding of it, and whatever reads it can be read from it.
pub fn record(bytes: &[u8]) -> bool {
    let Ok(record) = Record::decode(bytes) else { return false };
    let (_, _, _) = (record.read(0), record.read(u64::MAX), record.live_bytes());
    let again = match &record {
        Record::Plain { stamp, content } => record::encode_plain(*stamp, content.expires_at_ms, &[content.value]),
        Record::Merged(merged) => record::encode_merged(merged),
    };
    assert_eq!(again, bytes, "a record has one encoding");
    true
}

/// Where a shard is.
pub fn shard_meta(bytes: &[u8]) -> bool {
    meta_law::<ShardMeta>(bytes)
}

/// What is known of a bucket.
pub fn bucket_meta(bytes: &[u8]) -> bool {
    let Ok(value) = meta::decode_bucket(bytes) else { return false };
    assert_eq!(meta::decode_bucket(&meta::encode_bucket(&value)), Ok(value), "metadata must come back");
    true
}

/// How far another region's lane was applied.
pub fn watermark(bytes: &[u8]) -> bool {
    meta_law::<Lsn>(bytes)
}

/// What precedes a kept result.
pub fn kept_result(bytes: &[u8]) -> bool {
    let Ok(record) = ResultRecord::decode(bytes) else { return false };
    let rest = bytes.get(crate::sessions::RESULT_RECORD_HEAD..).unwrap_or_default();
    assert_eq!(record.encode(rest), bytes, "a kept result has one encoding");
    true
}

/// Keys of the state that are taken apart.
pub fn state_key(bytes: &[u8]) -> bool {
    let Some(shard) = bytes.first_chunk().map(|shard| ShardId(u16::from_be_bytes(*shard))) else { return false };
    let meta = keys::parse_meta(bytes).map(|key| match key {
        MetaKey::Shard => keys::shard_meta(shard),
        MetaKey::Watermark(region, lane) => keys::watermark(shard, region, lane),
        MetaKey::Bucket(bucket) => keys::bucket_meta(shard, bucket),
    });
    let kept = keys::parse_result(bytes)
        .map(|(bucket, origin, client, slot)| keys::result(shard, bucket, origin, client, slot));
    let expiry = keys::parse_expiry(bytes).map(|(at, key)| keys::expiry(shard, BucketId(0), at, key));
    // Whether it is the seal only serves the order.
    let last = bytes.get(15).is_some_and(|last| *last == 1);
    let parked = keys::parse_parked(bytes)
        .map(|(bucket, epoch, origin, lsn)| keys::parked(shard, bucket, epoch, last, origin, lsn))
        .filter(|_| bytes[15] <= 1);
    // The kind of key is known from the range it was found in, and the bucket of an expiry too.
    for again in [&meta, &kept, &parked].into_iter().flatten() {
        assert_eq!(again[3..], bytes[3..], "a key must come back");
    }
    if let Some(again) = &expiry {
        assert_eq!(again[keys::DATA_PREFIX_BYTES..], bytes[keys::DATA_PREFIX_BYTES..], "a key must come back");
    }
    meta.is_some() || kept.is_some() || parked.is_some() || expiry.is_some()
}

/// The body of an entry: the mirror that borrows accepts exactly what the original accepts.
pub fn body(entry: &[u8]) -> bool {
    let Ok(header) = Header::decode(entry) else { return false };
    let (mirrored, original) = (body::decode(&header, entry), header.decode_body(entry));
    assert_eq!(mirrored.is_ok(), original.is_ok(), "both readings accept alike: {mirrored:?}, {original:?}");
    original.is_ok()
}

/// Encodings to begin from, by the name of the door.
pub fn samples(door: &str) -> Vec<Vec<u8>> {
    match door {
        "record" => records(),
        "shard_meta" => {
            let mut meta = ShardMeta { applied: Lsn(9), own_hlc: Hlc(7), greatest_hlc: Hlc(8), ..ShardMeta::default() };
            meta.void(Lsn(3));
            vec![meta::encode(&meta).to_vec()]
        }
        "bucket_meta" => {
            let mut meta = BucketMeta { expiring: 2, ..BucketMeta::default() };
            meta.raise_fence(Lsn(4), Epoch(2));
            meta.origin_hlc.insert(RegionId(1), Hlc(5));
            meta.digest.positions.raise(RegionId(1), Lsn(9));
            vec![meta::encode_bucket(&meta).to_vec(), meta::encode_bucket(&BucketMeta::default()).to_vec()]
        }
        "watermark" => vec![meta::encode(&Lsn(77)).to_vec()],
        "kept_result" => vec![ResultRecord { floor: 1, sequence: 2, hlc: Hlc(3) }.encode(b"result").to_vec()],
        "state_key" => state_keys(),
        _ => Vec::new(),
    }
}

fn meta_law<T>(bytes: &[u8]) -> bool
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let Ok(value) = meta::decode::<T>(bytes, "metadata") else { return false };
    assert_eq!(meta::decode::<T>(&meta::encode(&value), "metadata"), Ok(value), "metadata must come back");
    true
}

fn stamp(hlc: u64) -> Stamp {
    Stamp { version: Version { hlc: Hlc(hlc), region: RegionId(1) }, lsn: Lsn(hlc) }
}

fn records() -> Vec<Vec<u8>> {
    let content = |expires_at_ms| Content { expires_at_ms, value: b"value" };
    let live = Register { val: Some(content(Some(9))), marker: stamp(5) };
    let dead = Register { val: None, marker: stamp(6) };
    let mut counter = Counter::default();
    for (region, by) in [(1, 7), (3, -2)] {
        // Small steps from zero exhaust nothing.
        let _ = counter.add(RegionId(region), by, stamp(8));
    }
    counter.remove(RegionId(2), &[(RegionId(1), 4, 0)]);
    let number = Register { val: Some(Content { expires_at_ms: None, value: b"-41" }), marker: stamp(5) };
    let merged = |register: Option<&Register<'static>>, counter: Option<&Counter>, counts_on| {
        record::encode_merged(&Merged { register: register.cloned(), counter: counter.cloned(), counts_on })
    };
    let all: Vec<Bytes> = vec![
        record::encode_plain(stamp(4), Some(99), &[b"value"]),
        record::encode_plain(stamp(4), None, &[b""]),
        merged(Some(&live), Some(&counter), false),
        merged(Some(&dead), None, false),
        merged(None, Some(&counter), false),
        merged(Some(&number), Some(&counter), true),
    ];
    all.into_iter().map(Vec::from).collect()
}

fn state_keys() -> Vec<Vec<u8>> {
    let (shard, bucket, region) = (ShardId(3), BucketId(9), RegionId(2));
    vec![
        keys::shard_meta(shard),
        keys::watermark(shard, region, Lane::Sync),
        keys::bucket_meta(shard, bucket),
        keys::expiry(shard, bucket, 77, b"key"),
        keys::parked(shard, bucket, Epoch(4), false, region, Lsn(77)),
        keys::parked(shard, bucket, Epoch(4), true, region, Lsn(78)),
        keys::result(shard, bucket, region, ClientId(7), 5),
    ]
}
