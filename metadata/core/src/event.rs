//! The event ring: who changed what, when, in the order it was committed; the oldest fall out.

use std::collections::VecDeque;

pub use meridian_types::{EVENTS_MAX, Event};
use meridian_types::{EventPage, EventQuery, Hlc};
use serde::{Deserialize, Serialize};

use crate::ClusterState;

/// The most bytes of `who` that are kept.
pub const WHO_BYTES_MAX: usize = 128;

/// The most bytes of `detail` that are kept.
const DETAIL_BYTES_MAX: usize = 512;

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

/// The newest of the events that were asked for, oldest first.
pub fn page(state: &ClusterState, query: &EventQuery) -> EventPage {
    let asked = |event: &&Event| event.index >= query.index_min && event.at > query.after;
    // Neither ever falls along the ring: what was asked for is its end.
    let newest = state.events().rev().take_while(asked).take(query.limit);
    let mut events: Vec<_> = newest.cloned().collect();
    events.reverse();
    let is_full = state.events().count() == EVENTS_MAX;
    let oldest = state.events().next().filter(|_| is_full);
    EventPage { events, remembered_from: oldest.map_or(Hlc(0), |event| event.at), index: state.index() }
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

    fn event(index: u64) -> Event {
        Event {
            index,
            at: Hlc(index * 10),
            who: "é".repeat(WHO_BYTES_MAX),
            verb: "create-bucket".to_owned(),
            subject: "b".to_owned(),
            detail: "x".repeat(5000),
        }
    }

    #[test]
    fn the_ring_drops_the_oldest_and_cuts_long_words() {
        let mut events = Events::default();
        for index in 1..=(EVENTS_MAX as u64 + 5) {
            events.push(event(index));
        }
        assert!(events.is_sound());
        assert_eq!(events.iter().count(), EVENTS_MAX);
        assert_eq!(events.iter().next().map(|e| e.index), Some(6));
        assert!(events.iter().all(|e| e.who.len() <= WHO_BYTES_MAX && e.detail.len() <= 512));
    }
    #[test]
    fn who_asks_gets_the_newest_of_what_it_has_not_seen_and_learns_what_has_fallen_out() {
        let mut state = ClusterState { index: 9, ..ClusterState::default() };
        assert_eq!(page(&state, &EventQuery::default()), EventPage { index: 9, ..EventPage::default() });
        // One command may leave several events behind.
        for (index, at) in [(3, 30), (4, 40), (4, 41), (7, 70)] {
            state.events.push(Event { at: Hlc(at), ..event(index) });
        }
        let asked = |index_min, after, limit| {
            let page = page(&state, &EventQuery { index_min, after: Hlc(after), limit });
            assert_eq!((page.remembered_from, page.index), (Hlc(0), 9), "nothing has fallen out yet");
            page.events.into_iter().map(|event| event.at.0).collect::<Vec<_>>()
        };
        assert_eq!(asked(0, 0, EVENTS_MAX), [30, 40, 41, 70]);
        assert_eq!(asked(4, 0, EVENTS_MAX), [40, 41, 70], "an index is all of its events");
        assert_eq!(asked(0, 40, EVENTS_MAX), [41, 70], "going on within an index skips none");
        assert_eq!(asked(0, 0, 2), [41, 70]);
        assert_eq!(asked(0, 70, EVENTS_MAX), [0; 0]);
        for index in 10..(EVENTS_MAX as u64 + 10) {
            state.events.push(event(index));
        }
        let all = page(&state, &EventQuery::default());
        assert!(all.may_lack(Hlc(99)) && !all.may_lack(Hlc(100)), "all before index 10 have fallen out");
    }
}
