//! What clients did and were told, in real-time order: the only evidence that checkers of client-visible promises take.
//!
//! Requests and answers are kept exactly as they were sent and received; a checker derives what it needs. A write
//! whose answer was lost is *unknown*: it may have happened at any later time, or never.

use std::sync::{Arc, Mutex, PoisonError};

use meridian_types::{Effect, Refusal, RegionId, Request, Response};

/// One request of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The client: it has one request under way at a time.
    pub client: u32,
    /// The region it asked.
    pub region: RegionId,
    /// What it asked.
    pub request: Request,
    /// When it asked, in microseconds since the run began, by the observer's clock.
    pub begun_us: u64,
    /// When the answer, or the client's patience, ended it.
    pub ended_us: u64,
    /// What it was told.
    pub told: Told,
}

/// What a client learnt of its request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// It was done, and this is the answer.
    Done(Response),
    /// A refusal: [`Effect::None`] is certain, [`Effect::Applied`] is certain, [`Effect::Unknown`] is neither.
    Refused(Refusal),
    /// No answer came before the run ended.
    Nothing,
}

impl Operation {
    /// Whether it may have taken effect without the client knowing.
    pub fn is_unknown(&self) -> bool {
        match &self.told {
            Told::Done(_) => false,
            Told::Refused(refusal) => refusal.effect == Effect::Unknown,
            Told::Nothing => true,
        }
    }
}

/// Every client's operations. Cheap to clone; clones record into one history.
#[derive(Clone, Debug, Default)]
pub struct History {
    operations: Arc<Mutex<Vec<Operation>>>,
}

impl History {
    /// Records an operation that has ended.
    pub fn record(&self, operation: Operation) {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).push(operation);
    }

    /// All of them, by the time they began.
    pub fn operations(&self) -> Vec<Operation> {
        let mut operations = self.operations.lock().unwrap_or_else(PoisonError::into_inner).clone();
        operations.sort_by_key(|operation| (operation.begun_us, operation.client));
        operations
    }
}
