//! The simulated planet itself: it serves, it is the same each time, and it gets over what is broken.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use chaos::target::Target;
use chaos::world::{Fault, Keep, Planet, Setup};
use meridian_types::*;
use tokio::time::sleep;

const HOME: RegionId = RegionId(1);
const AWAY: RegionId = RegionId(2);

fn setup() -> Setup {
    let mut setup = Setup::three_regions().unwrap();
    for (name, policy) in
        [("async", Policy::ASYNC), ("sync", Policy::sync(Acks::One)), ("active", Policy::ActiveActive)]
    {
        setup.buckets.push(BucketSpec {
            name: BucketName::new(name).unwrap(),
            policy,
            regions: Vec::new(),
            primary: None,
            labels: Labels::default(),
            auto: Default::default(),
        });
    }
    setup
}

fn put(bucket: &str, key: &str, value: &str, sequence: u64) -> Request {
    Request::Write {
        bucket: BucketName::new(bucket).unwrap(),
        write: Write::Put {
            key: Key::new(key.to_owned()).unwrap(),
            value: Value::new(value.to_owned()).unwrap(),
            ttl_ms: None,
        },
        ack: WriteAck::Policy,
        id: RequestId { client: ClientId(9), sequence },
        lowest_outstanding: 1,
        begun: Epoch(0),
        session: SessionToken::default(),
        deadline_ms: 5000,
    }
}

fn get(bucket: &str, key: &str, level: ReadLevel) -> Request {
    Request::Read {
        bucket: BucketName::new(bucket).unwrap(),
        read: Read::Get { key: Key::new(key.to_owned()).unwrap() },
        level,
        stale: StalePolicy::Wait,
        session: SessionToken::default(),
        deadline_ms: 5000,
    }
}

/// A world with writes in every bucket from everywhere while things break; its hash, and how many writes were done.
fn restless(seed: u64) -> (u64, usize) {
    Planet::play(seed, setup(), async |planet: Planet| {
        planet.start().await.unwrap();
        let dice = planet.dice().fork();
        let faults = async {
            sleep(Duration::from_secs(2)).await;
            let away = Duration::from_secs(3);
            Fault::Crash { node: dice.index(3), keep: Keep::Torn, away }.strike(&planet).await;
            Fault::Isolate { node: dice.index(3), lasts: away }.strike(&planet).await;
            Fault::Loss { from: 0, to: 1, share: 0.2, lasts: away }.strike(&planet).await;
            Fault::Pause { node: dice.index(3), lasts: away }.strike(&planet).await;
            Fault::CrashMetadataLeader { away }.strike(&planet).await;
            planet.heal();
            sleep(Duration::from_secs(8)).await;
        };
        let mut done = 0;
        let writes = async {
            for sequence in 1..150 {
                let bucket = ["async", "sync", "active"][dice.index(3)];
                let region = RegionId(1 + u16::try_from(dice.index(3)).unwrap());
                let request = put(bucket, &format!("key {}", dice.index(20)), &sequence.to_string(), sequence);
                done += usize::from(planet.ask(region, request).await.is_ok());
                sleep(Duration::from_millis(50)).await;
            }
        };
        futures::future::join(faults, writes).await;
        (planet.trace().hash(), done)
    })
}

#[test]
fn a_planet_serves_every_kind_of_bucket_from_every_region() {
    Planet::play(1, setup(), async |planet: Planet| {
        planet.start().await.unwrap();
        sleep(Duration::from_secs(2)).await;
        for (bucket, sequence) in [("async", 1), ("sync", 2), ("active", 3)] {
            let written = planet.ask(AWAY, put(bucket, "k", bucket, sequence)).await.unwrap();
            let regions = written.durability.unwrap().regions;
            assert_eq!(regions, if bucket == "sync" { 2 } else { 1 }, "{bucket}");
            sleep(Duration::from_secs(1)).await;
            let level = if bucket == "active" { ReadLevel::Eventual } else { ReadLevel::Strong };
            let read = planet.ask(RegionId(3), get(bucket, "k", level)).await.unwrap();
            let Outcome::Value(Some(found)) = read.outcome else { panic!("{bucket}: {read:?}") };
            assert_eq!(found.value, bucket);
        }
    });
}

#[test]
fn one_seed_is_one_world_to_the_last_message() {
    for seed in 0..10 {
        let (first, second) = (restless(seed), restless(seed));
        assert_eq!(first, second, "seed {seed}");
        assert!(first.1 > 50, "seed {seed}: only {} writes were done", first.1);
    }
    assert_ne!(restless(1).0, restless(2).0);
}

