//! DEG-1 on record: who may say what, and what it comes to.

use std::collections::BTreeSet;

use meridian_types::{
    Acks, AutoFailover, AutoMode, Bucket, BucketChange, BucketName, BucketSpec, ClusterId, Copies, Epoch, Hlc, Labels,
    NodeName, OnPartition, OperationId, Policy, RefusalKind, RegionId, RegionName, Selection, ShardId, Standing,
    StandingWord, SwitchoverSpec,
};

use proptest::prelude::*;

use crate::command::{Action, Command, Form, NodeSpec};
use crate::state::ClusterState;

const SHARDS: u16 = 4;
const US: RegionId = RegionId(1);
const EU: RegionId = RegionId(2);

fn name(text: &str) -> BucketName {
    BucketName::new(text).unwrap()
}

struct World {
    state: ClusterState,
    commands: u128,
}

impl World {
    fn new() -> World {
        let regions = ["us-east", "eu-west", "ap-south"];
        let members = regions.map(|region| NodeSpec {
            name: NodeName::new(&format!("{region}-1")).unwrap(),
            region: RegionName::new(region).unwrap(),
            zone: "z".to_owned(),
            rpc_address: "localhost:1".to_owned(),
            replication_address: "localhost:2".to_owned(),
            version: String::new(),
        });
        let mut world = World { state: ClusterState::default(), commands: 0 };
        let form = Form { cluster: ClusterId(1), shards: SHARDS, lease_ttl_ms: 5000, members: members.to_vec() };
        world.run(Action::FormCluster(form)).unwrap();
        for (bucket, policy) in [
            ("orders", "max-availability".parse().unwrap()),
            ("ledger", Policy::sync(Acks::All)),
            ("logs", Policy::ASYNC),
        ] {
            world.create(bucket, policy).unwrap();
        }
        world
    }

    fn run(&mut self, action: Action) -> crate::reply::Answer {
        self.commands += 1;
        let command = Command {
            operation: OperationId(self.commands),
            who: "test".to_owned(),
            at_ms: 1000 * self.commands as u64,
            action,
        };
        let answer = self.state.apply(self.state.index() + 1, &command);
        assert_eq!(self.state.validate(), Ok(()));
        answer
    }

    fn create(&mut self, bucket: &str, policy: Policy) -> crate::reply::Answer {
        self.run(Action::CreateBucket(BucketSpec {
            name: name(bucket),
            policy,
            regions: Vec::new(),
            primary: None,
            labels: Labels::new(),
            auto: AutoFailover::default(),
        }))
    }

    fn bucket(&self, bucket: &str) -> Bucket {
        self.state.bucket_named(&name(bucket)).unwrap().as_ref().clone()
    }

    fn standing(&self, bucket: &str) -> Standing {
        self.bucket(bucket).standing
    }

    fn word(&self, bucket: &str, copies: Copies) -> StandingWord {
        let bucket = self.bucket(bucket);
        StandingWord { bucket: bucket.id, epoch: bucket.epoch, since: bucket.standing.since(), copies }
    }

    fn say(&mut self, region: RegionId, word: StandingWord) {
        self.run(Action::ReportStanding { region, words: vec![word] }).unwrap();
    }

    fn hear(&mut self, bucket: &str, copies: Copies) {
        self.say(US, self.word(bucket, copies));
    }

    fn set(&mut self, bucket: &str, change: BucketChange) -> crate::reply::Answer {
        self.run(Action::SetBucket { name: name(bucket), change })
    }

    fn verbs(&self) -> Vec<String> {
        let verbs = ["degrade", "recover", "sync"];
        self.state.events().map(|it| it.verb.clone()).filter(|verb| verbs.contains(&verb.as_str())).collect()
    }
}

fn lacking() -> Copies {
    Copies::Lacking { shards: [ShardId(0)].into(), reason: "eu-west does not answer".to_owned() }
}

fn ready(shards: std::ops::Range<u16>) -> Copies {
    Copies::Ready(shards.map(ShardId).collect())
}

#[test]
fn a_bucket_degrades_recovers_and_is_sync_again_once_every_shard_said_so() {
    let mut world = World::new();
    world.hear("orders", lacking());
    let degraded = world.standing("orders");
    assert!(matches!(&degraded, Standing::Degraded { reason, .. } if reason == "eu-west does not answer"));
    world.hear("orders", ready(0..3));
    assert_eq!(world.standing("orders").since(), degraded.since(), "one shard's targets do not answer yet");
    world.hear("orders", ready(3..4));
    let recovering = world.standing("orders");
    assert_eq!(recovering.exposed_since(), Some(degraded.since()));
    assert!(matches!(&recovering, Standing::Recovering { ready, .. } if ready.is_empty()), "each has to say it anew");
    world.hear("orders", ready(1..4));
    assert!(!world.standing("orders").is_sync(), "one shard's targets lack something");
    world.hear("orders", ready(0..1));
    assert!(world.standing("orders").is_sync());
    assert_eq!(world.verbs(), ["degrade", "recover", "sync"]);
}

