//! Positions and times: where in a log, under which epoch, and when.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::RegionId;

/// Position in one group's log; 0 is "before the first entry". Rising, with gaps (the group's own blank entries).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lsn(pub u64);

/// The fencing number of a bucket. Every change of its primary or policy raises it (FEN-1, FEN-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Hybrid logical timestamp: 48 bits of milliseconds since 1970, 16 bits of counter. Strictly rising along a log.
///
/// After Kulkarni et al., "Logical Physical Clocks" (2014): the physical part follows the wall clock,
/// the counter orders what happens within one millisecond or while the wall clock stands behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hlc(pub u64);

impl Hlc {
    const COUNTER_BITS: u32 = 16;

    /// The first timestamp of that millisecond (since 1970).
    pub fn from_millis(millis: u64) -> Hlc {
        Hlc(millis << Self::COUNTER_BITS)
    }

    /// The physical part, in milliseconds since 1970.
    pub fn millis(self) -> u64 {
        self.0 >> Self::COUNTER_BITS
    }

    /// The counter within the millisecond.
    pub fn counter(self) -> u16 {
        u16::try_from(self.0 & 0xffff).unwrap_or_default()
    }

    /// The next timestamp after `self`, given the wall clock in milliseconds: strictly greater, whatever the clock does.
    /// A full counter runs over into the next millisecond. Only the last timestamp there is stays where it is: what is
    /// stamped with it a second time is void, and nothing ever goes back.
    #[must_use]
    pub fn next(self, wall_millis: u64) -> Hlc {
        Hlc(self.0.saturating_add(1).max(Hlc::from_millis(wall_millis).0))
    }
}

impl fmt::Display for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.millis(), self.counter())
    }
}

/// Which write made a value: when and where. Never equal for two writes, so last-writer-wins has no ties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Version {
    /// When: compared first.
    pub hlc: Hlc,
    /// Where: breaks the tie.
    pub region: RegionId,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.hlc, self.region)
    }
}

/// One ordered stream of a group's entries to one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Lane {
    /// Entries somebody waits for.
    Sync,
    /// Entries nobody waits for: async and active-active buckets.
    Async,
}

impl Lane {
    /// Both lanes, the urgent one first.
    pub const ALL: [Lane; 2] = [Lane::Sync, Lane::Async];

    /// The lane's byte in frames and on disk.
    pub fn tag(self) -> u8 {
        match self {
            Lane::Sync => 1,
            Lane::Async => 2,
        }
    }

    /// The lane of a byte, if it is one.
    pub fn from_tag(tag: u8) -> Option<Lane> {
        Lane::ALL.into_iter().find(|lane| lane.tag() == tag)
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Lane::Sync => "sync",
            Lane::Async => "async",
        })
    }
}

/// The end of a shard's applied log, as its leader knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Head {
    /// The last applied position.
    pub lsn: Lsn,
    /// Every later entry of this region has a greater timestamp.
    pub closed: Hlc,
    /// How often this node came to lead the shard: what was concluded under another one may be wrong, for a leader that was deposed and
    /// doesn't know concludes from an old log.
    pub tenure: u64,
}

/// For one (bucket, shard): the highest LSN applied from each region that wrote to it.
/// Equal positions mean equal inputs, and so must mean equal digests (ORD-1, CON-4).
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Positions(pub BTreeMap<RegionId, Lsn>);

impl Positions {
    /// The position in `region`'s log: 0 when nothing came from there.
    pub fn of(&self, region: RegionId) -> Lsn {
        self.0.get(&region).copied().unwrap_or_default()
    }

    /// Raises the position of `region`; a lower one changes nothing.
    pub fn raise(&mut self, region: RegionId, lsn: Lsn) {
        let position = self.0.entry(region).or_default();
        *position = (*position).max(lsn);
    }

    /// Whether everything in `other` is also in `self`.
    pub fn covers(&self, other: &Positions) -> bool {
        other.0.iter().all(|(region, lsn)| self.of(*region) >= *lsn)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_hlc_only_ever_rises(start in 0u64..1 << 62, walls in prop::collection::vec(0u64..1 << 46, 1..50)) {
            let mut hlc = Hlc(start);
            for wall in walls {
                let next = hlc.next(wall);
                prop_assert!(next > hlc);
                prop_assert!(next >= Hlc::from_millis(wall));
                hlc = next;
            }
        }
    }

    #[test]
    fn the_last_timestamp_does_not_run_over_into_the_first() {
        assert_eq!(Hlc(u64::MAX).next(7), Hlc(u64::MAX));
    }

    #[test]
    fn a_full_counter_runs_into_the_next_millisecond() {
        let full = Hlc((7 << 16) | 0xffff);
        assert_eq!(full.next(7), Hlc::from_millis(8));
    }
}
