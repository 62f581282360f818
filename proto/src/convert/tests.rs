//! Laws: what goes out comes back, and whatever comes in is a word or a clear refusal.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use meridian_types::key::{MULTI_ITEMS_MAX, SCAN_ITEMS_MAX};
use meridian_types::{
    Acks, AutoFailover, AutoMode, Breach, Bucket, BucketChange, BucketDigest, BucketEstimate, BucketId, BucketLag,
    BucketName, BucketSpec, Change, ChangeEnd, ChangeGoal, ChangeOutcome, ClientId, ClusterId, Consent, Cross,
    Crossing, Durability, EVENTS_MAX, Effect, Epoch, Estimate, Event, EventPage, EventQuery, Exposure, Freshness, Goal,
    Hlc, Joining, Joins, Key, KeyStart, LagBound, Lane, LaneState, LaneStatus, Loss, Lsn, MaxLag, MemberChange, Move,
    Muster, Node, NodeId, NodeName, NodeStatus, OnPartition, Operation, OperationId, Outcome, Phase, Plan, PlanId,
    Policy, Proof, Read, ReadLevel, Refusal, RefusalKind, Region, RegionChange, RegionId, RegionName, Regroup, Remains,
    Request, RequestId, Response, Seal, Selection, SessionToken, SetHash, ShardDigest, ShardFacts, ShardId, Stage,
    Staged, StalePolicy, Standing, Stay, Step, SwitchoverSpec, Terms, Topology, Turn, Turns, Value, Verdict, Version,
    Way, Write, WriteAck, request::Found,
};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::v1;

fn bytes(most: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..=most).prop_map(Bytes::from)
}

fn key() -> impl Strategy<Value = Key> {
    vec(any::<u8>(), 1..40).prop_map(|bytes| Key::new(bytes).unwrap())
}

fn value() -> impl Strategy<Value = Value> {
    bytes(60).prop_map(|bytes| Value::new(bytes).unwrap())
}

fn version() -> impl Strategy<Value = Version> {
    (any::<u64>(), any::<u16>()).prop_map(|(hlc, region)| Version { hlc: Hlc(hlc), region: RegionId(region) })
}

fn session() -> impl Strategy<Value = SessionToken> {
    vec((0u32..9, 0u16..16, 1u16..5, any::<u64>()), 0..6).prop_map(|seen| {
        let mut token = SessionToken::default();
        for (bucket, shard, region, lsn) in seen {
            token.observe(BucketId(bucket), ShardId(shard), RegionId(region), Lsn(lsn));
        }
        token
    })
}

fn read() -> impl Strategy<Value = Read> {
    prop_oneof![
        key().prop_map(|key| Read::Get { key }),
        vec(key(), 1..5).prop_map(|keys| Read::MultiGet { keys }),
        (bytes(9), bytes(9), 0..=SCAN_ITEMS_MAX as u32, any::<bool>())
            .prop_map(|(prefix, after, limit, values)| Read::Scan { prefix, after, limit, values }),
    ]
}

fn write() -> impl Strategy<Value = Write> {
    let ttl = || option::of(any::<u64>());
    prop_oneof![
        (key(), value(), ttl()).prop_map(|(key, value, ttl_ms)| Write::Put { key, value, ttl_ms }),
        key().prop_map(|key| Write::Delete { key }),
        (key(), value()).prop_map(|(key, suffix)| Write::Append { key, suffix }),
        (key(), any::<i64>()).prop_map(|(key, by)| Write::Increment { key, by }),
        (key(), option::of(version()), value(), ttl())
            .prop_map(|(key, expected, value, ttl_ms)| Write::CompareAndSet { key, expected, value, ttl_ms }),
        (key(), value(), ttl()).prop_map(|(key, value, ttl_ms)| Write::PutIfAbsent { key, value, ttl_ms }),
        vec((key(), value()), 1..5).prop_map(|items| Write::MultiPut { items }),
    ]
}

fn name() -> impl Strategy<Value = BucketName> {
    "[a-z0-9]([a-z0-9._-]{0,20}[a-z0-9])?".prop_map(|name| BucketName::new(&name).unwrap())
}

fn level() -> impl Strategy<Value = ReadLevel> {
    prop_oneof![
        Just(ReadLevel::Strong),
        Just(ReadLevel::Session),
        any::<u64>().prop_map(|staleness_ms_max| ReadLevel::Bounded { staleness_ms_max }),
        Just(ReadLevel::Eventual),
    ]
}

fn stale() -> impl Strategy<Value = StalePolicy> {
    prop_oneof![Just(StalePolicy::Wait), Just(StalePolicy::Redirect), Just(StalePolicy::Fail)]
}

