//! A region more and one less where all regions write, on real shards: nobody writes while they meet, each begins the next epoch by itself, a
//! request of before is never ordered twice, be it sent through the region that comes or the one that goes (ONE-1), and the region
//! that comes is filled from one of the others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meridian_types::*;

use crate::three::*;
use crate::world::*;

impl Three {
    /// Sends the bucket on its way, and has every region that meets arrive; then what changes is on record.
    async fn regroup(&self, region: RegionId, change: Regroup) {
        self.plane.change(|topology| {
            let (index, id) = (topology.index, topology.bucket_named(ACTIVE).unwrap().id);
            let bucket = Arc::make_mut(topology.buckets.get_mut(&id).unwrap());
            let way = Way::Regrouping { region, change, stopped: BTreeMap::new() };
            bucket.crossing = Some(Crossing { index, at: Hlc(1), pause_ms_max: 1000, way, arrived: BTreeMap::new() });
        });
        let held = self.regions[0].execute(soon(write_request(ACTIVE, put("k", "held")))).await.unwrap_err();
        assert_eq!((held.kind, held.effect), (RefusalKind::Retry, Effect::None), "{held}");
        let meeting = self.plane.bucket(ACTIVE).meeting();
        eventually("every region has stopped", async || {
            self.carry().await;
            self.hear_stops(&meeting);
            let stopped = self.plane.bucket(ACTIVE);
            let crossing = stopped.crossing.as_ref().unwrap();
            (0..SHARDS).all(|shard| crossing.stopped_at(ShardId(shard), &meeting).is_some())
        })
        .await;
        eventually("every region has arrived", async || {
            self.carry().await;
            let arrived = self.arrived();
            meeting.iter().all(|it| arrived.get(it).map_or(0, BTreeMap::len) == usize::from(SHARDS))
        })
        .await;
        let arrived = self.arrived();
        let seals: BTreeSet<_> = arrived.values().map(|it| format!("{it:?}")).collect();
        assert_eq!(seals.len(), 1, "they stand at the same place");
        self.plane.turn(ACTIVE, |bucket| {
            bucket.crossing = None;
            bucket.epoch = Epoch(bucket.epoch.0 + 1);
            match change {
                Regroup::Join => {
                    let (under, filled) = (bucket.epoch, BTreeSet::new());
                    bucket.joins.since.insert(region, bucket.epoch);
                    bucket.joins.now = Some(Joining { region, at: Hlc(1), under, filled, pause_ms_max: 1000 });
                }
                Regroup::Count => {
                    bucket.joins.now = None;
                    bucket.regions.push(region);
                }
                Regroup::Leave => {
                    bucket.regions.retain(|it| *it != region);
                    bucket.joins.leave(region, bucket.epoch);
                }
            }
        });
    }

    /// Puts on record where regions say they stopped.
    fn hear_stops(&self, meeting: &[RegionId]) {
        let index = self.plane.bucket(ACTIVE).crossing.as_ref().map_or(0, |it| it.index);
        let mut stopped: BTreeMap<RegionId, BTreeMap<ShardId, Lsn>> = BTreeMap::new();
        for region in meeting {
            for copies in self.plane.said_by(*region, ACTIVE) {
                match copies {
                    Copies::Stopped { crossing, at } if crossing == index => {
                        stopped.entry(*region).or_default().extend(at)
                    }
                    _ => {}
                }
            }
        }
        let known = self.plane.bucket(ACTIVE).crossing.clone().and_then(|it| it.way.stopped().cloned());
        if known.as_ref() != Some(&stopped) {
            self.plane.turn(ACTIVE, |bucket| {
                *bucket.crossing.as_mut().and_then(|it| it.way.stopped_mut()).unwrap() = stopped;
            });
        }
    }

    /// What each region says it has where all of them meet.
    fn arrived(&self) -> BTreeMap<RegionId, BTreeMap<ShardId, Seal>> {
        let index = self.plane.bucket(ACTIVE).crossing.as_ref().map_or(0, |it| it.index);
        let mut arrived: BTreeMap<RegionId, BTreeMap<ShardId, Seal>> = BTreeMap::new();
        for region in [A, B, C] {
            for copies in self.plane.said_by(region, ACTIVE) {
                match copies {
                    Copies::Arrived { crossing, at } if crossing == index => {
                        arrived.entry(region).or_default().extend(at)
                    }
                    _ => {}
                }
            }
        }
        arrived
    }
}

fn of(write: Write, sequence: u64, begun: u64) -> Request {
    let mut request = identified(ACTIVE, write, RequestId { client: ClientId(9), sequence });
    if let Request::Write { begun: at, .. } = &mut request {
        *at = Epoch(begun);
    }
    request
}

fn increment() -> Write {
    Write::Increment { key: key("n"), by: 1 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_1_a_request_of_before_is_answered_or_begun_again_whichever_region_comes_or_goes() {
    let three = Three::start().await;
    let [a, b, c] = [0, 1, 2].map(|at| &three.regions[at]);
    // Sent through the region that is to join, which passes it on.
    let first = c.execute(of(increment(), 1, 1)).await.unwrap();
    b.put(ACTIVE, "k", "b").await.unwrap();
    three.regroup(C, Regroup::Join).await;
    for region in [a, b] {
        eventually("the next epoch has begun", async || region.put(ACTIVE, "during", "v").await.is_ok()).await;
    }
    eventually("it is filled", async || {
        three.carry().await;
        three.plane.said_by(C, ACTIVE).iter().any(|it| matches!(it, Copies::Filled { region: C, .. }))
            && c.handle.repairs().iter().filter(|it| it.done && it.reason == RepairReason::Joining).count()
                == usize::from(SHARDS)
    })
    .await;
    assert_eq!(c.put(ACTIVE, "through", "v").await.unwrap().region, A, "it does not write yet");
    three.regroup(C, Regroup::Count).await;
    eventually("it writes", async || {
        three.carry().await;
        c.put(ACTIVE, "own", "v").await.is_ok_and(|it| it.region == C)
    })
    .await;
    for region in [a, b, c] {
        let again = region.execute(of(increment(), 1, 1)).await.unwrap();
        assert_eq!(again.outcome, first.outcome, "every region knows what was answered");
        let late = region.execute(of(increment(), 2, 1)).await.unwrap_err();
        assert_eq!((late.kind, late.effect), (RefusalKind::Fenced, Effect::None), "{late}");
    }
    c.execute(of(increment(), 2, 3)).await.unwrap();

    three.regroup(C, Regroup::Leave).await;
    eventually("it goes on without", async || a.put(ACTIVE, "after", "v").await.is_ok()).await;
    eventually("what it had is gone", async || digests(c).values().all(|it| it.keys == 0)).await;
    let again = c.execute(of(increment(), 2, 3)).await.unwrap();
    assert!(matches!(again.outcome, Outcome::Count { value: 2, .. }), "through the region that is gone: {again:?}");
    eventually("they end equal", async || {
        three.carry().await;
        digests(a) == digests(b)
    })
    .await;
    assert_eq!(a.value(ACTIVE, "n", ReadLevel::Eventual).await.as_deref(), Some("2"));
    assert_eq!(b.value(ACTIVE, "own", ReadLevel::Eventual).await.as_deref(), Some("v"));
}
