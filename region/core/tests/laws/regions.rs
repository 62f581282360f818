//! Three regions, an active-active bucket, frames in any order: CON-4 and CON-5, against a model that knows of every
//! single operation which others it had seen.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use meridian_region_core::FrameResult;
use meridian_types::{Lane, Outcome, RegionId, RequestId, Version, Write};
use proptest::prelude::*;

use crate::world::{MERGED, Replica, key, value};

const KEYS: [&str; 3] = ["k", "l", "m"];

#[derive(Clone, Debug)]
enum Step {
    Put {
        at: usize,
        key: usize,
        to: String,
    },
    Increment {
        at: usize,
        key: usize,
        by: i64,
    },
    Delete {
        at: usize,
        key: usize,
    },
    /// A frame of a few entries, from where the receiver stands.
    Ship {
        from: usize,
        to: usize,
        entries: usize,
    },
    /// A frame from an earlier or later position than where the receiver stands.
    Misdeliver {
        from: usize,
        to: usize,
        previous: u64,
        entries: usize,
    },
    Restart {
        at: usize,
    },
}

fn any_step() -> impl Strategy<Value = Step> {
    let (at, k) = (|| 0usize..3, || 0usize..KEYS.len());
    prop_oneof![
        3 => (at(), k(), "[a-z]{0,3}").prop_map(|(at, key, to)| Step::Put { at, key, to }),
        4 => (at(), k(), -9i64..10).prop_map(|(at, key, by)| Step::Increment { at, key, by }),
        3 => (at(), k()).prop_map(|(at, key)| Step::Delete { at, key }),
        5 => (at(), at(), 1usize..5).prop_map(|(from, to, entries)| Step::Ship { from, to, entries }),
        2 => (at(), at(), 0u64..30, 1usize..5)
            .prop_map(|(from, to, previous, entries)| Step::Misdeliver { from, to, previous, entries }),
        1 => at().prop_map(|at| Step::Restart { at }),
    ]
}

/// Every operation ever made, by its version.
#[derive(Default)]
struct Model {
    registers: BTreeMap<usize, BTreeMap<Version, Option<String>>>,
    increments: BTreeMap<usize, BTreeMap<Version, i64>>,
    removed: BTreeSet<Version>,
}

impl Model {
    fn text(&self, key: usize) -> Option<String> {
        let register = self.registers.get(&key).and_then(|register| register.last_key_value()?.1.clone());
        let left =
            self.increments.get(&key).into_iter().flatten().filter(|(version, _)| !self.removed.contains(version));
        let left: Vec<i64> = left.map(|(_, by)| *by).filter(|by| *by != 0).collect();
        register.or_else(|| (!left.is_empty()).then(|| left.iter().sum::<i64>().to_string()))
    }
}

struct World {
    replicas: Vec<Replica>,
    model: Model,
    /// The operations each replica has applied, per origin in order.
    operations: Vec<Vec<(u64, usize, Version)>>,
}

impl World {
    fn new() -> World {
        World {
            replicas: (1..=3).map(Replica::new).collect(),
            model: Model::default(),
            operations: vec![Vec::new(); 3],
        }
    }

    fn merge(&mut self, at: usize, key: usize, write: &Write) -> Option<Outcome> {
        self.replicas[at].wall_ms += 1;
        let result = self.replicas[at].merge(RequestId::default(), write).ok()?;
        let version = Version { hlc: result.hlc, region: RegionId(at as u16 + 1) };
        self.operations[at].push((result.lsn.0, key, version));
        result.outcome.ok()
    }

