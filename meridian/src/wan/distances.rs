//! How far regions are apart, and the words people type for it.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use meridian_types::{NameError, RegionName};

/// What one direction between two regions does to what passes.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Conditions {
    /// One-way delay: half of the round trip.
    pub delay: Duration,
    /// Bandwidth in bits per second; `None` means as fast as the machine.
    pub bits_per_second: Option<u64>,
    /// Share of datagrams lost, 0 to 1. Streams lose nothing: their loss would be the kernel's to repair.
    pub loss: f64,
}

/// Two regions, in alphabetical order: distances are the same both ways.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair(RegionName, RegionName);

impl Pair {
    /// The pair of two regions, whichever is named first.
    pub fn new(a: RegionName, b: RegionName) -> Pair {
        if a <= b { Pair(a, b) } else { Pair(b, a) }
    }
}

/// Conditions per pair of regions; a pair without any is on the same machine.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Distances(BTreeMap<Pair, Conditions>);

/// Why a distance was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DistancesError {
    /// Not `A:B=…`.
    #[error("`{0}` is not a pair of regions with a value: write us-east:eu-west=80ms")]
    Shape(String),
    /// Not a region.
    #[error("`{0}` does not name regions")]
    Region(String, #[source] NameError),
    /// Both sides are the same.
    #[error("`{0}` names the same region twice: a region has no distance to itself")]
    Same(String),
    /// Not a duration.
    #[error("`{0}` is not a round trip: write 80ms, 1.5ms or 2s, at most 60s")]
    RoundTrip(String),
    /// Not a bandwidth or a loss.
    #[error("`{0}` is not a bandwidth or a loss: write 400mbit, 10gbit, 1% or 400mbit,1%")]
    Link(String),
}

impl Distances {
    /// Sets the round trip of a pair.
    pub fn set_round_trip(&mut self, pair: Pair, round_trip: Duration) {
        self.0.entry(pair).or_default().delay = round_trip / 2;
    }

    /// Sets the bandwidth (bits per second) and loss (0 to 1) of a pair; what is `None` stays.
    pub fn set_link(&mut self, pair: Pair, bits_per_second: Option<u64>, loss: Option<f64>) {
        let conditions = self.0.entry(pair).or_default();
        conditions.bits_per_second = bits_per_second.or(conditions.bits_per_second);
        conditions.loss = loss.unwrap_or(conditions.loss);
    }

    /// What holds between two regions.
    pub fn conditions(&self, a: &RegionName, b: &RegionName) -> Conditions {
        self.0.get(&Pair::new(a.clone(), b.clone())).copied().unwrap_or_default()
    }

    /// The simulated round trip between two regions.
    pub fn round_trip(&self, a: &RegionName, b: &RegionName) -> Duration {
        self.conditions(a, b).delay * 2
    }

    /// The regions that are named anywhere.
    pub fn regions(&self) -> impl Iterator<Item = &RegionName> {
        self.0.keys().flat_map(|Pair(a, b)| [a, b])
    }
}

/// `us-east:eu-west=80ms`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoundTrip {
    /// Between whom.
    pub pair: Pair,
    /// How long there and back takes.
    pub round_trip: Duration,
}

/// `us-east:eu-west=400mbit,1%`.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    /// Between whom.
    pub pair: Pair,
    /// Bits per second, if given.
    pub bits_per_second: Option<u64>,
    /// Share of datagrams lost, if given.
    pub loss: Option<f64>,
}

impl FromStr for RoundTrip {
    type Err = DistancesError;

    fn from_str(text: &str) -> Result<RoundTrip, DistancesError> {
        let (pair, value) = parse_pair(text)?;
        let bad = || DistancesError::RoundTrip(value.to_owned());
        let seconds = if let Some(millis) = value.strip_suffix("ms") {
            millis.parse::<f64>().map_err(|_| bad())? / 1e3
        } else {
            value.strip_suffix('s').ok_or_else(bad)?.parse::<f64>().map_err(|_| bad())?
        };
        if !(0.0..=60.0).contains(&seconds) {
            return Err(bad());
        }
        Ok(RoundTrip { pair, round_trip: Duration::from_secs_f64(seconds) })
    }
}

