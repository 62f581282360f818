//! Operations that change what a bucket is: its policy, its regions, or that one of them is lost. What was asked, by whom and why, from
//! what to what, when each stage began, and how it ended (docs/adr/2026-11-29-changes-on-record.md).
//!
//! ```text
//!   asked ──► Meeting ──► Filling ──► Meeting ──► Settling ──► Done
//!                │           │   ▲       │            │
//!                │           │   └ Filled┘            │       each change passes those stages that it needs, and may need none
//!                └───────────┴───────────┴────────────┴─────► Aborted by somebody, or GivenUp by the cluster
//! ```
//! It only follows the bucket, and no bucket waits for it. Times are wall clocks of the metadata leaders that put them on record, in
//! milliseconds since 1970.
//!
//! Deliberately not here: what moves primaries (`operation.rs`), and when a stage begins (`metadata/core`).

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::bucket::Bucket;
use crate::failover::AutoFailover;
use crate::id::{BucketId, BucketName, RegionId};
use crate::loss::Loss;
use crate::operation::{OperationId, Plan};
use crate::plan::PlanId;
use crate::policy::{Acks, Policy};
use crate::position::Epoch;

/// A change of a bucket: what it is about, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Its name.
    pub id: PlanId,
    /// What it was asked under: whoever asks again under it changes nothing.
    pub operation: OperationId,
    /// Who asked.
    pub who: String,
    /// Why.
    pub reason: String,
    /// Which bucket.
    pub bucket: BucketId,
    /// Its name then.
    pub name: BucketName,
    /// What the bucket was.
    pub before: Terms,
    /// What was asked.
    pub goal: ChangeGoal,
    /// When.
    pub created_ms: u64,
    /// The stages that it has passed through, and the one it is at, oldest first.
    pub stages: Vec<Staged>,
    /// How it ended; `None` while it is under way.
    pub end: Option<ChangeEnd>,
}

/// What a bucket is, as far as a change may touch it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// How it replicates.
    pub policy: Policy,
    /// Who accepts writes; `None` for active-active.
    pub primary: Option<RegionId>,
    /// Who holds it, ascending.
    pub regions: Vec<RegionId>,
    /// Its epoch.
    pub epoch: Epoch,
    /// What it may do by itself when its primary is lost.
    pub auto: AutoFailover,
}

/// What a change is to bring about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeGoal {
    /// Another policy, with as many writing regions as before: one, or all.
    Policy {
        /// With all its settings.
        policy: Policy,
    },
    /// Another number of regions that must have a write.
    Acks {
        /// How many.
        acks: Acks,
    },
    /// From one writing region to all of them, or back.
    Cross {
        /// With all its settings.
        policy: Policy,
        /// The region that is to order its writes; `None` for active-active.
        primary: Option<RegionId>,
        /// For how long writes may be held, in milliseconds.
        pause_ms_max: u64,
    },
    /// A region more.
    Add {
        /// Which.
        region: RegionId,
        /// Where every region writes: for how long writes may be held, in milliseconds.
        pause_ms_max: Option<u64>,
    },
    /// A region less.
    Remove {
        /// Which.
        region: RegionId,
        /// Where every region writes: for how long writes may be held, in milliseconds.
        pause_ms_max: Option<u64>,
    },
    /// To go on without a region that every region wrote with, and that does not come back.
    Lose {
        /// Which.
        region: RegionId,
        /// The most that somebody agreed to lose with it.
        accepted: Loss,
        /// For how long writes may be held, in milliseconds.
        pause_ms_max: u64,
    },
}

/// A stage, and when it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staged {
    /// When.
    pub at_ms: u64,
    /// The bucket's epoch then.
    pub epoch: Epoch,
    /// Which.
    pub stage: Stage,
}

/// Where a change is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Writes are held until all regions stand at the same place.
    Meeting,
    /// The region that joins is filled.
    Filling,
    /// It is filled, and the regions did not meet in time for it to count: whoever asks again goes on.
    Filled,
    /// What was asked is in force, and regions follow into another lane or fetch what they lack.
    Settling,
}

/// How a change ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeEnd {
    /// When.
    pub at_ms: u64,
    /// The bucket's epoch then.
    pub epoch: Epoch,
    /// How.
    pub outcome: ChangeOutcome,
}

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeOutcome {
    /// It is as was asked, and nothing is left to come.
    Done,
    /// Somebody wanted it no more.
    Aborted {
        /// Who.
        who: String,
        /// Why.
        why: String,
    },
    /// It could not be, or something else came in between.
    GivenUp {
        /// Why.
        why: String,
    },
}

