//! A bucket: the operations on its keys.

use std::fmt;

use bytes::Bytes;
use meridian_types::{BucketName, Key, Read, ReadLevel, Refusal, Value, Version, Write};

use crate::answer::{Conditional, Count, Deleted, FromOutcome, Got, GotMany, Length, Written};
use crate::call::{Expiring, ReadCall, ReadOptions, WriteCall};
use crate::client::Client;
use crate::input::IntoBytes;
use crate::scan::Scan;
use crate::session::Session;

/// A bucket by name. Cheap to clone.
///
/// Keys have 1 to 4,096 bytes, values up to 1 MiB; anything else is refused as Invalid before it is sent.
#[derive(Clone)]
pub struct Bucket {
    client: Client,
    name: BucketName,
    reads: ReadOptions,
}

impl Bucket {
    pub(crate) fn new(client: Client, name: BucketName) -> Bucket {
        Bucket { client, name, reads: ReadOptions::default() }
    }

    /// The bucket's name.
    pub fn name(&self) -> &BucketName {
        &self.name
    }

    /// The same bucket with another default for reads: an active-active bucket has no `strong` ones.
    ///
    /// ```no_run
    /// # async fn example(client: meridian_client::Client) -> Result<(), meridian_client::Error> {
    /// use meridian_client::ReadLevel;
    ///
    /// let likes = client.bucket("likes")?.reading(ReadLevel::Eventual);
    /// likes.increment("post/9", 1).await?;
    /// println!("{:?}", likes.get("post/9").await?.value());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn reading(mut self, level: ReadLevel) -> Bucket {
        self.reads.level = Some(level);
        self
    }

    fn read<T: FromOutcome>(&self, read: Result<Read, Refusal>) -> ReadCall<T> {
        ReadCall::new(self.client.clone(), self.name.clone(), read, self.reads.clone())
    }

    fn write<T: FromOutcome, L>(&self, write: Result<Write, Refusal>) -> WriteCall<T, L> {
        WriteCall::new(self.client.clone(), self.name.clone(), write)
    }

    /// Reads a key. A counter reads as decimal text.
    pub fn get(&self, key: impl IntoBytes) -> ReadCall<Got> {
        self.read(Key::new(key.into_bytes()).map(|key| Read::Get { key }))
    }

    /// Reads up to 1,024 keys; each one at its own shard's position, so together they are no snapshot.
    pub fn multi_get<K: IntoBytes>(&self, keys: impl IntoIterator<Item = K>) -> ReadCall<GotMany> {
        let keys: Result<Vec<Key>, Refusal> = keys.into_iter().map(|key| Key::new(key.into_bytes())).collect();
        self.read(keys.map(|keys| Read::MultiGet { keys }))
    }

    /// Reads the keys under a prefix, in byte order, page by page; an empty prefix means all.
    ///
    /// ```no_run
    /// # async fn example(client: meridian_client::Client) -> Result<(), meridian_client::Error> {
    /// let mut scan = client.bucket("orders")?.scan("order/").eventual().page_size(500);
    /// while let Some(page) = scan.next_page().await? {
    ///     for item in page.items {
    ///         println!("{:?} = {:?}", item.key, item.found.value);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn scan(&self, prefix: impl IntoBytes) -> Scan {
        Scan::new(self.client.clone(), self.name.clone(), prefix.into_bytes(), self.reads.clone())
    }

    /// Sets a key. Without a [`ttl`](WriteCall::ttl) it lasts until replaced or deleted.
    pub fn put(&self, key: impl IntoBytes, value: impl IntoBytes) -> WriteCall<Written, Expiring> {
        self.write(pair(key, value).map(|(key, value)| Write::Put { key, value, ttl_ms: None }))
    }

    /// Removes a key; removing an absent one succeeds.
    pub fn delete(&self, key: impl IntoBytes) -> WriteCall<Deleted> {
        self.write(Key::new(key.into_bytes()).map(|key| Write::Delete { key }))
    }

    /// Adds to the end of a value; an absent key counts as empty. Keeps the key's time to live.
    pub fn append(&self, key: impl IntoBytes, suffix: impl IntoBytes) -> WriteCall<Length> {
        self.write(pair(key, suffix).map(|(key, suffix)| Write::Append { key, suffix }))
    }

    /// Adds to a counter; an absent key counts as 0. Keeps the key's time to live.
    pub fn increment(&self, key: impl IntoBytes, by: i64) -> WriteCall<Count> {
        self.write(Key::new(key.into_bytes()).map(|key| Write::Increment { key, by }))
    }

    /// Sets a key if its version is still `expected`; `None` means that it must be absent.
    ///
    /// ```no_run
    /// # async fn example(client: meridian_client::Client) -> Result<(), meridian_client::Error> {
    /// let stock = client.bucket("stock")?;
    /// let got = stock.get("chair").await?;
    /// let swap = stock.compare_and_set("chair", got.version(), "7 left").await?;
    /// if !swap.held() {
    ///     println!("somebody was faster");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn compare_and_set(
        &self,
        key: impl IntoBytes,
        expected: Option<Version>,
        value: impl IntoBytes,
    ) -> WriteCall<Conditional, Expiring> {
        self.write(pair(key, value).map(|(key, value)| Write::CompareAndSet { key, expected, value, ttl_ms: None }))
    }

    /// Sets a key if it is absent.
    pub fn put_if_absent(&self, key: impl IntoBytes, value: impl IntoBytes) -> WriteCall<Conditional, Expiring> {
        self.write(pair(key, value).map(|(key, value)| Write::PutIfAbsent { key, value, ttl_ms: None }))
    }

    /// Sets up to 1,024 keys of one shard, all or none, with at most 2 MiB of keys and values.
    pub fn multi_put<K: IntoBytes, V: IntoBytes>(&self, items: impl IntoIterator<Item = (K, V)>) -> WriteCall<Written> {
        let items: Result<Vec<_>, Refusal> = items.into_iter().map(|(key, value)| pair(key, value)).collect();
        self.write(items.map(|items| Write::MultiPut { items }))
    }

    /// The same bucket whose reads belong to a session unless they say otherwise. Writes name theirs themselves.
    #[must_use]
    pub fn reading_in(mut self, session: &Session) -> Bucket {
        self.reads.session = Some(session.clone());
        self
    }
}

fn pair(key: impl IntoBytes, value: impl IntoBytes) -> Result<(Key, Value), Refusal> {
    let value: Bytes = value.into_bytes();
    Ok((Key::new(key.into_bytes())?, Value::new(value)?))
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bucket").field("name", &self.name).finish_non_exhaustive()
    }
}
