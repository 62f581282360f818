//! Frames from another region's log, applied here (ORD-1, CON-4).

use std::sync::Arc;

use meridian_region_node::{FrameRefusal, TailError};
use meridian_types::*;

use crate::world::*;

async fn two() -> (tempfile::TempDir, tempfile::TempDir, Arc<RegionUnderTest>, Arc<RegionUnderTest>) {
    let (a_dir, b_dir, plane) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Plane::new());
    let a = RegionUnderTest::start(a_dir.path(), A, &plane).await;
    let b = RegionUnderTest::start(b_dir.path(), B, &plane).await;
    (a_dir, b_dir, Arc::new(a), Arc::new(b))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_frames_both_regions_have_equal_digests_and_positions() {
    let (_a, _b, a, b) = two().await;
    for n in 0..50 {
        a.put(ASYNC, &format!("k{}", n % 7), &n.to_string()).await.unwrap();
        a.put(ACTIVE, &format!("k{}", n % 5), &format!("a{n}")).await.unwrap();
        b.put(ACTIVE, &format!("k{}", n % 5), &format!("b{n}")).await.unwrap();
        a.write(ACTIVE, Write::Increment { key: key("count"), by: 1 }).await.unwrap();
        b.write(ACTIVE, Write::Increment { key: key("count"), by: 2 }).await.unwrap();
        if n % 10 == 3 {
            carry_all(&a, &b).await;
        }
    }
    a.write(ASYNC, Write::Delete { key: key("k3") }).await.unwrap();
    carry_all(&a, &b).await;
    carry_all(&b, &a).await;
    let (in_a, in_b) = (digests(&a), digests(&b));
    assert_eq!(in_a.keys().collect::<Vec<_>>(), in_b.keys().collect::<Vec<_>>());
    for (place, digest) in &in_a {
        assert_eq!(digest.agrees_with(&in_b[place]), Some(true), "CON-4: {place:?}");
    }
    assert_eq!(b.value(ACTIVE, "count", ReadLevel::Eventual).await.as_deref(), Some("150"));
    assert!(a.handle.digests(None).iter().chain(&b.handle.digests(None)).all(|it| !it.diverged));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_counts_once_a_gap_is_sent_back_and_nothing_is_echoed() {
    let (_a, _b, a, b) = two().await;
    let shard = shard_of(&a.plane, ASYNC, "k");
    a.put(ASYNC, "k", "1").await.unwrap();
    let first = next_frame(&a, &b, shard, Lane::Async).await.unwrap();
    let last = apply(&b, &first).await.unwrap();
    assert_eq!(apply(&b, &first).await, Ok(last), "applied before: acknowledged again");
    a.put(ASYNC, "k", "2").await.unwrap();
    let second = next_frame(&a, &b, shard, Lane::Async).await.unwrap();
    let end = apply(&b, &second).await.unwrap();
    assert_eq!(b.handle.watermark(A, shard, Lane::Async).await, Ok(end));
    a.put(ASYNC, "k", "3").await.unwrap();
    let third = next_frame(&a, &b, shard, Lane::Async).await.unwrap();
    let end = apply(&b, &third).await.unwrap();
    a.put(ASYNC, "k", "4").await.unwrap();
    // As if the frame in between had been lost.
    let mut lost =
        meridian_types::frame::Frame::decode(&next_frame(&a, &b, shard, Lane::Async).await.unwrap()).unwrap();
    lost.header.previous = Lsn(end.0 + 1);
    lost.entries.clear();
    let gap = meridian_types::frame::encode(lost.header, &[], &[]);
    assert_eq!(apply(&b, &gap).await, Err(FrameRefusal::Rewind { watermark: end }), "ORD-1");
    let tail = b.handle.read_log(shard, Lsn(0), 1 << 20).await.unwrap();
    let shipped =
        tail.entries.iter().filter(|it| meridian_types::entry::Header::decode(&it.entry).unwrap().kind.is_shipped());
    assert_eq!(shipped.count(), 0, "what came from a is not b's to ship");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_enqueued_one_after_another_are_applied_in_that_order() {
    let (_a, _b, a, b) = two().await;
    let names = names_in_one_shard(&a.plane, ASYNC, 30);
    let shard = shard_of(&a.plane, ASYNC, &names[0]);
    let mut frames = Vec::new();
    let mut previous = Lsn(0);
    for name in &names {
        a.put(ASYNC, name, "v").await.unwrap();
        let mut frame =
            meridian_types::frame::Frame::decode(&next_frame(&a, &b, shard, Lane::Async).await.unwrap()).unwrap();
        frame.header.previous = previous;
        frame.entries.retain(|(lsn, _)| *lsn > previous);
        previous = frame.header.last;
        frames.push(meridian_types::frame::encode(frame.header, &frame.notes, &frame.entries));
    }
    let enqueued: Vec<_> = frames.iter().map(|frame| b.handle.apply_frame(frame)).collect();
    for applied in enqueued {
        applied.await.unwrap();
    }
    assert_eq!(b.handle.watermark(A, shard, Lane::Async).await, Ok(previous));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_frame_and_one_of_a_full_disk_are_refused_before_the_log() {
    let (_a, _b, a, b) = two().await;
    a.put(ASYNC, "k", "1").await.unwrap();
    let frame = next_frame(&a, &b, shard_of(&a.plane, ASYNC, "k"), Lane::Async).await.unwrap();
    let mut damaged = frame.to_vec();
    damaged[60] ^= 1;
    assert!(matches!(apply(&b, &damaged.into()).await, Err(FrameRefusal::Damaged(_))));
    b.disk.0.store(0, std::sync::atomic::Ordering::SeqCst);
    eventually("the disk is full", async || !b.handle.problems().is_empty()).await;
    assert!(matches!(apply(&b, &frame).await, Err(FrameRefusal::Unavailable(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_carries_digests_of_recent_entries_and_says_when_it_is_the_head() {
    let (_a, _b, a, _b_region) = two().await;
    let shard = shard_of(&a.plane, ASYNC, "k");
    let mut head = a.handle.head(shard);
    head.mark_unchanged();
    let written = a.put(ASYNC, "k", "1").await.unwrap();
    assert!(head.has_changed().unwrap(), "the shipper is woken before the client is answered");
    let lsn = head.borrow_and_update().unwrap().lsn;
    let tail = a.handle.read_log(shard, Lsn(0), 1 << 20).await.unwrap();
    assert!(tail.at_head && tail.reached >= lsn);
    let last = tail.entries.last().unwrap();
    let digest = &digests(&a)[&(a.plane.bucket(ASYNC).id, shard)];
    let note = last.note.as_ref().unwrap();
    assert_eq!((note.hash, &note.positions), (digest.hash, &digest.positions));
    assert_eq!(tail.closed, written.freshness.hlc, "every later entry has a greater timestamp");
    assert_eq!(a.handle.counters(shard, a.plane.bucket(ASYNC).id).0, 1);
    let nowhere = a.handle.read_log(ShardId(99), Lsn(0), 1).await;
    assert!(matches!(nowhere, Err(TailError::Unavailable(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_divergence_is_found_by_the_next_frame_and_reported() {
    let (_a, _b, a, b) = two().await;
    let shard = shard_of(&a.plane, ASYNC, "k");
    a.put(ASYNC, "k", "1").await.unwrap();
    let mut frame =
        meridian_types::frame::Frame::decode(&next_frame(&a, &b, shard, Lane::Async).await.unwrap()).unwrap();
    frame.notes[0].hash.0 ^= 1;
    let lying = meridian_types::frame::encode(frame.header, &frame.notes, &frame.entries);
    assert!(matches!(apply(&b, &lying).await, Err(FrameRefusal::Diverged { .. })));
    assert!(b.handle.digests(None).iter().any(|it| it.diverged));
    assert!(b.handle.problems().iter().any(|it| it.contains("resync")));
}
