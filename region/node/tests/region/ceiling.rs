//! The ceiling of what an async bucket may risk, on real shards: what would go beyond it is not taken.

use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_types::*;

use crate::world::*;

const CAPPED: &str = "capped";

/// By how much a write is slowed down at a ceiling with `throttle`.
const PAUSE: Duration = Duration::from_millis(200);

fn policy(bound: &str, on_breach: Breach) -> Policy {
    let bound = match bound {
        // Below what operators may ask for: a test need not write megabytes.
        "2KB" => LagBound { bytes: Some(2000), ..LagBound::default() },
        text => text.parse().unwrap(),
    };
    Policy::Async { max_lag: Some(MaxLag { bound, on_breach }) }
}

async fn two(policy: Policy) -> (tempfile::TempDir, Arc<RegionUnderTest>, RegionUnderTest) {
    let dir = tempfile::tempdir().unwrap();
    let plane = Plane::new();
    plane.change(|topology| add_bucket(topology, CAPPED, policy, Some(A)));
    let a = RegionUnderTest::start(&dir.path().join("a"), A, &plane).await;
    let b = RegionUnderTest::start(&dir.path().join("b"), B, &plane).await;
    (dir, Arc::new(a), b)
}

async fn refused(a: &RegionUnderTest, name: &str) -> Refusal {
    let refusal = a.execute(soon(write_request(CAPPED, put(name, "lost")))).await.unwrap_err();
    assert_eq!((refusal.kind, refusal.effect), (RefusalKind::Retry, Effect::None), "{}", refusal.message);
    assert_ne!(a.value(CAPPED, name, ReadLevel::Strong).await.as_deref(), Some("lost"), "it was not ordered");
    refusal
}

fn breach(a: &RegionUnderTest) -> Option<String> {
    a.handle.problems().into_iter().find(|it| it.contains("max-lag"))
}

