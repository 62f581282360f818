//! The words of Meridian, one per concept (`docs/glossary.md`).
//!
//! Everything here is a value: ids, positions, times, policies, requests and responses, and the
//! two byte formats that more than one room must read: the log [`entry`] and the replication
//! [`frame`]. No IO, no clock, no randomness. Every other crate of ours may import this one; this
//! one imports none of ours.

pub mod backup;
pub mod bucket;
pub mod change;
pub mod crossing;
pub mod digest;
pub mod drill;
pub mod entry;
pub mod estimate;
pub mod event;
pub mod failover;
pub mod frame;
pub mod id;
pub mod joins;
pub mod key;
pub mod loss;
pub mod members;
pub mod operation;
pub mod plan;
pub mod policy;
pub mod position;
pub mod refusal;
pub mod release;
pub mod repair;
pub mod request;
pub mod salvage;
pub mod session;
pub mod standing;
pub mod status;
pub mod topology;
pub mod turns;

pub use backup::{BackupAsk, BackupCut, BackupPiece, BackupRow, BackupSince, BackupSpan};
pub use bucket::{Bucket, BucketChange, BucketSpec, Cross, Labels, Phase, RegionChange};
pub use change::{Change, ChangeEnd, ChangeGoal, ChangeOutcome, Operation, Stage, Staged, Terms};
pub use crossing::{CROSSING_MS_DEFAULT, CROSSING_MS_MAX, Crossing, Regroup, Way};
pub use digest::{BucketDigest, SetHash};
pub use drill::{
    DRILL_SAMPLE_MAX, DrillBucket, DrillLatency, DrillNews, DrillProgress, DrillReport, DrillShard, DrillSpec,
    DrillStep,
};
pub use estimate::{BucketEstimate, Estimate, ShardFacts};
pub use event::{EVENTS_MAX, Event, EventPage, EventQuery};
pub use failover::{AutoFailover, AutoMode, DETECT_MS_MAX};
pub use id::{
    BucketId, BucketName, ClientId, ClusterId, GroupId, NameError, NodeId, NodeName, RegionId, RegionName, ShardId,
};
pub use joins::{Joining, Joins, STAYS_MAX, Stay};
pub use key::{Key, KeyStart, Value};
pub use loss::{Consent, ConsentError, Exposure, FailoverSpec, Lack, Loss, Muster, Remains, Verdict};
pub use members::{MemberChange, MembersChange, Membership};
pub use operation::{Goal, Move, OperationId, Plan, PlanOutcome, Proof, Selection, Step, SwitchoverSpec};
pub use plan::{Fact, PlanId, Seal, Word};
pub use policy::{Acks, Breach, LagBound, MaxLag, OnPartition, Policy, PolicyError};
pub use position::{Epoch, Head, Hlc, Lane, Lsn, Positions, Version};
pub use refusal::{Effect, Refusal, RefusalKind};
pub use repair::{RepairGoal, RepairMode, RepairReason, RepairStatus, RepairStep, Row};
pub use request::{
    Durability, Freshness, Outcome, Read, ReadLevel, Request, RequestId, Response, StalePolicy, Write, WriteAck,
};
pub use salvage::{ReplayPolicy, ReplayReport, SalvageBundle, SalvageFate, SalvageId, SalvageIdError, SalvageKey};
pub use session::SessionToken;
pub use standing::{Copies, Standing, StandingWord};
pub use status::{BucketLag, LaneState, LaneStatus, NodeStatus, ShardDigest};
pub use topology::{Node, Region, Topology};
pub use turns::{TURNS_MAX, Turn, Turns};
