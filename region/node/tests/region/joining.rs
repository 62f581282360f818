//! A region that joins a bucket with a primary, on real shards: it gets what is written, and counts for nothing until it is on record that it is
//! filled. It answers nobody (CON-2, CON-3), and a copy that only it has is none (DUR-2).

use std::collections::BTreeSet;
use std::time::Duration;

use meridian_types::*;

use crate::three::*;
use crate::world::*;

/// Puts on record that C joins, as the metadata plane does.
fn join(plane: &Plane) {
    plane.turn(SYNC, |bucket| {
        bucket.epoch = Epoch(2);
        bucket.joins.since.insert(C, bucket.epoch);
        let (under, filled) = (bucket.epoch, BTreeSet::new());
        bucket.joins.now = Some(Joining { region: C, at: Hlc(1), under, filled, pause_ms_max: 0 });
    });
}

/// Waits until the primary says that C is filled.
async fn fill(three: &Three) {
    eventually("it is filled", async || {
        three.carry().await;
        let said = three.plane.said_by(A, SYNC);
        let of = |copies: &Copies| match copies {
            Copies::Filled { region: C, shards } => shards.clone(),
            _ => BTreeSet::new(),
        };
        said.iter().flat_map(of).collect::<BTreeSet<_>>().len() == usize::from(SHARDS)
    })
    .await;
}

/// Writes in A while every region gets all there is.
async fn write(three: &Three, name: &str, text: &str) -> Response {
    meanwhile(three.regions[0].put(SYNC, name, text), async || three.carry().await).await.unwrap()
}

/// Carries again and again until something is done.
async fn meanwhile<T>(done: impl Future<Output = T>, carry: impl AsyncFn()) -> T {
    let for_ever = async {
        loop {
            carry().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        done = done => done,
        () = for_ever => unreachable!(),
    }
}

/// What C's gateway says, by level, and which region answered.
async fn seen_through_c(three: &Three, session: &SessionToken) -> Vec<(RegionId, Option<String>)> {
    let mut seen = Vec::new();
    for level in [ReadLevel::Eventual, ReadLevel::Session, ReadLevel::Bounded { staleness_ms_max: 60_000 }] {
        let answer = three.regions[2].execute(with_session(get(SYNC, "k", level), session)).await.unwrap();
        seen.push((answer.region, text(answer)));
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_3_a_region_that_joins_answers_no_reads_until_it_counts() {
    let three = Three::start().await;
    let written = write(&three, "k", "v").await;
    join(&three.plane);
    let from_a = vec![(A, Some("v".to_owned())); 3];
    assert_eq!(seen_through_c(&three, &SessionToken::default()).await, from_a, "it has nothing yet");
    assert_eq!(seen_through_c(&three, &written.session).await, from_a, "it lacks what the session has seen");
    fill(&three).await;
    assert_eq!(seen_through_c(&three, &SessionToken::default()).await, from_a, "it is not on record that it is filled");
    three.plane.turn(SYNC, |bucket| {
        bucket.joins.now = None;
        bucket.regions.push(C);
    });
    let there = three.regions[2].read(SYNC, "k", ReadLevel::Eventual).await.unwrap();
    assert_eq!((there.region, text(there)), (C, Some("v".to_owned())), "now it counts");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dur_2_a_copy_that_only_a_joining_region_has_is_none() {
    let three = Three::start().await;
    let [a, b, c] = [0, 1, 2].map(|at| &three.regions[at]);
    write(&three, "before", "v").await;
    join(&three.plane);
    fill(&three).await;
    assert_eq!(write(&three, "meanwhile", "v").await.durability.unwrap().regions, 2);

    let id = RequestId { client: ClientId(9), sequence: 1 };
    let request = identified(SYNC, put("k", "v"), id);
    let (bucket, shard) = (three.plane.bucket(SYNC).id, shard_of(&three.plane, SYNC, "k"));
    let has = |region: &RegionUnderTest| digests(region).remove(&(bucket, shard)).unwrap();
    let only_to_c = async || carry_all(a, c).await;
    let refused = meanwhile(in_vain(a, request.clone()), only_to_c).await;
    assert_eq!((refused.kind, refused.effect), (RefusalKind::Unavailable, Effect::Applied), "{refused}");
    assert!(refused.message.contains("eu-west") && !refused.message.contains("ap-south"), "{refused}");
    assert_eq!((has(c), has(b) == has(a)), (has(a), false), "the region that joins has it, and no other one");

    let answer = meanwhile(a.execute(request), async || carry_all(a, b).await).await.unwrap();
    assert_eq!((answer.durability.unwrap().regions, has(b)), (2, has(a)));
}
