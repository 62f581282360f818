//! What happens unasked: expiry, removal of deleted buckets, a full disk, the end of the log.

use std::sync::atomic::Ordering;

use meridian_region_node::{Options, TailError};
use meridian_types::*;

use crate::world::*;

async fn one() -> (tempfile::TempDir, RegionUnderTest) {
    let dir = tempfile::tempdir().unwrap();
    let region = RegionUnderTest::start(dir.path(), A, &Plane::new()).await;
    (dir, region)
}

fn keys_of(region: &RegionUnderTest, bucket: &str) -> u64 {
    let id = region.plane.bucket(bucket).id;
    region.handle.digests(Some(id)).iter().map(|it| it.digest.keys).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_gone_for_readers_when_its_time_comes_and_then_removed_through_the_log() {
    let (_dir, region) = one().await;
    for n in 0..20 {
        region
            .write(ASYNC, Write::Put { key: key(&n.to_string()), value: value("v"), ttl_ms: Some(1000) })
            .await
            .unwrap();
    }
    region.put(ASYNC, "stays", "v").await.unwrap();
    region.clock.advance(999);
    assert_eq!(region.value(ASYNC, "3", ReadLevel::Strong).await.as_deref(), Some("v"));
    region.clock.advance(1);
    assert_eq!(region.value(ASYNC, "3", ReadLevel::Strong).await, None);
    eventually("the expired keys are removed", async || keys_of(&region, ASYNC) == 1).await;
    assert_eq!(region.value(ASYNC, "stays", ReadLevel::Strong).await.as_deref(), Some("v"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_removes_nothing_by_itself_and_follows_the_primarys_expiry() {
    let (a_dir, b_dir, plane) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Plane::new());
    let a = RegionUnderTest::start(a_dir.path(), A, &plane).await;
    let b = RegionUnderTest::start(b_dir.path(), B, &plane).await;
    a.write(ASYNC, Write::Put { key: key("k"), value: value("v"), ttl_ms: Some(1000) }).await.unwrap();
    carry_all(&a, &b).await;
    b.clock.advance(5000);
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert_eq!(b.value(ASYNC, "k", ReadLevel::Eventual).await, None, "its time has come for readers");
    assert_eq!(keys_of(&b, ASYNC), 1, "but the primary decides its removal");
    a.clock.advance(5000);
    eventually("the primary removed it", async || keys_of(&a, ASYNC) == 0).await;
    carry_all(&a, &b).await;
    assert_eq!(digests(&a), digests(&b));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_deleted_bucket_left_behind_is_removed() {
    let (_dir, region) = one().await;
    for n in 0..50 {
        region.put(ASYNC, &n.to_string(), "v").await.unwrap();
    }
    let id = region.plane.bucket(ASYNC).id;
    region.plane.change(|topology| {
        topology.buckets.remove(&id);
        topology.bucket_ids.retain(|_, bucket| *bucket != id);
    });
    eventually("its data is gone", async || region.handle.digests(Some(id)).is_empty()).await;
    assert_eq!(region.put(ASYNC, "k", "v").await.unwrap_err().kind, RefusalKind::NotFound);
    region.put(ACTIVE, "k", "v").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_writes_serves_reads_and_recovers_by_itself() {
    let (_dir, region) = one().await;
    region.put(ASYNC, "k", "v").await.unwrap();
    region.disk.0.store(1000, Ordering::SeqCst);
    eventually("the disk is full", async || !region.handle.problems().is_empty()).await;
    let refused = region.put(ASYNC, "k", "w").await.unwrap_err();
    assert_eq!((refused.kind, refused.effect), (RefusalKind::Unavailable, Effect::None));
    assert!(refused.message.contains("free space"), "{}", refused.message);
    assert_eq!(region.value(ASYNC, "k", ReadLevel::Strong).await.as_deref(), Some("v"));
    region.disk.0.store(1 << 40, Ordering::SeqCst);
    eventually("writes are back", async || region.put(ASYNC, "k", "w").await.is_ok()).await;
    assert!(region.handle.problems().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_hangs_refuses_writes_at_once_serves_reads_and_recovers_by_itself() {
    let (_dir, region) = one().await;
    region.put(ASYNC, "k", "v").await.unwrap();
    region.log.stalled_ms.store(3_200, Ordering::SeqCst);
    let refused = region.put(ASYNC, "k", "w").await.unwrap_err();
    assert_eq!((refused.kind, refused.effect), (RefusalKind::Unavailable, Effect::None));
    assert!(refused.message.contains("hangs") && refused.message.contains("3.2 s"), "{}", refused.message);
    assert_eq!(region.value(ASYNC, "k", ReadLevel::Strong).await.as_deref(), Some("v"), "its lease needs no disk");
    region.log.stalled_ms.store(0, Ordering::SeqCst);
    region.put(ASYNC, "k", "w").await.unwrap();
    assert_eq!(region.value(ASYNC, "k", ReadLevel::Strong).await.as_deref(), Some("w"));
}

/// ISO-1: a region that never answers costs at most the budget, and is then told that the log begins later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_kept_for_a_slow_region_within_the_budget_only() {
    let dir = tempfile::tempdir().unwrap();
    let small = Options { log_retention_bytes: 16 << 20, ..options() };
    let region = RegionUnderTest::start_with(dir.path(), A, &Plane::new(), small).await;
    let large = "x".repeat(64 << 10);
    let shard = shard_of(&region.plane, ASYNC, "k");
    for _ in 0..64 {
        region.put(ASYNC, "k", &large).await.unwrap();
    }
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    assert!(region.handle.read_log(shard, Lsn(0), 1).await.is_ok(), "within the budget everything is kept");
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        region.put(ASYNC, "k", &large).await.unwrap();
        match region.handle.read_log(shard, Lsn(0), 1).await {
            Err(TailError::Trimmed { oldest }) => break assert!(oldest > Lsn(0)),
            Ok(_) => assert!(std::time::Instant::now() < until, "never purged"),
            Err(other) => panic!("{other}"),
        }
    }
}
