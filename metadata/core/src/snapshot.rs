//! The state as bytes: what a node stores and what a leader sends to a node that fell behind.
//!
//! ```text
//!   "MRDNMETA" | version u32 LE | postcard body | crc32c u32 LE of all before
//! ```
//! Old versions must still open: `testdata/state-v*.hex`. Damage is found before anything is used (DUR-3).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meridian_types::{
    Bucket, BucketId, Change, Crossing, Hlc, Joins, MemberChange, Node, NodeId, Plan, Region, RegionId, ShardId, Turns,
    Way,
};
use serde::{Deserialize, Serialize};

use crate::event::Events;
use crate::legacy::StateV2;
use crate::members::Members;
use crate::operations::Operations;
use crate::state::{ClusterState, Fault, Formed, ShardGroup};

/// The most bytes an encoded state may have; read before any of it is decoded (RES-1). The bounds of the
/// state itself keep it below 128 MiB.
pub const SNAPSHOT_BYTES_MAX: usize = 256 << 20;

/// The newest version this release writes and reads: 10, and the format of commands that was said. A state without that is written as version
/// 10, which is 9, the changes of buckets that are on record, and how long buckets wait before they
/// fail over. A state without any of these is written as version 9, which is 8 and whose members change and which nodes were removed. A state without any is
/// written as version 8, which has which active-active buckets lose a region; one without any as version 7, which has which regions join an active-active bucket; one without any, in which none is on its way to other regions,
/// as version 6, which has which buckets cross, without these as version 5, which has
/// which regions were added to buckets, without these as version 4, which has which buckets' lanes have turned, and without
/// these as version 3, so that during an upgrade nodes of both releases take it.
pub const SNAPSHOT_VERSION: u32 = 11;

const WITHOUT_FORMAT: u32 = 10;

const WITHOUT_CHANGES: u32 = 9;

const WITHOUT_MEMBERS: u32 = 8;

const WITHOUT_LOSING: u32 = 7;

const WITHOUT_REGROUPING: u32 = 6;

const WITHOUT_CROSSINGS: u32 = 5;

const WITHOUT_JOINS: u32 = 4;

const WITHOUT_TURNS: u32 = 3;

const MAGIC: &[u8; 8] = b"MRDNMETA";
const HEADER_BYTES: usize = MAGIC.len() + 4;
const CHECKSUM_BYTES: usize = 4;

/// Why bytes are no state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Something else, or too short or long to be one.
    #[error("it is not a metadata state")]
    NotAState,
    /// The checksum differs.
    #[error("its checksum does not match: bytes were changed or lost")]
    Checksum,
    /// Written by a newer release.
    #[error("it has version {0}; this release reads up to {SNAPSHOT_VERSION}: use the release that wrote it")]
    UnknownVersion(u32),
    /// The checksum is right, but the content is not a state.
    #[error("its content can't be read")]
    Content(#[source] postcard::Error),
    /// The content contradicts itself.
    #[error("its content contradicts itself")]
    Fault(#[from] Fault),
}

/// Version 3 as written, and versions 4 to 11 but for the turns, joins, crossings, pauses, members, changes and format behind it; earlier ones are in `legacy`. Field order is the format.
#[derive(Serialize, Deserialize)]
pub(crate) struct StateV3 {
    pub(crate) index: u64,
    pub(crate) clock: Hlc,
    pub(crate) formed: Option<Formed>,
    pub(crate) regions: BTreeMap<RegionId, Region>,
    pub(crate) last_region: RegionId,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) groups: BTreeMap<(RegionId, ShardId), ShardGroup>,
    pub(crate) buckets: BTreeMap<BucketId, Arc<Bucket>>,
    pub(crate) last_bucket: BucketId,
    pub(crate) operations: Operations,
    pub(crate) events: Events,
    pub(crate) plans: Vec<Arc<Plan>>,
}

type StateV6 = (StateV3, BTreeMap<BucketId, Turns>, BTreeMap<BucketId, Joins>, BTreeMap<BucketId, Crossing>);

/// And of each active-active bucket that a region joins how long writes may be held for it, in milliseconds.
type StateV7 = (StateV6, BTreeMap<BucketId, u64>);

/// And who comes and goes: changes by region, and removed nodes.
type StateV9 = (StateV7, BTreeMap<RegionId, MemberChange>, BTreeSet<NodeId>);

/// And the changes of buckets, and of each that waits before it fails over by itself for how long, in milliseconds.
type StateV10 = (StateV9, Vec<Arc<Change>>, BTreeMap<BucketId, u64>);

/// And the newest format of commands that may be on record.
type StateV11 = (StateV10, u8);

