//! Doors for the fuzzer of `chaos`: one function per decoder of stored bytes that nobody outside this crate calls.
//! Each says whether the bytes were accepted, and holds what was to the decoder's law. Not part of the crate's interface.

use bytes::Bytes;
use meridian_types::entry::{Body, Header, Kind, WriteBody};
use meridian_types::{
    BackupRow, BucketId, ClientId, Epoch, Hlc, Key, Lane, Lsn, RegionId, RequestId, ShardId, Value, Version, Write,
};

use crate::backup::log::touched;
use crate::backup::replay::Replay;
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

/// What a backup keeps of a shard's log, and what it is told again from: whatever it is, it is told twice alike.
pub fn backup_log(bytes: &[u8]) -> bool {
    let Ok(pieces) = postcard::from_bytes::<Vec<(u8, &[u8], &[u8])>>(bytes) else { return false };
    let row = |key: &[u8], value: &[u8]| BackupRow {
        key: Bytes::copy_from_slice(key),
        record: Bytes::copy_from_slice(value),
    };
    let of = |tag: u8| pieces.iter().filter(move |piece| piece.0 == tag).map(|(_, key, value)| row(key, value));
    let (context, rows, log): (Vec<_>, Vec<_>, Vec<_>) = (of(0).collect(), of(1).collect(), of(2).collect());
    let tell = || {
        let mut replay = Replay::new((RegionId(1), ShardId(3), None), BucketId(9), &context, &rows).ok()?;
        for row in &log {
            let lsn = Lsn(u64::from_be_bytes(row.key.as_ref().try_into().ok()?));
            touched(&row.record).ok()?;
            replay.apply(lsn, &row.record).ok()?;
        }
        Some(replay.contents())
    };
    let told = tell();
    assert_eq!(told, tell(), "a log is told twice alike");
    told.is_some()
}

/// Encodings to begin from, by the name of the door.
pub fn samples(door: &str) -> Vec<Vec<u8>> {
    match door {
        "record" => records(),
        "backup_log" => vec![backup()],
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

/// A key is there, and is put and removed since.
fn backup() -> Vec<u8> {
    let (shard, bucket, region) = (ShardId(3), BucketId(9), RegionId(1));
    let where_it_stood = ShardMeta { applied: Lsn(4), own_hlc: Hlc(6), greatest_hlc: Hlc(6), ..ShardMeta::default() };
    let mut known = BucketMeta::default();
    known.digest.keys = 1;
    known.digest.operations = 1;
    let entry = |hlc: u64, write| {
        let kind = Kind::Write;
        let id = RequestId { client: ClientId(7), sequence: hlc };
        let (epoch, hlc) = (Epoch(1), Hlc(hlc));
        let header = Header { kind, origin: region, bucket, epoch, hlc, id, lowest_outstanding: 0 };
        header.encode(&Body::Write(WriteBody::Plain(write))).to_vec()
    };
    // A short key and value are within bounds.
    let (Ok(key), Ok(value)) = (Key::new("k"), Value::new("v")) else { return Vec::new() };
    let put = Write::Put { key: key.clone(), value, ttl_ms: Some(9) };
    let pieces = vec![
        (0u8, keys::shard_meta(shard), meta::encode(&where_it_stood).to_vec()),
        (0, keys::bucket_meta(shard, bucket), meta::encode_bucket(&known).to_vec()),
        (1, b"k".to_vec(), record::encode_plain(stamp(4), None, &[b"v"]).to_vec()),
        (2, 5u64.to_be_bytes().to_vec(), entry(7, put)),
        (2, 6u64.to_be_bytes().to_vec(), entry(8, Write::Delete { key })),
    ];
    postcard::to_allocvec(&pieces).unwrap_or_default()
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