fn ack() -> impl Strategy<Value = WriteAck> {
    prop_oneof![
        Just(WriteAck::Policy),
        Just(WriteAck::Local),
        (1u8..).prop_map(WriteAck::Regions),
        Just(WriteAck::Majority),
        Just(WriteAck::All),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    let reads = (name(), read(), level(), stale(), session(), any::<u32>()).prop_map(
        |(bucket, read, level, stale, session, deadline_ms)| Request::Read {
            bucket,
            read,
            level,
            stale,
            session,
            deadline_ms,
        },
    );
    let ids = (1u128.., 1u64..).prop_flat_map(|(client, sequence)| {
        let id = RequestId { client: ClientId(client), sequence };
        (Just(id), 0..=sequence)
    });
    let writes = (name(), write(), ack(), ids, session(), any::<u32>()).prop_map(
        |(bucket, write, ack, (id, lowest_outstanding), session, deadline_ms)| Request::Write {
            bucket,
            write,
            ack,
            id,
            lowest_outstanding,
            begun: Epoch(lowest_outstanding / 2),
            session,
            deadline_ms,
        },
    );
    prop_oneof![reads, writes]
}

fn found() -> impl Strategy<Value = Found> {
    (bytes(40), version(), option::of(any::<u64>())).prop_map(|(value, version, expires_at_ms)| Found {
        value,
        version,
        expires_at_ms,
    })
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        option::of(found()).prop_map(Outcome::Value),
        vec(option::of(found()), 0..4).prop_map(Outcome::Values),
        (vec((key(), found()), 0..4), any::<bool>()).prop_map(|(items, more)| Outcome::Page { items, more }),
        version().prop_map(|version| Outcome::Written { version }),
        (version(), any::<bool>()).prop_map(|(version, existed)| Outcome::Deleted { version, existed }),
        (version(), any::<i64>()).prop_map(|(version, value)| Outcome::Count { version, value }),
        (version(), any::<u64>()).prop_map(|(version, length)| Outcome::Length { version, length }),
        option::of(version()).prop_map(|current| Outcome::ConditionFailed { current }),
    ]
}

fn response() -> impl Strategy<Value = Response> {
    let durability = option::of((1u16.., any::<u16>()).prop_map(|(regions, nodes)| Durability { regions, nodes }));
    let freshness = (any::<u64>(), option::of(any::<u64>()))
        .prop_map(|(hlc, staleness_ms)| Freshness { hlc: Hlc(hlc), staleness_ms });
    (any::<u16>(), any::<u64>(), outcome(), freshness, durability, session()).prop_map(
        |(region, epoch, outcome, freshness, durability, session)| Response {
            region: RegionId(region),
            epoch: Epoch(epoch),
            outcome,
            freshness,
            durability,
            session,
        },
    )
}

const KINDS: [RefusalKind; 12] = [
    RefusalKind::Retry,
    RefusalKind::Redirect,
    RefusalKind::Fenced,
    RefusalKind::Conflict,
    RefusalKind::Invalid,
    RefusalKind::NotFound,
    RefusalKind::Exists,
    RefusalKind::Stale,
    RefusalKind::Unavailable,
    RefusalKind::Corrupt,
    RefusalKind::Denied,
    RefusalKind::Internal,
];

