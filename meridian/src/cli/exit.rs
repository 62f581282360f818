//! How a command ends: stable exit codes, and errors that say what happened, what it means for the data,
//! and what to do (design 9).

use std::fmt;

use meridian_client::{ConnectError, TlsError};
use meridian_types::{Effect, PolicyError, RefusalKind};

/// Exit codes. Programs rest on the numbers: they never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// It was done.
    Done = 0,
    /// It failed.
    Failed = 1,
    /// Not yet: the cluster is not ready, too stale, or busy; try again.
    NotReady = 2,
    /// It would cost data and needs consent.
    ConsentNeeded = 3,
    /// Another region is the primary now.
    Fenced = 4,
    /// The request can't succeed as it is.
    Invalid = 5,
    /// Too few regions or nodes answer.
    NoQuorum = 6,
    /// It was started, and undone.
    AbortedAndRestored = 7,
}

/// An error of the command line itself, with the code it ends with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    code: Code,
    message: String,
}

impl Failure {
    /// What the program ends with.
    pub fn code(&self) -> Code {
        self.code
    }

    /// It failed.
    pub fn failed(message: impl Into<String>) -> Failure {
        Failure { code: Code::Failed, message: message.into() }
    }

    /// It can't be done yet.
    pub fn not_ready(message: impl Into<String>) -> Failure {
        Failure { code: Code::NotReady, message: message.into() }
    }

    /// It would cost data.
    pub fn consent(message: impl Into<String>) -> Failure {
        Failure { code: Code::ConsentNeeded, message: message.into() }
    }

    /// It was started, and undone.
    pub fn restored(message: impl Into<String>) -> Failure {
        Failure { code: Code::AbortedAndRestored, message: message.into() }
    }

    /// It was asked wrongly.
    pub fn invalid(message: impl Into<String>) -> Failure {
        Failure { code: Code::Invalid, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// The code that an error ends the program with.
pub(super) fn code(error: &anyhow::Error) -> Code {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return failure.code;
    }
    if let Some(refused) = error.downcast_ref::<meridian_client::Error>() {
        return code_of(refused.kind);
    }
    if let Some(connect) = error.downcast_ref::<ConnectError>() {
        return if matches!(connect, ConnectError::Unreachable { .. }) { Code::NotReady } else { Code::Invalid };
    }
    if error.is::<PolicyError>()
        || error.is::<crate::config::ConfigError>()
        || error.is::<crate::cert::CertError>()
        || error.is::<TlsError>()
    {
        return Code::Invalid;
    }
    Code::Failed
}

fn code_of(kind: RefusalKind) -> Code {
    match kind {
        RefusalKind::Retry | RefusalKind::Redirect | RefusalKind::Stale => Code::NotReady,
        RefusalKind::Fenced => Code::Fenced,
        RefusalKind::Invalid | RefusalKind::NotFound | RefusalKind::Exists => Code::Invalid,
        RefusalKind::Unavailable => Code::NoQuorum,
        RefusalKind::Consent => Code::ConsentNeeded,
        RefusalKind::Conflict | RefusalKind::Corrupt | RefusalKind::Denied | RefusalKind::Internal => Code::Failed,
    }
}

/// The error as people read it.
pub(super) fn explain(error: &anyhow::Error) -> String {
    let mut text = format!("error: {error:#}");
    if let Some(refused) = error.downcast_ref::<meridian_client::Error>() {
        text.push_str(&format!("\n data: {}\n   do: {}", meaning(refused.effect), refused.advice()));
    }
    text
}

fn meaning(effect: Effect) -> &'static str {
    match effect {
        Effect::None => "nothing was changed",
        Effect::Unknown => "unknown: the write may have taken effect, or may yet; read before you write again",
        Effect::Applied => "the write took effect, but is not (yet) as durable as was asked",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_a_contract() {
        let all = [
            (Code::Done, 0),
            (Code::Failed, 1),
            (Code::NotReady, 2),
            (Code::ConsentNeeded, 3),
            (Code::Fenced, 4),
            (Code::Invalid, 5),
            (Code::NoQuorum, 6),
            (Code::AbortedAndRestored, 7),
        ];
        for (code, number) in all {
            assert_eq!(code as u8, number);
        }
        assert_eq!(code_of(RefusalKind::Unavailable), Code::NoQuorum);
        assert_eq!(code_of(RefusalKind::Fenced), Code::Fenced);
        assert_eq!(code(&Failure::not_ready("x").into()), Code::NotReady);
        assert_eq!(code(&anyhow::Error::from(PolicyError::UnknownPolicy("x".into())).context("y")), Code::Invalid);
        assert_eq!(code(&anyhow::anyhow!("anything")), Code::Failed);
    }
}
