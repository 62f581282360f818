//! What the cluster may do by itself when a bucket's primary is lost (design 7).
//!
//! Deliberately not here: how a loss is noticed and estimated, and the plan that follows.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::RegionId;
use crate::policy::{LagBound, Policy, PolicyError};

/// The least time between two automatic failovers of a bucket, unless another is asked for: long enough for people to look
/// at the first one.
pub const INTERVAL_MS_DEFAULT: u64 = 10 * 60_000;

/// The longest such time: a week.
pub const INTERVAL_MS_MAX: u64 = 7 * 24 * 3_600_000;

/// How many automatic failovers of a bucket in a day, unless another number is asked for: there and back, and once more.
pub const PER_DAY_DEFAULT: u32 = 3;

/// The most that can be asked for: one every quarter of an hour is no failover but a fault.
pub const PER_DAY_MAX: u32 = 96;

/// The longest that a region may have to look lost before: beyond an hour a person has decided.
pub const DETECT_MS_MAX: u64 = 3_600_000;

/// When a bucket fails over without being told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AutoMode {
    /// Never.
    #[default]
    Manual,
    /// Never, but what would have been done is said.
    ObserveOnly,
    /// When it is proven that nothing acknowledged is lost.
    ZeroLoss,
    /// When what may be lost is within a bound.
    Bounded {
        /// The bound.
        max_lag: LagBound,
    },
}

/// What a bucket may do by itself, and how often. `R` names a region: by id on record, by name when it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AutoFailover<R = RegionId> {
    /// When.
    pub mode: AutoMode,
    /// The least time between two, in milliseconds.
    pub interval_ms_min: u64,
    /// The most in any 24 hours.
    pub per_day_max: u32,
    /// Who is preferred, the first one most. Regions that are not named come after, the most complete one first.
    pub successors: Vec<R>,
    /// How long the primary's region must have looked lost without a break, in milliseconds, once its leases have run out. Set by an
    /// action of its own and stored beside these bytes, for which older releases have no place.
    #[serde(skip)]
    pub detect_ms: u64,
}

impl<R> Default for AutoFailover<R> {
    fn default() -> AutoFailover<R> {
        AutoFailover {
            mode: AutoMode::Manual,
            interval_ms_min: INTERVAL_MS_DEFAULT,
            per_day_max: PER_DAY_DEFAULT,
            successors: Vec::new(),
            detect_ms: 0,
        }
    }
}

impl<R: Ord + fmt::Display> AutoFailover<R> {
    /// Checks it against the bucket's policy and the regions that hold it.
    ///
    /// # Errors
    /// [`PolicyError`] names the fields that contradict each other.
    pub fn validate(&self, policy: Policy, regions: &[R]) -> Result<(), PolicyError> {
        self.validate_mode(policy)?;
        if self.interval_ms_min > INTERVAL_MS_MAX {
            let setting = format!("auto-min-interval = {}ms", self.interval_ms_min);
            return Err(PolicyError::Damping { setting, why: "use at most 7d".to_owned() });
        }
        if !(1..=PER_DAY_MAX).contains(&self.per_day_max) {
            let setting = format!("auto-max-per-day = {}", self.per_day_max);
            return Err(PolicyError::Damping {
                setting,
                why: format!("use 1 to {PER_DAY_MAX}; `auto = manual` for none"),
            });
        }
        for (nth, region) in self.successors.iter().enumerate() {
            let bad = |why| Err(PolicyError::Successor { region: region.to_string(), why });
            if !regions.contains(region) {
                return bad("which does not hold the bucket: add it to `regions`, or drop it from `successors`");
            }
            if self.successors.iter().take(nth).any(|earlier| earlier == region) {
                return bad("twice: name each region once");
            }
        }
        Ok(())
    }

