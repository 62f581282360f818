//! The event ring: who changed what, when, in the order it was committed; the oldest fall out.

use std::collections::VecDeque;

use meridian_types::Hlc;
use serde::{Deserialize, Serialize};

/// How many events are kept: at a few changes a minute some hours of history, at most 1 MiB.
pub const EVENTS_MAX: usize = 1024;

/// The most bytes of `who` that are kept.
pub const WHO_BYTES_MAX: usize = 128;

/// The most bytes of `detail` that are kept.
const DETAIL_BYTES_MAX: usize = 512;

/// One change that took effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The metadata index of the change; never falling along the ring. One command may move many buckets on.
    pub index: u64,
    /// When, by the proposer's clock, made strictly rising.
    pub at: Hlc,
    /// Who asked.
    pub who: String,
    /// What was done ([`crate::Action::verb`], or `drain`, `promote`, `restore` for a step of an operation).
    pub verb: String,
    /// To what.
    pub subject: String,
    /// What changed, for a person.
    pub detail: String,
}

/// The last [`EVENTS_MAX`] events, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Events(VecDeque<Event>);

impl Events {
    pub(crate) fn push(&mut self, mut event: Event) {
        shorten(&mut event.who, WHO_BYTES_MAX);
        shorten(&mut event.detail, DETAIL_BYTES_MAX);
        if self.0.len() == EVENTS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(event);
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Event> {
        self.0.iter()
    }

    /// Whether the ring is within its bound and in order.
    pub(crate) fn is_sound(&self) -> bool {
        let rising = self.0.iter().zip(self.0.iter().skip(1)).all(|(a, b)| a.index <= b.index && a.at < b.at);
        self.0.len() <= EVENTS_MAX && rising
    }
}

/// Cuts text at a character boundary so that it has at most `bytes_max` bytes.
pub(crate) fn shorten(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        let cut = (0..=bytes_max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
        text.truncate(cut);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_drops_the_oldest_and_cuts_long_words() {
        let mut events = Events::default();
        for index in 1..=(EVENTS_MAX as u64 + 5) {
            events.push(Event {
                index,
                at: Hlc(index),
                who: "é".repeat(WHO_BYTES_MAX),
                verb: "create-bucket".to_owned(),
                subject: "b".to_owned(),
                detail: "x".repeat(5000),
            });
        }
        assert!(events.is_sound());
        assert_eq!(events.iter().count(), EVENTS_MAX);
        assert_eq!(events.iter().next().map(|e| e.index), Some(6));
        assert!(events.iter().all(|e| e.who.len() <= WHO_BYTES_MAX && e.detail.len() <= 512));
    }
}
