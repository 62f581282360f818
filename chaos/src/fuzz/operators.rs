//! Decoders of what operators ask for and are told: failovers, repairs, bundles, backups, members, events and drills; and of what the two
//! ends of a repair say to each other.

use bytes::Bytes;
use meridian_proto::convert;
use meridian_proto::v1;
use meridian_region_core::repair::message::{Ask, Digests, Hashes, Pinned, Told};
use meridian_types::{
    Acks, BackupAsk, BackupCut, BackupPiece, BackupRow, BackupSince, BackupSpan, BucketChange, BucketId, BucketName,
    DrillNews, DrillProgress, DrillReport, DrillShard, DrillStep, Epoch, EventQuery, FailoverSpec, Hlc, KeyStart, Lsn,
    MemberChange, MembersChange, NodeId, NodeName, OperationId, Positions, RegionChange, RegionId, RegionName, Remains,
    RepairGoal, RepairReason, RepairStatus, Row, SalvageFate, SalvageKey, Seal, Selection, SetHash, ShardFacts,
    ShardId,
};
use prost::Message;

use super::messages::named;
use super::words::law;

/// Failovers: what is asked, what is estimated, and what a node's shards have.
pub(super) fn failover(bytes: &[u8]) -> bool {
    let asked = |bytes: &[u8]| convert::failover_from_proto(v1::FailoverRequest::decode(bytes).ok()?).ok();
    let estimate = |bytes: &[u8]| convert::estimate_from_proto(v1::FailoverEstimateResponse::decode(bytes).ok()?).ok();
    let facts = |bytes: &[u8]| convert::facts_from_proto(v1::FailoverFactsResponse::decode(bytes).ok()?).ok();
    let about =
        |bytes: &[u8]| convert::estimate_request_from_proto(v1::FailoverEstimateRequest::decode(bytes).ok()?).ok();
    let all = [
        law(bytes, asked, |(spec, id, dry)| convert::failover_to_proto(spec, *id, *dry).encode_to_vec()),
        law(bytes, estimate, |estimate| convert::estimate_to_proto(estimate).encode_to_vec()),
        law(bytes, facts, |(region, facts)| convert::facts_to_proto(*region, facts).encode_to_vec()),
        law(bytes, about, |(buckets, to, lost)| {
            let lost = lost.as_ref().map(ToString::to_string).unwrap_or_default();
            let asked = convert::estimate_request_to_proto(buckets, to.as_ref());
            v1::FailoverEstimateRequest { lost, ..asked }.encode_to_vec()
        }),
    ];
    all.contains(&true)
}

pub(super) fn failovers() -> Vec<Vec<u8>> {
    let (buckets, to) =
        (Selection::Named([named(BucketName::new("orders"))].into()), named(RegionName::new("eu-west")));
    let spec = FailoverSpec {
        buckets: buckets.clone(),
        to: Some(to.clone()),
        consent: None,
        automatic: false,
        reason: "fire".to_owned(),
    };
    let seal = Seal { lsn: Lsn(9), hash: SetHash(8), keys: 7 };
    let remains = Remains { epoch: Epoch(3), seal, exposure: None, whole: true };
    let facts = ShardFacts {
        bucket: BucketId(7),
        shard: ShardId(3),
        remains,
        said_ms: Some(12),
        oldest_key: KeyStart::of(b"order/17"),
    };
    let loss = v1::Loss { operations: 3, bytes: 30, unbounded: false };
    let of_bucket = v1::BucketEstimate {
        bucket: 7,
        name: "orders".to_owned(),
        epoch: 3,
        from: 1,
        to: 2,
        needed: 2,
        heard: vec![2],
        lost: Some(loss),
        known: Some(loss),
        oldest_key: Some(v1::KeyStart { bytes: Bytes::from_static(b"order/17"), cut: false }),
        ..v1::BucketEstimate::default()
    };
    let estimate =
        v1::FailoverEstimateResponse { region: 2, heard: vec![2], buckets: vec![of_bucket], ..Default::default() };
    vec![
        convert::failover_to_proto(&spec, OperationId(7), true).encode_to_vec(),
        convert::estimate_request_to_proto(&buckets, Some(&to)).encode_to_vec(),
        convert::loss_request_to_proto(&buckets, &to).encode_to_vec(),
        convert::facts_to_proto(RegionId(2), &[facts]).encode_to_vec(),
        estimate.encode_to_vec(),
    ]
}

