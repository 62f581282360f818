//! Networks and nodes that fail: retries under one id, deadlines, failover, shutdown.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use meridian_client::{Client, Effect, Error, RefusalKind, RetryPolicy, WriteAck};
use meridian_proto::dial;
use meridian_proto::exchange::Exchange;
use meridian_types::{ClientId, Epoch, Key, Policy, Refusal, Request, RequestId, SessionToken, Write};

use crate::proxy::Proxy;
use crate::world::World;

/// Less than what an endpoint that failed is left alone for.
const LEFT_ALONE: Duration = Duration::from_millis(400);

/// Far beyond what a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(60);

async fn through(world: &World, proxy: &Proxy) -> anyhow::Result<Client> {
    let builder = Client::builder().endpoints([proxy.address.clone()]).discover(false);
    Ok(builder.tls(world.authority.client()?).connect().await?)
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_is_retried_and_applied_once_one_1() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let proxy = Proxy::to(&world.servers[0].address).await?;
    let client = through(&world, &proxy).await?;
    let orders = client.bucket("orders")?;
    orders.increment("n", 1).await?;
    for round in 2..=6 {
        proxy.faults.lose_answers.store(true, Ordering::SeqCst);
        let cut = proxy.faults.cut.load(Ordering::SeqCst);
        let heal = async {
            while proxy.faults.cut.load(Ordering::SeqCst) == cut {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            proxy.faults.lose_answers.store(false, Ordering::SeqCst);
        };
        let (count, ()) = tokio::join!(async { orders.increment("n", 1).await }, heal);
        let count = count?;
        assert_eq!(count.value, round);
        assert!(count.meta.attempts > 1);
    }
    let truth = world.servers[0].store.truth();
    assert_eq!(truth.applied.len(), 6);
    assert!(truth.arrived.len() > 6, "retries arrived, and were recognised");
    Ok(())
}

#[tokio::test]
async fn a_lost_answer_without_retries_is_reported_as_unknown_never_as_absent() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let proxy = Proxy::to(&world.servers[0].address).await?;
    let client = Client::builder()
        .endpoints([proxy.address.clone()])
        .tls(world.authority.client()?)
        .discover(false)
        .retry(RetryPolicy::never())
        .connect()
        .await?;
    let orders = client.bucket("orders")?;
    orders.put("warm", "up").await?;
    proxy.faults.lose_answers.store(true, Ordering::SeqCst);
    let error = orders.put("k", "v").await.unwrap_err();
    assert_eq!((error.kind, error.effect), (RefusalKind::Retry, Effect::Unknown), "{error}");
    let read = orders.get("k").await.unwrap_err();
    assert_eq!(read.effect, Effect::None, "a read does nothing: {read}");
    Ok(())
}

#[tokio::test]
async fn a_silent_network_ends_at_the_deadline_with_the_effect_unknown() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let proxy = Proxy::to(&world.servers[0].address).await?;
    let client = through(&world, &proxy).await?;
    let orders = client.bucket("orders")?;
    orders.put("warm", "up").await?;
    proxy.faults.silent.store(true, Ordering::SeqCst);
    let began = Instant::now();
    let error = orders.put("k", "v").deadline(Duration::from_millis(400)).await.unwrap_err();
    // Without one it were 10 s.
    assert!((400..8000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    assert_eq!(error.effect, Effect::Unknown, "{error}");
    Ok(())
}

#[tokio::test]
async fn a_slow_store_ends_at_the_deadline_by_the_nodes_own_word() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let orders = world.client().await?.bucket("orders")?;
    world.servers[0].store.mood.lock().unwrap().delay = Duration::from_secs(30);
    let deadline = Duration::from_millis(200);
    let write = ended_by_the_node(async || orders.put("k", "v").deadline(deadline).await.unwrap_err()).await;
    assert_eq!((write.kind, write.effect), (RefusalKind::Unavailable, Effect::Unknown), "{write}");
    let read = ended_by_the_node(async || orders.get("k").deadline(deadline).await.unwrap_err()).await;
    assert_eq!((read.kind, read.effect), (RefusalKind::Unavailable, Effect::None), "{read}");
    // Long before the store has finished them.
    let over = async {
        while world.servers[0].gateway.in_progress() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(8), over).await?;
    Ok(())
}

/// Asks until it is the node's word that ends it: on a busy machine the client may be the first to give up.
async fn ended_by_the_node(ask: impl AsyncFn() -> Error) -> Error {
    let until = Instant::now() + PATIENCE;
    loop {
        let error = ask().await;
        if error.message.contains("was not finished within its deadline") {
            return error;
        }
        assert!(Instant::now() < until, "{error}");
    }
}

