//! Answers to recent commands, so that a retry gets the first answer instead of a second effect (ONE-1).
//!
//! A node retries a command only until its deadline (seconds), so a bounded ring by log order is
//! enough: a retry that finds its answer gone would have to be [`ANSWERS_MAX`] commands late.

use std::collections::{BTreeMap, VecDeque};

use meridian_types::{OperationId, Refusal, RefusalKind};
use serde::{Deserialize, Serialize};

use crate::command::Action;
use crate::legacy::AnsweredV1;
use crate::reply::Answer;

/// How many answers are kept. Metadata commands are rare (a few per second at the very most) and their
/// retries end within a minute.
pub(crate) const ANSWERS_MAX: usize = 1024;

/// The answer to one command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Answered {
    operation: OperationId,
    verb: String,
    subject: String,
    answer: Answer,
}

/// The last [`ANSWERS_MAX`] answers, oldest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Operations {
    ring: VecDeque<Answered>,
    /// How many answers were ever dropped: the ring's front has this number, so numbers stay valid as it moves.
    dropped: u64,
    numbers: BTreeMap<OperationId, u64>,
}

impl Operations {
    /// The first answer to this operation, or a refusal when the id belongs to another command.
    pub(crate) fn answer(&self, operation: OperationId, action: &Action) -> Option<Answer> {
        let number = self.numbers.get(&operation)?;
        let first = self.ring.get(usize::try_from(number - self.dropped).ok()?)?;
        if first.verb == action.verb() && first.subject == action.subject() {
            return Some(first.answer.clone());
        }
        Some(Err(Refusal::new(
            RefusalKind::Invalid,
            format!(
                "operation {operation} was used for `{} {}` before: use a new operation id for `{} {}`",
                first.verb,
                first.subject,
                action.verb(),
                action.subject()
            ),
        )))
    }

    pub(crate) fn remember(&mut self, operation: OperationId, action: &Action, answer: &Answer) {
        if action.is_idempotent() {
            return;
        }
        self.push(Answered {
            operation,
            verb: action.verb().to_owned(),
            subject: action.subject(),
            answer: answer.clone(),
        });
    }

    fn push(&mut self, answered: Answered) {
        if self.ring.len() == ANSWERS_MAX
            && let Some(oldest) = self.ring.pop_front()
        {
            self.numbers.remove(&oldest.operation);
            self.dropped += 1;
        }
        self.numbers.insert(answered.operation, self.dropped + self.ring.len() as u64);
        self.ring.push_back(answered);
    }

    /// Whether the ring is within its bound and every id leads to its answer.
    pub(crate) fn is_sound(&self) -> bool {
        self.ring.len() <= ANSWERS_MAX
            && self.ring.len() == self.numbers.len()
            && self.ring.iter().zip(self.dropped..).all(|(a, n)| self.numbers.get(&a.operation) == Some(&n))
    }
}

/// Equal when they remember the same; how much was dropped before is not part of the state.
impl PartialEq for Operations {
    fn eq(&self, other: &Operations) -> bool {
        self.ring == other.ring
    }
}

impl Eq for Operations {}

impl FromIterator<AnsweredV1> for Operations {
    fn from_iter<T: IntoIterator<Item = AnsweredV1>>(remembered: T) -> Operations {
        let mut operations = Operations::default();
        for AnsweredV1 { operation, verb, subject, answer } in remembered {
            operations.push(Answered { operation, verb, subject, answer: answer.map(Into::into) });
        }
        operations
    }
}

impl Serialize for Operations {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.ring.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Operations {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut operations = Operations::default();
        for answered in VecDeque::<Answered>::deserialize(deserializer)? {
            operations.push(answered);
        }
        Ok(operations)
    }
}