    fn validate_mode(&self, policy: Policy) -> Result<(), PolicyError> {
        let conflict =
            |why| Err(PolicyError::AutoWithPolicy { auto: self.mode.to_string(), policy: policy.to_string(), why });
        match (self.mode, policy) {
            (AutoMode::Manual, Policy::ActiveActive) if self.successors.is_empty() => Ok(()),
            (_, Policy::ActiveActive) => conflict(
                "every region accepts writes, so there is nothing to fail over; use `auto = manual` without successors",
            ),
            (AutoMode::ZeroLoss, Policy::Async { .. }) => conflict(
                "what was not shipped yet is lost with the primary, so it would never happen; use `auto = bounded`",
            ),
            (AutoMode::Bounded { max_lag }, Policy::Async { .. } | Policy::Sync { .. }) => max_lag.validate(),
            (AutoMode::Manual | AutoMode::ObserveOnly, Policy::Async { .. } | Policy::Sync { .. })
            | (AutoMode::ZeroLoss, Policy::Sync { .. }) => Ok(()),
        }
    }
}

impl fmt::Display for AutoMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AutoMode::Manual => f.pad("manual"),
            AutoMode::ObserveOnly => f.pad("observe-only"),
            AutoMode::ZeroLoss => f.pad("zero-loss"),
            AutoMode::Bounded { max_lag } => f.pad(&format!("bounded ({max_lag})")),
        }
    }
}

impl AutoMode {
    /// The mode of its word and, for `bounded`, its bound.
    ///
    /// # Errors
    /// [`PolicyError::UnknownAuto`]; [`PolicyError::SettingAlone`] when one is there without the other.
    pub fn of_words(word: &str, max_lag: Option<LagBound>) -> Result<AutoMode, PolicyError> {
        let alone = |setting: String, needs| Err(PolicyError::SettingAlone { setting, needs });
        let mode = match (word, max_lag) {
            ("bounded", Some(max_lag)) => return Ok(AutoMode::Bounded { max_lag }),
            ("bounded", None) => return alone("auto = bounded".to_owned(), "auto-max-lag"),
            ("manual", _) => AutoMode::Manual,
            ("observe-only", _) => AutoMode::ObserveOnly,
            ("zero-loss", _) => AutoMode::ZeroLoss,
            (other, _) => return Err(PolicyError::UnknownAuto(other.to_owned())),
        };
        match max_lag {
            None => Ok(mode),
            Some(bound) => alone(format!("auto-max-lag = {bound}"), "auto = bounded"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_policy_leaves_no_room_for_is_refused_by_field() {
        let regions = [RegionId(1), RegionId(2)];
        let auto = |mode| AutoFailover { mode, ..AutoFailover::<RegionId>::default() };
        let error = auto(AutoMode::ZeroLoss).validate(Policy::ASYNC, &regions).unwrap_err().to_string();
        assert!(error.contains("auto = zero-loss") && error.contains("policy = async"), "{error}");
        assert!(auto(AutoMode::ObserveOnly).validate(Policy::ActiveActive, &regions).is_err());
        assert_eq!(auto(AutoMode::Manual).validate(Policy::ActiveActive, &regions), Ok(()));
        let bounded = AutoMode::of_words("bounded", Some("5s".parse().unwrap())).unwrap();
        assert_eq!(auto(bounded).validate(Policy::ASYNC, &regions), Ok(()));
        assert!(AutoMode::of_words("bounded", None).is_err());
        assert!(AutoMode::of_words("manual", Some("5s".parse().unwrap())).is_err());
        assert!(AutoMode::of_words("always", None).is_err());
    }

    #[test]
    fn successors_hold_the_bucket_and_are_named_once() {
        let auto = |successors: &[u16], per_day_max| AutoFailover {
            successors: successors.iter().map(|id| RegionId(*id)).collect(),
            per_day_max,
            ..AutoFailover::default()
        };
        let regions = [RegionId(1), RegionId(2)];
        assert_eq!(auto(&[2, 1], 3).validate(Policy::ASYNC, &regions), Ok(()));
        assert!(auto(&[3], 3).validate(Policy::ASYNC, &regions).is_err());
        assert!(auto(&[2, 2], 3).validate(Policy::ASYNC, &regions).is_err());
        assert!(auto(&[], 0).validate(Policy::ASYNC, &regions).is_err());
        assert!(auto(&[], 97).validate(Policy::ASYNC, &regions).is_err());
    }
}
