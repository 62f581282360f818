//! Scans: the keys under a prefix, a page at a time.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use meridian_types::key::SCAN_ITEMS_MAX;
use meridian_types::{BucketName, Read, ReadLevel, StalePolicy};

use crate::answer::{Item, Page};
use crate::call::{ReadCall, ReadOptions};
use crate::client::Client;
use crate::error::Error;
use crate::session::Session;

/// A scan in progress: options first, then [`next_page`](Scan::next_page) until `None`, or [`items`](Scan::items).
///
/// Each page is read by itself at the asked level; keys that come or go behind the scan's position are not seen.
#[must_use = "a scan reads nothing until its first page is asked for"]
pub struct Scan {
    client: Client,
    bucket: BucketName,
    prefix: Bytes,
    options: ReadOptions,
    page_size: u32,
    values: bool,
    position: Position,
}

/// How far a scan has come.
enum Position {
    /// Behind this key; empty means at the start.
    Behind(Bytes),
    End,
}

impl Scan {
    pub(crate) fn new(client: Client, bucket: BucketName, prefix: Bytes, options: ReadOptions) -> Scan {
        let page_size = u32::try_from(SCAN_ITEMS_MAX).unwrap_or(u32::MAX);
        Scan { client, bucket, prefix, options, page_size, values: true, position: Position::Behind(Bytes::new()) }
    }

    /// The most items on a page: 1 to 1,000, the default.
    pub fn page_size(mut self, items: u32) -> Scan {
        self.page_size = items.max(1);
        self
    }

    /// Leaves the values out.
    pub fn keys_only(mut self) -> Scan {
        self.values = false;
        self
    }

    /// Starts behind this key instead of at the first: to continue a scan of earlier.
    pub fn after(mut self, key: impl crate::input::IntoBytes) -> Scan {
        self.position = Position::Behind(key.into_bytes());
        self
    }

    /// As [`ReadCall::strong`].
    pub fn strong(self) -> Scan {
        self.level(ReadLevel::Strong)
    }

    /// As [`ReadCall::eventual`].
    pub fn eventual(self) -> Scan {
        self.level(ReadLevel::Eventual)
    }

    /// As [`ReadCall::bounded`].
    pub fn bounded(self, staleness_max: Duration) -> Scan {
        let staleness_ms_max = u64::try_from(staleness_max.as_millis()).unwrap_or(u64::MAX);
        self.level(ReadLevel::Bounded { staleness_ms_max })
    }

    /// As [`ReadCall::level`].
    pub fn level(mut self, level: ReadLevel) -> Scan {
        self.options.level = Some(level);
        self
    }

    /// As [`ReadCall::session`].
    pub fn session(mut self, session: &Session) -> Scan {
        self.options.session = Some(session.clone());
        self
    }

    /// As [`ReadCall::when_stale`].
    pub fn when_stale(mut self, stale: StalePolicy) -> Scan {
        self.options.stale = stale;
        self
    }

    /// Give up on a page after this long, retries included.
    pub fn deadline(mut self, deadline: Duration) -> Scan {
        self.options.deadline = Some(deadline);
        self
    }

    /// The next page; `None` behind the last. After an error the same page can be asked for again.
    ///
    /// # Errors
    /// [`Error`], as for any read.
    pub async fn next_page(&mut self) -> Result<Option<Page>, Error> {
        let Position::Behind(after) = &self.position else { return Ok(None) };
        let read = Read::Scan {
            prefix: self.prefix.clone(),
            after: after.clone(),
            limit: self.page_size,
            values: self.values,
        };
        let call: ReadCall<Page> =
            ReadCall::new(self.client.clone(), self.bucket.clone(), Ok(read), self.options.clone());
        let page = call.await?;
        // A page without items can't say where to continue: whatever it claims, it is the last.
        self.position = match page.items.last() {
            Some(last) if page.more => Position::Behind(last.key.clone()),
            _ => Position::End,
        };
        if page.items.is_empty() { Ok(None) } else { Ok(Some(page)) }
    }

    /// The items as a stream, pages fetched as they are needed. Ends after the first error.
    pub fn items(self) -> impl Stream<Item = Result<Item, Error>> + Send {
        let start = Some((self, Vec::new().into_iter()));
        futures::stream::unfold(start, |state| async move {
            let (mut scan, mut items) = state?;
            loop {
                if let Some(item) = items.next() {
                    return Some((Ok(item), Some((scan, items))));
                }
                match scan.next_page().await {
                    Ok(Some(page)) => items = page.items.into_iter(),
                    Ok(None) => return None,
                    Err(error) => return Some((Err(error), None)),
                }
            }
        })
    }
}

impl fmt::Debug for Scan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scan").field("bucket", &self.bucket).field("prefix", &self.prefix).finish_non_exhaustive()
    }
}
