//! A bucket's primary moves from one region to the other: nothing is lost, nothing is acknowledged twice, and clients see
//! a pause.

use std::sync::Arc;
use std::time::Duration;

use meridian_region_node::FrameRefusal;
use meridian_types::{
    Bucket, ClientId, Epoch, Fact, Lane, Phase, PlanId, ReadLevel, RefusalKind, RequestId, Seal, ShardId,
};

use crate::world::*;

const PLAN: PlanId = PlanId(7);

struct Pair {
    _dirs: [tempfile::TempDir; 2],
    a: Arc<RegionUnderTest>,
    b: Arc<RegionUnderTest>,
    plane: Arc<Plane>,
}

/// Two regions that forward to each other; `async` has its primary in `a`.
async fn pair() -> Pair {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let plane = Plane::new();
    let a = Arc::new(RegionUnderTest::start(dirs[0].path(), A, &plane).await);
    let b = Arc::new(RegionUnderTest::start(dirs[1].path(), B, &plane).await);
    a.listen(&b).await;
    b.listen(&a).await;
    Pair { _dirs: dirs, a, b, plane }
}

impl Pair {
    fn bucket(&self) -> Arc<Bucket> {
        self.plane.bucket("async")
    }

    fn drain(&self) {
        self.plane.turn("async", |bucket| {
            bucket.epoch = Epoch(bucket.epoch.0 + 1);
            bucket.phase = Phase::Draining { plan: PLAN, to: B };
        });
    }

    fn promote(&self) {
        self.plane.turn("async", |bucket| {
            bucket.primary = Some(B);
            bucket.phase = Phase::Steady;
        });
    }

    async fn carry_all(&self) {
        for shard in (0..SHARDS).map(ShardId) {
            carry(&self.a, &self.b, shard, Lane::Async).await;
        }
    }

    fn seals(&self, of: fn(Fact) -> Option<Seal>) -> Vec<(ShardId, Seal)> {
        let told = self.plane.told(self.bucket().id);
        let mut seals: Vec<_> = told.into_iter().filter_map(|(shard, fact)| Some((shard, of(fact)?))).collect();
        seals.sort_by_key(|(shard, _)| *shard);
        seals
    }

    fn sealed(&self) -> Vec<(ShardId, Seal)> {
        self.seals(|fact| if let Fact::Sealed(seal) = fact { Some(seal) } else { None })
    }

    fn ready(&self) -> Vec<(ShardId, Seal)> {
        self.seals(|fact| if let Fact::Ready(seal) = fact { Some(seal) } else { None })
    }
}

fn id(sequence: u64) -> RequestId {
    RequestId { client: ClientId(5), sequence }
}

