//! Requests and responses as every room speaks of them; `proto` turns them into bytes for clients.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::id::{BucketName, ClientId, RegionId};
use crate::key::{KEY_BYTES_MAX, Key, MULTI_BYTES_MAX, MULTI_ITEMS_MAX, Value};
use crate::position::{Epoch, Hlc, Version};
use crate::refusal::{Refusal, RefusalKind};
use crate::session::SessionToken;

/// Which request this is, for at-most-once (ONE-1). `client` 0 means "no identity": retries are then not recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct RequestId {
    /// Who.
    pub client: ClientId,
    /// The client's sequence number: rising from 1, the same on every retry.
    pub sequence: u64,
}

/// A read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// One key.
    Get {
        /// The key.
        key: Key,
    },
    /// Several keys, each read at its own shard's position.
    MultiGet {
        /// The keys; at most [`MULTI_ITEMS_MAX`].
        keys: Vec<Key>,
    },
    /// The keys under a prefix, in byte order, a page at a time.
    Scan {
        /// The prefix; empty means every key.
        prefix: Bytes,
        /// Continue behind this key; empty means from the start.
        after: Bytes,
        /// The most items to return; clamped to 1..=[`crate::key::SCAN_ITEMS_MAX`].
        limit: u32,
        /// Whether values are wanted, or only keys.
        values: bool,
    },
}

/// A write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Write {
    /// Sets a key.
    Put {
        /// The key.
        key: Key,
        /// Its value.
        value: Value,
        /// Milliseconds until it expires; `None` means never.
        ttl_ms: Option<u64>,
    },
    /// Removes a key; removing an absent one succeeds.
    Delete {
        /// The key.
        key: Key,
    },
    /// Adds to the end of a value; an absent key counts as empty.
    Append {
        /// The key.
        key: Key,
        /// What to add.
        suffix: Value,
    },
    /// Adds to a counter; an absent key counts as 0.
    Increment {
        /// The key.
        key: Key,
        /// What to add; may be negative.
        by: i64,
    },
    /// Sets a key if its version is still the expected one.
    CompareAndSet {
        /// The key.
        key: Key,
        /// The version it must have; `None` means it must be absent.
        expected: Option<Version>,
        /// Its new value.
        value: Value,
        /// Milliseconds until it expires; `None` means never.
        ttl_ms: Option<u64>,
    },
    /// Sets a key if it is absent.
    PutIfAbsent {
        /// The key.
        key: Key,
        /// Its value.
        value: Value,
        /// Milliseconds until it expires; `None` means never.
        ttl_ms: Option<u64>,
    },
    /// Sets several keys of one shard, all or none.
    MultiPut {
        /// The keys and values; at most [`MULTI_ITEMS_MAX`], at most [`MULTI_BYTES_MAX`] bytes.
        items: Vec<(Key, Value)>,
    },
}

impl Write {
    /// The keys it touches.
    pub fn keys(&self) -> Box<dyn Iterator<Item = &Key> + '_> {
        match self {
            Write::Put { key, .. }
            | Write::Delete { key }
            | Write::Append { key, .. }
            | Write::Increment { key, .. }
            | Write::CompareAndSet { key, .. }
            | Write::PutIfAbsent { key, .. } => Box::new(std::iter::once(key)),
            Write::MultiPut { items } => Box::new(items.iter().map(|(key, _)| key)),
        }
    }

    /// Checks the bounds that one key or value alone can't.
    ///
    /// # Errors
    /// [`RefusalKind::Invalid`], naming the bound.
    pub fn validate(&self) -> Result<(), Refusal> {
        let Write::MultiPut { items } = self else { return Ok(()) };
        check_count("a multi-put", items.len())?;
        let bytes: usize = items.iter().map(|(key, value)| key.as_bytes().len() + value.as_bytes().len()).sum();
        if bytes > MULTI_BYTES_MAX {
            return Err(Refusal::new(
                RefusalKind::Invalid,
                format!("a multi-put may carry at most {MULTI_BYTES_MAX} bytes; this one has {bytes}: split it"),
            ));
        }
        Ok(())
    }
}

impl Read {
    /// Checks the bounds that one key alone can't.
    ///
    /// # Errors
    /// [`RefusalKind::Invalid`], naming the bound.
    pub fn validate(&self) -> Result<(), Refusal> {
        match self {
            Read::Get { .. } => Ok(()),
            Read::MultiGet { keys } => check_count("a multi-get", keys.len()),
            Read::Scan { prefix, after, .. } if prefix.len().max(after.len()) > KEY_BYTES_MAX => Err(Refusal::new(
                RefusalKind::Invalid,
                format!("a scan's prefix may have at most {KEY_BYTES_MAX} bytes"),
            )),
            Read::Scan { .. } => Ok(()),
        }
    }
}

fn check_count(what: &str, count: usize) -> Result<(), Refusal> {
    match count {
        0 => Err(Refusal::new(RefusalKind::Invalid, format!("{what} needs at least one key"))),
        1..=MULTI_ITEMS_MAX => Ok(()),
        _ => Err(Refusal::new(
            RefusalKind::Invalid,
            format!("{what} may name at most {MULTI_ITEMS_MAX} keys; this one names {count}: split it"),
        )),
    }
}

