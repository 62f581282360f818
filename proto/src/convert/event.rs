//! The events of the metadata plane, as they travel.

use meridian_types::{EVENTS_MAX, Event, EventPage, EventQuery, Hlc};

use crate::v1;

/// What is asked for.
pub fn events_request_to_proto(query: &EventQuery) -> v1::EventsRequest {
    let limit = u32::try_from(query.limit.min(EVENTS_MAX)).unwrap_or_default();
    v1::EventsRequest { index_min: query.index_min, after: query.after.0, limit }
}

/// What was asked for.
pub fn events_request_from_proto(message: v1::EventsRequest) -> EventQuery {
    let limit = usize::try_from(message.limit).unwrap_or_default();
    let limit = if limit == 0 { EVENTS_MAX } else { limit.min(EVENTS_MAX) };
    EventQuery { index_min: message.index_min, after: Hlc(message.after), limit }
}

/// The answer.
pub fn events_to_proto(page: EventPage) -> v1::EventsResponse {
    let event = |event: Event| v1::Event {
        index: event.index,
        at: event.at.0,
        who: event.who,
        verb: event.verb,
        subject: event.subject,
        detail: event.detail,
    };
    v1::EventsResponse {
        events: page.events.into_iter().map(event).collect(),
        remembered_from: page.remembered_from.0,
        index: page.index,
    }
}

/// The answer that has travelled.
pub fn events_from_proto(message: v1::EventsResponse) -> EventPage {
    let event = |event: v1::Event| Event {
        index: event.index,
        at: Hlc(event.at),
        who: event.who,
        verb: event.verb,
        subject: event.subject,
        detail: event.detail,
    };
    EventPage {
        events: message.events.into_iter().map(event).collect(),
        remembered_from: Hlc(message.remembered_from),
        index: message.index,
    }
}
