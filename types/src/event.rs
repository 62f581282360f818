//! The events of the metadata plane: who changed what, when, and what came of it.
//!
//! Deliberately not here: how they come about (`metadata/core`).

use serde::{Deserialize, Serialize};

use crate::Hlc;

/// How many events are kept: at a few changes a minute some hours of history, at most 1 MiB.
pub const EVENTS_MAX: usize = 1024;

/// One change that took effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The metadata index of the change; never falling along the ring. One command may move many buckets on.
    pub index: u64,
    /// When, by the proposer's clock, made strictly rising: no two events share it.
    pub at: Hlc,
    /// Who asked: a client, a node, or a part of the metadata plane.
    pub who: String,
    /// What was done: the word of a command, or `drain`, `promote`, `restore` for a step of an operation.
    pub verb: String,
    /// To what.
    pub subject: String,
    /// What changed, for a person.
    pub detail: String,
}

/// Which events are asked for. The default asks for all that are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventQuery {
    /// Of this metadata index, or later.
    pub index_min: u64,
    /// Stamped later than this: where whoever asks again goes on.
    pub after: Hlc,
    /// The newest so many; more than [`EVENTS_MAX`] there never are.
    pub limit: usize,
}

impl Default for EventQuery {
    fn default() -> EventQuery {
        EventQuery { index_min: 0, after: Hlc(0), limit: EVENTS_MAX }
    }
}

/// What a node remembers of what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct EventPage {
    /// Oldest first.
    pub events: Vec<Event>,
    /// The stamp of the oldest event that is remembered at all, once older ones have fallen out of the ring; zero before that.
    pub remembered_from: Hlc,
    /// The metadata index up to which the answering node knows.
    pub index: u64,
}

impl EventPage {
    /// Whether events after `cursor`, the last one that was seen, may have fallen out of the ring unseen.
    pub fn may_lack(&self, cursor: Hlc) -> bool {
        self.remembered_from > cursor
    }
}
