//! What every link suffers while several faults are at work at once. Faults add up: when one ends, what the others do
//! stays.

use std::time::Duration;

use super::fault::Fault;
use super::link::Conditions;

/// Distances between regions in fair weather.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distances {
    regions: usize,
    /// Per pair `(a, b)` with `a < b`.
    round_trips: Vec<((usize, usize), Duration)>,
}

impl Distances {
    /// Three regions: 0–1, 0–2, 1–2.
    pub fn of_three(round_trips: [Duration; 3]) -> Distances {
        let pairs = [(0, 1), (0, 2), (1, 2)];
        Distances { regions: 3, round_trips: pairs.into_iter().zip(round_trips).collect() }
    }

    /// How many regions there are.
    pub fn regions(&self) -> usize {
        self.regions
    }

    /// The round trip between two regions.
    pub fn round_trip(&self, a: usize, b: usize) -> Duration {
        let pair = (a.min(b), a.max(b));
        self.round_trips.iter().find(|(known, _)| *known == pair).map_or(Duration::ZERO, |(_, round_trip)| *round_trip)
    }

    /// Every ordered pair of regions.
    pub fn directions(&self) -> impl Iterator<Item = (usize, usize)> {
        let regions = self.regions;
        (0..regions).flat_map(move |from| (0..regions).filter(move |to| *to != from).map(move |to| (from, to)))
    }

    /// What holds from one region to another while these faults are at work.
    pub fn conditions<'a>(
        &self,
        (from, to): (usize, usize),
        faults: impl IntoIterator<Item = &'a Fault>,
    ) -> Conditions {
        let mut conditions = Conditions { delay: self.round_trip(from, to) / 2, ..Conditions::default() };
        faults.into_iter().for_each(|fault| self.suffer(&mut conditions, (from, to), fault));
        conditions
    }

    fn suffer(&self, conditions: &mut Conditions, (from, to): (usize, usize), fault: &Fault) {
        let is_between = |a: usize, b: usize| (from, to) == (a, b) || (from, to) == (b, a);
        match *fault {
            Fault::Isolate { region } | Fault::Flap { region } => conditions.cut |= from == region || to == region,
            Fault::Deafen { region } => conditions.cut |= to == region,
            Fault::Mute { region } => conditions.cut |= from == region,
            Fault::Bridge { a, b } => conditions.cut |= is_between(a, b),
            Fault::Ring { forwards } => {
                let next = (from + 1) % self.regions == to;
                conditions.cut |= next != forwards;
            }
            Fault::Lose { share } => conditions.loss = conditions.loss.max(share),
            Fault::Duplicate { share } => conditions.duplicate = conditions.duplicate.max(share),
            Fault::Reorder { share } => conditions.reorder = conditions.reorder.max(share),
            Fault::Corrupt { share } => conditions.corrupt = conditions.corrupt.max(share),
            Fault::Throttle { a, b, bits_per_second } if is_between(a, b) => {
                let least = conditions.bits_per_second.map_or(bits_per_second, |known| known.min(bits_per_second));
                conditions.bits_per_second = Some(least);
            }
            Fault::Stretch { a, b, round_trip } if is_between(a, b) => {
                conditions.delay = round_trip / 2;
                conditions.jitter = round_trip / 5;
            }
            Fault::Throttle { .. }
            | Fault::Stretch { .. }
            | Fault::Kill { .. }
            | Fault::KillAll
            | Fault::Pause { .. }
            | Fault::DiskLow { .. }
            | Fault::DiskFull { .. }
            | Fault::DiskStall { .. }
            | Fault::DiskSlow { .. }
            | Fault::ClockStep { .. }
            | Fault::ClockJump { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distances() -> Distances {
        Distances::of_three([30, 80, 120].map(Duration::from_millis))
    }

    fn cut(faults: &[Fault]) -> Vec<(usize, usize)> {
        let distances = distances();
        distances.directions().filter(|it| distances.conditions(*it, faults).cut).collect()
    }

    #[test]
    fn fair_weather_is_half_of_each_round_trip() {
        let delay = |from, to| distances().conditions((from, to), []).delay.as_millis();
        assert_eq!([delay(0, 1), delay(1, 0), delay(0, 2), delay(2, 1)], [15, 15, 40, 60]);
        assert_eq!(cut(&[]), []);
    }

    #[test]
    fn partitions_cut_what_they_say() {
        assert_eq!(cut(&[Fault::Isolate { region: 0 }]), [(0, 1), (0, 2), (1, 0), (2, 0)]);
        assert_eq!(cut(&[Fault::Deafen { region: 0 }]), [(1, 0), (2, 0)]);
        assert_eq!(cut(&[Fault::Mute { region: 0 }]), [(0, 1), (0, 2)]);
        assert_eq!(cut(&[Fault::Bridge { a: 2, b: 1 }]), [(1, 2), (2, 1)]);
        assert_eq!(cut(&[Fault::Ring { forwards: true }]), [(0, 2), (1, 0), (2, 1)]);
        assert_eq!(cut(&[Fault::Ring { forwards: false }]), [(0, 1), (1, 2), (2, 0)]);
    }

    #[test]
    fn faults_add_up() {
        let faults = [
            Fault::Lose { share: 0.1 },
            Fault::Lose { share: 0.05 },
            Fault::Stretch { a: 1, b: 0, round_trip: Duration::from_millis(200) },
            Fault::Mute { region: 2 },
        ];
        let conditions = distances().conditions((0, 1), &faults);
        assert_eq!((conditions.loss, conditions.delay.as_millis(), conditions.cut), (0.1, 100, false));
        let conditions = distances().conditions((2, 1), &faults);
        assert_eq!((conditions.loss, conditions.delay.as_millis(), conditions.cut), (0.1, 60, true));
    }
}
