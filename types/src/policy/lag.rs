//! How much a bucket may risk by not being elsewhere yet: bounds in time, operations and bytes, and what happens at them.
//!
//! Words as people write them: `5s,10000ops,64MiB`. Deliberately not here: what is counted against a bound
//! (`region/core`), who watches it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::PolicyError;

/// The shortest bound in time: below it, a round trip between continents would break it all the time.
pub const LAG_MS_MIN: u64 = 100;

/// The longest bound in time: a week. More is no bound anybody acts on.
pub const LAG_MS_MAX: u64 = 7 * 24 * 3_600_000;

/// The smallest bound in bytes: the largest entry there can be, else some writes could never be taken.
pub const LAG_BYTES_MIN: u64 = crate::entry::ENTRY_BYTES_MAX as u64;

/// What no other region has yet may come to; whichever is reached first counts. At least one is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct LagBound {
    /// The age of the oldest operation that no other region has, in milliseconds.
    pub ms: Option<u64>,
    /// Operations.
    pub operations: Option<u64>,
    /// Bytes of their entries.
    pub bytes: Option<u64>,
}

/// What happens when a bound is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Breach {
    /// Somebody is told; writes go on.
    #[default]
    Alarm,
    /// Writes are slowed down the nearer the bound is; they go on beyond it, and somebody is told.
    Throttle,
    /// A write that would go beyond is not taken: it waits, then fails as retryable. The bound holds.
    Block,
}

/// The ceiling of an async bucket's tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MaxLag {
    /// How much.
    pub bound: LagBound,
    /// What happens then.
    pub on_breach: Breach,
}

impl LagBound {
    /// Checks that something is bounded, and by what can be kept.
    ///
    /// # Errors
    /// [`PolicyError::LagBound`] says which part can't be.
    pub fn validate(self) -> Result<(), PolicyError> {
        let bad = |why: String| Err(PolicyError::LagBound { bound: self.to_string(), why });
        if self == LagBound::default() {
            return bad("it bounds nothing; name a time, a number of operations or of bytes".to_owned());
        }
        if self.ms.is_some_and(|ms| !(LAG_MS_MIN..=LAG_MS_MAX).contains(&ms)) {
            return bad(format!("a time is from {LAG_MS_MIN}ms to {}d", LAG_MS_MAX / 86_400_000));
        }
        if self.operations == Some(0) {
            return bad("with 0 operations nothing could be written; use `policy = sync`".to_owned());
        }
        if self.bytes.is_some_and(|bytes| bytes < LAG_BYTES_MIN) {
            return bad(format!("the largest write has {}; use at least that", Bytes(LAG_BYTES_MIN)));
        }
        Ok(())
    }
}

/// Bytes in the largest unit that divides them.
struct Bytes(u64);

const UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, size) = UNITS.into_iter().find(|(_, size)| self.0.is_multiple_of(*size)).unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / size)
    }
}

/// Milliseconds in the largest unit that divides them.
pub(super) struct Time(pub(super) u64);

const TIMES: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, size) = TIMES.into_iter().find(|(_, size)| self.0.is_multiple_of(*size)).unwrap_or(("ms", 1));
        write!(f, "{}{unit}", self.0 / size)
    }
}

impl fmt::Display for LagBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = self.ms.map(|ms| Time(ms).to_string());
        let operations = self.operations.map(|count| format!("{count}ops"));
        let bytes = self.bytes.map(|bytes| Bytes(bytes).to_string());
        let parts: Vec<String> = [time, operations, bytes].into_iter().flatten().collect();
        f.pad(&parts.join(","))
    }
}

/// A number and its unit; fractions are for times and sizes only.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let (_, size) = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(*size),
        Err(_) => {
            // Beyond 2^53 a fraction says nothing; such bounds are out of range anyway.
            let value = number.parse::<f64>().ok()? * *size as f64;
            (value.is_finite() && value < 9e15).then_some(value as u64)
        }
    }
}

/// `5s`, `10000ops`, `64MiB`, or several with commas.
impl FromStr for LagBound {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<LagBound, PolicyError> {
        let mut bound = LagBound::default();
        for part in text.split(',').map(str::trim) {
            let (place, value) = if let Some(ms) = scaled(part, &TIMES) {
                (&mut bound.ms, ms)
            } else if let Some(count) = part.strip_suffix("ops").and_then(|count| count.trim().parse().ok()) {
                (&mut bound.operations, count)
            } else if let Some(bytes) = scaled(part, &UNITS) {
                (&mut bound.bytes, bytes)
            } else {
                return Err(PolicyError::UnknownLag(part.to_owned()));
            };
            if place.replace(value).is_some() {
                return Err(PolicyError::LagBound {
                    bound: text.to_owned(),
                    why: "it names one unit twice; name each once".to_owned(),
                });
            }
        }
        bound.validate().map(|()| bound)
    }
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Breach::Alarm => "alarm",
            Breach::Throttle => "throttle",
            Breach::Block => "block",
        })
    }
}

impl FromStr for Breach {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Breach, PolicyError> {
        match text {
            "alarm" => Ok(Breach::Alarm),
            "throttle" => Ok(Breach::Throttle),
            "block" => Ok(Breach::Block),
            other => Err(PolicyError::UnknownBreach(other.to_owned())),
        }
    }
}

impl fmt::Display for MaxLag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "max-lag {}: {}", self.bound, self.on_breach)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_read_as_they_are_printed() {
        let all = LagBound { ms: Some(5000), operations: Some(10_000), bytes: Some(64 << 20) };
        assert_eq!(all.to_string(), "5s,10000ops,64MiB");
        for bound in [
            all,
            LagBound { ms: Some(1500), ..LagBound::default() },
            LagBound { operations: Some(1), ..LagBound::default() },
            LagBound { bytes: Some((4 << 20) + 1), ..LagBound::default() },
        ] {
            assert_eq!(bound.to_string().parse(), Ok(bound));
        }
        assert_eq!("1.5s, 4.5mib".parse(), Ok(LagBound { ms: Some(1500), bytes: Some(9 << 19), operations: None }));
    }

    #[test]
    fn a_bound_that_cannot_be_kept_is_refused_with_the_reason() {
        for (text, says) in [
            ("", "`max-lag = `"),
            ("5", "`max-lag = 5`"),
            ("-1s", "`max-lag = -1s`"),
            ("5s,2s", "twice"),
            ("10ms", "100ms"),
            ("30d", "7d"),
            ("0ops", "sync"),
            ("1.5ops", "`max-lag = 1.5ops`"),
            ("64KiB", "4MiB"),
            ("99999999999999999999d", "`max-lag"),
        ] {
            let error = text.parse::<LagBound>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        assert!(LagBound::default().validate().is_err());
    }
}
