//! A primary is lost with writes that nobody else has, and comes back: they are written down before it becomes a replica
//! of its successor, and can be compared and written back (SWI-2).

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::join_all;
use meridian_region_node::{FrameRefusal, Options, TailError};
use meridian_types::*;

use crate::world::*;

const PLAN: PlanId = PlanId(7);

struct Lost {
    _dirs: [tempfile::TempDir; 2],
    a: Arc<RegionUnderTest>,
    b: Arc<RegionUnderTest>,
    plane: Arc<Plane>,
    /// What a session had seen that read nothing but what both had, and one that wrote into the tail.
    seen: [SessionToken; 2],
}

/// `a` was the primary, and wrote what `b` never received; `b` is the primary now, and has written since.
async fn lost(of_a: Options) -> Lost {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let plane = Plane::new();
    let a = Arc::new(RegionUnderTest::start_with(dirs[0].path(), A, &plane, of_a).await);
    let b = Arc::new(RegionUnderTest::start(dirs[1].path(), B, &plane).await);
    a.listen(&b).await;
    b.listen(&a).await;
    let mut seen = [SessionToken::default(), SessionToken::default()];
    for n in 0..20 {
        seen[0].merge(&a.put(ASYNC, &format!("k{n}"), "both").await.unwrap().session);
    }
    carry_all(&a, &b).await;
    for name in ["k0", "k1", "k2", "new", "again"] {
        a.put(ASYNC, name, "first").await.unwrap();
        seen[1].merge(&a.put(ASYNC, name, "lost").await.unwrap().session);
    }
    a.write(ASYNC, Write::Delete { key: key("k3") }).await.unwrap();
    a.write(ASYNC, Write::Increment { key: key("count"), by: 5 }).await.unwrap();
    // A condition that did not hold changed nothing, so nothing of it is lost.
    let absent = Write::PutIfAbsent { key: key("k9"), value: value("no"), ttl_ms: None };
    assert!(matches!(a.write(ASYNC, absent).await.unwrap().outcome, Outcome::ConditionFailed { .. }));
    fail_over(&plane, &b).await;
    b.put(ASYNC, "k1", "since").await.unwrap();
    b.write(ASYNC, Write::Delete { key: key("k2") }).await.unwrap();
    b.put(ASYNC, "again", "since").await.unwrap();
    b.write(ASYNC, Write::Delete { key: key("again") }).await.unwrap();
    Lost { _dirs: dirs, a, b, plane, seen }
}

async fn fail_over(plane: &Plane, b: &RegionUnderTest) {
    let id = plane.bucket(ASYNC).id;
    plane.turn(ASYNC, |bucket| {
        bucket.epoch = Epoch(2);
        bucket.phase = Phase::Fencing { plan: PLAN, to: B };
    });
    eventually("b has fenced", async || {
        let told = plane.told(id);
        (0..SHARDS).all(|shard| told.iter().any(|(of, fact)| of.0 == shard && matches!(fact, Fact::Fenced(_))))
    })
    .await;
    plane.turn(ASYNC, |bucket| {
        bucket.primary = Some(B);
        bucket.phase = Phase::Steady;
    });
    b.put(ASYNC, "k19", "since").await.unwrap();
}

impl Lost {
    async fn bundles(&self) -> Vec<SalvageBundle> {
        self.a.handle.salvages().await.unwrap()
    }

    /// The old primary hears of its successor, and becomes its replica.
    async fn reinstated(&self) {
        let (a, b) = (&self.a, &self.b);
        eventually("it is a replica like any other", async || {
            carry_all(b, a).await;
            let id = self.plane.bucket(ASYNC).id;
            let of = |region| digests(region).into_iter().filter(|((of, _), _)| *of == id).collect::<BTreeMap<_, _>>();
            a.handle.repairs().iter().all(|it| it.done) && !a.handle.repairs().is_empty() && of(a) == of(b)
        })
        .await;
    }

    /// Every key that was kept, with what became of it.
    async fn keys(&self) -> BTreeMap<String, (Option<String>, Option<SalvageFate>)> {
        let mut all = BTreeMap::new();
        for bundle in self.bundles().await {
            for part in 0..bundle.parts {
                for key in self.a.handle.salvage_keys(bundle.id, part, true).await.unwrap() {
                    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                    all.insert(text(&key.key), (key.value.as_deref().map(text), key.fate));
                }
            }
        }
        all
    }

