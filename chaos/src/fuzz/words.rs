//! Decoders of `types` and the results of `region/core`: entries, frames, session tokens, results.

use bytes::Bytes;
use meridian_region_core::{ControlResult, Divergence, FrameResult, WriteResult};
use meridian_types::entry::{Body, Header, Kind, WriteBody, stamp};
use meridian_types::frame::{self, DigestNote, Echo, FRAME_HEADER_BYTES, FRAME_RAW_BYTES_MAX, Frame, FrameHeader};
use meridian_types::{
    BucketId, ClientId, Epoch, Hlc, Key, Lane, Lsn, Outcome, Positions, Refusal, RefusalKind, RegionId, RequestId,
    SessionToken, SetHash, ShardId, Value, Version, Write,
};

/// Decodes, encodes and decodes again.
pub(super) fn law<T: PartialEq + std::fmt::Debug>(
    bytes: &[u8],
    decode: impl Fn(&[u8]) -> Option<T>,
    encode: impl Fn(&T) -> Vec<u8>,
) -> bool {
    let Some(value) = decode(bytes) else { return false };
    let again = decode(&encode(&value));
    assert_eq!(again.as_ref(), Some(&value), "what was read must come back");
    true
}

/// A key of a sample.
pub(super) fn key(text: &str) -> Key {
    match Key::new(text.to_owned()) {
        Ok(key) => key,
        Err(refusal) => panic!("a sample's key is a key: {refusal}"),
    }
}

/// A value of a sample.
pub(super) fn value(text: &str) -> Value {
    match Value::new(text.to_owned()) {
        Ok(value) => value,
        Err(refusal) => panic!("a sample's value is a value: {refusal}"),
    }
}

/// The header of a sample's entry.
pub(super) fn header(kind: Kind, hlc: u64) -> Header {
    Header {
        kind,
        origin: RegionId(1),
        bucket: BucketId(7),
        epoch: Epoch(1),
        hlc: Hlc::from_millis(hlc),
        id: RequestId { client: ClientId(99), sequence: hlc },
        lowest_outstanding: 1,
    }
}

pub(super) fn entry(bytes: &[u8]) -> bool {
    let Ok(header) = Header::decode(bytes) else { return false };
    let stamped = stamp(Bytes::copy_from_slice(bytes), header.hlc);
    assert_eq!(stamped, bytes, "a stamp of the same time changes nothing");
    if header.kind == Kind::Frame {
        let again = header.encode_frame(&bytes[meridian_types::entry::HEADER_BYTES..]);
        assert_eq!(again, bytes, "an entry with a frame has one encoding");
        return true;
    }
    let Ok(body) = header.decode_body(bytes) else { return false };
    law(
        bytes,
        |bytes| Header::decode(bytes).ok().map(|header| (header, header.decode_body(bytes).ok())),
        |(header, _)| header.encode(&body).to_vec(),
    )
}

fn plain(write: Write) -> (Kind, Body) {
    (Kind::Write, Body::Write(WriteBody::Plain(write)))
}

/// One body of each kind.
pub(super) fn all_bodies() -> Vec<(Kind, Body)> {
    let (k, v) = (|| key("key"), || value("value"));
    let version = Version { hlc: Hlc(5), region: RegionId(2) };
    let merged = |body| (Kind::Write, Body::Write(body));
    vec![
        plain(Write::Put { key: k(), value: v(), ttl_ms: Some(500) }),
        plain(Write::Delete { key: k() }),
        plain(Write::Append { key: k(), suffix: v() }),
        plain(Write::Increment { key: key("count"), by: -3 }),
        plain(Write::CompareAndSet { key: k(), expected: Some(version), value: v(), ttl_ms: None }),
        plain(Write::PutIfAbsent { key: k(), value: v(), ttl_ms: None }),
        plain(Write::MultiPut { items: vec![(k(), v()), (key("other"), value(""))] }),
        merged(WriteBody::Register { key: k(), value: v(), expires_at_ms: Some(9) }),
        merged(WriteBody::Counter { key: key("count"), by: 7 }),
        merged(WriteBody::Remove { key: k(), counter: vec![(RegionId(2), 3, 4)] }),
        (Kind::Expire, Body::Expire { due: vec![(k(), 1), (key("other"), 2)] }),
        (Kind::Fence, Body::Fence),
        (Kind::DropBucket, Body::DropBucket),
        (Kind::Seal, Body::Seal { next: Epoch(2), after: Positions::default() }),
        (Kind::ExpireClients, Body::ExpireClients { before: Hlc(9) }),
    ]
}

