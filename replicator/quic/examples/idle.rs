//! Measures what two idle replicators cost: `cargo run --release --example idle -- [seconds]`. Three regions of
//! 16 shards in one process, probes every 100 ms in every lane a bucket uses.

#![allow(clippy::unwrap_used, clippy::print_stdout, dead_code, unreachable_pub, missing_docs)] // a measurement, not the product

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

#[path = "../tests/it/world.rs"]
mod world;

use world::{Authority, MemoryLog, MemorySink, Place, topology};

/// CPU seconds of this process, from /proc: user and system time in hundredths.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

#[tokio::main]
async fn main() {
    let seconds = std::env::args().nth(1).map_or(10, |arg| arg.parse().unwrap());
    let authority = Authority::new();
    let (_keep, topology) = watch::channel(Arc::new(topology(3, 16)));
    let addresses = Arc::default();
    let mut running = Vec::new();
    for region in 1..=3 {
        let place = Place {
            region,
            tls: authority.node(world::region_name(region).as_str(), world::node_name(region).as_str()),
            log: MemoryLog::new(16),
            sink: MemorySink::new(false),
            topology: topology.clone(),
            addresses: Arc::clone(&addresses),
        };
        running.push(place.start(|_| ()));
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = cpu_seconds();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let share = (cpu_seconds() - before) / seconds as f64 * 100.0;
    println!("three idle nodes: {share:.1} % of a core, {:.1} % each", share / 3.0);
    let frames: u64 = running[0].handle.lanes().iter().map(|lane| lane.frames).sum();
    println!("frames and heartbeats from the first: {frames}");
    for running in running {
        running.stop().await;
    }
}
