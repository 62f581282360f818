//! Replicas that can't be brought up to date by their lanes become equal to their source by themselves (ORD-1, DUR-3).

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::join_all;
use meridian_region_node::{FrameRefusal, Options, TailError};
use meridian_types::entry::{Body, Header, WriteBody};
use meridian_types::frame::{Frame, encode};
use meridian_types::*;

use crate::world::*;

struct Pair {
    dirs: [tempfile::TempDir; 2],
    a: Arc<RegionUnderTest>,
    b: Arc<RegionUnderTest>,
    plane: Arc<Plane>,
}

async fn pair() -> Pair {
    pair_with(options()).await
}

async fn pair_with(of_b: Options) -> Pair {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let plane = Plane::new();
    let a = Arc::new(RegionUnderTest::start(dirs[0].path(), A, &plane).await);
    let b = Arc::new(RegionUnderTest::start_with(dirs[1].path(), B, &plane, of_b).await);
    a.listen(&b).await;
    b.listen(&a).await;
    Pair { dirs, a, b, plane }
}

/// Writes so much that there is something to purge.
async fn much(region: &RegionUnderTest, bucket: &str, times: usize, value: &str) {
    for round in 0..times / 200 {
        let writes = (0..200).map(|n| {
            let name = format!("k{}", n % 150);
            let value = format!("{value}-{round}-{n}");
            async move { region.put(bucket, &name, &value).await.unwrap() }
        });
        join_all(writes).await;
    }
}

/// Purges the log of `a` as if `b` had everything.
async fn purge(pair: &Pair) {
    // Long after the lanes were complete.
    pair.b.clock.advance(60_000);
    for shard in (0..SHARDS).map(ShardId) {
        let head = pair.a.handle.head(shard).borrow().unwrap().lsn;
        for lane in Lane::ALL {
            pair.a.handle.acknowledged(shard, lane, B, head);
        }
    }
    eventually("the log is purged", async || {
        let mut trimmed = 0;
        for shard in (0..SHARDS).map(ShardId) {
            let watermark = pair.b.handle.watermark(A, shard, Lane::Async).await.unwrap();
            let tail = pair.a.handle.read_log(shard, watermark, 1).await;
            trimmed += usize::from(matches!(tail, Err(TailError::Trimmed { .. })));
        }
        trimmed == usize::from(SHARDS)
    })
    .await;
}

fn of_bucket(region: &RegionUnderTest, bucket: BucketId) -> BTreeMap<(BucketId, ShardId), BucketDigest> {
    digests(region).into_iter().filter(|((of, _), _)| *of == bucket).collect()
}