impl ClusterState {
    /// The state as bytes; equal states make equal bytes.
    pub fn encode(&self) -> Vec<u8> {
        let state = self.clone();
        let (members, finalized) = (state.members, state.finalized);
        let changes: Vec<_> = state.changes.into_values().collect();
        let stored = StateV3 {
            index: state.index,
            clock: state.clock,
            formed: state.formed,
            regions: state.regions,
            last_region: state.last_region,
            nodes: state.nodes,
            groups: state.groups,
            buckets: state.buckets,
            last_bucket: state.last_bucket,
            operations: state.operations,
            events: state.events,
            plans: state.plans.into_values().collect(),
        };
        let turning = stored.buckets.values().filter(|bucket| bucket.is_turning());
        let turns: BTreeMap<BucketId, Turns> = turning.map(|bucket| (bucket.id, bucket.turns.clone())).collect();
        let joined = stored.buckets.values().filter(|bucket| !bucket.joins.is_empty());
        let joins: BTreeMap<BucketId, Joins> = joined.map(|bucket| (bucket.id, bucket.joins.clone())).collect();
        let crossing = |bucket: &Arc<Bucket>| Some((bucket.id, bucket.crossing.clone()?));
        let crossings: BTreeMap<BucketId, Crossing> = stored.buckets.values().filter_map(crossing).collect();
        let pause = |bucket: &Arc<Bucket>| match &bucket.joins.now {
            Some(joining) if bucket.primary.is_none() => Some((bucket.id, joining.pause_ms_max)),
            _ => None,
        };
        let pauses: BTreeMap<BucketId, u64> = stored.buckets.values().filter_map(pause).collect();
        let waits = stored.buckets.values().filter(|bucket| bucket.auto.detect_ms > 0);
        let detect_ms: BTreeMap<BucketId, u64> = waits.map(|bucket| (bucket.id, bucket.auto.detect_ms)).collect();
        let regroups = crossings.values().any(|it| matches!(it.way, Way::Regrouping { .. }));
        let loses = crossings.values().any(|it| matches!(it.way, Way::Losing { .. }));
        let version = match (turns.is_empty(), joins.is_empty(), crossings.is_empty()) {
            _ if finalized.is_some() => SNAPSHOT_VERSION,
            _ if !changes.is_empty() || !detect_ms.is_empty() => WITHOUT_FORMAT,
            _ if !members.is_empty() => WITHOUT_CHANGES,
            _ if loses => WITHOUT_MEMBERS,
            _ if regroups || !pauses.is_empty() => WITHOUT_LOSING,
            (true, true, true) => WITHOUT_TURNS,
            (false, true, true) => WITHOUT_JOINS,
            (_, false, true) => WITHOUT_CROSSINGS,
            (_, _, false) => WITHOUT_REGROUPING,
        };
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&version.to_le_bytes());
        // Serialising plain values into a growing vector has no way to fail; were it to, `decode` would refuse the result.
        let mut bytes = match version {
            WITHOUT_TURNS => postcard::to_extend(&stored, bytes),
            WITHOUT_JOINS => postcard::to_extend(&(stored, turns), bytes),
            WITHOUT_CROSSINGS => postcard::to_extend(&(stored, turns, joins), bytes),
            WITHOUT_REGROUPING => postcard::to_extend(&(stored, turns, joins, crossings), bytes),
            WITHOUT_CHANGES => {
                let older = ((stored, turns, joins, crossings), pauses);
                postcard::to_extend(&(older, members.changes, members.retired), bytes)
            }
            WITHOUT_FORMAT | SNAPSHOT_VERSION => {
                let older = ((stored, turns, joins, crossings), pauses);
                let older = ((older, members.changes, members.retired), changes, detect_ms);
                match finalized {
                    Some(format) => postcard::to_extend(&(older, format), bytes),
                    None => postcard::to_extend(&older, bytes),
                }
            }
            _ => postcard::to_extend(&((stored, turns, joins, crossings), pauses), bytes),
        }
        .unwrap_or_default();
        let checksum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads a state back.
    ///
    /// # Errors
    /// [`SnapshotError`] when the bytes are damaged, of a newer version, or break a rule of the state.
    pub fn decode(bytes: &[u8]) -> Result<ClusterState, SnapshotError> {
        if bytes.len() > SNAPSHOT_BYTES_MAX || bytes.len() < HEADER_BYTES + CHECKSUM_BYTES {
            return Err(SnapshotError::NotAState);
        }
        let (content, checksum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(SnapshotError::NotAState)?;
        let (magic, rest) = content.split_first_chunk::<8>().ok_or(SnapshotError::NotAState)?;
        let (version, body) = rest.split_first_chunk::<4>().ok_or(SnapshotError::NotAState)?;
        if magic != MAGIC {
            return Err(SnapshotError::NotAState);
        }
        if crc32c::crc32c(content) != u32::from_le_bytes(*checksum) {
            return Err(SnapshotError::Checksum);
        }
        let mut turns: BTreeMap<BucketId, Turns> = BTreeMap::new();
        let mut joins: BTreeMap<BucketId, Joins> = BTreeMap::new();
        let mut crossings: BTreeMap<BucketId, Crossing> = BTreeMap::new();
        let mut pauses: BTreeMap<BucketId, u64> = BTreeMap::new();
        let mut members = Members::default();
        let mut on_record: Vec<Arc<Change>> = Vec::new();
        let mut detect_ms: BTreeMap<BucketId, u64> = BTreeMap::new();
        let mut finalized = None;
        let mut stored: StateV3 = match u32::from_le_bytes(*version) {
            1 => StateV2 { base: read(body)?, plans: Vec::new() }.into(),
            2 => read::<StateV2>(body)?.into(),
            WITHOUT_TURNS => read(body)?,
            WITHOUT_JOINS => {
                let (stored, turned) = read::<(StateV3, BTreeMap<BucketId, Turns>)>(body)?;
                turns = turned;
                stored
            }
            WITHOUT_CROSSINGS => {
                let read = read::<(StateV3, BTreeMap<BucketId, Turns>, BTreeMap<BucketId, Joins>)>(body)?;
                (turns, joins) = (read.1, read.2);
                read.0
            }
            WITHOUT_REGROUPING => {
                let read = read::<StateV6>(body)?;
                (turns, joins, crossings) = (read.1, read.2, read.3);
                read.0
            }
            version @ (WITHOUT_CHANGES | WITHOUT_FORMAT | SNAPSHOT_VERSION) => {
                let ((older, moving, retired), recorded, waits) = match version {
                    WITHOUT_CHANGES => (read::<StateV9>(body)?, Vec::new(), BTreeMap::new()),
                    WITHOUT_FORMAT => read::<StateV10>(body)?,
                    _ => {
                        let (older, format) = read::<StateV11>(body)?;
                        finalized = Some(format);
                        older
                    }
                };
                (on_record, detect_ms) = (recorded, waits);
                members = Members { changes: moving, retired };
                (turns, joins, crossings, pauses) = (older.0.1, older.0.2, older.0.3, older.1);
                older.0.0
            }
            WITHOUT_LOSING | WITHOUT_MEMBERS => {
                let read = read::<StateV7>(body)?;
                (turns, joins, crossings, pauses) = (read.0.1, read.0.2, read.0.3, read.1);
                read.0.0
            }
            other => return Err(SnapshotError::UnknownVersion(other)),
        };
        for (id, turns) in turns {
            if let Some(bucket) = stored.buckets.get_mut(&id) {
                Arc::make_mut(bucket).turns = turns;
            }
        }
        for (id, joins) in joins {
            if let Some(bucket) = stored.buckets.get_mut(&id) {
                Arc::make_mut(bucket).joins = joins;
            }
        }
        for (id, crossing) in crossings {
            if let Some(bucket) = stored.buckets.get_mut(&id) {
                Arc::make_mut(bucket).crossing = Some(crossing);
            }
        }
        for (id, pause_ms_max) in pauses {
            let bucket = stored.buckets.get_mut(&id).map(Arc::make_mut);
            if let Some(joining) = bucket.and_then(|bucket| bucket.joins.now.as_mut()) {
                joining.pause_ms_max = pause_ms_max;
            }
        }
        for (id, detect_ms) in detect_ms {
            if let Some(bucket) = stored.buckets.get_mut(&id) {
                Arc::make_mut(bucket).auto.detect_ms = detect_ms;
            }
        }
        let changes = on_record.into_iter().map(|change| (change.id, change)).collect();
        let state = ClusterState { members, changes, finalized, ..stored.into_state() };
        state.validate()?;
        Ok(state)
    }
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, SnapshotError> {
    let (stored, rest) = postcard::take_from_bytes(body).map_err(SnapshotError::Content)?;
    if rest.is_empty() { Ok(stored) } else { Err(SnapshotError::Content(postcard::Error::SerdeDeCustom)) }
}

impl StateV3 {
    fn into_state(self) -> ClusterState {
        let bucket_ids = self.buckets.values().map(|bucket| (bucket.name.clone(), bucket.id)).collect();
        ClusterState {
            index: self.index,
            clock: self.clock,
            formed: self.formed,
            finalized: None,
            regions: self.regions,
            last_region: self.last_region,
            nodes: self.nodes,
            groups: self.groups,
            members: Members::default(),
            buckets: self.buckets,
            last_bucket: self.last_bucket,
            operations: self.operations,
            events: self.events,
            plans: self.plans.into_iter().map(|plan| (plan.id, plan)).collect(),
            changes: BTreeMap::new(),
            bucket_ids,
        }
    }
}
