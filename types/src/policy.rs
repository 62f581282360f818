//! Policies: how a bucket's data crosses the ocean (design 2).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::position::Lane;

mod error;
mod lag;

pub use error::PolicyError;
pub use lag::{Breach, LAG_BYTES_MIN, LAG_MS_MAX, LAG_MS_MIN, LagBound, MaxLag};

/// How long a `sync` bucket waits before it degrades, unless another time is asked for: longer than a shard takes to elect
/// a leader, shorter than clients wait.
pub const DEGRADE_AFTER_MS_DEFAULT: u64 = 5000;

/// The shortest such time: below it every hiccup would be on record.
pub const DEGRADE_AFTER_MS_MIN: u64 = 500;

/// The longest: an hour. Who wants more wants `on-partition = block`.
pub const DEGRADE_AFTER_MS_MAX: u64 = 3_600_000;

/// How a bucket replicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Acknowledged when durable in the primary region; shipped afterwards.
    Async {
        /// The most that no other region may have yet; `None`: whatever it comes to.
        max_lag: Option<MaxLag>,
    },
    /// Acknowledged when durable in as many regions as `acks` says.
    Sync {
        /// How many regions, the primary counted.
        acks: Acks,
        /// What happens when too few answer.
        on_partition: OnPartition,
    },
    /// Every replica region accepts writes; values are CRDTs.
    ActiveActive,
}

/// What happens to writes of a `sync` bucket while too few regions answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnPartition {
    /// They wait, then fail as retryable.
    #[default]
    Block,
    /// They are acknowledged with fewer copies, once DEGRADED is on record (DEG-1).
    Degrade {
        /// How long they wait before, in milliseconds.
        after_ms: u64,
    },
}

/// How many regions must have a write of a `sync` bucket, the primary counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Acks {
    /// The primary and any one other region.
    One,
    /// More than half of the bucket's regions.
    Majority,
    /// Every region of the bucket.
    All,
    /// Exactly this many; at least 2.
    Regions(u8),
}

impl Acks {
    /// The number of regions that must have the write, of `regions` that hold the bucket.
    pub fn required(self, regions: usize) -> usize {
        match self {
            Acks::One => 2,
            Acks::Majority => regions / 2 + 1,
            Acks::All => regions,
            Acks::Regions(count) => usize::from(count),
        }
    }
}

impl Policy {
    /// `async` without a ceiling: `max-performance`.
    pub const ASYNC: Policy = Policy::Async { max_lag: None };

    /// `sync` that never acknowledges fewer: `max-protection`.
    pub const fn sync(acks: Acks) -> Policy {
        Policy::Sync { acks, on_partition: OnPartition::Block }
    }

    /// The lane its entries travel in.
    pub fn lane(self) -> Lane {
        match self {
            Policy::Sync { .. } => Lane::Sync,
            Policy::Async { .. } | Policy::ActiveActive => Lane::Async,
        }
    }

    /// Whether one region takes all writes.
    pub fn has_primary(self) -> bool {
        !matches!(self, Policy::ActiveActive)
    }

    /// The regions that must have a write before it is acknowledged, of `regions` that hold the bucket.
    pub fn required_regions(self, regions: usize) -> usize {
        match self {
            Policy::Async { .. } | Policy::ActiveActive => 1,
            Policy::Sync { acks, .. } => acks.required(regions),
        }
    }

    /// Checks that the policy can be kept by `regions` regions.
    ///
    /// # Errors
    /// [`PolicyError`] names the fields that contradict each other.
    pub fn validate(self, regions: usize) -> Result<(), PolicyError> {
        match self {
            Policy::Async { max_lag: None } => Ok(()),
            Policy::Async { max_lag: Some(_) } if regions < 2 => Err(PolicyError::LagNeedsReplica { regions }),
            Policy::Async { max_lag: Some(max_lag) } => max_lag.bound.validate(),
            Policy::Sync { acks, on_partition } => {
                acks.validate(regions)?;
                on_partition.validate()
            }
            Policy::ActiveActive if regions < 2 => Err(PolicyError::ActiveActiveNeedsReplica { regions }),
            Policy::ActiveActive => Ok(()),
        }
    }

    /// The ceiling of what no other region has yet.
    pub fn max_lag(self) -> Option<MaxLag> {
        match self {
            Policy::Async { max_lag } => max_lag,
            Policy::Sync { .. } | Policy::ActiveActive => None,
        }
    }

    /// How long too few regions may answer before the bucket degrades, in milliseconds; `None`: it never does.
    pub fn degrade_after_ms(self) -> Option<u64> {
        match self {
            Policy::Sync { on_partition: OnPartition::Degrade { after_ms }, .. } => Some(after_ms),
            Policy::Sync { on_partition: OnPartition::Block, .. } | Policy::Async { .. } | Policy::ActiveActive => None,
        }
    }
}

impl Acks {
    fn validate(self, regions: usize) -> Result<(), PolicyError> {
        if regions < 2 {
            return Err(PolicyError::SyncNeedsReplica { regions });
        }
        match self {
            Acks::Regions(acks) if usize::from(acks) > regions => Err(PolicyError::AcksExceedRegions { acks, regions }),
            Acks::Regions(acks) if acks < 2 => Err(PolicyError::AcksTooFew { acks }),
            Acks::One | Acks::Majority | Acks::All | Acks::Regions(_) => Ok(()),
        }
    }
}