/// What is made equal again, kept, replayed and backed up.
pub(super) fn recovery(bytes: &[u8]) -> bool {
    let repair = |bytes: &[u8]| convert::repair_from_proto(v1::RepairStatus::decode(bytes).ok()?).ok();
    let bundle = |bytes: &[u8]| convert::bundle_from_proto(v1::SalvageBundle::decode(bytes).ok()?).ok();
    let key = |bytes: &[u8]| convert::salvage_key_from_proto(v1::SalvageKey::decode(bytes).ok()?).ok();
    let replay = |bytes: &[u8]| v1::ReplayResponse::decode(bytes).ok().map(convert::replay_from_proto);
    let backup = |bytes: &[u8]| convert::backup_ask_from_proto(v1::BackUpRequest::decode(bytes).ok()?).ok();
    let piece = |bytes: &[u8]| convert::backup_piece_from_proto(v1::BackupPiece::decode(bytes).ok()?).ok();
    let all = [
        law(bytes, repair, |it| convert::repair_to_proto(it.clone()).encode_to_vec()),
        law(bytes, bundle, |it| convert::bundle_to_proto(it.clone()).encode_to_vec()),
        law(bytes, key, |it| convert::salvage_key_to_proto(it.clone()).encode_to_vec()),
        law(bytes, replay, |it| convert::replay_to_proto(*it).encode_to_vec()),
        law(bytes, backup, |(shard, ask)| {
            convert::backup_ask_to_proto(&named(BucketName::new("b")), *shard, ask.clone()).encode_to_vec()
        }),
        law(bytes, piece, |it| convert::backup_piece_to_proto(it.clone()).encode_to_vec()),
    ];
    all.contains(&true)
}

pub(super) fn recoveries() -> Vec<Vec<u8>> {
    let repair = RepairStatus {
        bucket: BucketId(7),
        shard: ShardId(3),
        source: RegionId(1),
        reason: RepairReason::BehindLog,
        rows_total: 9,
        rows_compared: 4,
        rows_moved: 2,
        bytes_moved: 600,
        attempts: 1,
        running_ms: 80,
        eta_ms: 100,
        waits_for: "its source".to_owned(),
        done: false,
    };
    let key = SalvageKey {
        key: Bytes::from_static(b"key"),
        value: Some(Bytes::from_static(b"value")),
        expires_at_ms: Some(9),
        fate: Some(SalvageFate::Changed),
    };
    let bundle = v1::SalvageBundle { id: "7-3-4-5-9".to_owned(), winner: 2, keys: 5, ..Default::default() };
    let cut = BackupCut {
        shard: ShardId(1),
        region: RegionId(2),
        epoch: Epoch(3),
        positions: Positions([(RegionId(1), Lsn(4))].into()),
        hlc: Hlc(6),
        hash: SetHash(7),
        keys: 8,
        bytes: 9,
        staleness_ms: Some(0),
        bucket: BucketId(9),
        applied: Lsn(5),
        stamp: Hlc(7),
        evidence: Some(SetHash(8)),
        at_ms: 10,
        span: BackupSpan::Since,
    };
    let since = BackupSince { bucket: BucketId(9), applied: Lsn(5), evidence: Some(SetHash(8)), ..Default::default() };
    let ask = BackupAsk { context: true, since: Some(since) };
    let row = BackupRow { key: Bytes::from_static(b"k"), record: Bytes::from_static(b"r") };
    let pieces = [
        BackupPiece::Cut(cut),
        BackupPiece::Log(vec![row.clone()]),
        BackupPiece::Rows(vec![row.clone()]),
        BackupPiece::Context(vec![row]),
        BackupPiece::End { rows: 3 },
    ];
    let mut all = vec![
        convert::repair_to_proto(repair).encode_to_vec(),
        convert::salvage_key_to_proto(key).encode_to_vec(),
        v1::ReplayResponse { restored: 1, changed: 2, ..Default::default() }.encode_to_vec(),
        bundle.encode_to_vec(),
        convert::backup_ask_to_proto(&named(BucketName::new("b")), ShardId(1), ask).encode_to_vec(),
    ];
    all.extend(pieces.map(|piece| convert::backup_piece_to_proto(piece).encode_to_vec()));
    all
}

/// Members of regions, changes of buckets, events and drills.
pub(super) fn operation(bytes: &[u8]) -> bool {
    let change = |bytes: &[u8]| convert::change_from_proto(v1::SetBucketRequest::decode(bytes).ok()?).ok();
    let asked = |bytes: &[u8]| convert::members_change_from_proto(v1::ChangeMembersRequest::decode(bytes).ok()?).ok();
    let members = |bytes: &[u8]| convert::member_change_from_proto(v1::MemberChange::decode(bytes).ok()?).ok();
    let query = |bytes: &[u8]| v1::EventsRequest::decode(bytes).ok().map(convert::events_request_from_proto);
    let page = |bytes: &[u8]| v1::EventsResponse::decode(bytes).ok().map(convert::events_from_proto);
    let drill = |bytes: &[u8]| convert::drill_from_proto(v1::DrillFailoverRequest::decode(bytes).ok()?).ok();
    let news = |bytes: &[u8]| convert::drill_news_from_proto(v1::DrillNews::decode(bytes).ok()?).ok();
    let all = [
        law(bytes, change, |(name, change, dry)| convert::change_to_proto(name, change, *dry).encode_to_vec()),
        law(bytes, asked, |(at, change, dry)| convert::members_change_to_proto(at, change, *dry).encode_to_vec()),
        law(bytes, members, |(at, change)| convert::member_change_to_proto(*at, change).encode_to_vec()),
        law(bytes, query, |query| convert::events_request_to_proto(query).encode_to_vec()),
        law(bytes, page, |page| convert::events_to_proto(page.clone()).encode_to_vec()),
        law(bytes, drill, |(buckets, sample)| convert::drill_to_proto(buckets, *sample).encode_to_vec()),
        law(bytes, news, |news| convert::drill_news_to_proto(news.clone()).encode_to_vec()),
    ];
    all.contains(&true)
}