impl Terms {
    /// Those of a bucket.
    pub fn of(bucket: &Bucket) -> Terms {
        Terms {
            policy: bucket.policy,
            primary: bucket.primary,
            regions: bucket.regions.clone(),
            epoch: bucket.epoch,
            // Not among the terms that a change may touch, and not stored with them.
            auto: AutoFailover { detect_ms: 0, ..bucket.auto.clone() },
        }
    }
}

impl Change {
    /// Where it is; `None` once it has ended.
    pub fn stage(&self) -> Option<Stage> {
        self.stages.last().filter(|_| self.end.is_none()).map(|it| it.stage)
    }

    /// For how long writes were held, stage by stage, as far as that is over, in milliseconds.
    pub fn pauses_ms(&self) -> impl Iterator<Item = u64> + '_ {
        let ends = self.stages.iter().skip(1).map(|it| it.at_ms).chain(self.end.iter().map(|end| end.at_ms));
        let held = self.stages.iter().zip(ends).filter(|(it, _)| it.stage == Stage::Meeting);
        held.map(|(it, until)| until.saturating_sub(it.at_ms))
    }

    /// How long it took, in milliseconds; `None` while it is under way.
    pub fn took_ms(&self) -> Option<u64> {
        self.end.as_ref().map(|end| end.at_ms.saturating_sub(self.created_ms))
    }
}

impl ChangeGoal {
    /// What kind of change it is.
    pub fn kind(&self) -> &'static str {
        match self {
            ChangeGoal::Policy { .. } | ChangeGoal::Acks { .. } => "policy change",
            ChangeGoal::Cross { .. } => "crossing",
            ChangeGoal::Add { .. } => "region added",
            ChangeGoal::Remove { .. } => "region removed",
            ChangeGoal::Lose { .. } => "region lost",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Stage::Meeting => "meeting",
            Stage::Filling => "filling",
            Stage::Filled => "filled",
            Stage::Settling => "settling",
        })
    }
}

impl fmt::Display for ChangeOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            ChangeOutcome::Done => "done",
            ChangeOutcome::Aborted { .. } => "aborted",
            ChangeOutcome::GivenUp { .. } => "given up",
        })
    }
}

/// What is on record as an operation. Whatever kind it is of, its name belongs to it alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Primaries move.
    Moves(Arc<Plan>),
    /// A bucket becomes another one.
    Change(Arc<Change>),
}

impl Operation {
    /// Its name.
    pub fn id(&self) -> PlanId {
        match self {
            Operation::Moves(plan) => plan.id,
            Operation::Change(change) => change.id,
        }
    }

    /// What it was asked under.
    pub fn operation(&self) -> OperationId {
        match self {
            Operation::Moves(plan) => plan.operation,
            Operation::Change(change) => change.operation,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(stages: &[(u64, Stage)], end: Option<u64>) -> Change {
        let staged = |(at_ms, stage): &(u64, Stage)| Staged { at_ms: *at_ms, epoch: Epoch(1), stage: *stage };
        Change {
            id: PlanId(7),
            operation: OperationId(1),
            who: "alice".to_owned(),
            reason: String::new(),
            bucket: BucketId(1),
            name: BucketName::new("orders").unwrap(),
            before: Terms {
                policy: Policy::ActiveActive,
                primary: None,
                regions: vec![RegionId(1)],
                epoch: Epoch(1),
                auto: AutoFailover::default(),
            },
            goal: ChangeGoal::Add { region: RegionId(2), pause_ms_max: Some(1000) },
            created_ms: 100,
            stages: stages.iter().map(staged).collect(),
            end: end.map(|at_ms| ChangeEnd { at_ms, epoch: Epoch(3), outcome: ChangeOutcome::Done }),
        }
    }

    #[test]
    fn writes_were_held_while_regions_met_and_only_then() {
        let stages = [(100, Stage::Meeting), (140, Stage::Filling), (900, Stage::Meeting)];
        let under_way = change(&stages, None);
        assert_eq!(under_way.pauses_ms().collect::<Vec<_>>(), [40], "the second one is not over");
        assert_eq!((under_way.stage(), under_way.took_ms()), (Some(Stage::Meeting), None));
        let ended = change(&stages, Some(930));
        assert_eq!(ended.pauses_ms().collect::<Vec<_>>(), [40, 30]);
        assert_eq!((ended.stage(), ended.took_ms()), (None, Some(830)));
    }
}
