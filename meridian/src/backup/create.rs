//! Making a backup: every shard is read from its leader and packed into parts, several at a time, and proven whole before the
//! manifest is written.

use std::time::Duration;

use anyhow::{Context, bail};
use futures::stream::{self, StreamExt, TryStreamExt};
use meridian_client::{Client, RefusalKind, ShardPage};
use meridian_region_core::Contents;
use meridian_region_core::backup::Saved;
use meridian_types::{BackupAsk, BackupCut, BackupRow, BackupSpan, BucketName, Node, ShardId};
use tokio::time::{Instant, sleep};

use super::BackupId;
use super::chain::Chain;
use super::manifest::{Kind, Manifest, PartEntry, ShardEntry, Way};
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
        let since = base.and_then(|base| base.last().shards.get(usize::from(shard.0))?.since());
        let is_known = since.is_some();
        let ask = BackupAsk { context: true, since };
        let mut rows = self.client.admin().back_up(node, self.bucket, shard, ask).await?;
        let (way, why) = match (&rows.cut.span, base) {
            (BackupSpan::Since, Some(_)) => (Way::Log, None),
            (BackupSpan::Since, None) => bail!("node {} gave less than was asked for", node.name),
            (BackupSpan::Whole(_), None) => (Way::Whole, None),
            (BackupSpan::Whole(why), Some(_)) if is_known && !why.is_empty() => (Way::Difference, Some(why.clone())),
            (BackupSpan::Whole(_), Some(_)) => {
                (Way::Difference, Some("that, or a node, is of an earlier release".to_owned()))
            }
        };
        let why = why.map(|why| {
            format!(
                "all rows were read and compared with {}: {why}",
                base.map_or_else(String::new, |base| base.last().id.to_string())
            )
        });
        let mut taken = Taken::new(rows.cut.clone());
        let mut difference = base
            .filter(|_| way == Way::Difference)
            .map(|base| Difference::new(base.merge(self.place, shard.0, &|_| ())));
        while let Some(page) = rows.next_page().await? {
            let (ShardPage::Log(some) | ShardPage::Rows(some) | ShardPage::Context(some)) = &page;
            done(some.iter().map(|row| (row.key.len() + row.record.len()) as u64).sum());
            match page {
                ShardPage::Log(log) => self.keep_all(&mut taken.log, &log).await?,
                ShardPage::Context(context) => self.keep_all(&mut taken.context, &context).await?,
                ShardPage::Rows(rows) => self.take(&mut taken, &mut difference, (way, rows)).await?,
            }
        }
        if let Some(difference) = &mut difference {
            let rest = difference.next(None).await?;
            self.keep_rows(&mut taken, &rest).await?;
        }
        for pack in [&mut taken.rows, &mut taken.log, &mut taken.context] {
            if let Some(part) = pack.packer.close() {
                self.keep(pack, part).await?;
            }
        }
        Ok(ShardEntry { why, ..taken.end(&node.name, way)? })
    }

    async fn take(
        &self,
        taken: &mut Taken,
        difference: &mut Option<Difference<'_>>,
        (way, rows): (Way, Vec<BackupRow>),
    ) -> anyhow::Result<()> {
        if way != Way::Log {
            for row in &rows {
                taken.contents.add(&row.key, &row.record)?;
            }
        }
        let Some(difference) = difference else { return self.keep_rows(taken, &rows).await };
        for row in &rows {
            let changed = difference.next(Some(row)).await?;
            self.keep_rows(taken, &changed).await?;
        }
        Ok(())
    }

    async fn keep_rows(&self, taken: &mut Taken, rows: &[BackupRow]) -> anyhow::Result<()> {
        taken.count(rows)?;
        self.keep_all(&mut taken.rows, rows).await
    }

    async fn keep_all(&self, pack: &mut Pack, rows: &[BackupRow]) -> anyhow::Result<()> {
        for row in rows {
            if let Some(part) = pack.packer.push(row) {
                self.keep(pack, part).await?;
            }
        }
        Ok(())
    }

    async fn keep(&self, pack: &mut Pack, part: Packed) -> anyhow::Result<()> {
        let Packed { number, rows, bytes } = part;
        pack.parts.push(PartEntry { number, rows, length: bytes.len() as u64, crc32c: crc32c::crc32c(&bytes) });
        self.place.keep_part(self.id, (pack.kind, pack.shard, number), bytes).await
    }
}

/// Makes what was kept a backup, if what it rests on is still there: somebody may remove that meanwhile (`delete.rs`).
///
/// # Errors
/// When it is not, and then nothing is kept; when the manifest can't be written.
pub async fn finish(place: &Place, manifest: &Manifest) -> anyhow::Result<()> {
    place.finish(manifest).await?;
    if let Err(why) = Chain::of(place, manifest.clone()).await?.whole() {
        place.remove(&manifest.id).await?;
        bail!("{} is not kept, for somebody changed {place} while it was made: {why}; repeat it", manifest.id);
    }
    Ok(())
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
    contents: Contents,
    count: u64,
    counters: u64,
    rows: Pack,
    log: Pack,
    context: Pack,
}

/// Parts of one kind.
struct Pack {
    kind: Kind,
    shard: ShardId,
    packer: Packer,
    parts: Vec<PartEntry>,
}

impl Taken {
    fn new(cut: BackupCut) -> Taken {
        let shard = cut.shard;
        let pack = |kind| Pack { kind, shard, packer: Packer::new(shard), parts: Vec::new() };
        let (rows, log, context) = (pack(Kind::Rows), pack(Kind::Log), pack(Kind::Context));
        Taken { cut, contents: Contents::default(), count: 0, counters: 0, rows, log, context }
    }

    fn count(&mut self, rows: &[BackupRow]) -> anyhow::Result<()> {
        for row in rows {
            self.count += 1;
            // Of a key that is gone there is no record.
            let counts = !row.record.is_empty() && Saved::of(&row.record)?.counter.is_some();
            self.counters += u64::from(counts);
        }
        Ok(())
    }

    /// The replica itself may be damaged: then this is found now, not when the backup is needed (DUR-3). What the log says can only be
    /// held against the digest together with what it rests on, by `verify`.
    fn end(self, node: &dyn std::fmt::Display, way: Way) -> anyhow::Result<ShardEntry> {
        let cut = &self.cut;
        let said = Contents { hash: cut.hash, keys: cut.keys, bytes: cut.bytes };
        if way != Way::Log && self.contents != said {
            bail!(
                "the rows on node {node} are not what their digest says: that replica is damaged; back up another region with --in, and see `meridian status`"
            );
        }
        let entry = ShardEntry::new(cut, way, (self.count, self.counters), self.rows.parts);
        Ok(ShardEntry { log: self.log.parts, context: self.context.parts, ..entry })
    }
}