#[tokio::test]
async fn an_effect_once_unknown_stays_so_whatever_later_attempts_say() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let orders = world.client().await?.bucket("orders")?;
    let lost = Refusal::new(RefusalKind::Retry, "the leader changed").with_effect(Effect::Unknown);
    let last = Refusal::new(RefusalKind::Denied, "made for the test");
    world.servers[0].store.mood.lock().unwrap().refusals = vec![last, lost];
    let error = orders.put("k", "v").await.unwrap_err();
    assert_eq!((error.kind, error.effect, error.attempts), (RefusalKind::Denied, Effect::Unknown, 2));
    Ok(())
}

#[tokio::test]
async fn refusals_to_retry_are_retried_with_pauses_until_they_pass() -> anyhow::Result<()> {
    let world = World::new(2).await?;
    let orders = world.client().await?.bucket("orders")?;
    let kinds = [RefusalKind::Retry, RefusalKind::Fenced, RefusalKind::Redirect, RefusalKind::Unavailable];
    world.servers[0].store.mood.lock().unwrap().refusals =
        kinds.iter().map(|kind| Refusal::new(*kind, "made for the test")).collect();
    let written = orders.put("k", "v").await?;
    assert!(written.meta.attempts > 1);
    assert_eq!(world.servers[0].store.truth().applied.len(), 1);
    Ok(())
}

#[tokio::test]
async fn one_1_a_write_of_all_regions_goes_elsewhere_only_if_no_attempt_may_have_had_an_effect() -> anyhow::Result<()> {
    let world = World::new(2).await?;
    for bucket in world.topology.lock().unwrap().buckets.values_mut() {
        let bucket = Arc::make_mut(bucket);
        (bucket.policy, bucket.primary) = (Policy::ActiveActive, None);
    }
    let client = world.builder(&[0, 1])?.connect().await?;
    let orders = client.bucket("orders")?;
    let mood = || world.servers[0].store.mood.lock().unwrap();
    let repaired = || Refusal::new(RefusalKind::Redirect, "it is being repaired here");
    mood().refusals = vec![repaired()];
    let written = orders.put("k", "1").await?.meta;
    assert_eq!((written.region.as_str(), written.attempts), ("eu-west", 2));
    let lost = Refusal::new(RefusalKind::Retry, "the answer was lost").with_effect(Effect::Unknown);
    mood().refusals = vec![repaired(), repaired(), lost];
    let written = orders.put("k", "2").await?.meta;
    assert_eq!((written.region.as_str(), written.attempts), ("us-east", 4));
    Ok(())
}

#[tokio::test]
async fn a_dead_endpoint_is_replaced_by_the_next_given_one() -> anyhow::Result<()> {
    let world = World::new(2).await?;
    let proxy = Proxy::to(&world.servers[0].address).await?;
    let client = Client::builder()
        .endpoints([proxy.address.clone(), world.servers[1].address.clone()])
        .tls(world.authority.client()?)
        .discover(false)
        .connect()
        .await?;
    let orders = client.bucket("orders")?;
    assert_eq!(orders.put("k", "1").await?.meta.region.as_str(), "us-east");
    drop(proxy);
    let mut failed = Instant::now();
    let written = orders.put("k", "2").await?;
    assert_eq!(written.meta.region.as_str(), "eu-west");
    loop {
        let began = Instant::now();
        if orders.put("k", "3").await?.meta.attempts == 1 {
            return Ok(());
        }
        // For half a second at least, which a busy machine may spend otherwise.
        assert!(failed.elapsed() > LEFT_ALONE, "it is left alone: no attempt is wasted on it");
        failed = began;
    }
}

#[tokio::test]
async fn a_dead_endpoint_is_replaced_by_one_that_the_cluster_named() -> anyhow::Result<()> {
    let mut world = World::new(2).await?;
    let client = world.builder(&[0])?.connect().await?;
    let orders = client.bucket("orders")?;
    orders.put("k", "1").await?;
    let dead = world.servers.remove(0);
    // A server that is killed takes its connections along; a task that is aborted doesn't.
    dead.gateway.drain(Duration::from_secs(1)).await?;
    drop(dead);
    assert_eq!(orders.put("k", "2").await?.meta.region.as_str(), "eu-west");
    Ok(())
}

