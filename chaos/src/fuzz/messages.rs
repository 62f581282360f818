//! Decoders of what nodes and clients say to each other, and of the metadata group's bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use meridian_metadata_core::command::{Form, NodeSpec};
use meridian_metadata_core::{AbortScope, Action, Answer, ClusterState, Command, reply as replies_of};
use meridian_metadata_node::fuzz as metadata_node;
use meridian_proto::convert;
use meridian_proto::identity::Identity;
use meridian_proto::v1;
use meridian_replicator_core::message::{Hello, Stop, ToSource, ToTarget, Welcome};
use meridian_types::request::Found;
use meridian_types::{
    Acks, AutoFailover, AutoMode, Breach, Bucket, BucketChange, BucketDigest, BucketId, BucketLag, BucketName,
    BucketSpec, ClientId, ClusterId, Copies, Cross, Durability, Effect, Epoch, Exposure, Fact, Freshness, Goal, Hlc,
    KeyStart, Lack, LagBound, Lane, LaneState, LaneStatus, Loss, Lsn, MaxLag, Move, Muster, NodeId, NodeName,
    NodeStatus, OnPartition, OperationId, Outcome, Phase, Plan, PlanId, Policy, Proof, Read, ReadLevel, Refusal,
    RefusalKind, RegionChange, RegionId, RegionName, Remains, Request, RequestId, Response, Seal, Selection, SetHash,
    ShardDigest, ShardId, StalePolicy, StandingWord, Step, SwitchoverSpec, Topology, Verdict, Version, Word, Write,
    WriteAck,
};
use prost::Message;

use super::words::{key, law, sample_frame, token, value};

/// What follows a length prefix.
fn behind_length(message: &Bytes) -> Vec<u8> {
    message.slice(4.min(message.len())..).to_vec()
}

pub(super) fn hello(bytes: &[u8]) -> bool {
    law(bytes, |bytes| Hello::decode(Bytes::copy_from_slice(bytes)).ok(), |hello| behind_length(&hello.encode()))
}

pub(super) fn hellos() -> Vec<Vec<u8>> {
    let hello = Hello { cluster: ClusterId(7), region: RegionId(2), node: NodeId(5), expected: NodeId(6) };
    vec![behind_length(&hello.encode())]
}

pub(super) fn welcome(bytes: &[u8]) -> bool {
    law(bytes, |bytes| Welcome::decode(Bytes::copy_from_slice(bytes)).ok(), |welcome| behind_length(&welcome.encode()))
}

pub(super) fn welcomes() -> Vec<Vec<u8>> {
    let accepted = Welcome::Accepted { region: RegionId(1), node: NodeId(9) };
    let refused = Welcome::Refused { reason: "because".to_owned() };
    [accepted, refused].iter().map(|welcome| behind_length(&welcome.encode())).collect()
}

pub(super) fn to_source(bytes: &[u8]) -> bool {
    law(bytes, |bytes| ToSource::decode(Bytes::copy_from_slice(bytes)).ok(), |said| behind_length(&said.encode()))
}

pub(super) fn to_sources() -> Vec<Vec<u8>> {
    let stops = [
        Stop::Diverged { detail: "shard 3".to_owned() },
        Stop::Fenced,
        Stop::ClockSkew { ahead_ms: 900 },
        Stop::NotLeader { leader: Some(NodeId(3)) },
        Stop::Refused { reason: "because".to_owned() },
    ];
    let said = [
        ToSource::Position { round: 3, lsn: Lsn(u64::MAX) },
        ToSource::Ack { lsn: Lsn(1) },
        ToSource::Probe { ms: 12 },
    ];
    said.into_iter().chain(stops.map(ToSource::Stop)).map(|said| behind_length(&said.encode())).collect()
}

fn whole((prefix, frame): (Bytes, Bytes)) -> Vec<u8> {
    let mut whole = prefix.chain(frame);
    behind_length(&whole.copy_to_bytes(whole.remaining()))
}

