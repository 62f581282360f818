//! A failover is rehearsed on a copy: equal to what it was taken from, taken over, read and written, and gone afterwards; the
//! replica itself goes on as if nothing had been.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use meridian_region_core::{Mutations, StateView, keys};
use meridian_region_node::{Store, StoreOptions};
use meridian_types::*;
use tokio::sync::mpsc;

use crate::world::*;

const KEYS: usize = 60;

struct Pair {
    dirs: [tempfile::TempDir; 2],
    a: Arc<RegionUnderTest>,
    b: Arc<RegionUnderTest>,
    plane: Arc<Plane>,
}

/// `a` is the primary of what `b` has, too.
async fn pair() -> Pair {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let plane = Plane::new();
    let a = Arc::new(RegionUnderTest::start(dirs[0].path(), A, &plane).await);
    let b = Arc::new(RegionUnderTest::start(dirs[1].path(), B, &plane).await);
    for n in 0..KEYS {
        a.put(ASYNC, &format!("k{n}"), "value").await.unwrap();
    }
    a.write(ASYNC, Write::Delete { key: key("k7") }).await.unwrap();
    let ttl = Write::Put { key: key("brief"), value: value("x"), ttl_ms: Some(3_600_000) };
    a.write(ASYNC, ttl).await.unwrap();
    carry_all(&a, &b).await;
    Pair { dirs, a, b, plane }
}

impl Pair {
    fn spec(&self, buckets: &[&str]) -> DrillSpec {
        DrillSpec { buckets: buckets.iter().map(|name| self.plane.bucket(name).id).collect(), sample: 20 }
    }

    fn refused(&self, spec: DrillSpec) -> Refusal {
        self.b.handle.drill(spec).unwrap_err()
    }

    fn nothing_is_left(&self) -> bool {
        !self.dirs[1].path().join("drills").exists()
    }
}

/// Listens to the end.
async fn ended(mut news: mpsc::Receiver<Result<DrillNews, Refusal>>) -> Result<DrillReport, Refusal> {
    loop {
        match news.recv().await.expect("a drill tells how it ends")? {
            DrillNews::Done(report) => return Ok(*report),
            DrillNews::Progress(progress) => assert!(progress.done <= progress.total, "{progress:?}"),
        }
    }
}

