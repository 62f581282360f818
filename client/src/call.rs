//! Calls: what to do, with options, sent when awaited.

use std::fmt;
use std::future::IntoFuture;
use std::marker::PhantomData;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use meridian_types::{
    BucketName, Epoch, Outcome, Read, ReadLevel, Refusal, Request, RequestId, StalePolicy, Write, WriteAck,
};

use crate::answer::{FromOutcome, Meta};
use crate::client::Client;
use crate::error::Error;
use crate::session::{Session, seen};

/// Turns the node's outcome into the caller's answer.
type Finish<T> = fn(Outcome, Meta) -> Result<T, Refusal>;

/// A read to be: set options, then `.await` it.
#[must_use = "a read is sent when it is awaited"]
pub struct ReadCall<T> {
    client: Client,
    bucket: BucketName,
    read: Result<Read, Refusal>,
    pub(crate) options: ReadOptions,
    finish: Finish<T>,
}

/// Options of a read.
#[derive(Clone, Debug, Default)]
pub(crate) struct ReadOptions {
    pub(crate) level: Option<ReadLevel>,
    pub(crate) stale: StalePolicy,
    pub(crate) session: Option<Session>,
    pub(crate) deadline: Option<Duration>,
}

impl ReadOptions {
    /// As asked; with a session and nothing else said, `session`; else `strong`.
    fn level(&self) -> ReadLevel {
        let unsaid = || if self.session.is_some() { ReadLevel::Session } else { ReadLevel::Strong };
        self.level.clone().unwrap_or_else(unsaid)
    }
}

/// Marks writes whose value lasts until it is replaced.
#[derive(Clone, Copy, Debug)]
pub enum Lasting {}

/// Marks writes whose value may be given a time to live.
#[derive(Clone, Copy, Debug)]
pub enum Expiring {}

/// A write to be: set options, then `.await` it. Dropped before it is answered, it may or may not take effect.
#[must_use = "a write is sent when it is awaited"]
pub struct WriteCall<T, L = Lasting> {
    client: Client,
    bucket: BucketName,
    write: Result<Write, Refusal>,
    ack: WriteAck,
    session: Option<Session>,
    deadline: Option<Duration>,
    finish: Finish<T>,
    lasting: PhantomData<fn() -> L>,
}

impl<T> ReadCall<T> {
    pub(crate) fn new(client: Client, bucket: BucketName, read: Result<Read, Refusal>, options: ReadOptions) -> Self
    where
        T: FromOutcome,
    {
        ReadCall { client, bucket, read, options, finish: T::from_outcome }
    }

    /// Linearizable, answered by the bucket's primary (CON-1). The default. Not to be had in active-active buckets.
    pub fn strong(mut self) -> Self {
        self.options.level = Some(ReadLevel::Strong);
        self
    }

    /// Not behind what the session has seen (CON-2), and seen by it afterwards. Together with another level, that level
    /// rules and the session only learns.
    pub fn session(mut self, session: &Session) -> Self {
        self.options.session = Some(session.clone());
        self
    }

    /// At most this stale (CON-3), with a resolution of a millisecond.
    pub fn bounded(mut self, staleness_max: Duration) -> Self {
        let staleness_ms_max = u64::try_from(staleness_max.as_millis()).unwrap_or(u64::MAX);
        self.options.level = Some(ReadLevel::Bounded { staleness_ms_max });
        self
    }

    /// Whatever the nearest replica has: the fastest.
    pub fn eventual(mut self) -> Self {
        self.options.level = Some(ReadLevel::Eventual);
        self
    }

    /// A level that was chosen elsewhere.
    pub fn level(mut self, level: ReadLevel) -> Self {
        self.options.level = Some(level);
        self
    }

    /// What to do when the nearest replica is too stale for `session` or `bounded`: wait for it (the default), ask the
    /// primary instead, or fail.
    pub fn when_stale(mut self, stale: StalePolicy) -> Self {
        self.options.stale = stale;
        self
    }

    /// Give up after this long, retries included. The client's default otherwise.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.options.deadline = Some(deadline);
        self
    }
}

impl<T, L> WriteCall<T, L> {
    pub(crate) fn new(client: Client, bucket: BucketName, write: Result<Write, Refusal>) -> Self
    where
        T: FromOutcome,
    {
        WriteCall {
            client,
            bucket,
            write,
            ack: WriteAck::Policy,
            session: None,
            deadline: None,
            finish: T::from_outcome,
            lasting: PhantomData,
        }
    }

    /// How durable it must be before it is acknowledged: as the bucket's policy says (the default), or more.
    pub fn ack(mut self, ack: WriteAck) -> Self {
        self.ack = ack;
        self
    }

    /// Ordered behind what the session has seen, and seen by it afterwards (CON-2).
    pub fn session(mut self, session: &Session) -> Self {
        self.session = Some(session.clone());
        self
    }

    /// Give up after this long, retries included. The client's default otherwise.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }
}

impl<T> WriteCall<T, Expiring> {
    /// The key expires this long after the write, with a resolution of a millisecond. Zero is refused.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        let millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        self.write = match self.write {
            Ok(_) if millis == 0 => Err(Refusal::new(
                meridian_types::RefusalKind::Invalid,
                "a time to live must be at least a millisecond: delete the key instead",
            )),
            Ok(mut write) => {
                if let Write::Put { ttl_ms, .. }
                | Write::PutIfAbsent { ttl_ms, .. }
                | Write::CompareAndSet { ttl_ms, .. } = &mut write
                {
                    *ttl_ms = Some(millis);
                }
                Ok(write)
            }
            refused => refused,
        };
        self
    }
}

impl<T: Send + 'static> ReadCall<T> {
    async fn send(self) -> Result<T, Error> {
        let read = self.read?;
        read.validate()?;
        let session = self.options.session.as_ref();
        let request = Request::Read {
            bucket: self.bucket,
            read,
            level: self.options.level(),
            stale: self.options.stale,
            session: seen(session),
            deadline_ms: 0,
        };
        let (outcome, meta) = self.client.execute(request, self.options.deadline, session).await?;
        Ok((self.finish)(outcome, meta)?)
    }
}

impl<T: Send + 'static, L> WriteCall<T, L> {
    async fn send(self) -> Result<T, Error> {
        let write = self.write?;
        write.validate()?;
        let session = self.session.as_ref();
        let request = Request::Write {
            bucket: self.bucket,
            write,
            ack: self.ack,
            id: RequestId::default(),
            lowest_outstanding: 0,
            begun: Epoch(0),
            session: seen(session),
            deadline_ms: 0,
        };
        let (outcome, meta) = self.client.execute(request, self.deadline, session).await?;
        Ok((self.finish)(outcome, meta)?)
    }
}

impl<T: Send + 'static> IntoFuture for ReadCall<T> {
    type Output = Result<T, Error>;
    type IntoFuture = BoxFuture<'static, Result<T, Error>>;

    fn into_future(self) -> Self::IntoFuture {
        self.send().boxed()
    }
}

impl<T: Send + 'static, L: 'static> IntoFuture for WriteCall<T, L> {
    type Output = Result<T, Error>;
    type IntoFuture = BoxFuture<'static, Result<T, Error>>;

    fn into_future(self) -> Self::IntoFuture {
        self.send().boxed()
    }
}

impl<T> fmt::Debug for ReadCall<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadCall").field("bucket", &self.bucket).field("read", &self.read).finish_non_exhaustive()
    }
}

impl<T, L> fmt::Debug for WriteCall<T, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteCall").field("bucket", &self.bucket).finish_non_exhaustive()
    }
}
