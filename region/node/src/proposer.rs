//! Gives entries their timestamp and their place: under one lock per shard, so that stamps rise along the log.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use meridian_consensus::ProposeError;
use meridian_failpoint::failpoint;
use meridian_types::entry::stamp;
use meridian_types::{Effect, Hlc, Refusal, RefusalKind};

use crate::board::Board;
use crate::clock::Clock;
use crate::group::{Proposal, ShardGroup};

/// 2024-01-01: this software is younger than that, so a clock before it was never set.
const WALL_MS_MIN: u64 = 1_704_067_200_000;

/// 2150-01-01: a timestamp this far ahead would make every later one wait for that year.
const WALL_MS_MAX: u64 = 5_680_281_600_000;

/// Proposes to one shard's group.
pub(crate) struct Proposer {
    group: Arc<dyn ShardGroup>,
    board: Arc<Board>,
    clock: Arc<dyn Clock>,
    /// The last timestamp given out.
    last: Mutex<Hlc>,
}

impl Proposer {
    pub(crate) fn new(group: Arc<dyn ShardGroup>, board: Arc<Board>, clock: Arc<dyn Clock>) -> Proposer {
        Proposer { group, board, clock, last: Mutex::new(Hlc(0)) }
    }

    /// Stamps an encoded entry and proposes it. A timestamp is above every one given out before and above everything
    /// applied, other regions' entries included: a write comes after whatever its client can have read.
    ///
    /// # Errors
    /// A refusal means that it did not and will not take effect.
    pub(crate) fn propose(&self, entry: Bytes) -> Result<Proposal, Refusal> {
        self.propose_stamped(entry).map(|(proposal, _)| proposal)
    }

    /// As [`Proposer::propose`], and tells the timestamp.
    pub(crate) fn propose_stamped(&self, entry: Bytes) -> Result<(Proposal, Hlc), Refusal> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let wall_ms = self.clock.wall_ms();
        if !(WALL_MS_MIN..WALL_MS_MAX).contains(&wall_ms) {
            return Err(Refusal::new(
                RefusalKind::Unavailable,
                format!(
                    "the clock of this node can't be right (it reads {wall_ms} ms since 1970): set it, and restart the node"
                ),
            ));
        }
        let hlc = (*last).max(self.board.hlc()).next(wall_ms);
        failpoint("entry.propose.before");
        let proposal = self.group.propose(stamp(entry, hlc)).map_err(|why| refusal(&why))?;
        failpoint("entry.propose.after");
        *last = hlc;
        Ok((proposal, hlc))
    }
}

/// What the failure of a proposal means to the client.
pub(crate) fn refusal(why: &ProposeError) -> Refusal {
    let kind = match why {
        ProposeError::NotLeader { .. } | ProposeError::Full | ProposeError::Unknown => RefusalKind::Retry,
        ProposeError::DiskFull | ProposeError::Stopped => RefusalKind::Unavailable,
        ProposeError::TooLarge { .. } => RefusalKind::Invalid,
    };
    let effect = if *why == ProposeError::Unknown { Effect::Unknown } else { Effect::None };
    let advice = match why {
        ProposeError::DiskFull => ": free space on it or enlarge it; reads go on",
        ProposeError::Stopped => ": ask another node",
        ProposeError::NotLeader { .. } | ProposeError::Unknown => ": try again after a pause",
        ProposeError::Full | ProposeError::TooLarge { .. } => "",
    };
    Refusal::new(kind, format!("{why}{advice}")).with_effect(effect)
}
