//! Who may connect, and as what (SEC-1).

use std::time::Duration;

use meridian_client::{Client, ConnectError, RefusalKind, TlsError, TlsFiles, TlsMaterial};
use meridian_gateway::Via;
use meridian_proto::dial;
use meridian_proto::exchange::Exchange;
use meridian_types::{BucketName, ClientId, Epoch, Key, Request, RequestId, Value, Write, WriteAck};

use crate::certificates::{Authority, Issued};
use crate::world::World;

fn put(client: ClientId, sequence: u64) -> anyhow::Result<Request> {
    Ok(Request::Write {
        bucket: BucketName::new("orders")?,
        write: Write::Put { key: Key::new("k")?, value: Value::new("v")?, ttl_ms: None },
        ack: WriteAck::Policy,
        id: RequestId { client, sequence },
        lowest_outstanding: 1,
        begun: Epoch(0),
        session: Default::default(),
        deadline_ms: 2000,
    })
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_denied_with_the_reason() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let stranger = Authority::new()?;
    let builder = Client::builder().endpoints([world.servers[0].address.clone()]).tls(stranger.client()?);
    let Err(ConnectError::Unreachable { tried }) = builder.connect().await else { panic!("a stranger got in") };
    assert_eq!(tried[0].1.kind, RefusalKind::Denied, "{}", tried[0].1);
    assert!(tried[0].1.message.contains("certificate"), "{}", tried[0].1);
    Ok(())
}

#[tokio::test]
async fn a_server_refuses_a_client_of_another_ca_that_trusts_it() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let stranger = Authority::new()?;
    // The client accepts the server (its CA file has both), but the server doesn't know the client's CA.
    let issued = stranger.issue("meridian://client/mallory", |_| {})?;
    let both = format!("{}{}", world.authority.pem, stranger.pem);
    let tls = TlsMaterial::from_pem(both.as_bytes(), issued.cert.as_bytes(), issued.key.as_bytes())?;
    let builder = Client::builder().endpoints([world.servers[0].address.clone()]).tls(tls);
    let Err(ConnectError::Unreachable { tried }) = builder.connect().await else { panic!("a stranger got in") };
    assert_eq!(tried[0].1.kind, RefusalKind::Denied, "{}", tried[0].1);
    Ok(())
}

#[tokio::test]
async fn only_nodes_may_forward_requests() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let as_client = Exchange::to_peer(dial::channel(&world.servers[0].address, &world.authority.client()?)?);
    let refused = as_client.call(&put(ClientId(5), 1)?).await.unwrap_err();
    assert_eq!(refused.kind, RefusalKind::Denied, "{refused}");
    assert!(refused.message.contains("meridian://client/alice"), "{refused}");

    let as_node = Exchange::to_peer(dial::channel(&world.servers[0].address, &world.authority.node()?)?);
    as_node.call(&put(ClientId(5), 1)?).await?;
    let truth = world.servers[0].store.truth();
    assert_eq!(truth.applied, [RequestId { client: ClientId(5), sequence: 1 }], "the client's own id is kept");
    assert_eq!(truth.callers[0].via, Via::Peer);
    assert_eq!(truth.callers[0].identity.uri(), "meridian://node/us-east/us-east-1");
    Ok(())
}

#[tokio::test]
async fn a_client_cannot_write_under_the_id_of_another() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let channel = dial::channel(&world.servers[0].address, &world.authority.client()?)?;
    let mine = Exchange::to_store(channel, ClientId(1));
    mine.call(&put(ClientId(99), 1)?).await?;
    assert_eq!(world.servers[0].store.truth().applied[0].client, ClientId(1), "the batch's id counts");
    Ok(())
}

#[tokio::test]
async fn a_certificate_that_names_nobody_is_denied_at_the_door() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let issued = world.authority.issue("https://not.ours/x", |_| {})?;
    let refused = TlsMaterial::from_pem(world.authority.pem.as_bytes(), issued.cert.as_bytes(), issued.key.as_bytes());
    assert!(matches!(refused, Err(TlsError::NoIdentity { .. })), "{refused:?}");
    Ok(())
}

fn written(dir: &std::path::Path, authority: &Authority, issued: &Issued) -> anyhow::Result<TlsFiles> {
    let files = TlsFiles::new(dir.join("ca.pem"), dir.join("cert.pem"), dir.join("key.pem"));
    std::fs::write(&files.ca, &authority.pem)?;
    std::fs::write(&files.cert, &issued.cert)?;
    std::fs::write(&files.key, &issued.key)?;
    Ok(files)
}

#[test]
fn bad_certificate_files_are_named_with_the_remedy() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let authority = Authority::new()?;
    let alice = "meridian://client/alice";
    let good = authority.issue(alice, |_| {})?;
    let files = written(dir.path(), &authority, &good)?;
    assert_eq!(files.load()?.identity().uri(), alice);

    let missing = TlsFiles::new(dir.path().join("none.pem"), &files.cert, &files.key).load().unwrap_err();
    assert!(matches!(missing, TlsError::Unreadable { .. }) && missing.to_string().contains("none.pem"), "{missing}");

    let swapped = TlsFiles::new(&files.ca, &files.key, &files.cert).load().unwrap_err();
    assert!(matches!(swapped, TlsError::NotPem { .. }), "{swapped}");

    let other = authority.issue(alice, |_| {})?;
    std::fs::write(&files.key, &other.key)?;
    let mismatch = files.load().unwrap_err();
    assert!(matches!(mismatch, TlsError::KeyMismatch { .. }), "{mismatch}");

    let stranger = Authority::new()?;
    let foreign = written(dir.path(), &authority, &stranger.issue(alice, |_| {})?)?.load().unwrap_err();
    assert!(matches!(foreign, TlsError::NotSignedByCa { .. }), "{foreign}");

    let expired = authority.issue(alice, |params| {
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    })?;
    let expired = written(dir.path(), &authority, &expired)?.load().unwrap_err();
    assert!(matches!(expired, TlsError::Expired { .. }) && expired.to_string().contains("2021"), "{expired}");

    let early = authority.issue(alice, |params| params.not_before = rcgen::date_time_ymd(2100, 1, 1))?;
    let early = written(dir.path(), &authority, &early)?.load().unwrap_err();
    assert!(matches!(early, TlsError::NotYetValid { .. }) && early.to_string().contains("clock"), "{early}");
    Ok(())
}

#[tokio::test]
async fn a_server_refuses_a_certificate_that_expired_since_it_was_loaded() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    // Our own check at loading would refuse it, so the raw TLS of tonic is used, as a foreign client would.
    let expired = world.authority.issue("meridian://client/late", |params| {
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    })?;
    let tls = tonic::transport::ClientTlsConfig::new()
        .domain_name("meridian")
        .ca_certificate(tonic::transport::Certificate::from_pem(&world.authority.pem))
        .identity(tonic::transport::Identity::from_pem(&expired.cert, &expired.key));
    let endpoint = tonic::transport::Endpoint::from_shared(world.servers[0].address.clone())?.tls_config(tls)?;
    let exchange = Exchange::to_store(endpoint.connect_lazy(), ClientId(1));
    let refused = tokio::time::timeout(Duration::from_secs(30), exchange.call(&put(ClientId(1), 1)?)).await?;
    assert_eq!(refused.unwrap_err().kind, RefusalKind::Denied);
    assert!(world.servers[0].store.truth().arrived.is_empty());
    Ok(())
}
