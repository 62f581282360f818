//! Policies: how a bucket's data crosses the ocean (design 2).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::position::Lane;

/// How a bucket replicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Acknowledged when durable in the primary region; shipped afterwards.
    Async,
    /// Acknowledged when durable in as many regions as `acks` says. Too few answer: writes wait, then fail as retryable.
    Sync {
        /// How many regions, the primary counted.
        acks: Acks,
    },
    /// Every replica region accepts writes; values are CRDTs.
    ActiveActive,
}

/// How many regions must have a write of a `sync` bucket, the primary counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The lane its entries travel in.
    pub fn lane(self) -> Lane {
        match self {
            Policy::Sync { .. } => Lane::Sync,
            Policy::Async | Policy::ActiveActive => Lane::Async,
        }
    }

    /// Whether one region takes all writes.
    pub fn has_primary(self) -> bool {
        !matches!(self, Policy::ActiveActive)
    }

    /// The regions that must have a write before it is acknowledged, of `regions` that hold the bucket.
    pub fn required_regions(self, regions: usize) -> usize {
        match self {
            Policy::Async | Policy::ActiveActive => 1,
            Policy::Sync { acks } => acks.required(regions),
        }
    }

    /// Checks that the policy can be kept by `regions` regions.
    ///
    /// # Errors
    /// [`PolicyError`] names the fields that contradict each other.
    pub fn validate(self, regions: usize) -> Result<(), PolicyError> {
        match self {
            Policy::Sync { .. } if regions < 2 => Err(PolicyError::SyncNeedsReplica { regions }),
            Policy::ActiveActive if regions < 2 => Err(PolicyError::ActiveActiveNeedsReplica { regions }),
            Policy::Sync { acks: Acks::Regions(count) } if usize::from(count) > regions => {
                Err(PolicyError::AcksExceedRegions { acks: count, regions })
            }
            Policy::Sync { acks: Acks::Regions(count) } if count < 2 => Err(PolicyError::AcksTooFew { acks: count }),
            _ => Ok(()),
        }
    }
}

/// Why a policy was refused. Names the fields in conflict.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// `sync` over a single region.
    #[error(
        "`policy = sync` conflicts with `regions`: {regions} region given, at least 2 are needed; add a region or use `policy = async`"
    )]
    SyncNeedsReplica {
        /// How many were given.
        regions: usize,
    },
    /// `active-active` over a single region.
    #[error(
        "`policy = active-active` conflicts with `regions`: {regions} region given, at least 2 are needed; add a region or use `policy = async`"
    )]
    ActiveActiveNeedsReplica {
        /// How many were given.
        regions: usize,
    },
    /// More acknowledgements than regions.
    #[error(
        "`acks = {acks}` conflicts with `regions`: only {regions} regions hold the bucket; lower `acks` or add regions"
    )]
    AcksExceedRegions {
        /// How many were asked for.
        acks: u8,
        /// How many there are.
        regions: usize,
    },
    /// Fewer than two acknowledgements are no `sync`.
    #[error(
        "`acks = {acks}` conflicts with `policy = sync`: the primary counts, so at least 2 are needed; use `policy = async` for 1"
    )]
    AcksTooFew {
        /// How many were asked for.
        acks: u8,
    },
    /// `acks` with a policy that waits for nobody.
    #[error(
        "`acks = {acks}` conflicts with `policy = {policy}`: only `policy = sync` waits for other regions; drop `acks` or use `policy = sync`"
    )]
    AcksWithoutSync {
        /// What was asked for.
        acks: String,
        /// The policy it was asked with.
        policy: String,
    },
    /// `primary` with active-active.
    #[error(
        "`primary = {primary}` conflicts with `policy = active-active`: every region accepts writes; drop `primary`"
    )]
    PrimaryWithActiveActive {
        /// The region named.
        primary: String,
    },
    /// The primary is not among the regions.
    #[error(
        "`primary = {primary}` conflicts with `regions = {regions}`: the primary must hold the bucket; add it to `regions`"
    )]
    PrimaryOutsideRegions {
        /// The region named.
        primary: String,
        /// The regions given.
        regions: String,
    },
    /// The word is none of the policies.
    #[error(
        "`policy = {0}` is not a policy: use async, sync, active-active, or a preset (max-performance, max-protection)"
    )]
    UnknownPolicy(String),
    /// The word is none of the acks.
    #[error("`acks = {0}` is not valid: use one, majority, all, or a number of regions from 2 (the primary counted)")]
    UnknownAcks(String),
    /// A setting that this release can't honour, so it must not pretend to.
    #[error("`{0}` is not available in this release: {1}")]
    NotAvailable(String, String),
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

/// Words as the CLI, Terraform and `BucketSpec` files use them. Data Guard's names are presets:
/// `max-performance` is async, `max-protection` is sync with `acks = majority`.
impl FromStr for Policy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Policy, PolicyError> {
        match text {
            "async" | "max-performance" => Ok(Policy::Async),
            "sync" | "max-protection" => Ok(Policy::Sync { acks: Acks::Majority }),
            "active-active" => Ok(Policy::ActiveActive),
            "max-availability" => Err(PolicyError::NotAvailable(
                "policy = max-availability".to_owned(),
                "degrading to fewer copies must first be recorded by the metadata plane; use max-protection".to_owned(),
            )),
            other => Err(PolicyError::UnknownPolicy(other.to_owned())),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Policy::Async => f.pad("async"),
            Policy::Sync { acks } => f.pad(&format!("sync ({acks})")),
            Policy::ActiveActive => f.pad("active-active"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_its_regions_cannot_keep_is_refused_by_field() {
        let sync = |acks| Policy::Sync { acks };
        assert_eq!(sync(Acks::All).validate(1), Err(PolicyError::SyncNeedsReplica { regions: 1 }));
        assert_eq!(sync(Acks::Regions(4)).validate(3), Err(PolicyError::AcksExceedRegions { acks: 4, regions: 3 }));
        assert_eq!(sync(Acks::Regions(1)).validate(3), Err(PolicyError::AcksTooFew { acks: 1 }));
        assert_eq!(Policy::ActiveActive.validate(1), Err(PolicyError::ActiveActiveNeedsReplica { regions: 1 }));
        assert_eq!(Policy::Async.validate(1), Ok(()));
        assert_eq!(sync(Acks::Majority).validate(3), Ok(()));
    }

    #[test]
    fn acks_count_the_primary() {
        assert_eq!(Acks::One.required(3), 2);
        assert_eq!(Acks::Majority.required(3), 2);
        assert_eq!(Acks::Majority.required(5), 3);
        assert_eq!(Acks::All.required(3), 3);
    }
}