#[test]
fn words_about_another_stretch_of_time_count_for_nothing() {
    let mut world = World::new();
    let first = world.word("orders", lacking());
    world.say(US, first.clone());
    let early = world.word("orders", ready(0..4));
    world.hear("orders", ready(0..4));
    // They said that their targets answered, not that these have everything.
    world.say(US, early);
    assert_eq!(world.standing("orders").ready(), Some(&BTreeSet::new()));
    // A second failure while it recovers: exposed since the first one, and nobody is ready any more.
    world.hear("orders", ready(0..3));
    let exposed = world.standing("orders").exposed_since();
    let late = world.word("orders", ready(0..4));
    world.hear("orders", lacking());
    assert_eq!(world.standing("orders").exposed_since(), exposed);
    world.hear("orders", ready(0..4));
    world.say(US, late);
    assert_eq!(world.standing("orders").ready(), Some(&BTreeSet::new()));
    world.hear("orders", ready(0..4));
    world.say(US, first);
    assert!(world.standing("orders").is_sync());
}

#[test]
fn only_the_primary_region_under_its_epoch_is_heard() {
    let mut world = World::new();
    world.say(EU, world.word("orders", lacking()));
    world.say(US, StandingWord { epoch: Epoch(2), ..world.word("orders", lacking()) });
    world.say(US, StandingWord { since: Hlc(7), ..world.word("orders", lacking()) });
    world.hear("ledger", lacking());
    world.hear("logs", lacking());
    world.hear("orders", ready(0..4));
    assert!(["orders", "ledger", "logs"].iter().all(|bucket| world.standing(bucket).is_sync()));
    assert!(world.verbs().is_empty());
}

#[test]
fn a_shard_whose_targets_fall_silent_again_is_no_longer_ready() {
    let mut world = World::new();
    world.hear("orders", lacking());
    world.hear("orders", ready(0..3));
    world.hear("orders", lacking());
    world.hear("orders", ready(3..4));
    assert!(world.standing("orders").is_degraded());
    world.hear("orders", ready(0..1));
    assert!(matches!(world.standing("orders"), Standing::Recovering { .. }));
}

#[test]
fn a_new_epoch_starts_the_stretch_anew_and_nothing_changes_between_primaries() {
    let mut world = World::new();
    world.hear("orders", lacking());
    world.hear("orders", ready(0..4));
    world.hear("orders", ready(0..3));
    let (before, last) = (world.standing("orders"), world.word("orders", ready(0..4)));
    let spec = SwitchoverSpec {
        to: RegionName::new("eu-west").unwrap(),
        buckets: Selection::Named(vec![name("orders")]),
        lag_ms_max: 1000,
        pause_ms_max: 5000,
        reason: String::new(),
    };
    world.run(Action::Switchover(spec)).unwrap();
    let plan = world.state.plans().next().unwrap().id;
    let facts = (0..SHARDS).map(|shard| (ShardId(shard), meridian_types::Fact::CaughtUp)).collect();
    let word = meridian_types::Word { plan, bucket: world.bucket("orders").id, epoch: Epoch(1), facts };
    world.run(Action::Report { region: US, words: vec![word] }).unwrap();
    assert!(world.bucket("orders").is_between_primaries());
    let draining = world.standing("orders");
    assert!(draining.since() > before.since() && draining.exposed_since() == before.exposed_since());
    assert_eq!(draining.ready(), Some(&BTreeSet::new()));
    world.say(US, last);
    world.hear("orders", ready(0..4));
    world.hear("orders", lacking());
    assert_eq!(world.standing("orders"), draining);
}

