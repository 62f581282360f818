//! Groups with a single voter: what every shard of a one-node region is.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use meridian_consensus::{Consensus, Group, OpenError, Options, ProposeError, ReadLogError};
use meridian_proto::dial::Dial;
use meridian_types::{GroupId, Lsn, NodeId};
use tonic::transport::Channel;

use super::ledger::{Book, Ledger};
use super::world::{PATIENCE, copy_live};

const NODE: NodeId = NodeId(1);
const GROUP: GroupId = GroupId(1);

struct Nobody;

impl Dial for Nobody {
    fn channel(&self, _: NodeId) -> Option<Channel> {
        None
    }
}

fn options(dir: &Path) -> Options {
    let mut options = Options::new(NODE, dir.join("consensus"));
    options.log.segment_bytes = 8 << 20;
    options.persist_every = Duration::from_millis(100);
    options
}

async fn start(dir: &Path) -> (Consensus, Group, Arc<Mutex<Book>>) {
    let consensus = Consensus::open(options(dir), Arc::new(Nobody)).await.unwrap();
    let ledger = Ledger::open(dir, "group");
    let book = Arc::clone(&ledger.book);
    let group = consensus.start_group(GROUP, &[NODE], Box::new(ledger)).await.unwrap();
    group.leadership().wait_for(|now| now.leads).await.unwrap();
    (consensus, group, book)
}

