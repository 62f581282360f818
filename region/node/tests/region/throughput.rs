//! A measurement, not a check: what one node does without a network in front of it. Run it alone, optimised:
//! `cargo test --release -p meridian-region-node --test region -- --ignored --nocapture throughput`

use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_types::*;

use crate::world::*;

const SECONDS: u64 = 4;

async fn measure(name: &str, region: &Arc<RegionUnderTest>, clients: u64, request: fn(u64, u64) -> Request) {
    let until = Instant::now() + Duration::from_secs(SECONDS);
    let cpu_before = cpu_ms();
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..clients {
        let region = region.clone();
        tasks.spawn(async move {
            let mut took = Vec::new();
            for round in 0.. {
                let begun = Instant::now();
                if begun >= until {
                    break;
                }
                region.execute(request(client, round)).await.unwrap();
                took.push(begun.elapsed());
            }
            took
        });
    }
    let mut took: Vec<Duration> = tasks.join_all().await.into_iter().flatten().collect();
    took.sort();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    let rate = took.len() as u64 / SECONDS;
    let cpu_us = (cpu_ms() - cpu_before) * 1000 / took.len() as u64;
    eprintln!(
        "{name:24} {clients:3} clients {rate:7}/s  {cpu_us:4} µs CPU each  p50 {:?}  p99 {:?}  p99.9 {:?}",
        at(0.5),
        at(0.99),
        at(0.999)
    );
}

/// Processor time this process has used, user and system, in milliseconds.
fn cpu_ms() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // Fields 14 and 15 of proc(5), in ticks of 10 ms.
    (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) * 10
}

fn name(client: u64, round: u64) -> String {
    format!("key-{:06}", (client * 7919 + round * 104_729) % 100_000)
}

fn put_async(client: u64, round: u64) -> Request {
    let id = RequestId { client: ClientId(u128::from(client) + 1), sequence: round + 1 };
    let value = Value::new(vec![b'x'; 256]).unwrap();
    let mut request = identified(ASYNC, Write::Put { key: key(&name(client, round)), value, ttl_ms: None }, id);
    if let Request::Write { lowest_outstanding, .. } = &mut request {
        *lowest_outstanding = round + 1;
    }
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: run it alone and optimised"]
async fn throughput_of_one_node() {
    let dir = tempfile::tempdir_in(std::env::var("MERIDIAN_BENCH_DIR").unwrap_or_else(|_| "/tmp".into())).unwrap();
    let region = Arc::new(RegionUnderTest::start_with(dir.path(), A, &Plane::new(), Default::default()).await);
    measure("put", &region, 1, put_async).await;
    measure("put", &region, 64, |client, round| put_async(client + 100, round)).await;
    for level in ["strong", "eventual"] {
        let request: fn(u64, u64) -> Request = match level {
            "strong" => |client, round| get(ASYNC, &name(client, round), ReadLevel::Strong),
            _ => |client, round| get(ASYNC, &name(client, round), ReadLevel::Eventual),
        };
        measure(&format!("get {level}"), &region, 1, request).await;
        measure(&format!("get {level}"), &region, 64, request).await;
    }
}
