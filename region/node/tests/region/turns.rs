//! A bucket changes between `async` and `sync` on real shards: no copy counts that is parked behind the seal (DUR-2), nothing is
//! skipped in either lane (ORD-1), and the new lane's word alone makes nobody fresh (CON-3).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use meridian_types::*;

use crate::three::*;
use crate::world::*;

async fn two() -> (tempfile::TempDir, Arc<RegionUnderTest>, RegionUnderTest) {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::new();
    let a = RegionUnderTest::start(&dir.path().join("a"), A, &plane).await;
    let b = RegionUnderTest::start(&dir.path().join("b"), B, &plane).await;
    b.listen(&a).await;
    (dir, Arc::new(a), b)
}

/// As the metadata plane puts it on record.
fn turn(a: &RegionUnderTest, name: &str, policy: Policy) {
    a.plane.turn(name, |bucket| {
        let from = bucket.policy.lane();
        bucket.epoch = Epoch(bucket.epoch.0 + 1);
        bucket.policy = policy;
        bucket.turns.turn(bucket.epoch, from);
        let since = Hlc(bucket.epoch.0);
        bucket.standing = match policy {
            Policy::Sync { .. } => Standing::Recovering { since, exposed_since: since, ready: BTreeSet::new() },
            Policy::Async { .. } | Policy::ActiveActive => Standing::Sync { since },
        };
    });
}

async fn carry_lane(a: &RegionUnderTest, b: &RegionUnderTest, lane: Lane) {
    for shard in (0..SHARDS).map(ShardId) {
        carry(a, b, shard, lane).await;
    }
}

fn all_followed() -> Copies {
    Copies::Followed((0..SHARDS).map(ShardId).collect())
}

async fn a_moment() {
    tokio::time::sleep(Duration::from_millis(250)).await;
}

fn put_soon(a: &Arc<RegionUnderTest>, bucket: &'static str) -> tokio::task::JoinHandle<Result<Response, Refusal>> {
    let a = a.clone();
    tokio::spawn(async move { a.put(bucket, "k", "new").await })
}

