//! A bucket goes from one writing region to all of them and back on real shards: nobody writes on the way, a request of before is never
//! ordered twice (ONE-1), and what is given up goes on where it stopped.

use std::collections::BTreeMap;
use std::sync::Arc;

use meridian_types::*;

use crate::world::*;

async fn two() -> (tempfile::TempDir, Arc<Plane>, RegionUnderTest, RegionUnderTest) {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::new();
    let a = RegionUnderTest::start(&dir.path().join("a"), A, &plane).await;
    let b = RegionUnderTest::start(&dir.path().join("b"), B, &plane).await;
    b.listen(&a).await;
    a.listen(&b).await;
    (dir, plane, a, b)
}

fn crossing(plane: &Plane, name: &str, way: Way) {
    plane.change(|topology| {
        let (index, id) = (topology.index, topology.bucket_named(name).unwrap().id);
        let bucket = Arc::make_mut(topology.buckets.get_mut(&id).unwrap());
        if way == Way::Opening {
            bucket.epoch = Epoch(bucket.epoch.0 + 1);
        }
        bucket.crossing = Some(Crossing { index, at: Hlc(1), pause_ms_max: 1000, way, arrived: BTreeMap::new() });
    });
}

fn of(bucket: &str, write: Write, sequence: u64, at: u64) -> Request {
    let mut request = identified(bucket, write, RequestId { client: ClientId(9), sequence });
    if let Request::Write { begun, .. } = &mut request {
        *begun = Epoch(at);
    }
    request
}

fn increment(name: &str) -> Write {
    Write::Increment { key: key(name), by: 1 }
}

/// Until the metadata plane was told the last thing there is to tell of a crossing.
async fn arrived(plane: &Plane, name: &str, regions: [&RegionUnderTest; 2]) {
    eventually("every region has arrived", async || {
        carry_all(regions[0], regions[1]).await;
        carry_all(regions[1], regions[0]).await;
        regions.iter().for_each(|it| it.clock.advance(100));
        matches!(plane.copies(name), Some(Copies::Arrived { at, .. }) if at.len() == usize::from(SHARDS))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_1_a_request_that_was_begun_before_the_bucket_opened_is_answered_or_begun_again_and_never_ordered_twice() {
    let (_dir, plane, a, b) = two().await;
    let first = a.execute(of(ASYNC, increment("n"), 1, 1)).await.unwrap();
    crossing(&plane, ASYNC, Way::Opening);
    let held = a.execute(soon(of(ASYNC, put("k", "held"), 2, 1))).await.unwrap_err();
    assert_eq!((held.kind, held.effect), (RefusalKind::Retry, Effect::None), "{held}");
    arrived(&plane, ASYNC, [&a, &b]).await;
    plane.turn(ASYNC, |it| (it.policy, it.primary, it.crossing) = (Policy::ActiveActive, None, None));

    let again = b.execute(of(ASYNC, increment("n"), 1, 1)).await.unwrap();
    assert_eq!(again.outcome, first.outcome, "the other region knows what the primary answered");
    for region in [&a, &b] {
        let late = region.execute(of(ASYNC, put("k", "late"), 2, 1)).await.unwrap_err();
        assert_eq!((late.kind, late.effect), (RefusalKind::Fenced, Effect::None), "{late}");
    }
    b.execute(of(ASYNC, put("k", "anew"), 2, 2)).await.unwrap();
    carry_all(&b, &a).await;
    assert_eq!(a.value(ASYNC, "k", ReadLevel::Eventual).await.as_deref(), Some("anew"));
}

/// Found by seeds 3784 and 6464: a region that had not heard of the opening passed it on to the primary of before, which ordered it as one of those
/// that write; and then ordered it itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_1_a_region_passes_on_nothing_of_an_epoch_that_it_has_not_heard_of() {
    let (_dir, plane, a, b) = two().await;
    let early = b.execute(soon(of(ASYNC, increment("n"), 1, 2))).await.unwrap_err();
    assert_eq!((early.kind, early.effect), (RefusalKind::Retry, Effect::None), "{early}");
    assert_eq!(a.value(ASYNC, "n", ReadLevel::Strong).await, None);
    crossing(&plane, ASYNC, Way::Opening);
    arrived(&plane, ASYNC, [&a, &b]).await;
    plane.turn(ASYNC, |it| (it.policy, it.primary, it.crossing) = (Policy::ActiveActive, None, None));
    b.execute(of(ASYNC, increment("n"), 1, 2)).await.unwrap();
    carry_all(&b, &a).await;
    assert_eq!(a.value(ASYNC, "n", ReadLevel::Eventual).await.as_deref(), Some("1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_closes_stops_everywhere_and_goes_on_when_that_is_given_up() {
    let (_dir, plane, a, b) = two().await;
    a.put(ACTIVE, "k", "a").await.unwrap();
    b.put(ACTIVE, "k", "b").await.unwrap();
    let closing = || Way::Closing { policy: Policy::ASYNC, primary: B, stopped: BTreeMap::new() };
    crossing(&plane, ACTIVE, closing());
    eventually("a region says where it stopped", async || {
        a.clock.advance(100);
        matches!(plane.copies(ACTIVE), Some(Copies::Stopped { .. }))
    })
    .await;
    assert!(a.execute(soon(write_request(ACTIVE, put("k", "c")))).await.is_err());
    plane.turn(ACTIVE, |it| it.crossing = None);
    eventually("it goes on", async || a.put(ACTIVE, "k", "c").await.is_ok()).await;
    eventually("and so does the other one", async || b.put(ACTIVE, "other", "d").await.is_ok()).await;
    carry_all(&a, &b).await;
    carry_all(&b, &a).await;
    assert_eq!(digests(&a), digests(&b));
}