impl OnPartition {
    /// `degrade` after the usual time.
    pub const DEGRADE: OnPartition = OnPartition::Degrade { after_ms: DEGRADE_AFTER_MS_DEFAULT };

    fn validate(self) -> Result<(), PolicyError> {
        let (min_ms, max_ms) = (DEGRADE_AFTER_MS_MIN, DEGRADE_AFTER_MS_MAX);
        match self {
            OnPartition::Degrade { after_ms: ms } if !(min_ms..=max_ms).contains(&ms) => {
                Err(PolicyError::DegradeAfter { ms, min_ms, max_ms })
            }
            OnPartition::Block | OnPartition::Degrade { .. } => Ok(()),
        }
    }
}

/// The word alone: `degrade` means after the usual time.
impl FromStr for OnPartition {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<OnPartition, PolicyError> {
        match text {
            "block" => Ok(OnPartition::Block),
            "degrade" => Ok(OnPartition::DEGRADE),
            other => Err(PolicyError::UnknownPartition(other.to_owned())),
        }
    }
}

impl fmt::Display for OnPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OnPartition::Block => f.pad("block"),
            OnPartition::Degrade { after_ms } => f.pad(&format!("degrade after {}", lag::Time(*after_ms))),
        }
    }
}

impl FromStr for Acks {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Acks, PolicyError> {
        match text {
            "one" => Ok(Acks::One),
            "majority" => Ok(Acks::Majority),
            "all" => Ok(Acks::All),
            number => number.parse().map(Acks::Regions).map_err(|_| PolicyError::UnknownAcks(text.to_owned())),
        }
    }
}

impl fmt::Display for Acks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Acks::One => f.write_str("one"),
            Acks::Majority => f.write_str("majority"),
            Acks::All => f.write_str("all"),
            Acks::Regions(count) => write!(f, "{count}"),
        }
    }
}

/// Words as the CLI, Terraform and `BucketSpec` files use them. Data Guard's names are presets: `max-performance` is async,
/// `max-availability` is sync with `acks = majority` that degrades, `max-protection` the same that blocks.
impl FromStr for Policy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Policy, PolicyError> {
        match text {
            "async" | "max-performance" => Ok(Policy::ASYNC),
            "sync" | "max-protection" => Ok(Policy::sync(Acks::Majority)),
            "max-availability" => Ok(Policy::Sync { acks: Acks::Majority, on_partition: OnPartition::DEGRADE }),
            "active-active" => Ok(Policy::ActiveActive),
            other => Err(PolicyError::UnknownPolicy(other.to_owned())),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Policy::Async { max_lag: None } => f.pad("async"),
            Policy::Async { max_lag: Some(max_lag) } => f.pad(&format!("async ({max_lag})")),
            Policy::Sync { acks, on_partition: OnPartition::Block } => f.pad(&format!("sync ({acks})")),
            Policy::Sync { acks, on_partition } => f.pad(&format!("sync ({acks}, {on_partition})")),
            Policy::ActiveActive => f.pad("active-active"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_its_regions_cannot_keep_is_refused_by_field() {
        let sync = Policy::sync;
        assert_eq!(sync(Acks::All).validate(1), Err(PolicyError::SyncNeedsReplica { regions: 1 }));
        assert_eq!(sync(Acks::Regions(4)).validate(3), Err(PolicyError::AcksExceedRegions { acks: 4, regions: 3 }));
        assert_eq!(sync(Acks::Regions(1)).validate(3), Err(PolicyError::AcksTooFew { acks: 1 }));
        assert_eq!(Policy::ActiveActive.validate(1), Err(PolicyError::ActiveActiveNeedsReplica { regions: 1 }));
        assert_eq!(Policy::ASYNC.validate(1), Ok(()));
        assert_eq!(sync(Acks::Majority).validate(3), Ok(()));
    }

    #[test]
    fn what_a_policy_bounds_is_checked_with_it() {
        let bound = LagBound { operations: Some(10), ..LagBound::default() };
        let capped = |bound| Policy::Async { max_lag: Some(MaxLag { bound, on_breach: Breach::Block }) };
        assert_eq!(capped(bound).validate(2), Ok(()));
        assert_eq!(capped(bound).validate(1), Err(PolicyError::LagNeedsReplica { regions: 1 }));
        assert!(capped(LagBound::default()).validate(2).is_err());
        assert_eq!(capped(bound).to_string(), "async (max-lag 10ops: block)");
        let degrading = |after_ms| Policy::Sync { acks: Acks::All, on_partition: OnPartition::Degrade { after_ms } };
        assert!(matches!(degrading(499).validate(2), Err(PolicyError::DegradeAfter { ms: 499, .. })));
        assert!(degrading(3_600_001).validate(2).is_err());
        assert_eq!(degrading(1500).to_string(), "sync (all, degrade after 1500ms)");
    }

    #[test]
    fn presets_are_the_policies_they_stand_for() {
        let of = |text: &str| text.parse::<Policy>();
        assert_eq!(of("max-performance"), of("async"));
        assert_eq!(of("max-protection"), Ok(Policy::sync(Acks::Majority)));
        assert_eq!(of("max-availability").map(Policy::degrade_after_ms), Ok(Some(DEGRADE_AFTER_MS_DEFAULT)));
    }

    #[test]
    fn acks_count_the_primary() {
        assert_eq!(Acks::One.required(3), 2);
        assert_eq!(Acks::Majority.required(3), 2);
        assert_eq!(Acks::Majority.required(5), 3);
        assert_eq!(Acks::All.required(3), 3);
    }
}