pub(super) fn to_target(bytes: &[u8]) -> bool {
    let decode = |bytes: &[u8]| ToTarget::decode(Bytes::copy_from_slice(bytes)).ok();
    law(bytes, decode, |said| whole(said.clone().encode()))
}

pub(super) fn to_targets() -> Vec<Vec<u8>> {
    let open = ToTarget::Open { source: RegionId(1), shard: ShardId(3), lane: Lane::Sync };
    let exposure = Exposure { head: Lsn(12), operations: 3, bytes: 30, oldest_ms: 90 };
    let exposed =
        |key: &[u8]| ToTarget::Exposed(vec![Lack { bucket: BucketId(1), exposure, oldest_key: KeyStart::of(key) }]);
    let frame = ToTarget::Frame { round: 8, frame: sample_frame(RegionId(2), 1) };
    [open, exposed(b""), exposed(b"order/17"), frame].map(|said| whole(said.encode())).to_vec()
}

/// A name of a sample.
pub(super) fn named<T, E: std::fmt::Display>(name: Result<T, E>) -> T {
    match name {
        Ok(name) => name,
        Err(error) => panic!("a sample's name is a name: {error}"),
    }
}

fn node_spec(name: &str, region: &str) -> NodeSpec {
    NodeSpec {
        name: named(NodeName::new(name)),
        region: named(RegionName::new(region)),
        zone: "a".to_owned(),
        rpc_address: format!("{name}:7100"),
        replication_address: format!("{name}:7200"),
        version: "0.1.0".to_owned(),
    }
}

fn spec() -> BucketSpec {
    BucketSpec {
        name: named(BucketName::new("orders")),
        policy: Policy::sync(Acks::Majority),
        regions: vec![named(RegionName::new("us-east"))],
        primary: Some(named(RegionName::new("us-east"))),
        labels: BTreeMap::from([("team".to_owned(), "checkout".to_owned())]),
        auto: Default::default(),
    }
}

fn actions() -> Vec<Action> {
    let form = Form {
        cluster: ClusterId(7),
        shards: 4,
        lease_ttl_ms: 5000,
        members: vec![node_spec("us-east-1", "us-east"), node_spec("eu-west-1", "eu-west")],
    };
    let facts = vec![(ShardId(0), Fact::CaughtUp)];
    let word = Word { plan: PlanId(12), bucket: BucketId(1), epoch: Epoch(1), facts };
    vec![
        Action::FormCluster(form.clone()),
        Action::FormClusterAt { form, format: 11 },
        Action::Finalize { format: 11 },
        Action::RegisterNode(node_spec("ap-south-1", "ap-south")),
        Action::CreateBucket(BucketSpec { regions: Vec::new(), ..spec() }),
        Action::SetLabels { name: spec().name, set: spec().labels, remove: ["old".to_owned()].into() },
        Action::DeleteBucket { name: spec().name },
        Action::Switchover(switchover()),
        Action::Report { region: RegionId(1), words: vec![word] },
        Action::Abort { plan: PlanId(12), scope: AbortScope::All, why: "late".to_owned() },
        Action::SetBucket { name: spec().name, change: change() },
        Action::SetPolicy { name: spec().name, policy: Policy::sync(Acks::All), auto: change().auto },
        Action::SetRegions { name: spec().name, change: RegionChange::Remove(switchover().to) },
        Action::Cross { name: spec().name, policy: Policy::ActiveActive, auto: None, cross: cross() },
        Action::CrossRegions { name: spec().name, change: RegionChange::Remove(switchover().to), pause_ms_max: 1000 },
        Action::LoseRegion {
            name: spec().name,
            region: switchover().to,
            epoch: Epoch(3),
            accepted: Loss { operations: 1, bytes: 2, unbounded: true },
            pause_ms_max: 1000,
        },
        Action::SetRegions { name: spec().name, change: RegionChange::Remove(switchover().to) }
            .on_record("late".to_owned()),
        Action::SetDetection { name: spec().name, detect_ms: 15_000 },
        Action::GiveUpCrossing { bucket: BucketId(1), index: 7, why: "late".to_owned() },
        Action::ReportStanding { region: RegionId(1), words: vec![standing_word()] },
    ]
}