    /// What a replica has seen of a key's operations.
    fn seen(&self, at: usize, key: usize) -> Vec<Version> {
        let replica = &self.replicas[at];
        let mut seen = Vec::new();
        for (origin, operations) in self.operations.iter().enumerate() {
            let region = RegionId(origin as u16 + 1);
            let position = replica.shard.digest(MERGED).map(|digest| digest.positions.of(region)).unwrap_or_default();
            seen.extend(operations.iter().filter(|(lsn, on, _)| *lsn <= position.0 && *on == key).map(|(_, _, v)| *v));
        }
        seen
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Put { at, key: k, to } => {
                let write = Write::Put { key: key(KEYS[k]), value: value(&to), ttl_ms: None };
                let Some(Outcome::Written { version }) = self.merge(at, k, &write) else { panic!("a put is accepted") };
                self.model.registers.entry(k).or_default().insert(version, Some(to));
            }
            Step::Increment { at, key: k, by } => {
                let write = Write::Increment { key: key(KEYS[k]), by };
                // Refused where a value is seen; then nothing happened.
                if let Some(Outcome::Count { version, .. }) = self.merge(at, k, &write) {
                    self.model.increments.entry(k).or_default().insert(version, by);
                }
            }
            Step::Delete { at, key: k } => {
                let seen = self.seen(at, k);
                let existed = self.replicas[at].text(MERGED, KEYS[k]).is_some();
                let outcome = self.merge(at, k, &Write::Delete { key: key(KEYS[k]) });
                let Some(Outcome::Deleted { version, existed: told }) = outcome else { panic!("a delete is accepted") };
                assert_eq!(told, existed);
                self.model.registers.entry(k).or_default().insert(version, None);
                self.model.removed.extend(seen);
            }
            Step::Ship { from, to, entries } if from != to => {
                let source = self.replicas[from].clone();
                let watermark = self.replicas[to].shard.watermark(source.region, Lane::Async);
                let Some(frame) = source.frame_after(watermark, Lane::Async, entries) else { return };
                let (result, applied) = self.replicas[to].receive(&frame);
                assert!(matches!(&result, FrameResult::Applied { diverged, .. } if diverged.is_empty()), "{result:?}");
                assert!(applied.frame.is_some());
            }
            Step::Misdeliver { from, to, previous, entries } if from != to => {
                self.misdeliver(from, to, previous, entries)
            }
            Step::Ship { .. } | Step::Misdeliver { .. } => {}
            Step::Restart { at } => self.replicas[at].restart(),
        }
    }

    /// ORD-1: a frame that doesn't continue at the watermark changes no data, or does what it should have done.
    fn misdeliver(&mut self, from: usize, to: usize, previous: u64, entries: usize) {
        let source = self.replicas[from].clone();
        let Some(frame) = source.frame_after(meridian_types::Lsn(previous), Lane::Async, entries) else { return };
        let target = &mut self.replicas[to];
        let watermark = target.shard.watermark(source.region, Lane::Async);
        let digest = target.shard.digest(MERGED).cloned();
        let (result, _) = target.receive(&frame);
        match result {
            FrameResult::Applied { .. } => assert_eq!(watermark.0, previous),
            FrameResult::AlreadyApplied { watermark: told } | FrameResult::Gap { watermark: told } => {
                assert_eq!((told, target.shard.digest(MERGED).cloned()), (watermark, digest));
                assert_eq!(target.shard.watermark(source.region, Lane::Async), watermark);
            }
            other => panic!("{other:?}"),
        }
    }

    /// Replicas that have seen the same are equal (CON-4).
    fn check(&self) {
        for one in &self.replicas {
            one.check_digests();
            for other in &self.replicas {
                if let (Some(a), Some(b)) = (one.shard.digest(MERGED), other.shard.digest(MERGED)) {
                    assert_ne!(a.agrees_with(b), Some(false), "{:?} and {:?}", one.region, other.region);
                }
            }
        }
    }

    fn heal(&mut self) {
        for _ in 0..2 {
            for (from, to) in [(0, 1), (1, 2), (2, 0), (1, 0), (2, 1), (0, 2)] {
                let source = self.replicas[from].clone();
                self.replicas[to].follow(&source, Lane::Async, 3);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn regions_that_wrote_apart_become_equal_and_lose_nothing(steps in prop::collection::vec(any_step(), 1..80)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
            world.check();
        }
        world.heal();
        world.check();
        let digests: Vec<_> = world.replicas.iter().map(|replica| replica.shard.digest(MERGED).cloned()).collect();
        prop_assert_eq!(&digests[0], &digests[1]);
        prop_assert_eq!(&digests[0], &digests[2]);
        for (at, k) in KEYS.iter().enumerate() {
            for replica in &world.replicas {
                prop_assert_eq!(replica.text(MERGED, k), world.model.text(at), "{} in {:?}", k, replica.region);
            }
        }
    }

    #[test]
    fn entries_and_frames_of_any_size_in_any_order_carry_the_same_bytes(
        writes in prop::collection::vec((0usize..KEYS.len(), -5i64..6), 1..20), size in 1usize..7
    ) {
        let mut source = Replica::new(1);
        for (k, by) in writes {
            source.merge(RequestId::default(), &Write::Increment { key: key(KEYS[k]), by }).unwrap();
        }
        let (mut small, mut large) = (Replica::new(2), Replica::new(2));
        small.follow(&source, Lane::Async, size);
        large.follow(&source, Lane::Async, usize::MAX);
        let data = |replica: &Replica| -> Vec<(Vec<u8>, Bytes)> {
            let (from, to) = meridian_region_core::keys::data_range(crate::world::SHARD, MERGED);
            let pairs = replica.state.iter().filter(|(key, _)| from.as_slice() <= *key && *key < to.as_slice());
            pairs.map(|(key, value)| (key.to_vec(), value.clone())).collect()
        };
        prop_assert_eq!(data(&small), data(&source));
        prop_assert_eq!(data(&large), data(&source));
    }
}