/// Each of two shards has half of the ceiling.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_block_a_write_beyond_the_ceiling_waits_and_then_fails_as_retryable() {
    let (_dir, a, b) = two(policy("4ops", Breach::Block)).await;
    let names = names_in_one_shard(&a.plane, CAPPED, 6);
    for name in &names[..2] {
        a.put(CAPPED, name, "v").await.unwrap();
    }
    let refusal = refused(&a, &names[2]).await;
    assert!(refusal.message.contains("2 operations") && refusal.message.contains("eu-west"), "{}", refusal.message);
    let elsewhere =
        (0..).map(|n| format!("o{n}")).find(|it| shard_of(&a.plane, CAPPED, it) != shard_of(&a.plane, CAPPED, "k0"));
    a.put(CAPPED, &elsewhere.unwrap(), "v").await.unwrap();
    eventually("it is said", async || breach(&a).is_some()).await;

    let waiting = tokio::spawn({
        let (a, name) = (a.clone(), names[3].clone());
        async move { a.put(CAPPED, &name, "v").await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!waiting.is_finished());
    carry_all(&a, &b).await;
    waiting.await.unwrap().unwrap();
    a.put(CAPPED, &names[4], "v").await.unwrap();
    refused(&a, &names[5]).await;
    carry_all(&a, &b).await;
    eventually("it is below again", async || breach(&a).is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_and_time_are_bounded_as_operations_are() {
    let (_dir, a, b) = two(policy("2KB", Breach::Block)).await;
    let names = names_in_one_shard(&a.plane, CAPPED, 3);
    a.put(CAPPED, &names[0], &"v".repeat(800)).await.unwrap();
    let long = soon(write_request(CAPPED, put(&names[1], &"v".repeat(300))));
    assert_eq!(a.execute(long).await.unwrap_err().kind, RefusalKind::Retry);
    carry_all(&a, &b).await;

    a.plane.turn(CAPPED, |bucket| bucket.policy = policy("500ms", Breach::Block));
    a.put(CAPPED, &names[1], "v").await.unwrap();
    a.clock.advance(400);
    a.put(CAPPED, &names[0], "v").await.unwrap();
    a.clock.advance(100);
    refused(&a, &names[2]).await;
    carry_all(&a, &b).await;
    a.put(CAPPED, &names[2], "v").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_does_not_know_what_is_elsewhere_takes_nothing_until_it_does() {
    let (dir, a, b) = two(policy("100ops", Breach::Block)).await;
    let names = names_in_one_shard(&a.plane, CAPPED, 3);
    a.put(CAPPED, &names[0], "v").await.unwrap();
    let plane = a.plane.clone();
    Arc::into_inner(a).unwrap().stop().await;
    let a = Arc::new(RegionUnderTest::start(&dir.path().join("a"), A, &plane).await);
    let refusal = refused(&a, &names[1]).await;
    assert!(refusal.message.contains("the leader of shard"), "{}", refusal.message);
    carry_all(&a, &b).await;
    a.put(CAPPED, &names[2], "v").await.unwrap();
}

/// The bucket was `sync`, and is async under a ceiling since epoch 2, into which `b` has followed.
async fn turned() -> (tempfile::TempDir, Arc<RegionUnderTest>, RegionUnderTest, String) {
    let (dir, a, b) = two(Policy::sync(Acks::One)).await;
    b.listen(&a).await;
    let name = names_in_one_shard(&a.plane, CAPPED, 1).remove(0);
    let write = tokio::spawn({
        let (a, name) = (a.clone(), name.clone());
        async move { a.put(CAPPED, &name, "v").await }
    });
    eventually("it is acknowledged", async || {
        carry_all(&a, &b).await;
        write.is_finished()
    })
    .await;
    write.await.unwrap().unwrap();
    a.plane.turn(CAPPED, |bucket| {
        bucket.epoch = Epoch(2);
        bucket.turns.turn(Epoch(2), bucket.policy.lane());
        bucket.policy = policy("4ops", Breach::Block);
        bucket.standing = Standing::Sync { since: Hlc(2) };
    });
    let refusal = refused(&a, &name).await;
    assert!(refusal.message.contains("the leader of shard"), "nobody has followed yet: {}", refusal.message);
    eventually("another region has followed", async || {
        carry_all(&a, &b).await;
        a.clock.advance(100);
        a.execute(soon(write_request(CAPPED, put(&name, "w")))).await.is_ok()
    })
    .await;
    (dir, a, b, name)
}

/// Found by seed 200384: its last write before travelled in the other lane, whose watermark the async lane never reaches by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_was_sync_takes_writes_under_a_ceiling_as_soon_as_another_region_has_followed() {
    turned().await;
}

/// Its epoch is higher than the one into which regions are known to have followed: they need not have what lies between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_ceiling_counts_what_was_written_without_one_since_regions_followed() {
    let (_dir, a, b, name) = turned().await;
    a.plane.turn(CAPPED, |bucket| bucket.policy = Policy::ASYNC);
    for n in 0..6 {
        a.put(CAPPED, &name, &n.to_string()).await.unwrap();
    }
    a.plane.turn(CAPPED, |bucket| {
        bucket.epoch = Epoch(3);
        bucket.policy = policy("4ops", Breach::Block);
    });
    for _ in 0..5 {
        a.clock.advance(100);
        refused(&a, &name).await;
    }
    eventually("another region has it", async || {
        carry_all(&a, &b).await;
        a.clock.advance(100);
        a.execute(soon(write_request(CAPPED, put(&name, "x")))).await.is_ok()
    })
    .await;
}

async fn put_takes(a: &RegionUnderTest) -> Duration {
    let began = Instant::now();
    a.put(CAPPED, "k", "v").await.unwrap();
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_alarm_and_throttle_writes_go_on_and_somebody_is_told() {
    for on_breach in [Breach::Alarm, Breach::Throttle] {
        let (_dir, a, b) = two(policy("4ops", on_breach)).await;
        for n in 0..8 {
            a.put(CAPPED, &format!("k{n}"), "v").await.unwrap();
        }
        eventually("it is said of all of them", async || breach(&a).is_some_and(|it| it.contains("8 operations")))
            .await;
        let said = breach(&a).unwrap();
        assert!(said.contains("eu-west"), "{said}");
        match on_breach {
            Breach::Throttle => {
                for _ in 0..3 {
                    let took = put_takes(&a).await;
                    assert!(took >= PAUSE, "a write at the ceiling took {took:?}");
                }
            }
            // A busy machine slows some of them down, but not all.
            Breach::Alarm | Breach::Block => {
                eventually("a write is not slowed down", async || put_takes(&a).await < PAUSE).await
            }
        }
        carry_all(&a, &b).await;
        eventually("it is below again", async || breach(&a).is_none()).await;
    }
}
