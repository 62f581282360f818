//! Too much, too large, senseless: bounded, refused, survived (RES-1).

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use meridian_client::{Effect, RefusalKind};
use meridian_gateway::Options;
use meridian_proto::convert::{refusal_from_proto, refusal_of_status, request_to_proto};
use meridian_proto::dial;
use meridian_proto::v1;
use meridian_proto::v1::key_value_client::KeyValueClient;
use meridian_types::{BucketName, Key, Read, ReadLevel, Request, SessionToken, StalePolicy};
use tonic::Streaming;

use crate::world::World;

fn get(tag: u64) -> anyhow::Result<v1::Request> {
    let request = Request::Read {
        bucket: BucketName::new("orders")?,
        read: Read::Get { key: Key::new("k")? },
        level: ReadLevel::Strong,
        stale: StalePolicy::Wait,
        session: SessionToken::default(),
        deadline_ms: 2000,
    };
    Ok(request_to_proto(tag, &request))
}

/// Sends batches as they are, past the SDK, and returns the answers.
async fn raw(world: &World, batches: Vec<v1::RequestBatch>) -> anyhow::Result<Streaming<v1::ResponseBatch>> {
    let channel = dial::channel(&world.servers[0].address, &world.authority.client()?)?;
    Ok(KeyValueClient::new(channel).exchange(tokio_stream::iter(batches)).await?.into_inner())
}

fn batch(requests: Vec<v1::Request>) -> v1::RequestBatch {
    v1::RequestBatch { client_id: Bytes::new(), requests }
}

#[tokio::test]
async fn requests_beyond_the_bound_are_refused_to_be_retried_and_the_others_are_answered() -> anyhow::Result<()> {
    let options = Options { stream_requests_max: 10, ..Options::default() };
    let world = World::with(1, options).await?;
    world.servers[0].store.mood.lock().unwrap().delay = Duration::from_millis(50);
    let requests = (1..=25).map(get).collect::<Result<_, _>>()?;
    let mut answers = raw(&world, vec![batch(requests)]).await?;
    let (mut answered, mut refused) = (0, 0);
    while let Some(batch) = answers.message().await? {
        for response in batch.responses {
            match response.outcome {
                Some(v1::response::Outcome::Refusal(refusal)) => {
                    let refusal = refusal_from_proto(refusal);
                    assert_eq!((refusal.kind, refusal.effect), (RefusalKind::Retry, Effect::None));
                    refused += 1;
                }
                _ => answered += 1,
            }
        }
    }
    assert_eq!((answered, refused), (10, 15));
    assert_eq!(world.servers[0].gateway.in_progress(), 0);
    Ok(())
}

#[tokio::test]
async fn callers_beyond_the_nodes_bound_get_through_by_retrying() -> anyhow::Result<()> {
    let options = Options { requests_max: 8, ..Options::default() };
    let world = World::with(1, options).await?;
    world.servers[0].store.mood.lock().unwrap().delay = Duration::from_millis(2);
    let orders = world.client().await?.bucket("orders")?;
    let counts = join_all((0..64).map(|_| async { orders.increment("n", 1).await })).await;
    for count in counts {
        count?;
    }
    assert_eq!(world.servers[0].store.truth().applied.len(), 64);
    Ok(())
}

#[tokio::test]
async fn more_streams_than_allowed_are_refused() -> anyhow::Result<()> {
    let world = World::with(1, Options { streams_max: 1, ..Options::default() }).await?;
    let first = world.client().await?;
    first.bucket("orders")?.put("k", "v").await?;
    let channel = dial::channel(&world.servers[0].address, &world.authority.client()?)?;
    let second = KeyValueClient::new(channel).exchange(tokio_stream::pending()).await.unwrap_err();
    assert_eq!(refusal_of_status(&second).kind, RefusalKind::Retry);
    Ok(())
}

#[tokio::test]
async fn a_senseless_request_is_refused_by_itself_and_its_neighbours_are_answered() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let mut empty = get(1)?;
    empty.op = None;
    let mut nameless = get(2)?;
    nameless.bucket = "NOT A NAME".to_owned();
    let mut level = get(3)?;
    level.read = Some(v1::ReadOptions { level: 77, ..Default::default() });
    let mut token = get(4)?;
    token.session = Bytes::from_static(b"\xffnonsense");
    let mut answers = raw(&world, vec![batch(vec![empty, nameless, level, token, get(5)?])]).await?;
    let mut seen = std::collections::BTreeMap::new();
    while let Some(batch) = answers.message().await? {
        for response in batch.responses {
            let invalid = matches!(&response.outcome, Some(v1::response::Outcome::Refusal(refusal))
                if refusal_from_proto(refusal.clone()).kind == RefusalKind::Invalid);
            seen.insert(response.tag, invalid);
        }
    }
    assert_eq!(seen, [(1, true), (2, true), (3, true), (4, true), (5, false)].into());
    Ok(())
}

