//! What is waited for before a write is acknowledged or a strong read answered (DUR-2, FEN-1, CON-1).

use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_types::*;

use crate::world::*;

async fn two() -> (tempfile::TempDir, tempfile::TempDir, Arc<RegionUnderTest>, Arc<RegionUnderTest>) {
    let (a_dir, b_dir, plane) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Plane::new());
    let a = RegionUnderTest::start(a_dir.path(), A, &plane).await;
    let b = RegionUnderTest::start(b_dir.path(), B, &plane).await;
    a.listen(&b).await;
    b.listen(&a).await;
    (a_dir, b_dir, Arc::new(a), Arc::new(b))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_write_is_acknowledged_once_the_second_region_has_it() {
    let (_a, _b, a, b) = two().await;
    let _carrier = Carrier::start(&a, &b);
    let written = a.put(SYNC, "k", "v").await.unwrap();
    assert_eq!(written.durability, Some(Durability { regions: 2, nodes: 2 }));
    assert_eq!(b.value(SYNC, "k", ReadLevel::Eventual).await.as_deref(), Some("v"), "DUR-2: it is there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_write_without_a_second_region_times_out_as_applied_here_and_names_who_is_missing() {
    let (_a, _b, a, b) = two().await;
    let id = RequestId { client: ClientId(1), sequence: 1 };
    let increment = || identified(SYNC, Write::Increment { key: key("c"), by: 1 }, id);
    let refused = in_vain(&a, increment()).await;
    assert_eq!((refused.kind, refused.effect), (RefusalKind::Unavailable, Effect::Applied));
    assert!(refused.message.contains("1 of 2") && refused.message.contains("eu-west"), "{}", refused.message);
    // A strong read would show what a failover could undo: it waits too (CON-1).
    let read = a.execute(soon(get(SYNC, "c", ReadLevel::Strong))).await.unwrap_err();
    assert_eq!(read.kind, RefusalKind::Unavailable);
    assert_eq!(a.value(SYNC, "c", ReadLevel::Eventual).await.as_deref(), Some("1"));
    // The region comes back: the retry waits for the same write, and it counted once.
    let _carrier = Carrier::start(&a, &b);
    let answer = a.execute(increment()).await.unwrap();
    assert!(matches!(answer.outcome, Outcome::Count { value: 1, .. }));
    assert_eq!(a.value(SYNC, "c", ReadLevel::Strong).await.as_deref(), Some("1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strong_read_of_a_removed_key_waits_until_the_removal_is_safe() {
    let (_a, _b, a, b) = two().await;
    {
        let _carrier = Carrier::start(&a, &b);
        a.put(SYNC, "k", "v").await.unwrap();
    }
    let removed = in_vain(&a, write_request(SYNC, Write::Delete { key: key("k") })).await;
    assert_eq!(removed.effect, Effect::Applied);
    let read = get(SYNC, "k", ReadLevel::Strong);
    assert_eq!(a.execute(soon(read.clone())).await.unwrap_err().kind, RefusalKind::Unavailable);
    let _carrier = Carrier::start(&a, &b);
    assert_eq!(text(a.execute(read).await.unwrap()), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_async_write_asked_for_two_regions_waits_for_them() {
    let (_a, _b, a, b) = two().await;
    let mut request = write_request(ASYNC, put("k", "v"));
    if let Request::Write { ack, .. } = &mut request {
        *ack = WriteAck::All;
    }
    let refused = in_vain(&a, request.clone()).await;
    assert_eq!((refused.kind, refused.effect), (RefusalKind::Unavailable, Effect::Applied));
    let _carrier = Carrier::start(&a, &b);
    assert_eq!(a.execute(request).await.unwrap().durability.unwrap().regions, 2);
}

/// One round trip: the frame reaches the replica while the primary still waits for its acknowledgement.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_answers_a_forwarded_sync_write_as_soon_as_it_has_applied_it() {
    let (_a, _b, a, b) = two().await;
    let id = RequestId { client: ClientId(9), sequence: 1 };
    let shard = shard_of(&a.plane, SYNC, "k");
    let one_way = async {
        // Carried to the replica and never acknowledged to the primary: only the replica can answer.
        loop {
            if let Some(frame) = next_frame(&a, &b, shard, Lane::Sync).await {
                return apply(&b, &frame).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let (answer, lsn) = tokio::join!(b.execute(identified(SYNC, put("k", "v"), id)), one_way);
    let answer = answer.unwrap();
    assert_eq!(answer.region, B);
    assert_eq!(answer.durability, Some(Durability { regions: 2, nodes: 2 }));
    let token = answer.session.seen(a.plane.bucket(SYNC).id, shard).unwrap().clone();
    assert_eq!(token.of(A), lsn, "the session has seen the primary's position");
    // A client without identity can't be matched: it gets the primary's answer, which never comes.
    let (anonymous, ()) = tokio::join!(b.execute(soon(write_request(SYNC, put("k", "w")))), async {
        eventually("the frame is there", async || next_frame(&a, &b, shard, Lane::Sync).await.is_some()).await;
        apply(&b, &next_frame(&a, &b, shard, Lane::Sync).await.unwrap()).await.unwrap();
    });
    let anonymous = anonymous.unwrap_err();
    assert!(matches!(anonymous.effect, Effect::Applied | Effect::Unknown), "{anonymous:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forwarded_write_gets_the_primarys_answer_when_that_is_first() {
    let (_a, _b, _a_region, b) = two().await;
    let answer = b.put(ASYNC, "k", "v").await.unwrap();
    assert_eq!((answer.region, answer.durability.unwrap().regions), (A, 1));
    assert_eq!(b.value(ASYNC, "k", ReadLevel::Strong).await.as_deref(), Some("v"), "a strong read goes there too");
    assert_eq!(b.value(ASYNC, "k", ReadLevel::Eventual).await, None, "nothing was carried");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_lease_nothing_is_ordered_acknowledged_or_read_strongly() {
    let (_a, _b, a, _b_region) = two().await;
    a.put(ASYNC, "k", "v").await.unwrap();
    for lapsed in [None, Some(Instant::now())] {
        a.plane.set_lease(lapsed);
        let refused = a.put(ASYNC, "k", "w").await.unwrap_err();
        assert_eq!((refused.kind, refused.effect), (RefusalKind::Unavailable, Effect::None), "FEN-1");
        assert_eq!(a.read(ASYNC, "k", ReadLevel::Strong).await.unwrap_err().kind, RefusalKind::Unavailable);
        let bounded = a.read(ASYNC, "k", ReadLevel::Bounded { staleness_ms_max: 1000 }).await;
        assert_eq!(bounded.unwrap_err().kind, RefusalKind::Unavailable);
        let eventual = a.read(ASYNC, "k", ReadLevel::Eventual).await.unwrap();
        assert_eq!(eventual.freshness.staleness_ms, None, "another region may be the primary by now");
        a.put(ACTIVE, "k", "v").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_runs_out_while_a_write_is_under_way_leaves_it_unacknowledged() {
    let (_a, _b, a, b) = two().await;
    let (answer, ()) = tokio::join!(a.put(SYNC, "k", "v"), async {
        applied(&a, SYNC, "k").await;
        a.plane.set_lease(None);
        carry_all(&a, &b).await;
    });
    let refused = answer.unwrap_err();
    assert_eq!((refused.kind, refused.effect), (RefusalKind::Retry, Effect::Unknown), "FEN-1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_runs_out_while_a_strong_read_waits_leaves_it_unanswered() {
    let (_a, _b, a, b) = two().await;
    a.execute(soon(write_request(SYNC, put("k", "v")))).await.unwrap_err();
    let (answer, ()) = tokio::join!(biased; a.read(SYNC, "k", ReadLevel::Strong), async {
        a.plane.set_lease(None);
        carry_all(&a, &b).await;
    });
    assert_eq!(answer.unwrap_err().kind, RefusalKind::Unavailable, "CON-1: somebody else may be the primary");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_moved_on_while_a_write_was_under_way_leaves_it_unacknowledged() {
    let (_a, _b, a, b) = two().await;
    let (answer, ()) = tokio::join!(a.put(SYNC, "k", "v"), async {
        applied(&a, SYNC, "k").await;
        a.plane.change(|topology| {
            let id = topology.bucket_ids[&BucketName::new(SYNC).unwrap()];
            let bucket = Arc::make_mut(topology.buckets.get_mut(&id).unwrap());
            bucket.epoch = Epoch(2);
        });
        carry_all(&a, &b).await;
    });
    assert_eq!(answer.unwrap_err().effect, Effect::Unknown);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_wrong_about_the_primary_is_told_and_not_sent_round() {
    let (_a, _b, _a_region, b) = two().await;
    let from_a = meridian_region_node::Caller::Peer { region: A };
    let refused = b.handle.execute(write_request(ASYNC, put("k", "v")), from_a).await.unwrap_err();
    assert_eq!((refused.kind, refused.effect), (RefusalKind::Redirect, Effect::None));
}
