//! Why a policy, or what goes with it, was refused. Names the fields in conflict and the remedy.

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
    /// `max-lag` over a single region.
    #[error(
        "`max-lag` conflicts with `regions`: {regions} region given, so nothing would ever be shipped; add a region or drop `max-lag`"
    )]
    LagNeedsReplica {
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
    /// A setting that another policy has.
    #[error(
        "`{setting}` conflicts with `policy = {policy}`: it belongs to `policy = {needs}`; drop it or change `policy`"
    )]
    SettingOfAnother {
        /// The setting, `name = value`.
        setting: String,
        /// The policy it was asked with.
        policy: String,
        /// The policy that has it.
        needs: &'static str,
    },
    /// A setting without the one that it goes with.
    #[error("`{setting}` needs `{needs}`: add it, or drop `{setting}`")]
    SettingAlone {
        /// The setting, `name = value`.
        setting: String,
        /// What it goes with.
        needs: &'static str,
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
    /// `degrade-after` out of range.
    #[error("`degrade-after` is out of range: use {min_ms}ms to {max_ms}ms; this one has {ms}ms")]
    DegradeAfter {
        /// What was asked for.
        ms: u64,
        /// The least.
        min_ms: u64,
        /// The most.
        max_ms: u64,
    },
    /// A bound of lag that can't be kept.
    #[error("`max-lag = {bound}` is not valid: {why}")]
    LagBound {
        /// The bound.
        bound: String,
        /// What is wrong, and the remedy.
        why: String,
    },
    /// The words are no bound.
    #[error(
        "`max-lag = {0}` is not valid: use a time (5s), operations (10000ops) or bytes (64MiB), or several with commas"
    )]
    UnknownLag(String),
    /// The word is none of the reactions.
    #[error("`on-breach = {0}` is not valid: use alarm, throttle or block")]
    UnknownBreach(String),
    /// The word is none of the policies.
    #[error(
        "`policy = {0}` is not a policy: use async, sync, active-active, or a preset (max-performance, max-availability, max-protection)"
    )]
    UnknownPolicy(String),
    /// The word is none of the acks.
    #[error("`acks = {0}` is not valid: use one, majority, all, or a number of regions from 2 (the primary counted)")]
    UnknownAcks(String),
    /// The word is none of the reactions to a partition.
    #[error("`on-partition = {0}` is not valid: use block or degrade")]
    UnknownPartition(String),
    /// The word is none of the modes.
    #[error("`auto = {0}` is not valid: use manual, observe-only, zero-loss, or bounded with `auto-max-lag`")]
    UnknownAuto(String),
    /// `auto` that the policy leaves no room for.
    #[error("`auto = {auto}` conflicts with `policy = {policy}`: {why}")]
    AutoWithPolicy {
        /// The mode.
        auto: String,
        /// The policy.
        policy: String,
        /// Why, and the remedy.
        why: &'static str,
    },
    /// A successor that can't be one.
    #[error("`successors` names {region}, {why}")]
    Successor {
        /// The region.
        region: String,
        /// What is wrong, and the remedy.
        why: &'static str,
    },
    /// Damping out of range.
    #[error("`{setting}` is not valid: {why}")]
    Damping {
        /// The setting, `name = value`.
        setting: String,
        /// The range.
        why: String,
    },
}
