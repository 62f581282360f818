//! What a restart keeps (DUR-1), and what it must not do twice (ONE-1).

use meridian_types::*;

use crate::world::*;

fn id(sequence: u64) -> RequestId {
    RequestId { client: ClientId(7), sequence }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_without_any_sync_of_the_store_loses_nothing_and_applies_nothing_twice() {
    let (dir, crashed, plane) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Plane::new());
    let region = RegionUnderTest::start(dir.path(), A, &plane).await;
    for sequence in 1..=200 {
        let increment = Write::Increment { key: key(&format!("c{}", sequence % 10)), by: 1 };
        region.execute(identified(ASYNC, increment, id(sequence))).await.unwrap();
    }
    let before = digests(&region);
    region.image_of_crash(crashed.path());
    let again = RegionUnderTest::start(crashed.path(), A, &plane).await;
    assert_eq!(digests(&again), before);
    for counter in 0..10 {
        assert_eq!(again.value(ASYNC, &format!("c{counter}"), ReadLevel::Strong).await.as_deref(), Some("20"));
    }
    // A retry of the last request gets its first answer.
    let increment = Write::Increment { key: key("c0"), by: 1 };
    let answer = again.execute(identified(ASYNC, increment, id(200))).await.unwrap();
    assert!(matches!(answer.outcome, Outcome::Count { value: 20, .. }), "{answer:?}");
    assert_eq!(again.value(ASYNC, "c0", ReadLevel::Strong).await.as_deref(), Some("20"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orderly_restart_goes_on_where_it_stopped_and_timestamps_still_rise() {
    let (dir, plane) = (tempfile::tempdir().unwrap(), Plane::new());
    let region = RegionUnderTest::start(dir.path(), A, &plane).await;
    region.clock.advance(10_000);
    let before = region.put(ASYNC, "k", "1").await.unwrap();
    region.stop().await;
    // The clock of the new process stands ten seconds before the last write.
    let region = RegionUnderTest::start(dir.path(), A, &plane).await;
    assert_eq!(region.value(ASYNC, "k", ReadLevel::Strong).await.as_deref(), Some("1"));
    let after = region.put(ASYNC, "k", "2").await.unwrap();
    assert!(after.freshness.hlc > before.freshness.hlc);
    region.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_under_the_same_id_takes_effect_once_while_both_attempts_are_under_way() {
    let (dir, plane) = (tempfile::tempdir().unwrap(), Plane::new());
    let region = RegionUnderTest::start(dir.path(), A, &plane).await;
    let attempt = || region.execute(identified(ASYNC, Write::Increment { key: key("c"), by: 1 }, id(1)));
    let (first, second) = tokio::join!(attempt(), attempt());
    assert_eq!(first.unwrap().outcome, second.unwrap().outcome);
    assert_eq!(region.value(ASYNC, "c", ReadLevel::Strong).await.as_deref(), Some("1"));
}