    async fn replay(&self, policy: ReplayPolicy, dry_run: bool) -> ReplayReport {
        let mut report = ReplayReport::default();
        for bundle in self.bundles().await {
            for part in 0..bundle.parts {
                report = report.and(self.a.handle.replay(bundle.id, part, policy, dry_run).await.unwrap());
            }
        }
        report
    }

    async fn now(&self, name: &str) -> Option<String> {
        self.b.value(ASYNC, name, ReadLevel::Strong).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_successor_lacks_is_in_the_bundle_key_for_key_and_only_the_untouched_is_restored() {
    let lost = lost(options()).await;
    lost.reinstated().await;
    let _carrier = Carrier::start(&lost.b, &lost.a);
    let (some, no) = (|value: &str| Some(value.to_owned()), None);
    use SalvageFate::{Changed, Deleted, Untouched};
    let expected = [
        ("k0", some("lost"), Untouched),
        ("k1", some("lost"), Changed),
        ("k2", some("lost"), Deleted),
        ("k3", no, Untouched),
        ("new", some("lost"), Untouched),
        ("again", some("lost"), Deleted),
        ("count", some("5"), Untouched),
    ];
    let expected: BTreeMap<_, _> =
        expected.into_iter().map(|(key, value, fate)| (key.to_owned(), (value, Some(fate)))).collect();
    assert_eq!(lost.keys().await, expected, "SWI-2");
    assert_eq!(
        lost.a.value(ASYNC, "k0", ReadLevel::Eventual).await.as_deref(),
        Some("both"),
        "and gone from the state"
    );

    let would = lost.replay(ReplayPolicy::IfUnchanged, true).await;
    assert_eq!((would.restored, would.changed, would.deleted), (4, 1, 2));
    assert_eq!(lost.now("k0").await.as_deref(), Some("both"), "a dry run changes nothing");
    assert_eq!(lost.replay(ReplayPolicy::IfUnchanged, false).await, would);
    let now = [lost.now("k0").await, lost.now("k1").await, lost.now("k2").await, lost.now("k3").await];
    assert_eq!(now, [some("lost"), some("since"), None, None]);
    let now = [lost.now("new").await, lost.now("again").await, lost.now("count").await];
    assert_eq!(now, [some("lost"), None, some("5")]);
    assert_eq!(lost.replay(ReplayPolicy::IfUnchanged, false).await.restored, 0, "once is enough");
    assert_eq!(lost.bundles().await.iter().map(|bundle| bundle.restored).sum::<u64>(), 4);

    assert_eq!(lost.replay(ReplayPolicy::Skip, false).await.restored, 0);
    assert_eq!(lost.replay(ReplayPolicy::Overwrite, false).await.restored, 7);
    assert_eq!([lost.now("k1").await, lost.now("again").await], [some("lost"), some("lost")]);
    for bundle in lost.bundles().await {
        lost.a.handle.drop_salvage(bundle.id).await.unwrap();
        assert_eq!(lost.a.handle.salvage(bundle.id).await.unwrap_err().kind, RefusalKind::NotFound);
    }
    assert!(lost.bundles().await.is_empty());
}

/// No log is asked: by then it may be purged, as soon as every region has applied it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_created_and_deleted_after_the_bundle_was_written_is_not_restored() {
    let lost = lost(options()).await;
    lost.reinstated().await;
    let fate = async |lost: &Lost, key: &str| lost.keys().await[key].1.unwrap();
    {
        let _carrier = Carrier::start(&lost.b, &lost.a);
        assert_eq!(fate(&lost, "new").await, SalvageFate::Untouched);
        lost.b.put(ASYNC, "new", "since").await.unwrap();
        assert_eq!(fate(&lost, "new").await, SalvageFate::Changed);
        lost.b.write(ASYNC, Write::Delete { key: key("new") }).await.unwrap();
        assert_eq!(fate(&lost, "new").await, SalvageFate::Deleted, "SWI-2");
        assert_eq!(lost.now("new").await, None);
    }
    let image = tempfile::tempdir().unwrap();
    lost.a.image_of_crash(image.path());
    copy_live(&lost.a.dir, image.path(), &["salvage"]);
    let again = Arc::new(RegionUnderTest::start(image.path(), A, &lost.plane).await);
    again.listen(&lost.b).await;
    lost.b.listen(&again).await;
    let _carrier = Carrier::start(&lost.b, &again);
    let lost = Lost { a: again, ..lost };
    assert_eq!(fate(&lost, "new").await, SalvageFate::Deleted, "and so it stays after a crash");
    assert_eq!(fate(&lost, "count").await, SalvageFate::Untouched);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_is_written_once_however_often_the_old_primary_crashes_before_it_is_a_replica() {
    // So slow that it is caught between the bundle and the end.
    let lost = lost(Options { repair_bytes_per_s: 200, ..options() }).await;
    eventually("a bundle is written", async || {
        carry_all(&lost.b, &lost.a).await;
        !lost.bundles().await.is_empty()
    })
    .await;
    // Another may be written while the image is taken.
    let before = lost.bundles().await;
    let image = tempfile::tempdir().unwrap();
    lost.a.image_of_crash(image.path());
    copy_live(&lost.a.dir, image.path(), &["salvage"]);
    let again = Arc::new(RegionUnderTest::start(image.path(), A, &lost.plane).await);
    again.listen(&lost.b).await;
    lost.b.listen(&again).await;
    let lost = Lost { a: again, ..lost };
    lost.reinstated().await;
    let after = lost.bundles().await;
    assert!(before.iter().all(|bundle| after.contains(bundle)), "{before:?} {after:?}");
    assert_eq!(lost.keys().await.len(), 7, "SWI-2: nothing twice, nothing missing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_an_operator_is_asked_for_nothing_is_given_up_before_the_word() {
    let lost = lost(Options { manual_reinstate: true, ..options() }).await;
    eventually("it waits", async || {
        carry_all(&lost.b, &lost.a).await;
        lost.a.handle.repairs().iter().any(|it| it.waits_for.contains("meridian reinstate"))
    })
    .await;
    assert!(lost.bundles().await.is_empty());
    let elsewhere = lost.a.read(ASYNC, "k0", ReadLevel::Eventual).await.unwrap();
    assert_eq!((elsewhere.region, text(elsewhere).as_deref()), (B, Some("both")), "what is astray is not read");
    assert_eq!(lost.a.handle.reinstate(None), 1);
    lost.reinstated().await;
    assert_eq!(lost.keys().await.len(), 7);
}

/// Then nobody reinstates it: what it alone has is fenced off everywhere, and would hold up whatever travels in the same lanes (ISO-1).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_primary_that_is_removed_from_the_bucket_keeps_its_tail_and_holds_up_no_other_bucket() {
    let lost = lost(Options { manual_reinstate: true, ..options() }).await;
    lost.plane.turn(ASYNC, |bucket| {
        bucket.epoch = Epoch(3);
        bucket.regions = vec![B];
        bucket.joins.leave(A, Epoch(3));
    });
    lost.b.put(ASYNC, "k18", "without a").await.unwrap();
    let shard = shard_of(&lost.plane, ASYNC, "k0");
    lost.a.put(ACTIVE, &name_in(&lost.plane, ACTIVE, shard), "everywhere").await.unwrap();
    let frame = next_frame(&lost.a, &lost.b, shard, Lane::Async).await.unwrap();
    assert_eq!(apply(&lost.b, &frame).await, Err(FrameRefusal::Fenced), "FEN-2");
    eventually("it waits for an operator", async || {
        let waits =
            |it: &RepairStatus| it.reason == RepairReason::Leaving && it.waits_for.contains("meridian reinstate");
        lost.a.handle.repairs().iter().any(waits)
    })
    .await;
    assert!(lost.bundles().await.is_empty());
    assert_eq!(lost.a.handle.reinstate(None), 1);
    let id = lost.plane.bucket(ASYNC).id;
    let rows = |of: &RegionUnderTest| digests(of).into_iter().filter(|((it, _), _)| *it == id).map(|(_, it)| it.keys);
    eventually("its copy is gone", async || rows(&lost.a).sum::<u64>() == 0).await;
    carry_all(&lost.a, &lost.b).await;
    applied(&lost.b, ACTIVE, &name_in(&lost.plane, ACTIVE, shard)).await;
    assert_eq!(lost.keys().await.len(), 7, "SWI-2");
    // Of keys that are absent it can't tell whether they were deleted since.
    let told = lost.replay(ReplayPolicy::IfUnchanged, false).await;
    assert_eq!((told.restored, told.changed, told.unknown), (2, 1, 4), "SWI-2");
    assert_eq!([lost.now("k0").await, lost.now("k1").await], ["lost", "since"].map(|it| Some(it.to_owned())));
}

/// A node may hear late that its region takes part again: what it ordered in that epoch is no tail, and must not be made void (DUR-1).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_has_not_heard_that_its_region_is_in_again_gives_up_nothing() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let plane = Plane::new();
    let a = RegionUnderTest::start(dirs[0].path(), A, &plane).await;
    let b = RegionUnderTest::start(dirs[1].path(), B, &plane).await;
    a.listen(&b).await;
    b.listen(&a).await;
    a.put(ASYNC, "k", "both").await.unwrap();
    carry_all(&a, &b).await;
    a.put(ASYNC, "k", "here").await.unwrap();
    plane.turn(ASYNC, |bucket| (bucket.primary, bucket.regions) = (Some(B), vec![B]));
    eventually("it is asked to give up what b lacks", async || {
        let refused = |it: &RepairStatus| it.reason == RepairReason::Leaving && it.waits_for.contains("takes part");
        a.handle.repairs().iter().any(refused)
    })
    .await;
    plane.turn(ASYNC, |bucket| (bucket.primary, bucket.regions) = (Some(A), vec![A, B]));
    carry_all(&a, &b).await;
    assert_eq!(b.value(ASYNC, "k", ReadLevel::Eventual).await.as_deref(), Some("here"));
    assert!(a.handle.salvages().await.unwrap().is_empty());
}

fn name_in(plane: &Plane, bucket: &str, shard: ShardId) -> String {
    (0..).map(|n| format!("x{n}")).find(|name| shard_of(plane, bucket, name) == shard).unwrap()
}

/// What every region has acknowledged may be purged before the old primary is allowed to become a replica: of it only what
/// waits there tells which keys were deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_became_of_each_key_is_told_though_the_successor_has_purged_its_log() {
    let lost = lost(Options { manual_reinstate: true, ..options() }).await;
    let shards = || (0..SHARDS).map(ShardId);
    let deleted: Vec<_> = shards().map(|shard| lost.b.handle.head(shard).borrow().unwrap().lsn).collect();
    for round in 0..3 {
        let writes = (0..200).map(|n| {
            let (b, name) = (&lost.b, format!("later-{n}"));
            async move { b.put(ASYNC, &name, &round.to_string()).await.unwrap() }
        });
        join_all(writes).await;
    }
    eventually("the deletes are purged at the successor", async || {
        carry_all(&lost.b, &lost.a).await;
        let mut trimmed = 0;
        for (shard, behind) in shards().zip(&deleted) {
            let head = lost.b.handle.head(shard).borrow().unwrap().lsn;
            Lane::ALL.into_iter().for_each(|lane| lost.b.handle.acknowledged(shard, lane, A, head));
            let tail = lost.b.handle.read_log(shard, *behind, 1).await;
            trimmed += usize::from(matches!(tail, Err(TailError::Trimmed { .. })));
        }
        trimmed == usize::from(SHARDS)
    })
    .await;
    assert!(lost.bundles().await.is_empty(), "the operator has not given the word yet");
    assert_eq!(lost.a.handle.reinstate(None), 1);
    lost.reinstated().await;
    let _carrier = Carrier::start(&lost.b, &lost.a);
    let would = lost.replay(ReplayPolicy::IfUnchanged, true).await;
    assert_eq!((would.restored, would.changed, would.deleted, would.unknown), (4, 1, 2, 0), "SWI-2");
}

/// To wait for what nobody will ever have would be to wait for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_2_a_session_that_saw_what_was_given_up_is_told_so_and_any_other_goes_on() {
    let lost = lost(options()).await;
    let [of_both, of_the_tail] = &lost.seen;
    let read = |token| with_session(get(ASYNC, "k0", ReadLevel::Session), token);
    assert_eq!(text(lost.b.execute(read(of_both)).await.unwrap()).as_deref(), Some("both"));
    let write = |token| with_session(write_request(ASYNC, put("k0", "new")), token);
    for request in [read(of_the_tail), write(of_the_tail)] {
        let refused = lost.b.execute(request).await.unwrap_err();
        assert_eq!((refused.kind, refused.effect), (RefusalKind::Invalid, Effect::None), "{refused}");
        assert!(refused.message.contains("begin a new session"), "{refused}");
    }
    lost.b.execute(write(of_both)).await.unwrap();
}
