//! Who is let in, and what becomes of those who lie or stammer (SEC-1, RES-1).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use meridian_replicator_core::message::{FRAME_MESSAGE_BYTES_MAX, Hello, Stop, ToSource, ToTarget, Welcome};
use meridian_replicator_quic::{Options, Parts, Service, StartError, TlsPem};
use meridian_types::{ClusterId, Lane, LaneState, NodeId, RegionId, ShardId, Topology};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use s2n_quic::provider::tls::rustls as quic_tls;
use s2n_quic::stream::BidirectionalStream;
use s2n_quic::{Client, client::Connect};
use tokio::sync::watch;

use crate::world::{
    Authority, MemoryLog, MemorySink, Place, Running, entry, eventually, node_id, node_name, region_name, topology,
};

fn place(authority: &Authority, region: u16, topology: &watch::Receiver<Arc<Topology>>) -> Place {
    Place {
        region,
        tls: authority.node(region_name(region).as_str(), node_name(region).as_str()),
        log: MemoryLog::new(1),
        sink: MemorySink::new(true),
        topology: topology.clone(),
        addresses: Arc::default(),
    }
}

async fn until_connecting_because(running: &Running, part: &str) {
    eventually(part, || {
        let lanes = running.handle.lanes();
        lanes.iter().any(|lane| matches!(&lane.state, LaneState::Connecting { reason } if reason.contains(part)))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_authority_is_refused_both_ways() {
    let (_keep, topology) = watch::channel(Arc::new(topology(2, 1)));
    let east = place(&Authority::new(), 1, &topology);
    let west = Place { addresses: Arc::clone(&east.addresses), ..place(&Authority::new(), 2, &topology) };
    let (sending, receiving) = (east.start(|_| ()), west.start(|_| ()));
    east.log.append(0, [entry(1, crate::world::SYNC, 10)]);
    eventually("the refusal is shown", || {
        let lanes = sending.handle.lanes();
        lanes.iter().any(|lane| matches!(&lane.state, LaneState::Connecting { reason } if !reason.is_empty()))
    })
    .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(west.sink.entries(1, 0, Lane::Sync).is_empty());
    sending.stop().await;
    receiving.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_names_another_node_does_not_start() {
    let (_keep, topology) = watch::channel(Arc::new(topology(2, 1)));
    let mut east = place(&Authority::new(), 1, &topology);
    east.tls = Authority::new().node("eu-west", "eu-west-1");
    let options = Options::new(node_name(1), region_name(1), ([127, 0, 0, 1], 0).into());
    let parts = |tls: TlsPem| Parts {
        source: Arc::clone(&east.log) as _,
        sink: Arc::clone(&east.sink) as _,
        topology: topology.clone(),
        addresses: Arc::new(|_: NodeId| None),
        tls,
    };
    let refused = Service::bind(options.clone(), parts(east.tls.clone())).map(|_| ());
    assert!(matches!(refused, Err(StartError::Identity { .. })), "{refused:?}");
    let nonsense = TlsPem { ca: b"x".to_vec(), cert: b"y".to_vec(), key: b"z".to_vec() };
    let refused = Service::bind(options, parts(nonsense)).map(|_| ());
    assert!(matches!(refused, Err(StartError::Tls(_))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_found_where_another_was_expected_is_refused_with_a_reason() {
    let authority = Authority::new();
    let (_keep, topology) = watch::channel(Arc::new(topology(3, 1)));
    let east = place(&authority, 1, &topology);
    let south = Place { addresses: Arc::clone(&east.addresses), ..place(&authority, 3, &topology) };
    let (sending, receiving) = (east.start(|_| ()), south.start(|_| ()));
    // The west's address leads to the south.
    east.addresses.lock().unwrap().insert(node_id(2), receiving.handle.local_address());
    until_connecting_because(&sending, "its certificate is of node `ap-south-1` in region `ap-south`").await;
    sending.stop().await;
    receiving.stop().await;
}

/// A peer that speaks QUIC and TLS properly and then says what it likes.
struct Stranger {
    client: Client,
    connection: Option<s2n_quic::Connection>,
}

impl Stranger {
    async fn connect(tls: &TlsPem, to: std::net::SocketAddr) -> Stranger {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&tls.ca).unwrap()).unwrap();
        let chain = vec![CertificateDer::from_pem_slice(&tls.cert).unwrap()];
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(&tls.key).unwrap())
            .unwrap();
        config.alpn_protocols = vec![b"meridian-replication/1".to_vec()];
        let client = Client::builder()
            .with_tls(quic_tls::Client::from(Arc::new(config)))
            .unwrap()
            .with_io("127.0.0.1:0")
            .unwrap()
            .start()
            .unwrap();
        let connection = client.connect(Connect::new(to).with_server_name("meridian")).await.unwrap();
        Stranger { client, connection: Some(connection) }
    }

    async fn stream(&mut self) -> BidirectionalStream {
        self.connection.as_mut().unwrap().open_bidirectional_stream().await.unwrap()
    }

    async fn greet(&mut self, hello: &Hello) -> Welcome {
        let mut stream = self.stream().await;
        stream.send(hello.encode()).await.unwrap();
        Welcome::decode(message(&mut stream).await.unwrap()).unwrap()
    }
}

/// The next message, or `None` at the end of the stream.
async fn message(stream: &mut BidirectionalStream) -> Option<Bytes> {
    let mut all = bytes::BytesMut::new();
    loop {
        if let Some(length) = all.first_chunk::<4>().map(|length| u32::from_le_bytes(*length) as usize)
            && all.len() >= 4 + length
        {
            return Some(all.freeze().slice(4..4 + length));
        }
        all.extend_from_slice(&stream.receive().await.ok()??);
    }
}

fn hello(region: u16) -> Hello {
    Hello { cluster: ClusterId(7), region: RegionId(region), node: node_id(region), expected: node_id(1) }
}

async fn attacked() -> (Authority, Running, watch::Sender<Arc<Topology>>) {
    let authority = Authority::new();
    let (keep, topology) = watch::channel(Arc::new(topology(3, 1)));
    // A stranger on a busy machine may be silent for a while.
    let victim = place(&authority, 1, &topology).start(|options| options.transport.idle_timeout_ms = 30_000);
    (authority, victim, keep)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_claims_another_region_is_told_why_it_is_refused_sec_1() {
    let (authority, victim, _keep) = attacked().await;
    let tls = authority.node("eu-west", "eu-west-1");
    let claims = [
        (Hello { region: RegionId(3), ..hello(2) }, "claims to speak for region `ap-south`"),
        (Hello { node: node_id(3), ..hello(2) }, "claims to be node"),
        (Hello { cluster: ClusterId(8), ..hello(2) }, "belongs to cluster"),
        (Hello { expected: node_id(3), ..hello(2) }, "looks for node"),
    ];
    for (claim, why) in claims {
        let mut stranger = Stranger::connect(&tls, victim.handle.local_address()).await;
        match stranger.greet(&claim).await {
            Welcome::Refused { reason } => assert!(reason.contains(why), "{reason}"),
            accepted @ Welcome::Accepted { .. } => panic!("{accepted:?}"),
        }
    }
    let client = {
        let mut stranger = Stranger::connect(&tls, victim.handle.local_address()).await;
        assert!(matches!(stranger.greet(&hello(2)).await, Welcome::Accepted { .. }), "the honest one is let in");
        // Another region's lane on the honest connection.
        let mut stream = stranger.stream().await;
        let open = ToTarget::Open { source: RegionId(3), shard: ShardId(0), lane: Lane::Sync };
        stream.send(open.encode().0).await.unwrap();
        let answer = ToSource::decode(message(&mut stream).await.unwrap());
        assert!(matches!(answer, Ok(ToSource::Stop(Stop::Refused { .. }))), "{answer:?}");
        stranger.client
    };
    drop(client);
    victim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_and_oversized_messages_close_the_stream_with_a_reason_and_nothing_else() {
    let (authority, victim, _keep) = attacked().await;
    let tls = authority.node("eu-west", "eu-west-1");
    let mut stranger = Stranger::connect(&tls, victim.handle.local_address()).await;
    assert!(matches!(stranger.greet(&hello(2)).await, Welcome::Accepted { .. }));
    let open = || ToTarget::Open { source: RegionId(2), shard: ShardId(0), lane: Lane::Sync }.encode().0;
    let frame = |frame: &'static [u8]| {
        let (prefix, frame) = ToTarget::Frame { round: 1, frame: Bytes::from_static(frame) }.encode();
        [prefix, frame].concat()
    };
    let too_long = u32::try_from(FRAME_MESSAGE_BYTES_MAX + 1).unwrap().to_le_bytes().to_vec();
    for bad in [too_long, vec![0, 0, 0, 0], vec![3, 0, 0, 0, 9, 9, 9], frame(b"no frame"), frame(&[0; 60])] {
        let mut stream = stranger.stream().await;
        stream.send(open()).await.unwrap();
        let first = ToSource::decode(message(&mut stream).await.unwrap()).unwrap();
        assert!(matches!(first, ToSource::Position { .. }), "{first:?}");
        stream.send(Bytes::from(bad.clone())).await.unwrap();
        let mut last = None;
        while let Some(next) = message(&mut stream).await {
            last = Some(ToSource::decode(next).unwrap());
            if matches!(last, Some(ToSource::Stop(_))) {
                break;
            }
        }
        assert!(matches!(last, Some(ToSource::Stop(Stop::Refused { .. }))), "{bad:?}: {last:?}");
    }
    let mut again = stranger.stream().await;
    again.send(open()).await.unwrap();
    assert!(message(&mut again).await.is_some(), "the connection lives on");
    victim.stop().await;
}