pub(super) fn operations() -> Vec<Vec<u8>> {
    let (name, region) = (named(BucketName::new("orders")), named(RegionName::new("eu-west")));
    let node = |name: &str| named(NodeName::new(name));
    let more = BucketChange { regions: Some(RegionChange::Add(region.clone())), ..BucketChange::default() };
    let acks = BucketChange { acks: Some(Acks::Majority), ..BucketChange::default() };
    let members = MemberChange {
        index: 9,
        since_ms: 8,
        who: "alice".to_owned(),
        target: vec![NodeId(1)],
        before: vec![NodeId(2)],
        strays: [NodeId(3)].into(),
        pending: [ShardId(4)].into(),
    };
    let event =
        v1::Event { index: 3, at: 7, who: "alice".to_owned(), verb: "promote".to_owned(), ..Default::default() };
    let shard = DrillShard { bucket: BucketId(7), shard: ShardId(3), lsn: Lsn(9), keys: 2, ..DrillShard::default() };
    let report = DrillReport { steps: vec![(DrillStep::Copy, 900)], shards: vec![shard], ..DrillReport::default() };
    let progress = DrillProgress { step: DrillStep::Verify, done: 1, total: 16 };
    let replaced = MembersChange::Replace(node("us-east-1"), node("us-east-2"));
    vec![
        convert::change_to_proto(&name, &more, true).encode_to_vec(),
        convert::change_to_proto(&name, &acks, false).encode_to_vec(),
        convert::members_change_to_proto(&region, &MembersChange::Join(vec![node("eu-west-2")]), true).encode_to_vec(),
        convert::members_change_to_proto(&region, &replaced, false).encode_to_vec(),
        convert::member_change_to_proto(RegionId(1), &members).encode_to_vec(),
        convert::events_request_to_proto(&EventQuery { index_min: 5, after: Hlc(6), limit: 7 }).encode_to_vec(),
        v1::EventsResponse { events: vec![event], remembered_from: 1, index: 3 }.encode_to_vec(),
        convert::drill_to_proto(&[name], 100).encode_to_vec(),
        convert::drill_news_to_proto(DrillNews::Progress(progress)).encode_to_vec(),
        convert::drill_news_to_proto(DrillNews::Done(Box::new(report))).encode_to_vec(),
    ]
}

pub(super) fn ask(bytes: &[u8]) -> bool {
    law(bytes, |bytes| Ask::decode(bytes).ok(), |ask| ask.encode().to_vec())
}

pub(super) fn asks() -> Vec<Vec<u8>> {
    let (shard, bucket) = (ShardId(3), BucketId(7));
    let key = Bytes::from_static(b"key");
    let all = [
        Ask::Survey { shard },
        Ask::Reach { shard, after: Lsn(5) },
        Ask::Removals { shard, bucket, after: Lsn(5) },
        Ask::Open { shard, bucket },
        Ask::Hashes { session: 2, after: Bytes::new(), differing: Bytes::from_static(&[0b101]) },
        Ask::Rows { session: 2, after: key.clone(), up_to: Some(key), hashes: hashes() },
        Ask::Close { session: 2 },
        Ask::Floors,
        Ask::Sights { bucket, shards: vec![shard], strong: true },
        Ask::Settled { bucket, read: vec![(shard, Lsn(9))] },
    ];
    all.iter().map(|ask| ask.encode().to_vec()).collect()
}

pub(super) fn told(bytes: &[u8]) -> bool {
    law(bytes, |bytes| Told::decode(bytes).ok(), |told| told.encode().to_vec())
}

pub(super) fn tolds() -> Vec<Vec<u8>> {
    let (shard, key) = (ShardId(3), Bytes::from_static(b"key"));
    let row = Row { key: key.clone(), value: Bytes::from_static(b"record") };
    let pinned = Pinned {
        goal: RepairGoal::default(),
        rows: 3,
        salt: 99,
        digests: Digests::from_iter([SetHash(1), SetHash(2)]),
    };
    let all = [
        Told::Reach { trimmed_to: Some(Lsn(4)) },
        Told::Removals { keys: vec![key.clone()], reached: Lsn(9), more: true },
        Told::Forgotten,
        Told::Opened { session: 2, pinned },
        Told::Hashes { hashes: hashes(), up_to: Some(key) },
        Told::Rows { rows: vec![row], up_to: None },
        Told::Closed,
        Told::Floors(vec![(shard, Lsn(7))]),
        Told::Sights(vec![(shard, Lsn(7), Some(12))]),
        Told::Settled,
    ];
    all.iter().map(|told| told.encode().to_vec()).collect()
}

fn hashes() -> Hashes {
    Hashes::from_iter([1, 2, 3])
}
