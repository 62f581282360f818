//! Measures the road alone: SDK, gRPC over TLS, gateway, against a store that answers at once.
//!
//! `cargo run --release -p meridian-client --example exchange_bench -- --callers 1,64 --seconds 3`
//! Both sides run in this process, so the figures are for client and server sharing the machine's cores.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use hdrhistogram::Histogram;
use meridian_client::{Client, TlsMaterial};
use meridian_gateway::{Caller, Control, Digests, Gateway, Lags, Options, Store};
use meridian_proto::dial;
use meridian_types::{
    Bucket, BucketChange, BucketId, BucketName, BucketSpec, Durability, Epoch, Estimate, EventPage, EventQuery,
    FailoverSpec, Freshness, Hlc, Labels, MemberChange, MembersChange, NodeId, NodeName, NodeStatus, Operation,
    OperationId, Outcome, Plan, PlanId, Refusal, RefusalKind, RegionId, RegionName, Request, Response, Selection,
    SessionToken, ShardFacts, SwitchoverSpec, Topology, Version, request::Found,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;

#[derive(Parser)]
struct Arguments {
    /// How many callers run at a time; several runs after one another.
    #[arg(long, value_delimiter = ',', default_value = "1,64,256")]
    callers: Vec<usize>,
    /// Seconds per run.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Bytes of a value.
    #[arg(long, default_value_t = 256)]
    value: usize,
    /// Puts instead of gets.
    #[arg(long)]
    puts: bool,
}

/// Answers at once.
struct NoStore {
    value: bytes::Bytes,
}

impl Store for NoStore {
    async fn execute(&self, request: Request, _: Caller) -> Result<Response, Refusal> {
        let version = Version { hlc: Hlc::from_millis(1), region: RegionId(1) };
        let (outcome, durability) = match request {
            Request::Read { .. } => {
                (Outcome::Value(Some(Found { value: self.value.clone(), version, expires_at_ms: None })), None)
            }
            Request::Write { .. } => (Outcome::Written { version }, Some(Durability { regions: 1, nodes: 1 })),
        };
        let freshness = Freshness { hlc: version.hlc, staleness_ms: Some(0) };
        let session = SessionToken::default();
        Ok(Response { region: RegionId(1), epoch: Epoch(1), outcome, freshness, durability, session })
    }
}

struct NoControl;

fn none<T>() -> Result<T, Refusal> {
    Err(Refusal::new(RefusalKind::Invalid, "the bench has no cluster"))
}

impl Control for NoControl {
    fn node(&self) -> NodeId {
        NodeId(1)
    }
    fn topology(&self) -> Arc<Topology> {
        Arc::default()
    }
    async fn create_bucket(&self, _: BucketSpec, _: bool, _: Caller) -> Result<Bucket, Refusal> {
        none()
    }
    async fn delete_bucket(&self, _: BucketName, _: bool, _: Caller) -> Result<(), Refusal> {
        none()
    }
    async fn set_labels(&self, _: BucketName, _: Labels, _: Vec<String>, _: Caller) -> Result<Bucket, Refusal> {
        none()
    }
    async fn set_bucket(&self, _: BucketName, _: BucketChange, _: bool, _: Caller) -> Result<Bucket, Refusal> {
        none()
    }
    async fn digests(&self, _: Option<BucketName>) -> Result<Digests, Refusal> {
        none()
    }
    async fn lag(&self, _: Option<BucketName>) -> Result<Lags, Refusal> {
        none()
    }
    async fn node_status(&self) -> Result<NodeStatus, Refusal> {
        none()
    }
    async fn switchover(&self, _: SwitchoverSpec, _: OperationId, _: bool, _: Caller) -> Result<Arc<Plan>, Refusal> {
        none()
    }
    async fn failover_estimate(
        &self,
        _: Selection,
        _: Option<RegionName>,
        _: Option<RegionName>,
    ) -> Result<Estimate, Refusal> {
        none()
    }
    fn failover_facts(&self, _: Vec<BucketId>, _: Option<RegionId>) -> Result<(RegionId, Vec<ShardFacts>), Refusal> {
        none()
    }
    async fn failover(&self, _: FailoverSpec, _: OperationId, _: bool, _: Caller) -> Result<Arc<Plan>, Refusal> {
        none()
    }
    fn operations(&self, _: Option<PlanId>) -> Result<Vec<Operation>, Refusal> {
        none()
    }
    fn events(&self, _: &EventQuery) -> EventPage {
        EventPage::default()
    }
    async fn abort(&self, _: PlanId, _: String, _: Caller) -> Result<Operation, Refusal> {
        none()
    }
    async fn change_members(
        &self,
        _: RegionName,
        _: MembersChange,
        _: bool,
        _: Caller,
    ) -> Result<(RegionId, MemberChange), Refusal> {
        none()
    }
    async fn remove_node(&self, _: NodeName, _: bool, _: Caller) -> Result<(), Refusal> {
        none()
    }
    async fn finalize_upgrade(&self, _: bool, _: Caller) -> Result<u8, Refusal> {
        none()
    }
}

fn certificates() -> Result<(TlsMaterial, TlsMaterial)> {
    let ca_key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::new(Vec::new())?;
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key)?.pem();
    let issuer = rcgen::Issuer::from_params(&params, &ca_key);
    let issue = |uri: &str| -> Result<TlsMaterial> {
        let key = rcgen::KeyPair::generate()?;
        let mut params = rcgen::CertificateParams::new(vec!["meridian".to_owned()])?;
        params.subject_alt_names.push(rcgen::SanType::URI(uri.try_into()?));
        let cert = params.signed_by(&key, &issuer)?.pem();
        Ok(TlsMaterial::from_pem(ca.as_bytes(), cert.as_bytes(), key.serialize_pem().as_bytes())?)
    };
    Ok((issue("meridian://node/us-east/us-east-1")?, issue("meridian://client/bench")?))
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let (node, client) = certificates()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("https://{}", listener.local_addr()?);
    let value = bytes::Bytes::from(vec![b'v'; arguments.value]);
    let gateway = Gateway::new(Options::default(), Arc::new(NoStore { value: value.clone() }), Arc::new(NoControl));
    let server = dial::server(&node)?.add_service(gateway.key_value()).add_service(gateway.cluster());
    let serving = tokio::spawn(server.serve_with_incoming(incoming(listener)));
    let client = Client::builder().endpoints([address]).discover(false).tls(client).connect().await?;
    for callers in &arguments.callers {
        run(&client, &arguments, *callers, &value).await?;
    }
    serving.abort();
    Ok(())
}

