//! The rules one by one: at most once, fences, timestamps, expiry, dropped buckets, divergence.

use meridian_region_core::{Answered, FrameResult, Mutations, SESSION_TTL_MS, WriteResult, active_active_body, read};
use meridian_types::entry::{Body, Header, Kind, WriteBody};
use meridian_types::frame::{self, DigestNote, Frame, FrameHeader};
use meridian_types::{
    BucketId, Effect, Epoch, Hlc, Key, Lane, Lsn, Outcome, RefusalKind, RegionId, RequestId, SetHash, Value, Write,
};

use crate::world::{MERGED, PLAIN, Replica, SHARD, id, key, put, value};

fn increment(k: &str) -> Write {
    Write::Increment { key: key(k), by: 1 }
}

fn count(result: &WriteResult) -> i64 {
    match result.outcome {
        Ok(Outcome::Count { value, .. }) => value,
        ref other => panic!("{other:?}"),
    }
}

fn refused(result: WriteResult) -> (RefusalKind, Effect) {
    let refusal = result.outcome.unwrap_err();
    (refusal.kind, refusal.effect)
}

#[test]
fn one_1_an_increment_asked_twice_counts_once() {
    let mut replica = Replica::new(1);
    let first = replica.write(id(7, 1), increment("n"));
    replica.restart();
    assert_eq!(replica.write(id(7, 1), increment("n")), first);
    assert_eq!((count(&first), replica.text(PLAIN, "n").as_deref()), (1, Some("1")));
    assert_eq!(count(&replica.write(id(8, 1), increment("n"))), 2);
}

#[test]
fn one_1_both_copies_of_a_request_in_one_batch_count_once() {
    let mut replica = Replica::new(1);
    let entries = (0..2).map(|_| replica.encode_write(PLAIN, id(7, 1), 0, WriteBody::Plain(increment("n")))).collect();
    let applied = replica.commit_batch(entries);
    assert_eq!(applied[0].result, applied[1].result);
    assert_eq!(replica.text(PLAIN, "n").as_deref(), Some("1"));
    // Both are answered, and both stand in the history that is shipped.
    let answer = Answered { bucket: PLAIN, id: id(7, 1), result: applied[0].result.clone() };
    assert_eq!(applied[1].answered, [answer]);
    let mut other = Replica::new(2);
    other.follow(&replica, Lane::Sync, 1);
    assert_eq!(other.text(PLAIN, "n").as_deref(), Some("1"));
}

#[test]
fn one_1_without_an_identity_every_request_is_new() {
    let mut replica = Replica::new(1);
    replica.write(RequestId::default(), increment("n"));
    assert_eq!(count(&replica.write(RequestId::default(), increment("n"))), 2);
}

#[test]
fn one_1_a_request_older_than_what_is_remembered_is_told_so_and_not_done() {
    let mut replica = Replica::new(1);
    let entry = replica.encode_write(PLAIN, id(7, 9), 9, WriteBody::Plain(increment("n")));
    replica.commit(entry);
    assert_eq!(refused(replica.write(id(7, 8), increment("n"))), (RefusalKind::Invalid, Effect::Unknown));
    assert_eq!(replica.text(PLAIN, "n").as_deref(), Some("1"));
}

#[test]
fn one_1_a_condition_that_failed_once_stays_failed_for_its_retry() {
    let mut replica = Replica::new(1);
    replica.write(id(7, 1), put("k", "v"));
    let write = Write::PutIfAbsent { key: key("k"), value: value("w"), ttl_ms: None };
    let first = replica.write(id(7, 2), write.clone());
    assert!(matches!(first.outcome, Ok(Outcome::ConditionFailed { current: Some(_) })));
    replica.write(id(7, 3), Write::Delete { key: key("k") });
    assert_eq!(replica.write(id(7, 2), write), first);
}

#[test]
fn one_1_silent_clients_are_forgotten_alike_in_every_region() {
    let (mut primary, mut other) = (Replica::new(1), Replica::new(2));
    primary.write(id(7, 1), increment("n"));
    primary.wall_ms += SESSION_TTL_MS + 2;
    primary.write(id(8, 1), put("k", "v"));
    let forget = Body::ExpireClients { before: Hlc::from_millis(primary.wall_ms - 1) };
    let done = primary.control(Kind::ExpireClients, BucketId(0), Epoch(0), &forget);
    assert_eq!((done.removed, done.more), (1, false));
    // The other region has cleared nothing away, and still decides the same about a very late retry.
    primary.write(id(7, 1), increment("n"));
    other.follow(&primary, Lane::Sync, 9);
    assert_eq!(other.text(PLAIN, "n"), primary.text(PLAIN, "n"));
    assert_eq!(other.shard.digest(PLAIN), primary.shard.digest(PLAIN));
}

