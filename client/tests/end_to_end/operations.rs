//! Every operation there and back, with its options and what its answer tells.

use std::time::Duration;

use futures::TryStreamExt;
use meridian_client::{Condition, RefusalKind, Session, StalePolicy, WriteAck};
use meridian_types::{
    BucketName, ClientId, Epoch, Key, Lsn, Outcome, ReadLevel, Refusal, Request, RequestId, SessionToken, Write,
};

use crate::world::World;

#[tokio::test]
async fn every_operation_makes_the_round_trip() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let orders = world.client().await?.bucket("orders")?;

    let written = orders.put("a", "1").ttl(Duration::from_secs(60)).ack(WriteAck::Regions(2)).await?;
    assert_eq!(written.meta.region.as_str(), "us-east");
    assert_eq!((written.meta.epoch.0, written.meta.regions_durable(), written.meta.attempts), (3, 2, 1));
    assert_eq!(written.meta.staleness, None);

    let got = orders.get("a").await?;
    assert_eq!(got.value().map(|value| &value[..]), Some(&b"1"[..]));
    assert_eq!(got.version(), Some(written.version));
    assert_eq!(got.found.as_ref().and_then(|found| found.expires_at_ms), Some(60_000));
    assert_eq!((got.meta.staleness, got.meta.durability), (Some(Duration::ZERO), None));
    assert_eq!(orders.get("absent").await?.found, None);

    assert_eq!(orders.append("a", b"23").await?.bytes, 3);
    assert_eq!(orders.increment("n", 5).await?.value, 5);
    assert_eq!(orders.increment("n", -7).await?.value, -2);
    assert!(orders.put_if_absent("b", "x").await?.held());
    let taken = orders.put_if_absent("b", "y").await?;
    assert!(matches!(taken.condition, Condition::Failed { current: Some(_) }));
    let current = orders.get("b").await?.version();
    assert!(orders.compare_and_set("b", current, "z").await?.held());
    assert!(!orders.compare_and_set("b", current, "late").await?.held());
    orders.multi_put([("c", "3"), ("d", "4")]).await?;
    let many = orders.multi_get(["a", "missing", "d"]).await?.found;
    let many: Vec<_> = many.iter().map(|found| found.as_ref().map(|found| found.value.to_vec())).collect();
    assert_eq!(many, [Some(b"123".to_vec()), None, Some(b"4".to_vec())]);
    assert!(orders.delete("c").await?.existed);
    assert!(!orders.delete("c").await?.existed);
    Ok(())
}

#[tokio::test]
async fn a_request_put_together_elsewhere_keeps_its_id_and_takes_effect_once() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let client = world.client().await?;
    let increment = |id| -> anyhow::Result<Request> {
        Ok(Request::Write {
            bucket: BucketName::new("orders")?,
            write: Write::Increment { key: Key::new("n")?, by: 5 },
            ack: WriteAck::Policy,
            id,
            lowest_outstanding: 7,
            begun: Epoch(0),
            session: SessionToken::default(),
            deadline_ms: 5_000,
        })
    };
    let own = RequestId { client: client.id(), sequence: 7 };
    for _ in 0..2 {
        let response = client.ask(increment(own)?).await?;
        assert!(matches!(response.outcome, Outcome::Count { value: 5, .. }), "{response:?}");
    }
    assert_eq!(world.truth.lock().unwrap().applied, [own]);

    client.ask(increment(RequestId::default())?).await?;
    assert_eq!(client.bucket("orders")?.increment("n", 0).await?.value, 10);

    let others = RequestId { client: ClientId(client.id().0 ^ 1), sequence: 8 };
    let refused = client.ask(increment(others)?).await.unwrap_err();
    assert_eq!(refused.kind, RefusalKind::Invalid);
    Ok(())
}

#[tokio::test]
async fn a_scan_goes_page_by_page_and_as_a_stream() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let orders = world.client().await?.bucket("orders")?;
    for number in 0..7 {
        orders.put(format!("k/{number}"), format!("v{number}")).await?;
    }
    orders.put("other", "x").await?;

    let mut scan = orders.scan("k/").page_size(3).eventual();
    let mut sizes = Vec::new();
    while let Some(page) = scan.next_page().await? {
        sizes.push(page.items.len());
    }
    assert_eq!(sizes, [3, 3, 1]);

    let items: Vec<_> = orders.scan("k/").page_size(2).items().try_collect().await?;
    let keys: Vec<String> = items.iter().map(|item| String::from_utf8_lossy(&item.key).into_owned()).collect();
    assert_eq!(keys, ["k/0", "k/1", "k/2", "k/3", "k/4", "k/5", "k/6"]);
    assert!(items.iter().all(|item| !item.found.value.is_empty()));

    let bare: Vec<_> = orders.scan("k/").after("k/4").keys_only().items().try_collect().await?;
    assert_eq!(bare.len(), 2);
    assert!(bare.iter().all(|item| item.found.value.is_empty()));
    assert_eq!(orders.scan("nothing/").next_page().await?, None);
    Ok(())
}

