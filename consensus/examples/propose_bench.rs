//! Measures a durable proposal beside the sync it can't do without: `propose_bench [DIR] [SECONDS]`.
//!
//! DIR must be on the disk in question (default: a temporary directory of its own in the working directory).
//! Prints one line per load; "x sync" is the median proposal over the median of a bare 4 KiB write + fdatasync.

#![allow(clippy::print_stdout, clippy::unwrap_used)] // it is a tool: printing is its purpose, and it may stop at any error

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use meridian_consensus::{
    Committed, Consensus, Group, Mark, Options, Persist, SnapshotSource, StateError, StateMachine,
};
use meridian_proto::dial::Dial;
use meridian_types::{GroupId, Lsn, NodeId};

const NODE: NodeId = NodeId(1);
const VALUE: [u8; 256] = [7; 256];

struct Nobody;

impl Dial for Nobody {
    fn channel(&self, _: NodeId) -> Option<tonic::transport::Channel> {
        None
    }
}

/// Counts: the cost of a store is not what is measured here.
#[derive(Default)]
struct Counter(Option<Mark>);

impl StateMachine for Counter {
    fn mark(&self) -> Result<Option<Mark>, StateError> {
        Ok(self.0.clone())
    }
    fn apply(&mut self, batch: &[Committed], mark: &Mark) -> Result<Vec<Bytes>, StateError> {
        self.0 = Some(mark.clone());
        Ok(vec![Bytes::new(); batch.len()])
    }
    fn persist(&mut self) -> Result<Persist, StateError> {
        let applied = self.0.as_ref().map_or(Lsn(0), |mark| mark.lsn);
        Ok(Box::new(move || Ok(applied)))
    }
    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, StateError> {
        Err(StateError::new("not needed here"))
    }
    fn restore(&mut self, _: &mut dyn Iterator<Item = Result<Bytes, StateError>>, _: &Mark) -> Result<(), StateError> {
        Err(StateError::new("not needed here"))
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let own = tempfile::tempdir_in(".").unwrap();
    let dir = args.next().map_or_else(|| own.path().to_owned(), PathBuf::from);
    let span = Duration::from_secs(args.next().and_then(|seconds| seconds.parse().ok()).unwrap_or(3));
    let sync = report("fdatasync", bare_sync(&dir, span), span, None);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let consensus = Consensus::open(Options::new(NODE, dir.join("bench")), Arc::new(Nobody)).await.unwrap();
        let mut groups = Vec::new();
        for id in 1..=16 {
            let group = consensus.start_group(GroupId(id), &[NODE], Box::new(Counter::default())).await.unwrap();
            group.leadership().wait_for(|now| now.leads).await.unwrap();
            groups.push(group);
        }
        for (name, writers, groups) in [
            ("1 writer", 1, &groups[..1]),
            ("64 writers, 1 group", 64, &groups[..1]),
            ("64 writers, 16 groups", 64, &groups[..]),
        ] {
            let before = cpu();
            let times = propose(groups, writers, span).await;
            let spent = cpu() - before;
            println!("{:>27.1} µs of CPU per proposal", spent.as_secs_f64() * 1e6 / times.len() as f64);
            report(name, times, span, Some(sync));
        }
        let before = cpu();
        tokio::time::sleep(Duration::from_secs(3)).await;
        println!("16 groups at rest       {:>8.2} % of a core", (cpu() - before).as_secs_f64() / 3.0 * 100.0);
        let start = Instant::now();
        for _ in 0..100_000 {
            groups[0].read_barrier().await.unwrap();
        }
        println!("read barrier            {:>8.0} ns", start.elapsed().as_nanos() as f64 / 100_000.0);
        consensus.shutdown(Duration::from_secs(1)).await;
    });
}

/// CPU time of this process so far; the kernel counts it in hundredths of a second.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    Duration::from_millis(10 * (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()))
}

fn bare_sync(dir: &Path, span: Duration) -> Vec<Duration> {
    let file = File::create(dir.join("bare")).unwrap();
    file.write_all_at(&vec![0; 64 << 20], 0).unwrap();
    file.sync_all().unwrap();
    let start = Instant::now();
    let mut times = Vec::new();
    while start.elapsed() < span {
        let begun = Instant::now();
        file.write_all_at(&[1; 4096], (times.len() as u64 % 16_000) * 4096).unwrap();
        file.sync_data().unwrap();
        times.push(begun.elapsed());
    }
    times
}

async fn propose(groups: &[Group], writers: usize, span: Duration) -> Vec<Duration> {
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..writers {
        let group = groups[writer % groups.len()].clone();
        tasks.spawn(async move {
            let start = Instant::now();
            let mut times = Vec::new();
            while start.elapsed() < span {
                let begun = Instant::now();
                group.propose(Bytes::from_static(&VALUE)).unwrap().await.unwrap();
                times.push(begun.elapsed());
            }
            times
        });
    }
    tasks.join_all().await.concat()
}

fn report(name: &str, mut times: Vec<Duration>, span: Duration, sync: Option<Duration>) -> Duration {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    let ratio =
        sync.map_or_else(String::new, |sync| format!("{:>7.2} x sync", at(0.5).as_secs_f64() / sync.as_secs_f64()));
    println!(
        "{name:<22} {:>8.0}/s  p50 {:>7.1} µs  p99 {:>8.1} µs {ratio}",
        times.len() as f64 / span.as_secs_f64(),
        at(0.5).as_secs_f64() * 1e6,
        at(0.99).as_secs_f64() * 1e6
    );
    at(0.5)
}