fn lines(book: &Mutex<Book>) -> Vec<Bytes> {
    book.lock().unwrap().lines.iter().map(|(_, line)| line.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn proposals_are_applied_in_the_order_they_were_made_and_survive_a_restart_dur_1() {
    let dir = tempfile::tempdir().unwrap();
    let (consensus, group, _) = start(dir.path()).await;
    let proposals: Vec<_> = (0..200).map(|n| group.propose(Bytes::from(format!("line {n}"))).unwrap()).collect();
    let mut last = Lsn(0);
    for (n, proposal) in proposals.into_iter().enumerate() {
        let applied = proposal.await.unwrap();
        assert_eq!(applied.result, n.to_string());
        assert!(applied.lsn > last);
        last = applied.lsn;
    }
    assert!(group.read_barrier().await.unwrap() >= last);
    drop(group);
    consensus.shutdown(Duration::from_secs(1)).await;

    let (consensus, group, book) = start(dir.path()).await;
    let expected: Vec<_> = (0..200).map(|n| Bytes::from(format!("line {n}"))).collect();
    assert_eq!(lines(&book), expected, "all of it, once");
    let slice = group.read_log(Lsn(0), 1 << 20).await.unwrap();
    assert_eq!(slice.entries.iter().map(|entry| entry.payload.clone()).collect::<Vec<_>>(), expected);
    consensus.shutdown(Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_the_directory_at_any_moment_has_everything_acknowledged_dur_1() {
    let dir = tempfile::tempdir().unwrap();
    let (consensus, group, _) = start(dir.path()).await;
    for n in 0..50 {
        group.propose(Bytes::from(format!("line {n}"))).unwrap().await.unwrap();
    }
    // The kill: nothing is closed, nothing is synced for the copy. The state was never persisted.
    let copy = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("consensus/log"), copy.path().join("consensus/log"));
    copy_live(&from, &to);
    let (survivor, _, book) = start(copy.path()).await;
    assert_eq!(lines(&book).len(), 50);
    survivor.shutdown(Duration::ZERO).await;
    consensus.shutdown(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_purged_only_below_what_the_state_machine_made_durable() {
    let dir = tempfile::tempdir().unwrap();
    let (consensus, group, _) = start(dir.path()).await;
    let mut last = Lsn(0);
    for _ in 0..600 {
        last = group.propose(Bytes::from_static(b"line")).unwrap().await.unwrap().lsn;
    }
    group.allow_purge(Lsn(last.0 - 10));
    let trimmed = async {
        loop {
            match group.read_log(Lsn(0), 100).await {
                Err(ReadLogError::Trimmed { oldest }) => return oldest,
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let oldest = tokio::time::timeout(PATIENCE, trimmed).await.unwrap();
    assert!(oldest <= last);
    drop(group);
    consensus.shutdown(Duration::from_secs(1)).await;
    let (consensus, _, book) = start(dir.path()).await;
    assert_eq!(lines(&book).len(), 600);
    consensus.shutdown(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_node_in_one_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (consensus, ..) = start(dir.path()).await;
    let second = Consensus::open(options(dir.path()), Arc::new(Nobody)).await;
    assert!(matches!(second.err(), Some(OpenError::Locked { .. })));
    consensus.shutdown(Duration::ZERO).await;
    let (consensus, ..) = start(dir.path()).await;
    consensus.shutdown(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_state_machine_is_fatal_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let (consensus, group, _) = start(dir.path()).await;
    let answer = group.propose(Bytes::from_static(b"fail")).unwrap().await;
    assert_eq!(answer, Err(ProposeError::Unknown));
    let fatal = tokio::time::timeout(PATIENCE, consensus.fatal()).await.unwrap();
    assert_eq!(fatal.group, Some(GROUP));
    assert!(fatal.message.contains("asked to fail"), "{fatal}");
    assert!(!consensus.problems().is_empty());
    consensus.shutdown(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_in_flight_are_bounded_res_1() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path());
    options.in_flight_bytes_max = 1 << 20;
    let consensus = Consensus::open(options, Arc::new(Nobody)).await.unwrap();
    let ledger = Ledger::open(dir.path(), "group");
    let book = Arc::clone(&ledger.book);
    let group = consensus.start_group(GROUP, &[NODE], Box::new(ledger)).await.unwrap();
    group.leadership().wait_for(|now| now.leads).await.unwrap();
    let full = {
        // While the book is held, nothing is applied.
        let _held = book.lock().unwrap();
        (0..64).map(|_| group.propose(Bytes::from(vec![0; 64 << 10]))).find_map(Result::err)
    };
    assert_eq!(full, Some(ProposeError::Full));
    let eventually = async {
        while group.propose(Bytes::from_static(b"again")).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, eventually).await.unwrap();
    consensus.shutdown(Duration::from_secs(5)).await;
}

/// A small file system of its own, if this test may mount one.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(at: &Path, size: &str) -> Option<SmallDisk> {
        std::fs::create_dir_all(at).unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(at)
            .output();
        mounted.is_ok_and(|output| output.status.success()).then(|| SmallDisk(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(std::process::Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_serves_reads_and_recovers_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_disk) = SmallDisk::mount(&dir.path().join("consensus"), "28m") else {
        eprintln!("skipped: mounting a small file system needs root (the log's own tests inject a full disk instead)");
        return;
    };
    let ballast = dir.path().join("consensus/ballast");
    std::fs::write(&ballast, vec![0; 10 << 20]).unwrap();
    let (consensus, group, book) = start(dir.path()).await;
    let mut written = 0;
    let refused = loop {
        match group.propose(Bytes::from(vec![7; 64 << 10])) {
            Ok(proposal) => written += usize::from(proposal.await.is_ok()),
            Err(refused) => break refused,
        }
        assert!(written < 1000, "28 MiB are never full");
    };
    assert_eq!(refused, ProposeError::DiskFull);
    assert!(consensus.problems().iter().any(|problem| problem.contains("full")));
    assert!(group.read_barrier().await.is_ok());
    assert_eq!(lines(&book).len(), written);
    assert!(!group.read_log(Lsn(0), 1 << 20).await.unwrap().entries.is_empty());

    std::fs::remove_file(ballast).unwrap();
    let recovered = async {
        while group.propose(Bytes::from_static(b"again")).is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, recovered).await.unwrap();
    assert!(consensus.problems().is_empty());
    consensus.shutdown(Duration::from_secs(1)).await;
}
