//! Every operation, through the log and back.

use meridian_types::*;

use crate::world::*;

async fn one() -> (tempfile::TempDir, RegionUnderTest) {
    let dir = tempfile::tempdir().unwrap();
    let region = RegionUnderTest::start(dir.path(), A, &Plane::new()).await;
    (dir, region)
}

fn version(response: &Response) -> Version {
    match &response.outcome {
        Outcome::Written { version } => *version,
        other => panic!("not written: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_put_is_read_at_every_level_with_its_version_and_durability() {
    let (_dir, region) = one().await;
    let written = region.put(ASYNC, "k", "v").await.unwrap();
    assert_eq!(written.region, A);
    assert_eq!(written.durability, Some(Durability { regions: 1, nodes: 1 }));
    assert!(!written.session.is_empty());
    for level in
        [ReadLevel::Strong, ReadLevel::Session, ReadLevel::Bounded { staleness_ms_max: 0 }, ReadLevel::Eventual]
    {
        let response = region.read(ASYNC, "k", level).await.unwrap();
        assert_eq!(response.freshness.staleness_ms, Some(0));
        assert_eq!(response.freshness.hlc, written.freshness.hlc);
        let Outcome::Value(Some(found)) = &response.outcome else { panic!("{response:?}") };
        assert_eq!(found.version, version(&written));
        assert_eq!(response.session, written.session);
    }
    assert_eq!(region.value(ASYNC, "other", ReadLevel::Strong).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_write_does_what_it_says() {
    let (_dir, region) = one().await;
    let first =
        region.write(ASYNC, Write::PutIfAbsent { key: key("k"), value: value("1"), ttl_ms: None }).await.unwrap();
    let again =
        region.write(ASYNC, Write::PutIfAbsent { key: key("k"), value: value("2"), ttl_ms: None }).await.unwrap();
    assert_eq!(again.outcome, Outcome::ConditionFailed { current: Some(version(&first)) });
    let counted = region.write(ASYNC, Write::Increment { key: key("k"), by: 41 }).await.unwrap();
    let Outcome::Count { version: counted, value: 42 } = counted.outcome else { panic!("{counted:?}") };
    let swap = |expected| Write::CompareAndSet { key: key("k"), expected, value: value("x"), ttl_ms: None };
    let failed = region.write(ASYNC, swap(Some(version(&first)))).await.unwrap();
    assert_eq!(failed.outcome, Outcome::ConditionFailed { current: Some(counted) });
    region.write(ASYNC, swap(Some(counted))).await.unwrap();
    let appended = region.write(ASYNC, Write::Append { key: key("k"), suffix: value("yz") }).await.unwrap();
    assert!(matches!(appended.outcome, Outcome::Length { length: 3, .. }));
    assert_eq!(region.value(ASYNC, "k", ReadLevel::Strong).await.as_deref(), Some("xyz"));
    let refused = region.write(ASYNC, Write::Increment { key: key("k"), by: 1 }).await.unwrap_err();
    assert_eq!(refused.kind, RefusalKind::Conflict);
    let deleted = region.write(ASYNC, Write::Delete { key: key("k") }).await.unwrap();
    assert!(matches!(deleted.outcome, Outcome::Deleted { existed: true, .. }));
    assert_eq!(region.value(ASYNC, "k", ReadLevel::Strong).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_multi_put_is_whole_within_one_shard_and_refused_across_shards_with_the_fix() {
    let (_dir, region) = one().await;
    let names = names_in_one_shard(&region.plane, ASYNC, 3);
    let items = names.iter().map(|name| (key(name), value(name))).collect();
    region.write(ASYNC, Write::MultiPut { items }).await.unwrap();
    let keys = names.iter().map(|name| key(name)).chain([key("absent")]).collect();
    let answer = region.execute(read_request(ASYNC, Read::MultiGet { keys }, ReadLevel::Strong)).await.unwrap();
    let Outcome::Values(values) = answer.outcome else { panic!() };
    let values: Vec<_> =
        values.into_iter().map(|it| it.map(|it| String::from_utf8(it.value.to_vec()).unwrap())).collect();
    assert_eq!(values, names.into_iter().map(Some).chain([None]).collect::<Vec<_>>());
    let items = (0..20).map(|n| (key(&n.to_string()), value("v"))).collect();
    let refused = region.write(ASYNC, Write::MultiPut { items }).await.unwrap_err();
    assert_eq!((refused.kind, refused.effect), (RefusalKind::Invalid, Effect::None));
    assert!(refused.message.contains("one by one"), "{}", refused.message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_gives_all_keys_of_all_shards_in_order_page_by_page() {
    let (_dir, region) = one().await;
    let names: Vec<String> = (0..150).map(|n| format!("p/{n:03}")).collect();
    for name in names.iter().rev() {
        region.put(ASYNC, name, name).await.unwrap();
    }
    region.put(ASYNC, "other", "x").await.unwrap();
    for values in [true, false] {
        let (mut found, mut after, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let read = Read::Scan { prefix: "p/".into(), after: after.clone().into(), limit: 40, values };
            let answer = region.execute(read_request(ASYNC, read, ReadLevel::Strong)).await.unwrap();
            let Outcome::Page { items, more } = answer.outcome else { panic!() };
            assert!(items.iter().all(|(_, item)| item.value.is_empty() != values));
            found.extend(items.into_iter().map(|(key, _)| String::from_utf8(key.as_bytes().to_vec()).unwrap()));
            after = found.last().unwrap().clone();
            pages += 1;
            if !more {
                break;
            }
        }
        assert_eq!((pages, &found), (4, &names));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_with_large_values_is_cut_by_bytes_and_goes_on_behind() {
    let (_dir, region) = one().await;
    let large = "x".repeat(700 << 10);
    for name in ["a", "b", "c", "d", "e"] {
        region.put(ASYNC, name, &large).await.unwrap();
    }
    let read = |after: &'static str| Read::Scan { prefix: "".into(), after: after.into(), limit: 10, values: true };
    let answer = region.execute(read_request(ASYNC, read(""), ReadLevel::Eventual)).await.unwrap();
    let Outcome::Page { items, more: true } = answer.outcome else { panic!() };
    assert_eq!(items.len(), 2, "two of them fit into two mebibytes");
    let answer = region.execute(read_request(ASYNC, read("d"), ReadLevel::Eventual)).await.unwrap();
    let Outcome::Page { items, more: false } = answer.outcome else { panic!() };
    assert_eq!(items.len(), 1);
    let keys = ["a", "b", "c", "d", "e"].into_iter().cycle().take(10).map(key).collect();
    let refused = region.execute(read_request(ASYNC, Read::MultiGet { keys }, ReadLevel::Strong)).await.unwrap_err();
    assert_eq!(refused.kind, RefusalKind::Invalid, "RES-1: no answer larger than a message");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn active_active_buckets_take_registers_and_counters_and_refuse_what_needs_an_order() {
    let (_dir, region) = one().await;
    region.put(ACTIVE, "r", "1").await.unwrap();
    region.write(ACTIVE, Write::Increment { key: key("c"), by: 5 }).await.unwrap();
    region.write(ACTIVE, Write::Increment { key: key("c"), by: -2 }).await.unwrap();
    assert_eq!(region.value(ACTIVE, "r", ReadLevel::Eventual).await.as_deref(), Some("1"));
    assert_eq!(region.value(ACTIVE, "c", ReadLevel::Session).await.as_deref(), Some("3"));
    region.write(ACTIVE, Write::Delete { key: key("r") }).await.unwrap();
    assert_eq!(region.value(ACTIVE, "r", ReadLevel::Eventual).await, None);
    for write in [
        Write::Append { key: key("r"), suffix: value("x") },
        Write::PutIfAbsent { key: key("r"), value: value("x"), ttl_ms: None },
    ] {
        assert_eq!(region.write(ACTIVE, write).await.unwrap_err().kind, RefusalKind::Invalid);
    }
    let strong = region.read(ACTIVE, "r", ReadLevel::Strong).await.unwrap_err();
    assert_eq!(strong.kind, RefusalKind::Invalid);
    assert!(strong.message.contains("session"), "{}", strong.message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_bucket_is_not_found_with_a_hint_and_one_just_created_is_waited_for() {
    let (_dir, region) = one().await;
    let refused = region.put("nowhere", "k", "v").await.unwrap_err();
    assert_eq!(refused.kind, RefusalKind::NotFound);
    assert!(refused.message.contains("meridian bucket create nowhere"), "{}", refused.message);
    // A node that has just started may not have heard of a bucket that others know.
    let lease = region.plane.set_lease(None);
    assert_eq!(region.put("nowhere", "k", "v").await.unwrap_err().kind, RefusalKind::Retry);
    region.plane.set_lease(lease);
    let plane = region.plane.clone();
    let create = async {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        plane.change(|topology| add_bucket(topology, "soon", Policy::ASYNC, Some(A)));
    };
    let (written, ()) = tokio::join!(region.put("soon", "k", "v"), create);
    written.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_durability_that_can_never_be_reached_is_invalid_and_changes_nothing() {
    let (_dir, region) = one().await;
    let mut request = write_request(ASYNC, put("k", "v"));
    if let Request::Write { ack, .. } = &mut request {
        *ack = WriteAck::Regions(5);
    }
    assert_eq!(region.execute(request).await.unwrap_err().kind, RefusalKind::Invalid);
    assert_eq!(region.value(ASYNC, "k", ReadLevel::Strong).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_of_the_clock_back_does_not_stop_writes_and_an_absurd_clock_does() {
    let (_dir, region) = one().await;
    let before = version(&region.put(ASYNC, "k", "1").await.unwrap());
    region.clock.set_wall(1_790_000_000_000 - 3_600_000);
    let after = version(&region.put(ASYNC, "k", "2").await.unwrap());
    assert!(after > before, "timestamps rise whatever the clock does");
    region.clock.set_wall(5);
    let refused = region.put(ASYNC, "k", "3").await.unwrap_err();
    assert_eq!((refused.kind, refused.effect), (RefusalKind::Unavailable, Effect::None));
    assert!(refused.message.contains("clock"), "{}", refused.message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_bound_on_requests_under_way_the_next_is_refused_as_retryable() {
    let dir = tempfile::tempdir().unwrap();
    let bounded = meridian_region_node::Options { in_flight_max: 1, ..options() };
    let region = RegionUnderTest::start_with(dir.path(), A, &Plane::new(), bounded).await;
    // Waits for a second region that isn't there.
    let waits = region.execute(soon(write_request(SYNC, put("k", "v"))));
    let (slow, quick) = tokio::join!(biased; waits, region.put(ASYNC, "k", "v"));
    assert_eq!(quick.unwrap_err().kind, RefusalKind::Retry, "RES-1");
    assert_eq!(slow.unwrap_err().kind, RefusalKind::Unavailable);
    region.put(ASYNC, "k", "v").await.unwrap();
}