#[tokio::test(flavor = "multi_thread")]
async fn swi_1_the_next_primary_is_ready_with_equal_seals_and_goes_on_where_the_old_one_stopped() {
    let pair = pair().await;
    for number in 0..20 {
        pair.a.put("async", &format!("k{number}"), "old").await.unwrap();
    }
    pair.drain();
    eventually("every shard of the primary is sealed", async || pair.sealed().len() == usize::from(SHARDS)).await;
    assert_eq!(pair.ready(), [], "the seals have not been shipped");
    pair.carry_all().await;
    eventually("every shard of the next primary is ready", async || pair.ready().len() == usize::from(SHARDS)).await;
    assert_eq!(pair.sealed(), pair.ready(), "the proof: equal positions, digests and keys");

    let held = tokio::spawn({
        let a = Arc::clone(&pair.a);
        async move { a.execute(identified("async", put("k0", "new"), id(1))).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!held.is_finished(), "nobody accepts writes while the bucket is handed over");
    pair.promote();
    let answer = held.await.unwrap().unwrap();
    assert_eq!((answer.region, answer.epoch), (B, Epoch(2)), "the held write was done by the new primary");
    assert_eq!(pair.a.value("async", "k0", ReadLevel::Strong).await.as_deref(), Some("new"));
    assert_eq!(pair.a.value("async", "k1", ReadLevel::Strong).await.as_deref(), Some("old"));
}

#[tokio::test(flavor = "multi_thread")]
async fn fen_1_a_write_that_was_ordered_too_late_is_void_and_its_retry_is_done_once_by_the_new_primary() {
    let pair = pair().await;
    let increment =
        |sequence| identified("async", meridian_types::Write::Increment { key: key("n"), by: 1 }, id(sequence));
    pair.a.execute(increment(1)).await.unwrap();
    pair.drain();
    eventually("sealed", async || pair.sealed().len() == usize::from(SHARDS)).await;
    pair.carry_all().await;
    eventually("ready", async || pair.ready().len() == usize::from(SHARDS)).await;
    pair.promote();
    // The client never got the first answer, and asks again elsewhere.
    pair.b.execute(increment(1)).await.unwrap();
    pair.b.execute(increment(2)).await.unwrap();
    assert_eq!(pair.b.value("async", "n", ReadLevel::Strong).await.as_deref(), Some("2"), "ONE-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn fen_1_no_key_expires_between_two_primaries_and_the_next_one_removes_what_is_due() {
    let pair = pair().await;
    let brief = meridian_types::Write::Put { key: key("k"), value: value("v"), ttl_ms: Some(1000) };
    pair.a.write("async", brief).await.unwrap();
    pair.drain();
    eventually("sealed", async || pair.sealed().len() == usize::from(SHARDS)).await;
    let sealed = digests(&pair.a);
    [&pair.a, &pair.b].iter().for_each(|region| region.clock.advance(5000));
    // Many times as long as it takes to look for what is due.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(digests(&pair.a), sealed, "the epoch that has begun is another region's");
    pair.carry_all().await;
    eventually("ready", async || pair.ready().len() == usize::from(SHARDS)).await;
    pair.promote();
    let keys = |region: &RegionUnderTest| digests(region).values().map(|digest| digest.keys).sum::<u64>();
    eventually("the next primary removes it", async || keys(&pair.b) == 0).await;
    carry_all(&pair.b, &pair.a).await;
    assert_eq!(digests(&pair.a), digests(&pair.b));
}

#[tokio::test(flavor = "multi_thread")]
async fn swi_1_after_an_abort_the_old_primary_goes_on_in_a_later_epoch() {
    let pair = pair().await;
    pair.a.put("async", "k", "1").await.unwrap();
    pair.drain();
    eventually("sealed", async || pair.sealed().len() == usize::from(SHARDS)).await;
    let refused = pair.a.execute(soon(write_request("async", put("k", "2")))).await.unwrap_err();
    assert_eq!(refused.kind, RefusalKind::Retry, "{}", refused.message);
    pair.plane.turn("async", |bucket| {
        bucket.epoch = Epoch(3);
        bucket.phase = Phase::Steady;
    });
    let answer = pair.a.put("async", "k", "3").await.unwrap();
    assert_eq!((answer.region, answer.epoch), (A, Epoch(3)));
    pair.carry_all().await;
    assert_eq!(pair.b.value("async", "k", ReadLevel::Eventual).await.as_deref(), Some("3"));
}

#[tokio::test(flavor = "multi_thread")]
async fn con_3_a_replica_knows_no_bound_on_its_staleness_until_the_seal_has_arrived() {
    let pair = pair().await;
    pair.a.put("async", "k", "1").await.unwrap();
    pair.carry_all().await;
    let bounded = || get("async", "k", ReadLevel::Bounded { staleness_ms_max: 10_000 });
    assert!(pair.b.execute(bounded()).await.is_ok());
    pair.drain();
    eventually("sealed", async || pair.sealed().len() == usize::from(SHARDS)).await;
    // The primary might be anywhere by now, for all this replica can tell.
    assert_eq!(pair.b.execute(soon(bounded())).await.unwrap_err().kind, RefusalKind::Stale);
}

#[tokio::test(flavor = "multi_thread")]
async fn fen_2_a_region_that_is_left_fences_the_lost_primary_and_takes_over_without_it() {
    let pair = pair().await;
    let shard = key("k").shard(pair.bucket().id, SHARDS);
    pair.a.put("async", "k", "shipped").await.unwrap();
    pair.carry_all().await;
    pair.a.put("async", "k", "lost").await.unwrap();
    let late = next_frame(&pair.a, &pair.b, shard, Lane::Async).await.unwrap();
    pair.plane.turn("async", |bucket| {
        bucket.epoch = Epoch(2);
        bucket.phase = Phase::Fencing { plan: PLAN, to: B };
    });
    let fenced = |fact| if let Fact::Fenced(remains) = fact { Some(remains.seal) } else { None };
    eventually("every shard is fenced", async || pair.seals(fenced).len() == usize::from(SHARDS)).await;
    assert_eq!(pair.sealed(), [], "the lost primary takes no part (SWI-3)");
    assert_eq!(pair.b.handle.apply_frame(&late).await, Err(FrameRefusal::Fenced));

    pair.plane.turn("async", |bucket| {
        bucket.primary = Some(B);
        bucket.phase = Phase::Steady;
    });
    assert_eq!(pair.b.value("async", "k", ReadLevel::Strong).await.as_deref(), Some("shipped"));
    assert_eq!(pair.b.put("async", "k", "new").await.unwrap().epoch, Epoch(2));
    assert_eq!(pair.b.handle.apply_frame(&late).await, Err(FrameRefusal::Fenced), "and never later");
}
