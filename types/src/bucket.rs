//! Buckets: named keyspaces with one policy.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::crossing::{Crossing, Way};
use crate::failover::AutoFailover;
use crate::id::{BucketId, BucketName, RegionId, RegionName};
use crate::joins::Joins;
use crate::loss::Consent;
use crate::operation::OperationId;
use crate::plan::PlanId;
use crate::policy::{Acks, MaxLag, OnPartition, Policy};
use crate::position::{Epoch, Hlc, Lane};
use crate::standing::Standing;
use crate::turns::Turns;

/// Labels: what operators select buckets by.
pub type Labels = BTreeMap<String, String>;

/// What is asked for when a bucket is created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketSpec {
    /// Its name.
    pub name: BucketName,
    /// How it replicates.
    pub policy: Policy,
    /// The regions that hold it; empty means every region of the cluster.
    pub regions: Vec<RegionName>,
    /// The region that accepts writes; `None` means the first of `regions`. Must be `None` for active-active.
    pub primary: Option<RegionName>,
    /// Labels.
    pub labels: Labels,
    /// What it may do by itself when its primary is lost.
    pub auto: AutoFailover<RegionName>,
}

/// What can be changed of a bucket while it serves. What is `None` stays as it is. Of all this only `acks` and `policy` need a
/// new epoch: what is acknowledged by the old rule must not be taken for acknowledged by the new one.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BucketChange {
    /// What it may do by itself when its primary is lost.
    pub auto: Option<AutoFailover<RegionName>>,
    /// For `async`: the ceiling of what no other region has yet; `Some(None)` lifts it.
    pub max_lag: Option<Option<MaxLag>>,
    /// For `sync`: what happens while too few regions answer.
    pub on_partition: Option<OnPartition>,
    /// For `sync`: how many regions must have a write, the primary counted.
    pub acks: Option<Acks>,
    /// Another policy, with all its settings: then the three fields above say nothing. An action of its own in the metadata
    /// log, so not part of these bytes.
    #[serde(skip)]
    pub policy: Option<Policy>,
    /// With a policy, where one of the two is `active-active` and the other is not, and with regions where it is `active-active`:
    /// how the bucket crosses.
    #[serde(skip)]
    pub cross: Option<Cross>,
    /// How long a region must have looked lost before it fails over by itself, in milliseconds; then nothing else changes. An action of
    /// its own, too.
    #[serde(skip)]
    pub detect_ms: Option<u64>,
    /// A region more or less; then nothing else changes. An action of its own, too.
    #[serde(skip)]
    pub regions: Option<RegionChange>,
    /// The region that is removed is lost, and somebody has agreed to what that costs. An action of its own, too.
    #[serde(skip)]
    pub accept_loss: Option<Consent>,
    /// What it is asked under, where it is an operation ([`crate::change::Change`]): asked again under it, nothing happens twice. `None`:
    /// nobody asks again.
    #[serde(skip)]
    pub operation: Option<OperationId>,
    /// Why, for whoever reads the history of operations.
    #[serde(skip)]
    pub reason: String,
}

/// How a bucket is to cross from one writing region to all of them, or back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cross {
    /// From active-active: the region that is to order its writes.
    pub primary: Option<RegionName>,
    /// How long nobody may order anything before it is given up, in milliseconds.
    pub pause_ms_max: u64,
}

/// A change of the regions that hold a bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegionChange {
    /// The region is filled, and then counts.
    Add(RegionName),
    /// The region counts no more, and drops what it has; also gives up its joining.
    Remove(RegionName),
}

/// Where a bucket is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Serving.
    Steady,
    /// A switchover: the primary accepts writes until `to` is close behind.
    CatchingUp {
        /// The operation it belongs to.
        plan: PlanId,
        /// The next primary.
        to: RegionId,
        /// How far behind it may be, in milliseconds, when the primary stops.
        lag_ms_max: u64,
    },
    /// A switchover: the primary's shards seal their epoch, and nobody accepts writes (FEN-1).
    Draining {
        /// The operation it belongs to.
        plan: PlanId,
        /// The next primary.
        to: RegionId,
    },
    /// A failover: the regions that are left refuse what the lost primary may still send, and nobody accepts writes.
    Fencing {
        /// The operation it belongs to.
        plan: PlanId,
        /// The next primary, as far as it is known yet.
        to: RegionId,
    },
    /// A failover: the next primary fetches from the other regions that are left what it lacks; nobody accepts writes.
    Pulling {
        /// The operation it belongs to.
        plan: PlanId,
        /// The next primary.
        to: RegionId,
    },
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Phase::Steady => "steady",
            Phase::CatchingUp { .. } => "catching-up",
            Phase::Draining { .. } => "draining",
            Phase::Fencing { .. } => "fencing",
            Phase::Pulling { .. } => "pulling",
        })
    }
}

