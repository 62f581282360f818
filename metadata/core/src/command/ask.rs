//! What of a bucket can be asked to change as an operation that is on record, and the plain action that does it.
//!
//! Each of these actions is older than the record and is read for ever: asked for by itself it leaves none, so that a log of an earlier
//! release comes to the same state in every release.

use meridian_types::{
    AutoFailover, BucketChange, BucketName, ChangeGoal, Cross, Epoch, Loss, Policy, Refusal, RegionChange, RegionName,
};
use serde::{Deserialize, Serialize};

use super::Action;
use crate::state::ClusterState;

/// What is to change of a bucket. Each of these does what the action of its name does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// [`Action::SetPolicy`].
    SetPolicy {
        /// Which bucket.
        name: BucketName,
        /// The policy, with all its settings.
        policy: Policy,
        /// What it may do by itself from then on; `None`: as before.
        auto: Option<AutoFailover<RegionName>>,
    },
    /// [`Action::SetBucket`], with another number of acknowledging regions.
    SetAcks {
        /// Which bucket.
        name: BucketName,
        /// What changes: `acks`, and what goes with it.
        change: BucketChange,
    },
    /// [`Action::SetRegions`].
    SetRegions {
        /// Which bucket.
        name: BucketName,
        /// Which region.
        change: RegionChange,
    },
    /// [`Action::Cross`].
    Cross {
        /// Which bucket.
        name: BucketName,
        /// The policy it is to have, with all its settings.
        policy: Policy,
        /// What it may do by itself; `None`: as before.
        auto: Option<AutoFailover<RegionName>>,
        /// How.
        cross: Cross,
    },
    /// [`Action::CrossRegions`].
    CrossRegions {
        /// Which bucket.
        name: BucketName,
        /// Which region.
        change: RegionChange,
        /// How long nobody may order anything before it is given up, in milliseconds.
        pause_ms_max: u64,
    },
    /// [`Action::LoseRegion`].
    LoseRegion {
        /// Which bucket.
        name: BucketName,
        /// Which region.
        region: RegionName,
        /// In which epoch of the bucket somebody agreed to lose something.
        epoch: Epoch,
        /// The most.
        accepted: Loss,
        /// How long nobody may order anything before it is given up, in milliseconds.
        pause_ms_max: u64,
    },
}

impl Action {
    /// The same on record as an operation, where it is one of those that can be.
    #[must_use]
    pub fn on_record(self, reason: String) -> Action {
        let ask = match self {
            Action::SetPolicy { name, policy, auto } => Ask::SetPolicy { name, policy, auto },
            Action::SetBucket { name, change } if change.acks.is_some() => Ask::SetAcks { name, change },
            Action::SetRegions { name, change } => Ask::SetRegions { name, change },
            Action::Cross { name, policy, auto, cross } => Ask::Cross { name, policy, auto, cross },
            Action::CrossRegions { name, change, pause_ms_max } => Ask::CrossRegions { name, change, pause_ms_max },
            Action::LoseRegion { name, region, epoch, accepted, pause_ms_max } => {
                Ask::LoseRegion { name, region, epoch, accepted, pause_ms_max }
            }
            other => return other,
        };
        Action::Change { ask, reason }
    }
}

impl Ask {
    /// Which bucket is to change.
    pub fn name(&self) -> &BucketName {
        match self {
            Ask::SetPolicy { name, .. }
            | Ask::SetAcks { name, .. }
            | Ask::SetRegions { name, .. }
            | Ask::Cross { name, .. }
            | Ask::CrossRegions { name, .. }
            | Ask::LoseRegion { name, .. } => name,
        }
    }

    /// What is done, as events and logs name it: as of the plain action.
    pub(super) fn verb(&self) -> &'static str {
        match self {
            Ask::SetPolicy { .. } => "set-policy",
            Ask::SetAcks { .. } => "set-bucket",
            Ask::SetRegions { .. } | Ask::CrossRegions { .. } => "set-regions",
            Ask::Cross { .. } => "cross",
            Ask::LoseRegion { .. } => "lose-region",
        }
    }

    /// The action that does it, without a record.
    pub(crate) fn action(&self) -> Action {
        match self.clone() {
            Ask::SetPolicy { name, policy, auto } => Action::SetPolicy { name, policy, auto },
            Ask::SetAcks { name, change } => Action::SetBucket { name, change },
            Ask::SetRegions { name, change } => Action::SetRegions { name, change },
            Ask::Cross { name, policy, auto, cross } => Action::Cross { name, policy, auto, cross },
            Ask::CrossRegions { name, change, pause_ms_max } => Action::CrossRegions { name, change, pause_ms_max },
            Ask::LoseRegion { name, region, epoch, accepted, pause_ms_max } => {
                Action::LoseRegion { name, region, epoch, accepted, pause_ms_max }
            }
        }
    }

    /// The same with numbers instead of names.
    pub(crate) fn goal(&self, state: &ClusterState) -> Result<ChangeGoal, Refusal> {
        let regions = |change: &RegionChange, pause_ms_max| match change {
            RegionChange::Add(name) => {
                state.known_region("add-region", name).map(|region| ChangeGoal::Add { region, pause_ms_max })
            }
            RegionChange::Remove(name) => {
                state.known_region("remove-region", name).map(|region| ChangeGoal::Remove { region, pause_ms_max })
            }
        };
        match self {
            Ask::SetPolicy { policy, .. } => Ok(ChangeGoal::Policy { policy: *policy }),
            Ask::SetAcks { change, .. } => match change.acks {
                Some(acks) => Ok(ChangeGoal::Acks { acks }),
                None => Err(crate::spec::invalid(
                    "a change of settings that begins no epoch is no operation: leave out its reason and operation id",
                )),
            },
            Ask::SetRegions { change, .. } => regions(change, None),
            Ask::Cross { policy, cross, .. } => {
                let primary = cross.primary.as_ref().map(|it| state.known_region("primary", it)).transpose()?;
                Ok(ChangeGoal::Cross { policy: *policy, primary, pause_ms_max: cross.pause_ms_max })
            }
            Ask::CrossRegions { change, pause_ms_max, .. } => regions(change, Some(*pause_ms_max)),
            Ask::LoseRegion { region, accepted, pause_ms_max, .. } => {
                let region = state.known_region("lost", region)?;
                Ok(ChangeGoal::Lose { region, accepted: *accepted, pause_ms_max: *pause_ms_max })
            }
        }
    }
}