fn cross() -> Cross {
    Cross { primary: Some(switchover().to), pause_ms_max: 1000 }
}

fn change() -> BucketChange {
    let bound = LagBound { ms: Some(5000), operations: None, bytes: Some(1 << 30) };
    let max_lag = MaxLag { bound, on_breach: Breach::Throttle };
    let mode = AutoMode::Bounded { max_lag: bound };
    let auto = AutoFailover { mode, ..AutoFailover::default() };
    BucketChange {
        auto: Some(auto),
        max_lag: Some(Some(max_lag)),
        on_partition: Some(OnPartition::DEGRADE),
        acks: Some(Acks::All),
        ..BucketChange::default()
    }
}

fn standing_word() -> StandingWord {
    let copies = Copies::Lacking { shards: [ShardId(0)].into(), reason: "silent".to_owned() };
    StandingWord { bucket: BucketId(1), epoch: Epoch(1), since: Hlc(5), copies }
}

fn sample_commands() -> Vec<Command> {
    let command =
        |(action, number)| Command { operation: OperationId(number), who: "tester".to_owned(), at_ms: 1000, action };
    actions().into_iter().zip(1..).map(command).collect()
}

/// A command; what is one must also be applicable to any state, which then keeps its rules.
pub(super) fn command(bytes: &[u8]) -> bool {
    let Ok(command) = Command::decode(bytes) else { return false };
    for mut state in [ClusterState::default(), state_after(3)] {
        // A refusal is an answer too.
        let _ = state.apply(state.index() + 1, &command);
        assert_eq!(state.validate(), Ok(()), "no command may break a rule of the state");
    }
    law(bytes, |bytes| Command::decode(bytes).ok(), |command| command.encode().unwrap_or_default())
}

pub(super) fn commands() -> Vec<Vec<u8>> {
    sample_commands().iter().filter_map(|command| command.encode().ok()).collect()
}

fn state_after(commands: usize) -> ClusterState {
    let mut state = ClusterState::default();
    for (command, index) in sample_commands().iter().zip(1..).take(commands) {
        // All of them are applicable in this order; a refusal would show as a smaller sample.
        let _ = state.apply(index, command);
    }
    state
}

pub(super) fn reply(bytes: &[u8]) -> bool {
    law(bytes, |bytes| replies_of::decode(bytes).ok(), |(index, answer)| replies_of::encode(*index, answer))
}

pub(super) fn replies() -> Vec<Vec<u8>> {
    let mut state = ClusterState::default();
    let refused: Answer = Err(Refusal::new(RefusalKind::NotFound, "no such bucket"));
    let mut all: Vec<Vec<u8>> = (sample_commands().iter().zip(1..))
        .map(|(command, index)| replies_of::encode(index, &state.apply(index, command)))
        .collect();
    all.push(replies_of::encode(9, &refused));
    all
}

/// A state; what is one must also take the next commands.
pub(super) fn snapshot(bytes: &[u8]) -> bool {
    let Ok(mut state) = ClusterState::decode(bytes) else { return false };
    for (next, command) in (state.index() + 1..).zip(sample_commands()) {
        // Asked anew; a refusal is an answer too.
        let _ = state.apply(next, &Command { operation: OperationId(command.operation.0 + 100), ..command });
    }
    law(bytes, |bytes| ClusterState::decode(bytes).ok(), ClusterState::encode)
}

pub(super) fn snapshots() -> Vec<Vec<u8>> {
    [0, 1, 3, 5].map(|commands| state_after(commands).encode()).to_vec()
}

