//! Regions of several nodes on the simulated planet: what a majority has stays, whoever is gone; who was deposed answers nobody.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use chaos::check::are_equal;
use chaos::scenario::Scenario;
use chaos::swarm::play;
use chaos::target::Target;
use chaos::trace::Fact;
use chaos::world::{Fault, Keep, Planet, Setup};
use meridian_types::*;
use tokio::time::sleep;

const HOME: RegionId = RegionId(1);
const SHARD: ShardId = ShardId(0);

fn setup() -> Setup {
    let bucket = BucketSpec {
        name: BucketName::new("b").unwrap(),
        policy: Policy::ASYNC,
        regions: Vec::new(),
        primary: None,
        labels: Labels::default(),
        auto: Default::default(),
    };
    Setup { nodes: 3, shards: 1, buckets: vec![bucket], ..Setup::three_regions().unwrap() }
}

/// Writes until that is acknowledged.
async fn put(planet: &Planet, key: u64) -> Response {
    let request = Request::Write {
        bucket: BucketName::new("b").unwrap(),
        write: Write::Put {
            key: Key::new(key.to_string()).unwrap(),
            value: Value::new(key.to_string()).unwrap(),
            ttl_ms: None,
        },
        ack: WriteAck::Policy,
        id: RequestId { client: ClientId(9), sequence: key },
        lowest_outstanding: 1,
        begun: Epoch(0),
        session: SessionToken::default(),
        deadline_ms: 2000,
    };
    loop {
        match planet.ask(HOME, request.clone()).await {
            Ok(response) => return response,
            Err(refusal) => {
                assert!(matches!(refusal.kind, RefusalKind::Retry | RefusalKind::Unavailable), "{refusal}");
            }
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// The value of a key by a strong read, if that is answered at once.
async fn strong(planet: &Planet, key: u64) -> Option<Option<String>> {
    let request = Request::Read {
        bucket: BucketName::new("b").unwrap(),
        read: Read::Get { key: Key::new(key.to_string()).unwrap() },
        level: ReadLevel::Strong,
        stale: StalePolicy::Wait,
        session: SessionToken::default(),
        deadline_ms: 1000,
    };
    let Outcome::Value(found) = planet.ask(HOME, request).await.ok()?.outcome else { panic!("no value was told") };
    Some(found.map(|found| String::from_utf8(found.value.to_vec()).unwrap()))
}

async fn has_all(planet: &Planet, keys: u64) {
    for key in 1..=keys {
        let found = loop {
            match strong(planet, key).await {
                Some(found) => break found,
                None => sleep(Duration::from_millis(100)).await,
            }
        };
        assert_eq!(found, Some(key.to_string()));
    }
}

#[test]
fn dur_1_what_was_acknowledged_survives_its_leaders_and_the_loss_of_a_disk() {
    for seed in 0..6 {
        Planet::play(seed, setup(), async |planet: Planet| {
            planet.start().await.unwrap();
            for key in 1..=12 {
                let written = put(&planet, key).await;
                assert_eq!(written.durability.unwrap().nodes, 2, "a majority of three");
                // At the very moment it was told.
                let leader = planet.leader_of(0, SHARD).unwrap();
                match key {
                    6 => planet.lose(leader),
                    _ => planet.crash(leader, Keep::None),
                }
                sleep(Duration::from_millis(50)).await;
                planet.restart(leader);
            }
            has_all(&planet, 12).await;
            sleep(Duration::from_secs(5)).await;
            assert_eq!(planet.held().len(), 8, "one is gone for good");
            assert!(are_equal(&planet.held()));
        });
    }
}

#[test]
fn con_1_a_leader_that_was_deposed_and_does_not_know_answers_no_strong_read() {
    let mut believed = 0;
    for seed in 0..6 {
        Planet::play(seed, setup(), async |planet: Planet| {
            planet.start().await.unwrap();
            put(&planet, 1).await;
            let old = planet.leader_of(0, SHARD).unwrap();
            let cut = Fault::CutLeader { node: 0, shard: 0, deaf: false, lasts: Duration::from_secs(8) };
            let meanwhile = async {
                sleep(Duration::from_secs(3)).await;
                let mut both = false;
                for key in 2..=6 {
                    put(&planet, key).await;
                    let leads = |node: &usize| planet.handle(*node).is_some_and(|handle| handle.leads(SHARD));
                    let leaders: Vec<_> = planet.nodes_of(HOME).into_iter().filter(leads).collect();
                    both |= leaders.len() == 2 && leaders.contains(&old);
                    for _ in 0..6 {
                        // Whichever node is asked: it says the newest, or nothing.
                        let found = strong(&planet, key).await;
                        assert!(found.is_none() || found == Some(Some(key.to_string())), "{found:?}");
                    }
                }
                believed += usize::from(both);
            };
            futures::future::join(cut.strike(&planet), meanwhile).await;
            sleep(Duration::from_secs(5)).await;
            has_all(&planet, 6).await;
            assert!(are_equal(&planet.held()));
        });
    }
    assert!(believed >= 4, "two take themselves for the leader: in {believed} worlds of 6");
}

/// Other regions still reach the leader that was deposed; they would wait for it for as long as it is cut off.
#[test]
fn iso_1_a_lane_leaves_a_target_that_can_not_prove_any_more_that_it_leads() {
    let mut all = setup();
    all.buckets[0].policy = Policy::sync(Acks::All);
    Planet::play(1, all, async |planet: Planet| {
        planet.start().await.unwrap();
        put(&planet, 1).await;
        let cut = Fault::CutLeader { node: 1, shard: 0, deaf: false, lasts: Duration::from_secs(25) };
        let meanwhile = async {
            sleep(Duration::from_millis(100)).await;
            let begun_us = planet.now_us();
            let written = put(&planet, 2).await;
            assert_eq!(written.durability.unwrap().regions, 3);
            let took_us = planet.now_us() - begun_us;
            assert!(took_us < 9_000_000, "{took_us} us: three looks, an election, and a retry");
        };
        futures::future::join(cut.strike(&planet), meanwhile).await;
    });
}

#[test]
fn who_comes_back_behind_the_log_is_filled_by_a_snapshot() {
    let short =
        Setup { retention_bytes: 2 << 10, purge_entries: 1, persist_every: Duration::from_millis(500), ..setup() };
    Planet::play(1, short, async |planet: Planet| {
        planet.start().await.unwrap();
        let leader = planet.leader_of(0, SHARD).unwrap();
        let away = planet.nodes_of(HOME).into_iter().find(|node| *node != leader).unwrap();
        planet.crash(away, Keep::All);
        for key in 1..=80 {
            put(&planet, key).await;
            sleep(Duration::from_millis(50)).await;
        }
        planet.restart(away);
        sleep(Duration::from_secs(8)).await;
        let filled = planet.trace().records().iter().any(|record| matches!(record.fact, Fact::Installed { .. }));
        assert!(filled && are_equal(&planet.held()) && planet.held().len() == 9);
        has_all(&planet, 80).await;
    });
}

#[test]
fn one_seed_is_one_world_of_regions_of_three() {
    let drawn = (0..200).map(|seed| (seed, Scenario::drawn(seed, 20))).filter(|(_, world)| world.nodes > 1);
    let mut played = 0;
    for (seed, world) in drawn.take(4) {
        let (first, second) = (play(seed, &world), play(seed, &world));
        assert_eq!(first.hash, second.hash, "seed {seed}");
        assert!(first.failure.is_none(), "seed {seed}: {:?}", first.failure);
        played += 1;
    }
    assert_eq!(played, 4);
}