#[tokio::test]
async fn a_message_beyond_the_bound_ends_its_stream_with_a_clear_refusal() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let mut large = get(1)?;
    large.op = Some(v1::request::Op::Put(v1::Put {
        key: Bytes::from_static(b"k"),
        value: vec![0; 9 << 20].into(),
        ttl_ms: None,
    }));
    let mut answers = raw(&world, vec![batch(vec![large])]).await?;
    let status = answers.message().await.unwrap_err();
    let refusal = refusal_of_status(&status);
    assert_eq!(refusal.kind, RefusalKind::Invalid, "{refusal}");
    // The node lives on.
    world.client().await?.bucket("orders")?.put("k", "v").await?;
    Ok(())
}

#[tokio::test]
async fn a_batch_of_a_million_empty_requests_is_refused_without_making_room_for_them() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let many = vec![v1::Request::default(); 1_000_000];
    let mut answers = raw(&world, vec![batch(many)]).await?;
    let status = answers.message().await.unwrap_err();
    let refusal = refusal_of_status(&status);
    assert_eq!(refusal.kind, RefusalKind::Invalid);
    assert!(refusal.message.contains("a batch of requests may have at most 4096"), "{refusal}");
    Ok(())
}

#[tokio::test]
async fn a_page_that_does_not_fit_a_message_is_cut_and_values_that_do_not_fit_are_refused() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let orders = world.client().await?.bucket("orders")?;
    for number in 0..9 {
        orders.put(format!("big/{number}"), vec![number; 1 << 20]).await?;
    }
    let mut scan = orders.scan("big/");
    let (mut pages, mut items) = (0, Vec::new());
    while let Some(page) = scan.next_page().await? {
        pages += 1;
        items.extend(page.items);
    }
    assert_eq!(items.len(), 9);
    assert!(pages > 1);
    let refused = orders.multi_get((0..9).map(|number| format!("big/{number}"))).await.unwrap_err();
    assert_eq!(refused.kind, RefusalKind::Invalid);
    assert!(refused.message.contains("fewer keys"), "{refused}");
    assert_eq!(orders.multi_get((0..3).map(|number| format!("big/{number}"))).await?.found.len(), 3);
    Ok(())
}

#[tokio::test]
async fn bytes_that_are_no_message_end_the_stream_and_not_the_node() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    // A batch whose only request claims more bytes than follow.
    let broken = BrokenBatch(vec![0x12, 0x7f, 0x01]);
    let channel = dial::channel(&world.servers[0].address, &world.authority.client()?)?;
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await?;
    let path = http_path("/meridian.v1.KeyValue/Exchange");
    let codec = tonic_prost::ProstCodec::<BrokenBatch, v1::ResponseBatch>::default();
    let request = tonic::Request::new(tokio_stream::iter([broken]));
    let mut answers = grpc.streaming(request, path, codec).await?.into_inner();
    let status = answers.message().await.unwrap_err();
    assert_eq!(refusal_of_status(&status).kind, RefusalKind::Invalid, "{status}");
    world.client().await?.bucket("orders")?.put("k", "v").await?;
    Ok(())
}

fn http_path(path: &'static str) -> tonic::codegen::http::uri::PathAndQuery {
    tonic::codegen::http::uri::PathAndQuery::from_static(path)
}

/// Encodes as whatever bytes it was given.
#[derive(Debug, Default, Clone, PartialEq)]
struct BrokenBatch(Vec<u8>);

impl prost::Message for BrokenBatch {
    fn encode_raw(&self, buffer: &mut impl bytes::BufMut) {
        buffer.put_slice(&self.0);
    }

    fn merge_field(
        &mut self,
        _: u32,
        _: prost::encoding::WireType,
        _: &mut impl bytes::Buf,
        _: prost::encoding::DecodeContext,
    ) -> Result<(), prost::DecodeError> {
        Ok(())
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}
