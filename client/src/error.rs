//! What a caller gets instead of an answer: what happened, what it means for the data, what to do.

use std::fmt;
use std::time::Duration;

use meridian_proto::tls::TlsError;
use meridian_types::{Effect, Refusal, RefusalKind};

/// Why a request has no answer. [`Error::kind`] says what to do, [`Error::effect`] what it may have done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What to do about it. Stable: programs may match on it.
    pub kind: RefusalKind,
    /// What a write may have done to the data. [`Effect::Unknown`] is never "no": read before you write again.
    pub effect: Effect,
    /// One sentence for a person.
    pub message: String,
    /// How often it was tried.
    pub attempts: u32,
    /// How long that took.
    pub elapsed: Duration,
}

impl Error {
    pub(crate) fn new(refusal: Refusal, attempts: u32, elapsed: Duration) -> Error {
        Error { kind: refusal.kind, effect: refusal.effect, message: refusal.message, attempts, elapsed }
    }

    /// Whether the same request may succeed later as it is. The SDK has retried until the deadline already.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.kind,
            RefusalKind::Retry
                | RefusalKind::Redirect
                | RefusalKind::Fenced
                | RefusalKind::Unavailable
                | RefusalKind::Stale
        )
    }

    /// What to do, in a sentence.
    pub fn advice(&self) -> &'static str {
        match self.kind {
            RefusalKind::Retry => "try again after a pause, or allow a longer deadline",
            RefusalKind::Redirect => "the topology is changing: try again",
            RefusalKind::Fenced => "the bucket's primary or policy is changing: try again",
            RefusalKind::Conflict => "look again at what is there, and decide anew",
            RefusalKind::Invalid => "the request can never succeed as it is: change it",
            RefusalKind::NotFound => "check the name, or create it",
            RefusalKind::Exists => "it exists already: use it, or choose another name",
            RefusalKind::Stale => "allow more staleness, wait, or read from the primary with `strong`",
            RefusalKind::Unavailable => "see `meridian status` for what is missing, then try again",
            RefusalKind::Corrupt => "stored data is damaged: see `meridian status` and the node's log",
            RefusalKind::Denied => "use a certificate of this cluster's CA that is allowed to do this",
            RefusalKind::Consent => {
                "it could cost acknowledged writes: look at what `meridian failover estimate` says, and agree to it"
            }
            RefusalKind::Internal => "this is a bug or an unexpected fault: report the message",
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        Error::new(refusal, 0, Duration::ZERO)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.message)?;
        match self.effect {
            Effect::None => {}
            Effect::Unknown => f.write_str(" (it may have taken effect)")?,
            Effect::Applied => f.write_str(" (it took effect, but not as durably as asked)")?,
        }
        if self.attempts > 1 {
            write!(f, " [{} attempts in {} ms]", self.attempts, self.elapsed.as_millis())?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Why no connection to the cluster could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The builder was given no endpoint.
    #[error("no endpoint was given: pass at least one `https://host:port` of the cluster")]
    NoEndpoint,
    /// The builder was given no certificate.
    #[error("no certificate was given: pass the CA, a client certificate and its key with `tls_files`")]
    NoTls,
    /// A certificate, key or address is wrong.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No endpoint answered.
    #[error("no endpoint of the cluster could be used: {}", tried.iter().map(|(at, why)| format!("{at}: {why}")).collect::<Vec<_>>().join("; "))]
    Unreachable {
        /// Each endpoint with what went wrong there.
        tried: Vec<(String, Error)>,
    },
}