impl FromStr for Link {
    type Err = DistancesError;

    fn from_str(text: &str) -> Result<Link, DistancesError> {
        let (pair, value) = parse_pair(text)?;
        let mut link = Link { pair, bits_per_second: None, loss: None };
        for part in value.split(',') {
            let bad = || DistancesError::Link(part.to_owned());
            if let Some(percent) = part.strip_suffix('%') {
                let percent: f64 = percent.parse().map_err(|_| bad())?;
                link.loss = Some((0.0..=100.0).contains(&percent).then_some(percent / 100.0).ok_or_else(bad)?);
            } else {
                link.bits_per_second = Some(parse_bandwidth(part).ok_or_else(bad)?);
            }
        }
        Ok(link)
    }
}

fn parse_bandwidth(text: &str) -> Option<u64> {
    let (number, unit) = [("kbit", 1e3), ("mbit", 1e6), ("gbit", 1e9)]
        .into_iter()
        .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, unit)))?;
    let bits = number.parse::<f64>().ok()? * unit;
    // Below 8 kbit/s a single datagram takes longer than any timeout here.
    (8e3..=1e12).contains(&bits).then_some(bits as u64)
}

fn parse_pair(text: &str) -> Result<(Pair, &str), DistancesError> {
    let shape = || DistancesError::Shape(text.to_owned());
    let (regions, value) = text.split_once('=').ok_or_else(shape)?;
    let (a, b) = regions.split_once(':').ok_or_else(shape)?;
    let name = |name: &str| RegionName::new(name).map_err(|error| DistancesError::Region(regions.to_owned(), error));
    let (a, b) = (name(a)?, name(b)?);
    if a == b {
        return Err(DistancesError::Same(regions.to_owned()));
    }
    Ok((Pair::new(a, b), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(a: &str, b: &str) -> Pair {
        Pair::new(RegionName::new(a).unwrap(), RegionName::new(b).unwrap())
    }

    #[test]
    fn a_round_trip_reads_as_people_write_it() {
        let parsed: RoundTrip = "us-east:eu-west=80ms".parse().unwrap();
        assert_eq!(parsed, RoundTrip { pair: pair("eu-west", "us-east"), round_trip: Duration::from_millis(80) });
        assert_eq!("a:b=0.5ms".parse::<RoundTrip>().unwrap().round_trip, Duration::from_micros(500));
        assert_eq!("a:b=2s".parse::<RoundTrip>().unwrap().round_trip, Duration::from_secs(2));
        for bad in ["a:b", "a=80ms", "a:a=80ms", "a:b=80", "a:b=-1ms", "a:b=61s", "a:B=1ms", ""] {
            assert!(bad.parse::<RoundTrip>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_link_reads_as_people_write_it() {
        let link: Link = "a:b=400mbit,1%".parse().unwrap();
        assert_eq!(link, Link { pair: pair("a", "b"), bits_per_second: Some(400_000_000), loss: Some(0.01) });
        assert_eq!("a:b=0.5%".parse::<Link>().unwrap().bits_per_second, None);
        for bad in ["a:b=", "a:b=101%", "a:b=1bit", "a:b=400mbit,", "a:b=x%"] {
            assert!(bad.parse::<Link>().is_err(), "{bad}");
        }
    }

    #[test]
    fn distances_hold_both_ways_and_are_zero_where_nothing_is_said() {
        let mut distances = Distances::default();
        distances.set_round_trip(pair("a", "b"), Duration::from_millis(80));
        distances.set_link(pair("a", "b"), Some(1_000_000), None);
        let (a, b, c) = (RegionName::new("a").unwrap(), RegionName::new("b").unwrap(), RegionName::new("c").unwrap());
        assert_eq!(distances.conditions(&b, &a).delay, Duration::from_millis(40));
        assert_eq!(distances.conditions(&a, &b).bits_per_second, Some(1_000_000));
        assert_eq!(distances.round_trip(&a, &c), Duration::ZERO);
    }
}
