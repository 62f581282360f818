//! One key as a sequential object: what each operation must be told, given what the key holds.

use bytes::Bytes;
use meridian_types::request::Found;
use meridian_types::{Key, Outcome, Request, Version, Write};

use crate::check::show;
use crate::history::Operation;

/// The model.
#[derive(Clone, Debug)]
pub(super) struct Cell;

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Held {
    /// Nothing.
    Absent,
    /// A value. Its version is not known while only unanswered writes have made it.
    Value(Bytes, Option<Version>),
}

impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Held::Absent => f.write_str("nothing"),
            Held::Value(value, _) => f.write_str(&show::bytes(value)),
        }
    }
}

/// One operation on the key: what was asked, and what was told, if anything.
#[derive(Clone, Debug)]
pub(super) enum Act {
    /// A read that found this.
    Found(Option<Found>),
    /// All regions had this when one of them began to order.
    Begins(Held),
    /// A write, with its outcome if it is known.
    Wrote(Write, Option<Outcome>),
    /// An answer that doesn't belong to its request.
    Nonsense,
}

impl Act {
    /// The part of an operation that concerns `key`.
    pub(super) fn of(operation: &Operation, key: &Key) -> Act {
        match &operation.request {
            Request::Read { .. } => match operation.found().into_iter().find(|(it, _)| *it == key) {
                Some((_, found)) => Act::Found(found.cloned()),
                None => Act::Nonsense,
            },
            Request::Write { write, .. } => {
                let outcome = operation.answer().map(|answer| answer.outcome.clone());
                match write {
                    // To one of its keys, a multi-put is a put.
                    Write::MultiPut { items } => match items.iter().rfind(|(it, _)| it == key) {
                        Some((key, value)) => {
                            let put = Write::Put { key: key.clone(), value: value.clone(), ttl_ms: None };
                            Act::Wrote(put, outcome)
                        }
                        None => Act::Nonsense,
                    },
                    write => Act::Wrote(write.clone(), outcome),
                }
            }
        }
    }
}

impl porcupine_rs::Model for Cell {
    type State = Held;
    type Op = Act;
    type Metadata = ();

    fn init() -> Held {
        Held::Absent
    }

    fn step(held: &Held, act: &Act) -> (bool, Held) {
        let next = match act {
            Act::Begins(with) => Some(with.clone()),
            Act::Found(found) => read(held, found.as_ref()),
            Act::Wrote(write, None) => Some(unknown(held, write)),
            Act::Wrote(write, Some(outcome)) => told(held, write, outcome),
            Act::Nonsense => None,
        };
        next.map_or_else(|| (false, held.clone()), |next| (true, next))
    }
}

fn read(held: &Held, found: Option<&Found>) -> Option<Held> {
    match (held, found) {
        (Held::Absent, None) => Some(Held::Absent),
        (Held::Value(value, version), Some(found)) if *value == found.value => {
            let known = version.is_none_or(|version| version == found.version);
            known.then(|| Held::Value(value.clone(), Some(found.version)))
        }
        (Held::Absent, Some(_)) | (Held::Value(..), None | Some(_)) => None,
    }
}

/// A write that was answered.
fn told(held: &Held, write: &Write, outcome: &Outcome) -> Option<Held> {
    match (write, outcome) {
        (Write::Put { value, .. }, Outcome::Written { version }) => Some(set(value.as_bytes(), *version)),
        (Write::Delete { .. }, Outcome::Deleted { existed, .. }) => {
            (*existed == matches!(held, Held::Value(..))).then_some(Held::Absent)
        }
        (Write::Append { suffix, .. }, Outcome::Length { version, length }) => {
            let list = appended(held, suffix.as_bytes());
            (list.len() as u64 == *length).then(|| set(&list, *version))
        }
        (Write::Increment { by, .. }, Outcome::Count { version, value }) => {
            (count(held)?.checked_add(*by) == Some(*value)).then(|| set(&Bytes::from(value.to_string()), *version))
        }
        (Write::CompareAndSet { value, expected, .. }, Outcome::Written { version }) => {
            may_be(held, *expected).then(|| set(value.as_bytes(), *version))
        }
        (Write::PutIfAbsent { value, .. }, Outcome::Written { version }) => {
            may_be(held, None).then(|| set(value.as_bytes(), *version))
        }
        (Write::CompareAndSet { expected, .. }, Outcome::ConditionFailed { current }) => {
            if current == expected {
                None
            } else {
                pinned(held, *current)
            }
        }
        (Write::PutIfAbsent { .. }, Outcome::ConditionFailed { current: Some(current) }) => {
            pinned(held, Some(*current))
        }
        _ => None,
    }
}

/// A write that nobody answered, taking effect now. One whose condition fails changes nothing. Where that can't be
/// told, it holds: a condition that failed may as well be tried at the very end, where nobody looks.
fn unknown(held: &Held, write: &Write) -> Held {
    match write {
        Write::Put { value, .. } => Held::Value(value.as_bytes().clone(), None),
        Write::Delete { .. } => Held::Absent,
        Write::Append { suffix, .. } => Held::Value(appended(held, suffix.as_bytes()), None),
        Write::Increment { by, .. } => match count(held).and_then(|count| count.checked_add(*by)) {
            Some(sum) => Held::Value(Bytes::from(sum.to_string()), None),
            None => held.clone(),
        },
        Write::CompareAndSet { value, expected, .. } if may_be(held, *expected) => {
            Held::Value(value.as_bytes().clone(), None)
        }
        Write::PutIfAbsent { value, .. } if may_be(held, None) => Held::Value(value.as_bytes().clone(), None),
        Write::CompareAndSet { .. } | Write::PutIfAbsent { .. } | Write::MultiPut { .. } => held.clone(),
    }
}

fn set(value: &Bytes, version: Version) -> Held {
    Held::Value(value.clone(), Some(version))
}

fn appended(held: &Held, suffix: &Bytes) -> Bytes {
    match held {
        Held::Absent => suffix.clone(),
        Held::Value(value, _) => Bytes::from([value.as_ref(), suffix.as_ref()].concat()),
    }
}

fn count(held: &Held) -> Option<i64> {
    match held {
        Held::Absent => Some(0),
        Held::Value(text, _) => std::str::from_utf8(text).ok()?.parse().ok(),
    }
}

/// Whether the key may have that version now.
fn may_be(held: &Held, expected: Option<Version>) -> bool {
    match (held, expected) {
        (Held::Absent, None) | (Held::Value(_, None), Some(_)) => true,
        (Held::Value(_, Some(version)), Some(expected)) => *version == expected,
        (Held::Absent, Some(_)) | (Held::Value(..), None) => false,
    }
}

/// The key, known to have that version now; `None` if it can't.
fn pinned(held: &Held, current: Option<Version>) -> Option<Held> {
    match (held, current) {
        (Held::Absent, None) => Some(Held::Absent),
        (Held::Value(value, _), Some(current)) if may_be(held, Some(current)) => {
            Some(Held::Value(value.clone(), Some(current)))
        }
        _ => None,
    }
}
