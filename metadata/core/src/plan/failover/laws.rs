//! Laws of failovers: whatever the regions that are left say, in any order, and whoever gives up in between.

use std::collections::BTreeMap;

use meridian_types::{Acks, Epoch, Exposure, Fact, Lsn, Phase, PlanId, Policy, RegionId, Remains, ShardId, Step, Word};
use proptest::prelude::*;

use crate::plan::laws::{EU, SHARDS, US, World, named, seal};
use crate::{AbortScope, ClusterState};

const AP: RegionId = RegionId(3);

/// One thing that happens to the bucket `pay`, whose every write is in two of its three regions.
#[derive(Clone, Debug)]
enum Happens {
    Asked {
        to: Option<bool>,
        consent: bool,
    },
    /// A region speaks of some shards.
    Told {
        region: u16,
        shards: u8,
        epoch: u64,
        lsn: u64,
        whole: bool,
        lacks: u64,
    },
    Looked {
        absent: u8,
        quiet: bool,
    },
    GivenUp,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        2 => (prop::option::of(any::<bool>()), any::<bool>()).prop_map(|(to, consent)| Happens::Asked { to, consent }),
        12 => (1u16..4, 1u8..8, 0u64..2, 10u64..13, prop::bool::weighted(0.9), 0u64..3).prop_map(
            |(region, shards, epoch, lsn, whole, lacks)| Happens::Told { region, shards, epoch, lsn, whole, lacks }
        ),
        4 => (0u8..4, any::<bool>()).prop_map(|(absent, quiet)| Happens::Looked { absent, quiet }),
        1 => Just(Happens::GivenUp),
    ]
}

struct Told {
    world: World,
    plan: Option<PlanId>,
    /// The highest rank each region has told of each shard, under the present operation.
    ranks: BTreeMap<(RegionId, ShardId), (Epoch, Lsn)>,
    quiet: bool,
}

impl Told {
    fn new() -> Told {
        let mut world = World::new();
        world.create_in("pay", Policy::sync(Acks::Majority), &["us", "eu", "ap"]);
        Told { world, plan: None, ranks: BTreeMap::new(), quiet: false }
    }

    fn happen(&mut self, what: &Happens) {
        let bucket = self.world.bucket("pay");
        match what {
            Happens::Asked { to, consent } => {
                let to = to.map(|eu| if eu { "eu" } else { "ap" });
                let consent = consent.then(|| self.world.consent("pay", 2, 20));
                if let Ok(plan) = self.world.failover(to, named(&["pay"]), consent) {
                    (self.plan, self.quiet) = (Some(plan), false);
                    self.ranks.clear();
                }
            }
            Happens::Told { region, shards, epoch, lsn, whole, lacks } => {
                let Some(plan) = self.plan else { return };
                let region = RegionId(*region);
                let before = Epoch(bucket.epoch.0.saturating_sub(1 + epoch));
                let exposure = Exposure { head: Lsn(lsn + lacks), operations: *lacks, bytes: lacks * 10, oldest_ms: 1 };
                let shards: Vec<ShardId> = (0..SHARDS).filter(|it| shards & (1 << it) != 0).map(ShardId).collect();
                let facts = shards.iter().map(|shard| {
                    let seal = meridian_types::Seal { lsn: Lsn(*lsn), ..seal(shard.0, *lsn) };
                    (*shard, Fact::Fenced(Remains { epoch: before, seal, exposure: Some(exposure), whole: *whole }))
                });
                let word = Word { plan, bucket: bucket.id, epoch: bucket.epoch, facts: facts.collect() };
                let counts = region != US && bucket.is_between_primaries();
                self.world.tell(region, word);
                for shard in shards.into_iter().filter(|_| counts) {
                    let known = self.ranks.entry((region, shard)).or_default();
                    *known = (*known).max((before, Lsn(*lsn)));
                }
            }
            Happens::Looked { absent, quiet } => {
                let Some(plan) = self.plan else { return };
                let absent: Vec<&str> =
                    [(1, "eu"), (2, "ap")].iter().filter(|(bit, _)| absent & bit != 0).map(|(_, name)| *name).collect();
                self.quiet |= *quiet && bucket.is_between_primaries();
                self.world.advance(plan, "pay", &absent, *quiet).unwrap();
            }
            Happens::GivenUp => {
                if let Some(plan) = self.plan {
                    let _ = self.world.abort(plan, AbortScope::All, "a law");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// DUR-2, FEN-1: who is promoted without consent has all that any of enough regions had, and the lost one's leases are out.
    #[test]
    fn who_succeeds_has_everything_or_somebody_agreed(history in prop::collection::vec(happens(), 1..120)) {
        let mut told = Told::new();
        for what in &history {
            let (before, was) = (told.world.bucket("pay"), told.plan);
            let agreed = was.and_then(|plan| match told.world.step(plan, "pay") {
                Step::Fencing { muster, .. } | Step::Pulling { muster, .. } => muster.accepted,
                _ => None,
            });
            told.happen(what);
            let after = told.world.bucket("pay");
            prop_assert!(after.epoch >= before.epoch);
            if after.primary == before.primary {
                continue;
            }
            let Step::FailedOver { to, verdict, .. } = told.world.step(told.plan.unwrap(), "pay") else {
                panic!("a primary changed without a failover")
            };
            prop_assert!(told.quiet, "promoted before the leases ran out");
            prop_assert_eq!((after.primary, after.phase), (Some(to), Phase::Steady));
            prop_assert!(verdict.proven || agreed.is_some_and(|agreed| agreed.covers(verdict.lost)));
            if verdict.proven {
                for shard in (0..SHARDS).map(ShardId) {
                    let most = [EU, AP].iter().filter_map(|region| told.ranks.get(&(*region, shard))).max();
                    prop_assert!(told.ranks.get(&(to, shard)) >= most, "{to} lacks something of shard {shard}");
                    prop_assert!([EU, AP].iter().all(|region| told.ranks.contains_key(&(*region, shard))));
                }
            }
            // From here on the world would need another bucket whose primary is `us`.
            break;
        }
        prop_assert_eq!(ClusterState::decode(&told.world.state.encode()).unwrap(), told.world.state);
    }
}
