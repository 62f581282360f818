//! Regions that were added to a bucket after it was created, and the one that is being filled.
//!
//! ```text
//!   epoch        4                    5                                    6
//!   regions    A, B                 A, B   (C joins: filled by repair)     A, B, C
//!   to C       -            since = 5: entries of epoch 5 and later        ..
//! ```
//! Whether an entry travels to a region follows from the *entry's* epoch: from whether the region was there in that epoch, be it
//! there now or not. So whoever ships, whatever it has heard of, no region gets an epoch with a gap in it (ORD-1;
//! docs/adr/2026-11-28-region-sets.md).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::id::{RegionId, ShardId};
use crate::position::{Epoch, Hlc};

/// A region that gets what is written, is being filled, and counts for nothing yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joining {
    /// The region.
    pub region: RegionId,
    /// Since when.
    pub at: Hlc,
    /// The epoch under which the shards below were said to be filled: of another one they mean nothing.
    pub under: Epoch,
    /// The shards in which it has everything up to the beginning of that epoch, and follows.
    pub filled: BTreeSet<ShardId>,
    /// In an active-active bucket: how long writes may be held once it is filled, in milliseconds. Stored and sent beside these
    /// bytes, for which older releases have no place.
    #[serde(skip)]
    pub pause_ms_max: u64,
}

/// The most stays that are remembered: entries of an epoch so many changes ago are long shipped, or repaired.
pub const STAYS_MAX: usize = 64;

/// A region that was there and was removed, or was joining and was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stay {
    /// The region.
    pub region: RegionId,
    /// The first epoch whose entries travel to it; 0: it was there from the beginning.
    pub since: Epoch,
    /// The first epoch whose entries do not.
    pub until: Epoch,
}

/// Empty in nearly every bucket.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Joins {
    /// The region that is joining now; one at a time.
    pub now: Option<Joining>,
    /// Of each region that was added later, the one that is joining among them: the first epoch whose entries travel to it.
    pub since: BTreeMap<RegionId, Epoch>,
    /// Regions that were there, oldest first; at most [`STAYS_MAX`].
    pub was: Vec<Stay>,
}

impl Joins {
    /// Whether every region was there from the beginning, none is joining, and none was removed.
    pub fn is_empty(&self) -> bool {
        self.since.is_empty() && self.now.is_none() && self.was.is_empty()
    }

    /// The region that is joining.
    pub fn joining(&self) -> Option<RegionId> {
        self.now.as_ref().map(|joining| joining.region)
    }

    /// The first epoch whose entries travel to a region.
    pub fn since(&self, region: RegionId) -> Epoch {
        self.since.get(&region).copied().unwrap_or_default()
    }

    /// Whether a region was there in an epoch, and was removed since.
    pub fn was_there(&self, region: RegionId, epoch: Epoch) -> bool {
        self.was.iter().any(|stay| stay.region == region && (stay.since..stay.until).contains(&epoch))
    }

    /// Ends the stay of a region with the epoch before `until`.
    pub fn leave(&mut self, region: RegionId, until: Epoch) {
        self.now.take_if(|joining| joining.region == region);
        let since = self.since.remove(&region).unwrap_or_default();
        // Whoever joined in this very epoch was never there.
        if since < until {
            self.was.push(Stay { region, since, until });
        }
        if self.was.len() > STAYS_MAX {
            self.was.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_that_was_removed_was_there_in_the_epochs_in_which_it_was() {
        let mut joins = Joins::default();
        joins.leave(RegionId(3), Epoch(2));
        joins.since.insert(RegionId(3), Epoch(4));
        joins.leave(RegionId(3), Epoch(6));
        let there: Vec<u64> = (1..8).filter(|epoch| joins.was_there(RegionId(3), Epoch(*epoch))).collect();
        assert_eq!((there, joins.was_there(RegionId(2), Epoch(1))), (vec![1, 4, 5], false));
        (10..200).for_each(|epoch| joins.leave(RegionId(3), Epoch(epoch)));
        assert_eq!(joins.was.len(), STAYS_MAX);
    }

    #[test]
    fn a_region_that_was_there_from_the_beginning_gets_every_epoch() {
        let joins = Joins { since: [(RegionId(3), Epoch(5))].into(), ..Joins::default() };
        assert_eq!((joins.since(RegionId(1)), joins.since(RegionId(3))), (Epoch(0), Epoch(5)));
        assert!(!joins.is_empty() && Joins::default().is_empty());
    }
}