fn refusal() -> impl Strategy<Value = Refusal> {
    let effects = prop_oneof![Just(Effect::None), Just(Effect::Unknown), Just(Effect::Applied)];
    (prop::sample::select(KINDS.to_vec()), effects, ".{0,40}").prop_map(|(kind, effect, message)| Refusal {
        kind,
        effect,
        message,
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    let acks = prop_oneof![Just(Acks::One), Just(Acks::Majority), Just(Acks::All), any::<u8>().prop_map(Acks::Regions)];
    let breach = prop::sample::select(vec![Breach::Alarm, Breach::Throttle, Breach::Block]);
    let max_lag = (bound(), breach).prop_map(|(bound, on_breach)| MaxLag { bound, on_breach });
    let degrade = any::<u64>().prop_map(|after_ms| OnPartition::Degrade { after_ms });
    let on_partition = prop_oneof![Just(OnPartition::Block), degrade];
    prop_oneof![
        option::of(max_lag).prop_map(|max_lag| Policy::Async { max_lag }),
        Just(Policy::ActiveActive),
        (acks, on_partition).prop_map(|(acks, on_partition)| Policy::Sync { acks, on_partition }),
    ]
}

fn bound() -> impl Strategy<Value = LagBound> {
    let part = || option::of(any::<u64>());
    (part(), part(), part()).prop_map(|(ms, operations, bytes)| LagBound { ms, operations, bytes })
}

fn auto<R: std::fmt::Debug>(successor: impl Strategy<Value = R>) -> impl Strategy<Value = AutoFailover<R>> {
    let mode = prop_oneof![
        Just(AutoMode::Manual),
        Just(AutoMode::ObserveOnly),
        Just(AutoMode::ZeroLoss),
        bound().prop_map(|max_lag| AutoMode::Bounded { max_lag }),
    ];
    (mode, any::<u64>(), any::<u32>(), vec(successor, 0..3)).prop_map(
        |(mode, interval_ms_min, per_day_max, successors)| AutoFailover {
            mode,
            interval_ms_min,
            per_day_max,
            successors,
            detect_ms: 0,
        },
    )
}

fn standing() -> impl Strategy<Value = Standing> {
    let times = || (any::<u64>().prop_map(Hlc), any::<u64>().prop_map(Hlc));
    let ready = || prop::collection::btree_set(any::<u16>().prop_map(ShardId), 0..4);
    prop_oneof![
        times().prop_map(|(since, _)| Standing::Sync { since }),
        (times(), ".{0,9}", ready()).prop_map(|((since, exposed_since), reason, ready)| Standing::Degraded {
            since,
            exposed_since,
            reason,
            ready
        }),
        (times(), ready()).prop_map(|((since, exposed_since), ready)| Standing::Recovering {
            since,
            exposed_since,
            ready
        }),
    ]
}

fn change() -> impl Strategy<Value = BucketChange> {
    let max_lag = policy().prop_map(Policy::max_lag);
    let on_partition = option::of(any::<u64>())
        .prop_map(|after_ms| after_ms.map_or(OnPartition::Block, |after_ms| OnPartition::Degrade { after_ms }));
    let name = name().prop_map(|name| RegionName::new(name.as_str()).unwrap());
    let acks = prop_oneof![Just(Acks::One), Just(Acks::Majority), Just(Acks::All), any::<u8>().prop_map(Acks::Regions)];
    let settings = (option::of(auto(name)), option::of(max_lag), option::of(on_partition), option::of(acks));
    let regions = (any::<bool>(), self::name()).prop_map(|(add, name)| {
        let name = RegionName::new(name.as_str()).unwrap();
        if add { RegionChange::Add(name) } else { RegionChange::Remove(name) }
    });
    let others = (option::weighted(0.2, policy()), option::weighted(0.2, regions));
    (settings, others).prop_map(|((auto, max_lag, on_partition, acks), others)| match others {
        (_, regions @ Some(_)) => {
            let cross = acks.map(|_| Cross { primary: None, pause_ms_max: 7 });
            let lost = match &regions {
                Some(RegionChange::Remove(name)) if cross.is_some() && max_lag.is_some() => Some(name.clone()),
                _ => None,
            };
            let accept_loss = lost.map(|lost| Consent { to: None, lost: Some(lost), buckets: BTreeMap::new() });
            BucketChange { regions, cross, accept_loss, ..BucketChange::default() }
        }
        (None, None) => BucketChange { auto, max_lag, on_partition, acks, ..BucketChange::default() },
        (policy @ Some(_), None) => {
            let cross = acks.map(|_| Cross { primary: Some(RegionName::new("eu-west").unwrap()), pause_ms_max: 7 });
            BucketChange { auto, policy, cross, ..BucketChange::default() }
        }
    })
}

fn turns() -> impl Strategy<Value = Turns> {
    let turn = (any::<u64>(), prop::sample::select(Lane::ALL.to_vec()));
    let turn = turn.prop_map(|(epoch, from)| Turn { epoch: Epoch(epoch), from });
    (vec(turn, 0..3), btree_set(any::<u16>().prop_map(ShardId), 0..3))
        .prop_map(|(kept, followed)| Turns { kept, followed })
}

fn joins() -> impl Strategy<Value = Joins> {
    let region = || any::<u16>().prop_map(RegionId);
    let filled = btree_set(any::<u16>().prop_map(ShardId), 0..3);
    let joining = (region(), any::<[u64; 3]>(), filled).prop_map(|(region, [at, under, pause_ms_max], filled)| {
        Joining { region, at: Hlc(at), under: Epoch(under), filled, pause_ms_max }
    });
    let stay = (region(), any::<u64>(), any::<u64>());
    let stay = stay.prop_map(|(region, since, until)| Stay { region, since: Epoch(since), until: Epoch(until) });
    (option::of(joining), btree_map(region(), any::<u64>().prop_map(Epoch), 0..3), vec(stay, 0..3))
        .prop_map(|(now, since, was)| Joins { now, since, was })
}

fn crossing() -> impl Strategy<Value = Crossing> {
    let region = || any::<u16>().prop_map(RegionId);
    let shard = || any::<u16>().prop_map(ShardId);
    let stopped = btree_map(region(), btree_map(shard(), any::<u64>().prop_map(Lsn), 0..3), 0..3);
    let closing = (policy(), region(), stopped);
    let closing = closing.prop_map(|(policy, primary, stopped)| Way::Closing { policy, primary, stopped });
    let stopped = btree_map(region(), btree_map(shard(), any::<u64>().prop_map(Lsn), 0..3), 0..3);
    let change = prop_oneof![Just(Regroup::Join), Just(Regroup::Count), Just(Regroup::Leave)];
    let regrouping =
        (region(), change, stopped).prop_map(|(region, change, stopped)| Way::Regrouping { region, change, stopped });
    let seal = (any::<u64>(), any::<u128>(), any::<u64>());
    let seal = seal.prop_map(|(lsn, hash, keys)| Seal { lsn: Lsn(lsn), hash: SetHash(hash), keys });
    let arrived = btree_map(region(), btree_map(shard(), seal, 0..3), 0..3);
    (any::<[u64; 3]>(), prop_oneof![Just(Way::Opening), closing, regrouping], arrived).prop_map(
        |([index, at, pause_ms_max], way, arrived)| Crossing { index, at: Hlc(at), pause_ms_max, way, arrived },
    )
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    btree_map("[a-z]{1,5}", ".{0,5}", 0..3)
}

fn phase() -> impl Strategy<Value = Phase> {
    let about = (any::<u64>(), any::<u16>()).prop_map(|(plan, to)| (PlanId(plan), RegionId(to)));
    prop_oneof![
        Just(Phase::Steady),
        (about.clone(), any::<u64>()).prop_map(|((plan, to), lag_ms_max)| Phase::CatchingUp { plan, to, lag_ms_max }),
        about.clone().prop_map(|(plan, to)| Phase::Draining { plan, to }),
        about.clone().prop_map(|(plan, to)| Phase::Fencing { plan, to }),
        about.prop_map(|(plan, to)| Phase::Pulling { plan, to }),
    ]
}

fn selection() -> impl Strategy<Value = Selection> {
    prop_oneof![
        vec(name(), 0..4).prop_map(Selection::Named),
        (".{0,5}", ".{0,5}").prop_map(|(key, value)| Selection::Labelled { key, value }),
        Just(Selection::AllFrom(RegionName::new("us-east").unwrap())),
    ]
}

fn proof() -> impl Strategy<Value = Proof> {
    let seal = (any::<u64>(), any::<u128>(), any::<u64>()).prop_map(|(lsn, hash, keys)| Seal {
        lsn: Lsn(lsn),
        hash: SetHash(hash),
        keys,
    });
    let seals = btree_map(any::<u16>().prop_map(ShardId), seal, 0..4);
    (seals.clone(), seals).prop_map(|(sealed, ready)| Proof { sealed, ready })
}

fn loss() -> impl Strategy<Value = Loss> {
    (any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(operations, bytes, unbounded)| Loss {
        operations,
        bytes,
        unbounded,
    })
}

fn remains() -> impl Strategy<Value = Remains> {
    let exposure =
        any::<[u64; 4]>().prop_map(|n| Exposure { head: Lsn(n[0]), operations: n[1], bytes: n[2], oldest_ms: n[3] });
    (any::<[u64; 3]>(), any::<u128>(), option::of(exposure), any::<bool>()).prop_map(|(n, hash, exposure, whole)| {
        Remains { epoch: Epoch(n[0]), seal: Seal { lsn: Lsn(n[1]), hash: SetHash(hash), keys: n[2] }, exposure, whole }
    })
}

fn key_start() -> impl Strategy<Value = KeyStart> {
    vec(any::<u8>(), 1..200).prop_map(|key| KeyStart::of(&key).unwrap())
}

fn muster() -> impl Strategy<Value = Muster> {
    let shards = btree_map(any::<u16>().prop_map(ShardId), remains(), 0..3);
    let regions = btree_map(any::<u16>().prop_map(RegionId), shards, 0..3);
    (regions, any::<bool>(), option::of(loss())).prop_map(|(remains, quiet, accepted)| Muster {
        remains,
        quiet,
        accepted,
    })
}

fn failover_step() -> impl Strategy<Value = Step> {
    let times = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u16>());
    let verdict = (vec(any::<u16>(), 0..3), any::<bool>(), loss(), proof()).prop_map(|(heard, proven, lost, proof)| {
        Verdict { heard: heard.into_iter().map(RegionId).collect(), proven, lost, cut: proof.sealed }
    });
    prop_oneof![
        (times, muster()).prop_map(|((since_ms, epoch, _, to), muster)| Step::Fencing {
            since_ms,
            epoch: Epoch(epoch),
            to: RegionId(to),
            muster
        }),
        (times, muster()).prop_map(|((since_ms, epoch, _, to), muster)| Step::Pulling {
            since_ms,
            epoch: Epoch(epoch),
            to: RegionId(to),
            muster
        }),
        (times, verdict).prop_map(|((fencing_since_ms, at_ms, epoch, to), verdict)| Step::FailedOver {
            fencing_since_ms,
            at_ms,
            epoch: Epoch(epoch),
            to: RegionId(to),
            verdict
        }),
    ]
}

fn goal() -> impl Strategy<Value = Goal> {
    prop_oneof![
        (any::<u16>(), any::<[u64; 2]>()).prop_map(|(to, n)| Goal::Switchover {
            to: RegionId(to),
            lag_ms_max: n[0],
            pause_ms_max: n[1]
        }),
        (option::of(1u16..), any::<bool>())
            .prop_map(|(to, automatic)| Goal::Failover { to: to.map(RegionId), automatic }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let times = (any::<u64>(), any::<u64>(), any::<u64>());
    prop_oneof![
        failover_step(),
        Just(Step::Unneeded),
        vec(any::<u16>(), 0..4)
            .prop_map(|shards| Step::CatchingUp { caught_up: shards.into_iter().map(ShardId).collect() }),
        (times, proof()).prop_map(|((since_ms, epoch, _), proof)| Step::Draining {
            since_ms,
            epoch: Epoch(epoch),
            proof
        }),
        (times, proof()).prop_map(|((draining_since_ms, at_ms, epoch), proof)| Step::Promoted {
            draining_since_ms,
            at_ms,
            epoch: Epoch(epoch),
            proof
        }),
        (option::of(any::<u64>()), times, ".{0,9}").prop_map(|(draining_since_ms, (at_ms, epoch, _), why)| {
            Step::Restored { draining_since_ms, at_ms, epoch: Epoch(epoch), why }
        }),
    ]
}

fn plan() -> impl Strategy<Value = Plan> {
    let moves = vec((name(), any::<u16>(), any::<u64>(), step()), 0..4);
    (any::<[u64; 4]>(), any::<u128>(), any::<u16>(), moves, option::of(any::<u64>()), ".{0,9}", goal()).prop_map(
        |(n, operation, shards, moves, ended_ms, text, goal)| {
            let moves = moves.into_iter().zip(1..).map(|((name, from, epoch, step), id)| Move {
                bucket: BucketId(id),
                name,
                from: RegionId(from),
                epoch_before: Epoch(epoch),
                step,
            });
            Plan {
                id: PlanId(n[0]),
                operation: OperationId(operation),
                goal,
                who: text.clone(),
                reason: text,
                created_ms: n[3],
                shards,
                moves: moves.collect(),
                ended_ms,
            }
        },
    )
}

fn on_record() -> impl Strategy<Value = Change> {
    let region = || (1u16..).prop_map(RegionId);
    let pause = || option::of(any::<u64>());
    let goal =
        prop_oneof![
            policy().prop_map(|policy| ChangeGoal::Policy { policy }),
            prop_oneof![Just(Acks::One), Just(Acks::All), (1u8..9).prop_map(Acks::Regions)]
                .prop_map(|acks| ChangeGoal::Acks { acks }),
            (policy(), option::of(region()), any::<u64>())
                .prop_map(|(policy, primary, pause_ms_max)| ChangeGoal::Cross { policy, primary, pause_ms_max }),
            (region(), pause()).prop_map(|(region, pause_ms_max)| ChangeGoal::Add { region, pause_ms_max }),
            (region(), pause()).prop_map(|(region, pause_ms_max)| ChangeGoal::Remove { region, pause_ms_max }),
            (region(), loss(), any::<u64>()).prop_map(|(region, accepted, pause_ms_max)| ChangeGoal::Lose {
                region,
                accepted,
                pause_ms_max
            }),
        ];
    let terms = (policy(), option::of(region()), vec(region(), 0..4), any::<u64>(), auto(region())).prop_map(
        |(policy, primary, regions, epoch, auto)| Terms { policy, primary, regions, epoch: Epoch(epoch), auto },
    );
    let stage = prop_oneof![Just(Stage::Meeting), Just(Stage::Filling), Just(Stage::Filled), Just(Stage::Settling)];
    let staged = (any::<u64>(), any::<u64>(), stage).prop_map(|(at_ms, epoch, stage)| Staged {
        at_ms,
        epoch: Epoch(epoch),
        stage,
    });
    let outcome = prop_oneof![
        Just(ChangeOutcome::Done),
        (".{0,9}", ".{0,9}").prop_map(|(who, why)| ChangeOutcome::Aborted { who, why }),
        ".{0,9}".prop_map(|why| ChangeOutcome::GivenUp { why }),
    ];
    let end = (any::<u64>(), any::<u64>(), outcome).prop_map(|(at_ms, epoch, outcome)| ChangeEnd {
        at_ms,
        epoch: Epoch(epoch),
        outcome,
    });
    let asked = (any::<[u64; 2]>(), any::<u128>(), any::<u32>(), name(), ".{0,9}");
    (asked, terms, goal, vec(staged, 0..5), option::of(end)).prop_map(|(asked, before, goal, stages, end)| {
        let ([id, created_ms], operation, bucket, name, text) = asked;
        Change {
            id: PlanId(id),
            operation: OperationId(operation),
            who: text.clone(),
            reason: text,
            bucket: BucketId(bucket),
            name,
            before,
            goal,
            created_ms,
            stages,
            end,
        }
    })
}

fn bucket() -> impl Strategy<Value = Bucket> {
    let life = (
        any::<u64>(),
        phase(),
        standing(),
        (auto(any::<u16>().prop_map(RegionId)), any::<u64>())
            .prop_map(|(auto, detect_ms)| AutoFailover { detect_ms, ..auto }),
        (turns(), joins(), option::of(crossing())),
    );
    (1u32..9, name(), policy(), life, option::of(1u16..5), vec(1u16..5, 0..4), labels(), any::<u64>()).prop_map(
        |(
            id,
            name,
            policy,
            (epoch, phase, standing, auto, (turns, joins, crossing)),
            primary,
            regions,
            labels,
            created,
        )| {
            Bucket {
                id: BucketId(id),
                name,
                policy,
                epoch: Epoch(epoch),
                phase,
                primary: primary.map(RegionId),
                regions: regions.into_iter().map(RegionId).collect(),
                labels,
                created: Hlc(created),
                standing,
                auto,
                turns,
                joins,
                crossing,
            }
        },
    )
}

fn topology(buckets: Vec<Bucket>, index: u64, cluster: Option<u128>) -> Topology {
    let mut topology = Topology { index, cluster: cluster.map(ClusterId), shards: 16, ..Topology::default() };
    topology.last_bucket = BucketId(12);
    for (number, name) in [(1, "us-east"), (2, "eu-west")] {
        let (region, node) = (RegionId(number), NodeName::new(&format!("{name}-1")).unwrap());
        topology.regions.insert(region, Region { id: region, name: RegionName::new(name).unwrap() });
        topology.groups.insert((region, ShardId(3)), vec![NodeId::of(&node)]);
        let node = Node {
            id: NodeId::of(&node),
            name: node,
            region,
            zone: "a".to_owned(),
            rpc_address: "10.0.0.1:7100".to_owned(),
            replication_address: "10.0.0.1:7200".to_owned(),
            version: "0.1.0".to_owned(),
        };
        topology.nodes.insert(node.id, node);
    }
    let (target, before) = (vec![NodeId(7), NodeId(9)], vec![NodeId(7)]);
    let pending = [ShardId(3), ShardId(5)].into();
    let (who, strays) = ("operator".to_owned(), [NodeId(11)].into());
    let change = MemberChange { index: 5, since_ms: 6, who, target, before, strays, pending };
    topology.retired.insert(NodeId(13));
    topology.changes.insert(RegionId(2), change);
    for bucket in buckets {
        // A name belongs to one bucket only.
        if !topology.bucket_ids.contains_key(&bucket.name) && !topology.buckets.contains_key(&bucket.id) {
            topology.bucket_ids.insert(bucket.name.clone(), bucket.id);
            topology.buckets.insert(bucket.id, Arc::new(bucket));
        }
    }
    topology
}

fn lane() -> impl Strategy<Value = LaneStatus> {
    let state = prop_oneof![
        ".{0,9}".prop_map(|reason| LaneState::Connecting { reason }),
        Just(LaneState::Streaming),
        (any::<u64>(), any::<u64>())
            .prop_map(|(watermark, oldest)| LaneState::BehindLog { watermark: Lsn(watermark), oldest: Lsn(oldest) }),
        ".{0,9}".prop_map(|detail| LaneState::Diverged { detail }),
        Just(LaneState::Fenced),
        any::<u64>().prop_map(|ahead_ms| LaneState::ClockSkew { ahead_ms }),
    ];
    let lanes = prop::sample::select(Lane::ALL.to_vec());
    (any::<u16>(), any::<u16>(), lanes, any::<[u64; 7]>(), state).prop_map(|(shard, target, lane, n, state)| {
        LaneStatus {
            shard: ShardId(shard),
            target: RegionId(target),
            lane,
            head: Lsn(n[0]),
            sent: Lsn(n[1]),
            acked: Lsn(n[2]),
            state,
            raw_bytes: n[3],
            wire_bytes: n[4],
            frames: n[5],
            entries: n[6],
            heard_ms: (n[5] % 2 == 0).then_some(n[4]),
        }
    })
}

/// Over the wire and back, as bytes.
fn travelled<M: Message + Default>(message: &M) -> M {
    M::decode(message.encode_to_vec().as_slice()).unwrap()
}

proptest! {
    #[test]
    fn an_operation_and_what_is_asked_for_come_back_as_they_went(
        plan in plan(), buckets in selection(), id in any::<u128>(), n in any::<[u64; 2]>(), reason in ".{0,9}", dry_run in any::<bool>(),
    ) {
        prop_assert_eq!(plan_from_proto(travelled(&plan_to_proto(&plan))), Ok(plan));
        let to = RegionName::new("eu-west").unwrap();
        let spec = SwitchoverSpec { to, buckets, lag_ms_max: n[0], pause_ms_max: n[1], reason };
        let message = travelled(&switchover_to_proto(&spec, OperationId(id), dry_run));
        prop_assert_eq!(switchover_from_proto(message), Ok((spec, OperationId(id), dry_run)));
    }

    #[test]
    fn a_change_on_record_comes_back_as_it_went(on_record in on_record()) {
        let known = Operation::Change(Arc::new(on_record));
        prop_assert_eq!(operation_from_proto(travelled(&operation_to_proto(&known))), Ok(known));
    }

    #[test]
    fn events_and_what_is_asked_for_come_back_as_they_went(
        n in any::<[u64; 4]>(), limit in 1..=EVENTS_MAX, words in vec(".{0,9}", 4),
    ) {
        let query = EventQuery { index_min: n[0], after: Hlc(n[1]), limit };
        prop_assert_eq!(events_request_from_proto(travelled(&events_request_to_proto(&query))), query);
        let event = Event {
            index: n[0], at: Hlc(n[1]), who: words[0].clone(), verb: words[1].clone(), subject: words[2].clone(),
            detail: words[3].clone(),
        };
        let page = EventPage { events: vec![event], remembered_from: Hlc(n[2]), index: n[3] };
        prop_assert_eq!(events_from_proto(travelled(&events_to_proto(page.clone()))), page);
        let beyond = v1::EventsRequest { limit: u32::MAX, ..Default::default() };
        prop_assert_eq!(events_request_from_proto(beyond), EventQuery::default());
        prop_assert_eq!(events_request_from_proto(v1::EventsRequest::default()), EventQuery::default());
    }

    #[test]
    fn a_request_comes_back_as_it_went(request in request(), tag in any::<u64>()) {
        let client = match &request {
            Request::Read { .. } => ClientId(7),
            Request::Write { id, .. } => id.client,
        };
        let message = travelled(&request_to_proto(tag, &request));
        prop_assert_eq!(message.tag, tag);
        prop_assert_eq!(request_from_proto(message, client), Ok(request.clone()));
        let forwarded = travelled(&forwarded_to_proto(tag, &request));
        prop_assert_eq!(forwarded_from_proto(forwarded), Ok(request), "a forwarded request names its client itself");
    }

    #[test]
    fn an_answer_comes_back_as_it_went(response in response(), tag in any::<u64>()) {
        let message = travelled(&response_to_proto(tag, Ok(response.clone())));
        prop_assert_eq!(message.tag, tag);
        prop_assert_eq!(response_from_proto(message), Ok(response));
    }

    #[test]
    fn a_refusal_comes_back_as_it_went_in_an_answer_and_as_a_status(refusal in refusal()) {
        let message = travelled(&response_to_proto(1, Err(refusal.clone())));
        prop_assert_eq!(response_from_proto(message), Err(refusal.clone()));
        prop_assert_eq!(refusal_of_status(&status_of_refusal(refusal.clone())), refusal);
    }

    #[test]
    fn a_topology_comes_back_as_it_went(
        buckets in vec(bucket(), 0..4), index in any::<u64>(), cluster in option::of(any::<u128>()), node in any::<u64>()
    ) {
        let topology = topology(buckets, index, cluster);
        let message = travelled(&topology_to_proto(&topology, NodeId(node)));
        prop_assert_eq!(topology_from_proto(message), Ok((topology, NodeId(node))));
    }

    #[test]
    fn a_bucket_to_be_comes_back_as_it_went(
        name in name(), policy in policy(), labels in labels(), primary in any::<bool>(), dry_run in any::<bool>(),
        auto in auto(name().prop_map(|name| RegionName::new(name.as_str()).unwrap())),
    ) {
        let region = RegionName::new("eu-west").unwrap();
        let primary = primary.then(|| region.clone());
        let spec = BucketSpec { name, policy, regions: vec![region], primary, labels, auto };
        prop_assert_eq!(spec_from_proto(travelled(&spec_to_proto(&spec, dry_run))), Ok((spec, dry_run)));
    }

    #[test]
    fn a_change_of_a_bucket_comes_back_as_it_went(name in name(), change in change(), dry_run in any::<bool>()) {
        let message = travelled(&change_to_proto(&name, &change, dry_run));
        prop_assert_eq!(change_from_proto(message), Ok((name, change, dry_run)));
    }

    #[test]
    fn a_detection_time_comes_back_as_it_went_and_alone(name in name(), detect_ms in any::<u64>(), rest in change()) {
        let change = BucketChange { detect_ms: Some(detect_ms), ..BucketChange::default() };
        let message = travelled(&change_to_proto(&name, &change, false));
        prop_assert_eq!(change_from_proto(message), Ok((name.clone(), change, false)));
        let both = BucketChange { detect_ms: Some(detect_ms), ..rest.clone() };
        let settles = BucketChange { operation: None, reason: String::new(), ..rest } != BucketChange::default();
        prop_assert_eq!(change_from_proto(travelled(&change_to_proto(&name, &both, false))).is_err(), settles);
    }

    #[test]
    fn reports_come_back_as_they_went(
        lanes in vec(lane(), 0..3), n in any::<[u64; 8]>(), hash in any::<u128>(), diverged in any::<bool>(),
        oldest_key in option::of(key_start())
    ) {
        let mut digest = BucketDigest {
            hash: SetHash(hash), keys: n[0], bytes: n[1], operations: n[2], operation_bytes: n[3],
            hlc: Hlc(n[4]), last_removal: Lsn(n[5]), ..BucketDigest::default()
        };
        digest.positions.raise(RegionId(2), Lsn(n[6]));
        let rows = vec![ShardDigest { bucket: BucketId(1), shard: ShardId(2), digest, diverged }];
        let message = travelled(&digests_to_proto(RegionId(3), rows.clone()));
        prop_assert_eq!(digests_from_proto(message), Ok((RegionId(3), rows)));

        let lag = BucketLag {
            bucket: BucketId(1), target: RegionId(2), unshipped_operations: n[0], unshipped_bytes: n[1],
            unapplied_operations: n[2], unapplied_bytes: n[3], lag_ms: n[4], age_ms: n[5], oldest_key,
        };
        let message = travelled(&lag_to_proto(RegionId(3), vec![lag.clone()], lanes.clone()));
        prop_assert_eq!(lag_from_proto(message), Ok((RegionId(3), vec![lag], lanes)));

        let status = NodeStatus {
            node: NodeId(n[0]), region: RegionId(1), version: "0.1.0".to_owned(), uptime_ms: n[1],
            metadata_index: n[2], metadata_leader: Some(NodeId(n[3].max(1))), lease_ms: n[4], shards_led: 3,
            shards_total: 16, disk_free_bytes: n[5], disk_total_bytes: n[6], log_bytes: n[7], state_bytes: 1,
            resident_bytes: 2, problems: vec!["the disk is full: free some space".to_owned()],
            certificate_left_s: n[0], wall_ms: n[1], votes: n[2] % 2 == 0,
            metadata_voters: vec![NodeId(n[3])], leases: vec![NodeId(n[4]), NodeId(n[5])],
            clients: 7,
        };
        prop_assert_eq!(node_status_from_proto(travelled(&node_status_to_proto(status.clone()))), Ok(status));
    }

    #[test]
    fn what_is_lacking_comes_back_as_it_was_said(
        remains in remains(), said_ms in option::of(any::<u64>()), n in any::<[u64; 2]>(), loss in loss(),
        oldest_key in option::of(key_start())
    ) {
        let (bucket, shard) = (BucketId(7), ShardId(3));
        let facts = vec![ShardFacts { bucket, shard, remains, said_ms, oldest_key: oldest_key.clone() }];
        let message = travelled(&facts_to_proto(RegionId(2), &facts));
        prop_assert_eq!(facts_from_proto(message), Ok((RegionId(2), facts)));

        let estimated = BucketEstimate {
            bucket, name: BucketName::new("orders").unwrap(), epoch: Epoch(n[0]), from: RegionId(1),
            primary_answers: false, to: Some(RegionId(2)), pulls: true, proven: false, needed: Some(2),
            heard: vec![RegionId(2)], lost: loss, known: Loss { unbounded: false, ..loss }, oldest_ms: n[1], oldest_key,
            said_ms, obstacle: String::new(),
        };
        let estimate = Estimate { region: RegionId(2), buckets: vec![estimated], ..Estimate::default() };
        prop_assert_eq!(estimate_from_proto(travelled(&estimate_to_proto(&estimate))), Ok(estimate));
    }

    #[test]
    fn a_key_that_no_report_names_is_refused(length in 65usize..200) {
        let key = v1::KeyStart { bytes: vec![7; length].into(), cut: true };
        let lag = v1::BucketLag { bucket: 1, target: 2, oldest_key: Some(key), ..v1::BucketLag::default() };
        let message = v1::LagResponse { region: 1, lags: vec![lag], lanes: vec![] };
        prop_assert!(lag_from_proto(message).is_err());
    }

    #[test]
    fn any_bytes_are_a_batch_of_requests_or_a_clear_error(bytes in vec(any::<u8>(), 0..300)) {
        if let Ok(batch) = v1::RequestBatch::decode(bytes.as_slice()) {
            accept(batch)?;
        }
    }

    #[test]
    fn a_mutated_batch_is_requests_or_a_clear_error(
        requests in vec(request(), 1..4), at in any::<prop::sample::Index>(), to in any::<u8>(), cut in any::<prop::sample::Index>()
    ) {
        let requests = requests.iter().enumerate().map(|(tag, request)| forwarded_to_proto(tag as u64, request)).collect();
        let mut bytes = v1::RequestBatch { client_id: Bytes::new(), requests }.encode_to_vec();
        let at = at.index(bytes.len());
        bytes[at] = to;
        if let Ok(batch) = v1::RequestBatch::decode(bytes.as_slice()) {
            accept(batch)?;
        }
        bytes.truncate(cut.index(bytes.len()));
        if let Ok(batch) = v1::RequestBatch::decode(bytes.as_slice()) {
            accept(batch)?;
        }
    }

    #[test]
    fn a_mutated_answer_is_an_answer_or_a_clear_error(
        response in response(), at in any::<prop::sample::Index>(), to in any::<u8>()
    ) {
        let mut bytes = response_to_proto(1, Ok(response)).encode_to_vec();
        let at = at.index(bytes.len());
        bytes[at] = to;
        if let Ok(message) = v1::Response::decode(bytes.as_slice()) {
            let _ = response_from_proto(message);
        }
    }

    #[test]
    fn a_mutated_topology_is_a_topology_or_a_clear_error(
        buckets in vec(bucket(), 0..3), at in any::<prop::sample::Index>(), to in any::<u8>()
    ) {
        let mut bytes = topology_to_proto(&topology(buckets, 1, Some(1)), NodeId(1)).encode_to_vec();
        let at = at.index(bytes.len());
        bytes[at] = to;
        if let Ok(message) = v1::TopologyResponse::decode(bytes.as_slice()) {
            let _ = topology_from_proto(message);
        }
    }
}

/// Every request of a batch is a request, or refused as invalid with no effect.
fn accept(batch: v1::RequestBatch) -> Result<(), TestCaseError> {
    let client = client_from_proto(&batch.client_id);
    for message in batch.requests {
        let client = client.clone().unwrap_or_default();
        for converted in [request_from_proto(message.clone(), client), forwarded_from_proto(message)] {
            if let Err(refusal) = converted {
                prop_assert_eq!((refusal.kind, refusal.effect), (RefusalKind::Invalid, Effect::None));
                prop_assert!(!refusal.message.is_empty());
            }
        }
    }
    Ok(())
}

fn put() -> v1::Request {
    let key = Bytes::from_static(b"k");
    v1::Request {
        bucket: "orders".to_owned(),
        op: Some(v1::request::Op::Put(v1::Put { key, ..Default::default() })),
        write: Some(v1::WriteOptions { sequence: 3, lowest_outstanding: 2, ..Default::default() }),
        ..Default::default()
    }
}

#[test]
fn what_breaks_a_bound_is_refused_by_name() {
    let refused = |change: &dyn Fn(&mut v1::Request)| {
        let mut message = put();
        change(&mut message);
        let refusal = request_from_proto(message, ClientId(1)).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::Invalid);
        refusal.message
    };
    let write = |options: v1::WriteOptions| move |request: &mut v1::Request| request.write = Some(options.clone());
    assert!(refused(&|request| request.op = None).contains("no operation"));
    assert!(refused(&|request| request.bucket = "UPPER".to_owned()).contains("bucket name"));
    assert!(refused(&|request| request.session = Bytes::from_static(b"\x09")).contains("session"));
    assert!(
        refused(&write(v1::WriteOptions { ack: 99, sequence: 1, ..Default::default() })).contains("acknowledgement")
    );
    let regions = v1::write_options::Ack::Regions.into();
    assert!(
        refused(&write(v1::WriteOptions { ack: regions, sequence: 1, ..Default::default() })).contains("regions(0)")
    );
    assert!(refused(&write(v1::WriteOptions::default())).contains("sequence number"));
    let above = v1::WriteOptions { sequence: 1, lowest_outstanding: 2, ..Default::default() };
    assert!(refused(&write(above)).contains("lowest outstanding"));
    let many = v1::MultiGet { keys: vec![Bytes::from_static(b"k"); MULTI_ITEMS_MAX + 1] };
    assert!(refused(&|request| request.op = Some(v1::request::Op::MultiGet(many.clone()))).contains("split it"));
    assert!(client_from_proto(&[0; 15]).is_err());
    assert_eq!(client_from_proto(&client_to_proto(ClientId(u128::MAX - 1))), Ok(ClientId(u128::MAX - 1)));
}

#[test]
fn acks_without_sync_are_refused_by_field() {
    let policy = v1::Policy { acks: v1::policy::Acks::All.into(), ..v1::Policy::default() };
    assert!(policy_from_proto(policy).unwrap_err().message.contains("`acks = all` conflicts with `policy = async`"));
}

#[test]
fn a_status_of_the_transport_leaves_open_what_happened() {
    let refusal = refusal_of_status(&tonic::Status::unavailable("connection reset"));
    assert_eq!((refusal.kind, refusal.effect), (RefusalKind::Retry, Effect::Unknown));
}
