//! Answers.

use meridian_types::{
    Durability, Effect, Epoch, Freshness, Hlc, Key, Outcome, Refusal, RefusalKind, Response, SessionToken, Version,
    request::Found,
};

use super::request::session_to_proto;
use super::{refusal_from_proto, refusal_to_proto, region, version_from_proto, version_to_proto};
use crate::v1;
use crate::v1::response::Outcome as Wire;

/// An answer as it travels.
pub fn response_to_proto(tag: u64, answer: Result<Response, Refusal>) -> v1::Response {
    match answer {
        Err(refusal) => {
            v1::Response { tag, outcome: Some(Wire::Refusal(refusal_to_proto(refusal))), ..v1::Response::default() }
        }
        Ok(response) => {
            let durability = response.durability.unwrap_or_default();
            v1::Response {
                tag,
                region: u32::from(response.region.0),
                epoch: response.epoch.0,
                hlc: response.freshness.hlc.0,
                staleness_ms: response.freshness.staleness_ms,
                durable_regions: u32::from(durability.regions),
                durable_nodes: u32::from(durability.nodes),
                session: session_to_proto(&response.session),
                outcome: Some(outcome_to_proto(response.outcome)),
            }
        }
    }
}

/// An answer that has travelled: what the node said, refusals included.
///
/// # Errors
/// The node's refusal; or [`RefusalKind::Internal`] with [`Effect::Unknown`] when the answer makes no sense.
pub fn response_from_proto(message: v1::Response) -> Result<Response, Refusal> {
    let outcome = match message.outcome {
        Some(Wire::Refusal(refusal)) => return Err(refusal_from_proto(refusal)),
        Some(outcome) => outcome_from_proto(outcome).map_err(|why| senseless(&why.message))?,
        None => return Err(senseless("it has no outcome this version knows")),
    };
    let count = |number: u32| u16::try_from(number).map_err(|_| senseless("a count is out of range"));
    let durability = match (count(message.durable_regions)?, count(message.durable_nodes)?) {
        (0, 0) => None,
        (regions, nodes) => Some(Durability { regions, nodes }),
    };
    Ok(Response {
        region: region(message.region).map_err(|why| senseless(&why.message))?,
        epoch: Epoch(message.epoch),
        outcome,
        freshness: Freshness { hlc: Hlc(message.hlc), staleness_ms: message.staleness_ms },
        durability,
        session: SessionToken::decode(&message.session).map_err(|why| senseless(&why.message))?,
    })
}

fn senseless(why: &str) -> Refusal {
    Refusal::new(
        RefusalKind::Internal,
        format!("the node's answer cannot be read ({why}): update the older of client and node"),
    )
    .with_effect(Effect::Unknown)
}

fn outcome_to_proto(outcome: Outcome) -> Wire {
    let wire = |version: Version| Some(version_to_proto(version));
    match outcome {
        Outcome::Value(found) => Wire::Value(maybe_to_proto(found)),
        Outcome::Values(values) => {
            Wire::Values(v1::Values { values: values.into_iter().map(maybe_to_proto).collect() })
        }
        Outcome::Page { items, more } => Wire::Page(v1::Page {
            items: items
                .into_iter()
                .map(|(key, found)| v1::PageItem { key: key.into(), found: Some(found_to_proto(found)) })
                .collect(),
            more,
        }),
        Outcome::Written { version } => Wire::Written(v1::Written { version: wire(version) }),
        Outcome::Deleted { version, existed } => Wire::Deleted(v1::Deleted { version: wire(version), existed }),
        Outcome::Count { version, value } => Wire::Count(v1::Count { version: wire(version), value }),
        Outcome::Length { version, length } => Wire::Length(v1::Length { version: wire(version), length }),
        Outcome::ConditionFailed { current } => {
            Wire::ConditionFailed(v1::ConditionFailed { current: current.map(version_to_proto) })
        }
    }
}

fn outcome_from_proto(outcome: Wire) -> Result<Outcome, Refusal> {
    Ok(match outcome {
        Wire::Refusal(refusal) => return Err(refusal_from_proto(refusal)),
        Wire::Value(value) => Outcome::Value(maybe_from_proto(value)?),
        Wire::Values(values) => {
            Outcome::Values(values.values.into_iter().map(maybe_from_proto).collect::<Result<_, _>>()?)
        }
        Wire::Page(page) => Outcome::Page {
            items: page
                .items
                .into_iter()
                .map(|item| {
                    let found = item.found.ok_or_else(|| missing("the value of a key"))?;
                    Ok((Key::new(item.key)?, found_from_proto(found)?))
                })
                .collect::<Result<_, Refusal>>()?,
            more: page.more,
        },
        Wire::Written(written) => Outcome::Written { version: required(written.version)? },
        Wire::Deleted(deleted) => Outcome::Deleted { version: required(deleted.version)?, existed: deleted.existed },
        Wire::Count(count) => Outcome::Count { version: required(count.version)?, value: count.value },
        Wire::Length(length) => Outcome::Length { version: required(length.version)?, length: length.length },
        Wire::ConditionFailed(failed) => {
            Outcome::ConditionFailed { current: failed.current.map(version_from_proto).transpose()? }
        }
    })
}

fn missing(what: &str) -> Refusal {
    Refusal::new(RefusalKind::Internal, format!("{what} is missing"))
}

fn required(version: Option<v1::Version>) -> Result<Version, Refusal> {
    version_from_proto(version.ok_or_else(|| missing("a version"))?)
}

fn maybe_to_proto(found: Option<Found>) -> v1::MaybeFound {
    v1::MaybeFound { found: found.map(found_to_proto) }
}

fn maybe_from_proto(value: v1::MaybeFound) -> Result<Option<Found>, Refusal> {
    value.found.map(found_from_proto).transpose()
}

fn found_to_proto(found: Found) -> v1::Found {
    v1::Found { value: found.value, version: Some(version_to_proto(found.version)), expires_at_ms: found.expires_at_ms }
}

fn found_from_proto(found: v1::Found) -> Result<Found, Refusal> {
    Ok(Found { version: required(found.version)?, value: found.value, expires_at_ms: found.expires_at_ms })
}
