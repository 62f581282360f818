//! The end of a run: what was asked, what was done to the planet, what was wrong.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use meridian_types::{BucketName, Effect};

use super::fault::Kind;
use super::operator::Moves;
use super::round::Outcome;
use crate::history::{Operation, Told};
use crate::real::BUCKETS;

/// All rounds together.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Rounds played.
    pub rounds: u32,
    /// How long all of it took.
    pub lasted: Duration,
    /// Per policy, in the order of [`BUCKETS`].
    pub policies: [Policy; BUCKETS.len()],
    /// Faults injected, by kind.
    pub faults: BTreeMap<Kind, u32>,
    /// How primaries moved.
    pub moves: Moves,
    /// Weak reads of what failovers undid.
    pub undone: usize,
    /// Nodes that stopped because their disk was full, and were started again.
    pub stopped_full: u32,
    /// What checkers looked at, by checker: checked and undecided.
    pub checked: BTreeMap<&'static str, (u64, u64)>,
    /// What is wrong.
    pub violations: Vec<String>,
}

/// What clients of one policy got.
#[derive(Clone, Copy, Debug, Default)]
pub struct Policy {
    /// Operations.
    pub asked: u64,
    /// Answered.
    pub answered: u64,
    /// Refused, certainly without effect.
    pub refused: u64,
    /// Answer lost.
    pub unknown: u64,
    /// The longest time without any answer to anybody.
    pub outage: Duration,
    /// The longest time without any answer to the clients of some region.
    pub outage_of_region: Duration,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.violations.is_empty()
    }

    /// Adds a round.
    pub fn add(&mut self, outcome: &Outcome) {
        self.rounds += 1;
        self.moves = self.moves.and(outcome.moves);
        self.undone += outcome.undone;
        self.stopped_full += outcome.tally.stopped_full;
        for (kind, times) in &outcome.tally.faults {
            *self.faults.entry(*kind).or_default() += times;
        }
        for (name, stats) in &outcome.verdict.stats {
            let checked = self.checked.entry(name).or_default();
            *checked = (checked.0 + stats.checked, checked.1 + stats.undecided);
        }
        self.violations.extend(outcome.verdict.violations.iter().map(ToString::to_string));
        self.violations.extend(outcome.wrong.iter().cloned());
        for (at, (name, _)) in BUCKETS.into_iter().enumerate() {
            let policy = &mut self.policies[at];
            outcome.operations.iter().filter(|it| is_of(name, it.request.bucket())).for_each(|it| policy.count(it));
            if let Some((anybody, region)) = outcome.outages.get(&at) {
                policy.outage = policy.outage.max(*anybody);
                policy.outage_of_region = policy.outage_of_region.max(*region);
            }
        }
    }
}

impl Policy {
    fn count(&mut self, operation: &Operation) {
        self.asked += 1;
        match &operation.told {
            Told::Done(_) => self.answered += 1,
            Told::Refused(refusal) if refusal.effect == Effect::None => self.refused += 1,
            Told::Refused(_) | Told::Nothing => self.unknown += 1,
        }
    }
}

/// Whether a bucket is some round's bucket of that name.
fn is_of(name: &str, bucket: &BucketName) -> bool {
    bucket.as_str().strip_prefix(name).is_some_and(|rest| rest.starts_with('-') && !rest[1..].contains('-'))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} rounds in {:.1} minutes", self.rounds, self.lasted.as_secs_f64() / 60.0)?;
        writeln!(
            f,
            "{:<14} {:>10} {:>10} {:>10} {:>10}   {:<18} to a region",
            "policy", "operations", "answered", "refused", "unknown", "longest silence"
        )?;
        for ((name, _), policy) in BUCKETS.into_iter().zip(&self.policies) {
            writeln!(
                f,
                "{name:<14} {:>10} {:>10} {:>10} {:>10}   {:<18} {:.1} s",
                policy.asked,
                policy.answered,
                policy.refused,
                policy.unknown,
                format!("{:.1} s", policy.outage.as_secs_f64()),
                policy.outage_of_region.as_secs_f64()
            )?;
        }
        writeln!(f, "faults: {}", self.faults.values().sum::<u32>())?;
        for (kind, times) in &self.faults {
            writeln!(f, "{times:>6} × {kind}")?;
        }
        if self.moves.epochs > 0 {
            let Moves { asked, done, epochs } = self.moves;
            writeln!(f, "{epochs} moves of primaries; an operator asked for {asked}, and saw {done} done")?;
            writeln!(f, "{} weak reads saw what a failover undid", self.undone)?;
        }
        if self.stopped_full > 0 {
            writeln!(f, "{} nodes stopped at a full disk and were started again", self.stopped_full)?;
        }
        f.write_str("checked:")?;
        for (name, (checked, undecided)) in self.checked.iter().filter(|(_, (checked, _))| *checked > 0) {
            write!(f, " {name} {checked}")?;
            if *undecided > 0 {
                write!(f, " ({undecided} undecided)")?;
            }
        }
        write!(f, "\nviolations: {}", self.violations.len())?;
        self.violations.iter().try_for_each(|violation| write!(f, "\n  {violation}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_counted_for_its_own_policy() {
        let bucket = |text: &str| BucketName::new(text).unwrap();
        assert!(is_of("async", &bucket("async-12")) && is_of("active-active", &bucket("active-active-1")));
        assert!(!is_of("sync", &bucket("async-1")) && !is_of("active", &bucket("active-active-1")));
    }
}
