//! Answers: what was asked for, and how far it can be relied on.

use std::time::Duration;

use bytes::Bytes;
use meridian_types::request::Found;
use meridian_types::{Durability, Epoch, Hlc, Outcome, Refusal, RefusalKind, RegionName, Version};

/// What every answer tells about itself (design 2): never guessed by the SDK, always said by the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// The region that answered.
    pub region: RegionName,
    /// The bucket's epoch under which it answered.
    pub epoch: Epoch,
    /// The greatest timestamp the answering replica had applied.
    pub hlc: Hlc,
    /// For reads: how far the answer may be behind the primary; zero for strong ones, `None` when unknown.
    pub staleness: Option<Duration>,
    /// For writes: how many regions and nodes had it on disk when it was answered.
    pub durability: Option<Durability>,
    /// How often the request was tried; 1 when all went well.
    pub attempts: u32,
}

impl Meta {
    /// How many regions had the write on disk when it was answered; 0 for reads.
    pub fn regions_durable(&self) -> u16 {
        self.durability.unwrap_or_default().regions
    }
}

/// The answer to a get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Got {
    /// The value with its version and expiry; `None` when the key is absent.
    pub found: Option<Found>,
    /// How far it can be relied on.
    pub meta: Meta,
}

impl Got {
    /// The value; `None` when the key is absent.
    pub fn value(&self) -> Option<&Bytes> {
        self.found.as_ref().map(|found| &found.value)
    }

    /// Gives the value away.
    pub fn into_value(self) -> Option<Bytes> {
        self.found.map(|found| found.value)
    }

    /// The version, as [`compare_and_set`](crate::Bucket::compare_and_set) expects it.
    pub fn version(&self) -> Option<Version> {
        self.found.as_ref().map(|found| found.version)
    }
}

/// The answer to a multi-get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GotMany {
    /// In the order asked.
    pub found: Vec<Option<Found>>,
    /// How far they can be relied on.
    pub meta: Meta,
}

/// A key under a scanned prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The key.
    pub key: Bytes,
    /// Its value (empty when only keys were asked for), version and expiry.
    pub found: Found,
}

/// One page of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// In byte order of the keys.
    pub items: Vec<Item>,
    /// Whether there is more behind the last key.
    pub more: bool,
    /// How far the page can be relied on.
    pub meta: Meta,
}

/// A write that took effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its version.
    pub version: Version,
    /// How durable it is.
    pub meta: Meta,
}

/// A delete that took effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// Its version.
    pub version: Version,
    /// Whether there was something to delete.
    pub existed: bool,
    /// How durable it is.
    pub meta: Meta,
}

/// An increment that took effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// The counter afterwards.
    pub value: i64,
    /// Its version.
    pub version: Version,
    /// How durable it is.
    pub meta: Meta,
}

/// An append that took effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Length {
    /// Bytes of the value afterwards.
    pub bytes: u64,
    /// Its version.
    pub version: Version,
    /// How durable it is.
    pub meta: Meta,
}

/// The answer to a compare-and-set or put-if-absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conditional {
    /// Whether the condition held.
    pub condition: Condition,
    /// How durable it is, where it was written.
    pub meta: Meta,
}

/// Whether a condition held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It did, and the write took effect with this version.
    Held {
        /// Its version.
        version: Version,
    },
    /// It didn't, and nothing was changed.
    Failed {
        /// The version found instead; `None` when the key is absent.
        current: Option<Version>,
    },
}

impl Conditional {
    /// Whether the condition held and the write took effect.
    pub fn held(&self) -> bool {
        matches!(self.condition, Condition::Held { .. })
    }
}

/// What a call makes of the node's outcome. An outcome of another operation is a fault of the node.
pub(crate) trait FromOutcome: Sized {
    fn from_outcome(outcome: Outcome, meta: Meta) -> Result<Self, Refusal>;
}

fn misfit(asked: &str, outcome: &Outcome) -> Refusal {
    let got = match outcome {
        Outcome::Value(_) => "a value",
        Outcome::Values(_) => "values",
        Outcome::Page { .. } => "a page",
        Outcome::Written { .. } => "a write",
        Outcome::Deleted { .. } => "a delete",
        Outcome::Count { .. } => "a count",
        Outcome::Length { .. } => "a length",
        Outcome::ConditionFailed { .. } => "a failed condition",
    };
    Refusal::new(
        RefusalKind::Internal,
        format!("the node answered {asked} with {got}: update the older of client and node"),
    )
}

impl FromOutcome for Got {
    fn from_outcome(outcome: Outcome, meta: Meta) -> Result<Got, Refusal> {
        match outcome {
            Outcome::Value(found) => Ok(Got { found, meta }),
            other => Err(misfit("a get", &other)),
        }
    }
}

impl FromOutcome for GotMany {
    fn from_outcome(outcome: Outcome, meta: Meta) -> Result<GotMany, Refusal> {
        match outcome {
            Outcome::Values(found) => Ok(GotMany { found, meta }),
            other => Err(misfit("a multi-get", &other)),
        }
    }
}

impl FromOutcome for Page {
    fn from_outcome(outcome: Outcome, meta: Meta) -> Result<Page, Refusal> {
        match outcome {
            Outcome::Page { items, more } => {
                let items = items.into_iter().map(|(key, found)| Item { key: key.into(), found }).collect();
                Ok(Page { items, more, meta })
            }
            other => Err(misfit("a scan", &other)),
        }
    }
}

impl FromOutcome for Written {
    fn from_outcome(outcome: Outcome, meta: Meta) -> Result<Written, Refusal> {
        match outcome {
            Outcome::Written { version } => Ok(Written { version, meta }),
            other => Err(misfit("a put", &other)),
        }
    }
}

impl FromOutcome for Deleted {
    fn from_outcome(outcome: Outcome, meta: Meta) -> Result<Deleted, Refusal> {
        match outcome {
            Outcome::Deleted { version, existed } => Ok(Deleted { version, existed, meta }),
            other => Err(misfit("a delete", &other)),
        }
    }
}

impl FromOutcome for Count {
    fn from_outcome(outcome: Outcome, meta: Meta) -> Result<Count, Refusal> {
        match outcome {
            Outcome::Count { version, value } => Ok(Count { value, version, meta }),
            other => Err(misfit("an increment", &other)),
        }
    }
}

impl FromOutcome for Length {
    fn from_outcome(outcome: Outcome, meta: Meta) -> Result<Length, Refusal> {
        match outcome {
            Outcome::Length { version, length } => Ok(Length { bytes: length, version, meta }),
            other => Err(misfit("an append", &other)),
        }
    }
}

impl FromOutcome for Conditional {
    fn from_outcome(outcome: Outcome, meta: Meta) -> Result<Conditional, Refusal> {
        let condition = match outcome {
            Outcome::Written { version } => Condition::Held { version },
            Outcome::ConditionFailed { current } => Condition::Failed { current },
            other => return Err(misfit("a conditional write", &other)),
        };
        Ok(Conditional { condition, meta })
    }
}