/// Time goes on, and what is shipped arrives.
async fn told(a: &RegionUnderTest, b: &RegionUnderTest, bucket: &str, copies: Copies) {
    for _ in 0..2000 {
        carry_all(a, b).await;
        a.clock.advance(100);
        if a.plane.copies(bucket).as_ref() == Some(&copies) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{copies:?} was expected, but the metadata plane was told {:?}", a.plane.copies(bucket));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dur_2_a_copy_counts_only_once_the_region_has_what_the_async_epoch_left_behind() {
    let (_dir, a, b) = two().await;
    a.put(ASYNC, "k", "old").await.unwrap();
    turn(&a, ASYNC, Policy::sync(Acks::One));
    let waiting = put_soon(&a, ASYNC);
    eventually("it is ordered", async || a.value(ASYNC, "k", ReadLevel::Eventual).await.as_deref() == Some("new"))
        .await;
    carry_lane(&a, &b, Lane::Sync).await;
    a_moment().await;
    assert_eq!(b.value(ASYNC, "k", ReadLevel::Eventual).await, None, "it is parked behind the seal");
    assert!(!waiting.is_finished(), "and is no copy that survives the loss of its primary");
    assert_eq!(a.plane.copies(ASYNC), None);

    carry_lane(&a, &b, Lane::Async).await;
    let answer = waiting.await.unwrap().unwrap();
    assert_eq!((answer.epoch, answer.durability), (Epoch(2), Some(Durability { regions: 2, nodes: 2 })));
    assert_eq!(b.value(ASYNC, "k", ReadLevel::Eventual).await.as_deref(), Some("new"));
    told(&a, &b, ASYNC, all_followed()).await;
    a.plane.turn(ASYNC, |bucket| bucket.turns = Turns::default());
    // Some in every shard: what is carried by hand does not pass a seal by.
    for number in 0..8 {
        let (source, name) = (a.clone(), format!("k{number}"));
        let write = tokio::spawn(async move { source.put(ASYNC, &name, "v").await });
        eventually("it is copied", async || {
            carry_all(&a, &b).await;
            write.is_finished()
        })
        .await;
        write.await.unwrap().unwrap();
    }
    a.clock.advance(LEASE_TTL_MS * 2);
    told(&a, &b, ASYNC, Copies::Ready((0..SHARDS).map(ShardId).collect())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_sync_to_async_nobody_waits_and_nothing_is_skipped() {
    let (_dir, a, b) = two().await;
    let stuck = put_soon(&a, SYNC);
    applied(&a, SYNC, "k").await;
    turn(&a, SYNC, Policy::ASYNC);
    let answer = a.put(SYNC, "later", "v").await.unwrap();
    assert_eq!((answer.epoch, answer.durability), (Epoch(2), Some(Durability { regions: 1, nodes: 1 })));
    carry_lane(&a, &b, Lane::Async).await;
    assert_eq!(b.value(SYNC, "later", ReadLevel::Eventual).await, None, "the sync epoch comes first");
    carry_lane(&a, &b, Lane::Sync).await;
    assert_eq!(b.value(SYNC, "k", ReadLevel::Eventual).await.as_deref(), Some("new"));
    assert_eq!(b.value(SYNC, "later", ReadLevel::Eventual).await.as_deref(), Some("v"));
    told(&a, &b, SYNC, all_followed()).await;
    // Ordered under the one rule, it is not acknowledged by the other.
    let refused = stuck.await.unwrap().unwrap_err();
    assert_eq!((refused.kind, refused.effect), (RefusalKind::Retry, Effect::Unknown));
    let (ours, theirs) = (digests(&a), digests(&b));
    let id = a.plane.bucket(SYNC).id;
    for shard in (0..SHARDS).map(ShardId) {
        let of = |all: &std::collections::BTreeMap<_, BucketDigest>| all.get(&(id, shard)).map(|it| (it.hash, it.keys));
        assert_eq!(of(&ours), of(&theirs));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_3_a_replica_without_the_seal_is_not_fresh_by_the_new_lanes_word() {
    let (_dir, a, b) = two().await;
    a.put(ASYNC, "k", "old").await.unwrap();
    turn(&a, ASYNC, Policy::sync(Acks::One));
    let waiting = put_soon(&a, ASYNC);
    eventually("it is ordered", async || a.value(ASYNC, "k", ReadLevel::Eventual).await.as_deref() == Some("new"))
        .await;
    carry_lane(&a, &b, Lane::Sync).await;
    let bounded = || get(ASYNC, "k", ReadLevel::Bounded { staleness_ms_max: 60_000 });
    let refused = b.execute(when_stale(bounded(), StalePolicy::Fail)).await.unwrap_err();
    assert_eq!(refused.kind, RefusalKind::Stale);
    carry_lane(&a, &b, Lane::Async).await;
    carry_lane(&a, &b, Lane::Sync).await;
    waiting.await.unwrap().unwrap();
    let fresh = b.execute(when_stale(bounded(), StalePolicy::Fail)).await.unwrap();
    assert_eq!(text(fresh).as_deref(), Some("new"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn giving_up_goes_back_through_both_lanes() {
    let (_dir, a, b) = two().await;
    a.put(ASYNC, "first", "v").await.unwrap();
    turn(&a, ASYNC, Policy::sync(Acks::One));
    let stuck = put_soon(&a, ASYNC);
    applied(&a, ASYNC, "k").await;
    turn(&a, ASYNC, Policy::ASYNC);
    assert_eq!(a.put(ASYNC, "last", "v").await.unwrap().epoch, Epoch(3));
    assert!(stuck.await.unwrap().is_err(), "its epoch is over");
    for _ in 0..2 {
        carry_all(&a, &b).await;
    }
    for (name, value) in [("first", "v"), ("k", "new"), ("last", "v")] {
        assert_eq!(b.value(ASYNC, name, ReadLevel::Eventual).await.as_deref(), Some(value));
    }
    told(&a, &b, ASYNC, all_followed()).await;
}

/// As the metadata plane puts it on record.
fn lead(plane: &Plane, epoch: u64, primary: RegionId) {
    plane.turn(ASYNC, |bucket| (bucket.epoch, bucket.primary) = (Epoch(epoch), Some(primary)));
}

/// Found by the model of the lanes (`chaos/src/model/lanes.rs`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dur_2_who_has_followed_a_turn_counts_in_no_epoch_behind_it_though_the_turn_be_forgotten() {
    let three = Three::start().await;
    let [a, b, c] = &three.regions[..] else { panic!("three regions") };
    a.plane.turn(ASYNC, |bucket| bucket.regions.push(C));
    turn(a, ASYNC, Policy::sync(Acks::One));
    eventually("all have followed", async || {
        three.carry().await;
        a.plane.said_by(A, ASYNC).contains(&all_followed())
    })
    .await;
    lead(&a.plane, 3, B);
    for shard in (0..SHARDS).map(ShardId) {
        eventually("B has sealed", async || next_frame(b, a, shard, Lane::Sync).await.is_some()).await;
    }
    carry_all(b, a).await;
    lead(&a.plane, 4, A);
    let write = a.put(ASYNC, "k", "new");
    tokio::pin!(write);
    let parked = async {
        applied(a, ASYNC, "k").await;
        carry_all(a, c).await;
        a_moment().await;
        a.plane.turn(ASYNC, |bucket| bucket.turns = Turns::default());
        a_moment().await;
        assert_eq!(c.value(ASYNC, "k", ReadLevel::Eventual).await, None, "it is parked behind B's seal");
    };
    tokio::select! {
        answer = &mut write => panic!("a parked copy counted: {answer:?}"),
        () = parked => {}
    }
    let seal_arrives = async {
        loop {
            carry_all(b, c).await;
            a.clock.advance(100);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        answer = &mut write => assert_eq!(answer.unwrap().durability, Some(Durability { regions: 2, nodes: 2 })),
        () = seal_arrives => {}
    }
}
