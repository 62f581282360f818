//! A bucket as files see it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use meridian_client::{Bucket, ReadLevel, RefusalKind, Session};
use meridian_types::WriteAck;

use super::Store;

/// The pause before a write that came too early is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// A bucket of a cluster, written and read within one session: what an import wrote, its checks will see.
#[derive(Clone, Debug)]
pub struct BucketStore {
    /// The bucket.
    pub bucket: Bucket,
    /// How durable writes are.
    pub ack: WriteAck,
    /// How fresh reads are.
    pub level: ReadLevel,
    /// What has been seen so far.
    pub session: Session,
    /// How long one request may take.
    pub deadline: Duration,
}

impl Store for BucketStore {
    async fn put(&self, key: Bytes, value: Bytes) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            let call = self.bucket.put(&key, &value).ack(self.ack).session(&self.session).deadline(self.deadline);
            match call.await {
                Ok(_) => return Ok(()),
                // Another region answered an earlier request of the session, and this one has not received that yet.
                // Nothing was written, and it passes as replication goes on.
                Err(error) if error.kind == RefusalKind::Stale && started.elapsed() < self.deadline => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn get(&self, key: Bytes) -> anyhow::Result<Option<Bytes>> {
        let call = self.bucket.get(key).session(&self.session).level(self.level.clone()).deadline(self.deadline);
        Ok(call.await?.into_value())
    }

    async fn keys(&self, after: Bytes) -> anyhow::Result<Vec<Bytes>> {
        let scan = self.bucket.scan("").after(after).session(&self.session).level(self.level.clone()).keys_only();
        let page = scan.deadline(self.deadline).next_page().await?;
        Ok(page.map(|page| page.items.into_iter().map(|item| item.key).collect()).unwrap_or_default())
    }
}
