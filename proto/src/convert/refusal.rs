//! Refusals: as part of an answer, and as the details of a gRPC status.

use std::error::Error;

use meridian_types::{Effect, Refusal, RefusalKind};
use prost::Message;
use tonic::{Code, Status};

use crate::v1;
use crate::v1::refusal::{Effect as WireEffect, Kind as WireKind};

/// A refusal as it travels.
pub fn refusal_to_proto(refusal: Refusal) -> v1::Refusal {
    let kind = match refusal.kind {
        RefusalKind::Retry => WireKind::Retry,
        RefusalKind::Redirect => WireKind::Redirect,
        RefusalKind::Fenced => WireKind::Fenced,
        RefusalKind::Conflict => WireKind::Conflict,
        RefusalKind::Invalid => WireKind::Invalid,
        RefusalKind::NotFound => WireKind::NotFound,
        RefusalKind::Exists => WireKind::Exists,
        RefusalKind::Stale => WireKind::Stale,
        RefusalKind::Unavailable => WireKind::Unavailable,
        RefusalKind::Corrupt => WireKind::Corrupt,
        RefusalKind::Denied => WireKind::Denied,
        RefusalKind::Internal => WireKind::Internal,
        RefusalKind::Consent => WireKind::Consent,
    };
    let effect = match refusal.effect {
        Effect::None => WireEffect::None,
        Effect::Unknown => WireEffect::Unknown,
        Effect::Applied => WireEffect::Applied,
    };
    v1::Refusal { kind: kind.into(), effect: effect.into(), message: refusal.message }
}

/// A refusal that has travelled. A kind or effect that this version doesn't know is read as the most careful one it does.
pub fn refusal_from_proto(refusal: v1::Refusal) -> Refusal {
    let kind = match WireKind::try_from(refusal.kind) {
        Ok(WireKind::Retry) => RefusalKind::Retry,
        Ok(WireKind::Redirect) => RefusalKind::Redirect,
        Ok(WireKind::Fenced) => RefusalKind::Fenced,
        Ok(WireKind::Conflict) => RefusalKind::Conflict,
        Ok(WireKind::Invalid) => RefusalKind::Invalid,
        Ok(WireKind::NotFound) => RefusalKind::NotFound,
        Ok(WireKind::Exists) => RefusalKind::Exists,
        Ok(WireKind::Stale) => RefusalKind::Stale,
        Ok(WireKind::Unavailable) => RefusalKind::Unavailable,
        Ok(WireKind::Corrupt) => RefusalKind::Corrupt,
        Ok(WireKind::Denied) => RefusalKind::Denied,
        Ok(WireKind::Consent) => RefusalKind::Consent,
        Ok(WireKind::Internal) | Err(_) => RefusalKind::Internal,
    };
    let effect = match WireEffect::try_from(refusal.effect) {
        Ok(WireEffect::None) => Effect::None,
        Ok(WireEffect::Applied) => Effect::Applied,
        Ok(WireEffect::Unknown) | Err(_) => Effect::Unknown,
    };
    Refusal { kind, effect, message: refusal.message }
}

/// A refusal as a gRPC status: the nearest code and the message for tools that know only those, the refusal itself in the details.
pub fn status_of_refusal(refusal: Refusal) -> Status {
    let code = match refusal.kind {
        RefusalKind::Retry | RefusalKind::Unavailable => Code::Unavailable,
        RefusalKind::Redirect | RefusalKind::Stale | RefusalKind::Consent => Code::FailedPrecondition,
        RefusalKind::Fenced | RefusalKind::Conflict => Code::Aborted,
        RefusalKind::Invalid => Code::InvalidArgument,
        RefusalKind::NotFound => Code::NotFound,
        RefusalKind::Exists => Code::AlreadyExists,
        RefusalKind::Corrupt => Code::DataLoss,
        RefusalKind::Denied => Code::PermissionDenied,
        RefusalKind::Internal => Code::Internal,
    };
    let message = refusal.message.clone();
    let details = v1::StatusDetails { refusal: Some(refusal_to_proto(refusal)) };
    Status::with_details(code, message, details.encode_to_vec().into())
}

/// The refusal that a gRPC status carries, or, for a status that the transport made, the one that fits it.
/// A status of the transport leaves open what happened: its effect is [`Effect::Unknown`].
pub fn refusal_of_status(status: &Status) -> Refusal {
    if let Ok(v1::StatusDetails { refusal: Some(refusal) }) = v1::StatusDetails::decode(status.details()) {
        return refusal_from_proto(refusal);
    }
    let why = describe(status);
    if is_tls_fault(status, &why) {
        let why =
            format!("TLS refused the connection ({why}): both sides need valid certificates of the same cluster's CA");
        return Refusal::new(RefusalKind::Denied, why);
    }
    let kind = match status.code() {
        Code::InvalidArgument | Code::OutOfRange => RefusalKind::Invalid,
        Code::NotFound => RefusalKind::NotFound,
        Code::AlreadyExists => RefusalKind::Exists,
        Code::PermissionDenied | Code::Unauthenticated => RefusalKind::Denied,
        Code::DataLoss => RefusalKind::Corrupt,
        Code::Unavailable | Code::Cancelled | Code::Aborted | Code::ResourceExhausted | Code::Unknown | Code::Ok => {
            RefusalKind::Retry
        }
        // A connection that ended: HTTP/2 has no better word for a peer that says goodbye.
        Code::Internal if causes(status).next().is_some() => RefusalKind::Retry,
        Code::DeadlineExceeded => RefusalKind::Unavailable,
        Code::FailedPrecondition | Code::Internal => RefusalKind::Internal,
        Code::Unimplemented => RefusalKind::Invalid,
    };
    Refusal::new(kind, why).with_effect(Effect::Unknown)
}

/// Whether TLS failed: before anything of a request could be read. A fault that this side found is in the chain of
/// causes; of one that the other side found, HTTP/2 keeps only the text.
fn is_tls_fault(status: &Status, description: &str) -> bool {
    let found_here = causes(status).any(|cause| {
        let inner = cause.downcast_ref::<std::io::Error>().and_then(|io| io.get_ref());
        cause.is::<rustls::Error>() || inner.is_some_and(|inner| inner.is::<rustls::Error>())
    });
    found_here || description.contains("received fatal alert")
}

fn causes(status: &Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(status.source(), |cause: &&(dyn Error + 'static)| (*cause).source())
}

/// The status and what caused it: tonic's own message is "transport error", the reason is in the chain.
fn describe(status: &Status) -> String {
    let start = if status.message().is_empty() { status.code().to_string() } else { status.message().to_owned() };
    causes(status)
        .map(ToString::to_string)
        .fold(start, |text, cause| if text.contains(&cause) { text } else { format!("{text}: {cause}") })
}
