//! Measures a backlog over an emulated WAN: `cargo run --release --example wan -- [seconds] [MiB] [rtt ms] [Mbit/s]`.
//! Two real replicators with real TLS on this machine, between them a forwarder with delay, loss and a bottleneck.

#![allow(clippy::unwrap_used, clippy::print_stdout, dead_code, unreachable_pub, missing_docs)] // a measurement, not the product

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use meridian_replicator_quic::{Congestion, Options};
use tokio::sync::watch;

#[path = "../tests/it/wan.rs"]
mod wan;
#[path = "../tests/it/world.rs"]
mod world;

use wan::{Path, Wan};
use world::{ASYNC, Authority, MemoryLog, MemorySink, Place, entry, node_id, topology};

const SHARDS: u16 = 16;

fn main() {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<f64>().unwrap());
    let seconds = args.next().unwrap_or(30.0);
    let mib = args.next().unwrap_or(1024.0);
    let rtt_ms = args.next().unwrap_or(80.0);
    let mbit = args.next().unwrap_or(400.0);
    println!("| congestion | connections | loss % | MiB/s | % of link | MiB moved | s | dropped % | load |");
    println!("|---|---|---|---|---|---|---|---|---|");
    let only = std::env::var("WAN_ONLY").unwrap_or_default();
    for loss in [0.0, 0.001, 0.01] {
        for (congestion, connections) in
            [(Congestion::Bbr, 1), (Congestion::Bbr, 4), (Congestion::Cubic, 1), (Congestion::Cubic, 4)]
        {
            let name = format!("{congestion:?}-{connections}-{loss}").to_lowercase();
            if !name.contains(&only) {
                continue;
            }
            let rate = mbit * 1e6 / 8.0;
            let one_way = Duration::from_secs_f64(rtt_ms / 2000.0);
            let path = Path { one_way, rate, queue: rate * rtt_ms / 1000.0, loss };
            // A runtime of its own, so that nothing of a run lives on into the next.
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            runtime.block_on(measure(congestion, connections, path, seconds, (mib * 1048576.0) as u64));
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

async fn measure(congestion: Congestion, connections: usize, path: Path, seconds: f64, bytes: u64) {
    let authority = Authority::new();
    let (_keep, topology) = watch::channel(Arc::new(topology(2, SHARDS)));
    let addresses = Arc::default();
    let place = |region: u16, name: &str| Place {
        region,
        tls: authority.node(name, &format!("{name}-1")),
        log: MemoryLog::new(SHARDS),
        sink: MemorySink::new(false),
        topology: topology.clone(),
        addresses: Arc::clone(&addresses),
    };
    let (east, west) = (place(1, "us-east"), place(2, "eu-west"));
    let piece = 64 << 10;
    for shard in 0..SHARDS {
        let count = bytes / u64::from(SHARDS) / piece;
        // The same bytes again and again: lz4 works within a frame of 1 MiB over pieces that do not repeat in it.
        let pieces: Vec<_> = (0..17).map(|at| entry(u64::from(shard) * 100 + at, ASYNC, piece as usize)).collect();
        east.log.append(shard, (0..count).map(|at| pieces[at as usize % pieces.len()].clone()));
    }
    let tune = |options: &mut Options| {
        options.transport.congestion = congestion;
        options.transport.async_connections = connections;
        options.transport.idle_timeout_ms = 5_000;
    };
    let receiving = west.start(tune);
    let wan = Wan::to(receiving.handle.local_address(), path);
    east.addresses.lock().unwrap().insert(node_id(2), wan.address);
    let sending = east.start(tune);

    let moved = |sink: &MemorySink| sink.bytes.load(Ordering::Relaxed);
    while moved(&west.sink) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let started = Instant::now();
    while started.elapsed().as_secs_f64() < seconds && moved(&west.sink) < bytes - bytes / 100 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let took = started.elapsed().as_secs_f64();
    let mib = moved(&west.sink) as f64 / 1048576.0;
    let (passed, lost) = (wan.forwarded.load(Ordering::Relaxed), wan.dropped.load(Ordering::Relaxed));
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default().to_owned();
    println!(
        "| {congestion:?} | {connections} | {} | {:.1} | {:.0} | {mib:.0} | {took:.1} | {:.2} | {load} |",
        path.loss * 100.0,
        mib / took,
        mib / took / (path.rate / 1048576.0) * 100.0,
        lost as f64 * 100.0 / (passed + lost) as f64
    );
    sending.stop().await;
    receiving.stop().await;
}