#[test]
fn fen_2_behind_a_seal_lower_epochs_are_refused_and_not_shipped() {
    let (mut primary, mut other) = (Replica::new(1), Replica::new(2));
    primary.write(id(7, 1), put("k", "old"));
    assert_eq!(primary.seal(PLAIN, 2).refused, None);
    assert_eq!(refused(primary.write(id(7, 2), put("k", "late"))), (RefusalKind::Fenced, Effect::None));
    // The same request under the epoch in force is not mistaken for a retry of the refused one.
    primary.epoch = Epoch(2);
    primary.restart();
    assert!(primary.write(id(7, 2), put("k", "new")).outcome.is_ok());
    // A retry of what was done before the seal gets its answer, whatever its epoch.
    primary.epoch = Epoch(1);
    assert!(primary.write(id(7, 1), put("k", "old")).outcome.is_ok());
    other.follow(&primary, Lane::Sync, 9);
    assert_eq!(other.text(PLAIN, "k").as_deref(), Some("new"));
    assert_eq!(other.shard.digest(PLAIN), primary.shard.digest(PLAIN));
    assert_eq!((primary.shard.epoch(PLAIN), other.shard.epoch(PLAIN)), (Epoch(2), Epoch(2)));
}

#[test]
fn fen_2_an_epoch_that_has_not_begun_takes_no_writes() {
    let mut primary = Replica::new(1);
    primary.epoch = Epoch(2);
    assert_eq!(refused(primary.write(id(7, 1), put("k", "v"))), (RefusalKind::Retry, Effect::None));
    primary.seal(PLAIN, 2);
    assert!(primary.write(id(7, 1), put("k", "v")).outcome.is_ok(), "the same request, once its epoch has begun");
}

#[test]
fn fen_2_a_frame_of_a_lower_epoch_is_refused_whole() {
    let (mut primary, mut other) = (Replica::new(1), Replica::new(2));
    primary.write(id(7, 1), put("k", "v"));
    primary.epoch = Epoch(3);
    primary.write(id(7, 2), put("l", "v"));
    other.fence(PLAIN, 3);
    let frame = primary.frame_after(Lsn(0), Lane::Sync, 9).unwrap();
    let (result, _) = other.receive(&frame);
    assert_eq!(result, FrameResult::Fenced { bucket: PLAIN, epoch: Epoch(1), fence: Epoch(3) });
    assert_eq!((other.text(PLAIN, "l"), other.shard.watermark(RegionId(1), Lane::Sync)), (None, Lsn(0)));
}

#[test]
fn con_4_an_entry_that_is_newer_than_its_frame_says_is_refused() {
    let (mut primary, mut other) = (Replica::new(1), Replica::new(2));
    primary.write(id(7, 1), put("k", "v"));
    let honest = Frame::decode(&primary.frame_after(Lsn(0), Lane::Sync, 9).unwrap()).unwrap();
    let header = FrameHeader { closed: Hlc(honest.header.closed.0 - 1), ..honest.header };
    let (result, _) = other.receive(&frame::encode(header, &honest.notes, &honest.entries));
    assert!(matches!(result, FrameResult::Damaged { .. }), "{result:?}");
    assert_eq!(other.text(PLAIN, "k"), None);
}

#[test]
fn an_entry_whose_timestamp_does_not_rise_is_refused_and_not_shipped() {
    let mut replica = Replica::new(1);
    let header = replica.header(Kind::Write, PLAIN);
    replica.write(id(7, 1), put("k", "v"));
    let late = Header { id: id(7, 2), ..header }.encode(&Body::Write(WriteBody::Plain(put("k", "w"))));
    let result = WriteResult::decode(&replica.commit(late).result).unwrap();
    assert_eq!(refused(result), (RefusalKind::Retry, Effect::None));
    replica.restart();
    assert!(!replica.shard.is_effective(replica.log[1].0, &Header::decode(&replica.log[1].1).unwrap()));
    let mut other = Replica::new(2);
    other.follow(&replica, Lane::Sync, 9);
    assert_eq!(other.shard.digest(PLAIN), replica.shard.digest(PLAIN));
}

