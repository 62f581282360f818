//! How fresh a read is, and who may answer it (CON-2, CON-3).

use std::sync::Arc;
use std::time::Duration;

use meridian_types::frame::Echo;
use meridian_types::*;

use crate::world::*;

async fn two() -> (tempfile::TempDir, tempfile::TempDir, Arc<RegionUnderTest>, Arc<RegionUnderTest>) {
    let (a_dir, b_dir, plane) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Plane::new());
    let a = RegionUnderTest::start(a_dir.path(), A, &plane).await;
    let b = RegionUnderTest::start(b_dir.path(), B, &plane).await;
    a.listen(&b).await;
    (a_dir, b_dir, Arc::new(a), Arc::new(b))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_reads_its_own_write_in_another_region_or_waits_or_is_redirected_or_fails() {
    let (_a, _b, a, b) = two().await;
    let token = a.put(ASYNC, "k", "v").await.unwrap().session;
    let read = with_session(get(ASYNC, "k", ReadLevel::Session), &token);
    let failed = b.execute(when_stale(read.clone(), StalePolicy::Fail)).await.unwrap_err();
    assert_eq!(failed.kind, RefusalKind::Stale);
    let redirected = b.execute(when_stale(read.clone(), StalePolicy::Redirect)).await.unwrap();
    assert_eq!((redirected.region, text(redirected).as_deref()), (A, Some("v")));
    let late = b.execute(soon(read.clone())).await.unwrap_err();
    assert_eq!(late.kind, RefusalKind::Stale, "it waited in vain");
    let (waited, ()) = tokio::join!(b.execute(read.clone()), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        carry_all(&a, &b).await;
    });
    let waited = waited.unwrap();
    assert_eq!(waited.region, B);
    assert_eq!(text(waited).as_deref(), Some("v"), "CON-2");
    // Without a token the replica answers at once.
    assert_eq!(b.value(ASYNC, "k", ReadLevel::Session).await.as_deref(), Some("v"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_found_a_key_removed_does_not_find_it_again_elsewhere() {
    let (_a, _b, a, b) = two().await;
    a.put(ASYNC, "k", "v").await.unwrap();
    carry_all(&a, &b).await;
    a.write(ASYNC, Write::Delete { key: key("k") }).await.unwrap();
    let seen = a.read(ASYNC, "k", ReadLevel::Strong).await.unwrap().session;
    let read = when_stale(with_session(get(ASYNC, "k", ReadLevel::Session), &seen), StalePolicy::Fail);
    assert_eq!(b.execute(read.clone()).await.unwrap_err().kind, RefusalKind::Stale, "monotonic reads");
    carry_all(&a, &b).await;
    assert_eq!(text(b.execute(read).await.unwrap()), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bounded_read_is_never_staler_than_its_bound_by_the_replicas_own_clock() {
    let (_a, _b, a, b) = two().await;
    let shard = shard_of(&a.plane, ASYNC, "k");
    a.put(ASYNC, "k", "1").await.unwrap();
    let fail = |bound| when_stale(get(ASYNC, "k", ReadLevel::Bounded { staleness_ms_max: bound }), StalePolicy::Fail);
    assert_eq!(b.execute(fail(60_000)).await.unwrap_err().kind, RefusalKind::Stale, "never complete yet");
    carry(&a, &b, shard, Lane::Async).await;
    let answer = b.execute(fail(0)).await.unwrap();
    assert_eq!((answer.freshness.staleness_ms, text(answer).as_deref()), (Some(0), Some("1")));
    b.clock.advance(500);
    assert_eq!(b.execute(fail(499)).await.unwrap_err().kind, RefusalKind::Stale, "CON-3");
    assert_eq!(b.execute(fail(500)).await.unwrap().freshness.staleness_ms, Some(500));
    let redirected =
        b.execute(when_stale(get(ASYNC, "k", ReadLevel::Bounded { staleness_ms_max: 10 }), StalePolicy::Redirect));
    assert_eq!(redirected.await.unwrap().region, A);
    let (waited, ()) = tokio::join!(b.execute(get(ASYNC, "k", ReadLevel::Bounded { staleness_ms_max: 10 })), async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        refresh(&a, &b, shard, Lane::Async).await;
    });
    assert_eq!(waited.unwrap().freshness.staleness_ms, Some(0));
    assert_eq!(b.read(ASYNC, "k", ReadLevel::Eventual).await.unwrap().freshness.staleness_ms, Some(0));
}

/// Found by seed 501251 of the planet: a primary that had been replaced came back, and a replica that had heard of neither called itself fresh.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_3_freshness_takes_a_lease_here_and_a_long_one_at_the_source() {
    let (_a, _b, a, b) = two().await;
    let shard = shard_of(&a.plane, ASYNC, "k");
    a.put(ASYNC, "k", "1").await.unwrap();
    let bounded = when_stale(get(ASYNC, "k", ReadLevel::Bounded { staleness_ms_max: 500 }), StalePolicy::Fail);
    let lease = a.plane.set_lease(None);
    carry(&a, &b, shard, Lane::Async).await;
    a.plane.set_lease(lease);
    assert_eq!(b.execute(bounded.clone()).await.unwrap_err().kind, RefusalKind::Stale, "the source had no lease");
    refresh(&a, &b, shard, Lane::Async).await;
    assert_eq!(text(b.execute(bounded.clone()).await.unwrap()).as_deref(), Some("1"));
    a.plane.set_lease(None);
    assert_eq!(b.execute(bounded.clone()).await.unwrap_err().kind, RefusalKind::Stale, "this region has none");
    assert_eq!(b.read(ASYNC, "k", ReadLevel::Eventual).await.unwrap().freshness.staleness_ms, None);
    a.plane.set_lease(lease);
    assert_eq!(text(b.execute(bounded).await.unwrap()).as_deref(), Some("1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_echo_for_a_position_that_is_not_applied_here_says_nothing() {
    let (_a, _b, a, b) = two().await;
    let shard = shard_of(&a.plane, ASYNC, "k");
    a.put(ASYNC, "k", "1").await.unwrap();
    let head = a.handle.head(shard).borrow().unwrap().lsn;
    let echo = Echo { probe: b.handle.monotonic_ms(), tenured: true, index: 0 };
    b.handle.complete_up_to(A, shard, Lane::Async, echo, head);
    assert_eq!(b.read(ASYNC, "k", ReadLevel::Eventual).await.unwrap().freshness.staleness_ms, None);
}

/// Found by seeds 651 and 932: a region that others had gone on without, and that had not heard of it, called itself fresh.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_3_an_echo_that_names_more_metadata_than_was_heard_of_here_makes_nothing_fresh() {
    let (_a, _b, a, b) = two().await;
    let shard = shard_of(&a.plane, ACTIVE, "k");
    let probe = b.handle.monotonic_ms();
    let index = b.plane.topology().index + 1;
    let staleness = async || b.read(ACTIVE, "k", ReadLevel::Eventual).await.unwrap().freshness.staleness_ms;
    b.handle.complete_up_to(A, shard, Lane::Async, Echo { probe, tenured: true, index }, Lsn(0));
    assert_eq!(staleness().await, None);
    b.plane.change(|topology| topology.index = index);
    b.handle.complete_up_to(A, shard, Lane::Async, Echo { probe, tenured: true, index }, Lsn(0));
    assert!(staleness().await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_active_active_write_comes_after_what_its_session_has_seen_elsewhere() {
    let (_a, _b, a, b) = two().await;
    // The clock of a is an hour ahead of b's.
    a.clock.advance(3_600_000);
    let token = a.put(ACTIVE, "k", "first").await.unwrap().session;
    let then = with_session(write_request(ACTIVE, put("k", "second")), &token);
    assert_eq!(b.execute(soon(then.clone())).await.unwrap_err().kind, RefusalKind::Stale, "not before it has seen it");
    carry_all(&a, &b).await;
    b.execute(then).await.unwrap();
    carry_all(&b, &a).await;
    for region in [&a, &b] {
        assert_eq!(region.value(ACTIVE, "k", ReadLevel::Eventual).await.as_deref(), Some("second"));
    }
}