/// Makes a crc32c right that stands at the end.
pub(super) fn seal_crc_at_end(bytes: &mut [u8]) {
    if let Some(content) = bytes.len().checked_sub(4) {
        let crc = crc32c::crc32c(&bytes[..content]);
        bytes[content..].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Makes the checksum of the state inside a metadata file right, then that of the file.
pub(super) fn seal_file(bytes: &mut [u8]) {
    let mark_length = bytes.get(20..24).map(|length| u32::from_le_bytes([length[0], length[1], length[2], length[3]]));
    let state_at = 32 + mark_length.map_or(0, |length| length as usize);
    if let Some(end) = bytes.len().checked_sub(4)
        && let Some(state) = bytes.get_mut(state_at..end)
    {
        seal_crc_at_end(state);
    }
    seal_crc_at_end(bytes);
}

pub(super) fn files() -> Vec<Vec<u8>> {
    [0, 1, 3].map(|commands| metadata_node::stored(9, &state_after(commands))).to_vec()
}

/// A batch of requests, as a gateway takes them: of a client, and forwarded.
pub(super) fn requests(bytes: &[u8]) -> bool {
    let Ok(batch) = v1::RequestBatch::decode(bytes) else { return false };
    let client = convert::client_from_proto(&batch.client_id).unwrap_or_default();
    let mut any = false;
    for message in batch.requests {
        let forwarded = convert::forwarded_from_proto(message.clone());
        for read in [convert::request_from_proto(message, client), forwarded] {
            match read {
                Ok(request) => {
                    any = true;
                    let again = convert::forwarded_from_proto(convert::forwarded_to_proto(1, &request));
                    assert_eq!(again, Ok(request), "a request must come back");
                }
                Err(refusal) => {
                    let invalid = (refusal.kind, refusal.effect) == (RefusalKind::Invalid, Effect::None);
                    assert!(invalid, "a request that can't be read did nothing: {refusal:?}");
                }
            }
        }
    }
    any
}

fn sample_requests() -> Vec<Request> {
    let read = |read, level| Request::Read {
        bucket: spec().name,
        read,
        level,
        stale: StalePolicy::Redirect,
        session: token(),
        deadline_ms: 500,
    };
    let write = |write, ack| Request::Write {
        bucket: spec().name,
        write,
        ack,
        id: RequestId { client: ClientId(9), sequence: 5 },
        lowest_outstanding: 4,
        begun: Epoch(0),
        session: token(),
        deadline_ms: 500,
    };
    let version = Version { hlc: Hlc(5), region: RegionId(1) };
    let scan =
        Read::Scan { prefix: Bytes::from_static(b"k"), after: Bytes::from_static(b"ka"), limit: 9, values: true };
    let (k, v) = (|| key("key"), || value("value"));
    vec![
        read(Read::Get { key: k() }, ReadLevel::Strong),
        read(Read::MultiGet { keys: vec![k(), key("other")] }, ReadLevel::Bounded { staleness_ms_max: 500 }),
        read(scan, ReadLevel::Session),
        write(Write::Put { key: k(), value: v(), ttl_ms: Some(9) }, WriteAck::Policy),
        write(Write::Delete { key: k() }, WriteAck::Local),
        write(Write::Append { key: k(), suffix: v() }, WriteAck::Regions(2)),
        write(Write::Increment { key: k(), by: -3 }, WriteAck::Majority),
        write(Write::CompareAndSet { key: k(), expected: Some(version), value: v(), ttl_ms: None }, WriteAck::All),
        write(Write::PutIfAbsent { key: k(), value: v(), ttl_ms: None }, WriteAck::Policy),
        write(Write::MultiPut { items: vec![(k(), v()), (key("other"), value(""))] }, WriteAck::Policy),
    ]
}

pub(super) fn request_batches() -> Vec<Vec<u8>> {
    let requests: Vec<_> = sample_requests().iter().map(|request| convert::forwarded_to_proto(3, request)).collect();
    let batch = |requests| v1::RequestBatch { client_id: convert::client_to_proto(ClientId(9)), requests };
    let single = requests.iter().map(|request| batch(vec![request.clone()]).encode_to_vec());
    single.chain([batch(requests.clone()).encode_to_vec()]).collect()
}

/// A batch of answers, as a client or a forwarding gateway takes them.
pub(super) fn responses(bytes: &[u8]) -> bool {
    let Ok(batch) = v1::ResponseBatch::decode(bytes) else { return false };
    let mut any = false;
    for message in batch.responses {
        let answer = convert::response_from_proto(message);
        any |= answer.is_ok();
        let again = convert::response_from_proto(convert::response_to_proto(1, answer.clone()));
        assert_eq!(again, answer, "an answer must come back");
    }
    any
}

pub(super) fn response_batches() -> Vec<Vec<u8>> {
    let version = Version { hlc: Hlc(5), region: RegionId(1) };
    let found = || Found { value: Bytes::from_static(b"value"), version, expires_at_ms: Some(9) };
    let outcomes = [
        Outcome::Value(Some(found())),
        Outcome::Values(vec![None, Some(found())]),
        Outcome::Page { items: vec![(key("key"), found())], more: true },
        Outcome::Written { version },
        Outcome::Deleted { version, existed: true },
        Outcome::Count { version, value: -3 },
        Outcome::Length { version, length: 9 },
        Outcome::ConditionFailed { current: Some(version) },
    ];
    let answers = outcomes.map(|outcome| Response {
        region: RegionId(1),
        epoch: Epoch(3),
        outcome,
        freshness: Freshness { hlc: Hlc(77), staleness_ms: Some(5) },
        durability: Some(Durability { regions: 2, nodes: 2 }),
        session: token(),
    });
    let answers: Vec<_> = answers.into_iter().map(|answer| convert::response_to_proto(3, Ok(answer))).collect();
    let refused = convert::response_to_proto(4, Err(Refusal::new(RefusalKind::Fenced, "an older epoch")));
    let single = answers.iter().map(|answer| v1::ResponseBatch { responses: vec![answer.clone()] }.encode_to_vec());
    let all = answers.iter().cloned().chain([refused]).collect();
    single.chain([v1::ResponseBatch { responses: all }.encode_to_vec()]).collect()
}

pub(super) fn topology(bytes: &[u8]) -> bool {
    let decode = |bytes: &[u8]| convert::topology_from_proto(v1::TopologyResponse::decode(bytes).ok()?).ok();
    law(bytes, decode, |(topology, node)| convert::topology_to_proto(topology, *node).encode_to_vec())
}

fn bucket() -> Bucket {
    Bucket {
        id: BucketId(7),
        name: spec().name,
        policy: spec().policy,
        epoch: Epoch(3),
        phase: Phase::Steady,
        primary: Some(RegionId(1)),
        regions: vec![RegionId(1), RegionId(2)],
        labels: spec().labels,
        created: Hlc(5),
        standing: Default::default(),
        auto: Default::default(),
        turns: Default::default(),
        joins: Default::default(),
        crossing: None,
    }
}

pub(super) fn topologies() -> Vec<Vec<u8>> {
    let formed = state_after(3).topology();
    let mut more = Topology::clone(&formed);
    more.bucket_ids.insert(bucket().name, bucket().id);
    more.buckets = BTreeMap::from([(bucket().id, Arc::new(bucket()))]);
    more.last_bucket = BucketId(9);
    [&Topology::default(), &formed, &more]
        .map(|topology| convert::topology_to_proto(topology, NodeId(5)).encode_to_vec())
        .to_vec()
}

/// What a node reports of itself: digests, lag, status.
pub(super) fn reports(bytes: &[u8]) -> bool {
    let digests = |bytes: &[u8]| convert::digests_from_proto(v1::DigestsResponse::decode(bytes).ok()?).ok();
    let lag = |bytes: &[u8]| convert::lag_from_proto(v1::LagResponse::decode(bytes).ok()?).ok();
    let status = |bytes: &[u8]| convert::node_status_from_proto(v1::NodeStatusResponse::decode(bytes).ok()?).ok();
    let all = [
        law(bytes, digests, |(region, rows)| convert::digests_to_proto(*region, rows.clone()).encode_to_vec()),
        law(bytes, lag, |(region, lags, lanes)| {
            convert::lag_to_proto(*region, lags.clone(), lanes.clone()).encode_to_vec()
        }),
        law(bytes, status, |status| convert::node_status_to_proto(status.clone()).encode_to_vec()),
    ];
    all.contains(&true)
}

pub(super) fn report_samples() -> Vec<Vec<u8>> {
    let mut digest = BucketDigest { keys: 2, hlc: Hlc(7), ..BucketDigest::default() };
    digest.positions.raise(RegionId(1), Lsn(9));
    let row = ShardDigest { bucket: BucketId(7), shard: ShardId(3), digest, diverged: true };
    let lag = BucketLag {
        bucket: BucketId(7),
        target: RegionId(2),
        unshipped_operations: 1,
        unshipped_bytes: 2,
        unapplied_operations: 3,
        unapplied_bytes: 4,
        lag_ms: 5,
        age_ms: 6,
        oldest_key: KeyStart::of(b"order/17"),
    };
    let states = [
        LaneState::Connecting { reason: "refused".to_owned() },
        LaneState::Streaming,
        LaneState::BehindLog { watermark: Lsn(1), oldest: Lsn(2) },
        LaneState::Diverged { detail: "shard 3".to_owned() },
        LaneState::Fenced,
        LaneState::ClockSkew { ahead_ms: 900 },
    ];
    let lane = |state| LaneStatus {
        shard: ShardId(3),
        target: RegionId(2),
        lane: Lane::Sync,
        head: Lsn(3),
        sent: Lsn(2),
        acked: Lsn(1),
        state,
        raw_bytes: 1,
        wire_bytes: 2,
        frames: 3,
        entries: 4,
        heard_ms: Some(40),
    };
    let status = NodeStatus {
        node: NodeId(5),
        region: RegionId(1),
        version: "0.1.0".to_owned(),
        uptime_ms: 1,
        metadata_index: 2,
        metadata_leader: Some(NodeId(5)),
        lease_ms: 4000,
        shards_led: 3,
        shards_total: 16,
        disk_free_bytes: 4,
        disk_total_bytes: 5,
        log_bytes: 6,
        state_bytes: 7,
        resident_bytes: 8,
        problems: vec!["the disk is full: free some space".to_owned()],
        certificate_left_s: 9,
        wall_ms: 10,
        votes: true,
        metadata_voters: vec![NodeId(5)],
        leases: vec![NodeId(5), NodeId(6)],
        clients: 7,
    };
    vec![
        convert::digests_to_proto(RegionId(1), vec![row]).encode_to_vec(),
        convert::lag_to_proto(RegionId(1), vec![lag], states.map(lane).to_vec()).encode_to_vec(),
        convert::node_status_to_proto(status).encode_to_vec(),
    ]
}

/// What an operator asks for and is told: a bucket to be, a primary to move, how far an operation is; and a refusal.
pub(super) fn admin(bytes: &[u8]) -> bool {
    let spec = |bytes: &[u8]| convert::spec_from_proto(v1::CreateBucketRequest::decode(bytes).ok()?).ok();
    let bucket = |bytes: &[u8]| convert::bucket_from_proto(v1::Bucket::decode(bytes).ok()?).ok();
    let refusal = |bytes: &[u8]| v1::Refusal::decode(bytes).ok().map(convert::refusal_from_proto);
    let switchover = |bytes: &[u8]| convert::switchover_from_proto(v1::SwitchoverRequest::decode(bytes).ok()?).ok();
    let plan = |bytes: &[u8]| convert::plan_from_proto(v1::Operation::decode(bytes).ok()?).ok();
    let all = [
        law(bytes, spec, |(spec, dry_run)| convert::spec_to_proto(spec, *dry_run).encode_to_vec()),
        law(bytes, bucket, |bucket| convert::bucket_to_proto(bucket).encode_to_vec()),
        law(bytes, refusal, |refusal| convert::refusal_to_proto(refusal.clone()).encode_to_vec()),
        law(bytes, switchover, |(spec, id, dry)| convert::switchover_to_proto(spec, *id, *dry).encode_to_vec()),
        law(bytes, plan, |plan| convert::plan_to_proto(plan).encode_to_vec()),
    ];
    all.contains(&true)
}

pub(super) fn admin_samples() -> Vec<Vec<u8>> {
    let refusal = Refusal::new(RefusalKind::Exists, "there is one").with_effect(Effect::Unknown);
    vec![
        convert::spec_to_proto(&spec(), true).encode_to_vec(),
        convert::bucket_to_proto(&bucket()).encode_to_vec(),
        convert::refusal_to_proto(refusal).encode_to_vec(),
        convert::switchover_to_proto(&switchover(), OperationId(7), true).encode_to_vec(),
        convert::plan_to_proto(&plan()).encode_to_vec(),
    ]
}

fn switchover() -> SwitchoverSpec {
    let buckets = Selection::Labelled { key: "team".to_owned(), value: "shop".to_owned() };
    let to = named(RegionName::new("eu-west"));
    SwitchoverSpec { to, buckets, lag_ms_max: 100, pause_ms_max: 5000, reason: "maintenance".to_owned() }
}

/// One bucket at every step.
fn plan() -> Plan {
    let seal = Seal { lsn: Lsn(9), hash: SetHash(8), keys: 7 };
    let proof = Proof { sealed: [(ShardId(0), seal)].into(), ready: [(ShardId(0), seal)].into() };
    let epoch = Epoch(4);
    let steps = [
        Step::Unneeded,
        Step::CatchingUp { caught_up: [ShardId(1)].into() },
        Step::Draining { since_ms: 5, epoch, proof: proof.clone() },
        Step::Promoted { draining_since_ms: 5, at_ms: 6, epoch, proof },
        Step::Restored { draining_since_ms: Some(5), at_ms: 6, epoch, why: "late".to_owned() },
        Step::Fencing { since_ms: 5, epoch, to: RegionId(2), muster: muster(seal) },
        Step::Pulling { since_ms: 5, epoch, to: RegionId(2), muster: muster(seal) },
        Step::FailedOver { fencing_since_ms: 5, at_ms: 6, epoch, to: RegionId(2), verdict: verdict(seal) },
    ];
    let moves = steps.into_iter().zip(1..).map(|(step, id)| Move {
        bucket: BucketId(id),
        name: bucket().name,
        from: RegionId(1),
        epoch_before: Epoch(3),
        step,
    });
    Plan {
        id: PlanId(12),
        operation: OperationId(7),
        goal: Goal::Switchover { to: RegionId(2), lag_ms_max: 100, pause_ms_max: 5000 },
        who: "alice".to_owned(),
        reason: "maintenance".to_owned(),
        created_ms: 1,
        shards: 16,
        moves: moves.collect(),
        ended_ms: Some(9),
    }
}

fn muster(seal: Seal) -> Muster {
    let exposure = Some(Exposure { head: Lsn(12), operations: 3, bytes: 30, oldest_ms: 90 });
    let remains = Remains { epoch: Epoch(3), seal, exposure, whole: true };
    let accepted = Some(Loss { operations: 5, bytes: 50, unbounded: true });
    Muster { remains: [(RegionId(2), [(ShardId(0), remains)].into())].into(), quiet: true, accepted }
}

fn verdict(seal: Seal) -> Verdict {
    let lost = Loss { operations: 3, bytes: 30, unbounded: true };
    Verdict { heard: vec![RegionId(2)], proven: false, lost, cut: [(ShardId(0), seal)].into() }
}

/// Whom a certificate names.
pub(super) fn certificate(der: &[u8]) -> bool {
    let Ok(identity) = Identity::of_certificate(der) else { return false };
    assert_eq!(identity.uri().parse().as_ref(), Ok(&identity), "an identity must come back");
    true
}

pub(super) fn certificates() -> Vec<Vec<u8>> {
    ["meridian://node/us-east/us-east-1", "meridian://client/chaos"]
        .iter()
        .filter_map(|uri| {
            let mut params = rcgen::CertificateParams::default();
            params.subject_alt_names = vec![rcgen::SanType::URI((*uri).try_into().ok()?)];
            let key = rcgen::KeyPair::generate().ok()?;
            Some(params.self_signed(&key).ok()?.der().to_vec())
        })
        .collect()
}