#[test]
fn an_expiry_spares_a_key_that_was_set_again() {
    let mut replica = Replica::new(1);
    replica.write(id(7, 1), Write::Put { key: key("k"), value: value("v"), ttl_ms: Some(5) });
    replica.wall_ms = 10;
    let due = replica.shard.due(&replica.state, 10, 9, &|bucket| bucket == PLAIN).unwrap();
    assert_eq!(due[0].keys, [(key("k"), 6)]);
    assert!(replica.shard.due(&replica.state, 10, 9, &|_| false).unwrap().is_empty());
    replica.write(id(7, 2), Write::Put { key: key("k"), value: value("w"), ttl_ms: Some(50) });
    let done = replica.control(Kind::Expire, PLAIN, Epoch(1), &Body::Expire { due: due[0].keys.clone() });
    assert_eq!((done.removed, replica.text(PLAIN, "k").as_deref()), (0, Some("w")));
    // Nor does it run ahead of time.
    let early = Body::Expire { due: vec![(key("k"), 60)] };
    assert_eq!(replica.control(Kind::Expire, PLAIN, Epoch(1), &early).removed, 0);
}

#[test]
fn an_appended_value_keeps_its_bound_and_its_end() {
    let mut replica = Replica::new(1);
    let big = Value::new(vec![b'x'; meridian_types::key::VALUE_BYTES_MAX]).unwrap();
    replica.write(id(7, 1), Write::Put { key: key("k"), value: big, ttl_ms: Some(100) });
    let over = replica.write(id(7, 2), Write::Append { key: key("k"), suffix: value("y") });
    assert_eq!(refused(over), (RefusalKind::Invalid, Effect::None));
    let empty = replica.write(id(7, 3), Write::Append { key: key("k"), suffix: value("") });
    assert!(matches!(empty.outcome, Ok(Outcome::Length { length: 1_048_576, .. })));
    assert_eq!(replica.get(PLAIN, &key("k")).unwrap().found.expires_at_ms, Some(101));
}

#[test]
fn keys_of_another_shard_have_no_place_in_a_multi_put() {
    let mut replica = Replica::new(1);
    let shards = 16;
    let of_shard = |shard: u16| -> Key {
        (0..).map(|n: u32| key(&n.to_string())).find(|key| key.shard(PLAIN, shards).0 == shard).unwrap()
    };
    replica.shard = replica.shard.with_shards(shards);
    let (own, other) = (of_shard(SHARD.0), of_shard(SHARD.0 + 1));
    let both = Write::MultiPut { items: vec![(own.clone(), value("1")), (other, value("2"))] };
    assert_eq!(refused(replica.write(id(7, 1), both)), (RefusalKind::Invalid, Effect::None));
    assert_eq!(replica.get(PLAIN, &own), None);
    assert!(replica.write(id(7, 2), Write::MultiPut { items: vec![(own, value("1"))] }).outcome.is_ok());
}

#[test]
fn con_5_a_dropped_bucket_goes_piece_by_piece_and_never_comes_back() {
    let (mut primary, mut other) = (Replica::new(1), Replica::new(2));
    let puts: Vec<_> = (0..meridian_region_core::shard::REMOVALS_MAX + 10)
        .map(|n| Write::Put { key: key(&n.to_string()), value: value("v"), ttl_ms: Some(1_000_000) })
        .collect();
    let entries = puts.into_iter().map(|put| primary.encode_write(PLAIN, id(7, 1), 0, WriteBody::Plain(put)));
    let entries: Vec<_> = entries.take(3).collect();
    primary.commit_batch(entries);
    let many: Vec<_> = (0..meridian_region_core::shard::REMOVALS_MAX)
        .map(|n| primary.encode_write(PLAIN, RequestId::default(), 0, WriteBody::Plain(put(&n.to_string(), "v"))))
        .collect();
    primary.commit_batch(many);
    primary.merge(id(7, 2), &put("k", "stays")).unwrap();
    other.follow(&primary, Lane::Sync, 1000);
    let late = primary.encode_write(PLAIN, id(7, 3), 0, WriteBody::Plain(put("late", "v")));
    primary.commit(late);

    let mut rounds = 1;
    while other.control(Kind::DropBucket, PLAIN, Epoch(0), &Body::DropBucket).more {
        rounds += 1;
    }
    assert!(rounds >= 2, "a bounded amount of work per entry");
    other.restart();
    other.follow(&primary, Lane::Sync, 9);
    assert_eq!((other.text(PLAIN, "late"), other.shard.digest(PLAIN)), (None, None));
    assert!(other.shard.is_dropped(PLAIN));
    let left: Vec<_> = other.state.iter().filter(|(state_key, _)| state_key[2] != 1).collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(refused(other.write(id(9, 1), put("k", "v"))), (RefusalKind::NotFound, Effect::None));
    // The source drops it too; its other bucket is untouched.
    while primary.control(Kind::DropBucket, PLAIN, Epoch(0), &Body::DropBucket).more {}
    assert_eq!(primary.text(MERGED, "k").as_deref(), Some("stays"));
}

