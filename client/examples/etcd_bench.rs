//! A closed loop of puts or linearizable gets against etcd, for figures of a peer in the same run (`benches/region-of-three.sh`).
//!
//! `cargo run --release -p meridian-client --example etcd_bench -- --endpoints http://127.0.0.1:2379 --clients 64 --seconds 4`
//! Clients are spread over the endpoints, each endpoint over one HTTP/2 connection, as Meridian's SDK has it; without TLS, which the
//! SDK does not go without.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use futures::future::try_join_all;
use hdrhistogram::Histogram;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

#[derive(Parser)]
struct Arguments {
    /// Where etcd's members listen for clients.
    #[arg(long, value_delimiter = ',', default_value = "http://127.0.0.1:2379")]
    endpoints: Vec<String>,
    /// How many clients have one request under way each.
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// For how long, in seconds.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Bytes of a value.
    #[arg(long, default_value_t = 256)]
    value_size: usize,
    /// How many keys there are.
    #[arg(long, default_value_t = 10_000)]
    keys: u64,
    /// Linearizable gets instead of puts.
    #[arg(long)]
    gets: bool,
}

/// `etcdserverpb.PutRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct Put {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `etcdserverpb.RangeRequest` of one key, linearizable as it is by default.
#[derive(Clone, PartialEq, prost::Message)]
struct Range {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

/// What is read of an answer: whatever is not here is skipped.
#[derive(Clone, PartialEq, prost::Message)]
struct Answer {}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut channels = Vec::new();
    for endpoint in &arguments.endpoints {
        let endpoint = Endpoint::from_shared(endpoint.clone())?.tcp_nodelay(true);
        channels.push(endpoint.connect().await.with_context(|| format!("connecting to {}", endpoint.uri()))?);
    }
    let until = Instant::now() + Duration::from_secs(arguments.seconds);
    let client = |client: usize| one(&arguments, client, channels[client % channels.len()].clone(), until);
    let began = Instant::now();
    let mut all = Histogram::<u64>::new(3)?;
    for histogram in try_join_all((0..arguments.clients).map(client)).await? {
        all.add(histogram)?;
    }
    tell(&all, began.elapsed());
    Ok(())
}

#[allow(clippy::print_stdout)] // a bench that prints its result
fn tell(all: &Histogram<u64>, took: Duration) {
    let quantile = |quantile| Duration::from_micros(all.value_at_quantile(quantile)).as_secs_f64() * 1000.0;
    println!(
        "{:.0} ops/s, p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms",
        all.len() as f64 / took.as_secs_f64(),
        quantile(0.5),
        quantile(0.99),
        quantile(0.999)
    );
}

/// One client, until time is over; the microseconds that each request took.
async fn one(arguments: &Arguments, client: usize, channel: Channel, until: Instant) -> Result<Histogram<u64>> {
    let mut grpc = Grpc::new(channel);
    let mut histogram = Histogram::new(3)?;
    let mut number = client as u64;
    while Instant::now() < until {
        // Steps of a prime: all keys come, in no order that etcd could know.
        number = number.wrapping_add(7919);
        let key = format!("key-{}", number % arguments.keys).into_bytes();
        let asked = Instant::now();
        grpc.ready().await?;
        if arguments.gets {
            let path = PathAndQuery::from_static("/etcdserverpb.KV/Range");
            let _: tonic::Response<Answer> =
                grpc.unary(tonic::Request::new(Range { key }), path, ProstCodec::default()).await?;
        } else {
            let path = PathAndQuery::from_static("/etcdserverpb.KV/Put");
            let put = Put { key, value: vec![7; arguments.value_size] };
            let _: tonic::Response<Answer> = grpc.unary(tonic::Request::new(put), path, ProstCodec::default()).await?;
        }
        histogram.record(u64::try_from(asked.elapsed().as_micros())?)?;
    }
    Ok(histogram)
}