#[test]
fn settings_change_without_an_epoch_and_only_where_they_belong() {
    let mut world = World::new();
    let max_lag = "5s".parse().map(|bound| meridian_types::MaxLag { bound, on_breach: Default::default() }).ok();
    world.set("logs", BucketChange { max_lag: Some(max_lag), ..BucketChange::default() }).unwrap();
    assert_eq!(world.bucket("logs").policy.max_lag(), max_lag);
    assert_eq!(world.bucket("logs").epoch, Epoch(1));
    for (bucket, change, says) in [
        ("orders", BucketChange { max_lag: Some(max_lag), ..BucketChange::default() }, "max-lag = 5s"),
        (
            "logs",
            BucketChange { on_partition: Some(OnPartition::DEGRADE), ..BucketChange::default() },
            "policy = async",
        ),
        (
            "logs",
            BucketChange {
                auto: Some(AutoFailover { mode: AutoMode::ZeroLoss, ..AutoFailover::default() }),
                ..BucketChange::default()
            },
            "auto = zero-loss",
        ),
        (
            "ledger",
            BucketChange {
                auto: Some(AutoFailover {
                    successors: vec![RegionName::new("mars").unwrap()],
                    ..AutoFailover::default()
                }),
                ..BucketChange::default()
            },
            "mars",
        ),
        (
            "ledger",
            BucketChange { on_partition: Some(OnPartition::Degrade { after_ms: 1 }), ..BucketChange::default() },
            "degrade-after",
        ),
    ] {
        let refused = world.set(bucket, change).unwrap_err();
        assert!(refused.message.contains(says), "{}", refused.message);
        assert!(matches!(refused.kind, RefusalKind::Invalid | RefusalKind::NotFound));
    }
    let small =
        "3ops".parse().map(|bound| meridian_types::MaxLag { bound, on_breach: meridian_types::Breach::Block }).ok();
    let refused = world.set("logs", BucketChange { max_lag: Some(small), ..BucketChange::default() }).unwrap_err();
    assert!(refused.message.contains("at least 4ops, or"), "{}", refused.message);
    let auto = AutoFailover {
        mode: AutoMode::ZeroLoss,
        successors: vec![RegionName::new("ap-south").unwrap()],
        ..AutoFailover::default()
    };
    world.set("ledger", BucketChange { auto: Some(auto), ..BucketChange::default() }).unwrap();
    assert_eq!(world.bucket("ledger").auto.successors, [RegionId(3)]);
}

#[test]
fn a_degraded_bucket_that_may_no_longer_degrade_recovers_before_it_is_sync() {
    let mut world = World::new();
    world.hear("orders", lacking());
    let exposed = world.standing("orders").exposed_since();
    world.set("orders", BucketChange { on_partition: Some(OnPartition::Block), ..BucketChange::default() }).unwrap();
    assert!(matches!(world.standing("orders"), Standing::Recovering { .. }));
    assert_eq!(world.standing("orders").exposed_since(), exposed);
    world.hear("orders", lacking());
    assert!(matches!(world.standing("orders"), Standing::Recovering { .. }), "it may not degrade");
    world.hear("orders", ready(0..4));
    assert!(world.standing("orders").is_sync());
}

/// What somebody says: of now, or again what was said some words ago; shards by bits.
fn says() -> impl Strategy<Value = (bool, u8, usize, bool)> {
    (prop::bool::weighted(0.3), 1u8..16, 0usize..12, prop::bool::weighted(0.9))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// DEG-1: whatever comes late, twice or from elsewhere, a stretch ends only by what was said of it.
    #[test]
    fn a_stretch_ends_only_when_every_shard_of_the_primary_said_so_of_it(history in prop::collection::vec(says(), 1..80)) {
        let mut world = World::new();
        let mut said: Vec<(StandingWord, bool)> = Vec::new();
        for (is_lacking, bits, back, from_primary) in history {
            let shards: BTreeSet<_> = (0..SHARDS).filter(|shard| bits & (1 << shard) != 0).map(ShardId).collect();
            let copies =
                if is_lacking { Copies::Lacking { shards, reason: String::new() } } else { Copies::Ready(shards) };
            let late = said.len().checked_sub(back + 1).filter(|_| back > 6).and_then(|at| said.get(at)).cloned();
            let (word, from_primary) = late.unwrap_or_else(|| (world.word("orders", copies), from_primary));
            let before = world.standing("orders");
            world.say(if from_primary { US } else { EU }, word.clone());
            said.push((word, from_primary));
            let after = world.standing("orders");
            if after.since() == before.since() {
                continue;
            }
            let of_it: Vec<_> =
                said.iter().filter(|(word, heard)| *heard && word.since == before.since()).map(|(word, _)| word).collect();
            let ready: BTreeSet<_> = of_it.iter().flat_map(|word| match &word.copies {
                Copies::Ready(shards) => shards.clone(),
                Copies::Lacking { .. } | Copies::Followed(_) | Copies::Filled { .. } | Copies::Stopped { .. } | Copies::Arrived { .. } | Copies::Parted { .. } => BTreeSet::new(),
            }).collect();
            if after.is_degraded() {
                let was_lacking = of_it.iter().any(|word| matches!(word.copies, Copies::Lacking { .. }));
                prop_assert!(was_lacking);
            } else {
                prop_assert_eq!(ready.len(), usize::from(SHARDS));
                prop_assert_eq!(after.is_sync(), matches!(before, Standing::Recovering { .. }));
            }
        }
    }
}
