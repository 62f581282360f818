//! DEG-1 on real shards: fewer copies only while DEGRADED is on record, and SYNC only once nothing is lacking.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use meridian_types::*;

use crate::world::*;

const SHOP: &str = "shop";
const AFTER_MS: u64 = 1000;

async fn two() -> (tempfile::TempDir, Arc<RegionUnderTest>, RegionUnderTest) {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::new();
    let policy = Policy::Sync { acks: Acks::One, on_partition: OnPartition::Degrade { after_ms: AFTER_MS } };
    plane.change(|topology| add_bucket(topology, SHOP, policy, Some(A)));
    let a = RegionUnderTest::start(&dir.path().join("a"), A, &plane).await;
    let b = RegionUnderTest::start(&dir.path().join("b"), B, &plane).await;
    (dir, Arc::new(a), b)
}

fn degraded() -> Standing {
    Standing::Degraded { since: Hlc(2), exposed_since: Hlc(2), reason: "a test".to_owned(), ready: BTreeSet::new() }
}

fn recovering() -> Standing {
    Standing::Recovering { since: Hlc(3), exposed_since: Hlc(2), ready: BTreeSet::new() }
}

fn stands(a: &RegionUnderTest, standing: Standing) {
    a.plane.turn(SHOP, |bucket| bucket.standing = standing);
}

fn all_shards() -> Copies {
    Copies::Ready((0..SHARDS).map(ShardId).collect())
}

/// Long enough for several looks.
async fn a_moment() {
    tokio::time::sleep(Duration::from_millis(250)).await;
}

/// Waits while time goes on: on a busy machine the look from which it counts may come later than a moment.
async fn in_time(a: &RegionUnderTest, what: &str, holds: impl Fn() -> bool) {
    let later = async || {
        a.clock.advance(10);
        holds()
    };
    eventually(what, later).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deg_1_a_write_that_waits_is_acknowledged_with_fewer_copies_once_degraded_is_on_record() {
    let (_dir, a, _b) = two().await;
    let waiting = tokio::spawn({
        let a = a.clone();
        async move { a.put(SHOP, "k", "v").await }
    });
    applied(&a, SHOP, "k").await;
    a_moment().await;
    a.clock.advance(AFTER_MS / 2);
    a_moment().await;
    assert_eq!(a.plane.copies(SHOP), None, "it has not waited for long enough");
    a.clock.advance(AFTER_MS);
    in_time(&a, "copies are said to be lacking", || a.plane.copies(SHOP).is_some()).await;
    let Some(Copies::Lacking { reason, .. }) = a.plane.copies(SHOP) else { panic!("{:?}", a.plane.copies(SHOP)) };
    assert!(reason.contains("eu-west"), "{reason}");
    a_moment().await;
    assert!(!waiting.is_finished(), "not on record yet");

    stands(&a, degraded());
    let answer = waiting.await.unwrap().unwrap();
    assert_eq!(answer.durability, Some(Durability { regions: 1, nodes: 1 }), "honest");
    assert_eq!(a.put(SHOP, "k", "w").await.unwrap().durability, Some(Durability { regions: 1, nodes: 1 }));
    assert_eq!(a.value(SHOP, "k", ReadLevel::Strong).await.as_deref(), Some("w"));
    assert!(a.handle.problems().iter().any(|it| it.contains("DEGRADED")), "{:?}", a.handle.problems());

    let mut asked = soon(write_request(SHOP, put("k", "x")));
    if let Request::Write { ack, .. } = &mut asked {
        *ack = WriteAck::All;
    }
    assert_eq!(a.execute(asked).await.unwrap_err().kind, RefusalKind::Unavailable, "the request asked for more");
    a.plane.set_lease(None);
    assert!(a.execute(soon(write_request(SHOP, put("k", "y")))).await.is_err(), "the record counts under a lease only");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_blocks_never_takes_fewer() {
    let (_dir, a, _b) = two().await;
    stands(&a, degraded());
    a.plane.turn(SYNC, |bucket| bucket.standing = degraded());
    let refused = a.execute(soon(write_request(SYNC, put("k", "v")))).await.unwrap_err();
    assert_eq!(refused.kind, RefusalKind::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deg_1_it_is_sync_again_only_when_the_other_region_has_everything() {
    let (_dir, a, b) = two().await;
    stands(
        &a,
        Standing::Degraded { since: Hlc(1), exposed_since: Hlc(1), reason: String::new(), ready: BTreeSet::new() },
    );
    for name in ["k0", "k1", "k2", "k3", "k4"] {
        a.put(SHOP, name, "v").await.unwrap();
    }
    stands(&a, degraded());
    a_moment().await;
    assert_ne!(a.plane.copies(SHOP), Some(all_shards()), "the other region has nothing");
    carry_all(&a, &b).await;
    eventually("the other region answers", async || a.plane.copies(SHOP) == Some(all_shards())).await;

    stands(&a, recovering());
    let late = a.execute(soon(write_request(SHOP, put("k5", "v")))).await.unwrap_err();
    assert_eq!(late.kind, RefusalKind::Unavailable, "new writes need their copies again");
    a_moment().await;
    assert_eq!(a.plane.copies(SHOP), None, "somebody may still act on DEGRADED");
    a.clock.advance(LEASE_TTL_MS * 2);
    a_moment().await;
    assert_ne!(a.plane.copies(SHOP), Some(all_shards()), "k5 is not there yet");
    carry_all(&a, &b).await;
    in_time(&a, "nothing is lacking", || a.plane.copies(SHOP) == Some(all_shards())).await;
    stands(&a, Standing::Sync { since: Hlc(4) });
    assert_eq!(b.value(SHOP, "k5", ReadLevel::Eventual).await.as_deref(), Some("v"));
    let refused = a.execute(soon(write_request(SHOP, put("k", "v")))).await.unwrap_err();
    assert_eq!(refused.kind, RefusalKind::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_silence_while_recovering_is_said_again() {
    let (_dir, a, b) = two().await;
    stands(&a, recovering());
    carry_all(&a, &b).await;
    let refused = a.execute(soon(write_request(SHOP, put("k", "v")))).await.unwrap_err();
    assert_eq!(refused.kind, RefusalKind::Unavailable);
    a_moment().await;
    a.clock.advance(AFTER_MS + 1);
    in_time(&a, "copies are lacking", || matches!(a.plane.copies(SHOP), Some(Copies::Lacking { .. }))).await;
}