/// How fresh a read must be.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum ReadLevel {
    /// Linearizable: answered by the primary (CON-1). Not to be had in active-active buckets.
    #[default]
    Strong,
    /// Not behind what this session has seen (CON-2): the request's token says what that is.
    Session,
    /// At most this many milliseconds stale (CON-3).
    Bounded {
        /// The bound.
        staleness_ms_max: u64,
    },
    /// Whatever the nearest replica has.
    Eventual,
}

/// What to do when the local replica is too stale for `session` and `bounded`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum StalePolicy {
    /// Wait for it to catch up, until the deadline.
    #[default]
    Wait,
    /// Ask the primary instead.
    Redirect,
    /// Fail at once with [`RefusalKind::Stale`].
    Fail,
}

/// How durable a write must be before it is acknowledged: the bucket's policy, or stronger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum WriteAck {
    /// As the bucket's policy says.
    #[default]
    Policy,
    /// Durable in the region that orders it; the policy still holds where it asks for more.
    Local,
    /// Durable in this many regions, the ordering one counted.
    Regions(u8),
    /// Durable in more than half of the bucket's regions.
    Majority,
    /// Durable in all of the bucket's regions.
    All,
}

impl WriteAck {
    /// The regions that must have the write, given what the policy requires and how many hold the bucket.
    /// Never less than the policy: a request can only ask for more.
    pub fn required_regions(self, policy_required: usize, regions: usize) -> usize {
        let asked = match self {
            WriteAck::Policy | WriteAck::Local => 1,
            WriteAck::Regions(count) => usize::from(count),
            WriteAck::Majority => regions / 2 + 1,
            WriteAck::All => regions,
        };
        asked.max(policy_required)
    }
}

/// A request for one bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A read.
    Read {
        /// The bucket.
        bucket: BucketName,
        /// What to read.
        read: Read,
        /// How fresh.
        level: ReadLevel,
        /// What to do when too stale.
        stale: StalePolicy,
        /// What the session has seen.
        session: SessionToken,
        /// Give up after this long, in milliseconds.
        deadline_ms: u32,
    },
    /// A write.
    Write {
        /// The bucket.
        bucket: BucketName,
        /// What to write.
        write: Write,
        /// How durable.
        ack: WriteAck,
        /// For at-most-once.
        id: RequestId,
        /// No request of this client below this sequence will be retried: their results may be forgotten.
        lowest_outstanding: u64,
        /// The epoch of the bucket under which its client began it, the same in every attempt but those that begin it again; 0 when it
        /// is not known. Between then and now the bucket may have come to be written in every region.
        begun: Epoch,
        /// What the session has seen: a write must not be ordered before it.
        session: SessionToken,
        /// Give up after this long, in milliseconds.
        deadline_ms: u32,
    },
}

impl Request {
    /// The bucket it is for.
    pub fn bucket(&self) -> &BucketName {
        match self {
            Request::Read { bucket, .. } | Request::Write { bucket, .. } => bucket,
        }
    }

    /// How long its client waits, in milliseconds.
    pub fn deadline_ms(&self) -> u32 {
        match self {
            Request::Read { deadline_ms, .. } | Request::Write { deadline_ms, .. } => *deadline_ms,
        }
    }
}

/// A value with the version that CAS needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The value; a counter reads as decimal text.
    pub value: Bytes,
    /// The write that made it.
    pub version: Version,
    /// When it expires, in milliseconds since 1970.
    pub expires_at_ms: Option<u64>,
}

/// What a request came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// `Get`: the value, if there is one.
    Value(Option<Found>),
    /// `MultiGet`: in the order asked.
    Values(Vec<Option<Found>>),
    /// `Scan`: a page; `more` says whether to continue behind the last key.
    Page {
        /// Keys with values (empty values when only keys were asked for).
        items: Vec<(Key, Found)>,
        /// Whether there is more behind the last key.
        more: bool,
    },
    /// A write that took effect.
    Written {
        /// Its version.
        version: Version,
    },
    /// A delete.
    Deleted {
        /// Its version.
        version: Version,
        /// Whether there was something to delete.
        existed: bool,
    },
    /// An increment: the new value.
    Count {
        /// Its version.
        version: Version,
        /// The counter afterwards.
        value: i64,
    },
    /// An append: the new length.
    Length {
        /// Its version.
        version: Version,
        /// Bytes of the value afterwards.
        length: u64,
    },
    /// A condition (CAS, put-if-absent) that did not hold; nothing was changed.
    ConditionFailed {
        /// The version found instead; `None` when absent.
        current: Option<Version>,
    },
}

/// How fresh an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Freshness {
    /// The greatest timestamp the answering replica had applied.
    pub hlc: Hlc,
    /// Upper bound on how far it may be behind the primary, in milliseconds: 0 for strong reads, `None` when unknown.
    pub staleness_ms: Option<u64>,
}

/// How durable a write is, counted when it was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Durability {
    /// Regions that have it on disk.
    pub regions: u16,
    /// Nodes that have it on disk.
    pub nodes: u16,
}

/// The answer to a request. Freshness and durability are told on every one, never guessed by the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The region that answered.
    pub region: RegionId,
    /// The bucket's epoch under which it answered.
    pub epoch: Epoch,
    /// What came of it.
    pub outcome: Outcome,
    /// How fresh the answer is.
    pub freshness: Freshness,
    /// For writes: how durable it was when answered.
    pub durability: Option<Durability>,
    /// What the session has now seen: the positions this request read or wrote.
    pub session: SessionToken,
}