#[test]
fn a_retry_for_a_dropped_bucket_is_told_that_the_bucket_is_gone() {
    let mut replica = Replica::new(1);
    replica.write(id(7, 1), put("k", "v"));
    replica.control(Kind::DropBucket, PLAIN, Epoch(0), &Body::DropBucket);
    assert_eq!(replica.shard.answered(&replica.state, PLAIN, id(7, 1)).unwrap(), None);
    assert_eq!(refused(replica.write(id(7, 1), put("k", "v"))), (RefusalKind::NotFound, Effect::None));
}

#[test]
fn ord_1_an_entry_that_comes_again_in_the_other_lane_is_not_applied_again() {
    let (mut primary, mut other) = (Replica::new(1), Replica::new(2));
    primary.write(RequestId::default(), increment("n"));
    other.follow(&primary, Lane::Sync, 9);
    let (lsn, entry, _) = primary.log[0].clone();
    let again = frame::encode(primary.frame_header(Lane::Async, Lsn(0), lsn), &[], &[(lsn, entry)]);
    assert!(matches!(other.receive(&again).0, FrameResult::Applied { .. }));
    assert_eq!(other.shard.digest(PLAIN), primary.shard.digest(PLAIN));
}

#[test]
fn a_removal_is_remembered_by_its_position() {
    let mut replica = Replica::new(1);
    replica.write(id(7, 1), put("k", "v"));
    replica.merge(id(7, 2), &put("k", "v")).unwrap();
    let last = |replica: &Replica, bucket| replica.shard.digest(bucket).unwrap().last_removal;
    assert_eq!((last(&replica, PLAIN), last(&replica, MERGED)), (Lsn(0), Lsn(0)));
    let plain = replica.write(id(7, 3), Write::Delete { key: key("k") });
    let merged = replica.merge(id(7, 4), &Write::Delete { key: key("k") }).unwrap();
    assert_eq!((last(&replica, PLAIN), last(&replica, MERGED)), (plain.lsn, merged.lsn));
}

#[test]
fn res_1_a_page_is_bounded_in_bytes_and_still_moves_on() {
    let mut replica = Replica::new(1);
    let big = Value::new(vec![b'x'; meridian_types::key::VALUE_BYTES_MAX]).unwrap();
    for k in ["a", "b", "c", "d"] {
        replica.write(RequestId::default(), Write::Put { key: key(k), value: big.clone(), ttl_ms: None });
    }
    let scan = |after: &[u8], values| {
        let page = read::scan(&replica.state, SHARD, PLAIN, b"", after, 100, values, replica.wall_ms).unwrap();
        let keys: Vec<_> = page.items.iter().map(|(key, _)| key.as_bytes().to_vec()).collect();
        (keys.concat(), page.more)
    };
    assert_eq!(scan(b"", true), (b"a".to_vec(), true));
    assert_eq!(scan(b"c", true), (b"d".to_vec(), false));
    assert_eq!(scan(b"", false), (b"abcd".to_vec(), false));
}

#[test]
fn a_divergence_is_found_by_the_frame_sticks_and_stops_the_bucket() {
    let (mut primary, mut other) = (Replica::new(1), Replica::new(2));
    primary.write(id(7, 1), put("k", "v"));
    let positions = primary.shard.digest(PLAIN).unwrap().positions.clone();
    let wrong = DigestNote { bucket: PLAIN, positions, hash: SetHash(1), keys: 1 };
    let (lsn, entry, _) = primary.log[0].clone();
    let header = primary.frame_header(Lane::Sync, Lsn(0), lsn);
    let (result, applied) = other.receive(&frame::encode(header, &[wrong], &[(lsn, entry)]));
    let FrameResult::Applied { diverged, .. } = result else { panic!("{result:?}") };
    assert_eq!(diverged[0].bucket, PLAIN);
    assert_eq!(applied.frame.unwrap().diverged, diverged);
    other.restart();
    assert_eq!(other.shard.divergence(PLAIN), diverged.first());
    primary.write(id(7, 2), put("k", "w"));
    let frame = primary.frame_after(lsn, Lane::Sync, 9).unwrap();
    assert!(matches!(other.receive(&frame).0, FrameResult::Diverged { .. }));
    assert_eq!(other.text(PLAIN, "k").as_deref(), Some("v"));
}