/// A bucket as the metadata plane has it on record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// Its number; never reused.
    pub id: BucketId,
    /// Its name; free again once the bucket is deleted.
    pub name: BucketName,
    /// How it replicates.
    pub policy: Policy,
    /// The fencing number (FEN-1).
    pub epoch: Epoch,
    /// Where it is in its life.
    pub phase: Phase,
    /// The one region that accepts writes; `None` for active-active.
    pub primary: Option<RegionId>,
    /// The regions that hold it, the primary among them, ascending.
    pub regions: Vec<RegionId>,
    /// Labels.
    pub labels: Labels,
    /// When it was created.
    pub created: Hlc,
    /// How its copies stand.
    pub standing: Standing,
    /// What it may do by itself when its primary is lost.
    pub auto: AutoFailover,
    /// Which of its entries travel in another lane than its policy says. Stored and sent beside these bytes, for which older
    /// releases have no place.
    #[serde(skip)]
    pub turns: Turns,
    /// Which of its entries a region gets that was added later, and whether one is joining. Stored and sent like the turns.
    #[serde(skip)]
    pub joins: Joins,
    /// Set while it is on its way from one writing region to all of them, or back. Stored and sent like the turns.
    #[serde(skip)]
    pub crossing: Option<Crossing>,
}

impl Bucket {
    /// Whether `region` holds the bucket, and counts.
    pub fn is_in(&self, region: RegionId) -> bool {
        self.regions.contains(&region)
    }

    /// Whether nobody orders anything in its epoch: it is the one that begins when the bucket has opened.
    pub fn is_opening(&self) -> bool {
        self.crossing.as_ref().is_some_and(|crossing| crossing.way == Way::Opening)
    }

    /// Whether `region` gets what is written: it holds the bucket, or is joining.
    pub fn reaches(&self, region: RegionId) -> bool {
        self.is_in(region) || self.joins.joining() == Some(region)
    }

    /// The regions that meet while it crosses: those that hold it, but for one that is lost, and one that is joining.
    pub fn meeting(&self) -> Vec<RegionId> {
        let lost = self.lost();
        self.regions.iter().copied().chain(self.joins.joining()).filter(|it| Some(*it) != lost).collect()
    }

    /// The region that it is losing.
    pub fn lost(&self) -> Option<RegionId> {
        self.crossing.as_ref().and_then(|crossing| crossing.way.lost())
    }

    /// Whether an entry of that epoch travels to `region`: it was there in that epoch. What is earlier than its joining comes
    /// with what it is filled with.
    pub fn carries(&self, region: RegionId, epoch: Epoch) -> bool {
        self.carries_from(region, epoch) || self.joins.was_there(region, epoch)
    }

    /// Whether the entries of that epoch travel to `region`, and those of every later one.
    pub fn carries_from(&self, region: RegionId, epoch: Epoch) -> bool {
        self.reaches(region) && epoch >= self.joins.since(region)
    }

    /// Whether `region` accepts writes for it.
    pub fn accepts_writes_in(&self, region: RegionId) -> bool {
        self.primary.map_or_else(|| self.is_in(region), |primary| primary == region)
    }

    /// Whether nobody accepts writes for it now: its primary is changing, or it comes to have one, or none.
    pub fn is_between_primaries(&self) -> bool {
        match self.phase {
            _ if self.crossing.is_some() => true,
            Phase::Steady | Phase::CatchingUp { .. } => false,
            Phase::Draining { .. } | Phase::Fencing { .. } | Phase::Pulling { .. } => true,
        }
    }

    /// The lane of an entry of that epoch (ORD-1).
    pub fn lane_of(&self, epoch: Epoch) -> Lane {
        self.turns.lane(epoch, self.policy.lane())
    }

    /// Whether entries of it may travel in that lane.
    pub fn travels_in(&self, lane: Lane) -> bool {
        self.policy.lane() == lane || self.turns.kept.iter().any(|turn| turn.from == lane)
    }

    /// Whether some region may not have followed it into its lane yet.
    pub fn is_turning(&self) -> bool {
        !self.turns.is_empty()
    }

    /// The regions, but for `origin`, whose copies count.
    pub fn targets(&self, origin: RegionId) -> impl Iterator<Item = RegionId> + '_ {
        self.regions.iter().copied().filter(move |region| *region != origin)
    }
}