fn incoming(listener: TcpListener) -> impl tokio_stream::Stream<Item = std::io::Result<tokio::net::TcpStream>> {
    use tokio_stream::StreamExt;
    TcpListenerStream::new(listener).map(|stream| {
        let stream = stream?;
        stream.set_nodelay(true)?;
        Ok(stream)
    })
}

async fn run(client: &Client, arguments: &Arguments, callers: usize, value: &bytes::Bytes) -> Result<()> {
    let (began, until) = (Instant::now(), Instant::now() + Duration::from_secs(arguments.seconds));
    let mut running = tokio::task::JoinSet::new();
    for caller in 0..callers {
        let (bucket, value, puts) = (client.bucket("bench")?, value.clone(), arguments.puts);
        running.spawn(async move {
            let mut micros = Histogram::<u64>::new(3)?;
            let key = bytes::Bytes::from(format!("key/{caller}"));
            while Instant::now() < until {
                let sent = Instant::now();
                if puts {
                    bucket.put(&key, &value).await?;
                } else {
                    bucket.get(&key).await?;
                }
                micros.record(u64::try_from(sent.elapsed().as_nanos() / 100)?)?;
            }
            anyhow::Ok(micros)
        });
    }
    let mut all = Histogram::<u64>::new(3)?;
    while let Some(micros) = running.join_next().await {
        all.add(micros.context("a caller panicked")??)?;
    }
    let per_second = all.len() as f64 / began.elapsed().as_secs_f64();
    let micros = |quantile: f64| all.value_at_quantile(quantile) as f64 / 10.0;
    #[allow(clippy::print_stdout)] // a bench that prints its result
    {
        println!(
            "{callers:>4} callers: {per_second:>9.0} req/s   p50 {:>7.1} µs   p99 {:>7.1} µs   p99.9 {:>7.1} µs",
            micros(0.5),
            micros(0.99),
            micros(0.999)
        );
    }
    Ok(())
}
