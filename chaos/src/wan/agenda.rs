//! What is done to the planet and when, drawn from a seed before anything begins.
//!
//! Kinds are drawn from a shuffled bag that is refilled when it is empty, so that a long run has all of them about
//! equally often. Quiet phases lie between; half of the faults have another, of links, for company.

use std::time::Duration;

use rand::Rng;
use rand::seq::SliceRandom;

use super::fault::{FLAP_EVERY, Fault, Kind};

/// How long a quiet phase lasts, in seconds: long enough for a leader to be elected and a lane to catch up, or not.
const QUIET_S: std::ops::Range<f64> = 1.0..8.0;

/// A fault begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// When, from the start of the agenda.
    pub at: Duration,
    /// Which, by its index in [`Agenda::faults`].
    pub fault: usize,
    /// Whether it begins. A flapping link begins and ends several times.
    pub begins: bool,
}

/// What is done and when.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Agenda {
    /// Every fault.
    pub faults: Vec<Fault>,
    /// When they begin and end, in order. Every one that begins ends.
    pub changes: Vec<Change>,
}

/// Kinds that are still to come.
#[derive(Clone, Debug)]
pub struct Bag {
    all: Vec<Kind>,
    left: Vec<Kind>,
}

impl Bag {
    /// A bag of these kinds.
    pub fn of(all: Vec<Kind>) -> Bag {
        Bag { all, left: Vec::new() }
    }

    /// The next kind that is wanted, if the bag was ever to have one.
    fn draw(&mut self, random: &mut impl Rng, is_wanted: impl Fn(Kind) -> bool) -> Option<Kind> {
        if !self.left.iter().any(|kind| is_wanted(*kind)) {
            let mut more = self.all.clone();
            more.shuffle(random);
            self.left.splice(0..0, more);
        }
        let at = self.left.iter().rposition(|kind| is_wanted(*kind))?;
        Some(self.left.remove(at))
    }
}

impl Agenda {
    /// Fills so much time with faults and quiet phases.
    pub fn draw(bag: &mut Bag, regions: usize, length: Duration, random: &mut impl Rng) -> Agenda {
        let mut agenda = Agenda::default();
        let mut now = quiet(random);
        while now < length {
            let Some(kind) = bag.draw(random, |_| true) else { break };
            let (fault, lasts) = kind.draw(regions, random);
            let mut until = agenda.add(fault, now, lasts.min(length - now));
            if random.random_bool(0.5)
                && let Some(kind) = bag.draw(random, |other| other.is_of_links() && other != kind)
            {
                let (fault, lasts) = kind.draw(regions, random);
                let later = now + Duration::from_secs_f64(random.random_range(0.0..3.0));
                if later < length {
                    until = until.max(agenda.add(fault, later, lasts.min(length - later)));
                }
            }
            now = until + quiet(random);
        }
        agenda.changes.sort_by_key(|change| (change.at, change.begins, change.fault));
        agenda
    }

    /// One fault after another, each with a quiet phase before it.
    pub fn of(faults: impl IntoIterator<Item = (Fault, Duration)>, quiet: Duration) -> Agenda {
        let mut agenda = Agenda::default();
        let mut now = Duration::ZERO;
        for (fault, lasts) in faults {
            now = agenda.add(fault, now + quiet, lasts);
        }
        agenda
    }

    /// When the last fault has ended.
    pub fn length(&self) -> Duration {
        self.changes.iter().map(|change| change.at).max().unwrap_or_default()
    }

    /// Adds a fault and returns when it ends.
    fn add(&mut self, fault: Fault, begins: Duration, lasts: Duration) -> Duration {
        let (at, ends) = (self.faults.len(), begins + lasts);
        self.faults.push(fault);
        let mut now = begins;
        loop {
            self.changes.push(Change { at: now, fault: at, begins: true });
            let pause = if fault.kind() == Kind::Flap { (now + FLAP_EVERY).min(ends) } else { ends };
            self.changes.push(Change { at: pause, fault: at, begins: false });
            now = pause + FLAP_EVERY;
            if now >= ends {
                return ends;
            }
        }
    }
}

fn quiet(random: &mut impl Rng) -> Duration {
    Duration::from_secs_f64(random.random_range(QUIET_S))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn drawn(seed: u64, seconds: u64) -> Agenda {
        let mut bag = Bag::of(Kind::ALL.to_vec());
        Agenda::draw(&mut bag, 3, Duration::from_secs(seconds), &mut StdRng::seed_from_u64(seed))
    }

    #[test]
    fn the_same_seed_draws_the_same_agenda() {
        assert_eq!(drawn(3, 300), drawn(3, 300));
        assert_ne!(drawn(3, 300), drawn(4, 300));
    }

    #[test]
    fn every_fault_that_begins_ends_in_time_and_nodes_suffer_one_at_a_time() {
        for seed in 0..50 {
            let agenda = drawn(seed, 120);
            let mut active = BTreeSet::new();
            for change in &agenda.changes {
                assert!(change.at <= Duration::from_secs(120));
                let fresh = if change.begins { active.insert(change.fault) } else { active.remove(&change.fault) };
                assert!(fresh, "{change:?} of {agenda:?}");
                let of_nodes = active.iter().filter(|at| !agenda.faults[**at].kind().is_of_links());
                assert!(of_nodes.count() <= 1);
            }
            assert!(active.is_empty() && agenda.changes.is_sorted_by_key(|change| change.at));
        }
    }

    #[test]
    fn a_long_run_has_every_kind() {
        let kinds: BTreeSet<Kind> = drawn(1, 1_800).faults.iter().map(Fault::kind).collect();
        assert_eq!(kinds.len(), Kind::ALL.len());
    }

    #[test]
    fn a_flapping_link_comes_and_goes() {
        let agenda = Agenda::of([(Fault::Flap { region: 1 }, Duration::from_secs(22))], Duration::from_secs(1));
        let at: Vec<(u64, bool)> = agenda.changes.iter().map(|it| (it.at.as_secs(), it.begins)).collect();
        assert_eq!(at, [(1, true), (6, false), (11, true), (16, false), (21, true), (23, false)]);
        assert_eq!(agenda.length(), Duration::from_secs(23));
    }
}
