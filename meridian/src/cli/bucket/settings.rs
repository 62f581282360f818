//! Flags that say how a bucket replicates and what it may do by itself, as the words they stand for.

use std::time::Duration;

use clap::Args;
use meridian_types::{
    Acks, AutoFailover, AutoMode, Breach, Bucket, BucketChange, LagBound, MaxLag, OnPartition, Policy, PolicyError,
    RegionName, Topology,
};

use crate::cli::words::parse_duration;

/// What can be changed at any time, and what `create` takes besides.
#[derive(Clone, Debug, Default, Args)]
pub(in crate::cli) struct Settings {
    /// For async: the most that no other region may have yet: a time (5s), operations (10000ops), bytes (64MiB), or several
    /// with commas, whichever is reached first.
    #[arg(long, value_name = "BOUND")]
    max_lag: Option<String>,
    /// For async: what happens at max-lag: alarm, throttle (writes are slowed down), block (writes wait, then fail as
    /// retryable; the bound holds) [default: alarm].
    #[arg(long, value_name = "WHAT")]
    on_breach: Option<String>,
    /// For sync: what happens while too few regions answer: block (writes wait, then fail as retryable), degrade (writes are
    /// acknowledged with fewer copies once DEGRADED is on record) [default: block].
    #[arg(long, value_name = "WHAT")]
    on_partition: Option<String>,
    /// For on-partition = degrade: how long writes wait before [default: 5s].
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    degrade_after: Option<Duration>,
    /// What the cluster may do by itself when the primary is lost: manual, observe-only, zero-loss, bounded
    /// [default: manual].
    #[arg(long, value_name = "MODE")]
    auto: Option<String>,
    /// For auto = bounded: what may be lost, written as max-lag.
    #[arg(long, value_name = "BOUND")]
    auto_max_lag: Option<String>,
    /// The least time between two automatic failovers [default: 10m].
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    auto_min_interval: Option<Duration>,
    /// The most automatic failovers in any 24 hours [default: 3].
    #[arg(long, value_name = "COUNT")]
    auto_max_per_day: Option<u32>,
    /// Who is preferred as the next primary, the first one most.
    #[arg(long, value_name = "REGION,..", value_delimiter = ',')]
    successors: Option<Vec<RegionName>>,
}