#[test]
fn a_note_at_other_positions_proves_nothing() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    a.merge(id(7, 1), &put("k", "a")).unwrap();
    b.merge(id(8, 1), &put("k", "b")).unwrap();
    b.follow(&a, Lane::Async, 9);
    a.follow(&b, Lane::Async, 9);
    assert_eq!(a.shard.divergence(MERGED), None);
    assert_eq!(a.shard.digest(MERGED), b.shard.digest(MERGED));
}

#[test]
fn a_frame_of_nothing_moves_the_watermark_and_only_it() {
    let mut target = Replica::new(2);
    let source = Replica::new(1);
    let skip = frame::encode(source.frame_header(Lane::Async, Lsn(0), Lsn(1024)), &[], &[]);
    assert!(matches!(target.receive(&skip).0, FrameResult::Applied { watermark: Lsn(1024), .. }));
    assert!(matches!(target.receive(&skip).0, FrameResult::AlreadyApplied { watermark: Lsn(1024) }));
    target.restart();
    assert_eq!(target.shard.watermark(RegionId(1), Lane::Async), Lsn(1024));
    assert_eq!(target.shard.watermark(RegionId(1), Lane::Sync), Lsn(0));
    assert_eq!(target.shard.digests().count(), 0);
}

#[test]
fn operations_that_need_one_order_are_refused_in_active_active_buckets_and_say_what_to_use() {
    let replica = Replica::new(1);
    let (k, v) = (key("k"), value("v"));
    let writes = [
        Write::Append { key: k.clone(), suffix: v.clone() },
        Write::CompareAndSet { key: k.clone(), expected: None, value: v.clone(), ttl_ms: None },
        Write::PutIfAbsent { key: k.clone(), value: v.clone(), ttl_ms: None },
        Write::MultiPut { items: vec![(k, v)] },
    ];
    for write in writes {
        let refusal = active_active_body(&replica.state, SHARD, MERGED, &write, 1, RegionId(1)).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::Invalid);
        assert!(refusal.message.contains("use a bucket with a primary"), "{refusal}");
    }
}

#[test]
fn an_active_active_key_is_a_value_or_a_counter() {
    let mut replica = Replica::new(1);
    replica.merge(id(7, 1), &put("k", "v")).unwrap();
    let refusal = replica.merge(id(7, 2), &increment("k")).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Conflict);
    replica.merge(id(7, 3), &Write::Delete { key: key("k") }).unwrap();
    assert_eq!(count(&replica.merge(id(7, 4), &increment("k")).unwrap()), 1);
    assert_eq!(replica.text(MERGED, "k").as_deref(), Some("1"));
    let by = i64::MAX;
    let refusal = replica.merge(id(7, 5), &Write::Increment { key: key("k"), by }).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Conflict);
    // A value whose time has come no longer stands in the counter's way.
    replica.merge(id(7, 6), &Write::Put { key: key("t"), value: value("v"), ttl_ms: Some(2) }).unwrap();
    replica.wall_ms += 10;
    assert_eq!(count(&replica.merge(id(7, 7), &increment("t")).unwrap()), 1);
    assert_eq!(replica.text(MERGED, "t").as_deref(), Some("1"));
}

#[test]
fn a_blind_put_reads_one_record_and_writes_one_record_and_one_result() {
    struct Counting<'a>(&'a meridian_region_core::MemoryState, std::cell::Cell<usize>);
    impl meridian_region_core::StateView for Counting<'_> {
        fn get(&self, key: &[u8]) -> Result<Option<bytes::Bytes>, meridian_region_core::ViewError> {
            self.1.set(self.1.get() + 1);
            self.0.get(key)
        }
        fn scan(
            &self,
            _: &[u8],
            _: &[u8],
            _: meridian_region_core::Each<'_>,
        ) -> Result<(), meridian_region_core::ViewError> {
            panic!("a put scans nothing")
        }
    }
    let mut replica = Replica::new(1);
    replica.write(id(7, 1), put("k", "v"));
    let entry = replica.encode_write(PLAIN, id(7, 2), 2, WriteBody::Plain(put("k", "w")));
    let view = Counting(&replica.state, std::cell::Cell::new(0));
    let mut out = Mutations::new();
    replica.shard.apply(&view, Lsn(9), &entry, &mut out).unwrap();
    assert_eq!((view.1.get(), out.len()), (1, 2));
}