#[test]
fn what_was_acknowledged_survives_the_loss_of_everything_unsynced() {
    for seed in 0..10 {
        Planet::play(seed, setup(), async |planet: Planet| {
            planet.start().await.unwrap();
            sleep(Duration::from_secs(1)).await;
            for round in 0..20 {
                let value = round.to_string();
                planet.ask(HOME, put("async", "k", &value, round + 1)).await.unwrap();
                planet.crash(0, Keep::None);
                planet.restart(0);
                while !planet.is_open(0) {
                    sleep(Duration::from_millis(10)).await;
                }
                sleep(Duration::from_secs(3)).await;
                let read = planet.ask(HOME, get("async", "k", ReadLevel::Strong)).await.unwrap();
                let Outcome::Value(Some(found)) = read.outcome else { panic!("{read:?}") };
                assert_eq!(found.value, value);
            }
        });
    }
}

fn value(answer: Result<Response, Refusal>) -> String {
    let Outcome::Value(Some(found)) = answer.unwrap().outcome else { panic!("nothing is there") };
    String::from_utf8(found.value.to_vec()).unwrap()
}

#[test]
fn a_node_whose_sync_fails_ends_and_is_back_with_what_its_disk_kept() {
    for (keep, kept) in [(Keep::None, "before"), (Keep::All, "meanwhile")] {
        Planet::play(1, setup(), async |planet: Planet| {
            planet.start().await.unwrap();
            sleep(Duration::from_secs(1)).await;
            planet.ask(HOME, put("async", "k", "before", 1)).await.unwrap();
            let fault = Fault::FailingDisk { node: 0, keep, lasts: Duration::from_secs(3) };
            let meanwhile = async {
                sleep(Duration::from_millis(100)).await;
                let answer = planet.ask(HOME, put("async", "k", "meanwhile", 2)).await;
                assert_eq!(answer.unwrap_err().effect, Effect::Unknown, "nobody knows whether it is on the disk");
                sleep(Duration::from_millis(100)).await;
                assert!(!planet.is_up(0));
            };
            futures::future::join(fault.strike(&planet), meanwhile).await;
            sleep(Duration::from_secs(6)).await;
            assert_eq!(value(planet.ask(HOME, get("async", "k", ReadLevel::Strong)).await), kept);
            assert_eq!(planet.hits()["node ended at a failed sync"], 1);
            assert_eq!(planet.ended_nodes(), [], "it is no failure of the product");
        });
    }
}

#[test]
fn a_slow_node_answers_late_and_loses_nothing() {
    Planet::play(1, setup(), async |planet: Planet| {
        planet.start().await.unwrap();
        sleep(Duration::from_secs(1)).await;
        let lasts_us = async |sequence: u64| {
            let begun_us = planet.now_us();
            planet.ask(HOME, put("async", "k", &sequence.to_string(), sequence)).await.unwrap();
            planet.now_us() - begun_us
        };
        let usual_us = lasts_us(1).await;
        planet.slow_down(0, Some(Duration::from_millis(200)));
        let late_us = lasts_us(2).await;
        assert!(late_us > usual_us + 60_000, "several steps of 20 ms at least: {late_us} instead of {usual_us}");
        planet.slow_down(0, None);
        sleep(Duration::from_secs(1)).await;
        let again_us = lasts_us(3).await;
        assert!(again_us < usual_us + 20_000, "{again_us} instead of {usual_us}");
        assert_eq!(value(planet.ask(HOME, get("async", "k", ReadLevel::Strong)).await), "3");
    });
}

#[test]
fn a_region_that_was_away_for_longer_than_logs_are_kept_gets_rows_instead() {
    let mut setup = setup();
    (setup.retention_bytes, setup.purge_entries, setup.persist_every) = (2 << 10, 1, Duration::from_millis(500));
    Planet::play(1, setup, async |planet: Planet| {
        planet.start().await.unwrap();
        planet.crash(1, Keep::All);
        for round in 0..100 {
            for bucket in ["async", "active"] {
                planet.ask(HOME, put(bucket, "k", &round.to_string(), round + 1)).await.unwrap();
            }
            sleep(Duration::from_millis(50)).await;
        }
        planet.restart(1);
        sleep(Duration::from_secs(20)).await;
        for bucket in ["async", "active"] {
            assert_eq!(value(planet.ask(AWAY, get(bucket, "k", ReadLevel::Eventual)).await), "99", "{bucket}");
        }
        let hits = planet.hits();
        assert!(hits.contains_key("rows replaced behind a log") && hits.contains_key("rows merged behind a log"));
    });
}