#[tokio::test]
async fn a_server_that_drains_finishes_what_it_has_and_clients_go_elsewhere() -> anyhow::Result<()> {
    let world = World::new(2).await?;
    let client = world.builder(&[0, 1])?.connect().await?;
    let orders = client.bucket("orders")?;
    orders.put("warm", "up").await?;
    world.servers[0].store.mood.lock().unwrap().delay = Duration::from_secs(3);
    let slow = tokio::spawn({
        let orders = orders.clone();
        async move { orders.put("k", "slow").await }
    });
    while world.servers[0].gateway.in_progress() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let late = world.servers[0].gateway.drain(Duration::from_millis(20)).await;
    assert_eq!(late.unwrap_err().requests, 1);
    let elsewhere = orders.put("k", "other").await?;
    assert_eq!(elsewhere.meta.region.as_str(), "eu-west");
    assert_eq!(slow.await??.meta.region.as_str(), "us-east", "what was in progress is finished");
    world.servers[0].gateway.drain(Duration::from_secs(1)).await?;
    Ok(())
}

#[tokio::test]
async fn a_panic_in_the_store_is_reported_as_fatal() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let orders = world.client().await?.bucket("orders")?;
    world.servers[0].store.mood.lock().unwrap().panics = true;
    let gateway = world.servers[0].gateway.clone();
    let fatal = tokio::time::timeout(PATIENCE, gateway.fatal());
    let write = async { orders.put("k", "v").deadline(Duration::from_millis(300)).await };
    let (fatal, write) = tokio::join!(fatal, write);
    fatal?;
    assert_eq!(write.unwrap_err().effect, Effect::Unknown);
    Ok(())
}

#[tokio::test]
async fn a_cluster_that_is_down_is_named_endpoint_by_endpoint() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let builder = Client::builder().endpoints(["https://127.0.0.1:1", "https://127.0.0.1:2"]);
    let error = builder.tls(world.authority.client()?).connect().await.err().unwrap().to_string();
    assert!(error.contains("https://127.0.0.1:1") && error.contains("https://127.0.0.1:2"), "{error}");
    assert!(error.to_lowercase().contains("connect"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_node_that_falls_silent_is_left_for_the_next_one_within_an_attempt() -> anyhow::Result<()> {
    let world = World::new(2).await?;
    let proxy = Proxy::to(&world.servers[0].address).await?;
    let retry = RetryPolicy { attempt_max: Duration::from_millis(200), ..RetryPolicy::default() };
    let client = Client::builder()
        .endpoints([proxy.address.clone(), world.servers[1].address.clone()])
        .tls(world.authority.client()?)
        .discover(false)
        .retry(retry)
        .connect()
        .await?;
    let orders = client.bucket("orders")?;
    assert_eq!(orders.increment("n", 1).await?.meta.region.as_str(), "us-east");
    proxy.faults.silent.store(true, Ordering::SeqCst);
    let began = Instant::now();
    let count = orders.increment("n", 1).await?;
    assert_eq!((count.value, count.meta.region.as_str()), (2, "eu-west"));
    // An attempt of the length that is usual were 5 s.
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_client_that_wants_the_primary_goes_there_straight_and_falls_back_when_it_is_gone() -> anyhow::Result<()> {
    let mut world = World::new(2).await?;
    let client = world.builder(&[1])?.direct_to_primary(true).connect().await?;
    let orders = client.bucket("orders")?;
    assert_eq!(orders.put("k", "1").await?.meta.region.as_str(), "us-east");
    assert_eq!(orders.get("k").await?.meta.region.as_str(), "us-east");
    assert_eq!(orders.get("k").eventual().await?.meta.region.as_str(), "eu-west", "only what needs the primary");
    let primary = world.servers.remove(0);
    primary.gateway.drain(Duration::from_secs(1)).await?;
    drop(primary);
    assert_eq!(orders.put("k", "2").await?.meta.region.as_str(), "eu-west");
    Ok(())
}

#[tokio::test]
async fn a_write_that_never_left_has_no_effect_and_callers_are_told_at_once() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let exchange = Exchange::to_store(dial::channel("https://127.0.0.1:1", &world.authority.client()?)?, ClientId(1));
    let write = |sequence| -> anyhow::Result<Request> {
        Ok(Request::Write {
            bucket: meridian_client::BucketName::new("orders")?,
            write: Write::Delete { key: Key::new("k")? },
            ack: WriteAck::Policy,
            id: RequestId { client: ClientId(1), sequence },
            lowest_outstanding: 1,
            begun: Epoch(0),
            session: SessionToken::default(),
            deadline_ms: 5000,
        })
    };
    let began = Instant::now();
    for sequence in 1..20 {
        let refused = exchange.call(&write(sequence)?).await.unwrap_err();
        assert_eq!((refused.kind, refused.effect), (RefusalKind::Retry, Effect::None), "{refused}");
    }
    // At its deadline each were 5 s late.
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    Ok(())
}