async fn become_equal(pair: &Pair, bucket: &str) {
    let id = pair.plane.bucket(bucket).id;
    eventually("both are equal", async || {
        let (a, b) = (of_bucket(&pair.a, id), of_bucket(&pair.b, id));
        let over = pair.b.handle.repairs().iter().all(|it| it.done);
        over && a.len() == b.len() && a.iter().all(|(place, digest)| b.get(place) == Some(digest))
    })
    .await;
    assert!(pair.b.handle.digests(None).iter().all(|it| !it.diverged));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_was_away_for_longer_than_the_log_reaches_comes_back_by_itself_and_follows() {
    let pair = pair().await;
    let (a, b) = (&pair.a, &pair.b);
    much(a, ASYNC, 600, "before").await;
    carry_all(a, b).await;
    much(a, ASYNC, 1200, "missed").await;
    a.put(ASYNC, "new", "1").await.unwrap();
    a.write(ASYNC, Write::Delete { key: key("k7") }).await.unwrap();
    purge(&pair).await;
    become_equal(&pair, ASYNC).await;
    assert_eq!(b.value(ASYNC, "new", ReadLevel::Eventual).await.as_deref(), Some("1"));
    assert_eq!(b.value(ASYNC, "k7", ReadLevel::Eventual).await, None);
    // The lane goes on from there.
    eventually("the lane is moved", async || {
        let mut moved = true;
        for shard in (0..SHARDS).map(ShardId) {
            let watermark = b.handle.watermark(A, shard, Lane::Async).await.unwrap();
            moved &= a.handle.read_log(shard, watermark, 1).await.is_ok();
        }
        moved
    })
    .await;
    a.put(ASYNC, "later", "2").await.unwrap();
    carry_all(a, b).await;
    assert_eq!(b.value(ASYNC, "later", ReadLevel::Eventual).await.as_deref(), Some("2"));
    become_equal(&pair, ASYNC).await;
    let over: Vec<RepairStatus> = b.handle.repairs().into_iter().filter(|it| it.done).collect();
    assert!(over.iter().any(|it| it.reason == RepairReason::BehindLog && it.rows_moved > 0), "{over:?}");
}

/// A frame whose value was damaged on the way in a manner that no checksum sees.
async fn wrong(pair: &Pair, name: &str) -> bytes::Bytes {
    let shard = shard_of(&pair.plane, ASYNC, name);
    let mut frame = Frame::decode(&next_frame(&pair.a, &pair.b, shard, Lane::Async).await.unwrap()).unwrap();
    let last = frame.entries.last_mut().unwrap();
    let header = Header::decode(&last.1).unwrap();
    last.1 = header.encode(&Body::Write(WriteBody::Plain(put(name, "wrong"))));
    encode(frame.header, &frame.notes, &frame.entries)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_differs_from_its_primary_is_made_right_and_its_lane_goes_on() {
    let pair = pair().await;
    let (a, b) = (&pair.a, &pair.b);
    much(a, ASYNC, 200, "v").await;
    carry_all(a, b).await;
    a.put(ASYNC, "k", "right").await.unwrap();
    let frame = wrong(&pair, "k").await;
    let mended = [a, b].map(|it| it.handle.mended(shard_of(&pair.plane, ASYNC, "k")));
    assert!(matches!(apply(b, &frame).await, Err(FrameRefusal::Diverged { .. })));
    eventually("it is repaired", async || b.handle.repairs().iter().any(|it| it.done)).await;
    eventually("both ends hear of it", async || mended.iter().all(|it| it.has_changed().unwrap())).await;
    become_equal(&pair, ASYNC).await;
    assert_eq!(b.value(ASYNC, "k", ReadLevel::Eventual).await.as_deref(), Some("right"));
    let status = b.handle.repairs().into_iter().find(|it| it.reason == RepairReason::Diverged).unwrap();
    assert!(status.done && status.rows_moved == 1, "one row differed: {status:?}");
    a.put(ASYNC, "k", "next").await.unwrap();
    carry_all(a, b).await;
    assert_eq!(b.value(ASYNC, "k", ReadLevel::Eventual).await.as_deref(), Some("next"));
    assert!(b.handle.problems().is_empty(), "{:?}", b.handle.problems());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_is_repaired_is_read_in_its_primary_s_region_and_a_repair_cut_short_goes_on() {
    // Rows of a shard come in more than one answer, and so slowly that it is caught between them.
    let pair = pair_with(Options { repair_bytes_per_s: 300_000, ..options() }).await;
    let (a, b) = (&pair.a, &pair.b);
    let large = "x".repeat(20_000);
    much(a, ASYNC, 200, "before").await;
    carry_all(a, b).await;
    much(a, ASYNC, 600, &large).await;
    purge(&pair).await;
    eventually("rows move", async || b.handle.repairs().iter().any(|it| !it.done && it.rows_moved > 0)).await;
    let status = b.handle.repairs().into_iter().find(|it| !it.done && it.rows_moved > 0).unwrap();
    assert!(status.rows_total > 0 && status.bytes_moved > 0, "{status:?}");
    let name =
        (0..150).map(|n| format!("k{n}")).find(|name| shard_of(&pair.plane, ASYNC, name) == status.shard).unwrap();
    let read = b.read(ASYNC, &name, ReadLevel::Eventual).await.unwrap();
    assert_eq!(read.region, A, "nothing half-moved is read");
    assert!(text(read).unwrap().starts_with(&large));
    // Power off, and on again.
    let image = tempfile::tempdir().unwrap();
    b.image_of_crash(image.path());
    let again = Arc::new(RegionUnderTest::start(image.path(), B, &pair.plane).await);
    a.listen(&again).await;
    let pair = Pair { dirs: pair.dirs, a: pair.a, b: again, plane: pair.plane };
    let resumed = |it: &RepairStatus| it.reason == RepairReason::Interrupted && it.done;
    eventually("it goes on", async || pair.b.handle.repairs().iter().any(resumed)).await;
    become_equal(&pair, ASYNC).await;
    assert_eq!(pair.b.read(ASYNC, &name, ReadLevel::Eventual).await.unwrap().region, B);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_is_repaired_holds_no_copy_that_counts() {
    let pair = pair_with(Options { repair_bytes_per_s: 50, ..options() }).await;
    let (a, b) = (&pair.a, &pair.b);
    let carrier = Carrier::start(a, b);
    much(a, SYNC, 200, &"x".repeat(500)).await;
    let id = pair.plane.bucket(SYNC).id;
    assert_eq!(b.handle.resync(id), Ok(usize::from(SHARDS)));
    eventually("a session is open", async || b.handle.repairs().iter().any(|it| !it.done && it.bytes_moved > 0)).await;
    let shard = b.handle.repairs().into_iter().find(|it| !it.done && it.bytes_moved > 0).unwrap().shard;
    let name = (0..).map(|n| format!("n{n}")).find(|name| shard_of(&pair.plane, SYNC, name) == shard).unwrap();
    let refused = in_vain(a, write_request(SYNC, put(&name, "v"))).await;
    assert_eq!((refused.kind, refused.effect), (RefusalKind::Unavailable, Effect::Applied), "DUR-2");
    let written = a.put(SYNC, &name, "w").await.unwrap();
    assert_eq!(written.durability.map(|it| it.regions), Some(2), "and does again once it is equal");
    drop(carrier);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_1_a_write_of_all_regions_is_neither_passed_on_nor_ordered_twice_around_a_repair() {
    let pair = pair_with(Options { repair_bytes_per_s: 50, ..options() }).await;
    let (a, b) = (&pair.a, &pair.b);
    much(a, ACTIVE, 200, &"x".repeat(500)).await;
    carry_all(a, b).await;
    let shard = shard_of(&pair.plane, ACTIVE, "n");
    let name =
        |n: u64| (0..).map(|it| format!("{n}/{it}")).find(|it| shard_of(&pair.plane, ACTIVE, it) == shard).unwrap();
    let count = |n: u64| {
        let id = RequestId { client: ClientId(9), sequence: n };
        identified(ACTIVE, Write::Increment { key: key(&name(n)), by: 1 }, id)
    };
    // The answer to the first is lost on its way to a client that stays with this region.
    let answered = b.execute(count(1)).await.unwrap();
    b.handle.resync(pair.plane.bucket(ACTIVE).id).unwrap();
    let moves = |it: &RepairStatus| it.shard == shard && !it.done && it.bytes_moved > 0;
    eventually("a session is open", async || b.handle.repairs().iter().any(moves)).await;
    for request in [count(1), count(2)] {
        let refused = b.execute(request).await.unwrap_err();
        assert_eq!((refused.kind, refused.effect), (RefusalKind::Redirect, Effect::None), "{refused}");
    }
    a.execute(count(3)).await.unwrap();
    become_open(b, ACTIVE).await;
    let again = b.execute(count(1)).await.unwrap();
    assert_eq!(again.outcome, answered.outcome);
    b.execute(count(2)).await.unwrap();
    carry_all(a, b).await;
    carry_all(b, a).await;
    for region in [a, b] {
        for n in [1, 2, 3] {
            let counted = region.value(ACTIVE, &name(n), ReadLevel::Eventual).await;
            assert_eq!(counted.as_deref(), Some("1"), "request {n} in {}", region.id);
        }
    }
    become_equal(&pair, ACTIVE).await;
}

/// Waits until no repair of anything is under way.
async fn become_open(region: &RegionUnderTest, bucket: &str) {
    let id = region.plane.bucket(bucket).id;
    eventually("it is repaired", async || {
        let of_bucket: Vec<RepairStatus> = region.handle.repairs().into_iter().filter(|it| it.bucket == id).collect();
        of_bucket.len() == usize::from(SHARDS) && of_bucket.iter().all(|it| it.done)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_pulls_what_another_survivor_has_of_a_lost_primary() {
    let pair = pair().await;
    let (a, b) = (&pair.a, &pair.b);
    much(a, ASYNC, 200, "v").await;
    carry_all(a, b).await;
    a.put(ASYNC, "k", "tail").await.unwrap();
    let shard = shard_of(&pair.plane, ASYNC, "k");
    // Seen from b, `a` is another replica of a primary that is gone.
    b.handle.pull(shard, pair.plane.bucket(ASYNC).id, A).await.unwrap();
    assert_eq!(b.value(ASYNC, "k", ReadLevel::Eventual).await.as_deref(), Some("tail"));
    let nowhere = b.handle.pull(ShardId(99), pair.plane.bucket(ASYNC).id, A).await.unwrap_err();
    assert_eq!(nowhere.kind, RefusalKind::Redirect);
    let at_home = a.handle.resync(pair.plane.bucket(ASYNC).id).unwrap_err();
    assert_eq!(at_home.kind, RefusalKind::Invalid);
}
