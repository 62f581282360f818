//! The typed "no" that travels from any room to the client: what happened, what it means for the
//! data, what to do.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What the caller can do about it. Stable: programs and exit codes rest on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalKind {
    /// Try again after a pause: a leader is being elected, a queue is full, a lease is being renewed.
    Retry,
    /// Not here: the topology moved on; refresh it and go where it says.
    Redirect,
    /// An older epoch was used; the bucket's primary or policy changed.
    Fenced,
    /// The condition of the write did not hold, or the key holds another type of value.
    Conflict,
    /// The request can never succeed as it is.
    Invalid,
    /// The named bucket, region or node does not exist.
    NotFound,
    /// It exists already.
    Exists,
    /// The asked freshness can't be met here now.
    Stale,
    /// The asked durability or authority can't be had now: too few regions, no lease, no quorum, no space.
    Unavailable,
    /// Stored data is damaged; it is not served.
    Corrupt,
    /// The certificate or grant does not allow it.
    Denied,
    /// A bug or an unexpected fault; the message helps to report it.
    Internal,
    /// It could cost acknowledged writes, and nobody has agreed to that.
    Consent,
}

/// What a refused write may have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// Nothing: it did not and will not take effect.
    #[default]
    None,
    /// Unknown: it may have taken effect, or may yet. A retry under the same request id is safe (ONE-1).
    Unknown,
    /// It took effect here, but not as durably as was asked.
    Applied,
}

/// A typed "no".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What the caller can do.
    pub kind: RefusalKind,
    /// What it may have done to the data.
    pub effect: Effect,
    /// One sentence for a person: what happened and what to do.
    pub message: String,
}

impl Refusal {
    /// A refusal that did nothing to the data.
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Refusal {
        Refusal { kind, effect: Effect::None, message: message.into() }
    }

    /// The same refusal for a request that may already have taken effect.
    #[must_use]
    pub fn with_effect(self, effect: Effect) -> Refusal {
        Refusal { effect, ..self }
    }
}

impl fmt::Display for RefusalKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            RefusalKind::Retry => "retry",
            RefusalKind::Redirect => "redirect",
            RefusalKind::Fenced => "fenced",
            RefusalKind::Conflict => "conflict",
            RefusalKind::Invalid => "invalid",
            RefusalKind::NotFound => "not-found",
            RefusalKind::Exists => "exists",
            RefusalKind::Stale => "stale",
            RefusalKind::Unavailable => "unavailable",
            RefusalKind::Corrupt => "corrupt",
            RefusalKind::Denied => "denied",
            RefusalKind::Internal => "internal",
            RefusalKind::Consent => "consent",
        })
    }
}