fn digests(region: &RegionUnderTest) -> BTreeMap<(BucketId, ShardId), BucketDigest> {
    region.handle.digests(None).into_iter().map(|row| ((row.bucket, row.shard), row.digest)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_takes_over_a_copy_and_leaves_the_replica_alone_while_it_goes_on() {
    let pair = pair().await;
    let (a, b) = (&pair.a, &pair.b);
    let carrier = Carrier::start(a, b);
    let drill = tokio::spawn(ended(b.handle.drill(pair.spec(&[ASYNC, SYNC])).unwrap()));
    let mut more = 0;
    while !drill.is_finished() {
        a.put(ASYNC, &format!("more{more}"), "meanwhile").await.unwrap();
        more += 1;
    }
    let report = drill.await.unwrap().unwrap();
    assert!(report.is_good(), "{report:?}");
    assert!(more > 0, "the primary went on");

    let steps: Vec<DrillStep> = report.steps.iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, DrillStep::ALL);
    assert_eq!((report.region, report.node, report.lease_ms), (B, node_of(B), LEASE_TTL_MS));
    assert_eq!(report.shards.len(), 2 * usize::from(SHARDS));
    assert!(report.shards.iter().all(|row| row.said == row.found));
    let copied: u64 = report.shards.iter().map(|row| row.keys).sum();
    assert!(copied >= KEYS as u64, "{report:?}");
    let [of_async, of_sync] = report.buckets.as_slice() else { panic!("{report:?}") };
    assert_eq!((of_async.epoch, of_sync.epoch), (Epoch(2), Epoch(2)));
    assert!(of_async.reads.count >= 20 && of_async.reads.p99_us >= of_async.reads.p50_us, "{of_async:?}");
    assert_eq!(
        (of_sync.reads.count, of_sync.writes.count),
        (0, 20),
        "a sync bucket waits for no region that is not there"
    );

    // Nobody else has seen any of it: the replica is as it would be without.
    let id = pair.plane.bucket(ASYNC).id;
    assert_eq!(pair.plane.told(id), Vec::new());
    drop(carrier);
    carry_all(a, b).await;
    assert_eq!(digests(a), digests(b));
    for shard in (0..SHARDS).map(ShardId) {
        assert_eq!(b.handle.counters(shard, id), (0, 0), "its own log has nothing of the bucket");
    }
    let all = Read::Scan { prefix: "meridian-drill/".into(), after: Default::default(), limit: 10, values: false };
    let found = b.execute(read_request(ASYNC, all, ReadLevel::Eventual)).await.unwrap().outcome;
    assert_eq!(found, Outcome::Page { items: Vec::new(), more: false });
    assert!(pair.nothing_is_left());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_fail_over_is_not_rehearsed() {
    let pair = pair().await;
    let kind = |buckets: &[&str]| pair.refused(pair.spec(buckets)).kind;
    assert_eq!(kind(&[ACTIVE]), RefusalKind::Invalid);
    assert_eq!(kind(&[]), RefusalKind::Invalid);
    assert_eq!(pair.refused(DrillSpec { sample: 0, ..pair.spec(&[ASYNC]) }).kind, RefusalKind::Invalid);
    let unknown = DrillSpec { buckets: vec![BucketId(99)], sample: 1 };
    assert_eq!(pair.refused(unknown).kind, RefusalKind::NotFound);
    let of_primary = pair.a.handle.drill(pair.spec(&[ASYNC])).unwrap_err();
    assert!(of_primary.message.contains("primary of `async` already"), "{of_primary}");
    pair.plane.turn(ASYNC, |bucket| bucket.phase = Phase::Draining { plan: PlanId(1), to: B });
    assert_eq!(kind(&[ASYNC]), RefusalKind::Retry);

    pair.b.disk.0.store(64 << 20, Ordering::SeqCst);
    let refusal = ended(pair.b.handle.drill(pair.spec(&[SYNC])).unwrap()).await.unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Unavailable);
    assert!(refusal.message.contains("too little room"), "{refusal}");
    assert!(pair.nothing_is_left());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_drill_at_a_time_and_one_that_nobody_listens_to_is_given_up() {
    let pair = pair().await;
    let mut first = pair.b.handle.drill(pair.spec(&[ASYNC])).unwrap();
    let second = pair.refused(pair.spec(&[SYNC]));
    assert!(second.kind == RefusalKind::Retry && second.message.contains("under way"), "{second}");
    loop {
        let Ok(DrillNews::Progress(progress)) = first.recv().await.unwrap() else { panic!("it is not over yet") };
        if progress.step == DrillStep::Start {
            break;
        }
    }
    drop(first);
    eventually("its copy is gone", async || pair.nothing_is_left()).await;
    eventually("another one may begin", async || match pair.b.handle.drill(pair.spec(&[SYNC])) {
        Ok(news) => ended(news).await.unwrap().is_good(),
        Err(refusal) => {
            assert_eq!(refusal.kind, RefusalKind::Retry);
            false
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_is_deleted_meanwhile_is_said_to_be() {
    let pair = pair().await;
    let id = pair.plane.bucket(ASYNC).id;
    let mut news = pair.b.handle.drill(pair.spec(&[ASYNC])).unwrap();
    drop(news.recv().await);
    pair.plane.change(|topology| {
        topology.buckets.remove(&id);
    });
    let report = ended(news).await.unwrap();
    assert!(report.faults.iter().any(|fault| fault.contains("was deleted")), "{report:?}");
    assert!(pair.nothing_is_left());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dur_3_a_row_that_is_not_what_its_digest_says_fails_the_drill_and_is_named() {
    let Pair { dirs, a: _a, b, plane } = pair().await;
    let id = plane.bucket(ASYNC).id;
    Arc::into_inner(b).unwrap().stop().await;
    let damaged = damage(&dirs[1], id);
    // What a drill left behind that ended with its node.
    std::fs::create_dir_all(dirs[1].path().join("drills/1/state")).unwrap();

    let b = RegionUnderTest::start(dirs[1].path(), B, &plane).await;
    assert!(!dirs[1].path().join("drills").exists(), "the start removes it");
    let spec = DrillSpec { buckets: vec![id], sample: 20 };
    let report = ended(b.handle.drill(spec).unwrap()).await.unwrap();
    let faulty: Vec<ShardId> = report.shards.iter().filter(|row| !row.fault.is_empty()).map(|row| row.shard).collect();
    assert_eq!(faulty, [damaged], "{report:?}");
    assert_eq!(report.taken_over_us(), None, "what differs is not taken over");
    assert!(!dirs[1].path().join("drills").exists());
    b.stop().await;
}

/// Changes a byte of a value below everything that would notice.
fn damage(dir: &tempfile::TempDir, bucket: BucketId) -> ShardId {
    let store = Store::open(&dir.path().join("state"), &StoreOptions::default()).unwrap();
    let shard = key("k0").shard(bucket, SHARDS);
    let row = keys::data(shard, bucket, b"k0");
    let mut value = store.get(&row).unwrap().unwrap().to_vec();
    *value.last_mut().unwrap() ^= 1;
    let mut changes = Mutations::new();
    changes.put(row, value);
    let mark = store.mark(shard).unwrap().unwrap();
    store.commit(shard, changes, &mark).unwrap();
    store.persist().unwrap();
    shard
}
