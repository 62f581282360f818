//! Operations, values and times as a person reads them in a violation.

use std::fmt;

use bytes::Bytes;
use meridian_types::request::Found;
use meridian_types::{Key, Outcome, Read, ReadLevel, Refusal, Request, Write};

use crate::history::{Operation, Told};

/// The most bytes of a key or value that are shown.
const BYTES_SHOWN_MAX: usize = 48;

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (begun, ended) = (seconds(self.begun_us), seconds(self.ended_us));
        write!(f, "[{begun}..{ended}] client {} asked region {}: ", self.client, self.region)?;
        match &self.request {
            Request::Read { bucket, read, level, .. } => write!(f, "{bucket}: {} ({})", reading(read), named(level))?,
            Request::Write { bucket, write, id, .. } => write!(f, "{bucket}: {} (#{})", writing(write), id.sequence)?,
        }
        match &self.told {
            Told::Done(answer) => {
                write!(f, " -> {}; region {}, epoch {}", outcome(&answer.outcome), answer.region, answer.epoch)?;
                if let Some(staleness_ms) = answer.freshness.staleness_ms {
                    write!(f, ", at most {staleness_ms} ms stale")?;
                }
                match answer.durability {
                    Some(durability) => write!(f, ", in {} regions", durability.regions),
                    None => Ok(()),
                }
            }
            Told::Refused(Refusal { kind, effect, message }) => {
                write!(f, " -> refused ({kind}, {effect:?}): {message}")
            }
            Told::Nothing => f.write_str(" -> nothing"),
        }
    }
}

/// A time as seconds.
pub(super) fn seconds(us: u64) -> String {
    format!("{}.{:06}s", us / 1_000_000, us % 1_000_000)
}

/// A key as text.
pub(super) fn key(key: &Key) -> String {
    bytes(key.as_bytes())
}

/// Bytes as text, shortened: their end is kept, which for lists is what came last.
pub(super) fn bytes(bytes: &[u8]) -> String {
    match bytes.len().checked_sub(BYTES_SHOWN_MAX) {
        None | Some(0) => bytes.escape_ascii().to_string(),
        Some(hidden) => format!("<{hidden} bytes>…{}", bytes[hidden..].escape_ascii()),
    }
}

/// What was found, with its version.
pub(super) fn found(found: Option<&Found>) -> String {
    found.map_or_else(|| "absent".to_owned(), |it| format!("{} (version {})", bytes(&it.value), it.version))
}

fn reading(read: &Read) -> String {
    match read {
        Read::Get { key: it } => format!("get {}", key(it)),
        Read::MultiGet { keys } => format!("get {}", keys.iter().map(key).collect::<Vec<_>>().join(" ")),
        Read::Scan { prefix, .. } => format!("scan {}", bytes(prefix)),
    }
}

fn named(level: &ReadLevel) -> String {
    match level {
        ReadLevel::Strong => "strong".to_owned(),
        ReadLevel::Session => "session".to_owned(),
        ReadLevel::Bounded { staleness_ms_max } => format!("bounded to {staleness_ms_max} ms"),
        ReadLevel::Eventual => "eventual".to_owned(),
    }
}

fn writing(write: &Write) -> String {
    let set = |it: &Key, value: &Bytes| format!("{} = {}", key(it), bytes(value));
    match write {
        Write::Put { key, value, .. } => format!("put {}", set(key, value.as_bytes())),
        Write::Delete { key: it } => format!("delete {}", key(it)),
        Write::Append { key: it, suffix } => format!("append {} += {}", key(it), bytes(suffix.as_bytes())),
        Write::Increment { key: it, by } => format!("increment {} by {by}", key(it)),
        Write::CompareAndSet { key, expected, value, .. } => {
            let expected = expected.map_or_else(|| "absent".to_owned(), |version| version.to_string());
            format!("compare-and-set {}, expecting {expected}", set(key, value.as_bytes()))
        }
        Write::PutIfAbsent { key, value, .. } => format!("put-if-absent {}", set(key, value.as_bytes())),
        Write::MultiPut { items } => {
            let items: Vec<String> = items.iter().map(|(key, value)| set(key, value.as_bytes())).collect();
            format!("put {}", items.join(", "))
        }
    }
}

fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Value(it) => found(it.as_ref()),
        Outcome::Values(all) => all.iter().map(|it| found(it.as_ref())).collect::<Vec<_>>().join(", "),
        Outcome::Page { items, more } => format!("{} items{}", items.len(), if *more { " and more" } else { "" }),
        Outcome::Written { version } => format!("written, version {version}"),
        Outcome::Deleted { version, existed } => {
            format!("deleted{}, version {version}", if *existed { "" } else { " nothing" })
        }
        Outcome::Count { version, value } => format!("{value}, version {version}"),
        Outcome::Length { version, length } => format!("{length} bytes long, version {version}"),
        Outcome::ConditionFailed { current: None } => "condition failed: absent".to_owned(),
        Outcome::ConditionFailed { current: Some(version) } => format!("condition failed: version {version}"),
    }
}