#[tokio::test]
async fn options_arrive_as_they_were_given() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let client = world.client().await?;
    let orders = client.bucket("orders")?;
    orders.get("a").bounded(Duration::from_millis(250)).when_stale(StalePolicy::Redirect).await?;
    orders.get("a").eventual().deadline(Duration::from_millis(900)).await?;
    orders.put("a", "1").ack(WriteAck::All).await?;

    let truth = world.servers[0].store.truth();
    let [bounded, eventual, put] = truth.arrived.as_slice() else { panic!("three requests") };
    assert!(matches!(
        bounded,
        Request::Read { level: ReadLevel::Bounded { staleness_ms_max: 250 }, stale: StalePolicy::Redirect, .. }
    ));
    assert!(matches!(eventual, Request::Read { level: ReadLevel::Eventual, .. }));
    assert!((850..=900).contains(&eventual.deadline_ms()), "{}", eventual.deadline_ms());
    let Request::Write { ack: WriteAck::All, id, lowest_outstanding: 1, .. } = put else { panic!("{put:?}") };
    assert_eq!((id.client, id.sequence), (client.id(), 1));
    assert_eq!(truth.callers[0].identity.uri(), "meridian://client/alice");
    Ok(())
}

#[tokio::test]
async fn a_session_token_crosses_servers_and_processes_con_2() -> anyhow::Result<()> {
    let world = World::new(2).await?;
    let east = world.builder(&[0])?.connect().await?;
    let session = east.session();
    east.bucket("orders")?.put("cart", "book").session(&session).await?;
    let token = session.token();

    let west = world.builder(&[1])?.discover(false).connect().await?;
    let session = Session::from_token(&token)?;
    // The replica in the west has not applied it yet: it must say so rather than answer from the past.
    world.servers[1].store.mood.lock().unwrap().applied = Some(Lsn(0));
    let carts = west.bucket("orders")?;
    let stale = carts.get("cart").session(&session).when_stale(StalePolicy::Fail).await.unwrap_err();
    assert_eq!((stale.kind, stale.is_retryable()), (RefusalKind::Stale, true));
    world.servers[1].store.mood.lock().unwrap().applied = None;
    let got = carts.get("cart").session(&session).await?;
    assert_eq!(got.into_value().as_deref(), Some(&b"book"[..]));
    assert!(Session::from_token(b"\x07nonsense").is_err());
    Ok(())
}

#[tokio::test]
async fn what_can_never_succeed_is_refused_before_it_is_sent() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let client = world.client().await?;
    let orders = client.bucket("orders")?;
    assert_eq!(client.bucket("Not A Name").unwrap_err().kind, RefusalKind::Invalid);
    for refused in [
        orders.put("", "empty key").await.unwrap_err(),
        orders.put("k", vec![0; (1 << 20) + 1]).await.unwrap_err(),
        orders.put("k", "v").ttl(Duration::ZERO).await.unwrap_err(),
        orders.multi_put(Vec::<(String, String)>::new()).await.unwrap_err(),
        orders.multi_put((0..1025).map(|n| (format!("k{n}"), "v"))).await.unwrap_err(),
        orders.multi_put((0..3).map(|n| (format!("k{n}"), vec![0; 1 << 20]))).await.unwrap_err(),
    ] {
        assert_eq!((refused.kind, refused.attempts), (RefusalKind::Invalid, 0), "{refused}");
    }
    assert!(world.servers[0].store.truth().arrived.is_empty());
    // The largest that are allowed pass.
    orders.put(vec![b'k'; 4096], vec![0; 1 << 20]).await?;
    orders.multi_get((0..1024).map(|n| format!("{n:04096}"))).await?;
    Ok(())
}

#[tokio::test]
async fn an_unknown_bucket_is_refused_at_once_but_one_just_created_is_waited_for() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let client = world.client().await?;
    let refused = client.bucket("unknown")?.get("k").await.unwrap_err();
    assert_eq!((refused.kind, refused.attempts), (RefusalKind::NotFound, 1));

    let spec = meridian_client::BucketSpec {
        name: meridian_client::BucketName::new("fresh")?,
        policy: meridian_client::Policy::ASYNC,
        regions: Vec::new(),
        primary: None,
        labels: Default::default(),
        auto: Default::default(),
    };
    client.admin().create_bucket(&spec, false).await?;
    let refused = client.bucket("fresh")?.get("k").deadline(Duration::from_secs(3)).await.unwrap_err();
    assert_eq!(refused.kind, RefusalKind::NotFound);
    assert!(refused.attempts > 1, "{refused}");
    Ok(())
}

#[tokio::test]
async fn refusals_keep_their_kind_effect_and_message() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let orders = world.client().await?.bucket("orders")?;
    for kind in [RefusalKind::Conflict, RefusalKind::Corrupt, RefusalKind::Stale, RefusalKind::Internal] {
        let refusal = Refusal::new(kind, format!("made for the test: {kind}"));
        world.servers[0].store.mood.lock().unwrap().refusals = vec![refusal.clone()];
        let error = orders.put("k", "v").await.unwrap_err();
        assert_eq!((error.kind, &error.message, error.attempts), (kind, &refusal.message, 1));
        assert!(!error.advice().is_empty());
    }
    Ok(())
}