pub(super) fn bodies() -> Vec<Vec<u8>> {
    all_bodies().into_iter().map(|(kind, body)| header(kind, 1000).encode(&body).to_vec()).collect()
}

pub(super) fn entries() -> Vec<Vec<u8>> {
    let mut all = bodies();
    all.push(header(Kind::Frame, 1000).encode_frame(&sample_frame(RegionId(2), 1)).to_vec());
    all
}

pub(super) fn frame(bytes: &[u8]) -> bool {
    law(bytes, |bytes| Frame::decode(bytes).ok().map(without_length), |frame| encode_frame(frame).to_vec())
}

/// Numbers in notes can be written longer than they need to be: then the length is another when they come back.
fn without_length(mut frame: Frame) -> Frame {
    frame.header.raw_length = 0;
    frame
}

fn encode_frame(frame: &Frame) -> Bytes {
    frame::encode(frame.header, &frame.notes, &frame.entries)
}

/// A frame whose payload, before compression, is these bytes.
fn frame_around(payload: &[u8]) -> Vec<u8> {
    let mut bytes = sample_frame(RegionId(2), 1)[..FRAME_HEADER_BYTES].to_vec();
    let raw_length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    bytes[44..48].copy_from_slice(&raw_length.to_le_bytes());
    bytes.extend_from_slice(&lz4_flex::block::compress(payload));
    seal_frame(&mut bytes);
    bytes
}

pub(super) fn frame_payload(bytes: &[u8]) -> bool {
    // Encoding may write notes at greater length than they were read from; at the bound that is no news.
    bytes.len() < FRAME_RAW_BYTES_MAX / 2 && frame(&frame_around(bytes))
}

pub(super) fn frame_payloads() -> Vec<Vec<u8>> {
    let payload = |frame: &[u8]| {
        let raw_length = u32::from_le_bytes([frame[44], frame[45], frame[46], frame[47]]) as usize;
        lz4_flex::block::decompress(&frame[FRAME_HEADER_BYTES..], raw_length).unwrap_or_default()
    };
    frames().iter().take(2).map(|frame| payload(frame)).collect()
}

/// Makes a frame's checksum right.
pub(super) fn seal_frame(bytes: &mut [u8]) {
    if bytes.len() < FRAME_HEADER_BYTES {
        return;
    }
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..48]), &bytes[52..]);
    bytes[48..52].copy_from_slice(&crc.to_le_bytes());
}

/// A frame of another region with one entry of each kind that is shipped, beginning behind `previous`.
pub(super) fn sample_frame(source: RegionId, previous: u64) -> Bytes {
    let entries: Vec<(Lsn, Bytes)> = all_bodies()
        .into_iter()
        .filter(|(kind, _)| kind.is_shipped())
        .zip(previous + 1..)
        .map(|((kind, body), lsn)| {
            let header = Header { origin: source, ..header(kind, 1000 + lsn) };
            (Lsn(lsn), header.encode(&body))
        })
        .collect();
    let last = entries.last().map_or(Lsn(previous), |(lsn, _)| *lsn);
    let note = DigestNote { bucket: BucketId(7), positions: Positions::default(), hash: SetHash(5), keys: 2 };
    let header = FrameHeader {
        source,
        shard: ShardId(3),
        lane: Lane::Async,
        previous: Lsn(previous),
        last,
        closed: Hlc::from_millis(2000),
        echo: Echo { probe: 9, tenured: false, index: 0 },
        raw_length: 0,
    };
    frame::encode(header, &[note], &entries)
}

