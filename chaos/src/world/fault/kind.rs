//! Which kinds of faults there are, for counting, and how long each lasts.

use std::ops::RangeInclusive;
use std::time::Duration;

use meridian_types::Policy;

use super::{Fault, Keep, Loss};

/// Rates of which any two differ by no more than the 1 % that is assumed.
pub(crate) const WITHIN_DRIFT_PPM: RangeInclusive<u64> = 995_000..=1_005_000;

impl Fault {
    /// Every word of [`Fault::kind`].
    pub const KINDS: [&str; 37] = [
        "crash that loses all unsynced writes",
        "crash of a process",
        "crash that keeps some unsynced writes",
        "crash with a torn write",
        "crash with reordered writes",
        "crash of all nodes",
        "partition",
        "one-way partition",
        "isolated region",
        "lost answers",
        "packet loss",
        "delay",
        "narrow link",
        "slow disk",
        "stalled disk",
        "failing disk",
        "full disk",
        "paused process",
        "slow node",
        "clock drift beyond the bound",
        "clock drift",
        "clock step",
        "crash of the metadata leader",
        "lost primary, crashed",
        "lost primary, cut off",
        "switchover",
        "forced failover",
        "failover",
        "change of policy",
        "one region more",
        "one region less",
        "region given up for lost",
        "opening",
        "closing",
        "crossing given up by an operator",
        "bit rot in the log",
        "bit rot in the state",
    ];

    /// A word for counting.
    pub fn kind(&self) -> &'static str {
        match self {
            Fault::Crash { keep: Keep::None, .. } => "crash that loses all unsynced writes",
            Fault::Crash { keep: Keep::All, .. } => "crash of a process",
            Fault::Crash { keep: Keep::Prefix, .. } => "crash that keeps some unsynced writes",
            Fault::Crash { keep: Keep::Torn, .. } => "crash with a torn write",
            Fault::Crash { keep: Keep::Subset, .. } => "crash with reordered writes",
            Fault::Blackout { .. } => "crash of all nodes",
            Fault::Partition { both_ways: true, .. } => "partition",
            Fault::Partition { both_ways: false, .. } => "one-way partition",
            Fault::Isolate { .. } => "isolated region",
            Fault::Muteness { .. } => "lost answers",
            Fault::Loss { .. } => "packet loss",
            Fault::Delay { .. } => "delay",
            Fault::Narrow { .. } => "narrow link",
            Fault::SlowDisk { .. } => "slow disk",
            Fault::StalledDisk { .. } => "stalled disk",
            Fault::FailingDisk { .. } => "failing disk",
            Fault::FullDisk { .. } => "full disk",
            Fault::Pause { .. } => "paused process",
            Fault::SlowNode { .. } => "slow node",
            Fault::Drift { rate_ppm, .. } if !WITHIN_DRIFT_PPM.contains(rate_ppm) => "clock drift beyond the bound",
            Fault::Drift { .. } => "clock drift",
            Fault::Step { .. } => "clock step",
            Fault::CrashMetadataLeader { .. } => "crash of the metadata leader",
            Fault::LosePrimary { how: Loss::Crash, .. } => "lost primary, crashed",
            Fault::LosePrimary { how: Loss::Cut, .. } => "lost primary, cut off",
            Fault::Switchover { .. } => "switchover",
            Fault::Failover { forced: true, .. } => "forced failover",
            Fault::Failover { forced: false, .. } => "failover",
            Fault::ChangePolicy { .. } => "change of policy",
            Fault::ChangeRegions { add: true, .. } => "one region more",
            Fault::ChangeRegions { add: false, .. } => "one region less",
            Fault::LoseRegion { .. } => "region given up for lost",
            Fault::Cross { to: Policy::ActiveActive, .. } => "opening",
            Fault::Cross { .. } => "closing",
            Fault::TurnBack { .. } => "crossing given up by an operator",
            Fault::RotLog { .. } => "bit rot in the log",
            Fault::RotState { .. } => "bit rot in the state",
        }
    }

    /// For how long it lasts, where it does.
    pub fn lasts_mut(&mut self) -> Option<&mut Duration> {
        match self {
            Fault::Crash { away: lasts, .. }
            | Fault::Blackout { away: lasts, .. }
            | Fault::CrashMetadataLeader { away: lasts }
            | Fault::Partition { lasts, .. }
            | Fault::Isolate { lasts, .. }
            | Fault::Muteness { lasts, .. }
            | Fault::Loss { lasts, .. }
            | Fault::Delay { lasts, .. }
            | Fault::Narrow { lasts, .. }
            | Fault::SlowDisk { lasts, .. }
            | Fault::StalledDisk { lasts, .. }
            | Fault::FailingDisk { lasts, .. }
            | Fault::FullDisk { lasts, .. }
            | Fault::Pause { lasts, .. }
            | Fault::SlowNode { lasts, .. }
            | Fault::Drift { lasts, .. }
            | Fault::Step { lasts, .. }
            | Fault::LosePrimary { lasts, .. } => Some(lasts),
            Fault::Switchover { .. }
            | Fault::Failover { .. }
            | Fault::ChangePolicy { .. }
            | Fault::ChangeRegions { .. }
            | Fault::Cross { .. }
            | Fault::LoseRegion { .. }
            | Fault::TurnBack { .. }
            | Fault::RotLog { .. }
            | Fault::RotState { .. } => None,
        }
    }
}
