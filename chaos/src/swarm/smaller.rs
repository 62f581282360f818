//! A smaller world that fails in the same way: fewer faults, each as short as it may be.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use super::{Failure, play};
use crate::scenario::Scenario;

/// Nothing is made shorter than that: a round trip between two regions takes longer.
const SHORTEST: Duration = Duration::from_millis(20);

/// A fault of a scenario that is left in it, written `3`, or `3/4` where only a fourth of its time is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Its number, from 0.
    pub place: usize,
    /// By how much its time is divided.
    pub part: NonZeroU32,
}

impl Chosen {
    /// All of it.
    pub fn whole(place: usize) -> Chosen {
        Chosen { place, part: NonZeroU32::MIN }
    }

    /// Half of what it was, unless that is too short or it has no length.
    fn half(self, scenario: &Scenario) -> Option<Chosen> {
        let part = self.part.checked_mul(NonZeroU32::new(2)?)?;
        let mut fault = scenario.faults.get(self.place)?.what.clone();
        (*fault.lasts_mut()? / part.get() >= SHORTEST).then_some(Chosen { part, ..self })
    }
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.part.get() {
            1 => write!(f, "{}", self.place),
            part => write!(f, "{}/{part}", self.place),
        }
    }
}

impl FromStr for Chosen {
    type Err = String;

    fn from_str(text: &str) -> Result<Chosen, String> {
        let (place, part) = text.split_once('/').unwrap_or((text, "1"));
        let wrong =
            || format!("`{text}` names no fault: write its number from 0, as `3`, or `3/4` for a fourth of its time");
        let chosen = place.parse().ok().zip(part.parse().ok());
        chosen.map(|(place, part)| Chosen { place, part }).ok_or_else(wrong)
    }
}

/// The scenario with only these of its faults, each for so long.
pub fn only(scenario: &Scenario, chosen: &[Chosen]) -> Scenario {
    let faults = chosen.iter().filter_map(|chosen| {
        let mut planned = scenario.faults.get(chosen.place)?.clone();
        if let Some(lasts) = planned.what.lasts_mut() {
            let ms = lasts.as_millis() / u128::from(chosen.part.get());
            *lasts = Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX));
        }
        Some(planned)
    });
    Scenario { faults: faults.collect(), ..scenario.clone() }
}

/// Drops one fault after the other, and halves those that are left, for as long as the world still fails in the same way.
pub fn minimise(seed: u64, scenario: &Scenario, failure: &Failure) -> Vec<Chosen> {
    let fails = |smaller: &Scenario| play(seed, smaller).failure.is_some_and(|again| again.is_like(failure));
    smallest(scenario, &fails)
}

fn smallest(scenario: &Scenario, fails: &dyn Fn(&Scenario) -> bool) -> Vec<Chosen> {
    let mut kept: Vec<Chosen> = (0..scenario.faults.len()).map(Chosen::whole).collect();
    // What could not go while another one was there may go without it.
    loop {
        let before = kept.clone();
        drop_some(scenario, &mut kept, fails);
        shorten_some(scenario, &mut kept, fails);
        if kept == before {
            return kept;
        }
    }
}

fn drop_some(scenario: &Scenario, kept: &mut Vec<Chosen>, fails: &dyn Fn(&Scenario) -> bool) {
    let mut place = 0;
    while place < kept.len() {
        let mut fewer = kept.clone();
        fewer.remove(place);
        if fails(&only(scenario, &fewer)) {
            *kept = fewer;
        } else {
            place += 1;
        }
    }
}

fn shorten_some(scenario: &Scenario, kept: &mut [Chosen], fails: &dyn Fn(&Scenario) -> bool) {
    for place in 0..kept.len() {
        while let Some(half) = kept[place].half(scenario) {
            let before = std::mem::replace(&mut kept[place], half);
            if !fails(&only(scenario, kept)) {
                kept[place] = before;
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Planned;
    use crate::world::Fault;

    /// A scenario with a pause of each of these nodes, a second long.
    fn pauses(nodes: &[usize]) -> Scenario {
        let pause = |node: &usize| {
            let what = Fault::Pause { node: *node, lasts: Duration::from_secs(1) };
            Planned { at_ms: 1_000, what }
        };
        Scenario { faults: nodes.iter().map(pause).collect(), ..Scenario::drawn(1, 40) }
    }

    fn length_ms(scenario: &Scenario, node: usize) -> Option<u128> {
        scenario.faults.iter().find_map(|it| match it.what {
            Fault::Pause { node: of, lasts } if of == node => Some(lasts.as_millis()),
            _ => None,
        })
    }

    #[test]
    fn what_can_go_only_without_another_one_goes_in_the_next_pass() {
        let scenario = pauses(&[0, 1, 2]);
        let has = |it: &Scenario, node| length_ms(it, node).is_some();
        let fails = |it: &Scenario| length_ms(it, 1) == Some(1000) && (length_ms(it, 0) == Some(1000) || !has(it, 2));
        assert_eq!(smallest(&scenario, &fails), [Chosen::whole(1)]);
    }

    #[test]
    fn what_must_stay_is_as_short_as_it_may_be() {
        let scenario = pauses(&[0, 1]);
        let fails = |it: &Scenario| length_ms(it, 0).is_some() && length_ms(it, 1).is_some_and(|ms| ms >= 200);
        let left = smallest(&scenario, &fails);
        let written: Vec<String> = left.iter().map(ToString::to_string).collect();
        assert_eq!(written, ["0/32", "1/4"], "not below 20 ms, and a fourth of a second");
        assert_eq!(written.iter().map(|it| it.parse().unwrap()).collect::<Vec<Chosen>>(), left);
        assert_eq!(length_ms(&only(&scenario, &left), 1), Some(250));
    }

    #[test]
    fn a_fault_that_is_not_named_rightly_is_refused_with_what_to_write() {
        for wrong in ["", "x", "3/0", "3/", "/4", "1/2/3"] {
            assert!(wrong.parse::<Chosen>().unwrap_err().contains("3/4"), "{wrong}");
        }
    }
}
