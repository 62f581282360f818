//! Making a backup: every shard is read from its leader and packed into parts, several at a time, and proven whole before the
//! manifest is written.

use std::time::Duration;

use anyhow::{Context, bail};
use futures::stream::{self, StreamExt, TryStreamExt};
use meridian_client::{Client, RefusalKind};
use meridian_region_core::Contents;
use meridian_region_core::backup::Saved;
use meridian_types::{BackupCut, BackupRow, BucketName, Node, ShardId};
use tokio::time::{Instant, sleep};

use super::BackupId;
use super::chain::Chain;
use super::manifest::{PartEntry, ShardEntry, Way};
use super::merge::Difference;
use super::part::{Packed, Packer};
use super::place::Place;
use super::verify::Fault;

/// How long a shard may go on having no leader, or failing in the middle, before it is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// The pause once every node has been asked.
const PAUSE: Duration = Duration::from_millis(300);

/// What is read, and where it goes.
pub struct Source<'a> {
    /// The cluster.
    pub client: &'a Client,
    /// The bucket.
    pub bucket: &'a BucketName,
    /// The nodes of the region that is read.
    pub nodes: &'a [Node],
    /// Where it goes.
    pub place: &'a Place,
    /// Under which name.
    pub id: &'a BackupId,
    /// What it rests on; `None`: it is to be whole.
    pub base: Option<&'a Chain>,
}

impl Source<'_> {
    /// Backs all shards up, so many at a time; `done` is told the bytes of rows as they are read.
    ///
    /// # Errors
    /// When a shard can't be read or is damaged, or a part can't be written: then there is no backup.
    pub async fn shards(&self, shards: u16, parallel: usize, done: impl Fn(u64)) -> anyhow::Result<Vec<ShardEntry>> {
        let done = &done;
        let reading = stream::iter((0..shards).map(ShardId)).map(|shard| async move {
            self.shard(shard, done).await.with_context(|| format!("backing up shard {shard} of `{}`", self.bucket))
        });
        // In the order of their numbers.
        reading.buffered(parallel).try_collect().await
    }

    /// Asks one node after the other: only the shard's leader gives it away, and it may change meanwhile. What was begun is
    /// begun anew, at another moment and in the same parts.
    async fn shard(&self, shard: ShardId, done: &impl Fn(u64)) -> anyhow::Result<ShardEntry> {
        let (until, mut base, mut why_whole) = (Instant::now() + PATIENCE, self.base, None);
        // Leaders are spread over the nodes: so are the first questions.
        let nodes = self.nodes.iter().cycle().skip(usize::from(shard.0) % self.nodes.len().max(1));
        for (nth, node) in nodes.enumerate() {
            match self.shard_from(node, (shard, base), done).await {
                Ok(entry) => return Ok(ShardEntry { why: entry.why.or(why_whole), ..entry }),
                // What it was to rest on is no longer what it was: then it rests on nothing.
                Err(why) if base.is_some() && why.is::<Fault>() => {
                    why_whole = Some(format!("what it was to rest on is damaged: {why}"));
                    base = None;
                    continue;
                }
                Err(why) if !passes(&why) || Instant::now() > until => return Err(why),
                Err(why) => tracing::debug!(%shard, node = %node.name, %why, "asking again"),
            }
            if (nth + 1) % self.nodes.len() == 0 {
                sleep(PAUSE).await;
            }
        }
        bail!("the region that is to be read has no nodes")
    }

    async fn shard_from(
        &self,
        node: &Node,
        (shard, base): (ShardId, Option<&Chain>),
        done: &impl Fn(u64),
    ) -> anyhow::Result<ShardEntry> {
        let mut rows = self.client.admin().back_up(node, self.bucket, shard).await?;
        let mut taken = Taken::new(rows.cut.clone());
        let mut difference = base.map(|base| Difference::new(base.merge(self.place, shard.0, &|_| ())));
        while let Some(page) = rows.next_page().await? {
            done(page.iter().map(|row| (row.key.len() + row.record.len()) as u64).sum());
            for row in page {
                taken.contents.add(&row.key, &row.record)?;
                match &mut difference {
                    None => self.take(&mut taken, &row).await?,
                    Some(difference) => self.take_all(&mut taken, difference.next(Some(&row)).await?).await?,
                }
            }
        }
        if let Some(difference) = &mut difference {
            let rest = difference.next(None).await?;
            self.take_all(&mut taken, rest).await?;
        }
        if let Some(part) = taken.packer.close() {
            self.keep(&mut taken, part).await?;
        }
        taken.end(&node.name, if base.is_some() { Way::Difference } else { Way::Whole })
    }

    async fn take_all(&self, taken: &mut Taken, rows: Vec<BackupRow>) -> anyhow::Result<()> {
        for row in rows {
            self.take(taken, &row).await?;
        }
        Ok(())
    }

    async fn take(&self, taken: &mut Taken, row: &BackupRow) -> anyhow::Result<()> {
        match taken.row(row)? {
            Some(part) => self.keep(taken, part).await,
            None => Ok(()),
        }
    }

    async fn keep(&self, taken: &mut Taken, part: Packed) -> anyhow::Result<()> {
        let Packed { number, rows, bytes } = part;
        taken.parts.push(PartEntry { number, rows, length: bytes.len() as u64, crc32c: crc32c::crc32c(&bytes) });
        self.place.keep_part(self.id, taken.cut.shard, number, bytes).await
    }
}

/// Whether another attempt may succeed: another node leads the shard, or it ended in the middle.
fn passes(why: &anyhow::Error) -> bool {
    use RefusalKind::{Conflict, Redirect, Retry, Unavailable};
    let refused = why.downcast_ref::<meridian_client::Error>();
    refused.is_some_and(|why| matches!(why.kind, Retry | Redirect | Unavailable | Conflict))
}

/// What has come of a shard so far.
struct Taken {
    cut: BackupCut,
    packer: Packer,
    contents: Contents,
    rows: u64,
    counters: u64,
    parts: Vec<PartEntry>,
}

impl Taken {
    fn new(cut: BackupCut) -> Taken {
        let packer = Packer::new(cut.shard);
        Taken { cut, packer, contents: Contents::default(), rows: 0, counters: 0, parts: Vec::new() }
    }

    fn row(&mut self, row: &BackupRow) -> anyhow::Result<Option<Packed>> {
        self.rows += 1;
        // Of a key that is gone there is no record.
        let counts = !row.record.is_empty() && Saved::of(&row.record)?.counter.is_some();
        self.counters += u64::from(counts);
        Ok(self.packer.push(row))
    }

    /// The replica itself may be damaged: then this is found now, not when the backup is needed (DUR-3).
    fn end(self, node: &dyn std::fmt::Display, way: Way) -> anyhow::Result<ShardEntry> {
        let cut = &self.cut;
        if self.contents != (Contents { hash: cut.hash, keys: cut.keys, bytes: cut.bytes }) {
            bail!(
                "the rows on node {node} are not what their digest says: that replica is damaged; back up another region with --in, and see `meridian status`"
            );
        }
        Ok(ShardEntry::new(cut, way, (self.rows, self.counters), self.parts))
    }
}