/// The policy of two flags.
pub(in crate::cli) fn policy_of(policy: &str, acks: Option<&str>) -> Result<Policy, PolicyError> {
    let policy: Policy = policy.parse()?;
    match (policy, acks) {
        (policy, None) => Ok(policy),
        (Policy::Sync { on_partition, .. }, Some(acks)) => {
            Ok(Policy::Sync { acks: acks.parse::<Acks>()?, on_partition })
        }
        (other, Some(acks)) => Err(PolicyError::AcksWithoutSync { acks: acks.to_owned(), policy: other.to_string() }),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Settings {
    /// `policy` with what these flags say besides.
    pub(super) fn policy(&self, policy: Policy) -> Result<Policy, PolicyError> {
        let another =
            |setting: String, needs| PolicyError::SettingOfAnother { setting, policy: policy.to_string(), needs };
        let policy = match (policy, self.max_lag_after(policy.max_lag())?) {
            (policy, None) => policy,
            (Policy::Async { .. }, Some(max_lag)) => Policy::Async { max_lag },
            (Policy::Sync { .. } | Policy::ActiveActive, Some(_)) => {
                let bound = self.max_lag.as_deref().unwrap_or("none");
                return Err(another(format!("max-lag = {bound}"), "async"));
            }
        };
        match (policy, self.on_partition_after(policy)?) {
            (policy, None) => Ok(policy),
            (Policy::Sync { acks, .. }, Some(on_partition)) => Ok(Policy::Sync { acks, on_partition }),
            (Policy::Async { .. } | Policy::ActiveActive, Some(on_partition)) => {
                Err(another(format!("on-partition = {on_partition}"), "sync"))
            }
        }
    }

    /// The ceiling these flags ask for, given the one there is; `Some(None)` lifts it.
    fn max_lag_after(&self, now: Option<MaxLag>) -> Result<Option<Option<MaxLag>>, PolicyError> {
        let on_breach = self.on_breach.as_deref().map(str::parse::<Breach>).transpose()?;
        let bound = match self.max_lag.as_deref() {
            Some("none") => {
                return match on_breach {
                    None => Ok(Some(None)),
                    Some(on_breach) => Err(alone(format!("on-breach = {on_breach}"), "max-lag")),
                };
            }
            Some(text) => Some(text.parse::<LagBound>()?),
            None => now.map(|it| it.bound),
        };
        match (bound, on_breach) {
            (_, None) if self.max_lag.is_none() => Ok(None),
            (Some(bound), on_breach) => {
                let kept = now.map(|it| it.on_breach).unwrap_or_default();
                Ok(Some(Some(MaxLag { bound, on_breach: on_breach.unwrap_or(kept) })))
            }
            (None, Some(on_breach)) => Err(alone(format!("on-breach = {on_breach}"), "max-lag")),
            (None, None) => Ok(None),
        }
    }

    fn on_partition_after(&self, policy: Policy) -> Result<Option<OnPartition>, PolicyError> {
        let word = self.on_partition.as_deref().map(str::parse::<OnPartition>).transpose()?;
        let degrades = policy.degrade_after_ms().is_some();
        match (word, self.degrade_after.map(millis)) {
            (word, None) => Ok(word),
            (Some(OnPartition::Degrade { .. }), Some(after_ms)) => Ok(Some(OnPartition::Degrade { after_ms })),
            (None, Some(after_ms)) if degrades => Ok(Some(OnPartition::Degrade { after_ms })),
            (Some(OnPartition::Block) | None, Some(after_ms)) => {
                Err(alone(format!("degrade-after = {after_ms}ms"), "on-partition = degrade"))
            }
        }
    }

    /// What the bucket may do by itself after these flags, given what it may now; `None`: they don't say.
    pub(super) fn auto(&self, now: AutoFailover<RegionName>) -> Result<Option<AutoFailover<RegionName>>, PolicyError> {
        let bound = self.auto_max_lag.as_deref().map(str::parse::<LagBound>).transpose()?;
        let mode = match (&self.auto, bound, now.mode) {
            (Some(word), bound, _) => AutoMode::of_words(word, bound)?,
            (None, Some(max_lag), AutoMode::Bounded { .. }) => AutoMode::Bounded { max_lag },
            (None, Some(bound), _) => return Err(alone(format!("auto-max-lag = {bound}"), "auto = bounded")),
            (None, None, mode) => mode,
        };
        let asked = AutoFailover {
            mode,
            interval_ms_min: self.auto_min_interval.map_or(now.interval_ms_min, millis),
            per_day_max: self.auto_max_per_day.unwrap_or(now.per_day_max),
            successors: self.successors.clone().unwrap_or_else(|| now.successors.clone()),
            detect_ms: now.detect_ms,
        };
        Ok((asked != now).then_some(asked))
    }

    /// What the bucket may do by itself after these flags; `None`: they don't say.
    pub(super) fn auto_of(
        &self,
        bucket: &Bucket,
        topology: &Topology,
    ) -> Result<Option<AutoFailover<RegionName>>, PolicyError> {
        self.auto(named(&bucket.auto, topology))
    }

    /// What these flags change of a bucket.
    pub(super) fn change(&self, bucket: &Bucket, topology: &Topology) -> Result<BucketChange, PolicyError> {
        let policy = self.policy(bucket.policy)?;
        let on_partition = match policy {
            Policy::Sync { on_partition, .. } => Some(on_partition),
            Policy::Async { .. } | Policy::ActiveActive => None,
        };
        let changed = policy != bucket.policy;
        Ok(BucketChange {
            auto: self.auto_of(bucket, topology)?,
            max_lag: matches!(policy, Policy::Async { .. } if changed).then(|| policy.max_lag()),
            on_partition: on_partition.filter(|_| changed),
            acks: None,
            policy: None,
            cross: None,
            detect_ms: None,
            regions: None,
            accept_loss: None,
            operation: None,
            reason: String::new(),
        })
    }
}

fn alone(setting: String, needs: &'static str) -> PolicyError {
    PolicyError::SettingAlone { setting, needs }
}

/// With names instead of numbers. A successor whose region is not known here is left out.
fn named(auto: &AutoFailover, topology: &Topology) -> AutoFailover<RegionName> {
    let names = auto.successors.iter().filter_map(|id| topology.regions.get(id)).map(|region| region.name.clone());
    AutoFailover {
        mode: auto.mode,
        interval_ms_min: auto.interval_ms_min,
        per_day_max: auto.per_day_max,
        successors: names.collect(),
        detect_ms: auto.detect_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(set: impl FnOnce(&mut Settings)) -> Settings {
        let mut flags = Settings::default();
        set(&mut flags);
        flags
    }

    #[test]
    fn acks_go_with_sync_only_and_the_error_names_both_fields() {
        assert_eq!(policy_of("sync", Some("all")), Ok(Policy::sync(Acks::All)));
        assert_eq!(policy_of("max-protection", None), Ok(Policy::sync(Acks::Majority)));
        let error = policy_of("async", Some("2")).unwrap_err().to_string();
        assert!(error.contains("acks = 2") && error.contains("policy = async"), "{error}");
    }

    #[test]
    fn a_ceiling_goes_with_async_and_degrading_with_sync() {
        let capped = flags(|it| (it.max_lag, it.on_breach) = (Some("5s,100ops".into()), Some("block".into())));
        let policy = capped.policy(Policy::ASYNC).unwrap();
        assert_eq!(policy.to_string(), "async (max-lag 5s,100ops: block)");
        let error = capped.policy(Policy::sync(Acks::All)).unwrap_err().to_string();
        assert!(error.contains("max-lag = 5s,100ops") && error.contains("policy = sync"), "{error}");
        let degrading = flags(|it| it.on_partition = Some("degrade".into()));
        assert_eq!(degrading.policy(Policy::sync(Acks::All)).unwrap().degrade_after_ms(), Some(5000));
        assert!(degrading.policy(Policy::ASYNC).unwrap_err().to_string().contains("policy = async"));
        let alone = flags(|it| it.on_breach = Some("block".into())).policy(Policy::ASYNC).unwrap_err().to_string();
        assert!(alone.contains("on-breach = block") && alone.contains("max-lag"), "{alone}");
        let after = flags(|it| it.degrade_after = Some(Duration::from_secs(2)));
        assert!(after.policy(Policy::sync(Acks::All)).is_err());
        let available: Policy = "max-availability".parse().unwrap();
        assert_eq!(after.policy(available).unwrap().degrade_after_ms(), Some(2000));
    }

    #[test]
    fn what_is_not_said_stays_as_it_is() {
        let max_lag = MaxLag { bound: "5s".parse().unwrap(), on_breach: Breach::Throttle };
        let capped = Policy::Async { max_lag: Some(max_lag) };
        assert_eq!(Settings::default().policy(capped), Ok(capped));
        let more = flags(|it| it.max_lag = Some("9s".into())).policy(capped).unwrap();
        assert_eq!(more.to_string(), "async (max-lag 9s: throttle)");
        assert_eq!(flags(|it| it.max_lag = Some("none".into())).policy(capped), Ok(Policy::ASYNC));

        let now = AutoFailover { per_day_max: 7, ..AutoFailover::default() };
        assert_eq!(Settings::default().auto(now.clone()), Ok(None));
        let zero = flags(|it| it.auto = Some("zero-loss".into())).auto(now.clone()).unwrap().unwrap();
        assert_eq!((zero.mode, zero.per_day_max), (AutoMode::ZeroLoss, 7));
        assert!(flags(|it| it.auto = Some("bounded".into())).auto(now).is_err());
    }
}
