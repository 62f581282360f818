//! Which kinds of faults there are, for counting, and how long each lasts.

use std::ops::RangeInclusive;
use std::time::Duration;

use meridian_types::Policy;

use super::{Fault, Keep, Loss};

/// Rates of which any two differ by no more than the 1 % that is assumed.
pub(crate) const WITHIN_DRIFT_PPM: RangeInclusive<u64> = 995_000..=1_005_000;

impl Fault {
    /// Every word of [`Fault::kind`].
    pub const KINDS: [&str; 44] = [
        "crash that loses all unsynced writes",
        "crash of a process",
        "crash that keeps some unsynced writes",
        "crash with a torn write",
        "crash with reordered writes",
        "crash of a region",
        "crash of a shard's leader",
        "node lost with its disk",
        "stop of a node",
        "crash of all nodes",
        "partition",
        "one-way partition",
        "isolated node",
        "isolated region",
        "leader cut off in its region",
        "leader deaf in its region",
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
            Fault::CrashRegion { .. } => "crash of a region",
            Fault::CrashLeader { .. } => "crash of a shard's leader",
            Fault::LoseNode { .. } => "node lost with its disk",
            Fault::Stop { .. } => "stop of a node",
            Fault::Blackout { .. } => "crash of all nodes",
            Fault::Partition { both_ways: true, .. } => "partition",
            Fault::Partition { both_ways: false, .. } => "one-way partition",
            Fault::Isolate { .. } => "isolated node",
            Fault::CutRegion { .. } => "isolated region",
            Fault::CutLeader { deaf: false, .. } => "leader cut off in its region",
            Fault::CutLeader { deaf: true, .. } => "leader deaf in its region",
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

    /// The bucket that an operator wants something of.
    pub(super) fn bucket(&self) -> Option<usize> {
        match self {
            Fault::Switchover { bucket, .. }
            | Fault::Failover { bucket, .. }
            | Fault::ChangePolicy { bucket, .. }
            | Fault::ChangeRegions { bucket, .. }
            | Fault::LoseRegion { bucket, .. }
            | Fault::Cross { bucket, .. }
            | Fault::TurnBack { bucket } => Some(*bucket),
            _ => None,
        }
    }

    /// The nodes it is about, themselves or for their regions.
    pub fn nodes(&self) -> Vec<usize> {
        let mut copy = self.clone();
        copy.nodes_mut().into_iter().map(|node| *node).collect()
    }

    /// The same, to be others.
    pub fn nodes_mut(&mut self) -> Vec<&mut usize> {
        match self {
            Fault::Crash { node, .. }
            | Fault::CrashRegion { node, .. }
            | Fault::CrashLeader { node, .. }
            | Fault::LoseNode { node }
            | Fault::Stop { node, .. }
            | Fault::Isolate { node, .. }
            | Fault::CutRegion { node, .. }
            | Fault::CutLeader { node, .. }
            | Fault::Muteness { node, .. }
            | Fault::SlowDisk { node, .. }
            | Fault::StalledDisk { node, .. }
            | Fault::FailingDisk { node, .. }
            | Fault::FullDisk { node, .. }
            | Fault::Pause { node, .. }
            | Fault::SlowNode { node, .. }
            | Fault::Drift { node, .. }
            | Fault::Step { node, .. }
            | Fault::ChangeRegions { node, .. }
            | Fault::LoseRegion { node, .. }
            | Fault::RotLog { node }
            | Fault::RotState { node } => vec![node],
            Fault::Partition { from, to, .. }
            | Fault::Loss { from, to, .. }
            | Fault::Delay { from, to, .. }
            | Fault::Narrow { from, to, .. } => vec![from, to],
            Fault::Switchover { to, .. } => vec![to],
            Fault::Failover { to, .. } | Fault::Cross { primary: to, .. } => to.iter_mut().collect(),
            Fault::Blackout { .. }
            | Fault::CrashMetadataLeader { .. }
            | Fault::LosePrimary { .. }
            | Fault::ChangePolicy { .. }
            | Fault::TurnBack { .. } => Vec::new(),
        }
    }

    /// For how long it lasts, where it does.
    pub fn lasts_mut(&mut self) -> Option<&mut Duration> {
        match self {
            Fault::Crash { away: lasts, .. }
            | Fault::CrashRegion { away: lasts, .. }
            | Fault::CrashLeader { away: lasts, .. }
            | Fault::Stop { away: lasts, .. }
            | Fault::Blackout { away: lasts, .. }
            | Fault::CrashMetadataLeader { away: lasts }
            | Fault::Partition { lasts, .. }
            | Fault::Isolate { lasts, .. }
            | Fault::CutRegion { lasts, .. }
            | Fault::CutLeader { lasts, .. }
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
            Fault::LoseNode { .. }
            | Fault::Switchover { .. }
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
