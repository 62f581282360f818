//! Bytes that a disk or a peer got wrong: a typed answer, never a panic, and nothing half done.

use bytes::Bytes;
use meridian_region_core::{FrameResult, Mutations, Shard};
use meridian_types::entry::{Body, Header, Kind, WriteBody};
use meridian_types::frame;
use meridian_types::{BucketId, Hlc, Lane, Lsn, RegionId, RequestId, ShardId, Write};
use proptest::prelude::*;

use crate::world::{MERGED, PLAIN, Replica, SHARD, id, key, put};

/// A replica with one of everything in its state.
fn furnished() -> Replica {
    let mut replica = Replica::new(1);
    replica.write(id(7, 1), Write::Put { key: key("a"), value: crate::world::value("1"), ttl_ms: Some(9) });
    replica.write(id(7, 2), put("b", "2"));
    replica.merge(id(8, 1), &put("a", "x")).unwrap();
    replica.merge(RequestId::default(), &Write::Increment { key: key("n"), by: 4 }).unwrap();
    replica.merge(RequestId::default(), &Write::Delete { key: key("n") }).unwrap();
    replica.fence(BucketId(9), 4);
    let other = {
        let mut other = Replica::new(2);
        other.merge(id(9, 1), &Write::Increment { key: key("n"), by: 2 }).unwrap();
        other
    };
    replica.follow(&other, Lane::Async, 9);
    replica
}

fn bodies() -> Vec<(Kind, BucketId, Body)> {
    let write = |write| Body::Write(WriteBody::Plain(write));
    vec![
        (Kind::Write, PLAIN, write(put("a", "value"))),
        (Kind::Write, PLAIN, write(Write::MultiPut { items: vec![(key("a"), crate::world::value("1"))] })),
        (Kind::Write, PLAIN, write(Write::Increment { key: key("b"), by: -1 })),
        (Kind::Write, MERGED, Body::Write(WriteBody::Counter { key: key("n"), by: i64::MIN })),
        (Kind::Write, MERGED, Body::Write(WriteBody::Remove { key: key("n"), counter: vec![(RegionId(2), 9, 9)] })),
        (Kind::Expire, PLAIN, Body::Expire { due: vec![(key("a"), 10)] }),
        (Kind::Fence, PLAIN, Body::Fence),
        (Kind::DropBucket, PLAIN, Body::DropBucket),
        (Kind::ExpireClients, BucketId(0), Body::ExpireClients { before: Hlc(u64::MAX) }),
    ]
}