pub(super) fn frames() -> Vec<Vec<u8>> {
    let heartbeat = FrameHeader {
        source: RegionId(2),
        shard: ShardId(3),
        lane: Lane::Sync,
        previous: Lsn(9),
        last: Lsn(9),
        closed: Hlc(77),
        echo: Echo { probe: 5, tenured: true, index: 0 },
        raw_length: 0,
    };
    // Only here: around a payload there is none.
    let indexed = FrameHeader { echo: Echo { probe: 5, tenured: true, index: 41 }, ..heartbeat };
    let heartbeats = [heartbeat, indexed].map(|header| frame::encode(header, &[], &[]).to_vec());
    [sample_frame(RegionId(2), 1).to_vec()].into_iter().chain(heartbeats).collect()
}

pub(super) fn session_token(bytes: &[u8]) -> bool {
    law(bytes, |bytes| SessionToken::decode(bytes).ok(), SessionToken::encode)
}

/// The token of a session that has seen a few positions.
pub(super) fn token() -> SessionToken {
    let mut token = SessionToken::default();
    for number in 1..4 {
        token.observe(BucketId(7), ShardId(number), RegionId(1), Lsn(1 << (20 * number)));
    }
    token
}

pub(super) fn session_tokens() -> Vec<Vec<u8>> {
    vec![token().encode(), SessionToken::default().encode()]
}

pub(super) fn result_write(bytes: &[u8]) -> bool {
    law(bytes, |bytes| WriteResult::decode(bytes).ok(), |result| result.encode().to_vec())
}

pub(super) fn results_write() -> Vec<Vec<u8>> {
    let version = Version { hlc: Hlc(77), region: RegionId(2) };
    let outcomes = [
        Ok(Outcome::Written { version }),
        Ok(Outcome::Deleted { version, existed: true }),
        Ok(Outcome::Count { version, value: -3 }),
        Ok(Outcome::Length { version, length: 9 }),
        Ok(Outcome::ConditionFailed { current: Some(version) }),
        Err(Refusal::new(RefusalKind::Conflict, "no")),
    ];
    outcomes.into_iter().map(|outcome| WriteResult { lsn: Lsn(9), hlc: Hlc(77), outcome }.encode().to_vec()).collect()
}

pub(super) fn result_frame(bytes: &[u8]) -> bool {
    law(bytes, |bytes| FrameResult::decode(bytes).ok(), |result| result.encode().to_vec())
}

pub(super) fn results_frame() -> Vec<Vec<u8>> {
    let divergence =
        Divergence { bucket: BucketId(7), ours: SetHash(1), our_keys: 2, theirs: SetHash(3), their_keys: 4 };
    let results = [
        FrameResult::Applied { watermark: Lsn(9), diverged: vec![divergence.clone()] },
        FrameResult::AlreadyApplied { watermark: Lsn(9) },
        FrameResult::Gap { watermark: Lsn(9) },
        FrameResult::Fenced { bucket: BucketId(7), epoch: Epoch(1), fence: Epoch(2) },
        FrameResult::Diverged { divergence },
        FrameResult::Damaged { reason: "it is torn".to_owned() },
    ];
    results.iter().map(|result| result.encode().to_vec()).collect()
}

pub(super) fn result_control(bytes: &[u8]) -> bool {
    law(bytes, |bytes| ControlResult::decode(bytes).ok(), |result| result.encode().to_vec())
}

pub(super) fn results_control() -> Vec<Vec<u8>> {
    let refused = Some(Refusal::new(RefusalKind::Fenced, "an older epoch"));
    [ControlResult { removed: 3, more: true, refused: None }, ControlResult { removed: 0, more: false, refused }]
        .iter()
        .map(|result| result.encode().to_vec())
        .collect()
}
