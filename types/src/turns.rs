//! Which lane a bucket's entries travel in, while some still travel in another than its policy says.
//!
//! ```text
//!   epoch     1     2     3 ..
//!   policy  async  sync  sync          entries of epoch 1 travel in the async lane, its seal among them;
//!   lane    async  sync  sync          turns = [Turn { epoch: 2, from: async }]
//! ```
//! The lane follows from the *entry's* epoch, so none is passed over by both lanes and none travels in both
//! (ORD-1; docs/adr/2026-11-27-online-policy-change.md).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::id::ShardId;
use crate::position::{Epoch, Lane};

/// The most turns that are kept: a region that is away for longer has to come back before the next one.
pub const TURNS_MAX: usize = 8;

/// An epoch that began in another lane than its predecessor ended in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// The first epoch in the new lane.
    pub epoch: Epoch,
    /// The lane of the epochs before it, back to the turn before.
    pub from: Lane,
}

/// The turns that some region may not have followed yet; empty in nearly every bucket.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Turns {
    /// Oldest first; at most [`TURNS_MAX`].
    pub kept: Vec<Turn>,
    /// The shards in which every region of the bucket has applied the seal of the last of them.
    pub followed: BTreeSet<ShardId>,
}

impl Turns {
    /// Whether there are none: everything travels in the lane of the policy.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// The lane of an entry of `epoch`; `now` is the lane of the policy.
    pub fn lane(&self, epoch: Epoch, now: Lane) -> Lane {
        self.kept.iter().find(|turn| epoch < turn.epoch).map_or(now, |turn| turn.from)
    }

    /// Begins `epoch` in another lane than `from`.
    pub fn turn(&mut self, epoch: Epoch, from: Lane) {
        self.kept.push(Turn { epoch, from });
        self.followed.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lane_follows_from_the_epoch() {
        let mut turns = Turns::default();
        assert_eq!(turns.lane(Epoch(1), Lane::Async), Lane::Async);
        turns.turn(Epoch(3), Lane::Async);
        turns.turn(Epoch(5), Lane::Sync);
        let lanes: Vec<Lane> = (1..=6).map(|epoch| turns.lane(Epoch(epoch), Lane::Async)).collect();
        assert_eq!(lanes, [Lane::Async, Lane::Async, Lane::Sync, Lane::Sync, Lane::Async, Lane::Async]);
    }
}