proptest! {
    #[test]
    fn a_mutated_entry_is_applied_or_refused_but_never_panics(which in 0usize..9, at in any::<usize>(), to in any::<u8>()) {
        let mut replica = furnished();
        let (kind, bucket, body) = bodies().swap_remove(which);
        let header = Header { id: id(7, 3), ..replica.header(kind, bucket) };
        let mut entry = header.encode(&body).to_vec();
        let at = at % entry.len();
        entry[at] = to;
        let mut out = Mutations::new();
        if replica.shard.apply(&replica.state, Lsn(100), &entry, &mut out).is_ok() {
            replica.shard.checkpoint(&mut out);
            replica.state.commit(out);
            replica.shard.validate();
            replica.check_digests();
            replica.restart();
        }
    }

    #[test]
    fn a_frame_with_a_mutated_entry_is_applied_whole_or_not_at_all(
        which in 0usize..9, at in any::<usize>(), to in any::<u8>(), good_first in any::<bool>()
    ) {
        let mut source = Replica::new(2);
        let good = source.encode_write(PLAIN, id(1, 1), 0, WriteBody::Plain(put("g", "good")));
        let (kind, bucket, body) = bodies().swap_remove(which);
        let mut bad = Header { id: id(7, 3), ..source.header(kind, bucket) }.encode(&body).to_vec();
        let at = at % bad.len();
        bad[at] = to;
        let bad = Bytes::from(bad);
        let pair = if good_first { [good, bad] } else { [bad, good] };
        let mut target = furnished();
        let before = target.shard.watermark(RegionId(2), Lane::Sync);
        let entries: Vec<_> = pair.into_iter().zip(50..).map(|(entry, lsn)| (Lsn(lsn), entry)).collect();
        let frame = frame::encode(source.frame_header(Lane::Sync, before, Lsn(60)), &[], &entries);
        let digests = |replica: &Replica| replica.shard.digests().map(|(b, d)| (b, d.clone())).collect::<Vec<_>>();
        let was = digests(&target);
        let (result, _) = target.receive(&frame);
        target.check_digests();
        let after = target.shard.watermark(RegionId(2), Lane::Sync);
        match result {
            FrameResult::Applied { watermark, .. } => prop_assert_eq!((after, watermark), (Lsn(60), Lsn(60))),
            FrameResult::Damaged { .. } | FrameResult::Fenced { .. } => {
                prop_assert_eq!(after, before);
                prop_assert_eq!(digests(&target), was);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_mutated_frame_changes_nothing(at in any::<usize>(), bit in 0u8..8) {
        let mut source = Replica::new(2);
        source.write(id(1, 1), put("g", "good"));
        let mut frame = source.frame_after(Lsn(0), Lane::Sync, 9).unwrap().to_vec();
        let at = at % frame.len();
        frame[at] ^= 1 << bit;
        let mut target = Replica::new(1);
        let (result, applied) = target.receive(&frame);
        let damaged = matches!(result, FrameResult::Damaged { .. });
        prop_assert!(damaged, "{:?}", result);
        prop_assert!(applied.answered.is_empty() && applied.frame.is_none());
        prop_assert_eq!(target.shard.digests().count(), 0);
    }

    #[test]
    fn mutated_state_is_reported_or_harmless_but_never_panics(pair in any::<usize>(), at in any::<usize>(), to in any::<u8>()) {
        let mut replica = furnished();
        let count = replica.state.iter().count();
        let (state_key, stored) = replica.state.iter().nth(pair % count).map(|(k, v)| (k.to_vec(), v.clone())).unwrap();
        if !stored.is_empty() {
            let mut bytes = stored.to_vec();
            let at = at % bytes.len();
            bytes[at] = to;
            let mut out = Mutations::new();
            out.put(state_key, bytes);
            replica.state.commit(out);
        }
        let Ok(mut shard) = Shard::load(&replica.state, RegionId(1), SHARD) else { return Ok(()) };
        for (kind, bucket, body) in bodies() {
            let header = Header { id: id(7, 2), ..replica.header(kind, bucket) };
            let _ = shard.apply(&replica.state, Lsn(1000), &header.encode(&body), &mut Mutations::new());
            let _ = shard.answered(&replica.state, bucket, id(7, 1));
            let _ = shard.due(&replica.state, 100, 10, &|_| true);
        }
    }
}

#[test]
fn an_entry_of_another_region_in_the_own_log_is_fatal() {
    let mut replica = Replica::new(1);
    let foreign = Replica::new(2).encode_write(PLAIN, id(1, 1), 0, WriteBody::Plain(put("k", "v")));
    let error = replica.shard.apply(&replica.state, Lsn(1), &foreign, &mut Mutations::new()).unwrap_err();
    assert!(error.to_string().contains("is this its data directory?"), "{error}");
}

#[test]
fn frames_that_are_not_for_this_shard_or_not_their_sources_own_are_refused() {
    let mut source = Replica::new(2);
    source.write(id(1, 1), put("k", "v"));
    let entry = source.log[0].1.clone();
    let fence = source.header(Kind::Fence, PLAIN).encode(&Body::Fence);
    let header = source.frame_header(Lane::Sync, Lsn(0), Lsn(9));
    let cases = [
        ("another shard", frame::FrameHeader { shard: ShardId(4), ..header }, entry.clone()),
        ("this very region", frame::FrameHeader { source: RegionId(1), ..header }, entry.clone()),
        ("not in its source", frame::FrameHeader { source: RegionId(3), ..header }, entry),
        ("never shipped", header, fence),
    ];
    for (what, header, entry) in cases {
        let mut target = Replica::new(1);
        let (result, _) = target.receive(&frame::encode(header, &[], &[(Lsn(1), entry)]));
        let FrameResult::Damaged { reason } = result else { panic!("{result:?}") };
        assert!(reason.contains(what), "{reason}");
        assert_eq!(target.shard.watermark(header.source, Lane::Sync), Lsn(0));
    }
}
